//! The cgroups of pods whose sockets are left alone, found by the pods' uids below the root of cgroup2.
//!
//! kubelet names a pod's directory `pod<uid>` or, with the systemd driver, `kubepods-…-pod<uid>.slice` with `_` for `-`. It is
//! made after the Pod object has come, and the kernel tells nobody: it is looked for again and again, as long as there is
//! any pod to look for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use proxy_common::layout::Node;
use tokio::{
    sync::{mpsc::Sender, watch},
    time::sleep,
};

use super::{Event, What};
use crate::model::{Change, Group, Questions, Source};

/// How long a new pod's cgroup is not noticed: less than kubelet takes from the cgroup to the pod's first process.
const PERIOD: Duration = Duration::from_millis(200);

/// The inode of the first cgroup namespace (the kernel's `PROC_CGROUP_INIT_INO`).
const FIRST_NAMESPACE: u64 = 0xEFFF_FFFB;

/// Answers [`Questions::groups`] until nobody listens to that. The first answer is told in any case, later ones if
/// they differ.
pub async fn follow(root: PathBuf, mut asked: watch::Receiver<Questions>, to: Sender<Event>) {
    let depth = depth(&root);
    let mut places = BTreeMap::new();
    let mut last = None;
    loop {
        let uids = asked.borrow_and_update().groups.clone();
        places = find(&root, &uids, places);
        let group = |place: &PathBuf| group(&root, place, depth);
        let all = uids.iter().map(|uid| (uid.clone(), places.get(uid).and_then(group)));
        let what = What::Change { change: Change::Groups(all.collect()), trigger: None };
        if last.as_ref() != Some(&what) {
            if to.send(Event::now(Source::Groups, what.clone())).await.is_err() {
                return;
            }
            last = Some(what);
        }
        let again = async {
            if uids.is_empty() {
                std::future::pending::<()>().await;
            }
            sleep(PERIOD).await;
        };
        let changed = async {
            if asked.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = to.closed() => return,
            () = again => {}
            () = changed => {}
        }
    }
}

/// Where these are; those that are where they were are not looked for.
fn find(
    root: &Path,
    uids: &BTreeSet<Arc<str>>,
    mut known: BTreeMap<Arc<str>, PathBuf>,
) -> BTreeMap<Arc<str>, PathBuf> {
    known.retain(|uid, place| uids.contains(uid) && place.is_dir());
    let missing: Vec<_> = uids.iter().filter(|uid| !known.contains_key(*uid)).collect();
    if missing.is_empty() {
        return known;
    }
    let names: BTreeMap<String, &Arc<str>> = missing.iter().map(|uid| (format!("pod{uid}"), *uid)).collect();
    let mut open = vec![root.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            match names.get(&plain(&name)) {
                Some(uid) => drop(known.insert(Arc::clone(uid), entry.path())),
                None => open.push(entry.path()),
            }
        }
    }
    known
}

/// `pod<uid>`, as the cgroupfs driver calls a pod's directory, also of the systemd driver's name.
fn plain(name: &str) -> String {
    let unit = name.strip_suffix(".slice").and_then(|unit| unit.rsplit_once("-pod"));
    unit.map_or_else(|| name.to_owned(), |(_, uid)| format!("pod{}", uid.replace('_', "-")))
}

/// `depth`: that of `root`, if it is known.
fn group(root: &Path, place: &Path, depth: Option<u32>) -> Option<Group> {
    let below = u32::try_from(place.strip_prefix(root).ok()?.components().count()).ok()?;
    let all = (1 << Node::LEVELS) - 1;
    let levels = match depth {
        Some(depth) => 1_u32.checked_shl(depth + below)?,
        None => u32::MAX.checked_shl(below)?,
    } & all;
    // An id of the kernel's is the number of its inode.
    let id = fs::metadata(place).ok()?.ino();
    (levels != 0).then_some(Group { id, levels })
}

/// How deep below the first of all cgroups this one is. `None`: it is not told to us, who are in a namespace of cgroups.
fn depth(root: &Path) -> Option<u32> {
    let is_first = fs::metadata("/proc/self/ns/cgroup").ok()?.ino() == FIRST_NAMESPACE;
    depth_by(&fs::read_to_string("/proc/self/mountinfo").ok()?, root, is_first)
}

/// The same from the text of mountinfo (proc_pid_mountinfo(5)). A mount that a namespace shows from above its own root is told
/// as `/../..`: that is how a container sees the host's.
fn depth_by(mountinfo: &str, root: &Path, is_first: bool) -> Option<u32> {
    let mounts = mountinfo.lines().filter(|line| line.contains(" - cgroup2 "));
    let fields = mounts.filter_map(|line| {
        let mut fields = line.split(' ').skip(3);
        Some((fields.next()?, Path::new(fields.next()?)))
    });
    let (shown, point) = fields
        .filter(|(_, point)| root.starts_with(point))
        .max_by_key(|(_, point)| point.components().count())?;
    let is_whole = if shown == "/" { is_first } else { shown.split('/').skip(1).all(|part| part == "..") };
    let below = root.strip_prefix(point).ok()?.components().count();
    if is_whole { u32::try_from(below).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(text: &str) -> Arc<str> {
        text.into()
    }

    #[test]
    fn pods_are_found_by_the_names_of_both_of_kubelets_drivers_and_again_when_they_moved() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let systemd = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podaa_1.slice";
        for path in ["kubepods/besteffort/podbb-2/container", systemd, "system.slice", "podcc-3-not"] {
            fs::create_dir_all(root.join(path)).unwrap();
        }
        let uids = BTreeSet::from([uid("aa-1"), uid("bb-2"), uid("cc-3")]);
        let found = find(root, &uids, BTreeMap::new());
        let place = |path: &str| root.join(path);
        let expected = BTreeMap::from([
            (uid("aa-1"), place(systemd)),
            (uid("bb-2"), place("kubepods/besteffort/podbb-2")),
        ]);
        assert_eq!(found, expected);

        let of_first = group(root, &found["aa-1"], Some(0)).unwrap();
        assert_eq!((of_first.levels, of_first.id), (1 << 3, fs::metadata(place(systemd)).unwrap().ino()));
        assert_eq!(group(root, &found["aa-1"], Some(4)).unwrap().levels, 1 << 7);
        assert_eq!(group(root, &found["aa-1"], None).unwrap().levels, 0xfff8);
        assert_eq!(group(root, &found["aa-1"], Some(14)), None, "too deep to be looked at");

        fs::remove_dir_all(root.join("kubepods")).unwrap();
        fs::create_dir_all(root.join("kubepods/podbb-2")).unwrap();
        assert_eq!(find(root, &uids, found)["bb-2"], place("kubepods/podbb-2"));
    }

    #[test]
    fn the_depth_is_known_where_the_hosts_root_is_seen() {
        let host = "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let container = "50 1 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n\
                         51 1 0:38 /../../.. /host/cgroup rw - cgroup2 cgroup rw\n";
        for (text, root, is_first, expected) in [
            (host, "/sys/fs/cgroup", true, Some(0)),
            (host, "/sys/fs/cgroup/a/b", true, Some(2)),
            (host, "/sys/fs/cgroup", false, None),
            (container, "/host/cgroup", false, Some(0)),
            (container, "/sys/fs/cgroup", false, None),
            (container, "/elsewhere", false, None),
        ] {
            assert_eq!(depth_by(text, Path::new(root), is_first), expected, "{root} {is_first} of {text}");
        }
    }
}
