//! The `vipr` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    vipr::cli::main()
}
