//! The flow table: from the tuple of a packet, in either direction, to the flow that it belongs to.
//!
//! A flow costs at most 128 bytes, IPv4 or IPv6, and all of them are there from the start:
//!
//! | bytes | what |
//! |---|---|
//! | 64 | one cache line that each packet reads: addresses, four ports, when it was last seen, 24 bytes of state |
//! | 12 + detail | the timer's links, and what only opening and closing need (12 bytes of detail: 24 in all; 36 at most) |
//! | 16 | two entries of the index, one for each direction, at 0.8 fill |
//!
//! A flow of IPv4 has the tuples of both directions written out as they stand in the headers of packets, so that to compare one, and to
//! rewrite a packet to the other one, are a few moves of words. Four addresses of 16 bytes would not fit. But three of them are ours: the VIP, the
//! SNAT address and the real server are as many as the configuration names, so a book keeps each once and a flow of IPv6 holds its number. Only the client
//! is written out. The entry of a direction holds a tag of 16 bits and a slot; the slot's line and the book (small, always cached) then say
//! whether it is the flow.
//!
//! All `flows_max` slots can be used; what stays empty is a fifth of the index. There, each entry may live in one of two buckets of a cache line
//! each, so a lookup reads one or two lines and an insertion looks at 22 or fewer: no probing without end, however full it is.
//! The hash is keyed against crafted collisions, see `hash.rs`.
//!
//! [`FlowTable::lookup_batch`] does each step for all packets before the next: hash, read a word of each bucket, read a word of each likely
//! flow, compare. The reads of a step do not wait for each other, so the processor overlaps them without a prefetch instruction. A caller that can
//! give one takes packets of IPv4 through [`FlowTable::trace`], [`FlowTable::follow_traces`] and [`FlowTable::meet`] instead: an instruction that
//! waits for nothing leaves the processor free for the packets before.
//!
//! A packet costs the timers nothing: it writes `seen` in the line it has read anyway. When the wheel pops a flow, the table looks at
//! when it is really due, and links it again if that is later.

use std::ops::Range;

use super::Direction;
use crate::packet::{Ip, Tuple, TupleV4};
use crate::time::Now;

mod addresses;
mod deadlines;
pub(super) mod hash;
mod index;
mod seen;
#[cfg(test)]
mod tests;
mod traces;

use addresses::{ADDRESSES_MAX, AddressBook};
use deadlines::{Cold, Deadlines, TICK_MS};
use hash::TupleHasher;
use index::{ENTRY_BITS, Index, Likely};

pub use traces::{Met, SeenAt, Trace};

/// Most flows of one table.
pub const FLOWS_MAX: usize = (1 << 30) - 1;

/// Packets that [`FlowTable::lookup_batch`] takes through its steps together; more are done in several turns.
pub const LOOKUP_BATCH: usize = 32;

/// Timeouts that a table can tell apart.
pub const TIMEOUTS_MAX: usize = 256;

/// In an entry of the index: the direction. The bits below [`SLOT`] are the slot.
const REVERSE: u32 = 1 << 31;
const SLOT: u32 = ENTRY_BITS & !REVERSE;

/// In place of the number of the SNAT address: the real server sees the client's address.
const KEPT: u16 = u16::MAX;
/// The same, and the returns do not come by here: the index has no entry for them.
const KEPT_ONE_WAY: u16 = u16::MAX - 1;
/// All addresses are those of IPv4 hosts, and written out.
const V4: u16 = u16::MAX - 2;
/// The same, and the returns do not come by here.
const V4_ONE_WAY: u16 = u16::MAX - 3;
/// The slot is free.
const FREE: u16 = u16::MAX - 4;
const _: () = assert!(ADDRESSES_MAX <= FREE as usize);

/// Whether packets from the real server come by here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Returns {
    /// They do: full-NAT and half-NAT.
    Here,
    /// They go to the client directly (DSR), so the tuple of the returns is not ours to look up.
    Elsewhere,
}

/// The tuples of a flow on both sides of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowPath {
    /// The client's packets as they come: from the client to the VIP.
    pub client: Tuple,
    /// The same packets as they leave: to the real server, from the SNAT address or from the client's own.
    pub server: Tuple,
    /// Where the answers go.
    pub returns: Returns,
}

impl FlowPath {
    /// Whether it was opened from inside: whoever it is to stays, and only the source is another one.
    #[inline]
    pub fn is_outbound(&self) -> bool {
        self.client.dst == self.server.dst
    }

