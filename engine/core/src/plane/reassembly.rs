//! Fragments that wait for the others of their packet: in any order, each octet once, in memory that does not grow.
//!
//! A packet is put together whole, since only the first fragment names its ports, and is cut again when it leaves. A fragment that overlaps another
//! one refuses its whole packet (RFC 5722, RFC 8900 section 3.3); a copy of one that is there is let go (RFC 8200 section 4.5). Where there is
//! no room the oldest packet gives way: one that arrives at all arrives within milliseconds, and whoever sends halves of packets pushes out their own.

use super::PortId;
use crate::Now;
use crate::packet::cut::{CUT_HEADERS_MAX, without_fragment_header};
use crate::packet::{DropReason, ETHERNET_LEN, Fragment, FragmentKey, Ip, checksum};
use crate::random::mix;

/// Packets that are waited for at a time.
pub(super) const SETS_MAX: usize = 1_024;
/// Pieces of memory for their fragments: 4 MiB.
pub(super) const SLOTS_MAX: usize = 2_048;
/// Octets of one: a fragment of the usual MTU.
const SLOT_BYTES: usize = 2_048;
/// Fragments of one packet: the longest there is, over a link that carries 576 octets.
pub(super) const FRAGMENTS_MAX: u16 = 128;
/// How long a packet is waited for, counted from its first fragment to arrive. A minute at most is what RFC 1122 section 3.3.2 and RFC 8200 section
/// 4.5 allow; at rates of today identifications come round sooner (RFC 4963), so it is the half.
pub(super) const WAIT_MS: u64 = 30_000;
/// Octets of the longest frame: Ethernet, an IPv6 header, and as much behind it as that can say.
const WHOLE_BYTES_MAX: usize = ETHERNET_LEN + IPV6_LEN + u16::MAX as usize;

const IPV6_LEN: usize = 40;
/// Where the IPv4 header has flags and offset, in octets from the start of the frame.
const FLAGS_AND_OFFSET: usize = ETHERNET_LEN + 6;
const DONT_FRAGMENT: u8 = 0x40;

/// What the fragments said about congestion, a bit for each code point of RFC 3168 section 5.
const NOT_CAPABLE: u8 = 1 << 0;
const CONGESTED: u8 = 1 << 3;

/// No set, or no slot.
const NONE: u32 = u32::MAX;

/// What became of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gathered {
    /// It is there already.
    Copy,
    /// Others are missing.
    Kept,
    /// It was the last one that was missing: the packet is in [`Reassembly::buffer`].
    Whole(Whole),
}

/// A packet that was put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Whole {
    /// Octets of its frame.
    pub(super) octets: usize,
    /// Where its first fragment came in.
    pub(super) port: PortId,
    /// Octets of the largest packet among the fragments.
    pub(super) largest: u32,
}

/// A packet that did not become whole in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GivenUp {
    /// Where it went to.
    pub(super) dst: Ip,
    /// Where its first fragment came in, and the octets of that one's frame, which is in [`Reassembly::buffer`]; `None` when it never came.
    pub(super) first: Option<(PortId, usize)>,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ReassemblyCounts {
    /// Fragments that had been kept and were dropped, whatever for.
    pub(super) given_up: u64,
    /// Of these, those that gave way to fragments of other packets.
    pub(super) pushed_out: u64,
}

#[derive(Clone, Copy, Debug)]
struct Set {
    key: FragmentKey,
    /// The link that they come in by.
    link: PortId,
    since: Now,
    /// The next older and newer one.
    older: u32,
    newer: u32,
    /// The next one of its bucket, or the next that is free.
    next: u32,
    /// Slot with the headers of the first fragment, and their octets.
    headers: u32,
    headers_len: u16,
    /// Fragments with their data, in the order of the packet.
    first: u32,
    last: u32,
    fragments: u16,
    /// Octets of data that are there.
    octets: u32,
    /// Octets of data that there are, once the last fragment is there.
    end: Option<u32>,
    largest: u32,
    port: PortId,
    congestion: u8,
    may_fragment: bool,
    /// Why what is still to come is dropped.
    refused: Option<DropReason>,
}

const FREE: Set = Set {
    key: FragmentKey { src: Ip([0; 16]), dst: Ip([0; 16]), id: 0, protocol: 0 },
    link: PortId(0),
    since: Now(0),
    older: NONE,
    newer: NONE,
    next: NONE,
    headers: NONE,
    headers_len: 0,
    first: NONE,
    last: NONE,
    fragments: 0,
    octets: 0,
    end: None,
    largest: 0,
    port: PortId(0),
    congestion: 0,
    may_fragment: true,
    refused: None,
};

