//! The fast path, as the plane uses it: established flows of TCP over IPv4 that the kernel carries onwards ([`crate::fast_path`]).
//!
//! A flow is entered when its server has answered, when its handshake is complete, or with the next frame of it that goes straight on. From then on its track is lent: the
//! kernel has the newer numbers. What comes here of such a flow is one of three things. A plain segment that was received before the flow was entered, or
//! that the kernel did not judge good: the numbers are fetched, and it goes on like any other. A segment that may end the connection or change it:
//! the flow is taken out first, its numbers and counts with it. Or its time is up: if the kernel has seen it since, it is not.
//!
//! What completes a handshake the kernel carries, too: a plain segment. Until that is heard of, a millisecond later at most where there is any traffic, the flow stays among
//! the half-open ones, with all that holds for these; and of the room here they get a quarter, as a flood has servers answer to whom there is nobody.
//!
//! How a connection closes in good order the kernel carries, too, unless its service has a limit, for which each end has to be heard at once. A flow that is over by that
//! is taken out and settled at the next call, ten times a second at least; until then [`Loads`](crate::loads::Loads) leave it out by the kernel's own count.
//!
//! What the kernel counts is fetched by a walk that comes by every flow once a second, and when a flow is taken out. Connections that are only routed take the
//! fast path as transits (`transits.rs`).

mod openings;
mod transits;

use std::net::Ipv4Addr;

use openings::Openings;
use transits::Transits;

use super::ending::ended_by;
use super::flows::{Detail, Flows, Found, Stage, State};
use super::forward::{Hops, Run};
use super::router::OwnAddresses;
use super::services::Rule;
use super::{BATCH_MAX, Desk, Frame, Network, Plane, PlaneCounter, PortId};
use crate::fast_path::{
    FastFlow, FastFull, FastId, FastMemory, FastNumbers, FastSettings, FastSide, FastSideUse, FastTable, FastUse,
    REST_MS,
};
use crate::flow::tcp::TcpTimeout;
use crate::flow::{Direction, FlowId, Returns};
use crate::packet::{PROTOCOL_TCP, Parsed, TcpFlags, Tuple, TupleV4};
use crate::snapshot::SERVICES_MAX;
use crate::{Now, RealServerId, ServiceId};

/// Time between two visits of the walk to one flow.
const WALK_MS: u64 = 1_000;
/// Flows that it visits in one go.
const WALK_STEP: usize = 512;
/// Time between two looks for flows that are over, where nothing else comes.
const LOOK_MS: u64 = 100;
/// Flows that are over and settled in one go.
const SETTLED_STEP: usize = 512;
/// A flow that was not used for so long gives way to others where there is little room.
const IDLE_MS: u64 = 10_000;
/// Little room: less than one part in so many is free.
const CROWDED_SHARE: u32 = 8;

/// Flags of which a plain segment has ACK alone.
const NOT_PLAIN: u8 = TcpFlags::SYN.0 | TcpFlags::FIN.0 | TcpFlags::RST.0 | TcpFlags::URG.0 | TcpFlags::ACK.0;

/// The fast path of one plane.
pub(super) struct Fast {
    table: FastTable,
    /// The number of the first flow that is this worker's.
    first: u32,
    /// By number, from the first on.
    places: Box<[Place]>,
    /// Behind the last place that was ever used.
    used: usize,
    transits: Transits,
    /// Flows to be entered at the end of the batch.
    candidates: Vec<Candidate>,
    /// Half-open flows that were entered.
    openings: Openings,
    /// Flows that were taken out and found to be over by what the kernel has carried.
    over: Vec<FlowId>,
    /// More of them are in the list than were settled at once.
    is_behind: bool,
    /// When it was last looked for those.
    looked: Now,
    /// Until then no flow is entered: there was no room.
    full_until: Now,
    /// What the kernel has carried and the desk has not been told, by service.
    carried: Box<[Run; SERVICES_MAX]>,
    /// Services with something there.
    untold: Vec<ServiceId>,
    /// The place that the walk comes to next, and when.
    walk: usize,
    walk_at: Now,
    /// When the plane was last called.
    now: Now,
    entered: u64,
    refused: u64,
}

