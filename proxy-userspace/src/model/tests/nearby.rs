//! What this node has of Services that ask for endpoints here: what load balancers are told, and what is lacking.

use super::*;

/// A load balancer's, of both families, that is to be checked.
fn balanced() -> Service {
    Service {
        cluster_ips: vec![ip("10.96.0.1"), ip("fd00:96::1")],
        load_balancer_ips: vec![ip("203.0.113.1")],
        external_policy: Policy::Local,
        health_check_node_port: Some(31000),
        ..service("shop/web", "10.96.0.1")
    }
}

/// Port, and ready addresses on this node, of IPv4 and IPv6.
fn checks(model: &Model) -> [Option<(u16, u32)>; 2] {
    [Family::V4, Family::V6].map(|family| {
        let check = model.desired().health_checks.get(&(name("shop/web"), family))?;
        Some((check.port, check.local_endpoints))
    })
}

/// Of two ports at once.
fn with_metrics(slice: Slice) -> Slice {
    let mut ports = slice.ports.clone();
    ports.push(SlicePort { name: "metrics".into(), protocol: Protocol::Tcp, port: 9090 });
    Slice { ports, ..slice }
}

#[test]
fn a_health_check_counts_the_ready_addresses_of_this_node_once_over_all_ports_and_slices() {
    let one = with_metrics(slice("shop/s1", "shop/web", &["10.0.0.1@n1", "10.0.0.2@n2", "10.0.0.3"]));
    let two = slice("shop/s2", "shop/web", &["10.0.0.1@n1", "10.0.0.4@n1"]);
    let model = synced(&[balanced()], &[one.clone(), two]);
    assert_eq!(checks(&model), [Some((31000, 2)), Some((31000, 0))]);

    // A port that the Service does not have counts as upstream counts it.
    let other_port = Slice { ports: vec![one.ports[1].clone()], ..one };
    assert_eq!(checks(&synced(&[balanced()], &[other_port])), [Some((31000, 1)), Some((31000, 0))]);
}

#[test]
fn what_terminates_never_counts_though_it_still_serves() {
    let mut leaving = slice("shop/s1", "shop/web", &["10.0.0.1@n1"]);
    leaving.endpoints[0].ready = false;
    leaving.endpoints[0].terminating = true;
    let mut model = synced(&[balanced()], &[leaving.clone()]);
    assert_eq!(checks(&model)[0], Some((31000, 0)));
    assert_eq!(runs(&model, "shop/web"), [vec![], vec!["10.0.0.1:8080".to_owned()], vec![]]);

    // The same address in another slice runs.
    model.fold(put_slice(&slice("shop/s2", "shop/web", &["10.0.0.1@n1"])));
    assert!(model.update().unwrap().health_checks);
    assert_eq!(checks(&model)[0], Some((31000, 1)));
}

#[test]
fn a_health_check_follows_its_service() {
    let mut model = synced(&[balanced()], &[slice("shop/s1", "shop/web", &["10.0.0.1@n1"])]);
    let mut now = |change| {
        let touched = touched(&mut model, change);
        (touched.health_checks, checks(&model))
    };
    let moved = Service { health_check_node_port: Some(31001), ..balanced() };
    assert_eq!(now(put(&moved)), (true, [Some((31001, 1)), Some((31001, 0))]));
    let v4 = Service { cluster_ips: vec![ip("10.96.0.1")], ..moved };
    assert_eq!(now(put(&v4)), (true, [Some((31001, 1)), None]));
    let same = Service { affinity_seconds: Some(7), ..v4.clone() };
    assert_eq!(now(put(&same)), (false, [Some((31001, 1)), None]));
    let none = Service { health_check_node_port: None, ..v4.clone() };
    assert_eq!(now(put(&none)), (true, [None, None]));
    assert_eq!(now(put(&v4)).1, [Some((31001, 1)), None]);
    assert_eq!(now(Change::Service(v4.name.clone(), None)), (true, [None, None]));
}

/// Of IPv4: by the internal policy, and by the external one.
fn lacking(service: &Service, endpoints: &[&str]) -> (u64, u64) {
    let model = synced(std::slice::from_ref(service), &[slice("shop/s1", "shop/web", endpoints)]);
    let counts = model.desired().no_local_endpoints;
    assert_eq!((counts.internal[1], counts.external[1]), (0, 0), "nobody serves IPv6");
    (counts.internal[0], counts.external[0])
}

#[test]
fn a_local_policy_lacks_endpoints_where_only_other_nodes_have_some() {
    let external = balanced();
    let internal = Service {
        internal_policy: Policy::Local,
        external_policy: Policy::Cluster,
        health_check_node_port: None,
        ..balanced()
    };
    let both = Service { internal_policy: Policy::Local, ..balanced() };
    let elsewhere = ["10.0.0.2@n2"];
    assert_eq!(lacking(&external, &elsewhere), (0, 1));
    assert_eq!(lacking(&internal, &elsewhere), (1, 0));
    assert_eq!(lacking(&both, &elsewhere), (1, 1));
    assert_eq!(lacking(&both, &["10.0.0.1@n1", "10.0.0.2@n2"]), (0, 0));
    assert_eq!(lacking(&both, &[]), (0, 0), "a Service without any endpoint lacks none here");
    let cluster = Service { internal_policy: Policy::Cluster, ..internal };
    assert_eq!(lacking(&cluster, &elsewhere), (0, 0));
}
