//! What firewalls, listeners and conntrack see of Services: each line of docs/firewalls.md. Beside it, by rules as
//! kube-proxy's, what they see with kube-proxy.

mod eyes;
mod hooks;
mod traffic;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use eyes::{Eyes, Way, all, conntrack, way};
use hooks::run;
use proxy_lab::{Agent, Family, Lab, Manifests, Node, Offload, Place, Wiring};
use traffic::{NODE_PORT, PACKETS, TARGET, cluster, start, web};

/// The ends of a connection and whatever somebody makes of them.
struct Ends {
    client: SocketAddr,
    dialled: SocketAddr,
    backend: SocketAddr,
    node: SocketAddr,
}

impl Ends {
    fn ways(&self) -> Vec<Way> {
        let Self { client, dialled, backend, node } = *self;
        vec![
            way("client > dialled", client, dialled),
            way("client > backend", client, backend),
            way("node > backend", node, backend),
            way("backend > node", backend, node),
            way("backend > client", backend, client),
            way("dialled > client", dialled, client),
        ]
    }
}

fn ends(lab: &Lab, from: &Place, dialled: SocketAddr) -> Ends {
    let family = Family::of(dialled.ip());
    let any = |place: &Place| SocketAddr::new(place.address(family), 0);
    Ends {
        client: any(from),
        dialled,
        backend: SocketAddr::new(lab.place("near").address(family), TARGET),
        node: SocketAddr::new(gateway(lab.node("a"), family), 0),
    }
}

/// The node's address on its pods' devices: what they are dialled from, and masqueraded with.
fn gateway(node: &Node, family: Family) -> IpAddr {
    node.addresses(family)[2]
}

/// Rules as kube-proxy's for these ends; `masquerades` or not.
fn translate(lab: &Lab, ends: &Ends, masquerades: bool) -> Result<()> {
    let (dialled, backend) = (ends.dialled, ends.backend);
    let family = if dialled.is_ipv4() { "ip" } else { "ip6" };
    let rule = format!("{family} daddr {} tcp dport {} dnat to {backend}", dialled.ip(), dialled.port());
    let after = if masquerades {
        format!("{family} daddr {} tcp dport {} masquerade", backend.ip(), backend.port())
    } else {
        "accept".into()
    };
    let table = format!(
        "table {family} kp {{ chain pre {{ type nat hook prerouting priority -100; {rule}; }}; chain out {{ type nat hook output priority -100; {rule}; }}; chain post {{ type nat hook postrouting priority 100; {after}; }}; }}"
    );
    lab.node("a").run("nft", &[&table])?;
    Ok(())
}

/// What is seen of one connection.
fn seen(lab: &Lab, from: &Place, ends: &Ends, devices: &[&str], at_least: usize) -> Result<BTreeSet<String>> {
    let eyes = Eyes::open(lab.node("a"), ends.ways(), "eth0", devices)?;
    let answer = from.ask_tcp(ends.dialled)?;
    ensure!(answer.who == "near", "{answer:?}");
    eyes.close(at_least)
}

fn agent<'l>(lab: &'l Lab, manifests: &'l Manifests, arguments: &[&str]) -> Result<Agent<'l>> {
    manifests.apply(&web(lab, &["near"]))?;
    let agent = Agent::start_with(lab.node("a"), manifests, arguments)?;
    agent.settle()?;
    Ok(agent)
}

fn union(parts: &[BTreeSet<String>]) -> BTreeSet<String> {
    parts.iter().flatten().cloned().collect()
}

/// A client outside and a NodePort, which is masqueraded.
#[test]
fn of_a_node_port_the_wire_is_as_ever_and_rules_meet_the_backend_from_the_first_hook_on() -> Result<()> {
    let translated = ["client > backend", "backend > client"];
    let wire = [
        all(&["eth0"], &["client > dialled", "dialled > client"]),
        all(&["pod1"], &["node > backend", "backend > node"]),
    ];
    for family in Family::ALL {
        let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
        let (node, outside) = (lab.node("a"), lab.place("outside"));
        let ends = ends(&lab, outside, SocketAddr::new(node.address(family), NODE_PORT));
        translate(&lab, &ends, true)?;
        let rules = seen(&lab, outside, &ends, &["eth0", "pod1"], 4)?;
        let table = if family == Family::V4 { "ip" } else { "ip6" };
        run(node, &format!("nft delete table {table} kp"))?;
        let expected = union(&[
            union(&wire),
            all(&["ingress", "raw", "mangle"], &["client > dialled"]),
            all(&["raw", "mangle"], &["backend > node"]),
            all(&["prerouting", "forward", "postrouting"], &translated),
            all(&["last"], &["node > backend", "dialled > client"]),
        ]);
        assert_eq!(rules, expected, "{family:?}, as kube-proxy");

        let _agent = agent(&lab, &manifests, &PACKETS)?;
        let by_vipr = seen(&lab, outside, &ends, &["eth0", "pod1"], 4)?;
        let expected = union(&[
            union(&wire),
            all(&["ingress"], &["client > backend", "marked"]),
            all(&["raw", "mangle", "prerouting", "forward", "postrouting", "last"], &translated),
            all(&["raw", "mangle", "prerouting", "forward", "postrouting", "last"], &["marked"]),
        ]);
        assert_eq!(by_vipr, expected, "{family:?}, vipr");
        let name = if family == Family::V4 { "ipv4" } else { "ipv6" };
        let entries = conntrack(node, name)?;
        let (client, backend) = (ends.client.ip(), ends.backend.ip());
        let plain = format!("src={backend} dst={client} sport={TARGET}");
        ensure!(entries.iter().any(|entry| entry.contains(&plain)), "no translation is known: {entries:#?}");
        lab.check()?;
    }
    Ok(())
}

