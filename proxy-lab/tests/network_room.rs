//! A small table of flows and the real agent: it makes room in good order, and says so.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use proxy_lab::{Agent, Family, Lab, Manifests, Node, Service, Topology, Waiting, Wiring};
use serde_json::Value;

const PORT: u16 = 80;
const TARGET: u16 = 8080;
const NODE_PORT: u16 = 30080;

/// The table of established flows as `vipr status` has it, and how many of its keys left by each reason.
fn table(node: &Node) -> Result<(u64, impl Fn(&str) -> u64)> {
    // The code says only whether somebody should look.
    let output = node.vipr_output(&["status", "-o", "json"])?;
    let status: Value = serde_json::from_slice(&output.stdout).context("read what vipr status says")?;
    let tables = status["flows"].as_array().context("no tables of flows")?.clone();
    let flows = tables.into_iter().find(|table| table["table"] == "flows").context("no table of flows")?;
    let used = flows["used"].as_u64().context("nobody knows how full it is")?;
    let map = status["maps"].as_array().and_then(|maps| maps.iter().find(|map| map["name"] == "flows"));
    ensure!(map.is_some_and(|map| map["used"].is_u64()), "{status}");
    let removed = flows["removed"].as_array().cloned().unwrap_or_default();
    let keys = move |reason: &str| {
        let found = removed.iter().find(|removal| removal["reason"] == reason);
        found.and_then(|removal| removal["keys"].as_u64()).unwrap_or(0)
    };
    Ok((used, keys))
}

#[test]
fn datagrams_that_fill_the_table_make_room_for_each_other_and_no_connection_is_lost() -> Result<()> {
    const CONNECTIONS: usize = 20;
    // One alone would see all clients by ports of the node, which are not so many.
    const PODS: [&str; 4] = ["web-1", "web-2", "web-3", "web-4"];
    let lab = Lab::start(&Topology::new(Wiring::Routed).node("a", &PODS).client("outside"))?;
    for pod in PODS {
        lab.place(pod).serve(&[TARGET], &[TARGET])?;
    }
    let manifests = Manifests::new(&lab)?;
    let web = Service::new("web").cluster_ip("10.96.0.10").tcp(PORT, TARGET).udp(PORT, TARGET);
    manifests.apply(&web.node_port(NODE_PORT).endpoints(PODS.map(|pod| lab.place(pod))))?;
    let (node, outside) = (lab.node("a"), lab.place("outside"));
    let agent = Agent::start_with(node, &manifests, &["--flow-table-size=65536"])?;
    agent.settle()?;
    let to = SocketAddr::new(node.address(Family::V4), NODE_PORT);
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = outside.connect(to, Waiting::Blocking)?;
        stream.ask("hello")?;
        streams.push(stream);
    }
    let listed = || node.vipr_json(&["flows", "--dialled", &to.to_string(), "--protocol", "tcp"]);
    assert_eq!(listed()?["matching"], CONNECTIONS);

    // Each from a port of its own, and with four keys.
    for asked in 0.. {
        outside.ask_udp(to)?;
        if asked % 500 == 0 && table(node)?.1("datagrams") > 0 {
            break;
        }
        ensure!(asked < 40_000, "the table was never full: {}", node.vipr(&["status"])?);
    }
    let (used, removed) = table(node)?;
    assert!(used <= 65_536, "{used}");
    assert_eq!(["closing", "idle", "evicted"].map(&removed), [0; 3], "nobody but datagrams had to leave");
    assert_eq!(listed()?["matching"], CONNECTIONS);
    for stream in &mut streams {
        stream.ask("still there?")?;
    }
    let (code, page) = agent.get(10249, "/metrics")?;
    assert_eq!(code, 200);
    for line in
        ["vipr_flow_keys_removed_total{table=\"flows\",reason=\"datagrams\"}", "vipr_flows_room 65536"]
    {
        assert!(page.contains(line), "no {line} in\n{page}");
    }
    assert!(agent.log().contains("the tables of flows are full"), "{}", agent.log());

    // The agent's end ends no flow, and what is counted is known without it.
    let before = removed("datagrams");
    agent.kill()?;
    assert!(table(node)?.1("datagrams") >= before);
    for stream in &mut streams {
        stream.ask("and now?")?;
    }
    let agent = Agent::start_with(node, &manifests, &["--flow-table-size=65536"])?;
    agent.settle()?;
    assert!(table(node)?.1("datagrams") >= before, "counted on");
    for stream in &mut streams {
        stream.ask("and after a restart?")?;
    }
    Ok(())
}
