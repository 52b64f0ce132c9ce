//! The first packet of a new connection on tables that were read: the decisions of `proxy_common::datapath`, before routing
//! and after it, with flows that nobody else sees.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    rc::Rc,
};

use proxy_common::{
    Address, Protocol, Reason,
    datapath::{
        Endpoint, Tables,
        flow::{Entry, Flows, Stage},
        packet::{Facts, PacketEnv, PacketTables, Verdict, decide},
        parse::Bytes,
    },
    layout::{
        Affinity, AffinityKey, Backend, Connected, Device, DeviceRole, Flow, FlowKey, Fragment, FragmentKey,
        Frontend, FrontendKey, HandedOver, LocalAddress, MasqueradeKey, Node, PacketPlane, Position,
        RangeKey, Service, Trace,
    },
};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::Actual;

/// Who dials what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Who sends it.
    pub from: Endpoint,
    /// Where; of the same family.
    pub to: Endpoint,
    /// TCP (a SYN), UDP or SCTP (an INIT).
    pub protocol: Protocol,
}

/// What becomes of it on the way through the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It goes on as it was.
    Passed(Reason),
    /// It ends here, silently.
    Dropped(Reason),
    /// It ends here, and its sender is told.
    Rejected(Reason),
    /// It goes to a backend.
    Sent {
        /// Which one.
        backend: Endpoint,
        /// Who the backend sees: the client, or the node that stands for it.
        source: Endpoint,
        /// Whether that is the node.
        masqueraded: bool,
        /// What was decided where it came in.
        reason: Reason,
    },
}

type Table = Rc<RefCell<HashMap<(Stage, FlowKey), Flow>>>;

/// Tables to decide about a packet on. Flows begin empty.
#[derive(Debug)]
pub struct Packets<'a, T> {
    /// What sockets are decided on.
    tables: &'a T,
    actual: &'a Actual,
    plane: PacketPlane,
    /// Seconds of the monotonic clock.
    now: u32,
    flows: Table,
    ports: RefCell<BTreeSet<u16>>,
}

impl<'a, T: Tables> Packets<'a, T> {
    /// `tables` are those of `actual`; at `now`, seconds of the monotonic clock.
    pub fn new(tables: &'a T, actual: &'a Actual, plane: PacketPlane, now: u32) -> Self {
        Self { tables, actual, plane, now, flows: Table::default(), ports: RefCell::default() }
    }

    /// It comes in by one device, and what is not for the node itself leaves by another.
    pub fn arrive(&self, opening: &Opening, by: &Device, leaves_by: &Device) -> Passage {
        let met = match self.meet(opening, by, Position::Ingress, false) {
            Verdict::Pass(reason) => return Passage::Passed(reason),
            Verdict::Drop(reason) => return Passage::Dropped(reason),
            Verdict::Reject { reason, .. } => return Passage::Rejected(reason),
            Verdict::Rewrite { source, destination, reason } => (source, destination, reason),
        };
        let (source, backend, reason) = met;
        let sent = Passage::Sent { backend, source, masqueraded: false, reason };
        if self.tables.local_address(&backend.address).is_some() {
            return sent;
        }
        let routed = Opening { from: source, to: backend, ..*opening };
        match self.meet(&routed, leaves_by, Position::Egress, false) {
            Verdict::Pass(_) => sent,
            Verdict::Drop(reason) => Passage::Dropped(reason),
            Verdict::Reject { reason, .. } => Passage::Rejected(reason),
            Verdict::Rewrite { source, .. } => Passage::Sent { backend, source, masqueraded: true, reason },
        }
    }

    /// A socket of the node's own sends it: nothing is met before the device that it leaves by.
    pub fn leave(&self, opening: &Opening, by: &Device) -> Passage {
        match self.meet(opening, by, Position::Egress, true) {
            Verdict::Pass(reason) | Verdict::Rewrite { reason, .. } => Passage::Passed(reason),
            Verdict::Drop(reason) => Passage::Dropped(reason),
            Verdict::Reject { reason, .. } => Passage::Rejected(reason),
        }
    }

    fn meet(&self, opening: &Opening, device: &Device, position: Position, local_socket: bool) -> Verdict {
        // The kernel takes it for this host's, whatever link layer brings it.
        let device = Device { header: 0, role: DeviceRole::Single, ..*device };
        let facts = Facts { device: &device, for_host: true, tagged: false, translated: false, local_socket };
        decide(self, self, &facts, &packet(opening), position).0
    }
}

/// The bytes: a packet without a link layer, as far as it is read.
struct Packet(Vec<u8>);

fn packet(opening: &Opening) -> Packet {
    const TRANSPORT: u8 = 20;
    let Opening { from, to, protocol } = opening;
    let mut bytes = Vec::new();
    let number = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    };
    let (source, destination) = (from.address.octets(), to.address.octets());
    if to.address.is_v4() {
        bytes.extend([0x45, 0, 0, 20 + TRANSPORT, 0, 0, 0, 0, 64, number, 0, 0]);
        bytes.extend(&source[12..]);
        bytes.extend(&destination[12..]);
    } else {
        bytes.extend([0x60, 0, 0, 0, 0, TRANSPORT, number, 64]);
        bytes.extend(source);
        bytes.extend(destination);
    }
    bytes.extend(from.port.to_be_bytes());
    bytes.extend(to.port.to_be_bytes());
    // TCP: the header's length and SYN; SCTP: INIT; UDP: its length is not read.
    let rest = match protocol {
        Protocol::Tcp => [0, 0, 0, 0, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0],
        Protocol::Udp => [0, TRANSPORT, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        Protocol::Sctp => [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 8, 0, 0, 0, 0],
    };
    bytes.extend(rest);
    Packet(bytes)
}

