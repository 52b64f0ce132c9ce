//! The packet plane's view of the kernel: flows, devices and ranges over maps, and what the world says.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_fib_lookup as Lookup, bpf_sock_tuple},
    btf_maps::lpm_trie::Key,
    helpers::generated::{
        bpf_fib_lookup, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_sk_fullsock, bpf_sk_lookup_udp,
        bpf_sk_release, bpf_sk_storage_get, bpf_skc_lookup_tcp,
    },
};
use proxy_common::{
    Address, Protocol,
    datapath::{
        Endpoint,
        flow::{Entry, Flows, Stage},
        packet::{PacketEnv, PacketTables},
    },
    layout::{
        Connected, Device, Flow, FlowCount, FlowKey, Fragment, FragmentKey, HandedOver, MasqueradeKey,
        PacketPlane, Trace,
    },
};

use crate::{
    frame::Frame,
    kernel::Maps,
    maps::{
        CONNECTED, FLOW_COUNTS, FLOW_PORTS, FLOW_TRACES, FLOWS, FRAGMENTS, GATE, HANDED_OVER, HAVE_COARSE,
        MASQUERADE, NEW_SCTP, NEW_TCP, NEW_UDP, PACKET_PLANE, REFUSALS,
    },
};

/// An entry of a flow's table.
pub(crate) struct Held(*mut Flow);

impl Entry for Held {
    #[inline(always)]
    fn flow(&self) -> Flow {
        // SAFETY: a map's value; an entry that is evicted and reused meanwhile reads as another flow's, or as a mixture
        // of two: who reads it compares what it names with the packet.
        // Word by word, because the compiler's copy of what it can't tell apart is one of bytes.
        let word = |number: usize| unsafe { self.0.cast::<u64>().add(number).read_volatile() };
        Flow::from_words([
            word(0),
            word(1),
            word(2),
            word(3),
            word(4),
            word(5),
            word(6),
            word(7),
            word(8),
            word(9),
        ])
    }

    #[inline(always)]
    fn set_state(&self, client: u8, backend: u8, seen: u32) {
        // SAFETY: a map's value; each field is one store.
        unsafe {
            (&raw mut (*self.0).client_state).write_volatile(client);
            (&raw mut (*self.0).backend_state).write_volatile(backend);
            (&raw mut (*self.0).seen).write_volatile(seen);
        }
    }
}

impl Flows for Maps {
    type Entry = Held;

    #[inline(always)]
    fn find(&self, stage: Stage, key: &FlowKey) -> Option<Held> {
        let found = match stage {
            Stage::Confirmed => FLOWS.get_ptr_mut(key),
            Stage::Tcp => NEW_TCP.get_ptr_mut(key),
            Stage::Udp => NEW_UDP.get_ptr_mut(key),
            Stage::Sctp => NEW_SCTP.get_ptr_mut(key),
        };
        found.map(Held)
    }

    #[inline(always)]
    fn put(&self, stage: Stage, key: &FlowKey, flow: &Flow) {
        // Whether it is there already has to be known, because keys are counted; it seldom is.
        if self.claim(stage, key, flow) {
            return;
        }
        let _ = match stage {
            Stage::Confirmed => FLOWS.insert(key, flow, 0),
            Stage::Tcp => NEW_TCP.insert(key, flow, 0),
            Stage::Udp => NEW_UDP.insert(key, flow, 0),
            Stage::Sctp => NEW_SCTP.insert(key, flow, 0),
        };
    }

    #[inline(always)]
    fn claim(&self, stage: Stage, key: &FlowKey, flow: &Flow) -> bool {
        const NEW: u64 = 1;
        trace(key);
        let done = match stage {
            Stage::Confirmed => FLOWS.insert(key, flow, NEW),
            Stage::Tcp => NEW_TCP.insert(key, flow, NEW),
            Stage::Udp => NEW_UDP.insert(key, flow, NEW),
            Stage::Sctp => NEW_SCTP.insert(key, flow, NEW),
        };
        count(FlowCount::Made, stage, done.is_ok())
    }

    #[inline(always)]
    fn remove(&self, stage: Stage, key: &FlowKey) {
        let done = match stage {
            Stage::Confirmed => FLOWS.remove(key),
            Stage::Tcp => NEW_TCP.remove(key),
            Stage::Udp => NEW_UDP.remove(key),
            Stage::Sctp => NEW_SCTP.remove(key),
        };
        count(FlowCount::Forgotten, stage, done.is_ok());
    }

    #[inline(always)]
    fn is_traced(&self, trace: Trace) -> bool {
        // SAFETY: one byte of a map's value.
        trace_byte(trace).is_some_and(|byte| unsafe { byte.read_volatile() } != 0)
    }

