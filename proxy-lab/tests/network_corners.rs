//! Corners in which proxies have failed their users, and which no other test's subject is (docs/corner-cases.md).

mod hooks;
mod traffic;

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use proxy_common::Reason;
use proxy_lab::wait::until_true;
use proxy_lab::{Agent, CALL_LIMIT, Family, Lab, Offload, Place, Service, SocketKind, Wiring};
use traffic::{
    CLUSTER_IPS, NODE_PORT, PACKETS, PORT, TARGET, cluster, count, one, reaches, serve, start, web,
};

fn at(place: &Place, family: Family, port: u16) -> SocketAddr {
    SocketAddr::new(place.address(family), port)
}

#[test]
fn a_process_that_has_a_node_ports_number_does_not_keep_it_from_the_service() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let node = lab.node("a");
    node.serve(&[NODE_PORT], &[NODE_PORT])?;
    let _agent = serve(node, &manifests, &[web(&lab, &["near"])])?;
    for family in Family::ALL {
        for from in [lab.place("outside"), lab.place("pod"), &**node] {
            reaches(from, at(node, family, NODE_PORT), "near")?;
        }
    }
    lab.check()
}

#[test]
fn a_load_balancers_address_that_is_the_nodes_own_leaves_the_nodes_other_ports_alone() -> Result<()> {
    // As where the load balancer runs on the nodes themselves and gives their addresses out.
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let (node, outside) = (lab.node("a"), lab.place("outside"));
    let own = 2222;
    node.serve(&[own], &[own])?;
    let balanced = |who: &str| {
        let service = Family::ALL.iter().fold(web(&lab, &[who]), |service, family| {
            service.load_balancer_ip(&node.address(*family).to_string())
        });
        let other = node.addresses(Family::V4)[1].to_string();
        service.external_ip(&other)
    };
    let agent = serve(node, &manifests, &[balanced("near")])?;
    for family in Family::ALL {
        for from in [outside, lab.place("pod"), &**node] {
            reaches(from, at(node, family, PORT), "near")?;
            reaches(from, at(node, family, NODE_PORT), "near")?;
            let answer = from.ask_tcp(at(node, family, own))?;
            ensure!(answer.who == "a", "{answer:?}");
        }
    }
    let external = SocketAddr::new(node.addresses(Family::V4)[1], PORT);
    reaches(outside, external, "near")?;
    // Without the balancer its address is the node's alone again, and NodePorts stay.
    manifests.apply(&web(&lab, &["near"]))?;
    agent.settle()?;
    for family in Family::ALL {
        ensure!(outside.ask_tcp(at(node, family, PORT)).is_err(), "nobody listens there");
        reaches(outside, at(node, family, NODE_PORT), "near")?;
    }
    lab.check()
}

#[test]
fn a_service_in_the_place_of_another_is_not_answered_by_the_first_ones_endpoints() -> Result<()> {
    for planes in [PACKETS, ["--packet-plane=on", "--socket-plane=all"]] {
        let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
        let (node, pod) = (lab.node("a"), lab.place("pod"));
        let first = web(&lab, &["near"]);
        manifests.apply(&first)?;
        let agent = Agent::start_with(node, &manifests, &planes)?;
        agent.settle()?;
        // One socket for all that is sent: what was remembered of it must not count.
        let sockets = [pod.datagrams_from(Family::V4, 5353)?, pod.datagrams_from(Family::V6, 5354)?];
        let who = |number: usize| -> Result<String> {
            Ok(sockets[number].ask_to(cluster(Family::ALL[number]), "who")?.0.who)
        };
        assert_eq!([who(0)?, who(1)?], ["near", "near"]);
        manifests.delete(&first)?;
        let second = Service::new("second").cluster_ip(CLUSTER_IPS[0]).cluster_ip(CLUSTER_IPS[1]);
        let second = second.tcp(PORT, TARGET).udp(PORT, TARGET).endpoints([lab.place("far")]);
        manifests.apply(&second)?;
        agent.settle()?;
        for (number, family) in Family::ALL.into_iter().enumerate() {
            assert_eq!(who(number)?, "far", "{planes:?}, {family:?}");
            let clients = reaches(pod, cluster(family), "far")?;
            assert_eq!(clients, one(pod.address(family)));
        }
        lab.check()?;
    }
    Ok(())
}

