//! Processes of the node and load balancers with source ranges: by the address that the kernel would dial from, as its
//! routes, rules and addresses are at the time.

mod traffic;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_common::Reason;
use proxy_lab::{Family, Node, Offload, Wiring, wait};
use serde_json::json;
use traffic::{PORT, count, serve, start, web};

const BALANCERS: [&str; 2] = ["10.100.0.5", "fd00:100::5"];
const GATEWAYS: [&str; 2] = ["192.168.77.254", "fd00:77::fe"];

/// A range for each family that is one address of the node: its first, its second …
fn own(node: &Node, which: usize) -> [String; 2] {
    Family::ALL.map(|family| {
        let length = if family == Family::V4 { 32 } else { 128 };
        format!("{}/{length}", node.addresses(family)[which])
    })
}

/// Waits until a process of the node is answered at the load balancer's addresses, or until it is not and its packets
/// end on the node.
fn until(node: &Node, families: &[Family], served: bool, why: &str) -> Result<()> {
    for (family, balancer) in Family::ALL.into_iter().zip(BALANCERS) {
        if !families.contains(&family) {
            continue;
        }
        let to = SocketAddr::new(balancer.parse()?, PORT);
        wait::until(&format!("{why}: {to} is served: {served}"), || {
            let dropped = count(node, Reason::GuardDropped)?;
            let datagrams = node.datagrams(family)?;
            datagrams.socket().set_read_timeout(Some(Duration::from_millis(100)))?;
            let answer = datagrams.ask_to(to, "who");
            ensure!(answer.is_ok() == served, "{answer:?}");
            let dropped = count(node, Reason::GuardDropped)? - dropped;
            ensure!(served || dropped > 0, "{answer:?}, and nothing was dropped");
            Ok(())
        })?;
    }
    Ok(())
}

fn ip(node: &Node, line: impl Fn(&str, &str, &str) -> String) -> Result<()> {
    let second = Family::ALL.map(|family| node.addresses(family)[1].to_string());
    let each = BALANCERS.into_iter().zip(GATEWAYS).zip(&second);
    let lines: Vec<_> = each.map(|((to, via), second)| line(to, via, second)).collect();
    for (family, line) in ["-4", "-6"].into_iter().zip(lines) {
        node.run("ip", &[&[family], line.split(' ').collect::<Vec<_>>().as_slice()].concat())
            .with_context(|| line.clone())?;
    }
    Ok(())
}

#[test]
fn the_address_that_the_node_would_dial_from_decides_and_is_followed() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let node = lab.node("a");
    let service = web(&lab, &["near"]).load_balancer_ip(BALANCERS[0]).load_balancer_ip(BALANCERS[1]);
    let service = service.spec(&json!({ "loadBalancerSourceRanges": own(node, 1) }));
    ip(node, |to, via, _| format!("route add {to} via {via} dev eth0"))?;
    let _agent = serve(node, &manifests, &[service])?;
    until(node, &Family::ALL, false, "by the first address")?;
    ip(node, |to, via, second| format!("route change {to} via {via} dev eth0 src {second}"))?;
    until(node, &Family::ALL, true, "by the route's source")?;
    ip(node, |to, via, _| format!("route change {to} via {via} dev eth0"))?;
    until(node, &Family::ALL, false, "by the first address again")?;
    ip(node, |_, via, second| format!("route add default via {via} dev eth0 src {second} table 77"))?;
    ip(node, |to, _, _| format!("rule add to {to} lookup 77"))?;
    until(node, &Family::ALL, true, "by another table's route")?;
    ip(node, |to, _, _| format!("rule del to {to} lookup 77"))?;
    until(node, &Family::ALL, false, "without that rule")?;
    // The kernel's own choice follows the addresses: a deprecated one is passed over.
    let [first, second] = [0, 1].map(|which| node.addresses(Family::V6)[which]);
    node.ip(&[
        format!("address change {second}/128 dev eth0 preferred_lft forever"),
        format!("address change {first}/64 dev eth0 preferred_lft 0"),
    ])?;
    until(node, &Family::ALL[1..], true, "by the address that is not deprecated")?;
    Ok(())
}

/// kube-proxy allows the VIP itself along with the node, for a node that has it dials it from there (spec §2.8).
#[test]
fn a_load_balancer_address_that_the_node_has_itself_is_allowed_with_the_nodes_first_address() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let node = lab.node("a");
    let with = |ranges: [String; 2]| {
        let service = web(&lab, &["near"]).load_balancer_ip(BALANCERS[0]).load_balancer_ip(BALANCERS[1]);
        service.spec(&json!({ "loadBalancerSourceRanges": ranges }))
    };
    let agent = serve(node, &manifests, &[with(own(node, 0))])?;
    let lines = [
        format!("address add {}/32 dev lo", BALANCERS[0]),
        format!("address add {}/128 dev lo", BALANCERS[1]),
    ];
    node.ip(&lines)?;
    for balancer in BALANCERS {
        let to = SocketAddr::new(balancer.parse()?, PORT);
        wait::until("the node is served", || Ok(node.ask_udp(to)?))?;
    }
    manifests.apply(&with(own(node, 1)))?;
    agent.settle()?;
    for balancer in BALANCERS {
        let to = SocketAddr::new(balancer.parse()?, PORT);
        let denied = count(node, Reason::HostDenied)?;
        ensure!(node.ask_tcp(to).is_err(), "{to} answered");
        ensure!(count(node, Reason::HostDenied)? > denied, "{to}: not by the ranges");
    }
    Ok(())
}
