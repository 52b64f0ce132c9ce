//! `vipr completions`: for the shell that asks.

use std::process::ExitCode;

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, output::say};

/// Arguments of `vipr completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "For example: source <(vipr completions bash)")]
pub struct Args {
    /// Of which shell
    shell: Shell,
}

/// Print the shell's completions.
pub fn run(args: Args) -> Result<ExitCode> {
    say(&args.script())?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    pub(super) fn script(&self) -> String {
        // Not to standard output at once: it may be closed.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "vipr", &mut script);
        String::from_utf8_lossy(&script).into_owned()
    }
}
