//! The tables from a person's side: service by service, its name, frontends and endpoints together.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::layout::{Backend, Frontend, FrontendKey, Role, Service};

use crate::plan::Actual;

/// What the tables say of one service.
#[derive(Debug)]
pub(super) struct Served<'a> {
    pub(super) index: u32,
    /// `None`: the tables do not say.
    pub(super) name: Option<&'a str>,
    pub(super) word: Service,
    /// Of its extent; `None`: it has none, or one that is not its own.
    pub(super) header: Option<&'a Backend>,
    pub(super) frontends: Vec<(&'a FrontendKey, &'a Frontend)>,
}

/// All services, in the order of their names.
pub(super) fn all(actual: &Actual) -> Vec<Served<'_>> {
    let mut frontends: BTreeMap<u32, Vec<_>> = BTreeMap::new();
    for (key, value) in actual.frontends.iter().filter(|(key, _)| !key.is_mark()) {
        frontends.entry(value.service).or_default().push((key, value));
    }
    let indexes: BTreeSet<u32> =
        actual.names.keys().chain(actual.services.keys()).chain(frontends.keys()).copied().collect();
    let served = indexes.into_iter().map(|index| {
        let word = actual.services.get(&index).copied().unwrap_or_default();
        let header = actual.backends.get(word.extent);
        let mut frontends = frontends.remove(&index).unwrap_or_default();
        frontends.sort_by_key(|(key, value)| (value.kind, **key));
        Served {
            index,
            name: actual.names.get(&index).map(String::as_str),
            word,
            header: header.filter(|slot| slot.role == Role::Extent && slot.service == index),
            frontends,
        }
    });
    let mut served: Vec<_> = served.collect();
    served.sort_by_key(|served| (served.name.is_none(), served.name, served.index));
    served
}

impl Served<'_> {
    /// As the tables name it, else by its index.
    pub(super) fn text(&self) -> String {
        self.name.map_or_else(|| format!("(without a name, index {})", self.index), str::to_owned)
    }

    /// Endpoints in the cluster set and in the local set.
    pub(super) fn counts(&self) -> Option<[u32; 2]> {
        let header = self.header?;
        let [only, both, local] = [header.cluster_only, header.both, header.local_only].map(u32::from);
        Some([only + both, both + local])
    }

    /// Each endpoint, and whether it is in the cluster set and in the local set.
    pub(super) fn endpoints<'a>(
        &self,
        actual: &'a Actual,
    ) -> impl Iterator<Item = (&'a Backend, bool, bool)> + use<'a> {
        let runs = self.header.map_or([0; 3], |h| [h.cluster_only, h.both, h.local_only].map(u32::from));
        let sets = [(true, false), (true, true), (false, true)];
        let slots = runs.into_iter().zip(sets).flat_map(|(length, sets)| (0..length).map(move |_| sets));
        let (first, index) = (self.word.extent + 1, self.index);
        (first..).zip(slots).filter_map(move |(slot, (cluster, local))| {
            let slot = actual.backends.get(slot)?;
            (slot.role == Role::Endpoint && slot.service == index).then_some((slot, cluster, local))
        })
    }
}

/// `namespace/name`, port, protocol and family of a name in the tables; whatever it lacks is empty.
pub fn split_name(name: &str) -> [&str; 4] {
    let (rest, family) = name.rsplit_once('/').unwrap_or((name, ""));
    let (rest, protocol) = rest.rsplit_once('/').unwrap_or((rest, ""));
    let (service, port) = rest.rsplit_once(':').unwrap_or((rest, ""));
    [service, port, protocol, family]
}
