//! connected_sockets: an iterator over the records of connect(), for the agent to read. It runs when somebody reads it, and
//! on no call and no packet.

use aya_ebpf::{
    bindings::seq_file,
    cty::c_void,
    helpers::generated::{bpf_get_socket_cookie, bpf_seq_write},
};
use proxy_common::layout::{Connected, Remembered};

/// The kernel's `bpf_iter_meta`.
#[repr(C)]
struct Meta {
    seq: *mut seq_file,
}

/// The kernel's `bpf_iter__bpf_sk_storage_map`.
#[repr(C)]
struct Step {
    meta: *mut Meta,
    map: *mut c_void,
    /// Null at the end.
    sk: *mut c_void,
    /// The same.
    value: *mut Connected,
}

/// Says of one socket what it remembers.
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
#[unsafe(no_mangle)]
extern "C" fn connected_sockets(step: *mut Step) -> i32 {
    // SAFETY: the kernel's context, its socket and what that stores are valid while the program runs, where they are not
    // null; what is written lives on the stack.
    unsafe {
        let sk = (&raw const (*step).sk).read_volatile();
        let value = (&raw const (*step).value).read_volatile();
        if sk.is_null() || value.is_null() {
            return 0;
        }
        let remembered = Remembered { cookie: bpf_get_socket_cookie(sk), record: value.read() };
        let seq = (*(&raw const (*step).meta).read_volatile()).seq;
        bpf_seq_write(seq, (&raw const remembered).cast(), size_of::<Remembered>() as u32);
    }
    0
}
