//! The decisions of `proxy_common::datapath` on given tables, and what led to them, in words.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use proxy_common::{
    Address, Protocol, Reason,
    datapath::{
        Call, Env, Origin, Socket, Tables, datagram, lookup,
        select::{Extent, Set, extent},
        socket::{self, Verdict},
    },
    layout::{AffinityKey, Connected, Frontend, FrontendKey, FrontendKind, Policy, Unconnected},
};

use super::{Caller, Ground, Question, packet};
use crate::{
    model::{Fate, ObjectName},
    text::{self, CallRow, EndpointRow, Explanation, FrontendRow, LeftOut, SetRow},
};

/// Explain what happens to a socket's call.
pub(super) fn of_call(ground: &Ground, question: &Question) -> Result<Explanation> {
    let (origin, from) = caller(ground, question)?;
    let to = question.to;
    let call = Call { address: to.at.ip().into(), port: to.at.port(), protocol: to.protocol };
    let netns = if origin == Origin::Host { ground.node.netns_cookie } else { !ground.node.netns_cookie };
    let asked = Asked { netns, now: ground.now, can_refuse: ground.can_refuse, random: 0 };
    let found = if to.protocol == Protocol::Sctp { None } else { lookup::lookup(ground, &call).ok() };
    // What is dialled may be somebody's, and yet this caller is not served.
    let served = found.filter(|_| socket::served(ground, &asked, &call).is_ok());
    let extent = served.and_then(|frontend| extent(ground, frontend.service).ok());
    let set = served.zip(extent).map(|(frontend, extent)| set_row(ground, &extent, frontend.kind, origin));
    let calls = calls(ground, &asked, &call, set.as_ref().map_or(0, |set| set.endpoints.len()));
    let service = found.map(|frontend| service_name(ground, &frontend));
    let left_out = others(ground, service.as_deref(), set.as_ref());
    let mut notes = notes(ground, service.as_deref());
    if ground.devices.is_empty() && calls.iter().any(|call| call.verdict == LEFT) {
        notes.push("the packet plane is off: what is left to it goes on untranslated".into());
    }
    if origin == Origin::Pod && ground.node.left_levels != 0 {
        let note = "some pods of this node are left to packets, `vipr status` says which: ask of one with `--plane packet`";
        notes.push(note.into());
    }
    let host = AffinityKey::netns(extent.map_or(0, |extent| extent.service), ground.node.netns_cookie);
    let known = (origin == Origin::Host).then_some((host, "the host"));
    Ok(Explanation {
        from,
        to: to.to_string(),
        plane: "socket",
        plane_why: None,
        frontend: found.map(|frontend| FrontendRow::new(&key(ground, &call), &frontend)),
        service,
        affinity: extent.map(|extent| affinity(ground, known, &extent)),
        masquerade:
            "none: a call is translated before there is a packet, whose source is then the caller's own"
                .into(),
        left_out,
        set,
        calls,
        notes,
    })
}

/// Verdict of a call that is the packet plane's.
const LEFT: &str = "leftToPackets";

