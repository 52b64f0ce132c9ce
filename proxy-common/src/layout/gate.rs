//! `gate`: what a packet of no Service is asked, in one line of memory. The agent writes it through its mapping, a word at
//! a time.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The one value of `gate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Gate {
    /// Not 0: what is sent to an address of Services is judged whatever its port is ([`super::Node::UNCLAIMED`]).
    pub judged: u64,
    /// Bit `ifindex % 256`: a device of such a number has no Ethernet header. What is set for one holds for all of the same
    /// remainder: they take the longer way.
    pub bare: [u64; 4],
    /// Always 0.
    pub reserved: [u64; 3],
}

impl Gate {
    /// Index in [`Self::bare`] and the bit of a device.
    #[inline(always)]
    pub const fn device(ifindex: u32) -> (usize, u64) {
        ((ifindex >> 6 & 3) as usize, 1 << (ifindex & 63))
    }

    /// Whether packets of a device begin with an Ethernet header for certain.
    #[inline(always)]
    pub const fn is_ethernet(&self, ifindex: u32) -> bool {
        let (word, bit) = Self::device(ifindex);
        self.bare[word] & bit == 0
    }
}
