//! The lab that everything is measured in: a node for each who is measured, all on one segment with one client outside
//! and one API server, all alike.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use proxy_lab::topology::{Blackhole, Offload};
use proxy_lab::{Cluster, Family, Lab, Place, Topology, Waiting, Wiring, wait};

use crate::api::{Api, Object};
use crate::contestant::{Contestant, Kind, Running};
use crate::load::{Load, Outcome};

/// Client and server share it: a rate is then what both ends cost, wherever the scheduler would have put them.
const CORE: usize = 1;
/// Target ports of the two servers of a node; they differ in the byte that they answer with.
pub(crate) const TARGETS: [(u16, u8); 2] = [(8080, b'A'), (8081, b'B')];
const NODE_PORT: u16 = 30_080;
const OUTSIDE: &str = "outside";
pub(crate) const CONTROL_PLANE: &str = "control-plane";

/// Where a client stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum From {
    /// In a pod of the node; it dials the ClusterIP.
    Pod,
    /// Outside of the cluster; it dials a NodePort.
    Outside,
}

/// The topology for these.
pub(crate) fn topology(contestants: &[Contestant]) -> Topology {
    let mut topology = Topology::new(Wiring::Routed).offload(Offload::On).blackhole(Blackhole::AtNodes);
    for one in contestants {
        topology = topology.node(one.name, &[&client(one), &server(one)]);
    }
    topology.client(OUTSIDE).client(CONTROL_PLANE)
}

fn client(one: &Contestant) -> String {
    format!("{}-client", one.name)
}

fn server(one: &Contestant) -> String {
    format!("{}-server", one.name)
}

/// A lab with all servers and proxies running.
pub(crate) struct Ground<'lab> {
    lab: &'lab Lab,
    cluster: Cluster<'lab>,
    pub(crate) contestants: Vec<Contestant>,
    running: Vec<Option<Running>>,
    servers: Vec<Child>,
}

impl<'lab> Ground<'lab> {
    /// Starts the servers, the API server, its first Services, and the proxies.
    pub(crate) fn start(lab: &'lab Lab, contestants: Vec<Contestant>) -> Result<Self> {
        // Addresses that nobody has are dialled on purpose, by sockets that send nothing.
        lab.expect_errors();
        let outside = lab.place(OUTSIDE);
        let mut servers = Vec::new();
        for one in &contestants {
            let place = lab.place(&server(one));
            for number in 0..TARGETS.len() {
                servers.push(serve(place, number)?);
            }
            let IpAddr::V4(via) = lab.node(one.name).address(Family::V4) else { continue };
            outside.ip(&[format!("route add {} via {via}", v4(place))])?;
        }
        let cluster = Cluster::start(lab, CONTROL_PLANE)?;
        let mut ground = Self { lab, cluster, running: Vec::new(), contestants, servers };
        let objects = (0..ground.contestants.len()).map(|number| ground.object(number));
        let objects = objects.collect();
        ground.api().create(objects)?;
        let admin = ground.cluster.plane().admin_kubeconfig();
        for one in &ground.contestants {
            let running = Running::start(one, lab.node(one.name), ground.cluster.kubeconfig(), &admin)?;
            ground.running.push(running);
        }
        Ok(ground)
    }

