//! Connects the places: links, addresses, routes, offloads, settings.
//!
//! Nothing is ever connected to the machine's own namespace. Nodes and clients hang on the *sink*, a bridge in a
//! namespace that forwards nothing; it is their default gateway, so what leaves a node by mistake ends there.

use std::fs;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};

use crate::place::Place;
use crate::topology::{
    Blackhole, CLUSTER_IPS_V4, CLUSTER_IPS_V6, Dual, EXTERNAL_IPS_V4, EXTERNAL_IPS_V6, Offload, SINK,
    Topology, Wiring, gateway_address, node_address, pod_ranges, second_address,
};

/// The device of pods, and of nodes and clients towards the segment.
pub const DEVICE: &str = "eth0";
/// The bridge of a node's pods in bridged wiring.
pub const BRIDGE: &str = "cni0";

/// The offloads that are switched, and how `ethtool -k` calls them.
const OFFLOADS: [(&str, &str); 5] = [
    ("tx", "tx-checksumming"),
    ("sg", "scatter-gather"),
    ("tso", "tcp-segmentation-offload"),
    ("gso", "generic-segmentation-offload"),
    ("gro", "generic-receive-offload"),
];

/// What every namespace is set to before its devices exist, so that they inherit them.
const SETTINGS: [(&str, &str); 6] = [
    // Addresses are usable at once: nobody else can have them.
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    // Strict, as many distributions have it: a martian is dropped.
    ("ipv4/conf/all/rp_filter", "1"),
    ("ipv4/conf/default/rp_filter", "1"),
];

/// The devices at the host's end of a node's pods, by the pod's number.
pub fn pod_device(pod: usize) -> String {
    format!("pod{pod}")
}

/// Everything a place needs to know of the others.
pub(crate) struct Wires<'a> {
    pub(crate) topology: &'a Topology,
    pub(crate) sink: &'a Place,
    /// As in the topology.
    pub(crate) nodes: Vec<&'a Place>,
    /// As in the topology: for each node its pods.
    pub(crate) pods: Vec<Vec<&'a Place>>,
    /// As in the topology.
    pub(crate) clients: Vec<&'a Place>,
}

