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
    flow::Stage,
    opening,
    packet::{PacketEnv, PacketTables, Run, key_of},
    track,
};
use crate::{
    Address,
    layout::{Connected, Flow, Position},
};

/// Whether a backend serves what was dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Serves {
    /// Not any more.
    Gone = 0,
    /// As the flow on the desk has it, if there is one.
    AsBefore = 1,
    /// Yes, but the flow on the desk shows it this node where it is to see the client, or the other way round.
    Otherwise = 2,
}

impl Serves {
    /// From a number.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Gone,
            2 => Self::Otherwise,
            _ => Self::AsBefore,
        }
    }

    /// Whether it does not serve.
    #[inline(always)]
    pub const fn is_gone(self) -> bool {
        self as u32 == Self::Gone as u32
    }

    /// Whether the flow is to be begun anew, with the same backend.
    #[inline(always)]
    pub const fn is_otherwise(self) -> bool {
        self as u32 == Self::Otherwise as u32
    }
}

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
    pub fn serves(&self, desk: &Desk) -> Serves {
        opening::serves(self.tables, desk)
    }

    /// Begin the flow on the desk anew with the same backend, which is to be shown this node where it saw the client, or the
    /// other way round.
    #[inline(always)]
    pub(super) fn show_otherwise<D: Seat>(&self, desk: &mut D) {
        desk.forget(self, Desk::KNOWN);
        desk.moved = true;
        let Desk { packet, flows, .. } = &mut **desk;
        let flow = &mut flows[0].flow;
        flow.flags = (flow.flags ^ Flow::MASQUERADE) & !Flow::PORT_CHANGED;
        flow.masquerade = [0; 16];
        flow.shown_port = flow.client_port;
        flow.client_state = track::said(packet.protocol, track::SILENT, track::SILENT, packet.segment);
        flow.backend_state = track::SILENT;
        flows[0].stage = Stage::unconfirmed(packet.protocol);
    }
}
