//! A turn of very many connections to one real server port: clients and server without a kernel, so that only the subject's limits are met.

pub(super) mod churn;
mod hosts;

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use towpath_core::burst;
use towpath_core::packet::{Mac, Packet, parse};
use towpath_core::random::SplitMix64;
use towpath_sys::netns::Namespace;
use towpath_sys::packet::{BATCH_MAX, Burst, Offload, PacketPort, PacketPorts, RingSettings, open};

use hosts::{Answer, CLIENT, Clients, Connection, SERVER, Server, Sources, State, Step};

use super::sample::{Reading, Sample};
use super::snat::{LEVELS_PERCENT, window};
use super::stage::{Stage, crowd_gateway, explain};
use super::{Case, Options, Watch, on_cpus};
use crate::cpu::{CpuTime, CpuUse, run_time_ns};
use crate::lab::Host;
use crate::load::{new_histogram, recorded};
use crate::peers::{Pool, Running, Subject};
use crate::segment::is_intact;

/// Connections that change their state at a time. A subject's ring for whole super-packets holds few frames, however small these are.
const AT_ONCE_MAX: usize = 128;

/// Of these, how many pass data at a time: their latency is told.
const SPEAKING_MAX: usize = 16;

/// One connection in so many passes data while all are held.
const SPEAKER_OF: usize = 100;

/// When a segment without an answer is sent again, and how often it is sent before the connection counts as refused.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const TRIES_MAX: u8 = 15;

/// How long no connection may make its step.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// A turn of the peers takes microseconds. After this they were stopped, or waited for a CPU: what they did not hear meanwhile is nobody's fault.
const STILL_MIN: Duration = Duration::from_millis(100);

/// Between two lines about how far a stretch is.
const TELL_INTERVAL: Duration = Duration::from_millis(500);

/// Between two looks while connections are only held.
const HOLD_LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// How long connections are only held.
const HOLD: Duration = Duration::from_secs(2);

/// Of the peers: a station that no kernel is, on either network.
const STATION: Mac = Mac([0x02, 0x54, 0x6f, 0x77, 0x70, 0x01]);

/// Frames that may wait for the peers; each is small.
const RING: RingSettings = RingSettings { slots: 2048, frame_bytes_max: 256, queued_bytes_max: 0 };

/// Opens the connections, holds them, passes data on a few, and closes them all.
pub(super) fn take(
    case: &Case,
    connections: usize,
    subject: &Subject,
    options: &Options,
    stage: &Stage,
) -> io::Result<Vec<Sample>> {
    let mut running = stage.start(subject)?;
    let measured = on_cpus(&options.pins.client, || measure(case, connections, options, stage, running.as_ref()));
    let samples = measured.map_err(|error| explain(error, &mut running))?;
    stage.stop(subject, running)?;
    Ok(samples)
}