/// Explain what happens to a packet; `device`: that it comes in by.
pub(super) fn of_packet(ground: &Ground, question: &Question, device: Option<&str>) -> Result<Explanation> {
    let sender = packet::sender(ground, question, device)?;
    let to = question.to;
    let call = Call { address: to.at.ip().into(), port: to.at.port(), protocol: to.protocol };
    let found = lookup::lookup(ground, &call).ok();
    let extent = found.and_then(|frontend| extent(ground, frontend.service).ok());
    // The node's own packets are translated by the socket plane or not at all.
    let is_own = sender.origin == Origin::Host;
    let set = found.zip(extent).filter(|_| !is_own && !call.address.is_loopback());
    let set = set.map(|(frontend, extent)| set_row(ground, &extent, frontend.kind, sender.origin));
    let told = packet::told(ground, question, &sender, set.as_ref().map_or(0, |set| set.endpoints.len()));
    let service = found.map(|frontend| service_name(ground, &frontend));
    let set = set.filter(|_| told.sent || ["policy_dropped", "rejected"].contains(&told.row.reason));
    let client = AffinityKey::address(extent.map_or(0, |extent| extent.service), sender.address);
    let affinity =
        extent.filter(|_| told.sent).map(|extent| affinity(ground, Some((client, "this client")), &extent));
    Ok(Explanation {
        from: sender.text.clone(),
        to: to.to_string(),
        plane: "packet",
        plane_why: None,
        frontend: found.map(|frontend| FrontendRow::new(&key(ground, &call), &frontend)),
        left_out: others(ground, service.as_deref(), set.as_ref()),
        affinity,
        masquerade: told.seen.text(extent.as_ref(), found.map(|frontend| frontend.kind)),
        notes: notes(ground, service.as_deref()),
        service,
        set,
        calls: vec![told.row],
    })
}

/// Explain by the plane that decides: sockets of the node and its pods call before there is a packet, and what is left of
/// their calls is the packet plane's, as is what comes from outside.
pub(super) fn of_either(ground: &Ground, question: &Question, device: Option<&str>) -> Result<Explanation> {
    if ground.devices.is_empty() {
        return of_call(ground, question);
    }
    if device.is_some() || matches!(question.from, Caller::Address(_)) {
        let sender = packet::sender(ground, question, device)?;
        if sender.origin == Origin::Outside && (device.is_some() || sender.is_known) {
            let why = Some("packet: whoever is outside has no socket here".into());
            return Ok(Explanation { plane_why: why, ..of_packet(ground, question, device)? });
        }
    }
    let call = of_call(ground, question)?;
    let foreign = call
        .calls
        .iter()
        .all(|call| [Reason::OtherProtocol, Reason::PlaneOff].map(Reason::name).contains(&call.reason));
    if !foreign && call.calls.iter().all(|call| call.verdict != LEFT) {
        let why = Some("socket: the call is decided before there is a packet".into());
        return Ok(Explanation { plane_why: why, ..call });
    }
    if question.from == Caller::Pod {
        let why = "packet, for what the socket plane leaves; ask with the pod's address: `--from 10.0.1.5`";
        return Ok(Explanation { plane_why: Some(why.into()), ..call });
    }
    let packet = of_packet(ground, question, device)?;
    let why = Some("packet, for what the socket plane leaves".into());
    if foreign || call.calls.iter().all(|call| call.verdict == LEFT) {
        let calls = call.calls.into_iter().chain(packet.calls).collect();
        return Ok(Explanation { plane_why: why, calls, ..packet });
    }
    let calls = call.calls.into_iter().chain(packet.calls).collect();
    Ok(Explanation { plane_why: why, calls, ..call })
}

fn service_name(ground: &Ground, frontend: &Frontend) -> String {
    let name = ground.actual.names.get(&frontend.service).cloned();
    name.unwrap_or_else(|| format!("(without a name, index {})", frontend.service))
}

fn set_row(ground: &Ground, extent: &Extent, kind: FrontendKind, origin: Origin) -> SetRow {
    let (name, why) = which(extent, kind, origin);
    SetRow { name, why, endpoints: endpoints(ground, extent, &extent.set(kind, origin)) }
}

/// The service's endpoints that are not in the set.
fn others(ground: &Ground, service: Option<&str>, set: Option<&SetRow>) -> Option<Vec<LeftOut>> {
    let fates = ground.fates(service.unwrap_or_default());
    fates.map(|fates| set.map_or_else(Vec::new, |set| left_out(fates, set)))
}

fn notes(ground: &Ground, service: Option<&str>) -> Vec<String> {
    let asked_for = service.map_or("", |service| text::split_name(service)[0]);
    let matters = |of: &Option<ObjectName>| of.as_ref().is_none_or(|of| of.to_string() == asked_for);
    ground.notes.iter().filter(|(of, _)| matters(of)).map(|(_, note)| note.clone()).collect()
}

