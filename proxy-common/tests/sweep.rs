//! The sweep of the flows' tables: two nodes meet the same packets, one of them is swept in between, and nobody can tell which.

mod plane;
mod wire;
mod world;

use std::collections::{BTreeSet, HashMap};

use plane::{Ground, Node};
use proptest::prelude::*;
use proxy_common::{
    Address,
    Protocol::{self, Sctp, Tcp, Udp},
    datapath::{
        flow::Stage,
        sweep::{IN_USE, Removed, Shelf, Turn, sweep, turn},
        track,
    },
    layout::{Flow, FlowKey, FrontendKind, LocalAddress, Pods, Policy},
};
use wire::{ACK, FIN, RST, SYN, segment};
use world::{at, ip};

const CLIENTS: [&str; 3] = ["203.0.113.9:5000", "203.0.113.9:5001", "10.0.0.2:5000"];
/// Masquerading and not; both lead to the same endpoints, so that flows get in each other's way.
const DIALLED: [&str; 2] = ["172.16.0.1:30080", "10.96.0.1:80"];
/// What a client says and a backend answers, for TCP and SCTP; datagrams are all the same.
const SAID: [[u8; 4]; 2] = [[SYN, ACK, FIN | ACK, RST], [SYN | ACK, ACK, FIN | ACK, RST]];

impl Shelf for Ground {
    fn record(&self, stage: Stage, key: &FlowKey) -> Option<Flow> {
        self.flows.borrow().get(&(stage, *key)).copied()
    }
    fn remove(&self, stage: Stage, key: &FlowKey) -> bool {
        self.flows.borrow_mut().remove(&(stage, *key)).is_some()
    }
}

fn node(backends: &[&str]) -> Node {
    let mut node = Node::new();
    node.link("eth0", Pods::None, "192.168.0.1", "");
    node.link("eth1", Pods::None, "172.16.0.1", "");
    node.link("veth-a", Pods::All, "169.254.1.1", "");
    node.routes = vec![("203.0.113.", "eth1"), ("10.0.0.2", "veth-a"), ("", "eth0")];
    for local in ["192.168.0.1", "172.16.0.1", "169.254.1.1"] {
        node.ground.world.local.insert(ip(local), LocalAddress { node_port: 1 });
    }
    for protocol in [Tcp, Udp, Sctp] {
        node.ground.world.frontend(Address::ANY_V4, 30080, protocol, FrontendKind::NodePort, 0);
        node.ground.world.frontend(ip("10.96.0.1"), 80, protocol, FrontendKind::ClusterIp, 0);
    }
    serve(&mut node, backends);
    node
}

fn serve(node: &mut Node, backends: &[&str]) {
    let endpoints: Vec<_> = backends.iter().map(|address| at(address, 8080)).collect();
    let any = if endpoints.is_empty() { 0 } else { Policy::ANY_ENDPOINTS };
    node.ground.world.extent(0, &endpoints, &[], any | Policy::POD_DETECTOR, 0);
}

/// Every entry, as a walk meets them.
fn entries(node: &Node) -> Vec<(Stage, FlowKey, Flow)> {
    let flows = node.ground.flows.borrow();
    let mut all: Vec<_> = flows.iter().map(|((stage, key), flow)| (*stage, *key, *flow)).collect();
    all.sort_by_key(|(stage, key, _)| {
        (
            *stage as u32,
            key.source_port,
            key.destination_port,
            key.source,
            key.destination,
            key.position as u8,
        )
    });
    all
}

/// Remove what is over.
fn swept(node: &Node) -> Removed {
    let (now, timeouts) = (node.ground.seconds.get(), node.ground.plane.timeouts);
    let mut all = Removed::default();
    for (stage, key, flow) in entries(node) {
        let is_over = |flow: &Flow| track::has_expired(key.protocol, flow, &timeouts, now);
        let removed = sweep(&node.ground, stage, &key, &flow, is_over);
        all.confirmed += removed.confirmed;
        all.unconfirmed += removed.unconfirmed;
    }
    all
}

