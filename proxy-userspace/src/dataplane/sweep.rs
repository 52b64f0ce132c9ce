//! The end of flows that no packet asks for any more. They are over anyway, since every look judges that; the sweep gives their
//! room back, a part of each table at a time, and makes room in good order where a table gets full (ADR 0005).

mod book;
mod cut;
mod shelf;

use std::{
    cell::Cell,
    io,
    path::Path,
    time::{Duration, Instant},
};

pub use book::{Counts, FlowTable, flow_tables};
use proxy_common::{
    Protocol,
    datapath::{
        flow::Stage,
        sweep::{Removed, Turn, sweep, turn},
        track,
    },
    layout::{Flow, FlowCount, Timeouts},
};

use self::{
    book::{Book, Found, TABLES},
    cut::Census,
    shelf::{Met, Tables, Walk},
};
use super::{Error, pinned, pins::Pins, sys};

/// Passes in which a table is gone through once, and that a small one waits for the next time: about a minute.
const PASSES: u64 = 64;
/// From so many per cent on a table is full; down to so many room is made.
const FULL: u64 = 85;
const ROOMY: u64 = 70;
/// Free entries that each CPU may have in a list of its own (kernel: `LOCAL_FREE_TARGET`): others have to evict before they get
/// any of these.
const LISTED: u64 = 128;

/// Keys from which on a table of so much room is full, and how many then stay.
fn marks(room: u64, cpus: u64) -> (u64, u64) {
    let usable = room.saturating_sub(LISTED * cpus).max(room / 2);
    let full = (room * FULL / 100).min(usable);
    (full, full * ROOMY / FULL)
}

/// The table of confirmed flows among [`TABLES`].
const CONFIRMED: usize = Stage::Confirmed as usize;

/// What a pass has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Keys that are in use, of all tables.
    pub used: u64,
    /// Keys whose time was over.
    pub expired: u64,
    /// Keys that left to make room.
    pub made_room: u64,
    /// Keys that the kernel evicted since the last pass.
    pub evicted: u64,
    /// The table of confirmed flows is more than half full: look again soon.
    pub is_filling: bool,
    /// How long it took.
    pub took: Duration,
}

/// Goes through the tables of flows.
pub struct Sweeper {
    pins: Pins,
    walk: Walk,
    passes: u64,
    rounds: [Round; TABLES.len()],
}

/// How far a table has been gone through.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    /// The pass in which it began; 0: none has yet.
    begun: u64,
    /// Where the next pass goes on; `None`: all has been met.
    at: Option<u32>,
    /// Keys that were met.
    keys: u64,
    /// The least and the most that the counts said.
    counted: (u64, u64),
    /// What programs had made when it began.
    made: u64,
}

impl Round {
    fn begin(begun: u64, counts: &Counts) -> Self {
        let used = counts.used();
        Self { begun, at: None, keys: 0, counted: (used, used), made: counts.of(FlowCount::Made) }
    }

    fn note(&mut self, counts: &Counts) {
        let used = counts.used();
        self.counted = (self.counted.0.min(used), self.counted.1.max(used));
    }

    fn found(&self, counts: &Counts) -> Found {
        let made = counts.of(FlowCount::Made).wrapping_sub(self.made);
        Found { keys: self.keys, counted: self.counted, made }
    }
}

impl Sweeper {
    /// Of the tables that are pinned there. Nothing is opened before the first pass.
    pub fn new(pin_path: &Path) -> Self {
        Self { pins: Pins::new(pin_path), walk: Walk::new(), passes: 0, rounds: Default::default() }
    }

    /// Look at how full the tables are, at a part of those that are not empty, and make room in one that is nearly full. The
    /// first pass goes through all, to know what is there.
    ///
    /// # Errors
    /// Nothing is pinned, or the kernel refused to read or change a table. The next pass may well succeed.
    pub fn pass(&mut self) -> Result<Pass, Error> {
        let start = Instant::now();
        let timeouts = pinned::pinned_packet_plane(self.pins.root())?.timeouts;
        let failed = |source| Error::Kernel { what: "sweep the tables of flows".into(), source };
        let mut now = Now::open(&self.pins, timeouts).map_err(failed)?;
        self.passes += 1;
        for number in 0..TABLES.len() {
            self.table(&mut now, number).and_then(|()| now.tables.failed()).map_err(failed)?;
        }
        let used = now.counts.iter().map(Counts::used).sum();
        Ok(Pass { used, took: start.elapsed(), ..now.pass })
    }

    fn table(&mut self, now: &mut Now, number: usize) -> io::Result<()> {
        let room = now.tables.room(number);
        // More than there is room for is not there.
        let beyond = now.counts[number].used().saturating_sub(room);
        now.evicted(number, beyond)?;
        let used = now.counts[number].used();
        if number == CONFIRMED {
            now.pass.is_filling = used * 2 > room;
            if used >= now.marks().0 {
                return now.make_room(&mut self.walk);
            }
        }
        let round = &mut self.rounds[number];
        let quota = if round.begun == 0 { u64::MAX } else { used / PASSES };
        if round.at.is_none() {
            if round.begun > 0 && (used == 0 || self.passes - round.begun < PASSES) {
                return Ok(());
            }
            *round = Round::begin(self.passes, &now.counts[number]);
        }
        let mut keys = 0;
        loop {
            let (met, count, next) = self.walk.next(&now.tables, number, round.at)?;
            for met in met {
                now.expire(number, &met)?;
            }
            keys += count;
            round.at = next;
            if next.is_none() || keys >= quota {
                break;
            }
        }
        round.keys += keys;
        now.refresh(number)?;
        round.note(&now.counts[number]);
        if round.at.is_none() {
            now.reconcile(number, &round.found(&now.counts[number]))?;
        }
        Ok(())
    }
}

