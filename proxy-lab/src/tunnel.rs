//! A tunnel between two places: a tun or tap device in each, joined by a thread. Whoever is at the other end of a tap is to
//! a node what a virtual machine is: another stack, whose sockets nobody here sees.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::place::Place;

/// Longer than any packet of these devices.
const PACKET: usize = 65536;

/// Two devices, joined until this is dropped; then they are gone.
#[derive(Debug)]
pub struct Tunnel {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Tunnel {
    /// Makes a device without link layer of this name at both places, without addresses and down.
    ///
    /// # Errors
    /// The kernel has no tun devices, or the name is taken.
    pub fn between(one: &Place, other: &Place, device: &str) -> Result<Self> {
        Self::join(one, other, device, libc::IFF_TUN)
    }

    /// The same with Ethernet devices.
    ///
    /// # Errors
    /// As [`Self::between`].
    pub fn of_frames(one: &Place, other: &Place, device: &str) -> Result<Self> {
        Self::join(one, other, device, libc::IFF_TAP)
    }

    fn join(one: &Place, other: &Place, device: &str, kind: libc::c_int) -> Result<Self> {
        let ends = [open(one, device, kind)?, open(other, device, kind)?];
        let (stop, stopped) = UnixStream::pair()?;
        let thread = std::thread::Builder::new().name(device.to_owned()).spawn(move || {
            // Failing means that a place has ended.
            let _ = relay(&ends, &stopped);
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic was printed by the thread.
            let _ = thread.join();
        }
    }
}

fn open(place: &Place, device: &str, kind: libc::c_int) -> Result<File> {
    // What struct ifreq begins with, and the size that TUNSETIFF reads.
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        flags: libc::c_short,
        rest: [u8; 22],
    }
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
    request.name.iter_mut().zip(device.bytes()).for_each(|(to, from)| *to = from);
    request.flags = (kind | libc::IFF_NO_PI) as libc::c_short;
    let opened = place.enter(|| {
        let file = File::options().read(true).write(true).open("/dev/net/tun")?;
        // SAFETY: the request is valid for the size that the call reads and writes.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
        Errno::result(result)?;
        Ok::<_, std::io::Error>(file)
    })?;
    opened.with_context(|| format!("{}: making the device {device}", place.name()))
}

fn relay(ends: &[File; 2], stopped: &UnixStream) -> std::io::Result<()> {
    let mut packet = vec![0; PACKET];
    loop {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut all = [readable(ends[0].as_fd()), readable(ends[1].as_fd()), readable(stopped.as_fd())];
        match poll(&mut all, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            result => result?,
        };
        let [one, other, stop] = all.map(|one| one.any() != Some(false));
        if stop {
            return Ok(());
        }
        for (ready, mut from, mut to) in [(one, &ends[0], &ends[1]), (other, &ends[1], &ends[0])] {
            if ready {
                let length = from.read(&mut packet)?;
                // A device that is down takes nothing: as a cable without a far end.
                let _ = to.write(&packet[..length]);
            }
        }
    }
}
