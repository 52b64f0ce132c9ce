//! Stories of packets: over stacked devices, through one node and several, there and back. Every frame is real bytes, and
//! after every rewrite all of its checksums are made again from scratch and compared.

mod plane;
mod wire;
mod world;

use std::net::SocketAddr;

use plane::{End, Node, OTHER, ends};
use proxy_common::{
    Address,
    Protocol::{Sctp, Tcp, Udp},
    Reason,
    layout::{FrontendKind, LocalAddress, Pods, Policy, RangeKey},
};
use wire::{ACK, FIN, Frame, Ip, RST, SYN, icmp, segment, socket, tcp, transport, udp};
use world::{at, ip};

const ANY: u16 = Policy::ANY_ENDPOINTS;

/// A node with a pod on a routed veth, two uplinks, and a service on every kind of address. Its endpoints are 10.0.1.1
/// on another node and, in the local set, 10.0.0.7 on this one.
fn node(policy: u16) -> Node {
    let mut node = Node::new();
    node.link("veth-a", Pods::All, "169.254.1.1", "fe80::1");
    node.link("veth-b", Pods::All, "169.254.1.1", "fe80::1");
    node.link("eth0", Pods::None, "192.168.0.1", "fd00:1::1");
    node.link("eth1", Pods::None, "172.16.0.1", "fd00:2::1");
    node.routes = vec![
        ("10.0.0.2", "veth-a"),
        ("10.0.0.7", "veth-b"),
        ("172.16.", "eth1"),
        ("fd00:a::2", "veth-a"),
        ("203.0.113.", "eth1"),
        ("2001:db8:", "eth1"),
        ("", "eth0"),
    ];
    let world = &mut node.ground.world;
    for address in ["192.168.0.1", "172.16.0.1", "fd00:1::1", "fd00:2::1"] {
        world.local.insert(ip(address), LocalAddress { node_port: 1 });
    }
    world.extent(0, &[at("10.0.1.1", 8080)], &[at("10.0.0.7", 8080)], policy | Policy::POD_DETECTOR, 0);
    world.extent(1, &[at("fd00:a:1::1", 8080)], &[], policy | Policy::POD_DETECTOR, 0);
    for protocol in [Tcp, Udp, Sctp] {
        for (service, any, cluster, balancer) in [
            (0, Address::ANY_V4, "10.96.0.1", "192.0.2.80"),
            (1, Address::ANY_V6, "fd00:96::1", "2001:db9::80"),
        ] {
            world.frontend(ip(cluster), 80, protocol, FrontendKind::ClusterIp, service);
            world.frontend(ip(balancer), 80, protocol, FrontendKind::LoadBalancer, service);
            world.frontend(any, 30080, protocol, FrontendKind::NodePort, service);
            world.frontend(any, 30081, protocol, FrontendKind::NodePort, service);
        }
    }
    node
}

/// A frame arrives and what becomes of it, as text.
fn told(node: &mut Node, device: &'static str, frame: Frame) -> String {
    node.arrive(device, frame).to_string()
}

/// The frame that leaves by a device.
fn out(node: &mut Node, device: &'static str, frame: Frame) -> Frame {
    match node.arrive(device, frame) {
        End::Out(_, frame) => frame,
        end => panic!("{end}"),
    }
}

/// The source and destination of a frame, as text.
fn split(frame: &Frame) -> (String, String) {
    let (source, destination) = (wire::seen(frame).source, wire::seen(frame).destination);
    (source.to_string(), destination.to_string())
}

#[test]
fn a_pod_reaches_a_remote_pod_by_cluster_ip_and_hears_it_answer() {
    for protocol in [6, 17, 132] {
        let mut node = node(ANY);
        let there = segment(protocol, "10.0.0.2:1000", "10.96.0.1:80", SYN, b"abc");
        assert_eq!(told(&mut node, "veth-a", there), "eth0: 10.0.0.2:1000 > 10.0.1.1:8080");
        assert_eq!(node.reasons, [Reason::FlowOpened, Reason::NotService]);
        let back = segment(protocol, "10.0.1.1:8080", "10.0.0.2:1000", SYN | ACK, b"");
        assert_eq!(told(&mut node, "eth0", back), "veth-a: 10.96.0.1:80 > 10.0.0.2:1000");
        let there = segment(protocol, "10.0.0.2:1000", "10.96.0.1:80", ACK, b"abcd");
        assert_eq!(told(&mut node, "veth-a", there), "eth0: 10.0.0.2:1000 > 10.0.1.1:8080");
        assert_eq!(node.reasons[4], Reason::FlowKept);
    }
}