fn measure(
    case: &Case,
    connections: usize,
    options: &Options,
    stage: &Stage,
    running: Option<&Running>,
) -> io::Result<Vec<Sample>> {
    let processes = running.map(Running::processes).transpose()?.unwrap_or_default();
    let capacity = stage.setting().pool.as_ref().map_or(connections, Pool::capacity);
    let mut peers = Peers::open(connections, stage, processes.clone(), options.watch.clone())?;
    let mut samples = Vec::new();
    let cpu = [options.pins.balancer];
    // The first one has everybody ask for their neighbours; more would only wait for the answers, which is not what is measured.
    let first = peers.drive(Step::Open, 0..1, 1)?;
    let mut opened = Leg { asked: first.asked, done: first.done, ..Leg::default() };
    let mut next = 1;
    // Towards each level and across it, then the rest; what a connection costs is told at the levels.
    for level in LEVELS_PERCENT {
        let [from, to] = window(level, capacity).map(|count| count.min(connections));
        let first = from.max(next);
        opened += leg(&cpu, || peers.drive(Step::Open, next..first, AT_ONCE_MAX))?;
        let (before, across) = (run_time_ns(&processes), to.saturating_sub(first));
        opened += leg(&cpu, || peers.drive(Step::Open, first..to.max(first), AT_ONCE_MAX))?;
        next = to.max(first);
        if across > 0 && !processes.is_empty() && to == window(level, capacity)[1] {
            let cost_us = (run_time_ns(&processes) - before) as f64 / across as f64 / 1000.0;
            let reading = Reading { metric: "connect-cost", unit: "µs".into(), value: cost_us, comparable: true };
            let case = format!("{}-at-{level}%", case.name);
            samples.push(Sample { case, readings: vec![reading], ..Sample::default() });
        }
    }
    opened += leg(&cpu, || peers.drive(Step::Open, next..connections, AT_ONCE_MAX))?;

    // Long enough for every handshake of which a segment was lost.
    let held = leg(&cpu, || peers.hold(HOLD))?;
    opened.retried += peers.server.repeated;

    let mut random = SplitMix64::new(connections as u64);
    let open: Vec<usize> = (0..connections).filter(|&number| peers.is_open(number)).collect();
    let speakers = open.len().div_ceil(SPEAKER_OF);
    // Each at most once: a sample without replacement by stepping through a shuffled prefix.
    let mut drawn = open.clone();
    for place in 0..speakers {
        let other = place + random.below((drawn.len() - place) as u64) as usize;
        drawn.swap(place, other);
    }
    drawn.truncate(speakers);
    let mut latency = new_histogram();
    let spoken = leg(&cpu, || {
        let spoken = peers.drive(Step::Speak, drawn.iter().copied(), SPEAKING_MAX)?;
        spoken.took_ns.iter().for_each(|&ns| latency.saturating_record(ns));
        Ok(spoken)
    })?;

    let closed = leg(&cpu, || peers.drive(Step::Close, open.iter().copied(), AT_ONCE_MAX))?;
    let lost = peers.lost();
    for (what, leg) in [("passed no data", &spoken), ("did not close", &closed)] {
        if leg.done < leg.asked {
            let message = format!(
                "{} of {} open connections {what}; the peers lost {lost} frames",
                leg.asked - leg.done,
                leg.asked
            );
            return Err(io::Error::other(message));
        }
    }

    let count = |metric, value: usize| reading(metric, "connections", value as f64);
    samples.push(opened.sample(
        &case.name,
        vec![
            count("opened", opened.done),
            count("refused", opened.asked - opened.done),
            count("retried", opened.retried),
            reading("stood-still", "s", peers.clock.stood_still.as_secs_f64()),
            reading("rate", "conn/s", opened.per_second()),
            reading(
                "efficiency-saturated",
                "conn/CPU-s",
                opened.done as f64 / opened.balancer.busy_s.max(f64::MIN_POSITIVE),
            ),
        ],
    ));
    samples.push(
        held.sample(
            &format!("{}-held", case.name),
            vec![reading("busy", "% of a CPU", held.balancer.busy_share * 100.0)],
        ),
    );
    samples.push(Sample {
        latency_ns: recorded(&latency),
        ..spoken.sample(
            &format!("{}-data", case.name),
            vec![
                count("answered", spoken.done),
                count("retried", spoken.retried),
                reading("p50", "µs", latency.value_at_quantile(0.5) as f64 / 1000.0),
            ],
        )
    });
    samples.push(closed.sample(
        &format!("{}-close", case.name),
        vec![
            count("closed", closed.done),
            count("retried", closed.retried),
            reading("rate", "conn/s", closed.per_second()),
        ],
    ));
    Ok(samples)
}

fn reading(metric: &'static str, unit: &str, value: f64) -> Reading {
    Reading { metric, unit: unit.into(), value, comparable: true }
}

/// What was done in one stretch of a turn.
#[derive(Clone, Debug, Default)]
struct Leg {
    asked: usize,
    done: usize,
    /// Segments that were sent again.
    retried: usize,
    seconds: f64,
    /// Seconds in which the peers had nothing to do.
    waited_s: f64,
    balancer: CpuUse,
    /// Time that each took, in nanoseconds.
    took_ns: Vec<u64>,
}

