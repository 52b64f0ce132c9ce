//! Which devices somebody may have attached something to, or taken something off, since that was last asked.
//!
//! | what | is noticed by |
//! |---|---|
//! | filters and qdiscs | notifications of the kernel's (RTNLGRP_TC) |
//! | tcx | a revision that counts every change: the kernel tells nobody, and two system calls a device ask it |

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Duration, Instant},
};

use rtnetlink::{
    packet_core::NetlinkBuffer,
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use super::filters::Side;
use crate::dataplane::sys;

/// A look takes no longer than this, if no single call does: the devices that are left come first the next time.
const BUDGET: Duration = Duration::from_millis(10);

/// `RTNLGRP_TC`.
const GROUP: u32 = 4;

/// What was seen last.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Hears of filters and qdiscs; none before the first look.
    socket: Option<Socket>,
    revisions: BTreeMap<(u32, u32), u64>,
    /// Where the next look begins, if the last one had no time for all.
    next: u32,
}

impl Changes {
    /// Those of `devices` that may be different from when this was last asked; the first time all.
    pub(super) fn since(&mut self, devices: &BTreeSet<u32>, tcx: bool) -> io::Result<BTreeSet<u32>> {
        let mut changed = match &self.socket {
            Some(socket) => heard(socket, devices)?,
            None => {
                self.socket = Some(listen()?);
                devices.clone()
            }
        };
        let sides = Side::ALL.map(Side::attach_type);
        self.revisions.retain(|(device, _), _| devices.contains(device));
        let all = devices.range(self.next..).chain(devices.range(..self.next));
        let begin = Instant::now();
        for &device in all.filter(|_| tcx) {
            // Whoever is busy with devices holds the lock that each of these calls needs: Services don't wait for that.
            if begin.elapsed() > BUDGET {
                self.next = device;
                break;
            }
            for side in sides {
                // A device that is gone is told of by who follows devices.
                if let Ok(revision) = sys::tcx_revision(device, side)
                    && self.revisions.insert((device, side), revision) != Some(revision)
                {
                    changed.insert(device);
                }
            }
        }
        Ok(changed)
    }
}

fn listen() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.add_membership(GROUP)?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// All that came meanwhile.
fn heard(socket: &Socket, devices: &BTreeSet<u32>) -> io::Result<BTreeSet<u32>> {
    let mut changed = BTreeSet::new();
    loop {
        let mut datagram = Vec::with_capacity(1 << 15);
        match socket.recv(&mut datagram, 0) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(changed),
            // More came than there was room for: anybody may be among them.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                changed.clone_from(devices);
                continue;
            }
            Err(error) => return Err(error),
        }
        let mut rest = datagram.as_slice();
        while let Ok(message) = NetlinkBuffer::new_checked(rest) {
            match message.payload().get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes)
            {
                Some(device) if devices.contains(&device) => drop(changed.insert(device)),
                // A block of filters that devices share.
                Some(u32::MAX) => changed.clone_from(devices),
                _ => {}
            }
            let length = (message.length() as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}
