//! The clients of TCP: each connection asks, verifies what comes, and fails the run at the first thing that is wrong.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use super::Work;
use super::gauge::Gauge;
use super::wire::{Heard, Said, Token, Wire};
use crate::message::{HEADER_BYTES, Header, Kind};
use crate::web::Lack;

/// Connections that are opened or proven at a time: a burst of more would measure the length of accept queues.
const PROOFS_MAX: usize = 128;

/// Starts in one turn, so that completions are taken in between.
const STARTS_MAX: usize = 1024;

/// The client's side of one connection.
pub(super) struct Call {
    state: State,
    /// What to do with the connection once it is open.
    first: State,
    tag: u64,
    /// When the work under way was to start.
    intended: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The request is on its way, or its answer is.
    Asking,
    /// Not open yet.
    Connecting,
    /// The answer has come; the end of the connection is due.
    Ending,
    /// As [`State::Asking`], to show that the connection works.
    Proving,
    /// Open, nothing is asked.
    Resting,
    /// Filler without end.
    Streaming,
}

/// See the module.
pub(super) struct Callers {
    target: SocketAddr,
    /// What is asked for; `None`: a handshake is all there is.
    kind: Option<Kind>,
    request_filler: u32,
    answer_filler: u32,
    last_tag: u64,
    /// Connections at rest that the next starts take, the longest at rest first.
    at_rest: VecDeque<u32>,
    /// Connections that may be opened besides (where every piece of work has its own).
    vacancies: usize,
    to_open: usize,
    to_prove: Vec<u32>,
    proofs_under_way: usize,
    /// Connections that have answered, in this order.
    pub(super) proven: Vec<u32>,
    /// Pieces of work under way.
    pub(super) under_way: usize,
}

impl Callers {
    pub(super) fn new(target: SocketAddr, work: Work) -> Callers {
        let filler = |bytes: usize| u32::try_from(bytes.saturating_sub(HEADER_BYTES)).unwrap_or(u32::MAX);
        let (kind, request_bytes, answer_bytes) = match work {
            Work::Bulk { .. } => (Some(Kind::Stream), 0, 0),
            Work::Connect { request_bytes, answer_bytes, .. } => {
                (Some(Kind::AnswerAndClose), request_bytes, answer_bytes)
            }
            Work::Handshake { .. } => (None, 0, 0),
            Work::KeepAlive { request_bytes, answer_bytes, .. } => (Some(Kind::Answer), request_bytes, answer_bytes),
            Work::Datagrams { .. } | Work::Hold { .. } => (Some(Kind::Answer), 0, 0),
        };
        Callers {
            target,
            kind,
            request_filler: filler(request_bytes),
            answer_filler: filler(answer_bytes),
            last_tag: 0,
            at_rest: VecDeque::new(),
            vacancies: 0,
            to_open: 0,
            to_prove: Vec::new(),
            proofs_under_way: 0,
            proven: Vec::new(),
            under_way: 0,
        }
    }

    /// Opens so many connections, each proven by a request, in the coming turns.
    pub(super) fn open(&mut self, connections: usize) {
        self.proven.clear();
        self.to_open = connections;
    }

    /// Proves connections again by a request each, in the coming turns.
    pub(super) fn prove(&mut self, slots: Vec<u32>) {
        self.proven.clear();
        self.to_prove = slots;
    }

    /// Whether every connection that was to be opened or proven is.
    pub(super) fn all_proven(&self) -> bool {
        self.to_open == 0 && self.to_prove.is_empty() && self.proofs_under_way == 0
    }

    /// Lets these connections work.
    pub(super) fn employ(&mut self, slots: Vec<u32>) {
        self.at_rest.extend(slots);
    }

    /// Lets so many connections be open at a time, one per piece of work.
    pub(super) fn allow(&mut self, concurrency: usize) {
        self.vacancies = concurrency;
    }

    /// When there is something to start, if nothing comes first.
    pub(super) fn next_start(&self, now: Instant, gauge: &Gauge) -> Option<Instant> {
        if self.at_rest.is_empty() && self.vacancies == 0 { None } else { gauge.schedule.next(now) }
    }

    /// Starts what is due.
    pub(super) fn start_due(&mut self, wire: &mut Wire, now: Instant, gauge: &mut Gauge) -> io::Result<()> {
        while self.proofs_under_way < PROOFS_MAX {
            if let Some(slot) = self.to_prove.pop() {
                self.ask(wire, slot, State::Proving, now)?;
            } else if self.to_open > 0 {
                self.to_open -= 1;
                self.connect(wire, State::Proving, now)?;
            } else {
                break;
            }
            self.proofs_under_way += 1;
        }
        for _ in 0..STARTS_MAX {
            if self.next_start(now, gauge).is_none() {
                break;
            }
            let Some(intended) = gauge.schedule.take_due(now) else { break };
            self.under_way += 1;
            match self.at_rest.pop_front() {
                Some(slot) => self.ask(wire, slot, State::Asking, intended)?,
                None => {
                    self.vacancies -= 1;
                    self.connect(wire, State::Asking, intended)?;
                }
            }
        }
        Ok(())
    }