#[test]
fn ipv6_goes_the_same_ways() {
    for protocol in [6, 17, 132] {
        let mut node = node(ANY);
        let there = segment(protocol, "[fd00:a::2]:1000", "[fd00:96::1]:80", SYN, b"abc");
        assert_eq!(told(&mut node, "veth-a", there), "eth0: [fd00:a::2]:1000 > [fd00:a:1::1]:8080");
        let back = segment(protocol, "[fd00:a:1::1]:8080", "[fd00:a::2]:1000", SYN | ACK, b"");
        assert_eq!(told(&mut node, "eth0", back), "veth-a: [fd00:96::1]:80 > [fd00:a::2]:1000");

        let there =
            out(&mut node, "eth1", segment(protocol, "[2001:db8::9]:5", "[fd00:2::1]:30080", SYN, b"odd"));
        let (node_end, backend) = split(&there);
        assert!(node_end.starts_with("[fd00:1::1]:6"), "{node_end}");
        let back = segment(protocol, &backend, &node_end, SYN | ACK, b"");
        assert_eq!(told(&mut node, "eth0", back), "eth1: [fd00:2::1]:30080 > [2001:db8::9]:5");
    }
}

#[test]
fn a_client_outside_reaches_a_node_port_and_the_answer_leaves_by_the_uplink_of_the_client() {
    for protocol in [6, 17, 132] {
        let mut node = node(ANY);
        // By eth1 in, by eth0 on to the backend with that uplink's address.
        let there =
            out(&mut node, "eth1", segment(protocol, "203.0.113.9:5000", "172.16.0.1:30080", SYN, b"x"));
        let (node_end, backend) = split(&there);
        assert!(node_end.starts_with("192.168.0.1:6") && backend == "10.0.1.1:8080", "{}", ends(&there));
        assert_eq!(node.reasons, [Reason::FlowOpened, Reason::Masqueraded]);
        // The answer comes in by eth0 and goes out by eth1; had it come in by eth1, nothing would differ.
        for device in ["eth0", "eth1"] {
            let back = segment(protocol, &backend, &node_end, SYN | ACK, b"y");
            assert_eq!(told(&mut node, device, back), "eth1: 172.16.0.1:30080 > 203.0.113.9:5000");
        }
        let again =
            out(&mut node, "eth1", segment(protocol, "203.0.113.9:5000", "172.16.0.1:30080", ACK, b"x"));
        assert_eq!(split(&again), (node_end, backend), "one port for the whole flow");
    }
}

#[test]
fn two_node_ports_with_one_backend_and_one_client_port_are_told_apart() {
    for policy in [ANY, ANY | Policy::EXTERNAL_LOCAL] {
        let mut node = node(policy);
        let client = "203.0.113.9:5000";
        let mut seen = vec![];
        for port in ["172.16.0.1:30080", "172.16.0.1:30081", "192.0.2.80:80"] {
            let there = out(&mut node, "eth1", tcp(client, port, SYN));
            seen.push((split(&there), port));
        }
        for ((as_seen, backend), port) in &seen {
            assert_eq!(
                seen.iter().filter(|other| other.0.0 == *as_seen).count(),
                1,
                "the backend sees one connection"
            );
            let back = tcp(backend, as_seen, SYN | ACK);
            assert_eq!(told(&mut node, "eth0", back), format!("eth1: {port} > {client}"));
        }
    }
}

