//! Stories of sockets: what each call of the socket plane decides, on host tables.

mod world;

use std::collections::BTreeSet;

use proxy_common::{
    Address,
    Protocol::{Tcp, Udp},
    Reason,
    datapath::{
        Endpoint, Env, datagram,
        socket::{self, Verdict},
    },
    layout::{FrontendKind, LocalAddress, Policy, SocketPlane},
};
use world::{Caller, HOST, POD, Storage, World, at, call, ip, set};

const ANY: u16 = Policy::ANY_ENDPOINTS;

/// One service on 10.96.0.1:80 and node port 30080 with three endpoints, the third on this node.
fn web(policy: u16, affinity: u32) -> World {
    let mut world = World::new();
    let endpoints = [at("10.0.1.1", 8080), at("10.0.1.2", 8080), at("10.0.0.3", 8081)];
    world.extent(0, &endpoints, &endpoints[2..], policy, affinity);
    for protocol in [Tcp, Udp] {
        world.frontend(ip("10.96.0.1"), 80, protocol, FrontendKind::ClusterIp, 0);
        world.frontend(Address::ANY_V4, 30080, protocol, FrontendKind::NodePort, 0);
        world.frontend(ip("192.0.2.5"), 80, protocol, FrontendKind::LoadBalancer, 0);
    }
    for local in ["192.168.0.1", "127.0.0.1"] {
        world.local.insert(ip(local), LocalAddress { node_port: 1 });
    }
    world
}

fn dial(world: &World, netns: u64, address: &str, port: u16) -> Verdict {
    socket::connect(world, &Caller::new(netns), &Storage::default(), &call(address, port, Tcp))
}

/// Where 200 connects go.
fn reached(world: &World, netns: u64, address: &str, port: u16) -> BTreeSet<(Address, u16)> {
    let caller = Caller::new(netns);
    let mut seen = BTreeSet::new();
    for _ in 0..200 {
        match socket::connect(world, &caller, &Storage::default(), &call(address, port, Tcp)) {
            Verdict::Rewrite { to, .. } => drop(seen.insert((to.address, to.port))),
            other => panic!("{address}:{port}: {other:?}"),
        }
    }
    seen
}

#[test]
fn a_cluster_ip_leads_to_every_endpoint_of_the_cluster_set() {
    let all = set(&[at("10.0.1.1", 8080), at("10.0.1.2", 8080), at("10.0.0.3", 8081)]);
    assert_eq!(reached(&web(ANY, 0), POD, "10.96.0.1", 80), all);
    assert_eq!(reached(&web(ANY, 0), HOST, "10.96.0.1", 80), all);
}

#[test]
fn internal_policy_local_leads_to_this_nodes_endpoints_for_everybody() {
    let world = web(ANY | Policy::INTERNAL_LOCAL, 0);
    for netns in [POD, HOST] {
        assert_eq!(reached(&world, netns, "10.96.0.1", 80), set(&[at("10.0.0.3", 8081)]));
        assert_eq!(reached(&world, netns, "192.168.0.1", 30080).len(), 3, "node ports are external");
    }
}

#[test]
fn external_policy_local_is_short_circuited_for_the_host_and_for_detected_pods_only() {
    let world = web(ANY | Policy::EXTERNAL_LOCAL, 0);
    assert_eq!(reached(&world, HOST, "192.0.2.5", 80).len(), 3);
    assert_eq!(
        reached(&world, POD, "192.0.2.5", 80),
        set(&[at("10.0.0.3", 8081)]),
        "no detector: as from outside"
    );
    let world = web(ANY | Policy::EXTERNAL_LOCAL | Policy::POD_DETECTOR, 0);
    assert_eq!(reached(&world, POD, "192.0.2.5", 80).len(), 3);
}

#[test]
fn in_mode_ipvs_nobody_short_circuits_an_external_policy_that_endpoints_here_satisfy() {
    let world = web(ANY | Policy::EXTERNAL_LOCAL | Policy::POD_DETECTOR | Policy::NO_CIRCUIT, 0);
    for netns in [POD, HOST] {
        assert_eq!(reached(&world, netns, "192.0.2.5", 80), set(&[at("10.0.0.3", 8081)]));
        assert_eq!(reached(&world, netns, "192.168.0.1", 30080), set(&[at("10.0.0.3", 8081)]));
        assert_eq!(reached(&world, netns, "10.96.0.1", 80).len(), 3, "a ClusterIP is not external");
    }
}

