//! `flows` and the unconfirmed ones: a connection through a Service as the packet plane knows it.
//!
//! One record per flow. Up to four keys lead to it, one for each pair of addresses that its packets bear where a program
//! meets them; the record is stored under each, so that any one of them can make the others anew. The state that counts
//! is the one under [`Flow::dialled_key`]; the others' is a copy of it, at most a second old.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};

use crate::{Address, Protocol};

/// Where a packet is met. Destinations change at ingress, sources at egress, so each has keys of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(u8)]
pub enum Position {
    /// Before routing, like netfilter's PREROUTING.
    Ingress = 1,
    /// After routing, like netfilter's POSTROUTING.
    Egress = 2,
}

/// A packet's ends where it is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct FlowKey {
    /// 16 bytes, network byte order, IPv4 mapped.
    pub source: [u8; 16],
    /// Likewise.
    pub destination: [u8; 16],
    /// Host byte order.
    pub source_port: u16,
    /// Host byte order.
    pub destination_port: u16,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Where.
    pub position: Position,
    /// Always 0.
    pub reserved: u16,
}

/// A flow: all its addresses, what both sides have said, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct Flow {
    /// Who dialled, 16 bytes, network byte order, IPv4 mapped.
    pub client: [u8; 16],
    /// What was dialled, likewise.
    pub dialled: [u8; 16],
    /// Who serves it, likewise.
    pub backend: [u8; 16],
    /// The node's address that stands for the client towards the backend; all zero: none, or not chosen yet.
    pub masquerade: [u8; 16],
    /// Host byte order.
    pub client_port: u16,
    /// Host byte order.
    pub dialled_port: u16,
    /// Host byte order.
    pub backend_port: u16,
    /// The client's port as the backend sees it, host byte order.
    pub shown_port: u16,
    /// Layout of this value: connections outlive the program that wrote them.
    pub version: u8,
    /// Bits of [`Flow::MASQUERADE`], [`Flow::PORT_CHANGED`], [`Flow::REPAIR`] and [`Flow::OWN`].
    pub flags: u8,
    /// What the client's packets have said (`datapath::track`).
    pub client_state: u8,
    /// What the backend's packets have said.
    pub backend_state: u8,
    /// Seconds of the monotonic clock.
    pub seen: u32,
}

impl FlowKey {
    /// The words as they lie in memory.
    #[inline(always)]
    pub const fn words(&self) -> &[u64; 5] {
        zerocopy::transmute_ref!(self)
    }

    /// Whether two keys are one, by words: byte arrays are compared a byte at a time in the kernel.
    #[inline(always)]
    pub fn is(&self, other: &Self) -> bool {
        let (a, b): (&[u64; 5], &[u64; 5]) =
            (zerocopy::transmute_ref!(self), zerocopy::transmute_ref!(other));
        (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) | (a[4] ^ b[4]) == 0
    }
}

impl Flow {
    /// From words as they lie in memory.
    #[inline(always)]
    pub const fn from_words(words: [u64; 10]) -> Self {
        zerocopy::transmute!(words)
    }

    /// The words as they lie in memory.
    #[inline(always)]
    pub const fn words(&self) -> &[u64; 10] {
        zerocopy::transmute_ref!(self)
    }

    #[inline(always)]
    const fn address(&self, first: usize) -> Address {
        let words = self.words();
        Address::from_halves([words[first], words[first + 1]])
    }

    /// The version that is written.
    pub const VERSION: u8 = 1;
    /// None: of no version.
    pub const NONE: Self = Self {
        client: [0; 16],
        dialled: [0; 16],
        backend: [0; 16],
        masquerade: [0; 16],
        client_port: 0,
        dialled_port: 0,
        backend_port: 0,
        shown_port: 0,
        version: 0,
        flags: 0,
        client_state: 0,
        backend_state: 0,
        seen: 0,
    };
    /// Number of [`Self::dialled_key`].
    pub const DIALLED: u32 = 0;
    /// Number of [`Self::returned_key`].
    pub const RETURNED: u32 = 1;
    /// Number of [`Self::sent_key`].
    pub const SENT: u32 = 2;
    /// Number of [`Self::answered_key`].
    pub const ANSWERED: u32 = 3;
    /// How many keys it may have.
    pub const KEYS: u32 = 4;
    /// Flag: the backend is to see an address of this node instead of the client's.
    pub const MASQUERADE: u8 = 1;
    /// Flag: already before routing the client's port becomes [`Self::shown_port`], because another flow of the same
    /// client port has the same backend.
    pub const PORT_CHANGED: u8 = 2;
    /// Flag: what is called dialled is a backend that the client's socket was given at connect(), and that serves no
    /// longer what it dialled.
    pub const REPAIR: u8 = 4;
    /// Flag: nobody dialled a Service. It left this node from the ends that the field for the client has, and its answers
    /// would be taken for another's. What it is masqueraded with are these ends again, or they with another port.
    pub const OWN: u8 = 8;

    /// The client's port between ingress and egress.
    #[inline(always)]
    pub const fn inner_port(&self) -> u16 {
        if self.flags & Self::PORT_CHANGED != 0 { self.shown_port } else { self.client_port }
    }

    /// Whether it stands in for a socket's backend.
    #[inline(always)]
    pub const fn is_repair(&self) -> bool {
        self.flags & Self::REPAIR != 0
    }

    /// Whether it is the node's own.
    #[inline(always)]
    pub const fn is_own(&self) -> bool {
        self.flags & Self::OWN != 0
    }

    /// Whether its packets stay as they are.
    #[inline(always)]
    pub const fn is_plain(&self) -> bool {
        self.is_own() && self.shown_port == self.client_port
    }

