//! Suites: cases that every subject goes through in turns, A B A B, so that a bad minute of the machine hits them all.

pub mod relay;

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use towpath_sys::host::pin_thread;

use crate::cpu::softirq_threads;
use crate::lab::{Lab, Steering};
use crate::load::client;
use crate::load::{Pace, Plan, Tally, Work, new_histogram};
use crate::machine::Machine;
use crate::peers::{Running, Setting, Subject};
use crate::report::{Better, Report, Row, SCHEMA, Spread, latency_curve, ratio};

/// How busy a CPU is called the ceiling.
const SATURATED: f64 = 0.95;

/// What others may use of the watched CPUs before a figure counts as disturbed.
pub const OTHERS_SHARE_MAX: f64 = 0.1;

/// How long a subject may take until it serves.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// Between two looks at whether a subject serves yet.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Whose CPU does the work of receiving, and so what counts as the balancer's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accounting {
    /// As veth does it: what the balancer sends, its CPU also receives for its neighbour.
    Plain,
    /// Each host receives on its own CPU, as with network cards between them.
    Steered,
}

impl Accounting {
    /// All of them.
    pub const ALL: [Accounting; 2] = [Accounting::Plain, Accounting::Steered];

    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Accounting::Plain => "plain",
            Accounting::Steered => "steered",
        }
    }

    /// The name of a case under it.
    fn name(self, case: &str) -> String {
        match self {
            Accounting::Plain => case.to_owned(),
            Accounting::Steered => format!("{case}-steered"),
        }
    }
}

/// One thing that is measured.
#[derive(Clone, Debug)]
pub struct Case {
    /// In words: `keepalive-128B-64c`, and `keepalive-128B-64c-steered` for the same under the other accounting.
    pub name: String,
    /// Whose CPU receives.
    pub accounting: Accounting,
    /// What clients do.
    pub work: Work,
    /// What is counted.
    pub unit: Unit,
}

/// What the pieces of work of a case are called in a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Connections.
    Connections,
    /// Bytes, told in gigabits.
    Gigabits,
    /// Requests.
    Requests,
}

impl Unit {
    fn per(self, of: &str) -> String {
        match self {
            Unit::Connections => format!("conn/{of}"),
            Unit::Gigabits => format!("Gbit/{of}"),
            Unit::Requests => format!("req/{of}"),
        }
    }

    fn scale(self, done: u64) -> f64 {
        match self {
            Unit::Connections | Unit::Requests => done as f64,
            Unit::Gigabits => done as f64 * 8.0 / 1e9,
        }
    }
}

/// Who runs where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    /// The subject's CPU.
    pub balancer: usize,
    /// CPUs of the client and the origins.
    pub client: Vec<usize>,
}

/// How a suite is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// In the order of their turns; ratios are the first's against each other.
    pub subjects: Vec<Subject>,
    /// Turns of each subject in each case.
    pub rounds: usize,
    /// Rounds of each case that may be thrown away and taken again because other programs disturbed them.
    pub retakes: usize,
    /// Counted time of a turn.
    pub measure: Duration,
    /// Time before it that is not counted.
    pub warm_up: Duration,
    /// Who runs where.
    pub pins: Pins,
}

/// Where a suite plays: a lab, and where its origin listens.
struct Stage {
    lab: Lab,
    origin: TcpListener,
    setting: Setting,
}

/// Told before each turn.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// Name of the case.
    pub case: &'a str,
    /// From 1.
    pub round: usize,
    /// Name of the subject.
    pub subject: &'a str,
    /// How many cases are done.
    pub case_number: usize,
    /// How many subjects have had their turn in this round.
    pub subject_number: usize,
}

/// What one turn brought.
struct Outcome {
    rate: f64,
    efficiency: Option<f64>,
    p50_us: Option<f64>,
    p99_us: Option<f64>,
    balancer_cpu_s: f64,
    balancer_busy: f64,
    client_busy: f64,
    client_bound: bool,
    others_share: f64,
    steal: f64,
    tally: Tally,
}

