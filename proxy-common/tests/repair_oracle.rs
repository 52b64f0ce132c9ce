//! Repair against a naive oracle: a list of sockets, what connect() gave each, and whom it talks to. Sockets dial, send, hear
//! answers and dial again from the same port; endpoints come and go; the tables lose what they like.

mod plane;
mod wire;
mod world;

use std::collections::BTreeSet;

use plane::{End, Node};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use proxy_common::{
    Protocol::{Tcp, Udp},
    datapath::{Endpoint, Socket, socket},
    layout::{Flow, FrontendKind, Pods, Policy},
};
use wire::{ACK, SYN, segment};
use world::{Caller, POD, Storage, at, call, ip};

const DIALLED: [&str; 2] = ["10.96.0.1", "10.96.0.2"];
const BACKENDS: usize = 4;
/// Sockets, each of a port of its own; every second one is TCP's.
const SOCKETS: usize = 4;

fn backend(number: usize) -> Endpoint {
    at(&format!("10.0.1.{}", number + 1), 8080)
}

fn text(end: Endpoint) -> String {
    format!("{}:{}", end.address.ip(), end.port)
}

#[derive(Clone, Debug)]
enum Act {
    /// connect(), perhaps once more.
    Dial {
        socket: usize,
        dialled: usize,
    },
    /// A datagram; a greeting until it is answered, and what follows it.
    Send(usize),
    /// Whom the socket talks to answers.
    Answer(usize),
    /// The tables lose an entry.
    Forget(usize),
    Serve(u8),
    Wait(u32),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0..SOCKETS, 0..DIALLED.len()).prop_map(|(socket, dialled)| Act::Dial { socket, dialled }),
        8 => (0..SOCKETS).prop_map(Act::Send),
        5 => (0..SOCKETS).prop_map(Act::Answer),
        2 => any::<usize>().prop_map(Act::Forget),
        3 => (0..16_u8).prop_map(Act::Serve),
        1 => (0..200_u32).prop_map(Act::Wait),
    ]
}

/// A socket, as a person would keep it.
#[derive(Default)]
struct Kept {
    storage: Storage,
    caller: Option<Caller>,
    /// What connect() gave it.
    given: Option<Endpoint>,
    /// Who has its packets; none: nothing was sent.
    at: Option<Endpoint>,
    /// What it and earlier sockets of this port were given that was moved: who is given the same may find that flow.
    moved: BTreeSet<String>,
    /// The socket as its backend sees it: of another port, if an earlier socket of this one is still known to that backend.
    shown: String,
    /// TCP: it was answered.
    established: bool,
    /// The tables have lost nothing of it, and it was not silent for long.
    whole: bool,
}

struct Telling {
    node: Node,
    serving: u8,
    sockets: Vec<Kept>,
}

impl Telling {
    fn new(serving: u8) -> Self {
        let mut node = Node::new();
        node.link("veth", Pods::All, "169.254.1.1", "");
        node.link("eth0", Pods::None, "192.168.0.1", "");
        node.routes = vec![("10.0.0.2", "veth"), ("", "eth0")];
        for (service, dialled) in (0..).zip(DIALLED) {
            for protocol in [Tcp, Udp] {
                node.ground.world.frontend(ip(dialled), 80, protocol, FrontendKind::ClusterIp, service);
            }
        }
        let mut telling = Self { node, serving, sockets: (0..SOCKETS).map(|_| Kept::default()).collect() };
        telling.serve(serving);
        telling
    }

    fn set(&self) -> Vec<Endpoint> {
        (0..BACKENDS).filter(|number| self.serving >> number & 1 == 1).map(backend).collect()
    }

    fn serve(&mut self, serving: u8) {
        self.serving = serving;
        let set = self.set();
        let any = if set.is_empty() { 0 } else { Policy::ANY_ENDPOINTS };
        for service in 0..DIALLED.len() as u32 {
            self.node.ground.world.extent(service, &set, &[], any | Policy::POD_DETECTOR, 0);
        }
    }

    fn dial(&mut self, number: usize, dialled: usize) {
        let protocol = if is_tcp(number) { Tcp } else { Udp };
        let old = std::mem::take(&mut self.sockets[number]);
        // TCP's is closed first, and its peer forgets it. A datagram socket is the same one.
        let kept = &mut self.sockets[number];
        kept.moved = old.moved;
        if !is_tcp(number) {
            kept.storage = old.storage;
        }
        let caller = old.caller.unwrap_or_else(|| Caller::new(POD));
        let verdict = socket::connect(
            &self.node.ground.world,
            &caller,
            &kept.storage,
            &call(DIALLED[dialled], 80, protocol),
        );
        kept.caller = Some(caller);
        if let socket::Verdict::Rewrite { to, .. } = verdict {
            (kept.given, kept.whole) = (Some(to), true);
        }
    }