/// A raw socket, which the standard library's type serves as any that is addressed by IP.
fn raw(place: &Place, family: Family, protocol: i32) -> Result<UdpSocket> {
    let domain = if family == Family::V4 { libc::AF_INET } else { libc::AF_INET6 };
    let socket = UdpSocket::from(place.socket(SocketKind { domain, kind: libc::SOCK_RAW, protocol })?);
    socket.set_read_timeout(Some(CALL_LIMIT))?;
    Ok(socket)
}

/// Sends `said` by this protocol, and waits for it there.
fn arrives(from: &Place, to: &Place, family: Family, protocol: i32) -> Result<()> {
    let (near, far) = (raw(from, family, protocol)?, raw(to, family, protocol)?);
    let said = b"neither TCP nor UDP nor SCTP";
    near.send_to(said, (to.address(family), 0))?;
    let mut buffer = [0; 256];
    let (length, who) =
        far.recv_from(&mut buffer).with_context(|| format!("{} to {}", from.name(), to.name()))?;
    ensure!(buffer[..length].ends_with(said) && who.ip() == from.address(family), "{who}: {length} bytes");
    Ok(())
}

/// An echo of IPv4, asked and answered.
fn echoes(from: &Place, to: IpAddr) -> Result<()> {
    let socket = raw(from, Family::V4, libc::IPPROTO_ICMP)?;
    // Type, code, checksum, then an identifier that is also a NodePort's number.
    let (kind, id) = ([8_u8, 0], NODE_PORT.to_be_bytes());
    let sum = !(u16::from_be_bytes(kind) + NODE_PORT);
    let [high, low] = sum.to_be_bytes();
    socket.send_to(&[kind[0], kind[1], high, low, id[0], id[1], 0, 0], (to, 0))?;
    let mut buffer = [0; 256];
    let (length, who) = socket.recv_from(&mut buffer).with_context(|| format!("an echo of {to}"))?;
    let answer = &buffer[20..length];
    ensure!(who.ip() == to && answer[0] == 0 && answer[4..6] == id, "{who}: {answer:?}");
    Ok(())
}

#[test]
fn what_is_neither_tcp_nor_udp_nor_sctp_passes_the_node_as_it_is() -> Result<()> {
    const GRE: i32 = 47;
    const ESP: i32 = 50;
    const OSPF: i32 = 89;
    const VRRP: i32 = 112;
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let (node, pod, outside) = (lab.node("a"), lab.place("pod"), lab.place("outside"));
    // Its way to pods is their node.
    for family in Family::ALL {
        outside.ip(&[format!("route add {} via {} dev eth0", pod.address(family), node.address(family))])?;
    }
    let _agent = serve(node, &manifests, &[web(&lab, &["near"])])?;
    for family in Family::ALL {
        for protocol in [GRE, ESP, OSPF, VRRP] {
            for (from, to) in [
                (outside, &**node),
                (&**node, outside),
                (outside, pod),
                (pod, outside),
                (pod, lab.place("far")),
            ] {
                arrives(from, to, family, protocol).with_context(|| format!("protocol {protocol}"))?;
            }
        }
    }
    echoes(outside, node.address(Family::V4))?;
    echoes(outside, pod.address(Family::V4))?;
    echoes(pod, outside.address(Family::V4))?;
    echoes(node, pod.address(Family::V4))?;
    lab.check()
}

