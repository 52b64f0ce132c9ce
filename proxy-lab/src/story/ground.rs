//! The ground the story stands on: what a node's init has mounted, and what the kernel offers without vipr.

use std::fs;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs};

/// Which kernel this is.
pub(super) fn kernel() -> Result<String> {
    let version = fs::read_to_string("/proc/version").context("reading /proc/version")?;
    Ok(version.trim().to_owned())
}

/// cgroup2 takes a group of ours.
pub(super) fn cgroup() -> Result<String> {
    let root = "/sys/fs/cgroup";
    ensure!(statfs(root)?.filesystem_type() == CGROUP2_SUPER_MAGIC, "{root} is not cgroup2");
    let group = format!("{root}/vipr-ground");
    fs::create_dir(&group).with_context(|| format!("making {group}"))?;
    fs::remove_dir(&group).with_context(|| format!("removing {group}"))?;
    Ok(String::new())
}

/// Where maps and links are pinned.
pub(super) fn bpffs() -> Result<String> {
    let root = "/sys/fs/bpf";
    ensure!(statfs(root)?.filesystem_type() == BPF_FS_MAGIC, "{root} is not bpffs");
    Ok(String::new())
}

/// A thread moves into a namespace of its own and sees one device, its loopback.
pub(super) fn namespace() -> Result<String> {
    let devices = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).context("unsharing the network")?;
        let devices = fs::read_to_string("/proc/thread-self/net/dev").context("reading the devices")?;
        anyhow::Ok(devices.lines().skip(2).count())
    });
    let devices = devices.join().expect("the thread does not panic")?;
    ensure!(devices == 1, "{devices} devices in a new namespace");
    Ok(String::new())
}
