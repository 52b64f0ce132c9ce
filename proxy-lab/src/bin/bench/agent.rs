//! The agent's own figures: how soon it serves a cluster of a given size, how soon a change is in the tables, and what it
//! uses. One node and one API server, no kube-proxy beside them.

mod change;
mod usage;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::Child;
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use proxy_lab::topology::{Blackhole, Offload};
use proxy_lab::{Cluster, Lab, Topology, Wiring};

use crate::api::{Api, Object};
use crate::contestant::{Contestant, Running};
use crate::ground::{CONTROL_PLANE, dial, serve, v4};
use crate::paths::Extent;
use crate::sample::{Row, Rows};
use usage::{Filled, Group};

/// The node, and whose the figures are.
const NODE: &str = "vipr";
const CLIENT: &str = "client";
const SERVER: &str = "server";
/// The one Service that is dialled; of all it has the last address, so that all others are in the tables before it.
const LAST: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 96, 255, 1), 80);
/// No start takes longer, whatever it is worth.
const LIMIT: Duration = Duration::from_secs(120);

/// How large a cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Services, of one port each.
    pub(crate) services: u32,
    /// Of each.
    pub(crate) endpoints: u32,
}

impl FromStr for Shape {
    type Err = anyhow::Error;

    /// `10000x20`.
    fn from_str(text: &str) -> Result<Self> {
        let (services, endpoints) = text.split_once('x').context("a shape is like 10000x20")?;
        Ok(Self { services: services.parse()?, endpoints: endpoints.parse()? })
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} Services × {} endpoints", self.services, self.endpoints)
    }
}

/// Measures all shapes. Those that follow each other and have as many endpoints share a control plane.
pub(crate) fn run(agent: &Contestant, shapes: &[Shape], extent: &Extent) -> Result<Rows> {
    let mut rows = Rows::default();
    for shapes in shapes.chunk_by(|a, b| a.endpoints == b.endpoints && a.services <= b.services) {
        let server = [CLIENT, SERVER];
        let topology = Topology::new(Wiring::Routed).offload(Offload::On).blackhole(Blackhole::AtNodes);
        let lab = Lab::start(&topology.node(NODE, &server).client(CONTROL_PLANE))?;
        // Addresses that nobody has are dialled until they are served.
        lab.expect_errors();
        let _server = Server(serve(lab.place(SERVER), 0)?);
        let mut ground =
            Ground { lab: &lab, cluster: Cluster::start(&lab, CONTROL_PLANE)?, agent, filled: 0, changed: 0 };
        ground.api().create(vec![ground.last()])?;
        for &shape in shapes {
            ground.fill(shape)?;
            rows.0.extend(ground.measure(shape, extent)?);
        }
    }
    Ok(rows)
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // Failing means that it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Ground<'a> {
    lab: &'a Lab,
    cluster: Cluster<'a>,
    agent: &'a Contestant,
    /// Services so far.
    filled: u32,
    /// Changes so far.
    changed: u32,
}

impl<'a> Ground<'a> {
    fn api(&mut self) -> Api<'a> {
        Api::new(self.lab.place(CONTROL_PLANE), self.cluster.plane().admin_kubeconfig())
    }

    /// The Service that is dialled.
    fn last(&self) -> Object {
        let server = (v4(self.lab.place(SERVER)), NODE.to_owned());
        Object {
            name: "last".into(),
            ip: *LAST.ip(),
            datagrams: false,
            endpoints: vec![server],
            ..Object::none()
        }
    }

    fn fill(&mut self, shape: Shape) -> Result<()> {
        // The last one counts too.
        let objects: Vec<_> = (self.filled..shape.services - 1).map(|number| object(number, shape)).collect();
        let (began, count) = (Instant::now(), objects.len());
        self.api().create(objects)?;
        self.filled = shape.services - 1;
        println!("created {count} Services in {:.1?}", began.elapsed());
        Ok(())
    }

    fn measure(&mut self, shape: Shape, extent: &Extent) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        let row = |figure: &str, round, value| Row {
            services: shape.services,
            figure: figure.to_owned(),
            contestant: self.agent.name.to_owned(),
            round,
            value,
            failed: 0,
        };
        let group = Group::new(self.lab.tag());
        for round in 0..extent.starts {
            let (running, started) = self.start(group.as_ref())?;
            rows.push(row("agent-start", round, started.whole.as_secs_f64() * 1e3));
            rows.push(row("agent-fill", round, started.fill.as_secs_f64() * 1e3));
            let memory = |when: &str, rows: &mut Vec<Row>| -> Result<()> {
                let resident = usage::settled(|| usage::resident(running.pid()))?;
                rows.push(row(&format!("agent-rss{when}"), round, resident as f64 / 1e6));
                if let Some(group) = &group {
                    rows.push(row(&format!("agent-group{when}"), round, group.bytes()? as f64 / 1e6));
                }
                Ok(())
            };
            memory("", &mut rows)?;
            if round + 1 == extent.starts && extent.wants("agent-change") {
                let api = Api::new(self.lab.place(CONTROL_PLANE), self.cluster.plane().admin_kubeconfig());
                let changes = change::Changes {
                    node: self.lab.node(NODE),
                    api: &api,
                    pid: running.pid(),
                    shape,
                    made: self.changed,
                };
                self.changed += change::ALONE + change::RATE * extent.busy_seconds;
                for (figure, value) in changes.run(extent)? {
                    rows.push(row(figure, round, value));
                }
                memory("-changed", &mut rows)?;
            }
            running.stop()?;
        }
        for row in &rows {
            println!("{shape}, start {}: {} {:.3}", row.round + 1, row.figure, row.value);
        }
        Ok(rows)
    }

    /// Starts the agent on a node on which it has never run, until a client has met its last Service. When that would have
    /// been possible is the log's word: a client whose SYN came too early only tries again a second later.
    fn start(&mut self, group: Option<&Group>) -> Result<(Running, Started)> {
        let node = self.lab.node(NODE);
        let binary = self.agent.binary().context("no agent")?;
        node.run(&binary.display().to_string(), &["cleanup", "--pin-path", proxy_lab::PIN_PATH])?;
        let client = self.lab.place(CLIENT);
        let admin = self.cluster.plane().admin_kubeconfig();
        let joins = group.map(Group::path);
        let (began, exec) = (Instant::now(), SystemTime::now());
        let running = Running::start_in(self.agent, node, self.cluster.kubeconfig(), &admin, joins)?;
        let mut running = running.context("nothing was started")?;
        while dial(client, LAST).is_err() {
            running.check()?;
            ensure!(began.elapsed() < LIMIT, "not served within {LIMIT:?}: {}", running.tail());
            std::thread::sleep(Duration::from_micros(500));
        }
        let Filled { listed, written } = usage::filled(&running.log()).with_context(|| running.tail())?;
        let started = Started { whole: written.duration_since(exec)?, fill: written.duration_since(listed)? };
        Ok((running, started))
    }
}

/// How long it took until all was in the tables and the programs were attached: from exec(), and from the end of the last
/// list.
struct Started {
    whole: Duration,
    fill: Duration,
}

fn object(number: u32, shape: Shape) -> Object {
    let endpoint = |n: u32| {
        let number = number * shape.endpoints + n;
        (
            Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 200, 0, 0)) + number),
            format!("elsewhere-{}", number % 500),
        )
    };
    Object {
        name: name(number),
        ip: Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 1, 0)) + number),
        datagrams: false,
        endpoints: (0..shape.endpoints).map(endpoint).collect(),
        ..Object::none()
    }
}

fn name(number: u32) -> String {
    format!("filler-{number}")
}
