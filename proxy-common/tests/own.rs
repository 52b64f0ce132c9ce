//! What leaves a node by nobody's Service, from a NodePort's number or from the port of a flow: its answers are its own.

mod plane;
mod wire;
mod world;

use plane::{End, Node};
use proxy_common::{
    Protocol::{Sctp, Tcp, Udp},
    Reason,
    layout::{HandedOver, PacketPlane, Pods, Position},
};
use wire::{ACK, FIN, SYN, segment};
use world::ip;

/// An address of the node with a NodePort's number, as MASQUERADE gives it to a pod, or a socket takes it.
const NODE: &str = "192.168.0.1:30080";
const WORLD: &str = "198.51.100.7:443";
const CLIENT: &str = "203.0.113.9:5000";
const DIALLED: &str = "172.16.0.1:30080";
const BACKEND: &str = "10.0.1.1:8080";

/// A node port with one endpoint.
fn node() -> Node {
    Node::with_node_port(&[Tcp, Udp, Sctp])
}

/// A packet that says this in the words of TCP.
fn packet(protocol: u8, from: &str, to: &str, flags: u8) -> wire::Frame {
    let chunk = match flags {
        SYN => 1,
        flags if flags == SYN | ACK => 2,
        flags if flags & FIN != 0 => 7,
        _ => 0,
    };
    segment(protocol, from, to, if protocol == 132 { chunk } else { flags }, b"x")
}

/// What a socket of the node sends; what the wire sees.
fn send(node: &mut Node, protocol: u8, from: &str, to: &str, flags: u8) -> String {
    node.send(packet(protocol, from, to, flags)).to_string()
}

/// What arrives by the device that leads to the world.
fn arrive(node: &mut Node, protocol: u8, from: &str, to: &str, flags: u8) -> String {
    node.arrive("eth0", packet(protocol, from, to, flags)).to_string()
}

fn untouched(from: &str, to: &str) -> String {
    format!("eth0: {from} > {to}")
}

#[test]
fn answers_to_what_left_by_a_node_ports_number_are_not_for_the_service() {
    for protocol in [6, 17, 132] {
        let mut node = node();
        assert_eq!(send(&mut node, protocol, NODE, WORLD, SYN), untouched(NODE, WORLD));
        for flags in [SYN | ACK, ACK, ACK] {
            assert_eq!(arrive(&mut node, protocol, WORLD, NODE, flags), format!("local: {WORLD} > {NODE}"));
            assert_eq!(node.last(), Reason::OwnConnection);
            assert_eq!(send(&mut node, protocol, NODE, WORLD, ACK), untouched(NODE, WORLD));
            assert_eq!(node.last(), Reason::OwnConnection);
        }
        let others = arrive(&mut node, protocol, CLIENT, NODE, SYN);
        assert_eq!(others, "eth0: 192.168.0.1:".to_owned() + others.rsplit_once("192.168.0.1:").unwrap().1);
        assert!(others.ends_with(&format!("> {BACKEND}")), "others are served: {others}");
    }
}

#[test]
fn it_lasts_as_long_as_either_side_speaks_and_no_longer() {
    let mut node = node();
    assert_eq!(send(&mut node, 17, NODE, WORLD, 0), untouched(NODE, WORLD));
    for turn in 0..10 {
        let seconds = node.ground.plane.timeouts.udp;
        node.ground.seconds.set(node.ground.seconds.get() + seconds - 1);
        if turn % 2 == 0 {
            assert_eq!(arrive(&mut node, 17, WORLD, NODE, 0), format!("local: {WORLD} > {NODE}"));
        } else {
            assert_eq!(send(&mut node, 17, NODE, WORLD, 0), untouched(NODE, WORLD));
        }
    }
    node.ground.seconds.set(node.ground.seconds.get() + node.ground.plane.timeouts.udp_stream + 1);
    arrive(&mut node, 17, WORLD, NODE, 0);
    assert_eq!(node.last(), Reason::Masqueraded, "now it is a client's");
}

