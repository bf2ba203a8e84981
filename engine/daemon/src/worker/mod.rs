//! One pinned worker: its ring, its listeners, its sessions, its packet plane. It shares nothing but [`Shared`], and that only when
//! a connection or flow opens or closes.
//!
//! One breath: read the clock → adopt a newer snapshot → bulk left over → packets → completions → timers → submit, and sleep until
//! something completes or the next deadline comes.

mod access;
mod capture;
mod datagram;
mod doors;
mod entrance;
mod handoff;
mod http;
mod http2;
mod lanes;
mod legs;
mod packets;
mod peek;
mod pressure;
mod proxy;
mod pump;
mod questions;
mod queue;
mod relay;
mod secure;
mod slab;
mod stopwatch;
mod token;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use towpath_config::model::{AdminState, Poll};
use towpath_core::client_hello::HELLO_BYTES_MAX;
use towpath_core::counters::{Termination, WorkerCounter};
use towpath_core::fast_path::{FastMemory, FastSettings};
use towpath_core::http::Output;
use towpath_core::session::{Chunk, Chunks, Event, Gathers, Multishots, Op, Side};
use towpath_core::snapshot::{Service, ServiceSource, Snapshot, Target};
use towpath_core::snat::{SnatLease, SnatMaps, SnatRest};
use towpath_core::wheel::TimerWheel;
use towpath_core::{Generation, Now, ServiceId, WorkerId};
use towpath_sys::Cause;
use towpath_sys::host::thread_cpu_us;
use towpath_sys::packet::{Burst, PacketPort};
use towpath_sys::ring::{Completion, Readiness, Ring, RingSettings, Wait};
use towpath_tls::Hatch;

use crate::listen::Listener;
use crate::settings::WorkerSettings;
use crate::shared::{InForce, Inbox, Phase, Shared, worker_guard};
use crate::tls::{PooledHandshake, TlsContexts};
use crate::upgrade::plane::Inheritance;
use datagram::Datagrams;
use doors::Doors;
use entrance::{Pace, Waiting};
use http::ServerPool;
pub(crate) use http::{OUTGOING_BUFFERS_MAX, OUTGOING_BYTES};
use http2::Woken;
use packets::{Left, Packets};
use pressure::KeptBytes;
pub(crate) use pressure::kept_bytes_max;
use pump::Pipes;
use questions::Walks;
use queue::Queued;
use relay::Relay;
pub(crate) use secure::RECORD_BUFFER_BYTES;
use secure::{Senders, record_settings};
use slab::Slab;
use token::{Key, Token};

/// Submission entries; more in one breath are submitted in between.
const RING_ENTRIES: u32 = 1024;
/// Completions handled in one breath.
const COMPLETIONS_MAX: usize = 512;
/// Timers fired in one breath.
const TIMERS_MAX: usize = 256;
/// Connections that end in one breath because their server is lost: each costs some system calls, and the others wait for them.
const LOST_MAX: usize = 64;
/// Sessions that get buffers again in one breath.
const FED_MAX: usize = 64;
/// Buffers for datagrams: they are held only while one is passed on.
const DATAGRAM_BUFFERS: u16 = 128;
/// The longest sleep: what nobody announces is noticed after this time.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// Between two looks at the CPU time of a worker, in microseconds: each is a system call.
const CPU_LOOK_US: u64 = 1000;
/// How often a draining worker looks for connections whose time is up.
const DRAIN_LOOK_MS: u64 = 100;
/// How long an end at once waits for the listeners' operations: they hold the ports until they are cancelled, and who is started
/// next needs them.
const DOORS_MS: u64 = 1000;
/// How long an end at once waits until both sides of every flow were told.
const FLOWS_MS: u64 = 10_000;
/// Leases that may rest at a time, per worker.
const RESTING_MAX: usize = 1 << 17;
/// Leases tried for one connect when the kernel says that a port is taken by somebody else.
const LEASES_MAX: u8 = 16;

