//! `vipr explain`: what happens to a call or a packet, decided by the code that decides in the kernel, on the tables that are pinned
//! or on those that a cluster's objects lead to.

mod answer;
mod ground;
mod packet;
mod question;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::ValueEnum;

use self::{
    answer::{of_call, of_either, of_packet},
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
  vipr explain --from 203.0.113.7 --to 192.0.2.1:30080/TCP --plane packet
  vipr explain --from 10.0.1.5 --to 192.0.2.1:30080/TCP --cluster objects.yaml --node node-1

Without --cluster the pinned tables answer, whether or not an agent runs; that needs root. With it neither a kernel nor
root is needed. Nothing is sent, and nothing is remembered of the question.

Exit codes:
  0  it is explained, whatever the answer
  1  it could not be explained
  2  the command line is wrong")]
pub struct Args {
    /// Who calls: `pod`, `host`, or an address (one of the node's own is the host's; others are pods', or outside if the
    /// packet plane runs and does not know them as pods)
    #[arg(long, value_name = "SRC")]
    from: Caller,
    /// What is dialled, like 10.96.0.1:80/TCP; without protocol TCP
    #[arg(long, value_name = "DST:PORT/PROTO")]
    to: Target,
    /// Which plane is asked; without it the one that decides
    #[arg(long, value_enum, value_name = "PLANE")]
    plane: Option<Plane>,
    /// The device that the packet comes in by, where that tells who is a pod
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// File of Services, EndpointSlices and Nodes in YAML or JSON, or a folder of such files, in place of the tables
    #[arg(long, value_name = "FILE", requires = "node")]
    cluster: Option<PathBuf>,
    /// The Node whose agent is asked; with --cluster
    #[arg(long, value_name = "NAME", requires = "cluster")]
    node: Option<String>,
    /// KubeProxyConfiguration of that agent; with --cluster
    #[arg(long, value_name = "FILE", requires = "cluster")]
    config: Option<PathBuf>,
    /// Whether that agent has a packet plane, as its own option says; with --cluster
    #[arg(long, value_enum, value_name = "SWITCH", default_value = "on", requires = "cluster")]
    packet_plane: Switch,
    #[command(flatten)]
    pins: Pins,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    /// It has.
    On,
    /// It has not.
    Off,
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
    let packets = args.packet_plane == Switch::On;
    let ground = match (&args.cluster, &args.node) {
        (Some(cluster), Some(node)) => Ground::of_cluster(cluster, node, args.config.as_deref(), packets)?,
        _ => Ground::pinned(&args.pins.pin_path)?,
    };
    let question = Question { from: args.from, to: args.to };
    match args.plane {
        Some(Plane::Socket) => of_call(&ground, &question),
        Some(Plane::Packet) => of_packet(&ground, &question, args.device.as_deref()),
        None => of_either(&ground, &question, args.device.as_deref()),
    }
}
