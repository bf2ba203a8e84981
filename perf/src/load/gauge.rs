//! When work is due and what became of it.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::{Pace, new_histogram};

/// When pieces of work are to start.
#[derive(Clone, Copy, Debug)]
pub(super) enum Schedule {
    /// At once, wherever there is room.
    Closed,
    /// The one of number k at `from + k / per_second`.
    Open { from: Instant, per_second: f64, taken: u64 },
    /// Never.
    Stopped,
}

impl Schedule {
    pub(super) fn starting(pace: Pace, from: Instant) -> Schedule {
        match pace {
            Pace::Closed => Schedule::Closed,
            Pace::Open { per_second } => Schedule::Open { from, per_second, taken: 0 },
        }
    }

    /// When the next piece of work is due; `None` when never.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        match *self {
            Schedule::Closed => Some(now),
            Schedule::Open { from, per_second, taken } => {
                // A start that cannot be told lies beyond any run.
                let after = Duration::try_from_secs_f64(taken as f64 / per_second).unwrap_or(Duration::MAX);
                from.checked_add(after)
            }
            Schedule::Stopped => None,
        }
    }

    /// Takes the next piece of work if it is due, and tells its intended start.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<Instant> {
        let intended = self.next(now).filter(|intended| *intended <= now)?;
        if let Schedule::Open { taken, .. } = self {
            *taken += 1;
        }
        Some(intended)
    }

    /// Whether starts are intended whatever became of those before.
    fn is_open(&self) -> bool {
        matches!(self, Schedule::Open { .. })
    }

    /// Intended starts before a moment.
    fn intended_before(&self, moment: Instant) -> u64 {
        match *self {
            Schedule::Open { from, per_second, .. } => {
                (moment.saturating_duration_since(from).as_secs_f64() * per_second).ceil() as u64
            }
            Schedule::Closed | Schedule::Stopped => 0,
        }
    }
}

/// What was done in the counted time.
pub(super) struct Gauge {
    pub(super) schedule: Schedule,
    phase: Phase,
    pub(super) done: u64,
    pub(super) lost: u64,
    pub(super) offered: Option<u64>,
    pub(super) latency: Histogram<u64>,
}

#[derive(Clone, Copy)]
enum Phase {
    Before,
    Counting {
        from: Instant,
    },
    /// Nothing more starts. `open`: work that was due in the counted time still tells how long it took.
    After {
        from: Instant,
        open: bool,
    },
}

impl Gauge {
    pub(super) fn new() -> Gauge {
        Gauge {
            schedule: Schedule::Stopped,
            phase: Phase::Before,
            done: 0,
            lost: 0,
            offered: None,
            latency: new_histogram(),
        }
    }

    /// The counted time begins.
    pub(super) fn start_counting(&mut self, now: Instant) {
        self.phase = Phase::Counting { from: now };
    }

    /// The counted time ends; what is under way may still come to its end.
    pub(super) fn stop_counting(&mut self, now: Instant) {
        let Phase::Counting { from } = self.phase else { return };
        let open = self.schedule.is_open();
        if open {
            self.offered = Some(self.schedule.intended_before(now) - self.schedule.intended_before(from));
            // What found no free connection until now has waited for so long at least.
            while let Some(intended) = self.schedule.take_due(now) {
                self.record(intended, now);
            }
        }
        self.schedule = Schedule::Stopped;
        self.phase = Phase::After { from, open };
    }

    /// A piece of work has come to its end.
    pub(super) fn completed(&mut self, intended: Instant, now: Instant) {
        match self.phase {
            Phase::Before => {}
            Phase::Counting { .. } => {
                self.done += 1;
                self.record(intended, now);
            }
            Phase::After { open: true, .. } => self.record(intended, now),
            Phase::After { open: false, .. } => {}
        }
    }

    /// Bytes of a stream have arrived.
    pub(super) fn received(&mut self, bytes: usize) {
        if matches!(self.phase, Phase::Counting { .. }) {
            self.done += bytes as u64;
        }
    }

    /// A datagram that was sent then has not come back.
    pub(super) fn lost(&mut self, sent: Instant) {
        match self.phase {
            Phase::Counting { from } | Phase::After { from, .. } if sent >= from => self.lost += 1,
            _ => {}
        }
    }

    fn record(&mut self, intended: Instant, now: Instant) {
        let took = now.saturating_duration_since(intended);
        self.latency.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEN_PER_SECOND: Pace = Pace::Open { per_second: 10.0 };

    fn after(from: Instant, ms: u64) -> Instant {
        from + Duration::from_millis(ms)
    }

    #[test]
    fn the_open_loop_keeps_its_starts_whatever_happens() {
        let from = Instant::now();
        let mut schedule = Schedule::starting(TEN_PER_SECOND, from);
        assert_eq!(schedule.take_due(from), Some(from));
        assert_eq!(schedule.take_due(from), None);
        assert_eq!(schedule.next(from), Some(after(from, 100)));
        // Late by two: both are handed out with the starts they should have had.
        let late = after(from, 250);
        assert_eq!(schedule.take_due(late), Some(after(from, 100)));
        assert_eq!(schedule.take_due(late), Some(after(from, 200)));
        assert_eq!(schedule.take_due(late), None);
    }

    #[test]
    fn work_that_never_found_a_connection_is_offered_and_timed_but_not_done() {
        let from = Instant::now();
        let mut gauge = Gauge::new();
        gauge.schedule = Schedule::starting(TEN_PER_SECOND, from);
        gauge.start_counting(from);
        let first = gauge.schedule.take_due(from).unwrap();
        gauge.completed(first, after(from, 5));
        gauge.stop_counting(after(from, 1000));
        assert_eq!((gauge.done, gauge.offered, gauge.latency.len()), (1, Some(10), 11));
        assert!(gauge.latency.max() >= 899_000_000);
    }

    #[test]
    fn only_the_counted_time_counts() {
        let from = Instant::now();
        let mut gauge = Gauge::new();
        gauge.schedule = Schedule::starting(Pace::Closed, from);
        gauge.completed(from, after(from, 1));
        gauge.lost(from);
        gauge.start_counting(after(from, 2));
        gauge.lost(from);
        gauge.lost(after(from, 3));
        gauge.completed(from, after(from, 4));
        gauge.stop_counting(after(from, 5));
        gauge.completed(from, after(from, 6));
        assert_eq!((gauge.done, gauge.lost, gauge.offered, gauge.latency.len()), (1, 1, None, 1));
    }
}