/// What a worker serves from.
#[derive(Debug, Default)]
pub struct Entrances {
    /// Listeners of the stream plane.
    pub listeners: Vec<Listener>,
    /// Ports of the packet plane; empty where no service is on it.
    pub ports: Vec<PacketPort>,
    /// What workers hand to each other, by worker; empty where there is nobody to hand to.
    pub inboxes: Arc<[Inbox]>,
    /// Flows of the process that this one takes over from.
    pub(crate) inheritance: Option<Arc<Inheritance>>,
    /// What its small frames leave by, many at a time; `None` where they leave one by one.
    pub burst: Option<Burst>,
    /// Its part of the flows that the kernel carries onwards; `None` where it does not.
    pub fast: Option<(FastMemory, FastSettings)>,
    /// Its way to the pool; `None` where the workers sign themselves.
    pub hatch: Option<Hatch<Box<PooledHandshake>>>,
}

/// Starts the thread of one worker; it reports on `ready` once it serves.
pub fn spawn(
    shared: Arc<Shared>,
    id: WorkerId,
    cpu: usize,
    entrances: Entrances,
    settings: WorkerSettings,
    ready: Sender<io::Result<()>>,
) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(thread_name(id)).spawn(move || {
        let guard = worker_guard(Arc::clone(&shared), id);
        let worker = Worker::new(shared, id, cpu, entrances, settings);
        let (worker, report) = match worker {
            Ok(worker) => (Some(worker), Ok(())),
            Err(error) => (None, Err(error)),
        };
        // The starter has given up if it does not listen any more; then the phase says so, too.
        let _ = ready.send(report);
        let ended = worker.map_or(Ok(()), Worker::run);
        if let Err(error) = ended {
            tracing::error!("worker {id} stops: its ring failed: {error}");
        }
        drop(guard);
    })
}

/// What the kernel knows the thread of a worker by.
pub(crate) fn thread_name(id: WorkerId) -> String {
    format!("worker-{id}")
}

/// What may still know of a leased port when its connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PortUse {
    /// Nobody: it may be leased again at once.
    Over,
    /// The server, the network or another socket of this host: it rests first.
    Lingering,
}

/// A service that a reload has taken out: what is open of it may finish.
#[derive(Clone, Copy, Debug)]
struct GoneService {
    service: ServiceId,
    /// When what is left of it ends.
    due: Now,
}

struct Worker {
    shared: Arc<Shared>,
    id: WorkerId,
    settings: WorkerSettings,
    ring: Ring,
    snapshot: Arc<Snapshot>,
    /// Of the snapshot's generation.
    tls: Arc<TlsContexts>,
    now: Now,
    /// The same in microseconds, for what is measured.
    now_us: u64,
    /// Of a worker that never sleeps, since when it has had something to do; `None` while it has not.
    busy_since: Option<Instant>,
    /// Of one that sleeps, when its CPU time is looked at again.
    cpu_look_us: u64,
    doors: Doors,
    packets: Option<Packets>,
    relays: Slab<Relay>,
    /// Those that wait for a place on a server.
    queued: Queued,
    datagrams: Datagrams,
    chunks: Chunks,
    multishots: Multishots<(Key, Side)>,
    gathers: Gathers<(Key, Side)>,
    /// TCP connections first, by slot, then UDP sessions.
    wheel: TimerWheel,
    pipes: Pipes,
    resting: Option<(Arc<SnatMaps>, SnatRest)>,
    /// Paths whose pump had its turn and has more to move.
    later: VecDeque<(Key, Side)>,
    /// Paths that wait for buffers.
    starved: VecDeque<(Key, Side)>,
    /// The way to the pool, where there is one.
    hatch: Option<Hatch<Box<PooledHandshake>>>,
    /// Handshakes whose next step waits.
    waiting: Waiting,
    /// How often one is done.
    pace: Pace,
    /// Legs of connections with TLS that wait for buffers.
    starved_records: VecDeque<(Key, Side)>,
    /// Chunks that wait for a buffer to be sealed into.
    unsealed: VecDeque<(Key, Side, Chunk, bool)>,
    /// By outgoing buffer.
    senders: Senders,
    /// Legs in HTTP mode that wait for a buffer to send from.
    unsent: VecDeque<(Key, Side)>,
    /// Clients' connections of HTTP/2 whose streams have said something.
    woken: Woken,
    /// Connections to real servers that wait for the next client.
    pool: ServerPool,
    /// Scratch for what a turn of an exchange makes.
    output: Output,
    /// Scratch for what of it lies in several places, empty between turns.
    gathered: Vec<u8>,
    /// What connections with TLS keep of records of which only a part has come.
    kept: KeptBytes,
    /// When those are looked at next whose buffers others wait for, while somebody does.
    slow_look: Option<Now>,
    /// Connections that the snapshot at hand ends, as far as they have not ended yet.
    lost: Vec<Key>,
    /// Questions about its sessions that it is about to answer.
    walks: Walks,
    /// Services that a reload has taken out, as far as somebody may still be served by them.
    gone: Vec<GoneService>,
    /// Since when the worker accepts nothing any more.
    stopping: Option<Now>,
    drain_look: Now,
    /// The generation whose moves were reported.
    moved: Generation,
    /// Of the steering programs that the kernel has.
    steered: u64,
    /// When it is asked again to take them.
    resteer_at: Option<Now>,
    /// Scratch, empty between events.
    ops: Vec<Op>,
    /// Scratch for the first bytes of a client.
    first_bytes: Box<[u8]>,
}

