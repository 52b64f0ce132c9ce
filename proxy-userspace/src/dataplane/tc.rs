//! The packet plane's programs on devices: at ingress behind, at egress before everybody else's.
//!
//! | where | how |
//! |---|---|
//! | the kernel has tcx (6.6) | a link, pinned under `links/dev/`: last at ingress, first at egress |
//! | no tcx | a filter of the clsact qdisc: of the last priority at ingress, of the first at egress |
//! | tcx, and somebody's clsact filter at ingress | a filter too, for those run behind all of tcx |
//!
//! At egress tcx runs before every filter anyway. A filter of ours is recognised by its handle and priority, which no
//! version changes: names and tags of programs do change. Links and filters outlive the agent, and a program is replaced
//! in both without a moment without one.

mod changes;
pub mod filters;
mod place;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::fd::{AsFd, BorrowedFd},
};

use aya::{Ebpf, programs::SchedClassifier};
use changes::Changes;
use filters::{Netlink, Side};
use place::{Place, is_ours, remove_link};

use super::{Error, localnet, pins::Pins};

/// What is attached, and what is to be.
#[derive(Debug, Default)]
pub struct Hooks {
    /// The devices that have, or are to have, the programs, with their names.
    devices: BTreeMap<u32, String>,
    /// Those whose programs are not the current ones yet.
    pending: BTreeSet<u32>,
    changes: Changes,
    /// It was said that devices can't be opened for loopback.
    told: bool,
}

impl Hooks {
    /// What an earlier agent left attached.
    pub fn found(pins: &Pins) -> Result<Self, Error> {
        let netlink = open()?;
        let pinned = pinned(pins)?;
        let mut hooks = Self::default();
        for (index, name) in list(&netlink)? {
            if pinned.contains(&index) || has_filters(&netlink, index)? {
                hooks.devices.insert(index, name);
            }
        }
        for index in pinned.into_iter().filter(|index| !hooks.devices.contains_key(index)) {
            tracing::debug!(index, "a device with our programs is gone");
            unpin(pins, index)?;
        }
        Ok(hooks)
    }

    /// The devices.
    pub fn devices(&self) -> BTreeSet<u32> {
        self.devices.keys().copied().collect()
    }

    /// A device is to have the programs from the next [`Self::attach`] on.
    pub fn add(&mut self, index: u32, name: &str) {
        self.devices.insert(index, name.to_owned());
        self.pending.insert(index);
    }

    /// All devices are to get other programs.
    pub fn renew(&mut self) {
        self.pending = self.devices();
    }

    /// Take the programs off a device, at once; it may be gone.
    pub fn remove(&mut self, pins: &Pins, index: u32) -> Result<(), Error> {
        let name = self.devices.get(&index).map_or("", String::as_str);
        shut(pins, index, name)?;
        detach(pins, &open()?, index)?;
        self.devices.remove(&index);
        self.pending.remove(&index);
        Ok(())
    }