#[test]
fn external_policy_local_keeps_the_clients_address_and_drops_where_no_endpoint_is() {
    let mut node = node(ANY | Policy::EXTERNAL_LOCAL);
    let there = tcp("203.0.113.9:5000", "172.16.0.1:30080", SYN);
    assert_eq!(told(&mut node, "eth1", there), "veth-b: 203.0.113.9:5000 > 10.0.0.7:8080");
    let back = tcp("10.0.0.7:8080", "203.0.113.9:5000", SYN | ACK);
    assert_eq!(told(&mut node, "veth-b", back), "eth1: 172.16.0.1:30080 > 203.0.113.9:5000");
    // Row 8: a pod of this node is not subject to it, and keeps its address.
    let pod = tcp("10.0.0.2:1000", "192.0.2.80:80", SYN);
    assert_eq!(told(&mut node, "veth-a", pod), "eth0: 10.0.0.2:1000 > 10.0.1.1:8080");
    node.ground.world.extent(0, &[at("10.0.1.1", 8080)], &[], ANY | Policy::EXTERNAL_LOCAL, 0);
    let other = tcp("203.0.113.9:5001", "172.16.0.1:30080", SYN);
    assert_eq!(told(&mut node, "eth1", other), "dropped: policy_dropped");
}

#[test]
fn who_is_masqueraded_to_a_cluster_ip_follows_the_detector_and_masquerade_all() {
    let first = |policy: u16, device: &'static str, source: &str| {
        let mut node = node(0);
        node.ground.world.extent(0, &[at("10.0.1.1", 8080)], &[], policy, 0);
        split(&out(&mut node, device, tcp(source, "10.96.0.1:80", SYN))).0
    };
    let (pod, outside) = ("10.0.0.2:1000", "203.0.113.9:1000");
    assert_eq!(first(ANY | Policy::POD_DETECTOR, "veth-a", pod), pod, "row 1");
    assert!(first(ANY | Policy::POD_DETECTOR, "eth1", outside).starts_with("192.168.0.1:"), "row 3");
    assert_eq!(first(ANY, "eth1", outside), outside, "row 3 without a detector");
    assert!(first(ANY | Policy::LEAVE_INTERNAL, "veth-a", pod).starts_with("192.168.0.1:"), "masqueradeAll");
}

#[test]
fn a_pod_is_known_by_its_address_where_the_detector_says_so() {
    let mut node = node(ANY);
    node.links.get_mut("veth-a").expect("a device").facts.pods = Pods::InRange;
    let there = out(&mut node, "veth-a", tcp("10.0.0.2:1000", "10.96.0.1:80", SYN));
    assert!(split(&there).0.starts_with("192.168.0.1:"), "not in the range: no pod");
    node.ground.world.ranges.insert((RangeKey::PODS, ip("10.0.0.2")));
    let there = out(&mut node, "veth-a", tcp("10.0.0.2:1001", "10.96.0.1:80", SYN));
    assert_eq!(split(&there).0, "10.0.0.2:1001");
}

#[test]
fn a_pod_that_is_its_own_backend_hears_itself_through_the_node() {
    // The last port is that on which it serves: there and back would bear the same addresses.
    for port in [1000, 8080] {
        let mut node = node(0);
        node.ground.world.extent(0, &[at("10.0.0.2", 8080)], &[], ANY | Policy::POD_DETECTOR, 0);
        let client = format!("10.0.0.2:{port}");
        let there = out(&mut node, "veth-a", tcp(&client, "10.96.0.1:80", SYN));
        let (as_seen, backend) = split(&there);
        assert!(as_seen.starts_with("169.254.1.1:6") && backend == "10.0.0.2:8080", "{}", ends(&there));
        let back = tcp(&backend, &as_seen, SYN | ACK);
        assert_eq!(told(&mut node, "veth-a", back), format!("veth-a: 10.96.0.1:80 > {client}"));
    }
}

/// A node whose pods 10.0.0.2 and 10.0.0.7 share a bridge.
fn bridged() -> Node {
    let mut node = node(ANY);
    node.link("br0", Pods::All, "10.0.0.1", "fd00:a::ffff");
    node.port("port-a", "br0", Pods::All);
    node.port("port-b", "br0", Pods::All);
    node.routes.insert(0, ("10.0.0.", "br0"));
    node.ports = vec![("10.0.0.2", "port-a"), ("10.0.0.7", "port-b")];
    node.ground.world.local.insert(ip("10.0.0.1"), LocalAddress { node_port: 1 });
    node.ground.world.extent(0, &[at("10.0.0.7", 8080)], &[], ANY | Policy::POD_DETECTOR, 0);
    node
}