/// What has a number in the fast path.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Holder {
    Flow(FlowId),
    #[default]
    Nobody,
    /// A half-open flow.
    Opening(FlowId),
    Transit,
}

/// A flow or transit that was entered.
#[derive(Clone, Copy, Default)]
struct Place {
    holder: Holder,
    /// Where its packets come in; those of a transit by the first.
    arrivals: [PortId; 2],
    /// Of what the kernel has carried, the part that was counted.
    counted: [Carried; 2],
}

/// What the kernel has carried one way since the flow was entered.
#[derive(Clone, Copy, Default)]
pub(super) struct Carried {
    pub(super) frames: u64,
    pub(super) octets: u64,
    pub(super) payload_octets: u64,
}

impl Carried {
    fn of(used: &FastSideUse) -> Carried {
        let FastSideUse { frames, octets, payload_octets, .. } = *used;
        Carried { frames, octets, payload_octets }
    }
}

/// A flow that may be entered: its slot in its table, and where its packets come in, as far as that was seen.
#[derive(Clone, Copy)]
struct Candidate {
    stage: Stage,
    slot: usize,
    arrivals: [Option<PortId>; 2],
}

impl Fast {
    fn new(memory: FastMemory, settings: FastSettings, now: Now) -> Fast {
        let flows = settings.flows.clone();
        Fast {
            transits: Transits::new(flows.len(), now),
            table: FastTable::new(memory, settings),
            first: flows.start,
            places: vec![Place::default(); flows.len()].into_boxed_slice(),
            used: 0,
            candidates: Vec::with_capacity(BATCH_MAX),
            openings: Openings::new(flows.len(), now),
            over: Vec::new(),
            is_behind: false,
            looked: now,
            full_until: now,
            carried: Box::new([Run::NOTHING; SERVICES_MAX]),
            untold: Vec::with_capacity(SERVICES_MAX),
            walk: 0,
            walk_at: now,
            now,
            entered: 0,
            refused: 0,
        }
    }

    pub(super) fn called(&mut self, now: Now) {
        self.now = now;
    }

    /// A frame of the flow in `slot` has gone on that came in by `port`.
    #[inline]
    pub(super) fn note(&mut self, slot: usize, direction: Direction, port: PortId) {
        let mut arrivals = [None; 2];
        arrivals[direction as usize] = Some(port);
        self.propose(Candidate { stage: Stage::Established, slot, arrivals });
    }

    #[inline]
    fn propose(&mut self, candidate: Candidate) {
        // More than the frames of a batch there are none.
        if self.candidates.len() < BATCH_MAX {
            self.candidates.push(candidate);
        }
    }

    fn place(&mut self, id: FastId) -> Option<&mut Place> {
        self.places.get_mut(id.0.checked_sub(self.first)? as usize)
    }

    /// A number is in use from here on: the walk comes by.
    fn entered_number(&mut self, id: FastId, now: Now) {
        self.used = self.used.max((id.0 - self.first) as usize + 1);
        if self.table.open() == 1 {
            self.walk_at = now + WALK_MS;
        }
    }

    /// When the kernel last carried a packet of the flow with this detail.
    pub(super) fn seen(&self, detail: &Detail) -> Option<Now> {
        carried_at(&self.table.read(detail.fast()?))
    }

