//! Hops that take shorter packets than the rest: whoever sends too long a packet through a Service hears of it in terms of
//! the address that it dialled.

mod traffic;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_common::Reason;
use proxy_lab::{
    Agent, BRIDGE, CALL_LIMIT, Family, Lab, Manifests, Offload, Place, SocketKind, Waiting, Wiring, wait,
};
use traffic::{NODE_PORT, PACKETS, PORT, cluster, count, start, web};

/// What the narrow hop takes, in bytes of IP.
const NARROW: u16 = 1300;
const BALANCERS: [&str; 2] = ["10.100.0.1", "fd00:100::1"];

/// Where a client outside dials the Service at node `a`.
fn doors(lab: &Lab, family: Family) -> Result<[SocketAddr; 2]> {
    let balancer = BALANCERS[usize::from(family == Family::V6)].parse()?;
    Ok([SocketAddr::new(lab.node("a").address(family), NODE_PORT), SocketAddr::new(balancer, PORT)])
}

/// Node `b` is the only way between the client and node `a`, and hands over less than they send.
fn narrow_before_the_node(lab: &Lab) -> Result<()> {
    let (a, b, outside) = (lab.node("a"), lab.node("b"), lab.place("outside"));
    // The short cut exists, and b would tell of it.
    for device in ["all", "eth0"] {
        b.run("sysctl", &["-qw", &format!("net.ipv4.conf.{device}.send_redirects=0")])?;
    }
    for place in [&**a, outside] {
        place.run("sysctl", &["-qw", "net.ipv6.conf.eth0.accept_redirects=0"])?;
    }
    for family in Family::ALL {
        let (node, client, router) = (a.address(family), outside.address(family), b.address(family));
        outside.ip(&[format!("route add {node} via {router} dev eth0")])?;
        a.ip(&[format!("route add {client} via {router} dev eth0")])?;
        b.ip(&[node, client].map(|to| format!("route add {to} dev eth0 mtu {NARROW}")))?;
        let balancer = doors(lab, family)?[1].ip();
        outside.ip(&[format!("route add {balancer} via {router} dev eth0")])?;
        b.ip(&[format!("route add {balancer} via {node} dev eth0 mtu {NARROW}")])?;
    }
    Ok(())
}

/// The last hop to the pod on the other node, and back from it the first.
fn narrow_before_the_pod(lab: &Lab, wiring: Wiring) -> Result<()> {
    let (a, b) = (lab.node("a"), lab.node("b"));
    for family in Family::ALL {
        let pod = lab.place("far").address(family);
        let device = if wiring == Wiring::Bridged { BRIDGE } else { "pod0" };
        b.ip(&[format!("route replace {pod} dev {device} mtu {NARROW}")])?;
        for back in [a.address(family), lab.place("pod").address(family)] {
            let via = a.address(family);
            let way = if back == via { String::new() } else { format!("via {via} ") };
            b.ip(&[format!("route add {back} {way}dev eth0 mtu {NARROW}")])?;
        }
    }
    Ok(())
}

/// A packet that says that another was too long: from whom, and to whom that other was sent.
fn too_big(place: &Place, family: Family, provoke: impl Fn() -> Result<()>) -> Result<(IpAddr, SocketAddr)> {
    let (domain, protocol) = match family {
        Family::V4 => (libc::AF_INET, libc::IPPROTO_ICMP),
        Family::V6 => (libc::AF_INET6, libc::IPPROTO_ICMPV6),
    };
    let raw = place.socket(SocketKind { domain, kind: libc::SOCK_RAW, protocol })?;
    // The standard library's type reads from any socket that is addressed by IP.
    let raw = std::net::UdpSocket::from(raw);
    raw.set_read_timeout(Some(CALL_LIMIT))?;
    provoke()?;
    let mut buffer = [0; 4096];
    loop {
        let (length, from) = raw.recv_from(&mut buffer)?;
        // IPv4's raw sockets show the header.
        let packet = &buffer[if family == Family::V4 { 20 } else { 0 }..length];
        let quoted = packet.get(8..).context("an error without a quotation")?;
        let (destination, port) = match (family, &packet[..2]) {
            (Family::V4, [3, 4]) => (IpAddr::from(<[u8; 4]>::try_from(&quoted[16..20])?), &quoted[22..24]),
            (Family::V6, [2, 0]) => (IpAddr::from(<[u8; 16]>::try_from(&quoted[24..40])?), &quoted[42..44]),
            _ => continue,
        };
        return Ok((from.ip(), SocketAddr::new(destination, u16::from_be_bytes([port[0], port[1]]))));
    }
}