impl Worker {
    fn new(
        shared: Arc<Shared>,
        id: WorkerId,
        cpu: usize,
        entrances: Entrances,
        settings: WorkerSettings,
    ) -> io::Result<Worker> {
        if !core_affinity::set_for_current(core_affinity::CoreId { id: cpu }) {
            return Err(io::Error::other(format!("the kernel does not let a thread run on CPU {cpu} alone")));
        }
        let buffers = u16::try_from(settings.buffers).unwrap_or(u16::MAX);
        let mut ring = Ring::new(RingSettings {
            entries: RING_ENTRIES,
            stream_buffers: buffers,
            stream_buffer_bytes: settings.buffer_bytes,
            datagram_buffers: DATAGRAM_BUFFERS,
            records: (settings.record_buffers > 0).then(|| record_settings(settings.record_buffers)),
        })
        .map_err(|error| explain_ring(&error))?;
        let now = shared.now();
        let records = ring.records_count();
        if settings.http_buffers > 0 {
            ring.reserve_outgoing(settings.http_buffers, OUTGOING_BYTES)?;
        }
        let senders = ring.outgoing_buffers().map_or(0, |buffers| usize::from(buffers.count()));
        let InForce { snapshot, tls, openings } = shared.in_force();
        let timers = settings.connections_max as usize + settings.udp_sessions_max as usize;
        let mut worker = Worker {
            ring,
            now,
            doors: Doors::new(entrances.listeners, openings)?,
            now_us: now.0.saturating_mul(1000),
            busy_since: None,
            cpu_look_us: 0,
            packets: settings
                .plane
                .map(|plane| {
                    let mut packets = Packets::new(entrances.ports, entrances.inboxes, &plane, &snapshot, &shared, now);
                    if let Some(burst) = entrances.burst {
                        packets.ports.use_burst(burst);
                    }
                    if let Some((memory, settings)) = entrances.fast {
                        packets.plane.use_fast_path(memory, settings);
                    }
                    if let Some(inheritance) = &entrances.inheritance {
                        packets.inherit(inheritance, &shared, shared.seat(id), now)?;
                    }
                    Ok::<_, io::Error>(packets)
                })
                .transpose()?,
            relays: Slab::new(settings.connections_max),
            queued: Queued::default(),
            datagrams: Datagrams::new(settings.udp_sessions_max),
            chunks: Chunks::new(usize::from(buffers) + records),
            multishots: Multishots::new(usize::from(buffers)),
            gathers: Gathers::none(),
            wheel: TimerWheel::new(timers, now),
            pipes: Pipes::new(settings.pipes_max),
            resting: None,
            later: VecDeque::new(),
            starved: VecDeque::new(),
            hatch: entrances.hatch,
            waiting: Waiting::default(),
            pace: Pace::default(),
            starved_records: VecDeque::new(),
            unsealed: VecDeque::new(),
            senders: vec![None; senders].into_boxed_slice(),
            unsent: VecDeque::new(),
            woken: Woken::new(),
            pool: ServerPool::default(),
            output: Output::default(),
            gathered: Vec::new(),
            kept: KeptBytes::default(),
            slow_look: None,
            lost: Vec::new(),
            walks: Walks::default(),
            gone: Vec::new(),
            stopping: None,
            drain_look: now,
            moved: Generation(0),
            steered: 0,
            resteer_at: None,
            ops: Vec::new(),
            first_bytes: vec![0; HELLO_BYTES_MAX].into_boxed_slice(),
            snapshot,
            tls,
            shared,
            id,
            settings,
        };
        let seat = worker.shared.seat(id);
        worker.ring.await_ready_many(seat.wake_fd(), Readiness::Readable, Token::Wake.pack())?;
        worker.arm_doors()?;
        worker.arm_packets()?;
        worker.shared.report_adopted(id, worker.snapshot.generation);
        Ok(worker)
    }