#[test]
fn a_backend_on_the_clients_bridge_answers_it_directly_and_is_still_translated() {
    let mut node = bridged();
    let there = tcp("10.0.0.2:1000", "10.96.0.1:80", SYN);
    assert_eq!(told(&mut node, "port-a", there), "port-b: 10.0.0.2:1000 > 10.0.0.7:8080");
    // Once at the port, then left alone at the bridge: a packet is translated once in a pass.
    assert_eq!(node.reasons[..2], [Reason::FlowOpened, Reason::AlreadyTranslated]);
    let mut back = tcp("10.0.0.7:8080", "10.0.0.2:1000", SYN | ACK);
    back.bytes[..6].copy_from_slice(&OTHER);
    back.bytes[5] = 7; // The client's own address: the node never routes it.
    assert_eq!(told(&mut node, "port-b", back), "port-a: 10.96.0.1:80 > 10.0.0.2:1000");
}

#[test]
fn what_a_bridge_port_bridges_is_not_a_frontends() {
    let mut node = bridged();
    let mut bridged = tcp("10.0.0.2:1000", "10.0.0.7:80", SYN);
    bridged.bytes[5] = 7;
    node.ground.world.frontend(ip("10.0.0.7"), 80, Tcp, FrontendKind::ExternalIp, 0);
    assert_eq!(told(&mut node, "port-a", bridged), "port-b: 10.0.0.2:1000 > 10.0.0.7:80");
    assert_eq!(node.reasons[0], Reason::NotForHost);
}

#[test]
fn a_backend_that_is_itself_a_frontend_is_not_looked_up_again_in_the_same_pass() {
    let mut node = bridged();
    node.ground.world.extent(2, &[at("10.0.1.9", 9)], &[], ANY, 0);
    node.ground.world.frontend(ip("10.0.0.7"), 8080, Tcp, FrontendKind::ExternalIp, 2);
    let there = tcp("10.0.0.2:1000", "10.96.0.1:80", SYN);
    assert_eq!(told(&mut node, "port-a", there), "port-b: 10.0.0.2:1000 > 10.0.0.7:8080");
}

#[test]
fn a_device_without_layer_2_is_like_the_others() {
    let mut node = node(ANY);
    node.links.get_mut("eth1").expect("a device").facts.header = 0;
    let there = out(&mut node, "eth1", udp("203.0.113.9:5000", "172.16.0.1:30080"));
    let (as_seen, backend) = split(&there);
    let back = told(&mut node, "eth0", udp(&backend, &as_seen));
    assert_eq!(back, "eth1: 172.16.0.1:30080 > 203.0.113.9:5000");
}

#[test]
fn a_backend_in_the_nodes_own_namespace_answers_through_the_program_of_the_clients_device() {
    let mut node = node(0);
    node.ground.world.extent(0, &[at("192.168.0.1", 8080)], &[], ANY, 0);
    let there = tcp("203.0.113.9:5000", "172.16.0.1:30080", SYN);
    // Delivered before any egress: as with kube-proxy there is no place to masquerade.
    assert_eq!(told(&mut node, "eth1", there), "local: 203.0.113.9:5000 > 192.168.0.1:8080");
    let back = node.send(tcp("192.168.0.1:8080", "203.0.113.9:5000", SYN | ACK)).to_string();
    assert_eq!(back, "eth1: 172.16.0.1:30080 > 203.0.113.9:5000");
}

