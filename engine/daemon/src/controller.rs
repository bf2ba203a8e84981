//! The controller: runs the health checks, publishes what they change, takes reloads, answers the control socket.
//!
//! One thread, not pinned, apart from the workers: whatever it waits for, they go on.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc as async_mpsc;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};
use towpath_config::model::{MachineRole, Model, Protocol, Workers};
use towpath_core::health::{CheckPlan, CheckSchedule};
use towpath_core::http::HttpMaterial;
use towpath_core::loads::Loads;
use towpath_core::snapshot::Snapshot;
use towpath_core::steering::SteeringTable;
use towpath_core::steering::program::reuseport_program;
use towpath_core::{CheckId, Generation, RealServerId, ServiceId};
use towpath_sys::packet::Instruction;

use crate::access;
use crate::control::{Access, Entrance};
use crate::daemon_log;
use crate::engine::ReloadError;
use crate::house::{House, Truth};
use crate::http_files;
use crate::listen::{ListenErrors, Opening, open_all, openings, probe_all};
use crate::metrics::MetricsServer;
use crate::packets::arms;
use crate::packets::claims::{claims, services};
use crate::packets::facing::resolve;
use crate::packets::steering::{program, rules};
use crate::plan::{PROBES_MAX, Plan, PlanInput};
use crate::preflight::{HostFacts, Severity, preflight};
use crate::probe::Detail;
use crate::reload::changes::{PlannedChange, ReloadPlan};
use crate::reload::{
    Room, Started, check_room, needs_restart, new_interfaces, newcomers, planned_changes, workers_wanted,
};
use crate::shared::{DoorBoard, Doorway, Reserved, SteeringPrograms};
use crate::tls::TlsMaterial;
use crate::{control, probe, role, state_file};

/// Verdicts that come within this time of each other share one snapshot.
const COALESCE_MS: u64 = 20;
/// How long a reload waits for the workers before it reports which one is late.
const ADOPT_TIMEOUT_MS: u64 = 5_000;
/// How long a reload waits for listeners that close while it wants them: their workers have only to come by.
const CLOSING_MS: u64 = 1_000;
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
pub(crate) enum Command {
    /// What taking a model would change.
    Look { model: Box<Model>, reply: oneshot::Sender<ReloadPlan> },
    /// A model is to be taken, as somebody wants.
    Reload { model: Box<Model>, by: String, reply: oneshot::Sender<Result<Reloaded, ReloadError>> },
    /// The end.
    Stop,
}

/// What a reload has brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// The generation in force.
    pub generation: u64,
    /// What it changed.
    pub changes: Vec<PlannedChange>,
    /// What the file is warned of, and what is late.
    pub warnings: Vec<String>,
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
        metrics: Option<TcpListener>,
        seed: u64,
        judged: Sender<()>,
    ) -> io::Result<Controller> {
        let (commands, inbox) = async_mpsc::channel(COMMANDS_MAX);
        let _is_first = house.commands.set(commands.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("controller".to_owned()).spawn(move || {
            runtime.block_on(Turn::new(house, seed, judged).run(inbox, entrance, metrics));
            // A name server or a file system that somebody still waits for is no reason to stay.
            runtime.shutdown_background();
        })?;
        Ok(Controller { commands, thread: Some(thread) })
    }

    /// Hands a model over and waits until it is in force or refused.
    pub(crate) fn reload(&self, model: Model, by: String) -> Result<Reloaded, ReloadError> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .blocking_send(Command::Reload { model: Box::new(model), by, reply })
            .map_err(|_| ReloadError::Stopping)?;
        answer.blocking_recv().unwrap_or(Err(ReloadError::Stopping))
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
    changes: Vec<PlannedChange>,
    reply: oneshot::Sender<Result<Reloaded, ReloadError>>,
}

impl Pending {
    fn answer(self, warnings: Vec<String>) {
        let Pending { generation, changes, reply, .. } = self;
        let _nobody_waits = reply.send(Ok(Reloaded { generation: generation.0, changes, warnings }));
    }
}

