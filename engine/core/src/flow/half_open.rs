//! Caps on the half-open flows of one source, in bounded memory however many sources there are.
//!
//! A counter for each source would be one more table that a flood fills. Here a source has a counter in each of three rows, at places that a
//! keyed hash names, and shares them with others (a count-min sketch: Cormode and Muthukrishnan 2005, with deletion). The smallest of the
//! three is never below its own count, so a cap holds; it is above only where all three are shared. A row has two counters or more for each
//! half-open flow that there can be: of 65,536 flows let 1,024 sources have 64 each, and less than one other in a million meets the cap.

use super::table::hash::TupleHasher;
use crate::packet::{Ip, Tuple};
use crate::random::mix;

const ROWS: usize = 3;
/// Bits of the hash that name a place in one row: a row has at most 2^21 counters.
const PLACE_BITS: u32 = 21;
const PLACES_MIN: usize = 1 << 10;

/// The source has as many half-open flows as one may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceFull;

/// The counters of a source.
#[derive(Clone, Copy, Debug)]
pub struct HalfOpenSource(u64);

/// Half-open flows by source: an IPv4 address, or an IPv6 network of 64 bits, as a host there has as many addresses as it likes.
pub struct HalfOpenSources {
    rows: [Box<[u32]>; ROWS],
    keys: [u64; 2],
    per_source_max: u32,
}

impl HalfOpenSources {
    /// Counters for `half_open_max` flows, of which one source may have `per_source_max` (0 = all). `seed` is random and secret.
    pub fn new(half_open_max: usize, per_source_max: u32, seed: [u64; 2]) -> HalfOpenSources {
        let per_source_max = if per_source_max == 0 { u32::MAX } else { per_source_max };
        let row = || vec![0; places(half_open_max)].into_boxed_slice();
        let hasher = TupleHasher::new(seed);
        let key = |number| hasher.hash(&Tuple { src_port: number, ..Tuple::default() });
        HalfOpenSources { rows: [row(), row(), row()], keys: [key(1), key(2)], per_source_max }
    }

    /// Bytes that counters for `half_open_max` flows take.
    pub fn memory_bytes(half_open_max: usize) -> usize {
        ROWS * places(half_open_max) * size_of::<u32>()
    }

    /// Which counters are those of `address`.
    #[inline]
    pub fn source(&self, address: Ip) -> HalfOpenSource {
        HalfOpenSource(self.hash(address))
    }

    /// `prefetch` is told the lines of the counters of `source`.
    #[inline]
    pub fn prefetch(&self, source: HalfOpenSource, prefetch: impl Fn(*const u8)) {
        for (row, turn) in self.rows.iter().zip(0..) {
            prefetch(std::ptr::from_ref(&row[place(source.0, turn, row.len())]).cast());
        }
    }

    /// Counts one more half-open flow of `source`; to be taken back with [`close`](HalfOpenSources::close).
    ///
    /// # Errors
    /// It has as many as it may have, and nothing is counted.
    #[inline]
    pub fn open(&mut self, source: HalfOpenSource) -> Result<(), SourceFull> {
        let per_source_max = self.per_source_max;
        let mut counters = self.counters(source);
        let flows = counters.iter().map(|counter| **counter).min().unwrap_or(0);
        if flows >= per_source_max {
            return Err(SourceFull);
        }
        counters.iter_mut().for_each(|counter| **counter = counter.saturating_add(1));
        Ok(())
    }

    /// Counts one that was admitted elsewhere, also above the cap.
    pub fn add(&mut self, source: HalfOpenSource) {
        self.counters(source).into_iter().for_each(|counter| *counter = counter.saturating_add(1));
    }

    /// A flow of `source` that was counted is no longer half open.
    pub fn close(&mut self, source: HalfOpenSource) {
        for counter in self.counters(source) {
            debug_assert!(*counter > 0, "closed as often as opened");
            *counter = counter.saturating_sub(1);
        }
    }

    /// Half-open flows of all sources.
    #[cfg(test)]
    pub(crate) fn flows(&self) -> usize {
        self.rows[0].iter().map(|&counter| counter as usize).sum()
    }

    /// A folded product of the words of the address, each hidden by a key; the finish leaves nothing linear.
    #[inline]
    fn hash(&self, source: Ip) -> u64 {
        let bits = u128::from_be_bytes(network(source).0);
        let [high, low] = self.keys;
        let product = u128::from((bits >> 64) as u64 ^ high) * u128::from(bits as u64 ^ low);
        mix((product >> 64) as u64 ^ product as u64)
    }

