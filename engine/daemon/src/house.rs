//! The controller's own state: the model in force, who is called what, verdicts, events; and how they read as a status.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::Add;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, mpsc};
use towpath_config::model::{Model, Passive, Plane, Protocol, ServiceTls, VirtualService};
use towpath_core::admin::{AdminWords, Member};
use towpath_core::compile::{self, CompileError};
use towpath_core::counters::{ServiceCounter, Termination, WorkerCounter};
use towpath_core::health::{
    AgentChange, AgentReport, AgentState, CheckPlan, CheckResult, HealthBoard, HealthState, Pace,
};
use towpath_core::histogram::{BOUNDS_US, Latency};
use towpath_core::http::{BadRequest, BadResponse, HttpMaterial, HttpSecret};
use towpath_core::http2::BadStream;
use towpath_core::outbound::{OutboundLane, OutboundNat};
use towpath_core::packet::DropReason;
use towpath_core::passive::{Met, PassiveChange};
use towpath_core::plane::PlaneCounter;
use towpath_core::registry::Registry;
use towpath_core::snapshot::{Duty, RealServer, Role, ServerHealth, Service, ServiceSource, Snapshot, Target};
use towpath_core::snat::{Leased, MapName, SnatBook, SnatLease, SnatLimits};
use towpath_core::steering::SteeringTable;
use towpath_core::{Generation, Loads, Now, RealServerId, ServiceId};
use towpath_tls::PoolGauges;

use crate::access::AccessLogUse;
use crate::admin::{admin_said, unix_ms, weight_said};
use crate::control::{Access, Guard};
use crate::controller::Command;
use crate::events::{Event, EventKind, EventLog, Tone};
use crate::leaving::Leaving;
use crate::listen::{Opening, openings};
use crate::metrics::Latest;
use crate::notify::Notifier;
use crate::packets::NetworkOrders;
use crate::plan::Plan;
use crate::probe::{Probed, Subject};
use crate::process;
use crate::questions::{Transport, Turns};
use crate::reload::{Change, ServiceChange, member_changes, service_changes};
use crate::shared::{InForce, Phase, RingCounter, Seat, ServiceSum, Shared};
use crate::state_file::{self, StateKeeper};
use crate::status::{
    AccessLogStatus, HandshakePoolStatus, LatencyStatus, LeavingServer, LimitsStatus, OutboundStatus, QueueStatus,
    ServerStatus, ServiceState, ServiceStatus, SourcePortsStatus, Status, Usage, WorkerStatus, word,
};
use crate::tls::{ExpiryWatch, HandshakePool, TlsMaterial, certificate_status};
use crate::upgrade::{self, HeldPorts, Upgrades, Verdict};
use crate::worker;
use holders::Holders;

mod holders;

/// So many names of services that have gone keep their ids, the latest ones: who comes back counts on and finds its persistence entries.
const GONE_NAMES_KEPT: usize = 64;

/// Source addresses count as calm again below this share, so that the announcement does not flutter.
const SOURCE_PORTS_CALM_PERCENT: u64 = 70;

/// Everything that the controller, its probes, the control socket and [`crate::Engine`] look at together.
pub(crate) struct House {
    pub(crate) shared: Arc<Shared>,
    pub(crate) plan: Plan,
    /// CPUs that workers could have at the start.
    pub(crate) usable_cpus: Vec<usize>,
    pub(crate) version: String,
    /// `None` = workers sign, or nobody has to.
    pool: Option<HandshakePool>,
    pub(crate) notifier: Arc<Notifier>,
    truth: Mutex<Truth>,
    /// A verdict has changed: the next snapshot is due.
    pub(crate) changed: Notify,
    /// An order was taken: drains are to be looked at.
    pub(crate) ordered: Notify,
    /// Where what was said at run time is kept.
    pub(crate) keeper: StateKeeper,
    /// Who may ask the workers something now.
    pub(crate) turns: Turns,
    /// The file that reloads read; `None` = the configuration was no file's.
    pub(crate) config: Option<PathBuf>,
    /// By whom the kernel is told what the packet plane claims; `None` = there is none.
    pub(crate) network: Option<NetworkOrders>,
    /// How the controller is asked for a reload.
    pub(crate) commands: OnceLock<mpsc::Sender<Command>>,
    /// Who may come by `control.listen`.
    pub(crate) guard: Guard,
    /// What who collects metrics gets.
    pub(crate) metrics: Latest,
    /// Processes before and after this one.
    pub(crate) upgrades: Upgrades,
}

/// What a house is asked and reloaded by.
pub(crate) struct Origin {
    pub(crate) config: Option<PathBuf>,
    pub(crate) network: Option<NetworkOrders>,
    pub(crate) guard: Guard,
    pub(crate) upgrades: Upgrades,
}

/// What the next snapshot is made from. One lock, held for as long as one compile takes, never by a worker.
pub(crate) struct Truth {
    model: Model,
    /// What of earlier models still has flows on the packet plane.
    leaving: Leaving,
    material: Arc<TlsMaterial>,
    http: HttpMaterial,
    registry: Registry,
    /// Who holds what of it.
    holders: Holders,
    board: HealthBoard,
    /// How often what was said at run time has changed.
    words_version: u64,
    checks: Vec<CheckPlan>,
    book: SnatBook,
    steering: Arc<SteeringTable>,
    /// What clients come to on the stream plane.
    openings: Arc<[Opening]>,
    events: EventLog,
    /// The services and members that each check judges, for events.
    judged: HashMap<towpath_core::CheckId, Judged>,
    /// Servers ever named and not released: what is leaving still has a name.
    known: HashMap<RealServerId, RealServer>,
    /// What clients had met at each id before it was given to the server that bears it now.
    met_before: HashMap<RealServerId, Met>,
    /// The same of services.
    counted_before: HashMap<ServiceId, ServiceSum>,
    /// Source addresses announced as nearly exhausted.
    announced: HashSet<(&'static str, IpAddr, SocketAddr)>,
    /// A loop of a bridge was announced, and is not over.
    is_looped: bool,
    /// Places whose clients get the sorry server, as was announced.
    sorry: HashSet<ServiceId>,
    expiry: ExpiryWatch,
}

#[derive(Clone, Debug, Default)]
struct Judged {
    services: Vec<String>,
    /// Its name.
    name: String,
    /// The same for people.
    server: String,
}

impl Truth {
    /// The truth at the start, and what is first in force.
    pub(crate) fn first(
        model: Model,
        material: TlsMaterial,
        http: HttpMaterial,
        steering: Arc<SteeringTable>,
        kept: state_file::Found,
        verdicts: &BTreeMap<String, Verdict>,
    ) -> Result<(Truth, InForce), CompileError> {
        let mut registry = Registry::new();
        let mut board = HealthBoard::new();
        let state_file::Found { words, trouble } = kept;
        board.words = words;
        let given_way = board.words.follow(&model);
        // Before the first client: a deadline may have passed while nobody was here.
        let ended = board.words.turn(Now(0), unix_ms(), |_| None);
        let mut book = SnatBook::new(SnatLimits::default());
        let checks = compile::checks(&model, &mut registry)?;
        board.adopt(&checks, Now(0));
        for plan in &checks {
            if let Some(verdict) = verdicts.get(&upgrade::subject_of(plan)) {
                board.inherit(plan.id, verdict.health(), verdict.reason(), Now(0));
            }
        }
        let first = Generation(1);
        let snapshot = compile::compile(&model, &mut registry, &board, &mut book, Arc::clone(&steering), &http, first)?;
        let mut truth = Truth {
            model,
            leaving: Leaving::default(),
            material: Arc::new(material),
            http,
            registry,
            holders: Holders::default(),
            board,
            words_version: 0,
            checks,
            book,
            steering,
            openings: Arc::default(),
            events: EventLog::new(unix_ms()),
            judged: HashMap::new(),
            known: HashMap::new(),
            met_before: HashMap::new(),
            counted_before: HashMap::new(),
            announced: HashSet::new(),
            is_looped: false,
            sorry: HashSet::new(),
            expiry: ExpiryWatch::default(),
        };
        truth.board.words.note_returns(&truth.model, Now(0));
        truth.learn(&snapshot);
        truth.open_to();
        truth.tell_kept(trouble);
        truth.tell_given_way(&given_way);
        truth.tell_ended(&ended);
        if !(given_way.is_empty() && ended.is_empty()) {
            truth.words_version += 1;
        }
        let in_force = truth.with_tls(snapshot);
        Ok((truth, in_force))
    }

