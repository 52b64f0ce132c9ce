//! Runs catalogues of kube-proxy's behaviour through the code that runs on nodes, without a kernel and without root:
//! a line for each case that fails, then `N passed, N failed`. What `cargo xtask conformance FILE…` runs.

mod catalogue;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;

/// Run conformance catalogues
#[derive(Debug, Parser)]
struct Options {
    /// The catalogues
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

fn main() -> ExitCode {
    let (mut passed, mut failed, mut unread) = (0, 0, false);
    for file in Options::parse().files {
        match run(&file) {
            Ok(outcome) => {
                outcome.failures.iter().for_each(|failure| println!("{failure}"));
                passed += outcome.passed;
                failed += outcome.failures.len();
            }
            Err(error) => {
                eprintln!("error: {error:#}");
                unread = true;
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 && !unread { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(file: &std::path::Path) -> Result<catalogue::Outcome> {
    let text = std::fs::read_to_string(file);
    let text = text.with_context(|| format!("{}: cannot be read", file.display()))?;
    catalogue::run(&text).with_context(|| file.display().to_string())
}
