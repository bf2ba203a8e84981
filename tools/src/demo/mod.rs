//! `towpath demo`: three origins, the relay, real traffic, and one origin stopped in the middle. No root, no file.

mod client;
mod ledger;
mod origin;
mod report;
mod screen;
mod traffic;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use towpath_config::Model;
use towpath_engine::{Engine, Outcome, StartOptions, Status, Stop};

use self::origin::Origin;
use self::report::Report;
use self::screen::{Screen, Standing};
use self::traffic::{CLIENTS, KEEP_ALIVE_CLIENTS, StopMoment, Traffic};
use crate::cli::{DemoArguments, Exit};
use crate::status::health_word;

/// The origins, in the order of the configuration.
const ORIGINS: &[&str] = &["ash", "birch", "cedar"];
/// The one that is stopped.
const STOPPED: usize = 1;
/// The configuration, with `{…}` where only the running demo knows what to write.
const TEMPLATE: &str = include_str!("demo.toml");
/// Another program may take the port between finding it and listening on it.
const STARTS_MAX: usize = 5;
/// Descriptors of clients, origins and their runtime, beside those of the relay: both ends of every client's connection, a
/// fresh one and one that is just being closed.
const OWN_DESCRIPTORS: u64 = 64 + 4 * CLIENTS as u64;

/// Runs the demo. Ctrl-C ends it at any time; before the traffic has ended that counts as failed.
pub(crate) fn demo(arguments: &DemoArguments) -> Result<Exit> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("demo")
        .enable_all()
        .build()
        .context("cannot start the threads of clients and origins")?;
    let screen = if arguments.json { Screen::stderr() } else { Screen::stdout() };
    let mut interrupts = runtime.block_on(async { Interrupts::catch() }).context("cannot install signal handlers")?;
    let outcome = runtime.block_on(Demo::open(screen)).and_then(|mut demo| {
        let outcome = demo.play(&runtime, &mut interrupts, arguments);
        demo.close();
        outcome
    });
    // Clients and origins may be in the middle of something; nobody waits for it.
    runtime.shutdown_background();
    outcome
}

struct Demo {
    screen: Screen,
    origins: Vec<Option<Origin>>,
    engine: Arc<Engine>,
    relay: SocketAddr,
    socket: PathBuf,
}

impl Demo {
    async fn open(screen: Screen) -> Result<Demo> {
        let mut origins = Vec::new();
        for name in ORIGINS {
            let origin = Origin::open(name, (Ipv4Addr::LOCALHOST, 0).into()).await;
            origins.push(origin.with_context(|| format!("origin {name} cannot listen on loopback"))?);
        }
        let addresses: Vec<SocketAddr> = origins.iter().map(Origin::address).collect();
        let socket = std::env::temp_dir().join(format!("towpath-demo-{}.sock", std::process::id()));
        let (engine, relay) = start_relay(&addresses, &socket)?;
        let origins = origins.into_iter().map(Some).collect();
        Ok(Demo { screen, origins, engine: Arc::new(engine), relay, socket })
    }

    fn play(&mut self, runtime: &Runtime, interrupts: &mut Interrupts, arguments: &DemoArguments) -> Result<Exit> {
        let stopped_at =
            self.origins[STOPPED].as_ref().map(Origin::address).context("the origin runs until it is stopped")?;
        let mut report = match runtime.block_on(interrupts.unless(self.measure(arguments)))? {
            Some(report) => report,
            None => {
                self.screen.say("interrupted")?;
                return Ok(Exit::Failed);
            }
        };
        if !arguments.keep
            && let Err(complaint) = end_relay(&self.engine)
        {
            report.complain(complaint);
        }
        self.screen.conclude(&report)?;
        if arguments.json {
            let mut out = io::stdout().lock();
            serde_json::to_writer_pretty(&mut out, &report)?;
            io::Write::write_all(&mut out, b"\n")?;
        }
        if arguments.keep {
            runtime.block_on(self.bring_back(stopped_at))?;
            runtime.block_on(interrupts.next());
        }
        Ok(if report.passed { Exit::Done } else { Exit::Failed })
    }

    async fn measure(&mut self, arguments: &DemoArguments) -> Result<Report> {
        let line = format!(
            "Towpath relays http://{} to {} · {CLIENTS} clients, {KEEP_ALIVE_CLIENTS} of them keep their connection",
            self.relay,
            ORIGINS.join(", ")
        );
        self.screen.say(&line)?;
        self.screen.say("")?;

        let half = Duration::from_secs(arguments.seconds.into()) / 2;
        let traffic = Traffic::new(self.relay, ORIGINS);
        let running = traffic.start();
        self.watch(&traffic, half).await?;
        let origin = self.origins[STOPPED].take().context("the origin is stopped once")?;
        let stop = traffic.stop(STOPPED, origin).await;
        self.say_stopped(&stop)?;
        self.watch(&traffic, half).await?;
        let latencies = traffic.end(running).await;
        Ok(Report::new(ORIGINS, CLIENTS, &traffic.sample(), &stop, STOPPED, &latencies))
    }

    fn say_stopped(&mut self, stop: &StopMoment) -> Result<()> {
        let line = format!(
            "\n  {:.1} s: {} is stopped, with all its connections\n",
            stop.after.at.as_secs_f64(),
            ORIGINS[STOPPED]
        );
        Ok(self.screen.say(&line)?)
    }

