//! What is pinned, for who looks at it and does not own it: `vipr status` and its neighbours.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use proxy_common::{
    layout::{Affinity, AffinityKey, Flow, FlowKey, Node, PacketPlane},
    names::{LAYOUT_VERSION, SOCKET_PROGRAMS, map},
};
use zerocopy::{FromBytes, TryFromBytes};

use super::{
    Error,
    pins::Pins,
    probe::Features,
    shapes::TABLES,
    sweep::{FlowTable, flow_tables},
    sys::{self, Map},
    tables::Tables,
    tc::{self, PinnedDevice},
};
use crate::plan::Actual;

/// A program of the socket plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedProgram {
    /// As in the object.
    pub name: &'static str,
    /// `None`: no link is pinned, so it does not run.
    pub link: Option<PinnedLink>,
}

/// A pinned link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinnedLink {
    /// Inode of the cgroup that it is attached at; 0: of none, since that is gone or it was detached.
    pub cgroup: u64,
    /// Id of its program.
    pub program: u32,
    /// Instructions that the verifier walked.
    pub verified: u32,
}

/// A pinned map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedMap {
    /// Of map and pin.
    pub name: &'static str,
    /// Entries in use; `None`: it always has all of them, or nobody can count them.
    pub used: Option<u32>,
    /// Entries there is room for; 0: as many as there are sockets.
    pub room: u32,
    /// Memory that the kernel says it takes.
    pub bytes: Option<u64>,
}

/// An entry of the flows' tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinnedFlow {
    /// One of the flow's keys.
    pub key: FlowKey,
    /// The record.
    pub flow: Flow,
    /// It is in the table of those whose backend has answered and whose client has heard of it.
    pub confirmed: bool,
}

/// The tables in use and the node's settings, as they are now: whether or not an agent runs.
///
/// # Errors
/// Nothing is pinned there, this process may not look, or another version wrote it.
pub fn read_pinned(pin_path: &Path) -> Result<(Actual, Node), Error> {
    let pins = Pins::new(pin_path);
    open(&pins, map::NODE)?;
    pins.readable()?;
    let tables = Tables::open(|name| pins.map(name))?;
    let foreign = |why: String| Error::Foreign { map: map::NODE.into(), why };
    let node = tables.node()?.ok_or_else(|| foreign("holds what this version can't read".into()))?;
    if ![0, LAYOUT_VERSION].contains(&node.layout_version) {
        let written = node.layout_version;
        return Err(foreign(format!("is of layout version {written}, this is {LAYOUT_VERSION}")));
    }
    Ok((tables.read()?, node))
}

/// The programs' links, in the order in which they are attached.
pub fn pinned_programs(pin_path: &Path) -> Result<Vec<PinnedProgram>, Error> {
    let pins = Pins::new(pin_path);
    let look = |name| {
        let pin = pins.link(name);
        let failed = |source| Error::Kernel { what: format!("look at the link {}", pin.display()), source };
        let link = match sys::object_get(&pin) {
            Ok(link) => link,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(PinnedProgram { name, link: None });
            }
            Err(error) => return Err(failed(error)),
        };
        let state = sys::link_state(link.as_fd()).map_err(failed)?;
        let program =
            sys::program_by_id(state.program).and_then(|program| sys::program_state(program.as_fd()));
        let verified = program.map_or(0, |program| program.verified);
        let link = PinnedLink { cgroup: state.cgroup, program: state.program, verified };
        Ok(PinnedProgram { name, link: Some(link) })
    };
    SOCKET_PROGRAMS.into_iter().map(look).collect()
}

/// The devices that `actual` has entries of, and how the packet plane's programs are attached to them.
pub fn pinned_devices(pin_path: &Path, actual: &Actual) -> Result<Vec<PinnedDevice>, Error> {
    let wanted = actual.devices.keys().copied().collect();
    tc::pinned_devices(&Pins::new(pin_path), &wanted, Features::probe().tcx)
}

