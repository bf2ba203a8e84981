//! A turn of idle connections: what one more costs in the subject's own memory.

use std::io;

use super::sample::{Reading, Sample};
use super::stage::{Stage, explain};
use super::{Case, Options};
use crate::cpu::memory_bytes;
use crate::load::client::Held;
use crate::peers::{Running, Subject};

/// Holds so many connections, then so many more, and tells what the difference is in memory. The kernel's for the sockets is
/// not in it.
pub(super) fn take(
    case: &Case,
    counts: [usize; 2],
    subject: &Subject,
    options: &Options,
    stage: &Stage,
) -> io::Result<Vec<Sample>> {
    let _origin = stage.open_origin(case, 1, options)?;
    let mut running = stage.start(subject)?;
    let measured = measure(case, counts, stage, running.as_ref());
    let [few, many] = measured.map_err(|error| explain(error, &mut running))?;
    stage.stop(subject, running)?;
    let bytes = (many as f64 - few as f64).max(0.0) / (counts[1] - counts[0]) as f64;
    let reading = Reading { metric: "memory", unit: "B/conn".into(), value: bytes, comparable: true };
    Ok(vec![Sample { case: case.name.clone(), readings: vec![reading], ..Sample::default() }])
}

fn measure(case: &Case, counts: [usize; 2], stage: &Stage, running: Option<&Running>) -> io::Result<[u64; 2]> {
    let (target, tls) = (stage.target(), case.security().client);
    let mut held: Vec<Held> = Vec::new();
    let mut bytes = [0; 2];
    let mut open = 0;
    for (count, bytes) in counts.into_iter().zip(&mut bytes) {
        held.push(stage.run_client(|| Held::open(target, count - open, tls))??);
        open = count;
        // Every answer has come through: what the relay held for the opening is given back as far as it gives back.
        held.iter_mut().try_for_each(Held::prove)?;
        *bytes = memory_bytes(&running.map(Running::processes).transpose()?.unwrap_or_default());
    }
    Ok(bytes)
}
