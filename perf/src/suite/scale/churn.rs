//! A turn of connections that come and go: each is opened, asks once, has its answer and closes, and another takes its place.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use towpath_sys::packet::BATCH_MAX;

use super::hosts::{State, Step};
use super::{Leg, Peers, RETRY_AFTER, SILENCE_MAX, TRIES_MAX, reading};
use crate::cpu::{CpuTime, softirq_threads};
use crate::load::{new_histogram, recorded};
use crate::peers::{Running, Subject};
use crate::report::Phase;
use crate::suite::load::{Others, SATURATED, is_client_bound};
use crate::suite::sample::{Reading, Sample};
use crate::suite::stage::{Stage, explain};
use crate::suite::{Case, Options, on_cpus};

/// Clients that take turns, so many that whoever remembers a connection for a while after its end has forgotten it, or a second's worth of them.
pub(in crate::suite) const CLIENTS: usize = 1 << 17;

/// Drives so many connections at a time through a subject.
pub(in crate::suite) fn take(
    case: &Case,
    at_once: usize,
    subject: &Subject,
    options: &Options,
    stage: &Stage,
) -> io::Result<Vec<Sample>> {
    let mut running = stage.start(subject)?;
    let measured = on_cpus(&options.pins.client, || measure(case, at_once, options, stage, running.as_ref()));
    let sample = measured.map_err(|error| explain(error, &mut running))?;
    stage.stop(subject, running)?;
    Ok(vec![sample])
}

fn measure(
    case: &Case,
    at_once: usize,
    options: &Options,
    stage: &Stage,
    running: Option<&Running>,
) -> io::Result<Sample> {
    let mut ours = running.map(Running::processes).transpose()?.unwrap_or_default();
    let mut peers = Peers::open(CLIENTS, stage, ours.clone(), options.watch.clone())?;
    ours.extend(softirq_threads()?);
    ours.push(std::process::id());
    peers.clients.closes_at_once = true;
    let mut churn = Churn::new(&mut peers, at_once);
    // With the first one everybody asks for their neighbours.
    churn.run(Until::Done(1))?;
    churn.run(Until::Over(options.warm_up))?;

    let mut cpus = vec![options.pins.balancer];
    cpus.extend(&options.pins.client);
    let others = Others::watch(&cpus, &ours)?;
    churn.leg = Leg::default();
    churn.took_ns = Some(Vec::new());
    let (started, before) = (Instant::now(), CpuTime::read(&cpus)?);
    churn.run(Until::Over(options.measure))?;
    let seconds = started.elapsed().as_secs_f64();
    let used: Vec<_> =
        CpuTime::read(&cpus)?.into_iter().zip(before).map(|(after, before)| after.since(before)).collect();
    let leg = Leg { seconds, balancer: used[0], ..std::mem::take(&mut churn.leg) };
    let took_ns = churn.took_ns.take().unwrap_or_default();
    let others_share = others.share(used.iter().map(|cpu| cpu.busy_s).sum::<f64>() / seconds)?;
    // A connection that never ends is no success of those before it.
    churn.run(Until::Idle)?;

    let mut latency = new_histogram();
    took_ns.iter().for_each(|&ns| latency.saturating_record(ns));
    let per_cpu_s = leg.done as f64 / leg.balancer.busy_s.max(f64::MIN_POSITIVE);
    let efficiency = Reading {
        comparable: leg.balancer.busy_share >= SATURATED,
        ..reading("efficiency-saturated", "conn/CPU-s", per_cpu_s)
    };
    let retried = Reading { comparable: false, ..reading("retried", "segments", leg.retried as f64) };
    let sample = leg.sample(&case.name, vec![reading("rate", "conn/s", leg.per_second()), efficiency, retried]);
    Ok(Sample {
        phase: Some(Phase::Saturation),
        latency_ns: recorded(&latency),
        client_bound: is_client_bound(sample.client_busy, sample.balancer_busy, true),
        others_share,
        steal_share: used.iter().map(|cpu| cpu.steal_share).fold(0.0, f64::max),
        ..sample
    })
}

/// How long connections come.
#[derive(Clone, Copy)]
enum Until {
    /// So many have come and gone.
    Done(usize),
    /// No more come; those that are there have gone.
    Idle,
    /// So much time is over, whoever is there.
    Over(Duration),
}

/// A step whose answer has not come.
#[derive(Clone, Copy)]
struct Asked {
    number: usize,
    turn: u8,
    step: Step,
    at: Instant,
    tries: u8,
}