    /// Takes a flow out: its numbers and what was counted are fetched, and the track is not lent any more.
    fn remove(&mut self, detail: &mut Detail, state: &mut State) -> Option<(FastUse, [PortId; 2])> {
        let id = detail.fast()?;
        detail.set_fast(None);
        let used = self.table.remove(id, self.now);
        self.count(id, state.service(), &used);
        let place = self.place(id)?;
        let arrivals = place.arrivals;
        let holder = std::mem::take(&mut place.holder);
        let is_known = match holder {
            Holder::Flow(_) => {
                catch_up(state, &used);
                true
            }
            // What its client has said since it was listened for; its track is not lent.
            Holder::Opening(_) => state.tcp_mut().complete(numbers_of(&used)),
            Holder::Nobody | Holder::Transit => false,
        };
        if is_known {
            let is_over = state.tcp_mut().catch_up_ends(used.sides.map(|side| side.fin), used.is_over);
            state.tcp_mut().take_back();
            if is_over && let Holder::Flow(flow) = holder {
                self.over.push(flow);
            }
        }
        Some((used, arrivals))
    }

    /// The same for a flow that has left its table.
    pub(super) fn retire(&mut self, detail: &mut Detail, state: &mut State) {
        self.remove(detail, state);
    }

    /// Counts what has come to a flow since the last time.
    fn count(&mut self, id: FastId, service: ServiceId, used: &FastUse) {
        let Some(place) = self.place(id) else { return };
        let carried = used.sides.each_ref().map(Carried::of);
        let counted = std::mem::replace(&mut place.counted, carried);
        let Some(run) = self.carried.get_mut(service.index()) else { return };
        let was_empty = run.frames() == 0;
        run.add_carried(service, &counted, &carried);
        if was_empty && run.frames() > 0 {
            self.untold.push(service);
        }
    }

    /// Whether there is so little room that flows which are not used must go.
    fn is_crowded(&self) -> bool {
        self.table.room() - self.table.open() < self.table.room() / CROWDED_SHARE
    }

    /// Whether there is something that the desk was not told.
    pub(super) fn has_news(&self) -> bool {
        !self.untold.is_empty() || !self.over.is_empty() || self.transits.has_news()
    }

    fn next_walk(&self) -> Option<Now> {
        (self.table.open() > 0 || self.has_news()).then_some(self.walk_at)
    }

    /// When it is to be looked for flows that are over.
    fn next_look(&self) -> Option<Now> {
        match self.is_behind {
            true => Some(self.now),
            false => (self.table.open() > self.transits.open()).then(|| self.looked + LOOK_MS),
        }
    }

    /// Whether one was found to be over, or may be.
    fn has_over(&self) -> bool {
        !self.over.is_empty() || self.table.has_ended()
    }
}

/// The numbers of both sides.
fn numbers_of(used: &FastUse) -> [&FastNumbers; 2] {
    used.sides.each_ref().map(|side| &side.numbers)
}

/// Whether the kernel has carried a FIN.
fn has_fin(used: &FastUse) -> bool {
    used.sides.iter().any(|side| side.fin.is_some())
}

/// When the kernel last carried a packet of a flow, if it has carried any.
fn carried_at(used: &FastUse) -> Option<Now> {
    used.sides.iter().filter(|side| side.frames > 0).map(|side| side.used).max()
}

/// The track takes what the kernel has seen.
fn catch_up(state: &mut State, used: &FastUse) {
    for direction in Direction::BOTH {
        state.tcp_mut().catch_up(direction, &used.sides[direction as usize].numbers);
    }
}

impl Flows {
    /// Takes an established flow out of the fast path, if it is in it; returns what the kernel had noted, and where its packets came in.
    fn recall(&mut self, id: FlowId) -> Option<(FastUse, [PortId; 2])> {
        let fast = self.fast.as_mut()?;
        let mut detail = *self.established.detail(id)?;
        let state = self.established.state_mut(id)?;
        let (used, arrivals) = fast.remove(&mut detail, state)?;
        *self.established.detail_mut(id)? = detail;
        if let Some(at) = carried_at(&used) {
            self.established.see(id, at);
        }
        Some((used, arrivals))
    }

    /// Fetches the numbers of a flow that stays in the fast path.
    pub(super) fn consult(&mut self, id: FlowId) -> Option<()> {
        let fast = self.fast.as_ref()?;
        let used = fast.table.read(self.established.detail(id)?.fast()?);
        catch_up(self.established.state_mut(id)?, &used);
        if let Some(at) = carried_at(&used) {
            self.established.see(id, at);
        }
        Some(())
    }

