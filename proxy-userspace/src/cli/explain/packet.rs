//! What becomes of the first packet of a new connection, by the decisions of the packet plane before routing and after it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use anyhow::{Context, Result, ensure};
use proxy_common::{
    Address, Reason,
    datapath::{Endpoint, Origin, opening::origin_of, select::Extent},
    layout::{Device, FrontendKind, Pods, Policy},
};

use super::{Caller, Ground, Question};
use crate::{
    plan::{Opening, Packets, Passage},
    text::{self, CallRow},
};

/// Who sends it, and where it is met.
pub(super) struct Sender {
    pub(super) origin: Origin,
    pub(super) address: Address,
    /// Who is taken to send, and why.
    pub(super) text: String,
    /// The address tells whether it is a pod's.
    pub(super) is_known: bool,
    device: Device,
}

/// What becomes of it.
pub(super) struct Told {
    pub(super) row: CallRow,
    /// It goes to an endpoint.
    pub(super) sent: bool,
    /// As whom the endpoint sees its sender.
    pub(super) seen: Seen,
}

/// As whom endpoints see the sender.
pub(super) enum Seen {
    Nobody,
    /// By the address that stands for it; endpoints whose sender is themselves, if it is only these.
    Node {
        by: BTreeMap<Address, Vec<String>>,
        none: Vec<String>,
        only: Option<SocketAddr>,
    },
    Client,
}

/// Client ports that are tried: each endpoint is met by one of them.
const PORTS: std::ops::Range<u16> = 40_000..40_256;

/// Who sends the packet of a question, as the programs on the device see it.
pub(super) fn sender(ground: &Ground, question: &Question, device: Option<&str>) -> Result<Sender> {
    ensure!(
        !ground.devices.is_empty(),
        "the packet plane is off: packets pass as they are, and only sockets are served (`vipr run --packet-plane=on`)"
    );
    let to = Address::from(question.to.at.ip());
    let named = |name: &str| {
        let found = ground.devices.iter().find(|(known, _)| known == name);
        let known: Vec<_> = ground.devices.iter().map(|(known, _)| known.as_str()).collect();
        found
            .with_context(|| format!("the device {name:?} has no programs; these have: {}", known.join(", ")))
    };
    // Where pods are told by the device, an address does not tell which one it is.
    let outside = ground.devices.iter().find(|(_, device)| device.pods != Pods::All);
    let (name, device) = match device {
        Some(name) => named(name)?,
        None => outside.or(ground.devices.first()).context("no device has programs")?,
    };
    let own = |address: Address| -> Sender {
        let text = format!("{address}: the node itself, so its packet is met only where it leaves");
        Sender { origin: Origin::Host, address, text, is_known: true, device: *device }
    };
    match question.from {
        Caller::Host => Ok(own(device.masquerade(&to))),
        Caller::Pod => anyhow::bail!(
            "the packet plane tells by the address who sends a packet: write the pod's, as in `--from 10.0.1.5`"
        ),
        Caller::Address(address) => {
            let address = Address::from(address);
            ensure!(
                address.is_v4() == to.is_v4(),
                "{address} and {to} are of two families: a caller dials with an address of the family it dials"
            );
            if address.is_loopback()
                || proxy_common::datapath::Tables::local_address(ground, &address).is_some()
            {
                return Ok(own(address));
            }
            let view = Packets::new(ground, &ground.actual, ground.plane, ground.now);
            let origin = origin_of(&view, device.pods, address);
            let why = match (device.pods, origin) {
                (Pods::All, _) => format!("it comes in by {name}, which is the pods'"),
                (Pods::None, _) => format!("it comes in by {name}, where nobody counts as a pod"),
                (Pods::InRange, Origin::Pod) => "it is in the pods' range".into(),
                (Pods::InRange, _) => "it is not in the pods' range".into(),
            };
            let who = if origin == Origin::Pod { "a pod" } else { "somebody outside" };
            let is_known = device.pods == Pods::InRange;
            Ok(Sender {
                origin,
                address,
                is_known,
                text: format!("{address}: {who}, because {why}"),
                device: *device,
            })
        }
    }
}

