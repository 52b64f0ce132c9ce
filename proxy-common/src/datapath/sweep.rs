//! Whose turn it is to leave the flows' tables: first whoever's time is over, and where there is no room, who is missed the least.
//! Programs judge the first when they look a flow up; the agent, which sweeps, judges all of it by the same rule.

use super::{
    flow::Stage,
    track::{self, Phase},
};
use crate::{
    Protocol,
    layout::{Flow, FlowKey, Timeouts},
};

/// In the order in which they leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Turn {
    /// Silent for longer than it may be.
    Expired,
    /// One side at least has ended it: what may follow is a farewell.
    Closing,
    /// Datagrams, also if they flow just now: the next one opens the flow again, with the same backend if that still serves.
    Datagrams,
    /// A connection that is not in use just now.
    Idle,
}

/// Seconds without a packet after which a connection is not in use just now.
pub const IN_USE: u32 = 2;

/// Whose turn it is at `now`, seconds of the monotonic clock; `None`: it is in use, and nobody takes it. Among those of one turn who was silent
/// for longest leaves first.
pub fn turn(protocol: Protocol, flow: &Flow, timeouts: &Timeouts, now: u32) -> Option<Turn> {
    if track::has_expired(protocol, flow, timeouts, now) {
        return Some(Turn::Expired);
    }
    let is_silent = track::silence(flow, now) >= IN_USE;
    // Both sides have taken leave and know: there is nothing to wait for.
    if matches!(track::phase(flow), Phase::TimeWait) || is_silent && track::is_ending(flow) {
        Some(Turn::Closing)
    } else if protocol as u8 == Protocol::Udp as u8 {
        Some(Turn::Datagrams)
    } else {
        is_silent.then_some(Turn::Idle)
    }
}

/// The flows' tables as who sweeps them sees them. Packets change them meanwhile.
pub trait Shelf {
    /// The record under a key.
    fn record(&self, stage: Stage, key: &FlowKey) -> Option<Flow>;
    /// Remove an entry; false: it was gone.
    fn remove(&self, stage: Stage, key: &FlowKey) -> bool;
}

/// How many keys were removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// From the table of confirmed flows.
    pub confirmed: u32,
    /// From that of the protocol's others.
    pub unconfirmed: u32,
}

impl Removed {
    fn add(&mut self, stage: Stage, removed: bool) {
        let count =
            if matches!(stage, Stage::Confirmed) { &mut self.confirmed } else { &mut self.unconfirmed };
        *count += u32::from(removed);
    }

    /// From both.
    pub const fn keys(&self) -> u32 {
        self.confirmed + self.unconfirmed
    }
}

/// Remove the flow that an entry was met of, with all its keys, if it `leaves` by the record that counts; an entry that its
/// flow has left behind goes alone.
///
/// No table compares and deletes in one step, so a packet may renew a flow between a look and a removal. Each key is
/// looked at just before it goes, the one that counts last: from the first sign that the flow was renewed, the rest stays,
/// and whatever key the flow is found by makes the others anew, as after half an eviction.
pub fn sweep(
    shelf: &impl Shelf,
    stage: Stage,
    key: &FlowKey,
    met: &Flow,
    leaves: impl Fn(&Flow) -> bool,
) -> Removed {
    let mut removed = Removed::default();
    if met.version != Flow::VERSION || !leaves(met) {
        return removed;
    }
    let first = met.dialled_key(key.protocol);
    let counts = locate(shelf, &first);
    let is_left_behind = match &counts {
        Some((_, flow)) if !flow.is_same(met) => true,
        // Confirming wrote the other table, and was not there to clear this one.
        Some((found, _)) => first.is(key) && *found as u32 != stage as u32,
        None => false,
    };
    if is_left_behind {
        if shelf.record(stage, key).is_some_and(|now| now == *met) {
            removed.add(stage, shelf.remove(stage, key));
        }
        return removed;
    }
    let flow = counts.map_or(*met, |(_, flow)| flow);
    if !leaves(&flow) {
        return removed;
    }
    for number in [Flow::ANSWERED, Flow::SENT, Flow::RETURNED, Flow::DIALLED] {
        let Some(key) = flow.key(key.protocol, number) else { continue };
        let Some((stage, now)) = locate(shelf, &key).filter(|(_, now)| now.is_same(&flow)) else { continue };
        let is_renewed = if number == Flow::DIALLED { now != flow } else { now.seen > flow.seen };
        if is_renewed {
            break;
        }
        removed.add(stage, shelf.remove(stage, &key));
    }
    removed
}

/// As packets find it: confirmed or not.
fn locate(shelf: &impl Shelf, key: &FlowKey) -> Option<(Stage, Flow)> {
    [Stage::Confirmed, Stage::unconfirmed(key.protocol)]
        .into_iter()
        .find_map(|stage| Some((stage, shelf.record(stage, key)?)))
}
