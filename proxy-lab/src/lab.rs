//! A running lab: builds the places of a topology, and leaves nothing when it ends.

use std::fs;
use std::io::{BufRead, BufReader};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use anyhow::{Context, Result, anyhow, ensure};
use nix::errno::Errno;

use crate::agent::PIN_PATH;
use crate::cgroup;
use crate::counters::strays;
use crate::dial::{Waiting, errno};
use crate::place::Place;
use crate::role;
use crate::topology::{
    Dual, Family, SINK, Topology, client_address, gateway_address, node_address, pod_address, second_address,
};
use crate::wait;
use crate::wire::Wires;

/// If this is in the environment, a lab whose test fails stays, to be looked at, until Ctrl-C.
const KEEP: &str = "VIPR_LAB_KEEP";

/// Labs of this process so far.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A set of connected namespaces. Ends when dropped: every process, cgroup, namespace, mount and file is gone then,
/// and also if the process panics, is interrupted, or is killed.
#[derive(Debug)]
pub struct Lab {
    tag: String,
    folder: PathBuf,
    cgroup: PathBuf,
    sink: Place,
    nodes: Vec<Node>,
    clients: Vec<Place>,
    errors_expected: AtomicBool,
    /// What the sink got before it had addresses: the kernel's own announcements.
    strays_of_start: u64,
    // After the places: what is still in their cgroups is ended by the reaper.
    reaper: Reaper,
}

/// A node: its host's namespaces, and its pods.
#[derive(Debug)]
pub struct Node {
    host: Place,
    cgroup: PathBuf,
    folder: PathBuf,
    pods: Vec<Place>,
}

impl Deref for Node {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.host
    }
}

impl Node {
    /// The root of its cgroups: what is attached here sees the sockets of the host and of all its pods, and no others.
    pub fn node_cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Where vipr pins on this node, as everybody outside of it finds the place.
    pub fn pin_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{PIN_PATH}", self.pid()))
    }

    /// Its pods, in the topology's order.
    pub fn pods(&self) -> &[Place] {
        &self.pods
    }

    /// Its folder for logs and other files; removed with the lab.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Lab {
    /// Builds it. Each place can reach its gateway in both families when this returns.
    ///
    /// # Errors
    /// Not root, a tool is missing (ip, ethtool), or cgroup2 is not mounted.
    pub fn start(topology: &Topology) -> Result<Self> {
        let tag = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let name = format!("{}{tag}", cgroup::PREFIX);
        let root = cgroup::mount_point()?;
        cgroup::sweep(&root, &std::env::temp_dir()).context("sweeping what killed labs left")?;
        let (folder, group) = (std::env::temp_dir().join(&name), root.join(&name));
        let reaper = Reaper::start(&group, &folder)?;
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;

        let place = |group: &Path, name: &str, node: Option<&str>, addresses: Vec<Dual>| {
            let is_host = node == Some(name);
            let leaf = if is_host { group.join("host") } else { group.join(format!("pod-{name}")) };
            cgroup::make(&leaf)?;
            Place::start(name, is_host, leaf, addresses, node.map(str::to_owned))
        };
        let outside = group.join("outside");
        let sink = place(&outside, "sink", None, vec![SINK])?;
        let mut nodes = Vec::new();
        for (number, plan) in topology.nodes.iter().enumerate() {
            let group = group.join(&plan.name);
            let folder = folder.join(&plan.name);
            fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
            let own = [node_address(number), second_address(number), gateway_address(number)];
            let host = place(&group, &plan.name, Some(&plan.name), own.into())?;
            let pods = plan.pods.iter().enumerate();
            let pods =
                pods.map(|(pod, name)| place(&group, name, Some(&plan.name), vec![pod_address(number, pod)]));
            nodes.push(Node { host, cgroup: group.clone(), folder, pods: pods.collect::<Result<_>>()? });
        }
        let clients = topology.clients.iter().enumerate();
        let clients = clients.map(|(number, name)| place(&outside, name, None, vec![client_address(number)]));
        let clients = clients.collect::<Result<_>>()?;

        let mut lab = Self {
            tag,
            folder,
            cgroup: group,
            sink,
            nodes,
            clients,
            errors_expected: AtomicBool::new(false),
            strays_of_start: 0,
            reaper,
        };
        let wires = Wires {
            topology,
            sink: &lab.sink,
            nodes: lab.nodes.iter().map(|node| &node.host).collect(),
            pods: lab.nodes.iter().map(|node| node.pods.iter().collect()).collect(),
            clients: lab.clients.iter().collect(),
        };
        wires.connect()?;
        lab.wait_until_connected()?;
        lab.strays_of_start = lab.strays()?;
        Ok(lab)
    }

    /// What its cgroup and its folder are called after `vipr-lab-`.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Its folder for files of tests, gone with it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The root of its cgroups.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// All nodes, in the topology's order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node of this name.
    ///
    /// # Panics
    /// The topology has none.
    pub fn node(&self, name: &str) -> &Node {
        let found = self.nodes.iter().find(|node| node.name() == name);
        found.unwrap_or_else(|| panic!("the lab has no node {name}"))
    }

    /// The pod or client of this name.
    ///
    /// # Panics
    /// The topology has none.
    pub fn place(&self, name: &str) -> &Place {
        let mut all = self.places();
        all.find(|place| place.name() == name).unwrap_or_else(|| panic!("the lab has no {name}"))
    }

    /// Every node's host, every pod, every client, and the sink.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        let nodes = self.nodes.iter().flat_map(|node| [&node.host].into_iter().chain(&node.pods));
        nodes.chain(&self.clients).chain([&self.sink])
    }

    /// The bridge that joins nodes and clients, and the end of every route: forwards nothing.
    pub fn sink(&self) -> &Place {
        &self.sink
    }

    /// For tests that break packets, or let them stray, on purpose: their end does not look at the counters.
    pub fn expect_errors(&self) {
        self.errors_expected.store(true, Ordering::Relaxed);
    }

    /// How many packets, of any family, left a node or client for an address that nobody in the lab has.
    ///
    /// # Errors
    /// The sink was killed.
    pub fn strays(&self) -> Result<u64> {
        Ok(strays(self.sink.pid())? - self.strays_of_start)
    }

    /// That no namespace has counted a broken packet, and that nothing went astray. Also done when the lab is dropped.
    ///
    /// # Errors
    /// The counters of the places that have, or the number of strays.
    pub fn check(&self) -> Result<()> {
        // A place that was killed on purpose has no counters any more.
        let counted = self.places().filter_map(|place| Some((place.name(), place.errors().ok()?)));
        let broken: Vec<_> = counted.filter(|(_, errors)| !errors.is_empty()).collect();
        ensure!(broken.is_empty(), "broken packets were counted: {broken:?}");
        let strays = self.strays()?;
        ensure!(strays == 0, "{strays} packets left their node for addresses that nobody has");
        Ok(())
    }

    /// Says how to enter, and never returns.
    fn keep(&self) {
        eprintln!("lab {} is kept ({KEEP}); Ctrl-C ends it. To enter:", self.tag);
        for place in self.places() {
            eprintln!("  {:>12}: nsenter --target {} --net --mount", place.name(), place.pid());
        }
        loop {
            std::thread::park();
        }
    }

    /// Links come up some time after they are told to: each place dials a closed port of its gateway until it is refused.
    fn wait_until_connected(&self) -> Result<()> {
        for (number, node) in self.nodes.iter().enumerate() {
            until_connected(&node.host, SINK)?;
            for pod in &node.pods {
                until_connected(pod, gateway_address(number))?;
            }
        }
        self.clients.iter().try_for_each(|client| until_connected(client, SINK))
    }
}