    /// The tuple of packets as they leave, for those that came in `direction`.
    pub fn outgoing(&self, direction: Direction) -> Tuple {
        match direction {
            Direction::Forward => self.server,
            Direction::Reverse => self.client.reversed(),
        }
    }
}

/// A flow of one table. Not valid for any other flow, also when its slot is used again: a slot whose generations are used up (2^31
/// flows) is retired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowId {
    slot: u32,
    /// Odd while the flow lives.
    generation: u32,
}

impl FlowId {
    /// The place of the flow, below the `flows_max` of its table and no other living flow's.
    pub fn slot(self) -> usize {
        self.slot as usize
    }

    /// Which flow of this place it is.
    pub fn generation(self) -> u32 {
        self.generation
    }
}

/// The keyed hash of a tuple, for whoever looks it up more than once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TupleHash(u64);

impl TupleHash {
    /// A number below 512, to find equal ones among a few.
    #[inline]
    pub fn place(self) -> usize {
        (self.0 % 512) as usize
    }
}

/// The hashes of the tuples that find a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathHashes {
    /// Of the client's packets.
    pub client: TupleHash,
    /// Of the real server's; means nothing where these do not come by.
    pub returns: TupleHash,
}

/// Number of one of the table's timeouts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TimeoutClass(pub u8);

/// How long a flow may be silent, for each class.
#[derive(Clone, Debug)]
pub struct Timeouts {
    ticks: Box<[u32; TIMEOUTS_MAX]>,
}

impl Timeouts {
    /// The timeouts of the classes from 0 on, in milliseconds; rounded up to the table's tick of 64 ms. A class without one is due at once; those beyond
    /// [`TIMEOUTS_MAX`] are not used.
    pub fn new(timeouts_ms: &[u64]) -> Timeouts {
        let mut ticks = Box::new([0; TIMEOUTS_MAX]);
        for (ticks, ms) in ticks.iter_mut().zip(timeouts_ms) {
            *ticks = u32::try_from(ms.div_ceil(TICK_MS)).unwrap_or(u32::MAX);
        }
        Timeouts { ticks }
    }
}

/// The size of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowLimits {
    /// Most flows: 1 to [`FLOWS_MAX`], values outside are moved there.
    pub flows_max: usize,
    /// Most addresses on our side that flows have at a time (VIPs, SNAT addresses, real servers), those of IPv4 left out: 1 to 65,530, likewise.
    pub addresses_max: usize,
}

/// Why a flow could not be inserted. The table is as before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// Ours: the flows name as many addresses of ours as the table holds.
    AddressesFull,
    /// A tuple of it is that of another flow already, this one; or its two directions have the same tuple.
    Exists(Option<FlowId>),
    /// Ours: no slot is free, or no bucket has room for it. Later, when flows have ended, it may fit.
    Full,
}

/// A flow that is no longer in the table.
#[derive(Clone, Copy, Debug)]
pub struct Closed<S, D> {
    /// The name it had.
    pub id: FlowId,
    /// Its tuples.
    pub path: FlowPath,
    /// Its timeout class at the end.
    pub class: TimeoutClass,
    /// Its state at the end.
    pub state: S,
    /// Its detail.
    pub detail: D,
}

/// What happened to a table since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableCounts {
    /// Insertions refused because every slot was in use.
    pub slots_full: u64,
    /// Insertions refused because the index had no room for a tuple.
    pub index_full: u64,
    /// Insertions refused because the address book was full.
    pub addresses_full: u64,
    /// Entries of the index that moved to make room.
    pub moved: u64,
    /// Slots that will not be used again, because their generations are used up.
    pub retired: u64,
}

/// Flows by the tuples of both directions, for one worker. `S` is the state that each packet reads and writes (24 bytes at most), `D` what
/// only opening and closing need (36 at most); both are plain data.
pub struct FlowTable<S, D> {
    hot: Box<[Hot<S>]>,
    cold: Deadlines<D>,
    index: Index,
    book: AddressBook,
    hasher: TupleHasher,
    timeouts: Timeouts,
    /// Taken from the wheel, and not yet looked at.
    popped: Popped,
    flows: usize,
    inserted: u64,
    counts: TableCounts,
}

/// Flows that [`FlowTable::expire`] takes from the wheel together.
const POPPED_MAX: usize = 16;

struct Popped {
    flows: [(FlowId, PathHashes); POPPED_MAX],
    next: usize,
    count: usize,
}

