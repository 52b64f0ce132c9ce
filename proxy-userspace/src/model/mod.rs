//! What the node should serve, computed from what the cluster and the node say. Pure: no async, no clock, no kube.
//!
//! | step | file |
//! |---|---|
//! | what the sources said, and what of it is new | `inputs` |
//! | what one Service adds: which endpoints serve, where it is dialled | `share`, [`endpoints`], `frontends` |
//! | why an endpoint does not serve, for people | [`fates`] |
//! | whose an address is that two Services claim | `claims` |
//! | what none of them may claim | [`reserved`] |
//! | the node's own addresses | `local` |
//! | what it has of Services that ask for endpoints here | `nearby` |
//! | what only the kernel can tell | `questions` |
//! | where Services' addresses are | `service_ranges` |
//! | which devices get programs, and what these are told | `devices`, `masquerade` |
//! | all together | [`desired`] |

mod claims;
pub mod desired;
mod devices;
pub mod endpoints;
pub mod fates;
mod frontends;
mod inputs;
mod local;
mod masquerade;
mod nearby;
mod placement;
mod questions;
pub mod reserved;
mod service_ranges;
pub mod settings;
mod share;
#[cfg(test)]
mod tests;
pub mod types;

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use claims::{Claim, Claims, Owned};
pub use desired::{Attachment, Desired, HealthCheck, NoLocalEndpoints, Serving, Target, Touched};
use devices::Devices;
pub use fates::{Fate, Why};
use inputs::Inputs;
pub use placement::Placement;
use proxy_common::layout::{FrontendKey, FrontendKind, Policy as Bits};
pub use questions::{HostSource, Questions};
pub use reserved::Reserved;
use service_ranges::MarkedAddresses;
pub use settings::{LocalDetector, NodePortAddresses, Profile, Settings};
use share::{Ground, Share, fates_of};
pub use types::{
    Change, Cidr, Endpoint, Family, Group, Link, LinkAddress, LocalRoute, Node, ObjectName, Policy, Port,
    Scope, Service, ServicePortName, Slice, SlicePort, Source,
};

/// From changes to [`Desired`], Service by Service: what nothing was said of is not computed again. The result depends
/// on what the sources say now, not on how they came to say it.
#[derive(Debug)]
pub struct Model {
    settings: Settings,
    inputs: Inputs,
    desired: Desired,
    /// What each Service of `desired` has in it.
    placed: HashMap<ObjectName, Placed>,
    claims: Claims,
    /// In modes that refuse what no Service declares: the ClusterIPs where they do, and the other addresses.
    marked: [MarkedAddresses; 2],
    /// What the API server's Service served before this model was made, by the names of its ports.
    remembered: HashMap<String, Arc<Serving>>,
}

/// What stands in [`Desired`] for one Service.
#[derive(Debug, Default)]
struct Placed {
    /// Sorted.
    services: Box<[ServicePortName]>,
    frontends: Box<[(FrontendKey, Claim)]>,
    /// See [`Model::marked`].
    marked: [Vec<IpAddr>; 2],
}

