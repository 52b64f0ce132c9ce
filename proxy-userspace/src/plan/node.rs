//! What the packet plane is told of the node: its devices, where its programs are attached, and the ranges of addresses
//! that decide about a packet by its source.
//!
//! Programs are attached to a device once it has its entry, and it has one until they are detached. What it masquerades with
//! is there before the device says that it is to be looked for. A service's ranges
//! are whole before its extent says that they count, and go when none does any more.

use std::collections::BTreeSet;

use proxy_common::{
    Address,
    layout::{Device, MasqueradeAddress, MasqueradeKey, Policy, RangeKey},
};

use super::{Actual, Step};
use crate::model::{Cidr, Desired, Serving};

/// What differs.
#[derive(Debug, Default)]
pub(super) struct NodeDiff {
    /// Ranges of pods that come and go.
    pods: Difference,
    /// With what devices masquerade.
    masquerade: Vec<(MasqueradeKey, MasqueradeAddress)>,
    unmasquerade: Vec<MasqueradeKey>,
    /// Cgroups that are left alone.
    groups: Difference,
    /// Their levels, if they differ.
    levels: Option<u32>,
    /// Those of ClusterIPs, and what covers the others.
    services: [Difference; 2],
    put: Vec<(u32, Device)>,
    deleted: Vec<u32>,
    attach: Vec<(u32, String)>,
    detach: Vec<u32>,
}

impl NodeDiff {
    pub(super) fn new(actual: &Actual, desired: &Desired) -> Self {
        let (now, then) = (&actual.devices, &desired.devices);
        let differs = then.iter().filter(|(index, to)| now.get(index) != Some(&to.device));
        let gone = |indexes: &mut dyn Iterator<Item = &u32>| {
            indexes.copied().filter(|index| !then.contains_key(index)).collect()
        };
        let groups = desired.left_pods.values().flatten();
        let levels = groups.clone().fold(0, |levels, group| levels | group.levels);
        let groups: Vec<_> = groups.map(|group| group_range(group.id)).collect();
        let bare = then.iter().filter(|(index, _)| !actual.attached.contains(index));
        Self {
            pods: Difference::of(actual, RangeKey::PODS, &desired.pod_ranges),
            masquerade: entries(desired.masquerade.iter(), |key| actual.masquerade.get(key)),
            unmasquerade: missing(actual.masquerade.keys(), |key| desired.masquerade.contains_key(key)),
            groups: Difference::of(actual, RangeKey::GROUPS, &groups),
            levels: (levels != actual.left_levels).then_some(levels),
            services: [
                Difference::of(actual, RangeKey::SERVICES, &desired.service_ranges),
                Difference::of(actual, RangeKey::MARKED, &desired.marked_cover),
            ],
            put: differs.map(|(index, to)| (*index, to.device)).collect(),
            deleted: gone(&mut now.keys()),
            attach: bare.map(|(index, to)| (*index, to.name.to_string())).collect(),
            detach: gone(&mut actual.attached.iter()),
        }
    }

    /// Devices that have no entry yet.
    pub(super) fn new_devices(&self, actual: &Actual) -> usize {
        self.put.iter().filter(|(index, _)| !actual.devices.contains_key(index)).count()
    }

    /// Entries of `masquerade` that come.
    pub(super) fn new_masquerade(&self, actual: &Actual) -> usize {
        self.masquerade.iter().filter(|(key, _)| !actual.masquerade.contains_key(key)).count()
    }

    /// Ranges that come.
    pub(super) fn new_ranges(&self) -> usize {
        let services = self.services.iter().map(Difference::coming).sum::<usize>();
        self.pods.coming() + self.groups.coming() + services
    }

    /// Before the services: ranges are there before a device says that they count.
    pub(super) fn first(&self) -> impl Iterator<Item = Step> {
        let put = self.put.iter().map(|&(index, device)| Step::PutDevice { index, device });
        let masquerade = self.masquerade.iter().map(|&(key, value)| Step::PutMasquerade { key, value });
        let levels = self.levels.map(|levels| Step::SetLeftLevels { levels });
        self.pods.put().chain(self.groups.put()).chain(levels).chain(masquerade).chain(put)
    }

