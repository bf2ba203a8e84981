//! One worker's flows in the table.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, fence};

use super::carry::{fin_of, server_of, worker_of};
use super::layout::{self, SCALE_SHIFT, TRANSIT, WORKER_SHIFT};
use super::{
    Arrival, FastFin, FastFlow, FastFull, FastId, FastMemory, FastNumbers, FastSide, FastSideUse, FastTransit, FastUse,
    REST_MS, WORKERS_MAX,
};
use crate::flow::tcp::SCALE_MAX;
use crate::ids::RealServerId;
use crate::packet::TupleV4;
use crate::packet::checksum::Delta;
use crate::time::Now;

const NS_PER_MS: u64 = 1_000_000;

/// What belongs to one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FastSettings {
    /// The worker's number, below [`WORKERS_MAX`].
    pub worker: u16,
    /// The flows that are its own: apart from those of others, and all below [`FastShape::flows`](super::FastShape::flows).
    pub flows: Range<u32>,
    /// What CLOCK_MONOTONIC, which the kernel notes, showed at `Now(0)`, in milliseconds.
    pub origin_ms: u64,
}

/// A worker's flows and transits that the kernel sends on.
#[derive(Debug)]
pub struct FastTable {
    memory: FastMemory,
    settings: FastSettings,
    /// That of the flows.
    generation: u32,
    /// That of the transits.
    transit_generation: u32,
    /// The first number that was never used.
    fresh: u32,
    /// Numbers that were used, and since when they rest.
    resting: VecDeque<(u32, Now)>,
    open: u32,
    /// Those that are over and were not told yet: the number plus one of the first, 0 = none. Behind it they are as in the list.
    ended: u64,
}

/// How often it is looked whether a program has written what lies behind a flow of the list: it is just doing so, on another CPU.
const NEXT_LOOKS: u32 = 1_000;

impl FastTable {
    /// The empty table of a worker, in memory that the worker has not used before.
    ///
    /// # Panics
    /// When the settings do not fit the memory.
    pub fn new(memory: FastMemory, settings: FastSettings) -> FastTable {
        let FastSettings { worker, flows: Range { start, end }, .. } = settings;
        assert!(usize::from(worker) < WORKERS_MAX && start <= end && end <= memory.shape().flows(), "{settings:?}");
        let [generation, transit_generation] =
            [0, TRANSIT].map(|kind| memory.generation(usize::from(worker) | kind).load(Relaxed) as u32);
        let resting = VecDeque::with_capacity((end - start) as usize);
        let mut table =
            FastTable { memory, settings, generation, transit_generation, fresh: start, resting, open: 0, ended: 0 };
        table.forget_flows();
        table.forget_transits();
        table
    }

    /// The memory that it is in.
    pub fn memory(&self) -> &FastMemory {
        &self.memory
    }

    /// Flows and transits that are entered.
    pub fn open(&self) -> u32 {
        self.open
    }

    /// Flows and transits that there is room for.
    pub fn room(&self) -> u32 {
        self.settings.flows.end - self.settings.flows.start
    }

    fn next_number(&self, now: Now) -> Option<u32> {
        match self.resting.front() {
            Some(&(number, since)) if now.ms_since(since) >= REST_MS => Some(number),
            _ => Some(self.fresh).filter(|&fresh| fresh < self.settings.flows.end),
        }
    }

    /// Enters a flow: from here on the kernel sends its frames on.
    ///
    /// # Errors
    /// There is no room; nothing has changed.
    pub fn insert(&mut self, flow: &FastFlow, now: Now) -> Result<FastId, FastFull> {
        let number = self.next_number(now).ok_or(FastFull::Entries)?;
        let owner = u64::from(self.settings.worker) << WORKER_SHIFT;
        for (at, side) in flow.sides.iter().enumerate() {
            let scale = flow.sides[1 - at].numbers.scale.min(SCALE_MAX);
            self.write(number, at, side, flow.server, owner | u64::from(scale) << SCALE_SHIFT, now);
        }
        let [forward, reverse] = [0, 1].map(|side| self.memory.keys.hash(flow.sides[side].from));
        if !self.publish(forward, layout::item(forward, number, 0)) {
            return Err(FastFull::Bucket);
        }
        if !self.publish(reverse, layout::item(reverse, number, 1)) {
            // It has no generation yet, so nobody's frame was taken for it.
            self.withdraw(forward, layout::item(forward, number, 0));
            return Err(FastFull::Bucket);
        }
        for words in [0, 1].iter().filter_map(|&side| self.memory.side(number, side)) {
            words[layout::GENERATION_AND_WORKER].fetch_or(self.generation.into(), Release);
        }
        self.take_number(number);
        self.open += 1;
        Ok(FastId(number))
    }

