//! ingress, egress: packets of devices, where they come in and where they go out.
//!
//! Each part of the decision is a global function (kernel 5.6): the verifier walks it once, for any packet, and the stack
//! of one is free again for the next. They are given nothing but the packet; what one leaves to the next is on the desk
//! of this CPU ([`crate::desk`]).

use aya_ebpf::{
    bindings::__sk_buff, helpers::generated::bpf_redirect, macros::classifier, programs::TcContext,
};
use proxy_common::{
    Reason,
    datapath::{
        arp,
        desk::{Desk, Fate},
        fragment, icmp,
        mark::{after, marked, passed},
        nat, opening,
        packet::{Facts, PacketEnv, left, read},
        parts::{Next, Parts},
        reject,
        sieve::{self, Sight},
    },
    layout::{Device, Position},
};

use crate::{
    count::count,
    desk::{Seated, part},
    frame::Frame,
    kernel::Maps,
    maps::{DEVICES, GATE, MASQUERADE_MARK, NAMESPACE_TAG},
    plane::Around,
};

/// The next program decides.
const NEXT: i32 = -1;
/// The packet ends here.
const SHOT: i32 = 2;

/// Packets that come in: the last program of the device's ingress.
#[classifier]
pub(crate) fn ingress(ctx: TcContext) -> i32 {
    run(ctx.skb.skb, Position::Ingress)
}

/// Packets that go out: the first program of the device's egress.
#[classifier]
pub(crate) fn egress(ctx: TcContext) -> i32 {
    run(ctx.skb.skb, Position::Egress)
}

#[inline(always)]
fn run(skb: *mut __sk_buff, position: Position) -> i32 {
    let mut calls = Calls { skb, position };
    if calls.decide(position) {
        return apply(skb, position);
    }
    count(Reason::NotService);
    NEXT
}

/// The parts as calls.
struct Calls {
    skb: *mut __sk_buff,
    position: Position,
}

impl Calls {
    #[inline(always)]
    fn at(&self) -> u32 {
        self.position as u32
    }
}

impl Parts for Calls {
    #[inline(always)]
    fn passes(&mut self) -> bool {
        let frame = Frame::new(self.skb);
        let ifindex = frame.get(|skb| unsafe { &raw const (*skb).ifindex });
        let sight = Sight {
            ethernet: GATE.get(0).is_some_and(|gate| gate.is_ethernet(ifindex)),
            tagged: frame.get(|skb| unsafe { &raw const (*skb).vlan_present }) != 0,
            marked: frame.get(|skb| unsafe { &raw const (*skb).tc_index }) != 0,
            local_socket: frame.is_local(),
        };
        sieve::passes(&Maps, &Around { skb: self.skb }, &sight, &frame, self.position)
    }
    #[inline(always)]
    fn read(&mut self) -> Next {
        Next::from_number(packet_read(self.skb, self.at()))
    }
    #[inline(always)]
    fn left(&mut self) -> Next {
        Next::from_number(packet_left(self.skb, self.at()))
    }
    #[inline(always)]
    fn complete(&mut self) -> Next {
        Next::from_number(packet_complete(self.skb, self.at()))
    }
    #[inline(always)]
    fn quoted(&mut self) -> Next {
        Next::from_number(packet_quoted(self.skb, self.at()))
    }
    #[inline(always)]
    fn ingress(&mut self) -> Next {
        Next::from_number(packet_ingress(self.skb))
    }
    #[inline(always)]
    fn egress(&mut self) -> Next {
        Next::from_number(packet_egress(self.skb))
    }
    #[inline(always)]
    fn own(&mut self) -> Next {
        Next::from_number(packet_own(self.skb))
    }
    #[inline(always)]
    fn loopback(&mut self) -> Next {
        Next::from_number(packet_loopback(self.skb))
    }
    #[inline(always)]
    fn choose(&mut self) -> Next {
        Next::from_number(packet_choose(self.skb))
    }
    #[inline(always)]
    fn open(&mut self) -> Next {
        Next::from_number(packet_open(self.skb))
    }
    #[inline(always)]
    fn masquerade(&mut self) -> Next {
        Next::from_number(packet_masquerade(self.skb))
    }
    #[inline(always)]
    fn settle(&mut self) -> Next {
        Next::from_number(packet_settle(self.skb, self.at()))
    }
}

