//! ICMP errors about translated packets. The router that complains quotes the packet as it met it; whoever sent it knows
//! it by other addresses, and would not recognise it. So the quotation is translated, and one end of the error with it,
//! by the flow whose packets go the opposite way, as netfilter does it.

use super::{
    desk::{Desk, Seat},
    packet::{PacketEnv, PacketTables, Run, ends, key_of, number_of},
    parts::Next,
};
use crate::{Reason, layout::Position};

/// What happens to an error or redirect that quotes the packet.
#[inline(always)]
pub fn translate<T: PacketTables, E: PacketEnv, D: Seat>(
    run: &Run<'_, T, E>,
    desk: &mut D,
    position: Position,
) -> Next {
    if desk.outer.source.is_loopback() || desk.outer.destination.is_loopback() {
        return desk.drop(Reason::Martian);
    }
    let Desk { packet, outer, key, .. } = &mut **desk;
    // An error goes to who sent what it quotes; anything else is forged.
    if outer.destination != packet.source.address {
        return desk.pass(Reason::ErrorPlain);
    }
    *key = key_of(&packet.destination, &packet.source, packet.protocol, position);
    if !desk.recall(run, Desk::KNOWN) {
        return desk.pass(Reason::ErrorPlain);
    }
    if desk.outer.is_redirect {
        // The better way that it shows is one for the backend, not for what was dialled.
        return desk.drop(Reason::RedirectDropped);
    }
    let Desk { key, flows, .. } = &**desk;
    match ends(&flows[0].flow, number_of(&flows[0].flow, key)) {
        // What is quoted goes the opposite way.
        Some((source, destination, _)) => desk.rewrite(destination, source, Reason::ErrorTranslated),
        None => desk.pass(Reason::ErrorPlain),
    }
}