/// Packets that are waited for.
pub(super) struct Reassembly {
    sets: Box<[Set]>,
    /// The first one that is free.
    free: u32,
    oldest: u32,
    newest: u32,
    buckets: Box<[u32]>,
    seed: [u64; 2],
    slots: Slots,
    /// Room for one packet.
    whole: Box<[u8]>,
    counts: ReassemblyCounts,
}

impl Reassembly {
    /// Without fragments, all memory allocated. `seed` keeps senders from choosing their place.
    pub(super) fn new(seed: [u64; 2]) -> Reassembly {
        let mut sets = vec![FREE; SETS_MAX].into_boxed_slice();
        for (set, next) in sets.iter_mut().zip(1..) {
            set.next = if next == SETS_MAX as u32 { NONE } else { next };
        }
        Reassembly {
            sets,
            free: 0,
            oldest: NONE,
            newest: NONE,
            buckets: vec![NONE; SETS_MAX].into_boxed_slice(),
            seed,
            slots: Slots::new(),
            whole: vec![0; WHOLE_BYTES_MAX].into_boxed_slice(),
            counts: ReassemblyCounts::default(),
        }
    }

    /// Bytes that it takes.
    pub(super) const fn memory_bytes() -> usize {
        SETS_MAX * (size_of::<Set>() + size_of::<u32>())
            + SLOTS_MAX * (SLOT_BYTES + size_of::<Slot>())
            + WHOLE_BYTES_MAX
    }

    /// What was counted since it was made.
    pub(super) fn counts(&self) -> &ReassemblyCounts {
        &self.counts
    }

    /// The room for one packet, lent until it is given back: nothing is gathered or given up meanwhile.
    pub(super) fn lend_buffer(&mut self) -> Box<[u8]> {
        std::mem::take(&mut self.whole)
    }

    /// Gives the room back.
    pub(super) fn return_buffer(&mut self, buffer: Box<[u8]>) {
        self.whole = buffer;
    }

    /// Keeps a copy of `fragment`, which came with `frame` by `port` of `link`, until all of its packet is there. What comes in by other links is of
    /// other packets: nobody there adds to this one, or spoils it.
    ///
    /// # Errors
    /// It does not fit what is there: neither it nor what is kept of its packet, nor any more of it, is of use.
    pub(super) fn gather(
        &mut self,
        now: Now,
        (port, link): (PortId, PortId),
        frame: &[u8],
        fragment: &Fragment,
    ) -> Result<Gathered, DropReason> {
        let at = self.find(&fragment.key, link).unwrap_or_else(|| self.begin(now, &fragment.key, link));
        let Some(set) = self.sets.get(at as usize) else { return Err(DropReason::Fragment) };
        if let Some(reason) = set.refused {
            return Err(reason);
        }
        match self.keep(at, port, frame, fragment) {
            Ok(true) => {}
            Ok(false) => return Ok(Gathered::Copy),
            Err(reason) => {
                self.refuse(at, reason);
                return Err(reason);
            }
        }
        let set = self.sets[at as usize];
        if set.headers == NONE || set.end != Some(set.octets) {
            return Ok(Gathered::Kept);
        }
        let joined = self.join(&set);
        match joined {
            Ok(octets) => {
                // All of it goes on, so nothing is given up.
                self.remove(at);
                Ok(Gathered::Whole(Whole { octets, port: set.port, largest: set.largest }))
            }
            Err(reason) => {
                self.refuse(at, reason);
                Err(reason)
            }
        }
    }

    /// Takes a packet out that was waited for too long; its first fragment, if it is there, is put into the buffer. `None`: there is none now.
    pub(super) fn expire(&mut self, now: Now) -> Option<GivenUp> {
        let at = self.oldest;
        let set = *self.sets.get(at as usize).filter(|set| now.ms_since(set.since) >= WAIT_MS)?;
        let mut first = None;
        if set.headers != NONE && set.refused.is_none() {
            let mut octets = 0;
            self.slots.append(set.headers, usize::from(set.headers_len), &mut self.whole, &mut octets);
            if let Some(slot) = self.slots.slot(set.first).filter(|slot| slot.offset == 0) {
                self.slots.append(set.first, usize::from(slot.len), &mut self.whole, &mut octets);
            }
            first = Some((set.port, octets));
        }
        self.counts.given_up += u64::from(set.fragments);
        self.remove(at);
        Some(GivenUp { dst: set.key.dst, first })
    }

