//! The keyed hash of a tuple: folded multiplications under secret keys.
//!
//! Clients choose most bits of a tuple, so a fixed hash would let one of them crowd a bucket. A folded multiplication (`x·y`, both halves of
//! the 128-bit product) mixes 64 bits with 64 others, each hidden by a key beforehand; two in a row, as wyhash does it, leave nothing linear between
//! the tuple and the result. No proof bounds its collisions, as one does those of SipHash or of a multilinear sum. It need not: nobody sees
//! a hash, and what a collision does is bounded by the index. An entry has two buckets of ten, told apart by 16 more bits; when both are
//! full the flow is refused and counted, and a lookup reads two lines at most however many entries collide. So who found the keys out could keep some
//! tuples from opening, not slow the table down. In return a tuple of IPv4 costs a dozen instructions.
//!
//! The keys are SipHash-2-4 of a counter under the 128-bit seed, so the seed names the function for good: another process with the same
//! seed reads the same table.

use crate::packet::{Tuple, TupleV4};

pub(in crate::flow) struct TupleHasher {
    keys: [u64; 4],
    /// What folds IPv6 addresses.
    wide_keys: [u64; 3],
}

impl TupleHasher {
    pub(in crate::flow) fn new(seed: [u64; 2]) -> TupleHasher {
        let key = |counter| sip_2_4(seed, counter);
        TupleHasher { keys: [0, 1, 2, 3].map(key), wide_keys: [4, 5, 6].map(key) }
    }

    #[inline]
    pub(in crate::flow) fn hash(&self, tuple: &Tuple) -> u64 {
        match TupleV4::of(tuple) {
            Some(v4) => self.hash_v4(v4, tuple.protocol),
            None => self.finish(self.fold_addresses(tuple), tuple.wire_ports(), tuple.protocol),
        }
    }

    /// The same of a tuple of IPv4.
    #[inline]
    pub(in crate::flow) fn hash_v4(&self, tuple: TupleV4, protocol: u8) -> u64 {
        self.finish(tuple.addresses, tuple.ports, protocol)
    }

    /// The addresses of IPv6 in as many bits as those of IPv4 take.
    fn fold_addresses(&self, tuple: &Tuple) -> u64 {
        let words = |octets| {
            let bits = u128::from_be_bytes(octets);
            [(bits >> 64) as u64, bits as u64]
        };
        let ([src_high, src_low], [dst_high, dst_low]) = (words(tuple.src.0), words(tuple.dst.0));
        let [a, b, c] = self.wide_keys;
        let src = fold(product(src_high ^ a, src_low ^ b));
        fold(product(src ^ dst_high, dst_low ^ c))
    }

    #[inline]
    fn finish(&self, addresses: u64, ports: u32, protocol: u8) -> u64 {
        let [a, b, c, d] = self.keys;
        let rest = u64::from(ports) | u64::from(protocol) << 32;
        let [low, high] = product(addresses ^ a, rest ^ b);
        fold(product(low ^ c, high ^ d))
    }
}

/// Both halves of the product.
#[inline]
fn product(a: u64, b: u64) -> [u64; 2] {
    let product = u128::from(a) * u128::from(b);
    [product as u64, (product >> 64) as u64]
}

#[inline]
fn fold([low, high]: [u64; 2]) -> u64 {
    low ^ high
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
            Tuple { src: tuple.dst, dst: tuple.src, ..tuple },
        ];
        for other in others {
            assert_ne!(hasher.hash(&tuple), hasher.hash(&other), "{other:?}");
        }
        assert_ne!(hasher.hash(&tuple), TupleHasher::new([5, 7]).hash(&tuple));
    }
}