    #[inline(always)]
    fn port_seen(&self, port: u16) -> bool {
        // SAFETY: one byte of a map's value.
        port_byte(port).is_some_and(|byte| unsafe { byte.read_volatile() } != 0)
    }

    #[inline(always)]
    fn note_port(&self, port: u16) {
        if let Some(byte) = port_byte(port) {
            // SAFETY: one byte of a map's value: CPUs that note different ports don't meet.
            unsafe { byte.write_volatile(1) };
        }
    }
}

/// Leave a key's trace.
#[inline(always)]
fn trace(key: &FlowKey) {
    if let Some(byte) = trace_byte(Trace::of_key(key)) {
        // SAFETY: one byte of a map's value: CPUs that leave different traces don't meet.
        unsafe { byte.write_volatile(Trace::FRESH) };
    }
}

#[inline(always)]
fn trace_byte(trace: Trace) -> Option<*mut u8> {
    let word = FLOW_TRACES.get_ptr_mut(trace.index >> 3)?;
    // SAFETY: one of the 8 bytes of the value.
    Some(unsafe { word.cast::<u8>().add((trace.index & 7) as usize) })
}

/// Count what came to pass, and say whether it did.
#[inline(always)]
fn count(what: FlowCount, stage: Stage, done: bool) -> bool {
    if done && let Some(keys) = FLOW_COUNTS.get_ptr_mut(what.of(stage)) {
        // SAFETY: this CPU's own, as the desk is.
        unsafe { *keys += 1 };
    }
    done
}

#[inline(always)]
fn port_byte(port: u16) -> Option<*mut u8> {
    let port = u32::from(port);
    let word = FLOW_PORTS.get_ptr_mut(port >> 3)?;
    // SAFETY: one of the 8 bytes of the value.
    Some(unsafe { word.cast::<u8>().add((port & 7) as usize) })
}

impl PacketTables for Maps {
    #[inline(always)]
    fn packet_plane(&self) -> Option<&PacketPlane> {
        PACKET_PLANE.get(0)
    }

    #[inline(always)]
    fn judges(&self) -> bool {
        GATE.get(0).is_none_or(|gate| gate.judged != 0)
    }

    #[inline(always)]
    fn masquerade(&self, key: &MasqueradeKey) -> Option<Address> {
        let data = crate::maps::Towards { device: key.device, address: key.address };
        let found = MASQUERADE.get(&Key::new(key.prefix_length, data))?;
        Some(Address::from_octets(found.address))
    }

    #[inline(always)]
    fn handed_over(&self, key: &FlowKey) -> Option<HandedOver> {
        // SAFETY: the value is copied at once; one that is removed and reused meanwhile reads as another connection's, which
        // is one more packet left alone.
        unsafe { HANDED_OVER.get(key) }.copied()
    }

