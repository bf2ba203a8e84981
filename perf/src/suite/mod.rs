//! Suites: cases that every subject goes through in turns, A B A B, so that a bad minute of the machine hits them all.
//!
//! A suite is a list of [`Case`]s. A case says what is done in a turn (its [`Course`]); a turn brings [`Sample`]s; what follows
//! from the samples of all rounds, rows and ratios, is the same for every suite.

mod ceiling;
pub mod http;
mod idle;
mod isolation;
mod lease;
mod load;
mod memory;
pub mod packet;
mod plane;
pub mod relay;
mod sample;
mod scale;
pub mod snat;
mod stage;
pub mod tls;
mod trip;
pub mod udp;

use std::collections::BTreeMap;
use std::fmt;
use std::hint::black_box;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use towpath_config::model::{Forwarding, Plane};
use towpath_core::packet::Family;
use towpath_sys::host;
use towpath_sys::socket::Transport;

use crate::certificate::KeyKind;
use crate::load::tls::Tls;
use crate::load::{Security, Work};
use crate::machine::Machine;
use crate::message::Framing;
use crate::peers::{Kind, ServerConnections, Subject, forwarding_word};
use crate::report::{Report, SCHEMA};
use crate::web::Visitor;
pub use plane::{Cargo, FLOWS_MAX, InMemory, counted};
use sample::{Sample, panicked};
use stage::Stage;

/// What others may use of the watched CPUs before a figure counts as disturbed.
pub const OTHERS_SHARE_MAX: f64 = 0.1;

/// The equal rate, of the rate that the slowest subject reaches.
const EQUAL_RATE_SHARE: f64 = 0.8;

/// What the queues of 64 streams through a relay have been seen to take.
const QUEUES_BYTES_MAX: u64 = 1 << 30;

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
    /// Which of Towpath's planes carries the load.
    pub plane: Plane,
    /// How, over veth.
    pub mode: Mode,
    /// How clients and servers speak TLS to the subject, if they do.
    pub tls: Option<Terms>,
    /// What is asked of the subject as a balancer of HTTP; `None`: it relays bytes.
    pub http: Option<Web>,
    /// What is done.
    pub course: Course,
}

/// How HTTP is balanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Web {
    /// Whether clients come back with the cookie.
    pub visitor: Visitor,
    /// Whose connections to the server are.
    pub connections: ServerConnections,
}

impl Case {
    /// How messages have to stand in what such a subject relays.
    fn framing(&self, kind: Kind) -> Framing {
        self.http.map_or(kind.framing(), |web| Framing::Web(web.visitor))
    }

    fn security(&self) -> Security {
        self.tls.map_or(Security::PLAIN, |terms| Security { client: Some(terms.client), origin: terms.reencrypts })
    }
}

/// How TLS is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Of the subject's certificate.
    pub key: KeyKind,
    /// What clients ask for.
    pub client: Tls,
    /// Whether servers are spoken to by TLS, too.
    pub reencrypts: bool,
}

/// How a load passes a balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Whose address the server sees.
    pub forwarding: Forwarding,
    /// Of clients, VIP and server.
    pub family: Family,
    /// Whether clients go to the server itself, so that the balancer is a mere router.
    pub is_routed: bool,
}

impl Mode {
    /// What there is most of.
    pub const USUAL: Mode = Mode::through(Forwarding::FullNat, Family::V4);

    /// Past the balancer's VIP: as the server sees clients then, too.
    pub const ROUTED: Mode = Mode { is_routed: true, ..Mode::through(Forwarding::HalfNat, Family::V4) };

    /// By the VIP.
    pub const fn through(forwarding: Forwarding, family: Family) -> Mode {
        Mode { forwarding, family, is_routed: false }
    }

    /// The name of a course in it.
    fn name(self, course: &str) -> String {
        let forwarding = match self.forwarding {
            _ if self.is_routed => "routed",
            Forwarding::FullNat => "",
            other => forwarding_word(other),
        };
        let family = if self.family == Family::V4 { "" } else { "v6" };
        [course, forwarding, family].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
    }
}

/// These courses on a plane in a mode, under each accounting.
fn under(accountings: &[Accounting], plane: Plane, mode: Mode, courses: &[(&str, Course)]) -> Vec<Case> {
    let case = |accounting: Accounting, (name, course): &(&str, Course)| Case {
        name: accounting.name(&mode.name(name)),
        accounting,
        plane,
        mode,
        tls: None,
        http: None,
        course: course.clone(),
    };
    accountings.iter().flat_map(|&accounting| courses.iter().map(move |course| case(accounting, course))).collect()
}