impl Popped {
    const NONE: Popped = Popped {
        flows: [(FlowId { slot: 0, generation: 0 }, PathHashes { client: TupleHash(0), returns: TupleHash(0) });
            POPPED_MAX],
        next: 0,
        count: 0,
    };

    fn is_empty(&self) -> bool {
        self.next == self.count
    }

    fn next(&mut self) -> Option<(FlowId, PathHashes)> {
        let flow = *self.flows[..self.count].get(self.next)?;
        self.next += 1;
        Some(flow)
    }
}

/// A slot. Each pair has what is of packets that come from the client first.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Hot<S> {
    /// Of IPv4, both addresses of packets as they come, as [`TupleV4`] has them; else the 16 octets of the client's.
    addresses: [u64; 2],
    /// Both ports of packets as they come.
    ports: [u32; 2],
    /// Of IPv4, a number that the caller keeps; else those of the VIP and of the real server in the book.
    numbers: [u16; 2],
    /// The number of the SNAT address in the book, or one of those above it that say what this slot is.
    source: u16,
    protocol: u8,
    class: u8,
    seen_tick: u32,
    generation: u32,
    state: S,
}

impl<S> Hot<S> {
    #[inline]
    fn returns(&self) -> Returns {
        if matches!(self.source, KEPT_ONE_WAY | V4_ONE_WAY) { Returns::Elsewhere } else { Returns::Here }
    }

    #[inline]
    fn is_v4(&self) -> bool {
        matches!(self.source, V4 | V4_ONE_WAY)
    }

    /// Of IPv4, the tuple of packets that come in `direction`; otherwise only its ports mean something.
    #[inline]
    fn incoming_v4(&self, direction: Direction) -> TupleV4 {
        TupleV4 { addresses: self.addresses[direction.index()], ports: self.ports[direction.index()] }
    }

    /// Not of IPv4: the client's address.
    #[inline]
    fn client(&self) -> Ip {
        let [low, high] = self.addresses;
        Ip((u128::from(low) | u128::from(high) << 64).to_le_bytes())
    }
}

impl<S: Copy + Default, D: Copy + Default> FlowTable<S, D> {
    /// Bytes of one flow: its slot, its timer and its part of the index.
    pub const BYTES_PER_FLOW: usize = size_of::<Hot<S>>() + size_of::<Cold<D>>() + index::BYTES_PER_FLOW;

    /// An empty table, all its memory allocated and written. `seed` is random and secret.
    pub fn new(limits: FlowLimits, timeouts: Timeouts, seed: [u64; 2], now: Now) -> FlowTable<S, D> {
        const {
            assert!(size_of::<Hot<S>>() == 64, "the state of a flow has 24 bytes or fewer");
            assert!(Self::BYTES_PER_FLOW <= 128, "the detail of a flow has 36 bytes or fewer");
        }
        let flows_max = limits.flows_max.clamp(1, FLOWS_MAX);
        FlowTable {
            hot: vec![Hot::default(); flows_max].into_boxed_slice(),
            cold: Deadlines::new(flows_max, tick(now)),
            index: Index::new(flows_max),
            book: AddressBook::new(limits.addresses_max, seed),
            hasher: TupleHasher::new(seed),
            timeouts,
            popped: Popped::NONE,
            flows: 0,
            inserted: 0,
            counts: TableCounts::default(),
        }
    }

    /// Flows in the table.
    pub fn len(&self) -> usize {
        self.flows
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.flows == 0
    }

    /// How many flows were ever inserted: while it is the same, whoever was not found still is not there.
    #[inline]
    pub fn inserted(&self) -> u64 {
        self.inserted
    }

    /// Most flows, those of retired slots included.
    pub fn flows_max(&self) -> usize {
        self.hot.len()
    }

    /// Addresses of ours that the flows of IPv6 name.
    pub fn addresses(&self) -> usize {
        self.book.len()
    }