#[inline(always)]
fn position(number: u32) -> Position {
    if number == Position::Ingress as u32 { Position::Ingress } else { Position::Egress }
}

#[inline(always)]
fn device<'a>(frame: &Frame) -> Option<&'a Device> {
    let ifindex = frame.get(|skb| unsafe { &raw const (*skb).ifindex });
    // SAFETY: a map's value, read while the program runs.
    unsafe { DEVICES.get(&ifindex) }
}

#[inline(always)]
fn facts<'a>(frame: &Frame, device: &'a Device, position: Position) -> Facts<'a> {
    let index = frame.get(|skb| unsafe { &raw const (*skb).tc_index });
    Facts {
        device,
        for_host: frame.get(|skb| unsafe { &raw const (*skb).pkt_type }) == 0,
        tagged: frame.get(|skb| unsafe { &raw const (*skb).vlan_present }) != 0,
        translated: index == passed(NAMESPACE_TAG.load(), position),
        local_socket: frame.is_local(),
    }
}

/// [`read`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn packet_read(skb: *mut __sk_buff, at: u32) -> u32 {
    let Some(mut desk) = Seated::new(skb) else { return Next::Done as u32 };
    desk.clear();
    let frame = Frame::new(skb);
    frame.gather();
    let Some(device) = device(&frame) else { return desk.pass(Reason::UnknownDevice) as u32 };
    let at = position(at);
    let around = Around { skb };
    desk.now = around.seconds();
    read(&around, &facts(&frame, device, at), &frame, at, &mut desk) as u32
}

/// [`left`], and who asks for a neighbour.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn packet_left(skb: *mut __sk_buff, at: u32) -> u32 {
    let Some(mut desk) = Seated::new(skb) else { return Next::Done as u32 };
    let mut frame = Frame::new(skb);
    let Some(device) = device(&frame) else { return Next::Done as u32 };
    let is_other = desk.reason as u32 == Reason::NotIp as u32;
    if is_other && position(at) as u8 == Position::Egress as u8 && device.header != 0 {
        arp::show_asker(&mut frame, device);
    }
    left(device, &frame, &mut desk) as u32
}

/// [`fragment::complete`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn packet_complete(skb: *mut __sk_buff, at: u32) -> u32 {
    part(skb, |run, desk| fragment::complete(run, desk, position(at)) as u32)
}

/// [`icmp::translate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn packet_quoted(skb: *mut __sk_buff, at: u32) -> u32 {
    part(skb, |run, desk| icmp::translate(run, desk, position(at)) as u32)
}

/// [`Run::ingress`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn packet_ingress(skb: *mut __sk_buff) -> u32 {
    part(skb, |run, desk| run.ingress(desk) as u32)
}

/// [`Run::egress`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn packet_egress(skb: *mut __sk_buff) -> u32 {
    let frame = Frame::new(skb);
    let Some(device) = device(&frame) else { return Next::Done as u32 };
    part(skb, |run, desk| run.egress(&facts(&frame, device, Position::Egress), desk) as u32)
}

/// [`Run::own`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn packet_own(skb: *mut __sk_buff) -> u32 {
    let frame = Frame::new(skb);
    let Some(device) = device(&frame) else { return Next::Done as u32 };
    part(skb, |run, desk| run.own(&facts(&frame, device, Position::Egress), desk) as u32)
}

/// [`Run::loopback_sends`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn packet_loopback(skb: *mut __sk_buff) -> u32 {
    let Some(device) = device(&Frame::new(skb)) else { return Next::Done as u32 };
    part(skb, |run, desk| run.loopback_sends(device, desk) as u32)
}

/// [`opening::choose`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn packet_choose(skb: *mut __sk_buff) -> u32 {
    let frame = Frame::new(skb);
    let Some(device) = device(&frame) else { return Next::Done as u32 };
    part(skb, |run, desk| opening::choose(run, &facts(&frame, device, Position::Ingress), desk) as u32)
}

