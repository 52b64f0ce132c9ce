//! Carrying a rewrite out: which bytes become what, and every checksum over them.

use zerocopy::{Immutable, IntoBytes};

use super::{
    Endpoint,
    csum::{Difference, crc32c_change},
    parse::{Bytes, Outer, Packet, Parsed, Piece},
};
use crate::{Address, Protocol, layout::Position};

/// A packet whose bytes can be changed. False: the kernel could not, and the packet must be dropped.
pub trait Edit: Bytes {
    /// Write a value.
    fn store<V: IntoBytes + Immutable>(&mut self, offset: u32, value: &V) -> bool;
    /// Let the IPv4 header checksum at `offset` follow.
    fn fix_header(&mut self, offset: u32, difference: Difference) -> bool;
    /// Let the one's complement checksum at `offset` follow, which the network card may have still to finish. `over` says
    /// what changed.
    fn fix(&mut self, offset: u32, difference: Difference, over: Over) -> bool;
}

/// What a checksum covers that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over {
    /// Addresses, which a pseudo header repeats; else bytes of the packet.
    pub pseudo: bool,
    /// UDP: 0 means that there is no checksum, and none is made.
    pub zero_is_none: bool,
}

/// Give a packet, or what an ICMP error quotes, these ends.
#[inline(always)]
pub fn apply<B: Edit>(
    bytes: &mut B,
    parsed: &Parsed,
    source: &Endpoint,
    destination: &Endpoint,
    position: Position,
) -> bool {
    match &parsed.outer {
        None => whole(bytes, &parsed.packet, source, destination),
        Some(outer) => error(bytes, &parsed.packet, outer, source, destination, position),
    }
}

/// Give what an ICMP error quotes these ends, and the error the one that follows.
#[inline(always)]
pub fn error<B: Edit>(
    bytes: &mut B,
    packet: &Packet,
    outer: &Outer,
    source: &Endpoint,
    destination: &Endpoint,
    position: Position,
) -> bool {
    let Some(quoted) = quotation(bytes, packet, source, destination) else { return false };
    around(bytes, packet, outer, source, destination, position, quoted)
}

/// What changes in the addresses, and what in the ports.
#[inline(always)]
fn differences(packet: &Packet, source: &Endpoint, destination: &Endpoint) -> (Difference, Difference) {
    let addresses = Difference::NONE
        .words(&packet.source.address.words(), &source.address.words())
        .words(&packet.destination.address.words(), &destination.address.words());
    let ports = Difference::NONE
        .half(packet.source.port.to_be(), source.port.to_be())
        .half(packet.destination.port.to_be(), destination.port.to_be());
    (addresses, ports)
}

#[inline(always)]
fn store_addresses<B: Edit>(
    bytes: &mut B,
    v4: bool,
    l3: u32,
    source: &Address,
    destination: &Address,
) -> bool {
    if v4 {
        bytes.store(l3 + 12, &[source.v4_word(), destination.v4_word()])
    } else {
        bytes.store(l3 + 8, &source.words()) && bytes.store(l3 + 24, &destination.words())
    }
}

#[inline(always)]
fn store_ports<B: Edit>(bytes: &mut B, l4: u32, source: &Endpoint, destination: &Endpoint) -> bool {
    bytes.store(l4, &[source.port.to_be(), destination.port.to_be()])
}

/// Give a packet these ends. Where its headers follow each other all that changes but the transport's checksum is written
/// at once: calls into the kernel cost more than bytes.
#[inline(always)]
pub fn whole<B: Edit>(bytes: &mut B, packet: &Packet, source: &Endpoint, destination: &Endpoint) -> bool {
    let (addresses, ports) = differences(packet, source, destination);
    let has_ports = packet.piece as u32 != Piece::Later as u32;
    if has_ports {
        let done = if packet.protocol as u8 == Protocol::Sctp as u8 {
            fix_crc(bytes, packet, source, destination)
        } else {
            let is_udp = packet.protocol as u8 == Protocol::Udp as u8;
            let at = packet.l4 + if is_udp { 6 } else { 16 };
            let same = source.port == packet.source.port && destination.port == packet.destination.port;
            bytes.fix(at, addresses, Over { pseudo: true, zero_is_none: is_udp })
                && (same || bytes.fix(at, ports, Over { pseudo: false, zero_is_none: is_udp }))
        };
        if !done {
            return false;
        }
    }
    if packet.is_past() && !bytes.store(0, &packet.bridge) {
        return false;
    }
    let both = [source.port.to_be(), destination.port.to_be()];
    let (from, to) = (&source.address, &destination.address);
    if packet.v4 {
        // Lifetime and protocol, and the checksum.
        let Some([life, sum]) = bytes.load::<[u16; 2]>(packet.l3 + 8) else { return false };
        let head = zerocopy::transmute!([life, addresses.applied(sum)]);
        let (from, to) = (from.v4_word(), to.v4_word());
        if has_ports && packet.l4 == packet.l3 + 20 {
            return bytes.store::<[u32; 4]>(packet.l3 + 8, &[head, from, to, zerocopy::transmute!(both)]);
        }
        if !bytes.store::<[u32; 3]>(packet.l3 + 8, &[head, from, to]) {
            return false;
        }
    } else {
        let ([a, b, c, d], [e, f, g, h]) = (from.words(), to.words());
        if has_ports && packet.l4 == packet.l3 + 40 {
            let ports = zerocopy::transmute!(both);
            return bytes.store::<[u32; 9]>(packet.l3 + 8, &[a, b, c, d, e, f, g, h, ports]);
        }
        if !bytes.store::<[u32; 8]>(packet.l3 + 8, &[a, b, c, d, e, f, g, h]) {
            return false;
        }
    }
    !has_ports || bytes.store(packet.l4, &both)
}