    /// Enters a transit: from here on the kernel sends its frames on.
    ///
    /// # Errors
    /// There is no room; nothing has changed.
    pub fn insert_transit(&mut self, transit: &FastTransit, now: Now) -> Result<FastId, FastFull> {
        let number = self.next_number(now).ok_or(FastFull::Entries)?;
        let FastTransit { tuple, in_ifindex, out_ifindex, macs, size_max } = *transit;
        let numbers = FastNumbers::default();
        let side = FastSide { from: tuple, to: tuple, in_ifindex, out_ifindex, macs, size_max, numbers };
        let worker = u64::from(self.settings.worker) | TRANSIT as u64;
        self.write(number, 0, &side, None, worker << WORKER_SHIFT | u64::from(self.transit_generation), now);
        if let Some(other) = self.memory.side(number, 1) {
            // A flow had the number: no end of it is one of this.
            other[layout::FIN].store(0, Relaxed);
        }
        let hash = self.hash(tuple);
        if !self.publish(hash, layout::item(hash, number, 0)) {
            return Err(FastFull::Bucket);
        }
        self.take_number(number);
        self.open += 1;
        Ok(FastId(number))
    }

    /// The worker's transit of a tuple, forgotten or not, by whatever interface it comes in.
    pub fn find_transit(&self, tuple: TupleV4) -> Option<FastId> {
        let (number, side) = self.memory.look_up(tuple)?;
        let words = self.memory.side(number, side)?;
        let worker = worker_of(words[layout::GENERATION_AND_WORKER].load(Relaxed));
        (worker == usize::from(self.settings.worker) | TRANSIT && from(words) == tuple).then_some(FastId(number))
    }

    /// 64 bits of a tuple, keyed with the table's secret.
    pub fn hash(&self, tuple: TupleV4) -> u64 {
        self.memory.keys.hash(tuple)
    }

    /// Whether the kernel sends the flow or transit on: not after [`forget_flows`](FastTable::forget_flows) or [`forget_transits`](FastTable::forget_transits).
    pub fn is_live(&self, id: FastId) -> bool {
        let Some(words) = self.memory.side(id.0, 0) else { return false };
        let owner = words[layout::GENERATION_AND_WORKER].load(Relaxed);
        owner as u32 == if worker_of(owner) & TRANSIT == 0 { self.generation } else { self.transit_generation }
    }

    /// Whether the kernel carries the ends of a flow.
    pub fn carries_ends(&self, id: FastId) -> bool {
        self.memory.side(id.0, 0).is_some_and(|words| server_of(words).is_some())
    }

    /// What the kernel has noted about an entered flow; of a transit, about its first direction.
    pub fn read(&self, id: FastId) -> FastUse {
        let listed = self.memory.side(id.0, 0).map_or(0, |words| words[layout::LISTED_OR_NEXT].load(Acquire));
        FastUse { sides: [0, 1].map(|side| self.read_side(id.0, side)), is_over: listed != layout::LISTED_NOT }
    }

    /// Tells the kernel of numbers that it has not seen: those of segments that came through the sockets. Older ones change nothing.
    pub fn tell(&self, id: FastId, numbers: [FastNumbers; 2]) {
        for (side, numbers) in numbers.iter().enumerate() {
            let Some(words) = self.memory.side(id.0, side) else { continue };
            super::carry::note(words, numbers.end, numbers.ack, numbers.window);
        }
    }

    /// The next flow that is over, each once; it is still to be taken out.
    pub fn next_ended(&mut self, now: Now) -> Option<FastId> {
        loop {
            if self.ended == 0 {
                let head = self.memory.head(self.settings.worker.into());
                // Nearly always.
                if head.load(Relaxed) == 0 {
                    return None;
                }
                self.ended = head.swap(0, AcqRel);
            }
            let number = self.ended.checked_sub(1)? as u32;
            let [first, second] = [self.memory.side(number, 0)?, self.memory.side(number, 1)?];
            let next = &second[layout::LISTED_OR_NEXT];
            let known = (0..NEXT_LOOKS).find_map(|_| {
                std::hint::spin_loop();
                Some(next.load(Acquire)).filter(|next| next & layout::NEXT_IS_KNOWN != 0)
            });
            self.ended = known? & !layout::NEXT_IS_KNOWN;
            let listed = &first[layout::LISTED_OR_NEXT];
            match listed.compare_exchange(layout::LISTED, layout::LISTED_TOLD, AcqRel, Relaxed) {
                Ok(_) => return Some(FastId(number)),
                // It was taken out meanwhile, and could not rest while it was in the list.
                Err(_) => self.resting.push_back((number, now)),
            }
        }
    }

