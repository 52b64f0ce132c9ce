//! In which order a decision is made. Its parts are functions of their own in the kernel, because the verifier walks each once
//! then, and not once for every way that leads there; everybody else calls them one after the other (`here.rs`).

use crate::layout::Position;

/// The part that has to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Next {
    /// None: the verdict is on the desk.
    Done = 0,
    /// Look for the packet's flow.
    Flow = 1,
    /// The same, for a first fragment.
    First = 2,
    /// A later fragment: get its ports.
    Later = 3,
    /// An error about the packet on the desk.
    Quoted = 4,
    /// There is no flow: is there to be one, and to whom?
    Choose = 5,
    /// Open the flow on the desk.
    Open = 6,
    /// Give the flow on the desk an address for its backend to see.
    Masquerade = 7,
    /// Look whether the answers to a packet of no flow would be taken for another's.
    Own = 8,
    /// Find or make the flow of a packet from the node's loopback.
    Loopback = 9,
}

impl Next {
    /// From a number; what is none of them ends the run.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Flow,
            2 => Self::First,
            3 => Self::Later,
            4 => Self::Quoted,
            5 => Self::Choose,
            6 => Self::Open,
            7 => Self::Masquerade,
            8 => Self::Own,
            9 => Self::Loopback,
            _ => Self::Done,
        }
    }

    #[inline(always)]
    const fn is(self, other: Self) -> bool {
        self as u32 == other as u32
    }
}

/// The parts, each called at most once in a run.
pub trait Parts {
    /// Whether it passes at the first look: [`super::sieve::passes`].
    fn passes(&mut self) -> bool;
    /// Read the packet: [`super::packet::read`].
    fn read(&mut self) -> Next;
    /// Judge what is left as it is: [`super::packet::left`].
    fn left(&mut self) -> Next;
    /// Give a later fragment its ports: [`super::fragment::complete`].
    fn complete(&mut self) -> Next;
    /// Judge an ICMP error: [`super::icmp::translate`].
    fn quoted(&mut self) -> Next;
    /// Find the flow before routing: `Run::ingress`.
    fn ingress(&mut self) -> Next;
    /// Find the flow after routing: `Run::egress`.
    fn egress(&mut self) -> Next;
    /// Remember what the node begins: `Run::own`.
    fn own(&mut self) -> Next;
    /// Find or make the flow of what loopback sends: `Run::loopback_sends`.
    fn loopback(&mut self) -> Next;
    /// Choose for a new flow: [`super::opening::choose`].
    fn choose(&mut self) -> Next;
    /// Open it: `Run::open`.
    fn open(&mut self) -> Next;
    /// Give it an address for the backend to see: `Run::make_masquerade`.
    fn masquerade(&mut self) -> Next;
    /// Judge a fragment: [`super::fragment::settle`].
    fn settle(&mut self) -> Next;

    /// Decide. False: the packet passes ([`Reason::NotService`](crate::Reason::NotService)), and no verdict is on the desk.
    #[inline(always)]
    fn decide(&mut self, position: Position) -> bool {
        if self.passes() {
            return false;
        }
        let read = self.read();
        if read.is(Next::Done) {
            self.left();
            return true;
        }
        let mut next = if read.is(Next::Later) { self.complete() } else { read };
        if next.is(Next::Quoted) {
            self.quoted();
        }
        if next.is(Next::Done) || next.is(Next::Quoted) {
            return true;
        }
        if position as u8 == Position::Ingress as u8 {
            if !next.is(Next::Choose) {
                next = self.ingress();
            }
            next = if next.is(Next::Choose) { self.choose() } else { next };
            if next.is(Next::Open) {
                self.open();
            }
        } else {
            next = self.egress();
            next = if next.is(Next::Own) { self.own() } else { next };
            next = if next.is(Next::Loopback) { self.loopback() } else { next };
            if next.is(Next::Masquerade) {
                self.masquerade();
            }
        }
        if read.is(Next::First) || read.is(Next::Later) {
            self.settle();
        }
        true
    }
}
