//! After a change of endpoints: the node's own datagram sockets that connect() gave a backend which serves no longer.

use proxy_common::{
    Address, Protocol,
    datapath::{Call, Endpoint, Tables, lookup::lookup, select::extent},
    layout::Connected,
};

use super::Reconciler;
use crate::{
    dataplane::{Dataplane, Peers},
    plan::View,
};

/// Peers of sockets that are to be looked at; none: all.
pub(super) type Left = Option<Peers>;

impl<D: Dataplane> Reconciler<D> {
    /// Let go of those whose peer was left since the last time. What fails here costs nobody anything but that.
    pub(super) fn release(&mut self) {
        let Some(planner) = &self.planner else { return };
        let left = self.left.replace(Peers::new());
        if left.as_ref().is_some_and(Peers::is_empty) {
            return;
        }
        let view = View { actual: planner.actual(), node: None };
        match self.dataplane.release(left.as_ref(), &|record| is_gone(&view, record)) {
            Ok(0) => {}
            Ok(sockets) => {
                tracing::info!(
                    sockets,
                    "disconnected datagram sockets of the node's own whose endpoint is gone"
                );
            }
            Err(error) => {
                tracing::warn!("sockets of the node's own may keep endpoints that are gone: {error}")
            }
        }
    }
}

/// Whether what was dialled is a Service's still, and the backend none of its endpoints any more.
fn is_gone(tables: &impl Tables, record: &Connected) -> bool {
    let address = Address::from_octets(record.dialled);
    let dialled = Call { address, port: record.dialled_port, protocol: Protocol::Udp };
    let backend = Endpoint { address: Address::from_octets(record.backend), port: record.backend_port };
    let Ok(frontend) = lookup(tables, &dialled) else { return false };
    extent(tables, frontend.service).is_ok_and(|extent| !extent.holds(tables, &backend))
}
