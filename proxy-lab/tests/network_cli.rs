//! The command line on a node whose agent runs, ran, or never ran.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::Result;
use nix::errno::Errno;
use proxy_lab::{Agent, Family, Lab, Manifests, Service, Topology, Waiting, Wiring};
use serde_json::json;

const PORT: u16 = 80;
const TARGET: u16 = 8080;
const NODE_PORT: u16 = 30080;

fn start() -> Result<(Lab, Manifests)> {
    let lab = Lab::start(&Topology::new(Wiring::Routed).node("a", &["client", "web-1", "web-2"]))?;
    for pod in ["web-1", "web-2"] {
        lab.place(pod).serve(&[TARGET], &[TARGET])?;
    }
    let manifests = Manifests::new(&lab)?;
    let web = Service::new("web").cluster_ip("10.96.0.10").cluster_ip("fd00:96::10").tcp(PORT, TARGET);
    let web = web.node_port(NODE_PORT).endpoints(["web-1", "web-2"].map(|pod| lab.place(pod)));
    manifests.apply(&web)?;
    Ok((lab, manifests))
}

/// The names in one member of each row.
fn column(rows: &serde_json::Value, member: &str) -> Vec<String> {
    let rows = rows.as_array().cloned().unwrap_or_default();
    rows.iter().filter_map(|row| row[member].as_str().map(str::to_owned)).collect()
}

#[test]
fn status_begins_with_the_age_of_the_view_and_its_exit_code_says_what_runs() -> Result<()> {
    let (lab, manifests) = start()?;
    let node = lab.node("a");
    let never = node.vipr_output(&["status"])?;
    assert_eq!(never.status.code(), Some(1), "nothing is pinned");
    assert!(String::from_utf8_lossy(&never.stderr).contains("/sys/fs/bpf/vipr"), "{never:?}");

    let agent = Agent::start(node, &manifests)?;
    agent.settle()?;
    let text = node.vipr(&["status"])?;
    assert!(text.starts_with("view ") && text.contains("synced"), "{text}");
    let status = node.vipr_json(&["status"])?;
    assert_eq!(status["agent"]["pid"], agent.pid());
    assert!(status["viewAgeSeconds"].as_f64().is_some_and(|age| age < 60.0), "{status}");
    let programs = status["programs"].as_array().cloned().unwrap_or_default();
    let cgroup = node.node_cgroup().to_string_lossy().into_owned();
    assert_eq!(programs.len(), 8);
    assert!(
        programs.iter().all(|program| program["cgroup"] == cgroup && program["programId"].is_u64()),
        "{status}"
    );
    let frontends =
        status["maps"].as_array().and_then(|maps| maps.iter().find(|map| map["name"] == "frontends"));
    assert!(
        frontends.is_some_and(|map| map["used"].as_u64() >= Some(4) && map["room"].as_u64() > Some(4)),
        "{status}"
    );

    agent.kill()?;
    let left = node.vipr_output(&["status"])?;
    assert_eq!(left.status.code(), Some(3), "no agent, and the node serves");
    let said = String::from_utf8_lossy(&left.stdout).into_owned();
    assert!(said.contains("no agent") && said.contains("connect4"), "{said}");

    let agent = Agent::start_with(node, &manifests, &["--read-back-interval", "0s"])?;
    agent.settle()?;
    node.run("rm", &["/sys/fs/bpf/vipr/links/connect6"])?;
    let odd = node.vipr_output(&["status"])?;
    assert_eq!(odd.status.code(), Some(4), "a program is not attached");
    assert!(String::from_utf8_lossy(&odd.stdout).contains("connect6"), "{odd:?}");
    Ok(())
}

#[test]
fn services_and_backends_are_those_of_the_tables_with_or_without_an_agent() -> Result<()> {
    let (lab, manifests) = start()?;
    let node = lab.node("a");
    let agent = Agent::start(node, &manifests)?;
    agent.settle()?;
    for running in [true, false] {
        let services = node.vipr_json(&["services", "default/web"])?;
        assert_eq!(
            column(&services, "name"),
            ["default/web:tcp-80/TCP/IPv4", "default/web:tcp-80/TCP/IPv6"],
            "an agent runs: {running}"
        );
        let backends = node.vipr_json(&["backends", "default/web"])?;
        let told: BTreeSet<String> = column(&backends, "address").into_iter().collect();
        let pods = ["web-1", "web-2"].map(|pod| lab.place(pod));
        let addresses = pods.iter().flat_map(|pod| Family::ALL.map(|family| pod.address(family).to_string()));
        assert_eq!(told, addresses.collect(), "an agent runs: {running}");
        if running {
            agent.signal(nix::sys::signal::Signal::SIGKILL)?;
        }
    }
    let unknown = node.vipr_output(&["backends", "default/nobody"])?;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("default/nobody"), "{unknown:?}");
    Ok(())
}

