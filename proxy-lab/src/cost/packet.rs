//! The packets whose cost is measured.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use crate::wire::{DEVICE, pod_device};

/// TCP's flags.
pub(super) const FIN: u8 = 1;
/// TCP's flags.
pub(super) const SYN: u8 = 2;
/// TCP's flags.
pub(super) const ACK: u8 = 16;

/// What Services are dialled on, and what their endpoints listen on.
pub(super) const PORT: u16 = 80;
/// What the endpoints listen on.
pub(super) const TARGET: u16 = 8080;
/// What one Service is dialled on from outside.
pub(super) const NODE_PORT: u16 = 30_080;

/// An endpoint.
pub(super) fn endpoint(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, 2, 11 + number)
}

/// A frame, and the devices that it comes in and goes out by.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) bytes: Vec<u8>,
    pub(super) from: String,
    pub(super) to: String,
}

/// The address of a Service.
pub(super) fn cluster_ip(service: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 10)) + service)
}

/// Packets of no Service, by a number that says where to, and with so many Services.
pub(super) type Stranger = fn(u32, u32) -> Frame;

/// All of them with their names.
pub(super) const STRANGERS: [(&str, Stranger); 5] = [
    ("no Service", |to, _| tcp(&pod(0), &far(to, 9999), ACK)),
    ("no Service, on a port that Services use", |to, _| tcp(&pod(0), &far(to, PORT), ACK)),
    ("no Service, on a port that endpoints use", |to, _| tcp(&pod(0), &far(to, TARGET), ACK)),
    ("VXLAN outer packet", |_, _| {
        let between = |node, port| SocketAddr::from((Ipv4Addr::new(192, 168, 0, node), port));
        framed([8, 0], &ip(&between(9, 51_111), &between(8, 8472), 17, &[0, 0, 0, 0, 0, 0, 0, 0]))
    }),
    ("ARP", |_, _| framed([8, 6], &[0; 28])),
];

fn pod(number: u32) -> SocketAddr {
    let port = 2000 + (number / 200) as u16;
    (Ipv4Addr::new(10, 244, 1, 20 + (number % 200) as u8), port).into()
}

/// Somebody on another node who serves no Service.
fn far(number: u32, port: u16) -> SocketAddr {
    (Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 245, 0, 1)) + number), port).into()
}

/// A connection through a Service: who dials.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ends {
    /// A pod of the node dials a ClusterIP.
    Pod,
    /// A client outside dials the node's port, and is masqueraded.
    Outside,
}

/// What the packets of a connection are called: of the client, and of who answers.
pub(super) struct Names {
    pub(super) known: [&'static str; 2],
    pub(super) new: [&'static str; 2],
}

/// The ends of a connection.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) client: SocketAddr,
    pub(super) dialled: SocketAddr,
    pub(super) device: String,
}

impl Ends {
    pub(super) fn names(self) -> Names {
        match self {
            Self::Pod => {
                Names { known: ["known flow", "known flow, answer"], new: ["new flow", "new flow, answer"] }
            }
            Self::Outside => Names {
                known: ["known masqueraded flow", "known masqueraded flow, answer"],
                new: ["new masqueraded flow", "new masqueraded flow, answer"],
            },
        }
    }

    pub(super) fn of(self, number: u32, services: u32) -> Connection {
        match self {
            Self::Pod => Connection {
                client: pod(number),
                dialled: (cluster_ip(number % services), PORT).into(),
                device: pod_device(0),
            },
            Self::Outside => {
                let client = Ipv4Addr::from(u32::from(Ipv4Addr::new(203, 0, 112, 0)) + number % 1000);
                let dialled = (IpAddr::from(Ipv4Addr::UNSPECIFIED), NODE_PORT).into();
                Connection {
                    client: (client, 2000 + (number / 1000) as u16).into(),
                    dialled,
                    device: DEVICE.to_owned(),
                }
            }
        }
    }
}

/// A segment from a pod's device to the uplink; sums are not made, nobody looks at them.
pub(super) fn tcp(source: &SocketAddr, destination: &SocketAddr, flags: u8) -> Frame {
    framed([8, 0], &ip(source, destination, 6, &[0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0]))
}

fn framed(kind: [u8; 2], packet: &[u8]) -> Frame {
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    bytes.extend(kind);
    bytes.extend(packet);
    Frame { bytes, from: pod_device(0), to: DEVICE.to_owned() }
}

/// An IPv4 packet of 32 bytes more than its headers.
fn ip(source: &SocketAddr, destination: &SocketAddr, protocol: u8, transport: &[u8]) -> Vec<u8> {
    let octets = |of: &SocketAddr| match of.ip() {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(_) => [0; 4],
    };
    let length = 20 + 4 + transport.len() as u8 + 32;
    let mut bytes = vec![0x45, 0, 0, length, 0, 7, 0x40, 0, 64, protocol, 0, 0];
    bytes.extend(octets(source));
    bytes.extend(octets(destination));
    bytes.extend(source.port().to_be_bytes());
    bytes.extend(destination.port().to_be_bytes());
    bytes.extend(transport);
    bytes.extend([7; 32]);
    bytes
}

/// The ends that a frame of [`tcp`] bears.
pub(super) fn ends(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let word = |at: usize| bytes.get(at..at + 4).and_then(|word| <[u8; 4]>::try_from(word).ok());
    let [a, b, c, d] = word(34)?;
    let end = |address: [u8; 4], port: [u8; 2]| {
        SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::from(address), u16::from_be_bytes(port)))
    };
    Some((end(word(26)?, [a, b]), end(word(30)?, [c, d])))
}
