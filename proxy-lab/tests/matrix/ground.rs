//! What the matrix stands on: a lab by its wiring, the Services, and where they are dialled.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use proxy_lab::{Blackhole, Family, Lab, Manifests, Offload, Place, Service, Topology, Tunnel, Wiring};
use serde_json::json;

use super::spec::{Cell, Client, Door, Kind, Source};

pub(crate) const PORT: u16 = 80;
pub(crate) const TARGET: u16 = 8080;

/// How pods hang on node `a`, and how a client outside gets to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wired {
    /// A veth and a route for each pod.
    Routed,
    /// Pods on a bridge whose packets netfilter does not meet.
    Bridge,
    /// Pods on a bridge that asks netfilter (`bridge-nf-call-iptables`).
    AskingBridge,
    /// Questions come by a second uplink, answers leave by the first.
    TwoUplinks,
    /// Outside is behind a device without link layer.
    Tun,
}

/// Ranges of addresses, each with a door's addresses of all kinds of Services, by family.
const CLUSTER: [&str; 2] = ["10.96.1.", "fd00:96::1:"];
const BALANCER: [&str; 2] = ["10.100.1.", "fd00:100::1:"];
const EXTERNAL: [&str; 2] = ["10.100.2.", "fd00:100::2:"];

/// Node `a` and the client on the other way between them, without their last number.
const UPLINK: [&str; 2] = ["192.168.88.", "fd00:88::"];
const TUNNEL: [&str; 2] = ["192.168.99.", "fd00:99::"];

pub(crate) struct Ground {
    pub(crate) lab: Lab,
    pub(crate) manifests: Manifests,
    wired: Wired,
    _tunnel: Option<Tunnel>,
}

impl Ground {
    pub(crate) fn build(wired: Wired, offload: Offload) -> Result<Self> {
        let wiring = match wired {
            Wired::Routed | Wired::TwoUplinks => Wiring::Routed,
            Wired::Bridge | Wired::AskingBridge | Wired::Tun => Wiring::Bridged,
        };
        let topology = Topology::new(wiring).node("a", &["pod", "near"]).node("b", &["far"]);
        let topology = topology.client("outside").offload(offload).blackhole(Blackhole::AtNodes);
        let lab = Lab::start(&topology)?;
        for server in ["pod", "near", "far", "a", "b"] {
            place(&lab, server).serve(&[TARGET], &[TARGET])?;
        }
        let asks = if wired == Wired::AskingBridge { "1" } else { "0" };
        for table in ["ip", "ip6", "arp"] {
            lab.node("a")
                .run("sysctl", &["-qw", &format!("net.bridge.bridge-nf-call-{table}tables={asks}")])?;
        }
        let manifests = Manifests::new(&lab)?;
        let mut ground = Self { lab, manifests, wired, _tunnel: None };
        ground.ways_in()?;
        Kind::ALL.into_iter().try_for_each(|kind| ground.manifests.apply(&ground.service(kind)))?;
        Ok(ground)
    }

    /// The routes of the client outside to what it dials, all by node `a`.
    fn ways_in(&mut self) -> Result<()> {
        let (node, outside) = (self.lab.node("a"), self.lab.place("outside"));
        let (device, there) = match self.wired {
            Wired::Routed | Wired::Bridge | Wired::AskingBridge => ("eth0", None),
            Wired::TwoUplinks => {
                let pair = format!("link add eth1 type veth peer name eth1 netns {}", outside.pid());
                node.ip(&[pair])?;
                // Answers come by another device than questions: both ends have to bear it.
                for (place, device) in [&**node, outside]
                    .into_iter()
                    .flat_map(|place| ["all", "eth0", "eth1"].map(|d| (place, d)))
                {
                    place.run("sysctl", &["-qw", &format!("net.ipv4.conf.{device}.rp_filter=2")])?;
                }
                ("eth1", Some(UPLINK))
            }
            Wired::Tun => {
                self._tunnel = Some(Tunnel::between(node, outside, "tun0")?);
                ("tun0", Some(TUNNEL))
            }
        };
        for (place, last) in [(&**node, "11"), (outside, "101")] {
            let Some([v4, v6]) = there else { continue };
            place.ip(&[
                format!("link set {device} up"),
                format!("address add {v4}{last}/24 dev {device}"),
                format!("address add {v6}{last}/64 dev {device} nodad"),
            ])?;
        }
        for family in Family::ALL {
            let by = match self.wired {
                Wired::Tun => String::new(),
                Wired::TwoUplinks => format!("via {}11 ", UPLINK[number(family)]),
                _ => format!("via {} ", node.address(family)),
            };
            let length = if family == Family::V4 { "0/24" } else { "0/112" };
            let ranges =
                [CLUSTER, BALANCER, EXTERNAL].map(|range| format!("{}{length}", range[number(family)]));
            let source = self.outside(family);
            let primary = there.map(|_| node.address(family).to_string());
            let lines = ranges.into_iter().chain(primary);
            let lines = lines.map(|to| format!("route replace {to} {by}dev {device} src {source}"));
            outside.ip(&lines.collect::<Vec<_>>())?;
        }
        Ok(())
    }

