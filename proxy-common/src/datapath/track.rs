//! Where a flow's connection stands, from what both sides have said, and how long silence may last there. It follows
//! netfilter's states and timeouts but not its windows: a segment is never too old or too new to be translated
//! (kube-proxy spec §2.10).

use super::parse::Segment;
use crate::{
    Protocol,
    layout::{Flow, Timeouts},
};

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Side {
    /// Who dialled.
    Client = 0,
    /// Who serves.
    Backend = 1,
}

/// Nothing yet.
pub const SILENT: u8 = 0;
/// A SYN, an INIT or their answer.
pub const GREETED: u8 = 1;
/// Anything else.
pub const TALKED: u8 = 2;
/// That it is done.
pub const DONE: u8 = 3;
/// A reset.
pub const RESET: u8 = 4;
/// Bit: it has heard that the other is done.
pub const HEARD: u8 = 8;
const SAID: u8 = 7;

/// Where the connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Only one side was heard.
    Dialled,
    /// The backend answered a greeting that the client has not confirmed.
    Answered,
    /// Both talk.
    Open,
    /// One side is done.
    Closing,
    /// One side is done, and the other has heard of it.
    HalfClosed,
    /// Both are done.
    LastAck,
    /// Both are done and have heard of it.
    TimeWait,
    /// Reset.
    Closed,
}

/// What one side has said after `segment`. `own` and `other`: what both had said before.
#[inline(always)]
pub fn said(protocol: Protocol, own: u8, other: u8, segment: Segment) -> u8 {
    if protocol as u8 == Protocol::Udp as u8 {
        return TALKED;
    }
    if segment.has(Segment::RESET) {
        return RESET;
    }
    let mut said = own & SAID;
    if segment.has(Segment::FIN) {
        said = DONE;
    } else if segment.has(Segment::SYN) {
        // A greeting sent again says nothing new.
        if said == SILENT || said == RESET {
            said = GREETED;
        }
    } else if segment.has(Segment::ACK) && said != DONE {
        // Also after a reset: it was not this side that sent it.
        said = TALKED;
    }
    let heard = segment.has(Segment::ACK) && other & SAID == DONE;
    said | (own & HEARD) | if heard { HEARD } else { 0 }
}

/// Where a flow stands.
#[inline(always)]
pub fn phase(flow: &Flow) -> Phase {
    let (client, backend) = (flow.client_state & SAID, flow.backend_state & SAID);
    if client == RESET || backend == RESET {
        return Phase::Closed;
    }
    match (client == DONE, backend == DONE) {
        (true, true) if flow.client_state & flow.backend_state & HEARD != 0 => Phase::TimeWait,
        (true, true) => Phase::LastAck,
        (true, false) if flow.backend_state & HEARD != 0 => Phase::HalfClosed,
        (false, true) if flow.client_state & HEARD != 0 => Phase::HalfClosed,
        (true, false) | (false, true) => Phase::Closing,
        (false, false) if backend == SILENT || client == SILENT => Phase::Dialled,
        (false, false) if client == GREETED => Phase::Answered,
        (false, false) => Phase::Open,
    }
}

/// Whether a new greeting of the client is a new connection: one side at least has ended the old one.
#[inline(always)]
pub fn is_ending(flow: &Flow) -> bool {
    let (client, backend) = (flow.client_state & SAID, flow.backend_state & SAID);
    client >= DONE || backend >= DONE
}

/// Whether both sides have ended it, or one has cut it when it was open.
#[inline(always)]
pub fn has_ended(flow: &Flow) -> bool {
    let (client, backend) = (flow.client_state & SAID, flow.backend_state & SAID);
    backend == RESET || client == RESET && backend >= TALKED || client == DONE && backend == DONE
}

/// Whether nothing but late segments can follow: both sides have ended it and know, or one has cut it.
#[inline(always)]
pub fn is_over(flow: &Flow) -> bool {
    matches!(phase(flow), Phase::TimeWait | Phase::Closed)
}

/// Whether a packet after routing begins another connection than the one whose ends it has, and which has ended: who dialled
/// has used his port again, and dialled the backend itself. Had he dialled the Service, the flow would be another now. Of a
/// flow that got a masquerade his greeting bears a key, of others the answer to it.
#[inline(always)]
pub fn is_of_another(segment: Segment, flow: &Flow) -> bool {
    let begins = if flow.has_masquerade() { segment.opens() } else { segment.answers() };
    begins && has_ended(flow)
}

/// Whether a flow is established: its backend has answered with anything but a reset, and its client has heard of it. A greeting
/// that a flood sent under another's address is answered, too, but nobody goes on from there.
#[inline(always)]
pub fn is_established(flow: &Flow) -> bool {
    let (client, backend) = (flow.client_state & SAID, flow.backend_state & SAID);
    let talks = |said| said == TALKED || said == DONE;
    talks(client) && (talks(backend) || backend == GREETED)
}

/// Seconds since the last packet. Another CPU may have seen one later than `now` was read.
#[inline(always)]
pub fn silence(flow: &Flow, now: u32) -> u32 {
    now.saturating_sub(flow.seen)
}

/// Whether silence has lasted too long at `now`, seconds of the monotonic clock.
#[inline(always)]
pub fn has_expired(protocol: Protocol, flow: &Flow, timeouts: &Timeouts, now: u32) -> bool {
    silence(flow, now) > lifetime(protocol, flow, timeouts)
}

