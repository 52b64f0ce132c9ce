//! What a crate must do without: dependencies, features, `unsafe`.

use super::lex::is_word;
use super::{File, Finding};

/// The crates that some of ours may depend on, tests apart.
const DEPENDENCIES: [(&str, &[&str]); 2] = [
    ("proxy-common/Cargo.toml", &["zerocopy"]),
    ("proxy-ebpf/Cargo.toml", &["proxy-common", "aya-ebpf", "aya-log-ebpf", "zerocopy"]),
];

/// Where `unsafe` may be: at the kernel.
const UNSAFE: &[&str] = &[
    "proxy-ebpf/",
    "proxy-userspace/src/dataplane/sys.rs",
    "proxy-userspace/src/dataplane/mmap.rs",
    "proxy-lab/src/",
];

/// Dependencies of the shared and the kernel's crate that they must do without; the shared crate has no features.
pub(super) fn stray_dependencies(file: &File) -> Vec<Finding> {
    let Some((_, allowed)) = DEPENDENCIES.iter().find(|(path, _)| *path == file.path) else {
        return Vec::new();
    };
    let mut section = "";
    let mut findings = Vec::new();
    let mut place = 0;
    for line in file.text.split_inclusive('\n') {
        let text = line.trim();
        let name = text.split(['.', ' ', '=']).next().unwrap_or(text);
        if text.starts_with('[') {
            section = text;
        } else if section == "[dependencies]"
            && !text.is_empty()
            && !text.starts_with('#')
            && !allowed.contains(&name)
        {
            findings.push(
                file.at(place, format!("this crate depends on {} only, not on {name}", allowed.join(", "))),
            );
        }
        if text == "[features]" {
            findings.push(file.at(place, "this crate has no features: both halves see the same types"));
        }
        place += line.len();
    }
    findings
}

/// `unsafe` where it has no business.
pub(super) fn stray_unsafe(file: &File) -> Vec<Finding> {
    if UNSAFE.iter().any(|path| file.path.starts_with(path)) {
        return Vec::new();
    }
    let is_word_at = |place: usize| {
        let code = file.parts.code.as_bytes();
        let (before, after) = (place.checked_sub(1).map(|at| code[at]), code.get(place + "unsafe".len()));
        !before.is_some_and(is_word) && !after.copied().is_some_and(is_word)
    };
    let places =
        file.parts.code.match_indices("unsafe").map(|(place, _)| place).filter(|place| is_word_at(*place));
    places.map(|place| file.at(place, format!("`unsafe` belongs into {} only", UNSAFE.join(", ")))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_or_a_feature_of_the_shared_crate_is_found() {
        let text = "[dependencies]\nzerocopy.workspace = true\nlibc = \"1\"\n[dev-dependencies]\ninsta = \"1\"\n[features]\n";
        let found = stray_dependencies(&File::new("proxy-common/Cargo.toml", text));
        assert_eq!(found.iter().map(|finding| finding.line).collect::<Vec<_>>(), [3, 6]);
        assert!(stray_dependencies(&File::new("proxy-lab/Cargo.toml", text)).is_empty());
    }

    #[test]
    fn unsafe_code_outside_of_its_files_is_found() {
        let text = "#![forbid(unsafe_code)]\n// unsafe\nlet a = unsafe { b() };\n";
        let found = stray_unsafe(&File::new("proxy-userspace/src/plan/mod.rs", text));
        assert_eq!(found.iter().map(|finding| finding.line).collect::<Vec<_>>(), [3]);
        assert!(stray_unsafe(&File::new("proxy-userspace/src/dataplane/sys.rs", text)).is_empty());
    }
}
