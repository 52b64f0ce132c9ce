//! egress: a packet is about to go out by a device, after the kernel has routed it.

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};

/// First of all that look at what a device sends.
#[classifier]
pub(crate) fn egress(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}
