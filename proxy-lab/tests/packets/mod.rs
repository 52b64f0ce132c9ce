//! A node's loaded packet plane, with devices it has been told of: frames are given to its programs one by one.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use proxy_common::layout::{Device, DeviceRole, FrontendKind, PacketPlane, Pods, Policy, RangeKey};
use proxy_common::names::map;
use proxy_common::{Address, Protocol, Reason};
use proxy_lab::frame::{self, Met};
use proxy_lab::plane::{Endpoints, Plane};
use proxy_lab::{Family, Lab};
use vipr::dataplane::Options;
use vipr::dataplane::probe::Features;
use vipr::dataplane::sys::{self, Map};
use zerocopy::{FromBytes, IntoBytes};

use crate::stage::{NODE_PORT, activate, fill, lab, open, options_of};
use crate::wire::{Frame, framed, seen};

/// The next program decides.
pub(crate) const NEXT: i32 = -1;
/// The packet ends here.
pub(crate) const SHOT: i32 = 2;
/// The packet goes out by another device.
pub(crate) const REDIRECT: i32 = 7;

/// The device towards the other node and the outside.
pub(crate) const UPLINK: &str = "eth0";
/// The devices of the node's pods.
pub(crate) const POD: [&str; 2] = ["pod0", "pod1"];

/// What became of a frame, and why.
#[derive(Debug)]
pub(crate) struct Result {
    pub(crate) returned: i32,
    pub(crate) frame: Frame,
    pub(crate) reason: Reason,
}

impl Result {
    /// `source > destination`, its checksums verified, of a frame that went on.
    pub(crate) fn ends(&self) -> String {
        assert_eq!(self.returned, NEXT, "{}", self.reason.name());
        let seen = seen(&self.frame);
        let text = |a: SocketAddr| if a.port() == 0 { a.ip().to_string() } else { a.to_string() };
        let ends = format!("{} > {}", text(seen.source), text(seen.destination));
        match seen.quoted {
            None => ends,
            Some(quoted) => {
                format!("{ends} about {} > {}", text(quoted.source), text(quoted.destination))
            }
        }
    }
}

/// How a frame is met.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// It comes in by a device.
    In(&'static str),
    /// It goes out by the first one, and came in by the second.
    Out(&'static str, &'static str),
}

pub(crate) struct Ground {
    pub(crate) plane: Plane,
    pub(crate) options: Options,
    devices: BTreeMap<&'static str, (u32, [u8; 6])>,
    programs: [OwnedFd; 2],
    pub(crate) lab: Lab,
}

/// The services of the stage, on all three protocols, with their endpoint on the other node.
pub(crate) fn ground(features: impl FnOnce(&Lab) -> Features) -> Ground {
    ground_with(features, |_| ())
}

/// The same with other options.
pub(crate) fn ground_with(
    features: impl FnOnce(&Lab) -> Features,
    change: impl FnOnce(&mut Options),
) -> Ground {
    let lab = lab();
    let mut options = Options { packet_plane: true, ..options_of(&lab) };
    change(&mut options);
    let features = features(&lab);
    let mut plane = open(&lab, &options, features);
    fill(&mut plane, &lab);
    for (service, text) in (0..).zip(crate::stage::WEB) {
        let web = crate::stage::to(text);
        let any = (Address::from(web.ip()).any().ip(), NODE_PORT).into();
        plane.frontend(web, Protocol::Sctp, FrontendKind::ClusterIp, service).unwrap();
        plane.frontend(any, Protocol::Sctp, FrontendKind::NodePort, service).unwrap();
    }
    // Only then are the tables where they are looked for.
    activate(&mut plane, &lab);
    let programs = programs(&mut plane);
    let mut ground = Ground { plane, options, devices: BTreeMap::new(), programs, lab };
    for name in [UPLINK, POD[0], POD[1]] {
        ground.device(name);
    }
    ground
}

/// The loaded `ingress` and `egress`.
fn programs(plane: &mut Plane) -> [OwnedFd; 2] {
    let programs = plane.kernel().programs().unwrap();
    ["ingress", "egress"].map(|wanted| {
        let (_, state) = programs.iter().find(|(name, _)| *name == wanted).unwrap();
        sys::program_by_id(state.id).unwrap()
    })
}

impl Ground {
    /// A new dataplane over what is pinned, as an agent that starts again.
    pub(crate) fn again(&mut self, features: Features) {
        self.plane = open(&self.lab, &self.options, features);
        self.programs = programs(&mut self.plane);
    }

