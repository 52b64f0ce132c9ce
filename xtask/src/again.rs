//! Starts this program again without what `cargo run` put into the environment.
//!
//! Cargo tells a program that it runs which package it is from. A cargo started by that program takes it for its own
//! environment, in which some build scripts look (ring's): each change between `cargo xtask` and a plain `cargo`
//! would compile everything above them again.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::workspace;

/// Administrators' programs, which the PATH of an ordinary user lacks in Debian, also when sudo then runs them.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Returns only if there is nothing to take out, or in an error.
pub(crate) fn without_cargo() -> Result<()> {
    let names: Vec<_> = env::vars_os().filter_map(|(name, _)| name.into_string().ok()).collect();
    let set_by_cargo: Vec<_> = names.iter().filter(|name| is_of_a_package(name)).collect();
    if set_by_cargo.is_empty() {
        return Ok(());
    }
    let mut command = Command::new(env::current_exe().context("finding this program")?);
    let path = with_sbin(&env::var_os("PATH").unwrap_or_default());
    command.args(env::args_os().skip(1)).env(workspace::ROOT, workspace::root()).env("PATH", path);
    for name in set_by_cargo {
        command.env_remove(name);
    }
    Err(command.exec()).context("starting this program again")
}

fn with_sbin(path: &OsStr) -> OsString {
    let mut folders: Vec<_> = env::split_paths(path).collect();
    for folder in SBIN.map(PathBuf::from) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    env::join_paths(folders).unwrap_or_else(|_| path.to_owned())
}

fn is_of_a_package(name: &str) -> bool {
    name == "CARGO" || ["CARGO_MANIFEST_", "CARGO_PKG_"].iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_administrators_are_found_last() {
        assert_eq!(with_sbin(OsStr::new("/a:/sbin")), "/a:/sbin:/usr/local/sbin:/usr/sbin");
    }

    #[test]
    fn what_the_user_set_stays() {
        for name in ["CARGO_HOME", "CARGO_TARGET_DIR", "CARGO_NET_OFFLINE", "CARGO_PROFILE_DEV_DEBUG", "PATH"]
        {
            assert!(!is_of_a_package(name), "{name}");
        }
        assert!(is_of_a_package("CARGO_PKG_VERSION_PRE") && is_of_a_package("CARGO_MANIFEST_DIR"));
    }
}
