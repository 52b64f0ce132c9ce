//! Follows a table of the kernel's by netlink: a dump, and another one whenever it may be different.
//!
//! Notifications only say that something may be different; the table is then dumped again. The kernel drops
//! notifications when we are slow, so what was lost makes a dump like what was heard.

use std::{future::Future, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use futures::{StreamExt, channel::mpsc::UnboundedReceiver};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{
    Handle, MulticastGroup, new_multicast_connection,
    packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    sys::AsyncSocket,
    sys::SocketAddr,
};
use tokio::{
    sync::{mpsc::Sender, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{Event, What, backoff::Backoff};
use crate::model::{Change, Source};

/// A dump begins when nothing was heard for this long: one `ip address add` makes several messages …
const QUIET: Duration = Duration::from_millis(2);
/// … or this long after the first.
const PATIENCE: Duration = Duration::from_millis(20);
/// A dump of thousands of entries takes milliseconds; a kernel that does not answer is asked on another socket.
const LIMIT: Duration = Duration::from_secs(10);
/// Before another socket is tried.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How often a dump is begun again that a change has interrupted. Each change brings another dump anyway.
const ATTEMPTS: u32 = 5;

/// In which messages arrive that nobody asked for.
type Heard = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// Something that can be dumped, and when it has to be.
pub(super) trait Table: Clone + PartialEq + Send + Sized {
    /// Who tells of it.
    const SOURCE: Source;
    /// What it is, for people.
    const NAME: &str;
    /// Where its changes are told.
    const GROUPS: &[MulticastGroup];
    /// What of it is asked for, if not all is.
    type Question: Clone + Send + Sync;

    /// All of it as it is now.
    fn read(handle: &mut Handle, question: &Self::Question) -> impl Future<Output = Result<Self>> + Send;

    /// Whether it may be different after this message.
    fn may_change(message: &RouteNetlinkMessage) -> bool;

    /// In the model's words.
    fn change(self) -> Change;
}

/// Follows all of a table until nobody listens. The first one is told in any case, later ones if they differ.
///
/// # Errors
/// There is no netlink socket at the start.
pub(super) async fn follow<T: Table<Question = ()>>(to: Sender<Event>) -> Result<()> {
    let (_asks_no_more, asked) = watch::channel(());
    follow_what::<T>(asked, to).await
}

/// The same of what is asked for at each time.
pub(super) async fn follow_what<T: Table>(
    mut asked: watch::Receiver<T::Question>,
    to: Sender<Event>,
) -> Result<()> {
    let mut known = None;
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    let mut socket = Socket::open(T::GROUPS)?;
    while let Err(error) = socket.run::<T>(&mut asked, &mut known, &mut backoff, &to).await {
        let why = format!("{error:#}; what is known so far stays");
        tell::<T>(&to, What::Broken { why }).await;
        socket = loop {
            tokio::select! {
                () = to.closed() => return Ok(()),
                () = sleep(backoff.failed()) => {}
            }
            if let Ok(socket) = Socket::open(T::GROUPS) {
                break socket;
            }
        };
    }
    Ok(())
}

/// If nobody listens, the next look at the channel says so.
async fn tell<T: Table>(to: &Sender<Event>, what: What) {
    let _ = to.send(Event::now(T::SOURCE, what)).await;
}

/// A netlink socket that hears of changes.
struct Socket {
    handle: Handle,
    heard: Heard,
    /// What reads from it; ends with it.
    _reader: JoinSet<()>,
}

impl Socket {
    fn open(groups: &[MulticastGroup]) -> Result<Self> {
        let opened = new_multicast_connection(groups);
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
    async fn run<T: Table>(
        &mut self,
        asked: &mut watch::Receiver<T::Question>,
        known: &mut Option<T>,
        backoff: &mut Backoff,
        to: &Sender<Event>,
    ) -> Result<()> {
        loop {
            let question = asked.borrow_and_update().clone();
            let table = timeout(LIMIT, T::read(&mut self.handle, &question)).await;
            let table = table.context("the kernel does not answer on netlink")?;
            let table = table.with_context(|| format!("read {}", T::NAME))?;
            backoff.works();
            let what = if known.as_ref() == Some(&table) {
                What::Alive
            } else {
                *known = Some(table.clone());
                What::Change { change: table.change(), trigger: None }
            };
            tell::<T>(to, what).await;
            tokio::select! {
                () = to.closed() => return Ok(()),
                heard = self.something::<T>() => heard?,
                () = changed(asked) => {}
            }
        }
    }

    /// Waits until the table may be different.
    async fn something<T: Table>(&mut self) -> Result<()> {
        loop {
            let Some((message, _)) = self.heard.next().await else { bail!("the netlink socket has ended") };
            if is_reason::<T>(&message.payload) {
                break;
            }
        }
        let end = Instant::now() + PATIENCE;
        while let Ok(Ok(Some(_))) = timeout_at(end, timeout(QUIET, self.heard.next())).await {}
        Ok(())
    }
}

/// Until something else is asked for.
async fn changed<Q>(asked: &mut watch::Receiver<Q>) {
    if asked.changed().await.is_err() {
        std::future::pending().await
    }
}

/// Whether to look again. `Overrun`: messages were lost.
fn is_reason<T: Table>(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    match payload {
        NetlinkPayload::Overrun(_) => true,
        NetlinkPayload::InnerMessage(message) => T::may_change(message),
        _ => false,
    }
}

/// All messages of a dump; once more if something changed meanwhile.
pub(super) async fn dump(
    handle: &mut Handle,
    request: RouteNetlinkMessage,
) -> Result<Vec<RouteNetlinkMessage>> {
    for attempt in 1.. {
        let mut message = NetlinkMessage::from(request.clone());
        message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut answers = handle.request(message)?;
        let (mut messages, mut is_whole, mut is_interrupted) = (Vec::new(), false, false);
        while let Some(answer) = answers.next().await {
            is_interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => messages.push(message),
                NetlinkPayload::Done(_) => is_whole = true,
                // There is no such table before the first address.
                NetlinkPayload::Error(error) if error.raw_code() == -libc::ENOENT => is_whole = true,
                NetlinkPayload::Error(error) => return Err(anyhow!("netlink: {}", error.to_io())),
                _ => {}
            }
        }
        if !is_whole {
            bail!("the netlink socket has ended");
        }
        if !is_interrupted || attempt == ATTEMPTS {
            return Ok(messages);
        }
    }
    unreachable!("the loop has no end")
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkMessage;
    use tokio::sync::mpsc;

    use super::{super::routes::LocalTable, *};

    #[tokio::test]
    async fn a_socket_that_ends_is_an_error_and_what_is_known_stays() {
        let (to, mut events) = mpsc::channel::<Event>(4);
        let (mut known, mut backoff) = (None::<LocalTable>, Backoff::new(FIRST_WAIT, LONGEST_WAIT));
        let (_keep, mut asked) = watch::channel(());
        let mut socket = Socket::open(LocalTable::GROUPS).unwrap();
        let first = async {
            let heard = events.recv().await.unwrap();
            assert!(matches!(heard.what, What::Change { change: Change::LocalRoutes(_), .. }), "{heard:?}");
        };
        tokio::select! {
            result = socket.run(&mut asked, &mut known, &mut backoff, &to) => panic!("{result:?}"),
            () = first => {}
        }
        socket._reader.abort_all();
        while socket._reader.join_next().await.is_some() {}
        let error = socket.run(&mut asked, &mut known, &mut backoff, &to).await.unwrap_err();
        assert!(format!("{error:#}").contains("local routing table"), "{error:#}");
        assert!(known.is_some_and(|LocalTable(routes)| !routes.is_empty()));
    }

    #[test]
    fn lost_messages_are_a_reason_to_read_again() {
        let link = RouteNetlinkMessage::NewLink(LinkMessage::default());
        assert!(is_reason::<LocalTable>(&NetlinkPayload::InnerMessage(link)));
        assert!(is_reason::<LocalTable>(&NetlinkPayload::Overrun(Vec::new())));
        assert!(!is_reason::<LocalTable>(&NetlinkPayload::Noop));
    }
}
