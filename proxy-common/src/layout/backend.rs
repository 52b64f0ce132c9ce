//! `services` and `backends`: which endpoints serve now.
//!
//! A service's endpoints are an *extent* of `backends`: a header slot, then one slot for each endpoint. `services`
//! holds one aligned 8-byte word per service that says which extent is current, so that any change of endpoints is
//! one store (see `docs/adr/0003-extents-and-fence.md` for what was measured).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};

use crate::Address;

/// Value of `services`: read and written as one 8-byte word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Service {
    /// Index in `backends` of the current extent's header; 0: not programmed.
    pub extent: u32,
    /// Lifetime of session affinity in seconds, sliding; 0: no affinity.
    pub affinity_seconds: u32,
}

impl Service {
    /// As the word that is stored.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        zerocopy::transmute!(self)
    }

    /// From the word that was loaded.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        zerocopy::transmute!(word)
    }
}

/// A slot of `backends`: free, an extent's header, or one endpoint.
///
/// Endpoints follow their header in three runs: `cluster_only`, `both`, `local_only`; within a run they are sorted by
/// ([`Address::order`], port), so that "is this endpoint in the set" is a binary search. The cluster set is the first
/// two runs, the local set the last two. Slot 0 of the map is never part of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Backend {
    /// Endpoint: its address, 16 bytes, network byte order, IPv4 mapped.
    pub address: [u8; 16],
    /// Endpoint: its port, host byte order.
    pub port: u16,
    /// What this slot is.
    pub role: Role,
    /// Always 0.
    pub reserved: u8,
    /// Header and endpoint: index in `services` of the owner. A reader checks it.
    pub service: u32,
    /// Header: endpoints that are only in the cluster set.
    pub cluster_only: u16,
    /// Header: endpoints in both sets.
    pub both: u16,
    /// Header: endpoints that are only in the local set.
    pub local_only: u16,
    /// Header: bits of [`Policy`].
    pub policy: u16,
}

/// What a slot of `backends` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum Role {
    /// Unused: all bytes zero.
    Free = 0,
    /// The header of an extent.
    Extent = 1,
    /// An endpoint.
    Endpoint = 2,
}

/// What the whole service is subject to: bits of [`Backend::policy`] in a header.
#[derive(Clone, Copy, Debug)]
pub struct Policy;

impl Policy {
    /// Some endpoint is usable somewhere: an empty set means DROP, not REJECT (kube-proxy, spec §2.5).
    pub const ANY_ENDPOINTS: u16 = 1;
    /// `internalTrafficPolicy: Local`.
    pub const INTERNAL_LOCAL: u16 = 1 << 1;
    /// `externalTrafficPolicy: Local`.
    pub const EXTERNAL_LOCAL: u16 = 1 << 2;
    /// A local detector is configured for this family: pods of this node short-circuit `externalTrafficPolicy: Local`.
    pub const POD_DETECTOR: u16 = 1 << 3;
    /// Calls of pods to the ClusterIP are left to the packet plane (masqueradeAll).
    pub const LEAVE_INTERNAL: u16 = 1 << 4;
    /// Calls of pods to external addresses are left to the packet plane (the answer depends on the client's address).
    pub const LEAVE_EXTERNAL: u16 = 1 << 5;
    /// `loadBalancerSourceRanges` apply to the LoadBalancer addresses: pods are left to the packet plane.
    pub const SOURCE_RANGES: u16 = 1 << 6;
    /// Calls of the node's own processes to LoadBalancer and external IPs without endpoints are left alone, not
    /// refused (kube-proxy's iptables mode, spec §2.5).
    pub const HOST_REJECT_LEFT: u16 = 1 << 7;
    /// Nobody short-circuits [`Self::EXTERNAL_LOCAL`]: there are endpoints here, and they serve everybody (kube-proxy's
    /// ipvs mode).
    pub const NO_CIRCUIT: u16 = 1 << 8;

    /// Whether a service with this policy has no endpoint at all, in the mode that has no REJECT in OUTPUT and none behind
    /// its source ranges, but in INPUT and FORWARD ([`Self::HOST_REJECT_LEFT`]).
    #[inline(always)]
    pub const fn rejects_inward(policy: u16) -> bool {
        policy & (Self::ANY_ENDPOINTS | Self::HOST_REJECT_LEFT) == Self::HOST_REJECT_LEFT
    }
}

impl Backend {
    /// An unused slot.
    pub const FREE: Self = Self {
        address: [0; 16],
        port: 0,
        role: Role::Free,
        reserved: 0,
        service: 0,
        cluster_only: 0,
        both: 0,
        local_only: 0,
        policy: 0,
    };

    /// The header of an extent of `service`.
    pub const fn extent(service: u32, cluster_only: u16, both: u16, local_only: u16, policy: u16) -> Self {
        Self { role: Role::Extent, service, cluster_only, both, local_only, policy, ..Self::FREE }
    }

    /// An endpoint of `service`; `port` in host byte order.
    pub const fn endpoint(service: u32, address: Address, port: u16) -> Self {
        Self { role: Role::Endpoint, service, address: address.octets(), port, ..Self::FREE }
    }

    /// The endpoint's address.
    #[inline(always)]
    pub const fn address(&self) -> Address {
        Address::from_octets(self.address)
    }
}
