//! A new program takes over from the running one, without a lost connection.
//!
//! ```text
//! the old process                               the new one
//! starts the program, one end of a pair of sockets as its standard input
//!                                        ←      hello: version, form of what is handed over
//! manifest, and copies of all listeners  →      configuration, machine and everything that can be refused is checked
//!                                        ←      ready
//! go: what was said, leases, …           →      workers start: from now on both accept
//!                                        ←      running
//! accepts no more; tells the supervisor
//! yours                                  →      control socket, metrics, state file
//! finishing: so many connections …       →      status; at the end of the line the leases that were held there are free
//! ```
//!
//! The accept queues are in the sockets, which both processes have: whoever connects meanwhile is served by one of them. Whatever fails before `running`
//! ends the new process, and the old one goes on as if nothing had been. What it says is believed as little as a file's words: sizes are bounded, and
//! descriptors are looked at.

mod line;
pub(crate) mod new;
pub(crate) mod old;
mod persistence;
pub(crate) mod plane;
mod words;

use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::Notify;

pub use new::Takeover;
pub use old::successor;
pub(crate) use words::{Held, HeldLease, HeldPorts, Holdings, Verdict, subject_of};

/// The form of what is handed over. Two programs with different forms cannot take over from each other.
pub const FORMAT: u32 = 1;

/// How long a process that has handed over waits for who has asked for that to take the answer, …
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// … and how often it looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What the next process is started with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Successor {
    /// The program: the path that this process was started from, where by then the new one is.
    pub program: PathBuf,
    /// Its arguments before those that name the configuration and the take-over.
    pub arguments: Vec<OsString>,
}

/// An upgrade is asked for with this.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpgradeBody {
    /// Another program than the one at the path that the running one was started from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<PathBuf>,
    /// Another configuration file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<PathBuf>,
}

/// What an upgrade has brought.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgraded {
    /// The process that serves now.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// The process before it, which ends when its connections have.
    pub before: u32,
    /// Connections and sessions that finish there.
    pub finishing: u64,
    /// For how long a service lets them, at most, in milliseconds.
    pub drain_timeout_ms: u64,
}

/// From whom this process has taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenOverStatus {
    /// The process before it.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// When, in milliseconds since 1970.
    pub at_unix_ms: u64,
    /// Connections and sessions that finish there; `None` = it has gone.
    pub finishing: Option<u64>,
}

/// Why there was no upgrade. The process before goes on as if nothing had been.
#[derive(Debug, Error)]
pub enum UpgradeError {
    /// A reload is not finished.
    #[error("a reload is not finished yet; ask again in a moment")]
    Reloading,
    /// One is under way.
    #[error("an upgrade is under way; ask again when it is over")]
    Busy,
    /// The end of this process would be the end of the new one.
    #[error(
        "this process is the first of its PID namespace, as in a container: its end would end the new one; start it under an init (`docker run --init`), \
         or replace the container"
    )]
    FirstProcess,
    /// What the next program is cannot be told.
    #[error("this process does not know how it was started; name the program (`--program`)")]
    NoProgram,
    /// The program cannot be started.
    #[error("{} cannot be started: {why}", program.display())]
    NotStarted {
        /// The program.
        program: PathBuf,
        /// Why.
        why: String,
    },
    /// The new process did not get as far as it should.
    #[error("{}", reasons.join("\n"))]
    Refused {
        /// Each reason by itself.
        reasons: Vec<String>,
    },
    /// The process is ending.
    #[error("the process is ending")]
    Stopping,
}

impl UpgradeError {
    /// Each reason by itself.
    pub fn reasons(&self) -> Vec<String> {
        match self {
            UpgradeError::Refused { reasons } => reasons.clone(),
            other => vec![other.to_string()],
        }
    }
}

/// What a house knows of upgrades: of the one under way, and of the process before.
#[derive(Debug, Default)]
pub(crate) struct Upgrades {
    /// What the next process is started with.
    successor: OnceLock<Successor>,
    /// One is under way: no configuration is taken meanwhile.
    is_under_way: AtomicBool,
    /// What is said now would be lost.
    is_handing: AtomicBool,
    /// What this process had is another's.
    is_handed: Arc<AtomicBool>,
    /// The same, for who waits for it.
    handed: Notify,
    /// Conversations by the control socket that are not over.
    conversations: AtomicUsize,
    /// Copies of the listeners that the controller has.
    held: Mutex<Held>,
    predecessor: OnceLock<Predecessor>,
}

