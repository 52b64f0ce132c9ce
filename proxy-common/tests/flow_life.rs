//! The life of one flow: how long silence may last, what ends it, and what each of its addresses may become meanwhile.

mod plane;
mod wire;
mod world;

use plane::{End, Node};
use proxy_common::{
    Address,
    Protocol::{self, Sctp, Tcp, Udp},
    Reason,
    datapath::flow::Stage,
    layout::{Device, FlowKey, FrontendKind, LocalAddress, Policy, Position},
};
use wire::{ACK, FIN, RST, SYN, segment};
use world::{at, ip};

const CLIENT: &str = "203.0.113.9:5000";
const DIALLED: &str = "172.16.0.1:30080";

/// One service behind a node port; from outside it is masqueraded.
fn node() -> Node {
    Node::with_node_port(&[Tcp, Udp, Sctp])
}

fn serve(node: &mut Node, backends: &[&str]) {
    let endpoints: Vec<_> = backends.iter().map(|address| at(address, 8080)).collect();
    let any = if endpoints.is_empty() { 0 } else { Policy::ANY_ENDPOINTS };
    node.ground.world.extent(0, &endpoints, &[], any, 0);
}

/// What the client sends, as the backend sees it: source, destination.
fn send(node: &mut Node, protocol: u8, flags: u8) -> (String, String) {
    match node.arrive("eth1", segment(protocol, CLIENT, DIALLED, flags, b"x")) {
        End::Out("eth0", frame) => {
            let seen = wire::seen(&frame);
            (seen.source.to_string(), seen.destination.to_string())
        }
        end => panic!("{end}"),
    }
}

/// Whether an answer is given to the client.
fn answered(node: &mut Node, protocol: u8, ends: &(String, String), flags: u8) -> bool {
    let end = node.arrive("eth0", segment(protocol, &ends.1, &ends.0, flags, b"x")).to_string();
    let translated = end == format!("eth1: {DIALLED} > {CLIENT}");
    assert!(translated || end == format!("local: {} > {}", ends.1, ends.0), "{end}");
    translated
}

fn pass(node: &Node, seconds: u32) {
    node.ground.seconds.set(node.ground.seconds.get() + seconds);
}