/// Who calls, and how we know.
fn caller(ground: &Ground, question: &Question) -> Result<(Origin, String)> {
    Ok(match question.from {
        Caller::Host => (Origin::Host, "host: a process in the node's own network namespace".into()),
        Caller::Pod => (Origin::Pod, "pod: a process in another network namespace of this node".into()),
        Caller::Address(address) => {
            let (from, to) = (Address::from(address), Address::from(question.to.at.ip()));
            ensure!(
                from.is_v4() == to.is_v4(),
                "{address} and {} are of two families: a caller dials with an address of the family it dials",
                question.to.at.ip()
            );
            if from.is_loopback() || ground.local_address(&from).is_some() {
                (Origin::Host, format!("{address}: an address of this node, so the host is assumed"))
            } else {
                (Origin::Pod, format!("{address}: no address of this node, so one of its pods is assumed"))
            }
        }
    })
}

/// Which set answers, and why. It is [`Extent::is_local`] that decides.
fn which(extent: &Extent, kind: FrontendKind, origin: Origin) -> (&'static str, &'static str) {
    let has = |bit: u16| extent.header.policy & bit != 0;
    let name = if extent.is_local(kind, origin) { "local" } else { "cluster" };
    let why = match (kind, origin) {
        (FrontendKind::ClusterIp, _) if has(Policy::INTERNAL_LOCAL) => "internalTrafficPolicy is Local",
        (FrontendKind::ClusterIp, _) => "internalTrafficPolicy is Cluster",
        _ if !has(Policy::EXTERNAL_LOCAL) => "externalTrafficPolicy is Cluster",
        _ if has(Policy::NO_CIRCUIT) => {
            "externalTrafficPolicy is Local, which in mode ipvs holds for everybody where endpoints are here"
        }
        (_, Origin::Host) => "externalTrafficPolicy is Local, which the node itself is not subject to",
        (_, Origin::Pod) if has(Policy::POD_DETECTOR) => {
            "externalTrafficPolicy is Local, which pods are not subject to where clusterCIDR is known"
        }
        _ => "externalTrafficPolicy is Local",
    };
    (name, why)
}

fn endpoints(ground: &Ground, extent: &Extent, set: &Set) -> Vec<EndpointRow> {
    let all = (0..set.len()).filter_map(|turn| extent.nth(ground, set, turn));
    let rows = all.map(|endpoint| EndpointRow { address: endpoint.address.ip(), port: endpoint.port });
    let mut rows: Vec<_> = rows.collect();
    rows.sort();
    rows
}

/// The entry that [`lookup::lookup`] found: the address itself, else a NodePort's.
fn key(ground: &Ground, call: &Call) -> FrontendKey {
    let exact = FrontendKey::new(call.address, call.port, call.protocol);
    if !call.address.is_unspecified() && ground.frontend(&exact).is_some() {
        return exact;
    }
    FrontendKey::new(call.address.any(), call.port, call.protocol)
}

fn calls(ground: &Ground, asked: &Asked, call: &Call, candidates: usize) -> Vec<CallRow> {
    // As the programs decide before they look any further.
    let foreign = (call.protocol == Protocol::Sctp).then_some(Verdict::Leave(Reason::OtherProtocol));
    let connect =
        |asked: &Asked| foreign.unwrap_or_else(|| socket::connect(ground, asked, &Blank::default(), call));
    let send = |asked: &Asked| datagram::send(ground, asked, &mut Blank::default(), call);
    // The dice at one end and at the other.
    let other = Asked { random: u32::MAX, ..*asked };
    let mut rows = vec![row("connect", [connect(asked), connect(&other)], candidates)];
    if call.protocol == Protocol::Udp {
        rows.push(row("sendmsg", [send(asked), send(&other)], candidates));
    }
    rows
}

