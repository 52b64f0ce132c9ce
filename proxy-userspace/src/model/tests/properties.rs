//! Whatever happens in whatever order: the answer is that of what is, and what differs is named.

use std::net::SocketAddr;

use proptest::{collection::vec, option, prelude::*, sample::subsequence};

use super::*;

const SERVICES: [&str; 3] = ["shop/a", "shop/b", "shop/c"];
const SLICES: [&str; 4] = ["shop/s0", "shop/s1", "shop/s2", "shop/s3"];
const PORTS: [(&str, Protocol); 3] = [("http", Protocol::Tcp), ("http", Protocol::Udp), ("", Protocol::Tcp)];
const VIPS: [&str; 4] = ["198.51.100.1", "10.96.0.2", "2001:db8::1", "fd00:96::1"];

fn policy() -> impl Strategy<Value = Policy> {
    prop_oneof![Just(Policy::Cluster), Just(Policy::Local)]
}

fn vips() -> impl Strategy<Value = Vec<IpAddr>> {
    subsequence(&VIPS, 0..3).prop_map(|vips| vips.into_iter().map(ip).collect())
}

/// ClusterIPs are not the services' own: they may be in each other's way too.
fn any_service(who: &'static str) -> impl Strategy<Value = Service> {
    let cluster_ips = prop_oneof![
        Just(vec!["10.96.0.1"]),
        Just(vec!["10.96.0.2", "fd00:96::1"]),
        Just(vec!["fd00:96::2", "10.96.0.3"]),
    ];
    let ports = subsequence(&PORTS, 0..=3).prop_flat_map(|ports| {
        let numbers = vec((80..82_u16, prop_oneof![Just(0), Just(30080), Just(30081)]), ports.len());
        numbers.prop_map(move |numbers| {
            let ports = ports.iter().zip(numbers).map(|((name, protocol), (port, node_port))| Port {
                name: (*name).into(),
                protocol: *protocol,
                port,
                node_port,
            });
            ports.collect()
        })
    });
    let range = Cidr { address: ip("192.168.0.0"), length: 24 };
    let policies = (policy(), policy(), any::<bool>(), option::of(1..9_u32), option::of(31000..31002_u16));
    (cluster_ips, ports, vips(), vips(), policies).prop_map(
        move |(
            cluster_ips,
            ports,
            external_ips,
            load_balancer_ips,
            (internal, external, filtered, affinity, health_check_node_port),
        )| {
            Service {
                name: name(who),
                cluster_ips: cluster_ips.into_iter().map(ip).collect(),
                ports,
                external_ips,
                load_balancer_ips,
                source_ranges: if filtered { vec![range] } else { Vec::new() },
                internal_policy: internal,
                external_policy: external,
                affinity_seconds: affinity,
                health_check_node_port,
            }
        },
    )
}

fn names(of: &'static [&'static str]) -> impl Strategy<Value = BTreeSet<Arc<str>>> {
    subsequence(of, 0..2).prop_map(|names| names.into_iter().map(Arc::from).collect())
}

fn any_endpoint(family: Family) -> impl Strategy<Value = Endpoint> {
    let node = option::of(prop_oneof![Just("n1"), Just("n2")]);
    let conditions = (any::<bool>(), any::<bool>(), any::<bool>());
    (1..5_u8, node, conditions, names(&["a", "b"]), names(&["n1", "n2"])).prop_map(
        move |(host, node, (ready, serving, terminating), for_zones, for_nodes)| Endpoint {
            address: if family == Family::V4 {
                ip(&format!("10.0.0.{host}"))
            } else {
                ip(&format!("fd00::{host}"))
            },
            ready,
            serving,
            terminating,
            placement: Arc::new(Placement { node: node.map(Arc::from), for_zones, for_nodes }),
        },
    )
}

fn any_slice(who: &'static str) -> impl Strategy<Value = Slice> {
    let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
    (prop::sample::select(&SERVICES), family, subsequence(&PORTS, 0..=3)).prop_flat_map(
        move |(service, family, ports)| {
            let ports: Vec<_> = ports
                .iter()
                .map(|(name, protocol)| SlicePort { name: (*name).into(), protocol: *protocol, port: 8080 })
                .collect();
            vec(any_endpoint(family), 0..4).prop_map(move |endpoints| Slice {
                name: name(who),
                service: name(service),
                family,
                ports: ports.clone(),
                endpoints,
            })
        },
    )
}

