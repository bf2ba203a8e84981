//! Suites: cases that every subject goes through in turns, A B A B, so that a bad minute of the machine hits them all.

pub mod relay;

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use towpath_sys::process::{Child, MemoryFile};

use crate::cpu::softirq_threads;
use crate::lab::Lab;
use crate::load::{Plan, Tally, Work, new_histogram};
use crate::machine::Machine;
use crate::peers::{Running, Setting, Subject};
use crate::report::{Better, Report, Row, Spread, ratio};

/// How busy a CPU is called the ceiling.
const SATURATED: f64 = 0.95;

/// What others may use of the watched CPUs before a figure counts as disturbed.
pub const OTHERS_SHARE_MAX: f64 = 0.1;

/// How long a subject or an origin may take until it serves.
const START_DEADLINE: Duration = Duration::from_secs(10);

/// How long a load may take beyond its own time.
const LOAD_GRACE: Duration = Duration::from_secs(20);

/// Between two looks at whether a subject serves yet.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// One thing that is measured.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// In words: `keepalive-128B-64c`.
    pub name: &'static str,
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
    /// Counted time of a turn.
    pub measure: Duration,
    /// Time before it that is not counted.
    pub warm_up: Duration,
    /// Who runs where.
    pub pins: Pins,
    /// The program `towpath-perf`, which also is client and origin.
    pub program: PathBuf,
}

/// Where a suite plays: a lab whose origin serves.
struct Stage {
    lab: Lab,
    origin: Child,
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
    for case in cases {
        let mut outcomes: Vec<Vec<Outcome>> = options.subjects.iter().map(|_| Vec::new()).collect();
        for round in 1..=options.rounds {
            for (subject, outcomes) in options.subjects.iter().zip(&mut outcomes) {
                progress(Turn { case: case.name, round, subject: &subject.name });
                let outcome = take_turn(case, subject, options, stage).map_err(|error| {
                    io::Error::new(error.kind(), format!("{} in {}, round {round}: {error}", subject.name, case.name))
                })?;
                report.machine.others_share_max = report.machine.others_share_max.max(outcome.others_share);
                report.machine.steal_share_max = report.machine.steal_share_max.max(outcome.steal);
                outcomes.push(outcome);
            }
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
                    report.ratios.extend(ratio(case.name, metric, &subject.name, &ours, &theirs, better));
                }
            }
        }
    }
    Ok(report)
}

/// Starts a subject, drives the case at it, stops it.
fn take_turn(case: &Case, subject: &Subject, options: &Options, stage: &Stage) -> io::Result<Outcome> {
    let Stage { lab, origin, setting } = stage;
    let mut running = subject.start(lab.balancer(), setting)?;
    await_service(lab, setting.listen, &mut running)?;
    let watch_cpus = [options.pins.balancer].into_iter().chain(options.pins.client.iter().copied()).collect();
    let mut watch_processes = running.processes()?;
    watch_processes.push(origin.id());
    watch_processes.extend(softirq_threads()?);
    let plan = Plan {
        target: setting.listen,
        work: case.work,
        warm_up: options.warm_up,
        measure: options.measure,
        watch_cpus,
        watch_processes,
    };
    let tally = drive(lab, options, &plan);
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

/// Runs a client in a process of its own: one thread, one descriptor table.
fn drive(lab: &Lab, options: &Options, plan: &Plan) -> io::Result<Tally> {
    let told = MemoryFile::create(b"")?;
    let complained = MemoryFile::create(b"")?;
    let mut command = Command::new(&options.program);
    command.arg("drive").arg(serde_json::to_string(plan)?);
    command.stdin(Stdio::null()).stdout(told.writer()?).stderr(complained.writer()?);
    let mut client = lab.client().spawn_on(&options.pins.client, command)?;
    let patience = plan.warm_up + plan.measure + LOAD_GRACE;
    let Some(status) = client.wait_timeout(patience)? else {
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("the client has not ended after {patience:?}")));
    };
    if !status.success() {
        let reason = String::from_utf8_lossy(&complained.read()?).trim().to_owned();
        return Err(io::Error::other(format!("client: {reason} ({status})")));
    }
    Ok(serde_json::from_slice(&told.read()?)?)
}

/// Starts an origin on the lab's first server and waits until it serves.
fn start_origin(lab: &Lab, options: &Options, address: SocketAddr) -> io::Result<Child> {
    let complained = MemoryFile::create(b"")?;
    let mut command = Command::new(&options.program);
    command.arg("origin").arg(address.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(complained.writer()?);
    let mut origin = lab.server(1).spawn_on(&options.pins.client, command)?;
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        if let Some(status) = origin.try_wait()? {
            let reason = String::from_utf8_lossy(&complained.read()?).trim().to_owned();
            return Err(io::Error::other(format!("origin: {reason} ({status})")));
        }
        match lab.balancer().run(|| TcpStream::connect_timeout(&address, Duration::from_secs(1)))? {
            Ok(_) => return Ok(origin),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => thread::sleep(LOOK_INTERVAL),
        }
    }
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
                case: case.name.to_owned(),
                metric: metric.to_owned(),
                unit: case.unit.per(of),
                subject: subject.name.clone(),
                median: spread.median,
                min: spread.min,
                max: spread.max,
                p50_us: quantile_us(0.5),
                p99_us: quantile_us(0.99),
                p999_us: quantile_us(0.999),
                balancer_cpu_s: median(|o| o.balancer_cpu_s),
                balancer_busy: median(|o| o.balancer_busy),
                client_busy: median(|o| o.client_busy),
                others_share: median(|o| o.others_share),
                client_bound: bound * 2 > outcomes.len(),
            })
        })
        .collect()
}
