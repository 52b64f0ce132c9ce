//! The model as its neighbours see it: changes in, [`Desired`] and [`Touched`] out.

mod modes;
mod nearby;
mod properties;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use proxy_common::{
    Protocol, datapath,
    layout::{FrontendKey, FrontendKind, Policy as Bits},
};

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap();
    ObjectName::new(namespace, name)
}

/// With one port `http`, 80/TCP.
fn service(who: &str, cluster_ip: &str) -> Service {
    Service {
        name: name(who),
        cluster_ips: vec![ip(cluster_ip)],
        ports: vec![Port { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 }],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        internal_policy: Policy::Cluster,
        external_policy: Policy::Cluster,
        affinity_seconds: None,
        health_check_node_port: None,
    }
}

/// Ready endpoints of `service` for its port `http` at 8080, as `address` or `address@node`.
fn slice(who: &str, service: &str, endpoints: &[&str]) -> Slice {
    let endpoints = endpoints.iter().map(|text| {
        let (address, node) = text.split_once('@').map_or((*text, None), |(a, node)| (a, Some(node)));
        Endpoint {
            address: ip(address),
            ready: true,
            serving: true,
            terminating: false,
            placement: Placement::on(node),
        }
    });
    Slice {
        name: name(who),
        service: name(service),
        family: Family::V4,
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: endpoints.collect(),
    }
}

fn put(service: &Service) -> Change {
    Change::Service(service.name.clone(), Some(Arc::new(service.clone())))
}

fn put_slice(slice: &Slice) -> Change {
    Change::Slice(slice.name.clone(), Some(Arc::new(slice.clone())))
}

fn all(services: &[Service]) -> Change {
    Change::Services(services.iter().cloned().map(Arc::new).collect())
}

fn all_slices(slices: &[Slice]) -> Change {
    Change::Slices(slices.iter().cloned().map(Arc::new).collect())
}

fn zone(zone: &str) -> Change {
    Change::Node(Some(Node { zone: Some(zone.into()), ..Node::default() }))
}

fn port(service: &str) -> ServicePortName {
    ServicePortName {
        service: name(service),
        port: "http".into(),
        protocol: Protocol::Tcp,
        family: Family::V4,
    }
}

fn settings() -> Settings {
    Settings { node_name: "n1".into(), profile: Profile::Nftables, ..Settings::default() }
}

/// Of node n1, in sync.
fn synced(services: &[Service], slices: &[Slice]) -> Model {
    let mut model = Model::new(settings());
    model.fold(all(services));
    model.fold(all_slices(slices));
    model.fold(Change::LocalRoutes(BTreeSet::new()));
    model.fold(zone("a"));
    model.update().unwrap();
    model
}

fn runs(model: &Model, service: &str) -> [Vec<String>; 3] {
    let serving = &model.desired().services[&port(service)];
    let text = |run: &Vec<datapath::Endpoint>| {
        run.iter().map(|endpoint| format!("{}:{}", endpoint.address, endpoint.port)).collect()
    };
    [text(&serving.cluster_only), text(&serving.both), text(&serving.local_only)]
}

fn cluster(model: &Model, service: &str) -> Vec<String> {
    let [cluster_only, both, _] = runs(model, service);
    [cluster_only, both].concat()
}

fn owner(model: &Model, address: &str) -> Option<String> {
    let target = model.desired().frontends.get(&FrontendKey::new(ip(address).into(), 80, Protocol::Tcp))?;
    Some(format!("{} {:?}", target.service.service, target.kind))
}

fn touched(model: &mut Model, change: Change) -> Touched {
    model.fold(change);
    model.update().unwrap()
}

#[test]
fn with_a_packet_plane_the_devices_are_waited_for_too() {
    let mut model = Model::new(Settings { packet_plane: true, ..settings() });
    assert!(model.waiting_for().contains(&Source::Links));
    model.fold(Change::Links(BTreeMap::new()));
    assert!(!model.waiting_for().contains(&Source::Links));
}

