//! Where an endpoint runs, and for whom it is meant. Endpoints that have this in common share it: there are many endpoints,
//! and few nodes and zones.

use std::{collections::BTreeSet, sync::Arc};

/// What an EndpointSlice says of an endpoint beside its address and conditions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Placement {
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `hints.forZones[].name`.
    pub for_zones: BTreeSet<Arc<str>>,
    /// `hints.forNodes[].name`.
    pub for_nodes: BTreeSet<Arc<str>>,
}

impl Placement {
    /// On this node, if any, and meant for everybody.
    pub fn on(node: Option<&str>) -> Arc<Self> {
        Arc::new(Self { node: node.map(Arc::from), ..Self::default() })
    }
}