    /// The API server.
    pub(crate) fn api(&mut self) -> Api<'lab> {
        Api::new(self.lab.place(CONTROL_PLANE), self.cluster.plane().admin_kubeconfig())
    }

    /// The Service that is measured on this contestant's node.
    pub(crate) fn object(&self, number: usize) -> Object {
        let one = &self.contestants[number];
        Object {
            name: format!("bench-{}", one.name),
            ip: Ipv4Addr::new(10, 96, 0, 50 + number as u8),
            node_port: Some(NODE_PORT + number as u16),
            endpoints: vec![(v4(self.lab.place(&server(one))), one.name.to_owned())],
            ..Object::none()
        }
    }

    /// Where a client of a contestant dials.
    pub(crate) fn to(&self, number: usize, from: From) -> SocketAddrV4 {
        let (one, object) = (&self.contestants[number], self.object(number));
        match (&one.kind, from) {
            (Kind::Direct, _) => SocketAddrV4::new(object.endpoints[0].0, object.target),
            (_, From::Pod) => SocketAddrV4::new(object.ip, 80),
            (_, From::Outside) => {
                SocketAddrV4::new(v4(self.lab.node(one.name)), object.node_port.unwrap_or_default())
            }
        }
    }

    /// The place of a contestant's client.
    pub(crate) fn client(&self, number: usize, from: From) -> &'lab Place {
        match from {
            From::Pod => self.lab.place(&client(&self.contestants[number])),
            From::Outside => self.lab.place(OUTSIDE),
        }
    }

    /// The process of a contestant's proxy.
    pub(crate) fn pid(&self, number: usize) -> Option<u32> {
        self.running[number].as_ref().map(Running::pid)
    }

    /// Ends the proxies that are asked to serve no more than `services`.
    pub(crate) fn retire(&mut self, services: u32) -> Result<()> {
        for (one, running) in self.contestants.iter().zip(&mut self.running) {
            if one.most() < services
                && let Some(running) = running.take()
            {
                println!("{} is not measured with {services} Services", one.name);
                running.stop()?;
            }
        }
        Ok(())
    }

    /// Whether a contestant is measured with so many Services.
    pub(crate) fn takes_part(&self, number: usize, services: u32) -> bool {
        services <= self.contestants[number].most()
    }

    /// Waits until every proxy serves its own Service and `last`, whose endpoint is its own server.
    pub(crate) fn settle(&mut self, last: &[(usize, SocketAddrV4)]) -> Result<()> {
        /// iptables is served ten thousand Services after minutes.
        const LIMIT: std::time::Duration = std::time::Duration::from_secs(900);
        for &(number, to) in last {
            let what = format!("{} serves {to}", self.contestants[number].name);
            wait::until_within(LIMIT, &what, || {
                if let Some(running) = &mut self.running[number] {
                    running.check()?;
                }
                let tail = self.running[number].as_ref().map(Running::tail).unwrap_or_default();
                self.who(number, to).map(drop).with_context(|| format!("its log: {tail}"))
            })?;
        }
        Ok(())
    }

    /// The byte that answers a contestant's client at `to`.
    pub(crate) fn who(&self, number: usize, to: SocketAddrV4) -> std::io::Result<u8> {
        dial(self.client(number, From::Pod), to)
    }

    /// Runs a load.
    pub(crate) fn measure(
        &self,
        number: usize,
        from: From,
        load: Load,
        to: SocketAddrV4,
        spread: u32,
        seconds: f64,
    ) -> Result<Outcome> {
        let place = self.client(number, from);
        let load = clap::ValueEnum::to_possible_value(&load).context("a load without a name")?;
        let arguments = ["load", load.get_name(), &to.to_string(), &spread.to_string(), &seconds.to_string()];
        let output = this(place, &arguments)?.output()?;
        let what = format!("{} from {} to {to}", load.get_name(), place.name());
        ensure!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).context(what)
    }
}

impl Drop for Ground<'_> {
    fn drop(&mut self) {
        for server in &mut self.servers {
            // Failing means that it has ended.
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// One of the two servers at a place.
pub(crate) fn serve(place: &Place, number: usize) -> Result<Child> {
    let (port, name) = TARGETS[number];
    let arguments = ["serve", &port.to_string(), &char::from(name).to_string()];
    this(place, &arguments)?.spawn().context("starting a server")
}

/// The byte that answers a client at a place.
pub(crate) fn dial(client: &Place, to: SocketAddrV4) -> std::io::Result<u8> {
    let connection = client.connect(to.into(), Waiting::Blocking)?;
    let mut stream = connection.socket();
    let mut answer = [0; 1];
    stream.write_all(b"x")?;
    stream.read_exact(&mut answer)?;
    Ok(answer[0])
}

/// This program at a place, on the core of clients and servers.
fn this(place: &Place, arguments: &[&str]) -> Result<Command> {
    let mut command = place.command(std::env::current_exe()?)?;
    command.args(["--core", &CORE.to_string()]).args(arguments).stdin(Stdio::null());
    Ok(command)
}

/// A place's IPv4 address.
pub(crate) fn v4(place: &Place) -> Ipv4Addr {
    match place.address(Family::V4) {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}
