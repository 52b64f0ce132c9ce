//! Where everything is pinned, and whether a pinned map can be used by this version: aya checks nothing when it
//! reuses a pin, so we do.

use std::{
    fs, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use aya_obj::generated::bpf_map_type as kind;
use proxy_common::{
    layout::{
        Affinity, AffinityKey, Backend, Connected, Device, Flow, FlowCount, FlowKey, Fragment, FragmentKey,
        Frontend, FrontendKey, Gate, HandedOver, LocalAddress, LocalKey, MasqueradeAddress, MasqueradeKey,
        Node, PacketPlane, RangeKey, Service, ServiceName, Spot, Trace, Unconnected,
    },
    names::{LAYOUT_VERSION, SOCKET_PROGRAMS, floor, map},
    reason::COUNTERS,
};
use zerocopy::TryFromBytes;

use super::{
    Error,
    grow::flow_entries,
    sys::{self, Map, Shape},
};
use crate::plan::Capacity;

const MMAPABLE: u32 = 1 << 10;
const NO_PREALLOC: u32 = 1;

/// What a table is for: decides what happens when a pinned one does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Describes the cluster: all of these are used together or built anew together.
    Cluster,
    /// Describes connections: kept whenever its shape fits, whatever happens to the others.
    Connections,
}

/// One table: its name, role and shape (entries: the floor).
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Name of map and pin.
    pub name: &'static str,
    /// What it is for.
    pub role: Role,
    /// What this version wants.
    pub shape: Shape,
}

const fn table<K, V>(name: &'static str, role: Role, kind: kind, entries: u32, flags: u32) -> Table {
    let shape =
        Shape { kind: kind as u32, key: size_of::<K>() as u32, value: size_of::<V>() as u32, entries, flags };
    Table { name, role, shape }
}

const fn flows(name: &'static str, entries: u32) -> Table {
    table::<FlowKey, Flow>(name, Role::Connections, kind::BPF_MAP_TYPE_LRU_HASH, entries, 0)
}

/// The fence: made by the agent, not by the object.
pub const FENCE: Table =
    table::<u32, u32>(map::FENCE, Role::Connections, kind::BPF_MAP_TYPE_ARRAY_OF_MAPS, 1, 0);

/// All tables.
pub const TABLES: [Table; 27] = [
    table::<FrontendKey, Frontend>(
        map::FRONTENDS,
        Role::Cluster,
        kind::BPF_MAP_TYPE_HASH,
        floor::FRONTENDS,
        0,
    ),
    table::<u32, Service>(map::SERVICES, Role::Cluster, kind::BPF_MAP_TYPE_ARRAY, floor::SERVICES, MMAPABLE),
    table::<u32, Backend>(map::BACKENDS, Role::Cluster, kind::BPF_MAP_TYPE_ARRAY, floor::BACKENDS, MMAPABLE),
    table::<u32, ServiceName>(
        map::NAMES,
        Role::Cluster,
        kind::BPF_MAP_TYPE_HASH,
        floor::SERVICES,
        NO_PREALLOC,
    ),
    table::<LocalKey, LocalAddress>(
        map::LOCAL_ADDRESSES,
        Role::Cluster,
        kind::BPF_MAP_TYPE_LPM_TRIE,
        floor::LOCAL_ADDRESSES,
        NO_PREALLOC,
    ),
    table::<u32, u64>(map::PORTS, Role::Cluster, kind::BPF_MAP_TYPE_ARRAY, 1024, MMAPABLE),
    table::<u32, u64>(map::ADDRESSES, Role::Cluster, kind::BPF_MAP_TYPE_ARRAY, Spot::WORDS, MMAPABLE),
    table::<u32, Node>(map::NODE, Role::Cluster, kind::BPF_MAP_TYPE_ARRAY, 1, 0),
    table::<u32, u64>(map::COUNTERS, Role::Connections, kind::BPF_MAP_TYPE_PERCPU_ARRAY, COUNTERS, 0),
    table::<AffinityKey, Affinity>(
        map::AFFINITY,
        Role::Connections,
        kind::BPF_MAP_TYPE_LRU_HASH,
        floor::AFFINITY,
        0,
    ),
    FENCE,
    table::<u32, Connected>(map::CONNECTED, Role::Connections, kind::BPF_MAP_TYPE_SK_STORAGE, 0, NO_PREALLOC),
    table::<u32, Unconnected>(
        map::UNCONNECTED,
        Role::Connections,
        kind::BPF_MAP_TYPE_SK_STORAGE,
        0,
        NO_PREALLOC,
    ),
    table::<u32, Device>(map::DEVICES, Role::Cluster, kind::BPF_MAP_TYPE_HASH, floor::DEVICES, NO_PREALLOC),
    table::<RangeKey, u32>(
        map::SOURCE_RANGES,
        Role::Cluster,
        kind::BPF_MAP_TYPE_LPM_TRIE,
        floor::SOURCE_RANGES,
        NO_PREALLOC,
    ),
    table::<MasqueradeKey, MasqueradeAddress>(
        map::MASQUERADE,
        Role::Cluster,
        kind::BPF_MAP_TYPE_LPM_TRIE,
        floor::MASQUERADE,
        NO_PREALLOC,
    ),
    // The seed by which flows were made lives as long as they.
    table::<u32, PacketPlane>(map::PACKET_PLANE, Role::Connections, kind::BPF_MAP_TYPE_ARRAY, 1, 0),
    flows(map::FLOWS, floor::FLOWS),
    flows(map::FLOWS_NEW_TCP, floor::FLOWS_NEW),
    flows(map::FLOWS_NEW_UDP, floor::FLOWS_NEW),
    flows(map::FLOWS_NEW_SCTP, floor::FLOWS_NEW_SCTP),
    table::<u32, u64>(
        map::FLOW_COUNTS,
        Role::Connections,
        kind::BPF_MAP_TYPE_PERCPU_ARRAY,
        FlowCount::ENTRIES,
        0,
    ),
    table::<u32, u64>(map::FLOW_PORTS, Role::Connections, kind::BPF_MAP_TYPE_ARRAY, 8192, 0),
    table::<u32, u64>(map::FLOW_TRACES, Role::Connections, kind::BPF_MAP_TYPE_ARRAY, Trace::WORDS, MMAPABLE),
    table::<u32, Gate>(map::GATE, Role::Cluster, kind::BPF_MAP_TYPE_ARRAY, 1, MMAPABLE),
    table::<FragmentKey, Fragment>(
        map::FRAGMENTS,
        Role::Connections,
        kind::BPF_MAP_TYPE_LRU_HASH,
        floor::FRAGMENTS,
        0,
    ),
    table::<FlowKey, HandedOver>(
        map::HANDED_OVER,
        Role::Connections,
        kind::BPF_MAP_TYPE_HASH,
        floor::HANDED_OVER,
        NO_PREALLOC,
    ),
];

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

/// Entries that a table shall have for `need`: the floor, or need with room to grow.
pub fn entries(table: &Table, need: &Capacity) -> u32 {
    let wanted = match table.name {
        map::FRONTENDS => need.frontends,
        map::SERVICES | map::NAMES => need.services,
        map::BACKENDS => need.backends,
        map::LOCAL_ADDRESSES => need.local_addresses,
        map::DEVICES => need.devices,
        map::SOURCE_RANGES => need.source_ranges,
        map::MASQUERADE => need.masquerade,
        _ => 0,
    };
    wanted.max(table.shape.entries)
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
