//! The controller: runs the health checks, publishes what they change, takes reloads, answers the control socket.
//!
//! One thread, not pinned, apart from the workers: whatever it waits for, they go on.

use std::collections::HashMap;
use std::io;
use std::sync::mpsc::{Sender, SyncSender};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::sync::mpsc as async_mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};
use towpath_config::model::Model;
use towpath_core::CheckId;
use towpath_core::Generation;
use towpath_core::health::{CheckPlan, CheckSchedule};
use towpath_core::snapshot::Snapshot;
use towpath_core::steering::SteeringTable;
use towpath_core::steering::program::reuseport_program;

use crate::access;
use crate::control::{Access, Entrance};
use crate::engine::ReloadError;
use crate::house::House;
use crate::http_files;
use crate::packets::arms;
use crate::packets::facing::resolve;
use crate::packets::steering::program;
use crate::plan::PROBES_MAX;
use crate::preflight::{HostFacts, Severity, preflight};
use crate::probe::Detail;
use crate::reload::{check_room, needs_restart, new_interfaces, newcomers, workers_wanted};
use crate::shared::SteeringPrograms;
use crate::tls::TlsMaterial;
use crate::{control, probe, state_file};

/// Verdicts that come within this time of each other share one snapshot.
const COALESCE_MS: u64 = 20;
/// How long a reload waits for the workers before it reports which one is late.
const ADOPT_TIMEOUT_MS: u64 = 5_000;
/// Time between rounds of housekeeping.
const HOUSEKEEPING_MS: u64 = 1_000;
/// Time between two looks at connections that drains wait for.
const DRAIN_LOOK_MS: u64 = 100;
/// Persistence entries per stripe that one round of housekeeping looks at.
const SWEEP_BUDGET: usize = 64;
/// Time between two looks at what clients meet at the servers, where that judges these.
const PASSIVE_LOOK_MS: u64 = 500;
/// Reloads waiting for their turn.
const COMMANDS_MAX: usize = 8;

/// What others ask of the controller.
enum Command {
    Reload { model: Box<Model>, reply: SyncSender<Result<Generation, ReloadError>> },
    Stop,
}

/// The controller's thread, as others hold it.
pub(crate) struct Controller {
    commands: async_mpsc::Sender<Command>,
    thread: Option<JoinHandle<()>>,
}

impl Controller {
    /// Starts the thread; `judged` hears once every check has a verdict, or once the first checks' time is over.
    pub(crate) fn start(
        house: Arc<House>,
        entrance: Entrance,
        seed: u64,
        judged: Sender<()>,
    ) -> io::Result<Controller> {
        let (commands, inbox) = async_mpsc::channel(COMMANDS_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("controller".to_owned()).spawn(move || {
            runtime.block_on(Turn::new(house, seed, judged).run(inbox, entrance));
            // A name server or a file system that somebody still waits for is no reason to stay.
            runtime.shutdown_background();
        })?;
        Ok(Controller { commands, thread: Some(thread) })
    }

    /// Hands a model over and waits until it is in force or refused.
    pub(crate) fn reload(&self, model: Model) -> Result<Generation, ReloadError> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.commands
            .blocking_send(Command::Reload { model: Box::new(model), reply })
            .map_err(|_| ReloadError::Stopping)?;
        answer.recv().unwrap_or(Err(ReloadError::Stopping))
    }

    /// Ends the thread; the control socket is gone afterwards.
    pub(crate) fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        let _ended_already = self.commands.blocking_send(Command::Stop);
        if thread.join().is_err() {
            tracing::warn!("the controller's thread panicked");
        }
    }
}

/// A reload whose snapshot is published and that waits for the workers.
struct Pending {
    generation: Generation,
    until: Instant,
    reply: SyncSender<Result<Generation, ReloadError>>,
}

/// What the controller's loop keeps between its turns.
struct Turn {
    house: Arc<House>,
    seed: u64,
    places: Arc<Semaphore>,
    probes: HashMap<CheckId, AbortHandle>,
    publish_at: Option<Instant>,
    judged: Option<(Sender<()>, Instant)>,
    pending: Vec<Pending>,
    /// What the kernel is to steer by once the flows of this generation have moved.
    resteer: Option<(Generation, SteeringPrograms)>,
    /// When drains are looked at; `None` = none is under way.
    drains_at: Option<Instant>,
    /// Why the last look could not end what was over.
    drain_trouble: Option<String>,
}