    fn send(&mut self, number: usize) -> Result<(), TestCaseError> {
        let set = self.set();
        let kept = &mut self.sockets[number];
        let Some(given) = kept.given else { return Ok(()) };
        // What a socket in SYN_SENT, or a connected one of datagrams, lets be seen.
        let record = if kept.established { None } else { kept.storage.connected() };
        self.node.ground.connected.set(record.map(|record| (if is_tcp(number) { Tcp } else { Udp }, record)));
        let (protocol, flags) = match (is_tcp(number), kept.established) {
            (false, _) => (17, 0),
            (true, false) => (6, SYN),
            (true, true) => (6, ACK),
        };
        let end = self.node.arrive("veth", segment(protocol, &client(number), &text(given), flags, b"x"));
        let found = match &end {
            End::Out(_, frame) => {
                let seen = wire::seen(frame);
                prop_assert_eq!(seen.source.ip().to_string(), "10.0.0.2", "nothing is masqueraded");
                kept.shown = seen.source.to_string();
                Endpoint { address: seen.destination.ip().into(), port: seen.destination.port() }
            }
            End::Rejected(_) => {
                prop_assert!(set.is_empty() && !kept.established, "refused, and {set:?} serve");
                kept.at = None;
                return Ok(());
            }
            other => return Err(TestCaseError::fail(format!("{other} of socket {number}"))),
        };
        match kept.at {
            _ if set.is_empty() && !kept.established => {
                return Err(TestCaseError::fail(format!("{found:?} got what nobody serves")));
            }
            Some(at) if kept.established && kept.whole => {
                prop_assert_eq!(found, at, "established, and moved")
            }
            Some(at) if kept.established => prop_assert!(found == at || found == given),
            Some(at) if set.contains(&at) && kept.whole => prop_assert_eq!(found, at, "moved without need"),
            None if set.contains(&given) && kept.whole && !kept.moved.contains(&text(given)) => {
                prop_assert_eq!(found, given, "moved at once");
            }
            _ => prop_assert!(set.contains(&found), "{found:?} serves no longer"),
        }
        if found != given {
            kept.moved.insert(text(given));
        }
        // What is not moved is remembered by nobody, so nothing of it can be lost.
        (kept.at, kept.whole) = (Some(found), kept.whole || !kept.established);
        Ok(())
    }

    fn answer(&mut self, number: usize) -> Result<(), TestCaseError> {
        let kept = &mut self.sockets[number];
        let (Some(at), Some(given)) = (kept.at, kept.given) else { return Ok(()) };
        let (protocol, flags) = match (is_tcp(number), kept.established) {
            (false, _) => (17, 0),
            (true, false) => (6, SYN | ACK),
            (true, true) => (6, ACK),
        };
        let end = self.node.arrive("eth0", segment(protocol, &text(at), &kept.shown, flags, b"y"));
        let End::Out("veth", frame) = &end else {
            return Err(TestCaseError::fail(format!("{end} for socket {number}")));
        };
        let source = wire::seen(frame).source.to_string();
        let heard = source == text(given);
        prop_assert!(heard || !kept.whole, "socket {number} heard {source} instead of {}", text(given));
        if heard {
            kept.established |= is_tcp(number);
        }
        Ok(())
    }

    /// A second passes, so that the next packet looks after all of its flow.
    fn forget(&mut self, entry: usize) {
        let keys = self.node.ground.keys();
        let Some((key, flow)) = keys.get(entry.checked_rem(keys.len()).unwrap_or(0)) else { return };
        self.node.ground.evict(key);
        for (number, kept) in self.sockets.iter_mut().enumerate() {
            if flow.client_port == port(number) {
                kept.whole = false;
            }
        }
        self.wait(1);
    }

    fn wait(&mut self, seconds: u32) {
        let now = &self.node.ground.seconds;
        now.set(now.get() + seconds);
        if seconds > 9 {
            self.sockets.iter_mut().for_each(|kept| kept.whole = false);
        }
    }

    fn act(&mut self, act: &Act) -> Result<(), TestCaseError> {
        match act {
            Act::Dial { socket, dialled } => self.dial(*socket, *dialled),
            Act::Send(socket) => self.send(*socket)?,
            Act::Answer(socket) => self.answer(*socket)?,
            Act::Forget(entry) => self.forget(*entry),
            Act::Serve(serving) => self.serve(*serving),
            Act::Wait(seconds) => self.wait(*seconds),
        }
        for (key, flow) in self.node.ground.keys() {
            prop_assert!(flow.is_repair(), "a flow that nobody dialled: {flow:?}");
            let own =
                (0..Flow::KEYS).filter_map(|number| flow.key(key.protocol, number)).any(|own| own == key);
            prop_assert!(own, "{key:?} leads to a flow that has no such key: {flow:?}");
        }
        Ok(())
    }
}

fn is_tcp(socket: usize) -> bool {
    socket % 2 == 1
}

fn port(socket: usize) -> u16 {
    1000 + socket as u16
}

fn client(socket: usize) -> String {
    format!("10.0.0.2:{}", port(socket))
}

/// The same histories in every run; others with `PROPTEST_RNG_SEED=N`.
fn config() -> ProptestConfig {
    let given = ProptestConfig::default();
    let rng_seed = if given.rng_seed == RngSeed::Random { RngSeed::Fixed(1) } else { given.rng_seed };
    ProptestConfig { cases: 1000, rng_seed, ..given }
}

proptest! {
    #![proptest_config(config())]
    #[test]
    fn sockets_talk_to_whom_a_person_would_keep_in_a_list(serving in 1..16_u8, acts in prop::collection::vec(act(), 1..80)) {
        let mut telling = Telling::new(serving);
        for act in &acts {
            telling.act(act)?;
        }
    }
}