    fn with_tls(&mut self, snapshot: Snapshot) -> InForce {
        self.holders.note(&snapshot);
        let tls = self.material.contexts(&self.registry, &snapshot);
        InForce { snapshot: Arc::new(snapshot), tls: Arc::new(tls), openings: Arc::clone(&self.openings) }
    }

    /// Keeps the list of what clients come to as long as it says the same: workers compare no further.
    fn open_to(&mut self) {
        let now = openings(&self.model, |name| self.registry.service(name));
        if now != *self.openings {
            self.openings = now.into();
        }
    }

    /// What clients come to on the stream plane.
    pub(crate) fn openings(&self) -> &Arc<[Opening]> {
        &self.openings
    }

    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// What changed lately.
    pub(crate) fn events(&self) -> &EventLog {
        &self.events
    }

    /// The checks that run for this model.
    pub(crate) fn checks(&self) -> &[CheckPlan] {
        &self.checks
    }

    /// Whether every check has come to a verdict.
    pub(crate) fn all_judged(&self) -> bool {
        self.checks.iter().all(|plan| self.board.is_judged(plan.id))
    }

    /// What comes after `generation`, with the verdicts as they are now.
    pub(crate) fn next(&mut self, generation: Generation) -> Result<InForce, CompileError> {
        let Truth { model, leaving, http, registry, board, book, steering, .. } = self;
        let next = Generation(generation.0 + 1);
        let mut snapshot =
            compile::compile(&leaving.with(model), registry, board, book, Arc::clone(steering), http, next)?;
        mark_leaving(&mut snapshot, leaving, registry);
        self.announce_sorry(&snapshot);
        Ok(self.with_tls(snapshot))
    }

    /// Announces services whose clients get the sorry server from here on, and those whose do no more. Before every server has a verdict nobody knows
    /// whether that is so.
    fn announce_sorry(&mut self, snapshot: &Snapshot) {
        if !self.all_judged() {
            return;
        }
        for place in snapshot.each_service() {
            let Some(sorry) = place.targets.iter().find(|target| target.is_sorry()) else { continue };
            let is_serving = sorry.duty == Duty::Serving;
            let was_serving = match is_serving {
                true => !self.sorry.insert(place.place),
                false => self.sorry.remove(&place.place),
            };
            if is_serving == was_serving {
                continue;
            }
            let (tone, from, to, reason) = match is_serving {
                true => (Tone::Warn, "standby", "sorry", "no server of the service takes clients"),
                false => (Tone::Info, "sorry", "standby", "a server of the service takes clients again"),
            };
            let of_group = match place.place == place.id {
                true => String::new(),
                false => format!(" for group {}", place.group),
            };
            let subject = format!("sorry server ({}){of_group}", sorry.address);
            let event = Event::now(EventKind::Health, from, to, reason);
            self.events.record(tone, event.services(vec![place.name.clone()]).subject(subject));
        }
    }

    /// What is served: the file's model, and what of earlier ones still has flows on the packet plane.
    pub(crate) fn served(&self) -> Cow<'_, Model> {
        self.leaving.with(&self.model)
    }

    /// What of earlier models still has flows on the packet plane.
    pub(crate) fn leaving(&self) -> &Leaving {
        &self.leaving
    }

    /// Ends what has left and had its time, and forgets what has no flow any more. Whether the next snapshot is another.
    pub(crate) fn turn_leaving(&mut self, shared: &Shared) -> bool {
        if self.leaving.is_empty() {
            return false;
        }
        // Before all workers know that it leaves, one may still open a flow.
        let all_know = shared.all_adopted(shared.generation());
        let Truth { leaving, registry, .. } = self;
        let is_empty = |name: &str| {
            let active = registry.service(name).map_or(0, |id| shared.loads().service_active(id));
            all_know && active == 0
        };
        leaving.turn(shared.now(), is_empty)
    }

    /// What an agent says.
    pub(crate) fn agent(&self, agent: towpath_core::CheckId) -> Option<&AgentState> {
        self.board.agent(agent)
    }

    /// What was said at run time.
    pub(crate) fn words(&self) -> &AdminWords {
        &self.board.words
    }

    /// Which of them these are.
    pub(crate) fn words_version(&self) -> u64 {
        self.words_version
    }

    /// What comes after `generation` if these words hold from now on; an error leaves what held before.
    pub(crate) fn next_with(
        &mut self,
        mut words: AdminWords,
        generation: Generation,
        now: Now,
    ) -> Result<InForce, CompileError> {
        words.note_returns(&self.model, now);
        let before = std::mem::replace(&mut self.board.words, words);
        let next = self.next(generation);
        match &next {
            Ok(_) => self.words_version += 1,
            Err(_) => self.board.words = before,
        }
        next
    }

