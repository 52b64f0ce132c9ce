//! Where cgroup2 is mounted: the unified hierarchy, or beside cgroup v1 on a hybrid host.

use std::path::PathBuf;

/// From the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)). Whole trees come before parts of one.
pub fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        if kind.split(' ').next() != Some("cgroup2") {
            return None;
        }
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, unescape(fields.next()?));
        Some((root != "/", point.len(), point))
    });
    mounts.min().map(|(_, _, point)| point.into())
}

/// Blanks, tabs, line ends and backslashes stand as `\040` and so on.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut bytes = parts.next().unwrap_or("").as_bytes().to_vec();
    for part in parts {
        match part.get(..3).and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend(&part.as_bytes()[3..]);
            }
            None => {
                bytes.push(b'\\');
                bytes.extend(part.as_bytes());
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_unified_hybrid_and_in_odd_places() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                      36 31 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n";
        let unified = "26 23 0:23 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let part = "50 1 0:38 /kubepods/x /sys/fs/cgroup rw - cgroup2 cgroup rw\n\
                    51 1 0:38 / /host/c\\040group rw - cgroup2 cgroup rw\n";
        for (text, expected) in [
            (hybrid, Some("/sys/fs/cgroup/unified")),
            (unified, Some("/sys/fs/cgroup")),
            (part, Some("/host/c group")),
            ("26 23 0:23 / /sys/fs/cgroup rw - cgroup cgroup rw\n", None),
            ("", None),
            ("nonsense - cgroup2", None),
        ] {
            assert_eq!(mount_point(text), expected.map(PathBuf::from), "{text}");
        }
    }
}
