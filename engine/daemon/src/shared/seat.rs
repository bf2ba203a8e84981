//! One worker's seat in the shared state: its counters, the generation that it serves, and how it is woken.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use towpath_core::counters::{CounterPage, ServiceCounter, Termination, WorkerCounter};
use towpath_core::{Generation, RealServerId, ServiceId, WorkerId};
use towpath_sys::event::EventFd;

/// What one worker counts for one service.
pub struct ServicePage {
    cells: CounterPage,
}

impl ServicePage {
    fn new() -> ServicePage {
        ServicePage { cells: CounterPage::new(ServiceCounter::ALL.len() + Termination::ALL.len() + SLACK_CELLS) }
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

    /// The value as of about now.
    pub fn read(&self, counter: ServiceCounter) -> u64 {
        self.cells.read(counter as usize)
    }

    /// How many ended so, as of about now.
    pub fn ended(&self, termination: Termination) -> u64 {
        self.cells.read(ServiceCounter::ALL.len() + termination as usize)
    }
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
    adopted: AtomicU64,
    sessions: AtomicU32,
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
            adopted: AtomicU64::new(0),
            sessions: AtomicU32::new(0),
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

    /// The snapshot that the worker serves.
    pub fn adopted(&self) -> Generation {
        Generation(self.adopted.load(Ordering::Acquire))
    }

    pub(super) fn set_adopted(&self, generation: Generation) {
        self.adopted.store(generation.0, Ordering::Release);
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
