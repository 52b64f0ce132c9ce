//! What builds the kernel's half: a compiler with its source, and bpf-linker on an LLVM that reads what it writes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use xshell::{Shell, cmd};

use super::toolchain::{self, OLDEST, Toolchain};
use super::{Done, apt};
use crate::progress;
use crate::workspace::{cache_folder, program};

/// The LLVM versions that bpf-linker 0.13 has a feature for.
const LLVM: std::ops::RangeInclusive<u32> = 21..=23;
const LINKER: &str = "^0.13";
const COMPILER: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];

/// What the build of the object needs.
pub(crate) struct Ebpf {
    pub(crate) toolchain: Toolchain,
    pub(crate) linker: PathBuf,
}

/// What is there, if it is complete. Quick.
pub(super) fn present(sh: &Shell) -> Result<Option<Ebpf>> {
    let Some(toolchain) = toolchain::find(sh) else { return Ok(None) };
    Ok(linker(sh, toolchain.llvm)?.map(|linker| Ebpf { toolchain, linker }))
}

/// Installs what is missing.
pub(super) fn install(sh: &Shell, done: &mut Done) -> Result<Ebpf> {
    let toolchain = match toolchain::find(sh) {
        Some(toolchain) => toolchain,
        None => install_compiler(sh, done)?,
    };
    if let Some(linker) = linker(sh, toolchain.llvm)? {
        return Ok(Ebpf { toolchain, linker });
    }
    let linker = install_linker(sh, toolchain.llvm, done)?;
    Ok(Ebpf { toolchain, linker })
}

/// The distribution's compiler where there is a new enough one, else a nightly if there is rustup.
fn install_compiler(sh: &Shell, done: &mut Done) -> Result<Toolchain> {
    let (major, minor) = OLDEST;
    let advice = format!(
        "the kernel's half needs a Rust compiler of {major}.{minor} or newer with its source. Either \
         `rustup toolchain install nightly --component rust-src`, or Debian's packages {}",
        COMPILER.join(" ")
    );
    let candidate = if apt::is_there() { apt::candidate(sh, COMPILER[0])? } else { None };
    if candidate.as_deref().is_some_and(is_new_enough) {
        apt::install(sh, COMPILER, "building the kernel's half").context(advice.clone())?;
        done.say(format!("installed {}", COMPILER.join(" ")));
        return toolchain::distribution(sh).context(advice);
    }
    ensure!(program("rustup").is_some(), advice);
    let install = cmd!(sh, "rustup toolchain install nightly --profile minimal --component rust-src");
    progress::run("installing rustup's nightly with its source", install).context(advice.clone())?;
    done.say("installed rustup's nightly with its source");
    toolchain::find(sh).context(advice)
}

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|part| part.parse::<u32>().ok());
    numbers.next().zip(numbers.next()).is_some_and(|found| found >= OLDEST)
}

/// The linker for bitcode of this LLVM: ours, else one that the user has.
fn linker(sh: &Shell, llvm: u32) -> Result<Option<PathBuf>> {
    let runs = |path: &PathBuf| cmd!(sh, "{path} --version").quiet().ignore_stderr().read().is_ok();
    let ours = folder(llvm)?.join("bin/bpf-linker");
    Ok([Some(ours), program("bpf-linker")].into_iter().flatten().find(runs))
}

fn folder(llvm: u32) -> Result<PathBuf> {
    let name = if llvm == 22 { "bpf-linker".to_owned() } else { format!("bpf-linker-llvm{llvm}") };
    Ok(cache_folder()?.join(name))
}

fn install_linker(sh: &Shell, llvm: u32, done: &mut Done) -> Result<PathBuf> {
    if !LLVM.contains(&llvm) {
        bail!(
            "bpf-linker {LINKER} knows LLVM {} to {}, and the compiler has LLVM {llvm}: use a compiler of that range, \
             or put a bpf-linker for LLVM {llvm} on the PATH",
            LLVM.start(),
            LLVM.end()
        );
    }
    let prefix = match llvm_prefix(sh, llvm) {
        Some(prefix) => prefix,
        None => install_llvm(sh, llvm, done)?,
    };
    let (folder, feature) = (folder(llvm)?, format!("llvm-{llvm}"));
    let install = cmd!(
        sh,
        "cargo install bpf-linker --version {LINKER} --locked --force --root {folder} --no-default-features --features {feature}"
    );
    // Both names: an older llvm-config on the PATH is found otherwise.
    let install = install.env("LLVM_PREFIX", &prefix).env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix);
    progress::run("building bpf-linker (about two minutes)", install).with_context(|| {
        format!("`cargo install bpf-linker` needs crates.io and LLVM {llvm} (in {})", prefix.display())
    })?;
    done.say(format!("built bpf-linker on LLVM {llvm} into {}", folder.display()));
    linker(sh, llvm)?.context("bpf-linker was built and does not run")
}

/// Where LLVM's headers and libraries are, complete enough to link against.
fn llvm_prefix(sh: &Shell, llvm: u32) -> Option<PathBuf> {
    let debian = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    if debian.join("bin/llvm-config").exists() {
        // What LLVM itself is linked against is named by its llvm-config, and must be there.
        let polly = debian.join("lib/libPolly.a").exists();
        let others =
            ["zstd.h", "zlib.h"].iter().all(|header| Path::new("/usr/include").join(header).exists());
        return (polly && others).then_some(debian);
    }
    let version = cmd!(sh, "llvm-config --version").quiet().ignore_stderr().read().ok()?;
    (version.split('.').next()?.parse() == Ok(llvm)).then_some(())?;
    cmd!(sh, "llvm-config --prefix").quiet().read().ok().map(PathBuf::from)
}

fn install_llvm(sh: &Shell, llvm: u32, done: &mut Done) -> Result<PathBuf> {
    let versioned = [format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")];
    let packages = [&versioned[0], &versioned[1], "libzstd-dev", "zlib1g-dev", "gcc", "g++", "libc6-dev"];
    apt::install(sh, &packages, "building bpf-linker").with_context(|| {
        format!("LLVM {llvm} with its headers is needed to build bpf-linker, or a bpf-linker on the PATH")
    })?;
    done.say(format!("installed {}", packages.join(" ")));
    llvm_prefix(sh, llvm).with_context(|| format!("no llvm-config of LLVM {llvm} after installing it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_that_is_too_old_is_not_installed() {
        assert!(is_new_enough("1.96.0+dfsg1-1~deb12u2"));
        assert!(is_new_enough("2.0.0"));
        assert!(!is_new_enough("1.85.0+dfsg3-1~deb12u3"));
        assert!(!is_new_enough("(none)"));
    }
}
