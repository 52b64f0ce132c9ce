//! Real folders, changed as people and programs change them.

use std::{fs, time::Duration};

use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

use super::*;
use crate::{
    model::{Change, ObjectName},
    watch::convert::Converter,
};

const LIMIT: Duration = Duration::from_secs(20);

struct Following {
    folder: TempDir,
    events: mpsc::Receiver<Event>,
    task: JoinHandle<Result<()>>,
}

fn service(name: &str, port: u16) -> Json {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
           "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": port}]}})
}

fn slice(name: &str) -> Json {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
           "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "web"}},
           "addressType": "IPv4", "ports": [], "endpoints": []})
}

/// One line for what an event says; `None` for signs of life.
fn line(event: Event) -> Option<String> {
    let of = |service: &crate::model::Service| format!("{}:{}", service.name.name, service.ports[0].port);
    let change = match event.what {
        What::Alive => return None,
        What::Broken { why } => return Some(format!("{:?} broken: {why}", event.source)),
        What::Note { name, why } => return Some(format!("note {}: {why}", name.name)),
        What::Change { change, .. } => change,
    };
    Some(match change {
        Change::Services(all) => format!("services {:?}", all.iter().map(|it| of(it)).collect::<Vec<_>>()),
        Change::Slices(all) => {
            format!("slices {:?}", all.iter().map(|it| &*it.name.name).collect::<Vec<_>>())
        }
        Change::Node(node) => format!("node {:?}", node.map(|node| node.addresses)),
        Change::ServiceCidrs(all) if all.is_empty() => return None,
        Change::ServiceCidrs(all) => {
            format!("ranges {:?}", all.keys().map(|it| &*it.name).collect::<Vec<_>>())
        }
        Change::ServiceCidr(name, ranges) => format!("ranges {} {}", name.name, ranges.is_some()),
        Change::Service(_, Some(service)) => of(&service),
        Change::Service(ObjectName { name, .. }, None) => format!("no {name}"),
        Change::Slice(ObjectName { name, .. }, slice) => format!("slice {name} {}", slice.is_some()),
        Change::Malformed { name, .. } => format!("malformed {}", name.name),
        Change::LeftPods(all) => format!("left pods {:?}", all.values().collect::<Vec<_>>()),
        Change::LeftPod(ObjectName { name, .. }, uid) => format!("left pod {name} {uid:?}"),
        Change::Groups(_)
        | Change::ApiServers(_)
        | Change::LocalRoutes(_)
        | Change::Links(_)
        | Change::HostSources(_)
        | Change::Listeners(_) => {
            unreachable!("a folder knows nothing of the node")
        }
    })
}

