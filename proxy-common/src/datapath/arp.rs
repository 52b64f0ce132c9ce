//! Who asks for the way: before a packet from loopback leaves for a neighbour, the kernel asks for that one's MAC address, and names as the
//! asker the packet's source. Nobody answers 127.0.0.1. The packet's source is changed as it leaves, which is later; so is this.

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::nat::Edit;
use crate::layout::Device;

/// RFC 826, of Ethernet and IPv4, behind the Ethernet header's addresses.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Arp {
    kind: u16,
    hardware: u16,
    protocol: u16,
    lengths: [u8; 2],
    operation: u16,
    mac: [u8; 6],
    sender: [u8; 4],
}

/// Offset of that, and of the sender's address.
const AT: u32 = 12;
const SENDER: u32 = 28;

/// Let a question that this node sends from loopback be one from the device's address, or from nobody (RFC 5227's probe) if it has none.
/// False: it could not be changed.
#[inline(always)]
pub fn show_asker<B: Edit>(bytes: &mut B, device: &Device) -> bool {
    let Some(arp) = bytes.load::<Arp>(AT) else { return true };
    let is_v4 = arp.kind == 0x0806_u16.to_be() && arp.protocol == 0x0800_u16.to_be() && arp.lengths == [6, 4];
    if !is_v4 || arp.sender[0] != 127 {
        return true;
    }
    let [.., a, b, c, d] = device.masquerade_v4;
    bytes.store(SENDER, &[a, b, c, d])
}