fn until_connected(place: &Place, gateway: Dual) -> Result<()> {
    for family in Family::ALL {
        let to = (gateway.of(family), 1).into();
        wait::until(&format!("{} reaches its gateway {to}", place.name()), || {
            match place.connect(to, Waiting::Blocking) {
                Err(error) if errno(&error) == Errno::ECONNREFUSED as i32 => Ok(()),
                Err(error) => Err(error.into()),
                Ok(_) => Err(anyhow!("something listens there")),
            }
        })?;
    }
    Ok(())
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os(KEEP).is_some() {
            self.keep();
        }
        // Before the places go, for their counters go with them.
        let checked = self.check();
        self.places().for_each(Place::kill);
        let reaped = self.reaper.reap();
        if std::thread::panicking() {
            if let Err(error) = reaped {
                eprintln!("lab {}: {error:#}", self.tag);
            }
            return;
        }
        reaped.unwrap_or_else(|error| panic!("lab {}: {error:#}", self.tag));
        if !self.errors_expected.load(Ordering::Relaxed) {
            checked.unwrap_or_else(|error| panic!("lab {}: {error:#}", self.tag));
        }
    }
}

/// The process that outlives this one for as long as it takes to clear up.
#[derive(Debug)]
struct Reaper {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Reaper {
    /// Ready to reap when this returns, and before there is anything to reap.
    fn start(cgroup: &Path, folder: &Path) -> Result<Self> {
        let mut command = role::command("reap")?;
        let mut child = command
            .args([cgroup, folder])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the reaper")?;
        let pipe = child.stdin.take();
        let stdout = child.stdout.take().context("the reaper's standard output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line == "ready\n", "the reaper ended at once: {}", child.wait()?);
        Ok(Self { child, pipe })
    }

    /// Everything is gone when this returns.
    fn reap(&mut self) -> Result<()> {
        drop(self.pipe.take());
        let status = self.child.wait().context("waiting for the reaper")?;
        ensure!(status.success(), "the reaper left something: {status}");
        Ok(())
    }
}

impl Drop for Reaper {
    fn drop(&mut self) {
        // Where a lab was built half: there is nobody left to tell.
        if let Err(error) = self.reap() {
            eprintln!("lab: {error:#}");
        }
    }
}
