//! Half-open flows in the fast path: the kernel completes their handshakes.
//!
//! A flow is entered when its server has answered, so that the answer's acknowledgment finds it there. Nothing of the server's is carried before that
//! ([`TcpTrack::opening_numbers`](crate::flow::tcp::TcpTrack::opening_numbers)). The flow stays among the half-open ones, with their timer and caps, until the plane hears
//! that the handshake is complete: at the next call of another millisecond. Whatever else comes by here of such a flow takes it out.

use super::super::flows::{Detail, Ended, Flows, Found, Stage, State};
use super::super::{Desk, Frame, Plane, PortId};
use super::{Candidate, Fast, Holder, NOT_PLAIN, carried_at};
use crate::Now;
use crate::counters::Termination;
use crate::flow::tcp::TcpTimeout;
use crate::flow::{Direction, FlowId, PathHashes};
use crate::packet::{Parsed, TcpFlags};

/// Half-open flows that are looked at in one go, whether the kernel has completed their handshakes.
const HEARD_STEP: usize = 1_024;
/// One part in so many of the room is for half-open flows.
pub(super) const OPENING_SHARE: usize = 4;

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
        self.openings.len() < self.table.room() as usize / OPENING_SHARE && !self.is_crowded()
    }

    /// Tells the track of a half-open flow if the kernel has completed its handshake, and when.
    pub(in super::super) fn complete(&self, detail: &Detail, state: &mut State) -> Option<Now> {
        let used = self.table.read(detail.fast()?);
        let seen = carried_at(&used)?;
        state.tcp_mut().complete(used.sides.each_ref().map(|side| &side.numbers)).then_some(seen)
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

    /// Takes a half-open flow out of the fast path, if it is in it.
    pub(in super::super) fn recall_opening(&mut self, id: FlowId) -> Option<()> {
        let mut detail = *self.half_open.detail(id)?;
        self.fast.as_mut()?.remove(&mut detail, self.half_open.state_mut(id)?)?;
        *self.half_open.detail_mut(id)? = detail;
        Some(())
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
        match self.hear_opening(id, desk) {
            Heard::Established(id) => return Some(Found { stage: Stage::Established, id, ..found }),
            Heard::Nothing => {}
            Heard::Silence => {
                // Of a client that was quicker, and completes its handshake here: it is told to the kernel.
                let is_plain = packet.tcp.flags.0 & NOT_PLAIN == TcpFlags::ACK.0;
                let is_last = is_plain
                    && found.direction == Direction::Forward
                    && self.flows.half_open.state(id).is_some_and(|state| state.tcp().is_completed_by(packet.tcp.ack));
                let fast_id = self.flows.half_open.detail(id).and_then(Detail::fast);
                let place = fast_id.and_then(|fast_id| self.flows.fast.as_mut()?.place(fast_id));
                if !is_last || place.is_none_or(|place| place.arrivals[Direction::Forward as usize] != frame.port) {
                    self.flows.recall_opening(id);
                }
            }
        }
        self.flows.half_open.state(id).map(|_| found)
    }

    /// The kernel is not to complete the handshake of a half-open flow any more. Where in the large table that is, if it has.
    pub(in super::super) fn hear_for_good<D: Desk>(&mut self, id: FlowId, desk: &mut D) -> Option<FlowId> {
        match self.hear_opening(id, desk) {
            Heard::Established(flow) => return Some(flow),
            Heard::Nothing => {}
            Heard::Silence => {
                self.flows.recall_opening(id);
            }
        }
        None
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
    pub(super) fn hear_openings<D: Desk>(&mut self, desk: &mut D) {
        let count = self.flows.fast.as_ref().map_or(0, |fast| fast.openings.len());
        for _ in 0..count.min(HEARD_STEP) {
            let Some(id) = self.flows.fast.as_mut().and_then(|fast| fast.openings.pop_front()) else { return };
            if let Heard::Silence = self.hear_opening(id, desk)
                && let Some(fast) = &mut self.flows.fast
            {
                fast.openings.push_back(id);
            }
        }
    }

    /// Takes a half-open flow to the large table if the kernel has completed its handshake; it stays in the fast path.
    fn hear_opening<D: Desk>(&mut self, id: FlowId, desk: &mut D) -> Heard {
        let Flows { half_open, fast: Some(fast), .. } = &mut self.flows else { return Heard::Nothing };
        let Some(fast_id) = half_open.detail(id).and_then(Detail::fast) else { return Heard::Nothing };
        let Some(&(mut state)) = half_open.state(id) else { return Heard::Nothing };
        let Some(seen) = half_open.detail(id).and_then(|detail| fast.complete(detail, &mut state)) else {
            if fast.table.is_live(fast_id) {
                return Heard::Silence;
            }
            self.flows.recall_opening(id);
            return Heard::Nothing;
        };
        let class = self.services.rule(state.service()).tcp_class(TcpTimeout::Established);
        half_open.follow(id, seen, |there| (Some(class), *there = state));
        match self.establish_flow(seen, id, None, desk) {
            Ok(flow) => return Heard::Established(flow),
            // Whatever comes of it is of no connection any more, and its sender is told.
            Err(Some(ended)) => self.end(Stage::HalfOpen, ended, Termination::OutOfConnections, desk),
            Err(None) => {}
        }
        Heard::Nothing
    }
}
