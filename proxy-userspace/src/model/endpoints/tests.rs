//! Who is a candidate, and what becomes of last resorts; the choice itself is upstream's catalogue.

use proxy_common::Protocol;

use super::*;
use crate::model::{Family, ObjectName, Placement, SlicePort};

fn slice(name: &str, ports: &[(&str, Protocol, u16)], endpoints: Vec<Endpoint>) -> Slice {
    let ports = ports.iter().map(|(name, protocol, port)| SlicePort {
        name: (*name).into(),
        protocol: *protocol,
        port: *port,
    });
    Slice {
        name: ObjectName::new("shop", name),
        service: ObjectName::new("shop", "web"),
        family: Family::V4,
        ports: ports.collect(),
        endpoints,
    }
}

fn pod(address: &str, node: &str) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        ready: true,
        serving: true,
        terminating: false,
        placement: Placement::on((!node.is_empty()).then_some(node)),
    }
}

fn terminating(address: &str, node: &str) -> Endpoint {
    Endpoint { ready: false, terminating: true, ..pod(address, node) }
}

fn found(slices: &[Slice], protocol: Protocol) -> Vec<(String, bool, bool)> {
    let port = ServicePortName {
        service: ObjectName::new("shop", "web"),
        port: "http".into(),
        protocol,
        family: Family::V4,
    };
    let all = candidates(slices.iter(), &port, "n1");
    all.iter()
        .map(|c| (format!("{}:{}", c.endpoint.address, c.endpoint.port), c.local, c.terminating))
        .collect()
}

#[test]
fn a_port_is_matched_by_name_and_protocol() {
    let slices = [
        slice("a", &[("http", Protocol::Tcp, 80), ("dns", Protocol::Tcp, 53)], vec![pod("10.0.0.1", "n1")]),
        slice("b", &[("http", Protocol::Udp, 81)], vec![pod("10.0.0.2", "n2")]),
    ];
    assert_eq!(found(&slices, Protocol::Tcp), [("10.0.0.1:80".into(), true, false)]);
    assert_eq!(found(&slices, Protocol::Udp), [("10.0.0.2:81".into(), false, false)]);
    assert!(found(&slices, Protocol::Sctp).is_empty());
}

#[test]
fn one_name_with_two_numbers_is_two_endpoints() {
    let ports = [("http", Protocol::Tcp, 8080), ("http", Protocol::Tcp, 80)];
    let slices = [slice("a", &ports, vec![pod("10.0.0.1", "")])];
    let expected = [("10.0.0.1:80".into(), false, false), ("10.0.0.1:8080".into(), false, false)];
    assert_eq!(found(&slices, Protocol::Tcp), expected);
}

#[test]
fn a_terminating_entry_never_hides_a_running_one_of_the_same_address() {
    let http = [("http", Protocol::Tcp, 80)];
    for (first, second) in [("a", "b"), ("b", "a")] {
        let mut slices = [
            slice(first, &http, vec![terminating("10.0.0.1", "n2")]),
            slice(second, &http, vec![pod("10.0.0.1", "n1")]),
        ];
        slices.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(found(&slices, Protocol::Tcp), [("10.0.0.1:80".into(), true, false)]);
    }
}

#[test]
fn of_two_running_entries_the_later_one_stands_and_of_two_terminating_the_earlier() {
    let http = [("http", Protocol::Tcp, 80)];
    let running =
        [slice("a", &http, vec![pod("10.0.0.1", "n1")]), slice("b", &http, vec![pod("10.0.0.1", "n2")])];
    assert_eq!(found(&running, Protocol::Tcp), [("10.0.0.1:80".into(), false, false)]);
    let ending = [
        slice("a", &http, vec![terminating("10.0.0.1", "n1")]),
        slice("b", &http, vec![terminating("10.0.0.1", "n2")]),
    ];
    assert_eq!(found(&ending, Protocol::Tcp), [("10.0.0.1:80".into(), true, true)]);
}

