//! The BPF file system that the pins are on.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use nix::{
    mount::{MsFlags, mount as mount_on},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

/// Mount one where `pin_path` will be, if there is none: on `/sys/fs/bpf` if the path is below that, else on the path's
/// parent.
pub(super) fn mount(pin_path: &Path) -> Result<()> {
    let usual = Path::new("/sys/fs/bpf");
    let point = if pin_path.starts_with(usual) {
        usual
    } else {
        pin_path.parent().context("--pin-path is the root of the file system")?
    };
    if is_bpffs(point) {
        tracing::info!("a BPF file system is mounted on {}", point.display());
        return Ok(());
    }
    if !point.exists() {
        fs::create_dir_all(point).with_context(|| format!("create {}", point.display()))?;
    }
    let none: Option<&str> = None;
    mount_on(Some("bpf"), point, Some("bpf"), MsFlags::empty(), none).with_context(|| {
        format!("mount a BPF file system on {} (this needs CAP_SYS_ADMIN)", point.display())
    })?;
    tracing::info!("mounted a BPF file system on {}", point.display());
    Ok(())
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}
