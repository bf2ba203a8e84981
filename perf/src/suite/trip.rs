//! A turn of single requests: what a subject adds to the round trip of one, beside the way without it.

use std::io;

use super::load::Load;
use super::sample::{Reading, Sample};
use super::stage::{Stage, explain};
use super::{Case, Options, Unit};
use crate::load::{Pace, Work, new_histogram};
use crate::peers::Subject;

/// One connection that stays, and one small request at a time.
const WORK: Work = Work::KeepAlive { connections: 1, idle: 0, request_bytes: 128, answer_bytes: 128 };

/// First along a route through the balancer's host, whose kernel only forwards, then through the subject.
pub(super) fn take(case: &Case, subject: &Subject, options: &Options, stage: &Stage) -> io::Result<Vec<Sample>> {
    let load = |target| Load { case, work: WORK, unit: Unit::Requests, equal_rate: None, target };
    let direct = stage.routed(|server| {
        let origin = stage.open_origin(case, 1, options)?;
        load(server).drive(Pace::Closed, origin, subject, options, stage, None)
    })?;
    let origin = stage.open_origin(case, 1, options)?;
    let mut running = stage.start(subject)?;
    let through = load(stage.setting().listen)
        .drive(Pace::Closed, origin, subject, options, stage, running.as_ref())
        .map_err(|error| explain(error, &mut running))?;
    stage.stop(subject, running)?;
    let [direct_us, through_us] = [&direct, &through].map(p50_us);
    let added_us = through_us - direct_us;
    let reading = |metric, value, comparable| Reading { metric, unit: "µs".into(), value, comparable };
    let readings = vec![
        reading("p50", through_us, true),
        reading("direct-p50", direct_us, false),
        // Against nothing or less there is no ratio.
        reading("added-p50", added_us, added_us > 0.0),
    ];
    Ok(vec![Sample { readings, phase: None, per_second: None, ..through }])
}

fn p50_us(sample: &Sample) -> f64 {
    let mut histogram = new_histogram();
    sample.latency_ns.iter().for_each(|&(value, count)| histogram.saturating_record_n(value, count));
    histogram.value_at_quantile(0.5) as f64 / 1000.0
}