    /// When [`Reassembly::expire`] has something to do next; `None` while nothing is waited for.
    pub(super) fn next_due(&self) -> Option<Now> {
        self.sets.get(self.oldest as usize).map(|set| set.since + WAIT_MS)
    }

    /// Packets that are waited for, and pieces of memory that are free.
    #[cfg(test)]
    pub(super) fn room(&self) -> (usize, usize) {
        let free = |mut at: u32, next: &dyn Fn(u32) -> u32| {
            let mut count = 0;
            while at != NONE {
                (at, count) = (next(at), count + 1);
            }
            count
        };
        let sets = free(self.free, &|at| self.sets[at as usize].next);
        (SETS_MAX - sets, free(self.slots.free, &|at| self.slots.slots[at as usize].next_slot))
    }

    fn bucket(&self, key: &FragmentKey) -> usize {
        let [one, two] = self.seed;
        let words = [key.src, key.dst].map(|ip| u128::from_be_bytes(ip.0));
        let halves = words.into_iter().flat_map(|word| [(word >> 64) as u64, word as u64]);
        let hash = halves.fold(mix(one ^ u64::from(key.id)), |hash, half| mix(hash ^ half));
        mix(hash ^ two ^ u64::from(key.protocol)) as usize % SETS_MAX
    }

    fn find(&self, key: &FragmentKey, link: PortId) -> Option<u32> {
        let mut at = self.buckets[self.bucket(key)];
        while let Some(set) = self.sets.get(at as usize) {
            if set.key == *key && set.link == link {
                return Some(at);
            }
            at = set.next;
        }
        None
    }

    /// Waits for another packet, if need be in place of the oldest.
    fn begin(&mut self, now: Now, key: &FragmentKey, link: PortId) -> u32 {
        if self.free == NONE {
            self.push_out(NONE);
        }
        let at = self.free;
        let bucket = self.bucket(key);
        let set = &mut self.sets[at as usize];
        self.free = set.next;
        *set = Set { key: *key, link, since: now, older: self.newest, next: self.buckets[bucket], ..FREE };
        self.buckets[bucket] = at;
        match self.sets.get_mut(self.newest as usize) {
            Some(newest) => newest.newer = at,
            None => self.oldest = at,
        }
        self.newest = at;
        at
    }

    /// Takes the oldest packet out but for the one at `spared`; whether there was one.
    fn push_out(&mut self, spared: u32) -> bool {
        let mut at = self.oldest;
        // What is refused has no memory to give, but its set.
        while let Some(set) = self.sets.get(at as usize) {
            if at != spared && (set.fragments > 0 || spared == NONE) {
                self.counts.given_up += u64::from(set.fragments);
                self.counts.pushed_out += u64::from(set.fragments);
                self.remove(at);
                return true;
            }
            at = set.newer;
        }
        false
    }

    fn remove(&mut self, at: u32) {
        self.empty(at);
        let set = self.sets[at as usize];
        let bucket = self.bucket(&set.key);
        match self.buckets[bucket] {
            first if first == at => self.buckets[bucket] = set.next,
            mut before => {
                while let Some(other) = self.sets.get_mut(before as usize) {
                    if other.next == at {
                        other.next = set.next;
                        break;
                    }
                    before = other.next;
                }
            }
        }
        match self.sets.get_mut(set.older as usize) {
            Some(older) => older.newer = set.newer,
            None => self.oldest = set.newer,
        }
        match self.sets.get_mut(set.newer as usize) {
            Some(newer) => newer.older = set.older,
            None => self.newest = set.older,
        }
        self.sets[at as usize] = Set { next: self.free, ..FREE };
        self.free = at;
    }

    /// Gives back the memory of a packet, whose set stays.
    fn empty(&mut self, at: u32) {
        let set = &mut self.sets[at as usize];
        self.slots.release(set.headers);
        let mut fragment = set.first;
        while let Some(slot) = self.slots.slot(fragment) {
            self.slots.release(fragment);
            fragment = slot.next_fragment;
        }
        (set.headers, set.first, set.last, set.fragments) = (NONE, NONE, NONE, 0);
    }

    /// From here on nothing of this packet is taken, for as long as it would have been waited for.
    fn refuse(&mut self, at: u32, reason: DropReason) {
        self.counts.given_up += u64::from(self.sets[at as usize].fragments);
        self.empty(at);
        self.sets[at as usize].refused = Some(reason);
    }

