//! The part of the initramfs that is made for each run: busybox, the tools and programs of the story with
//! the libraries they need, and the first process.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

use super::cpio::Archive;
use crate::workspace;

/// What a machine runs.
pub(super) struct Payload {
    /// Programs: the file here, its path there. Debug information is left out.
    pub(super) programs: Vec<(PathBuf, String)>,
    /// A shell script, run as `/payload/run`; its status is the machine's.
    pub(super) script: String,
}

/// Tools of this machine that a story may call: busybox's `ip` knows no network namespaces.
const TOOLS: &[&str] = &["ip", "dash"];
const INIT: &str = include_str!("init.sh");

/// The archive for `payload`.
pub(super) fn archive(sh: &Shell, payload: &Payload) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in ["/proc", "/sys", "/dev", "/tmp", "/run", "/bin", "/sbin", "/etc", "/payload"] {
        archive.directory(folder);
    }
    archive.file("/init", 0o755, INIT.as_bytes());
    let mut libraries = BTreeSet::new();
    let tools = TOOLS.iter().map(|tool| (*tool, format!("/usr/bin/{tool}")));
    for (tool, there) in tools.chain([("busybox", "/bin/busybox".to_owned())]) {
        let here = workspace::program(tool);
        let here = here.with_context(|| format!("there is no {tool} (`cargo xtask setup kernels`)"))?;
        archive.file(&there, 0o755, &read(&here)?);
        libraries.extend(needed(sh, &here)?);
    }
    // dash and not busybox's shell, which would run its own applets before anything on the PATH.
    let script = format!("#!/usr/bin/dash\n{}\n", payload.script);
    archive.file("/payload/run", 0o755, script.as_bytes());

    for (here, there) in &payload.programs {
        archive.file(there, 0o755, &stripped(sh, here)?);
        libraries.extend(needed(sh, here)?);
    }
    for library in libraries {
        archive.file(&library, 0o755, &read(Path::new(&library))?);
    }
    Ok(archive.finish())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

/// The program without its debug information, which is most of it and has to be loaded into the machine.
fn stripped(sh: &Shell, program: &Path) -> Result<Vec<u8>> {
    let out = program.with_extension(format!("stripped-{}", std::process::id()));
    cmd!(sh, "strip --strip-debug -o {out} {program}").quiet().run()?;
    let content = read(&out);
    std::fs::remove_file(&out)?;
    content
}

/// The shared libraries of a program and the loader, at the paths where the loader finds them.
fn needed(sh: &Shell, program: &Path) -> Result<Vec<String>> {
    let output = cmd!(sh, "ldd {program}").quiet().ignore_status().output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if let Some(line) = text.lines().find(|line| line.contains("not found")) {
        bail!("{} needs a library that is missing here: {}", program.display(), line.trim());
    }
    Ok(libraries(&text))
}

/// `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the loader. A static program has neither.
fn libraries(ldd: &str) -> Vec<String> {
    ldd.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_taken_from_ldd_and_a_static_program_has_none() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f3c)\n\
                   \t/lib64/ld-linux-x86-64.so.2 (0x00007f3d)\n";
        assert_eq!(libraries(ldd), ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        assert!(libraries("\tstatically linked\n").is_empty());
        assert!(libraries("\tnot a dynamic executable\n").is_empty());
    }
}
