//! The result of the demo: figures for people and programs, and whether it passed.

use hdrhistogram::Histogram;
use serde::Serialize;

use super::ledger::Sample;
use super::traffic::{Latencies, StopMoment};

/// Everything the demo measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) passed: bool,
    /// Why it did not pass; empty when it did.
    pub(crate) complaints: Vec<String>,
    pub(crate) seconds: f64,
    pub(crate) clients: usize,
    /// Requests that were answered.
    pub(crate) requests: u64,
    /// Requests that should have been answered and were not.
    pub(crate) failed: u64,
    pub(crate) failures: Vec<FailureCount>,
    /// Requests that the stopped origin took along.
    pub(crate) lost_in_flight: u64,
    pub(crate) requests_per_second: u64,
    pub(crate) connections: u64,
    pub(crate) connections_per_second: u64,
    pub(crate) origins: Vec<OriginShare>,
    pub(crate) latency: LatencyReport,
}

/// Requests that failed in the same way.
#[derive(Debug, Serialize)]
pub(crate) struct FailureCount {
    pub(crate) reason: String,
    pub(crate) requests: u64,
}

/// What one origin answered.
#[derive(Debug, Serialize)]
pub(crate) struct OriginShare {
    pub(crate) name: String,
    pub(crate) requests: u64,
    /// Of all answered requests, 0 to 1.
    pub(crate) share: f64,
    pub(crate) before_stop: u64,
    pub(crate) after_stop: u64,
    pub(crate) stopped: bool,
}

/// Latencies as the clients saw them.
#[derive(Debug, Serialize)]
pub(crate) struct LatencyReport {
    pub(crate) keep_alive: Latency,
    pub(crate) fresh: Latency,
}

/// One histogram in four figures.
#[derive(Debug, Serialize)]
pub(crate) struct Latency {
    pub(crate) requests: u64,
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) max_us: u64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Latency {
        Latency {
            requests: histogram.len(),
            p50_us: histogram.value_at_quantile(0.50),
            p99_us: histogram.value_at_quantile(0.99),
            max_us: histogram.max(),
        }
    }
}

impl Report {
    /// Judges the whole run. `stopped` is the number of the origin that was stopped at `stop`.
    pub(crate) fn new(
        names: &[&str],
        clients: usize,
        end: &Sample,
        stop: &StopMoment,
        stopped: usize,
        latencies: &Latencies,
    ) -> Report {
        let requests = end.answered_total();
        let seconds = end.at.as_secs_f64();
        let per_second = |count: u64| if seconds > 0.0 { (count as f64 / seconds).round() as u64 } else { 0 };
        let origins: Vec<OriginShare> = names
            .iter()
            .enumerate()
            .map(|(origin, name)| OriginShare {
                name: (*name).to_owned(),
                requests: end.answered[origin],
                share: if requests > 0 { end.answered[origin] as f64 / requests as f64 } else { 0.0 },
                before_stop: stop.before.answered[origin],
                after_stop: end.answered_since(&stop.after, origin),
                stopped: origin == stopped,
            })
            .collect();
        let mut complaints = Vec::new();
        let failed = end.failed_total();
        if failed > 0 {
            complaints.push(format!("{failed} requests failed that the stopped origin does not explain"));
        }
        for origin in &origins {
            if origin.before_stop == 0 {
                complaints.push(format!("{} got no request before the stop", origin.name));
            }
            if origin.after_stop == 0 && !origin.stopped {
                complaints.push(format!("{} got no request after the stop", origin.name));
            }
        }
        Report {
            passed: complaints.is_empty(),
            complaints,
            seconds,
            clients,
            requests,
            failed,
            failures: end
                .failed
                .iter()
                .map(|(failure, &requests)| FailureCount { reason: failure.to_string(), requests })
                .collect(),
            lost_in_flight: end.in_flight,
            requests_per_second: per_second(requests),
            connections: end.connections,
            connections_per_second: per_second(end.connections),
            origins,
            latency: LatencyReport {
                keep_alive: Latency::of(&latencies.keep_alive),
                fresh: Latency::of(&latencies.fresh),
            },
        }
    }

    /// A finding beside the traffic that makes the demo fail.
    pub(crate) fn complain(&mut self, complaint: String) {
        self.passed = false;
        self.complaints.push(complaint);
    }

    /// The name of the origin that was stopped.
    pub(crate) fn stopped(&self) -> &str {
        self.origins.iter().find(|origin| origin.stopped).map_or("the origin", |origin| &origin.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::client::Failure;
    use std::time::Duration;

    fn sample(answered: [u64; 3]) -> Sample {
        Sample { at: Duration::from_secs(2), answered: answered.to_vec(), ..Sample::default() }
    }

    fn report(before: [u64; 3], after: [u64; 3], end: Sample) -> Report {
        let stop = StopMoment { before: sample(before), after: sample(after) };
        Report::new(&["a", "b", "c"], 32, &end, &stop, 1, &Latencies::new())
    }

    #[test]
    fn losses_in_flight_do_not_fail_the_demo_and_others_do() {
        let mut end = sample([20, 11, 20]);
        end.in_flight = 5;
        let good = report([10, 10, 10], [10, 11, 10], end.clone());
        assert!(good.passed, "{:?}", good.complaints);
        assert_eq!((good.requests, good.requests_per_second, good.stopped()), (51, 26, "b"));
        end.failed.insert(Failure::TimedOut, 1);
        let bad = report([10, 10, 10], [10, 11, 10], end);
        assert_eq!(bad.complaints, ["1 requests failed that the stopped origin does not explain"]);
        assert!(!bad.passed);
    }

    #[test]
    fn every_origin_must_have_its_share() {
        let idle_before = report([10, 0, 10], [10, 0, 10], sample([20, 0, 20]));
        assert_eq!(idle_before.complaints, ["b got no request before the stop"]);
        let idle_after = report([10, 10, 10], [10, 10, 10], sample([20, 10, 10]));
        assert_eq!(idle_after.complaints, ["c got no request after the stop"]);
    }
}
