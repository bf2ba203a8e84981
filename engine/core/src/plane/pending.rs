//! Frames that wait for a next hop whose station is not known yet, and the next hops that the kernel is to be asked for.
//!
//! Everybody who can make us answer to an address on one of our links can make us wait for it, so nothing here grows: a hop more than there
//! is room for takes the place of the oldest, as a neighbour that exists answers sooner than it is pushed out.

use super::budget::Budget;
use super::{Network, PortId};
use crate::Now;
use crate::packet::{Ip, rewrite};

/// Octets of the longest frame that is held; what is longer is sent again by its sender.
pub const HELD_BYTES_MAX: usize = 2_048;
/// Frames that wait for one next hop.
pub(super) const HELD_PER_HOP_MAX: u32 = 32;
/// Next hops that are waited for.
pub(super) const HOPS_MAX: usize = 256;
/// After this time without an answer a next hop and its frames are given up (three questions, as RFC 4861 section 10 has it).
pub(super) const GIVE_UP_MS: u64 = 3_000;
/// A next hop is asked for once in this time.
pub(super) const ASK_MS: u64 = 1_000;

/// No frame.
const NONE: u32 = u32::MAX;

/// Why a frame was not held; it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HoldError {
    /// Others wait for other next hops, and there is no more room.
    Full,
    /// As many as may do so wait for this next hop.
    HopFull,
    /// It is longer than [`HELD_BYTES_MAX`].
    TooLong,
}

/// What was counted. Every frame that is held is sent, given up or evicted in the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PendingCounts {
    /// Frames held.
    pub(super) held: u64,
    /// Of these, sent when the next hop became known.
    pub(super) sent: u64,
    /// Of these, dropped because it did not within [`GIVE_UP_MS`].
    pub(super) given_up: u64,
    /// Of these, dropped to make room for frames of newer next hops.
    pub(super) evicted: u64,
    /// Frames that were refused.
    pub(super) refused: u64,
}

/// Frames that wait, by next hop.
#[derive(Debug)]
pub(super) struct Pending {
    /// Oldest first.
    hops: Vec<Hop>,
    slots: Slots,
    /// Questions of all next hops together: those pushed out and back in have no memory of when they were asked for.
    asks: Budget,
    counts: PendingCounts,
}

#[derive(Clone, Copy, Debug)]
struct Hop {
    port: PortId,
    via: Ip,
    /// Since when somebody waits for it.
    since: Now,
    asked: Option<Now>,
    first: u32,
    last: u32,
    frames: u32,
}

impl Pending {
    /// Room for `frames_max` frames (at least 1), allocated now.
    pub(super) fn new(frames_max: usize) -> Pending {
        Pending {
            hops: Vec::with_capacity(HOPS_MAX),
            slots: Slots::new(frames_max),
            asks: Budget::new(HOPS_MAX as u32),
            counts: PendingCounts::default(),
        }
    }

    /// Bytes that room for `frames_max` frames takes.
    pub(super) fn memory_bytes(frames_max: usize) -> usize {
        Slots::memory_bytes(frames_max) + HOPS_MAX * size_of::<Hop>()
    }

    /// Copies `frame`, which is as it will leave but for its MACs, and holds it until the station of `via` at `port` is known. It must
    /// be no super-packet, and its checksum complete. Whatever becomes of it, the next hop is asked for.
    pub(super) fn hold(&mut self, now: Now, port: PortId, via: Ip, frame: &[u8]) -> Result<(), HoldError> {
        let held = self.try_hold(now, port, via, frame);
        match held {
            Ok(()) => self.counts.held += 1,
            Err(_) => self.counts.refused += 1,
        }
        held
    }

    fn try_hold(&mut self, now: Now, port: PortId, via: Ip, frame: &[u8]) -> Result<(), HoldError> {
        let is_it = |hop: &Hop| hop.via == via && hop.port == port;
        if !self.hops.iter().any(is_it) {
            if self.hops.len() == HOPS_MAX {
                self.evict_oldest(|_| true);
            }
            self.hops.push(Hop { port, via, since: now, asked: None, first: NONE, last: NONE, frames: 0 });
        }
        if frame.len() > HELD_BYTES_MAX {
            return Err(HoldError::TooLong);
        }
        if self.slots.is_full() {
            self.evict_oldest(|hop| hop.frames > 0 && !is_it(hop));
        }
        let hop = self.hops.iter_mut().find(|hop| is_it(hop)).ok_or(HoldError::Full)?;
        if hop.frames >= HELD_PER_HOP_MAX {
            return Err(HoldError::HopFull);
        }
        let slot = self.slots.fill(frame).ok_or(HoldError::Full)?;
        match hop.first {
            NONE => hop.first = slot,
            _ => self.slots.link(hop.last, slot),
        }
        hop.last = slot;
        hop.frames += 1;
        Ok(())
    }

