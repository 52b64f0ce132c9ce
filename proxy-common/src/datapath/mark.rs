//! The mark by which a host's firewall knows what is masqueraded: kube-proxy's (spec §2.3, `KUBE-MARK-MASQ`). Its iptables
//! mode accepts in FORWARD what bears it, and hosts whose FORWARD drops by default count on that.
//!
//! From where the packet comes in to where it goes out, as long as the backend has not answered: then the firewall knows
//! the connection. Off again where it goes out, or what is wrapped around it would bear it too.

use super::{desk::Desk, track};
use crate::layout::Position;

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
}