impl Leg {
    fn per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.done as f64 / self.seconds } else { 0.0 }
    }

    fn sample(&self, case: &str, readings: Vec<Reading>) -> Sample {
        let client_busy = if self.seconds > 0.0 { 1.0 - self.waited_s / self.seconds } else { 0.0 };
        Sample {
            case: case.to_owned(),
            readings,
            balancer_cpu_s: self.balancer.busy_s,
            balancer_busy: self.balancer.busy_share,
            client_busy,
            client_bound: client_busy >= super::load::SATURATED && self.balancer.busy_share < super::load::SATURATED,
            steal_share: self.balancer.steal_share,
            ..Sample::default()
        }
    }
}

impl std::ops::AddAssign for Leg {
    fn add_assign(&mut self, more: Leg) {
        self.asked += more.asked;
        self.done += more.done;
        self.retried += more.retried;
        self.seconds += more.seconds;
        self.waited_s += more.waited_s;
        self.balancer.busy_s += more.balancer.busy_s;
        self.balancer.busy_share =
            if self.seconds > 0.0 { (self.balancer.busy_s / self.seconds).min(1.0) } else { 0.0 };
        self.balancer.steal_share = self.balancer.steal_share.max(more.balancer.steal_share);
        self.took_ns.extend(more.took_ns);
    }
}

/// Does a stretch and adds what the balancer's CPU did meanwhile.
fn leg(cpu: &[usize; 1], work: impl FnOnce() -> io::Result<Leg>) -> io::Result<Leg> {
    let (started, before) = (Instant::now(), CpuTime::read(cpu)?);
    let mut leg = work()?;
    leg.seconds = started.elapsed().as_secs_f64();
    leg.balancer = CpuTime::read(cpu)?[0].since(before[0]);
    Ok(leg)
}

/// A connection whose answer has not come.
#[derive(Clone, Copy, Debug)]
struct Awaited {
    number: usize,
    /// By the watch on the wall.
    first: Instant,
    /// By the peers' own clock.
    last: Instant,
    tries: u8,
}

/// When a connection has made its step last.
#[derive(Clone, Copy)]
struct Seen {
    at: Instant,
    /// Frames heard until then.
    heard: u64,
    /// Time that the subject had been on a CPU, a little later.
    subject_ran_ns: u64,
}

/// A clock that stands still while its owner does.
struct Clock {
    read: Instant,
    stood_still: Duration,
}

impl Clock {
    fn start() -> Clock {
        Clock { read: Instant::now(), stood_still: Duration::ZERO }
    }

    /// What its owner has done since it was read last was no wait for others.
    fn go_on(&mut self) {
        self.read = Instant::now();
    }

    /// To be read in each turn.
    fn now(&mut self) -> Instant {
        self.at(Instant::now())
    }

    fn at(&mut self, now: Instant) -> Instant {
        let turn = now - self.read;
        if turn >= STILL_MIN {
            self.stood_still += turn;
        }
        self.read = now;
        now - self.stood_still
    }
}

/// A link of a host, and who speaks there without its kernel.
struct Side {
    /// The host's.
    network: Namespace,
    ports: PacketPorts,
}

impl Side {
    fn open((host, link): (&Host, &str)) -> io::Result<Side> {
        let mut ports = host.run(|| open(link, 1, &[], &RING))??;
        // Their station is not the host's, so that its kernel passes over their frames at once.
        ports.iter_mut().for_each(PacketPort::take_all);
        let mut ports = PacketPorts::new(ports);
        // A CPU of its own receives for each host. Without the right to load programs each frame leaves by itself, which only takes longer.
        if let Ok(burst) = Burst::open(burst::LAYOUT.into(), burst::program_to_one) {
            ports.use_burst(burst);
        }
        Ok(Side { network: host.network()?, ports })
    }

    fn send(&mut self, answer: &Answer) {
        self.ports.send_bytes(0, &answer.bytes[..answer.length], Offload::NONE, None);
    }

