//! Every name that both halves or two versions of vipr must agree on.

/// Version of all layouts in [`crate::layout`]. A change that an older program could not live with raises it; the
/// agent then builds the tables anew beside the running ones and swaps (see `docs/adr/0004-pins-and-versions.md`).
pub const LAYOUT_VERSION: u32 = 4;

/// Where everything is pinned unless `--pin-path` says otherwise.
pub const PIN_PATH: &str = "/sys/fs/bpf/vipr";

/// Names of maps: in the object, as pins, in the documentation.
pub mod map {
    /// VIP:port → service.
    pub const FRONTENDS: &str = "frontends";
    /// Service → current extent.
    pub const SERVICES: &str = "services";
    /// Extents: a header, then its endpoints.
    pub const BACKENDS: &str = "backends";
    /// Addresses of this node.
    pub const LOCAL_ADDRESSES: &str = "local_addresses";
    /// Bitmap of the ports that any frontend uses.
    pub const PORTS: &str = "ports";
    /// Bitmap that says of an address whether it may be a frontend's.
    pub const ADDRESSES: &str = "addresses";
    /// Settings of this node.
    pub const NODE: &str = "node";
    /// Outcomes, counted per CPU.
    pub const COUNTERS: &str = "counters";
    /// Session affinity.
    pub const AFFINITY: &str = "affinity";
    /// Service index → namespace/name:port, for people.
    pub const NAMES: &str = "names";
    /// One-slot array of maps: updating it waits for all running programs.
    pub const FENCE: &str = "fence";
    /// Connected sockets' dialled and real peer.
    pub const CONNECTED: &str = "connected";
    /// Unconnected UDP sockets' backends.
    pub const UNCONNECTED: &str = "unconnected";

    /// Packet plane: confirmed flows.
    pub const FLOWS: &str = "flows";
    /// Packet plane: TCP flows that wait for the backend's answer.
    pub const FLOWS_NEW_TCP: &str = "flows_new_tcp";
    /// Packet plane: the same, UDP.
    pub const FLOWS_NEW_UDP: &str = "flows_new_udp";
    /// Packet plane: the same, SCTP.
    pub const FLOWS_NEW_SCTP: &str = "flows_new_sctp";
    /// All tables of flows.
    pub const FLOW_TABLES: [&str; 4] = [FLOWS, FLOWS_NEW_TCP, FLOWS_NEW_UDP, FLOWS_NEW_SCTP];
    /// Packet plane: how many keys came into the flows' tables, and how they left.
    pub const FLOW_COUNTS: &str = "flow_counts";
    /// Packet plane: ports that flows have dialled or been served on.
    pub const FLOW_PORTS: &str = "flow_ports";
    /// Packet plane: a byte for each pair of ends that a flow may have.
    pub const FLOW_TRACES: &str = "flow_traces";
    /// Packet plane: what the first look at a packet asks.
    pub const GATE: &str = "gate";
    /// Packet plane: what first fragments said.
    pub const FRAGMENTS: &str = "fragments";
    /// Packet plane: network devices.
    pub const DEVICES: &str = "devices";
    /// Packet plane: who may dial load balancers, and where pods are.
    pub const SOURCE_RANGES: &str = "source_ranges";
    /// Packet plane: addresses to masquerade with, of devices that have several.
    pub const MASQUERADE: &str = "masquerade";
    /// Packet plane: connections that another proxy began.
    pub const HANDED_OVER: &str = "handed_over";
    /// Packet plane: its settings.
    pub const PACKET_PLANE: &str = "packet_plane";

    /// All pinned maps, in the order they are shown.
    pub const ALL: [&str; 27] = [
        FRONTENDS,
        SERVICES,
        BACKENDS,
        NAMES,
        LOCAL_ADDRESSES,
        PORTS,
        ADDRESSES,
        NODE,
        COUNTERS,
        AFFINITY,
        FENCE,
        CONNECTED,
        UNCONNECTED,
        DEVICES,
        SOURCE_RANGES,
        MASQUERADE,
        PACKET_PLANE,
        FLOWS,
        FLOWS_NEW_TCP,
        FLOWS_NEW_UDP,
        FLOWS_NEW_SCTP,
        FLOW_COUNTS,
        FLOW_PORTS,
        FLOW_TRACES,
        GATE,
        FRAGMENTS,
        HANDED_OVER,
    ];
}

/// Programs of the socket plane: function name in the object, pin name of its link. In the order in which they are
/// attached: those that give the dialled address back come before those that translate it, else a datagram's answer
/// could show a backend between the two.
pub const SOCKET_PROGRAMS: [&str; 8] =
    ["getpeername4", "getpeername6", "recvmsg4", "recvmsg6", "sendmsg4", "sendmsg6", "connect4", "connect6"];

/// Programs of the packet plane: function name in the object, end of the name of their links' pins.
pub const DEVICE_PROGRAMS: [&str; 2] = ["ingress", "egress"];

/// The program that tells the agent which sockets have a record of connect(): attached to nothing, run when it is read.
pub const SOCKETS_PROGRAM: &str = "connected_sockets";

/// Sizes the tables never go below (entries). They grow with need.
pub mod floor {
    /// Frontends.
    pub const FRONTENDS: u32 = 4096;
    /// Services.
    pub const SERVICES: u32 = 2048;
    /// Slots of `backends`: one for each extent's header and one for each endpoint.
    pub const BACKENDS: u32 = 32768;
    /// Addresses and prefixes of the node.
    pub const LOCAL_ADDRESSES: u32 = 1024;
    /// Devices with programs.
    pub const DEVICES: u32 = 1024;
    /// Ranges of addresses.
    pub const SOURCE_RANGES: u32 = 4096;
    /// Ranges of peers for which a device masquerades with another address than its first.
    pub const MASQUERADE: u32 = 1024;
    /// Keys of confirmed flows, two to four for each.
    pub const FLOWS: u32 = 131_072;
    /// Keys of flows that wait for the backend's answer: TCP's, and as many UDP's.
    pub const FLOWS_NEW: u32 = 32_768;
    /// The same, SCTP's.
    pub const FLOWS_NEW_SCTP: u32 = 4096;
    /// Keys of another proxy's connections, one or two for each. Memory is taken as they are listed.
    pub const HANDED_OVER: u32 = 262_144;
    /// Packets that come in fragments.
    pub const FRAGMENTS: u32 = 4096;
    /// Remembered clients.
    pub const AFFINITY: u32 = 65536;
}
