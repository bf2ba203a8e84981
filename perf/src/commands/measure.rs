//! `http`, `packet`, `relay`, `snat`, `tls`, `udp`: the suites.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::ArgPredicate;
use indicatif::{ProgressBar, ProgressStyle};

use towpath_perf::peers::{Kind, Subject};
use towpath_perf::report::{Report, table};
use towpath_perf::suite::{self, Accounting, Case, Options, Pins, Place, Turn, Watch};

/// TCP through one subject on one CPU: requests, new connections, bulk, idle connections.
#[derive(Args)]
pub(crate) struct Relay {
    /// Peers to measure beside Towpath: haproxy, kernel, nginx; haproxy and nginx with a buffer size if wanted, as in haproxy-256k.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…", default_value = "haproxy,nginx")]
    against: Vec<String>,
    #[command(flatten)]
    driven: Driven,
    #[command(flatten)]
    common: Common,
}

/// HTTP/1.1 balanced by one subject on one CPU: requests with cookie insertion, new connections, long responses.
#[derive(Args)]
pub(crate) struct Http {
    /// Peers to measure beside Towpath: haproxy, nginx, with a buffer size if wanted, as in haproxy-256k.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…", default_value = "haproxy,nginx")]
    against: Vec<String>,
    #[command(flatten)]
    driven: Driven,
    #[command(flatten)]
    common: Common,
}

/// Towpath's packet plane: beside its peers over veth, and alone in memory.
#[derive(Args)]
pub(crate) struct Packet {
    /// Peers to measure beside Towpath: haproxy, kernel, nginx; haproxy and nginx with a buffer size if wanted, as in haproxy-256k.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…", default_value = "kernel,haproxy,nginx")]
    against: Vec<String>,
    /// Flows in memory, cases for each; 10,000,000 take 1.5 GB. By default 1,000 and 1,000,000, and where there is memory also 10,000,000 of
    /// full-NAT over IPv4.
    #[arg(long, value_delimiter = ',', value_name = "N,…", value_parser = clap::value_parser!(u32).range(1..=FLOWS_MAX))]
    flows: Vec<u32>,
    #[command(flatten)]
    driven: Driven,
    #[command(flatten)]
    common: Common,
}

/// What the suite `packet` has valgrind run.
#[derive(Args)]
pub(crate) struct Instructions {
    /// As in memory-full-nat-v4-1k.
    work: String,
    /// Flows of it.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=FLOWS_MAX))]
    flows: u32,
    /// What is counted.
    #[arg(long, value_enum)]
    of: suite::counted::Stretch,
}

/// Datagrams through one subject on one CPU: packets per second and loss.
#[derive(Args)]
pub(crate) struct Udp {
    /// Peers to measure beside Towpath: kernel, nginx. (HAProxy relays no datagrams.)
    #[arg(long, value_delimiter = ',', value_name = "NAME,…", default_value = "nginx")]
    against: Vec<String>,
    #[command(flatten)]
    driven: Driven,
    #[command(flatten)]
    common: Common,
}

/// Connections to one real server over 1, 2 and 4 source addresses, until their ports are used up; or very many on the packet plane.
#[derive(Args)]
pub(crate) struct Snat {
    /// Peers to measure beside Towpath: haproxy, nginx; with --connections only kernel.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAME,…",
        default_value = "haproxy,nginx",
        default_value_if("connections", ArgPredicate::IsPresent, "kernel")
    )]
    against: Vec<String>,
    /// On Towpath's packet plane: clients and a server without kernel sockets hold so many connections at once.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=FLOWS_MAX))]
    connections: Option<u32>,
    /// (With --connections) Source addresses, each with 64,512 ports.
    #[arg(long, value_name = "N", default_value_t = 4, requires = "connections", value_parser = clap::value_parser!(u8).range(1..=100))]
    addresses: u8,
    #[command(flatten)]
    common: Common,
}

/// TLS that ends at one subject on one CPU: handshakes, bulk, requests, idle connections, what plain traffic beside it has to bear, and what the
/// cryptography alone could do.
#[derive(Args)]
pub(crate) struct Tls {
    /// Peers to measure beside Towpath: haproxy, hitch, nginx; haproxy and nginx with a buffer size if wanted, as in nginx-64k.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…", default_value = "haproxy,nginx")]
    against: Vec<String>,
    #[command(flatten)]
    driven: Driven,
    #[command(flatten)]
    common: Common,
}

/// Flows in memory where nothing else is asked for.
const FLOWS: [usize; 2] = [1000, 1_000_000];

/// Most connections of clients without a kernel.
const FLOWS_MAX: i64 = suite::FLOWS_MAX as i64;

