//! The tables of one generation, opened by their pins: one method for each write, and everything read back.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya_obj::generated::bpf_map_type;
use proxy_common::{
    datapath::parse::ETHERNET,
    layout::{
        Backend, Device, Frontend, FrontendKey, Gate, LocalAddress, LocalKey, MasqueradeAddress,
        MasqueradeKey, Node, RangeKey, Role, Service, ServiceName,
    },
    names::map,
};
use zerocopy::{FromBytes, IntoBytes, TryFromBytes};

use super::{
    Error,
    mmap::{Mapped, Slots},
    sys::{self, Map, Shape},
};
use crate::plan::{Actual, Capacity};

/// Opened tables that describe the cluster and the node.
#[derive(Debug)]
pub struct Tables {
    pub(super) frontends: Map,
    pub(super) names: Map,
    pub(super) local_addresses: Map,
    pub(super) node: Map,
    pub(super) devices: Map,
    pub(super) source_ranges: Map,
    pub(super) masquerade: Map,
    pub(super) services: Mapped<Service>,
    pub(super) backends: Slots,
    pub(super) ports: Mapped<u64>,
    pub(super) addresses: Mapped<u64>,
    gate: Mapped<Gate>,
    /// Devices that have no Ethernet header.
    bare: RefCell<BTreeSet<u32>>,
}