    /// Breathes until everything has ended.
    fn run(mut self) -> io::Result<()> {
        let mut completions = Vec::with_capacity(COMPLETIONS_MAX);
        let mut fired = Vec::with_capacity(TIMERS_MAX);
        while !self.breathe(&mut completions, &mut fired)? {}
        // What was queued last, closing sockets among it, still has to reach the kernel.
        self.ring.enter(Wait::Poll)
    }

    /// One turn; says whether it was the last.
    fn breathe(&mut self, completions: &mut Vec<Completion>, fired: &mut Vec<u32>) -> io::Result<bool> {
        let start = Instant::now();
        if let Some(on_breath) = self.settings.on_breath {
            on_breath();
        }
        self.now = self.shared.at(start);
        self.now_us = self.shared.micros_at(start);
        self.count_busy(start);
        self.adopt()?;
        self.end_lost()?;
        self.follow_phase()?;
        self.close_left_doors()?;
        self.end_gone()?;
        // First, so that a path that has its turn among the completions gets no second one in the same breath.
        self.pump_rest()?;
        self.follow_steering();
        let packets = self.move_packets()?;
        self.ring.take(completions, COMPLETIONS_MAX);
        let taken = completions.len();
        let mut completions = completions.drain(..).peekable();
        while let Some(completion) = completions.next() {
            // The end of a stream together with its last bytes, so that they can leave together, too.
            let last = completions.next_if(|next| next.is_end_behind(&completion)).is_some();
            self.complete(completion, last)?;
            self.bound_kept()?;
        }
        self.end_overdue_gathers()?;
        let all_fired = self.wheel.advance(self.now, TIMERS_MAX, fired);
        for key in fired.drain(..) {
            self.timer(key)?;
        }
        self.feed_starved()?;
        self.feed_starved_records()?;
        self.seal_waiting()?;
        self.send_unsent()?;
        self.serve_woken()?;
        self.end_slow()?;
        self.look_at_idle()?;
        self.reclaim_from_pool()?;
        self.shake()?;
        self.answer_questions()?;
        self.wake_rested();
        self.take_held_datagrams()?;
        if self.stopping.is_none() && self.doors.next_due().is_some_and(|due| due <= self.now) {
            self.arm_doors()?;
        }
        // What was adopted among the completions is not said to have moved before the next breath. Flows that are still to come wake us.
        let is_settled = self.moved == self.snapshot.generation || self.is_moving();
        let idle = packets == Left::Nothing
            && is_settled
            && all_fired
            && taken < COMPLETIONS_MAX
            && !self.can_feed()
            && !self.can_feed_records()
            && !self.can_seal()
            && !self.can_send_unsent()
            && self.woken.is_empty()
            && self.lost.is_empty()
            && self.walks.is_empty()
            && !self.may_shake();
        let wait = self.wait(idle);
        let has_worked = self.take_has_moved() || taken > 0 || !idle;
        self.count_breath(start, taken, wait, has_worked);
        if self.is_over() {
            return Ok(true);
        }
        self.ring.enter(self.lie_down(wait))?;
        Ok(false)
    }

