//! Installs Debian packages, as root or through sudo.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use xshell::{Cmd, Shell, cmd};

use crate::workspace::program;
use crate::{progress, root};

/// A program that is needed, and the Debian package that brings it.
pub(crate) type Tool = (&'static str, &'static str);

/// The packages of those tools that are not there. Looks for programs, not packages, so that a machine where they
/// came another way is fine.
pub(crate) fn missing(tools: &[Tool]) -> Vec<&'static str> {
    let mut packages: Vec<_> =
        tools.iter().filter(|(name, _)| program(name).is_none()).map(|(_, package)| *package).collect();
    packages.dedup();
    packages
}

/// Whether packages can be asked for at all.
pub(crate) fn is_there() -> bool {
    program("apt-get").is_some()
}

/// Whether a version of `package` that is `good` can be installed, by the lists as they are or else renewed.
pub(crate) fn offers(sh: &Shell, package: &str, good: impl Fn(&str) -> bool) -> Result<bool> {
    if candidate(sh, package)?.is_some_and(|version| good(&version)) {
        return Ok(true);
    }
    update(sh)?;
    Ok(candidate(sh, package)?.is_some_and(|version| good(&version)))
}

/// Installs `packages`; `why` names what they are for in an error.
pub(crate) fn install(sh: &Shell, packages: &[&str], why: &str) -> Result<()> {
    let names = packages.join(" ");
    if !is_there() {
        bail!(
            "{why} needs what the Debian packages {names} bring, and this system has no apt-get: install it with the \
             system's own package manager, then run this again"
        );
    }
    let install = || {
        update(sh)?;
        // --no-remove: nothing that the user has may go.
        let words = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", "--no-remove"];
        progress::run(&format!("installing {names}"), as_root(sh, &words, packages)?)
    };
    install().with_context(|| format!("{why} needs the Debian packages {names}"))
}

/// Renews the package lists, once in a run.
fn update(sh: &Shell) -> Result<()> {
    static DONE: AtomicBool = AtomicBool::new(false);
    if !DONE.load(Ordering::Relaxed) {
        progress::run(
            "apt-get update",
            as_root(sh, &["apt-get", "update", "--quiet", "--error-on=any"], &[])?,
        )
        .context("apt's package lists cannot be renewed: is there a network, and a mirror in /etc/apt?")?;
        DONE.store(true, Ordering::Relaxed);
    }
    Ok(())
}

fn candidate(sh: &Shell, package: &str) -> Result<Option<String>> {
    let policy = cmd!(sh, "apt-cache policy {package}").env("LC_ALL", "C").quiet().read()?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    Ok(version.filter(|version| *version != "(none)").map(str::to_owned))
}

/// The command, through sudo unless this is root already.
fn as_root<'a>(sh: &'a Shell, command: &[&str], arguments: &[&str]) -> Result<Cmd<'a>> {
    let mut words = root::prefix(sh)?;
    words.extend(["env", "DEBIAN_FRONTEND=noninteractive"]);
    words.extend(command);
    words.extend(arguments);
    let (first, rest) = (words[0], &words[1..]);
    Ok(cmd!(sh, "{first} {rest...}"))
}
