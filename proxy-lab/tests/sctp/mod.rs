//! SCTP without sockets for it: ends that are written by hand on raw ones.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::net::{IpAddr, SocketAddr, UdpSocket};

use anyhow::{Result, ensure};
use proxy_lab::{CALL_LIMIT, Family, Place, SocketKind};

pub(crate) const INIT: u8 = 1;
pub(crate) const INIT_ACK: u8 = 2;

/// CRC32c, bit by bit (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc));
    !bytes.iter().fold(!0, byte)
}

/// What of a packet the tests look at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) from: SocketAddr,
    pub(crate) to_port: u16,
    pub(crate) chunk: u8,
    pub(crate) padding: usize,
}

/// A message of one chunk, with as many more bytes.
pub(crate) fn message(from: u16, to: u16, chunk: u8, padding: usize) -> Vec<u8> {
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
pub(crate) struct End {
    pub(crate) raw: UdpSocket,
    family: Family,
}

impl End {
    pub(crate) fn open(place: &Place, family: Family) -> Result<Self> {
        let domain = if family == Family::V4 { libc::AF_INET } else { libc::AF_INET6 };
        let kind = SocketKind { domain, kind: libc::SOCK_RAW, protocol: libc::IPPROTO_SCTP };
        // The standard library's type works on any socket that is addressed by IP.
        let raw = UdpSocket::from(place.socket(kind)?);
        raw.set_read_timeout(Some(CALL_LIMIT))?;
        Ok(Self { raw, family })
    }

    pub(crate) fn send(&self, to: IpAddr, bytes: &[u8]) -> Result<()> {
        self.raw.send_to(bytes, (to, 0))?;
        Ok(())
    }

    /// The next message; its checksum is right.
    pub(crate) fn receive(&self) -> Result<Seen> {
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
