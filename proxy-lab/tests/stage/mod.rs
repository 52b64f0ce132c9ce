//! The stage of the kernel tests: a lab, and vipr's real dataplane in its node `a`, driven by hand. Endpoints are on
//! node `b`, whose sockets no program sees, so that every count is the caller's.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;
use proxy_common::Protocol::{Tcp, Udp};
use proxy_common::layout::FrontendKind;
use proxy_common::{Address, Reason};
use proxy_lab::plane::{Endpoints, Plane, options};
use proxy_lab::{Blackhole, Family, Lab, Node, Place, Topology, Wiring, errno, mapped};
use vipr::dataplane::Options;
use vipr::dataplane::probe::Features;

/// What endpoints listen on.
pub(crate) const TARGET: u16 = 8080;
pub(crate) const NODE_PORT: u16 = 30080;
/// The services' addresses by index: the first leads somewhere, by family.
pub(crate) const WEB: [&str; 2] = ["10.96.0.10:80", "[fd00:96::10]:80"];
/// Without endpoints: services 2 and 3.
pub(crate) const EMPTY: [&str; 2] = ["10.96.0.66:80", "[fd00:96::66]:80"];

pub(crate) struct Stage {
    pub(crate) plane: Plane,
    pub(crate) options: Options,
    pub(crate) lab: Lab,
}

/// As probed, and as the oldest kernel has it. The namespace's cookie is known in both: the test's process is outside
/// of the node's cgroup and can't probe for it.
pub(crate) fn features(lab: &Lab) -> [(&'static str, Features); 2] {
    let probed = lab.node("a").enter(Features::probe).unwrap();
    [("as probed", probed), ("floor", Features { set_retval: false, coarse_clock: false, ..probed })]
}

/// Node `a` with the pods `a1` and `a2`, node `b` with the endpoints `b1` to `b3`.
pub(crate) fn lab() -> Lab {
    let topology = Topology::new(Wiring::Routed).node("a", &["a1", "a2"]).node("b", &["b1", "b2", "b3"]);
    let lab = Lab::start(&topology.blackhole(Blackhole::AtNodes)).unwrap();
    for name in ["b1", "b2", "b3"] {
        lab.place(name).serve(&[TARGET], &[TARGET]).unwrap();
    }
    lab
}

/// The node's dataplane, with nothing in its tables.
pub(crate) fn open(lab: &Lab, options: &Options, features: Features) -> Plane {
    lab.node("a").enter(|| Plane::open(options, features)).unwrap().unwrap()
}

pub(crate) fn options_of(lab: &Lab) -> Options {
    let node = lab.node("a");
    options(&node.pin_path(), node.node_cgroup())
}

impl Stage {
    /// Services 0 and 1 on [`WEB`] and on the node port lead to `b1`, 2 and 3 on [`EMPTY`] to nobody; attached.
    pub(crate) fn new() -> Self {
        let lab = lab();
        let probed = features(&lab)[0].1;
        Self::on(lab, probed, |_| ())
    }

    /// One with each kernel's features; the second time in a new lab.
    pub(crate) fn each(mut test: impl FnMut(&mut Self, &str, Features)) {
        for number in 0..2 {
            let lab = lab();
            let (case, features) = features(&lab)[number];
            test(&mut Self::on(lab, features, |_| ()), case, features);
        }
    }

    pub(crate) fn on(lab: Lab, features: Features, change: impl FnOnce(&mut Options)) -> Self {
        let mut options = options_of(&lab);
        change(&mut options);
        let mut plane = open(&lab, &options, features);
        fill(&mut plane, &lab);
        activate(&mut plane, &lab);
        Self { plane, options, lab }
    }

    pub(crate) fn node(&self) -> &Node {
        self.lab.node("a")
    }

    /// A pod, or a node's host.
    pub(crate) fn place(&self, name: &str) -> &Place {
        place(&self.lab, name)
    }

    /// Let services 0 and 1 lead to these pods.
    pub(crate) fn web(&mut self, pods: &[&str]) {
        web(&mut self.plane, &self.lab, pods);
    }

    /// The same for any service of a family.
    pub(crate) fn lead(&mut self, service: u32, family: Family, pods: &[&str]) {
        let endpoints = at(&self.lab, family, pods);
        self.plane.endpoints(service, &Endpoints::everywhere(&endpoints)).unwrap();
    }

    /// What `f` gives, and how often each outcome came meanwhile.
    pub(crate) fn counted<T>(&self, f: impl FnOnce() -> T) -> (T, BTreeMap<&'static str, u64>) {
        let before = self.plane.counts().unwrap();
        let value = f();
        let after = self.plane.counts().unwrap();
        let differ = before
            .into_iter()
            .zip(after)
            .map(|((reason, before), (_, after))| (reason.name(), after - before));
        (value, differ.filter(|(_, count)| *count > 0).collect())
    }
}

/// Exactly these outcomes, once each.
pub(crate) fn once(reasons: &[Reason]) -> BTreeMap<&'static str, u64> {
    reasons.iter().map(|reason| (reason.name(), 1)).collect()
}

pub(crate) fn place<'l>(lab: &'l Lab, name: &str) -> &'l Place {
    if ["a", "b"].contains(&name) { lab.node(name) } else { lab.place(name) }
}

/// Where these pods listen.
pub(crate) fn at(lab: &Lab, family: Family, pods: &[&str]) -> Vec<SocketAddr> {
    pods.iter().map(|pod| (place(lab, pod).address(family), TARGET).into()).collect()
}

pub(crate) fn web(plane: &mut Plane, lab: &Lab, pods: &[&str]) {
    for (service, family) in (0..).zip(Family::ALL) {
        plane.endpoints(service, &Endpoints::everywhere(&at(lab, family, pods))).unwrap();
    }
}

pub(crate) fn fill(plane: &mut Plane, lab: &Lab) {
    web(plane, lab, &["b1"]);
    for (service, (web, empty)) in (0..).zip(WEB.into_iter().zip(EMPTY)) {
        let (web, empty) = (to(web), to(empty));
        let wildcard = (Address::from(web.ip()).any().ip(), NODE_PORT).into();
        plane.endpoints(service + 2, &Endpoints::default()).unwrap();
        for protocol in [Tcp, Udp] {
            plane.frontend(web, protocol, FrontendKind::ClusterIp, service).unwrap();
            plane.frontend(wildcard, protocol, FrontendKind::NodePort, service).unwrap();
            plane.frontend(empty, protocol, FrontendKind::ClusterIp, service + 2).unwrap();
        }
    }
    let node = lab.node("a");
    let loopback = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
    for address in Family::ALL.into_iter().flat_map(|family| node.addresses(family)).chain(loopback) {
        plane.local_address(address, true).unwrap();
    }
}

pub(crate) fn activate(plane: &mut Plane, lab: &Lab) {
    lab.node("a").enter(|| plane.activate()).unwrap().unwrap();
}

pub(crate) fn to(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The two addresses, and the IPv4 one also as an IPv6 socket dials it.
pub(crate) fn dialled(of: [&str; 2]) -> Vec<SocketAddr> {
    let [v4, v6] = of.map(to);
    let SocketAddr::V4(plain) = v4 else { panic!("{v4} is not IPv4") };
    vec![v4, v6, (mapped(*plain.ip()), plain.port()).into()]
}

pub(crate) fn is_mapped(address: SocketAddr) -> bool {
    matches!(address.ip(), IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some())
}

/// The error of a call that has to fail.
pub(crate) fn error<T>(result: std::io::Result<T>) -> Errno {
    result.err().map_or(Errno::UnknownErrno, |error| Errno::from_raw(errno(&error)))
}