/// See the module.
struct Churn<'a> {
    peers: &'a mut Peers,
    at_once: usize,
    /// The client whose turn is next.
    next: usize,
    under_way: usize,
    /// In the order of their last try.
    asked: VecDeque<Asked>,
    /// When each client was last asked for a connection.
    began: Vec<Instant>,
    /// How long each connection took, in nanoseconds, while that is noted.
    took_ns: Option<Vec<u64>>,
    leg: Leg,
}

impl Churn<'_> {
    fn new(peers: &mut Peers, at_once: usize) -> Churn<'_> {
        Churn {
            began: vec![Instant::now(); peers.clients.connections.len()],
            peers,
            at_once,
            next: 0,
            under_way: 0,
            asked: VecDeque::with_capacity(4 * at_once),
            took_ns: None,
            leg: Leg::default(),
        }
    }

    fn run(&mut self, until: Until) -> io::Result<()> {
        let started = Instant::now();
        self.peers.clock.go_on();
        let mut last_end = self.peers.clock.now();
        let mut open_to = match until {
            Until::Done(count) => count,
            Until::Idle => 0,
            Until::Over(_) => usize::MAX,
        };
        loop {
            let turn_began = Instant::now();
            let now = self.peers.clock.at(turn_began);
            let mut opened = 0;
            while self.under_way < self.at_once && opened < BATCH_MAX && open_to > 0 {
                self.open(now, turn_began);
                (opened, open_to) = (opened + 1, open_to - 1);
            }
            match until {
                Until::Over(duration) if turn_began - started >= duration => return Ok(()),
                Until::Done(_) | Until::Idle if self.under_way == 0 => return Ok(()),
                _ => {}
            }
            let heard = self.peers.listen()?;
            if self.go_on(now)? > 0 {
                last_end = now;
            }
            self.ask_again(now)?;
            if now.saturating_duration_since(last_end) > SILENCE_MAX {
                let message = format!(
                    "{} connections are under way, and none has ended for {SILENCE_MAX:?}; the peers lost {} frames",
                    self.under_way,
                    self.peers.lost()
                );
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            if heard == 0 && opened == 0 {
                self.leg.waited_s += turn_began.elapsed().as_secs_f64();
            }
        }
    }

    /// Asks the next client for a connection.
    fn open(&mut self, now: Instant, began: Instant) {
        let number = self.next;
        self.next = (number + 1) % self.began.len();
        self.began[number] = began;
        self.peers.clients.renew(number);
        self.under_way += 1;
        self.leg.asked += 1;
        self.ask(number, Step::Open, now);
    }

    fn ask(&mut self, number: usize, step: Step, now: Instant) {
        self.peers.ask(number, step);
        let turn = self.peers.clients.connections[number].turn;
        self.asked.push_back(Asked { number, turn, step, at: now, tries: 1 });
    }

    /// Asks those that have made a step for their next one. How many have gone.
    fn go_on(&mut self, now: Instant) -> io::Result<usize> {
        let finished = std::mem::take(&mut self.peers.clients.finished);
        let mut gone = 0;
        for &number in &finished {
            let connection = self.peers.clients.connections[number];
            match connection.state {
                State::Open if connection.has_spoken => self.ask(number, Step::Close, now),
                State::Open => self.ask(number, Step::Speak, now),
                State::Closed => {
                    gone += 1;
                    if let Some(took_ns) = &mut self.took_ns {
                        took_ns.push(self.began[number].elapsed().as_nanos() as u64);
                    }
                }
                State::Asked(_) | State::New => {}
                State::Refused => {
                    let message = format!("connection {number} was refused");
                    return Err(io::Error::new(io::ErrorKind::ConnectionRefused, message));
                }
            }
        }
        // `listen` empties it.
        self.peers.clients.finished = finished;
        self.under_way -= gone;
        self.leg.done += gone;
        Ok(gone)
    }

    /// Sends again what has no answer for long.
    fn ask_again(&mut self, now: Instant) -> io::Result<()> {
        while let Some(&oldest) = self.asked.front() {
            let Asked { number, turn, step, at, tries } = oldest;
            let connection = self.peers.clients.connections[number];
            let is_over = connection.turn != turn || connection.state != State::Asked(step);
            if !is_over && now - at < RETRY_AFTER {
                break;
            }
            self.asked.pop_front();
            if is_over {
                continue;
            }
            if tries == TRIES_MAX {
                let message = format!("connection {number} had no answer ({step:?})");
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            self.leg.retried += 1;
            self.peers.ask(number, step);
            self.asked.push_back(Asked { at: now, tries: tries + 1, ..oldest });
        }
        Ok(())
    }
}
