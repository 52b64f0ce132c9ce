//! The clients: one load for so many seconds from the place that this process runs at, on one core.
//!
//! Each counts what was done and what failed. The calls are those of a plain program: blocking sockets, one thread, no
//! options but `TCP_NODELAY` and, where connections are short, an end by RST, so that no port waits.

use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt};
use serde::{Deserialize, Serialize};

/// What is done over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Load {
    /// A new TCP connection, one byte each way, RST.
    Connections,
    /// One byte each way on one TCP connection.
    Requests,
    /// A new connected UDP socket, one byte each way.
    Datagrams,
    /// A new TCP connection, one HTTP request and its answer, closed by the server.
    HttpShort,
    /// HTTP requests on one connection.
    HttpKeep,
    /// Bytes on one TCP connection, one way.
    Stream,
    /// connect() of a new UDP socket, which sends nothing; nanoseconds in that call.
    Connect,
    /// connect() of one UDP socket again and again; nanoseconds in that call.
    Reconnect,
}

/// What one run of a load gave.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// A second; or nanoseconds, the median, where a call is timed.
    pub(crate) value: f64,
    /// Of all that were tried.
    pub(crate) failed: u64,
}

/// An HTTP request, and as much of its answer as is looked at.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n";
const LAST_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n";
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Does it to `to`; with a `spread` to each of so many addresses after `to` in turn.
pub(crate) fn run(load: Load, to: SocketAddrV4, spread: u32, seconds: f64) -> Result<Outcome> {
    let until = Until::new(seconds);
    match load {
        Load::Connections => Ok(until.count(|| short(to, b"x", &mut [0; 1]).map(|_| 1))),
        Load::HttpShort => Ok(until.count(|| {
            let mut answer = [0; 1024];
            match short(to, LAST_REQUEST, &mut answer)? {
                0 => Err(ErrorKind::UnexpectedEof.into()),
                _ => Ok(1),
            }
        })),
        Load::Datagrams => Ok(until.count(|| {
            let socket = UdpSocket::from(new(SockType::Datagram, to)?);
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send(b"x")?;
            socket.recv(&mut [0; 1]).map(|_| 1)
        })),
        Load::Requests => {
            let mut stream = long(to)?;
            Ok(until.count(|| {
                stream.write_all(b"x")?;
                stream.read_exact(&mut [0; 1]).map(|()| 1)
            }))
        }
        Load::HttpKeep => {
            let mut stream = long(to)?;
            let mut lines = BufReader::new(stream.try_clone()?);
            Ok(until.count(|| {
                stream.write_all(REQUEST)?;
                answer(&mut lines).map(|()| 1)
            }))
        }
        Load::Stream => {
            let mut stream = long(to)?;
            // The server's word for "read, and say nothing".
            stream.write_all(b"S")?;
            let block = vec![b'S'; 128 * 1024];
            Ok(until.count(|| stream.write_all(&block).map(|()| block.len() as u64)))
        }
        Load::Connect => Ok(until.time(|number| {
            let socket = plain(SockType::Datagram)?;
            timed(&socket, nth(to, spread, number))
        })),
        Load::Reconnect => {
            let socket = plain(SockType::Datagram)?;
            Ok(until.time(|number| timed(&socket, nth(to, spread, number))))
        }
    }
}

/// Until then.
struct Until {
    start: Instant,
    end: Instant,
}

impl Until {
    fn new(seconds: f64) -> Self {
        let start = Instant::now();
        Self { start, end: start + Duration::from_secs_f64(seconds) }
    }

    /// How much was done a second. What fails a hundred times in a row ends it.
    fn count(&self, mut once: impl FnMut() -> Result<u64>) -> Outcome {
        let (mut done, mut failed, mut in_a_row) = (0, 0, 0);
        while Instant::now() < self.end && in_a_row < 100 {
            match once() {
                Ok(count) => (done, in_a_row) = (done + count, 0),
                Err(_) => (failed, in_a_row) = (failed + 1, in_a_row + 1),
            }
        }
        Outcome { value: done as f64 / self.start.elapsed().as_secs_f64(), failed }
    }

    /// The median of what single calls take.
    fn time(&self, mut once: impl FnMut(u32) -> Result<Duration>) -> Outcome {
        let (mut all, mut failed) = (Vec::new(), 0);
        for number in 0.. {
            if Instant::now() >= self.end {
                break;
            }
            match once(number) {
                Ok(time) => all.push(time),
                Err(_) => failed += 1,
            }
        }
        all.sort_unstable();
        let median = all.get(all.len() / 2).copied().unwrap_or_default();
        Outcome { value: median.as_nanos() as f64, failed }
    }
}

fn plain(kind: SockType) -> Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None)?)
}

fn new(kind: SockType, to: SocketAddrV4) -> Result<OwnedFd> {
    let socket = plain(kind)?;
    if kind == SockType::Stream {
        setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
    }
    connect(socket.as_raw_fd(), &SockaddrIn::from(to))?;
    Ok(socket)
}

fn short(to: SocketAddrV4, request: &[u8], answer: &mut [u8]) -> Result<usize> {
    let socket = plain(SockType::Stream)?;
    setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
    setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(to))?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(request)?;
    stream.read(answer)
}

fn long(to: SocketAddrV4) -> Result<TcpStream> {
    let stream = TcpStream::from(new(SockType::Stream, to)?);
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One answer: the head says how long the body is.
fn answer(lines: &mut BufReader<TcpStream>) -> Result<()> {
    let (mut line, mut length) = (String::new(), 0);
    loop {
        line.clear();
        if lines.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        match line.trim_end().split_once(": ") {
            Some(("Content-Length", value)) => length = value.parse().map_err(Error::other)?,
            None if line == "\r\n" => break,
            _ => {}
        }
    }
    lines.read_exact(&mut vec![0; length])
}

/// The address that is dialled at the turn of this number. The step is odd and large, so that neighbours in the tables
/// are not neighbours in time.
fn nth(to: SocketAddrV4, spread: u32, number: u32) -> SocketAddrV4 {
    const STEP: u32 = 7919;
    let offset = number.wrapping_mul(STEP).checked_rem(spread).unwrap_or(0);
    SocketAddrV4::new(Ipv4Addr::from(u32::from(*to.ip()) + offset), to.port())
}

fn timed(socket: &OwnedFd, to: SocketAddrV4) -> Result<Duration> {
    let to = SockaddrIn::from(to);
    let start = Instant::now();
    connect(socket.as_raw_fd(), &to)?;
    Ok(start.elapsed())
}

/// The address of a figure, as the command line has it.
pub(crate) fn v4(to: SocketAddr) -> Result<SocketAddrV4> {
    match to {
        SocketAddr::V4(to) => Ok(to),
        SocketAddr::V6(to) => Err(Error::other(format!("{to} is not IPv4"))),
    }
}
