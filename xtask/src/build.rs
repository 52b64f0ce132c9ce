//! Builds the agent with the kernel's half embedded.

use std::env::consts::ARCH;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use xshell::{Shell, cmd};

use crate::{build_ebpf, progress, workspace};

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
    let build = cmd!(sh, "cargo build --package proxy-userspace --bin vipr --profile dist --target {target}");
    let flags =
        format!("-Ctarget-feature=+crt-static\x1f--remap-path-prefix={}=/vipr", workspace::root().display());
    progress::run("building vipr for distribution", build.env("CARGO_ENCODED_RUSTFLAGS", flags))?;
    Ok(workspace::target_folder()?.join(target).join("dist/vipr"))
}
