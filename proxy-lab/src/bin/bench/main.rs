//! `bench`: vipr beside direct forwarding and the real kube-proxy, in one lab. `cargo xtask bench` builds and runs it.
//!
//! One binary: without a sub-command it measures; `serve` and `load` are what it starts at the places of the lab.

mod agent;
mod api;
mod contestant;
mod figure;
mod ground;
mod load;
mod packets;
mod page;
mod paths;
mod plot;
mod sample;
mod serve;
mod switch;
mod tables;
mod target;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use proxy_lab::role;

use crate::agent::Shape;
use crate::contestant::Contestant;
use crate::load::Load;
use crate::paths::Extent;
use crate::sample::Rows;

#[derive(Parser)]
struct Command {
    /// The only core to run on
    #[arg(long)]
    core: Option<usize>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Measure
    Measure(Measure),
    /// Serve every load on a port; the name is one byte
    Serve { port: u16, name: char },
    /// Put a load on an address, and print the outcome as JSON
    Load { load: Load, to: SocketAddr, spread: u32, seconds: f64 },
}

#[derive(Args)]
struct Measure {
    /// The agent
    #[arg(long)]
    vipr: PathBuf,
    /// The agent of another revision, instead of kube-proxy
    #[arg(long)]
    against: Option<PathBuf>,
    /// How many Services there are
    #[arg(long, value_delimiter = ',')]
    services: Vec<u32>,
    #[arg(long)]
    rounds: u32,
    /// Changes of endpoints, an even number
    #[arg(long, default_value_t = 20)]
    changes: u32,
    /// Of each load
    #[arg(long)]
    seconds: f64,
    /// Only figures with one of these in their names
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these parts
    #[arg(long, value_delimiter = ',', default_values = ["paths", "agent", "packets"])]
    parts: Vec<Part>,
    /// Clusters that the agent alone is measured in, like 10000x20
    #[arg(long, value_delimiter = ',')]
    shapes: Vec<Shape>,
    /// Of the agent, in each of them
    #[arg(long, default_value_t = 3)]
    starts: u32,
    /// How long endpoints change a hundred times a second
    #[arg(long, default_value_t = 10)]
    busy_seconds: u32,
    /// kube-proxy iptables with more than 1 000 Services too
    #[arg(long)]
    full: bool,
    /// Where the raw numbers, the page and the plots are written; nothing is without it
    #[arg(long)]
    docs: Option<PathBuf>,
}

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// What clients get, beside direct forwarding and kube-proxy.
    Paths,
    /// What the agent uses, and how soon it answers.
    Agent,
    /// What a packet costs in the programs.
    Packets,
}

fn main() -> ExitCode {
    if let Some(played) = role::play_if_asked() {
        return played;
    }
    match run(Command::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    if let Some(core) = command.core {
        let mut cores = CpuSet::new();
        cores.set(core)?;
        sched_setaffinity(Pid::this(), &cores).with_context(|| format!("running on core {core} alone"))?;
    }
    match command.verb {
        Verb::Measure(measure) => return self::measure(measure),
        Verb::Serve { port, name } => serve::run(port, u8::try_from(name)?)?,
        Verb::Load { load, to, spread, seconds } => {
            let outcome = load::run(load, load::v4(to)?, spread, seconds)?;
            println!("{}", serde_json::to_string(&outcome)?);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(mut measure: Measure) -> Result<ExitCode> {
    measure.services.sort_unstable();
    let extent = Extent {
        sizes: measure.services,
        rounds: measure.rounds,
        changes: measure.changes.next_multiple_of(2),
        starts: measure.starts,
        busy_seconds: measure.busy_seconds,
        seconds: measure.seconds,
        only: measure.only,
    };
    let contestants = Contestant::all(&measure.vipr, measure.against.as_deref(), measure.full);
    if let Some(old) = &measure.against {
        let good = page::compare(&paths::run(contestants, &extent)?);
        println!("the other is {}", old.display());
        return Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    for part in measure.parts {
        let rows = match (part, contestants.iter().find(|it| it.binary().is_some())) {
            (Part::Paths, _) => paths::run(contestants.clone(), &extent)?,
            (Part::Agent, Some(agent)) => agent::run(agent, &measure.shapes, &extent)?,
            (Part::Packets, _) => packets::run(&extent)?,
            (Part::Agent, None) => continue,
        };
        page::print(&rows);
        // After each part: a later one may fail.
        if let Some(folder) = &measure.docs {
            let raw = folder.join("benchmarks.tsv");
            let mut all = if raw.exists() { Rows::read(&raw)? } else { Rows::default() };
            all.replace(rows);
            all.write(&raw)?;
            page::write(&all, folder)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
