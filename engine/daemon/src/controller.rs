//! The controller: runs the health checks, publishes what they change, takes reloads, answers the control socket.
//!
//! One thread, not pinned, apart from the workers: whatever it waits for, they go on.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc as async_mpsc;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::task::{AbortHandle, JoinHandle as JoinTask, spawn_blocking};
use tokio::time::{Instant, sleep_until, timeout_at};
use towpath_config::model::{MachineRole, Model, Protocol, Workers};
use towpath_core::health::{CheckPlan, CheckSchedule};
use towpath_core::loads::Loads;
use towpath_core::snapshot::Snapshot;
use towpath_core::steering::SteeringTable;
use towpath_core::steering::program::reuseport_program;
use towpath_core::{CheckId, Generation, RealServerId, ServiceId};
use towpath_sys::packet::Instruction;

use crate::access;
use crate::control::{Desks, Entrance};
use crate::daemon_log;
use crate::engine::ReloadError;
use crate::house::{House, Truth};
use crate::listen::{ListenErrors, Opening, open_all, openings, probe_all};
use crate::metrics::MetricsServer;
use crate::packets::arms;
use crate::packets::claims::{claims, services};
use crate::packets::steering::{program, rules};
use crate::plan::{PROBES_MAX, Plan, PlanInput};
use crate::preflight::{HostFacts, Severity, preflight};
use crate::probe::Detail;
use crate::reload::changes::{PlannedChange, ReloadPlan};
use crate::reload::read::{Files, Read};
use crate::reload::{
    Room, Started, check_room, needs_restart, new_interfaces, newcomers, planned_changes, workers_wanted,
};
use crate::shared::{Doorway, Reserved, SteeringPrograms};
use crate::upgrade::{UpgradeBody, UpgradeError};
use crate::{control, probe, role, state_file, upgrade};

/// Verdicts that come within this time of each other share one snapshot.
const COALESCE_MS: u64 = 20;
/// How long a reload waits for the workers before it reports which one is late.
const ADOPT_TIMEOUT_MS: u64 = 5_000;
/// How long a reload waits for listeners that close while it wants them: their workers have only to come by.
const CLOSING_MS: u64 = 1_000;
/// What a reload stands on is read by then: before whoever asked for it stops waiting (a minute), so that the next one has its turn.
const READ_LIMIT: Duration = Duration::from_secs(50);
/// Time between two looks whether they have.
const CLOSING_LOOK: Duration = Duration::from_millis(1);
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
    /// Another process is to take over, as somebody wants.
    Upgrade { body: UpgradeBody, by: String, reply: upgrade::old::Reply },
}

/// What is read for a command, and who waits for it.
struct Reading {
    task: JoinTask<Box<Read>>,
    /// It is waited for no longer.
    until: Instant,
    asked: Asked,
}

/// Who waits.
enum Asked {
    Look { reply: oneshot::Sender<ReloadPlan> },
    Reload { by: String, reply: oneshot::Sender<Result<Reloaded, ReloadError>> },
}

/// A reload that can be taken.
struct Wanted {
    read: Box<Read>,
    by: String,
    reply: oneshot::Sender<Result<Reloaded, ReloadError>>,
    /// It waits no longer for what closes.
    until: Instant,
}

/// Why a reload was not taken.
enum NotTaken {
    /// Listeners that it wants close at this moment; it can be taken as it is in another one.
    Closing {
        read: Box<Read>,
        closing: Vec<SocketAddr>,
    },
    Refused(ReloadError),
}

/// What the controller answers by.
pub(crate) struct Opened {
    pub(crate) entrance: Entrance,
    pub(crate) metrics: Option<TcpListener>,
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
    /// Beside the commands: what is read for one of them may take its time.
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Controller {
    /// Starts the thread; `judged` hears once every check has a verdict, or once the first checks' time is over. It answers, and writes down what was
    /// said, from when it gets `opening` on.
    pub(crate) fn start(
        house: Arc<House>,
        opening: oneshot::Receiver<Opened>,
        seed: u64,
        judged: Sender<()>,
    ) -> io::Result<Controller> {
        let (commands, inbox) = async_mpsc::channel(COMMANDS_MAX);
        let _is_first = house.commands.set(commands.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let desks = Desks::open()?;
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("controller".to_owned()).spawn(move || {
            let mut turn = Turn::new(house, seed, judged, desks);
            runtime.block_on(turn.run(inbox, &stopped, opening));
            // A name server or a file system that somebody still waits for is no reason to stay.
            runtime.shutdown_background();
            turn.desks.close();
        })?;
        Ok(Controller { commands, stop, thread: Some(thread) })
    }

    /// How it is asked: whoever waits for an answer does not hold it itself, which is to be stopped meanwhile.
    pub(crate) fn commands(&self) -> Commands {
        Commands(self.commands.clone())
    }

    /// Ends the thread; the control socket is gone afterwards.
    pub(crate) fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.stop.notify_one();
        if thread.join().is_err() {
            tracing::warn!("the controller's thread panicked");
        }
    }
}

/// The way to the controller, for who waits for what it answers.
pub(crate) struct Commands(async_mpsc::Sender<Command>);

impl Commands {
    /// Hands a model over and waits until it is in force or refused.
    pub(crate) fn reload(&self, model: Model, by: String) -> Result<Reloaded, ReloadError> {
        let (reply, answer) = oneshot::channel();
        self.0
            .blocking_send(Command::Reload { model: Box::new(model), by, reply })
            .map_err(|_| ReloadError::Stopping)?;
        answer.blocking_recv().unwrap_or(Err(ReloadError::Stopping))
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
    /// Where questions are answered.
    desks: Desks,
    /// What is read for the next command; one at a time, for it reads what the one before has brought.
    reading: Option<Reading>,
    /// What waits for listeners that close, and when it is tried again.
    held: Option<(Instant, Wanted)>,
}

impl Turn {
    fn new(house: Arc<House>, seed: u64, judged: Sender<()>, desks: Desks) -> Turn {
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
            metrics: MetricsServer::new(desks.visitors().clone()),
            desks,
            reading: None,
            held: None,
        }
    }

