//! The rows of kube-proxy spec §1.2, §1.3, §1.6 and §1.8, one by one, and arbitrary objects.

use std::{collections::BTreeSet, net::IpAddr};

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::model::{Cidr, Endpoint, Family, Policy};

fn convert(kind: Kind, json: &Json) -> Result<Converted, Malformed> {
    Converter::new("n1").convert(kind, json.to_string().as_bytes())
}

/// `changes` are merged into a plain Service; null removes.
fn service(changes: Json) -> Converted {
    let mut object = json!({
        "metadata": {"namespace": "ns", "name": "web"},
        "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ipFamilies": ["IPv4"],
                 "ports": [{"name": "http", "protocol": "TCP", "port": 80}]},
    });
    merge(&mut object, changes);
    convert(Kind::Service, &object).expect("well formed")
}

fn served(changes: Json) -> Arc<Service> {
    let converted = service(changes.clone());
    let Some(Value::Service(service)) = converted.value else {
        panic!("{changes} is not served: {converted:?}")
    };
    service
}

fn slice(changes: Json) -> Converted {
    let mut object = json!({
        "metadata": {"namespace": "ns", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [{"addresses": ["10.0.0.1"]}],
    });
    merge(&mut object, changes);
    convert(Kind::Slice, &object).expect("well formed")
}

fn used(changes: Json) -> Arc<Slice> {
    let converted = slice(changes.clone());
    let Some(Value::Slice(slice)) = converted.value else { panic!("{changes} is not used: {converted:?}") };
    slice
}

fn node(object: Json) -> Node {
    let converted = convert(Kind::Node, &object).expect("well formed");
    let Some(Value::Node(node)) = converted.value else { panic!("{object} is not the own Node") };
    *node
}

#[test]
fn the_ranges_of_a_service_cidr_count_and_what_is_none_is_noted() {
    let object = json!({"metadata": {"name": "kubernetes", "namespace": "odd"},
        "spec": {"cidrs": ["10.96.0.7/16", "no", "fd00:96::/112"]}, "status": {"conditions": [7]}});
    let converted = convert(Kind::ServiceCidr, &object).unwrap();
    assert_eq!(converted.name, ObjectName::new("", "kubernetes"));
    assert_eq!(converted.notes, ["spec.cidrs: \"no\" is left out: no range"]);
    let Some(Value::ServiceCidr(ranges)) = converted.value else { panic!("no ranges") };
    assert_eq!(ranges.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.96.0.0/16", "fd00:96::/112"]);
    let empty = convert(Kind::ServiceCidr, &json!({"metadata": {"name": "none"}})).unwrap();
    assert_eq!(empty.value, Some(Value::ServiceCidr([].into())));
}

fn merge(into: &mut Json, changes: Json) {
    match (into, changes) {
        (Json::Object(into), Json::Object(changes)) => {
            for (key, change) in changes {
                merge(into.entry(key).or_insert(Json::Null), change);
            }
        }
        (into, change) => *into = change,
    }
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn services_that_are_not_ours_are_left_out() {
    for (why, changes) in [
        ("foreign proxy", json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": "x"}}})),
        (
            "foreign proxy, empty",
            json!({"metadata": {"labels": {"service.kubernetes.io/service-proxy-name": ""}}}),
        ),
        ("ExternalName with an address", json!({"spec": {"type": "ExternalName"}})),
        ("headless", json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}})),
        ("headless, as kubectl writes it", json!({"spec": {"clusterIP": "None", "clusterIPs": null}})),
        ("no address", json!({"spec": {"clusterIP": "", "clusterIPs": null}})),
        ("no address at all", json!({"spec": {"clusterIP": null, "clusterIPs": null}})),
        ("no spec", json!({"spec": null})),
        ("address that is none", json!({"spec": {"clusterIP": "x", "clusterIPs": ["x"]}})),
    ] {
        assert_eq!(service(changes).value, None, "{why}");
    }
}

#[test]
fn a_headless_label_on_a_service_means_nothing() {
    served(json!({"metadata": {"labels": {"service.kubernetes.io/headless": ""}}}));
}

#[test]
fn cluster_ips_go_by_ip_families() {
    let dual = ["10.96.0.1", "fd00::1"];
    for (spec, expected) in [
        (json!({"clusterIPs": dual, "ipFamilies": ["IPv4", "IPv6"]}), ips(&dual)),
        (json!({"clusterIPs": dual, "ipFamilies": ["IPv4"]}), ips(&["10.96.0.1"])),
        // Very old objects have only clusterIP.
        (json!({"clusterIPs": null, "ipFamilies": null}), ips(&["10.96.0.1"])),
        (json!({"clusterIP": "fd00::2", "clusterIPs": [], "ipFamilies": []}), ips(&["fd00::2"])),
        (json!({"clusterIPs": null, "ipFamilies": ["IPv6"]}), ips(&[])),
        // As people write manifests.
        (json!({"clusterIPs": null, "ipFamilies": ["IPv4"]}), ips(&["10.96.0.1"])),
        (json!({"clusterIP": null, "clusterIPs": dual, "ipFamilies": null}), ips(&dual)),
        (json!({"clusterIPs": ["010.96.0.001"]}), ips(&["10.96.0.1"])),
        (json!({"clusterIPs": ["fd00::1", "10.96.0.1"], "ipFamilies": ["IPv4", "IPv6"]}), ips(&[])),
    ] {
        let cluster_ips = match service(json!({"spec": spec})).value {
            Some(Value::Service(service)) => service.cluster_ips.clone(),
            _ => Vec::new(),
        };
        assert_eq!(cluster_ips, expected, "{spec}");
    }
}

#[test]
fn ports_are_read_with_their_defaults() {
    let service = served(json!({"spec": {"ports": [
        {"port": 80},
        {"name": "dns", "protocol": "UDP", "port": 53, "nodePort": 30053, "targetPort": "dns", "appProtocol": "x"},
        {"name": "s", "protocol": "SCTP", "port": 65535, "nodePort": 0},
    ]}}));
    let ports: Vec<_> = service.ports.iter().map(|p| (&*p.name, p.protocol, p.port, p.node_port)).collect();
    assert_eq!(
        ports,
        [("", Protocol::Tcp, 80, 0), ("dns", Protocol::Udp, 53, 30053), ("s", Protocol::Sctp, 65535, 0)]
    );
}

#[test]
fn an_unknown_protocol_or_no_port_leaves_out_that_entry_alone() {
    let converted = service(json!({"spec": {"ports": [{"protocol": "ICMP", "port": 1}, {}, {"port": 80}]}}));
    let Some(Value::Service(service)) = &converted.value else { panic!() };
    assert_eq!(service.ports.len(), 1);
    assert_eq!(converted.notes.len(), 2, "{:?}", converted.notes);
}

#[test]
fn external_ips_that_do_not_parse_are_left_out_and_empty_ones_silently() {
    let converted =
        service(json!({"spec": {"externalIPs": ["203.0.113.1", "", "x", "2001:DB8::1", "203.0.113.001"]}}));
    let Some(Value::Service(service)) = &converted.value else { panic!() };
    assert_eq!(service.external_ips, ips(&["203.0.113.1", "2001:db8::1"]));
    assert!(matches!(&converted.notes[..], [note] if note.contains("\"x\"")), "{:?}", converted.notes);
}

#[test]
fn loopback_is_no_address_that_a_service_may_claim() {
    // The API server says so of external IPs, and takes any status.
    let status =
        json!({"loadBalancer": {"ingress": [{"ip": "127.0.0.1"}, {"ip": "::1"}, {"ip": "203.0.113.2"}]}});
    let converted = service(json!({"spec": {"externalIPs": ["127.1.2.3", "203.0.113.1"]}, "status": status}));
    let Some(Value::Service(service)) = &converted.value else { panic!() };
    assert_eq!(service.external_ips, ips(&["203.0.113.1"]));
    assert_eq!(service.load_balancer_ips, ips(&["203.0.113.2"]));
    assert_eq!(converted.notes.len(), 3, "{:?}", converted.notes);
}

#[test]
fn the_gate_allow_service_external_ips_takes_external_ips_away_but_not_what_follows_from_them() {
    let mut converter = Converter::new("n1");
    converter.external_ips = false;
    let object = json!({"metadata": {"name": "web"}, "spec": {"clusterIP": "10.96.0.1", "externalIPs": ["203.0.113.1"],
                        "externalTrafficPolicy": "Local"}});
    let converted = converter.convert(Kind::Service, object.to_string().as_bytes()).unwrap();
    let Some(Value::Service(service)) = converted.value else { panic!() };
    assert_eq!((&service.external_ips[..], service.external_policy), (&[][..], Policy::Local));
}

#[test]
fn external_policy_local_counts_only_where_there_is_something_external() {
    for (kind, external, expected) in [
        (Some("NodePort"), json!(null), Policy::Local),
        (Some("LoadBalancer"), json!(null), Policy::Local),
        (Some("ClusterIP"), json!(null), Policy::Cluster),
        (Some("ClusterIP"), json!([]), Policy::Cluster),
        (Some("ClusterIP"), json!(["203.0.113.1"]), Policy::Local),
        (None, json!(["203.0.113.1"]), Policy::Local),
        (Some("Other"), json!(["203.0.113.1"]), Policy::Cluster),
    ] {
        let service = served(
            json!({"spec": {"type": kind, "externalIPs": external, "externalTrafficPolicy": "Local"}}),
        );
        assert_eq!(service.external_policy, expected, "{kind:?} {external}");
    }
    assert_eq!(served(json!({"spec": {"type": "NodePort"}})).external_policy, Policy::Cluster);
}

#[test]
fn internal_policy_is_cluster_unless_it_is_local() {
    for (text, expected) in
        [(json!(null), Policy::Cluster), (json!("Cluster"), Policy::Cluster), (json!("Local"), Policy::Local)]
    {
        assert_eq!(
            served(json!({"spec": {"internalTrafficPolicy": text}})).internal_policy,
            expected,
            "{text}"
        );
    }
}

#[test]
fn the_health_check_port_is_for_load_balancers_with_policy_local() {
    for (kind, policy, number, expected, notes) in [
        ("LoadBalancer", "Local", 32000, Some(32000), 0),
        ("LoadBalancer", "Cluster", 32000, None, 0),
        ("NodePort", "Local", 32000, None, 0),
        ("LoadBalancer", "Local", 0, None, 1),
    ] {
        let converted = service(
            json!({"spec": {"type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": number}}),
        );
        assert_eq!(converted.notes.len(), notes, "{kind} {policy} {number}");
        let Some(Value::Service(service)) = converted.value else { panic!() };
        assert_eq!(service.health_check_node_port, expected, "{kind} {policy} {number}");
    }
}

#[test]
fn source_ranges_are_trimmed_parsed_and_opened_by_a_zero_range_of_their_family() {
    for (ranges, expected) in [
        (json!([" 203.0.113.0/25 ", "198.51.100.0/024"]), &["203.0.113.0/25", "198.51.100.0/24"][..]),
        (json!(["203.0.113.0/25", "0.0.0.0/0"]), &[]),
        (json!(["203.0.113.0/25", " ::/0", "2001:db8::/32"]), &["203.0.113.0/25"]),
        (json!(["nonsense", "203.0.113.1", "203.0.113.0/25", ""]), &["203.0.113.0/25"]),
        (json!(null), &[]),
    ] {
        let service = served(json!({"spec": {"loadBalancerSourceRanges": ranges}}));
        let found: Vec<String> = service.source_ranges.iter().map(Cidr::to_string).collect();
        assert_eq!(found, expected, "{ranges}");
    }
}

#[test]
fn load_balancer_ips_count_whatever_the_type_unless_their_mode_is_proxy() {
    let service = served(json!({"status": {"loadBalancer": {"ingress": [
        {"ip": "192.0.2.1"}, {"ip": "192.0.2.2", "ipMode": "VIP"}, {"ip": "192.0.2.3", "ipMode": "Proxy"},
        {"hostname": "lb.example"}, {"ip": "2001:db8::9", "ports": [{"port": 80}]}, {"ip": ""}, {"ip": "x"},
    ]}}}));
    assert_eq!(service.load_balancer_ips, ips(&["192.0.2.1", "192.0.2.2", "2001:db8::9"]));
}

#[test]
fn affinity_has_the_api_servers_default_and_limits() {
    for (spec, expected) in [
        (json!({}), None),
        (
            json!({"sessionAffinity": "None", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 7}}}),
            None,
        ),
        (json!({"sessionAffinity": "ClientIP"}), Some(10800)),
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 7}}}),
            Some(7),
        ),
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": -1}}}),
            Some(10800),
        ),
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}}),
            Some(10800),
        ),
        (json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": null}}), Some(10800)),
    ] {
        assert_eq!(served(json!({"spec": spec})).affinity_seconds, expected, "{spec}");
    }
}

