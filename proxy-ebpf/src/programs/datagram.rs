//! sendmsg4/6 and recvmsg4/6: datagrams of unconnected UDP sockets.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use proxy_common::{Reason, datapath::datagram};

use crate::{
    call::{self, Hook},
    kernel::{Calling, Maps, Storage},
};

/// sendmsg() with an IPv4 destination, also of AF_INET6 sockets to IPv4-mapped ones.
#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(ctx: SockAddrContext) -> i32 {
    send(&ctx, Hook::V4)
}

/// sendmsg() with an IPv6 destination.
#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(ctx: SockAddrContext) -> i32 {
    send(&ctx, Hook::V6)
}

/// recvmsg() of an AF_INET socket.
#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn recvmsg4(ctx: SockAddrContext) -> i32 {
    receive(&ctx, Hook::V4)
}

/// recvmsg() of an AF_INET6 socket, IPv4-mapped sources too.
#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn recvmsg6(ctx: SockAddrContext) -> i32 {
    receive(&ctx, Hook::V6)
}

#[inline(always)]
fn send(ctx: &SockAddrContext, hook: Hook) -> i32 {
    let Some(call) = call::read(ctx, hook) else { return call::leave(Reason::OtherProtocol) };
    call::apply(ctx, hook, datagram::send(&Maps, &Calling::new(ctx), &mut Storage::new(ctx), &call))
}

#[inline(always)]
fn receive(ctx: &SockAddrContext, hook: Hook) -> i32 {
    call::apply(ctx, hook, datagram::receive(&mut Storage::new(ctx), &call::endpoint(ctx, hook)))
}
