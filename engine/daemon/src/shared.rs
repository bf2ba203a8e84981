//! What workers and controller share. Everything else belongs to one thread.
//!
//! A worker touches it once per breath (two atomic loads) and when a connection opens or closes; never per byte.
//!
//! Lock order, outermost first: one service's desk, one persistence stripe. The snapshot's lock is never held together with
//! another. No thread ever holds two desks or two stripes.

mod doorways;
mod gate;
mod guard;
mod inbox;
mod loads;
mod network;
mod seat;
mod sum;
mod waiting;

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use crossbeam_utils::CachePadded;
use tokio::sync::Notify;
use towpath_config::model::Protocol;
use towpath_core::balancer::BalancerState;
use towpath_core::director::{self, Client, Pick, Refusal, Tried};
use towpath_core::explain::{Explanation, explain};
use towpath_core::loads::Loads;
use towpath_core::persistence::{Known, PERSISTENCE_STRIPES, PersistenceKey, PersistenceTable, Pin, Remembered};
use towpath_core::plane::Network;
use towpath_core::snapshot::{Service, Snapshot, Target};
use towpath_core::waiting::{self as waiting_for, QueueFull, Ticket, WaitingQueue};
use towpath_core::{Generation, Now, RealServerId, ServiceId, WorkerId};
use towpath_sys::host;

use crate::access::AccessLog;
use crate::listen::Opening;
use crate::tls::TlsContexts;

pub(crate) use doorways::Reserved;
pub use doorways::{DoorBoard, Doorway};
pub use gate::Gate;
pub use guard::{WorkerGuard, worker_guard};
pub use inbox::{HandedFrame, Inbox, Letter, Parcel};
pub use loads::SharedLoads;
pub use network::{NetworkBoard, SteeringPrograms};
pub use seat::{Call, RingCounter, Seat, ServicePage};
pub use sum::ServiceSum;
use waiting::WaitingBoard;

/// Persistence entries looked at while workers that open connections may have to wait: some 10 µs.
const FORGOTTEN_AT_ONCE: usize = 1_024;

/// Bounds and seeds of the shared state; allocated at start.
#[derive(Clone, Debug)]
pub struct SharedSettings {
    /// The CPU of each worker, in worker order.
    pub cpus: Vec<usize>,
    /// Highest number of services, so of [`ServiceId`]s.
    pub services_max: usize,
    /// Highest number of real servers, so of [`RealServerId`]s.
    pub real_servers_max: usize,
    /// TCP connections at the same time.
    pub connections_max: u32,
    /// UDP sessions at the same time.
    pub udp_sessions_max: u32,
    /// TLS handshakes with clients at the same time.
    pub handshakes_max: u32,
    /// Persistence entries over all services.
    pub persistence_entries: u32,
    /// Seed of every random decision.
    pub seed: u64,
}

/// Where the process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Accepts and relays.
    Running,
    /// Accepts nothing; connections may finish, up to the drain timeout of their service.
    Draining,
    /// Everything is closed now.
    Ending,
}

/// The state that workers and controller share.
pub struct Shared {
    origin: Instant,
    phase: AtomicU8,
    phase_since_ms: AtomicU64,
    generation: AtomicU64,
    in_force: Mutex<InForce>,
    desks: Box<[OnceLock<Mutex<Desk>>]>,
    persistence: Box<[Mutex<PersistenceTable>]>,
    loads: SharedLoads,
    waiting: WaitingBoard,
    seats: Box<[CachePadded<Seat>]>,
    connections: Gate,
    udp_sessions: Gate,
    handshakes: Gate,
    /// Workers that have given up the descriptor that they keep back, and have no other one yet.
    reserves_missing: AtomicU64,
    network: NetworkBoard,
    doorways: DoorBoard,
    access: Arc<AccessLog>,
    seed: u64,
    lost: OnceLock<WorkerId>,
    /// Whoever comes from now on is served by another process.
    is_handed: AtomicBool,
    /// Source ports that are leased now would not be known there.
    is_handing: AtomicBool,
    news: Notify,
}