impl Turn {
    fn new(house: Arc<House>, seed: u64, judged: Sender<()>) -> Turn {
        let first_checks_ms = house.truth().checks().iter().map(|plan| plan.timeout_ms).max().unwrap_or(0);
        let patience = Instant::now() + Duration::from_millis(first_checks_ms);
        Turn {
            house,
            seed,
            places: Arc::new(Semaphore::new(PROBES_MAX)),
            probes: HashMap::new(),
            publish_at: None,
            judged: Some((judged, patience)),
            pending: Vec::new(),
            resteer: None,
            // One of an earlier run may be.
            drains_at: Some(Instant::now()),
            drain_trouble: None,
        }
    }

    async fn run(mut self, mut inbox: async_mpsc::Receiver<Command>, entrance: Entrance) {
        control::serve(entrance, &self.house);
        let receivers = self.house.notifier.serve();
        tokio::spawn(state_file::keep(Arc::clone(&self.house)));
        let version = self.house.truth().words_version();
        self.house.keeper.note(version);
        self.match_probes();
        let house = Arc::clone(&self.house);
        let mut housekeeping = tokio::time::interval(Duration::from_millis(HOUSEKEEPING_MS));
        let mut looks = tokio::time::interval(Duration::from_millis(PASSIVE_LOOK_MS));
        loop {
            self.report_judged();
            let publish = at(self.publish_at);
            let patience = at(self.judged.as_ref().map(|(_, until)| *until));
            let drains = at(self.drains_at);
            let late = at(self.pending.iter().map(|pending| pending.until).min());
            tokio::select! {
                command = inbox.recv() => match command {
                    Some(Command::Reload { model, reply }) => self.reload(*model, reply),
                    Some(Command::Stop) | None => break,
                },
                () = house.changed.notified() => {
                    let soon = Instant::now() + Duration::from_millis(COALESCE_MS);
                    self.publish_at.get_or_insert(soon);
                }
                () = publish => self.publish(),
                () = house.ordered.notified() => self.look_at_drains(),
                () = drains => self.look_at_drains(),
                () = house.shared.news().notified() => self.answer_pending(),
                () = late => self.answer_pending(),
                () = patience => {}
                _ = housekeeping.tick() => self.keep_house(),
                _ = looks.tick() => house.look_at_clients(),
            }
        }
        state_file::keep_last(&self.house);
        for pending in self.pending {
            // Published, but the workers are ending.
            let _nobody_waits = pending.reply.send(Ok(pending.generation));
        }
        receivers.finish().await;
    }

    /// Lets the start go on once every check has a verdict that is published, or its time is over.
    fn report_judged(&mut self) {
        let Some((judged, until)) = &self.judged else { return };
        let in_time = Instant::now() < *until;
        if in_time && (self.publish_at.is_some() || !self.house.truth().all_judged()) {
            return;
        }
        let _nobody_waits = judged.send(());
        self.judged = None;
    }

    /// Ends drains that are over, and looks again soon while others are not.
    fn look_at_drains(&mut self) {
        let result = self.house.end_drains();
        let pause_ms = if result.is_ok() { DRAIN_LOOK_MS } else { HOUSEKEEPING_MS };
        let trouble = result.as_ref().err().map(ToString::to_string);
        if trouble != self.drain_trouble
            && let Some(error) = &trouble
        {
            tracing::error!("a drain that is over could not be ended: {error}");
        }
        self.drain_trouble = trouble;
        let is_under_way = result.unwrap_or(true);
        self.drains_at = is_under_way.then(|| Instant::now() + Duration::from_millis(pause_ms));
    }

    /// Verdicts have changed: the same model, compiled again.
    fn publish(&mut self) {
        self.publish_at = None;
        let mut truth = self.house.truth();
        match truth.next(self.house.shared.generation()) {
            Ok(next) => self.house.shared.publish(next),
            Err(error) => tracing::error!("a change of health could not be taken: {error}"),
        }
    }