#[test]
fn nothing_is_answered_before_every_source_told_everything() {
    let mut model = Model::new(settings());
    let web = service("shop/web", "10.96.0.1");
    model.fold(put(&web));
    model.fold(put_slice(&slice("shop/web-1", "shop/web", &["10.0.0.1"])));
    for (change, left) in [
        (all_slices(&[]), vec![Source::Services, Source::Node, Source::LocalRoutes]),
        (Change::LocalRoutes(BTreeSet::new()), vec![Source::Services, Source::Node]),
        (all(&[web]), vec![Source::Node]),
        (Change::Node(None), vec![Source::Node]),
    ] {
        model.fold(change);
        assert_eq!(model.waiting_for(), left);
        assert_eq!(model.update(), None);
        assert_eq!(*model.desired(), Desired::default());
    }
    let mut without_node = model;
    without_node.give_up_waiting_for_node();
    let touched = without_node.update().unwrap();
    assert_eq!(touched.services, BTreeSet::from([port("shop/web")]));
    assert!(cluster(&without_node, "shop/web").is_empty(), "the list of slices did not have its slice");
}

#[test]
fn a_node_that_was_seen_is_not_waited_for_again() {
    let mut model = synced(&[service("shop/web", "10.96.0.1")], &[]);
    model.fold(Change::Node(None));
    assert!(model.update().is_some());
}

#[test]
fn endpoints_stand_sorted_in_the_runs_of_their_sets() {
    let web = Service { internal_policy: Policy::Local, ..service("shop/web", "10.96.0.1") };
    let mut local = slice("shop/a", "shop/web", &["10.0.1.1@n1", "10.0.0.2@n1", "10.0.2.1@n2"]);
    let model = synced(std::slice::from_ref(&web), std::slice::from_ref(&local));
    let [cluster_only, both, local_only] = runs(&model, "shop/web");
    assert_eq!((cluster_only.len(), both.len()), (0, 0), "nobody asks for the cluster set");
    assert_eq!(local_only, ["10.0.0.2:8080", "10.0.1.1:8080"]);

    let open = Service { external_ips: vec![ip("198.51.100.1")], ..web };
    let model = synced(std::slice::from_ref(&open), std::slice::from_ref(&local));
    let [cluster_only, both, local_only] = runs(&model, "shop/web");
    assert_eq!(cluster_only, ["10.0.2.1:8080"]);
    assert_eq!(both, ["10.0.0.2:8080", "10.0.1.1:8080"]);
    assert!(local_only.is_empty());

    for endpoint in &mut local.endpoints[..2] {
        (endpoint.ready, endpoint.terminating) = (false, true);
    }
    let model = synced(&[open], &[local]);
    let [cluster_only, both, local_only] = runs(&model, "shop/web");
    assert_eq!((cluster_only, both), (vec!["10.0.2.1:8080".to_owned()], Vec::new()));
    assert_eq!(local_only, ["10.0.0.2:8080", "10.0.1.1:8080"], "each set has its own last resort");
}

#[test]
fn nothing_here_but_something_elsewhere_is_told_apart_from_nothing_at_all() {
    let web = Service { internal_policy: Policy::Local, ..service("shop/web", "10.96.0.1") };
    let policy = |slices: &[Slice]| {
        let model = synced(std::slice::from_ref(&web), slices);
        let serving = &model.desired().services[&port("shop/web")];
        assert!(serving.is_empty());
        serving.policy
    };
    assert_eq!(policy(&[]), Bits::INTERNAL_LOCAL);
    let elsewhere = slice("shop/a", "shop/web", &["10.0.0.1@n2"]);
    assert_eq!(policy(&[elsewhere]), Bits::INTERNAL_LOCAL | Bits::ANY_ENDPOINTS);
}

#[test]
fn slices_that_come_before_their_service_wait_for_it() {
    let mut model = synced(&[], &[]);
    let early = touched(&mut model, put_slice(&slice("shop/a", "shop/web", &["10.0.0.1"])));
    assert_eq!(early, Touched::default());
    model.fold(put(&service("shop/web", "10.96.0.1")));
    model.update();
    assert_eq!(cluster(&model, "shop/web"), ["10.0.0.1:8080"]);
}

#[test]
fn a_slice_that_moves_to_another_service_leaves_the_first() {
    let services = [service("shop/web", "10.96.0.1"), service("shop/api", "10.96.0.2")];
    let mut model = synced(&services, &[slice("shop/a", "shop/web", &["10.0.0.1"])]);
    let moved = touched(&mut model, put_slice(&slice("shop/a", "shop/api", &["10.0.0.1"])));
    assert_eq!(moved.services, BTreeSet::from([port("shop/web"), port("shop/api")]));
    assert!(cluster(&model, "shop/web").is_empty());
    assert_eq!(cluster(&model, "shop/api"), ["10.0.0.1:8080"]);
}

