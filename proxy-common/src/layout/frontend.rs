//! `frontends`: what clients dial. {address, port, protocol} → which service.

use zerocopy::{Immutable, IntoBytes, KnownLayout, TryFromBytes};

use crate::{Address, Protocol};

/// What a client dials. NodePorts have the wildcard address of their family ([`Address::any`]).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, TryFromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(4))]
pub struct FrontendKey {
    /// 16 bytes, network byte order, IPv4 mapped.
    pub address: [u8; 16],
    /// Host byte order.
    pub port: u16,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Always 0.
    pub reserved: u8,
}

impl FrontendKey {
    /// The key of `address`:`port` (host byte order).
    #[inline(always)]
    pub const fn new(address: Address, port: u16, protocol: Protocol) -> Self {
        Self { address: address.octets(), port, protocol, reserved: 0 }
    }

    /// What says that an address is a Service's, whatever is dialled there: port 0, which nobody dials. Mode nftables has
    /// one for each ClusterIP, mode ipvs for load balancer and external IPs too.
    #[inline(always)]
    pub const fn mark(address: Address) -> Self {
        Self::new(address, 0, Protocol::Tcp)
    }

    /// What says that fragments to an address are a Service's, whichever port they are for: port 0 of their protocol. All
    /// addresses that UDP is dialled at have it; of TCP it is [`Self::mark`].
    #[inline(always)]
    pub const fn fragments(address: Address, protocol: Protocol) -> Self {
        Self::new(address, 0, protocol)
    }

    /// Whether this is [`Self::mark`] or [`Self::fragments`] of an address, and so nothing to dial.
    pub const fn is_mark(&self) -> bool {
        self.port == 0
    }

    /// The address to dial, or the wildcard.
    pub const fn address(&self) -> Address {
        Address::from_octets(self.address)
    }
}

/// Where a frontend leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Frontend {
    /// Index in `services`.
    pub service: u32,
    /// Which of the service's addresses this is: the traffic policies differ by it.
    pub kind: FrontendKind,
    /// 1: the node's own processes are outside `loadBalancerSourceRanges`.
    pub host_denied: u8,
    /// Always 0.
    pub reserved: u16,
}

/// The kinds of address a Service has.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, TryFromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(u8)]
pub enum FrontendKind {
    /// `spec.clusterIPs`: internal, follows `internalTrafficPolicy`.
    ClusterIp = 1,
    /// `spec.ports[].nodePort` on the node's addresses: external.
    NodePort = 2,
    /// `status.loadBalancer.ingress[].ip`: external, and subject to source ranges.
    LoadBalancer = 3,
    /// `spec.externalIPs`: external.
    ExternalIp = 4,
    /// A NodePort at an address that does not serve it ([`crate::layout::LocalAddress::REFUSED`]). In no table.
    ShutNodePort = 5,
}
