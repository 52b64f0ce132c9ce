//! What a checksum becomes when some of the bytes under it change: one's complement differences (RFC 1624) and, for
//! SCTP, the linear update of a CRC32c (RFC 9260 appendix A). Nothing is summed anew: the rest of the packet is not read.

/// The difference that changed words make to a one's complement sum, before it is folded: what `bpf_csum_diff` gives and
/// `bpf_l4_csum_replace` takes. Words are as they lie in memory; the sum knows no byte order (RFC 1071 §2 B).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference(u64);

impl Difference {
    /// Nothing changed.
    pub const NONE: Self = Self(0);

    /// A 4-byte word at an even offset became another.
    #[inline(always)]
    pub const fn word(self, old: u32, new: u32) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// A 2-byte word at an even offset became another.
    #[inline(always)]
    pub const fn half(self, old: u16, new: u16) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// Four words changed, as of an IPv6 address.
    #[inline(always)]
    pub const fn words(self, old: &[u32; 4], new: &[u32; 4]) -> Self {
        self.word(old[0], new[0]).word(old[1], new[1]).word(old[2], new[2]).word(old[3], new[3])
    }

    /// Two differences together.
    #[inline(always)]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// As 32 bits: the form that the kernel's helpers take.
    #[inline(always)]
    pub const fn sum(self) -> u32 {
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        ((once & 0xffff_ffff) + (once >> 32)) as u32
    }

    /// What a checksum field becomes, both as they lie in memory (RFC 1624 equation 3).
    #[inline(always)]
    pub const fn applied(self, field: u16) -> u16 {
        let sum = self.sum() as u64 + (!field) as u64;
        let once = (sum & 0xffff) + (sum >> 16);
        let twice = (once & 0xffff) + (once >> 16);
        !(((twice & 0xffff) + (twice >> 16)) as u16)
    }
}

/// CRC32c's polynomial (Castagnoli), bits reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// x to the power 8·2^k modulo the polynomial: what appends 2^k zero bytes. 16 of them reach every IP packet.
const APPEND: [u32; 16] = append();
/// The polynomial 1 in reflected bits.
const ONE: u32 = 0x8000_0000;

const fn append() -> [u32; 16] {
    let mut table = [0; 16];
    // x^8: bit 31 is x^0.
    let mut power = ONE >> 8;
    let mut k = 0;
    while k < 16 {
        table[k] = power;
        power = times(power, power);
        k += 1;
    }
    table
}

/// Product modulo the polynomial, without a branch in the loop.
#[inline(always)]
const fn times(a: u32, b: u32) -> u32 {
    let (mut product, mut shifted) = (0, b);
    let mut i = 0;
    while i < 32 {
        product ^= shifted & (0_u32.wrapping_sub((a >> (31 - i)) & 1));
        shifted = (shifted >> 1) ^ (POLYNOMIAL & 0_u32.wrapping_sub(shifted & 1));
        i += 1;
    }
    product
}

/// What becomes of four bits of a register that leave it. Looked up, not computed: where the verifier knows such bits as a
/// mask, it follows both of its values (kernel 6.15), and would do so for each bit of a message.
const NIBBLES: [u32; 16] = nibbles();

const fn nibbles() -> [u32; 16] {
    let mut table = [0; 16];
    let mut nibble = 0;
    while nibble < 16 {
        let mut register = nibble as u32;
        let mut bit = 0;
        while bit < 4 {
            register = (register >> 1) ^ (POLYNOMIAL & 0_u32.wrapping_sub(register & 1));
            bit += 1;
        }
        table[nibble] = register;
        nibble += 1;
    }
    table
}

/// CRC32c's register after four more bytes (a word as it lies in memory). It begins with ones, and its complement is the CRC.
#[inline(always)]
pub const fn crc32c_word(register: u32, word: u32) -> u32 {
    let mut register = register ^ word.to_le();
    let mut nibble = 0;
    while nibble < 8 {
        register = (register >> 4) ^ NIBBLES[(register & 15) as usize];
        nibble += 1;
    }
    register
}

/// What to exclusive-or into the CRC32c of a message when its first four bytes change from `old` to `new` (as numbers
/// of network byte order: SCTP's two ports) and `rest` bytes follow them.
///
/// A CRC is linear: two messages of one length differ in it by the CRC, begun with zero, of their difference; and the
/// difference is four bytes followed by zeros.
#[inline(always)]
pub const fn crc32c_change(old: u32, new: u32, rest: u32) -> u32 {
    // Four bytes into an empty register: the first byte's lowest bit goes first, and each is shifted by 32.
    let mut crc = times((old ^ new).swap_bytes(), APPEND[2]);
    let mut k = 0;
    while k < 16 {
        let factor = if (rest >> k) & 1 == 1 { APPEND[k] } else { ONE };
        crc = times(crc, factor);
        k += 1;
    }
    crc
}

#[cfg(test)]
mod tests {
    extern crate std;
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    use super::*;

    /// RFC 1071, from scratch.
    fn checksum(bytes: &[u8]) -> u16 {
        let mut sum: u64 =
            bytes.chunks(2).map(|c| u64::from(u16::from_be_bytes([c[0], *c.get(1).unwrap_or(&0)]))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    /// CRC32c bit by bit, from scratch.
    fn crc32c(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            }
        }
        !crc
    }

    #[test]
    fn the_check_value_of_crc32c_is_the_published_one() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn a_checksum_follows_the_bytes_that_change(mut bytes in prop::collection::vec(any::<u8>(), 24..80), new in any::<[u8; 8]>()) {
            let before = checksum(&bytes);
            let native = |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
            let half = |bytes: &[u8], at: usize| u16::from_ne_bytes(bytes[at..at + 2].try_into().unwrap());
            let old = bytes.clone();
            bytes[4..12].copy_from_slice(&new);
            let difference = Difference::NONE
                .word(native(&old, 4), native(&bytes, 4))
                .half(half(&old, 8), half(&bytes, 8))
                .half(half(&old, 10), half(&bytes, 10));
            let after = u16::from_be(difference.applied(before.to_be()));
            // Zero has two forms.
            prop_assert!(after == checksum(&bytes) || (after ^ checksum(&bytes)) == 0xffff);
        }

        #[test]
        fn a_crc_follows_the_ports_that_change(old in any::<[u8; 4]>(), new in any::<[u8; 4]>(), rest in prop::collection::vec(any::<u8>(), 0..3000)) {
            let message = |ports: &[u8; 4]| -> Vec<u8> { [&ports[..], &rest].concat() };
            let change = crc32c_change(u32::from_be_bytes(old), u32::from_be_bytes(new), rest.len() as u32);
            prop_assert_eq!(crc32c(&message(&old)) ^ change, crc32c(&message(&new)));
        }
    }

    #[test]
    fn a_crc_word_by_word_is_that_of_the_bytes() {
        let bytes: [u8; 20] = core::array::from_fn(|i| 7 * i as u8 + 1);
        let words = bytes.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap()));
        assert_eq!(!words.fold(u32::MAX, crc32c_word), crc32c(&bytes));
    }

    #[test]
    fn the_longest_packet_has_its_crc_too() {
        let rest = vec![0x5a; 65_531];
        let crc = |ports: [u8; 4]| crc32c(&[&ports[..], &rest].concat());
        let change = crc32c_change(0x0102_0304, 0x7777_8888, rest.len() as u32);
        assert_eq!(crc([1, 2, 3, 4]) ^ change, crc([0x77, 0x77, 0x88, 0x88]));
    }
}
