//! Nodes for packets: the tables of the packet plane as collections that forget on request, devices, routes, and the
//! way that a frame takes through a stack of devices with the programs on each.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashMap, HashSet},
    net::SocketAddr,
    rc::Rc,
};

use proxy_common::{
    Address, Protocol, Reason,
    datapath::{
        Endpoint, Tables,
        csum::Difference,
        flow::{Entry, Flows, Stage},
        nat::{self, Edit, Over},
        packet::{Facts, PacketEnv, PacketTables, Verdict, decide},
        parse::Bytes,
    },
    layout::{
        Affinity, AffinityKey, Backend, Connected, Device, DeviceRole, Flow, FlowKey, Fragment, FragmentKey,
        Frontend, FrontendKey, FrontendKind, HandedOver, LocalAddress, MasqueradeKey, Node as Settings,
        PacketPlane, Pods, Policy, Position, RangeKey, Service, Timeouts, Trace,
    },
};
use zerocopy::{Immutable, IntoBytes};

use crate::{
    wire::{FROM, Frame, TO, fold, seen},
    world::{World, at, ip},
};

type Table = Rc<RefCell<HashMap<(Stage, FlowKey), Flow>>>;

/// All tables of a node.
pub(crate) struct Ground {
    pub(crate) world: World,
    pub(crate) plane: PacketPlane,
    pub(crate) flows: Table,
    pub(crate) fragments: RefCell<HashMap<FragmentKey, Fragment>>,
    pub(crate) handed_over: RefCell<HashMap<FlowKey, HandedOver>>,
    pub(crate) ports: RefCell<BTreeSet<u16>>,
    pub(crate) seconds: Cell<u32>,
    /// Whether senders may be told that they are refused.
    pub(crate) refuses: Cell<bool>,
    /// What a socket of the node holds: local ends.
    pub(crate) sockets: RefCell<HashSet<(Address, u16)>>,
    /// What the sender's socket remembers of its connect().
    pub(crate) connected: Cell<Option<(Protocol, Connected)>>,
    /// What a device shows to whom, its own choice apart.
    pub(crate) masquerade: HashMap<(u32, Address), Address>,
    /// Next hops of those who are no neighbours.
    pub(crate) gateways: HashMap<Address, Address>,
}

impl Ground {
    pub(crate) fn new() -> Self {
        Self {
            world: World::new(),
            plane: PacketPlane {
                seed: 0x1234_5678_9abc_def0,
                version: PacketPlane::VERSION,
                handover: 0,
                first_port: 61_000,
                last_port: 65_000,
                more_first_port: 0,
                more_last_port: 0,
                timeouts: Timeouts::DEFAULT,
            },
            flows: Table::default(),
            fragments: RefCell::default(),
            handed_over: RefCell::default(),
            ports: RefCell::default(),
            seconds: Cell::new(1000),
            refuses: Cell::new(true),
            sockets: RefCell::default(),
            connected: Cell::default(),
            masquerade: HashMap::new(),
            gateways: HashMap::new(),
        }
    }

    /// Lose an entry.
    pub(crate) fn evict(&self, key: &FlowKey) {
        self.flows.borrow_mut().retain(|(_, found), _| found != key);
    }

    pub(crate) fn keys(&self) -> Vec<(FlowKey, Flow)> {
        let mut keys: Vec<_> = self.flows.borrow().iter().map(|((_, key), flow)| (*key, *flow)).collect();
        keys.sort_by_key(|(key, _)| {
            (key.source, key.source_port, key.destination, key.destination_port, key.position as u8)
        });
        keys
    }
}

pub(crate) struct Found {
    table: Table,
    at: (Stage, FlowKey),
    flow: Flow,
}

impl Entry for Found {
    fn flow(&self) -> Flow {
        self.flow
    }
    fn set_state(&self, client: u8, backend: u8, seen: u32) {
        if let Some(flow) = self.table.borrow_mut().get_mut(&self.at) {
            (flow.client_state, flow.backend_state, flow.seen) = (client, backend, seen);
        }
    }
}

