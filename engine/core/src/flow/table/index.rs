//! The index: from a hash to the flow slots that may be meant, in buckets of one cache line.
//!
//! Each entry has two buckets that it may live in (cuckoo hashing with partial keys, Fan et al. 2014): its home, and one that follows from the
//! home and the tag alone, so that an entry can be moved without reading its flow. A bucket counts the entries that left it; while
//! there are none, which is the rule, a lookup reads one line, else two. Inserting moves at most one other entry: it looks at 22 buckets or fewer.

use std::ops::Range;

/// Entries of a bucket: as many as fit a line of 64 bytes with their tags.
const WAYS: usize = 10;
const ALL_USED: u16 = (1 << WAYS) - 1;
/// Entries per bucket when the table holds all the flows it can: 0.8 of the ways.
const WAYS_FILLED: usize = 8;

/// An entry that lives in its other bucket.
const AWAY: u32 = 1 << 30;
/// The bits of an entry that the table chooses: all but [`AWAY`].
pub(super) const ENTRY_BITS: u32 = !AWAY;

/// Index bytes of one flow, which has two entries.
pub(super) const BYTES_PER_FLOW: usize = 2 * size_of::<Bucket>() / WAYS_FILLED;

pub(super) struct Index {
    buckets: Box<[Bucket]>,
}

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Bucket {
    tags: [u16; WAYS],
    /// Which ways hold an entry.
    used: u16,
    /// Entries whose home this is and that live in their other bucket.
    away: u16,
    entries: [u32; WAYS],
}

const EMPTY: Bucket = Bucket { tags: [0; WAYS], used: 0, away: 0, entries: [0; WAYS] };

/// Where the entry of a hash belongs.
#[derive(Clone, Copy, Default)]
pub(super) struct Place {
    /// Of a bucket.
    home: u32,
    /// Of 16 bits; with those above it, a place has no gaps, and many are cleared at once.
    tag: u32,
}

impl Place {
    #[inline]
    fn home(self) -> usize {
        self.home as usize
    }

    #[inline]
    fn tag(self) -> u16 {
        self.tag as u16
    }
}

/// Which entry may be that of a [`Place`].
#[derive(Clone, Copy)]
pub(super) struct Likely {
    /// The [`matches`](Index::matches) there.
    pub(super) matches: u16,
    /// The first of these entries: nearly always the one that is looked for. Without any, no flow has the slot that it names.
    pub(super) entry: u32,
}

impl Likely {
    /// None.
    pub(super) const NONE: Likely = Likely { matches: 0, entry: ENTRY_BITS };
}

/// No room in either bucket of an entry, nor after one move.
pub(super) struct IndexFull;

