//! Load: what a client does, how much of it was done, and the origin that answers.

pub mod client;
mod engine;
pub mod origin;

use std::net::SocketAddr;
use std::time::Duration;

use crate::cpu::CpuUse;
use hdrhistogram::Histogram;

/// What a client does over and over. Every piece of work starts when the one before it on the same connection has ended
/// (closed loop).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Streams of bytes from the origin. Counted in bytes.
    Bulk {
        /// How many at once.
        streams: usize,
    },
    /// Connect, send a request, read the answer, read the end. Counted in connections.
    Connect {
        /// How many at once.
        concurrency: usize,
        /// Length of a request.
        request_bytes: usize,
        /// Length of an answer.
        answer_bytes: usize,
    },
    /// Requests over connections that stay. Counted in requests.
    KeepAlive {
        /// How many at once.
        connections: usize,
        /// Length of a request.
        request_bytes: usize,
        /// Length of an answer.
        answer_bytes: usize,
    },
}

/// What a client is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where to.
    pub target: SocketAddr,
    /// What.
    pub work: Work,
    /// Not counted, so that caches, connections and windows are as they stay.
    pub warm_up: Duration,
    /// Counted.
    pub measure: Duration,
    /// CPUs whose use over the counted time is told.
    pub watch_cpus: Vec<usize>,
    /// Processes whose use of CPUs over the counted time is told; the client itself is added.
    pub watch_processes: Vec<u32>,
}

/// What was done in the counted time. Only what arrived as it was sent is in it.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Length of the counted time.
    pub seconds: f64,
    /// Pieces of work completed: requests, connections or bytes.
    pub done: u64,
    /// Time each took, from its start to its last byte, in nanoseconds: (value, how often). Empty for bulk.
    pub latency_ns: Vec<(u64, u64)>,
    /// What the watched CPUs did meanwhile, in the order of the plan.
    pub cpus: Vec<CpuUse>,
    /// Seconds that the watched processes and the client worked meanwhile.
    pub processes_s: f64,
}

impl Tally {
    /// Work per second.
    pub fn rate(&self) -> f64 {
        self.done as f64 / self.seconds
    }

    /// The latencies as a histogram.
    pub fn histogram(&self) -> Histogram<u64> {
        let mut histogram = new_histogram();
        for &(value, count) in &self.latency_ns {
            histogram.saturating_record_n(value, count);
        }
        histogram
    }
}

/// An empty histogram of nanoseconds up to a minute, exact to 0.1 %.
pub fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("1 ns to 60 s at 3 digits are bounds it takes")
}
