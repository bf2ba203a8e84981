//! What the kernel does with a frame, in Rust: the same judgement, the same octets, the same notes.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::FastMemory;
use super::layout::{self, GENERATIONS, SCALE_SHIFT, TRANSIT, WORKER_SHIFT};
use crate::flow::tcp::{OLDER_MIN_BYTES, SCALE_MAX};
use crate::ids::RealServerId;
use crate::packet::TupleV4;
use crate::packet::rewrite::{Checksum, Macs};
use crate::packet::straight::{Station, Straight, read_straight_or_last};

/// How a frame arrives.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Number of the interface.
    pub ifindex: u32,
    /// The station that the interface is.
    pub station: Station,
    /// Whether it came with a VLAN tag.
    pub is_tagged: bool,
    /// What the TCP checksum field holds, where there is one.
    pub checksum: Checksum,
    /// Octets of payload of a segment of a super-packet; 0 of any other frame.
    pub segment_bytes: u16,
}

impl FastMemory {
    /// Takes a frame of an entered flow onwards, at `now_ns` of CLOCK_MONOTONIC; returns the number of the interface that it leaves through. `None`: the frame is
    /// not for the fast path, and nothing has changed.
    pub fn carry(&self, frame: &mut [u8], arrival: &Arrival, now_ns: u64) -> Option<u32> {
        let tuple = read_straight_or_last(frame, arrival.station)?;
        let octets = frame.len() as u64;
        if arrival.is_tagged || arrival.checksum == Checksum::Absent {
            return None;
        }
        let (flow, side) = self.find(tuple, arrival.ifindex)?;
        let (words, other) = (self.side(flow, side)?, self.side(flow, 1 - side)?);
        let get = |word: usize| words[word].load(Relaxed);
        let packet = Straight::of(frame)?;
        let (total_len, headers_len) = (packet.total_len(), packet.headers_len());
        let largest = match arrival.segment_bytes {
            0 => total_len,
            segment => headers_len + u32::from(segment),
        };
        let payload_len = total_len - headers_len;
        let has_fin = packet.has_fin();
        let end = packet.seq().wrapping_add(payload_len).wrapping_add(has_fin.into());
        let (macs, size_max) = (get(layout::MACS_AND_SIZE) as u32, (get(layout::MACS_AND_SIZE) >> 32) as u32);
        let owner = get(layout::GENERATION_AND_WORKER);
        let is_transit = worker_of(owner) & TRANSIT != 0;
        let scale = (owner >> SCALE_SHIFT) as u32;
        if largest > size_max || has_fin && server_of(words).is_none() {
            return None;
        }
        let fits = || fits(words, other, scale, packet.seq(), end, packet.ack()) && is_before_fin(words, end);
        if !is_transit && !fits() {
            return None;
        }
        note(words, end, packet.ack(), packet.window());
        if has_fin {
            note_fin(words, other, end);
        }
        words[layout::USED_NS].store(now_ns, Relaxed);
        words[layout::FRAMES].fetch_add(1, Relaxed);
        words[layout::OCTETS].fetch_add(octets, Relaxed);
        words[layout::PAYLOAD_OCTETS].fetch_add(payload_len.into(), Relaxed);
        if has_ended(words, other) {
            self.list(flow, worker_of(owner));
        }
        let to = get(layout::TO_PORTS_AND_INTERFACE);
        let macs = Macs::of_words(get(layout::MACS), macs);
        let onwards = TupleV4 { addresses: get(layout::TO_ADDRESSES), ports: to as u32 };
        match is_transit {
            true => packet.route_on(&macs),
            false => packet.redirect(arrival.checksum, onwards, &macs),
        }
        Some((to >> 32) as u32)
    }

    /// The flow that a tuple is of, and its direction.
    fn find(&self, tuple: TupleV4, ifindex: u32) -> Option<(u32, usize)> {
        let (flow, side) = self.look_up(tuple)?;
        let words = self.side(flow, side)?;
        let owner = words[layout::GENERATION_AND_WORKER].load(Acquire);
        let generation = self.generation(worker_of(owner)).load(Relaxed);
        let is_it = owner as u32 == generation as u32
            && words[layout::FROM_ADDRESSES].load(Relaxed) == tuple.addresses
            && words[layout::FROM_PORTS_AND_INTERFACE].load(Relaxed)
                == u64::from(ifindex) << 32 | u64::from(tuple.ports);
        is_it.then_some((flow, side))
    }

    /// The number and direction that the index has for a tuple, be it another's of the same tag.
    pub(super) fn look_up(&self, tuple: TupleV4) -> Option<(u32, usize)> {
        let hash = self.keys.hash(tuple);
        let tag = layout::tag(hash);
        // The first of that tag: there is at most one.
        let item = self.bucket(hash).iter().map(|word| word.load(Acquire)).find(|item| item >> 32 == tag)?;
        Some((item as u32 >> 1, (item & 1) as usize))
    }
}

