//! With which address a device masquerades, as the kernel's MASQUERADE picks it.
//!
//! | family | by | kernel |
//! |---|---|---|
//! | IPv4 | the next hop: the first primary address whose subnet holds it, else the first of all | `inet_select_addr` |
//! | IPv6 | the destination: RFC 6724's rules for sources | `ipv6_dev_get_saddr` |
//!
//! Both are a choice among few addresses that is the same all over a range of peers: a table of the longest prefix says
//! which. Not known here, and taken as the kernel has it by itself: `ip addrlabel`, `use_tempaddr`, `use_oif_addrs_only`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use proxy_common::{
    Address,
    layout::{Device, MasqueradeAddress, MasqueradeKey},
};

use super::{Cidr, Family, Link, LinkAddress, Scope};

/// More addresses than this are not told apart: the first of the best is used for all peers.
const MOST: usize = 16;

/// The labels of `ip addrlabel`, if nobody has changed them, but for that of everything else, 1.
const LABELS: [([u16; 8], u8, u8); 9] = [
    ([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, 5),
    ([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, 11),
    ([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, 2),
    ([0x3ffe, 0, 0, 0, 0, 0, 0, 0], 16, 12),
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 32, 6),
    ([0x2001, 0x10, 0, 0, 0, 0, 0, 0], 28, 7),
    ([0, 0, 0, 0, 0, 0xffff, 0, 0], 96, 4),
    ([0, 0, 0, 0, 0, 0, 0, 0], 96, 3),
    ([0, 0, 0, 0, 0, 0, 0, 1], 128, 0),
];

/// What a device may masquerade with.
pub(super) struct Choices {
    pub(super) v4: Choice,
    pub(super) v6: Choice,
}

/// In one family: the address for all peers, and the ranges of those that get another.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    first: Option<IpAddr>,
    others: Vec<(Cidr, IpAddr)>,
}

impl Choice {
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.first
    }
}

impl Choices {
    /// Of [`Device::choices`].
    pub(super) fn bits(&self) -> u32 {
        let bit = |choice: &Choice, bit| if choice.others.is_empty() { 0 } else { bit };
        bit(&self.v4, Device::V4_BY_NEXT_HOP) | bit(&self.v6, Device::V6_BY_PEER)
    }
}

/// The entries of `masquerade` of the device of this ifindex.
pub(super) fn entries(
    device: u32,
    choices: Choices,
) -> impl Iterator<Item = (MasqueradeKey, MasqueradeAddress)> {
    let all = choices.v4.others.into_iter().chain(choices.v6.others);
    all.map(move |(range, address)| {
        let mapped = if range.address.is_ipv4() { 96 } else { 0 };
        let key = MasqueradeKey {
            prefix_length: 32 + mapped + u32::from(range.length),
            device,
            address: Address::from(range.address).octets(),
        };
        (key, MasqueradeAddress { address: Address::from(address).octets() })
    })
}

/// All addresses of the node.
pub(super) struct Sources<'a> {
    pub(super) links: &'a BTreeMap<u32, Link>,
}

impl Sources<'_> {
    /// Of the device of this ifindex.
    pub(super) fn of(&self, index: u32) -> Choices {
        Choices { v4: self.v4(index), v6: self.v6(index) }
    }

    /// The device's own primary global addresses; without one the first of its VRF, else of any device that routes together
    /// with it, whoever the peer is.
    fn v4(&self, index: u32) -> Choice {
        let vrf = self.vrf(index);
        let good = |address: &&LinkAddress| address.scope == Scope::Global && !address.secondary;
        let own: Vec<_> = self.addresses(index, Family::V4).filter(good).collect();
        let Some(first) = own.first() else {
            let far = self.links.keys().copied().filter(|other| self.vrf(*other) == vrf);
            let borrowed = |index: u32| self.addresses(index, Family::V4).find(good);
            let borrowed = vrf.into_iter().chain(far).find_map(borrowed);
            return Choice { first: borrowed.map(|address| address.address), others: Vec::new() };
        };
        let mut ranges: Vec<(Cidr, IpAddr)> = Vec::new();
        for LinkAddress { subnet, address, .. } in own.iter().copied() {
            // The first that holds the next hop has it, however wide it is.
            let taken = ranges
                .iter()
                .any(|(range, _)| range.length <= subnet.length && range.contains(subnet.address));
            if !taken {
                ranges.push((*subnet, *address));
            }
        }
        Choice { first: Some(first.address), others: differing(first.address, ranges) }
    }

    /// What does not depend on the peer comes first: a global source before others, then one that is not deprecated, then the
    /// device's own. Among those that are left the peer's label decides, then whether they are public, then how many bits they
    /// have in common with him, then their order.
    fn v6(&self, index: u32) -> Choice {
        let vrf = self.vrf(index);
        let together = self.links.keys().copied().filter(|other| self.vrf(*other) == vrf);
        let candidates = together.flat_map(|other| {
            self.addresses(other, Family::V6).map(move |address| (other == index, address))
        });
        let usable = candidates.filter(|(own, address)| {
            let scope = address.scope;
            !address.tentative && (scope == Scope::Global || scope == Scope::Link && *own)
        });
        let class = |(own, address): &(bool, &LinkAddress)| {
            (address.scope == Scope::Global, !address.deprecated, *own)
        };
        let usable: Vec<_> = usable.collect();
        let Some(best) = usable.iter().map(class).max() else { return Choice::default() };
        let mut sources: Vec<Source> = Vec::new();
        for candidate in usable.iter().filter(|candidate| class(candidate) == best) {
            if let (IpAddr::V6(address), is_public) = (candidate.1.address, !candidate.1.secondary)
                && sources.iter().all(|source| source.address != address)
            {
                sources.push(Source { address, length: candidate.1.subnet.length, is_public });
            }
        }
        if sources.len() > MOST {
            sources.sort_by_key(|source| !source.is_public);
            sources.truncate(1);
        }
        v6_choice(&sources)
    }

    fn addresses(&self, index: u32, family: Family) -> impl Iterator<Item = &LinkAddress> {
        let link = self.links.get(&index).into_iter();
        link.flat_map(|link| &link.addresses).filter(move |address| Family::of(address.address) == family)
    }

    /// The VRF that a device routes in, which is itself one, or none.
    fn vrf(&self, index: u32) -> Option<u32> {
        let is_vrf =
            |index: &u32| self.links.get(index).is_some_and(|link| link.kind.as_deref() == Some("vrf"));
        let master = || self.links.get(&index)?.master;
        Some(index).filter(is_vrf).or_else(|| master().filter(is_vrf))
    }
}

