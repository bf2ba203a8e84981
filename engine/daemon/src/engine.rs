//! The life of a running process: start, reload, drain, end.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::oneshot;
use towpath_config::model::Model;
use towpath_core::burst;
use towpath_core::compile::CompileError;
use towpath_core::counters::Termination;
use towpath_core::fast_path::FastSettings;
use towpath_core::plane::PlaneSettings;
use towpath_core::snapshot::{REAL_SERVERS_MAX, SERVICES_MAX};
use towpath_core::steering::SteeringTable;
use towpath_core::{Generation, WorkerId};
use towpath_sys::host;
use towpath_sys::packet::{Burst, PacketPort};
use towpath_sys::silence::Silence;

use crate::access;
use crate::admin::unix_ms;
use crate::config_file::{self, Accepted, RefusedReload};
use crate::control::{Access, AccessError, ControlError, ControlListener, ControlSocket, Entrance, Guard};
use crate::controller::{Controller, Opened, Reloaded};
use crate::house::{House, Origin, Truth};
use crate::http_files::{self, HttpFileErrors};
use crate::listen::{HandedSockets, ListenErrors, Listener, open_or_take};
use crate::packets::NetworkWatch;
use crate::packets::facing::resolve;
use crate::packets::fast::KernelPath;
use crate::packets::kernel::{Kernel, KernelError};
use crate::packets::steering::SteeringError;
use crate::plan::{FastPlan, PacketsPlan, Plan, PlanErrors, PlanInput, WorkerPlan, usable_cpus};
use crate::preflight::{Finding, HostFacts, Severity, preflight};
use crate::settings::WorkerSettings;
use crate::shared::{Doorway, Inbox, Phase, Shared, SharedSettings, steering_seed};
use crate::state_file;
use crate::status::Status;
use crate::supervisor;
use crate::tls::{TlsErrors, TlsMaterial, start_pool};
use crate::upgrade::new::{Takeover, follow};
use crate::upgrade::{Held, Successor, Upgrades};
use crate::worker::{self, Entrances};
use crate::{daemon_log, metrics};

/// How long a worker may take from its start until it serves.
const WORKER_START_TIMEOUT: Duration = Duration::from_secs(10);

/// How a process is started, beside its configuration.
#[derive(Clone, Debug)]
pub struct StartOptions {
    /// Version shown in status.
    pub version: String,
    /// Seed of every random decision; `None` = drawn from the system, as it should be outside of tests.
    pub seed: Option<u64>,
    /// Descriptors that others in this process need, such as the origins of a demo.
    pub descriptors_elsewhere: u64,
    /// Called by each worker at the start of each breath, when there is one: tests panic in it. Neither file nor environment reaches it.
    pub on_breath: Option<fn()>,
    /// The CPUs that workers may use, one of them as often as it is named; `None` = those that the process may use, as it should be outside of
    /// tests.
    pub cpus: Option<Vec<usize>>,
    /// The file that the configuration was read from: what a reload by order reads. `None` = there is none.
    pub config: Option<PathBuf>,
    /// What a process is started with that takes over from this one; `None` = none does.
    pub successor: Option<Successor>,
    /// The running process that this one takes over from; `None` = there is none.
    pub take_over: Option<Arc<Takeover>>,
}

impl Default for StartOptions {
    fn default() -> StartOptions {
        StartOptions {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            seed: None,
            descriptors_elsewhere: 0,
            cpus: None,
            config: None,
            successor: None,
            take_over: None,
            on_breath: None,
        }
    }
}

