//! Flows against a naive oracle: a list of connections as a person would keep it, no keys, no tables, no states. Clients
//! dial, backends answer, endpoints come and go, time passes and the tables lose what they like.

mod plane;
mod wire;
mod world;

use std::{collections::BTreeSet, net::SocketAddr};

use plane::{End, Node};
use proptest::prelude::*;
use proxy_common::{
    Address,
    Protocol::{self, Tcp, Udp},
    Reason,
    layout::{Flow, FlowKey, FrontendKind, LocalAddress, Pods, Policy, Position, Timeouts},
};
use wire::{ACK, FIN, RST, SYN, segment, socket};
use world::{at, ip};

/// The last one serves on its own client port, and is a client.
const BACKENDS: [&str; 4] = ["10.0.1.1:8080", "10.0.1.2:8080", "10.0.1.3:8081", "10.0.0.2:1000"];
const CLIENTS: [&str; 4] = ["10.0.0.2:1000", "10.0.0.2:1001", "203.0.113.9:1000", "203.0.113.8:1000"];
/// Two of the first service, two of the second, one of the third, whose external policy is local.
const DIALLED: [&str; 5] =
    ["10.96.0.1:80", "172.16.0.1:30080", "10.96.0.2:80", "172.16.0.1:30081", "192.0.2.80:80"];

fn node(serving: u8) -> Node {
    let mut node = Node::new();
    node.link("veth-a", Pods::All, "169.254.1.1", "");
    node.link("eth0", Pods::None, "192.168.0.1", "");
    node.link("eth1", Pods::None, "172.16.0.1", "");
    node.routes = vec![("10.0.0.2", "veth-a"), ("203.0.113.", "eth1"), ("", "eth0")];
    let plane = &mut node.ground.plane;
    (plane.first_port, plane.last_port) = (61_000, 61_255);
    // One lifetime for all, so that the oracle needs no states; each has its own story in `flow_life`.
    let long = 1000;
    plane.timeouts = Timeouts {
        tcp_syn_sent: long,
        tcp_syn_received: long,
        tcp_established: long,
        tcp_fin_wait: long,
        tcp_close_wait: long,
        tcp_last_ack: long,
        tcp_time_wait: long,
        tcp_close: long,
        udp: long,
        udp_stream: long,
        ..Timeouts::DEFAULT
    };
    let world = &mut node.ground.world;
    for local in ["192.168.0.1", "172.16.0.1", "169.254.1.1"] {
        world.local.insert(ip(local), LocalAddress { node_port: 1 });
    }
    for protocol in [Tcp, Udp] {
        for service in [0, 1] {
            world.frontend(
                ip(&format!("10.96.0.{}", service + 1)),
                80,
                protocol,
                FrontendKind::ClusterIp,
                service,
            );
            world.frontend(
                Address::ANY_V4,
                30080 + service as u16,
                protocol,
                FrontendKind::NodePort,
                service,
            );
        }
        world.frontend(ip("192.0.2.80"), 80, protocol, FrontendKind::LoadBalancer, 2);
    }
    serve(&mut node, serving);
    node
}

/// The endpoints of all services, as bits.
fn serve(node: &mut Node, serving: u8) {
    let endpoints: Vec<_> =
        backends(serving).into_iter().map(|backend| at(&backend.ip().to_string(), backend.port())).collect();
    let any = if endpoints.is_empty() { 0 } else { Policy::ANY_ENDPOINTS };
    for (service, policy) in [(0, 0), (1, 0), (2, Policy::EXTERNAL_LOCAL)] {
        node.ground.world.extent(service, &endpoints, &endpoints, any | policy | Policy::POD_DETECTOR, 0);
    }
}

fn backends(serving: u8) -> BTreeSet<SocketAddr> {
    BACKENDS.iter().enumerate().filter(|(i, _)| serving >> i & 1 == 1).map(|(_, b)| socket(b)).collect()
}

