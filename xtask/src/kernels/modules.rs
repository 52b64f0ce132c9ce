//! Puts the modules that the stories need, with all that those need, into an archive in load order.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use xshell::{Shell, cmd};

use super::cpio::Archive;
use crate::workspace;

/// What the stories need and Debian builds as modules. Where a kernel has one built in, nothing is loaded.
pub(super) const MODULES: &[&str] =
    &["veth", "dummy", "bridge", "inet_diag", "tcp_diag", "udp_diag", "sch_ingress", "cls_bpf"];

/// The archive `/modules/*.ko` and `/modules/order` for the kernel `release` unpacked in `tree`.
pub(super) fn archive(sh: &Shell, tree: &Path, release: &str) -> Result<Vec<u8>> {
    join_library_folders(tree)?;
    let depmod = tool("depmod")?;
    cmd!(sh, "{depmod} -b {tree} {release}").quiet().run()?;

    let mut archive = Archive::default();
    let mut order = String::new();
    for file in in_load_order(sh, tree, release)? {
        let name = file.file_name().and_then(|name| name.to_str()).context("a module's name")?;
        let name = name.split_once(".ko").map_or(name, |(stem, _)| stem).to_owned() + ".ko";
        archive.file(&format!("/modules/{name}"), 0o644, &uncompressed(sh, &file)?);
        order += &name;
        order.push('\n');
    }
    archive.file("/modules/order", 0o644, order.as_bytes());
    Ok(archive.finish())
}

/// kmod looks in `lib/modules` or in `usr/lib/modules`, by how it was built; packages use either.
fn join_library_folders(tree: &Path) -> Result<()> {
    let (plain, merged) = (tree.join("lib/modules"), tree.join("usr/lib/modules"));
    for (from, to) in [(&plain, &merged), (&merged, &plain)] {
        if from.is_dir() && !to.exists() {
            let parent = to.parent().context("a path with a parent")?;
            std::fs::create_dir_all(parent)?;
            std::os::unix::fs::symlink(from, to).with_context(|| format!("linking {}", to.display()))?;
        }
    }
    Ok(())
}

fn in_load_order(sh: &Shell, tree: &Path, release: &str) -> Result<Vec<PathBuf>> {
    let modprobe = tool("modprobe")?;
    let mut files = Vec::new();
    for module in MODULES {
        let lines = cmd!(sh, "{modprobe} -d {tree} -S {release} --show-depends {module}").quiet().read()?;
        for file in lines.lines().filter_map(|line| line.strip_prefix("insmod ")) {
            // Options may follow the path.
            let file = PathBuf::from(file.split_whitespace().next().unwrap_or(file));
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    ensure!(!files.is_empty(), "no module was found in {}", tree.display());
    Ok(files)
}

/// Administrators' tools are not on the PATH of ordinary users.
fn tool(name: &str) -> Result<PathBuf> {
    workspace::program(name).with_context(|| format!("there is no {name} (`cargo xtask setup kernels`)"))
}

/// busybox's insmod takes no compressed module.
fn uncompressed(sh: &Shell, file: &Path) -> Result<Vec<u8>> {
    let tool = match file.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return std::fs::read(file).with_context(|| format!("reading {}", file.display())),
    };
    let output = cmd!(sh, "{tool} -dc {file}").quiet().output()?;
    Ok(output.stdout)
}
