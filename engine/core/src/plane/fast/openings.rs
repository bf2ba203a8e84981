//! Half-open flows in the fast path: the kernel completes their handshakes.
//!
//! A flow is entered when its server has answered, so that the answer's acknowledgment finds it there. Nothing of the server's is carried before that
//! ([`TcpTrack::opening_numbers`](crate::flow::tcp::TcpTrack::opening_numbers)). The flow stays among the half-open ones, with their timer and caps, until the plane hears
//! that the handshake is complete: at the next call of another millisecond, as a rule. Whatever else comes by here of such a flow takes it out.

use std::collections::VecDeque;

use super::super::flows::{Detail, Ended, Flows, Found, Stage, State};
use super::super::{Desk, Frame, Plane, PortId};
use super::{Candidate, Fast, Holder, NOT_PLAIN, Place, numbers_of};
use crate::Now;
use crate::counters::Termination;
use crate::fast_path::FastId;
use crate::flow::{Direction, FlowId, PathHashes};
use crate::packet::{Parsed, TcpFlags};

/// One part in so many of the room is for half-open flows.
const SHARE: usize = 4;
/// For so long a flow is listened for each millisecond: a client that lives acknowledges an answer in a round trip.
const YOUNG_MS: u64 = 200;
/// Young ones that are listened for in a millisecond, and old ones, which a flood may have left.
const STEPS: [usize; 2] = [256, 32];

/// Half-open flows of the fast path, in the order in which they are listened for. Some may be gone.
pub(super) struct Openings {
    /// By number, with when they were entered: young ones, then old ones.
    queues: [VecDeque<(FastId, Now)>; 2],
    heard: Now,
}

impl Openings {
    pub(super) const BYTES_PER_FLOW: usize = 2 * size_of::<(FastId, Now)>().div_ceil(SHARE);

    pub(super) fn new(flows: usize, now: Now) -> Openings {
        Openings { queues: [0; 2].map(|_| VecDeque::with_capacity(flows / SHARE)), heard: now }
    }

    fn len(&self) -> usize {
        self.queues.iter().map(VecDeque::len).sum()
    }

    pub(super) fn enter(&mut self, id: FastId, now: Now) {
        self.queues[0].push_back((id, now));
    }

    /// Whether it is time to listen for them.
    #[inline]
    pub(super) fn is_due(&self, now: Now) -> bool {
        self.heard < now && self.queues.iter().any(|queue| !queue.is_empty())
    }

    #[cfg(test)]
    pub(super) fn forget_heard(&mut self) {
        self.heard = Now(0);
    }
}

/// What was heard of a half-open flow.
enum Heard {
    /// It is in the large table, as its handshake is complete.
    Established(FlowId),
    /// It is not in the fast path any more.
    Nothing,
    /// It may still come.
    Silence,
}

impl Fast {
    /// Whether one more half-open flow may be entered.
    pub(super) fn has_room_for_opening(&self) -> bool {
        self.openings.len() < self.table.room() as usize / SHARE && !self.is_crowded()
    }

    /// Tells the track of a half-open flow if the kernel has completed its handshake, and by when.
    pub(in super::super) fn complete(&self, detail: &Detail, state: &mut State) -> Option<Now> {
        let used = self.table.read(detail.fast()?);
        state.tcp_mut().complete(numbers_of(&used)).then(|| used.used())
    }
}

impl Flows {
    /// Whether a half-open flow is in the fast path.
    #[inline]
    pub(in super::super) fn is_lent_opening(&self, id: FlowId) -> bool {
        self.half_open.detail(id).is_some_and(|detail| detail.fast().is_some())
    }

