//! What differs between what should be and what is, without any order yet.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use proxy_common::layout::{Frontend, FrontendKey, LocalAddress, LocalKey};

use super::{
    Actual,
    ids::{self, Ids},
    leads::Leads,
    node::{self, NodeDiff},
    slots,
};
use crate::model::{Desired, ServicePortName, Serving, Touched};

/// A service whose endpoints, policy, affinity or source ranges differ.
#[derive(Debug)]
pub(super) struct Serves<'a> {
    pub(super) index: u32,
    pub(super) name: &'a ServicePortName,
    pub(super) serving: &'a Arc<Serving>,
}

/// A frontend that leads, or led, somewhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Led {
    pub(super) key: FrontendKey,
    /// Where it leads now.
    pub(super) from: Option<Frontend>,
    /// Where it should lead.
    pub(super) to: Option<Frontend>,
}

impl Led {
    /// The service that it leads to now and no longer should.
    pub(super) fn leaves(&self) -> Option<u32> {
        let to = self.to.map(|to| to.service);
        self.from.map(|from| from.service).filter(|from| Some(*from) != to)
    }

    /// The service that it leads to another one's clients.
    fn joins(&self) -> Option<u32> {
        let from = self.from.map(|from| from.service)?;
        self.to.map(|to| to.service).filter(|to| *to != from)
    }
}

/// Everything that differs.
#[derive(Debug, Default)]
pub(super) struct Diff<'a> {
    /// Services that are served, but differently.
    pub(super) changed: Vec<Serves<'a>>,
    /// Services that are not served yet.
    pub(super) fresh: Vec<Serves<'a>>,
    /// Services that `names` calls otherwise, or not at all.
    pub(super) unnamed: Vec<(u32, &'a ServicePortName)>,
    /// Indexes of services that go.
    pub(super) leaving: BTreeSet<u32>,
    /// Frontends that come.
    pub(super) inserted: Vec<Led>,
    /// Frontends that lead elsewhere.
    pub(super) moved: Vec<Led>,
    /// Frontends that go.
    pub(super) deleted: Vec<Led>,
    /// Addresses that come or change, the longest prefixes first.
    pub(super) local_put: Vec<(LocalKey, LocalAddress)>,
    /// Addresses that go, the shortest prefixes first.
    pub(super) local_deleted: Vec<LocalKey>,
    /// What the packet plane is told of the node.
    pub(super) node: NodeDiff,
}

/// There is no index left for a new service.
#[derive(Debug)]
pub(super) struct NoIndex;

impl<'a> Diff<'a> {
    /// Compare what `touched` names, or everything. Services get their indexes here.
    pub(super) fn new(
        ids: &mut Ids,
        actual: &Actual,
        leads: &Leads,
        desired: &'a Desired,
        touched: Option<&Touched>,
    ) -> Result<Self, NoIndex> {
        let mut diff = Self::default();
        diff.services(ids, actual, desired, touched)?;
        diff.frontends(ids, actual, leads, desired, touched);
        if diff.part_crossing(ids)? {
            diff.frontends(ids, actual, leads, desired, touched);
        }
        if touched.is_none_or(|touched| touched.local_addresses) {
            diff.local_addresses(actual, desired);
        }
        if touched.is_none_or(|touched| touched.devices || touched.service_ranges) {
            diff.node = NodeDiff::new(actual, desired);
        }
        Ok(diff)
    }