/// Runs the cases of a suite.
fn run_cases(
    name: &str,
    cases: &[Case],
    options: &Options,
    stage: &Stage,
    mut progress: impl FnMut(Turn<'_>),
) -> io::Result<Report> {
    let mut report = Report {
        schema: SCHEMA,
        suite: name.to_owned(),
        machine: Machine::describe(),
        rounds: options.rounds,
        rows: Vec::new(),
        ratios: Vec::new(),
    };
    report.machine.versions = options.subjects.iter().map(|s| (s.name.clone(), s.version())).collect();
    report.machine.pins = BTreeMap::from([
        ("balancer".into(), vec![options.pins.balancer]),
        ("client".into(), options.pins.client.clone()),
    ]);
    for (case_number, case) in cases.iter().enumerate() {
        stage.lab.steer(match case.accounting {
            Accounting::Plain => Steering::Off,
            Accounting::Steered => Steering::ByHost { balancer: options.pins.balancer, others: &options.pins.client },
        })?;
        let mut outcomes: Vec<Vec<Outcome>> = options.subjects.iter().map(|_| Vec::new()).collect();
        let mut retakes_left = options.retakes;
        let mut round = 1;
        while round <= options.rounds {
            let taken = take_round(case, options, stage, |subject_number| {
                let subject = options.subjects[subject_number].name.as_str();
                progress(Turn { case: &case.name, round, subject, case_number, subject_number });
            })?;
            let disturbed = taken.iter().any(|outcome| outcome.others_share > OTHERS_SHARE_MAX);
            if disturbed && retakes_left > 0 {
                // The whole round goes: its turns belong together.
                retakes_left -= 1;
                report.machine.rounds_retaken += 1;
                continue;
            }
            for (outcome, outcomes) in taken.into_iter().zip(&mut outcomes) {
                report.machine.others_share_max = report.machine.others_share_max.max(outcome.others_share);
                report.machine.steal_share_max = report.machine.steal_share_max.max(outcome.steal);
                outcomes.push(outcome);
            }
            round += 1;
        }
        for (subject, outcomes) in options.subjects.iter().zip(&outcomes) {
            report.rows.extend(rows(case, subject, outcomes));
        }
        if let Some((ours, others)) = outcomes.split_first() {
            for (subject, theirs) in options.subjects[1..].iter().zip(others) {
                let figures = |outcomes: &[Outcome], of: fn(&Outcome) -> Option<f64>| -> Vec<f64> {
                    outcomes.iter().map(|outcome| of(outcome).unwrap_or(f64::NAN)).collect()
                };
                type Figure = fn(&Outcome) -> Option<f64>;
                let metrics: [(&str, Figure, Better); 4] = [
                    ("rate", |o| Some(o.rate), Better::Higher),
                    ("efficiency", |o| o.efficiency, Better::Higher),
                    ("p50", |o| o.p50_us, Better::Lower),
                    ("p99", |o| o.p99_us, Better::Lower),
                ];
                for (metric, of, better) in metrics {
                    let (ours, theirs) = (figures(ours, of), figures(theirs, of));
                    report.ratios.extend(ratio(&case.name, metric, &subject.name, &ours, &theirs, better));
                }
            }
        }
    }
    Ok(report)
}

/// A turn of each subject.
fn take_round(
    case: &Case,
    options: &Options,
    stage: &Stage,
    mut progress: impl FnMut(usize),
) -> io::Result<Vec<Outcome>> {
    options
        .subjects
        .iter()
        .enumerate()
        .map(|(number, subject)| {
            progress(number);
            take_turn(case, subject, options, stage)
                .map_err(|error| io::Error::new(error.kind(), format!("{} in {}: {error}", subject.name, case.name)))
        })
        .collect()
}

/// Starts a subject, drives the case at it, stops it.
fn take_turn(case: &Case, subject: &Subject, options: &Options, stage: &Stage) -> io::Result<Outcome> {
    let Stage { lab, setting, .. } = stage;
    let mut running = subject.start(lab.balancer(), setting)?;
    await_service(lab, setting.listen, &mut running)?;
    let watch_cpus = [options.pins.balancer].into_iter().chain(options.pins.client.iter().copied()).collect();
    let mut watch_processes = running.processes()?;
    watch_processes.extend(softirq_threads()?);
    let plan = Plan {
        target: setting.listen,
        work: case.work,
        pace: Pace::Closed,
        warm_up: options.warm_up,
        measure: options.measure,
        watch_cpus,
        watch_processes,
    };
    let tally = drive(stage, options, plan);
    // A subject that has crashed is the reason for whatever its client saw.
    running.ensure_alive()?;
    let tally = tally.map_err(|error| match running.said().as_str() {
        "" => error,
        said => io::Error::new(error.kind(), format!("{error}; the subject said:\n{said}")),
    })?;
    running.stop()?;

    let [balancer, clients @ ..] = tally.cpus.as_slice() else {
        return Err(io::Error::other("the client told nothing about CPUs"));
    };
    let client_busy = clients.iter().map(|cpu| cpu.busy_share).fold(0.0, f64::max);
    let busy_s: f64 = tally.cpus.iter().map(|cpu| cpu.busy_s).sum();
    let histogram = tally.histogram();
    let quantile_us = |q: f64| (!histogram.is_empty()).then(|| histogram.value_at_quantile(q) as f64 / 1000.0);
    let work = case.unit.scale(tally.done);
    Ok(Outcome {
        rate: work / tally.seconds,
        efficiency: (balancer.busy_s > 0.0).then(|| work / balancer.busy_s),
        p50_us: quantile_us(0.5),
        p99_us: quantile_us(0.99),
        balancer_cpu_s: balancer.busy_s,
        balancer_busy: balancer.busy_share,
        client_busy,
        client_bound: client_busy >= SATURATED && balancer.busy_share < SATURATED,
        others_share: if busy_s > 0.0 { (1.0 - tally.processes_s / busy_s).max(0.0) } else { 0.0 },
        steal: tally.cpus.iter().map(|cpu| cpu.steal_share).fold(0.0, f64::max),
        tally,
    })
}

/// Waits until a subject accepts connections.
fn await_service(lab: &Lab, listen: SocketAddr, running: &mut Running) -> io::Result<()> {
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        running.ensure_alive()?;
        let tried = lab.client().run(|| TcpStream::connect_timeout(&listen, Duration::from_secs(1)))?;
        match tried {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                let said = running.said();
                return Err(io::Error::new(
                    error.kind(),
                    format!("not serving after {START_DEADLINE:?}: {error}; it said:\n{said}"),
                ));
            }
            Err(_) => thread::sleep(LOOK_INTERVAL),
        }
    }
}

