//! `vipr run`: the agent.

use std::process::ExitCode;

use anyhow::Result;

use crate::config::Flags;

/// Arguments of `vipr run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    flags: Flags,
}

/// Be the agent until SIGTERM or SIGINT, which leave everything attached.
pub fn run(args: Args) -> Result<ExitCode> {
    crate::run::run(args.flags)
}
