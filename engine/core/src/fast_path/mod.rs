//! The fast path: established flows that the kernel itself sends on, in the interrupt that brings their frames.
//!
//! A program at the ingress of an interface ([`program`]) looks a frame up in a table in memory that it shares with this process, rewrites it and redirects it. What
//! it takes is what [`read_straight`](crate::packet::straight::read_straight) takes and what fits the flow's sequence numbers; anything else comes through the packet
//! sockets as ever, whose filter judges with the same code and leaves out what the program takes. All decisions stay here: [`FastTable`] enters flows, reads what the
//! kernel noted about them and takes them out again. [`FastMemory::carry`] is the program once more, in Rust: what the tests hold the real one to.
//!
//! The memory is three arrays of words:
//!
//! | array | element | holds |
//! |---|---|---|
//! | control | all that is there once | for each worker the generations that its flows and transits must have, and the head of its list of flows that are over; for each server how many are |
//! | index | a bucket of 8 words | 0, or the number of a direction and 32 bits of its tuple's hash |
//! | entries | a flow of 32 words | 16 for each direction: 8 that only this process writes, 8 that the kernel writes too |
//!
//! Beside flows there are *transits*: one direction each of a connection that is only routed. Nothing of it is changed but MACs and hop limit, and its sequence numbers are
//! nobody's business; it takes the number of a flow and uses the first direction of it.
//!
//! The kernel carries the ends of a connection as well, where that was asked for: both FINs, and what acknowledges them. With the last of these the flow is *over*: the
//! program counts it for its server and puts it in front of its worker's list, and the worker takes it out when it looks ([`FastTable::next_ended`]). Until then
//! everybody who asks how many connections a server has subtracts those counts ([`FastMemory::ended`]).
//!
//! Each worker has its own flows and writes nothing of another's; the buckets are shared and change by compare-and-swap. An entry is whole before its number stands in a bucket, and
//! its number rests [`REST_MS`] before it is another flow's, so a program that has found it just before it went reads what it found.

mod carry;
mod layout;
pub mod program;
mod table;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::ids::RealServerId;
use crate::packet::TupleV4;
use crate::packet::rewrite::Macs;
use crate::time::Now;

pub use crate::assembler::Slot;
pub use carry::Arrival;
pub use layout::{FastShape, MapShape};
pub use table::{FastSettings, FastTable};

/// Workers that can share one table.
pub const WORKERS_MAX: usize = 256;

/// How long the number of a flow that was taken out rests, in milliseconds: far longer than a program runs on any CPU.
pub const REST_MS: u64 = 100;

/// Words that the kernel may change at any time.
pub type Words = Arc<dyn AsRef<[AtomicU64]> + Send + Sync>;

/// A direction of a flow, to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FastSide {
    /// Addresses and ports as they arrive.
    pub from: TupleV4,
    /// Addresses and ports to send on with.
    pub to: TupleV4,
    /// Number of the interface that its frames arrive on.
    pub in_ifindex: u32,
    /// Number of the interface that they leave through.
    pub out_ifindex: u32,
    /// MACs to send on with.
    pub macs: Macs,
    /// Octets of the largest IP packet that the way ahead takes; of a super-packet, each segment has to fit.
    pub size_max: u32,
    /// Where its sender's TCP is.
    pub numbers: FastNumbers,
}

/// Where the sender of a direction is in its sequence numbers, as [`TcpTrack`](crate::flow::tcp::TcpTrack) keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FastNumbers {
    /// The highest sequence number after anything that it has sent.
    pub end: u32,
    /// The highest acknowledgment that it has sent.
    pub ack: u32,
    /// The largest window field that it has sent.
    pub window: u16,
    /// What the window field is shifted by, 0 to 14.
    pub scale: u8,
}

/// An established flow, to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FastFlow {
    /// Both directions, [`Forward`](crate::flow::Direction::Forward) first.
    pub sides: [FastSide; 2],
    /// The server that its end is counted for; `None`: segments with FIN are not carried.
    pub server: Option<RealServerId>,
}