    /// Sends what was queued, on the thread's next host: a burst looks for its interface where the thread is.
    fn flush(&mut self) -> io::Result<()> {
        if self.ports.has_queued() {
            self.network.enter()?;
            self.ports.flush();
        }
        Ok(())
    }
}

/// Clients and server, on one thread, each on the link of its host.
struct Peers {
    /// By number: [`CLIENT`], [`SERVER`].
    sides: [Side; 2],
    clock: Clock,
    /// Frames that were heard.
    heard: u64,
    /// Of the subject.
    processes: Vec<u32>,
    watch: Watch,
    clients: Clients,
    server: Server,
    answers: Vec<Answer>,
}

impl Peers {
    fn open(connections: usize, stage: &Stage, processes: Vec<u32>, watch: Watch) -> io::Result<Peers> {
        let lab = stage.lab()?;
        let [client, server] = [lab.client(), lab.server(1)].map(|host| (host, host.ports()[0].link.as_str()));
        let sides = [Side::open(client)?, Side::open(server)?];
        let mac = |host: &Host, link: &str| -> io::Result<Mac> {
            let address = host.links()?.find(link)?.hardware_address;
            let octets =
                <[u8; 6]>::try_from(address).map_err(|_| io::Error::other(format!("`{link}` is no Ethernet")))?;
            Ok(Mac(octets))
        };
        let setting = stage.setting();
        let pool = setting.pool.as_ref().map(|pool| pool.addresses.iter().map(|&ip| ip.into()).collect());
        Ok(Peers {
            sides,
            clock: Clock::start(),
            heard: 0,
            processes,
            watch,
            clients: Clients {
                vip: setting.listen,
                gateway: crowd_gateway(lab).into(),
                closes_at_once: false,
                from_mac: STATION,
                to_mac: mac(lab.balancer(), client.1)?,
                connections: vec![Connection::default(); connections],
                finished: Vec::with_capacity(BATCH_MAX),
                wrong: None,
            },
            server: Server {
                address: setting.server,
                from_mac: STATION,
                to_mac: mac(lab.balancer(), server.1)?,
                sources: Sources::of(pool.unwrap_or_default()),
                unacked: VecDeque::new(),
                repeated: 0,
                wrong: None,
            },
            answers: Vec::with_capacity(BATCH_MAX),
        })
    }

    fn is_open(&self, number: usize) -> bool {
        self.clients.connections[number].state == State::Open
    }

    /// Frames that came and found no room, or could not leave.
    fn lost(&mut self) -> u64 {
        let lost = |side: &mut Side| {
            let (rx, tx) = (side.ports.rx_counts(0), side.ports.tx_counts(0));
            rx.dropped + rx.truncated + tx.down + tx.full + tx.too_large + tx.refused
        };
        self.sides.iter_mut().map(lost).sum()
    }

