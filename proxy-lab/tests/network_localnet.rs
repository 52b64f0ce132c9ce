//! Sockets that are bound to loopback and dial a node port there, and what that must not open to others (CVE-2020-8558).

mod traffic;

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use proxy_common::Reason;
use proxy_lab::{Agent, Family, Offload, Place, Waiting, Wiring};
use traffic::{NODE_PORT, count, near_and_far, start, web};

const BOTH: [&str; 1] = ["--packet-plane=on"];
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Where a process of the node listens on loopback alone.
const SECRET: u16 = 7777;

#[test]
fn a_socket_bound_to_loopback_reaches_endpoints_of_this_node_and_of_others() -> Result<()> {
    for (wiring, offload) in [(Wiring::Routed, Offload::On), (Wiring::Bridged, Offload::Off)] {
        let (lab, manifests) = start(wiring, offload)?;
        let node = lab.node("a");
        near_and_far(
            &lab,
            &manifests,
            &BOTH,
            |pod| web(&lab, &[pod]),
            |pod| {
                let to = SocketAddr::from((LOOPBACK, NODE_PORT));
                let from = SocketAddr::from((LOOPBACK, 0));
                // Nobody has asked for the way yet.
                node.ip(&["neigh flush all".into()])?;
                let mut seen = Vec::new();
                for waiting in Waiting::ALL {
                    let mut stream = node.connect_from(from, to, waiting).context("connect")?;
                    seen.push(stream.answer()?);
                    let much = stream.ask(&"long ".repeat(6000)).context("much")?;
                    ensure!(much.said.len() >= 29_999, "{} bytes came back", much.said.len());
                    ensure!(stream.peer()? == to && stream.local()?.ip() == LOOPBACK);
                }
                let unconnected = node.datagrams_at(from)?;
                for said in ["short", &"long ".repeat(800)] {
                    let (answer, source) = unconnected.ask_to(to, said).context("unconnected")?;
                    ensure!(source == to && answer.said.len() == said.len(), "{source}: {answer:?}");
                    seen.push(answer);
                }
                let connected = node.datagrams_at(from)?;
                connected.connect(to)?;
                let (answer, source) = connected.ask("connected").context("connected")?;
                ensure!(source == to);
                seen.push(answer);
                for answer in seen {
                    ensure!(answer.who == pod, "{answer:?}");
                    let client = answer.client.ip().to_canonical();
                    ensure!(!client.is_loopback(), "the endpoint saw {client}");
                }
                Ok(())
            },
        )
        .with_context(|| format!("{wiring:?}"))?;
        ensure!(count(node, Reason::Masqueraded)? > 0);
        lab.check()?;
    }
    Ok(())
}

#[test]
fn nobody_else_reaches_what_listens_on_loopback() -> Result<()> {
    for wiring in [Wiring::Routed, Wiring::Bridged] {
        let (lab, manifests) = start(wiring, Offload::Off)?;
        let node = lab.node("a");
        node.serve_on(&[LOOPBACK.into()], &[SECRET], &[SECRET])?;
        let secret = SocketAddr::from((LOOPBACK, SECRET));
        let attackers = ["pod", "outside"].map(|name| lab.place(name));
        for attacker in attackers {
            aim(attacker, lab.node("a"))?;
        }
        set(node, "all", "1")?;
        for attacker in attackers {
            let name = attacker.name();
            ensure!(
                attacker
                    .ask_tcp(secret)
                    .with_context(|| format!("{name}, {wiring:?}: the attack works"))?
                    .who
                    == "a"
            );
            ensure!(attacker.ask_udp(secret)?.who == "a");
        }
        set(node, "all", "0")?;
        manifests.apply(&web(&lab, &["near"]))?;
        let agent = Agent::start_with(node, &manifests, &BOTH)?;
        agent.settle()?;
        let served = node.connect_from((LOOPBACK, 0).into(), (LOOPBACK, NODE_PORT).into(), Waiting::Blocking);
        ensure!(served?.answer()?.who == "near", "the way in and out is open");
        for attacker in attackers {
            let before = count(node, Reason::Martian)?;
            ensure!(are_silent(&[attacker], secret), "{} with the agent", attacker.name());
            ensure!(count(node, Reason::Martian)? > before, "{} was seen", attacker.name());
        }
        drop(agent);
        ensure!(are_silent(&attackers, secret), "without the agent");
        lab.expect_errors();
    }
    Ok(())
}

#[test]
fn the_setting_that_loopback_needs_comes_with_the_programs_and_goes_before_them() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let node = lab.node("a");
    set(node, "eth0", "0")?;
    let agent = Agent::start_with(node, &manifests, &BOTH)?;
    agent.settle()?;
    ensure!(get(node, "eth0")? == "1" && get(node, "all")? == "0" && get(node, "lo")? == "0");
    agent.terminate()?;
    ensure!(get(node, "eth0")? == "1", "what is attached stays and serves");
    let other = [BOTH[0], "--iptables-localhost-nodeports=false"];
    let agent = Agent::start_with(node, &manifests, &other)?;
    agent.settle()?;
    ensure!(get(node, "eth0")? == "0", "nobody needs it");
    agent.terminate()?;
    let agent = Agent::start_with(node, &manifests, &BOTH)?;
    agent.settle()?;
    ensure!(get(node, "eth0")? == "1");
    agent.terminate()?;
    node.vipr(&["cleanup"])?;
    ensure!(get(node, "eth0")? == "0");
    set(node, "eth0", "1")?;
    let agent = Agent::start_with(node, &manifests, &BOTH)?;
    agent.settle()?;
    agent.terminate()?;
    node.vipr(&["cleanup"])?;
    ensure!(get(node, "eth0")? == "1", "it was somebody else's");
    lab.check()
}

/// Whether nothing answers any of these, by TCP or UDP; asked at once, for each waits as long as it would for an answer.
fn are_silent(attackers: &[&Place], to: SocketAddr) -> bool {
    std::thread::scope(|scope| {
        let tcp: Vec<_> = attackers.iter().map(|from| scope.spawn(|| from.ask_tcp(to).is_err())).collect();
        let udp: Vec<_> = attackers.iter().map(|from| scope.spawn(|| from.ask_udp(to).is_err())).collect();
        tcp.into_iter().chain(udp).all(|silent| silent.join().is_ok_and(|silent| silent))
    })
}

/// Give up one's own loopback, so that its addresses are somebody's beyond the device.
fn aim(attacker: &Place, node: &Place) -> Result<()> {
    set(attacker, "all", "1")?;
    let via = node.address(Family::V4);
    attacker.ip(&[
        "address delete 127.0.0.1/8 dev lo".into(),
        format!("route add {LOOPBACK}/32 via {via} dev eth0 onlink"),
    ])
}

fn set(place: &Place, device: &str, value: &str) -> Result<()> {
    let line = format!("echo {value} > /proc/sys/net/ipv4/conf/{device}/route_localnet");
    place.run("sh", &["-c", &line]).map(drop)
}

fn get(place: &Place, device: &str) -> Result<String> {
    let path = format!("/proc/sys/net/ipv4/conf/{device}/route_localnet");
    Ok(place.run("cat", &[&path])?.trim().to_owned())
}
