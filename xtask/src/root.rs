//! Runs programs that need root: namespaces and BPF programs do.

use std::path::Path;

use anyhow::{Context, Result, bail};
use xshell::{Cmd, Shell, cmd};

use crate::workspace::program;

/// What of the environment reaches a program through sudo.
const KEPT: &str = "--preserve-env=PATH,HOME,CI,RUST_BACKTRACE,UPDATE_VERIFIER,VIPR_BIN,VIPR_CACHE,VIPR_LAB_KEEP,VIPR_LAB_PEER,VIPR_WORKSPACE,CARGO_MANIFEST_DIR";

/// Whether this process may do everything.
pub(crate) fn is_ours(sh: &Shell) -> Result<bool> {
    Ok(cmd!(sh, "id -u").quiet().read().context("asking who this is")? == "0")
}

/// The words to put before a program so that it runs as root: none, or sudo's.
pub(crate) fn prefix(sh: &Shell) -> Result<Vec<&'static str>> {
    if is_ours(sh)? {
        return Ok(Vec::new());
    }
    if program("sudo").is_none() {
        bail!("this needs root, and there is no sudo: run it as root");
    }
    Ok(vec!["sudo", KEPT])
}

/// The program with `arguments`, as root.
pub(crate) fn command<'a>(sh: &'a Shell, program: &Path, arguments: &[&str]) -> Result<Cmd<'a>> {
    Ok(match &prefix(sh)?[..] {
        [] => cmd!(sh, "{program} {arguments...}"),
        [first, rest @ ..] => cmd!(sh, "{first} {rest...} {program} {arguments...}"),
    })
}
