//! A packet's way through a node: what happens to it where it comes in and where it goes out.
//!
//! | position | a packet of | becomes |
//! |---|---|---|
//! | ingress | client → dialled | client → backend (DNAT) |
//! | ingress | backend → masquerade | backend → client (un-SNAT) |
//! | egress | client → backend | masquerade → backend (SNAT) |
//! | egress | backend → client | dialled → client (un-DNAT) |
//!
//! Destinations change at ingress only and sources at egress only, so that routing, filters and reverse-path checks see
//! what they see with kube-proxy. The one exception is a client's port that another flow already has towards the same
//! backend: it changes at ingress, and back at egress.

use super::{
    Endpoint, Env, Tables,
    flow::{Flows, Known},
    fragment, guard, icmp, opening,
    parse::{self, Bytes, Packet, Parsed, Piece},
    track::{self, Side},
};
use crate::{
    Address, Protocol, Reason,
    layout::{Device, DeviceRole, Flow, FlowKey, Fragment, FragmentKey, PacketPlane, Position, RangeKey},
};

/// What the packet plane reads besides the tables of the socket plane.
pub trait PacketTables: Tables + Flows {
    /// The settings.
    fn packet_plane(&self) -> Option<&PacketPlane>;
    /// Whether a range contains it: longest prefix match.
    fn in_range(&self, key: &RangeKey) -> bool;
    /// What a packet's first fragment said.
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;
    /// Remember it. Losing it costs the packet, nothing else.
    fn set_fragment(&self, key: &FragmentKey, value: &Fragment);
}

/// What the world says while a packet is here.
pub trait PacketEnv {
    /// Seconds of the monotonic clock.
    fn seconds(&self) -> u32;
    /// Whether a socket of this node has this tuple: to it would go what is meant for a client.
    fn has_socket(&self, protocol: Protocol, local: &Endpoint, peer: &Endpoint) -> bool;
}

/// What the kernel knows about a packet besides its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Where it is met.
    pub device: &'a Device,
    /// The kernel takes it for this host's (`PACKET_HOST`).
    pub for_host: bool,
    /// Its VLAN tag is kept beside the bytes.
    pub tagged: bool,
    /// A program at the same position has rewritten it on another device in this pass.
    pub translated: bool,
    /// A socket of this node's own namespace sent it (`sk != 0 && ingress_ifindex == 0`).
    pub local_socket: bool,
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Pass(Reason),
    /// It ends here.
    Drop(Reason),
    /// It ends here, and its sender is told: ICMP port unreachable.
    Reject {
        /// The address that tells him.
        from: Address,
        /// Why.
        reason: Reason,
    },
    /// It goes on between these ends; of an ICMP error, what it quotes. [`super::nat::apply`] writes them. The caller marks
    /// the packet, see [`Facts::translated`].
    Rewrite {
        /// New source.
        source: Endpoint,
        /// New destination.
        destination: Endpoint,
        /// Why.
        reason: Reason,
    },
}

impl Verdict {
    /// What is counted.
    #[inline(always)]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Pass(reason)
            | Self::Drop(reason)
            | Self::Reject { reason, .. }
            | Self::Rewrite { reason, .. } => *reason,
        }
    }
}

/// One run of a program.
pub struct Run<'a, T, E> {
    /// The tables.
    pub tables: &'a T,
    /// The world.
    pub env: &'a E,
    /// The settings.
    pub plane: &'a PacketPlane,
    /// Seconds of the monotonic clock.
    pub now: u32,
}

/// What a packet at `position` is and what happens to it.
#[inline(always)]
pub fn decide<T: PacketTables, E: PacketEnv, B: Bytes>(
    tables: &T,
    env: &E,
    facts: &Facts<'_>,
    bytes: &B,
    position: Position,
) -> (Verdict, Option<Parsed>) {
    match read(facts, bytes, position) {
        Ok(parsed) => judged(tables, env, facts, parsed, position),
        Err(reason) => (Verdict::Pass(reason), None),
    }
}

/// The packet, if it is one for this position on this device.
#[inline(always)]
fn read<B: Bytes>(facts: &Facts<'_>, bytes: &B, position: Position) -> Result<Parsed, Reason> {
    if facts.tagged {
        return Err(Reason::Tagged);
    }
    if facts.translated {
        return Err(Reason::AlreadyTranslated);
    }
    let device = facts.device;
    if position as u8 == Position::Ingress as u8 {
        let ours = if device.role as u8 == DeviceRole::BridgePort as u8 {
            parse::is_frame_for(bytes, &device.mac, &device.bridge_mac)
        } else {
            facts.for_host
        };
        if !ours {
            return Err(Reason::NotForHost);
        }
    }
    parse::parse(bytes, u32::from(device.header))
}

#[inline(always)]
fn judged<T: PacketTables, E: PacketEnv>(
    tables: &T,
    env: &E,
    facts: &Facts<'_>,
    mut parsed: Parsed,
    position: Position,
) -> (Verdict, Option<Parsed>) {
    let Some(plane) = tables.packet_plane() else { return (Verdict::Pass(Reason::NoPacketPlane), None) };
    if plane.version != PacketPlane::VERSION {
        return (Verdict::Pass(Reason::NoPacketPlane), None);
    }
    let run = Run { tables, env, plane, now: env.seconds() };
    let verdict = match &parsed.outer {
        Some(outer) => icmp::translate(&run, &parsed.packet, outer, position),
        None => {
            if parsed.packet.piece as u32 == Piece::Later as u32
                && !fragment::complete(&run, &mut parsed.packet, position)
            {
                return (Verdict::Pass(Reason::FragmentPlain), None);
            }
            let verdict = match position {
                Position::Ingress => run.ingress(facts, &parsed.packet),
                Position::Egress => run.egress(facts, &parsed.packet),
            };
            fragment::settle(&run, &parsed.packet, position, verdict)
        }
    };
    (verdict, Some(parsed))
}