    /// A flow that was taken out, of which the kernel has carried a FIN, has the timer of its phase since it was last seen.
    fn follow_end(&mut self, id: FlowId, rule: &Rule) {
        if let Some(seen) = self.established.seen(id) {
            self.established.follow(id, seen, |state| (Some(rule.tcp_class(state.tcp().timeout())), ()));
        }
    }

    /// Tells the kernel the numbers of a flow that it has not seen all packets of.
    fn inform(&self, id: FlowId) -> Option<()> {
        let fast = self.fast.as_ref()?;
        let numbers = Direction::BOTH.map(|side| self.established.state(id).map(|state| state.tcp().numbers(side)));
        if let [Some(forward), Some(reverse)] = numbers {
            fast.table.tell(self.established.detail(id)?.fast()?, [forward, reverse]);
        }
        Some(())
    }
}

impl Plane {
    /// Lets the kernel carry flows onwards from here on: `memory` is what it shares with its programs, of which `settings` give this plane a part.
    pub fn use_fast_path(&mut self, memory: FastMemory, settings: FastSettings) {
        self.flows.fast = Some(Box::new(Fast::new(memory, settings, self.called)));
    }

    /// Bytes that a plane needs for each flow of the fast path, beside the memory shared with the kernel.
    pub const BYTES_PER_FAST_FLOW: usize = size_of::<Place>() + size_of::<(u32, Now)>() + Openings::BYTES_PER_FLOW;

    /// Takes an established flow out of the fast path, if it is in it; returns where its packets came in. Of one that is over, the desk has still to hear.
    pub(super) fn recall(&mut self, id: FlowId) -> Option<[PortId; 2]> {
        let (used, arrivals) = self.flows.recall(id)?;
        if has_fin(&used)
            && let Some(state) = self.flows.established.state(id)
        {
            // One side may go on for hours, by another timer.
            let rule = *self.services.rule(state.service());
            self.flows.follow_end(id, &rule);
        }
        Some(arrivals)
    }

    /// A packet of a lent flow has come by here. What the kernel knows is fetched; unless it is a plain one where such packets come in, the flow is
    /// taken out. Whether it is still lent.
    #[cold]
    pub(super) fn meet_lent(&mut self, id: FlowId, direction: Direction, frame: &Frame<'_>, packet: &Parsed) -> bool {
        let is_plain = packet.tcp.flags.0 & NOT_PLAIN == TcpFlags::ACK.0;
        let Some(fast) = &mut self.flows.fast else { return false };
        let Some(fast_id) = self.flows.established.detail(id).and_then(Detail::fast) else { return false };
        let arrives_by = fast.place(fast_id).map(|place| place.arrivals[direction as usize]);
        let is_open = fast.table.is_live(fast_id) && !has_fin(&fast.table.read(fast_id));
        if is_plain && arrives_by == Some(frame.port) && is_open {
            self.flows.consult(id);
            return true;
        }
        let arrivals = self.recall(id);
        if is_plain
            && let Some(arrivals) = arrivals
            && let Some(fast) = &mut self.flows.fast
        {
            let mut arrivals = arrivals.map(Some);
            arrivals[direction as usize] = Some(frame.port);
            fast.propose(Candidate { stage: Stage::Established, slot: id.slot(), arrivals });
        }
        false
    }

    /// The handshake of the flow of this packet is complete, by that packet.
    #[cold]
    pub(super) fn note_established(&mut self, tuple: &Tuple, direction: Direction, port: PortId) {
        if let Some(fast) = &mut self.flows.fast
            && let Some((id, _)) = self.flows.established.lookup(tuple)
        {
            fast.note(id.slot(), direction, port);
            self.flows.inform(id);
        }
    }

    /// That packet has gone on.
    #[cold]
    pub(super) fn met_lent(&mut self, id: FlowId) {
        self.flows.inform(id);
    }