#[test]
fn frag_needed_finds_the_client_back_through_both_nats() {
    let mut node = node(ANY);
    let client = "203.0.113.9:5000";
    let there = out(&mut node, "eth1", tcp(client, "172.16.0.1:30080", SYN));
    let (as_seen, backend) = split(&there);
    out(&mut node, "eth0", tcp(&backend, &as_seen, SYN | ACK));
    let host = |end: &str| socket(end).ip().to_string();
    // A router behind the node has no room: quoted in full, or only what RFC 792 promises.
    for quoted in [28, there.bytes.len() - 14] {
        let error = icmp("10.9.9.9", &host(&as_seen), [3, 4], [0, 0, 5, 0], &there.bytes[14..14 + quoted]);
        let end = told(&mut node, "eth0", error);
        assert_eq!(end, format!("eth1: 172.16.0.1 > 203.0.113.9 about {client} > 172.16.0.1:30080"));
    }
    // A router before the client has no room for the answer.
    let back = out(&mut node, "eth0", tcp(&backend, &as_seen, ACK));
    for quoted in [28, back.bytes.len() - 14] {
        let error = icmp("203.0.113.1", "172.16.0.1", [3, 4], [0, 0, 5, 0], &back.bytes[14..14 + quoted]);
        let end = told(&mut node, "eth1", error);
        assert_eq!(end, format!("eth0: {} > 10.0.1.1 about {backend} > {as_seen}", host(&as_seen)));
    }
}

#[test]
fn errors_of_the_node_itself_and_of_the_backend_are_translated_too() {
    for (pod, vip, backend, router) in [
        ("10.0.0.2:1000", "10.96.0.1:80", "10.0.1.1:8080", "192.168.0.1"),
        ("[fd00:a::2]:1000", "[fd00:96::1]:80", "[fd00:a:1::1]:8080", "fd00:1::1"),
    ] {
        let host = |end: &str| socket(end).ip().to_string();
        let kinds: &[[u8; 2]] =
            if pod.starts_with('[') { &[[2, 0], [1, 4], [3, 0]] } else { &[[3, 4], [3, 3], [11, 0]] };
        for protocol in [6, 17, 132] {
            let mut node = node(ANY);
            let there = out(&mut node, "veth-a", segment(protocol, pod, vip, SYN, b"some more payload"));
            for kind in kinds {
                let quoted = &there.bytes[14..];
                let expected = format!("veth-a: {} > {} about {pod} > {vip}", host(vip), host(pod));
                let own = node.send(icmp(router, &host(pod), *kind, [0; 4], quoted)).to_string();
                assert_eq!(own, expected);
                let backends = icmp(&host(backend), &host(pod), *kind, [0; 4], quoted);
                assert_eq!(told(&mut node, "eth0", backends), expected);
            }
        }
    }
}

#[test]
fn an_error_about_nothing_of_ours_and_a_forged_one_are_left_alone() {
    let mut node = node(ANY);
    let there = out(&mut node, "veth-a", tcp("10.0.0.2:1000", "10.96.0.1:80", SYN));
    let stranger = icmp("10.9.9.9", "10.0.0.7", [3, 4], [0; 4], &there.bytes[14..]);
    assert_eq!(
        told(&mut node, "eth0", stranger),
        "veth-b: 10.9.9.9 > 10.0.0.7 about 10.0.0.2:1000 > 10.0.1.1:8080"
    );
    let plain =
        icmp("10.9.9.9", "10.0.0.2", [3, 4], [0; 4], &tcp("10.0.0.2:1001", "10.0.1.1:8080", ACK).bytes[14..]);
    assert_eq!(
        told(&mut node, "eth0", plain),
        "veth-a: 10.9.9.9 > 10.0.0.2 about 10.0.0.2:1001 > 10.0.1.1:8080"
    );
    assert_eq!(node.last(), Reason::ErrorPlain);
}

#[test]
fn a_redirect_about_a_translated_packet_never_reaches_the_pod() {
    let mut node = bridged();
    let there = out(&mut node, "port-a", tcp("10.0.0.2:1000", "10.96.0.1:80", SYN));
    let redirect = icmp("10.0.0.1", "10.0.0.2", [5, 1], [10, 0, 0, 7], &there.bytes[14..42]);
    assert_eq!(node.send(redirect).to_string(), "dropped: redirect_dropped");
}

/// A datagram of `source` in two fragments.
fn pieces(source: &str, destination: &str, id: u16) -> [Frame; 2] {
    pieces_of(17, socket(source), socket(destination), id)
}

