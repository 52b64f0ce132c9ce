//! When the loop does what without being told to.

use std::time::{Duration, Instant};

/// How long the loop waits for what.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The own Node may be silent this long after everything else has spoken for the first time (kube-proxy: 30 s).
    pub node: Duration,
    /// What is no longer used is freed this long after: so that one fence serves many changes.
    pub reclaim: Duration,
    /// A failed pass is tried again after this long, doubled each time up to [`Self::retry_most`].
    pub retry: Duration,
    /// See there.
    pub retry_most: Duration,
    /// The tables are read back and compared this often; `None`: never.
    pub read_back: Option<Duration>,
    /// Attachments are looked at this often; where somebody keeps changing them, ever more rarely, up to a minute.
    pub glance: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            node: Duration::from_secs(30),
            reclaim: Duration::from_secs(1),
            retry: Duration::from_millis(200),
            retry_most: Duration::from_secs(30),
            read_back: Some(Duration::from_secs(600)),
            glance: Duration::from_secs(1),
        }
    }
}

/// When something is due without an event.
#[derive(Debug, Default)]
pub(super) struct Timers {
    pub(super) node: Option<Instant>,
    pub(super) reclaim: Option<Instant>,
    pub(super) retry: Option<Instant>,
    pub(super) read_back: Option<Instant>,
    pub(super) glance: Option<Instant>,
}

impl Timers {
    /// The next of all.
    pub(super) fn next(&self) -> Option<Instant> {
        [self.node, self.reclaim, self.retry, self.read_back, self.glance].into_iter().flatten().min()
    }
}

/// Whether a timer is due; it is cleared then.
pub(super) fn due(timer: &mut Option<Instant>, now: Instant) -> bool {
    timer.take_if(|at| *at <= now).is_some()
}
