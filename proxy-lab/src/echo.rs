//! Echo servers that say who they are and whom they saw. One thread serves all sockets of one server.
//!
//! TCP: an [`Answer`] at once after accept, then one for each line received. UDP: one for each datagram. There is a
//! socket for each address, so an answer comes from the address that was asked.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde::{Deserialize, Serialize};

/// What an echo server says, one JSON object a line or datagram.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The place that answers.
    pub who: String,
    /// The client as the server sees it.
    pub client: SocketAddr,
    /// The server's own address and port: the target port.
    pub local: SocketAddr,
    /// What was asked.
    pub said: String,
}

/// A running server. Dropping it closes its sockets, and connections with them.
#[derive(Debug)]
pub(crate) struct Echo {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

enum Source {
    Stop,
    Listener(TcpListener),
    Stream { stream: TcpStream, client: SocketAddr, local: SocketAddr, pending: Vec<u8> },
    Datagrams(UdpSocket),
}

struct Loop {
    who: String,
    epoll: Epoll,
    sources: HashMap<u64, Source>,
    buffer: Vec<u8>,
}

impl Echo {
    /// Binds everything before it returns.
    pub(crate) fn start(who: &str, addresses: &[IpAddr], tcp: &[u16], udp: &[u16]) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut serving =
            Loop { who: who.to_owned(), epoll, sources: HashMap::new(), buffer: vec![0; 65536] };
        for &address in addresses {
            for &port in tcp {
                let listener = TcpListener::bind((address, port))
                    .with_context(|| format!("{who}: listening on {address} port {port}/TCP"))?;
                listener.set_nonblocking(true)?;
                serving.add(Source::Listener(listener))?;
            }
            for &port in udp {
                let socket = UdpSocket::bind((address, port))
                    .with_context(|| format!("{who}: binding {address} port {port}/UDP"))?;
                socket.set_nonblocking(true)?;
                serving.add(Source::Datagrams(socket))?;
            }
        }
        let (stop, stopped) = UnixStream::pair()?;
        serving.epoll.add(&stopped, EpollEvent::new(EpollFlags::EPOLLIN, key(&stopped)))?;
        serving.sources.insert(key(&stopped), Source::Stop);
        let thread = std::thread::Builder::new().name(format!("echo {who}")).spawn(move || {
            let _stopped = stopped;
            serving.run();
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic was printed by the thread.
            let _ = thread.join();
        }
    }
}

impl Loop {
    fn run(mut self) {
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => continue,
                Err(error) => return eprintln!("echo {}: epoll: {error}", self.who),
            };
            for event in &events[..count] {
                // Taken out while it is served; a connection that has ended is not put back.
                let Some(source) = self.sources.remove(&event.data()) else { continue };
                match source {
                    Source::Stop => return,
                    Source::Listener(listener) => {
                        self.accept(&listener);
                        self.sources.insert(event.data(), Source::Listener(listener));
                    }
                    Source::Datagrams(socket) => {
                        self.answer_datagrams(&socket);
                        self.sources.insert(event.data(), Source::Datagrams(socket));
                    }
                    stream @ Source::Stream { .. } => {
                        if let Some(stream) = self.answer_lines(stream) {
                            self.sources.insert(event.data(), stream);
                        }
                    }
                }
            }
        }
    }

    fn accept(&mut self, listener: &TcpListener) {
        // An error is either "no more for now" or a client that has gone before it was accepted.
        while let Ok((stream, client)) = listener.accept() {
            let Ok(local) = stream.local_addr() else { continue };
            let ready = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
            if ready.is_ok() && self.say(&stream, client, local, "") {
                // Failing drops the connection.
                let _ = self.add(Source::Stream { stream, client, local, pending: Vec::new() });
            }
        }
    }

    /// The stream again, if it goes on.
    fn answer_lines(&mut self, source: Source) -> Option<Source> {
        let Source::Stream { mut stream, client, local, mut pending } = source else { return Some(source) };
        match stream.read(&mut self.buffer) {
            Ok(0) => return None,
            Ok(count) => pending.extend_from_slice(&self.buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return None,
        }
        while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            if !self.say(&stream, client, local, String::from_utf8_lossy(&line[..end]).as_ref()) {
                return None;
            }
        }
        Some(Source::Stream { stream, client, local, pending })
    }

    fn answer_datagrams(&mut self, socket: &UdpSocket) {
        let Ok(local) = socket.local_addr() else { return };
        while let Ok((count, client)) = socket.recv_from(&mut self.buffer) {
            let said = String::from_utf8_lossy(&self.buffer[..count]).into_owned();
            // The client may be gone: that is its own affair.
            let _ = socket.send_to(&self.line(client, local, &said), client);
        }
    }

    fn say(&self, mut stream: &TcpStream, client: SocketAddr, local: SocketAddr, said: &str) -> bool {
        stream.write_all(&self.line(client, local, said)).is_ok()
    }

    fn line(&self, client: SocketAddr, local: SocketAddr, said: &str) -> Vec<u8> {
        let answer = Answer { who: self.who.clone(), client, local, said: said.to_owned() };
        let mut line = serde_json::to_vec(&answer).unwrap_or_default();
        line.push(b'\n');
        line
    }

    fn add(&mut self, source: Source) -> Result<()> {
        let fd = match &source {
            Source::Stop => return Ok(()),
            Source::Listener(listener) => listener.as_fd(),
            Source::Stream { stream, .. } => stream.as_fd(),
            Source::Datagrams(socket) => socket.as_fd(),
        };
        let key = key(fd);
        self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, key))?;
        self.sources.insert(key, source);
        Ok(())
    }
}

/// A descriptor's number, which is its own as long as it is open.
fn key(fd: impl AsFd) -> u64 {
    u64::from(fd.as_fd().as_raw_fd().unsigned_abs())
}
