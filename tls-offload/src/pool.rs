//! The TLS pool: threads on cores of their own that take the expensive step of handshakes off the workers.
//!
//! A worker hands work through its hatch and goes on; the work moves to a thread and comes back through the same hatch, and is never shared.
//! Work with a session to resume does not wait behind full handshakes; what has waited too long comes back undone, so that the client is refused
//! rather than answered too late; what the client has left meanwhile comes back undone too.

use std::fmt;
use std::io;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;
use crossbeam_utils::sync::{Parker, Unparker};

/// After so much work with a session to resume, one full handshake goes first, so that they do not starve either.
const RESUMED_IN_A_ROW: u32 = 16;

/// What a pool does.
pub trait Work: Send + 'static {
    /// Does the expensive step, on a thread of the pool. What came of it stays inside.
    fn run(&mut self);
}

impl<W: Work> Work for Box<W> {
    fn run(&mut self) {
        (**self).run();
    }
}

/// What a pool has.
#[derive(Clone, Debug)]
pub struct PoolSettings {
    /// The CPU of each thread; never empty.
    pub cpus: Vec<usize>,
    /// Pins the calling thread to a CPU, and says whether that succeeded.
    pub pin: fn(usize) -> bool,
    /// Workers that hand in work.
    pub workers: usize,
    /// Work of each kind that waits for one worker's sake.
    pub depth_max: usize,
    /// How long work may wait before it is returned undone.
    pub queue_deadline: Duration,
}

/// What kind of handshake work is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandshakeKind {
    /// With a signature.
    Full,
    /// The client offers a session; if it is not taken, the handshake is a full one after all.
    Resumed,
}

/// What became of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkOutcome {
    /// Nobody waited for it any more; it was not done.
    Abandoned,
    /// Done.
    Done,
    /// It waited longer than the deadline; it was not done.
    Late,
}

/// Work that comes back.
#[derive(Debug)]
pub struct Finished<W> {
    /// The work.
    pub work: W,
    /// What became of it.
    pub outcome: WorkOutcome,
    /// How long it waited in the queue.
    pub waited: Duration,
}

/// Work that was taken back before a thread had begun with it.
#[derive(Debug)]
pub struct Reclaimed<W> {
    /// The work.
    pub work: W,
    /// What it was handed in as.
    pub kind: HandshakeKind,
    /// When it was handed in.
    pub since: Instant,
}

/// Kept by who waits for work.
#[derive(Debug)]
pub struct Errand(Arc<AtomicBool>);

