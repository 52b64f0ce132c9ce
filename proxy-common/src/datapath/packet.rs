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
    Endpoint, Tables,
    desk::{Desk, Seat},
    flow::{Flows, packet_key},
    guard,
    parse::{self, Bytes, Packet, Piece},
    parts::Next,
    repair::{self, Serves},
    track::{self, Side},
};
use crate::{
    Address, Protocol, Reason,
    layout::{
        Connected, Device, DeviceRole, Flow, FlowKey, Fragment, FragmentKey, HandedOver, MasqueradeKey, Node,
        PacketPlane, Position,
    },
};

pub use super::{
    desk::Verdict,
    flow::{ends, number_of},
    here::decide,
};

/// What the packet plane reads besides the tables of the socket plane.
pub trait PacketTables: Tables + Flows {
    /// The settings.
    fn packet_plane(&self) -> Option<&PacketPlane>;
    /// What a device's range is masqueraded with: longest prefix match.
    fn masquerade(&self, key: &MasqueradeKey) -> Option<Address>;
    /// What is known of another proxy's connection.
    fn handed_over(&self, key: &FlowKey) -> Option<HandedOver>;
    /// Change it, if it is still there.
    fn set_handed_over(&self, key: &FlowKey, value: &HandedOver);
    /// What a packet's first fragment said.
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment>;
    /// Remember it. Losing it costs the packet, nothing else.
    fn set_fragment(&self, key: &FragmentKey, value: &Fragment);
    /// Whether what is sent to an address of Services is judged whatever its port is: [`Node::UNCLAIMED`].
    #[inline(always)]
    fn judges(&self) -> bool {
        self.node().is_some_and(|node| node.guards & Node::UNCLAIMED != 0)
    }
    /// Whether one more sender may be told in this second that he is refused.
    fn may_refuse(&self, now: u32) -> bool;
}

/// What the world says while a packet is here.
pub trait PacketEnv {
    /// Seconds of the monotonic clock.
    fn seconds(&self) -> u32;
    /// Whether a socket of this node has this tuple: to it would go what is meant for a client.
    fn has_socket(&self, protocol: Protocol, local: &Endpoint, peer: &Endpoint) -> bool;
    /// Whether a socket can be seen that sent the packet.
    fn has_sender(&self) -> bool;
    /// What is remembered of connect() of the socket that sent the packet: of a datagram socket that is connected, and of a
    /// stream socket that waits for its first answer. `None`: nothing, or the socket can't be seen here.
    fn connected(&self, protocol: Protocol) -> Option<Connected>;
    /// The next hop of an IPv4 packet from `source` to `destination` that leaves by `device`: the gateway, or the
    /// destination itself.
    fn next_hop(&self, device: &Device, source: &Address, destination: &Address) -> Address;
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

/// The packet, if it is one for this position on this device.
#[inline(always)]
pub fn read<E: PacketEnv, B: Bytes>(
    env: &E,
    facts: &Facts<'_>,
    bytes: &B,
    position: Position,
    desk: &mut Desk,
) -> Next {
    if facts.tagged {
        return desk.pass(Reason::Tagged);
    }
    let is_ingress = position as u8 == Position::Ingress as u8;
    // What a bridge's port has given to loopback is known by its flow: anybody may write such a mark.
    if facts.translated && !(is_ingress && guard::is_for_loopback(bytes, facts.device.header)) {
        return desk.pass(Reason::AlreadyTranslated);
    }
    desk.marked = facts.translated;
    let device = facts.device;
    desk.pods = device.pods;
    let mut bridge = [0; 3];
    if is_ingress {
        let ours = if device.role as u8 == DeviceRole::BridgePort as u8 {
            parse::is_frame_for(bytes, &device.mac, &device.bridge_mac)
        } else {
            facts.for_host
        };
        if !ours {
            if device.role as u8 != DeviceRole::BridgePort as u8 || env.connected(Protocol::Udp).is_none() {
                return desk.pass(Reason::NotForHost);
            }
            bridge = device.bridge_mac;
        }
    }
    match parse::parse(bytes, u32::from(device.header)) {
        Err(reason) => desk.pass(reason),
        Ok(parsed) => {
            desk.packet = Packet { bridge, ..parsed.packet };
            desk.moved = false;
            desk.quoted = parsed.outer.is_some();
            if let Some(outer) = parsed.outer {
                desk.outer = outer;
                return Next::Quoted;
            }
            match desk.packet.piece {
                Piece::Whole => Next::Flow,
                Piece::First => Next::First,
                Piece::Later => Next::Later,
                // A Service has no part in it, but its address may be one of Services.
                Piece::Portless if desk.packet.is_past() => desk.pass(Reason::NotForHost),
                Piece::Portless if position as u8 == Position::Ingress as u8 => {
                    desk.connected = false;
                    desk.dialled = desk.packet.destination;
                    Next::Choose
                }
                Piece::Portless if facts.local_socket => Next::Flow,
                Piece::Portless => desk.pass(Reason::OtherTransport),
            }
        }
    }
}

/// What becomes of a packet that [`read`] leaves as it is.
#[inline(always)]
pub fn left<B: Bytes>(device: &Device, bytes: &B, desk: &mut Desk) -> Next {
    if guard::is_martian(bytes, device.header) { desk.drop(Reason::Martian) } else { Next::Done }
}

impl<'a, T: PacketTables, E: PacketEnv> Run<'a, T, E> {
    /// A run, if the agent has written the settings.
    #[inline(always)]
    pub fn new(tables: &'a T, env: &'a E, now: u32) -> Option<Self> {
        let plane = tables.packet_plane()?;
        if plane.version != PacketPlane::VERSION {
            return None;
        }
        Some(Run { tables, env, plane, now })
    }
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

impl<T: PacketTables, E: PacketEnv> Run<'_, T, E> {
    /// Before routing.
    #[inline(always)]
    pub fn ingress<D: Seat>(&self, desk: &mut D) -> Next {
        // Established connections keep their backend. Datagrams go to one that serves, and so does a new connection,
        // even if its ports are those of one that ended or hangs.
        if guard::is_stray(desk) {
            return desk.drop(Reason::Martian);
        }
        let opens = desk.packet.segment.opens();
        let fresh = desk.packet.protocol as u8 == Protocol::Udp as u8 || opens;
        repair::recognise(self.env, desk, fresh);
        if desk.packet.is_past() && !desk.connected {
            return desk.pass(Reason::NotForHost);
        }
        if desk.packet.destination.address.is_loopback() {
            return self.loopback_receives(desk);
        }
        let port = desk.packet.destination.port;
        let masquerades = self.plane.is_first_choice(port);
        let is_known_port = masquerades || self.tables.port_in_use(port) || self.tables.port_seen(port);
        if !is_known_port && !desk.connected {
            // Which port an address of Services is dialled at is no matter where all that is none of them is judged.
            return if self.tables.judges() { Next::Choose } else { desk.pass(Reason::NotService) };
        }
        desk.key = packet_key(&desk.packet, Position::Ingress);
        let mut known = is_known_port && desk.recall(self, Desk::KNOWN);
        if known {
            let Desk { key, flows, .. } = &**desk;
            let flow = &flows[0].flow;
            let is_ending = opens && track::is_ending(flow);
            if number_of(flow, key) == Flow::ANSWERED && !(is_ending && flow.is_own()) {
                if self.note(desk, Side::Backend) {
                    return rewrite(desk, Flow::ANSWERED);
                }
                // Another flow has taken what this one lost, and would be shown its answer.
                desk.forget(self, Desk::KNOWN);
                return desk.pass(Reason::NotService);
            }
            if is_ending || !repair::is_of(desk, fresh) {
                desk.forget(self, Desk::KNOWN);
                desk.moved = true;
                known = false;
            }
        }
        if !known && fresh && is_known_port {
            repair::make_way(self, desk);
        }
        if !known && !desk.connected {
            return if self.is_handed_over(desk) { desk.pass(Reason::HandedOver) } else { Next::Choose };
        }
        if !known {
            desk.backend = desk.packet.destination;
            if !desk.serves(self).is_gone() {
                // A socket's backend is right where it is; whether its address is a frontend, too, is another matter.
                desk.leave_socket();
            }
            return if desk.connected || is_known_port {
                Next::Choose
            } else {
                desk.pass(Reason::NotService)
            };
        }
        let Desk { flows, backend, .. } = &mut **desk;
        *backend = Endpoint { address: flows[0].flow.backend(), port: flows[0].flow.backend_port };
        let serves = if fresh { desk.serves(self) } else { Serves::AsBefore };
        if serves.is_gone() || !self.note(desk, Side::Client) {
            desk.forget(self, Desk::KNOWN);
            desk.moved = true;
            return Next::Choose;
        }
        if serves.is_otherwise() {
            self.show_otherwise(desk);
            return Next::Open;
        }
        rewrite(desk, Flow::DIALLED)
    }