#[derive(Clone, Debug)]
enum Act {
    Dial {
        client: usize,
        dialled: usize,
        udp: bool,
        flags: u8,
    },
    Answer {
        line: usize,
        flags: u8,
    },
    /// A backend that was left behind answers still.
    Haunt {
        line: usize,
        flags: u8,
    },
    Forget {
        entry: usize,
    },
    Serve(u8),
    Wait(u32),
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    let client_flags = prop::sample::select(vec![SYN, SYN, ACK, ACK, ACK, FIN | ACK, RST]);
    let backend_flags = prop::sample::select(vec![SYN | ACK, ACK, ACK, FIN | ACK, RST]);
    prop_oneof![
        8 => (0..CLIENTS.len(), 0..DIALLED.len(), any::<bool>(), client_flags)
            .prop_map(|(client, dialled, udp, flags)| Act::Dial { client, dialled, udp, flags }),
        6 => (any::<usize>(), backend_flags.clone()).prop_map(|(line, flags)| Act::Answer { line, flags }),
        1 => (any::<usize>(), backend_flags).prop_map(|(line, flags)| Act::Haunt { line, flags }),
        3 => any::<usize>().prop_map(|entry| Act::Forget { entry }),
        1 => (0..16_u8).prop_map(Act::Serve),
        2 => (0..4_u32).prop_map(Act::Wait),
        1 => Just(Act::Restart),
    ]
}

/// What a side has said about the end.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Last {
    Nothing,
    Done,
    Reset,
}

impl Last {
    fn after(self, flags: u8) -> Self {
        match self {
            _ if flags & RST != 0 => Self::Reset,
            _ if flags & FIN != 0 => Self::Done,
            // Who sends on did not mean it, or did not say it.
            Self::Reset => Self::Nothing,
            other => other,
        }
    }
}

/// What a backend says. Greeted after the end it would be of a connection that the client opened to the backend itself,
/// which has its own story in `flow_life`.
fn said(line: &Line, flags: u8, lives: bool) -> u8 {
    match (line.udp, lives) {
        (true, _) => 0,
        (false, true) => flags,
        (false, false) => flags & !SYN,
    }
}

/// A connection.
#[derive(Clone, Debug)]
struct Line {
    client: SocketAddr,
    dialled: SocketAddr,
    udp: bool,
    backend: SocketAddr,
    /// The client as the backend sees it.
    shown: SocketAddr,
    /// Of the client and of the backend; unknown after the tables have lost something of it.
    ended: Option<[Last; 2]>,
    /// The tables have lost nothing of it since its last packet.
    whole: bool,
    /// Who served when it began.
    serving: u8,
}

impl Line {
    fn is_over(&self) -> Option<bool> {
        self.ended.map(|ended| !self.udp && ended != [Last::Nothing; 2])
    }

    fn protocol(&self) -> Protocol {
        if self.udp { Udp } else { Tcp }
    }

    fn owns(&self, flow: &Flow, key: &FlowKey) -> bool {
        let end = |address: Address, port| SocketAddr::new(address.ip(), port);
        key.protocol == self.protocol()
            && end(flow.client(), flow.client_port) == self.client
            && end(flow.dialled(), flow.dialled_port) == self.dialled
            && end(flow.backend(), flow.backend_port) == self.backend
    }
}

struct Telling {
    node: Node,
    serving: u8,
    lines: Vec<Line>,
    /// What other connections have replaced.
    ghosts: Vec<Line>,
}

fn device(client: SocketAddr) -> &'static str {
    if client.ip().to_string().starts_with("10.0.0.") { "veth-a" } else { "eth1" }
}