    /// What is known of servers, for the process that takes over.
    pub(crate) fn verdicts(&self) -> BTreeMap<String, Verdict> {
        let of_plan = |plan: &CheckPlan| {
            let state = self.board.state(plan.id)?;
            Some((upgrade::subject_of(plan), Verdict::of(state.health(), state.reason())?))
        };
        self.checks.iter().filter_map(of_plan).collect()
    }

    /// What every port map is of.
    pub(crate) fn each_map<T>(&self, tell: impl Fn(u32, MapName) -> T) -> Vec<T> {
        self.book.each_map().map(|(number, name)| tell(number, name)).collect()
    }

    /// The number of the port map with this name, if there is one.
    pub(crate) fn map_of(&self, name: &MapName) -> Option<u32> {
        self.book.map_of(name)
    }

    /// Takes source ports that another process holds, so that nobody leases them here: those that anybody could.
    pub(crate) fn reserve(&self, held: &[HeldPorts]) -> Vec<SnatLease> {
        let leases = held.iter().flat_map(|held| {
            let leased = match held.transport {
                Transport::Echo => Leased::Echo,
                Transport::Tcp => Leased::Tcp,
                Transport::Udp => Leased::Udp,
            };
            let source = |port: &u16| SocketAddr::new(held.address, *port);
            held.ports.iter().map(source).filter_map(move |source| self.book.reserve(leased, source, held.destination))
        });
        leases.collect()
    }

    /// Gives them back.
    pub(crate) fn release(&self, leases: Vec<SnatLease>) {
        leases.into_iter().for_each(|lease| self.book.maps().release(lease));
    }

    /// Tells what holds from an earlier run, and what is wrong with the file that kept it.
    fn tell_kept(&mut self, trouble: Option<String>) {
        if let (Some(trouble), Some(path)) = (trouble, self.model.control.state_file.clone()) {
            let reason = format!("{}: {trouble}; every server is as configured", path.display());
            let event = Event::now(EventKind::Admin, "", "what was said at run time is lost", reason);
            self.events.record(Tone::Warn, event);
        }
        let kept = self.words().iter().count();
        if kept > 0 {
            tracing::info!("what was said at run time before holds: servers: {kept}");
        }
    }

    /// The secret of HTTP mode for services that name none.
    pub(crate) fn http_secret(&self) -> HttpSecret {
        self.http.secret()
    }

    /// What handshakes are done with now.
    pub(crate) fn material(&self) -> &Arc<TlsMaterial> {
        &self.material
    }

    /// Takes a new model with what its files say; any error leaves everything as it was. What it returns is to be published.
    ///
    /// A server that stays keeps its verdict, also when the parameters of its check have changed: otherwise every change of an
    /// interval would take all servers out until their next check.
    pub(crate) fn take(
        &mut self,
        model: Model,
        (material, http): (TlsMaterial, HttpMaterial),
        steering: Arc<SteeringTable>,
        current: &Snapshot,
        by: &str,
        now: Now,
    ) -> Result<InForce, CompileError> {
        let mut registry = self.registry.clone();
        let mut board = self.board.clone();
        let checks = compile::checks(&model, &mut registry)?;
        board.adopt(&checks, now);
        let given_way = board.words.follow(&model);
        board.words.note_returns(&model, now);
        let next = Generation(current.generation.0 + 1);
        let leaving = self.leaving.after(&self.model, &model, now);
        let served = leaving.with(&model);
        let book = &mut self.book;
        let mut compiled = |board: &HealthBoard| -> Result<Snapshot, CompileError> {
            let mut snapshot =
                compile::compile(&served, &mut registry, board, book, Arc::clone(&steering), &http, next)?;
            mark_leaving(&mut snapshot, &leaving, &registry);
            Ok(snapshot)
        };
        let mut snapshot = compiled(&board)?;
        if inherit_verdicts(&mut board, &self.board, &checks, current, &snapshot, now) == Inherited::Some {
            snapshot = compiled(&board)?;
        }
        self.events.follow(model.notify.as_ref());
        for change in member_changes(&self.model, &model) {
            let (kind, from, to) = match change.change {
                Change::Added => (EventKind::Membership, String::new(), "added".to_owned()),
                Change::Removed => (EventKind::Membership, String::new(), "removed".to_owned()),
                Change::Admin { from, to } => (EventKind::Admin, from, to),
                Change::Weight { from, to } => {
                    (EventKind::Membership, format!("weight {from}"), format!("weight {to}"))
                }
            };
            let event = Event::now(kind, from, to, "")
                .services(vec![change.service])
                .subject(format!("server {}", change.server));
            self.events.record(Tone::Info, event);
        }
        for ServiceChange { service, change } in service_changes(&self.model, &model) {
            let event = Event::now(EventKind::Configuration, "", change, "").subject(format!("service {service}"));
            self.events.record(Tone::Info, event.services(vec![service]));
        }
        let (was, is) = (format!("generation {}", current.generation), format!("generation {next}"));
        let reason = format!("configuration reloaded by {by}");
        self.events.record(Tone::Info, Event::now(EventKind::Configuration, was, is, reason));
        let (before, after) = (self.steering.workers(), steering.workers());
        if before != after {
            let (from, to) = (format!("workers: {before}"), format!("workers: {after}"));
            self.events
                .record(Tone::Info, Event::now(EventKind::Configuration, from, to, "clients move with their flows"));
        }
        let (role_before, role) = (self.board.words.role(&self.model), board.words.role(&model));
        if role_before != role {
            let event = Event::now(EventKind::Admin, word(&role_before), word(&role), "the configuration says so");
            self.events.record(Tone::Info, event.subject("role of this machine".to_owned()));
        }
        drop(served);
        self.steering = steering;
        self.leaving = leaving;
        self.model = model;
        self.registry = registry;
        self.board = board;
        self.checks = checks;
        self.material = Arc::new(material);
        self.http = http;
        self.sorry.retain(|place| snapshot.service(*place).is_some());
        self.announce_sorry(&snapshot);
        self.learn(&snapshot);
        self.open_to();
        if !given_way.is_empty() {
            self.words_version += 1;
            self.tell_given_way(&given_way);
        }
        Ok(self.with_tls(snapshot))
    }

    /// Gives the ids of removed servers and services back that nobody holds any more.
    pub(crate) fn release_gone(&mut self, shared: &Shared) {
        // Until then a worker may begin with an older snapshot.
        if !shared.all_adopted(shared.generation()) {
            return;
        }
        self.release_services(shared, shared.now());
        self.release_servers(shared);
    }

    /// Gives ids back before a model is taken that may name more services, and groups behind them, than there are ids left; and where reloads follow each
    /// other faster than housekeeping does. As a rule that does it in time: here whoever asks for the truth waits.
    pub(crate) fn make_room_for(&mut self, model: &Model, shared: &Shared) {
        let are_few = self.registry.services_left() < model.services.len() + model.groups.len();
        if are_few || self.registry.gone_services().count() > 2 * GONE_NAMES_KEPT {
            self.release_gone(shared);
        }
    }