/// A pod and a ClusterIP: at its socket, and by packets.
#[test]
fn of_a_cluster_ip_nothing_is_seen_at_all_or_only_where_the_pod_sends_it() -> Result<()> {
    let hooks = ["raw", "mangle", "prerouting", "forward", "postrouting", "last"];
    let translated = ["client > backend", "backend > client"];
    for family in Family::ALL {
        let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
        let pod = lab.place("pod");
        let ends = ends(&lab, pod, cluster(family));
        let devices = ["pod0", "pod1"];
        let agent = agent(&lab, &manifests, &PACKETS)?;
        let packets = seen(&lab, pod, &ends, &devices, 4)?;
        let wire = all(&["pod0"], &["client > dialled", "dialled > client"]);
        let expected = union(&[wire, all(&["pod1"], &translated), all(&hooks, &translated)]);
        assert_eq!(packets, expected, "{family:?}, by packets");
        ensure!(agent.terminate()?.success());

        let _agent = self::agent(&lab, &manifests, &["--packet-plane=on"])?;
        let sockets = seen(&lab, pod, &ends, &devices, 4)?;
        let expected = union(&[all(&devices, &translated), all(&hooks, &translated)]);
        assert_eq!(sockets, expected, "{family:?}, at the socket");
        lab.check()?;
    }
    Ok(())
}

/// A process of the node and a ClusterIP.
#[test]
fn of_what_the_node_dials_output_meets_the_backend_from_its_first_rule_on() -> Result<()> {
    for family in Family::ALL {
        let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
        let node = lab.node("a");
        let own = SocketAddr::new(gateway(node, family), 0);
        let ends = Ends { client: own, ..ends(&lab, node, cluster(family)) };
        let _agent = agent(&lab, &manifests, &["--packet-plane=on"])?;
        let seen = seen(&lab, node, &ends, &["pod1"], 2)?;
        let there = ["output_raw", "output", "postrouting", "last"];
        let back = ["raw", "mangle", "prerouting", "input"];
        let (asked, answered) = (["client > backend"], ["backend > client"]);
        // Of the gateway's address it is both the client's and the node's.
        let seen: BTreeSet<_> = seen.into_iter().filter(|line| !line.contains("node")).collect();
        let expected = union(&[
            all(&["pod1"], &["client > backend", "backend > client"]),
            all(&there, &asked),
            all(&back, &answered),
        ]);
        assert_eq!(seen, expected, "{family:?}");
        lab.check()?;
    }
    Ok(())
}

/// The gap that docs/firewalls.md names, and what to write instead.
#[test]
fn rules_by_the_node_ports_number_match_nothing_and_rules_by_the_backend_do() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let (node, outside) = (lab.node("a"), lab.place("outside"));
    let _agent = agent(&lab, &manifests, &PACKETS)?;
    let to = SocketAddr::new(node.address(Family::V4), NODE_PORT);
    run(node, &format!("iptables -t raw -A PREROUTING -p tcp --dport {NODE_PORT} -j DROP"))?;
    ensure!(outside.ask_tcp(to)?.who == "near");
    run(node, "iptables -t raw -F PREROUTING")?;
    let (client, backend) = (outside.address(Family::V4), lab.place("near").address(Family::V4));
    let rule = format!("FORWARD -s {client} -d {backend} -p tcp --dport {TARGET} -j REJECT");
    run(node, &format!("iptables -I {rule}"))?;
    ensure!(outside.ask_tcp(to).is_err(), "it was rejected");
    run(node, &format!("iptables -D {rule}"))?;
    ensure!(outside.ask_tcp(to)?.who == "near");
    lab.check()
}

/// A NodePort that a process of the node itself serves.
#[test]
fn of_an_endpoint_on_the_node_input_meets_its_own_port() -> Result<()> {
    for family in Family::ALL {
        let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
        let (node, outside) = (lab.node("a"), lab.place("outside"));
        node.serve(&[TARGET], &[])?;
        let [dialled, backend] = [NODE_PORT, TARGET].map(|port| SocketAddr::new(node.address(family), port));
        let ends = Ends { backend, ..ends(&lab, outside, dialled) };
        manifests.apply(&web(&lab, &[]).endpoints([&**node]))?;
        let agent = Agent::start_with(node, &manifests, &PACKETS)?;
        agent.settle()?;
        let eyes = Eyes::open(node, ends.ways(), "eth0", &["eth0"])?;
        ensure!(outside.ask_tcp(dialled)?.who == "a");
        let seen = eyes.close(2)?;
        let expected = union(&[
            all(&["eth0"], &["client > dialled", "dialled > client"]),
            all(&["ingress", "raw", "mangle", "prerouting", "input"], &["client > backend", "marked"]),
            all(&["output_raw", "output", "postrouting", "last"], &["backend > client"]),
        ]);
        assert_eq!(seen, expected, "{family:?}");
        lab.check()?;
    }
    Ok(())
}
