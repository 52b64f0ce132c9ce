//! Documents that name things of the tree: a test that shows a behaviour, a file that tells more. A name that leads
//! nowhere is worse than none.

use std::collections::HashSet;

use super::{File, Finding};

/// Where behaviours stand beside the tests that show them.
const PAGES: [&str; 2] = ["docs/parity.md", "docs/corner-cases.md"];

/// Tests named in these pages that do not exist.
pub(super) fn missing_tests(files: &[File]) -> Vec<Finding> {
    let code = files.iter().filter(|file| file.is_rust());
    let known: HashSet<&str> = code.flat_map(|file| file.parts.code.split("fn ").skip(1)).map(word).collect();
    let missing = |page: &File| {
        let quoted = page.text.split('`').skip(1).step_by(2);
        let tests = quoted.filter(|name| is_sentence(name) && !known.contains(name));
        let finding = |name| page.at(page.text.find(name).unwrap_or(0), format!("there is no test `{name}`"));
        tests.map(finding).collect::<Vec<_>>()
    };
    files.iter().filter(|file| PAGES.contains(&file.path.as_str())).flat_map(missing).collect()
}

/// Links of Markdown to files that do not exist.
pub(super) fn dead_links(files: &[File]) -> Vec<Finding> {
    let paths: HashSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let exists =
        |path: &str| paths.contains(path) || paths.iter().any(|known| known.starts_with(&format!("{path}/")));
    let mut findings = Vec::new();
    for page in files.iter().filter(|file| file.path.ends_with(".md")) {
        for (place, _) in page.text.match_indices("](") {
            let target = page.text[place + 2..].split(')').next().unwrap_or_default();
            let path = target.split('#').next().unwrap_or_default();
            if path.is_empty() || path.contains("://") {
                continue;
            }
            let path = joined(&page.path, path.trim_end_matches('/'));
            if !exists(&path) {
                findings.push(page.at(place, format!("the link leads to {path}, which is not there")));
            }
        }
    }
    findings
}

/// `link` as seen from the page at `page`.
fn joined(page: &str, link: &str) -> String {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn word(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

/// The name of a test is a sentence: four words at least.
fn is_sentence(name: &str) -> bool {
    name.matches('_').count() >= 3
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_the_page_names_must_exist() {
        for path in PAGES {
            let page = |name: &str| File::new(path, format!("| x | `{name}`, `masqueradeAll`, `/healthz` |"));
            let code = || File::new("a/tests/b.rs", "#[test]\nfn a_thing_is_so() {}\n");
            assert!(missing_tests(&[page("a_thing_is_so"), code()]).is_empty());
            let found = missing_tests(&[page("a_thing_is_not_so"), code()]);
            assert_eq!(found[0].message, "there is no test `a_thing_is_not_so`");
        }
    }

    #[test]
    fn a_link_must_lead_to_a_file_or_folder() {
        let page = |link: &str| File::new("docs/a.md", format!("see [x]({link})"));
        let other = || File::new("docs/adr/0001.md", "");
        for fine in
            ["adr/0001.md", "adr/0001.md#here", "adr/", "../docs/adr/0001.md", "#here", "https://x.example/y"]
        {
            assert!(dead_links(&[page(fine), other()]).is_empty(), "{fine}");
        }
        assert_eq!(dead_links(&[page("adr/0002.md"), other()]).len(), 1);
    }
}