    #[inline(always)]
    fn set_handed_over(&self, key: &FlowKey, value: &HandedOver) {
        if let Some(found) = HANDED_OVER.get_ptr_mut(key) {
            // SAFETY: a map's value; nothing but the time is ever changed, in one store.
            unsafe { (&raw mut (*found).until).write_volatile(value.until) };
        }
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Fragment> {
        // SAFETY: the value is copied at once; one evicted meanwhile reads as another packet's, whose ports lead nowhere.
        unsafe { FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn set_fragment(&self, key: &FragmentKey, value: &Fragment) {
        let _ = FRAGMENTS.insert(key, value, 0);
    }

    #[inline(always)]
    fn may_refuse(&self, now: u32) -> bool {
        let Some(refusals) = REFUSALS.get_ptr_mut(0) else { return false };
        // SAFETY: this CPU's own, as the desk is.
        let [second, count] = unsafe { &mut *refusals };
        if *second != now {
            (*second, *count) = (now, 0);
        }
        *count += 1;
        *count <= REFUSALS_PER_SECOND
    }
}

/// Linux' own limit for a host (`icmp_msgs_per_sec`), here of each CPU.
const REFUSALS_PER_SECOND: u32 = 1000;

const AF_INET: u8 = 2;
/// `LOOPBACK_IFINDEX`: where routes have it that the node's own packets come from.
const LOOPBACK: u32 = 1;
/// `BPF_FIB_LKUP_RET_NO_NEIGH`: there is a route, and nobody has asked for its gateway's MAC address yet.
const NO_NEIGHBOUR: i64 = 7;
/// `BPF_FIB_LKUP_RET_FRAG_NEEDED`: there is a route, and the packet is too long for it.
const TOO_LONG: i64 = 8;

/// The world around a packet.
pub(crate) struct Around {
    pub(crate) skb: *mut __sk_buff,
}

impl PacketEnv for Around {
    #[inline(always)]
    fn seconds(&self) -> u32 {
        // SAFETY: no preconditions; both read the monotonic clock.
        let ns =
            unsafe { if HAVE_COARSE.load() != 0 { bpf_ktime_get_coarse_ns() } else { bpf_ktime_get_ns() } };
        (ns / 1_000_000_000) as u32
    }

    #[inline(always)]
    fn has_socket(&self, protocol: Protocol, local: &Endpoint, peer: &Endpoint) -> bool {
        // SAFETY: all zero is a tuple; the arms are plain integers.
        let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
        let size = if local.address.is_v4() {
            tuple.__bindgen_anon_1.ipv4.saddr = peer.address.v4_word();
            tuple.__bindgen_anon_1.ipv4.daddr = local.address.v4_word();
            tuple.__bindgen_anon_1.ipv4.sport = peer.port.to_be();
            tuple.__bindgen_anon_1.ipv4.dport = local.port.to_be();
            12
        } else {
            tuple.__bindgen_anon_1.ipv6.saddr = peer.address.words();
            tuple.__bindgen_anon_1.ipv6.daddr = local.address.words();
            tuple.__bindgen_anon_1.ipv6.sport = peer.port.to_be();
            tuple.__bindgen_anon_1.ipv6.dport = local.port.to_be();
            36
        };
        /// The namespace of the packet's device.
        const CURRENT: u64 = u64::MAX;
        // SAFETY: the tuple is valid for its size; what is found is let go of.
        unsafe {
            let found = match protocol {
                Protocol::Tcp => bpf_skc_lookup_tcp(self.skb.cast(), &mut tuple, size, CURRENT, 0),
                Protocol::Udp => bpf_sk_lookup_udp(self.skb.cast(), &mut tuple, size, CURRENT, 0),
                // No helper looks for one.
                Protocol::Sctp => return false,
            };
            if found.is_null() {
                return false;
            }
            bpf_sk_release(found.cast());
        }
        true
    }

    #[inline(always)]
    fn has_sender(&self) -> bool {
        // SAFETY: the kernel's context is valid while the program runs.
        let sk = unsafe { (&raw const (*self.skb).__bindgen_anon_2.sk).read_volatile() };
        !sk.is_null()
    }

    #[inline(always)]
    fn connected(&self, protocol: Protocol) -> Option<Connected> {
        /// `TCP_ESTABLISHED` of the kernel's net/tcp_states.h: also of a datagram socket that is connected.
        const ESTABLISHED: u32 = 1;
        /// `TCP_SYN_SENT`.
        const SYN_SENT: u32 = 2;
        let wanted = if protocol as u8 == Protocol::Udp as u8 { ESTABLISHED } else { SYN_SENT };
        // SAFETY: the kernel's context, its socket and what the socket stores are valid while the program runs; the helpers
        // give null or such a pointer. Of a packet whose socket has been let go of there is none.
        unsafe {
            let sk = (&raw const (*self.skb).__bindgen_anon_2.sk).read_volatile();
            if sk.is_null() {
                return None;
            }
            let sk = bpf_sk_fullsock(sk);
            if sk.is_null()
                || (&raw const (*sk).state).read_volatile() != wanted
                || (&raw const (*sk).protocol).read_volatile() != protocol as u32
            {
                return None;
            }
            let map = (&raw const CONNECTED).cast_mut().cast();
            let stored = bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0);
            stored.cast::<Connected>().as_ref().copied()
        }
    }

    /// Asked as the kernel asked when it routed the packet: from the device that brought it. Where the tables lead
    /// elsewhere by now, or the gateway is an IPv6 one, MASQUERADE goes by the destination, too.
    #[inline(always)]
    fn next_hop(&self, device: &Device, source: &Address, destination: &Address) -> Address {
        // SAFETY: all zero is a question; the arms are plain integers.
        let mut lookup: Lookup = unsafe { core::mem::zeroed() };
        lookup.family = AF_INET;
        lookup.ifindex = match Frame::new(self.skb).get(|skb| unsafe { &raw const (*skb).ingress_ifindex }) {
            0 => LOOPBACK,
            ifindex => ifindex,
        };
        lookup.__bindgen_anon_3.ipv4_src = source.v4_word();
        lookup.__bindgen_anon_4.ipv4_dst = destination.v4_word();
        // SAFETY: the question is valid for its size.
        let result = unsafe { bpf_fib_lookup(self.skb.cast(), &mut lookup, size_of::<Lookup>() as i32, 0) };
        // Before 5.12 the device is told only with a neighbour.
        let is_here =
            result == NO_NEIGHBOUR || (result == 0 || result == TOO_LONG) && lookup.ifindex == device.host;
        if is_here && lookup.family == AF_INET {
            // SAFETY: the arm of this family.
            Address::from_v4_word(unsafe { lookup.__bindgen_anon_4.ipv4_dst })
        } else {
            *destination
        }
    }
}
