//! Starts this program again without what `cargo run` put into the environment.
//!
//! Cargo tells a program that it runs which package it is from. A cargo started by that program takes it for its own
//! environment, in which some build scripts look (ring's): each change between `cargo xtask` and a plain `cargo`
//! would compile everything above them again.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::workspace;

/// Returns only if there is nothing to take out, or in an error.
pub(crate) fn without_cargo() -> Result<()> {
    let names: Vec<_> = env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    let set_by_cargo: Vec<_> = names.iter().filter(|name| is_of_a_package(name)).collect();
    if set_by_cargo.is_empty() {
        return Ok(());
    }
    let mut command = Command::new(env::current_exe().context("finding this program")?);
    command.args(env::args_os().skip(1)).env(workspace::ROOT, workspace::root());
    for name in set_by_cargo {
        command.env_remove(name);
    }
    Err(command.exec()).context("starting this program again")
}

fn is_of_a_package(name: &str) -> bool {
    name == "CARGO" || ["CARGO_MANIFEST_", "CARGO_PKG_"].iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_user_set_stays() {
        for name in ["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_NET_OFFLINE", "CARGO_PROFILE_DEV_DEBUG", "PATH"]
        {
            assert!(!is_of_a_package(name), "{name}");
        }
        assert!(is_of_a_package("CARGO_PKG_VERSION_PRE") && is_of_a_package("CARGO_MANIFEST_DIR"));
    }
}