/// What workers serve: all of it is of one generation.
#[derive(Clone, Debug)]
pub struct InForce {
    /// Services, servers and who takes which clients.
    pub snapshot: Arc<Snapshot>,
    /// What handshakes are done with.
    pub tls: Arc<TlsContexts>,
    /// What clients come to on the stream plane. The same list as long as it says the same.
    pub openings: Arc<[Opening]>,
}

impl From<Arc<Snapshot>> for InForce {
    /// A generation in which no service ends TLS, and nobody listens.
    fn from(snapshot: Arc<Snapshot>) -> InForce {
        InForce { snapshot, tls: Arc::default(), openings: Arc::default() }
    }
}

/// How full the persistence table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PersistenceUse {
    /// Entries now.
    pub entries: usize,
    /// Entries at most.
    pub entries_max: usize,
    /// Entries lost before their time because the table was full.
    pub evicted: u64,
}

/// What one service's decisions remember.
struct Desk {
    balancer: BalancerState,
    /// Who waits for a place.
    queue: WaitingQueue,
    /// The service as whoever is first knew it when it asked last: what it may be called for. Who is first by now and has not asked since was called to.
    waited_for: Option<Arc<Service>>,
    /// Holds nothing: handed to the director for a service without persistence, which never looks into it.
    no_persistence: PersistenceTable,
}

impl Shared {
    /// Allocates everything; `first` is what workers begin with.
    pub fn new(settings: &SharedSettings, first: impl Into<InForce>) -> io::Result<Shared> {
        let first = first.into();
        assert!(!settings.cpus.is_empty(), "a process without workers");
        assert!(settings.cpus.len() <= 256, "a worker id is one byte");
        let seats = settings
            .cpus
            .iter()
            .zip(0u8..=255)
            .map(|(&cpu, id)| {
                Seat::new(WorkerId(id), cpu, settings.services_max, settings.real_servers_max).map(CachePadded::new)
            })
            .collect::<io::Result<Box<[_]>>>()?;
        let per_stripe = settings.persistence_entries.div_ceil(PERSISTENCE_STRIPES as u32);
        Ok(Shared {
            origin: Instant::now(),
            phase: AtomicU8::new(Phase::Running as u8),
            phase_since_ms: AtomicU64::new(0),
            generation: AtomicU64::new(first.snapshot.generation.0),
            in_force: Mutex::new(first),
            desks: (0..settings.services_max).map(|_| OnceLock::new()).collect(),
            persistence: (0..PERSISTENCE_STRIPES as u64)
                .map(|stripe| Mutex::new(PersistenceTable::new(per_stripe, settings.seed.wrapping_add(stripe))))
                .collect(),
            loads: SharedLoads::new(settings.services_max, settings.real_servers_max),
            waiting: WaitingBoard::new(settings.services_max),
            seats,
            connections: Gate::new(settings.connections_max),
            udp_sessions: Gate::new(settings.udp_sessions_max),
            handshakes: Gate::new(settings.handshakes_max),
            reserves_missing: AtomicU64::new(0),
            network: NetworkBoard::default(),
            doorways: DoorBoard::new(settings.cpus.len()),
            access: Arc::new(AccessLog::new(settings.cpus.len())),
            seed: settings.seed,
            lost: OnceLock::new(),
            is_handed: AtomicBool::new(false),
            is_handing: AtomicBool::new(false),
            news: Notify::new(),
        })
    }

    /// Chooses the server of a new connection to this port of the service and counts it there, in one step per service: two workers never take the same
    /// last place. Pair every `Ok` with [`Shared::close`].
    pub fn pick(
        &self,
        service: &Service,
        client: SocketAddr,
        port: u16,
        tried: &Tried,
        now: Now,
    ) -> Result<Pick, Refusal> {
        let pin = Pin::of_address(service, client.ip());
        self.pick_pinned(service, Client { address: client.ip(), port, pin }, tried, now)
    }

    /// The same for a client that is known by something else than its address. Under what leads it back its server is remembered anew; under what else
    /// it shows, only where nothing is: another client may show the same. A cookie of ours needs no memory, and one that was only full is not given up.
    pub fn pick_known(
        &self,
        service: &Service,
        client: IpAddr,
        port: u16,
        known: &Known,
        tried: &Tried,
        now: Now,
    ) -> Result<Pick, Refusal> {
        self.pick_known_by(service, client, port, known, now, |client| self.pick_pinned(service, client, tried, now))
    }

