//! The agent's log: lines for people or JSON, on standard error, as kube-proxy's `-v` asks for.

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// Filters in `VIPR_LOG` rule over `-v`.
pub(super) fn start(verbosity: u8, format: LogFormat) -> Result<()> {
    let filter = match std::env::var("VIPR_LOG") {
        Ok(text) => EnvFilter::try_new(&text)
            .with_context(|| format!("VIPR_LOG={text:?} is no filter like `vipr=debug,vipr::watch=trace`"))?,
        Err(_) => EnvFilter::new(match verbosity {
            // What fails on the way to the API server we tell ourselves, with the fix, and once.
            0..=3 => "info,kube_client=off",
            4..=5 => "vipr=debug,info",
            _ => "vipr=trace,debug",
        }),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    }
    // A second agent in one process has the first one's log.
    .or(Ok(()))
}