#[test]
fn a_flow_lasts_as_long_as_netfilter_would_let_it() {
    let t = node().ground.plane.timeouts;
    // Client's segments before the answer, the answer's, the client's after it, the backend's last, and the time.
    type Case = (Protocol, u8, &'static [u8], &'static [u8], &'static [u8], u32);
    let cases: [Case; 14] = [
        (Tcp, SYN, &[SYN | ACK], &[], &[], t.tcp_syn_received),
        (Tcp, SYN, &[SYN | ACK], &[ACK], &[], t.tcp_established),
        (Tcp, SYN, &[SYN | ACK], &[ACK, FIN | ACK], &[], t.tcp_fin_wait),
        (Tcp, SYN, &[SYN | ACK], &[ACK, FIN | ACK], &[ACK], t.tcp_close_wait),
        (Tcp, SYN, &[SYN | ACK], &[ACK, FIN | ACK], &[ACK, FIN | ACK], t.tcp_last_ack),
        (Tcp, SYN, &[SYN | ACK], &[ACK, RST], &[], t.tcp_close),
        (Tcp, SYN, &[RST | ACK], &[], &[], t.tcp_close),
        (Udp, 0, &[0], &[], &[], t.udp_stream),
        (Sctp, 1, &[2], &[], &[], t.sctp_cookie),
        (Sctp, 1, &[2], &[10], &[11], t.sctp_established),
        (Sctp, 1, &[2], &[10], &[11, 7], t.sctp_shutdown),
        (Sctp, 1, &[2], &[10, 6], &[], t.sctp_closed),
        (Tcp, SYN, &[], &[], &[], t.tcp_syn_sent),
        (Udp, 0, &[], &[], &[], t.udp),
    ];
    for (protocol, first, answer, then, last, seconds) in cases {
        for (wait, alive) in [(seconds, true), (seconds + 1, false)] {
            let mut node = node();
            let number = protocol as u8;
            let ends = send(&mut node, number, first);
            for flags in answer {
                answered(&mut node, number, &ends, *flags);
            }
            for flags in then {
                send(&mut node, number, *flags);
            }
            for flags in last {
                answered(&mut node, number, &ends, *flags);
            }
            pass(&node, wait);
            let what = format!("{protocol} {first} {answer:?} {then:?} {last:?} after {wait} s");
            assert_eq!(answered(&mut node, number, &ends, ACK), alive, "{what}");
            assert_eq!(node.ground.keys().is_empty(), !alive, "what is over is removed: {what}");
        }
    }
}

#[test]
fn a_flow_is_confirmed_once_its_client_has_heard_the_answer_and_is_in_one_table_only() {
    // The client's first packet, the answer, and what the client says to it.
    for (protocol, stage, flags, answer, then) in [
        (6, Stage::Tcp, SYN, SYN | ACK, Some(ACK)),
        (17, Stage::Udp, 0, 0, None),
        (132, Stage::Sctp, 1, 2, Some(10)),
    ] {
        let mut node = node();
        let stages = |node: &Node| -> Vec<Stage> {
            node.ground.flows.borrow().keys().map(|(stage, _)| *stage).collect()
        };
        let ends = send(&mut node, protocol, flags);
        assert_eq!(stages(&node), [stage; 4]);
        assert!(answered(&mut node, protocol, &ends, answer));
        if let Some(flags) = then {
            assert_eq!(stages(&node), [stage; 4], "so are greetings from forged addresses answered");
            send(&mut node, protocol, flags);
        }
        assert_eq!(stages(&node), [Stage::Confirmed; 4]);
    }
    for client in [None, Some(RST), Some(SYN)] {
        let mut node = node();
        let ends = send(&mut node, 6, SYN);
        answered(&mut node, 6, &ends, if client.is_some() { SYN | ACK } else { RST | ACK });
        if let Some(flags) = client {
            send(&mut node, 6, flags);
        }
        assert!(
            node.ground.flows.borrow().keys().all(|(stage, _)| *stage == Stage::Tcp),
            "a refusal confirms nothing, nor does a client that takes it back or greets again: {client:?}"
        );
    }
}

#[test]
fn a_packet_that_another_cpu_saw_a_second_later_does_not_end_its_flow() {
    for protocol in [6, 17] {
        let mut node = node();
        let ends = send(&mut node, protocol, SYN);
        pass(&node, 1);
        assert!(answered(&mut node, protocol, &ends, SYN | ACK));
        // Its clock was read before the other's.
        node.ground.seconds.set(node.ground.seconds.get() - 1);
        let before = node.ground.keys().len();
        assert_eq!(send(&mut node, protocol, ACK), ends);
        assert_eq!(node.last(), Reason::Masqueraded);
        assert!(!node.reasons[2..].contains(&Reason::FlowOpened), "{:?}", node.reasons);
        assert_eq!(node.ground.keys().len(), before);
    }
}

#[test]
fn datagrams_go_to_a_backend_that_serves_from_the_next_one_on() {
    let mut node = node();
    let ends = send(&mut node, 17, 0);
    assert!(answered(&mut node, 17, &ends, 0));
    serve(&mut node, &["10.0.1.2"]);
    let moved = send(&mut node, 17, 0);
    assert_eq!(moved.1, "10.0.1.2:8080");
    assert!(node.reasons.contains(&Reason::FlowMoved));
    assert!(answered(&mut node, 17, &moved, 0));
    assert!(!answered(&mut node, 17, &ends, 0), "the old backend is nobody's now");
    serve(&mut node, &[]);
    let end = node.arrive("eth1", segment(17, CLIENT, DIALLED, 0, b"x")).to_string();
    assert_eq!(end, "rejected by 172.16.0.1", "and none from the moment that nobody does");
    assert!(node.ground.keys().is_empty());
    serve(&mut node, &["10.0.1.3"]);
    assert_eq!(send(&mut node, 17, 0).1, "10.0.1.3:8080");
}

#[test]
fn datagrams_of_a_service_that_is_gone_are_left_alone() {
    let mut node = node();
    send(&mut node, 17, 0);
    node.ground.world.frontends.clear();
    let end = node.arrive("eth1", segment(17, CLIENT, DIALLED, 0, b"x")).to_string();
    assert_eq!(end, format!("local: {CLIENT} > {DIALLED}"));
    assert!(node.ground.keys().is_empty());
}

#[test]
fn a_policy_that_changes_cuts_no_datagrams() {
    let mut node = node();
    let ends = send(&mut node, 17, 0);
    let there = [at("10.0.1.1", 8080)];
    node.ground.world.extent(0, &[at("10.0.1.9", 8080)], &there, Policy::ANY_ENDPOINTS, 0);
    assert_eq!(send(&mut node, 17, 0), ends, "it still serves, in the other set");
}

#[test]
fn a_datagram_is_shown_to_its_endpoint_as_policy_has_it_now_and_a_connection_as_it_began() {
    let there = [at("10.0.1.1", 8080)];
    for protocol in [6, 17, 132] {
        let mut node = node();
        let greeting = if protocol == 132 { 1 } else { SYN };
        let masqueraded = send(&mut node, protocol, greeting);
        assert!(masqueraded.0.starts_with("192.168.0.1:"), "{masqueraded:?}");
        let local = Policy::ANY_ENDPOINTS | Policy::EXTERNAL_LOCAL;
        node.ground.world.extent(0, &there, &there, local, 0);
        let plain = send(&mut node, protocol, greeting);
        if protocol != 17 {
            assert_eq!(plain, masqueraded);
            continue;
        }
        assert_eq!(plain, (CLIENT.to_owned(), masqueraded.1.clone()));
        assert!(node.reasons.contains(&Reason::FlowMoved));
        assert!(answered(&mut node, protocol, &plain, 0));
        assert!(!answered(&mut node, protocol, &masqueraded, 0), "the flow of before is over");
        node.ground.world.extent(0, &there, &there, Policy::ANY_ENDPOINTS, 0);
        let again = send(&mut node, protocol, 0);
        assert!(again.0.starts_with("192.168.0.1:"), "{again:?}");
        assert!(answered(&mut node, protocol, &again, 0));
    }
}

#[test]
fn an_established_connection_survives_its_endpoint_its_service_and_its_policy() {
    for protocol in [6, 132] {
        let mut node = node();
        let ends = send(&mut node, protocol, if protocol == 6 { SYN } else { 1 });
        answered(&mut node, protocol, &ends, SYN | ACK);
        serve(&mut node, &["10.0.1.2"]);
        assert_eq!(send(&mut node, protocol, ACK), ends);
        serve(&mut node, &[]);
        assert_eq!(send(&mut node, protocol, ACK), ends);
        node.ground.world.frontends.clear();
        assert_eq!(send(&mut node, protocol, ACK), ends);
        assert!(answered(&mut node, protocol, &ends, ACK));
    }
}

#[test]
fn an_unanswered_greeting_is_repeated_to_a_backend_that_serves() {
    let mut node = node();
    let first = send(&mut node, 6, SYN);
    assert_eq!(send(&mut node, 6, SYN), first, "the same, while it serves");
    serve(&mut node, &["10.0.1.2"]);
    assert_eq!(send(&mut node, 6, SYN).1, "10.0.1.2:8080");
}

#[test]
fn the_choice_is_spread_over_all_endpoints_and_remembered_with_affinity() {
    let mut node = node();
    let endpoints: Vec<_> = (1..5).map(|i| at(&format!("10.0.1.{i}"), 8080)).collect();
    let mut dialled = |affinity| {
        node.ground.world.extent(0, &endpoints, &[], Policy::ANY_ENDPOINTS, affinity);
        let mut counts = std::collections::BTreeMap::new();
        for port in 1..401 {
            match node.arrive("eth1", segment(6, &format!("203.0.113.9:{port}"), DIALLED, SYN, b"")) {
                End::Out(_, frame) => *counts.entry(wire::seen(&frame).destination).or_insert(0) += 1,
                end => panic!("{end}"),
            }
            node.ground.flows.borrow_mut().clear();
        }
        counts
    };
    let spread = dialled(0);
    // 100 expected each; five standard deviations.
    assert!(spread.len() == 4 && spread.values().all(|n| (57..144).contains(n)), "{spread:?}");
    assert_eq!(dialled(10_800).len(), 1);
}

#[test]
fn masquerade_ports_are_never_a_service_nor_a_local_sockets() {
    let mut node = node();
    (node.ground.plane.first_port, node.ground.plane.last_port) = (61_000, 61_003);
    node.ground.world.frontend(ip("192.0.2.1"), 61_000, Tcp, FrontendKind::LoadBalancer, 0);
    for held in [61_001, 61_002] {
        node.ground.sockets.borrow_mut().insert((ip("192.168.0.1"), held));
    }
    assert_eq!(send(&mut node, 6, SYN).0, "192.168.0.1:61003");
    node.ground.sockets.borrow_mut().insert((ip("192.168.0.1"), 61_003));
    let other = node.arrive("eth1", segment(6, "203.0.113.9:5001", DIALLED, SYN, b"")).to_string();
    assert_eq!(other, "dropped: no_port");
    assert_eq!(node.ground.keys().len(), 4, "nothing is left of what got none");
}

#[test]
fn a_range_of_one_port_serves_one_client_of_a_backend_and_one_of_each_other() {
    let mut node = node();
    (node.ground.plane.first_port, node.ground.plane.last_port) = (61_000, 61_000);
    assert_eq!(send(&mut node, 6, SYN).0, "192.168.0.1:61000");
    let other =
        |node: &mut Node| node.arrive("eth1", segment(6, "203.0.113.8:5000", DIALLED, SYN, b"")).to_string();
    assert_eq!(other(&mut node), "dropped: no_port");
    serve(&mut node, &["10.0.1.2"]);
    assert_eq!(other(&mut node), "eth0: 192.168.0.1:61000 > 10.0.1.2:8080");
    pass(&node, 121);
    serve(&mut node, &["10.0.1.1"]);
    assert_eq!(
        other(&mut node),
        "eth0: 192.168.0.1:61000 > 10.0.1.1:8080",
        "what is over gives its port back"
    );
}

#[test]
fn a_connection_keeps_its_address_by_another_way_and_a_datagram_takes_that_of_its_way() {
    for protocol in [6, 17, 132] {
        let mut node = node();
        let greeting = if protocol == 132 { 1 } else { SYN };
        let ends = send(&mut node, protocol, greeting);
        node.links.get_mut("eth0").expect("a device").facts.masquerade_v4 = ip("192.168.7.7").octets();
        node.ground.world.local.insert(ip("192.168.7.7"), LocalAddress { node_port: 1 });
        let by_another_way = send(&mut node, protocol, greeting);
        if protocol == 17 {
            assert!(by_another_way.0.starts_with("192.168.7.7:"), "{by_another_way:?}");
        } else {
            assert_eq!(by_another_way, ends);
        }
        // Unless the node has lost it.
        node.ground.world.local.remove(&ip("192.168.0.1"));
        let moved = send(&mut node, protocol, greeting);
        assert!(moved.0.starts_with("192.168.7.7:"), "{protocol}: {moved:?}");
        assert!(answered(&mut node, protocol, &moved, if protocol == 132 { 2 } else { SYN | ACK }));
        assert_eq!(node.ground.keys().len(), 4);
    }
}

#[test]
fn a_device_with_several_addresses_masquerades_by_the_next_hop() {
    let mut node = node();
    let facts = &mut node.links.get_mut("eth0").expect("a device").facts;
    (facts.host, facts.choices) = (7, Device::V4_BY_NEXT_HOP);
    node.ground.masquerade.insert((7, ip("172.16.0.1")), ip("172.16.0.9"));
    let ends = send(&mut node, 17, 0);
    assert!(ends.0.starts_with("192.168.0.1:"), "a neighbour of the first subnet: {ends:?}");
    node.ground.gateways.insert(ip("10.0.1.1"), ip("172.16.0.1"));
    assert_eq!(send(&mut node, 17, 0), ends, "a flow keeps what it has");
    for (key, _) in node.ground.keys() {
        node.ground.evict(&key);
    }
    let ends = send(&mut node, 17, 0);
    assert!(ends.0.starts_with("172.16.0.9:"), "by its gateway: {ends:?}");
    node.ground.world.local.insert(ip("172.16.0.9"), LocalAddress { node_port: 1 });
    assert_eq!(send(&mut node, 17, 0), ends);
    assert!(answered(&mut node, 17, &ends, 0));
}

#[test]
fn a_device_without_an_address_can_not_masquerade() {
    let mut node = node();
    node.links.get_mut("eth0").expect("a device").facts.masquerade_v4 = [0; 16];
    let end = node.arrive("eth1", segment(6, CLIENT, DIALLED, SYN, b"")).to_string();
    assert_eq!(end, "dropped: no_masquerade_address");
}

#[test]
fn no_record_of_another_version_is_read() {
    let mut node = node();
    let ends = send(&mut node, 6, SYN);
    node.ground.flows.borrow_mut().values_mut().for_each(|flow| flow.version += 1);
    assert!(!answered(&mut node, 6, &ends, SYN | ACK));
}

#[test]
fn ports_that_are_used_again_begin_a_new_life() {
    let mut node = node();
    for _ in 0..2 {
        let ends = send(&mut node, 6, SYN);
        answered(&mut node, 6, &ends, SYN | ACK);
        send(&mut node, 6, ACK);
        pass(&node, 3600);
        assert!(answered(&mut node, 6, &ends, ACK), "established, whatever ended before");
        send(&mut node, 6, FIN | ACK);
        answered(&mut node, 6, &ends, FIN | ACK);
        send(&mut node, 6, ACK);
    }
}

/// The keys of the flow that was dialled at `to`, by the position and source of what bears them.
fn keys_of(node: &Node, to: &str, position: Position, from: &str) -> Vec<FlowKey> {
    let (to, from) = (wire::socket(to), wire::socket(from).ip());
    let keys = node.ground.keys().into_iter().filter(|(key, flow)| {
        (flow.dialled().ip(), flow.dialled_port) == (to.ip(), to.port())
            && key.position == position
            && Address::from_octets(key.source).ip() == from
    });
    keys.map(|(key, _)| key).collect()
}

/// A node on which one client port has dialled two node ports, after the first flow had lost the key whose packets come
/// from there; and both flows as their backend sees them.
fn robbed(from: &str) -> (Node, (String, String), (String, String)) {
    let mut node = node();
    node.ground.world.frontend(Address::ANY_V4, 30081, Udp, FrontendKind::NodePort, 0);
    let first = send(&mut node, 17, 0);
    for key in keys_of(&node, DIALLED, Position::Egress, from) {
        node.ground.evict(&key);
    }
    let End::Out(_, second) = node.arrive("eth1", segment(17, CLIENT, "172.16.0.1:30081", 0, b"x")) else {
        panic!("not translated")
    };
    let seen = wire::seen(&second);
    (node, first, (seen.source.to_string(), seen.destination.to_string()))
}

#[test]
fn two_flows_of_one_client_port_are_told_apart_though_one_has_lost_a_key() {
    // Backend to client, and client to backend.
    for from in ["10.0.1.1:8080", CLIENT] {
        let (mut node, first, second) = robbed(from);
        for (ends, dialled) in [(first, DIALLED), (second, "172.16.0.1:30081")] {
            let answer = segment(17, &ends.1, &ends.0, 0, b"x");
            assert_eq!(
                node.arrive("eth0", answer).to_string(),
                format!("eth1: {dialled} > {CLIENT}"),
                "{from}"
            );
        }
    }
}

#[test]
fn a_backend_that_was_left_behind_is_not_heard_as_the_new_one() {
    let mut node = node();
    let old = send(&mut node, 17, 0);
    assert!(answered(&mut node, 17, &old, 0));
    serve(&mut node, &["10.0.1.2"]);
    // The dialled key is lost, so that nobody knows what else to remove.
    for key in keys_of(&node, DIALLED, Position::Ingress, CLIENT) {
        node.ground.evict(&key);
    }
    let new = send(&mut node, 17, 0);
    assert_eq!(new.1, "10.0.1.2:8080");
    assert!(!answered(&mut node, 17, &old, 0));
    assert!(answered(&mut node, 17, &new, 0));
}

#[test]
fn a_client_that_dials_its_old_backend_itself_is_answered_by_it_and_not_by_the_service() {
    for (protocol, greeting, answer, end) in [(6, SYN, SYN | ACK, RST), (132, 1, 2, 6)] {
        for policy in [0, Policy::EXTERNAL_LOCAL] {
            let mut node = node();
            let backend = [at("10.0.1.1", 8080)];
            // Under the local policy the backend sees the client, else its node.
            node.ground.world.extent(0, &backend, &backend, Policy::ANY_ENDPOINTS | policy, 0);
            let ends = send(&mut node, protocol, greeting);
            for flags in [answer, answer, ACK] {
                assert!(
                    answered(&mut node, protocol, &ends, flags),
                    "{flags}, said again or not, is the flow's"
                );
            }
            send(&mut node, protocol, end);
            let mut meets = |from: &str, to: &str, by, flags| {
                node.arrive(by, segment(protocol, from, to, flags, b"x")).to_string()
            };
            let direct = meets(CLIENT, "10.0.1.1:8080", "eth1", greeting);
            assert_eq!(direct, format!("eth0: {CLIENT} > 10.0.1.1:8080"));
            for flags in [answer, ACK] {
                let back = meets("10.0.1.1:8080", CLIENT, "eth0", flags);
                assert_eq!(back, format!("eth1: 10.0.1.1:8080 > {CLIENT}"), "{protocol} under {policy}");
            }
            assert!(node.ground.keys().is_empty(), "what is over is removed");
        }
    }
}

#[test]
fn so_is_one_whose_old_backend_is_in_the_nodes_own_namespace_where_nothing_is_masqueraded() {
    let mut node = node();
    let backend = [at("192.168.0.1", 8080)];
    node.ground.world.extent(0, &backend, &[], Policy::ANY_ENDPOINTS, 0);
    let tcp = |from: &str, to: &str, flags| segment(6, from, to, flags, b"x");
    let local = |node: &mut Node, to: &str, flags| node.arrive("eth1", tcp(CLIENT, to, flags)).to_string();
    let back = |node: &mut Node, flags| node.send(tcp("192.168.0.1:8080", CLIENT, flags)).to_string();
    assert_eq!(local(&mut node, DIALLED, SYN), format!("local: {CLIENT} > 192.168.0.1:8080"));
    for flags in [SYN | ACK, ACK] {
        assert_eq!(back(&mut node, flags), format!("eth1: {DIALLED} > {CLIENT}"));
    }
    local(&mut node, DIALLED, RST);
    local(&mut node, "192.168.0.1:8080", SYN);
    for flags in [SYN | ACK, ACK] {
        assert_eq!(back(&mut node, flags), format!("eth1: 192.168.0.1:8080 > {CLIENT}"));
    }
}

/// A flow that keeps the client's address and one of the same client port with the same backend that does not; the first has
/// lost the key of its answers before the second was dialled, and the second loses these keys after it.
fn crossed(lost: &[&str]) -> (Node, (String, String), (String, String)) {
    const KEEPS: &str = "192.0.2.80:80";
    let mut node = node();
    let there = [at("10.0.1.1", 8080)];
    node.ground.world.frontend(ip("192.0.2.80"), 80, Udp, FrontendKind::LoadBalancer, 1);
    node.ground.world.extent(1, &there, &there, Policy::ANY_ENDPOINTS | Policy::EXTERNAL_LOCAL, 0);
    let keep = |node: &mut Node| match node.arrive("eth1", segment(17, CLIENT, KEEPS, 0, b"x")) {
        End::Out("eth0", frame) => {
            let seen = wire::seen(&frame);
            (seen.source.to_string(), seen.destination.to_string())
        }
        end => panic!("{end}"),
    };
    let evict = |node: &Node, to: &str, from: &str| {
        for key in keys_of(node, to, Position::Egress, from) {
            node.ground.evict(&key);
        }
    };
    keep(&mut node);
    evict(&node, KEEPS, "10.0.1.1:8080");
    let other = send(&mut node, 17, 0);
    for from in lost {
        evict(&node, DIALLED, from);
    }
    pass(&node, 1);
    let first = keep(&mut node);
    (node, first, other)
}

#[test]
fn a_flow_is_never_masqueraded_by_the_key_of_another() {
    for lost in [&["10.0.1.1:8080"][..], &["10.0.1.1:8080", CLIENT]] {
        let (mut node, first, other) = crossed(lost);
        assert_ne!(first, other, "the backend could not tell them apart");
        for (ends, dialled) in [(&other, DIALLED), (&first, "192.0.2.80:80"), (&other, DIALLED)] {
            let answer = segment(17, &ends.1, &ends.0, 0, b"x");
            let end = node.arrive("eth0", answer).to_string();
            assert_eq!(end, format!("eth1: {dialled} > {CLIENT}"), "after {lost:?}");
        }
    }
}
