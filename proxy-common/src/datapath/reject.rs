//! The answer to a packet that nobody serves: ICMP port unreachable, as netfilter's REJECT sends it by default for every
//! protocol (kube-proxy spec §2.5). The packet itself becomes the answer: it is cut, a header is put before it, and it
//! goes back by the way it came.

use super::{
    csum::{Difference, crc32c_word},
    nat::Edit,
    parse::{Bytes, ETHERNET, Packet},
};
use crate::{Address, Protocol};

/// A packet whose length can be changed. False: the kernel could not, and the packet must be dropped.
pub trait Reshape: Edit {
    /// Let it end after `length` bytes.
    fn cut(&mut self, length: u32) -> bool;
    /// Make room of `count` bytes between the layer-2 header and the IP header.
    fn insert(&mut self, count: u32) -> bool;
    /// [`sum`] of its words, which a program has apart: the verifier would walk all that follows once for each number of them.
    #[inline(always)]
    fn sum(&self, offset: u32, words: u32) -> Option<u32>
    where
        Self: Sized,
    {
        sum(self, offset, words)
    }
}

/// What fits into 576 bytes with both headers (RFC 1812 §4.3.2.3), in words.
const QUOTED_V4: u32 = 548 / 4;
/// What fits into 1280 bytes (RFC 4443 §2.4 c), in words.
const QUOTED_V6: u32 = 1232 / 4;
/// SCTP's header, a chunk's, and the tag of an INIT, by which Linux knows whose error it is (`sctp_err_lookup`); in words.
const QUOTED_SCTP: u32 = 20 / 4;
const ICMP: u32 = 8;
/// Hops that it may take, as Linux' own packets.
const LIFETIME: u8 = 64;
/// Class of service: "internetwork control", as Linux' own errors.
const SERVICE: u8 = 0xc0;

/// Turn a packet into its refusal by `from`. False: it can't be answered.
#[inline(always)]
pub fn answer<B: Reshape>(bytes: &mut B, packet: &Packet, from: &Address) -> bool {
    let to = packet.source.address;
    if !is_somebody(&to) {
        return false;
    }
    let (header, most) = if packet.v4 { (20, QUOTED_V4) } else { (40, QUOTED_V6) };
    let whole = packet.end.wrapping_sub(packet.l3) / 4;
    let mut words = if whole < most { whole } else { most };
    let l3 = packet.l3;
    if packet.protocol as u8 == Protocol::Sctp as u8
        && packet.has_ports()
        && bytes.load::<u32>(packet.l4 + 8) == Some(0)
    {
        // What completes the checksum runs over all that is quoted.
        words = packet.l4.wrapping_sub(l3) / 4 + QUOTED_SCTP;
        if words > whole {
            return false;
        }
    }
    if !bytes.cut(l3 + 4 * words) || !bytes.insert(header + ICMP) {
        return false;
    }
    if l3 == ETHERNET {
        let Some([receiver, sender]) = bytes.load::<[[u16; 3]; 2]>(0) else { return false };
        if !bytes.store(0, &[sender, receiver]) {
            return false;
        }
    }
    let icmp = l3 + header;
    let Some(sum) = bytes.sum(icmp + ICMP, words) else { return false };
    let sum = add(Difference::NONE, sum);
    let Some(sum) = settle(bytes, packet, icmp + ICMP, words, sum) else { return false };
    let length = ICMP + 4 * words;
    let kind = if packet.v4 { [3, 3, 0, 0] } else { [1, 4, 0, 0] };
    let mut sum = add(sum, u32::from_ne_bytes(kind));
    let done = if packet.v4 {
        store_v4(bytes, l3, from, &to, 20 + length)
    } else {
        // RFC 8200 §8.1: a pseudo header.
        sum = add(add(sum, length.to_be()), 58_u32.to_be());
        let nobody = Address::from_words([u32::MAX; 4]).words();
        sum = sum.words(&nobody, &from.words()).words(&nobody, &to.words());
        store_v6(bytes, l3, from, &to, length)
    };
    // A field of ones adds nothing.
    let [high, low] = sum.applied(u16::MAX).to_ne_bytes();
    done && bytes.store(icmp, &[u32::from_ne_bytes([kind[0], kind[1], high, low]), 0])
}