    fn pick_known_by(
        &self,
        service: &Service,
        client: IpAddr,
        port: u16,
        known: &Known,
        now: Now,
        pick: impl FnOnce(Client) -> Result<Pick, Refusal>,
    ) -> Result<Pick, Refusal> {
        let remembered =
            |key: PersistenceKey| lock(&self.persistence[key.stripe(self.seed)]).lookup(key, now).is_some();
        let pin = known.decides(remembered, |server| service.takes_back(server));
        let pick = pick(Client { address: client, port, pin })?;
        if !pick.why.is_remembered() || matches!(pin, Pin::Server(_)) {
            return Ok(pick);
        }
        for key in known.keys().filter(|key| pin != Pin::Key(*key)) {
            let mut table = lock(&self.persistence[key.stripe(self.seed)]);
            director::learn_if_absent(service, &mut table, key, pick.server, now);
        }
        Ok(pick)
    }

    /// The same for a client that is to come back to the server of this pin. While others wait nobody is served before them.
    pub fn pick_pinned(&self, service: &Service, client: Client, tried: &Tried, now: Now) -> Result<Pick, Refusal> {
        let mut desk = lock(self.desk(service.place));
        if !desk.queue.is_empty() {
            return Err(behind_others(service));
        }
        let Desk { balancer, no_persistence, .. } = &mut *desk;
        let picked = self.pick_at(balancer, no_persistence, service, client, tried, now);
        drop(desk);
        self.note_undone(service.id, Some(service.place));
        picked
    }

    /// Counts one more connection on this member without asking the balancer, if there is room and nobody waits for it; says whether it did.
    pub fn reopen(&self, service: &Service, member: &Target) -> bool {
        let opened = !self.is_waited_for(service.place)
            && self.loads.try_open(service.id, service.max_connections, member.server, member.max_connections).is_ok();
        self.note_undone(service.id, None);
        opened
    }

    /// Who waits for a place of this service has missed the one that was taken and given back for want of a server; but nobody at the place that `asked`
    /// under its desk's lock: called for its own asking, it would ask for ever.
    #[inline]
    fn note_undone(&self, service: ServiceId, asked: Option<ServiceId>) {
        if !self.waiting.is_empty() && loads::take_undone() {
            self.call_who_waits(service, RealServerId::NOBODY, asked);
        }
    }

    fn pick_at(
        &self,
        balancer: &mut BalancerState,
        no_persistence: &mut PersistenceTable,
        service: &Service,
        client: Client,
        tried: &Tried,
        now: Now,
    ) -> Result<Pick, Refusal> {
        let (Pin::Key(_) | Pin::Offered(_)) = client.pin else {
            return director::pick_pinned(service, balancer, no_persistence, &self.loads, client, tried, now);
        };
        let mut table = lock(&self.persistence[client.pin.stripe(self.seed)]);
        director::pick_pinned(service, balancer, &mut table, &self.loads, client, tried, now)
    }

    fn desk(&self, place: ServiceId) -> &Mutex<Desk> {
        self.desks[place.index()].get_or_init(|| Mutex::new(Desk::new(self.seed ^ u64::from(place.0))))
    }

    /// A client of `worker` waits for a place from here on, if as many as may do not wait already. The worker is called if it is the first.
    pub fn join(&self, service: &Arc<Service>, worker: WorkerId, now: Now) -> Result<Ticket, QueueFull> {
        let max = service.queue.map_or(0, |queue| queue.max as usize);
        let (ticket, is_first) = {
            let mut desk = lock(self.desk(service.place));
            let ticket = desk.queue.join(worker, max, now)?;
            self.waiting.insert(service.place);
            let is_first = desk.queue.is_first(ticket);
            if is_first {
                desk.waited_for = Some(Arc::clone(service));
            }
            (ticket, is_first)
        };
        if is_first {
            // A place that was given back before the queue was seen called nobody.
            self.seat(worker).call(Call::Turn(service.place));
        }
        Ok(ticket)
    }

