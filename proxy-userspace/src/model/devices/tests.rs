//! Devices as nodes have them, and what their programs are told.

use super::*;
use crate::model::{LinkAddress, Scope};

const UPLINK: u32 = 2;

fn link(name: &str, kind: &str) -> Link {
    Link {
        name: name.into(),
        kind: Some(kind).filter(|kind| !kind.is_empty()).map(Into::into),
        master: None,
        header: Some(14),
        mac: [2, 0, 0, 0, 0, name.len() as u8],
        loopback: false,
        addresses: Vec::new(),
    }
}

fn address(text: &str) -> LinkAddress {
    LinkAddress {
        address: text.parse().unwrap(),
        subnet: Cidr::around(text.parse().unwrap(), 64),
        scope: if text.starts_with("fe80") { Scope::Link } else { Scope::Global },
        secondary: false,
        deprecated: false,
        tentative: false,
    }
}

fn addresses(texts: &[&str]) -> Vec<LinkAddress> {
    texts.iter().map(|text| address(text)).collect()
}

fn loopback() -> Link {
    let mut addresses = addresses(&["127.0.0.1", "::1"]);
    addresses.iter_mut().for_each(|address| address.scope = Scope::Other);
    Link { header: None, loopback: true, addresses, ..link("lo", "") }
}

/// Loopback is 1, what is given follows.
fn table(links: impl IntoIterator<Item = Link>) -> BTreeMap<u32, Link> {
    (1..).zip(std::iter::once(loopback()).chain(links)).collect()
}

fn on() -> Settings {
    Settings { packet_plane: true, ..Settings::default() }
}

fn attached(links: &BTreeMap<u32, Link>, settings: &Settings) -> BTreeMap<u32, Attachment> {
    Devices { links, settings, node: &Node::default() }.attachments()
}

/// Name and role of those that get programs.
fn roles(links: &BTreeMap<u32, Link>, settings: &Settings) -> Vec<String> {
    let all = attached(links, settings);
    all.values().map(|attachment| format!("{} {:?}", attachment.name, attachment.device.role)).collect()
}

#[test]
fn devices_of_their_own_bridges_with_their_ports_and_members_of_a_vrf_get_programs() {
    let links = table([
        link("eth0", ""),
        link("cni0", "bridge"),
        Link { master: Some(3), ..link("veth0", "veth") },
        link("red", "vrf"),
        Link { master: Some(5), ..link("eth1", "") },
        Link { header: Some(0), ..link("wg0", "wireguard") },
        link("eth0.7", "vlan"),
        link("vxlan0", "vxlan"),
    ]);
    let all = ["eth0 Single", "cni0 Single", "veth0 BridgePort", "red Single", "eth1 Single", "wg0 Single"];
    assert_eq!(roles(&links, &on()), [&all[..], &["eth0.7 Single", "vxlan0 Single"]].concat());
    assert_eq!(attached(&links, &on())[&7].device.header, 0);
    assert!(roles(&links, &Settings::default()).is_empty(), "without a packet plane nothing gets any");
}

#[test]
fn what_carries_packets_of_another_device_or_none_for_this_host_gets_no_programs() {
    let links = table([
        link("bond0", "bond"),
        Link { master: Some(2), ..link("eth0", "") },
        link("team0", "team"),
        Link { master: Some(4), ..link("eth1", "") },
        link("kube-ipvs0", "dummy"),
        link("ifb0", "ifb"),
        link("mon0", "nlmon"),
        Link { header: None, ..link("can0", "can") },
        link("ovs-system", "openvswitch"),
        Link { master: Some(10), ..link("port0", "veth") },
        Link { master: Some(99), ..link("lost0", "veth") },
    ]);
    assert_eq!(roles(&links, &on()), ["bond0 Single", "team0 Single", "ovs-system Single"]);
}

#[test]
fn excluded_are_whole_names_and_what_begins_like_a_pattern() {
    let links = table(["eth0", "eth1", "tun", "tun5", "nat"].map(|name| link(name, "")));
    let excluded_devices = vec!["eth1".into(), "tun*".into(), "na".into()];
    assert_eq!(roles(&links, &Settings { excluded_devices, ..on() }), ["eth0 Single", "nat Single"]);
    assert!(roles(&links, &Settings { excluded_devices: vec!["*".into()], ..on() }).is_empty());
}

#[test]
fn a_port_knows_its_own_mac_address_and_the_bridges_and_others_none() {
    let bridge = Link { mac: [2, 1, 2, 3, 4, 5], ..link("cni0", "bridge") };
    let port = Link { master: Some(UPLINK), mac: [2, 9, 8, 7, 6, 5], ..link("veth0", "veth") };
    let all = attached(&table([bridge, port]), &on());
    let bytes = |words: [u16; 3]| words.map(u16::to_ne_bytes).concat();
    assert_eq!(bytes(all[&3].device.mac), [2, 9, 8, 7, 6, 5]);
    assert_eq!(bytes(all[&3].device.bridge_mac), [2, 1, 2, 3, 4, 5]);
    assert_eq!((all[&UPLINK].device.mac, all[&UPLINK].device.bridge_mac), ([0; 3], [0; 3]));
}