/// A quoted checksum that was left to a network card is a sum of addresses only. The kernel still means to complete it, where
/// it lies in the quotation now, if the device that the answer leaves by can't: under the answer's own checksum. So the
/// field gets the value that completing it does not change. (Of SCTP's CRC there is none as a rule: all such values of one length
/// have one parity. It is zero until it is completed, so the sum is made for what it will be; who meets the answer before leaves
/// the sum unchecked, as of all packets that are to be completed.) `at`: where the quotation begins; `sum`: that of its words, and
/// what it becomes.
#[inline(always)]
fn settle<B: Reshape>(
    bytes: &mut B,
    packet: &Packet,
    at: u32,
    words: u32,
    sum: Difference,
) -> Option<Difference> {
    /// An IPv4 header with all options, in words; an IPv6 header and some extensions.
    const MOST: u32 = 16;
    let header = packet.l4.wrapping_sub(packet.l3) / 4;
    let offset = match packet.protocol {
        Protocol::Udp => 6,
        Protocol::Tcp => 16,
        Protocol::Sctp if packet.has_ports() => return complete(bytes, at + 4 * header, sum),
        // Whatever checksum it has is complete.
        Protocol::Sctp => return Some(sum),
    };
    let field = 4 * header + offset;
    if header > MOST || field + 2 > 4 * words {
        return Some(sum);
    }
    let old = bytes.load::<u16>(at + field)?;
    let nobody = Address::from_words([u32::MAX; 4]).words();
    let pseudo = add(Difference::NONE, packet.end.wrapping_sub(packet.l4).to_be())
        .words(&nobody, &packet.source.address.words())
        .words(&nobody, &packet.destination.address.words());
    let pseudo = add(pseudo, u32::from(packet.protocol as u8).to_be());
    if !pseudo.applied(u16::MAX) != old {
        return Some(sum);
    }
    // What it will cover: all that is quoted but the IP header and itself.
    let rest = sum.half(old, 0).word(bytes.sum(at, header)?, 0);
    // c is still if c = -(rest + c) modulo 65 535, so 2c = -rest; the kernel writes ones for zero.
    let twice = u32::from(rest.applied(u16::MAX));
    let still = ((twice + (twice & 1) * 0xffff) >> 1) as u16;
    let still = if still == 0 { u16::MAX } else { still };
    if bytes.store(at + field, &still) { Some(sum.half(old, still)) } else { None }
}

/// The sum with SCTP's checksum, if that is to be completed.
#[inline(always)]
fn complete<B: Reshape>(bytes: &B, at: u32, sum: Difference) -> Option<Difference> {
    if bytes.load::<u32>(at + 8)? != 0 {
        return Some(sum);
    }
    let mut register = u32::MAX;
    let mut i = 0;
    while i < QUOTED_SCTP {
        register = crc32c_word(register, bytes.load::<u32>(at + 4 * i)?);
        i += 1;
    }
    // It lies there with its lowest byte first.
    Some(sum.word(0, (!register).to_le()))
}

/// RFC 1122 §3.2.2: no error to whom cannot be a single host.
#[inline(always)]
fn is_somebody(address: &Address) -> bool {
    let octets = address.octets();
    let many = if address.is_v4() { octets[12] >= 224 } else { octets[0] == 0xff };
    !many && !address.is_unspecified() && !address.is_loopback()
}

#[inline(always)]
fn add(sum: Difference, word: u32) -> Difference {
    sum.word(u32::MAX, word)
}

/// One's complement sum of so many words of a packet, as [`Difference::sum`]; of no more than are ever quoted.
#[inline(always)]
pub fn sum<B: Bytes>(bytes: &B, offset: u32, words: u32) -> Option<u32> {
    let mut sum = Difference::NONE;
    let mut i = 0;
    while i < QUOTED_V6 {
        if i >= words {
            break;
        }
        sum = add(sum, bytes.load::<u32>(offset + 4 * i)?);
        i += 1;
    }
    Some(sum.sum())
}

#[inline(always)]
fn store_v4<B: Reshape>(bytes: &mut B, l3: u32, from: &Address, to: &Address, length: u32) -> bool {
    let [high, low] = (length as u16).to_be_bytes();
    let first = u32::from_ne_bytes([0x45, SERVICE, high, low]);
    // It is never to be fragmented, and needs no identification then (RFC 6864 §4).
    let second = u32::from_ne_bytes([0, 0, 0x40, 0]);
    let (from, to) = (from.v4_word(), to.v4_word());
    let third = u32::from_ne_bytes([LIFETIME, 1, 0, 0]);
    let sum = add(add(add(add(add(Difference::NONE, first), second), third), from), to);
    let [high, low] = sum.applied(u16::MAX).to_ne_bytes();
    bytes.store(l3, &[first, second, u32::from_ne_bytes([LIFETIME, 1, high, low]), from, to])
}

#[inline(always)]
fn store_v6<B: Reshape>(bytes: &mut B, l3: u32, from: &Address, to: &Address, length: u32) -> bool {
    let [high, low] = (length as u16).to_be_bytes();
    let head = [u32::from_ne_bytes([0x60, 0, 0, 0]), u32::from_ne_bytes([high, low, 58, LIFETIME])];
    bytes.store(l3, &head) && bytes.store(l3 + 8, &from.words()) && bytes.store(l3 + 24, &to.words())
}
