//! Fragments: the first one has the ports, and its decision is taken again for those that follow. Nothing is put together.
//! A later fragment that overtakes the first one would leave for an address that only translation gives a meaning: it is
//! dropped where it is certainly a Service's. Of everybody else's, and of what is sent to the node itself (a NodePort's, or
//! its own), it passes untouched.

use super::{
    desk::{Desk, Fate},
    packet::{PacketEnv, PacketTables, Run},
    parse::{Packet, Piece},
    parts::Next,
};
use crate::{
    Protocol, Reason,
    layout::{Fragment, FragmentKey, FrontendKey, Position},
};

#[inline(always)]
fn key_of(packet: &Packet, position: Position) -> FragmentKey {
    FragmentKey {
        source: packet.source.address.octets(),
        destination: packet.destination.address.octets(),
        id: packet.id,
        protocol: packet.fragment_protocol,
        position,
        reserved: 0,
    }
}

/// Give a later fragment the ports of its first one, if they are known.
#[inline(always)]
pub fn complete<T: PacketTables, E: PacketEnv>(
    run: &Run<'_, T, E>,
    desk: &mut Desk,
    position: Position,
) -> Next {
    let first = run.tables.fragment(&key_of(&desk.packet, position));
    if let Some(first) = first
        && let Some(protocol) = Protocol::from_number(u32::from(first.protocol))
        && first.version == Fragment::VERSION
        && run.now.wrapping_sub(first.seen) <= Fragment::LIFETIME
    {
        desk.packet.protocol = protocol;
        desk.packet.source.port = first.source_port;
        desk.packet.destination.port = first.destination_port;
        return Next::Flow;
    }
    if is_for_a_service(run.tables, &desk.packet, position) {
        return desk.drop(Reason::FragmentEarly);
    }
    desk.pass(Reason::FragmentPlain)
}

/// Whether a fragment, whatever its port, is for an address that is a Service's and not the node's. Only where it comes in:
/// nothing tells a backend's answer from what it says for itself.
#[inline(always)]
fn is_for_a_service<T: PacketTables>(tables: &T, packet: &Packet, position: Position) -> bool {
    let to = packet.destination.address;
    position as u8 == Position::Ingress as u8
        && tables.address_in_use(&to)
        && tables.frontend(&FrontendKey::fragments(to, packet.protocol)).is_some()
        && tables.local_address(&to).is_none()
}

/// What a verdict is for this piece of a packet. A first fragment that is not left alone is remembered, and so is one that
/// is left alone though it is for a Service: those that follow it would be dropped.
#[inline(always)]
pub fn settle<T: PacketTables, E: PacketEnv>(
    run: &Run<'_, T, E>,
    desk: &mut Desk,
    position: Position,
) -> Next {
    let Desk { packet, fate, source, destination, .. } = desk;
    let is_first = packet.piece as u32 == Piece::First as u32;
    let (rejects, rewrites) = (*fate as u32 == Fate::Reject as u32, *fate as u32 == Fate::Rewrite as u32);
    if !is_first {
        // RFC 1122 §3.2.2: an error is never about a later fragment.
        return if rejects { desk.drop(desk.reason) } else { Next::Done };
    }
    if *fate as u32 != Fate::Pass as u32 || is_for_a_service(run.tables, packet, position) {
        let value = Fragment {
            source_port: packet.source.port,
            destination_port: packet.destination.port,
            protocol: packet.protocol as u8,
            version: Fragment::VERSION,
            reserved: 0,
            seen: run.now,
        };
        run.tables.set_fragment(&key_of(packet, position), &value);
    }
    if rewrites
        && packet.protocol as u8 == Protocol::Sctp as u8
        && (source.port != packet.source.port || destination.port != packet.destination.port)
    {
        return desk.drop(Reason::FragmentedSctp);
    }
    Next::Done
}
