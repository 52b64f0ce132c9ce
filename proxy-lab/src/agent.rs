//! The real `vipr` in a node of the lab.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use vipr::report::Report;

use crate::cluster::Cluster;
use crate::control_plane::Kubectl;
use crate::dial::Waiting;
use crate::lab::Node;
use crate::manifest::{Manifests, Service};
use crate::topology::Family;
use crate::wait;

/// Where nodes see vipr's pins.
pub const PIN_PATH: &str = "/sys/fs/bpf/vipr";
/// The target port of the Service that [`Agent::settle`] writes, on each node's host.
const CANARY_TARGET: u16 = 20_999;

/// The binary under test: `VIPR_BIN`, else `vipr` beside the running executable.
///
/// # Errors
/// There is none; the message says how to get one.
pub fn vipr_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("VIPR_BIN") {
        return Ok(path.into());
    }
    let this = std::env::current_exe().context("finding the running executable")?;
    // Tests run from target/debug/deps.
    let folders = this.ancestors().skip(1).take(2);
    match folders.map(|folder| folder.join("vipr")).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => {
            bail!("no vipr beside {}: `cargo xtask build` builds it, VIPR_BIN names another", this.display())
        }
    }
}

/// A running agent. Dropping it kills it; what it attached stays until the lab ends. Its log is printed if a test fails.
#[derive(Debug)]
pub struct Agent<'lab> {
    node: &'lab Node,
    feed: Feed<'lab>,
    child: Child,
    log: PathBuf,
    canaries: Cell<u16>,
}

/// What it is fed from.
#[derive(Clone, Debug)]
enum Feed<'lab> {
    Folder(&'lab Manifests),
    ApiServer(Kubectl),
}

impl<'lab> Agent<'lab> {
    /// Starts `vipr run` in `node`, fed from `manifests`.
    ///
    /// # Errors
    /// There is no binary.
    pub fn start(node: &'lab Node, manifests: &'lab Manifests) -> Result<Self> {
        Self::start_with(node, manifests, &[])
    }

    /// The same with more arguments.
    ///
    /// # Errors
    /// There is no binary.
    pub fn start_with(node: &'lab Node, manifests: &'lab Manifests, more: &[&str]) -> Result<Self> {
        let folder = manifests.folder().to_string_lossy();
        let arguments = [&["--manifests", folder.as_ref()], more].concat();
        Self::launch(node, Feed::Folder(manifests), &arguments, &[])
    }

    /// Starts `vipr run` in `node`, fed from the API server of `cluster` by the chart's ServiceAccount.
    ///
    /// # Errors
    /// There is no binary.
    pub fn start_on(node: &'lab Node, cluster: &Cluster<'lab>) -> Result<Self> {
        let kubeconfig = cluster.kubeconfig().to_string_lossy();
        Self::start_on_with(node, cluster, &["--kubeconfig", &kubeconfig], &[])
    }

    /// The same with nothing but these arguments and variables to find the API server by.
    ///
    /// # Errors
    /// There is no binary.
    pub fn start_on_with(
        node: &'lab Node,
        cluster: &Cluster<'lab>,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        Self::launch(node, Feed::ApiServer(cluster.kubectl()), arguments, variables)
    }

