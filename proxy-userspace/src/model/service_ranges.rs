//! Where Services' addresses are, for the modes that have an answer to what is sent there and is no frontend: nftables
//! to ClusterIPs (spec §2.6), ipvs to every VIP. These are the ranges of ServiceCIDRs, and what covers the addresses
//! outside all of them. Packets to other addresses need no look at the table of marks.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{Cidr, Family};

/// Addresses with a mark (`FrontendKey::mark`), with the number of Services that have each.
#[derive(Debug, Default)]
pub(super) struct MarkedAddresses {
    all: BTreeMap<IpAddr, u32>,
}

impl MarkedAddresses {
    /// A Service has others now. Gives whether the addresses are not the same any more.
    pub(super) fn replace(&mut self, old: &[IpAddr], new: &[IpAddr]) -> bool {
        if old == new {
            return false;
        }
        for address in old {
            if let Some(count) = self.all.get_mut(address) {
                *count -= 1;
                if *count == 0 {
                    self.all.remove(address);
                }
            }
        }
        for address in new {
            *self.all.entry(*address).or_default() += 1;
        }
        true
    }

    /// For each family the longest prefix that has all addresses in it that are in none of `ranges`.
    pub(super) fn cover(&self, ranges: &BTreeSet<Cidr>) -> BTreeSet<Cidr> {
        let outside = |address: &&IpAddr| !ranges.iter().any(|range| range.contains(**address));
        let cover = |family: Family| {
            let of_family = |address: &&IpAddr| Family::of(**address) == family;
            let mut outside = self.all.keys().filter(of_family).filter(outside);
            let first = *outside.next()?;
            // They are in order: all are between the first and the last.
            Some(common(first, outside.next_back().copied().unwrap_or(first)))
        };
        [Family::V4, Family::V6].into_iter().filter_map(cover).collect()
    }
}

/// The longest prefix that two addresses of a family share.
fn common(a: IpAddr, b: IpAddr) -> Cidr {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let length = (a.to_bits() ^ b.to_bits()).leading_zeros();
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            Cidr { address: std::net::Ipv4Addr::from_bits(a.to_bits() & mask).into(), length: length as u8 }
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            let length = (a.to_bits() ^ b.to_bits()).leading_zeros();
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            Cidr { address: std::net::Ipv6Addr::from_bits(a.to_bits() & mask).into(), length: length as u8 }
        }
        (other, _) => Cidr { address: other, length: if other.is_ipv4() { 32 } else { 128 } },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn cover(texts: &[&str], ranges: &[(&str, u8)]) -> Vec<String> {
        let mut all = MarkedAddresses::default();
        assert_eq!(all.replace(&[], &ips(texts)), !texts.is_empty());
        let ranges = ranges
            .iter()
            .map(|(address, length)| Cidr { address: address.parse().unwrap(), length: *length });
        all.cover(&ranges.collect()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_no_range_has_is_covered_by_one_prefix_of_its_family() {
        assert!(cover(&[], &[]).is_empty());
        assert_eq!(cover(&["10.96.0.1"], &[]), ["10.96.0.1/32"]);
        assert_eq!(cover(&["10.96.0.1", "10.96.7.9", "fd00::1"], &[]), ["10.96.0.0/21", "fd00::1/128"]);
        assert_eq!(cover(&["10.96.0.1", "172.30.0.1"], &[("10.96.0.0", 16)]), ["172.30.0.1/32"]);
        assert_eq!(cover(&["10.0.0.1", "172.30.0.1"], &[]), ["0.0.0.0/0"]);
        assert_eq!(cover(&["::1", "ffff::1"], &[]), ["::/0"]);
    }

    #[test]
    fn an_address_goes_with_the_last_service_that_has_it() {
        let mut all = MarkedAddresses::default();
        let (one, two) = (ips(&["10.96.0.1"]), ips(&["10.96.0.1", "10.96.0.2"]));
        assert!(all.replace(&[], &one) && all.replace(&[], &two) && !all.replace(&one, &one));
        assert!(all.replace(&two, &[]));
        assert_eq!(all.cover(&BTreeSet::new()).len(), 1);
        assert!(all.replace(&one, &[]));
        assert!(all.cover(&BTreeSet::new()).is_empty());
    }
}