#[derive(Clone, Debug)]
enum Act {
    Dial {
        client: usize,
        dialled: usize,
        protocol: usize,
        says: usize,
    },
    /// To one of the packets that backends have got.
    Answer {
        which: usize,
        says: usize,
    },
    Wait(u32),
    Serve(u8),
    /// An entry is evicted.
    Forget(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let waits = prop::sample::select(vec![1, 2, 4, 11, 31, 61, 121, 211, 3601, 86_401]);
    prop_oneof![
        8 => (0..3_usize, 0..2_usize, 0..3_usize, 0..4_usize)
            .prop_map(|(client, dialled, protocol, says)| Act::Dial { client, dialled, protocol, says }),
        8 => (any::<usize>(), 0..4_usize).prop_map(|(which, says)| Act::Answer { which, says }),
        4 => waits.prop_map(Act::Wait),
        1 => (1..8_u8).prop_map(Act::Serve),
        2 => any::<usize>().prop_map(Act::Forget),
    ]
}

const BACKENDS: [&str; 3] = ["10.0.1.1", "10.0.1.2", "10.0.1.3"];
const PROTOCOLS: [u8; 3] = [6, 17, 132];

/// A segment's flags, or an SCTP chunk that says the same.
fn flags(protocol: u8, says: u8) -> u8 {
    match protocol {
        132 if says == SYN => 1,
        132 if says == SYN | ACK => 2,
        132 if says == ACK => 10,
        132 if says == FIN | ACK => 7,
        132 => 6,
        17 => 0,
        _ => says,
    }
}

/// What becomes of an act's packet, as text. `sent`: protocol and ends of what backends have got.
fn play(node: &mut Node, act: &Act, sent: &[(u8, String, String)]) -> Option<(u8, plane::End)> {
    match act {
        Act::Dial { client, dialled, protocol, says } => {
            let (protocol, client) = (PROTOCOLS[*protocol], CLIENTS[*client]);
            let device = if client.starts_with("10.") { "veth-a" } else { "eth1" };
            let frame = segment(protocol, client, DIALLED[*dialled], flags(protocol, SAID[0][*says]), b"x");
            Some((protocol, node.arrive(device, frame)))
        }
        Act::Answer { which, says } => {
            let (protocol, source, backend) = sent.get(which % sent.len().max(1))?;
            let frame = segment(*protocol, backend, source, flags(*protocol, SAID[1][*says]), b"y");
            Some((*protocol, node.arrive("eth0", frame)))
        }
        Act::Wait(seconds) => {
            node.ground.seconds.set(node.ground.seconds.get() + seconds);
            None
        }
        Act::Serve(bits) => {
            let serving = BACKENDS.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1);
            serve(node, &serving.map(|(_, backend)| *backend).collect::<Vec<_>>());
            None
        }
        Act::Forget(_) => None,
    }
}

/// The flows that live, each by its own key, with their state; and how many of their keys are there.
fn living(node: &Node) -> HashMap<FlowKey, (Flow, usize)> {
    let (now, timeouts) = (node.ground.seconds.get(), node.ground.plane.timeouts);
    let all = entries(node);
    let own = all.iter().filter(|(stage, key, flow)| {
        let confirmed = all.iter().any(|(at, other, _)| *at == Stage::Confirmed && other == key);
        *key == flow.dialled_key(key.protocol) && (*stage == Stage::Confirmed || !confirmed)
    });
    own.filter(|(_, key, flow)| {
        now.saturating_sub(flow.seen) <= track::lifetime(key.protocol, flow, &timeouts)
    })
    .map(|(_, key, flow)| {
        let keys: BTreeSet<_> = (0..Flow::KEYS)
            .filter_map(|number| flow.key(key.protocol, number))
            .map(|key| format!("{key:?}"))
            .collect();
        let there =
            all.iter().filter(|(_, other, of)| of.is_same(flow) && keys.contains(&format!("{other:?}")));
        (*key, (*flow, there.count()))
    })
    .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn nobody_can_tell_whether_a_node_was_swept(acts in prop::collection::vec((act(), any::<bool>()), 1..60)) {
        let (mut plain, mut clean) = (node(&BACKENDS), node(&BACKENDS));
        let mut sent: Vec<(u8, String, String)> = Vec::new();
        for (act, sweeps) in &acts {
            if *sweeps {
                let before = living(&clean);
                swept(&clean);
                let after = living(&clean);
                for (key, (flow, keys)) in &before {
                    prop_assert_eq!(after.get(key), Some(&(*flow, *keys)), "a living flow lost something");
                }
                prop_assert_eq!(before.len(), after.len());
            }
            if let Act::Forget(which) = act {
                // What both have; what only one has is over, or is nobody's any more.
                let keys: BTreeSet<_> = entries(&plain).iter().map(|(_, key, _)| format!("{key:?}")).collect();
                let both: Vec<_> =
                    entries(&clean).into_iter().filter(|(_, key, _)| keys.contains(&format!("{key:?}"))).collect();
                if let Some((_, key, _)) = both.get(which % both.len().max(1)) {
                    plain.ground.evict(key);
                    clean.ground.evict(key);
                }
                continue;
            }
            let (one, two) = (play(&mut plain, act, &sent), play(&mut clean, act, &sent));
            prop_assert_eq!(&one, &two, "{:?}", act);
            if let (Act::Dial { .. }, Some((protocol, plane::End::Out("eth0", frame)))) = (act, one) {
                let seen = wire::seen(&frame);
                sent.push((protocol, seen.source.to_string(), seen.destination.to_string()));
            }
        }
    }

    #[test]
    fn what_is_over_is_gone_after_a_sweep_with_all_its_keys(acts in prop::collection::vec(act(), 1..60)) {
        let mut node = node(&BACKENDS);
        let mut sent: Vec<(u8, String, String)> = Vec::new();
        for act in &acts {
            let end = play(&mut node, act, &sent);
            if let (Act::Dial { .. }, Some((protocol, plane::End::Out("eth0", frame)))) = (act, end) {
                let seen = wire::seen(&frame);
                sent.push((protocol, seen.source.to_string(), seen.destination.to_string()));
            }
        }
        let all = entries(&node).len();
        let first = swept(&node).keys() as usize;
        prop_assert_eq!(entries(&node).len(), all - first, "counted as removed");
        let (now, timeouts) = (node.ground.seconds.get(), node.ground.plane.timeouts);
        for (_, key, flow) in entries(&node) {
            let over = track::has_expired(key.protocol, &flow, &timeouts, now);
            let own = flow.dialled_key(key.protocol);
            let lives = entries(&node).iter().any(|(_, key, of)| {
                *key == own && of.is_same(&flow) && !track::has_expired(key.protocol, of, &timeouts, now)
            });
            prop_assert!(!over || lives, "{:?} is over and was left", flow);
        }
        node.ground.seconds.set(now + 100_000);
        swept(&node);
        prop_assert_eq!(entries(&node).len(), 0, "a day later nothing is left");
    }
}