impl Flows for Ground {
    type Entry = Found;
    fn find(&self, stage: Stage, key: &FlowKey) -> Option<Found> {
        let flow = *self.flows.borrow().get(&(stage, *key))?;
        Some(Found { table: self.flows.clone(), at: (stage, *key), flow })
    }
    fn put(&self, stage: Stage, key: &FlowKey, flow: &Flow) {
        self.flows.borrow_mut().insert((stage, *key), *flow);
    }
    fn claim(&self, stage: Stage, key: &FlowKey, flow: &Flow) -> bool {
        let mut flows = self.flows.borrow_mut();
        let free = !flows.contains_key(&(stage, *key));
        if free {
            flows.insert((stage, *key), *flow);
        }
        free
    }
    fn remove(&self, stage: Stage, key: &FlowKey) {
        self.flows.borrow_mut().remove(&(stage, *key));
    }
    /// Also of others, as the bytes: one in eight pairs of ends is told so.
    fn is_traced(&self, trace: Trace) -> bool {
        (trace.index >> 2).is_multiple_of(8)
            || self.flows.borrow().keys().any(|(_, key)| Trace::of_key(key) == trace)
    }
    fn port_seen(&self, port: u16) -> bool {
        self.ports.borrow().contains(&port)
    }
    fn note_port(&self, port: u16) {
        self.ports.borrow_mut().insert(port);
    }
}

impl PacketTables for Ground {
    fn packet_plane(&self) -> Option<&PacketPlane> {
        Some(&self.plane)
    }
    fn masquerade(&self, key: &MasqueradeKey) -> Option<Address> {
        self.masquerade.get(&(key.device, Address::from_octets(key.address))).copied()
    }
    fn handed_over(&self, key: &FlowKey) -> Option<HandedOver> {
        self.handed_over.borrow().get(key).copied()
    }
    fn set_handed_over(&self, key: &FlowKey, value: &HandedOver) {
        if let Some(found) = self.handed_over.borrow_mut().get_mut(key) {
            *found = *value;
        }
    }
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        self.fragments.borrow().get(key).copied()
    }
    fn set_fragment(&self, key: &FragmentKey, value: &Fragment) {
        self.fragments.borrow_mut().insert(*key, *value);
    }
    fn may_refuse(&self, _: u32) -> bool {
        self.refuses.get()
    }
}

impl PacketEnv for Ground {
    fn seconds(&self) -> u32 {
        self.seconds.get()
    }
    fn has_socket(&self, _: Protocol, local: &Endpoint, _: &Endpoint) -> bool {
        self.sockets.borrow().contains(&(local.address, local.port))
    }
    fn has_sender(&self) -> bool {
        self.connected.get().is_some()
    }
    fn connected(&self, protocol: Protocol) -> Option<Connected> {
        self.connected.get().filter(|(of, _)| *of == protocol).map(|(_, record)| record)
    }
    fn next_hop(&self, _: &Device, _: &Address, destination: &Address) -> Address {
        self.gateways.get(destination).copied().unwrap_or(*destination)
    }
}

impl Tables for Ground {
    fn node(&self) -> Option<Settings> {
        self.world.node()
    }
    fn port_in_use(&self, port: u16) -> bool {
        self.world.port_in_use(port)
    }
    fn address_in_use(&self, address: &Address) -> bool {
        self.world.address_in_use(address)
    }
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.world.frontend(key)
    }
    fn service(&self, index: u32) -> Option<Service> {
        self.world.service(index)
    }
    fn backend(&self, slot: u32) -> Option<Backend> {
        self.world.backend(slot)
    }
    fn local_address(&self, address: &Address) -> Option<LocalAddress> {
        self.world.local_address(address)
    }
    fn in_range(&self, key: &RangeKey) -> bool {
        self.world.in_range(key)
    }
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.world.affinity(key)
    }
    fn set_affinity(&self, key: &AffinityKey, value: &Affinity) {
        self.world.set_affinity(key, value);
    }
}

