//! One thread that carries clients and origins over one ring: operations are queued and submitted together, and whatever has
//! completed is handled in one turn.
//!
//! Client and origin may share the thread, and then also a core's worth of work: no switch between processes, and the
//! answers to several requests are read in one turn.

use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use towpath_sys::Cause;
use towpath_sys::host::set_timer_slack;
use towpath_sys::ring::{Completion, Wait};
use towpath_sys::socket::set_nodelay;

use super::callers::Callers;
use super::flows::Flows;
use super::gauge::Gauge;
use super::spin::Spin;
use super::tls::{self, sealed_bytes_max};
use super::wire::{Listen, Role, SEALED_WINDOW_BYTES, Token, What, Wire};
use super::{Security, Work, echo, origin};
use crate::message::{Framing, HEADER_BYTES};

/// Completions handled in one turn.
const COMPLETIONS_MAX: usize = 1024;

/// Buffers for messages that arrive, at least.
const MESSAGE_BUFFERS_MIN: u16 = 16;

/// As [`COMPLETIONS_MAX`] for streams: what an origin has sent on more of them would leave the cache before it is read.
const PIECES_MAX: usize = 8;

/// The longest buffer for messages; a longer message comes and leaves in pieces.
const MESSAGE_BYTES_MAX: usize = 32 * 1024;

/// A buffer for a piece of a stream.
const STREAM_BYTES: u32 = 128 * 1024;

/// Buffers for pieces of streams; with more streams than that, some wait for a turn.
const STREAM_BUFFERS_MAX: u16 = 8;

/// Buffers for datagrams at either end.
const DATAGRAM_BUFFERS: u16 = 2048;

/// Timers end this late at most, so that the open loop keeps its starts.
const TIMER_SLACK_NS: u32 = 1;

/// How long closing waits for the kernel to let go of what was under way.
const CLOSE_MAX: Duration = Duration::from_secs(2);

/// Connections closed in one turn.
const CLOSES_MAX: usize = 256;

/// How long a turn sleeps when nothing is due.
const IDLE: Duration = Duration::from_secs(60);

/// What clients of this thread do.
pub(super) enum Load {
    Callers(Callers),
    Flows(Flows),
    Nothing,
}

/// See the module.
pub(super) struct Engine {
    pub(super) wire: Wire,
    pub(super) gauge: Gauge,
    pub(super) load: Load,
    /// How turns wait, if not asleep.
    pub(super) spin: Option<Spin>,
    listeners: Vec<TcpListener>,
    sockets: Vec<UdpSocket>,
    batch: Vec<Completion>,
}

impl Engine {
    /// For clients, and for origins that answer them and nobody else.
    pub(super) fn for_work(work: Work, security: Security, framing: Framing) -> io::Result<Engine> {
        // A message, and what HTTP and TLS add to it.
        let room_for = |message_bytes| match security {
            Security::PLAIN => room_for(message_bytes + framing.head_bytes()),
            _ => room_for_sealed(message_bytes + framing.head_bytes()),
        };
        let wire = match work {
            Work::Bulk { streams } => {
                let in_least = u16::try_from(streams).unwrap_or(u16::MAX).clamp(1, STREAM_BUFFERS_MAX);
                let room = if security.origin { room_for_sealed(SEALED_WINDOW_BYTES) } else { room_for(HEADER_BYTES) };
                Wire::new(STREAM_BYTES, in_least, room, 1, Listen::Once)?
            }
            Work::Connect { request_bytes, answer_bytes, .. } | Work::KeepAlive { request_bytes, answer_bytes, .. } => {
                let room = room_for(request_bytes.max(answer_bytes));
                Wire::new(room, MESSAGE_BUFFERS_MIN, room, 1, Listen::Many)?
            }
            Work::Datagrams { payload_bytes, .. } => {
                let room = room_for_datagram(payload_bytes);
                Wire::new(room, 1, room, DATAGRAM_BUFFERS, Listen::Many)?
            }
            Work::Handshake { .. } | Work::Hold { .. } => {
                let room = room_for(HEADER_BYTES);
                Wire::new(room, MESSAGE_BUFFERS_MIN, room, 1, Listen::Many)?
            }
        };
        let mut engine = Engine::on(wire)?;
        engine.wire.framing = framing;
        engine.wire.client_tls = security.client.map(tls::client_config).transpose()?;
        engine.wire.origin_tls = if security.origin { Some(tls::origin_config()?) } else { None };
        Ok(engine)
    }

    /// For origins that answer whatever they are asked over TLS.
    pub(super) fn for_tls_origin() -> io::Result<Engine> {
        let room = room_for_sealed(SEALED_WINDOW_BYTES);
        Engine::on(Wire::new(room, MESSAGE_BUFFERS_MIN, room, 1, Listen::Many)?)
    }