impl Errand {
    /// Says that nobody waits any more. The work still comes back, undone if it has not begun.
    pub fn abandon(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How a pool fares, as of about now. All but the first three only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolGauges {
    /// Threads.
    pub threads: usize,
    /// Threads that work just now.
    pub running: usize,
    /// Work that waits.
    pub queued: usize,
    /// Work done.
    pub done: u64,
    /// Work returned because the deadline was over.
    pub late: u64,
    /// Work returned because nobody waited any more.
    pub abandoned: u64,
    /// Work refused because the queue was full.
    pub refused: u64,
    /// Time spent at work, all threads together, in nanoseconds.
    pub busy_ns: u64,
    /// Time that work has waited, in nanoseconds.
    pub waited_ns: u64,
}

/// The pool. Dropped, it ends its threads; what waits then is dropped with it.
pub struct TlsPool<W: Work> {
    hall: Arc<Hall<W>>,
    threads: Vec<JoinHandle<()>>,
}

/// One worker's way to the pool.
pub struct Hatch<W: Work> {
    hall: Arc<Hall<W>>,
    worker: usize,
    /// Work handed in and not taken back.
    outstanding: usize,
}

/// What threads and hatches share.
struct Hall<W> {
    shelves: Box<[Shelf<W>]>,
    bunks: Box<[CachePadded<Bunk>]>,
    queue_deadline: Duration,
    ends: AtomicBool,
    wake: Box<dyn Fn(usize) + Send + Sync>,
}

/// One worker's queues.
struct Shelf<W> {
    full: ArrayQueue<Job<W>>,
    resumed: ArrayQueue<Job<W>>,
    /// As long as both and the threads' hands together: there is always room.
    finished: ArrayQueue<Finished<W>>,
    /// The worker has been woken and has not come yet.
    is_woken: CachePadded<AtomicBool>,
    refused: CachePadded<AtomicU64>,
}

/// One thread's place: where it sleeps, and what it counts.
struct Bunk {
    asleep: AtomicBool,
    unparker: Unparker,
    running: AtomicUsize,
    done: AtomicU64,
    late: AtomicU64,
    abandoned: AtomicU64,
    busy_ns: AtomicU64,
    waited_ns: AtomicU64,
}

struct Job<W> {
    work: W,
    since: Instant,
    abandoned: Arc<AtomicBool>,
}

impl<W: Work> TlsPool<W> {
    /// Starts the threads; `wake` is called on them with a worker's number when work for it is back, once until that worker takes. Returns a hatch
    /// for each worker.
    pub fn start(
        settings: &PoolSettings,
        wake: impl Fn(usize) + Send + Sync + 'static,
    ) -> io::Result<(TlsPool<W>, Vec<Hatch<W>>)> {
        let parkers: Vec<Parker> = settings.cpus.iter().map(|_| Parker::new()).collect();
        let depth_max = settings.depth_max.max(1);
        let shelf = |_| Shelf {
            full: ArrayQueue::new(depth_max),
            resumed: ArrayQueue::new(depth_max),
            finished: ArrayQueue::new(2 * depth_max + settings.cpus.len()),
            is_woken: CachePadded::default(),
            refused: CachePadded::default(),
        };
        let hall = Arc::new(Hall {
            shelves: (0..settings.workers).map(shelf).collect(),
            bunks: parkers.iter().map(|parker| CachePadded::new(Bunk::new(parker.unparker().clone()))).collect(),
            queue_deadline: settings.queue_deadline,
            ends: AtomicBool::new(false),
            wake: Box::new(wake),
        });
        // Made before the threads: if one cannot start, dropping it ends the others.
        let mut pool = TlsPool { hall: Arc::clone(&hall), threads: Vec::with_capacity(parkers.len()) };
        for ((parker, &cpu), number) in parkers.into_iter().zip(&settings.cpus).zip(0..) {
            let (hall, pin) = (Arc::clone(&hall), settings.pin);
            let thread = thread::Builder::new().name(format!("tls-{number}")).spawn(move || {
                let _guard = AbortOnPanic { thread: number };
                // Unpinned it works too, only slower: the scheduler is no reason to end.
                pin(cpu);
                hall.serve(number, &parker);
            })?;
            pool.threads.push(thread);
        }
        let hatch = |worker| Hatch { hall: Arc::clone(&hall), worker, outstanding: 0 };
        let hatches = (0..settings.workers).map(hatch).collect();
        Ok((pool, hatches))
    }

    /// How it fares.
    pub fn gauges(&self) -> PoolGauges {
        let Hall { shelves, bunks, .. } = &*self.hall;
        let sum = |of: fn(&Bunk) -> &AtomicU64| bunks.iter().map(|bunk| of(bunk).load(Ordering::Relaxed)).sum();
        PoolGauges {
            threads: bunks.len(),
            running: bunks.iter().map(|bunk| bunk.running.load(Ordering::Relaxed)).sum(),
            queued: shelves.iter().map(|shelf| shelf.full.len() + shelf.resumed.len()).sum(),
            done: sum(|bunk| &bunk.done),
            late: sum(|bunk| &bunk.late),
            abandoned: sum(|bunk| &bunk.abandoned),
            refused: shelves.iter().map(|shelf| shelf.refused.load(Ordering::Relaxed)).sum(),
            busy_ns: sum(|bunk| &bunk.busy_ns),
            waited_ns: sum(|bunk| &bunk.waited_ns),
        }
    }
}

impl<W: Work> Drop for TlsPool<W> {
    fn drop(&mut self) {
        self.hall.ends.store(true, Ordering::SeqCst);
        for bunk in &self.hall.bunks {
            bunk.unparker.unpark();
        }
        for thread in self.threads.drain(..) {
            // A panic does not come here: the guard has aborted the process.
            let _ended = thread.join();
        }
    }
}

impl<W: Work> Hatch<W> {
    /// Hands work in, if there is room; otherwise it comes back at once.
    pub fn submit(&mut self, work: W, kind: HandshakeKind) -> Result<Errand, W> {
        let shelf = &self.hall.shelves[self.worker];
        let abandoned = Arc::new(AtomicBool::new(false));
        let job = Job { work, since: Instant::now(), abandoned: Arc::clone(&abandoned) };
        let queue = match kind {
            HandshakeKind::Full => &shelf.full,
            HandshakeKind::Resumed => &shelf.resumed,
        };
        // Only this worker adds, so what is seen to have room has room.
        if self.outstanding == shelf.finished.capacity() || queue.is_full() {
            shelf.refused.fetch_add(1, Ordering::Relaxed);
            return Err(job.work);
        }
        if let Err(job) = queue.push(job) {
            return Err(job.work);
        }
        self.outstanding += 1;
        self.hall.rouse();
        Ok(Errand(abandoned))
    }

    /// Work that is back. Take until there is none: only then is the worker woken again.
    pub fn take(&mut self) -> Option<Finished<W>> {
        let shelf = &self.hall.shelves[self.worker];
        let finished = shelf.finished.pop().or_else(|| {
            shelf.is_woken.store(false, Ordering::SeqCst);
            // What came between the look and the word wakes nobody.
            fence(Ordering::SeqCst);
            shelf.finished.pop()
        })?;
        self.outstanding -= 1;
        Some(finished)
    }

    /// Takes back what no thread has begun with, sessions to resume first, of each kind what has waited longest first.
    pub fn reclaim(&mut self) -> Option<Reclaimed<W>> {
        let shelf = &self.hall.shelves[self.worker];
        let queues = [(HandshakeKind::Resumed, &shelf.resumed), (HandshakeKind::Full, &shelf.full)];
        let (kind, Job { work, since, .. }) =
            queues.into_iter().find_map(|(kind, queue)| Some((kind, queue.pop()?)))?;
        self.outstanding -= 1;
        Some(Reclaimed { work, kind, since })
    }

    /// Work handed in and not taken back.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }
}

impl<W: Work> fmt::Debug for Hatch<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hatch")
            .field("worker", &self.worker)
            .field("outstanding", &self.outstanding)
            .finish_non_exhaustive()
    }
}