    fn release_services(&mut self, shared: &Shared, now: Now) {
        let Truth { registry, holders, .. } = self;
        let active = |service| shared.loads().service_active(service);
        let kept = if registry.services_left() < GONE_NAMES_KEPT { 0 } else { GONE_NAMES_KEPT };
        let too_many = registry.gone_services().count().saturating_sub(kept);
        let free = |service| Some((holders.let_go(service, active(service), now)?, service));
        let mut gone: Vec<(Now, ServiceId)> = registry.gone_services().filter_map(free).collect();
        // Who has gone first.
        gone.sort_unstable();
        gone.truncate(too_many);
        if gone.is_empty() {
            return;
        }
        let gone: Vec<ServiceId> = gone.into_iter().map(|(_, service)| service).collect();
        shared.forget_services(&gone);
        for service in gone {
            if self.registry.release_service(service) {
                self.holders.forget(service);
                self.counted_before.insert(service, ServiceSum::of(shared, service));
            }
        }
    }

    fn release_servers(&mut self, shared: &Shared) {
        let gone: Vec<RealServerId> =
            self.registry.gone_servers().filter(|&server| shared.loads().held(server) == 0).collect();
        if gone.is_empty() {
            return;
        }
        shared.forget_servers(&gone);
        for server in gone {
            if self.registry.release_server(server) {
                self.known.remove(&server);
                self.met_before.insert(server, met_ever(shared, server));
            }
        }
    }

    /// What somebody still has to do with though it is not in force: services that were removed, and those that were changed.
    pub(crate) fn remnants(&self, in_force: &Snapshot) -> Vec<Arc<Service>> {
        self.holders.remnants(in_force)
    }

    /// What was counted for a service since it has this id.
    pub(crate) fn counted(&self, service: ServiceId, shared: &Shared) -> ServiceSum {
        let sum = ServiceSum::of(shared, service);
        match self.counted_before.get(&service) {
            Some(before) => sum.since(before),
            None => sum,
        }
    }

    /// Announces source addresses that have become nearly exhausted, or calm again.
    pub(crate) fn announce_source_ports(&mut self, snapshot: &Snapshot) {
        for fill in source_ports(snapshot) {
            let key = (fill.protocol, fill.address, fill.destination);
            let known = self.announced.contains(&key);
            let subject = format!("source address {} towards {}", fill.address, fill.destination);
            let counts = format!("{} of {} ports leased", fill.leased, fill.capacity);
            if fill.nearly_full && !known {
                self.announced.insert(key);
                let reason = format!("{counts}; add an address to source.pool");
                let event = Event::now(EventKind::SourcePorts, "calm", "nearly exhausted", reason)
                    .services(fill.services)
                    .subject(subject);
                self.events.record(Tone::Warn, event);
            } else if known && u64::from(fill.leased) * 100 < u64::from(fill.capacity) * SOURCE_PORTS_CALM_PERCENT {
                self.announced.remove(&key);
                let event = Event::now(EventKind::SourcePorts, "nearly exhausted", "calm", counts)
                    .services(fill.services)
                    .subject(subject);
                self.events.record(Tone::Info, event);
            }
        }
    }

    /// Announces that a bridge leads back to itself, by what the workers have counted, or does so no more.
    pub(crate) fn announce_loops(&mut self, shared: &Shared) {
        let sum = |counter| shared.seats().map(|seat| seat.plane_counter(counter)).sum::<u64>();
        // Read first, so that a loop that ends meanwhile is not over before it was.
        let over = sum(PlaneCounter::BridgeLoopsOver);
        let is_looped = sum(PlaneCounter::BridgeLoops) > over;
        if is_looped == self.is_looped {
            return;
        }
        self.is_looped = is_looped;
        let names: Vec<&str> = self.model.bridges.iter().map(|bridge| bridge.name.as_str()).collect();
        let subject = format!("bridge {}", names.join(" or "));
        let (tone, event) = match is_looped {
            true => {
                let reason = "what leaves by one arm comes in by the other, or a station is at both; take out the second cable, or let spanning tree \
                              block it: until then broadcast and unknown stations are held down";
                (Tone::Warn, Event::now(EventKind::Bridge, "calm", "looped", reason))
            }
            false => (Tone::Info, Event::now(EventKind::Bridge, "looped", "calm", "no sign of a loop any more")),
        };
        self.events.record(tone, event.subject(subject));
    }

    /// Announces certificates, revocation lists and OCSP responses that are about to end, and those that were renewed.
    pub(crate) fn announce_certificates(&mut self, control: Option<&Access>) {
        let of_services = self.material.certificates();
        let of_services = of_services.map(|(service, place, identity)| (Some(service), place, identity));
        let own = control.and_then(Access::identity).map(|identity| (None, 0, identity));
        let dated = self.material.dated().map(|(service, file)| (Some(service), file));
        let own_list = control.and_then(Access::revocations).map(|file| (None, file));
        for (tone, event) in self.expiry.turn(of_services.chain(own), dated.chain(own_list), unix_s()) {
            self.events.record(tone, event);
        }
    }

    /// Keeps and logs one event.
    pub(crate) fn record(&mut self, tone: Tone, event: Event) {
        self.events.record(tone, event);
    }

    /// Remembers names for status and events.
    fn learn(&mut self, snapshot: &Snapshot) {
        for server in snapshot.real_servers.iter().flatten() {
            self.known.insert(server.id, server.clone());
        }
        self.judged.clear();
        for service in snapshot.each_service() {
            for target in &service.targets {
                for check in target.checks().chain(target.agent) {
                    let judged = self.judged.entry(check).or_default();
                    if !judged.services.contains(&service.name) {
                        judged.services.push(service.name.clone());
                    }
                    judged.name.clone_from(&target.name);
                    judged.server = format!("server {} ({})", target.name, target.address);
                }
            }
        }
    }

    fn judge(&mut self, check: towpath_core::CheckId, result: CheckResult, now: Now) -> Judgement {
        let transition = self.board.on_result(check, result, now);
        if let Some(transition) = &transition {
            let Judged { services, server, .. } = self.judged.get(&check).cloned().unwrap_or_default();
            let tone = match transition.to {
                ServerHealth::Down | ServerHealth::Held => Tone::Warn,
                ServerHealth::Unknown | ServerHealth::Up => Tone::Info,
            };
            let (from, to) = (transition.from.label(), transition.to.label());
            let event = Event::now(EventKind::Health, from, to, &*transition.reason).services(services).subject(server);
            // Before the first verdict it was in no state.
            let is_first = transition.from == ServerHealth::Unknown;
            self.events.record(tone, if is_first { event } else { event.lasted_ms(transition.lasted_ms) });
        }
        Judgement {
            pace: self.board.state(check).map_or(Pace::Steady, HealthState::pace),
            changed: transition.is_some(),
        }
    }

