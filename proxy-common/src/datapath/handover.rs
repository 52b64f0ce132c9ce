//! What another proxy began: connections that netfilter translates by entries from before vipr took over. Their packets are
//! left alone, so that netfilter, which meets them next, goes on with them.
//!
//! The agent lists them. While it takes over the list is not complete, and whatever is in the middle of a TCP or SCTP connection
//! that is no flow of ours passes ([`PacketPlane::TAKING_OVER`]); from then on exactly what is listed does.

use super::{
    Endpoint,
    desk::{Desk, Seat},
    packet::{PacketEnv, PacketTables, Run, key_of},
    parse::Packet,
};
use crate::{
    Protocol,
    layout::{HandedOver, PacketPlane, Position},
};

impl<T: PacketTables, E: PacketEnv> Run<'_, T, E> {
    /// Whether a packet that comes in, and is of no flow, is left to netfilter because its connection is listed. Who dials
    /// anew is served by us; so is a datagram whose backend serves no longer, which kube-proxy would have made netfilter
    /// forget (spec §2.9).
    #[inline(always)]
    pub(super) fn is_handed_over<D: Seat>(&self, desk: &mut D) -> bool {
        if self.plane.handover == 0 || desk.packet.segment.opens() {
            return false;
        }
        let Desk { packet, key, backend, .. } = &mut **desk;
        *key = key_of(&packet.source, &packet.destination, packet.protocol, Position::Ingress);
        let Some(found) = self.tables.handed_over(key) else { return false };
        if found.version != HandedOver::VERSION || !found.is_alive(self.now) {
            return false;
        }
        if packet.protocol as u8 != Protocol::Udp as u8 || found.backend().is_unspecified() {
            return true;
        }
        *backend = Endpoint { address: found.backend(), port: found.backend_port };
        if desk.serves(self).is_gone() {
            return false;
        }
        // As netfilter does with each packet, if by less than it does for those that are answered.
        let until = self.now.wrapping_add(self.plane.timeouts.udp);
        if until.wrapping_sub(found.until) as i32 > 0 {
            self.tables.set_handed_over(&desk.key, &HandedOver { until, ..found });
        }
        true
    }

    /// Whether a packet to a Service is in the middle of a connection that may be another proxy's and not yet listed.
    #[inline(always)]
    pub(super) fn may_be_handed_over(&self, packet: &Packet) -> bool {
        self.plane.handover == PacketPlane::TAKING_OVER && is_midway(packet)
    }

    /// Whether the answers to the flow on the desk would be taken for those of a connection that is listed.
    #[inline(always)]
    pub(super) fn is_answered_to_another<D: Seat>(&self, desk: &mut D) -> bool {
        if self.plane.handover == 0 {
            return false;
        }
        let protocol = desk.packet.protocol;
        desk.key = desk.known().flow.answered_key(protocol);
        self.tables.handed_over(&desk.key).is_some()
    }
}

/// Whether a packet belongs to a connection that was opened before.
#[inline(always)]
pub(super) fn is_midway(packet: &Packet) -> bool {
    packet.protocol as u8 != Protocol::Udp as u8 && !packet.segment.opens()
}
