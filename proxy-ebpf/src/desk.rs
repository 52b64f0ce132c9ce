//! The desk of this CPU, and the work on flows that many parts of a decision need, each a function of its own.
//!
//! Programs of a device run in softirq context or with it kept out, to their end, and none of them makes the kernel send
//! another packet meanwhile; so nobody else sits at the desk of this CPU during a run. Nothing on it outlives one.

use core::ops::{Deref, DerefMut};

use aya_ebpf::bindings::__sk_buff;
use proxy_common::{
    Protocol, Reason,
    datapath::{
        claim::Holder,
        desk::{Desk, Seat},
        packet::{PacketEnv, PacketTables, Run},
        repair::Serves,
    },
    layout::Flow,
};

use crate::{frame::Frame, kernel::Maps, maps::DESK, plane::Around};

/// The desk of this CPU, as one part has it.
pub(crate) struct Seated {
    skb: *mut __sk_buff,
    desk: *mut Desk,
}

impl Seated {
    /// Null cannot happen, but the verifier does not know.
    #[inline(always)]
    pub(crate) fn new(skb: *mut __sk_buff) -> Option<Self> {
        // An argument that a function does not use is not given to it (LLVM), and then it is no packet (the verifier).
        Frame::new(skb).get(|skb| unsafe { &raw const (*skb).len });
        Some(Self { skb, desk: DESK.get_ptr_mut(0)? })
    }

    /// Make what lies there a desk: zeroes, or what a run of another version left, are no value of some of it.
    #[inline(always)]
    pub(crate) fn clear(&mut self) {
        // SAFETY: this CPU's own; written before there is a reference.
        unsafe {
            (&raw mut (*self.desk).packet.protocol).write(Protocol::Tcp);
            (&raw mut (*self.desk).key).write(Flow::NONE.dialled_key(Protocol::Tcp));
        }
    }

    #[inline(always)]
    fn work(mut self, work: impl FnOnce(&Run<'_, Maps, Around>, &mut Self) -> u32) -> u32 {
        let around = Around { skb: self.skb };
        match Run::new(&Maps, &around, self.now) {
            Some(run) => work(&run, &mut self),
            None => self.pass(Reason::NoPacketPlane) as u32,
        }
    }
}

impl Deref for Seated {
    type Target = Desk;
    #[inline(always)]
    fn deref(&self) -> &Desk {
        // SAFETY: this CPU's own, see the head of this file; `packet_read` has made it a `Desk`. No reference outlives
        // the call of another part.
        unsafe { &*self.desk }
    }
}

impl DerefMut for Seated {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Desk {
        // SAFETY: as above.
        unsafe { &mut *self.desk }
    }
}

impl Seat for Seated {
    #[inline(always)]
    fn recall<T: PacketTables, E: PacketEnv>(&mut self, _: &Run<'_, T, E>, place: u32) -> bool {
        flow_recall(self.skb, place) != 0
    }
    #[inline(always)]
    fn forget<T: PacketTables, E: PacketEnv>(&mut self, _: &Run<'_, T, E>, place: u32) {
        flow_forget(self.skb, place);
    }
    #[inline(always)]
    fn release<T: PacketTables, E: PacketEnv>(&mut self, _: &Run<'_, T, E>, place: u32, number: u32) {
        flow_release(self.skb, place, number);
    }
    #[inline(always)]
    fn write<T: PacketTables, E: PacketEnv>(&mut self, _: &Run<'_, T, E>, place: u32, number: u32) {
        flow_write(self.skb, place, number);
    }
    #[inline(always)]
    fn ensure<T: PacketTables, E: PacketEnv>(&mut self, _: &Run<'_, T, E>, place: u32, number: u32) -> bool {
        flow_ensure(self.skb, place, number) != 0
    }
    #[inline(always)]
    fn serves<T: PacketTables, E: PacketEnv>(&mut self, _: &Run<'_, T, E>) -> Serves {
        Serves::from_number(flow_serves(self.skb))
    }
    #[inline(always)]
    fn step_aside<T: PacketTables, E: PacketEnv>(&mut self, _: &Run<'_, T, E>) -> bool {
        flow_step_aside(self.skb) != 0
    }
    #[inline(always)]
    fn hold<T: PacketTables, E: PacketEnv>(
        &mut self,
        _: &Run<'_, T, E>,
        number: u32,
        claims: bool,
    ) -> Holder {
        Holder::from_number(flow_hold(self.skb, number, u32::from(claims)))
    }
}

/// Do a part's work, if the agent has written the settings.
#[inline(always)]
pub(crate) fn part(
    skb: *mut __sk_buff,
    work: impl FnOnce(&Run<'_, Maps, Around>, &mut Seated) -> u32,
) -> u32 {
    match Seated::new(skb) {
        Some(seated) => seated.work(work),
        None => 0,
    }
}

/// [`Run::recall`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn flow_recall(skb: *mut __sk_buff, place: u32) -> u32 {
    part(skb, |run, desk| u32::from(run.recall(desk, place)))
}

/// [`Run::forget`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn flow_forget(skb: *mut __sk_buff, place: u32) -> u32 {
    part(skb, |run, desk| {
        run.forget(desk, place);
        0
    })
}

/// [`Run::release`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn flow_release(skb: *mut __sk_buff, place: u32, number: u32) -> u32 {
    part(skb, |run, desk| {
        run.release(desk, place, number);
        0
    })
}

/// [`Run::write`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn flow_write(skb: *mut __sk_buff, place: u32, number: u32) -> u32 {
    part(skb, |run, desk| {
        run.write(desk, place, number);
        0
    })
}

/// [`Run::ensure`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn flow_ensure(skb: *mut __sk_buff, place: u32, number: u32) -> u32 {
    part(skb, |run, desk| u32::from(run.ensure(desk, place, number)))
}

/// [`Run::serves`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn flow_serves(skb: *mut __sk_buff) -> u32 {
    part(skb, |run, desk| run.serves(desk) as u32)
}

/// [`Run::step_aside`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn flow_step_aside(skb: *mut __sk_buff) -> u32 {
    part(skb, |run, desk| u32::from(run.step_aside(desk)))
}

/// [`Run::hold`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn flow_hold(skb: *mut __sk_buff, number: u32, claims: u32) -> u32 {
    part(skb, |run, desk| run.hold(desk, number, claims != 0) as u32)
}