#[test]
fn explain_says_of_the_live_tables_what_the_kernel_then_does() -> Result<()> {
    let (lab, manifests) = start()?;
    let (node, client) = (lab.node("a"), lab.place("client"));
    let empty = Service::new("empty").cluster_ip("10.96.0.11").tcp(PORT, TARGET);
    manifests.apply(&empty)?;
    let agent = Agent::start(node, &manifests)?;
    agent.settle()?;
    let pod = client.address(Family::V4).to_string();
    let explain = |from: &str, to: &str| node.vipr(&["explain", "--from", from, "--to", to]);

    let told = explain(&pod, "10.96.0.10:80/tcp")?;
    assert!(told.contains("one of 2 endpoints") && told.contains("default/web:tcp-80/TCP/IPv4"), "{told}");
    for _ in 0..20 {
        let answer = client.ask_tcp(SocketAddr::from(([10, 96, 0, 10], PORT)))?;
        assert!(told.contains(&answer.local.to_string()), "{} is not in {told}", answer.local);
    }
    let told = explain(&pod, "10.96.0.11:80/tcp")?;
    assert!(told.contains("refused"), "{told}");
    let refused = client.ask_tcp(SocketAddr::from(([10, 96, 0, 11], PORT))).expect_err("it has no endpoint");
    assert_eq!(proxy_lab::errno(&refused), Errno::ECONNREFUSED as i32);
    // The host's loopback serves NodePorts, a pod's does not.
    assert!(explain("host", "127.0.0.1:30080/tcp")?.contains("one of 2 endpoints"));
    assert!(explain(&pod, "127.0.0.1:30080/tcp")?.contains("untouched"));
    let json = node.vipr_json(&["explain", "--from", &pod, "--to", "10.96.0.10:80/tcp"])?;
    assert_eq!(json["service"], json!("default/web:tcp-80/TCP/IPv4"), "{json}");
    Ok(())
}

/// A node with a pod behind a NodePort, and a client outside.
fn start_outside() -> Result<(Lab, Manifests)> {
    let lab = Lab::start(&Topology::new(Wiring::Routed).node("a", &["web-1"]).client("outside"))?;
    lab.place("web-1").serve(&[TARGET], &[TARGET])?;
    let manifests = Manifests::new(&lab)?;
    let web = Service::new("web").cluster_ip("10.96.0.10").tcp(PORT, TARGET).node_port(NODE_PORT);
    manifests.apply(&web.endpoints([lab.place("web-1")]))?;
    Ok((lab, manifests))
}

#[test]
fn explain_says_of_a_packet_what_the_kernel_then_does_and_that_there_may_be_no_packet_plane() -> Result<()> {
    let (lab, manifests) = start_outside()?;
    let (node, outside) = (lab.node("a"), lab.place("outside"));
    let to = SocketAddr::new(node.address(Family::V4), NODE_PORT);
    let (from, asked) = (outside.address(Family::V4).to_string(), to.to_string());
    let question = ["explain", "--from", &from, "--to", &asked, "--plane", "packet"];

    let agent = Agent::start_with(node, &manifests, &["--packet-plane=off"])?;
    agent.settle()?;
    let off = node.vipr_output(&question)?;
    assert_eq!(off.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&off.stderr).contains("the packet plane is off"), "{off:?}");
    agent.kill()?;

    let agent = Agent::start_with(node, &manifests, &["--packet-plane=on"])?;
    agent.settle()?;
    let told = node.vipr(&question)?;
    let answer = outside.ask_tcp(to)?;
    assert!(told.contains(&format!("sent to {}", answer.local)), "{told}");
    assert!(
        told.contains(&format!("{} where it leaves by ", answer.client.ip())),
        "the pod sees {}: {told}",
        answer.client
    );
    Ok(())
}

#[test]
fn flows_are_the_connections_through_the_node_and_there_are_none_without_a_packet_plane() -> Result<()> {
    let (lab, manifests) = start_outside()?;
    let (node, outside) = (lab.node("a"), lab.place("outside"));

    let agent = Agent::start_with(node, &manifests, &["--packet-plane=off"])?;
    agent.settle()?;
    let off = node.vipr_output(&["flows"])?;
    assert_eq!(off.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&off.stderr).contains("the packet plane is off"), "{off:?}");
    agent.kill()?;

    let agent = Agent::start_with(node, &manifests, &["--packet-plane=on"])?;
    agent.settle()?;
    let to = SocketAddr::new(node.address(Family::V4), NODE_PORT);
    let mut stream = outside.connect(to, Waiting::Blocking)?;
    let answer = stream.answer()?;
    agent.kill()?;
    let flows = node.vipr_json(&["flows", "--dialled", &to.to_string(), "--protocol", "tcp"])?;
    assert_eq!(flows["matching"], 1, "{flows}");
    let flow = &flows["flows"][0];
    assert_eq!(flow["dialled"], to.to_string());
    assert_eq!(flow["backend"], answer.local.to_string());
    assert_eq!(flow["masquerade"], answer.client.to_string(), "who the pod sees");
    assert!(
        flow["client"]
            .as_str()
            .is_some_and(|client| client.contains(&outside.address(Family::V4).to_string())),
        "{flow}"
    );
    assert_eq!((&flow["state"], &flow["confirmed"]), (&json!("open"), &json!(true)));
    assert_eq!(node.vipr_json(&["flows", "--backend", "192.0.2.250"])?["matching"], 0);
    Ok(())
}
