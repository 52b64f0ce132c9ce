//! Which endpoints may serve: kube-proxy's choice from all slices of a ServicePort (spec §1.3–1.5, upstream
//! `CategorizeEndpoints`). Pure functions of what is passed.

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, sync::Arc};

use proxy_common::datapath;

use super::{Endpoint, Policy, ServicePortName, Slice, fates::Why};

/// An endpoint of a ServicePort, as the choice sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Where it listens.
    pub endpoint: datapath::Endpoint,
    /// On the own node.
    pub local: bool,
    /// Usable as first choice.
    pub ready: bool,
    /// With `terminating`: usable as last resort.
    pub serving: bool,
    /// On its way out.
    pub terminating: bool,
    /// The zones it is meant for; empty: no such hint.
    pub for_zones: &'a BTreeSet<Arc<str>>,
    /// The nodes it is meant for; empty: no such hint.
    pub for_nodes: &'a BTreeSet<Arc<str>>,
}

impl Candidate<'_> {
    /// Serves its last connections. A ready endpoint is never asked for it.
    fn is_last_resort(&self) -> bool {
        self.serving && self.terminating
    }

    /// Why it is not, if it isn't ready either.
    fn unusable(&self) -> Why {
        if self.terminating { Why::Gone } else { Why::NotReady }
    }
}

/// Where the own node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// Its name.
    pub node: &'a str,
    /// Its zone; empty if it has none, which is a name like others: only a hint for "" matches it.
    pub zone: &'a str,
}

/// What a ServicePort asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policies {
    /// `internalTrafficPolicy`.
    pub internal: Policy,
    /// `externalTrafficPolicy`.
    pub external: Policy,
    /// It has a node port, a load balancer address or an external IP: without, `external` means nothing.
    pub external_destination: bool,
}

/// The sets that a candidate is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    /// Serves where the policy is Cluster.
    pub cluster: bool,
    /// Serves where the policy is Local.
    pub local: bool,
}

/// Who may serve.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// One for each candidate, in their order.
    pub sets: Vec<Sets>,
    /// Somebody could serve somewhere: an empty set means DROP, not REJECT (spec §2.5).
    pub any_endpoints: bool,
}

/// Which of the two sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Set {
    Cluster,
    Local,
}

