//! What the kernel says about the folder, as the files that are to be read: those whose writer has closed them or has
//! moved them to their names. One that is still written to is waited for.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use notify::{
    EventKind,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind},
};
use tokio::{
    sync::Notify,
    time::{sleep_until, timeout},
};

/// A pass begins when nothing has happened for this long, so that an object moved to another file is never gone.
const QUIET: Duration = Duration::from_millis(3);
/// … or when it has waited this long.
const PATIENCE: Duration = Duration::from_millis(20);
/// A file that is written and not closed is read as it is after this long.
const UNFINISHED: Duration = Duration::from_secs(1);

/// Kubernetes replaces a mounted ConfigMap by renaming this link to the folder that its files are links into.
const CONFIG_MAP_LINK: &str = "..data";

/// What is to be read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// The whole folder.
    pub(super) everything: bool,
    /// Files, and whether their writer was waited for in vain.
    pub(super) files: Vec<(OsString, bool)>,
}

/// Filled by the watcher's thread.
#[derive(Debug)]
pub(super) struct Happened {
    folder: PathBuf,
    pending: Mutex<Pending>,
    bell: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    everything: bool,
    /// `Some`: somebody writes to it; until when he is waited for.
    files: BTreeMap<OsString, Option<Instant>>,
}

/// Whether a file of this name is read.
pub(super) fn is_manifest(name: &OsStr) -> bool {
    let extension = Path::new(name).extension().and_then(OsStr::to_str);
    !name.as_encoded_bytes().starts_with(b".") && matches!(extension, Some("yaml" | "yml" | "json"))
}

impl Happened {
    /// Everything is due.
    pub(super) fn new(folder: &Path) -> Self {
        let pending = Mutex::new(Pending { everything: true, files: BTreeMap::new() });
        Self { folder: folder.to_owned(), pending, bell: Notify::new() }
    }

    /// Called by the watcher for each event.
    pub(super) fn add(&self, event: notify::Result<notify::Event>) {
        let Ok(event) = event else { return self.everything() };
        if event.need_rescan() {
            return self.everything();
        }
        for path in &event.paths {
            let name = path.file_name().unwrap_or_default();
            if *path == self.folder || name == CONFIG_MAP_LINK {
                // The folder itself has moved or gone, or all of its files have been replaced.
                if !matches!(event.kind, EventKind::Access(_) | EventKind::Modify(ModifyKind::Metadata(_))) {
                    self.everything();
                }
            } else if is_manifest(name) {
                self.file(name, path, event.kind);
            }
        }
    }

    fn file(&self, name: &OsStr, path: &Path, kind: EventKind) {
        let until = match kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(_))
            | EventKind::Remove(_) => None,
            EventKind::Modify(ModifyKind::Metadata(_)) => {
                // It may be readable now; who writes to it still does.
                self.lock().files.entry(name.to_owned()).or_insert(None);
                return self.bell.notify_one();
            }
            // A link is complete at once; nobody will close it.
            EventKind::Create(CreateKind::File) if is_link(path) => None,
            EventKind::Create(CreateKind::File) | EventKind::Modify(ModifyKind::Data(_)) => {
                Some(Instant::now() + UNFINISHED)
            }
            _ => return,
        };
        self.lock().files.insert(name.to_owned(), until);
        self.bell.notify_one();
    }

    /// Somebody seems to write to it.
    pub(super) fn unfinished(&self, name: OsString) {
        // Unless more has happened to it meanwhile.
        self.lock().files.entry(name).or_insert(Some(Instant::now() + UNFINISHED));
        self.bell.notify_one();
    }

    fn everything(&self) {
        self.lock().everything = true;
        self.bell.notify_one();
    }

    /// Waits until something is to be read.
    pub(super) async fn due(&self) -> Due {
        loop {
            let next = self.lock().next();
            match next {
                Some(at) if at <= Instant::now() => {
                    self.quiet().await;
                    return self.lock().take();
                }
                Some(at) => tokio::select! {
                    () = sleep_until(at.into()) => {}
                    () = self.bell.notified() => {}
                },
                None => self.bell.notified().await,
            }
        }
    }

    async fn quiet(&self) {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end && timeout(QUIET, self.bell.notified()).await.is_ok() {}
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending {
    /// When something is due.
    fn next(&self) -> Option<Instant> {
        let now = Instant::now();
        let files = self.files.values().map(|until| until.unwrap_or(now));
        files.chain(self.everything.then_some(now)).min()
    }

    fn take(&mut self) -> Due {
        let now = Instant::now();
        let due = self.files.extract_if(.., |_, until| until.is_none_or(|until| until <= now));
        let files = due.map(|(name, until)| (name, until.is_some())).collect();
        Due { everything: std::mem::take(&mut self.everything), files }
    }
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink() || metadata.nlink() > 1)
}

