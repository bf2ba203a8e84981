//! The keyed hash of a tuple: a strongly universal sum, then a finish that hides that it is one.
//!
//! Clients choose most bits of a tuple, so a fixed hash would let one of them crowd a bucket. SipHash-1-3 is the usual answer; over a
//! tuple it takes eight rounds in a row. The multilinear sum `k0 + Σ k(i)·m(i) mod 2^128`, top half kept, with 128-bit keys and 64-bit
//! words, takes five multiplications that do not wait for each other, and its bound is proven: two different tuples collide in the 64 bits with
//! probability 2^-64 (Dietzfelbinger 1996; Lemire and Kaser, "Strongly universal string hashing is fast", 2014). A sum is linear: who
//! learned by timing that two tuples share a bucket could shift both. The finaliser of SplitMix64 behind it breaks that, and being a
//! bijection adds no collision. The six keys are SipHash-2-4 of a counter under the 128-bit seed, so the seed names the function
//! for good: another process with the same seed reads the same table.

use crate::packet::Tuple;
use crate::random::mix;

pub(in crate::flow) struct TupleHasher {
    keys: [u128; 6],
}

impl TupleHasher {
    pub(in crate::flow) fn new(seed: [u64; 2]) -> TupleHasher {
        let mut keys = [0; 6];
        for (i, key) in keys.iter_mut().enumerate() {
            let counter = 2 * i as u64;
            *key = (u128::from(sip_2_4(seed, counter)) << 64) | u128::from(sip_2_4(seed, counter + 1));
        }
        TupleHasher { keys }
    }

    #[inline]
    pub(in crate::flow) fn hash(&self, tuple: &Tuple) -> u64 {
        let src = u128::from_be_bytes(tuple.src.0);
        let dst = u128::from_be_bytes(tuple.dst.0);
        let rest = (u64::from(tuple.src_port) << 32) | (u64::from(tuple.dst_port) << 16) | u64::from(tuple.protocol);
        let [a, b, c, d, e, start] = self.keys;
        let mut sum = start
            .wrapping_add(b.wrapping_mul(u128::from(src as u64)))
            .wrapping_add(d.wrapping_mul(u128::from(dst as u64)))
            .wrapping_add(e.wrapping_mul(u128::from(rest)));
        // Of IPv4 both are 0 and add nothing.
        if (src >> 64) | (dst >> 64) != 0 {
            sum = sum.wrapping_add(a.wrapping_mul(src >> 64)).wrapping_add(c.wrapping_mul(dst >> 64));
        }
        mix((sum >> 64) as u64)
    }
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012) of the eight bytes of `message`, little-endian.
fn sip_2_4(key: [u64; 2], message: u64) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    for block in [message, 8 << 56] {
        v[3] ^= block;
        sip_round(&mut v);
        sip_round(&mut v);
        v[0] ^= block;
    }
    v[2] ^= 0xff;
    for _ in 0..4 {
        sip_round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn sip_round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Ip;
    use std::hash::Hasher;

    #[test]
    #[allow(deprecated)]
    fn the_keys_are_siphash_2_4_as_the_standard_library_computes_it() {
        for (key, message) in [([0, 0], 0_u64), ([1, 2], 3), ([u64::MAX, 0x0123_4567_89ab_cdef], 0xfedc_ba98)] {
            let mut hasher = std::hash::SipHasher::new_with_keys(key[0], key[1]);
            hasher.write(&message.to_le_bytes());
            assert_eq!(sip_2_4(key, message), hasher.finish());
        }
    }

    #[test]
    fn every_field_and_the_seed_change_the_hash() {
        let tuple = Tuple { src: Ip([1; 16]), dst: Ip([2; 16]), src_port: 3, dst_port: 4, protocol: 6 };
        let hasher = TupleHasher::new([5, 6]);
        let others = [
            Tuple { src: Ip([9; 16]), ..tuple },
            Tuple { dst: Ip([9; 16]), ..tuple },
            Tuple { src_port: 9, ..tuple },
            Tuple { dst_port: 9, ..tuple },
            Tuple { protocol: 17, ..tuple },
            tuple.reversed(),
        ];
        for other in others {
            assert_ne!(hasher.hash(&tuple), hasher.hash(&other), "{other:?}");
        }
        assert_ne!(hasher.hash(&tuple), TupleHasher::new([5, 7]).hash(&tuple));
    }
}
