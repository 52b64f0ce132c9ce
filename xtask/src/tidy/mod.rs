//! The rules of the house that no other tool holds. A rule is a pure function of paths and texts, and each has a test
//! that shows it red.

mod crates;
mod documents;
mod imports;
mod layout;
mod lex;
mod names;
mod reach;
mod shape;
mod words;

use std::fmt;

use anyhow::{Context, Result, bail};
use lex::Parts;
use xshell::{Shell, cmd};

/// A committed file, or one that is about to be.
struct File {
    /// From the workspace's root.
    path: String,
    text: String,
    /// Empty unless it is Rust.
    parts: Parts,
}

impl File {
    fn new(path: impl Into<String>, text: impl Into<String>) -> Self {
        let (path, text) = (path.into(), text.into());
        let parts = lex::split(if path.ends_with(".rs") { &text } else { "" });
        Self { path, text, parts }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// A finding at a byte of the text.
    fn at(&self, place: usize, message: impl Into<String>) -> Finding {
        let line = self.text.as_bytes()[..place].iter().filter(|byte| **byte == b'\n').count() + 1;
        Finding { path: self.path.clone(), line, message: message.into() }
    }
}

/// What is wrong, where.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    line: usize,
    message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// Prints what is wrong, and fails if something is.
pub(crate) fn run(sh: &Shell) -> Result<()> {
    let files = files(sh)?;
    let findings = findings(sh, &files);
    for finding in &findings {
        println!("{finding}");
    }
    println!("tidy: {} files, {} findings", files.len(), findings.len());
    if !findings.is_empty() {
        bail!("the rules are in xtask/src/tidy");
    }
    Ok(())
}

fn findings(sh: &Shell, files: &[File]) -> Vec<Finding> {
    let mut findings = reach::unreachable(files);
    findings.extend(documents::missing_tests(files));
    findings.extend(documents::dead_links(files));
    for file in files {
        findings.extend(shape::too_long(file));
        findings.extend(shape::without_header(file));
        findings.extend(imports::against_the_flow(file));
        findings.extend(crates::stray_dependencies(file));
        findings.extend(crates::stray_unsafe(file));
        findings.extend(names::empty_words(file));
        findings.extend(words::unfinished(file));
        findings.extend(words::copies(file));
        findings.extend(words::machine(file));
        findings.extend(layout::moved(file, || layout::released(sh)));
    }
    findings.sort_unstable();
    findings
}

/// All text files that git knows or would add.
fn files(sh: &Shell) -> Result<Vec<File>> {
    let list = cmd!(sh, "git ls-files --cached --others --exclude-standard --deduplicate").quiet().read();
    let list = list.context("tidy asks git for the files, so the workspace must be a git checkout")?;
    let read = |path: &str| Some(File::new(path, sh.read_file(path).ok()?));
    Ok(list.lines().filter_map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_tidy() -> Result<()> {
        let sh = Shell::new()?;
        sh.change_dir(crate::workspace::root());
        let findings = findings(&sh, &files(&sh)?);
        assert!(findings.is_empty(), "\n{}", findings.iter().map(|f| format!("{f}\n")).collect::<String>());
        Ok(())
    }
}
