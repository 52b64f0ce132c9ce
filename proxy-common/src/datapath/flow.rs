//! Finding a flow, and healing one that was half forgotten.
//!
//! The tables may lose any entry at any time (LRU). A flow is found by whichever of its keys a packet bears; the state
//! is that under the dialled key, made anew from the found copy if it is gone. Who finds a flow makes sure of the key
//! that the packet's next position asks for, and once a second of all.

use super::{
    Endpoint,
    desk::{Desk, Seat},
    packet::{PacketEnv, PacketTables, Run, key_of},
    parse::{Packet, Piece},
    track::{self, Side},
};
use crate::{
    Protocol, Reason,
    layout::{Flow, FlowKey, Position, Trace},
};

/// Which table an entry is in. Unconfirmed flows are apart, by protocol, so that a flood of them evicts only its like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Stage {
    /// The backend has answered, and the client has heard of it ([`track::is_established`]).
    Confirmed = 0,
    /// Not yet.
    Tcp = 1,
    /// Not yet.
    Udp = 2,
    /// Not yet.
    Sctp = 3,
}

impl Stage {
    /// Where a flow begins.
    #[inline(always)]
    pub const fn unconfirmed(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => Self::Tcp,
            Protocol::Udp => Self::Udp,
            Protocol::Sctp => Self::Sctp,
        }
    }
}

/// An entry that was found; its state can be changed where it lies.
pub trait Entry {
    /// The record.
    fn flow(&self) -> Flow;
    /// Replace the state of both sides and the time; a single store each.
    fn set_state(&self, client: u8, backend: u8, seen: u32);
}

/// The flows' tables. Any entry may be gone at any time.
pub trait Flows {
    /// An entry.
    type Entry: Entry;
    /// Exact match.
    fn find(&self, stage: Stage, key: &FlowKey) -> Option<Self::Entry>;
    /// Insert or replace. The key's trace is there before the entry is, here as in [`Self::claim`].
    fn put(&self, stage: Stage, key: &FlowKey, flow: &Flow);
    /// Insert if absent, in one step; false if it was there.
    fn claim(&self, stage: Stage, key: &FlowKey, flow: &Flow) -> bool;
    /// Remove, if it is there.
    fn remove(&self, stage: Stage, key: &FlowKey);
    /// Whether an entry may have a key with this trace: one byte, asked before any flow's table. `false` is certain.
    fn is_traced(&self, trace: Trace) -> bool;
    /// Whether a flow has ever dialled this port or had a backend on it (host byte order): one bit, hot in cache, asked
    /// before anything large.
    fn port_seen(&self, port: u16) -> bool;
    /// Set that bit.
    fn note_port(&self, port: u16);
}

/// A flow that is alive, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The record; its state is the one that counts.
    pub flow: Flow,
    /// The table of its dialled key.
    pub stage: Stage,
}

impl Known {
    /// Room for one.
    pub const NONE: Self = Self { flow: Flow::NONE, stage: Stage::Confirmed };
}

/// The number of a flow's key, which it is known to have.
#[inline(always)]
pub fn number_of(flow: &Flow, key: &FlowKey) -> u32 {
    let ingress = key.position as u8 == Position::Ingress as u8;
    let (first, other) = if ingress { (Flow::DIALLED, Flow::ANSWERED) } else { (Flow::RETURNED, Flow::SENT) };
    if key.is(&flow.key_at(key.protocol, first)) { first } else { other }
}