/// [`Run::open`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn packet_open(skb: *mut __sk_buff) -> u32 {
    part(skb, |run, desk| run.open(desk) as u32)
}

/// [`Run::make_masquerade`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn packet_masquerade(skb: *mut __sk_buff) -> u32 {
    let Some(device) = device(&Frame::new(skb)) else { return Next::Done as u32 };
    part(skb, |run, desk| run.make_masquerade(device, desk) as u32)
}

/// [`fragment::settle`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn packet_settle(skb: *mut __sk_buff, at: u32) -> u32 {
    part(skb, |run, desk| fragment::settle(run, desk, position(at)) as u32)
}

/// Give the packet its new ends.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn packet_rewrite(skb: *mut __sk_buff) -> u32 {
    let Some(desk) = Seated::new(skb) else { return 0 };
    u32::from(nat::whole(&mut Frame::new(skb), &desk.packet, &desk.source, &desk.destination))
}

/// Give what the error quotes its new ends.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn packet_error(skb: *mut __sk_buff, at: u32) -> u32 {
    let Some(desk) = Seated::new(skb) else { return 0 };
    let Desk { packet, outer, source, destination, .. } = &*desk;
    u32::from(nat::error(&mut Frame::new(skb), packet, outer, source, destination, position(at)))
}

/// Make the packet its own refusal.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn packet_refuse(skb: *mut __sk_buff) -> u32 {
    let Some(desk) = Seated::new(skb) else { return 0 };
    u32::from(reject::answer(&mut Frame::new(skb), &desk.packet, &desk.destination.address))
}

/// Leave a mark for the programs of the same position that it meets on other devices of this pass, see
/// [`Facts::translated`].
#[inline(always)]
fn mark(skb: *mut __sk_buff, position: Position, rewrites: bool) {
    let index = Frame::new(skb).get(|skb| unsafe { &raw const (*skb).tc_index });
    let after = after(NAMESPACE_TAG.load(), position, index, rewrites);
    if after != index {
        // SAFETY: the kernel's context is valid while the program runs.
        unsafe { (&raw mut (*skb).tc_index).write_volatile(after) };
    }
}

/// How a packet ends. What this node sends ends without a word: a socket that asks for errors (`IP_RECVERR`) would take
/// a drop here for a full queue (ENOBUFS). A redirect to no device is that on every kernel; tcx knows no `TC_ACT_STOLEN`.
#[inline(always)]
fn end(position: Position) -> i32 {
    if position as u8 == Position::Ingress as u8 {
        return SHOT;
    }
    // SAFETY: no preconditions.
    unsafe { bpf_redirect(0, 0) as i32 }
}

/// Carry the verdict out.
#[inline(always)]
fn apply(skb: *mut __sk_buff, position: Position) -> i32 {
    let Some(desk) = Seated::new(skb) else { return NEXT };
    let reason = desk.reason;
    mark(skb, position, desk.fate as u32 == Fate::Rewrite as u32);
    let result = match desk.fate {
        Fate::Pass => NEXT,
        Fate::Reject if position as u8 == Position::Ingress as u8 && packet_refuse(skb) != 0 => {
            // Back by the device that it came in by.
            let ifindex = Frame::new(skb).get(|skb| unsafe { &raw const (*skb).ifindex });
            // SAFETY: no preconditions.
            unsafe { bpf_redirect(ifindex, 0) as i32 }
        }
        Fate::Drop | Fate::Reject => end(position),
        Fate::Rewrite => {
            let done = if desk.quoted { packet_error(skb, position as u32) } else { packet_rewrite(skb) };
            if done == 0 {
                count(Reason::NotRewritten);
                return SHOT;
            }
            let bits = MASQUERADE_MARK.load();
            if bits != 0 {
                let old = Frame::new(skb).get(|skb| unsafe { &raw const (*skb).mark });
                // SAFETY: the kernel's context is valid while the program runs.
                unsafe { (&raw mut (*skb).mark).write_volatile(marked(&desk, bits, position, old)) };
            }
            NEXT
        }
    };
    count(reason);
    result
}
