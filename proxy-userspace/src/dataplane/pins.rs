//! Where everything is pinned, and whether a pinned map can be used by this version: aya checks nothing when it
//! reuses a pin, so we do.

use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use proxy_common::{
    layout::Node,
    names::{LAYOUT_VERSION, SOCKET_PROGRAMS, floor, map},
};
use zerocopy::TryFromBytes;

use super::{
    Error,
    shapes::{Role, TABLES, Table, entries, flow_entries},
    sys::{self, Map},
};
use crate::plan::Capacity;

/// The pin directory.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
    /// Of confirmed flows.
    flow_keys: u32,
}

impl Pins {
    /// At `root`, for example `/sys/fs/bpf/vipr`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf(), flow_keys: floor::FLOWS }
    }

    /// The same, with tables that have room for so many keys of confirmed flows.
    pub fn with_flow_keys(self, flow_keys: u32) -> Self {
        Self { flow_keys, ..self }
    }

    /// Why the pinned table of connections can't be used, if so.
    fn connections_misfit(&self, table: &Table) -> Option<String> {
        let entries = flow_entries(table.name, self.flow_keys).unwrap_or(table.shape.entries);
        misfit(table, &self.map(table.name), entries)
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Pin of a map in use.
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Pin of a map of the generation that is being built.
    pub fn next(&self, name: &str) -> PathBuf {
        self.root.join("next").join(name)
    }

    /// Pin of a program's link.
    pub fn link(&self, program: &str) -> PathBuf {
        self.root.join("links").join(program)
    }

    /// Where the pins of the links on devices are.
    pub fn device_links(&self) -> PathBuf {
        self.root.join("links").join("dev")
    }

    /// Where it is noted which devices' `route_localnet` is ours.
    pub fn localnet(&self) -> PathBuf {
        self.root.join("localnet")
    }

    /// Pin of a link on a device; `side`: ingress or egress.
    pub fn device_link(&self, index: u32, side: &str) -> PathBuf {
        self.device_links().join(format!("{index}-{side}"))
    }

    /// Make the directories; a generation that was never finished is removed.
    pub fn prepare(&self) -> Result<(), Error> {
        self.discard_next()?;
        for directory in [self.root.clone(), self.root.join("links"), self.root.join("next")] {
            fs::create_dir_all(&directory).map_err(|source| {
                let fix = if source.raw_os_error() == Some(libc::EPERM)
                    || source.kind() == io::ErrorKind::NotFound
                {
                    " (is a bpf filesystem mounted there? `mount -t bpf bpf /sys/fs/bpf`)"
                } else {
                    ""
                };
                Error::Kernel { what: format!("create {}{fix}", directory.display()), source }
            })?;
        }
        Ok(())
    }

    /// Remove the generation that is being built.
    pub fn discard_next(&self) -> Result<(), Error> {
        remove_all(&self.root.join("next"))
    }

    /// Make the maps that were built the ones in use. While this goes on, or where it was ended, there is no pin of
    /// `node`, and tables without one are not adopted: each would fit, and they are of two generations.
    pub fn promote(&self) -> Result<(), Error> {
        let failed = |what: &str, path: &Path| {
            let what = format!("{what} {}", path.display());
            move |source| Error::Kernel { what, source }
        };
        let last = |table: &&Table| table.name == map::NODE;
        if self.next(map::NODE).exists() {
            let node = self.map(map::NODE);
            match fs::remove_file(&node) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(failed("remove", &node)(error));
                }
                _ => {}
            }
        }
        let others = TABLES.iter().filter(|table| !last(table));
        for table in others.chain(TABLES.iter().filter(last)) {
            let next = self.next(table.name);
            if next.exists() {
                fs::rename(&next, self.map(table.name)).map_err(failed("rename", &next))?;
            }
        }
        Ok(())
    }

    /// Where the maps of a new generation shall be pinned: connection state where it is if it fits, the rest beside.
    pub fn anew(&self) -> Vec<(Table, PathBuf)> {
        let keeps =
            |table: &Table| table.role == Role::Connections && self.connections_misfit(table).is_none();
        let place = |table: &Table| if keeps(table) { self.map(table.name) } else { self.next(table.name) };
        TABLES.iter().map(|table| (*table, place(table))).collect()
    }

    /// Where the object's maps shall be pinned: at a pin that fits (it is then reused), or in the next generation.
    /// Connection state that does not fit is left behind, by name, in the second list.
    pub fn choose(&self, need: &Capacity) -> (Vec<(Table, PathBuf)>, Vec<String>) {
        let cluster = self.cluster_misfit(need);
        let mut left = Vec::new();
        let places = TABLES
            .iter()
            .map(|table| {
                let path = self.map(table.name);
                let fits = match table.role {
                    Role::Cluster => cluster.is_none(),
                    Role::Connections => match self.connections_misfit(table) {
                        None => true,
                        Some(why) => {
                            if path.exists() {
                                left.push(format!("{}: {why}", table.name));
                            }
                            false
                        }
                    },
                };
                (*table, if fits { path } else { self.next(table.name) })
            })
            .collect();
        if let Some(why) = cluster
            && self.map(map::NODE).exists()
        {
            left.push(why);
        }
        (places, left)
    }

    /// Why the pinned cluster tables can't be used, if so.
    fn cluster_misfit(&self, need: &Capacity) -> Option<String> {
        for table in TABLES.iter().filter(|table| table.role == Role::Cluster) {
            if let Some(why) = misfit(table, &self.map(table.name), entries(table, need)) {
                return Some(format!("{}: {why}", table.name));
            }
        }
        let Some(version) = self.layout_version() else {
            return Some(format!("{}: holds settings that this version can't read", map::NODE));
        };
        (version != LAYOUT_VERSION && version != 0)
            .then(|| format!("written by layout version {version}, this is {LAYOUT_VERSION}"))
    }

    /// Whether this version can read the pinned tables, whatever their size.
    pub fn readable(&self) -> Result<(), Error> {
        for table in TABLES.iter().filter(|table| table.role == Role::Cluster) {
            if let Some(why) = misfit(table, &self.map(table.name), 0) {
                return Err(Error::Foreign { map: table.name.into(), why });
            }
        }
        Ok(())
    }

    /// Layout version of the pinned tables' last writer; `None` if there are none or they can't be read.
    pub fn layout_version(&self) -> Option<u32> {
        self.read_node().map(|node| node.layout_version)
    }

    /// The settings in use, if a writer of this layout version left them.
    pub fn node(&self) -> Option<Node> {
        self.read_node().filter(|node| node.layout_version == LAYOUT_VERSION)
    }

    fn read_node(&self) -> Option<Node> {
        let node = Map::open(&self.map(map::NODE)).ok()?;
        let mut bytes = vec![0; node.shape.value as usize];
        sys::lookup(node.as_fd(), &0_u32.to_ne_bytes(), &mut bytes).ok()?;
        Node::try_read_from_bytes(&bytes).ok()
    }

    /// Remove everything of ours. When this returns no program runs any more: the links are detached before their pins
    /// go, those that translate before those that give the dialled address back.
    pub fn remove(&self) -> Result<(), Error> {
        for name in SOCKET_PROGRAMS.into_iter().rev() {
            let pin = self.link(name);
            let detached = match sys::object_get(&pin) {
                Ok(link) => sys::link_detach(link.as_fd()),
                Err(error) => Err(error),
            };
            if let Err(error) = detached
                && error.kind() != io::ErrorKind::NotFound
            {
                // Removing the pin detaches too, a little later.
                tracing::debug!("detach {}: {error}", pin.display());
            }
        }
        remove_all(&self.root)
    }
}

/// Why the map at `path` is not what this version wants, if so. A larger one fits.
fn misfit(table: &Table, path: &Path, entries: u32) -> Option<String> {
    let map = match Map::open(path) {
        Ok(map) => map,
        Err(error) => return Some(error.to_string()),
    };
    let (is, wants) = (map.shape, table.shape);
    // The kernel adds flags of its own (BPF_F_RDONLY_PROG and the like) to none of ours.
    if (is.kind, is.key, is.value, is.flags) != (wants.kind, wants.key, wants.value, wants.flags) {
        return Some(format!("its shape is {is:?}, this version uses {wants:?}"));
    }
    (is.entries < entries).then(|| format!("it has room for {} entries, {entries} are needed", is.entries))
}

fn remove_all(directory: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(directory) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Kernel { what: format!("remove {}", directory.display()), source })
        }
        _ => Ok(()),
    }
}