    /// For origins that answer whatever they are asked.
    pub(super) fn for_origin() -> io::Result<Engine> {
        let room = room_for(MESSAGE_BYTES_MAX);
        Engine::on(Wire::new(room, MESSAGE_BUFFERS_MIN, room, DATAGRAM_BUFFERS, Listen::Many)?)
    }

    fn on(wire: Wire) -> io::Result<Engine> {
        set_timer_slack(TIMER_SLACK_NS)?;
        Ok(Engine {
            wire,
            gauge: Gauge::new(),
            load: Load::Nothing,
            spin: None,
            listeners: Vec::new(),
            sockets: Vec::new(),
            batch: Vec::with_capacity(COMPLETIONS_MAX),
        })
    }

    /// Answers whoever connects to a listener or sends to a socket.
    pub(super) fn answer_on(&mut self, listeners: Vec<TcpListener>, sockets: Vec<UdpSocket>) -> io::Result<()> {
        (self.listeners, self.sockets) = (listeners, sockets);
        for number in 0..self.listeners.len() {
            self.accept(number)?;
        }
        for (number, socket) in self.sockets.iter().enumerate() {
            echo::answer_on(&mut self.wire, number, socket)?;
        }
        Ok(())
    }

    /// The clients of TCP, which there must be.
    pub(super) fn callers_mut(&mut self) -> io::Result<&mut Callers> {
        match &mut self.load {
            Load::Callers(callers) => Ok(callers),
            Load::Flows(_) | Load::Nothing => Err(io::Error::other("no client of TCP is at work")),
        }
    }

    /// Pieces of work under way.
    pub(super) fn under_way(&self) -> usize {
        match &self.load {
            Load::Callers(callers) => callers.under_way,
            Load::Flows(flows) => flows.under_way(),
            Load::Nothing => 0,
        }
    }

