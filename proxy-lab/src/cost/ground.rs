//! A node's loaded packet plane with Services in its tables, to which packets are given one by one.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use proxy_common::layout::{
    Device, DeviceRole, Frontend, FrontendKey, FrontendKind, LocalAddress, LocalKey, Pods, RangeKey, Service,
};
use proxy_common::{Address, Protocol};
use vipr::dataplane::Options;
use vipr::dataplane::probe::Features;
use vipr::dataplane::sys;
use vipr::plan::{Capacity, Step};

use super::packet::{ACK, Connection, Frame, NODE_PORT, PORT, SYN, TARGET, cluster_ip, endpoint, ends, tcp};
use crate::frame::{self, Met, Ran};
use crate::plane::{Endpoints, FLOOR, Plane, extent, options, set_address};
use crate::wire::{DEVICE, pod_device};
use crate::{Blackhole, Family, Lab, Topology, Wiring};

/// Which program runs.
#[derive(Clone, Copy, Debug)]
pub(super) enum Hook {
    Ingress,
    Egress,
    Empty,
}

pub(super) struct Ground {
    way: Way,
    _plane: Plane,
    lab: Lab,
}

/// The way of packets through the node.
pub(super) struct Way {
    pub(super) services: u32,
    programs: [OwnedFd; 3],
    devices: BTreeMap<String, (u32, [u8; 6])>,
    node: SocketAddr,
    /// By client: as whom the backend sees him.
    shown: BTreeMap<SocketAddr, SocketAddr>,
}

impl Ground {
    /// A node with so many Services on [`PORT`], with one endpoint each, and one more with a NodePort.
    pub(super) fn new(services: u32) -> Result<Self> {
        let topology = Topology::new(Wiring::Routed).node("a", &["a1"]).node("b", &["b1"]);
        let lab = Lab::start(&topology.blackhole(Blackhole::AtNodes))?;
        let node = lab.node("a");
        let options = Options { packet_plane: true, ..options(&node.pin_path(), node.node_cgroup()) };
        let mut plane = node.enter(|| Plane::open(&options, Features::probe()))??;
        let room = |least: u32, wanted: u32| least.max(wanted.next_power_of_two());
        plane.grow(Capacity {
            frontends: room(FLOOR.frontends, 2 * services + 64),
            services: room(FLOOR.services, services + 2),
            backends: room(FLOOR.backends, 2 * services + 64),
            ..FLOOR
        })?;
        plane.apply(&steps(services, node.address(Family::V4)))?;
        let mut devices = BTreeMap::new();
        for name in [DEVICE.to_owned(), pod_device(0)] {
            let text = node.run("ip", &["-json", "link", "show", "dev", &name])?;
            let shown: serde_json::Value = serde_json::from_str(&text)?;
            let index = u32::try_from(shown[0]["ifindex"].as_u64().context("no ifindex")?)?;
            let mac: Vec<_> = shown[0]["address"].as_str().unwrap_or_default().split(':').collect();
            let mac = mac.iter().map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
            let device = Device {
                mac: [0; 3],
                bridge_mac: [0; 3],
                header: 14,
                role: DeviceRole::Single,
                pods: Pods::InRange,
                version: Device::VERSION,
                masquerade_v4: Address::from(node.address(Family::V4)).octets(),
                masquerade_v6: Address::from(node.address(Family::V6)).octets(),
                host: 0,
                choices: 0,
            };
            plane.apply(&[Step::PutDevice { index, device }])?;
            devices.insert(name, (index, mac.try_into().ok().context("not six bytes of address")?));
        }
        node.enter(|| plane.activate())??;
        let states = plane.kernel().programs()?;
        let program = |wanted| {
            let found = states.iter().find(|(name, _)| *name == wanted);
            Ok::<_, anyhow::Error>(sys::program_by_id(found.context("not loaded")?.1.id)?)
        };
        let programs = [program("ingress")?, program("egress")?, frame::empty()?];
        let node = (node.address(Family::V4), NODE_PORT).into();
        let way = Way { services, programs, devices, node, shown: BTreeMap::new() };
        Ok(Self { way, _plane: plane, lab })
    }

    /// Do it in the node's network namespace, where the devices are.
    pub(super) fn entered<T: Send>(&mut self, f: impl FnOnce(&mut Way) -> T + Send) -> Result<T> {
        let way = &mut self.way;
        self.lab.node("a").enter(|| f(way))
    }
}

