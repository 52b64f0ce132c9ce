//! The first packet of a flow: whether it is for a Service, who sent it, whether he may, who serves him and what of him
//! the backend is to see (kube-proxy spec §2.1 to §2.8).

use super::{
    Call, Endpoint, Origin, Tables,
    hash::Hash,
    lookup::lookup,
    packet::{Chosen, Facts, PacketEnv, PacketTables, Run, Verdict},
    parse::Packet,
    select::{Extent, Nothing, extent, select},
    track,
};
use crate::{
    Protocol, Reason,
    layout::{AffinityKey, Device, Flow, Frontend, FrontendKind, Pods, Policy, RangeKey},
};

/// Open a flow for a packet that has none. `moved`: it had one.
#[inline(always)]
pub fn open<T: PacketTables, E: PacketEnv>(
    run: &Run<'_, T, E>,
    facts: &Facts<'_>,
    packet: &Packet,
    moved: bool,
) -> Verdict {
    match opened(run, facts, packet) {
        Ok(flow) => Verdict::Rewrite {
            source: Endpoint { address: flow.client(), port: flow.inner_port() },
            destination: Endpoint { address: flow.backend(), port: flow.backend_port },
            reason: if moved { Reason::FlowMoved } else { Reason::FlowOpened },
        },
        Err(verdict) => verdict,
    }
}

#[inline(always)]
fn opened<T: PacketTables, E: PacketEnv>(
    run: &Run<'_, T, E>,
    facts: &Facts<'_>,
    packet: &Packet,
) -> Result<Flow, Verdict> {
    let frontend = lookup_packet(run.tables, packet).map_err(Verdict::Pass)?;
    let is_udp = packet.protocol as u8 == Protocol::Udp as u8;
    if run.plane.handover != 0 && !is_udp && !packet.segment.opens() {
        return Err(Verdict::Pass(Reason::HandedOver));
    }
    let client = packet.source.address;
    let extent = match extent(run.tables, frontend.service) {
        Ok(extent) => extent,
        Err(nothing) => return Err(unserved(run.tables, facts.device, packet, nothing)),
    };
    let origin = origin(run.tables, facts.device, packet);
    let set = extent.set(frontend.kind, origin);
    if is_denied(run.tables, &extent, &frontend, packet) {
        // kube-proxy's iptables mode filters only where there is an endpoint (spec §2.8).
        let rejects = set.is_empty()
            && extent.header.policy & (Policy::ANY_ENDPOINTS | Policy::HOST_REJECT_LEFT)
                == Policy::HOST_REJECT_LEFT;
        if !rejects {
            return Err(Verdict::Drop(Reason::SourceDenied));
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
        Err(nothing) => return Err(unserved(run.tables, facts.device, packet, nothing)),
    };
    let masqueraded = is_masqueraded(&extent, &frontend, origin, packet, &backend);
    let flow = Flow {
        client: client.octets(),
        dialled: packet.destination.address.octets(),
        backend: backend.address.octets(),
        masquerade: [0; 16],
        client_port: packet.source.port,
        dialled_port: packet.destination.port,
        backend_port: backend.port,
        shown_port: packet.source.port,
        version: Flow::VERSION,
        flags: if masqueraded { Flow::MASQUERADE } else { 0 },
        client_state: track::said(packet.protocol, track::SILENT, track::SILENT, packet.segment),
        backend_state: track::SILENT,
        seen: run.now,
    };
    match run.open(packet, &flow) {
        Ok(known) => Ok(known.flow),
        Err(reason) => Err(Verdict::Drop(reason)),
    }
}

/// The frontend that a packet is sent to.
#[inline(always)]
pub fn lookup_packet<T: Tables>(tables: &T, packet: &Packet) -> Result<Frontend, Reason> {
    let to = &packet.destination;
    // Loopback is every namespace's own, and nothing on the wire is sent to it or to nobody.
    if to.address.is_loopback() || to.address.is_unspecified() {
        return Err(Reason::NotService);
    }
    lookup(tables, &Call { address: to.address, port: to.port, protocol: packet.protocol })
}

/// Whether a flow's backend still serves what was dialled: in any set, because a change of policy cuts nothing (spec
/// §2.9). What can't be told at this moment counts as yes.
#[inline(always)]
pub fn serves<T: Tables>(tables: &T, packet: &Packet, flow: &Flow) -> bool {
    let Ok(frontend) = lookup_packet(tables, packet) else { return false };
    match extent(tables, frontend.service) {
        Ok(extent) => extent.holds(tables, &Endpoint { address: flow.backend(), port: flow.backend_port }),
        Err(_) => true,
    }
}

/// Who sent a packet that came in by this device (spec §2.2).
#[inline(always)]
fn origin<T: PacketTables>(tables: &T, device: &Device, packet: &Packet) -> Origin {
    let is_pod = match device.pods {
        Pods::None => false,
        Pods::All => true,
        Pods::InRange => tables.in_range(&RangeKey::host(RangeKey::PODS, packet.source.address)),
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
) -> bool {
    // Row 12: an answer that does not leave the pod would never be translated back.
    if packet.source.address == backend.address {
        return true;
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
fn unserved<T: Tables>(tables: &T, device: &Device, packet: &Packet, nothing: Nothing) -> Verdict {
    match nothing {
        Nothing::Reject => {
            // From the dialled address where it is the node's own, else from the node's on this device, as netfilter's
            // REJECT does.
            let dialled = packet.destination.address;
            let own = device.masquerade(&dialled);
            let from =
                if own.is_unspecified() || tables.local_address(&dialled).is_some() { dialled } else { own };
            Verdict::Reject { from, reason: Reason::Rejected }
        }
        Nothing::Drop => Verdict::Drop(Reason::PolicyDropped),
        Nothing::Unprogrammed => Verdict::Pass(Reason::Unprogrammed),
        Nothing::Torn => Verdict::Pass(Reason::Torn),
    }
}
