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
            note_fin(words, other, end, packet.ack());
        }
        note_fin_acked(words, other, packet.ack());
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
    fin_of(words).is_none_or(|(fin_end, _)| fin_end.wrapping_sub(end) as i32 >= 0)
}

/// The number after the FIN that a side has sent, and what else is known of it.
pub(super) fn fin_of(words: &[AtomicU64]) -> Option<(u32, u64)> {
    let fin = words[layout::FIN].load(Acquire);
    (fin != 0).then_some(((fin >> 32) as u32, fin & u64::from(u32::MAX)))
}

/// Notes the FIN of a segment that fits, that ends there and acknowledges that, and whose numbers are noted. One that is older than something else of its sender's is none.
fn note_fin(words: &[AtomicU64], other: &[AtomicU64], end: u32, ack: u32) {
    if end.wrapping_sub(words[layout::END_AND_ACK].load(Relaxed) as u32).cast_signed() < 0 {
        return;
    }
    let other_fin = fin_of(other);
    let second = if other_fin.is_some() { layout::FIN_SECOND } else { 0 };
    let answers = if other_fin.is_some_and(|(end, _)| acknowledges(words, ack, end)) { layout::FIN_ANSWERS } else { 0 };
    let acked = if noted_ack(other) == end { layout::FIN_ACKED } else { 0 };
    let fin = u64::from(end) << 32 | layout::FIN_SENT | second | answers | acked;
    // Only the first counts.
    let _known = words[layout::FIN].compare_exchange(0, fin, AcqRel, Relaxed);
}

/// Notes that the other side's FIN was acknowledged, if it is by this number.
fn note_fin_acked(words: &[AtomicU64], other: &[AtomicU64], ack: u32) {
    if fin_of(other).is_some_and(|(end, known)| known & layout::FIN_ACKED == 0 && acknowledges(words, ack, end)) {
        other[layout::FIN].fetch_or(layout::FIN_ACKED, AcqRel);
    }
}

/// Whether a side acknowledges this number, with a segment of this acknowledgment or one before it.
fn acknowledges(words: &[AtomicU64], ack: u32, end: u32) -> bool {
    ack == end || noted_ack(words) == end
}

fn noted_ack(words: &[AtomicU64]) -> u32 {
    (words[layout::END_AND_ACK].load(Relaxed) >> 32) as u32
}

/// Whether both sides have closed, and each has acknowledged it.
fn has_ended(words: &[AtomicU64], other: &[AtomicU64]) -> bool {
    [words, other].iter().all(|words| fin_of(words).is_some_and(|(_, known)| known & layout::FIN_ACKED != 0))
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

/// Notes the numbers of a segment that fits, where they are newer than what anybody has noted.
pub(super) fn note(words: &[AtomicU64], end: u32, ack: u32, window: u16) {
    let later = |known: u32, new: u32| if new.wrapping_sub(known) as i32 > 0 { new } else { known };
    let newer = |known: u64| {
        let noted = u64::from(later(known as u32, end)) | u64::from(later((known >> 32) as u32, ack)) << 32;
        (noted != known).then_some(noted)
    };
    let wider = |known: u64| (u32::from(window) > known as u32).then_some(known >> 32 << 32 | u64::from(window));
    // What is as new as that stays.
    let _known = words[layout::END_AND_ACK].fetch_update(Relaxed, Relaxed, newer);
    let _known = words[layout::WINDOW_AND_SERVER].fetch_update(Relaxed, Relaxed, wider);
}
