//! Writes a "newc" cpio archive, the form the kernel unpacks as its first file system (kernel
//! documentation, driver-api/early-userspace/buffer-format). Archives may simply be concatenated.

use std::collections::BTreeSet;

/// An archive under construction. Directories above an entry are added by themselves, once.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;

impl Archive {
    /// Adds a directory; `path` is absolute.
    pub(super) fn directory(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if path.is_empty() || self.directories.contains(path) {
            return;
        }
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
        self.directories.insert(path.to_owned());
        self.entry(path, DIRECTORY, &[]);
    }

    /// Adds a file; `path` is absolute, `mode` its permission bits.
    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        let path = path.trim_start_matches('/');
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
        self.entry(path, FILE | mode, content);
    }

    /// The archive, ended and padded to a block, so that another may follow.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.pad(512);
        self.bytes
    }

    /// One entry: 13 hexadecimal fields, the name, the content, each padded to four bytes. Times and owners
    /// are zero, so that equal content makes equal archives.
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let length = u32::try_from(content.len()).expect("a file of an initramfs is below 4 GiB");
        let name_length = name.len() as u32 + 1;
        self.bytes.extend_from_slice(b"070701");
        for field in [self.entries, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name_length, 0] {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(content);
        self.pad(4);
    }

    fn pad(&mut self, block: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(block), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive as the kernel does: name, mode and content of each entry.
    fn entries(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let total = bytes.len();
        let mut entries = Vec::new();
        loop {
            assert_eq!(&bytes[..6], b"070701", "at {}", total - bytes.len());
            let field = |index: usize| {
                let digits = std::str::from_utf8(&bytes[6 + index * 8..][..8]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (mode, length, name_length) = (field(1), field(6) as usize, field(11) as usize);
            let start = (110 + name_length).next_multiple_of(4);
            let name = String::from_utf8(bytes[110..110 + name_length - 1].to_vec()).unwrap();
            assert_eq!(bytes[110 + name_length - 1], 0, "a name ends with NUL");
            if name == "TRAILER!!!" {
                assert!(bytes[start..].iter().all(|byte| *byte == 0));
                return entries;
            }
            entries.push((name, mode, bytes[start..start + length].to_vec()));
            bytes = &bytes[(start + length).next_multiple_of(4)..];
        }
    }

    #[test]
    fn a_file_comes_after_its_folders_and_each_folder_once() {
        let mut archive = Archive::default();
        archive.file("/a/b/hello", 0o755, b"hello");
        archive.file("/a/odd", 0o644, b"123");
        archive.directory("/a");
        let folder = |name: &str| (name.to_owned(), 0o040_755, Vec::new());
        assert_eq!(
            entries(&archive.finish()),
            [
                folder("a"),
                folder("a/b"),
                ("a/b/hello".to_owned(), 0o100_755, b"hello".to_vec()),
                ("a/odd".to_owned(), 0o100_644, b"123".to_vec()),
            ]
        );
    }

    #[test]
    fn another_archive_may_follow() {
        let mut archive = Archive::default();
        archive.file("/odd", 0o644, b"12345");
        assert_eq!(archive.finish().len() % 512, 0);
    }
}
