//! The packet plane with real sockets: what did not come from a socket that vipr serves is translated on the node's devices.
//! Every device is one of the agent's own choosing; checksums are made in software in one pass and left to devices in another.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use proxy_lab::{
    Agent, Answer, Blackhole, Family, Lab, Load, Manifests, Offload, Place, Service, Topology, Waiting,
    Wiring, errno, wait,
};

const PORT: u16 = 80;
const TARGET: u16 = 8080;
const NODE_PORT: u16 = 30080;
/// Pods are left to the packet plane; the canary of the tests is dialled by the host.
const PACKETS: [&str; 2] = ["--packet-plane=on", "--socket-plane=host"];

/// Node `a` with its agent to be, its pods, one more node, and a client outside.
fn start(wiring: Wiring, offload: Offload) -> Result<(Lab, Manifests)> {
    let topology = Topology::new(wiring).node("a", &["pod", "near"]).node("b", &["far"]).client("outside");
    let lab = Lab::start(&topology.offload(offload).blackhole(Blackhole::AtNodes))?;
    for pod in ["near", "far"] {
        lab.place(pod).serve(&[TARGET], &[TARGET])?;
    }
    let manifests = Manifests::new(&lab)?;
    Ok((lab, manifests))
}

fn web(lab: &Lab, pods: &[&str]) -> Service {
    let service = Service::new("web").cluster_ip("10.96.0.10").cluster_ip("fd00:96::10");
    let service = service.tcp(PORT, TARGET).udp(PORT, TARGET).node_port(NODE_PORT);
    service.endpoints(pods.iter().map(|pod| lab.place(pod)))
}

