//! Where everything stands in the memory that is shared with the kernel. Words are 64 bits in the byte order of the machine, which is little-endian.

use super::{FastMemory, FastNumbers, WORKERS_MAX, Words};
use crate::ids::RealServerId;
use crate::packet::TupleV4;
use crate::random;
use crate::snapshot::REAL_SERVERS_MAX;
use std::sync::atomic::AtomicU64;

/// Words of a bucket: a cache line.
pub(super) const BUCKET_WORDS: usize = 8;
/// Words of a direction: two cache lines.
pub(super) const SIDE_WORDS: usize = 16;
/// Words of a flow.
pub(super) const FLOW_WORDS: usize = 2 * SIDE_WORDS;

// The words of a direction. Only this process writes the first eight.
/// Addresses as they arrive, source in the lower half.
pub(super) const FROM_ADDRESSES: usize = 0;
/// Ports as they arrive; in the upper half the interface of arrival.
pub(super) const FROM_PORTS_AND_INTERFACE: usize = 1;
/// Generation; from bit 32 on the worker, with [`TRANSIT`] if it is a transit; from bit 48 on the window scale of the other side. All zero: no flow.
pub(super) const GENERATION_AND_WORKER: usize = 2;
/// Addresses to send on with.
pub(super) const TO_ADDRESSES: usize = 3;
/// Ports to send on with; in the upper half the interface to leave through.
pub(super) const TO_PORTS_AND_INTERFACE: usize = 4;
/// The first eight octets of the MACs.
pub(super) const MACS: usize = 5;
/// The last four octets of the MACs; in the upper half the size of the largest packet.
pub(super) const MACS_AND_SIZE: usize = 6;
/// What changes in the sum of the IPv4 header, 16 bits; from bit 16 on in that of the addresses, from bit 32 on in that of the ports.
pub(super) const DELTAS: usize = 7;
// The kernel writes the others.
/// Sequence number after the last octet sent; in the upper half the highest acknowledgment.
pub(super) const END_AND_ACK: usize = 8;
/// The largest window field; in the upper half, which only this process writes, the number of the server plus one, or 0 where the ends of a flow are not carried.
pub(super) const WINDOW_AND_SERVER: usize = 9;
/// When the last frame was sent on, in nanoseconds of CLOCK_MONOTONIC.
pub(super) const USED_NS: usize = 10;
/// Frames sent on.
pub(super) const FRAMES: usize = 11;
/// Their octets.
pub(super) const OCTETS: usize = 12;
/// Octets of their payload.
pub(super) const PAYLOAD_OCTETS: usize = 13;
/// 0, or what is known of the FIN that was sent on: the bits `FIN_…`; in the upper half the sequence number after it. What is known does not change any more, but for
/// [`FIN_ACKED`], so that it holds where two CPUs note the numbers of one side at a time.
pub(super) const FIN: usize = 14;
/// Of the first direction: how far the end of the connection has come, one of `LISTED_…`. Of the second one: the next of its list, as it stands in the
/// head, with [`NEXT_IS_KNOWN`].
pub(super) const LISTED_OR_NEXT: usize = 15;

/// In [`FIN`]: it was sent on.
pub(super) const FIN_SENT: u64 = 1;
/// In [`FIN`]: behind that of the other side.
pub(super) const FIN_SECOND: u64 = 2;
/// In [`FIN`]: when that of the other side was acknowledged.
pub(super) const FIN_ANSWERS: u64 = 4;
/// In [`FIN`]: what acknowledges it was sent on.
pub(super) const FIN_ACKED: u64 = 8;

/// The connection is not over.
pub(super) const LISTED_NOT: u64 = 0;
/// It is over, and in the list.
pub(super) const LISTED: u64 = 1;
/// The worker has taken it from the list.
pub(super) const LISTED_TOLD: u64 = 2;
/// The flow was taken out.
pub(super) const LISTED_GONE: u64 = 3;

/// What is in front is written: a program that puts a flow in front of a list makes it the head first.
pub(super) const NEXT_IS_KNOWN: u64 = 1 << 63;

/// Where the worker stands in [`GENERATION_AND_WORKER`].
pub(super) const WORKER_SHIFT: u32 = 32;
/// Where the window scale of the other side stands there.
pub(super) const SCALE_SHIFT: u32 = 48;
/// In the number of a worker: of its transits.
pub(super) const TRANSIT: usize = WORKERS_MAX;
/// Generations that there are: of the flows of each worker, then of the transits of each.
pub(super) const GENERATIONS: usize = 2 * WORKERS_MAX;

// What stands in the one element of the first map, in words.
/// The heads of the lists of flows that are over, one for each worker: the number of a flow plus one, 0 = none.
pub(super) const HEADS: usize = GENERATIONS;
/// For each server, the flows that are over and were not taken out yet.
pub(super) const ENDED: usize = HEADS + WORKERS_MAX;
/// Words of all of it.
const CONTROL_WORDS: usize = ENDED + REAL_SERVERS_MAX;
const _: () = assert!(REAL_SERVERS_MAX.is_power_of_two() && WORKERS_MAX.is_power_of_two());

