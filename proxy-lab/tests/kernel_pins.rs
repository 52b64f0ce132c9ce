//! What is pinned: kept over restarts, built anew beside what runs where it does not fit, and gone after a cleanup.

mod stage;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proxy_common::Reason::{DatagramKept, SourceRestored};
use proxy_common::names::{LAYOUT_VERSION, SOCKET_PROGRAMS, map};
use proxy_lab::plane::{FLOOR, Plane, options};
use proxy_lab::{Family, Lab, Load, PIN_PATH, Waiting, wait};
use stage::{NODE_PORT, Stage, WEB, activate, error, features, fill, open, to};
use vipr::dataplane::probe::Features;
use vipr::dataplane::sys::{self, Map, Shape};
use vipr::dataplane::{Dataplane, cleanup};
use vipr::plan::Capacity;

const LARGER: Capacity = Capacity { backends: 2 * FLOOR.backends, services: 2 * FLOOR.services, ..FLOOR };

/// What keeps a map apart from all others.
fn id(stage: &Stage, pin: &str) -> u64 {
    let text = stage
        .node()
        .run("bpftool", &["--json", "map", "show", "pinned", &format!("{PIN_PATH}/{pin}")])
        .unwrap();
    let shown: serde_json::Value = serde_json::from_str(&text).unwrap();
    shown["id"].as_u64().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// A load on the first service, under way.
fn load(stage: &Stage) -> Load {
    let load = Load::start(stage.place("a1"), to(WEB[0]), 2000);
    load.wait_for(100).unwrap();
    load
}

/// Nothing failed from before to after.
fn ends_well(load: Load) {
    load.wait_for(100).unwrap();
    let tally = load.stop();
    assert_eq!(tally.failures(), 0, "{tally:?}");
}

/// A dataplane over what is pinned, instead of the stage's.
fn reopen(stage: &mut Stage) {
    let probed = features(&stage.lab)[0].1;
    stage.plane = open(&stage.lab, &stage.options, probed);
}

#[test]
fn every_map_and_link_is_pinned_and_the_next_agent_adopts_them() {
    let mut stage = Stage::new();
    let pins = stage.options.pin_path.clone();
    let mut expected: Vec<_> = map::ALL.into_iter().chain(["links", "next"]).map(str::to_owned).collect();
    expected.sort();
    assert_eq!(names(&pins), expected);
    let mut programs = SOCKET_PROGRAMS.map(str::to_owned);
    programs.sort();
    assert_eq!(names(&pins.join("links")), programs);

    let (before, ids) = (stage.plane.read().unwrap(), map::ALL.map(|name| id(&stage, name)));
    let load = load(&stage);
    reopen(&mut stage);
    assert_eq!(stage.plane.read().unwrap(), before);
    activate(&mut stage.plane, &stage.lab);
    assert_eq!(map::ALL.map(|name| id(&stage, name)), ids);
    assert_eq!(names(&pins.join("next")), [""; 0]);
    ends_well(load);
}

#[test]
fn a_map_of_another_shape_is_built_anew_beside_and_swapped_under_load() {
    let mut stage = Stage::new();
    let pin = stage.options.pin_path.join(map::FRONTENDS);
    let load = load(&stage);
    let shape = Map::open(&pin).unwrap().shape;
    let foreign = sys::map_create(&Shape { value: shape.value + 8, ..shape }, map::FRONTENDS, None).unwrap();
    fs::remove_file(&pin).unwrap();
    sys::object_pin(foreign.as_fd(), &pin).unwrap();
    anew(&mut stage, load);
    assert_eq!(Map::open(&pin).unwrap().shape, shape);
}

#[test]
fn tables_of_another_layout_version_are_built_anew_beside_and_swapped_under_load() {
    let mut stage = Stage::new();
    let load = load(&stage);
    set_layout_version(&stage.options.pin_path, LAYOUT_VERSION + 1);
    anew(&mut stage, load);
    assert_eq!(layout_version(&stage.options.pin_path), LAYOUT_VERSION);
}

#[test]
fn settings_that_this_version_cannot_read_are_anothers() {
    let mut stage = Stage::new();
    // A socket plane that does not exist yet, and the version's number as it is.
    let (map, mut bytes) = node(&stage.options.pin_path);
    bytes[12..16].copy_from_slice(&99_u32.to_ne_bytes());
    sys::update(map.as_fd(), &[0; 4], &bytes, 0).unwrap();
    reopen(&mut stage);
    assert!(stage.plane.read().unwrap().frontends.is_empty(), "a generation of its own");
    fill(&mut stage.plane, &stage.lab);
    activate(&mut stage.plane, &stage.lab);
    assert_eq!(stage.place("a1").ask_tcp(to(WEB[0])).unwrap().who, "b1");
}

/// The next agent finds nothing that it can use, fills its own tables and swaps; connections' state is kept.
fn anew(stage: &mut Stage, load: Load) {
    let ids = |stage: &Stage| [map::SERVICES, map::AFFINITY, map::CONNECTED].map(|name| id(stage, name));
    let [services, affinity, connected] = ids(stage);
    let stream = stage.place("a1").connect(to(WEB[0]), Waiting::Blocking).unwrap();
    reopen(stage);
    assert!(stage.plane.read().unwrap().frontends.is_empty(), "a generation of its own");
    let pods = |stage: &Stage| stage.place("a1").ask_tcp(to(WEB[0])).unwrap().who;
    assert_eq!(pods(stage), "b1", "the running generation goes on");
    fill(&mut stage.plane, &stage.lab);
    activate(&mut stage.plane, &stage.lab);
    ends_well(load);
    let now = ids(stage);
    assert_ne!(now[0], services);
    assert_eq!(now[1..], [affinity, connected]);
    assert_eq!(stream.peer().unwrap(), to(WEB[0]), "what a connection dialled is still known");
}

/// The value of `node` is read and written as bytes: this is another version's doing.
fn node(pins: &Path) -> (Map, Vec<u8>) {
    let map = Map::open(&pins.join(map::NODE)).unwrap();
    let mut bytes = vec![0; map.shape.value as usize];
    assert!(sys::lookup(map.as_fd(), &[0; 4], &mut bytes).unwrap());
    (map, bytes)
}

fn set_layout_version(pins: &Path, version: u32) {
    let (map, mut bytes) = node(pins);
    bytes[8..12].copy_from_slice(&version.to_ne_bytes());
    sys::update(map.as_fd(), &[0; 4], &bytes, 0).unwrap();
}

fn layout_version(pins: &Path) -> u32 {
    u32::from_ne_bytes(node(pins).1[8..12].try_into().unwrap())
}

fn cookie(pins: &Path) -> u64 {
    u64::from_ne_bytes(node(pins).1[..8].try_into().unwrap())
}

#[test]
fn a_generation_that_was_never_finished_is_discarded() {
    let mut stage = Stage::new();
    let (before, services) = (stage.plane.read().unwrap(), id(&stage, map::SERVICES));
    let next = stage.options.pin_path.join("next");
    let load = load(&stage);
    stage.plane.grow(LARGER).unwrap();
    assert!(names(&next).contains(&map::SERVICES.to_owned()));
    reopen(&mut stage);
    assert_eq!(names(&next), [""; 0]);
    assert_eq!((stage.plane.read().unwrap(), id(&stage, map::SERVICES)), (before, services));
    ends_well(load);
}

#[test]
fn growth_under_load_loses_no_connect_and_no_sockets_memory() {
    let mut stage = Stage::new();
    stage.web(&["b1", "b2", "b3"]);
    let socket = stage.place("a1").datagrams(Family::V4).unwrap();
    let ask = || socket.ask_to(to(WEB[0]), "hello").unwrap();
    let first = ask().0.who;
    let load = load(&stage);
    stage.plane.grow(LARGER).unwrap();
    activate(&mut stage.plane, &stage.lab);
    ends_well(load);
    assert_eq!(stage.plane.kernel().capacity(), LARGER);
    let ((answer, source), counts) = stage.counted(ask);
    assert_eq!((answer.who, source), (first, to(WEB[0])));
    assert_eq!(counts, stage::once(&[DatagramKept, SourceRestored]));
    // And the larger tables are those that are adopted from here on.
    reopen(&mut stage);
    assert_eq!(stage.plane.kernel().capacity(), LARGER);
}

#[test]
fn a_rebuilt_generation_is_empty_also_where_the_running_one_would_fit() {
    let mut stage = Stage::new();
    let services = id(&stage, map::SERVICES);
    stage.plane.kernel().rebuild(FLOOR).unwrap();
    assert_eq!(stage.plane.read().unwrap(), vipr::plan::Actual::default());
    assert_eq!(stage.place("a1").ask_tcp(to(WEB[0])).unwrap().who, "b1", "the running generation goes on");
    fill(&mut stage.plane, &stage.lab);
    activate(&mut stage.plane, &stage.lab);
    assert_ne!(id(&stage, map::SERVICES), services);
}

#[test]
fn pins_that_were_half_exchanged_are_not_adopted() {
    let mut stage = Stage::new();
    stage.plane.grow(LARGER).unwrap();
    // What can't be replaced ends the exchange half way, as a crash would.
    let blocked = stage.options.pin_path.join(map::SERVICES);
    fs::remove_file(&blocked).unwrap();
    fs::create_dir(&blocked).unwrap();
    let Stage { plane, lab, .. } = &mut stage;
    lab.node("a").enter(|| plane.activate()).unwrap().unwrap_err();
    fs::remove_dir(&blocked).unwrap();
    // The other half arrives: each map by itself fits, and they are of two generations.
    fs::rename(stage.options.pin_path.join("next").join(map::SERVICES), &blocked).unwrap();
    let load = load(&stage);
    reopen(&mut stage);
    assert_eq!(stage.plane.read().unwrap(), vipr::plan::Actual::default());
    fill(&mut stage.plane, &stage.lab);
    activate(&mut stage.plane, &stage.lab);
    ends_well(load);
}

#[test]
fn a_cleanup_leaves_no_pin_no_program_and_no_service() {
    let Stage { mut plane, options, lab } = Stage::new();
    let node = lab.node("a");
    let programs = plane.kernel().programs().unwrap();
    drop(plane);
    let attached = || node.run("bpftool", &["cgroup", "show", &options.cgroup.to_string_lossy()]).unwrap();
    assert!(attached().contains(SOCKET_PROGRAMS[0]));
    cleanup(&options.pin_path).unwrap();
    assert!(!options.pin_path.exists());
    for name in SOCKET_PROGRAMS {
        assert!(!attached().contains(name), "{}", attached());
    }
    for (name, state) in programs {
        wait::until_true(&format!("{name} is gone"), || sys::program_by_id(state.id).is_err()).unwrap();
    }
    let blackholed = error(node.connect(to(WEB[0]), Waiting::Blocking));
    assert_eq!(blackholed, nix::errno::Errno::EINVAL);
    cleanup(&options.pin_path).unwrap();
}

/// Set for a copy of this program that is only the dataplane of a node, until it is killed.
const AGENT: &str = "VIPR_KERNEL_PINS_AGENT";

#[test]
fn a_killed_dataplane_leaves_everything_working_and_knows_its_namespace_on_every_kernel() {
    if let Some(cgroup) = std::env::var_os(AGENT) {
        return be_the_dataplane(&PathBuf::from(cgroup));
    }
    let mut stage = Stage::new();
    let known = cookie(&stage.options.pin_path);
    assert_eq!(Some(known), features(&stage.lab)[0].1.netns_cookie);
    // From nothing: what it knows it has learnt by itself.
    cleanup(&stage.options.pin_path).unwrap();
    let probed = features(&stage.lab)[0].1;
    stage.plane = open(&stage.lab, &stage.options, Features { netns_cookie: Some(1), ..probed });
    fill(&mut stage.plane, &stage.lab);
    activate(&mut stage.plane, &stage.lab);
    let load = load(&stage);
    kill_a_dataplane(&stage.lab);
    ends_well(load);
    assert_eq!(cookie(&stage.options.pin_path), known);
    assert_eq!(stage.place("a").ask_tcp(([127, 0, 0, 1], NODE_PORT).into()).unwrap().who, "b1");
    for place in ["a1", "a"].map(|name| stage.place(name)) {
        assert_eq!(place.ask_tcp(to(WEB[1])).unwrap().who, "b1");
    }
    reopen(&mut stage);
    stage.web(&["b2"]);
    assert_eq!(stage.place("a1").ask_tcp(to(WEB[0])).unwrap().who, "b2");
}

/// Starts the node's dataplane as the oldest kernel's, waits until it is attached, and kills it.
fn kill_a_dataplane(lab: &Lab) {
    let node = lab.node("a");
    let name = "a_killed_dataplane_leaves_everything_working_and_knows_its_namespace_on_every_kernel";
    let mut command = node.command(std::env::current_exe().unwrap()).unwrap();
    command.args(["--exact", name, "--nocapture"]).env(AGENT, node.node_cgroup()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("attached")), "the dataplane did not come up");
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGKILL).unwrap();
    child.wait().unwrap();
}

fn be_the_dataplane(cgroup: &Path) {
    let mut plane = Plane::open(&options(PIN_PATH.as_ref(), cgroup), Features::default()).unwrap();
    plane.activate().unwrap();
    println!("attached");
    loop {
        std::thread::park();
    }
}

#[test]
fn a_probe_for_the_namespace_that_nobody_answers_costs_nothing_that_was_known() {
    let stage = Stage::new();
    let pins = &stage.options.pin_path;
    let known = cookie(pins);
    // This process is outside of the node's cgroup: its probe runs no program.
    let mut unanswered = open(&stage.lab, &stage.options, Features::default());
    let error = stage.node().enter(|| unanswered.activate()).unwrap().unwrap_err();
    assert!(error.to_string().contains("does not run below the cgroup"), "{error}");
    assert_eq!(cookie(pins), known);
    assert_eq!(stage.place("a").ask_tcp(([127, 0, 0, 1], NODE_PORT).into()).unwrap().who, "b1");
    // A generation that is built meanwhile serves the host from its first moment on.
    unanswered.kernel().rebuild(LARGER).unwrap();
    assert_eq!(cookie(&pins.join("next")), known);
}
