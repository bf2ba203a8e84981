//! The access log, off the workers: each gives its records into a ring of its own and goes on, whatever becomes of them; one thread makes lines of them and
//! writes them.
//!
//! What does not fit into a ring is dropped and counted by the worker (`log_dropped`): a destination that is slow or stands still holds nobody up. Lines
//! that the destination refuses, as a full disk does, are counted here.

mod destination;
mod writer;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::Instant;

use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;
use towpath_config::model::{Log, Logged, Model};
use towpath_core::WorkerId;
use towpath_core::access::Record;

pub use destination::check;
use writer::Writer;

/// Records of one worker that wait: of a worker that serves 100,000 requests a second those of 80 ms.
const RING_RECORDS: usize = 8192;
/// Bytes of words in them at most: what clients say may be long. With the records themselves a worker holds 8 MiB at most.
const RING_TEXT_BYTES: usize = 4 << 20;

/// What workers and writer share.
pub struct AccessLog {
    /// By worker; made when something is first logged.
    rings: Box<[CachePadded<OnceLock<Ring>>]>,
    /// The writer waits to be woken.
    is_asleep: AtomicBool,
    is_ending: AtomicBool,
    settings: Mutex<Log>,
    /// Raised whenever the destination is to be opened anew.
    turn: AtomicU64,
    written: AtomicU64,
    failed: AtomicU64,
    trouble: Mutex<Option<String>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    thread: OnceLock<Thread>,
}

struct Ring {
    records: ArrayQueue<Box<Record>>,
    /// Bytes of words in them.
    text_bytes: AtomicUsize,
}

impl Ring {
    fn new() -> Ring {
        Ring { records: ArrayQueue::new(RING_RECORDS), text_bytes: AtomicUsize::new(0) }
    }

    fn push(&self, record: Box<Record>) -> bool {
        let bytes = record.texts.bytes();
        if self.text_bytes.load(Ordering::Relaxed) + bytes > RING_TEXT_BYTES {
            return false;
        }
        // Before the push: the writer may take it at once.
        self.text_bytes.fetch_add(bytes, Ordering::Relaxed);
        let is_taken = self.records.push(record).is_ok();
        if !is_taken {
            self.text_bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        is_taken
    }

    fn pop(&self) -> Option<Box<Record>> {
        let record = self.records.pop()?;
        self.text_bytes.fetch_sub(record.texts.bytes(), Ordering::Relaxed);
        Some(record)
    }

    fn is_empty(&self) -> bool {
        self.records.is_empty()
    }
}

/// Figures for status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessLogUse {
    /// Lines that the destination has taken.
    pub written: u64,
    /// Lines that it has refused.
    pub failed: u64,
    /// Why it takes none just now.
    pub trouble: Option<String>,
}

impl AccessLog {
    /// Nothing is logged yet.
    pub fn new(workers: usize) -> AccessLog {
        AccessLog {
            rings: (0..workers).map(|_| CachePadded::new(OnceLock::new())).collect(),
            is_asleep: AtomicBool::new(false),
            is_ending: AtomicBool::new(false),
            settings: Mutex::new(Log::default()),
            turn: AtomicU64::new(0),
            written: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            trouble: Mutex::new(None),
            writer: Mutex::new(None),
            thread: OnceLock::new(),
        }
    }

    /// Gives a record of `worker` away; `false` = there was no room. Only that worker's thread may call this.
    #[inline]
    pub fn give(&self, worker: WorkerId, record: Box<Record>) -> bool {
        let is_taken = self.rings[worker.index()].get_or_init(Ring::new).push(record);
        // Either the writer sees the record before it sleeps, or we see that it does.
        fence(Ordering::SeqCst);
        if self.is_asleep.load(Ordering::Relaxed) && self.is_asleep.swap(false, Ordering::AcqRel) {
            self.wake();
        }
        is_taken
    }

    /// Logs by this model from now on, with its destination opened anew; the thread is started when it is first needed.
    pub fn follow(self: &Arc<AccessLog>, model: &Model, origin: Instant) -> io::Result<()> {
        lock(&self.settings).clone_from(&model.log);
        self.turn.fetch_add(1, Ordering::AcqRel);
        let mut writer = lock(&self.writer);
        if writer.is_none() && is_wanted(model) {
            let (log, ready) = (Arc::clone(self), thread::Builder::new().name("access-log".to_owned()));
            let thread = ready.spawn(move || Writer::new(log, origin).run())?;
            self.thread.get_or_init(|| thread.thread().clone());
            *writer = Some(thread);
        }
        self.wake();
        Ok(())
    }

    /// Writes what there is and ends the thread. The workers have ended.
    pub fn stop(&self) {
        self.is_ending.store(true, Ordering::Release);
        self.wake();
        if let Some(writer) = lock(&self.writer).take() {
            // It does not panic; and then there is nobody left to tell.
            let _ended = writer.join();
        }
    }

    /// Figures for status.
    pub fn usage(&self) -> AccessLogUse {
        AccessLogUse {
            written: self.written.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            trouble: lock(&self.trouble).clone(),
        }
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// Whether any line may have to be written.
pub fn is_wanted(model: &Model) -> bool {
    model.services.iter().any(|service| service.log != Logged::None)
}

/// A worker that panics aborts the process, so nobody ever meets what a poisoned lock protects.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
