//! Format, clippy and documentation, for both halves; a warning is an error.

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

use crate::count::Count;
use crate::setup;
use crate::{build_ebpf, progress};

type Check = (&'static str, fn(&Shell) -> Result<()>);

/// In the order of their cost. All is run in the target folders of the builds.
const CHECKS: [Check; 4] = [
    ("format", format),
    ("clippy of the host's crates", host),
    ("lints of the kernel's half", kernel_half),
    ("documentation", documentation),
];

/// Runs every check, also after one failed.
pub(crate) fn run(sh: &Shell) -> Result<()> {
    let count = counted(sh);
    println!("{count}");
    if count.failed > 0 {
        bail!("lint found something");
    }
    Ok(())
}

/// The same, for who counts on.
pub(crate) fn counted(sh: &Shell) -> Count {
    let mut count = Count::default();
    for (name, check) in CHECKS {
        match check(sh) {
            Ok(()) => count.passed += 1,
            Err(error) => {
                count.failed += 1;
                eprintln!("lint: {name}: {error:#}");
            }
        }
    }
    count
}

fn format(sh: &Shell) -> Result<()> {
    cmd!(sh, "cargo fmt --all --check").run().context("`cargo fmt --all` puts this right")
}

fn host(sh: &Shell) -> Result<()> {
    progress::run("clippy of the host's crates", cmd!(sh, "cargo clippy --all-targets -- --deny warnings"))
}

/// With clippy where the compiler of the kernel's half has it; else the compiler's own warnings.
fn kernel_half(sh: &Shell) -> Result<()> {
    let ebpf = setup::ebpf(sh)?;
    let verb = if ebpf.toolchain.has_clippy(sh) { "clippy" } else { "check" };
    println!("{verb} of the kernel's half with {}", ebpf.toolchain);
    let arguments = [verb, "-Zwarnings", "--package", "proxy-ebpf", "--profile", "bpf"];
    let check = build_ebpf::cargo(sh, &ebpf, &arguments).env("CARGO_BUILD_WARNINGS", "deny");
    progress::run(&format!("{verb} of the kernel's half"), check)
}

fn documentation(sh: &Shell) -> Result<()> {
    let doc = cmd!(sh, "cargo doc --no-deps --document-private-items").env("RUSTDOCFLAGS", "--deny warnings");
    progress::run("documentation", doc)
}