impl Following {
    /// Follows a folder with these files, and has read the first complete lists.
    async fn start(files: &[(&str, &[Json])]) -> (Self, Vec<String>) {
        let folder = tempfile::tempdir().unwrap();
        for (name, objects) in files {
            let is_json = name.ends_with(".json");
            let text = if is_json { objects[0].to_string() } else { text(objects) };
            fs::write(folder.path().join(name), text).unwrap();
        }
        let (to, events) = mpsc::channel(100);
        let task = tokio::spawn(follow(folder.path().join("."), Converter::new("n1"), to));
        let mut following = Self { folder, events, task };
        let first = following.until(|line| line.starts_with("node ")).await;
        (following, first)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// In place.
    fn write(&self, name: &str, objects: &[Json]) {
        fs::write(self.path(name), text(objects)).unwrap();
    }

    /// By renaming.
    fn replace(&self, name: &str, objects: &[Json]) {
        self.write(".new", objects);
        fs::rename(self.path(".new"), self.path(name)).unwrap();
    }

    /// What is said up to the line that is `last`.
    async fn until(&mut self, last: impl Fn(&str) -> bool) -> Vec<String> {
        let mut lines = Vec::new();
        let end = tokio::time::Instant::now() + LIMIT;
        loop {
            let event = tokio::time::timeout_at(end, self.events.recv()).await;
            let event = event.unwrap_or_else(|_| panic!("nothing more after {lines:?}"));
            let event = event.unwrap_or_else(|| panic!("the end after {lines:?}"));
            lines.extend(line(event));
            if lines.last().is_some_and(|line| last(line)) {
                return lines;
            }
        }
    }

    /// What is said of all that was done so far: a Service written last is the sign.
    async fn said(&mut self) -> Vec<String> {
        self.replace("zz-sign.yaml", &[service("sign", 1)]);
        let mut lines = self.until(|line| line == "sign:1").await;
        lines.pop();
        fs::remove_file(self.path("zz-sign.yaml")).unwrap();
        let gone = self.until(|line| line == "no sign").await;
        lines.extend_from_slice(&gone[..gone.len() - 1]);
        lines
    }
}

fn text(objects: &[Json]) -> String {
    objects.iter().map(|object| format!("---\n{}", serde_yaml_ng::to_string(object).unwrap())).collect()
}

#[tokio::test]
async fn the_first_pass_gives_complete_lists_also_of_an_empty_folder() {
    let (_following, first) = Following::start(&[]).await;
    assert_eq!(first, ["slices []", "services []", "node None"]);

    let node = json!({"kind": "Node", "metadata": {"name": "n1"},
                      "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}});
    let other = json!({"kind": "Node", "metadata": {"name": "n2"}});
    let files = [
        ("a.yaml", vec![service("web", 80), slice("web-1")]),
        ("b.json", vec![service("api", 443)]),
        ("n.yml", vec![other, node]),
        (".hidden.yaml", vec![service("hidden", 1)]),
        ("README.md", vec![service("prose", 1)]),
    ];
    let files: Vec<_> = files.iter().map(|(name, objects)| (*name, objects.as_slice())).collect();
    let (_following, first) = Following::start(&files).await;
    assert_eq!(first, [r#"slices ["web-1"]"#, r#"services ["api:443", "web:80"]"#, "node Some([192.0.2.1])"]);
}

#[tokio::test]
async fn a_file_that_is_replaced_written_moved_or_deleted_is_noticed() {
    let (mut following, _) = Following::start(&[("a.yaml", &[service("web", 80)])]).await;
    following.replace("a.yaml", &[service("web", 81), slice("web-1")]);
    assert_eq!(following.said().await, ["slice web-1 true", "web:81"]);
    following.write("a.yaml", &[service("web", 82), slice("web-1")]);
    assert_eq!(following.said().await, ["web:82"]);
    following.write("b.yaml", &[service("api", 443)]);
    assert_eq!(following.said().await, ["api:443"]);
    fs::rename(following.path("b.yaml"), following.path("b.off")).unwrap();
    assert_eq!(following.said().await, ["no api"]);
    fs::remove_file(following.path("a.yaml")).unwrap();
    assert_eq!(following.said().await, ["no web", "slice web-1 false"]);
}

#[tokio::test]
async fn what_says_the_same_as_before_is_a_sign_of_life_only() {
    let (mut following, _) = Following::start(&[("a.yaml", &[service("web", 80)])]).await;
    let mut same = service("web", 80);
    same["metadata"]["annotations"] = json!({"note": "x"});
    following.replace("a.yaml", &[same]);
    assert_eq!(following.said().await, Vec::<String>::new());
}

#[tokio::test]
async fn an_object_that_moves_to_another_file_is_never_gone() {
    let (mut following, _) =
        Following::start(&[("a.yaml", &[service("web", 80), service("api", 443)])]).await;
    fs::rename(following.path("a.yaml"), following.path("b.yaml")).unwrap();
    assert_eq!(following.said().await, Vec::<String>::new());
    following.replace("a.yaml", &[service("web", 80)]);
    following.replace("b.yaml", &[service("api", 443)]);
    let said = following.said().await;
    assert!(said.iter().all(|line| line.starts_with("note web")), "{said:?}");
}

#[tokio::test]
async fn of_an_object_in_several_files_the_last_counts_and_it_is_noted() {
    let files: [(&str, &[Json]); 2] = [("a.yaml", &[service("web", 80)]), ("b.yaml", &[service("web", 81)])];
    let (mut following, first) = Following::start(&files).await;
    assert_eq!(first[0], "note web: it is in a.yaml and in b.yaml: the last one counts");
    assert!(first.contains(&r#"services ["web:81"]"#.to_owned()), "{first:?}");
    following.replace("a.yaml", &[service("web", 90)]);
    assert_eq!(following.said().await, Vec::<String>::new());
    fs::remove_file(following.path("b.yaml")).unwrap();
    assert_eq!(following.said().await, ["web:90"]);
    following.replace("a.yaml", &[service("web", 90), service("web", 91)]);
    assert_eq!(following.said().await, ["note web: it is twice in a.yaml: the last one counts", "web:91"]);
}

#[tokio::test]
async fn a_file_that_does_not_parse_is_named_and_what_it_said_stays() {
    let files: [(&str, &[Json]); 2] = [("a.yaml", &[service("web", 80)]), ("b.yaml", &[service("api", 443)])];
    let (mut following, _) = Following::start(&files).await;
    fs::write(following.path("a.yaml"), "kind: [Service\n").unwrap();
    following.replace("b.yaml", &[service("api", 444)]);
    assert_eq!(following.said().await, ["malformed a.yaml", "api:444"]);
    following.replace("a.yaml", &[service("web", 81)]);
    assert_eq!(following.said().await, ["web:81"]);
}

#[tokio::test]
async fn an_object_that_can_not_be_read_is_named_and_what_was_served_of_it_stays() {
    let (mut following, _) =
        Following::start(&[("a.yaml", &[service("web", 80), service("api", 443)])]).await;
    let mut bad = service("web", 80);
    bad["spec"]["ports"] = json!("none");
    following.replace("a.yaml", &[bad.clone(), service("api", 444)]);
    assert_eq!(following.said().await, ["malformed web", "api:444"]);
    bad["metadata"]["name"] = json!("new");
    following.replace("a.yaml", &[bad, service("web", 80), service("api", 444)]);
    assert_eq!(following.said().await, ["malformed new"]);
}

#[tokio::test]
async fn a_file_that_somebody_has_emptied_still_says_what_it_said_until_it_is_written() {
    use std::io::Write;
    let (mut following, _) = Following::start(&[("a.yaml", &[service("web", 80)])]).await;
    let mut file = fs::File::create(following.path("a.yaml")).unwrap();
    assert_eq!(following.said().await, Vec::<String>::new());
    file.write_all(text(&[service("web", 81)]).as_bytes()).unwrap();
    drop(file);
    assert_eq!(following.said().await, ["web:81"]);
    // One that stays empty is believed in the end.
    fs::write(following.path("a.yaml"), "").unwrap();
    assert_eq!(following.until(|line| line == "no web").await, ["no web"]);
}

#[tokio::test]
async fn a_mounted_config_map_is_followed_through_its_links() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for (version, port) in [("..1", 80), ("..2", 81)] {
        fs::create_dir(path(version)).unwrap();
        fs::write(path(version).join("a.yaml"), text(&[service("web", port)])).unwrap();
    }
    let link = |from: &str, to: &str| std::os::unix::fs::symlink(to, path(from)).unwrap();
    link("..data", "..1");
    link("a.yaml", "..data/a.yaml");
    let (to, events) = mpsc::channel(100);
    let task = tokio::spawn(follow(folder.path().to_owned(), Converter::new("n1"), to));
    link("..new", "..2");
    let new = (path("..new"), path("..data"));
    let mut following = Following { folder, events, task };
    let first = following.until(|line| line.starts_with("node ")).await;
    assert!(first.contains(&r#"services ["web:80"]"#.to_owned()), "{first:?}");
    fs::rename(new.0, new.1).unwrap();
    assert_eq!(following.until(|line| line == "web:81").await, ["web:81"]);
}

#[tokio::test]
async fn a_folder_that_does_not_exist_is_refused_and_one_that_vanishes_is_waited_for() {
    let (to, _events) = mpsc::channel(1);
    let error = follow("/does/not/exist".into(), Converter::new("n1"), to).await.unwrap_err();
    let said = format!("{error:#}");
    assert!(said.contains("/does/not/exist") && said.contains("--manifests names a folder"), "{said}");

    let home = tempfile::tempdir().unwrap();
    let (here, away) = (home.path().join("here"), home.path().join("away"));
    fs::create_dir(&here).unwrap();
    fs::write(here.join("a.yaml"), text(&[service("web", 80)])).unwrap();
    let (to, events) = mpsc::channel(100);
    let task = tokio::spawn(follow(here.clone(), Converter::new("n1"), to));
    let mut following = Following { folder: home, events, task };
    following.until(|line| line.starts_with("node ")).await;
    fs::rename(&here, &away).unwrap();
    let lost = following.until(|line| line.starts_with("Node broken")).await;
    assert_eq!(lost.len(), 4, "{lost:?}");
    assert!(lost[0].contains("what it said stays"), "{lost:?}");
    fs::write(away.join("b.yaml"), text(&[service("api", 443)])).unwrap();
    fs::rename(&away, &here).unwrap();
    assert_eq!(following.until(|line| line == "api:443").await, ["api:443"]);
}

#[tokio::test]
async fn another_folder_that_comes_in_its_place_is_followed() {
    let home = tempfile::tempdir().unwrap();
    let [here, away, other] = ["here", "away", "other"].map(|name| home.path().join(name));
    for (folder, name) in [(&here, "web"), (&other, "api")] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("a.yaml"), text(&[service(name, 80)])).unwrap();
    }
    let (to, events) = mpsc::channel(100);
    let task = tokio::spawn(follow(here.clone(), Converter::new("n1"), to));
    let mut following = Following { folder: home, events, task };
    following.until(|line| line.starts_with("node ")).await;
    fs::rename(&here, &away).unwrap();
    fs::rename(&other, &here).unwrap();
    let said = following.until(|line| line == "no web").await;
    assert!(said.contains(&"api:80".to_owned()), "{said:?}");
    fs::write(here.join("b.yaml"), text(&[service("new", 1)])).unwrap();
    following.until(|line| line == "new:1").await;
}

#[test]
fn a_file_that_is_found_empty_and_was_not_still_says_what_it_said() {
    let folder = tempfile::tempdir().unwrap();
    let mut contents = Contents::new(Converter::new("n1"));
    let mut said = |text: &str, is_believed: bool| {
        fs::write(folder.path().join("a.yaml"), text).unwrap();
        let mut out = Vec::new();
        let reading = contents.read(folder.path(), "a.yaml".as_ref(), &mut out);
        if is_believed {
            contents.forget("a.yaml".as_ref());
        }
        contents.settle(&mut out);
        let events = out.into_iter().filter_map(|(source, what)| line(Event::now(source, what)));
        (reading, events.collect::<Vec<_>>())
    };
    assert_eq!(said("", false).0, Reading::Done);
    assert_eq!(said(&text(&[service("web", 80)]), false), (Reading::Done, vec!["web:80".to_owned()]));
    assert_eq!(said("", false), (Reading::Emptied, Vec::new()));
    assert_eq!(said("---\n# soon\n", false), (Reading::Emptied, Vec::new()));
    assert_eq!(said("", true), (Reading::Emptied, vec!["no web".to_owned()]));
}

#[tokio::test]
async fn following_ends_when_nobody_listens() {
    let (following, _) = Following::start(&[]).await;
    drop(following.events);
    timeout(LIMIT, following.task).await.unwrap().unwrap().unwrap();
}
