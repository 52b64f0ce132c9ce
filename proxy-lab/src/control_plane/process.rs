//! One server of the control plane as a child process that cannot outlive the test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

/// Lines of a log that go into an error message.
const TAIL_LINES: usize = 20;

/// A running child; killed (SIGKILL) and reaped when dropped.
#[derive(Debug)]
pub(super) struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Runs the binary called `name` in the network namespace at `netns`; its output is appended to `log`.
    pub(super) fn spawn(name: &'static str, netns: &Path, arguments: &[String], log: &Path) -> Result<Self> {
        let output = File::options().create(true).append(true).open(log)?;
        let child = in_namespace(netns, &binary(name)?)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self { name, child, log: log.to_owned() })
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// The last lines of its log.
    pub(super) fn tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Failing means that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `program` inside the network namespace, killed when the thread that spawns it ends. Both wrappers exec, so the pid of
/// the child is the program's.
pub(super) fn in_namespace(netns: &Path, program: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", netns.display()));
    command.args(["--", "setpriv", "--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// The path of one of the cluster tests' binaries: kube-apiserver, etcd, kubectl, kube-proxy, helm.
///
/// # Errors
/// It was not built yet; the message says how.
pub fn binary(name: &str) -> Result<PathBuf> {
    let cache = match std::env::var_os("VIPR_CACHE") {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache/vipr"),
    };
    let path = cache.join("bin").join(name);
    if !path.is_file() {
        bail!("{} is missing: `cargo xtask setup kubernetes` builds it (needs Go)", path.display());
    }
    Ok(path)
}
