//! The decisions, pure: given a call and the tables, what happens to it. The programs in the kernel, `vipr explain`,
//! the conformance runner and the tests all run this source.
//!
//! It reads through three traits. The kernel's half implements them with maps, helpers and socket storage; everybody
//! else with ordinary collections. Everything is inlined: the verifier sees one function per program.
//!
//! | step | file |
//! |---|---|
//! | which frontend was dialled, if any | [`lookup`] |
//! | what an address of Services gets that is none | [`unclaimed`] |
//! | which endpoint of its service serves this client | [`select`] |
//! | what a socket call does with that, and what its socket remembers | [`socket`], [`datagram`] |
//! | what a packet is, and what its checksums become | [`parse`], [`csum`] |
//! | which packets are nobody's at the first look | [`sieve`] |
//! | what happens to a packet at ingress and at egress, and in which parts | [`packet`], [`desk`], [`parts`] |
//! | a flow's first packet, its record and keys, its connection's state | [`opening`], [`flow`], [`claim`], [`track`], [`hash`] |
//! | what the node began itself, and whose answers look like another's | [`own`] |
//! | a pod's connected socket whose backend serves no longer | [`repair`] |
//! | errors about its packets, their fragments, what must not leave the node | [`icmp`], [`fragment`], [`guard`] |
//! | what the node's own sockets send from 127.0.0.1 beyond it, and who asks for the way | [`loopback`], [`arp`] |
//! | which packets are left to netfilter, since another proxy began their connection | [`handover`] |
//! | which bytes a rewrite changes, which mark it bears, and what answers a refused packet | [`nat`], [`mark`], [`reject`] |

pub mod arp;
pub mod claim;
pub mod csum;
pub mod datagram;
pub mod desk;
pub mod flow;
pub mod fragment;
pub mod guard;
pub mod handover;
pub mod hash;
pub mod here;
pub mod icmp;
pub mod lookup;
pub mod loopback;
pub mod mark;
pub mod nat;
pub mod opening;
pub mod own;
pub mod packet;
pub mod parse;
pub mod parts;
pub mod reject;
pub mod repair;
pub mod select;
pub mod sieve;
pub mod socket;
pub mod sweep;
pub mod track;
pub mod unclaimed;

use crate::{
    Address, Protocol,
    layout::{
        Affinity, AffinityKey, Backend, Connected, Frontend, FrontendKey, LocalAddress, Node, RangeKey,
        Service, Unconnected,
    },
};

/// Where the tables are read. Absent entries are `None`, never an error.
pub trait Tables {
    /// The node's settings.
    fn node(&self) -> Option<Node>;
    /// Whether any frontend uses this port (host byte order): one bit, hot in cache, asked before anything large.
    fn port_in_use(&self, port: u16) -> bool;
    /// Whether a frontend may have this address, the wildcard apart: one word, hot in cache. `false` is certain, and says
    /// nothing of flows, which outlive what was dialled.
    fn address_in_use(&self, address: &Address) -> bool;
    /// Exact match.
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    /// Read as one word.
    fn service(&self, index: u32) -> Option<Service>;
    /// One slot.
    fn backend(&self, slot: u32) -> Option<Backend>;
    /// Longest prefix match.
    fn local_address(&self, address: &Address) -> Option<LocalAddress>;
    /// Whether a range contains it: longest prefix match.
    fn in_range(&self, key: &RangeKey) -> bool;
    /// Exact match.
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    /// Insert or change. Losing it costs stickiness, nothing else.
    fn set_affinity(&self, key: &AffinityKey, value: &Affinity);
}

/// What the world says at this moment.
pub trait Env {
    /// Uniform over all values.
    fn random(&self) -> u32;
    /// Seconds of the monotonic clock.
    fn seconds(&self) -> u32;
    /// Cookie of the network namespace of the calling socket.
    fn netns(&self) -> u64;
    /// Whether a hook can make its call fail with an error of our choice (`bpf_set_retval`, kernel 5.18).
    fn can_refuse(&self) -> bool;
    /// Whether the calling process is in one of the cgroups of these levels ([`Node::left_levels`]) that are left alone.
    #[inline(always)]
    fn is_left(&self, levels: u32) -> bool {
        let _ = levels;
        false
    }
}

/// What the calling socket remembers (socket storage): it lives and dies with the socket.
pub trait Socket {
    /// The record of its translated connect().
    fn connected(&self) -> Option<Connected>;
    /// Write that record; false if the kernel has no memory.
    fn set_connected(&self, record: &Connected) -> bool;
    /// Remove that record, if any.
    fn forget_connected(&self);
    /// Its unconnected datagrams' backends; made if absent and `create`.
    fn unconnected(&mut self, create: bool) -> Option<&mut Unconnected>;
}

/// What a socket call names: an address, a port in host byte order, and the socket's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The destination, IPv4 mapped.
    pub address: Address,
    /// Host byte order.
    pub port: u16,
    /// The socket's.
    pub protocol: Protocol,
}

/// Who calls. The traffic policies differ by it (kube-proxy spec §2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A process in the node's own network namespace.
    Host,
    /// A pod of this node.
    Pod,
    /// Anything else: only packets come from there.
    Outside,
}

/// Where a call or packet goes instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// IPv4 mapped.
    pub address: Address,
    /// Host byte order.
    pub port: u16,
}

impl Endpoint {
    /// 1 if this endpoint comes before `other` in an extent's order (address, then port), else 0. A subtraction whose
    /// borrow is the answer, because a branch inside a search costs the verifier more than it costs a CPU.
    #[inline(always)]
    pub fn precedes(&self, other: &Self) -> u32 {
        let ((high, low), (other_high, other_low)) = (self.address.order(), other.address.order());
        let ports = borrow(u64::from(self.port), u64::from(other.port), 0);
        borrow(high, other_high, borrow(low, other_low, ports)) as u32
    }
}

/// What `a - b - less` borrows, `less` being 0 or 1 (Hacker's Delight §2-16).
#[inline(always)]
fn borrow(a: u64, b: u64, less: u64) -> u64 {
    let difference = a.wrapping_sub(b).wrapping_sub(less);
    ((!a & b) | (!(a ^ b) & difference)) >> 63
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn endpoints_are_ordered_by_address_and_then_by_port() {
        let edges = [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX];
        let mut endpoints = Vec::new();
        for words in [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]] {
            for edge in edges {
                for port in [0, 1, 0x8000, u16::MAX] {
                    let address = Address::from_words(words.map(|word: u32| word * edge));
                    endpoints.push(Endpoint { address, port });
                }
            }
        }
        for a in &endpoints {
            for b in &endpoints {
                let expected = (a.address.order(), a.port) < (b.address.order(), b.port);
                assert_eq!(a.precedes(b), u32::from(expected), "{a:?} and {b:?}");
            }
        }
    }
}
