//! `cargo xtask kernels`: the eBPF object loads, attaches and tells a short story with real sockets on the
//! kernels vipr promises to run on.
//!
//! A machine per kernel in qemu, without KVM, so that it works wherever the tests do. Nothing is installed:
//! kernels are files in the cache folder ([`store`]), the file system is an archive in memory
//! ([`initramfs`], [`modules`]), the story is the binary `kernel-story` of proxy-lab.

mod cpio;
mod debian;
mod image;
mod initramfs;
mod machine;
mod modules;
mod store;

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use initramfs::Payload;
use machine::Outcome;
use store::Kernel;
use xshell::{Shell, cmd};

use crate::{build, progress, setup, workspace};

/// A story takes about 20 s where little else runs; a machine that hangs must not take the whole test with it.
const LIMIT: Duration = Duration::from_secs(150);

/// Run the story on older kernels, in machines of their own
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only this kernel; may be given several times
    #[arg(long = "kernel", value_name = "VERSION")]
    kernels: Vec<Series>,
    /// Look for newer builds of the kernels instead of using those in the cache
    #[arg(long)]
    refresh: bool,
    /// Keep the folder with the initramfs, the console and the output, and say where it is
    #[arg(long)]
    keep: bool,
}

/// The kernels of Debian 11, 12 and 13. 5.10 is the oldest that vipr promises to run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Series {
    #[value(name = "5.10")]
    V5_10,
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        })
    }
}

/// Runs the story on every kernel asked for, and fails if one of them did.
pub(crate) fn run(sh: &Shell, options: &Options) -> Result<()> {
    if cfg!(not(target_arch = "x86_64")) {
        bail!("the kernels are those of amd64, and so is the program they run: this works on x86_64 only");
    }
    setup::kernels(sh)?;
    let payload = payload(sh)?;
    let cache = std::path::absolute(workspace::cache_folder()?)?;
    let archive = initramfs::archive(sh, &payload)?;
    let all = [Series::V5_10, Series::V6_1, Series::V6_12];
    let chosen = if options.kernels.is_empty() { &all[..] } else { &options.kernels };

    let mut failed = Vec::new();
    for &series in chosen {
        let kernel = store::kernel(sh, series, &cache, options.refresh)
            .with_context(|| format!("preparing kernel {series}"))?;
        println!("kernel {series}: {} ({})", kernel.version, kernel.release);
        let start = Instant::now();
        let folder = tempfile::Builder::new().prefix(&format!("vipr-kernel-{series}-")).tempdir()?;
        let outcome = boot_to_the_story(|| boot(&kernel, &archive, folder.path()));
        if options.keep {
            println!("kernel {series}: kept in {}", folder.keep().display());
        }
        match outcome? {
            (Outcome::Exit(0), _) => {
                println!("kernel {series}: passed in {:.1} s", start.elapsed().as_secs_f32())
            }
            (outcome, _) => failed.push(format!("{series} ({outcome:?})")),
        }
    }
    if !failed.is_empty() {
        bail!("the story failed on {}", failed.join(", "));
    }
    Ok(())
}

/// Builds what the machines run.
fn payload(sh: &Shell) -> Result<Payload> {
    let vipr = build::for_tests(sh)?;
    let build = cmd!(sh, "cargo build --package proxy-lab --bin kernel-story");
    progress::run("building the story", build)?;
    let story = workspace::target_folder()?.join("debug/kernel-story");
    Ok(Payload {
        programs: vec![(story, "/usr/bin/kernel-story".into()), (vipr, "/usr/bin/vipr".into())],
        script: "exec kernel-story".into(),
    })
}

/// Boots again where the machine died before the story's first line: the emulator runs two CPUs on two threads, and can
/// let one of them meet an instruction that the kernel is just patching while it boots. What dies later is not tried again.
fn boot_to_the_story(mut boot: impl FnMut() -> Result<(Outcome, bool)>) -> Result<(Outcome, bool)> {
    const TRIES: u32 = 3;
    let mut last = boot()?;
    for _ in 1..TRIES {
        if last != (Outcome::Died, false) {
            break;
        }
        println!("  the machine died while it booted: once more");
        last = boot()?;
    }
    Ok(last)
}

/// Boots `kernel` and prints what the story says; of a machine that died also the end of its console. Gives whether the
/// story said anything.
fn boot(kernel: &Kernel, archive: &[u8], folder: &Path) -> Result<(Outcome, bool)> {
    let initramfs = folder.join("initramfs.cpio");
    let mut content = fs::read(&kernel.modules)?;
    content.extend_from_slice(archive);
    fs::write(&initramfs, content)?;

    let mut output = String::new();
    let outcome = machine::run(&kernel.vmlinux, &initramfs, folder, LIMIT, |line| {
        println!("  {line}");
        output += line;
        output.push('\n');
    })?;
    let began = !output.is_empty();
    fs::write(folder.join("output"), output)?;
    if !matches!(outcome, Outcome::Exit(0)) {
        let console = fs::read(folder.join("console")).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<_> = console.lines().collect();
        println!("  the end of the console:");
        for line in &lines[lines.len().saturating_sub(40)..] {
            println!("  | {line}");
        }
    }
    Ok((outcome, began))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_machine_that_died_before_the_story_is_booted_again() -> Result<()> {
        let tries = |outcomes: &[(Outcome, bool)]| {
            let mut next = outcomes.iter();
            let mut count = 0;
            let last = boot_to_the_story(|| {
                count += 1;
                let (outcome, began) = next.next().context("no more boots expected")?;
                Ok((outcome.clone(), *began))
            })?;
            anyhow::Ok((count, last.0))
        };
        let early = (Outcome::Died, false);
        assert_eq!(tries(&[early.clone(), (Outcome::Exit(0), true)])?, (2, Outcome::Exit(0)));
        assert_eq!(tries(&[early.clone(), early.clone(), early])?, (3, Outcome::Died));
        assert_eq!(tries(&[(Outcome::Died, true)])?, (1, Outcome::Died));
        assert_eq!(tries(&[(Outcome::Exit(1), true)])?, (1, Outcome::Exit(1)));
        assert_eq!(tries(&[(Outcome::TimedOut, false)])?, (1, Outcome::TimedOut));
        Ok(())
    }
}
