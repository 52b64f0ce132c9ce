//! Addresses and protocols as both halves see them; the byte order is in the type.

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes};

/// An IPv4 or IPv6 address in 16 bytes, network byte order, IPv4 as `::ffff:a.b.c.d` (RFC 4291 §2.5.5.2).
///
/// Kept as four words because the verifier's target copies byte arrays a byte at a time.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Address {
    /// Network byte order in memory: on a little-endian machine each word reads swapped.
    words: [u32; 4],
}

/// Third word of every IPv4-mapped address.
const MAPPED: u32 = 0xffff_u32.to_be();

impl Address {
    /// `::ffff:0.0.0.0`: "any IPv4 address", the wildcard key of IPv4 NodePorts.
    pub const ANY_V4: Self = Self { words: [0, 0, MAPPED, 0] };
    /// `::`: "any IPv6 address", the wildcard key of IPv6 NodePorts.
    pub const ANY_V6: Self = Self { words: [0; 4] };
    /// `::ffff:127.0.0.1`.
    pub const LOOPBACK_V4: Self = Self { words: [0, 0, MAPPED, 0x7f00_0001_u32.to_be()] };
    /// `::1`.
    pub const LOOPBACK_V6: Self = Self { words: [0, 0, 0, 1_u32.to_be()] };

    /// From an IPv4 address as the kernel holds it: one word in network byte order (`user_ip4`, `daddr`).
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self { words: [0, 0, MAPPED, word] }
    }

    /// From an IPv6 address as the kernel holds it: four words in network byte order (`user_ip6`).
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// From two halves in network byte order.
    #[inline(always)]
    pub const fn from_halves(halves: [u64; 2]) -> Self {
        Self { words: zerocopy::transmute!(halves) }
    }

    /// Two halves in network byte order.
    #[inline(always)]
    pub const fn halves(&self) -> [u64; 2] {
        zerocopy::transmute!(self.words)
    }

    /// Four words in network byte order.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.words
    }

    /// The IPv4 address as one word in network byte order; meaningful only if [`Self::is_v4`].
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.words[3]
    }

    /// Whether this is an IPv4 (mapped) address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED
    }

    /// Whether this is 127.0.0.0/8 or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            u32::from_be(self.words[3]) >> 24 == 127
        } else {
            self.words[0] == 0 && self.words[1] == 0 && self.words[2] == 0 && self.words[3] == 1_u32.to_be()
        }
    }

    /// Whether this is 0.0.0.0 or `::`. A `connect` to it reaches loopback on Linux.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.words[3] == 0 && (self.is_v4() || (self.words[0] | self.words[1] | self.words[2]) == 0)
    }

    /// The wildcard of the same family.
    #[inline(always)]
    pub const fn any(&self) -> Self {
        if self.is_v4() { Self::ANY_V4 } else { Self::ANY_V6 }
    }

    /// The loopback address of the same family.
    #[inline(always)]
    pub const fn loopback(&self) -> Self {
        if self.is_v4() { Self::LOOPBACK_V4 } else { Self::LOOPBACK_V6 }
    }

    /// The 16 bytes in network byte order.
    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        zerocopy::transmute!(self.words)
    }

    /// From 16 bytes in network byte order.
    #[inline(always)]
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        Self { words: zerocopy::transmute!(octets) }
    }

    /// Two halves as numbers, high half first: what addresses are ordered by.
    #[inline(always)]
    pub const fn order(&self) -> (u64, u64) {
        let w = self.words;
        (
            ((u32::from_be(w[0]) as u64) << 32) | u32::from_be(w[1]) as u64,
            ((u32::from_be(w[2]) as u64) << 32) | u32::from_be(w[3]) as u64,
        )
    }

    /// As the standard library's type; IPv4-mapped addresses become IPv4.
    pub const fn ip(&self) -> IpAddr {
        let o = self.octets();
        if self.is_v4() {
            IpAddr::V4(Ipv4Addr::new(o[12], o[13], o[14], o[15]))
        } else {
            IpAddr::V6(Ipv6Addr::from_octets(o))
        }
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_v4_word(u32::from_ne_bytes(v4.octets())),
            IpAddr::V6(v6) => Self::from_octets(v6.octets()),
        }
    }
}

impl Ord for Address {
    fn cmp(&self, other: &Self) -> core::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

impl PartialOrd for Address {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Transport protocol, by its number (IANA protocol numbers).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, TryFromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(u8)]
pub enum Protocol {
    /// RFC 9293.
    Tcp = 6,
    /// RFC 768.
    Udp = 17,
    /// RFC 9260.
    Sctp = 132,
}

impl Protocol {
    /// From the protocol number of a socket or an IP header.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;

    use super::*;

    #[test]
    fn addresses_survive_the_round_trip_and_print_in_their_family() {
        for text in ["10.96.0.10", "0.0.0.0", "127.0.0.1", "::", "::1", "fd00:96::a", "2001:db8::1"] {
            let address = Address::from(text.parse::<IpAddr>().unwrap());
            assert_eq!(address.to_string(), text);
            assert_eq!(Address::from_octets(address.octets()), address);
        }
    }

    #[test]
    fn mapped_and_plain_ipv4_are_one_address() {
        let mapped = Address::from_octets("::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(mapped, Address::from(IpAddr::from([10, 0, 0, 1])));
        assert!(mapped.is_v4());
    }

    #[test]
    fn loopback_and_unspecified_are_told_apart_in_both_families() {
        let a = |t: &str| Address::from(t.parse::<IpAddr>().unwrap());
        assert!(a("127.3.2.1").is_loopback() && a("::1").is_loopback() && !a("128.0.0.1").is_loopback());
        assert!(a("0.0.0.0").is_unspecified() && a("::").is_unspecified() && !a("::1").is_unspecified());
        assert!(!a("::127.0.0.1").is_loopback() && !a("10.0.0.0").is_unspecified());
    }

    #[test]
    fn addresses_are_ordered_as_numbers() {
        let a = |t: &str| Address::from(t.parse::<IpAddr>().unwrap());
        assert!(
            a("10.0.0.2") < a("10.0.1.1") && a("9.255.255.255") < a("10.0.0.0") && a("::1") < a("10.0.0.1")
        );
    }
}
