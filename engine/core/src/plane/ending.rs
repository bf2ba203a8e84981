//! The end of flows: closed by their ends, silent for too long, or ended from here with resets that both ends accept.

use std::ops::Deref;

use towpath_config::model::{AdminState, MachineRole};

use super::flows::{Ended, Found, Stage, State, is_tcp};
use super::reply::{Macs, RESET_LEN_MAX, tcp_reset};
use super::services::Rule;
use super::{Desk, NextHop, Outbox, Plane, PlaneCounter, Turn};
use crate::counters::{ServiceCounter, Termination};
use crate::flow::tcp::{TcpState, TcpTrack};
use crate::flow::{Direction, FlowId, FlowPath, PathHashes, Returns};
use crate::packet::{DropReason, Ip, Mac};
use crate::snapshot::ServiceSource;
use crate::{Now, RealServerId, ServiceId};

/// Resets that the end of a flow makes at most: two numbers for each side.
const RESETS_MAX: usize = 4;

/// Slots that a sweep looks at for one of its budget, unless it ends more flows than one.
const SLOTS_PER_STEP: usize = 16;

/// Of the budget, one part in so many is for a sweep that is under way.
const SWEEP_SHARE: usize = 4;

/// A walk over all flows for those whose server is not to have them any more, or is gone; half-open ones first, since they may move to the other table meanwhile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sweep {
    stage: Stage,
    slot: usize,
}

impl Sweep {
    fn start() -> Sweep {
        Sweep { stage: Stage::HalfOpen, slot: 0 }
    }
}

impl Plane {
    /// Begins a sweep, in place of one that is under way.
    pub(super) fn start_sweep(&mut self) {
        self.services.begin_walk();
        self.sweep = Some(Sweep::start());
    }

    /// Ends flows that were silent for too long or whose server was halted, and gives up frames that waited too long. Each flow looked at costs
    /// one of `budget`, and none is ended while `out` has no room for its resets. Whether all that was due is done.
    pub fn expire(&mut self, now: Now, budget: usize, desk: &mut impl Desk, out: &mut Outbox) -> bool {
        out.mute(self.role == MachineRole::Standby);
        let is_done = self.expire_some(now, budget, desk, out);
        out.mute(false);
        is_done
    }

    fn expire_some(&mut self, now: Now, budget: usize, desk: &mut impl Desk, out: &mut Outbox) -> bool {
        self.call(now);
        self.settle_carried(now, desk);
        self.walk_fast(now);
        self.settle_found(desk);
        // The flows that a flood leaves come first, and a sweep has a share that no number of silent flows takes from it.
        let reserved = if self.sweep.is_some() { budget.div_ceil(SWEEP_SHARE) } else { 0 };
        let mut left = budget - reserved;
        for stage in [Stage::HalfOpen, Stage::Established] {
            while has_room(out)
                && let Some(ended) = self.flows.expire(stage, now, &mut left)
            {
                self.expired(now, stage, ended, desk, out);
            }
        }
        while left > 0
            && let Some(lease) = self.rest.due(now)
            && let Some(maps) = self.services.maps()
        {
            left -= 1;
            maps.release(lease);
            self.exhausted.forget();
        }
        self.give_up_fragments(now, &mut left, out, has_room);
        let is_expired = left > 0;
        self.pending.expire(now);
        let waited = self.pending.counts();
        self.counts.set(PlaneCounter::FramesGivenUp, waited.given_up + waited.evicted);
        left += reserved;
        while let Some(sweep) = self.sweep
            && left > 0
            && has_room(out)
        {
            self.sweep = self.step(now, sweep, &mut left, desk, out);
        }
        self.tend_bridges(now, out);
        self.tell_fast(desk);
        is_expired && left > 0 && has_room(out)
    }

    /// The flow moves to the large table: both sides have been heard.
    pub(super) fn establish<D: Desk>(&mut self, found: Found, turn: &mut Turn<'_, D>) -> Result<(), DropReason> {
        let hashes = turn.hashes.take();
        match self.establish_flow(turn.now, found.id, hashes, turn.desk) {
            Ok(_) => Ok(()),
            Err(None) => Ok(()),
            Err(Some(ended)) => {
                self.reset(turn.now, &ended, &Direction::BOTH, turn.out);
                self.end(Stage::HalfOpen, ended, Termination::OutOfConnections, turn.desk);
                Err(DropReason::FlowsFull)
            }
        }
    }

    /// The same of a half-open flow by itself, whose `hashes` may be known. Its place in the large table; without room there it is in no table any more.
    #[expect(clippy::result_large_err, reason = "the flow itself, which its caller ends")]
    pub(super) fn establish_flow<D: Desk>(
        &mut self,
        now: Now,
        id: FlowId,
        hashes: Option<PathHashes>,
        desk: &mut D,
    ) -> Result<FlowId, Option<Ended>> {
        let table = &self.flows.half_open;
        let (Some(path), Some(state), Some(detail)) = (table.path(id), table.state(id), table.detail(id)) else {
            return Err(None);
        };
        let (service, server) = (state.service(), detail.server);
        let hashes = hashes.unwrap_or_else(|| table.hashes(&path));
        let flow = self.flows.promote_there(now, id, &hashes)?;
        self.flows.established.next_lines().into_iter().for_each(|line| desk.prefetch(line));
        if server != RealServerId::NOBODY {
            desk.opened(server);
        }
        desk.count(service, ServiceCounter::Opened, 1);
        Ok(flow)
    }

