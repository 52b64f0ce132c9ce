//! What is known of the cluster and the node, and which part of it is newer than the last answer. Folding a change in
//! costs what the change is big, not what is known.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{Change, Link, LocalRoute, Node, ObjectName, Service, Slice, Source};

/// All that the sources said.
#[derive(Debug)]
pub(super) struct Inputs {
    services: HashMap<ObjectName, Arc<Service>>,
    slices: HashMap<ObjectName, Arc<Slice>>,
    /// Slices of each Service that has some, known or not, in the order of their names.
    by_service: HashMap<ObjectName, BTreeMap<ObjectName, Arc<Slice>>>,
    node: Option<Node>,
    local_routes: BTreeSet<LocalRoute>,
    links: BTreeMap<u32, Link>,
    /// Those that have not told everything yet.
    awaited: BTreeSet<Source>,
    dirty: Dirty,
}

/// What changed and was not answered yet.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Dirty {
    /// Services that came, changed or went, or whose slices did.
    pub(super) services: BTreeSet<ObjectName>,
    /// The node's addresses, or what is served on them.
    pub(super) local_addresses: bool,
    /// The node's devices, or whose packets arrive there.
    pub(super) devices: bool,
}

impl Inputs {
    /// Nothing yet; devices matter only where there is a packet plane.
    pub(super) fn new(packet_plane: bool) -> Self {
        let mut awaited =
            BTreeSet::from([Source::Services, Source::Slices, Source::Node, Source::LocalRoutes]);
        awaited.extend(packet_plane.then_some(Source::Links));
        Self {
            services: HashMap::new(),
            slices: HashMap::new(),
            by_service: HashMap::new(),
            node: None,
            local_routes: BTreeSet::new(),
            links: BTreeMap::new(),
            awaited,
            // A node without addresses has an answer too.
            dirty: Dirty { local_addresses: true, ..Dirty::default() },
        }
    }

    /// Takes a change in.
    pub(super) fn fold(&mut self, change: Change) {
        match change {
            Change::Service(name, service) => self.service(name, service),
            Change::Slice(name, slice) => self.slice(name, slice),
            Change::Node(node) => self.set_node(node),
            Change::Services(all) => {
                let all: HashMap<_, _> =
                    all.into_iter().map(|service| (service.name.clone(), service)).collect();
                for name in missing(self.services.keys(), &all) {
                    self.service(name, None);
                }
                for (name, service) in all {
                    self.service(name, Some(service));
                }
                self.awaited.remove(&Source::Services);
            }
            Change::Slices(all) => {
                let all: HashMap<_, _> = all.into_iter().map(|slice| (slice.name.clone(), slice)).collect();
                for name in missing(self.slices.keys(), &all) {
                    self.slice(name, None);
                }
                for (name, slice) in all {
                    self.slice(name, Some(slice));
                }
                self.awaited.remove(&Source::Slices);
            }
            Change::LocalRoutes(all) => {
                if self.local_routes != all {
                    self.local_routes = all;
                    self.dirty.local_addresses = true;
                }
                self.awaited.remove(&Source::LocalRoutes);
            }
            Change::Links(all) => {
                if self.links != all {
                    self.links = all;
                    self.dirty.devices = true;
                }
                self.awaited.remove(&Source::Links);
            }
            // It stays as it was; one that was not known is not there.
            Change::Malformed { .. } => {}
        }
    }

    /// The sources that have not told everything yet. A node once seen counts as told, even when it is gone again.
    pub(super) fn waiting_for(&self) -> Vec<Source> {
        self.awaited.iter().copied().collect()
    }

    /// Go on without the Node.
    pub(super) fn give_up_waiting_for_node(&mut self) {
        self.awaited.remove(&Source::Node);
    }

    /// What changed since this was last asked.
    pub(super) fn take_dirty(&mut self) -> Dirty {
        std::mem::take(&mut self.dirty)
    }

    /// A Service.
    pub(super) fn service_of(&self, name: &ObjectName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// Its slices, in the order of their names.
    pub(super) fn slices_of(&self, service: &ObjectName) -> impl Iterator<Item = &Slice> + Clone {
        self.by_service.get(service).into_iter().flat_map(BTreeMap::values).map(Arc::as_ref)
    }

    /// The own Node.
    pub(super) fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// The network devices by ifindex.
    pub(super) fn links(&self) -> &BTreeMap<u32, Link> {
        &self.links
    }

    /// The local routing table.
    pub(super) fn local_routes(&self) -> &BTreeSet<LocalRoute> {
        &self.local_routes
    }

    fn service(&mut self, name: ObjectName, service: Option<Arc<Service>>) {
        if self.services.get(&name) == service.as_ref() {
            return;
        }
        match service {
            Some(service) => self.services.insert(name.clone(), service),
            None => self.services.remove(&name),
        };
        self.dirty.services.insert(name);
    }

    fn slice(&mut self, name: ObjectName, slice: Option<Arc<Slice>>) {
        if self.slices.get(&name) == slice.as_ref() {
            return;
        }
        let old = match &slice {
            Some(slice) => self.slices.insert(name.clone(), slice.clone()),
            None => self.slices.remove(&name),
        };
        if let Some(old) = old
            && let Some(slices) = self.by_service.get_mut(&old.service)
        {
            slices.remove(&name);
            if slices.is_empty() {
                self.by_service.remove(&old.service);
            }
            self.dirty.services.insert(old.service.clone());
        }
        if let Some(slice) = slice {
            self.dirty.services.insert(slice.service.clone());
            self.by_service.entry(slice.service.clone()).or_default().insert(name, slice);
        }
    }

    /// Every Service is subject to where the node is and how it is addressed; nothing else of it matters here.
    fn set_node(&mut self, node: Option<Node>) {
        if node.is_some() {
            self.awaited.remove(&Source::Node);
        }
        let matters = |node: &Option<Node>| {
            let of = |node: &Node| (node.zone.clone(), node.addresses.clone(), node.pod_cidrs.clone());
            node.as_ref().map(of).unwrap_or_default()
        };
        if matters(&self.node) != matters(&node) {
            self.dirty.services.extend(self.services.keys().cloned());
            self.dirty.local_addresses = true;
            self.dirty.devices = true;
        }
        self.node = node;
    }
}

/// What a full list no longer has.
fn missing<'a, T>(
    known: impl Iterator<Item = &'a ObjectName>,
    listed: &HashMap<ObjectName, T>,
) -> Vec<ObjectName> {
    known.filter(|name| !listed.contains_key(*name)).cloned().collect()
}