    async fn watch(&mut self, traffic: &Traffic, time: Duration) -> Result<()> {
        let end = tokio::time::Instant::now() + time;
        loop {
            let next = tokio::time::Instant::now() + self.screen.interval();
            tokio::time::sleep_until(next.min(end)).await;
            let standings = self.standings();
            self.screen.show(traffic.sample(), &standings)?;
            if next >= end {
                return Ok(());
            }
        }
    }

    /// The origins as the relay sees them.
    fn standings(&self) -> Vec<Standing> {
        standings(&self.engine.status())
    }

    /// Brings the stopped origin back and says how to use what is left running.
    async fn bring_back(&mut self, address: SocketAddr) -> Result<()> {
        let name = ORIGINS[STOPPED];
        match Origin::open(name, address).await {
            Ok(origin) => {
                self.origins[STOPPED] = Some(origin);
                self.screen.say(&format!("\n  {name} is back; its health check lets it in again"))?;
            }
            // Another program has taken its port meanwhile: the other two go on.
            Err(error) => self.screen.say(&format!("\n  {name} stays stopped: {address}: {error}"))?,
        }
        let line = format!(
            "  it goes on until Ctrl-C:\n\n    curl http://{}\n    towpath status --socket {}\n",
            self.relay,
            self.socket.display()
        );
        Ok(self.screen.say(&line)?)
    }

    fn close(&self) {
        self.engine.stop(Stop::Now);
        self.engine.wait();
    }
}

/// Ctrl-C and SIGTERM, caught from here on: one that comes while nobody waits is not lost.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    fn catch() -> io::Result<Interrupts> {
        Ok(Interrupts { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// `None` when a signal came first.
    async fn unless<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<Option<T>> {
        tokio::select! {
            outcome = work => outcome.map(Some),
            () = self.next() => Ok(None),
        }
    }
}

/// Starts the relay on a port that is free now, and on another one where somebody was faster.
fn start_relay(origins: &[SocketAddr], socket: &Path) -> Result<(Engine, SocketAddr)> {
    let mut attempts_left = STARTS_MAX;
    loop {
        let relay = free_port().context("no free port on loopback")?;
        let model = model(&configuration(relay, origins, socket))?;
        attempts_left -= 1;
        let options = StartOptions { descriptors_elsewhere: OWN_DESCRIPTORS, ..StartOptions::default() };
        match Engine::start(model, options) {
            Ok(engine) => return Ok((engine, relay)),
            Err(_) if attempts_left > 0 && port_was_taken(relay) => {}
            Err(error) => return Err(error).context("cannot start the relay"),
        }
    }
}

/// Ends the relay as SIGTERM would. All clients have closed, so there must be nothing to wait for.
fn end_relay(engine: &Engine) -> Result<(), String> {
    engine.stop(Stop::Drain);
    match engine.wait() {
        Outcome::Stopped { cut: 0 } => Ok(()),
        Outcome::Stopped { cut } => Err(format!("the relay still held {cut} connections that its clients had closed")),
        Outcome::WorkerLost(worker) => Err(format!("worker {worker} of the relay ended by itself")),
    }
}

/// The origins as the relay sees them.
fn standings(status: &Status) -> Vec<Standing> {
    let servers = status.services.iter().flat_map(|service| &service.servers);
    ORIGINS
        .iter()
        .zip(servers)
        .map(|(name, server)| Standing {
            name,
            health: health_word(server.health),
            reason: server.reason.clone(),
            connections: server.connections.into(),
        })
        .collect()
}

/// A port of loopback that nobody listens on at this moment.
fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// Whether somebody else listens there by now.
fn port_was_taken(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// The configuration file of this demo.
fn configuration(relay: SocketAddr, origins: &[SocketAddr], socket: &Path) -> String {
    let mut text =
        TEMPLATE.replace("{socket}", &socket.display().to_string()).replace("{relay}", &relay.port().to_string());
    for (name, address) in ORIGINS.iter().zip(origins) {
        text = text.replace(&format!("{{{name}}}"), &address.port().to_string());
    }
    text
}

/// What any file goes through.
fn model(text: &str) -> Result<Model> {
    let checked = towpath_config::check("demo.toml", text);
    match checked.model {
        Some(model) if checked.diagnostics.is_empty() => Ok(model),
        _ => bail!(
            "the demo's own file is wrong:\n{}",
            towpath_config::render(&checked.diagnostics, "demo.toml", text, false)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_configuration_passes_the_check_without_a_word() {
        let port = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let text = configuration(port(8080), &[port(8081), port(8082), port(8083)], Path::new("/tmp/demo.sock"));
        let model = model(&text).unwrap();
        let ports: Vec<u16> = model.services.iter().flat_map(|service| service.sockets()).map(|s| s.port()).collect();
        assert_eq!(ports, [8080]);
        let servers: Vec<(&str, Option<u16>)> =
            model.groups[0].servers.iter().map(|server| (server.name.as_str(), server.port)).collect();
        assert_eq!(servers, [("ash", Some(8081)), ("birch", Some(8082)), ("cedar", Some(8083))]);
    }
}
