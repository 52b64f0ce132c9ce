//! The API server dies, comes back, can't be reached, has forgotten: traffic goes on, and what changed arrives.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use proxy_lab::control_plane::API_PORT;
use proxy_lab::{Agent, Cluster, Family, Lab, Load, Service, Tally, Topology, Wiring, wait};

const PORT: u16 = 80;
const TARGET: u16 = 8080;
/// Connections a second.
const RATE: u32 = 500;
/// Connections that a phase lasts.
const PHASE: u64 = 500;

fn lab() -> Result<Lab> {
    let topology = Topology::new(Wiring::Routed).node("a", &["client", "web-1", "web-2"]);
    let lab = Lab::start(&topology.client("control-plane"))?;
    for pod in ["web-1", "web-2"] {
        lab.place(pod).serve(&[TARGET], &[])?;
    }
    Ok(lab)
}

fn service(lab: &Lab, number: u8, pods: &[&str]) -> Service {
    let service = Service::new(&format!("web-{number}")).cluster_ip(&format!("10.96.0.{number}"));
    service.tcp(PORT, TARGET).endpoints(pods.iter().map(|pod| lab.place(pod)))
}

fn to(number: u8) -> SocketAddr {
    ([10, 96, 0, number], PORT).into()
}

/// Who answers for the Service of this number; an error too may be what a test waits for.
fn who(lab: &Lab, number: u8) -> Result<String> {
    Ok(lab.place("client").ask_tcp(to(number))?.who)
}

/// Services 10 (kept), 20 (to be switched) and 30 (to be deleted) on `web-1`.
fn before(cluster: &Cluster<'_>) -> Result<()> {
    [10, 20, 30].into_iter().try_for_each(|number| cluster.apply(&service(cluster.lab(), number, &["web-1"])))
}

/// 20 leads to `web-2`, 30 is gone, 40 is new.
fn change(cluster: &Cluster<'_>) -> Result<()> {
    let lab = cluster.lab();
    cluster.apply(&service(lab, 20, &["web-2"]))?;
    cluster.delete(&service(lab, 30, &["web-1"]))?;
    cluster.apply(&service(lab, 40, &["web-2"]))
}

fn is_as_before(lab: &Lab) -> Result<()> {
    for number in [10, 20, 30] {
        let who = who(lab, number).with_context(|| format!("Service {number}"))?;
        ensure!(who == "web-1", "Service {number} is answered by {who}");
    }
    ensure!(who(lab, 40).is_err(), "Service 40 can't be known yet");
    Ok(())
}

fn is_changed(lab: &Lab) -> Result<()> {
    for (number, expected) in [(10, "web-1"), (20, "web-2"), (40, "web-2")] {
        let who = who(lab, number).with_context(|| format!("Service {number}"))?;
        ensure!(who == expected, "Service {number} is answered by {who}");
    }
    ensure!(who(lab, 30).is_err(), "Service 30 is gone");
    Ok(())
}

/// The reasons why sources can't be heard, once each of the three has one.
fn broken(agent: &Agent<'_>) -> Result<Vec<String>> {
    wait::until_within(3 * wait::LIMIT, "the agent misses its API server", || {
        let sources = agent.report()?.sources;
        let broken: Vec<_> = sources.into_iter().filter_map(|source| source.broken).collect();
        ensure!(broken.len() == 3, "{broken:?}");
        Ok(broken)
    })
}

fn none_lost(tally: &Tally) {
    println!("{} connections, {:.0} a second", tally.answers(), tally.rate());
    assert_eq!(tally.failures(), 0, "lost: {:?}", tally.failed);
    assert!(tally.rate() > f64::from(RATE) / 4.0, "too slow to mean anything: {:.0}/s", tally.rate());
}

