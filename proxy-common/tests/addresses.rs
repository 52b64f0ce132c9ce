//! The bitmap of addresses: who has a frontend is never told no, and others are told yes as seldom as was computed.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use proxy_common::{Address, layout::Spot};

/// The bitmap as who writes it sees it: addresses of some frontends, and nothing else.
#[derive(Default)]
struct Bitmap(Vec<u64>);

impl Bitmap {
    fn of(addresses: impl Iterator<Item = Address>) -> Self {
        let mut words = vec![0; Spot::WORDS as usize];
        for spot in addresses.map(|address| Spot::of(&address)) {
            words[spot.word as usize] |= spot.bits;
        }
        Self(words)
    }

    fn holds(&self, address: &Address) -> bool {
        let spot = Spot::of(address);
        spot.is_in(self.0[spot.word as usize])
    }

    /// Of so many, how many are told yes.
    fn share(&self, strangers: impl Iterator<Item = Address>) -> f64 {
        let (mut all, mut yes) = (0, 0);
        for address in strangers {
            all += 1;
            yes += u32::from(self.holds(&address));
        }
        f64::from(yes) / f64::from(all)
    }
}

fn v4(base: [u8; 4], number: u32) -> Address {
    Address::from_v4_word((u32::from_be_bytes(base) + number).to_be())
}

fn v6(prefix: &str, number: u32) -> Address {
    let prefix: Ipv6Addr = prefix.parse().expect("an address");
    Address::from_octets((u128::from(prefix) + u128::from(number)).to_be_bytes())
}

/// The share that finds its three bits set in a word in which each of `count` addresses has set three of 64, in words
/// that a share of all addresses falls into at random (Poisson).
fn computed(count: u32) -> f64 {
    let mean = f64::from(count) / f64::from(Spot::WORDS);
    let (mut chance, mut share) = ((-mean).exp(), 0.0);
    for addresses in 0..200 {
        if addresses > 0 {
            chance *= mean / f64::from(addresses);
        }
        // Three picks of 64, of which none is unset: by inclusion and exclusion of the unset ones.
        let unset = |picks: f64| (1.0 - picks / 64.0).powi(3 * addresses);
        share += chance * (1.0 - 3.0 * unset(1.0) + 3.0 * unset(2.0) - unset(3.0));
    }
    share
}

#[test]
fn the_share_of_strangers_that_is_told_yes_is_the_one_that_was_written_down() {
    for (count, percent) in [(1000, 0.0002), (10_000, 0.01), (50_000, 0.36), (100_000, 1.85)] {
        let share = 100.0 * computed(count);
        assert!((share / percent - 1.0).abs() < 0.2, "{count}: {share} %, not {percent} %");
    }
}

#[test]
fn addresses_as_clusters_have_them_are_told_apart_as_well_as_random_ones() {
    // ClusterIPs one after another, as allocators that start at the range's begin give them, and spread over a /12.
    for stride in [1, 16] {
        let services = (0..50_000)
            .flat_map(|number| [v4([10, 96, 0, 1], number * stride), v6("fd00:96::1", number * stride)]);
        let bitmap = Bitmap::of(services);
        let pods = bitmap.share((0..60_000).map(|number| v4([10, 244, 0, 0], number)));
        let pods6 = bitmap.share((0..60_000).map(|number| v6("fd00:244::", number)));
        let world = bitmap
            .share((0..60_000).map(|number: u32| v4([1, 0, 0, 0], number.wrapping_mul(15_485_863) >> 4)));
        for (who, share) in [("pods", pods), ("pods of IPv6", pods6), ("the world", world)] {
            let expected = computed(100_000);
            assert!(
                (0.8..1.25).contains(&(share / expected)),
                "{who}, {stride}: {share}, computed {expected}"
            );
        }
    }
}

#[test]
fn an_address_stands_at_one_place_whichever_way_it_was_written() {
    let plain = Address::from(std::net::IpAddr::from(Ipv4Addr::new(10, 96, 0, 1)));
    let mapped = Address::from_octets("::ffff:10.96.0.1".parse::<Ipv6Addr>().expect("an address").octets());
    assert_eq!(Spot::of(&plain), Spot::of(&mapped));
    // Both halves and two versions of vipr agree on it: whoever moves it raises the version of the layouts.
    assert_eq!(Spot::of(&plain), Spot { word: 12_565, bits: 1 << 11 | 1 << 52 | 1 << 60 });
}

fn address() -> impl Strategy<Value = Address> {
    prop_oneof![
        any::<u32>().prop_map(Address::from_v4_word),
        any::<[u32; 4]>().prop_map(Address::from_words),
        (0..64_u32).prop_map(|number| v4([10, 96, 0, 0], number)),
    ]
}

proptest! {
    #[test]
    fn who_has_a_frontend_is_never_told_no(addresses in prop::collection::vec(address(), 1..300)) {
        let bitmap = Bitmap::of(addresses.iter().copied());
        for address in &addresses {
            prop_assert!(bitmap.holds(address), "{}", address);
        }
    }

    #[test]
    fn who_is_told_yes_has_all_bits_from_others(theirs in prop::collection::vec(address(), 1..100), other in address()) {
        let theirs: BTreeSet<Address> = theirs.into_iter().collect();
        let spot = Spot::of(&other);
        prop_assert!(spot.word < Spot::WORDS && (1..=3).contains(&spot.bits.count_ones()));
        // By hand: every bit of the other one, one after another.
        let has = |bit: u32| theirs.iter().map(Spot::of).any(|at| at.word == spot.word && at.bits >> bit & 1 == 1);
        let expected = (0..64).filter(|bit| spot.bits >> bit & 1 == 1).all(has);
        prop_assert_eq!(Bitmap::of(theirs.iter().copied()).holds(&other), expected);
    }
}