impl FastMemory {
    /// A flow is over: it is put in front of its worker's list, and counted for its server. Only the first time.
    fn list(&self, flow: u32, worker: usize) {
        let [Some(first), Some(second)] = [0, 1].map(|side| self.side(flow, side)) else { return };
        let listed = &first[layout::LISTED_OR_NEXT];
        if listed.compare_exchange(layout::LISTED_NOT, layout::LISTED, AcqRel, Relaxed).is_err() {
            return;
        }
        if let Some(server) = server_of(first) {
            self.ended_of(server).fetch_add(1, AcqRel);
        }
        let next = self.head(worker).swap(u64::from(flow) + 1, AcqRel);
        second[layout::LISTED_OR_NEXT].store(next | layout::NEXT_IS_KNOWN, Release);
    }
}

/// The server of a flow whose ends are carried.
pub(super) fn server_of(words: &[AtomicU64]) -> Option<RealServerId> {
    let number = (words[layout::WINDOW_AND_SERVER].load(Relaxed) >> 32) as u32;
    Some(RealServerId(number.checked_sub(1)? as u16))
}

/// Whether no end lies behind that of the FIN that was sent on: who sends more has not sent that.
fn is_before_fin(words: &[AtomicU64], end: u32) -> bool {
    let known = words[layout::END_AND_ACK].load(Relaxed) as u32;
    words[layout::FIN].load(Relaxed) == 0 || known.wrapping_sub(end) as i32 >= 0
}

/// Notes the FIN of a segment that fits and whose numbers are noted. One that is older than something else of its sender's is none.
fn note_fin(words: &[AtomicU64], other: &[AtomicU64], end: u32) {
    if words[layout::FIN].load(Relaxed) != 0 || words[layout::END_AND_ACK].load(Relaxed) as u32 != end {
        return;
    }
    let is_second = other[layout::FIN].load(Relaxed) != 0;
    let second = if is_second { layout::FIN_SECOND } else { 0 };
    let answers = if is_second && acknowledges(words, other) { layout::FIN_ANSWERS } else { 0 };
    words[layout::FIN].store(layout::FIN_SENT | second | answers, Relaxed);
}

/// Whether both sides have closed, and each has acknowledged it.
fn has_ended(words: &[AtomicU64], other: &[AtomicU64]) -> bool {
    let has_closed = |words: &[AtomicU64]| words[layout::FIN].load(Relaxed) != 0;
    has_closed(words) && has_closed(other) && acknowledges(words, other) && acknowledges(other, words)
}

/// Whether a side has acknowledged all that the other one has sent.
fn acknowledges(words: &[AtomicU64], other: &[AtomicU64]) -> bool {
    words[layout::END_AND_ACK].load(Relaxed) >> 32 == other[layout::END_AND_ACK].load(Relaxed) & u64::from(u32::MAX)
}

/// The worker in a [`layout::GENERATION_AND_WORKER`], with [`TRANSIT`] if it is of a transit.
pub(super) fn worker_of(owner: u64) -> usize {
    (owner >> WORKER_SHIFT) as usize % GENERATIONS
}

/// Whether a segment fits the numbers of both sides, as [`TcpTrack::advance_open`](crate::flow::tcp::TcpTrack::advance_open) asks. `scale` is that of the other side's window.
fn fits(words: &[AtomicU64], other: &[AtomicU64], scale: u32, seq: u32, end: u32, ack: u32) -> bool {
    let split = |numbers: u64| (numbers as u32, (numbers >> 32) as u32);
    let (own_end, own_ack) = split(words[layout::END_AND_ACK].load(Relaxed));
    let (other_end, other_ack) = split(other[layout::END_AND_ACK].load(Relaxed));
    let window = (other[layout::WINDOW_AND_SERVER].load(Relaxed) as u32 & 0xffff) << scale.min(SCALE_MAX.into());
    let signs = other_ack.wrapping_add(window).wrapping_sub(seq)
        | end.wrapping_sub(own_end.wrapping_sub(OLDER_MIN_BYTES))
        | other_end.wrapping_sub(ack)
        | ack.wrapping_sub(own_ack.wrapping_sub(OLDER_MIN_BYTES));
    signs as i32 >= 0
}

/// Notes the numbers of a segment that fits, where they are newer.
pub(super) fn note(words: &[AtomicU64], end: u32, ack: u32, window: u16) {
    let known = words[layout::END_AND_ACK].load(Relaxed);
    let (known_end, known_ack) = (known as u32, (known >> 32) as u32);
    let later = |known: u32, new: u32| if new.wrapping_sub(known) as i32 > 0 { new } else { known };
    let noted = u64::from(later(known_end, end)) | u64::from(later(known_ack, ack)) << 32;
    if noted != known {
        words[layout::END_AND_ACK].store(noted, Relaxed);
    }
    let windows = words[layout::WINDOW_AND_SERVER].load(Relaxed);
    if u32::from(window) > windows as u32 {
        // Nobody else writes the upper half.
        words[layout::WINDOW_AND_SERVER].store(windows >> 32 << 32 | u64::from(window), Relaxed);
    }
}