fn pieces_of(protocol: u8, from: SocketAddr, to: SocketAddr, id: u16) -> [Frame; 2] {
    let whole = transport(protocol, from, to, 1, &[7; 60]);
    let piece = |offset: usize, more: bool, bytes: &[u8]| {
        let mut packet = Ip::new(from.ip(), to.ip(), protocol);
        if from.is_ipv4() {
            packet.fragment = (id, (u16::from(more) << 13) | (offset as u16 / 8));
        } else {
            let id = id.to_be_bytes();
            packet.extensions =
                Some((44, vec![protocol, 0, 0, offset as u8 | u8::from(more), 0, 0, id[0], id[1]]));
        }
        packet.frame(bytes)
    };
    [piece(0, true, &whole[..32]), piece(32, false, &whole[32..])]
}

#[test]
fn fragments_follow_their_first_one_and_together_are_the_datagram() {
    let mut node = node(ANY);
    let [first, later] = pieces("203.0.113.9:5000", "172.16.0.1:30080", 77);
    let first = out(&mut node, "eth1", first);
    let later = out(&mut node, "eth1", later);
    let (as_seen, backend) = split(&first);
    assert_eq!(split(&later).1, "10.0.1.1:0", "{}", ends(&later));
    assert_eq!(wire::seen(&later).source.ip(), wire::seen(&first).source.ip());
    // Put together, the checksum holds.
    let payload = [&first.bytes[34..], &later.bytes[34..]].concat();
    let again = transport(17, socket(&as_seen), socket(&backend), 0, &[7; 60]);
    assert_eq!(payload, again);
    let [first, later] = pieces(&backend, &as_seen, 99);
    assert_eq!(told(&mut node, "eth0", first), "eth1: 172.16.0.1:30080 > 203.0.113.9:5000");
    assert_eq!(told(&mut node, "eth0", later), "eth1: 172.16.0.1 > 203.0.113.9");
}

#[test]
fn a_later_fragment_of_an_unknown_or_forgotten_packet_passes_untouched() {
    let mut node = node(ANY);
    let [first, later] = pieces("203.0.113.9:5000", "172.16.0.1:30080", 77);
    assert_eq!(told(&mut node, "eth1", later.clone()), "local: 203.0.113.9 > 172.16.0.1");
    assert_eq!(node.last(), Reason::FragmentPlain);
    out(&mut node, "eth1", first);
    node.ground.seconds.set(1031);
    assert_eq!(told(&mut node, "eth1", later), "local: 203.0.113.9 > 172.16.0.1");
}

#[test]
fn a_later_fragment_that_overtakes_the_first_is_dropped_if_it_is_certainly_a_services() {
    for (from, vip, others) in
        [("203.0.113.9", "10.96.0.1", "10.96.0.2"), ("2001:db8::9", "fd00:96::1", "fd00:96::2")]
    {
        let mut node = node(ANY);
        let world = &mut node.ground.world;
        for port in [0, 80] {
            world.frontend(ip(vip), port, Udp, FrontendKind::ClusterIp, 0);
        }
        let end = |address: &str, port: u16| SocketAddr::new(address.parse().expect("an address"), port);
        let [first, later] = pieces_of(17, end(from, 5000), end(vip, 80), 77);
        assert!(matches!(node.arrive("eth1", later.clone()), End::Dropped(Reason::FragmentEarly)), "{vip}");
        assert!(matches!(node.arrive("eth1", first), End::Out(..)));
        assert!(matches!(node.arrive("eth1", later), End::Out(..)), "it is known now");
        // Whoever else's it is passes: of another address, of another protocol, of the node's own address.
        let [_, other] = pieces_of(17, end(from, 5000), end(others, 80), 78);
        assert!(matches!(node.arrive("eth1", other), End::Out(..)), "{others}");
        assert_eq!(node.last(), Reason::FragmentPlain);
        let [_, later] = pieces_of(17, end(from, 5000), end(vip, 80), 79);
        node.ground.world.local.insert(ip(vip), LocalAddress::default());
        assert!(matches!(node.arrive("eth1", later), End::Local(_)), "the node's own socket may have it");
        assert_eq!(node.last(), Reason::FragmentPlain);
    }
}

