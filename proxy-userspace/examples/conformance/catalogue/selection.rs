//! Cases of upstream's unit test of the endpoint selection: endpoints, a node and a service in, the sets out.
//!
//! The form restates Go values, so what is null or missing is Go's zero value: false, empty, none.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use anyhow::Result;
use proxy_common::datapath;
use serde::{Deserialize, Deserializer};
use vipr::model::{
    Policy,
    endpoints::{Candidate, Place, Policies, Sets, select},
};

/// One case.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Case {
    #[serde(default, deserialize_with = "or_zero")]
    node: Node,
    /// Whether node hints count: they do since 1.35, and unless a case says otherwise.
    prefer_same_node_supported: Option<bool>,
    #[serde(default, deserialize_with = "or_zero")]
    service: Service,
    #[serde(default, deserialize_with = "or_zero")]
    endpoints: Vec<Endpoint>,
    #[serde(default, deserialize_with = "or_zero")]
    expect: Expect,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Node {
    #[serde(deserialize_with = "or_zero")]
    name: String,
    #[serde(deserialize_with = "or_zero")]
    zone: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Service {
    #[serde(deserialize_with = "or_zero")]
    internal_policy_local: bool,
    #[serde(deserialize_with = "or_zero")]
    external_policy_local: bool,
    #[serde(deserialize_with = "or_zero")]
    externally_accessible: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    endpoint: SocketAddr,
    #[serde(default, deserialize_with = "or_zero")]
    local: bool,
    #[serde(default, deserialize_with = "or_zero")]
    ready: bool,
    #[serde(default, deserialize_with = "or_zero")]
    serving: bool,
    #[serde(default, deserialize_with = "or_zero")]
    terminating: bool,
    #[serde(default, deserialize_with = "or_zero")]
    for_zones: BTreeSet<Arc<str>>,
    #[serde(default, deserialize_with = "or_zero")]
    for_nodes: BTreeSet<Arc<str>>,
}

/// The sets, and in the same words what came out.
#[derive(Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "camelCase")]
struct Expect {
    #[serde(deserialize_with = "or_zero")]
    cluster: BTreeSet<SocketAddr>,
    #[serde(deserialize_with = "or_zero")]
    local: BTreeSet<SocketAddr>,
    #[serde(deserialize_with = "or_zero")]
    reachable: BTreeSet<SocketAddr>,
    #[serde(deserialize_with = "or_zero")]
    has_any_endpoints: bool,
}

fn or_zero<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// What is different, if anything is.
pub(super) fn run(case: Case) -> Result<Option<String>> {
    let selected = selected(&case);
    let sets = |expect: &Expect| {
        let sets = [("cluster", &expect.cluster), ("local", &expect.local), ("reachable", &expect.reachable)];
        let mut texts: BTreeMap<_, _> = sets.map(|(name, set)| (name, format!("{set:?}"))).into();
        texts.insert("hasAnyEndpoints", expect.has_any_endpoints.to_string());
        texts
    };
    let expected = sets(&case.expect);
    let differences = sets(&selected).into_iter().filter(|(name, text)| expected[name] != *text);
    let differences: Vec<_> =
        differences.map(|(name, text)| format!("{name} is {text}, expected is {}", expected[name])).collect();
    Ok((!differences.is_empty()).then(|| differences.join("; ")))
}

fn selected(case: &Case) -> Expect {
    let no_hints = BTreeSet::new();
    let node_hints_count = case.prefer_same_node_supported.unwrap_or(true);
    let candidates: Vec<_> = case
        .endpoints
        .iter()
        .map(|endpoint| Candidate {
            endpoint: datapath::Endpoint {
                address: endpoint.endpoint.ip().into(),
                port: endpoint.endpoint.port(),
            },
            local: endpoint.local,
            ready: endpoint.ready,
            serving: endpoint.serving,
            terminating: endpoint.terminating,
            for_zones: &endpoint.for_zones,
            for_nodes: if node_hints_count { &endpoint.for_nodes } else { &no_hints },
        })
        .collect();
    let policy = |local| if local { Policy::Local } else { Policy::Cluster };
    let policies = Policies {
        internal: policy(case.service.internal_policy_local),
        external: policy(case.service.external_policy_local),
        external_destination: case.service.externally_accessible,
    };
    let selection = select(&candidates, Place { node: &case.node.name, zone: &case.node.zone }, policies);
    let set = |is_in: fn(&Sets) -> bool| {
        let pairs = case.endpoints.iter().zip(&selection.sets);
        pairs.filter(|(_, sets)| is_in(sets)).map(|(endpoint, _)| endpoint.endpoint).collect()
    };
    Expect {
        cluster: set(|sets| sets.cluster),
        local: set(|sets| sets.local),
        reachable: set(|sets| sets.cluster || sets.local),
        has_any_endpoints: selection.any_endpoints,
    }
}
