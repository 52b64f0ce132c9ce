//! Who is measured: nothing, vipr, and the real kube-proxy, each in a node of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proxy_lab::{Node, PIN_PATH, control_plane};

/// One who is measured.
#[derive(Clone, Debug)]
pub(crate) struct Contestant {
    /// Of its node, and in the results.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
}

/// What serves.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// Nothing: clients dial the pod. The forwarding of a node without any rule.
    Direct,
    /// The agent by this binary, with the socket plane or without.
    Vipr { binary: PathBuf, sockets: bool },
    /// The real kube-proxy in this mode.
    KubeProxy { mode: &'static str, most: u32 },
}

impl Contestant {
    /// Everybody that a run measures: `before` is the binary of another revision.
    pub(crate) fn all(vipr: &Path, before: Option<&Path>, full: bool) -> Vec<Self> {
        let agent = |binary: &Path, sockets| Kind::Vipr { binary: binary.to_owned(), sockets };
        let mut all = vec![
            Self { name: "direct", kind: Kind::Direct },
            Self { name: "vipr", kind: agent(vipr, true) },
            Self { name: "packets", kind: agent(vipr, false) },
        ];
        match before {
            // Against oneself: kube-proxy has nothing to say there.
            Some(before) => all.extend([
                Self { name: "vipr-old", kind: agent(before, true) },
                Self { name: "packets-old", kind: agent(before, false) },
            ]),
            None => all.extend(
                // iptables takes minutes to serve ten thousand.
                [("iptables", if full { 10_000 } else { 1000 }), ("nftables", 10_000)]
                    .map(|(mode, most)| Self { name: mode, kind: Kind::KubeProxy { mode, most } }),
            ),
        }
        all
    }

    /// The agent that it is, if it is one.
    pub(crate) fn binary(&self) -> Option<&Path> {
        if let Kind::Vipr { binary, .. } = &self.kind { Some(binary) } else { None }
    }

    /// The most Services that it is asked to serve here.
    pub(crate) fn most(&self) -> u32 {
        if let Kind::KubeProxy { most, .. } = self.kind { most } else { u32::MAX }
    }
}

/// A running proxy. Killed when dropped; its rules or programs stay in its node.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
    /// Where in the log it began.
    from: usize,
}

impl Running {
    /// Starts it in `node`; `None` where there is nothing to start.
    pub(crate) fn start(
        contestant: &Contestant,
        node: &Node,
        vipr_kubeconfig: &Path,
        admin_kubeconfig: &Path,
    ) -> Result<Option<Self>> {
        Self::start_in(contestant, node, vipr_kubeconfig, admin_kubeconfig, None)
    }

    /// The same for a process of this group of the memory controller.
    pub(crate) fn start_in(
        contestant: &Contestant,
        node: &Node,
        vipr_kubeconfig: &Path,
        admin_kubeconfig: &Path,
        group: Option<&Path>,
    ) -> Result<Option<Self>> {
        let program = |path: &Path| -> Result<Command> {
            let Some(group) = group else { return node.command(path) };
            // Before it exists, so that all that it takes is charged there.
            let mut command = node.command("sh")?;
            let join = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;
            command.args(["-c", join]).arg(group).arg(path);
            Ok(command)
        };
        let mut command = match &contestant.kind {
            Kind::Direct => return Ok(None),
            Kind::Vipr { binary, sockets } => {
                let mut command = program(binary)?;
                command.args(["run", "--hostname-override", node.name(), "--pin-path", PIN_PATH]);
                command.arg("--cgroup").arg(node.node_cgroup());
                command.arg("--kubeconfig").arg(vipr_kubeconfig);
                command.arg(if *sockets { "--socket-plane=all" } else { "--socket-plane=off" });
                command
            }
            Kind::KubeProxy { mode, .. } => {
                let mut command = program(&control_plane::binary("kube-proxy")?)?;
                command.args(["--hostname-override", node.name(), "--proxy-mode", mode]);
                command.args(["--conntrack-max-per-core=0", "--cluster-cidr=10.244.0.0/16"]);
                command.arg("--kubeconfig").arg(admin_kubeconfig);
                command
            }
        };
        let log = node.folder().join(format!("{}.log", contestant.name));
        let output = File::options().create(true).append(true).open(&log)?;
        let from = usize::try_from(output.metadata()?.len())?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(|| format!("starting {}", contestant.name))?;
        Ok(Some(Self { child, log, from }))
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error with the end of its log if it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        let status = self.child.try_wait()?;
        ensure!(status.is_none(), "it ended with {status:?}: {}", self.tail());
        Ok(())
    }

    /// What it has said.
    pub(crate) fn log(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.get(self.from..).unwrap_or_default().to_owned()
    }

    /// The last of its log.
    pub(crate) fn tail(&self) -> String {
        let text = self.log();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// SIGTERM, and waits.
    pub(crate) fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.pid().try_into()?), Signal::SIGTERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Failing means that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