    fn reload(&mut self, model: Model, reply: SyncSender<Result<Generation, ReloadError>>) {
        match self.take(model) {
            Err(error) => {
                tracing::warn!("reload refused: {error}");
                let _nobody_waits = reply.send(Err(error));
            }
            Ok(generation) => {
                self.match_probes();
                // What was said may have given way.
                let version = self.house.truth().words_version();
                self.house.keeper.note(version);
                let until = Instant::now() + Duration::from_millis(ADOPT_TIMEOUT_MS);
                self.pending.push(Pending { generation, until, reply });
                self.answer_pending();
            }
        }
    }

    fn take(&mut self, model: Model) -> Result<Generation, ReloadError> {
        let (before, secret) = {
            let truth = self.house.truth();
            (Arc::clone(truth.material()), truth.http_secret())
        };
        // Nobody waits for the truth while files are read. What is wrong with them is told last: preflight says it with its place.
        let material = TlsMaterial::load(&model, &before);
        let http = http_files::load(&model, secret);
        let control = Access::load(&model);
        let mut truth = self.house.truth();
        let model = resolve(model, Some(truth.model()));
        let started: Vec<usize> = self.house.plan.workers.iter().map(|worker| worker.cpu).collect();
        let changed = needs_restart(truth.model(), &model, &started, &self.house.usable_cpus);
        if !changed.is_empty() {
            return Err(ReloadError::NeedsRestart(changed));
        }
        let mut facts = HostFacts::gather(&model).map_err(ReloadError::Host)?;
        if let (Some(planned), Some(packets)) = (&self.house.plan.packets, &mut facts.packets) {
            let (needed, _) = arms::needed(&model, &packets.tables);
            let changed = new_interfaces(&planned.arms, &arms::describe(&needed));
            if !changed.is_empty() {
                return Err(ReloadError::NeedsRestart(changed));
            }
            for arm in newcomers(&planned.arms, &packets.arms) {
                tracing::warn!(
                    "interface {} is not routed to or from before a restart: it had no address at the start",
                    arm.name
                );
            }
            // One that is down just now is still ours, and one that came since is not yet.
            packets.arms.clone_from(&planned.arms);
        }
        if let Some(packets) = &mut facts.packets {
            // An interface that is down just now is no mistake of the new configuration, which must not have to wait for it.
            for way in packets.missing.extract_if(.., |way| way.concerns(truth.model(), &model)) {
                tracing::warn!("reload goes on although at this time {}", way.message());
            }
        }
        facts.cpus.clone_from(&started);
        // What this process holds already is in its plan, and limits do not change here.
        facts.memory_bytes = facts.memory_bytes.saturating_add(self.house.plan.memory_total());
        let mut findings = preflight(&model, &facts);
        findings.retain(|finding| finding.severity == Severity::Error);
        if !findings.is_empty() {
            return Err(ReloadError::Preflight(findings));
        }
        let material = material.map_err(ReloadError::Tls)?;
        let http = http.map_err(ReloadError::Http)?;
        let control = control.map_err(ReloadError::Control)?;
        if access::is_wanted(&model) {
            access::check(&model.log).map_err(ReloadError::AccessLog)?;
        }
        let current = self.house.shared.snapshot();
        let wanted = workers_wanted(&model.runtime.workers, &started, &self.house.usable_cpus);
        let workers = wanted.unwrap_or(started.len());
        let (steering, programs) = match workers == current.steering.workers() {
            true => (Arc::clone(&current.steering), None),
            false => {
                let (steering, programs) = self.remap(&model, &current, workers)?;
                (steering, Some(programs))
            }
        };
        let now = self.house.shared.now();
        let next = truth.take(model, material, http, steering, &current, now).map_err(ReloadError::Compile)?;
        let generation = next.snapshot.generation;
        self.house.guard.follow(control);
        let access = Arc::clone(self.house.shared.access());
        if let Err(error) = access.follow(truth.model(), self.house.shared.origin()) {
            tracing::error!("access log: its thread could not be made: {error}; no lines are written");
        }
        self.resteer = programs.map(|programs| (generation, programs)).or(self.resteer.take());
        self.house.shared.publish(next);
        Ok(generation)
    }