impl Wires<'_> {
    /// Makes all of it.
    pub(crate) fn connect(&self) -> Result<()> {
        for place in self.places() {
            settings(place, &SETTINGS)?;
        }
        for &node in &self.nodes {
            settings(node, &[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
        }
        self.links()?;
        self.sink.ip(&sink())?;
        for (number, (&node, pods)) in self.nodes.iter().zip(&self.pods).enumerate() {
            let devices: Vec<String> = (0..pods.len()).map(pod_device).collect();
            self.offload(node, devices.iter().map(String::as_str).chain([DEVICE]))?;
            node.ip(&self.node(number))?;
            for &pod in pods {
                self.offload(pod, [DEVICE])?;
                pod.ip(&self.pod(pod, number))?;
            }
        }
        for &client in &self.clients {
            self.offload(client, [DEVICE])?;
            client.ip(&self.outside(client.duals()))?;
        }
        let ports: Vec<String> = (0..self.nodes.len() + self.clients.len()).map(port_device).collect();
        self.offload(self.sink, ports.iter().map(String::as_str))
    }

    fn places(&self) -> impl Iterator<Item = &Place> {
        let inside = self.nodes.iter().chain(self.pods.iter().flatten());
        inside.chain(&self.clients).chain([&self.sink]).copied()
    }

    /// Makes the veth pairs, both ends down.
    fn links(&self) -> Result<()> {
        let mut lines = vec!["link add br0 type bridge mcast_snooping 0".to_owned()];
        for (number, place) in self.nodes.iter().chain(&self.clients).enumerate() {
            let port = port_device(number);
            lines.push(format!("link add {port} type veth peer name {DEVICE} netns {}", place.pid()));
            lines.push(format!("link set {port} master br0"));
        }
        self.sink.ip(&lines)?;
        for (number, (&node, pods)) in self.nodes.iter().zip(&self.pods).enumerate() {
            let mut lines = Vec::new();
            if self.topology.wiring == Wiring::Bridged {
                // One that is not told has its ports' lowest address, and another one as soon as that pod is gone; the
                // others send to the old one until they ask again. CNIs tell it.
                let address = format!("02:00:00:00:01:{number:02x}");
                lines.push(format!("link add {BRIDGE} address {address} type bridge mcast_snooping 0"));
            }
            for (number, pod) in pods.iter().enumerate() {
                let device = pod_device(number);
                lines.push(format!("link add {device} type veth peer name {DEVICE} netns {}", pod.pid()));
                if self.topology.wiring == Wiring::Bridged {
                    lines.push(format!("link set {device} master {BRIDGE}"));
                }
            }
            node.ip(&lines)?;
        }
        Ok(())
    }

    /// The lines for a node, by its number.
    fn node(&self, number: usize) -> Vec<String> {
        let mut lines = self.outside([node_address(number), second_address(number)]);
        let gateway = gateway_address(number);
        match self.topology.wiring {
            Wiring::Bridged => {
                lines.extend([add(gateway.v4.into(), 24, BRIDGE), add(gateway.v6.into(), 64, BRIDGE)]);
                lines.push(format!("link set {BRIDGE} up"));
                let ports = 0..self.pods[number].len();
                lines.extend(ports.map(|pod| format!("link set {} up", pod_device(pod))));
            }
            Wiring::Routed => {
                for (pod, place) in self.pods[number].iter().enumerate() {
                    let device = pod_device(pod);
                    lines.push(format!("link set {device} up"));
                    for (own, theirs) in gateway.both().into_iter().zip(place.duals()[0].both()) {
                        lines.push(add(own, alone(own), &device));
                        lines.push(format!("route add {theirs} dev {device}"));
                    }
                }
            }
        }
        for other in (0..self.nodes.len()).filter(|&other| other != number) {
            for (range, via) in pod_ranges(other).into_iter().zip(node_address(other).both()) {
                lines.push(format!("route add {range} via {via} dev {DEVICE}"));
            }
        }
        lines
    }

    fn pod(&self, pod: &Place, node: usize) -> Vec<String> {
        let (own, gateway) = (pod.duals()[0], gateway_address(node));
        let mut lines = up();
        if self.topology.blackhole == Blackhole::Everywhere {
            lines.extend(blackholes());
        }
        match self.topology.wiring {
            Wiring::Bridged => {
                lines.extend([add(own.v4.into(), 24, DEVICE), add(own.v6.into(), 64, DEVICE)]);
            }
            Wiring::Routed => {
                for (own, gateway) in own.both().into_iter().zip(gateway.both()) {
                    lines.push(add(own, alone(own), DEVICE));
                    lines.push(format!("route add {gateway} dev {DEVICE}"));
                }
            }
        }
        for gateway in gateway.both() {
            lines.push(format!("route add default via {gateway} dev {DEVICE}"));
        }
        lines
    }

    /// What nodes and clients have in common: a device on the segment, a first address in its range, others alone, and
    /// the way to the second addresses of (other) nodes.
    fn outside(&self, addresses: impl AsRef<[Dual]>) -> Vec<String> {
        let mut lines = up();
        lines.extend(blackholes());
        for (number, address) in addresses.as_ref().iter().enumerate() {
            let (v4, v6) = if number == 0 { (24, 64) } else { (32, 128) };
            // Deprecated: never a source by itself.
            let lifetime = if number == 0 { "" } else { " preferred_lft 0" };
            lines.push(add(address.v4.into(), v4, DEVICE));
            lines.push(add(address.v6.into(), v6, DEVICE) + lifetime);
        }
        for node in (0..self.nodes.len()).filter(|&node| addresses.as_ref()[0] != node_address(node)) {
            for (to, via) in second_address(node).both().into_iter().zip(node_address(node).both()) {
                lines.push(format!("route add {to} via {via} dev {DEVICE}"));
            }
        }
        lines.extend(SINK.both().map(|via| format!("route add default via {via} dev {DEVICE}")));
        lines
    }

    fn offload<'d>(&self, place: &Place, devices: impl IntoIterator<Item = &'d str>) -> Result<()> {
        if self.topology.offload == Offload::On {
            return Ok(());
        }
        for device in devices {
            let mut arguments = vec!["-K", device];
            arguments.extend(OFFLOADS.iter().flat_map(|(short, _)| [*short, "off"]));
            place.run("ethtool", &arguments)?;
            let features = place.run("ethtool", &["-k", device])?;
            for (_, name) in OFFLOADS {
                ensure!(
                    features.contains(&format!("\n{name}: off")),
                    "{}: {name} of {device} stays on: {features}",
                    place.name()
                );
            }
        }
        Ok(())
    }
}

/// The sink's port of the node or client with this number.
fn port_device(number: usize) -> String {
    format!("port{number}")
}

fn sink() -> Vec<String> {
    // No blackholes: it sends nothing on, and counts what it was to send on.
    vec![
        add(SINK.v4.into(), 24, "br0"),
        add(SINK.v6.into(), 64, "br0"),
        "link set group default up".to_owned(),
    ]
}

/// The line for an address that can be bound at once: without `nodad` an IPv6 one is tentative until a worker of the
/// kernel has found that there is nothing to detect.
fn add(address: IpAddr, prefix: u8, device: &str) -> String {
    let at_once = if address.is_ipv6() { " nodad" } else { "" };
    format!("address add {address}/{prefix} dev {device}{at_once}")
}

/// The prefix of an address that has no neighbours.
fn alone(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Loopback and the device to the rest.
fn up() -> Vec<String> {
    vec!["link set lo up".to_owned(), format!("link set {DEVICE} up")]
}

fn blackholes() -> impl Iterator<Item = String> {
    let ranges = [CLUSTER_IPS_V4, EXTERNAL_IPS_V4, CLUSTER_IPS_V6, EXTERNAL_IPS_V6];
    ranges.into_iter().map(|range| format!("route add blackhole {range}"))
}

fn settings(place: &Place, settings: &[(&str, &str)]) -> Result<()> {
    place.enter(|| {
        for (name, value) in settings {
            let path = format!("/proc/sys/net/{name}");
            fs::write(&path, value).with_context(|| format!("writing {value} to {path}"))?;
        }
        Ok(())
    })?
}
