//! The desk on which one part of a decision about a packet ([`super::parts`]) leaves to the next what it found.
//!
//! A program's stack has 512 bytes, and its verifier walks every path through a function from every place that calls it.
//! So in the kernel each part is a function of its own, which the verifier walks once whoever calls it, and which is given
//! nothing but the packet; the desk lies in a map. Elsewhere the parts are called as they are ([`super::packet::decide`]).

use core::ops::{Deref, DerefMut};

use super::{
    Endpoint,
    claim::Holder,
    flow::Known,
    packet::{PacketEnv, PacketTables, Run},
    parse::{Outer, Packet, Piece, Segment},
    parts::Next,
    repair::Serves,
};
use crate::{
    Address, Protocol, Reason,
    layout::{Flow, FlowKey, Pods},
};

/// What the parts of one decision share. What is on it is only what an earlier part of the same run has put there.
#[derive(Clone, Copy, Debug)]
pub struct Desk {
    /// The packet, or the one that it quotes.
    pub packet: Packet,
    /// What is around a quoted one.
    pub outer: Outer,
    /// Whether it is a quoted one.
    pub quoted: bool,
    /// Which senders that come in by its device are pods.
    pub pods: Pods,
    /// It bears the mark of what was translated, which a bridge's port sets for its bridge, or anybody.
    pub marked: bool,
    /// The packet had a flow, and gets another one.
    pub moved: bool,
    /// The packet goes where connect() of its socket was sent instead of to [`Desk::dialled`].
    pub connected: bool,
    /// What was dialled: the packet's destination, or by its socket.
    pub dialled: Endpoint,
    /// Who is asked whether he serves it.
    pub backend: Endpoint,
    /// Seconds of the monotonic clock.
    pub now: u32,
    /// The key that is looked for or written.
    pub key: FlowKey,
    /// Flows: [`Desk::KNOWN`], [`Desk::OTHER`], [`Desk::ROOM`] and one that is none, so that a place's number is two bits.
    pub flows: [Known; 4],
    /// What happens to the packet.
    pub fate: Fate,
    /// Why.
    pub reason: Reason,
    /// Rewritten: its new source.
    pub source: Endpoint,
    /// Rewritten: its new destination. Rejected: the address that tells its sender.
    pub destination: Endpoint,
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Pass(Reason),
    /// It ends here.
    Drop(Reason),
    /// It ends here, and its sender is told: ICMP port unreachable.
    Reject {
        /// The address that tells him.
        from: Address,
        /// Why.
        reason: Reason,
    },
    /// It goes on between these ends; of an ICMP error, what it quotes. [`super::nat::apply`] writes them. The caller marks
    /// the packet, see [`super::packet::Facts::translated`].
    Rewrite {
        /// New source.
        source: Endpoint,
        /// New destination.
        destination: Endpoint,
        /// Why.
        reason: Reason,
    },
}

impl Verdict {
    /// What is counted.
    #[inline(always)]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Pass(reason)
            | Self::Drop(reason)
            | Self::Reject { reason, .. }
            | Self::Rewrite { reason, .. } => *reason,
        }
    }
}

/// What happens to a packet: [`Verdict`] in single words. As an enum with fields it is carried through the parts with
/// those fields that it has not, of which the verifier says that nobody has written them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fate {
    /// Nothing.
    Pass = 0,
    /// It ends here.
    Drop = 1,
    /// It ends here, and its sender is told.
    Reject = 2,
    /// It gets new ends.
    Rewrite = 3,
}

/// A desk, and how the work on flows that many parts need is called: each is a function of its own in the kernel, too,
/// which finds the desk by itself. So nobody keeps a reference to anything on the desk over one of these calls.
pub trait Seat: DerefMut<Target = Desk> + Sized {
    /// [`Run::recall`].
    #[inline(always)]
    fn recall<T: PacketTables, E: PacketEnv>(&mut self, run: &Run<'_, T, E>, place: u32) -> bool {
        run.recall(self, place)
    }
    /// [`Run::forget`].
    #[inline(always)]
    fn forget<T: PacketTables, E: PacketEnv>(&mut self, run: &Run<'_, T, E>, place: u32) {
        run.forget(self, place);
    }
    /// [`Run::release`].
    #[inline(always)]
    fn release<T: PacketTables, E: PacketEnv>(&mut self, run: &Run<'_, T, E>, place: u32, number: u32) {
        run.release(self, place, number);
    }
    /// [`Run::write`].
    #[inline(always)]
    fn write<T: PacketTables, E: PacketEnv>(&mut self, run: &Run<'_, T, E>, place: u32, number: u32) {
        run.write(self, place, number);
    }
    /// [`Run::ensure`].
    #[inline(always)]
    fn ensure<T: PacketTables, E: PacketEnv>(
        &mut self,
        run: &Run<'_, T, E>,
        place: u32,
        number: u32,
    ) -> bool {
        run.ensure(self, place, number)
    }
    /// [`Run::serves`].
    #[inline(always)]
    fn serves<T: PacketTables, E: PacketEnv>(&mut self, run: &Run<'_, T, E>) -> Serves {
        run.serves(self)
    }
    /// [`Run::step_aside`].
    #[inline(always)]
    fn step_aside<T: PacketTables, E: PacketEnv>(&mut self, run: &Run<'_, T, E>) -> bool {
        run.step_aside(self)
    }
    /// [`Run::hold`].
    #[inline(always)]
    fn hold<T: PacketTables, E: PacketEnv>(
        &mut self,
        run: &Run<'_, T, E>,
        number: u32,
        claims: bool,
    ) -> Holder {
        run.hold(self, number, claims)
    }
}