/// The key that a packet bears.
#[inline(always)]
pub fn key_of(source: &Endpoint, destination: &Endpoint, protocol: Protocol, position: Position) -> FlowKey {
    FlowKey {
        source: source.address.octets(),
        destination: destination.address.octets(),
        source_port: source.port,
        destination_port: destination.port,
        protocol,
        position,
        reserved: 0,
    }
}

/// What a packet of a flow with this key becomes: new source, new destination, and why. `None`: it stays as it is.
#[inline(always)]
pub fn ends(flow: &Flow, key: &FlowKey) -> Option<(Endpoint, Endpoint, Reason)> {
    let client = Endpoint { address: flow.client(), port: flow.inner_port() };
    let backend = Endpoint { address: flow.backend(), port: flow.backend_port };
    if key.position as u8 == Position::Ingress as u8 {
        if *key == flow.dialled_key(key.protocol) {
            return Some((client, backend, Reason::FlowKept));
        }
        return Some((backend, client, Reason::Unmasqueraded));
    }
    if *key == flow.returned_key(key.protocol) {
        let dialled = Endpoint { address: flow.dialled(), port: flow.dialled_port };
        let client = Endpoint { address: flow.client(), port: flow.client_port };
        return Some((dialled, client, Reason::ReplyRestored));
    }
    if !flow.has_masquerade() {
        return None;
    }
    let node = Endpoint { address: flow.masquerade(), port: flow.shown_port };
    Some((node, backend, Reason::Masqueraded))
}

impl<T: PacketTables, E: PacketEnv> Run<'_, T, E> {
    /// Before routing.
    #[inline(always)]
    fn ingress(&self, facts: &Facts<'_>, packet: &Packet) -> Verdict {
        let port = packet.destination.port;
        let masquerades = port >= self.plane.first_port && port <= self.plane.last_port;
        if !masquerades && !self.tables.port_in_use(port) && !self.tables.port_seen(port) {
            return Verdict::Pass(Reason::NotService);
        }
        let key = key_of(&packet.source, &packet.destination, packet.protocol, Position::Ingress);
        let Some(mut known) = self.recall(&key) else { return opening::open(self, facts, packet, false) };
        if key != known.flow.dialled_key(packet.protocol) {
            if self.note(packet, &mut known, Side::Backend) {
                return rewrite(&known.flow, &key);
            }
            // Another flow has taken what this one lost, and would be shown its answer.
            self.forget(packet.protocol, &known.flow);
            return Verdict::Pass(Reason::NotService);
        }
        // Established connections keep their backend. Datagrams go to one that serves, and so does a new connection,
        // even if its ports are those of one that ended or hangs.
        let fresh = packet.protocol as u8 == Protocol::Udp as u8 || packet.segment.opens();
        let ended = packet.segment.opens() && track::is_ending(&known.flow);
        if ended || (fresh && !opening::serves(self.tables, packet, &known.flow)) {
            self.forget(packet.protocol, &known.flow);
            return opening::open(self, facts, packet, true);
        }
        if !self.note(packet, &mut known, Side::Client) {
            self.forget(packet.protocol, &known.flow);
            return opening::open(self, facts, packet, true);
        }
        rewrite(&known.flow, &key)
    }

    /// After routing.
    #[inline(always)]
    fn egress(&self, facts: &Facts<'_>, packet: &Packet) -> Verdict {
        if facts.local_socket && guard::must_stay(self.tables, packet) {
            return Verdict::Drop(Reason::GuardDropped);
        }
        if !self.tables.port_seen(packet.source.port) && !self.tables.port_seen(packet.destination.port) {
            return Verdict::Pass(Reason::NotService);
        }
        let key = key_of(&packet.source, &packet.destination, packet.protocol, Position::Egress);
        let Some(mut known) = self.recall(&key) else { return Verdict::Pass(Reason::NotService) };
        if key == known.flow.returned_key(packet.protocol) {
            self.note(packet, &mut known, Side::Backend);
        } else if let Err(reason) = self.make_masquerade(facts.device, packet, &mut known) {
            return Verdict::Drop(reason);
        }
        rewrite(&known.flow, &key)
    }

    /// Have an address for the backend to see that is still this node's.
    #[inline(always)]
    fn make_masquerade(&self, device: &Device, packet: &Packet, known: &mut Known) -> Result<(), Reason> {
        let (old, new) = (known.flow.masquerade(), device.masquerade(&known.flow.backend()));
        if known.flow.has_masquerade() {
            // A flow keeps its address when its way changes, unless the node has lost it.
            if old == new || self.tables.local_address(&old).is_some() {
                return Ok(());
            }
            self.release(&known.flow.answered_key(packet.protocol), &known.flow);
        }
        if new.is_unspecified() {
            return Err(Reason::NoMasqueradeAddress);
        }
        known.flow.masquerade = new.octets();
        self.masquerade(packet, known)
    }
}

#[inline(always)]
fn rewrite(flow: &Flow, key: &FlowKey) -> Verdict {
    match ends(flow, key) {
        Some((source, destination, reason)) => Verdict::Rewrite { source, destination, reason },
        None => Verdict::Pass(Reason::NotService),
    }
}

/// Chance and time for [`super::select::select`]: what was dialled decides, so that the same is chosen again.
pub struct Chosen {
    /// A hash of what was dialled.
    pub hash: u32,
    /// Seconds of the monotonic clock.
    pub now: u32,
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