#[test]
fn who_was_asked_may_dial_the_node_port_from_the_same_port_afterwards() {
    let mut node = node();
    send(&mut node, 6, NODE, WORLD, SYN);
    arrive(&mut node, 6, WORLD, NODE, SYN | ACK);
    arrive(&mut node, 6, WORLD, NODE, SYN);
    assert_eq!(node.last(), Reason::OwnConnection, "not before it has ended");
    send(&mut node, 6, NODE, WORLD, FIN | ACK);
    arrive(&mut node, 6, WORLD, NODE, FIN | ACK);
    send(&mut node, 6, NODE, WORLD, ACK);
    arrive(&mut node, 6, WORLD, NODE, SYN);
    assert_eq!(node.last(), Reason::Masqueraded);
    let shown = shown(&node);
    assert_eq!(arrive(&mut node, 6, BACKEND, &shown, SYN | ACK), untouched(NODE, WORLD));
}

/// What the backend sees of the only client.
fn shown(node: &Node) -> String {
    let keys = node.ground.keys();
    let found = keys.iter().find(|(_, flow)| flow.has_masquerade() && !flow.is_own()).expect("masqueraded");
    format!("192.168.0.1:{}", found.1.shown_port)
}

#[test]
fn what_forwards_a_pod_is_known_like_what_a_socket_sends() {
    let mut node = node();
    node.link("pod0", Pods::All, "", "");
    // As MASQUERADE has left it.
    assert_eq!(node.arrive("pod0", segment(6, NODE, WORLD, SYN, b"")).to_string(), untouched(NODE, WORLD));
    assert_eq!(arrive(&mut node, 6, WORLD, NODE, SYN | ACK), format!("local: {WORLD} > {NODE}"));
}

#[test]
fn an_answer_to_nobodys_greeting_is_no_clients_first_packet() {
    let mut node = node();
    assert_eq!(arrive(&mut node, 6, WORLD, NODE, SYN | ACK), format!("local: {WORLD} > {NODE}"));
    assert_eq!(node.last(), Reason::NotService);
}

#[test]
fn what_is_no_frontends_number_is_not_remembered() {
    let mut node = node();
    for from in ["192.168.0.1:40000", "10.0.0.9:30080"] {
        send(&mut node, 6, from, WORLD, SYN);
        send(&mut node, 17, from, WORLD, 0);
        assert_eq!(node.last(), Reason::NotService);
    }
    assert!(node.ground.keys().is_empty());
}

#[test]
fn an_answer_of_what_is_handed_over_begins_nothing() {
    let mut node = node();
    node.ground.plane.handover = PacketPlane::LISTED;
    let end = |text: &str| {
        let socket: std::net::SocketAddr = text.parse().unwrap();
        proxy_common::datapath::Endpoint { address: socket.ip().into(), port: socket.port() }
    };
    let key = proxy_common::datapath::packet::key_of(&end(CLIENT), &end(DIALLED), Udp, Position::Ingress);
    let value = HandedOver {
        backend: ip("10.0.1.1").octets(),
        until: 2000,
        found: 1000,
        backend_port: 8080,
        version: HandedOver::VERSION,
        reserved: 0,
    };
    node.ground.handed_over.borrow_mut().insert(key, value);
    send(&mut node, 17, DIALLED, CLIENT, 0);
    assert!(node.ground.keys().is_empty());
    assert!(matches!(node.arrive("eth1", segment(17, CLIENT, DIALLED, 0, b"x")), End::Local(_)));
    assert_eq!(node.last(), Reason::HandedOver);
}

/// A client's connection, and the node's end that its backend sees.
fn open(node: &mut Node, protocol: u8) -> String {
    let End::Out("eth0", frame) = node.arrive("eth1", packet(protocol, CLIENT, DIALLED, SYN)) else {
        panic!("{:?}", node.last());
    };
    let shown = wire::seen(&frame).source.to_string();
    assert_eq!(answer(node, protocol, &shown, SYN | ACK), format!("eth1: {DIALLED} > {CLIENT}"));
    shown
}