/// Seconds of silence after which the flow is over. UDP is a stream as soon as it is answered.
#[inline(always)]
pub fn lifetime(protocol: Protocol, flow: &Flow, timeouts: &Timeouts) -> u32 {
    let phase = phase(flow);
    match protocol {
        Protocol::Udp => match phase {
            Phase::Dialled => timeouts.udp,
            _ => timeouts.udp_stream,
        },
        Protocol::Tcp => match phase {
            Phase::Dialled => timeouts.tcp_syn_sent,
            Phase::Answered => timeouts.tcp_syn_received,
            Phase::Open => timeouts.tcp_established,
            Phase::Closing => timeouts.tcp_fin_wait,
            Phase::HalfClosed => timeouts.tcp_close_wait,
            Phase::LastAck => timeouts.tcp_last_ack,
            Phase::TimeWait => timeouts.tcp_time_wait,
            Phase::Closed => timeouts.tcp_close,
        },
        Protocol::Sctp => match phase {
            Phase::Dialled | Phase::Answered => timeouts.sctp_cookie,
            Phase::Open => timeouts.sctp_established,
            Phase::Closing | Phase::HalfClosed | Phase::LastAck => timeouts.sctp_shutdown,
            Phase::TimeWait | Phase::Closed => timeouts.sctp_closed,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: u8 = Segment::SYN;
    const ACK: u8 = Segment::ACK;
    const FIN: u8 = Segment::FIN;
    const RST: u8 = Segment::RESET;

    /// The phase after these segments.
    fn after(segments: &[(Side, u8)]) -> Phase {
        let mut flow = Flow {
            client: [0; 16],
            dialled: [0; 16],
            backend: [0; 16],
            masquerade: [0; 16],
            client_port: 0,
            dialled_port: 0,
            backend_port: 0,
            shown_port: 0,
            version: Flow::VERSION,
            flags: 0,
            client_state: 0,
            backend_state: 0,
            seen: 0,
        };
        for (side, segment) in segments {
            let (client, backend) = (flow.client_state, flow.backend_state);
            match side {
                Side::Client => flow.client_state = said(Protocol::Tcp, client, backend, Segment(*segment)),
                Side::Backend => flow.backend_state = said(Protocol::Tcp, backend, client, Segment(*segment)),
            }
        }
        phase(&flow)
    }

    use Side::{Backend as B, Client as C};
    const OPEN: [(Side, u8); 3] = [(C, SYN), (B, SYN | ACK), (C, ACK)];

    fn open_and(more: &[(Side, u8)]) -> Phase {
        let mut all = [(C, 0); 16];
        all[..3].copy_from_slice(&OPEN);
        all[3..3 + more.len()].copy_from_slice(more);
        after(&all[..3 + more.len()])
    }

    #[test]
    fn a_connection_opens_with_three_segments() {
        assert_eq!(after(&OPEN[..1]), Phase::Dialled);
        assert_eq!(after(&OPEN[..2]), Phase::Answered);
        assert_eq!(after(&OPEN), Phase::Open);
        assert_eq!(after(&[(C, SYN), (C, SYN)]), Phase::Dialled);
    }

    #[test]
    fn a_connection_ends_as_netfilter_sees_it_end() {
        for (a, b) in [(C, B), (B, C)] {
            assert_eq!(open_and(&[(a, FIN | ACK)]), Phase::Closing);
            assert_eq!(open_and(&[(a, FIN | ACK), (b, ACK)]), Phase::HalfClosed);
            assert_eq!(open_and(&[(a, FIN | ACK), (b, ACK), (a, ACK), (b, ACK)]), Phase::HalfClosed);
            let both = [(a, FIN | ACK), (b, ACK), (b, FIN | ACK)];
            assert_eq!(open_and(&both), Phase::LastAck);
            assert_eq!(open_and(&[both[0], both[1], both[2], (a, ACK)]), Phase::TimeWait);
            assert_eq!(open_and(&[(a, FIN | ACK), (b, FIN | ACK), (a, ACK)]), Phase::TimeWait);
        }
    }

    #[test]
    fn a_late_segment_never_opens_an_ended_connection_again() {
        let ended = [(C, FIN | ACK), (B, FIN | ACK), (C, ACK)];
        for late in [ACK, FIN | ACK, SYN | ACK] {
            for side in [C, B] {
                let phase = open_and(&[ended[0], ended[1], ended[2], (side, late)]);
                assert_eq!(phase, Phase::TimeWait, "{side:?} {late}");
            }
        }
    }

    #[test]
    fn a_reset_closes_both_directions_even_before_both_have_greeted() {
        assert_eq!(after(&[(C, SYN), (B, RST | ACK)]), Phase::Closed);
        assert_eq!(after(&[(C, SYN), (C, RST)]), Phase::Closed);
        assert_eq!(open_and(&[(B, RST)]), Phase::Closed);
    }

    #[test]
    fn a_reset_that_its_sender_contradicts_was_not_his() {
        assert_eq!(open_and(&[(B, RST), (B, ACK)]), Phase::Open);
        assert_eq!(open_and(&[(B, RST), (C, ACK)]), Phase::Closed);
    }

    #[test]
    fn one_side_alone_is_never_established() {
        assert_eq!(after(&[(C, ACK), (C, ACK)]), Phase::Dialled, "met in the middle");
        assert_eq!(after(&[(C, ACK), (B, ACK)]), Phase::Open);
    }
}