#[test]
fn a_message_of_sctp_in_pieces_is_dropped_only_if_its_port_changes() {
    for (from, vip, backend) in [
        ("10.0.0.2:1000", "10.96.0.1:80", "10.0.1.1"),
        ("[fd00:a::2]:1000", "[fd00:96::1]:80", "fd00:a:1::1"),
    ] {
        let mut node = node(ANY);
        let (mut from, vip) = (socket(from), socket(vip));
        // Its checksum would need all of it.
        let [first, _] = pieces_of(132, from, vip, 77);
        assert_eq!(told(&mut node, "veth-a", first), "dropped: fragmented_sctp");
        let same = SocketAddr::new(vip.ip(), 8080);
        from.set_port(1001);
        let service = u32::from(vip.is_ipv6());
        node.ground.world.frontend(same.ip().into(), 8080, Sctp, FrontendKind::ClusterIp, service);
        let [first, later] =
            pieces_of(132, from, same, 78).map(|piece| split(&out(&mut node, "veth-a", piece)).1);
        assert_eq!(first, SocketAddr::new(backend.parse().expect("an address"), 8080).to_string());
        assert_eq!(later.parse::<SocketAddr>().expect("an end").ip().to_string(), backend);
    }
}

#[test]
fn the_pieces_of_what_is_left_alone_at_an_address_of_a_service_are_left_alone() {
    let mut node = node(ANY);
    let world = &mut node.ground.world;
    for port in [0, 80] {
        world.frontend(ip("198.51.100.1"), port, Udp, FrontendKind::ExternalIp, 0);
    }
    // The address is somebody's, who has other ports.
    let [first, later] = pieces("203.0.113.9:5000", "198.51.100.1:4000", 77);
    assert_eq!(told(&mut node, "eth1", first), "eth0: 203.0.113.9:5000 > 198.51.100.1:4000");
    assert_eq!(told(&mut node, "eth1", later), "eth0: 203.0.113.9 > 198.51.100.1");
}

#[test]
fn the_pieces_of_what_is_refused_are_not_let_through() {
    let mut node = node(ANY);
    node.ground.world.extent(0, &[], &[], 0, 0);
    let [first, later] = pieces("203.0.113.9:5000", "172.16.0.1:30080", 77);
    assert_eq!(told(&mut node, "eth1", first), "rejected by 172.16.0.1");
    assert_eq!(told(&mut node, "eth1", later), "dropped: rejected", "no error about a later fragment");
}

#[test]
fn no_endpoint_is_refused_from_the_dialled_address_if_it_is_the_nodes_else_from_the_devices() {
    let mut node = node(ANY);
    node.ground.world.extent(0, &[], &[], 0, 0);
    for frame in [tcp("203.0.113.9:5", "172.16.0.1:30080", SYN), udp("203.0.113.9:5", "172.16.0.1:30080")] {
        assert_eq!(told(&mut node, "eth1", frame), "rejected by 172.16.0.1");
    }
    assert_eq!(told(&mut node, "eth1", tcp("203.0.113.9:5", "192.0.2.80:80", SYN)), "rejected by 172.16.0.1");
    assert_eq!(told(&mut node, "veth-a", tcp("10.0.0.2:5", "10.96.0.1:80", SYN)), "rejected by 169.254.1.1");
    assert!(node.ground.keys().is_empty(), "nothing is remembered of what was refused");
}

#[test]
fn source_ranges_keep_everybody_else_out_of_the_load_balancers_address_only() {
    let policy = ANY | Policy::SOURCE_RANGES;
    let mut node = node(policy);
    node.ground.world.ranges.insert((0, ip("203.0.113.9")));
    let mut dial = |device, source: &str, to: &str| told(&mut node, device, tcp(source, to, SYN));
    assert_eq!(dial("eth1", "203.0.113.8:5", "192.0.2.80:80"), "dropped: source_denied");
    assert_eq!(dial("veth-a", "10.0.0.2:5", "192.0.2.80:80"), "dropped: source_denied");
    assert!(dial("eth1", "203.0.113.9:5", "192.0.2.80:80").starts_with("eth0: "));
    assert!(dial("eth1", "203.0.113.8:5", "172.16.0.1:30080").starts_with("eth0: "));
    // kube-proxy's iptables mode filters only where there is an endpoint; its nftables mode always.
    for (mode, end) in [(0, "dropped: source_denied"), (Policy::HOST_REJECT_LEFT, "rejected by 172.16.0.1")] {
        node.ground.world.extent(0, &[], &[], Policy::SOURCE_RANGES | mode, 0);
        assert_eq!(told(&mut node, "eth1", tcp("203.0.113.8:6", "192.0.2.80:80", SYN)), end);
    }
}