impl Model {
    /// Of a node with these settings, which nothing is known of yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            inputs: Inputs::new(settings.packet_plane, settings.pod_opt_out),
            settings,
            desired: Desired::default(),
            placed: HashMap::new(),
            claims: Claims::default(),
            marked: Default::default(),
            remembered: HashMap::new(),
        }
    }

    /// There is somebody who answers [`Desired::questions`]: the first answer of this model waits for his.
    #[must_use]
    pub fn asking(mut self) -> Self {
        self.inputs.await_answers(true);
        self
    }

    /// Answer without what only the kernel can tell: the node dials from its first address, and nobody listens.
    pub fn give_up_asking(&mut self) {
        self.inputs.await_answers(false);
    }

    /// Takes in what a source said; [`Self::update`] draws the conclusions. What can't be read stays as it was last known.
    pub fn fold(&mut self, change: Change) {
        if let Change::ApiServers(all) = &change {
            let old = std::mem::replace(&mut self.settings.reserved.api_servers, all.clone());
            self.inputs.touch_addressed(&old.symmetric_difference(all).map(SocketAddr::ip).collect());
        }
        self.inputs.fold(change);
    }

    /// The sources that have not told everything yet: until they have, there is no answer.
    pub fn waiting_for(&self) -> Vec<Source> {
        self.inputs.waiting_for()
    }

    /// What the tables say that a ServicePort serves, by its name ([`ServicePortName`]'s text). Only the API server's own is
    /// kept: its last endpoints are used until it has others.
    pub fn remember(&mut self, name: &str, serving: Serving) {
        if name.starts_with("default/kubernetes:") && !serving.is_empty() {
            self.remembered.insert(name.to_owned(), Arc::new(serving));
        }
    }

    /// Answer without the own Node: no zone, no addresses (spec §1.6).
    pub fn give_up_waiting_for_node(&mut self) {
        self.inputs.give_up_waiting_for_node();
    }

    /// Answer though it is not known which pods ask to be left to packets: none does.
    pub fn give_up_waiting_for_pods(&mut self) {
        self.inputs.give_up_waiting_for_pods();
    }

    /// Brings [`Self::desired`] up to date and says what differs from before; `None` while a source is waited for.
    pub fn update(&mut self) -> Option<Touched> {
        if let Some(questions) = self.inputs.ask() {
            self.desired.questions = questions;
        }
        if !self.waiting_for().is_empty() {
            return None;
        }
        self.inputs.await_answers(false);
        let dirty = self.inputs.take_dirty();
        let mut touched = Touched::default();
        for name in dirty.services {
            self.place(name, &mut touched);
        }
        if dirty.service_ranges || touched.service_ranges {
            self.place_service_ranges(&mut touched);
        }
        if dirty.local_addresses {
            let node = self.inputs.node().cloned().unwrap_or_default();
            let addresses = local::addresses(self.inputs.local_routes(), &self.settings, &node);
            touched.local_addresses = addresses != self.desired.local_addresses;
            self.desired.local_addresses = addresses;
            let addresses = local::health_check_addresses(self.inputs.local_routes(), &self.settings, &node);
            touched.health_checks |= addresses != self.desired.health_check_addresses;
            self.desired.health_check_addresses = addresses;
        }
        if dirty.devices {
            let node = self.inputs.node().cloned().unwrap_or_default();
            let devices = Devices { links: self.inputs.links(), settings: &self.settings, node: &node };
            let (attachments, ranges) = (devices.attachments(), devices.pod_ranges());
            let masquerade = devices.masquerade(&attachments);
            touched.devices = attachments != self.desired.devices
                || masquerade != self.desired.masquerade
                || ranges != self.desired.pod_ranges;
            (self.desired.devices, self.desired.pod_ranges) = (attachments, ranges);
            self.desired.masquerade = masquerade;
        }
        if dirty.left_pods {
            self.desired.left_pods = self.inputs.left_pods();
            touched.devices = true;
        }
        Some(touched)
    }

    /// What the node should serve, as of the last [`Self::update`].
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// What becomes of each endpoint of a ServicePort, by the choice that [`Self::update`] makes.
    pub fn fates(&self, port: &ServicePortName) -> Vec<Fate> {
        let nowhere = Node::default();
        let node = self.inputs.node().unwrap_or(&nowhere);
        let slices = self.inputs.slices_of(&port.service);
        let service = self.inputs.service_of(&port.service);
        service.map_or_else(Vec::new, |service| fates_of(service, slices, node, &self.settings, port))
    }

    /// Puts what a Service is now in the place of what it was.
    fn place(&mut self, name: ObjectName, touched: &mut Touched) {
        let old = self.placed.remove(&name).unwrap_or_default();
        let mut share = match self.inputs.service_of(&name) {
            Some(service) => {
                let nowhere = Node::default();
                let node = self.inputs.node().unwrap_or(&nowhere);
                let answers = self.inputs.answers_to(&name);
                let ground = Ground {
                    node,
                    settings: &self.settings,
                    answers: &answers,
                    routes: self.inputs.local_routes(),
                };
                Share::of(service, self.inputs.slices_of(&name), &ground)
            }
            None => Share::default(),
        };
        if is_api_server(&name) {
            self.keep_last_endpoints(&mut share);
        }

        let Desired { frontends, left_to_sockets, .. } = &mut self.desired;
        let mut owned = Owned { frontends, left_to_sockets };
        self.claims.replace(&old.frontends, &share.frontends, &mut owned, touched);
        let marked = marked(&share.frontends);
        for ((all, old), new) in self.marked.iter_mut().zip(&old.marked).zip(&marked) {
            touched.service_ranges |= all.replace(old, new);
        }
        let services = share.services.keys().cloned().collect();
        let now = Placed { services, frontends: share.frontends.into(), marked };
        let lacking = &mut self.desired.no_local_endpoints;
        for gone in old.services.iter().filter(|name| now.services.binary_search(name).is_err()) {
            let known = self.desired.services.remove(gone);
            lacking.replace(gone.family, known.as_deref(), None);
            touched.services.insert(gone.clone());
        }
        for (port, serving) in share.services {
            let known = self.desired.services.get(&port);
            if known.is_none_or(|known| **known != serving) {
                lacking.replace(port.family, known.map(Arc::as_ref), Some(&serving));
                self.desired.services.insert(port.clone(), Arc::new(serving));
                touched.services.insert(port);
            }
        }
        let checks = &mut self.desired.health_checks;
        for family in [Family::V4, Family::V6] {
            let (key, check) = ((name.clone(), family), share.health_checks.remove(&family));
            let known = match check {
                Some(check) => checks.insert(key, check),
                None => checks.remove(&key),
            };
            touched.health_checks |= known != check;
        }
        if !now.services.is_empty() {
            self.placed.insert(name, now);
        }
    }

    fn place_service_ranges(&mut self, touched: &mut Touched) {
        let ranges = match self.settings.profile {
            Profile::Nftables => self.inputs.service_ranges(),
            Profile::Iptables | Profile::Ipvs => BTreeSet::new(),
        };
        let cover = self.marked.iter().flat_map(|marked| marked.cover(&ranges)).collect();
        let desired = &mut self.desired;
        touched.service_ranges = ranges != desired.service_ranges || cover != desired.marked_cover;
        (desired.service_ranges, desired.marked_cover) = (ranges, cover);
    }

    /// An API server that lost its endpoints for a moment, as when it is the only one and restarts, could otherwise
    /// never tell through its own Service that it has them again.
    fn keep_last_endpoints(&self, share: &mut Share) {
        for (port, serving) in &mut share.services {
            let last = self.desired.services.get(port).or_else(|| self.remembered.get(&port.to_string()));
            if let Some(last) = last
                && serving.is_empty()
            {
                *serving = Serving {
                    policy: serving.policy | last.policy & Bits::ANY_ENDPOINTS,
                    affinity_seconds: serving.affinity_seconds,
                    source_ranges: std::mem::take(&mut serving.source_ranges),
                    ..(**last).clone()
                };
            }
        }
    }
}

/// The ClusterIPs that a Service has marks for, and its other addresses that it has some for.
fn marked(frontends: &[(FrontendKey, Claim)]) -> [Vec<IpAddr>; 2] {
    let mut addresses = [BTreeSet::new(), BTreeSet::new()];
    let is_mark = |key: &FrontendKey| *key == FrontendKey::mark(key.address());
    for (key, claim) in frontends.iter().filter(|(key, _)| is_mark(key)) {
        let others = claim.target.kind != FrontendKind::ClusterIp;
        addresses[usize::from(others)].insert(key.address().ip());
    }
    addresses.map(Vec::from_iter)
}

/// The API server's own Service.
fn is_api_server(name: &ObjectName) -> bool {
    &*name.namespace == "default" && &*name.name == "kubernetes"
}
