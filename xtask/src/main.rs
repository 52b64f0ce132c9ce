//! Development tasks, one file a verb.

mod build;
mod build_ebpf;
mod conformance;
mod count;
mod demo;
mod kernels;
mod lint;
mod progress;
mod root;
mod setup;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use xshell::Shell;

/// Development tasks
#[derive(Parser)]
enum Verb {
    Setup(setup::Options),
    /// Build the kernel's half into target/bpf/vipr-ebpf.o
    BuildEbpf,
    Build(build::Options),
    /// Check format, clippy and documentation, for both halves
    Lint,
    Kernels(kernels::Options),
    /// Show the main job in a lab of network namespaces, in under a minute
    Demo,
    Conformance(conformance::Options),
}

fn main() -> ExitCode {
    // Not returned from here: that would print a backtrace of this program, which is of use to nobody.
    match run(Verb::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut verb: Verb) -> Result<()> {
    if let Verb::Conformance(options) = &mut verb {
        options.make_absolute()?;
    }
    std::env::set_current_dir(workspace::root())?;
    let sh = Shell::new()?;
    match verb {
        Verb::Setup(options) => setup::run(&sh, &options),
        Verb::BuildEbpf => build_ebpf::run(&sh).map(drop),
        Verb::Build(options) => build::run(&sh, &options).map(drop),
        Verb::Lint => lint::run(&sh),
        Verb::Kernels(options) => kernels::run(&sh, &options),
        Verb::Demo => demo::run(&sh),
        Verb::Conformance(options) => conformance::run(&sh, &options),
    }
}