    /// Hands `send` what has a next hop in `network`, with both MACs written, in the order in which it came for each next hop.
    pub(super) fn adopt(&mut self, network: &Network, mut send: impl FnMut(PortId, &[u8])) {
        let Pending { hops, slots, counts, .. } = self;
        hops.retain(|hop| {
            let Some((id, mac)) = network.station(hop.port, hop.via) else { return true };
            let Some(port) = network.port(id) else { return true };
            slots.empty(hop.first, |frame| {
                if rewrite::set_macs(frame, &rewrite::Macs::new(mac, port.mac)).is_ok() {
                    send(id, frame);
                }
            });
            counts.sent += u64::from(hop.frames);
            false
        });
    }

    /// A next hop to ask for: each once in [`ASK_MS`] for as long as it is waited for. `None` when there is none now.
    pub(super) fn wanted(&mut self, now: Now) -> Option<(PortId, Ip)> {
        let is_due = |hop: &&mut Hop| hop.asked.is_none_or(|asked| now.ms_since(asked) >= ASK_MS);
        let hop = self.hops.iter_mut().find(is_due)?;
        if !self.asks.take(now) {
            return None;
        }
        hop.asked = Some(now);
        Some((hop.port, hop.via))
    }

    /// Gives up next hops that nobody has answered for since [`GIVE_UP_MS`], and what waits for them.
    pub(super) fn expire(&mut self, now: Now) {
        while let Some(hop) = self.hops.first()
            && now.ms_since(hop.since) >= GIVE_UP_MS
        {
            self.counts.given_up += u64::from(hop.frames);
            self.remove(0);
        }
    }

    /// When [`Pending::expire`] has something to do next; `None` while nothing waits.
    pub(super) fn next_due(&self) -> Option<Now> {
        self.hops.first().map(|hop| hop.since + GIVE_UP_MS)
    }

    /// What was counted since it was made.
    pub(super) fn counts(&self) -> &PendingCounts {
        &self.counts
    }

    /// Drops the oldest next hop that `may_go`, with its frames.
    fn evict_oldest(&mut self, may_go: impl Fn(&Hop) -> bool) {
        if let Some(at) = self.hops.iter().position(may_go) {
            self.counts.evicted += u64::from(self.hops[at].frames);
            self.remove(at);
        }
    }

    fn remove(&mut self, at: usize) {
        let hop = self.hops.remove(at);
        self.slots.empty(hop.first, |_| {});
    }
}

/// The frames themselves, in chains of slots.
#[derive(Debug)]
struct Slots {
    bytes: Box<[[u8; HELD_BYTES_MAX]]>,
    chain: Box<[Link]>,
    /// The first slot without a frame.
    free: u32,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    len: u16,
    next: u32,
}

impl Slots {
    fn new(frames_max: usize) -> Slots {
        let count = Slots::count(frames_max);
        let chain = (1..=count).map(|next| Link { len: 0, next: if next == count { NONE } else { next } }).collect();
        Slots { bytes: vec![[0; HELD_BYTES_MAX]; count as usize].into_boxed_slice(), chain, free: 0 }
    }

    fn count(frames_max: usize) -> u32 {
        u32::try_from(frames_max).unwrap_or(NONE).clamp(1, NONE - 1)
    }

    fn memory_bytes(frames_max: usize) -> usize {
        Slots::count(frames_max) as usize * (HELD_BYTES_MAX + size_of::<Link>())
    }

    fn is_full(&self) -> bool {
        self.free == NONE
    }

    /// Copies `frame`, at most [`HELD_BYTES_MAX`] octets, to a slot of its own.
    fn fill(&mut self, frame: &[u8]) -> Option<u32> {
        let slot = self.free;
        let link = self.chain.get_mut(slot as usize)?;
        self.bytes.get_mut(slot as usize)?.get_mut(..frame.len())?.copy_from_slice(frame);
        self.free = link.next;
        *link = Link { len: frame.len() as u16, next: NONE };
        Some(slot)
    }

