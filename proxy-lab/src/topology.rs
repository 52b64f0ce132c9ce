//! What a lab consists of, and which address everything has. Pure: nothing here touches the kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where ClusterIPs come from, IPv4. Blackholed in every namespace.
pub const CLUSTER_IPS_V4: &str = "10.96.0.0/16";
/// Where ClusterIPs come from, IPv6. Blackholed in every namespace.
pub const CLUSTER_IPS_V6: &str = "fd00:96::/108";
/// Where load balancers' and external IPs come from, IPv4. Blackholed in every namespace.
pub const EXTERNAL_IPS_V4: &str = "10.100.0.0/16";
/// Where load balancers' and external IPs come from, IPv6. Blackholed in every namespace.
pub const EXTERNAL_IPS_V6: &str = "fd00:100::/108";

/// How a node's pods hang on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wiring {
    /// As the CNI plugin `ptp`: one veth a pod, a host route to each pod's single address.
    Routed,
    /// As the CNI plugin `bridge`: all pods of a node on one bridge that is their gateway.
    Bridged,
}

impl Wiring {
    /// Both, for matrices.
    pub const ALL: [Self; 2] = [Self::Routed, Self::Bridged];
}

/// What the devices do about checksums and segmentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Offload {
    /// Everything is computed and checked in software: a wrong checksum loses the packet and is counted.
    Off,
    /// The kernel's defaults: a veth hands checksums over that were never filled in.
    On,
}

/// In which namespaces the service ranges lead nowhere. Nodes and clients always blackhole them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blackhole {
    /// Pods too: an untranslated VIP does not leave its namespace (connect and send fail with EINVAL).
    Everywhere,
    /// An untranslated VIP of a pod reaches its node, as the packet plane needs it, and ends there.
    AtNodes,
}

/// The two families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both, for matrices.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of `address`.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// What to build. Every place has IPv4 and IPv6.
#[derive(Clone, Debug)]
pub struct Topology {
    /// How pods are connected.
    pub wiring: Wiring,
    /// What devices compute.
    pub offload: Offload,
    /// Where service ranges end.
    pub blackhole: Blackhole,
    /// The nodes, on one L2 segment, with routes to each other's pods.
    pub nodes: Vec<NodePlan>,
    /// Names of the clients outside the cluster, on the nodes' segment.
    pub clients: Vec<String>,
}

/// One node to build.
#[derive(Clone, Debug)]
pub struct NodePlan {
    /// Unique in the lab.
    pub name: String,
    /// Its pods' names, unique in the lab.
    pub pods: Vec<String>,
}

impl Topology {
    /// No nodes yet, offload off, service ranges blackholed everywhere.
    pub fn new(wiring: Wiring) -> Self {
        Self {
            wiring,
            offload: Offload::Off,
            blackhole: Blackhole::Everywhere,
            nodes: Vec::new(),
            clients: Vec::new(),
        }
    }

    /// With one more node and its pods.
    #[must_use]
    pub fn node(mut self, name: &str, pods: &[&str]) -> Self {
        let pods = pods.iter().map(|&pod| pod.to_owned()).collect();
        self.nodes.push(NodePlan { name: name.to_owned(), pods });
        self
    }

    /// With one more client outside the cluster.
    #[must_use]
    pub fn client(mut self, name: &str) -> Self {
        self.clients.push(name.to_owned());
        self
    }

    /// With the devices' offloads in this state.
    #[must_use]
    pub fn offload(mut self, offload: Offload) -> Self {
        self.offload = offload;
        self
    }

    /// With the service ranges ending here.
    #[must_use]
    pub fn blackhole(mut self, blackhole: Blackhole) -> Self {
        self.blackhole = blackhole;
        self
    }
}

/// An address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dual {
    /// The IPv4 one.
    pub v4: Ipv4Addr,
    /// The IPv6 one.
    pub v6: Ipv6Addr,
}

impl Dual {
    /// The one of `family`.
    pub fn of(self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    /// Both.
    pub fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// The sink's address on the segment: the default gateway of nodes and clients, which forwards nothing.
pub(crate) const SINK: Dual = dual([192, 168, 77, 254], [0xfd00, 0x77, 0, 0xfe]);

/// The address on the segment of the node with this number (from 0).
pub(crate) fn node_address(node: usize) -> Dual {
    dual([192, 168, 77, 11 + small(node)], [0xfd00, 0x77, 0, 11 + u16::from(small(node))])
}

/// A second address of that node, on the same device.
pub(crate) fn second_address(node: usize) -> Dual {
    dual([172, 31, 7, 11 + small(node)], [0xfd00, 0x31, 0, 11 + u16::from(small(node))])
}

/// The address on the segment of the client with this number (from 0).
pub(crate) fn client_address(client: usize) -> Dual {
    dual([192, 168, 77, 101 + small(client)], [0xfd00, 0x77, 0, 101 + u16::from(small(client))])
}

/// That node's address on its pods' side: their gateway.
pub(crate) fn gateway_address(node: usize) -> Dual {
    dual([10, 244, 1 + small(node), 1], [0xfd00, 0x244, 1 + u16::from(small(node)), 1])
}

/// The address of a pod by its number on its node (both from 0).
pub(crate) fn pod_address(node: usize, pod: usize) -> Dual {
    let host = 11 + small(pod);
    dual([10, 244, 1 + small(node), host], [0xfd00, 0x244, 1 + u16::from(small(node)), host.into()])
}

/// The range of that node's pods.
pub(crate) fn pod_ranges(node: usize) -> [String; 2] {
    let id = 1 + small(node);
    [format!("10.244.{id}.0/24"), format!("fd00:244:{id:x}::/64")]
}

/// Labs are small: numbers above 60 would run into each other's addresses.
fn small(number: usize) -> u8 {
    assert!(number < 60, "a lab has at most 60 nodes, 60 pods a node and 60 clients");
    u8::try_from(number).unwrap_or(u8::MAX)
}

const fn dual(v4: [u8; 4], v6: [u16; 4]) -> Dual {
    Dual {
        v4: Ipv4Addr::new(v4[0], v4[1], v4[2], v4[3]),
        v6: Ipv6Addr::new(v6[0], v6[1], v6[2], 0, 0, 0, 0, v6[3]),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_places_share_an_address() {
        let mut seen = HashSet::from(SINK.both());
        for number in 0..60 {
            let at_node = [node_address(number), second_address(number), gateway_address(number)];
            let pods = (0..60).map(|pod| pod_address(number, pod));
            for address in at_node.into_iter().chain([client_address(number)]).chain(pods) {
                assert!(address.both().into_iter().all(|one| seen.insert(one)), "{address:?} twice");
            }
        }
    }
}