impl<W: Work> Hall<W> {
    fn serve(&self, number: usize, parker: &Parker) {
        let bunk = &self.bunks[number];
        // Threads begin at different workers.
        let mut turn = Turn { worker: number, resumed_in_a_row: 0 };
        while !self.ends.load(Ordering::SeqCst) {
            if let Some((worker, job)) = self.next(&mut turn) {
                self.handle(bunk, worker, job);
                continue;
            }
            bunk.asleep.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            // What came between the look and the word rouses nobody.
            if self.has_work() || self.ends.load(Ordering::SeqCst) {
                bunk.asleep.store(false, Ordering::SeqCst);
                continue;
            }
            parker.park();
            bunk.asleep.store(false, Ordering::SeqCst);
        }
    }

    fn handle(&self, bunk: &Bunk, worker: usize, job: Job<W>) {
        let Job { mut work, since, abandoned } = job;
        let begin = Instant::now();
        let waited = begin.duration_since(since);
        bunk.waited_ns.fetch_add(nanoseconds(waited), Ordering::Relaxed);
        let (outcome, count) = if abandoned.load(Ordering::Relaxed) {
            (WorkOutcome::Abandoned, &bunk.abandoned)
        } else if waited > self.queue_deadline {
            (WorkOutcome::Late, &bunk.late)
        } else {
            bunk.running.store(1, Ordering::Relaxed);
            work.run();
            bunk.running.store(0, Ordering::Relaxed);
            bunk.busy_ns.fetch_add(nanoseconds(begin.elapsed()), Ordering::Relaxed);
            (WorkOutcome::Done, &bunk.done)
        };
        count.fetch_add(1, Ordering::Relaxed);
        let shelf = &self.shelves[worker];
        let pushed = shelf.finished.push(Finished { work, outcome, waited });
        debug_assert!(pushed.is_ok(), "a hatch has no more work outstanding than fits here");
        fence(Ordering::SeqCst);
        if !shelf.is_woken.swap(true, Ordering::SeqCst) {
            (self.wake)(worker);
        }
    }

    fn next(&self, turn: &mut Turn) -> Option<(usize, Job<W>)> {
        let full_first = turn.resumed_in_a_row >= RESUMED_IN_A_ROW;
        let order = if full_first {
            [HandshakeKind::Full, HandshakeKind::Resumed]
        } else {
            [HandshakeKind::Resumed, HandshakeKind::Full]
        };
        for kind in order {
            for step in 0..self.shelves.len() {
                let worker = (turn.worker + step) % self.shelves.len();
                let shelf = &self.shelves[worker];
                let job = match kind {
                    HandshakeKind::Full => shelf.full.pop(),
                    HandshakeKind::Resumed => shelf.resumed.pop(),
                };
                if let Some(job) = job {
                    turn.worker = worker + 1;
                    turn.resumed_in_a_row = match kind {
                        HandshakeKind::Full => 0,
                        HandshakeKind::Resumed => turn.resumed_in_a_row + 1,
                    };
                    return Some((worker, job));
                }
            }
        }
        None
    }

    fn has_work(&self) -> bool {
        self.shelves.iter().any(|shelf| !shelf.resumed.is_empty() || !shelf.full.is_empty())
    }

    /// Wakes one thread, if one sleeps.
    fn rouse(&self) {
        fence(Ordering::SeqCst);
        let roused = self.bunks.iter().find(|bunk| {
            bunk.asleep.load(Ordering::SeqCst)
                && bunk.asleep.compare_exchange(true, false, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        });
        if let Some(bunk) = roused {
            bunk.unparker.unpark();
        }
    }
}

impl Bunk {
    fn new(unparker: Unparker) -> Bunk {
        Bunk {
            asleep: AtomicBool::new(false),
            unparker,
            running: AtomicUsize::new(0),
            done: AtomicU64::new(0),
            late: AtomicU64::new(0),
            abandoned: AtomicU64::new(0),
            busy_ns: AtomicU64::new(0),
            waited_ns: AtomicU64::new(0),
        }
    }
}

/// Where a thread goes on looking.
struct Turn {
    worker: usize,
    resumed_in_a_row: u32,
}

/// Ends the process when a thread of the pool panics, as workers do: its handshakes would wait for ever.
struct AbortOnPanic {
    thread: usize,
}

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            // The panic's message and place have been printed by the hook already.
            eprintln!(
                "towpath: TLS thread {} panicked: aborting, so that the supervisor restarts the process",
                self.thread
            );
            process::abort();
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
