//! `towpath run`: check, start, then serve until a signal ends it.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread;

use anyhow::{Context, Result, anyhow};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use towpath_engine::config_file::{Accepted, Purpose, RefusedReload, Style, accept};
use towpath_engine::upgrade::{Takeover, successor};
use towpath_engine::{Engine, Outcome, Reloaded, StartOptions, Stop};
use towpath_sys::host::hand_on_no_capabilities;
use tracing::{error, info, warn};

use crate::cli::{Exit, RunArguments};
use crate::file::ConfigFile;
use crate::logging;
use crate::paint::Paint;
use crate::table::{counted, span};

/// Serves what the file says. Returns when the engine has ended.
pub(crate) fn run(arguments: &RunArguments) -> Result<Exit> {
    // Before there is another thread. Commands that check servers and that are told of events need nothing of what we may do.
    hand_on_no_capabilities().context("cannot keep capabilities to ourselves")?;
    let take_over = match arguments.take_over {
        true => Some(Arc::new(Takeover::greet(env!("CARGO_PKG_VERSION")).map_err(|error| anyhow!(error))?)),
        false => None,
    };
    let file = match ConfigFile::read(&arguments.config) {
        Ok(file) => file,
        Err(error) => {
            refuse(take_over.as_deref(), &format!("{error:#}"));
            return Err(error);
        }
    };
    let style = if Paint::on(&io::stderr()) == Paint::Colour { Style::Colour } else { Style::Plain };
    let model = match accept(&file.name, &file.text, Purpose::Start, style) {
        Ok(Accepted { model, warnings }) => {
            tell(warnings.as_deref().unwrap_or_default());
            model
        }
        Err(rejected) => {
            tell(&rejected.text);
            refuse(take_over.as_deref(), &rejected.text);
            return Ok(Exit::ConfigErrors);
        }
    };
    let log = logging::install(arguments.log).context("cannot start the thread of the log")?;
    // Before anything is opened: a signal that comes during the start waits until someone can act on it.
    let signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("cannot install signal handlers")?;
    let handle = signals.handle();

    // Its text names the causes already; as a chain they would be told twice.
    let config = Some(arguments.config.clone());
    let successor = successor(as_started(arguments));
    let options =
        StartOptions { cpus: arguments.worker_cpus.clone(), config, successor, take_over, ..StartOptions::default() };
    let engine = Engine::start(*model, options).map_err(|error| anyhow!("cannot start: {error}"))?;
    let engine = Arc::new(engine);
    tell(&engine.plan().to_string());
    let (reloads, asked) = sync_channel(1);
    let attendant = Attendant { engine: Arc::clone(&engine), reloads, stopping: false };
    let (reloaded, config) = (Arc::downgrade(&engine), arguments.config.clone());
    // Its end nobody waits for: a file system may keep it.
    thread::Builder::new()
        .name("reload".to_owned())
        .spawn(move || asked.iter().for_each(|()| reload(&reloaded, &config)))
        .context("cannot start the thread that reloads")?;
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

/// Tells the running process why this one does not take over from it.
fn refuse(take_over: Option<&Takeover>, why: &str) {
    if let Some(take_over) = take_over {
        take_over.refuse(vec![why.trim_end().to_owned()]);
    }
}

/// The arguments that a process is started with that takes over from this one, but for the file.
fn as_started(RunArguments { log, worker_cpus, config: _, take_over: _ }: &RunArguments) -> Vec<OsString> {
    let mut arguments = vec![OsString::from("run")];
    if let Some(level) = log {
        arguments.extend(["--log".into(), level.to_string().into()]);
    }
    if let Some(cpus) = worker_cpus {
        let cpus: Vec<String> = cpus.iter().map(ToString::to_string).collect();
        arguments.extend(["--worker-cpus".into(), cpus.join(",").into()]);
    }
    arguments
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

/// Acts on signals while the engine runs.
struct Attendant {
    engine: Arc<Engine>,
    /// Asks for a reload; one that waits reads what stands in the file then, so it is one for all who ask meanwhile.
    reloads: SyncSender<()>,
    stopping: bool,
}

impl Attendant {
    fn attend(mut self, mut signals: Signals) {
        for signal in signals.forever() {
            match signal {
                SIGHUP if self.stopping => warn!("SIGHUP: not reloading, the process is stopping"),
                SIGHUP => {
                    let _one_waits_already = self.reloads.try_send(());
                }
                _ if self.stopping => {
                    warn!("second signal: closing {} at once", counted(self.open(), "connection"));
                    self.engine.stop(Stop::Now);
                }
                _ => {
                    self.stopping = true;
                    info!("{}", draining(self.open(), self.engine.longest_drain()));
                    self.engine.stop(Stop::Drain);
                }
            }
        }
    }

    fn open(&self) -> usize {
        self.engine.status().workers.iter().map(|worker| worker.sessions as usize).sum()
    }
}

/// Takes the file as it is now, beside the thread that hears signals: a file system that does not answer keeps nobody from stopping.
fn reload(engine: &Weak<Engine>, config: &Path) {
    let Some(engine) = engine.upgrade() else { return };
    match engine.reload_file("SIGHUP") {
        Ok(Reloaded { generation, warnings, .. }) => {
            warnings.iter().for_each(|warning| tell(warning));
            info!("SIGHUP: {} is in effect, generation {generation}", config.display());
        }
        Err(refused) => {
            let named = match &refused {
                RefusedReload::Engine(error) => format!("{}: {error}", config.display()),
                other => other.to_string(),
            };
            tell(&format!("{}\n", named.trim_end()));
            error!("SIGHUP: nothing was changed; the configuration in effect stays");
        }
    }
}

fn draining(open: usize, longest: Option<(String, u64)>) -> String {
    if open == 0 {
        return "stopping: no connection is open".to_owned();
    }
    let (service, timeout_ms) = longest.unwrap_or_default();
    format!(
        "stopping: no new connections; {} may finish for up to {} (drain_timeout of {}), a second signal closes them at once",
        counted(open, "connection"),
        span(timeout_ms),
        service
    )
}
