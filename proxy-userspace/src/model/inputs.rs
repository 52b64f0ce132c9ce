//! What is known of the cluster and the node, and which part of it is newer than the last answer. Folding a change in
//! costs what the change is big, not what is known.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::{
    Change, Cidr, Group, Link, LocalRoute, Node, ObjectName, Service, Slice, Source, local,
    questions::{Answers, Asked, Questions},
};

/// All that the sources said.
#[derive(Debug)]
pub(super) struct Inputs {
    services: HashMap<ObjectName, Arc<Service>>,
    slices: HashMap<ObjectName, Arc<Slice>>,
    /// Slices of each Service that has some, known or not, in the order of their names.
    by_service: HashMap<ObjectName, Vec<Arc<Slice>>>,
    node: Option<Node>,
    local_routes: BTreeSet<LocalRoute>,
    links: BTreeMap<u32, Link>,
    /// Pods may ask to be left to packets.
    follows_pods: bool,
    /// Uids of those that do.
    left_pods: BTreeMap<ObjectName, Arc<str>>,
    /// Cgroups by uids, as far as they were told.
    groups: BTreeMap<Arc<str>, Option<Group>>,
    /// There is something new to be asked about them.
    new_pods: bool,
    /// The ranges of each ServiceCIDR.
    service_cidrs: BTreeMap<ObjectName, Arc<[Cidr]>>,
    /// Those that have not told everything yet.
    awaited: BTreeSet<Source>,
    asked: Asked,
    answers: Answers,
    /// Somebody answers, and has not yet done so once.
    awaits_answers: bool,
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
    /// Pods whose sockets are left to packets, or their cgroups.
    pub(super) left_pods: bool,
    /// The ranges of ClusterIPs.
    pub(super) service_ranges: bool,
}