#[test]
fn fields_that_are_not_read_do_not_matter_whatever_they_hold() {
    let plain = served(json!({}));
    let odd = served(json!({
        "metadata": {"annotations": {"a": "b"}, "managedFields": [{"fieldsV1": {"f:spec": {}}}], "uid": "u", "generation": 3},
        "spec": {"selector": 5, "ipFamilyPolicy": [], "publishNotReadyAddresses": "x", "loadBalancerIP": 1},
        "status": {"conditions": "x"},
    }));
    assert_eq!(plain, odd);
}

#[test]
fn slices_that_are_not_used_are_left_out() {
    for (why, changes) in [
        ("headless", json!({"metadata": {"labels": {"service.kubernetes.io/headless": ""}}})),
        ("no service", json!({"metadata": {"labels": null}})),
        ("empty service", json!({"metadata": {"labels": {"kubernetes.io/service-name": ""}}})),
        ("names, not addresses", json!({"addressType": "FQDN"})),
        ("no type", json!({"addressType": null})),
    ] {
        assert_eq!(slice(changes).value, None, "{why}");
    }
}

#[test]
fn a_slice_belongs_to_the_service_of_its_label_in_its_namespace() {
    let slice = used(json!({}));
    assert_eq!((slice.name.to_string(), slice.service.to_string()), ("ns/web-1".into(), "ns/web".into()));
    assert_eq!(slice.family, Family::V4);
}

