//! The dataplane in memory, for tests and dry runs: the kernel's limits, faults on request, and the rules of ADR 0003
//! held strictly. A step that the rules forbid panics, whatever programs would have made of it.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, HashSet},
    io,
    net::SocketAddr,
};

use proxy_common::{
    Address,
    datapath::Tables,
    layout::{
        Affinity, AffinityKey, Backend, Connected, Frontend, FrontendKey, LocalAddress, Node, Policy,
        RangeKey, Role, Service, ServiceName, Spot,
    },
    names::map,
};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{Applied, Dataplane, Error, Peers, within};
use crate::plan::{Actual, Capacity, Step, View};

/// When a step fails.
#[derive(Debug, Default)]
pub enum Faults {
    /// Only when a table is full.
    #[default]
    Never,
    /// Once, after this many steps more.
    After(usize),
    /// Each with a chance of one in `n`.
    OneIn {
        /// 2 or more.
        n: u32,
        /// The chance, repeatable.
        dice: Box<StdRng>,
    },
}

impl Faults {
    /// Each step fails with a chance of one in `n`, the same ones for the same `seed`.
    pub fn one_in(n: u32, seed: u64) -> Self {
        Self::OneIn { n, dice: Box::new(StdRng::seed_from_u64(seed)) }
    }

    fn now(&mut self) -> bool {
        match self {
            Self::Never => false,
            Self::After(0) => {
                *self = Self::Never;
                true
            }
            Self::After(steps) => {
                *steps -= 1;
                false
            }
            Self::OneIn { n, dice } => dice.random_ratio(1, *n),
        }
    }
}

/// Tables of one size, and what programs that run now may still hold of them.
#[derive(Clone, Debug)]
struct Generation {
    tables: Actual,
    capacity: Capacity,
    /// Extents by first slot, with their slots, that were current since the last fence.
    held: BTreeMap<u32, u32>,
    /// Services that were emptied since the last fence.
    emptied: HashSet<u32>,
}

/// The tables in memory.
#[derive(Debug)]
pub struct Memory {
    /// What steps write to.
    current: Generation,
    /// What programs read while `current` is being built beside it.
    running: Option<Generation>,
    active: bool,
    /// The settings that programs see.
    pub node: Option<Node>,
    /// Which steps fail.
    pub faults: Faults,
    /// What connected datagram sockets of the node's own remember.
    pub sockets: Vec<Connected>,
    /// Somebody takes the programs off their hooks, again and again.
    pub meddled: bool,
    affinity: RefCell<HashMap<AffinityKey, Affinity>>,
}

impl Memory {
    /// Empty tables; programs see them after [`Dataplane::activate`].
    pub fn new(capacity: Capacity) -> Self {
        Self::over(Actual::default(), capacity)
    }

    /// Tables that something was left in.
    pub fn over(tables: Actual, capacity: Capacity) -> Self {
        Self {
            current: Generation::new(tables, capacity),
            running: None,
            active: false,
            node: None,
            faults: Faults::Never,
            sockets: Vec::new(),
            meddled: false,
            affinity: RefCell::default(),
        }
    }

    /// The agent dies and another starts: an unfinished generation is gone, the rest stays.
    pub fn restart(&mut self) {
        if let Some(running) = self.running.take() {
            (self.current, self.active) = (running, true);
        }
    }

    fn seen(&self) -> View<'_> {
        static NOTHING: std::sync::LazyLock<Actual> = std::sync::LazyLock::new(Actual::default);
        let running = if self.active { Some(&self.current) } else { self.running.as_ref() };
        let node = self.node.filter(|_| running.is_some());
        View { actual: running.map_or(&NOTHING, |generation| &generation.tables), node }
    }
}

impl Dataplane for Memory {
    fn capacity(&self) -> Capacity {
        self.current.capacity
    }

    fn read(&mut self) -> Result<Actual, Error> {
        Ok(self.current.tables.clone())
    }

    fn apply(&mut self, steps: &[Step]) -> Applied {
        for run in steps.chunk_by(|a, b| is_put(a) && is_put(b)) {
            self.current.check_batch(run);
        }
        for (done, step) in steps.iter().enumerate() {
            let result = if self.faults.now() { Err(fault(step)) } else { self.current.write(step) };
            if let Err(error) = result {
                return Applied { done, error: Some(error) };
            }
        }
        Applied { done: steps.len(), error: None }
    }

    fn rebuild(&mut self, capacity: Capacity) -> Result<(), Error> {
        let attached = self.current.tables.attached.clone();
        let tables = Actual { attached, ..Actual::default() };
        let old = std::mem::replace(&mut self.current, Generation::new(tables, capacity));
        if std::mem::take(&mut self.active) {
            self.running = Some(old);
        }
        Ok(())
    }

    fn glance(&mut self) -> Result<Vec<String>, Error> {
        Ok(self.meddled.then(|| "a program was detached".to_owned()).into_iter().collect())
    }

