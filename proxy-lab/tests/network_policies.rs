//! What a Service says of its clients, for those who come as packets: traffic policies, source ranges, the addresses of
//! load balancers, affinity; and two connections that differ in nothing but the address dialled.

mod traffic;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{SockaddrStorage, bind, connect, setsockopt, sockopt};
use proxy_common::Reason;
use proxy_lab::{Agent, CALL_LIMIT, Family, Lab, Offload, Place, Service, SocketKind, Wiring};
use serde_json::json;
use traffic::{
    CLUSTER_IPS, NODE_PORT, PACKETS, PORT, TARGET, answers, cluster, count, near_and_far, one, reaches, seen,
    serve, start, web,
};

const BALANCERS: [&str; 2] = ["10.100.0.5", "fd00:100::5"];
const EXTERNAL: [&str; 2] = ["10.100.0.6", "fd00:100::6"];

/// Who is a pod.
const PODS: &str = "--cluster-cidr=10.244.0.0/16,fd00:244::/32";

/// The client's way to addresses of load balancers, which nobody in the lab has, is node `a`.
fn routes(lab: &Lab) -> Result<()> {
    let node = lab.node("a");
    for addresses in [BALANCERS, EXTERNAL] {
        for (family, to) in Family::ALL.into_iter().zip(addresses) {
            let via = node.address(family);
            lab.place("outside").ip(&[format!("route add {to} via {via} dev eth0")])?;
        }
    }
    Ok(())
}

fn balanced(lab: &Lab, pods: &[&str]) -> Service {
    let service = web(lab, pods).load_balancer_ip(BALANCERS[0]).load_balancer_ip(BALANCERS[1]);
    service.external_ip(EXTERNAL[0]).external_ip(EXTERNAL[1])
}

fn at(address: &str, port: u16) -> SocketAddr {
    let address: IpAddr = address.parse().unwrap_or_else(|_| panic!("{address}"));
    SocketAddr::new(address, port)
}

/// All that a client outside may dial of [`balanced`], in one family.
fn doors(lab: &Lab, family: Family) -> [SocketAddr; 3] {
    let number = usize::from(family == Family::V6);
    let node = SocketAddr::new(lab.node("a").address(family), NODE_PORT);
    [node, at(BALANCERS[number], PORT), at(EXTERNAL[number], PORT)]
}

/// That a datagram and a connection to `to` end without an answer, and that `reason` says so.
fn is_dropped(lab: &Lab, from: &Place, to: SocketAddr, reason: Reason) -> Result<()> {
    let before = count(lab.node("a"), reason)?;
    let datagrams = from.datagrams(Family::of(to.ip()))?;
    datagrams.connect(to)?;
    datagrams.socket().set_read_timeout(Some(Duration::from_millis(200)))?;
    datagrams.socket().send(b"anybody?")?;
    // A limited call is not begun again after a signal, for instance to a debugger.
    let answer = loop {
        match datagrams.receive() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            answer => break answer,
        }
    };
    let silent = answer.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    ensure!(silent, "{} to {to}: {answer:?}", from.name());
    let dropped = count(lab.node("a"), reason)? - before;
    ensure!(dropped > 0, "{} to {to}: {reason:?} was not counted", from.name());
    Ok(())
}

#[test]
fn load_balancer_and_external_ips_are_served_to_clients_outside() -> Result<()> {
    for wiring in Wiring::ALL {
        let (lab, manifests) = start(wiring, Offload::Off)?;
        routes(&lab)?;
        let agent = serve(lab.node("a"), &manifests, &[balanced(&lab, &["near"])])?;
        for endpoint in ["near", "far"] {
            manifests.apply(&balanced(&lab, &[endpoint]))?;
            agent.settle()?;
            for family in Family::ALL {
                for to in doors(&lab, family) {
                    reaches(lab.place("outside"), to, endpoint).with_context(|| format!("{wiring:?}"))?;
                }
            }
        }
        lab.check()?;
    }
    Ok(())
}