fn some<T: std::fmt::Debug>(strategies: Vec<impl Strategy<Value = T>>) -> impl Strategy<Value = Vec<Arc<T>>> {
    let each: Vec<_> = strategies.into_iter().map(option::of).collect();
    each.prop_map(|all| all.into_iter().flatten().map(Arc::new).collect())
}

fn any_routes() -> impl Strategy<Value = BTreeSet<LocalRoute>> {
    let all = vec![
        ("192.168.0.2", "eth0"),
        ("192.168.0.3", "eth0"),
        ("127.0.0.1", "lo"),
        ("10.96.0.1", "nodelocaldns"),
        ("10.96.0.2", "nodelocaldns"),
        ("10.96.0.2", "kube-ipvs0"),
    ];
    subsequence(all, 0..=6).prop_map(|routes| {
        let route = |(address, device): (&str, &str)| LocalRoute {
            prefix: Cidr { address: ip(address), length: 32 },
            device: device.into(),
        };
        routes.into_iter().map(route).collect()
    })
}

/// Also of what nobody asked.
fn any_sources() -> impl Strategy<Value = BTreeMap<IpAddr, HostSource>> {
    let source = prop_oneof![
        Just(HostSource::NoRoute),
        Just(HostSource::Address(ip("192.168.0.9"))),
        Just(HostSource::Address(ip("10.9.9.9"))),
        Just(HostSource::Address(ip(VIPS[0]))),
    ];
    prop::collection::btree_map(prop::sample::select(&VIPS).prop_map(ip), source, 0..=3)
}

fn any_listeners() -> impl Strategy<Value = BTreeMap<FrontendKey, bool>> {
    let address = prop::sample::select(&["10.96.0.1", "10.96.0.2", "198.51.100.1"]);
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    let key = (address, 80..82_u16, protocol);
    let key = key.prop_map(|(address, port, protocol)| FrontendKey::new(ip(address).into(), port, protocol));
    prop::collection::btree_map(key, any::<bool>(), 0..=5)
}

fn any_links() -> impl Strategy<Value = BTreeMap<u32, Link>> {
    let address = |text: &str| LinkAddress {
        address: ip(text),
        subnet: Cidr::around(ip(text), 64),
        scope: Scope::Global,
        secondary: false,
        deprecated: false,
        tentative: false,
    };
    let link = move |index: u32, (bridged, addresses): (bool, Vec<&str>)| Link {
        name: format!("eth{index}").into(),
        kind: (index == 2).then(|| "bridge".into()),
        master: Some(2).filter(|_| bridged && index != 2),
        header: Some(14),
        mac: [2, 0, 0, 0, 0, index as u8],
        loopback: false,
        addresses: addresses.into_iter().map(address).collect(),
    };
    let one = (any::<bool>(), subsequence(vec!["192.168.0.2", "2001:db8::2"], 0..=2));
    prop::collection::btree_map(2..5_u32, one, 0..=3)
        .prop_map(move |all| all.into_iter().map(|(index, parts)| (index, link(index, parts))).collect())
}

fn any_node() -> impl Strategy<Value = Option<Node>> {
    let addresses = subsequence(vec!["192.168.0.2", "10.9.9.9"], 0..=2);
    let ranges = subsequence(vec!["10.0.0.0", "fd00::"], 0..=2);
    let range = |text: &str| Cidr { address: ip(text), length: 24 };
    option::weighted(
        0.8,
        (option::of(prop_oneof![Just("a"), Just("b")]), addresses, ranges).prop_map(
            move |(zone, addresses, ranges)| Node {
                zone: zone.map(Arc::from),
                addresses: addresses.into_iter().map(ip).collect(),
                pod_cidrs: ranges.into_iter().map(range).collect(),
                ..Node::default()
            },
        ),
    )
}

fn any_service_cidr() -> impl Strategy<Value = Change> {
    let ranges = Vec::from([("10.96.0.0", 16), ("10.96.0.0", 31), ("fd00:96::", 112), ("172.30.0.0", 16)]);
    let range = |(address, length): (&str, u8)| Cidr { address: ip(address), length };
    (prop_oneof![Just("kubernetes"), Just("more")], option::of(subsequence(ranges, 0..=2))).prop_map(
        move |(of, ranges)| {
            let ranges = ranges.map(|ranges| ranges.into_iter().map(range).collect());
            Change::ServiceCidr(ObjectName::new("", of), ranges)
        },
    )
}

fn any_servers() -> impl Strategy<Value = BTreeSet<SocketAddr>> {
    let server = (prop::sample::select(&VIPS).prop_map(ip), prop::sample::select(&[80, 6443]));
    prop::collection::btree_set(server.prop_map(SocketAddr::from), 0..=2)
}