    /// Whether some flow is over that was not told.
    pub fn has_ended(&self) -> bool {
        self.ended != 0 || self.memory.head(self.settings.worker.into()).load(Relaxed) != 0
    }

    /// Takes a flow or transit out, and returns what the kernel had noted. No new frame is sent on; one that a program on another CPU has just found still is, but for a FIN, or
    /// what acknowledges one, that is not in what is returned.
    ///
    /// `id` is one that [`insert`](FastTable::insert) or [`insert_transit`](FastTable::insert_transit) returned and that was not taken out yet.
    pub fn remove(&mut self, id: FastId, now: Now) -> FastUse {
        self.invalidate(id.0);
        for side in 0..2 {
            if let Some(words) = self.memory.side(id.0, side) {
                let hash = self.memory.keys.hash(from(words));
                self.withdraw(hash, layout::item(hash, id.0, side));
            }
        }
        // A program that notes an end looks afterwards whether the flow is still there: either it sees that it is not, or its note is read here.
        fence(SeqCst);
        let mut used = self.read(id);
        let listed = self.leave_list(id.0);
        used.is_over = listed != layout::LISTED_NOT;
        // What is in the list cannot rest yet.
        if listed != layout::LISTED {
            self.resting.push_back((id.0, now));
        }
        self.open -= 1;
        used
    }

    /// A flow is not over any more, but gone. Returns how far it had come, one of `LISTED_…`.
    fn leave_list(&self, number: u32) -> u64 {
        let Some(words) = self.memory.side(number, 0) else { return layout::LISTED_NOT };
        let listed = words[layout::LISTED_OR_NEXT].swap(layout::LISTED_GONE, AcqRel);
        if listed != layout::LISTED_NOT
            && let Some(server) = server_of(words)
        {
            self.memory.ended_of(server).fetch_sub(1, AcqRel);
        }
        listed
    }

    /// Has the kernel send none of the worker's flows on any more. Each is still to be taken out, and can be read until then.
    pub fn forget_flows(&mut self) {
        // Not 0, which is no flow.
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.memory.generation(self.settings.worker.into()).store(self.generation.into(), Release);
    }

    /// The same of its transits.
    pub fn forget_transits(&mut self) {
        self.transit_generation = self.transit_generation.checked_add(1).unwrap_or(1);
        let worker = usize::from(self.settings.worker) | TRANSIT;
        self.memory.generation(worker).store(self.transit_generation.into(), Release);
    }

    /// What the kernel does with a frame that arrives: see [`FastMemory::carry`].
    pub fn carry(&self, frame: &mut [u8], arrival: &Arrival, now: Now) -> Option<u32> {
        self.memory.carry(frame, arrival, self.ns(now))
    }

    fn ns(&self, now: Now) -> u64 {
        (now + self.settings.origin_ms).0.saturating_mul(NS_PER_MS)
    }

    /// The number is in use now.
    fn take_number(&mut self, number: u32) {
        if self.resting.front().is_some_and(|&(first, _)| first == number) {
            self.resting.pop_front();
        } else {
            self.fresh = number + 1;
        }
    }

