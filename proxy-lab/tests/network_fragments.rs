//! Fragments that come in another order than they were made in, from outside and from a pod: by raw packets, for no socket
//! sends them so. What waits for its first one may never leave its node for an address that only translation gives a meaning.

mod traffic;
#[path = "../../proxy-common/tests/wire/mod.rs"]
mod wire;

use std::net::{SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use proxy_common::Reason;
use proxy_lab::{Answer, Datagrams, Family, Lab, Offload, Place, SocketKind, Wiring};
use traffic::{NODE_PORT, PACKETS, PORT, TARGET, cluster, count, near_and_far, start, web};

const BALANCERS: [&str; 2] = ["10.100.0.1", "fd00:100::1"];
const UDP: u8 = 17;

/// Who sends datagrams in pieces, and hears what is said to them.
struct Sender {
    datagrams: Datagrams,
    raw: UdpSocket,
    own: SocketAddr,
    to: SocketAddr,
    sent: u16,
}

impl Sender {
    fn new(place: &Place, to: SocketAddr) -> Result<Self> {
        let family = Family::of(to.ip());
        let domain = if family == Family::V4 { libc::AF_INET } else { libc::AF_INET6 };
        let kind = SocketKind { domain, kind: libc::SOCK_RAW, protocol: libc::IPPROTO_RAW };
        let datagrams = place.datagrams_at((place.address(family), 0).into())?;
        let own = datagrams.socket().local_addr()?;
        // The standard library's type writes to any socket that is addressed by IP.
        Ok(Self { datagrams, raw: place.socket(kind)?.into(), own, to, sent: 0 })
    }

    /// A new datagram: what it says, and its three pieces.
    fn cut(&mut self) -> (String, [Vec<u8>; 3]) {
        self.sent += 1;
        let said = format!("number {} ", self.sent).repeat(240);
        let whole = wire::transport(UDP, self.own, self.to, 0, said.as_bytes());
        let piece = |from: usize, to: usize| {
            let mut ip = wire::Ip::new(self.own.ip(), self.to.ip(), UDP);
            let (id, offset, more) = (self.own.port() ^ self.sent, from as u16, to < whole.len());
            if self.to.is_ipv4() {
                ip.fragment = (id, (offset / 8) | (u16::from(more) << 13));
            } else {
                let word = (offset | u16::from(more)).to_be_bytes();
                let id = id.to_be_bytes();
                ip.extensions = Some((44, vec![UDP, 0, word[0], word[1], 0, 0, id[0], id[1]]));
            }
            ip.packet(&whole[from..to])
        };
        (said, [piece(0, 800), piece(800, 1600), piece(1600, whole.len())])
    }

    fn send(&self, piece: &[u8]) -> Result<()> {
        self.raw.send_to(piece, (self.to.ip(), 0))?;
        Ok(())
    }

    /// The next answer, to what was said.
    fn hear(&self, said: &str) -> Result<Answer> {
        let (answer, from) = self.datagrams.receive().with_context(|| format!("{} is silent", self.to))?;
        ensure!(from == self.to, "{from} answered for {}", self.to);
        ensure!(answer.said == said, "{:.9} was answered for {said:.9}", answer.said);
        Ok(answer)
    }

    /// A datagram whose first piece comes first is answered, in whatever order the others come.
    fn first_first(&mut self) -> Result<Answer> {
        let (said, [first, second, third]) = self.cut();
        [first, third, second].iter().try_for_each(|piece| self.send(piece))?;
        self.hear(&said)
    }

    /// The second piece overtakes the first and is lost; what was sent afterwards is answered before it came once more.
    fn overtaken(&mut self) -> Result<()> {
        let (said, [first, second, third]) = self.cut();
        [&second, &first, &third].into_iter().try_for_each(|piece| self.send(piece))?;
        self.first_first().context("after an overtaken datagram")?;
        self.send(&second)?;
        self.hear(&said).context("when its lost piece came again")?;
        Ok(())
    }
}

/// Nothing but the programs keeps the node from sending the ranges of Services where everything goes, where strays are
/// counted; and the client has a way to the balancer.
fn open_ways(lab: &Lab) -> Result<()> {
    let (node, outside) = (lab.node("a"), lab.place("outside"));
    for (family, address) in Family::ALL.into_iter().zip(BALANCERS) {
        outside.ip(&[format!("route add {address} via {} dev eth0", node.address(family))])?;
        let ways = [cluster(family).ip().to_string(), address.to_owned()];
        let sink = lab.sink().address(family);
        node.ip(&ways.map(|to| format!("route add {to} via {sink} dev eth0")))?;
    }
    Ok(())
}

#[test]
fn fragments_of_a_service_follow_their_first_one_and_those_that_overtake_it_go_nowhere() -> Result<()> {
    for wiring in Wiring::ALL {
        let (lab, manifests) = start(wiring, Offload::On)?;
        open_ways(&lab)?;
        let node = lab.node("a");
        let service =
            |pod: &str| web(&lab, &[pod]).load_balancer_ip(BALANCERS[0]).load_balancer_ip(BALANCERS[1]);
        near_and_far(&lab, &manifests, &PACKETS, service, |endpoint| {
            for (family, balancer) in Family::ALL.into_iter().zip(BALANCERS) {
                // What is sent to the node itself may be its own: it waits there for a first one that never comes.
                let cases = [
                    ("outside", SocketAddr::new(node.address(family), NODE_PORT), 0),
                    ("outside", SocketAddr::new(balancer.parse()?, PORT), 1),
                    ("pod", cluster(family), 1),
                ];
                for (from, to, dropped) in cases {
                    let case = || format!("{wiring:?}: {from} to {to}");
                    let mut sender = Sender::new(lab.place(from), to)?;
                    let before = count(node, Reason::FragmentEarly)?;
                    let answer = sender.first_first().with_context(case)?;
                    ensure!((answer.who.as_str(), answer.local.port()) == (endpoint, TARGET), "{answer:?}");
                    sender.overtaken().with_context(case)?;
                    let early = count(node, Reason::FragmentEarly)? - before;
                    ensure!(early == dropped, "{}: {early} were dropped", case());
                }
            }
            lab.check()
        })?;
    }
    Ok(())
}

#[test]
fn fragments_of_nobodys_pass_in_any_order() -> Result<()> {
    for wiring in Wiring::ALL {
        let (lab, manifests) = start(wiring, Offload::On)?;
        let node = lab.node("a");
        let agent = traffic::serve(node, &manifests, &[web(&lab, &["near"])])?;
        for family in Family::ALL {
            let to = SocketAddr::new(lab.place("far").address(family), TARGET);
            let before = [Reason::FragmentPlain, Reason::FragmentEarly].map(|reason| count(node, reason));
            let mut sender = Sender::new(lab.place("pod"), to)?;
            let (said, [first, second, third]) = sender.cut();
            [third, second, first].iter().try_for_each(|piece| sender.send(piece))?;
            ensure!(sender.hear(&said)?.who == "far");
            let [plain, early] = before;
            ensure!(count(node, Reason::FragmentPlain)? >= plain? + 2, "{wiring:?}: nobody looked at {to}");
            ensure!(count(node, Reason::FragmentEarly)? == early?, "{wiring:?}: {to} is no Service's");
        }
        drop(agent);
        lab.check()?;
    }
    Ok(())
}
