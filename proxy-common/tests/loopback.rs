//! Packets with an address of loopback: those of the node's own sockets are masqueraded and answered, all others are dropped.

mod plane;
mod wire;
mod world;

use plane::{End, Node, ends};
use proxy_common::{
    Reason,
    datapath::{
        arp::show_asker,
        packet::{Facts, Verdict, decide},
    },
    layout::{LocalAddress, Pods, Position},
};
use wire::{ACK, FIN, FROM, Frame, RST, SYN, TO, framed, icmp, segment, udp};
use world::ip;

const SOCKET: &str = "127.0.0.1:40000";
const BACKEND: &str = "10.0.1.2:8080";

fn node() -> Node {
    let mut node = Node::new();
    node.link("eth0", Pods::None, "192.168.0.1", "fd00:1::1");
    node.routes = vec![("", "eth0")];
    for own in ["192.168.0.1", "127.0.0.1"] {
        node.ground.world.local.insert(ip(own), LocalAddress { node_port: LocalAddress::SERVED });
    }
    node
}

fn out(end: &End) -> String {
    match end {
        End::Out(_, frame) => ends(frame),
        other => panic!("{other}"),
    }
}

/// Sends from the socket and gives the address and port that the backend sees.
fn shown(node: &mut Node, protocol: u8, flags: u8) -> String {
    let sent = out(&node.send(segment(protocol, SOCKET, BACKEND, flags, b"four")));
    let (source, destination) = sent.split_once(" > ").expect("two ends");
    assert_eq!(destination, BACKEND);
    assert!(source.starts_with("192.168.0.1:"), "{sent}");
    source.to_owned()
}

#[test]
fn what_a_socket_on_loopback_sends_beyond_the_node_is_masqueraded_and_answered() {
    for protocol in [6, 17, 132] {
        let mut node = node();
        let first = shown(&mut node, protocol, SYN);
        for (sent, answered) in [(ACK, SYN | ACK), (ACK, ACK), (ACK | FIN, ACK | FIN)] {
            let answer = node.arrive("eth0", segment(protocol, BACKEND, &first, answered, b"four"));
            assert_eq!(answer.to_string(), format!("local: {BACKEND} > {SOCKET}"));
            assert_eq!(shown(&mut node, protocol, sent), first, "one connection is one client");
        }
    }
}

#[test]
fn a_connection_that_ended_may_be_dialled_again_from_the_same_port_of_loopback() {
    let mut node = node();
    let first = shown(&mut node, 6, SYN);
    node.arrive("eth0", segment(6, BACKEND, &first, SYN | ACK, b""));
    shown(&mut node, 6, ACK);
    node.arrive("eth0", segment(6, BACKEND, &first, RST | ACK, b""));
    let second = shown(&mut node, 6, SYN);
    let answer = node.arrive("eth0", segment(6, BACKEND, &second, SYN | ACK, b""));
    assert_eq!(answer.to_string(), format!("local: {BACKEND} > {SOCKET}"));
}

#[test]
fn a_flow_from_loopback_outlives_the_loss_of_any_of_its_keys() {
    let mut node = node();
    let first = shown(&mut node, 17, 0);
    let answer = |node: &mut Node| node.arrive("eth0", segment(17, BACKEND, &first, 0, b"")).to_string();
    answer(&mut node);
    let keys = node.ground.keys();
    assert_eq!(keys.len(), 4);
    for (key, _) in keys {
        node.ground.evict(&key);
        node.ground.seconds.set(node.ground.seconds.get() + 1);
        assert_eq!(shown(&mut node, 17, 0), first, "without {key:?}");
        assert_eq!(answer(&mut node), format!("local: {BACKEND} > {SOCKET}"));
    }
}

#[test]
fn an_error_about_such_a_packet_finds_the_socket() {
    let mut node = node();
    let first = shown(&mut node, 17, 0);
    let quoted = udp(&first, BACKEND);
    let error = icmp("203.0.113.1", "192.168.0.1", [3, 3], [0; 4], &quoted.bytes[14..]);
    let End::Local(frame) = node.arrive("eth0", error) else { panic!("it is the socket's") };
    assert_eq!(ends(&frame), format!("203.0.113.1 > 127.0.0.1 about {SOCKET} > {BACKEND}"));
}

