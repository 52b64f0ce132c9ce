//! A seeded hash of addresses: what chooses for a flow, so that whoever forgets it chooses the same again.

use super::Endpoint;

/// A hash that is being fed. Without the seed nobody outside can choose what collides.
#[derive(Clone, Copy, Debug)]
pub struct Hash(u64);

impl Hash {
    /// Begin with the node's seed.
    #[inline(always)]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Feed a word: a multiplication by the golden ratio's bits, and the high half folded into the low.
    #[inline(always)]
    pub const fn word(self, word: u64) -> Self {
        let mixed = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(mixed ^ (mixed >> 32))
    }

    /// Feed an address and a port.
    #[inline(always)]
    pub const fn endpoint(self, endpoint: &Endpoint) -> Self {
        let (high, low) = endpoint.address.order();
        self.word(high).word(low).word(endpoint.port as u64)
    }

    /// 32 bits, each of them depending on all that was fed (MurmurHash3's last step).
    #[inline(always)]
    pub const fn finish(self) -> u32 {
        let mut x = self.0;
        x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        (x >> 32) as u32
    }
}
