//! Opening a flow: its keys are claimed by inserting them if absent, and where one is taken another port is tried. What is
//! tried is chosen by a seeded hash of the flow's addresses, so that a flow whose dialled key is lost finds its other
//! keys again.

use super::{
    Endpoint,
    desk::{Desk, Seat},
    flow::{Entry, Stage},
    hash::Hash,
    packet::{PacketEnv, PacketTables, Run, rewrite},
    parts::Next,
    track,
};
use crate::{
    Address, Protocol, Reason,
    layout::{Device, Flow, MasqueradeKey},
};

/// Whose a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Holder {
    /// It was nobody's, and is ours now if it was to be claimed.
    Nobody = 0,
    /// Our connection's, from before.
    Ours = 1,
    /// Another flow's.
    Another = 2,
}

impl Holder {
    /// From a number.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Nobody,
            1 => Self::Ours,
            _ => Self::Another,
        }
    }

    #[inline(always)]
    const fn is(self, other: Self) -> bool {
        self as u32 == other as u32
    }
}

/// Ports that are tried for a flow.
const TRIES: u32 = 16;
/// Of these, how many among [`PacketPlane`](crate::layout::PacketPlane)'s first ones only: answers to others cost every
/// packet to such a port a look into the flows.
const FIRST_TRIES: u32 = 4;
/// Of these, how many before a port is taken from a connection that has ended, which is remembered for two minutes more.
const PATIENT_TRIES: u32 = 8;

/// The bit of [`Device::choices`] that says whether more than the device decides about the address.
#[inline(always)]
const fn choice_by(backend: &Address) -> u32 {
    if backend.is_v4() { Device::V4_BY_NEXT_HOP } else { Device::V6_BY_PEER }
}

