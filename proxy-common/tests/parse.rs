//! What packets are read as: options, extension headers, fragments, quotations, and what is cut short.

mod wire;

use std::net::IpAddr;

use proptest::prelude::*;
use proxy_common::{
    Protocol, Reason,
    datapath::parse::{Parsed, Piece, Segment, parse},
};
use wire::{ACK, FIN, Frame, Ip, RST, SYN, framed, icmp, segment, socket, tcp, transport, udp};

fn read(frame: &Frame) -> Result<Parsed, Reason> {
    parse(frame, frame.header as u32)
}

/// Source and destination as text.
fn ends(parsed: &Parsed) -> (String, String) {
    let p = &parsed.packet;
    let end =
        |e: &proxy_common::datapath::Endpoint| std::net::SocketAddr::new(e.address.ip(), e.port).to_string();
    (end(&p.source), end(&p.destination))
}

const V4: [&str; 2] = ["192.0.2.1:1000", "10.96.0.1:80"];
const V6: [&str; 2] = ["[2001:db8::1]:1000", "[fd00:96::1]:80"];

#[test]
fn every_protocol_is_read_in_both_families_with_and_without_a_layer_2_header() {
    for [source, destination] in [V4, V6] {
        for (number, protocol) in [(6, Protocol::Tcp), (17, Protocol::Udp), (132, Protocol::Sctp)] {
            let frame = segment(number, source, destination, 1, b"x");
            let bare = Frame { bytes: frame.bytes[14..].to_vec(), header: 0 };
            for frame in [frame, bare] {
                let parsed = read(&frame).expect("a packet");
                assert_eq!(ends(&parsed), (source.into(), destination.into()));
                assert_eq!((parsed.packet.protocol, parsed.packet.piece), (protocol, Piece::Whole));
                assert_eq!(parsed.packet.end as usize, frame.bytes.len());
            }
        }
    }
}

#[test]
fn a_segment_says_what_it_does_to_its_connection() {
    let flags = |protocol, flags| {
        read(&segment(protocol, V4[0], V4[1], flags, b"x")).expect("a packet").packet.segment.0
    };
    let cases = [
        (6, SYN, Segment::SYN),
        (6, SYN | ACK, Segment::SYN | Segment::ACK),
        (6, FIN | ACK, Segment::FIN | Segment::ACK),
        (6, RST, Segment::RESET),
        (132, 1, Segment::SYN),
        (132, 2, Segment::SYN | Segment::ACK),
        (132, 6, Segment::RESET | Segment::ACK),
        (132, 7, Segment::FIN | Segment::ACK),
        (132, 0, Segment::ACK),
        (17, 0, 0),
    ];
    for (protocol, given, expected) in cases {
        assert_eq!(flags(protocol, given), expected, "{protocol} {given}");
    }
}

#[test]
fn padding_behind_the_packet_is_not_the_packets() {
    let mut frame = udp(V4[0], V4[1]);
    let length = frame.bytes.len();
    frame.bytes.extend([0; 9]);
    assert_eq!(read(&frame).expect("a packet").packet.end as usize, length);
}

#[test]
fn ipv4_options_are_walked_over() {
    let (source, destination) = (socket(V4[0]), socket(V4[1]));
    let mut ip = Ip::new(source.ip(), destination.ip(), 17);
    ip.options = vec![1; 40];
    let parsed = read(&ip.frame(&transport(17, source, destination, 0, b"x"))).expect("a packet");
    assert_eq!((parsed.packet.l4, ends(&parsed).1.as_str()), (14 + 60, V4[1]));
}

/// An IPv6 packet with these extension headers: numbers and lengths in units of 8 bytes beyond the first.
fn extended(chain: &[(u8, u8)], last: u8) -> Frame {
    let (source, destination) = (socket(V6[0]), socket(V6[1]));
    let mut bytes = vec![];
    for (i, (_, length)) in chain.iter().enumerate() {
        bytes.extend([chain.get(i + 1).map_or(last, |next| next.0), *length, 0, 0, 0, 0, 0, 0]);
        bytes.extend(vec![0; usize::from(*length) * 8]);
    }
    let mut ip = Ip::new(source.ip(), destination.ip(), 6);
    ip.extensions = Some((chain[0].0, bytes));
    ip.frame(&transport(6, source, destination, SYN, b"x"))
}

