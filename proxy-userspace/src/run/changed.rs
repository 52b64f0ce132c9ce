//! Whether the configuration file still says what the agent started with.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// Return when the file's text is another: as kube-proxy does (spec §3.1), the agent then ends, and its supervisor
/// starts it anew. A ConfigMap's file is a link into a folder that is replaced, so the text counts and not the event.
pub(super) async fn changed(path: &Path) -> Result<()> {
    let (to, mut events) = mpsc::channel(1);
    let mut watcher = notify::recommended_watcher(move |_| {
        // One that waits is as good as many.
        let _ = to.try_send(());
    })?;
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    // Before the text is read, so that no change falls between.
    watcher
        .watch(parent, RecursiveMode::NonRecursive)
        .with_context(|| format!("watch {}", parent.display()))?;
    let first = fs::read(path).ok();
    while events.recv().await.is_some() {
        // A file that is gone for a moment is being replaced.
        if let Ok(now) = fs::read(path)
            && Some(&now) != first.as_ref()
        {
            return Ok(());
        }
    }
    Ok(())
}