    /// Carries everything until then, or for ever; fails at the first failure of a client.
    pub(super) fn run_until(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        loop {
            let now = Instant::now();
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(());
            }
            self.turn(deadline.unwrap_or(now + IDLE))?;
        }
    }

    /// Starts what is due, submits, and handles what has completed; sleeps until something does, but not beyond `until`.
    pub(super) fn turn(&mut self, until: Instant) -> io::Result<()> {
        let now = Instant::now();
        let next = match &mut self.load {
            Load::Callers(callers) => {
                callers.start_due(&mut self.wire, now, &mut self.gauge)?;
                callers.next_start(now, &self.gauge)
            }
            Load::Flows(flows) => {
                flows.start_due(&mut self.wire, now, &mut self.gauge)?;
                flows.next_start(now, &self.gauge)
            }
            Load::Nothing => None,
        };
        self.wire.send_due(now)?;
        let next = [next, self.wire.next_piece(now)].into_iter().flatten().fold(until, Instant::min);
        self.enter(next)?;
        let now = Instant::now();
        let mut batch = std::mem::take(&mut self.batch);
        let max = match self.wire.listen {
            Listen::Many => COMPLETIONS_MAX,
            Listen::Once => PIECES_MAX,
        };
        self.wire.take(&mut batch, max);
        let handled = batch.drain(..).try_for_each(|completion| self.handle(completion, now));
        self.batch = batch;
        handled
    }

    /// Closes everything and waits until the kernel has let go of it: a listener whose accept is still armed would take
    /// connections from the next engine.
    pub(super) fn close(mut self) -> io::Result<()> {
        let deadline = Instant::now() + CLOSE_MAX;
        if let Load::Flows(flows) = &self.load {
            flows.close(&mut self.wire)?;
        }
        self.listeners.iter().try_for_each(|listener| self.wire.cancel(listener.as_fd()))?;
        self.sockets.iter().try_for_each(|socket| self.wire.cancel(socket.as_fd()))?;
        for slots in self.wire.all_open().chunks(CLOSES_MAX) {
            slots.iter().try_for_each(|slot| self.wire.abandon(*slot))?;
            self.collect(Instant::now())?;
        }
        while self.wire.pending() > 0 && Instant::now() < deadline {
            self.collect(deadline)?;
        }
        Ok(())
    }

    /// Takes completions that nobody waits for any more.
    fn collect(&mut self, until: Instant) -> io::Result<()> {
        self.enter(until)?;
        self.wire.take(&mut self.batch, COMPLETIONS_MAX);
        for completion in self.batch.drain(..) {
            if Token::decode(completion.token()).what == What::Accept {
                // Accepted in the last moment: closed with its descriptor.
                drop(completion.into_descriptor());
            }
        }
        Ok(())
    }

    fn enter(&mut self, until: Instant) -> io::Result<()> {
        let patience = until.saturating_duration_since(Instant::now());
        if let Some(spin) = &mut self.spin {
            self.wire.ring.enter(Wait::Poll)?;
            if patience.is_zero() || spin.until_news(&mut self.wire.ring, patience) {
                return self.wire.ring.enter(Wait::Poll);
            }
        }
        self.wire.ring.enter(if patience.is_zero() { Wait::Poll } else { Wait::Sleep(patience) })
    }

    fn accept(&mut self, number: usize) -> io::Result<()> {
        let listener = self.listeners[number].as_fd();
        self.wire.start(What::Accept, number, |ring, token| ring.accept_many(listener, token))
    }

    fn handle(&mut self, completion: Completion, now: Instant) -> io::Result<()> {
        let token = Token::decode(completion.token());
        match token.what {
            What::Accept => self.accepted(token.slot as usize, completion),
            What::Connect => match &mut self.load {
                Load::Callers(callers) => {
                    callers.connected(&mut self.wire, token, completion.result(), &mut self.gauge)
                }
                Load::Flows(_) | Load::Nothing => Ok(()),
            },
            What::Echo => {
                let number = token.slot as usize;
                echo::heard(&mut self.wire, number, &self.sockets[number], &completion)
            }
            What::Flow | What::FlowSent => match &mut self.load {
                Load::Flows(flows) if token.what == What::FlowSent => {
                    flows.said(&mut self.wire, token, completion.result())
                }
                Load::Flows(flows) => {
                    flows.heard(&mut self.wire, token.slot as usize, &completion, now, &mut self.gauge)
                }
                Load::Callers(_) | Load::Nothing => Ok(()),
            },
            What::Flight => {
                self.wire.sent_flight(token);
                Ok(())
            }
            What::Nothing => Ok(()),
            What::Receive => {
                for heard in self.wire.heard(token, &completion).into_iter().flatten() {
                    match (self.wire.role(token), &mut self.load) {
                        (Some(Role::Client(_)), Load::Callers(callers)) => {
                            callers.heard(&mut self.wire, token.slot, heard, now, &mut self.gauge)?;
                        }
                        (Some(Role::Origin(_)), _) => origin::heard(&mut self.wire, token.slot, heard)?,
                        _ => {}
                    }
                }
                // Of a handshake, what no message has taken along.
                if self.wire.role(token).is_some() { self.wire.send_flight(token.slot) } else { Ok(()) }
            }
            What::Say | What::SayMore => {
                let Some(said) = self.wire.said(token, &completion)? else { return Ok(()) };
                match (self.wire.role(token), &mut self.load) {
                    (Some(Role::Client(_)), Load::Callers(callers)) => callers.said(said),
                    (Some(Role::Origin(_)), _) => origin::said(&mut self.wire, token.slot, said),
                    _ => Ok(()),
                }
            }
        }
    }

    fn accepted(&mut self, number: usize, completion: Completion) -> io::Result<()> {
        if !completion.more() {
            self.accept(number)?;
        }
        let socket = match completion.into_descriptor() {
            Ok(socket) => socket,
            // Given up by its client before it was accepted.
            Err(errno) if Cause::of_errno(errno) == Cause::PeerReset => return Ok(()),
            Err(errno) => {
                let error = io::Error::from_raw_os_error(errno);
                return Err(io::Error::new(error.kind(), format!("origin: accept: {error}")));
            }
        };
        set_nodelay(&socket)?;
        let slot = self.wire.adopt(socket, Role::Origin(origin::Then::Listen))?;
        origin::accepted(&mut self.wire, slot)
    }
}

/// A buffer for a message: whole cache lines, and an odd number of them, so that the starts of buffers spread over the sets
/// of a cache.
fn room_for(message_bytes: usize) -> u32 {
    let lines = message_bytes.clamp(HEADER_BYTES, MESSAGE_BYTES_MAX).div_ceil(64) as u32;
    (lines | 1) * 64
}

/// The same where TLS is spoken: a message is sealed as far as it fits.
fn room_for_sealed(message_bytes: usize) -> u32 {
    let lines = sealed_bytes_max(message_bytes.clamp(HEADER_BYTES, SEALED_WINDOW_BYTES)).div_ceil(64) as u32;
    (lines | 1) * 64
}

/// A buffer for a datagram, which cannot leave in pieces.
fn room_for_datagram(payload_bytes: usize) -> u32 {
    u32::try_from(payload_bytes.min(1 << 16)).unwrap_or(1 << 16).max(HEADER_BYTES as u32 * 2)
}