    pub(crate) fn map(&self, name: &str) -> Map {
        Map::open(&self.options.pin_path.join(name)).unwrap()
    }

    pub(crate) fn settings(&self) -> PacketPlane {
        let mut bytes = [0; size_of::<PacketPlane>()];
        assert!(sys::lookup(self.map(map::PACKET_PLANE).as_fd(), &0_u32.to_ne_bytes(), &mut bytes).unwrap());
        PacketPlane::read_from_bytes(&bytes).unwrap()
    }

    /// Keys in a table of flows.
    pub(crate) fn keys(&self, name: &str) -> usize {
        let mut count = 0;
        self.map(name).each(|_, _| count += 1).unwrap();
        count
    }

    fn device(&mut self, name: &'static str) {
        let text = self.lab.node("a").run("ip", &["-json", "link", "show", "dev", name]).unwrap();
        let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
        let index = u32::try_from(shown[0]["ifindex"].as_u64().unwrap()).unwrap();
        let text = shown[0]["address"].as_str().unwrap();
        let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        self.devices.insert(name, (index, bytes.try_into().unwrap()));
        self.describe(name, Pods::InRange);
        let node = self.lab.node("a");
        for (family, range) in Family::ALL.into_iter().zip(["10.244.1.0", "fd00:244:1::"]) {
            let length = if family == Family::V4 { 32 + 96 + 24 } else { 32 + 64 };
            let address = Address::from(range.parse::<IpAddr>().unwrap());
            self.range(RangeKey { prefix_length: length, owner: RangeKey::PODS, address: address.octets() });
            assert!(!node.address(family).is_unspecified());
        }
    }

    /// Tell the programs of a device, with the node's own addresses.
    pub(crate) fn describe(&self, name: &str, pods: Pods) {
        let node = self.lab.node("a");
        let own = |family| Address::from(node.address(family)).octets();
        let (index, mac) = self.devices[name];
        let mac = [0, 2, 4].map(|i| u16::from_ne_bytes([mac[i], mac[i + 1]]));
        let device = Device {
            mac,
            bridge_mac: mac,
            header: 14,
            role: DeviceRole::Single,
            pods,
            version: Device::VERSION,
            masquerade_v4: own(Family::V4),
            masquerade_v6: own(Family::V6),
            host: 0,
            choices: 0,
        };
        sys::update(self.map(map::DEVICES).as_fd(), &index.to_ne_bytes(), device.as_bytes(), 0).unwrap();
    }

    /// The programs know nothing of a device any more.
    pub(crate) fn forget(&self, name: &str) {
        let (index, _) = self.devices[name];
        assert!(sys::delete(self.map(map::DEVICES).as_fd(), &index.to_ne_bytes()).unwrap());
    }

    pub(crate) fn range(&self, key: RangeKey) {
        sys::update(self.map(map::SOURCE_RANGES).as_fd(), key.as_bytes(), &1_u32.to_ne_bytes(), 0).unwrap();
    }

    /// Services 0 and 1 have no endpoint but the ones of `policy`: `ANY_ENDPOINTS` means elsewhere.
    pub(crate) fn empty(&mut self, policy: u16) {
        for service in [0, 1] {
            self.plane.endpoints(service, &Endpoints { policy, ..Endpoints::default() }).unwrap();
        }
    }

    /// Services 0 and 1 lead where they led, by this policy.
    pub(crate) fn policy(&mut self, policy: u16) {
        for (service, family) in (0..).zip(Family::ALL) {
            let cluster = crate::stage::at(&self.lab, family, &["b1"]);
            let policy = policy | Policy::ANY_ENDPOINTS;
            self.plane.endpoints(service, &Endpoints { cluster, policy, ..Endpoints::default() }).unwrap();
        }
    }

    /// A frame comes in by a device.
    pub(crate) fn ingress(&self, on: &str, frame: Frame) -> Result {
        let (index, mac) = self.devices[on];
        let mut frame = frame;
        frame.bytes[..6].copy_from_slice(&mac);
        self.run(0, Met { on: index, from: index }, frame)
    }

    /// The same frame comes in many times; what becomes of it is only counted.
    pub(crate) fn flood(&self, on: &str, frame: &Frame, times: usize) {
        let (index, mac) = self.devices[on];
        let mut bytes = frame.bytes.clone();
        bytes[..6].copy_from_slice(&mac);
        let (fd, met) = (self.programs[0].as_fd(), Met { on: index, from: index });
        let all = || (0..times).try_for_each(|_| frame::run(fd, met, &bytes).map(drop));
        self.lab.node("a").enter(all).unwrap().unwrap();
    }

