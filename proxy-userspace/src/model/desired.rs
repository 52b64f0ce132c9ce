//! What the node should serve: the model's answer, in the words of the tables but without their indexes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use proxy_common::{
    datapath,
    layout::{Device, FrontendKey, FrontendKind, LocalAddress, LocalKey, MasqueradeAddress, MasqueradeKey},
};

use super::{Cidr, Family, Group, ObjectName, Questions, ServicePortName};

/// Everything that the tables should say, and what load balancers and metrics are told beside them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// What each ServicePort of each family serves.
    pub services: BTreeMap<ServicePortName, Arc<Serving>>,
    /// What is dialled, and whose it is.
    pub frontends: HashMap<FrontendKey, Target>,
    /// The node's own addresses.
    pub local_addresses: BTreeMap<LocalKey, LocalAddress>,
    /// The devices that get the packet plane's programs, by ifindex.
    pub devices: BTreeMap<u32, Attachment>,
    /// With what else than their first address those devices masquerade, and towards whom.
    pub masquerade: BTreeMap<MasqueradeKey, MasqueradeAddress>,
    /// Which addresses are a pod's, where the devices do not say it.
    pub pod_ranges: BTreeSet<Cidr>,
    /// Mode nftables: the ranges that ClusterIPs are allotted from. What is sent there is a Service's or nobody's.
    pub service_ranges: BTreeSet<Cidr>,
    /// Modes nftables and ipvs: what covers the addresses with a mark ([`FrontendKey::mark`]) that are in none of them.
    pub marked_cover: BTreeSet<Cidr>,
    /// What load balancers may ask about Services.
    pub health_checks: BTreeMap<(ObjectName, Family), HealthCheck>,
    /// Where they may ask it; unspecified addresses stand for all of their family.
    pub health_check_addresses: BTreeSet<IpAddr>,
    /// ClusterIPs that are left to sockets of this node, which listen there, and whose they are.
    pub left_to_sockets: BTreeMap<FrontendKey, ServicePortName>,
    /// Pods whose sockets are left to packets, and their cgroups as far as they are found.
    pub left_pods: BTreeMap<ObjectName, Option<Group>>,
    /// What only the kernel can tell about all this.
    pub questions: Questions,
    /// ServicePorts whose policy has them served here, but nobody does.
    pub no_local_endpoints: NoLocalEndpoints,
}

/// Whether a load balancer should send a Service's connections to this node (spec §4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// Addresses of ready endpoints on this node.
    pub local_endpoints: u32,
}

/// ServicePorts with a Local policy and endpoints on other nodes only (spec §4.4), by [`Family`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoLocalEndpoints {
    /// By `internalTrafficPolicy`.
    pub internal: [u64; 2],
    /// By `externalTrafficPolicy`.
    pub external: [u64; 2],
}

/// A device that gets programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Its name, for people.
    pub name: Arc<str>,
    /// What the programs are told.
    pub device: Device,
}

/// The endpoints of a ServicePort and what it is subject to. Each run is sorted by address ([`proxy_common::Address::order`])
/// and port, and no endpoint stands in two of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serving {
    /// Only in the cluster set (spec §1.5).
    pub cluster_only: Vec<datapath::Endpoint>,
    /// In both sets.
    pub both: Vec<datapath::Endpoint>,
    /// Only in the local set.
    pub local_only: Vec<datapath::Endpoint>,
    /// Bits of [`proxy_common::layout::Policy`].
    pub policy: u16,
    /// Lifetime of session affinity in seconds; 0: none.
    pub affinity_seconds: u32,
    /// With [`proxy_common::layout::Policy::SOURCE_RANGES`]: whose packets the load balancer's addresses take; sorted,
    /// of the service's family.
    pub source_ranges: Vec<Cidr>,
}

impl Serving {
    /// Whether no endpoint serves anybody.
    pub fn is_empty(&self) -> bool {
        self.cluster_only.is_empty() && self.both.is_empty() && self.local_only.is_empty()
    }
}

/// Where a frontend leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whose it is.
    pub service: ServicePortName,
    /// Which of the service's addresses.
    pub kind: FrontendKind,
    /// The node's own processes are outside the source ranges.
    pub host_denied: bool,
}

/// What may differ from the [`Desired`] of the last update: a plan need not look at anything else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// ServicePorts that came, changed or went.
    pub services: BTreeSet<ServicePortName>,
    /// Frontends that came, changed or went.
    pub frontends: BTreeSet<FrontendKey>,
    /// The node's addresses.
    pub local_addresses: bool,
    /// The devices, what they masquerade with, which addresses are a pod's, or whose sockets are left to packets.
    pub devices: bool,
    /// The ranges that ClusterIPs are in.
    pub service_ranges: bool,
    /// What load balancers may ask, or where.
    pub health_checks: bool,
    /// What is left to sockets of this node.
    pub left_to_sockets: bool,
}
