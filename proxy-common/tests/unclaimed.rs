//! What is sent to an address of Services and is no frontend (mode nftables), and to a NodePort where none is served
//! (mode iptables): by sockets, and as packets.

mod plane;
mod wire;
mod world;

use plane::{End, Node};
use proxy_common::{
    Protocol, Reason,
    datapath::{
        Call, Endpoint,
        datagram::send,
        socket::{Verdict, connect},
    },
    layout::{Frontend, FrontendKey, FrontendKind, LocalAddress, Node as Settings, Pods, Policy, RangeKey},
};
use wire::{ACK, Frame, Ip, SYN, icmp, segment};
use world::{Caller, HOST, POD, Storage, World, ip};

const RANGE: [&str; 4] = ["10.96.0.7", "10.96.0.8", "fd00:96::7", "fd00:96::8"];

/// Service 0 at port 80 of an address of each family, the first of [`RANGE`]; the second is nobody's.
fn fill(world: &mut World) {
    let endpoint = Endpoint { address: ip("10.0.0.1"), port: 8080 };
    world.extent(0, &[endpoint], &[], Policy::ANY_ENDPOINTS, 0);
    for address in [RANGE[0], RANGE[2]] {
        world.frontend(ip(address), 80, Protocol::Tcp, FrontendKind::ClusterIp, 0);
        let value = Frontend { service: 0, kind: FrontendKind::ClusterIp, host_denied: 0, reserved: 0 };
        world.frontends.insert(FrontendKey::mark(ip(address)), value);
    }
    world.ranges.extend(RANGE.map(|address| (RangeKey::SERVICES, ip(address))));
    if let Some(node) = &mut world.node {
        node.guards = Settings::UNCLAIMED;
    }
}

fn world() -> World {
    let mut world = World::new();
    fill(&mut world);
    world
}

fn call(address: &str, port: u16, protocol: Protocol) -> Call {
    Call { address: ip(address), port, protocol }
}

#[test]
fn a_socket_is_refused_at_a_port_that_no_service_declares() {
    let world = world();
    for who in [HOST, POD] {
        for (address, port, protocol) in
            [(RANGE[0], 81, Protocol::Tcp), (RANGE[0], 80, Protocol::Udp), (RANGE[2], 81, Protocol::Udp)]
        {
            let call = call(address, port, protocol);
            let mut caller = Caller::new(who);
            let said = connect(&world, &caller, &Storage::default(), &call);
            assert_eq!(said, Verdict::Refuse(Reason::PortUndeclared), "{call:?}");
            caller.can_refuse = false;
            let said = connect(&world, &caller, &Storage::default(), &call);
            let tcp = protocol == Protocol::Tcp;
            let left = Verdict::Leave(Reason::PortUndeclared);
            assert_eq!(said, if tcp { Verdict::RefuseByLoopback(Reason::PortUndeclared) } else { left });
        }
    }
    let datagram = call(RANGE[0], 81, Protocol::Udp);
    let said = |who| send(&world, &Caller::new(who), &mut Storage::default(), &datagram);
    assert_eq!(said(POD), Verdict::Leave(Reason::PortUndeclared), "a pod's datagram gets no error");
    assert_eq!(said(HOST), Verdict::Refuse(Reason::PortUndeclared));
}

#[test]
fn a_call_to_an_address_of_nobody_is_left_to_the_packet_plane() {
    let world = world();
    for address in [RANGE[1], RANGE[3]] {
        let said =
            connect(&world, &Caller::new(HOST), &Storage::default(), &call(address, 80, Protocol::Tcp));
        assert_eq!(said, Verdict::Leave(Reason::AddressUnallocated));
        let datagram = call(address, 80, Protocol::Udp);
        let said = |who| send(&world, &Caller::new(who), &mut Storage::default(), &datagram);
        assert_eq!(said(POD), Verdict::Leave(Reason::AddressUnallocated));
        assert_eq!(said(HOST), Verdict::Deny(Reason::AddressUnallocated), "kube-proxy drops in OUTPUT");
    }
}

#[test]
fn what_is_no_matter_of_services_is_left_alone() {
    let mut world = world();
    let left = |world: &World, address: &str, port: u16| {
        connect(world, &Caller::new(HOST), &Storage::default(), &call(address, port, Protocol::Tcp))
    };
    assert_eq!(left(&world, "10.97.0.1", 81), Verdict::Leave(Reason::NotService), "outside the ranges");
    assert_eq!(left(&world, RANGE[0], 0), Verdict::Refuse(Reason::PortUndeclared), "the mark leads nowhere");
    world.local.insert(ip(RANGE[0]), LocalAddress::default());
    assert_eq!(left(&world, RANGE[0], 81), Verdict::Leave(Reason::NotService), "an address of the node");
    let mut other = self::world();
    other.node = other.node.map(|node| Settings { guards: 0, ..node });
    assert_eq!(left(&other, RANGE[0], 81), Verdict::Leave(Reason::NotService), "another mode");
    assert_eq!(left(&other, RANGE[1], 81), Verdict::Leave(Reason::NotService), "another mode");
}