/// An IPv6 address that some peers are shown.
#[derive(Clone, Copy, Debug)]
struct Source {
    address: Ipv6Addr,
    /// Of its prefix: more bits in common than this don't count.
    length: u8,
    is_public: bool,
}

/// Which of them each peer is shown.
fn v6_choice(sources: &[Source]) -> Choice {
    // Where one peer may be shown another source than his neighbour: at the labels' edges, where two sources part, and
    // where one's bits begin not to count.
    let mut edges: Vec<Cidr> =
        LABELS.map(|(words, length, _)| Cidr { address: Ipv6Addr::from(words).into(), length }).into();
    for one in sources {
        for other in sources {
            for length in [common(one.address, other.address) + 1, u32::from(other.length) + 1] {
                edges.push(Cidr::around(one.address.into(), length.min(128) as u8));
            }
        }
    }
    let everybody = Cidr { address: Ipv6Addr::UNSPECIFIED.into(), length: 0 };
    edges.push(everybody);
    edges.sort_by_key(|edge| (edge.length, edge.address));
    edges.dedup();
    if sources.len() < 2 {
        edges.truncate(1);
    }
    let shown = edges.iter().filter_map(|edge| {
        let within: Vec<_> =
            edges.iter().filter(|other| other.length > edge.length && edge.contains(other.address)).collect();
        let peer = outside(*edge, &within)?;
        Some((*edge, IpAddr::from(best(sources, peer)?)))
    });
    let shown: Vec<_> = shown.collect();
    let Some(&(_, first)) = shown.first() else { return Choice::default() };
    Choice { first: Some(first), others: differing(first, shown) }
}

/// The one that RFC 6724 picks for a peer, of those that only he decides between.
fn best(sources: &[Source], peer: Ipv6Addr) -> Option<Ipv6Addr> {
    let rank = |source: &&Source| {
        let bits = common(source.address, peer).min(u32::from(source.length));
        (label(source.address) == label(peer), source.is_public, bits)
    };
    // Of equals the kernel keeps the first, `max_by_key` the last.
    sources.iter().rev().max_by_key(rank).map(|source| source.address)
}

fn label(address: Ipv6Addr) -> u8 {
    let of = LABELS.iter().filter(|(words, length, _)| {
        Cidr { address: Ipv6Addr::from(*words).into(), length: *length }.contains(address.into())
    });
    of.max_by_key(|(_, length, _)| *length).map_or(1, |(_, _, label)| *label)
}

/// How many bits two addresses have in common.
fn common(one: Ipv6Addr, other: Ipv6Addr) -> u32 {
    (one.to_bits() ^ other.to_bits()).leading_zeros()
}

/// An address of a range that is in none of those within it; `None`: they cover it.
fn outside(range: Cidr, within: &[&Cidr]) -> Option<Ipv6Addr> {
    let IpAddr::V6(address) = range.address else { return None };
    if within.is_empty() {
        return Some(address);
    }
    if within.iter().any(|other| **other == range) {
        return None;
    }
    let half = 1_u128.checked_shl(127 - u32::from(range.length))?;
    [address.to_bits(), address.to_bits() | half].into_iter().find_map(|bits| {
        let half = Cidr { address: Ipv6Addr::from_bits(bits).into(), length: range.length + 1 };
        let inner: Vec<_> = within.iter().copied().filter(|other| half.contains(other.address)).collect();
        outside(half, &inner)
    })
}

/// Without those that the next wider range says too, or the first address for all.
fn differing(first: IpAddr, mut ranges: Vec<(Cidr, IpAddr)>) -> Vec<(Cidr, IpAddr)> {
    ranges.sort_by_key(|(range, _)| (range.length, range.address));
    let mut kept: Vec<(Cidr, IpAddr)> = Vec::new();
    for (range, address) in ranges {
        let wider = kept.iter().rev().find(|(wider, _)| wider.contains(range.address));
        if wider.map_or(first, |(_, address)| *address) != address {
            kept.push((range, address));
        }
    }
    kept
}

#[cfg(test)]
mod tests;