impl Tables {
    /// Open what is pinned at `path(name)`.
    pub fn open(path: impl Fn(&str) -> PathBuf) -> Result<Self, Error> {
        let open = |name: &'static str| {
            let path = path(name);
            Map::open(&path)
                .map_err(|source| Error::Kernel { what: format!("open the map {}", path.display()), source })
        };
        let mapped = |name: &'static str| {
            let map = open(name)?;
            Ok::<_, Error>((map, move |source| Error::Kernel {
                what: format!("map {name} into memory"),
                source,
            }))
        };
        let (services, failed) = mapped(map::SERVICES)?;
        let services = Mapped::new(&services).map_err(failed)?;
        let (backends, failed) = mapped(map::BACKENDS)?;
        let backends = Slots::new(backends).map_err(failed)?;
        let (ports, failed) = mapped(map::PORTS)?;
        let ports = Mapped::new(&ports).map_err(failed)?;
        let (addresses, failed) = mapped(map::ADDRESSES)?;
        let addresses = Mapped::new(&addresses).map_err(failed)?;
        let (gate, failed) = mapped(map::GATE)?;
        let gate = Mapped::new(&gate).map_err(failed)?;
        let devices = open(map::DEVICES)?;
        let mut bare = BTreeSet::new();
        each(&devices, map::DEVICES, |key, value| {
            if let (Ok(key), Ok(value)) = (u32::read_from_bytes(key), Device::try_read_from_bytes(value))
                && u32::from(value.header) != ETHERNET
            {
                bare.insert(key);
            }
        })?;
        Ok(Self {
            frontends: open(map::FRONTENDS)?,
            names: open(map::NAMES)?,
            local_addresses: open(map::LOCAL_ADDRESSES)?,
            node: open(map::NODE)?,
            devices,
            source_ranges: open(map::SOURCE_RANGES)?,
            masquerade: open(map::MASQUERADE)?,
            services,
            backends,
            ports,
            addresses,
            gate,
            bare: RefCell::new(bare),
        })
    }

    /// How much there is room for.
    pub fn capacity(&self) -> Capacity {
        Capacity {
            frontends: self.frontends.shape.entries,
            services: self.services.len() as u32,
            backends: self.backends.len() as u32,
            local_addresses: self.local_addresses.shape.entries,
            devices: self.devices.shape.entries,
            source_ranges: self.source_ranges.shape.entries,
            masquerade: self.masquerade.shape.entries,
        }
    }

    /// Everything that describes the cluster.
    pub fn read(&self) -> Result<Actual, Error> {
        let left_levels = self.node()?.map_or(0, |node| node.left_levels);
        let mut actual = Actual { left_levels, ..Actual::default() };
        let mut foreign = None;
        each(&self.frontends, map::FRONTENDS, |key, value| {
            match (FrontendKey::try_read_from_bytes(key), Frontend::try_read_from_bytes(value)) {
                (Ok(key), Ok(value)) => drop(actual.frontends.insert(key, value)),
                _ => foreign = Some(map::FRONTENDS),
            }
        })?;
        each(&self.names, map::NAMES, |key, value| {
            match (u32::read_from_bytes(key), ServiceName::read_from_bytes(value)) {
                (Ok(key), Ok(value)) => drop(actual.names.insert(key, value.as_str().to_owned())),
                _ => foreign = Some(map::NAMES),
            }
        })?;
        each(&self.local_addresses, map::LOCAL_ADDRESSES, |key, value| {
            match (LocalKey::read_from_bytes(key), LocalAddress::read_from_bytes(value)) {
                (Ok(key), Ok(value)) => drop(actual.local_addresses.insert(key, value)),
                _ => foreign = Some(map::LOCAL_ADDRESSES),
            }
        })?;
        each(&self.devices, map::DEVICES, |key, value| {
            match (u32::read_from_bytes(key), Device::try_read_from_bytes(value)) {
                (Ok(key), Ok(value)) => drop(actual.devices.insert(key, value)),
                _ => foreign = Some(map::DEVICES),
            }
        })?;
        each(&self.source_ranges, map::SOURCE_RANGES, |key, _| match RangeKey::read_from_bytes(key) {
            Ok(key) => actual.put_range(key),
            Err(_) => foreign = Some(map::SOURCE_RANGES),
        })?;
        each(&self.masquerade, map::MASQUERADE, |key, value| {
            match (MasqueradeKey::read_from_bytes(key), MasqueradeAddress::read_from_bytes(value)) {
                (Ok(key), Ok(value)) => drop(actual.masquerade.insert(key, value)),
                _ => foreign = Some(map::MASQUERADE),
            }
        })?;
        if let Some(name) = foreign {
            return Err(Error::Foreign {
                map: name.into(),
                why: "holds an entry that this version can't read".into(),
            });
        }
        for index in 0..self.services.len() {
            let service = self.services.get(index);
            if service != Service::default() {
                actual.services.insert(index as u32, service);
            }
        }
        for index in 0..self.backends.len() {
            match self.slot(index)? {
                Some(slot) if slot.role == Role::Free => {}
                Some(slot) => actual.backends.insert(index as u32, slot),
                None => {
                    let why = format!("holds a slot ({index}) that this version can't read");
                    return Err(Error::Foreign { map: map::BACKENDS.into(), why });
                }
            }
        }
        actual.ports = words(&self.ports);
        actual.addresses = words(&self.addresses);
        Ok(actual)
    }

    fn slot(&self, index: usize) -> Result<Option<Backend>, Error> {
        self.backends
            .get(index)
            .map_err(|source| Error::Kernel { what: "read the map backends".into(), source })
    }

    /// Write one slot of `backends`.
    pub fn set_slot(&self, index: u32, slot: &Backend) -> Result<(), Error> {
        self.backends
            .set(index as usize, slot)
            .map_err(|source| Error::Kernel { what: "write the map backends".into(), source })
    }

    /// The node's settings.
    pub fn node(&self) -> Result<Option<Node>, Error> {
        let mut bytes = [0; size_of::<Node>()];
        sys::lookup(self.node.as_fd(), &0_u32.to_ne_bytes(), &mut bytes)
            .map_err(|source| Error::Kernel { what: "read the map node".into(), source })?;
        Ok(Node::try_read_from_bytes(&bytes).ok())
    }

    /// Write the node's settings.
    pub fn set_node(&self, node: &Node) -> Result<(), Error> {
        self.gate.set_judged(node.guards & Node::UNCLAIMED != 0);
        sys::update(self.node.as_fd(), &0_u32.to_ne_bytes(), node.as_bytes(), 0)
            .map_err(|source| Error::Kernel { what: "write the map node".into(), source })
    }

    /// Write at which levels cgroups are left alone.
    pub fn set_left_levels(&self, left_levels: u32) -> Result<(), Error> {
        self.node()?.map_or(Ok(()), |node| self.set_node(&Node { left_levels, ..node }))
    }

    /// Whether there is a frontend at `key`.
    pub fn has_frontend(&self, key: &FrontendKey) -> Result<bool, Error> {
        let mut value = [0; size_of::<Frontend>()];
        sys::lookup(self.frontends.as_fd(), key.as_bytes(), &mut value)
            .map_err(|source| Error::Kernel { what: "read the map frontends".into(), source })
    }

    /// Insert one frontend, or change where it leads: what it had in the table is then free.
    pub fn put_frontend(&self, key: &FrontendKey, value: &Frontend) -> Result<(), Error> {
        sys::update(self.frontends.as_fd(), key.as_bytes(), value.as_bytes(), 0)
            .map_err(|source| full(source, map::FRONTENDS, self.frontends.shape.entries))
    }

    /// Insert many frontends with one call. Gives how many were written: where not all were, the next call says why.
    pub fn insert_frontends(&self, entries: &[(FrontendKey, Frontend)]) -> Result<usize, Error> {
        let keys: Vec<u8> = entries.iter().flat_map(|(key, _)| key.as_bytes()).copied().collect();
        let values: Vec<u8> = entries.iter().flat_map(|(_, value)| value.as_bytes()).copied().collect();
        let (count, result) = sys::update_batch(self.frontends.as_fd(), &keys, &values, entries.len() as u32);
        match result {
            Ok(()) => Ok(entries.len()),
            Err(_) if count > 0 => Ok(count as usize),
            Err(source) => Err(full(source, map::FRONTENDS, self.frontends.shape.entries)),
        }
    }

    /// Remove a frontend; one that is not there is fine.
    pub fn delete_frontend(&self, key: &FrontendKey) -> Result<(), Error> {
        sys::delete(self.frontends.as_fd(), key.as_bytes()).map(drop).map_err(|source| Error::Kernel {
            what: format!("delete a frontend at {}", key.address()),
            source,
        })
    }

    /// Write or remove a service's name.
    pub fn set_name(&self, index: u32, name: Option<&str>) -> Result<(), Error> {
        let key = index.to_ne_bytes();
        match name {
            Some(name) => sys::update(self.names.as_fd(), &key, ServiceName::new(name).as_bytes(), 0)
                .map_err(|source| full(source, map::NAMES, self.names.shape.entries)),
            None => sys::delete(self.names.as_fd(), &key).map(drop).map_err(|source| Error::Kernel {
                what: format!("delete the name of service {index}"),
                source,
            }),
        }
    }

    /// Insert, change or remove what is told of a device.
    pub fn set_device(&self, index: u32, device: Option<&Device>) -> Result<(), Error> {
        let key = index.to_ne_bytes();
        let is_bare = device.is_some_and(|device| u32::from(device.header) != ETHERNET);
        if is_bare {
            self.note_bare(index, true);
        }
        match device {
            Some(device) => sys::update(self.devices.as_fd(), &key, device.as_bytes(), 0)
                .map_err(|source| full(source, map::DEVICES, self.devices.shape.entries)),
            None => sys::delete(self.devices.as_fd(), &key)
                .map(drop)
                .map_err(|source| Error::Kernel { what: format!("delete the device {index}"), source }),
        }?;
        if !is_bare {
            self.note_bare(index, false);
        }
        Ok(())
    }

    /// Tell the first look at packets that a device has no Ethernet header, or has one, or is gone.
    fn note_bare(&self, index: u32, is_bare: bool) {
        let mut bare = self.bare.borrow_mut();
        if if is_bare { bare.insert(index) } else { bare.remove(&index) } {
            let word = Gate::device(index).0;
            let of_word = bare.iter().map(|device| Gate::device(*device)).filter(|(at, _)| *at == word);
            self.gate.set_bare(word, of_word.fold(0, |bits, (_, bit)| bits | bit));
        }
    }

    /// Insert or remove a range.
    pub fn set_range(&self, key: &RangeKey, is_there: bool) -> Result<(), Error> {
        if is_there {
            sys::update(self.source_ranges.as_fd(), key.as_bytes(), &1_u32.to_ne_bytes(), 0)
                .map_err(|source| full(source, map::SOURCE_RANGES, self.source_ranges.shape.entries))
        } else {
            sys::delete(self.source_ranges.as_fd(), key.as_bytes())
                .map(drop)
                .map_err(|source| Error::Kernel { what: "delete a range of addresses".into(), source })
        }
    }

    /// Insert, change or remove what a device masquerades with towards a range.
    pub fn set_masquerade(
        &self,
        key: &MasqueradeKey,
        value: Option<&MasqueradeAddress>,
    ) -> Result<(), Error> {
        match value {
            Some(value) => sys::update(self.masquerade.as_fd(), key.as_bytes(), value.as_bytes(), 0)
                .map_err(|source| full(source, map::MASQUERADE, self.masquerade.shape.entries)),
            None => sys::delete(self.masquerade.as_fd(), key.as_bytes())
                .map(drop)
                .map_err(|source| Error::Kernel { what: "delete an entry of masquerade".into(), source }),
        }
    }

    /// Insert, change or remove an address of the node.
    pub fn set_local_address(&self, key: &LocalKey, value: Option<&LocalAddress>) -> Result<(), Error> {
        match value {
            Some(value) => sys::update(self.local_addresses.as_fd(), key.as_bytes(), value.as_bytes(), 0)
                .map_err(|source| full(source, map::LOCAL_ADDRESSES, self.local_addresses.shape.entries)),
            None => sys::delete(self.local_addresses.as_fd(), key.as_bytes())
                .map(drop)
                .map_err(|source| Error::Kernel { what: "delete a local address".into(), source }),
        }
    }
}