/// A masqueraded flow with four keys, established.
fn established() -> Node {
    let mut node = node(&BACKENDS[..1]);
    let ends = |end| match end {
        plane::End::Out(_, frame) => wire::seen(&frame),
        end => panic!("{end}"),
    };
    let there = ends(node.arrive("eth1", segment(6, CLIENTS[0], DIALLED[0], SYN, b"")));
    let (backend, source) = (there.destination.to_string(), there.source.to_string());
    node.arrive("eth0", segment(6, &backend, &source, SYN | ACK, b""));
    node.arrive("eth1", segment(6, CLIENTS[0], DIALLED[0], ACK, b""));
    assert_eq!(entries(&node).len(), 4);
    node
}

/// A table that a packet changes before the entry of a number is looked at.
struct Meanwhile<'a> {
    ground: &'a Ground,
    looks: std::cell::Cell<u32>,
    at: u32,
    change: &'a dyn Fn(),
}

impl Shelf for Meanwhile<'_> {
    fn record(&self, stage: Stage, key: &FlowKey) -> Option<Flow> {
        self.looks.set(self.looks.get() + 1);
        if self.looks.get() == self.at {
            (self.change)();
        }
        self.ground.record(stage, key)
    }
    fn remove(&self, stage: Stage, key: &FlowKey) -> bool {
        self.ground.remove(stage, key)
    }
}

#[test]
fn a_flow_that_a_packet_renews_while_it_is_taken_away_stays() {
    // The record that counts is looked at, then each key.
    for at in 1..=6 {
        let node = established();
        node.ground.seconds.set(node.ground.seconds.get() + 10);
        let node = std::cell::RefCell::new(node);
        let shelf_ground = same_tables(&node.borrow());
        let met = entries(&node.borrow());
        let send = || {
            // The packet is met by the same tables.
            let end = node.borrow_mut().arrive("eth1", segment(6, CLIENTS[0], DIALLED[0], ACK, b"z"));
            assert!(end.to_string().ends_with("> 10.0.1.1:8080"), "{end}");
        };
        let shelf = Meanwhile { ground: &shelf_ground, looks: 0.into(), at, change: &send };
        // Whoever makes room takes it for idle.
        let (stage, key, flow) = met.iter().find(|(_, key, flow)| *key == flow.dialled_key(Tcp)).unwrap();
        let (now, timeouts) = (shelf_ground.seconds.get(), shelf_ground.plane.timeouts);
        sweep(&shelf, *stage, key, flow, |flow| turn(Tcp, flow, &timeouts, now).is_some());
        // From the look that saw the packet's mark nothing more went, and the packet made anew what had gone.
        let left = if shelf.looks.get() >= at { 4 } else { 0 };
        assert_eq!(entries(&node.borrow()).len(), left, "renewed before look {at}");
    }
}

