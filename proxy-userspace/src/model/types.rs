//! Services, endpoint slices, the node and its addresses in our own words: only the fields that the proxy reads
//! (kube-proxy spec §1.1–1.6). `watch` makes them, `model` folds them in.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use proxy_common::{Protocol, layout::FrontendKey};

use super::{HostSource, Placement};

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl ObjectName {
    /// From the two parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::V4 { "IPv4" } else { "IPv6" })
    }
}

/// One ServicePort of one family: what all per-service state is keyed by (spec, "Terms").
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePortName {
    /// The Service.
    pub service: ObjectName,
    /// `spec.ports[].name`; empty if unnamed.
    pub port: Arc<str>,
    /// Part of the key: the same number in two protocols are two ports.
    pub protocol: Protocol,
    /// Families are served independently.
    pub family: Family,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}/{}", self.service, self.port, self.protocol, self.family)
    }
}

/// A traffic policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// All endpoints.
    #[default]
    Cluster,
    /// Endpoints of this node.
    Local,
}

/// A prefix, host bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    /// First address.
    pub address: IpAddr,
    /// 0 to 32 or 128.
    pub length: u8,
}

impl Cidr {
    /// The prefix of this length that `address` is in; longer than an address is none: the address itself.
    pub fn around(address: IpAddr, length: u8) -> Self {
        let (address, length) = match address {
            IpAddr::V4(v4) => {
                let length = length.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
                (Ipv4Addr::from_bits(v4.to_bits() & mask).into(), length)
            }
            IpAddr::V6(v6) => {
                let length = length.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
                (Ipv6Addr::from_bits(v6.to_bits() & mask).into(), length)
            }
        };
        Self { address, length }
    }

    /// Whether `address` is of this family and inside.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.length)).unwrap_or(0);
                net.to_bits() & mask == ip.to_bits() & mask
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0);
                net.to_bits() & mask == ip.to_bits() & mask
            }
            _ => false,
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// A Service that is ours to serve (spec §1.2); `watch` has left out those that are not (ExternalName, headless,
/// foreign proxy) and entries that don't parse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Which one.
    pub name: ObjectName,
    /// At most one per family.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.ports`.
    pub ports: Vec<Port>,
    /// `spec.externalIPs`, both families.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` with ipMode VIP or none, both families.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`, both families, after §1.2's rules (a /0 entry empties the list).
    pub source_ranges: Vec<Cidr>,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: Policy,
    /// `spec.externalTrafficPolicy`, already [`Policy::Cluster`] where §1.2 says that Local does not count.
    pub external_policy: Policy,
    /// `spec.sessionAffinity: ClientIP` and its lifetime in seconds.
    pub affinity_seconds: Option<u32>,
    /// `spec.healthCheckNodePort`, only where it is to be served.
    pub health_check_node_port: Option<u16>,
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Empty if unnamed.
    pub name: Arc<str>,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Dialled on ClusterIPs, external IPs and load balancer IPs.
    pub port: u16,
    /// Dialled on the node's addresses; 0: none.
    pub node_port: u16,
}

/// An EndpointSlice (spec §1.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Which one.
    pub name: ObjectName,
    /// The Service it belongs to.
    pub service: ObjectName,
    /// `addressType`.
    pub family: Family,
    /// `ports`, those with a name and a number.
    pub ports: Vec<SlicePort>,
    /// `endpoints` that have an address.
    pub endpoints: Vec<Endpoint>,
}

/// One entry of a slice's `ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Matches [`Port::name`].
    pub name: Arc<str>,
    /// Matches [`Port::protocol`].
    pub protocol: Protocol,
    /// The endpoints' port.
    pub port: u16,
}

/// One entry of a slice's `endpoints`, conditions resolved (nil rules of spec §1.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`.
    pub address: IpAddr,
    /// Nil is true.
    pub ready: bool,
    /// Nil is true.
    pub serving: bool,
    /// Nil is false.
    pub terminating: bool,
    /// Where it is, and for whom.
    pub placement: Arc<Placement>,
}

/// The own Node (spec §1.6).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// `status.addresses`: InternalIP first, then ExternalIP.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<Cidr>,
    /// Being deleted, or tainted `ToBeDeletedByClusterAutoscaler`.
    pub leaving: bool,
}

/// One entry of the node's local routing table: an address or range that this node answers for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocalRoute {
    /// The range.
    pub prefix: Cidr,
    /// Name of the device.
    pub device: Arc<str>,
}

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: Arc<str>,
    /// As its maker calls what it is (`veth`, `bridge`, `vrf` …); none of a real one.
    pub kind: Option<Arc<str>>,
    /// The ifindex of the bridge, bond or VRF that it is part of.
    pub master: Option<u32>,
    /// Length of the link layer's header: 14 of Ethernet, 0 of plain IP; none if it is something else.
    pub header: Option<u8>,
    /// Of Ethernet: as it lies on the wire.
    pub mac: [u8; 6],
    /// Loopback.
    pub loopback: bool,
    /// In the kernel's order, which is the order of its choice: IPv4, then IPv6.
    pub addresses: Vec<LinkAddress>,
}

