//! vipr's real dataplane, driven by hand: tests of tables and programs need neither agent nor API server.
//!
//! The thread that opens or activates a plane stands in the node's network namespace ([`crate::Place::enter`]).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, bail};
use proxy_common::layout::{
    Backend, Frontend, FrontendKey, FrontendKind, LocalAddress, LocalKey, Policy, Role, Service, SocketPlane,
    Spot, Timeouts,
};
use proxy_common::names::floor;
use proxy_common::{Address, Protocol, Reason};
use vipr::dataplane::probe::Features;
use vipr::dataplane::{Dataplane, Kernel, Options, counters};
use vipr::plan::{Actual, Capacity, Step};

/// The least that tables have room for.
pub const FLOOR: Capacity = Capacity {
    frontends: floor::FRONTENDS,
    services: floor::SERVICES,
    backends: floor::BACKENDS,
    local_addresses: floor::LOCAL_ADDRESSES,
    devices: floor::DEVICES,
    source_ranges: floor::SOURCE_RANGES,
    masquerade: floor::MASQUERADE,
};

/// A loaded dataplane, and which slots of it are taken.
pub struct Plane {
    kernel: Kernel,
    options: Options,
    /// Service → first slot and length of its current extent.
    extents: BTreeMap<u32, (u32, u32)>,
    /// The words of the bitmap of ports.
    ports: BTreeMap<u32, u64>,
    /// The words of the bitmap of addresses.
    addresses: BTreeMap<u32, u64>,
}

/// What a service leads to.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    /// The cluster set.
    pub cluster: Vec<SocketAddr>,
    /// The local set.
    pub local: Vec<SocketAddr>,
    /// Bits of [`Policy`].
    pub policy: u16,
    /// 0: no affinity.
    pub affinity_seconds: u32,
}

impl Endpoints {
    /// The same endpoints for everybody.
    pub fn everywhere(cluster: &[SocketAddr]) -> Self {
        let policy = if cluster.is_empty() { 0 } else { Policy::ANY_ENDPOINTS };
        Self { cluster: cluster.to_vec(), policy, ..Self::default() }
    }
}

/// Options of a plane that serves all sockets below `cgroup`.
pub fn options(pin_path: &Path, cgroup: &Path) -> Options {
    Options {
        pin_path: pin_path.to_path_buf(),
        cgroup: cgroup.to_path_buf(),
        socket_plane: SocketPlane::All,
        udp_timeout_seconds: 120,
        guards: 0,
        timeouts: Timeouts::DEFAULT,
        packet_plane: false,
        flow_keys: floor::FLOWS,
        masquerade_mark: 0,
        localnet: false,
        log_level: 0,
    }
}

impl Plane {
    /// Load the programs over what is pinned, or over new tables, with at least [`FLOOR`]. Nothing is attached.
    ///
    /// # Errors
    /// The object does not load on this kernel.
    pub fn open(options: &Options, features: Features) -> Result<Self> {
        let mut kernel = Kernel::open_with(options, &FLOOR, features)?;
        let actual = kernel.read()?;
        let services = actual.services.iter();
        let extents = services.filter_map(|(index, service)| Some((*index, current(&actual, service)?)));
        Ok(Self {
            extents: extents.collect(),
            ports: actual.ports.clone(),
            addresses: actual.addresses.clone(),
            kernel,
            options: options.clone(),
        })
    }

    /// The dataplane itself.
    pub fn kernel(&mut self) -> &mut Kernel {
        &mut self.kernel
    }

    /// What the tables say.
    ///
    /// # Errors
    /// As [`Dataplane::read`].
    pub fn read(&mut self) -> Result<Actual> {
        Ok(self.kernel.read()?)
    }

    /// Attach, or swap in for what is attached.
    ///
    /// # Errors
    /// As [`Dataplane::activate`].
    pub fn activate(&mut self) -> Result<()> {
        self.kernel.activate()?;
        // As the agent does a second later: until then every packet takes the longer way.
        self.kernel.glance()?;
        Ok(())
    }

    /// A larger generation with the same contents; running programs keep the old one until [`Self::activate`].
    ///
    /// # Errors
    /// As [`Dataplane::rebuild`].
    pub fn grow(&mut self, capacity: Capacity) -> Result<()> {
        let contents = contents(&self.kernel.read()?);
        self.kernel.rebuild(capacity)?;
        self.apply(&contents)
    }

    /// Carry steps out.
    ///
    /// # Errors
    /// The first that failed.
    pub fn apply(&mut self, steps: &[Step]) -> Result<()> {
        let applied = self.kernel.apply(steps);
        match applied.error {
            Some(error) => {
                Err(error).with_context(|| format!("step {}: {}", applied.done, steps[applied.done]))
            }
            None => Ok(()),
        }
    }

