//! getpeername4/6: the application sees the address that it dialled.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use proxy_common::datapath::socket;

use crate::{
    call::{self, Hook},
    kernel::Storage,
};

/// getpeername() of an AF_INET socket.
#[cgroup_sock_addr(getpeername4)]
pub(crate) fn getpeername4(ctx: SockAddrContext) -> i32 {
    peername(&ctx, Hook::V4)
}

/// getpeername() of an AF_INET6 socket, IPv4-mapped peers too.
#[cgroup_sock_addr(getpeername6)]
pub(crate) fn getpeername6(ctx: SockAddrContext) -> i32 {
    peername(&ctx, Hook::V6)
}

#[inline(always)]
fn peername(ctx: &SockAddrContext, hook: Hook) -> i32 {
    call::apply(ctx, hook, socket::peer(&Storage::new(ctx), &call::endpoint(ctx, hook)))
}