fn row(call: &'static str, [verdict, other]: [Verdict; 2], candidates: usize) -> CallRow {
    let reason = verdict.reason();
    let (name, text) = match verdict {
        Verdict::Rewrite { to, .. } => {
            let to = SocketAddr::new(to.address.ip(), to.port);
            let text = match (candidates, verdict == other) {
                (..2, _) => format!("rewritten to {to}"),
                (_, true) => format!("rewritten to {to}, where this client went before"),
                (_, false) => format!("rewritten to one of {candidates} endpoints"),
            };
            ("rewritten", text)
        }
        Verdict::Refuse(_) => ("refused", "refused with ECONNREFUSED".into()),
        Verdict::RefuseByLoopback(_) => {
            ("refused", "refused with ECONNREFUSED, by way of port 0 of loopback (kernel before 5.18)".into())
        }
        Verdict::TimeOut(_) => ("timed out", "fails with ETIMEDOUT, as where its packets are dropped".into()),
        Verdict::Deny(_) => ("denied", "fails with EPERM, as where netfilter drops it in OUTPUT".into()),
        Verdict::Leave(Reason::RejectLeft | Reason::DropLeft | Reason::ClientLeft | Reason::HostDenied) => {
            (LEFT, "left to the packet plane".into())
        }
        Verdict::Leave(_) => ("untouched", "passes untouched".into()),
    };
    CallRow { call, verdict: name, text, reason: reason.name(), help: reason.help() }
}

/// What is remembered; `asked`: of this client, called so.
fn affinity(ground: &Ground, asked: Option<(AffinityKey, &str)>, extent: &Extent) -> String {
    let lifetime = extent.word.affinity_seconds;
    if lifetime == 0 {
        return "none".into();
    }
    let age = |seconds: u32| text::duration(Duration::from_secs(seconds.into()));
    let mut lines = format!("by client, for {} after its last connection", age(lifetime));
    let fresh = |last_used: u32| ground.now.wrapping_sub(last_used) <= lifetime;
    let known =
        ground.clients.iter().filter(|(key, last)| key.service == extent.service && fresh(last.last_used));
    let count = known.count();
    if count > 0 {
        lines.push_str(&format!("\nclients remembered: {count}"));
    }
    if let Some((key, who)) = asked
        && let Some(last) = ground.affinity(&key).filter(|last| fresh(last.last_used))
    {
        let to = SocketAddr::new(last.address().ip(), last.port);
        let since = age(ground.now.wrapping_sub(last.last_used));
        lines.push_str(&format!("\n{who} goes to {to} while that is in the set (last used {since} ago)"));
    }
    lines
}

fn left_out(fates: Vec<Fate>, set: &SetRow) -> Vec<LeftOut> {
    let rows = fates.into_iter().filter_map(|fate| {
        let why = if set.name == "local" { fate.local } else { fate.cluster }.err()?;
        let node = fate.node.map(|node| node.to_string());
        let (address, port) = (fate.endpoint.address.ip(), fate.endpoint.port);
        Some(LeftOut { address, port, node, why: why.to_string() })
    });
    rows.collect()
}

/// The world as the question has it.
#[derive(Clone, Copy)]
struct Asked {
    netns: u64,
    now: u32,
    can_refuse: bool,
    random: u32,
}

impl Env for Asked {
    fn random(&self) -> u32 {
        self.random
    }
    fn seconds(&self) -> u32 {
        self.now
    }
    fn netns(&self) -> u64 {
        self.netns
    }
    fn can_refuse(&self) -> bool {
        self.can_refuse
    }
}

/// A new socket.
#[derive(Default)]
struct Blank(Unconnected);

impl Socket for Blank {
    fn connected(&self) -> Option<Connected> {
        None
    }
    fn set_connected(&self, _: &Connected) -> bool {
        true
    }
    fn forget_connected(&self) {}
    fn unconnected(&mut self, create: bool) -> Option<&mut Unconnected> {
        create.then_some(&mut self.0)
    }
}
