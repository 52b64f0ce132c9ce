//! Keeps the folders of the machine that built it out of a binary: they say who built it, and make it differ.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::workspace;

/// A folder, and the name that it has in what is built.
type Mapping = (PathBuf, &'static str);

/// The compiler's flags that map the workspace, the crates and `more` to names that are the same everywhere.
pub(crate) fn mapped_away(more: &[Mapping]) -> Vec<String> {
    let flag = |(folder, name): &Mapping| format!("--remap-path-prefix={}={name}", folder.display());
    mappings(more).iter().map(flag).collect()
}

/// Fails if `bytes`, the content of `path`, name a folder that should have been mapped away.
pub(crate) fn check(path: &Path, bytes: &[u8], more: &[Mapping]) -> Result<()> {
    let mappings = mappings(more);
    let mut folders: Vec<_> = mappings.iter().map(|(folder, _)| folder.clone()).collect();
    folders.extend(env::var_os("HOME").map(PathBuf::from));
    folders.retain(|folder| {
        folder.parent().is_some() && !mappings.iter().any(|(_, name)| folder == Path::new(name))
    });
    let found = paths_in(bytes, &folders);
    if !found.is_empty() {
        bail!("{} names folders of this machine:\n  {}", path.display(), found.join("\n  "));
    }
    Ok(())
}

/// Of two that match, rustc takes the last.
fn mappings(more: &[Mapping]) -> Vec<Mapping> {
    let home = env::var_os("HOME").map_or_else(|| "/".into(), PathBuf::from);
    let cargo = env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    // One for each registry, which it is named after.
    let crates = fs::read_dir(cargo.join("registry/src")).into_iter().flatten().flatten();
    let mut crates: Vec<_> = crates.map(|entry| entry.path()).collect();
    crates.sort_unstable();

    let mut mappings = vec![(cargo, "/cargo")];
    mappings.extend(crates.into_iter().map(|folder| (folder, "/crates")));
    mappings.extend(more.iter().cloned());
    mappings.push((workspace::root(), "/vipr"));
    mappings
}

/// The strings of `bytes` that name one of `folders`, each once.
fn paths_in(bytes: &[u8], folders: &[PathBuf]) -> Vec<String> {
    let prefixes: Vec<_> = folders.iter().map(|folder| format!("{}/", folder.display())).collect();
    let texts = bytes.split(|byte| !(b' '..=b'~').contains(byte)).filter(|text| text.len() > 3);
    let texts = texts.filter_map(|text| std::str::from_utf8(text).ok());
    // `/src/` in `/crates/aya/src/lib.rs` is not the folder `/src`.
    let names = |text: &str, prefix: &str| {
        text.match_indices(prefix)
            .any(|(place, _)| !text[..place].ends_with(|c: char| c.is_alphanumeric() || "._-".contains(c)))
    };
    let mut found: Vec<_> =
        texts.filter(|text| prefixes.iter().any(|prefix| names(text, prefix))).map(str::to_owned).collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_the_machine_in_an_object_is_found() {
        let folders = [PathBuf::from("/home/me"), PathBuf::from("/src")];
        let bytes = b"\x7fELF\0/src/proxy-ebpf/src/main.rs\0/vipr/src/a.rs\0\x01 /home/me/.cargo/a.rs\0/home/merlin/b\0";
        assert_eq!(paths_in(bytes, &folders), [" /home/me/.cargo/a.rs", "/src/proxy-ebpf/src/main.rs"]);
        assert!(paths_in(b"\0/vipr/proxy-ebpf/src/main.rs\0", &folders).is_empty());
    }

    #[test]
    fn an_object_that_names_a_folder_fails_the_build() {
        let leak = format!("\0{}/proxy-ebpf/src/main.rs\0", workspace::root().display());
        assert!(check(Path::new("x.o"), leak.as_bytes(), &[]).is_err());
        assert!(check(Path::new("x.o"), b"\0/crates/aya-ebpf-0.2.1/src/lib.rs\0", &[]).is_ok());
    }
}
