//! What leaves this node by nobody's Service and whose answers would be taken for another's: those to a NodePort's number look
//! as if somebody dialled it, and those to a port that a flow is masqueraded with as if they were that flow's.
//!
//! A pod's connection to the world that a CNI's MASQUERADE gave the number of a NodePort is of the first kind, a socket of the
//! node that was bound after a flow had got its port of the second. With kube-proxy both are connection tracking's: what it
//! knows is no new connection, and where two would get the same ends one gets another port. Here such a connection is a flow
//! as any other, whose masquerade is the ends that it has, or these with another port.

use super::{
    claim::Holder,
    desk::{Desk, Seat},
    flow::Stage,
    opening::lookup_packet,
    packet::{Facts, PacketEnv, PacketTables, Run},
    parse::Packet,
    parts::Next,
    track,
};
use crate::{Protocol, Reason, layout::Flow};

impl<T: PacketTables, E: PacketEnv> Run<'_, T, E> {
    /// A packet of no flow goes out: whether [`Run::own`] has to look at it. Bits that are hot in cache decide for nearly all.
    #[inline(always)]
    pub(super) fn unknown(&self, facts: &Facts<'_>, desk: &mut Desk) -> Next {
        let packet = &desk.packet;
        let port = packet.source.port;
        let is_frontends = self.tables.port_in_use(port) && begins(facts, packet);
        let is_flows =
            facts.local_socket && (self.plane.is_first_choice(port) || self.tables.port_seen(port));
        if is_frontends || is_flows { Next::Own } else { desk.pass(Reason::NotService) }
    }

    /// Remember what begins here, if its answers would be taken for another's.
    #[inline(always)]
    pub fn own<D: Seat>(&self, facts: &Facts<'_>, desk: &mut D) -> Next {
        let Desk { packet, flows, .. } = &mut **desk;
        if !begins(facts, packet) {
            return desk.pass(Reason::NotService);
        }
        let is_frontends = self.tables.port_in_use(packet.source.port)
            && lookup_packet(self.tables, &packet.source, packet.protocol).is_ok();
        if !is_frontends && !facts.local_socket {
            return desk.pass(Reason::NotService);
        }
        let (client, backend) = (packet.source, packet.destination);
        flows[0].stage = Stage::unconfirmed(packet.protocol);
        flows[0].flow = Flow {
            client: client.address.octets(),
            dialled: backend.address.octets(),
            backend: backend.address.octets(),
            masquerade: client.address.octets(),
            client_port: client.port,
            dialled_port: backend.port,
            backend_port: backend.port,
            shown_port: client.port,
            version: Flow::VERSION,
            flags: Flow::MASQUERADE | Flow::OWN,
            client_state: track::said(packet.protocol, track::SILENT, track::SILENT, packet.segment),
            backend_state: track::SILENT,
            seen: self.now,
        };
        // What netfilter translates was begun by who dialled: this is an answer.
        if self.is_answered_to_another(desk) {
            return desk.pass(Reason::NotService);
        }
        match desk.hold(self, Flow::ANSWERED, is_frontends) {
            Holder::Another => {}
            Holder::Nobody if !is_frontends => return desk.pass(Reason::NotService),
            _ => {
                self.store(desk);
                self.note_ports(desk);
                return desk.pass(Reason::OwnConnection);
            }
        }
        self.note_ports(desk);
        Next::Masquerade
    }

    #[inline(always)]
    fn note_ports<D: Seat>(&self, desk: &mut D) {
        self.tables.note_port(desk.packet.source.port);
        self.tables.note_port(desk.packet.destination.port);
    }
}

/// Whether a packet may be the first one of what somebody on this node begins. Of datagrams that is to be asked of each one,
/// so only of those from an address that the device is known to show.
#[inline(always)]
fn begins(facts: &Facts<'_>, packet: &Packet) -> bool {
    if packet.protocol as u8 != Protocol::Udp as u8 {
        return packet.segment.opens();
    }
    let device = facts.device;
    facts.local_socket
        || device.choices != 0
        || device.masquerade(&packet.destination.address) == packet.source.address
}
