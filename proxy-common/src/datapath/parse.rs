//! What a packet is: where its headers lie, whose it is, and of an ICMP error the packet that it quotes. What can't be
//! read with certainty is nobody's: it passes untouched.

use zerocopy::{FromBytes, Immutable, KnownLayout};

use self::network::{Network, network, network4, network6};
use super::Endpoint;
use crate::{Address, Protocol, Reason};

mod network;

/// A packet's bytes, from the layer-2 header on.
pub trait Bytes {
    /// How many.
    fn length(&self) -> u32;
    /// The bytes at `offset` as a value; `None` if they are not all there.
    fn load<T: FromBytes + Immutable + KnownLayout + Copy>(&self, offset: u32) -> Option<T>;
    /// The same for what lies among a packet's first headers: in the kernel quicker, and `None` also if it lies farther.
    #[inline(always)]
    fn near<T: FromBytes + Immutable + KnownLayout + Copy>(&self, offset: u32) -> Option<T> {
        self.load(offset)
    }
}

/// Whether a packet is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Piece {
    /// It is.
    Whole = 0,
    /// The first fragment: it has the ports.
    First = 1,
    /// A later one: it has none.
    Later = 2,
    /// Whole, of a protocol without ports that we know, like an ICMP request: only whose address it is sent to can be told.
    Portless = 3,
}

/// What a segment says about its connection: bits. SCTP's chunks are put into TCP's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment(pub u8);

impl Segment {
    /// TCP SYN; SCTP INIT and INIT ACK.
    pub const SYN: u8 = 1;
    /// TCP ACK; SCTP everything but INIT.
    pub const ACK: u8 = 2;
    /// TCP FIN; SCTP SHUTDOWN and SHUTDOWN ACK.
    pub const FIN: u8 = 4;
    /// TCP RST; SCTP ABORT and SHUTDOWN COMPLETE.
    pub const RESET: u8 = 8;

    /// Whether a bit is set.
    #[inline(always)]
    pub const fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }

    /// Whether it opens a connection.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RESET) == Self::SYN
    }

    /// Whether it answers one that opens.
    #[inline(always)]
    pub const fn answers(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RESET) == Self::SYN | Self::ACK
    }
}

/// A transport packet: one that was sent here, or one that an ICMP error quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// IPv4 or IPv6.
    pub v4: bool,
    /// Whose ports these are.
    pub protocol: Protocol,
    /// Offset of the IP header.
    pub l3: u32,
    /// Offset of the transport header.
    pub l4: u32,
    /// Offset behind the last byte: of the packet as its IP header says, or of what is quoted.
    pub end: u32,
    /// Who sent it. The port of a later fragment is 0.
    pub source: Endpoint,
    /// Who is to have it. The port of a later fragment is 0.
    pub destination: Endpoint,
    /// What it says about its connection; nothing for a later fragment, UDP or a quotation.
    pub segment: Segment,
    /// Whether it is whole.
    pub piece: Piece,
    /// Fragments: identification, network byte order.
    pub id: u32,
    /// Fragments: protocol number after the fragment header, by which they are put together.
    pub fragment_protocol: u8,
    /// Ethernet: the address of the bridge that is to have it if it is rewritten, because it was on its way past this host;
    /// all zero: it is for this host.
    pub bridge: [u16; 3],
}

impl Packet {
    /// Whether it is on its way past this host, from one port of a bridge to another.
    #[inline(always)]
    pub const fn is_past(&self) -> bool {
        self.bridge[0] | self.bridge[1] | self.bridge[2] != 0
    }

    /// Whether it is of a transport that a Service may have.
    #[inline(always)]
    pub const fn has_ports(&self) -> bool {
        self.piece as u32 != Piece::Portless as u32
    }
}

/// The packet around a quotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// Offset of the IP header.
    pub l3: u32,
    /// Offset of the ICMP header.
    pub icmp: u32,
    /// Who noticed.
    pub source: Address,
    /// Who is told.
    pub destination: Address,
    /// An error, or a redirect to another gateway.
    pub is_redirect: bool,
}

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The packet itself, or the quoted one.
    pub packet: Packet,
    /// What is around the quoted one.
    pub outer: Option<Outer>,
}

#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Ethernet {
    destination: [u16; 3],
    source: [u16; 3],
    kind: u16,
}

