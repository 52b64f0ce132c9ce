//! The peer's own half: makes the namespaces, then answers requests until the lab lets go of it.

use std::io::{IoSlice, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use std::collections::HashMap;

use super::{BATCH, Reply, Request, SocketKind, receive};
use crate::cgroup;
use crate::echo::Echo;

/// Never returns while the lab lives. Standard input is the socket to it.
pub(crate) fn run(mounts: bool, group: &Path) -> Result<()> {
    cgroup::join(group)?;
    let mut spaces = CloneFlags::CLONE_NEWNET;
    spaces.set(CloneFlags::CLONE_NEWNS, mounts);
    unshare(spaces).context("making namespaces (needs root)")?;
    if mounts {
        own_mounts()?;
    }
    print!("r");
    std::io::stdout().flush()?;

    let control = std::io::stdin().as_raw_fd();
    let mut servers = Servers::default();
    // An error is the end of the file: the lab has let go.
    while let Ok((text, _)) = receive(control) {
        let (reply, sockets) = match serde_json::from_slice(&text) {
            Ok(request) => servers.answer(request),
            Err(error) => (failed(0, format!("a request that is none: {error}")), Vec::new()),
        };
        let text = serde_json::to_vec(&reply)?;
        let raw: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let rights = if raw.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<UnixAddr>(control, &[IoSlice::new(&text)], rights, MsgFlags::MSG_NOSIGNAL, None)?;
    }
    Ok(())
}

/// A node sees its own pins and its own `/run`, and everything else as the machine does: cgroup2 stays visible.
fn own_mounts() -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("making mounts private")?;
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none)
        .context("mounting a bpffs on /sys/fs/bpf")?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).context("mounting a tmpfs on /run")
}

#[derive(Debug, Default)]
struct Servers {
    running: HashMap<usize, Echo>,
    next: usize,
}

impl Servers {
    fn answer(&mut self, request: Request) -> (Reply, Vec<OwnedFd>) {
        match request {
            Request::Sockets { kind, count } => match open(kind, count.min(BATCH)) {
                Ok(sockets) => (Reply::Sockets, sockets),
                Err(errno) => (failed(errno as i32, format!("opening {count} sockets {kind:?}")), Vec::new()),
            },
            Request::Serve { who, addresses, tcp, udp } => {
                let reply = match Echo::start(&who, &addresses, &tcp, &udp) {
                    Ok(echo) => {
                        self.next += 1;
                        self.running.insert(self.next, echo);
                        Reply::Serving { server: self.next }
                    }
                    Err(error) => failed(0, format!("{error:#}")),
                };
                (reply, Vec::new())
            }
            Request::Stop { server } => {
                drop(self.running.remove(&server));
                (Reply::Stopped, Vec::new())
            }
        }
    }
}

fn open(kind: SocketKind, count: usize) -> Result<Vec<OwnedFd>, Errno> {
    (0..count).map(|_| open_one(kind)).collect()
}

fn open_one(kind: SocketKind) -> Result<OwnedFd, Errno> {
    use std::os::fd::FromRawFd;
    // SAFETY: socket(2) takes three numbers and touches no memory of ours.
    let fd = unsafe { libc::socket(kind.domain, kind.kind | libc::SOCK_CLOEXEC, kind.protocol) };
    let fd = Errno::result(fd)?;
    // SAFETY: socket(2) has just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn failed(errno: i32, text: String) -> Reply {
    Reply::Failed { errno, text }
}
