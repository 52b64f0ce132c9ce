//! The first packet of a flow: whether it is for a Service, who sent it, whether he may, who serves him and what of him
//! the backend is to see (kube-proxy spec §2.1 to §2.8).

use super::{
    Call, Endpoint, Env, Origin, Tables,
    desk::Desk,
    flow::Stage,
    guard,
    handover::is_midway,
    hash::Hash,
    lookup::lookup,
    packet::{Facts, PacketEnv, PacketTables, Run},
    parse::Packet,
    parts::Next,
    repair::Serves,
    select::{Extent, Nothing, extent, select},
    track,
    unclaimed::unclaimed,
};
use crate::{
    Address, Protocol, Reason,
    layout::{AffinityKey, Device, Flow, Frontend, FrontendKind, Pods, Policy, RangeKey},
};

/// Choose for the first packet of a flow: whether there is to be one, and its ends. [`Run::open`] opens it.
#[inline(always)]
pub fn choose<T: PacketTables, E: PacketEnv>(
    run: &Run<'_, T, E>,
    facts: &Facts<'_>,
    desk: &mut Desk,
) -> Next {
    // What bears no ports was looked for in no flow.
    if !desk.packet.has_ports() && guard::is_stray(desk) {
        return desk.drop(Reason::Martian);
    }
    let Desk { packet, flows, connected, dialled, .. } = desk;
    let connected = *connected;
    let frontend = match lookup_packet(run.tables, dialled, packet.protocol) {
        Ok(frontend) => Some(frontend),
        Err(reason) => match unclaimed(run.tables, &dialled.address) {
            None if !packet.has_ports() => {
                return desk.pass(Reason::OtherTransport);
            }
            None => return desk.pass(reason),
            Some(Reason::PortUndeclared) => None,
            Some(reason) => return desk.drop(reason),
        },
    };
    if run.may_be_handed_over(packet) {
        return desk.pass(Reason::HandedOver);
    }
    let Some(frontend) = frontend else {
        if run.plane.handover != 0 && is_midway(packet) {
            return desk.pass(Reason::HandedOver);
        }
        return refuse(run.tables, facts.device, desk, Reason::PortUndeclared);
    };
    if packet.protocol as u8 == Protocol::Tcp as u8 && packet.segment.answers() {
        // Nobody dials with a SYN-ACK; netfilter takes it for nobody's, too.
        return desk.pass(Reason::NotService);
    }
    let client = packet.source.address;
    let extent = match extent(run.tables, frontend.service) {
        Ok(extent) => extent,
        Err(nothing) => return unserved(run.tables, facts.device, desk, nothing),
    };
    // Whose socket has a record of this node's is a pod of it, whatever detector there is (or none).
    let origin =
        if connected { Origin::Pod } else { origin_of(run.tables, facts.device.pods, packet.source.address) };
    let set = extent.set(frontend.kind, origin);
    if frontend.kind as u8 == FrontendKind::ShutNodePort as u8 && !set.is_empty() {
        return desk.pass(Reason::NotNodePort);
    }
    if is_denied(run.tables, &extent, &frontend, packet) {
        // kube-proxy's iptables mode filters only where there is an endpoint (spec §2.8).
        if !(set.is_empty() && Policy::rejects_inward(extent.header.policy)) {
            return desk.drop(Reason::SourceDenied);
        }
    }
    let hash = Hash::new(run.plane.seed)
        .endpoint(&packet.source)
        .endpoint(&packet.destination)
        .word(packet.protocol as u64);
    let chosen = Chosen { hash: hash.finish(), now: run.now };
    let remembered = AffinityKey::address(frontend.service, client);
    let backend = match select(run.tables, &chosen, &frontend, origin, &remembered, None, |_| false) {
        Ok((backend, _)) => backend,
        Err(nothing) => return unserved(run.tables, facts.device, desk, nothing),
    };
    let masqueraded = is_masqueraded(&extent, &frontend, origin, packet, &backend, connected);
    flows[0].stage = Stage::unconfirmed(packet.protocol);
    flows[0].flow = Flow {
        client: client.octets(),
        dialled: packet.destination.address.octets(),
        backend: backend.address.octets(),
        masquerade: [0; 16],
        client_port: packet.source.port,
        dialled_port: packet.destination.port,
        backend_port: backend.port,
        shown_port: packet.source.port,
        version: Flow::VERSION,
        flags: if masqueraded { Flow::MASQUERADE } else { 0 } | if connected { Flow::REPAIR } else { 0 },
        client_state: track::said(packet.protocol, track::SILENT, track::SILENT, packet.segment),
        backend_state: track::SILENT,
        seen: run.now,
    };
    Next::Open
}

/// The frontend that a packet is sent to.
#[inline(always)]
pub fn lookup_packet<T: Tables>(tables: &T, to: &Endpoint, protocol: Protocol) -> Result<Frontend, Reason> {
    // Loopback is every namespace's own, and nothing on the wire is sent to it or to nobody.
    if to.address.is_loopback() || to.address.is_unspecified() {
        return Err(Reason::NotService);
    }
    lookup(tables, &Call { address: to.address, port: to.port, protocol })
}

