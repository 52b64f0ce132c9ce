//! Links of the socket plane's programs: made once, then swapped in place, so that there is never a moment without.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{CgroupAttachMode, CgroupSockAddr, links::FdLink},
};
use proxy_common::names::SOCKET_PROGRAMS;

use super::{Error, pins::Pins, sys};

/// What [`attach`] did to a program's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// There was none: it was made and pinned.
    Made,
    /// The pinned link's program was swapped.
    Swapped,
}

/// Make every program of `object` the running one at `cgroup` (the root of cgroup2, or of a node's sub-tree).
pub fn attach(object: &mut Ebpf, pins: &Pins, cgroup: &Path) -> Result<Vec<(&'static str, Attached)>, Error> {
    let directory = File::open(cgroup).map_err(|source| Error::Kernel {
        what: format!("open the cgroup {} (`--cgroup` names the root of cgroup2)", cgroup.display()),
        source,
    })?;
    let wanted = directory
        .metadata()
        .map_err(|source| Error::Kernel { what: format!("look at the cgroup {}", cgroup.display()), source })?
        .ino();
    let mut done = Vec::new();
    for name in SOCKET_PROGRAMS {
        let program: &mut CgroupSockAddr =
            object.program_mut(name).and_then(|program| program.try_into().ok()).ok_or_else(|| {
                Error::Load { what: format!("the BPF object has no program {name}"), log: String::new() }
            })?;
        let pin = pins.link(name);
        if let Some(link) = running(&pin, wanted)? {
            let fd = program.fd().map_err(|error| Error::Load {
                what: format!("the program {name} is not loaded"),
                log: error.to_string(),
            })?;
            sys::link_update(link.as_fd(), fd.as_fd()).map_err(|source| Error::Kernel {
                what: format!("swap the program of {}", pin.display()),
                source,
            })?;
            done.push((name, Attached::Swapped));
        } else {
            make(program, directory.as_fd(), name, &pin, cgroup)?;
            done.push((name, Attached::Made));
        }
    }
    Ok(done)
}

/// The programs of `object` that are not the running ones at `cgroup`, for people.
pub fn lost(object: &Ebpf, pins: &Pins, cgroup: &Path) -> Result<Vec<String>, Error> {
    let at = fs::metadata(cgroup).map_err(|source| Error::Kernel {
        what: format!("look at the cgroup {}", cgroup.display()),
        source,
    })?;
    let mut lost = Vec::new();
    for name in SOCKET_PROGRAMS {
        let ours = object.program(name).and_then(|program| program.info().ok()).map(|info| info.id());
        let pin = pins.link(name);
        let found = sys::object_get(&pin).and_then(|link| sys::link_state(link.as_fd()));
        match found {
            Ok(link) if Some(link.program) == ours && link.cgroup == at.ino() => {}
            Ok(link) if link.cgroup == 0 => lost.push(format!("{name} was detached from its cgroup")),
            Ok(_) => lost.push(format!("{} leads to another program or cgroup", pin.display())),
            Err(error) => lost.push(format!("{}: {error}", pin.display())),
        }
    }
    Ok(lost)
}

/// The link pinned at `pin` if it is attached at the wanted cgroup; one that is attached elsewhere is removed.
fn running(pin: &PathBuf, wanted: u64) -> Result<Option<std::os::fd::OwnedFd>, Error> {
    let link = match sys::object_get(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Kernel { what: format!("open {}", pin.display()), source }),
    };
    let state = sys::link_state(link.as_fd())
        .map_err(|source| Error::Kernel { what: format!("look at the link {}", pin.display()), source })?;
    if state.cgroup == wanted {
        return Ok(Some(link));
    }
    fs::remove_file(pin)
        .map_err(|source| Error::Kernel { what: format!("remove {}", pin.display()), source })?;
    Ok(None)
}

fn make(
    program: &mut CgroupSockAddr,
    directory: BorrowedFd<'_>,
    name: &str,
    pin: &Path,
    cgroup: &Path,
) -> Result<(), Error> {
    let failed = |what: &str, error: String| Error::Load { what: format!("{what} {name}"), log: error };
    let id = program.attach(directory, CgroupAttachMode::Single).map_err(|error| {
        failed("attach the program", format!("{error} at {} (is it a cgroup2 directory?)", cgroup.display()))
    })?;
    let link: FdLink = program
        .take_link(id)
        .map_err(|error| failed("take the link of", error.to_string()))?
        .try_into()
        .map_err(|_| failed("use a link for", "the kernel is older than 5.7".into()))?;
    link.pin(pin).map_err(|error| failed("pin the link of", error.to_string()))?;
    Ok(())
}