    /// Puts `slot` behind `last`, the end of a chain.
    fn link(&mut self, last: u32, slot: u32) {
        if let Some(link) = self.chain.get_mut(last as usize) {
            link.next = slot;
        }
    }

    /// Shows `see` the frames of the chain that begins with `first`, and frees their slots.
    fn empty(&mut self, first: u32, mut see: impl FnMut(&mut [u8])) {
        let mut slot = first;
        while let (Some(link), Some(bytes)) = (self.chain.get_mut(slot as usize), self.bytes.get_mut(slot as usize)) {
            see(bytes.get_mut(..usize::from(link.len)).unwrap_or_default());
            let next = link.next;
            link.next = self.free;
            self.free = slot;
            slot = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::packet::Mac;
    use crate::plane::Port;

    const PORT: PortId = PortId(0);
    const OURS: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const THEIRS: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn host(number: usize) -> Ip {
        Ipv4Addr::from_bits(0x0a00_0000 + number as u32).into()
    }

    /// A frame whose octets behind the MACs are `mark`.
    fn frame(mark: u8, len: usize) -> Vec<u8> {
        let mut frame = vec![mark; len];
        frame[..12].fill(0);
        frame
    }

    fn network(known: &[Ip]) -> Network {
        let port = Port { name: "in".into(), mac: OURS, mtu: 1500, segments: true, ..Port::default() };
        let neighbours = known.iter().map(|&ip| (PORT, ip, THEIRS)).collect();
        Network::new(vec![port], vec![(host(0), 8, None, PORT, 0)], neighbours)
    }

    fn sent(pending: &mut Pending, known: &[Ip]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        pending.adopt(&network(known), |port, frame| {
            assert_eq!(port, PORT);
            assert_eq!((&frame[..6], &frame[6..12]), (&THEIRS.0[..], &OURS.0[..]));
            frames.push(frame.to_vec());
        });
        frames
    }

    fn marks(frames: &[Vec<u8>]) -> Vec<(u8, usize)> {
        frames.iter().map(|frame| (frame[12], frame.len())).collect()
    }

    #[test]
    fn frames_leave_in_order_when_their_next_hop_is_known() {
        let mut pending = Pending::new(8);
        for (hop, mark, len) in [(1, 1, 60), (2, 2, 61), (1, 3, 1_514), (2, 4, 62), (1, 5, 14)] {
            assert_eq!(pending.hold(Now(0), PORT, host(hop), &frame(mark, len)), Ok(()));
        }
        assert_eq!(sent(&mut pending, &[host(3)]), Vec::<Vec<u8>>::new());
        assert_eq!(marks(&sent(&mut pending, &[host(1), host(3)])), [(1, 60), (3, 1_514), (5, 14)]);
        assert_eq!(marks(&sent(&mut pending, &[host(1), host(2)])), [(2, 61), (4, 62)]);
        assert_eq!(pending.next_due(), None);
        assert_eq!(*pending.counts(), PendingCounts { held: 5, sent: 5, ..PendingCounts::default() });
    }

    #[test]
    fn a_next_hop_is_asked_for_once_a_second_and_given_up_after_three() {
        let mut pending = Pending::new(8);
        assert_eq!(pending.wanted(Now(0)), None);
        assert_eq!(pending.hold(Now(100), PORT, host(1), &frame(1, 60)), Ok(()));
        assert_eq!(pending.hold(Now(200), PORT, host(1), &frame(2, 60)), Ok(()));
        assert_eq!(pending.hold(Now(300), PORT, host(2), &frame(3, 60)), Ok(()));
        assert_eq!(pending.wanted(Now(300)), Some((PORT, host(1))));
        assert_eq!(pending.wanted(Now(300)), Some((PORT, host(2))));
        assert_eq!(pending.wanted(Now(1_299)), None);
        assert_eq!(pending.wanted(Now(1_300)), Some((PORT, host(1))));
        assert_eq!(pending.next_due(), Some(Now(3_100)));
        pending.expire(Now(3_099));
        assert_eq!(pending.counts().given_up, 0);
        pending.expire(Now(3_100));
        assert_eq!((pending.counts().given_up, pending.next_due()), (2, Some(Now(3_300))));
        pending.expire(Now(9_000));
        assert_eq!((pending.counts().given_up, pending.next_due()), (3, None));
        assert_eq!(pending.wanted(Now(9_000)), None);
        // Who comes back later is asked for again.
        assert_eq!(pending.hold(Now(9_000), PORT, host(1), &frame(4, 60)), Ok(()));
        assert_eq!(pending.wanted(Now(9_000)), Some((PORT, host(1))));
    }

    #[test]
    fn one_next_hop_holds_a_few_frames_and_is_asked_for_all_the_same() {
        let mut pending = Pending::new(1_000);
        for _ in 0..HELD_PER_HOP_MAX {
            assert_eq!(pending.hold(Now(0), PORT, host(1), &frame(1, 60)), Ok(()));
        }
        assert_eq!(pending.hold(Now(0), PORT, host(1), &frame(1, 60)), Err(HoldError::HopFull));
        assert_eq!(pending.hold(Now(0), PORT, host(2), &frame(1, HELD_BYTES_MAX + 1)), Err(HoldError::TooLong));
        assert_eq!(pending.hold(Now(0), PORT, host(2), &frame(1, HELD_BYTES_MAX)), Ok(()));
        assert_eq!(pending.wanted(Now(0)), Some((PORT, host(1))));
        assert_eq!(pending.wanted(Now(0)), Some((PORT, host(2))));
        assert_eq!(pending.counts().refused, 2);
    }

    #[test]
    fn the_newer_next_hop_takes_the_place_of_the_oldest() {
        let mut pending = Pending::new(2);
        assert_eq!(pending.hold(Now(0), PORT, host(1), &frame(1, 60)), Ok(()));
        assert_eq!(pending.hold(Now(0), PORT, host(2), &frame(2, 60)), Ok(()));
        assert_eq!(pending.hold(Now(0), PORT, host(3), &frame(3, 60)), Ok(()));
        assert_eq!(pending.counts().evicted, 1);
        assert_eq!(marks(&sent(&mut pending, &[host(1), host(2), host(3)])), [(2, 60), (3, 60)]);

        // One that has all the room does not push itself out.
        assert_eq!(pending.hold(Now(0), PORT, host(4), &frame(4, 60)), Ok(()));
        assert_eq!(pending.hold(Now(0), PORT, host(4), &frame(5, 60)), Ok(()));
        assert_eq!(pending.hold(Now(0), PORT, host(4), &frame(6, 60)), Err(HoldError::Full));

        let mut pending = Pending::new(2 * HOPS_MAX);
        for hop in 0..HOPS_MAX + 10 {
            assert_eq!(pending.hold(Now(0), PORT, host(hop), &frame(7, 60)), Ok(()));
        }
        assert_eq!(pending.counts().evicted, 10);
        // A flood of next hops does not become a flood of questions.
        assert_eq!(std::iter::from_fn(|| pending.wanted(Now(0))).count(), HOPS_MAX);
        assert_eq!(pending.hold(Now(1), PORT, host(0), &frame(8, 60)), Ok(()));
        assert_eq!(pending.wanted(Now(1)), None);
        assert_eq!(pending.wanted(Now(500)), Some((PORT, host(0))));
    }

    proptest! {
        #[test]
        fn every_frame_that_is_held_leaves_once(
            frames_max in 1_usize..12,
            steps in prop::collection::vec((0_u8..8, 0_usize..6, 14_usize..200), 1..200),
        ) {
            let mut pending = Pending::new(frames_max);
            let mut now = Now(0);
            // What each next hop ought to send, unless it was dropped and counted.
            let mut expected: [VecDeque<u8>; 6] = std::array::from_fn(|_| VecDeque::new());
            let mut sent_frames = 0;
            for (mark, (step, hop, len)) in (1_u8..).zip(steps) {
                match step {
                    0 => {
                        for frame in sent(&mut pending, &[host(hop)]) {
                            let before = expected[hop].len();
                            expected[hop].retain(|&held| held != frame[12]);
                            prop_assert_eq!(expected[hop].len() + 1, before);
                            sent_frames += 1;
                        }
                        expected[hop].clear();
                    }
                    1 => {
                        now = now + 1_500;
                        pending.expire(now);
                    }
                    _ => {
                        if pending.hold(now, PORT, host(hop), &frame(mark, len)).is_ok() {
                            expected[hop].push_back(mark);
                        }
                    }
                }
                let counts = *pending.counts();
                let waiting = counts.held - counts.sent - counts.given_up - counts.evicted;
                prop_assert_eq!(counts.sent, sent_frames);
                prop_assert!(waiting <= frames_max as u64);
                prop_assert_eq!(waiting, pending.hops.iter().map(|hop| u64::from(hop.frames)).sum::<u64>());
            }
        }
    }
}