impl Edit for Frame {
    fn store<V: IntoBytes + Immutable>(&mut self, offset: u32, value: &V) -> bool {
        let value = value.as_bytes();
        let at = offset as usize;
        match self.bytes.get_mut(at..at + value.len()) {
            Some(bytes) => bytes.copy_from_slice(value),
            None => return false,
        }
        true
    }
    fn fix_header(&mut self, offset: u32, difference: Difference) -> bool {
        self.fix(offset, difference, Over { pseudo: false, zero_is_none: false })
    }
    /// Not by the difference's own way of applying itself.
    fn fix(&mut self, offset: u32, difference: Difference, over: Over) -> bool {
        let Some(field) = self.load::<[u8; 2]>(offset) else { return false };
        if over.zero_is_none && field == [0, 0] {
            return true;
        }
        let words = difference.sum().to_ne_bytes();
        let sum = u64::from(!u16::from_be_bytes(field))
            + u64::from(u16::from_be_bytes([words[0], words[1]]))
            + u64::from(u16::from_be_bytes([words[2], words[3]]));
        let checksum = !fold(sum);
        let checksum = if over.zero_is_none && checksum == 0 { 0xffff } else { checksum };
        self.store(offset, &checksum.to_be_bytes())
    }
}

/// Ours, and where a frame for nobody in particular is sent.
pub(crate) const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn mac(bytes: [u8; 6]) -> [u16; 3] {
    [0, 2, 4].map(|i| u16::from_ne_bytes([bytes[i], bytes[i + 1]]))
}

/// A device: `master` is the bridge that it is a port of.
pub(crate) struct Link {
    pub(crate) facts: Device,
    pub(crate) master: Option<&'static str>,
}

/// A node: devices, and routes by destination's prefix as text.
pub(crate) struct Node {
    pub(crate) ground: Ground,
    pub(crate) links: HashMap<&'static str, Link>,
    /// Text that the destination begins with → device. The first that fits.
    pub(crate) routes: Vec<(&'static str, &'static str)>,
    /// Bridges: text that the destination begins with → port.
    pub(crate) ports: Vec<(&'static str, &'static str)>,
    pub(crate) reasons: Vec<Reason>,
}

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Left by a device.
    Out(&'static str, Frame),
    /// Given to the node's own sockets.
    Local(Frame),
    Dropped(Reason),
    Rejected(Address),
}

impl Node {
    pub(crate) fn new() -> Self {
        Self { ground: Ground::new(), links: HashMap::new(), routes: vec![], ports: vec![], reasons: vec![] }
    }

    /// With two uplinks, eth1 towards 203.0.113.0/24, and a NodePort 30080 of both their addresses that 10.0.1.1:8080 serves.
    pub(crate) fn with_node_port(protocols: &[Protocol]) -> Self {
        let mut node = Self::new();
        node.link("eth0", Pods::None, "192.168.0.1", "");
        node.link("eth1", Pods::None, "172.16.0.1", "");
        node.routes = vec![("203.0.113.", "eth1"), ("", "eth0")];
        let world = &mut node.ground.world;
        for local in ["192.168.0.1", "172.16.0.1"] {
            world.local.insert(ip(local), LocalAddress { node_port: 1 });
        }
        for protocol in protocols {
            world.frontend(Address::ANY_V4, 30080, *protocol, FrontendKind::NodePort, 0);
        }
        world.extent(0, &[at("10.0.1.1", 8080)], &[], Policy::ANY_ENDPOINTS, 0);
        node
    }

    /// A device with these addresses to masquerade with (empty: none).
    pub(crate) fn link(&mut self, name: &'static str, pods: Pods, v4: &str, v6: &str) {
        let address = |text: &str| if text.is_empty() { [0; 16] } else { ip(text).octets() };
        let facts = Device {
            mac: mac(TO),
            bridge_mac: mac(TO),
            header: 14,
            role: DeviceRole::Single,
            pods,
            version: Device::VERSION,
            masquerade_v4: address(v4),
            masquerade_v6: address(v6),
            host: 0,
            choices: 0,
        };
        self.links.insert(name, Link { facts, master: None });
    }

    pub(crate) fn port(&mut self, name: &'static str, master: &'static str, pods: Pods) {
        self.link(name, pods, "", "");
        let link = self.links.get_mut(name).expect("just made");
        link.facts.role = DeviceRole::BridgePort;
        link.facts.mac = mac(OTHER);
        link.master = Some(master);
    }

