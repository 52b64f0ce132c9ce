//! connect() and getpeername(): one choice per connection, and the address that was dialled given back.

use super::{
    Call, Endpoint, Env, Origin, Socket, Tables, lookup::lookup, select::Nothing, select::extent,
    select::select, unclaimed::unclaimed,
};
use crate::{
    Address, Protocol, Reason,
    layout::{AffinityKey, Connected, Frontend, FrontendKind, Node, Policy, SocketPlane},
};

/// What happens to a socket call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: the call goes where it was meant.
    Leave(Reason),
    /// It goes to `to` instead.
    Rewrite {
        /// Where.
        to: Endpoint,
        /// Why.
        reason: Reason,
    },
    /// It fails with ECONNREFUSED.
    Refuse(Reason),
    /// It is sent to port 0 of loopback, where every kernel answers ECONNREFUSED (kernels without
    /// `bpf_set_retval`).
    RefuseByLoopback(Reason),
    /// connect() fails with ETIMEDOUT: what a caller gets in the end whose packets are dropped.
    TimeOut(Reason),
    /// sendmsg() fails with EPERM, as it does where netfilter drops in OUTPUT.
    Deny(Reason),
}

impl Verdict {
    /// What is counted.
    #[inline(always)]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Leave(reason)
            | Self::Refuse(reason)
            | Self::RefuseByLoopback(reason)
            | Self::TimeOut(reason)
            | Self::Deny(reason)
            | Self::Rewrite { reason, .. } => *reason,
        }
    }
}

/// Who the calling socket belongs to, or why it is not served.
#[inline(always)]
pub fn origin<E: Env>(env: &E, node: &Node) -> Result<Origin, Reason> {
    let origin = if env.netns() == node.netns_cookie { Origin::Host } else { Origin::Pod };
    if node.left_levels != 0 && origin as u8 == Origin::Pod as u8 && env.is_left(node.left_levels) {
        return Err(Reason::PodLeft);
    }
    match (node.socket_plane, origin) {
        (SocketPlane::All, _) | (SocketPlane::Host, Origin::Host) => Ok(origin),
        _ => Err(Reason::PlaneOff),
    }
}

/// connect(): TCP, or UDP that stays connected.
#[inline(always)]
pub fn connect<T: Tables, E: Env, S: Socket>(tables: &T, env: &E, socket: &S, call: &Call) -> Verdict {
    let verdict = match served(tables, env, call) {
        Ok((frontend, origin, cookie)) => {
            let client = AffinityKey::netns(frontend.service, cookie);
            match select(tables, env, &frontend, origin, &client, None, |_| false) {
                Ok((to, _)) => {
                    let record = Connected::new(call.address, call.port, to.address, to.port);
                    let reason =
                        if socket.set_connected(&record) { Reason::Connected } else { Reason::NoRecord };
                    return Verdict::Rewrite { to, reason };
                }
                Err(nothing) => refuse(tables, env, call, &frontend, origin, nothing),
            }
        }
        Err(reason) if reason as u32 == Reason::PortUndeclared as u32 => fail(env, call, reason, reason),
        Err(reason) => Verdict::Leave(reason),
    };
    // A socket can be connected again, to anything.
    socket.forget_connected();
    verdict
}

/// getpeername(): what the application dialled, if `peer` is where it was sent instead.
#[inline(always)]
pub fn peer<S: Socket>(socket: &S, peer: &Endpoint) -> Verdict {
    match dialled(socket, peer) {
        Some(to) => Verdict::Rewrite { to, reason: Reason::PeerRestored },
        None => Verdict::Leave(Reason::PeerPlain),
    }
}

/// What a connected socket dialled, if `real` is where it was sent.
#[inline(always)]
pub fn dialled<S: Socket>(socket: &S, real: &Endpoint) -> Option<Endpoint> {
    let record = socket.connected()?;
    let same = record.version == Connected::VERSION
        && record.backend_port == real.port
        && Address::from_octets(record.backend) == real.address;
    if same {
        Some(Endpoint { address: Address::from_octets(record.dialled), port: record.dialled_port })
    } else {
        None
    }
}

