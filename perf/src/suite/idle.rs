//! A turn without any load: what a subject's processes do by themselves.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::sample::{Reading, Sample};
use super::stage::{Stage, explain};
use super::{Case, Options};
use crate::cpu::run_time_ns;
use crate::peers::{Running, Subject};

/// What a start leaves to do is over by then.
const SETTLE: Duration = Duration::from_secs(1);

/// Timers of a second or two have to show.
const WATCH_MIN: Duration = Duration::from_secs(4);

/// The share of a CPU that the subject uses with nothing to do.
pub(super) fn take(case: &Case, subject: &Subject, options: &Options, stage: &Stage) -> io::Result<Vec<Sample>> {
    let _origin = stage.open_origin(case, 1, options)?;
    let mut running = stage.start(subject)?;
    let percent = watch(options, running.as_ref()).map_err(|error| explain(error, &mut running))?;
    stage.stop(subject, running)?;
    let reading = Reading { metric: "busy", unit: "% of a CPU".into(), value: percent, comparable: percent > 0.0 };
    Ok(vec![Sample { case: case.name.clone(), readings: vec![reading], ..Sample::default() }])
}

fn watch(options: &Options, running: Option<&Running>) -> io::Result<f64> {
    thread::sleep(SETTLE);
    let processes = running.map(Running::processes).transpose()?.unwrap_or_default();
    let (started, before) = (Instant::now(), run_time_ns(&processes));
    thread::sleep(options.measure.max(WATCH_MIN));
    let used_s = (run_time_ns(&processes) - before) as f64 / 1e9;
    Ok(used_s / started.elapsed().as_secs_f64() * 100.0)
}
