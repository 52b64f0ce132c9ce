//! connect4, connect6: a local socket dials; it gets a backend before its first packet.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use aya_log_ebpf::debug;
use proxy_common::{
    Reason,
    datapath::socket::{self, Verdict},
};

use crate::{
    call::{self, Hook},
    kernel::{Calling, Maps, Storage},
    maps::{NODE, PROBE_NETNS},
};

/// connect() of an AF_INET socket.
#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    if PROBE_NETNS.load() != 0 {
        probe(&ctx);
    }
    connect(&ctx, Hook::V4)
}

/// connect() of an AF_INET6 socket; IPv4-mapped destinations arrive here too and take the IPv4 path.
#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    connect(&ctx, Hook::V6)
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, hook: Hook) -> i32 {
    let Some(call) = call::read(ctx, hook) else { return call::leave(Reason::OtherProtocol) };
    let verdict = socket::connect(&Maps, &Calling::new(ctx), &Storage::new(ctx), &call);
    match verdict {
        Verdict::Leave(Reason::Torn) => {
            debug!(
                ctx,
                "connect to {:i} port {}: tables changed twice while it read them",
                call.address.octets(),
                call.port
            );
        }
        Verdict::Refuse(_) | Verdict::RefuseByLoopback(_) => {
            debug!(ctx, "connect to {:i} port {}: refused, no endpoints", call.address.octets(), call.port);
        }
        _ => {}
    }
    call::apply(ctx, hook, verdict)
}

/// The agent dials an address of its choice to learn the cookie of its network namespace (before kernel 5.14 there is
/// no `SO_NETNS_COOKIE`).
#[inline(always)]
fn probe(ctx: &SockAddrContext) {
    let Some(node) = NODE.get_ptr_mut(0) else { return };
    let dialled = call::endpoint(ctx, Hook::V4);
    // SAFETY: the map's lookup gives a valid pointer to its one value; the agent waits for the probe before it
    // writes the value again.
    unsafe {
        let wanted = (*node).probe_address;
        if wanted != 0 && wanted == dialled.address.v4_word() && (*node).probe_port == u32::from(dialled.port)
        {
            (*node).netns_cookie = proxy_common::datapath::Env::netns(&Calling::new(ctx));
            (*node).probe_address = 0;
        }
    }
}
