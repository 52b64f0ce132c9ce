//! Opening a flow: its keys are claimed by inserting them if absent, and where one is taken another port is tried. What is
//! tried is chosen by a seeded hash of the flow's addresses, so that a flow whose dialled key is lost finds its other
//! keys again.

use super::{
    Endpoint,
    flow::{Entry, Known, Stage},
    hash::Hash,
    packet::{PacketEnv, PacketTables, Run},
    parse::Packet,
    track,
};
use crate::{
    Protocol, Reason,
    layout::{Flow, FlowKey},
};

/// Whose a key is.
enum Holder {
    /// It was nobody's and is ours now.
    Nobody,
    /// Our connection's, from before.
    Ours(Known),
    /// Another flow's.
    Another,
}

/// Ports that are tried for a flow.
const TRIES: u32 = 16;

impl<T: PacketTables, E: PacketEnv> Run<'_, T, E> {
    /// Whose a key is.
    #[inline(always)]
    fn holder(&self, key: &FlowKey, flow: &Flow) -> Holder {
        match self.recall(key) {
            Some(known) if known.flow.is_same(flow) => Holder::Ours(known),
            Some(_) => Holder::Another,
            None => Holder::Nobody,
        }
    }

    /// Claim a key that is nobody's.
    #[inline(always)]
    fn hold(&self, key: &FlowKey, flow: &Flow) -> Holder {
        let holder = self.holder(key, flow);
        if matches!(holder, Holder::Nobody) && !self.tables.claim(Stage::unconfirmed(key.protocol), key, flow)
        {
            return Holder::Another;
        }
        holder
    }

    /// Open a flow, or find it again by what is left of it. Its keys after translation are claimed: where another flow
    /// of the same client port has the same backend, the port is changed already before routing, because nothing but it
    /// could tell their answers apart.
    #[inline(always)]
    pub fn open(&self, packet: &Packet, flow: &Flow) -> Result<Known, Reason> {
        let protocol = packet.protocol;
        let mut known = Known { flow: *flow, stage: Stage::unconfirmed(protocol) };
        self.tables.note_port(flow.dialled_port);
        self.tables.note_port(flow.backend_port);
        let mut attempt = 0;
        while attempt < TRIES {
            match self.hold_inner(protocol, &known.flow) {
                Holder::Ours(found) => {
                    if let Some(known) = self.resume(packet, &found) {
                        return Ok(known);
                    }
                }
                Holder::Nobody => {
                    self.tables.put(known.stage, &known.flow.dialled_key(protocol), &known.flow);
                    return Ok(known);
                }
                Holder::Another => {}
            }
            known.flow.shown_port = self.port(&known.flow, attempt);
            known.flow.flags |= Flow::PORT_CHANGED;
            attempt += 1;
        }
        Err(Reason::NoPort)
    }

    /// Claim the keys that a flow has between ingress and egress.
    #[inline(always)]
    fn hold_inner(&self, protocol: Protocol, flow: &Flow) -> Holder {
        let (returned, sent) = (flow.returned_key(protocol), flow.sent_key(protocol));
        if returned == sent {
            // A client that is its own backend and dials from the port that it serves on.
            return Holder::Another;
        }
        let holder = self.hold(&returned, flow);
        if !matches!(holder, Holder::Nobody) {
            return holder;
        }
        let holder = if flow.is_masqueraded() { self.hold(&sent, flow) } else { self.holder(&sent, flow) };
        if matches!(holder, Holder::Another) {
            self.release(&returned, flow);
        }
        holder
    }

    /// Go on with a flow whose dialled key was lost; a greeting begins it anew, with the ports it had. `None`: another
    /// flow has taken what else it lost.
    #[inline(always)]
    fn resume(&self, packet: &Packet, found: &Known) -> Option<Known> {
        let mut known = *found;
        let flow = &mut known.flow;
        if packet.segment.opens() {
            flow.client_state = track::SILENT;
            flow.backend_state = track::SILENT;
        }
        flow.client_state =
            track::said(packet.protocol, flow.client_state, flow.backend_state, packet.segment);
        flow.seen = self.now;
        if self.heal(packet.protocol, &known) {
            Some(known)
        } else {
            self.forget(packet.protocol, &known.flow);
            None
        }
    }

    /// Choose the address and port that the backend sees, once it is known by which device the packet leaves.
    #[inline(always)]
    pub fn masquerade(&self, packet: &Packet, known: &mut Known) -> Result<(), Reason> {
        let protocol = packet.protocol;
        let returned = known.flow.returned_key(protocol);
        let mut attempt =
            if matches!(self.holder(&returned, &known.flow), Holder::Another) { TRIES } else { 0 };
        while attempt < TRIES {
            if known.flow.flags & Flow::PORT_CHANGED == 0 {
                known.flow.shown_port = self.port(&known.flow, attempt);
            } else if attempt > 0 {
                // The port that it got before routing is not free here: change both.
                self.release(&known.flow.returned_key(protocol), &known.flow);
                self.release(&known.flow.sent_key(protocol), &known.flow);
                known.flow.shown_port = self.port(&known.flow, attempt);
                if let Holder::Another = self.hold_inner(protocol, &known.flow) {
                    attempt += 1;
                    continue;
                }
            }
            let port = known.flow.shown_port;
            attempt += 1;
            // Never a number that means a Service here, nor a tuple that a socket of this node has.
            let local = Endpoint { address: known.flow.masquerade(), port };
            let peer = Endpoint { address: known.flow.backend(), port: known.flow.backend_port };
            if self.tables.port_in_use(port) || self.env.has_socket(protocol, &local, &peer) {
                continue;
            }
            let answered = known.flow.answered_key(protocol);
            match self.hold(&answered, &known.flow) {
                Holder::Another => continue,
                Holder::Nobody => {}
                // All that was left of it: what it says of the connection counts.
                Holder::Ours(_) => {
                    if let Some((entry, Stage::Confirmed)) = self.locate(&answered) {
                        let flow = entry.flow();
                        known.stage = Stage::Confirmed;
                        known.flow.client_state = flow.client_state;
                        known.flow.backend_state = flow.backend_state;
                    }
                }
            }
            self.store(protocol, known);
            return Ok(());
        }
        self.forget(protocol, &known.flow);
        Err(Reason::NoPort)
    }

    /// A port out of the node's range: the same for the same flow and attempt.
    #[inline(always)]
    fn port(&self, flow: &Flow, attempt: u32) -> u16 {
        let client = Endpoint { address: flow.client(), port: flow.client_port };
        let dialled = Endpoint { address: flow.dialled(), port: flow.dialled_port };
        let backend = Endpoint { address: flow.backend(), port: flow.backend_port };
        let hash = Hash::new(self.plane.seed).endpoint(&client).endpoint(&dialled).endpoint(&backend);
        let width = u64::from(self.plane.last_port.wrapping_sub(self.plane.first_port)) + 1;
        let turn = (u64::from(hash.word(u64::from(attempt)).finish()) * width) >> 32;
        self.plane.first_port.wrapping_add(turn as u16)
    }
}
