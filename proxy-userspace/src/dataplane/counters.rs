//! The programs' outcomes, summed over CPUs. They are read from the pin, so whatever agent or none runs.

use std::{io, os::fd::AsFd, path::Path};

use proxy_common::{Reason, names::map};

use super::{
    pins::Pins,
    sys::{self, Map},
};

/// How often each outcome was met, in the order of [`Reason::ALL`], by all programs since the map was made.
pub fn counters(pin_path: &Path) -> io::Result<Vec<(Reason, u64)>> {
    let mut counts = PerCpu::of(Map::open(&Pins::new(pin_path).map(map::COUNTERS))?)?;
    Reason::ALL.iter().map(|reason| Ok((*reason, counts.sum(*reason as u32)?))).collect()
}

/// An array of numbers that every CPU has its own of.
pub(super) struct PerCpu {
    map: Map,
    /// Bytes of one CPU's number: the kernel rounds them up to 8.
    size: usize,
    values: Vec<u8>,
}

impl PerCpu {
    pub(super) fn of(map: Map) -> io::Result<Self> {
        let size = map.shape.value.next_multiple_of(8) as usize;
        // The kernel has one value for each CPU that there could be.
        let values = vec![0; size * possible_cpus()?];
        Ok(Self { map, size, values })
    }

    /// How many there could be.
    pub(super) fn cpus(&self) -> u64 {
        (self.values.len() / self.size) as u64
    }

    /// Over all CPUs.
    pub(super) fn sum(&mut self, number: u32) -> io::Result<u64> {
        self.values.fill(0);
        sys::lookup(self.map.as_fd(), &number.to_ne_bytes(), &mut self.values)?;
        let words = self.values.chunks_exact(self.size).map(|value| {
            let mut word = [0; 8];
            word.copy_from_slice(&value[..8]);
            u64::from_ne_bytes(word)
        });
        Ok(words.fold(0, u64::wrapping_add))
    }

    /// Make it the sum of one that no program writes.
    pub(super) fn set(&mut self, number: u32, sum: u64) -> io::Result<()> {
        self.values.fill(0);
        self.values[..8].copy_from_slice(&sum.to_ne_bytes());
        sys::update(self.map.as_fd(), &number.to_ne_bytes(), &self.values, 0)
    }
}

/// CPUs that could be there, from a text like `0-3` or `0,2-7`.
fn possible_cpus() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<usize>().ok());
    last.map(|last| last + 1).ok_or_else(|| io::Error::other(format!("{text:?} names no CPU")))
}
