//! `devices`, `masquerade`, `packet_plane` and `source_ranges`: what the packet plane is told about this node.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};

use crate::Address;

/// A network device, by its ifindex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Device {
    /// Bridge ports: the port's MAC address, as it lies on the wire.
    pub mac: [u16; 3],
    /// Bridge ports: the bridge's MAC address.
    pub bridge_mac: [u16; 3],
    /// Length of the layer-2 header: 14, or 0 of devices that have none.
    pub header: u8,
    /// What it is part of.
    pub role: DeviceRole,
    /// Whose packets arrive.
    pub pods: Pods,
    /// Layout of this value.
    pub version: u8,
    /// IPv4 address to masquerade with on the way out, 16 bytes, network byte order, mapped; `::`: none. Where it
    /// depends on the next hop ([`Self::V4_BY_NEXT_HOP`]): of what `masquerade` has no range for.
    pub masquerade_v4: [u8; 16],
    /// IPv6 address to masquerade with; `::`: none. Where it depends on the peer ([`Self::V6_BY_PEER`]): likewise.
    pub masquerade_v6: [u8; 16],
    /// The ifindex that routes have: of a bridge's port, the bridge's.
    pub host: u32,
    /// Bits: [`Self::V4_BY_NEXT_HOP`], [`Self::V6_BY_PEER`].
    pub choices: u32,
}

/// What a device is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum DeviceRole {
    /// Nothing: what arrives is for this host if the kernel says so.
    Single = 0,
    /// A bridge: what arrives is for this host if its MAC address is the port's or the bridge's.
    BridgePort = 1,
}

/// Which of the packets that arrive on a device are a local pod's (kube-proxy spec §2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum Pods {
    /// None: what a pod of another node sent counts as from outside (spec §2.3, row 8).
    None = 0,
    /// All: `BridgeInterface` and `InterfaceNamePrefix`.
    All = 1,
    /// Those whose source is in the ranges of [`RangeKey::PODS`]: `ClusterCIDR` and `NodeCIDR`.
    InRange = 2,
}

impl Device {
    /// The version that is written.
    pub const VERSION: u8 = 2;
    /// `masquerade` is asked by the next hop of an IPv4 packet: the device has several subnets.
    pub const V4_BY_NEXT_HOP: u32 = 1;
    /// `masquerade` is asked by the destination of an IPv6 packet: RFC 6724 has a choice.
    pub const V6_BY_PEER: u32 = 2;

    /// The address to masquerade with towards `peer`, as far as it depends on nothing else; unspecified: none.
    #[inline(always)]
    pub const fn masquerade(&self, peer: &Address) -> Address {
        Address::from_octets(if peer.is_v4() { self.masquerade_v4 } else { self.masquerade_v6 })
    }
}

/// Key of `masquerade`: a longest-prefix match over next hops (IPv4) and peers (IPv6), one set for each device.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(4))]
pub struct MasqueradeKey {
    /// Bits that count: 32 for `device`, then 0 to 128 of `address`; IPv4 prefixes have 96 added.
    pub prefix_length: u32,
    /// [`Device::host`].
    pub device: u32,
    /// 16 bytes, network byte order.
    pub address: [u8; 16],
}

impl MasqueradeKey {
    /// The key that looks `address` up.
    #[inline(always)]
    pub const fn host(device: u32, address: Address) -> Self {
        Self { prefix_length: 160, device, address: address.octets() }
    }
}

/// Value of `masquerade`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MasqueradeAddress {
    /// What the peers in the range see: 16 bytes, network byte order, IPv4 mapped.
    pub address: [u8; 16],
}

/// Key of `source_ranges`: a longest-prefix match over addresses, one set for each owner.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(4))]
pub struct RangeKey {
    /// Bits that count: 32 for `owner`, then 0 to 128 of `address`; IPv4 prefixes have 96 added.
    pub prefix_length: u32,
    /// Index in `services` of the service whose `loadBalancerSourceRanges` these are, or one of the owners below.
    pub owner: u32,
    /// 16 bytes, network byte order.
    pub address: [u8; 16],
}

