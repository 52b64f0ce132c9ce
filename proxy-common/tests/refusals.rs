//! What answers a packet that nobody serves: real bytes, every checksum made again from scratch.

mod plane;
mod wire;
mod world;

use plane::{End, Node};
use proptest::prelude::*;
use proxy_common::{
    Reason,
    datapath::{
        parse::{Bytes, parse},
        reject::{Reshape, answer},
    },
    layout::{FrontendKind, Pods},
};
use wire::{Frame, SYN, seen, segment};
use world::ip;

impl Reshape for Frame {
    fn cut(&mut self, length: u32) -> bool {
        self.bytes.truncate(length as usize);
        self.length() == length
    }
    fn insert(&mut self, count: u32) -> bool {
        let at = self.header;
        self.bytes.splice(at..at, vec![0xee; count as usize]);
        true
    }
}

/// A frame's refusal by `from`, if it has one.
fn refused(frame: &Frame, from: &str) -> Option<Frame> {
    let parsed = parse(frame, frame.header as u32).unwrap();
    let mut answered = frame.clone();
    answer(&mut answered, &parsed.packet, &ip(from)).then_some(answered)
}

#[test]
fn an_sctp_checksum_that_the_device_completes_in_the_quotation_makes_the_refusals_sum_right() {
    for (from, to, by) in [
        ("203.0.113.9:5000", "10.96.0.66:80", "192.168.0.1"),
        ("[2001:db8::9]:5000", "[fd00:96::66]:80", "fd00:1::1"),
    ] {
        for length in [4, 16, 900] {
            let mut sent = segment(132, from, to, 1, &vec![0x5a; length]);
            let l4 = sent.bytes.len() - 16 - length;
            sent.bytes[l4 + 8..l4 + 12].fill(0);
            let mut answer = refused(&sent, by).unwrap();
            let quoted = answer.bytes.len() - 20;
            assert_eq!(answer.bytes[quoted..], sent.bytes[l4..l4 + 20], "an INIT with its tag");
            // As `skb_crc32c_csum_help` does.
            let crc = wire::crc32c(&answer.bytes[quoted..]);
            answer.bytes[quoted + 8..quoted + 12].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(seen(&answer).quoted.expect("an error").source, wire::socket(from));
        }
    }
}

#[test]
fn an_sctp_packet_that_begins_nothing_and_is_to_be_completed_has_no_refusal() {
    let mut sent = segment(132, "203.0.113.9:5000", "10.96.0.66:80", 10, b"");
    let field = sent.bytes.len() - 8;
    sent.bytes[field..field + 4].fill(0);
    assert!(refused(&sent, "192.168.0.1").is_none());
}

#[test]
fn the_shortest_ping_is_refused_and_quoted_whole() {
    let sent = wire::icmp("203.0.113.9", "10.96.0.66", [8, 0], [0; 4], b"");
    let answer = refused(&sent, "192.168.0.1").unwrap();
    let ip = &answer.bytes[sent.header..];
    assert_eq!(ip[20..22], [3, 3], "port unreachable");
    assert_eq!(wire::fold(wire::sum(&ip[20..])), 0xffff, "its checksum");
    assert_eq!(ip[28..], sent.bytes[sent.header..]);
}

#[test]
fn a_refusal_goes_back_from_the_given_address_and_quotes_what_was_sent() {
    for (from, to, by) in [
        ("203.0.113.9:5000", "10.96.0.66:80", "192.168.0.1"),
        ("[2001:db8::9]:5000", "[fd00:96::66]:80", "fd00:1::1"),
    ] {
        for protocol in [6, 17, 132] {
            for header in [14, 0] {
                let mut sent = segment(protocol, from, to, SYN, b"four");
                if header == 0 {
                    sent = Frame { bytes: sent.bytes[14..].to_vec(), header };
                }
                let answer = refused(&sent, by).unwrap();
                let told = seen(&answer);
                assert_eq!(
                    (told.source.ip(), told.destination.ip()),
                    (by.parse().unwrap(), wire::socket(from).ip())
                );
                let quoted = told.quoted.expect("an error");
                assert_eq!((quoted.source, quoted.destination), (wire::socket(from), wire::socket(to)));
                let at = header + if told.source.is_ipv4() { 20 } else { 40 };
                let kind: &[u8] = if told.source.is_ipv4() { &[3, 3] } else { &[1, 4] };
                assert_eq!(&answer.bytes[at..at + 2], kind, "port unreachable");
                assert!(answer.bytes.ends_with(&sent.bytes[header..]), "all of a short packet is quoted");
                if header == 14 {
                    assert_eq!(
                        answer.bytes[..12],
                        [&wire::FROM[..], &wire::TO].concat()[..],
                        "back to who sent it"
                    );
                }
            }
        }
    }
}

