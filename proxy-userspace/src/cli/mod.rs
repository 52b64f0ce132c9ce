//! The command line: one verb, one file. A verb has `Args` and `run(Args) -> Result<ExitCode>`.
//!
//! Exit codes: 0 done, 1 it failed (the reason is on stderr), 2 the command line is wrong (clap's). Verbs that answer a
//! question say in their help what other codes mean. `docs/cli.md` is made from the help texts.

mod ask;
pub mod backends;
pub mod cleanup;
pub mod completions;
pub mod explain;
pub mod flows;
pub mod output;
pub mod run;
pub mod services;
pub mod status;
#[cfg(test)]
mod tests;
pub mod version;

use std::{
    io::{Write, stderr},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

/// Kubernetes Services in eBPF.
#[derive(Debug, Parser)]
#[command(name = "vipr", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "\
Exit codes:
  0  done
  1  it failed; the reason is on standard error
  2  the command line is wrong
`vipr status` has more: see its help.")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the agent: keep this node's tables as the cluster says.
    Run(run::Args),
    /// Say how old the view is, how the agent does and what runs in the kernel.
    Status(status::Args),
    /// List the Services that the tables serve now.
    Services(services::Args),
    /// List the endpoints that the tables serve now.
    Backends(backends::Args),
    /// List the connections that the packet plane remembers now.
    Flows(flows::Args),
    /// Say what happens to a call or a packet, and why.
    Explain(explain::Args),
    /// Remove everything of vipr from this node.
    Cleanup(cleanup::Args),
    /// Say which vipr this is.
    Version(version::Args),
    /// Print completions for a shell.
    Completions(completions::Args),
}

/// What the binary does. An error is printed with its causes, never as a panic.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.verb {
        Verb::Run(args) => run::run(args),
        Verb::Status(args) => status::run(args),
        Verb::Services(args) => services::run(args),
        Verb::Backends(args) => backends::run(args),
        Verb::Flows(args) => flows::run(args),
        Verb::Explain(args) => explain::run(args),
        Verb::Cleanup(args) => cleanup::run(args),
        Verb::Version(args) => version::run(args),
        Verb::Completions(args) => completions::run(args),
    };
    result.unwrap_or_else(|error| {
        // Standard error may be closed too.
        let _ = writeln!(stderr(), "Error: {}", causes(&error));
        ExitCode::FAILURE
    })
}

/// An error and its causes, those that an error names itself only once.
fn causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
