//! The IP header: IPv4 with its options, IPv6 with a bounded walk over its extension headers.

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::{Bytes, Piece};
use crate::{Address, Reason};

#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct V4 {
    version_length: u8,
    service: u8,
    total_length: u16,
    id: u16,
    fragment: u16,
    lifetime: u8,
    protocol: u8,
    checksum: u16,
    source: u32,
    destination: u32,
}

#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct V6 {
    version: u32,
    payload_length: u16,
    next: u8,
    lifetime: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

/// Any IPv6 extension header; of a fragment header all of it.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Extension {
    next: u8,
    length: u8,
    word: u16,
    id: u32,
}

/// Extension headers that are walked over.
const EXTENSIONS: u32 = 6;
/// What the IP header says.
pub(super) struct Network {
    pub(super) v4: bool,
    pub(super) l3: u32,
    pub(super) l4: u32,
    pub(super) end: u32,
    pub(super) protocol: u8,
    pub(super) piece: Piece,
    pub(super) id: u32,
    pub(super) fragment_protocol: u8,
    pub(super) source: Address,
    pub(super) destination: Address,
}

/// The IP header at `l3`. `limit` is where the bytes end; `whole`: a packet that claims more than that is cut short,
/// while a quotation is always allowed to be.
#[inline(always)]
pub(super) fn network<B: Bytes>(bytes: &B, l3: u32, limit: u32, whole: bool) -> Result<Network, Reason> {
    let Some(version) = bytes.near::<u8>(l3) else { return Err(Reason::Malformed) };
    match version >> 4 {
        4 => network4(bytes, l3, limit, whole),
        6 => network6(bytes, l3, limit, whole),
        _ => Err(Reason::NotIp),
    }
}

#[inline(always)]
pub(super) fn network4<B: Bytes>(bytes: &B, l3: u32, limit: u32, whole: bool) -> Result<Network, Reason> {
    let ip = if whole { bytes.near::<V4>(l3) } else { bytes.load::<V4>(l3) };
    let Some(ip) = ip else { return Err(Reason::Malformed) };
    let header = u32::from(ip.version_length & 15) * 4;
    let end = end(l3, u32::from(u16::from_be(ip.total_length)), limit, whole)?;
    let l4 = l3 + header;
    if header < 20 || l4 > end {
        return Err(Reason::Malformed);
    }
    // RFC 791: a bit "more fragments", 13 bits of offset.
    let fragment = u16::from_be(ip.fragment) & 0x3fff;
    Ok(Network {
        v4: true,
        l3,
        l4,
        end,
        protocol: ip.protocol,
        piece: piece(fragment & 0x1fff != 0, fragment != 0),
        id: u32::from(ip.id),
        fragment_protocol: ip.protocol,
        source: Address::from_v4_word(ip.source),
        destination: Address::from_v4_word(ip.destination),
    })
}

#[inline(always)]
pub(super) fn network6<B: Bytes>(bytes: &B, l3: u32, limit: u32, whole: bool) -> Result<Network, Reason> {
    let ip = if whole { bytes.near::<V6>(l3) } else { bytes.load::<V6>(l3) };
    let Some(ip) = ip else { return Err(Reason::Malformed) };
    let payload = u32::from(u16::from_be(ip.payload_length));
    let end = end(l3, if payload == 0 { 0 } else { 40 + payload }, limit, whole)?;
    let mut found = Network {
        v4: false,
        l3,
        l4: l3 + 40,
        end,
        protocol: ip.next,
        piece: Piece::Whole,
        id: 0,
        fragment_protocol: 0,
        source: Address::from_words(ip.source),
        destination: Address::from_words(ip.destination),
    };
    // An IPv4-mapped address has no business on the wire (RFC 4291 §2.5.5.2): it is not IPv4's.
    if found.source.is_v4() || found.destination.is_v4() {
        return Err(Reason::Malformed);
    }
    let mut i = 0;
    while i < EXTENSIONS {
        // Hop-by-hop, routing, fragment, destination options (RFC 8200 §4).
        let kind = found.protocol;
        if kind != 0 && kind != 43 && kind != 44 && kind != 60 {
            return Ok(found);
        }
        let Some(extension) = bytes.load::<Extension>(found.l4) else { return Err(Reason::Malformed) };
        found.protocol = extension.next;
        if kind == 44 {
            let word = u16::from_be(extension.word);
            found.piece = piece(word & 0xfff8 != 0, word & 0xfff9 != 0);
            found.id = extension.id;
            found.fragment_protocol = extension.next;
            found.l4 += 8;
            if found.piece as u32 == Piece::Later as u32 {
                return Ok(found);
            }
        } else {
            // With hops left the destination is not the last one, and the checksum is made for another address.
            if kind == 43 && u16::from_be(extension.word) & 0xff != 0 {
                return Err(Reason::OtherTransport);
            }
            found.l4 += 8 + 8 * u32::from(extension.length);
        }
        if found.l4 > end {
            return Err(Reason::Malformed);
        }
        i += 1;
    }
    if matches!(found.protocol, 0 | 43 | 44 | 60) { Err(Reason::OtherTransport) } else { Ok(found) }
}

/// Where a packet ends that says it is `length` bytes long; 0: longer than its field can say (segments to be cut later).
#[inline(always)]
fn end(l3: u32, length: u32, limit: u32, whole: bool) -> Result<u32, Reason> {
    if length == 0 {
        return Ok(limit);
    }
    if l3 + length <= limit {
        Ok(l3 + length)
    } else if whole {
        Err(Reason::Malformed)
    } else {
        Ok(limit)
    }
}

#[inline(always)]
fn piece(later: bool, fragment: bool) -> Piece {
    match (later, fragment) {
        (true, _) => Piece::Later,
        (false, true) => Piece::First,
        (false, false) => Piece::Whole,
    }
}