/// Why a process did not start. Nothing of it is left behind.
#[derive(Debug, Error)]
pub enum StartError {
    /// The configuration cannot become a snapshot.
    #[error("{0}")]
    Compile(#[from] CompileError),
    /// The control socket could not be opened.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// The access log cannot be written.
    #[error("{0}")]
    AccessLog(String),
    /// The machine could not be asked.
    #[error("the machine could not be asked about itself: {0}")]
    Host(#[source] io::Error),
    /// Files that HTTP mode names.
    #[error("{0}")]
    Http(#[source] HttpFileErrors),
    /// The listener for metrics could not be opened.
    #[error("{0}")]
    Metrics(String),
    /// Listeners that could not be opened.
    #[error("{0}")]
    Listen(#[from] ListenErrors),
    /// The kernel does not carry the packet plane.
    #[error("packet plane: {0}")]
    Packets(#[from] KernelError),
    /// What is to be allocated does not fit.
    #[error("{0}")]
    Plan(#[from] PlanErrors),
    /// The machine does not fit the configuration.
    #[error("{}", lines(.0))]
    Preflight(Vec<Finding>),
    /// A thread or an eventfd could not be made.
    #[error("{what} could not be made: {source}")]
    System {
        /// What was to be made.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The running process does not let go.
    #[error("{0}")]
    TakeOver(String),
    /// Certificates or settings of TLS that make no contexts.
    #[error("{0}")]
    Tls(#[source] TlsErrors),
    /// A worker could not begin to serve.
    #[error("worker {worker} on CPU {cpu} could not start: {source}")]
    Worker {
        /// Its number.
        worker: WorkerId,
        /// The CPU that it was to be pinned to.
        cpu: usize,
        /// Why.
        source: io::Error,
    },
}

/// Why a reload was refused. The configuration before it stays in force.
#[derive(Debug, Error)]
pub enum ReloadError {
    /// The access log cannot be written.
    #[error("{0}")]
    AccessLog(String),
    /// Listeners of an earlier reload close where this one wants some.
    #[error("{}: closed by the last reload, and not yet by every worker; reload again in a moment", lines(.0))]
    Closing(Vec<SocketAddr>),
    /// The configuration cannot become a snapshot.
    #[error("{0}")]
    Compile(#[source] CompileError),
    /// Files of `[control]`.
    #[error("{0}")]
    Control(#[source] AccessError),
    /// The machine could not be asked.
    #[error("the machine could not be asked about itself: {0}")]
    Host(#[source] io::Error),
    /// Files that HTTP mode names.
    #[error("{0}")]
    Http(#[source] HttpFileErrors),
    /// Listeners that could not be opened.
    #[error("{0}")]
    Listen(#[source] ListenErrors),
    /// The listener for metrics cannot be opened.
    #[error("{0}")]
    Metrics(String),
    /// Another number of workers while flows still move because of the last one.
    #[error("runtime.workers: flows still move between workers since its last change; reload again in a moment")]
    Moving,
    /// Changes that only a restart can take, each by name.
    #[error("changed, but cannot be taken while running: {}; run `towpath upgrade` or restart to apply", .0.join(", "))]
    NeedsRestart(Vec<String>),
    /// The kernel does not leave to the packet plane what it is to carry.
    #[error("packet plane: {0}")]
    Packets(#[source] KernelError),
    /// What is to be admitted does not fit into what was allocated.
    #[error("{0}")]
    Plan(#[source] PlanErrors),
    /// The machine does not fit the configuration.
    #[error("{}", lines(.0))]
    Preflight(Vec<Finding>),
    /// The addresses cannot be steered to so many workers.
    #[error("{0}")]
    Steering(#[from] SteeringError),
    /// The process is ending.
    #[error("the process is ending")]
    Stopping,
    /// Certificates or settings of TLS that make no contexts.
    #[error("{0}")]
    Tls(#[source] TlsErrors),
    /// Another process takes over just now.
    #[error("an upgrade is under way; reload again when it is over")]
    Upgrading,
    /// Fewer workers than the flows need that are open.
    #[error(
        "runtime.workers: {flows} flows are open, but the tables of so few workers (there would be {workers}) hold {flows_max}; name more \
         CPUs, or reload again when fewer flows are open"
    )]
    TooManyFlows {
        /// Flows that are open.
        flows: u64,
        /// Workers that would take part.
        workers: usize,
        /// Flows that they can hold.
        flows_max: u64,
    },
}

impl ReloadError {
    /// Each reason by itself.
    pub fn reasons(&self) -> Vec<String> {
        match self {
            ReloadError::NeedsRestart(changed) => changed
                .iter()
                .map(|what| format!("{what}: cannot be taken while running; run `towpath upgrade` or restart to apply"))
                .collect(),
            ReloadError::Preflight(findings) => findings.iter().map(ToString::to_string).collect(),
            ReloadError::Listen(errors) => errors.0.iter().map(ToString::to_string).collect(),
            other => vec![other.to_string()],
        }
    }
}

/// How a process is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// No new connections; those there are may finish, each within the drain timeout of its service.
    Drain,
    /// At once.
    Now,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As asked; so many connections and sessions were cut.
    Stopped {
        /// Those that drain_timeout or [`Stop::Now`] ended.
        cut: u64,
    },
    /// A worker ended although nobody had asked it to, and the others were stopped.
    WorkerLost(WorkerId),
}

/// A running load balancer.
pub struct Engine {
    house: Arc<House>,
    workers: Mutex<Vec<JoinHandle<()>>>,
    watch: Mutex<Option<NetworkWatch>>,
    controller: Mutex<Controller>,
}

impl Engine {
    /// Starts everything; returns when all workers serve and every server has its first verdict (or the time of the first
    /// checks is over). Until then clients wait in the listeners' queues.
    ///
    /// Everything that can be refused is refused before anything serves.
    ///
    /// Where it takes over from a running process, that one goes on as if nothing had been if this fails; its clients do not wait.
    pub fn start(model: Model, options: StartOptions) -> Result<Engine, StartError> {
        let take_over = options.take_over.clone();
        let started = Engine::start_by(model, options, take_over.as_ref());
        if let (Err(error), Some(take_over)) = (&started, take_over) {
            take_over.refuse(vec![format!("the new process cannot start: {error}")]);
        }
        started
    }

    fn start_by(model: Model, options: StartOptions, take_over: Option<&Arc<Takeover>>) -> Result<Engine, StartError> {
        let model = resolve(model, None);
        let usable_cpus = usable_cpus(options.cpus.as_deref(), host::available_cpus().map_err(StartError::Host)?)?;
        let plan = plan(&model, &options, &usable_cpus)?;
        // Clients are steered and remembered by the seed.
        let seed = take_over.map(|before| before.seed()).or(options.seed).unwrap_or_else(system_seed);
        let steering = Arc::new(SteeringTable::even(plan.workers.len()));
        let material = TlsMaterial::load(&model, &TlsMaterial::default()).map_err(StartError::Tls)?;
        let http_secret = take_over.map_or_else(http_files::draw_secret, |before| before.http_secret());
        let http = http_files::load(&model, http_secret).map_err(StartError::Http)?;
        if access::is_wanted(&model) {
            access::check(&model.log).map_err(StartError::AccessLog)?;
        }
        let handed_metrics = take_over.and_then(|before| before.metrics(model.metrics.listen?));
        let metrics = match handed_metrics {
            Some(listener) => Some(listener),
            None => metrics::bind(&model.metrics).map_err(StartError::Metrics)?,
        };
        daemon_log::follow(&model.log.own);
        let kept = match (take_over, model.control.state_file.as_deref()) {
            (Some(before), _) => before.words(),
            (None, Some(path)) => state_file::read(path, unix_ms()),
            (None, None) => state_file::Found::default(),
        };
        let unknown = BTreeMap::new();
        let verdicts = take_over.map_or(&unknown, |before| before.verdicts());
        let (truth, first) = Truth::first(model, material, http, Arc::clone(&steering), kept, verdicts)?;
        let handed = take_over.map(|before| before.doors()).unwrap_or_default();
        let listeners = open_or_take(truth.openings(), plan.workers.len(), &steering, steering_seed(seed), handed)?;
        let control = &truth.model().control;
        let guard = Guard::new(Access::load(truth.model()).map_err(ControlError::Access)?);
        let entrance = Entrance {
            socket: control
                .socket
                .as_deref()
                .map(|path| match take_over.and_then(|before| before.socket(path)) {
                    Some(listener) => ControlSocket::adopt(path, &control.group, listener),
                    None => ControlSocket::bind(path, &control.group),
                })
                .transpose()?,
            listener: control
                .listen
                .as_ref()
                .map(|listen| match take_over.and_then(|before| before.listen(listen.address)) {
                    Some(listener) => ControlListener::adopt(listen.address, listener),
                    None => ControlListener::bind(listen.address),
                })
                .transpose()?,
        };
        let shared = Shared::new(&shared_settings(&plan, seed), first)
            .map_err(|source| StartError::System { what: "the workers' eventfds", source })?;
        let shared = Arc::new(shared);
        let count = |doorway: Doorway| {
            (doorway, listeners.iter().flatten().filter(|listener| listener.doorway() == doorway).count())
        };
        shared.doorways().enter_counted(truth.openings().iter().map(|opening| count(opening.doorway())));
        let (pool, hatches) = start_pool(truth.model(), &plan, &shared)
            .map_err(|source| StartError::System { what: "the threads for handshakes", source })?;
        let (kernel, ports) = match &plan.packets {
            None => {
                // The process before may keep it, and removes it once it has gone.
                if take_over.is_none() {
                    clear_silence();
                }
                (None, Vec::new())
            }
            Some(packets) => {
                let fast = open_fast_path(packets);
                let kept = take_over.and_then(|before| before.silence());
                let (kernel, ports) = Kernel::open(
                    truth.model(),
                    &packets.arms,
                    packets.ring,
                    &steering,
                    steering_seed(seed),
                    fast,
                    kept,
                )?;
                (Some(kernel), ports)
            }
        };
        let interfaces = |source| StartError::System { what: "the interfaces of the packet plane", source };
        let filter = kernel.as_ref().and_then(Kernel::fast_path).map(KernelPath::filter);
        let filter = filter.map(|filter| filter.try_clone_to_owned()).transpose().map_err(interfaces)?;
        if take_over.is_some() {
            // Their rings are not to be full of what the process before forwards.
            ports.iter().flatten().try_for_each(PacketPort::deafen).map_err(interfaces)?;
        }
        let ports = ports.into_iter().chain(std::iter::repeat_with(Vec::new));
        let workers = plan.workers.len();
        let inboxes: Arc<[Inbox]> = match plan.packets {
            Some(_) if workers > 1 => (0..workers).map(|_| Inbox::new()).collect(),
            _ => Arc::default(),
        };
        let memory = kernel.as_ref().and_then(Kernel::fast_path).map(|path| path.memory().clone());
        if let Some(memory) = &memory {
            shared.loads().leave_out(memory.clone());
        }
        let fast = |worker: u16| {
            let flows = plan.packets.as_ref()?.fast_flows_of(worker);
            Some((memory.clone()?, FastSettings { worker, flows, origin_ms: shared.origin_ms() }))
        };
        let mut entrances: Vec<Entrances> = listeners
            .into_iter()
            .zip(ports)
            .zip(hatches.into_iter().map(Some).chain(std::iter::repeat_with(|| None)))
            .zip(0..)
            .map(|(((listeners, ports), hatch), worker)| Entrances {
                listeners,
                ports,
                inboxes: Arc::clone(&inboxes),
                inheritance: None,
                burst: plan.packets.as_ref().and_then(open_burst),
                fast: fast(worker),
                hatch,
            })
            .collect();
        let watch = kernel.map(|kernel| NetworkWatch::start(Arc::clone(&shared), kernel)).transpose();
        let watch = watch.map_err(|source| StartError::System { what: "the network's thread", source })?;
        let (watch, network) = watch.unzip();
        let upgrades = Upgrades::new(options.successor);
        upgrades.hold(held(&entrance, truth.model().metrics.listen.zip(metrics.as_ref())).map_err(StartError::Host)?);
        let origin = Origin { config: options.config, network, guard, upgrades };
        let house = Arc::new(House::new(shared, plan, usable_cpus, options.version, pool, truth, origin));
        if take_over.is_some() {
            // Until this one serves the process before tells others what happens.
            house.truth().events().follow(None);
        }
        let (judged, verdicts) = mpsc::channel();
        let (open, opening) = oneshot::channel();
        let controller = Controller::start(Arc::clone(&house), opening, seed, judged)
            .map_err(|source| StartError::System { what: "the controller's thread", source })?;
        let engine = Engine {
            house,
            workers: Mutex::new(Vec::new()),
            watch: Mutex::new(watch),
            controller: Mutex::new(controller),
        };
        let shared = &engine.house.shared;
        let followed = shared.access().follow(engine.house.truth().model(), shared.origin());
        followed.map_err(|source| StartError::System { what: "the access log's thread", source })?;
        let mut opened = Some((open, Opened { entrance, metrics }));
        if take_over.is_none() {
            open_doors(&mut opened);
        }
        // The controller bounds the wait itself, by the time of the first checks.
        let _ended = verdicts.recv();
        let mut reserved = Vec::new();
        if let Some(before) = take_over {
            let hear = |port: &PacketPort| port.set_filter(filter.as_ref().map(AsFd::as_fd));
            entrances.iter().flat_map(|of_worker| &of_worker.ports).try_for_each(hear).map_err(interfaces)?;
            let inheritance;
            (reserved, inheritance) = before.go(&engine.house).map_err(StartError::TakeOver)?;
            if let Some(network) = &engine.house.network {
                network.silence()?;
            }
            for of_worker in &mut entrances {
                of_worker.inheritance.clone_from(&inheritance);
            }
            let of_workers: Vec<&[Listener]> =
                entrances.iter().map(|of_worker| of_worker.listeners.as_slice()).collect();
            HandedSockets::steer(&of_workers, &steering, steering_seed(seed))
                .map_err(|source| StartError::System { what: "the steering of listeners", source })?;
        }
        let inheritance = entrances.first().and_then(|entrances| entrances.inheritance.clone());
        engine.start_workers(entrances, seed, options.on_breath)?;
        if let Some(inheritance) = inheritance {
            let (taken, lost) = inheritance.counted();
            tracing::info!("flows taken over: {taken}, lost because nothing here is theirs: {lost}");
        }
        if let Some(before) = take_over {
            before.run().map_err(StartError::TakeOver)?;
            {
                let truth = engine.house.truth();
                truth.events().follow(truth.model().notify.as_ref());
            }
            if let Some(network) = &engine.house.network {
                network.keep().map_err(|source| StartError::System { what: "the network's thread", source })?;
            }
            // Before anybody can ask: the first status says from whom this one has taken over.
            follow(Arc::clone(before), Arc::clone(&engine.house), reserved)
                .map_err(|source| StartError::System { what: "the thread that follows the process before", source })?;
            open_doors(&mut opened);
        }
        let plan = engine.plan();
        tracing::info!("serving: listeners: {}, workers: {}", plan.listeners.len(), plan.workers.len());
        supervisor::tell(&format!(
            "READY=1\nSTATUS=listeners: {}, workers: {}",
            plan.listeners.len(),
            plan.workers.len()
        ));
        Ok(engine)
    }

    /// What was allocated.
    pub fn plan(&self) -> &Plan {
        &self.house.plan
    }

    /// The state of everything.
    pub fn status(&self) -> Status {
        self.house.status()
    }

    /// Takes a new configuration; what cannot be taken while running is refused by name. Returns when every worker serves it and no
    /// flow has to move any more.
    pub fn reload(&self, model: Model) -> Result<Generation, ReloadError> {
        self.take(model, "this process").map(|reloaded| Generation(reloaded.generation))
    }

    /// The same with the file that this was started with, as it is now and as `by` wants.
    pub fn reload_file(&self, by: &str) -> Result<Reloaded, RefusedReload> {
        let told = |refused: &RefusedReload| self.house.tell_refused(by, refused.reasons().len());
        let Accepted { model, warnings } = config_file::of_house(&self.house).inspect_err(told)?;
        let mut reloaded = self.take(*model, by).map_err(RefusedReload::Engine)?;
        reloaded.warnings.splice(0..0, warnings);
        Ok(reloaded)
    }

    fn take(&self, model: Model, by: &str) -> Result<Reloaded, ReloadError> {
        if self.house.shared.phase() != Phase::Running {
            return Err(ReloadError::Stopping);
        }
        if self.house.upgrades.is_under_way() {
            return Err(ReloadError::Upgrading);
        }
        let commands = self.lock_controller().commands();
        commands.reload(model, by.to_owned())
    }

    /// The service whose connections have most time to finish when the process stops, with that in milliseconds.
    pub fn longest_drain(&self) -> Option<(String, u64)> {
        let truth = self.house.truth();
        let longest = truth.model().services.iter().max_by_key(|service| service.drain_timeout_ms)?;
        Some((longest.name.clone(), longest.drain_timeout_ms))
    }

    /// Asks the process to end; see [`Engine::wait`]. [`Stop::Now`] after [`Stop::Drain`] ends the drain.
    pub fn stop(&self, how: Stop) {
        let (phase, reason) = match how {
            Stop::Drain => (Phase::Draining, "asked to drain"),
            Stop::Now => (Phase::Ending, "asked to end now"),
        };
        if self.house.enter(phase, reason) {
            supervisor::tell("STOPPING=1");
        }
    }

    /// Waits until all workers have ended, then ends the controller.
    pub fn wait(&self) -> Outcome {
        for worker in self.workers.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // A panic does not come here: the worker's guard has aborted the process.
            let _ended = worker.join();
        }
        // A process that was cut, or that a worker has ended, waits for nobody.
        self.house.upgrades.see_off(|| self.house.shared.phase() != Phase::Draining);
        if self.house.shared.phase() == Phase::Draining {
            // Nobody had to say so.
            let reason = match self.cut() {
                0 => "the last connection has ended".to_owned(),
                cut => format!("drain_timeout has passed; connections that were ended: {cut}"),
            };
            self.house.enter(Phase::Ending, &reason);
        }
        self.house.shared.access().stop();
        drop(self.watch.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.lock_controller().stop();
        match self.house.shared.lost_worker() {
            Some(worker) => Outcome::WorkerLost(worker),
            None => Outcome::Stopped { cut: self.cut() },
        }
    }

    fn start_workers(&self, entrances: Vec<Entrances>, seed: u64, on_breath: Option<fn()>) -> Result<(), StartError> {
        let plan = &self.house.plan;
        let failed = |planned: &WorkerPlan| {
            let (worker, cpu) = (WorkerId(planned.id), planned.cpu);
            move |source| StartError::Worker { worker, cpu, source }
        };
        let mut serving = Vec::new();
        for (planned, entrances) in plan.workers.iter().zip(entrances) {
            let id = WorkerId(planned.id);
            let (ready, served) = mpsc::channel();
            let settings = WorkerSettings { on_breath, ..worker_settings(plan, seed, id) };
            let shared = Arc::clone(&self.house.shared);
            // On an error the engine is dropped, which ends the workers that serve already.
            let thread = worker::spawn(shared, id, planned.cpu, entrances, settings, ready).map_err(failed(planned))?;
            self.workers.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
            serving.push((planned, served));
        }
        for (planned, served) in serving {
            match served.recv_timeout(WORKER_START_TIMEOUT) {
                Ok(result) => result.map_err(failed(planned))?,
                Err(RecvTimeoutError::Timeout) => {
                    let seconds = WORKER_START_TIMEOUT.as_secs();
                    return Err(failed(planned)(io::Error::other(format!("it did not serve within {seconds} s"))));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(failed(planned)(io::Error::other("its thread ended without a word")));
                }
            }
        }
        Ok(())
    }

    fn cut(&self) -> u64 {
        let House { shared, .. } = &*self.house;
        let (snapshot, truth) = (shared.snapshot(), self.house.truth());
        let services = snapshot.each_service().filter(|service| service.place == service.id);
        services.map(|service| truth.counted(service.id, shared).ended(Termination::DrainEnded)).sum()
    }

    fn lock_controller(&self) -> std::sync::MutexGuard<'_, Controller> {
        self.controller.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Engine {
    /// An engine that nobody waits for ends at once.
    fn drop(&mut self) {
        self.house.shared.enter(Phase::Ending);
        self.wait();
    }
}

/// Copies of what is listened on beside the stream plane, for the process that takes over.
fn held(entrance: &Entrance, metrics: Option<(SocketAddr, &TcpListener)>) -> io::Result<Held> {
    let metrics =
        metrics.map(|(address, listener)| Ok::<_, io::Error>((address, listener.try_clone()?))).transpose()?;
    let socket = entrance.socket.as_ref().map(ControlSocket::copy).transpose()?;
    let listen = entrance.listener.as_ref().map(ControlListener::copy).transpose()?;
    Ok(Held { socket, listen, metrics })
}

/// Lets the controller answer at the control socket, and those who collect metrics.
fn open_doors(opened: &mut Option<(oneshot::Sender<Opened>, Opened)>) {
    if let Some((open, doors)) = opened.take() {
        // A controller that has ended answers nobody.
        let _ended = open.send(doors);
    }
}

/// Judges the machine and plans the allocation.
fn plan(model: &Model, options: &StartOptions, usable_cpus: &[usize]) -> Result<Plan, StartError> {
    if let Err(error) = host::raise_nofile_limit() {
        tracing::warn!("the limit on descriptors could not be raised: {error}");
    }
    let mut facts = HostFacts::gather(model).map_err(StartError::Host)?;
    facts.nofile = facts.nofile.saturating_sub(options.descriptors_elsewhere);
    usable_cpus.clone_into(&mut facts.cpus);
    let findings = preflight(model, &facts);
    if findings.iter().any(|finding| finding.severity == Severity::Error) {
        return Err(StartError::Preflight(findings));
    }
    for finding in findings {
        tracing::warn!("{finding}");
    }
    Ok(Plan::new(model, &PlanInput::of(&facts))?)
}

fn shared_settings(plan: &Plan, seed: u64) -> SharedSettings {
    SharedSettings {
        cpus: plan.workers.iter().map(|worker| worker.cpu).collect(),
        services_max: SERVICES_MAX,
        real_servers_max: REAL_SERVERS_MAX,
        connections_max: plan.connections.max,
        udp_sessions_max: plan.udp_sessions.max,
        handshakes_max: plan.handshakes_max,
        persistence_entries: plan.persistence_entries,
        seed,
    }
}

fn worker_settings(plan: &Plan, seed: u64, worker: WorkerId) -> WorkerSettings {
    WorkerSettings {
        poll: plan.poll,
        connections_max: plan.connections.max,
        udp_sessions_max: plan.udp_sessions.max,
        buffers: plan.buffers,
        buffer_bytes: plan.buffer_bytes,
        record_buffers: plan.record_buffers,
        http_buffers: plan.http_buffers,
        http2_streams: plan.http2_streams,
        http2_window: plan.http2_window,
        queue_deadline_ms: plan.queue_deadline_ms,
        pool_gives_way: plan.pool_gives_way(),
        pipes_max: plan.pipes_per_worker,
        seed: seed.wrapping_add(u64::from(worker.0) + 1),
        on_breath: None,
        plane: plan.packets.as_ref().map(|packets| PlaneSettings {
            worker,
            // Never the seed of the process, which tests give: who knew it could make all flows collide.
            seed: [system_seed(), system_seed()],
            steering_seed: steering_seed(seed),
            ..packets.plane
        }),
    }
}

/// What carries established flows in the kernel, if it is planned. Without it the packet plane does all itself.
fn open_fast_path(packets: &PacketsPlan) -> Option<KernelPath> {
    let FastPlan::InKernel { flows } = packets.fast else { return None };
    match KernelPath::open(flows, [system_seed(), system_seed()]) {
        Ok(path) => Some(path),
        Err(why) => {
            tracing::warn!("no fast path: {why}; every frame goes through a worker");
            None
        }
    }
}

/// What a worker's small frames leave by, many at a time, if programs may run in the kernel. Without it they leave one by one.
fn open_burst(packets: &PacketsPlan) -> Option<Burst> {
    match packets.fast {
        FastPlan::Off | FastPlan::Unavailable(_) => return None,
        FastPlan::InKernel { .. } | FastPlan::Unneeded => {}
    }
    match Burst::open(burst::LAYOUT.into(), burst::program) {
        Ok(burst) => Some(burst),
        Err(why) => {
            tracing::info!("frames leave one by one: {why}");
            None
        }
    }
}

/// A packet plane that crashed has left the kernel silent, perhaps for what the stream plane is to serve now.
fn clear_silence() {
    match Silence::clear() {
        Ok(true) => tracing::info!("removed the nftables rules that a crash has left behind"),
        Ok(false) => {}
        // Without the right to, or while another process keeps the silence, there is nothing of ours to remove.
        Err(error) => tracing::debug!("nftables: {error}"),
    }
}

/// Randomness from the system, by way of the standard library's hash keys.
pub(crate) fn system_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn lines(items: &[impl fmt::Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
