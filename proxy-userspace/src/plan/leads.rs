//! The frontends that stand in the table, by the service that they lead to, by their port and by their address.

use std::collections::HashMap;

use proxy_common::layout::{Frontend, FrontendKey};

use super::{Actual, addresses::Addresses};

const PORTS: usize = 1 << 16;

/// What leads where.
#[derive(Debug)]
pub(super) struct Leads {
    /// Sorted; of one frontend in most cases.
    by_service: HashMap<u32, Vec<FrontendKey>>,
    /// How many frontends use each port.
    ports: Vec<u32>,
    addresses: Addresses,
}

impl Leads {
    /// Of what was read back.
    pub(super) fn adopt(actual: &Actual) -> Self {
        let mut leads =
            Self { by_service: HashMap::new(), ports: vec![0; PORTS], addresses: Addresses::default() };
        for (key, value) in &actual.frontends {
            leads.add(key, value);
        }
        leads
    }

    /// A frontend came.
    pub(super) fn add(&mut self, key: &FrontendKey, value: &Frontend) {
        let keys = self.by_service.entry(value.service).or_default();
        if let Err(place) = keys.binary_search(key) {
            if keys.is_empty() {
                keys.reserve_exact(1);
            }
            keys.insert(place, *key);
        }
        self.ports[usize::from(key.port)] += 1;
        self.addresses.add(key);
    }

    /// A frontend went.
    pub(super) fn remove(&mut self, key: &FrontendKey, value: &Frontend) {
        if let Some(keys) = self.by_service.get_mut(&value.service) {
            if let Ok(place) = keys.binary_search(key) {
                keys.remove(place);
            }
            if keys.is_empty() {
                self.by_service.remove(&value.service);
            }
        }
        self.ports[usize::from(key.port)] -= 1;
        self.addresses.remove(key);
    }

    /// The services that frontends lead to.
    pub(super) fn services(&self) -> impl Iterator<Item = u32> {
        self.by_service.keys().copied()
    }

    /// The frontends that lead to a service.
    pub(super) fn of(&self, service: u32) -> impl Iterator<Item = &FrontendKey> {
        self.by_service.get(&service).into_iter().flatten()
    }

    /// Whether any frontend leads to a service.
    pub(super) fn any(&self, service: u32) -> bool {
        self.by_service.contains_key(&service)
    }

    /// The bits that their addresses set.
    pub(super) fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// How many frontends use a port.
    pub(super) fn using(&self, port: u16) -> u32 {
        self.ports[usize::from(port)]
    }
}
