//! Finding a flow, and healing one that was half forgotten.
//!
//! The tables may lose any entry at any time (LRU). A flow is found by whichever of its keys a packet bears; the state
//! is that under the dialled key, made anew from the found copy if it is gone. Who finds a flow makes sure of the key
//! that the packet's next position asks for, and once a second of all.

use super::{
    packet::{PacketEnv, PacketTables, Run},
    parse::{Packet, Piece, Segment},
    track::{self, Side},
};
use crate::{
    Protocol,
    layout::{Flow, FlowKey},
};

/// Which table an entry is in. Unconfirmed flows are apart, by protocol, so that a flood of them evicts only its like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Stage {
    /// The backend has answered.
    Confirmed = 0,
    /// It has not.
    Tcp = 1,
    /// It has not.
    Udp = 2,
    /// It has not.
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
    /// Insert or replace.
    fn put(&self, stage: Stage, key: &FlowKey, flow: &Flow);
    /// Insert if absent, in one step; false if it was there.
    fn claim(&self, stage: Stage, key: &FlowKey, flow: &Flow) -> bool;
    /// Remove, if it is there.
    fn remove(&self, stage: Stage, key: &FlowKey);
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

impl<T: PacketTables, E: PacketEnv> Run<'_, T, E> {
    /// The flow that has this key, unless it is over.
    #[inline(always)]
    pub fn recall(&self, key: &FlowKey) -> Option<Known> {
        let (entry, stage) = self.locate(key)?;
        let mut known = Known { flow: entry.flow(), stage };
        if known.flow.version != Flow::VERSION {
            return None;
        }
        let first = known.flow.dialled_key(key.protocol);
        if first != *key {
            match self.locate(&first) {
                Some((entry, stage)) => {
                    let flow = entry.flow();
                    if !flow.is_same(&known.flow) {
                        // Its connection was moved or dialled anew, and this key was left behind.
                        self.tables.remove(known.stage, key);
                        return None;
                    }
                    known = Known { flow, stage };
                }
                None => self.tables.put(stage, &first, &known.flow),
            }
        }
        if self.is_over(key.protocol, &known.flow) {
            self.forget(key.protocol, &known.flow);
            return None;
        }
        Some(known)
    }

    /// Confirmed or not.
    #[inline(always)]
    pub(super) fn locate(&self, key: &FlowKey) -> Option<(T::Entry, Stage)> {
        if let Some(entry) = self.tables.find(Stage::Confirmed, key) {
            return Some((entry, Stage::Confirmed));
        }
        let stage = Stage::unconfirmed(key.protocol);
        self.tables.find(stage, key).map(|entry| (entry, stage))
    }

    #[inline(always)]
    fn is_over(&self, protocol: Protocol, flow: &Flow) -> bool {
        self.now.wrapping_sub(flow.seen) > track::lifetime(protocol, flow, &self.plane.timeouts)
    }

    /// Remove all keys of a flow that are its own.
    #[inline(always)]
    pub fn forget(&self, protocol: Protocol, flow: &Flow) {
        let mut number = 0;
        while number < Flow::KEYS {
            if let Some(key) = flow.key(protocol, number) {
                self.release(&key, flow);
            }
            number += 1;
        }
    }

    /// Remove a key if it is this flow's.
    #[inline(always)]
    pub fn release(&self, key: &FlowKey, flow: &Flow) {
        if let Some((entry, stage)) = self.locate(key)
            && entry.flow().is_same(flow)
        {
            self.tables.remove(stage, key);
        }
    }

    /// Write a flow under all its keys, into one table: at no time is it in none.
    #[inline(always)]
    pub(super) fn store(&self, protocol: Protocol, known: &Known) {
        let is_confirmed = known.stage as u32 == Stage::Confirmed as u32;
        let mut number = 0;
        while number < Flow::KEYS {
            if let Some(key) = known.flow.key(protocol, number) {
                self.tables.put(known.stage, &key, &known.flow);
                if is_confirmed {
                    self.tables.remove(Stage::unconfirmed(protocol), &key);
                }
            }
            number += 1;
        }
    }

    /// Take a packet of a flow into account: its state, its time, its confirmation, its other keys. False if one of them
    /// is another flow's: this one can't be told from it and has to be opened anew.
    #[inline(always)]
    pub fn note(&self, packet: &Packet, known: &mut Known, side: Side) -> bool {
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
        let confirms = side as u32 == Side::Backend as u32
            && known.stage as u32 != Stage::Confirmed as u32
            && !packet.segment.has(Segment::RESET);
        if confirms {
            if !self.heal(packet.protocol, known) {
                return false;
            }
            known.stage = Stage::Confirmed;
            self.store(packet.protocol, known);
            return true;
        }
        if before != (known.flow.client_state, known.flow.backend_state, known.flow.seen) {
            return self.heal(packet.protocol, known);
        }
        let next = match side {
            Side::Client if known.flow.is_masqueraded() => known.flow.sent_key(packet.protocol),
            Side::Client => return true,
            Side::Backend => known.flow.returned_key(packet.protocol),
        };
        self.ensure(&next, known)
    }

    /// Make sure of every key, each with the state of now.
    #[inline(always)]
    pub(super) fn heal(&self, protocol: Protocol, known: &Known) -> bool {
        let mut number = 0;
        while number < Flow::KEYS {
            if let Some(key) = known.flow.key(protocol, number)
                && !self.ensure(&key, known)
            {
                return false;
            }
            number += 1;
        }
        true
    }

    /// Make sure that a key leads to this flow; false if it is another one's, and that one lives.
    #[inline(always)]
    fn ensure(&self, key: &FlowKey, known: &Known) -> bool {
        let flow = &known.flow;
        if let Some((entry, _)) = self.locate(key) {
            if entry.flow().is_same(flow) {
                entry.set_state(flow.client_state, flow.backend_state, flow.seen);
                return true;
            }
            if self.recall(key).is_some() {
                return false;
            }
        }
        self.tables.put(known.stage, key, flow);
        true
    }
}
