//! Waiting on state, never on time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

/// How long a state may take to come: long enough for a busy machine, since a pass never waits this long.
pub const LIMIT: Duration = Duration::from_secs(30);

/// How often a state is looked at.
const PAUSE: Duration = Duration::from_millis(5);

/// Polls `state` until it is `Ok`; its last error is what is reported.
///
/// # Errors
/// The state did not come within [`LIMIT`].
pub fn until<T>(what: &str, state: impl FnMut() -> Result<T>) -> Result<T> {
    until_within(LIMIT, what, state)
}

/// As [`until`], with a limit of its own.
///
/// # Errors
/// The state did not come within `limit`.
pub fn until_within<T>(limit: Duration, what: &str, mut state: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match state() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => bail!("{what}: not within {limit:?}: {error:#}"),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// Polls `state` until it is true.
///
/// # Errors
/// It did not become true within [`LIMIT`].
pub fn until_true(what: &str, mut state: impl FnMut() -> bool) -> Result<()> {
    until(what, || {
        ensure!(state(), "not yet");
        Ok(())
    })
}
