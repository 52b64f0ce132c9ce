//! Which index of `services` is whose. A live service keeps its index, also over a restart; a freed one is given to
//! another service only after a fence.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proxy_common::layout::{FrontendKey, RangeKey, ServiceName};

use super::Actual;
use crate::model::{Desired, ServicePortName};

/// Every index.
#[derive(Debug)]
pub(super) struct Ids {
    by_name: HashMap<ServicePortName, u32>,
    /// Indexes of which the tables say something, but of no service that is wanted, with what `names` calls them.
    strangers: BTreeMap<u32, String>,
    /// Strangers by what they are called.
    known: HashMap<String, u32>,
    free: BTreeSet<u32>,
    /// Free after the next fence.
    retired: BTreeSet<u32>,
    /// Given to a service, to be used only after the next fence.
    waiting: BTreeSet<u32>,
    /// A fence was passed since the tables were read: what another agent freed before is really free.
    fenced: bool,
}

/// What `names` says of a service.
pub(super) fn text(name: &ServicePortName) -> String {
    ServiceName::new(&name.to_string()).as_str().to_owned()
}

impl Ids {
    /// What was read back; `leads` are the indexes that frontends lead to.
    pub(super) fn adopt(actual: &Actual, leads: impl Iterator<Item = u32>, capacity: u32) -> Self {
        let ranges = actual.source_ranges.keys().filter(|owner| **owner < RangeKey::GROUPS);
        let said = actual.services.keys().chain(ranges).copied().chain(leads);
        let mut strangers: BTreeMap<u32, String> = said.map(|index| (index, String::new())).collect();
        strangers.extend(actual.names.iter().map(|(index, name)| (*index, name.clone())));
        let mut known = HashMap::new();
        for (&index, name) in strangers.iter().filter(|(_, name)| !name.is_empty()) {
            // Two of one name: the one that serves.
            let serves = |index: &u32| actual.services.contains_key(index);
            if !known.get(name).is_some_and(|other| serves(other) || !serves(&index)) {
                known.insert(name.clone(), index);
            }
        }
        let free = (0..capacity).filter(|index| !strangers.contains_key(index)).collect();
        Self {
            by_name: HashMap::new(),
            strangers,
            known,
            free,
            retired: BTreeSet::new(),
            waiting: BTreeSet::new(),
            fenced: false,
        }
    }

    /// The same services with the same indexes, and nothing else, in empty tables that nobody reads yet.
    pub(super) fn kept(self, capacity: u32) -> Self {
        let by_name: HashMap<_, _> =
            self.by_name.into_iter().filter(|(_, index)| *index < capacity).collect();
        let used: BTreeSet<u32> = by_name.values().copied().collect();
        Self {
            by_name,
            strangers: BTreeMap::new(),
            known: HashMap::new(),
            free: (0..capacity).filter(|index| !used.contains(index)).collect(),
            retired: BTreeSet::new(),
            waiting: BTreeSet::new(),
            fenced: true,
        }
    }

    /// The index of a service that has one.
    pub(super) fn get(&self, name: &ServicePortName) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// The index of a service: its own, else the one that the tables call by its name, else a new one. None: there
    /// is no index left.
    pub(super) fn of(&mut self, name: &ServicePortName) -> Option<u32> {
        if let Some(index) = self.get(name) {
            return Some(index);
        }
        let known = if self.known.is_empty() { None } else { self.known.get(&text(name)).copied() };
        match known {
            Some(index) => self.recognise(name, index),
            None => self.assign(name)?,
        }
        self.get(name)
    }

    fn recognise(&mut self, name: &ServicePortName, index: u32) {
        if let Some(called) = self.strangers.remove(&index)
            && self.known.get(&called) == Some(&index)
        {
            self.known.remove(&called);
        }
        self.by_name.insert(name.clone(), index);
    }

    fn assign(&mut self, name: &ServicePortName) -> Option<()> {
        let index = match self.free.pop_first() {
            Some(index) => {
                if !self.fenced {
                    self.waiting.insert(index);
                }
                index
            }
            None => {
                let index = self.retired.pop_first()?;
                self.waiting.insert(index);
                index
            }
        };
        self.by_name.insert(name.clone(), index);
        Some(())
    }

    /// Recognise services whose names the tables have lost by the frontends that lead to them.
    pub(super) fn recognise_by_frontends(&mut self, desired: &Desired, actual: &Actual) {
        let nameless = |ids: &Self, index: u32| ids.strangers.get(&index).is_some_and(String::is_empty);
        if !self.strangers.values().any(String::is_empty) {
            return;
        }
        let mut hints: Vec<(&FrontendKey, u32, &ServicePortName)> = desired
            .frontends
            .iter()
            .filter_map(|(key, target)| Some((key, actual.frontends.get(key)?.service, &target.service)))
            .filter(|(_, index, name)| nameless(self, *index) && desired.services.contains_key(*name))
            .collect();
        hints.sort_unstable();
        for (_, index, name) in hints {
            let is_new = self.get(name).is_none() && !self.known.contains_key(&text(name));
            if is_new && nameless(self, index) {
                self.recognise(name, index);
            }
        }
    }

    /// A service that has an index and is not wanted any more: the index, to be emptied.
    pub(super) fn forget(&mut self, name: &ServicePortName) -> Option<u32> {
        let index = self.by_name.remove(name)?;
        let text = text(name);
        self.known.insert(text.clone(), index);
        self.strangers.insert(index, text);
        Some(index)
    }

    /// Another index for a service, beside its own: the old one, to be emptied.
    pub(super) fn renew(&mut self, name: &ServicePortName) -> Option<u32> {
        let old = self.by_name.get(name).copied()?;
        self.assign(name)?;
        self.strangers.insert(old, String::new());
        Some(old)
    }

    /// Services that are not in `desired`.
    pub(super) fn unwanted(&self, desired: &Desired) -> Vec<ServicePortName> {
        self.by_name.keys().filter(|name| !desired.services.contains_key(*name)).cloned().collect()
    }

    /// Indexes of services that are not wanted.
    pub(super) fn strangers(&self) -> impl Iterator<Item = u32> {
        self.strangers.keys().copied()
    }

    /// The tables say nothing of this index any more.
    pub(super) fn emptied(&mut self, index: u32) {
        if let Some(called) = self.strangers.remove(&index) {
            if self.known.get(&called) == Some(&index) {
                self.known.remove(&called);
            }
            self.waiting.remove(&index);
            self.retired.insert(index);
        }
    }

    /// Whether an index is to be used only after a fence.
    pub(super) fn waits(&self, index: u32) -> bool {
        self.waiting.contains(&index)
    }

    /// [`super::Step::Fence`] was carried out.
    pub(super) fn fence(&mut self) {
        self.fenced = true;
        self.waiting.clear();
        self.free.append(&mut self.retired);
    }

    /// Indexes that wait for a fence and belong to nobody.
    pub(super) fn retired(&self) -> usize {
        self.retired.len()
    }
}
