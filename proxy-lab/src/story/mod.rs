//! A short story with real sockets, told on each kernel vipr promises to run on.

mod acts;
mod ground;
mod sockets;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use proxy_lab::{Lab, Offload, Topology, Wiring};

/// One step: what it shows, and the doing, which may return a remark.
type Step<T> = (&'static str, fn(&T) -> Result<String>);

const GROUND: &[Step<()>] = &[
    ("the kernel", |()| ground::kernel()),
    ("cgroup2 is there and takes a group", |()| ground::cgroup()),
    ("bpffs is there", |()| ground::bpffs()),
    ("a network namespace can be made", |()| ground::namespace()),
];

const STORY: &[Step<Lab>] = &[
    ("every program loads and is attached", |lab| acts::play(lab, "begin")),
    ("TCP goes to an endpoint, in both families and from pod and host", sockets::tcp),
    ("connected UDP goes to an endpoint and shows what was dialled", sockets::connected_udp),
    ("unconnected UDP goes to an endpoint and answers from what was dialled", sockets::datagrams),
    ("node ports are served on the node's addresses, loopback's for the host only", sockets::node_ports),
    ("no endpoints: refused, blocking or not, and never a hang", sockets::refusals),
    ("a restart and a change of endpoints lose no connection", sockets::change),
    ("a larger generation is swapped in and loses no connection", sockets::growth),
    ("a pod that asks for it is left to packets, and no other", sockets::left),
    ("every device gets the packet plane's programs", |lab| hooked(lab, "new")),
    ("the next agent's take their place", |lab| hooked(lab, "replaced")),
    ("a client outside is answered from what it dialled, and refused where nobody is", sockets::packets),
    (
        "a pod's connected socket goes on with an endpoint that serves, a connection with its own",
        sockets::repair,
    ),
    ("what is over is swept, to the last key", |lab| acts::play(lab, acts::SWEEP)),
    ("cleaning up leaves no pin and no program", sockets::cleanup),
];

/// Plays the act of the devices; the end of its remark says how it found them.
fn hooked(lab: &Lab, found: &str) -> Result<String> {
    let remark = acts::play(lab, acts::DEVICES)?;
    ensure!(remark.ends_with(found), "{remark}");
    Ok(remark)
}

/// Tells the whole story.
pub(super) fn tell() -> ExitCode {
    if !GROUND.iter().all(|step| told(step, &())) {
        return ExitCode::FAILURE;
    }
    // No ethtool on the smallest systems: devices keep their offloads.
    let topology =
        Topology::new(Wiring::Routed).node("a", &["a1", "a2", "a3"]).client("outside").offload(Offload::On);
    let start = Instant::now();
    let lab = match Lab::start(&topology).and_then(sockets::serve) {
        Ok(lab) => lab,
        Err(error) => {
            println!("FAIL a node with three pods can be built: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    println!("ok   a node with three pods can be built ({} ms)", start.elapsed().as_millis());
    if STORY.iter().all(|step| told(step, &lab)) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn told<T>((name, step): &Step<T>, with: &T) -> bool {
    let start = Instant::now();
    match step(with) {
        Ok(remark) => {
            let remark = if remark.is_empty() { remark } else { format!(": {remark}") };
            println!("ok   {name}{remark} ({} ms)", start.elapsed().as_millis());
            true
        }
        Err(error) => {
            println!("FAIL {name}: {error:#}");
            false
        }
    }
}

/// Plays an act of the dataplane, if the arguments say so.
pub(super) fn act_if_asked() -> Option<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [word, act, cgroup] = &arguments[..] else { return None };
    if word != acts::WORD {
        return None;
    }
    Some(match acts::act(act, cgroup.as_ref()).with_context(|| format!("the act {act}")) {
        Ok(remark) => {
            print!("{remark}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    })
}