/// What is done in a turn.
#[derive(Clone, Debug)]
pub enum Course {
    /// Connections of clients without a kernel that come and go, each with one request, to a server without one.
    Churn {
        /// How many are open at a time.
        at_once: usize,
    },
    /// The cryptography of TLS alone, and whole handshakes in memory, without lab and kernel.
    Ceiling,
    /// No load: what the subject's processes do by themselves.
    Idle,
    /// Towpath's packet plane alone, without lab and kernel.
    InMemory(InMemory),
    /// Requests at a constant rate on plain connections, in quiet and beside twice as many TLS handshakes as the subject can do.
    Isolation {
        /// Requests.
        per_second: u32,
        /// Whether handshakes have CPUs of their own, as far as the subject can do that.
        has_pool: bool,
    },
    /// Source ports alone, without lab and kernel: what a lease costs, the fuller the pool is.
    Lease {
        /// SNAT addresses, each with all its ports.
        addresses: u8,
    },
    /// Work at saturation and, where it can be paced, at one rate that is equal for all subjects.
    Load {
        /// What clients do.
        work: Work,
        /// What is counted.
        unit: Unit,
    },
    /// Own memory of the subject's processes per idle connection, by the difference of two counts.
    Memory {
        /// Connections at the first look.
        few: usize,
        /// Connections at the second.
        many: usize,
    },
    /// One request at a time, through the subject and without it.
    RoundTrip,
    /// Connections of clients without a kernel to one server without one: opened, held, spoken on and closed.
    Scale {
        /// Source addresses towards the one server, each with all its ports.
        addresses: u8,
        /// How many are held at the same time.
        connections: usize,
    },
    /// Connections that are held until no port is left, and what opening one costs on the way.
    Snat {
        /// Source addresses towards the one server.
        addresses: u8,
        /// Ports at each.
        ports: RangeInclusive<u16>,
    },
}

impl Course {
    /// Whether one rate can be set for all subjects.
    fn is_paced(&self, place: Place) -> bool {
        match self {
            // Streams keep to a rate by their origin, which is ours only in the lab.
            Course::Load { work: Work::Bulk { .. }, .. } => place == Place::Lab,
            Course::Load { work: Work::Hold { .. }, .. } => false,
            Course::Load {
                work: Work::Connect { .. } | Work::Datagrams { .. } | Work::Handshake { .. } | Work::KeepAlive { .. },
                ..
            } => true,
            Course::Ceiling
            | Course::Churn { .. }
            | Course::Idle
            | Course::InMemory(_)
            | Course::Isolation { .. }
            | Course::Lease { .. }
            | Course::Memory { .. }
            | Course::RoundTrip
            | Course::Scale { .. }
            | Course::Snat { .. } => false,
        }
    }

    /// Whether such a subject can take a turn in it.
    fn suits(&self, kind: Kind) -> bool {
        match self {
            // It has no process of its own.
            Course::Idle => kind != Kind::Kernel,
            Course::Ceiling | Course::InMemory(_) | Course::Lease { .. } => kind == Kind::Towpath,
            Course::Isolation { .. } => kind.relays_plain(),
            // Others take two descriptors for each connection that is held.
            Course::Scale { .. } => matches!(kind, Kind::Kernel | Kind::Towpath),
            // These peers do not speak HTTP.
            Course::Churn { .. } | Course::Memory { .. } => kind.framing() == Framing::Bare,
            Course::Load { .. } | Course::RoundTrip | Course::Snat { .. } => match self.transport() {
                Transport::Tcp => true,
                Transport::Udp => kind.relays_datagrams(),
            },
        }
    }

    /// Whether it can be driven at a machine of which only an address is known.
    pub fn works_across_a_wire(&self) -> bool {
        matches!(self, Course::Load { .. })
    }

    /// CPUs for handshakes alone: those that neither the subject nor the client has.
    fn pool_cpus(&self, options: &Options) -> Vec<usize> {
        match self {
            Course::Isolation { has_pool: true, .. } => options.pins.spare.clone(),
            _ => Vec::new(),
        }
    }

    fn transport(&self) -> Transport {
        match self {
            Course::Load { work: Work::Datagrams { .. }, .. } => Transport::Udp,
            Course::Ceiling
            | Course::Churn { .. }
            | Course::Idle
            | Course::InMemory(_)
            | Course::Isolation { .. }
            | Course::Lease { .. }
            | Course::Load { .. }
            | Course::Memory { .. }
            | Course::RoundTrip
            | Course::Scale { .. }
            | Course::Snat { .. } => Transport::Tcp,
        }
    }
}