fn answer(node: &mut Node, protocol: u8, to: &str, flags: u8) -> String {
    arrive(node, protocol, BACKEND, to, flags)
}

#[test]
fn a_socket_of_the_node_that_is_bound_to_a_flows_port_and_dials_its_backend_is_shown_with_another() {
    for protocol in [6, 17, 132] {
        let mut node = node();
        let flows = open(&mut node, protocol);
        let sent = send(&mut node, protocol, &flows, BACKEND, SYN);
        let own = sent.strip_prefix("eth0: ").and_then(|rest| rest.split_once(" > ")).unwrap().0.to_owned();
        assert_ne!(own, flows);
        assert_eq!(node.last(), Reason::Masqueraded);
        // Each has its own answers.
        for flags in [SYN | ACK, ACK] {
            assert_eq!(answer(&mut node, protocol, &own, flags), format!("local: {BACKEND} > {flows}"));
            assert_eq!(answer(&mut node, protocol, &flows, ACK), format!("eth1: {DIALLED} > {CLIENT}"));
            assert_eq!(send(&mut node, protocol, &flows, BACKEND, ACK), untouched(&own, BACKEND));
        }
        // Elsewhere its port is nobody's.
        assert_eq!(send(&mut node, protocol, &flows, WORLD, SYN), untouched(&flows, WORLD));
    }
}

#[test]
fn a_socket_on_a_flows_port_that_dials_anew_after_its_connection_ended_is_served_again() {
    let mut node = node();
    let flows = open(&mut node, 6);
    for _ in 0..3 {
        let sent = send(&mut node, 6, &flows, BACKEND, SYN);
        let own = sent.strip_prefix("eth0: ").and_then(|rest| rest.split_once(" > ")).unwrap().0.to_owned();
        assert_ne!(own, flows);
        assert_eq!(answer(&mut node, 6, &own, SYN | ACK), format!("local: {BACKEND} > {flows}"));
        send(&mut node, 6, &flows, BACKEND, FIN | ACK);
        answer(&mut node, 6, &own, FIN | ACK);
        send(&mut node, 6, &flows, BACKEND, ACK);
    }
    assert_eq!(answer(&mut node, 6, &flows, ACK), format!("eth1: {DIALLED} > {CLIENT}"));
}

#[test]
fn an_own_connection_that_lost_a_key_has_it_again_with_the_next_packet_that_finds_another() {
    for lost in 0..4 {
        let mut node = node();
        let flows = open(&mut node, 6);
        let sent = send(&mut node, 6, &flows, BACKEND, SYN);
        let own = sent.strip_prefix("eth0: ").and_then(|rest| rest.split_once(" > ")).unwrap().0.to_owned();
        answer(&mut node, 6, &own, SYN | ACK);
        send(&mut node, 6, &flows, BACKEND, ACK);
        let keys: Vec<_> =
            node.ground.keys().into_iter().filter(|(_, flow)| flow.is_own()).map(|(key, _)| key).collect();
        assert_eq!(keys.len(), 4);
        node.ground.evict(&keys[lost]);
        node.ground.seconds.set(node.ground.seconds.get() + 1);
        if keys[lost].position as u8 == Position::Egress as u8 {
            assert_eq!(answer(&mut node, 6, &own, ACK), format!("local: {BACKEND} > {flows}"));
        }
        assert_eq!(send(&mut node, 6, &flows, BACKEND, ACK), untouched(&own, BACKEND));
        assert_eq!(answer(&mut node, 6, &own, ACK), format!("local: {BACKEND} > {flows}"));
        assert_eq!(send(&mut node, 6, &flows, BACKEND, ACK), untouched(&own, BACKEND));
    }
}
