//! Every map, with who writes it and who reads it. Sizes are floors: the agent sets the real ones when it loads the
//! object. All are pinned; names are those of `proxy_common::names`.

use aya_ebpf::{
    Global,
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SkStorage},
    macros::btf_map,
};
use proxy_common::{
    datapath::desk::Desk,
    layout::{
        Affinity, AffinityKey, Backend, Connected, Device, Flow, FlowCount, FlowKey, Fragment, FragmentKey,
        Frontend, FrontendKey, Gate, HandedOver, LocalAddress, MasqueradeAddress, Node, PacketPlane, Service,
        ServiceName, Spot, Trace, Unconnected,
    },
    names::floor,
    reason::COUNTERS as REASONS,
};

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

/// VIP:port → service. Written by the agent.
#[btf_map(name = "frontends")]
pub(crate) static FRONTENDS: HashMap<FrontendKey, Frontend, { floor::FRONTENDS as usize }> = HashMap::new();

/// Service → current extent, one 8-byte word. Written by the agent through its mapping.
#[btf_map(name = "services")]
pub(crate) static SERVICES: Array<Service, { floor::SERVICES as usize }, MMAPABLE> = Array::new();

/// Extents. Written by the agent through its mapping, only where no service points.
#[btf_map(name = "backends")]
pub(crate) static BACKENDS: Array<Backend, { floor::BACKENDS as usize }, MMAPABLE> = Array::new();

/// Service → its name. Written by the agent for people; programs don't look.
#[btf_map(name = "names")]
pub(crate) static NAMES: HashMap<
    u32,
    ServiceName,
    { floor::SERVICES as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

/// The node's own addresses. Written by the agent from the local routing table.
#[btf_map(name = "local_addresses")]
pub(crate) static LOCAL_ADDRESSES: LpmTrie<[u8; 16], LocalAddress, { floor::LOCAL_ADDRESSES as usize }> =
    LpmTrie::new();

/// Bitmap of ports that any frontend uses: 8 kB that stay in cache, asked before any hash. Written by the agent.
#[btf_map(name = "ports")]
pub(crate) static PORTS: Array<u64, 1024, MMAPABLE> = Array::new();

/// Bitmap that says of an address whether it may be a frontend's: one word of 128 kB for each address, asked before
/// `frontends`. Written by the agent.
#[btf_map(name = "addresses")]
pub(crate) static ADDRESSES: Array<u64, { Spot::WORDS as usize }, MMAPABLE> = Array::new();

/// The node's settings. Written by the agent; the netns probe writes its cookie.
#[btf_map(name = "node")]
pub(crate) static NODE: Array<Node, 1> = Array::new();

/// Outcomes by `Reason`, per CPU. Written by programs, read by people and metrics.
#[btf_map(name = "counters")]
pub(crate) static COUNTERS: PerCpuArray<u64, { REASONS as usize }> = PerCpuArray::new();

/// Which endpoint a client was sent to. Written by programs; survives restart and growth.
#[btf_map(name = "affinity")]
pub(crate) static AFFINITY: LruHashMap<AffinityKey, Affinity, { floor::AFFINITY as usize }> =
    LruHashMap::new();

/// Connected sockets: what was dialled, where it went. Lives with the socket.
#[btf_map(name = "connected")]
pub(crate) static CONNECTED: SkStorage<Connected> = SkStorage::new();

/// Unconnected UDP sockets: the same for each dialled address. Lives with the socket.
#[btf_map(name = "unconnected")]
pub(crate) static UNCONNECTED: SkStorage<Unconnected> = SkStorage::new();

/// The devices that packets are met on. Written by the agent from netlink.
#[btf_map(name = "devices")]
pub(crate) static DEVICES: HashMap<u32, Device, { floor::DEVICES as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// A range's owner and address: what the longest prefix is matched over.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Range {
    pub(crate) owner: u32,
    pub(crate) address: [u8; 16],
}

/// Who may dial load balancers, and where pods are. Written by the agent.
#[btf_map(name = "source_ranges")]
pub(crate) static SOURCE_RANGES: LpmTrie<Range, u32, { floor::SOURCE_RANGES as usize }> = LpmTrie::new();

/// A device and an address: what the longest prefix is matched over.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Towards {
    pub(crate) device: u32,
    pub(crate) address: [u8; 16],
}

/// What devices with several addresses masquerade with. Written by the agent.
#[btf_map(name = "masquerade")]
pub(crate) static MASQUERADE: LpmTrie<Towards, MasqueradeAddress, { floor::MASQUERADE as usize }> =
    LpmTrie::new();

