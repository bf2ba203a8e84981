//! A turn of load: at saturation, and at the rate that is equal for all subjects.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use towpath_sys::host::pin_thread;

use super::sample::{Reading, Sample, panicked};
use super::stage::{Origin, Stage, explain};
use super::{Accounting, Case, Options, Unit};
use crate::cpu::{CpuUse, process_seconds_on, softirq_threads};
use crate::load::{Pace, Plan, Tally, Work, client};
use crate::peers::{Kind, Running, Subject};
use crate::report::Phase;

/// How busy a CPU is called the ceiling.
pub(super) const SATURATED: f64 = 0.95;

/// Share of the offered work below which an open loop fell behind.
const KEPT_UP_MIN: f64 = 0.99;

/// See the module.
pub(super) struct Load<'a> {
    pub(super) case: &'a Case,
    pub(super) work: Work,
    pub(super) unit: Unit,
    /// Pieces of work per second of the second phase; none without one.
    pub(super) equal_rate: Option<f64>,
    /// Where clients connect to.
    pub(super) target: SocketAddr,
}

impl Load<'_> {
    /// Starts a subject, drives the work at it, stops it.
    pub(super) fn take(&self, subject: &Subject, options: &Options, stage: &Stage) -> io::Result<Vec<Sample>> {
        let paces = [Some(Pace::Closed), self.equal_rate.map(|per_second| Pace::Open { per_second })];
        let mut samples = Vec::new();
        let threads = parts(self.work, options.pins.client.len());
        let mut running = None;
        for pace in paces.into_iter().flatten() {
            let origin = stage.open_origin(self.case, threads, options)?;
            // Started after the origin is there, so that no check of a subject's own finds it missing.
            if running.is_none() {
                running = stage.start(subject)?;
            }
            let sample = self.drive(pace, origin, subject, options, stage, running.as_ref());
            samples.push(sample.map_err(|error| explain(error, &mut running))?);
        }
        stage.stop(subject, running)?;
        Ok(samples)
    }

    /// Drives the work once.
    pub(super) fn drive(
        &self,
        pace: Pace,
        origin: Origin,
        subject: &Subject,
        options: &Options,
        stage: &Stage,
        running: Option<&Running>,
    ) -> io::Result<Sample> {
        let mut cpus = options.pins.client.clone();
        if running.is_some() {
            cpus.insert(0, options.pins.balancer);
        }
        let mut processes = running.map(Running::processes).transpose()?.unwrap_or_default();
        processes.extend(softirq_threads()?);
        match &origin {
            Origin::Apart(child) => processes.push(child.id()),
            Origin::Shared(id) => processes.push(*id),
            Origin::Beside(..) | Origin::Elsewhere => {}
        }
        let plan = Plan {
            target: self.target,
            work: self.work,
            pace,
            security: self.case.security(),
            framing: self.case.framing(subject.kind),
            warm_up: options.warm_up,
            measure: options.measure,
            watch_cpus: cpus.clone(),
            watch_processes: processes.clone(),
        };
        processes.push(std::process::id());
        let others = Others::watch(&cpus, &processes)?;
        let tally = drive(stage, options, &plan, origin)?;
        let (balancer, clients) = match running {
            None => (None, tally.cpus.as_slice()),
            Some(_) => match tally.cpus.split_first() {
                Some((balancer, clients)) => (Some(*balancer), clients),
                None => return Err(io::Error::other("the client told nothing about CPUs")),
            },
        };
        let others_share = match self.case.accounting {
            // All work is done in the name of some process.
            Accounting::Plain if subject.kind != Kind::Kernel => {
                let busy_s: f64 = tally.cpus.iter().map(|cpu| cpu.busy_s).sum();
                if busy_s > 0.0 { (1.0 - tally.processes_s / busy_s).max(0.0) } else { 0.0 }
            }
            // What arrives while nobody runs is nobody's.
            Accounting::Plain | Accounting::Steered => {
                others.share(tally.cpus.iter().map(|cpu| cpu.busy_s).sum::<f64>() / tally.seconds)?
            }
        };
        // In the plain accounting the kernel relays in the name of the client that sends: nobody's work is the balancer's.
        let own_cpu = balancer.filter(|_| subject.kind != Kind::Kernel || self.case.accounting == Accounting::Steered);
        let client_busy = clients.iter().map(|cpu| cpu.busy_share).fold(0.0, f64::max);
        let client_busy = (client_busy - tally.spun_s / tally.seconds).max(0.0);
        let balancer_busy = balancer.map_or(0.0, |cpu| cpu.busy_share);
        let kept_up = kept_up(&tally);
        Ok(Sample {
            case: self.case.name.clone(),
            phase: Some(phase(pace)),
            readings: self.readings(pace, &tally, own_cpu, kept_up),
            per_second: Some(tally.rate()),
            offered_per_s: tally.offered.map(|offered| self.unit.scale(offered) / tally.seconds),
            balancer_cpu_s: balancer.map_or(0.0, |cpu| cpu.busy_s),
            balancer_busy,
            client_busy,
            client_bound: is_client_bound(client_busy, balancer_busy, tally.offered.is_none() || !kept_up),
            others_share,
            steal_share: tally.cpus.iter().map(|cpu| cpu.steal_share).fold(0.0, f64::max),
            latency_ns: tally.latency_ns,
        })
    }

    fn readings(&self, pace: Pace, tally: &Tally, balancer: Option<CpuUse>, kept_up: bool) -> Vec<Reading> {
        let work = self.unit.scale(tally.done);
        let reading = |metric, unit: String, value, comparable| Reading { metric, unit, value, comparable };
        let efficiency = balancer.filter(|cpu| cpu.busy_s > 0.0).map(|cpu| work / cpu.busy_s);
        let is_full = balancer.is_some_and(|cpu| cpu.busy_share >= SATURATED);
        let (per_s, per_cpu_s) = (self.unit.per("s"), self.unit.per("CPU-s"));
        let mut readings = Vec::new();
        match pace {
            Pace::Closed => {
                readings.push(reading("rate", per_s, work / tally.seconds, true));
                readings.extend(efficiency.map(|value| reading("efficiency-saturated", per_cpu_s, value, is_full)));
            }
            Pace::Open { .. } => {
                readings.push(reading("rate", per_s, work / tally.seconds, false));
                // Who fell behind has done other work than the others.
                readings.extend(efficiency.map(|value| reading("efficiency", per_cpu_s, value, kept_up)));
                let histogram = tally.histogram();
                if !histogram.is_empty() {
                    for (metric, quantile) in [("p50", 0.5), ("p99", 0.99)] {
                        // A stall shows here, whether the rate was kept up or not.
                        let us = histogram.value_at_quantile(quantile) as f64 / 1000.0;
                        readings.push(reading(metric, "µs".into(), us, true));
                    }
                }
            }
        }
        if self.unit == Unit::Datagrams {
            let sent = tally.done + tally.lost;
            let percent = if sent > 0 { tally.lost as f64 * 100.0 / sent as f64 } else { 0.0 };
            // Nothing lost is what is expected, and no ratio can be told to it.
            readings.push(reading("loss", "%".into(), percent, false));
        }
        readings
    }
}

