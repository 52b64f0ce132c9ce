//! The programs' outcomes, summed over CPUs. They are read from the pin, so whatever agent or none runs.

use std::{io, os::fd::AsFd, path::Path};

use proxy_common::{Reason, names::map};

use super::{pins::Pins, sys};

/// How often each outcome was met, in the order of [`Reason::ALL`], by all programs since the map was made.
pub fn counters(pin_path: &Path) -> io::Result<Vec<(Reason, u64)>> {
    let map = sys::Map::open(&Pins::new(pin_path).map(map::COUNTERS))?;
    // The kernel writes one value for each CPU that there could be, each rounded up to 8 bytes.
    let size = map.shape.value.next_multiple_of(8) as usize;
    let mut values = vec![0; size * possible_cpus()?];
    let mut found = Vec::with_capacity(Reason::ALL.len());
    for reason in Reason::ALL {
        values.fill(0);
        sys::lookup(map.as_fd(), &(*reason as u32).to_ne_bytes(), &mut values)?;
        let sum = values.chunks_exact(size).map(|value| {
            let mut word = [0; 8];
            word.copy_from_slice(&value[..8]);
            u64::from_ne_bytes(word)
        });
        found.push((*reason, sum.sum()));
    }
    Ok(found)
}

/// CPUs that could be there, from a text like `0-3` or `0,2-7`.
fn possible_cpus() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<usize>().ok());
    last.map(|last| last + 1).ok_or_else(|| io::Error::other(format!("{text:?} names no CPU")))
}
