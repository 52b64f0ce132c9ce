//! A decision with all its parts in one place, one after the other: as everybody makes it but the kernel's half, where each is
//! a function of its own.

use super::{
    desk::{Desk, Own},
    fragment, icmp, opening,
    packet::{Facts, PacketEnv, PacketTables, Run, Verdict, left, read},
    parse::{Bytes, ETHERNET, Parsed},
    parts::{Next, Parts},
    sieve::{self, Sight},
};
use crate::{Reason, layout::Position};

/// What a packet at `position` is and what happens to it.
#[inline(always)]
pub fn decide<T: PacketTables, E: PacketEnv, B: Bytes>(
    tables: &T,
    env: &E,
    facts: &Facts<'_>,
    bytes: &B,
    position: Position,
) -> (Verdict, Option<Parsed>) {
    let mut here = Here { tables, env, facts, bytes, position, desk: Own::default() };
    if !here.decide(position) {
        return (Verdict::Pass(Reason::NotService), None);
    }
    let Desk { packet, outer, quoted, .. } = *here.desk;
    let verdict = here.desk.verdict();
    let read = !matches!(verdict, Verdict::Pass(_));
    (verdict, read.then_some(Parsed { packet, outer: quoted.then_some(outer) }))
}

/// All parts in one place, one after the other.
struct Here<'a, T, E, B> {
    tables: &'a T,
    env: &'a E,
    facts: &'a Facts<'a>,
    bytes: &'a B,
    position: Position,
    desk: Own,
}

impl<T: PacketTables, E: PacketEnv, B: Bytes> Here<'_, T, E, B> {
    fn with(&mut self, part: impl FnOnce(&Run<'_, T, E>, &Facts<'_>, &mut Own) -> Next) -> Next {
        match Run::new(self.tables, self.env, self.desk.now) {
            Some(run) => part(&run, self.facts, &mut self.desk),
            None => self.desk.pass(Reason::NoPacketPlane),
        }
    }
}

impl<T: PacketTables, E: PacketEnv, B: Bytes> Parts for Here<'_, T, E, B> {
    fn passes(&mut self) -> bool {
        let sight = Sight {
            ethernet: u32::from(self.facts.device.header) == ETHERNET,
            tagged: self.facts.tagged,
            marked: self.facts.translated,
            local_socket: self.facts.local_socket,
        };
        sieve::passes(self.tables, self.env, &sight, self.bytes, self.position)
    }
    fn read(&mut self) -> Next {
        self.desk.now = self.env.seconds();
        read(self.env, self.facts, self.bytes, self.position, &mut self.desk)
    }
    fn left(&mut self) -> Next {
        left(self.facts.device, self.bytes, &mut self.desk)
    }
    fn complete(&mut self) -> Next {
        let position = self.position;
        self.with(|run, _, desk| fragment::complete(run, desk, position))
    }
    fn quoted(&mut self) -> Next {
        let position = self.position;
        self.with(|run, _, desk| icmp::translate(run, desk, position))
    }
    fn ingress(&mut self) -> Next {
        self.with(|run, _, desk| run.ingress(desk))
    }
    fn egress(&mut self) -> Next {
        self.with(|run, facts, desk| run.egress(facts, desk))
    }
    fn own(&mut self) -> Next {
        self.with(|run, facts, desk| run.own(facts, desk))
    }
    fn loopback(&mut self) -> Next {
        self.with(|run, facts, desk| run.loopback_sends(facts.device, desk))
    }
    fn choose(&mut self) -> Next {
        self.with(|run, facts, desk| opening::choose(run, facts, desk))
    }
    fn open(&mut self) -> Next {
        self.with(|run, _, desk| run.open(desk))
    }
    fn masquerade(&mut self) -> Next {
        self.with(|run, facts, desk| run.make_masquerade(facts.device, desk))
    }
    fn settle(&mut self) -> Next {
        let position = self.position;
        self.with(|run, _, desk| fragment::settle(run, desk, position))
    }
}
