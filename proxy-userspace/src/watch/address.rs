//! Addresses and prefixes as Kubernetes has always read them: leading zeros are decimal (spec §1.8).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::model::Cidr;

/// An address. `010.0.0.1` is 10.0.0.1, a v4-mapped IPv6 address is the IPv4 one; blanks and zones are refused.
pub fn parse_address(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    match text.rfind(':') {
        None => parse_v4(text).map(IpAddr::V4),
        Some(colon) => {
            let v4 = parse_v4(&text[colon + 1..])?;
            let address: Ipv6Addr = format!("{}{v4}", &text[..=colon]).parse().ok()?;
            Some(IpAddr::V6(address).to_canonical())
        }
    }
}

/// A prefix; host bits are cleared, `/024` is /24, blanks around it are no matter. An address without length is refused.
pub fn parse_cidr(text: &str) -> Option<Cidr> {
    let (address, length) = text.trim().split_once('/')?;
    let length = parse_number(length)?;
    // Go keeps the width of what is written: a length of a v4-mapped prefix counts from the IPv6 address's start.
    let mapped = address.contains(':');
    match parse_address(address)? {
        IpAddr::V4(v4) => {
            let length = if mapped { length.checked_sub(96)? } else { length };
            let mask = u32::MAX.checked_shl(32_u32.checked_sub(length)?).unwrap_or(0);
            Some(Cidr { address: Ipv4Addr::from_bits(v4.to_bits() & mask).into(), length: length as u8 })
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128_u32.checked_sub(length)?).unwrap_or(0);
            Some(Cidr { address: Ipv6Addr::from_bits(v6.to_bits() & mask).into(), length: length as u8 })
        }
    }
}

fn parse_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = u8::try_from(parse_number(parts.next()?)?).ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

/// Digits only: `u32::from_str` would take a sign.
fn parse_number(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) { None } else { text.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.000.0.0001", Some("10.0.0.1")),
            ("2001:DB8::1", Some("2001:db8::1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("::ffff:010.0.0.1", Some("10.0.0.1")),
            ("64:ff9b::010.0.0.1", Some("64:ff9b::a00:1")),
            ("256.0.0.1", None),
            ("10.0.0", None),
            ("10.0.0.1.2", None),
            ("10.0.0.+1", None),
            (" 10.0.0.1", None),
            ("fe80::1%eth0", None),
            ("host.example", None),
            ("", None),
            (":", None),
            (":::1.2.3.4", None),
        ] {
            assert_eq!(parse_address(text).map(|a| a.to_string()).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn prefixes_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("203.0.113.77/25", Some("203.0.113.0/25")),
            ("203.0.113.0/025", Some("203.0.113.0/25")),
            (" 203.0.113.0/25\t", Some("203.0.113.0/25")),
            ("010.0.0.0/8", Some("10.0.0.0/8")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("1.2.3.4/32", Some("1.2.3.4/32")),
            ("2001:db8::1/64", Some("2001:db8::/64")),
            ("::/0", Some("::/0")),
            ("::1/128", Some("::1/128")),
            ("::ffff:10.0.0.0/104", Some("10.0.0.0/8")),
            ("::ffff:10.0.0.0/8", None),
            ("10.0.0.0/33", None),
            ("2001:db8::/129", None),
            ("10.0.0.0", None),
            ("10.0.0.0/", None),
            ("10.0.0.0/+8", None),
            ("10.0.0.0/8/9", None),
            ("", None),
        ] {
            assert_eq!(parse_cidr(text).map(|c| c.to_string()).as_deref(), expected, "{text:?}");
        }
    }
}