/// What the wire brings, whatever it is and however it is wrapped.
fn martians() -> Vec<(&'static str, Frame)> {
    let to = |protocol, to| segment(protocol, "203.0.113.9:5", to, SYN, b"four");
    let tagged = |frame: &Frame, tags: &[[u8; 4]]| {
        let mut bytes = frame.bytes[..12].to_vec();
        bytes.extend(tags.concat());
        bytes.extend(&frame.bytes[12..]);
        Frame { bytes, header: 14 }
    };
    let plain = to(17, "127.0.0.1:53");
    let mut broadcast = plain.clone();
    broadcast.bytes[..6].fill(0xff);
    let mut cut = plain.clone();
    cut.bytes.truncate(14 + 20);
    let none = [0x81, 0, 0, 0];
    let error = icmp("203.0.113.9", "127.0.0.1", [3, 3], [0; 4], &udp(SOCKET, BACKEND).bytes[14..]);
    vec![
        ("tcp", to(6, "127.0.0.1:10249")),
        ("sctp", to(132, "127.0.0.1:5")),
        ("another address of loopback", to(6, "127.255.3.4:5")),
        ("from loopback", segment(6, "127.0.0.1:5", "192.168.0.1:30080", SYN, b"")),
        ("from and to loopback", segment(17, "127.0.0.1:5", "127.0.0.1:53", 0, b"")),
        ("an echo", icmp("203.0.113.9", "127.0.0.1", [8, 0], [0; 4], b"")),
        ("an error", error),
        ("for everybody", broadcast),
        ("cut short", cut),
        ("of VLAN 0", tagged(&plain, &[none])),
        ("of VLAN 0 twice", tagged(&plain, &[none, none])),
        ("of VLAN 0 as a provider's", tagged(&plain, &[[0x88, 0xa8, 0, 0], none])),
        ("in more tags than are looked behind", tagged(&plain, &[none; 6])),
        ("udp", plain),
    ]
}

#[test]
fn nothing_with_an_address_of_loopback_comes_in_whatever_it_is_wrapped_in() {
    let node = node();
    for (what, frame) in martians() {
        for tagged in [false, true] {
            let for_host = frame.bytes[..6] == TO;
            let device = &node.links["eth0"].facts;
            let facts = Facts { device, for_host, tagged, translated: false, local_socket: false };
            let (verdict, _) = decide(&node.ground, &node.ground, &facts, &frame, Position::Ingress);
            assert_eq!(verdict, Verdict::Drop(Reason::Martian), "{what}, tagged beside its bytes: {tagged}");
        }
    }
    assert_eq!(node.ground.keys().len(), 0, "and leaves nothing behind");
}

#[test]
fn a_mark_that_anybody_may_have_written_lets_nothing_in_but_answers() {
    let mut node = node();
    let meet = |node: &Node, frame: &Frame| {
        let device = &node.links["eth0"].facts;
        let facts = Facts { device, for_host: true, tagged: false, translated: true, local_socket: false };
        decide(&node.ground, &node.ground, &facts, frame, Position::Ingress).0
    };
    for (what, frame) in martians() {
        assert_eq!(meet(&node, &frame), Verdict::Drop(Reason::Martian), "{what}");
    }
    shown(&mut node, 17, 0);
    let passed = Verdict::Pass(Reason::AlreadyTranslated);
    assert_eq!(meet(&node, &segment(17, BACKEND, SOCKET, 0, b"")), passed, "a bridge's port gave it back");
    let other = segment(17, BACKEND, "127.0.0.1:53", 0, b"");
    assert_eq!(meet(&node, &other), Verdict::Drop(Reason::Martian));
    let plain = segment(17, BACKEND, "192.168.0.1:53", 0, b"");
    assert_eq!(meet(&node, &plain), passed, "nothing else is looked at");
}

#[test]
fn who_asks_for_the_way_of_such_a_packet_is_the_device() {
    let device = node().links["eth0"].facts;
    let question = |sender: [u8; 4]| {
        let mut bytes = [&[0xff; 6][..], &FROM, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &FROM].concat();
        bytes.extend(sender);
        bytes.extend([0, 0, 0, 0, 0, 0, 10, 0, 1, 2]);
        Frame { bytes, header: 14 }
    };
    let mut frame = question([127, 0, 0, 1]);
    assert!(show_asker(&mut frame, &device));
    assert_eq!(frame.bytes, question([192, 168, 0, 1]).bytes);
    let mut own = question([192, 168, 0, 7]);
    assert!(show_asker(&mut own, &device));
    assert_eq!(own.bytes, question([192, 168, 0, 7]).bytes, "others' questions are theirs");
    let mut ip = framed(&udp(SOCKET, BACKEND).bytes[14..]);
    let before = ip.bytes.clone();
    assert!(show_asker(&mut ip, &device));
    assert_eq!(ip.bytes, before);
}