    /// [`promote`](Flows::promote)s a half-open flow that stays in the fast path, if it is in it.
    #[expect(clippy::result_large_err, reason = "the flow itself, which its caller ends")]
    pub(in super::super) fn promote_there(
        &mut self,
        now: Now,
        id: FlowId,
        hashes: &PathHashes,
    ) -> Result<FlowId, Option<Ended>> {
        let fast_id = self.half_open.detail_mut(id).and_then(|detail| {
            let fast_id = detail.fast();
            detail.set_fast(None);
            fast_id
        });
        let promoted = self.promote(now, id, hashes);
        let (Some(fast_id), Some(fast)) = (fast_id, &mut self.fast) else { return promoted };
        match &promoted {
            &Ok(flow) => {
                if let Some(detail) = self.established.detail_mut(flow) {
                    detail.set_fast(Some(fast_id));
                }
                if let Some(state) = self.established.state_mut(flow) {
                    state.tcp_mut().lend();
                }
                if let Some(place) = fast.place(fast_id) {
                    place.holder = Holder::Flow(flow);
                }
            }
            Err(ended) => {
                let used = fast.table.remove(fast_id, fast.now);
                if let Some(ended) = ended {
                    fast.count(fast_id, ended.state.service(), &used);
                }
                if let Some(place) = fast.place(fast_id) {
                    place.holder = Holder::Nobody;
                }
            }
        }
        promoted
    }

    /// Takes a half-open flow out of the fast path, if it is in it. When the kernel was seen to have completed its handshake, just before.
    fn recall_opening(&mut self, id: FlowId) -> Option<Now> {
        let mut detail = *self.half_open.detail(id)?;
        let state = self.half_open.state_mut(id)?;
        let (used, _) = self.fast.as_mut()?.remove(&mut detail, state)?;
        let is_complete = state.tcp().is_synchronised();
        *self.half_open.detail_mut(id)? = detail;
        is_complete.then(|| used.used())
    }
}

impl Plane {
    /// A packet of a half-open flow that is in the fast path has come by here. If the kernel has completed its handshake it is in the large table from here on; else,
    /// unless this packet does so where such come in, it is taken out. Where it is then; `None`: there was no room for it.
    #[cold]
    pub(in super::super) fn meet_opening<D: Desk>(
        &mut self,
        found: Found,
        frame: &Frame<'_>,
        packet: &Parsed,
        desk: &mut D,
    ) -> Option<Found> {
        let id = found.id;
        let heard = match self.hear_opening(id, desk) {
            Heard::Silence if !self.is_last(found, frame, packet) => self.recall_half_open(id, desk),
            heard => heard,
        };
        match heard {
            Heard::Established(id) => Some(Found { stage: Stage::Established, id, ..found }),
            Heard::Nothing | Heard::Silence => self.flows.half_open.state(id).map(|_| found),
        }
    }

    /// Whether a packet completes the handshake of this half-open flow where such packets come in: its client was quicker than its entry, and the kernel is told.
    fn is_last(&mut self, found: Found, frame: &Frame<'_>, packet: &Parsed) -> bool {
        let Flows { half_open, fast: Some(fast), .. } = &mut self.flows else { return false };
        let is_plain = packet.tcp.flags.0 & NOT_PLAIN == TcpFlags::ACK.0;
        let completes = half_open.state(found.id).is_some_and(|state| state.tcp().is_completed_by(packet.tcp.ack));
        let place = half_open.detail(found.id).and_then(Detail::fast).and_then(|id| fast.place(id));
        is_plain
            && completes
            && found.direction == Direction::Forward
            && place.is_some_and(|place| place.arrivals[Direction::Forward as usize] == frame.port)
    }

    /// Takes a half-open flow out of the fast path. If the kernel has completed its handshake in the last moment it is in the large table from here on.
    fn recall_half_open<D: Desk>(&mut self, id: FlowId, desk: &mut D) -> Heard {
        match self.flows.recall_opening(id) {
            Some(seen) => self.move_on(seen, id, desk),
            None => Heard::Nothing,
        }
    }

