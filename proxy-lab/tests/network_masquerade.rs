//! The address that masquerades on a device is the one that the kernel's own MASQUERADE picks there.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use proxy_lab::{
    Agent, BRIDGE, Blackhole, Dual, Endpoint, Family, Lab, Manifests, Node, Service, Topology, Wiring, wait,
};

const PORT: u16 = 8080;

/// What the agent tells programs of the uplink, towards everybody.
fn told(node: &Node, family: Family) -> Result<IpAddr> {
    let index = node.run("ip", &["-json", "link", "show", "dev", "eth0"])?;
    let index: serde_json::Value = serde_json::from_str(&index)?;
    let all = node.pinned_map("devices")?;
    let mut all = all.as_array().into_iter().flatten();
    let device = all.find(|entry| entry["formatted"]["key"] == index[0]["ifindex"]).context("the uplink")?;
    let octets = |field: &str| -> Result<[u8; 16]> {
        let octets = serde_json::from_value::<Vec<u8>>(device["formatted"]["value"][field].clone())?;
        octets.try_into().map_err(|octets| anyhow::anyhow!("{field} is {octets:?}"))
    };
    Ok(match family {
        Family::V4 => {
            let [.., a, b, c, d] = octets("masquerade_v4")?;
            IpAddr::from([a, b, c, d])
        }
        Family::V6 => IpAddr::from(octets("masquerade_v6")?),
    })
}

/// Changes the node's addresses, and compares what a client of the node sees with what the agent says.
fn compare(lines: &[&str]) -> Result<()> {
    let topology = Topology::new(Wiring::Routed).node("a", &["a1"]).client("outside");
    let lab = Lab::start(&topology)?;
    let (node, client) = (lab.node("a"), lab.place("outside"));
    client.serve(&[PORT], &[])?;
    let rules = "table inet m { chain post { type nat hook postrouting priority srcnat; oifname eth0 masquerade; }; }";
    node.run("nft", &[rules])?;
    // Then the kernel borrows the address of the pods' gateway, which clients otherwise don't know.
    let gateway = format!("route add 10.244.1.1 via {} dev eth0", node.address(Family::V4));
    client.ip(&[gateway])?;
    node.ip(&lines.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let manifests = Manifests::new(&lab)?;
    let agent = Agent::start_with(node, &manifests, &["--packet-plane=on"])?;
    agent.settle()?;
    for family in Family::ALL {
        let to = SocketAddr::from((client.address(family), PORT));
        wait::until(&format!("both pick one of {family:?}"), || {
            let seen = lab.place("a1").ask_tcp(to)?.client.ip();
            let told = told(node, family)?;
            ensure!(seen == told, "{lines:?}: the kernel picks {seen}, the agent {told}");
            Ok(())
        })?;
        ensure!(lab.place("a1").ask_tcp(to)?.client.ip() != lab.place("a1").address(family), "no masquerade");
    }
    Ok(())
}

#[test]
fn a_plain_node_masquerades_with_the_devices_first_address() -> Result<()> {
    compare(&[])
}

#[test]
fn secondary_deprecated_and_narrower_addresses_are_passed_over() -> Result<()> {
    compare(&[
        "address add 192.168.77.90/24 dev eth0",
        "address add 169.254.7.9/24 scope link dev eth0",
        "address add fd00:77::90/64 dev eth0 nodad",
        "address add fd00:77::91/64 dev eth0 nodad preferred_lft 0",
    ])
}

#[test]
fn a_device_without_a_global_address_borrows_another_devices() -> Result<()> {
    compare(&[
        "address del 192.168.77.11/24 dev eth0",
        "address del 172.31.7.11/32 dev eth0",
        "address add 192.168.77.11/24 scope link dev eth0",
    ])
}

/// One story with the kernel's rule and one with vipr's programs, the same pods, clients and addresses: pods dial clients
/// directly where the rule is asked, through a Service with `masqueradeAll` where the programs are.
struct Picks {
    /// How pods hang on the node, and by which device packets leave.
    wiring: Wiring,
    device: &'static str,
    /// Who has the peers' addresses: a pod, or a client.
    server: &'static str,
    /// The node's lines for `ip`.
    node: &'static [&'static str],
    /// Of the server: its addresses, and its way back to the node's.
    client: &'static [&'static str],
    /// Clients that are dialled.
    peers: &'static [&'static str],
    /// How many different addresses they must see: else the story shows nothing.
    sources: usize,
}