    /// Takes what an agent says, or why it says nothing. Only a new word of it is an event: shares come and go with every load.
    fn hear(&mut self, agent: towpath_core::CheckId, answer: Result<AgentReport, String>, now: Now) -> Judgement {
        let change = self.board.on_answer(agent, answer, now);
        if let (AgentChange::Word(before), Some(state)) = (change, self.board.agent(agent)) {
            let tone = if state.word() == "ready" { Tone::Info } else { Tone::Warn };
            let Judged { services, server, .. } = self.judged.get(&agent).cloned().unwrap_or_default();
            let event = Event::now(EventKind::Agent, before, state.word(), &**state.reason());
            self.events.record(tone, event.services(services).subject(format!("agent of {server}")));
        }
        Judgement { pace: Pace::Steady, changed: change != AgentChange::Nothing }
    }
}

impl Truth {
    /// Whether somebody is out, or is no more, from now on.
    fn learn_met(&mut self, met: &HashMap<(RealServerId, Passive), Met>, snapshot: &Snapshot, now: Now) -> bool {
        let changes = self.board.passive.look(met, now);
        for PassiveChange { server, rule, out } in &changes {
            let concerned = snapshot.each_service().filter(|service| service.passive.as_ref() == Some(rule));
            let members = concerned.filter_map(|service| Some((&service.name, service.target_of(*server)?.1)));
            let (mut services, mut subject) = (Vec::new(), String::new());
            for (service, target) in members {
                if !services.contains(service) {
                    services.push(service.clone());
                }
                subject = format!("server {} ({})", target.name, target.address);
            }
            let (tone, from, to, reason) = match out {
                Some(reason) => {
                    (Tone::Warn, "in", "out", format!("{reason}, as long as half of the servers are up without it"))
                }
                None => (Tone::Info, "out", "in", "its time is over; what clients meet from now on decides".to_owned()),
            };
            let event = Event::now(EventKind::Passive, from, to, reason).services(services).subject(subject);
            self.events.record(tone, event);
        }
        !changes.is_empty()
    }
}

/// Nobody new comes to what has left.
fn mark_leaving(snapshot: &mut Snapshot, leaving: &Leaving, registry: &Registry) {
    for id in leaving.names().filter_map(|name| registry.service(name)) {
        if let Some(service) = snapshot.services.get_mut(id.index()).and_then(Option::as_mut) {
            Arc::make_mut(service).is_leaving = true;
        }
    }
}

struct Judgement {
    pace: Pace,
    changed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Inherited {
    None,
    Some,
}

/// Gives new checks of servers that stay the verdict that the server's checks had, whatever was laid over it.
fn inherit_verdicts(
    board: &mut HealthBoard,
    board_before: &HealthBoard,
    checks: &[CheckPlan],
    current: &Snapshot,
    next: &Snapshot,
    now: Now,
) -> Inherited {
    let mut inherited = Inherited::None;
    for service in next.each_service() {
        let Some(before) = current.service(service.place) else { continue };
        for target in &service.targets {
            let Some((_, was)) = before.target_of(target.server) else { continue };
            // Of a server that was not checked there is nobody to say more.
            let own = was.check.and_then(|check| board_before.state(check));
            let (health, reason) = own.map_or((was.health, &was.reason), |state| (state.health(), state.reason()));
            let unjudged =
                |plan: &&CheckPlan| board.state(plan.id).is_some_and(|state| state.health() == ServerHealth::Unknown);
            let own = checks.iter().filter(|plan| target.checks().any(|check| check == plan.id));
            for plan in own.filter(unjudged).cloned().collect::<Vec<_>>() {
                let (result, times) = match health {
                    ServerHealth::Unknown => continue,
                    ServerHealth::Held | ServerHealth::Up => (CheckResult::Passed, plan.rise),
                    ServerHealth::Down => (CheckResult::Failed(reason.to_string()), plan.fall),
                };
                for _ in 0..times.max(1) {
                    board.on_result(plan.id, result.clone(), now);
                }
                inherited = Inherited::Some;
            }
        }
    }
    inherited
}

impl House {
    /// Tells that a reload was refused, of how many reasons; whoever wanted it has them, and they may quote the file.
    pub(crate) fn tell_refused(&self, by: &str, reasons: usize) {
        let is = format!("generation {}", self.shared.generation());
        let plural = if reasons == 1 { "" } else { "s" };
        let why = format!("reload by {by} refused for {reasons} reason{plural}; nothing is changed");
        let mut truth = self.truth();
        // Who tries again and again leaves room for other events; each try is in the log.
        if truth.events().latest(1).first().is_none_or(|last| last.reason != why) {
            truth.record(Tone::Warn, Event::now(EventKind::Configuration, is.clone(), is, why));
        }
    }

    pub(crate) fn new(
        shared: Arc<Shared>,
        plan: Plan,
        usable_cpus: Vec<usize>,
        version: String,
        pool: Option<HandshakePool>,
        mut truth: Truth,
        origin: Origin,
    ) -> House {
        let Origin { config, network, guard, upgrades } = origin;
        let notifier = Arc::new(Notifier::new(&version));
        truth.events.notify_by(Arc::clone(&notifier), truth.model.notify.as_ref());
        let keeper = StateKeeper::new(truth.model.control.state_file.clone());
        House {
            shared,
            plan,
            usable_cpus,
            version,
            pool,
            notifier,
            truth: Mutex::new(truth),
            changed: Notify::new(),
            ordered: Notify::new(),
            keeper,
            turns: Turns::default(),
            config,
            network,
            commands: OnceLock::new(),
            guard,
            metrics: Latest::new(),
            upgrades,
        }
    }

    pub(crate) fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes how one check went; says how soon the next is wanted.
    pub(crate) fn judge(&self, check: towpath_core::CheckId, probed: Probed) -> Pace {
        if let Some(shortage) = &probed.shortage {
            // Ours, not the server's: its verdict stays.
            tracing::warn!("server {}: {shortage}; its verdict stays", self.subject_of(check).server);
            return Pace::Steady;
        }
        let (mut truth, now) = (self.truth(), self.shared.now());
        let judgement = match probed.answer {
            Some(answer) => truth.hear(check, answer, now),
            None => truth.judge(check, probed.result, now),
        };
        drop(truth);
        if judgement.changed {
            self.changed.notify_one();
        }
        judgement.pace
    }

