//! Ports to masquerade with: where they are looked for, and who has to leave one to another.

mod plane;
mod wire;
mod world;

use plane::{End, Node};
use proxy_common::Protocol::{Tcp, Udp};
use wire::{ACK, FIN, RST, SYN, segment};

const DIALLED: &str = "172.16.0.1:30080";
const BACKEND: &str = "10.0.1.1:8080";

/// A node port with one endpoint, and a range of `first` ports to masquerade with and `more` besides.
fn node(first: (u16, u16), more: (u16, u16)) -> Node {
    let mut node = Node::with_node_port(&[Tcp, Udp]);
    let plane = &mut node.ground.plane;
    (plane.first_port, plane.last_port) = first;
    (plane.more_first_port, plane.more_last_port) = more;
    node
}

fn client(number: u16) -> String {
    format!("203.0.113.9:{}", 5000 + number)
}

/// What a client sends arrives; what the backend sees it come from, or what became of it.
fn dial(node: &mut Node, number: u16, protocol: u8, flags: u8) -> String {
    match node.arrive("eth1", segment(protocol, &client(number), DIALLED, flags, b"x")) {
        End::Out("eth0", frame) => wire::seen(&frame).source.to_string(),
        end => end.to_string(),
    }
}

/// What becomes of the backend's answer to what it saw.
fn answer(node: &mut Node, protocol: u8, to: &str, flags: u8) -> String {
    node.arrive("eth0", segment(protocol, BACKEND, to, flags, b"x")).to_string()
}

/// Open a client's connection.
fn open(node: &mut Node, number: u16) -> String {
    let shown = dial(node, number, 6, SYN);
    assert_eq!(answer(node, 6, &shown, SYN | ACK), format!("eth1: {DIALLED} > {}", client(number)));
    assert_eq!(dial(node, number, 6, ACK), shown);
    shown
}

#[test]
fn where_the_first_ports_are_taken_others_are_and_answers_to_them_are_known() {
    let mut node = node((61_000, 61_001), (20_000, 20_099));
    let shown: Vec<_> = (0..20).map(|number| open(&mut node, number)).collect();
    let beside = shown.iter().filter(|shown| shown.starts_with("192.168.0.1:20")).count();
    assert!(beside >= 18, "{shown:?}");
    let distinct: std::collections::BTreeSet<_> = shown.iter().collect();
    assert_eq!(distinct.len(), 20, "{shown:?}");
}

#[test]
fn a_connection_that_has_ended_leaves_its_port_to_a_new_one_and_a_live_one_does_not() {
    for end in [&[FIN | ACK, FIN | ACK, ACK][..], &[RST]] {
        let mut node = node((61_000, 61_000), (0, 0));
        let shown = open(&mut node, 0);
        assert_eq!(dial(&mut node, 1, 6, SYN), "dropped: no_port", "the port is in use");
        for (turn, flags) in end.iter().enumerate() {
            if turn == 1 {
                answer(&mut node, 6, &shown, *flags);
            } else {
                dial(&mut node, 0, 6, *flags);
            }
        }
        assert_eq!(open(&mut node, 1), shown, "its port rests for two minutes no longer");
        assert_eq!(dial(&mut node, 2, 6, SYN), "dropped: no_port");
        assert_eq!(answer(&mut node, 6, &shown, ACK), format!("eth1: {DIALLED} > {}", client(1)));
    }
}

#[test]
fn datagrams_never_take_a_port_from_others() {
    let mut node = node((61_000, 61_000), (0, 0));
    let shown = dial(&mut node, 0, 17, 0);
    assert_eq!(dial(&mut node, 1, 17, 0), "dropped: no_port");
    assert_eq!(answer(&mut node, 17, &shown, 0), format!("eth1: {DIALLED} > {}", client(0)));
}
