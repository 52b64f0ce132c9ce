//! Repair through the pod's socket: a connected socket, or an unanswered greeting, whose backend serves no longer. The
//! socket is given its backend by the socket plane's own decision; its packets and their answers are real bytes.

mod plane;
mod wire;
mod world;

use plane::{End, Node};
use proxy_common::{
    Protocol::{self, Tcp, Udp},
    Reason,
    datapath::{Endpoint, Socket, socket},
    layout::{FrontendKind, LocalAddress, Pods, Policy},
};
use wire::{ACK, FIN, Frame, Ip, RST, SYN, icmp, seen, segment, transport};
use world::{Caller, POD, Storage, at, call, ip};

/// A client, what it dials, and the backends that there are: the last one is on this node.
struct Case {
    client: &'static str,
    dialled: &'static str,
    backends: [&'static str; 3],
}

const CASES: [Case; 2] = [
    Case {
        client: "10.0.0.2:1000",
        dialled: "10.96.0.1:53",
        backends: ["10.0.1.1:5353", "10.0.1.2:5353", "10.0.0.7:5353"],
    },
    Case {
        client: "[fd00:a::2]:1000",
        dialled: "[fd00:96::1]:53",
        backends: ["[fd00:b::1]:5353", "[fd00:b::2]:5353", "[fd00:a::7]:5353"],
    },
];

/// Of another pod.
const NEIGHBOUR: [u8; 6] = [2, 0, 0, 0, 0, 8];

fn end(text: &str) -> Endpoint {
    let address = wire::socket(text);
    at(&address.ip().to_string(), address.port())
}

/// A node with two pods on routed veths, and a pod's socket on it.
struct Story {
    node: Node,
    case: &'static Case,
    protocol: Protocol,
    socket: Storage,
}

impl Story {
    /// The socket has dialled while the first backend served alone.
    fn new(case: &'static Case, protocol: Protocol) -> Self {
        let mut node = Node::new();
        node.link("veth-a", Pods::All, "169.254.1.1", "fe80::1");
        node.link("veth-b", Pods::All, "169.254.1.1", "fe80::1");
        node.link("eth0", Pods::None, "192.168.0.1", "fd00:1::1");
        node.routes = vec![
            ("10.0.0.2", "veth-a"),
            ("10.0.0.7", "veth-b"),
            ("fd00:a::2", "veth-a"),
            ("fd00:a::7", "veth-b"),
            ("", "eth0"),
        ];
        for local in ["192.168.0.1", "fd00:1::1"] {
            node.ground.world.local.insert(ip(local), LocalAddress { node_port: 1 });
        }
        let dialled = end(case.dialled);
        for protocol in [Tcp, Udp] {
            let frontend = (dialled.address, dialled.port, protocol);
            node.ground.world.frontend(frontend.0, frontend.1, frontend.2, FrontendKind::ClusterIp, 0);
        }
        let mut story = Self { node, case, protocol, socket: Storage::default() };
        story.serve(&[case.backends[0]]);
        story.dial();
        story
    }

    fn both(protocol: Protocol) -> impl Iterator<Item = Self> {
        CASES.iter().map(move |case| Self::new(case, protocol))
    }

    fn serve(&mut self, backends: &[&str]) {
        let endpoints: Vec<_> = backends.iter().map(|backend| end(backend)).collect();
        let any = if endpoints.is_empty() { 0 } else { Policy::ANY_ENDPOINTS };
        self.node.ground.world.extent(0, &endpoints, &[], any | Policy::POD_DETECTOR, 0);
    }

    /// connect(): what the socket plane decides and remembers.
    fn dial(&mut self) {
        let dialled = wire::socket(self.case.dialled);
        let call = call(&dialled.ip().to_string(), dialled.port(), self.protocol);
        let verdict = socket::connect(&self.node.ground.world, &Caller::new(POD), &self.socket, &call);
        assert_eq!(verdict.reason(), Reason::Connected);
        self.node.ground.connected.set(self.socket.connected().map(|record| (self.protocol, record)));
    }