    /// Enters the flows of which packets of this batch have gone straight on.
    #[inline]
    pub(super) fn enter_fast(&mut self, now: Now) {
        if self.flows.fast.as_ref().is_some_and(|fast| !fast.candidates.is_empty()) {
            self.enter_candidates(now);
        }
    }

    #[inline(never)]
    fn enter_candidates(&mut self, now: Now) {
        let Some(fast) = &mut self.flows.fast else { return };
        let mut candidates = std::mem::take(&mut fast.candidates);
        if fast.full_until <= now {
            for &candidate in &candidates {
                self.enter(now, candidate);
            }
        }
        candidates.clear();
        if let Some(fast) = &mut self.flows.fast {
            fast.candidates = candidates;
        }
    }

    fn enter(&mut self, now: Now, candidate: Candidate) -> Option<()> {
        let Flows { established, half_open, fast, .. } = &mut self.flows;
        let fast = fast.as_mut()?;
        let table = match candidate.stage {
            Stage::HalfOpen => half_open,
            Stage::Established => established,
        };
        let flow = table.at(candidate.slot)?;
        let path = table.path(flow)?;
        let service = table.state(flow)?.service();
        let rule = self.services.rule(service);
        let detail = *table.detail(flow)?;
        let server = Some(detail.server);
        let server = server.filter(|&server| rule.carries_ends && server != RealServerId::NOBODY);
        let may_enter = match candidate.stage {
            Stage::HalfOpen => detail.is_counted && detail.fast().is_none() && fast.has_room_for_opening(),
            Stage::Established => table.class(flow)? == rule.tcp_class(TcpTimeout::Established),
        };
        if !may_enter || path.client.protocol != PROTOCOL_TCP || path.returns != Returns::Here {
            return None;
        }
        let tuples = [TupleV4::of(&path.client)?, TupleV4::of(&path.server.reversed())?];
        if !tuples.iter().all(|tuple| tuple.is_between_hosts()) {
            return None;
        }
        let onwards = Direction::BOTH.map(|direction| tuples[direction.opposite() as usize].reversed());
        let hops = Direction::BOTH.map(|direction| {
            let [_, to] = onwards[direction as usize].numbers();
            let station = rule.station(&self.network, direction, Ipv4Addr::from_bits(to).into());
            *self.hops.hop_v4(&self.network, u32::from_be_bytes(station.v4_octets()), &mut u16::MAX.clone())
        });
        // Where nothing was seen yet, from where the answers to it go.
        let arrivals = Direction::BOTH.map(|direction| {
            candidate.arrivals[direction as usize].unwrap_or(hops[direction.opposite() as usize].port)
        });
        if !self.hops.returns_by(&self.network, path.server.dst, arrivals[Direction::Reverse as usize]) {
            return None;
        }
        let ifindex = |port: PortId| self.network.port(port).map(|port| port.index).filter(|&index| index != 0);
        let (ins, outs) = (arrivals.map(ifindex), hops.map(|hop| ifindex(hop.port)));
        let ([Some(in_0), Some(in_1)], [Some(out_0), Some(out_1)]) = (ins, outs) else { return None };
        if hops.iter().any(|hop| hop.straight_max == 0) {
            return None;
        }
        let track = table.state_mut(flow)?.tcp_mut();
        let numbers = match candidate.stage {
            Stage::HalfOpen => track.opening_numbers()?,
            Stage::Established => track.lend()?,
        };
        let side = |direction: Direction, in_ifindex, out_ifindex| FastSide {
            from: tuples[direction as usize],
            to: onwards[direction as usize],
            in_ifindex,
            out_ifindex,
            macs: hops[direction as usize].macs,
            size_max: hops[direction as usize].straight_max,
            numbers: numbers[direction as usize],
        };
        let sides = [side(Direction::Forward, in_0, out_0), side(Direction::Reverse, in_1, out_1)];
        match fast.table.insert(&FastFlow { sides, server }, now) {
            Ok(id) => {
                let holder = match candidate.stage {
                    Stage::HalfOpen => Holder::Opening(flow),
                    Stage::Established => Holder::Flow(flow),
                };
                if let Some(place) = fast.place(id) {
                    *place = Place { holder, arrivals, counted: Default::default() };
                }
                if candidate.stage == Stage::HalfOpen {
                    fast.openings.enter(id, now);
                }
                fast.entered_number(id, now);
                fast.entered += 1;
                table.detail_mut(flow)?.set_fast(Some(id));
            }
            Err(full) => {
                fast.refused += 1;
                if full == FastFull::Entries {
                    fast.full_until = now + REST_MS;
                }
                // That of a half-open flow was not lent.
                table.state_mut(flow)?.tcp_mut().take_back();
            }
        }
        Some(())
    }

