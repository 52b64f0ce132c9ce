//! Names say what a thing is. Some words say nothing, and what bears them grows without an end.

use super::{File, Finding, lex};

/// In no name that is defined here, nor in a file's.
const EMPTY: [&str; 3] = ["manager", "util", "utils"];
/// Nor in these names, but in a function's: the kernel has helpers, and calls what it tells of a map its info.
const EMPTY_NOUN: [&str; 3] = ["helper", "helpers", "info"];
/// Nor, of types, these.
const EMPTY_TYPE: [&str; 2] = ["data", "ctx"];

const DEFINE: [&str; 10] =
    ["struct", "enum", "union", "trait", "type", "fn", "mod", "const", "static", "macro_rules!"];

/// Names without meaning. Those of other crates may be used.
pub(super) fn empty_words(file: &File) -> Vec<Finding> {
    if !file.is_rust() {
        return Vec::new();
    }
    let mut findings = Vec::new();
    let stem = file.path.rsplit('/').next().and_then(|name| name.strip_suffix(".rs")).unwrap_or_default();
    findings.extend(
        empty(stem, "mod").map(|word| file.at(0, format!("a file's name that says nothing: {word}"))),
    );
    for (place, keyword, name) in definitions(&file.parts.code) {
        let message = |word| format!("`{word}` in `{name}` says nothing: name what it is or does");
        findings.extend(empty(name, keyword).map(|word| file.at(place, message(word))));
    }
    findings
}

/// The word of `name` that is empty, if there is one, where it is the name of what `keyword` defines.
fn empty(name: &str, keyword: &str) -> Option<&'static str> {
    let words: Vec<_> = words(name);
    let nouns = EMPTY_NOUN.iter().filter(|_| keyword != "fn");
    let types = EMPTY_TYPE.iter().filter(|_| ["struct", "enum", "union", "trait", "type"].contains(&keyword));
    EMPTY.iter().chain(nouns).chain(types).copied().find(|word| words.iter().any(|found| found == word))
}

/// The words of a name in either style, in small letters: `MapInfo`, `map_info` and `MAP_INFO` have the same.
fn words(name: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut last = '_';
    for letter in name.chars() {
        let begins = last == '_' || (letter.is_uppercase() && last.is_lowercase());
        if letter != '_' {
            if begins {
                words.push(String::new());
            }
            words.last_mut().expect("a name's first letter begins a word").extend(letter.to_lowercase());
        }
        last = letter;
    }
    words
}

/// Place, keyword and name of everything that `code` defines.
fn definitions(code: &str) -> impl Iterator<Item = (usize, &str, &str)> {
    let words = code.split_whitespace();
    words.clone().zip(words.skip(1)).filter(|(keyword, _)| DEFINE.contains(keyword)).map(|(keyword, rest)| {
        let end = rest.bytes().position(|byte| !lex::is_word(byte)).unwrap_or(rest.len());
        (rest.as_ptr() as usize - code.as_ptr() as usize, keyword, &rest[..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &str, text: &str) -> Vec<usize> {
        empty_words(&File::new(path, text)).into_iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_name_that_says_nothing_is_found() {
        let text = "struct MapManager;\nfn dns_util() {}\nmod util;\ntrait Ctx {}\nconst MAP_INFO: u8 = 0;\n\
                    fn data_end() {}\nuse core::panic::PanicInfo;\n// struct Helper\nfn inform_helper() {}\nfn utilise() {}\n";
        assert_eq!(lines("a/src/b.rs", text), [1, 2, 3, 4, 5]);
        assert_eq!(lines("a/src/net_utils.rs", ""), [1]);
    }
}
