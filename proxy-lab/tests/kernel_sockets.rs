//! The socket plane as applications see it: what is reached, refused and shown, and that each call counts one outcome.

mod stage;

use std::net::SocketAddr;

use nix::errno::Errno;
use proxy_common::Protocol::{Tcp, Udp};
use proxy_common::Reason::*;
use proxy_common::layout::{FrontendKind, Policy, SocketPlane};
use proxy_lab::plane::Endpoints;
use proxy_lab::{Family, SocketKind, Waiting};
use stage::{EMPTY, NODE_PORT, Stage, TARGET, WEB, at, dialled, error, features, is_mapped, lab, once, to};
use vipr::plan::Step;

#[test]
fn every_kind_of_socket_reaches_a_cluster_ip_and_sees_what_it_dialled() {
    Stage::each(|stage, case, _| {
        for (from, to) in
            ["a1", "a"].into_iter().flat_map(|from| dialled(WEB).into_iter().map(move |to| (from, to)))
        {
            let (place, case) = (stage.place(from), format!("{case}: {from} to {to}"));
            for waiting in Waiting::ALL {
                let (stream, counts) = stage.counted(|| place.connect(to, waiting));
                let mut stream = stream.unwrap_or_else(|error| panic!("{case}/tcp, {waiting:?}: {error}"));
                assert_eq!(counts, once(&[Connected]), "{case}/tcp");
                let answer = stream.answer().unwrap();
                assert_eq!((answer.who.as_str(), answer.local.port()), ("b1", TARGET), "{case}/tcp");
                let (peer, counts) = stage.counted(|| stream.peer().unwrap());
                assert_eq!((peer, counts), (to, once(&[PeerRestored])), "{case}/tcp");
            }

            let socket = place.datagrams(Family::of(to.ip())).unwrap();
            let (result, counts) = stage.counted(|| socket.connect(to));
            result.unwrap_or_else(|error| panic!("{case}/udp, connected: {error}"));
            assert_eq!(counts, once(&[Connected]), "{case}/udp, connected");
            let ((answer, source), counts) = stage.counted(|| socket.ask("hello").unwrap());
            assert_eq!(
                (answer.who.as_str(), source, socket.peer().unwrap()),
                ("b1", to, to),
                "{case}/udp, connected"
            );
            // The kernel sends from a socket connected to a mapped address as if each datagram named its destination.
            let sent: &[_] = if is_mapped(to) { &[NotService, SourceRestored] } else { &[SourceRestored] };
            assert_eq!(counts, once(sent), "{case}/udp, connected");

            let socket = place.datagrams(Family::of(to.ip())).unwrap();
            for send in [DatagramNew, DatagramKept] {
                let ((answer, source), counts) = stage.counted(|| socket.ask_to(to, "hello").unwrap());
                assert_eq!((answer.who.as_str(), source), ("b1", to), "{case}/udp, unconnected");
                assert_eq!(counts, once(&[send, SourceRestored]), "{case}/udp, unconnected");
            }
        }
    });
}

#[test]
fn what_is_no_frontend_is_left_as_it_is() {
    let stage = Stage::new();
    let pod = stage.place("a1");
    for to in Family::ALL.map(|family| at(&stage.lab, family, &["b2"])[0]) {
        let (answer, counts) = stage.counted(|| pod.connect(to, Waiting::Blocking).unwrap().peer().unwrap());
        assert_eq!((answer, counts), (to, once(&[NotService, PeerPlain])));
        let socket = pod.datagrams(Family::of(to.ip())).unwrap();
        let ((_, source), counts) = stage.counted(|| socket.ask_to(to, "hello").unwrap());
        assert_eq!((source, counts), (to, once(&[NotService, SourcePlain])));
    }
    // A service's port in use, another's address.
    let refused = stage
        .counted(|| error(pod.connect((stage.node().address(Family::V4), 80).into(), Waiting::Blocking)));
    assert_eq!(refused, (Errno::ECONNREFUSED, once(&[NotService])));
}

