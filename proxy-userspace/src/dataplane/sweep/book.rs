//! `flow_counts`, read and written: how many keys the flows' tables have, and how those left that are there no longer.

use std::{io, path::Path};

use proxy_common::{datapath::flow::Stage, layout::FlowCount, names::map};

use crate::dataplane::{Error, counters::PerCpu, pins::Pins, sys::Map};

/// The tables of flows, in the order in which they are shown.
pub(super) const TABLES: [(Stage, &str); 4] = [
    (Stage::Confirmed, map::FLOWS),
    (Stage::Tcp, map::FLOWS_NEW_TCP),
    (Stage::Udp, map::FLOWS_NEW_UDP),
    (Stage::Sctp, map::FLOWS_NEW_SCTP),
];

/// What is counted of a table, by [`FlowCount`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts([u64; FlowCount::ALL.len()]);

impl Counts {
    /// One of the counts.
    pub fn of(&self, what: FlowCount) -> u64 {
        self.0[what as usize]
    }

    pub(super) fn set(&mut self, what: FlowCount, value: u64) {
        self.0[what as usize] = value;
    }

    /// Keys that are there: what came less what left. What the kernel evicts is known only once it is looked for.
    pub fn used(&self) -> u64 {
        let left = [
            FlowCount::Forgotten,
            FlowCount::Expired,
            FlowCount::Closing,
            FlowCount::Datagrams,
            FlowCount::Idle,
            FlowCount::Evicted,
        ];
        let came = self.of(FlowCount::Made).wrapping_add(self.of(FlowCount::Adopted));
        let used = left.into_iter().fold(came, |sum, what| sum.wrapping_sub(self.of(what)));
        // A CPU's count may be read before another's that belongs to it.
        u64::try_from(used.cast_signed()).unwrap_or(0)
    }
}

/// What was found by a walk, beside what the counts said meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Keys that were met.
    pub(super) keys: u64,
    /// The least and the most that the counts said during the walk.
    pub(super) counted: (u64, u64),
    /// Keys that were made during the walk: it may have met them or not.
    pub(super) made: u64,
}

impl Found {
    /// By how much the counts are wrong beyond doubt: so many keys are not there, or are there uncounted.
    pub(super) fn difference(&self) -> (u64, u64) {
        let (least, most) = self.counted;
        (least.saturating_sub(self.keys + self.made), self.keys.saturating_sub(most + self.made))
    }
}

/// The map.
pub(super) struct Book(PerCpu);

impl Book {
    pub(super) fn open(pins: &Pins) -> io::Result<Self> {
        PerCpu::of(Map::open(&pins.map(map::FLOW_COUNTS))?).map(Self)
    }

    /// CPUs that there could be.
    pub(super) fn cpus(&self) -> u64 {
        self.0.cpus()
    }

    /// All that is counted of a table.
    pub(super) fn read(&mut self, stage: Stage) -> io::Result<Counts> {
        let mut counts = Counts::default();
        for what in FlowCount::ALL {
            counts.set(what, self.0.sum(what.of(stage))?);
        }
        Ok(counts)
    }

    /// What programs have counted since.
    pub(super) fn refresh(&mut self, stage: Stage, counts: &mut Counts) -> io::Result<()> {
        for what in [FlowCount::Made, FlowCount::Forgotten] {
            counts.set(what, self.0.sum(what.of(stage))?);
        }
        Ok(())
    }

    /// Add to a count that nobody else writes.
    pub(super) fn add(
        &mut self,
        stage: Stage,
        counts: &mut Counts,
        what: FlowCount,
        keys: u64,
    ) -> io::Result<()> {
        if keys == 0 {
            return Ok(());
        }
        counts.set(what, counts.of(what).wrapping_add(keys));
        self.0.set(what.of(stage), counts.of(what))
    }
}

/// A table of flows, as far as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowTable {
    /// Of map and pin.
    pub name: &'static str,
    /// Keys there is room for.
    pub room: u32,
    /// What is counted.
    pub counts: Counts,
}

impl FlowTable {
    /// Keys that are there. The kernel may have evicted some that nobody has missed yet, because no agent runs.
    pub fn used(&self) -> u32 {
        u32::try_from(self.counts.used()).unwrap_or(u32::MAX).min(self.room)
    }
}

/// The tables of flows, whether or not an agent runs.
///
/// # Errors
/// Nothing is pinned there, or this process may not look.
pub fn flow_tables(pin_path: &Path) -> Result<Vec<FlowTable>, Error> {
    let pins = Pins::new(pin_path);
    let failed = |source| Error::Kernel { what: format!("read the map {}", map::FLOW_COUNTS), source };
    let mut book = Book::open(&pins).map_err(failed)?;
    let table = |(stage, name)| {
        let room = Map::open(&pins.map(name)).map_err(failed)?.shape.entries;
        Ok(FlowTable { name, room, counts: book.read(stage).map_err(failed)? })
    };
    TABLES.into_iter().map(table).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(pairs: &[(FlowCount, u64)]) -> Counts {
        let mut counts = Counts::default();
        for (what, value) in pairs {
            counts.set(*what, *value);
        }
        counts
    }

    #[test]
    fn what_came_less_what_left_is_what_is_there() {
        use FlowCount::{Adopted, Closing, Datagrams, Evicted, Expired, Forgotten, Idle, Made};
        let all = counts(&[
            (Made, 1000),
            (Adopted, 24),
            (Forgotten, 500),
            (Expired, 200),
            (Closing, 3),
            (Datagrams, 4),
            (Idle, 5),
            (Evicted, 12),
        ]);
        assert_eq!(all.used(), 300);
        let less = counts(&[(Made, 10), (Adopted, 0_u64.wrapping_sub(4))]);
        assert_eq!(less.used(), 6, "less than was counted");
        assert_eq!(counts(&[(Made, 1), (Forgotten, 2)]).used(), 0, "another CPU's count was read later");
    }

    #[test]
    fn the_counts_are_wrong_only_by_what_no_packet_explains() {
        let found = |keys, counted, made| Found { keys, counted, made }.difference();
        assert_eq!(found(100, (100, 100), 0), (0, 0));
        assert_eq!(found(60, (100, 110), 0), (40, 0));
        assert_eq!(found(60, (100, 110), 15), (25, 0), "made since, and not met");
        assert_eq!(found(130, (100, 110), 15), (0, 5));
        assert_eq!(found(105, (100, 110), 0), (0, 0));
    }
}