impl Telling {
    fn dial(
        &mut self,
        client: SocketAddr,
        dialled: SocketAddr,
        udp: bool,
        flags: u8,
    ) -> Result<(), TestCaseError> {
        let number = if udp { 17 } else { 6 };
        let frame = segment(number, &client.to_string(), &dialled.to_string(), flags, b"payload");
        let end = self.node.arrive(device(client), frame);
        let known = self.lines.iter().position(|l| (l.client, l.dialled, l.udp) == (client, dialled, udp));
        let old = known.map(|i| self.lines.remove(i));
        let replaced = old.clone();
        let set = backends(self.serving);

        let seen = match &end {
            End::Out(_, frame) | End::Local(frame) => Some(wire::seen(frame)),
            End::Rejected(_) => None,
            End::Dropped(_) => return Err(TestCaseError::fail(format!("{end} of {client} > {dialled}"))),
        };
        let Some(seen) = seen else {
            // Refused: nobody serves, and no connection that lives on was refused.
            prop_assert!(set.is_empty(), "refused, and there are {set:?}");
            let lives = old.is_some_and(|l| l.whole && !udp && flags != SYN);
            prop_assert!(!lives, "an established connection was refused");
            // What the tables have lost the sight of may still be among them.
            self.ghosts.extend(replaced);
            return Ok(());
        };
        let (backend, shown) = (seen.destination, seen.source);
        prop_assert!(
            BACKENDS.contains(&backend.to_string().as_str()),
            "{client} > {dialled} went to {backend}"
        );

        let mut line = Line {
            client,
            dialled,
            udp,
            backend,
            shown,
            ended: Some([Last::Nothing.after(flags), Last::Nothing]),
            whole: true,
            serving: self.serving,
        };
        match old {
            Some(old) => {
                let gone = !set.contains(&old.backend);
                let anew = if udp {
                    Some(gone)
                } else if flags == SYN {
                    old.is_over().map(|over| over || gone)
                } else {
                    Some(false)
                };
                match anew {
                    Some(false) if old.whole => {
                        prop_assert_eq!((backend, shown), (old.backend, old.shown), "moved: {:?}", old);
                        line.serving = old.serving;
                        line.ended = old.ended.map(|[c, b]| [c.after(flags), b]);
                    }
                    Some(false) if old.serving == self.serving => {
                        prop_assert_eq!(backend, old.backend, "half forgotten and moved: {:?}", old);
                        line.ended = None;
                    }
                    Some(true) => prop_assert!(set.contains(&backend), "{backend} serves no longer"),
                    _ => {
                        prop_assert!(backend == old.backend || set.contains(&backend));
                        if backend == old.backend {
                            line.serving = old.serving;
                        }
                        line.ended = None;
                    }
                }
            }
            None => prop_assert!(set.contains(&backend), "{backend} does not serve"),
        }
        for other in &self.lines {
            let same = (other.udp, other.backend, other.shown) == (udp, backend, shown);
            prop_assert!(!same || !other.whole, "one tuple for {other:?} and {line:?}");
        }
        // Refused or served: an older one with another backend, or seen otherwise, is left behind.
        self.ghosts.extend(replaced.filter(|old| (old.backend, old.shown) != (backend, shown)));
        self.lines.push(line);
        Ok(())
    }

    fn answer(&mut self, index: usize, flags: u8) -> Result<(), TestCaseError> {
        let line = self.lines[index].clone();
        let number = if line.udp { 17 } else { 6 };
        // Is the key that the answer bears first still this connection's? What is lost is lost.
        let ours = line.whole || {
            let masqueraded = line.shown.ip() != line.client.ip();
            let position = if masqueraded { Position::Ingress } else { Position::Egress };
            self.node.ground.keys().iter().any(|(key, flow)| {
                key.position == position
                    && (Address::from_octets(key.source).ip(), key.source_port)
                        == (line.backend.ip(), line.backend.port())
                    && (Address::from_octets(key.destination).ip(), key.destination_port)
                        == (line.shown.ip(), line.shown.port())
                    && line.owns(flow, key)
            })
        };
        // What it lost another connection with the same backend may have taken, of the same client or with the same
        // port: nothing tells the answers of the two apart until the client speaks again.
        let lines = self.lines.iter().enumerate().filter(|(i, _)| *i != index).map(|(_, other)| other);
        let others = lines.chain(&self.ghosts).any(|l| {
            (l.udp, l.backend) == (line.udp, line.backend)
                && (l.client == line.client || l.shown == line.shown)
        });
        let from = if line.backend.ip().to_string().starts_with("10.0.0.") { "veth-a" } else { "eth0" };
        let frame = segment(number, &line.backend.to_string(), &line.shown.to_string(), flags, b"answer");
        let end = self.node.arrive(from, frame);
        let (End::Out(_, frame) | End::Local(frame)) = &end else {
            return Err(TestCaseError::fail(format!("{end} to {line:?}")));
        };
        let seen = wire::seen(frame);
        let found = (seen.source, seen.destination);
        if found == (line.dialled, line.client) {
            let line = &mut self.lines[index];
            line.ended = line.ended.filter(|_| line.whole).map(|[c, b]| [c, b.after(flags)]);
            line.whole = true;
        } else {
            prop_assert!(!ours || (others && !line.whole), "{:?} was shown {} > {}", line, found.0, found.1);
            prop_assert!(
                others || found == (line.backend, line.shown),
                "shown to somebody else: {line:?}: {end}"
            );
            self.said_by_another(found);
        }
        Ok(())
    }

