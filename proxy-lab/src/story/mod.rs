//! A short story with real sockets, told on each kernel vipr promises to run on.

mod ground;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

/// One step: what it shows, and the doing, which may return a remark.
type Step = (&'static str, fn() -> Result<String>);

const STEPS: &[Step] = &[
    ("the kernel", ground::kernel),
    ("cgroup2 is there and takes a group", ground::cgroup),
    ("bpffs is there", ground::bpffs),
    ("a network namespace can be made", ground::namespace),
];

/// Tells the whole story.
pub(super) fn tell() -> ExitCode {
    for (name, step) in STEPS {
        let start = Instant::now();
        match step() {
            Ok(remark) => {
                let remark = if remark.is_empty() { remark } else { format!(": {remark}") };
                println!("ok   {name}{remark} ({} ms)", start.elapsed().as_millis());
            }
            Err(error) => {
                println!("FAIL {name}: {error:#}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
