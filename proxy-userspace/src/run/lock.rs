//! One writer: whoever holds the lock owns the tables. The kernel lets go of it when its process ends, however it ends.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

/// How often a waiting agent tries.
const EVERY: Duration = Duration::from_millis(200);

/// Where an agent keeps its lock and its socket. Named after the BPF file system and the pins' path on it, so that nodes
/// that share a machine and its `/run` do not exclude each other.
#[derive(Clone, Debug)]
pub struct Place {
    folder: PathBuf,
    name: String,
}

/// Held until dropped.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Place {
    /// Of the agent with these pins.
    pub fn new(pin_path: &Path, run_path: &Path) -> Self {
        // The pins' folder may not be there yet, the file system it will be on is.
        let device =
            pin_path.ancestors().find_map(|path| fs::metadata(path).ok()).map_or(0, |meta| meta.dev());
        let path = pin_path.to_string_lossy();
        let path = path.trim_matches('/').replace(['/', '.'], "-");
        Self { folder: run_path.to_path_buf(), name: format!("{path}-{device:x}") }
    }

    /// Where the agent answers `vipr status`.
    pub fn socket(&self) -> PathBuf {
        self.folder.join(format!("{}.sock", self.name))
    }

    fn file(&self) -> PathBuf {
        self.folder.join(format!("{}.lock", self.name))
    }

    /// The lock, or who holds it.
    pub fn try_lock(&self) -> Result<Result<Lock, String>> {
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("create {} (`--run-path` names another)", self.folder.display()))?;
        let path = self.file();
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = file.with_context(|| format!("open {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                file.set_len(0)?;
                write!(file, "process {}", std::process::id())?;
                Ok(Ok(Lock { _file: file }))
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                file.rewind()?;
                file.read_to_string(&mut holder)?;
                Ok(Err(if holder.is_empty() { "another process".into() } else { holder }))
            }
            Err((_, errno)) => Err(errno).with_context(|| format!("lock {}", path.display())),
        }
    }

    /// The lock, when whoever holds it has ended.
    pub async fn lock(&self) -> Result<Lock> {
        let mut said = false;
        loop {
            match self.try_lock()? {
                Ok(lock) => return Ok(lock),
                Err(holder) => {
                    if !said {
                        tracing::warn!("another agent ({holder}) owns the tables: waiting until it ends");
                        said = true;
                    }
                    tokio::time::sleep(EVERY).await;
                }
            }
        }
    }

    /// Forget the socket's name.
    pub fn remove_socket(&self) {
        let _ = fs::remove_file(self.socket());
    }

    /// Forget everything; only for who holds the lock and leaves for good.
    pub fn remove(&self) {
        self.remove_socket();
        let _ = fs::remove_file(self.file());
        // Only if it is empty.
        let _ = fs::remove_dir(&self.folder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_is_told_who_holds_the_lock_and_gets_it_when_it_is_dropped() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let place = Place::new(Path::new("/sys/fs/bpf/vipr"), &folder.path().join("vipr"));
        let lock = place.try_lock()?.expect("nobody holds it");
        let holder = place.try_lock()?.expect_err("it is held");
        assert_eq!(holder, format!("process {}", std::process::id()));
        drop(lock);
        assert!(place.try_lock()?.is_ok());
        place.remove();
        assert!(!folder.path().join("vipr").exists());
        Ok(())
    }

    #[test]
    fn agents_with_other_pins_do_not_exclude_each_other() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let one = Place::new(Path::new("/sys/fs/bpf/vipr"), folder.path());
        let other = Place::new(Path::new("/sys/fs/bpf/other"), folder.path());
        let _one = one.try_lock()?.expect("nobody holds it");
        assert!(other.try_lock()?.is_ok());
        Ok(())
    }
}
