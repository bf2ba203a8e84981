//! Load: what a client does, how much of it was done, and the origin that answers.

mod callers;
pub mod client;
mod echo;
mod engine;
mod flows;
mod gauge;
pub mod origin;
mod spin;
pub mod tls;
mod wire;

use std::net::SocketAddr;
use std::time::Duration;

use crate::cpu::CpuUse;
use crate::message::Framing;
use hdrhistogram::Histogram;
use tls::Tls;

/// What a client does over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Streams of bytes from the origin. Counted in bytes. At a constant rate, the origin sends piece after piece of them, each at its
    /// time on the stream that has waited longest: only with the origin beside the client.
    Bulk {
        /// How many at once.
        streams: usize,
    },
    /// Connect, send a request, read the answer, read the end. Counted in connections.
    Connect {
        /// How many at once, in the open loop at most.
        concurrency: usize,
        /// Length of a request.
        request_bytes: usize,
        /// Length of an answer.
        answer_bytes: usize,
    },
    /// Datagrams that the origin returns. Counted in datagrams that came back.
    Datagrams {
        /// Sockets of the client. In the closed loop each has one datagram under way.
        flows: usize,
        /// Length of a datagram, at least [`crate::message::HEADER_BYTES`].
        payload_bytes: usize,
    },
    /// Connect, shake hands by TLS, and end: no request follows. Counted in handshakes; those that a subject refuses or cuts off are lost.
    Handshake {
        /// How many at once, in the open loop at most.
        concurrency: usize,
    },
    /// Connections that are opened, answered once, held for the counted time and answered once more. Counted in connections;
    /// the pace does not matter.
    Hold {
        /// How many.
        connections: usize,
    },
    /// Requests over connections that stay. Counted in requests.
    KeepAlive {
        /// How many are at work.
        connections: usize,
        /// How many are open besides, silent: each is answered once at the start and once at the end.
        idle: usize,
        /// Length of a request.
        request_bytes: usize,
        /// Length of an answer.
        answer_bytes: usize,
    },
}

impl Work {
    /// Pieces of work that are under way at a time in the closed loop; none where connections are only held.
    fn at_once(&self) -> usize {
        match *self {
            Work::Bulk { streams } => streams,
            Work::Connect { concurrency, .. } | Work::Handshake { concurrency } => concurrency,
            Work::Datagrams { flows, .. } => flows,
            Work::Hold { .. } => 0,
            Work::KeepAlive { connections, .. } => connections,
        }
    }
}

/// When a piece of work starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// When the one before it on the same connection has ended: as fast as it goes, so that a stall delays the load as well
    /// and hides behind itself.
    Closed,
    /// At a constant rate, whatever became of those before. Latency counts from the intended start, also for work that
    /// had to wait for a free connection.
    Open {
        /// Starts per second over all connections together.
        per_second: f64,
    },
}

/// Where TLS is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Security {
    /// How clients speak it, if they do.
    pub client: Option<Tls>,
    /// Whether origins beside the client do.
    pub origin: bool,
}

impl Security {
    /// Nowhere.
    pub const PLAIN: Security = Security { client: None, origin: false };
}

/// What a client is to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Where to.
    pub target: SocketAddr,
    /// What.
    pub work: Work,
    /// How fast.
    pub pace: Pace,
    /// By TLS or not.
    pub security: Security,
    /// How messages stand in the streams of connections.
    pub framing: Framing,
    /// Not counted, so that caches, connections and windows are as they stay. Begins when all connections that stay are open.
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
    /// Pieces of work completed: requests, connections, datagrams or bytes.
    pub done: u64,
    /// (Open loop) Intended starts. Clearly more than `done`: the rate was not kept up.
    pub offered: Option<u64>,
    /// Datagrams that were sent and did not come back in time; TLS handshakes that failed.
    pub lost: u64,
    /// Time each took, from its (in the open loop: intended) start to its last byte, in nanoseconds: (value, how often). In
    /// the open loop, work that was due in the counted time but not done is in it as well, with the time it had waited at
    /// least. Empty for bulk and for connections that are held.
    pub latency_ns: Vec<(u64, u64)>,
    /// What the watched CPUs did meanwhile, in the order of the plan.
    pub cpus: Vec<CpuUse>,
    /// Seconds that the watched processes and the client worked meanwhile.
    pub processes_s: f64,
    /// Seconds of these that the client only waited, awake.
    pub spun_s: f64,
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

    /// Adds what another thread of the same process did at the same time. Use of CPUs is of the machine, not of a thread: it
    /// is taken from the tally that has watched more.
    pub fn merge(mut self, other: Tally) -> Tally {
        let mut histogram = self.histogram();
        for &(value, count) in &other.latency_ns {
            histogram.saturating_record_n(value, count);
        }
        if other.cpus.len() > self.cpus.len() {
            self.cpus = other.cpus;
        }
        Tally {
            seconds: self.seconds.max(other.seconds),
            done: self.done + other.done,
            offered: self.offered.zip(other.offered).map(|(mine, others)| mine + others),
            lost: self.lost + other.lost,
            latency_ns: recorded(&histogram),
            cpus: self.cpus,
            processes_s: self.processes_s.max(other.processes_s),
            spun_s: self.spun_s.min(other.spun_s),
        }
    }
}

/// An empty histogram of nanoseconds up to a minute, exact to 0.1 %.
pub fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("1 ns to 60 s at 3 digits are bounds it takes")
}

/// What is in a histogram: (value, how often).
pub(crate) fn recorded(histogram: &Histogram<u64>) -> Vec<(u64, u64)> {
    histogram.iter_recorded().map(|v| (v.value_iterated_to(), v.count_at_value())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tallies_of_threads_add_up() {
        let tally = |done, cpus| Tally {
            seconds: 2.0,
            done,
            offered: Some(done + 1),
            lost: 1,
            latency_ns: vec![(1000, done)],
            cpus,
            processes_s: 1.5,
            spun_s: 0.25,
        };
        let cpu = CpuUse { busy_s: 1.0, busy_share: 0.5, steal_share: 0.0 };
        let both = tally(10, Vec::new()).merge(tally(30, vec![cpu]));
        assert_eq!((both.rate(), both.offered, both.lost, both.processes_s), (20.0, Some(42), 2, 1.5));
        assert_eq!((both.cpus, both.latency_ns), (vec![cpu], vec![(1000, 40)]));
    }
}
