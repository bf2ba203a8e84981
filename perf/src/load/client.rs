//! The client: drives [`Work`] at a target and verifies every byte of the answers.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::callers::Callers;
use super::engine::{Engine, Load};
use super::flows::Flows;
use super::gauge::Schedule;
use super::spin::Spin;
use super::tls::Tls;
use super::{Pace, Plan, Security, Tally, Work, recorded};
use crate::cpu::{CpuTime, process_seconds};
use crate::message::Framing;

/// How long nothing may happen where something must: no connection answers, no request that is under way ends.
const SILENCE_MAX: Duration = Duration::from_secs(5);

/// Starts per second that one thread is asked for at most.
const PER_SECOND_MAX: f64 = 10_000_000.0;

/// With so many pieces of work at once, the closed loop waits awake. Fewer leave a CPU idle between them whoever waits how, and the
/// equal rate of such a case is to be one that a client keeps that sleeps.
const SPIN_FROM: usize = 16;

/// Does what the plan says, on the calling thread and in its namespace. Fails at the first connection that is refused, reset
/// or ended too early, at the first wrong byte, and when a request stays unanswered.
pub fn run(plan: &Plan) -> io::Result<Tally> {
    run_beside_origin(plan, Vec::new(), Vec::new())
}

/// As [`run`], and answers on these on the same thread, which saves the switches between client and origin.
pub fn run_beside_origin(plan: &Plan, listeners: Vec<TcpListener>, sockets: Vec<UdpSocket>) -> io::Result<Tally> {
    check(plan)?;
    if matches!((plan.pace, plan.work), (Pace::Open { .. }, Work::Bulk { .. })) && listeners.is_empty() {
        let message = "streams of bytes keep a rate only where their origin is beside the client";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let mut engine = Engine::for_work(plan.work, plan.security, plan.framing)?;
    let tally = engine.answer_on(listeners, sockets).and_then(|()| drive(plan, &mut engine));
    let closed = engine.close();
    let tally = tally?;
    closed?;
    Ok(tally)
}

/// Connections that are open and proven to work, for whoever wants to look at what they cost. They are carried by a thread
/// of their own, in the namespace and on the CPUs of the thread that opened them, and close when this is dropped.
pub struct Held {
    commands: Option<Sender<()>>,
    proven: Receiver<io::Result<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Held {
    /// Opens so many connections; each is answered once. Returns when all are.
    pub fn open(target: SocketAddr, connections: usize, tls: Option<Tls>) -> io::Result<Held> {
        let (commands, commanded) = channel();
        let (tell, proven) = channel();
        let thread = thread::Builder::new().name("held".to_owned()).spawn(move || {
            let work = Work::Hold { connections };
            let mut engine = match Engine::for_work(work, Security { client: tls, origin: false }, Framing::Bare) {
                Ok(engine) => engine,
                Err(error) => return drop(tell.send(Err(error))),
            };
            let mut opened = open(&mut engine, target, work, connections);
            let mut slots = opened.as_mut().map(std::mem::take).unwrap_or_default();
            let mut listened = tell.send(opened.map(drop)).is_ok();
            while listened && commanded.recv().is_ok() {
                let again = prove(&mut engine, std::mem::take(&mut slots)).map(|proven| slots = proven);
                listened = tell.send(again).is_ok();
            }
            // Nobody is left who could be told.
            let _closed = engine.close();
        })?;
        let mut held = Held { commands: Some(commands), proven, thread: Some(thread) };
        held.await_proof()?;
        Ok(held)
    }

    /// Asks once on each connection; fails unless every one answers.
    pub fn prove(&mut self) -> io::Result<()> {
        if let Some(commands) = &self.commands {
            // A thread that is gone is noticed below.
            let _gone = commands.send(());
        }
        self.await_proof()
    }

    fn await_proof(&mut self) -> io::Result<()> {
        self.proven.recv().unwrap_or_else(|_| Err(io::Error::other("the thread that holds the connections is gone")))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // It has told of its failures.
            let _ended = thread.join();
        }
    }
}

fn check(plan: &Plan) -> io::Result<()> {
    let wrong = |message: String| Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    match (plan.pace, plan.work) {
        (_, Work::Handshake { .. }) if plan.security.client.is_none() => wrong("handshakes take TLS".to_owned()),
        // The ticket that the next one needs comes after the handshake (RFC 8446 section 4.6.1).
        (_, Work::Handshake { .. }) if plan.security.client.is_some_and(|tls| tls.resumes) => {
            wrong("handshakes alone resume nothing".to_owned())
        }
        (_, Work::Bulk { .. } | Work::Datagrams { .. }) if plan.framing.asks_by_head() => {
            wrong("browsers ask for no streams and datagrams".to_owned())
        }
        (_, Work::Datagrams { .. }) if plan.security != Security::PLAIN => wrong("datagrams go without TLS".to_owned()),
        // Bytes, kept to by the origin's kernel.
        (Pace::Open { per_second }, Work::Bulk { .. }) if per_second >= 1.0 => Ok(()),
        (Pace::Open { per_second }, _) if !(per_second > 0.0 && per_second <= PER_SECOND_MAX) => {
            wrong(format!("{per_second} starts per second: more than 0 and at most {PER_SECOND_MAX} are possible"))
        }
        _ => Ok(()),
    }
}

fn drive(plan: &Plan, engine: &mut Engine) -> io::Result<Tally> {
    let Plan { target, work, pace, .. } = *plan;
    let mut idle = Vec::new();
    match work {
        Work::Bulk { streams } => {
            let slots = open(engine, target, work, streams)?;
            engine.callers_mut()?.employ(slots);
        }
        Work::Connect { concurrency, .. } | Work::Handshake { concurrency } => {
            if let Some(tls) = plan.security.client {
                if tls.resumes {
                    // A session for each that is to resume one; each of those leaves another.
                    let first = open(engine, target, work, concurrency)?;
                    first.into_iter().try_for_each(|slot| engine.wire.close(slot))?;
                }
                engine.wire.must_resume = Some(tls.resumes);
            }
            engine.load = Load::Callers(Callers::new(target, work));
            engine.callers_mut()?.allow(concurrency);
        }
        Work::Datagrams { flows, payload_bytes } => {
            engine.load = Load::Flows(Flows::open(&mut engine.wire, target, flows, payload_bytes, pace)?);
        }
        Work::Hold { connections } => idle = open(engine, target, work, connections)?,
        Work::KeepAlive { connections, idle: silent, .. } => {
            idle = open(engine, target, work, connections + silent)?;
            let active = idle.split_off(silent);
            engine.callers_mut()?.employ(active);
        }
    }
    if !matches!(work, Work::Hold { .. }) {
        let now = Instant::now();
        // A stream has one start; what has a rate is its pieces.
        let starts = match (work, pace) {
            (Work::Bulk { .. }, Pace::Open { per_second }) => {
                engine.wire.pace_streams(per_second, now);
                Pace::Closed
            }
            _ => pace,
        };
        engine.gauge.schedule = Schedule::starting(starts, now);
    }
    if pace == Pace::Closed && work.at_once() >= SPIN_FROM {
        engine.spin = Some(Spin::learn(&mut engine.wire.ring));
    }
    engine.run_until(Some(Instant::now() + plan.warm_up))?;

    let processes: Vec<u32> = plan.watch_processes.iter().copied().chain([std::process::id()]).collect();
    let processes_before = process_seconds(&processes);
    let cpus_before = CpuTime::read(&plan.watch_cpus)?;
    let spun = |engine: &Engine| engine.spin.as_ref().map_or(0.0, Spin::seconds);
    let spun_before = spun(engine);
    let started = Instant::now();
    engine.gauge.start_counting(started);
    engine.run_until(Some(started + plan.measure))?;
    let ended = Instant::now();
    engine.gauge.stop_counting(ended);
    let cpus = CpuTime::read(&plan.watch_cpus)?;
    let processes_s = process_seconds(&processes) - processes_before;
    let spun_s = spun(engine) - spun_before;
    engine.spin = None;

    if !matches!(work, Work::Bulk { .. }) {
        finish(engine, target)?;
    }
    let held = idle.len() as u64;
    if !idle.is_empty() {
        prove(engine, idle)?;
    }
    let gauge = &engine.gauge;
    let done = if matches!(work, Work::Hold { .. }) { held } else { gauge.done };
    let seconds = (ended - started).as_secs_f64();
    if done == 0 {
        let message = format!("{target}: nothing completed in {seconds:.1} s");
        return Err(io::Error::new(io::ErrorKind::TimedOut, message));
    }
    Ok(Tally {
        seconds,
        done,
        offered: match (pace, work) {
            (Pace::Open { per_second }, Work::Bulk { .. }) => Some((per_second * seconds) as u64),
            _ => gauge.offered,
        },
        lost: gauge.lost,
        latency_ns: recorded(&gauge.latency),
        cpus: cpus.into_iter().zip(cpus_before).map(|(after, before)| after.since(before)).collect(),
        processes_s,
        spun_s,
    })
}

/// Opens connections and has each answered once.
fn open(engine: &mut Engine, target: SocketAddr, work: Work, connections: usize) -> io::Result<Vec<u32>> {
    let mut callers = Callers::new(target, work);
    callers.open(connections);
    engine.load = Load::Callers(callers);
    await_proofs(engine, connections)
}

/// Has each of these answered once more.
fn prove(engine: &mut Engine, slots: Vec<u32>) -> io::Result<Vec<u32>> {
    let connections = slots.len();
    engine.callers_mut()?.prove(slots);
    await_proofs(engine, connections)
}

fn await_proofs(engine: &mut Engine, connections: usize) -> io::Result<Vec<u32>> {
    let (mut proven, mut since) = (0, Instant::now());
    loop {
        let callers = engine.callers_mut()?;
        if callers.all_proven() {
            return Ok(std::mem::take(&mut callers.proven));
        }
        let now = Instant::now();
        if callers.proven.len() > proven {
            (proven, since) = (callers.proven.len(), now);
        } else if now - since >= SILENCE_MAX {
            let message = format!("{proven} of {connections} connections answered, then none for {SILENCE_MAX:?}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        engine.turn(since + SILENCE_MAX)?;
    }
}

/// Lets what is under way come to its end: a request that is never answered is no success of those before it.
fn finish(engine: &mut Engine, target: SocketAddr) -> io::Result<()> {
    let (mut left, mut since) = (engine.under_way(), Instant::now());
    while left > 0 {
        engine.turn(since + SILENCE_MAX)?;
        let now = Instant::now();
        if engine.under_way() < left {
            (left, since) = (engine.under_way(), now);
        } else if now - since >= SILENCE_MAX {
            let message = format!("{target}: {left} requests were not answered within {SILENCE_MAX:?}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
    }
    Ok(())
}