fn phase(pace: Pace) -> Phase {
    match pace {
        Pace::Closed => Phase::Saturation,
        Pace::Open { .. } => Phase::EqualRate,
    }
}

fn kept_up(tally: &Tally) -> bool {
    tally.offered.is_none_or(|offered| tally.done as f64 >= offered as f64 * KEPT_UP_MIN)
}

/// Whether the client was the ceiling: it had no time left, the balancer had, and there was more to do than was done, as there
/// always is in a closed loop. An open one that kept up has met no ceiling.
pub(super) fn is_client_bound(client_busy: f64, balancer_busy: f64, more_to_do: bool) -> bool {
    client_busy >= SATURATED && balancer_busy < SATURATED && more_to_do
}

/// Threads that have something to do.
fn parts(work: Work, cpus: usize) -> usize {
    let count = match work {
        Work::Bulk { streams } => streams,
        Work::Connect { concurrency, .. } | Work::Handshake { concurrency } => concurrency,
        Work::Datagrams { flows, .. } => flows,
        Work::Hold { connections } | Work::KeepAlive { connections, .. } => connections,
    };
    cpus.min(count).max(1)
}

/// What one of several threads does of the work.
fn part(work: Work, number: usize, parts: usize) -> Work {
    let of = |count: usize| count / parts + usize::from(number < count % parts);
    match work {
        Work::Bulk { streams } => Work::Bulk { streams: of(streams) },
        Work::Connect { concurrency, request_bytes, answer_bytes } => {
            Work::Connect { concurrency: of(concurrency), request_bytes, answer_bytes }
        }
        Work::Datagrams { flows, payload_bytes } => Work::Datagrams { flows: of(flows), payload_bytes },
        Work::Handshake { concurrency } => Work::Handshake { concurrency: of(concurrency) },
        Work::Hold { connections } => Work::Hold { connections: of(connections) },
        Work::KeepAlive { connections, idle, request_bytes, answer_bytes } => {
            Work::KeepAlive { connections: of(connections), idle: of(idle), request_bytes, answer_bytes }
        }
    }
}

