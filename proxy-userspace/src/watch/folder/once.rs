//! A file of manifests or a folder of them read once, for questions about a cluster that nobody runs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow};

use super::{contents::Contents, happened::is_manifest, manifest};
use crate::{
    model::Source,
    watch::{What, convert::Converter},
};

/// What a file of any name says, or all manifests of a folder together; the first changes are complete lists of
/// Services and slices.
///
/// # Errors
/// A file can't be read, or is neither YAML nor JSON; with its name.
pub fn once(path: &Path, converter: Converter) -> Result<Vec<(Source, What)>> {
    let mut contents = Contents::new(converter);
    let mut out = Vec::new();
    for file in files(path)? {
        let text = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let is_json = file.extension().is_some_and(|extension| extension == "json");
        let manifest =
            manifest::parse(&text, is_json).map_err(|why| anyhow!("read {}: {why}", file.display()))?;
        contents.take(file.file_name().unwrap_or_default(), manifest, &mut out);
    }
    contents.settle(&mut out);
    Ok(out)
}

fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = fs::read_dir(path).with_context(|| format!("read the folder {}", path.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("read the folder {}", path.display()))?;
        // A folder is none, whatever its name.
        if is_manifest(&entry.file_name()) && !entry.path().is_dir() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}