#[test]
fn a_local_external_policy_shows_the_clients_address_and_drops_where_no_endpoint_is() -> Result<()> {
    for wiring in Wiring::ALL {
        let (lab, manifests) = start(wiring, Offload::Off)?;
        routes(&lab)?;
        let outside = lab.place("outside");
        let local = |pods: &[&str]| balanced(&lab, pods).spec(&json!({"externalTrafficPolicy": "Local"}));
        manifests.apply(&local(&["near", "far"]))?;
        let [plane, sockets] = PACKETS;
        let agent = Agent::start_with(lab.node("a"), &manifests, &[plane, sockets, PODS])?;
        agent.settle()?;
        for family in Family::ALL {
            for to in doors(&lab, family) {
                let clients = reaches(outside, to, "near").with_context(|| format!("{wiring:?}"))?;
                assert_eq!(clients, one(outside.address(family)), "{to}");
            }
        }
        manifests.apply(&local(&["far"]))?;
        agent.settle()?;
        for family in Family::ALL {
            for to in doors(&lab, family) {
                is_dropped(&lab, outside, to, Reason::PolicyDropped)
                    .with_context(|| format!("{wiring:?}"))?;
                // Those known to be pods are short-circuited to the cluster set.
                reaches(lab.place("pod"), to, "far").with_context(|| format!("{wiring:?}"))?;
            }
        }
        lab.check()?;
    }
    Ok(())
}

#[test]
fn source_ranges_admit_and_deny_clients_outside_and_pods_at_load_balancer_addresses() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    routes(&lab)?;
    let (outside, pod) = (lab.place("outside"), lab.place("pod"));
    let only =
        |ranges: &[&str]| balanced(&lab, &["near"]).spec(&json!({ "loadBalancerSourceRanges": ranges }));
    let outsiders = ["192.168.77.0/24", "fd00:77::/64"];
    let pods = ["10.244.1.0/24", "fd00:244:1::/64"];
    let agent = serve(lab.node("a"), &manifests, &[only(&outsiders)])?;
    for (ranges, admitted, denied) in [(outsiders, outside, pod), (pods, pod, outside)] {
        manifests.apply(&only(&ranges))?;
        agent.settle()?;
        for (family, balancer) in Family::ALL.into_iter().zip(BALANCERS) {
            let balancer = at(balancer, PORT);
            reaches(admitted, balancer, "near")?;
            is_dropped(&lab, denied, balancer, Reason::SourceDenied)?;
            // Other addresses ask nobody where he comes from.
            let [node_port, _, external] = doors(&lab, family);
            for to in [node_port, external] {
                reaches(denied, to, "near")?;
            }
        }
    }
    lab.check()
}

#[test]
fn affinity_holds_a_client_outside_to_one_endpoint_over_all_addresses() -> Result<()> {
    let (lab, manifests) = start(Wiring::Bridged, Offload::Off)?;
    routes(&lab)?;
    let outside = lab.place("outside");
    let kept = balanced(&lab, &["near", "far"]).spec(&json!({ "sessionAffinity": "ClientIP" }));
    let agent = serve(lab.node("a"), &manifests, &[balanced(&lab, &["near", "far"])])?;
    let who = |to: SocketAddr| -> Result<BTreeSet<String>> {
        (0..24).map(|_| Ok(outside.ask_tcp(to)?.who)).collect()
    };
    for family in Family::ALL {
        let without = who(doors(&lab, family)[0])?;
        ensure!(without.len() == 2, "without affinity: {without:?}");
    }
    manifests.apply(&kept)?;
    agent.settle()?;
    for family in Family::ALL {
        let mut all = BTreeSet::new();
        for to in doors(&lab, family) {
            all.extend(who(to)?);
        }
        ensure!(all.len() == 1, "{family:?}: {all:?}");
    }
    lab.check()
}

/// A connection from this port, which others may have too.
fn from_port(place: &Place, port: u16, to: SocketAddr) -> Result<TcpStream> {
    let (domain, any): (_, IpAddr) = match to {
        SocketAddr::V4(_) => (libc::AF_INET, Ipv4Addr::UNSPECIFIED.into()),
        SocketAddr::V6(_) => (libc::AF_INET6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let socket = place.socket(SocketKind { domain, kind: libc::SOCK_STREAM, protocol: 0 })?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    // It leaves no TIME_WAIT.
    setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(CALL_LIMIT))?;
    stream.set_write_timeout(Some(CALL_LIMIT))?;
    bind(stream.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, port)))?;
    connect(stream.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(stream)
}

/// The last line of a server's two.
fn ask(stream: &mut TcpStream) -> Result<String> {
    stream.write_all(b"same port\n")?;
    let mut lines = BufReader::new(&*stream).lines();
    lines.next().context("a greeting")??;
    Ok(lines.next().context("an answer")??)
}

