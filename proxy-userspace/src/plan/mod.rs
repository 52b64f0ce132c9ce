//! From what should be ([`crate::model`]) and what is ([`Actual`]) to ordered writes ([`Step`]). Pure.
//!
//! ```text
//!  Desired ──► diff ──what differs──► order ──Step──► (dataplane) ──done──► Actual, ids, extents, leads
//! ```
//!
//! Nothing that the planner knows changes before a step is reported as [`Planner::done`]: a plan that is not carried
//! out, or in part, is made again from what is really there.

pub mod actual;
mod addresses;
pub mod backends;
mod diff;
mod extents;
mod ids;
mod leads;
mod node;
mod order;
pub mod passage;
mod slots;
pub mod step;
pub mod view;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use proxy_common::{Protocol, layout::Service, names::floor};

pub use actual::{Actual, Capacity};
pub use backends::Backends;
pub use passage::{Opening, Packets, Passage};
pub use step::Step;
pub use view::View;

use self::{
    diff::{Diff, NoIndex},
    extents::Extents,
    ids::Ids,
    leads::Leads,
    order::{Full, order},
};
use crate::model::{Desired, Touched};

/// The tables are too small for what the cluster needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tables have no room for what the cluster needs: {need:?}")]
pub struct NoRoom {
    /// Sizes that do: none smaller than now, that of the full table larger.
    pub need: Capacity,
}

/// What is in the tables, and how to get to what should be.
#[derive(Debug)]
pub struct Planner {
    actual: Actual,
    capacity: Capacity,
    ids: Ids,
    extents: Extents,
    leads: Leads,
    /// Writes of the last plan that were not reported as done: the next plan compares everything.
    open: usize,
}

impl Planner {
    /// Go on from what the tables say. Services are found again by `names`, or where a name is missing by the
    /// frontends that lead to them; slots that nothing points at are retired.
    pub fn new(actual: Actual, capacity: Capacity) -> Self {
        let leads = Leads::adopt(&actual);
        let ids = Ids::adopt(&actual, leads.services(), capacity.services);
        let extents = Extents::adopt(&actual, capacity.backends);
        Self { actual, capacity, ids, extents, leads, open: 0 }
    }

    /// Go on in empty tables of another size that no program reads yet. Services keep their indexes, by which affinity
    /// remembers them.
    pub fn next_generation(self, capacity: Capacity) -> Self {
        let actual = Actual { attached: self.actual.attached, ..Actual::default() };
        let extents = Extents::adopt(&actual, capacity.backends);
        let leads = Leads::adopt(&actual);
        Self { actual, capacity, ids: self.ids.kept(capacity.services), extents, leads, open: 0 }
    }

    /// The writes that lead to `desired`, in an order in which every prefix is safe. `touched` names all that may
    /// differ from the last plan's `desired`; none: compare everything, also what nobody is known to have changed.
    /// Of a run of more than 65 535 endpoints the first serve, in the order of their addresses.
    pub fn plan(&mut self, desired: &Desired, touched: Option<&Touched>) -> Result<Vec<Step>, NoRoom> {
        let touched = touched.filter(|_| self.open == 0);
        // Until this plan is there, an earlier one is not carried out.
        self.open = 1;
        self.extents.begin();
        let diff = Diff::new(&mut self.ids, &self.actual, &self.leads, desired, touched)
            .map_err(|NoIndex| self.no_room(desired, Full::Services))?;
        for &index in &diff.leaving {
            self.emptied(index);
        }
        let (draft, every_word) = (self.extents.draft(), touched.is_none());
        let steps = order(diff, &self.actual, &self.capacity, &self.ids, &self.leads, draft, every_word);
        let steps = steps.map_err(|full| self.no_room(desired, full))?;
        self.open = steps.iter().filter(|step| is_write(step)).count();
        Ok(steps)
    }

    /// These steps were carried out, in this order.
    pub fn done(&mut self, steps: &[Step]) {
        for step in steps {
            self.open = self.open.saturating_sub(usize::from(is_write(step)));
            self.carried_out(step);
        }
    }

    /// The endpoints of the Services that these steps point elsewhere, of those that datagrams are sent to. To be asked
    /// before they are [`Self::done`].
    pub fn left_by(&self, steps: &[Step]) -> impl Iterator<Item = SocketAddr> {
        let pointed = steps.iter().filter_map(|step| match step {
            Step::PointService { index, .. } => Some(*index),
            _ => None,
        });
        let datagrams =
            pointed.filter(|index| self.leads.of(*index).any(|key| key.protocol == Protocol::Udp));
        let serving = datagrams.filter_map(|index| self.actual.serving(index));
        serving.flat_map(|serving| {
            let all = [serving.cluster_only, serving.both, serving.local_only].concat();
            all.into_iter().map(|endpoint| SocketAddr::new(endpoint.address.ip(), endpoint.port))
        })
    }

    /// The steps that make what is retired usable again; empty if nothing is.
    pub fn reclaim(&self) -> Vec<Step> {
        let fence = self.extents.wants_fence() || self.ids.retired() > 0;
        fence.then_some(Step::Fence).into_iter().chain(self.extents.to_clear()).collect()
    }

    /// How many slots and indexes wait for [`Self::reclaim`].
    pub fn retired(&self) -> usize {
        self.extents.retired() + self.ids.retired()
    }

    /// What the tables say.
    pub fn actual(&self) -> &Actual {
        &self.actual
    }