#[test]
fn slice_ports_need_a_name_and_a_number() {
    let slice = used(json!({"ports": [
        {"name": "http", "port": 8080}, {"port": 1}, {"name": null, "port": 2}, {"name": "", "protocol": "UDP", "port": 3},
        {"name": "any"}, {"name": "zero", "port": 0}, {"name": "odd", "protocol": "ICMP", "port": 4},
    ]}));
    let ports: Vec<_> = slice.ports.iter().map(|p| (&*p.name, p.protocol, p.port)).collect();
    assert_eq!(ports, [("http", Protocol::Tcp, 8080), ("", Protocol::Udp, 3)]);
    assert!(used(json!({"ports": null})).ports.is_empty());
}

#[test]
fn conditions_that_are_missing_mean_ready_and_serving_and_not_terminating() {
    for (conditions, expected) in [
        (json!(null), (true, true, false)),
        (json!({}), (true, true, false)),
        (json!({"ready": null, "serving": null, "terminating": null}), (true, true, false)),
        (json!({"ready": false}), (false, true, false)),
        (json!({"ready": false, "serving": false, "terminating": true}), (false, false, true)),
    ] {
        let slice = used(json!({"endpoints": [{"addresses": ["10.0.0.1"], "conditions": conditions}]}));
        let Endpoint { ready, serving, terminating, .. } = slice.endpoints[0];
        assert_eq!((ready, serving, terminating), expected, "{conditions}");
    }
}

