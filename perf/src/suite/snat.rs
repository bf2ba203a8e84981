//! The snat suite: connections to one real server, held until no source port is left, and what opening one costs on the way.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use towpath_config::model::Plane;

use super::sample::{Reading, Sample};
use super::stage::{Stage, explain};
use super::{Accounting, Case, Course, Mode, Options};
use crate::cpu::run_time_ns;
use crate::load::client::Held;
use crate::message::{HEADER_BYTES, Header, Kind};
use crate::peers::{Running, Subject};

/// Where on the way the cost is told: percent of the pool in use.
pub(super) const LEVELS_PERCENT: [usize; 5] = [1, 10, 50, 90, 99];

/// The cost at a level is that of the connections from so many per mille of the pool below it to as many above.
const HALF_WINDOW_PER_MILLE: usize = 10;

/// From here on, all connections are opened one by one, to see exactly where it ends.
const SINGLY_FROM_PERCENT: usize = 91;

/// Before this, a refusal is not the end of the pool: addresses that are taken by chance are not used up alike (nginx).
const EXHAUSTED_FROM_PERCENT: usize = 90;

/// How long a subject has for what a batch leaves behind, acknowledgements that it held back among it, before a cost is told: that
/// work belongs to the batch.
const REST_AFTER_BATCH: Duration = Duration::from_millis(100);

/// How long one of those may take. HAProxy tries again for three seconds before it gives up.
const SINGLE_DEADLINE: Duration = Duration::from_secs(10);

/// What is measured. A relayed connection takes two descriptors of the subject, of which the usual limit leaves 20,000: four
/// addresses have fewer ports each. The real width, 64,000 ports, belongs to the packet plane.
pub fn cases() -> Vec<Case> {
    let of = |addresses, last_port| Case {
        name: format!("snat-{addresses}-address{}", if addresses == 1 { "" } else { "es" }),
        accounting: Accounting::Plain,
        plane: Plane::Stream,
        mode: Mode::USUAL,
        tls: None,
        http: None,
        course: Course::Snat { addresses, ports: 20_000..=last_port },
    };
    vec![of(1, 22_999), of(2, 22_999), of(4, 21_799)]
}

/// As many connections as this, over so many addresses, on Towpath's packet plane; and what a lease costs there.
pub fn scale_cases(connections: usize, addresses: u8) -> Vec<Case> {
    let suffix = if addresses == 1 { "" } else { "es" };
    let of = |name, accounting, course| Case {
        name,
        accounting,
        plane: Plane::Packet,
        mode: Mode::USUAL,
        tls: None,
        http: None,
        course,
    };
    vec![
        of(format!("lease-{addresses}-address{suffix}"), Accounting::Plain, Course::Lease { addresses }),
        of(
            format!("snat-{connections}-over-{addresses}"),
            // As with network cards: the balancer's CPU receives what is sent to it.
            Accounting::Steered,
            Course::Scale { addresses, connections },
        ),
    ]
}

/// Fills the pool through a subject.
pub(super) fn take(case: &Case, subject: &Subject, options: &Options, stage: &Stage) -> io::Result<Vec<Sample>> {
    let _origin = stage.open_origin(case, 1, options)?;
    let mut running = stage.start(subject)?;
    let capacity = stage.setting().pool.as_ref().map_or(0, crate::peers::Pool::capacity);
    let filled = fill(case, capacity, stage, running.as_ref());
    let samples = filled.map_err(|error| explain(error, &mut running))?;
    stage.stop(subject, running)?;
    Ok(samples)
}