    fn carried_out(&mut self, step: &Step) {
        let actual = &mut self.actual;
        match step {
            Step::WriteExtent { base, slots } => {
                self.extents.wrote(*base, slots.len() as u32);
                actual.backends.extend((*base..).zip(slots.iter().copied()));
            }
            Step::PointService { index, service } => {
                self.extents.pointed(*index, service.extent);
                if *service == Service::default() {
                    actual.services.remove(index);
                    self.emptied(*index);
                } else {
                    actual.services.insert(*index, *service);
                }
            }
            Step::NameService { index, name } => drop(actual.names.insert(*index, name.clone())),
            Step::UnnameService { index } => {
                actual.names.remove(index);
                self.emptied(*index);
            }
            Step::PutFrontend { key, value } => {
                let old = actual.frontends.insert(*key, *value);
                if let Some(old) = &old {
                    self.leads.remove(key, old);
                }
                self.leads.add(key, value);
                if let Some(old) = old {
                    self.emptied(old.service);
                }
            }
            Step::DeleteFrontend { key } => {
                if let Some(old) = actual.frontends.remove(key) {
                    self.leads.remove(key, &old);
                    self.emptied(old.service);
                }
            }
            Step::PutLocalAddress { key, value } => drop(actual.local_addresses.insert(*key, *value)),
            Step::DeleteLocalAddress { key } => drop(actual.local_addresses.remove(key)),
            Step::PutDevice { index, device } => drop(actual.devices.insert(*index, *device)),
            Step::DeleteDevice { index } => drop(actual.devices.remove(index)),
            Step::PutRange { key } => actual.put_range(*key),
            Step::DeleteRange { key } => {
                actual.delete_range(key);
                self.emptied(key.owner);
            }
            Step::PutMasquerade { key, value } => drop(actual.masquerade.insert(*key, *value)),
            Step::DeleteMasquerade { key } => drop(actual.masquerade.remove(key)),
            Step::SetLeftLevels { levels } => actual.left_levels = *levels,
            Step::Attach { index, .. } => drop(actual.attached.insert(*index)),
            Step::Detach { index } => drop(actual.attached.remove(index)),
            Step::SetPorts { word, bits: 0 } => drop(actual.ports.remove(word)),
            Step::SetPorts { word, bits } => drop(actual.ports.insert(*word, *bits)),
            Step::SetAddresses { word, bits: 0 } => drop(actual.addresses.remove(word)),
            Step::SetAddresses { word, bits } => drop(actual.addresses.insert(*word, *bits)),
            Step::Fence => {
                self.extents.fence();
                self.ids.fence();
            }
            Step::ClearExtent { base, length } => {
                for slot in *base..base + length {
                    actual.backends.remove(slot);
                }
                self.extents.cleared(*base);
            }
        }
    }

    /// If the tables say nothing of a service that is not wanted any more, its index is free after a fence.
    fn emptied(&mut self, index: u32) {
        let Actual { services, names, source_ranges, .. } = &self.actual;
        let is_empty = !services.contains_key(&index)
            && !names.contains_key(&index)
            && !source_ranges.contains_key(&index);
        if is_empty && !self.leads.any(index) {
            self.ids.emptied(index);
        }
    }

    fn no_room(&self, desired: &Desired, full: Full) -> NoRoom {
        let (mut need, now) = (need(desired), &self.capacity);
        need.frontends = need.frontends.max(now.frontends);
        need.services = need.services.max(now.services);
        need.backends = need.backends.max(now.backends);
        need.local_addresses = need.local_addresses.max(now.local_addresses);
        need.devices = need.devices.max(now.devices);
        need.source_ranges = need.source_ranges.max(now.source_ranges);
        need.masquerade = need.masquerade.max(now.masquerade);
        let (table, now) = match full {
            Full::Frontends => (&mut need.frontends, now.frontends),
            Full::Services => (&mut need.services, now.services),
            Full::Backends => (&mut need.backends, now.backends),
            Full::LocalAddresses => (&mut need.local_addresses, now.local_addresses),
            Full::Devices => (&mut need.devices, now.devices),
            Full::SourceRanges => (&mut need.source_ranges, now.source_ranges),
            Full::Masquerade => (&mut need.masquerade, now.masquerade),
        };
        *table = (*table).max(now.saturating_mul(2));
        NoRoom { need }
    }
}

/// Whether a step changes what programs or people read, and does not only make room.
fn is_write(step: &Step) -> bool {
    !matches!(step, Step::Fence | Step::ClearExtent { .. })
}

/// How much room `desired` needs, and as much again to grow and to hold the old beside the new.
pub fn need(desired: &Desired) -> Capacity {
    let twice = |count: usize, floor: u32| u32::try_from(count * 2).unwrap_or(u32::MAX).max(floor);
    let slots = desired.services.values().map(|serving| slots::length(serving) as usize).sum::<usize>();
    let ranges = desired.services.values().map(|serving| serving.source_ranges.len()).sum::<usize>();
    let of_node = desired.pod_ranges.len() + desired.service_ranges.len() + desired.marked_cover.len();
    Capacity {
        frontends: twice(desired.frontends.len(), floor::FRONTENDS),
        services: twice(desired.services.len(), floor::SERVICES),
        backends: twice(slots, floor::BACKENDS),
        local_addresses: twice(desired.local_addresses.len(), floor::LOCAL_ADDRESSES),
        devices: twice(desired.devices.len(), floor::DEVICES),
        source_ranges: twice(ranges + of_node, floor::SOURCE_RANGES),
        masquerade: twice(desired.masquerade.len(), floor::MASQUERADE),
    }
}