    /// The program of one device at one position; the frame as it goes on.
    fn meet(
        &mut self,
        name: &str,
        position: Position,
        mut frame: Frame,
        mark: &mut bool,
        local: bool,
    ) -> Result<Frame, End> {
        let link = &self.links[name];
        frame = with_header(frame, usize::from(link.facts.header));
        let for_host = frame.header == 0 || frame.bytes[..6] == TO;
        let facts =
            Facts { device: &link.facts, for_host, tagged: false, translated: *mark, local_socket: local };
        let (verdict, parsed) = decide(&self.ground, &self.ground, &facts, &frame, position);
        self.reasons.push(verdict.reason());
        match verdict {
            Verdict::Pass(_) => Ok(frame),
            Verdict::Drop(reason) => Err(End::Dropped(reason)),
            Verdict::Reject { from, .. } => Err(End::Rejected(from)),
            Verdict::Rewrite { source, destination, .. } => {
                let parsed = parsed.expect("what was rewritten was read");
                assert!(nat::apply(&mut frame, &parsed, &source, &destination, position));
                *mark = true;
                seen(&frame); // All checksums hold.
                Ok(frame)
            }
        }
    }

    /// A frame arrives on a device.
    pub(crate) fn arrive(&mut self, device: &'static str, frame: Frame) -> End {
        let result = (|| {
            let mut mark = false;
            let mut frame = self.meet(device, Position::Ingress, frame, &mut mark, false)?;
            if let Some(bridge) = self.links[device].master {
                if frame.header != 0 && frame.bytes[..6] != TO {
                    // Bridged: no routing, and no program but the other port's.
                    return self.by_port(frame);
                }
                frame = self.meet(bridge, Position::Ingress, frame, &mut mark, false)?;
            }
            self.route(frame, false)
        })();
        result.unwrap_or_else(|end| end)
    }

    /// A socket of the node sends.
    pub(crate) fn send(&mut self, frame: Frame) -> End {
        self.route(frame, true).unwrap_or_else(|end| end)
    }

    fn route(&mut self, frame: Frame, local: bool) -> Result<End, End> {
        let to = seen(&frame).destination.ip();
        if !local && self.ground.world.local.contains_key(&Address::from(to)) {
            return Ok(End::Local(frame));
        }
        let device = lead(&self.routes, to);
        let mut mark = false;
        let mut frame = with_header(frame, 14);
        frame.bytes[..6].copy_from_slice(&FROM);
        let frame = self.meet(device, Position::Egress, frame, &mut mark, local)?;
        if self.links.values().any(|link| link.master == Some(device)) {
            let port = lead(&self.ports, to);
            let frame = self.meet(port, Position::Egress, frame, &mut mark, local)?;
            return Ok(End::Out(port, frame));
        }
        Ok(End::Out(device, frame))
    }

    fn by_port(&mut self, frame: Frame) -> Result<End, End> {
        let port = lead(&self.ports, seen(&frame).destination.ip());
        let frame = self.meet(port, Position::Egress, frame, &mut false, false)?;
        Ok(End::Out(port, frame))
    }

    pub(crate) fn last(&self) -> Reason {
        *self.reasons.last().expect("a program has run")
    }
}

fn lead(routes: &[(&'static str, &'static str)], to: std::net::IpAddr) -> &'static str {
    let text = to.to_string();
    routes
        .iter()
        .find(|(prefix, _)| text.starts_with(prefix))
        .unwrap_or_else(|| panic!("no route to {text}"))
        .1
}

/// The same packet behind a layer-2 header of another length.
fn with_header(frame: Frame, header: usize) -> Frame {
    if frame.header == header {
        return frame;
    }
    let packet = &frame.bytes[frame.header..];
    if header == 0 { Frame { bytes: packet.to_vec(), header } } else { crate::wire::framed(packet) }
}

/// `source > destination` of a frame.
pub(crate) fn ends(frame: &Frame) -> String {
    let seen = seen(frame);
    let text = |a: SocketAddr| if a.port() == 0 { a.ip().to_string() } else { a.to_string() };
    match &seen.quoted {
        None => format!("{} > {}", text(seen.source), text(seen.destination)),
        Some(quoted) => format!(
            "{} > {} about {} > {}",
            text(seen.source),
            text(seen.destination),
            text(quoted.source),
            text(quoted.destination)
        ),
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Out(device, frame) => write!(f, "{device}: {}", ends(frame)),
            Self::Local(frame) => write!(f, "local: {}", ends(frame)),
            Self::Dropped(reason) => write!(f, "dropped: {}", reason.name()),
            Self::Rejected(from) => write!(f, "rejected by {from}"),
        }
    }
}
