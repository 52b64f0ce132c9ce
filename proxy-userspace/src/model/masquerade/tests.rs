//! The ranges say for every peer what the kernel's rules say.

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// As `ADDRESS/LENGTH` of the device, with its subnet.
fn address(text: &str) -> LinkAddress {
    let (address, length) = text.split_once('/').unwrap();
    let (address, length) = (ip(address), length.parse().unwrap());
    LinkAddress {
        address,
        subnet: Cidr::around(address, length),
        scope: if text.starts_with("fe80") { Scope::Link } else { Scope::Global },
        secondary: false,
        deprecated: false,
        tentative: false,
    }
}

fn link(addresses: impl IntoIterator<Item = LinkAddress>) -> Link {
    Link {
        name: "eth0".into(),
        kind: None,
        master: None,
        header: Some(14),
        mac: [0; 6],
        loopback: false,
        addresses: addresses.into_iter().collect(),
    }
}

fn of(addresses: impl IntoIterator<Item = LinkAddress>) -> Choices {
    Sources { links: &BTreeMap::from([(2, link(addresses))]) }.of(2)
}

fn towards(choice: &Choice, peer: &str) -> String {
    let peer = ip(peer);
    let holding = choice.others.iter().filter(|(range, _)| range.contains(peer));
    let longest = holding.max_by_key(|(range, _)| range.length).map(|(_, address)| *address);
    longest.or(choice.first).map_or_else(String::new, |address| address.to_string())
}

#[test]
fn ipv4_goes_by_the_first_subnet_that_holds_the_next_hop_and_else_by_the_first_address() {
    let all = ["192.0.2.1/24", "198.51.100.1/24", "10.0.0.1/8", "10.1.0.1/16"];
    let choices = of(all.map(address));
    for (next_hop, source) in [
        ("192.0.2.254", "192.0.2.1"),
        ("198.51.100.254", "198.51.100.1"),
        ("10.1.0.7", "10.0.0.1"),
        ("203.0.113.1", "192.0.2.1"),
    ] {
        assert_eq!(towards(&choices.v4, next_hop), source, "{next_hop}");
    }
    assert_eq!(choices.bits(), Device::V4_BY_NEXT_HOP);
    // Narrow before wide: the wide one gets what is left.
    let choices = of(["10.1.0.1/16", "10.0.0.1/8"].map(address));
    assert_eq!(towards(&choices.v4, "10.1.0.7"), "10.1.0.1");
    assert_eq!(towards(&choices.v4, "10.2.0.7"), "10.0.0.1");
}

#[test]
fn secondary_addresses_and_one_subnet_leave_no_choice() {
    let mut all = ["192.0.2.1/24", "192.0.2.2/24", "198.51.100.1/24"].map(address);
    all[1].secondary = true;
    all[2].scope = Scope::Link;
    assert_eq!(of(all).bits(), 0);
    assert_eq!(of([address("192.0.2.1/24"), address("fd00::1/64"), address("fe80::1/64")]).bits(), 0);
}

#[test]
fn the_other_end_of_a_point_to_point_address_is_what_holds_the_next_hop() {
    let mut pair = address("192.0.2.1/32");
    pair.subnet = Cidr::around(ip("203.0.113.2"), 32);
    let choices = of([address("198.51.100.1/24"), pair]);
    assert_eq!(towards(&choices.v4, "203.0.113.2"), "192.0.2.1");
    assert_eq!(towards(&choices.v4, "192.0.2.1"), "198.51.100.1");
}

#[test]
fn ipv6_goes_by_label_and_then_by_the_longest_common_prefix_within_the_sources() {
    let choices = of(["fd00:77::1/64", "2001:db8:1::1/64", "2001:db8:2::1/64"].map(address));
    for (peer, source) in [
        ("fd99::1", "fd00:77::1"),
        ("2001:db8:2:3::1", "2001:db8:2::1"),
        ("2001:db8:1:3::1", "2001:db8:1::1"),
        ("2a00::1", "2001:db8:1::1"),
    ] {
        assert_eq!(towards(&choices.v6, peer), source, "{peer}");
    }
    assert_eq!(choices.bits(), Device::V6_BY_PEER);
    let mut all = ["2001:db8:1::1/64", "2001:db8:2::1/64"].map(address);
    all[1].deprecated = true;
    assert_eq!(of(all).bits(), 0, "a deprecated one is nobody's choice where there is another");
}

const POOL: [&str; 9] = [
    "fd00:77::1/64",
    "fd00:77::2/128",
    "fd00:77:0:1::1/64",
    "fd00::1/16",
    "2001:db8:1::1/64",
    "2001:db8:1::2/48",
    "2002:c000:201::1/64",
    "2001:0:1::1/32",
    "2a00::8000:1/96",
];

proptest! {
    #[test]
    fn every_ipv6_peer_is_shown_what_the_rules_say(
        texts in vec((select(&POOL), any::<bool>()), 1..6),
        flips in vec((select(&POOL), 0..129_u32, any::<u128>()), 1..40),
    ) {
        let mut sources: Vec<Source> = Vec::new();
        let mut all = Vec::new();
        for (text, is_public) in texts {
            let LinkAddress { address: IpAddr::V6(v6), subnet, .. } = address(text) else { continue };
            if sources.iter().all(|source| source.address != v6) {
                sources.push(Source { address: v6, length: subnet.length, is_public });
                all.push(LinkAddress { secondary: !is_public, ..address(text) });
            }
        }
        let choice = of(all).v6;
        for (text, keeps, noise) in flips {
            // As many bits as are kept of somebody's address, then noise.
            let IpAddr::V6(near) = address(text).address else { continue };
            let mask = u128::MAX.checked_shl(128 - keeps).unwrap_or(0);
            let peer = Ipv6Addr::from_bits(near.to_bits() & mask | noise & !mask);
            let expected = best(&sources, peer).map(|it| it.to_string()).unwrap_or_default();
            prop_assert_eq!(towards(&choice, &peer.to_string()), expected, "{} of {:?}", peer, choice);
        }
    }

    #[test]
    fn every_ipv4_next_hop_is_shown_what_the_rules_say(
        texts in vec(select(&["10.0.0.1/8", "10.1.0.1/16", "10.1.1.1/24", "10.1.1.2/30", "192.0.2.1/24"]), 1..5),
        hops in vec(select(&["10.1.1.3", "10.1.1.9", "10.1.9.9", "10.9.9.9", "192.0.2.9", "203.0.113.9"]), 1..6),
    ) {
        let all: Vec<_> = texts.into_iter().map(address).collect();
        let choice = of(all.clone()).v4;
        for hop in hops {
            let holding = all.iter().find(|one| one.subnet.contains(ip(hop))).or(all.first());
            prop_assert_eq!(towards(&choice, hop), holding.unwrap().address.to_string());
        }
    }
}