const PICKED: [&str; 2] = ["10.96.0.20", "fd00:96::20"];

/// An endpoint outside of the cluster.
fn at(peer: IpAddr) -> Endpoint {
    let address = match peer {
        IpAddr::V4(v4) => Dual { v4, v6: Ipv6Addr::UNSPECIFIED },
        IpAddr::V6(v6) => Dual { v4: Ipv4Addr::UNSPECIFIED, v6 },
    };
    Endpoint { address, node: None, ready: true, serving: true, terminating: false }
}

impl Picks {
    fn lab(&self, peers: &[IpAddr]) -> Result<Lab> {
        let topology = Topology::new(self.wiring).node("a", &["a1", "a2"]).client("outside");
        let lab = Lab::start(&topology.blackhole(Blackhole::AtNodes))?;
        let lines = |lines: &[&str]| lines.iter().map(ToString::to_string).collect::<Vec<_>>();
        lab.place(self.server).ip(&lines(self.client))?;
        lab.node("a").ip(&lines(self.node))?;
        lab.place(self.server).serve_on(peers, &[PORT], &[])?;
        Ok(lab)
    }

    /// As whom a server sees the pod.
    fn seen(lab: &Lab, to: SocketAddr) -> Result<IpAddr> {
        let answer = || Ok(lab.place("a1").ask_tcp(to)?.client.ip());
        wait::until(&format!("{to} answers"), answer)
    }

    /// By the kernel's rule.
    fn by_kernel(&self, peers: &[IpAddr]) -> Result<Vec<IpAddr>> {
        let lab = self.lab(peers)?;
        // Now and then a pod counts a SYN-ACK twice under the rule; vipr's own lab counts no error.
        lab.expect_errors();
        let rules = format!(
            "table inet m {{ chain post {{ type nat hook postrouting priority srcnat; oifname {} masquerade; }}; }}",
            self.device
        );
        lab.node("a").run("nft", &[&rules])?;
        peers.iter().map(|peer| Self::seen(&lab, (*peer, PORT).into())).collect()
    }

    /// Through a Service that leads to each.
    fn by_vipr(&self, peers: &[IpAddr]) -> Result<Vec<IpAddr>> {
        let lab = self.lab(peers)?;
        let manifests = Manifests::new(&lab)?;
        let arguments = ["--packet-plane=on", "--socket-plane=host", "--masquerade-all"];
        let agent = Agent::start_with(lab.node("a"), &manifests, &arguments)?;
        let each = peers.iter().map(|peer| {
            let cluster_ip = PICKED[usize::from(peer.is_ipv6())];
            let service = Service::new("picked").cluster_ip(cluster_ip).tcp(80, PORT);
            manifests.apply(&service.endpoints([at(*peer)]))?;
            agent.settle()?;
            Self::seen(&lab, SocketAddr::new(cluster_ip.parse()?, 80))
        });
        each.collect()
    }
}

fn compare_picks(picks: &Picks) -> Result<()> {
    let peers: Vec<IpAddr> = picks.peers.iter().map(|peer| Ok(peer.parse()?)).collect::<Result<_>>()?;
    let kernel = picks.by_kernel(&peers)?;
    ensure!(BTreeSet::from_iter(&kernel).len() == picks.sources, "the kernel's own: {kernel:?}");
    let vipr = picks.by_vipr(&peers)?;
    let differ = peers.iter().zip(kernel.iter().zip(&vipr)).filter(|(_, (kernel, vipr))| kernel != vipr);
    let differ: Vec<_> = differ.collect();
    ensure!(differ.is_empty(), "peer, the kernel's pick, vipr's: {differ:?}");
    Ok(())
}