    fn services(
        &mut self,
        ids: &mut Ids,
        actual: &Actual,
        desired: &'a Desired,
        touched: Option<&Touched>,
    ) -> Result<(), NoIndex> {
        let gone = match touched {
            Some(touched) => {
                let is_gone = |name: &&ServicePortName| !desired.services.contains_key(*name);
                touched.services.iter().filter(is_gone).cloned().collect()
            }
            None => {
                ids.recognise_by_frontends(desired, actual);
                ids.unwanted(desired)
            }
        };
        self.leaving.extend(gone.iter().filter_map(|name| ids.forget(name)));
        let mut look_at = |name: &'a ServicePortName, serving: &'a Arc<Serving>| {
            let index = ids.of(name).ok_or(NoIndex)?;
            let word = actual.services.get(&index).filter(|word| word.extent != 0);
            let serves = Serves { index, name, serving };
            match word {
                None => self.fresh.push(serves),
                Some(word) => {
                    let same = word.affinity_seconds == serving.affinity_seconds
                        && slots::says(actual, index, *word, serving)
                        && node::has_ranges(actual, index, serving);
                    if !same {
                        self.changed.push(serves);
                    }
                }
            }
            // Names change with indexes only: an endpoint's change need not look.
            let named = || actual.names.get(&index).is_some_and(|called| *called == ids::text(name));
            if (word.is_none() || touched.is_none()) && !named() {
                self.unnamed.push((index, name));
            }
            Ok(())
        };
        match touched {
            Some(touched) => {
                for name in &touched.services {
                    if let Some((name, serving)) = desired.services.get_key_value(name) {
                        look_at(name, serving)?;
                    }
                }
            }
            None => {
                for (name, serving) in &desired.services {
                    look_at(name, serving)?;
                }
                self.leaving.extend(ids.strangers());
            }
        }
        Ok(())
    }

    fn frontends(
        &mut self,
        ids: &Ids,
        actual: &Actual,
        leads: &Leads,
        desired: &Desired,
        touched: Option<&Touched>,
    ) {
        let keys: BTreeSet<&FrontendKey> = match touched {
            // A service that goes takes along whatever leads to it.
            Some(touched) => {
                let led = self.leaving.iter().flat_map(|index| leads.of(*index));
                touched.frontends.iter().chain(led).collect()
            }
            None => desired.frontends.keys().chain(actual.frontends.keys()).collect(),
        };
        for list in [&mut self.inserted, &mut self.moved, &mut self.deleted] {
            list.clear();
        }
        for &key in keys {
            let to = desired.frontends.get(&key).and_then(|target| {
                let service = ids.get(&target.service)?;
                let host_denied = u8::from(target.host_denied);
                Some(Frontend { service, kind: target.kind, host_denied, reserved: 0 })
            });
            let led = Led { key, from: actual.frontends.get(&key).copied(), to };
            match (led.from, led.to) {
                (None, Some(_)) => self.inserted.push(led),
                (Some(_), None) => self.deleted.push(led),
                (Some(from), Some(to)) if from != to => self.moved.push(led),
                _ => {}
            }
        }
    }

    /// A service that changes while one of its frontends moves to another service, and another's to it, can't be
    /// changed before the one move nor after the other: it is served anew under another index. True if there is any.
    fn part_crossing(&mut self, ids: &mut Ids) -> Result<bool, NoIndex> {
        let left: HashSet<u32> = self.moved.iter().filter_map(Led::leaves).collect();
        let joined: HashSet<u32> = self.moved.iter().filter_map(Led::joins).collect();
        let crosses = |serves: &Serves<'_>| left.contains(&serves.index) && joined.contains(&serves.index);
        let (crossing, changed): (Vec<_>, Vec<_>) = self.changed.drain(..).partition(crosses);
        self.changed = changed;
        let any = !crossing.is_empty();
        for mut serves in crossing {
            let old = ids.renew(serves.name).ok_or(NoIndex)?;
            serves.index = ids.get(serves.name).ok_or(NoIndex)?;
            self.leaving.insert(old);
            self.unnamed.retain(|(index, _)| *index != old);
            self.unnamed.push((serves.index, serves.name));
            self.fresh.push(serves);
        }
        Ok(any)
    }

    fn local_addresses(&mut self, actual: &Actual, desired: &Desired) {
        let (now, then) = (&actual.local_addresses, &desired.local_addresses);
        let differs = then.iter().filter(|(key, value)| now.get(key) != Some(value));
        self.local_put = differs.map(|(key, value)| (*key, *value)).collect();
        self.local_put.sort_by_key(|(key, _)| std::cmp::Reverse(key.prefix_length));
        self.local_deleted = now.keys().filter(|key| !then.contains_key(key)).copied().collect();
        self.local_deleted.sort_by_key(|key| key.prefix_length);
    }
}
