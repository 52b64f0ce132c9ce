//! The object on this kernel: every program loads, costs what was reviewed, names its fields, and can be asked to log.

mod stage;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::sync::{Arc, Mutex};

use anyhow::ensure;
use nix::errno::Errno;
use proxy_common::names::{DEVICE_PROGRAMS, SOCKET_PROGRAMS, map};
use proxy_lab::{PIN_PATH, Waiting, wait};
use stage::{EMPTY, Stage, WEB, error, features, lab, open, options_of, to};
use vipr::dataplane::probe::Features;

/// How far a count may be from the reviewed one, in per cent: compilers of one version and another differ so much.
const TOLERANCE: u32 = 10;
const REVIEWED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/verifier.txt");

fn all() -> impl Iterator<Item = &'static str> {
    SOCKET_PROGRAMS.into_iter().chain(DEVICE_PROGRAMS)
}

/// Instructions that the verifier walked for each program, by features.
fn verified(lab: &proxy_lab::Lab, features: Features, log_level: u8) -> BTreeMap<&'static str, u32> {
    let options = vipr::dataplane::Options { log_level, packet_plane: true, ..options_of(lab) };
    let mut plane = open(lab, &options, features);
    let programs = plane.kernel().programs().unwrap();
    assert!(programs.iter().map(|(name, _)| *name).eq(all()));
    programs.into_iter().map(|(name, state)| (name, state.verified)).collect()
}

#[test]
fn every_program_loads_with_all_features_and_with_none_and_costs_what_was_reviewed() {
    let lab = lab();
    let probed = features(&lab)[0].1;
    let floor = Features::default();
    let counts = [verified(&lab, probed, 0), verified(&lab, floor, 0)];
    let mut text = String::new();
    writeln!(text, "{:<14} {:>8} {:>8}", "instructions", "probed", "floor").unwrap();
    for name in all() {
        writeln!(text, "{name:<14} {:>8} {:>8}", counts[0][name], counts[1][name]).unwrap();
    }
    if std::env::var_os("UPDATE_VERIFIER").is_some() {
        std::fs::write(REVIEWED, &text).unwrap();
    }
    // Kernels before 5.16 count and don't tell; loading is what they show.
    if counts[0].values().all(|count| *count == 0) {
        return;
    }
    let known = std::fs::read_to_string(REVIEWED).unwrap_or_default();
    let numbers =
        |text: &str| -> Vec<u32> { text.split_whitespace().filter_map(|word| word.parse().ok()).collect() };
    let (known_numbers, found) = (numbers(&known), numbers(&text));
    let near = |known: u32, found: u32| known.abs_diff(found) * 100 <= known * TOLERANCE;
    let all_near = known_numbers.iter().zip(&found).all(|(known, found)| near(*known, *found));
    assert!(
        known_numbers.len() == found.len() && all_near,
        "more than {TOLERANCE} % from what was reviewed (UPDATE_VERIFIER=1 writes it anew):\n{text}instead of\n{known}"
    );
}

#[test]
fn log_statements_above_the_level_cost_no_instruction() {
    let lab = lab();
    let probed = features(&lab)[0].1;
    let [off, information, debug] = [0, 3, 4].map(|level| verified(&lab, probed, level));
    assert_eq!(off, information, "there is no statement at the level of information");
    for (name, count) in &debug {
        let has_statement = name.starts_with("connect");
        assert_eq!(*count > off[name], has_statement, "{name}: {count}, off {}", off[name]);
    }
}

#[test]
fn a_refused_connect_is_logged_where_the_programs_were_told_to() {
    let lab = lab();
    let probed = features(&lab)[0].1;
    let mut stage = Stage::on(lab, probed, |options| options.log_level = 4);
    let lines = stage.plane.kernel().log_lines().unwrap().expect("lines at level 4");
    let text = Text::default();
    let writer = text.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(move || writer.clone())
        .finish();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tracing::subscriber::with_default(subscriber, || {
        runtime.block_on(async {
            let refused = error(stage.place("a1").connect(to(EMPTY[0]), Waiting::Blocking));
            assert_eq!(refused, Errno::ECONNREFUSED);
            let written = async {
                while !text.read().contains("refused") {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                ended = lines.follow() => panic!("the lines ended: {ended:?}"),
                done = tokio::time::timeout(wait::LIMIT, written) => done.expect("the line is passed on"),
            }
        });
    });
    let text = text.read();
    assert!(text.contains("DEBUG"), "{text}");
    assert!(text.contains("connect to ::ffff:10.96.0.66 port 80: refused, no endpoints"), "{text}");

    let mut quiet = open(&stage.lab, &options_of(&stage.lab), probed);
    assert!(quiet.kernel().log_lines().unwrap().is_none());
}

#[test]
fn every_map_of_the_object_is_pinned_with_types_and_names_its_fields() {
    let stage = Stage::new();
    let json = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_str(&stage.node().run("bpftool", &[&["--json"], arguments].concat()).unwrap())
            .unwrap()
    };
    for name in map::ALL {
        let shown = json(&["map", "show", "pinned", &format!("{PIN_PATH}/{name}")]);
        // The fence is the agent's own; its only content is a map.
        assert_eq!(shown["btf_id"].is_u64(), name != map::FENCE, "{name}: {shown}");
    }
    let dump = |name: &str| json(&["map", "dump", "pinned", &format!("{PIN_PATH}/{name}")]);
    let frontends = dump(map::FRONTENDS);
    let web = to(WEB[0]);
    let entry = frontends
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| &entry["formatted"])
        .find(|entry| entry["key"]["port"] == web.port() && entry["key"]["address"][15] == 10);
    let entry = entry.unwrap_or_else(|| panic!("no {web} in {frontends}"));
    assert_eq!(
        (&entry["value"]["service"], &entry["value"]["kind"]),
        (&0.into(), &"ClusterIp".into()),
        "{entry}"
    );

    let backends = dump(map::BACKENDS);
    let used: Vec<_> = backends
        .as_array()
        .unwrap()
        .iter()
        .map(|slot| &slot["formatted"]["value"])
        .filter(|slot| slot["role"] != "Free")
        .collect();
    assert_eq!(used[0]["role"], "Extent", "{}", used[0]);
    assert_eq!(used[0]["cluster_only"], 1, "{}", used[0]);
    assert_eq!(
        (&used[1]["role"], &used[1]["port"]),
        (&"Endpoint".into(), &stage::TARGET.into()),
        "{}",
        used[1]
    );
}

#[test]
fn every_program_is_attached_to_the_nodes_cgroup_and_to_no_other() -> anyhow::Result<()> {
    let stage = Stage::new();
    let root = proxy_lab::cgroup::mount_point()?;
    let attached = |cgroup: &std::path::Path| {
        stage.node().run("bpftool", &["cgroup", "show", &cgroup.to_string_lossy()])
    };
    let here = attached(stage.node().node_cgroup())?;
    for name in SOCKET_PROGRAMS {
        ensure!(here.contains(name), "{name} is not attached: {here}");
    }
    for elsewhere in [&root, stage.lab.node("b").node_cgroup()] {
        let there = attached(elsewhere)?;
        let foreign = SOCKET_PROGRAMS.iter().find(|name| there.contains(*name));
        ensure!(foreign.is_none(), "{} has {there}", elsewhere.display());
    }
    Ok(())
}

/// What a subscriber wrote.
#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl Text {
    fn read(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl io::Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
