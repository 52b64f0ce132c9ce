//! A Service of a lab dialled in every way that a client has, and who answered.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use proxy_common::Reason;
use proxy_lab::{
    Agent, Answer, Blackhole, Family, Lab, Manifests, Node, Offload, Place, Service, Topology, Waiting,
    Wiring,
};
use vipr::dataplane::counters;

pub(crate) const PORT: u16 = 80;
pub(crate) const TARGET: u16 = 8080;
pub(crate) const NODE_PORT: u16 = 30080;
pub(crate) const CLUSTER_IPS: [&str; 2] = ["10.96.0.10", "fd00:96::10"];

/// Pods are left to the packet plane; the canary of the tests is dialled by the host.
pub(crate) const PACKETS: [&str; 2] = ["--packet-plane=on", "--socket-plane=host"];

/// Node `a` with its agent to be, its pods, one more node, and a client outside.
pub(crate) fn start(wiring: Wiring, offload: Offload) -> Result<(Lab, Manifests)> {
    let topology = Topology::new(wiring).node("a", &["pod", "near"]).node("b", &["far"]).client("outside");
    let lab = Lab::start(&topology.offload(offload).blackhole(Blackhole::AtNodes))?;
    for pod in ["near", "far"] {
        lab.place(pod).serve(&[TARGET], &[TARGET])?;
    }
    let manifests = Manifests::new(&lab)?;
    Ok((lab, manifests))
}

/// An agent on `node` by [`PACKETS`], which has read `services`.
pub(crate) fn serve<'lab>(
    node: &'lab Node,
    manifests: &'lab Manifests,
    services: &[Service],
) -> Result<Agent<'lab>> {
    services.iter().try_for_each(|service| manifests.apply(service))?;
    let agent = Agent::start_with(node, manifests, &PACKETS)?;
    agent.settle()?;
    Ok(agent)
}

/// Runs `test` while `service` leads to the pod of node `a`, then while it leads to that of another, under one agent.
pub(crate) fn near_and_far(
    lab: &Lab,
    manifests: &Manifests,
    arguments: &[&str],
    service: impl Fn(&str) -> Service,
    mut test: impl FnMut(&str) -> Result<()>,
) -> Result<()> {
    manifests.apply(&service("near"))?;
    let agent = Agent::start_with(lab.node("a"), manifests, arguments)?;
    for endpoint in ["near", "far"] {
        manifests.apply(&service(endpoint))?;
        agent.settle()?;
        test(endpoint).with_context(|| format!("at {endpoint}"))?;
    }
    Ok(())
}

/// The Service's ClusterIP of a family.
pub(crate) fn cluster(family: Family) -> SocketAddr {
    let [v4, v6] = CLUSTER_IPS;
    let address = if family == Family::V4 { v4 } else { v6 };
    SocketAddr::new(address.parse().unwrap_or_else(|_| panic!("{address}")), PORT)
}

/// How often the programs of `node` came to this end.
pub(crate) fn count(node: &Node, reason: Reason) -> Result<u64> {
    let all = counters(&node.pin_path())?;
    Ok(all.into_iter().filter(|(counted, _)| *counted == reason).map(|(_, number)| number).sum())
}

/// A Service on [`CLUSTER_IPS`] and [`NODE_PORT`], TCP and UDP, of these pods.
pub(crate) fn web(lab: &Lab, pods: &[&str]) -> Service {
    let service = Service::new("web").cluster_ip(CLUSTER_IPS[0]).cluster_ip(CLUSTER_IPS[1]);
    let service = service.tcp(PORT, TARGET).udp(PORT, TARGET).node_port(NODE_PORT);
    service.endpoints(pods.iter().map(|pod| lab.place(pod)))
}

/// Answers over TCP, connected and unconnected UDP; each is from the address that was dialled.
pub(crate) fn answers(from: &Place, to: SocketAddr) -> Result<Vec<Answer>> {
    let mut answers = Vec::new();
    for waiting in Waiting::ALL {
        let mut stream = from.connect(to, waiting).with_context(|| format!("connect to {to}"))?;
        answers.push(stream.answer()?);
        // Many segments each way, which devices may take in one piece.
        let answer = stream.ask(&"long ".repeat(6000)).with_context(|| format!("much to {to}"))?;
        ensure!(answer.said.len() >= 29_999, "{} bytes came back", answer.said.len());
        ensure!(stream.peer()? == to, "getpeername gave {} for {to}", stream.peer()?);
    }
    let datagrams = from.datagrams(Family::of(to.ip()))?;
    let (answer, source) =
        datagrams.ask_to(to, "unconnected").with_context(|| format!("datagram to {to}"))?;
    ensure!(source == to, "recvfrom gave {source} for {to}");
    answers.push(answer);
    // In fragments, there and back.
    let (answer, source) =
        datagrams.ask_to(to, &"long ".repeat(800)).with_context(|| format!("fragments to {to}"))?;
    ensure!(source == to && answer.said.len() == 4000, "{source}: {} bytes", answer.said.len());
    answers.push(answer);
    let connected = from.datagrams(Family::of(to.ip()))?;
    connected.connect(to)?;
    let (answer, source) = connected.ask("connected").with_context(|| format!("datagram to {to}"))?;
    ensure!(source == to, "recvfrom gave {source} for {to}");
    answers.push(answer);
    for answer in &answers {
        ensure!(answer.local.port() == TARGET, "{answer:?}");
    }
    Ok(answers)
}

/// Who answered, and as whom they saw the client.
pub(crate) fn seen(answers: &[Answer]) -> (BTreeSet<String>, BTreeSet<IpAddr>) {
    let canonical = |answer: &Answer| answer.client.ip().to_canonical();
    (answers.iter().map(|answer| answer.who.clone()).collect(), answers.iter().map(canonical).collect())
}

pub(crate) fn one<T: Ord>(of: T) -> BTreeSet<T> {
    BTreeSet::from([of])
}

/// That `from` reaches `to`, that `who` answers alone, and as whom clients are seen.
pub(crate) fn reaches(from: &Place, to: SocketAddr, who: &str) -> Result<BTreeSet<IpAddr>> {
    let answers = answers(from, to).with_context(|| format!("{} to {to} at {who}", from.name()))?;
    let (seen, clients) = seen(&answers);
    ensure!(seen == one(who.to_owned()), "{} to {to}: {seen:?} answered", from.name());
    Ok(clients)
}