/// The hosts of 10.0.0.0/24 in the cluster set of n1 in zone a, of endpoints as (host, conditions, zones, nodes);
/// conditions are letters: Ready, Serving, Terminating.
fn cluster_set(endpoints: &[(u8, &str, &[&str], &[&str])]) -> Vec<u8> {
    let set = |names: &[&str]| names.iter().map(|name| Arc::from(*name)).collect::<BTreeSet<Arc<str>>>();
    let hints: Vec<_> = endpoints.iter().map(|(.., zones, nodes)| (set(zones), set(nodes))).collect();
    let candidates: Vec<_> = endpoints
        .iter()
        .zip(&hints)
        .map(|((host, conditions, ..), (for_zones, for_nodes))| Candidate {
            endpoint: datapath::Endpoint {
                address: std::net::IpAddr::from([10, 0, 0, *host]).into(),
                port: 80,
            },
            local: false,
            ready: conditions.contains('R'),
            serving: conditions.contains('S'),
            terminating: conditions.contains('T'),
            for_zones,
            for_nodes,
        })
        .collect();
    let policies =
        Policies { internal: Policy::Cluster, external: Policy::Cluster, external_destination: false };
    let selection = select(&candidates, Place { node: "n1", zone: "a" }, policies);
    assert_eq!(selection.any_endpoints, selection.sets.iter().any(|sets| sets.cluster));
    let chosen = endpoints.iter().zip(&selection.sets).filter(|(_, sets)| sets.cluster);
    chosen.map(|((host, ..), _)| *host).collect()
}

#[test]
fn hints_count_if_every_ready_endpoint_has_some_and_one_is_for_us() {
    // For the node before the zone.
    assert_eq!(cluster_set(&[(1, "R", &["a"], &["n1"]), (2, "R", &["a"], &["n2"])]), [1]);
    // Not for this node, so by zone.
    assert_eq!(cluster_set(&[(1, "R", &["a"], &["n2"]), (2, "R", &["b"], &["n2"])]), [1]);
    // One without a hint for nodes, so by zone; one without any, so all.
    assert_eq!(cluster_set(&[(1, "R", &["b"], &["n1"]), (2, "R", &["a"], &[])]), [2]);
    assert_eq!(cluster_set(&[(1, "R", &["a"], &["n1"]), (2, "R", &[], &[])]), [1, 2]);
    // Nothing for us at all.
    assert_eq!(cluster_set(&[(1, "R", &["b"], &["n2"]), (2, "R", &["c"], &["n3"])]), [1, 2]);
    // What is not ready has no say.
    assert_eq!(cluster_set(&[(1, "R", &["a"], &[]), (2, "R", &["b"], &[]), (3, "S", &[], &[])]), [1]);
    assert_eq!(cluster_set(&[(1, "R", &["b"], &[]), (2, "ST", &["a"], &["n1"])]), [1]);
}

#[test]
fn only_what_serves_while_it_terminates_is_a_last_resort() {
    let all = [(1, "S", &[][..], &[][..]), (2, "T", &[], &[]), (3, "ST", &["b"], &["n2"]), (4, "", &[], &[])];
    assert_eq!(cluster_set(&all), [3]);
    assert!(cluster_set(&[all[0], all[1], all[3]]).is_empty());
}

#[test]
fn the_last_resort_needs_neither_hint_nor_place_and_is_judged_for_each_set_alone() {
    let zone_b = BTreeSet::from(["b".into()]);
    let none = BTreeSet::new();
    let candidate = |host: u8, local: bool, ready: bool| Candidate {
        endpoint: datapath::Endpoint { address: std::net::IpAddr::from([10, 0, 0, host]).into(), port: 80 },
        local,
        ready,
        serving: true,
        terminating: !ready,
        for_zones: &zone_b,
        for_nodes: &none,
    };
    let policies = Policies { internal: Policy::Local, external: Policy::Local, external_destination: true };
    let place = Place { node: "n1", zone: "a" };
    let chosen = |candidates: &[Candidate<'_>]| {
        let selection = select(candidates, place, policies);
        assert!(selection.any_endpoints);
        selection.sets.iter().map(|sets| (sets.cluster, sets.local)).collect::<Vec<_>>()
    };
    let both_ending = [candidate(1, true, false), candidate(2, false, false)];
    assert_eq!(chosen(&both_ending), [(true, true), (true, false)]);
    let one_ready_elsewhere = [candidate(1, true, false), candidate(2, false, true)];
    assert_eq!(chosen(&one_ready_elsewhere), [(false, true), (true, false)]);
}
