//! What the programs log, for whoever looks for one call: lines of a ring buffer, passed on to `tracing`.
//!
//! Only lines of the level that the programs were loaded with are written, the others' code is gone. Counters say how
//! often each outcome came, at no such cost.

use std::{io, os::fd::AsFd};

use aya::Ebpf;
use aya_log::EbpfLogger;
use tracing_log::LogTracer;

use super::{Error, sys};

/// The lines of one loaded object. Dropping it leaves later lines unread.
pub struct Lines(EbpfLogger<LogTracer>);

impl Lines {
    /// The lines of `object`, which has one reader: a second gets an error.
    pub fn of(object: &mut Ebpf) -> Result<Self, Error> {
        let logger = EbpfLogger::init_with_logger(object, LogTracer::new()).map_err(|error| Error::Load {
            what: "read what the programs log".into(),
            log: error.to_string(),
        })?;
        Ok(Self(logger))
    }

    /// Pass on what is there.
    pub fn flush(&mut self) {
        self.0.flush();
    }

    /// Pass lines on as they come. Returns only when the kernel can no longer be asked.
    pub async fn follow(mut self) -> io::Result<()> {
        let ring = sys::readable(self.0.as_fd().try_clone_to_owned()?)?;
        loop {
            let mut ready = ring.readable().await?;
            self.flush();
            ready.clear_ready();
        }
    }
}