    /// All bytes of the table, however many flows there are.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&*self.hot) + self.cold.memory_bytes() + self.index.memory_bytes() + self.book.memory_bytes()
    }

    /// Where the memory lies that grows with `flows_max`, for whoever chooses the pages it lies in.
    pub fn memory(&self) -> [Range<*const u8>; 3] {
        let Range { start, end } = self.hot.as_ptr_range();
        [start.cast()..end.cast(), self.index.memory(), self.cold.memory()]
    }

    /// What happened since the start.
    pub fn counts(&self) -> TableCounts {
        self.counts
    }

    /// The hash of a tuple. Tables of one seed have the same.
    #[inline]
    pub fn hash(&self, tuple: &Tuple) -> TupleHash {
        TupleHash(self.hasher.hash(tuple))
    }

    /// Those of the tuples of a flow.
    pub fn hashes(&self, path: &FlowPath) -> PathHashes {
        let returns = match path.returns {
            Returns::Here => self.hash(&path.server.reversed()),
            Returns::Elsewhere => TupleHash::default(),
        };
        PathHashes { client: self.hash(&path.client), returns }
    }

    /// Adds a flow that was seen `now`. Its protocol is that of both tuples.
    pub fn insert(
        &mut self,
        now: Now,
        path: &FlowPath,
        class: TimeoutClass,
        state: S,
        detail: D,
    ) -> Result<FlowId, InsertError> {
        self.insert_hashed(now, path, &self.hashes(path), class, state, detail)
    }

    /// The same for a path whose hashes are known.
    pub fn insert_hashed(
        &mut self,
        now: Now,
        path: &FlowPath,
        hashes: &PathHashes,
        class: TimeoutClass,
        state: S,
        detail: D,
    ) -> Result<FlowId, InsertError> {
        let client = path.client;
        debug_assert_eq!(client.protocol, path.server.protocol);
        if let Some((id, _)) = self.lookup_hashed(hashes.client, &client) {
            return Err(InsertError::Exists(Some(id)));
        }
        if path.returns == Returns::Here {
            let returns = path.server.reversed();
            if returns == client {
                return Err(InsertError::Exists(None));
            }
            if let Some((id, _)) = self.lookup_hashed(hashes.returns, &returns) {
                return Err(InsertError::Exists(Some(id)));
            }
        }
        let Some(slot) = self.cold.next_free() else {
            self.counts.slots_full += 1;
            return Err(InsertError::Full);
        };
        let v4 = tuples_v4(path);
        let Some(held) = self.hold_addresses(path, v4.is_some()) else {
            self.counts.addresses_full += 1;
            return Err(InsertError::AddressesFull);
        };
        if !self.insert_entries(slot, hashes, path.returns) {
            self.release_addresses(held);
            self.counts.index_full += 1;
            return Err(InsertError::Full);
        }
        let seen_tick = tick(now);
        let taken = self.cold.take(self.due_tick(seen_tick, class.0), detail);
        debug_assert_eq!(taken, Some(slot));
        let hot = &mut self.hot[slot as usize];
        let generation = hot.generation + 1;
        let [vip, source, server] = held;
        *hot = Hot {
            addresses: v4.map_or_else(|| client_words(client.src), |tuples| tuples.map(|tuple| tuple.addresses)),
            ports: [client.wire_ports(), path.server.wire_ports().rotate_left(16)],
            numbers: [vip, server],
            source,
            protocol: client.protocol,
            class: class.0,
            seen_tick,
            generation,
            state,
        };
        self.flows += 1;
        self.inserted += 1;
        Ok(FlowId { slot, generation })
    }

    /// The flow that a packet with this tuple belongs to, and which side sent it.
    #[inline]
    pub fn lookup(&self, tuple: &Tuple) -> Option<(FlowId, Direction)> {
        self.lookup_hashed(self.hash(tuple), tuple)
    }

    /// The same for a tuple whose hash is known.
    #[inline]
    pub fn lookup_hashed(&self, hash: TupleHash, tuple: &Tuple) -> Option<(FlowId, Direction)> {
        let place = self.index.place(hash.0);
        match self.index.matches(place) {
            0 if !self.index.has_away(place) => None,
            matches => self.compare(place, matches, tuple),
        }
    }

    /// The lines of the slot that the next insertion takes.
    #[inline]
    pub fn next_lines(&self) -> [*const u8; 2] {
        let slot = self.cold.next_free().map_or(0, |slot| slot as usize);
        [std::ptr::from_ref(&self.hot[slot]).cast(), self.cold.line(slot)]
    }

    /// The line of the bucket where an entry of this hash belongs.
    #[inline]
    pub fn entry_line(&self, hash: TupleHash) -> *const u8 {
        self.index.line(self.index.place(hash.0))
    }

    /// Reads a word of the same line, so that it is on the way. The word means nothing.
    #[inline]
    fn touch_entry(&self, hash: TupleHash) -> u32 {
        self.index.touch(self.index.place(hash.0))
    }

    /// [`lookup`](Self::lookup) of each tuple, its answer at the same place of `found`; of as many as both slices have.
    pub fn lookup_batch(&self, tuples: &[Tuple], found: &mut [Option<(FlowId, Direction)>]) {
        self.lookup_batch_by(tuples, |tuple| tuple, |tuple| self.hash(tuple), found);
    }

    /// The same for things that have a tuple and its hash.
    #[inline]
    pub fn lookup_batch_by<'a, T>(
        &self,
        things: &'a [T],
        tuple_of: impl Fn(&'a T) -> &'a Tuple,
        hash_of: impl Fn(&T) -> TupleHash,
        found: &mut [Option<(FlowId, Direction)>],
    ) {
        for (things, found) in things.chunks(LOOKUP_BATCH).zip(found.chunks_mut(LOOKUP_BATCH)) {
            let mut places = [index::Place::default(); LOOKUP_BATCH];
            let mut words = 0;
            for (place, thing) in places.iter_mut().zip(things) {
                *place = self.index.place(hash_of(thing).0);
            }
            let places = &places[..things.len()];
            let mut likely = [Likely::NONE; LOOKUP_BATCH];
            let likely = &mut likely[..things.len()];
            for &place in places {
                words ^= self.index.touch(place);
            }
            for (&place, likely) in places.iter().zip(&mut *likely) {
                *likely = self.index.likely(place);
            }
            // Apart from the loop before, so that it is short and more reads are under way at a time.
            for likely in &*likely {
                if let Some(hot) = self.hot.get((likely.entry & SLOT) as usize) {
                    words ^= hot.generation;
                }
            }
            // The words mean nothing; without a use of them the compiler would leave out the reads.
            std::hint::black_box(words);
            for (((&place, &likely), thing), found) in places.iter().zip(&*likely).zip(things).zip(found) {
                let tuple = tuple_of(thing);
                let (slot, direction) = (likely.entry & SLOT, direction_of(likely.entry));
                *found = match self.hot.get(slot as usize) {
                    Some(hot) if self.is_tuple_of(hot, direction, tuple) => {
                        Some((FlowId { slot, generation: hot.generation }, direction))
                    }
                    _ if likely.matches == 0 && !self.index.has_away(place) => None,
                    _ => self.look_on(place, likely, tuple),
                };
            }
        }
    }

    /// The tuple with which a packet that came in `direction` leaves, where the answers of its flow go, and the state of that flow.
    #[inline]
    pub fn outgoing(&self, id: FlowId, direction: Direction) -> Option<(Tuple, Returns, &S)> {
        let hot = self.hot(id)?;
        Some((self.incoming(hot, direction.opposite()).reversed(), hot.returns(), &hot.state))
    }

    /// Lets a packet seen `now` change the state. Where `advance` names a timeout class, the flow has that timeout from here on. `None`: the flow is
    /// not there.
    #[inline(always)]
    pub fn follow<R>(
        &mut self,
        id: FlowId,
        now: Now,
        advance: impl FnOnce(&mut S) -> (Option<TimeoutClass>, R),
    ) -> Option<R> {
        let hot = self.hot_mut(id)?;
        let (class, result) = advance(&mut hot.state);
        if let Some(class) = class {
            let seen_tick = tick(now).max(hot.seen_tick);
            hot.seen_tick = seen_tick;
            if hot.class != class.0 {
                hot.class = class.0;
                self.reclass(id, seen_tick, class);
            }
        }
        Some(result)
    }

    /// The flow has another timeout from here on.
    #[cold]
    fn reclass(&mut self, id: FlowId, seen_tick: u32, class: TimeoutClass) {
        // Only a shorter timeout needs the wheel: a longer one is found out when the flow is popped.
        self.cold.hasten(id.slot, self.due_tick(seen_tick, class.0));
    }

    /// Notes that the flow was seen `now` and which timeout it has from here on. Returns whether the flow is there.
    #[inline]
    pub fn touch(&mut self, id: FlowId, now: Now, class: TimeoutClass) -> bool {
        self.follow(id, now, |_| (Some(class), ())).is_some()
    }

    /// Notes that the flow was seen `now`, and nothing else.
    pub fn see(&mut self, id: FlowId, now: Now) {
        if let Some(hot) = self.hot_mut(id) {
            hot.seen_tick = hot.seen_tick.max(tick(now));
        }
    }

    /// The state of a flow that is there.
    #[inline]
    pub fn state(&self, id: FlowId) -> Option<&S> {
        self.hot(id).map(|hot| &hot.state)
    }

    /// The same, to change it.
    #[inline]
    pub fn state_mut(&mut self, id: FlowId) -> Option<&mut S> {
        self.hot_mut(id).map(|hot| &mut hot.state)
    }

    /// The detail of a flow that is there.
    pub fn detail(&self, id: FlowId) -> Option<&D> {
        self.hot(id).map(|_| self.cold.detail(id.slot))
    }

    /// The same, to change it.
    pub fn detail_mut(&mut self, id: FlowId) -> Option<&mut D> {
        self.hot(id)?;
        Some(self.cold.detail_mut(id.slot))
    }

    /// The timeout class of a flow that is there.
    pub fn class(&self, id: FlowId) -> Option<TimeoutClass> {
        self.hot(id).map(|hot| TimeoutClass(hot.class))
    }

    /// The tick in which a flow that is there was last seen.
    #[cfg(test)]
    pub(crate) fn seen_tick(&self, id: FlowId) -> Option<u32> {
        self.hot(id).map(|hot| hot.seen_tick)
    }

    /// The tuples of a flow that is there.
    #[inline]
    pub fn path(&self, id: FlowId) -> Option<FlowPath> {
        self.hot(id).map(|hot| self.path_of(hot))
    }

    /// The flow whose place is `slot`, if there is one: for walks over the whole table in bounded steps.
    pub fn at(&self, slot: usize) -> Option<FlowId> {
        let generation = self.hot.get(slot)?.generation;
        let slot = slot as u32;
        (generation % 2 == 1).then_some(FlowId { slot, generation })
    }

    /// Whether there ever was a flow whose place is `slot`; places are given out from the first one on.
    pub fn was_taken(&self, slot: usize) -> bool {
        self.hot.get(slot).is_some_and(|hot| hot.generation != 0)
    }

    /// Takes a flow out.
    pub fn remove(&mut self, id: FlowId) -> Option<Closed<S, D>> {
        let path = self.path(id)?;
        self.remove_hashed(id, &self.hashes(&path))
    }

    /// The same for a flow whose hashes are known.
    pub fn remove_hashed(&mut self, id: FlowId, hashes: &PathHashes) -> Option<Closed<S, D>> {
        let hot = *self.hot(id)?;
        let path = self.path_of(&hot);
        let detail = *self.cold.detail(id.slot);
        self.remove_entry(hashes.client, id.slot);
        if path.returns == Returns::Here {
            self.remove_entry(hashes.returns, id.slot | REVERSE);
        }
        self.release_addresses([hot.numbers[0], hot.source, hot.numbers[1]]);
        // Even: nobody has this one, and the next flow's is odd again.
        let retire = id.generation == u32::MAX;
        let slot = &mut self.hot[id.slot()];
        slot.generation = id.generation.wrapping_add(1);
        slot.source = FREE;
        self.cold.give_back(id.slot, retire);
        self.counts.retired += u64::from(retire);
        self.flows -= 1;
        Some(Closed { id, path, class: TimeoutClass(hot.class), state: hot.state, detail })
    }

    /// Takes out one flow that was silent for its timeout; never early, at most two ticks (128 ms) late when called often enough. Each flow that is
    /// looked at costs one of `budget`, also those that turn out to be due later. `None`: there is no more, or the budget is 0.
    pub fn expire(&mut self, now: Now, budget: &mut usize) -> Option<Closed<S, D>> {
        self.expire_unless(now, budget, |_, _| None)
    }

    /// The same where others may have seen packets of a flow: before one is taken out, `seen` says when that was last, if at all.
    pub fn expire_unless(
        &mut self,
        now: Now,
        budget: &mut usize,
        seen: impl Fn(&S, &D) -> Option<Now>,
    ) -> Option<Closed<S, D>> {
        let now_tick = tick(now);
        loop {
            while let Some((id, hashes)) = self.popped.next() {
                // It may have gone since it was popped, or have a timer again.
                let Some(hot) = self.hot(id).filter(|_| !self.cold.is_linked(id.slot)) else { continue };
                let (class, state) = (hot.class, hot.state);
                let mut due_tick = self.due_tick(hot.seen_tick, class);
                if due_tick <= now_tick
                    && let Some(seen) = seen(&state, self.cold.detail(id.slot))
                {
                    self.see(id, seen);
                    due_tick = due_tick.max(self.due_tick(tick(seen), class));
                }
                if due_tick <= now_tick {
                    return self.remove_hashed(id, &hashes);
                }
                self.cold.link(id.slot, due_tick);
            }
            self.pop(now_tick, budget)?;
        }
    }

    /// Takes some flows from the wheel, and reads together what their removal is going to read. `None`: there are none.
    fn pop(&mut self, now_tick: u32, budget: &mut usize) -> Option<()> {
        let mut slots = [0; POPPED_MAX];
        let mut count = 0;
        while count < POPPED_MAX
            && let Some(slot) = self.cold.pop(now_tick, budget)
        {
            slots[count] = slot;
            count += 1;
        }
        let slots = &slots[..count];
        let words = slots.iter().fold(0, |words, &slot| words ^ self.hot[slot as usize].generation);
        let mut flows = [(FlowId { slot: 0, generation: 0 }, PathHashes::default()); POPPED_MAX];
        for (flow, &slot) in flows.iter_mut().zip(slots) {
            let hot = &self.hot[slot as usize];
            *flow = (FlowId { slot, generation: hot.generation }, self.hashes(&self.path_of(hot)));
        }
        let entries = flows[..count].iter().flat_map(|(_, hashes)| [hashes.client, hashes.returns]);
        std::hint::black_box(entries.fold(words, |words, hash| words ^ self.touch_entry(hash)));
        self.popped = Popped { flows, next: 0, count };
        (count > 0).then_some(())
    }

    /// A time at or before which [`expire`](Self::expire) has nothing to do; `None` when there is no flow.
    pub fn next_expiry(&self) -> Option<Now> {
        let tick = if self.popped.is_empty() { self.cold.next_tick()? } else { self.cold.current_tick() };
        Some(Now(tick * TICK_MS))
    }

    /// Reads what a change of the timeouts of these flows is going to write, their detail and their neighbours in the wheel: together, so that it
    /// takes as long as one.
    pub fn touch_timers(&self, ids: &[Option<FlowId>]) {
        let words = ids.iter().flatten().fold(0, |words, id| words ^ self.cold.touch(id.slot));
        std::hint::black_box(ids.iter().flatten().fold(words, |words, id| words ^ self.cold.touch_neighbours(id.slot)));
    }

    /// Other timeouts from here on. A flow whose timeout became shorter may keep the longer one once more.
    pub fn set_timeouts(&mut self, timeouts: Timeouts) {
        self.timeouts = timeouts;
    }

    /// The first tick that is a whole timeout after any moment of `seen_tick`.
    fn due_tick(&self, seen_tick: u32, class: u8) -> u32 {
        seen_tick.saturating_add(self.timeouts.ticks[usize::from(class)]).saturating_add(1)
    }

    #[inline]
    fn hot(&self, id: FlowId) -> Option<&Hot<S>> {
        self.hot.get(id.slot()).filter(|hot| hot.generation == id.generation)
    }

    #[inline]
    fn hot_mut(&mut self, id: FlowId) -> Option<&mut Hot<S>> {
        self.hot.get_mut(id.slot()).filter(|hot| hot.generation == id.generation)
    }

    /// The rest of a lookup whose likely flow is another one.
    #[inline(never)]
    fn look_on(&self, place: index::Place, likely: Likely, tuple: &Tuple) -> Option<(FlowId, Direction)> {
        self.compare(place, likely.matches, tuple)
    }

    #[inline]
    fn compare(&self, place: index::Place, matches: u16, tuple: &Tuple) -> Option<(FlowId, Direction)> {
        let is_it = |entry| self.is_tuple_of(&self.hot[(entry & SLOT) as usize], direction_of(entry), tuple);
        let entry = self.index.find(place, matches, is_it)?;
        let slot = entry & SLOT;
        Some((FlowId { slot, generation: self.hot[slot as usize].generation }, direction_of(entry)))
    }

    #[inline]
    fn is_tuple_of(&self, hot: &Hot<S>, direction: Direction, tuple: &Tuple) -> bool {
        let ports = tuple.wire_ports();
        if tuple.protocol != hot.protocol || ports != hot.ports[direction.index()] {
            return false;
        }
        match TupleV4::of(tuple) {
            Some(v4) if hot.is_v4() => v4.addresses == hot.addresses[direction.index()],
            _ => !hot.is_v4() && self.incoming(hot, direction) == *tuple,
        }
    }

    /// The tuple of packets that come in `direction`.
    #[inline]
    fn incoming(&self, hot: &Hot<S>, direction: Direction) -> Tuple {
        let v4 = hot.incoming_v4(direction).with_protocol(hot.protocol);
        if hot.is_v4() {
            return v4;
        }
        let [vip, server] = hot.numbers;
        let (src, dst) = match direction {
            Direction::Forward => (hot.client(), self.book.octets(vip)),
            Direction::Reverse => (self.book.octets(server), self.source_of(hot)),
        };
        Tuple { src, dst, ..v4 }
    }

    /// The source address that the real server sees, of a flow that is not IPv4.
    #[inline]
    fn source_of(&self, hot: &Hot<S>) -> Ip {
        if hot.source >= KEPT_ONE_WAY { hot.client() } else { self.book.octets(hot.source) }
    }

    fn path_of(&self, hot: &Hot<S>) -> FlowPath {
        FlowPath {
            client: self.incoming(hot, Direction::Forward),
            server: self.incoming(hot, Direction::Reverse).reversed(),
            returns: hot.returns(),
        }
    }

    /// Numbers for the VIP, the SNAT address and the real server; `None`, and none of them held, when the book is full. A flow of IPv4 needs none.
    #[inline]
    fn hold_addresses(&mut self, path: &FlowPath, is_v4: bool) -> Option<[u16; 3]> {
        if is_v4 {
            let source = if path.returns == Returns::Here { V4 } else { V4_ONE_WAY };
            return Some([0, source, 0]);
        }
        self.hold_in_book(path)
    }

    /// The same for a flow that is not IPv4.
    #[inline(never)]
    fn hold_in_book(&mut self, path: &FlowPath) -> Option<[u16; 3]> {
        let vip = self.book.hold(path.client.dst)?;
        let Some(server) = self.book.hold(path.server.dst) else {
            self.book.release(vip);
            return None;
        };
        let source = match path.returns {
            // Nobody looks up the returns, so what the real server sees need not be kept: DSR leaves the client's address.
            Returns::Elsewhere => Some(KEPT_ONE_WAY),
            Returns::Here if path.server.src == path.client.src => Some(KEPT),
            Returns::Here => self.book.hold(path.server.src),
        };
        if source.is_none() {
            self.book.release(vip);
            self.book.release(server);
        }
        Some([vip, source?, server])
    }

    fn release_addresses(&mut self, [vip, source, server]: [u16; 3]) {
        if matches!(source, V4 | V4_ONE_WAY) {
            return;
        }
        self.book.release(vip);
        self.book.release(server);
        if source < KEPT_ONE_WAY {
            self.book.release(source);
        }
    }

    /// Enters both directions of the flow in `slot`, or neither.
    fn insert_entries(&mut self, slot: u32, hashes: &PathHashes, returns: Returns) -> bool {
        let place = self.index.place(hashes.client.0);
        let Ok(moved) = self.index.insert(place, slot) else { return false };
        self.counts.moved += u64::from(moved);
        if returns == Returns::Elsewhere {
            return true;
        }
        let Ok(moved) = self.index.insert(self.index.place(hashes.returns.0), slot | REVERSE) else {
            self.index.remove(place, slot);
            return false;
        };
        self.counts.moved += u64::from(moved);
        true
    }

    fn remove_entry(&mut self, hash: TupleHash, entry: u32) {
        self.index.remove(self.index.place(hash.0), entry);
    }
}

/// The tuples of packets as they come in either direction, when all are those of IPv4 hosts.
#[inline]
fn tuples_v4(path: &FlowPath) -> Option<[TupleV4; 2]> {
    let (client, server) = (TupleV4::of(&path.client)?, TupleV4::of(&path.server)?.reversed());
    (client.is_between_hosts() && server.is_between_hosts()).then_some([client, server])
}

/// The client's address as a slot holds it that is not of IPv4.
fn client_words(client: Ip) -> [u64; 2] {
    let client = u128::from_le_bytes(client.0);
    [client as u64, (client >> 64) as u64]
}

/// The direction that an entry of the index is of.
#[inline]
fn direction_of(entry: u32) -> Direction {
    if entry & REVERSE == 0 { Direction::Forward } else { Direction::Reverse }
}

/// The tick that `now` is in; the last one from 8.7 years after the origin on.
#[inline]
fn tick(now: Now) -> u32 {
    u32::try_from(now.0 / TICK_MS).unwrap_or(u32::MAX)
}