/// What a packet of a flow becomes that bears the key of this number: new source, new destination, and why. `None`: it
/// stays as it is.
#[inline(always)]
pub fn ends(flow: &Flow, number: u32) -> Option<(Endpoint, Endpoint, Reason)> {
    if flow.is_plain() {
        return None;
    }
    let client = Endpoint { address: flow.client(), port: flow.inner_port() };
    let backend = Endpoint { address: flow.backend(), port: flow.backend_port };
    match number {
        Flow::DIALLED => Some((client, backend, Reason::FlowKept)),
        Flow::ANSWERED => Some((backend, client, Reason::Unmasqueraded)),
        Flow::RETURNED => {
            let dialled = Endpoint { address: flow.dialled(), port: flow.dialled_port };
            let client = Endpoint { address: flow.client(), port: flow.client_port };
            Some((dialled, client, Reason::ReplyRestored))
        }
        _ if flow.has_masquerade() => {
            let node = Endpoint { address: flow.masquerade(), port: flow.shown_port };
            Some((node, backend, Reason::Masqueraded))
        }
        _ => None,
    }
}

/// The key that a packet bears at a position.
#[inline(always)]
pub(super) fn packet_key(packet: &Packet, position: Position) -> FlowKey {
    key_of(&packet.source, &packet.destination, packet.protocol, position)
}

