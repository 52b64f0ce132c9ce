//! What builds the kernel's half: a compiler with its source, and bpf-linker on an LLVM that reads what it writes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
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

/// The first toolchain that has a linker. Quick.
pub(super) fn present(sh: &Shell) -> Result<Option<Ebpf>> {
    for toolchain in toolchain::all(sh) {
        if let Some(linker) = linker(sh, toolchain.llvm)? {
            return Ok(Some(Ebpf { toolchain, linker }));
        }
    }
    Ok(None)
}

/// Installs what is missing: a linker for a toolchain that is there, or else Debian's compiler and a linker for that.
pub(super) fn install(sh: &Shell, done: &mut Done) -> Result<Ebpf> {
    let found: Vec<_> =
        toolchain::all(sh).into_iter().filter(|toolchain| LLVM.contains(&toolchain.llvm)).collect();
    for toolchain in &found {
        if let Some(prefix) = llvm_prefix(sh, toolchain.llvm) {
            return build_linker(sh, toolchain, &prefix, done);
        }
    }
    if apt::is_there() {
        for toolchain in &found {
            if apt::offers(sh, &format!("llvm-{}-dev", toolchain.llvm), |_| true)? {
                return install_linker(sh, toolchain, done);
            }
        }
        if apt::offers(sh, COMPILER[0], is_new_enough)? {
            apt::install(sh, COMPILER, "building the kernel's half")?;
            done.say(format!("installed {}", COMPILER.join(" ")));
            let toolchain = toolchain::distribution(sh).with_context(advice)?;
            return install_linker(sh, &toolchain, done);
        }
    }
    bail!(advice())
}

/// What is missing where nothing can be installed, and how to get it.
fn advice() -> String {
    let (major, minor) = OLDEST;
    format!(
        "building the kernel's half needs a Rust compiler of {major}.{minor} or newer with its source, and a bpf-linker \
         {LINKER} that reads what it writes. On Debian 12 and newer the packages {} bring the first, and this builds \
         the second. Elsewhere: `rustup toolchain install nightly --component rust-src`, then `cargo install \
         cargo-binstall` and `cargo binstall bpf-linker`",
        COMPILER.join(" ")
    )
}

fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|part| part.parse::<u32>().ok());
    numbers.next().zip(numbers.next()).is_some_and(|found| found >= OLDEST)
}

/// The linker for bitcode of this LLVM: ours, else one that the user has, if it is not older.
fn linker(sh: &Shell, llvm: u32) -> Result<Option<PathBuf>> {
    let version =
        |path: &PathBuf| cmd!(sh, "{path} --version").quiet().ignore_stderr().read().unwrap_or_default();
    let ours = folder(llvm)?.join("bin/bpf-linker");
    let candidates = [Some(ours).filter(|path| path.exists()), program("bpf-linker")];
    Ok(candidates.into_iter().flatten().find(|path| is_linker(&version(path))))
}

/// Whether `bpf-linker --version` said that it is one of ours.
fn is_linker(version: &str) -> bool {
    let numbers =
        version.trim().strip_prefix("bpf-linker ").map(|version| version.split('.').map(str::parse::<u32>));
    numbers.is_some_and(|mut numbers| {
        let (major, minor) = (numbers.next(), numbers.next());
        matches!((major, minor), (Some(Ok(0)), Some(Ok(13..))) | (Some(Ok(1..)), _))
    })
}

fn folder(llvm: u32) -> Result<PathBuf> {
    let name = if llvm == 22 { "bpf-linker".to_owned() } else { format!("bpf-linker-llvm{llvm}") };
    Ok(cache_folder()?.join(name))
}

fn install_linker(sh: &Shell, toolchain: &Toolchain, done: &mut Done) -> Result<Ebpf> {
    let prefix = match llvm_prefix(sh, toolchain.llvm) {
        Some(prefix) => prefix,
        None => install_llvm(sh, toolchain.llvm, done)?,
    };
    build_linker(sh, toolchain, &prefix, done)
}

fn build_linker(sh: &Shell, toolchain: &Toolchain, prefix: &Path, done: &mut Done) -> Result<Ebpf> {
    let llvm = toolchain.llvm;
    let (folder, feature) = (folder(llvm)?, format!("llvm-{llvm}"));
    let install = cmd!(
        sh,
        "cargo install bpf-linker --version {LINKER} --locked --force --root {folder} --no-default-features --features {feature}"
    );
    // Both names: an older llvm-config on the PATH is found otherwise.
    let install = install.env("LLVM_PREFIX", prefix).env(format!("LLVM_SYS_{llvm}1_PREFIX"), prefix);
    progress::run("building bpf-linker (one or two minutes)", install).with_context(|| {
        format!("`cargo install bpf-linker` needs crates.io, g++ and LLVM {llvm} (in {})", prefix.display())
    })?;
    done.say(format!("built bpf-linker on LLVM {llvm} into {}", folder.display()));
    let linker = linker(sh, llvm)?.context("bpf-linker was built and does not run")?;
    Ok(Ebpf { toolchain: toolchain.clone(), linker })
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

    #[test]
    fn an_older_linker_on_the_path_is_not_taken() {
        assert!(is_linker("bpf-linker 0.13.0\n"));
        assert!(is_linker("bpf-linker 1.0.0"));
        assert!(!is_linker("bpf-linker 0.9.15"));
        assert!(!is_linker(""));
    }
}