#[test]
fn only_an_endpoints_first_address_counts_and_it_is_read_leniently() {
    let slice = used(json!({"endpoints": [
        {"addresses": ["010.0.0.007", "10.0.0.8"], "nodeName": "n1", "zone": "z"},
        {"addresses": []}, {"addresses": null}, {"addresses": ["x"]}, {"addresses": ["fd00::1"]}, {},
    ]}));
    let found: Vec<_> =
        slice.endpoints.iter().map(|e| (e.address.to_string(), e.placement.node.as_deref())).collect();
    assert_eq!(found, [("10.0.0.7".to_owned(), Some("n1"))]);
    assert!(used(json!({"endpoints": null})).endpoints.is_empty());
}

#[test]
fn hints_are_sets_of_zones_and_nodes() {
    let slice = used(json!({"endpoints": [{"addresses": ["10.0.0.1"], "hints":
        {"forZones": [{"name": "b"}, {"name": "a"}, {"name": "b"}], "forNodes": [{"name": "n1"}]}}]}));
    let names = |set: &BTreeSet<Arc<str>>| set.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(&slice.endpoints[0].placement.for_zones), ["a", "b"]);
    assert_eq!(names(&slice.endpoints[0].placement.for_nodes), ["n1"]);
}

#[test]
fn the_trigger_time_has_nanoseconds_and_is_ignored_if_it_is_none() {
    let trigger = |text| {
        let annotation = json!({"endpoints.kubernetes.io/last-change-trigger-time": text});
        let trigger = slice(json!({"metadata": {"annotations": annotation}})).trigger?;
        Some(trigger.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos())
    };
    assert_eq!(trigger(json!("2024-05-06T07:08:09.000000010Z")), Some(1_714_979_289_000_000_010));
    assert_eq!(trigger(json!("2024-05-06T09:08:09+02:00")), Some(1_714_979_289_000_000_000));
    assert_eq!(trigger(json!("yesterday")), None);
    assert_eq!(trigger(json!(null)), None);
}