    /// Whom a check is about.
    pub(crate) fn subject_of(&self, check: towpath_core::CheckId) -> Subject {
        let truth = self.truth();
        let Some(Judged { services, name, .. }) = truth.judged.get(&check) else { return Subject::default() };
        Subject { server: name.clone(), services: services.clone() }
    }

    /// Takes notice of what clients meet at servers, where that judges them.
    pub(crate) fn look_at_clients(&self) {
        let snapshot = self.shared.snapshot();
        if snapshot.each_service().all(|service| service.passive.is_none()) {
            return;
        }
        let mut met = HashMap::new();
        for service in snapshot.each_service() {
            let Some(rule) = service.passive else { continue };
            for target in &service.targets {
                let read = || self.shared.seats().map(|seat| seat.met(target.server)).fold(Met::default(), Met::add);
                met.entry((target.server, rule)).or_insert_with(read);
            }
        }
        if self.truth().learn_met(&met, &snapshot, self.shared.now()) {
            self.changed.notify_one();
        }
    }

    /// Moves to a later phase and notes it.
    pub(crate) fn enter(&self, phase: Phase, reason: &str) -> bool {
        let before = self.shared.phase();
        let entered = self.shared.enter(phase);
        if entered {
            let event = Event::now(EventKind::Phase, phase_word(before), phase_word(phase), reason);
            self.truth().record(Tone::Info, event);
        }
        entered
    }

    /// Takes what another process was told, in place of what holds.
    pub(crate) fn take_words(&self, found: state_file::Found) -> Result<(), String> {
        let mut words = match found.trouble {
            Some(trouble) => return Err(trouble),
            None => found.words,
        };
        let mut truth = self.truth();
        let given_way = words.follow(&truth.model);
        let next = truth.next_with(words, self.shared.generation(), self.shared.now());
        self.shared.publish(next.map_err(|error| error.to_string())?);
        truth.tell_given_way(&given_way);
        Ok(())
    }

    /// The state of everything, for status.
    pub(crate) fn status(&self) -> Status {
        let shared = &self.shared;
        let snapshot = shared.snapshot();
        let now = shared.now();
        let cpu_times = process::cpu_times();
        let truth = self.truth();
        let services = truth
            .model
            .services
            .iter()
            .filter_map(|service| {
                let compiled = snapshot.service(truth.registry.service(&service.name)?)?;
                Some(service_status(compiled, &snapshot, service, &truth, shared, now))
            })
            .collect();
        let mut leaving: Vec<LeavingServer> = truth
            .registry
            .gone_servers()
            .filter_map(|id| {
                let server = truth.known.get(&id)?;
                let connections = shared.loads().active(id);
                (connections > 0).then(|| LeavingServer {
                    name: server.name.clone(),
                    address: server.address,
                    port: server.port,
                    connections,
                })
            })
            .collect();
        // A service that has left has servers that none of the file's may have.
        let of_file: HashSet<(IpAddr, Option<u16>)> = truth
            .model
            .groups
            .iter()
            .flat_map(|group| &group.servers)
            .map(|server| (server.address, server.port))
            .collect();
        for server in truth.leaving.servers().filter(|server| !of_file.contains(&(server.address, server.port))) {
            let Some(id) = truth.registry.server(server.address, server.port) else { continue };
            let connections = shared.loads().active(id);
            let is_told = leaving.iter().any(|told| (told.address, told.port) == (server.address, server.port));
            if connections > 0 && !is_told {
                let (name, address, port) = (server.name.clone(), server.address, server.port);
                leaving.push(LeavingServer { name, address, port, connections });
            }
        }
        leaving.sort_by(|a, b| a.name.cmp(&b.name));
        Status {
            version: self.version.clone(),
            phase: phase_word(shared.phase()).to_owned(),
            taken_over: self.upgrades.taken_over(),
            role: word(&snapshot.role),
            unix_ms: unix_ms(),
            uptime_seconds: now.0 / 1000,
            started_unix_ms: unix_ms().saturating_sub(now.0),
            generation: snapshot.generation.0,
            services,
            outbound: snapshot
                .outbound
                .each()
                .flat_map(|nat| nat.lanes().iter().map(|lane| outbound_status(nat, lane, shared)))
                .collect(),
            leaving,
            source_ports: source_ports(&snapshot).into_iter().map(Fill::into_status).collect(),
            workers: shared
                .seats()
                .map(|seat| worker_status(seat, &snapshot, self.plan.packets.is_some(), &cpu_times))
                .collect(),
            neighbours: shared.network().neighbours(),
            handshake_pool: self.pool.as_ref().map(|pool| pool_status(pool.gauges(), &self.plan)),
            access_log: self.access_log(),
            notify: self.notifier.status(),
            limits: self.limits(&snapshot),
            events: truth.events.latest(crate::events::EVENTS_MAX),
            events_total: truth.events.totals(),
            latency_bounds_us: BOUNDS_US.to_vec(),
        }
    }

    fn access_log(&self) -> Option<AccessLogStatus> {
        let AccessLogUse { written, failed, trouble } = self.shared.access().usage();
        let sum = |counter| self.shared.seats().map(|seat| seat.read(counter)).sum::<u64>();
        let (given, dropped) = (sum(WorkerCounter::LogLines), sum(WorkerCounter::LogDropped));
        (given + dropped > 0).then_some(AccessLogStatus { written, dropped, failed, trouble })
    }

