//! What must not leave the node: a packet of its own sockets to an address that only translation gives a meaning.
//!
//! There is no position before the routing of locally made packets. What the socket plane could not translate (SCTP, raw
//! sockets, kernel tunnels) would follow the default route with a ClusterIP as its destination.

use super::{Origin, Tables, opening::lookup_packet, parse::Packet, select::extent, unclaimed::unclaimed};
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