#[derive(Debug)]
struct Predecessor {
    pid: u32,
    version: String,
    at_unix_ms: u64,
    finishing: AtomicU64,
    is_gone: AtomicBool,
}

/// One conversation by the control socket; over when it is dropped.
pub(crate) struct Conversing<'u>(&'u Upgrades);

impl Upgrades {
    pub(crate) fn new(successor: Option<Successor>) -> Upgrades {
        let upgrades = Upgrades::default();
        if let Some(successor) = successor {
            let _is_first = upgrades.successor.set(successor);
        }
        upgrades
    }

    /// Whether one is under way.
    pub(crate) fn is_under_way(&self) -> bool {
        self.is_under_way.load(Ordering::Acquire)
    }

    /// Whether what is said at this moment would be lost.
    pub(crate) fn is_handing(&self) -> bool {
        self.is_handing.load(Ordering::Acquire)
    }

    /// Whether what this process had in the file system and at the supervisor is another's.
    pub(crate) fn is_handed(&self) -> bool {
        self.is_handed.load(Ordering::Acquire)
    }

    /// Waits until it is.
    pub(crate) async fn handed(&self) {
        let handed = self.handed.notified();
        tokio::pin!(handed);
        // Before the look: who hands over in between is heard.
        handed.as_mut().enable();
        if !self.is_handed() {
            handed.await;
        }
    }

    fn hand(&self) {
        self.is_handed.store(true, Ordering::Release);
        self.handed.notify_waiters();
    }

    /// Counts one conversation; who asked for an upgrade is to hear of it before the process ends.
    pub(crate) fn converse(&self) -> Conversing<'_> {
        self.conversations.fetch_add(1, Ordering::AcqRel);
        Conversing(self)
    }

    /// Before the process ends: whoever has asked for the upgrade hears of it, and the process before this one ends first, for it ends with this one.
    /// That one has its own drain timeouts; a second signal here (`is_over`) is one for both.
    pub(crate) fn see_off(&self, is_over: impl Fn() -> bool) {
        let until = Instant::now() + ANSWER_TIMEOUT;
        // One that is given up ends the process that it has started.
        while self.is_under_way() && !self.is_handed() && Instant::now() < until {
            thread::sleep(LOOK_EVERY);
        }
        while self.is_handed() && self.conversations.load(Ordering::Acquire) > 0 && Instant::now() < until {
            thread::sleep(LOOK_EVERY);
        }
        let is_there = || self.predecessor.get().is_some_and(|before| !before.is_gone.load(Ordering::Acquire));
        while !is_over() && is_there() {
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Keeps copies of what the controller listens on, for the next process.
    pub(crate) fn hold(&self, held: Held) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    /// The same for the listener of metrics, which a reload may move.
    pub(crate) fn hold_metrics(&self, metrics: Option<(SocketAddr, TcpListener)>) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).metrics = metrics;
    }

    /// What tells that this process has handed over.
    pub(crate) fn handed_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_handed)
    }

    /// Whether connections of this process's clients finish in the one before.
    pub(crate) fn is_finishing_elsewhere(&self) -> bool {
        let is_one = |before: &Predecessor| {
            !before.is_gone.load(Ordering::Acquire) && before.finishing.load(Ordering::Relaxed) > 0
        };
        self.predecessor.get().is_some_and(is_one)
    }

    /// From whom this process has taken over.
    pub(crate) fn taken_over(&self) -> Option<TakenOverStatus> {
        let Predecessor { pid, version, at_unix_ms, finishing, is_gone } = self.predecessor.get()?;
        let finishing = (!is_gone.load(Ordering::Acquire)).then(|| finishing.load(Ordering::Relaxed));
        Some(TakenOverStatus { pid: *pid, version: version.clone(), at_unix_ms: *at_unix_ms, finishing })
    }
}

impl Drop for Conversing<'_> {
    fn drop(&mut self) {
        self.0.conversations.fetch_sub(1, Ordering::AcqRel);
    }
}