    fn limits(&self, snapshot: &Snapshot) -> LimitsStatus {
        let gate = |protocol| {
            let gate = self.shared.gate(protocol);
            Usage { used: u64::from(gate.inside()), max: u64::from(gate.max()), refused: gate.refused() }
        };
        let persistence = self.shared.persistence_use();
        let no_room = |seat: &Seat| seat.dropped(DropReason::FlowsFull) + seat.dropped(DropReason::HalfOpenFull);
        let fast_flows = |seat: &Seat| -> u64 {
            use PlaneCounter::{FastFlowsEntered, FastFlowsLeft, FastTransitsEntered, FastTransitsLeft};
            let inside = |entered, left| seat.plane_counter(entered).saturating_sub(seat.plane_counter(left));
            inside(FastFlowsEntered, FastFlowsLeft) + inside(FastTransitsEntered, FastTransitsLeft)
        };
        let fast_refused = |seat: &Seat| {
            seat.plane_counter(PlaneCounter::FastFlowsRefused) + seat.plane_counter(PlaneCounter::FastTransitsRefused)
        };
        LimitsStatus {
            connections: gate(Protocol::Tcp),
            udp_sessions: gate(Protocol::Udp),
            flows: Usage {
                used: self.shared.seats().map(|seat| u64::from(seat.flows())).sum(),
                // Workers that do not take part have tables, too, but nobody to fill them.
                max: self.plan.packets.as_ref().map_or(0, |packets| packets.flows_max_of(snapshot.steering.workers())),
                refused: self.shared.seats().map(no_room).sum(),
            },
            fast_flows: Usage {
                used: self.shared.seats().map(fast_flows).sum(),
                max: self.plan.packets.as_ref().map_or(0, |packets| packets.fast.flows().into()),
                refused: self.shared.seats().map(fast_refused).sum(),
            },
            persistence_entries: Usage {
                used: persistence.entries as u64,
                max: persistence.entries_max as u64,
                refused: persistence.evicted,
            },
            // Without one to look with, none is left.
            descriptors: Usage {
                used: process::open_descriptors().unwrap_or(self.plan.nofile),
                max: self.plan.nofile,
                refused: 0,
            },
        }
    }
}

/// What has happened at all, by label.
fn seen(counts: impl Iterator<Item = (&'static str, u64)>) -> BTreeMap<String, u64> {
    counts.filter(|(_, count)| *count > 0).map(|(label, count)| (label.to_owned(), count)).collect()
}

fn service_status(
    service: &Service,
    snapshot: &Snapshot,
    configured: &VirtualService,
    truth: &Truth,
    shared: &Shared,
    now: Now,
) -> ServiceStatus {
    let routed = service
        .places_behind()
        .into_iter()
        .filter_map(|place| snapshot.service(place))
        .flat_map(|behind| &behind.targets);
    let mut targets: Vec<&Target> = Vec::with_capacity(service.targets.len());
    for target in service.targets.iter().chain(routed) {
        if targets.iter().all(|known| known.server != target.server) {
            targets.push(target);
        }
    }
    let sum = truth.counted(service.id, shared);
    let servers: Vec<ServerStatus> =
        targets.iter().map(|target| server_status(service, target, truth, shared, now)).collect();
    ServiceStatus {
        name: service.name.clone(),
        state: service_state(&targets),
        vip: service.vip,
        ports: service.ports.clone(),
        protocol: word(&service.protocol),
        plane: word(&configured.plane),
        mode: mode_words(configured),
        balance: word(&service.balance),
        persistence_ms: service.persistence.as_ref().map(|rule| rule.timeout_ms),
        connections: shared.loads().service_active(service.id),
        connections_max: service.max_connections,
        queue: queue_status(service, shared),
        accepted: sum.read(ServiceCounter::Accepted),
        opened: sum.read(ServiceCounter::Opened),
        bytes_from_client: sum.read(ServiceCounter::BytesFromClient),
        bytes_to_client: sum.read(ServiceCounter::BytesToClient),
        counters: ServiceCounter::ALL.iter().map(|&c| (c.label().to_owned(), sum.read(c))).collect(),
        terminations: Termination::ALL.iter().map(|&t| (t.label().to_owned(), sum.ended(t))).collect(),
        latencies: latencies(service, &sum, truth),
        refused_requests: seen(BadRequest::ALL.iter().map(|&reason| (reason.label(), sum.bad_requests(reason)))),
        refused_responses: seen(BadResponse::ALL.iter().map(|&reason| (reason.label(), sum.bad_responses(reason)))),
        refused_streams: seen(BadStream::ALL.iter().map(|&reason| (reason.label(), sum.bad_streams(reason)))),
        certificates: truth
            .material
            .certificates_of(&service.name)
            .iter()
            .map(|identity| certificate_status(identity, unix_s()))
            .collect(),
        servers,
    }
}

/// What is measured of a service like this.
fn latencies(service: &Service, sum: &ServiceSum, truth: &Truth) -> BTreeMap<String, LatencyStatus> {
    if service.plane != Plane::Stream || service.protocol != Protocol::Tcp {
        return BTreeMap::new();
    }
    let measured = |&latency: &Latency| (latency.label().to_owned(), LatencyStatus::from(sum.measured(latency)));
    let applies = |latency: &&Latency| match latency {
        Latency::Connect | Latency::FirstByte => true,
        Latency::Handshake => !truth.material.certificates_of(&service.name).is_empty(),
        Latency::Queue => service.queue.is_some(),
    };
    Latency::ALL.iter().filter(applies).map(measured).collect()
}

/// What is done with the connections of a service, in the words of its configuration.
fn mode_words(service: &VirtualService) -> String {
    let plane = word(&service.plane);
    match service.plane {
        Plane::Packet => format!("{plane}, {}", word(&service.forwarding)),
        Plane::Stream => {
            let tls = matches!(service.tls, ServiceTls::Ended(_)).then_some("tls");
            let http = service.http.is_some().then_some("http");
            [Some(plane.as_str()), tls, http].into_iter().flatten().collect::<Vec<_>>().join(", ")
        }
    }
}

/// Who waits for a place of this service.
fn queue_status(service: &Service, shared: &Shared) -> Option<QueueStatus> {
    let queue = service.queue?;
    let places = std::iter::once(service.place).chain(service.places_behind());
    let (waiting, longest_ms) = places
        .map(|place| shared.queue(place))
        .fold((0, 0), |(waiting, longest), (more, ms)| (waiting + more, longest.max(ms)));
    Some(QueueStatus { waiting, max: queue.max, longest_ms, timeout_ms: queue.timeout_ms })
}

/// What hosts inside have opened by one `[[outbound_nat]]`, and how it ended.
fn outbound_status(nat: &OutboundNat, lane: &OutboundLane, shared: &Shared) -> OutboundStatus {
    let sum = ServiceSum::of(shared, lane.id);
    let counter = |counter| sum.read(counter);
    let terminations = Termination::ALL.iter().map(|&t| (t.label().to_owned(), sum.ended(t)));
    OutboundStatus {
        name: nat.name.clone(),
        protocol: lane.pool.leased().label().to_owned(),
        flows: counter(ServiceCounter::Opened).saturating_sub(counter(ServiceCounter::Closed)),
        accepted: counter(ServiceCounter::Accepted),
        opened: counter(ServiceCounter::Opened),
        bytes_out: counter(ServiceCounter::BytesFromClient),
        bytes_in: counter(ServiceCounter::BytesToClient),
        terminations: terminations.filter(|(_, count)| *count > 0).collect(),
    }
}

fn pool_status(gauges: PoolGauges, plan: &Plan) -> HandshakePoolStatus {
    let PoolGauges { threads: _, running, queued, done, late, abandoned, refused, busy_ns, waited_ns } = gauges;
    let counters = [
        ("done", done),
        ("late", late),
        ("abandoned", abandoned),
        ("refused", refused),
        ("busy_ns", busy_ns),
        ("waited_ns", waited_ns),
    ];
    HandshakePoolStatus {
        cpus: plan.handshake_threads.pool_cpus().to_vec(),
        running,
        queued,
        counters: counters.into_iter().map(|(label, count)| (label.to_owned(), count)).collect(),
    }
}

fn unix_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed())
}