/// Whether the backend on the desk still serves what was dialled: in any set, because a change of policy cuts nothing
/// (spec §2.9). What can't be told at this moment counts as yes. A datagram is also shown to it as policy has it now: netfilter
/// goes on as it began, for as long as it remembers a flow that nobody has closed, and nothing says that who sends from the same
/// port is the same client.
#[inline(always)]
pub fn serves<T: PacketTables>(tables: &T, desk: &Desk) -> Serves {
    let Desk { packet, dialled, backend, flows, .. } = desk;
    let Ok(frontend) = lookup_packet(tables, dialled, packet.protocol) else { return Serves::Gone };
    if frontend.kind as u8 == FrontendKind::ShutNodePort as u8 {
        return Serves::Gone;
    }
    let extent = match extent(tables, frontend.service) {
        Ok(extent) if !extent.holds(tables, backend) => return Serves::Gone,
        Ok(extent) if packet.protocol as u8 == Protocol::Udp as u8 => extent,
        _ => return Serves::AsBefore,
    };
    let flow = &flows[0].flow;
    let connected = flow.is_repair();
    let origin = if connected { Origin::Pod } else { origin_of(tables, desk.pods, packet.source.address) };
    let masqueraded = is_masqueraded(&extent, &frontend, origin, packet, backend, connected);
    if masqueraded == flow.is_masqueraded() { Serves::AsBefore } else { Serves::Otherwise }
}

/// Who sent a packet that came in by this device (spec §2.2).
#[inline(always)]
pub fn origin_of<T: PacketTables>(tables: &T, pods: Pods, source: Address) -> Origin {
    let is_pod = match pods {
        Pods::None => false,
        Pods::All => true,
        Pods::InRange => tables.in_range(&RangeKey::host(RangeKey::PODS, source)),
    };
    if is_pod { Origin::Pod } else { Origin::Outside }
}

/// Whether `loadBalancerSourceRanges` keep the sender out (spec §2.8): of the load balancer's addresses only.
#[inline(always)]
fn is_denied<T: PacketTables>(tables: &T, extent: &Extent, frontend: &Frontend, packet: &Packet) -> bool {
    frontend.kind as u8 == FrontendKind::LoadBalancer as u8
        && extent.header.policy & Policy::SOURCE_RANGES != 0
        && !tables.in_range(&RangeKey::host(frontend.service, packet.source.address))
}

/// Whether the backend is to see this node (spec §2.3).
#[inline(always)]
fn is_masqueraded(
    extent: &Extent,
    frontend: &Frontend,
    origin: Origin,
    packet: &Packet,
    backend: &Endpoint,
    connected: bool,
) -> bool {
    // Row 12: an answer that does not leave the pod would never be translated back.
    if packet.source.address == backend.address {
        return true;
    }
    // Who is served at the socket is shown to every backend.
    if connected {
        return false;
    }
    let policy = extent.header.policy;
    if frontend.kind as u8 != FrontendKind::ClusterIp as u8 {
        // Rows 4 and 5; rows 7 to 9 keep the client's address.
        return policy & Policy::EXTERNAL_LOCAL == 0;
    }
    // Rows 1 and 3: whoever is not a pod of ours, where pods are known; and everybody if masqueradeAll.
    policy & Policy::LEAVE_INTERNAL != 0
        || (origin as u8 == Origin::Outside as u8 && policy & Policy::POD_DETECTOR != 0)
}

/// What a packet gets that no endpoint serves (spec §2.5).
#[inline(always)]
fn unserved<T: PacketTables>(tables: &T, device: &Device, desk: &mut Desk, nothing: Nothing) -> Next {
    match nothing {
        Nothing::Reject => refuse(tables, device, desk, Reason::Rejected),
        Nothing::Drop => desk.drop(Reason::PolicyDropped),
        Nothing::Unprogrammed => desk.pass(Reason::Unprogrammed),
        Nothing::Torn => desk.pass(Reason::Torn),
    }
}

/// Tell the sender: from the dialled address where it is the node's own, else from the node's on this device, as
/// netfilter's REJECT does.
#[inline(always)]
fn refuse<T: PacketTables>(tables: &T, device: &Device, desk: &mut Desk, reason: Reason) -> Next {
    if !tables.may_refuse(desk.now) {
        return desk.drop(Reason::RejectedSilently);
    }
    let dialled = desk.packet.destination.address;
    let own = device.masquerade(&dialled);
    let is_own = own.is_unspecified() || tables.local_address(&dialled).is_some();
    desk.reject(if is_own { dialled } else { own }, reason)
}

/// Chance and time for [`super::select::select`]: what was dialled decides, so that the same is chosen again.
struct Chosen {
    /// A hash of what was dialled.
    hash: u32,
    /// Seconds of the monotonic clock.
    now: u32,
}

impl Env for Chosen {
    #[inline(always)]
    fn random(&self) -> u32 {
        self.hash
    }
    #[inline(always)]
    fn seconds(&self) -> u32 {
        self.now
    }
    #[inline(always)]
    fn netns(&self) -> u64 {
        0
    }
    #[inline(always)]
    fn can_refuse(&self) -> bool {
        false
    }
}
