//! What the tables say, in the tables' own words: read back from the maps, or kept along with what was written.

use std::collections::{BTreeMap, HashMap};

use proxy_common::layout::{Backend, Frontend, FrontendKey, LocalAddress, LocalKey, Service};

/// The contents of all tables that describe the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    /// `frontends`.
    pub frontends: HashMap<FrontendKey, Frontend>,
    /// `services`, those that are not zero, by index.
    pub services: BTreeMap<u32, Service>,
    /// `backends`, the slots that are not free, by index.
    pub backends: BTreeMap<u32, Backend>,
    /// `names`, by service index.
    pub names: BTreeMap<u32, String>,
    /// `local_addresses`.
    pub local_addresses: BTreeMap<LocalKey, LocalAddress>,
    /// `ports`, the words that are not zero.
    pub ports: BTreeMap<u32, u64>,
}

/// How many entries the tables have room for, or need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Entries of `frontends`.
    pub frontends: u32,
    /// Entries of `services` and `names`; index 0 is usable.
    pub services: u32,
    /// Slots of `backends`; slot 0 is not usable.
    pub backends: u32,
    /// Entries of `local_addresses`.
    pub local_addresses: u32,
}