/// Of suites that are a load.
#[derive(Args)]
struct Driven {
    /// Whose CPU does the work of receiving: `plain` as veth does it (the sender's), `steered` each host's own, as with network cards.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…", default_value = "plain,steered", value_parser = accounting)]
    accounting: Vec<Accounting>,
    /// Build no lab and start no subject: drive the load at --target, over a real wire. Start its origins with `towpath-perf origin`.
    #[arg(long, requires = "target", conflicts_with_all = ["against", "subject", "towpath"])]
    no_lab: bool,
    /// (With --no-lab) Where the load balancer listens.
    #[arg(long, value_name = "ADDR:PORT", requires = "no_lab")]
    target: Option<SocketAddr>,
}

/// Of every suite.
#[derive(Args)]
struct Common {
    /// The first subject, against which ratios are told.
    #[arg(long, value_name = "NAME", default_value = "towpath")]
    subject: String,
    /// Turns of each subject in each case. Fewer than 3 give no verdict; a figure that is shown around takes 5.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    repeat: u16,
    /// Rounds of each case that may be thrown away and taken again because other programs disturbed them.
    #[arg(long, value_name = "N", default_value_t = 5)]
    retake: u16,
    /// Which CPUs do what, as in balancer=0,client=1 or client=1-3. By default the first and the last.
    #[arg(long, value_name = "ROLE=CPU,…")]
    pin: Option<String>,
    /// Seconds counted per phase of a turn.
    #[arg(long, value_name = "S", default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// Only these cases; `--case help` lists them.
    #[arg(long, value_name = "NAME", num_args = 1..)]
    case: Vec<String>,
    /// Also writes the result here, for `report` and `compare`; case by case, so that a run which fails keeps those before.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Towpath's program; by default the one beside this program.
    #[arg(long, value_name = "PATH")]
    towpath: Option<PathBuf>,
}

impl Packet {
    /// Does it.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let subjects = self.driven.subjects(&self.common, &self.against)?;
        let asked: Vec<usize> = self.flows.iter().map(|&flows| flows as usize).collect();
        let (flows, many) = match asked.as_slice() {
            [] => (FLOWS.as_slice(), suite::packet::many()),
            asked => (asked, None),
        };
        let mut cases = self.driven.cases(|accountings| suite::packet::cases(accountings, flows));
        cases.extend(many.filter(|_| self.driven.place() == Place::Lab));
        if suite::counted::counter().is_none() {
            eprintln!(
                "instructions are not counted: this machine shows no counter of them, and valgrind is not installed"
            );
        }
        self.common.measure("packet", &cases, self.driven.place(), subjects)
    }
}

impl Instructions {
    /// Does it.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let work = suite::packet::in_memory(&self.work, self.flows as usize).context("no such work")?;
        println!("{}", suite::counted::run(&work, self.of)?);
        Ok(())
    }
}

impl Relay {
    /// Does it.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let subjects = self.driven.subjects(&self.common, &self.against)?;
        let cases = self.driven.cases(suite::relay::cases);
        self.common.measure("relay", &cases, self.driven.place(), subjects)
    }
}

impl Http {
    /// Does it.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let subjects = self.driven.subjects(&self.common, &self.against)?;
        if let Some(other) = subjects.iter().find(|subject| !subject.kind.balances_http()) {
            bail!("{} balances no HTTP here; there are haproxy, nginx, towpath", other.name);
        }
        self.common.measure("http", &self.driven.cases(suite::http::cases), self.driven.place(), subjects)
    }
}

impl Tls {
    /// Does it.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let subjects = self.driven.subjects(&self.common, &self.against)?;
        if let Some(kernel) = subjects.iter().find(|subject| !subject.kind.ends_tls(false)) {
            bail!("{} ends no TLS; leave it out", kernel.name);
        }
        let cpus = towpath_sys::host::available_cpus()?.len();
        if cpus < suite::tls::POOL_CPUS_MIN && self.common.case != ["help"] {
            eprintln!(
                "isolation with handshakes on a CPU of their own: not judgeable with {cpus} CPUs; it takes {}",
                suite::tls::POOL_CPUS_MIN
            );
        }
        let cases = self.driven.cases(|accountings| suite::tls::cases(accountings, cpus));
        self.common.measure("tls", &cases, self.driven.place(), subjects)
    }
}

impl Udp {
    /// Does it.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let mut subjects = self.driven.subjects(&self.common, &self.against)?;
        subjects.retain(|subject| {
            let relays = subject.kind.relays_datagrams();
            if !relays {
                eprintln!("{} relays no datagrams (haproxy#62); left out", subject.name);
            }
            relays
        });
        if subjects.is_empty() {
            bail!("nobody is left; name a subject that relays datagrams: towpath, kernel, nginx");
        }
        let cases = self.driven.cases(suite::udp::cases);
        self.common.measure("udp", &cases, self.driven.place(), subjects)
    }
}