/// The Ethernet header's length, and offset of the IP header behind it.
pub const ETHERNET: u32 = 14;
const ICMP: u8 = 1;
const ICMP6: u8 = 58;

/// What a packet is whose layer-2 header is `header` bytes long, or why it is left alone.
#[inline(always)]
pub fn parse<B: Bytes>(bytes: &B, header: u32) -> Result<Parsed, Reason> {
    if header == ETHERNET {
        let Some(ethernet) = bytes.near::<Ethernet>(0) else { return Err(Reason::NotIp) };
        match u16::from_be(ethernet.kind) {
            0x0800 | 0x86dd => {}
            0x8100 | 0x88a8 => return Err(Reason::Tagged),
            _ => return Err(Reason::NotIp),
        }
    }
    let network = network(bytes, header, bytes.length(), true)?;
    if network.protocol == if network.v4 { ICMP } else { ICMP6 } {
        return quotation(bytes, &network);
    }
    Ok(Parsed { packet: transport(bytes, &network, true)?, outer: None })
}

/// Whether the frame's destination is one of two MAC addresses.
#[inline(always)]
pub fn is_frame_for<B: Bytes>(bytes: &B, a: &[u16; 3], b: &[u16; 3]) -> bool {
    match bytes.near::<Ethernet>(0) {
        Some(ethernet) => same(&ethernet.destination, a) || same(&ethernet.destination, b),
        None => false,
    }
}

#[inline(always)]
fn same(a: &[u16; 3], b: &[u16; 3]) -> bool {
    ((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2])) == 0
}

/// A part of the transport header, which extension headers may have put far from the others.
#[inline(always)]
fn head<T: FromBytes + Immutable + KnownLayout + Copy, B: Bytes>(
    bytes: &B,
    offset: u32,
    whole: bool,
) -> Option<T> {
    if whole && let Some(value) = bytes.near::<T>(offset) {
        return Some(value);
    }
    bytes.load::<T>(offset)
}

/// The transport header. `whole`: the packet itself, not a quotation of its first bytes.
#[inline(always)]
fn transport<B: Bytes>(bytes: &B, network: &Network, whole: bool) -> Result<Packet, Reason> {
    let is_later = network.piece as u32 == Piece::Later as u32;
    let protocol = match Protocol::from_number(u32::from(network.protocol)) {
        Some(protocol) => protocol,
        // What a later fragment continues is known by its first one; until then it is called UDP.
        None if is_later && !network.v4 && network.protocol == 60 => Protocol::Udp,
        None if whole && network.piece as u32 == Piece::Whole as u32 => return Ok(portless(network)),
        None => return Err(Reason::OtherTransport),
    };
    let mut ports = [0; 2];
    let mut segment = Segment::default();
    if !is_later {
        // TCP, UDP, SCTP with its first chunk's head; of a quotation RFC 792 promises eight bytes.
        let shortest = match protocol {
            Protocol::Tcp if whole => 20,
            Protocol::Sctp if whole => 16,
            _ => 8,
        };
        if network.l4 + shortest > network.end {
            return Err(Reason::Malformed);
        }
        let Some(read) = head::<[u16; 2], _>(bytes, network.l4, whole) else { return Err(Reason::Malformed) };
        ports = [u16::from_be(read[0]), u16::from_be(read[1])];
        if whole && protocol as u8 != Protocol::Udp as u8 {
            let at = if protocol as u8 == Protocol::Tcp as u8 { 13 } else { 12 };
            let Some(word) = head::<u8, _>(bytes, network.l4 + at, whole) else {
                return Err(Reason::Malformed);
            };
            segment = if at == 13 { tcp(word) } else { sctp(word) };
        }
    }
    Ok(Packet {
        v4: network.v4,
        protocol,
        l3: network.l3,
        l4: network.l4,
        end: network.end,
        source: Endpoint { address: network.source, port: ports[0] },
        destination: Endpoint { address: network.destination, port: ports[1] },
        segment,
        piece: network.piece,
        id: network.id,
        fragment_protocol: network.fragment_protocol,
        bridge: [0; 3],
    })
}

