//! Carries out [`Step`]s and reads [`Actual`] back: the only module that knows that the tables are BPF maps.

pub mod attach;
mod conntrack;
mod counters;
pub mod flows;
mod grow;
mod handover;
pub mod kernel;
pub mod load;
mod localnet;
pub mod log;
pub mod memory;
pub mod mmap;
mod pinned;
pub mod pins;
pub mod probe;
pub mod shapes;
mod sockets;
pub mod sweep;
pub mod sys;
pub mod tables;
pub mod tc;
pub mod traces;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
};

pub use counters::counters;
pub use handover::{Handover, look as look_at_handover, pinned_handover};
pub use kernel::{Kernel, Options};
pub use log::Lines;
pub use memory::Memory;
pub use sweep::{Counts, FlowTable, Pass, Sweeper, flow_tables};
pub use tc::{PinnedDevice, PinnedSide};

pub use pinned::{
    PinnedFlow, PinnedLink, PinnedMap, PinnedProgram, pinned_affinity, pinned_devices, pinned_flows,
    pinned_maps, pinned_packet_plane, pinned_programs, read_pinned,
};

use proxy_common::layout::Connected;

use crate::plan::{Actual, Capacity, Step};

/// Whom sockets are connected to.
pub type Peers = BTreeSet<SocketAddr>;

/// What the reconcile loop needs of a dataplane. [`Self::apply`] writes to the *current generation* of the tables;
/// [`Self::activate`] makes that generation the one that programs use.
pub trait Dataplane {
    /// How much the current generation has room for.
    fn capacity(&self) -> Capacity;

    /// Read the tables of the current generation back.
    fn read(&mut self) -> Result<Actual, Error>;

    /// Carry steps out in order; stops at the first that fails.
    fn apply(&mut self, steps: &[Step]) -> Applied;

    /// Begin an empty generation with at least this capacity, beside the running one. Connection state is kept.
    fn rebuild(&mut self, capacity: Capacity) -> Result<(), Error>;

    /// Attach the programs of the current generation, or swap them in for the running ones; nothing to do if they
    /// already run.
    fn activate(&mut self) -> Result<(), Error>;

    /// What of the attachments and the node's settings is not as [`Self::activate`] left it, for people; the next
    /// [`Self::activate`] puts it right. A dataplane that attaches nothing has nothing to lose.
    fn verify(&mut self) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    /// Let go of connected datagram sockets of the node's own whose endpoint is `gone`, and gives how many; only those of a
    /// peer in `left` are looked at, or all. A dataplane without sockets has none.
    fn release(&mut self, left: Option<&Peers>, gone: &dyn Fn(&Connected) -> bool) -> Result<usize, Error> {
        let _ = (left, gone);
        Ok(0)
    }

    /// What of the attachments somebody else has changed since this was last asked: as [`Self::verify`], but at a cost that
    /// allows for asking every second.
    fn glance(&mut self) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }
}

/// Remove all pins, and with the links' pins the programs' attachments; also filters on this namespace's devices, which
/// have no pins.
pub fn cleanup(pin_path: &Path) -> Result<(), Error> {
    let pins = pins::Pins::new(pin_path);
    tc::remove_all(&pins)?;
    pins.remove()
}

/// How far [`Dataplane::apply`] came.
#[derive(Debug)]
pub struct Applied {
    /// Steps carried out.
    pub done: usize,
    /// Why step `done` failed.
    pub error: Option<Error>,
}

/// What can go wrong with tables and programs, in words that an operator can act on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A table has no room for more.
    #[error("the table {map} is full ({entries} entries)")]
    Full {
        /// Its name.
        map: &'static str,
        /// Its capacity.
        entries: u32,
    },
    /// The kernel refused an operation.
    #[error("{what}: {source}")]
    Kernel {
        /// What was attempted, on what.
        what: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A table holds what this version can't read.
    #[error(
        "the pinned map {map} {why}; run `vipr cleanup` to start afresh (connections through Services will be reset)"
    )]
    Foreign {
        /// Its name.
        map: String,
        /// What is wrong with it.
        why: String,
    },
    /// There are no tables to look at.
    #[error(
        "vipr has never run with these pins: {path} has none of its tables (`--pin-path` names another folder)"
    )]
    NothingPinned {
        /// The folder.
        path: PathBuf,
    },
    /// This process may not look at them.
    #[error("only root may look at the pins in {path}: use `sudo`")]
    NotRoot {
        /// The folder.
        path: PathBuf,
    },
    /// The programs did not load.
    #[error("{what}\n{log}")]
    Load {
        /// What was attempted.
        what: String,
        /// The verifier's last lines.
        log: String,
    },
}

/// Whether a table of so many entries has these of a step.
fn within(map: &'static str, first: u32, count: usize, entries: usize) -> Result<(), Error> {
    if first as usize + count <= entries { Ok(()) } else { Err(Error::Full { map, entries: entries as u32 }) }
}
