//! connect() and getpeername(): one choice per connection, and the address that was dialled given back.

use super::{Call, Endpoint, Env, Origin, Socket, Tables, lookup::lookup, select::Nothing, select::select};
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
}

impl Verdict {
    /// What is counted.
    #[inline(always)]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Leave(reason)
            | Self::Refuse(reason)
            | Self::RefuseByLoopback(reason)
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
    let frontend = lookup(tables, call)?;
    let Some(node) = tables.node() else { return Err(Reason::NoNode) };
    let origin = origin(env, &node)?;
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
    Ok((frontend, origin, env.netns()))
}

/// Whether a pod's call is the packet plane's: its answer depends on the client's address.
#[inline(always)]
fn left_to_packets<T: Tables>(tables: &T, frontend: &Frontend) -> bool {
    let Ok(extent) = super::select::extent(tables, frontend.service) else { return false };
    let policy = extent.header.policy;
    match frontend.kind {
        FrontendKind::ClusterIp => policy & Policy::LEAVE_INTERNAL != 0,
        FrontendKind::LoadBalancer => policy & (Policy::LEAVE_EXTERNAL | Policy::SOURCE_RANGES) != 0,
        FrontendKind::NodePort | FrontendKind::ExternalIp => policy & Policy::LEAVE_EXTERNAL != 0,
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
            if origin as u8 == Origin::Host as u8 && host_reject_is_left(tables, frontend) {
                Verdict::Leave(Reason::RejectLeft)
            } else if env.can_refuse() {
                Verdict::Refuse(Reason::Refused)
            } else if call.protocol as u8 == Protocol::Tcp as u8 {
                Verdict::RefuseByLoopback(Reason::Refused)
            } else {
                Verdict::Leave(Reason::RejectLeft)
            }
        }
        Nothing::Drop => Verdict::Leave(Reason::DropLeft),
        Nothing::Unprogrammed => Verdict::Leave(Reason::Unprogrammed),
        Nothing::Torn => Verdict::Leave(Reason::Torn),
    }
}

/// kube-proxy's iptables mode has no REJECT in OUTPUT for load balancer and external IPs.
#[inline(always)]
fn host_reject_is_left<T: Tables>(tables: &T, frontend: &Frontend) -> bool {
    matches!(frontend.kind, FrontendKind::LoadBalancer | FrontendKind::ExternalIp)
        && super::select::extent(tables, frontend.service)
            .is_ok_and(|extent| extent.header.policy & Policy::HOST_REJECT_LEFT != 0)
}