    /// The connection of a flow is over, though the flow stays for late packets. Its port is free from here on, unless the server
    /// closed first, or at the same time, and so keeps it in TIME_WAIT: then the lease rests in the flow.
    pub(super) fn settle(&mut self, found: Found, termination: Termination, rule: &Rule, desk: &mut impl Desk) {
        let Found { stage, id, .. } = found;
        let table = self.flows.table_mut(stage);
        let Some(path) = table.path(id) else { return };
        let Some(state) = table.state(id) else { return };
        let (service, server_waits) = (state.service(), state.tcp().server_waits());
        let Some(detail) = table.detail_mut(id) else { return };
        let was_counted = std::mem::replace(&mut detail.is_counted, false);
        if !(rule.rests && server_waits) {
            detail.release(&path, self.services.maps());
            self.exhausted.forget();
        }
        if was_counted {
            let server = detail.server;
            tell_end(desk, stage, service, server, termination);
        }
    }

    /// The lease that rests in a flow goes on resting without it: the client uses its own port again, but the server may still keep ours.
    pub(super) fn rest_lease(&mut self, now: Now, ended: &mut Ended) {
        let service = ended.state.service();
        let rest_ms = match self.snapshot.service(service).map(|service| &service.source) {
            Some(ServiceSource::Pool(pool)) => pool.rest_ms(),
            Some(_) => 0,
            None => self.snapshot.outbound.lane(service).map_or(0, |lane| lane.pool.rest_ms()),
        };
        if rest_ms == 0 {
            return;
        }
        // A whole rest: when it began is not known any more.
        let Some(lease) = ended.detail.take_lease(&ended.path) else { return };
        if let Some(lease) = self.rest.rest(lease, now, rest_ms)
            && let Some(maps) = self.services.maps()
        {
            maps.release(lease);
        }
    }

    /// A flow has left its table, for this reason unless its connection is over.
    pub(super) fn end(&mut self, stage: Stage, ended: Ended, termination: Termination, desk: &mut impl Desk) {
        let Ended { path, state, mut detail, .. } = ended;
        if detail.is_counted {
            // The kernel has carried its end, and nobody had looked.
            let termination = if is_over(&path, &state) { ended_by(state.tcp()) } else { termination };
            tell_end(desk, stage, state.service(), detail.server, termination);
        }
        detail.release(&path, self.services.maps());
        self.exhausted.forget();
        self.counts.add(PlaneCounter::FlowsClosed, 1);
    }

    /// A flow was silent for its timeout.
    fn expired(&mut self, now: Now, stage: Stage, ended: Ended, desk: &mut impl Desk, out: &mut Outbox) {
        let is_alive = ended.detail.is_counted && is_tcp(&ended.path) && !is_over(&ended.path, &ended.state);
        let termination = match stage {
            Stage::HalfOpen if is_alive => Termination::ConnectTimedOut,
            _ => Termination::IdleTimedOut,
        };
        if is_alive {
            self.reset_who_is_known(now, stage, &ended, out);
            // What a server answers directly is not seen here.
            let is_seen = ended.path.returns == Returns::Here;
            if stage == Stage::HalfOpen && is_seen && is_unanswered(ended.state.tcp().state()) {
                desk.failed(ended.detail.server);
            }
        }
        self.end(stage, ended, termination, desk);
    }

    /// Resets an established connection at both ends; a half-open one only where the server holds it, since who it is from may be forged.
    pub(super) fn reset_who_is_known(&mut self, now: Now, stage: Stage, ended: &Ended, out: &mut Outbox) {
        match (stage, ended.state.tcp().state()) {
            // The kernel may have completed the handshake of a half-open one in the last moment.
            (Stage::Established, _) | (Stage::HalfOpen, TcpState::Established) => {
                self.reset(now, ended, &Direction::BOTH, out);
            }
            (Stage::HalfOpen, TcpState::SynAnswered | TcpState::SynCrossed) => {
                self.reset(now, ended, &[Direction::Reverse], out);
            }
            (Stage::HalfOpen, _) => {}
        }
    }