impl Snat {
    /// Does it.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        if let Some(connections) = self.connections {
            let cases = suite::snat::scale_cases(connections as usize, self.addresses);
            let mut subjects = find(&self.common.subject, &self.against, &self.common.towpath()?)?;
            if let Some(max) = connections_max_of_kernel().filter(|max| *max < u64::from(connections)) {
                subjects.retain(|subject| subject.kind != Kind::Kernel);
                eprintln!(
                    "the kernel follows {max} connections at most; left out (`sysctl net.netfilter.nf_conntrack_max={connections}` lets it follow \
                     as many)"
                );
            }
            if subjects.is_empty() {
                bail!("nobody is left; name another subject: towpath");
            }
            if let Some(other) = subjects.iter().find(|subject| !matches!(subject.kind, Kind::Kernel | Kind::Towpath)) {
                bail!("{} takes two descriptors for each connection; with --connections leave it out", other.name);
            }
            return self.common.measure("snat", &cases, Place::Lab, subjects);
        }
        let subjects = find(&self.common.subject, &self.against, &self.common.towpath()?)?;
        if let Some(kernel) = subjects.iter().find(|subject| subject.kind == Kind::Kernel) {
            bail!(
                "{} opens no connections of its own, so they cost nothing that can be told; leave it out",
                kernel.name
            );
        }
        self.common.measure("snat", &suite::snat::cases(), Place::Lab, subjects)
    }
}

impl Driven {
    fn place(&self) -> Place {
        self.target.map_or(Place::Lab, Place::Wire)
    }

    fn subjects(&self, common: &Common, against: &[String]) -> anyhow::Result<Vec<Subject>> {
        match self.target {
            Some(target) => Ok(vec![Subject::remote(target)]),
            None => find(&common.subject, against, &common.towpath()?),
        }
    }

    fn cases(&self, all: impl Fn(&[Accounting]) -> Vec<Case>) -> Vec<Case> {
        match self.place() {
            Place::Lab => all(&self.accounting),
            // A network card steers by itself.
            Place::Wire(_) => {
                let cases = all(&[Accounting::Plain]).into_iter();
                cases.filter(|case| case.course.works_across_a_wire()).collect()
            }
        }
    }
}

impl Common {
    fn towpath(&self) -> anyhow::Result<PathBuf> {
        match &self.towpath {
            Some(program) => Ok(program.clone()),
            None => Ok(std::env::current_exe().context("where is this program?")?.with_file_name("towpath")),
        }
    }

    fn measure(&self, name: &str, cases: &[Case], place: Place, subjects: Vec<Subject>) -> anyhow::Result<()> {
        if self.case == ["help"] {
            cases.iter().for_each(|case| println!("{}", case.name));
            return Ok(());
        }
        // Hosts, processes and files of the lab are held by descriptors and threads of this process: its end is theirs.
        ctrlc::set_handler(|| {
            eprintln!("\ntowpath-perf: interrupted; the lab is gone");
            std::process::exit(130);
        })
        .context("cannot watch for Ctrl-C")?;
        towpath_sys::host::raise_nofile_limit().context("cannot raise the limit on descriptors")?;
        let cases = choose(cases, &self.case)?;
        let bar = ProgressBar::new(0).with_style(
            ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} ({eta} left) {prefix}").context("progress bar")?,
        );
        let watch = {
            let bar = bar.clone();
            Watch::by(move |words| bar.set_prefix(words.to_owned()))
        };
        let options = Options {
            place,
            subjects,
            rounds: usize::from(self.repeat),
            retakes: usize::from(self.retake),
            measure: Duration::try_from_secs_f64(self.seconds).context("--seconds")?,
            warm_up: Duration::try_from_secs_f64((self.seconds / 3.0).clamp(0.1, 2.0)).context("--seconds")?,
            pins: pins(self.pin.as_deref(), place)?,
            program: std::env::current_exe().context("where is this program?")?,
            counts: suite::counted::Counts::default(),
            watch,
        };
        bar.set_length(suite::turns(&cases, &options) as u64);
        let mut kept = 0;
        let progress = |turn: Turn<'_>| {
            bar.set_position(turn.done as u64);
            bar.set_prefix("");
            bar.set_message(match turn.round {
                0 => format!("{}, finding the equal rate: {}", turn.case, turn.subject),
                round => format!("{}, round {round}: {}", turn.case, turn.subject),
            });
        };
        let keep = |report: &Report| {
            let Some(file) = &self.json else { return Ok(()) };
            kept += 1;
            fs::write(file, serde_json::to_string_pretty(report)?)
                .map_err(|error| io::Error::new(error.kind(), format!("write {}: {error}", file.display())))
        };
        let report = suite::run(name, &cases, &options, progress, keep);
        bar.finish_and_clear();
        if let (Err(_), Some(file), 1..) = (&report, &self.json, kept) {
            eprintln!("{kept} of {} cases are complete and in {}", cases.len(), file.display());
        }
        print!("{}", table::render(&report?));
        Ok(())
    }
}