    /// Asks each of these connections for a step, so many at once, until each has made it or been refused.
    fn drive(&mut self, step: Step, who: impl IntoIterator<Item = usize>, at_once: usize) -> io::Result<Leg> {
        let mut who = who.into_iter();
        let mut leg = Leg::default();
        // In the order of their last try.
        let mut awaited: VecDeque<Awaited> = VecDeque::with_capacity(at_once);
        let mut under_way = 0;
        self.clock.go_on();
        let mut last_step = Seen { at: self.clock.now(), heard: self.heard, subject_ran_ns: self.subject_ran_ns() };
        let mut tell_at = last_step.at + TELL_INTERVAL;
        loop {
            let (now, turn_began) = (self.clock.now(), Instant::now());
            if now >= tell_at {
                tell_at = now + TELL_INTERVAL;
                self.watch.tell(&format!("{step:?}: {} done, {} segments sent again", leg.done, leg.retried));
                // Reading it is a few system calls, too many for each turn.
                if now - last_step.at < TELL_INTERVAL {
                    last_step.subject_ran_ns = self.subject_ran_ns();
                }
            }
            let mut asked = 0;
            while under_way < at_once && asked < BATCH_MAX {
                let Some(number) = who.next() else { break };
                self.ask(number, step);
                awaited.push_back(Awaited { number, first: turn_began, last: now, tries: 1 });
                (under_way, asked) = (under_way + 1, asked + 1);
            }
            leg.asked += asked;
            if under_way == 0 {
                return Ok(leg);
            }
            let heard = self.listen()?;
            under_way -= self.clients.finished.len();
            if !self.clients.finished.is_empty() {
                last_step = Seen { at: now, heard: self.heard, ..last_step };
            }
            for &number in &self.clients.finished {
                leg.done += usize::from(self.clients.connections[number].state != State::Refused);
                if at_once <= SPEAKING_MAX
                    && let Some(asked) = awaited.iter().find(|awaited| awaited.number == number)
                {
                    leg.took_ns.push(asked.first.elapsed().as_nanos() as u64);
                }
            }
            while let Some(&oldest) = awaited.front() {
                let is_over = self.clients.connections[oldest.number].state != State::Asked(step);
                if !is_over && now - oldest.last < RETRY_AFTER {
                    break;
                }
                awaited.pop_front();
                match oldest.tries {
                    _ if is_over => {}
                    TRIES_MAX => {
                        self.clients.connections[oldest.number].state = State::Refused;
                        under_way -= 1;
                    }
                    tries => {
                        leg.retried += 1;
                        self.ask(oldest.number, step);
                        awaited.push_back(Awaited { last: now, tries: tries + 1, ..oldest });
                    }
                }
            }
            if now.saturating_duration_since(last_step.at) > SILENCE_MAX {
                let message = self.silence(step, &leg, under_way, &last_step);
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            if heard == 0 && asked == 0 {
                leg.waited_s += turn_began.elapsed().as_secs_f64();
            }
        }
    }

    fn subject_ran_ns(&self) -> u64 {
        run_time_ns(&self.processes)
    }

    /// Why a stretch ends before its end.
    fn silence(&mut self, step: Step, leg: &Leg, under_way: usize, last_step: &Seen) -> String {
        let heard = self.heard - last_step.heard;
        let ran_ms = (self.subject_ran_ns() - last_step.subject_ran_ns) / 1_000_000;
        let lost = self.lost();
        format!(
            "{} of {} connections made their step ({step:?}), {under_way} are under way, and none went on for {SILENCE_MAX:?}: \
             the peers heard {heard} frames meanwhile and lost {lost} in all; the subject ran for {ran_ms} ms; {} segments were sent again",
            leg.done, leg.asked, leg.retried,
        )
    }

    /// Only answers, for so long.
    fn hold(&mut self, duration: Duration) -> io::Result<Leg> {
        let mut leg = Leg::default();
        self.clock.go_on();
        let end = self.clock.now() + duration;
        while self.clock.now() < end {
            let turn_began = Instant::now();
            if self.listen()? == 0 {
                std::thread::sleep(HOLD_LOOK_INTERVAL);
                leg.waited_s += turn_began.elapsed().as_secs_f64();
            }
        }
        Ok(leg)
    }

    /// Sends what is queued, takes what has come and queues the answers. How many frames came.
    fn listen(&mut self) -> io::Result<usize> {
        let Peers { sides, clock, clients, server, answers, .. } = self;
        clients.finished.clear();
        answers.clear();
        sides.iter_mut().try_for_each(Side::flush)?;
        let (heard, now) = (sides.iter_mut().map(|side| side.ports.take(BATCH_MAX)).sum(), clock.now());
        self.heard += heard as u64;
        let frames = sides
            .iter_mut()
            .zip([CLIENT, SERVER])
            .flat_map(|(side, number)| side.ports.frames().map(move |frame| (number, frame)));
        for (side, frame) in frames {
            let is_complete = frame.offload.checksum.is_none();
            match (side, parse(frame.bytes)) {
                (SERVER, Ok(Packet::Arp(question))) => answers.extend(server.answer_arp(&question)),
                (_, Ok(Packet::Arp(question))) => answers.extend(clients.answer_arp(&question)),
                (port, Ok(Packet::Transport(parsed))) => {
                    if is_complete && !is_intact(frame.bytes, &parsed) {
                        return Err(io::Error::other(format!("a segment with a wrong checksum: {:?}", parsed.tuple)));
                    }
                    let payload = &frame.bytes[usize::from(parsed.payload)..parsed.end as usize];
                    answers.extend(match port {
                        SERVER => server.hear(&parsed, payload, now),
                        _ => clients.hear(&parsed, payload),
                    });
                }
                _ => {}
            }
        }
        answers.extend(std::iter::from_fn(|| server.repeat(now)).take(BATCH_MAX));
        for answer in answers.iter() {
            sides[usize::from(answer.side)].send(answer);
        }
        match clients.wrong.take().or(server.wrong.take()) {
            Some(wrong) => Err(io::Error::new(io::ErrorKind::InvalidData, wrong)),
            None => Ok(heard),
        }
    }

    fn ask(&mut self, number: usize, step: Step) {
        let answer = self.clients.ask(number, step);
        self.sides[usize::from(answer.side)].send(&answer);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use super::hosts::ANSWERS_MAX;
    use super::*;
    use crate::crowd;
    use crate::segment::{Segment, flags};
    use towpath_core::packet::{Arp, ArpOperation, Family, Parsed, TcpFlags};

    /// Clients and server with nobody in between: the clients' source is the pool's, and back.
    fn peers(connections: usize) -> (Clients, Server) {
        let (vip, address) = ("10.88.1.100:8080".parse().unwrap(), "10.88.2.50:7000".parse().unwrap());
        let (from_mac, to_mac) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        let connections = vec![Connection::default(); connections];
        let sources = Sources::of(vec![IpAddr::from([10, 88, 2, 101]).into()]);
        (
            Clients {
                vip,
                gateway: IpAddr::from([10, 88, 1, 50]).into(),
                closes_at_once: false,
                from_mac,
                to_mac,
                connections,
                finished: Vec::new(),
                wrong: None,
            },
            Server { address, from_mac, to_mac, sources, unacked: VecDeque::new(), repeated: 0, wrong: None },
        )
    }

    /// As the other side of a full-NAT has it.
    fn translated(answer: &Answer, from: &str, to: &str) -> (Parsed, Vec<u8>) {
        let bytes = &answer.bytes[..answer.length];
        let Ok(Packet::Transport(mut parsed)) = parse(bytes) else { panic!("{:?}", parse(bytes)) };
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        (parsed.tuple.src, parsed.tuple.src_port) = (from.ip().into(), from.port());
        (parsed.tuple.dst, parsed.tuple.dst_port) = (to.ip().into(), to.port());
        (parsed, bytes[usize::from(parsed.payload)..parsed.end as usize].to_vec())
    }

    #[test]
    fn a_connection_goes_through_its_life_and_repetitions_change_nothing() {
        let (mut clients, mut server) = peers(10);
        let client = crowd::client(Family::V4, 7).to_string();
        for step in [Step::Open, Step::Speak, Step::Close] {
            let asked = clients.ask(7, step);
            for turn in 0..2 {
                let (parsed, payload) = translated(&asked, "10.88.2.101:2000", "10.88.2.50:7000");
                let answer = server.hear(&parsed, &payload, Instant::now()).unwrap();
                let (parsed, payload) = translated(&answer, "10.88.1.100:8080", &client);
                let last = clients.hear(&parsed, &payload).unwrap();
                assert_eq!(clients.finished.len(), 1 - turn, "{step:?}");
                clients.finished.clear();
                let (parsed, payload) = translated(&last, "10.88.2.101:2000", "10.88.2.50:7000");
                assert!(server.hear(&parsed, &payload, Instant::now()).is_none(), "an acknowledgment is not answered");
            }
        }
        assert_eq!(clients.connections[7].state, State::Closed);
        assert_eq!((clients.wrong, server.wrong), (None, None));
    }

    #[test]
    fn a_client_comes_again_with_a_new_connection() {
        let (mut clients, mut server) = peers(10);
        clients.closes_at_once = true;
        let client = crowd::client(Family::V4, 7).to_string();
        let mut before = None;
        for _ in 0..2 {
            clients.renew(7);
            for step in [Step::Open, Step::Speak, Step::Close] {
                let (parsed, payload) = translated(&clients.ask(7, step), "10.88.2.101:2000", "10.88.2.50:7000");
                if step == Step::Open {
                    // Behind what the one before has sent (RFC 9293 section 3.10.7.4).
                    assert!(before.is_none_or(|before: u32| parsed.tcp.seq.wrapping_sub(before) < 1 << 31));
                }
                before = Some(parsed.tcp.seq);
                let answer = server.hear(&parsed, &payload, Instant::now()).unwrap();
                let (parsed, payload) = translated(&answer, "10.88.1.100:8080", &client);
                let last = clients.hear(&parsed, &payload);
                assert_eq!(last.is_some(), step != Step::Speak, "what closes acknowledges the answer");
            }
            assert_eq!(clients.connections[7].state, State::Closed);
        }
        assert_eq!((clients.wrong, server.wrong), (None, None));
    }

    #[test]
    fn a_handshake_whose_last_segment_was_lost_is_answered_again() {
        let (mut clients, mut server) = peers(2);
        let (parsed, payload) = translated(&clients.ask(1, Step::Open), "10.88.2.101:2000", "10.88.2.50:7000");
        let now = Instant::now();
        let first = server.hear(&parsed, &payload, now).unwrap();
        assert!(server.repeat(now).is_none());
        let again = server.repeat(now + RETRY_AFTER).unwrap();
        assert_eq!((again.length, again.bytes), (first.length, first.bytes));
        let client = crowd::client(Family::V4, 1).to_string();
        let (parsed, payload) = translated(&again, "10.88.1.100:8080", &client);
        let last = clients.hear(&parsed, &payload).unwrap();
        let (parsed, payload) = translated(&last, "10.88.2.101:2000", "10.88.2.50:7000");
        assert!(server.hear(&parsed, &payload, now).is_none());
        assert!(server.repeat(now + RETRY_AFTER * 3).is_none() && server.unacked.is_empty());
        assert_eq!(server.repeated, 1);
    }

    #[test]
    fn a_connection_whose_client_has_given_up_is_forgotten() {
        let (mut clients, mut server) = peers(2);
        let now = Instant::now();
        let client = crowd::client(Family::V4, 1).to_string();
        let (syn, payload) = translated(&clients.ask(1, Step::Open), "10.88.2.101:2000", "10.88.2.50:7000");
        let answer = server.hear(&syn, &payload, now).unwrap();
        clients.connections[1].state = State::Refused;
        let (parsed, payload) = translated(&answer, "10.88.1.100:8080", &client);
        let (parsed, payload) =
            translated(&clients.hear(&parsed, &payload).unwrap(), "10.88.2.101:2000", "10.88.2.50:7000");
        assert!(parsed.tcp.flags.contains(TcpFlags::RST) && parsed.tcp.seq == syn.tcp.seq.wrapping_add(1));
        assert!(server.hear(&parsed, &payload, now).is_none());
        assert!(server.repeat(now + RETRY_AFTER).is_none(), "a reset ends the handshake");

        // The same where no reset comes.
        assert!(server.hear(&syn, &[], now).is_some());
        for turn in 1..u32::from(ANSWERS_MAX) {
            assert!(server.repeat(now + RETRY_AFTER * turn).is_some());
        }
        assert!(server.repeat(now + RETRY_AFTER * u32::from(ANSWERS_MAX)).is_none());
        assert!(server.sources.taken.iter().all(Option::is_none));
    }

    #[test]
    fn a_clock_stands_still_while_its_owner_is_stopped() {
        let mut clock = Clock::start();
        let began = clock.read;
        let after = |ms| began + Duration::from_millis(ms);
        assert_eq!(clock.at(after(20)), after(20));
        assert_eq!(clock.at(after(8_020)), after(20));
        assert_eq!(clock.at(after(8_030)), after(30));
        assert_eq!(clock.stood_still, Duration::from_secs(8));
    }

    #[test]
    fn wrong_octets_and_a_source_port_given_twice_are_seen() {
        let (mut clients, mut server) = peers(10);
        let opened = |clients: &mut Clients, server: &mut Server, number: usize| {
            let (parsed, payload) = translated(&clients.ask(number, Step::Open), "10.88.2.101:2000", "10.88.2.50:7000");
            let answer = server.hear(&parsed, &payload, Instant::now()).unwrap();
            let to = crowd::client(Family::V4, number).to_string();
            let (parsed, payload) = translated(&answer, "10.88.1.100:8080", &to);
            clients.hear(&parsed, &payload)
        };
        assert!(opened(&mut clients, &mut server, 1).is_some());
        assert_eq!(server.wrong, None);
        opened(&mut clients, &mut server, 2);
        assert!(server.wrong.take().unwrap().contains("another one has"));

        let (parsed, mut payload) = translated(&clients.ask(1, Step::Speak), "10.88.2.101:2000", "10.88.2.50:7000");
        payload[3] ^= 1;
        let answer = server.hear(&parsed, &payload, Instant::now()).unwrap();
        let (parsed, payload) = translated(&answer, "10.88.1.100:8080", &crowd::client(Family::V4, 1).to_string());
        assert!(clients.hear(&parsed, &payload).is_none());
        assert!(clients.wrong.unwrap().contains("connection 1"));
    }

    #[test]
    fn the_server_answers_for_its_address_only() {
        let (_, server) = peers(1);
        let question = |target: [u8; 4]| Arp {
            operation: ArpOperation::Request,
            sender_mac: Mac([2, 0, 0, 0, 0, 9]),
            sender: IpAddr::from([10, 88, 2, 1]).into(),
            target_mac: Mac::default(),
            target: IpAddr::from(target).into(),
        };
        assert!(server.answer_arp(&question([10, 88, 2, 11])).is_none());
        let answer = server.answer_arp(&question([10, 88, 2, 50])).unwrap();
        let Ok(Packet::Arp(read)) = parse(&answer.bytes[..answer.length]) else { panic!("no ARP") };
        assert_eq!((read.operation, read.sender_mac), (ArpOperation::Reply, server.from_mac));
        assert_eq!(IpAddr::from(read.sender), IpAddr::from([10, 88, 2, 50]));
        assert_eq!(IpAddr::from(read.target), IpAddr::from([10, 88, 2, 1]));
    }

    #[test]
    fn a_reset_refuses_an_opening_and_is_wrong_later() {
        let (mut clients, _) = peers(3);
        let reset = |number: usize| {
            let (from_mac, to_mac) = (Mac([2, 0, 0, 0, 0, 3]), Mac([2, 0, 0, 0, 0, 1]));
            let (from, to) = ("10.88.1.100:8080".parse().unwrap(), crowd::client(Family::V4, number));
            let flags = flags(&[TcpFlags::RST, TcpFlags::ACK]);
            let segment = Segment { from_mac, to_mac, from, to, seq: 0, ack: 1, flags, payload: &[] };
            translated(&Answer::of(CLIENT, &segment), "10.88.1.100:8080", &to.to_string())
        };
        clients.ask(0, Step::Open);
        assert!(clients.hear(&reset(0).0, &[]).is_none());
        assert_eq!((clients.connections[0].state, clients.finished.as_slice()), (State::Refused, &[0][..]));
        assert_eq!(clients.wrong, None);
        clients.connections[1].state = State::Open;
        assert!(clients.hear(&reset(1).0, &[]).is_none());
        assert!(clients.wrong.is_some());
    }
}