impl Index {
    /// An index for `flows` flows.
    pub(super) fn new(flows: usize) -> Index {
        Index { buckets: vec![EMPTY; (2 * flows).div_ceil(WAYS_FILLED).max(2)].into_boxed_slice() }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.buckets)
    }

    /// Where the buckets lie.
    pub(super) fn memory(&self) -> Range<*const u8> {
        let Range { start, end } = self.buckets.as_ptr_range();
        start.cast()..end.cast()
    }

    #[inline]
    pub(super) fn place(&self, hash: u64) -> Place {
        Place { home: self.scale((hash >> 32) as u32) as u32, tag: hash as u32 & 0xffff }
    }

    /// The line that the home bucket is.
    #[inline(always)]
    pub(super) fn line(&self, place: Place) -> *const u8 {
        std::ptr::from_ref(&self.buckets[place.home()]).cast()
    }

    /// The line that the other bucket is, if an entry of `place` may be there.
    #[inline]
    pub(super) fn line_away(&self, place: Place) -> Option<*const u8> {
        let other = || std::ptr::from_ref(&self.buckets[self.other(place.home(), place.tag())]).cast();
        (self.buckets[place.home()].away != 0).then(other)
    }

    /// Reads a word of the home bucket, so that its line is on the way.
    #[inline]
    pub(super) fn touch(&self, place: Place) -> u32 {
        u32::from(self.buckets[place.home()].used)
    }

    /// The ways of the home bucket with the right tag, one bit each.
    #[inline]
    pub(super) fn matches(&self, place: Place) -> u16 {
        self.buckets[place.home()].matches(place.tag())
    }

    /// Whether entries whose home this is live elsewhere.
    #[inline]
    pub(super) fn has_away(&self, place: Place) -> bool {
        self.buckets[place.home()].away != 0
    }

    /// What the tags of the home bucket say of `place`.
    #[inline]
    pub(super) fn likely(&self, place: Place) -> Likely {
        let bucket = &self.buckets[place.home()];
        let matches = bucket.matches(place.tag());
        let entry =
            bucket.entries.get(matches.trailing_zeros() as usize).map_or(ENTRY_BITS, |entry| entry & ENTRY_BITS);
        Likely { matches, entry }
    }

    /// The first entry of `place` in its other bucket, when its home names none.
    #[inline(never)]
    pub(super) fn likely_away(&self, place: Place) -> u32 {
        let other = &self.buckets[self.other(place.home(), place.tag())];
        other.find(place.tag(), AWAY, |_| true).map_or(Likely::NONE.entry, |way| other.entries[way] & ENTRY_BITS)
    }

    /// The entry at `place`, whose [`matches`](Self::matches) these are, of which `is_it` holds.
    #[inline]
    pub(super) fn find(&self, place: Place, matches: u16, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let home = &self.buckets[place.home()];
        if let Some(way) = home.find_among(matches, 0, &is_it) {
            return Some(home.entries[way]);
        }
        if home.away == 0 {
            return None;
        }
        let other = &self.buckets[self.other(place.home(), place.tag())];
        other.find(place.tag(), AWAY, &is_it).map(|way| other.entries[way] & ENTRY_BITS)
    }

    /// Adds an entry; returns whether another one had to move.
    #[inline]
    pub(super) fn insert(&mut self, place: Place, entry: u32) -> Result<bool, IndexFull> {
        let home = &mut self.buckets[place.home()];
        if home.has_room() {
            home.put(place.tag(), entry);
            return Ok(false);
        }
        self.insert_away(place, entry)
    }

    /// The same where there is no room at home.
    #[inline(never)]
    fn insert_away(&mut self, place: Place, entry: u32) -> Result<bool, IndexFull> {
        let (home, tag) = (place.home(), place.tag());
        let other = self.other(home, tag);
        let may_leave = self.buckets[home].away < u16::MAX;
        let mut moved = false;
        let bucket = if may_leave && self.buckets[other].has_room() {
            other
        } else if self.make_room(home) {
            moved = true;
            home
        } else if may_leave && self.make_room(other) {
            moved = true;
            other
        } else {
            return Err(IndexFull);
        };
        if bucket == home {
            self.buckets[home].put(tag, entry);
        } else {
            self.buckets[other].put(tag, entry | AWAY);
            self.buckets[home].away += 1;
        }
        Ok(moved)
    }

    /// Removes an entry that is there.
    pub(super) fn remove(&mut self, place: Place, entry: u32) {
        let (home, tag) = (place.home(), place.tag());
        if let Some(way) = self.buckets[home].find(tag, 0, |found| found == entry) {
            self.buckets[home].used &= !(1 << way);
            return;
        }
        let other = self.other(home, tag);
        let way = self.buckets[other].find(tag, AWAY, |found| found == entry);
        debug_assert!(way.is_some(), "an entry lives in one of its two buckets");
        if let Some(way) = way {
            self.buckets[other].used &= !(1 << way);
            self.buckets[home].away -= 1;
        }
    }

    /// Moves an entry of a full bucket to the other bucket of that entry, if one of them has room there.
    fn make_room(&mut self, bucket: usize) -> bool {
        for way in 0..WAYS {
            let Bucket { tags, entries, away, .. } = &self.buckets[bucket];
            let (tag, entry, away) = (tags[way], entries[way], *away);
            let target = self.other(bucket, tag);
            let leaves_home = entry & AWAY == 0;
            if !self.buckets[target].has_room() || (leaves_home && away == u16::MAX) {
                continue;
            }
            self.buckets[bucket].used &= !(1 << way);
            self.buckets[target].put(tag, entry ^ AWAY);
            if leaves_home {
                self.buckets[bucket].away += 1;
            } else {
                self.buckets[target].away -= 1;
            }
            return true;
        }
        false
    }

    /// The other bucket of an entry with `tag` in `bucket`; the other of the other is `bucket` again.
    #[inline]
    fn other(&self, bucket: usize, tag: u16) -> usize {
        let sum = self.scale(u32::from(tag).wrapping_mul(0x9e37_79b1));
        if sum >= bucket { sum - bucket } else { sum + self.buckets.len() - bucket }
    }

    /// `value` / 2^32 of the buckets.
    #[inline]
    fn scale(&self, value: u32) -> usize {
        ((u64::from(value) * self.buckets.len() as u64) >> 32) as usize
    }
}

