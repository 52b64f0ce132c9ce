//! What packets cost in the packet plane's loaded programs: nanoseconds above an empty program (`BPF_PROG_TEST_RUN`),
//! packet by packet, with few and many Services and flows. Nothing is sent. Run it on a quiet machine.
//!
//! A packet that stays as it is runs a hundred thousand times in a row. One that is rewritten runs once at a time, so
//! that a system call lies between two runs: what it costs is higher by the caches that the call takes. Of both the
//! middle of all runs counts, less that of an empty program run in the same way.

mod ground;
mod packet;

use anyhow::{Context, Result};

use self::ground::{Ground, Hook, Way};
use self::packet::{Ends, FIN, Frame, SYN};

/// What one packet costs.
#[derive(Clone, Debug)]
pub struct Cost {
    /// Which packet.
    pub packet: &'static str,
    /// Where: `ingress`, `egress`, or `both` for a packet on its way through the node.
    pub hook: &'static str,
    /// Services in the tables.
    pub services: u32,
    /// The same packet again and again, or a packet of another flow each time, out of [`FLOWS`].
    pub cold: bool,
    /// Nanoseconds above an empty program.
    pub nanoseconds: f64,
}

/// Flows, and addresses of no Service, among which a cold run picks at random.
pub const FLOWS: u32 = 20_000;
/// Runs of a packet that is rewritten.
const RUNS: u32 = 4000;
/// Turns of one that is not, in each of [`ROUNDS`].
const TURNS: u32 = 100_000;
const ROUNDS: u32 = 15;

/// Measure with each of these numbers of Services.
///
/// # Errors
/// The object does not load, or a packet does not become what it should: the programs are wrong, not slow.
pub fn measure(services: &[u32]) -> Result<Vec<Cost>> {
    let mut costs = Vec::new();
    for services in services {
        costs.append(&mut Ground::new(*services)?.entered(all)??);
    }
    Ok(costs)
}

fn all(way: &mut Way) -> Result<Vec<Cost>> {
    let mut costs = Vec::new();
    let services = way.services;
    let mut add = |packet, hook, cold, nanoseconds| {
        costs.push(Cost { packet, hook, services, cold, nanoseconds });
    };
    for kind in [Ends::Pod, Ends::Outside] {
        let names = kind.names();
        for number in 0..FLOWS {
            way.connect(&kind.of(number, services), |_, _| ())?;
        }
        for cold in [false, true] {
            let mut random = Random(1);
            let mut taken: [Vec<u32>; 4] = Default::default();
            for _ in 0..RUNS {
                let number = if cold { random.below(FLOWS) } else { 0 };
                way.talk(&kind.of(number, services), |leg, ns| taken[leg].push(ns))?;
            }
            for (leg, taken) in taken.iter_mut().enumerate() {
                add(names.known[leg / 2], ["ingress", "egress"][leg % 2], cold, above(way, taken)?);
            }
        }
        let mut taken: [Vec<u32>; 4] = Default::default();
        for number in FLOWS..FLOWS + RUNS {
            way.connect(&kind.of(number, services), |leg, ns| taken[leg].push(ns))?;
        }
        for (leg, taken) in taken.iter_mut().enumerate() {
            add(names.new[leg / 2], ["ingress", "egress"][leg % 2], true, above(way, taken)?);
        }
    }
    // Only now are all the ports known that flows use.
    for (name, packet) in packet::STRANGERS {
        let [in_, out] = [Hook::Ingress, Hook::Egress].map(|hook| still(way, hook, &packet(0, services)));
        let (in_, out) = (in_?, out?);
        add(name, "ingress", false, in_);
        add(name, "egress", false, out);
        add(name, "both", false, in_ + out);
        let cold = strangers(way, packet)?;
        add(name, "both", true, cold);
    }
    Ok(costs)
}

/// A packet that stays as it is, over and over.
fn still(way: &Way, hook: Hook, frame: &Frame) -> Result<f64> {
    let mut differences = Vec::new();
    for _ in 0..ROUNDS {
        let ran = way.run(hook, frame, TURNS)?;
        let empty = way.run(Hook::Empty, frame, TURNS)?;
        anyhow::ensure!(ran.frame == frame.bytes, "a packet of no Service was changed");
        differences.push(f64::from(ran.nanoseconds) - f64::from(empty.nanoseconds));
    }
    differences.sort_by(f64::total_cmp);
    Ok(differences[differences.len() / 2])
}

/// Packets of no Service on their way through the node, each to somewhere else.
fn strangers(way: &Way, packet: fn(u32, u32) -> Frame) -> Result<f64> {
    let mut random = Random(7);
    let mut taken: [Vec<u32>; 2] = Default::default();
    for _ in 0..RUNS {
        let frame = packet(random.below(FLOWS), way.services);
        for (hook, taken) in [Hook::Ingress, Hook::Egress].into_iter().zip(&mut taken) {
            taken.push(way.run(hook, &frame, 1)?.nanoseconds);
        }
    }
    let [in_, out] = &mut taken;
    Ok(above(way, in_)? + above(way, out)?)
}

/// The middle of single runs, less that of an empty program.
fn above(way: &Way, taken: &mut [u32]) -> Result<f64> {
    let frame = packet::tcp(&Ends::Pod.of(0, 1).client, &Ends::Pod.of(0, 1).dialled, SYN | FIN);
    let mut empty = Vec::new();
    for _ in 0..RUNS {
        empty.push(way.run(Hook::Empty, &frame, 1)?.nanoseconds);
    }
    let middle = |taken: &mut [u32]| -> Result<f64> {
        taken.sort_unstable();
        taken.get(taken.len() / 2).map(|ns| f64::from(*ns)).context("nothing was measured")
    };
    Ok(middle(taken)? - middle(&mut empty)?)
}

/// The same numbers in every run of the tool (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 32) % u64::from(limit)) as u32
    }
}
