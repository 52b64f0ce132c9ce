//! What load balancers may ask about Services (spec §4.2), for the servers that answer.

use std::{collections::BTreeSet, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::model::{Desired, Family};

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checks {
    /// Where it may be asked; unspecified addresses stand for all of their family.
    pub addresses: BTreeSet<IpAddr>,
    /// By namespace, name and family.
    pub services: Vec<Check>,
}

/// One Service of one family.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Of the Service.
    pub namespace: String,
    /// Of the Service.
    pub name: String,
    /// The port asked is IPv6's.
    pub v6: bool,
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// Addresses of its ready endpoints on this node.
    pub local_endpoints: u32,
}

impl Checks {
    /// Of what is desired.
    pub fn of(desired: &Desired) -> Self {
        let services = desired.health_checks.iter().map(|((service, family), check)| Check {
            namespace: service.namespace.to_string(),
            name: service.name.to_string(),
            v6: *family == Family::V6,
            port: check.port,
            local_endpoints: check.local_endpoints,
        });
        Self { addresses: desired.health_check_addresses.clone(), services: services.collect() }
    }

    /// The local endpoints of a Service in one family; none of one that is not to be checked.
    pub fn local_endpoints(&self, namespace: &str, name: &str, v6: bool) -> u32 {
        let key = |check: &Check| {
            (check.namespace.as_str().cmp(namespace))
                .then_with(|| check.name.as_str().cmp(name))
                .then_with(|| check.v6.cmp(&v6))
        };
        self.services.binary_search_by(key).map_or(0, |place| self.services[place].local_endpoints)
    }
}
