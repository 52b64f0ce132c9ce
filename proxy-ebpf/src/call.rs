//! Read the address that a socket call names, and carry a verdict out.

use aya_ebpf::{bindings::bpf_sock_addr, helpers::generated::bpf_set_retval, programs::SockAddrContext};
use proxy_common::{
    Address, Protocol, Reason,
    datapath::{Call, Endpoint, socket::Verdict},
};

use crate::count::count;

/// Program result: the call goes on.
pub(crate) const GO_ON: i32 = 1;
/// Program result: the call fails.
const FAIL: i32 = 0;
const ECONNREFUSED: i32 = 111;
const ETIMEDOUT: i32 = 110;

/// Family of the hook: which of the context's address fields count.
#[derive(Clone, Copy)]
pub(crate) enum Hook {
    V4,
    V6,
}

/// What the call names; `None` if the socket is neither TCP nor UDP.
#[inline(always)]
pub(crate) fn read(ctx: &SockAddrContext, hook: Hook) -> Option<Call> {
    // SAFETY: the kernel's context is valid while the program runs.
    let protocol = Protocol::from_number(unsafe { (&raw const (*ctx.sock_addr).protocol).read_volatile() })?;
    if matches!(protocol, Protocol::Sctp) {
        return None;
    }
    let Endpoint { address, port } = endpoint(ctx, hook);
    Some(Call { address, port, protocol })
}

/// Address and port of the context: where the call goes, or (recvmsg, getpeername) comes from.
#[inline(always)]
pub(crate) fn endpoint(ctx: &SockAddrContext, hook: Hook) -> Endpoint {
    let call = ctx.sock_addr;
    // SAFETY: the kernel's context is valid while the program runs; fields are read whole, as the verifier wants.
    unsafe {
        let address = match hook {
            Hook::V4 => Address::from_v4_word((&raw const (*call).user_ip4).read_volatile()),
            Hook::V6 => Address::from_words([word(call, 0), word(call, 1), word(call, 2), word(call, 3)]),
        };
        let port = u16::from_be((&raw const (*call).user_port).read_volatile() as u16);
        Endpoint { address, port }
    }
}

/// Count the verdict's reason and do what it says. Gives the program's result.
#[inline(always)]
pub(crate) fn apply(ctx: &SockAddrContext, hook: Hook, verdict: Verdict) -> i32 {
    count(verdict.reason());
    match verdict {
        Verdict::Leave(_) => GO_ON,
        Verdict::Rewrite { to, .. } => {
            write(ctx, hook, &to);
            GO_ON
        }
        Verdict::Refuse(_) => {
            // SAFETY: no preconditions; the branch is removed at load where the helper does not exist.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            FAIL
        }
        Verdict::TimeOut(_) => {
            // SAFETY: as above.
            unsafe { bpf_set_retval(-ETIMEDOUT) };
            FAIL
        }
        // EPERM is what a failed call gets unless it is told otherwise.
        Verdict::Deny(_) => FAIL,
        Verdict::RefuseByLoopback(_) => {
            let address = endpoint(ctx, hook).address.loopback();
            write(ctx, hook, &Endpoint { address, port: 0 });
            GO_ON
        }
    }
}

/// Count a reason and let the call go on.
#[inline(always)]
pub(crate) fn leave(reason: Reason) -> i32 {
    count(reason);
    GO_ON
}

#[inline(always)]
fn write(ctx: &SockAddrContext, hook: Hook, to: &Endpoint) {
    let call = ctx.sock_addr;
    // SAFETY: the kernel's context is valid and these fields may be written by all eight hooks.
    unsafe {
        match hook {
            Hook::V4 => (&raw mut (*call).user_ip4).write_volatile(to.address.v4_word()),
            Hook::V6 => {
                let words = to.address.words();
                (&raw mut (*call).user_ip6[0]).write_volatile(words[0]);
                (&raw mut (*call).user_ip6[1]).write_volatile(words[1]);
                (&raw mut (*call).user_ip6[2]).write_volatile(words[2]);
                (&raw mut (*call).user_ip6[3]).write_volatile(words[3]);
            }
        }
        (&raw mut (*call).user_port).write_volatile(u32::from(to.port.to_be()));
    }
}

/// # Safety
///
/// `call` is the program's context.
#[inline(always)]
unsafe fn word(call: *mut bpf_sock_addr, i: usize) -> u32 {
    // SAFETY: promised by the caller; `i` is below 4.
    unsafe { (&raw const (*call).user_ip6[i]).read_volatile() }
}
