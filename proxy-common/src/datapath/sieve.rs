//! The first look at a packet: what is nobody's passes after a handful of loads, before anything is written or looked up.
//! Most packets of a node are such, also those of a connection that its socket has translated, and a cold line of memory
//! costs more than all that is decided here.
//!
//! It only ever says what the whole decision would say: the packet passes ([`Reason::NotService`](crate::Reason)). What
//! is in doubt (options, fragments, errors, other layers) is decided there.

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::{
    packet::{PacketEnv, PacketTables},
    parse::{Bytes, ETHERNET},
};
use crate::{
    Address, Protocol,
    layout::{Position, Trace},
};

/// What the kernel knows about a packet that nobody has read.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// It begins with an Ethernet header for certain.
    pub ethernet: bool,
    /// Its VLAN tag is kept beside the bytes.
    pub tagged: bool,
    /// A program has rewritten it in this pass, or in another one or namespace.
    pub marked: bool,
    /// A socket of this node's own namespace sent it.
    pub local_socket: bool,
}

#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Plain4 {
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
    ports: [u16; 2],
}

#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Plain6 {
    version: u32,
    payload_length: u16,
    next: u8,
    lifetime: u8,
    source: [u32; 4],
    destination: [u32; 4],
    ports: [u16; 2],
}

/// More fragments, or not the first one; in network byte order.
const FRAGMENT: u16 = 0x3fff_u16.to_be();

/// Whether a packet passes: it is of no flow, of no Service, and its socket's backend is not to be repaired.
#[inline(always)]
pub fn passes<T: PacketTables, E: PacketEnv, B: Bytes>(
    tables: &T,
    env: &E,
    sight: &Sight,
    bytes: &B,
    position: Position,
) -> bool {
    if !sight.ethernet || sight.tagged || sight.marked {
        return false;
    }
    match bytes.near::<u16>(12).map(u16::from_be) {
        Some(0x0800) => {
            let Some(ip) = bytes.near::<Plain4>(ETHERNET) else { return false };
            if ip.version_length != 0x45 || ip.fragment & FRAGMENT != 0 {
                return false;
            }
            let source = (Address::from_v4_word(ip.source), u16::from_be(ip.ports[0]));
            let destination = (Address::from_v4_word(ip.destination), u16::from_be(ip.ports[1]));
            let flags = ETHERNET + 20 + 13;
            is_nobodys(tables, env, sight, bytes, position, ip.protocol, flags, source, destination)
        }
        Some(0x86dd) => {
            let Some(ip) = bytes.near::<Plain6>(ETHERNET) else { return false };
            let source = (Address::from_words(ip.source), u16::from_be(ip.ports[0]));
            let destination = (Address::from_words(ip.destination), u16::from_be(ip.ports[1]));
            let flags = ETHERNET + 40 + 13;
            is_nobodys(tables, env, sight, bytes, position, ip.next, flags, source, destination)
        }
        _ => false,
    }
}

/// The same of a packet that was read. `flags`: offset of TCP's.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "inlined: what the headers say, in registers")]
fn is_nobodys<T: PacketTables, E: PacketEnv, B: Bytes>(
    tables: &T,
    env: &E,
    sight: &Sight,
    bytes: &B,
    position: Position,
    protocol: u8,
    flags: u32,
    source: (Address, u16),
    destination: (Address, u16),
) -> bool {
    let Some(protocol) = Protocol::from_number(u32::from(protocol)) else { return false };
    // Of the node's own loopback, or nobody's (`loopback.rs`, `guard.rs`).
    if source.0.is_loopback() || destination.0.is_loopback() {
        return false;
    }
    let (begins, local) = (|| !is_settled(bytes, protocol, flags), sight.local_socket);
    let comes_in = position as u8 == Position::Ingress as u8;
    if (comes_in || local) && (tables.port_in_use(destination.1) || tables.judges()) {
        return false;
    }
    // Where no flow's port is there is no flow, and most ports are none's.
    let may_be_flows = if comes_in {
        tables.port_seen(destination.1) || is_masquerades(tables, destination.1)
    } else {
        tables.port_seen(source.1) || tables.port_seen(destination.1)
    };
    if may_be_flows && tables.is_traced(Trace::of(source, destination, position)) {
        return false;
    }
    if comes_in {
        // Only what repair may move is asked for its socket.
        return !env.has_sender() || !begins();
    }
    // What the node begins itself, and whose answers may look like another's (`own.rs`).
    let port = source.1;
    let is_flows = || tables.port_seen(port) || is_masquerades(tables, port);
    !(tables.port_in_use(port) || local && is_flows()) || !begins()
}

/// Whether answers to masqueraded clients may come to this port.
#[inline(always)]
fn is_masquerades<T: PacketTables>(tables: &T, port: u16) -> bool {
    tables.packet_plane().is_none_or(|plane| plane.is_first_choice(port))
}

/// Whether a packet begins nothing for certain: a segment that is no greeting.
#[inline(always)]
fn is_settled<B: Bytes>(bytes: &B, protocol: Protocol, flags: u32) -> bool {
    /// TCP's SYN, RST and ACK.
    const SYN: u8 = 2;
    const OTHERS: u8 = 4 | 16;
    match protocol {
        Protocol::Tcp => bytes.near::<u8>(flags).is_some_and(|flags| flags & SYN == 0 || flags & OTHERS != 0),
        Protocol::Udp | Protocol::Sctp => false,
    }
}
