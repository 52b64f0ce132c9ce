//! Which frontends a Service's port has, and by which policy.

use super::*;
use crate::model::{LocalDetector, ObjectName};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn cidr(text: &str) -> Cidr {
    let (address, length) = text.split_once('/').unwrap();
    Cidr { address: ip(address), length: length.parse().unwrap() }
}

const PORT: u16 = 80;

fn port() -> Port {
    Port { name: "http".into(), protocol: Protocol::Tcp, port: PORT, node_port: 0 }
}

/// Dual-stack, with a load balancer address and an external IP of each family.
fn service() -> Service {
    Service {
        name: ObjectName::new("shop", "web"),
        cluster_ips: vec![ip("10.96.0.1"), ip("fd00:96::1")],
        ports: vec![port()],
        external_ips: vec![ip("198.51.100.1"), ip("2001:db8::1")],
        load_balancer_ips: vec![ip("203.0.113.1"), ip("2001:db8::2")],
        source_ranges: Vec::new(),
        internal_policy: Policy::Cluster,
        external_policy: Policy::Cluster,
        affinity_seconds: None,
        health_check_node_port: None,
    }
}

/// With only a ClusterIP.
fn internal() -> Service {
    Service { external_ips: Vec::new(), load_balancer_ips: Vec::new(), ..service() }
}

fn node() -> Node {
    Node { addresses: vec![ip("192.168.0.2"), ip("fd00::2")], ..Node::default() }
}

fn dialled_text(service: &Service, family: Family, port: &Port) -> Vec<String> {
    let node = node();
    let all = Face::of(service, family, &node, &Answers::default()).unwrap().dialled(port, Profile::Iptables);
    let text = |d: &Dialled| {
        let denied = if d.host_denied { " (not the host)" } else { "" };
        format!("{:?} {}:{}/{}{denied}", d.kind, d.key.address(), d.key.port, d.key.protocol)
    };
    all.iter().map(text).collect()
}

#[test]
fn every_address_of_the_family_is_dialled_and_node_ports_at_the_wildcard() {
    let port = Port { node_port: 30080, ..port() };
    assert_eq!(
        dialled_text(&service(), Family::V4, &port),
        [
            "ClusterIp 10.96.0.1:80/TCP",
            "LoadBalancer 203.0.113.1:80/TCP",
            "ExternalIp 198.51.100.1:80/TCP",
            "NodePort 0.0.0.0:30080/TCP",
        ]
    );
    assert_eq!(
        dialled_text(&service(), Family::V6, &port),
        [
            "ClusterIp fd00:96::1:80/TCP",
            "LoadBalancer 2001:db8::2:80/TCP",
            "ExternalIp 2001:db8::1:80/TCP",
            "NodePort :::30080/TCP",
        ]
    );
}

#[test]
fn every_address_that_udp_is_dialled_at_has_a_mark_for_fragments_and_no_node_port_has_one() {
    let port = Port { node_port: 30080, protocol: Protocol::Udp, ..port() };
    let all = dialled_text(&service(), Family::V4, &port);
    let marks: Vec<_> = all.iter().filter(|text| text.ends_with(":0/UDP")).collect();
    assert_eq!(
        marks,
        ["ClusterIp 10.96.0.1:0/UDP", "LoadBalancer 203.0.113.1:0/UDP", "ExternalIp 198.51.100.1:0/UDP"]
    );
}

#[test]
fn a_family_without_cluster_ip_does_not_exist() {
    let v4 = Service { cluster_ips: vec![ip("10.96.0.1")], ..service() };
    assert!(Face::of(&v4, Family::V6, &node(), &Answers::default()).is_none());
}

#[test]
fn an_unspecified_address_never_claims_the_wildcard_of_node_ports() {
    let odd = Service { external_ips: vec![ip("0.0.0.0"), ip("::")], ..internal() };
    assert_eq!(dialled_text(&odd, Family::V4, &port()), ["ClusterIp 10.96.0.1:80/TCP"]);
    assert_eq!(dialled_text(&odd, Family::V6, &port()), ["ClusterIp fd00:96::1:80/TCP"]);
}

fn denied(ranges: &[&str], family: Family, node: &Node) -> Vec<FrontendKind> {
    let source_ranges = ranges.iter().map(|text| cidr(text)).collect();
    let filtered = Service { source_ranges, ..service() };
    let port = Port { node_port: 30080, ..port() };
    let answers = Answers::default();
    let face = Face::of(&filtered, family, node, &answers).unwrap();
    let all = face.dialled(&port, Profile::Iptables);
    all.into_iter().filter(|d| d.host_denied).map(|d| d.kind).collect()
}

#[test]
fn source_ranges_deny_the_host_at_load_balancer_addresses_unless_its_address_is_inside() {
    assert_eq!(denied(&["10.0.0.0/8"], Family::V4, &node()), [FrontendKind::LoadBalancer]);
    assert!(denied(&["10.0.0.0/8", "192.168.0.0/16"], Family::V4, &node()).is_empty());
    // Of the other family, or none: no filter.
    assert!(denied(&["10.0.0.0/8"], Family::V6, &node()).is_empty());
    assert!(denied(&[], Family::V4, &node()).is_empty());
    // Only the first address of the family is the node's primary one.
    let second = Node { addresses: vec![ip("192.168.0.2"), ip("10.0.0.2")], ..Node::default() };
    assert_eq!(denied(&["10.0.0.0/8"], Family::V4, &second), [FrontendKind::LoadBalancer]);
    assert_eq!(denied(&["10.0.0.0/8"], Family::V4, &Node::default()), [FrontendKind::LoadBalancer]);
}

fn policy(service: &Service, settings: &Settings, family: Family) -> u16 {
    Face::of(service, family, &node(), &Answers::default()).unwrap().policy(&port(), settings)
}

