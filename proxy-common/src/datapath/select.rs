//! Which endpoint of a service serves a client: which of its sets, the endpoint it is remembered to have had, or a
//! random one (kube-proxy spec §1.5, §2.3, §2.5, §2.7).

use super::{Endpoint, Env, Origin, Tables};
use crate::{
    Address, Reason,
    layout::{Affinity, AffinityKey, Backend, Frontend, FrontendKind, Policy, Role, Service},
};

/// Why there is no endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nothing {
    /// No endpoint is usable anywhere: kube-proxy rejects.
    Reject,
    /// Endpoints exist, but the policy allows none of them here: kube-proxy drops.
    Drop,
    /// The service has no extent (yet, or any more).
    Unprogrammed,
    /// What was read did not fit together, twice.
    Torn,
}

impl Nothing {
    /// What a socket's call is left alone for.
    #[inline(always)]
    pub const fn left(self) -> Reason {
        match self {
            Self::Reject => Reason::RejectLeft,
            Self::Drop => Reason::DropLeft,
            Self::Unprogrammed => Reason::Unprogrammed,
            Self::Torn => Reason::Torn,
        }
    }
}

/// A service's current extent, its header checked.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Index of the service.
    pub service: u32,
    /// Its word.
    pub word: Service,
    /// The header.
    pub header: Backend,
}

/// The current extent of a service. A reader that was delayed for long may find its extent reused: it looks again.
#[inline(always)]
pub fn extent<T: Tables>(tables: &T, service: u32) -> Result<Extent, Nothing> {
    let mut attempt = 0;
    while attempt < 2 {
        let Some(word) = tables.service(service) else { return Err(Nothing::Unprogrammed) };
        if word.extent == 0 {
            return Err(Nothing::Unprogrammed);
        }
        if let Some(header) = tables.backend(word.extent)
            && header.role as u8 == Role::Extent as u8
            && header.service == service
        {
            return Ok(Extent { service, word, header });
        }
        attempt += 1;
    }
    Err(Nothing::Torn)
}

/// Some of an extent's endpoints: consecutive slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Set {
    /// First slot.
    pub first: u32,
    /// Slots of the first run; they are sorted.
    pub head: u32,
    /// Slots of the run that follows; they are sorted too.
    pub tail: u32,
}

impl Extent {
    /// The endpoints that serve `origin` through a frontend of this kind (spec §2.3).
    #[inline(always)]
    pub fn set(&self, kind: FrontendKind, origin: Origin) -> Set {
        if self.is_local(kind, origin) { self.local() } else { self.cluster() }
    }

    /// Whether the local set answers.
    #[inline(always)]
    pub fn is_local(&self, kind: FrontendKind, origin: Origin) -> bool {
        let policy = self.header.policy;
        if kind as u8 == FrontendKind::ClusterIp as u8 {
            return policy & Policy::INTERNAL_LOCAL != 0;
        }
        policy & Policy::EXTERNAL_LOCAL != 0
            && match origin {
                // Nobody is served there: it is judged as from outside.
                _ if kind as u8 == FrontendKind::ShutNodePort as u8 => true,
                _ if policy & Policy::NO_CIRCUIT != 0 => true,
                // Rows 8 and 10: the node, and pods that a detector recognises, are not subject to it.
                Origin::Host => false,
                Origin::Pod => policy & Policy::POD_DETECTOR == 0,
                Origin::Outside => true,
            }
    }

    /// The cluster set: `cluster_only`, `both`.
    #[inline(always)]
    pub fn cluster(&self) -> Set {
        Set {
            first: self.word.extent + 1,
            head: u32::from(self.header.cluster_only),
            tail: u32::from(self.header.both),
        }
    }

    /// The local set: `both`, `local_only`.
    #[inline(always)]
    pub fn local(&self) -> Set {
        Set {
            first: self.word.extent + 1 + u32::from(self.header.cluster_only),
            head: u32::from(self.header.both),
            tail: u32::from(self.header.local_only),
        }
    }

    /// What an empty set means.
    #[inline(always)]
    pub fn nothing(&self) -> Nothing {
        if self.header.policy & Policy::ANY_ENDPOINTS != 0 { Nothing::Drop } else { Nothing::Reject }
    }

    /// The endpoint in a slot, if it is still this service's.
    #[inline(always)]
    fn endpoint<T: Tables>(&self, tables: &T, slot: u32) -> Option<Endpoint> {
        let backend = tables.backend(slot)?;
        if backend.role as u8 == Role::Endpoint as u8 && backend.service == self.service {
            Some(Endpoint { address: backend.address(), port: backend.port })
        } else {
            None
        }
    }

