//! A ClusterIP that a device of the node has, and a socket of the node that listens there (NodeLocal DNS): neither plane
//! serves it.

mod traffic;

use std::net::IpAddr;

use anyhow::{Result, ensure};
use proxy_lab::{Agent, Family, Lab, Node, Offload, Place, Serving, Wiring, wait};
use traffic::{CLUSTER_IPS, PORT, cluster, start, web};

const TCP: &[u16] = &[PORT];
const UDP: &[u16] = &[PORT];

/// The device of NodeLocal DNS is a dummy; here it is a veth, which every kernel has.
fn assign(node: &Node, device: &str) -> Result<()> {
    let mut lines =
        vec![format!("link add {device} type veth peer name other0"), format!("link set {device} up")];
    lines.push(format!("address add {}/32 dev {device}", CLUSTER_IPS[0]));
    lines.push(format!("address add {}/128 dev {device} nodad", CLUSTER_IPS[1]));
    node.ip(&lines)
}

fn listen(node: &Node, tcp: &[u16], udp: &[u16]) -> Result<Serving> {
    let own: Vec<IpAddr> = CLUSTER_IPS.into_iter().map(str::parse).collect::<Result<_, _>>()?;
    Ok(node.serve_on(&own, tcp, udp)?)
}

/// Waits until these answer a pod and a process of the node.
fn until(lab: &Lab, tcp: &str, udp: &str) -> Result<()> {
    let places: [&Place; 2] = [lab.place("pod"), lab.node("a")];
    for (from, family) in places.into_iter().flat_map(|from| Family::ALL.map(|family| (from, family))) {
        let to = cluster(family);
        wait::until(&format!("{} at {to}", from.name()), || {
            let answers = [from.ask_tcp(to)?.who, from.ask_udp(to)?.who];
            ensure!(answers == [tcp, udp], "{answers:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Waits until `vipr status` says that these are left to sockets, as `ADDRESS PROTOCOL`: a pass writes its report after
/// its tables, which clients meet first.
fn until_left(agent: &Agent<'_>, expected: &[String]) -> Result<()> {
    wait::until("what the report says is left to sockets", || {
        let all = agent.report()?.left_to_sockets;
        let left: Vec<_> =
            all.into_iter().map(|left| format!("{} {}", left.address, left.protocol)).collect();
        ensure!(left == expected, "{left:?}");
        Ok(())
    })
}

/// `sockets`: whether pods are served at their sockets or by packets.
fn story(sockets: &str) -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let node = lab.node("a");
    manifests.apply(&web(&lab, &["near"]))?;
    let agent = Agent::start_with(node, &manifests, &["--packet-plane=on", sockets])?;
    agent.settle()?;
    until(&lab, "near", "near")?;
    assign(node, "nodelocaldns")?;
    until(&lab, "near", "near")?;
    let [v4, v6] = CLUSTER_IPS;

    let udp = listen(node, &[], UDP)?;
    until(&lab, "near", "a")?;
    until_left(&agent, &[format!("{v4} UDP"), format!("{v6} UDP")])?;
    let status = node.vipr(&["status"])?;
    ensure!(status.contains(&format!("{v4}:{PORT}/UDP")) && status.contains("listens there"), "{status}");
    let tcp = listen(node, TCP, &[])?;
    until(&lab, "a", "a")?;

    // Another agent is at it from its first moment on.
    ensure!(agent.terminate()?.success());
    let agent = Agent::start_with(node, &manifests, &["--packet-plane=on", sockets])?;
    agent.settle()?;
    let explain = node.vipr(&["explain", "--from", "10.244.1.11", "--to", &format!("{v4}:{PORT}/udp")])?;
    ensure!(!explain.contains("10.244.1.12"), "{explain}");
    until(&lab, "a", "a")?;

    udp.stop()?;
    until(&lab, "a", "near")?;
    tcp.stop()?;
    until(&lab, "near", "near")?;
    until_left(&agent, &[])?;
    lab.check()
}

#[test]
fn sockets_are_left_to_who_listens_at_a_cluster_ip_of_the_node() -> Result<()> {
    story("--socket-plane=all")
}

#[test]
fn packets_are_left_to_who_listens_at_a_cluster_ip_of_the_node() -> Result<()> {
    story("--socket-plane=host")
}

#[test]
fn cluster_ips_on_the_device_of_kube_proxys_ipvs_mode_are_served_whoever_listens() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let node = lab.node("a");
    manifests.apply(&web(&lab, &["near"]))?;
    let agent = Agent::start_with(node, &manifests, &["--packet-plane=on", "--socket-plane=host"])?;
    assign(node, "kube-ipvs0")?;
    let _both = listen(node, TCP, UDP)?;
    agent.settle()?;
    until(&lab, "near", "near")?;
    until_left(&agent, &[])?;
    lab.check()
}