    /// One step of a sweep; what is left of it. It costs one of the budget, and each further flow that it ends another.
    fn step(
        &mut self,
        now: Now,
        sweep: Sweep,
        left: &mut usize,
        desk: &mut impl Desk,
        out: &mut Outbox,
    ) -> Option<Sweep> {
        let Sweep { stage, slot } = sweep;
        let mut budget = std::mem::replace(left, left.saturating_sub(1));
        let slots = self.flows.table(stage).flows_max();
        let end = (slot + SLOTS_PER_STEP).min(slots);
        for slot in slot..end {
            let table = self.flows.table(stage);
            let Some(id) = table.at(slot) else { continue };
            if self.services.has_left()
                && let Some(path) = table.path(id)
            {
                self.services.find_flow(&path);
            }
            let (Some(state), Some(detail)) = (table.state(id), table.detail(id)) else { continue };
            let (service, server) = (state.service(), detail.server);
            let is_shunned = |path: FlowPath| self.services.is_shunned(service, server, path.client.dst_port);
            if !detail.is_counted || !table.path(id).is_some_and(is_shunned) {
                continue;
            }
            // One whose handshake is complete is met again in the other table.
            if stage == Stage::HalfOpen && self.hear_for_good(id, desk).is_some() {
                continue;
            }
            let member = self.snapshot.service(service).and_then(|service| service.target_of(server));
            let termination = match member {
                Some((_, member)) if member.admin == AdminState::Halt => member.halted.termination(),
                _ => Termination::ServerDown,
            };
            if budget == 0 || !has_room(out) {
                return Some(Sweep { stage, slot });
            }
            budget -= 1;
            *left = (*left).min(budget);
            if let Some(ended) = self.flows.remove(stage, id) {
                self.reset(now, &ended, &Direction::BOTH, out);
                self.end(stage, ended, termination, desk);
            }
        }
        match stage {
            _ if end < slots => Some(Sweep { stage, slot: end }),
            Stage::HalfOpen => Some(Sweep { stage: Stage::Established, slot: 0 }),
            Stage::Established => {
                self.services.end_walk();
                None
            }
        }
    }

    /// Resets a TCP connection towards these sides, each as if by the other one, unless it is over.
    pub(super) fn reset(&mut self, now: Now, ended: &Ended, sides: &[Direction], out: &mut Outbox) {
        if !is_tcp(&ended.path) || is_over(&ended.path, &ended.state) {
            return;
        }
        let mut made = 0;
        for &to in sides {
            let (tuple, station) = match to {
                // What it has of the server's numbers is not known here, and it may never have sent the SYN.
                Direction::Forward if ended.path.returns == Returns::Elsewhere => continue,
                Direction::Forward => {
                    let client = ended.path.client.src;
                    let rule = self.services.rule(ended.state.service());
                    (ended.path.client.reversed(), rule.station(&self.network, Direction::Reverse, client))
                }
                // It knows itself by the VIP.
                Direction::Reverse if ended.path.returns == Returns::Elsewhere => {
                    (ended.path.client, ended.path.server.dst)
                }
                Direction::Reverse => (ended.path.server, ended.path.server.dst),
            };
            let numbers = ended.state.tcp().reset_towards(to);
            let ack = Some(numbers.ack).filter(|&ack| ack != 0);
            let second = Some(numbers.seq_sent).filter(|&seq| seq != numbers.seq);
            for seq in std::iter::once(numbers.seq).chain(second) {
                let is_made = self.emit(now, station, out, |macs| tcp_reset(macs, &tuple, seq, ack));
                made += u64::from(is_made);
            }
        }
        self.counts.add(PlaneCounter::ResetsMade, made);
        self.counts.add(PlaneCounter::FlowsReset, u64::from(made > 0));
    }

    /// Sends a frame made here to `to`, or lets it wait for its next hop. Whether there was room and a way.
    fn emit<M: Deref<Target = [u8]>>(&mut self, now: Now, to: Ip, out: &mut Outbox, make: impl Fn(Macs) -> M) -> bool {
        let (port, station) = match self.network.next_hop(to) {
            NextHop::NoRoute => return false,
            NextHop::Ready { port, mac } => (port, Ok(mac)),
            NextHop::Unresolved { port, via } => (port, Err(via)),
        };
        let Some(src) = self.network.port(port).map(|port| port.mac) else { return false };
        match station {
            Ok(dst) => out.push(port, &make(Macs { src, dst })),
            // What does not fit there is counted there, and the end point's own timer is what remains.
            Err(via) => self.pending.hold(now, port, via, &make(Macs { src, dst: Mac::default() })).is_ok(),
        }
    }
}

/// Whether both sides of a flow have closed it, or one has reset it.
pub(super) fn is_over(path: &FlowPath, state: &State) -> bool {
    is_tcp(path) && state.tcp().is_over()
}

/// How a connection was closed, by whose FIN came first.
pub(super) fn ended_by(track: &TcpTrack) -> Termination {
    match track.closed_first() {
        Some(Direction::Reverse) => Termination::ServerClosed,
        Some(Direction::Forward) | None => Termination::ClientClosed,
    }
}

/// Whether the resets of one more flow fit.
pub(super) fn has_room(out: &Outbox) -> bool {
    out.has_room(RESETS_MAX, RESETS_MAX * RESET_LEN_MAX)
}

/// Whether the server has not said anything: else it is the client that did not complete the handshake.
fn is_unanswered(state: TcpState) -> bool {
    !matches!(state, TcpState::SynAnswered | TcpState::SynCrossed)
}

fn tell_end(desk: &mut impl Desk, stage: Stage, service: ServiceId, server: RealServerId, termination: Termination) {
    if server != RealServerId::NOBODY {
        desk.close(service, server);
    }
    desk.end(service, termination);
    if stage == Stage::Established {
        desk.count(service, ServiceCounter::Closed, 1);
    }
}
