//! However a lab ends, it leaves nothing: processes, cgroups, namespaces, mounts, files.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::ensure;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proxy_lab::{Lab, Topology, Wiring, cgroup, wait};

/// Set for a copy of this program that only builds a lab and waits to be ended.
const VICTIM: &str = "VIPR_LAB_VICTIM";

fn small() -> Topology {
    Topology::new(Wiring::Bridged).node("a", &["a1"]).client("outside")
}

/// What a lab consists of, as the machine sees it.
#[derive(Debug)]
struct Traces {
    /// Held open, so that no other lab's can have the same numbers.
    _namespaces: Vec<File>,
    numbers: BTreeSet<PathBuf>,
    places: Vec<PathBuf>,
}

impl Traces {
    fn of(lab: &Lab) -> Self {
        let processes: Vec<u32> = lab.places().map(|place| place.pid()).collect();
        Self::new(&processes, vec![lab.cgroup().into(), lab.folder().into()])
    }

    fn new(processes: &[u32], places: Vec<PathBuf>) -> Self {
        let mut numbers: BTreeSet<_> =
            processes.iter().flat_map(|pid| namespaces(&pid.to_string())).collect();
        for own in namespaces("self") {
            numbers.remove(&own);
        }
        let paths = processes.iter().flat_map(|pid| KINDS.map(|kind| format!("/proc/{pid}/ns/{kind}")));
        Self { _namespaces: paths.map(|path| File::open(path).unwrap()).collect(), numbers, places }
    }

    /// The namespaces that processes are in, and the paths that exist.
    fn left(&self) -> (usize, usize) {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let alive: BTreeSet<_> =
            processes.flat_map(|process| namespaces(process.file_name().to_str().unwrap())).collect();
        (self.numbers.intersection(&alive).count(), self.places.iter().filter(|path| path.exists()).count())
    }

    fn are_gone(&self) -> anyhow::Result<()> {
        ensure!(self.left() == (0, 0), "{:?} of {self:?}", self.left());
        Ok(())
    }
}

const KINDS: [&str; 2] = ["net", "mnt"];

fn namespaces(process: &str) -> impl Iterator<Item = PathBuf> + use<> {
    let paths = KINDS.map(|kind| format!("/proc/{process}/ns/{kind}"));
    paths.into_iter().filter_map(|path| fs::read_link(path).ok())
}

fn mounts() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines().filter(|line| line.contains(cgroup::PREFIX)).map(str::to_owned).collect()
}

#[test]
fn a_lab_that_is_dropped_leaves_nothing() {
    let lab = Lab::start(&small()).unwrap();
    // A process that would outlive its parent: in the lab's cgroup it does not.
    let mut orphan = lab.place("a1").command("setsid").unwrap();
    orphan.args(["--fork", "sleep", "1000"]).status().unwrap();
    let traces = Traces::of(&lab);
    // Four places' networks and the node's mounts; nothing of a lab shows among the machine's own mounts.
    assert_eq!(traces.left(), (5, 2));
    assert!(mounts().is_empty(), "{:?}", mounts());
    drop(lab);
    traces.are_gone().unwrap();
}

#[test]
fn a_panic_inside_leaves_nothing() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let lab = Lab::start(&small()).unwrap();
        sender.send(Traces::of(&lab)).unwrap();
        panic!("on purpose");
    });
    let traces = receiver.recv().unwrap();
    assert!(thread.join().is_err());
    traces.are_gone().unwrap();
}

#[test]
fn a_process_that_is_interrupted_or_killed_leaves_nothing() {
    if std::env::var_os(VICTIM).is_some() {
        return be_a_victim();
    }
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let (mut victim, traces) = victim();
        assert_eq!(traces.left(), (5, 2), "{signal}");
        kill(Pid::from_raw(victim.id().try_into().unwrap()), signal).unwrap();
        victim.wait().unwrap();
        wait::until(&format!("nothing is left after {signal}"), || traces.are_gone()).unwrap();
    }
}

#[test]
fn what_a_killed_lab_and_its_killed_reaper_left_is_swept_by_the_next() {
    let (mut victim, traces) = victim();
    let pid = Pid::from_raw(victim.id().try_into().unwrap());
    // First the reaper, the only child of the victim that is not in the lab's cgroup.
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let children = threads.fold(children, |all, thread| {
        all + " " + &fs::read_to_string(thread.path().join("children")).unwrap_or_default()
    });
    let is_reaper = |pid: &&str| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.contains("\0reap\0")
    };
    let reaper = children.split_whitespace().find(is_reaper).expect("a reaper");
    kill(Pid::from_raw(reaper.parse().unwrap()), Signal::SIGKILL).unwrap();
    kill(pid, Signal::SIGKILL).unwrap();
    victim.wait().unwrap();
    assert_eq!(traces.left().1, 2);
    drop(Lab::start(&small()).unwrap());
    traces.are_gone().unwrap();
}

/// This program again, with a lab; where its traces are, it says on a line.
fn victim() -> (Child, Traces) {
    let name = "a_process_that_is_interrupted_or_killed_leaves_nothing";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let line = lines.find(|line| line.contains("traces ")).expect("the victim's line");
    let (_, words) = line.split_once("traces ").unwrap();
    let words: Vec<&str> = words.split(' ').collect();
    let (places, processes) = words.split_at(2);
    let processes: Vec<u32> = processes.iter().map(|pid| pid.parse().unwrap()).collect();
    (child, Traces::new(&processes, places.iter().map(PathBuf::from).collect()))
}

fn be_a_victim() {
    let lab = Lab::start(&small()).unwrap();
    let processes: Vec<String> = lab.places().map(|place| place.pid().to_string()).collect();
    println!("traces {} {} {}", lab.cgroup().display(), lab.folder().display(), processes.join(" "));
    loop {
        std::thread::park();
    }
}