impl RangeKey {
    /// The owner of the addresses of pods.
    pub const PODS: u32 = u32::MAX;
    /// The owner of what are no addresses but ids of cgroups, of pods whose sockets are left to packets.
    pub const GROUPS: u32 = u32::MAX - 1;
    /// The owner of the ranges that ClusterIPs are allotted from (`ServiceCIDR`), in mode nftables.
    pub const SERVICES: u32 = u32::MAX - 2;
    /// The owner of what covers the addresses outside those ranges that have a mark ([`super::FrontendKey::mark`]), in
    /// modes nftables and ipvs.
    pub const MARKED: u32 = u32::MAX - 3;

    /// The key that looks `address` up.
    #[inline(always)]
    pub const fn host(owner: u32, address: Address) -> Self {
        Self { prefix_length: 160, owner, address: address.octets() }
    }

    /// How the id of a cgroup stands among [`Self::GROUPS`]: behind a byte that no IPv4 address begins with here.
    #[inline(always)]
    pub const fn group(id: u64) -> Address {
        let [a, b, c, d, e, f, g, h] = id.to_be_bytes();
        Address::from_octets([0xfd, 0, 0, 0, 0, 0, 0, 0, a, b, c, d, e, f, g, h])
    }
}

/// The one value of `packet_plane`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct PacketPlane {
    /// What selection and ports are hashed with: chosen once, kept while flows live.
    pub seed: u64,
    /// Layout of this value; 0: not written yet.
    pub version: u32,
    /// Another proxy's connections are still alive, and left to netfilter: [`Self::TAKING_OVER`] or [`Self::LISTED`]; 0: none.
    pub handover: u32,
    /// First port to masquerade with, host byte order: outside `ip_local_port_range` and the NodePorts.
    pub first_port: u16,
    /// Last one.
    pub last_port: u16,
    /// First port of those that are taken besides, where the first ones are in use; 0: there are none.
    pub more_first_port: u16,
    /// Last one.
    pub more_last_port: u16,
    /// How long flows are remembered.
    pub timeouts: Timeouts,
}

impl PacketPlane {
    /// The version that is written.
    pub const VERSION: u32 = 1;
    /// `handed_over` may not have all of them: whatever is in the middle of a connection and no flow of ours is left alone.
    pub const TAKING_OVER: u32 = 1;
    /// `handed_over` has all of them.
    pub const LISTED: u32 = 2;

    /// Whether a port is of those to masquerade with first.
    #[inline(always)]
    pub const fn is_first_choice(&self, port: u16) -> bool {
        port >= self.first_port && port <= self.last_port
    }
}

/// Seconds of silence after which a flow is over: netfilter's, by its names (`nf_conntrack_*_timeout_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct Timeouts {
    /// The client dialled.
    pub tcp_syn_sent: u32,
    /// The backend answered.
    pub tcp_syn_received: u32,
    /// The client confirmed.
    pub tcp_established: u32,
    /// One side is done.
    pub tcp_fin_wait: u32,
    /// The other side has heard of it.
    pub tcp_close_wait: u32,
    /// Both are done.
    pub tcp_last_ack: u32,
    /// Both have heard of it.
    pub tcp_time_wait: u32,
    /// Reset.
    pub tcp_close: u32,
    /// No answer yet.
    pub udp: u32,
    /// Answered.
    pub udp_stream: u32,
    /// Between INIT and COOKIE ACK.
    pub sctp_cookie: u32,
    /// Established.
    pub sctp_established: u32,
    /// One side shuts down.
    pub sctp_shutdown: u32,
    /// Shut down or aborted.
    pub sctp_closed: u32,
}

impl Timeouts {
    /// What a node has that nobody has tuned: netfilter's own, and kube-proxy's where it sets them (spec §2.12).
    pub const DEFAULT: Self = Self {
        tcp_syn_sent: 120,
        tcp_syn_received: 60,
        tcp_established: 86_400,
        tcp_fin_wait: 120,
        tcp_close_wait: 3600,
        tcp_last_ack: 30,
        tcp_time_wait: 120,
        tcp_close: 10,
        udp: 30,
        udp_stream: 120,
        sctp_cookie: 3,
        sctp_established: 210,
        sctp_shutdown: 3,
        sctp_closed: 10,
    };
}
