//! Measures vipr beside direct forwarding and the real kube-proxy, or beside another revision of itself.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use xshell::{Shell, cmd};

use crate::{build, progress, root, setup, workspace};

/// Measure against direct forwarding and the real kube-proxy; writes docs/benchmarks.md
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Few Services and rounds, in less than ten minutes; docs/benchmarks.md stays
    #[arg(long)]
    quick: bool,
    /// Write docs/benchmarks.md of a quick run too
    #[arg(long)]
    page: bool,
    /// How many Services there are; by default 1, 1 000, 10 000 and 50 000
    #[arg(long, value_delimiter = ',')]
    services: Vec<u32>,
    /// How often each figure is measured with each number of Services
    #[arg(long)]
    rounds: Option<u32>,
    /// Seconds of one load
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Only figures with one of these in their names
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these parts: `paths` (what clients get), `agent` (what it uses, how soon it answers), `packets` (what one costs)
    #[arg(long, value_delimiter = ',')]
    parts: Vec<String>,
    /// Clusters that the agent is measured in, Services x endpoints; by default 1x20, 1000x20, 10000x20 and 50000x5
    #[arg(long, value_delimiter = ',')]
    shapes: Vec<String>,
    /// kube-proxy iptables with more than 1 000 Services too: it takes minutes to serve them
    #[arg(long)]
    full: bool,
    /// Against another revision instead of kube-proxy: fails if a ratio is worse by more than 5 %
    #[arg(long, value_name = "REV")]
    against: Option<String>,
}

/// Builds everything and measures.
pub(crate) fn run(sh: &Shell, options: &Options) -> Result<()> {
    setup::lab(sh)?;
    setup::kubernetes(sh)?;
    let vipr = build::run(sh, &build::Options::release())?;
    progress::run("building the bench", cmd!(sh, "cargo build --release --package proxy-lab --bin bench"))?;
    let bench = workspace::target_folder()?.join("release/bench");
    let brief = options.quick || options.against.is_some();
    let services = match &options.services[..] {
        [] if brief => vec![1, 1000],
        [] => vec![1, 1000, 10_000, 50_000],
        services => services.to_vec(),
    };
    let services: Vec<_> = services.iter().map(u32::to_string).collect();
    let mut arguments = vec![
        "measure".to_owned(),
        format!("--vipr={}", vipr.display()),
        format!("--services={}", services.join(",")),
        format!("--rounds={}", options.rounds.unwrap_or(if brief { 5 } else { 15 })),
        format!("--seconds={}", options.seconds),
    ];
    let shapes = match &options.shapes[..] {
        [] if options.quick => ["1x20", "1000x20", "10000x20"].join(","),
        [] => ["1x20", "1000x20", "10000x20", "50000x5"].join(","),
        shapes => shapes.join(","),
    };
    arguments.push(format!("--shapes={shapes}"));
    if options.quick {
        arguments.extend(["--starts=2", "--changes=6"].map(str::to_owned));
    }
    if options.full {
        arguments.push("--full".to_owned());
    }
    match &options.parts[..] {
        // Only paths are compared.
        _ if options.against.is_some() => arguments.push("--parts=paths".to_owned()),
        [] => {}
        parts => arguments.push(format!("--parts={}", parts.join(","))),
    }
    if !options.only.is_empty() {
        arguments.push(format!("--only={}", options.only.join(",")));
    }
    match &options.against {
        Some(revision) => {
            arguments.push(format!("--against={}", other(sh, revision)?.display()));
        }
        None if options.quick && !options.page => {}
        None => arguments.push(format!("--docs={}", workspace::root().join("docs").display())),
    }
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    root::command(sh, &bench, &arguments)?.run()?;
    Ok(())
}

/// The agent of another revision, built in a worktree of its own below `target`, which is kept for the next time.
fn other(sh: &Shell, revision: &str) -> Result<PathBuf> {
    let wanted = format!("{revision}^{{commit}}");
    let commit = cmd!(sh, "git rev-parse --verify --short=12 {wanted}").read();
    let commit = commit.with_context(|| format!("{revision} is no revision"))?;
    let folder = workspace::target_folder()?.join("bench").join(&commit);
    if !folder.exists() {
        cmd!(sh, "git worktree prune").run()?;
        cmd!(sh, "git worktree add --detach {folder} {commit}").run()?;
    }
    // Its own tasks: how an agent is built is part of the revision. Not into our target folder.
    let _there = sh.push_dir(&folder);
    let build = cmd!(sh, "cargo run --package xtask -- build --release")
        .env_remove("CARGO_TARGET_DIR")
        .env("VIPR_WORKSPACE", &folder);
    progress::run(&format!("building vipr of {commit}"), build)?;
    Ok(folder.join("target/release/vipr"))
}
