//! Every pinned table: what it is for, and the shape that this version gives it.

use aya_obj::generated::bpf_map_type as kind;
use proxy_common::{
    layout::{
        Affinity, AffinityKey, Backend, Connected, Device, Flow, FlowCount, FlowKey, Fragment, FragmentKey,
        Frontend, FrontendKey, Gate, HandedOver, LocalAddress, LocalKey, MasqueradeAddress, MasqueradeKey,
        Node, PacketPlane, RangeKey, Service, ServiceName, Spot, Trace, Unconnected,
    },
    names::{floor, map},
    reason::COUNTERS,
};

use super::sys::Shape;
use crate::plan::Capacity;

const MMAPABLE: u32 = 1 << 10;
const NO_PREALLOC: u32 = 1;
/// With fewer entries a single CPU's list of free ones may be all that a table has.
const LEAST: u32 = 512;

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

/// Entries of a table of flows where so many keys of confirmed ones have room; `None`: it is no such table.
pub(super) fn flow_entries(name: &str, confirmed: u32) -> Option<u32> {
    let part = |whole: u32| (confirmed / (floor::FLOWS / whole)).max(LEAST);
    match name {
        map::FLOWS => Some(confirmed),
        map::FLOWS_NEW_TCP | map::FLOWS_NEW_UDP => Some(part(floor::FLOWS_NEW)),
        map::FLOWS_NEW_SCTP => Some(part(floor::FLOWS_NEW_SCTP)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_flows_grow_together() {
        let entries = |confirmed| map::FLOW_TABLES.map(|name| flow_entries(name, confirmed));
        let usual = [floor::FLOWS, floor::FLOWS_NEW, floor::FLOWS_NEW, floor::FLOWS_NEW_SCTP];
        assert_eq!(entries(floor::FLOWS), usual.map(Some));
        assert_eq!(entries(2048), [2048, 512, 512, 512].map(Some));
        assert_eq!(flow_entries(map::AFFINITY, 2048), None);
    }
}