    /// What was shown as another connection's answer counts as what its backend said.
    fn said_by_another(&mut self, found: (SocketAddr, SocketAddr)) {
        for line in self.lines.iter_mut().filter(|line| (line.dialled, line.client) == found) {
            line.ended = None;
        }
    }

    /// An answer from before is nobody's, unless its ends have become another connection's.
    fn haunt(&mut self, index: usize, flags: u8) -> Result<(), TestCaseError> {
        let ghost = self.ghosts[index].clone();
        let number = if ghost.udp { 17 } else { 6 };
        let from = if ghost.backend.ip().to_string().starts_with("10.0.0.") { "veth-a" } else { "eth0" };
        let frame = segment(number, &ghost.backend.to_string(), &ghost.shown.to_string(), flags, b"boo");
        let end = self.node.arrive(from, frame);
        let (End::Out(_, frame) | End::Local(frame)) = &end else {
            return Err(TestCaseError::fail(format!("{end} to the late {ghost:?}")));
        };
        let seen = wire::seen(frame);
        let plain = (seen.source, seen.destination) == (ghost.backend, ghost.shown);
        let of_ghost = |l: &Line| (l.client, l.dialled, l.udp) == (ghost.client, ghost.dialled, ghost.udp);
        let successor = self.lines.iter().position(of_ghost);
        // Of who replaced it the tables have lost what says so: it is the connection again, until the client speaks.
        let back = (seen.source, seen.destination) == (ghost.dialled, ghost.client);
        if back && successor.is_none_or(|i| !self.lines[i].whole) {
            self.ghosts.extend(successor.map(|i| self.lines.remove(i)));
            self.ghosts.retain(|l| (l.backend, l.shown) != (ghost.backend, ghost.shown));
            self.lines.push(Line { ended: None, whole: false, ..ghost });
            return Ok(());
        }
        let others = self.lines.iter().any(|l| {
            (l.udp, l.backend) == (ghost.udp, ghost.backend)
                && (l.client == ghost.client || l.shown == ghost.shown)
        });
        prop_assert!(plain || others, "{:?} was shown as {}", ghost, end);
        self.said_by_another((seen.source, seen.destination));
        Ok(())
    }

    /// The tables lose an entry. A second passes, so that the next packet looks after all of its flow.
    fn forget(&mut self, entry: usize) {
        let keys = self.node.ground.keys();
        let Some((key, flow)) = keys.get(entry.checked_rem(keys.len()).unwrap_or(0)) else { return };
        self.node.ground.evict(key);
        for line in self.lines.iter_mut().filter(|line| line.owns(flow, key)) {
            line.whole = false;
        }
        let left = self.node.ground.keys();
        self.lines.retain(|line| left.iter().any(|(key, flow)| line.owns(flow, key)));
        self.wait(1);
    }

    fn wait(&self, seconds: u32) {
        let now = &self.node.ground.seconds;
        now.set(now.get() + seconds);
    }

