//! The node's local routing table (table 255) by netlink: what addresses and ranges this node answers for, of both
//! families, and on which device. Entries of the types broadcast, multicast and anycast are none of ours.
//!
//! Notifications only say that something may be different; the table is then dumped again. The kernel does not tell
//! of every IPv4 route that goes with its device, and drops notifications when we are slow, so links and addresses
//! are listened to as well, and what was lost makes a dump like what was heard.

mod table;

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{
    Handle, MulticastGroup, new_multicast_connection, packet_core::NetlinkMessage, sys::AsyncSocket,
    sys::SocketAddr,
};
use tokio::{
    sync::mpsc::Sender,
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{Event, What, backoff::Backoff};
use crate::model::{Change, LocalRoute, Source};

/// A dump begins when nothing was heard for this long: one `ip address add` makes several messages …
const QUIET: Duration = Duration::from_millis(2);
/// … or this long after the first.
const PATIENCE: Duration = Duration::from_millis(20);
/// A dump of thousands of routes takes milliseconds; a kernel that does not answer is asked on another socket.
const LIMIT: Duration = Duration::from_secs(10);
/// Before another socket is tried.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// In which messages arrive that nobody asked for.
type Heard = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// Follows the table until nobody listens. The first table is told in any case, later ones if they differ.
///
/// # Errors
/// There is no netlink socket at the start.
pub async fn follow(to: Sender<Event>) -> Result<()> {
    let mut known = None;
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    let mut socket = Socket::open()?;
    while let Err(error) = socket.run(&mut known, &mut backoff, &to).await {
        let why = format!("{error:#}; the addresses known so far stay");
        tell(&to, What::Broken { why }).await;
        socket = loop {
            tokio::select! {
                () = to.closed() => return Ok(()),
                () = sleep(backoff.failed()) => {}
            }
            if let Ok(socket) = Socket::open() {
                break socket;
            }
        };
    }
    Ok(())
}

/// If nobody listens, the next look at the channel says so.
async fn tell(to: &Sender<Event>, what: What) {
    let _ = to.send(Event::now(Source::LocalRoutes, what)).await;
}

/// A netlink socket that hears of changes.
struct Socket {
    handle: Handle,
    heard: Heard,
    /// What reads from it; ends with it.
    _reader: JoinSet<()>,
}

impl Socket {
    fn open() -> Result<Self> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let opened = new_multicast_connection(&groups);
        let (mut connection, handle, heard) = opened.context("open a netlink socket (NETLINK_ROUTE)")?;
        // So that the end of a dump is seen, which may say that it was interrupted.
        connection.set_forward_done(true);
        // Kernels from 4.20 dump one table only if asked so; others send all, and we choose.
        let _ = connection.socket_mut().socket_ref().set_netlink_get_strict_chk(true);
        let mut reader = JoinSet::new();
        reader.spawn(connection);
        Ok(Self { handle, heard, _reader: reader })
    }

    /// # Errors
    /// The socket is of no use any more.
    async fn run(
        &mut self,
        known: &mut Option<BTreeSet<LocalRoute>>,
        backoff: &mut Backoff,
        to: &Sender<Event>,
    ) -> Result<()> {
        loop {
            let routes = timeout(LIMIT, table::read(&mut self.handle)).await;
            let routes = routes.context("the kernel does not answer on netlink")?;
            let routes = routes.context("read the local routing table (table 255)")?;
            backoff.works();
            let what = if known.as_ref() == Some(&routes) {
                What::Alive
            } else {
                *known = Some(routes.clone());
                What::Change { change: Change::LocalRoutes(routes), trigger: None }
            };
            tell(to, what).await;
            tokio::select! {
                () = to.closed() => return Ok(()),
                heard = self.something() => heard?,
            }
        }
    }

    /// Waits until the table may be different.
    async fn something(&mut self) -> Result<()> {
        loop {
            let Some((message, _)) = self.heard.next().await else { bail!("the netlink socket has ended") };
            if table::may_change(&message) {
                break;
            }
        }
        let end = Instant::now() + PATIENCE;
        while let Ok(Ok(Some(_))) = timeout_at(end, timeout(QUIET, self.heard.next())).await {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_socket_that_ends_is_an_error_and_what_is_known_stays() {
        let (to, mut events) = mpsc::channel::<Event>(4);
        let (mut known, mut backoff) = (None, Backoff::new(FIRST_WAIT, LONGEST_WAIT));
        let mut socket = Socket::open().unwrap();
        let first = async {
            let heard = events.recv().await.unwrap();
            assert!(matches!(heard.what, What::Change { change: Change::LocalRoutes(_), .. }), "{heard:?}");
        };
        tokio::select! {
            result = socket.run(&mut known, &mut backoff, &to) => panic!("{result:?}"),
            () = first => {}
        }
        socket._reader.abort_all();
        while socket._reader.join_next().await.is_some() {}
        let error = socket.run(&mut known, &mut backoff, &to).await.unwrap_err();
        assert!(format!("{error:#}").contains("local routing table"), "{error:#}");
        assert!(known.is_some_and(|routes| !routes.is_empty()));
    }
}