/// Answers over TCP, connected and unconnected UDP; each is from the address that was dialled.
fn answers(from: &Place, to: SocketAddr) -> Result<Vec<Answer>> {
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
fn seen(answers: &[Answer]) -> (BTreeSet<String>, BTreeSet<IpAddr>) {
    let canonical = |answer: &Answer| answer.client.ip().to_canonical();
    (answers.iter().map(|answer| answer.who.clone()).collect(), answers.iter().map(canonical).collect())
}

fn one<T: Ord>(of: T) -> BTreeSet<T> {
    BTreeSet::from([of])
}

/// Each wiring and each way of making checksums.
fn each(mut test: impl FnMut(&Lab, &Manifests) -> Result<()>) -> Result<()> {
    for wiring in Wiring::ALL {
        for offload in [Offload::Off, Offload::On] {
            let (lab, manifests) = start(wiring, offload)?;
            test(&lab, &manifests).with_context(|| format!("{wiring:?}, offload {offload:?}"))?;
            lab.check().with_context(|| format!("{wiring:?}, offload {offload:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_client_outside_reaches_a_node_port_whose_pod_is_on_this_node_or_on_another() -> Result<()> {
    each(|lab, manifests| {
        let node = lab.node("a");
        let mut agent = None;
        for pod in ["near", "far"] {
            manifests.apply(&web(lab, &[pod]))?;
            let agent = match &agent {
                Some(agent) => agent,
                None => agent.insert(Agent::start_with(node, manifests, &PACKETS)?),
            };
            agent.settle()?;
            for family in Family::ALL {
                let to = SocketAddr::new(node.address(family), NODE_PORT);
                let answers = answers(lab.place("outside"), to).with_context(|| pod.to_owned())?;
                let (who, clients) = seen(&answers);
                assert_eq!(who, one(pod.to_owned()), "{to}");
                // kube-proxy spec §2.3, row 4: the pod answers to its node.
                ensure!(!clients.contains(&lab.place("outside").address(family)), "{clients:?}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_pod_reaches_a_cluster_ip_by_packets_and_is_seen_as_itself() -> Result<()> {
    each(|lab, manifests| {
        let mut agent = None;
        for endpoint in ["near", "far"] {
            manifests.apply(&web(lab, &[endpoint]))?;
            let agent = match &agent {
                Some(agent) => agent,
                None => agent.insert(Agent::start_with(lab.node("a"), manifests, &PACKETS)?),
            };
            agent.settle()?;
            for (family, address) in Family::ALL.into_iter().zip(["10.96.0.10", "fd00:96::10"]) {
                let to = SocketAddr::new(address.parse()?, PORT);
                let answers = answers(lab.place("pod"), to).with_context(|| endpoint.to_owned())?;
                let (who, clients) = seen(&answers);
                assert_eq!(who, one(endpoint.to_owned()), "{to}");
                assert_eq!(clients, one(lab.place("pod").address(family)), "{to}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_pod_reaches_itself_through_its_service() -> Result<()> {
    each(|lab, manifests| {
        manifests.apply(&web(lab, &["near"]))?;
        let agent = Agent::start_with(lab.node("a"), manifests, &PACKETS)?;
        agent.settle()?;
        for address in ["10.96.0.10", "fd00:96::10"] {
            let to = SocketAddr::new(address.parse()?, PORT);
            let (who, _) = seen(&answers(lab.place("near"), to)?);
            assert_eq!(who, one("near".to_owned()), "{to}");
        }
        Ok(())
    })
}

#[test]
fn a_service_without_endpoints_refuses_pods_and_clients_outside() -> Result<()> {
    for (wiring, offload) in [(Wiring::Routed, Offload::Off), (Wiring::Bridged, Offload::On)] {
        let (lab, manifests) = start(wiring, offload)?;
        manifests.apply(&web(&lab, &[]))?;
        let node = lab.node("a");
        let agent = Agent::start_with(node, &manifests, &PACKETS)?;
        agent.settle()?;
        for (family, cluster_ip) in Family::ALL.into_iter().zip(["10.96.0.10", "fd00:96::10"]) {
            let node_port = SocketAddr::new(node.address(family), NODE_PORT);
            let cluster_ip = SocketAddr::new(cluster_ip.parse()?, PORT);
            for (from, to) in [("outside", node_port), ("pod", cluster_ip)] {
                let from = lab.place(from);
                // The answer to the first SYN comes while connect() still has the socket, and the kernel passes it over:
                // it is the second one that is refused, a second later. So it is with netfilter's REJECT.
                let refused = from.connect(to, Waiting::Blocking).err().map(|error| errno(&error));
                ensure!(refused == Some(Errno::ECONNREFUSED as i32), "{} to {to}: {refused:?}", from.name());
                let datagrams = from.datagrams(family)?;
                datagrams.connect(to)?;
                let refused = datagrams.ask("nobody").err().map(|error| errno(&error));
                ensure!(
                    refused == Some(Errno::ECONNREFUSED as i32),
                    "{}, UDP, {to}: {refused:?}",
                    from.name()
                );
            }
        }
        lab.check()?;
    }
    Ok(())
}

#[test]
fn connections_through_the_node_survive_its_agents_restart_and_a_change_of_endpoints() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::On)?;
    let node = lab.node("a");
    manifests.apply(&web(&lab, &["near"]))?;
    let agent = Agent::start_with(node, &manifests, &PACKETS)?;
    agent.settle()?;
    let to = SocketAddr::new(node.address(Family::V4), NODE_PORT);
    let mut kept = lab.place("outside").connect(to, Waiting::Blocking)?;
    assert_eq!(kept.answer()?.who, "near");
    let load = Load::start(lab.place("outside"), to, 200);
    load.wait_for(20)?;
    agent.kill()?;
    manifests.apply(&web(&lab, &["far"]))?;
    load.wait_for(20)?;
    let agent = Agent::start_with(node, &manifests, &PACKETS)?;
    agent.settle()?;
    wait::until("new connections go to the other pod", || {
        let answer = lab.place("outside").ask_tcp(to)?;
        ensure!(answer.who == "far", "{answer:?}");
        Ok(())
    })?;
    let tally = load.stop();
    ensure!(tally.failures() == 0 && tally.answered.contains_key("near"), "{tally:?}");
    let answer = kept.ask("still there?")?;
    assert_eq!(answer.who, "near", "an established connection keeps its backend: {answer:?}");
    Ok(())
}