    fn act(&mut self, act: &Act) -> Result<(), TestCaseError> {
        match act {
            Act::Dial { client, dialled, udp, flags } => {
                self.dial(
                    socket(CLIENTS[*client]),
                    socket(DIALLED[*dialled]),
                    *udp,
                    if *udp { 0 } else { *flags },
                )?;
            }
            Act::Answer { line, flags } => {
                if let Some(index) = line.checked_rem(self.lines.len()) {
                    let line = &self.lines[index];
                    let shares =
                        |l: &&Line| (l.udp, l.client, l.backend) == (line.udp, line.client, line.backend);
                    let alone = self.lines.iter().filter(shares).count() == 1;
                    let lives = line.ended == Some([Last::Nothing; 2]) && alone;
                    self.answer(index, said(line, *flags, lives))?;
                }
            }
            Act::Haunt { line, flags } => {
                if let Some(index) = line.checked_rem(self.ghosts.len()) {
                    self.haunt(index, said(&self.ghosts[index], *flags, false))?;
                }
            }
            Act::Forget { entry } => self.forget(*entry),
            Act::Serve(serving) => {
                self.serving = *serving;
                serve(&mut self.node, *serving);
            }
            Act::Wait(seconds) => self.wait(*seconds),
            Act::Restart => {
                self.lines.clear();
                self.ghosts.clear();
                self.wait(2000);
            }
        }
        for (key, flow) in self.node.ground.keys() {
            let own =
                (0..Flow::KEYS).filter_map(|number| flow.key(key.protocol, number)).any(|own| own == key);
            prop_assert!(own, "{key:?} leads to a flow that has no such key: {flow:?}");
        }
        Ok(())
    }
}

/// Other histories in every run; more of them with `PROPTEST_CASES`.
fn config() -> ProptestConfig {
    let given = ProptestConfig::default();
    ProptestConfig { cases: given.cases.max(1000), ..given }
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn flows_are_what_a_person_would_keep_a_list_of(serving in 1..16_u8, acts in prop::collection::vec(act(), 1..80)) {
        let mut telling = Telling { node: node(serving), serving, lines: vec![], ghosts: vec![] };
        for act in &acts {
            telling.act(act)?;
        }
    }

    #[test]
    fn any_one_key_makes_the_others_anew(client in 0..CLIENTS.len(), dialled in 0..DIALLED.len(), udp in any::<bool>(), kept in 0..4_usize, answer_first in any::<bool>()) {
        let mut telling = Telling { node: node(7), serving: 7, lines: vec![], ghosts: vec![] };
        let (client, dialled) = (socket(CLIENTS[client]), socket(DIALLED[dialled]));
        let flags = if udp { 0 } else { ACK };
        telling.dial(client, dialled, udp, if udp { 0 } else { SYN })?;
        telling.answer(0, if udp { 0 } else { SYN | ACK })?;
        telling.dial(client, dialled, udp, flags)?;
        let keys = telling.node.ground.keys();
        for (i, (key, _)) in keys.iter().enumerate() {
            if i != kept % keys.len() {
                telling.node.ground.evict(key);
            }
        }
        telling.lines[0].whole = false;
        telling.wait(1);
        if answer_first {
            telling.answer(0, flags)?;
        }
        let before = telling.lines[0].clone();
        telling.dial(client, dialled, udp, flags)?;
        let after = telling.lines[0].clone();
        prop_assert_eq!((after.backend, after.shown), (before.backend, before.shown));
        prop_assert_eq!(telling.node.ground.keys().len(), keys.len());
        telling.answer(0, flags)?;
    }
}

#[test]
fn a_flood_of_greetings_is_never_among_the_confirmed_though_each_is_answered() {
    let mut node = node(15);
    node.ground.plane.last_port = 65_000;
    for port in 1..2000 {
        let greeting = segment(6, &format!("203.0.113.9:{port}"), "172.16.0.1:30080", SYN, b"");
        if let End::Out(_, frame) = node.arrive("eth1", greeting) {
            let seen = wire::seen(&frame);
            let from =
                if seen.destination.ip().to_string().starts_with("10.0.0.") { "veth-a" } else { "eth0" };
            let (source, to) = (seen.destination.to_string(), seen.source.to_string());
            let end = node.arrive(from, segment(6, &source, &to, SYN | ACK, b"")).to_string();
            assert_eq!(end, format!("eth1: 172.16.0.1:30080 > 203.0.113.9:{port}"));
        }
    }
    let flows = node.ground.flows.borrow();
    assert!(flows.len() > 2000);
    assert!(flows.keys().all(|(stage, _)| *stage == proxy_common::datapath::flow::Stage::Tcp));
    drop(flows);
    assert_ne!(node.last(), Reason::NoPort);
}