    /// [`Shared::pick_known`] for a client that waits: if it is the first, and then it waits no more.
    pub fn pick_waiting(
        &self,
        service: &Arc<Service>,
        client: IpAddr,
        port: u16,
        known: &Known,
        ticket: Ticket,
        now: Now,
    ) -> Result<Pick, Refusal> {
        self.pick_known_by(service, client, port, known, now, |client| {
            let (picked, called) = {
                let mut desk = lock(self.desk(service.place));
                let Desk { balancer, queue, waited_for, no_persistence } = &mut *desk;
                if queue.is_first(ticket) {
                    *waited_for = Some(Arc::clone(service));
                }
                let pick = || self.pick_at(balancer, no_persistence, service, client, &Tried::new(), now);
                let served = queue.serve(ticket, pick);
                self.note_queue(service.place, &mut desk);
                served
            };
            self.note_undone(service.id, Some(service.place));
            if let Some(next) = called {
                self.seat(next).call(Call::Turn(service.place));
            }
            picked
        })
    }

    /// The client with this ticket waits no more.
    pub fn leave(&self, place: ServiceId, ticket: Ticket) {
        let called = {
            let mut desk = lock(self.desk(place));
            let called = desk.queue.leave(ticket);
            self.note_queue(place, &mut desk);
            called
        };
        if let Some(next) = called {
            self.seat(next).call(Call::Turn(place));
        }
    }

    fn note_queue(&self, place: ServiceId, desk: &mut Desk) {
        if desk.queue.is_empty() {
            self.waiting.remove(place);
            desk.waited_for = None;
        }
    }

    /// Whether somebody waits for this place.
    #[inline]
    pub fn is_waited_for(&self, place: ServiceId) -> bool {
        self.waiting.holds(place)
    }

    /// How many wait for this place, and for how many milliseconds the first has.
    pub fn queue(&self, place: ServiceId) -> (usize, u64) {
        if !self.waiting.holds(place) {
            return (0, 0);
        }
        let desk = lock(self.desk(place));
        (desk.queue.len(), desk.queue.longest_ms(self.now()))
    }

    /// Has every worker give up connections to real servers that hold a place here and do nothing with it.
    pub fn want_idle(&self, place: ServiceId) {
        self.seats.iter().for_each(|seat| seat.call(Call::Room(place)));
    }

    /// A place of this service, and of this server, is free: whoever is first of those that may have it is told.
    #[cold]
    #[inline(never)]
    fn call_who_waits(&self, service: ServiceId, server: RealServerId, but: Option<ServiceId>) {
        for place in self.waiting.iter().filter(|place| but != Some(*place)) {
            let desk = lock(self.desk(place));
            let may_have = |waited_for: &Arc<Service>| waiting_for::may_have(waited_for, service, server);
            let called = desk.queue.first().filter(|_| desk.waited_for.as_ref().is_some_and(may_have));
            drop(desk);
            if let Some(worker) = called {
                self.seat(worker).call(Call::Turn(place));
            }
        }
    }

    /// The client with this key comes back to `server`, as a response of that server has said.
    pub fn learn(&self, service: &Service, key: PersistenceKey, server: RealServerId, now: Now) {
        let mut table = lock(&self.persistence[key.stripe(self.seed)]);
        director::learn(service, &mut table, key, server, now);
    }

    /// The connection or session that [`Shared::pick`] counted has ended, or its connect has failed.
    pub fn close(&self, service: ServiceId, server: RealServerId) {
        self.loads.close(service, server);
        if !self.waiting.is_empty() {
            self.call_who_waits(service, server, None);
        }
    }

    /// What is in force, if it is of another generation than `have`. One atomic load when it is not.
    #[inline]
    pub fn newer_than(&self, have: Generation) -> Option<InForce> {
        if self.generation.load(Ordering::Acquire) == have.0 {
            return None;
        }
        Some(self.in_force())
    }