/// Decide.
pub(super) fn told(ground: &Ground, question: &Question, sender: &Sender, candidates: usize) -> Told {
    let to = question.to;
    let opening = |port| Opening {
        from: Endpoint { address: sender.address, port },
        to: Endpoint { address: to.at.ip().into(), port: to.at.port() },
        protocol: to.protocol,
    };
    let packets = || Packets::new(ground, &ground.actual, ground.plane, ground.now);
    if sender.origin == Origin::Host {
        let passage = packets().leave(&opening(PORTS.start), &sender.device);
        return Told { row: row(passage, 0, false), sent: false, seen: Seen::Nobody };
    }
    let arrive = |port, leaves_by| packets().arrive(&opening(port), &sender.device, leaves_by);
    // A device that masquerades shows which endpoint is chosen; one without an address would hide it.
    let (v4, v6) = ([Address::ANY_V4.loopback().octets(), Address::ANY_V6.loopback().octets()]).into();
    let any = Device { masquerade_v4: v4, masquerade_v6: v6, choices: 0, ..sender.device };
    let mut ends: BTreeMap<SocketAddr, (bool, u16)> = BTreeMap::new();
    let mut first = None;
    for port in PORTS {
        let passage = arrive(port, &any);
        first.get_or_insert(passage);
        if let Passage::Sent { backend, masqueraded, .. } = passage {
            ends.insert(SocketAddr::new(backend.address.ip(), backend.port), (masqueraded, port));
        }
    }
    let passage = first.unwrap_or(Passage::Passed(Reason::NotService));
    let masqueraded: Vec<_> = ends.iter().filter(|(_, (masqueraded, _))| *masqueraded).collect();
    let seen = match masqueraded.first() {
        None if ends.is_empty() => Seen::Nobody,
        None => Seen::Client,
        Some((end, (_, port))) => {
            let (mut by, mut none) = (BTreeMap::<_, Vec<_>>::new(), Vec::new());
            for (name, device) in &ground.devices {
                match arrive(*port, device) {
                    Passage::Sent { source, .. } => by.entry(source.address).or_default().push(name.clone()),
                    _ => none.push(name.clone()),
                }
            }
            let is_itself = masqueraded.iter().all(|(end, _)| end.ip() == sender.address.ip());
            let only = is_itself.then_some(**end);
            Seen::Node { by, none, only }
        }
    };
    Told { row: row(passage, candidates, ends.len() == 1 && candidates > 1), sent: !ends.is_empty(), seen }
}

fn row(passage: Passage, candidates: usize, is_kept: bool) -> CallRow {
    let (verdict, text, reason) = match passage {
        Passage::Passed(reason) => ("untouched", "passes untouched".into(), reason),
        Passage::Dropped(reason) => ("dropped", "dropped".into(), reason),
        Passage::Rejected(reason) => {
            ("rejected", "rejected: its sender is told port unreachable".into(), reason)
        }
        Passage::Sent { backend, reason, .. } => {
            let to = SocketAddr::new(backend.address.ip(), backend.port);
            let text = match candidates {
                ..2 => format!("sent to {to}"),
                _ if is_kept => format!("sent to {to}, where this client went before"),
                _ => format!("sent to one of {candidates} endpoints"),
            };
            ("sent", text, reason)
        }
    };
    CallRow { call: "packet", verdict, text, reason: reason.name(), help: reason.help() }
}

impl Seen {
    /// For people; why the node stands for the sender is told by what was dialled.
    pub(super) fn text(&self, extent: Option<&Extent>, kind: Option<FrontendKind>) -> String {
        let (by, none, only) = match self {
            Self::Nobody => return "none: no endpoint sees it".into(),
            Self::Client => return "none: the endpoint sees the sender's own address".into(),
            Self::Node { by, none, only } => (by, none, only),
        };
        let has = |bit: u16| extent.is_some_and(|extent| extent.header.policy & bit != 0);
        let why = match (only, kind) {
            (Some(end), _) => format!("only towards {end}, which is the sender itself"),
            (None, Some(FrontendKind::ClusterIp)) if has(Policy::LEAVE_INTERNAL) => "masqueradeAll".into(),
            (None, Some(FrontendKind::ClusterIp)) => "the sender is not one of the cluster's pods".into(),
            (None, _) => "externalTrafficPolicy is Cluster".into(),
        };
        let mut text = format!("by this node's address: {why}");
        for (address, names) in by {
            text.push_str(&format!("\n{address} where it leaves by {}", some(names)));
        }
        if !none.is_empty() {
            text.push_str(&format!("\ndropped where it leaves by {}, for want of an address", some(none)));
        }
        text
    }
}

/// The first few of many names.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let names: BTreeSet<_> = names.iter().map(String::as_str).collect();
    let more = names.len().saturating_sub(SHOWN);
    let shown: Vec<_> = names.into_iter().take(SHOWN).collect();
    let shown = shown.join(", ");
    if more == 0 { shown } else { format!("{shown} and {}", text::count(more, "more", "more")) }
}
