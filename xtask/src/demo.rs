//! Shows the main job on this machine: a small cluster of network namespaces, Services from YAML, real connections.

use anyhow::Result;
use xshell::{Shell, cmd};

use crate::{build, progress, root, setup, workspace};

/// Prepares what the demo needs, and runs it.
pub(crate) fn run(sh: &Shell) -> Result<()> {
    setup::lab(sh)?;
    let vipr = build::for_tests(sh)?;
    progress::run(
        "building the demo",
        cmd!(sh, "cargo build --package proxy-lab --bin demo --bin lab-peer"),
    )?;
    let demo = workspace::target_folder()?.join("debug/demo");
    root::command(sh, &demo, &[])?.env("VIPR_BIN", vipr).run()?;
    Ok(())
}
