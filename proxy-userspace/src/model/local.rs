//! The node's own addresses, and on which of them NodePorts are served (spec §2.4).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use proxy_common::{
    Address,
    layout::{LocalAddress, LocalKey},
};

use super::{Cidr, Family, LocalRoute, Node, NodePortAddresses, Profile, Settings};

/// The device that kube-proxy's ipvs mode puts every VIP on: what stands there is no address of the node.
pub(super) const IPVS_DEVICE: &str = "kube-ipvs0";

const LOOPBACK_V4: Cidr = Cidr { address: IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), length: 8 };
const LOOPBACK_V6: Cidr = Cidr { address: IpAddr::V6(Ipv6Addr::LOCALHOST), length: 128 };

/// The entries of `local_addresses`: everything the node answers for, with or without NodePorts.
pub(super) fn addresses(
    routes: &BTreeSet<LocalRoute>,
    settings: &Settings,
    node: &Node,
) -> BTreeMap<LocalKey, LocalAddress> {
    let mut entries: BTreeMap<LocalKey, LocalAddress> = BTreeMap::new();
    for route in routes {
        // The same address may be on the VIPs' device and on a real one.
        let entry = entries.entry(key(&route.prefix)).or_default();
        // It serves if it serves on one of them.
        entry.node_port = match (entry.node_port, node_ports(route, settings, node)) {
            (LocalAddress::SERVED, _) | (_, LocalAddress::SERVED) => LocalAddress::SERVED,
            (one, other) => one | other,
        };
    }
    entries
}

/// IPv4 prefixes count within the mapped address.
fn key(prefix: &Cidr) -> LocalKey {
    let mapped = if prefix.address.is_ipv4() { 96 } else { 0 };
    LocalKey {
        prefix_length: mapped + u32::from(prefix.length),
        address: Address::from(prefix.address).octets(),
    }
}

/// Where load balancers may ask about Services (spec §4.2): on all addresses, or on those that serve NodePorts.
pub(super) fn health_check_addresses(
    routes: &BTreeSet<LocalRoute>,
    settings: &Settings,
    node: &Node,
) -> BTreeSet<IpAddr> {
    let mut addresses = BTreeSet::new();
    for family in [Family::V4, Family::V6] {
        if allowed(family, settings, node).is_empty() {
            let [v4, v6] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
            addresses.insert(if family == Family::V4 { v4 } else { v6 });
            continue;
        }
        let single = |route: &&LocalRoute| {
            let Cidr { address, length } = route.prefix;
            // Without its device nobody can listen on one that is only good on its link.
            let on_link = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
            Family::of(address) == family && length == full_length(family) && !on_link
        };
        let serving = routes.iter().filter(single).filter(|route| serves_node_ports(route, settings, node));
        addresses.extend(serving.map(|route| route.prefix.address));
    }
    addresses
}

/// The single addresses that came to or went from the node's devices, but for those that are only good on their link.
pub(super) fn moved(old: &BTreeSet<LocalRoute>, new: &BTreeSet<LocalRoute>) -> BTreeSet<IpAddr> {
    let on_link = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let routes = old.symmetric_difference(new).filter(|route| {
        route.prefix.length == full_length(Family::of(route.prefix.address))
            && !on_link(&route.prefix.address)
    });
    routes.map(|route| route.prefix.address).collect()
}

/// [`LocalAddress::node_port`]: kube-proxy's iptables mode refuses NodePorts on every address of the node, also where it
/// does not serve them (spec §2.4).
fn node_ports(route: &LocalRoute, settings: &Settings, node: &Node) -> u32 {
    let refuses = settings.profile == Profile::Iptables && &*route.device != IPVS_DEVICE;
    match serves_node_ports(route, settings, node) {
        true => LocalAddress::SERVED,
        false if refuses => LocalAddress::REFUSED,
        false => 0,
    }
}

fn serves_node_ports(route: &LocalRoute, settings: &Settings, node: &Node) -> bool {
    if &*route.device == IPVS_DEVICE {
        return false;
    }
    // `::1` never: kube-proxy needs a sysctl for loopback that IPv6 lacks, and users count on what is there (ADR 0008).
    let loopback = covers(&LOOPBACK_V4, &route.prefix);
    if covers(&LOOPBACK_V6, &route.prefix)
        || loopback && !(settings.profile == Profile::Iptables && settings.localhost_node_ports)
    {
        return false;
    }
    let allowed = allowed(Family::of(route.prefix.address), settings, node);
    allowed.is_empty() || allowed.iter().any(|range| covers(range, &route.prefix))
}