/// What ICMP says to an echo request: type and code of the first error that comes back.
fn refusal(from: &Place, to: IpAddr) -> Result<[u8; 2]> {
    let family = Family::of(to);
    let (protocol, request, header) = match family {
        // With its checksum; of IPv6 the kernel makes it.
        Family::V4 => (libc::IPPROTO_ICMP, [8, 0, 0xf7, 0xfd, 0, 1, 0, 1], 20),
        Family::V6 => (libc::IPPROTO_ICMPV6, [128, 0, 0, 0, 0, 1, 0, 1], 0),
    };
    let socket = raw(from, family, protocol)?;
    socket.send_to(&request, (to, 0))?;
    let mut buffer = [0; 256];
    loop {
        let (length, _) = socket.recv_from(&mut buffer).with_context(|| format!("a ping of {to}"))?;
        // Neighbours are looked for by ICMP, too.
        if let [kind @ (1 | 3), code, ..] = buffer[header..length] {
            return Ok([kind, code]);
        }
    }
}

/// As real kube-proxy 1.37 does it: port unreachable in mode nftables, and nothing in mode iptables.
#[test]
fn a_ping_of_a_cluster_ip_is_refused_in_mode_nftables_and_left_alone_in_mode_iptables() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let (node, pod, outside) = (lab.node("a"), lab.place("pod"), lab.place("outside"));
    for family in Family::ALL {
        let (to, by) = (cluster(family).ip(), node.address(family));
        outside.ip(&[format!("route add {to} via {by} dev eth0")])?;
    }
    manifests.apply(&web(&lab, &["near"]))?;
    let nftables = [&PACKETS[..], &["--proxy-mode=nftables"]].concat();
    let agent = Agent::start_with(node, &manifests, &nftables)?;
    agent.settle()?;
    for from in [pod, outside] {
        for (family, expected) in Family::ALL.into_iter().zip([[3, 3], [1, 4]]) {
            ensure!(refusal(from, cluster(family).ip())? == expected, "{} {family:?}", from.name());
            reaches(from, cluster(family), "near")?;
        }
    }
    ensure!(agent.terminate()?.success());

    let agent = Agent::start_with(node, &manifests, &PACKETS)?;
    agent.settle()?;
    let (refused, left) = (count(node, Reason::PortUndeclared)?, count(node, Reason::OtherTransport)?);
    let socket = raw(pod, Family::V4, libc::IPPROTO_ICMP)?;
    socket.send_to(&[8, 0, 0xf7, 0xfd, 0, 1, 0, 1], (cluster(Family::V4).ip(), 0))?;
    until_true("the ping passes", || count(node, Reason::OtherTransport).is_ok_and(|now| now > left))?;
    ensure!(count(node, Reason::PortUndeclared)? == refused, "it was refused");
    lab.check()
}

/// A second way between node `a` and the client, by devices whose indexes need more than 16 bits.
fn late_uplink(lab: &Lab) -> Result<()> {
    let (node, outside) = (lab.node("a"), lab.place("outside"));
    let peer = format!("netns {}", outside.pid());
    node.ip(&[format!("link add late0 index 70001 type veth peer name late0 index 70002 {peer}")])?;
    for (place, last) in [(&**node, 11), (outside, 101)] {
        place.ip(&[
            "link set late0 up".to_owned(),
            format!("address add 192.168.88.{last}/24 dev late0"),
            format!("address add fd00:88::{last}/64 dev late0 nodad"),
        ])?;
    }
    Ok(())
}

#[test]
fn a_device_with_an_index_beyond_16_bits_is_served_like_others() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let node = lab.node("a");
    let agent = serve(node, &manifests, &[web(&lab, &["near"])])?;
    late_uplink(&lab)?;
    hooks::until_hooked(node, "late0")?;
    agent.settle()?;
    for address in ["192.168.88.11", "fd00:88::11"] {
        reaches(lab.place("outside"), SocketAddr::new(address.parse()?, NODE_PORT), "near")?;
    }
    lab.check()
}