#[test]
fn an_endpoint_that_moves_to_another_slice_is_never_gone_in_whatever_order() {
    let empty = |who: &str| put_slice(&slice(who, "shop/web", &[]));
    let full = |who: &str| put_slice(&slice(who, "shop/web", &["10.0.0.1"]));
    let gone = |who: &str| Change::Slice(name(who), None);
    let orders = [
        // Added first, or taken away last: it is in both meanwhile.
        vec![full("shop/b"), empty("shop/a")],
        vec![full("shop/b"), gone("shop/a")],
        // Back again, to a slice that sorts before.
        vec![full("shop/b"), empty("shop/a"), full("shop/a"), gone("shop/b")],
    ];
    for order in orders {
        let mut model =
            synced(&[service("shop/web", "10.96.0.1")], &[slice("shop/a", "shop/web", &["10.0.0.1"])]);
        for change in order {
            touched(&mut model, change.clone());
            assert_eq!(cluster(&model, "shop/web"), ["10.0.0.1:8080"], "{change:?}");
        }
    }
    // Taken away first it is gone for as long as the API server says so, and not longer.
    let mut model =
        synced(&[service("shop/web", "10.96.0.1")], &[slice("shop/a", "shop/web", &["10.0.0.1"])]);
    touched(&mut model, empty("shop/a"));
    assert!(cluster(&model, "shop/web").is_empty());
    touched(&mut model, full("shop/b"));
    assert_eq!(cluster(&model, "shop/web"), ["10.0.0.1:8080"]);
}

#[test]
fn a_full_list_removes_what_it_does_not_name() {
    let services = [service("shop/web", "10.96.0.1"), service("shop/api", "10.96.0.2")];
    let slices = [slice("shop/a", "shop/web", &["10.0.0.1"]), slice("shop/b", "shop/web", &["10.0.0.2"])];
    let mut model = synced(&services, &slices);
    let gone = touched(&mut model, all(&services[..1]));
    assert_eq!(gone.services, BTreeSet::from([port("shop/api")]));
    assert_eq!(owner(&model, "10.96.0.2"), None);
    touched(&mut model, all_slices(&slices[1..]));
    assert_eq!(cluster(&model, "shop/web"), ["10.0.0.2:8080"]);
}

#[test]
fn an_object_that_cannot_be_read_stays_as_it_was_known() {
    let web = service("shop/web", "10.96.0.1");
    let mut model = synced(std::slice::from_ref(&web), &[slice("shop/a", "shop/web", &["10.0.0.1"])]);
    for (source, who) in
        [(Source::Services, "shop/web"), (Source::Services, "shop/never-seen"), (Source::Slices, "shop/a")]
    {
        let malformed =
            Change::Malformed { source, name: name(who), why: "spec.ports[0].port: 70000".into() };
        assert_eq!(touched(&mut model, malformed), Touched::default());
    }
    assert_eq!(cluster(&model, "shop/web"), ["10.0.0.1:8080"]);
    // Deleted is deleted, whatever it looked like last.
    model.fold(Change::Service(name("shop/web"), None));
    model.update();
    assert_eq!(*model.desired(), *synced(&[], &[]).desired());
}

#[test]
fn the_api_servers_own_service_never_loses_its_last_endpoints() {
    let api = service("default/kubernetes", "10.96.0.1");
    let other = service("default/other", "10.96.0.2");
    let slices = [
        slice("default/a", "default/kubernetes", &["192.168.0.1"]),
        slice("default/b", "default/other", &["10.0.0.1"]),
    ];
    let mut model = synced(&[api.clone(), other], &slices);
    model.fold(all_slices(&[]));
    model.update();
    assert!(cluster(&model, "default/other").is_empty());
    assert_eq!(cluster(&model, "default/kubernetes"), ["192.168.0.1:8080"]);
    let serving = &model.desired().services[&port("default/kubernetes")];
    assert_eq!(serving.policy, Bits::ANY_ENDPOINTS);

    // The rest of it still changes, and so do the endpoints as soon as there are some.
    model.fold(put(&Service { affinity_seconds: Some(7), ..api }));
    model.update();
    assert_eq!(model.desired().services[&port("default/kubernetes")].affinity_seconds, 7);
    model.fold(put_slice(&slice("default/a", "default/kubernetes", &["192.168.0.2"])));
    model.update();
    assert_eq!(cluster(&model, "default/kubernetes"), ["192.168.0.2:8080"]);
}