/// Chooses among all endpoints of a ServicePort (spec §1.5).
pub fn select(candidates: &[Candidate<'_>], place: Place<'_>, policies: Policies) -> Selection {
    let mut sets = vec![Sets::default(); candidates.len()];
    let any_endpoints = judge(candidates, place, policies, |number, set, verdict| match set {
        Set::Cluster => sets[number].cluster = verdict.is_ok(),
        Set::Local => sets[number].local = verdict.is_ok(),
    });
    Selection { sets, any_endpoints }
}

/// Tells of each candidate, by its number, whether it is in a set, or why not; of a set that no policy asks for it
/// tells nothing. Gives whether somebody could serve somewhere.
pub(super) fn judge(
    candidates: &[Candidate<'_>],
    place: Place<'_>,
    policies: Policies,
    mut tell: impl FnMut(usize, Set, Result<(), Why>),
) -> bool {
    let mut any_endpoints = false;

    // Even with both policies Local, pods and the node itself reach external destinations by the cluster set.
    if policies.internal == Policy::Cluster || policies.external_destination {
        let topology = topology(candidates, place);
        mark(
            candidates,
            |_| Ok(()),
            |c| topology.allows(c, place),
            |number, verdict| {
                any_endpoints |= verdict.is_ok();
                tell(number, Set::Cluster, verdict);
            },
        );
    }
    if policies.internal == Policy::Local
        || (policies.external == Policy::Local && policies.external_destination)
    {
        any_endpoints |= candidates.iter().any(|c| c.ready || c.is_last_resort());
        let eligible = |c: &Candidate<'_>| if c.local { Ok(()) } else { Err(Why::Elsewhere) };
        mark(candidates, eligible, |_| Ok(()), |number, verdict| tell(number, Set::Local, verdict));
    }
    any_endpoints
}

/// Tells of the candidates that are `eligible` which are in a set: those that are ready and `hinted`; if there are none,
/// those of the last resort, whatever their hints.
fn mark<'a>(
    candidates: &[Candidate<'a>],
    eligible: impl Fn(&Candidate<'a>) -> Result<(), Why>,
    hinted: impl Fn(&Candidate<'a>) -> Result<(), Why>,
    mut tell: impl FnMut(usize, Result<(), Why>),
) {
    let is = |is: bool, why: Why| if is { Ok(()) } else { Err(why) };
    let first_choice = |c: &Candidate<'a>| {
        eligible(c)?;
        is(c.ready, if c.is_last_resort() { Why::Terminating } else { c.unusable() })?;
        hinted(c)
    };
    let last_resort = |c: &Candidate<'a>| {
        eligible(c)?;
        is(c.is_last_resort(), c.unusable())
    };
    let any_first_choice = candidates.iter().any(|c| first_choice(c).is_ok());
    for (number, candidate) in candidates.iter().enumerate() {
        tell(number, if any_first_choice { first_choice(candidate) } else { last_resort(candidate) });
    }
}

/// Which hints count (KEP-2433, KEP-3015).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    None,
    SameNode,
    SameZone,
}

impl Topology {
    fn allows(self, candidate: &Candidate<'_>, place: Place<'_>) -> Result<(), Why> {
        match self {
            Self::SameNode if !candidate.for_nodes.contains(place.node) => Err(Why::ForOtherNodes),
            Self::SameZone if !candidate.for_zones.contains(place.zone) => Err(Why::ForOtherZones),
            _ => Ok(()),
        }
    }
}

/// A kind of hint counts if every ready endpoint has one and some have one for us: otherwise the controller is between
/// two thoughts, or knows less of this node than we do.
fn topology(candidates: &[Candidate<'_>], place: Place<'_>) -> Topology {
    let counts = |hints: fn(&Candidate<'_>) -> bool, kind: Topology| {
        let mut ready = candidates.iter().filter(|c| c.ready);
        ready.clone().all(hints) && ready.any(|c| kind.allows(c, place).is_ok())
    };
    if counts(|c| !c.for_nodes.is_empty(), Topology::SameNode) {
        Topology::SameNode
    } else if counts(|c| !c.for_zones.is_empty(), Topology::SameZone) {
        Topology::SameZone
    } else {
        Topology::None
    }
}

/// The endpoints of a ServicePort in the service's slices, each address and port once, sorted.
///
/// An address and port that stands in several entries is that of the last one that isn't terminating, so that a pod is
/// not hidden by a terminating one that had its address. Upstream leaves the order of the slices open; here it is
/// that of `slices`, which must not depend on when they arrived.
pub fn candidates<'a>(
    slices: impl Iterator<Item = &'a Slice>,
    port: &ServicePortName,
    node: &str,
) -> Vec<Candidate<'a>> {
    let all = entries(slices, port, node).map(|(candidate, _)| candidate);
    counting(all).into_iter().map(|(_, candidate)| candidate).collect()
}

/// Those of all entries that count, with their places among them.
pub(super) fn counting<'a>(entries: impl Iterator<Item = Candidate<'a>>) -> Vec<(usize, Candidate<'a>)> {
    let mut all: Vec<_> = entries.enumerate().collect();
    // Stable: entries of one address and port stay in the order of the slices.
    all.sort_by_key(|(_, c)| (c.endpoint.address, c.endpoint.port));
    all.dedup_by(|next, kept| {
        let same = next.1.endpoint == kept.1.endpoint;
        if same && !next.1.terminating {
            *kept = next.clone();
        }
        same
    });
    all
}

/// All entries for a ServicePort, with their candidates, in the order of the slices.
pub(super) fn entries<'a>(
    slices: impl Iterator<Item = &'a Slice>,
    port: &ServicePortName,
    node: &str,
) -> impl Iterator<Item = (Candidate<'a>, &'a Endpoint)> {
    let slices = slices.filter(|slice| slice.family == port.family);
    slices.flat_map(move |slice| {
        let ports = slice.ports.iter().filter(|p| p.name == port.port && p.protocol == port.protocol);
        ports.map(|port| port.port).flat_map(move |number| {
            slice.endpoints.iter().map(move |e| {
                let candidate = Candidate {
                    endpoint: datapath::Endpoint { address: e.address.into(), port: number },
                    local: e.placement.node.as_deref() == Some(node),
                    ready: e.ready,
                    serving: e.serving,
                    terminating: e.terminating,
                    for_zones: &e.placement.for_zones,
                    for_nodes: &e.placement.for_nodes,
                };
                (candidate, e)
            })
        })
    })
}
