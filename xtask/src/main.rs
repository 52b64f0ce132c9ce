//! Development tasks, one file a verb.

mod kernels;

use clap::Parser;
use xshell::Shell;

/// Development tasks
#[derive(Parser)]
enum Verb {
    Kernels(kernels::Options),
}

fn main() -> anyhow::Result<()> {
    let sh = Shell::new()?;
    match Verb::parse() {
        Verb::Kernels(options) => kernels::run(&sh, &options),
    }
}