fn any_change() -> impl Strategy<Value = Change> {
    let services = || Vec::from(SERVICES.map(any_service));
    let slices = || Vec::from(SLICES.map(any_slice));
    let one_service = (0..SERVICES.len(), services(), any::<bool>()).prop_map(|(which, all, is_there)| {
        Change::Service(name(SERVICES[which]), is_there.then(|| Arc::new(all[which].clone())))
    });
    let one_slice = (0..SLICES.len(), slices(), any::<bool>()).prop_map(|(which, all, is_there)| {
        Change::Slice(name(SLICES[which]), is_there.then(|| Arc::new(all[which].clone())))
    });
    prop_oneof![
        6 => one_service,
        10 => one_slice,
        2 => any_node().prop_map(Change::Node),
        1 => any_routes().prop_map(Change::LocalRoutes),
        1 => any_links().prop_map(Change::Links),
        1 => any_sources().prop_map(Change::HostSources),
        1 => any_listeners().prop_map(Change::Listeners),
        1 => any_service_cidr(),
        1 => any_servers().prop_map(Change::ApiServers),
        1 => some(services()).prop_map(Change::Services),
        1 => some(slices()).prop_map(Change::Slices),
    ]
}

/// What is, kept as plainly as can be.
#[derive(Clone, Debug, Default)]
struct State {
    services: BTreeMap<ObjectName, Arc<Service>>,
    slices: BTreeMap<ObjectName, Arc<Slice>>,
    node: Option<Node>,
    routes: BTreeSet<LocalRoute>,
    links: BTreeMap<u32, Link>,
    sources: BTreeMap<IpAddr, HostSource>,
    listeners: BTreeMap<FrontendKey, bool>,
    service_cidrs: BTreeMap<ObjectName, Arc<[Cidr]>>,
    api_servers: BTreeSet<SocketAddr>,
}

impl State {
    fn apply(&mut self, change: &Change) {
        match change.clone() {
            Change::Service(name, None) => drop(self.services.remove(&name)),
            Change::Service(name, Some(service)) => drop(self.services.insert(name, service)),
            Change::Slice(name, None) => drop(self.slices.remove(&name)),
            Change::Slice(name, Some(slice)) => drop(self.slices.insert(name, slice)),
            Change::Node(node) => self.node = node,
            Change::Services(all) => self.services = all.into_iter().map(|s| (s.name.clone(), s)).collect(),
            Change::Slices(all) => self.slices = all.into_iter().map(|s| (s.name.clone(), s)).collect(),
            Change::LocalRoutes(routes) => self.routes = routes,
            Change::Links(links) => self.links = links,
            Change::HostSources(sources) => self.sources = sources,
            Change::Listeners(listeners) => self.listeners = listeners,
            Change::ServiceCidr(name, None) => drop(self.service_cidrs.remove(&name)),
            Change::ServiceCidr(name, Some(ranges)) => drop(self.service_cidrs.insert(name, ranges)),
            Change::ServiceCidrs(all) => self.service_cidrs = all,
            Change::ApiServers(all) => self.api_servers = all,
            Change::Malformed { .. } | Change::LeftPod(..) | Change::LeftPods(_) | Change::Groups(_) => {}
        }
    }

    fn told(&self) -> Model {
        let mut model = Model::new(dual_settings());
        model.fold(Change::ApiServers(self.api_servers.clone()));
        model.fold(Change::Links(self.links.clone()));
        model.fold(Change::HostSources(self.sources.clone()));
        model.fold(Change::Listeners(self.listeners.clone()));
        model.fold(Change::ServiceCidrs(self.service_cidrs.clone()));
        model.fold(Change::LocalRoutes(self.routes.clone()));
        model.fold(Change::Slices(self.slices.values().cloned().collect()));
        model.fold(Change::Services(self.services.values().cloned().collect()));
        model.fold(Change::Node(self.node.clone()));
        model.give_up_waiting_for_node();
        model.update().unwrap();
        model
    }
}

fn dual_settings() -> Settings {
    // The mode that has an answer to what is nobody's.
    let profile = Profile::Nftables;
    Settings { local_detector: LocalDetector::NodeCidr, packet_plane: true, profile, ..settings() }
}

