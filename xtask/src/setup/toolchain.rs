//! The compilers that can build for the BPF target: it has no prebuilt `core`, so that the compiler's own source must
//! be beside it, and building `core` is an unstable feature.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

use xshell::{Cmd, Shell, cmd};

use crate::workspace::program;

/// The oldest compiler for the workspace's crates.
pub(crate) const OLDEST: (u32, u32) = (1, 95);

/// A compiler with its source.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    origin: Origin,
    /// Such as `1.96.0`.
    release: String,
    /// The major version of the LLVM that its bitcode is of.
    pub(crate) llvm: u32,
    /// Where its source lies.
    pub(crate) source: PathBuf,
}

#[derive(Clone, Debug)]
enum Origin {
    /// A nightly toolchain of rustup, by its name.
    Rustup(String),
    /// `/usr/bin`, named in full because a rustup proxy may come first on the PATH.
    Distribution,
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Rustup(name) => write!(f, "rustup's {name} (rustc {}, LLVM {})", self.release, self.llvm),
            Origin::Distribution => {
                write!(f, "the distribution's rustc {} (LLVM {})", self.release, self.llvm)
            }
        }
    }
}

/// The toolchains that can, best first: rustup's nightlies, then the distribution's.
pub(crate) fn all(sh: &Shell) -> Vec<Toolchain> {
    let nightlies = nightlies(sh).into_iter().filter_map(|name| probe(sh, Origin::Rustup(name)));
    nightlies.chain(distribution(sh)).collect()
}

/// The distribution's, if it is new enough.
pub(crate) fn distribution(sh: &Shell) -> Option<Toolchain> {
    ["/usr/bin/cargo", "/usr/bin/rustc"].iter().all(|file| Path::new(file).exists()).then_some(())?;
    probe(sh, Origin::Distribution)
}

impl Toolchain {
    /// Its cargo with `arguments`, untouched by the toolchain that runs this program.
    pub(crate) fn cargo<'a>(&self, sh: &'a Shell, arguments: &[&str]) -> Cmd<'a> {
        let command = match &self.origin {
            Origin::Rustup(name) => clean(cmd!(sh, "rustup run {name} cargo {arguments...}")),
            Origin::Distribution => {
                let path = format!("/usr/bin:{}", env::var("PATH").unwrap_or_default());
                let command = clean(cmd!(sh, "/usr/bin/cargo {arguments...}"));
                command.env("RUSTC", "/usr/bin/rustc").env("PATH", path)
            }
        };
        // A stable compiler then takes unstable options, such as building `core`.
        command.env("RUSTC_BOOTSTRAP", "1")
    }

    /// Whether `cargo clippy` works with it. The one that a distribution's cargo finds may be a rustup proxy.
    pub(crate) fn has_clippy(&self, sh: &Shell) -> bool {
        match &self.origin {
            Origin::Rustup(_) => {
                let version = self.cargo(sh, &["clippy", "--version"]);
                version.quiet().ignore_stdout().ignore_stderr().run().is_ok()
            }
            Origin::Distribution => Path::new("/usr/bin/cargo-clippy").exists(),
        }
    }
}

/// `cargo run` and rustup tell their children which toolchain to use; another must not hear it.
fn clean(command: Cmd<'_>) -> Cmd<'_> {
    ["CARGO", "RUSTUP_TOOLCHAIN", "RUSTC", "RUSTDOC", "RUSTFLAGS", "LD_LIBRARY_PATH", "CARGO_BUILD_TARGET"]
        .into_iter()
        .fold(command, Cmd::env_remove)
}

fn nightlies(sh: &Shell) -> Vec<String> {
    if program("rustup").is_none() {
        return Vec::new();
    }
    let list = cmd!(sh, "rustup toolchain list").quiet().ignore_stderr().read().unwrap_or_default();
    list.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .map(str::to_owned)
        .collect()
}

/// What the compiler says of itself; none if it is too old or its source is missing.
fn probe(sh: &Shell, origin: Origin) -> Option<Toolchain> {
    let rustc = |argument: &[&str]| {
        let command = match &origin {
            Origin::Rustup(name) => cmd!(sh, "rustup run {name} rustc {argument...}"),
            Origin::Distribution => cmd!(sh, "/usr/bin/rustc {argument...}"),
        };
        clean(command).quiet().ignore_stderr().read().ok()
    };
    let (release, llvm) = versions(&rustc(&["-vV"])?)?;
    let source = Path::new(&rustc(&["--print", "sysroot"])?).join("lib/rustlib/src/rust");
    source.join("library/core/src/lib.rs").exists().then_some(Toolchain { origin, release, llvm, source })
}

/// Release and LLVM's major version in the output of `rustc -vV`, unless the compiler is too old.
fn versions(text: &str) -> Option<(String, u32)> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let release = field("release")?;
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    ((numbers.next()?, numbers.next()?) >= OLDEST).then_some(())?;
    let llvm = field("LLVM version")?.split('.').next()?.parse().ok()?;
    Some((release.to_owned(), llvm))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_tells_its_release_and_llvm_unless_too_old() {
        let text =
            |release: &str| format!("rustc x\nbinary: rustc\nrelease: {release}\nLLVM version: 22.1.8\n");
        assert_eq!(versions(&text("1.96.0")), Some(("1.96.0".to_owned(), 22)));
        assert_eq!(versions(&text("1.97.0-nightly")), Some(("1.97.0-nightly".to_owned(), 22)));
        assert_eq!(versions(&text("1.85.0")), None);
        assert_eq!(versions(""), None);
    }
}
