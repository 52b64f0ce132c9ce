//! The command line: one verb, one file. A verb has `Args` and `run(Args) -> Result<ExitCode>`.
//!
//! Exit codes: 0 done, 1 it failed (the reason is on stderr), 2 the command line is wrong (clap's). Verbs that answer a
//! question say in their help what other codes mean.

pub mod run;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Kubernetes Services in eBPF.
#[derive(Debug, Parser)]
#[command(name = "vipr", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the agent: keep this node's tables as the cluster says.
    Run(run::Args),
}

/// What the binary does. An error is printed with its causes, never as a panic.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.verb {
        Verb::Run(args) => run::run(args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("Error: {error:#}");
        ExitCode::FAILURE
    })
}