#[test]
fn outside_the_known_ranges_a_cluster_ip_is_known_and_nobody_else() {
    let mut world = world();
    let ranges = world.ranges.drain().map(|(_, address)| (RangeKey::MARKED, address)).collect();
    world.ranges = ranges;
    let said = |address: &str| {
        connect(&world, &Caller::new(HOST), &Storage::default(), &call(address, 81, Protocol::Tcp))
    };
    assert_eq!(said(RANGE[0]), Verdict::Refuse(Reason::PortUndeclared));
    assert_eq!(said(RANGE[1]), Verdict::Leave(Reason::NotService));
}

/// A node with a pod, and the world of [`fill`].
fn node() -> Node {
    let mut node = Node::new();
    node.link("veth-a", Pods::All, "169.254.1.1", "fe80::1");
    node.link("eth0", Pods::None, "192.168.0.1", "fd00:1::1");
    node.routes = vec![("10.0.0.2", "veth-a"), ("", "eth0")];
    fill(&mut node.ground.world);
    node
}

#[test]
fn packets_to_undeclared_ports_are_refused_and_to_nobody_dropped_for_everybody() {
    let mut node = node();
    for (by, from, v6) in
        [("veth-a", "10.0.0.2:5", "[fd00:a::2]:5"), ("eth0", "203.0.113.9:5", "[2001:db8::9]:5")]
    {
        for protocol in [6, 17, 132] {
            let mut arrive =
                |from: &str, to: &str| node.arrive(by, segment(protocol, from, to, SYN, b"four"));
            let own = if by == "eth0" { ["192.168.0.1", "fd00:1::1"] } else { ["169.254.1.1", "fe80::1"] };
            assert_eq!(arrive(from, "10.96.0.7:81"), End::Rejected(ip(own[0])), "{by} {protocol}");
            assert_eq!(arrive(v6, "[fd00:96::7]:81"), End::Rejected(ip(own[1])));
            assert_eq!(arrive(from, "10.96.0.8:80"), End::Dropped(Reason::AddressUnallocated));
            assert_eq!(arrive(v6, "[fd00:96::8]:53"), End::Dropped(Reason::AddressUnallocated));
        }
    }
    assert!(matches!(
        node.arrive("veth-a", segment(6, "10.0.0.2:5", "10.97.0.1:81", SYN, b"")),
        End::Out(..)
    ));
    node.ground.plane.handover = 1;
    let established = segment(6, "10.0.0.2:5", "10.96.0.7:81", ACK, b"");
    assert!(matches!(node.arrive("veth-a", established), End::Out(..)), "another proxy's connection");
}

/// An echo request, and a packet of GRE.
fn portless(from: &str, to: &str) -> [Frame; 2] {
    let (source, destination) = (ip(from).ip(), ip(to).ip());
    let kind = if source.is_ipv4() { [8, 0] } else { [128, 0] };
    [icmp(from, to, kind, [1, 2, 3, 4], b"ping"), Ip::new(source, destination, 47).frame(&[0; 8])]
}

#[test]
fn pings_and_other_packets_without_ports_are_refused_at_a_cluster_ip_and_dropped_for_nobody() {
    let mut node = node();
    for (by, from, own) in [
        ("veth-a", "10.0.0.2", "169.254.1.1"),
        ("eth0", "203.0.113.9", "192.168.0.1"),
        ("veth-a", "fd00:a::2", "fe80::1"),
        ("eth0", "2001:db8::9", "fd00:1::1"),
    ] {
        let [service, nobody, else_where] = if from.contains(':') {
            [RANGE[2], RANGE[3], "fd00:97::1"]
        } else {
            [RANGE[0], RANGE[1], "10.97.0.1"]
        };
        for number in 0..2 {
            let mut arrive = |to: &str| node.arrive(by, portless(from, to)[number].clone());
            assert_eq!(arrive(service), End::Rejected(ip(own)), "{from} {number}");
            assert_eq!(arrive(nobody), End::Dropped(Reason::AddressUnallocated), "{from} {number}");
            assert!(matches!(arrive(else_where), End::Out(..)), "{from} {number}");
            assert_eq!(node.last(), Reason::OtherTransport);
        }
    }
    // What answers or complains is never refused: that would be an error about an error.
    for kind in [0, 3, 11] {
        let frame = icmp("10.0.0.2", RANGE[0], [kind, 0], [0; 4], b"");
        assert!(matches!(node.arrive("veth-a", frame), End::Out(..)), "{kind}");
    }
    for number in 0..2 {
        let mut send = |to: &str| node.send(portless("192.168.0.1", to)[number].clone());
        assert_eq!([send(RANGE[0]), send(RANGE[1])], [const { End::Dropped(Reason::GuardDropped) }; 2]);
        assert!(matches!(send("203.0.113.9"), End::Out(..)));
    }
    node.ground.world.node = node.ground.world.node.map(|node| Settings { guards: 0, ..node });
    for number in 0..2 {
        let frame = portless("10.0.0.2", RANGE[0])[number].clone();
        assert!(matches!(node.arrive("veth-a", frame), End::Out(..)), "mode iptables leaves them alone");
        assert!(matches!(node.send(portless("192.168.0.1", RANGE[0])[number].clone()), End::Out(..)));
    }
}