/// What a model names and the reload reads.
struct Materials {
    tls: TlsMaterial,
    http: HttpMaterial,
    control: Option<Access>,
}

impl Materials {
    /// Nobody waits for the truth while files are read. What is wrong with them is told last: preflight says it with its place.
    fn load(house: &House, model: &Model) -> Result<Materials, ReloadError> {
        let (before, secret) = {
            let truth = house.truth();
            (Arc::clone(truth.material()), truth.http_secret())
        };
        let tls = TlsMaterial::load(model, &before).map_err(ReloadError::Tls)?;
        let http = http_files::load(model, secret).map_err(ReloadError::Http)?;
        let control = Access::load(model).map_err(ReloadError::Control)?;
        Ok(Materials { tls, http, control })
    }
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
    /// The machine's, as it was last looked at.
    role: MachineRole,
    /// Tells the neighbours of addresses that came with it.
    announcing: Option<AbortHandle>,
    metrics: MetricsServer,
}

impl Turn {
    fn new(house: Arc<House>, seed: u64, judged: Sender<()>) -> Turn {
        let first_checks_ms = house.truth().checks().iter().map(|plan| plan.timeout_ms).max().unwrap_or(0);
        let patience = Instant::now() + Duration::from_millis(first_checks_ms);
        let role = house.shared.snapshot().role;
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
            role,
            announcing: None,
            metrics: MetricsServer::default(),
        }
    }

    async fn run(mut self, mut inbox: async_mpsc::Receiver<Command>, entrance: Entrance, metrics: Option<TcpListener>) {
        control::serve(entrance, &self.house);
        let settings = self.house.truth().model().metrics.clone();
        self.metrics.follow(&settings, metrics, &self.house);
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
                    Some(Command::Reload { model, by, reply }) => self.reload(*model, &by, reply),
                    Some(Command::Look { model, reply }) => {
                        let _nobody_waits = reply.send(self.look_at(*model));
                    }
                    Some(Command::Stop) | None => break,
                },
                () = house.changed.notified() => {
                    let soon = Instant::now() + Duration::from_millis(COALESCE_MS);
                    self.publish_at.get_or_insert(soon);
                }
                () = publish => self.publish(),
                () = house.ordered.notified() => {
                    self.look_at_drains();
                    self.look_at_role();
                }
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
            pending.answer(Vec::new());
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

    /// Whoever becomes active says where its addresses are.
    fn look_at_role(&mut self) {
        let role = self.house.shared.snapshot().role;
        if role == self.role {
            return;
        }
        self.role = role;
        if let Some(before) = self.announcing.take() {
            before.abort();
        }
        if role == MachineRole::Active {
            self.announcing = Some(tokio::spawn(role::announce(Arc::clone(&self.house))).abort_handle());
        }
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

    fn reload(&mut self, model: Model, by: &str, reply: oneshot::Sender<Result<Reloaded, ReloadError>>) {
        match self.take(model, by) {
            Err(error) => {
                tracing::warn!("reload refused: {error}");
                let _nobody_waits = reply.send(Err(error));
            }
            Ok((generation, changes)) => {
                self.match_probes();
                self.look_at_role();
                // What was said may have given way.
                let version = self.house.truth().words_version();
                self.house.keeper.note(version);
                let until = Instant::now() + Duration::from_millis(ADOPT_TIMEOUT_MS);
                self.pending.push(Pending { generation, until, changes, reply });
                self.answer_pending();
            }
        }
    }

    /// Makes a model the truth, or says why it stays as it was.
    fn take(&mut self, model: Model, by: &str) -> Result<(Generation, Vec<PlannedChange>), ReloadError> {
        let house = Arc::clone(&self.house);
        let materials = Materials::load(&house, &model);
        let mut truth = house.truth();
        let model = resolve(model, Some(truth.model()));
        let changes =
            planned_changes(truth.model(), &model, |service, server| open_connections(&house, &truth, service, server));
        let room = self.judge(&truth, &model)?;
        let Materials { tls, http, control } = materials?;
        let metrics = self.metrics.prepare(&model.metrics).map_err(ReloadError::Metrics)?;
        let shared = &house.shared;
        let current = shared.snapshot();
        let started: Vec<usize> = house.plan.workers.iter().map(|worker| worker.cpu).collect();
        let workers = workers_wanted(&model.runtime.workers, &started, &house.usable_cpus).unwrap_or(started.len());
        truth.make_room_for(&model, shared);
        let leaving = truth.leaving().after(truth.model(), &model, shared.now());
        let (steering, programs) = match workers == current.steering.workers() {
            true => (Arc::clone(&current.steering), None),
            false => {
                let (steering, programs) = self.remap(&leaving.with(&model), &current, workers)?;
                (steering, Some(programs))
            }
        };
        let before = Arc::clone(truth.openings());
        // Numbers are given when the model is taken.
        let wanted = openings(&model, |name| Some(truth.registry().service(name).unwrap_or(ServiceId(0))));
        let doorways = shared.doorways();
        let reserved = reserve(doorways, &wanted)?;
        let give_back = || doorways.leave(reserved.back.iter().copied());
        let listeners = match open_all(&reserved.fresh, started.len(), &steering, shared.steering_seed()) {
            Ok(listeners) => listeners,
            Err(errors) => {
                give_back();
                return Err(ReloadError::Listen(errors));
            }
        };
        let (served_before, served_next) = (truth.served().into_owned(), leaving.with(&model).into_owned());
        // First, so that no flow is opened where the kernel answers, too. What goes is still claimed, for its flows.
        let fanout = match self.claim(&served_before, &served_next, &steering) {
            Ok(fanout) => fanout,
            Err(error) => {
                give_back();
                return Err(error);
            }
        };
        let next = match truth.take(model, (tls, http), Arc::clone(&steering), &current, by, shared.now()) {
            Ok(next) => next,
            Err(error) => {
                give_back();
                if let Err(error) = self.claim(&served_next, &served_before, &current.steering) {
                    tracing::error!("{error}");
                }
                return Err(ReloadError::Compile(error));
            }
        };
        let generation = next.snapshot.generation;
        doorways.enter(reserved.fresh.iter().map(Opening::doorway));
        doorways.hand(generation, listeners);
        let stays: BTreeSet<Doorway> = truth.openings().iter().map(Opening::doorway).collect();
        doorways.leave(before.iter().map(Opening::doorway).filter(|doorway| !stays.contains(doorway)));
        let access = Arc::clone(shared.access());
        if let Err(error) = access.follow(truth.model(), shared.origin()) {
            tracing::error!("access log: its thread could not be made: {error}; no lines are written");
        }
        self.resteer = programs.map(|programs| (generation, programs)).or(self.resteer.take());
        shared.gate(Protocol::Tcp).resize(room.connections);
        shared.gate(Protocol::Udp).resize(room.udp_sessions);
        shared.handshakes().resize(room.handshakes);
        house.guard.follow(control);
        self.metrics.follow(&truth.model().metrics, metrics, &house);
        daemon_log::follow(&truth.model().log.own);
        shared.publish(next);
        self.steer_by(fanout, &steering);
        Ok((generation, changes))
    }

    /// Has the kernel leave to the packet plane what `next` claims where it is other than `before`; returns the program that steers what comes there.
    fn claim(
        &self,
        before: &Model,
        next: &Model,
        steering: &SteeringTable,
    ) -> Result<Option<Vec<Instruction>>, ReloadError> {
        let Some(network) = &self.house.network else { return Ok(None) };
        let is_same = claims(before, &[]) == claims(next, &[]) && rules(before)? == rules(next)?;
        let homes = |model: &Model| -> Vec<_> {
            services(model).map(|service| (service.vip, service.interface.clone())).collect()
        };
        if is_same && homes(before) == homes(next) {
            return Ok(None);
        }
        if self.resteer.is_some() {
            return Err(ReloadError::Moving);
        }
        let program = program(next, steering, self.house.shared.steering_seed())?;
        network.follow(next.clone(), program.clone()).map_err(ReloadError::Packets)?;
        Ok(Some(program))
    }

    /// Steers what comes to the packet plane by another program, if there is one, and tells the neighbours where our addresses are.
    fn steer_by(&self, fanout: Option<Vec<Instruction>>, steering: &SteeringTable) {
        let (Some(fanout), Some(network)) = (fanout, &self.house.network) else { return };
        let shared = &self.house.shared;
        // While flows move, it comes with the move. Where there is one worker, nothing chooses among them.
        if self.resteer.is_none() && self.house.plan.workers.len() > 1 {
            let reuseport = reuseport_program(steering, shared.steering_seed()).into_iter().map(Into::into).collect();
            shared.publish_steering(SteeringPrograms { fanout, reuseport });
        }
        network.announce();
    }

    /// Services of the packet plane that have left and had their time end, and are forgotten when they have no flow any more.
    fn let_go(&mut self) {
        let house = Arc::clone(&self.house);
        let shared = &house.shared;
        let mut truth = house.truth();
        // While flows move, in a moment.
        if truth.leaving().is_empty() || self.resteer.is_some() {
            return;
        }
        let before = truth.served().into_owned();
        let names: Vec<String> = truth.leaving().names().map(str::to_owned).collect();
        if !truth.turn_leaving(shared) {
            return;
        }
        for name in names.iter().filter(|name| truth.leaving().find(name).is_none()) {
            tracing::info!("service {name} has no flow left; its addresses and ports are free");
        }
        let steering = Arc::clone(&shared.snapshot().steering);
        match truth.next(shared.generation()) {
            Ok(next) => shared.publish(next),
            Err(error) => return tracing::error!("a service that has left could not be ended: {error}"),
        }
        match self.claim(&before, &truth.served(), &steering) {
            Ok(fanout) => self.steer_by(fanout, &steering),
            // Claimed for longer than it has to be: with the next change it is not.
            Err(error) => tracing::warn!("what a service has left is still kept from the kernel: {error}"),
        }
    }

    /// What taking a model would change, and whether it could be taken; nothing is.
    fn look_at(&self, model: Model) -> ReloadPlan {
        let house = Arc::clone(&self.house);
        let materials = Materials::load(&house, &model);
        let truth = house.truth();
        let model = resolve(model, Some(truth.model()));
        let changes =
            planned_changes(truth.model(), &model, |service, server| open_connections(&house, &truth, service, server));
        // What is wrong with files the judgement says with its place.
        let unfit = self.judge(&truth, &model).err().or(materials.err());
        let refusals = [unfit, self.probe_openings(&truth, &model).err().map(ReloadError::Listen)];
        let refusals = refusals.into_iter().flatten().flat_map(|error| error.reasons()).collect();
        ReloadPlan { generation: house.shared.generation().0, changes, refusals }
    }

    /// Whether what is to be opened for a model can be.
    fn probe_openings(&self, truth: &Truth, model: &Model) -> Result<(), ListenErrors> {
        let open: BTreeSet<Doorway> = truth.openings().iter().map(Opening::doorway).collect();
        let mut wanted = openings(model, |_| Some(ServiceId(0)));
        let doorways = self.house.shared.doorways();
        wanted.retain(|opening| !open.contains(&opening.doorway()) && !doorways.has(&opening.doorway()));
        probe_all(&wanted)
    }

    /// Judges what a model wants of a process that runs; returns what is admitted by it.
    fn judge(&self, truth: &Truth, model: &Model) -> Result<Room, ReloadError> {
        let plan = &self.house.plan;
        let started: Vec<usize> = plan.workers.iter().map(|worker| worker.cpu).collect();
        let room = Room::of(plan);
        let bound = Started { cpus: &started, usable: &self.house.usable_cpus, room, leaving: truth.leaving() };
        let changed = needs_restart(truth.model(), model, &bound);
        if !changed.is_empty() {
            return Err(ReloadError::NeedsRestart(changed));
        }
        let mut facts = HostFacts::gather(model).map_err(ReloadError::Host)?;
        if let (Some(planned), Some(packets)) = (&plan.packets, &mut facts.packets) {
            let (needed, _) = arms::needed(model, &packets.tables);
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
            for way in packets.missing.extract_if(.., |way| way.concerns(truth.model(), model)) {
                tracing::warn!("reload goes on although at this time {}", way.message());
            }
        }
        facts.cpus.clone_from(&started);
        // What this process holds already is in its plan.
        facts.memory_bytes = facts.memory_bytes.saturating_add(plan.memory_total());
        let mut findings = preflight(model, &facts);
        findings.retain(|finding| finding.severity == Severity::Error);
        if !findings.is_empty() {
            return Err(ReloadError::Preflight(findings));
        }
        // By what the start found: memory that others have taken since is no reason to admit fewer.
        let mut of_all = model.clone();
        of_all.runtime.workers = Workers::Cpus(started);
        let input = PlanInput { nofile: plan.nofile, memory_bytes: plan.memory_available, ..PlanInput::of(&facts) };
        let next = Plan::new(&of_all, &input).map_err(ReloadError::Plan)?;
        if access::is_wanted(model) {
            access::check(&model.log).map_err(ReloadError::AccessLog)?;
        }
        Ok(room.within(&next))
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
        let is_over = |pending: &mut Pending| {
            let done = shared.all_adopted(pending.generation) && shared.all_moved(pending.generation);
            done || now >= pending.until
        };
        for pending in self.pending.extract_if(.., is_over) {
            let generation = pending.generation;
            let adopted = shared.all_adopted(generation);
            let mut warnings = Vec::new();
            if adopted && !shared.all_moved(generation) {
                warnings.push(format!("generation {generation}: flows still move between workers"));
            }
            if !adopted {
                let late: Vec<String> = shared
                    .seats()
                    .filter(|seat| !seat.ended() && seat.adopted() < generation)
                    .map(|seat| seat.id().to_string())
                    .collect();
                warnings.push(format!("generation {generation}: worker {} does not serve it yet", late.join(", ")));
            }
            warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            pending.answer(warnings);
        }
    }

    fn keep_house(&mut self) {
        self.house.shared.sweep_persistence(SWEEP_BUDGET);
        self.let_go();
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

/// Finds what is to be opened. What closes just now is closed a moment later: its workers have nothing more to wait for.
fn reserve(doorways: &DoorBoard, wanted: &[Opening]) -> Result<Reserved, ReloadError> {
    let until = Instant::now() + Duration::from_millis(CLOSING_MS);
    loop {
        let reserved = doorways.reserve(wanted);
        if reserved.closing.is_empty() {
            return Ok(reserved);
        }
        doorways.leave(reserved.back.iter().copied());
        if Instant::now() >= until {
            return Err(ReloadError::Closing(reserved.closing.iter().map(|(_, address)| *address).collect()));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// What a service has open, or has with one of its servers.
fn open_connections(house: &House, truth: &Truth, service: &str, server: Option<&str>) -> u64 {
    let Some(id) = truth.registry().service(service) else { return 0 };
    let loads = house.shared.loads();
    let Some(server) = server else { return loads.service_active(id).into() };
    let snapshot = house.shared.snapshot();
    let places = snapshot.each_service().filter(|place| place.id == id);
    let mut ids: Vec<RealServerId> = places
        .flat_map(|place| &place.targets)
        .filter(|target| target.name == server)
        .map(|target| target.server)
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids.into_iter().map(|server| u64::from(loads.active_of(id, server))).sum()
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