#[cfg(test)]
mod tests {
    use notify::event::{DataChange, MetadataKind, RemoveKind, RenameMode};

    use super::*;

    const WRITTEN: EventKind = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    const CLOSED: EventKind = EventKind::Access(AccessKind::Close(AccessMode::Write));
    const MOVED: EventKind = EventKind::Modify(ModifyKind::Name(RenameMode::To));
    const CREATED: EventKind = EventKind::Create(CreateKind::File);
    const CHMOD: EventKind = EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any));
    const REMOVED: EventKind = EventKind::Remove(RemoveKind::File);

    /// The files that are due at once after `events`, and whether everything is.
    fn due(events: &[(&str, EventKind)]) -> (Vec<OsString>, bool) {
        let happened = Happened::new(Path::new("/f"));
        happened.lock().take();
        for (path, kind) in events {
            happened.add(Ok(notify::Event::new(*kind).add_path(Path::new("/f").join(path))));
        }
        let due = happened.lock().take();
        (due.files.into_iter().map(|(name, _)| name).collect(), due.everything)
    }

    #[test]
    fn a_file_is_due_when_its_writer_is_done() {
        let nothing = (Vec::new(), false);
        assert_eq!(due(&[("a.yaml", CREATED), ("a.yaml", WRITTEN)]), nothing);
        assert_eq!(due(&[("a.yaml", CREATED), ("a.yaml", CHMOD)]), nothing);
        let a = (vec!["a.yaml".into()], false);
        assert_eq!(due(&[("a.yaml", CREATED), ("a.yaml", WRITTEN), ("a.yaml", CLOSED)]), a);
        assert_eq!(due(&[("a.yaml", CLOSED), ("a.yaml", WRITTEN)]), nothing);
        for kind in [MOVED, REMOVED, CHMOD] {
            assert_eq!(due(&[("a.yaml", kind)]), a, "{kind:?}");
        }
    }

    #[test]
    fn hidden_files_and_other_names_are_no_manifests() {
        let files = [".a.yaml.new", ".a.yaml", "README.md", "a.yaml~", "a"];
        assert_eq!(due(&files.map(|name| (name, MOVED))), (Vec::new(), false));
        let files = ["a.json", "b.yaml", "c.yml"];
        assert_eq!(due(&files.map(|name| (name, MOVED))).0, files);
    }

    #[test]
    fn lost_events_a_replaced_config_map_and_the_folder_itself_make_everything_due() {
        assert_eq!(due(&[("..data", MOVED)]), (Vec::new(), true));
        assert_eq!(due(&[("", EventKind::Remove(RemoveKind::Folder))]), (Vec::new(), true));
        let happened = Happened::new(Path::new("/f"));
        happened.lock().take();
        happened.add(Ok(notify::Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan)));
        assert!(happened.lock().take().everything);
    }

    #[tokio::test]
    async fn a_writer_that_never_closes_is_waited_for_only_so_long() {
        let happened = Happened::new(Path::new("/f"));
        happened.lock().take();
        happened.lock().files.insert("a.yaml".into(), Some(Instant::now()));
        assert_eq!(happened.due().await.files, [("a.yaml".into(), true)]);
    }

    #[tokio::test]
    async fn what_happens_in_quick_succession_is_due_together() {
        let happened = Happened::new(Path::new("/f"));
        happened.lock().take();
        happened.file("a.yaml".as_ref(), Path::new("/f/a.yaml"), REMOVED);
        let more = async { happened.file("b.yaml".as_ref(), Path::new("/f/b.yaml"), MOVED) };
        let (due, ()) = tokio::join!(happened.due(), more);
        assert_eq!(due.files, [("a.yaml".into(), false), ("b.yaml".into(), false)]);
    }
}
