//! The tables of flows, entry by entry and batch by batch.

use std::{cell::RefCell, io, os::fd::AsFd};

use proxy_common::{
    Protocol,
    datapath::{flow::Stage, sweep::Shelf},
    layout::{Flow, FlowKey},
};
use zerocopy::{FromBytes, IntoBytes, TryFromBytes};

use super::book::TABLES;
use crate::dataplane::{
    pins::Pins,
    sys::{self, Map},
};

/// Entries that are read at once.
pub(super) const BATCH: u32 = 1024;

/// An entry that a walk has met.
#[derive(Clone, Copy, Debug)]
pub(super) struct Met {
    pub(super) key: FlowKey,
    pub(super) flow: Flow,
}

impl Met {
    /// It is the one of its flow whose state counts.
    pub(super) fn is_own(&self) -> bool {
        self.flow.version == Flow::VERSION && self.flow.dialled_key(self.key.protocol) == self.key
    }

    /// Keys that its flow has.
    pub(super) fn keys(&self) -> u32 {
        (0..Flow::KEYS).map(|number| u32::from(self.flow.has_key(number))).sum()
    }
}

/// All of them, open.
pub(super) struct Tables {
    maps: [Map; TABLES.len()],
    /// What went wrong first with a single entry.
    failed: RefCell<io::Result<()>>,
}

impl Tables {
    pub(super) fn open(pins: &Pins) -> io::Result<Self> {
        let [(_, a), (_, b), (_, c), (_, d)] = TABLES;
        let open = |name| Map::open(&pins.map(name));
        Ok(Self { maps: [open(a)?, open(b)?, open(c)?, open(d)?], failed: RefCell::new(Ok(())) })
    }

    /// Keys that there is room for.
    pub(super) fn room(&self, number: usize) -> u64 {
        self.maps[number].shape.entries.into()
    }

    /// What went wrong with an entry since this was last asked.
    pub(super) fn failed(&self) -> io::Result<()> {
        self.failed.replace(Ok(()))
    }

    fn map(&self, stage: Stage) -> &Map {
        &self.maps[stage as usize]
    }

    fn told<T: Default>(&self, result: io::Result<T>) -> T {
        result.unwrap_or_else(|error| {
            let mut failed = self.failed.borrow_mut();
            if failed.is_ok() {
                *failed = Err(error);
            }
            T::default()
        })
    }
}

impl Shelf for Tables {
    fn record(&self, stage: Stage, key: &FlowKey) -> Option<Flow> {
        let mut value = [0; size_of::<Flow>()];
        let is_there = sys::lookup(self.map(stage).as_fd(), key.as_bytes(), &mut value);
        self.told(is_there).then(|| Flow::read_from_bytes(&value).ok())?
    }

    fn remove(&self, stage: Stage, key: &FlowKey) -> bool {
        self.told(sys::delete(self.map(stage).as_fd(), key.as_bytes()))
    }
}

/// Room for a batch.
pub(super) struct Walk {
    keys: Vec<u8>,
    values: Vec<u8>,
}

impl Walk {
    pub(super) fn new() -> Self {
        let room = |size: usize| vec![0; size * BATCH as usize];
        Self { keys: room(size_of::<FlowKey>()), values: room(size_of::<Flow>()) }
    }

    /// What follows in a table, how many entries that is, and where it goes on: nowhere at its end. What this version can't
    /// read is counted, and passed over.
    pub(super) fn next(
        &mut self,
        tables: &Tables,
        number: usize,
        from: Option<u32>,
    ) -> io::Result<(Vec<Met>, u64, Option<u32>)> {
        let map = tables.maps[number].as_fd();
        let (count, next) = sys::lookup_batch(map, from, &mut self.keys, &mut self.values, BATCH)?;
        let keys = self.keys.chunks_exact(size_of::<FlowKey>());
        let values = self.values.chunks_exact(size_of::<Flow>());
        let met = keys.zip(values).take(count as usize).filter_map(|(key, value)| {
            let key = FlowKey::try_read_from_bytes(key).ok()?;
            Some(Met { key, flow: Flow::read_from_bytes(value).ok()? })
        });
        Ok((met.collect(), count.into(), next))
    }
}

/// The number of the table where a protocol's flows wait for confirmation.
pub(super) fn unconfirmed(protocol: Protocol) -> usize {
    Stage::unconfirmed(protocol) as usize
}
