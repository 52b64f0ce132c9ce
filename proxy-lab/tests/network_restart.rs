//! Nothing is lost when the agent stops, is killed, is replaced, grows its tables, or misses changes.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use proxy_lab::{Agent, Lab, Load, Manifests, Service, Tally, Topology, Wiring, wait};

const PORT: u16 = 80;
const TARGET: u16 = 8080;
/// Connections a second.
const RATE: u32 = 2000;
/// Connections that a phase lasts.
const PHASE: u64 = 1500;

fn start() -> Result<(Lab, Manifests)> {
    let lab = Lab::start(&Topology::new(Wiring::Routed).node("a", &["client", "web-1", "web-2", "web-3"]))?;
    for pod in ["web-1", "web-2", "web-3"] {
        lab.place(pod).serve(&[TARGET], &[])?;
    }
    let manifests = Manifests::new(&lab)?;
    Ok((lab, manifests))
}

fn web(lab: &Lab, pods: &[&str]) -> Service {
    Service::new("web")
        .cluster_ip("10.96.0.10")
        .tcp(PORT, TARGET)
        .endpoints(pods.iter().map(|pod| lab.place(pod)))
}

fn to() -> SocketAddr {
    SocketAddr::from(([10, 96, 0, 10], PORT))
}

fn none_lost(tally: &Tally) {
    println!("{} connections, {:.0} a second", tally.answers(), tally.rate());
    assert_eq!(tally.failures(), 0, "lost: {:?}", tally.failed);
    assert!(tally.rate() > f64::from(RATE) / 4.0, "too slow to mean anything: {:.0}/s", tally.rate());
}

#[test]
fn no_connection_is_lost_when_the_agent_stops_is_killed_and_is_started_again() -> Result<()> {
    let (lab, manifests) = start()?;
    manifests.apply(&web(&lab, &["web-1", "web-2", "web-3"]))?;
    let node = lab.node("a");
    let agent = Agent::start(node, &manifests)?;
    agent.settle()?;
    let load = Load::start(lab.place("client"), to(), RATE);
    load.wait_for(PHASE)?;

    let status = agent.terminate()?;
    ensure!(status.success(), "SIGTERM ends the agent with {status}");
    load.wait_for(PHASE)?;
    let agent = Agent::start(node, &manifests)?;
    agent.settle()?;
    load.wait_for(PHASE)?;

    agent.kill()?;
    load.wait_for(PHASE)?;
    let agent = Agent::start(node, &manifests)?;
    agent.settle()?;
    load.wait_for(PHASE)?;
    none_lost(&load.stop());
    Ok(())
}

#[test]
fn no_connection_is_lost_when_another_build_takes_over() -> Result<()> {
    let (lab, manifests) = start()?;
    manifests.apply(&web(&lab, &["web-1", "web-2"]))?;
    let node = lab.node("a");
    let agent = Agent::start(node, &manifests)?;
    agent.settle()?;
    let load = Load::start(lab.place("client"), to(), RATE);
    // The programs of the second agent are others: they log. All eight are swapped in place.
    let upgraded = Agent::start_with(node, &manifests, &["--bpf-log-level", "info"])?;
    wait::until("the second agent waits for the first", || {
        ensure!(upgraded.log().contains("owns the tables"), "{}", upgraded.log());
        Ok(())
    })?;
    let before = programs(&lab)?;
    agent.terminate()?;
    upgraded.settle()?;
    let after = programs(&lab)?;
    ensure!(before.len() == 8 && after.len() == 8, "{before:?}, {after:?}");
    ensure!(before.iter().all(|id| !after.contains(id)), "not replaced: {before:?}, {after:?}");
    load.wait_for(PHASE)?;
    none_lost(&load.stop());
    Ok(())
}

/// Ids of the programs attached to the node's cgroup.
fn programs(lab: &Lab) -> Result<Vec<u64>> {
    let node = lab.node("a");
    let cgroup = node.node_cgroup().to_string_lossy().into_owned();
    let text = node.run("bpftool", &["--json", "cgroup", "show", &cgroup])?;
    let all: Vec<serde_json::Value> = serde_json::from_str(&text)?;
    Ok(all.iter().filter_map(|program| program["id"].as_u64()).collect())
}

#[test]
fn changes_that_happened_while_no_agent_ran_are_made_up_for_and_ids_stay() -> Result<()> {
    let (lab, manifests) = start()?;
    let gone =
        Service::new("gone").cluster_ip("10.96.0.20").tcp(PORT, TARGET).endpoints([lab.place("web-1")]);
    manifests.apply(&gone)?;
    manifests.apply(&web(&lab, &["web-1"]))?;
    let (node, client) = (lab.node("a"), lab.place("client"));
    let agent = Agent::start(node, &manifests)?;
    agent.settle()?;
    let index = |map: &serde_json::Value| {
        let entries = map.as_array().cloned().unwrap_or_default();
        let web = entries.iter().find(|entry| {
            entry["formatted"]["key"]["port"] == PORT && entry["formatted"]["key"]["address"][15] == 10
        });
        web.map(|entry| entry["formatted"]["value"]["service"].clone())
    };
    let before = index(&node.pinned_map("frontends")?);
    assert!(before.is_some(), "{}", node.pinned_map("frontends")?);
    agent.kill()?;

    manifests.delete(&gone)?;
    manifests.apply(&web(&lab, &["web-2"]))?;
    let gone_to = SocketAddr::from(([10, 96, 0, 20], PORT));
    assert_eq!(client.ask_tcp(gone_to)?.who, "web-1", "without an agent the tables stay as they were");
    let agent = Agent::start(node, &manifests)?;
    agent.settle()?;
    assert_eq!(client.ask_tcp(to())?.who, "web-2");
    assert!(client.ask_tcp(gone_to).is_err(), "a Service that went while no agent ran");
    assert_eq!(index(&node.pinned_map("frontends")?), before, "a live Service keeps its index");
    Ok(())
}

#[test]
fn tables_grow_beside_the_running_ones_and_nothing_is_lost() -> Result<()> {
    let (lab, manifests) = start()?;
    manifests.apply(&web(&lab, &["web-1", "web-2"]))?;
    let node = lab.node("a");
    let agent = Agent::start(node, &manifests)?;
    agent.settle()?;
    let load = Load::start(lab.place("client"), to(), RATE);
    // More than the floor of any table.
    let many: Vec<_> = (0..5000_u32).map(many_service).collect();
    manifests.write("many", &serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": many }))?;
    agent.settle()?;
    load.wait_for(PHASE)?;
    none_lost(&load.stop());
    let size = node.run("bpftool", &["--json", "map", "show", "pinned", "/sys/fs/bpf/vipr/frontends"])?;
    let size: serde_json::Value = serde_json::from_str(&size)?;
    assert!(size["max_entries"].as_u64() > Some(5000), "{size}");
    Ok(())
}

fn many_service(i: u32) -> serde_json::Value {
    let [_, _, high, low] = i.to_be_bytes();
    let address = format!("10.96.{}.{low}", 64 + high);
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": format!("many-{i}"), "namespace": "many" },
        "spec": {
            "clusterIP": address,
            "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ports": [{ "name": "web", "port": 80, "targetPort": 8080, "protocol": "TCP" }],
        },
    })
}