#[test]
fn ipv6_extension_headers_are_walked_over_to_a_bound() {
    for chain in [&[(0, 0)][..], &[(0, 2), (43, 0), (60, 5)], &[(60, 0); 6]] {
        let parsed = read(&extended(chain, 6)).expect("a packet");
        assert_eq!(ends(&parsed), (V6[0].into(), V6[1].into()), "{chain:?}");
    }
    assert_eq!(read(&extended(&[(60, 0); 7], 6)), Err(Reason::OtherTransport));
    for portless in [51, 50, 59, 135] {
        let packet = read(&extended(&[(0, 0)], portless)).expect("a packet").packet;
        assert_eq!((packet.piece, packet.destination.port), (Piece::Portless, 0), "{portless}");
    }
    let mut routed = extended(&[(43, 0)], 6);
    routed.bytes[14 + 40 + 3] = 1;
    assert_eq!(read(&routed), Err(Reason::OtherTransport), "its destination is not the last one");
}

#[test]
fn fragments_are_told_apart_and_later_ones_have_no_ports() {
    let (source, destination) = (socket(V4[0]), socket(V4[1]));
    let mut ip = Ip::new(source.ip(), destination.ip(), 6);
    for (fragment, piece, port) in
        [(0x4000, Piece::Whole, 80), (0x2000, Piece::First, 80), (0x0100, Piece::Later, 0)]
    {
        ip.fragment = (99, fragment);
        let packet = read(&ip.frame(&transport(6, source, destination, SYN, b"x"))).expect("a packet").packet;
        assert_eq!(
            (packet.piece, packet.destination.port, packet.id),
            (piece, port, u32::from(99_u16.to_be()))
        );
        assert_eq!(packet.segment.0 == 0, piece == Piece::Later, "no flags are read out of its payload");
    }
    for (word, piece, port) in [(0_u16, Piece::Whole, 80), (1, Piece::First, 80), (0x0100, Piece::Later, 0)] {
        let (source, destination) = (socket(V6[0]), socket(V6[1]));
        let mut ip = Ip::new(source.ip(), destination.ip(), 6);
        ip.extensions = Some((44, [&[6, 0][..], &word.to_be_bytes(), &[0, 0, 0, 9]].concat()));
        let packet = read(&ip.frame(&transport(6, source, destination, SYN, b"x"))).expect("a packet").packet;
        assert_eq!((packet.piece, packet.destination.port), (piece, port));
    }
}

