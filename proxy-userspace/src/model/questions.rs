//! What only the node's kernel can tell about Services: what is asked of it, and what it answered.
//!
//! | asked | because |
//! |---|---|
//! | from which address the node dials a load balancer's | source ranges filter the node's own processes too (spec §2.8) |
//! | whether a socket listens at a ClusterIP that a device of the node has | it is that socket's then (NodeLocal DNS) |
//! | which cgroups some pods have | their sockets are left to packets |

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use proxy_common::{Protocol, layout::FrontendKey};

use super::{Cidr, Family, LocalRoute, ObjectName, Service, local};

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Questions {
    /// From which address do processes of the node dial these?
    pub sources: BTreeSet<IpAddr>,
    /// Does a socket of the node listen at these? TCP and UDP.
    pub listeners: BTreeSet<FrontendKey>,
    /// Which cgroups have the pods of these uids?
    pub groups: BTreeSet<Arc<str>>,
}

/// From where processes of the node dial an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostSource {
    /// From this one, as the routing tables and rules are.
    Address(IpAddr),
    /// There is no way to it.
    NoRoute,
}

/// What was answered so far.
#[derive(Debug, Default)]
pub(super) struct Answers {
    sources: BTreeMap<IpAddr, HostSource>,
    listeners: BTreeMap<FrontendKey, bool>,
}

impl Answers {
    /// From where the node dials `address`; `None`: not known.
    pub(super) fn source(&self, address: IpAddr) -> Option<HostSource> {
        self.sources.get(&address).copied()
    }

    /// Whether a socket listens there, as far as is known.
    pub(super) fn listens(&self, key: &FrontendKey) -> bool {
        self.listeners.get(key).copied().unwrap_or(false)
    }

    /// The answers to these.
    pub(super) fn only(&self, questions: &Questions) -> Self {
        let sources = questions.sources.iter().filter_map(|it| Some((*it, *self.sources.get(it)?)));
        let listeners = questions.listeners.iter().filter_map(|it| Some((*it, *self.listeners.get(it)?)));
        Self { sources: sources.collect(), listeners: listeners.collect() }
    }

    /// Whether all of it is answered.
    pub(super) fn cover(&self, questions: &Questions) -> [bool; 2] {
        [
            questions.sources.iter().all(|address| self.sources.contains_key(address)),
            questions.listeners.iter().all(|key| self.listeners.contains_key(key)),
        ]
    }

    /// Takes answers in the place of those that were; gives the addresses about which they differ.
    pub(super) fn set_sources(&mut self, all: BTreeMap<IpAddr, HostSource>) -> BTreeSet<IpAddr> {
        let old = std::mem::replace(&mut self.sources, all);
        differences(&old, &self.sources).copied().collect()
    }

    /// Likewise.
    pub(super) fn set_listeners(&mut self, all: BTreeMap<FrontendKey, bool>) -> BTreeSet<IpAddr> {
        let old = std::mem::replace(&mut self.listeners, all);
        differences(&old, &self.listeners).map(|key| key.address().ip()).collect()
    }
}

fn differences<'a, K: Ord, V: PartialEq>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    let changed = old.iter().filter(|(key, value)| new.get(key) != Some(value)).map(|(key, _)| key);
    changed.chain(new.keys().filter(|key| !old.contains_key(key)))
}

impl Questions {
    /// What one Service asks.
    pub(super) fn of(service: &Service, routes: &BTreeSet<LocalRoute>) -> Self {
        let mut questions = Self::default();
        for family in [Family::V4, Family::V6] {
            let of_family = |address: &IpAddr| Family::of(*address) == family;
            let Some(cluster_ip) = service.cluster_ips.iter().copied().find(of_family) else { continue };
            if service.source_ranges.iter().any(|range| of_family(&range.address)) {
                questions.sources.extend(service.load_balancer_ips.iter().copied().filter(of_family));
            }
            if is_on_a_device(cluster_ip, routes) {
                let heard = service.ports.iter().filter(|port| port.protocol != Protocol::Sctp);
                let key = |port: &super::Port| FrontendKey::new(cluster_ip.into(), port.port, port.protocol);
                questions.listeners.extend(heard.map(key));
            }
        }
        questions
    }

    fn is_empty(&self) -> bool {
        self.sources.is_empty() && self.listeners.is_empty()
    }
}

/// Whether a device of the node has this address; kube-proxy's device for VIPs does not count.
pub(super) fn is_on_a_device(address: IpAddr, routes: &BTreeSet<LocalRoute>) -> bool {
    let prefix = Cidr { address, length: local::full_length(Family::of(address)) };
    let first = LocalRoute { prefix, device: "".into() };
    let mut here = routes.range(first..).take_while(|route| route.prefix == prefix);
    here.any(|route| &*route.device != local::IPVS_DEVICE)
}

/// Who asks what.
#[derive(Debug, Default)]
pub(super) struct Asked {
    by_service: BTreeMap<ObjectName, Questions>,
    by_address: BTreeMap<IpAddr, BTreeSet<ObjectName>>,
}

impl Asked {
    /// A Service asks this now, in the place of what it asked. Whether that is anything else.
    pub(super) fn replace(&mut self, service: &ObjectName, questions: Questions) -> bool {
        let old = self.by_service.remove(service).unwrap_or_default();
        for address in old.addresses() {
            if let Some(services) = self.by_address.get_mut(&address) {
                services.remove(service);
                if services.is_empty() {
                    self.by_address.remove(&address);
                }
            }
        }
        let is_new = old != questions;
        for address in questions.addresses() {
            self.by_address.entry(address).or_default().insert(service.clone());
        }
        if !questions.is_empty() {
            self.by_service.insert(service.clone(), questions);
        }
        is_new
    }

    /// What one asks.
    pub(super) fn of(&self, service: &ObjectName) -> Option<&Questions> {
        self.by_service.get(service)
    }

    /// All of it.
    pub(super) fn all(&self) -> Questions {
        let mut all = Questions::default();
        for questions in self.by_service.values() {
            all.sources.extend(&questions.sources);
            all.listeners.extend(&questions.listeners);
        }
        all
    }

    /// The Services that ask about one of these.
    pub(super) fn about(&self, addresses: &BTreeSet<IpAddr>) -> impl Iterator<Item = &ObjectName> {
        addresses.iter().filter_map(|address| self.by_address.get(address)).flatten()
    }
}

impl Questions {
    fn addresses(&self) -> BTreeSet<IpAddr> {
        self.sources.iter().copied().chain(self.listeners.iter().map(|key| key.address().ip())).collect()
    }
}