fn accounting(word: &str) -> Result<Accounting, String> {
    let named = Accounting::ALL.into_iter().find(|accounting| accounting.word() == word);
    named.ok_or_else(|| format!("there are {}", Accounting::ALL.map(Accounting::word).join(", ")))
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("0.1 to 3600".into()),
    }
}

fn choose(all: &[Case], names: &[String]) -> anyhow::Result<Vec<Case>> {
    if names.is_empty() {
        return Ok(all.to_vec());
    }
    names
        .iter()
        .map(|name| {
            all.iter().find(|case| case.name == *name).cloned().with_context(|| {
                let known: Vec<&str> = all.iter().map(|case| case.name.as_str()).collect();
                format!("no case `{name}` here; there are {}", known.join(", "))
            })
        })
        .collect()
}

/// Connections that the kernel's translation follows at the same time; `None` where it follows none yet.
fn connections_max_of_kernel() -> Option<u64> {
    fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").ok()?.trim().parse().ok()
}

fn find(first: &str, against: &[String], towpath: &Path) -> anyhow::Result<Vec<Subject>> {
    let mut subjects = vec![Subject::find(first, towpath)?];
    for name in against.iter().filter(|name| !name.is_empty()) {
        if subjects.iter().any(|subject| subject.name == *name) {
            bail!("{name} is named twice");
        }
        subjects.push(Subject::find(name, towpath)?);
    }
    Ok(subjects)
}

fn pins(text: Option<&str>, place: Place) -> anyhow::Result<Pins> {
    let cpus = towpath_sys::host::available_cpus()?;
    let (first, last) = match (cpus.as_slice(), place) {
        ([first, .., last], _) => (*first, *last),
        ([only], Place::Wire(_)) => (*only, *only),
        _ => bail!("one CPU only: a balancer and its client would measure each other; two are needed"),
    };
    let mut pins = Pins { balancer: first, client: vec![last], spare: Vec::new() };
    for part in text.unwrap_or_default().split(',').filter(|part| !part.is_empty()) {
        let wrong = || format!("--pin {part}: expected balancer=CPU or client=CPU or client=FIRST-LAST");
        let (role, value) = part.split_once('=').with_context(wrong)?;
        let (low, high) = value.split_once('-').unwrap_or((value, value));
        let (low, high) = (low.parse::<usize>().with_context(wrong)?, high.parse::<usize>().with_context(wrong)?);
        match role {
            "balancer" if low == high => pins.balancer = low,
            "client" if low <= high => pins.client = (low..=high).collect(),
            _ => bail!(wrong()),
        }
    }
    for cpu in pins.client.iter().chain([&pins.balancer]) {
        if !cpus.contains(cpu) {
            bail!("--pin: CPU {cpu} is not available; there are {cpus:?}");
        }
    }
    if place == Place::Lab && pins.client.contains(&pins.balancer) {
        bail!("--pin: CPU {} cannot be the balancer's and the client's", pins.balancer);
    }
    pins.spare = cpus.into_iter().filter(|cpu| *cpu != pins.balancer && !pins.client.contains(cpu)).collect();
    Ok(pins)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_chosen_by_name() {
        let all = suite::relay::cases(&Accounting::ALL);
        assert_eq!(choose(&all, &[]).unwrap().len(), all.len());
        let [one] = &choose(&all, &["connect-steered".into()]).unwrap()[..] else { panic!("one name, one case") };
        assert_eq!((one.name.as_str(), one.accounting), ("connect-steered", Accounting::Steered));
        let error = choose(&all, &["connect-steerd".into()]).unwrap_err().to_string();
        assert!(error.contains("connect-steered"), "{error}");
    }

    #[test]
    fn pins_are_checked() {
        let cpus = towpath_sys::host::available_cpus().unwrap();
        let [first, .., last] = cpus.as_slice() else { return };
        let between = cpus[1..cpus.len() - 1].to_vec();
        let (default, spare) = (pins(None, Place::Lab).unwrap(), between.clone());
        assert_eq!(default, Pins { balancer: *first, client: vec![*last], spare });
        let swapped = format!("balancer={last},client={first}");
        let swapped = pins(Some(&swapped), Place::Lab).unwrap();
        assert_eq!(swapped, Pins { balancer: *last, client: vec![*first], spare: between });
        for wrong in
            ["balancer=9999", "client=x", "client=2-1", "server=0", "client", &format!("client={first}-{last}")]
        {
            assert!(pins(Some(wrong), Place::Lab).is_err(), "{wrong}");
        }
    }
}