impl Bucket {
    /// The ways in use whose tag is `tag`, one bit each.
    #[inline]
    fn matches(&self, tag: u16) -> u16 {
        let mut matches = 0;
        for (way, &there) in self.tags.iter().enumerate() {
            matches |= u16::from(there == tag) << way;
        }
        matches & self.used
    }

    /// The way with this tag and this [`AWAY`] bit of whose entry, without that bit, `is_it` holds.
    #[inline]
    fn find(&self, tag: u16, away: u32, is_it: impl Fn(u32) -> bool) -> Option<usize> {
        self.find_among(self.matches(tag), away, is_it)
    }

    /// The same among these ways.
    #[inline]
    fn find_among(&self, mut matches: u16, away: u32, is_it: impl Fn(u32) -> bool) -> Option<usize> {
        while matches != 0 {
            let way = matches.trailing_zeros() as usize;
            let entry = self.entries[way];
            if entry & AWAY == away && is_it(entry & ENTRY_BITS) {
                return Some(way);
            }
            matches &= matches - 1;
        }
        None
    }

    #[inline]
    fn has_room(&self) -> bool {
        self.used != ALL_USED
    }

    #[inline]
    fn put(&mut self, tag: u16, entry: u32) {
        let way = self.used.trailing_ones() as usize;
        self.used |= 1 << way;
        self.tags[way] = tag;
        self.entries[way] = entry;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;
    use std::collections::BTreeMap;

    #[test]
    fn a_bucket_is_one_cache_line() {
        assert_eq!(size_of::<Bucket>(), 64);
        assert_eq!(BYTES_PER_FLOW, 16);
    }

    #[test]
    fn the_other_of_the_other_bucket_is_the_first() {
        for flows in [1, 5, 1_000, 99_999] {
            let index = Index::new(flows);
            let mut random = SplitMix64::new(7);
            for _ in 0..2_000 {
                let place = index.place(random.next_u64());
                let other = index.other(place.home(), place.tag());
                assert!(other < index.buckets.len());
                assert_eq!(index.other(other, place.tag()), place.home());
            }
        }
    }

    /// A tiny index, filled past its room and emptied over and over, with tags that repeat.
    #[test]
    fn it_agrees_with_a_map_over_random_histories() {
        for seed in 1..=20 {
            let mut random = SplitMix64::new(seed);
            let mut index = Index::new(20);
            let mut model: BTreeMap<u32, Place> = BTreeMap::new();
            let (mut full, mut moves) = (0, 0);
            for entry in 0..3_000 {
                if random.below(20) < 11 {
                    let place = index.place(random.next_u64() & 0xffff_ffff_0000_000f);
                    match index.insert(place, entry) {
                        Ok(moved) => {
                            moves += u32::from(moved);
                            model.insert(entry, place);
                        }
                        Err(IndexFull) => full += 1,
                    }
                } else if let Some((&entry, &place)) = model.iter().nth(random.below(40) as usize) {
                    index.remove(place, entry);
                    model.remove(&entry);
                    assert_eq!(index.find(place, index.matches(place), |found| found == entry), None);
                }
                for (&entry, &place) in &model {
                    assert_eq!(
                        index.find(place, index.matches(place), |found| found == entry),
                        Some(entry),
                        "seed {seed}"
                    );
                }
            }
            assert!(full > 0 && moves > 0, "seed {seed}: the history must reach the limit");
            for (entry, place) in model {
                index.remove(place, entry);
            }
            assert!(index.buckets.iter().all(|bucket| bucket.used == 0 && bucket.away == 0));
        }
    }
}
