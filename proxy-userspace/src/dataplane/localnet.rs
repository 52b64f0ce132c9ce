//! `route_localnet` of devices: without it the kernel lets no packet with an address of loopback out, nor its answer in, and a
//! socket that is bound to 127.0.0.1 reaches no endpoint beyond the node (spec §2.4).
//!
//! kube-proxy sets it for all devices that there are and will be. Here a device has it while it has the programs, which drop
//! what must not come in: it is set after them, and taken back before them. What was changed is noted by a folder beside the pins, for
//! whoever takes it back later.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A device's, in the network namespace of who asks.
fn place(device: &str) -> PathBuf {
    Path::new("/proc/sys/net/ipv4/conf").join(device).join("route_localnet")
}

/// Set it, unless somebody else has. A device without IPv4 has none.
///
/// # Errors
/// It can't be written, or not be noted.
pub(super) fn open(notes: &Path, index: u32, device: &str) -> io::Result<()> {
    match fs::read_to_string(place(device)) {
        Ok(value) if value.trim() == "0" => {}
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let note = notes.join(index.to_string());
    fs::create_dir_all(&note)?;
    fs::write(place(device), "1").inspect_err(|_| drop(fs::remove_dir(&note)))
}

/// Take it back if it is ours; the device may be gone.
///
/// # Errors
/// It can't be written.
pub(super) fn close(notes: &Path, index: u32, device: &str) -> io::Result<()> {
    let note = notes.join(index.to_string());
    if !note.exists() {
        return Ok(());
    }
    match fs::write(place(device), "0") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::remove_dir(&note),
    }
}
