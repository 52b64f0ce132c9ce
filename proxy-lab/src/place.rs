//! A place where programs run: a node's host, a pod, or a client outside. Each is a network namespace and a cgroup.

use std::fs::File;
use std::io::{Result, Write};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, ensure};
use nix::sched::{CloneFlags, setns};

use crate::counters::{Errors, errors};
use crate::peer::{Peer, SocketKind};
use crate::role;
use crate::topology::{Dual, Family};

/// One network namespace with its cgroup, held by a process of its own.
#[derive(Debug)]
pub struct Place {
    name: String,
    peer: Arc<Peer>,
    cgroup: PathBuf,
    mounts: bool,
    addresses: Vec<Dual>,
    node: Option<String>,
}

/// Echo servers at a place. They go on until [`Serving::stop`], or with the place.
#[derive(Debug)]
pub struct Serving {
    peer: Arc<Peer>,
    server: usize,
}

impl Serving {
    /// Closes the servers' sockets and their connections.
    ///
    /// # Errors
    /// The place was killed.
    pub fn stop(self) -> Result<()> {
        self.peer.stop(self.server)
    }
}

impl Place {
    pub(crate) fn start(
        name: &str,
        mounts: bool,
        cgroup: PathBuf,
        addresses: Vec<Dual>,
        node: Option<String>,
    ) -> anyhow::Result<Self> {
        let peer = Peer::start(mounts, &cgroup).with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), peer: Arc::new(peer), cgroup, mounts, addresses, node })
    }

    /// Its name in the topology.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node it is, or is on.
    pub fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// The process that holds its namespaces: `nsenter --target PID --net` enters by hand.
    pub fn pid(&self) -> u32 {
        self.peer.pid()
    }

    /// The cgroup its processes and sockets are in.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Its main address of `family`.
    pub fn address(&self, family: Family) -> IpAddr {
        self.addresses[0].of(family)
    }

    /// All its addresses of `family` but loopback's, the main one first.
    pub fn addresses(&self, family: Family) -> Vec<IpAddr> {
        self.addresses.iter().map(|dual| dual.of(family)).collect()
    }

    pub(crate) fn duals(&self) -> &[Dual] {
        &self.addresses
    }

    /// A command that will run at this place: in its namespaces and its cgroup. It is killed when the lab ends.
    ///
    /// # Errors
    /// The program that enters places was not found.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> anyhow::Result<Command> {
        let mut command = role::command("enter")?;
        command.arg(self.pid().to_string());
        command.arg(if self.mounts { "mounts" } else { "-" });
        command.arg(&self.cgroup).arg(program);
        Ok(command)
    }

    /// Runs a command to its end and returns what it printed.
    ///
    /// # Errors
    /// It could not run, or its status was not 0: then with what it said on standard error.
    pub fn run(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let line = || format!("{}: {program} {}", self.name, arguments.join(" "));
        let output = self.command(program)?.args(arguments).output().with_context(line)?;
        ensure!(
            output.status.success(),
            "{} ended with {}: {}{}",
            line(),
            output.status,
            String::from_utf8_lossy(&output.stderr),
            String::from_utf8_lossy(&output.stdout)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `ip` once for all `lines`, for instance `route add 10.96.0.1 dev eth0`.
    ///
    /// # Errors
    /// A line failed.
    pub fn ip(&self, lines: &[String]) -> anyhow::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let mut ip = self.command("ip")?;
        let mut child = ip.args(["-batch", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let text = lines.join("\n") + "\n";
        child.stdin.take().context("ip's standard input")?.write_all(text.as_bytes())?;
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: ip -batch failed: {said}of\n{text}", self.name);
        Ok(())
    }

    /// Runs `f` on a thread in this place's network namespace. For netlink, `/proc/sys/net` and packet sockets: the
    /// thread stays in the cgroup of this process, so a socket that vipr is to serve comes from [`Self::socket`].
    ///
    /// # Errors
    /// The namespace is gone.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let path = format!("/proc/{}/ns/net", self.pid());
        let namespace = File::open(&path).with_context(|| format!("opening {path} of {}", self.name))?;
        let run = || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("entering the namespace of {}", self.name))?;
            Ok(f())
        };
        std::thread::scope(|scope| match scope.spawn(run).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// A socket made by a process of this place: it belongs to the place's namespace and cgroup for good.
    ///
    /// # Errors
    /// socket(2) failed, or the place was killed.
    pub fn socket(&self, kind: SocketKind) -> Result<OwnedFd> {
        self.peer.sockets(kind, 1)?.pop().ok_or_else(|| std::io::Error::other("no socket came"))
    }

    pub(crate) fn peer(&self) -> Arc<Peer> {
        Arc::clone(&self.peer)
    }

    /// Echo servers on the given ports of every address of this place, loopback too.
    ///
    /// # Errors
    /// A port is taken.
    pub fn serve(&self, tcp: &[u16], udp: &[u16]) -> Result<Serving> {
        let own = self.addresses.iter().flat_map(|dual| dual.both());
        let loopback = [IpAddr::from([127, 0, 0, 1]), IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])];
        self.serve_on(&own.chain(loopback).collect::<Vec<_>>(), tcp, udp)
    }

    /// Echo servers on the given ports of the given addresses.
    ///
    /// # Errors
    /// A port is taken, or an address is not this place's.
    pub fn serve_on(&self, addresses: &[IpAddr], tcp: &[u16], udp: &[u16]) -> Result<Serving> {
        let server = self.peer.serve(&self.name, addresses, tcp, udp)?;
        Ok(Serving { peer: Arc::clone(&self.peer), server })
    }

    /// Ends the place as a killed pod ends: its servers are gone and its addresses no longer answer.
    pub fn kill(&self) {
        self.peer.kill();
    }

    /// The error counters of its namespace.
    ///
    /// # Errors
    /// The place was killed.
    pub fn errors(&self) -> anyhow::Result<Errors> {
        errors(self.pid()).with_context(|| format!("the error counters of {}", self.name))
    }
}
