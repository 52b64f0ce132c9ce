//! Builds the kernel's half into `target/bpf/vipr-ebpf.o`, from where `proxy-userspace/build.rs` embeds it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use xshell::Shell;

use crate::setup::{self, ebpf::Ebpf};
use crate::{private, progress, workspace};

/// The target: BPF of the byte order that x86 and ARM have.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// Builds the object and says by which compiler. Cargo decides what is stale.
pub(crate) fn run(sh: &Shell) -> Result<PathBuf> {
    let ebpf = setup::ebpf(sh)?;
    println!("building the kernel's half with {}", ebpf.toolchain);
    // Also so that the folders of crates exist before they are remapped.
    ebpf.toolchain
        .cargo(sh, &["fetch", "--target", TARGET])
        .run()
        .context("fetching crates (needs crates.io)")?;
    let folder = workspace::root().join("target/bpf");
    let arguments = ["build", "--package", "proxy-ebpf", "--profile", "bpf"];
    progress::run("building the kernel's half", cargo(sh, &ebpf, &arguments))?;

    let built = folder.join(TARGET).join("bpf/vipr-ebpf");
    let bytes = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    private::check(&built, &bytes, &source(&ebpf))?;
    let object = folder.join("vipr-ebpf.o");
    // A new date would rebuild the agent.
    if fs::read(&object).is_ok_and(|old| old == bytes) {
        println!("{}: unchanged", object.display());
    } else {
        let partial = folder.join(format!(".vipr-ebpf.o.{}", std::process::id()));
        fs::write(&partial, &bytes)?;
        fs::rename(&partial, &object).with_context(|| format!("naming {}", object.display()))?;
        println!("{}: {} KiB", object.display(), bytes.len() / 1024);
    }
    Ok(object)
}

/// `cargo ARGUMENTS` for the BPF target, in a target folder of its own.
pub(crate) fn cargo<'a>(sh: &'a Shell, ebpf: &Ebpf, arguments: &[&str]) -> xshell::Cmd<'a> {
    let target = ["--target", TARGET, "-Zbuild-std=core", "--target-dir", "target/bpf"];
    let flags = flags(ebpf);
    println!("RUSTFLAGS of the kernel's half: {}", flags.join(" "));
    let arguments: Vec<_> = arguments.iter().chain(&target).copied().collect();
    ebpf.toolchain.cargo(sh, &arguments).env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
}

fn flags(ebpf: &Ebpf) -> Vec<String> {
    let mut flags = vec![
        // Debug info becomes BTF and line info: maps with named fields, verifier errors with source lines.
        "-Cdebuginfo=2".to_owned(),
        format!("-Clinker={}", ebpf.linker.display()),
        "-Clink-arg=--btf".to_owned(),
        // The newest instruction set that Linux 5.10 knows.
        "-Ctarget-cpu=v3".to_owned(),
    ];
    flags.extend(private::mapped_away(&source(ebpf)));
    flags
}

/// The compiler's source, which `core` is built from.
fn source(ebpf: &Ebpf) -> [(PathBuf, &'static str); 1] {
    [(ebpf.toolchain.source.clone(), "/rust")]
}