/// Where NodePorts of a family are served; empty: on all addresses. That is also what a list means that names no range
/// of the family, as does `primary` on a node without an address of the family.
fn allowed(family: Family, settings: &Settings, node: &Node) -> Vec<Cidr> {
    match (&settings.node_port_addresses, settings.profile) {
        (NodePortAddresses::Unset, Profile::Iptables | Profile::Ipvs) => Vec::new(),
        (NodePortAddresses::Unset, Profile::Nftables) | (NodePortAddresses::Primary, _) => {
            let primary = primary(node, family).filter(|address| !address.is_loopback());
            primary.map(|address| Cidr { address, length: full_length(family) }).into_iter().collect()
        }
        (NodePortAddresses::Ranges(ranges), _) => {
            ranges.iter().copied().filter(|range| Family::of(range.address) == family).collect()
        }
    }
}

/// The node's first address of a family (spec §1.6).
pub(super) fn primary(node: &Node, family: Family) -> Option<IpAddr> {
    node.addresses.iter().copied().find(|address| Family::of(*address) == family)
}

/// Of a prefix that is one address.
pub(super) fn full_length(family: Family) -> u8 {
    if family == Family::V4 { 32 } else { 128 }
}

fn covers(outer: &Cidr, inner: &Cidr) -> bool {
    outer.length <= inner.length && outer.contains(inner.address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        let (address, length) = text.split_once('/').unwrap();
        Cidr { address: address.parse().unwrap(), length: length.parse().unwrap() }
    }

    fn node() -> Node {
        let addresses = ["192.168.0.2", "fd00::2", "192.168.1.2"].map(|text| text.parse().unwrap());
        Node { addresses: addresses.into(), ..Node::default() }
    }

    const ROUTES: [(&str, &str); 8] = [
        ("127.0.0.0/8", "lo"),
        ("127.0.0.1/32", "lo"),
        ("::1/128", "lo"),
        ("192.168.0.2/32", "eth0"),
        ("192.168.1.2/32", "eth1"),
        ("fd00::2/128", "eth0"),
        ("fd01::2/128", "eth1"),
        ("10.96.0.10/32", "kube-ipvs0"),
    ];

    /// Where NodePorts are served.
    fn served(settings: &Settings, node: &Node) -> Vec<String> {
        let routes =
            ROUTES.map(|(prefix, device)| LocalRoute { prefix: cidr(prefix), device: device.into() });
        let entries = addresses(&BTreeSet::from(routes.clone()), settings, node);
        assert_eq!(entries.len(), ROUTES.len(), "what serves no NodePorts is still the node's");
        let serves = |prefix: &Cidr| entries[&key(prefix)].node_port == LocalAddress::SERVED;
        routes.iter().filter(|route| serves(&route.prefix)).map(|route| route.prefix.to_string()).collect()
    }

    fn settings(profile: Profile, node_port_addresses: NodePortAddresses) -> Settings {
        Settings { profile, node_port_addresses, localhost_node_ports: true, ..Settings::default() }
    }

    fn ranges(texts: &[&str]) -> NodePortAddresses {
        NodePortAddresses::Ranges(texts.iter().map(|text| cidr(text)).collect())
    }

    const REAL: [&str; 4] = ["192.168.0.2/32", "192.168.1.2/32", "fd00::2/128", "fd01::2/128"];
    const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "127.0.0.1/32"];
    const PRIMARY: [&str; 2] = ["192.168.0.2/32", "fd00::2/128"];

    #[test]
    fn unset_means_every_address_for_iptables_and_ipvs_and_the_primary_ones_for_nftables() {
        let unset = NodePortAddresses::Unset;
        let all = [&LOOPBACK[..], &REAL].concat();
        assert_eq!(served(&settings(Profile::Iptables, unset.clone()), &node()), all);
        assert_eq!(served(&settings(Profile::Ipvs, unset.clone()), &node()), REAL);
        assert_eq!(served(&settings(Profile::Nftables, unset), &node()), PRIMARY);
    }

    #[test]
    fn loopback_serves_only_for_iptables_with_the_switch_on_and_inside_the_ranges() {
        let mut off = settings(Profile::Iptables, NodePortAddresses::Unset);
        off.localhost_node_ports = false;
        assert_eq!(served(&off, &node()), REAL);
        let outside = settings(Profile::Iptables, ranges(&["192.168.0.0/24", "fd00::/64"]));
        assert_eq!(served(&outside, &node()), PRIMARY);
        let one = settings(Profile::Iptables, ranges(&["127.0.0.1/32", "fd00::/64"]));
        assert_eq!(served(&one, &node()), ["127.0.0.1/32", "fd00::2/128"]);
        let other_mode = settings(Profile::Nftables, ranges(&["127.0.0.0/8", "fd00::/64"]));
        assert_eq!(served(&other_mode, &node()), ["fd00::2/128"]);
    }

    #[test]
    fn iptables_refuses_where_it_does_not_serve_and_no_other_mode_does() {
        let mut settings = settings(Profile::Iptables, ranges(&["192.168.0.0/24", "fd00::/64"]));
        settings.localhost_node_ports = false;
        let routes: BTreeSet<_> =
            ROUTES.map(|(prefix, device)| LocalRoute { prefix: cidr(prefix), device: device.into() }).into();
        let refused = |settings: &Settings| {
            let entries = addresses(&routes, settings, &node());
            let refuses = |prefix: &Cidr| entries[&key(prefix)].node_port == LocalAddress::REFUSED;
            routes.iter().map(|route| route.prefix).filter(refuses).map(|it| it.to_string()).collect()
        };
        let all: Vec<String> = refused(&settings);
        assert_eq!(all, ["127.0.0.0/8", "127.0.0.1/32", "192.168.1.2/32", "::1/128", "fd01::2/128"]);
        for profile in [Profile::Nftables, Profile::Ipvs] {
            let none: Vec<String> = refused(&Settings { profile, ..settings.clone() });
            assert!(none.is_empty(), "{none:?}");
        }
    }

    #[test]
    fn primary_is_the_first_address_of_each_family() {
        assert_eq!(served(&settings(Profile::Iptables, NodePortAddresses::Primary), &node()), PRIMARY);
    }

    #[test]
    fn a_family_that_is_not_named_is_served_everywhere() {
        let v4_only = settings(Profile::Nftables, ranges(&["192.168.1.0/24"]));
        assert_eq!(served(&v4_only, &node()), ["192.168.1.2/32", "fd00::2/128", "fd01::2/128"]);
        let mut no_v6 = node();
        no_v6.addresses.retain(|address| address.is_ipv4());
        let primary = settings(Profile::Nftables, NodePortAddresses::Primary);
        assert_eq!(served(&primary, &no_v6), ["192.168.0.2/32", "fd00::2/128", "fd01::2/128"]);
    }

    #[test]
    fn a_loopback_address_is_nobodys_primary() {
        let lost = Node { addresses: vec![IpAddr::from([127, 0, 0, 1])], ..Node::default() };
        assert_eq!(served(&settings(Profile::Nftables, NodePortAddresses::Primary), &lost), REAL);
    }

    #[test]
    fn a_range_of_the_node_is_served_only_if_all_of_it_is_allowed() {
        let any_ip = LocalRoute { prefix: cidr("192.168.0.0/24"), device: "lo".into() };
        for (range, served) in [("192.168.0.0/32", 2), ("192.168.0.0/25", 2), ("192.168.0.0/16", 1)] {
            let settings = settings(Profile::Iptables, ranges(&[range]));
            let entries = addresses(&BTreeSet::from([any_ip.clone()]), &settings, &node());
            assert_eq!(entries[&key(&any_ip.prefix)].node_port, served, "{range}");
        }
    }

    #[test]
    fn an_address_on_the_device_of_vips_and_on_a_real_one_is_the_nodes() {
        let routes = ["kube-ipvs0", "eth0"]
            .map(|device| LocalRoute { prefix: cidr("192.168.0.2/32"), device: device.into() });
        let all = settings(Profile::Ipvs, NodePortAddresses::Unset);
        let entries = addresses(&BTreeSet::from(routes), &all, &node());
        assert_eq!(entries.into_values().collect::<Vec<_>>(), [LocalAddress { node_port: 1 }]);
    }

    /// Where load balancers may ask.
    fn asked(settings: &Settings, node: &Node) -> Vec<String> {
        let on_link = [("fe80::1/128", "eth0")];
        let routes = ROUTES.iter().chain(&on_link);
        let routes =
            routes.map(|(prefix, device)| LocalRoute { prefix: cidr(prefix), device: (*device).into() });
        let addresses = health_check_addresses(&routes.collect(), settings, node);
        addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn load_balancers_may_ask_everywhere_or_where_node_ports_are_served() {
        let asked_of = |profile, addresses| asked(&settings(profile, addresses), &node());
        assert_eq!(asked_of(Profile::Iptables, NodePortAddresses::Unset), ["0.0.0.0", "::"]);
        assert_eq!(asked_of(Profile::Nftables, NodePortAddresses::Unset), ["192.168.0.2", "fd00::2"]);
        assert_eq!(
            asked_of(Profile::Iptables, ranges(&["192.168.0.0/16"])),
            ["192.168.0.2", "192.168.1.2", "::"]
        );
        assert_eq!(
            asked_of(Profile::Iptables, ranges(&["127.0.0.0/8", "fe80::/10", "fd01::/64"])),
            ["127.0.0.1", "fd01::2"],
            "no range, and no address that needs its device"
        );
    }
}