/// A packet that has no ports. It is called SCTP because that has no sum for a network card to complete either.
#[inline(always)]
fn portless(network: &Network) -> Packet {
    Packet {
        v4: network.v4,
        protocol: Protocol::Sctp,
        l3: network.l3,
        l4: network.l4,
        end: network.end,
        source: Endpoint { address: network.source, port: 0 },
        destination: Endpoint { address: network.destination, port: 0 },
        // Nothing is known of a connection that it might be in the middle of.
        segment: Segment(Segment::SYN),
        piece: Piece::Portless,
        id: 0,
        fragment_protocol: 0,
        bridge: [0; 3],
    }
}

/// RFC 9293 §3.1: FIN, SYN, RST, PSH, ACK from the lowest bit on.
#[inline(always)]
fn tcp(flags: u8) -> Segment {
    let bit = |at: u8, bit: u8| ((flags >> at) & 1) * bit;
    Segment(bit(1, Segment::SYN) | bit(4, Segment::ACK) | bit(0, Segment::FIN) | bit(2, Segment::RESET))
}

/// RFC 9260 §3.2, by the type of the first chunk.
#[inline(always)]
fn sctp(chunk: u8) -> Segment {
    Segment(match chunk {
        1 => Segment::SYN,
        2 => Segment::SYN | Segment::ACK,
        6 | 14 => Segment::RESET | Segment::ACK,
        7 | 8 => Segment::FIN | Segment::ACK,
        _ => Segment::ACK,
    })
}

/// The packet that an ICMP error or redirect quotes; a request, as it is.
#[inline(always)]
fn quotation<B: Bytes>(bytes: &B, network: &Network) -> Result<Parsed, Reason> {
    if network.piece as u32 != Piece::Whole as u32 {
        return Err(Reason::OtherTransport);
    }
    let Some(head) = bytes.load::<[u8; 8]>(network.l4) else { return Err(Reason::Malformed) };
    let (at, length, is_redirect) = if network.v4 {
        match head[0] {
            // RFC 792; the quotation's length in words where RFC 4884 gives it.
            3 | 11 | 12 => (8, 4 * u32::from(head[5]), false),
            4 => (8, 0, false),
            5 => (8, 0, true),
            // What netfilter takes for the beginning of something: echo, timestamp, information and mask requests.
            8 | 13 | 15 | 17 => return Ok(Parsed { packet: portless(network), outer: None }),
            _ => return Err(Reason::OtherTransport),
        }
    } else {
        match head[0] {
            // RFC 4443; the quotation's length in double words.
            1 | 3 => (8, 8 * u32::from(head[4]), false),
            2 | 4 => (8, 0, false),
            // Echo and node information requests.
            128 | 139 => return Ok(Parsed { packet: portless(network), outer: None }),
            // RFC 4861 §4.5.
            137 => (redirected(bytes, network)?, 0, true),
            _ => return Err(Reason::OtherTransport),
        }
    };
    let l3 = network.l4 + at;
    let limit = if length != 0 && l3 + length < network.end { l3 + length } else { network.end };
    let inner = quoted(bytes, l3, limit, network.v4)?;
    let outer = Outer {
        l3: network.l3,
        icmp: network.l4,
        source: network.source,
        destination: network.destination,
        is_redirect,
    };
    Ok(Parsed { packet: inner, outer: Some(outer) })
}

#[inline(always)]
fn quoted<B: Bytes>(bytes: &B, l3: u32, limit: u32, v4: bool) -> Result<Packet, Reason> {
    let inner = if v4 { network4(bytes, l3, limit, false)? } else { network6(bytes, l3, limit, false)? };
    if inner.piece as u32 == Piece::Later as u32 {
        return Err(Reason::OtherTransport);
    }
    transport(bytes, &inner, false)
}

/// Where an IPv6 redirect quotes: the option "redirected header", behind at most three others.
#[inline(always)]
fn redirected<B: Bytes>(bytes: &B, network: &Network) -> Result<u32, Reason> {
    let mut at = 40;
    let mut i = 0;
    while i < 4 {
        let Some(option) = bytes.load::<[u8; 2]>(network.l4 + at) else { break };
        if option[0] == 4 {
            return Ok(at + 8);
        }
        if option[1] == 0 {
            break;
        }
        at += 8 * u32::from(option[1]);
        i += 1;
    }
    Err(Reason::OtherTransport)
}
