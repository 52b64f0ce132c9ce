//! What must not leave the node, and what must not come in.
//!
//! A packet of the node's own sockets to an address that only translation gives a meaning: there is no position before the routing of locally made packets. What the socket plane could not translate (SCTP, raw
//! sockets, kernel tunnels) would follow the default route with a ClusterIP as its destination.
//!
//! A packet with an address of loopback: the kernel refuses them, but not on devices with `route_localnet`, which node ports
//! on 127.0.0.1 need (`super::loopback`; CVE-2020-8558). So nothing that a device brings may bear one, in whatever it is wrapped
//! and whatever mark it bears.

use super::{
    Origin, Tables,
    desk::Desk,
    opening::lookup_packet,
    parse::{Bytes, ETHERNET, Packet},
    select::extent,
    unclaimed::unclaimed,
};
use crate::layout::{FrontendKind, Policy};

/// Whether a packet of a local socket has to be dropped.
#[inline(never)]
pub fn must_stay<T: Tables>(tables: &T, packet: &Packet) -> bool {
    let Ok(frontend) = lookup_packet(tables, &packet.destination, packet.protocol) else {
        return unclaimed(tables, &packet.destination.address).is_some();
    };
    if frontend.kind as u8 == FrontendKind::ClusterIp as u8 || frontend.host_denied != 0 {
        return true;
    }
    match extent(tables, frontend.service) {
        Ok(extent) => {
            // Without any endpoint it may leave where kube-proxy's iptables mode, which refuses in INPUT, lets it.
            !Policy::rejects_inward(extent.header.policy)
                && extent.set(frontend.kind, Origin::Host).is_empty()
        }
        Err(_) => false,
    }
}

/// VLAN tags that are looked behind: the kernel takes those of VLAN 0 off, however many there are.
const TAGS: u32 = 4;

/// Up to the addresses.
type Header4 = [[u8; 4]; 5];

/// Whether a packet without tags goes to an IPv4 address of loopback. `header`: length of the layer-2 header.
#[inline(always)]
pub fn is_for_loopback<B: Bytes>(bytes: &B, header: u8) -> bool {
    let l3 = u32::from(header);
    let is_v4 = l3 != ETHERNET || bytes.load::<u16>(l3 - 2) == Some(0x0800_u16.to_be());
    is_v4 && bytes.load::<Header4>(l3).is_some_and(|[first, .., to]| first[0] >> 4 == 4 && to[0] == 127)
}

/// Whether a packet bears an IPv4 address of loopback, or is wrapped in more tags than anybody uses: of one that the
/// programs leave as it is. `header`: length of the layer-2 header.
#[inline(always)]
pub fn is_martian<B: Bytes>(bytes: &B, header: u8) -> bool {
    let mut l3 = u32::from(header);
    if l3 == ETHERNET {
        let mut tag = 0;
        loop {
            match bytes.load::<u16>(l3 - 2).map(u16::from_be) {
                Some(0x0800) => break,
                Some(0x8100 | 0x88a8) if tag < TAGS => l3 += 4,
                Some(0x8100 | 0x88a8) => return true,
                _ => return false,
            }
            tag += 1;
        }
    }
    let header = bytes.load::<Header4>(l3);
    header.is_some_and(|[first, _, _, from, to]| first[0] >> 4 == 4 && (from[0] == 127 || to[0] == 127))
}

/// Whether a packet that came in bears such an address and is no answer that a bridge's port has given back to loopback.
#[inline(always)]
pub const fn is_stray(desk: &Desk) -> bool {
    let Packet { source, destination, .. } = &desk.packet;
    // No flow has what bears no ports.
    let answers = desk.marked && desk.packet.has_ports();
    source.address.is_loopback() || destination.address.is_loopback() && !answers
}
