//! The real kube-proxy in a node of the lab: whom vipr takes over from.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::control_plane::binary;
use crate::lab::Node;
use crate::wait;

/// A running kube-proxy. Dropping it kills it; its rules stay until the lab ends. Its log is printed if a test fails.
#[derive(Debug)]
pub struct KubeProxy {
    child: Child,
    log: PathBuf,
}

impl KubeProxy {
    /// Starts it in `node` with this `mode:`, fed by a kubeconfig.
    ///
    /// # Errors
    /// There is no binary.
    pub fn start(node: &Node, mode: &str, kubeconfig: &std::path::Path) -> Result<Self> {
        let log = node.folder().join("kube-proxy.log");
        let output = File::options().create(true).append(true).open(&log)?;
        let child = node
            .command(binary("kube-proxy")?)?
            .args(["--hostname-override", node.name(), "--proxy-mode", mode])
            // The machine's, not the node's.
            .args(["--conntrack-max-per-core=0", "--cluster-cidr=10.244.0.0/16,fd00:244::/32"])
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting kube-proxy in {}", node.name()))?;
        Ok(Self { child, log })
    }

    /// Removes the rules that it left in `node`.
    ///
    /// # Errors
    /// It says that it could not.
    pub fn clean_up(node: &Node) -> Result<()> {
        node.run(&binary("kube-proxy")?.to_string_lossy(), &["--cleanup"]).map(drop)
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGTERM, and waits for its end. Its rules stay.
    ///
    /// # Errors
    /// It does not end.
    pub fn terminate(mut self) -> Result<()> {
        kill(Pid::from_raw(self.child.id().try_into()?), Signal::SIGTERM)?;
        let child = &mut self.child;
        wait::until("kube-proxy ends", || child.try_wait()?.context("still running"))?;
        Ok(())
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        // Failing means that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("── kube-proxy said:\n{}──", self.log());
        }
    }
}