    /// When the walk or a look is due.
    pub(super) fn next_walk(&self) -> Option<Now> {
        let fast = self.flows.fast.as_ref()?;
        [fast.next_walk(), fast.next_look()].into_iter().flatten().min()
    }

    /// Moves flows whose handshakes the kernel has completed, and settles those that are over by what it has carried.
    #[inline]
    pub(super) fn settle_carried<D: Desk>(&mut self, now: Now, desk: &mut D) {
        if let Some(fast) = &mut self.flows.fast {
            fast.looked = now;
            let has_over = fast.has_over();
            if fast.openings.is_due(now) {
                self.hear_openings(now, desk);
            }
            if has_over {
                self.settle_over(now, desk);
            }
        }
    }

    #[inline(never)]
    fn settle_over<D: Desk>(&mut self, now: Now, desk: &mut D) {
        let mut is_behind = true;
        for _ in 0..SETTLED_STEP {
            let Some(fast) = &mut self.flows.fast else { return };
            let Some(id) = fast.table.next_ended(now) else {
                is_behind = false;
                break;
            };
            let flow = match fast.place(id).map(|place| place.holder) {
                Some(Holder::Flow(flow)) => Some(flow),
                Some(Holder::Opening(opening)) => self.hear_for_good(opening, desk),
                Some(Holder::Nobody | Holder::Transit) | None => None,
            };
            if let Some(flow) = flow {
                // From here on it counts again for its server, until it is settled.
                self.recall(flow);
                self.settle_found(desk);
            }
        }
        if let Some(fast) = &mut self.flows.fast {
            fast.is_behind = is_behind;
        }
        self.settle_found(desk);
    }

    /// Settles flows that were taken out and found to be over.
    pub(super) fn settle_found<D: Desk>(&mut self, desk: &mut D) {
        while let Some(fast) = &mut self.flows.fast
            && let Some(id) = fast.over.pop()
        {
            self.settle_closed(id, desk);
        }
    }

    /// Settles an established flow, unless it has left its table, whose track says that it is over.
    pub(super) fn settle_closed<D: Desk>(&mut self, id: FlowId, desk: &mut D) {
        let Some(state) = self.flows.established.state(id).filter(|state| state.tcp().is_over()) else { return };
        let rule = *self.services.rule(state.service());
        let termination = ended_by(state.tcp());
        self.flows.follow_end(id, &rule);
        let found = Found { stage: Stage::Established, id, direction: Direction::Forward };
        self.settle(found, termination, &rule, desk);
    }

