//! SCTP through the packet plane. This kernel has no sockets for it: both ends are written by hand on raw ones.

mod traffic;

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use proxy_lab::{CALL_LIMIT, Family, Lab, Manifests, Offload, Place, Service, SocketKind, Wiring};
use traffic::{CLUSTER_IPS, NODE_PORT, PACKETS, PORT, TARGET, cluster, near_and_far, start};

/// Where the client's associations come from.
const CLIENT_PORT: u16 = 36412;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;

/// CRC32c, bit by bit (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc));
    !bytes.iter().fold(!0, byte)
}

/// What of a packet the tests look at.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    from: SocketAddr,
    to_port: u16,
    chunk: u8,
    padding: usize,
}

/// A message of one chunk, with as many more bytes.
fn message(from: u16, to: u16, chunk: u8, padding: usize) -> Vec<u8> {
    let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
    bytes.extend([0; 8]);
    let length = u16::try_from(20 + padding).unwrap_or(u16::MAX).to_be_bytes();
    bytes.extend([chunk, 0, length[0], length[1], 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 9]);
    bytes.extend((0..padding).map(|number| number as u8));
    let sum = crc32c(&bytes).to_le_bytes();
    bytes[8..12].copy_from_slice(&sum);
    bytes
}

/// An end that is written by hand.
struct End {
    raw: UdpSocket,
    family: Family,
}

impl End {
    fn open(place: &Place, family: Family) -> Result<Self> {
        let domain = if family == Family::V4 { libc::AF_INET } else { libc::AF_INET6 };
        let kind = SocketKind { domain, kind: libc::SOCK_RAW, protocol: libc::IPPROTO_SCTP };
        // The standard library's type works on any socket that is addressed by IP.
        let raw = UdpSocket::from(place.socket(kind)?);
        raw.set_read_timeout(Some(CALL_LIMIT))?;
        Ok(Self { raw, family })
    }

    fn send(&self, to: IpAddr, bytes: &[u8]) -> Result<()> {
        self.raw.send_to(bytes, (to, 0))?;
        Ok(())
    }

    /// The next message; its checksum is right.
    fn receive(&self) -> Result<Seen> {
        let mut buffer = [0; 4096];
        let (length, from) = self.raw.recv_from(&mut buffer)?;
        // IPv4's raw sockets show the header.
        let bytes = &mut buffer[if self.family == Family::V4 { 20 } else { 0 }..length];
        ensure!(bytes.len() >= 32, "{} bytes", bytes.len());
        let sum = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        bytes[8..12].fill(0);
        ensure!(crc32c(bytes) == sum, "checksum {sum:x}, and {:x} is right", crc32c(bytes));
        let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let from = SocketAddr::new(from.ip(), port(0));
        Ok(Seen { from, to_port: port(2), chunk: bytes[12], padding: bytes.len() - 32 })
    }
}

/// Begins an association, short or long, and answers it.
fn associates(client: &Place, server: &Place, to: SocketAddr) -> Result<()> {
    let family = Family::of(to.ip());
    let (near, far) = (End::open(client, family)?, End::open(server, family)?);
    for (number, padding) in [0, 1, 3, 700].into_iter().enumerate() {
        let port = CLIENT_PORT + u16::try_from(number)?;
        near.send(to.ip(), &message(port, to.port(), INIT, padding))?;
        let question = far.receive().with_context(|| format!("{padding} bytes more, to {to}"))?;
        let came = (question.to_port, question.chunk, question.padding);
        ensure!(came == (TARGET, INIT, padding), "{question:?}");
        far.send(question.from.ip(), &message(TARGET, question.from.port(), INIT_ACK, padding))?;
        let answer = near.receive().with_context(|| format!("{padding} bytes more, from {to}"))?;
        ensure!(answer == Seen { from: to, to_port: port, chunk: INIT_ACK, padding }, "{answer:?}");
    }
    Ok(())
}

fn associations(lab: &Lab, manifests: &Manifests) -> Result<()> {
    let node = lab.node("a");
    let service = Service::new("web").cluster_ip(CLUSTER_IPS[0]).cluster_ip(CLUSTER_IPS[1]);
    let service = service.sctp(PORT, TARGET).node_port(NODE_PORT);
    let service = |pod: &str| service.clone().endpoints([lab.place(pod)]);
    near_and_far(lab, manifests, &PACKETS, service, |endpoint| {
        for family in Family::ALL {
            let node_port = SocketAddr::new(node.address(family), NODE_PORT);
            for (client, to) in [("outside", node_port), ("pod", cluster(family))] {
                associates(lab.place(client), lab.place(endpoint), to)
                    .with_context(|| format!("{client} to {to}"))?;
            }
        }
        Ok(())
    })
}

#[test]
fn sctp_associations_get_other_ports_and_right_checksums() -> Result<()> {
    for wiring in Wiring::ALL {
        for offload in [Offload::Off, Offload::On] {
            let (lab, manifests) = start(wiring, offload)?;
            associations(&lab, &manifests).with_context(|| format!("{wiring:?}, {offload:?}"))?;
            lab.check()?;
        }
    }
    Ok(())
}
