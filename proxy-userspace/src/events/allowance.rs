//! How many Events may be sent: an agent in a loop must not fill the API server's store.

use std::time::{Duration, Instant};

/// At once. client-go allows an object's Events as many.
const BURST: u32 = 25;
/// And one more after each of these.
const REFILL: Duration = Duration::from_secs(10);

/// What is left of it.
#[derive(Debug)]
pub(super) struct Allowance {
    left: u32,
    since: Instant,
}

impl Allowance {
    /// All of it.
    pub(super) fn new(now: Instant) -> Self {
        Self { left: BURST, since: now }
    }

    /// Whether one more may be sent.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let gained = (now.saturating_duration_since(self.since).as_secs() / REFILL.as_secs())
            .min(u64::from(BURST)) as u32;
        if self.left + gained >= BURST {
            (self.left, self.since) = (BURST, now);
        } else {
            self.left += gained;
            self.since += REFILL * gained;
        }
        let may = self.left > 0;
        self.left -= u32::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_one_for_each_time_that_passes() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let mut taken = |seconds: u64| {
            let now = start + Duration::from_secs(seconds);
            (0..100).filter(|_| allowance.take(now)).count()
        };
        assert_eq!(taken(0), 25);
        assert_eq!(taken(9), 0);
        assert_eq!(taken(10), 1);
        assert_eq!(taken(35), 2);
        assert_eq!(taken(39), 0);
        assert_eq!(taken(40), 1);
        assert_eq!(taken(100_000), 25, "it does not grow without an end");
    }
}