    /// Whether nothing is left to do, and nothing in flight holds a port.
    fn is_over(&self) -> bool {
        if self.stopping.is_none() {
            return false;
        }
        // The end, not the drain before it: what the end has to do begins then.
        let is_ending = self.shared.phase() == Phase::Ending;
        let waited = |ms| is_ending && self.now.ms_since(self.shared.phase_since()) >= ms;
        let empty = self.relays.len() == 0 && self.datagrams.sessions.len() == 0;
        let told = !self.has_overdue_flows() || waited(FLOWS_MS);
        empty && told && (!(self.doors.any_armed() || self.carries_flows()) || waited(DOORS_MS))
    }

    /// Flows of the packet plane, over or not.
    fn flows(&self) -> u32 {
        self.packets.as_ref().map_or(0, Packets::flows)
    }

    /// Handles a completion, `last` if the stream that it received from has ended; says whether it came from outside, not from an operation of ours that ends by itself.
    fn complete(&mut self, completion: Completion, last: bool) -> io::Result<()> {
        match Token::unpack(completion.token()) {
            Token::Accept(index) => self.accepted(index, completion),
            Token::Await(key, from) => match self.relays.get(key).and_then(|relay| relay.looking) {
                Some(looking) => self.looked(key, looking),
                None => self.drive(key, Event::Ready { from }),
            },
            Token::Connect(key) => self.connected(key, completion.result()),
            Token::Frames(key) => {
                self.pace.note_others(self.now);
                self.frames_announced(key, &completion)
            }
            Token::Listen(index) => {
                self.pace.note_others(self.now);
                self.datagram_arrived(index, &completion)
            }
            Token::Nothing => Ok(()),
            Token::Receive(key, from) => self.received(key, from, &completion, last),
            Token::Reply(key) => {
                self.pace.note_others(self.now);
                self.reply_arrived(key, &completion)
            }
            Token::Sealed(buffer) => self.sealed_sent(buffer, completion.result()),
            Token::Send(key, to) => self.sent(key, to, completion.result()),
            Token::Wake => {
                let seat = self.shared.seat(self.id);
                seat.clear_wake();
                if !completion.more() {
                    self.ring.await_ready_many(seat.wake_fd(), Readiness::Readable, Token::Wake.pack())?;
                }
                // A wake since the breath began was taken back with the others: look now, or sleep through it.
                self.adopt()?;
                self.follow_network()?;
                self.follow_steering();
                self.take_from_pool()?;
                self.give_room()?;
                self.answer_calls()?;
                self.take_questions()?;
                self.follow_phase()
            }
        }
    }

    fn timer(&mut self, timer: u32) -> io::Result<()> {
        match timer.checked_sub(self.settings.connections_max) {
            None => match self.relays.key_at(timer) {
                Some(key) => self.relay_timer(key),
                None => Ok(()),
            },
            Some(index) => match self.datagrams.sessions.key_at(index) {
                Some(key) => self.datagram_timer(key),
                None => Ok(()),
            },
        }
    }

    /// Serves the newest snapshot from here on.
    fn adopt(&mut self) -> io::Result<()> {
        let Some(newer) = self.shared.newer_than(self.snapshot.generation) else { return Ok(()) };
        let before = std::mem::replace(&mut self.snapshot, newer.snapshot);
        let tls_before = std::mem::replace(&mut self.tls, newer.tls);
        self.reserve_for_http();
        self.find_gone(&before);
        self.follow_openings(newer.openings, &before, &tls_before)?;
        self.adopt_in_plane();
        self.retire_idle()?;
        self.find_lost();
        self.leave_draining_servers()?;
        self.end_datagrams_of_lost_servers()?;
        self.requeue()?;
        self.shared.report_adopted(self.id, self.snapshot.generation);
        Ok(())
    }