/// The one-slot array of maps whose update waits for running programs.
#[derive(Debug)]
pub struct Fence {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl Fence {
    /// The fence pinned at `path`; made there if it is not. It is no part of the object: no program looks at it.
    pub fn open(shape: Shape, path: &Path) -> Result<Self, Error> {
        let failed = |what: &str| {
            let what = format!("{what} {}", path.display());
            move |source| Error::Kernel { what, source }
        };
        let inner =
            Shape { kind: bpf_map_type::BPF_MAP_TYPE_ARRAY as u32, key: 4, value: 4, entries: 1, flags: 0 };
        let inner = sys::map_create(&inner, "fence_slot", None).map_err(failed("create the inner map of"))?;
        let outer = match sys::object_get(path) {
            Ok(outer) => outer,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let outer = sys::map_create(&shape, map::FENCE, Some(inner.as_fd()))
                    .map_err(failed("create the map"))?;
                sys::object_pin(outer.as_fd(), path).map_err(failed("pin the map"))?;
                outer
            }
            Err(source) => return Err(failed("open the map")(source)),
        };
        Ok(Self { outer, inner })
    }

    /// Return when every program that is running now has ended (kernel: `maybe_wait_bpf_programs`).
    pub fn wait(&self) -> Result<(), Error> {
        sys::update(self.outer.as_fd(), &0_u32.to_ne_bytes(), &self.inner.as_raw_fd().to_ne_bytes(), 0)
            .map_err(|source| Error::Kernel { what: "pass the fence".into(), source })
    }
}

/// The words of a bitmap that are not zero.
fn words(bitmap: &Mapped<u64>) -> BTreeMap<u32, u64> {
    let all = (0..bitmap.len()).map(|index| (index as u32, bitmap.get(index)));
    all.filter(|(_, word)| *word != 0).collect()
}

/// Every entry of a map.
fn each(map: &Map, name: &str, visit: impl FnMut(&[u8], &[u8])) -> Result<(), Error> {
    map.each(visit).map_err(|source| Error::Kernel { what: format!("read the map {name}"), source })
}

fn full(source: io::Error, map: &'static str, entries: u32) -> Error {
    match source.raw_os_error() {
        Some(libc::E2BIG | libc::ENOSPC) => Error::Full { map, entries },
        _ => Error::Kernel { what: format!("write the map {map}"), source },
    }
}
