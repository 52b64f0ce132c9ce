//! The node's devices by netlink: their names and kinds, what they are part of, and their addresses.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use anyhow::Result;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::mpsc::Sender;

use super::{
    Event,
    netlink::{self, Table, dump},
};
use crate::model::{Change, Cidr, Link, LinkAddress, Scope, Source};

/// Follows the devices until nobody listens. The first table is told in any case, later ones if they differ.
///
/// # Errors
/// There is no netlink socket at the start.
pub async fn follow(to: Sender<Event>) -> Result<()> {
    netlink::follow::<Links>(to).await
}

/// The devices as they are at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Links(BTreeMap<u32, Link>);

impl Table for Links {
    const SOURCE: Source = Source::Links;
    const NAME: &str = "the network devices and their addresses";
    const GROUPS: &[MulticastGroup] =
        &[MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];

    type Question = ();

    async fn read(handle: &mut Handle, _: &()) -> Result<Self> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let mut links = BTreeMap::new();
        for message in dump(handle, RouteNetlinkMessage::GetLink(request)).await? {
            if let RouteNetlinkMessage::NewLink(message) = message {
                links.insert(message.header.index, link(&message));
            }
        }
        // Addresses after links: those of a device that came meanwhile are told once more with it.
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = AddressMessage::default();
            request.header.family = family;
            for message in dump(handle, RouteNetlinkMessage::GetAddress(request)).await? {
                if let RouteNetlinkMessage::NewAddress(message) = message
                    && message.header.family == family
                    && let Some(link) = links.get_mut(&message.header.index)
                {
                    link.addresses.extend(address(&message));
                }
            }
        }
        Ok(Self(links))
    }

    fn may_change(message: &RouteNetlinkMessage) -> bool {
        use RouteNetlinkMessage::{DelAddress, DelLink, NewAddress, NewLink};
        matches!(message, NewLink(_) | DelLink(_) | NewAddress(_) | DelAddress(_))
    }

    fn change(self) -> Change {
        Change::Links(self.0)
    }
}

/// A device without its addresses.
fn link(message: &LinkMessage) -> Link {
    let mut link = Link {
        name: Arc::from(""),
        kind: None,
        master: None,
        header: header(message.header.link_layer_type),
        mac: [0; 6],
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        addresses: Vec::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name.as_str().into(),
            LinkAttribute::Controller(master) => link.master = Some(*master).filter(|master| *master != 0),
            LinkAttribute::Address(mac) => {
                link.mac = mac.as_slice().try_into().unwrap_or_default();
            }
            LinkAttribute::LinkInfo(parts) => {
                let kind = parts.iter().find_map(|part| match part {
                    LinkInfo::Kind(kind) => Some(kind.to_string().into()),
                    _ => None,
                });
                link.kind = kind;
            }
            _ => {}
        }
    }
    link
}

/// Length of the header that a program finds before the network header.
fn header(kind: LinkLayerType) -> Option<u8> {
    use LinkLayerType::{Ether, Ipgre, Ppp, Rawip, Sit, Tunnel, Tunnel6};
    match kind {
        Ether => Some(14),
        LinkLayerType::None | Ppp | Rawip | Tunnel | Tunnel6 | Sit | Ipgre => Some(0),
        _ => None,
    }
}

/// The device's own end; IPv4 has the other one's in another attribute.
fn address(message: &AddressMessage) -> Option<LinkAddress> {
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    let (mut local, mut other): (Option<IpAddr>, Option<IpAddr>) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => other = Some(*address),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let unusable = flags.contains(AddressFlags::Dadfailed)
        || flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
    let (address, neighbour) = (local.or(other)?, other.or(local)?);
    Some(LinkAddress {
        address,
        subnet: Cidr::around(neighbour, message.header.prefix_len),
        scope: match message.header.scope {
            AddressScope::Universe => Scope::Global,
            AddressScope::Link => Scope::Link,
            _ => Scope::Other,
        },
        secondary: flags.contains(AddressFlags::Secondary),
        deprecated: flags.contains(AddressFlags::Deprecated),
        tentative: unusable,
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::address::AddressHeaderFlags;

    use super::*;

    #[test]
    fn only_ethernet_has_a_header_and_what_is_neither_it_nor_plain_ip_is_told_apart() {
        assert_eq!(header(LinkLayerType::Ether), Some(14));
        for plain in [LinkLayerType::None, LinkLayerType::Ppp, LinkLayerType::Sit, LinkLayerType::Rawip] {
            assert_eq!(header(plain), Some(0), "{plain:?}");
        }
        assert_eq!(header(LinkLayerType::Loopback), None);
        assert_eq!(header(LinkLayerType::from(280)), None, "CAN");
    }

    #[test]
    fn of_a_point_to_point_address_the_own_end_counts() {
        let mut message = AddressMessage::default();
        message.attributes = vec![
            AddressAttribute::Address(IpAddr::from([192, 0, 2, 1])),
            AddressAttribute::Local(IpAddr::from([192, 0, 2, 2])),
        ];
        assert_eq!(address(&message).unwrap().address, IpAddr::from([192, 0, 2, 2]));
    }

    #[test]
    fn a_tentative_address_is_usable_only_if_the_kernel_is_optimistic() {
        let of = |flags: AddressHeaderFlags| {
            let mut message = AddressMessage::default();
            message.header.flags = flags;
            message.attributes = vec![AddressAttribute::Address(IpAddr::from([192, 0, 2, 1]))];
            address(&message).unwrap().tentative
        };
        use AddressHeaderFlags as Flags;
        assert!(of(Flags::Tentative));
        assert!(!of(Flags::Tentative | Flags::Optimistic));
        assert!(of(Flags::Dadfailed | Flags::Optimistic));
        assert!(!of(Flags::Permanent));
    }
}