    /// Before frontends come: where they are served, they are served to packets, too.
    pub(super) fn attach(&self) -> impl Iterator<Item = Step> {
        self.attach.iter().map(|(index, name)| Step::Attach { index: *index, name: name.clone() })
    }

    /// When all else stands: only then is known which addresses are nobody's.
    pub(super) fn last(&self) -> impl Iterator<Item = Step> {
        let detach = self.detach.iter().map(|&index| Step::Detach { index });
        let deleted = self.deleted.iter().map(|&index| Step::DeleteDevice { index });
        let unmasquerade = self.unmasquerade.iter().map(|&key| Step::DeleteMasquerade { key });
        let ranges = self.pods.deleted().chain(self.groups.deleted());
        let services = self.services.iter().flat_map(|of| of.deleted().chain(of.put()));
        detach.chain(deleted).chain(unmasquerade).chain(ranges).chain(services)
    }
}

/// Those that are not there, or not so.
fn entries<'a, K: Copy + 'a, V: Copy + PartialEq + 'a>(
    then: impl Iterator<Item = (&'a K, &'a V)>,
    now: impl Fn(&K) -> Option<&'a V>,
) -> Vec<(K, V)> {
    then.filter(|(key, value)| now(key) != Some(value)).map(|(key, value)| (*key, *value)).collect()
}

/// Those that are not to be there any more.
fn missing<'a, K: Copy + 'a>(now: impl Iterator<Item = &'a K>, stays: impl Fn(&K) -> bool) -> Vec<K> {
    now.copied().filter(|key| !stays(key)).collect()
}

/// A cgroup's id among addresses.
fn group_range(id: u64) -> Cidr {
    Cidr { address: RangeKey::group(id).ip(), length: 128 }
}

/// An owner's ranges that come and go.
#[derive(Debug, Default)]
pub(super) struct Difference {
    put: Vec<RangeKey>,
    deleted: Vec<RangeKey>,
}

impl Difference {
    /// Of the ranges of one owner.
    pub(super) fn of<'a>(actual: &Actual, owner: u32, wanted: impl IntoIterator<Item = &'a Cidr>) -> Self {
        static NONE: BTreeSet<RangeKey> = BTreeSet::new();
        let now = actual.source_ranges.get(&owner).unwrap_or(&NONE);
        let then: BTreeSet<RangeKey> = wanted.into_iter().map(|range| key(owner, range)).collect();
        Self {
            put: then.difference(now).copied().collect(),
            deleted: now.difference(&then).copied().collect(),
        }
    }

    pub(super) fn coming(&self) -> usize {
        self.put.len()
    }

    pub(super) fn put(&self) -> impl Iterator<Item = Step> {
        self.put.iter().map(|&key| Step::PutRange { key })
    }

    pub(super) fn deleted(&self) -> impl Iterator<Item = Step> {
        self.deleted.iter().map(|&key| Step::DeleteRange { key })
    }
}

/// Whether the ranges of a service are just these.
pub(super) fn has_ranges(actual: &Actual, index: u32, serving: &Serving) -> bool {
    let wanted = serving.source_ranges.iter().map(|range| key(index, range));
    match actual.source_ranges.get(&index) {
        None => serving.source_ranges.is_empty(),
        Some(ranges) => wanted.collect::<BTreeSet<_>>() == *ranges,
    }
}

/// Whether its ranges are looked at.
pub(super) fn is_filtered(serving: &Serving) -> bool {
    serving.policy & Policy::SOURCE_RANGES != 0
}

/// IPv4 prefixes count within the mapped address.
fn key(owner: u32, range: &Cidr) -> RangeKey {
    let mapped = if range.address.is_ipv4() { 96 } else { 0 };
    RangeKey {
        prefix_length: 32 + mapped + u32::from(range.length),
        owner,
        address: Address::from(range.address).octets(),
    }
}
