//! What flows leave behind in `flow_traces` when they are over: bytes that make packets of nobody take the longer way. Programs
//! set them before they write a flow, and never take one away; here that is done without a moment in which a living flow
//! has none.
//!
//! All bytes become [`Trace::OLD`]; after a fence whatever was written before is in the tables; those have their keys' bytes
//! set again; what is still old is of no flow. A byte that a program sets meanwhile stays. After a start every byte is set,
//! because an older version may have written flows without.

use std::{
    os::fd::AsFd,
    path::PathBuf,
    time::{Duration, Instant},
};

use proxy_common::{
    layout::{FlowKey, Trace},
    names::map,
};
use zerocopy::TryFromBytes;

use super::{
    Error,
    mmap::Mapped,
    sys::{self, Map},
    tables::Fence,
};

/// Between two looks at how many there are.
const PAUSE: Duration = Duration::from_secs(10);
/// So many more than after the last time are worth the work.
const WORTH: u32 = 1024;
/// Entries that are read with one call.
const BATCH: u32 = 4096;
/// The lowest bit of each byte of a word.
const LOW: u64 = 0x0101_0101_0101_0101;

/// The table of traces, and those of the flows that leave them.
#[derive(Debug)]
pub struct Traces {
    bytes: Mapped<u64>,
    flows: Vec<Map>,
    due: Option<Instant>,
    /// How many there were after the last time.
    left: u32,
}

impl Traces {
    /// Those that are pinned at `path(name)`. From here on all packets take the longer way until [`Self::tidy`] was called,
    /// once programs run that leave traces.
    ///
    /// # Errors
    /// The kernel refused to open or map one of the tables.
    pub fn open(path: impl Fn(&str) -> PathBuf) -> Result<Self, Error> {
        let open = |name: &'static str| {
            let failed = |source| Error::Kernel { what: format!("open the map {name}"), source };
            Map::open(&path(name)).map_err(failed)
        };
        let bytes: Mapped<u64> = Mapped::new(&open(map::FLOW_TRACES)?).map_err(failed)?;
        let flows = map::FLOW_TABLES.into_iter().map(open).collect::<Result<_, _>>()?;
        for index in 0..bytes.len() {
            bytes.add(index, LOW * u64::from(Trace::FRESH));
        }
        Ok(Self { bytes, flows, due: None, left: 0 })
    }

    /// Take away what is of no flow any more, if that is due. Gives how many traces there are, if it was.
    ///
    /// # Errors
    /// The kernel refused to read a table; then nothing was taken away.
    pub fn tidy(&mut self, fence: &Fence, now: Instant) -> Result<Option<u32>, Error> {
        if self.due.is_some_and(|due| due > now) {
            return Ok(None);
        }
        self.due = Some(now + PAUSE);
        if self.count() <= self.left + WORTH {
            return Ok(None);
        }
        for index in 0..self.bytes.len() {
            self.bytes.keep(index, LOW * u64::from(Trace::OLD));
        }
        fence.wait()?;
        for flows in &self.flows {
            self.set_again(flows)?;
        }
        for index in 0..self.bytes.len() {
            self.bytes.change(index, |word| (word >> 1 & LOW) * u64::from(Trace::FRESH));
        }
        self.left = self.count();
        Ok(Some(self.left))
    }

    fn count(&self) -> u32 {
        (0..self.bytes.len()).map(|index| (self.bytes.get(index) & LOW).count_ones()).sum()
    }

    fn set_again(&self, flows: &Map) -> Result<(), Error> {
        let (key, value) = (flows.shape.key as usize, flows.shape.value as usize);
        let mut keys = vec![0; key * BATCH as usize];
        let mut values = vec![0; value * BATCH as usize];
        let mut from = None;
        loop {
            let (count, next) =
                sys::lookup_batch(flows.as_fd(), from, &mut keys, &mut values, BATCH).map_err(failed)?;
            for key in keys.chunks_exact(key).take(count as usize) {
                if let Ok(key) = FlowKey::try_read_from_bytes(key) {
                    let Trace { index } = Trace::of_key(&key);
                    self.bytes.add(index as usize / 8, u64::from(Trace::FRESH) << (index % 8 * 8));
                }
            }
            match next {
                Some(next) => from = Some(next),
                None => return Ok(()),
            }
        }
    }
}

fn failed(source: std::io::Error) -> Error {
    Error::Kernel { what: "look for traces of flows that are over".into(), source }
}
