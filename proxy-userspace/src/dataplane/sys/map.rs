//! A pinned map, opened by its path and read from end to end.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use super::{Shape, lookup, map_shape, next_key, object_get};

/// A map by its pin, and what it looks like.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    /// As the kernel says.
    pub shape: Shape,
}

impl Map {
    /// Open the map that is pinned at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = object_get(path)?;
        let shape = map_shape(fd.as_fd())?;
        Ok(Self { fd, shape })
    }

    /// Every key and value, in the map's own order. An entry that is removed while this goes on may be missed.
    pub fn each(&self, mut visit: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        let mut key = vec![0; self.shape.key as usize];
        let mut next = key.clone();
        let mut value = vec![0; self.shape.value as usize];
        let mut more = next_key(self.as_fd(), None, &mut next)?;
        let mut seen: u64 = 0;
        // A map that changes under the walk can restart it; the bound keeps that finite.
        while more && seen < 4 * u64::from(self.shape.entries) {
            key.copy_from_slice(&next);
            if lookup(self.as_fd(), &key, &mut value)? {
                visit(&key, &value);
            }
            more = next_key(self.as_fd(), Some(&key), &mut next)?;
            seen += 1;
        }
        Ok(())
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

pub(super) fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}