    /// Many frames, by `ingress` of a device or `egress` of another, as fast as that goes; what becomes of each is only
    /// counted.
    pub(crate) fn many(&self, frames: &[(Way, Frame)]) {
        let (devices, programs) = (&self.devices, &self.programs);
        let run = |(way, frame): &(Way, Frame)| {
            let (program, met, mac) = match way {
                Way::In(on) => {
                    let (index, mac) = devices[on];
                    (0, Met { on: index, from: index }, Some(mac))
                }
                Way::Out(on, from) => (1, Met { on: devices[on].0, from: devices[from].0 }, None),
            };
            let mut bytes = frame.bytes.clone();
            if let Some(mac) = mac {
                bytes[..6].copy_from_slice(&mac);
            }
            frame::run(programs[program].as_fd(), met, &bytes).map(drop)
        };
        self.lab.node("a").enter(|| frames.iter().try_for_each(run)).unwrap().unwrap();
    }

    /// A frame that came in by the other device goes out by a device.
    pub(crate) fn egress(&self, on: &str, frame: Frame) -> Result {
        let from = if on == UPLINK { POD[0] } else { UPLINK };
        self.run(1, Met { on: self.devices[on].0, from: self.devices[from].0 }, frame)
    }

    /// A frame of one of the node's own sockets goes out by a device.
    pub(crate) fn sent(&self, on: &str, frame: Frame) -> Result {
        self.run(1, Met { on: self.devices[on].0, from: 0 }, frame)
    }

    /// The frame as it comes, whoever it is for.
    pub(crate) fn run(&self, program: usize, met: Met, frame: Frame) -> Result {
        let before = self.plane.counts().unwrap();
        let fd = self.programs[program].as_fd();
        let (returned, bytes) =
            self.lab.node("a").enter(|| frame::run(fd, met, &frame.bytes)).unwrap().unwrap();
        let after = self.plane.counts().unwrap();
        let differ: Vec<_> = before
            .into_iter()
            .zip(after)
            .filter(|((_, before), (_, after))| before != after)
            .map(|((reason, before), (_, after))| (reason, after - before))
            .collect();
        let [(reason, 1)] = differ[..] else { panic!("not one outcome, once: {differ:?}") };
        Result { returned, frame: Frame { bytes, header: frame.header }, reason }
    }

    pub(crate) fn index(&self, name: &str) -> u32 {
        self.devices[name].0
    }

    /// The node's address of a family, as text that a port can follow.
    pub(crate) fn own(&self, family: Family) -> IpAddr {
        self.lab.node("a").address(family)
    }
}

/// The packet of a frame, for an error to quote.
pub(crate) fn quoted(frame: &Frame) -> Vec<u8> {
    frame.bytes[frame.header..].to_vec()
}

/// One fragment of a packet: from byte `from` of its payload to `to`.
pub(crate) fn fragment(frame: &Frame, from: usize, to: usize) -> Frame {
    let packet = quoted(frame);
    if packet[0] >> 4 == 6 {
        return fragment6(&packet, from, to);
    }
    let (header, payload) = packet.split_at(20);
    let more = to < payload.len();
    let mut piece = header.to_vec();
    piece.extend(&payload[from..to.min(payload.len())]);
    let length = u16::try_from(piece.len()).unwrap();
    piece[2..4].copy_from_slice(&length.to_be_bytes());
    let word = u16::try_from(from / 8).unwrap() | if more { 0x2000 } else { 0 };
    piece[6..8].copy_from_slice(&word.to_be_bytes());
    piece[10..12].fill(0);
    let checksum = !crate::wire::fold(crate::wire::sum(&piece[..20]));
    piece[10..12].copy_from_slice(&checksum.to_be_bytes());
    framed(&piece)
}

/// The same of an IPv6 packet, by an extension header (RFC 8200 §4.5).
fn fragment6(packet: &[u8], from: usize, to: usize) -> Frame {
    let (header, payload) = packet.split_at(40);
    let more = to < payload.len();
    let mut piece = header.to_vec();
    let word = u16::try_from(from).unwrap() | u16::from(more);
    piece.extend([header[6], 0]);
    piece.extend(word.to_be_bytes());
    piece.extend([0, 0, 0, 9]);
    piece.extend(&payload[from..to.min(payload.len())]);
    let length = u16::try_from(piece.len() - 40).unwrap();
    piece[4..6].copy_from_slice(&length.to_be_bytes());
    piece[6] = 44;
    framed(&piece)
}
