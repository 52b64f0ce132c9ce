//! The tables as the programs see them: [`Actual`] under the decisions of `proxy_common::datapath`.

use proxy_common::{
    Address,
    datapath::Tables,
    layout::{
        Affinity, AffinityKey, Backend, Frontend, FrontendKey, LocalAddress, LocalKey, Node, RangeKey,
        Service,
    },
};

use super::Actual;

/// What was read back, to decide on. It remembers no clients.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The tables.
    pub actual: &'a Actual,
    /// The node's settings; none: not written yet.
    pub node: Option<Node>,
}

impl Tables for View<'_> {
    fn node(&self) -> Option<Node> {
        self.node
    }
    fn port_in_use(&self, port: u16) -> bool {
        let word = self.actual.ports.get(&(u32::from(port) / 64)).copied().unwrap_or(0);
        word >> (port % 64) & 1 != 0
    }
    fn address_in_use(&self, address: &Address) -> bool {
        self.actual.address_in_use(address)
    }
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.actual.frontends.get(key).copied()
    }
    fn service(&self, index: u32) -> Option<Service> {
        self.actual.services.get(&index).copied()
    }
    fn backend(&self, slot: u32) -> Option<Backend> {
        self.actual.backends.get(slot).copied()
    }
    fn local_address(&self, address: &Address) -> Option<LocalAddress> {
        let bits = u128::from_be_bytes(address.octets());
        (0..=128).rev().find_map(|prefix_length| {
            let mask = u128::MAX.checked_shl(128 - prefix_length).unwrap_or(0);
            let key = LocalKey { prefix_length, address: (bits & mask).to_be_bytes() };
            self.actual.local_addresses.get(&key).copied()
        })
    }
    fn in_range(&self, key: &RangeKey) -> bool {
        let covers = |range: &RangeKey| {
            let length = range.prefix_length.saturating_sub(32);
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(length)).unwrap_or(0);
            let bits = |key: &RangeKey| u128::from_be_bytes(key.address) & mask;
            bits(range) == bits(key)
        };
        self.actual.source_ranges.get(&key.owner).is_some_and(|ranges| ranges.iter().any(covers))
    }
    fn affinity(&self, _: &AffinityKey) -> Option<Affinity> {
        None
    }
    fn set_affinity(&self, _: &AffinityKey, _: &Affinity) {}
}