    /// The first service in HTTP mode needs buffers for what is made here; those for TLS would do.
    fn reserve_for_http(&mut self) {
        if self.ring.outgoing_buffers().is_some() || self.snapshot.each_service().all(|service| service.http.is_none())
        {
            return;
        }
        let count = self.settings.buffers.min(OUTGOING_BUFFERS_MAX) as u16;
        match self.ring.reserve_outgoing(count, OUTGOING_BYTES) {
            Ok(()) => self.senders = vec![None; usize::from(count)].into_boxed_slice(),
            // Its clients are refused, and it is tried again with the next generation.
            Err(error) => tracing::error!("worker {}: no memory for HTTP mode: {error}", self.id),
        }
    }

    /// Notes which services of `before` the snapshot at hand has no more, and which are there again.
    fn find_gone(&mut self, before: &Snapshot) {
        let Worker { snapshot, gone, now, .. } = self;
        gone.retain(|gone| snapshot.service(gone.service).is_none());
        let left = before.each_service().filter(|service| service.place == service.id);
        for service in left.filter(|service| snapshot.service(service.id).is_none()) {
            gone.push(GoneService { service: service.id, due: *now + service.drain_timeout_ms });
        }
    }

    /// Ends what has had the drain timeout of its service since that was taken out.
    fn end_gone(&mut self) -> io::Result<()> {
        let now = self.now;
        let over: Vec<ServiceId> = self.gone.iter().filter(|gone| gone.due <= now).map(|gone| gone.service).collect();
        if over.is_empty() {
            return Ok(());
        }
        let is_over = |service: &Service| over.contains(&service.id);
        let relays = self.relays.iter().filter(|(_, relay)| is_over(relay.service()));
        // A few at a time: each costs some system calls, and the others wait for them.
        let relays: Vec<Key> = relays.map(|(key, _)| key).take(LOST_MAX).collect();
        let sessions = self.datagrams.sessions.iter().filter(|(_, session)| is_over(session.service()));
        let sessions: Vec<Key> = sessions.map(|(key, _)| key).take(LOST_MAX).collect();
        let is_more = relays.len().max(sessions.len()) == LOST_MAX;
        for key in relays {
            self.end_relay(key, Termination::DrainEnded)?;
        }
        for key in sessions {
            self.end_datagram_session(key, Termination::DrainEnded)?;
        }
        let Worker { gone, doors, .. } = self;
        gone.retain_mut(|gone| {
            // Somebody may still come in by a listener that leaves.
            let stays = gone.due > now || is_more || doors.has_left_of(gone.service);
            if gone.due <= now {
                gone.due = now + if is_more { 1 } else { DRAIN_LOOK_MS };
            }
            stays
        });
        Ok(())
    }

    /// Notes which connections the snapshot at hand ends. They end a few at a time: a server may have had half of all.
    fn find_lost(&mut self) {
        self.lost.clear();
        let loses = |service: &Service| {
            let loses = |target: &Target| service.drops_flows_of(target) || target.lost_ports().next().is_some();
            service.targets.iter().any(|target| target.admin == AdminState::Halt || loses(target))
        };
        if self.snapshot.each_service().any(|service| loses(service)) {
            let lost = self.relays.iter().filter(|(_, relay)| self.lost_by(relay).is_some()).map(|(key, _)| key);
            self.lost = lost.collect();
        }
    }

    /// Ends some of those.
    fn end_lost(&mut self) -> io::Result<()> {
        for _ in 0..self.lost.len().min(LOST_MAX) {
            let Some(key) = self.lost.pop() else { break };
            let Some(termination) = self.relays.get(key).and_then(|relay| self.lost_by(relay)) else { continue };
            self.drive(key, Event::End(termination))?;
        }
        Ok(())
    }