#[test]
fn a_node_port_is_served_on_local_addresses_that_serve_node_ports_and_nowhere_else() {
    let world = web(ANY, 0);
    assert_eq!(reached(&world, POD, "192.168.0.1", 30080).len(), 3);
    assert_eq!(dial(&world, POD, "192.168.0.9", 30080), Verdict::Leave(Reason::NotNodePort));
    assert_eq!(dial(&world, POD, "192.168.0.1", 80), Verdict::Leave(Reason::NotService));
}

#[test]
fn loopback_node_ports_are_the_hosts_and_a_pods_loopback_is_its_own() {
    let world = web(ANY, 0);
    assert_eq!(reached(&world, HOST, "127.0.0.1", 30080).len(), 3);
    assert_eq!(dial(&world, POD, "127.0.0.1", 30080), Verdict::Leave(Reason::PodLoopback));
    assert_eq!(reached(&world, HOST, "0.0.0.0", 30080).len(), 3, "0.0.0.0 is loopback to connect()");
    assert_eq!(dial(&world, POD, "0.0.0.0", 30080), Verdict::Leave(Reason::PodLoopback));
    let mut world = world;
    world.local.remove(&ip("127.0.0.1"));
    assert_eq!(
        dial(&world, HOST, "0.0.0.0", 30080),
        Verdict::Leave(Reason::NotNodePort),
        "not the wildcard itself"
    );
}

#[test]
fn an_address_is_matched_before_a_node_port_of_the_same_number() {
    let mut world = web(ANY, 0);
    world.extent(1, &[at("10.0.9.9", 9)], &[], ANY, 0);
    world.frontend(ip("10.96.0.7"), 30080, Tcp, FrontendKind::ClusterIp, 1);
    assert_eq!(reached(&world, POD, "10.96.0.7", 30080), set(&[at("10.0.9.9", 9)]));
}

#[test]
fn no_endpoint_anywhere_is_refused_and_endpoints_elsewhere_only_are_left_to_be_dropped() {
    let mut world = web(ANY, 0);
    world.extent(0, &[], &[], 0, 0);
    assert_eq!(dial(&world, POD, "10.96.0.1", 80), Verdict::Refuse(Reason::Refused));
    let mut caller = Caller::new(POD);
    caller.can_refuse = false;
    let connect = |p| socket::connect(&world, &caller, &Storage::default(), &call("10.96.0.1", 80, p));
    assert_eq!(connect(Tcp), Verdict::RefuseByLoopback(Reason::Refused), "kernels without bpf_set_retval");
    assert_eq!(connect(Udp), Verdict::Leave(Reason::RejectLeft));
    world.extent(0, &[at("10.0.1.1", 8080)], &[], ANY | Policy::INTERNAL_LOCAL, 0);
    assert_eq!(dial(&world, POD, "10.96.0.1", 80), Verdict::Leave(Reason::DropLeft));
}

#[test]
fn what_depends_on_the_clients_address_is_left_to_the_packet_plane_for_pods_only() {
    let world = web(ANY | Policy::LEAVE_INTERNAL | Policy::SOURCE_RANGES, 0);
    assert_eq!(dial(&world, POD, "10.96.0.1", 80), Verdict::Leave(Reason::ClientLeft));
    assert_eq!(dial(&world, POD, "192.0.2.5", 80), Verdict::Leave(Reason::ClientLeft));
    assert_eq!(reached(&world, HOST, "10.96.0.1", 80).len(), 3);
    assert_eq!(
        reached(&world, POD, "192.168.0.1", 30080).len(),
        3,
        "source ranges are for load balancer addresses"
    );
}

#[test]
fn a_host_outside_the_source_ranges_is_left_to_be_dropped() {
    let mut world = web(ANY | Policy::SOURCE_RANGES, 0);
    for frontend in world.frontends.values_mut() {
        frontend.host_denied = u8::from(frontend.kind == FrontendKind::LoadBalancer);
    }
    assert_eq!(dial(&world, HOST, "192.0.2.5", 80), Verdict::Leave(Reason::HostDenied));
    assert_eq!(reached(&world, HOST, "10.96.0.1", 80).len(), 3);
}