impl Way {
    /// Run a program on a frame on its way through the node.
    pub(super) fn run(&self, hook: Hook, frame: &Frame, repeat: u32) -> Result<Ran> {
        let [from, to] = [&frame.from, &frame.to].map(|name| self.devices[name]);
        let (index, mac) = if matches!(hook, Hook::Egress) { to } else { from };
        let mut bytes = frame.bytes.clone();
        bytes[..6].copy_from_slice(&mac);
        let met = Met { on: index, from: from.0 };
        let mut ran = frame::timed(self.programs[hook as usize].as_fd(), met, &bytes, repeat)?;
        ran.frame[..6].copy_from_slice(&frame.bytes[..6]);
        Ok(ran)
    }

    /// A connection's first packet and its answer; `taken` is told what each of the four runs took.
    pub(super) fn connect(&mut self, of: &Connection, taken: impl FnMut(usize, u32)) -> Result<()> {
        self.exchange(of, [SYN, SYN | ACK], taken)?;
        self.exchange(of, [ACK, ACK], |_, _| ())
    }

    /// A packet each way of a connection that stands.
    pub(super) fn talk(&mut self, of: &Connection, taken: impl FnMut(usize, u32)) -> Result<()> {
        self.exchange(of, [ACK, ACK], taken)
    }

    fn exchange(&mut self, of: &Connection, flags: [u8; 2], mut taken: impl FnMut(usize, u32)) -> Result<()> {
        let dialled = if of.dialled.ip().is_unspecified() { self.node } else { of.dialled };
        let there = Frame { from: of.device.clone(), ..tcp(&of.client, &dialled, flags[0]) };
        let there = self.through(there, &mut taken)?;
        let (source, destination) = ends(&there.bytes).context("no packet")?;
        ensure!(destination.port() == TARGET, "{} went to {destination}", of.client);
        let known = *self.shown.entry(of.client).or_insert(source);
        ensure!(known == source, "{} was seen as {known} and then as {source}", of.client);
        let back = tcp(&destination, &source, flags[1]);
        let back = Frame { from: DEVICE.to_owned(), to: of.device.clone(), ..back };
        let back = self.through(back, |leg, ns| taken(2 + leg, ns))?;
        ensure!(ends(&back.bytes) == Some((dialled, of.client)), "{} was not answered", of.client);
        Ok(())
    }

    fn through(&self, frame: Frame, mut taken: impl FnMut(usize, u32)) -> Result<Frame> {
        let came = self.run(Hook::Ingress, &frame, 1)?;
        taken(0, came.nanoseconds);
        let frame = Frame { bytes: came.frame, ..frame };
        let went = self.run(Hook::Egress, &frame, 1)?;
        taken(1, went.nanoseconds);
        Ok(Frame { bytes: went.frame, ..frame })
    }
}

fn steps(services: u32, own: IpAddr) -> Vec<Step> {
    let lead = |address: IpAddr, port, kind, service| Step::PutFrontend {
        key: FrontendKey::new(address.into(), port, Protocol::Tcp),
        value: Frontend { service, kind, host_denied: 0, reserved: 0 },
    };
    let endpoints = |count| {
        let all: Vec<_> = (0..count).map(|number| (endpoint(number), TARGET).into()).collect();
        Endpoints::everywhere(&all)
    };
    let (mut steps, mut addresses) = (Vec::new(), BTreeMap::new());
    for service in 0..=services {
        let base = 1 + 2 * service;
        // Masquerading has a few thousand ports towards one endpoint.
        let slots = extent(service, &endpoints(if service == services { 32 } else { 1 }));
        steps.push(Step::WriteExtent { base, slots });
        let word = Service { extent: base, affinity_seconds: 0 };
        steps.push(Step::PointService { index: service, service: word });
        steps.push(set_address(&mut addresses, cluster_ip(service).into()));
        steps.push(lead(cluster_ip(service).into(), PORT, FrontendKind::ClusterIp, service));
    }
    steps.push(lead(Ipv4Addr::UNSPECIFIED.into(), NODE_PORT, FrontendKind::NodePort, services));
    for port in [PORT, NODE_PORT] {
        steps.push(Step::SetPorts { word: u32::from(port) / 64, bits: 1 << (port % 64) });
    }
    let value = LocalAddress { node_port: 1 };
    steps.push(Step::PutLocalAddress { key: LocalKey::host(own.into()), value });
    let pods = Address::from(IpAddr::from([10, 244, 1, 0])).octets();
    let key = RangeKey { prefix_length: 32 + 96 + 24, owner: RangeKey::PODS, address: pods };
    steps.push(Step::PutRange { key });
    steps
}