/// A server that the operator drained, halted or gave no weight is not missed.
fn service_state(targets: &[&Target]) -> ServiceState {
    use towpath_config::model::AdminState;
    let wanted = || targets.iter().filter(|target| target.admin == AdminState::Ready && target.weight > 0);
    // Who says sorry is no service.
    match targets.iter().filter(|target| target.takes_new() && !target.is_sorry()).count() {
        // It answers by itself.
        0 if targets.is_empty() => ServiceState::Up,
        0 => ServiceState::Down,
        _ if wanted().any(|target| target.health != ServerHealth::Up || !target.closed_ports.is_empty()) => {
            ServiceState::Degraded
        }
        _ => ServiceState::Up,
    }
}

fn server_status(service: &Service, target: &Target, truth: &Truth, shared: &Shared, now: Now) -> ServerStatus {
    let member = Member { service: service.name.clone(), address: target.address, port: target.port };
    // The snapshot knows what holds for new clients, the board the latest reason for it. A verdict that is not published yet is
    // not shown: whoever reads `down` may rely on it that no new snapshot is needed to keep clients away.
    let own = target.check.filter(|_| target.also.is_empty());
    let state = own.and_then(|check| truth.board.state(check)).filter(|state| state.health() == target.health);
    let reason = state.map_or(&target.reason, |state| state.reason());
    let before = truth.met_before.get(&target.server).copied().unwrap_or_default();
    let met = met_ever(shared, target.server);
    ServerStatus {
        name: target.name.clone(),
        address: target.address,
        port: target.port,
        weight: target.weight,
        admin: word(&target.admin),
        admin_said: admin_said(truth, &member, now),
        weight_said: weight_said(truth, &member),
        health: target.health.into(),
        agent: target.agent.and_then(|agent| truth.board.agent(agent)).map(AgentState::line),
        reason: reason.to_string(),
        duty: duty_word(target).to_owned(),
        sorry: target.is_sorry(),
        closed_ports: target.closed_ports.iter().map(|closed| closed.port).collect(),
        health_seconds: now.ms_since(target.since) / 1000,
        connections: shared.loads().active(target.server),
        service_connections: shared.loads().active_of(service.id, target.server),
        waiting: shared.seats().map(|seat| seat.idle(target.server)).sum(),
        connections_min: target.min_connections,
        connections_max: target.max_connections,
        opened: met.opened.saturating_sub(before.opened),
        connects_failed: met.failed.saturating_sub(before.failed),
        responses: met.responses.saturating_sub(before.responses),
        errors: met.errors.saturating_sub(before.errors),
    }
}

/// What part a server has in the service just now, as far as its health, role and the other servers decide.
fn duty_word(target: &Target) -> &'static str {
    match (target.role, target.duty) {
        _ if target.fail_open => "fail-open",
        (_, Duty::LastResort | Duty::Standby) => "standby",
        (Role::Backup, Duty::Serving) => "backup",
        (Role::Sorry, Duty::Serving) => "sorry",
        (Role::Primary, Duty::Serving) => "primary",
    }
}

/// What clients of all workers together have met at this id since the start.
fn met_ever(shared: &Shared, server: RealServerId) -> Met {
    shared.seats().map(|seat| seat.met(server)).fold(Met::default(), Met::add)
}

fn worker_status(
    seat: &Seat,
    snapshot: &Snapshot,
    has_packets: bool,
    cpu_times: &BTreeMap<String, u64>,
) -> WorkerStatus {
    let mut packets = BTreeMap::new();
    if has_packets {
        packets.extend(PlaneCounter::ALL.iter().map(|&c| (c.label().to_owned(), seat.plane_counter(c))));
        packets.extend(RingCounter::ALL.iter().map(|&c| (c.label().to_owned(), seat.ring_counter(c))));
    }
    let drops = DropReason::ALL.iter().map(|&reason| (reason.label().to_owned(), seat.dropped(reason)));
    WorkerStatus {
        id: seat.id().0,
        cpu: seat.cpu(),
        state: if seat.ended() { "ended" } else { "serving" }.to_owned(),
        generation: seat.adopted().0,
        vshards: snapshot.steering.owners().iter().filter(|&&owner| owner == seat.id()).count(),
        sessions: seat.sessions(),
        cpu_us: cpu_times.get(&worker::thread_name(seat.id())).copied().unwrap_or(0),
        counters: WorkerCounter::ALL.iter().map(|&c| (c.label().to_owned(), seat.read(c))).collect(),
        flows: seat.flows(),
        packets,
        drops: drops.filter(|(_, count)| *count > 0).collect(),
    }
}

struct Fill {
    services: Vec<String>,
    protocol: &'static str,
    address: IpAddr,
    destination: SocketAddr,
    leased: u32,
    capacity: u32,
    nearly_full: bool,
}

/// Services that name the same address towards the same server lease from the same ports: one line for all of them.
fn source_ports(snapshot: &Snapshot) -> Vec<Fill> {
    let mut fills: BTreeMap<(&str, IpAddr, SocketAddr), Fill> = BTreeMap::new();
    let of_services = snapshot.each_service().filter_map(|service| match &service.source {
        ServiceSource::Pool(pool) => Some((&service.name, pool)),
        ServiceSource::Client | ServiceSource::Interface => None,
    });
    let of_outbound =
        snapshot.outbound.each().flat_map(|nat| nat.lanes().iter().map(move |lane| (&nat.name, &lane.pool)));
    for (name, pool) in of_services.chain(of_outbound) {
        let protocol = pool.leased().label();
        for fill in pool.fill() {
            let entry = fills.entry((protocol, fill.address, fill.destination)).or_insert_with(|| Fill {
                services: Vec::new(),
                protocol,
                address: fill.address,
                destination: fill.destination,
                leased: fill.leased,
                capacity: fill.capacity,
                nearly_full: fill.is_nearly_full(),
            });
            if entry.services.last() != Some(name) {
                entry.services.push(name.clone());
            }
        }
    }
    fills.into_values().collect()
}

impl Fill {
    fn into_status(self) -> SourcePortsStatus {
        let percent =
            if self.capacity == 0 { 100.0 } else { f64::from(self.leased) * 100.0 / f64::from(self.capacity) };
        SourcePortsStatus {
            services: self.services,
            protocol: self.protocol.to_owned(),
            address: self.address,
            destination: self.destination,
            leased: self.leased,
            capacity: self.capacity,
            percent: (percent * 10.0).round() / 10.0,
            nearly_exhausted: self.nearly_full,
        }
    }
}

fn phase_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Running => "running",
        Phase::Draining => "draining",
        Phase::Ending => "ending",
    }
}

#[cfg(test)]
mod tests;
