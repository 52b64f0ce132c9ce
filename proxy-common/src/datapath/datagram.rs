//! sendmsg() and recvmsg() of unconnected UDP sockets: each dialled address of a socket sticks to a backend, and
//! replies carry the address that was dialled. What nobody serves fails as with kube-proxy: a pod's goes on as it is, and the
//! packet plane rejects or drops it; the node's own meets an error at once.

use core::hint::black_box;

use super::{
    Call, Endpoint, Env, Origin, Socket, Tables,
    select::{Nothing, select},
    socket::{Verdict, host_reject_is_left, served},
};
use crate::{
    Address, Reason,
    layout::{AffinityKey, DATAGRAM_SLOTS, Datagram, Frontend, Unconnected},
};

const MASK: usize = DATAGRAM_SLOTS - 1;

/// sendmsg() with a destination.
#[inline(always)]
pub fn send<T: Tables, E: Env, S: Socket>(tables: &T, env: &E, socket: &mut S, call: &Call) -> Verdict {
    let (frontend, origin, cookie) = match served(tables, env, call) {
        Ok(served) => served,
        Err(reason) => {
            // Sent to a backend directly: from here on its answers are its own.
            if let Some(record) = socket.unconnected(false) {
                forget(record, call);
            }
            return unclaimed(tables, env, reason);
        }
    };
    let now = env.seconds();
    let timeout = tables.node().map_or(0, |node| node.udp_timeout_seconds);
    let record = socket.unconnected(true);
    let client = AffinityKey::netns(frontend.service, cookie);
    let Some(record) = record else {
        return match select(tables, env, &frontend, origin, &client, None, |_| false) {
            Ok((to, _)) => Verdict::Rewrite { to, reason: Reason::NoRecord },
            Err(nothing) => unserved(tables, env, call, &frontend, origin, nothing),
        };
    };
    // The verifier would walk all that follows once for each slot that it knows to be possible. A number that went
    // through the clock's and back is any number to it.
    let slot = (black_box(slot_of(record, call, now) as u32 ^ now) ^ now) as usize & MASK;
    let own = record.slots[slot & MASK];
    let kept =
        if is_dialled(&own, call) && now.wrapping_sub(own.seen) <= timeout { Some(real(&own)) } else { None };
    let taken = |endpoint: &Endpoint| is_taken(record, slot, endpoint);
    match select(tables, env, &frontend, origin, &client, kept, taken) {
        Ok((to, kept)) => {
            record.slots[slot & MASK] = Datagram {
                dialled: call.address.octets(),
                backend: to.address.octets(),
                dialled_port: call.port,
                backend_port: to.port,
                seen: now,
            };
            record.last = slot as u32;
            record.version = Unconnected::VERSION;
            Verdict::Rewrite { to, reason: if kept { Reason::DatagramKept } else { Reason::DatagramNew } }
        }
        Err(nothing) => {
            if is_dialled(&own, call) {
                record.slots[slot & MASK].backend_port = 0;
            }
            unserved(tables, env, call, &frontend, origin, nothing)
        }
    }
}

/// recvmsg(): what the application dialled, if `source` is where one of its datagrams was sent instead.
#[inline(always)]
pub fn receive<S: Socket>(socket: &mut S, source: &Endpoint) -> Verdict {
    if let Some(to) = super::socket::dialled(socket, source) {
        return Verdict::Rewrite { to, reason: Reason::SourceRestored };
    }
    if let Some(record) = socket.unconnected(false) {
        // Where two dialled addresses share a backend, the one sent to last is shown.
        let last = record.slots[record.last as usize & MASK];
        if is_real(&last, source) {
            return restored(&last);
        }
        let mut i = 0;
        while i < DATAGRAM_SLOTS {
            let slot = record.slots[i & MASK];
            if is_real(&slot, source) {
                return restored(&slot);
            }
            i += 1;
        }
    }
    Verdict::Leave(Reason::SourcePlain)
}

/// What a datagram gets that no endpoint serves. The node's own meet kube-proxy's rules in OUTPUT, where the sender is told
/// by EPERM; here he is told by ECONNREFUSED where he is refused, for which kube-proxy has an ICMP error besides.
#[inline(always)]
fn unserved<T: Tables, E: Env>(
    tables: &T,
    env: &E,
    call: &Call,
    frontend: &Frontend,
    origin: Origin,
    nothing: Nothing,
) -> Verdict {
    let is_host = origin as u8 == Origin::Host as u8;
    match nothing {
        Nothing::Reject if is_host && env.can_refuse() && !host_reject_is_left(tables, call, frontend) => {
            Verdict::Refuse(Reason::Refused)
        }
        Nothing::Drop if is_host => Verdict::Deny(Reason::Denied),
        nothing => Verdict::Leave(nothing.left()),
    }
}

/// The same of one that is sent to no frontend.
#[inline(always)]
fn unclaimed<T: Tables, E: Env>(tables: &T, env: &E, reason: Reason) -> Verdict {
    let is_host = || tables.node().is_some_and(|node| node.netns_cookie == env.netns());
    match reason {
        Reason::PortUndeclared if env.can_refuse() && is_host() => Verdict::Refuse(reason),
        Reason::AddressUnallocated if is_host() => Verdict::Deny(reason),
        _ => Verdict::Leave(reason),
    }
}

#[inline(always)]
fn restored(slot: &Datagram) -> Verdict {
    let to = Endpoint { address: Address::from_octets(slot.dialled), port: slot.dialled_port };
    Verdict::Rewrite { to, reason: Reason::SourceRestored }
}

/// The slot of what is dialled; else an unused one; else the one that was silent longest.
#[inline(always)]
fn slot_of(record: &Unconnected, call: &Call, now: u32) -> usize {
    let (mut best, mut silence) = (0, 0);
    let mut i = 0;
    while i < DATAGRAM_SLOTS {
        let slot = &record.slots[i & MASK];
        if is_dialled(slot, call) {
            return i;
        }
        let age = if slot.backend_port == 0 { u32::MAX } else { now.wrapping_sub(slot.seen) };
        if age > silence {
            (best, silence) = (i, age);
        }
        i += 1;
    }
    best
}

#[inline(always)]
fn forget(record: &mut Unconnected, call: &Call) {
    let to = Endpoint { address: call.address, port: call.port };
    let mut i = 0;
    while i < DATAGRAM_SLOTS {
        if is_real(&record.slots[i & MASK], &to) {
            record.slots[i & MASK].backend_port = 0;
        }
        i += 1;
    }
}

/// Whether another dialled address of this socket uses this endpoint.
#[inline(always)]
fn is_taken(record: &Unconnected, slot: usize, endpoint: &Endpoint) -> bool {
    let mut i = 0;
    while i < DATAGRAM_SLOTS {
        if i != slot && is_real(&record.slots[i & MASK], endpoint) {
            return true;
        }
        i += 1;
    }
    false
}

#[inline(always)]
fn is_dialled(slot: &Datagram, call: &Call) -> bool {
    slot.backend_port != 0
        && slot.dialled_port == call.port
        && Address::from_octets(slot.dialled) == call.address
}

#[inline(always)]
fn is_real(slot: &Datagram, endpoint: &Endpoint) -> bool {
    slot.backend_port != 0
        && slot.backend_port == endpoint.port
        && Address::from_octets(slot.backend) == endpoint.address
}

#[inline(always)]
fn real(slot: &Datagram) -> Endpoint {
    Endpoint { address: Address::from_octets(slot.backend), port: slot.backend_port }
}
