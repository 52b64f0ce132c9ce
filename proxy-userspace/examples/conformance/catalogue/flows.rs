//! Cases of whole Services and the first packets of new connections to them: objects in, through the model, the plan and
//! the tables, and what the decision about each packet is.
//!
//! What comes from outside or from a pod is decided as a packet; what the node itself sends, as the call of a socket, and
//! what the socket is not served as the packet that then leaves.

mod objects;

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use proxy_common::{
    Protocol,
    datapath::{
        Call, Endpoint, Env, Socket,
        socket::{self, Verdict},
    },
    layout::{Connected, Device, Node, PacketPlane, SocketPlane, Timeouts, Unconnected},
    names::LAYOUT_VERSION,
};
use serde::Deserialize;
use vipr::{
    model::Model,
    plan::{Actual, Opening, Packets, Passage, Planner, View, need},
};

use self::objects::DEVICE;
use super::Outcome;

/// One case.
#[derive(Deserialize)]
pub(super) struct Case {
    #[serde(flatten)]
    objects: objects::Objects,
    flows: Vec<Flow>,
}

#[derive(Deserialize)]
struct Flow {
    name: String,
    src: IpAddr,
    dst: IpAddr,
    port: u16,
    proto: String,
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Expect {
    Word(Word),
    Sent { endpoints: BTreeSet<SocketAddr>, masquerade: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Word {
    Drop,
    Reject,
    Accept,
    Pass,
}

/// What becomes of a packet: of one of the client's ports, or of all that were tried.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Word(Word),
    Sent(SocketAddr, Source),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Client,
    Node,
    /// A socket of the node, sent to the backend before there was a packet: the source is the node's own.
    Socket,
}

/// Runs the flows of a case.
pub(super) fn run(case: Case, title: &str, outcome: &mut Outcome) -> Result<()> {
    let model = case.objects.model()?;
    let ground = Ground::new(&model, case.objects.settings()?.guards())?;
    for flow in &case.flows {
        let at = || format!("{title}: {}", flow.name);
        let fates = ground.fates(flow, case.objects.is_own(flow.src)).with_context(at)?;
        match difference(&flow.expect, &fates) {
            None => outcome.passed += 1,
            Some(difference) => outcome.failures.push(format!("{}: {difference}", at())),
        }
    }
    Ok(())
}

/// What is different, if anything is: every endpoint has to be met, and no other.
fn difference(expected: &Expect, fates: &BTreeSet<Fate>) -> Option<String> {
    let fits = match expected {
        Expect::Word(word) => fates.iter().all(|fate| fate.is(*word)),
        Expect::Sent { endpoints, masquerade } => {
            let met = fates.iter().filter_map(|fate| match fate {
                Fate::Sent(endpoint, source) if source.is_masqueraded(*masquerade) => Some(*endpoint),
                _ => None,
            });
            let met: Vec<_> = met.collect();
            met.len() == fates.len() && met.into_iter().collect::<BTreeSet<_>>() == *endpoints
        }
    };
    let fates: Vec<_> = fates.iter().map(ToString::to_string).collect();
    (!fits).then(|| format!("{}, expected is {expected}", fates.join(" or ")))
}

impl Fate {
    /// No program here filters what comes in, so to accept a packet is to pass it.
    fn is(&self, word: Word) -> bool {
        *self == Self::Word(word) || word == Word::Accept && *self == Self::Word(Word::Pass)
    }
}

impl Source {
    /// A socket of the node that is sent to a backend shows it an address of the node in any case, which is all that
    /// masquerading would do, and all that not masquerading would (spec §2.14).
    fn is_masqueraded(self, expected: bool) -> bool {
        match self {
            Self::Socket => true,
            Self::Node => expected,
            Self::Client => !expected,
        }
    }
}

/// What packets and calls are decided on.
struct Ground {
    actual: Actual,
    device: Device,
    /// As the agent would write it into `node`.
    guards: u32,
}

impl Ground {
    fn new(model: &Model, guards: u32) -> Result<Self> {
        let desired = model.desired();
        let device = desired.devices.get(&DEVICE).context("the device gets no programs")?.device;
        let mut planner = Planner::new(Actual::default(), need(desired));
        let steps = planner.plan(desired, None)?;
        planner.done(&steps);
        Ok(Self { actual: planner.actual().clone(), device, guards })
    }

    fn fates(&self, flow: &Flow, is_own: bool) -> Result<BTreeSet<Fate>> {
        /// Client ports that are tried: of a handful of endpoints none is missed.
        const PORTS: std::ops::Range<u16> = 40_000..40_512;
        ensure!(
            flow.src.is_ipv4() == flow.dst.is_ipv4(),
            "{} and {} are of two families",
            flow.src,
            flow.dst
        );
        let protocol = match &*flow.proto {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            "SCTP" => Protocol::Sctp,
            other => anyhow::bail!("{other:?} is no protocol"),
        };
        let opening = |port| Opening {
            from: Endpoint { address: flow.src.into(), port },
            to: Endpoint { address: flow.dst.into(), port: flow.port },
            protocol,
        };
        let fate = |port: u16| {
            let chance = u32::from(port - PORTS.start) << 23;
            if is_own { self.call(&opening(port), chance) } else { self.packet(&opening(port)) }
        };
        Ok(PORTS.map(fate).collect())
    }

    fn view(&self) -> View<'_> {
        let node = Node {
            netns_cookie: HOST,
            layout_version: LAYOUT_VERSION,
            socket_plane: SocketPlane::All,
            udp_timeout_seconds: 0,
            owner: 0,
            probe_address: 0,
            probe_port: 0,
            left_levels: 0,
            guards: self.guards,
        };
        View { actual: &self.actual, node: Some(node) }
    }

    fn packet(&self, opening: &Opening) -> Fate {
        let view = self.view();
        of(Packets::new(&view, &self.actual, PLANE, 0).arrive(opening, &self.device, &self.device))
    }

    fn call(&self, opening: &Opening, chance: u32) -> Fate {
        let view = self.view();
        let Endpoint { address, port } = opening.to;
        let call = Call { address, port, protocol: opening.protocol };
        // The programs leave SCTP alone before they look any further.
        let verdict = match opening.protocol {
            Protocol::Sctp => None,
            _ => Some(socket::connect(&view, &World(chance), &Blank, &call)),
        };
        match verdict {
            Some(Verdict::Rewrite { to, .. }) => Fate::Sent(at(to), Source::Socket),
            Some(Verdict::Refuse(_) | Verdict::RefuseByLoopback(_)) => Fate::Word(Word::Reject),
            Some(Verdict::TimeOut(_) | Verdict::Deny(_)) => Fate::Word(Word::Drop),
            Some(Verdict::Leave(_)) | None => {
                of(Packets::new(&view, &self.actual, PLANE, 0).leave(opening, &self.device))
            }
        }
    }
}

fn of(passage: Passage) -> Fate {
    match passage {
        Passage::Passed(_) => Fate::Word(Word::Pass),
        Passage::Dropped(_) => Fate::Word(Word::Drop),
        Passage::Rejected(_) => Fate::Word(Word::Reject),
        Passage::Sent { backend, masqueraded, .. } => {
            Fate::Sent(at(backend), if masqueraded { Source::Node } else { Source::Client })
        }
    }
}

fn at(endpoint: Endpoint) -> SocketAddr {
    SocketAddr::new(endpoint.address.ip(), endpoint.port)
}

/// Cookie of the node's own network namespace.
const HOST: u64 = 1;

const PLANE: PacketPlane = PacketPlane {
    seed: 0x1234_5678_9abc_def0,
    version: PacketPlane::VERSION,
    handover: 0,
    first_port: 61_000,
    last_port: 65_535,
    more_first_port: 0,
    more_last_port: 0,
    timeouts: Timeouts::DEFAULT,
};

/// A process of the node, and its chance.
struct World(u32);

impl Env for World {
    fn random(&self) -> u32 {
        self.0
    }
    fn seconds(&self) -> u32 {
        0
    }
    fn netns(&self) -> u64 {
        HOST
    }
    fn can_refuse(&self) -> bool {
        true
    }
}

/// A new socket.
struct Blank;

impl Socket for Blank {
    fn connected(&self) -> Option<Connected> {
        None
    }
    fn set_connected(&self, _: &Connected) -> bool {
        true
    }
    fn forget_connected(&self) {}
    fn unconnected(&mut self, _: bool) -> Option<&mut Unconnected> {
        None
    }
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_uppercase())
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => word.fmt(f),
            Self::Sent(to, Source::Client) => write!(f, "{to}"),
            Self::Sent(to, Source::Node) => write!(f, "{to} masqueraded"),
            Self::Sent(to, Source::Socket) => write!(f, "{to} from a socket"),
        }
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => word.fmt(f),
            Self::Sent { endpoints, masquerade } => {
                let all: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
                write!(f, "{}{}", all.join(" or "), if *masquerade { " masqueraded" } else { "" })
            }
        }
    }
}
