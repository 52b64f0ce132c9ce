//! What becomes of each endpoint of a ServicePort, and why: told by the very choice that [`super::endpoints`] makes, so
//! that the explanation can't differ from it.

use std::{fmt, sync::Arc};

use proxy_common::datapath;

use super::{
    ServicePortName, Slice,
    endpoints::{Candidate, Place, Policies, Set, counting, entries, judge},
};

/// Why an endpoint is not in a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its conditions say so.
    NotReady,
    /// It serves its last connections, and others are ready.
    Terminating,
    /// It terminates and serves nobody any more.
    Gone,
    /// The hints of the ready endpoints count, and it is for other nodes.
    ForOtherNodes,
    /// The hints of the ready endpoints count, and it is for other zones.
    ForOtherZones,
    /// The set is the own node's, and it is on another, or on none that is known.
    Elsewhere,
    /// Another entry has its address and port, and counts.
    Duplicate,
    /// No policy asks for the set.
    NotAsked,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotReady => "not ready",
            Self::Terminating => "terminating, while others are ready",
            Self::Gone => "terminating, and not serving any more",
            Self::ForOtherNodes => "its hints are for other nodes",
            Self::ForOtherZones => "its hints are for other zones",
            Self::Elsewhere => "not on this node, and the traffic policy is Local",
            Self::Duplicate => "another entry has the same address and port, and counts",
            Self::NotAsked => "no traffic policy of the Service asks for it",
        })
    }
}

/// An entry of a slice, and the sets it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fate {
    /// Where it listens.
    pub endpoint: datapath::Endpoint,
    /// The node it is on.
    pub node: Option<Arc<str>>,
    /// Whether it serves where the policy is Cluster.
    pub cluster: Result<(), Why>,
    /// Whether it serves where the policy is Local.
    pub local: Result<(), Why>,
}

/// Of all entries of the slices for a ServicePort, in the slices' order.
pub fn fates<'a>(
    slices: impl Iterator<Item = &'a Slice> + Clone,
    port: &ServicePortName,
    place: Place<'_>,
    policies: Policies,
) -> Vec<Fate> {
    let all = || entries(slices.clone(), port, place.node);
    let doubled = |(entry, of): (Candidate<'a>, &super::Endpoint)| Fate {
        endpoint: entry.endpoint,
        node: of.placement.node.clone(),
        cluster: Err(Why::Duplicate),
        local: Err(Why::Duplicate),
    };
    let mut fates: Vec<_> = all().map(doubled).collect();
    let counting = counting(all().map(|(candidate, _)| candidate));
    let (places, candidates): (Vec<usize>, Vec<_>) = counting.into_iter().unzip();
    for &place in &places {
        (fates[place].cluster, fates[place].local) = (Err(Why::NotAsked), Err(Why::NotAsked));
    }
    judge(&candidates, place, policies, |number, set, verdict| match set {
        Set::Cluster => fates[places[number]].cluster = verdict,
        Set::Local => fates[places[number]].local = verdict,
    });
    fates
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::IpAddr};

    use proxy_common::Protocol;

    use super::*;
    use crate::model::{Endpoint, Family, ObjectName, Placement, Policy, SlicePort};

    fn entry(host: u8, node: &str, conditions: [bool; 3], for_nodes: &[&str]) -> Endpoint {
        let [ready, serving, terminating] = conditions;
        Endpoint {
            address: IpAddr::from([10, 0, 0, host]),
            ready,
            serving,
            terminating,
            placement: Arc::new(Placement {
                node: Some(node.into()),
                for_zones: BTreeSet::new(),
                for_nodes: for_nodes.iter().map(|name| (*name).into()).collect(),
            }),
        }
    }

    const READY: [bool; 3] = [true, true, false];

    /// Host, and why it is not in the cluster set and the local one.
    fn told(endpoints: Vec<Endpoint>, internal: Policy) -> Vec<(u8, Option<Why>, Option<Why>)> {
        let service = ObjectName::new("shop", "web");
        let slice = Slice {
            name: ObjectName::new("shop", "web-1"),
            service: service.clone(),
            family: Family::V4,
            ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 80 }],
            endpoints,
        };
        let port = ServicePortName { service, port: "".into(), protocol: Protocol::Tcp, family: Family::V4 };
        let place = Place { node: "n1", zone: "" };
        let policies = Policies { internal, external: Policy::Cluster, external_destination: false };
        let fates = fates([&slice].into_iter(), &port, place, policies);
        let host = |fate: &Fate| fate.endpoint.address.octets()[15];
        fates.iter().map(|fate| (host(fate), fate.cluster.err(), fate.local.err())).collect()
    }

    #[test]
    fn every_entry_has_its_own_reason_in_the_order_of_the_slice() {
        let endpoints = vec![
            entry(5, "n1", READY, &[]),
            entry(4, "n2", [false, true, false], &[]),
            entry(3, "n2", [false, true, true], &[]),
            entry(2, "n2", [false, false, true], &[]),
            entry(5, "n2", [false, true, true], &[]),
        ];
        let asked = Some(Why::NotAsked);
        assert_eq!(
            told(endpoints, Policy::Cluster),
            [
                (5, None, asked),
                (4, Some(Why::NotReady), asked),
                (3, Some(Why::Terminating), asked),
                (2, Some(Why::Gone), asked),
                (5, Some(Why::Duplicate), Some(Why::Duplicate)),
            ]
        );
    }

    #[test]
    fn hints_and_places_count_for_their_own_set() {
        let endpoints = vec![entry(1, "n1", READY, &["n1"]), entry(2, "n2", READY, &["n2"])];
        let hinted = told(endpoints.clone(), Policy::Cluster);
        assert_eq!(hinted[1], (2, Some(Why::ForOtherNodes), Some(Why::NotAsked)));
        let local = told(endpoints, Policy::Local);
        assert_eq!(local[0], (1, Some(Why::NotAsked), None));
        assert_eq!(local[1], (2, Some(Why::NotAsked), Some(Why::Elsewhere)));
    }

    #[test]
    fn the_last_resort_serves_where_nobody_is_ready() {
        let endpoints = vec![entry(1, "n1", [false, true, true], &[]), entry(2, "n1", [false; 3], &[])];
        let told = told(endpoints, Policy::Cluster);
        assert_eq!((told[0].1, told[1].1), (None, Some(Why::NotReady)));
    }
}