#[test]
fn pods_are_told_by_their_source_or_by_the_device_and_a_port_is_its_bridge() {
    let links = table([
        link("cni0", "bridge"),
        Link { master: Some(UPLINK), ..link("veth0", "veth") },
        link("veth1", "veth"),
    ]);
    let cidr = |text: &str| Cidr { address: text.parse().unwrap(), length: 16 };
    let pods = |local_detector: LocalDetector, node: &Node| {
        let settings = Settings { local_detector, ..on() };
        let devices = Devices { links: &links, settings: &settings, node };
        let all = devices.attachments();
        let names: Vec<_> = all.values().map(|attachment| attachment.device.pods).collect();
        (names, devices.pod_ranges().iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let nowhere = Node::default();
    let node = Node { pod_cidrs: vec![cidr("10.1.0.0")], ..Node::default() };
    let cluster = LocalDetector::ClusterCidr(vec![cidr("10.0.0.0")]);
    assert_eq!(pods(cluster, &node), (vec![Pods::InRange; 3], vec!["10.0.0.0/16".to_owned()]));
    assert_eq!(pods(LocalDetector::default(), &node), (vec![Pods::None; 3], vec![]));
    assert_eq!(
        pods(LocalDetector::NodeCidr, &node),
        (vec![Pods::InRange; 3], vec!["10.1.0.0/16".to_owned()])
    );
    assert_eq!(pods(LocalDetector::NodeCidr, &nowhere), (vec![Pods::None; 3], vec![]));
    let bridge = LocalDetector::BridgeInterface("cni0".into());
    assert_eq!(pods(bridge, &nowhere), (vec![Pods::All, Pods::All, Pods::None], vec![]));
    // netfilter calls what came in by a port by the bridge's name.
    let prefix = LocalDetector::InterfaceNamePrefix("veth".into());
    assert_eq!(pods(prefix, &nowhere), (vec![Pods::None, Pods::None, Pods::All], vec![]));
}

/// The masquerade addresses of the device 2, IPv4 and IPv6.
fn masquerade(links: impl IntoIterator<Item = Link>) -> [String; 2] {
    masquerade_of(UPLINK, links)
}

fn masquerade_of(index: u32, links: impl IntoIterator<Item = Link>) -> [String; 2] {
    let device = attached(&table(links), &on())[&index].device;
    [device.masquerade_v4, device.masquerade_v6].map(|octets| Address::from_octets(octets).to_string())
}

const NONE: &str = "::";

#[test]
fn the_first_primary_global_address_masquerades_ipv4() {
    let mut all = addresses(&["169.254.0.1", "192.0.2.9", "192.0.2.1", "198.51.100.1"]);
    all[0].scope = Scope::Link;
    all[1].secondary = true;
    // Deprecated or not is nothing that IPv4 asks for.
    all[2].deprecated = true;
    assert_eq!(masquerade([Link { addresses: all, ..link("eth0", "") }]), ["192.0.2.1", NONE]);
}

#[test]
fn a_device_without_an_address_borrows_that_of_another_but_never_loopbacks() {
    let bare = || link("eth0", "");
    assert_eq!(masquerade([bare()]), [NONE, NONE]);
    let other = |texts: &[&str]| Link { addresses: addresses(texts), ..link("eth1", "") };
    assert_eq!(masquerade([bare(), other(&["192.0.2.1", "2001:db8::1"])]), ["192.0.2.1", "2001:db8::1"]);
    assert_eq!(masquerade([bare(), other(&["fe80::1"])]), [NONE, NONE], "of another link");
}

#[test]
fn a_port_masquerades_with_its_bridges_addresses() {
    let bridge = Link { addresses: addresses(&["192.0.2.1", "2001:db8::1"]), ..link("cni0", "bridge") };
    let port = Link { master: Some(UPLINK), addresses: addresses(&["192.0.2.9"]), ..link("veth0", "veth") };
    assert_eq!(masquerade_of(3, [bridge, port]), ["192.0.2.1", "2001:db8::1"]);
}

#[test]
fn a_member_of_a_vrf_borrows_only_within_it() {
    let member = Link { master: Some(3), ..link("eth0", "") };
    let vrf = |texts: &[&str]| Link { addresses: addresses(texts), ..link("red", "vrf") };
    let outside = || Link { addresses: addresses(&["192.0.2.9", "2001:db8::9"]), ..link("eth1", "") };
    assert_eq!(masquerade([member.clone(), vrf(&[]), outside()]), [NONE, NONE]);
    let own = ["192.0.2.1", "2001:db8::1"];
    assert_eq!(masquerade([member.clone(), vrf(&own), outside()]), own);
    let outsider = masquerade_of(4, [member, vrf(&own), link("eth1", "")]);
    assert_eq!(outsider, [NONE, NONE], "nor does anybody outside");
}

#[test]
fn ipv6_is_masqueraded_by_scope_then_life_then_device_then_publicity_then_order() {
    let with = |change: fn(&mut [LinkAddress])| {
        let mut all = addresses(&["fe80::1", "2001:db8::1", "2001:db8::2"]);
        change(&mut all);
        let other = Link { addresses: addresses(&["2001:db8::77"]), ..link("eth1", "") };
        let [_, v6] = masquerade([Link { addresses: all, ..link("eth0", "") }, other]);
        v6
    };
    assert_eq!(with(|_| ()), "2001:db8::1");
    assert_eq!(with(|all| all[1].tentative = true), "2001:db8::2");
    assert_eq!(with(|all| all[1].deprecated = true), "2001:db8::2");
    assert_eq!(with(|all| all[1].secondary = true), "2001:db8::2", "temporary");
    let deprecated = |all: &mut [LinkAddress]| all.iter_mut().for_each(|address| address.deprecated = true);
    assert_eq!(with(deprecated), "2001:db8::77", "another device's before a deprecated one");
    let tentative =
        |all: &mut [LinkAddress]| all.iter_mut().skip(1).for_each(|address| address.tentative = true);
    assert_eq!(with(tentative), "2001:db8::77", "another device's before one of the link");
    let alone = Link { addresses: addresses(&["fe80::1"]), ..link("eth0", "") };
    assert_eq!(masquerade([alone])[1], "fe80::1");
}
