//! A packet in the kernel: its bytes, what the kernel knows about it, and how it is changed.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{
        bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_tail,
        bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes,
    },
};
use proxy_common::datapath::{
    csum::Difference,
    nat::{Edit, Over},
    parse::Bytes,
    reject::{self, Reshape},
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What the kernel has hashed of the old ends is not so of the new ones.
const BPF_F_INVALIDATE_HASH: u64 = 1 << 1;
const BPF_ADJ_ROOM_MAC: u32 = 1;
const BPF_F_PSEUDO_HDR: u64 = 1 << 4;
const BPF_F_MARK_MANGLED_0: u64 = 1 << 5;
/// Kernel 6.16: the sum that the device made over an IPv6 packet stays right, too.
const BPF_F_IPV6: u64 = 1 << 7;
/// ETH_P_IPV6 as `__sk_buff` has it.
const IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// What is read directly: the verifier wants a bound.
const NEAR: u32 = 0xff;
/// An Ethernet header, an IP header with all its options or IPv6's with an extension header, and TCP's.
const HEADERS: u32 = 14 + 60 + 20;

/// The packet that the program was run for.
pub(crate) struct Frame {
    skb: *mut __sk_buff,
}

impl Frame {
    #[inline(always)]
    pub(crate) fn new(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }

    /// A field of the context.
    #[inline(always)]
    pub(crate) fn get(&self, field: impl FnOnce(*mut __sk_buff) -> *const u32) -> u32 {
        // SAFETY: the kernel's context is valid while the program runs; fields are read whole, as the verifier wants.
        unsafe { field(self.skb).read_volatile() }
    }
}

impl Frame {
    /// Have the headers lie in one piece.
    #[inline(always)]
    pub(crate) fn gather(&self) {
        let length = self.length();
        let wanted = if length < HEADERS { length } else { HEADERS };
        if self.direct(0, HEADERS as usize).is_none() && self.direct(wanted, 0).is_none() {
            // SAFETY: no preconditions. If it fails, what is not there is not read.
            let _ = unsafe { bpf_skb_pull_data(self.skb, wanted) };
        }
    }

    /// Where the bytes at `offset` lie, if so many lie in one piece there.
    #[inline(always)]
    fn direct(&self, offset: u32, size: usize) -> Option<*mut u8> {
        let data = self.get(|skb| unsafe { &raw const (*skb).data }) as usize;
        let end = self.get(|skb| unsafe { &raw const (*skb).data_end }) as usize;
        if offset > NEAR {
            return None;
        }
        // The verifier knows of a packet's pointer only what is compared as it stands here.
        let at = hidden(data + offset as usize);
        if hidden(at + size) <= end { Some(at as *mut u8) } else { None }
    }

    /// Whether a socket of this node's own namespace sent it: on every kernel its socket is known and no device brought it.
    #[inline(always)]
    pub(crate) fn is_local(&self) -> bool {
        if self.get(|skb| unsafe { &raw const (*skb).ingress_ifindex }) != 0 {
            return false;
        }
        // SAFETY: the kernel's context is valid while the program runs.
        let sk = unsafe { (&raw const (*self.skb).__bindgen_anon_2.sk).read_volatile() };
        !sk.is_null()
    }
}

/// The same number, of which the compiler does not know where it comes from.
#[inline(always)]
fn hidden(mut number: usize) -> usize {
    // SAFETY: a move. (Without an instruction the debug information would have two lines at one place.)
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) number, options(pure, nomem, nostack)) };
    number
}

impl Bytes for Frame {
    #[inline(always)]
    fn length(&self) -> u32 {
        self.get(|skb| unsafe { &raw const (*skb).len })
    }

    #[inline(always)]
    fn near<T: FromBytes + Immutable + KnownLayout + Copy>(&self, offset: u32) -> Option<T> {
        // SAFETY: the bytes are there, and the machines that programs are compiled for read them at any address.
        self.direct(offset, size_of::<T>()).map(|at| unsafe { at.cast::<T>().read() })
    }

    #[inline(always)]
    fn load<T: FromBytes + Immutable + KnownLayout + Copy>(&self, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper writes all bytes of the value, or fails; any bytes are a `T`.
        unsafe {
            let failed =
                bpf_skb_load_bytes(self.skb.cast(), offset, value.as_mut_ptr().cast(), size_of::<T>() as u32);
            if failed == 0 { Some(value.assume_init()) } else { None }
        }
    }
}

impl Edit for Frame {
    #[inline(always)]
    fn store<V: IntoBytes + Immutable>(&mut self, offset: u32, value: &V) -> bool {
        // SAFETY: the value is valid for its size.
        unsafe {
            bpf_skb_store_bytes(
                self.skb.cast(),
                offset,
                (&raw const *value).cast(),
                size_of::<V>() as u32,
                BPF_F_INVALIDATE_HASH,
            ) == 0
        }
    }

    #[inline(always)]
    fn fix_header(&mut self, offset: u32, difference: Difference) -> bool {
        // SAFETY: no preconditions: the helper checks the offset.
        unsafe { bpf_l3_csum_replace(self.skb.cast(), offset, 0, u64::from(difference.sum()), 0) == 0 }
    }

    #[inline(always)]
    fn fix(&mut self, offset: u32, difference: Difference, over: Over) -> bool {
        let mut flags = 0;
        if over.pseudo {
            flags |= BPF_F_PSEUDO_HDR;
        }
        if over.zero_is_none {
            flags |= BPF_F_MARK_MANGLED_0;
        }
        let replace = |flags| {
            // SAFETY: no preconditions: the helper checks the offset and the flags before it does anything.
            unsafe {
                bpf_l4_csum_replace(self.skb.cast(), offset, 0, u64::from(difference.sum()), flags) == 0
            }
        };
        let is_v6 = self.get(|skb| unsafe { &raw const (*skb).protocol }) == IPV6;
        // A kernel that does not know the flag refuses it.
        (over.pseudo && is_v6 && replace(flags | BPF_F_IPV6)) || replace(flags)
    }
}

impl Reshape for Frame {
    #[inline(always)]
    fn cut(&mut self, length: u32) -> bool {
        // SAFETY: no preconditions: the helper checks the length.
        self.length() == length || unsafe { bpf_skb_change_tail(self.skb.cast(), length, 0) == 0 }
    }

    #[inline(always)]
    fn insert(&mut self, count: u32) -> bool {
        // SAFETY: no preconditions.
        unsafe { bpf_skb_adjust_room(self.skb.cast(), count as i32, BPF_ADJ_ROOM_MAC, 0) == 0 }
    }

    #[inline(always)]
    fn sum(&self, offset: u32, words: u32) -> Option<u32> {
        u32::try_from(packet_sum(self.skb, offset, words)).ok()
    }
}

/// [`reject::sum`], or what is no sum.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn packet_sum(skb: *mut __sk_buff, offset: u32, words: u32) -> u64 {
    match reject::sum(&Frame::new(skb), offset, words) {
        Some(sum) => sum.into(),
        None => u64::MAX,
    }
}
