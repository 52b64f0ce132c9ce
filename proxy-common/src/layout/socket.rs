//! Socket storage: what a socket dialled and where it really went. It lives and dies with the socket.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Address;

/// `connected`: a socket whose connect() was translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct Connected {
    /// What the application dialled, 16 bytes, network byte order.
    pub dialled: [u8; 16],
    /// Where it was sent, likewise.
    pub backend: [u8; 16],
    /// Host byte order.
    pub dialled_port: u16,
    /// Host byte order.
    pub backend_port: u16,
    /// Layout of this value.
    pub version: u32,
}

impl Connected {
    /// The version that is written.
    pub const VERSION: u32 = 1;

    /// A record of this version; ports in host byte order.
    #[inline(always)]
    pub const fn new(dialled: Address, dialled_port: u16, backend: Address, backend_port: u16) -> Self {
        Self {
            dialled: dialled.octets(),
            backend: backend.octets(),
            dialled_port,
            backend_port,
            version: Self::VERSION,
        }
    }
}

/// What the program `connected_sockets` tells of a socket with such a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Remembered {
    /// The socket's (`SO_COOKIE`).
    pub cookie: u64,
    /// Its record.
    pub record: Connected,
}

/// Addresses that one unconnected UDP socket is remembered to have dialled. More rotate.
pub const DATAGRAM_SLOTS: usize = 4;

/// `unconnected`: an unconnected UDP socket's dialled addresses, each with the backend it sticks to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct Unconnected {
    /// Unused ones have `backend_port` 0.
    pub slots: [Datagram; DATAGRAM_SLOTS],
    /// Slot last sent to: tells two dialled addresses with one backend apart.
    pub last: u32,
    /// Layout of this value.
    pub version: u32,
}

impl Unconnected {
    /// The version that is written.
    pub const VERSION: u32 = 1;
}

/// One dialled address of an unconnected UDP socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct Datagram {
    /// What the application dialled, 16 bytes, network byte order.
    pub dialled: [u8; 16],
    /// Where it is sent, likewise.
    pub backend: [u8; 16],
    /// Host byte order.
    pub dialled_port: u16,
    /// Host byte order; 0: this slot is unused.
    pub backend_port: u16,
    /// Seconds of the monotonic clock of the last send.
    pub seen: u32,
}