#[test]
fn the_nodes_own_packet_to_a_cluster_ip_never_leaves_it() {
    let mut node = node(ANY);
    let own = segment(132, "192.168.0.1:1000", "10.96.0.1:80", 1, b"");
    assert_eq!(node.send(own).to_string(), "dropped: guard_dropped");
    let elsewhere = tcp("192.168.0.1:1000", "10.96.0.1:81", SYN);
    assert_eq!(node.send(elsewhere).to_string(), "eth0: 192.168.0.1:1000 > 10.96.0.1:81");
    let balancer = tcp("192.168.0.1:1000", "192.0.2.80:80", SYN);
    assert_eq!(
        node.send(balancer).to_string(),
        "eth0: 192.168.0.1:1000 > 192.0.2.80:80",
        "it exists without us"
    );
    for frontend in node.ground.world.frontends.values_mut() {
        frontend.host_denied = 1;
    }
    let denied = tcp("192.168.0.1:1000", "192.0.2.80:80", SYN);
    assert_eq!(node.send(denied).to_string(), "dropped: guard_dropped");
}

#[test]
fn a_packet_through_two_nodes_is_translated_by_each_for_itself() {
    // The first node's pod dials the second one's node port; there it comes from outside.
    let (mut first, mut second) = (node(ANY), node(ANY));
    first.routes.insert(0, ("172.16.0.99", "eth1"));
    second.ground.world.local.insert(ip("172.16.0.99"), LocalAddress { node_port: 1 });
    let there = out(&mut first, "veth-a", tcp("10.0.0.2:1000", "172.16.0.99:30080", SYN));
    assert_eq!(ends(&there), "10.0.0.2:1000 > 172.16.0.99:30080", "not this node's address");
    let mut there = there;
    there.bytes[..6].copy_from_slice(&wire::TO);
    let there = out(&mut second, "eth1", there);
    let (as_seen, backend) = split(&there);
    assert!(as_seen.starts_with("192.168.0.1:6"), "{as_seen}");
    second.routes.insert(0, ("10.0.0.2", "eth1"));
    let back = told(&mut second, "eth0", tcp(&backend, &as_seen, SYN | ACK));
    assert_eq!(back, "eth1: 172.16.0.99:30080 > 10.0.0.2:1000");
}

#[test]
fn what_ends_is_told_apart_from_what_begins_with_the_same_ports() {
    for ending in [&[FIN | ACK][..], &[RST], &[RST | ACK]] {
        let mut node = node(0);
        node.ground.world.extent(0, &[at("10.0.1.1", 8080)], &[], ANY, 0);
        let dial = |node: &mut Node, flags| told(node, "veth-a", tcp("10.0.0.2:1000", "10.96.0.1:80", flags));
        dial(&mut node, SYN);
        told(&mut node, "eth0", tcp("10.0.1.1:8080", "10.0.0.2:1000", SYN | ACK));
        node.ground.world.extent(0, &[at("10.0.1.2", 8080)], &[], ANY, 0);
        assert_eq!(dial(&mut node, ACK), "eth0: 10.0.0.2:1000 > 10.0.1.1:8080", "established flows stay");
        for flags in ending {
            dial(&mut node, *flags);
        }
        assert_eq!(dial(&mut node, SYN), "eth0: 10.0.0.2:1000 > 10.0.1.2:8080", "a new connection");
        let late = told(&mut node, "eth0", tcp("10.0.1.1:8080", "10.0.0.2:1000", ACK));
        assert_eq!(late, "veth-a: 10.0.1.1:8080 > 10.0.0.2:1000", "the old backend is nobody's now");
    }
}
