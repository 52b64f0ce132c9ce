//! `vipr cleanup`: the node as if vipr had never run.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use serde::Serialize;

use super::output::{Output, Pins, Run};

/// Arguments of `vipr cleanup`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Connections that were made through Services go on; new ones are not translated any more.

Exit codes:
  0  nothing of vipr is left, or nothing was there
  1  it failed; an agent that runs would put everything back, so that is refused")]
pub struct Args {
    #[command(flatten)]
    pins: Pins,
    #[command(flatten)]
    run: Run,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Removed {
    removed: Vec<PathBuf>,
}

/// Remove all pins and attachments, of any version.
pub fn run(args: Args) -> Result<ExitCode> {
    let pin_path = &args.pins.pin_path;
    let removed = Removed { removed: files(pin_path) };
    crate::run::cleanup(pin_path, &args.run.run_path)?;
    args.output.answer(&removed, |removed| text(pin_path, &removed.removed))?;
    Ok(ExitCode::SUCCESS)
}

/// What was removed, for people.
fn text(pin_path: &Path, pins: &[PathBuf]) -> String {
    let mut lines: Vec<_> = pins.iter().map(|pin| format!("removed {}\n", pin.display())).collect();
    if lines.is_empty() {
        lines.push(format!("nothing of vipr was in {}\n", pin_path.display()));
    }
    lines.concat()
}

/// All files below a folder, sorted.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files(&entry.path())),
            _ => found.push(entry.path()),
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_pins_are_named_and_nothing_is_said_to_be_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let named = |files: &[PathBuf]| text(root, files).replace(root.to_str().unwrap(), "PINS");
        assert_eq!(named(&files(root)), "nothing of vipr was in PINS\n");
        fs::create_dir(root.join("links")).unwrap();
        for name in ["services", "links/connect4", "backends"] {
            fs::write(root.join(name), "").unwrap();
        }
        assert_eq!(
            named(&files(root)),
            "removed PINS/backends\nremoved PINS/links/connect4\nremoved PINS/services\n"
        );
        assert!(files(&root.join("none")).is_empty());
    }
}
