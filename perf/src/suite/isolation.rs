//! A turn of plain requests at a constant rate: in quiet, and beside a flood of TLS handshakes, twice as many as the subject can do.

use std::io;
use std::net::SocketAddr;

use hdrhistogram::Histogram;
use towpath_sys::host::{give_way, pin_thread};

use super::load::Load;
use super::sample::{Reading, Sample, panicked};
use super::stage::{Origin, Stage, explain};
use super::{Case, Options, Unit};
use crate::load::{Pace, Plan, Security, Tally, Work, client};
use crate::message::Framing;
use crate::peers::{Running, Subject};
use crate::report::Phase;

/// Plain connections that the requests are on.
const PLAIN: Work = Work::KeepAlive { connections: 16, idle: 0, request_bytes: 128, answer_bytes: 128 };

/// Handshakes at once, to find out how many a subject can do.
const SATURATING: usize = 64;

/// Handshakes of the flood under way at most, on connections of their own.
const FLOOD_MAX: usize = 512;

/// The flood, of what the subject can do.
const FLOOD: f64 = 2.0;

/// What is told of the latencies.
const QUANTILES: [(f64, [&str; 3]); 3] = [
    (0.5, ["quiet-p50", "p50", "slowdown-p50"]),
    (0.9, ["quiet-p90", "p90", "slowdown-p90"]),
    (0.99, ["quiet-p99", "p99", "slowdown-p99"]),
];

/// Latencies in quiet and in the flood, their ratios, and the handshakes that were done meanwhile.
pub(super) fn take(
    case: &Case,
    per_second: u32,
    subject: &Subject,
    options: &Options,
    stage: &Stage,
) -> io::Result<Vec<Sample>> {
    // It serves all of them, also those who are cut off.
    let origin = stage.open_origin(case, 1, options)?;
    let mut running = stage.start(subject)?;
    let answering = || match &origin {
        Origin::Apart(child) => Origin::Shared(child.id()),
        _ => Origin::Elsewhere,
    };
    let sample = measure(case, per_second, answering, subject, options, stage, running.as_ref());
    let sample = sample.map_err(|error| explain(error, &mut running))?;
    stage.stop(subject, running)?;
    Ok(vec![sample])
}

fn measure(
    case: &Case,
    per_second: u32,
    answering: impl Fn() -> Origin,
    subject: &Subject,
    options: &Options,
    stage: &Stage,
    running: Option<&Running>,
) -> io::Result<Sample> {
    let (plain, secure) = (stage.setting().listen, stage.target());
    let quiet_case = Case { tls: None, ..case.clone() };
    let requests = || {
        let pace = Pace::Open { per_second: f64::from(per_second) };
        let load = Load { case: &quiet_case, work: PLAIN, unit: Unit::Requests, equal_rate: None, target: plain };
        load.drive(pace, answering(), subject, options, stage, running)
    };
    let quiet = requests()?;
    let capacity = shake_hands(case, secure, Pace::Closed, SATURATING, options, stage)?()?;
    let pace = Pace::Open { per_second: capacity.rate() * FLOOD };
    let flood = shake_hands(case, secure, pace, FLOOD_MAX, options, stage)?;
    let flooded = requests();
    let (handshakes, refused) = match flood() {
        Ok(tally) => (tally.rate(), tally.lost as f64 / tally.seconds),
        // Others may be served so well that none was done.
        Err(error) if error.kind() == io::ErrorKind::TimedOut => (0.0, 0.0),
        Err(error) => return Err(error),
    };
    let flooded = flooded?;
    let mut readings = Vec::new();
    let histograms = [&quiet, &flooded].map(|sample| histogram(&sample.latency_ns));
    let reading = |metric, unit: &str, value, comparable| Reading { metric, unit: unit.into(), value, comparable };
    for (quantile, [of_quiet, of_flooded, slowdown]) in QUANTILES {
        let [before, after] = [0, 1].map(|at| histograms[at].value_at_quantile(quantile) as f64 / 1000.0);
        readings.push(reading(of_quiet, "µs", before, true));
        readings.push(reading(of_flooded, "µs", after, true));
        readings.push(reading(slowdown, "×", after / before, false));
    }
    readings.push(reading("handshake-capacity", "handshakes/s", capacity.rate(), true));
    readings.push(reading("handshake-rate", "handshakes/s", handshakes, true));
    readings.push(reading("handshakes-refused", "handshakes/s", refused, false));
    Ok(Sample { readings, phase: Some(Phase::EqualRate), per_second: None, ..flooded })
}

/// Begins to shake hands on the last of the client's CPUs; a flood gives way to everything else there, so that its clients do not delay those whose
/// latency is told. What is returned waits for the end.
fn shake_hands(
    case: &Case,
    target: SocketAddr,
    pace: Pace,
    concurrency: usize,
    options: &Options,
    stage: &Stage,
) -> io::Result<impl FnOnce() -> io::Result<Tally> + use<>> {
    let plan = Plan {
        target,
        work: Work::Handshake { concurrency },
        pace,
        security: Security { origin: false, ..case.security() },
        framing: Framing::Bare,
        warm_up: options.warm_up,
        // Beyond those who are told of.
        measure: options.measure + options.warm_up,
        watch_cpus: Vec::new(),
        watch_processes: Vec::new(),
    };
    let cpu = options.pins.client.last().copied();
    let flood = stage.start_client(move || {
        pin_thread(&Vec::from_iter(cpu))?;
        if plan.pace != Pace::Closed {
            give_way()?;
        }
        client::run(&plan)
    })?;
    Ok(move || flood.join().map_err(panicked)??)
}

fn histogram(latency_ns: &[(u64, u64)]) -> Histogram<u64> {
    let mut histogram = crate::load::new_histogram();
    latency_ns.iter().for_each(|&(value, count)| histogram.saturating_record_n(value, count));
    histogram
}
