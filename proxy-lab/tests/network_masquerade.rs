//! The address that masquerades on a device is the one that the kernel's own MASQUERADE picks there.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use proxy_lab::{Agent, Family, Lab, Manifests, Node, Topology, Wiring, wait};

const PORT: u16 = 8080;

/// What the agent tells programs of the uplink.
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