    /// How the snapshot at hand ends this connection, if it does.
    fn lost_by(&self, relay: &Relay) -> Option<Termination> {
        let service = self.snapshot.service(relay.service().place)?;
        let (_, target) = service.target_of(relay.server()?)?;
        match target.admin {
            AdminState::Halt => Some(target.halted.termination()),
            // One that is still being dialled goes to another server after connect_timeout.
            _ if relay.is_opened() && service.drops_flows_at(target, relay.service_port()) => {
                Some(Termination::ServerDown)
            }
            _ => None,
        }
    }

    /// The same of one that was dialled by an older snapshot.
    fn lost_since_dialled(&self, key: Key) -> Option<Termination> {
        let relay = self.relays.get(key)?;
        let is_current = |service| Arc::ptr_eq(service, relay.service());
        if self.snapshot.service(relay.service().place).is_some_and(is_current) {
            return None;
        }
        self.lost_by(relay)
    }

    /// Stops accepting when told, and ends what has had its drain timeout.
    fn follow_phase(&mut self) -> io::Result<()> {
        let phase = self.shared.phase();
        if phase == Phase::Running {
            return Ok(());
        }
        if self.stopping.is_none() {
            self.stopping = Some(self.shared.phase_since());
            self.close_doors()?;
            // Where another process serves the next connection, nobody has to be sent away between two requests, just as the next one may be on its way:
            // whoever comes with one is told with the response that it was the last.
            if !self.shared.is_handed() {
                self.drain_conversations()?;
            }
            self.drain_hubs()?;
            self.close_all_idle()?;
        }
        if phase == Phase::Draining && self.now < self.drain_look {
            return Ok(());
        }
        self.drain_look = self.now + DRAIN_LOOK_MS;
        let drained_ms = self.now.ms_since(self.stopping.unwrap_or(self.now));
        let over = |service: &Service| phase == Phase::Ending || drained_ms >= service.drain_timeout_ms;
        let relays: Vec<Key> =
            self.relays.iter().filter(|(_, relay)| over(relay.service())).map(|(key, _)| key).collect();
        let sessions = self.datagrams.sessions.iter();
        let datagrams: Vec<Key> = sessions.filter(|(_, session)| over(session.service())).map(|(key, _)| key).collect();
        for key in relays {
            self.end_relay(key, Termination::DrainEnded)?;
        }
        for key in datagrams {
            self.end_datagram_session(key, Termination::DrainEnded)?;
        }
        self.end_drained_flows(over);
        Ok(())
    }

    /// Ends a connection, wherever it is.
    fn end_relay(&mut self, key: Key, termination: Termination) -> io::Result<()> {
        let Some(relay) = self.relays.get(key) else { return Ok(()) };
        let at_entrance = relay.entrance.is_some() || relay.looking.is_some();
        match (at_entrance, relay.closing) {
            (true, _) => self.turn_away(key, termination),
            (false, Some(close)) => self.close_relay(key, close.at_once()),
            (false, None) => self.drive(key, Event::End(termination)),
        }
    }

    /// Goes on with pumps that had their turn in the last breath.
    fn pump_rest(&mut self) -> io::Result<()> {
        for _ in 0..self.later.len() {
            let Some((key, from)) = self.later.pop_front() else { break };
            self.pump_later(key, from)?;
        }
        Ok(())
    }

    fn feed_starved(&mut self) -> io::Result<()> {
        let fed = self.starved.len().min(self.ring.stream_buffers().free()).min(FED_MAX);
        for _ in 0..fed {
            let Some((key, from)) = self.starved.pop_front() else { break };
            self.drive(key, Event::BuffersFree(from))?;
        }
        Ok(())
    }

    /// Whether a path waits for a buffer that is free: those fed in this breath may be idle and never complete anything.
    fn can_feed(&mut self) -> bool {
        !self.starved.is_empty() && self.ring.stream_buffers().free() > 0
    }

    /// Gives a lease back.
    fn return_lease(&mut self, service: &Service, lease: Option<SnatLease>, used: PortUse) {
        let (Some(lease), ServiceSource::Pool(pool)) = (lease, &service.source) else { return };
        if used == PortUse::Over || pool.rest_ms() == 0 {
            return pool.release(lease);
        }
        let (_, resting) = self.resting.get_or_insert_with(|| (Arc::clone(pool.maps()), SnatRest::new(RESTING_MAX)));
        if let Some(early) = resting.rest(lease, self.now, pool.rest_ms()) {
            pool.release(early);
        }
    }

