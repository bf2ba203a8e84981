//! What an operator asks at run time: which flows there are, where one is, and the end of one.
//!
//! Nothing here changes what packets meet, but for [`Plane::end_flow`]. A survey looks at as many places as it is told to, so whoever walks over all flows
//! decides how much of a breath that takes.

use std::net::SocketAddr;

use super::flows::{Found, Stage};
use super::{Desk, Outbox, Plane};
use crate::counters::Termination;
use crate::flow::tcp::TcpState;
use crate::flow::{Direction, FlowId, FlowPath};
use crate::packet::{PROTOCOL_TCP, Packet, Tuple, parse};
use crate::{Now, PickReason, RealServerId, ServiceId};

/// A walk over all flows: half-open ones first, since they may move to the other table meanwhile. So a flow may be met twice, and none that lives throughout is
/// missed.
#[derive(Clone, Copy, Debug)]
pub struct Survey {
    stage: Stage,
    slot: usize,
}

impl Survey {
    /// From the start.
    pub const START: Survey = Survey { stage: Stage::HalfOpen, slot: 0 };

    pub(super) fn place(&self) -> (Stage, usize) {
        (self.stage, self.slot)
    }

    /// Goes on behind the place.
    pub(super) fn pass(&mut self) {
        self.slot += 1;
    }

    /// Goes on with the other table; false: there is none.
    pub(super) fn next_stage(&mut self) -> bool {
        let is_first = self.stage == Stage::HalfOpen;
        if is_first {
            *self = Survey { stage: Stage::Established, slot: 0 };
        }
        is_first
    }
}

/// One flow of a plane, and no later one at the same place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowPlace {
    /// Whether it is in the table of half-open flows.
    pub is_half_open: bool,
    /// Its place there.
    pub slot: u32,
    /// Which one of that place it is.
    pub generation: u32,
}

impl FlowPlace {
    fn of(stage: Stage, id: FlowId) -> FlowPlace {
        FlowPlace { is_half_open: stage == Stage::HalfOpen, slot: id.slot() as u32, generation: id.generation() }
    }

    fn stage(self) -> Stage {
        if self.is_half_open { Stage::HalfOpen } else { Stage::Established }
    }
}

/// A flow as it is found.
#[derive(Clone, Copy, Debug)]
pub struct SurveyedFlow {
    /// Where it is.
    pub place: FlowPlace,
    /// Its tuples.
    pub path: FlowPath,
    /// The service that it is counted for, or the lane of what was opened from inside.
    pub service: ServiceId,
    /// Its real server; `None` where it was opened from inside.
    pub server: Option<RealServerId>,
    /// How that was picked.
    pub why: PickReason,
    /// The word for how far it is.
    pub state: &'static str,
    /// Whether it counts as a connection; one that does not only waits for late packets.
    pub is_counted: bool,
    /// Whether the port that the real server sees is leased for it.
    pub is_leased: bool,
    /// Whether the kernel carries it onwards.
    pub is_fast: bool,
    /// When a packet of it was seen last, to within a tick of its table; of one that the kernel carries, to within a second.
    pub seen: Now,
    /// When it ends if there is no further packet.
    pub due: Now,
}

/// What became of the wish to end a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowEnd {
    /// It is ended, and both sides were told.
    Ended,
    /// It is not there any more, or over already.
    Gone,
    /// There is no room for its resets now.
    NoRoom,
}

impl Plane {
    /// Tells `found` of the flows at the next `slots` places; it says whether to go on, and the walk stops behind the flow where it does not. Whether
    /// that was the end.
    pub fn survey(&self, at: &mut Survey, slots: usize, mut found: impl FnMut(&SurveyedFlow) -> bool) -> bool {
        for _ in 0..slots {
            let table = self.flows.table(at.stage);
            // Places are given out from the first one on: behind one that never was taken, none was.
            if !table.was_taken(at.slot) {
                if !at.next_stage() {
                    return true;
                }
                continue;
            }
            let flow = table.at(at.slot).and_then(|id| self.surveyed(at.stage, id));
            at.slot += 1;
            if flow.is_some_and(|flow| !found(&flow)) {
                return false;
            }
        }
        false
    }

    /// The flow that packets with this tuple belong to, and which side sends them.
    pub fn find_flow(&self, tuple: &Tuple) -> Option<(SurveyedFlow, Direction)> {
        let Found { stage, id, direction } = self.flows.lookup(tuple)?;
        Some((self.surveyed(stage, id)?, direction))
    }

