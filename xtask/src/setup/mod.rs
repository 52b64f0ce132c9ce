//! Installs what other verbs need, part by part. A part that is complete costs some milliseconds.

pub(crate) mod apt;
pub(crate) mod ebpf;
mod toolchain;

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
}

/// What the lab runs, and the packages that bring it.
const LAB: &[Tool] = &[
    ("bpftool", "bpftool"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
    ("tcpdump", "tcpdump"),
    ("iperf3", "iperf3"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("sysctl", "procps"),
    ("ethtool", "ethtool"),
];

/// What the kernels run in, and what takes their packages apart.
const KERNELS: &[Tool] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("modprobe", "kmod"),
    ("cpio", "cpio"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("lz4", "lz4"),
    ("gzip", "gzip"),
    ("dash", "dash"),
    ("objcopy", "binutils"),
    ("ip", "iproute2"),
    ("switch_root", "util-linux"),
    ("ethtool", "ethtool"),
];

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
    tools(sh, "lab", LAB)
}

/// The tools that boot other kernels.
pub(crate) fn kernels(sh: &Shell) -> Result<()> {
    tools(sh, "kernels", KERNELS)
}

fn tools(sh: &Shell, part: &'static str, tools: &[Tool]) -> Result<()> {
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
