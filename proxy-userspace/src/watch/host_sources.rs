//! From which address processes of the node dial what is asked: the kernel is asked for each by RTM_GETROUTE, as for a
//! socket that is bound to nothing, and again when routes, rules, addresses or devices have changed.

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Result, bail};
use futures::StreamExt;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage},
};
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
};
use tokio::sync::{mpsc::Sender, watch};

use super::{
    Event, What,
    netlink::{self, Table},
};
use crate::model::{Change, HostSource, Questions, Source};

/// Answers [`Questions::sources`] until nobody listens: at once if nothing is asked, else whenever it may be different.
///
/// # Errors
/// There is no netlink socket at the start.
pub async fn follow(mut asked: watch::Receiver<Questions>, to: Sender<Event>) -> Result<()> {
    let what = What::Change { change: Change::HostSources(BTreeMap::new()), trigger: None };
    if to.send(Event::now(Source::HostSources, what)).await.is_err() {
        return Ok(());
    }
    // Nodes with large routing tables hear of every route of theirs: not for nothing.
    tokio::select! {
        () = to.closed() => return Ok(()),
        asked = asked.wait_for(|asked| !asked.sources.is_empty()) => if asked.is_err() {
            std::future::pending::<()>().await;
        }
    }
    netlink::follow_what::<HostSources>(asked, to).await
}

/// The answers at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HostSources(BTreeMap<IpAddr, HostSource>);

impl Table for HostSources {
    const SOURCE: Source = Source::HostSources;
    const NAME: &str = "the routes to load balancers with source ranges";
    const GROUPS: &[MulticastGroup] = &[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Rule,
    ];
    type Question = Questions;

    async fn read(handle: &mut Handle, question: &Questions) -> Result<Self> {
        let mut all = BTreeMap::new();
        for address in &question.sources {
            all.insert(*address, source(handle, *address).await?);
        }
        Ok(Self(all))
    }

    fn may_change(message: &RouteNetlinkMessage) -> bool {
        use RouteNetlinkMessage::{
            DelAddress, DelLink, DelRoute, DelRule, NewAddress, NewLink, NewRoute, NewRule,
        };
        matches!(
            message,
            NewLink(_)
                | DelLink(_)
                | NewAddress(_)
                | DelAddress(_)
                | NewRoute(_)
                | DelRoute(_)
                | NewRule(_)
                | DelRule(_)
        )
    }

    fn change(self) -> Change {
        Change::HostSources(self.0)
    }
}

/// The source that the kernel would pick. What it answers with an error can't be reached: no route, or one that refuses.
async fn source(handle: &mut Handle, to: IpAddr) -> Result<HostSource> {
    let mut request = RouteMessage::default();
    let (family, length) = if to.is_ipv4() { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) };
    request.header.address_family = family;
    request.header.destination_prefix_length = length;
    request.attributes.push(RouteAttribute::Destination(to.into()));
    let mut message = NetlinkMessage::from(RouteNetlinkMessage::GetRoute(request));
    message.header.flags = NLM_F_REQUEST;
    let mut answers = handle.request(message)?;
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => return Ok(of(&route)),
            NetlinkPayload::Error(_) => return Ok(HostSource::NoRoute),
            _ => {}
        }
    }
    bail!("the netlink socket has ended")
}

fn of(route: &RouteMessage) -> HostSource {
    let source = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(RouteAddress::Inet(v4)) => Some(IpAddr::from(*v4)),
        RouteAttribute::PrefSource(RouteAddress::Inet6(v6)) => Some(IpAddr::from(*v6)),
        _ => None,
    });
    source.map_or(HostSource::NoRoute, HostSource::Address)
}