impl<T: PacketTables, E: PacketEnv> Run<'_, T, E> {
    /// Find the flow that has the key on the desk, unless it is over. False: there is none, and nothing is at `place`.
    #[inline(always)]
    pub fn recall<D: Seat>(&self, desk: &mut D, place: u32) -> bool {
        let Desk { key, flows, .. } = &mut **desk;
        let known = &mut flows[(place & 3) as usize];
        let Some((entry, stage)) = self.locate(key) else { return false };
        known.stage = stage;
        known.flow = entry.flow();
        if known.flow.version != Flow::VERSION {
            return false;
        }
        let first = known.flow.dialled_key(key.protocol);
        if !first.is(key) {
            match self.locate(&first) {
                Some((entry, stage)) => {
                    if !entry.flow().is_same(&known.flow) {
                        // Its connection was moved or dialled anew, and this key was left behind.
                        self.tables.remove(known.stage, key);
                        return false;
                    }
                    known.stage = stage;
                    known.flow = entry.flow();
                }
                // Not for one that is only asked whether it lives: a later life of it may have lost this key.
                None if place == Desk::KNOWN => self.tables.put(stage, &first, &known.flow),
                None => {}
            }
        }
        if track::has_expired(key.protocol, &known.flow, &self.plane.timeouts, self.now) {
            desk.forget(self, place);
            return false;
        }
        true
    }

    /// Confirmed or not.
    #[inline(always)]
    pub(super) fn locate(&self, key: &FlowKey) -> Option<(T::Entry, Stage)> {
        if !self.tables.is_traced(Trace::of_key(key)) {
            return None;
        }
        if let Some(entry) = self.tables.find(Stage::Confirmed, key) {
            return Some((entry, Stage::Confirmed));
        }
        let stage = Stage::unconfirmed(key.protocol);
        self.tables.find(stage, key).map(|entry| (entry, stage))
    }

    /// Remove all keys of a flow that are its own.
    #[inline(always)]
    pub fn forget<D: Seat>(&self, desk: &mut D, place: u32) {
        let mut number = 0;
        while number < Flow::KEYS {
            if desk.at(place).flow.has_key(number) {
                desk.release(self, place, number);
            }
            number += 1;
        }
    }

    /// Remove a key of a flow if it is its own.
    #[inline(always)]
    pub fn release<D: Seat>(&self, desk: &mut D, place: u32, number: u32) {
        let protocol = desk.packet.protocol;
        let flow = &desk.at(place).flow;
        let key = flow.key_at(protocol, number);
        if let Some((entry, stage)) = self.locate(&key)
            && entry.flow().is_same(flow)
        {
            self.tables.remove(stage, &key);
        }
    }

    /// Write the packet's flow under all its keys, into one table: at no time is it in none.
    #[inline(always)]
    pub(super) fn store<D: Seat>(&self, desk: &mut D) {
        let mut number = 0;
        while number < Flow::KEYS {
            if desk.known().flow.has_key(number) {
                desk.write(self, Desk::KNOWN, number);
            }
            number += 1;
        }
    }

    /// Write a flow under one of its keys.
    #[inline(always)]
    pub fn write<D: Seat>(&self, desk: &mut D, place: u32, number: u32) {
        let Desk { packet, key, flows, .. } = &mut **desk;
        let known = &flows[(place & 3) as usize];
        *key = known.flow.key_at(packet.protocol, number);
        self.tables.put(known.stage, key, &known.flow);
        if known.stage as u32 == Stage::Confirmed as u32 {
            self.tables.remove(Stage::unconfirmed(packet.protocol), key);
        }
    }

    /// Take the packet into account: its flow's state, time, confirmation and other keys. False if one of them is another
    /// flow's: this one can't be told from it and has to be opened anew.
    #[inline(always)]
    pub fn note<D: Seat>(&self, desk: &mut D, side: Side) -> bool {
        let Desk { packet, flows, .. } = &mut **desk;
        let known = &mut flows[0];
        let flow = &mut known.flow;
        let before = (flow.client_state, flow.backend_state, flow.seen);
        // A later fragment says nothing.
        if packet.piece as u32 != Piece::Later as u32 {
            let (own, other) = match side {
                Side::Client => (flow.client_state, flow.backend_state),
                Side::Backend => (flow.backend_state, flow.client_state),
            };
            let said = track::said(packet.protocol, own, other, packet.segment);
            match side {
                Side::Client => flow.client_state = said,
                Side::Backend => flow.backend_state = said,
            }
        }
        flow.seen = self.now;
        let changed = before != (flow.client_state, flow.backend_state, flow.seen);
        let confirms = known.stage as u32 != Stage::Confirmed as u32 && track::is_established(flow);
        if confirms || changed {
            if !self.heal(desk, Desk::KNOWN) && !desk.step_aside(self) {
                return false;
            }
            if confirms {
                desk.known().stage = Stage::Confirmed;
                self.store(desk);
            }
            return true;
        }
        let next = match side {
            Side::Client if known.flow.is_masqueraded() => Flow::SENT,
            Side::Client => return true,
            Side::Backend => Flow::RETURNED,
        };
        desk.ensure(self, Desk::KNOWN, next) || desk.step_aside(self)
    }

    /// Make sure of every key of a flow, each with the state of now.
    #[inline(always)]
    pub(super) fn heal<D: Seat>(&self, desk: &mut D, place: u32) -> bool {
        let mut number = 0;
        while number < Flow::KEYS {
            if desk.at(place).flow.has_key(number) && !desk.ensure(self, place, number) {
                return false;
            }
            number += 1;
        }
        true
    }

    /// Make sure that a key leads to its flow; false if it is another one's, and that one lives.
    #[inline(always)]
    pub fn ensure<D: Seat>(&self, desk: &mut D, place: u32, number: u32) -> bool {
        let Desk { packet, key, flows, .. } = &mut **desk;
        let flow = &flows[(place & 3) as usize].flow;
        *key = flow.key_at(packet.protocol, number);
        if let Some((entry, _)) = self.locate(key) {
            if entry.flow().is_same(flow) {
                entry.set_state(flow.client_state, flow.backend_state, flow.seen);
                return true;
            }
            if desk.recall(self, Desk::ROOM) {
                return false;
            }
        }
        if Flow::is_inner(number) && self.is_anothers(desk, place, Flow::opposite(number)) {
            return false;
        }
        let Desk { packet, key, flows, .. } = &mut **desk;
        let known = &flows[(place & 3) as usize];
        *key = known.flow.key_at(packet.protocol, number);
        self.tables.put(known.stage, key, &known.flow);
        true
    }

    /// Whether a key that the flow has, or would have if it were masqueraded, is a living other one's.
    #[inline(always)]
    fn is_anothers<D: Seat>(&self, desk: &mut D, place: u32, number: u32) -> bool {
        let protocol = desk.packet.protocol;
        desk.key = desk.at(place).flow.key_at(protocol, number);
        desk.recall(self, Desk::ROOM) && {
            let flows = &desk.flows;
            !flows[Desk::ROOM as usize].flow.is_same(&flows[(place & 3) as usize].flow)
        }
    }
}
