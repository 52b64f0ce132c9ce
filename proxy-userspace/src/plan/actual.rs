//! What the tables say, in the tables' own words: read back from the maps, or kept along with what was written.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proxy_common::{
    Address,
    datapath::Endpoint,
    layout::{
        Device, Frontend, FrontendKey, LocalAddress, LocalKey, MasqueradeAddress, MasqueradeKey, RangeKey,
        Role, Service, Spot,
    },
};

use super::Backends;
use crate::model::Serving;

/// The contents of all tables that describe the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    /// `frontends`.
    pub frontends: HashMap<FrontendKey, Frontend>,
    /// `services`, those that are not zero, by index.
    pub services: BTreeMap<u32, Service>,
    /// `backends`, the slots that are not free, by index.
    pub backends: Backends,
    /// `names`, by service index.
    pub names: BTreeMap<u32, String>,
    /// `local_addresses`.
    pub local_addresses: BTreeMap<LocalKey, LocalAddress>,
    /// `ports`, the words that are not zero.
    pub ports: BTreeMap<u32, u64>,
    /// `addresses`, the words that are not zero.
    pub addresses: BTreeMap<u32, u64>,
    /// `devices`, by ifindex.
    pub devices: BTreeMap<u32, Device>,
    /// `masquerade`.
    pub masquerade: BTreeMap<MasqueradeKey, MasqueradeAddress>,
    /// `source_ranges`, by owner; no owner without any.
    pub source_ranges: BTreeMap<u32, BTreeSet<RangeKey>>,
    /// `node.left_levels`: the levels of the cgroups among the `source_ranges`.
    pub left_levels: u32,
    /// The devices that programs are attached to, by ifindex. No table, and kept when tables are built anew.
    pub attached: BTreeSet<u32>,
}

/// How many entries the tables have room for, or need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Entries of `frontends`.
    pub frontends: u32,
    /// Entries of `services` and `names`; index 0 is usable.
    pub services: u32,
    /// Slots of `backends`; slot 0 is not usable.
    pub backends: u32,
    /// Entries of `local_addresses`.
    pub local_addresses: u32,
    /// Entries of `devices`.
    pub devices: u32,
    /// Entries of `source_ranges`.
    pub source_ranges: u32,
    /// Entries of `masquerade`.
    pub masquerade: u32,
}

impl Capacity {
    /// Nothing is needed beyond the tables' floors.
    pub const NONE: Self = Self {
        frontends: 0,
        services: 0,
        backends: 0,
        local_addresses: 0,
        devices: 0,
        source_ranges: 0,
        masquerade: 0,
    };
}

impl Actual {
    /// Whether `addresses` says that a frontend may have this one.
    pub fn address_in_use(&self, address: &Address) -> bool {
        let spot = Spot::of(address);
        spot.is_in(self.addresses.get(&spot.word).copied().unwrap_or(0))
    }

    /// How many entries differ.
    pub fn differences(&self, other: &Self) -> usize {
        let (mine, theirs) = (self, other);
        count(mine.frontends.iter(), |key| theirs.frontends.get(*key), theirs.frontends.len())
            + count(mine.services.iter(), |key| theirs.services.get(*key), theirs.services.len())
            + count(mine.backends.iter(), |key| theirs.backends.get(*key), theirs.backends.len())
            + count(mine.names.iter(), |key| theirs.names.get(*key), theirs.names.len())
            + count(
                mine.local_addresses.iter(),
                |key| theirs.local_addresses.get(*key),
                theirs.local_addresses.len(),
            )
            + count(mine.ports.iter(), |key| theirs.ports.get(*key), theirs.ports.len())
            + count(mine.addresses.iter(), |key| theirs.addresses.get(*key), theirs.addresses.len())
            + count(mine.devices.iter(), |key| theirs.devices.get(*key), theirs.devices.len())
            + count(mine.masquerade.iter(), |key| theirs.masquerade.get(*key), theirs.masquerade.len())
            + count(
                mine.source_ranges.iter(),
                |key| theirs.source_ranges.get(*key),
                theirs.source_ranges.len(),
            )
            + usize::from(mine.left_levels != theirs.left_levels)
            + mine.attached.symmetric_difference(&theirs.attached).count()
    }

    /// Take a range in.
    pub fn put_range(&mut self, key: RangeKey) {
        self.source_ranges.entry(key.owner).or_default().insert(key);
    }

    /// Take a range out.
    pub fn delete_range(&mut self, key: &RangeKey) {
        if let Some(ranges) = self.source_ranges.get_mut(&key.owner) {
            ranges.remove(key);
            if ranges.is_empty() {
                self.source_ranges.remove(&key.owner);
            }
        }
    }

    /// How many entries `source_ranges` has.
    pub fn ranges(&self) -> usize {
        self.source_ranges.values().map(BTreeSet::len).sum()
    }

    /// What the service of this index serves; `None`: it has no extent of its own. Its source ranges are not told.
    pub fn serving(&self, index: u32) -> Option<Serving> {
        let word = self.services.get(&index)?;
        let header = self.backends.get(word.extent)?;
        if header.role != Role::Extent || header.service != index {
            return None;
        }
        let mut slot = word.extent;
        let mut run = |length: u16| -> Option<Vec<Endpoint>> {
            let next = || {
                slot += 1;
                let backend = self.backends.get(slot)?;
                let is_ours = backend.role == Role::Endpoint && backend.service == index;
                is_ours.then(|| Endpoint { address: backend.address(), port: backend.port })
            };
            std::iter::repeat_with(next).take(length.into()).collect()
        };
        Some(Serving {
            cluster_only: run(header.cluster_only)?,
            both: run(header.both)?,
            local_only: run(header.local_only)?,
            policy: header.policy,
            affinity_seconds: word.affinity_seconds,
            ..Serving::default()
        })
    }

    /// What is used.
    pub fn used(&self) -> Capacity {
        Capacity {
            frontends: self.frontends.len() as u32,
            services: self.names.len() as u32,
            backends: self.backends.len() as u32,
            local_addresses: self.local_addresses.len() as u32,
            devices: self.devices.len() as u32,
            source_ranges: self.ranges() as u32,
            masquerade: self.masquerade.len() as u32,
        }
    }
}

/// Entries that only one side has, or that differ.
fn count<'a, K, V: PartialEq + 'a>(
    mine: impl Iterator<Item = (K, &'a V)>,
    theirs: impl Fn(&K) -> Option<&'a V>,
    their_number: usize,
) -> usize {
    let (mut shared, mut differ) = (0, 0);
    for (key, value) in mine {
        match theirs(&key) {
            Some(other) => {
                shared += 1;
                differ += usize::from(other != value);
            }
            None => differ += 1,
        }
    }
    differ + their_number - shared
}
