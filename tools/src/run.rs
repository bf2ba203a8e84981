//! `towpath run`: check, start, then serve until a signal ends it.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, anyhow};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use towpath_config::{Checked, Model};
use towpath_engine::{Engine, Outcome, StartOptions, Stop};
use tracing::{error, info, warn};

use crate::cli::{Exit, RunArguments};
use crate::file::ConfigFile;
use crate::logging;
use crate::paint::Paint;
use crate::table::{counted, span};

/// Serves what the file says. Returns when the engine has ended.
pub(crate) fn run(arguments: &RunArguments) -> Result<Exit> {
    let file = ConfigFile::read(&arguments.config)?;
    let accepted = accept(&file, Purpose::Start, Paint::on(&io::stderr()));
    tell(accepted.text());
    let Accepted::Model { model, .. } = accepted else { return Ok(Exit::ConfigErrors) };
    let log = logging::install(arguments.log).context("cannot start the thread of the log")?;
    // Before anything is opened: a signal that comes during the start waits until someone can act on it.
    let signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("cannot install signal handlers")?;
    let handle = signals.handle();

    let drain = longest_drain(&model);
    // Its text names the causes already; as a chain they would be told twice.
    let options = StartOptions { cpus: arguments.worker_cpus.clone(), ..StartOptions::default() };
    let engine = Engine::start(*model, options).map_err(|error| anyhow!("cannot start: {error}"))?;
    let engine = Arc::new(engine);
    tell(&engine.plan().to_string());
    let attendant = Attendant { engine: Arc::clone(&engine), config: arguments.config.clone(), drain, stopping: false };
    let attending = thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || attendant.attend(signals))
        .context("cannot start the thread that waits for signals")?;

    let outcome = engine.wait();
    handle.close();
    if attending.join().is_err() {
        error!("the thread that waits for signals has panicked");
    }
    let exit = conclude(outcome);
    drop(log);
    Ok(exit)
}

/// What remains to be said, and the exit code.
fn conclude(outcome: Outcome) -> Exit {
    match outcome {
        Outcome::Stopped { cut: 0 } => {
            info!("stopped; every connection had ended by itself");
            Exit::Done
        }
        Outcome::Stopped { cut } => {
            warn!(
                "stopped; {} cut",
                if cut == 1 { "1 connection was".to_owned() } else { format!("{cut} connections were") }
            );
            Exit::Done
        }
        Outcome::WorkerLost(worker) => {
            error!("worker {worker} ended by itself, so the process ends; what it logged before says why");
            Exit::Failed
        }
    }
}

/// Writes to standard error. Whoever read it may be gone, which is no reason to stop balancing.
fn tell(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// What a file is checked for.
#[derive(Clone, Copy)]
enum Purpose {
    Start,
    Reload,
}

impl Purpose {
    /// What a refusal means.
    fn refusal(self) -> &'static str {
        match self {
            Purpose::Start => "nothing is started; correct the lines named above",
            Purpose::Reload => "nothing is changed; correct the lines named above",
        }
    }
}

/// The verdict on a file, with the text for the operator.
enum Accepted {
    Model { model: Box<Model>, warnings: String },
    Refused(String),
}

impl Accepted {
    fn text(&self) -> &str {
        match self {
            Accepted::Model { warnings, .. } => warnings,
            Accepted::Refused(reasons) => reasons,
        }
    }
}

/// Checks a file for running: what `check` only warns about because no code carries it out yet is refused here.
fn accept(file: &ConfigFile, purpose: Purpose, paint: Paint) -> Accepted {
    let checked = towpath_config::check(&file.name, &file.text);
    let mut text = towpath_config::render(&checked.diagnostics, &file.name, &file.text, paint == Paint::Colour);
    let unavailable = checked.unavailable().count();
    let Checked { model, diagnostics, .. } = checked;
    match model {
        None => {
            let errors =
                diagnostics.iter().filter(|diagnostic| diagnostic.severity == towpath_config::Severity::Error).count();
            let _ = writeln!(text, "{}: {}; {}", file.name, counted(errors, "error"), purpose.refusal());
            Accepted::Refused(text)
        }
        Some(_) if unavailable > 0 => {
            let _ = writeln!(
                text,
                "{}: {} not available yet, and run refuses what check only warns about; {}",
                file.name,
                if unavailable == 1 { "one setting is".to_owned() } else { format!("{unavailable} settings are") },
                purpose.refusal()
            );
            Accepted::Refused(text)
        }
        Some(model) => Accepted::Model { model: Box::new(model), warnings: text },
    }
}

/// The longest time that connections may take to finish, and the service that allows it.
struct Drain {
    timeout_ms: u64,
    service: String,
}

fn longest_drain(model: &Model) -> Drain {
    let longest = model.services.iter().max_by_key(|service| service.drain_timeout_ms);
    longest.map_or(Drain { timeout_ms: 0, service: String::new() }, |service| Drain {
        timeout_ms: service.drain_timeout_ms,
        service: service.name.clone(),
    })
}

/// Acts on signals while the engine runs.
struct Attendant {
    engine: Arc<Engine>,
    config: PathBuf,
    drain: Drain,
    stopping: bool,
}

impl Attendant {
    fn attend(mut self, mut signals: Signals) {
        for signal in signals.forever() {
            match signal {
                SIGHUP if self.stopping => warn!("SIGHUP: not reloading, the process is stopping"),
                SIGHUP => self.reload(),
                _ if self.stopping => {
                    warn!("second signal: closing {} at once", counted(self.open(), "connection"));
                    self.engine.stop(Stop::Now);
                }
                _ => {
                    self.stopping = true;
                    info!("{}", draining(self.open(), &self.drain));
                    self.engine.stop(Stop::Drain);
                }
            }
        }
    }

    fn open(&self) -> usize {
        self.engine.status().workers.iter().map(|worker| worker.sessions as usize).sum()
    }

    fn reload(&mut self) {
        match reload(&self.engine, &self.config) {
            Ok(reloaded) => {
                tell(&reloaded.warnings);
                self.drain = reloaded.drain;
                info!("SIGHUP: {} is in effect, generation {}", self.config.display(), reloaded.generation);
            }
            Err(reasons) => {
                tell(&format!("{}\n", reasons.trim_end()));
                error!("SIGHUP: nothing was changed; the configuration in effect stays");
            }
        }
    }
}

fn draining(open: usize, drain: &Drain) -> String {
    if open == 0 {
        return "stopping: no connection is open".to_owned();
    }
    format!(
        "stopping: no new connections; {} may finish for up to {} (drain_timeout of {}), a second signal closes them at once",
        counted(open, "connection"),
        span(drain.timeout_ms),
        drain.service
    )
}

/// What a reload brought.
struct Reloaded {
    generation: String,
    drain: Drain,
    warnings: String,
}

/// Takes over the file as it is now, or says why not.
fn reload(engine: &Engine, config: &Path) -> Result<Reloaded, String> {
    let file = ConfigFile::read(config).map_err(|error| format!("error: {error:#}"))?;
    match accept(&file, Purpose::Reload, Paint::on(&io::stderr())) {
        Accepted::Refused(reasons) => Err(reasons),
        Accepted::Model { model, warnings } => {
            let drain = longest_drain(&model);
            let generation = engine.reload(*model).map_err(|error| format!("{}: {error}", file.name))?;
            Ok(Reloaded { generation: generation.to_string(), drain, warnings })
        }
    }
}
