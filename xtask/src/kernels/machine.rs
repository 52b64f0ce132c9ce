//! Boots a kernel in qemu without KVM and reads what it says.
//!
//! The first serial port is the kernel's console, kept in a file; the second is the payload's output, so that
//! kernel messages never mix in. The last line of it is `@@exit STATUS`; without that line the run failed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    /// The payload ended with this status.
    Exit(i32),
    /// The machine went down before the payload ended, most likely by a panic; see the console.
    Died,
    /// The limit passed.
    TimedOut,
}

/// Boots `vmlinux` with `initramfs`, gives every line of the payload's output to `line`, and returns when the
/// machine is down. The console is written to `folder/console`.
pub(super) fn run(
    vmlinux: &Path,
    initramfs: &Path,
    folder: &Path,
    limit: Duration,
    mut line: impl FnMut(&str),
) -> Result<Outcome> {
    let deadline = Instant::now() + limit;
    let mut machine = Machine(start(vmlinux, initramfs, folder)?);
    let output = machine.0.stdout.take().context("qemu's output")?;
    let (send, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            // Whoever listened has given up.
            if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });

    let mut exit = None;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(text) => match status(&text) {
                Some(status) => exit = Some(status),
                None => line(text.trim_end()),
            },
            Err(RecvTimeoutError::Timeout) => return Ok(Outcome::TimedOut),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    machine.0.wait().context("waiting for qemu")?;
    Ok(exit.map_or(Outcome::Died, Outcome::Exit))
}

/// Ends with its owner.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // Fails only where it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(vmlinux: &Path, initramfs: &Path, folder: &Path) -> Result<Child> {
    let console = format!("file:{}", folder.join("console").display());
    // setpriv: a machine must not outlive an xtask that was killed.
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
        .args(["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max", "-M", "q35"])
        // Two CPUs: with one, grace periods cost nothing and races do not happen.
        .args(["-smp", "2", "-m", "1024"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-serial", &console, "-serial", "stdio"])
        .arg("-kernel")
        .arg(vmlinux)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 loglevel=4 panic=-1 reboot=t mitigations=off nokaslr tsc=reliable random.trust_cpu=on"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting qemu-system-x86_64 by setpriv (`cargo xtask setup` installs what is missing)")
}

/// The status in an `@@exit STATUS` line.
fn status(line: &str) -> Option<i32> {
    line.trim().strip_prefix("@@exit ")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exit_line_is_a_status() {
        assert_eq!(status("@@exit 3\r"), Some(3));
        assert_eq!(status("the story says @@exit 3"), None);
        assert_eq!(status("@@exit now"), None);
    }
}
