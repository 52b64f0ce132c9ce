//! Real packets for tests: built byte by byte, every checksum from scratch, and read back the same way. Nothing here
//! uses the code under test but its trait for reading bytes.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::net::{IpAddr, SocketAddr};

use proxy_common::datapath::parse::Bytes;
use zerocopy::{FromBytes, Immutable, KnownLayout};

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// The MAC addresses that built frames carry: of the receiver and of the sender.
pub(crate) const TO: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const FROM: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A frame with an Ethernet header, or without if `header` is 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) bytes: Vec<u8>,
    pub(crate) header: usize,
}

impl Bytes for Frame {
    fn length(&self) -> u32 {
        self.bytes.len() as u32
    }
    fn load<T: FromBytes + Immutable + KnownLayout + Copy>(&self, offset: u32) -> Option<T> {
        T::read_from_prefix(self.bytes.get(offset as usize..)?).ok().map(|(value, _)| value)
    }
}

pub(crate) fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// RFC 1071.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|c| u64::from(c[0]) << 8 | u64::from(*c.get(1).unwrap_or(&0))).sum()
}

pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// RFC 9260 appendix A, bit by bit.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 },
        )
    })
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u64 {
    sum(&octets(source)) + sum(&octets(destination)) + u64::from(protocol) + length as u64
}

/// An IP packet. `extra`: IPv4 options, or IPv6 extension headers with the first one's number.
pub(crate) struct Ip {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: u8,
    pub(crate) options: Vec<u8>,
    pub(crate) extensions: Option<(u8, Vec<u8>)>,
    /// IPv4: identification, flags and offset as in the header.
    pub(crate) fragment: (u16, u16),
}

impl Ip {
    pub(crate) fn new(source: IpAddr, destination: IpAddr, protocol: u8) -> Self {
        Self { source, destination, protocol, options: vec![], extensions: None, fragment: (7, 0) }
    }

    pub(crate) fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let mut ip = vec![];
        if self.source.is_ipv4() {
            let header = 20 + self.options.len();
            ip.extend([0x40 | (header / 4) as u8, 0]);
            ip.extend(((header + payload.len()) as u16).to_be_bytes());
            ip.extend(self.fragment.0.to_be_bytes());
            ip.extend(self.fragment.1.to_be_bytes());
            ip.extend([64, self.protocol, 0, 0]);
            ip.extend(octets(self.source));
            ip.extend(octets(self.destination));
            ip.extend(&self.options);
            let checksum = !fold(sum(&ip));
            ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            let (next, extensions) = self.extensions.clone().unwrap_or((self.protocol, vec![]));
            ip.extend([0x60, 0, 0, 0]);
            ip.extend(((extensions.len() + payload.len()) as u16).to_be_bytes());
            ip.extend([next, 64]);
            ip.extend(octets(self.source));
            ip.extend(octets(self.destination));
            ip.extend(extensions);
        }
        ip.extend(payload);
        ip
    }

    pub(crate) fn frame(&self, payload: &[u8]) -> Frame {
        framed(&self.packet(payload))
    }
}

/// Behind an Ethernet header.
pub(crate) fn framed(packet: &[u8]) -> Frame {
    let kind: [u8; 2] = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    Frame { bytes: [&TO[..], &FROM, &kind, packet].concat(), header: 14 }
}

