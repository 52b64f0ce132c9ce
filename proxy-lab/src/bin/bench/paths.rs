//! The figures of sockets and packets: for each number of Services, rounds in which everybody is measured in turn.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;

use anyhow::Result;
use proxy_lab::Lab;

use crate::api::Object;
use crate::contestant::{Contestant, Kind};
use crate::figure::{FIGURES, Figure};
use crate::ground::{From, Ground, TARGETS, topology};
use crate::sample::{Row, Rows};
use crate::switch;

/// The first address of the Services that only fill the tables.
const FILLERS: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 0);

/// How much is measured.
#[derive(Clone, Debug)]
pub(crate) struct Extent {
    /// Numbers of Services, ascending.
    pub(crate) sizes: Vec<u32>,
    pub(crate) rounds: u32,
    /// Of endpoints, each timed as a client sees it; even.
    pub(crate) changes: u32,
    /// Starts of the agent with each shape of a cluster.
    pub(crate) starts: u32,
    /// How long endpoints change a hundred times a second.
    pub(crate) busy_seconds: u32,
    /// Of one load.
    pub(crate) seconds: f64,
    /// Only figures whose name contains one of these; all if there is none.
    pub(crate) only: Vec<String>,
}

impl Extent {
    /// Whether a figure of this name is measured.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part))
    }
}

/// Measures all of it in one lab.
pub(crate) fn run(contestants: Vec<Contestant>, extent: &Extent) -> Result<Rows> {
    let lab = Lab::start(&topology(&contestants))?;
    let mut ground = Ground::start(&lab, contestants)?;
    let everybody = 0..ground.contestants.len();
    let own: Vec<_> = everybody.clone().map(|number| (number, ground.to(number, From::Pod))).collect();
    ground.settle(&own)?;
    let mut rows = Rows::default();
    let mut filled = 0;
    for &size in &extent.sizes {
        ground.retire(size)?;
        fill(&mut ground, filled, size)?;
        filled = size;
        for round in 0..extent.rounds {
            let began = Instant::now();
            for figure in FIGURES.iter().filter(|figure| extent.wants(figure.name)) {
                // Who begins changes, so that what one leaves behind does not always meet the same.
                for turn in everybody.clone() {
                    let number = (turn + round as usize) % everybody.len();
                    rows.0.extend(one(&ground, figure, number, size, round, extent.seconds)?);
                }
            }
            println!("{size} Services, round {}: {:.0?}", round + 1, began.elapsed());
        }
        if extent.wants(switch::NAME) {
            rows.0.extend(switch::run(&mut ground, size, extent.changes)?);
        }
    }
    Ok(rows)
}

/// One measurement; `None` where it says nothing.
fn one(
    ground: &Ground<'_>,
    figure: &Figure,
    number: usize,
    services: u32,
    round: u32,
    seconds: f64,
) -> Result<Option<Row>> {
    let contestant = &ground.contestants[number];
    let without_sockets = matches!(contestant.kind, Kind::Vipr { sockets: false, .. });
    let is_slow = matches!(contestant.kind, Kind::KubeProxy { .. }) && figure.is_time();
    let is_empty = figure.spread && services < 1000;
    if is_slow
        || is_empty
        || without_sockets && !figure.is_of_packets()
        || !ground.takes_part(number, services)
    {
        return Ok(None);
    }
    let (mut to, spread) = (ground.to(number, figure.from), if figure.spread { services - 1 } else { 0 });
    if figure.spread {
        let direct = matches!(contestant.kind, Kind::Direct);
        to = if direct {
            SocketAddrV4::new(backend(1), TARGETS[0].0)
        } else {
            SocketAddrV4::new(address(1), 80)
        };
    }
    let outcome = ground.measure(number, figure.from, figure.load, to, spread, seconds)?;
    Ok(Some(Row {
        services,
        figure: figure.name.to_owned(),
        contestant: contestant.name.to_owned(),
        round,
        value: outcome.value,
        failed: outcome.failed,
    }))
}

/// From `filled` Services to `size`, and waits until everybody serves the last of them.
fn fill(ground: &mut Ground<'_>, filled: u32, size: u32) -> Result<()> {
    let more = size.saturating_sub(filled.max(1));
    if more == 0 {
        return Ok(());
    }
    let began = Instant::now();
    let fillers = (filled.max(1)..size).map(filler).collect();
    ground.api().create(fillers)?;
    println!("created {more} Services in {:.1?}", began.elapsed());
    // One a node, by which is seen that all before it are served.
    let takers: Vec<_> = (0..ground.contestants.len())
        .filter(|&number| ground.takes_part(number, size) && ground.pid(number).is_some())
        .collect();
    let last = |number: usize| Object {
        name: format!("last-{size}-{number}"),
        ip: Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 254, 0)) + size.ilog2() * 8 + number as u32),
        node_port: None,
        ..ground.object(number)
    };
    let lasts: Vec<_> = takers.iter().map(|&number| last(number)).collect();
    let to: Vec<_> =
        takers.iter().zip(&lasts).map(|(&number, it)| (number, SocketAddrV4::new(it.ip, 80))).collect();
    ground.api().create(lasts)?;
    let began = Instant::now();
    ground.settle(&to)?;
    println!("all serve {size} Services {:.1?} later", began.elapsed());
    Ok(())
}

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(FILLERS) + number)
}

fn backend(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 200, 0, 0)) + number)
}

fn filler(number: u32) -> Object {
    Object {
        name: format!("filler-{number}"),
        ip: address(number),
        endpoints: vec![(backend(number), format!("elsewhere-{}", number % 500))],
        ..Object::none()
    }
}