    /// Copies a fragment to its place; `false` when it is there already.
    fn keep(&mut self, at: u32, port: PortId, frame: &[u8], fragment: &Fragment) -> Result<bool, DropReason> {
        let set = self.sets[at as usize];
        let headers = frame.get(..usize::from(fragment.data)).unwrap_or_default();
        let data = frame.get(usize::from(fragment.data)..fragment.parsed.end as usize).unwrap_or_default();
        let start = u32::from(fragment.offset);
        let end = start + data.len() as u32;
        let held_end = self.slots.slot(set.last).map_or(0, |last| last.end());
        let contradicts = set.end.is_some_and(|known| end > known || !fragment.more && end != known)
            || !fragment.more && held_end > end;
        if contradicts {
            return Err(DropReason::FragmentOverlap);
        }
        let (before, behind) = if held_end <= start { (set.last, NONE) } else { self.slots.around(set.first, start) };
        if let Some(next) = self.slots.slot(behind) {
            if u32::from(next.offset) == start && next.end() == end {
                return Ok(false);
            }
            if end > next.offset.into() {
                return Err(DropReason::FragmentOverlap);
            }
        }
        if self.slots.slot(before).is_some_and(|before| before.end() > start) {
            return Err(DropReason::FragmentOverlap);
        }
        if set.fragments == FRAGMENTS_MAX {
            return Err(DropReason::FragmentsTooMany);
        }
        let is_first = fragment.is_first();
        if is_first && headers.len() > CUT_HEADERS_MAX {
            return Err(DropReason::FragmentHeaders);
        }
        while self.slots.free_count < data.len().div_ceil(SLOT_BYTES) + usize::from(is_first) {
            if !self.push_out(at) {
                return Err(DropReason::Fragment);
            }
        }
        let slot = self.slots.fill(data, fragment.offset);
        self.slots.link(before, slot, behind);
        let headers_slot = if is_first { self.slots.fill(headers, 0) } else { NONE };
        let set = &mut self.sets[at as usize];
        if before == NONE {
            set.first = slot;
        }
        if behind == NONE {
            set.last = slot;
        }
        if is_first {
            (set.headers, set.headers_len, set.port) = (headers_slot, headers.len() as u16, port);
        }
        if !fragment.more {
            set.end = Some(end);
        }
        set.fragments += 1;
        set.octets += data.len() as u32;
        set.largest = set.largest.max(fragment.parsed.total_len());
        set.may_fragment &= fragment.key.src.is_v4() && !fragment.parsed.dont_fragment;
        set.congestion |= 1 << congestion(frame, fragment.key.src.is_v4());
        Ok(true)
    }

    /// Puts a packet that is all there into the buffer; the octets of its frame.
    fn join(&mut self, set: &Set) -> Result<usize, DropReason> {
        // A router marks what it may; who says that it must not be marked says so of all (RFC 3168 section 5.3).
        if set.congestion & NOT_CAPABLE != 0 && set.congestion != NOT_CAPABLE {
            return Err(DropReason::FragmentCongestion);
        }
        let mut octets = 0;
        self.slots.append(set.headers, usize::from(set.headers_len), &mut self.whole, &mut octets);
        let is_v4 = set.key.src.is_v4();
        if !is_v4 {
            let headers = self.whole.get_mut(..octets).unwrap_or_default();
            octets = without_fragment_header(headers).ok_or(DropReason::FragmentHeaders)?;
        }
        let headers_len = octets;
        let counted_from = if is_v4 { ETHERNET_LEN } else { ETHERNET_LEN + IPV6_LEN };
        let length = u16::try_from(headers_len + set.octets as usize - counted_from)
            .map_err(|_| DropReason::FragmentBeyondEnd)?;
        let mut fragment = set.first;
        while let Some(slot) = self.slots.slot(fragment) {
            self.slots.append(fragment, usize::from(slot.len), &mut self.whole, &mut octets);
            fragment = slot.next_fragment;
        }
        let header = self.whole.get_mut(..headers_len).unwrap_or_default();
        let is_congested = set.congestion & CONGESTED != 0;
        if is_v4 {
            let flags = if set.may_fragment { 0 } else { DONT_FRAGMENT };
            put(header, ETHERNET_LEN + 2, length.to_be_bytes());
            put(header, FLAGS_AND_OFFSET, [flags, 0]);
            if let Some(service) = header.get_mut(ETHERNET_LEN + 1).filter(|_| is_congested) {
                *service |= 0x03;
            }
            put(header, ETHERNET_LEN + 10, [0, 0]);
            let sum = checksum::of(header.get(ETHERNET_LEN..).unwrap_or_default());
            put(header, ETHERNET_LEN + 10, sum.to_be_bytes());
        } else {
            put(header, ETHERNET_LEN + 4, length.to_be_bytes());
            if let Some(class) = header.get_mut(ETHERNET_LEN + 1).filter(|_| is_congested) {
                *class |= 0x30;
            }
        }
        Ok(octets)
    }
}