    /// Goes on with the walk, if it is due: fetches what the kernel has counted, and takes out what the kernel is not to carry any more.
    pub(super) fn walk_fast(&mut self, now: Now) {
        let Some(fast) = &self.flows.fast else { return };
        if fast.next_walk().is_none_or(|due| due > now) {
            return;
        }
        let is_crowded = fast.is_crowded();
        let from = fast.walk;
        let to = (from + WALK_STEP).min(fast.used);
        for at in from..to {
            let Flows { established, fast: Some(fast), .. } = &mut self.flows else { return };
            let id = FastId(fast.first + at as u32);
            let flow = match fast.places[at].holder {
                Holder::Flow(flow) => flow,
                Holder::Nobody | Holder::Opening(_) => continue,
                Holder::Transit => {
                    fast.visit_transit(id);
                    continue;
                }
            };
            let Some(service) = established.state(flow).map(State::service) else { continue };
            let used = fast.table.read(id);
            fast.count(id, service, &used);
            if let Some(at) = carried_at(&used) {
                established.see(flow, at);
            }
            let rule = *self.services.rule(service);
            let class = rule.tcp_class(TcpTimeout::Established);
            let is_idle = is_crowded && now.ms_since(used.used()) >= IDLE_MS;
            if has_fin(&used)
                || is_idle
                || established.class(flow) != Some(class)
                || !fast.table.is_live(id)
                || fast.table.carries_ends(id) && !rule.carries_ends
            {
                self.recall(flow);
            }
        }
        let Some(fast) = &mut self.flows.fast else { return };
        if to < fast.used {
            fast.walk = to;
            return;
        }
        fast.walk = 0;
        fast.walk_at = now + WALK_MS;
        if fast.table.open() == 0 {
            fast.used = 0;
        }
    }

    /// Has the kernel carry nothing any more: whatever goes on is entered anew.
    pub(super) fn forget_fast(&mut self) {
        if let Some(fast) = &mut self.flows.fast {
            fast.table.forget_flows();
        }
    }

    /// The same where the network has another way now for packets that it carries.
    pub(super) fn review_fast(&mut self, network: &Network, hops: &Hops, own_addresses: &OwnAddresses) {
        if self.flows.fast.is_none() {
            return;
        }
        let is_kept = hops.keeps(&self.hops, &self.network, network);
        if !is_kept {
            self.forget_fast();
        }
        // Rules name ports, and what is for us or for all of a network is not routed.
        if !is_kept || *own_addresses != self.own_addresses || !self.network.is_named_alike(network) {
            self.forget_transits();
        }
    }

    /// Hands what the kernel has carried to the desk.
    pub(super) fn tell_fast<D: Desk>(&mut self, desk: &mut D) {
        self.settle_found(desk);
        let Some(fast) = &mut self.flows.fast else { return };
        self.counts.set(PlaneCounter::FastFlowsEntered, fast.entered);
        let open = fast.table.open() - fast.transits.open();
        self.counts.set(PlaneCounter::FastFlowsLeft, fast.entered - u64::from(open));
        self.counts.set(PlaneCounter::FastFlowsRefused, fast.refused);
        fast.transits.tell(&mut self.counts);
        while let Some(fast) = &mut self.flows.fast
            && let Some(service) = fast.untold.pop()
        {
            let run = std::mem::replace(&mut fast.carried[service.index() % SERVICES_MAX], Run::NOTHING);
            let frames = run.frames();
            self.counts.add_fast(frames);
            self.tell_run(run, desk);
        }
    }

    /// Takes every flow out of the fast path, all counts with it.
    #[cfg(test)]
    pub(super) fn recall_all<D: Desk>(&mut self, desk: &mut D) {
        for slot in 0..self.flows.half_open.flows_max() {
            if let Some(flow) = self.flows.half_open.at(slot) {
                self.hear_for_good(flow, desk);
            }
        }
        for slot in 0..self.flows.established.flows_max() {
            if let Some(flow) = self.flows.established.at(slot) {
                self.recall(flow);
            }
        }
        self.tell_fast(desk);
    }

    /// Listens for handshakes that the kernel has completed at the next call, be it in this very millisecond.
    #[cfg(test)]
    pub(super) fn hear_at_once(&mut self) {
        if let Some(fast) = &mut self.flows.fast {
            fast.openings.forget_heard();
        }
    }

    /// The fast path's table, to carry frames as the kernel does.
    #[cfg(test)]
    pub(super) fn fast_table(&self) -> Option<&FastTable> {
        self.flows.fast.as_ref().map(|fast| &fast.table)
    }
}
