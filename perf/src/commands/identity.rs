//! `identity`: whose answers do clients get?

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use towpath_perf::identity::{Origin, Outcome, Play, Subject, Target};
use towpath_perf::lab::{Lab, Topology};

/// Where clients connect to, and where the server is.
const PORT: u16 = 80;
/// How often the progress is shown.
const LOOK: Duration = Duration::from_millis(200);

/// Clients of every kind of authentication, and a server that authenticates connections as IIS does (NTLM, Negotiate), with somebody between who shares
/// the connections to it: does anybody get an answer that was made for somebody else?
#[derive(Args)]
pub(crate) struct Identity {
    /// Who beside Towpath: haproxy (safe and always), nginx (keepalive), or one mode, as in haproxy-never, haproxy-aggressive, nginx-never.
    #[arg(long, value_delimiter = ',', value_name = "NAME,…", default_value = "haproxy,nginx")]
    against: Vec<String>,
    /// The first subject.
    #[arg(long, value_name = "NAME", default_value = "towpath")]
    subject: String,
    /// Clients.
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Requests of all of them together.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    requests: u64,
    /// Requests under way at the same time.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=512))]
    at_once: u16,
    /// Seconds from one reload to the next, of those that reload without a new process; 0 = none.
    #[arg(long, value_name = "S", default_value_t = 5)]
    reload: u32,
    /// What clients and server do, and in which order.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Also writes the result here.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Towpath's program; by default the one beside this program.
    #[arg(long, value_name = "PATH")]
    towpath: Option<PathBuf>,
}

/// What is written.
#[derive(Serialize)]
struct Told {
    clients: u32,
    requests: u64,
    at_once: u16,
    seed: u64,
    subjects: Vec<OfSubject>,
}

/// Of one subject.
#[derive(Serialize)]
struct OfSubject {
    name: String,
    version: String,
    reloads: u64,
    #[serde(flatten)]
    outcome: Outcome,
    /// Connections that the server has taken.
    server_connections: u64,
    /// Logons that it has seen.
    logons: u64,
}

impl Identity {
    /// Does it.
    pub(crate) fn run(&self) -> anyhow::Result<()> {
        let towpath = match &self.towpath {
            Some(program) => program.clone(),
            None => std::env::current_exe().context("where is this program?")?.with_file_name("towpath"),
        };
        let mut subjects = Vec::new();
        for name in std::iter::once(&self.subject).chain(&self.against) {
            subjects.extend(Subject::find(name, &towpath)?);
        }
        // Hosts and processes of the lab are held by this process: its end is theirs.
        ctrlc::set_handler(|| {
            eprintln!("\ntowpath-perf: interrupted; the lab is gone");
            std::process::exit(130);
        })
        .context("cannot watch for Ctrl-C")?;
        towpath_sys::host::raise_nofile_limit().context("cannot raise the limit on descriptors")?;
        let mut told = Told {
            clients: self.clients,
            requests: self.requests,
            at_once: self.at_once,
            seed: self.seed,
            subjects: Vec::new(),
        };
        for subject in &subjects {
            told.subjects.push(self.play(subject).with_context(|| subject.name())?);
        }
        println!("{}", table(&told));
        if let Some(file) = &self.json {
            let text = serde_json::to_string_pretty(&told).context("the result")?;
            fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
        }
        match told.subjects.iter().find(|of| of.name.starts_with("towpath") && of.outcome.leaks() > 0) {
            Some(of) => bail!("{}: {} answers for somebody else", of.name, of.outcome.leaks()),
            None => Ok(()),
        }
    }

    fn play(&self, subject: &Subject) -> anyhow::Result<OfSubject> {
        let lab = Lab::build(Topology::TwoArm, 1).context("cannot build the lab")?;
        for host in [lab.client(), lab.balancer()] {
            // Clients come and go faster than their ports rest.
            host.set_sysctl("net.ipv4.tcp_tw_reuse", "1")?;
            host.set_sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
        }
        let listen = (lab.balancer().ipv4(), PORT).into();
        let server = (lab.server(1).ipv4(), PORT).into();
        let origin = lab.server(1).run(|| Origin::listen(server, self.seed))??;
        let mut running = subject.start(lab.balancer(), listen, server)?;
        let play = Play {
            target: Target::plain(listen),
            clients: self.clients as usize,
            requests: self.requests,
            at_once: usize::from(self.at_once),
            seed: self.seed,
        };
        let (progress, over) = (AtomicU64::new(0), AtomicBool::new(false));
        let bar = ProgressBar::new(self.requests).with_style(
            ProgressStyle::with_template("{bar:30} {pos}/{len} {msg} ({eta} left)").context("progress bar")?,
        );
        bar.set_message(subject.name());
        let (outcome, reloads) = thread::scope(|scope| {
            let watch = scope.spawn(|| -> std::io::Result<u64> {
                let (mut looks, mut reloads) = (0, 0);
                while !over.load(Ordering::Relaxed) {
                    thread::sleep(LOOK);
                    bar.set_position(progress.load(Ordering::Relaxed));
                    looks += 1;
                    let due = u64::from(self.reload) * 1000 / LOOK.as_millis() as u64;
                    if due > 0 && looks % due == 0 {
                        running.reload()?;
                        reloads += 1;
                    }
                }
                Ok(reloads)
            });
            let outcome = lab.client().run(|| play.run(&progress)).and_then(|played| played);
            over.store(true, Ordering::Relaxed);
            let reloads = watch.join().unwrap_or_else(|_| Err(std::io::Error::other("the watch has panicked")));
            (outcome, reloads)
        });
        bar.finish_and_clear();
        let outcome = outcome.with_context(|| running.said())?;
        let reloads = reloads?;
        running.stop()?;
        Ok(OfSubject {
            name: subject.name(),
            version: subject.version().to_owned(),
            reloads,
            outcome,
            server_connections: origin.connections(),
            logons: origin.logons(),
        })
    }
}

fn table(told: &Told) -> Table {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header([
        "subject",
        "requests",
        "for somebody else",
        "for another request",
        "logons forgotten",
        "logons refused",
        "without an answer",
        "500 and more",
        "client connections",
        "server connections",
        "requests/s",
    ]);
    for of in &told.subjects {
        let Outcome { requests, foreign, misplaced, forgotten, refused, closed, failed, .. } = of.outcome;
        let rate = (requests as f64 / of.outcome.seconds.max(0.001)) as u64;
        let mut cells = vec![of.name.clone()];
        let figures = [requests, foreign, misplaced, forgotten, refused, closed, failed];
        cells.extend(figures.map(|figure| figure.to_string()));
        cells.extend([of.outcome.client_connections, of.server_connections, rate].map(|figure| figure.to_string()));
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}
