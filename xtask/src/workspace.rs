//! Where things are: the workspace, what cargo builds, and the cache that outlives `cargo clean`.

use std::env;
use std::path::{self, PathBuf};

use anyhow::{Context, Result};

/// The variable that names the workspace's root where cargo's own is gone.
pub(crate) const ROOT: &str = "VIPR_WORKSPACE";

/// The workspace's root.
pub(crate) fn root() -> PathBuf {
    if let Some(root) = env::var_os(ROOT) {
        return root.into();
    }
    // At run time first: a copied binary works in the copy.
    let here = env!("CARGO_MANIFEST_DIR");
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| here.into(), PathBuf::from);
    manifest.parent().map_or_else(|| manifest.clone(), PathBuf::from)
}

/// The folder that cargo builds into, known by where this program lies (`TARGET/debug/xtask`), so that every way of
/// moving it is followed.
pub(crate) fn target_folder() -> Result<PathBuf> {
    let program = env::current_exe().context("finding this program")?;
    let folder = program.ancestors().nth(2).context("this program lies outside of a target folder")?;
    Ok(folder.to_owned())
}

/// `$VIPR_CACHE`, else `$XDG_CACHE_HOME/vipr`, else `~/.cache/vipr`, absolute.
pub(crate) fn cache_folder() -> Result<PathBuf> {
    let folder = cache_folder_by(|name| {
        env::var_os(name).map(PathBuf::from).filter(|path| !path.as_os_str().is_empty())
    });
    let folder =
        folder.context("no place for the cache: none of VIPR_CACHE, XDG_CACHE_HOME and HOME is set")?;
    path::absolute(&folder).with_context(|| format!("the path {}", folder.display()))
}

fn cache_folder_by(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    variable("VIPR_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("vipr")))
        .or_else(|| Some(variable("HOME")?.join(".cache/vipr")))
}

/// The path of a program on PATH.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(variables: &[(&str, &str)]) -> Option<PathBuf> {
        cache_folder_by(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn the_cache_is_where_the_user_says_then_xdg_then_home() {
        let all = [("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("VIPR_CACHE", "/v")];
        assert_eq!(cache(&all), Some("/v".into()));
        assert_eq!(cache(&all[..2]), Some("/x/vipr".into()));
        assert_eq!(cache(&all[..1]), Some("/h/.cache/vipr".into()));
        assert_eq!(cache(&[]), None);
    }
}
