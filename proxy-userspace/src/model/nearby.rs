//! What this node has of the Services that ask for endpoints here: how many it tells load balancers of, and where it has
//! none. Pure functions of what is passed.

use std::{collections::BTreeSet, net::IpAddr};

use proxy_common::layout::Policy as Bits;

use super::{
    Family, HealthCheck, NoLocalEndpoints, Service, ServicePortName, Serving, Settings, Slice,
    endpoints::candidates,
};

/// What a load balancer may ask of one family about `service` on this node (spec §4.2); nothing where it has no port
/// for that, or serves none.
pub(super) fn health_check<'a>(
    service: &Service,
    family: Family,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    settings: &Settings,
) -> Option<HealthCheck> {
    let port = service.health_check_node_port.filter(|_| !service.ports.is_empty())?;
    Some(HealthCheck { port, local_endpoints: local_and_ready(service, family, slices, settings) })
}

/// How many addresses on this node are ready, over all ports that the slices have, the Service's or not, as upstream
/// counts. Those that terminate never count, whatever they still serve.
fn local_and_ready<'a>(
    service: &Service,
    family: Family,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    settings: &Settings,
) -> u32 {
    let ports: BTreeSet<_> = slices
        .clone()
        .flat_map(|slice| &slice.ports)
        .map(|port| ServicePortName {
            service: service.name.clone(),
            port: port.name.clone(),
            protocol: port.protocol,
            family,
        })
        .collect();
    let ready = ports.iter().flat_map(|port| {
        let all = candidates(slices.clone(), port, &settings.node_name).into_iter();
        all.filter(|candidate| candidate.local && candidate.ready)
            .map(|candidate| candidate.endpoint.address.ip())
    });
    let ready: BTreeSet<IpAddr> = ready.collect();
    ready.len() as u32
}

impl NoLocalEndpoints {
    /// Another ServicePort stands in the place of one; either may be none.
    pub(super) fn replace(&mut self, family: Family, old: Option<&Serving>, new: Option<&Serving>) {
        for (counts, policy) in
            [(&mut self.internal, Bits::INTERNAL_LOCAL), (&mut self.external, Bits::EXTERNAL_LOCAL)]
        {
            let lacks = |serving: Option<&Serving>| u64::from(serving.is_some_and(|it| it.lacks(policy)));
            let count = &mut counts[family as usize];
            *count = *count + lacks(new) - lacks(old);
        }
    }
}

impl Serving {
    /// Somebody serves elsewhere, nobody here, and a policy asks for it.
    fn lacks(&self, policy: u16) -> bool {
        self.policy & policy != 0
            && self.policy & Bits::ANY_ENDPOINTS != 0
            && self.both.is_empty()
            && self.local_only.is_empty()
    }
}
