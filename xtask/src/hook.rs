//! Installs a pre-commit hook that costs a second: format and tidy.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

const HOOK: &str =
    "#!/bin/sh\n# Installed by `cargo xtask hook`.\nset -e\ncargo fmt --all --check\ncargo xtask tidy\n";

/// Writes the hook, unless there is one of another's.
pub(crate) fn run(sh: &Shell) -> Result<()> {
    let folder =
        cmd!(sh, "git rev-parse --git-path hooks").quiet().read().context("this is not a git checkout")?;
    let path = sh.current_dir().join(folder).join("pre-commit");
    if write(&path)? {
        println!("installed {}", path.display());
    } else {
        println!("{}: installed already", path.display());
    }
    Ok(())
}

fn write(path: &Path) -> Result<bool> {
    match fs::read_to_string(path) {
        Ok(text) if text == HOOK => return Ok(false),
        Ok(text) if !text.contains("cargo xtask hook") => {
            bail!("{} is not from here: add `cargo xtask tidy` to it by hand", path.display())
        }
        _ => {}
    }
    let folder = path.parent().context("a hook lies in a folder")?;
    fs::create_dir_all(folder)?;
    fs::write(path, HOOK).with_context(|| format!("writing {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hook_is_written_once_and_never_over_anothers() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("hooks/pre-commit");
        assert!(write(&path)?);
        assert!(!write(&path)?);
        assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o111, 0o111);
        fs::write(&path, "#!/bin/sh\nmake\n")?;
        assert!(write(&path).is_err());
        Ok(())
    }
}