#[test]
fn a_long_packet_is_quoted_as_far_as_every_network_carries_it() {
    for (from, to, by, most) in [
        ("203.0.113.9:5000", "10.96.0.66:80", "192.168.0.1", 576),
        ("[2001:db8::9]:5000", "[fd00:96::66]:80", "fd00:1::1", 1280),
    ] {
        let answer = refused(&segment(17, from, to, 0, &[7; 1400]), by).unwrap();
        assert_eq!(answer.bytes.len(), 14 + most);
        seen(&answer);
    }
}

#[test]
fn nobody_is_told_who_is_no_single_host() {
    for from in ["0.0.0.0:5", "224.0.0.1:5", "255.255.255.255:5", "127.0.0.1:5"] {
        assert_eq!(refused(&segment(17, from, "10.96.0.66:80", 0, b""), "192.168.0.1"), None, "{from}");
    }
    for from in ["[::]:5", "[ff02::1]:5", "[::1]:5"] {
        assert_eq!(refused(&segment(17, from, "[fd00:96::66]:80", 0, b""), "fd00:1::1"), None, "{from}");
    }
}

#[test]
fn where_many_were_told_the_rest_is_dropped() {
    let mut node = Node::new();
    node.link("eth0", Pods::None, "192.168.0.1", "fd00:1::1");
    node.ground.world.extent(0, &[], &[], 0, 0);
    node.ground.world.frontend(ip("10.96.0.66"), 80, proxy_common::Protocol::Udp, FrontendKind::ClusterIp, 0);
    let frame = || segment(17, "203.0.113.9:5000", "10.96.0.66:80", 0, b"");
    assert_eq!(node.arrive("eth0", frame()), End::Rejected(ip("192.168.0.1")));
    node.ground.refuses.set(false);
    assert_eq!(node.arrive("eth0", frame()), End::Dropped(Reason::RejectedSilently));
}

/// A checksum that its sender has left to the network card: the sum of a pseudo header.
fn left_to_the_card(protocol: u8, from: &str, to: &str, payload: &[u8]) -> (Frame, usize) {
    let mut frame = segment(protocol, from, to, SYN, payload);
    let (from, to) = (wire::socket(from).ip(), wire::socket(to).ip());
    let l4 = frame.header + if from.is_ipv4() { 20 } else { 40 };
    let octets = |ip: std::net::IpAddr| match ip {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let length = (frame.bytes.len() - l4) as u64;
    let pseudo = wire::sum(&octets(from)) + wire::sum(&octets(to)) + u64::from(protocol) + length;
    let field = l4 + if protocol == 6 { 16 } else { 6 };
    frame.bytes[field..field + 2].copy_from_slice(&wire::fold(pseudo).to_be_bytes());
    let offset = field - frame.header;
    (frame, offset)
}

proptest! {
    #[test]
    fn a_quoted_checksum_that_is_completed_on_the_way_out_stays_what_it_is(v6: bool, tcp: bool, payload in prop::collection::vec(any::<u8>(), 0..1450)) {
        let (from, to, by) = if v6 { ("[2001:db8::9]:5", "[fd00:96::66]:80", "fd00:1::1") } else { ("203.0.113.9:5", "10.96.0.66:80", "192.168.0.1") };
        let protocol = if tcp { 6 } else { 17 };
        let (frame, field) = left_to_the_card(protocol, from, to, &payload);
        let told = refused(&frame, by).unwrap();
        let quoted = 14 + if v6 { 48 } else { 28 };
        let icmp = quoted - 8;
        let header = if v6 { told.bytes[14 + 8..14 + 40].to_vec() } else { vec![] };
        let pseudo = if v6 { wire::sum(&header) + 58 + (told.bytes.len() - icmp) as u64 } else { 0 };
        prop_assert_eq!(wire::fold(pseudo + wire::sum(&told.bytes[icmp..])), 0xffff, "the answer's own checksum");
        // skb_checksum_help(): from where the transport header was.
        let l4 = quoted + if v6 { 40 } else { 20 };
        let completed = match !wire::fold(wire::sum(&told.bytes[l4..])) {
            0 => 0xffff,
            sum => sum,
        };
        let found = u16::from_be_bytes([told.bytes[quoted + field], told.bytes[quoted + field + 1]]);
        prop_assert_eq!(found, completed);
    }

    #[test]
    fn any_packet_has_a_refusal_that_every_host_takes(v6: bool, protocol in prop::sample::select(vec![6_u8, 17, 132]), payload in prop::collection::vec(any::<u8>(), 0..1450)) {
        let (from, to, by) = if v6 { ("[2001:db8::9]:5", "[fd00:96::66]:80", "fd00:1::1") } else { ("203.0.113.9:5", "10.96.0.66:80", "192.168.0.1") };
        // Checksums are verified by who reads it.
        seen(&refused(&segment(protocol, from, to, SYN, &payload), by).unwrap());
    }
}
