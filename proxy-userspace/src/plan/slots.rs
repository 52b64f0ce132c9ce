//! A service's endpoints as the slots of an extent.

use proxy_common::{
    datapath::Endpoint,
    layout::{Backend, Service},
};

use super::Actual;
use crate::model::Serving;

/// Endpoints of a run: what the header can count. Of a run that has more, the first in the order of addresses serve.
const LONGEST_RUN: usize = u16::MAX as usize;

fn cut(run: &[Endpoint]) -> &[Endpoint] {
    &run[..run.len().min(LONGEST_RUN)]
}

/// Slots of an extent: its header and its endpoints.
pub(super) fn length(serving: &Serving) -> u32 {
    let runs = [&serving.cluster_only, &serving.both, &serving.local_only];
    1 + runs.into_iter().map(|run| cut(run).len() as u32).sum::<u32>()
}

/// The slots of an extent of the service with this index.
pub(super) fn slots(index: u32, serving: &Serving) -> impl Iterator<Item = Backend> {
    let runs = [cut(&serving.cluster_only), cut(&serving.both), cut(&serving.local_only)];
    let [cluster_only, both, local_only] = runs.map(|run| run.len() as u16);
    let header = Backend::extent(index, cluster_only, both, local_only, serving.policy);
    let endpoints = runs.into_iter().flatten();
    std::iter::once(header)
        .chain(endpoints.map(move |endpoint| Backend::endpoint(index, endpoint.address, endpoint.port)))
}

/// Whether the extent that a service's word points at says just this.
pub(super) fn says(actual: &Actual, index: u32, word: Service, serving: &Serving) -> bool {
    let mut found = actual.backends.range(word.extent..);
    slots(index, serving)
        .zip(word.extent..=u32::MAX)
        .all(|(slot, place)| found.next() == Some((place, &slot)))
}