    fn activate(&mut self) -> Result<(), Error> {
        let Actual { devices, attached, .. } = &self.current.tables;
        assert!(attached.iter().all(|index| devices.contains_key(index)), "programs without their device");
        (self.running, self.active) = (None, true);
        Ok(())
    }

    fn release(&mut self, left: Option<&Peers>, gone: &dyn Fn(&Connected) -> bool) -> Result<usize, Error> {
        let before = self.sockets.len();
        self.sockets.retain(|record| {
            let peer = SocketAddr::new(Address::from_octets(record.backend).ip(), record.backend_port);
            left.is_some_and(|left| !left.contains(&peer)) || !gone(record)
        });
        Ok(before - self.sockets.len())
    }
}

impl Tables for Memory {
    fn node(&self) -> Option<Node> {
        self.seen().node()
    }
    fn port_in_use(&self, port: u16) -> bool {
        self.seen().port_in_use(port)
    }
    fn address_in_use(&self, address: &Address) -> bool {
        self.seen().address_in_use(address)
    }
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.seen().frontend(key)
    }
    fn service(&self, index: u32) -> Option<Service> {
        self.seen().service(index)
    }
    fn backend(&self, slot: u32) -> Option<Backend> {
        self.seen().backend(slot)
    }
    fn local_address(&self, address: &Address) -> Option<LocalAddress> {
        self.seen().local_address(address)
    }
    fn in_range(&self, key: &RangeKey) -> bool {
        self.seen().in_range(key)
    }
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinity.borrow().get(key).copied()
    }
    fn set_affinity(&self, key: &AffinityKey, value: &Affinity) {
        self.affinity.borrow_mut().insert(*key, *value);
    }
}

impl Generation {
    fn new(tables: Actual, capacity: Capacity) -> Self {
        Self { tables, capacity, held: BTreeMap::new(), emptied: HashSet::new() }
    }

    /// The kernel gives the element of an overwritten entry to the next write: within a batch, before any fence.
    fn check_batch(&self, batch: &[Step]) {
        for step in batch.iter().rev().skip(1) {
            if let Step::PutFrontend { key, .. } = step {
                assert!(!self.tables.frontends.contains_key(key), "{step}: not the last of its batch");
            }
        }
    }

