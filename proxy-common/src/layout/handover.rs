//! `handed_over`: connections that another proxy translated before vipr took over, as netfilter's connection tracking has them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Address;

/// What is known of a connection that is left to netfilter. Its key is the pair of ends that one side's packets bear where they
/// come in: client → dialled, and for connections that are masqueraded, too, backend → node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct HandedOver {
    /// Who serves it, 16 bytes, network byte order, IPv4 mapped; all zero: the key is that of the answers.
    pub backend: [u8; 16],
    /// Seconds of the monotonic clock until which netfilter is known to remember it.
    pub until: u32,
    /// Seconds of the monotonic clock when it was last found there.
    pub found: u32,
    /// Host byte order.
    pub backend_port: u16,
    /// Layout of this value.
    pub version: u8,
    /// Always 0.
    pub reserved: u8,
}

impl HandedOver {
    /// The version that is written.
    pub const VERSION: u8 = 1;

    /// The backend's address; unspecified: the key is that of the answers.
    #[inline(always)]
    pub const fn backend(&self) -> Address {
        Address::from_octets(self.backend)
    }

    /// Whether netfilter is known to remember it.
    #[inline(always)]
    pub const fn is_alive(&self, now: u32) -> bool {
        self.until.wrapping_sub(now) as i32 > 0
    }
}
