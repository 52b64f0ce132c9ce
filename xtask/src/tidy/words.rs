//! What must not stand in a committed file.

use super::{File, Finding};

/// A place where something is left to do names the issue that will do it: a word of [`UNFINISHED`], then `(#7)`.
pub(super) fn unfinished(file: &File) -> Vec<Finding> {
    // Of Rust only comments: a string may speak of such words.
    let text = if file.is_rust() { &file.parts.comments } else { &file.text };
    let is_open = |place: usize, word: &str| {
        let (before, after) = (&text[..place], &text[place + word.len()..]);
        let alone = !before.ends_with(char::is_alphanumeric) && !after.starts_with(char::is_alphanumeric);
        let issue =
            after.strip_prefix("(#").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
        alone && !issue
    };
    UNFINISHED
        .iter()
        .flat_map(|word| text.match_indices(word))
        .filter(|(place, word)| is_open(*place, word))
        .map(|(place, word)| {
            file.at(place, format!("`{word}` without the number of an issue: write `{word}(#7)`"))
        })
        .collect()
}

const UNFINISHED: [&str; 3] = ["TODO", "FIXME", "XXX"];

/// Two places that a person must keep equal will differ one day: let one be made from the other, or test it.
pub(super) fn copies(file: &File) -> Vec<Finding> {
    let text = file.text.to_lowercase();
    let phrases =
        [concat!("keep in", " sync"), concat!("keep them in", " sync"), concat!("keep this in", " sync")];
    let found = phrases.iter().flat_map(|phrase| text.match_indices(phrase));
    found
        .map(|(place, _)| {
            file.at(place.min(file.text.len()), "let a test hold two places equal, not a comment")
        })
        .collect()
}

/// Places of the machine that a file was written on, and hosts that stand in for public registries.
pub(super) fn machine(file: &File) -> Vec<Finding> {
    let folders = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/tmp", "/wt")];
    let mirrors = [concat!("arti", "factory"), concat!("registry+http", "://")];
    let named = folders.into_iter().chain(mirrors).flat_map(|word| file.text.match_indices(word));
    // `a/work/b` and `/path/root/` are not the machine's.
    let is_whole =
        |place: usize| !file.text[..place].ends_with(|c: char| c.is_alphanumeric() || "._-~}$".contains(c));
    let mut findings: Vec<_> = named
        .filter(|(place, _)| is_whole(*place))
        .map(|(place, word)| file.at(place, format!("`{word}` is of one machine")))
        .collect();
    if file.path.ends_with("Cargo.lock") {
        let sources = file.text.match_indices("source = \"");
        let public = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
        let strange = sources.filter(|(place, _)| !file.text[*place..].starts_with(public));
        findings.extend(strange.map(|(place, _)| file.at(place, "a crate that is not from crates.io")));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(rule: fn(&File) -> Vec<Finding>, path: &str, text: &str) -> Vec<usize> {
        rule(&File::new(path, text)).into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn an_open_end_without_an_issue_is_found() {
        let text =
            concat!("// TO", "DO: later\n// TO", "DO(#7): later\nlet a = \"FIX", "ME\";\n/* FIX", "ME */\n");
        assert_eq!(lines(unfinished, "a.rs", text), [1, 4]);
        assert_eq!(lines(unfinished, "a.md", text), [1, 3, 4]);
        assert!(lines(unfinished, "a.md", concat!("mkXX", "X /tmp/aXX", "XXX")).is_empty());
    }

    #[test]
    fn a_copy_that_a_person_keeps_is_found() {
        assert_eq!(lines(copies, "a.yaml", concat!("a\n# Keep in", " sync with b\n")), [2]);
    }

    #[test]
    fn a_place_of_one_machine_is_found() {
        let text = concat!("see /wo", "rk/x\n./wo", "rk/x\nhttps://arti", "factory.local/\n");
        assert_eq!(lines(machine, "a.md", text), [1, 3]);
        let lock = "source = \"registry+https://github.com/rust-lang/crates.io-index\"\nsource = \"git+https://x\"\n";
        assert_eq!(lines(machine, "Cargo.lock", lock), [2]);
    }
}