    #[inline]
    fn counters(&mut self, source: HalfOpenSource) -> [&mut u32; ROWS] {
        let hash = source.0;
        let mut turn = 0;
        self.rows.each_mut().map(|row| {
            let place = place(hash, turn, row.len());
            turn += 1;
            &mut row[place]
        })
    }
}

/// The place of a hash in row `turn` of `len` counters.
#[inline]
fn place(hash: u64, turn: u32, len: usize) -> usize {
    (hash >> (turn * PLACE_BITS)) as usize & (len - 1)
}

/// Counters of a row: a power of two.
fn places(half_open_max: usize) -> usize {
    half_open_max.saturating_mul(2).clamp(PLACES_MIN, 1 << PLACE_BITS).next_power_of_two()
}

/// What counts as one source with `ip`.
fn network(ip: Ip) -> Ip {
    if ip.is_v4() {
        return ip;
    }
    let mut octets = ip.0;
    octets[8..].fill(0);
    Ip(octets)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    const SEED: [u64; 2] = [0x5eed, 0xcafe];

    impl HalfOpenSources {
        fn open_of(&mut self, address: Ip) -> Result<(), SourceFull> {
            self.open(self.source(address))
        }

        fn close_of(&mut self, address: Ip) {
            self.close(self.source(address));
        }
    }

    fn v4(bits: u32) -> Ip {
        Ipv4Addr::from_bits(bits).into()
    }

    #[test]
    fn a_source_gets_its_cap_and_one_for_each_that_ends() {
        let mut sources = HalfOpenSources::new(1_000, 3, SEED);
        for source in [v4(0xc633_6407), Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, 7).into()] {
            for _ in 0..3 {
                assert_eq!(sources.open_of(source), Ok(()));
            }
            assert_eq!(sources.open_of(source), Err(SourceFull));
            sources.close_of(source);
            assert_eq!(sources.open_of(source), Ok(()));
            assert_eq!(sources.open_of(source), Err(SourceFull));
        }
        assert_eq!(sources.open_of(v4(0xc633_6408)), Ok(()));
    }

    #[test]
    fn the_hosts_of_an_ipv6_network_are_one_source() {
        let host = |network, host| Ipv6Addr::new(0x2001, 0xdb8, 0, network, host, 0, 0, host).into();
        let mut sources = HalfOpenSources::new(1_000, 2, SEED);
        assert_eq!(sources.open_of(host(1, 1)), Ok(()));
        assert_eq!(sources.open_of(host(1, 2)), Ok(()));
        assert_eq!(sources.open_of(host(1, 3)), Err(SourceFull));
        assert_eq!(sources.open_of(host(2, 1)), Ok(()));
        sources.close_of(host(1, 9));
        assert_eq!(sources.open_of(host(1, 3)), Ok(()));
    }

    #[test]
    fn without_a_cap_one_source_may_have_all() {
        let mut sources = HalfOpenSources::new(10_000, 0, SEED);
        assert!((0..10_000).all(|_| sources.open_of(v4(1)) == Ok(())));
    }

    #[test]
    fn a_flood_from_many_sources_leaves_room_for_another() {
        // 1,024 sources with 64 flows each, and as many again from a source each.
        let mut sources = HalfOpenSources::new(65_536, 64, SEED);
        for source in 0..1_024 {
            assert!((0..64).all(|_| sources.open_of(v4(source)) == Ok(())));
        }
        let refused = (1 << 24..(1 << 24) + 65_536).filter(|&source| sources.open_of(v4(source)).is_err()).count();
        assert!(refused <= 1, "{refused} of 65,536 others met the cap of the flood");
        assert_eq!(HalfOpenSources::memory_bytes(65_536), 3 * 131_072 * 4);
    }

    proptest! {
        #[test]
        fn no_source_ever_has_more_than_its_cap(
            per_source_max in 1_u32..5,
            steps in prop::collection::vec((any::<bool>(), 0_u32..20), 0..300),
        ) {
            let mut sources = HalfOpenSources::new(100, per_source_max, SEED);
            let mut open: HashMap<u32, u32> = HashMap::new();
            for (opens, source) in steps {
                let flows = open.entry(source).or_default();
                if opens {
                    match sources.open_of(v4(source)) {
                        Ok(()) => *flows += 1,
                        // So few sources share no counter in all three rows.
                        Err(SourceFull) => prop_assert_eq!(*flows, per_source_max),
                    }
                } else if *flows > 0 {
                    sources.close_of(v4(source));
                    *flows -= 1;
                }
                prop_assert!(*flows <= per_source_max);
            }
        }
    }
}
