//! The kernel's counters of packets with a wrong checksum or broken otherwise: zero at the end of a lab.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

/// Counters by name, as `Tcp.InErrs` or `Udp6.InCsumErrors`; only those that are not zero.
pub type Errors = BTreeMap<String, u64>;

/// What is counted as an error. UDP's `InErrors` also counts datagrams for which a socket had no room; they are taken
/// off again (`RcvbufErrors`), for a slow reader is no broken packet.
const WATCHED: [&str; 8] = [
    "Tcp.InErrs",
    "Tcp.InCsumErrors",
    "Udp.InErrors",
    "Udp.InCsumErrors",
    "Udp6.InErrors",
    "Udp6.InCsumErrors",
    "Icmp.InCsumErrors",
    "Icmp6.InCsumErrors",
];

/// The error counters of the network namespace of a process.
pub(crate) fn errors(pid: u32) -> Result<Errors> {
    let mut errors = all(pid)?;
    errors.retain(|name, number| *number > 0 && WATCHED.contains(&name.as_str()));
    Ok(errors)
}

/// How many packets came to the namespace of a process to be sent on, where nothing is sent on.
pub(crate) fn strays(pid: u32) -> Result<u64> {
    let all = all(pid)?;
    Ok(["Ip.InAddrErrors", "Ip6.InAddrErrors", "Ip6.InNoRoutes"]
        .iter()
        .filter_map(|&name| all.get(name))
        .sum())
}

fn all(pid: u32) -> Result<BTreeMap<String, u64>> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/net/{name}");
        fs::read_to_string(&path).with_context(|| format!("reading {path}"))
    };
    Ok(parse(&read("snmp")?, &read("snmp6")?))
}

fn parse(snmp: &str, snmp6: &str) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    // Pairs of lines, names above numbers: `Tcp: RtoAlgorithm …` and `Tcp: 1 …`.
    let lines: Vec<&str> = snmp.lines().collect();
    for pair in lines.chunks_exact(2) {
        let (names, numbers) = (pair[0].split_whitespace(), pair[1].split_whitespace());
        let protocol = pair[0].split(':').next().unwrap_or_default();
        for (name, number) in names.zip(numbers).skip(1) {
            all.insert(format!("{protocol}.{name}"), number.parse().unwrap_or(0));
        }
    }
    // One counter a line: `Udp6InErrors  0`.
    for line in snmp6.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(number)) = (words.next(), words.next()) else { continue };
        if let Some(at) = name.find('6') {
            let (protocol, name) = name.split_at(at + 1);
            all.insert(format!("{protocol}.{name}"), number.parse::<u64>().unwrap_or(0));
        }
    }
    for protocol in ["Udp", "Udp6"] {
        let overflow = all.get(&format!("{protocol}.RcvbufErrors")).copied().unwrap_or(0);
        if let Some(errors) = all.get_mut(&format!("{protocol}.InErrors")) {
            *errors = errors.saturating_sub(overflow);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_checksums_are_found_in_both_files_and_full_buffers_are_no_error() {
        let snmp = "Tcp: InSegs InErrs InCsumErrors\nTcp: 90 2 1\n\
                    Udp: InDatagrams NoPorts InErrors RcvbufErrors InCsumErrors\nUdp: 5 1 7 7 0\n";
        let snmp6 = "Ip6InReceives\t9\nUdp6InErrors\t3\nUdp6RcvbufErrors\t1\nUdp6InCsumErrors\t2\n";
        let all = parse(snmp, snmp6);
        let expected = [
            ("Tcp.InErrs", 2),
            ("Tcp.InCsumErrors", 1),
            ("Udp.InErrors", 0),
            ("Udp6.InErrors", 2),
            ("Udp6.InCsumErrors", 2),
        ];
        for (name, number) in expected {
            assert_eq!(all.get(name), Some(&number), "{name}");
        }
    }
}
