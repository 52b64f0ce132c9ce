//! Builds the agent with the kernel's half embedded.

use std::env::consts::ARCH;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use xshell::{Shell, cmd};

use crate::{build_ebpf, private, progress, workspace};

/// Build `vipr` with the kernel's half embedded
#[derive(Debug, Default, Args)]
pub(crate) struct Options {
    /// Optimised; the same as `--profile release`
    #[arg(long, conflicts_with = "profile")]
    release: bool,
    /// The cargo profile; `dist` is small and static, for an empty image
    #[arg(long, default_value = "dev")]
    profile: String,
}

impl Options {
    /// Of `--release`.
    pub(crate) fn release() -> Self {
        Self { release: true, profile: "release".to_owned() }
    }
}

/// Builds, and gives the path of the binary.
pub(crate) fn run(sh: &Shell, options: &Options) -> Result<PathBuf> {
    build_ebpf::run(sh)?;
    let profile = if options.release { "release" } else { &options.profile };
    let binary = if profile == "dist" { dist(sh)? } else { plain(sh, profile)? };
    println!("built {}", binary.display());
    Ok(binary)
}

/// The agent that tests and the demo run.
pub(crate) fn for_tests(sh: &Shell) -> Result<PathBuf> {
    run(sh, &Options { release: false, profile: "dev".to_owned() })
}

fn plain(sh: &Shell, profile: &str) -> Result<PathBuf> {
    let build = cmd!(sh, "cargo build --package proxy-userspace --bin vipr --profile {profile}");
    progress::run("building vipr", build)?;
    let folder = if profile == "dev" { "debug" } else { profile };
    Ok(workspace::target_folder()?.join(folder).join("vipr"))
}

/// A static binary: with `--target`, build scripts and macros stay as they are.
fn dist(sh: &Shell) -> Result<PathBuf> {
    let target = format!("{ARCH}-unknown-linux-gnu");
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    flags.extend(private::mapped_away(&[]));
    println!("RUSTFLAGS: {}", flags.join(" "));
    let build = cmd!(sh, "cargo build --package proxy-userspace --bin vipr --profile dist --target {target}");
    let build = build.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")).env("VIPR_REVISION", revision(sh));
    progress::run("building vipr for distribution", build)?;
    let binary = workspace::target_folder()?.join(target).join("dist/vipr");
    let bytes = fs::read(&binary).with_context(|| format!("reading {}", binary.display()))?;
    private::check(&binary, &bytes, &[])?;
    let interpreter = b"/ld-linux";
    ensure!(
        !bytes.windows(interpreter.len()).any(|window| window == interpreter),
        "{} needs a dynamic linker, so it would not run in an empty image",
        binary.display()
    );
    Ok(binary)
}

/// What `vipr version` says of itself; empty outside of a repository. Not for other builds: each commit would be one.
fn revision(sh: &Shell) -> String {
    cmd!(sh, "git describe --always --dirty --abbrev=12 --exclude *")
        .quiet()
        .ignore_stderr()
        .read()
        .unwrap_or_default()
}