#[test]
fn the_socket_plane_can_be_limited_to_the_host_or_switched_off() {
    let mut world = web(ANY, 0);
    world.node.as_mut().expect("a node").socket_plane = SocketPlane::Host;
    assert_eq!(dial(&world, POD, "10.96.0.1", 80), Verdict::Leave(Reason::PlaneOff));
    assert_eq!(reached(&world, HOST, "10.96.0.1", 80).len(), 3);
    world.node.as_mut().expect("a node").socket_plane = SocketPlane::Off;
    assert_eq!(dial(&world, HOST, "10.96.0.1", 80), Verdict::Leave(Reason::PlaneOff));
}

#[test]
fn getpeername_gives_what_was_dialled_until_the_socket_dials_something_else() {
    let world = web(ANY, 0);
    let (caller, socket) = (Caller::new(HOST), Storage::default());
    let connect = |address, port| socket::connect(&world, &caller, &socket, &call(address, port, Udp));
    let Verdict::Rewrite { to, .. } = connect("127.0.0.1", 30080) else { panic!("not served") };
    let restored = Verdict::Rewrite { to: at("127.0.0.1", 30080), reason: Reason::PeerRestored };
    assert_eq!(socket::peer(&socket, &to), restored, "not the wildcard that matched");
    assert_eq!(socket::peer(&socket, &at("10.9.9.9", 1)), Verdict::Leave(Reason::PeerPlain));
    assert_eq!(connect("10.0.1.1", 8080), Verdict::Leave(Reason::NotService));
    assert_eq!(socket::peer(&socket, &to), Verdict::Leave(Reason::PeerPlain));
}

#[test]
fn affinity_lasts_as_long_as_it_is_used_and_only_while_its_endpoint_serves() {
    let mut world = web(ANY, 10);
    let caller = Caller::new(POD);
    let connect = |world: &World| match socket::connect(
        world,
        &caller,
        &Storage::default(),
        &call("10.96.0.1", 80, Tcp),
    ) {
        Verdict::Rewrite { to, .. } => to,
        other => panic!("{other:?}"),
    };
    let first = connect(&world);
    for _ in 0..50 {
        caller.seconds.set(caller.seconds.get() + 10);
        assert_eq!(connect(&world), first, "each use renews it");
    }
    let other = at("10.0.7.7", 7);
    world.extent(0, &[other], &[], ANY, 10);
    assert_eq!(connect(&world), other, "its endpoint is gone");
    world.extent(0, &[other, at("10.0.7.8", 7), at("10.0.7.9", 7)], &[], ANY, 10);
    let moved = (0..100).any(|_| {
        caller.seconds.set(caller.seconds.get() + 11);
        connect(&world) != other
    });
    assert!(moved, "it ends when it is not used");
}

fn send(world: &World, caller: &Caller, socket: &mut Storage, address: &str, port: u16) -> Endpoint {
    match datagram::send(world, caller, socket, &call(address, port, Udp)) {
        Verdict::Rewrite { to, .. } => to,
        other => panic!("{address}:{port}: {other:?}"),
    }
}

#[test]
fn an_unconnected_socket_keeps_its_backend_until_that_leaves_the_set_or_falls_silent() {
    let mut world = web(ANY, 0);
    let (caller, mut socket) = (Caller::new(POD), Storage::default());
    let first = send(&world, &caller, &mut socket, "10.96.0.1", 80);
    for _ in 0..50 {
        assert_eq!(send(&world, &caller, &mut socket, "10.96.0.1", 80), first);
    }
    let restored = Verdict::Rewrite { to: at("10.96.0.1", 80), reason: Reason::SourceRestored };
    assert_eq!(datagram::receive(&mut socket, &first), restored);
    world.extent(0, &[at("10.0.5.5", 5)], &[], ANY, 0);
    assert_eq!(send(&world, &caller, &mut socket, "10.96.0.1", 80), at("10.0.5.5", 5));
    assert_eq!(datagram::receive(&mut socket, &first), Verdict::Leave(Reason::SourcePlain));
    let many: Vec<Endpoint> = (0..200).map(|i| at(&format!("10.0.6.{i}"), 6)).collect();
    world.extent(0, &many, &[], ANY, 0);
    let first = send(&world, &caller, &mut socket, "10.96.0.1", 80);
    caller.seconds.set(caller.seconds.get() + 121);
    assert_ne!(send(&world, &caller, &mut socket, "10.96.0.1", 80), first, "1 in 200 that this is chance");
}

