//! What happened to every request of the demo: counted live, compared between two moments, judged at the end.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::client::Failure;

/// The verdict on a request without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The relay, or an origin that was running, is to blame.
    Failed(Failure),
    /// It had been sent on a connection to the stopped origin, which took it along.
    InFlight,
}

/// Tells the two apart. `served_by` is who answered earlier on the same connection, `stopped` the origin that has been stopped.
///
/// Only a connection that broke can have been broken by the stop: a request that waits for ever was forgotten by the relay.
pub(crate) fn judge(failure: Failure, served_by: Option<usize>, stopped: Option<usize>) -> Loss {
    match failure {
        Failure::Closed | Failure::Reset if served_by.is_some() && served_by == stopped => Loss::InFlight,
        _ => Loss::Failed(failure),
    }
}

/// Counts that all clients add to while the traffic runs.
pub(crate) struct Ledger {
    since: Instant,
    answered: Vec<AtomicU64>,
    connections: AtomicU64,
    in_flight: AtomicU64,
    /// Rare, so a lock; at most one entry per kind of failure.
    failed: Mutex<BTreeMap<Failure, u64>>,
}

impl Ledger {
    pub(crate) fn new(origins: usize) -> Ledger {
        Ledger {
            since: Instant::now(),
            answered: (0..origins).map(|_| AtomicU64::new(0)).collect(),
            connections: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            failed: Mutex::default(),
        }
    }

    pub(crate) fn answered(&self, origin: usize) {
        self.answered[origin].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn lost(&self, loss: Loss) {
        match loss {
            Loss::InFlight => {
                self.in_flight.fetch_add(1, Ordering::Relaxed);
            }
            Loss::Failed(failure) => {
                *self.failed.lock().expect("no holder of this lock can panic").entry(failure).or_default() += 1;
            }
        }
    }

    /// The counts as of about now.
    pub(crate) fn sample(&self) -> Sample {
        Sample {
            at: self.since.elapsed(),
            answered: self.answered.iter().map(|cell| cell.load(Ordering::Relaxed)).collect(),
            connections: self.connections.load(Ordering::Relaxed),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            failed: self.failed.lock().expect("no holder of this lock can panic").clone(),
        }
    }
}

/// The counts at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sample {
    /// Since the traffic started.
    pub(crate) at: Duration,
    /// Requests answered, by origin.
    pub(crate) answered: Vec<u64>,
    /// Connections opened to the relay.
    pub(crate) connections: u64,
    /// Requests that went down with the stopped origin.
    pub(crate) in_flight: u64,
    /// Requests that failed otherwise.
    pub(crate) failed: BTreeMap<Failure, u64>,
}

impl Sample {
    /// Requests answered by anyone.
    pub(crate) fn answered_total(&self) -> u64 {
        self.answered.iter().sum()
    }

    /// Requests that failed and should not have.
    pub(crate) fn failed_total(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Requests that `origin` answered since `earlier`.
    pub(crate) fn answered_since(&self, earlier: &Sample, origin: usize) -> u64 {
        let before = earlier.answered.get(origin).copied().unwrap_or(0);
        self.answered[origin].saturating_sub(before)
    }

    /// Seconds since `earlier`.
    pub(crate) fn seconds_since(&self, earlier: &Sample) -> f64 {
        self.at.saturating_sub(earlier.at).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_break_of_the_stopped_origins_connection_is_excused() {
        assert_eq!(judge(Failure::Closed, Some(1), Some(1)), Loss::InFlight);
        assert_eq!(judge(Failure::Reset, Some(1), Some(1)), Loss::InFlight);
        // Another origin, no origin stopped yet, and a connection of which nobody knows whose it was.
        assert_eq!(judge(Failure::Reset, Some(0), Some(1)), Loss::Failed(Failure::Reset));
        assert_eq!(judge(Failure::Reset, Some(1), None), Loss::Failed(Failure::Reset));
        assert_eq!(judge(Failure::Reset, None, Some(1)), Loss::Failed(Failure::Reset));
        assert_eq!(judge(Failure::Reset, None, None), Loss::Failed(Failure::Reset));
        for other in [
            Failure::AnsweredByStranger,
            Failure::ConnectFailed,
            Failure::Malformed,
            Failure::Status(503),
            Failure::TimedOut,
        ] {
            assert_eq!(judge(other, Some(1), Some(1)), Loss::Failed(other));
        }
    }

    #[test]
    fn sample_counts_what_was_added_since_the_earlier_one() {
        let ledger = Ledger::new(2);
        ledger.answered(1);
        let earlier = ledger.sample();
        ledger.answered(1);
        ledger.answered(1);
        ledger.answered(0);
        ledger.lost(Loss::Failed(Failure::Closed));
        ledger.lost(Loss::InFlight);
        let later = ledger.sample();
        assert_eq!((later.answered_since(&earlier, 0), later.answered_since(&earlier, 1)), (1, 2));
        assert_eq!((later.answered_total(), later.failed_total(), later.in_flight), (4, 1, 1));
    }
}
