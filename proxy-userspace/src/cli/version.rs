//! `vipr version`.

use std::process::ExitCode;

use anyhow::Result;
use proxy_common::names::LAYOUT_VERSION;
use serde::Serialize;

use super::output::Output;

/// Arguments of `vipr version`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    version: &'static str,
    /// Of the pinned tables.
    layout_version: u32,
    /// Git's, where the build was told it.
    revision: Option<&'static str>,
}

/// Say which vipr this is.
pub fn run(args: Args) -> Result<ExitCode> {
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        layout_version: LAYOUT_VERSION,
        revision: option_env!("VIPR_REVISION").filter(|text| !text.is_empty()),
    };
    args.output.answer(&version, |version| {
        let revision = version.revision.map_or(String::new(), |revision| format!(", revision {revision}"));
        format!("vipr {} (layout version {}{revision})\n", version.version, version.layout_version)
    })?;
    Ok(ExitCode::SUCCESS)
}