    fn write(&mut self, step: &Step) -> Result<(), Error> {
        let (tables, capacity) = (&mut self.tables, &self.capacity);
        match step {
            Step::WriteExtent { base, slots } => {
                within(map::BACKENDS, *base, slots.len(), capacity.backends as usize)?;
                assert!(*base > 0, "{step}: slot 0 is nobody's");
                let end = base + slots.len() as u32;
                assert!(tables.backends.range(*base..end).next().is_none(), "{step}: slots in use");
                let current = tables.services.iter().find(|(_, word)| (*base..end).contains(&word.extent));
                assert!(current.is_none(), "{step}: {current:?} is current");
                tables.backends.extend((*base..).zip(slots.iter().copied()));
            }
            Step::PointService { index, service } => {
                within(map::SERVICES, *index, 1, capacity.services as usize)?;
                let old = tables.services.get(index).map_or(0, |word| word.extent);
                if service.extent == 0 {
                    let mut led = tables.frontends.values().filter(|value| value.service == *index);
                    assert!(led.next().is_none(), "{step}: a frontend leads there");
                    self.emptied.insert(*index);
                    tables.services.remove(index);
                } else {
                    assert!(!self.emptied.contains(index), "{step}: reused before a fence");
                    assert!(is_whole(tables, *index, service.extent), "{step}: no extent of its own");
                    let policy = tables.backends.get(service.extent).map_or(0, |header| header.policy);
                    let ranges = tables.source_ranges.contains_key(index);
                    assert!(policy & Policy::SOURCE_RANGES == 0 || ranges, "{step}: takes nobody's packets");
                    tables.services.insert(*index, *service);
                }
                if old != service.extent
                    && let Some(header) = tables.backends.get(old)
                {
                    let counts = [header.cluster_only, header.both, header.local_only];
                    self.held.insert(old, 1 + counts.map(u32::from).iter().sum::<u32>());
                }
            }
            Step::NameService { index, name } => {
                within(map::NAMES, *index, 1, capacity.services as usize)?;
                tables.names.insert(*index, ServiceName::new(name).as_str().to_owned());
            }
            Step::UnnameService { index } => drop(tables.names.remove(index)),
            Step::PutFrontend { key, value } => {
                let (word, bit) = (u32::from(key.port) / 64, key.port % 64);
                let bits = tables.ports.get(&word).copied().unwrap_or(0);
                assert!(bits >> bit & 1 == 1, "{step}: its port is not in use");
                let address = key.address();
                let is_asked = address.is_unspecified() || tables.address_in_use(&address);
                assert!(is_asked, "{step}: its address is not in use");
                let word = tables.services.get(&value.service).copied().unwrap_or_default();
                assert!(word.extent != 0, "{step}: leads nowhere");
                let is_new = !tables.frontends.contains_key(key);
                room(map::FRONTENDS, tables.frontends.len(), is_new, capacity.frontends)?;
                tables.frontends.insert(*key, *value);
            }
            Step::DeleteFrontend { key } => drop(tables.frontends.remove(key)),
            Step::PutLocalAddress { key, value } => {
                let is_new = !tables.local_addresses.contains_key(key);
                room(map::LOCAL_ADDRESSES, tables.local_addresses.len(), is_new, capacity.local_addresses)?;
                tables.local_addresses.insert(*key, *value);
            }
            Step::DeleteLocalAddress { key } => drop(tables.local_addresses.remove(key)),
            Step::PutDevice { index, device } => {
                let is_new = !tables.devices.contains_key(index);
                room(map::DEVICES, tables.devices.len(), is_new, capacity.devices)?;
                tables.devices.insert(*index, *device);
            }
            Step::DeleteDevice { index } => {
                assert!(!tables.attached.contains(index), "{step}: programs are attached");
                tables.devices.remove(index);
            }
            Step::PutRange { key } => {
                let is_new = !tables.source_ranges.get(&key.owner).is_some_and(|ranges| ranges.contains(key));
                room(map::SOURCE_RANGES, tables.ranges(), is_new, capacity.source_ranges)?;
                assert!(!self.emptied.contains(&key.owner), "{step}: its owner is reused before a fence");
                tables.put_range(*key);
            }
            Step::DeleteRange { key } => tables.delete_range(key),
            Step::PutMasquerade { key, value } => {
                let is_new = !tables.masquerade.contains_key(key);
                room(map::MASQUERADE, tables.masquerade.len(), is_new, capacity.masquerade)?;
                tables.masquerade.insert(*key, *value);
            }
            Step::DeleteMasquerade { key } => drop(tables.masquerade.remove(key)),
            Step::Attach { index, .. } => {
                assert!(tables.devices.contains_key(index), "{step}: nothing is known of the device");
                tables.attached.insert(*index);
            }
            Step::Detach { index } => drop(tables.attached.remove(index)),
            Step::SetLeftLevels { levels } => tables.left_levels = *levels,
            Step::SetPorts { word, bits } => {
                within(map::PORTS, *word, 1, 1024)?;
                let mut used = tables.frontends.keys().filter(|key| u32::from(key.port) / 64 == *word);
                assert!(used.all(|key| bits >> (key.port % 64) & 1 == 1), "{step}: a port is in use");
                tables.ports.insert(*word, *bits);
                tables.ports.retain(|_, bits| *bits != 0);
            }
            Step::SetAddresses { word, bits } => {
                within(map::ADDRESSES, *word, 1, Spot::WORDS as usize)?;
                let before = tables.addresses.insert(*word, *bits).unwrap_or(0);
                tables.addresses.retain(|_, bits| *bits != 0);
                let mut used =
                    tables.frontends.keys().filter(|_| before & !bits != 0).map(FrontendKey::address);
                let is_lost =
                    |address: Address| !address.is_unspecified() && !tables.address_in_use(&address);
                assert!(!used.any(is_lost), "{step}: an address is in use");
            }
            Step::Fence => {
                self.held.clear();
                self.emptied.clear();
            }
            Step::ClearExtent { base, length } => {
                within(map::BACKENDS, *base, *length as usize, capacity.backends as usize)?;
                let slots = *base..base + length;
                let current = tables.services.iter().find(|(_, word)| slots.contains(&word.extent));
                assert!(current.is_none(), "{step}: {current:?} is current");
                let held = self
                    .held
                    .iter()
                    .find(|(held, length)| **held < slots.end && slots.start < **held + **length);
                assert!(held.is_none(), "{step}: {held:?} was current since the last fence");
                slots.for_each(|slot| tables.backends.remove(slot));
            }
        }
        Ok(())
    }
}

/// Whether there is an extent of `index` at `base`, with all its endpoints, sorted.
fn is_whole(tables: &Actual, index: u32, base: u32) -> bool {
    let Some(header) = tables.backends.get(base) else { return false };
    let runs = [header.cluster_only, header.both, header.local_only].map(u32::from);
    let mut first = base + 1;
    let mut is_run = |length: u32| {
        let run: Option<Vec<_>> = (first..first + length).map(|slot| tables.backends.get(slot)).collect();
        first += length;
        run.is_some_and(|run| {
            run.iter().all(|slot| slot.role == Role::Endpoint && slot.service == index)
                && run.is_sorted_by_key(|slot| (slot.address(), slot.port))
        })
    };
    header.role == Role::Extent && header.service == index && runs.into_iter().all(&mut is_run)
}

fn is_put(step: &Step) -> bool {
    matches!(step, Step::PutFrontend { .. })
}

fn fault(step: &Step) -> Error {
    Error::Kernel { what: step.to_string(), source: io::Error::other("a fault on request") }
}

fn room(map: &'static str, entries: usize, more: bool, capacity: u32) -> Result<(), Error> {
    if entries + usize::from(more) <= capacity as usize {
        Ok(())
    } else {
        Err(Error::Full { map, entries: capacity })
    }
}
