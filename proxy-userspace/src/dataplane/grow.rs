//! Tables of flows that are to have more room: what the small ones remember is carried over.

use std::{io, os::fd::AsFd};

use proxy_common::names::map;

use super::{
    pins::Pins,
    sys::{self, Map},
};

/// Entries that are read at once.
const BATCH: u32 = 1024;

/// Copy what the tables in use have and those of the next generation have not: once before these are used, and once after,
/// for what came meanwhile. What can't be copied is made anew by the next packet, if its endpoint still serves.
pub(super) fn carry_flows(pins: &Pins) {
    for name in map::FLOW_TABLES {
        match carry(pins, name) {
            Ok(0) => {}
            Ok(keys) => tracing::info!(keys, "the map {name} has more room, and what was in it"),
            Err(error) => {
                tracing::warn!("the map {name} has more room, and not all of what was in it: {error}")
            }
        }
    }
}

fn carry(pins: &Pins, name: &str) -> io::Result<u64> {
    /// `BPF_NOEXIST`: what programs have written there is newer.
    const NEW: u64 = 1;
    let open = |path| match Map::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    };
    let (Some(from), Some(to)) = (open(&pins.map(name))?, open(&pins.next(name))?) else { return Ok(0) };
    if (from.shape.kind, from.shape.key, from.shape.value) != (to.shape.kind, to.shape.key, to.shape.value) {
        return Ok(0);
    }
    let (key, value) = (from.shape.key as usize, from.shape.value as usize);
    let (mut keys, mut values) = (vec![0; key * BATCH as usize], vec![0; value * BATCH as usize]);
    let (mut at, mut carried) = (None, 0);
    loop {
        let (count, next) = sys::lookup_batch(from.as_fd(), at, &mut keys, &mut values, BATCH)?;
        for (key, value) in keys.chunks_exact(key).zip(values.chunks_exact(value)).take(count as usize) {
            match sys::update(to.as_fd(), key, value, NEW) {
                Ok(()) => carried += 1,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        at = next;
        if at.is_none() {
            return Ok(carried);
        }
    }
}