/// What is pinned, for one pass.
struct Now {
    tables: Tables,
    book: Book,
    counts: [Counts; TABLES.len()],
    timeouts: Timeouts,
    /// Of the monotonic clock.
    seconds: u32,
    pass: Pass,
}

impl Now {
    fn open(pins: &Pins, timeouts: Timeouts) -> io::Result<Self> {
        let mut book = Book::open(pins)?;
        let mut counts = [Counts::default(); TABLES.len()];
        for (counts, (stage, _)) in counts.iter_mut().zip(TABLES) {
            *counts = book.read(stage)?;
        }
        let tables = Tables::open(pins)?;
        Ok(Self { tables, book, counts, timeouts, seconds: sys::monotonic_seconds(), pass: Pass::default() })
    }

    /// Of the table of confirmed flows.
    fn marks(&self) -> (u64, u64) {
        marks(self.tables.room(CONFIRMED), self.book.cpus())
    }

    fn refresh(&mut self, number: usize) -> io::Result<()> {
        self.book.refresh(TABLES[number].0, &mut self.counts[number])
    }

    fn add(&mut self, number: usize, what: FlowCount, keys: u64) -> io::Result<()> {
        self.book.add(TABLES[number].0, &mut self.counts[number], what, keys)
    }

    fn evicted(&mut self, number: usize, keys: u64) -> io::Result<()> {
        self.pass.evicted += keys;
        self.add(number, FlowCount::Evicted, keys)
    }

    /// Count what was removed of a protocol's flow.
    fn removed(&mut self, protocol: Protocol, removed: Removed, what: FlowCount) -> io::Result<()> {
        let keys = u64::from(removed.keys());
        if what == FlowCount::Expired {
            self.pass.expired += keys;
        } else {
            self.pass.made_room += keys;
        }
        self.add(CONFIRMED, what, removed.confirmed.into())?;
        self.add(shelf::unconfirmed(protocol), what, removed.unconfirmed.into())
    }

    /// Let go of the flow of an entry if its time is over.
    fn expire(&mut self, number: usize, met: &Met) -> io::Result<()> {
        let protocol = met.key.protocol;
        let is_over = |flow: &Flow| track::has_expired(protocol, flow, &self.timeouts, self.seconds);
        let removed = sweep(&self.tables, TABLES[number].0, &met.key, &met.flow, is_over);
        self.removed(protocol, removed, FlowCount::Expired)
    }

    /// Put right what was counted by what was found. Where the table was nearly full, the kernel has evicted what is missing.
    fn reconcile(&mut self, number: usize, found: &Found) -> io::Result<()> {
        let (missing, uncounted) = found.difference();
        self.add(number, FlowCount::Adopted, uncounted)?;
        if found.counted.1 * 2 > self.tables.room(number) {
            self.evicted(number, missing)
        } else {
            self.add(number, FlowCount::Adopted, 0_u64.wrapping_sub(missing))
        }
    }

    /// A flow's turn, and how long it was silent.
    fn rank(&self, protocol: Protocol, flow: &Flow) -> Option<(Turn, u32)> {
        let turn = turn(protocol, flow, &self.timeouts, self.seconds)?;
        Some((turn, track::silence(flow, self.seconds)))
    }

    /// Go through the confirmed flows twice: who is there, and who leaves.
    fn make_room(&mut self, walk: &mut Walk) -> io::Result<()> {
        let mut round = Round::begin(1, &self.counts[CONFIRMED]);
        let mut census = Census::default();
        loop {
            let (met, count, next) = walk.next(&self.tables, CONFIRMED, round.at)?;
            for met in met.iter().filter(|met| met.is_own()) {
                if let Some((turn, silence)) = self.rank(met.key.protocol, &met.flow) {
                    census.add(turn, silence, met.keys());
                }
            }
            round.keys += count;
            round.at = next;
            if next.is_none() {
                break;
            }
        }
        self.refresh(CONFIRMED)?;
        round.note(&self.counts[CONFIRMED]);
        self.reconcile(CONFIRMED, &round.found(&self.counts[CONFIRMED]))?;
        let (used, (full, stay)) = (self.counts[CONFIRMED].used(), self.marks());
        if used < full {
            return Ok(());
        }
        let mut cut = census.cut(used - stay);
        let mut at = None;
        loop {
            let (met, _, next) = walk.next(&self.tables, CONFIRMED, at)?;
            for Met { key, flow } in met {
                let last = Cell::new(None);
                let leaves = |flow: &Flow| {
                    last.set(self.rank(key.protocol, flow));
                    last.get().is_some_and(|(turn, silence)| cut.takes(turn, silence))
                };
                let removed = sweep(&self.tables, Stage::Confirmed, &key, &flow, leaves);
                if let Some((turn, silence)) = last.get().filter(|_| removed.keys() > 0) {
                    cut.took(turn, silence, removed.keys());
                    let what = match turn {
                        Turn::Expired => FlowCount::Expired,
                        Turn::Closing => FlowCount::Closing,
                        Turn::Datagrams => FlowCount::Datagrams,
                        Turn::Idle => FlowCount::Idle,
                    };
                    self.removed(key.protocol, removed, what)?;
                }
            }
            at = next;
            if next.is_none() {
                break;
            }
        }
        self.refresh(CONFIRMED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_full_before_its_last_free_entries_are_all_in_other_cpus_lists() {
        assert_eq!(marks(16_384, 2), (13_926, 11_468));
        assert_eq!(marks(131_072, 64), (111_411, 91_750));
        assert_eq!(marks(131_072, 256), (98_304, 80_956));
        assert_eq!(marks(2048, 64), (1024, 843), "small ones for tests only");
    }
}
