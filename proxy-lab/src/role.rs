//! The processes a lab starts of itself. One program plays four roles: the *peer* that holds a place's namespaces and
//! opens its sockets, the wrapper that *enters* a place and becomes another program, and the *reaper* that clears up
//! when the lab's own process has ended, in whatever way.
//!
//! The program is `lab-peer`, found beside the running executable or by `VIPR_LAB_PEER`; or the running executable
//! itself, if its `main` begins with [`play_if_asked`].

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::{cgroup, peer};

/// The first argument of a process that plays a role.
const WORD: &str = "lab-role";

/// Whether the running executable can play the roles.
static SELF: AtomicBool = AtomicBool::new(false);

/// Plays a role if the arguments say so; then the caller's `main` returns what this returns. Otherwise remembers that
/// this executable can play, so that its labs need no `lab-peer` beside it.
pub fn play_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|word| word != WORD) {
        SELF.store(true, Ordering::Relaxed);
        return None;
    }
    match play(arguments.collect()) {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("lab: {error:#}");
            Some(ExitCode::FAILURE)
        }
    }
}

/// The command that plays `role`, to be given the role's arguments.
pub(crate) fn command(role: &str) -> Result<Command> {
    let mut command = Command::new(program()?);
    command.args([WORD, role]);
    Ok(command)
}

fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("VIPR_LAB_PEER") {
        return Ok(path.into());
    }
    let this = std::env::current_exe().context("finding the running executable")?;
    if SELF.load(Ordering::Relaxed) {
        return Ok(this);
    }
    // Tests run from target/debug/deps.
    let folders = this.ancestors().skip(1).take(2);
    match folders.map(|folder| folder.join("lab-peer")).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!(
            "no lab-peer beside {}: `cargo build -p proxy-lab --bin lab-peer` builds it, VIPR_LAB_PEER names another",
            this.display()
        ),
    }
}

fn play(arguments: Vec<OsString>) -> Result<()> {
    let mut arguments = arguments.into_iter();
    let role = arguments.next().context("which role?")?;
    match (role.to_str(), arguments.as_slice()) {
        (Some("peer"), [mounts, cgroup]) => peer::host::run(mounts == "mounts", Path::new(cgroup)),
        (Some("enter"), [pid, mounts, cgroup, program, rest @ ..]) => {
            enter(Path::new("/proc").join(pid), mounts == "mounts", Path::new(cgroup))?;
            let error = Command::new(program).args(rest).exec();
            Err(error).with_context(|| format!("running {}", program.display()))
        }
        (Some("reap"), [cgroup, folder]) => reap(Path::new(cgroup), Path::new(folder)),
        _ => bail!("{} is no role, or has other arguments", role.display()),
    }
}

/// Joins the group and the namespaces of the process whose folder in /proc this is.
fn enter(process: PathBuf, mounts: bool, cgroup: &Path) -> Result<()> {
    let open = |kind: &str| {
        let path = process.join("ns").join(kind);
        File::open(&path).with_context(|| format!("opening {}", path.display()))
    };
    cgroup::join(cgroup)?;
    setns(open("net")?, CloneFlags::CLONE_NEWNET).context("entering the network namespace")?;
    if mounts {
        let folder = std::env::current_dir().unwrap_or_else(|_| "/".into());
        setns(open("mnt")?, CloneFlags::CLONE_NEWNS).context("entering the mount namespace")?;
        // setns moves to the root; a path that the node does not have is no reason to fail.
        let _ = std::env::set_current_dir(folder);
    }
    Ok(())
}

/// Waits until the lab lets go of the pipe that is our standard input, because it is dropped or its process is gone.
fn reap(cgroup: &Path, folder: &Path) -> Result<()> {
    // Ctrl-C goes to a terminal's whole process group: this process has to outlive it.
    nix::unistd::setsid().context("leaving the process group")?;
    println!("ready");
    let mut nothing = Vec::new();
    std::io::stdin().read_to_end(&mut nothing).context("waiting for the lab's end")?;
    cgroup::clear(cgroup)?;
    match std::fs::remove_dir_all(folder) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("removing {}", folder.display())),
    }
}
