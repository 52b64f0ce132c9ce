//! Who may import whom: data goes `watch → model → plan → dataplane`, one way, and what is pure stays pure.

use super::lex::is_word;
use super::{File, Finding};

/// What a module of the agent may name.
struct Row {
    module: &'static str,
    /// The agent's modules, its own apart; none: all.
    modules: Option<&'static [&'static str]>,
    /// What it must not name of other crates.
    not: &'static [&'static str],
}

/// Of pure code: no clock, no chance, no lock, no log, no I/O.
const IMPURE: &[&str] = &[
    "tokio",
    "kube",
    "k8s_openapi",
    "aya",
    "aya_obj",
    "rand",
    "tracing",
    "libc",
    "nix",
    "axum",
    "rtnetlink",
    "std::fs",
    "std::env",
    "std::io",
    "std::thread",
    "std::process",
    "TcpStream",
    "UdpSocket",
    "SystemTime",
    "Instant",
    "Mutex",
    "RwLock",
];
const KUBE: &[&str] = &["kube", "k8s_openapi"];

const TABLE: &[Row] = &[
    Row { module: "watch", modules: Some(&["model"]), not: &["aya", "aya_obj"] },
    Row { module: "model", modules: Some(&[]), not: IMPURE },
    Row { module: "plan", modules: Some(&["model"]), not: IMPURE },
    Row { module: "dataplane", modules: Some(&["plan"]), not: KUBE },
    Row {
        module: "reconcile",
        modules: Some(&["watch", "model", "plan", "dataplane", "report"]),
        not: &["aya", "aya_obj", "kube", "k8s_openapi"],
    },
    Row {
        module: "report",
        modules: Some(&["model", "plan"]),
        not: &["aya", "aya_obj", "kube", "k8s_openapi"],
    },
    Row { module: "text", modules: Some(&["model", "plan", "report"]), not: IMPURE },
    Row {
        module: "serve",
        modules: Some(&["report", "text"]),
        not: &["aya", "aya_obj", "kube", "k8s_openapi"],
    },
    Row { module: "events", modules: Some(&["report"]), not: &["aya", "aya_obj"] },
    Row { module: "config", modules: Some(&["model"]), not: &["aya", "aya_obj", "kube", "k8s_openapi"] },
    Row { module: "cli", modules: None, not: &[] },
    Row { module: "run", modules: None, not: &[] },
];

/// Names that the module of this file must not use. Tests at the end of a file may use more.
pub(super) fn against_the_flow(file: &File) -> Vec<Finding> {
    let Some(path) = file.path.strip_prefix("proxy-userspace/src/").filter(|_| file.is_rust()) else {
        return Vec::new();
    };
    let module = path.split(['/', '.']).next().unwrap_or(path);
    if ["lib", "main"].contains(&module) {
        return Vec::new();
    }
    let Some(row) = TABLE.iter().find(|row| row.module == module) else {
        return vec![file.at(
            0,
            format!("the module `{module}` has no row in the import table of xtask/src/tidy/imports.rs"),
        )];
    };
    let code = file.parts.code.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let mut findings = Vec::new();
    for (place, name) in own_modules(code) {
        let known = TABLE.iter().any(|row| row.module == name);
        if known && name != module && row.modules.is_some_and(|modules| !modules.contains(&name)) {
            findings.push(file.at(place, format!("`{module}` must not use `{name}`: data flows one way")));
        }
    }
    findings.extend(
        leaving(code, path).map(|place| file.at(place, "leave the module by `crate::`, not by `super::`")),
    );
    for word in row.not {
        findings.extend(
            uses(code, word).map(|place| file.at(place, format!("`{module}` must not use `{word}`"))),
        );
    }
    findings
}

/// The modules named after `crate::`, alone or in a group, with the place of the use.
fn own_modules(code: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (place, _) in code.match_indices("crate::") {
        let rest = &code[place + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            // The names at the first level of the group.
            let (mut depth, mut start) = (0, true);
            for (at, byte) in group.bytes().enumerate() {
                match byte {
                    b'{' => depth += 1,
                    b'}' if depth == 0 => break,
                    b'}' => depth -= 1,
                    b',' if depth == 0 => start = true,
                    _ if start && is_word(byte) => {
                        found.push((place, word(&group[at..])));
                        start = false;
                    }
                    _ => {}
                }
            }
        } else {
            found.push((place, word(rest)));
        }
    }
    found
}

/// Where a chain of `super::` ends outside of the module.
fn leaving<'a>(code: &'a str, path: &str) -> impl Iterator<Item = usize> + 'a {
    let depth = path.trim_end_matches(".rs").trim_end_matches("/mod").split('/').count();
    let chain = "super::".repeat(depth);
    code.match_indices(&chain).map(|(place, _)| place).collect::<Vec<_>>().into_iter()
}

fn word(text: &str) -> &str {
    let end = text.bytes().position(|byte| !is_word(byte)).unwrap_or(text.len());
    &text[..end]
}

/// The places where the path `name` begins: as a crate or path before `::`, after `use`, or as a type.
fn uses<'a>(code: &'a str, name: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_crate =
        name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    code.match_indices(name).map(|(place, _)| place).filter(move |&place| {
        let (before, after) = (&code[..place], &code[place + name.len()..]);
        let begins =
            !before.bytes().next_back().is_some_and(is_word) && (!is_crate || !before.ends_with("::"));
        let ends = !after.bytes().next().is_some_and(is_word);
        begins && ends && (!is_crate || after.starts_with("::") || before.ends_with("use "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(path: &str, text: &str) -> Vec<String> {
        against_the_flow(&File::new(path, text)).into_iter().map(|finding| finding.message).collect()
    }

    #[test]
    fn a_module_that_looks_upstream_is_found() {
        let bad = "//! x\nuse crate::plan::Step;\nuse crate::{model::Desired, watch};\n";
        let found = messages("proxy-userspace/src/dataplane/load.rs", bad);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("`dataplane` must not use `model`"));
        assert!(found[1].contains("`dataplane` must not use `watch`"));
        assert!(messages("proxy-userspace/src/cli/show.rs", bad).is_empty());
        assert!(messages("proxy-userspace/src/plan/mod.rs", "use super::watch;").len() == 1);
        assert!(messages("proxy-userspace/src/plan/diff.rs", "use super::Step;").is_empty());
    }

    #[test]
    fn a_pure_module_that_is_not_is_found() {
        let path = "proxy-userspace/src/model/desired.rs";
        assert_eq!(messages(path, "use std::time::{Duration, Instant};").len(), 1);
        assert_eq!(messages(path, "fn f() { tracing::info!(1) }").len(), 1);
        assert_eq!(messages(path, "use tokio;").len(), 1);
        assert!(messages(path, "// tokio::spawn\nlet kube = brand::x(); let s = \"aya::\";").is_empty());
        assert!(messages(path, "fn f() {}\n#[cfg(test)]\nmod tests { use rand::x; }").is_empty());
    }

    #[test]
    fn a_module_without_a_row_is_found() {
        assert_eq!(messages("proxy-userspace/src/misc.rs", "").len(), 1);
        assert!(messages("proxy-userspace/src/lib.rs", "use crate::x;").is_empty());
        assert!(messages("proxy-lab/src/misc.rs", "use aya::x;").is_empty());
    }
}
