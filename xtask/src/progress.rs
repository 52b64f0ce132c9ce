//! Runs commands that take long and say little, and shows that they are alive.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use xshell::Cmd;

/// How often a silent step says that it goes on.
const BEAT: Duration = Duration::from_secs(20);

/// Runs `command`, which is printed first; says every 20 s that `what` goes on, and at its end how long it took.
pub(crate) fn run(what: &str, command: Cmd<'_>) -> Result<()> {
    during(what, || command.run()).with_context(|| format!("{what} failed"))
}

/// Does `work` with the same signs of life. A step of less than two seconds says nothing.
pub(crate) fn during<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let seconds = || start.elapsed().as_secs();
    let (end, ended) = mpsc::channel::<()>();
    let result = thread::scope(|scope| {
        scope.spawn(move || {
            while ended.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                eprintln!("  … {what}: {} s so far", seconds());
            }
        });
        let result = work();
        drop(end);
        result
    });
    if seconds() >= 2 {
        eprintln!("  {what}: {} s", seconds());
    }
    result
}