/// The map that an array of words is: elements of so many octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// Octets of an element, a multiple of 8.
    pub element_octets: u32,
    /// Elements.
    pub elements: u32,
}

impl MapShape {
    /// Words of the whole.
    pub fn words(self) -> usize {
        self.octets() as usize / size_of::<u64>()
    }

    /// Octets of the whole.
    pub fn octets(self) -> u64 {
        u64::from(self.element_octets) * u64::from(self.elements)
    }
}

/// How large a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FastShape {
    pub(super) flows: u32,
    /// A power of two.
    pub(super) buckets: u32,
}

impl FastShape {
    /// Flows of the largest table: 1 GiB of entries.
    pub const FLOWS_MAX: u32 = 1 << 22;

    /// For so many flows, from 1 to [`FastShape::FLOWS_MAX`].
    pub fn new(flows: u32) -> FastShape {
        let flows = flows.clamp(1, FastShape::FLOWS_MAX);
        // Two directions in a bucket of eight: with chance as it is, one flow in thousands finds no room.
        FastShape { flows, buckets: flows.next_power_of_two() }
    }

    /// Flows that there is room for.
    pub fn flows(self) -> u32 {
        self.flows
    }

    /// One element with all generations, lists and counts.
    pub fn control(self) -> MapShape {
        MapShape { element_octets: octets(CONTROL_WORDS), elements: 1 }
    }

    /// The buckets.
    pub fn index(self) -> MapShape {
        MapShape { element_octets: octets(BUCKET_WORDS), elements: self.buckets }
    }

    /// The flows.
    pub fn entries(self) -> MapShape {
        MapShape { element_octets: octets(FLOW_WORDS), elements: self.flows }
    }

    /// Memory of all three, in bytes. The kernel has it from the start on and does not swap it.
    pub fn bytes(self) -> u64 {
        self.control().octets() + self.index().octets() + self.entries().octets()
    }
}

const fn octets(words: usize) -> u32 {
    (words * size_of::<u64>()) as u32
}

/// What the hash of a tuple is keyed with. Nobody sees a hash; who guessed it could have flows not entered, no more.
#[derive(Clone, Copy)]
pub(super) struct HashKeys {
    pub(super) addresses: u64,
    pub(super) first: u64,
    pub(super) second: u64,
    pub(super) third: u64,
}

/// What a product is folded by.
pub(super) const FOLD: u32 = 32;

impl HashKeys {
    pub(super) fn new([low, high]: [u64; 2]) -> HashKeys {
        let second = random::mix(low.rotate_left(32) ^ random::mix(high));
        let third = random::mix(second ^ high);
        HashKeys { addresses: low, first: high | 1, second: second | 1, third: third | 1 }
    }

    /// 64 bits of which the lower choose a bucket and the upper 32 tell its items apart.
    pub(super) fn hash(&self, tuple: TupleV4) -> u64 {
        let first = (tuple.addresses ^ self.addresses).wrapping_mul(self.first);
        let second = (first ^ first >> FOLD ^ u64::from(tuple.ports)).wrapping_mul(self.second);
        // Else the ports of neighbours clump.
        let third = (second ^ second >> FOLD).wrapping_mul(self.third);
        third ^ third >> FOLD
    }
}

/// A word of a bucket for a direction: never 0.
pub(super) fn item(hash: u64, flow: u32, side: usize) -> u64 {
    tag(hash) << 32 | u64::from(flow) << 1 | side as u64
}

/// What tells the items of a bucket apart: the upper half of an item.
pub(super) fn tag(hash: u64) -> u64 {
    hash >> 32 | 1
}

impl FastMemory {
    /// The word that holds the generation of a worker's flows, or with [`TRANSIT`] that of its transits.
    pub(super) fn generation(&self, worker: usize) -> &AtomicU64 {
        &words(&self.control)[worker % GENERATIONS]
    }

    /// The head of the list of a worker's flows that are over.
    pub(super) fn head(&self, worker: usize) -> &AtomicU64 {
        &words(&self.control)[HEADS + worker % WORKERS_MAX]
    }

    /// How many flows to a server are over and were not taken out yet.
    pub(super) fn ended_of(&self, server: RealServerId) -> &AtomicU64 {
        &words(&self.control)[ENDED + server.index() % REAL_SERVERS_MAX]
    }

    /// The bucket of a hash.
    pub(super) fn bucket(&self, hash: u64) -> &[AtomicU64] {
        let at = (hash as u32 & (self.shape.buckets - 1)) as usize * BUCKET_WORDS;
        &words(&self.index)[at..at + BUCKET_WORDS]
    }

    /// The words of a direction; `None` of a flow that there is no room for.
    pub(super) fn side(&self, flow: u32, side: usize) -> Option<&[AtomicU64]> {
        let at = flow as usize * FLOW_WORDS + side * SIDE_WORDS;
        (flow < self.shape.flows).then(|| words(&self.entries).get(at..at + SIDE_WORDS))?
    }
}

fn words(words: &Words) -> &[AtomicU64] {
    (**words).as_ref()
}

/// Sequence numbers in one word.
pub(super) fn end_and_ack(numbers: &FastNumbers) -> u64 {
    u64::from(numbers.end) | u64::from(numbers.ack) << 32
}
