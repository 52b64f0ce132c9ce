//! The datapath's view of the kernel: `Tables` over maps, `Env` over helpers, `Socket` over socket storage.

use core::cell::Cell;

use aya_ebpf::{
    btf_maps::lpm_trie::Key,
    helpers::generated::{
        bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_get_prandom_u32,
        bpf_ktime_get_coarse_ns, bpf_ktime_get_ns,
    },
    programs::SockAddrContext,
};
use proxy_common::{
    Address,
    datapath::{Env, Socket, Tables},
    layout::{
        Affinity, AffinityKey, Backend, Connected, Frontend, FrontendKey, LocalAddress, Node, RangeKey,
        Service, Spot, Unconnected,
    },
};

use crate::maps::{
    ADDRESSES, AFFINITY, BACKENDS, CONNECTED, FRONTENDS, HAVE_COARSE, HAVE_RETVAL, LOCAL_ADDRESSES, NODE,
    PORTS, Range, SERVICES, SOURCE_RANGES, UNCONNECTED,
};

/// The pinned maps.
pub(crate) struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn node(&self) -> Option<Node> {
        NODE.get(0).copied()
    }

    #[inline(always)]
    fn port_in_use(&self, port: u16) -> bool {
        let port = u32::from(port);
        PORTS.get(port >> 6).is_some_and(|word| word >> (port & 63) & 1 != 0)
    }

    #[inline(always)]
    fn address_in_use(&self, address: &Address) -> bool {
        let spot = Spot::of(address);
        ADDRESSES.get(spot.word).is_some_and(|word| spot.is_in(*word))
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        // SAFETY: the value is copied at once; an entry is reused only after a fence (ADR 0003).
        unsafe { FRONTENDS.get(key) }.copied()
    }

    #[inline(always)]
    fn service(&self, index: u32) -> Option<Service> {
        let word = SERVICES.get_ptr(index)?.cast::<u64>();
        // SAFETY: the map's lookup gives a pointer to an aligned 8-byte value; the agent stores it as one word.
        Some(Service::from_word(unsafe { word.read_volatile() }))
    }

    #[inline(always)]
    fn backend(&self, slot: u32) -> Option<Backend> {
        BACKENDS.get(slot).copied()
    }

    #[inline(always)]
    fn local_address(&self, address: &Address) -> Option<LocalAddress> {
        LOCAL_ADDRESSES.get(&Key::new(128, address.octets())).copied()
    }

    #[inline(always)]
    fn in_range(&self, key: &RangeKey) -> bool {
        let data = Range { owner: key.owner, address: key.address };
        SOURCE_RANGES.get(&Key::new(key.prefix_length, data)).is_some()
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        // SAFETY: the value is copied at once. An entry evicted meanwhile reads as another client's: what it names is
        // checked to be in this service's set before it is used.
        unsafe { AFFINITY.get(key) }.copied()
    }

    #[inline(always)]
    fn set_affinity(&self, key: &AffinityKey, value: &Affinity) {
        let _ = AFFINITY.insert(key, value, 0);
    }
}

/// The call that the program was run for.
pub(crate) struct Calling<'a> {
    ctx: &'a SockAddrContext,
    netns: Cell<u64>,
}

impl<'a> Calling<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a SockAddrContext) -> Self {
        Self { ctx, netns: Cell::new(0) }
    }
}

impl Env for Calling<'_> {
    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no preconditions.
        unsafe { bpf_get_prandom_u32() as u32 }
    }

    #[inline(always)]
    fn seconds(&self) -> u32 {
        // SAFETY: no preconditions; both read the monotonic clock.
        let ns =
            unsafe { if HAVE_COARSE.load() != 0 { bpf_ktime_get_coarse_ns() } else { bpf_ktime_get_ns() } };
        (ns / 1_000_000_000) as u32
    }

    #[inline(always)]
    fn netns(&self) -> u64 {
        if self.netns.get() == 0 {
            // SAFETY: the context is the one this program was run with.
            self.netns.set(unsafe { bpf_get_netns_cookie(self.ctx.sock_addr.cast()) });
        }
        self.netns.get()
    }

    #[inline(always)]
    fn can_refuse(&self) -> bool {
        HAVE_RETVAL.load() != 0
    }

    #[inline(always)]
    fn is_left(&self, levels: u32) -> bool {
        group_is_left(levels) != 0
    }
}

/// Whether a cgroup of the calling process is left to packets. A global function: the verifier walks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn group_is_left(levels: u32) -> u32 {
    let mut level = 1;
    while level < Node::LEVELS {
        if levels >> level & 1 != 0 {
            // SAFETY: no preconditions; 0 where the process has no cgroup so deep.
            let id = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
            let data = Range { owner: RangeKey::GROUPS, address: RangeKey::group(id).octets() };
            if id != 0 && SOURCE_RANGES.get(&Key::new(160, data)).is_some() {
                return 1;
            }
        }
        level += 1;
    }
    0
}

/// The calling socket's storage.
pub(crate) struct Storage<'a> {
    ctx: &'a SockAddrContext,
}

impl<'a> Storage<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a SockAddrContext) -> Self {
        Self { ctx }
    }
}

impl Socket for Storage<'_> {
    #[inline(always)]
    fn connected(&self) -> Option<Connected> {
        /// `TCP_CLOSE` of the kernel's net/tcp_states.h: also of a datagram socket without a peer.
        const CLOSED: u32 = 7;
        // SAFETY: the context's socket is valid while the program runs; the helper gives null or this socket's value,
        // likewise, and it is copied. No hook sees a socket lose its peer (connect() with AF_UNSPEC), so its record stays.
        unsafe {
            let sk = (*self.ctx.sock_addr).__bindgen_anon_1.sk;
            if (&raw const (*sk).state).read_volatile() == CLOSED {
                return None;
            }
            CONNECTED.get_ptr_mut(self.ctx).as_ref().copied()
        }
    }

    #[inline(always)]
    fn set_connected(&self, record: &Connected) -> bool {
        let mut record = *record;
        // SAFETY: the helper gives null or this socket's value; a concurrent connect() of the same socket is excluded
        // by the socket's lock.
        unsafe {
            let stored = CONNECTED.get_or_insert_ptr_mut(self.ctx, Some(&mut record));
            if stored.is_null() {
                return false;
            }
            *stored = record;
        }
        true
    }

    #[inline(always)]
    fn forget_connected(&self) {
        // SAFETY: the context's socket is valid while the program runs; most sockets have no record, and then this is
        // one look.
        unsafe {
            if !CONNECTED.get_ptr_mut(self.ctx).is_null() {
                let sk = (*self.ctx.sock_addr).__bindgen_anon_1.sk;
                let _ = CONNECTED.delete(sk);
            }
        }
    }

    #[inline(always)]
    fn unconnected(&mut self, create: bool) -> Option<&mut Unconnected> {
        // SAFETY: null or this socket's value. Threads that send on one socket at the same time can mix their slots'
        // bytes; a mixed slot names a backend that is checked against the set before it is used.
        unsafe {
            let stored = if create {
                UNCONNECTED.get_or_insert_ptr_mut(self.ctx, None)
            } else {
                UNCONNECTED.get_ptr_mut(self.ctx)
            };
            stored.as_mut()
        }
    }
}