/// What the pieces of work of a case are called in a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Connections.
    Connections,
    /// Datagrams that came back.
    Datagrams,
    /// Bytes, told in gigabits.
    Gigabits,
    /// Connections that each begin with a TLS handshake.
    Handshakes,
    /// Requests.
    Requests,
}

impl Unit {
    fn per(self, of: &str) -> String {
        match self {
            Unit::Connections => format!("conn/{of}"),
            Unit::Datagrams => format!("packets/{of}"),
            Unit::Gigabits => format!("Gbit/{of}"),
            Unit::Handshakes => format!("handshakes/{of}"),
            Unit::Requests => format!("req/{of}"),
        }
    }

    fn scale(self, done: u64) -> f64 {
        match self {
            Unit::Connections | Unit::Datagrams | Unit::Handshakes | Unit::Requests => done as f64,
            Unit::Gigabits => done as f64 * 8.0 / 1e9,
        }
    }
}

/// Who runs where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    /// The subject's CPU.
    pub balancer: usize,
    /// CPUs of the client and the origins, a thread each.
    pub client: Vec<usize>,
    /// CPUs that nobody has.
    pub spare: Vec<usize>,
}

/// Where a suite plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a lab of its own, in which the subjects are started.
    Lab,
    /// At this address, across a real wire; what serves there and its origins are not ours to start.
    Wire(SocketAddr),
}

/// How a suite is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where.
    pub place: Place,
    /// In the order of their turns; ratios are the first's against each other.
    pub subjects: Vec<Subject>,
    /// Turns of each subject in each case.
    pub rounds: usize,
    /// Rounds of each case that may be thrown away and taken again because other programs disturbed them.
    pub retakes: usize,
    /// Counted time of a phase of a turn.
    pub measure: Duration,
    /// Time before it that is not counted.
    pub warm_up: Duration,
    /// Who runs where.
    pub pins: Pins,
    /// This program, to start origins with.
    pub program: PathBuf,
    /// Instructions that were counted so far.
    pub counts: counted::Counts,
    /// Told about long turns while they are under way.
    pub watch: Watch,
}

/// Who is told how far a turn is, in words.
#[derive(Clone, Default)]
pub struct Watch(Option<Arc<Hear>>);

type Hear = dyn Fn(&str) + Send + Sync;

impl Watch {
    /// Somebody.
    pub fn by(told: impl Fn(&str) + Send + Sync + 'static) -> Watch {
        Watch(Some(Arc::new(told)))
    }

    fn tell(&self, words: &str) {
        if let Some(told) = &self.0 {
            told(words);
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watch").field(&self.0.is_some()).finish()
    }
}

/// Told before each turn.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a> {
    /// Name of the case.
    pub case: &'a str,
    /// From 1; 0 while the equal rate is looked for.
    pub round: usize,
    /// Name of the subject.
    pub subject: &'a str,
    /// Turns that are done, of those that [`turns`] tells.
    pub done: usize,
}

/// How many turns these cases take.
pub fn turns(cases: &[Case], options: &Options) -> usize {
    cases.iter().map(|case| turns_of(case, options)).sum()
}

fn turns_of(case: &Case, options: &Options) -> usize {
    (options.rounds + usize::from(case.course.is_paced(options.place))) * subjects_of(case, options).len()
}

/// Who takes part in a case, by number.
fn subjects_of(case: &Case, options: &Options) -> Vec<usize> {
    let suits = |kind: Kind| {
        // Others are transparent only with the kernel's help (TPROXY), which is another measurement.
        let keeps_clients = matches!(kind, Kind::Kernel | Kind::Remote | Kind::Towpath);
        let speaks = case.tls.map_or(kind.relays_plain(), |terms| kind.ends_tls(terms.reencrypts));
        let understands = case.http.is_none() || kind.balances_http();
        case.course.suits(kind)
            && speaks
            && understands
            && (case.mode.forwarding == Forwarding::FullNat || keeps_clients)
    };
    (0..options.subjects.len()).filter(|&number| suits(options.subjects[number].kind)).collect()
}