    /// Whether the backend is to see this node.
    #[inline(always)]
    pub const fn is_masqueraded(&self) -> bool {
        self.flags & Self::MASQUERADE != 0
    }

    /// The client's address.
    #[inline(always)]
    pub const fn client(&self) -> Address {
        self.address(0)
    }

    /// The address that was dialled.
    #[inline(always)]
    pub const fn dialled(&self) -> Address {
        self.address(2)
    }

    /// The backend's address.
    #[inline(always)]
    pub const fn backend(&self) -> Address {
        self.address(4)
    }

    /// The node's address that the backend sees.
    #[inline(always)]
    pub const fn masquerade(&self) -> Address {
        self.address(6)
    }

    /// Whether that address is chosen.
    #[inline(always)]
    pub const fn has_masquerade(&self) -> bool {
        !self.masquerade().is_unspecified()
    }

    /// Client → what it dialled, at ingress. The state under this key is the flow's.
    #[inline(always)]
    pub const fn dialled_key(&self, protocol: Protocol) -> FlowKey {
        self.key_at(protocol, Self::DIALLED)
    }

    /// Client → backend, at egress: masqueraded flows.
    #[inline(always)]
    pub const fn sent_key(&self, protocol: Protocol) -> FlowKey {
        self.key_at(protocol, Self::SENT)
    }

    /// Backend → the node that stands for the client, at ingress: masqueraded flows.
    #[inline(always)]
    pub const fn answered_key(&self, protocol: Protocol) -> FlowKey {
        self.key_at(protocol, Self::ANSWERED)
    }

    /// Backend → client, at egress.
    #[inline(always)]
    pub const fn returned_key(&self, protocol: Protocol) -> FlowKey {
        self.key_at(protocol, Self::RETURNED)
    }

    /// A key by its number, whether or not the flow has it.
    #[inline(always)]
    pub const fn key_at(&self, protocol: Protocol, number: u32) -> FlowKey {
        let (source, source_port, destination, destination_port, position) = match number {
            Self::DIALLED => {
                (self.client(), self.client_port, self.dialled(), self.dialled_port, Position::Ingress)
            }
            Self::RETURNED => {
                (self.backend(), self.backend_port, self.client(), self.inner_port(), Position::Egress)
            }
            Self::SENT => {
                (self.client(), self.inner_port(), self.backend(), self.backend_port, Position::Egress)
            }
            _ => (self.backend(), self.backend_port, self.masquerade(), self.shown_port, Position::Ingress),
        };
        FlowKey {
            source: source.octets(),
            destination: destination.octets(),
            source_port,
            destination_port,
            protocol,
            position,
            reserved: 0,
        }
    }

    /// Whether the key of a number is of what goes on between the positions: client to backend and back. One flow has both,
    /// or would have if it were masqueraded: a packet that bears either is its own.
    #[inline(always)]
    pub const fn is_inner(number: u32) -> bool {
        number == Self::RETURNED || number == Self::SENT
    }

    /// Of the keys between the positions, the other one.
    #[inline(always)]
    pub const fn opposite(number: u32) -> u32 {
        number ^ Self::RETURNED ^ Self::SENT
    }

    /// Whether the flow has the key of a number (yet).
    #[inline(always)]
    pub const fn has_key(&self, number: u32) -> bool {
        match number {
            Self::DIALLED | Self::RETURNED => true,
            Self::SENT => self.is_masqueraded(),
            Self::ANSWERED => self.is_masqueraded() && self.has_masquerade(),
            _ => false,
        }
    }

    /// A key by its number, below [`Flow::KEYS`]; `None`: the flow has no such key (yet).
    #[inline(always)]
    pub const fn key(&self, protocol: Protocol, number: u32) -> Option<FlowKey> {
        if self.has_key(number) { Some(self.key_at(protocol, number)) } else { None }
    }

    /// Whether it is sent and answered under one key: a client that is its own backend, on the port that it dials from.
    #[inline(always)]
    pub fn answers_itself(&self) -> bool {
        self.inner_port() == self.backend_port && self.client() == self.backend()
    }

    /// Whether two records are of one connection: the same client, dialled address and backend.
    #[inline(always)]
    pub fn is_same(&self, other: &Self) -> bool {
        self.version == other.version
            && self.client_port == other.client_port
            && self.dialled_port == other.dialled_port
            && self.backend_port == other.backend_port
            && self.client() == other.client()
            && self.dialled() == other.dialled()
            && self.backend() == other.backend()
    }
}

/// A fragmented packet where it is met: its later fragments bear no ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, TryFromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct FragmentKey {
    /// 16 bytes, network byte order, IPv4 mapped.
    pub source: [u8; 16],
    /// Likewise.
    pub destination: [u8; 16],
    /// Identification, network byte order.
    pub id: u32,
    /// Protocol number as the fragments' headers have it.
    pub protocol: u8,
    /// Where.
    pub position: Position,
    /// Always 0.
    pub reserved: u16,
}

/// What its first fragment said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4))]
pub struct Fragment {
    /// Host byte order.
    pub source_port: u16,
    /// Host byte order.
    pub destination_port: u16,
    /// Transport protocol's number, which extension headers may have hidden.
    pub protocol: u8,
    /// Layout of this value.
    pub version: u8,
    /// Always 0.
    pub reserved: u16,
    /// Seconds of the monotonic clock.
    pub seen: u32,
}

impl Fragment {
    /// The version that is written.
    pub const VERSION: u8 = 1;
    /// Seconds that a packet's fragments may take (RFC 8200 §4.5 says 60, Linux waits 30).
    pub const LIFETIME: u32 = 30;
}