impl Inputs {
    /// Nothing yet; devices matter only where there is a packet plane, and pods only if they may ask for something.
    pub(super) fn new(packet_plane: bool, pods: bool) -> Self {
        let mut awaited =
            BTreeSet::from([Source::Services, Source::Slices, Source::Node, Source::LocalRoutes]);
        awaited.extend(packet_plane.then_some(Source::Links));
        awaited.extend(pods.then_some(Source::Pods));
        Self {
            services: HashMap::new(),
            slices: HashMap::new(),
            by_service: HashMap::new(),
            node: None,
            local_routes: BTreeSet::new(),
            links: BTreeMap::new(),
            follows_pods: pods,
            left_pods: BTreeMap::new(),
            groups: BTreeMap::new(),
            new_pods: false,
            service_cidrs: BTreeMap::new(),
            awaited,
            asked: Asked::default(),
            answers: Answers::default(),
            awaits_answers: false,
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
                    let moved = local::moved(&self.local_routes, &all);
                    self.touch_addressed(&moved);
                    self.local_routes = all;
                    self.dirty.local_addresses = true;
                }
                self.awaited.remove(&Source::LocalRoutes);
            }
            Change::ServiceCidr(name, ranges) => {
                match ranges {
                    Some(ranges) => self.service_cidrs.insert(name, ranges),
                    None => self.service_cidrs.remove(&name),
                };
                self.dirty.service_ranges = true;
            }
            Change::ServiceCidrs(all) => {
                self.service_cidrs = all;
                self.dirty.service_ranges = true;
            }
            Change::Links(all) => {
                if self.links != all {
                    self.links = all;
                    self.dirty.devices = true;
                }
                self.awaited.remove(&Source::Links);
            }
            Change::HostSources(all) => {
                let addresses = self.answers.set_sources(all);
                self.dirty.services.extend(self.asked.about(&addresses).cloned());
            }
            Change::Listeners(all) => {
                let addresses = self.answers.set_listeners(all);
                self.dirty.services.extend(self.asked.about(&addresses).cloned());
            }
            // A folder has them whether or not they are asked for.
            Change::LeftPod(..) | Change::LeftPods(_) if !self.follows_pods => {}
            Change::LeftPod(name, uid) => {
                let old = match uid.clone() {
                    Some(uid) => self.left_pods.insert(name, uid),
                    None => self.left_pods.remove(&name),
                };
                self.touch_pods(old != uid);
            }
            Change::LeftPods(all) => {
                let is_new = self.left_pods != all;
                self.left_pods = all;
                self.touch_pods(is_new);
                self.awaited.remove(&Source::Pods);
            }
            Change::Groups(all) => {
                self.dirty.left_pods |= self.groups != all;
                self.groups = all;
            }
            // Of one that can't be read: it stays as it was; one that was not known is not there.
            Change::Malformed { .. } | Change::ApiServers(_) => {}
        }
    }

    /// The sources that have not told everything yet. A node once seen counts as told, even when it is gone again.
    pub(super) fn waiting_for(&self) -> Vec<Source> {
        if !self.awaited.is_empty() || !self.awaits_answers {
            return self.awaited.iter().copied().collect();
        }
        let [sources, listeners] = self.answers.cover(&self.asked.all());
        let groups = self.left_pods.values().all(|uid| self.groups.contains_key(uid));
        let missing =
            [(Source::HostSources, sources), (Source::Listeners, listeners), (Source::Groups, groups)];
        missing.into_iter().filter(|(_, is_covered)| !is_covered).map(|(source, _)| source).collect()
    }

    /// The first answer waits for what is asked, until somebody gives up waiting.
    pub(super) fn await_answers(&mut self, awaits: bool) {
        self.awaits_answers = awaits;
    }

    /// What there is to be asked now, if that is anything else than before; `None` too before all is known that it
    /// depends on.
    pub(super) fn ask(&mut self) -> Option<Questions> {
        if !self.awaited.is_empty() {
            return None;
        }
        let mut is_new = std::mem::take(&mut self.new_pods);
        for name in &self.dirty.services {
            let service = self.services.get(name);
            let questions = service.map(|service| Questions::of(service, &self.local_routes));
            is_new |= self.asked.replace(name, questions.unwrap_or_default());
        }
        is_new.then(|| Questions { groups: self.left_pods.values().cloned().collect(), ..self.asked.all() })
    }

    /// Pods whose sockets are left to packets, and their cgroups.
    pub(super) fn left_pods(&self) -> BTreeMap<ObjectName, Option<Group>> {
        let group = |uid: &Arc<str>| self.groups.get(uid).copied().flatten();
        self.left_pods.iter().map(|(name, uid)| (name.clone(), group(uid))).collect()
    }

    fn touch_pods(&mut self, is_new: bool) {
        self.new_pods |= is_new;
        self.dirty.left_pods |= is_new;
    }

    /// What was answered to a Service, as far as it still asks.
    pub(super) fn answers_to(&self, service: &ObjectName) -> Answers {
        self.asked.of(service).map_or_else(Answers::default, |questions| self.answers.only(questions))
    }

    /// Go on without the Node.
    pub(super) fn give_up_waiting_for_node(&mut self) {
        self.awaited.remove(&Source::Node);
    }

    /// Go on without the Pods: all are served at their sockets.
    pub(super) fn give_up_waiting_for_pods(&mut self) {
        self.awaited.remove(&Source::Pods);
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
        self.by_service.get(service).into_iter().flatten().map(Arc::as_ref)
    }

    /// The own Node.
    pub(super) fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// The network devices by ifindex.
    pub(super) fn links(&self) -> &BTreeMap<u32, Link> {
        &self.links
    }

    /// The ranges that ClusterIPs are allotted from.
    pub(super) fn service_ranges(&self) -> BTreeSet<Cidr> {
        self.service_cidrs.values().flat_map(|ranges| ranges.iter().copied()).collect()
    }

    /// The local routing table.
    pub(super) fn local_routes(&self) -> &BTreeSet<LocalRoute> {
        &self.local_routes
    }

    /// What these addresses are decides who serves them: the node's own devices', the API server's.
    pub(super) fn touch_addressed(&mut self, addresses: &BTreeSet<IpAddr>) {
        if addresses.is_empty() {
            return;
        }
        let has = |service: &Service| {
            let of = [&service.cluster_ips, &service.load_balancer_ips, &service.external_ips];
            of.into_iter().flatten().any(|address| addresses.contains(address))
        };
        let concerned = self.services.iter().filter(|(_, service)| has(service));
        self.dirty.services.extend(concerned.map(|(name, _)| name.clone()));
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
            slices.retain(|slice| slice.name != name);
            if slices.is_empty() {
                self.by_service.remove(&old.service);
            }
            self.dirty.services.insert(old.service.clone());
        }
        if let Some(slice) = slice {
            self.dirty.services.insert(slice.service.clone());
            let slices =
                self.by_service.entry(slice.service.clone()).or_insert_with(|| Vec::with_capacity(1));
            let place = slices.partition_point(|other| other.name < name);
            slices.insert(place, slice);
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
