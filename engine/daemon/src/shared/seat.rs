//! One worker's seat in the shared state: its counters, the generation that it serves, and how it is woken.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use towpath_core::counters::{CounterPage, ServiceCounter, Termination, WorkerCounter};
use towpath_core::http::{BadRequest, BadResponse};
use towpath_core::http2::BadStream;
use towpath_core::packet::DropReason;
use towpath_core::passive::Met;
use towpath_core::plane::{PlaneCounter, PlaneCounts};
use towpath_core::{Generation, RealServerId, ServiceId, WorkerId};
use towpath_sys::event::EventFd;

use crate::questions::Question;

/// What one worker counts for one service.
pub struct ServicePage {
    cells: CounterPage,
}

impl ServicePage {
    fn new() -> ServicePage {
        ServicePage { cells: CounterPage::new(bad_stream_cell(BadStream::ALL.len()) + SLACK_CELLS) }
    }

    /// Adds `n`. Only the seat's own worker may call this.
    #[inline]
    pub fn add(&self, counter: ServiceCounter, n: u64) {
        self.cells.add(counter as usize, n);
    }

    /// Counts one end of a connection or session. Only the seat's own worker may call this.
    #[inline]
    pub fn count_end(&self, termination: Termination) {
        self.cells.add(ServiceCounter::ALL.len() + termination as usize, 1);
    }

    /// Counts one refused request. Only the seat's own worker may call this.
    pub fn count_bad_request(&self, reason: BadRequest) {
        self.cells.add(bad_request_cell(reason as usize), 1);
    }

    /// Counts one refused response. Only the seat's own worker may call this.
    pub fn count_bad_response(&self, reason: BadResponse) {
        self.cells.add(bad_response_cell(reason as usize), 1);
    }

    /// Counts one refused stream or connection of HTTP/2. Only the seat's own worker may call this.
    pub fn count_bad_stream(&self, reason: BadStream) {
        self.cells.add(bad_stream_cell(reason as usize), 1);
    }

    /// The value as of about now.
    pub fn read(&self, counter: ServiceCounter) -> u64 {
        self.cells.read(counter as usize)
    }

    /// How many ended so, as of about now.
    pub fn ended(&self, termination: Termination) -> u64 {
        self.cells.read(ServiceCounter::ALL.len() + termination as usize)
    }

    /// How many requests were refused so, as of about now.
    pub fn bad_requests(&self, reason: BadRequest) -> u64 {
        self.cells.read(bad_request_cell(reason as usize))
    }

    /// How many responses were refused so, as of about now.
    pub fn bad_responses(&self, reason: BadResponse) -> u64 {
        self.cells.read(bad_response_cell(reason as usize))
    }

    /// How many streams and connections of HTTP/2 were refused so, as of about now.
    pub fn bad_streams(&self, reason: BadStream) -> u64 {
        self.cells.read(bad_stream_cell(reason as usize))
    }
}

/// What a worker's packet rings count beside what its packet plane does: frames that never came there, or never left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingCounter {
    /// Frames that the worker made and had no room for.
    MadeTooMany,
    /// Frames passed over because they were for another station.
    ReceivedForeign,
    /// Frames that came while the ring was full.
    ReceivedLost,
    /// Frames passed over because they carry the tag of a VLAN that no port has.
    ReceivedTagged,
    /// Frames passed over because they were larger than a slot.
    ReceivedTruncated,
    /// Frames passed over because they are to be cut in a way that is not known here.
    ReceivedUnknown,
    /// Frames refused because the interface is down or gone.
    SendDown,
    /// Frames refused because a queue was full.
    SendFull,
    /// Frames refused for another reason.
    SendRefused,
    /// Frames refused because they are larger than the MTU.
    SendTooLarge,
}

impl RingCounter {
    /// Every variant, in the order of the page.
    pub const ALL: &'static [RingCounter] = &[
        RingCounter::MadeTooMany,
        RingCounter::ReceivedForeign,
        RingCounter::ReceivedLost,
        RingCounter::ReceivedTagged,
        RingCounter::ReceivedTruncated,
        RingCounter::ReceivedUnknown,
        RingCounter::SendDown,
        RingCounter::SendFull,
        RingCounter::SendRefused,
        RingCounter::SendTooLarge,
    ];

    /// The word used in status.
    pub fn label(self) -> &'static str {
        match self {
            RingCounter::MadeTooMany => "made_too_many",
            RingCounter::ReceivedForeign => "received_foreign",
            RingCounter::ReceivedLost => "received_lost",
            RingCounter::ReceivedTagged => "received_tagged",
            RingCounter::ReceivedTruncated => "received_truncated",
            RingCounter::ReceivedUnknown => "received_unknown",
            RingCounter::SendDown => "send_down",
            RingCounter::SendFull => "send_full",
            RingCounter::SendRefused => "send_refused",
            RingCounter::SendTooLarge => "send_too_large",
        }
    }
}