    /// The kernel is not to complete the handshake of a half-open flow any more. Where in the large table that is, if it has.
    pub(in super::super) fn hear_for_good<D: Desk>(&mut self, id: FlowId, desk: &mut D) -> Option<FlowId> {
        let heard = match self.hear_opening(id, desk) {
            Heard::Silence => self.recall_half_open(id, desk),
            heard => heard,
        };
        if let Heard::Established(flow) = heard { Some(flow) } else { None }
    }

    /// Where a half-open flow is by now, as the kernel may have completed its handshake.
    pub(in super::super) fn listen_to<D: Desk>(&mut self, found: Found, desk: &mut D) -> Found {
        match self.hear_opening(found.id, desk) {
            Heard::Established(id) => Found { stage: Stage::Established, id, ..found },
            Heard::Nothing | Heard::Silence => found,
        }
    }

    /// The server of a half-open flow has answered, by this port.
    #[cold]
    pub(in super::super) fn note_answered(&mut self, id: FlowId, port: PortId) {
        if let Some(fast) = &mut self.flows.fast {
            fast.propose(Candidate { stage: Stage::HalfOpen, slot: id.slot(), arrivals: [None, Some(port)] });
        }
    }

    /// Looks whether the kernel has completed the handshakes of half-open flows.
    #[inline(never)]
    pub(super) fn hear_openings<D: Desk>(&mut self, now: Now, desk: &mut D) {
        for (age, step) in STEPS.into_iter().enumerate() {
            let Some(fast) = &mut self.flows.fast else { return };
            fast.openings.heard = now;
            for _ in 0..fast.openings.queues[age].len().min(step) {
                self.hear_next(now, age, desk);
            }
        }
    }

    fn hear_next<D: Desk>(&mut self, now: Now, age: usize, desk: &mut D) -> Option<()> {
        let fast = self.flows.fast.as_mut()?;
        let (id, entered) = fast.openings.queues[age].pop_front()?;
        let &mut Place { holder: Holder::Opening(flow), .. } = fast.place(id)? else { return None };
        if let Heard::Silence = self.hear_opening(flow, desk) {
            let is_old = now.ms_since(entered) > YOUNG_MS;
            self.flows.fast.as_mut()?.openings.queues[usize::from(is_old)].push_back((id, entered));
        }
        Some(())
    }

    /// Takes a half-open flow to the large table if the kernel has completed its handshake; it stays in the fast path.
    fn hear_opening<D: Desk>(&mut self, id: FlowId, desk: &mut D) -> Heard {
        let Flows { half_open, fast: Some(fast), .. } = &mut self.flows else { return Heard::Nothing };
        let Some(fast_id) = half_open.detail(id).and_then(Detail::fast) else { return Heard::Nothing };
        let Some(&(mut state)) = half_open.state(id) else { return Heard::Nothing };
        let seen = half_open.detail(id).and_then(|detail| fast.complete(detail, &mut state));
        match seen {
            Some(seen) => {
                half_open.follow(id, seen, |there| (None, *there = state));
                self.move_on(seen, id, desk)
            }
            None if fast.table.is_live(fast_id) => Heard::Silence,
            None => self.recall_half_open(id, desk),
        }
    }

    /// Takes a half-open flow to the large table whose track knows by now that the kernel has completed its handshake.
    fn move_on<D: Desk>(&mut self, seen: Now, id: FlowId, desk: &mut D) -> Heard {
        let half_open = &mut self.flows.half_open;
        let Some(service) = half_open.state(id).map(State::service) else { return Heard::Nothing };
        let rule = *self.services.rule(service);
        half_open.follow(id, seen, |state| (Some(rule.tcp_class(state.tcp().timeout())), ()));
        match self.establish_flow(seen, id, None, desk) {
            Ok(flow) => {
                // It was taken out when it was over.
                self.settle_closed(flow, desk);
                Heard::Established(flow)
            }
            Err(ended) => {
                // Whatever comes of it is of no connection any more, and its sender is told.
                if let Some(ended) = ended {
                    self.end(Stage::HalfOpen, ended, Termination::OutOfConnections, desk);
                }
                Heard::Nothing
            }
        }
    }
}
