//! The lab's sub-tree of cgroup2: one group a node, in it one leaf for the host and one for each pod.
//!
//! Every process of a lab is in its sub-tree, so the sub-tree is also how they are all found when the lab ends.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How a lab's group, and its folder of files, begin; then the pid of the process that made it and a number.
pub const PREFIX: &str = "vipr-lab-";

/// How long the processes of a sub-tree may take to die of SIGKILL.
const DEADLINE: Duration = Duration::from_secs(20);

/// Where cgroup2 is mounted: alone (`/sys/fs/cgroup`) or beside version 1 (`/sys/fs/cgroup/unified`).
///
/// # Errors
/// It is mounted nowhere.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    match find_mount_point(&mounts) {
        Some(path) => Ok(path.into()),
        None => bail!("cgroup2 is mounted nowhere: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified"),
    }
}

/// The mount point (field 5) of the first cgroup2 that shows its root (field 4); see proc_pid_mountinfo(5).
fn find_mount_point(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let (place, source) = line.split_once(" - ")?;
        let mut fields = place.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (source.starts_with("cgroup2 ") && root == "/").then_some(point)
    })
}

/// Makes a group and those above it.
pub(crate) fn make(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("making the cgroup {} (needs root)", path.display()))
}

/// Moves the calling process into the group at `path`.
pub(crate) fn join(path: &Path) -> Result<()> {
    let file = path.join("cgroup.procs");
    fs::write(&file, "0").with_context(|| format!("joining the cgroup by {}", file.display()))
}

/// Kills everything in the sub-tree at `path` and removes it. A sub-tree that is gone is fine.
pub(crate) fn clear(path: &Path) -> Result<()> {
    let deadline = Instant::now() + DEADLINE;
    while !kill_and_remove(path)? {
        ensure!(
            Instant::now() < deadline,
            "processes in {} survive SIGKILL for {DEADLINE:?}: {:?}",
            path.display(),
            members(path)?
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// One attempt, leaves first; false if something is still dying.
fn kill_and_remove(path: &Path) -> Result<bool> {
    for pid in members(path)? {
        // ESRCH: it has ended meanwhile.
        let _ = kill(pid, Signal::SIGKILL);
    }
    let mut done = true;
    for child in children(path)? {
        done &= kill_and_remove(&child)?;
    }
    if !done {
        return Ok(false);
    }
    match fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == ErrorKind::ResourceBusy => Ok(false),
        Err(error) => Err(error).with_context(|| format!("removing the cgroup {}", path.display())),
    }
}

/// The processes of one group, without those of its children.
fn members(path: &Path) -> Result<Vec<Pid>> {
    match fs::read_to_string(path.join("cgroup.procs")) {
        Ok(text) => Ok(text.lines().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect()),
        // ENODEV: the group is being removed.
        Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error).with_context(|| format!("reading the processes of {}", path.display())),
    }
}

fn children(path: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("listing {}", path.display())),
    };
    Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
}

/// Clears the sub-trees and folders of labs whose process is gone, killed together with its reaper.
pub(crate) fn sweep(root: &Path, folders: &Path) -> Result<()> {
    for path in children(root)?.into_iter().filter(|path| is_orphan(path)) {
        clear(&path)?;
    }
    for path in children(folders)?.into_iter().filter(|path| is_orphan(path)) {
        // Another lab may be sweeping it.
        let _ = fs::remove_dir_all(&path);
    }
    Ok(())
}

/// Whether the name is `vipr-lab-PID-N` and no process PID exists.
fn is_orphan(path: &Path) -> bool {
    let pid = path
        .file_name()
        .and_then(|name| name.to_str()?.strip_prefix(PREFIX)?.split_once('-')?.0.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_alone_and_beside_version_1() {
        let unified = "25 22 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(find_mount_point(unified), Some("/sys/fs/cgroup"));
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount_point(hybrid), Some("/sys/fs/cgroup/unified"));
    }

    #[test]
    fn a_mounted_part_of_cgroup2_is_not_its_root() {
        let part = "41 31 0:38 /user.slice /mnt/part rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount_point(part), None);
    }

    #[test]
    fn a_group_is_an_orphan_when_its_maker_is_gone() {
        assert!(!is_orphan(Path::new(&format!("/x/{PREFIX}{}-3", std::process::id()))));
        // Above the largest pid the kernel gives out (2^22).
        assert!(is_orphan(Path::new("/x/vipr-lab-4194305-1")));
        assert!(!is_orphan(Path::new("/x/another-4194305-1")));
    }
}