#[test]
fn the_own_node_is_read() {
    let node = node(json!({
        "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "a", "x": "y"}},
        "spec": {"podCIDRs": ["10.1.0.0/24", "fd00::/64", "x"], "unschedulable": true, "taints": [{"key": "other"}]},
        "status": {"addresses": [{"type": "ExternalIP", "address": "203.0.113.9"}, {"type": "Hostname", "address": "n1"},
                                 {"type": "InternalIP", "address": "192.0.2.7"}, {"type": "InternalIP", "address": "x"}]},
    }));
    assert_eq!(node.zone.as_deref(), Some("a"));
    assert_eq!(node.addresses, ips(&["192.0.2.7", "203.0.113.9"]));
    assert_eq!(node.pod_cidrs.iter().map(Cidr::to_string).collect::<Vec<_>>(), ["10.1.0.0/24", "fd00::/64"]);
    assert!(!node.leaving);
}

#[test]
fn a_node_is_leaving_when_it_is_deleted_or_tainted_by_the_autoscaler() {
    let tainted =
        json!({"metadata": {"name": "n1"}, "spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler"}]}});
    let deleted = json!({"metadata": {"name": "n1", "deletionTimestamp": "2024-05-06T07:08:09Z"}});
    assert!(node(tainted).leaving && node(deleted).leaving);
    assert!(!node(json!({"metadata": {"name": "n1"}})).leaving);
}

#[test]
fn another_node_is_not_ours() {
    let other = json!({"metadata": {"name": "n2"}});
    assert_eq!(convert(Kind::Node, &other).unwrap().value, None);
}

