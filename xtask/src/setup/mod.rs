//! Installs what other verbs need, part by part. A part that is complete costs some milliseconds.

pub(crate) mod apt;
pub(crate) mod ebpf;
mod go_module;
mod kubernetes;
mod toolchain;
mod tools;

use std::fs::{self, File, TryLockError};

use anyhow::{Context, Result, bail};
use apt::Tool;
use clap::{Args, ValueEnum};
use ebpf::Ebpf;
use xshell::Shell;

use crate::workspace::cache_folder;

/// Install everything that is missing, and say what was done
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these parts; by default all
    parts: Vec<Part>,
}

/// What can be installed by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Compiler and linker of the kernel's half
    Ebpf,
    /// The tools that the lab's nodes, the demo and the tests run
    Lab,
    /// What boots other kernels
    Kernels,
    /// The servers of a Kubernetes control plane, kubectl and helm (needs Go)
    Kubernetes,
}

/// What a part did, in sentences.
pub(crate) struct Done {
    part: &'static str,
    count: usize,
}

impl Done {
    fn say(&mut self, what: impl AsRef<str>) {
        self.count += 1;
        println!("setup {}: {}", self.part, what.as_ref());
    }
}

/// Installs the parts asked for.
pub(crate) fn run(sh: &Shell, options: &Options) -> Result<()> {
    let parts = if options.parts.is_empty() { Part::value_variants() } else { &options.parts };
    for part in parts {
        match part {
            Part::Ebpf => {
                let ebpf = ebpf(sh)?;
                println!("setup ebpf: {}, {}", ebpf.toolchain, ebpf.linker.display());
            }
            Part::Lab => {
                lab(sh)?;
                println!("setup lab: all tools are there");
            }
            Part::Kernels => {
                kernels(sh)?;
                println!("setup kernels: all tools are there");
            }
            Part::Kubernetes => {
                kubernetes(sh)?;
                println!("setup kubernetes: all binaries are built");
            }
        }
    }
    Ok(())
}

/// Compiler and linker of the kernel's half.
pub(crate) fn ebpf(sh: &Shell) -> Result<Ebpf> {
    ensure("ebpf", || ebpf::present(sh), |done| ebpf::install(sh, done))
}

/// The tools of the lab.
pub(crate) fn lab(sh: &Shell) -> Result<()> {
    programs(sh, "lab", tools::LAB)
}

/// The tools that boot other kernels.
pub(crate) fn kernels(sh: &Shell) -> Result<()> {
    programs(sh, "kernels", tools::KERNELS)
}

/// The binaries of the cluster tests.
pub(crate) fn kubernetes(sh: &Shell) -> Result<()> {
    ensure("kubernetes", kubernetes::present, |done| kubernetes::install(sh, done))
}

fn programs(sh: &Shell, part: &'static str, tools: &[Tool]) -> Result<()> {
    let present = || Ok(apt::missing(tools).is_empty().then_some(()));
    ensure(part, present, |done| {
        let packages = apt::missing(tools);
        apt::install(sh, &packages, &format!("the part {part}"))?;
        done.say(format!("installed {}", packages.join(" ")));
        match &apt::missing(tools)[..] {
            [] => Ok(()),
            missing => bail!("{} is installed and its program is not there", missing.join(", ")),
        }
    })
}

/// What `present` finds, else what `install` makes, one process at a time.
fn ensure<T>(
    part: &'static str,
    present: impl Fn() -> Result<Option<T>>,
    install: impl FnOnce(&mut Done) -> Result<T>,
) -> Result<T> {
    if let Some(found) = present()? {
        return Ok(found);
    }
    let _lock = lock(part)?;
    let mut done = Done { part, count: 0 };
    // Another process may have done it while this one waited.
    match present()? {
        Some(found) => Ok(found),
        None => install(&mut done).with_context(|| format!("setting up {part}")),
    }
}

/// Held while something is installed; ends with the process, whatever its end.
fn lock(part: &str) -> Result<File> {
    let folder = cache_folder()?;
    fs::create_dir_all(&folder).with_context(|| format!("making the cache folder {}", folder.display()))?;
    let path = folder.join("setup.lock");
    let file = File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {
            eprintln!("setup {part}: waiting for another setup to end ({})", path.display())
        }
        Err(TryLockError::Error(error)) => return Err(error).context(format!("locking {}", path.display())),
    }
    file.lock().with_context(|| format!("locking {}", path.display()))?;
    Ok(file)
}
