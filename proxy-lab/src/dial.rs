//! Clients: plain system calls on sockets of a place. The family of a socket is that of the address it dials, so
//! `[::ffff:10.96.0.1]:80` is dialled by an AF_INET6 socket.

use std::io::{BufRead, BufReader, Error, ErrorKind, Result, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockaddrStorage, connect, sockopt};

use crate::echo::Answer;
use crate::peer::SocketKind;
use crate::place::Place;
use crate::topology::Family;

/// How long one call may take before it is given up. Nothing in a lab is far away.
pub const CALL_LIMIT: Duration = Duration::from_secs(5);

/// How connect(2) is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Waiting {
    /// It returns when the connection stands, or not.
    Blocking,
    /// It returns EINPROGRESS, and poll(2) and SO_ERROR tell the rest.
    NonBlocking,
}

impl Waiting {
    /// Both, for matrices.
    pub const ALL: [Self; 2] = [Self::Blocking, Self::NonBlocking];
}

/// A TCP connection to an echo server.
#[derive(Debug)]
pub struct Stream {
    lines: BufReader<TcpStream>,
}

/// The errno of a failed call; 0 where there was none, as when a server closed the connection.
pub fn errno(error: &Error) -> i32 {
    error.raw_os_error().unwrap_or(0)
}

/// `address` as an IPv6 socket dials an IPv4 host: `::ffff:a.b.c.d`.
pub fn mapped(address: Ipv4Addr) -> IpAddr {
    address.to_ipv6_mapped().into()
}

impl Place {
    /// A TCP connection to `to`.
    ///
    /// # Errors
    /// That of connect(2), with its errno ([`errno`]).
    pub fn connect(&self, to: SocketAddr, waiting: Waiting) -> Result<Stream> {
        Stream::connect(self.socket(stream_kind(to))?, to, waiting)
    }

    /// The same from a socket that is bound to `from`; port 0: any.
    ///
    /// # Errors
    /// That of bind(2) or connect(2).
    pub fn connect_from(&self, from: SocketAddr, to: SocketAddr, waiting: Waiting) -> Result<Stream> {
        let socket = self.socket(stream_kind(to))?;
        nix::sys::socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
        Stream::connect(socket, to, waiting)
    }

    /// Connects and reads who answers; the connection is closed by a reset, so it leaves no TIME_WAIT.
    ///
    /// # Errors
    /// That of connect(2) or recv(2).
    pub fn ask_tcp(&self, to: SocketAddr) -> Result<Answer> {
        self.connect(to, Waiting::Blocking)?.answer()
    }

    /// A UDP socket that is neither bound nor connected. Its calls time out after [`CALL_LIMIT`].
    ///
    /// # Errors
    /// The place was killed.
    pub fn datagrams(&self, family: Family) -> Result<Datagrams> {
        let domain = if family == Family::V4 { libc::AF_INET } else { libc::AF_INET6 };
        let socket = self.socket(SocketKind { domain, kind: libc::SOCK_DGRAM, protocol: 0 })?;
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(CALL_LIMIT))?;
        socket.set_write_timeout(Some(CALL_LIMIT))?;
        Ok(Datagrams { socket })
    }

    /// The same with a fixed source port, on the wildcard address.
    ///
    /// # Errors
    /// The port is taken.
    pub fn datagrams_from(&self, family: Family, port: u16) -> Result<Datagrams> {
        let any: IpAddr =
            if family == Family::V4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        self.datagrams_at((any, port).into())
    }

    /// The same bound to an address; port 0: any.
    ///
    /// # Errors
    /// The port is taken, or the address is not this place's.
    pub fn datagrams_at(&self, address: SocketAddr) -> Result<Datagrams> {
        let datagrams = self.datagrams(Family::of(address.ip()))?;
        nix::sys::socket::bind(datagrams.socket.as_raw_fd(), &SockaddrStorage::from(address))?;
        Ok(datagrams)
    }

    /// One datagram from a fresh unconnected socket, and who answers.
    ///
    /// # Errors
    /// That of the calls.
    pub fn ask_udp(&self, to: SocketAddr) -> Result<Answer> {
        let datagrams = self.datagrams(Family::of(to.ip()))?;
        Ok(datagrams.ask_to(to, "who")?.0)
    }
}

/// The arguments of socket(2) for a TCP connection to `to`.
pub(crate) fn stream_kind(to: SocketAddr) -> SocketKind {
    let domain = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    SocketKind { domain, kind: libc::SOCK_STREAM, protocol: 0 }
}