fn fill(case: &Case, capacity: usize, stage: &Stage, running: Option<&Running>) -> io::Result<Vec<Sample>> {
    let target = stage.setting().listen;
    let processes = running.map(Running::processes).transpose()?.unwrap_or_default();
    let mut open = Open { target, batches: Vec::new(), singles: Vec::new(), count: 0 };
    let mut samples = Vec::new();
    for level in LEVELS_PERCENT {
        let [from, to] = window(level, capacity);
        let told = |error: io::Error| io::Error::new(error.kind(), format!("towards {level} % of the pool: {error}"));
        let batched = from.min(capacity * SINGLY_FROM_PERCENT / 100);
        open.batch(batched, stage).map_err(told)?;
        open.singly(from, stage)?;
        let (before, first) = (run_time_ns(&processes), open.count);
        // One by one at every level: many at once cost less each.
        open.singly(to, stage)?;
        if open.count < to {
            // Nothing is left, before the level or in its midst.
            break;
        }
        let cost_us = (run_time_ns(&processes) - before) as f64 / (open.count - first) as f64 / 1000.0;
        let reading = Reading { metric: "connect-cost", unit: "µs".into(), value: cost_us, comparable: true };
        samples.push(Sample {
            case: format!("{}-at-{level}%", case.name),
            readings: vec![reading],
            ..Sample::default()
        });
    }
    // One more than there is room for: it must fail.
    open.singly(capacity + 1, stage)?;
    if open.count < capacity * EXHAUSTED_FROM_PERCENT / 100 {
        let message = format!("refused with {} connections open, of {capacity} that the pool has room for", open.count);
        return Err(io::Error::other(message));
    }
    if open.count > capacity {
        let message = format!("{} connections from a pool of {capacity}: it does not use the pool", open.count);
        return Err(io::Error::other(message));
    }
    // The refusals have not hurt those that are open.
    open.batches.iter_mut().try_for_each(Held::prove)?;
    open.singles.iter_mut().try_for_each(ask)?;
    let reading =
        Reading { metric: "connections", unit: format!("of {capacity}"), value: open.count as f64, comparable: true };
    samples.push(Sample { case: case.name.clone(), readings: vec![reading], ..Sample::default() });
    Ok(samples)
}

/// Connections that are held.
struct Open {
    target: SocketAddr,
    batches: Vec<Held>,
    singles: Vec<TcpStream>,
    count: usize,
}

impl Open {
    /// Opens connections, many at once, until there are so many.
    fn batch(&mut self, count: usize, stage: &Stage) -> io::Result<()> {
        if count > self.count {
            let (target, missing) = (self.target, count - self.count);
            self.batches.push(stage.run_client(|| Held::open(target, missing, None))??);
            self.count = count;
            thread::sleep(REST_AFTER_BATCH);
        }
        Ok(())
    }

    /// Opens connections one by one until there are so many or one fails.
    fn singly(&mut self, count: usize, stage: &Stage) -> io::Result<()> {
        let (target, missing) = (self.target, count.saturating_sub(self.count));
        let opened = stage.run_client(|| {
            let singles = (0..missing).map_while(|_| {
                let mut single = TcpStream::connect_timeout(&target, SINGLE_DEADLINE).ok()?;
                single.set_read_timeout(Some(SINGLE_DEADLINE)).ok()?;
                ask(&mut single).ok().map(|()| single)
            });
            singles.collect::<Vec<_>>()
        })?;
        self.count += opened.len();
        self.singles.extend(opened);
        Ok(())
    }
}

/// Sends a request and reads its answer.
fn ask(stream: &mut TcpStream) -> io::Result<()> {
    let request = Header { kind: Kind::Answer, tag: 1, filler_bytes: 0, answer_filler_bytes: 0 };
    stream.write_all(&request.encode())?;
    let mut answer = [0; HEADER_BYTES];
    stream.read_exact(&mut answer)?;
    match Header::decode(&answer) {
        Some(answer) if answer == request => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "bytes arrived that were not sent")),
    }
}

/// First and last connection of which the cost at a level is told.
pub(super) fn window(level_percent: usize, capacity: usize) -> [usize; 2] {
    let at = |per_mille: usize| capacity * per_mille / 1000;
    [at(level_percent * 10 - HALF_WINDOW_PER_MILLE), at(level_percent * 10 + HALF_WINDOW_PER_MILLE)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_lie_around_their_levels_and_do_not_overlap() {
        let windows = LEVELS_PERCENT.map(|level| window(level, 3000));
        assert_eq!(windows, [[0, 60], [270, 330], [1470, 1530], [2670, 2730], [2940, 3000]]);
    }

    #[test]
    fn every_pool_fits_the_descriptors_of_a_subject() {
        for case in cases() {
            let Course::Snat { addresses, ports } = case.course else { panic!("{case:?}") };
            assert!(usize::from(addresses) * ports.len() <= 8000);
        }
    }
}