    /// The flow of this place, if it is still that one.
    pub fn flow_at(&self, place: FlowPlace) -> Option<SurveyedFlow> {
        let id = self.flows.table(place.stage()).at(place.slot as usize)?;
        if id.generation() == place.generation { self.surveyed(place.stage(), id) } else { None }
    }

    /// Ends a flow as an operator wants it: resets for both sides, unless it is over anyway.
    pub fn end_flow(&mut self, now: Now, place: FlowPlace, desk: &mut impl Desk, out: &mut Outbox) -> FlowEnd {
        self.call(now);
        let mut stage = place.stage();
        let mut id = self.flows.table(stage).at(place.slot as usize).filter(|id| id.generation() == place.generation);
        if stage == Stage::HalfOpen
            && let Some(flow) = id.and_then(|id| self.hear_for_good(id, desk))
        {
            (stage, id) = (Stage::Established, Some(flow));
        }
        let table = self.flows.table(stage);
        let Some(id) = id.filter(|&id| table.detail(id).is_some_and(|detail| detail.is_counted)) else {
            return FlowEnd::Gone;
        };
        if !super::ending::has_room(out) {
            return FlowEnd::NoRoom;
        }
        let Some(ended) = self.flows.remove(stage, id) else { return FlowEnd::Gone };
        self.reset_who_is_known(now, stage, &ended, out);
        self.end(stage, ended, Termination::Killed, desk);
        FlowEnd::Ended
    }

    /// Whether a frame has to do with one of these services: by its flow, else by the VIP and port that it is for, or
    /// comes from. ARP, neighbour discovery, pings and fragments belong to none.
    pub fn concerns(&self, frame: &[u8], services: &[ServiceId]) -> Option<Concern> {
        let tuple = match parse(frame).ok()? {
            Packet::Transport(parsed) => parsed.tuple,
            // What an error is about was sent by who gets it.
            Packet::IcmpError(error) => error.embedded.reversed(),
            _ => return None,
        };
        if let Some((flow, direction)) = self.find_flow(&tuple) {
            let client = flow.path.client.source();
            return services
                .contains(&flow.service)
                .then_some(Concern { client, from_client: direction == Direction::Forward });
        }
        let is_for = |tuple: &Tuple| self.services.find(tuple).is_some_and(|service| services.contains(&service));
        if is_for(&tuple) {
            return Some(Concern { client: tuple.source(), from_client: true });
        }
        is_for(&tuple.reversed()).then(|| Concern { client: tuple.destination(), from_client: false })
    }

    fn surveyed(&self, stage: Stage, id: FlowId) -> Option<SurveyedFlow> {
        let table = self.flows.table(stage);
        let (path, mut state, detail) = (table.path(id)?, *table.state(id)?, table.detail(id)?);
        if stage == Stage::HalfOpen
            && let Some(fast) = &self.flows.fast
        {
            fast.complete(detail, &mut state);
        }
        let carried = self.flows.fast.as_ref().and_then(|fast| fast.seen(detail));
        let (seen, due) = (table.seen(id)?, table.due(id)?);
        let later_ms = carried.map_or(0, |carried| carried.ms_since(seen));
        Some(SurveyedFlow {
            place: FlowPlace::of(stage, id),
            path,
            service: state.service(),
            server: Some(detail.server).filter(|&server| server != RealServerId::NOBODY),
            why: detail.why,
            state: match path.client.protocol {
                _ if !detail.is_counted => "over",
                PROTOCOL_TCP => tcp_word(state.tcp().state()),
                _ if stage == Stage::HalfOpen => "unanswered",
                _ => "established",
            },
            is_counted: detail.is_counted,
            is_leased: detail.is_leased(),
            is_fast: detail.fast().is_some(),
            seen: seen + later_ms,
            due: due + later_ms,
        })
    }
}

/// Whom a frame that has to do with a service is from or to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Concern {
    /// The client.
    pub client: SocketAddr,
    /// Whether it is on its way from the client.
    pub from_client: bool,
}

/// The word for how far a connection is.
fn tcp_word(state: TcpState) -> &'static str {
    match state {
        TcpState::SynSent => "syn-sent",
        TcpState::SynCrossed => "syn-crossed",
        TcpState::SynAnswered => "syn-answered",
        TcpState::Established => "established",
        TcpState::FinForward => "client-finished",
        TcpState::FinReverse => "server-finished",
        TcpState::FinBoth => "closing",
        TcpState::TimeWait => "over",
        TcpState::Reset => "reset",
    }
}
