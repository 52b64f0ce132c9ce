//! Repair through the pod's socket. Where a packet comes in from a pod its socket can still be seen, and with it what
//! connect() dialled and which backend it was given. A datagram, or a greeting that nobody has answered, for a backend that
//! serves no longer goes to one that does; its answers come back as if from the first one, which is all that the socket
//! accepts, and getpeername() shows what was dialled as before.
//!
//! Such a flow is one as any other, whose dialled address is the backend that the socket knows. It is kept as long as its
//! own backend serves, also where the first one is back. An established connection is never moved.

use super::{
    Endpoint,
    desk::{Desk, Seat},
    opening,
    packet::{PacketEnv, PacketTables, Run, key_of},
    track,
};
use crate::{
    Address,
    layout::{Connected, Position},
};

impl Desk {
    /// What was dialled is the packet's destination, whatever its socket means.
    #[inline(always)]
    pub(super) fn leave_socket(&mut self) {
        self.connected = false;
        self.dialled = self.packet.destination;
    }
}

/// Note on the desk what was dialled: by the packet's socket, if that was given the packet's destination instead. Only a
/// fresh packet may be moved.
#[inline(always)]
pub fn recognise<E: PacketEnv>(env: &E, desk: &mut Desk, fresh: bool) {
    desk.leave_socket();
    if !fresh {
        return;
    }
    let Some(record) = env.connected(desk.packet.protocol) else { return };
    // The record is the socket's, and the packet may be for anybody.
    let to = &desk.packet.destination;
    if record.version != Connected::VERSION
        || record.backend_port != to.port
        || Address::from_octets(record.backend) != to.address
    {
        return;
    }
    desk.connected = true;
    desk.dialled = Endpoint { address: Address::from_octets(record.dialled), port: record.dialled_port };
}

/// Whether the packet is one of the flow on the desk, as far as that is a repair: a segment is none if the flow's backend has
/// not spoken, since then it was the first one that has answered. Of a fresh packet what was dialled tells.
#[inline(always)]
pub fn is_of(desk: &mut Desk, fresh: bool) -> bool {
    let flow = &desk.flows[0].flow;
    if !flow.is_repair() {
        // The backend is a frontend itself, and its flows are as all others.
        desk.leave_socket();
        return true;
    }
    fresh || flow.backend_state != track::SILENT
}

/// A packet of no flow to whom an older socket of the same port was moved: forget that flow, or it would show the answers
/// as those of the older one's backend.
#[inline(always)]
pub fn make_way<T: PacketTables, E: PacketEnv, D: Seat>(run: &Run<'_, T, E>, desk: &mut D) {
    let Desk { packet, key, .. } = &mut **desk;
    if !run.tables.port_seen(packet.source.port) {
        return;
    }
    *key = key_of(&packet.destination, &packet.source, packet.protocol, Position::Egress);
    if desk.recall(run, Desk::OTHER) && desk.at(Desk::OTHER).flow.is_repair() {
        desk.forget(run, Desk::OTHER);
    }
}

impl<T: PacketTables, E: PacketEnv> Run<'_, T, E> {
    /// Whether [`Desk::backend`] serves [`Desk::dialled`].
    #[inline(always)]
    pub fn serves(&self, desk: &Desk) -> bool {
        opening::serves(self.tables, desk.packet.protocol, &desk.dialled, &desk.backend)
    }
}
