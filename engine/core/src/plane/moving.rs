//! Virtual shards that move to another worker, with all that lives in them.
//!
//! A new snapshot may say that a virtual shard belongs to another worker. The one that had it walks through its flows and gives away those whose
//! home it no longer owns, each as [`Cargo`]; at the end it says so. Meanwhile it serves the flows that it still has. The one that gets the shard
//! opens its new flows from the first moment on, and asks the other for those that have not come yet ([`super::handoff`]). Leases and notes lie
//! where all workers reach them, so they need not move.

use towpath_config::model::MachineRole;

use super::ending::is_over;
use super::flows::{Ended, Flows, OpenError, Stage, is_tcp, names_outside_v6};
use super::{Desk, Outbox, Plane, PlaneCounter};
use crate::counters::Termination;
use crate::flow::{FlowId, InsertError, Returns};
use crate::steering::{SteeringTable, VSHARDS};
use crate::{Generation, Now, VShard, WorkerId};

/// What one worker gives to another. It must arrive in the order in which it was given, and before frames that were handed off later.
#[derive(Clone, Copy, Debug)]
pub enum Cargo {
    /// A flow whose virtual shard the other one owns.
    Flow(MovedFlow),
    /// That was the last one, as the snapshot of this generation wants it.
    End(Generation),
}

/// A flow on its way between two tables. Plain data.
#[derive(Clone, Copy, Debug)]
pub struct MovedFlow {
    pub(super) stage: Stage,
    pub(super) seen: Now,
    /// With the name that it had.
    pub(super) flow: Ended,
}

/// What a plane has still to give, and what it waits for.
pub(super) struct Moving {
    giving: Option<Giving>,
    /// By virtual shard: who has still to give its flows.
    awaited: Box<[Option<WorkerId>; VSHARDS]>,
    awaits_any: bool,
    owns_all: bool,
    /// The first generation in which owners may have changed last.
    since: Generation,
}

/// A walk over all flows; half-open ones first, since they may move to the other table meanwhile. Nothing new comes to a virtual shard that another
/// worker owns.
#[derive(Clone, Copy)]
struct Giving {
    stage: Stage,
    slot: usize,
}

const FROM_THE_START: Giving = Giving { stage: Stage::HalfOpen, slot: 0 };

impl Moving {
    pub(super) fn new(steering: &SteeringTable, worker: WorkerId) -> Moving {
        Moving {
            giving: None,
            awaited: Box::new([None; VSHARDS]),
            awaits_any: false,
            owns_all: steering.owners().iter().all(|&owner| owner == worker),
            since: Generation(0),
        }
    }

    /// From the snapshot behind generation `before` on `new` says who owns what, and no longer `old`.
    pub(super) fn adopt(&mut self, old: &SteeringTable, before: Generation, new: &SteeringTable, worker: WorkerId) {
        if old == new {
            return;
        }
        // A worker that was quicker may have adopted any of those between, and have told its end by then.
        self.since = Generation(before.0 + 1);
        for ((awaited, &before), &after) in self.awaited.iter_mut().zip(old.owners()).zip(new.owners()) {
            if after != worker {
                *awaited = None;
            } else if before != worker {
                *awaited = Some(before);
            }
        }
        self.awaits_any = self.awaited.iter().any(Option::is_some);
        self.owns_all = new.owners().iter().all(|&owner| owner == worker);
        self.giving = Some(FROM_THE_START);
    }

    /// Nothing that comes here is for another worker.
    pub(super) fn is_alone(&self) -> bool {
        self.owns_all && !self.awaits_any
    }

    /// Who has still to give the flows of a virtual shard.
    pub(super) fn awaited(&self, home: VShard) -> Option<WorkerId> {
        self.awaited[home.index()]
    }

    /// Whether the walk is under way.
    pub(super) fn is_giving(&self) -> bool {
        self.giving.is_some()
    }

    /// Whether another worker has still to give flows.
    fn awaits_any(&self) -> bool {
        self.awaits_any
    }

    fn ended(&mut self, by: WorkerId, generation: Generation) {
        // The end of a move before this one.
        if generation < self.since {
            return;
        }
        self.awaited.iter_mut().filter(|awaited| **awaited == Some(by)).for_each(|awaited| *awaited = None);
        self.awaits_any = self.awaited.iter().any(Option::is_some);
    }
}

impl Plane {
    /// Whether it has flows to give, or another worker has some for it. The owners of virtual shards may change again when no plane is moving: a
    /// flow that is still on its way would reach the next owner behind the end that it waits for.
    pub fn is_moving(&self) -> bool {
        self.moving.is_giving() || self.moving.awaits_any()
    }

    /// Gives flows away whose virtual shards belong to other workers now. Each slot looked at costs one of `budget`. `give` says whether the other
    /// worker has taken it; if not, the walk stops there until the next call. Whether all is given, and every other worker was told.
    pub fn export<D: Desk>(
        &mut self,
        now: Now,
        budget: usize,
        desk: &mut D,
        mut give: impl FnMut(WorkerId, Cargo) -> bool,
    ) -> bool {
        let Some(mut giving) = self.moving.giving else { return true };
        self.call(now);
        for _ in 0..budget {
            if giving.slot == self.flows.table(giving.stage).flows_max() {
                match giving.stage {
                    Stage::HalfOpen => giving = Giving { stage: Stage::Established, slot: 0 },
                    Stage::Established => return self.end_export(giving, give),
                }
                continue;
            }
            if let Some(id) = self.flows.table(giving.stage).at(giving.slot)
                && let Some((owner, flow)) = self.give(giving.stage, id, desk)
            {
                if !give(owner, Cargo::Flow(flow)) {
                    break;
                }
                // It is the other one's now: nothing of it is released or counted here.
                self.flows.remove(giving.stage, id);
                self.counts.add(PlaneCounter::FlowsGiven, 1);
            }
            giving.slot += 1;
        }
        self.moving.giving = Some(giving);
        false
    }

