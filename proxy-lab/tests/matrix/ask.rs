//! Makes a cell's connection, and judges it: who answers, from which address, and whom the server has seen.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockaddrStorage, bind, connect};
use proxy_common::Reason;
use proxy_lab::{Answer, CALL_LIMIT, Family, Node, Place, SocketKind, Waiting, errno, wait};
use vipr::dataplane::counters;

use super::ground::{Ground, TARGET, place};
use super::spec::{Cell, Client, Door, Expected, Kind, Protocol, Source};
use crate::sctp::{End, INIT, INIT_ACK, Seen, message};

/// Places that may get SCTP: without an end there the kernel would answer by itself.
const ENDS: [&str; 6] = ["pod", "near", "far", "a", "b", "outside"];

pub(crate) struct Asker<'ground> {
    ground: &'ground Ground,
    ends: Vec<(&'static str, Family, End)>,
    /// The last source port of a client without connections: each has its own, or an old flow would tell what becomes of
    /// it. Outside of the kernel's own range and that of NodePorts.
    port: u16,
    /// Whom each client was held to.
    held: BTreeMap<String, BTreeSet<String>>,
    /// Connections whose refusal comes a second later: the answer to the first SYN comes while connect() still has the
    /// socket, and the kernel passes it over (so it is with netfilter's REJECT).
    refusals: Vec<(Cell, TcpStream)>,
    pub(crate) asked: usize,
}

impl<'ground> Asker<'ground> {
    pub(crate) fn new(ground: &'ground Ground) -> Result<Self> {
        let ends = ENDS.into_iter().flat_map(|name| Family::ALL.map(|family| (name, family)));
        let ends = ends.map(|(name, family)| Ok((name, family, end(place(&ground.lab, name), family)?)));
        Ok(Self {
            ground,
            ends: ends.collect::<Result<_>>()?,
            port: 10_000,
            held: BTreeMap::new(),
            refusals: Vec::new(),
            asked: 0,
        })
    }

    /// That the cell comes out as it should.
    pub(crate) fn judge(&mut self, cell: &Cell) -> Result<()> {
        let (from, to) = (self.ground.client(cell.client), self.ground.door(cell));
        let at_node = matches!(cell.door, Door::OtherNodePort | Door::LoopbackNodePort);
        self.asked += 1;
        match (cell.expected(), cell.protocol) {
            (Expected::Answer(servers), Protocol::Tcp) => {
                let waiting = Waiting::ALL[cell.door as usize % 2];
                self.answered(cell, servers, &tcp(from, to, waiting)?)
            }
            (Expected::Answer(servers), Protocol::Udp) => {
                for connected in [false, true] {
                    let answer = self.udp(from, to, connected)?;
                    self.answered(cell, servers, &answer)?;
                }
                Ok(())
            }
            (Expected::Answer(servers), Protocol::Sctp) => self.sctp(cell, to, servers),
            (Expected::Refusal, Protocol::Tcp) if cell.by_socket() => refused(from.ask_tcp(to)),
            (Expected::Refusal, Protocol::Tcp) => {
                self.refusals.push((*cell, begin(from, to)?));
                Ok(())
            }
            (Expected::Refusal, Protocol::Udp) => refused(self.udp_error(from, to)),
            (Expected::Drop | Expected::Pass, Protocol::Tcp | Protocol::Udp)
                if cell.client == Client::Node && !at_node =>
            {
                self.blackholed(cell, from, to)
            }
            (Expected::Drop, _) => self.dropped(cell, from, to),
            // Nothing is there: the node's own answer, which is limited for datagrams.
            (Expected::Pass, Protocol::Tcp) => refused(from.ask_tcp(to)),
            (Expected::Refusal, Protocol::Sctp) | (Expected::Pass, _) => {
                self.asked -= 1;
                Ok(())
            }
        }
    }

    /// Ends a pass: what was refused by packets has been by now, and nobody was led astray from his endpoint.
    pub(crate) fn finish(&mut self) -> Vec<String> {
        let late = self.refusals.drain(..).filter_map(|(cell, stream)| {
            until_refused(&stream).err().map(|error| format!("{cell}: {error:#}"))
        });
        let mut failures: Vec<String> = late.collect();
        let astray = std::mem::take(&mut self.held).into_iter().filter(|(_, servers)| servers.len() > 1);
        failures.extend(astray.map(|(client, servers)| format!("{client} was led to {servers:?}")));
        failures
    }

