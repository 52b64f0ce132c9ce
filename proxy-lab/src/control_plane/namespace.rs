//! A network namespace that holds nothing but a control plane and leads nowhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::process::in_namespace;

/// Kept alive by a process that sleeps in it; gone with that process.
#[derive(Debug)]
pub(super) struct Namespace {
    holder: Child,
}

impl Namespace {
    /// A fresh namespace with `lo` up and `address` on it.
    pub(super) fn new(address: &str) -> Result<Self> {
        let holder = Command::new("unshare")
            .args(["--net", "--", "setpriv", "--pdeathsig", "KILL", "--", "sleep", "infinity"])
            .spawn()
            .context("unshare --net (needs root)")?;
        let mut namespace = Self { holder };
        namespace.wait_until_left()?;
        namespace.ip(&["link", "set", "lo", "up"])?;
        namespace.ip(&["address", "add", address, "dev", "lo"])?;
        Ok(namespace)
    }

    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }

    /// Waits until the holder has left our own namespace.
    fn wait_until_left(&mut self) -> Result<()> {
        let ours = fs::read_link("/proc/self/ns/net")?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::read_link(self.path()).map_or(true, |theirs| theirs == ours) {
            if let Some(status) = self.holder.try_wait()? {
                bail!("unshare --net ended with {status}: a network namespace needs root");
            }
            ensure!(Instant::now() < deadline, "unshare --net made no namespace within 10 s");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        let status =
            in_namespace(&self.path(), Path::new("ip")).args(arguments).status().context("running ip")?;
        ensure!(status.success(), "ip {} failed with {status}", arguments.join(" "));
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Failing means that it has ended.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