/// The first subnet's neighbours, the second's, who is behind a gateway of either, and somebody whom a subnet within another
/// holds. A secondary address and one of the link are never picked.
#[test]
fn ipv4_is_masqueraded_by_the_subnet_of_the_next_hop() -> Result<()> {
    compare_picks(&Picks {
        wiring: Wiring::Routed,
        device: "eth0",
        server: "outside",
        node: &[
            "address add 192.168.77.90/24 dev eth0",
            "address add 192.168.78.11/24 dev eth0",
            "address add 192.168.78.12/24 dev eth0",
            "address add 192.168.79.11/24 scope link dev eth0",
            "address add 10.50.0.11/16 dev eth0",
            "address add 10.50.7.11/24 dev eth0",
            "route add 203.0.113.1/32 via 192.168.78.101 dev eth0",
            "route add 203.0.113.2/32 via 192.168.77.101 dev eth0",
            "route add 203.0.113.3/32 dev eth0 scope link",
            "route add 203.0.113.4/32 via 10.50.7.101 dev eth0",
        ],
        client: &[
            "address add 192.168.78.101/24 dev eth0",
            "address add 192.168.79.101/24 dev eth0",
            "address add 10.50.7.101/16 dev eth0",
            "address add 203.0.113.1/32 dev lo",
            "address add 203.0.113.2/32 dev lo",
            "address add 203.0.113.3/32 dev lo",
            "address add 203.0.113.4/32 dev lo",
        ],
        peers: &[
            "192.168.77.101",
            "192.168.78.101",
            "192.168.79.101",
            "10.50.7.101",
            "203.0.113.1",
            "203.0.113.2",
            "203.0.113.3",
            "203.0.113.4",
        ],
        sources: 3,
    })
}

/// Several prefixes: by label, by the longest common prefix, never a deprecated one.
#[test]
fn ipv6_is_masqueraded_by_the_destinations_label_and_prefix() -> Result<()> {
    compare_picks(&Picks {
        wiring: Wiring::Routed,
        device: "eth0",
        server: "outside",
        node: &[
            "address add fd00:78::11/64 dev eth0 nodad",
            "address add 2001:db8:77::11/64 dev eth0 nodad",
            "address add 2001:db8:8000::11/64 dev eth0 nodad",
            "address add 2001:db8:8000::12/64 dev eth0 nodad preferred_lft 0",
            "address add 2002:c000:201::11/64 dev eth0 nodad",
            "route add 2a00::/16 via fd00:77::65 dev eth0",
            "route add 2002::/16 via fd00:77::65 dev eth0",
            "route add fd00:78:1::/48 via fd00:77::65 dev eth0",
            "route add 2001:db8:8001::/48 via fd00:77::65 dev eth0",
        ],
        client: &[
            "address add fd00:78::101/64 dev eth0 nodad",
            "address add 2001:db8:77::101/64 dev eth0 nodad",
            "address add 2001:db8:8000::101/64 dev eth0 nodad",
            "address add 2001:db8:8001::1/128 dev lo nodad",
            "address add 2a00::1/128 dev lo nodad",
            "address add 2002::1/128 dev lo nodad",
            "address add fd00:78:1::1/128 dev lo nodad",
            "route add 2002:c000:201::/64 dev eth0",
        ],
        peers: &[
            "fd00:77::65",
            "fd00:78::101",
            "2001:db8:77::101",
            "2001:db8:8000::101",
            "2001:db8:8001::1",
            "2a00::1",
            "2002::1",
            "fd00:78:1::1",
        ],
        sources: 5,
    })
}

/// A port of a bridge masquerades as the bridge does: what netfilter calls the device.
#[test]
fn a_bridge_with_several_subnets_masquerades_by_the_pods_own() -> Result<()> {
    compare_picks(&Picks {
        wiring: Wiring::Bridged,
        device: BRIDGE,
        server: "a2",
        node: &["address add 10.60.0.1/24 dev cni0", "address add 10.61.0.1/24 dev cni0"],
        client: &["address add 10.60.0.5/24 dev eth0", "address add 10.61.0.5/24 dev eth0"],
        peers: &["10.60.0.5", "10.61.0.5"],
        sources: 2,
    })
}
