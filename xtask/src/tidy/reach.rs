//! Every Rust file is part of a crate: one that no `mod` line leads to is compiled by nobody.

use std::collections::{BTreeMap, BTreeSet};

use super::{File, Finding};

/// The files that no crate root leads to.
pub(super) fn unreachable(files: &[File]) -> Vec<Finding> {
    let rust: BTreeMap<&str, &File> =
        files.iter().filter(|file| file.is_rust()).map(|file| (file.path.as_str(), file)).collect();
    let roots = roots(files);
    let mut reached = BTreeSet::new();
    let mut next: Vec<&str> = rust.keys().copied().filter(|path| roots.contains(*path)).collect();
    while let Some(path) = next.pop() {
        if !reached.insert(path) {
            continue;
        }
        for other in elsewhere(rust[path]) {
            next.extend(rust.get_key_value(other.as_str()).map(|(key, _)| *key));
        }
        for module in modules(&rust[path].parts.code) {
            let stem = format!("{}/{module}", folder(path, roots.contains(path)));
            let candidates = [format!("{stem}.rs"), format!("{stem}/mod.rs")];
            next.extend(
                candidates.iter().filter_map(|path| rust.get_key_value(path.as_str()).map(|(key, _)| *key)),
            );
        }
    }
    let lost = rust.iter().filter(|(path, _)| !reached.contains(*path));
    lost.map(|(_, file)| file.at(0, "no `mod` line of a crate leads here: nobody compiles this file"))
        .collect()
}

/// The files that cargo starts at: those with a name it knows, and those that a manifest names.
fn roots(files: &[File]) -> BTreeSet<String> {
    let mut roots = BTreeSet::new();
    for manifest in files {
        let Some(package) = manifest.path.strip_suffix("Cargo.toml") else { continue };
        let named =
            manifest.text.lines().filter_map(|line| line.trim().strip_prefix("path = \"")?.strip_suffix('"'));
        roots.extend(named.map(|path| format!("{package}{path}")));
        for file in files {
            let Some(path) = file.path.strip_prefix(package) else { continue };
            let parts: Vec<_> = path.split('/').collect();
            let is_root = matches!(
                parts[..],
                ["build.rs"]
                    | ["src", "lib.rs" | "main.rs"]
                    | ["src", "bin", _]
                    | ["src", "bin", _, "main.rs"]
                    | ["tests" | "examples" | "benches" | "fuzz_targets", _]
                    | ["tests" | "examples" | "benches", _, "main.rs"]
            );
            if is_root {
                roots.insert(file.path.clone());
            }
        }
    }
    roots
}

/// Where the modules of the file at `path` lie.
fn folder(path: &str, is_root: bool) -> &str {
    if is_root || path.ends_with("/mod.rs") {
        path.rsplit_once('/').map_or("", |(folder, _)| folder)
    } else {
        path.strip_suffix(".rs").unwrap_or(path)
    }
}

/// The files that `#[path = "…"]` names.
fn elsewhere(file: &File) -> Vec<String> {
    let attribute = "#[path = \"";
    let places =
        file.text.match_indices(attribute).filter(|(place, _)| file.parts.code[*place..].starts_with("#["));
    let named = places.filter_map(|(place, _)| file.text[place + attribute.len()..].split('"').next());
    let mut paths = Vec::new();
    for name in named {
        let mut parts: Vec<_> = file.path.split('/').collect();
        parts.pop();
        for part in name.split('/') {
            match part {
                ".." => drop(parts.pop()),
                _ => parts.push(part),
            }
        }
        paths.push(parts.join("/"));
    }
    paths
}

/// The paths of the modules that `code` declares, through inline ones: `programs/connect` for
/// `mod programs { mod connect; }`.
fn modules(code: &str) -> Vec<String> {
    let spaced = code.replace('{', " { ").replace('}', " } ").replace(';', " ; ");
    let words: Vec<_> = spaced.split_whitespace().collect();
    // One for each open brace: the name of an inline module, or nothing.
    let mut open: Vec<Option<&str>> = Vec::new();
    let mut found = Vec::new();
    for (index, word) in words.iter().enumerate() {
        match *word {
            "{" => open.push((index >= 2 && words[index - 2] == "mod").then(|| words[index - 1])),
            "}" => drop(open.pop()),
            ";" if index >= 2 && words[index - 2] == "mod" => {
                let path: Vec<_> = open.iter().copied().flatten().chain([words[index - 1]]).collect();
                found.push(path.join("/"));
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<_> = files.iter().map(|(path, text)| File::new(*path, *text)).collect();
        unreachable(&files).into_iter().map(|finding| finding.path).collect()
    }

    #[test]
    fn a_file_that_no_mod_line_names_is_found() {
        let files = [
            ("Cargo.toml", ""),
            ("a/Cargo.toml", "[[bin]]\npath = \"odd/start.rs\"\n"),
            ("a/src/main.rs", "mod b;\n// mod lost;\nmod inline {\n pub(crate) mod deep;\n}\n"),
            ("a/src/b/mod.rs", "mod c;"),
            ("a/src/b/c.rs", "mod d;"),
            ("a/src/b/c/d.rs", ""),
            ("a/src/inline/deep.rs", ""),
            ("a/src/lost.rs", ""),
            ("a/src/b/d.rs", ""),
            ("a/odd/start.rs", ""),
            ("a/tests/t.rs", "mod world;\n#[path = \"../src/shared.rs\"]\nmod shared;"),
            ("a/src/shared.rs", ""),
            ("a/tests/world/mod.rs", ""),
            ("a/build.rs", ""),
        ];
        assert_eq!(lost(&files), ["a/src/b/d.rs", "a/src/lost.rs"]);
    }
}
