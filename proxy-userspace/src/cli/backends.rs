//! `vipr backends`: which endpoints serve now, and for whom.

use std::process::ExitCode;

use anyhow::Result;

use super::{
    output::{Output, Pins},
    services,
};
use crate::{dataplane, text};

/// Arguments of `vipr backends`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only of these: `namespace/name`, or a name in any namespace
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
    #[command(flatten)]
    pins: Pins,
    #[command(flatten)]
    output: Output,
}

/// List the endpoints.
pub fn run(args: Args) -> Result<ExitCode> {
    let (actual, _) = dataplane::read_pinned(&args.pins.pin_path)?;
    // A service without endpoints has no row of its own, but it is there.
    services::only(text::services(&actual), &args.services, |row| &row.service)?;
    let mut rows = text::backends(&actual);
    if !args.services.is_empty() {
        rows.retain(|row| args.services.iter().any(|wanted| services::is(&row.service, wanted)));
    }
    args.output.answer(&rows, |rows| text::backends_text(rows))?;
    Ok(ExitCode::SUCCESS)
}