/// Brings an older answer up to date with what is touched, and nothing else.
fn catch_up(old: &mut Desired, new: &Desired, touched: &Touched) {
    for name in &touched.services {
        match new.services.get(name) {
            Some(serving) => drop(old.services.insert(name.clone(), serving.clone())),
            None => drop(old.services.remove(name)),
        }
    }
    for key in &touched.frontends {
        match new.frontends.get(key) {
            Some(target) => drop(old.frontends.insert(*key, target.clone())),
            None => drop(old.frontends.remove(key)),
        }
    }
    if touched.local_addresses {
        old.local_addresses = new.local_addresses.clone();
    }
    if touched.devices {
        old.devices = new.devices.clone();
        old.pod_ranges = new.pod_ranges.clone();
    }
    if touched.service_ranges {
        old.service_ranges = new.service_ranges.clone();
        old.marked_cover = new.marked_cover.clone();
    }
    if touched.health_checks {
        old.health_checks = new.health_checks.clone();
        old.health_check_addresses = new.health_check_addresses.clone();
    }
    if touched.left_to_sockets {
        old.left_to_sockets = new.left_to_sockets.clone();
    }
    // Sent if it differs.
    old.questions = new.questions.clone();
    // A metric: it is read after every pass.
    old.no_local_endpoints = new.no_local_endpoints;
}

proptest! {
    #[test]
    fn the_answer_depends_on_what_is_and_not_on_how_it_came_about(
        changes in vec((any_change(), any::<bool>()), 0..30),
    ) {
        let mut state = State::default();
        let mut model = State::default().told();
        for (change, update) in changes {
            state.apply(&change);
            model.fold(change);
            if update {
                model.update();
            }
        }
        model.update();
        let told = state.told();
        prop_assert_eq!(model.desired(), told.desired());
    }

    #[test]
    fn what_differs_is_touched_and_what_is_touched_differs(
        changes in vec((any_change(), any::<bool>()), 0..30),
    ) {
        let mut model = State::default().told();
        let mut old = model.desired().clone();
        for (change, update) in changes {
            model.fold(change);
            if !update {
                continue;
            }
            let touched = model.update().unwrap();
            for name in &touched.services {
                prop_assert_ne!(old.services.get(name), model.desired().services.get(name));
            }
            // What one Service claims and another leaves, or left, to a socket may be touched and stay nobody's.
            let left_before = old.left_to_sockets.clone();
            let left_now = &model.desired().left_to_sockets;
            let settled = |key: &&FrontendKey| !left_before.contains_key(*key) && !left_now.contains_key(*key);
            for key in touched.frontends.iter().filter(settled) {
                prop_assert_ne!(old.frontends.get(key), model.desired().frontends.get(key));
            }
            catch_up(&mut old, model.desired(), &touched);
            prop_assert_eq!(&old, model.desired());
        }
    }

    #[test]
    fn services_that_lack_local_endpoints_are_as_many_as_a_recount_finds(
        changes in vec(any_change(), 0..30),
    ) {
        let mut model = State::default().told();
        for change in changes {
            model.fold(change);
            model.update();
        }
        let recount = |family, policy| {
            let all = model.desired().services.iter().filter(|(name, _)| name.family == family);
            let lacking = all.filter(|(_, serving)| {
                let elsewhere = serving.policy & Bits::ANY_ENDPOINTS != 0;
                serving.policy & policy != 0 && elsewhere && serving.both.len() + serving.local_only.len() == 0
            });
            lacking.count() as u64
        };
        let families = [Family::V4, Family::V6];
        prop_assert_eq!(model.desired().no_local_endpoints, NoLocalEndpoints {
            internal: families.map(|family| recount(family, Bits::INTERNAL_LOCAL)),
            external: families.map(|family| recount(family, Bits::EXTERNAL_LOCAL)),
        });
    }

    #[test]
    fn every_run_is_sorted_and_no_endpoint_stands_twice(changes in vec(any_change(), 0..20)) {
        let mut state = State::default();
        changes.iter().for_each(|change| state.apply(change));
        let model = state.told();
        for serving in model.desired().services.values() {
            let runs = [&serving.cluster_only, &serving.both, &serving.local_only];
            for run in runs {
                prop_assert!(run.windows(2).all(|pair| pair[0].precedes(&pair[1]) == 1));
            }
            let all: BTreeSet<_> = runs.into_iter().flatten().map(|e| (e.address, e.port)).collect();
            prop_assert_eq!(all.len(), runs.iter().map(|run| run.len()).sum::<usize>());
        }
        for target in model.desired().frontends.values() {
            prop_assert!(model.desired().services.contains_key(&target.service));
        }
    }
}
