//! `flow_traces`: a byte for each pair of ends that a flow's key may have, by a hash of them. A packet whose byte is 0 is
//! of no flow, which most packets are; that is one line of memory, where a look into the flows is several.
//!
//! The four keys of a connection that differ only in direction and position share a line. Bytes are stored whole, because a
//! bit would need an atomic that 5.10 has not. What flows have left behind the agent takes away (`dataplane/traces.rs`).

use super::{FlowKey, Position};
use crate::Address;

/// Where the byte of a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Trace {
    /// Index of the byte, below [`Self::BYTES`].
    pub index: u32,
}

impl Trace {
    /// Bytes of `flow_traces`: 262 144 pairs of ends, each in both directions and at both positions. Where the flows' tables are
    /// full one packet in four is taken for one of theirs, and finds out there that it is not.
    pub const BYTES: u32 = 1 << 20;
    /// Entries of `flow_traces`, of 8 bytes each.
    pub const WORDS: u32 = Self::BYTES / 8;
    /// A flow has, or may have, such a key: what programs write.
    pub const FRESH: u8 = 3;
    /// So it was when the agent began to look for what is left behind.
    pub const OLD: u8 = 1;

    /// Of a packet between these ends (ports in host byte order) at a position. Protocols share it.
    #[inline(always)]
    pub const fn of(source: (Address, u16), destination: (Address, u16), position: Position) -> Self {
        let (a, b) = (mixed(source), mixed(destination));
        let pair = a.wrapping_add(b).wrapping_mul(GOLDEN) >> 46;
        let direction = (a < b) as u32;
        Self { index: ((pair as u32) << 2) | (position as u32 & 2) | direction }
    }

    /// Of a flow's key.
    #[inline(always)]
    pub fn of_key(key: &FlowKey) -> Self {
        let words = key.words();
        let source = Address::from_halves([words[0], words[1]]);
        let destination = Address::from_halves([words[2], words[3]]);
        Self::of((source, key.source_port), (destination, key.destination_port), key.position)
    }
}

/// The golden ratio's bits.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// An end as 64 bits. No secret is in it: who makes traces meet makes a look into the flows, no more.
#[inline(always)]
const fn mixed((address, port): (Address, u16)) -> u64 {
    let [high, low] = address.halves();
    let sum = high.wrapping_mul(0xc2b2_ae3d_27d4_eb4f).wrapping_add(low).wrapping_add(port as u64);
    let product = sum.wrapping_mul(0xff51_afd7_ed55_8ccd);
    product ^ (product >> 32)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::collections::HashSet;

    use super::*;

    fn end(address: u32, port: u16) -> (Address, u16) {
        (Address::from_v4_word(address.to_be()), port)
    }

    #[test]
    fn both_directions_and_positions_of_a_pair_of_ends_have_bytes_of_one_line() {
        let (a, b) = (end(0x0a00_0001, 40_000), end(0x0a60_000a, 80));
        let mut seen = HashSet::new();
        for (from, to) in [(a, b), (b, a)] {
            for position in [Position::Ingress, Position::Egress] {
                let Trace { index } = Trace::of(from, to, position);
                assert!(index < Trace::BYTES && seen.insert(index));
                assert_eq!(index >> 2, Trace::of(a, b, Position::Ingress).index >> 2);
            }
        }
    }

    #[test]
    fn neighbours_are_spread_over_the_table() {
        let backend = end(0x0af4_0202, 8080);
        let mut groups = HashSet::new();
        for client in 0..8u32 {
            for port in 0..1024 {
                let client = end(0x0af4_0102 + client, 32_768 + port);
                groups.insert(Trace::of(client, backend, Position::Egress).index >> 2);
            }
        }
        // 8192 draws out of 262 144 leave 8065 different ones in the mean.
        assert!(groups.len() > 8000, "{} groups for 8192 pairs", groups.len());
    }
}