fn pods() -> LocalDetector {
    LocalDetector::ClusterCidr(vec![cidr("10.0.0.0/8")])
}

fn quiet() -> Settings {
    Settings { profile: Profile::Nftables, ..Settings::default() }
}

#[test]
fn an_external_policy_counts_only_where_there_is_something_external() {
    let local = Service { internal_policy: Policy::Local, external_policy: Policy::Local, ..internal() };
    assert_eq!(policy(&local, &quiet(), Family::V4), Bits::INTERNAL_LOCAL);
    let v6_only = Service { load_balancer_ips: vec![ip("2001:db8::2")], ..local };
    assert_eq!(policy(&v6_only, &quiet(), Family::V4), Bits::INTERNAL_LOCAL);
    assert_eq!(policy(&v6_only, &quiet(), Family::V6), Bits::INTERNAL_LOCAL | Bits::EXTERNAL_LOCAL);
    let node = node();
    let answers = Answers::default();
    let face = Face::of(&v6_only, Family::V4, &node, &answers).unwrap();
    assert!(face.has_external_destination(&Port { node_port: 30080, ..port() }));
}

#[test]
fn the_detector_and_the_refusals_follow_the_settings() {
    let v4_pods = Settings { local_detector: pods(), ..quiet() };
    assert_eq!(policy(&internal(), &v4_pods, Family::V4), Bits::POD_DETECTOR);
    assert_eq!(policy(&internal(), &v4_pods, Family::V6), 0);
    assert_eq!(policy(&internal(), &Settings::default(), Family::V4), Bits::HOST_REJECT_LEFT);
    assert_eq!(
        policy(&internal(), &Settings { profile: Profile::Ipvs, ..quiet() }, Family::V4),
        0,
        "only the iptables mode has no REJECT in OUTPUT"
    );
}

#[test]
fn pods_are_told_apart_by_the_nodes_ranges_or_by_where_they_arrive() {
    let seen = |local_detector: LocalDetector, pod_cidrs: &[&str], family| {
        let node = Node { pod_cidrs: pod_cidrs.iter().map(|text| cidr(text)).collect(), ..Node::default() };
        let settings = Settings { local_detector, ..quiet() };
        let (service, port) = (internal(), port());
        Face::of(&service, family, &node, &Answers::default()).unwrap().policy(&port, &settings)
            & Bits::POD_DETECTOR
            != 0
    };
    assert!(seen(LocalDetector::NodeCidr, &["10.1.0.0/24"], Family::V4));
    assert!(!seen(LocalDetector::NodeCidr, &["10.1.0.0/24"], Family::V6));
    assert!(!seen(LocalDetector::NodeCidr, &[], Family::V4));
    for family in [Family::V4, Family::V6] {
        assert!(seen(LocalDetector::BridgeInterface("cni0".into()), &[], family));
        assert!(seen(LocalDetector::InterfaceNamePrefix("veth".into()), &[], family));
    }
}

fn ranges(of: &Service, packet_plane: bool, family: Family) -> Vec<String> {
    let (node, settings) = (node(), Settings { packet_plane, ..quiet() });
    let ranges = Face::of(of, family, &node, &Answers::default()).unwrap().source_ranges(&settings);
    ranges.iter().map(ToString::to_string).collect()
}

#[test]
fn source_ranges_are_told_to_the_packet_plane_with_the_vip_where_the_node_is_inside() {
    let with = |texts: &[&str]| Service {
        source_ranges: texts.iter().map(|text| cidr(text)).collect(),
        ..service()
    };
    let outside = with(&["172.16.0.0/12", "10.0.0.0/8", "2001:db8:9::/48"]);
    assert_eq!(ranges(&outside, true, Family::V4), ["10.0.0.0/8", "172.16.0.0/12"]);
    assert_eq!(ranges(&outside, true, Family::V6), ["2001:db8:9::/48"]);
    assert!(ranges(&outside, false, Family::V4).is_empty(), "nobody would read them");
    let inside = with(&["192.168.0.0/24"]);
    assert_eq!(ranges(&inside, true, Family::V4), ["192.168.0.0/24", "203.0.113.1/32"]);
    assert!(ranges(&inside, true, Family::V6).is_empty(), "of the other family");
    let no_vip = Service { load_balancer_ips: Vec::new(), ..inside };
    assert!(ranges(&no_vip, true, Family::V4).is_empty(), "nothing is filtered");
}

#[test]
fn nothing_is_left_to_a_packet_plane_that_does_not_run() {
    let busy =
        Service { source_ranges: vec![cidr("10.0.0.0/8")], external_policy: Policy::Local, ..service() };
    let mut settings = Settings { masquerade_all: true, local_detector: pods(), ..quiet() };
    let plain = Bits::EXTERNAL_LOCAL | Bits::POD_DETECTOR;
    assert_eq!(policy(&busy, &settings, Family::V4), plain);
    settings.packet_plane = true;
    let left = Bits::LEAVE_INTERNAL | Bits::LEAVE_EXTERNAL | Bits::SOURCE_RANGES;
    assert_eq!(policy(&busy, &settings, Family::V4), plain | left);
    let v6_left = policy(&busy, &settings, Family::V6);
    assert_eq!(
        v6_left,
        Bits::EXTERNAL_LOCAL | Bits::LEAVE_INTERNAL,
        "without a detector all pods are outside, and the ranges are of the other family"
    );
    let no_addresses = Service { load_balancer_ips: Vec::new(), ..busy };
    assert_eq!(
        policy(&no_addresses, &settings, Family::V4),
        plain | Bits::LEAVE_INTERNAL | Bits::LEAVE_EXTERNAL
    );
}