    /// After routing.
    #[inline(always)]
    pub fn egress<D: Seat>(&self, facts: &Facts<'_>, desk: &mut D) -> Next {
        let packet = &desk.packet;
        if facts.local_socket && guard::must_stay(self.tables, packet) {
            return desk.drop(Reason::GuardDropped);
        }
        if !packet.has_ports() {
            return desk.pass(Reason::OtherTransport);
        }
        if packet.source.address.is_loopback() {
            return Next::Loopback;
        }
        if !self.tables.port_seen(packet.source.port) && !self.tables.port_seen(packet.destination.port) {
            return self.unknown(facts, desk);
        }
        desk.key = packet_key(&desk.packet, Position::Egress);
        if !desk.recall(self, Desk::KNOWN) {
            return self.unknown(facts, desk);
        }
        let Desk { packet, key, flows, .. } = &mut **desk;
        let flow = &flows[0].flow;
        if track::is_of_another(packet.segment, flow) {
            desk.forget(self, Desk::KNOWN);
            return self.unknown(facts, desk);
        }
        let (number, is_own) = (number_of(flow, key), flow.is_own());
        if number == Flow::RETURNED || is_own {
            let side = if is_own { Side::Client } else { Side::Backend };
            if !self.note(desk, side) && is_own {
                desk.forget(self, Desk::KNOWN);
                return self.unknown(facts, desk);
            }
            return rewrite(desk, number);
        }
        if !flows[0].flow.is_masqueraded() {
            // It was, and has been dialled anew since: this key was left behind, and the backend sees the client now.
            desk.release(self, Desk::KNOWN, Flow::SENT);
            return desk.pass(Reason::NotService);
        }
        if !self.keeps_masquerade(facts.device, &flows[0].flow, packet.protocol) {
            return Next::Masquerade;
        }
        rewrite(desk, Flow::SENT)
    }
}

/// The packet goes on as one of the flow that has the key of this number.
#[inline(always)]
pub(super) fn rewrite(desk: &mut Desk, number: u32) -> Next {
    let flow = &desk.known().flow;
    match ends(flow, number) {
        Some((source, destination, reason)) => desk.rewrite(source, destination, reason),
        None if flow.is_own() => desk.pass(Reason::OwnConnection),
        None => desk.pass(Reason::NotService),
    }
}