    /// Tells every other worker of the table that there is no more; who had already been told hears it once more.
    fn end_export(&mut self, giving: Giving, mut give: impl FnMut(WorkerId, Cargo) -> bool) -> bool {
        let workers = self.snapshot.steering.workers();
        let others = (0..workers).map(|worker| WorkerId(worker as u8)).filter(|&other| other != self.worker);
        let mut told = true;
        for other in others {
            told &= give(other, Cargo::End(self.snapshot.generation));
        }
        self.moving.giving = (!told).then_some(giving);
        told
    }

    /// The flow, if another worker owns its home: as it is then nobody else follows it.
    fn give<D: Desk>(&mut self, stage: Stage, id: FlowId, desk: &mut D) -> Option<(WorkerId, MovedFlow)> {
        self.moved(stage, id)?;
        match stage {
            // One whose handshake is complete is met again in the other table.
            Stage::HalfOpen => {
                self.hear_for_good(id, desk);
            }
            Stage::Established => {
                self.recall(id);
            }
        }
        self.moved(stage, id)
    }

    /// The flow, if another worker owns its home.
    fn moved(&self, stage: Stage, id: FlowId) -> Option<(WorkerId, MovedFlow)> {
        let home = self.home_of_flow(&self.flows.table(stage).path(id)?);
        let owner = self.snapshot.steering.worker_of(home);
        if owner == self.worker {
            return None;
        }
        Some((owner, self.flows.moved(stage, id)?))
    }

    /// Takes what worker `by` gives. A flow that finds no room here is ended, and both its sides are told.
    pub fn import(&mut self, now: Now, by: WorkerId, cargo: Cargo, desk: &mut impl Desk, out: &mut Outbox) {
        out.mute(self.role == MachineRole::Standby);
        self.take_cargo(now, by, cargo, desk, out);
        out.mute(false);
    }

    fn take_cargo(&mut self, now: Now, by: WorkerId, cargo: Cargo, desk: &mut impl Desk, out: &mut Outbox) {
        let flow = match cargo {
            Cargo::Flow(flow) => flow,
            Cargo::End(generation) => return self.moving.ended(by, generation),
        };
        self.call(now);
        self.counts.add(PlaneCounter::FlowsTaken, 1);
        let MovedFlow { stage, flow: ended, .. } = flow;
        let Ended { state, detail, .. } = ended;
        self.take_from_transits(&ended.path);
        match self.flows.take_over(&flow) {
            Ok(id) => {
                self.services.find_flow(&ended.path);
                // It may have missed the sweep here, and the one there.
                if detail.is_counted
                    && self.services.is_shunned(state.service(), detail.server, ended.path.client.dst_port)
                {
                    self.start_sweep();
                }
                // Its end was carried just before it left.
                if stage == Stage::Established && detail.is_counted && is_over(&ended.path, &state) {
                    self.settle_closed(id, desk);
                }
                if self.moved(stage, id).is_some() {
                    self.moving.giving = Some(FROM_THE_START);
                }
            }
            Err(_) => {
                if detail.is_counted {
                    self.reset_who_is_known(now, stage, &ended, out);
                }
                self.end(stage, ended, Termination::OutOfConnections, desk);
            }
        }
        let gave_way = self.flows.take_gave_way();
        self.counts.add(PlaneCounter::FlowsClosed, gave_way);
    }
}

impl Flows {
    /// Enters a flow of another table; connections that are over give way to it.
    fn take_over(&mut self, flow: &MovedFlow) -> Result<FlowId, OpenError> {
        let MovedFlow { stage, seen, flow: Ended { path, class, state, detail, .. } } = *flow;
        let returns = (path.returns == Returns::Here).then(|| path.server.reversed());
        for tuple in std::iter::once(path.client).chain(returns) {
            let Some(found) = self.lookup(&tuple) else { continue };
            if !self.is_over(found.stage, found.id) {
                return Err(OpenError::Taken);
            }
            self.give_way(found.stage, found.id);
        }
        if !self.make_room_outside(&path) {
            return Err(OpenError::Full);
        }
        if stage == Stage::Established && !self.make_room_established(path.returns) {
            return Err(OpenError::Full);
        }
        let id = self.table_mut(stage).insert(seen, &path, class, state, detail).map_err(|error| match error {
            InsertError::Exists(_) => OpenError::Taken,
            InsertError::AddressesFull | InsertError::Full => OpenError::Full,
        })?;
        match stage {
            Stage::HalfOpen => {
                self.sources.add(self.sources.source(path.client.src));
                self.unanswered += usize::from(!is_tcp(&path));
            }
            Stage::Established => self.one_way += usize::from(path.returns == Returns::Elsewhere),
        }
        self.outside_v6 += usize::from(names_outside_v6(&path));
        Ok(id)
    }
}