    fn launch(
        node: &'lab Node,
        feed: Feed<'lab>,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let log = (1..).map(|number| node.folder().join(format!("vipr-{number}.log")));
        let log = log.into_iter().find(|path| !path.exists()).context("a name for the log")?;
        let output = File::create(&log).with_context(|| format!("making {}", log.display()))?;
        let child = node
            .command(vipr_binary()?)?
            .args(["run", "--hostname-override", node.name(), "--pin-path", PIN_PATH])
            .arg("--cgroup")
            .arg(node.node_cgroup())
            .args(arguments)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting vipr in {}", node.name()))?;
        Ok(Self { node, feed, child, log, canaries: Cell::new(0) })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until everything written to the manifests, or applied to the cluster, before this call is in the tables.
    ///
    /// Asks nothing of vipr: a Service written last answers when it was read. A reader of the folder may have read an
    /// older object in the same pass, so a second Service, written after the first has answered, is waited for too: it
    /// was read in a pass that began after this call. An API server tells each kind in order: one Service with a slice
    /// is enough.
    ///
    /// # Errors
    /// It does not answer, or the agent has ended; with the log.
    pub fn settle(&self) -> Result<()> {
        let server = self.node.serve_on(&[self.node.address(Family::V4)], &[CANARY_TARGET], &[])?;
        for _ in 0..if matches!(self.feed, Feed::Folder(_)) { 2 } else { 1 } {
            let number = self.canaries.get() + 1;
            self.canaries.set(number);
            // Another agent of this node may have left its own: another process, other ports.
            let port = 1024 + u16::try_from(self.pid() % 500).unwrap_or(0) * 32 + number % 32;
            let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 255, 1)) + self.number());
            let canary = Service::new(&format!("canary-{}", self.node.name()));
            let canary = canary.cluster_ip(&address.to_string()).tcp(port, CANARY_TARGET);
            let canary = canary.endpoints([&**self.node]);
            match &self.feed {
                Feed::Folder(manifests) => manifests.apply(&canary)?,
                Feed::ApiServer(kubectl) => drop(kubectl.apply(&canary.list().to_string())?),
            }
            self.answers((address, port).into())?;
        }
        Ok(server.stop()?)
    }

    /// The address of a canary is its node's own.
    fn number(&self) -> u32 {
        match self.node.address(Family::V4) {
            std::net::IpAddr::V4(address) => u32::from(address.octets()[3]),
            std::net::IpAddr::V6(_) => 0,
        }
    }

    fn answers(&self, canary: SocketAddr) -> Result<()> {
        // Longer than an agent waits between two calls to an API server that was away.
        let limit = 3 * wait::LIMIT;
        wait::until_within(limit, &format!("vipr in {} serves what was written", self.node.name()), || {
            ensure!(self.is_running(), "it has ended; its log:\n{}", self.log());
            match self.node.ask_tcp(canary) {
                Ok(_) => Ok(()),
                Err(error) => bail!("{canary}: {error}; the log:\n{}", self.log()),
            }
        })
    }

    /// Whether its process exists and has not ended.
    pub fn is_running(&self) -> bool {
        let state = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        // The state follows the name, which is in parentheses; see proc_pid_stat(5).
        state.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
    }

    /// SIGTERM, and its status when it has ended.
    ///
    /// # Errors
    /// It does not end; with the log.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait()
    }

    /// SIGKILL, and waits for it.
    ///
    /// # Errors
    /// It does not end.
    pub fn kill(mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL)?;
        self.wait()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.pid().try_into()?);
        kill(pid, signal).with_context(|| format!("{signal} to vipr"))
    }

    /// Waits until it ends by itself, or after [`Self::signal`].
    ///
    /// # Errors
    /// It does not; with the log.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let (child, log) = (&mut self.child, &self.log);
        wait::until("vipr ends", || {
            child.try_wait()?.with_context(|| format!("still running; the log:\n{}", read(log)))
        })
    }

    /// What it says of itself on its socket.
    ///
    /// # Errors
    /// It does not listen yet.
    pub fn report(&self) -> Result<Report> {
        let folder = PathBuf::from(format!("/proc/{}/root/run/vipr", self.node.pid()));
        let files = fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
        let mut paths = files.filter_map(|file| Some(file.ok()?.path()));
        let socket = paths.find(|path| path.extension().is_some_and(|extension| extension == "sock"));
        let mut stream = UnixStream::connect(socket.context("no socket yet")?)?;
        // HTTP/1.0: the answer ends where the connection does.
        stream.write_all(b"GET /report HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (_, body) = text.split_once("\r\n\r\n").context("an answer without an end of its head")?;
        serde_json::from_str(body).with_context(|| format!("{body} is no report"))
    }

    /// GET by HTTP on 127.0.0.1 of its node: status and body.
    ///
    /// # Errors
    /// Nobody listens, or what answers does not speak HTTP.
    pub fn get(&self, port: u16, path: &str) -> Result<(u16, String)> {
        let stream = self.node.connect((Ipv4Addr::LOCALHOST, port).into(), Waiting::Blocking)?;
        let mut stream: &TcpStream = stream.socket();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").context("an answer without an end of its head")?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.with_context(|| format!("{head} is not HTTP"))?, body.to_owned()))
    }
}

fn read(log: &PathBuf) -> String {
    fs::read_to_string(log).unwrap_or_default()
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        // Failing means that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("── vipr in {} said:\n{}──", self.node.name(), self.log());
        }
    }
}

impl Node {
    /// Runs `vipr` with these arguments in the node, to its end.
    ///
    /// # Errors
    /// It could not run.
    pub fn vipr_output(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command(vipr_binary()?)?;
        command.args(arguments).output().with_context(|| format!("vipr {}", arguments.join(" ")))
    }

    /// What `vipr` with these arguments prints.
    ///
    /// # Errors
    /// Its status is not 0; with what it said.
    pub fn vipr(&self, arguments: &[&str]) -> Result<String> {
        let output = self.vipr_output(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "vipr {}: {}: {said}", arguments.join(" "), output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The same with `-o json`, read.
    ///
    /// # Errors
    /// Its status is not 0, or it is not JSON.
    pub fn vipr_json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.vipr(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("vipr {}: {text}", arguments.join(" ")))
    }

    /// What a pinned map holds as bpftool reads it, with the names of its fields.
    ///
    /// # Errors
    /// There is no such pin, or it has no BTF.
    pub fn pinned_map(&self, name: &str) -> Result<Value> {
        let text =
            self.run("bpftool", &["--json", "map", "dump", "pinned", &format!("{PIN_PATH}/{name}")])?;
        serde_json::from_str(&text).with_context(|| format!("bpftool of {name}: {text}"))
    }
}
