//! `vipr services`: a row for each ServicePort of each family.

use std::net::IpAddr;

use proxy_common::layout::{Frontend, FrontendKey, FrontendKind, Policy};
use serde::Serialize;

use super::{duration, served, split_name, table};
use crate::plan::Actual;

/// A ServicePort as the tables have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRow {
    /// `namespace/name:port/protocol/family`, as the tables name it.
    pub name: String,
    /// `namespace/name`.
    pub service: String,
    /// Name of the port; empty if it has none.
    pub port: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// In the tables.
    pub index: u32,
    /// Where it is dialled.
    pub frontends: Vec<FrontendRow>,
    /// It has an extent: without, calls to it are left alone.
    pub programmed: bool,
    /// Endpoints that serve where the policy is Cluster.
    pub cluster_endpoints: u32,
    /// Endpoints that serve where the policy is Local.
    pub local_endpoints: u32,
    /// Names of the bits of [`Policy`] that are set.
    pub policy: Vec<&'static str>,
    /// Lifetime of session affinity; 0: none.
    pub affinity_seconds: u32,
}

/// An address at which a service is dialled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendRow {
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalIP`.
    pub kind: &'static str,
    /// `None`: every address of the node that serves NodePorts.
    pub address: Option<IpAddr>,
    /// What is dialled.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The node itself is outside the source ranges.
    pub host_denied: bool,
}

impl FrontendRow {
    /// Of an entry of `frontends`.
    pub fn new(key: &FrontendKey, value: &Frontend) -> Self {
        let address = (value.kind != FrontendKind::NodePort).then(|| key.address().ip());
        Self {
            kind: kind(value.kind),
            address,
            port: key.port,
            protocol: key.protocol.to_string(),
            host_denied: value.host_denied != 0,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let Self { kind, port, protocol, .. } = self;
        let address = match self.address {
            None => "*".into(),
            Some(IpAddr::V4(address)) => address.to_string(),
            Some(IpAddr::V6(address)) => format!("[{address}]"),
        };
        let denied = if self.host_denied { ", not for the node itself" } else { "" };
        format!("{kind} {address}:{port}/{protocol}{denied}")
    }
}

fn kind(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => "ClusterIP",
        FrontendKind::NodePort | FrontendKind::ShutNodePort => "NodePort",
        FrontendKind::LoadBalancer => "LoadBalancer",
        FrontendKind::ExternalIp => "ExternalIP",
    }
}

/// Bits, their names for programs, and what people are shown; empty: nothing, since it is no one service's doing.
const POLICIES: [(u16, &str, &str); 9] = [
    (Policy::ANY_ENDPOINTS, "anyEndpoints", ""),
    (Policy::INTERNAL_LOCAL, "internalLocal", "internal Local"),
    (Policy::EXTERNAL_LOCAL, "externalLocal", "external Local"),
    (Policy::POD_DETECTOR, "podDetector", ""),
    (Policy::LEAVE_INTERNAL, "leaveInternal", "internal left to packets"),
    (Policy::LEAVE_EXTERNAL, "leaveExternal", "external left to packets"),
    (Policy::SOURCE_RANGES, "sourceRanges", "source ranges"),
    (Policy::HOST_REJECT_LEFT, "hostRejectLeft", ""),
    (Policy::NO_CIRCUIT, "noCircuit", ""),
];

/// All services of the tables, in the order of their names.
pub fn services(actual: &Actual) -> Vec<ServiceRow> {
    let row = |served: served::Served<'_>| {
        let name = served.text();
        let [service, port, protocol, family] =
            split_name(served.name.unwrap_or_default()).map(str::to_owned);
        let [cluster_endpoints, local_endpoints] = served.counts().unwrap_or_default();
        let bits = served.header.map_or(0, |header| header.policy);
        ServiceRow {
            name,
            service,
            port,
            protocol,
            family,
            index: served.index,
            frontends: served.frontends.iter().map(|(key, value)| FrontendRow::new(key, value)).collect(),
            programmed: served.header.is_some(),
            cluster_endpoints,
            local_endpoints,
            policy: POLICIES.iter().filter(|(bit, ..)| bits & bit != 0).map(|(_, name, _)| *name).collect(),
            affinity_seconds: served.word.affinity_seconds,
        }
    };
    served::all(actual).into_iter().map(row).collect()
}

/// For people.
pub fn services_text(rows: &[ServiceRow]) -> String {
    let cells = rows.iter().map(|row| {
        let number = |number: u32| if row.programmed { number.to_string() } else { "-".into() };
        let shown = POLICIES.iter().filter(|(_, name, shown)| !shown.is_empty() && row.policy.contains(name));
        let affinity = match row.affinity_seconds {
            0 => String::new(),
            seconds => duration(std::time::Duration::from_secs(seconds.into())),
        };
        [
            row.name.clone(),
            row.frontends.iter().map(FrontendRow::text).collect::<Vec<_>>().join("\n"),
            number(row.cluster_endpoints),
            number(row.local_endpoints),
            shown.map(|(.., shown)| *shown).collect::<Vec<_>>().join(", "),
            affinity,
        ]
    });
    table(["SERVICE", "FRONTENDS", "CLUSTER", "LOCAL", "POLICY", "AFFINITY"], cells)
}