/// The same tables, for a second borrower.
fn same_tables(node: &Node) -> Ground {
    let mut ground = Ground::new();
    ground.flows = node.ground.flows.clone();
    ground.seconds.set(node.ground.seconds.get());
    ground
}

#[test]
fn whose_turn_it_is_follows_what_was_said_and_how_long_ago() {
    let node = established();
    let (_, _, flow) = entries(&node)[0];
    let timeouts = node.ground.plane.timeouts;
    let at = |protocol: Protocol, client_state, backend_state, silence| {
        let flow = Flow { client_state, backend_state, seen: 1000, ..flow };
        turn(protocol, &flow, &timeouts, 1000 + silence)
    };
    use track::{DONE, HEARD, RESET, TALKED};
    let (open, half) = ((TALKED, TALKED), (DONE, TALKED | HEARD));
    let ended = (DONE | HEARD, DONE | HEARD);
    for (protocol, (client, backend), silence, expected) in [
        (Tcp, open, 0, None),
        (Tcp, open, IN_USE, Some(Turn::Idle)),
        (Tcp, open, timeouts.tcp_established + 1, Some(Turn::Expired)),
        (Tcp, half, 0, None),
        (Tcp, half, IN_USE, Some(Turn::Closing)),
        (Tcp, (RESET, TALKED), 1, None),
        (Tcp, (RESET, TALKED), IN_USE, Some(Turn::Closing)),
        (Tcp, ended, 0, Some(Turn::Closing)),
        (Udp, open, 0, Some(Turn::Datagrams)),
        (Udp, open, IN_USE, Some(Turn::Datagrams)),
        (Udp, open, timeouts.udp_stream + 1, Some(Turn::Expired)),
        (Sctp, open, IN_USE, Some(Turn::Idle)),
    ] {
        assert_eq!(
            at(protocol, client, backend, silence),
            expected,
            "{protocol} {client} {backend} {silence}"
        );
    }
}

/// Sweeps one entry by the rule that expiry has at lookup.
fn sweep_one(node: &Node, (stage, key, flow): &(Stage, FlowKey, Flow)) -> Removed {
    let (now, timeouts) = (node.ground.seconds.get(), node.ground.plane.timeouts);
    sweep(&node.ground, *stage, key, flow, |flow| track::has_expired(Tcp, flow, &timeouts, now))
}

#[test]
fn a_copy_that_is_older_than_the_record_that_counts_does_not_end_the_flow() {
    let node = established();
    node.ground.seconds.set(200_000);
    for (stage, key, mut flow) in entries(&node) {
        flow.seen = if key == flow.dialled_key(Tcp) { 199_999 } else { 1000 };
        node.ground.flows.borrow_mut().insert((stage, key), flow);
    }
    for met in entries(&node) {
        assert_eq!(sweep_one(&node, &met), Removed::default());
    }
    assert_eq!(entries(&node).len(), 4);
}

#[test]
fn a_key_that_was_left_behind_goes_alone() {
    // By a flow that was moved: the record that counts names another backend.
    let node = established();
    let all = entries(&node);
    let (stage, own, flow) = all.iter().find(|(_, key, flow)| *key == flow.dialled_key(Tcp)).unwrap();
    let now = node.ground.seconds.get() + 200_000;
    node.ground.seconds.set(now);
    let moved = Flow { backend: ip("10.0.1.2").octets(), seen: now, ..*flow };
    node.ground.flows.borrow_mut().insert((*stage, *own), moved);
    for met in all.iter().filter(|(_, key, _)| key != own) {
        assert_eq!(sweep_one(&node, met), Removed { confirmed: 1, unconfirmed: 0 });
    }
    assert_eq!(entries(&node), [(*stage, *own, moved)]);

    // By confirming: what is left in the other table is old, the flow is not.
    let node = established();
    let (_, own, flow) = *all.iter().find(|(_, key, flow)| *key == flow.dialled_key(Tcp)).unwrap();
    node.ground.flows.borrow_mut().insert((Stage::Tcp, own), flow);
    node.ground.flows.borrow_mut().insert((Stage::Confirmed, own), Flow { seen: now, ..flow });
    node.ground.seconds.set(now);
    assert_eq!(sweep_one(&node, &(Stage::Tcp, own, flow)), Removed { confirmed: 0, unconfirmed: 1 });
    assert_eq!(entries(&node).len(), 4);
}

#[test]
fn no_record_of_another_version_is_swept() {
    let node = established();
    node.ground.seconds.set(200_000);
    for (stage, key, flow) in entries(&node) {
        node.ground.flows.borrow_mut().insert((stage, key), Flow { version: 9, ..flow });
    }
    for met in entries(&node) {
        assert_eq!(sweep_one(&node, &met), Removed::default());
    }
}