#[test]
fn nothing_of_the_nodes_own_leaves_for_an_address_of_services() {
    let mut node = node();
    for to in ["10.96.0.7:81", "10.96.0.8:80"] {
        assert_eq!(
            node.send(segment(132, "192.168.0.1:5", to, SYN, b"")),
            End::Dropped(Reason::GuardDropped)
        );
    }
    node.ground.world.node = node.ground.world.node.map(|node| Settings { guards: 0, ..node });
    for to in ["10.96.0.7:81", "10.96.0.8:80"] {
        assert!(matches!(node.send(segment(132, "192.168.0.1:5", to, SYN, b"")), End::Out(..)));
    }
}

/// A NodePort 30080 with these endpoints of the two sets, and addresses where it is served and where it is shut.
fn shut(cluster: &[Endpoint], local: &[Endpoint], policy: u16) -> World {
    let mut world = World::new();
    let any = if cluster.is_empty() { 0 } else { Policy::ANY_ENDPOINTS };
    world.extent(0, cluster, local, policy | any, 0);
    world.frontend(proxy_common::Address::ANY_V4, 30080, Protocol::Tcp, FrontendKind::NodePort, 0);
    for (address, node_port) in [
        ("192.168.0.1", LocalAddress::SERVED),
        ("192.168.1.1", LocalAddress::REFUSED),
        ("127.0.0.1", LocalAddress::REFUSED),
    ] {
        world.local.insert(ip(address), LocalAddress { node_port });
    }
    world
}

#[test]
fn a_node_port_that_nobody_serves_is_refused_where_it_is_shut_and_else_left_alone() {
    let elsewhere = [Endpoint { address: ip("10.0.1.1"), port: 8080 }];
    let dial = |world: &World, who: u64, address: &str| {
        connect(world, &Caller::new(who), &Storage::default(), &call(address, 30080, Protocol::Tcp))
    };
    let nobody = shut(&[], &[], 0);
    let served = shut(&elsewhere, &[], 0);
    let local = shut(&elsewhere, &[], Policy::EXTERNAL_LOCAL);
    for (address, who) in
        [("192.168.1.1", HOST), ("192.168.1.1", POD), ("127.0.0.1", HOST), ("0.0.0.0", HOST)]
    {
        assert_eq!(dial(&nobody, who, address), Verdict::Refuse(Reason::Refused), "{address}");
        assert_eq!(dial(&served, who, address), Verdict::Leave(Reason::NotNodePort), "{address}");
        let dropped = match who {
            HOST => Verdict::TimeOut(Reason::TimedOut),
            _ => Verdict::Leave(Reason::DropLeft),
        };
        assert_eq!(dial(&local, who, address), dropped, "{address}");
    }
    assert_eq!(dial(&nobody, POD, "127.0.0.1"), Verdict::Leave(Reason::PodLoopback));
    assert!(matches!(dial(&local, HOST, "192.168.0.1"), Verdict::Rewrite { .. }), "the short circuit");

    let mut node = node();
    let mut arrive = |world: World, to: &str| {
        node.ground.world = world;
        node.arrive("eth0", segment(6, "203.0.113.9:5", to, SYN, b""))
    };
    assert_eq!(arrive(nobody, "192.168.1.1:30080"), End::Rejected(ip("192.168.1.1")));
    assert!(matches!(arrive(served, "192.168.1.1:30080"), End::Local(_)));
    assert_eq!(arrive(local, "192.168.1.1:30080"), End::Dropped(Reason::PolicyDropped));
}

#[test]
fn the_node_is_refused_at_its_own_address_as_everybody_is_also_in_mode_iptables() {
    let mut world = World::new();
    world.extent(0, &[], &[], Policy::HOST_REJECT_LEFT, 0);
    world.local.insert(ip("192.168.0.1"), LocalAddress { node_port: LocalAddress::SERVED });
    for address in ["192.168.0.1", "203.0.113.80"] {
        world.frontend(ip(address), 80, Protocol::Tcp, FrontendKind::LoadBalancer, 0);
    }
    let dial = |address: &str| {
        connect(&world, &Caller::new(HOST), &Storage::default(), &call(address, 80, Protocol::Tcp))
    };
    assert_eq!(dial("192.168.0.1"), Verdict::Refuse(Reason::Refused), "it comes in by loopback");
    assert_eq!(dial("203.0.113.80"), Verdict::Leave(Reason::RejectLeft));
}
