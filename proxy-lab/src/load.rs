//! Many connections a second for as long as something else happens, each of them counted.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::dial::{Stream, Waiting, stream_kind};
use crate::peer::{BATCH, Peer};
use crate::place::Place;
use crate::wait;

/// Threads that dial, so that one slow connect does not hold the others up.
const THREADS: u32 = 4;

/// A running load: TCP connections from one place to one address, each of which has to bring an [`crate::Answer`].
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    started: Instant,
}

#[derive(Debug)]
struct Shared {
    peer: Arc<Peer>,
    to: SocketAddr,
    stop: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
    tally: Mutex<Tally>,
}

/// What a load saw.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Connections that were answered, by who answered.
    pub answered: BTreeMap<String, u64>,
    /// Connections that failed, by the error.
    pub failed: BTreeMap<String, u64>,
    /// How long it went on.
    pub duration: Duration,
}

impl Tally {
    /// All connections that were answered.
    pub fn answers(&self) -> u64 {
        self.answered.values().sum()
    }

    /// All connections that failed.
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Connections tried a second.
    pub fn rate(&self) -> f64 {
        let tried = u32::try_from(self.answers() + self.failures()).unwrap_or(u32::MAX);
        f64::from(tried) / self.duration.as_secs_f64()
    }
}

impl Load {
    /// Begins `rate` connections a second from `place` to `to`. A machine that is too slow for them gets fewer: look
    /// at [`Tally::rate`].
    pub fn start(place: &Place, to: SocketAddr, rate: u32) -> Self {
        let shared = Arc::new(Shared {
            peer: place.peer(),
            to,
            stop: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            tally: Mutex::default(),
        });
        let pause = Duration::from_secs(1) * THREADS / rate.max(1);
        let dialler = |number| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.dial(pause, pause * number / THREADS))
        };
        Self { threads: (0..THREADS).map(dialler).collect(), started: Instant::now(), shared }
    }

    /// Connections answered so far.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Connections failed so far.
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
    }

    /// Waits until `count` more connections were answered.
    ///
    /// # Errors
    /// They were not, within [`wait::LIMIT`].
    pub fn wait_for(&self, count: u64) -> Result<()> {
        let goal = self.answered() + count;
        wait::until(&format!("{count} more connections to {} are answered", self.shared.to), || {
            let (answered, failed) = (self.answered(), self.failed());
            ensure!(answered >= goal, "{answered} of {goal}, {failed} failed");
            Ok(())
        })
    }

    /// Ends it; connections that were begun are waited for.
    pub fn stop(mut self) -> Tally {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic was printed by the thread.
            let _ = thread.join();
        }
        let mut tally = self.shared.tally.lock().unwrap_or_else(PoisonError::into_inner).clone();
        tally.duration = self.started.elapsed();
        tally
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn dial(&self, pause: Duration, offset: Duration) {
        let mut mine = Tally::default();
        let mut sockets = Vec::new();
        let mut next = Instant::now() + offset;
        while !self.stop.load(Ordering::Relaxed) {
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            // A dialler that fell behind does not catch up in one burst.
            next = (next + pause).max(Instant::now() - 10 * pause);
            let tally = match self.once(&mut sockets) {
                Ok(who) => {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                    mine.answered.entry(who)
                }
                Err(error) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    mine.failed.entry(error.to_string())
                }
            };
            *tally.or_default() += 1;
        }
        let mut all = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        for (who, count) in mine.answered {
            *all.answered.entry(who).or_default() += count;
        }
        for (error, count) in mine.failed {
            *all.failed.entry(error).or_default() += count;
        }
    }

    fn once(&self, sockets: &mut Vec<OwnedFd>) -> std::io::Result<String> {
        if sockets.is_empty() {
            *sockets = self.peer.sockets(stream_kind(self.to), BATCH)?;
        }
        let socket = sockets.pop().ok_or_else(|| std::io::Error::other("no socket came"))?;
        Ok(Stream::connect(socket, self.to, Waiting::Blocking)?.answer()?.who)
    }
}