/// The maps that are pinned, and how full they are; `actual` is what was read from them.
pub fn pinned_maps(pin_path: &Path, actual: &Actual) -> Result<Vec<PinnedMap>, Error> {
    let pins = Pins::new(pin_path);
    let flows = flow_tables(pin_path).unwrap_or_default();
    let mut maps = Vec::new();
    for table in &TABLES {
        let map = match open(&pins, table.name) {
            Ok(map) => map,
            Err(Error::NothingPinned { .. }) => continue,
            Err(error) => return Err(error),
        };
        let used = match table.name {
            map::FRONTENDS => Some(actual.frontends.len() as u32),
            map::SERVICES => Some(actual.services.len() as u32),
            map::BACKENDS => Some(actual.backends.len() as u32),
            map::NAMES => Some(actual.names.len() as u32),
            map::LOCAL_ADDRESSES => Some(actual.local_addresses.len() as u32),
            map::DEVICES => Some(actual.devices.len() as u32),
            map::SOURCE_RANGES => Some(actual.source_ranges.values().map(|ranges| ranges.len() as u32).sum()),
            map::MASQUERADE => Some(actual.masquerade.len() as u32),
            map::AFFINITY => {
                let mut count = 0;
                each(&map, table.name, |_, _| count += 1)?;
                Some(count)
            }
            name => flows.iter().find(|table| table.name == name).map(FlowTable::used),
        };
        maps.push(PinnedMap { name: table.name, used, room: map.shape.entries, bytes: memory(&map) });
    }
    Ok(maps)
}

/// The clients that are remembered, and where they were sent. What this version can't read is passed over.
pub fn pinned_affinity(pin_path: &Path) -> Result<Vec<(AffinityKey, Affinity)>, Error> {
    let map = open(&Pins::new(pin_path), map::AFFINITY)?;
    let mut clients = Vec::new();
    each(&map, map::AFFINITY, |key, value| {
        if let (Ok(key), Ok(value)) =
            (AffinityKey::try_read_from_bytes(key), Affinity::read_from_bytes(value))
        {
            clients.push((key, value));
        }
    })?;
    Ok(clients)
}

/// The packet plane's settings. They are there whether or not it is on.
pub fn pinned_packet_plane(pin_path: &Path) -> Result<PacketPlane, Error> {
    let map = open(&Pins::new(pin_path), map::PACKET_PLANE)?;
    let mut plane = None;
    each(&map, map::PACKET_PLANE, |_, value| plane = PacketPlane::read_from_bytes(value).ok())?;
    plane.filter(|plane| plane.version == PacketPlane::VERSION).ok_or_else(|| Error::Foreign {
        map: map::PACKET_PLANE.into(),
        why: "holds what this version can't read".into(),
    })
}

/// What the packet plane remembers of connections: each under all its keys. A flow that is confirmed meanwhile may be in two
/// tables. What this version can't read is passed over.
pub fn pinned_flows(pin_path: &Path) -> Result<Vec<PinnedFlow>, Error> {
    let pins = Pins::new(pin_path);
    let mut flows = Vec::new();
    for name in [map::FLOWS_NEW_TCP, map::FLOWS_NEW_UDP, map::FLOWS_NEW_SCTP, map::FLOWS] {
        each(&open(&pins, name)?, name, |key, value| {
            if let (Ok(key), Ok(flow)) = (FlowKey::try_read_from_bytes(key), Flow::read_from_bytes(value)) {
                flows.push(PinnedFlow { key, flow, confirmed: name == map::FLOWS });
            }
        })?;
    }
    Ok(flows)
}

fn open(pins: &Pins, name: &str) -> Result<Map, Error> {
    let path = pins.map(name);
    Map::open(&path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::NothingPinned { path: pins.root().to_owned() },
        io::ErrorKind::PermissionDenied if !nix::unistd::geteuid().is_root() => {
            Error::NotRoot { path: pins.root().to_owned() }
        }
        _ => Error::Kernel { what: format!("open the map {}", path.display()), source },
    })
}

fn each(map: &Map, name: &str, visit: impl FnMut(&[u8], &[u8])) -> Result<(), Error> {
    map.each(visit).map_err(|source| Error::Kernel { what: format!("read the map {name}"), source })
}

/// Pages that the kernel accounts to a map (bpf_map_show_fdinfo).
fn memory(map: &Map) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_pins_is_named_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let error = read_pinned(&folder.path().join("vipr")).unwrap_err().to_string();
        // Who may not use bpf() at all is told that instead.
        let path = folder.path().join("vipr");
        let expected = if nix::unistd::geteuid().is_root() {
            format!(
                "vipr has never run with these pins: {} has none of its tables (`--pin-path` names another folder)",
                path.display()
            )
        } else {
            format!("only root may look at the pins in {}: use `sudo`", path.display())
        };
        assert_eq!(error, expected);
    }
}