#[test]
fn a_change_touches_its_own_service_only_and_no_change_touches_nothing() {
    let services = [service("shop/web", "10.96.0.1"), service("shop/api", "10.96.0.2")];
    let slices = [slice("shop/a", "shop/web", &["10.0.0.1"]), slice("shop/b", "shop/api", &["10.0.0.2"])];
    let mut model = synced(&services, &slices);
    let untouched = Arc::clone(&model.desired().services[&port("shop/api")]);
    let change = touched(&mut model, put_slice(&slice("shop/a", "shop/web", &["10.0.0.3"])));
    assert_eq!(change, Touched { services: BTreeSet::from([port("shop/web")]), ..Touched::default() });
    assert!(Arc::ptr_eq(&untouched, &model.desired().services[&port("shop/api")]));
    for change in [all(&services), put(&services[0]), zone("a"), Change::LocalRoutes(BTreeSet::new())] {
        assert_eq!(touched(&mut model, change), Touched::default());
    }
}

#[test]
fn another_zone_of_the_node_is_another_choice() {
    let mut hinted = slice("shop/a", "shop/web", &["10.0.0.1", "10.0.0.2"]);
    for (endpoint, zone) in hinted.endpoints.iter_mut().zip(["a", "b"]) {
        Arc::make_mut(&mut endpoint.placement).for_zones.insert(zone.into());
    }
    let mut model = synced(&[service("shop/web", "10.96.0.1")], &[hinted]);
    assert_eq!(cluster(&model, "shop/web"), ["10.0.0.1:8080"]);
    touched(&mut model, zone("b"));
    assert_eq!(cluster(&model, "shop/web"), ["10.0.0.2:8080"]);
    touched(&mut model, Change::Node(None));
    assert_eq!(cluster(&model, "shop/web").len(), 2);
}

#[test]
fn an_address_of_two_services_goes_to_one_and_then_to_the_other() {
    let first = Service { external_ips: vec![ip("10.96.0.2")], ..service("shop/a", "10.96.0.1") };
    let second = service("shop/b", "10.96.0.2");
    let third = Service { external_ips: vec![ip("10.96.0.2")], ..service("shop/c", "10.96.0.3") };
    let mut model = synced(&[third, second, first.clone()], &[]);
    assert_eq!(owner(&model, "10.96.0.2").as_deref(), Some("shop/b ClusterIp"));
    let gone = touched(&mut model, Change::Service(name("shop/b"), None));
    assert_eq!(gone.frontends.iter().filter(|key| !key.is_mark()).count(), 1);
    assert_eq!(owner(&model, "10.96.0.2").as_deref(), Some("shop/a ExternalIp"));
    touched(&mut model, put(&Service { external_ips: Vec::new(), ..first }));
    assert_eq!(owner(&model, "10.96.0.2").as_deref(), Some("shop/c ExternalIp"));
}

#[test]
fn of_two_ports_with_one_name_and_protocol_the_last_counts() {
    let mut web = service("shop/web", "10.96.0.1");
    web.ports.push(Port { port: 81, ..web.ports[0].clone() });
    web.ports.push(Port { protocol: Protocol::Udp, ..web.ports[0].clone() });
    let model = synced(&[web], &[]);
    let keys = model.desired().frontends.keys().filter(|key| !key.is_mark());
    let keys: BTreeSet<_> = keys.map(|key| (key.port, key.protocol)).collect();
    assert_eq!(keys, BTreeSet::from([(81, Protocol::Tcp), (80, Protocol::Udp)]));
}

