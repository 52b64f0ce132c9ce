//! A file's length and its opening.

use super::{File, Finding};

const SOURCE: usize = 400;
const TEST: usize = 600;

/// No file is longer than a reader holds in mind.
pub(super) fn too_long(file: &File) -> Option<Finding> {
    if !file.is_rust() {
        return None;
    }
    let is_test = file.path.contains("/tests/") || file.path.ends_with("/tests.rs");
    let limit = if is_test { TEST } else { SOURCE };
    let lines = file.text.lines().count();
    (lines > limit).then(|| {
        file.at(file.text.len(), format!("{lines} lines, and the limit is {limit}: split it by topic"))
    })
}

/// Every file opens by saying what it is for.
pub(super) fn without_header(file: &File) -> Option<Finding> {
    let opens_well = file.text.strip_prefix("//!").is_some_and(|rest| rest.lines().next() != Some(""));
    (file.is_rust() && !opens_well).then(|| file.at(0, "a file opens with a line `//! what it is for`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_is_found_and_a_test_may_be_longer() {
        let lines = |count: usize| "//! a\n".repeat(count);
        assert!(too_long(&File::new("a/src/b.rs", lines(401))).is_some());
        assert!(too_long(&File::new("a/src/b.rs", lines(400))).is_none());
        assert!(too_long(&File::new("a/tests/b.rs", lines(600))).is_none());
        assert!(too_long(&File::new("a/tests/b.rs", lines(601))).is_some());
        assert!(too_long(&File::new("Cargo.lock", lines(601))).is_none());
    }

    #[test]
    fn a_file_without_a_header_is_found() {
        assert!(without_header(&File::new("a.rs", "use std::fmt;\n//! late\n")).is_some());
        assert!(without_header(&File::new("a.rs", "//!\n//! below\n")).is_some());
        assert!(without_header(&File::new("a.rs", "//! What it is for.\n")).is_none());
        assert!(without_header(&File::new("a.toml", "x")).is_none());
    }
}
