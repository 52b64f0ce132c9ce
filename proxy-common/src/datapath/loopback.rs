//! Sockets that are bound to 127.0.0.1 and dial a node port there whose endpoint is elsewhere: connect() gives them the endpoint, and
//! their packets leave the node with a source that nobody else can answer. So it is masqueraded on the way out, as kube-proxy's rules
//! do, and given back on the way in. The kernel lets such packets out, and their answers in, on devices with `route_localnet`.
//!
//! Such a flow was dialled by nobody: its client's packets are met on the way out first. It has the keys of every masqueraded
//! flow ([`super::flow`]), with the backend in the place of what was dialled.

use super::{
    desk::{Desk, Seat},
    flow::{Known, Stage, packet_key},
    packet::{PacketEnv, PacketTables, Run, rewrite},
    parts::Next,
    track::{self, Side},
};
use crate::{
    Reason,
    layout::{Device, Flow, Position},
};

impl<T: PacketTables, E: PacketEnv> Run<'_, T, E> {
    /// A packet from loopback on its way out.
    #[inline(always)]
    pub fn loopback_sends<D: Seat>(&self, device: &Device, desk: &mut D) -> Next {
        desk.key = packet_key(&desk.packet, Position::Egress);
        let opens = desk.packet.segment.opens();
        if desk.recall(self, Desk::KNOWN) {
            let is_new = opens && track::is_ending(&desk.known().flow);
            if !is_new && self.note(desk, Side::Client) {
                let protocol = desk.packet.protocol;
                let keeps = self.keeps_masquerade(device, &desk.known().flow, protocol);
                return if keeps { rewrite(desk, Flow::SENT) } else { Next::Masquerade };
            }
            desk.forget(self, Desk::KNOWN);
        }
        let Desk { packet, flows, .. } = &mut **desk;
        let flow = Flow {
            client: packet.source.address.octets(),
            dialled: packet.destination.address.octets(),
            backend: packet.destination.address.octets(),
            masquerade: [0; 16],
            client_port: packet.source.port,
            dialled_port: packet.destination.port,
            backend_port: packet.destination.port,
            shown_port: packet.source.port,
            version: Flow::VERSION,
            flags: Flow::MASQUERADE,
            client_state: track::said(packet.protocol, track::SILENT, track::SILENT, packet.segment),
            backend_state: track::SILENT,
            seen: self.now,
        };
        flows[0] = Known { flow, stage: Stage::unconfirmed(packet.protocol) };
        Next::Masquerade
    }

    /// A packet to loopback on its way in: an answer that a bridge's port has given back, or nobody's.
    #[inline(always)]
    pub(super) fn loopback_receives<D: Seat>(&self, desk: &mut D) -> Next {
        desk.key = packet_key(&desk.packet, Position::Egress);
        if desk.recall(self, Desk::KNOWN) {
            desk.pass(Reason::AlreadyTranslated)
        } else {
            desk.drop(Reason::Martian)
        }
    }
}
