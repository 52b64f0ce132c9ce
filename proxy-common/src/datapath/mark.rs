//! What a packet bears that the programs have met: in its mark for firewalls, and for each other in `tc_index`.
//!
//! The mark by which a host's firewall knows what is masqueraded: kube-proxy's (spec §2.3, `KUBE-MARK-MASQ`). Its iptables
//! mode accepts in FORWARD what bears it, and hosts whose FORWARD drops by default count on that.
//!
//! From where the packet comes in to where it goes out, as long as the backend has not answered: then the firewall knows
//! the connection. Off again where it goes out, or what is wrapped around it would bear it too.

use super::{desk::Desk, track};
use crate::layout::Position;

/// What `tc_index` says between the programs of one position that meet a packet on several devices in one pass, as on a
/// bridge and its port: that it is translated. No crossing into another network namespace clears that field, so it
/// says of which one it speaks: `tag` is 14 bits that another namespace of this machine, and its agent, has not.
#[inline(always)]
pub const fn passed(tag: u32, position: Position) -> u32 {
    (tag & 0x3fff) << 2 | position as u32
}

/// What `tc_index` says after a program at `position`, which had `index`. What the other position has left is of the past:
/// the packet was routed since. What others have left is theirs.
#[inline(always)]
pub const fn after(tag: u32, position: Position, index: u32, rewrites: bool) -> u32 {
    if rewrites {
        return passed(tag, position);
    }
    let other = match position {
        Position::Ingress => Position::Egress,
        Position::Egress => Position::Ingress,
    };
    if index == passed(tag, other) { 0 } else { index }
}

/// The mark of a packet that was rewritten, which had `old`. `bits`: of the mark; 0: there is none.
#[inline(always)]
pub fn marked(desk: &Desk, bits: u32, position: Position, old: u32) -> u32 {
    let flow = &desk.flows[0].flow;
    if desk.quoted || !flow.is_masqueraded() {
        return old;
    }
    if position as u8 == Position::Egress as u8 {
        return old & !bits;
    }
    let is_asking = flow.backend_state == track::SILENT && desk.destination.address == flow.backend();
    if is_asking { old | bits } else { old }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Address, layout::Flow};

    #[test]
    fn what_is_masqueraded_is_marked_until_it_is_answered_and_only_on_its_way_through() {
        const BITS: u32 = 1 << 14;
        let backend = Address::LOOPBACK_V4;
        let mut desk = Desk::new();
        desk.destination.address = backend;
        desk.flows[0].flow = Flow { backend: backend.octets(), ..Flow::NONE };
        let mark = |desk: &Desk, position| marked(desk, BITS, position, 0x1);
        assert_eq!(mark(&desk, Position::Ingress), 0x1, "it is not masqueraded");
        desk.flows[0].flow.flags = Flow::MASQUERADE;
        assert_eq!(mark(&desk, Position::Ingress), 0x4001);
        assert_eq!(marked(&desk, BITS, Position::Egress, 0x4001), 0x1);
        assert_eq!(marked(&desk, 0, Position::Ingress, 0x1), 0x1, "there is no mark");
        desk.flows[0].flow.backend_state = 1;
        assert_eq!(mark(&desk, Position::Ingress), 0x1, "it is answered");
        desk.flows[0].flow.backend_state = track::SILENT;
        desk.destination.address = Address::LOOPBACK_V6;
        assert_eq!(mark(&desk, Position::Ingress), 0x1, "an answer");
    }

    #[test]
    fn a_pass_is_known_by_its_position_and_its_namespace_and_ends_with_the_other_position() {
        use Position::{Egress, Ingress};
        let positions = [Ingress, Egress];
        for (tag, other) in [(0, 1), (5, 6), (0x3fff, 0x3ffe), (5, 0)] {
            for position in positions {
                let own = passed(tag, position);
                assert!(own != 0 && own <= u32::from(u16::MAX), "tc_index has 16 bits");
                for met in positions {
                    assert_eq!(own == passed(tag, met), met == position);
                    assert_ne!(own, passed(other, met), "of another namespace");
                }
                assert_eq!(after(tag, position, 0, true), own);
                assert_eq!(after(tag, position, own, false), own, "it is still the same pass");
                assert_eq!(after(tag, position, 0, false), 0);
                let opposite = if position as u8 == Ingress as u8 { Egress } else { Ingress };
                assert_eq!(after(tag, opposite, own, false), 0, "another pass");
                assert_eq!(after(other, opposite, own, false), own, "another's is left");
            }
        }
    }
}