/// What a worker is called for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Somebody waits for a place here; connections that hold one and do nothing are to be given up.
    Room(ServiceId),
    /// Its client is the first of those that wait for a place here, and there may be one.
    Turn(ServiceId),
}

/// Cells of slack behind a small page, so that two workers' pages that lie side by side share no cache line.
const SLACK_CELLS: usize = 16;

/// One worker's place. The worker writes, everyone reads.
pub struct Seat {
    id: WorkerId,
    cpu: usize,
    wake: EventFd,
    worker: CounterPage,
    services: Box<[OnceLock<ServicePage>]>,
    opened: CounterPage,
    failed: CounterPage,
    responses: CounterPage,
    errors: CounterPage,
    idle: CounterPage,
    /// A real server that another worker needs a place on, its id and one; 0 = none.
    wanted_room: AtomicU32,
    /// What it was called for and has not heard yet, each once.
    calls: Mutex<Vec<Call>>,
    /// What it was asked and has not heard yet.
    questions: Mutex<Vec<Question>>,
    packets: CounterPage,
    adopted: AtomicU64,
    moved: AtomicU64,
    sessions: AtomicU32,
    flows: AtomicU32,
    ended: AtomicBool,
}

impl Seat {
    pub(super) fn new(id: WorkerId, cpu: usize, services_max: usize, real_servers_max: usize) -> io::Result<Seat> {
        Ok(Seat {
            id,
            cpu,
            wake: EventFd::new()?,
            worker: CounterPage::new(WorkerCounter::ALL.len() + SLACK_CELLS),
            services: (0..services_max).map(|_| OnceLock::new()).collect(),
            opened: CounterPage::new(real_servers_max),
            failed: CounterPage::new(real_servers_max),
            responses: CounterPage::new(real_servers_max),
            errors: CounterPage::new(real_servers_max),
            idle: CounterPage::new(real_servers_max),
            wanted_room: AtomicU32::new(0),
            calls: Mutex::new(Vec::new()),
            questions: Mutex::new(Vec::new()),
            packets: CounterPage::new(
                PlaneCounter::ALL.len() + RingCounter::ALL.len() + DropReason::ALL.len() + SLACK_CELLS,
            ),
            adopted: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            sessions: AtomicU32::new(0),
            flows: AtomicU32::new(0),
            ended: AtomicBool::new(false),
        })
    }

    /// The worker that sits here.
    pub fn id(&self) -> WorkerId {
        self.id
    }

    /// The CPU that it is pinned to.
    pub fn cpu(&self) -> usize {
        self.cpu
    }

    /// Adds to one of the worker's own counters. Only the seat's own worker may call this.
    #[inline]
    pub fn add(&self, counter: WorkerCounter, n: u64) {
        self.worker.add(counter as usize, n);
    }

    /// Raises one of the worker's own counters to `value` if it is lower. Only the seat's own worker may call this.
    #[inline]
    pub fn raise(&self, counter: WorkerCounter, value: u64) {
        self.worker.raise(counter as usize, value);
    }

    /// A counter of the worker, as of about now.
    pub fn read(&self, counter: WorkerCounter) -> u64 {
        self.worker.read(counter as usize)
    }

    /// The page of one service, made by its first use: by the worker's own thread, so near to it.
    #[inline]
    pub fn service_page(&self, service: ServiceId) -> &ServicePage {
        self.services[service.index()].get_or_init(ServicePage::new)
    }

    /// The page of one service, for a reader; `None` while the worker has counted nothing for it.
    pub fn peek_service(&self, service: ServiceId) -> Option<&ServicePage> {
        self.services.get(service.index())?.get()
    }

    /// Counts one connection or session opened on `server`. Only the seat's own worker may call this.
    #[inline]
    pub fn count_opened(&self, server: RealServerId) {
        self.opened.add(server.index(), 1);
    }

    /// Connections and sessions that this worker has opened on `server`.
    pub fn opened(&self, server: RealServerId) -> u64 {
        self.opened.read(server.index())
    }

    /// Counts one connect to `server` that it refused or did not answer, or whose TLS it failed. Only the seat's own worker may call this.
    #[inline]
    pub fn count_failed(&self, server: RealServerId) {
        self.failed.add(server.index(), 1);
    }

    /// Counts one response of `server` in HTTP mode, or that none came in time (504). Only the seat's own worker may call this.
    #[inline]
    pub fn count_response(&self, server: RealServerId, status: u16) {
        self.responses.add(server.index(), 1);
        if status >= 500 {
            self.errors.add(server.index(), 1);
        }
    }

    /// What clients have met at `server` by this worker.
    pub fn met(&self, server: RealServerId) -> Met {
        let at = server.index();
        Met {
            opened: self.opened.read(at),
            failed: self.failed.read(at),
            responses: self.responses.read(at),
            errors: self.errors.read(at),
        }
    }