/// An address of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkAddress {
    /// The own end of it.
    pub address: IpAddr,
    /// The range that its neighbours are in: of a point-to-point address, the other end's.
    pub subnet: Cidr,
    /// How far it is good for.
    pub scope: Scope,
    /// IPv4: in the subnet of one that came first. IPv6: temporary (RFC 8981; the kernel has one flag for both).
    pub secondary: bool,
    /// Not to be used for new connections, if there is another.
    pub deprecated: bool,
    /// Not known to be the only one of its kind, or known not to be: not used.
    pub tentative: bool,
}

/// How far an address is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everywhere.
    Global,
    /// On its link.
    Link,
    /// Within this host, or by private agreement.
    Other,
}

/// What tells us things. Nothing is deleted before all of them have told everything once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// Services.
    Services,
    /// Endpoint slices.
    Slices,
    /// The own Node. Not waited for longer than a moment: kube-proxy serves without it (spec §1.1).
    Node,
    /// ServiceCIDRs, in mode nftables. Not waited for: kube-proxy does not either, and servers before 1.33 have none.
    ServiceCidrs,
    /// Netlink: the local routing table.
    LocalRoutes,
    /// Netlink: devices and their addresses. Waited for where there is a packet plane.
    Links,
    /// Netlink: from where this node dials what [`super::Questions`] has.
    HostSources,
    /// The kernel's sockets: who listens at what [`super::Questions`] has.
    Listeners,
    /// Pods of this node whose sockets are left to packets. Only where they are asked for.
    Pods,
    /// The cgroups of those that [`super::Questions`] has.
    Groups,
    /// Where the agent finds the API server, if that is a name.
    ApiServers,
}

/// A cgroup of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Group {
    /// The kernel's id.
    pub id: u64,
    /// Bit `n`: it may be of level `n` (1: below the root of all cgroups).
    pub levels: u32,
}

/// Something that a source said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A Service is now so, or gone.
    Service(ObjectName, Option<Arc<Service>>),
    /// A slice is now so, or gone.
    Slice(ObjectName, Option<Arc<Slice>>),
    /// The own Node is now so, or gone.
    Node(Option<Node>),
    /// A ServiceCIDR has these ranges now (`spec.cidrs`), or is gone.
    ServiceCidr(ObjectName, Option<Arc<[Cidr]>>),
    /// Complete list of all ServiceCIDRs: others are gone.
    ServiceCidrs(BTreeMap<ObjectName, Arc<[Cidr]>>),
    /// Complete list of all Services: others are gone. The source is in sync from here on. One that can't be read stands
    /// in it as it was last known.
    Services(Vec<Arc<Service>>),
    /// Complete list of all slices, likewise.
    Slices(Vec<Arc<Slice>>),
    /// The whole local routing table, likewise.
    LocalRoutes(BTreeSet<LocalRoute>),
    /// All network devices by ifindex, likewise.
    Links(BTreeMap<u32, Link>),
    /// All that is known of [`super::Questions::sources`]; what is not in it is not known.
    HostSources(BTreeMap<IpAddr, HostSource>),
    /// All that is known of [`super::Questions::listeners`], likewise.
    Listeners(BTreeMap<FrontendKey, bool>),
    /// The sockets of this Pod, by its uid, are left to packets, or no longer.
    LeftPod(ObjectName, Option<Arc<str>>),
    /// Complete list of these, likewise.
    LeftPods(BTreeMap<ObjectName, Arc<str>>),
    /// All that is known of [`super::Questions::groups`], by uid; `None`: there is none (yet).
    Groups(BTreeMap<Arc<str>, Option<Group>>),
    /// All addresses of the API server that nobody may claim ([`super::Reserved::api_servers`]).
    ApiServers(BTreeSet<SocketAddr>),
    /// An object could not be read and is left out; what was known of it stays known if it was already served.
    Malformed {
        /// What kind it is.
        source: Source,
        /// Which object.
        name: ObjectName,
        /// What is wrong with it, for people.
        why: String,
    },
}

impl Change {
    /// Whether the source has told everything that it has.
    pub fn is_whole(&self) -> bool {
        matches!(
            self,
            Self::Services(_)
                | Self::Slices(_)
                | Self::LocalRoutes(_)
                | Self::Links(_)
                | Self::HostSources(_)
                | Self::Listeners(_)
                | Self::LeftPods(_)
                | Self::Groups(_)
                | Self::ApiServers(_)
                | Self::Node(Some(_))
        )
    }
}