/// The frontend that a socket's call names, who calls and from which namespace; or why this plane leaves it alone.
#[inline(always)]
pub fn served<T: Tables, E: Env>(
    tables: &T,
    env: &E,
    call: &Call,
) -> Result<(Frontend, Origin, u64), Reason> {
    let frontend = match lookup(tables, call) {
        Ok(frontend) => Ok(frontend),
        Err(reason) => Err(unclaimed(tables, &call.address).ok_or(reason)?),
    };
    let Some(node) = tables.node() else { return Err(Reason::NoNode) };
    let origin = origin(env, &node)?;
    let frontend = frontend?;
    if origin as u8 == Origin::Pod as u8 {
        // A pod's loopback is its own (peers: NodePort on 127.0.0.1 in a pod).
        if call.address.is_loopback() || call.address.is_unspecified() {
            return Err(Reason::PodLoopback);
        }
        if left_to_packets(tables, &frontend) {
            return Err(Reason::ClientLeft);
        }
    } else if frontend.host_denied != 0 {
        return Err(Reason::HostDenied);
    }
    if is_open(tables, &frontend, origin) {
        return Err(Reason::NotNodePort);
    }
    Ok((frontend, origin, env.netns()))
}

/// Whether a NodePort that is shut here has endpoints elsewhere to serve it: then it is not refused either.
#[inline(always)]
pub fn is_open<T: Tables>(tables: &T, frontend: &Frontend, origin: Origin) -> bool {
    frontend.kind as u8 == FrontendKind::ShutNodePort as u8
        && extent(tables, frontend.service).is_ok_and(|extent| !extent.set(frontend.kind, origin).is_empty())
}

/// Whether a pod's call is the packet plane's: its answer depends on the client's address.
#[inline(always)]
fn left_to_packets<T: Tables>(tables: &T, frontend: &Frontend) -> bool {
    let Ok(extent) = extent(tables, frontend.service) else { return false };
    let policy = extent.header.policy;
    match frontend.kind {
        FrontendKind::ClusterIp => policy & Policy::LEAVE_INTERNAL != 0,
        FrontendKind::LoadBalancer => policy & (Policy::LEAVE_EXTERNAL | Policy::SOURCE_RANGES) != 0,
        FrontendKind::NodePort | FrontendKind::ExternalIp | FrontendKind::ShutNodePort => {
            policy & Policy::LEAVE_EXTERNAL != 0
        }
    }
}

/// What a call gets that no endpoint serves. Never EPERM: in-kernel callers spin on it.
#[inline(always)]
pub fn refuse<T: Tables, E: Env>(
    tables: &T,
    env: &E,
    call: &Call,
    frontend: &Frontend,
    origin: Origin,
    nothing: Nothing,
) -> Verdict {
    match nothing {
        Nothing::Reject => {
            if origin as u8 == Origin::Host as u8 && host_reject_is_left(tables, call, frontend) {
                Verdict::Leave(nothing.left())
            } else {
                fail(env, call, Reason::Refused, Reason::RejectLeft)
            }
        }
        Nothing::Drop if origin as u8 == Origin::Host as u8 && is_own(tables, call) => time_out(env, call),
        nothing => Verdict::Leave(nothing.left()),
    }
}

/// Whether the node calls itself: such packets go over loopback, where nobody drops them.
#[inline(always)]
fn is_own<T: Tables>(tables: &T, call: &Call) -> bool {
    call.address.is_unspecified() || tables.local_address(&call.address).is_some()
}

/// Let a connect() fail as if nobody had answered, or as far as this kernel can.
#[inline(always)]
fn time_out<E: Env>(env: &E, call: &Call) -> Verdict {
    if env.can_refuse() {
        Verdict::TimeOut(Reason::TimedOut)
    } else {
        fail(env, call, Reason::Refused, Reason::DropLeft)
    }
}

/// Let a connect() fail as far as this kernel can, and else leave it to the packet plane.
#[inline(always)]
fn fail<E: Env>(env: &E, call: &Call, refused: Reason, left: Reason) -> Verdict {
    if env.can_refuse() {
        Verdict::Refuse(refused)
    } else if call.protocol as u8 == Protocol::Tcp as u8 {
        Verdict::RefuseByLoopback(refused)
    } else {
        Verdict::Leave(left)
    }
}

/// kube-proxy's iptables mode has no REJECT in OUTPUT for load balancer and external IPs; it has one in INPUT, where
/// calls arrive that are for an address of the node.
#[inline(always)]
pub fn host_reject_is_left<T: Tables>(tables: &T, call: &Call, frontend: &Frontend) -> bool {
    matches!(frontend.kind, FrontendKind::LoadBalancer | FrontendKind::ExternalIp)
        && tables.local_address(&call.address).is_none()
        && extent(tables, frontend.service)
            .is_ok_and(|extent| extent.header.policy & Policy::HOST_REJECT_LEFT != 0)
}
