//! The layouts of the pinned tables: a byte that moved since the last release comes with a new version, since an
//! agent of another version reads what is pinned.

use xshell::{Shell, cmd};

use super::{File, Finding};

/// The reviewed layouts; the first line is `version N`.
const SNAPSHOT: &str = "proxy-common/tests/layout.txt";

/// The layouts of the last release, if there was one.
pub(super) fn released(sh: &Shell) -> Option<String> {
    let tag = cmd!(sh, "git describe --tags --abbrev=0 --match v*").quiet().ignore_stderr().read().ok()?;
    cmd!(sh, "git show {tag}:{SNAPSHOT}").quiet().ignore_stderr().read().ok()
}

/// Layouts other than the released ones under the same version.
pub(super) fn moved(file: &File, released: impl FnOnce() -> Option<String>) -> Option<Finding> {
    if file.path != SNAPSHOT {
        return None;
    }
    let Some(version) = version(&file.text) else {
        return Some(file.at(0, "the first line says `version N`"));
    };
    let released = released()?;
    let changed = released.trim() != file.text.trim() && self::version(&released) == Some(version);
    changed.then(|| {
        file.at(0, format!("the layouts changed since the last release: LAYOUT_VERSION {version} is taken"))
    })
}

fn version(text: &str) -> Option<u32> {
    text.lines().next()?.strip_prefix("version ")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_red(now: &str, released: Option<&str>) -> bool {
        moved(&File::new(SNAPSHOT, now), || released.map(str::to_owned)).is_some()
    }

    #[test]
    fn a_byte_moved_under_a_released_version_is_found() {
        assert!(is_red("version 1\nA size 8\n", Some("version 1\nA size 4\n")));
        assert!(!is_red("version 2\nA size 8\n", Some("version 1\nA size 4\n")));
        assert!(!is_red("version 1\nA size 4\n", Some("version 1\nA size 4\n")));
        assert!(!is_red("version 1\nA size 4\n", None));
        assert!(is_red("A size 4\n", None));
    }
}
