//! A world for the decisions on the host: tables as collections, a clock and dice that tests hold, one socket.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use proxy_common::{
    Address, Protocol,
    datapath::{Call, Endpoint, Env, Socket, Tables},
    layout::{
        Affinity, AffinityKey, Backend, Connected, Frontend, FrontendKey, FrontendKind, LocalAddress, Node,
        RangeKey, Service, SocketPlane, Spot, Unconnected,
    },
};

/// Cookie of the node's own namespace.
pub(crate) const HOST: u64 = 7;
/// Cookie of some pod's.
pub(crate) const POD: u64 = 8;

/// Tables, filled by [`World::service`] and friends.
#[derive(Default)]
pub(crate) struct World {
    pub(crate) node: Option<Node>,
    pub(crate) frontends: HashMap<FrontendKey, Frontend>,
    pub(crate) services: HashMap<u32, Service>,
    pub(crate) backends: HashMap<u32, Backend>,
    pub(crate) local: HashMap<Address, LocalAddress>,
    /// Addresses in the ranges of an owner.
    pub(crate) ranges: HashSet<(u32, Address)>,
    pub(crate) affinity: RefCell<HashMap<AffinityKey, Affinity>>,
    next: u32,
}

impl World {
    pub(crate) fn new() -> Self {
        let node = Node {
            netns_cookie: HOST,
            layout_version: 1,
            socket_plane: SocketPlane::All,
            udp_timeout_seconds: 120,
            owner: 0,
            probe_address: 0,
            probe_port: 0,
            left_levels: 0,
            guards: 0,
        };
        Self { node: Some(node), next: 1, ..Self::default() }
    }

    /// Give `service` an extent: the endpoints of the cluster set and of the local set.
    pub(crate) fn extent(
        &mut self,
        service: u32,
        cluster: &[Endpoint],
        local: &[Endpoint],
        policy: u16,
        affinity: u32,
    ) {
        let order = |e: &Endpoint| (e.address.order(), e.port);
        let mut runs: [Vec<Endpoint>; 3] = Default::default();
        for endpoint in cluster {
            runs[usize::from(local.contains(endpoint))].push(*endpoint);
        }
        runs[2].extend(local.iter().filter(|e| !cluster.contains(e)));
        runs.iter_mut().for_each(|run| run.sort_by_key(order));
        let [only, both, local_only] = [0, 1, 2].map(|i: usize| runs[i].len() as u16);
        let base = self.next;
        self.backends.insert(base, Backend::extent(service, only, both, local_only, policy));
        self.next += 1;
        for endpoint in runs.iter().flatten() {
            self.backends.insert(self.next, Backend::endpoint(service, endpoint.address, endpoint.port));
            self.next += 1;
        }
        self.services.insert(service, Service { extent: base, affinity_seconds: affinity });
    }

    /// Lead a frontend to `service`.
    pub(crate) fn frontend(
        &mut self,
        address: Address,
        port: u16,
        protocol: Protocol,
        kind: FrontendKind,
        service: u32,
    ) {
        let value = Frontend { service, kind, host_denied: 0, reserved: 0 };
        self.frontends.insert(FrontendKey::new(address, port, protocol), value);
    }
}

impl Tables for World {
    fn node(&self) -> Option<Node> {
        self.node
    }
    fn port_in_use(&self, port: u16) -> bool {
        self.frontends.keys().any(|key| key.port == port)
    }
    /// Also of others, as the bitmap: seven in eight of them are told so.
    fn address_in_use(&self, address: &Address) -> bool {
        let is_theirs = |key: &FrontendKey| !key.address().is_unspecified() && key.address() == *address;
        self.frontends.keys().any(is_theirs) || !Spot::of(address).word.is_multiple_of(8)
    }
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }
    fn service(&self, index: u32) -> Option<Service> {
        self.services.get(&index).copied()
    }
    fn backend(&self, slot: u32) -> Option<Backend> {
        self.backends.get(&slot).copied()
    }
    fn local_address(&self, address: &Address) -> Option<LocalAddress> {
        self.local.get(address).copied()
    }
    fn in_range(&self, key: &RangeKey) -> bool {
        self.ranges.contains(&(key.owner, Address::from_octets(key.address)))
    }
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinity.borrow().get(key).copied()
    }
    fn set_affinity(&self, key: &AffinityKey, value: &Affinity) {
        self.affinity.borrow_mut().insert(*key, *value);
    }
}

/// Who calls, when, and what the dice say.
pub(crate) struct Caller {
    pub(crate) netns: u64,
    pub(crate) seconds: Cell<u32>,
    pub(crate) dice: Cell<u32>,
    pub(crate) can_refuse: bool,
}

impl Caller {
    pub(crate) fn new(netns: u64) -> Self {
        Self { netns, seconds: Cell::new(1000), dice: Cell::new(1), can_refuse: true }
    }
}

impl Env for Caller {
    fn random(&self) -> u32 {
        // Marsaglia's xorshift32: repeatable dice.
        let mut x = self.dice.get();
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        self.dice.set(x);
        x
    }
    fn seconds(&self) -> u32 {
        self.seconds.get()
    }
    fn netns(&self) -> u64 {
        self.netns
    }
    fn can_refuse(&self) -> bool {
        self.can_refuse
    }
}

/// A socket's storage.
#[derive(Default)]
pub(crate) struct Storage {
    pub(crate) connected: Cell<Option<Connected>>,
    pub(crate) datagrams: Option<Box<Unconnected>>,
    pub(crate) no_memory: bool,
}

impl Socket for Storage {
    fn connected(&self) -> Option<Connected> {
        self.connected.get()
    }
    fn set_connected(&self, record: &Connected) -> bool {
        if !self.no_memory {
            self.connected.set(Some(*record));
        }
        !self.no_memory
    }
    fn forget_connected(&self) {
        self.connected.set(None);
    }
    fn unconnected(&mut self, create: bool) -> Option<&mut Unconnected> {
        if create && !self.no_memory {
            self.datagrams.get_or_insert_default();
        }
        self.datagrams.as_deref_mut()
    }
}

pub(crate) fn ip(text: &str) -> Address {
    text.parse::<IpAddr>().expect("an address").into()
}

pub(crate) fn at(address: &str, port: u16) -> Endpoint {
    Endpoint { address: ip(address), port }
}

pub(crate) fn call(address: &str, port: u16, protocol: Protocol) -> Call {
    Call { address: ip(address), port, protocol }
}

/// Endpoints without order.
pub(crate) fn set(endpoints: &[Endpoint]) -> BTreeSet<(Address, u16)> {
    endpoints.iter().map(|e| (e.address, e.port)).collect()
}