    /// Let `to` lead to `service`; a NodePort is dialled at the wildcard of its family.
    ///
    /// # Errors
    /// The table is full.
    pub fn frontend(
        &mut self,
        to: SocketAddr,
        protocol: Protocol,
        kind: FrontendKind,
        service: u32,
    ) -> Result<()> {
        let key = FrontendKey::new(to.ip().into(), to.port(), protocol);
        let value = Frontend { service, kind, host_denied: 0, reserved: 0 };
        let word = u32::from(to.port()) / 64;
        let bits = self.ports.get(&word).copied().unwrap_or(0) | 1 << (to.port() % 64);
        self.ports.insert(word, bits);
        let ports = Step::SetPorts { word, bits };
        let addresses = set_address(&mut self.addresses, to.ip());
        self.apply(&[ports, addresses, Step::PutFrontend { key, value }])
    }

    /// Serve NodePorts, or not, on an address of the node.
    ///
    /// # Errors
    /// The table is full.
    pub fn local_address(&mut self, address: impl Into<Address>, node_port: bool) -> Result<()> {
        let value = LocalAddress { node_port: node_port.into() };
        self.apply(&[Step::PutLocalAddress { key: LocalKey::host(address.into()), value }])
    }

    /// Replace the endpoints of `service` as the agent does: written aside, pointed at, and what was before is free
    /// again after a fence.
    ///
    /// # Errors
    /// The table is full.
    pub fn endpoints(&mut self, service: u32, endpoints: &Endpoints) -> Result<()> {
        let slots = extent(service, endpoints);
        let length = u32::try_from(slots.len())?;
        let base = self.free(length)?;
        let word = Service { extent: base, affinity_seconds: endpoints.affinity_seconds };
        let mut steps =
            vec![Step::WriteExtent { base, slots }, Step::PointService { index: service, service: word }];
        if let Some((base, length)) = self.extents.insert(service, (base, length)) {
            steps.extend([Step::Fence, Step::ClearExtent { base, length }]);
        }
        self.apply(&steps)
    }

    /// How often each outcome came so far.
    ///
    /// # Errors
    /// The counters are not pinned.
    pub fn counts(&self) -> Result<Vec<(Reason, u64)>> {
        Ok(counters(&self.options.pin_path)?)
    }

    /// The first slots that no extent has.
    fn free(&self, length: u32) -> Result<u32> {
        let mut taken: Vec<_> = self.extents.values().copied().collect();
        taken.sort_unstable();
        let mut base = 1;
        for (first, count) in taken {
            if base + length <= first {
                return Ok(base);
            }
            base = first + count;
        }
        if base + length > self.kernel.capacity().backends {
            bail!("no {length} slots are free");
        }
        Ok(base)
    }
}

/// The slots of an extent: header, then the three runs, each in order.
pub fn extent(service: u32, endpoints: &Endpoints) -> Box<[Backend]> {
    let Endpoints { cluster, local, policy, .. } = endpoints;
    let order = |endpoint: &SocketAddr| (Address::from(endpoint.ip()).order(), endpoint.port());
    let run = |of: &[SocketAddr], also: &[SocketAddr], both: bool| {
        let mut run: Vec<_> = of.iter().copied().filter(|one| also.contains(one) == both).collect();
        run.sort_by_key(order);
        run
    };
    let runs = [run(cluster, local, false), run(cluster, local, true), run(local, cluster, false)];
    let [only, both, local_only] =
        [0, 1, 2].map(|number: usize| u16::try_from(runs[number].len()).unwrap_or(u16::MAX));
    let slots = runs.iter().flatten().map(|one| Backend::endpoint(service, one.ip().into(), one.port()));
    [Backend::extent(service, only, both, local_only, *policy)].into_iter().chain(slots).collect()
}

/// First slot and length of the extent that a service's word points at.
fn current(actual: &Actual, service: &Service) -> Option<(u32, u32)> {
    let header = actual.backends.get(service.extent).filter(|slot| slot.role == Role::Extent)?;
    let endpoints = [header.cluster_only, header.both, header.local_only];
    Some((service.extent, 1 + endpoints.into_iter().map(u32::from).sum::<u32>()))
}

/// The step that brings an address into use, beside those that are.
pub fn set_address(words: &mut BTreeMap<u32, u64>, address: IpAddr) -> Step {
    let Spot { word, bits } = Spot::of(&address.into());
    let set = words.entry(word).or_default();
    *set |= bits;
    Step::SetAddresses { word, bits: *set }
}

/// The steps that make empty tables equal to these.
fn contents(actual: &Actual) -> Vec<Step> {
    let mut steps = Vec::new();
    for (index, service) in &actual.services {
        if let Some((base, length)) = current(actual, service) {
            let slots = actual.backends.range(base..base + length).map(|(_, slot)| *slot).collect();
            steps.push(Step::WriteExtent { base, slots });
        }
        steps.push(Step::PointService { index: *index, service: *service });
    }
    steps.extend(actual.frontends.iter().map(|(key, value)| Step::PutFrontend { key: *key, value: *value }));
    let local = actual.local_addresses.iter();
    steps.extend(local.map(|(key, value)| Step::PutLocalAddress { key: *key, value: *value }));
    steps.extend(actual.ports.iter().map(|(word, bits)| Step::SetPorts { word: *word, bits: *bits }));
    let addresses = actual.addresses.iter();
    steps.extend(addresses.map(|(word, bits)| Step::SetAddresses { word: *word, bits: *bits }));
    steps
}