    async fn run(
        &mut self,
        mut inbox: async_mpsc::Receiver<Command>,
        stop: &Notify,
        mut opening: oneshot::Receiver<Opened>,
    ) {
        let receivers = self.house.notifier.serve();
        // Only who answers writes down what was said: a process that does not come to take over has nothing to keep.
        let (mut is_heard, mut is_open) = (false, false);
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
            let is_free = self.reading.is_none() && self.held.is_none();
            let again = at(self.held.as_ref().map(|(again_at, _)| *again_at));
            tokio::select! {
                opened = &mut opening, if !is_heard => {
                    is_heard = true;
                    if let Ok(opened) = opened {
                        is_open = true;
                        self.open(opened);
                    }
                }
                command = inbox.recv(), if is_free => match command {
                    Some(command) => self.begin(command),
                    None => break,
                },
                read = read(&mut self.reading) => if let Some(Reading { asked, .. }) = self.reading.take() {
                    self.go_on(asked, read);
                },
                () = again => if let Some((_, wanted)) = self.held.take() {
                    self.reload(wanted);
                },
                () = stop.notified() => break,
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
        if is_open {
            state_file::keep_last(&self.house);
        }
        for pending in self.pending.drain(..) {
            // Published, but the workers are ending.
            pending.answer(Vec::new());
        }
        receivers.finish().await;
    }

    /// Answers from here on.
    fn open(&mut self, Opened { entrance, metrics }: Opened) {
        control::serve(entrance, &self.desks, &self.house);
        let settings = self.house.truth().model().metrics.clone();
        self.metrics.follow(&settings, metrics, &self.house);
        tokio::spawn(state_file::keep(Arc::clone(&self.house)));
        let version = self.house.truth().words_version();
        self.house.keeper.note(version);
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

    /// Begins with a command: what it stands on is read beside this thread.
    fn begin(&mut self, command: Command) {
        let house = Arc::clone(&self.house);
        let (model, asked) = match command {
            Command::Look { model, reply } => (model, Asked::Look { reply }),
            Command::Reload { model, by, reply } => (model, Asked::Reload { by, reply }),
            Command::Upgrade { reply, .. } if !self.pending.is_empty() => {
                // Workers still take listeners, which would not all be handed over.
                let _nobody_waits = reply.send(Err(UpgradeError::Reloading));
                return;
            }
            Command::Upgrade { body, by, reply } => return upgrade::old::begin(&house, body, by, reply),
        };
        let task = spawn_blocking(move || Box::new(Read::now(&house, *model)));
        self.reading = Some(Reading { task, until: Instant::now() + READ_LIMIT, asked });
    }

    /// Goes on with what was read for a command; `None` = it could not be in time, and whoever reads it is left alone.
    fn go_on(&mut self, asked: Asked, read: Option<Box<Read>>) {
        let late = || {
            let message = format!("files, or the machine, did not answer within {} s", READ_LIMIT.as_secs());
            ReloadError::Host(io::Error::new(io::ErrorKind::TimedOut, message))
        };
        match (asked, read) {
            (Asked::Reload { by, reply }, Some(read)) => {
                let until = Instant::now() + Duration::from_millis(CLOSING_MS);
                self.reload(Wanted { read, by, reply, until });
            }
            (Asked::Reload { by, reply }, None) => self.refuse(late(), &by, reply),
            (Asked::Look { reply }, read) => {
                let plan = match read {
                    Some(read) => self.look_at(*read),
                    None => {
                        let generation = self.house.shared.generation().0;
                        ReloadPlan { generation, changes: Vec::new(), refusals: late().reasons() }
                    }
                };
                let _nobody_waits = reply.send(plan);
            }
        }
    }

    /// Takes what was read, or holds it for a moment where something that it wants is about to close.
    fn reload(&mut self, wanted: Wanted) {
        let Wanted { read, by, reply, until } = wanted;
        // What it would open or close, the process that takes over would not know of.
        if self.house.upgrades.is_under_way() {
            return self.refuse(ReloadError::Upgrading, &by, reply);
        }
        match self.take(*read, &by) {
            Err(NotTaken::Closing { read, .. }) if Instant::now() < until => {
                let again_at = Instant::now() + CLOSING_LOOK;
                self.held = Some((again_at, Wanted { read, by, reply, until }));
            }
            Err(NotTaken::Refused(error)) => self.refuse(error, &by, reply),
            Err(NotTaken::Closing { closing, .. }) => self.refuse(ReloadError::Closing(closing), &by, reply),
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

    fn refuse(&self, error: ReloadError, by: &str, reply: oneshot::Sender<Result<Reloaded, ReloadError>>) {
        tracing::warn!("reload refused: {error}");
        self.house.tell_refused(by, error.reasons().len());
        let _nobody_waits = reply.send(Err(error));
    }

    /// Makes a model the truth, or says why it stays as it was.
    fn take(&mut self, read: Read, by: &str) -> Result<(Generation, Vec<PlannedChange>), NotTaken> {
        let house = Arc::clone(&self.house);
        let mut truth = house.truth();
        // Numbers are given when the model is taken.
        let wanted = openings(&read.model, |name| Some(truth.registry().service(name).unwrap_or(ServiceId(0))));
        let doorways = house.shared.doorways();
        let Reserved { fresh, back, closing } = doorways.reserve(&wanted);
        if !closing.is_empty() {
            doorways.leave(back);
            let closing = closing.into_iter().map(|(_, address)| address).collect();
            return Err(NotTaken::Closing { read: Box::new(read), closing });
        }
        self.take_with(&mut truth, read, &fresh, by).map_err(|error| {
            doorways.leave(back);
            NotTaken::Refused(error)
        })
    }

    /// The same, where `fresh` is to be opened for it.
    fn take_with(
        &mut self,
        truth: &mut Truth,
        read: Read,
        fresh: &[Opening],
        by: &str,
    ) -> Result<(Generation, Vec<PlannedChange>), ReloadError> {
        let house = Arc::clone(&self.house);
        let Read { model, facts, files } = read;
        let changes =
            planned_changes(truth.model(), &model, |service, server| open_connections(&house, truth, service, server));
        let room = self.judge(truth, &model, facts)?;
        let Files { tls, http, control } = files?;
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
        let doorways = shared.doorways();
        let listeners =
            open_all(fresh, started.len(), &steering, shared.steering_seed()).map_err(ReloadError::Listen)?;
        let (served_before, served_next) = (truth.served().into_owned(), leaving.with(&model).into_owned());
        // First, so that no flow is opened where the kernel answers, too. What goes is still claimed, for its flows.
        let fanout = self.claim(&served_before, &served_next, &steering)?;
        let next = match truth.take(model, (tls, http), Arc::clone(&steering), &current, by, shared.now()) {
            Ok(next) => next,
            Err(error) => {
                if let Err(error) = self.claim(&served_next, &served_before, &current.steering) {
                    tracing::error!("{error}");
                }
                return Err(ReloadError::Compile(error));
            }
        };
        let generation = next.snapshot.generation;
        doorways.enter(fresh.iter().map(Opening::doorway));
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
    fn look_at(&self, read: Read) -> ReloadPlan {
        let house = Arc::clone(&self.house);
        let Read { model, facts, files } = read;
        let truth = house.truth();
        let changes =
            planned_changes(truth.model(), &model, |service, server| open_connections(&house, &truth, service, server));
        // What is wrong with files the judgement says with its place.
        let unfit = self.judge(&truth, &model, facts).err().or(files.err());
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
    fn judge(&self, truth: &Truth, model: &Model, facts: io::Result<HostFacts>) -> Result<Room, ReloadError> {
        let plan = &self.house.plan;
        let started: Vec<usize> = plan.workers.iter().map(|worker| worker.cpu).collect();
        let room = Room::of(plan);
        let bound = Started { cpus: &started, usable: &self.house.usable_cpus, room, leaving: truth.leaving() };
        let changed = needs_restart(truth.model(), model, &bound);
        if !changed.is_empty() {
            return Err(ReloadError::NeedsRestart(changed));
        }
        let mut facts = facts.map_err(ReloadError::Host)?;
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
        let access = self.house.guard.access();
        let mut truth = self.house.truth();
        truth.announce_source_ports(&snapshot);
        truth.announce_loops(&self.house.shared);
        truth.announce_certificates(access.as_deref());
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

/// What was read, once it is; never, if nothing is. `None` = it is not there in time, or whoever read it panicked.
async fn read(reading: &mut Option<Reading>) -> Option<Box<Read>> {
    match reading {
        Some(Reading { task, until, .. }) => timeout_at(*until, task).await.ok()?.ok(),
        None => std::future::pending().await,
    }
}

/// At this instant; never, if there is none.
async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
