//! What each tier needs, and how it is run.

use std::env;
use std::env::consts::ARCH;

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use xshell::{Shell, cmd};

use super::stream::{self, Said};
use crate::{build, lint, progress, root, setup, workspace};

/// One kind of proof, in the order of cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    /// Format, clippy, documentation
    Lint,
    /// Pure code, and the rules of tidy; no root
    Host,
    /// The programs in this machine's kernel
    Kernel,
    /// The agent in network namespaces, with real sockets
    Network,
    /// The agent on a real API server (needs Go once)
    Cluster,
    /// The story on older kernels, in machines of their own
    Kernels,
}

impl Tier {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Lint => "lint",
            Self::Host => "host",
            Self::Kernel => "kernel",
            Self::Network => "network",
            Self::Cluster => "cluster",
            Self::Kernels => "kernels",
        }
    }
}

/// How a tier went.
pub(super) enum Outcome {
    Ran(Said),
    /// Why it could not run.
    CouldNot(anyhow::Error),
}

/// How long one test binary may take, in seconds, before it is ended: a hanging test must not be a hanging run.
const LIMIT: &str = "900";

/// Sets up what `tier` needs and runs it.
pub(super) fn run(sh: &Shell, tier: Tier, filter: Option<&str>) -> Result<Outcome> {
    match tier {
        Tier::Lint => Ok(Outcome::Ran(Said { count: lint::counted(sh), ignored: 0 })),
        Tier::Host => host(sh, filter).map(Outcome::Ran),
        Tier::Kernel | Tier::Network => lab(sh, tier, filter, setup::lab),
        Tier::Cluster => lab(sh, tier, filter, |sh| {
            setup::lab(sh)?;
            setup::kubernetes(sh)
        }),
        Tier::Kernels => kernels(sh),
    }
}

fn host(sh: &Shell, filter: Option<&str>) -> Result<Said> {
    let packages = ["--package=proxy-common", "--package=proxy-userspace", "--package=xtask"];
    let test = cmd!(sh, "cargo test --no-fail-fast {packages...} -- {filter...}");
    let mut said = stream::run("the tier host", test, stream::of_cargo)?;
    let lab = stream::run(
        "the lab's own tests",
        cmd!(sh, "cargo test --no-fail-fast --package proxy-lab --lib --bins -- {filter...}"),
        stream::of_cargo,
    )?;
    said.count += lab.count;
    said.ignored += lab.ignored;
    Ok(said)
}

/// The lab's test files whose names begin with the tier's.
fn lab(sh: &Shell, tier: Tier, filter: Option<&str>, setup: fn(&Shell) -> Result<()>) -> Result<Outcome> {
    let prefix = format!("{}_", tier.name());
    let files = sh.read_dir("proxy-lab/tests")?;
    if !files
        .iter()
        .any(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
    {
        return Ok(Outcome::CouldNot(anyhow!("there is no file proxy-lab/tests/{prefix}*.rs")));
    }
    let prepared = setup(sh).and_then(|()| runner(sh));
    let runner = match prepared {
        Ok(runner) => runner,
        Err(error) => return Ok(Outcome::CouldNot(error)),
    };
    let vipr = match build::for_tests(sh) {
        Ok(vipr) => vipr,
        Err(error) => return Ok(Outcome::CouldNot(error)),
    };
    let files = format!("{prefix}*");
    let build = cmd!(sh, "cargo test --no-run --package proxy-lab --test {files}");
    progress::run(&format!("building the tier {}", tier.name()), build)?;
    let test = cmd!(sh, "cargo test --no-fail-fast --package proxy-lab --test {files} -- {filter...}")
        .env(format!("CARGO_TARGET_{}_UNKNOWN_LINUX_GNU_RUNNER", ARCH.to_uppercase()), runner)
        .env("VIPR_BIN", vipr)
        .env("VIPR_CACHE", workspace::cache_folder()?);
    Ok(Outcome::Ran(stream::run(&format!("the tier {}", tier.name()), test, stream::of_cargo)?))
}

/// What cargo puts before each test binary: root, and a limit of time. Cargo splits it at spaces.
fn runner(sh: &Shell) -> Result<String> {
    let mut words = root::prefix(sh)?;
    words.extend(["timeout", "--foreground", "--kill-after=10", LIMIT]);
    Ok(words.join(" "))
}

/// By this program again, so that its lines can be counted.
fn kernels(sh: &Shell) -> Result<Outcome> {
    if ARCH != "x86_64" {
        return Ok(Outcome::CouldNot(anyhow!("the kernels are those of x86_64")));
    }
    let vipr = setup::kernels(sh).and_then(|()| build::for_tests(sh));
    let vipr = match vipr {
        Ok(vipr) => vipr,
        Err(error) => return Ok(Outcome::CouldNot(error)),
    };
    let program = env::current_exe().context("finding this program")?;
    let kernels =
        cmd!(sh, "{program} kernels").env("VIPR_BIN", vipr).env("VIPR_CACHE", workspace::cache_folder()?);
    Ok(Outcome::Ran(stream::run("the tier kernels", kernels, stream::of_kernels)?))
}