    /// Attach the programs of `object` to all devices that lack them. One that fails keeps no other from being tried, and
    /// is tried again the next time. `localnet`: what has them is then opened for the node's own packets from loopback.
    ///
    /// # Errors
    /// Of the first device that failed.
    pub fn attach(&mut self, object: &Ebpf, pins: &Pins, tcx: bool, localnet: bool) -> Result<(), Error> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let netlink = open()?;
        let place = Place { pins, netlink: &netlink, tcx };
        let mut failed = None;
        let all = std::mem::take(&mut self.pending);
        let count = all.len();
        for index in all {
            let result = Side::ALL.iter().try_for_each(|side| {
                let (fd, _) = program(object, side.name())?;
                place.put(index, *side, fd)
            });
            match result {
                Ok(()) => self.set_localnet(pins, index, localnet),
                // What follows the devices will say so too.
                Err(Error::Kernel { source, .. }) if is_gone(&source) => {
                    tracing::debug!(index, "the device is gone");
                }
                Err(error) => {
                    self.pending.insert(index);
                    let name = self.devices.get(&index).map_or("", String::as_str);
                    tracing::warn!(device = name, index, "the programs can't be attached: {error}");
                    failed.get_or_insert(error);
                }
            }
        }
        tracing::info!(devices = count - self.pending.len(), "programs attached to devices");
        failed.map_or(Ok(()), Err)
    }

    fn set_localnet(&mut self, pins: &Pins, index: u32, wanted: bool) {
        let name = self.devices.get(&index).map_or("", String::as_str);
        let set = if wanted { localnet::open } else { localnet::close };
        let Err(error) = set(&pins.localnet(), index, name) else { return };
        if !self.told {
            tracing::warn!(
                device = name,
                "route_localnet can't be set, so sockets bound to 127.0.0.1 reach node ports on this node only: {error}"
            );
        }
        self.told = true;
    }

    /// The devices whose programs are not there, not those of `object`, or not in their place, for people; they are
    /// put right by the next [`Self::attach`].
    pub fn lost(&mut self, object: &Ebpf, pins: &Pins, tcx: bool) -> Result<Vec<String>, Error> {
        let all = self.devices();
        self.look(&all, object, pins, tcx)
    }

    /// The same of those devices at which anybody has changed anything since this was last asked: a few system calls a
    /// device. What is to be attached anyway is none of them.
    pub fn glance(&mut self, object: &Ebpf, pins: &Pins, tcx: bool) -> Result<Vec<String>, Error> {
        let devices = self.devices();
        let failed = |source| Error::Kernel { what: "hear of changes to devices' programs".into(), source };
        let changed = self.changes.since(&devices, tcx).map_err(failed)?;
        self.look(&changed, object, pins, tcx)
    }

    fn look(
        &mut self,
        which: &BTreeSet<u32>,
        object: &Ebpf,
        pins: &Pins,
        tcx: bool,
    ) -> Result<Vec<String>, Error> {
        if which.is_empty() {
            return Ok(Vec::new());
        }
        let netlink = open()?;
        let present: BTreeSet<u32> = list(&netlink)?.into_iter().map(|(index, _)| index).collect();
        let place = Place { pins, netlink: &netlink, tcx };
        let mut lost = Vec::new();
        for (&index, name) in self.devices.iter().filter(|(index, _)| which.contains(index)) {
            if !present.contains(&index) || self.pending.contains(&index) {
                continue;
            }
            for side in Side::ALL {
                let (_, id) = program(object, side.name())?;
                match place.why_not(index, side, id) {
                    Ok(None) => {}
                    Ok(Some(why)) => {
                        lost.push(format!("the program at {} of {name} {why}", side.name()));
                        self.pending.insert(index);
                    }
                    Err(Error::Kernel { source, .. }) if is_gone(&source) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(lost)
    }
}

/// A side of a device, as it is: whether or not an agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinnedSide {
    /// By a link; else by a filter.
    pub tcx: bool,
    /// Which one it is among those that run there in its way, from 1.
    pub place: usize,
    /// How many those are.
    pub of: usize,
    /// The program's id.
    pub program: u32,
}

/// A device that is to have the programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedDevice {
    /// Its ifindex.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Ingress and egress; `None`: nothing of ours runs there.
    pub sides: [Option<PinnedSide>; 2],
    /// What is wrong, for people.
    pub problem: Option<String>,
}

