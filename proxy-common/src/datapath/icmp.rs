//! ICMP errors about translated packets. The router that complains quotes the packet as it met it; whoever sent it knows
//! it by other addresses, and would not recognise it. So the quotation is translated, and one end of the error with it,
//! by the flow whose packets go the opposite way, as netfilter does it.

use super::{
    packet::{PacketEnv, PacketTables, Run, Verdict, ends, key_of},
    parse::{Outer, Packet},
};
use crate::{Reason, layout::Position};

/// What happens to an error or redirect that quotes `packet`.
#[inline(always)]
pub fn translate<T: PacketTables, E: PacketEnv>(
    run: &Run<'_, T, E>,
    packet: &Packet,
    outer: &Outer,
    position: Position,
) -> Verdict {
    // An error goes to who sent what it quotes; anything else is forged.
    if outer.destination != packet.source.address {
        return Verdict::Pass(Reason::ErrorPlain);
    }
    let key = key_of(&packet.destination, &packet.source, packet.protocol, position);
    let Some(known) = run.recall(&key) else { return Verdict::Pass(Reason::ErrorPlain) };
    if outer.is_redirect {
        // The better way that it shows is one for the backend, not for what was dialled.
        return Verdict::Drop(Reason::RedirectDropped);
    }
    match ends(&known.flow, &key) {
        // What is quoted goes the opposite way.
        Some((source, destination, _)) => {
            Verdict::Rewrite { source: destination, destination: source, reason: Reason::ErrorTranslated }
        }
        None => Verdict::Pass(Reason::ErrorPlain),
    }
}