#[test]
fn a_killed_api_server_harms_nobody_and_what_changes_after_its_restart_arrives() -> Result<()> {
    let lab = lab()?;
    let mut cluster = Cluster::start(&lab, "control-plane")?;
    before(&cluster)?;
    let agent = Agent::start_on(lab.node("a"), &cluster)?;
    agent.settle()?;
    let load = Load::start(lab.place("client"), to(10), RATE);
    for _ in 0..2 {
        cluster.plane().kill_api_server();
        let why = broken(&agent)?;
        ensure!(why.iter().all(|why| why.contains("can't be reached")), "{why:?}");
        load.wait_for(PHASE)?;
        assert_eq!(agent.get(10256, "/healthz")?.0, 200, "the API server's death is not the node's");
        is_as_before(&lab)?;
        cluster.plane().start_api_server()?;
        agent.settle()?;
        is_as_before(&lab)?;
    }
    // An API server that has just started may know nobody's rights for a moment.
    wait::until_within(3 * wait::LIMIT, "all sources are heard again", || {
        let sources = agent.report()?.sources;
        let broken: Vec<_> = sources.into_iter().filter_map(|source| source.broken).collect();
        ensure!(broken.is_empty(), "{broken:?}");
        Ok(())
    })?;
    change(&cluster)?;
    agent.settle()?;
    is_changed(&lab)?;
    none_lost(&load.stop());
    Ok(())
}

#[test]
fn what_changed_while_the_agent_could_not_hear_and_the_server_has_forgotten_is_made_up_for() -> Result<()> {
    let lab = lab()?;
    let mut cluster = Cluster::start(&lab, "control-plane")?;
    before(&cluster)?;
    let agent = Agent::start_on(lab.node("a"), &cluster)?;
    agent.settle()?;
    let load = Load::start(lab.place("client"), to(10), RATE);
    cluster.plane().kill_api_server();
    broken(&agent)?;
    cluster.plane().start_api_server_hidden()?;
    change(&cluster)?;
    // Its versions are gone: a watch from where it was is answered 410, and only a list shows what was deleted.
    cluster.plane().compact()?;
    is_as_before(&lab)?;
    cluster.plane().start_api_server()?;
    agent.settle()?;
    is_changed(&lab)?;
    none_lost(&load.stop());
    Ok(())
}

#[test]
fn a_way_to_the_api_server_that_is_lost_and_found_loses_no_change() -> Result<()> {
    let lab = lab()?;
    let cluster = Cluster::start(&lab, "control-plane")?;
    before(&cluster)?;
    let node = lab.node("a");
    let agent = Agent::start_on(node, &cluster)?;
    agent.settle()?;
    let load = Load::start(lab.place("client"), to(10), RATE);
    let server = lab.place("control-plane").address(Family::V4);
    node.ip(&[format!("route add blackhole {server}")])?;
    // Open connections would outlive it: ended as a firewall or a NAT between would.
    node.run("ss", &["--kill", "--tcp", "dst", &format!("{server}:{API_PORT}")])?;
    broken(&agent)?;
    change(&cluster)?;
    is_as_before(&lab)?;
    assert_eq!(agent.get(10256, "/healthz")?.0, 200);
    node.ip(&[format!("route del blackhole {server}")])?;
    agent.settle()?;
    is_changed(&lab)?;
    none_lost(&load.stop());
    // What came meanwhile had no way back.
    lab.expect_errors();
    Ok(())
}

#[test]
fn an_agent_that_starts_without_an_api_server_waits_says_for_what_and_deletes_nothing() -> Result<()> {
    let lab = lab()?;
    let mut cluster = Cluster::start(&lab, "control-plane")?;
    before(&cluster)?;
    let node = lab.node("a");
    let agent = Agent::start_on(node, &cluster)?;
    agent.settle()?;
    let load = Load::start(lab.place("client"), to(10), RATE);
    agent.kill()?;
    change(&cluster)?;
    cluster.plane().kill_api_server();

    let agent = Agent::start_on(node, &cluster)?;
    let why = broken(&agent)?;
    ensure!(why.iter().all(|why| why.contains("nobody listens there")), "{why:?}");
    // What the kernel has to say comes a moment later.
    let report = wait::until("only the API server is waited for", || {
        let report = agent.report()?;
        let waits: Vec<_> = report.sources.iter().filter(|source| !source.synced).collect();
        let waits: Vec<_> = waits.into_iter().map(|source| source.source.as_str()).collect();
        ensure!(waits == ["services", "slices", "node"], "{waits:?}");
        Ok(report)
    })?;
    assert!(report.applied.is_none(), "nothing can have been written: {report:?}");
    ensure!(agent.log().contains("waiting for services, slices, node"), "{}", agent.log());
    load.wait_for(PHASE)?;
    is_as_before(&lab)?;
    assert_eq!(agent.get(10256, "/livez")?.0, 200, "an agent that waits lives");

    cluster.plane().start_api_server()?;
    agent.settle()?;
    is_changed(&lab)?;
    none_lost(&load.stop());
    Ok(())
}