/// The code point of RFC 3168 section 5 in the header of an IP packet.
fn congestion(frame: &[u8], is_v4: bool) -> u8 {
    let octet = frame.get(ETHERNET_LEN + 1).copied().unwrap_or_default();
    if is_v4 { octet & 3 } else { octet >> 4 & 3 }
}

fn put(header: &mut [u8], at: usize, value: [u8; 2]) {
    if let Some(field) = header.get_mut(at..).and_then(|header| header.first_chunk_mut()) {
        *field = value;
    }
}

/// Memory for fragments, in chains of slots.
struct Slots {
    bytes: Box<[[u8; SLOT_BYTES]]>,
    slots: Box<[Slot]>,
    free: u32,
    free_count: usize,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The first slot of the fragment behind this one.
    next_fragment: u32,
    /// The next one of the same fragment, or the next that is free.
    next_slot: u32,
    /// Of the fragment, in its packet; in its first slot.
    offset: u16,
    len: u16,
}

impl Slot {
    fn end(&self) -> u32 {
        u32::from(self.offset) + u32::from(self.len)
    }
}

impl Slots {
    fn new() -> Slots {
        let link = |next| Slot {
            next_fragment: NONE,
            next_slot: if next == SLOTS_MAX as u32 { NONE } else { next },
            offset: 0,
            len: 0,
        };
        Slots {
            bytes: vec![[0; SLOT_BYTES]; SLOTS_MAX].into_boxed_slice(),
            slots: (1..=SLOTS_MAX as u32).map(link).collect(),
            free: 0,
            free_count: SLOTS_MAX,
        }
    }

    fn slot(&self, at: u32) -> Option<Slot> {
        self.slots.get(at as usize).copied()
    }

    /// Copies the data of a fragment; its first slot. There is room for it.
    fn fill(&mut self, data: &[u8], offset: u16) -> u32 {
        let (mut first, mut last) = (NONE, NONE);
        for part in data.chunks(SLOT_BYTES) {
            let at = self.free;
            let (Some(slot), Some(bytes)) = (self.slots.get_mut(at as usize), self.bytes.get_mut(at as usize)) else {
                break;
            };
            self.free = slot.next_slot;
            self.free_count -= 1;
            *slot = Slot { next_fragment: NONE, next_slot: NONE, offset, len: data.len() as u16 };
            bytes.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
            match self.slots.get_mut(last as usize) {
                Some(last) => last.next_slot = at,
                None => first = at,
            }
            last = at;
        }
        first
    }

    /// Appends `len` octets of the fragment at `at` to what `to` has.
    fn append(&self, at: u32, len: usize, to: &mut [u8], octets: &mut usize) {
        let (mut at, mut left) = (at, len);
        while let (Some(slot), Some(bytes)) = (self.slot(at), self.bytes.get(at as usize)) {
            let part = bytes.get(..left.min(SLOT_BYTES)).unwrap_or_default();
            if let Some(room) = to.get_mut(*octets..).and_then(|to| to.get_mut(..part.len())) {
                room.copy_from_slice(part);
                *octets += part.len();
            }
            left -= part.len();
            at = slot.next_slot;
        }
    }

    /// The last fragment of the chain from `first` on that begins before `start`, and the one behind it.
    fn around(&self, first: u32, start: u32) -> (u32, u32) {
        let (mut before, mut behind) = (NONE, first);
        while let Some(slot) = self.slot(behind).filter(|slot| u32::from(slot.offset) < start) {
            (before, behind) = (behind, slot.next_fragment);
        }
        (before, behind)
    }

    /// Puts a fragment between two others.
    fn link(&mut self, before: u32, at: u32, behind: u32) {
        if let Some(slot) = self.slots.get_mut(at as usize) {
            slot.next_fragment = behind;
        }
        if let Some(slot) = self.slots.get_mut(before as usize) {
            slot.next_fragment = at;
        }
    }

    /// Gives back the slots of one fragment.
    fn release(&mut self, mut at: u32) {
        while let Some(slot) = self.slots.get_mut(at as usize) {
            let next = slot.next_slot;
            slot.next_slot = self.free;
            self.free = at;
            self.free_count += 1;
            at = next;
        }
    }
}

#[cfg(test)]
mod tests;
