//! What is sent to an address of Services and is no frontend. kube-proxy's nftables mode judges it (spec §2.6): a port
//! that a ClusterIP's Service does not declare is refused; an address that no Service has is dropped. Its ipvs mode
//! refuses undeclared ports of load balancer and external IPs too, because all these addresses stand on a device of the
//! node's there, and whoever listens on the node would answer; it drops nothing.

use super::Tables;
use crate::{
    Address, Reason,
    layout::{FrontendKey, Node, RangeKey},
};

/// Whether what is sent `to` an address, and to no frontend, is to be refused ([`Reason::PortUndeclared`]) or dropped
/// ([`Reason::AddressUnallocated`]). `None`: it is no matter of Services.
///
/// Two looks at ranges, of which there are few, come before the look at the large table.
#[inline(never)]
pub fn unclaimed<T: Tables>(tables: &T, to: &Address) -> Option<Reason> {
    let node = tables.node()?;
    if node.guards & Node::UNCLAIMED == 0 {
        return None;
    }
    let is_allotted = tables.in_range(&RangeKey::host(RangeKey::SERVICES, *to));
    let may_be_declared = tables.address_in_use(to);
    let is_covered = || tables.in_range(&RangeKey::host(RangeKey::MARKED, *to));
    if !(is_allotted || may_be_declared && is_covered()) {
        return None;
    }
    // One that a device of the node has is the node's (NodeLocal DNS).
    if tables.local_address(to).is_some() {
        return None;
    }
    if may_be_declared && tables.frontend(&FrontendKey::mark(*to)).is_some() {
        return Some(Reason::PortUndeclared);
    }
    is_allotted.then_some(Reason::AddressUnallocated)
}
