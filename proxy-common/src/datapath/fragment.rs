//! Fragments: the first one has the ports, and its decision is taken again for those that follow. Nothing is put together;
//! a later fragment that overtakes the first one passes untouched.

use super::{
    packet::{PacketEnv, PacketTables, Run, Verdict},
    parse::{Packet, Piece},
};
use crate::{
    Protocol, Reason,
    layout::{Fragment, FragmentKey, Position},
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

/// Give a later fragment the ports of its first one; false if that is not known.
#[inline(always)]
pub fn complete<T: PacketTables, E: PacketEnv>(
    run: &Run<'_, T, E>,
    packet: &mut Packet,
    position: Position,
) -> bool {
    let Some(first) = run.tables.fragment(&key_of(packet, position)) else { return false };
    let Some(protocol) = Protocol::from_number(u32::from(first.protocol)) else { return false };
    if first.version != Fragment::VERSION || run.now.wrapping_sub(first.seen) > Fragment::LIFETIME {
        return false;
    }
    packet.protocol = protocol;
    packet.source.port = first.source_port;
    packet.destination.port = first.destination_port;
    true
}

/// What a verdict is for this piece of a packet. A first fragment that is not left alone is remembered.
#[inline(always)]
pub fn settle<T: PacketTables, E: PacketEnv>(
    run: &Run<'_, T, E>,
    packet: &Packet,
    position: Position,
    verdict: Verdict,
) -> Verdict {
    let is_first = packet.piece as u32 == Piece::First as u32;
    if is_first && !matches!(verdict, Verdict::Pass(_)) {
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
    match verdict {
        // RFC 1122 §3.2.2: an error is never about a later fragment.
        Verdict::Reject { reason, .. } if packet.piece as u32 == Piece::Later as u32 => Verdict::Drop(reason),
        Verdict::Rewrite { source, destination, .. }
            if is_first
                && packet.protocol as u8 == Protocol::Sctp as u8
                && (source.port != packet.source.port || destination.port != packet.destination.port) =>
        {
            Verdict::Drop(Reason::FragmentedSctp)
        }
        verdict => verdict,
    }
}
