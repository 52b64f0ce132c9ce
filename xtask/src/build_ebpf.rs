//! Builds the kernel's half into `target/bpf/vipr-ebpf.o`, from where `proxy-userspace/build.rs` embeds it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use xshell::Shell;

use crate::setup::{self, ebpf::Ebpf};
use crate::{progress, workspace};

/// The target: BPF of the byte order that x86 and ARM have.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// Builds the object and says by which compiler. Cargo decides what is stale.
pub(crate) fn run(sh: &Shell) -> Result<PathBuf> {
    let ebpf = setup::ebpf(sh)?;
    println!("building the kernel's half with {}", ebpf.toolchain);
    // Also so that the folders of crates exist before they are remapped.
    ebpf.toolchain
        .cargo(sh, &["fetch", "--target", TARGET])
        .run()
        .context("fetching crates (needs crates.io)")?;
    let folder = workspace::root().join("target/bpf");
    let arguments = ["build", "--package", "proxy-ebpf", "--profile", "bpf"];
    progress::run("building the kernel's half", cargo(sh, &ebpf, &arguments))?;

    let built = folder.join(TARGET).join("bpf/vipr-ebpf");
    let bytes = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
    let leaks = paths_in(&bytes, &private_folders(&ebpf));
    if !leaks.is_empty() {
        bail!("{} names folders of this machine:\n  {}", built.display(), leaks.join("\n  "));
    }
    let object = folder.join("vipr-ebpf.o");
    // A new date would rebuild the agent.
    if fs::read(&object).is_ok_and(|old| old == bytes) {
        println!("{}: unchanged", object.display());
    } else {
        let partial = folder.join(format!(".vipr-ebpf.o.{}", std::process::id()));
        fs::write(&partial, &bytes)?;
        fs::rename(&partial, &object).with_context(|| format!("naming {}", object.display()))?;
        println!("{}: {} KiB", object.display(), bytes.len() / 1024);
    }
    Ok(object)
}

/// `cargo ARGUMENTS` for the BPF target, in a target folder of its own.
pub(crate) fn cargo<'a>(sh: &'a Shell, ebpf: &Ebpf, arguments: &[&str]) -> xshell::Cmd<'a> {
    let target = ["--target", TARGET, "-Zbuild-std=core", "--target-dir", "target/bpf"];
    let flags = flags(ebpf);
    println!("RUSTFLAGS of the kernel's half: {}", flags.join(" "));
    let arguments: Vec<_> = arguments.iter().chain(&target).copied().collect();
    ebpf.toolchain.cargo(sh, &arguments).env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
}

fn flags(ebpf: &Ebpf) -> Vec<String> {
    let mut flags = vec![
        // Debug info becomes BTF and line info: maps with named fields, verifier errors with source lines.
        "-Cdebuginfo=2".to_owned(),
        format!("-Clinker={}", ebpf.linker.display()),
        "-Clink-arg=--btf".to_owned(),
        // The newest instruction set that Linux 5.10 knows.
        "-Ctarget-cpu=v3".to_owned(),
    ];
    // Of two that match, rustc takes the last.
    let mut folders = vec![(cargo_home(), "/cargo")];
    folders.extend(crates_folders().into_iter().map(|folder| (folder, "/crates")));
    folders.extend([(ebpf.toolchain.source.clone(), "/rust"), (workspace::root(), "/vipr")]);
    flags.extend(
        folders.iter().map(|(folder, name)| format!("--remap-path-prefix={}={name}", folder.display())),
    );
    flags
}

/// One for each registry, which it is named after.
fn crates_folders() -> Vec<PathBuf> {
    let entries = fs::read_dir(cargo_home().join("registry/src")).into_iter().flatten().flatten();
    let mut folders: Vec<_> = entries.map(|entry| entry.path()).collect();
    folders.sort_unstable();
    folders
}

fn cargo_home() -> PathBuf {
    let home = env::var_os("HOME").map_or_else(|| "/".into(), PathBuf::from);
    env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from)
}

/// What must not be found in an object.
fn private_folders(ebpf: &Ebpf) -> Vec<PathBuf> {
    let mut folders = vec![workspace::root(), cargo_home(), ebpf.toolchain.source.clone()];
    folders.extend(env::var_os("HOME").map(PathBuf::from));
    folders.extend(crates_folders());
    folders.retain(|folder| folder != Path::new("/"));
    folders
}

/// The strings of `bytes` that name one of `folders`, each once.
fn paths_in(bytes: &[u8], folders: &[PathBuf]) -> Vec<String> {
    let texts = bytes.split(|byte| !(b' '..=b'~').contains(byte)).filter(|text| text.len() > 3);
    let texts = texts.filter_map(|text| std::str::from_utf8(text).ok());
    let mut found: Vec<_> = texts
        .filter(|text| folders.iter().any(|folder| text.contains(&format!("{}/", folder.display()))))
        .map(str::to_owned)
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_the_machine_in_an_object_is_found() {
        let folders = [PathBuf::from("/home/me"), PathBuf::from("/src/vipr")];
        let bytes = b"\x7fELF\0/src/vipr/proxy-ebpf/src/main.rs\0/vipr/src\0\x01/home/me/.cargo/a.rs\0/home/merlin/b\0";
        assert_eq!(paths_in(bytes, &folders), ["/home/me/.cargo/a.rs", "/src/vipr/proxy-ebpf/src/main.rs"]);
        assert!(paths_in(b"\0/vipr/proxy-ebpf/src/main.rs\0", &folders).is_empty());
    }
}
