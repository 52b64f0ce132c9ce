//! ingress: a packet has come in by a device, before the kernel routes it.

use aya_ebpf::{bindings::TC_ACT_UNSPEC, macros::classifier, programs::TcContext};

/// Last of all that look at what a device receives.
#[classifier]
pub(crate) fn ingress(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}