/// The devices of `wanted` that there are, and how the programs are attached to them.
pub fn pinned_devices(pins: &Pins, wanted: &BTreeSet<u32>, tcx: bool) -> Result<Vec<PinnedDevice>, Error> {
    let netlink = open()?;
    let place = Place { pins, netlink: &netlink, tcx };
    let mut devices = Vec::new();
    for (index, name) in list(&netlink)?.into_iter().filter(|(index, _)| wanted.contains(index)) {
        let mut device = PinnedDevice { index, name, sides: [None; 2], problem: None };
        let looked = Side::ALL.into_iter().zip(&mut device.sides).try_for_each(|(side, found)| {
            let (state, why) = place.state(index, side)?;
            *found = state;
            let why = why.map(|why| format!("the program at {} {why}", side.name()));
            device.problem = device.problem.take().or(why);
            Ok(())
        });
        match looked {
            Ok(()) => devices.push(device),
            Err(Error::Kernel { source, .. }) if is_gone(&source) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(devices)
}

/// Take all programs off all devices.
pub fn remove_all(pins: &Pins) -> Result<(), Error> {
    let netlink = open()?;
    let mut indexes = pinned(pins)?;
    for (index, name) in list(&netlink)? {
        shut(pins, index, &name)?;
        if has_filters(&netlink, index)? {
            indexes.insert(index);
        }
    }
    indexes.into_iter().try_for_each(|index| detach(pins, &netlink, index))
}

fn open() -> Result<Netlink, Error> {
    Netlink::open()
        .map_err(|source| Error::Kernel { what: "open a netlink socket (NETLINK_ROUTE)".into(), source })
}

fn list(netlink: &Netlink) -> Result<Vec<(u32, String)>, Error> {
    let failed = |source| Error::Kernel { what: "list the network devices".into(), source };
    netlink.devices().map_err(failed)
}

/// The descriptor of a loaded program, and its id.
fn program<'a>(object: &'a Ebpf, name: &str) -> Result<(BorrowedFd<'a>, u32), Error> {
    let failed = |log: String| Error::Load { what: format!("look at the program {name}"), log };
    let program: &SchedClassifier = object
        .program(name)
        .and_then(|program| program.try_into().ok())
        .ok_or_else(|| failed("it is not in the object".into()))?;
    let fd = program.fd().map_err(|error| failed(error.to_string()))?.as_fd();
    let id = program.info().map_err(|error| failed(error.to_string()))?.id();
    Ok((fd, id))
}

/// Devices with pinned links.
fn pinned(pins: &Pins) -> Result<BTreeSet<u32>, Error> {
    let folder = pins.device_links();
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(source) => return Err(Error::Kernel { what: format!("read {}", folder.display()), source }),
    };
    let index = |name: std::ffi::OsString| name.to_str()?.split('-').next()?.parse().ok();
    Ok(entries.flatten().filter_map(|entry| index(entry.file_name())).collect())
}

fn has_filters(netlink: &Netlink, index: u32) -> Result<bool, Error> {
    for side in Side::ALL {
        match netlink.filters(index, side) {
            Ok(filters) if filters.iter().any(is_ours) => return Ok(true),
            Err(error) if !is_gone(&error) => {
                let what = format!("read the filters of device {index}");
                return Err(Error::Kernel { what, source: error });
            }
            _ => {}
        }
    }
    Ok(false)
}

/// Before a device loses the programs that drop what must not come in.
fn shut(pins: &Pins, index: u32, name: &str) -> Result<(), Error> {
    let failed = |source| Error::Kernel { what: format!("take back route_localnet of {name}"), source };
    localnet::close(&pins.localnet(), index, name).map_err(failed)
}

fn detach(pins: &Pins, netlink: &Netlink, index: u32) -> Result<(), Error> {
    unpin(pins, index)?;
    let filters = || -> io::Result<()> {
        let mut any = false;
        for side in Side::ALL {
            for filter in netlink.filters(index, side)?.into_iter().filter(is_ours) {
                netlink.delete(index, side, filter)?;
                any = true;
            }
        }
        if any { netlink.remove_empty_clsact(index) } else { Ok(()) }
    };
    match filters() {
        Err(source) if !is_gone(&source) => {
            Err(Error::Kernel { what: format!("remove the filters of device {index}"), source })
        }
        _ => Ok(()),
    }
}

fn unpin(pins: &Pins, index: u32) -> Result<(), Error> {
    for side in Side::ALL {
        let pin = pins.device_link(index, side.name());
        remove_link(&pin)
            .map_err(|source| Error::Kernel { what: format!("remove {}", pin.display()), source })?;
    }
    Ok(())
}

/// The device is not there any more.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO | libc::ENOLINK))
}