    /// The table for so many workers, and the programs that go with it. One move at a time: a worker waits for flows of one other only.
    fn remap(
        &self,
        model: &Model,
        current: &Snapshot,
        workers: usize,
    ) -> Result<(Arc<SteeringTable>, SteeringPrograms), ReloadError> {
        let shared = &self.house.shared;
        if self.resteer.is_some() || !shared.all_moved(current.generation) {
            return Err(ReloadError::Moving);
        }
        if let Some(packets) = &self.house.plan.packets
            && workers < current.steering.workers()
        {
            let flows = shared.seats().map(|seat| u64::from(seat.flows())).sum();
            check_room(packets, flows, workers)?;
        }
        let table = current.steering.remapped(workers);
        let fanout = match self.house.plan.packets {
            Some(_) => program(model, &table, shared.steering_seed())?,
            None => Vec::new(),
        };
        let reuseport = reuseport_program(&table, shared.steering_seed()).into_iter().map(Into::into).collect();
        Ok((Arc::new(table), SteeringPrograms { fanout, reuseport }))
    }

    /// Has the kernel steer anew once all flows are where they belong. Before, frames would find them only by way of the worker that had them.
    fn steer(&mut self) {
        let shared = &self.house.shared;
        if let Some((_, programs)) = self.resteer.take_if(|(generation, _)| shared.all_moved(*generation)) {
            shared.publish_steering(programs);
        }
    }

    /// Tells reloads that every worker serves theirs; one that waits too long hears so in the log.
    fn answer_pending(&mut self) {
        self.steer();
        let now = Instant::now();
        let shared = &self.house.shared;
        self.pending.retain(|pending| {
            let adopted = shared.all_adopted(pending.generation);
            let moved = shared.all_moved(pending.generation);
            if !(adopted && moved) && now < pending.until {
                return true;
            }
            if adopted && !moved {
                tracing::warn!("generation {}: flows still move between workers", pending.generation);
            }
            if !adopted {
                let late: Vec<String> = shared
                    .seats()
                    .filter(|seat| !seat.ended() && seat.adopted() < pending.generation)
                    .map(|seat| seat.id().to_string())
                    .collect();
                tracing::warn!("generation {}: worker {} does not serve it yet", pending.generation, late.join(", "));
            }
            let _nobody_waits = pending.reply.send(Ok(pending.generation));
            false
        });
    }

    fn keep_house(&mut self) {
        self.house.shared.sweep_persistence(SWEEP_BUDGET);
        let snapshot = self.house.shared.snapshot();
        let mut truth = self.house.truth();
        truth.announce_source_ports(&snapshot);
        truth.announce_loops(&self.house.shared);
        truth.announce_certificates();
        truth.release_gone(&self.house.shared);
    }

    /// One probe per check of the model in force, at once for a new one; those of others end.
    fn match_probes(&mut self) {
        let plans: Vec<CheckPlan> = self.house.truth().checks().to_vec();
        self.probes.retain(|id, probe| {
            let wanted = plans.iter().any(|plan| plan.id == *id);
            if !wanted {
                probe.abort();
            }
            wanted
        });
        for plan in plans {
            let (id, house, places) = (plan.id, Arc::clone(&self.house), Arc::clone(&self.places));
            let seed = self.seed ^ u64::from(id.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.probes.entry(id).or_insert_with(|| tokio::spawn(watch(house, plan, seed, places)).abort_handle());
        }
    }
}

/// Checks one server for ever: at once, then at its interval.
async fn watch(house: Arc<House>, plan: CheckPlan, seed: u64, places: Arc<Semaphore>) {
    let mut schedule = CheckSchedule::new(&plan, seed, house.shared.now());
    let mut trust = probe::Trust::default();
    loop {
        let wait_ms = schedule.due().ms_since(house.shared.now());
        sleep_until(Instant::now() + Duration::from_millis(wait_ms)).await;
        let started = house.shared.now();
        let network = house.shared.network().current();
        // As it is called now: a reload may have renamed it.
        let subject = house.subject_of(plan.id);
        let probed = probe::run(&plan, &network, &places, &mut trust, &subject, Detail::Result).await;
        let pace = house.judge(plan.id, probed);
        schedule.advance(started, pace);
    }
}

/// At this instant; never, if there is none.
async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
