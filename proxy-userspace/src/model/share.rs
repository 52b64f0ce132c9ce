//! What one Service adds to the whole: its ServicePorts of both families with their endpoints, and what it claims to
//! be dialled at. A pure function of the Service, its slices, the Node and the settings.

use std::collections::{BTreeMap, BTreeSet};

use proxy_common::layout::{FrontendKey, Policy as Bits};

use super::{
    Family, HealthCheck, LocalRoute, Node, Port, Profile, Service, ServicePortName, Serving, Settings, Slice,
    Target,
    claims::Claim,
    endpoints::{Candidate, Place, Policies, Selection, candidates, select},
    fates::{Fate, fates},
    frontends::Face,
    nearby,
    questions::Answers,
};

/// A Service's part of [`super::Desired`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) services: BTreeMap<ServicePortName, Serving>,
    /// A key may stand here twice, or be claimed by others too.
    pub(super) frontends: Vec<(FrontendKey, Claim)>,
    pub(super) health_checks: BTreeMap<Family, HealthCheck>,
}

/// What a Service's part depends on besides itself and its slices.
#[derive(Clone, Copy)]
pub(super) struct Ground<'a> {
    pub(super) node: &'a Node,
    pub(super) settings: &'a Settings,
    pub(super) answers: &'a Answers,
    pub(super) routes: &'a BTreeSet<LocalRoute>,
}

impl Share {
    /// Of `service`.
    pub(super) fn of<'a>(
        service: &Service,
        slices: impl Iterator<Item = &'a Slice> + Clone,
        ground: &Ground<'_>,
    ) -> Self {
        let Ground { node, settings, answers, routes } = *ground;
        let mut share = Self::default();
        let place = place(node, settings);
        for family in [Family::V4, Family::V6] {
            let Some(face) = Face::of(service, family, node, answers) else { continue };
            let check = nearby::health_check(service, family, slices.clone(), settings);
            share.health_checks.extend(check.map(|check| (family, check)));
            // Of two ports with one name and protocol the last counts: the API server takes no such Service, a folder may.
            let ports: BTreeMap<_, _> =
                service.ports.iter().map(|port| ((port.name.clone(), port.protocol), port)).collect();
            for ((name, protocol), port) in ports {
                let name = ServicePortName { service: service.name.clone(), port: name, protocol, family };
                let candidates = candidates(slices.clone(), &name, &settings.node_name);
                let selection = select(&candidates, place, policies(service, &face, port));
                let mut serving = serving(&candidates, &selection);
                serving.policy |= face.policy(port, settings);
                if settings.profile == Profile::Ipvs && has_local(&serving, Bits::EXTERNAL_LOCAL) {
                    serving.policy = serving.policy & !Bits::LEAVE_EXTERNAL | Bits::NO_CIRCUIT;
                }
                serving.affinity_seconds = service.affinity_seconds.unwrap_or(0);
                serving.source_ranges = face.source_ranges(settings);
                let mut dialled = face.dialled(port, settings.profile);
                dialled.retain(|dialled| !settings.reserved.holds(&service.name, dialled, routes));
                share.frontends.extend(dialled.into_iter().map(|dialled| {
                    let target = Target {
                        service: name.clone(),
                        kind: dialled.kind,
                        host_denied: dialled.host_denied,
                    };
                    (dialled.key, Claim { target, left_to_socket: dialled.left_to_socket })
                }));
                share.services.insert(name, serving);
            }
        }
        share
    }
}

/// What becomes of each endpoint of one of its ports; none if it has no such port.
pub(super) fn fates_of<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    node: &Node,
    settings: &Settings,
    name: &ServicePortName,
) -> Vec<Fate> {
    let answers = Answers::default();
    let face = Face::of(service, name.family, node, &answers);
    let ports = service.ports.iter().rev();
    let port = ports.clone().find(|port| port.name == name.port && port.protocol == name.protocol);
    let (Some(face), Some(port)) = (face, port) else { return Vec::new() };
    let policies = policies(service, &face, port);
    fates(slices, name, place(node, settings), policies)
}

fn place<'a>(node: &'a Node, settings: &'a Settings) -> Place<'a> {
    Place { node: &settings.node_name, zone: node.zone.as_deref().unwrap_or("") }
}

fn policies(service: &Service, face: &Face<'_>, port: &Port) -> Policies {
    Policies {
        internal: service.internal_policy,
        external: service.external_policy,
        external_destination: face.has_external_destination(port),
    }
}

/// Whether a policy asks for endpoints of this node, and there are some.
fn has_local(serving: &Serving, policy: u16) -> bool {
    serving.policy & policy != 0 && !(serving.both.is_empty() && serving.local_only.is_empty())
}

/// The endpoints in their three runs. `candidates` are sorted and without duplicates, so the runs are.
fn serving(candidates: &[Candidate<'_>], selection: &Selection) -> Serving {
    let mut serving = Serving::default();
    let count = |cluster, local| {
        // As long as they will be: there is one for each endpoint of the cluster.
        let sets = selection.sets.iter();
        Vec::with_capacity(sets.filter(|sets| (sets.cluster, sets.local) == (cluster, local)).count())
    };
    serving.cluster_only = count(true, false);
    serving.both = count(true, true);
    serving.local_only = count(false, true);
    for (candidate, sets) in candidates.iter().zip(&selection.sets) {
        let run = match (sets.cluster, sets.local) {
            (true, false) => &mut serving.cluster_only,
            (true, true) => &mut serving.both,
            (false, true) => &mut serving.local_only,
            (false, false) => continue,
        };
        // An extent's header counts a run in 16 bits.
        if run.len() < usize::from(u16::MAX) {
            run.push(candidate.endpoint);
        }
    }
    if selection.any_endpoints {
        serving.policy |= Bits::ANY_ENDPOINTS;
    }
    serving
}
