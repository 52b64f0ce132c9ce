//! `node`, `local_addresses`, `names`: what describes this node, and the services' names for people.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};

use crate::Address;

/// The one value of `node`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Node {
    /// Cookie of the node's own network namespace (`SO_NETNS_COOKIE`): sockets in it are the host's, others are pods'.
    pub netns_cookie: u64,
    /// [`crate::names::LAYOUT_VERSION`] of the writer; 0: not written yet.
    pub layout_version: u32,
    /// Which sockets are served.
    pub socket_plane: SocketPlane,
    /// Unconnected UDP: a socket that was silent this long may get another backend (seconds).
    pub udp_timeout_seconds: u32,
    /// Process id of the agent that owns the tables, for messages.
    pub owner: u32,
    /// Kernels without `SO_NETNS_COOKIE`: an IPv4 address (network byte order) whose dialling by the agent reports the
    /// cookie of its namespace; 0: none, or answered.
    pub probe_address: u32,
    /// The port (host byte order) that goes with it.
    pub probe_port: u32,
    /// Bit `n`: among the cgroups of level `n` (1: below the root) are some whose sockets are left to packets. They are in
    /// `source_ranges`, under [`super::RangeKey::GROUPS`].
    pub left_levels: u32,
    /// Bit [`Self::UNCLAIMED`].
    pub guards: u32,
}

impl Node {
    /// The deepest level of cgroups that is looked at, and one.
    pub const LEVELS: u32 = 16;
    /// What is sent to an address of Services and is no frontend is refused or dropped (modes nftables and ipvs).
    pub const UNCLAIMED: u32 = 1;
}

/// Which sockets the socket plane serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u32)]
pub enum SocketPlane {
    /// Pods' and the host's.
    All = 0,
    /// Only the host's.
    Host = 1,
    /// None.
    Off = 2,
}

/// Key of `local_addresses`: a longest-prefix match over the addresses in the node's local routing table.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(4))]
pub struct LocalKey {
    /// Bits of `address` that count, 0 to 128; IPv4 prefixes have 96 added.
    pub prefix_length: u32,
    /// 16 bytes, network byte order.
    pub address: [u8; 16],
}

impl LocalKey {
    /// The key that looks `address` up.
    #[inline(always)]
    pub const fn host(address: Address) -> Self {
        Self { prefix_length: 128, address: address.octets() }
    }
}

/// What an address of this node does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LocalAddress {
    /// [`Self::SERVED`], [`Self::REFUSED`], or 0: NodePorts are no matter here.
    pub node_port: u32,
}

impl LocalAddress {
    /// NodePorts are served on it.
    pub const SERVED: u32 = 1;
    /// They are not, but those are refused or dropped that nobody outside would be served through (mode iptables).
    pub const REFUSED: u32 = 2;
}

/// Value of `names`: whose index this is. Written by the agent, read by people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct ServiceName {
    /// `namespace/name:port/protocol/family` as UTF-8, padded with zeros.
    pub text: [u8; Self::LENGTH],
}

impl ServiceName {
    /// Longest text: 63 + 1 + 63 + 1 + 15 and the protocol and family that follow.
    pub const LENGTH: usize = 160;

    /// From text; cut at [`Self::LENGTH`].
    pub fn new(text: &str) -> Self {
        let mut bytes = [0; Self::LENGTH];
        for (to, from) in bytes.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        Self { text: bytes }
    }

    /// The text; empty if it is not UTF-8.
    pub fn as_str(&self) -> &str {
        let end = self.text.iter().position(|b| *b == 0).unwrap_or(Self::LENGTH);
        core::str::from_utf8(&self.text[..end]).unwrap_or("")
    }
}
