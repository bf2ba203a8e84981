//! The client: drives [`Work`] at a target and verifies every byte of the answers.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Instant;

use mio::net::TcpStream;

use super::engine::{Engine, Gauge, Moved, Next, READ_BYTES, STEPS_MAX, read, refused};
use super::origin::{Outgoing, Sent};
use super::{Plan, Tally, Work};
use crate::cpu::{CpuTime, process_seconds};
use crate::message::{Filler, HEADER_BYTES, Header, Kind, Progress, Reader};

/// Does what the plan says, on the calling thread and in its namespace. Fails at the first connection that is refused, reset
/// or ended too early and at the first wrong byte.
pub fn run(plan: &Plan) -> io::Result<Tally> {
    drive(plan, Engine::new()?)
}

/// As [`run`], and answers on these listeners on the same thread, which saves the switches between client and origin.
pub fn run_beside_origin(plan: &Plan, origins: Vec<TcpListener>) -> io::Result<Tally> {
    let mut engine = Engine::new()?;
    for listener in origins {
        engine.listen(listener)?;
    }
    drive(plan, engine)
}

fn drive(plan: &Plan, mut engine: Engine) -> io::Result<Tally> {
    let count = match plan.work {
        Work::Bulk { streams } => streams,
        Work::Connect { concurrency, .. } => concurrency,
        Work::KeepAlive { connections, .. } => connections,
    };
    for number in 0..count {
        engine.connect(Client::new(plan, number as u64))?;
    }
    engine.run_until(Some(Instant::now() + plan.warm_up))?;

    let processes: Vec<u32> = plan.watch_processes.iter().copied().chain([std::process::id()]).collect();
    let processes_before = process_seconds(&processes);
    let cpus_before = CpuTime::read(&plan.watch_cpus)?;
    let started = Instant::now();
    engine.gauge.counting = true;
    engine.run_until(Some(started + plan.measure))?;
    let seconds = started.elapsed().as_secs_f64();
    let cpus = CpuTime::read(&plan.watch_cpus)?;
    let processes_s = process_seconds(&processes) - processes_before;

    let gauge = &engine.gauge;
    if gauge.done == 0 {
        let message = format!("{}: nothing completed in {seconds:.1} s", plan.target);
        return Err(io::Error::new(io::ErrorKind::TimedOut, message));
    }
    Ok(Tally {
        seconds,
        done: gauge.done,
        latency_ns: gauge.latency.iter_recorded().map(|v| (v.value_iterated_to(), v.count_at_value())).collect(),
        cpus: cpus.into_iter().zip(cpus_before).map(|(after, before)| after.since(before)).collect(),
        processes_s,
    })
}

/// The client's side of one connection, and of those that take its place.
pub(super) struct Client {
    target: SocketAddr,
    kind: Kind,
    tag: u64,
    request_filler: u32,
    answer_filler: u32,
    state: State,
    began: Instant,
    outgoing: Outgoing,
    reader: Reader,
    /// What comes next of a stream.
    filler: Filler,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// The connection is new, or its last answer has come: the next request is due.
    Fresh,
    /// A request is on its way.
    Asking,
    /// Its answer is.
    Answered,
    /// The answer has come; the end of the connection is due.
    Ending,
    /// Filler without end.
    Streaming,
}

impl Client {
    fn new(plan: &Plan, number: u64) -> Client {
        let filler = |bytes: usize| u32::try_from(bytes.saturating_sub(HEADER_BYTES)).unwrap_or(u32::MAX);
        let (kind, request_bytes, answer_bytes) = match plan.work {
            Work::Bulk { .. } => (Kind::Stream, 0, 0),
            Work::Connect { request_bytes, answer_bytes, .. } => (Kind::AnswerAndClose, request_bytes, answer_bytes),
            Work::KeepAlive { request_bytes, answer_bytes, .. } => (Kind::Answer, request_bytes, answer_bytes),
        };
        Client {
            target: plan.target,
            kind,
            tag: number << 40,
            request_filler: filler(request_bytes),
            answer_filler: filler(answer_bytes),
            state: State::Fresh,
            began: Instant::now(),
            outgoing: Outgoing::nothing(),
            reader: Reader::new(),
            filler: Filler::of(0),
        }
    }

    pub(super) fn target(&self) -> SocketAddr {
        self.target
    }

    pub(super) fn advance(&mut self, stream: &mut TcpStream, buffer: &mut [u8], gauge: &mut Gauge) -> io::Result<Next> {
        for _ in 0..STEPS_MAX {
            match self.state {
                State::Fresh => self.ask(),
                State::Asking => match self.outgoing.send(stream).map_err(|error| refused(&error, self.target))? {
                    Sent::All if self.kind == Kind::Stream => self.state = State::Streaming,
                    Sent::All => {
                        self.state = State::Answered;
                        // An answer takes longer than this turn; it brings an event.
                        return Ok(Next::Wait);
                    }
                    Sent::Blocked => return self.still_connecting(stream),
                    Sent::Partly => return Ok(Next::Again),
                },
                State::Answered => {
                    let length = match read(stream, buffer)? {
                        Moved::Bytes(length) => length,
                        Moved::End => return Err(ended_early()),
                        Moved::NotYet => return Ok(Next::Wait),
                    };
                    match self.reader.take(&buffer[..length]) {
                        Progress::Partial if length < READ_BYTES => return Ok(Next::Wait),
                        Progress::Partial => {}
                        Progress::Complete(answer, used) if used == length && self.expects(answer) => {
                            if self.kind == Kind::AnswerAndClose {
                                self.state = State::Ending;
                            } else {
                                gauge.completed(self.began);
                                self.state = State::Fresh;
                            }
                        }
                        Progress::Complete(..) | Progress::Wrong => return Err(corrupted()),
                    }
                }
                State::Ending => match read(stream, buffer)? {
                    Moved::Bytes(_) => return Err(corrupted()),
                    Moved::NotYet => return Ok(Next::Wait),
                    Moved::End => {
                        gauge.completed(self.began);
                        self.state = State::Fresh;
                        // From here, so that the time for connecting counts.
                        self.began = Instant::now();
                        return Ok(Next::Reconnect);
                    }
                },
                State::Streaming => {
                    let length = match read(stream, buffer)? {
                        Moved::Bytes(length) => length,
                        Moved::End => return Err(ended_early()),
                        Moved::NotYet => return Ok(Next::Wait),
                    };
                    if !self.filler.matches(&buffer[..length]) {
                        return Err(corrupted());
                    }
                    gauge.received(length);
                }
            }
        }
        Ok(Next::Again)
    }

    fn ask(&mut self) {
        self.tag += 1;
        if self.kind != Kind::AnswerAndClose {
            self.began = Instant::now();
        }
        self.filler = Filler::of(self.tag);
        self.outgoing.become_message(Header {
            kind: self.kind,
            tag: self.tag,
            filler_bytes: self.request_filler,
            answer_filler_bytes: self.answer_filler,
        });
        self.state = State::Asking;
    }

    /// Room to send will bring an event, unless the connection has failed.
    fn still_connecting(&self, stream: &TcpStream) -> io::Result<Next> {
        match stream.take_error()? {
            Some(error) => Err(refused(&error, self.target)),
            None => Ok(Next::Wait),
        }
    }

    fn expects(&self, answer: Header) -> bool {
        answer.kind == Kind::Answer && answer.tag == self.tag && answer.filler_bytes == self.answer_filler
    }
}

fn ended_early() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended before its answer")
}

fn corrupted() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "bytes arrived that were not sent, or the origin got such")
}
