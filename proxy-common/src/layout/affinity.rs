//! `affinity`: which endpoint a client of a service with `sessionAffinity: ClientIP` was sent to.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};

use crate::Address;

/// A service's client. The packet plane knows it by address, the socket plane by its network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct AffinityKey {
    /// Index in `services`.
    pub service: u32,
    /// What `client` is.
    pub kind: ClientKind,
    /// An address (network byte order), or a netns cookie in the last eight bytes (host byte order).
    pub client: [u8; 16],
}

/// How a client is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum ClientKind {
    /// By source address.
    Address = 0,
    /// By the cookie of its network namespace (`SO_NETNS_COOKIE`).
    Netns = 1,
}

impl AffinityKey {
    /// A client known by its address.
    #[inline(always)]
    pub const fn address(service: u32, client: Address) -> Self {
        Self { service, kind: ClientKind::Address, client: client.octets() }
    }

    /// A client known by its network namespace.
    #[inline(always)]
    pub const fn netns(service: u32, cookie: u64) -> Self {
        Self { service, kind: ClientKind::Netns, client: zerocopy::transmute!([0, cookie]) }
    }
}

/// The endpoint it was sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct Affinity {
    /// Endpoint's address, 16 bytes, network byte order.
    pub address: [u8; 16],
    /// Endpoint's port, host byte order.
    pub port: u16,
    /// Layout of this value: connection state outlives the program that wrote it.
    pub version: u16,
    /// Seconds of the monotonic clock.
    pub last_used: u32,
}

impl Affinity {
    /// The version that is written.
    pub const VERSION: u16 = 1;

    /// The endpoint's address.
    #[inline(always)]
    pub const fn address(&self) -> Address {
        Address::from_octets(self.address)
    }
}
