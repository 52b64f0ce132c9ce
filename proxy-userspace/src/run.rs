//! Builds the agent's tasks, names them, and stops them in order.

use std::{fs, process::ExitCode};

use anyhow::{Context, Result};

use crate::config::{Action, Config, Flags};

/// Be the agent until SIGTERM or SIGINT, which leave everything attached.
pub fn run(flags: Flags) -> Result<ExitCode> {
    let hostname = nix::unistd::gethostname().context("read the host's name")?;
    let config = Config::resolve(
        flags,
        |name| std::env::var(name).ok(),
        |path| fs::read_to_string(path),
        &hostname.to_string_lossy(),
    )?;
    if let Action::Write(path) = &config.action {
        let text = serde_yaml_ng::to_string(&config.effective)?;
        fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