#[test]
fn an_unconnected_socket_that_was_silent_is_led_by_its_affinity_which_lasts_longer() {
    let many: Vec<Endpoint> = (0..200).map(|i| at(&format!("10.0.6.{i}"), 6)).collect();
    let mut world = web(ANY, 10_800);
    world.extent(0, &many, &[], ANY, 10_800);
    let (caller, mut socket) = (Caller::new(POD), Storage::default());
    let first = send(&world, &caller, &mut socket, "10.96.0.1", 80);
    for _ in 0..5 {
        // Longer than a socket's own memory of it, and shorter than the Service's.
        caller.seconds.set(caller.seconds.get() + 1_000);
        assert_eq!(send(&world, &caller, &mut socket, "10.96.0.1", 80), first);
        let mut other = Storage::default();
        assert_eq!(send(&world, &caller, &mut other, "10.96.0.1", 80), first, "of the same pod");
    }
}

#[test]
fn two_pods_behind_one_address_have_each_their_own_affinity() {
    let many: Vec<Endpoint> = (0..200).map(|i| at(&format!("10.0.6.{i}"), 6)).collect();
    let mut world = web(ANY, 10_800);
    world.extent(0, &many, &[], ANY, 10_800);
    let callers: Vec<_> = (POD..POD + 20).map(Caller::new).collect();
    let all = || {
        callers.iter().enumerate().map(|(number, caller)| {
            // They don't all draw the same.
            for _ in 0..number {
                let _ = caller.random();
            }
            let call = call("10.96.0.1", 80, Tcp);
            match socket::connect(&world, caller, &Storage::default(), &call) {
                Verdict::Rewrite { to, .. } => to,
                other => panic!("{other:?}"),
            }
        })
    };
    let first: Vec<Endpoint> = all().collect();
    assert!(first.iter().any(|endpoint| *endpoint != first[0]), "1 in 200^19 that this is chance");
    for _ in 0..5 {
        assert!(all().eq(first.iter().copied()), "each stays with its own");
    }
}

#[test]
fn two_dialled_addresses_of_one_socket_never_share_a_backend_if_there_is_another() {
    let mut world = web(ANY, 0);
    world.extent(1, &[at("10.0.1.1", 8080), at("10.0.1.2", 8080)], &[], ANY, 0);
    world.frontend(ip("10.96.0.2"), 53, Udp, FrontendKind::ClusterIp, 1);
    world.extent(0, &[at("10.0.1.1", 8080), at("10.0.1.2", 8080)], &[], ANY, 0);
    let caller = Caller::new(POD);
    for _ in 0..100 {
        let mut socket = Storage::default();
        let a = send(&world, &caller, &mut socket, "10.96.0.1", 80);
        let b = send(&world, &caller, &mut socket, "10.96.0.2", 53);
        assert_ne!(a, b);
        let shown = |socket: &mut Storage, from| match datagram::receive(socket, &from) {
            Verdict::Rewrite { to, .. } => to,
            other => panic!("{other:?}"),
        };
        assert_eq!(shown(&mut socket, a), at("10.96.0.1", 80));
        assert_eq!(shown(&mut socket, b), at("10.96.0.2", 53));
    }
}

#[test]
fn where_two_dialled_addresses_must_share_a_backend_the_one_sent_to_last_is_shown() {
    let mut world = web(ANY, 0);
    let only = at("10.0.1.1", 8080);
    world.extent(0, &[only], &[], ANY, 0);
    world.extent(1, &[only], &[], ANY, 0);
    world.frontend(ip("10.96.0.2"), 53, Udp, FrontendKind::ClusterIp, 1);
    let (caller, mut socket) = (Caller::new(POD), Storage::default());
    for (address, port) in [("10.96.0.1", 80), ("10.96.0.2", 53), ("10.96.0.1", 80)] {
        assert_eq!(send(&world, &caller, &mut socket, address, port), only);
        let shown = Verdict::Rewrite { to: at(address, port), reason: Reason::SourceRestored };
        assert_eq!(datagram::receive(&mut socket, &only), shown);
    }
    let direct = datagram::send(&world, &caller, &mut socket, &call("10.0.1.1", 8080, Udp));
    assert_eq!(direct, Verdict::Leave(Reason::NotService));
    assert_eq!(
        datagram::receive(&mut socket, &only),
        Verdict::Leave(Reason::SourcePlain),
        "sent to it directly"
    );
}