/// One direction of a connection that is routed, to be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FastTransit {
    /// Addresses and ports, which it keeps.
    pub tuple: TupleV4,
    /// Number of the interface that its frames arrive on.
    pub in_ifindex: u32,
    /// Number of the interface that they leave through.
    pub out_ifindex: u32,
    /// MACs to send on with.
    pub macs: Macs,
    /// Octets of the largest IP packet that the way ahead takes; of a super-packet, each segment has to fit.
    pub size_max: u32,
}

/// The number of an entered flow or transit, until it is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FastId(pub u32);

/// Why a flow was not entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FastFull {
    /// The bucket of one of its directions is full, or has an entry that cannot be told from it.
    Bucket,
    /// All of the worker's entries are in use, or rest.
    Entries,
}

/// What the kernel has noted about a flow since it was entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FastUse {
    /// Both directions, [`Forward`](crate::flow::Direction::Forward) first.
    pub sides: [FastSideUse; 2],
    /// Whether the kernel has seen the connection end, and told so.
    pub is_over: bool,
}

impl FastUse {
    /// When the kernel last sent a frame of it on; when it was entered, if it never did.
    pub fn used(&self) -> Now {
        self.sides[0].used.max(self.sides[1].used)
    }
}

/// What the kernel has noted about a direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FastSideUse {
    /// When the last frame was sent on, some milliseconds off; when the flow was entered, if none was.
    pub used: Now,
    /// Frames sent on; a super-packet is one.
    pub frames: u64,
    /// Their octets, with the Ethernet header.
    pub octets: u64,
    /// Octets of their TCP payload.
    pub payload_octets: u64,
    /// Where the sender's TCP is now.
    pub numbers: FastNumbers,
    /// Its FIN, if it was sent on.
    pub fin: Option<FastFin>,
}

/// What is known of a FIN that was sent on. Its number is the end of its side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FastFin {
    /// The other side's was sent on before it, …
    pub is_second: bool,
    /// … and this side had it.
    pub answers: bool,
}

/// The memory of a table and what its hash is keyed with: all that a frame is judged by.
#[derive(Clone)]
pub struct FastMemory {
    shape: FastShape,
    keys: layout::HashKeys,
    control: Words,
    index: Words,
    entries: Words,
}

impl FastMemory {
    /// A table in memory that is all zero: `control`, `index` and `entries` have at least the words that `shape` says. The seed is secret.
    ///
    /// # Panics
    /// When there is less memory.
    pub fn new(shape: FastShape, seed: [u64; 2], control: Words, index: Words, entries: Words) -> FastMemory {
        for (words, map) in [(&control, shape.control()), (&index, shape.index()), (&entries, shape.entries())] {
            assert!((**words).as_ref().len() >= map.words(), "less memory than {map:?}");
        }
        FastMemory { shape, keys: layout::HashKeys::new(seed), control, index, entries }
    }

    /// A table in memory of this process alone, which no kernel reads: for tests and simulation.
    pub fn private(shape: FastShape, seed: [u64; 2]) -> FastMemory {
        let words = |map: MapShape| -> Words {
            let words: Box<[AtomicU64]> = (0..map.words()).map(|_| AtomicU64::new(0)).collect();
            Arc::new(words)
        };
        FastMemory::new(shape, seed, words(shape.control()), words(shape.index()), words(shape.entries()))
    }

    /// How many connections to a server are over that [`Loads`](crate::loads::Loads) still count.
    #[inline]
    pub fn ended(&self, server: RealServerId) -> u32 {
        // Below 0 for a moment where a flow is taken out that a program on another CPU is just going to count.
        self.ended_of(server).load(Ordering::Acquire).cast_signed().max(0) as u32
    }

    /// How large the table is.
    pub fn shape(&self) -> FastShape {
        self.shape
    }
}

impl std::fmt::Debug for FastMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Neither the keys, which are secret, nor the words.
        f.debug_struct("FastMemory").field("shape", &self.shape).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