impl Stream {
    pub(crate) fn connect(socket: OwnedFd, to: SocketAddr, waiting: Waiting) -> Result<Self> {
        let stream = TcpStream::from(socket);
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(&stream, sockopt::Linger, &linger)?;
        // It also limits a blocking connect, see socket(7).
        stream.set_write_timeout(Some(CALL_LIMIT))?;
        stream.set_read_timeout(Some(CALL_LIMIT))?;
        let address = SockaddrStorage::from(to);
        match waiting {
            Waiting::Blocking => connect(stream.as_raw_fd(), &address)?,
            Waiting::NonBlocking => {
                stream.set_nonblocking(true)?;
                connect_polling(&stream, &address)?;
                stream.set_nonblocking(false)?;
            }
        }
        Ok(Self { lines: BufReader::new(stream) })
    }

    /// getpeername(2).
    ///
    /// # Errors
    /// The connection has ended.
    pub fn peer(&self) -> Result<SocketAddr> {
        self.socket().peer_addr()
    }

    /// getsockname(2).
    ///
    /// # Errors
    /// None in practice.
    pub fn local(&self) -> Result<SocketAddr> {
        self.socket().local_addr()
    }

    /// What the server says next: once after accept, once for each line.
    ///
    /// # Errors
    /// The connection has ended, or the server is silent for [`CALL_LIMIT`].
    pub fn answer(&mut self) -> Result<Answer> {
        let mut line = String::new();
        if self.lines.read_line(&mut line)? == 0 {
            return Err(Error::new(ErrorKind::UnexpectedEof, "the server closed the connection"));
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Sends a line and reads the answer.
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub fn ask(&mut self, line: &str) -> Result<Answer> {
        self.lines.get_mut().write_all(format!("{line}\n").as_bytes())?;
        self.answer()
    }

    /// The socket itself.
    pub fn socket(&self) -> &TcpStream {
        self.lines.get_ref()
    }
}

/// connect(2) on a non-blocking socket: poll(2) until it is writable, then SO_ERROR.
fn connect_polling(stream: &TcpStream, address: &SockaddrStorage) -> Result<()> {
    match connect(stream.as_raw_fd(), address) {
        Ok(()) => return Ok(()),
        Err(nix::errno::Errno::EINPROGRESS) => {}
        Err(errno) => return Err(errno.into()),
    }
    let deadline = Instant::now() + CALL_LIMIT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)], timeout) {
            Ok(0) => return Err(Error::from_raw_os_error(libc::ETIMEDOUT)),
            Ok(_) => return stream.take_error()?.map_or(Ok(()), Err),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// A UDP socket that talks to echo servers.
#[derive(Debug)]
pub struct Datagrams {
    socket: UdpSocket,
}

impl Datagrams {
    /// connect(2), or connect(2) again.
    ///
    /// # Errors
    /// That of the call.
    pub fn connect(&self, to: SocketAddr) -> Result<()> {
        Ok(connect(self.socket.as_raw_fd(), &SockaddrStorage::from(to))?)
    }

    /// getpeername(2).
    ///
    /// # Errors
    /// Not connected.
    pub fn peer(&self) -> Result<SocketAddr> {
        self.socket.peer_addr()
    }

    /// connect(2) with AF_UNSPEC: the socket has no peer any more.
    ///
    /// # Errors
    /// That of the call.
    pub fn disconnect(&self) -> Result<()> {
        let nobody = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
        let length = size_of::<libc::sockaddr>() as libc::socklen_t;
        // SAFETY: the address is valid for the length given.
        let result = unsafe { libc::connect(self.socket.as_raw_fd(), &raw const nobody, length) };
        if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
    }

    /// sendto(2) and recvfrom(2): the answer, and the address it came from.
    ///
    /// # Errors
    /// That of the calls; EAGAIN where no answer came within [`CALL_LIMIT`].
    pub fn ask_to(&self, to: SocketAddr, said: &str) -> Result<(Answer, SocketAddr)> {
        self.socket.send_to(said.as_bytes(), to)?;
        self.receive()
    }

    /// send(2) and recvfrom(2) on a connected socket.
    ///
    /// # Errors
    /// As [`Self::ask_to`], and ECONNREFUSED where the peer refused an earlier datagram.
    pub fn ask(&self, said: &str) -> Result<(Answer, SocketAddr)> {
        self.socket.send(said.as_bytes())?;
        self.receive()
    }

    /// recvfrom(2).
    ///
    /// # Errors
    /// As [`Self::ask_to`].
    pub fn receive(&self) -> Result<(Answer, SocketAddr)> {
        let mut buffer = [0; 65536];
        let (length, from) = self.socket.recv_from(&mut buffer)?;
        Ok((serde_json::from_slice(&buffer[..length])?, from))
    }

    /// The socket itself.
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }
}
