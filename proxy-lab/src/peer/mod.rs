//! The process that holds a place: its namespaces live as long as it does, and it opens the place's sockets.
//!
//! A socket belongs to the namespace and the cgroup of the process that called socket(2), whoever holds it later.
//! So the peer makes sockets and passes them (SCM_RIGHTS), and everything else (connect, send, getpeername, …) is a
//! plain call in the test's own process on a socket that the kernel takes for the pod's. Requests and replies are JSON,
//! one a message of a SOCK_SEQPACKET pair.

pub(crate) mod host;

use std::io::{IoSliceMut, Read, Result};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, send, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::role;

/// The most descriptors one message carries (SCM_MAX_FD of the kernel is 253).
pub(crate) const BATCH: usize = 64;
/// The longest message.
const MESSAGE: usize = 64 * 1024;

/// A socket's arguments as socket(2) takes them.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct SocketKind {
    /// AF_INET, AF_INET6, AF_PACKET, …
    pub domain: i32,
    /// SOCK_STREAM, SOCK_DGRAM, SOCK_RAW.
    pub kind: i32,
    /// 0, or what goes with the two.
    pub protocol: i32,
}

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// `count` sockets, at most [`BATCH`].
    Sockets { kind: SocketKind, count: usize },
    /// Echo servers on each address.
    Serve { who: String, addresses: Vec<IpAddr>, tcp: Vec<u16>, udp: Vec<u16> },
    /// Stop what a `Serve` began.
    Stop { server: usize },
}

#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    /// With the descriptors.
    Sockets,
    Serving {
        server: usize,
    },
    Stopped,
    /// The errno, or 0, and what was attempted.
    Failed {
        errno: i32,
        text: String,
    },
}

/// The lab's end of a peer.
#[derive(Debug)]
pub(crate) struct Peer {
    pid: u32,
    child: Mutex<Child>,
    control: Mutex<OwnedFd>,
}

impl Peer {
    /// Starts a peer in a network namespace of its own and in the given group; with `mounts` also in a mount namespace
    /// of its own. Its namespaces exist, and its loopback is up, when this returns.
    pub(crate) fn start(mounts: bool, cgroup: &Path) -> anyhow::Result<Self> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let mut child = role::command("peer")?
            .arg(if mounts { "mounts" } else { "-" })
            .arg(cgroup)
            .stdin(theirs)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut ready = [0; 1];
        let stdout = child.stdout.as_mut().map(|stdout| stdout.read_exact(&mut ready));
        if !matches!(stdout, Some(Ok(()))) {
            anyhow::bail!("a peer in {} ended at once: {}", cgroup.display(), child.wait()?);
        }
        Ok(Self { pid: child.id(), child: Mutex::new(child), control: Mutex::new(ours) })
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Sockets of the place: at most [`BATCH`].
    pub(crate) fn sockets(&self, kind: SocketKind, count: usize) -> Result<Vec<OwnedFd>> {
        match self.ask(&Request::Sockets { kind, count })? {
            (Reply::Sockets, sockets) if sockets.len() == count => Ok(sockets),
            (reply, sockets) => Err(unexpected(&reply, sockets.len())),
        }
    }

    /// Echo servers on each of `addresses`; the number stops them.
    pub(crate) fn serve(&self, who: &str, addresses: &[IpAddr], tcp: &[u16], udp: &[u16]) -> Result<usize> {
        let (who, addresses) = (who.to_owned(), addresses.to_vec());
        match self.ask(&Request::Serve { who, addresses, tcp: tcp.to_vec(), udp: udp.to_vec() })? {
            (Reply::Serving { server }, _) => Ok(server),
            (reply, sockets) => Err(unexpected(&reply, sockets.len())),
        }
    }

    /// Stops servers: their sockets are closed when this returns.
    pub(crate) fn stop(&self, server: usize) -> Result<()> {
        match self.ask(&Request::Stop { server })? {
            (Reply::Stopped, _) => Ok(()),
            (reply, sockets) => Err(unexpected(&reply, sockets.len())),
        }
    }

    /// Kills the process: the place's servers are gone, and its namespaces as soon as nothing else is in them.
    pub(crate) fn kill(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // Failing means that it has ended.
        let _ = child.kill();
        let _ = child.wait();
    }

    fn ask(&self, request: &Request) -> Result<(Reply, Vec<OwnedFd>)> {
        let control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let text = serde_json::to_vec(request)?;
        send(control.as_raw_fd(), &text, MsgFlags::MSG_NOSIGNAL)?;
        let (text, sockets) = receive(control.as_raw_fd())?;
        match serde_json::from_slice(&text)? {
            Reply::Failed { errno: 0, text } => Err(std::io::Error::other(text)),
            Reply::Failed { errno, text } => Err(failure(errno, &text)),
            reply => Ok((reply, sockets)),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One message and the descriptors that came with it.
fn receive(control: RawFd) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut text = vec![0; MESSAGE];
    let mut space = nix::cmsg_space!([RawFd; BATCH]);
    let mut parts = [IoSliceMut::new(&mut text)];
    let message = recvmsg::<UnixAddr>(control, &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut sockets = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = part {
            // SAFETY: the kernel has just made these descriptors for this process; nothing else knows them.
            sockets.extend(descriptors.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let length = message.bytes;
    if length == 0 {
        return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the lab's peer has ended"));
    }
    text.truncate(length);
    Ok((text, sockets))
}

fn failure(errno: i32, text: &str) -> std::io::Error {
    let kind = std::io::Error::from_raw_os_error(errno);
    std::io::Error::new(kind.kind(), format!("{text}: {kind}"))
}

fn unexpected(reply: &Reply, sockets: usize) -> std::io::Error {
    std::io::Error::other(format!("the lab's peer answered {reply:?} with {sockets} sockets"))
}