    fn answered(&mut self, cell: &Cell, servers: &[&str], answer: &Answer) -> Result<()> {
        ensure!(answer.local.port() == TARGET, "{answer:?}");
        self.seen(cell, servers, &answer.who, answer.client.ip())
    }

    fn seen(&mut self, cell: &Cell, servers: &[&str], who: &str, client: IpAddr) -> Result<()> {
        ensure!(servers.contains(&who), "{who} answered instead of {servers:?}");
        let expected = self.ground.seen(cell, cell.source(who), who);
        ensure!(client.to_canonical() == expected, "{who} saw {client} instead of {expected}");
        if cell.kind == Kind::Affinity {
            let Cell { pass, protocol, client, .. } = cell;
            // A pod is known by its namespace to one plane and by its address to the other.
            let (plane, expected) = if cell.by_socket() {
                ("socket", format!("{:?}", cell.family))
            } else {
                ("packets", self.ground.seen(cell, Source::Client, who).to_string())
            };
            let held = format!("{}: {client:?} by {plane}, {expected}, {protocol:?}, affinity", pass.name);
            self.held.entry(held).or_default().insert(who.to_owned());
        }
        Ok(())
    }

    fn next_port(&mut self) -> u16 {
        self.port += 1;
        self.port
    }

    fn udp(&mut self, from: &Place, to: SocketAddr, connected: bool) -> Result<Answer> {
        let datagrams = from.datagrams_from(Family::of(to.ip()), self.next_port())?;
        let (answer, source) = if connected {
            datagrams.connect(to)?;
            ensure!(datagrams.peer()? == to, "getpeername gave {}", datagrams.peer()?);
            datagrams.ask("connected")?
        } else {
            datagrams.ask_to(to, "unconnected")?
        };
        ensure!(source == to, "recvfrom gave {source} for {to}");
        Ok(answer)
    }

    fn udp_error(&mut self, from: &Place, to: SocketAddr) -> std::io::Result<Answer> {
        let datagrams = from.datagrams_from(Family::of(to.ip()), self.next_port())?;
        datagrams.connect(to)?;
        datagrams.ask("nobody").map(|(answer, _)| answer)
    }

    fn sctp(&mut self, cell: &Cell, to: SocketAddr, servers: &[&str]) -> Result<()> {
        let (family, port) = (cell.family, self.next_port());
        let client = self.ground.client(cell.client).name();
        let end = |name: &str| {
            let found = self.ends.iter().find(|(place, of, _)| *place == name && *of == family);
            found.map(|(_, _, end)| end).with_context(|| format!("an end at {name}"))
        };
        end(client)?.send(to.ip(), &message(port, to.port(), INIT, 40))?;
        let all = self.ends.iter().filter(|(name, of, _)| *of == family && *name != "outside");
        let all: Vec<_> = all.collect();
        let mut ready: Vec<_> =
            all.iter().map(|(_, _, end)| PollFd::new(end.raw.as_fd(), PollFlags::POLLIN)).collect();
        poll(&mut ready, PollTimeout::try_from(CALL_LIMIT).unwrap_or(PollTimeout::MAX))?;
        let came = ready.iter().position(|one| one.any() == Some(true)).context("nobody got it")?;
        let (who, _, server) = all[came];
        let question = server.receive()?;
        ensure!((question.to_port, question.chunk) == (TARGET, INIT), "{who} got {question:?}");
        server.send(question.from.ip(), &message(TARGET, question.from.port(), INIT_ACK, 40))?;
        let answer = end(client)?.receive().context("the answer")?;
        ensure!(answer == Seen { from: to, to_port: port, chunk: INIT_ACK, padding: 40 }, "{answer:?}");
        self.seen(cell, servers, who, question.from.ip())
    }

