//! Netlink's messages about the local table: asking for it, and reading what comes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use anyhow::{Result, anyhow, bail};
use futures::StreamExt;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkExtentMask, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use rtnetlink::{
    Handle,
    packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
};

use crate::model::{Cidr, LocalRoute};

/// `RT_TABLE_LOCAL`.
const LOCAL: u8 = 255;
/// How often a dump is begun again that a change has interrupted. Each change brings another dump anyway.
const ATTEMPTS: u32 = 5;

/// The table as it is now.
pub(super) async fn read(handle: &mut Handle) -> Result<BTreeSet<LocalRoute>> {
    let mut entries = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        request.header.table = LOCAL;
        request.header.kind = RouteType::Local;
        for message in dump(handle, RouteNetlinkMessage::GetRoute(request)).await? {
            if let RouteNetlinkMessage::NewRoute(route) = message
                && route.header.address_family == family
            {
                entries.extend(entry(&route));
            }
        }
    }
    // Devices after routes: one that is not there any more has taken its routes along.
    let mut request = LinkMessage::default();
    request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let mut devices = BTreeMap::new();
    for message in dump(handle, RouteNetlinkMessage::GetLink(request)).await? {
        if let RouteNetlinkMessage::NewLink(link) = message {
            let names = link.attributes.iter();
            let name =
                names.filter_map(|it| if let LinkAttribute::IfName(name) = it { Some(name) } else { None });
            devices.extend(name.map(|name| (link.header.index, Arc::<str>::from(name.as_str()))));
        }
    }
    let named = |(prefix, device)| Some(LocalRoute { prefix, device: Arc::clone(devices.get(&device)?) });
    Ok(entries.into_iter().filter_map(named).collect())
}

/// Whether after this message the table, or a device's name, may be different. `Overrun`: messages were lost.
pub(super) fn may_change(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    use RouteNetlinkMessage::{DelAddress, DelLink, DelRoute, NewAddress, NewLink, NewRoute};
    match &message.payload {
        NetlinkPayload::Overrun(_) => true,
        NetlinkPayload::InnerMessage(NewRoute(route) | DelRoute(route)) => is_local_table(route),
        NetlinkPayload::InnerMessage(message) => {
            matches!(message, NewLink(_) | DelLink(_) | NewAddress(_) | DelAddress(_))
        }
        _ => false,
    }
}

/// Prefix and device of an entry of the local table, if it is one of type local.
fn entry(route: &RouteMessage) -> Option<(Cidr, u32)> {
    if route.header.kind != RouteType::Local || !is_local_table(route) {
        return None;
    }
    let mut address = match route.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut device = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => address = (*v4).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => address = (*v6).into(),
            RouteAttribute::Oif(index) => device = Some(*index),
            _ => {}
        }
    }
    Some((Cidr { address, length: route.header.destination_prefix_length }, device?))
}

fn is_local_table(route: &RouteMessage) -> bool {
    // The attribute is for numbers that the header's byte can't hold.
    route.header.table == LOCAL
}

/// All messages of a dump; once more if something changed meanwhile.
async fn dump(handle: &mut Handle, request: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>> {
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
    use rtnetlink::packet_core::NetlinkHeader;

    use super::*;

    fn route(table: u8, kind: RouteType, destination: &str, length: u8, device: u32) -> RouteMessage {
        let destination: IpAddr = destination.parse().unwrap();
        let mut route = RouteMessage::default();
        route.header.address_family =
            if destination.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        route.header.table = table;
        route.header.kind = kind;
        route.header.destination_prefix_length = length;
        route.attributes = vec![RouteAttribute::Destination(destination.into()), RouteAttribute::Oif(device)];
        route
    }

    #[test]
    fn only_local_entries_of_the_local_table_count() {
        let local = entry(&route(255, RouteType::Local, "127.0.0.0", 8, 1)).unwrap();
        assert_eq!((local.0.to_string().as_str(), local.1), ("127.0.0.0/8", 1));
        let local = entry(&route(255, RouteType::Local, "fe80::1", 128, 7)).unwrap();
        assert_eq!((local.0.to_string().as_str(), local.1), ("fe80::1/128", 7));
        for kind in [RouteType::Broadcast, RouteType::Multicast, RouteType::Anycast, RouteType::Unicast] {
            assert_eq!(entry(&route(255, kind, "192.0.2.255", 32, 1)), None, "{kind:?}");
        }
        assert_eq!(entry(&route(254, RouteType::Local, "192.0.2.1", 32, 1)), None);
    }

    #[test]
    fn a_route_of_another_table_is_no_reason_to_read_again_and_lost_messages_are() {
        let message = |payload| NetlinkMessage::new(NetlinkHeader::default(), payload);
        let inner = |it| message(NetlinkPayload::InnerMessage(it));
        let of = |table| route(table, RouteType::Local, "192.0.2.1", 32, 1);
        assert!(may_change(&inner(RouteNetlinkMessage::NewRoute(of(255)))));
        assert!(may_change(&inner(RouteNetlinkMessage::DelRoute(of(255)))));
        assert!(!may_change(&inner(RouteNetlinkMessage::NewRoute(of(254)))));
        assert!(may_change(&inner(RouteNetlinkMessage::NewLink(LinkMessage::default()))));
        assert!(may_change(&message(NetlinkPayload::Overrun(Vec::new()))));
        assert!(!may_change(&message(NetlinkPayload::Noop)));
    }
}