/// Drives a plan with a thread on each of the client's CPUs.
fn drive(stage: &Stage, options: &Options, plan: &Plan, origin: Origin) -> io::Result<Tally> {
    let parts = parts(plan.work, options.pins.client.len());
    let (mut listeners, mut sockets, apart) = match origin {
        Origin::Apart(child) => (Vec::new(), Vec::new(), Some(child)),
        Origin::Beside(listeners, sockets) => (listeners, sockets, None),
        Origin::Elsewhere | Origin::Shared(_) => (Vec::new(), Vec::new(), None),
    };
    let clients = options.pins.client.iter().take(parts).enumerate().map(|(number, &cpu)| {
        let mut plan = plan.clone();
        plan.work = part(plan.work, number, parts);
        if let Pace::Open { per_second } = &mut plan.pace {
            *per_second /= parts as f64;
        }
        if number > 0 {
            plan.watch_cpus.clear();
        }
        let (listeners, sockets) = (Vec::from_iter(listeners.pop()), Vec::from_iter(sockets.pop()));
        stage.start_client(move || {
            pin_thread(&[cpu])?;
            client::run_beside_origin(&plan, listeners, sockets)
        })
    });
    let clients = clients.collect::<io::Result<Vec<_>>>()?;
    let tallies: Vec<io::Result<Tally>> = clients.into_iter().map(|client| client.join().map_err(panicked)??).collect();
    drop(apart);
    let tallies = tallies.into_iter().collect::<io::Result<Vec<_>>>()?;
    tallies.into_iter().reduce(Tally::merge).ok_or_else(|| io::Error::other("no client CPU"))
}

/// What processes that are not ours do on some CPUs.
pub(super) struct Others {
    cpus: Vec<usize>,
    ours: Vec<u32>,
    before: BTreeMap<u32, f64>,
    since: Instant,
}

impl Others {
    pub(super) fn watch(cpus: &[usize], ours: &[u32]) -> io::Result<Others> {
        let before = process_seconds_on(cpus)?;
        Ok(Others { cpus: cpus.to_vec(), ours: ours.to_vec(), before, since: Instant::now() })
    }

    /// Their share of the work on these CPUs, which were busy for so many seconds in a second.
    pub(super) fn share(&self, busy_share: f64) -> io::Result<f64> {
        let elapsed_s = self.since.elapsed().as_secs_f64();
        let others_s: f64 = process_seconds_on(&self.cpus)?
            .into_iter()
            .filter(|(pid, _)| !self.ours.contains(pid))
            // One that is new has done all its work since.
            .map(|(pid, seconds)| (seconds - self.before.get(&pid).copied().unwrap_or(0.0)).max(0.0))
            .sum();
        Ok(if busy_share > 0.0 { (others_s / elapsed_s / busy_share).min(1.0) } else { 0.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_the_ceiling_only_where_it_is_full_and_the_balancer_is_not() {
        // client, balancer, more to do → bound
        for (client, balancer, more_to_do, bound) in [
            (0.99, 0.60, true, true),
            (0.95, 0.94, true, true),
            (0.99, 0.99, true, false),
            (0.94, 0.60, true, false),
            (0.99, 0.60, false, false),
        ] {
            assert_eq!(is_client_bound(client, balancer, more_to_do), bound, "{client} {balancer} {more_to_do}");
        }
    }

    #[test]
    fn parts_of_the_work_are_the_whole() {
        let work = Work::KeepAlive { connections: 5, idle: 7, request_bytes: 1, answer_bytes: 2 };
        assert_eq!(parts(work, 3), 3);
        assert_eq!(parts(work, 64), 5);
        let shares: Vec<(usize, usize)> = (0..3)
            .map(|number| match part(work, number, 3) {
                Work::KeepAlive { connections, idle, .. } => (connections, idle),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(shares, [(2, 3), (2, 2), (1, 2)]);
        assert_eq!(part(Work::Bulk { streams: 1 }, 0, 1), Work::Bulk { streams: 1 });
    }
}
