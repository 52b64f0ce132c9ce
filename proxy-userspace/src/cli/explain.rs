//! `vipr explain`: what happens to a call, decided by the code that decides in the kernel, on the tables that are pinned
//! or on those that a cluster's objects lead to.

mod answer;
mod ground;
mod question;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};
use clap::ValueEnum;

use self::{
    answer::answer,
    ground::Ground,
    question::{Caller, Question, Target},
};
use super::output::{Output, Pins};
use crate::text::Explanation;

/// Arguments of `vipr explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vipr explain --from pod --to 10.96.0.1:443/TCP
  vipr explain --from host --to '[fd00:96::a]:53/UDP'
  vipr explain --from 10.0.1.5 --to 192.0.2.1:30080/TCP --cluster objects.yaml --node node-1

Without --cluster the pinned tables answer, whether or not an agent runs; that needs root. With it neither a kernel nor
root is needed. Nothing is sent, and nothing is remembered of the question.

Exit codes:
  0  it is explained, whatever the answer
  1  it could not be explained
  2  the command line is wrong")]
pub struct Args {
    /// Who calls: `pod`, `host`, or an address (one of the node's own is the host's, others are pods')
    #[arg(long, value_name = "SRC")]
    from: Caller,
    /// What is dialled, like 10.96.0.1:80/TCP; without protocol TCP
    #[arg(long, value_name = "DST:PORT/PROTO")]
    to: Target,
    /// Which plane decides
    #[arg(long, value_enum, value_name = "PLANE", default_value_t = Plane::Socket)]
    plane: Plane,
    /// File of Services, EndpointSlices and Nodes in YAML or JSON, or a folder of such files, in place of the tables
    #[arg(long, value_name = "FILE", requires = "node")]
    cluster: Option<PathBuf>,
    /// The Node whose agent is asked; with --cluster
    #[arg(long, value_name = "NAME", requires = "cluster")]
    node: Option<String>,
    /// KubeProxyConfiguration of that agent; with --cluster
    #[arg(long, value_name = "FILE", requires = "cluster")]
    config: Option<PathBuf>,
    #[command(flatten)]
    pins: Pins,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Plane {
    /// Calls of sockets on the node: connect and sendmsg.
    Socket,
    /// Packets that pass the node.
    Packet,
}

/// Explain.
pub fn run(args: Args) -> Result<ExitCode> {
    let explanation = explain(&args)?;
    args.output.answer(&explanation, Explanation::text)?;
    Ok(ExitCode::SUCCESS)
}

fn explain(args: &Args) -> Result<Explanation> {
    if args.plane == Plane::Packet {
        bail!(
            "this version has no packet plane: packets pass as they are, and only sockets are served (`--plane socket`)"
        );
    }
    let ground = match (&args.cluster, &args.node) {
        (Some(cluster), Some(node)) => Ground::of_cluster(cluster, node, args.config.as_deref())?,
        _ => Ground::pinned(&args.pins.pin_path)?,
    };
    answer(&ground, &Question { from: args.from, to: args.to })
}