#[test]
fn a_malformed_object_is_named_with_its_field() {
    for (kind, object, name, field) in [
        (
            Kind::Service,
            json!({"metadata": {"namespace": "a", "name": "b"}, "spec": {"ports": "x"}}),
            "a/b",
            "spec.ports",
        ),
        (
            Kind::Service,
            json!({"metadata": {"namespace": "a", "name": "b"}, "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 70000}]}}),
            "a/b",
            "spec.ports[0].port",
        ),
        (
            Kind::Service,
            json!({"metadata": {"namespace": "a", "name": "b"}, "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80, "nodePort": -1}]}}),
            "a/b",
            "nodePort",
        ),
        (
            Kind::Slice,
            json!({"metadata": {"namespace": "a", "name": "b"}, "addressType": "IPv4", "endpoints": [{"addresses": [5]}]}),
            "a/b",
            "endpoints[0].addresses[0]",
        ),
        (Kind::Slice, json!({"metadata": {"namespace": "a", "labels": []}}), "a/", "metadata.labels"),
        (Kind::Service, json!({"metadata": {}}), "/", "metadata.name"),
        (Kind::Node, json!([]), "/", "Object"),
        (Kind::Node, json!(5), "/", "invalid type"),
    ] {
        let malformed = convert(kind, &object).expect_err("malformed");
        assert_eq!(malformed.name.to_string(), name, "{object}");
        assert!(malformed.why.contains(field), "{object}: {}", malformed.why);
    }
}

#[test]
fn a_malformed_object_still_tells_its_version() {
    let object = json!({"metadata": {"name": "b", "resourceVersion": "77"}, "spec": 5});
    assert_eq!(convert(Kind::Service, &object).unwrap_err().resource_version.as_deref(), Some("77"));
}

/// JSON out of the words that the objects are made of, so that it often comes close to one.
fn arbitrary_json() -> impl Strategy<Value = Json> {
    const WORDS: &[&str] = &[
        "metadata",
        "name",
        "namespace",
        "labels",
        "annotations",
        "resourceVersion",
        "spec",
        "status",
        "type",
        "clusterIP",
        "clusterIPs",
        "ipFamilies",
        "IPv4",
        "IPv6",
        "ports",
        "port",
        "nodePort",
        "protocol",
        "TCP",
        "externalIPs",
        "Local",
        "externalTrafficPolicy",
        "loadBalancer",
        "ingress",
        "ip",
        "ipMode",
        "VIP",
        "sessionAffinity",
        "ClientIP",
        "loadBalancerSourceRanges",
        "endpoints",
        "addresses",
        "addressType",
        "conditions",
        "ready",
        "hints",
        "forZones",
        "nodeName",
        "kubernetes.io/service-name",
        "podCIDRs",
        "taints",
        "key",
        "n1",
        "10.0.0.1",
        "010.0.0.1",
        "fd00::1",
        "0.0.0.0/0",
        " 10.0.0.0/8",
        "::/129",
        "LoadBalancer",
        "healthCheckNodePort",
        "",
        "None",
    ];
    let word = prop_oneof![9 => prop::sample::select(WORDS).prop_map(str::to_owned), 1 => ".*"];
    let leaf = prop_oneof![
        4 => word.clone().prop_map(Json::from),
        1 => any::<i64>().prop_map(Json::from),
        2 => (0..70_000_i64).prop_map(Json::from),
        1 => any::<f64>().prop_map(Json::from),
        1 => any::<bool>().prop_map(Json::from),
        1 => Just(Json::Null),
    ];
    leaf.prop_recursive(6, 64, 8, move |inner| {
        prop_oneof![
            1 => prop::collection::vec(inner.clone(), 0..5).prop_map(Json::from),
            3 => prop::collection::vec((word.clone(), inner), 0..8).prop_map(|entries| Json::Object(entries.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        for kind in [Kind::Service, Kind::Slice, Kind::Node] {
            let _ = Converter::new("n1").convert(kind, &bytes);
        }
    }

    #[test]
    fn arbitrary_objects_are_skipped_or_sane(spec in arbitrary_json(), status in arbitrary_json(), more in arbitrary_json()) {
        let mut object = json!({
            "metadata": {"name": "x", "labels": {"kubernetes.io/service-name": "s"}}, "addressType": "IPv4",
            "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}, "ports": [], "endpoints": [],
        });
        merge(&mut object, json!({"spec": spec, "status": status}));
        merge(&mut object, more);
        for kind in [Kind::Service, Kind::Slice, Kind::Node] {
            match convert(kind, &object).map(|converted| converted.value) {
                Ok(Some(Value::Service(service))) => {
                    prop_assert!(matches!(service.cluster_ips.len(), 1 | 2));
                    prop_assert!(service.ports.iter().all(|port| port.port > 0));
                    prop_assert!(service.affinity_seconds.is_none_or(|seconds| (1..=86400).contains(&seconds)));
                    prop_assert!(service.source_ranges.iter().all(|range| range.length > 0));
                }
                Ok(Some(Value::Slice(slice))) => {
                    prop_assert!(slice.ports.iter().all(|port| port.port > 0));
                    prop_assert!(slice.endpoints.iter().all(|e| Family::of(e.address) == slice.family));
                }
                Ok(_) => {}
                Err(malformed) => prop_assert!(!malformed.why.is_empty()),
            }
        }
    }
}

#[test]
fn pods_of_this_node_that_ask_for_it_are_left_to_packets_and_no_others_are_kept() {
    let pod = |changes: Json| {
        let mut object = json!({
            "metadata": {"name": "mesh", "uid": "aa-1", "annotations": {"vipr/socket-plane": "off"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
        });
        merge(&mut object, changes);
        convert(Kind::Pod, &object)
    };
    let left = pod(json!({})).unwrap();
    assert_eq!((left.value, left.notes.len()), (Some(Value::LeftPod("aa-1".into())), 0));
    let mirror = json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "f00d"}}});
    assert_eq!(pod(mirror).unwrap().value, Some(Value::LeftPod("f00d".into())), "a static pod");
    for (changes, notes) in [
        (json!({"metadata": {"annotations": {"vipr/socket-plane": null}}}), 0),
        (json!({"spec": {"nodeName": "n2"}}), 0),
        (json!({"spec": null}), 0),
        (json!({"spec": {"hostNetwork": true}}), 1),
        (json!({"metadata": {"annotations": {"vipr/socket-plane": "on"}}}), 1),
    ] {
        let other = pod(changes.clone()).unwrap();
        assert_eq!((other.value, other.notes.len()), (None, notes), "{changes}");
    }
    let without = pod(json!({"metadata": {"uid": null}})).unwrap_err();
    assert_eq!(without.why, "metadata.uid is missing");
}
