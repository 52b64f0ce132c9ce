//! `demo`: the main job on this machine, in a lab of network namespaces. `cargo xtask demo` builds and runs it as root.
//! It ends by itself and leaves nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use proxy_lab::{
    Agent, Answer, Family, Lab, Load, Manifests, Place, Service, Topology, Waiting, Wiring, role,
};

const CLUSTER_IP: &str = "10.96.0.10";
const PORT: u16 = 80;
const TARGET: u16 = 8080;
const NODE_PORT: u16 = 30080;
const CALLS: u32 = 300;
const PODS: [&str; 3] = ["web-1", "web-2", "web-3"];

fn main() -> ExitCode {
    if let Some(played) = role::play_if_asked() {
        return played;
    }
    match show() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the next chapter's title.
fn chapter(title: &str) {
    println!("\n── {title} ──");
}

fn show() -> Result<()> {
    let start = Instant::now();
    chapter("a node with four pods and a client outside, each a network namespace of its own");
    let topology = Topology::new(Wiring::Routed).node("node-1", &["client", "web-1", "web-2", "web-3"]);
    let lab = Lab::start(&topology.client("outside"))?;
    for place in lab.places().filter(|place| place.name() != lab.sink().name()) {
        println!("{:>8}  {:<14} {}", place.name(), place.address(Family::V4), place.address(Family::V6));
    }
    let (node, client) = (lab.node("node-1"), lab.place("client"));
    for pod in PODS {
        lab.place(pod).serve(&[TARGET], &[TARGET])?;
    }

    chapter("a Service from YAML, and the agent that reads it");
    let manifests = Manifests::new(&lab)?;
    let web = |pods: &[&str]| {
        Service::new("web")
            .cluster_ip(CLUSTER_IP)
            .cluster_ip("fd00:96::10")
            .tcp(PORT, TARGET)
            .udp(PORT, TARGET)
            .node_port(NODE_PORT)
            .endpoints(pods.iter().map(|pod| lab.place(pod)))
    };
    manifests.apply(&web(&PODS))?;
    let began = Instant::now();
    let agent = Agent::start(node, &manifests)?;
    agent.settle()?;
    println!("$ vipr run --hostname-override node-1 --manifests DIR --cgroup DIR");
    println!("running, and serving after {} ms", began.elapsed().as_millis());

    let cluster_ip: SocketAddr = format!("{CLUSTER_IP}:{PORT}").parse()?;
    let cluster_ip_v6: SocketAddr = format!("[fd00:96::10]:{PORT}").parse()?;
    let node_port = SocketAddr::from((node.address(Family::V4), NODE_PORT));
    chapter(&format!("{CALLS} connections and {CALLS} datagrams to each address, and who answered"));
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header(["from", "dialled", "protocol", PODS[0], PODS[1], PODS[2]]);
    let outside = lab.place("outside");
    let calls = [
        (client, cluster_ip),
        (client, cluster_ip_v6),
        (&**node, node_port),
        // No socket of this node: translated packet by packet.
        (outside, node_port),
    ];
    for (from, to) in calls {
        for (protocol, ask) in [("TCP", Place::ask_tcp as Ask), ("UDP", Place::ask_udp as Ask)] {
            let spread =
                spread(from, to, ask).with_context(|| format!("{} to {to}/{protocol}", from.name()))?;
            let mut row = vec![from.name().to_owned(), to.to_string(), protocol.to_owned()];
            row.extend(PODS.map(|pod| spread.get(pod).copied().unwrap_or(0).to_string()));
            table.add_row(row);
        }
    }
    println!("{table}");
    let stream = client.connect(cluster_ip, Waiting::Blocking)?;
    println!("getpeername() of such a connection is what was dialled: {}", stream.peer()?);

    chapter("what the packet plane remembers: connections of no socket of this node");
    let mut kept = outside.connect(node_port, Waiting::Blocking)?;
    let (seen, own) = (kept.answer()?.client, kept.local()?.to_string());
    println!("outside is {own}, and a pod sees it as {seen}: its answers come back by the node");
    let flows = ["flows", "--client", &own];
    println!("$ vipr {}", flows.join(" "));
    let listed = node.vipr(&flows)?;
    print!("{listed}");
    ensure!(listed.contains(&own) && listed.contains(&seen.to_string()), "the connection must be listed");
    let of_pods = node.vipr(&["flows", "--dialled", &cluster_ip.to_string(), "--count"])?;
    println!("$ vipr flows --dialled {cluster_ip} --count");
    print!("{of_pods}");

    chapter("the pinned map, as bpftool prints it");
    let command = ["map", "dump", "pinned", "/sys/fs/bpf/vipr/frontends"];
    println!("$ bpftool {}", command.join(" "));
    let dump = node.run("bpftool", &command)?;
    print_head(&dump, 20);

    chapter("why a connection goes where it goes, by each plane");
    for (plane, from, to) in [("socket", client, cluster_ip), ("packet", outside, node_port)] {
        let (from, dialled) = (from.address(Family::V4).to_string(), format!("{to}/tcp"));
        let explain = ["explain", "--from", &from, "--to", &dialled, "--plane", plane];
        println!("$ vipr {}", explain.join(" "));
        print!("{}", node.vipr(&explain)?);
    }

    chapter("an endpoint is removed while connections go on");
    let load = Load::start(client, cluster_ip, 1000);
    load.wait_for(500)?;
    let before = load.answered();
    manifests.apply(&web(&PODS[..2]))?;
    agent.settle()?;
    load.wait_for(500)?;
    let tally = load.stop();
    println!(
        "{} connections at {:.0} a second, {} of them after {} left, {} failed",
        tally.answers(),
        tally.rate(),
        tally.answers() - before,
        PODS[2],
        tally.failures()
    );
    ensure!(tally.failures() == 0, "connections failed: {:?}", tally.failed);
    let left = spread(client, cluster_ip, Place::ask_tcp)?;
    ensure!(!left.contains_key(PODS[2]), "{} still answers: {left:?}", PODS[2]);
    println!("since then only {} and {} answer: {left:?}", PODS[0], PODS[1]);

    chapter("the end");
    agent.terminate()?;
    ensure!(client.ask_tcp(cluster_ip).is_ok(), "the Service must be served without an agent, too");
    println!("the agent has stopped, and the Service still answers");
    node.vipr(&["cleanup"])?;
    ensure!(client.ask_tcp(cluster_ip).is_err(), "nothing must be left after a cleanup");
    println!("`vipr cleanup` has removed programs and maps, and nobody answers there any more");
    drop(lab);
    println!("the lab is gone; all of it took {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

type Ask = fn(&Place, SocketAddr) -> std::io::Result<Answer>;

/// Who answered how many of [`CALLS`] calls.
fn spread(from: &Place, to: SocketAddr, ask: Ask) -> Result<BTreeMap<String, u32>> {
    let mut spread = BTreeMap::new();
    for _ in 0..CALLS {
        *spread.entry(ask(from, to)?.who).or_default() += 1;
    }
    Ok(spread)
}

/// The first lines of a text, and how many more there are.
fn print_head(text: &str, lines: usize) {
    for line in text.lines().take(lines) {
        println!("{line}");
    }
    let more = text.lines().count().saturating_sub(lines);
    if more > 0 {
        println!("… and {more} lines more");
    }
}
