//! What the configuration says, as far as the model needs it (kube-proxy spec §3.3).

use std::sync::Arc;

use proxy_common::layout;

use super::{Cidr, Family, Node, reserved::Reserved};

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Name of the own Node.
    pub node_name: Arc<str>,
    /// `mode`: whose observable differences are shown.
    pub profile: Profile,
    /// `detectLocalMode`.
    pub local_detector: LocalDetector,
    /// `masqueradeAll`.
    pub masquerade_all: bool,
    /// `nodePortAddresses`.
    pub node_port_addresses: NodePortAddresses,
    /// `iptables.localhostNodePorts`.
    pub localhost_node_ports: bool,
    /// The packet plane runs: what depends on the client's address may be left to it.
    pub packet_plane: bool,
    /// Pods may ask to be left to it: they are followed.
    pub pod_opt_out: bool,
    /// What no Service takes by claiming it.
    pub reserved: Reserved,
    /// Names of devices that it keeps away from; one that ends in `*` stands for all that begin so.
    pub excluded_devices: Vec<Arc<str>>,
}

impl Settings {
    /// Whether node ports are served on 127.0.0.0/8 (spec §2.4).
    pub fn serves_loopback(&self) -> bool {
        let allowed = match &self.node_port_addresses {
            NodePortAddresses::Unset => true,
            NodePortAddresses::Primary => false,
            NodePortAddresses::Ranges(ranges) => {
                // A list that names no range of the family allows all of it.
                let mut v4 = ranges.iter().filter(|range| range.address.is_ipv4()).peekable();
                v4.peek().is_none() || v4.any(|range| range.address.is_loopback() || range.length == 0)
            }
        };
        allowed && self.profile == Profile::Iptables && self.localhost_node_ports
    }

    /// What the tables are guarded by beside what they lead to: bits of [`layout::Node::guards`].
    pub fn guards(&self) -> u32 {
        let unclaimed = matches!(self.profile, Profile::Nftables | Profile::Ipvs);
        if unclaimed { layout::Node::UNCLAIMED } else { 0 }
    }
}

/// How packets of local pods are told apart (spec §2.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalDetector {
    /// `ClusterCIDR`: by their source, in these ranges, at most one of a family. None: not at all.
    ClusterCidr(Vec<Cidr>),
    /// `NodeCIDR`: by their source, in the Node's `podCIDRs`.
    NodeCidr,
    /// `BridgeInterface`: they arrive on this one.
    BridgeInterface(Arc<str>),
    /// `InterfaceNamePrefix`: they arrive on one whose name begins so.
    InterfaceNamePrefix(Arc<str>),
}

impl Default for LocalDetector {
    fn default() -> Self {
        Self::ClusterCidr(Vec::new())
    }
}

impl LocalDetector {
    /// The ranges that the addresses of pods are in, of the modes that know pods by them.
    pub fn ranges<'a>(&'a self, node: &'a Node) -> Option<&'a [Cidr]> {
        match self {
            Self::ClusterCidr(ranges) => Some(ranges),
            Self::NodeCidr => Some(&node.pod_cidrs),
            Self::BridgeInterface(_) | Self::InterfaceNamePrefix(_) => None,
        }
    }

    /// Whether pods of a family are told apart at all.
    pub fn is_there(&self, family: Family, node: &Node) -> bool {
        let ranges = self.ranges(node);
        ranges.is_none_or(|ranges| ranges.iter().any(|range| Family::of(range.address) == family))
    }
}

/// `mode` of KubeProxyConfiguration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Profile {
    /// The default.
    #[default]
    Iptables,
    /// `nftables`.
    Nftables,
    /// `ipvs`.
    Ipvs,
}

impl Profile {
    /// As `mode` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Ipvs => "ipvs",
        }
    }
}

/// `nodePortAddresses`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Unset: the profile's default (all local addresses for iptables and ipvs, `primary` for nftables).
    #[default]
    Unset,
    /// `primary`.
    Primary,
    /// Ranges.
    Ranges(Vec<Cidr>),
}
