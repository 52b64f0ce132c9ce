//! A folder of manifests in place of an API server: files `*.yaml`, `*.yml` and `*.json` whose names don't begin with
//! a dot, in the folder itself. What they mean together is `contents`' matter; here they are followed.
//!
//! Replace files by renaming, as everybody who writes for a live reader does. One that is written in place counts
//! when it is closed.

mod contents;
mod happened;
mod manifest;
mod once;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::{
    sync::mpsc::Sender,
    time::{sleep, timeout},
};

pub use once::once;

use self::{
    contents::{Contents, Reading},
    happened::{Due, Happened, is_manifest},
};
use super::{Event, What, convert::Converter};
use crate::model::Source;

/// How often the folder is looked for without being told to: whether it is still the same, or is back.
const LOOK: Duration = Duration::from_secs(1);

/// Whom a folder stands for.
const SOURCES: [Source; 4] = [Source::Slices, Source::Services, Source::ServiceCidrs, Source::Node];

/// Follows the folder until nobody listens. A file or object that can't be read is named, and what it said before
/// stays; so does everything while the folder is lost.
///
/// # Errors
/// The folder can't be read at the start.
pub async fn follow(folder: PathBuf, converter: Converter, to: Sender<Event>) -> Result<()> {
    let mut contents = Contents::new(converter);
    let mut watched = Watched::start(&folder).context("--manifests names a folder that exists")?;
    while let Err(error) = watched.run(&mut contents, &to).await {
        if to.is_closed() {
            break;
        }
        for source in SOURCES {
            let why = format!("{error:#}; what it said stays");
            tell(&to, source, What::Broken { why }).await;
        }
        watched = loop {
            tokio::select! {
                () = to.closed() => return Ok(()),
                () = sleep(LOOK) => {}
            }
            if let Ok(watched) = Watched::start(&folder) {
                break watched;
            }
        };
    }
    Ok(())
}

/// If nobody listens, the next look at the channel says so.
async fn tell(to: &Sender<Event>, source: Source, what: What) {
    let _ = to.send(Event::now(source, what)).await;
}

/// The folder under watch.
struct Watched {
    folder: PathBuf,
    /// Another folder may come to have the same name.
    identity: (u64, u64),
    happened: Arc<Happened>,
    /// Watches as long as it lives.
    _watcher: RecommendedWatcher,
}

impl Watched {
    fn start(folder: &Path) -> Result<Self> {
        let identity = identity(folder)?;
        let happened = Arc::new(Happened::new(folder));
        let handler = happened.clone();
        let mut watcher = notify::recommended_watcher(move |event| handler.add(event))?;
        watcher
            .watch(folder, RecursiveMode::NonRecursive)
            .with_context(|| format!("watch the folder of manifests {}", folder.display()))?;
        Ok(Self { folder: folder.to_owned(), identity, happened, _watcher: watcher })
    }

    /// # Errors
    /// The folder is lost; or nobody listens.
    async fn run(&self, contents: &mut Contents, to: &Sender<Event>) -> Result<()> {
        loop {
            let due = tokio::select! {
                () = to.closed() => return Ok(()),
                due = timeout(LOOK, self.happened.due()) => due.unwrap_or_default(),
            };
            self.still_there()?;
            if due == Due::default() {
                for source in SOURCES {
                    tell(to, source, What::Alive).await;
                }
                continue;
            }
            let mut out = Vec::new();
            self.read(contents, due, &mut out)?;
            // Files that went together with their folder were not deleted.
            self.still_there()?;
            contents.settle(&mut out);
            for (source, what) in out {
                tell(to, source, what).await;
            }
        }
    }

    /// In place, without a thread of its own: after the first time it is one small file or two.
    fn read(&self, contents: &mut Contents, due: Due, out: &mut Vec<(Source, What)>) -> Result<()> {
        let mut files: BTreeMap<OsString, bool> = due.files.into_iter().collect();
        if due.everything {
            let entries = fs::read_dir(&self.folder);
            let entries = entries.with_context(|| format!("read the folder {}", self.folder.display()))?;
            for entry in entries {
                let name =
                    entry.with_context(|| format!("read the folder {}", self.folder.display()))?.file_name();
                if is_manifest(&name) {
                    files.entry(name).or_insert(false);
                }
            }
            for name in contents.names() {
                files.entry(name.clone()).or_insert(false);
            }
        }
        for (name, was_waited_for) in files {
            match contents.read(&self.folder, &name, out) {
                Reading::Emptied if was_waited_for => contents.forget(&name),
                Reading::Emptied => self.happened.unfinished(name),
                Reading::Done => {}
            }
        }
        Ok(())
    }

    fn still_there(&self) -> Result<()> {
        let now = identity(&self.folder)?;
        ensure!(now == self.identity, "{}: another folder has come in its place", self.folder.display());
        Ok(())
    }
}

fn identity(folder: &Path) -> Result<(u64, u64)> {
    let metadata =
        fs::metadata(folder).with_context(|| format!("the folder of manifests {}", folder.display()))?;
    ensure!(metadata.is_dir(), "{} is no folder", folder.display());
    Ok((metadata.dev(), metadata.ino()))
}
