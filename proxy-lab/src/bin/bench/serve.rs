//! The server of all loads: one thread, epoll, one port for TCP and UDP.
//!
//! The first byte of what comes says what is wanted: `G` an HTTP answer, `S` nothing (a stream is counted by who sends
//! it), anything else one byte back, which is the server's name.

use std::io::{ErrorKind, Read, Result, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// 100 bytes of body, as an API would answer with.
const BODY: [u8; 100] = [b'.'; 100];

enum Source {
    Listener(TcpListener),
    Stream(TcpStream),
    Datagrams(UdpSocket),
}

/// Serves until it is killed. `name` is one byte.
pub(crate) fn run(port: u16, name: u8) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let datagrams = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    listener.set_nonblocking(true)?;
    datagrams.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    // By descriptor.
    let mut sources: Vec<Option<Source>> = Vec::new();
    add(&epoll, &mut sources, Source::Listener(listener))?;
    add(&epoll, &mut sources, Source::Datagrams(datagrams))?;
    let mut head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n".to_vec();
    head.extend(BODY);
    let mut serving = Serving { name, answer: head, buffer: vec![0; 256 * 1024] };
    let mut events = [EpollEvent::empty(); 64];
    loop {
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            count => count?,
        };
        for event in &events[..count] {
            let Some(slot) = usize::try_from(event.data()).ok().and_then(|index| sources.get_mut(index))
            else {
                continue;
            };
            match slot {
                Some(Source::Listener(listener)) => {
                    let mut accepted = Vec::new();
                    while let Ok((stream, _)) = listener.accept() {
                        accepted.push(stream);
                    }
                    for stream in accepted {
                        stream.set_nonblocking(true)?;
                        stream.set_nodelay(true)?;
                        add(&epoll, &mut sources, Source::Stream(stream))?;
                    }
                }
                Some(Source::Datagrams(socket)) => {
                    while let Ok((count, from)) = socket.recv_from(&mut serving.buffer) {
                        // Who asked may be gone.
                        let _ = socket.send_to(&serving.buffer[..count], from);
                    }
                }
                Some(Source::Stream(stream)) => {
                    let goes_on = serving.goes_on(stream);
                    if !goes_on {
                        // Dropping it closes it, and ends its registration.
                        *slot = None;
                    }
                }
                None => {}
            }
        }
    }
}

fn add(epoll: &Epoll, sources: &mut Vec<Option<Source>>, source: Source) -> Result<()> {
    let fd = match &source {
        Source::Listener(it) => it.as_raw_fd(),
        Source::Stream(it) => it.as_raw_fd(),
        Source::Datagrams(it) => it.as_raw_fd(),
    };
    let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::from(fd.unsigned_abs()));
    match &source {
        Source::Listener(it) => epoll.add(it, event)?,
        Source::Stream(it) => epoll.add(it, event)?,
        Source::Datagrams(it) => epoll.add(it, event)?,
    }
    let index = fd.unsigned_abs() as usize;
    if sources.len() <= index {
        sources.resize_with(index + 1, || None);
    }
    sources[index] = Some(source);
    Ok(())
}

struct Serving {
    name: u8,
    answer: Vec<u8>,
    buffer: Vec<u8>,
}

impl Serving {
    fn goes_on(&mut self, stream: &mut TcpStream) -> bool {
        let count = match stream.read(&mut self.buffer) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        };
        match self.buffer[0] {
            b'S' => true,
            b'G' => {
                let last = self.buffer[..count].windows(5).any(|window| window == b"close");
                stream.write_all(&self.answer).is_ok() && !last
            }
            _ => stream.write_all(&[self.name]).is_ok(),
        }
    }
}