/// Much, each way.
fn transfers(from: &Place, to: SocketAddr) -> Result<()> {
    let mut stream = from.connect(to, Waiting::Blocking)?;
    stream.answer()?;
    let much = "much ".repeat(6000);
    for turn in 0..20 {
        let answer =
            stream.ask(&much).with_context(|| format!("{} bytes to {to}, turn {turn}", much.len()))?;
        ensure!(answer.said == much, "{} bytes of {}", answer.said.len(), much.len());
    }
    Ok(())
}

/// Of a datagram that is too long its sender is told, and sends the next in fragments (Linux asks for DF by itself).
fn datagrams(from: &Place, to: SocketAddr) -> Result<()> {
    let family = Family::of(to.ip());
    let socket = from.datagrams(family)?;
    socket.connect(to)?;
    let long = "x".repeat(usize::from(NARROW) + 50);
    let (source, quoted) = too_big(from, family, || {
        socket.socket().send(long.as_bytes())?;
        Ok(())
    })
    .with_context(|| format!("what came about {to}"))?;
    ensure!(quoted == to, "told about {quoted}, dialled {to}");
    ensure!(source == to.ip(), "told by {source}, dialled {to}");
    // The first answer is too long for its way, too: its sender is told as well.
    socket.socket().set_read_timeout(Some(Duration::from_millis(100)))?;
    wait::until("a datagram as long is answered in fragments", || {
        let (answer, _) = socket.ask(&long)?;
        ensure!(answer.said == long);
        Ok(())
    })
}

#[test]
fn a_narrow_hop_between_client_and_node_is_found_from_both_sides() -> Result<()> {
    for wiring in Wiring::ALL {
        for offload in [Offload::Off, Offload::On] {
            let (lab, manifests) = start(wiring, offload)?;
            narrow_before_the_node(&lab)?;
            let agent = serves(&lab, &manifests, "near")?;
            let outside = lab.place("outside");
            for family in Family::ALL {
                for to in doors(&lab, family)? {
                    // What the pod has learnt of its client by the other door.
                    for family in ["-4", "-6"] {
                        lab.place("near").run("ip", &[family, "route", "flush", "cache"])?;
                    }
                    let before = count(lab.node("a"), Reason::ErrorTranslated)?;
                    transfers(outside, to).with_context(|| format!("{wiring:?}, {offload:?}: {to}"))?;
                    let told = count(lab.node("a"), Reason::ErrorTranslated)? - before;
                    ensure!(told > 0, "the pod was told nothing about {to}");
                }
            }
            drop(agent);
            lab.check()?;
        }
    }
    Ok(())
}

#[test]
fn a_narrow_hop_behind_the_node_is_told_as_if_the_service_were_a_host() -> Result<()> {
    for wiring in Wiring::ALL {
        for offload in [Offload::Off, Offload::On] {
            let (lab, manifests) = start(wiring, offload)?;
            narrow_before_the_pod(&lab, wiring)?;
            let agent = serves(&lab, &manifests, "far")?;
            for family in Family::ALL {
                let [node_port, balancer] = doors(&lab, family)?;
                let node = lab.node("a").address(family);
                lab.place("outside").ip(&[format!("route add {} via {node} dev eth0", balancer.ip())])?;
                for (from, to) in [("outside", node_port), ("outside", balancer), ("pod", cluster(family))] {
                    let from = lab.place(from);
                    let case = || format!("{wiring:?}, {offload:?}: {} to {to}", from.name());
                    // First: afterwards it is known how long packets may be.
                    datagrams(from, to).with_context(case)?;
                    transfers(from, to).with_context(case)?;
                }
            }
            drop(agent);
            lab.check()?;
        }
    }
    Ok(())
}

fn serves<'lab>(lab: &'lab Lab, manifests: &'lab Manifests, pod: &str) -> Result<Agent<'lab>> {
    let service = web(lab, &[pod]).load_balancer_ip(BALANCERS[0]).load_balancer_ip(BALANCERS[1]);
    manifests.apply(&service)?;
    let agent = Agent::start_with(lab.node("a"), manifests, &PACKETS)?;
    agent.settle()?;
    Ok(agent)
}