/// Runs the client, and the origin beside it, on a thread of their own in the client's namespace.
fn drive(stage: &Stage, options: &Options, plan: Plan) -> io::Result<Tally> {
    let cpus = options.pins.client.clone();
    // Connections of the turn before are gone with its thread; the listener stays.
    let origin = stage.origin.try_clone()?;
    let client = stage.lab.client().start(move || {
        pin_thread(&cpus)?;
        client::run_beside_origin(&plan, vec![origin], Vec::new())
    })?;
    client.join().map_err(|_| io::Error::other("the client has panicked"))??
}

fn rows(case: &Case, subject: &Subject, outcomes: &[Outcome]) -> Vec<Row> {
    let mut histogram = new_histogram();
    for outcome in outcomes {
        for &(value, count) in &outcome.tally.latency_ns {
            histogram.saturating_record_n(value, count);
        }
    }
    let quantile_us = |q: f64| (!histogram.is_empty()).then(|| histogram.value_at_quantile(q) as f64 / 1000.0);
    let median = |of: fn(&Outcome) -> f64| {
        Spread::of(&outcomes.iter().map(of).collect::<Vec<_>>()).map_or(0.0, |spread| spread.median)
    };
    let rates: Vec<f64> = outcomes.iter().map(|outcome| outcome.rate).collect();
    let efficiencies: Vec<f64> = outcomes.iter().filter_map(|outcome| outcome.efficiency).collect();
    let bound = outcomes.iter().filter(|outcome| outcome.client_bound).count();
    [("rate", "s", rates), ("efficiency", "CPU-s", efficiencies)]
        .into_iter()
        .filter_map(|(metric, of, figures)| {
            let spread = Spread::of(&figures)?;
            Some(Row {
                case: case.name.clone(),
                metric: metric.to_owned(),
                unit: case.unit.per(of),
                subject: subject.name.clone(),
                median: spread.median,
                min: spread.min,
                max: spread.max,
                p50_us: quantile_us(0.5),
                p99_us: quantile_us(0.99),
                p999_us: quantile_us(0.999),
                latency: latency_curve(&histogram),
                balancer_cpu_s: median(|o| o.balancer_cpu_s),
                balancer_busy: median(|o| o.balancer_busy),
                client_busy: median(|o| o.client_busy),
                others_share: median(|o| o.others_share),
                client_bound: bound * 2 > outcomes.len(),
                ..Row::default()
            })
        })
        .collect()
}
