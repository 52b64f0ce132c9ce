//! Runs catalogues of flows through the model, the plan, the tables and the decision, without a kernel.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use xshell::{Shell, cmd};

/// Run conformance catalogues, without a kernel and without root
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The catalogues
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

impl Options {
    /// Names the files from the root, before the current folder changes.
    pub(crate) fn make_absolute(&mut self) -> Result<()> {
        for file in &mut self.files {
            *file = std::path::absolute(&file)?;
        }
        Ok(())
    }
}

/// Prints a line for each flow that fails, and `N passed, N failed`.
pub(crate) fn run(sh: &Shell, options: &Options) -> Result<()> {
    let files = &options.files;
    Ok(cmd!(sh, "cargo run --package proxy-userspace --example conformance -- {files...}").run()?)
}