    fn number(&self) -> u8 {
        if self.protocol == Udp { 17 } else { 6 }
    }

    /// What the pod sends to a backend; where it goes, as text.
    fn sends(&mut self, backend: usize, flags: u8) -> String {
        let frame = segment(self.number(), self.case.client, self.case.backends[backend], flags, b"question");
        self.node.arrive("veth-a", frame).to_string()
    }

    fn sent(&self, backend: usize) -> String {
        let device = if backend == 2 { "veth-b" } else { "eth0" };
        format!("{device}: {} > {}", self.case.client, self.case.backends[backend])
    }

    /// What a backend sends to the pod; from whom it is then, as text.
    fn answers(&mut self, backend: usize, flags: u8) -> String {
        let device = if backend == 2 { "veth-b" } else { "eth0" };
        let frame = segment(self.number(), self.case.backends[backend], self.case.client, flags, b"answer");
        self.node.arrive(device, frame).to_string()
    }

    fn heard(&self, backend: usize) -> String {
        format!("veth-a: {} > {}", self.case.backends[backend], self.case.client)
    }

    /// The reason of where the last packet came in.
    fn reason(&self) -> Reason {
        self.node.reasons[self.node.reasons.len().saturating_sub(2)]
    }
}

#[test]
fn a_connected_datagram_socket_is_moved_when_its_backend_goes_and_hears_the_new_one_as_the_old() {
    for mut story in Story::both(Udp) {
        let backends = story.case.backends;
        assert_eq!(story.sends(0, 0), story.sent(0), "it serves");
        assert_eq!(story.node.reasons, [Reason::NotService, Reason::NotService]);
        assert_eq!(story.answers(0, 0), story.heard(0));
        story.serve(&[backends[1]]);
        assert_eq!(story.sends(0, 0), story.sent(1));
        assert_eq!(story.reason(), Reason::FlowRepaired);
        assert_eq!(story.sends(0, 0), story.sent(1), "kept");
        assert_eq!(story.reason(), Reason::FlowKept);
        assert_eq!(story.answers(1, 0), story.heard(0), "the socket takes answers of the first one only");
        let peer = socket::peer(&story.socket, &end(backends[0]));
        let socket::Verdict::Rewrite { to, .. } = peer else { panic!("{peer:?}") };
        assert_eq!(to, end(story.case.dialled), "getpeername() shows what was dialled");
        // The replacement goes too, and all of them are others now.
        story.serve(&[backends[2]]);
        assert_eq!(story.sends(0, 0), story.sent(2));
        assert_eq!(story.reason(), Reason::FlowRepaired);
        assert_eq!(story.answers(2, 0), story.heard(0));
    }
}

#[test]
fn a_moved_datagram_flow_stays_where_it_is_when_the_first_backend_is_back() {
    for mut story in Story::both(Udp) {
        let [first, second, _] = story.case.backends;
        story.serve(&[second]);
        assert_eq!(story.sends(0, 0), story.sent(1));
        story.serve(&[first, second]);
        assert_eq!(story.sends(0, 0), story.sent(1));
        assert_eq!(story.answers(1, 0), story.heard(0));
        story.serve(&[first]);
        assert_eq!(story.sends(0, 0), story.sent(0), "home again");
        assert_eq!(story.answers(0, 0), story.heard(0));
        // Forgotten, it is where it would be without.
        story.node.ground.flows.borrow_mut().clear();
        assert_eq!(story.sends(0, 0), story.sent(0));
        assert_eq!(story.reason(), Reason::NotService);
    }
}

#[test]
fn the_choice_is_the_flows_and_found_again_when_it_is_forgotten() {
    for mut story in Story::both(Udp) {
        let [_, second, third] = story.case.backends;
        story.serve(&[second, third]);
        let first = story.sends(0, 0);
        for _ in 0..3 {
            story.node.ground.flows.borrow_mut().clear();
            assert_eq!(story.sends(0, 0), first);
        }
        // Sockets are spread.
        let mut seen = std::collections::BTreeSet::new();
        for port in 1001..1050 {
            let client = story.case.client.replace("1000", &port.to_string());
            let frame = segment(17, &client, story.case.backends[0], 0, b"question");
            let End::Out(_, frame) = story.node.arrive("veth-a", frame) else { panic!("a way out") };
            seen.insert(wire::seen(&frame).destination);
        }
        assert_eq!(seen.len(), 2);
    }
}

#[test]
fn no_endpoint_refuses_a_connected_socket_and_it_is_served_as_soon_as_there_is_one() {
    for protocol in [Udp, Tcp] {
        for mut story in Story::both(protocol) {
            story.serve(&[]);
            for _ in 0..2 {
                let refused = story.sends(0, SYN);
                assert!(refused.starts_with("rejected by "), "{refused}");
                assert_eq!(story.node.last(), Reason::Rejected);
            }
            let backends = story.case.backends;
            story.serve(&backends[1..2]);
            assert_eq!(story.sends(0, SYN), story.sent(1));
            assert_eq!(story.answers(1, SYN | ACK), story.heard(0));
            // The other edge: a moved one whose replacement is the last to go.
            if protocol == Udp {
                story.serve(&[]);
                assert!(story.sends(0, 0).starts_with("rejected by "));
                story.serve(&backends[2..3]);
                assert_eq!(story.sends(0, 0), story.sent(2));
            }
        }
    }
}

#[test]
fn a_greeting_to_a_dead_backend_connects_elsewhere_and_stays_there() {
    for mut story in Story::both(Tcp) {
        let backends = story.case.backends;
        assert_eq!(story.sends(0, SYN), story.sent(0));
        story.serve(&[backends[1]]);
        assert_eq!(story.sends(0, SYN), story.sent(1), "sent again");
        assert_eq!(story.reason(), Reason::FlowRepaired);
        assert_eq!(story.answers(1, SYN | ACK), story.heard(0));
        // From here on what its socket dialled is not asked, and need not be visible.
        story.node.ground.connected.set(None);
        assert_eq!(story.sends(0, ACK), story.sent(1));
        story.serve(&[backends[2]]);
        assert_eq!(story.sends(0, ACK), story.sent(1), "established: never moved");
        story.serve(&[]);
        assert_eq!(story.sends(0, ACK), story.sent(1), "not refused either");
        assert_eq!(story.answers(1, ACK), story.heard(0));
        assert_eq!(story.sends(0, FIN | ACK), story.sent(1));
        assert_eq!(story.answers(1, FIN | ACK), story.heard(0));
    }
}

#[test]
fn an_established_connection_to_its_own_backend_is_never_moved() {
    for mut story in Story::both(Tcp) {
        assert_eq!(story.sends(0, SYN), story.sent(0));
        assert_eq!(story.answers(0, SYN | ACK), story.heard(0));
        let backends = story.case.backends;
        for serving in [&backends[1..2], &[]] {
            story.serve(serving);
            for flags in [ACK, FIN | ACK, RST] {
                assert_eq!(story.sends(0, flags), story.sent(0));
                assert_eq!(story.reason(), Reason::NotService);
            }
        }
    }
}

#[test]
fn the_first_backend_that_answers_a_moved_greeting_after_all_keeps_the_connection() {
    for mut story in Story::both(Tcp) {
        assert_eq!(story.sends(0, SYN), story.sent(0));
        let backends = story.case.backends;
        story.serve(&[backends[1]]);
        assert_eq!(story.sends(0, SYN), story.sent(1));
        assert_eq!(story.answers(0, SYN | ACK), story.heard(0), "late, and first");
        for _ in 0..2 {
            assert_eq!(story.sends(0, ACK), story.sent(0));
        }
        assert!(story.node.ground.keys().is_empty());
    }
}

#[test]
fn a_new_connection_from_the_port_of_a_moved_one_goes_where_its_socket_was_sent() {
    for mut story in Story::both(Tcp) {
        let backends = story.case.backends;
        story.serve(&[backends[1]]);
        assert_eq!(story.sends(0, SYN), story.sent(1));
        assert_eq!(story.answers(1, SYN | ACK), story.heard(0));
        assert_eq!(story.sends(0, RST), story.sent(1));
        story.serve(&[backends[0]]);
        story.dial();
        assert_eq!(story.sends(0, SYN), story.sent(0), "the first one serves again, and was given");
        assert_eq!(story.reason(), Reason::NotService);
    }
}

#[test]
fn a_new_socket_of_the_port_of_a_moved_one_hears_its_own_backend_as_itself() {
    for protocol in [Udp, Tcp] {
        for mut story in Story::both(protocol) {
            let backends = story.case.backends;
            story.serve(&[backends[1]]);
            assert_eq!(story.sends(0, SYN), story.sent(1));
            assert_eq!(story.answers(1, SYN | ACK), story.heard(0));
            // The new one is given at connect() whom the old one was moved to; or dials him directly.
            for record in [true, false] {
                if record {
                    story.dial();
                } else {
                    story.node.ground.connected.set(None);
                }
                assert_eq!(story.sends(1, SYN), story.sent(1));
                assert_eq!(story.answers(1, SYN | ACK), story.heard(1));
            }
            assert!(story.node.ground.keys().is_empty());
        }
    }
}

#[test]
fn a_socket_that_means_the_backend_itself_is_left_alone() {
    for protocol in [Udp, Tcp] {
        for mut story in Story::both(protocol) {
            let backends = story.case.backends;
            story.serve(&[backends[1]]);
            // Another backend than its record's: the record is the socket's, not the packet's.
            assert_eq!(story.sends(2, SYN), story.sent(2));
            // Moved once, and then another socket with the same port dials the old backend directly.
            assert_eq!(story.sends(0, SYN), story.sent(1));
            story.node.ground.connected.set(None);
            for _ in 0..2 {
                assert_eq!(story.sends(0, SYN), story.sent(0));
            }
            let answer = story.answers(0, SYN | ACK);
            assert_eq!(answer, story.heard(0));
        }
    }
}

#[test]
fn a_service_that_is_gone_moves_nobody() {
    for protocol in [Udp, Tcp] {
        for mut story in Story::both(protocol) {
            story.node.ground.world.frontends.clear();
            assert_eq!(story.sends(0, SYN), story.sent(0));
        }
    }
}

#[test]
fn who_is_moved_to_itself_hears_itself_through_the_node() {
    let mut story = Story::new(&CASES[0], Udp);
    story.serve(&["10.0.0.2:5353"]);
    let frame = segment(17, "10.0.0.2:1000", "10.0.1.1:5353", 0, b"question");
    let End::Out("veth-a", frame) = story.node.arrive("veth-a", frame) else { panic!("back to the pod") };
    let (from, to) = (seen(&frame).source, seen(&frame).destination);
    assert_eq!(from.ip().to_string(), "169.254.1.1");
    let answer = segment(17, &to.to_string(), &from.to_string(), 0, b"answer");
    let told = story.node.arrive("veth-a", answer).to_string();
    assert_eq!(told, "veth-a: 10.0.1.1:5353 > 10.0.0.2:1000");
}

#[test]
fn a_policy_that_keeps_the_backend_out_moves_nobody_and_source_ranges_end_who_would_be_moved() {
    let mut story = Story::new(&CASES[0], Udp);
    let [first, second, _] = story.case.backends.map(end);
    // It serves still, elsewhere: a change of policy cuts nothing.
    let policy = Policy::ANY_ENDPOINTS | Policy::INTERNAL_LOCAL;
    story.node.ground.world.extent(0, &[first], &[second], policy, 0);
    assert_eq!(story.sends(0, 0), story.sent(0));
    // It is gone, and what is left is elsewhere.
    story.node.ground.world.extent(0, &[second], &[], policy, 0);
    assert_eq!(story.sends(0, 0), "dropped: policy_dropped");
    // A load balancer's ranges that came later.
    let dialled = end(story.case.dialled);
    story.node.ground.world.frontends.clear();
    let balancer = FrontendKind::LoadBalancer;
    story.node.ground.world.frontend(dialled.address, dialled.port, Udp, balancer, 0);
    story.node.ground.world.extent(0, &[second], &[], Policy::ANY_ENDPOINTS | Policy::SOURCE_RANGES, 0);
    assert_eq!(story.sends(0, 0), "dropped: source_denied");
}

#[test]
fn whoever_serves_a_moved_socket_sees_the_pod_whatever_it_has_dialled() {
    for kind in [FrontendKind::LoadBalancer, FrontendKind::ExternalIp, FrontendKind::ClusterIp] {
        for mut story in Story::both(Udp) {
            let dialled = end(story.case.dialled);
            story.node.ground.world.frontends.clear();
            story.node.ground.world.frontend(dialled.address, dialled.port, Udp, kind, 0);
            story.serve(&story.case.backends[1..2]);
            assert_eq!(story.sends(0, 0), story.sent(1), "{kind:?}");
        }
    }
}

#[test]
fn affinity_chooses_for_all_moved_sockets_of_a_pod() {
    for mut story in Story::both(Udp) {
        let others: Vec<_> = story.case.backends[1..].iter().map(|backend| end(backend)).collect();
        story.node.ground.world.extent(0, &others, &[], Policy::ANY_ENDPOINTS, 10_800);
        let mut seen = std::collections::BTreeSet::new();
        for port in 1000..1020 {
            let client = story.case.client.replace("1000", &port.to_string());
            let frame = segment(17, &client, story.case.backends[0], 0, b"question");
            let End::Out(_, frame) = story.node.arrive("veth-a", frame) else { panic!("a way out") };
            seen.insert(wire::seen(&frame).destination);
        }
        assert_eq!(seen.len(), 1);
    }
}

#[test]
fn errors_about_moved_packets_are_shown_about_what_the_socket_sent() {
    let mut story = Story::new(&CASES[0], Udp);
    story.serve(&["10.0.1.2:5353"]);
    let question = segment(17, "10.0.0.2:1000", "10.0.1.1:5353", 0, b"question");
    let End::Out(_, moved) = story.node.arrive("veth-a", question) else { panic!("a way out") };
    let error = icmp("10.0.1.2", "10.0.0.2", [3, 3], [0; 4], &moved.bytes[14..]);
    let told = story.node.arrive("eth0", error).to_string();
    assert_eq!(told, "veth-a: 10.0.1.1 > 10.0.0.2 about 10.0.0.2:1000 > 10.0.1.1:5353");
}

#[test]
fn fragments_of_a_moved_datagram_follow_the_first() {
    let mut story = Story::new(&CASES[0], Udp);
    story.serve(&["10.0.1.2:5353"]);
    let (from, to) = (wire::socket("10.0.0.2:1000"), wire::socket("10.0.1.1:5353"));
    let whole = transport(17, from, to, 0, &[5; 200]);
    let piece = |offset: u16, more: u16, bytes: &[u8]| -> Frame {
        let mut ip = Ip::new(from.ip(), to.ip(), 17);
        ip.fragment = (9, (more << 13) | (offset / 8));
        ip.frame(bytes)
    };
    let first = story.node.arrive("veth-a", piece(0, 1, &whole[..80])).to_string();
    assert_eq!(first, "eth0: 10.0.0.2:1000 > 10.0.1.2:5353");
    let later = story.node.arrive("veth-a", piece(80, 0, &whole[80..])).to_string();
    assert_eq!(later, "eth0: 10.0.0.2 > 10.0.1.2");
}

#[test]
fn on_a_bridge_a_frame_that_goes_past_the_node_is_given_to_the_bridge_if_its_backend_serves_no_longer() {
    for protocol in [Udp, Tcp] {
        let mut story = Story::new(&CASES[0], protocol);
        let node = &mut story.node;
        node.link("br0", Pods::All, "10.0.0.1", "");
        node.port("veth-a", "br0", Pods::All);
        node.port("veth-b", "br0", Pods::All);
        node.port("veth-c", "br0", Pods::All);
        node.routes = vec![("10.0.0.", "br0"), ("", "eth0")];
        node.ports = vec![("10.0.0.2", "veth-a"), ("10.0.0.7", "veth-b"), ("10.0.0.8", "veth-c")];
        story.serve(&["10.0.0.7:5353"]);
        story.dial();
        let sends = |story: &mut Story, flags: u8| {
            let mut frame = segment(story.number(), "10.0.0.2:1000", "10.0.0.7:5353", flags, b"question");
            frame.bytes[..6].copy_from_slice(&NEIGHBOUR);
            story.node.reasons.clear();
            story.node.arrive("veth-a", frame).to_string()
        };
        let (past, moved) =
            ("veth-b: 10.0.0.2:1000 > 10.0.0.7:5353", "veth-c: 10.0.0.2:1000 > 10.0.0.8:5353");
        assert_eq!(sends(&mut story, SYN), past, "it serves");
        story.serve(&["10.0.0.8:5353"]);
        if protocol == Tcp {
            // A neighbour that is gone has no address that a greeting could be sent to.
            assert_eq!(sends(&mut story, SYN), past);
            continue;
        }
        for reason in [Reason::FlowRepaired, Reason::FlowKept] {
            assert_eq!(sends(&mut story, 0), moved);
            assert_eq!(story.node.reasons[..2], [reason, Reason::AlreadyTranslated]);
        }
        // The answer is bridged past the node, too.
        let mut answer = segment(17, "10.0.0.8:5353", "10.0.0.2:1000", 0, b"answer");
        answer.bytes[..6].copy_from_slice(&NEIGHBOUR);
        let record = story.node.ground.connected.take();
        let heard = story.node.arrive("veth-c", answer).to_string();
        assert_eq!(heard, "veth-a: 10.0.0.7:5353 > 10.0.0.2:1000");
        // Whoever sends there without such a socket is none of ours.
        assert_eq!(sends(&mut story, 0), past);
        assert_eq!(story.node.reasons[0], Reason::NotForHost);
        story.node.ground.connected.set(record);
        story.serve(&["10.0.1.2:5353"]);
        assert_eq!(sends(&mut story, 0), "eth0: 10.0.0.2:1000 > 10.0.1.2:5353");
        story.serve(&[]);
        assert_eq!(sends(&mut story, 0), "rejected by 10.0.0.7");
    }
}

#[test]
fn on_a_bridge_the_port_moves_it_and_the_bridge_does_not_again() {
    let mut story = Story::new(&CASES[0], Udp);
    let node = &mut story.node;
    node.link("br0", Pods::All, "10.0.0.1", "");
    node.port("veth-a", "br0", Pods::All);
    node.port("veth-b", "br0", Pods::All);
    node.routes = vec![("10.0.0.", "br0"), ("", "eth0")];
    node.ports = vec![("10.0.0.2", "veth-a"), ("10.0.0.7", "veth-b")];
    story.serve(&["10.0.0.7:5353"]);
    assert_eq!(story.sends(0, 0), "veth-b: 10.0.0.2:1000 > 10.0.0.7:5353");
    let reasons = &story.node.reasons;
    assert_eq!(reasons[..2], [Reason::FlowRepaired, Reason::AlreadyTranslated]);
    let answer = segment(17, "10.0.0.7:5353", "10.0.0.2:1000", 0, b"answer");
    assert_eq!(story.node.arrive("veth-b", answer).to_string(), "veth-a: 10.0.1.1:5353 > 10.0.0.2:1000");
}
