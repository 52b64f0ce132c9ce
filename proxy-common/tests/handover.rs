//! Taking over from another proxy: what it began is left to netfilter as long as that remembers it, and what is dialled anew is
//! ours.

mod plane;
mod wire;
mod world;

use plane::{End, Node};
use proxy_common::{
    Address,
    Protocol::{self, Sctp, Tcp, Udp},
    Reason,
    datapath::{Endpoint, packet::key_of},
    layout::{HandedOver, PacketPlane, Policy, Position},
};
use wire::{ACK, FIN, SYN, segment};
use world::at;

const CLIENT: &str = "203.0.113.9:5000";
const DIALLED: &str = "172.16.0.1:30080";
const BACKEND: &str = "10.0.1.1:8080";

/// A node port with one endpoint, in the middle of a takeover.
fn node(handover: u32) -> Node {
    let mut node = Node::with_node_port(&[Tcp, Udp, Sctp]);
    node.ground.plane.handover = handover;
    node
}

fn end(text: &str) -> Endpoint {
    let socket: std::net::SocketAddr = text.parse().expect("an address and a port");
    Endpoint { address: socket.ip().into(), port: socket.port() }
}

/// Netfilter has a connection until this second: the key of what `from` sends, and who serves it (empty: these are answers).
fn list(node: &Node, protocol: Protocol, from: &str, to: &str, backend: &str, until: u32) {
    let backend =
        if backend.is_empty() { Endpoint { address: Address::ANY_V6, port: 0 } } else { end(backend) };
    let value = HandedOver {
        backend: backend.address.octets(),
        until,
        found: node.ground.seconds.get(),
        backend_port: backend.port,
        version: HandedOver::VERSION,
        reserved: 0,
    };
    let key = key_of(&end(from), &end(to), protocol, Position::Ingress);
    node.ground.handed_over.borrow_mut().insert(key, value);
}

/// A client's packet arrives: whether it is left alone.
fn is_left(node: &mut Node, protocol: u8, flags: u8) -> bool {
    let end = node.arrive("eth1", segment(protocol, CLIENT, DIALLED, flags, b"x"));
    let left = end.to_string() == format!("local: {CLIENT} > {DIALLED}");
    assert_eq!(left, node.last() == Reason::HandedOver, "{end}");
    left
}

#[test]
fn while_the_list_is_made_whatever_is_in_the_middle_of_a_connection_is_left_alone() {
    let mut node = node(PacketPlane::TAKING_OVER);
    for flags in [ACK, SYN | ACK, FIN | ACK] {
        assert!(is_left(&mut node, 6, flags));
    }
    assert!(!is_left(&mut node, 6, SYN), "a new connection");
    assert!(!is_left(&mut node, 6, ACK), "which is ours from then on");
    assert!(!is_left(&mut node, 17, 0), "a datagram has no middle");
    assert!(is_left(&mut node, 132, ACK));
    node.ground.plane.handover = 0;
    assert!(!is_left(&mut node, 132, ACK));
}

#[test]
fn afterwards_exactly_what_is_listed_is_left_alone() {
    let mut node = node(PacketPlane::LISTED);
    assert!(!is_left(&mut node, 6, ACK), "one of ours that was forgotten: served by the backend that it had");
    let mut node = self::node(PacketPlane::LISTED);
    list(&node, Tcp, CLIENT, DIALLED, BACKEND, 2000);
    assert!(is_left(&mut node, 6, ACK));
    assert!(!is_left(&mut node, 6, SYN), "who dials anew is served by us");
    assert!(!is_left(&mut node, 6, ACK), "though the old connection is still listed");
    node.ground.plane.handover = 0;
    assert!(!is_left(&mut node, 6, ACK));
}

#[test]
fn a_connection_whose_backend_serves_no_longer_is_kept_and_a_datagram_is_not() {
    let mut node = node(PacketPlane::LISTED);
    for (protocol, number) in [(Tcp, 6), (Udp, 17)] {
        list(&node, protocol, CLIENT, DIALLED, BACKEND, 2000);
        assert!(is_left(&mut node, number, ACK), "{protocol:?}");
    }
    node.ground.world.extent(0, &[at("10.0.1.2", 8080)], &[], Policy::ANY_ENDPOINTS, 0);
    assert!(is_left(&mut node, 6, ACK));
    assert!(!is_left(&mut node, 17, 0));
    assert_eq!(node.reasons[node.reasons.len() - 2], Reason::FlowOpened);
}

#[test]
fn a_datagram_is_left_alone_as_long_as_netfilter_is_known_to_remember_its_flow() {
    let mut node = node(PacketPlane::LISTED);
    list(&node, Udp, CLIENT, DIALLED, BACKEND, 1010);
    // Each datagram makes netfilter remember longer, whether or not the agent sees it.
    for _ in 0..10 {
        assert!(is_left(&mut node, 17, 0));
        node.ground.seconds.set(node.ground.seconds.get() + node.ground.plane.timeouts.udp - 1);
    }
    node.ground.seconds.set(node.ground.seconds.get() + 1);
    assert!(!is_left(&mut node, 17, 0), "silent for too long");

    let mut node = self::node(PacketPlane::LISTED);
    list(&node, Udp, CLIENT, DIALLED, BACKEND, 1120);
    assert!(is_left(&mut node, 17, 0));
    node.ground.seconds.set(1119);
    assert!(is_left(&mut node, 17, 0), "what netfilter said is not cut short");
}

#[test]
fn answers_to_a_port_that_means_a_service_here_are_left_alone() {
    let mut node = node(PacketPlane::LISTED);
    // MASQUERADE takes any port, also the number of a node port.
    let answer = |node: &mut Node| {
        node.arrive("eth0", segment(6, BACKEND, "192.168.0.1:30080", SYN | ACK, b"")).to_string()
    };
    list(&node, Tcp, BACKEND, "192.168.0.1:30080", "", 2000);
    assert_eq!(answer(&mut node), format!("local: {BACKEND} > 192.168.0.1:30080"));
    assert_eq!(node.last(), Reason::HandedOver);
}

#[test]
fn no_flow_of_ours_is_given_a_port_that_netfilter_masquerades_with_towards_the_same_backend() {
    let mut node = node(PacketPlane::LISTED);
    let plane = &mut node.ground.plane;
    (plane.first_port, plane.last_port, plane.more_first_port) = (61_000, 61_003, 0);
    for port in 61_000..61_003 {
        list(&node, Tcp, BACKEND, &format!("192.168.0.1:{port}"), "", 2000);
    }
    match node.arrive("eth1", segment(6, CLIENT, DIALLED, SYN, b"")) {
        End::Out("eth0", frame) => assert_eq!(wire::seen(&frame).source.port(), 61_003),
        end => panic!("{end}"),
    }
}