#[test]
fn a_changed_node_address_changes_what_the_host_may_dial_and_where_node_ports_are() {
    let mut web = Service { load_balancer_ips: vec![ip("203.0.113.1")], ..service("shop/web", "10.96.0.1") };
    web.source_ranges = vec![Cidr { address: ip("192.168.0.0"), length: 24 }];
    let mut model = synced(&[web], &[]);
    let routes = ["192.168.0.2", "192.168.0.3"].map(|address| LocalRoute {
        prefix: Cidr { address: ip(address), length: 32 },
        device: "eth0".into(),
    });
    model.fold(Change::LocalRoutes(BTreeSet::from(routes)));
    model.update();
    let key = FrontendKey::new(ip("203.0.113.1").into(), 80, Protocol::Tcp);
    assert!(model.desired().frontends[&key].host_denied);
    let addresses = vec![ip("192.168.0.3")];
    let change = touched(&mut model, Change::Node(Some(Node { addresses, ..Node::default() })));
    assert_eq!(change.frontends, BTreeSet::from([key]));
    assert!(change.local_addresses);
    let target = &model.desired().frontends[&key];
    assert_eq!((target.kind, target.host_denied), (FrontendKind::LoadBalancer, false));
    let node_ports: Vec<_> = model.desired().local_addresses.values().map(|a| a.node_port).collect();
    assert_eq!(node_ports, [0, 1]);
}

fn tcp(address: &str, port: u16) -> FrontendKey {
    FrontendKey::new(ip(address).into(), port, Protocol::Tcp)
}

fn on_device(address: &str, device: &str) -> Change {
    let prefix = Cidr { address: ip(address), length: 32 };
    Change::LocalRoutes(BTreeSet::from([LocalRoute { prefix, device: device.into() }]))
}

#[test]
fn the_address_that_the_node_dials_from_decides_at_load_balancers_with_source_ranges() {
    let vips = ["203.0.113.1", "203.0.113.2"];
    let mut web = Service { load_balancer_ips: vips.map(ip).into(), ..service("shop/web", "10.96.0.1") };
    web.source_ranges = vec![Cidr { address: ip("192.168.0.0"), length: 24 }];
    let mut model = synced(&[web], &[]);
    assert_eq!(model.desired().questions.sources, BTreeSet::from(vips.map(ip)));
    let mut denied = |addresses: &[&str], answers: [HostSource; 2]| {
        let addresses = addresses.iter().map(|text| ip(text)).collect();
        model.fold(Change::Node(Some(Node { addresses, ..Node::default() })));
        model.fold(Change::HostSources(vips.map(ip).into_iter().zip(answers).collect()));
        model.update().unwrap();
        vips.map(|vip| model.desired().frontends[&tcp(vip, 80)].host_denied)
    };
    let from = |text| HostSource::Address(ip(text));
    let (inside, outside) = ("192.168.0.2", "172.16.0.2");
    assert_eq!(denied(&[outside], [from(inside), from(outside)]), [false, true]);
    assert_eq!(denied(&[inside], [from(outside), HostSource::NoRoute]), [true, true]);
    // A VIP that the node has itself is allowed with the node.
    assert_eq!(denied(&[inside], [from(vips[0]), from(vips[1])]), [false, false]);
    assert_eq!(denied(&[outside], [from(vips[0]), from(inside)]), [true, false]);
}

#[test]
fn a_cluster_ip_on_a_device_is_left_to_the_socket_that_listens_there_and_served_when_it_is_gone() {
    let mut dns = service("kube-system/dns", "10.96.0.10");
    dns.ports.push(Port { protocol: Protocol::Udp, name: "dns".into(), port: 53, node_port: 0 });
    dns.load_balancer_ips = vec![ip("203.0.113.1")];
    let mut model = synced(&[dns], &[]);
    assert!(model.desired().questions.listeners.is_empty(), "no device has it");
    touched(&mut model, on_device("10.96.0.10", "kube-ipvs0"));
    assert!(model.desired().questions.listeners.is_empty(), "only the device of all VIPs has it");
    touched(&mut model, on_device("203.0.113.1", "eth0"));
    assert!(model.desired().questions.listeners.is_empty(), "it is no ClusterIP");
    touched(&mut model, on_device("10.96.0.10", "nodelocaldns"));
    let (web, dns) = (tcp("10.96.0.10", 80), FrontendKey::new(ip("10.96.0.10").into(), 53, Protocol::Udp));
    assert_eq!(model.desired().questions.listeners, BTreeSet::from([web, dns]));
    assert_eq!(owner(&model, "10.96.0.10").as_deref(), Some("kube-system/dns ClusterIp"));

    let change = touched(&mut model, Change::Listeners(BTreeMap::from([(web, false), (dns, true)])));
    assert_eq!((change.frontends, change.left_to_sockets), (BTreeSet::from([dns]), true));
    assert!(model.desired().frontends.contains_key(&web), "the other protocol and port are served");
    assert_eq!(model.desired().left_to_sockets[&dns].service, name("kube-system/dns"));
    let change = touched(&mut model, Change::Listeners(BTreeMap::from([(web, false), (dns, false)])));
    assert_eq!((change.frontends, change.left_to_sockets), (BTreeSet::from([dns]), true));
    assert!(model.desired().left_to_sockets.is_empty());

    // What was said of it counts no longer once the device has it no more.
    touched(&mut model, Change::Listeners(BTreeMap::from([(web, true), (dns, true)])));
    touched(&mut model, Change::LocalRoutes(BTreeSet::new()));
    assert!(model.desired().left_to_sockets.is_empty());
    assert!(model.desired().questions.listeners.is_empty());
}