#[test]
fn one_client_port_talks_to_two_services_with_one_backend_at_the_same_time() -> Result<()> {
    for wiring in Wiring::ALL {
        let (lab, manifests) = start(wiring, Offload::Off)?;
        let node = lab.node("a");
        let other = Service::new("other").cluster_ip("10.96.0.11").cluster_ip("fd00:96::11");
        let other = other.tcp(PORT, TARGET).udp(PORT, TARGET).node_port(NODE_PORT + 1);
        let local = json!({"externalTrafficPolicy": "Local"});
        for policy in [json!({}), local] {
            let both = [web(&lab, &["near"]), other.clone().endpoints([lab.place("near")])];
            let _agent = serve(node, &manifests, &both.map(|service| service.spec(&policy)))?;
            for family in Family::ALL {
                let node_ports = [0, 1].map(|more| SocketAddr::new(node.address(family), NODE_PORT + more));
                let number = usize::from(family == Family::V6);
                let clusters =
                    [CLUSTER_IPS[number], ["10.96.0.11", "fd00:96::11"][number]].map(|one| at(one, PORT));
                for (from, doors) in [("outside", node_ports), ("pod", clusters)] {
                    let streams = doors.map(|to| from_port(lab.place(from), 5353, to));
                    for (to, stream) in doors.into_iter().zip(streams) {
                        let mut stream =
                            stream.with_context(|| format!("{wiring:?} {policy} {from} to {to}"))?;
                        let said = ask(&mut stream)?;
                        ensure!(
                            said.starts_with(r#"{"who":"near""#),
                            "{wiring:?} {policy} {from} to {to}: {said}"
                        );
                    }
                    let socket = lab.place(from).datagrams_from(family, 5353)?;
                    for turn in 0..3 {
                        for to in doors {
                            let (_, source) = socket.ask_to(to, "same port").with_context(|| {
                                format!("{wiring:?} {policy} {from} to {to}, turn {turn}")
                            })?;
                            assert_eq!(source, to, "{wiring:?} {policy}, {from}");
                        }
                    }
                }
            }
        }
        lab.check()?;
    }
    Ok(())
}

#[test]
fn a_cluster_ip_is_served_to_clients_outside_whose_way_to_it_is_this_node() -> Result<()> {
    for wiring in Wiring::ALL {
        let (lab, manifests) = start(wiring, Offload::Off)?;
        let node = lab.node("a");
        let outside = lab.place("outside");
        for (family, to) in Family::ALL.into_iter().zip(CLUSTER_IPS) {
            outside.ip(&[format!("route add {to} via {} dev eth0", node.address(family))])?;
        }
        let [plane, sockets] = PACKETS;
        let service = |pod: &str| web(&lab, &[pod]);
        near_and_far(&lab, &manifests, &[plane, sockets, PODS], service, |endpoint| {
            for family in Family::ALL {
                // Whoever is no pod is masqueraded.
                let clients = reaches(outside, cluster(family), endpoint)?;
                ensure!(!clients.contains(&outside.address(family)), "{wiring:?}: {clients:?}");
                let clients = reaches(lab.place("pod"), cluster(family), endpoint)?;
                assert_eq!(clients, one(lab.place("pod").address(family)), "{wiring:?}");
            }
            Ok(())
        })?;
        lab.check()?;
    }
    Ok(())
}

#[test]
fn with_masquerade_all_pods_are_seen_as_their_node() -> Result<()> {
    for wiring in Wiring::ALL {
        let (lab, manifests) = start(wiring, Offload::Off)?;
        let node = lab.node("a");
        let [plane, sockets] = PACKETS;
        let service = |pod: &str| web(&lab, &[pod]);
        near_and_far(&lab, &manifests, &[plane, sockets, "--masquerade-all"], service, |endpoint| {
            for family in Family::ALL {
                let clients = reaches(lab.place("pod"), cluster(family), endpoint)?;
                let of_node = node.addresses(family);
                ensure!(clients.iter().all(|client| of_node.contains(client)), "{wiring:?}: {clients:?}");
            }
            Ok(())
        })?;
        lab.check()?;
    }
    Ok(())
}

#[test]
fn a_node_port_is_served_on_the_nodes_second_address_too() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let node = lab.node("a");
    let _agent = serve(node, &manifests, &[web(&lab, &["near", "far"])])?;
    for family in Family::ALL {
        let to = SocketAddr::new(node.addresses(family)[1], NODE_PORT);
        let (who, _) = seen(&answers(lab.place("outside"), to)?);
        ensure!(!who.is_empty(), "{to}");
    }
    lab.check()
}