    fn service(&self, kind: Kind) -> Service {
        let mut service = Service::new(&format!("{kind:?}").to_lowercase());
        for family in Family::ALL {
            service = service.cluster_ip(&vip(CLUSTER, kind, family));
            service = service.load_balancer_ip(&vip(BALANCER, kind, family));
            service = service.external_ip(&vip(EXTERNAL, kind, family));
        }
        let service = service.tcp(PORT, TARGET).udp(PORT, TARGET).sctp(PORT, TARGET);
        let policy = |is_local: bool| if is_local { "Local" } else { "Cluster" };
        service
            .node_port(node_port(kind))
            .spec(&json!({
                "internalTrafficPolicy": policy(kind.internal_is_local()),
                "externalTrafficPolicy": policy(kind.external_is_local()),
                "sessionAffinity": if kind == Kind::Affinity { "ClientIP" } else { "None" },
            }))
            .endpoints(kind.endpoints().iter().map(|name| place(&self.lab, name)))
    }

    pub(crate) fn client(&self, client: Client) -> &Place {
        place(
            &self.lab,
            match client {
                Client::Pod => "pod",
                Client::Node => "a",
                Client::Outside => "outside",
            },
        )
    }

    /// What the cell's client dials.
    pub(crate) fn door(&self, cell: &Cell) -> SocketAddr {
        let (node, family) = (self.lab.node("a"), cell.family);
        let at_node = node_port(cell.kind);
        match cell.door {
            Door::ClusterIp => at(&vip(CLUSTER, cell.kind, family), PORT),
            Door::LoadBalancerIp => at(&vip(BALANCER, cell.kind, family), PORT),
            Door::ExternalIp => at(&vip(EXTERNAL, cell.kind, family), PORT),
            Door::NodePort => SocketAddr::new(node.address(family), at_node),
            Door::LoopbackNodePort => at("127.0.0.1", at_node),
            Door::OtherNodePort => match self.wired {
                Wired::TwoUplinks => at(&format!("{}11", UPLINK[number(family)]), at_node),
                Wired::Tun => at(&format!("{}11", TUNNEL[number(family)]), at_node),
                _ => SocketAddr::new(node.addresses(family)[1], at_node),
            },
        }
    }

    /// The address that `server` sees, if it sees the cell's client by `source`.
    pub(crate) fn seen(&self, cell: &Cell, source: Source, server: &str) -> IpAddr {
        let (node, family) = (self.lab.node("a"), cell.family);
        match (source, server) {
            // The node's address on its pods' side.
            (Source::Node, "pod" | "near") => node.addresses(family)[2],
            (Source::Node, _) => node.address(family),
            (Source::Client, _) => match cell.client {
                Client::Outside if cell.door == Door::OtherNodePort => self.outside_at_other(family),
                Client::Outside => self.outside(family),
                client => self.client(client).address(family),
            },
        }
    }

    /// The client's own address towards what is not the node's other address.
    fn outside(&self, family: Family) -> IpAddr {
        match self.wired {
            Wired::Tun => at(&format!("{}101", TUNNEL[number(family)]), 0).ip(),
            _ => self.lab.place("outside").address(family),
        }
    }

    fn outside_at_other(&self, family: Family) -> IpAddr {
        match self.wired {
            Wired::TwoUplinks => at(&format!("{}101", UPLINK[number(family)]), 0).ip(),
            _ => self.outside(family),
        }
    }
}

/// A node's host, a pod or a client.
pub(crate) fn place<'lab>(lab: &'lab Lab, name: &str) -> &'lab Place {
    lab.places().find(|place| place.name() == name).unwrap_or_else(|| panic!("the lab has no {name}"))
}

fn number(family: Family) -> usize {
    usize::from(family == Family::V6)
}

fn vip(range: [&str; 2], kind: Kind, family: Family) -> String {
    format!("{}{}", range[number(family)], 10 + kind as usize)
}

fn node_port(kind: Kind) -> u16 {
    30100 + kind as u16
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap_or_else(|_| panic!("{address}")), port)
}