impl Bytes for Packet {
    fn length(&self) -> u32 {
        self.0.len() as u32
    }
    fn load<V: FromBytes + Immutable + KnownLayout + Copy>(&self, offset: u32) -> Option<V> {
        V::read_from_prefix(self.0.get(offset as usize..)?).ok().map(|(value, _)| value)
    }
}

/// An entry that was found.
#[derive(Debug)]
pub struct Found {
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

impl<T> Flows for Packets<'_, T> {
    type Entry = Found;
    fn find(&self, stage: Stage, key: &FlowKey) -> Option<Found> {
        let at = (stage, *key);
        let flow = *self.flows.borrow().get(&at)?;
        Some(Found { table: self.flows.clone(), at, flow })
    }
    fn put(&self, stage: Stage, key: &FlowKey, flow: &Flow) {
        self.flows.borrow_mut().insert((stage, *key), *flow);
    }
    fn claim(&self, stage: Stage, key: &FlowKey, flow: &Flow) -> bool {
        let mut flows = self.flows.borrow_mut();
        let free = !flows.contains_key(&(stage, *key));
        flows.entry((stage, *key)).or_insert(*flow);
        free
    }
    fn remove(&self, stage: Stage, key: &FlowKey) {
        self.flows.borrow_mut().remove(&(stage, *key));
    }
    fn is_traced(&self, trace: Trace) -> bool {
        self.flows.borrow().keys().any(|(_, key)| Trace::of_key(key) == trace)
    }
    fn port_seen(&self, port: u16) -> bool {
        self.ports.borrow().contains(&port)
    }
    fn note_port(&self, port: u16) {
        self.ports.borrow_mut().insert(port);
    }
}

impl<T: Tables> PacketTables for Packets<'_, T> {
    fn packet_plane(&self) -> Option<&PacketPlane> {
        Some(&self.plane)
    }
    fn masquerade(&self, key: &MasqueradeKey) -> Option<Address> {
        let covers = |range: &&MasqueradeKey| {
            range.device == key.device && is_within(&key.address, &range.address, range.prefix_length)
        };
        let all = self.actual.masquerade.keys().filter(covers);
        let longest = all.max_by_key(|range| range.prefix_length)?;
        Some(Address::from_octets(self.actual.masquerade[longest].address))
    }
    /// Who dials anew is not handed over.
    fn handed_over(&self, _: &FlowKey) -> Option<HandedOver> {
        None
    }
    fn set_handed_over(&self, _: &FlowKey, _: &HandedOver) {}
    fn fragment(&self, _: &FragmentKey) -> Option<Fragment> {
        None
    }
    fn set_fragment(&self, _: &FragmentKey, _: &Fragment) {}
    fn may_refuse(&self, _: u32) -> bool {
        true
    }
}

impl<T> PacketEnv for Packets<'_, T> {
    fn seconds(&self) -> u32 {
        self.now
    }
    fn has_socket(&self, _: Protocol, _: &Endpoint, _: &Endpoint) -> bool {
        false
    }
    fn has_sender(&self) -> bool {
        false
    }
    /// Who dials anew has been sent nowhere yet.
    fn connected(&self, _: Protocol) -> Option<Connected> {
        None
    }
    /// Routes are not asked here: as if all were neighbours.
    fn next_hop(&self, _: &Device, _: &Address, destination: &Address) -> Address {
        *destination
    }
}

/// Whether an address is in a range whose length counts 32 bits before it.
fn is_within(address: &[u8; 16], range: &[u8; 16], prefix_length: u32) -> bool {
    let length = prefix_length.saturating_sub(32);
    let mask = u128::MAX.checked_shl(128_u32.saturating_sub(length)).unwrap_or(0);
    u128::from_be_bytes(*address) & mask == u128::from_be_bytes(*range) & mask
}

impl<T: Tables> Tables for Packets<'_, T> {
    fn node(&self) -> Option<Node> {
        self.tables.node()
    }
    fn port_in_use(&self, port: u16) -> bool {
        self.tables.port_in_use(port)
    }
    fn address_in_use(&self, address: &Address) -> bool {
        self.tables.address_in_use(address)
    }
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.tables.frontend(key)
    }
    fn service(&self, index: u32) -> Option<Service> {
        self.tables.service(index)
    }
    fn backend(&self, slot: u32) -> Option<Backend> {
        self.tables.backend(slot)
    }
    fn local_address(&self, address: &Address) -> Option<LocalAddress> {
        self.tables.local_address(address)
    }
    fn in_range(&self, key: &RangeKey) -> bool {
        self.tables.in_range(key)
    }
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.tables.affinity(key)
    }
    /// A question leaves nothing behind.
    fn set_affinity(&self, _: &AffinityKey, _: &Affinity) {}
}
