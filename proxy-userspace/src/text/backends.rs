//! `vipr backends`: a row for each endpoint of each ServicePort.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::{served, split_name, table};
use crate::plan::Actual;

/// An endpoint that serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRow {
    /// `namespace/name:port/protocol/family`, as the tables name it.
    pub name: String,
    /// `namespace/name`.
    pub service: String,
    /// Where it listens.
    pub address: IpAddr,
    /// Where it listens.
    pub port: u16,
    /// It serves where the policy is Cluster.
    pub cluster: bool,
    /// It serves where the policy is Local.
    pub local: bool,
}

/// All endpoints of the tables, by service.
pub fn backends(actual: &Actual) -> Vec<BackendRow> {
    let rows = served::all(actual).into_iter().flat_map(|served| {
        let name = served.text();
        let service = split_name(served.name.unwrap_or_default())[0].to_owned();
        served.endpoints(actual).map(move |(slot, cluster, local)| BackendRow {
            name: name.clone(),
            service: service.clone(),
            address: slot.address().ip(),
            port: slot.port,
            cluster,
            local,
        })
    });
    rows.collect()
}

/// For people.
pub fn backends_text(rows: &[BackendRow]) -> String {
    let cells = rows.iter().map(|row| {
        let sets = match (row.cluster, row.local) {
            (true, true) => "both",
            (true, false) => "cluster",
            _ => "local",
        };
        [row.name.clone(), SocketAddr::new(row.address, row.port).to_string(), sets.into()]
    });
    table(["SERVICE", "ENDPOINT", "SETS"], cells)
}
