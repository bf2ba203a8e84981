//! `towpath-perf`: measures Towpath beside its peers.

mod commands;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use towpath_perf::load;
use towpath_perf::peers::Subject;
use towpath_perf::report::table;
use towpath_perf::suite::{self, Accounting, Case, Options, Pins};

/// Measures Towpath beside its peers, on the same work, in the same run, on this machine.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Tells what changed between two results of the same suite.
    Compare(commands::Compare),
    /// Makes a page with plots and a Markdown table of results.
    Report(commands::Report),
    /// TCP through one subject on one CPU: requests, new connections, bulk.
    Relay(Relay),
    /// Starts the origin by hand: answers what the load clients of this program ask for.
    Origin {
        /// Where to listen, as in 0.0.0.0:7000.
        #[arg(required = true)]
        listen: Vec<SocketAddr>,
    },
}

#[derive(Args)]
struct Relay {
    /// Peers to measure beside Towpath: haproxy, nginx, each with an optional buffer size as in haproxy-256k.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…", default_value = "haproxy,nginx")]
    against: Vec<String>,
    /// The first subject, against which ratios are told.
    #[arg(long, value_name = "NAME", default_value = "towpath")]
    subject: String,
    /// Turns of each subject in each case (at least 5 for a figure that is shown around).
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    repeat: u16,
    /// Rounds of each case that may be thrown away and taken again because other programs disturbed them.
    #[arg(long, value_name = "N", default_value_t = 5)]
    retake: u16,
    /// Which CPUs do what, as in balancer=0,client=1 or client=1-3. By default the first and the last.
    #[arg(long, value_name = "ROLE=CPU,…")]
    pin: Option<String>,
    /// Seconds counted per turn.
    #[arg(long, value_name = "S", default_value_t = 3.0)]
    seconds: f64,
    /// Whose CPU does the work of receiving: `plain` as veth does it (the sender's), `steered` each host's own, as with network cards.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…", default_value = "plain,steered", value_parser = accounting)]
    accounting: Vec<Accounting>,
    /// Only these cases.
    #[arg(long, value_name = "NAME", num_args = 1..)]
    case: Vec<String>,
    /// Also writes the result here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Towpath's program; by default the one beside this program.
    #[arg(long, value_name = "PATH")]
    towpath: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Action::Compare(compare) => compare.run(),
        Action::Report(report) => report.run(),
        Action::Relay(arguments) => relay(&arguments),
        Action::Origin { listen } => origin(&listen),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("towpath-perf: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn relay(arguments: &Relay) -> anyhow::Result<()> {
    // Hosts, processes and files of the lab are held by descriptors and threads of this process: its end is theirs.
    ctrlc::set_handler(|| {
        eprintln!("\ntowpath-perf: interrupted; the lab is gone");
        std::process::exit(130);
    })
    .context("cannot watch for Ctrl-C")?;
    towpath_sys::host::raise_nofile_limit().context("cannot raise the limit on descriptors")?;

    let cases = choose(&suite::relay::cases(&arguments.accounting), &arguments.case)?;
    let program = std::env::current_exe().context("where is this program?")?;
    let towpath = arguments.towpath.clone().unwrap_or_else(|| program.with_file_name("towpath"));
    let options = Options {
        subjects: find(&arguments.subject, &arguments.against, &towpath)?,
        rounds: usize::from(arguments.repeat),
        retakes: usize::from(arguments.retake),
        measure: Duration::try_from_secs_f64(arguments.seconds).context("--seconds")?,
        warm_up: Duration::try_from_secs_f64((arguments.seconds / 3.0).clamp(0.5, 2.0)).context("--seconds")?,
        pins: pins(arguments.pin.as_deref())?,
    };
    let turns = cases.len() * options.rounds * options.subjects.len();
    let bar = ProgressBar::new(turns as u64)
        .with_style(ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} ({eta} left)").context("progress bar")?);
    let report = suite::relay::run(&cases, &options, |turn| {
        let before =
            (turn.case_number * options.rounds + turn.round - 1) * options.subjects.len() + turn.subject_number;
        bar.set_position(before as u64);
        bar.set_message(format!("{}, round {}: {}", turn.case, turn.round, turn.subject));
    });
    bar.finish_and_clear();
    let report = report?;
    print!("{}", table::render(&report));
    if let Some(file) = &arguments.json {
        fs::write(file, serde_json::to_string_pretty(&report)?).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

fn origin(listen: &[SocketAddr]) -> anyhow::Result<()> {
    towpath_sys::host::raise_nofile_limit()?;
    let (mut listeners, mut sockets) = (Vec::new(), Vec::new());
    for &address in listen {
        let listener = load::origin::listen(address)?;
        // The same port for datagrams, also where the kernel has chosen it.
        sockets.push(load::origin::bind(listener.local_addr()?)?);
        println!("answering on {}, TCP and UDP", listener.local_addr()?);
        listeners.push(listener);
    }
    load::origin::serve(listeners, sockets)?;
    Ok(())
}

fn accounting(word: &str) -> Result<Accounting, String> {
    let named = Accounting::ALL.into_iter().find(|accounting| accounting.word() == word);
    named.ok_or_else(|| format!("there are {}", Accounting::ALL.map(Accounting::word).join(", ")))
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
                format!("no case `{name}`; there are {}", known.join(", "))
            })
        })
        .collect()
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

fn pins(text: Option<&str>) -> anyhow::Result<Pins> {
    let cpus = towpath_sys::host::available_cpus()?;
    let [first, .., last] = cpus.as_slice() else {
        bail!("one CPU only: a balancer and its client would measure each other; two are needed");
    };
    let mut pins = Pins { balancer: *first, client: vec![*last] };
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
    if pins.client.contains(&pins.balancer) {
        bail!("--pin: CPU {} cannot be the balancer's and the client's", pins.balancer);
    }
    Ok(pins)
}