#[test]
fn what_is_not_ours_is_named() {
    let tagged = Frame { bytes: [&[0; 12][..], &[0x81, 0, 0, 1]].concat(), header: 14 };
    assert_eq!(read(&tagged), Err(Reason::Tagged));
    let arp = Frame { bytes: [&[0; 12][..], &[8, 6], &[0; 28]].concat(), header: 14 };
    assert_eq!(read(&arp), Err(Reason::NotIp));
    let ends: [IpAddr; 2] = V4.map(|end| socket(end).ip());
    let other = |protocol, fragment, payload: &[u8]| {
        let ip = Ip { fragment: (9, fragment), ..Ip::new(ends[0], ends[1], protocol) };
        read(&ip.frame(payload)).map(|parsed| (parsed.packet.piece, parsed.packet.destination.port))
    };
    for protocol in [2, 47, 50, 112] {
        assert_eq!(other(protocol, 0, &[0; 40]), Ok((Piece::Portless, 0)), "{protocol}");
        assert_eq!(
            other(protocol, 0x2000, &[0; 40]),
            Err(Reason::OtherTransport),
            "fragments are left alone"
        );
    }
    for (kind, asks) in
        [(0_u8, false), (8, true), (9, false), (13, true), (14, false), (15, true), (17, true)]
    {
        let expected = if asks { Ok((Piece::Portless, 0)) } else { Err(Reason::OtherTransport) };
        assert_eq!(
            other(1, 0, &[kind, 0, 0, 0, 0, 1, 0, 1]),
            expected,
            "ICMP {kind}: an identifier is no port"
        );
    }
    let mapped = Ip::new("::ffff:10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap(), 17);
    assert_eq!(read(&mapped.frame(&[0; 20])), Err(Reason::Malformed), "never taken for IPv4");
}

#[test]
fn an_error_is_read_with_what_it_quotes_however_short() {
    for ([source, destination], [router, client]) in
        [(V4, ["192.0.2.9", "192.0.2.1"]), (V6, ["2001:db8::9", "2001:db8::1"])]
    {
        let v4 = router.contains('.');
        let packet = &tcp(source, destination, ACK).bytes[14..];
        let header = if v4 { 20 } else { 40 };
        let kinds: &[[u8; 2]] =
            if v4 { &[[3, 4], [3, 1], [11, 0], [12, 0], [4, 0]] } else { &[[2, 0], [1, 4], [3, 0], [4, 1]] };
        for kind in kinds {
            for quoted in [header + 8, packet.len()] {
                let parsed = read(&icmp(router, client, *kind, [0; 4], &packet[..quoted])).expect("an error");
                assert_eq!(ends(&parsed), (source.into(), destination.into()));
                let outer = parsed.outer.expect("what is around");
                assert_eq!([outer.source.to_string(), outer.destination.to_string()], [router, client]);
                assert!(!outer.is_redirect);
            }
            let short = icmp(router, client, *kind, [0; 4], &packet[..header + 7]);
            assert_eq!(read(&short), Err(Reason::Malformed), "RFC 792 promises eight bytes");
        }
    }
}

#[test]
fn rfc_4884_says_where_a_quotation_ends() {
    let packet = &tcp(V4[0], V4[1], ACK).bytes[14..];
    let quoted = [&packet[..28], &[0xee; 100]].concat();
    let parsed = read(&icmp("192.0.2.9", "192.0.2.1", [11, 0], [0, 7, 0, 0], &quoted)).expect("an error");
    assert_eq!(parsed.packet.end - parsed.packet.l3, 28, "what follows is no part of the packet");
}

#[test]
fn redirects_are_known_in_both_families() {
    let packet = &tcp(V4[0], V4[1], ACK).bytes[14..];
    let parsed = read(&icmp("192.0.2.9", "192.0.2.1", [5, 1], [0; 4], &packet[..28])).expect("a redirect");
    assert!(parsed.outer.expect("what is around").is_redirect);
    let packet = &tcp(V6[0], V6[1], ACK).bytes[14..];
    // Target, destination, the option "link-layer address", the option "redirected header".
    let body = [&[0; 32][..], &[2, 1, 0, 0, 0, 0, 0, 0], &[4, 8, 0, 0, 0, 0, 0, 0], packet].concat();
    let parsed = read(&icmp("fe80::1", "2001:db8::1", [137, 0], [0; 4], &body)).expect("a redirect");
    assert_eq!(ends(&parsed), (V6[0].into(), V6[1].into()));
    assert!(parsed.outer.expect("what is around").is_redirect);
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..120), header in prop::sample::select(vec![0, 14])) {
        let _ = parse(&Frame { bytes, header }, header as u32);
    }

    #[test]
    fn a_packet_that_is_cut_short_is_nobodys(v6 in any::<bool>(), protocol in prop::sample::select(vec![6_u8, 17, 132]), cut in 1..100_usize) {
        let [source, destination] = if v6 { V6 } else { V4 };
        let mut frame = segment(protocol, source, destination, SYN, b"hello");
        frame.bytes.truncate(frame.bytes.len().saturating_sub(cut));
        prop_assert!(read(&frame).is_err());
    }

    #[test]
    fn mutated_headers_never_point_behind_the_packet(at in 0..60_usize, to in any::<u8>(), v6 in any::<bool>(), error in any::<bool>()) {
        let [source, destination] = if v6 { V6 } else { V4 };
        let mut frame = tcp(source, destination, SYN);
        if error {
            let packet = frame.bytes[14..].to_vec();
            frame = if v6 { icmp("fe80::1", "fd00::1", [1, 4], [0; 4], &packet) } else { icmp("10.0.0.1", "10.0.0.2", [3, 4], [0; 4], &packet) };
        }
        let length = frame.bytes.len();
        frame.bytes[14 + at % (length - 14)] = to;
        if let Ok(parsed) = read(&frame) {
            let p = parsed.packet;
            prop_assert!(p.l3 < p.l4 && p.l4 <= p.end && p.end as usize <= length, "{p:?}");
        }
    }
}

#[test]
fn a_bare_packet_is_framed_by_its_version() {
    assert_eq!(framed(&udp(V6[0], V6[1]).bytes[14..]), udp(V6[0], V6[1]));
}
