//! What is begun on a node from numbers that mean something to vipr: a pod's connection that a CNI's rule gave the number of a
//! NodePort, a socket that was bound to one, and a socket that was bound to the port of a masqueraded flow.

mod traffic;

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{SockaddrStorage, bind, connect, setsockopt, sockopt};
use proxy_common::Reason;
use proxy_lab::{CALL_LIMIT, Datagrams, Family, Offload, Place, SocketKind, Waiting, Wiring};
use traffic::{NODE_PORT, TARGET, count, reaches, serve, start, web};

/// Where the client outside serves.
const WORLD: u16 = 4430;

/// As CNIs do it, but always with the one number.
const RULES: &str = "table inet cni { chain post { type nat hook postrouting priority srcnat; \
     oifname eth0 meta l4proto { tcp, udp } th dport 4430 masquerade to :30080; }; }";

/// A connection of `place` by `port` of its own.
fn dial(place: &Place, port: u16, to: SocketAddr) -> Result<TcpStream> {
    let family = Family::of(to.ip());
    let domain = if family == Family::V4 { libc::AF_INET } else { libc::AF_INET6 };
    let kind = SocketKind { domain, kind: libc::SOCK_STREAM, protocol: 0 };
    let stream = TcpStream::from(place.socket(kind)?);
    stream.set_read_timeout(Some(CALL_LIMIT))?;
    stream.set_write_timeout(Some(CALL_LIMIT))?;
    setsockopt(&stream, sockopt::ReuseAddr, &true)?;
    bind(stream.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any(family), port)))?;
    connect(stream.as_raw_fd(), &SockaddrStorage::from(to))
        .with_context(|| format!("connect by port {port} to {to}"))?;
    Ok(stream)
}

fn any(family: Family) -> std::net::IpAddr {
    match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// One line there and back.
fn asks(stream: &TcpStream) -> Result<()> {
    let mut reader = BufReader::new(stream);
    let mut greeting = String::new();
    reader.read_line(&mut greeting).context("the greeting")?;
    (&*stream).write_all(b"there and back\n")?;
    let mut line = String::new();
    reader.read_line(&mut line).context("the answer")?;
    ensure!(line.contains("there and back"), "{line}");
    Ok(())
}

/// A connected datagram socket of `place` by `port` of its own.
fn datagrams(place: &Place, port: u16, to: SocketAddr) -> Result<Datagrams> {
    let socket = place.datagrams_from(Family::of(to.ip()), port)?;
    socket.connect(to)?;
    Ok(socket)
}

#[test]
fn what_a_cnis_rule_gives_a_node_ports_number_gets_its_answers() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let (node, outside, pod) = (lab.node("a"), lab.place("outside"), lab.place("pod"));
    outside.serve(&[WORLD], &[WORLD])?;
    node.run("nft", &[RULES])?;
    let _agent = serve(node, &manifests, &[web(&lab, &["near"])])?;
    for family in Family::ALL {
        let to = SocketAddr::new(outside.address(family), WORLD);
        let shown = SocketAddr::new(node.address(family), NODE_PORT);
        let before = count(node, Reason::OwnConnection)?;
        let mut stream = pod.connect(to, Waiting::Blocking).context("a connection to the world")?;
        let seen = stream.answer()?.client;
        ensure!(SocketAddr::new(seen.ip().to_canonical(), seen.port()) == shown, "not masqueraded: {seen}");
        stream.ask(&"long ".repeat(6000))?;
        let socket = pod.datagrams(family)?;
        for turn in 0..3 {
            let (answer, _) =
                socket.ask_to(to, "a datagram to the world").with_context(|| format!("{turn}"))?;
            ensure!(answer.client.port() == NODE_PORT, "{answer:?}");
        }
        let counted = count(node, Reason::OwnConnection)? - before;
        ensure!(counted > 8, "{counted} packets were known");
        // Others are served at that number all the while.
        reaches(outside, shown, "near")?;
        stream.ask("still there")?;
    }
    Ok(())
}

#[test]
fn a_socket_that_is_bound_to_a_node_ports_number_gets_its_answers() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let (node, outside) = (lab.node("a"), lab.place("outside"));
    outside.serve(&[WORLD], &[WORLD])?;
    let _agent = serve(node, &manifests, &[web(&lab, &["near"])])?;
    for family in Family::ALL {
        let to = SocketAddr::new(outside.address(family), WORLD);
        asks(&dial(node, NODE_PORT, to)?)?;
        let socket = datagrams(node, NODE_PORT, to)?;
        for _ in 0..3 {
            socket.ask("by a NodePort's number")?;
        }
        reaches(outside, SocketAddr::new(node.address(family), NODE_PORT), "near")?;
    }
    Ok(())
}

#[test]
fn a_socket_that_is_bound_to_a_flows_port_and_dials_its_backend_takes_nothing_from_it() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let (node, outside, near) = (lab.node("a"), lab.place("outside"), lab.place("near"));
    let _agent = serve(node, &manifests, &[web(&lab, &["near"])])?;
    for family in Family::ALL {
        let to = SocketAddr::new(node.address(family), NODE_PORT);
        let backend = SocketAddr::new(near.address(family), TARGET);
        let mut client = outside.connect(to, Waiting::Blocking)?;
        let shown = client.answer()?.client;
        let own = dial(node, shown.port(), backend).context("the node's own connection")?;
        asks(&own)?;
        client.ask("the client's connection goes on")?;

        let client = outside.datagrams(family)?;
        let (answer, _) = client.ask_to(to, "a datagram")?;
        let own = datagrams(node, answer.client.port(), backend)?;
        for _ in 0..3 {
            let (seen, _) = own.ask("the node's own datagram")?;
            ensure!(seen.client.port() != answer.client.port(), "{seen:?} is the client's, too");
            let (again, _) = client.ask_to(to, "the client's")?;
            ensure!(again.client == answer.client, "{again:?} was {answer:?}");
        }
    }
    Ok(())
}

#[test]
fn where_nearly_all_ports_are_the_sockets_flows_share_them() -> Result<()> {
    /// More than the 535 ports that are nobody's.
    const CLIENTS: usize = 800;
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let (node, outside, near) = (lab.node("a"), lab.place("outside"), lab.place("near"));
    node.run("sysctl", &["-qw", "net.ipv4.ip_local_port_range=1024 65000"])?;
    let _agent = serve(node, &manifests, &[web(&lab, &["near"])])?;
    let to = SocketAddr::new(node.address(Family::V4), NODE_PORT);
    let backend = SocketAddr::new(near.address(Family::V4), TARGET);
    let mut clients = Vec::new();
    let mut shared = Vec::new();
    for number in 0..CLIENTS {
        let mut stream =
            outside.connect(to, Waiting::Blocking).with_context(|| format!("client {number}"))?;
        let port = stream.answer()?.client.port();
        if port <= 65_000 {
            shared.push(port);
        }
        clients.push(stream);
    }
    ensure!(shared.len() > CLIENTS / 4, "{} share their port", shared.len());
    // Sockets of the node get the same ports, and reach the same backend.
    for port in shared.iter().take(50) {
        asks(&dial(node, *port, backend)?)?;
    }
    for stream in &mut clients {
        stream.ask("still there")?;
    }
    Ok(())
}
