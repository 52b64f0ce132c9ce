//! The matrix: each kind of Service, by each of its doors, for each client, family and protocol, under each way of running
//! the agent. A cell's expectation is in `spec`, apart from everything that is vipr's.

pub(crate) mod ask;
pub(crate) mod ground;
pub(crate) mod spec;

use anyhow::{Context, Result, bail, ensure};
use ask::Asker;
use ground::{Ground, Wired};
use proxy_lab::{Agent, Family, Offload, wait};
use spec::{Cell, Client, Door, Kind, Pass, Profile, Protocol};

/// A pass, who dials in it, and by what.
struct Run {
    pass: Pass,
    clients: &'static [Client],
    protocols: &'static [Protocol],
}

const RUNS: [Run; 4] = [
    Run {
        pass: Pass {
            name: "by packets",
            sockets: false,
            packets: true,
            detector: true,
            masquerade_all: false,
        },
        clients: &[Client::Pod, Client::Outside],
        protocols: &[Protocol::Tcp, Protocol::Udp, Protocol::Sctp],
    },
    Run {
        pass: Pass {
            name: "both planes",
            sockets: true,
            packets: true,
            detector: true,
            masquerade_all: false,
        },
        clients: &[Client::Pod, Client::Node],
        protocols: &[Protocol::Tcp, Protocol::Udp],
    },
    Run {
        pass: Pass {
            name: "both planes, masqueradeAll, no detector",
            sockets: true,
            packets: true,
            detector: false,
            masquerade_all: true,
        },
        clients: &[Client::Pod, Client::Outside],
        protocols: &[Protocol::Tcp, Protocol::Udp, Protocol::Sctp],
    },
    Run {
        pass: Pass {
            name: "sockets alone",
            sockets: true,
            packets: false,
            detector: true,
            masquerade_all: false,
        },
        clients: &[Client::Pod, Client::Node],
        protocols: &[Protocol::Tcp, Protocol::Udp],
    },
];

/// A lab whose failures are more than this has one fault, and has shown it.
const ENOUGH: usize = 12;

/// All cells of a wiring.
pub(crate) fn holds(wired: Wired) -> Result<()> {
    for profile in Profile::ALL {
        // Checksums are made in software with one profile and left to devices with another.
        let offload = if profile == Profile::Nftables { Offload::On } else { Offload::Off };
        let ground = Ground::build(wired, offload)?;
        let (asked, failures) =
            all(&ground, profile).with_context(|| format!("{wired:?}, {}", profile.name()))?;
        if !failures.is_empty() {
            bail!("{wired:?}, offload {offload:?}: of {asked} cells\n{}", failures.join("\n"));
        }
        ensure!(asked > 900, "{wired:?}, {}: {asked} cells are too few", profile.name());
        ground.lab.check().with_context(|| format!("{wired:?}, {}", profile.name()))?;
    }
    Ok(())
}

/// How many cells were asked, and what failed.
fn all(ground: &Ground, profile: Profile) -> Result<(usize, Vec<String>)> {
    let mut asker = Asker::new(ground)?;
    let mut failures = Vec::new();
    for run in RUNS {
        let agent =
            Agent::start_with(ground.lab.node("a"), &ground.manifests, &arguments(run.pass, profile))?;
        if run.pass.sockets {
            agent.settle()?;
        } else {
            // What settles an agent is dialled by the node, whose sockets are not served now. All was there before it began.
            wait::until("all is written", || {
                agent.report()?.applied.context("not yet")?;
                Ok(())
            })?;
        }
        for cell in cells(&run, profile) {
            if let Err(error) = asker.judge(&cell) {
                failures.push(format!("{cell}: {error:#}"));
            }
            if failures.len() >= ENOUGH {
                return Ok((asker.asked, failures));
            }
        }
        failures.extend(asker.finish());
        ensure!(agent.terminate()?.success(), "the agent ends well");
    }
    Ok((asker.asked, failures))
}

fn arguments(pass: Pass, profile: Profile) -> Vec<&'static str> {
    let mut arguments = vec![
        match profile {
            Profile::Iptables => "--proxy-mode=iptables",
            Profile::Nftables => "--proxy-mode=nftables",
            Profile::Ipvs => "--proxy-mode=ipvs",
        },
        if pass.sockets { "--socket-plane=all" } else { "--socket-plane=off" },
        if pass.packets { "--packet-plane=on" } else { "--packet-plane=off" },
    ];
    if pass.detector {
        arguments.push("--cluster-cidr=10.244.0.0/16,fd00:244::/32");
    }
    if pass.masquerade_all {
        arguments.push("--masquerade-all");
    }
    arguments
}

fn cells(run: &Run, profile: Profile) -> Vec<Cell> {
    let mut cells = Vec::new();
    for family in Family::ALL {
        for &protocol in run.protocols {
            for &client in run.clients {
                for door in Door::ALL {
                    for kind in Kind::ALL {
                        cells.push(Cell { pass: run.pass, profile, family, protocol, client, door, kind });
                    }
                }
            }
        }
    }
    // Without the packet plane nothing is promised of what is left to it.
    cells.retain(|cell| cell.exists() && (run.pass.packets || cell.by_socket()));
    cells
}