    /// Writes a direction; `owner` is its [`layout::GENERATION_AND_WORKER`].
    fn write(&self, number: u32, at: usize, side: &FastSide, server: Option<RealServerId>, owner: u64, now: Now) {
        let Some(words) = self.memory.side(number, at) else { return };
        let FastSide { from, to, in_ifindex, out_ifindex, macs, size_max, numbers } = side;
        let [m0, m1, m2, m3, m4, m5, m6, m7, m8, m9, m10, m11] = *macs.octets();
        let last = u32::from_le_bytes([m8, m9, m10, m11]);
        let addresses = Delta::of_u64(from.addresses, to.addresses);
        let header = addresses.and(Delta::FIRST_OCTET_LESS_ONE);
        let ports = Delta::of_u32(from.ports, to.ports);
        let deltas = u64::from(header.folded()) | u64::from(addresses.folded()) << 16 | u64::from(ports.folded()) << 32;
        let upper = |upper: u32, lower: u32| u64::from(upper) << 32 | u64::from(lower);
        let set = |word: usize, value: u64| words[word].store(value, Relaxed);
        set(layout::FROM_ADDRESSES, from.addresses);
        set(layout::FROM_PORTS_AND_INTERFACE, upper(*in_ifindex, from.ports));
        set(layout::TO_ADDRESSES, to.addresses);
        set(layout::TO_PORTS_AND_INTERFACE, upper(*out_ifindex, to.ports));
        set(layout::MACS, u64::from_le_bytes([m0, m1, m2, m3, m4, m5, m6, m7]));
        set(layout::MACS_AND_SIZE, upper(*size_max, last));
        set(layout::DELTAS, deltas);
        set(layout::END_AND_ACK, layout::end_and_ack(numbers));
        set(
            layout::WINDOW_AND_SERVER,
            upper(server.map_or(0, |server| u32::from(server.0) + 1), numbers.window.into()),
        );
        set(layout::USED_NS, self.ns(now));
        for word in [layout::FRAMES, layout::OCTETS, layout::PAYLOAD_OCTETS, layout::FIN, layout::LISTED_OR_NEXT] {
            set(word, 0);
        }
        words[layout::GENERATION_AND_WORKER].store(owner, Release);
    }

    fn read_side(&self, number: u32, at: usize) -> FastSideUse {
        let (Some(words), Some(other)) = (self.memory.side(number, at), self.memory.side(number, 1 - at)) else {
            return FastSideUse::default();
        };
        let get = |word: usize| words[word].load(Relaxed);
        let numbers = get(layout::END_AND_ACK);
        let (fin, other_fin) = (fin_of(words), fin_of(other));
        // Those of the ends hold, the others may have been put back by a segment that was noted at the same time.
        let acked = other_fin.filter(|(_, known)| known & layout::FIN_ACKED != 0);
        let scale = other[layout::GENERATION_AND_WORKER].load(Relaxed) >> SCALE_SHIFT;
        FastSideUse {
            used: Now(get(layout::USED_NS) / NS_PER_MS) - self.settings.origin_ms,
            frames: get(layout::FRAMES),
            octets: get(layout::OCTETS),
            payload_octets: get(layout::PAYLOAD_OCTETS),
            numbers: FastNumbers {
                end: fin.map_or(numbers as u32, |(end, _)| end),
                ack: acked.map_or((numbers >> 32) as u32, |(end, _)| end),
                window: get(layout::WINDOW_AND_SERVER) as u16,
                scale: scale as u8,
            },
            fin: fin.map(|(_, known)| FastFin {
                is_second: known & layout::FIN_SECOND != 0,
                answers: known & layout::FIN_ANSWERS != 0,
            }),
        }
    }

    /// Lets no frame hit the flow any more; the window scales stay to be read.
    fn invalidate(&self, number: u32) {
        for side in 0..2 {
            if let Some(words) = self.memory.side(number, side) {
                let owner = words[layout::GENERATION_AND_WORKER].load(Relaxed);
                words[layout::GENERATION_AND_WORKER].store(owner & !u64::from(u32::MAX), Release);
            }
        }
    }

    /// Puts an item into its bucket. `false`: there is no room, or one of the same tag.
    fn publish(&self, hash: u64, item: u64) -> bool {
        let bucket = self.memory.bucket(hash);
        let is_taken = |word: &AtomicU64| word.load(Relaxed) >> 32 == layout::tag(hash);
        if bucket.iter().any(is_taken) {
            return false;
        }
        bucket.iter().any(|word| word.load(Relaxed) == 0 && word.compare_exchange(0, item, Release, Relaxed).is_ok())
    }

    /// Takes an item out of its bucket.
    fn withdraw(&self, hash: u64, item: u64) {
        for word in self.memory.bucket(hash) {
            if word.load(Relaxed) == item {
                // Only this worker changes an item of its own.
                word.store(0, Release);
                return;
            }
        }
    }
}

/// The tuple that a direction arrives with.
fn from(words: &[AtomicU64]) -> TupleV4 {
    TupleV4 {
        addresses: words[layout::FROM_ADDRESSES].load(Relaxed),
        ports: words[layout::FROM_PORTS_AND_INTERFACE].load(Relaxed) as u32,
    }
}