/// The packet plane's settings. Written by the agent.
#[btf_map(name = "packet_plane")]
pub(crate) static PACKET_PLANE: Array<PacketPlane, 1> = Array::new();

/// Flows whose backend has answered, and whose client has heard of it. Written by programs; survives restart and growth.
#[btf_map(name = "flows")]
pub(crate) static FLOWS: LruHashMap<FlowKey, Flow, { floor::FLOWS as usize }> = LruHashMap::new();

/// Flows that wait for the answer, or for the client to go on from there, TCP: a flood of them evicts only its like.
#[btf_map(name = "flows_new_tcp")]
pub(crate) static NEW_TCP: LruHashMap<FlowKey, Flow, { floor::FLOWS_NEW as usize }> = LruHashMap::new();

/// The same, UDP.
#[btf_map(name = "flows_new_udp")]
pub(crate) static NEW_UDP: LruHashMap<FlowKey, Flow, { floor::FLOWS_NEW as usize }> = LruHashMap::new();

/// The same, SCTP.
#[btf_map(name = "flows_new_sctp")]
pub(crate) static NEW_SCTP: LruHashMap<FlowKey, Flow, { floor::FLOWS_NEW_SCTP as usize }> = LruHashMap::new();

/// How many keys came into the flows' tables and left them, by `FlowCount`. Programs count what they do, the agent the rest.
#[btf_map(name = "flow_counts")]
pub(crate) static FLOW_COUNTS: PerCpuArray<u64, { FlowCount::ENTRIES as usize }> = PerCpuArray::new();

/// Ports that flows have dialled or been served on, a byte each (a bit would need an atomic that 5.10 has not): asked
/// before any flow's table.
#[btf_map(name = "flow_ports")]
pub(crate) static FLOW_PORTS: Array<u64, 8192> = Array::new();

/// What flows have left behind: a byte for each pair of ends that a flow may have, asked before any flow's table. Written by
/// programs; the agent takes away what is of no flow any more.
#[btf_map(name = "flow_traces")]
pub(crate) static FLOW_TRACES: Array<u64, { Trace::WORDS as usize }, MMAPABLE> = Array::new();

/// What the first look at a packet asks: one line. Written by the agent through its mapping.
#[btf_map(name = "gate")]
pub(crate) static GATE: Array<Gate, 1, MMAPABLE> = Array::new();

/// What first fragments said, for those that follow.
#[btf_map(name = "fragments")]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, Fragment, { floor::FRAGMENTS as usize }> =
    LruHashMap::new();

/// Connections that another proxy began. Written by the agent from netfilter's connection tracking; programs extend
/// them.
#[btf_map(name = "handed_over")]
pub(crate) static HANDED_OVER: HashMap<
    FlowKey,
    HandedOver,
    { floor::HANDED_OVER as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

/// How many senders were told in this second that they are refused, per CPU: the second and the count.
#[btf_map(name = "refusals")]
pub(crate) static REFUSALS: PerCpuArray<[u32; 2], 1> = PerCpuArray::new();

/// What the parts of a decision about a packet share, see `programs::packet`.
#[btf_map(name = "desk")]
pub(crate) static DESK: PerCpuArray<Desk, 1> = PerCpuArray::new();

/// The mark of what is masqueraded, see `datapath::mark`; 0: none. Set at load from the configuration.
#[unsafe(no_mangle)]
pub(crate) static MASQUERADE_MARK: Global<u32> = Global::new(0);

/// What tells this network namespace's passes from another's, see `datapath::mark::passed`. Set at load.
#[unsafe(no_mangle)]
pub(crate) static NAMESPACE_TAG: Global<u32> = Global::new(0);

/// 1: `bpf_set_retval` exists (kernel 5.18). Set at load from probing; the default is the floor.
#[unsafe(no_mangle)]
pub(crate) static HAVE_RETVAL: Global<u32> = Global::new(0);

/// 1: `bpf_ktime_get_coarse_ns` exists (kernel 5.11). Set at load from probing.
#[unsafe(no_mangle)]
pub(crate) static HAVE_COARSE: Global<u32> = Global::new(0);

/// 1: this load answers netns probes (kernels without `SO_NETNS_COOKIE`). Set at load from probing.
#[unsafe(no_mangle)]
pub(crate) static PROBE_NETNS: Global<u32> = Global::new(0);