/// SCTP's checksum covers its ports but no addresses. 0: the network card will make it.
#[inline(always)]
fn fix_crc<B: Edit>(bytes: &mut B, packet: &Packet, source: &Endpoint, destination: &Endpoint) -> bool {
    let old = (u32::from(packet.source.port) << 16) | u32::from(packet.destination.port);
    let new = (u32::from(source.port) << 16) | u32::from(destination.port);
    if old == new {
        return true;
    }
    let Some(word) = bytes.load::<u32>(packet.l4 + 8) else { return false };
    if word == 0 {
        return true;
    }
    let rest = packet.end.wrapping_sub(packet.l4).wrapping_sub(4);
    let crc = u32::from_le(word) ^ crc32c_change(old, new, rest);
    bytes.store(packet.l4 + 8, &crc.to_le())
}

/// Rewrite what is quoted; what it changes in the sum over the ICMP message.
#[inline(always)]
fn quotation<B: Edit>(
    bytes: &mut B,
    packet: &Packet,
    source: &Endpoint,
    destination: &Endpoint,
) -> Option<Difference> {
    let (addresses, ports) = differences(packet, source, destination);
    let mut message = addresses.plus(ports);
    if packet.v4 {
        message = message.plus(fix_quoted(bytes, packet.l3 + 10, addresses)?);
    }
    let at = packet.l4 + if packet.protocol as u8 == Protocol::Udp as u8 { 6 } else { 16 };
    // Not all of the header may be quoted. SCTP's checksum can't be verified there by anybody.
    if packet.protocol as u8 != Protocol::Sctp as u8 && at + 2 <= packet.end {
        let old = bytes.load::<u16>(at)?;
        if packet.protocol as u8 != Protocol::Udp as u8 || old != 0 {
            message = message.plus(fix_quoted(bytes, at, addresses.plus(ports))?);
        }
    }
    if store_ports(bytes, packet.l4, source, destination)
        && store_addresses(bytes, packet.v4, packet.l3, &source.address, &destination.address)
    {
        Some(message)
    } else {
        None
    }
}

/// A checksum that is quoted; how it changed.
#[inline(always)]
fn fix_quoted<B: Edit>(bytes: &mut B, offset: u32, difference: Difference) -> Option<Difference> {
    let old = bytes.load::<u16>(offset)?;
    let new = difference.applied(old);
    if bytes.store(offset, &new) { Some(Difference::NONE.half(old, new)) } else { None }
}

/// The error around it: where it comes in it is sent to who sent what it quotes, where it goes out it comes from who was
/// to have it.
#[inline(always)]
fn around<B: Edit>(
    bytes: &mut B,
    packet: &Packet,
    outer: &Outer,
    source: &Endpoint,
    destination: &Endpoint,
    position: Position,
    message: Difference,
) -> bool {
    let (from, to) = match position {
        Position::Ingress => (outer.source, source.address),
        Position::Egress => (destination.address, outer.destination),
    };
    let addresses = Difference::NONE
        .words(&outer.source.words(), &from.words())
        .words(&outer.destination.words(), &to.words());
    let checksum = outer.icmp + 2;
    let fixed = if packet.v4 {
        bytes.fix_header(outer.l3 + 10, addresses)
    } else {
        bytes.fix(checksum, addresses, Over { pseudo: true, zero_is_none: false })
    };
    fixed
        && bytes.fix(checksum, message, Over { pseudo: false, zero_is_none: false })
        && store_addresses(bytes, packet.v4, outer.l3, &from, &to)
}