/// A desk of one's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Own(Desk);

impl Deref for Own {
    type Target = Desk;
    fn deref(&self) -> &Desk {
        &self.0
    }
}

impl DerefMut for Own {
    fn deref_mut(&mut self) -> &mut Desk {
        &mut self.0
    }
}

impl Seat for Own {}

impl Desk {
    /// Place of the packet's flow.
    pub const KNOWN: u32 = 0;
    /// Place of one that has a key which that one wants.
    pub const OTHER: u32 = 1;
    /// Place of one that has a key which the flow has that is being healed.
    pub const ROOM: u32 = 2;

    /// The flow at a place.
    #[inline(always)]
    pub fn at(&mut self, place: u32) -> &mut Known {
        &mut self.flows[(place & 3) as usize]
    }

    /// The packet's flow.
    #[inline(always)]
    pub fn known(&mut self) -> &mut Known {
        &mut self.flows[0]
    }

    /// The packet is left as it is.
    #[inline(always)]
    pub fn pass(&mut self, reason: Reason) -> Next {
        self.end(Fate::Pass, reason)
    }

    /// The packet ends here.
    #[inline(always)]
    pub fn drop(&mut self, reason: Reason) -> Next {
        self.end(Fate::Drop, reason)
    }

    /// The packet ends here, and `from` tells its sender.
    #[inline(always)]
    pub fn reject(&mut self, from: Address, reason: Reason) -> Next {
        self.destination.address = from;
        self.end(Fate::Reject, reason)
    }

    /// The packet goes on between these ends.
    #[inline(always)]
    pub fn rewrite(&mut self, source: Endpoint, destination: Endpoint, reason: Reason) -> Next {
        self.source = source;
        self.destination = destination;
        self.end(Fate::Rewrite, reason)
    }

    #[inline(always)]
    fn end(&mut self, fate: Fate, reason: Reason) -> Next {
        self.fate = fate;
        self.reason = reason;
        Next::Done
    }

    /// The verdict that is on it.
    pub const fn verdict(&self) -> Verdict {
        let reason = self.reason;
        match self.fate {
            Fate::Pass => Verdict::Pass(reason),
            Fate::Drop => Verdict::Drop(reason),
            Fate::Reject => Verdict::Reject { from: self.destination.address, reason },
            Fate::Rewrite => Verdict::Rewrite { source: self.source, destination: self.destination, reason },
        }
    }

    /// An empty one.
    pub const fn new() -> Self {
        const NOBODY: Endpoint = Endpoint { address: Address::ANY_V6, port: 0 };
        Self {
            packet: Packet {
                v4: false,
                protocol: Protocol::Tcp,
                l3: 0,
                l4: 0,
                end: 0,
                source: NOBODY,
                destination: NOBODY,
                segment: Segment(0),
                piece: Piece::Whole,
                id: 0,
                fragment_protocol: 0,
                bridge: [0; 3],
            },
            outer: Outer {
                l3: 0,
                icmp: 0,
                source: Address::ANY_V6,
                destination: Address::ANY_V6,
                is_redirect: false,
            },
            quoted: false,
            pods: Pods::None,
            marked: false,
            moved: false,
            connected: false,
            dialled: NOBODY,
            backend: NOBODY,
            now: 0,
            key: Flow::NONE.dialled_key(Protocol::Tcp),
            flows: [Known::NONE; 4],
            fate: Fate::Pass,
            reason: Reason::NotService,
            source: NOBODY,
            destination: NOBODY,
        }
    }
}

impl Default for Desk {
    fn default() -> Self {
        Self::new()
    }
}
