//! How long to wait before trying again: doubling, with full jitter, so that many nodes that lost the same server
//! don't come back at once.

use std::time::Duration;

/// Counts failures in a row.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
}

impl Backoff {
    /// The upper bound of the first wait, and of all waits.
    pub(super) fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, failures: 0 }
    }

    /// It has failed once more: how long to wait.
    pub(super) fn failed(&mut self) -> Duration {
        let bound = self.bound();
        self.failures += 1;
        bound.mul_f64(rand::random())
    }

    /// It works.
    pub(super) fn works(&mut self) {
        self.failures = 0;
    }

    fn bound(&self) -> Duration {
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.first.saturating_mul(factor).min(self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_doubles_up_to_the_limit_until_it_works() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let mut bounds = Vec::new();
        for _ in 0..40 {
            bounds.push(backoff.bound().as_millis());
            let bound = backoff.bound();
            assert!(backoff.failed() <= bound);
        }
        assert_eq!(bounds[..7], [100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(bounds[39], 2000);
        backoff.works();
        assert_eq!(backoff.bound().as_millis(), 100);
    }

    #[test]
    fn waits_are_spread_over_all_of_the_bound() {
        let waits = (0..200).map(|_| Backoff::new(Duration::from_secs(1), Duration::from_secs(1)).failed());
        let early = waits.filter(|wait| *wait < Duration::from_millis(500)).count();
        assert!((40..160).contains(&early), "{early} of 200 in the first half");
    }
}