#[test]
fn more_dialled_addresses_than_slots_rotate_and_sending_stays_right() {
    let mut world = World::new();
    for i in 0..9_u32 {
        world.extent(i, &[at(&format!("10.0.0.{i}"), 53)], &[], ANY, 0);
        world.frontend(ip(&format!("10.96.0.{i}")), 53, Udp, FrontendKind::ClusterIp, i);
    }
    let (caller, mut socket) = (Caller::new(POD), Storage::default());
    for round in 0..3 {
        for i in 0..9 {
            caller.seconds.set(caller.seconds() + 1);
            let to = send(&world, &caller, &mut socket, &format!("10.96.0.{i}"), 53);
            assert_eq!(to, at(&format!("10.0.0.{i}"), 53), "round {round}");
        }
    }
}

#[test]
fn a_datagram_of_the_nodes_own_that_nobody_serves_fails_and_a_pods_goes_to_the_packet_plane() {
    let mut world = web(ANY, 0);
    let send = |world: &World, who, address, port, can_refuse| {
        let mut caller = Caller::new(who);
        caller.can_refuse = can_refuse;
        datagram::send(world, &caller, &mut Storage::default(), &call(address, port, Udp))
    };
    world.extent(0, &[], &[], 0, 0);
    for (address, port) in [("10.96.0.1", 80), ("192.168.0.1", 30080), ("192.0.2.5", 80)] {
        assert_eq!(send(&world, POD, address, port, true), Verdict::Leave(Reason::RejectLeft));
        assert_eq!(send(&world, HOST, address, port, true), Verdict::Refuse(Reason::Refused));
        assert_eq!(
            send(&world, HOST, address, port, false),
            Verdict::Leave(Reason::RejectLeft),
            "kernels without bpf_set_retval"
        );
    }
    world.extent(0, &[], &[], Policy::HOST_REJECT_LEFT, 0);
    assert_eq!(send(&world, HOST, "192.0.2.5", 80, true), Verdict::Leave(Reason::RejectLeft));
    world.extent(0, &[at("10.0.1.1", 8080)], &[], ANY | Policy::INTERNAL_LOCAL, 0);
    for can_refuse in [true, false] {
        assert_eq!(send(&world, POD, "10.96.0.1", 80, can_refuse), Verdict::Leave(Reason::DropLeft));
        assert_eq!(send(&world, HOST, "10.96.0.1", 80, can_refuse), Verdict::Deny(Reason::Denied));
    }
}

#[test]
fn what_the_node_dials_at_itself_and_a_policy_drops_times_out_at_once() {
    let mut world = web(ANY, 0);
    world.extent(0, &[at("10.0.1.1", 8080)], &[], ANY | Policy::INTERNAL_LOCAL, 0);
    assert_eq!(dial(&world, HOST, "10.96.0.1", 80), Verdict::Leave(Reason::DropLeft), "it leaves the node");
    world.local.insert(ip("10.96.0.1"), LocalAddress::default());
    assert_eq!(dial(&world, HOST, "10.96.0.1", 80), Verdict::TimeOut(Reason::TimedOut));
    assert_eq!(dial(&world, POD, "10.96.0.1", 80), Verdict::Leave(Reason::DropLeft), "it leaves the pod");
    let mut caller = Caller::new(HOST);
    caller.can_refuse = false;
    let connect = |p| socket::connect(&world, &caller, &Storage::default(), &call("10.96.0.1", 80, p));
    assert_eq!(connect(Tcp), Verdict::RefuseByLoopback(Reason::Refused), "kernels without bpf_set_retval");
    assert_eq!(connect(Udp), Verdict::Leave(Reason::DropLeft));
}

#[test]
fn a_socket_without_memory_for_a_record_is_served_and_counted_as_such() {
    let world = web(ANY, 0);
    let mut socket = Storage { no_memory: true, ..Storage::default() };
    let caller = Caller::new(POD);
    let connected = socket::connect(&world, &caller, &socket, &call("10.96.0.1", 80, Tcp));
    assert_eq!(connected.reason(), Reason::NoRecord);
    let sent = datagram::send(&world, &caller, &mut socket, &call("10.96.0.1", 80, Udp));
    assert_eq!(sent.reason(), Reason::NoRecord);
}
