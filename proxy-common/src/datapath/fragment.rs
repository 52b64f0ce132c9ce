//! Fragments: the first one has the ports, and its decision is taken again for those that follow. Nothing is put together;
//! a later fragment that overtakes the first one passes untouched.

use super::{
    desk::{Desk, Fate, Next},
    packet::{PacketEnv, PacketTables, Run},
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

/// Give a later fragment the ports of its first one, if they are known.
#[inline(always)]
pub fn complete<T: PacketTables, E: PacketEnv>(
    run: &Run<'_, T, E>,
    desk: &mut Desk,
    position: Position,
) -> Next {
    let plain = Reason::FragmentPlain;
    let Some(first) = run.tables.fragment(&key_of(&desk.packet, position)) else { return desk.pass(plain) };
    let Some(protocol) = Protocol::from_number(u32::from(first.protocol)) else { return desk.pass(plain) };
    if first.version != Fragment::VERSION || run.now.wrapping_sub(first.seen) > Fragment::LIFETIME {
        return desk.pass(plain);
    }
    desk.packet.protocol = protocol;
    desk.packet.source.port = first.source_port;
    desk.packet.destination.port = first.destination_port;
    Next::Flow
}

/// What a verdict is for this piece of a packet. A first fragment that is not left alone is remembered.
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
    if *fate as u32 != Fate::Pass as u32 {
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
