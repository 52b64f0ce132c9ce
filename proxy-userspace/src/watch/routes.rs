//! The node's local routing table (table 255): what addresses and ranges this node answers for, of both families, and
//! on which device. Entries of the types broadcast, multicast and anycast are none of ours.
//!
//! The kernel does not tell of every IPv4 route that goes with its device, so links and addresses are listened to as
//! well.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use anyhow::Result;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkExtentMask, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::mpsc::Sender;

use super::{
    Event,
    netlink::{self, Table, dump},
};
use crate::model::{Change, Cidr, LocalRoute, Source};

/// `RT_TABLE_LOCAL`.
const LOCAL: u8 = 255;

/// Follows the table until nobody listens. The first table is told in any case, later ones if they differ.
///
/// # Errors
/// There is no netlink socket at the start.
pub async fn follow(to: Sender<Event>) -> Result<()> {
    netlink::follow::<LocalTable>(to).await
}

/// The table as it is at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LocalTable(pub(super) BTreeSet<LocalRoute>);

impl Table for LocalTable {
    const SOURCE: Source = Source::LocalRoutes;
    const NAME: &str = "the local routing table (table 255)";
    const GROUPS: &[MulticastGroup] = &[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];

    type Question = ();

    async fn read(handle: &mut Handle, _: &()) -> Result<Self> {
        read(handle).await.map(Self)
    }

    /// Also a device's name.
    fn may_change(message: &RouteNetlinkMessage) -> bool {
        use RouteNetlinkMessage::{DelAddress, DelLink, DelRoute, NewAddress, NewLink, NewRoute};
        match message {
            NewRoute(route) | DelRoute(route) => is_local_table(route),
            message => matches!(message, NewLink(_) | DelLink(_) | NewAddress(_) | DelAddress(_)),
        }
    }

    fn change(self) -> Change {
        Change::LocalRoutes(self.0)
    }
}

/// The table as it is now.
async fn read(handle: &mut Handle) -> Result<BTreeSet<LocalRoute>> {
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

#[cfg(test)]
mod tests {
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
    fn a_route_of_another_table_is_no_reason_to_read_again() {
        let of = |table| route(table, RouteType::Local, "192.0.2.1", 32, 1);
        assert!(LocalTable::may_change(&RouteNetlinkMessage::NewRoute(of(255))));
        assert!(LocalTable::may_change(&RouteNetlinkMessage::DelRoute(of(255))));
        assert!(!LocalTable::may_change(&RouteNetlinkMessage::NewRoute(of(254))));
    }
}