    /// Silence, which is counted.
    fn dropped(&mut self, cell: &Cell, from: &Place, to: SocketAddr) -> Result<()> {
        let node = self.ground.lab.node("a");
        let before = count(node, Reason::PolicyDropped)?;
        let (mut stream, mut datagrams): (Option<TcpStream>, Option<UdpSocket>) = (None, None);
        match cell.protocol {
            Protocol::Tcp => stream = Some(begin(from, to)?),
            Protocol::Udp => {
                let asked = from.datagrams_from(cell.family, self.next_port())?;
                asked.connect(to)?;
                asked.socket().send(b"anybody?")?;
                datagrams = Some(asked.socket().try_clone()?);
            }
            Protocol::Sctp => {
                End::open(from, cell.family)?
                    .send(to.ip(), &message(self.next_port(), to.port(), INIT, 0))?;
            }
        }
        wait::until("it is counted as dropped", || {
            ensure!(count(node, Reason::PolicyDropped)? > before, "{:?} is {before}", Reason::PolicyDropped);
            Ok(())
        })?;
        if let Some(stream) = stream {
            ensure!(stream.peer_addr().is_err() && stream.take_error()?.is_none(), "it was answered");
        }
        if let Some(datagrams) = datagrams {
            datagrams.set_nonblocking(true)?;
            let heard = datagrams.recv(&mut [0; 8]);
            ensure!(heard.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "{heard:?}");
        }
        Ok(())
    }

    /// A node leads service ranges nowhere in the lab: what is left alone there does not even leave the socket.
    fn blackholed(&mut self, cell: &Cell, from: &Place, to: SocketAddr) -> Result<()> {
        let error = match cell.protocol {
            Protocol::Tcp => from.ask_tcp(to).err(),
            _ => self.udp_error(from, to).err(),
        };
        let error = error.context("it was answered")?;
        ensure!(errno(&error) == Errno::EINVAL as i32, "{error} instead of EINVAL");
        Ok(())
    }
}

/// A node has many addresses: what serves at its first one answers from that.
fn end(place: &Place, family: Family) -> Result<End> {
    let end = End::open(place, family)?;
    if place.node() == Some(place.name()) {
        let own = SocketAddr::new(place.address(family), 0);
        bind(end.raw.as_raw_fd(), &SockaddrStorage::from(own))?;
    }
    Ok(end)
}

fn tcp(from: &Place, to: SocketAddr, waiting: Waiting) -> Result<Answer> {
    let mut stream = from.connect(to, waiting).context("connect")?;
    ensure!(stream.peer()? == to, "getpeername gave {}", stream.peer()?);
    let answer = stream.answer().context("the greeting")?;
    // Some segments each way, which devices may take in one piece.
    let long = stream.ask(&"long ".repeat(1200)).context("much")?;
    ensure!(long.said.len() >= 5999, "{} bytes came back", long.said.len());
    ensure!((&long.who, long.client) == (&answer.who, answer.client), "{long:?}");
    Ok(answer)
}

/// A connection that is under way.
fn begin(from: &Place, to: SocketAddr) -> Result<TcpStream> {
    let domain = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = from.socket(SocketKind { domain, kind: libc::SOCK_STREAM, protocol: 0 })?;
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(true)?;
    match connect(stream.as_raw_fd(), &SockaddrStorage::from(to)) {
        Err(Errno::EINPROGRESS) => Ok(stream),
        Err(errno) => Err(errno.into()),
        Ok(()) => bail!("a connection in no time"),
    }
}

fn refused<T: std::fmt::Debug>(result: std::io::Result<T>) -> Result<()> {
    let error = match result {
        Ok(answer) => bail!("{answer:?} instead of a refusal"),
        Err(error) => error,
    };
    ensure!(errno(&error) == Errno::ECONNREFUSED as i32, "{error} instead of a refusal");
    Ok(())
}

fn until_refused(stream: &TcpStream) -> Result<()> {
    let limit = PollTimeout::try_from(CALL_LIMIT).unwrap_or(PollTimeout::MAX);
    let ready = poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)], limit)?;
    ensure!(ready == 1, "no refusal came");
    refused(stream.take_error()?.map_or(Ok(()), Err))
}

/// How often the programs of `node` came to this end.
fn count(node: &Node, reason: Reason) -> Result<u64> {
    let all = counters(&node.pin_path())?;
    Ok(all.into_iter().filter(|(counted, _)| *counted == reason).map(|(_, number)| number).sum())
}