    /// A connection is up, or not.
    pub(super) fn connected(
        &mut self,
        wire: &mut Wire,
        token: Token,
        result: i32,
        gauge: &mut Gauge,
    ) -> io::Result<()> {
        if result < 0 {
            if self.kind.is_none() {
                return self.turned_away(wire, token.slot, gauge);
            }
            return Err(self.refused(&io::Error::from_raw_os_error(-result)));
        }
        if wire.shakes_hands(token.slot) {
            wire.send_flight(token.slot)?;
            return wire.hear(token.slot, wire.listen);
        }
        let Some(call) = wire.call(token.slot) else { return Ok(()) };
        let (first, intended) = (call.first, call.intended);
        self.ask(wire, token.slot, first, intended)
    }

    /// A part of a request has left, or could not.
    pub(super) fn said(&mut self, said: Said) -> io::Result<()> {
        match said {
            Said::All | Said::Partly => Ok(()),
            Said::Failed(error) => Err(self.failed(&error)),
        }
    }

    /// Takes what has arrived.
    pub(super) fn heard(
        &mut self,
        wire: &mut Wire,
        slot: u32,
        heard: Heard,
        now: Instant,
        gauge: &mut Gauge,
    ) -> io::Result<()> {
        let early = wire.is_sending(slot);
        let Some(call) = wire.call(slot) else { return Ok(()) };
        let (state, intended) = (call.state, call.intended);
        match (state, heard) {
            (_, Heard::Nothing) => {}
            (State::Connecting, Heard::Opened) => {
                let first = call.first;
                if self.kind.is_some() || first == State::Proving {
                    return self.ask(wire, slot, first, intended);
                }
                self.vacancies += 1;
                self.under_way -= 1;
                gauge.completed(intended, now);
                return wire.close(slot);
            }
            (State::Connecting, _) if self.kind.is_none() && call.first != State::Proving => {
                return self.turned_away(wire, slot, gauge);
            }
            (_, Heard::Failed(error)) => return Err(self.failed(&error)),
            (State::Asking | State::Proving, Heard::Partial) => {}
            (State::Streaming, Heard::Filler(length)) => gauge.received(length),
            (State::Asking | State::Proving, Heard::Message(answer)) if !early => {
                self.check(answer, call.tag)?;
                if state == State::Proving {
                    call.state = State::Resting;
                    self.proofs_under_way -= 1;
                    self.proven.push(slot);
                } else if self.kind == Some(Kind::AnswerAndClose) {
                    call.state = State::Ending;
                } else {
                    call.state = State::Resting;
                    self.at_rest.push_back(slot);
                    self.under_way -= 1;
                    gauge.completed(intended, now);
                }
            }
            (State::Ending, Heard::End) => {
                self.vacancies += 1;
                self.under_way -= 1;
                gauge.completed(intended, now);
                return wire.close(slot);
            }
            (State::Resting, Heard::End) => return Err(ended("while nothing was asked")),
            (_, Heard::End) => return Err(ended("before its answer was complete")),
            (_, Heard::Lacks(lack)) => return Err(corrupted(&lack.to_string())),
            (_, Heard::Filler(_) | Heard::Message(_) | Heard::Opened | Heard::Partial | Heard::Wrong) => {
                return Err(corrupted("bytes arrived that were not sent"));
            }
        }
        wire.hear(slot, wire.listen)
    }

    fn connect(&mut self, wire: &mut Wire, first: State, intended: Instant) -> io::Result<()> {
        let call = Call { state: State::Connecting, first, tag: 0, intended };
        wire.connect(self.target, call).map(drop).map_err(|error| self.refused(&error))
    }

    fn ask(&mut self, wire: &mut Wire, slot: u32, state: State, intended: Instant) -> io::Result<()> {
        self.last_tag += 1;
        let tag = self.last_tag;
        let streams = state == State::Asking && self.kind == Some(Kind::Stream);
        let Some(call) = wire.call(slot) else { return Ok(()) };
        *call = Call { state: if streams { State::Streaming } else { state }, first: state, tag, intended };
        let header = Header {
            kind: self.kind.filter(|_| state != State::Proving).unwrap_or(Kind::Answer),
            tag,
            filler_bytes: if wire.framing.asks_by_head() { 0 } else { self.request_filler },
            answer_filler_bytes: self.answer_filler,
        };
        wire.ask(slot, header)?;
        if streams {
            wire.expect_stream(slot, tag);
        }
        wire.hear(slot, wire.listen)
    }

    fn check(&self, answer: Header, tag: u64) -> io::Result<()> {
        match answer.kind {
            Kind::Corrupt => match Lack::told_by(answer.tag) {
                Some(lack) => Err(corrupted(&lack.to_string())),
                None => Err(corrupted("the origin got bytes that were not sent")),
            },
            Kind::Answer if answer.tag != tag => Err(corrupted("an answer to another request arrived")),
            Kind::Answer if answer.filler_bytes != self.answer_filler => {
                Err(corrupted("an answer of another length than asked for arrived"))
            }
            Kind::Answer => Ok(()),
            Kind::AnswerAndClose | Kind::Stream => Err(corrupted("a request arrived as an answer")),
        }
    }

    /// A handshake was refused or cut off, as a subject may do under a flood of them.
    fn turned_away(&mut self, wire: &mut Wire, slot: u32, gauge: &mut Gauge) -> io::Result<()> {
        if let Some(call) = wire.call(slot) {
            gauge.lost(call.intended);
            self.vacancies += 1;
            self.under_way -= 1;
        }
        wire.close(slot)
    }

    fn refused(&self, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("connect to {}: {error}", self.target))
    }

    fn failed(&self, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("a connection to {} failed: {error}", self.target))
    }
}

fn ended(when: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("a connection ended {when}"))
}

/// The error for what did not arrive as it was sent.
pub(super) fn corrupted(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