    /// Endpoint number `turn` of `set`, counted around; `set` is not empty.
    #[inline(always)]
    pub fn nth<T: Tables>(&self, tables: &T, set: &Set, turn: u32) -> Option<Endpoint> {
        self.endpoint(tables, set.first + turn)
    }

    /// Whether an endpoint is in `set`: a binary search in each run.
    #[inline(always)]
    pub fn contains<T: Tables>(&self, tables: &T, set: &Set, wanted: &Endpoint) -> bool {
        self.run_contains(tables, set.first, set.head, wanted)
            || self.run_contains(tables, set.first + set.head, set.tail, wanted)
    }

    /// Whether an endpoint is in any set: a search in each of the three runs.
    #[inline(always)]
    pub fn holds<T: Tables>(&self, tables: &T, wanted: &Endpoint) -> bool {
        let (cluster, local) = (self.cluster(), self.local());
        self.contains(tables, &cluster, wanted)
            || self.run_contains(tables, local.first + local.head, local.tail, wanted)
    }

    #[inline(always)]
    fn run_contains<T: Tables>(&self, tables: &T, first: u32, count: u32, wanted: &Endpoint) -> bool {
        let (mut low, mut high) = (0, count);
        let mut step = 0;
        // 2^16 - 1 endpoints a run at most: 16 halvings and one more look.
        while step < 17 && low < high {
            let middle = (low + high) / 2;
            let Some(found) = self.endpoint(tables, first + middle) else { return false };
            if found == *wanted {
                return true;
            }
            // Both bounds by arithmetic: the verifier walks every branch of every turn.
            let less = found.precedes(wanted);
            low += (middle + 1 - low) * less;
            high -= (high - middle) * (1 - less);
            step += 1;
        }
        false
    }
}

impl Set {
    /// How many endpoints.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        self.head + self.tail
    }

    /// Whether there are none.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A uniformly random turn; multiplication instead of a remainder (no bias worth speaking of, no division).
    #[inline(always)]
    pub fn turn(&self, random: u32) -> u32 {
        ((u64::from(random) * u64::from(self.len())) >> 32) as u32
    }
}

/// The endpoint for a client that may be remembered, and for new connections remembers it (spec §2.7: sliding, per
/// ServicePort, only among the endpoints of the set in use). `kept` is an endpoint that this very socket used: it
/// goes before affinity. `avoid` says which endpoints would be confused with another address of the same socket.
#[inline(always)]
pub fn select<T: Tables, E: Env>(
    tables: &T,
    env: &E,
    frontend: &Frontend,
    origin: Origin,
    client: &AffinityKey,
    kept: Option<Endpoint>,
    avoid: impl Fn(&Endpoint) -> bool,
) -> Result<(Endpoint, bool), Nothing> {
    let extent = extent(tables, frontend.service)?;
    let set = extent.set(frontend.kind, origin);
    if set.is_empty() {
        return Err(extent.nothing());
    }
    let lifetime = extent.word.affinity_seconds;
    let now = env.seconds();
    let mut wanted = kept;
    if wanted.is_none()
        && lifetime != 0
        && let Some(last) = tables.affinity(client)
        && last.version == Affinity::VERSION
        && now.wrapping_sub(last.last_used) <= lifetime
    {
        wanted = Some(Endpoint { address: last.address(), port: last.port });
    }
    let mut chosen = None;
    if let Some(wanted) = wanted
        && extent.contains(tables, &set, &wanted)
    {
        if kept.is_some() {
            return Ok((wanted, true));
        }
        chosen = Some(wanted);
    }
    let endpoint = match chosen {
        Some(endpoint) => endpoint,
        None => {
            let mut turn = set.turn(env.random());
            let mut endpoint = extent.nth(tables, &set, turn).ok_or(Nothing::Torn)?;
            let mut attempt = 0;
            while attempt < 3 && avoid(&endpoint) {
                turn = if turn + 1 < set.len() { turn + 1 } else { 0 };
                endpoint = extent.nth(tables, &set, turn).ok_or(Nothing::Torn)?;
                attempt += 1;
            }
            endpoint
        }
    };
    if lifetime != 0 {
        remember(tables, client, &endpoint, now);
    }
    Ok((endpoint, false))
}

#[inline(always)]
fn remember<T: Tables>(tables: &T, client: &AffinityKey, endpoint: &Endpoint, now: u32) {
    tables.set_affinity(
        client,
        &Affinity {
            address: Address::octets(&endpoint.address),
            port: endpoint.port,
            version: Affinity::VERSION,
            last_used: now,
        },
    );
}
