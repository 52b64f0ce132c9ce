//! Development tasks, one file a verb.

mod again;
mod bench;
mod build;
mod build_ebpf;
mod ci;
mod conformance;
mod count;
mod demo;
mod hook;
mod kernels;
mod lint;
mod private;
mod progress;
mod root;
mod setup;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use count::Reported;
use xshell::Shell;

/// Development tasks
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
enum Verb {
    Setup(setup::Options),
    /// Build the kernel's half into target/bpf/vipr-ebpf.o
    BuildEbpf,
    Build(build::Options),
    /// Check format, clippy and documentation, for both halves
    Lint,
    /// Check the rules of the house: lengths, headers, imports, names
    Tidy,
    Test(test::Options),
    Kernels(kernels::Options),
    /// Show the main job in a lab of network namespaces, in under a minute
    Demo,
    Conformance(conformance::Options),
    Bench(bench::Options),
    /// Do what continuous integration does: tidy, lint, all tests
    Ci,
    /// Install a pre-commit hook: format and tidy
    Hook,
}

fn main() -> ExitCode {
    // Not returned from here: that would print a backtrace of this program, which is of use to nobody.
    match again::without_cargo().and_then(|()| run(Verb::parse())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is::<Reported>() {
                eprintln!("error: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(mut verb: Verb) -> Result<()> {
    if let Verb::Conformance(options) = &mut verb {
        options.make_absolute()?;
    }
    let sh = Shell::new()?;
    sh.change_dir(workspace::root());
    match verb {
        Verb::Setup(options) => setup::run(&sh, &options),
        Verb::BuildEbpf => build_ebpf::run(&sh).map(drop),
        Verb::Build(options) => build::run(&sh, &options).map(drop),
        Verb::Lint => lint::run(&sh),
        Verb::Tidy => tidy::run(&sh),
        Verb::Test(options) => test::run(&sh, &options),
        Verb::Ci => ci::run(&sh),
        Verb::Hook => hook::run(&sh),
        Verb::Kernels(options) => kernels::run(&sh, &options),
        Verb::Demo => demo::run(&sh),
        Verb::Bench(options) => bench::run(&sh, &options),
        Verb::Conformance(options) => conformance::run(&sh, &options),
    }
}