    fn wake_rested(&mut self) {
        let Some((maps, resting)) = &mut self.resting else { return };
        while let Some(lease) = resting.due(self.now) {
            maps.release(lease);
        }
    }

    fn wait(&self, idle: bool) -> Wait {
        if !idle || !self.later.is_empty() || self.settings.poll == Poll::Busy {
            return Wait::Poll;
        }
        let rested = self.resting.as_ref().and_then(|(_, resting)| resting.next_due());
        let drain = self.stopping.map(|_| self.drain_look);
        let packets = self.packets.as_ref().and_then(Packets::next_due);
        let gathers = self.gathers.next_due();
        let gone = self.gone.iter().map(|gone| gone.due).min();
        let looks = [self.slow_look, self.pool.next_look(), self.doors.next_look(), gone];
        let due = [self.wheel.next_due(), self.doors.next_due(), rested, drain, packets, gathers];
        let due = due.into_iter().chain(looks).flatten().min();
        // One millisecond more: a clock that rounds down must have passed the deadline when we wake.
        let sleep = due.map_or(SLEEP_MAX, |due| Duration::from_millis(due.ms_since(self.now) + 1));
        let rest = self.pace.rest().filter(|_| !self.waiting.is_empty()).unwrap_or(SLEEP_MAX);
        Wait::Sleep(sleep.min(rest))
    }

    /// Counts the breath before this one, if there was something to do in it.
    fn count_busy(&mut self, start: Instant) {
        if let Some(since) = self.busy_since.take() {
            self.shared
                .seat(self.id)
                .add(WorkerCounter::BusyMicroseconds, start.duration_since(since).as_micros() as u64);
        }
    }

    fn count_breath(&mut self, start: Instant, completions: usize, wait: Wait, has_worked: bool) {
        let seat = self.shared.seat(self.id);
        seat.add(WorkerCounter::Breaths, 1);
        seat.add(WorkerCounter::Completions, completions as u64);
        seat.raise(WorkerCounter::Submissions, self.ring.submitted());
        seat.set_sessions(self.relays.len() + self.datagrams.sessions.len() + self.flows());
        if matches!(wait, Wait::Sleep(_)) {
            seat.add(WorkerCounter::Sleeps, 1);
        }
        seat.raise(WorkerCounter::BreathMaxMicroseconds, start.elapsed().as_micros() as u64);
        if self.settings.poll == Poll::Busy {
            // What it submits next belongs to it, too.
            self.busy_since = has_worked.then_some(start);
        } else if self.now_us >= self.cpu_look_us {
            // Most of the work of such a worker is the kernel's, in the call that also sleeps: only the CPU's clock tells them apart.
            seat.raise(WorkerCounter::BusyMicroseconds, thread_cpu_us());
            self.cpu_look_us = self.now_us + CPU_LOOK_US;
        }
    }
}

/// What an error of a socket call means for the connection.
fn termination_of(error: &io::Error) -> Termination {
    match Cause::of(error) {
        Cause::AddressTaken => Termination::OutOfSourcePorts,
        Cause::OutOfDescriptors => Termination::OutOfDescriptors,
        _ => Termination::SystemRefused,
    }
}

fn explain_ring(error: &io::Error) -> io::Error {
    let next = match error.raw_os_error() {
        Some(1 | 13) => {
            "io_uring is forbidden here: set the sysctl kernel.io_uring_disabled to 0, or allow it in the seccomp profile"
        }
        Some(12) => "not enough memory for it: lower limits.buffers or limits.buffer_bytes",
        Some(22 | 38) => "it needs Linux 6.1 or later",
        _ => "see io_uring_setup(2)",
    };
    io::Error::new(error.kind(), format!("the kernel gives this worker no io_uring ({error}); {next}"))
}