impl<T: PacketTables, E: PacketEnv> Run<'_, T, E> {
    /// Whose a key of the packet's flow is; what is nobody's is claimed on request. Who has it is at [`Desk::OTHER`].
    #[inline(always)]
    pub fn hold<D: Seat>(&self, desk: &mut D, number: u32, claims: bool) -> Holder {
        let protocol = desk.packet.protocol;
        desk.key = desk.known().flow.key_at(protocol, number);
        if desk.recall(self, Desk::OTHER) {
            let [known, found, ..] = &desk.flows;
            return if found.flow.is_same(&known.flow) { Holder::Ours } else { Holder::Another };
        }
        let Desk { key, flows, .. } = &mut **desk;
        if claims && !self.tables.claim(Stage::unconfirmed(protocol), key, &flows[0].flow) {
            return Holder::Another;
        }
        Holder::Nobody
    }

    /// Open the flow on the desk, or find it again by what is left of it. Its keys after translation are claimed: where
    /// another flow of the same client port has the same backend, the port is changed already before routing, because
    /// nothing but it could tell their answers apart.
    #[inline(always)]
    pub fn open<D: Seat>(&self, desk: &mut D) -> Next {
        if !self.opened(desk) {
            return desk.drop(Reason::NoPort);
        }
        let flow = &desk.known().flow;
        let source = Endpoint { address: flow.client(), port: flow.inner_port() };
        let destination = Endpoint { address: flow.backend(), port: flow.backend_port };
        let reason = match (desk.connected, desk.moved) {
            (true, _) => Reason::FlowRepaired,
            (false, true) => Reason::FlowMoved,
            (false, false) => Reason::FlowOpened,
        };
        desk.rewrite(source, destination, reason)
    }

    #[inline(always)]
    fn opened<D: Seat>(&self, desk: &mut D) -> bool {
        self.tables.note_port(desk.known().flow.dialled_port);
        self.tables.note_port(desk.known().flow.backend_port);
        if desk.connected {
            self.tables.note_port(desk.known().flow.client_port);
        }
        let mut attempt = 0;
        while attempt < TRIES {
            match self.hold_inner(desk) {
                Holder::Ours => {
                    if self.resume(desk) {
                        return true;
                    }
                }
                Holder::Nobody => {
                    desk.write(self, Desk::KNOWN, Flow::DIALLED);
                    return true;
                }
                Holder::Another => {}
            }
            let flow = &mut desk.known().flow;
            flow.shown_port = self.port(flow, attempt);
            flow.flags |= Flow::PORT_CHANGED;
            attempt += 1;
        }
        false
    }

    /// Claim the keys that the flow has between ingress and egress.
    #[inline(always)]
    fn hold_inner<D: Seat>(&self, desk: &mut D) -> Holder {
        if desk.known().flow.answers_itself() {
            // A client that is its own backend and dials from the port that it serves on.
            return Holder::Another;
        }
        let holder = desk.hold(self, Flow::RETURNED, true);
        if !holder.is(Holder::Nobody) {
            return holder;
        }
        let claims = desk.known().flow.is_masqueraded();
        let holder = desk.hold(self, Flow::SENT, claims);
        if holder.is(Holder::Another) {
            desk.release(self, Desk::KNOWN, Flow::RETURNED);
        }
        holder
    }

    /// Leave the client's port between the positions to another flow that has claimed it, and take there, too, the one that
    /// the backend sees. False: there is none, or it is not free.
    #[inline(always)]
    pub fn step_aside<D: Seat>(&self, desk: &mut D) -> bool {
        let flow = &desk.known().flow;
        let keeps = Flow::PORT_CHANGED | Flow::OWN;
        if !flow.is_masqueraded() || !flow.has_masquerade() || flow.flags & keeps != 0 {
            return false;
        }
        desk.release(self, Desk::KNOWN, Flow::RETURNED);
        desk.release(self, Desk::KNOWN, Flow::SENT);
        desk.known().flow.flags |= Flow::PORT_CHANGED;
        if self.hold_inner(desk).is(Holder::Another) {
            desk.known().flow.flags &= !Flow::PORT_CHANGED;
            return false;
        }
        self.store(desk);
        true
    }

    /// Go on with a flow that was found again, whose dialled key was lost; a greeting begins it anew, with the ports it
    /// had. False: another flow has taken what else it lost.
    #[inline(always)]
    fn resume<D: Seat>(&self, desk: &mut D) -> bool {
        let Desk { packet, flows, .. } = &mut **desk;
        let flow = &mut flows[Desk::OTHER as usize].flow;
        if packet.segment.opens() {
            flow.client_state = track::SILENT;
            flow.backend_state = track::SILENT;
        }
        flow.client_state =
            track::said(packet.protocol, flow.client_state, flow.backend_state, packet.segment);
        flow.seen = self.now;
        if !self.heal(desk, Desk::OTHER) {
            desk.forget(self, Desk::OTHER);
            return false;
        }
        desk.flows[0] = desk.flows[Desk::OTHER as usize];
        true
    }

    /// Whether the address that the backend sees may stay what it is.
    #[inline(always)]
    pub(super) fn keeps_masquerade(&self, device: &Device, flow: &Flow, protocol: Protocol) -> bool {
        let (old, new) = (flow.masquerade(), device.masquerade(&flow.backend()));
        if !flow.has_masquerade() || old == new {
            return flow.has_masquerade();
        }
        // netfilter forgets a masqueraded connection whose way changes, which ends it (`nf_nat_oif_changed`). Here a
        // connection keeps its address, unless the node has lost it, and a datagram takes that of its way.
        let is_datagram = protocol as u8 == Protocol::Udp as u8 && !flow.is_own();
        let is_chosen = device.choices & choice_by(&flow.backend()) != 0;
        (!is_datagram || is_chosen) && self.tables.local_address(&old).is_some()
    }

    /// What MASQUERADE would pick (kernel: `inet_select_addr` by the next hop, `ipv6_dev_get_saddr` by the destination).
    #[inline(always)]
    fn masquerade_address(&self, device: &Device, client: &Address, backend: &Address) -> Address {
        if device.choices & choice_by(backend) != 0 {
            let towards = if backend.is_v4() { self.env.next_hop(device, client, backend) } else { *backend };
            if let Some(address) = self.tables.masquerade(&MasqueradeKey::host(device.host, towards)) {
                return address;
            }
        }
        device.masquerade(backend)
    }

    /// Have an address for the backend to see that is this node's.
    #[inline(always)]
    pub fn make_masquerade<D: Seat>(&self, device: &Device, desk: &mut D) -> Next {
        if desk.known().flow.has_masquerade() {
            desk.release(self, Desk::KNOWN, Flow::ANSWERED);
        }
        let flow = &mut desk.known().flow;
        if !flow.is_own() {
            let new = self.masquerade_address(device, &flow.client(), &flow.backend());
            if new.is_unspecified() {
                return desk.drop(Reason::NoMasqueradeAddress);
            }
            flow.masquerade = new.octets();
        }
        if self.masquerade(desk) { rewrite(desk, Flow::SENT) } else { desk.drop(Reason::NoPort) }
    }

    /// Choose the port that the backend sees, once it is known by which device the packet leaves. False: none is free.
    #[inline(always)]
    fn masquerade<D: Seat>(&self, desk: &mut D) -> bool {
        let is_lost = desk.hold(self, Flow::RETURNED, false).is(Holder::Another);
        let mut attempt = if is_lost { TRIES } else { 0 };
        while attempt < TRIES {
            if desk.known().flow.flags & Flow::PORT_CHANGED == 0 {
                let flow = &mut desk.known().flow;
                flow.shown_port = self.port(flow, attempt);
            } else if attempt > 0 {
                // The port that it got before routing is not free here: change both.
                desk.release(self, Desk::KNOWN, Flow::RETURNED);
                desk.release(self, Desk::KNOWN, Flow::SENT);
                let flow = &mut desk.known().flow;
                flow.shown_port = self.port(flow, attempt);
                if self.hold_inner(desk).is(Holder::Another) {
                    attempt += 1;
                    continue;
                }
            }
            attempt += 1;
            // Never a number that means a Service here, nor a tuple that a socket of this node or netfilter has.
            if self.tables.port_in_use(desk.known().flow.shown_port)
                || self.is_socket(desk)
                || self.is_answered_to_another(desk)
            {
                continue;
            }
            let mut holder = desk.hold(self, Flow::ANSWERED, true);
            if holder.is(Holder::Another) && attempt > PATIENT_TRIES && self.yields(desk) {
                desk.forget(self, Desk::OTHER);
                holder = desk.hold(self, Flow::ANSWERED, true);
            }
            if holder.is(Holder::Another) {
                continue;
            }
            // All that was left of it: what it says of the connection counts.
            if holder.is(Holder::Ours) {
                self.catch_up(desk);
            }
            self.store(desk);
            let port = desk.known().flow.shown_port;
            if !self.plane.is_first_choice(port) {
                self.tables.note_port(port);
            }
            return true;
        }
        desk.forget(self, Desk::KNOWN);
        false
    }

    /// Whether the flow at [`Desk::OTHER`] leaves its port to a new connection: it is over, and its port would only rest.
    /// netfilter's NAT does the same where ports are short.
    #[inline(always)]
    fn yields(&self, desk: &Desk) -> bool {
        let other = &desk.flows[Desk::OTHER as usize].flow;
        desk.packet.segment.opens() && track::is_over(other)
    }

    /// Take the state from the answered key, if it is a confirmed one.
    #[inline(always)]
    fn catch_up<D: Seat>(&self, desk: &mut D) {
        let protocol = desk.packet.protocol;
        let known = desk.known();
        if let Some((entry, stage)) = self.locate(&known.flow.answered_key(protocol))
            && stage as u32 == Stage::Confirmed as u32
        {
            let flow = entry.flow();
            known.stage = stage;
            known.flow.client_state = flow.client_state;
            known.flow.backend_state = flow.backend_state;
        }
    }

    /// Whether what the backend would answer to is a socket of this node.
    #[inline(always)]
    fn is_socket<D: Seat>(&self, desk: &mut D) -> bool {
        let protocol = desk.packet.protocol;
        let flow = &desk.known().flow;
        let local = Endpoint { address: flow.masquerade(), port: flow.shown_port };
        let peer = Endpoint { address: flow.backend(), port: flow.backend_port };
        self.env.has_socket(protocol, &local, &peer)
    }

    /// A port out of the node's range: the same for the same flow and attempt.
    #[inline(always)]
    fn port(&self, flow: &Flow, attempt: u32) -> u16 {
        let client = Endpoint { address: flow.client(), port: flow.client_port };
        let dialled = Endpoint { address: flow.dialled(), port: flow.dialled_port };
        let backend = Endpoint { address: flow.backend(), port: flow.backend_port };
        let hash = Hash::new(self.plane.seed).endpoint(&client).endpoint(&dialled).endpoint(&backend);
        let plane = self.plane;
        let width = u32::from(plane.last_port.wrapping_sub(plane.first_port)) + 1;
        let more = if attempt < FIRST_TRIES || plane.more_first_port == 0 {
            0
        } else {
            u32::from(plane.more_last_port.wrapping_sub(plane.more_first_port)) + 1
        };
        let word = u64::from(hash.word(u64::from(attempt)).finish());
        let turn = ((word * u64::from(width + more)) >> 32) as u32;
        if turn < width {
            plane.first_port.wrapping_add(turn as u16)
        } else {
            plane.more_first_port.wrapping_add((turn - width) as u16)
        }
    }
}