    /// What is in force.
    pub fn in_force(&self) -> InForce {
        lock(&self.in_force).clone()
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&lock(&self.in_force).snapshot)
    }

    /// The number of the snapshot in force.
    pub fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Acquire))
    }

    /// Puts the next generation in force and wakes every worker. Only the controller calls this.
    pub fn publish(&self, next: impl Into<InForce>) {
        let next = next.into();
        {
            let mut in_force = lock(&self.in_force);
            assert!(next.snapshot.generation > in_force.snapshot.generation, "generations only grow");
            let generation = next.snapshot.generation.0;
            *in_force = next;
            self.generation.store(generation, Ordering::Release);
        }
        self.wake_all();
    }

    /// Puts the next network of the packet plane in force and wakes every worker. Only the controller calls this.
    pub fn publish_network(&self, network: Arc<Network>) {
        self.network.publish(network);
        self.wake_all();
    }

    /// Which sockets clients come in by.
    pub fn doorways(&self) -> &DoorBoard {
        &self.doorways
    }

    /// The network of the packet plane.
    pub fn network(&self) -> &NetworkBoard {
        &self.network
    }

    /// A worker says that it now serves `generation` and holds no older snapshot.
    pub fn report_adopted(&self, worker: WorkerId, generation: Generation) {
        self.seat(worker).set_adopted(generation);
        self.news.notify_one();
    }

    /// Whether every worker that still runs serves `generation` or a later one.
    pub fn all_adopted(&self, generation: Generation) -> bool {
        self.seats.iter().all(|seat| seat.ended() || seat.adopted() >= generation)
    }

    /// A worker says that all flows which `generation` gives to others are on their way to them, and all that it is given have come.
    pub fn report_moved(&self, worker: WorkerId, generation: Generation) {
        self.seat(worker).set_moved(generation);
        self.news.notify_one();
    }

    /// Whether every worker that still runs has given away what `generation` gives to others, and has got what it is given.
    pub fn all_moved(&self, generation: Generation) -> bool {
        self.seats.iter().all(|seat| seat.ended() || seat.moved() >= generation)
    }

    /// Has the kernel steer by these programs and wakes every worker. Only the controller calls this.
    pub fn publish_steering(&self, programs: SteeringPrograms) {
        self.network.steer(programs);
        self.wake_all();
    }

    /// Whether the process runs, drains or ends: one atomic load.
    #[inline]
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Running,
            1 => Phase::Draining,
            _ => Phase::Ending,
        }
    }

    /// When the phase began; drain timeouts count from here.
    pub fn phase_since(&self) -> Now {
        Now(self.phase_since_ms.load(Ordering::Acquire))
    }

    /// Enters a later phase and wakes every worker; says whether this call did it. There is no way back.
    pub fn enter(&self, phase: Phase) -> bool {
        let since = self.now().0;
        let entered = self
            .phase
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |current| {
                if current >= phase as u8 {
                    return None;
                }
                // Before the phase itself: whoever sees the phase sees its time.
                self.phase_since_ms.store(since, Ordering::Release);
                Some(phase as u8)
            })
            .is_ok();
        if entered {
            self.wake_all();
            self.news.notify_one();
        }
        entered
    }

    /// Whoever comes from now on is served by another process; said before the drain.
    pub(crate) fn hand(&self) {
        self.is_handed.store(true, Ordering::Release);
    }

    /// Whether it is so.
    pub(crate) fn is_handed(&self) -> bool {
        self.is_handed.load(Ordering::Acquire)
    }

    /// Says that sessions which begin now would not be known to the process that takes over, or that none does.
    pub(crate) fn set_handing(&self, is_handing: bool) {
        self.is_handing.store(is_handing, Ordering::Release);
        self.wake_all();
    }

    /// Whether it is so.
    #[inline]
    pub(crate) fn is_handing(&self) -> bool {
        self.is_handing.load(Ordering::Acquire)
    }

    /// The place of one worker.
    #[inline]
    pub fn seat(&self, worker: WorkerId) -> &Seat {
        &self.seats[worker.index()]
    }

    /// Every worker's place, in worker order.
    pub fn seats(&self) -> impl ExactSizeIterator<Item = &Seat> {
        self.seats.iter().map(|seat| &**seat)
    }

    /// The gate that a connection (TCP) or session (UDP) passes before anything else is done for it.
    #[inline]
    pub fn gate(&self, protocol: Protocol) -> &Gate {
        match protocol {
            Protocol::Tcp => &self.connections,
            Protocol::Udp => &self.udp_sessions,
        }
    }

    /// The gate that a handshake with a client passes before anything is done for it.
    #[inline]
    pub fn handshakes(&self) -> &Gate {
        &self.handshakes
    }

    /// A worker gives up the descriptor that it keeps back to refuse clients with, or has it again.
    pub fn note_reserve(&self, is_there: bool) {
        match is_there {
            true => self.reserves_missing.fetch_sub(1, Ordering::SeqCst),
            false => self.reserves_missing.fetch_add(1, Ordering::SeqCst),
        };
    }

    /// Whether some worker lacks it: a descriptor that anybody has got since belongs to that one. With two of them a client would be served, and until it left nobody could
    /// even be refused.
    #[inline]
    pub fn lacks_reserve(&self) -> bool {
        self.reserves_missing.load(Ordering::SeqCst) > 0
    }

    /// Where lines on connections and requests go.
    pub fn access(&self) -> &Arc<AccessLog> {
        &self.access
    }

    /// Connections and sessions per service and real server.
    pub fn loads(&self) -> &SharedLoads {
        &self.loads
    }

    /// Persistence entries in use (expired ones included until they are met) and entries lost because the table was full.
    pub fn persistence_use(&self) -> PersistenceUse {
        self.persistence.iter().fold(PersistenceUse::default(), |sum, stripe| {
            let table = lock(stripe);
            PersistenceUse {
                entries: sum.entries + table.len(),
                entries_max: sum.entries_max + table.capacity(),
                evicted: sum.evicted + table.evicted(),
            }
        })
    }

    /// Looks for expired persistence entries, `budget` per stripe, so that the count stays honest while few clients come.
    pub(crate) fn sweep_persistence(&self, budget: usize) {
        let now = self.now();
        for stripe in &self.persistence {
            lock(stripe).sweep(now, budget);
        }
    }

    /// Tells `found` of living entries at the next `places` of a stripe, from `at` on. Where to go on; `None`: that was the end. Workers that open
    /// connections wait meanwhile.
    pub(crate) fn survey_persistence(
        &self,
        stripe: usize,
        at: usize,
        places: usize,
        found: impl FnMut(Remembered),
    ) -> Option<usize> {
        lock(&self.persistence[stripe]).survey(at, places, self.now(), found)
    }

    /// Removes the entries that `goes` names at the next `places` of a stripe, likewise; how many of them lived.
    pub(crate) fn forget_persistence(
        &self,
        stripe: usize,
        at: usize,
        places: usize,
        goes: impl FnMut(Remembered) -> bool,
    ) -> (usize, Option<usize>) {
        lock(&self.persistence[stripe]).forget_some(at, places, self.now(), goes)
    }

    /// What would become of a new connection to this port of the service. Nothing changes by the question.
    pub(crate) fn explain(&self, service: &Service, client: IpAddr, port: u16, known: &Known, now: Now) -> Explanation {
        let entry = |key: PersistenceKey| lock(&self.persistence[key.stripe(self.seed)]).peek(key, now);
        let pin = known.decides(|key| entry(key).is_some(), |server| service.takes_back(server));
        let home = match pin {
            Pin::Key(key) | Pin::Offered(key) => entry(key),
            Pin::Nobody | Pin::Server(_) => None,
        };
        // A copy, so that nobody waits for the answer.
        let balancer = lock(self.desk(service.place)).balancer.clone();
        let of_service = self.loads.service_active(service.id);
        explain(service, &balancer, home, &self.loads, of_service, Client { address: client, port, pin }, now)
    }

    /// Removes every persistence entry of servers whose ids may be given to others.
    pub(crate) fn forget_servers(&self, gone: &[RealServerId]) {
        let gone: HashSet<RealServerId> = gone.iter().copied().collect();
        self.forget_remembered(|entry| gone.contains(&entry.server));
    }

    /// Forgets what is remembered of services whose ids may be given to others. Nobody holds them, so nobody waits for one.
    pub(crate) fn forget_services(&self, gone: &[ServiceId]) {
        let gone: HashSet<ServiceId> = gone.iter().copied().collect();
        self.forget_remembered(|entry| gone.contains(&entry.key.service()));
        for place in gone {
            if let Some(desk) = self.desks[place.index()].get() {
                *lock(desk) = Desk::new(self.seed ^ u64::from(place.0));
            }
        }
    }

    /// One walk over all persistence entries, some at a time: workers that open connections wait meanwhile. What is looked for is held by nobody, so no
    /// new entry of it comes behind the walk.
    fn forget_remembered(&self, mut goes: impl FnMut(Remembered) -> bool) {
        for stripe in 0..self.persistence.len() {
            let mut at = Some(0);
            while let Some(from) = at {
                at = self.forget_persistence(stripe, from, FORGOTTEN_AT_ONCE, &mut goes).1;
            }
        }
    }

    /// Milliseconds since the process's state was made.
    #[inline]
    pub fn now(&self) -> Now {
        self.at(Instant::now())
    }

    /// What the system's monotonic clock showed at `Now(0)`, in milliseconds.
    pub fn origin_ms(&self) -> u64 {
        host::monotonic_ms().saturating_sub(self.now().0)
    }

    /// `instant` on the same scale, for a worker that has read the clock already.
    #[inline]
    pub fn at(&self, instant: Instant) -> Now {
        Now(u64::try_from(instant.saturating_duration_since(self.origin).as_millis()).unwrap_or(u64::MAX))
    }

    /// The same in microseconds, for what is measured.
    #[inline]
    pub fn micros_at(&self, instant: Instant) -> u64 {
        u64::try_from(instant.saturating_duration_since(self.origin).as_micros()).unwrap_or(u64::MAX)
    }

    /// Seed of every random decision.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// The client with this key comes back to `server` until then, as another process has known.
    pub(crate) fn remember(&self, key: PersistenceKey, server: RealServerId, expires: Now, now: Now) {
        lock(&self.persistence[key.stripe(self.seed)]).record_if_absent(key, server, expires, now);
    }

    /// Seed of [`towpath_core::steering::vshard_of_client`], the same as in the listeners' steering program.
    pub fn steering_seed(&self) -> u32 {
        steering_seed(self.seed)
    }

    /// The instant that [`Now`] counts from.
    pub fn origin(&self) -> Instant {
        self.origin
    }

    /// The worker that ended although nobody had asked it to.
    pub fn lost_worker(&self) -> Option<WorkerId> {
        self.lost.get().copied()
    }

    /// Something that the controller waits for has happened: an adoption, a worker's end, a phase.
    pub(crate) fn news(&self) -> &Notify {
        &self.news
    }

    /// A worker's thread is about to end. Unasked, it takes the others with it: a part of the clients would hang otherwise.
    fn report_ended(&self, worker: WorkerId) {
        if self.phase() == Phase::Running {
            self.lost.get_or_init(|| worker);
            self.enter(Phase::Ending);
        }
        self.seat(worker).set_ended();
        self.news.notify_one();
    }

    /// Has every worker look at what all of them share.
    pub(crate) fn wake_all(&self) {
        for seat in &self.seats {
            seat.wake();
        }
    }
}

/// What a client is told that others wait before; where nobody can serve them all, it does not wait with them.
fn behind_others(service: &Service) -> Refusal {
    if service.targets.iter().any(|target| target.takes_new() || target.stands_by() || target.is_last_resort()) {
        Refusal::ServersFull
    } else {
        Refusal::NoServer
    }
}

/// The part of the process's seed that steers clients.
pub(crate) fn steering_seed(seed: u64) -> u32 {
    (seed >> 32) as u32 ^ seed as u32
}

impl Desk {
    fn new(seed: u64) -> Desk {
        Desk {
            balancer: BalancerState::new(seed),
            queue: WaitingQueue::new(),
            waited_for: None,
            no_persistence: PersistenceTable::new(0, seed),
        }
    }
}

/// A worker that panics aborts the process ([`WorkerGuard`]), so nobody ever meets what a poisoned lock protects.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