#[test]
fn a_socket_that_is_neither_tcp_nor_udp_is_left_alone() {
    let stage = Stage::new();
    let pod = stage.place("a1");
    pod.enter(|| std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0")).unwrap().unwrap();
    // A ping socket has a connect() of its own.
    let kind = SocketKind { domain: libc::AF_INET, kind: libc::SOCK_DGRAM, protocol: libc::IPPROTO_ICMP };
    let ping = std::net::UdpSocket::from(pod.socket(kind).unwrap());
    let (result, counts) = stage.counted(|| ping.connect(WEB[0]));
    result.unwrap();
    assert_eq!(counts, once(&[OtherProtocol]));
}

#[test]
fn node_ports_are_served_on_every_address_of_the_node_and_on_loopback_for_the_host_only() {
    Stage::each(|stage, case, _| {
        let (host, pod) = (stage.place("a"), stage.place("a1"));
        for address in Family::ALL.into_iter().flat_map(|family| stage.node().addresses(family)) {
            for from in [host, pod] {
                let to = (address, NODE_PORT).into();
                let (stream, counts) = stage.counted(|| from.connect(to, Waiting::Blocking));
                let mut stream =
                    stream.unwrap_or_else(|error| panic!("{case}: {} to {to}: {error}", from.name()));
                assert_eq!(counts, once(&[Connected]), "{case}: {} to {to}", from.name());
                assert_eq!(
                    (stream.answer().unwrap().who.as_str(), stream.peer().unwrap()),
                    ("b1", to),
                    "{case}"
                );
                let (answer, source) =
                    from.datagrams(Family::of(address)).unwrap().ask_to(to, "hello").unwrap();
                assert_eq!((answer.who.as_str(), source), ("b1", to), "{case}");
            }
        }
        for to in dialled(["127.0.0.1:30080", "[::1]:30080"]) {
            let mut stream = host.connect(to, Waiting::Blocking).unwrap();
            assert_eq!((stream.answer().unwrap().who.as_str(), stream.peer().unwrap()), ("b1", to), "{case}");
            let refused = stage.counted(|| error(pod.connect(to, Waiting::Blocking)));
            assert_eq!(refused, (Errno::ECONNREFUSED, once(&[PodLoopback])), "{case}: a pod's own {to}");
        }
        // The unspecified address is loopback to connect().
        for to in ["0.0.0.0:30080", "[::]:30080"].map(to) {
            assert_eq!(host.ask_tcp(to).unwrap().who, "b1", "{case}");
        }
    });
}

#[test]
fn a_node_port_is_not_served_where_the_node_serves_none() {
    let mut stage = Stage::new();
    for family in Family::ALL {
        let address = stage.node().addresses(family)[1];
        stage.plane.local_address(address, false).unwrap();
        let dial = || error(stage.place("a1").connect((address, NODE_PORT).into(), Waiting::Blocking));
        assert_eq!(stage.counted(dial), (Errno::ECONNREFUSED, once(&[NotNodePort])), "{address}");
    }
}

#[test]
fn load_balancer_and_external_addresses_lead_to_the_endpoints() {
    let mut stage = Stage::new();
    let external = [
        ("10.100.0.1:80", FrontendKind::LoadBalancer, 0),
        ("10.100.0.2:80", FrontendKind::ExternalIp, 0),
        ("[fd00:100::1]:80", FrontendKind::LoadBalancer, 1),
        ("[fd00:100::2]:80", FrontendKind::ExternalIp, 1),
    ];
    for (address, kind, service) in external {
        let to = to(address);
        for protocol in [Tcp, Udp] {
            stage.plane.frontend(to, protocol, kind, service).unwrap();
        }
        for from in ["a1", "a"].map(|name| stage.place(name)) {
            assert_eq!(from.ask_tcp(to).unwrap().who, "b1", "{} to {to}", from.name());
            assert_eq!(from.ask_udp(to).unwrap().who, "b1", "{} to {to}", from.name());
        }
    }
}

#[test]
fn a_service_without_endpoints_refuses_and_no_call_gets_eperm() {
    Stage::each(|stage, case, features| {
        for (from, to) in
            ["a1", "a"].into_iter().flat_map(|from| dialled(EMPTY).into_iter().map(move |to| (from, to)))
        {
            let (place, case) = (stage.place(from), format!("{case}: {from} to {to}"));
            for waiting in Waiting::ALL {
                let refused = stage.counted(|| error(place.connect(to, waiting)));
                assert_eq!(refused, (Errno::ECONNREFUSED, once(&[Refused])), "{case}/tcp, {waiting:?}");
            }
            let socket = place.datagrams(Family::of(to.ip())).unwrap();
            let (result, counts) = stage.counted(|| socket.connect(to));
            if features.set_retval {
                assert_eq!(
                    (error(result), counts),
                    (Errno::ECONNREFUSED, once(&[Refused])),
                    "{case}/udp, connected"
                );
            } else if from == "a1" {
                result.unwrap_or_else(|error| panic!("{case}/udp, connected: {error}"));
                assert_eq!(counts, once(&[RejectLeft]), "{case}/udp, connected");
            } else {
                // Left to its route, and a node has none to the service ranges.
                assert_eq!(
                    (error(result), counts),
                    (Errno::EINVAL, once(&[RejectLeft])),
                    "{case}/udp, connected"
                );
            }
            // A pod's datagram goes to the packet plane; the node's own fails where this kernel can say why, and else has
            // no route to the service ranges.
            let socket = place.datagrams(Family::of(to.ip())).unwrap();
            let (sent, counts) = stage.counted(|| socket.socket().send_to(b"nobody", to));
            match from {
                "a1" => assert_eq!(sent.unwrap(), 6, "{case}/udp, unconnected"),
                _ if features.set_retval => assert_eq!(error(sent), Errno::ECONNREFUSED, "{case}/udp"),
                _ => assert_eq!(error(sent), Errno::EINVAL, "{case}/udp, unconnected"),
            }
            let reason = if from == "a" && features.set_retval { Refused } else { RejectLeft };
            assert_eq!(counts, once(&[reason]), "{case}/udp, unconnected");
        }
    });
}

#[test]
fn calls_that_this_plane_cannot_answer_are_left_to_the_packet_plane() {
    let mut stage = Stage::new();
    let [v4, _] = WEB.map(to);
    let balanced = to("10.100.0.1:80");
    stage.plane.frontend(balanced, Tcp, FrontendKind::LoadBalancer, 0).unwrap();
    let endpoints = at(&stage.lab, Family::V4, &["b1"]);
    let any = Policy::ANY_ENDPOINTS;
    let elsewhere = |policy| Endpoints { policy, ..Endpoints::everywhere(&endpoints) };
    let cases = [
        ("a1", v4, elsewhere(any | Policy::INTERNAL_LOCAL), DropLeft),
        ("a", v4, elsewhere(any | Policy::INTERNAL_LOCAL), DropLeft),
        ("a1", balanced, elsewhere(any | Policy::EXTERNAL_LOCAL), DropLeft),
        ("a1", v4, elsewhere(any | Policy::LEAVE_INTERNAL), ClientLeft),
        ("a1", balanced, elsewhere(any | Policy::SOURCE_RANGES), ClientLeft),
        ("a1", balanced, elsewhere(any | Policy::LEAVE_EXTERNAL), ClientLeft),
        ("a", balanced, Endpoints { policy: Policy::HOST_REJECT_LEFT, ..Endpoints::default() }, RejectLeft),
    ];
    for (from, to, endpoints, reason) in cases {
        stage.plane.endpoints(0, &endpoints).unwrap();
        // Connected UDP tries the same decision without a packet, where a SYN would wait for an answer.
        stage
            .plane
            .frontend(to, Udp, if to == v4 { FrontendKind::ClusterIp } else { FrontendKind::LoadBalancer }, 0)
            .unwrap();
        let socket = stage.place(from).datagrams(Family::V4).unwrap();
        let (_, counts) = stage.counted(|| socket.connect(to));
        assert_eq!(counts, once(&[reason]), "{from} to {to}: {endpoints:?}");
    }
    // A frontend whose service has no extent.
    let early = to("10.96.0.99:80");
    stage.plane.frontend(early, Udp, FrontendKind::ClusterIp, 99).unwrap();
    let socket = stage.place("a1").datagrams(Family::V4).unwrap();
    let (_, counts) = stage.counted(|| socket.connect(early));
    assert_eq!(counts, once(&[Unprogrammed]));
}

#[test]
fn local_policy_leads_to_the_endpoints_of_this_node() {
    let mut stage = Stage::new();
    stage.place("a2").serve(&[TARGET], &[TARGET]).unwrap();
    let cluster = at(&stage.lab, Family::V4, &["a2", "b1", "b2"]);
    let policy = Policy::ANY_ENDPOINTS | Policy::INTERNAL_LOCAL;
    let local = cluster[..1].to_vec();
    stage.plane.endpoints(0, &Endpoints { cluster, local, policy, affinity_seconds: 0 }).unwrap();
    for _ in 0..20 {
        assert_eq!(stage.place("a1").ask_tcp(to(WEB[0])).unwrap().who, "a2");
    }
}

#[test]
fn a_socket_that_connects_again_is_shown_what_it_dialled_last() {
    let mut stage = Stage::new();
    let other = to("10.96.0.20:53");
    stage.plane.frontend(other, Udp, FrontendKind::ClusterIp, 10).unwrap();
    stage.lead(10, Family::V4, &["b2"]);
    let direct = at(&stage.lab, Family::V4, &["b1"])[0];
    let socket = stage.place("a1").datagrams(Family::V4).unwrap();
    for (to, who) in [(to(WEB[0]), "b1"), (other, "b2"), (direct, "b1"), (to(WEB[0]), "b1")] {
        socket.connect(to).unwrap();
        let (answer, source) = socket.ask("hello").unwrap();
        assert_eq!((answer.who.as_str(), source, socket.peer().unwrap()), (who, to, to));
    }
}

#[test]
fn a_socket_that_is_no_longer_connected_is_not_shown_what_it_was_connected_to() {
    let mut stage = Stage::new();
    let other = to("10.96.0.20:53");
    stage.plane.frontend(other, Udp, FrontendKind::ClusterIp, 10).unwrap();
    stage.lead(10, Family::V4, &["b1"]);
    let direct = at(&stage.lab, Family::V4, &["b1"])[0];
    let socket = stage.place("a1").datagrams(Family::V4).unwrap();
    socket.connect(to(WEB[0])).unwrap();
    assert_eq!(socket.ask("hello").unwrap().1, to(WEB[0]));
    socket.disconnect().unwrap();
    for to in [other, direct] {
        assert_eq!(socket.ask_to(to, "hello").unwrap().1, to);
    }
}

#[test]
fn an_unconnected_socket_sticks_to_its_backend_and_moves_when_it_goes() {
    let mut stage = Stage::new();
    stage.web(&["b1", "b2", "b3"]);
    for to in dialled(WEB) {
        let socket = stage.place("a1").datagrams(Family::of(to.ip())).unwrap();
        let ask = || socket.ask_to(to, "hello").unwrap();
        let first = ask().0.who;
        for _ in 0..20 {
            let ((answer, source), counts) = stage.counted(ask);
            assert_eq!((&answer.who, source), (&first, to));
            assert_eq!(counts, once(&[DatagramKept, SourceRestored]));
        }
        let left: Vec<&str> = ["b1", "b2", "b3"].into_iter().filter(|pod| *pod != first).collect();
        stage.web(&left);
        let ((answer, source), counts) = stage.counted(ask);
        assert!(left.contains(&answer.who.as_str()), "{answer:?}");
        assert_eq!((source, counts), (to, once(&[DatagramNew, SourceRestored])));
        stage.web(&["b1", "b2", "b3"]);
    }
}

#[test]
fn two_services_of_one_unconnected_socket_are_told_apart() {
    let mut stage = Stage::new();
    let (one, other) = (to(WEB[0]), to("10.96.0.20:53"));
    stage.plane.frontend(other, Udp, FrontendKind::ClusterIp, 10).unwrap();
    for pods in [&["b1"][..], &["b1", "b2"]] {
        stage.web(pods);
        stage.lead(10, Family::V4, pods);
        for _ in 0..10 {
            let socket = stage.place("a1").datagrams(Family::V4).unwrap();
            // The only backend of both, or another for each: either way the answer is from what was asked last.
            let [first, second] = [one, other].map(|to| {
                let (answer, source) = socket.ask_to(to, "hello").unwrap();
                assert_eq!(source, to, "{pods:?}");
                answer.who
            });
            assert_eq!(first == second, pods.len() == 1, "{first} and {second} of {pods:?}");
        }
    }
}

#[test]
fn a_datagram_sent_to_a_backend_itself_is_answered_by_the_backend() {
    let stage = Stage::new();
    let (vip, direct) = (to(WEB[0]), at(&stage.lab, Family::V4, &["b1"])[0]);
    let socket = stage.place("a1").datagrams(Family::V4).unwrap();
    for to in [vip, direct, vip, direct] {
        assert_eq!(socket.ask_to(to, "hello").unwrap().1, to);
    }
}

#[test]
fn affinity_keeps_a_pod_at_its_endpoint_also_after_a_restart_and_until_it_goes() {
    let mut stage = Stage::new();
    let pods = ["b1", "b2", "b3"];
    let affine = |stage: &mut Stage, pods: &[&str]| {
        let cluster = at(&stage.lab, Family::V4, pods);
        let endpoints = Endpoints { affinity_seconds: 10800, ..Endpoints::everywhere(&cluster) };
        stage.plane.endpoints(0, &endpoints).unwrap();
    };
    affine(&mut stage, &pods);
    let who = |stage: &Stage| stage.place("a1").ask_tcp(to(WEB[0])).unwrap().who;
    let first = who(&stage);
    let same = |stage: &Stage| (0..20).all(|_| who(stage) == first);
    assert!(same(&stage), "a client with affinity moved");
    // A program loaded anew finds what the one before remembered.
    let probed = features(&stage.lab)[0].1;
    stage.plane = stage::open(&stage.lab, &stage.options, probed);
    stage::activate(&mut stage.plane, &stage.lab);
    assert!(same(&stage), "a client with affinity moved at a restart");
    let left: Vec<&str> = pods.into_iter().filter(|pod| *pod != first).collect();
    affine(&mut stage, &left);
    let second = who(&stage);
    assert!(left.contains(&second.as_str()) && (0..20).all(|_| who(&stage) == second));
}

#[test]
fn the_socket_plane_serves_everybody_or_the_host_or_nobody() {
    let dial = |stage: &Stage, from: &str| {
        let socket = stage.place(from).datagrams(Family::V4).unwrap();
        let (_, counts) = stage.counted(|| socket.connect(to(WEB[0])));
        counts
    };
    let cases = [
        (SocketPlane::All, Connected, Connected),
        (SocketPlane::Host, PlaneOff, Connected),
        (SocketPlane::Off, PlaneOff, PlaneOff),
    ];
    for (plane, pod, host) in cases {
        let lab = lab();
        let probed = features(&lab)[0].1;
        let stage = Stage::on(lab, probed, |options| options.socket_plane = plane);
        assert_eq!(dial(&stage, "a1"), once(&[pod]), "{plane:?}");
        assert_eq!(dial(&stage, "a"), once(&[host]), "{plane:?}");
    }
}

#[test]
fn a_host_outside_the_source_ranges_is_left_to_be_dropped() {
    let mut stage = Stage::new();
    let balanced: SocketAddr = to("10.100.0.1:80");
    stage.plane.frontend(balanced, Udp, FrontendKind::LoadBalancer, 0).unwrap();
    let actual = stage.plane.read().unwrap();
    let (key, value) = actual.frontends.iter().find(|(key, _)| key.address().ip() == balanced.ip()).unwrap();
    let value = proxy_common::layout::Frontend { host_denied: 1, ..*value };
    stage.plane.apply(&[Step::PutFrontend { key: *key, value }]).unwrap();
    let socket = stage.place("a").datagrams(Family::V4).unwrap();
    let (_, counts) = stage.counted(|| socket.connect(balanced));
    assert_eq!(counts, once(&[HostDenied]));
}