/// A transport header and its payload, checksum and all. Flags are TCP's; of SCTP the first chunk's type.
pub(crate) fn transport(
    protocol: u8,
    source: SocketAddr,
    destination: SocketAddr,
    flags: u8,
    payload: &[u8],
) -> Vec<u8> {
    let ports = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    let mut l4 = ports;
    let at = match protocol {
        6 => {
            l4.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, flags, 1, 0, 0, 0, 0, 0]);
            16
        }
        17 => {
            l4.extend(((8 + payload.len()) as u16).to_be_bytes());
            l4.extend([0, 0]);
            6
        }
        132 => {
            l4.extend([0, 0, 0, 9, 0, 0, 0, 0, flags, 0]);
            l4.extend(((4 + payload.len()) as u16).to_be_bytes());
            8
        }
        other => panic!("protocol {other}"),
    };
    l4.extend(payload);
    if protocol == 132 {
        let crc = crc32c(&l4);
        l4[at..at + 4].copy_from_slice(&crc.to_le_bytes());
    } else {
        let checksum = !fold(pseudo(source.ip(), destination.ip(), protocol, l4.len()) + sum(&l4));
        let checksum = if checksum == 0 { 0xffff } else { checksum };
        l4[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
    l4
}

/// A whole packet of any of the three protocols.
pub(crate) fn segment(protocol: u8, source: &str, destination: &str, flags: u8, payload: &[u8]) -> Frame {
    let (source, destination) = (socket(source), socket(destination));
    Ip::new(source.ip(), destination.ip(), protocol).frame(&transport(
        protocol,
        source,
        destination,
        flags,
        payload,
    ))
}

pub(crate) fn tcp(source: &str, destination: &str, flags: u8) -> Frame {
    segment(6, source, destination, flags, b"hello")
}

pub(crate) fn udp(source: &str, destination: &str) -> Frame {
    segment(17, source, destination, 0, b"hello")
}

/// An ICMP error of `source` to `destination` that quotes the first bytes of an IP packet. `word`: the four bytes before
/// the quotation.
pub(crate) fn icmp(source: &str, destination: &str, kind: [u8; 2], word: [u8; 4], quoted: &[u8]) -> Frame {
    let (source, destination): (IpAddr, IpAddr) = (source.parse().unwrap(), destination.parse().unwrap());
    let mut icmp = [&kind[..], &[0, 0], &word, quoted].concat();
    let protocol = if source.is_ipv4() { 1 } else { 58 };
    let outer = if source.is_ipv4() { 0 } else { pseudo(source, destination, 58, icmp.len()) };
    let checksum = !fold(outer + sum(&icmp));
    icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
    Ip::new(source, destination, protocol).frame(&icmp)
}

/// A frame, read without the code under test: what it says, all its checksums verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) protocol: u8,
    /// Of an ICMP error, what it quotes.
    pub(crate) quoted: Option<Box<Seen>>,
}

pub(crate) fn seen(frame: &Frame) -> Seen {
    read(&frame.bytes[frame.header..], true)
}

/// `whole`: not a quotation. Of those that are all there, transport checksums are verified too.
fn read(packet: &[u8], whole: bool) -> Seen {
    let (source, destination, protocol, l4, fragment): (IpAddr, IpAddr, u8, &[u8], bool) =
        if packet[0] >> 4 == 4 {
            let header = usize::from(packet[0] & 15) * 4;
            assert_eq!(fold(sum(&packet[..header])), 0xffff, "IPv4 header checksum");
            let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
            let fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff;
            let later = fragment & 0x1fff != 0;
            (address(12), address(16), packet[9], if later { &[] } else { &packet[header..] }, fragment != 0)
        } else {
            let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
            let (mut next, mut at, mut fragment, mut later) = (packet[6], 40, false, false);
            while [0, 43, 44, 60].contains(&next) && !later {
                let length = if next == 44 { 8 } else { 8 + 8 * usize::from(packet[at + 1]) };
                if next == 44 {
                    let word = u16::from_be_bytes([packet[at + 2], packet[at + 3]]);
                    (fragment, later) = (true, word & 0xfff8 != 0);
                }
                (next, at) = (packet[at], at + length);
            }
            (address(8), address(24), next, if later { &[] } else { &packet[at..] }, fragment)
        };
    if protocol == 1 || protocol == 58 {
        let outer = if protocol == 1 { 0 } else { pseudo(source, destination, 58, l4.len()) };
        assert_eq!(fold(outer + sum(l4)), 0xffff, "ICMP checksum");
        let seen = |ip: IpAddr| SocketAddr::new(ip, 0);
        let quotes = [3, 4, 5, 11, 12].contains(&l4[0]) && protocol == 1;
        let quotes = quotes || protocol == 58 && (l4[0] < 128 || l4[0] == 137);
        let quoted = (quotes && l4.len() > 8).then(|| Box::new(read(&l4[8..], false)));
        return Seen { source: seen(source), destination: seen(destination), protocol, quoted };
    }
    let l4 = if [6, 17, 132].contains(&protocol) { l4 } else { &[] };
    let port = |at: usize| l4.get(at..at + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
    let claimed = if packet[0] >> 4 == 4 {
        usize::from(u16::from_be_bytes([packet[2], packet[3]]))
    } else {
        40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]))
    };
    // SCTP's checksum of a quotation is left as it was: nobody verifies it there.
    if (whole || (claimed <= packet.len() && protocol != 132)) && !fragment && !l4.is_empty() {
        match protocol {
            132 => {
                let mut zeroed = l4.to_vec();
                zeroed[8..12].fill(0);
                assert_eq!(l4[8..12], crc32c(&zeroed).to_le_bytes(), "SCTP checksum");
            }
            17 if l4[6..8] == [0, 0] => {}
            _ => assert_eq!(
                fold(pseudo(source, destination, protocol, l4.len()) + sum(l4)),
                0xffff,
                "checksum"
            ),
        }
    }
    let seen = |ip: IpAddr, at: usize| SocketAddr::new(ip, port(at));
    Seen { source: seen(source, 0), destination: seen(destination, 2), protocol, quoted: None }
}