#[test]
fn the_first_answer_waits_for_what_only_the_kernel_can_tell_unless_nobody_can_ask_it() {
    let first = |give_up: bool| {
        let mut model = Model::new(settings()).asking();
        model.fold(all(&[service("kube-system/dns", "10.96.0.10")]));
        model.fold(all_slices(&[]));
        model.fold(Change::HostSources(BTreeMap::new()));
        model.fold(Change::Listeners(BTreeMap::new()));
        model.fold(zone("a"));
        assert!(model.update().is_none());
        model.fold(on_device("10.96.0.10", "nodelocaldns"));
        assert!(model.update().is_none(), "an answer from before there was a question is none");
        assert_eq!(model.waiting_for(), [Source::Listeners]);
        let key = tcp("10.96.0.10", 80);
        assert_eq!(model.desired().questions.listeners, BTreeSet::from([key]));
        if give_up {
            model.give_up_asking();
        } else {
            model.fold(Change::Listeners(BTreeMap::from([(key, true)])));
        }
        model.update().unwrap();
        model.desired().frontends.keys().filter(|key| !key.is_mark()).count()
    };
    assert_eq!((first(false), first(true)), (0, 1));
}

#[test]
fn pods_that_ask_to_be_left_to_packets_are_as_soon_as_their_cgroups_are_known() {
    let pods = |all: &[(&str, &str)]| {
        let pod = |(pod, uid): &(&str, &str)| (ObjectName::new("default", pod), Arc::from(*uid));
        Change::LeftPods(all.iter().map(pod).collect())
    };
    let group = Group { id: 77, levels: 8 };
    let mut model = Model::new(Settings { pod_opt_out: true, ..settings() }).asking();
    for change in [
        all(&[]),
        all_slices(&[]),
        zone("a"),
        Change::LocalRoutes(BTreeSet::new()),
        Change::HostSources(BTreeMap::new()),
        Change::Listeners(BTreeMap::new()),
    ] {
        model.fold(change);
    }
    assert!(model.update().is_none());
    assert_eq!(model.waiting_for(), [Source::Pods]);
    model.fold(pods(&[("mesh", "aa-1")]));
    assert!(model.update().is_none());
    assert_eq!(model.waiting_for(), [Source::Groups]);
    assert_eq!(model.desired().questions.groups, BTreeSet::from(["aa-1".into()]));
    model.fold(Change::Groups(BTreeMap::from([("aa-1".into(), None)])));
    assert!(model.update().unwrap().devices);
    let mesh = ObjectName::new("default", "mesh");
    assert_eq!(model.desired().left_pods, BTreeMap::from([(mesh.clone(), None)]));
    assert!(touched(&mut model, Change::Groups(BTreeMap::from([("aa-1".into(), Some(group))]))).devices);
    assert_eq!(model.desired().left_pods, BTreeMap::from([(mesh.clone(), Some(group))]));
    assert!(touched(&mut model, Change::LeftPod(mesh, None)).devices);
    assert!(model.desired().left_pods.is_empty() && model.desired().questions.groups.is_empty());

    let mut others = Model::new(settings());
    others.fold(pods(&[("mesh", "aa-1")]));
    for change in [all(&[]), all_slices(&[]), zone("a"), Change::LocalRoutes(BTreeSet::new())] {
        others.fold(change);
    }
    others.update().unwrap();
    assert!(others.desired().left_pods.is_empty(), "unless the agent was told to, it leaves nobody alone");
}