/// Runs the cases of a suite, telling `progress` before each turn and `keep` what is known after each case. Fails at the first subject
/// that crashes, refuses, or answers wrongly, and says so.
pub fn run(
    name: &str,
    cases: &[Case],
    options: &Options,
    mut progress: impl FnMut(Turn<'_>),
    mut keep: impl FnMut(&Report) -> io::Result<()>,
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
    report.machine.pins = BTreeMap::from([("client".into(), options.pins.client.clone())]);
    if options.place == Place::Lab {
        report.machine.pins.insert("balancer".into(), vec![options.pins.balancer]);
    }
    let mut done = 0;
    for case in cases {
        let subjects = subjects_of(case, options);
        // What each subject, in their order, did in a round. Who comes first in it moves on from round to round: the first one
        // finds caches and memory colder.
        let mut round_of = |round: usize, equal_rate| -> io::Result<Vec<Vec<Sample>>> {
            let mut taken: Vec<Vec<Sample>> = vec![Vec::new(); options.subjects.len()];
            for place in 0..subjects.len() {
                let number = subjects[(round + place) % subjects.len()];
                let subject = &options.subjects[number];
                let rounds_before = round - usize::from(!case.course.is_paced(options.place));
                let before = done + rounds_before * subjects.len() + place;
                progress(Turn { case: &case.name, round, subject: &subject.name, done: before });
                taken[number] = take_turn(case, subject, options, equal_rate).map_err(|error| {
                    io::Error::new(error.kind(), format!("{} in {}: {error}", subject.name, case.name))
                })?;
            }
            Ok(taken)
        };
        let equal_rate = if case.course.is_paced(options.place) {
            let reached = round_of(0, None)?;
            let slowest = reached.iter().flatten().filter_map(|sample| sample.per_second).fold(f64::INFINITY, f64::min);
            slowest.is_finite().then_some(slowest * EQUAL_RATE_SHARE)
        } else {
            None
        };
        let mut rounds: Vec<Vec<Vec<Sample>>> = Vec::new();
        let mut retakes_left = options.retakes;
        while rounds.len() < options.rounds {
            let taken = round_of(rounds.len() + 1, equal_rate)?;
            let disturbed = taken.iter().flatten().any(|sample| sample.others_share > OTHERS_SHARE_MAX);
            if disturbed && retakes_left > 0 {
                // The whole round goes: its turns belong together.
                retakes_left -= 1;
                report.machine.rounds_retaken += 1;
                continue;
            }
            for sample in taken.iter().flatten() {
                report.machine.others_share_max = report.machine.others_share_max.max(sample.others_share);
                report.machine.steal_share_max = report.machine.steal_share_max.max(sample.steal_share);
            }
            rounds.push(taken);
        }
        sample::tell(&mut report, &options.subjects, &rounds);
        done += turns_of(case, options);
        keep(&report)?;
    }
    Ok(report)
}

/// Has the kernel give out and take back as much memory as queues of streams may take: a hypervisor takes memory away that nobody
/// has used for some seconds, and then the first bytes that are copied there wait for it.
fn warm_memory() {
    let affordable = host::memory().map_or(0, |memory| memory.available_bytes / 4);
    let bytes = affordable.min(QUEUES_BYTES_MAX);
    drop(black_box(vec![1u8; usize::try_from(bytes).unwrap_or(0)]));
}

fn take_turn(case: &Case, subject: &Subject, options: &Options, equal_rate: Option<f64>) -> io::Result<Vec<Sample>> {
    // Hosts that nobody has used: what a turn leaves behind, ports in TIME_WAIT above all, would be the next one's cost.
    let set = || Stage::set(case, subject, options);
    match &case.course {
        Course::Ceiling => ceiling::take(case, options),
        Course::Churn { at_once } => scale::churn::take(case, *at_once, subject, options, &set()?),
        Course::Idle => idle::take(case, subject, options, &set()?),
        Course::InMemory(work) => plane::take(case, work, options),
        Course::Isolation { per_second, .. } => isolation::take(case, *per_second, subject, options, &set()?),
        Course::Lease { addresses } => lease::take(case, *addresses, options),
        Course::Load { work, unit } => {
            let stage = set()?;
            if matches!(work, Work::Bulk { .. }) {
                warm_memory();
            }
            let load = load::Load { case, work: *work, unit: *unit, equal_rate, target: stage.target() };
            load.take(subject, options, &stage)
        }
        Course::Memory { few, many } => memory::take(case, [*few, *many], subject, options, &set()?),
        Course::RoundTrip => trip::take(case, subject, options, &set()?),
        Course::Scale { connections, .. } => scale::take(case, *connections, subject, options, &set()?),
        Course::Snat { .. } => snat::take(case, subject, options, &set()?),
    }
}

/// Runs `work` on a thread of its own, on these CPUs.
fn on_cpus<T: Send>(cpus: &[usize], work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let pinned = thread::Builder::new().name("pinned".into()).spawn_scoped(scope, || {
            host::pin_thread(cpus)?;
            work()
        })?;
        pinned.join().map_err(panicked)?
    })
}