    /// Counts shared connections to `server` that wait for the next client. Only the seat's own worker may call this.
    #[inline]
    pub fn note_idle(&self, server: RealServerId, change: i32) {
        self.idle.change(server.index(), change);
    }

    /// Shared connections of this worker to `server` that wait for the next client.
    pub fn idle(&self, server: RealServerId) -> u32 {
        u32::try_from(self.idle.read(server.index())).unwrap_or(u32::MAX)
    }

    /// Asks the worker to close one of those. Of two that ask at once one has to ask again, with its next connection.
    pub fn want_room(&self, server: RealServerId) {
        self.wanted_room.store(u32::from(server.0) + 1, Ordering::Release);
        self.wake();
    }

    /// What was asked for last. Only the seat's own worker may call this.
    pub fn take_wanted_room(&self) -> Option<RealServerId> {
        let wanted = self.wanted_room.swap(0, Ordering::AcqRel).checked_sub(1)?;
        u16::try_from(wanted).ok().map(RealServerId)
    }

    /// Calls the worker, unless it is called for that already.
    pub fn call(&self, call: Call) {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if calls.contains(&call) {
            return;
        }
        calls.push(call);
        drop(calls);
        self.wake();
    }

    /// What it was called for. Only the seat's own worker may call this.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks the worker something, which it answers in its own time.
    pub(crate) fn ask(&self, question: Question) {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner).push(question);
        self.wake();
    }

    /// What it was asked. Only the seat's own worker may call this.
    pub(crate) fn take_questions(&self) -> Vec<Question> {
        std::mem::take(&mut *self.questions.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The snapshot that the worker serves.
    pub fn adopted(&self) -> Generation {
        Generation(self.adopted.load(Ordering::Acquire))
    }

    pub(super) fn set_adopted(&self, generation: Generation) {
        self.adopted.store(generation.0, Ordering::Release);
    }

    /// The generation whose moves to other workers are made.
    pub fn moved(&self) -> Generation {
        Generation(self.moved.load(Ordering::Acquire))
    }

    pub(super) fn set_moved(&self, generation: Generation) {
        self.moved.store(generation.0, Ordering::Release);
    }

    /// Says how many sessions the worker holds. Only the seat's own worker may call this.
    #[inline]
    pub fn set_sessions(&self, sessions: u32) {
        self.sessions.store(sessions, Ordering::Relaxed);
    }

    /// Sessions that the worker holds, as of about now.
    pub fn sessions(&self) -> u32 {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Copies what the worker's packet plane has counted. Only the seat's own worker may call this.
    pub fn note_packets(&self, counts: &PlaneCounts, flows: usize) {
        for &counter in PlaneCounter::ALL {
            self.packets.raise(counter as usize, counts.read(counter));
        }
        for &reason in DropReason::ALL {
            self.packets.raise(drop_cell(reason), counts.dropped(reason));
        }
        self.flows.store(u32::try_from(flows).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// Copies one of the counts of the worker's packet rings. Only the seat's own worker may call this.
    pub fn note_ring(&self, counter: RingCounter, value: u64) {
        self.packets.raise(ring_cell(counter), value);
    }

    /// A counter of the worker's packet plane, as of a moment ago.
    pub fn plane_counter(&self, counter: PlaneCounter) -> u64 {
        self.packets.read(counter as usize)
    }

    /// A counter of the worker's packet rings, as of a moment ago.
    pub fn ring_counter(&self, counter: RingCounter) -> u64 {
        self.packets.read(ring_cell(counter))
    }

    /// Frames that the worker's packet plane has dropped for this reason, as of a moment ago.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.packets.read(drop_cell(reason))
    }

    /// Flows that the worker's packet plane holds, as of a moment ago.
    pub fn flows(&self) -> u32 {
        self.flows.load(Ordering::Relaxed)
    }

    /// Whether the worker's thread has ended.
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    pub(super) fn set_ended(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Gets the worker out of its sleep.
    pub fn wake(&self) {
        self.wake.signal();
    }

    /// Takes back every wake so far. The worker calls it when its ring says that [`Seat::wake_fd`] is readable.
    pub fn clear_wake(&self) -> bool {
        self.wake.clear()
    }

    /// Readable after a wake: the worker's ring polls it.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

fn bad_request_cell(reason: usize) -> usize {
    ServiceCounter::ALL.len() + Termination::ALL.len() + reason
}

fn bad_response_cell(reason: usize) -> usize {
    bad_request_cell(BadRequest::ALL.len()) + reason
}

fn bad_stream_cell(reason: usize) -> usize {
    bad_response_cell(BadResponse::ALL.len()) + reason
}

fn ring_cell(counter: RingCounter) -> usize {
    PlaneCounter::ALL.len() + counter as usize
}

fn drop_cell(reason: DropReason) -> usize {
    PlaneCounter::ALL.len() + RingCounter::ALL.len() + reason as usize
}
