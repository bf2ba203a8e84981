//! One relayed TCP connection as a state machine: events in, operations out, no I/O.
//!
//! A session has two legs, client and server, and two paths, one per direction. A path receives from one leg into buffers,
//! sends them to the other, passes the end of the stream on, and does not receive while its queue is long. A path that moves
//! much is pumped (splice(2)) instead. The session ends when both paths have finished and no operation is in flight.
//!
//! While the connect to the real server is under way, the client is read already, so that its first bytes carry the last
//! acknowledgement of that handshake. Acknowledgements of a young session are held back in the same way (Linux otherwise sends
//! one for each segment at first), for [`ACK_DELAY_MS`].
//!
//! The caller turns every [`Op`] into a system call or ring operation and reports how it went as an [`Event`]; it frees the
//! session after [`Op::Close`], which comes exactly once and last.

mod chunks;
mod gather;
mod multishot;
mod path;

pub use chunks::{Chunk, Chunks};
pub use gather::{GATHER_BYTES, Gathers};
pub use multishot::{Claim, Multishots};

use crate::counters::Termination;
use crate::time::Now;
use path::{Mode, Path, Receive};

/// Chunks a path may hold before it stops receiving.
const QUEUE_MAX: u16 = 4;
/// The same while the worker's buffers are scarce: then a path holds one chunk, so that every session can hold one.
const QUEUE_MAX_SCARCE: u16 = 1;
/// How long a young session's acknowledgements wait for bytes that carry them, once its server is there; a coarse timer may add a few
/// milliseconds. A peer that writes in small pieces under Nagle's algorithm waits for them; the kernel alone would let it wait
/// 40 ms (`TCP_DELACK_MIN`, include/net/tcp.h).
const ACK_DELAY_MS: u64 = 8;
/// Full buffers in a row after which a path is pumped.
const FULL_CHUNKS_TO_PUMP: u8 = 8;
/// A path that found no pipe wishes for one so many times, and so many times more often after each further attempt, before it
/// attempts again: else it would swing between its buffers and a pump that it does not get.
const DENIED_FACTOR: u16 = 8;
/// The most wishes it takes.
const WISHES_MAX: u16 = 512;
/// A pump that moved less than this, …
const PUMP_SMALL_BYTES: u64 = 16_384;
/// … this many times in a row, gives the path back to buffers.
const PUMP_SMALL_MAX: u8 = 8;

/// One end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client's connection.
    Client,
    /// The real server's connection.
    Server,
}

impl Side {
    /// Both, client first.
    pub const BOTH: [Side; 2] = [Side::Client, Side::Server];

    /// The opposite end.
    pub fn other(self) -> Side {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }

    /// 0 for the client, 1 for the real server.
    pub fn index(self) -> usize {
        match self {
            Side::Client => 0,
            Side::Server => 1,
        }
    }
}

/// How many buffers the worker has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// More than half.
    Ample,
    /// So few that each path may hold only one.
    Scarce,
}

/// What happened to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A path that awaits buffers may try again.
    BuffersFree(Side),
    /// The connect to the real server failed or was cancelled.
    ConnectFailed,
    /// The connect to the real server succeeded.
    Connected,
    /// The connect to the real server is about to be started.
    Connecting,
    /// The connect to the real server failed and cannot be tried again.
    ConnectGivenUp(Termination),
    /// The session must end, for a reason outside it.
    End(Termination),
    /// What was to gather on this side did not come in time ([`Gathers::overdue`]).
    GatherLost(Side),
    /// The multishot receive of this side is needed elsewhere.
    GrantLost(Side),
    /// A pump stopped.
    Pumped {
        /// The side that was read.
        from: Side,
        /// Bytes that reached the other side.
        bytes: u64,
        /// Why it stopped.
        stop: PumpStop,
    },
    /// A leg that was awaited is ready; the path that reads `from` goes on.
    Ready {
        /// The side that the path reads.
        from: Side,
    },
    /// Bytes arrived.
    Received {
        /// The side they came from.
        from: Side,
        /// The buffer that holds them.
        buffer: u16,
        /// How many, > 0.
        len: u32,
        /// Whether the buffer is full.
        full: bool,
        /// Whether the receive stays armed (multishot).
        more: bool,
        /// Whether the stream has ended right behind them.
        last: bool,
    },
    /// A receive ended without bytes.
    ReceiveEnded {
        /// The side it read.
        from: Side,
        /// Why.
        end: ReceiveEnd,
    },
    /// A send failed.
    SendFailed {
        /// The side it wrote to.
        to: Side,
    },
    /// A send finished.
    Sent {
        /// The side it wrote to.
        to: Side,
        /// Bytes taken by the kernel.
        bytes: u32,
    },
    /// The deadline named by [`Session::deadline`] may have come.
    Tick,
}

/// Why a receive ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveEnd {
    /// It was cancelled.
    Cancelled,
    /// The connection failed: reset, or given up by the kernel.
    Failed,
    /// The other end finished its stream.
    Fin,
    /// No buffer was left.
    NoBuffers,
    /// The connection has ended but not the stream in it (TLS): what came may be cut off, and is not to look like an orderly end.
    Truncated,
    /// What came behind the last bytes was damaged or against the rules (TLS): they are delivered, and no orderly end follows.
    Damaged,
}

/// Why a pump stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PumpStop {
    /// It has moved as much as one turn allows.
    Budget,
    /// The source ended its stream and everything is delivered.
    Fin,
    /// No pipe is free.
    NoPipe,
    /// The source has nothing more; nothing is left in the pipe.
    SourceEmpty,
    /// The source failed.
    SourceFailed,
    /// The sink takes no more; the pipe keeps the rest.
    SinkFull,
    /// The sink failed.
    SinkFailed,
}

/// What the caller must do for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Acknowledge what this side has sent, and do so as the kernel sees fit from now on.
    AcknowledgeNow(Side),
    /// Deliver [`Event::BuffersFree`] when buffers are free.
    AwaitBuffers(Side),
    /// The same as [`Op::AwaitReadable`], of a side that sends much: it may be left to gather [`GATHER_BYTES`] first ([`Gathers`]).
    AwaitMore(Side),
    /// Deliver [`Event::Ready`] when this side can be read, however little there is.
    AwaitReadable(Side),
    /// Deliver [`Event::Ready`] (for the path that reads the other side) when this side can be written.
    AwaitWritable(Side),
    /// Cancel every operation on this side; each still completes.
    CancelAll(Side),
    /// Cancel the wait of the path that reads this side; it still completes, as [`Event::Ready`].
    CancelAwait(Side),
    /// Cancel the receive of this side; it still completes.
    CancelReceive(Side),
    /// Close both legs, count the end, free the session.
    Close {
        /// Why it ended.
        termination: Termination,
        /// Whether the legs are reset rather than finished.
        reset: bool,
        /// Whether our side of the server leg goes through TIME_WAIT, so that its source port must rest (design.md 10.9).
        rest: bool,
    },
    /// Finish our direction of this side (send FIN).
    FinishWriting(Side),
    /// Move bytes from this side to the other through a pipe, then deliver [`Event::Pumped`].
    Pump(Side),
    /// The same, after the other sessions had their turn.
    PumpLater(Side),
    /// Receive from this side, into one buffer or, where the caller grants it ([`Multishots`]), into one after the other.
    Receive(Side),
    /// Give this buffer back.
    Recycle(u16),
    /// The connect failed: choose another real server and connect, or deliver [`Event::End`].
    Redispatch {
        /// Whether the server stayed silent.
        timed_out: bool,
    },
    /// Send this chunk to this side, completely.
    Send {
        /// The side to write to.
        to: Side,
        /// What to send.
        chunk: Chunk,
        /// Whether [`Op::FinishWriting`] or [`Op::Close`] follows once it is sent, so that the FIN can leave with it.
        last: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The connect is in flight; `since` its start, `expired` once we cancelled it.
    Connecting { since: Now, expired: bool },
    /// The connect failed; the caller has been asked for another server.
    Redispatching,
    /// Both legs are up.
    Relaying,
    /// Everything is decided; operations in flight come to an end.
    Ending { termination: Termination, reset: bool },
    /// [`Op::Close`] was given.
    Closed,
}

/// What one event is handled with.
struct Turn<'a> {
    now: Now,
    room: Room,
    chunks: &'a mut Chunks,
    ops: &'a mut Vec<Op>,
}

/// One relayed TCP connection.
pub struct Session {
    phase: Phase,
    /// Paths by the side they read.
    paths: [Path; 2],
    last_activity: Now,
    /// Until when acknowledgements are held back; `None` once they are not.
    acknowledge_at: Option<Now>,
    connect_timeout_ms: u64,
    idle_timeout_ms: u64,
    first_fin: Option<Side>,
    reset_by: Option<Side>,
    /// The first failure was of this kind.
    truncated: bool,
    /// … or of this.
    damaged: bool,
}

impl Session {
    /// A session whose connect to the real server is about to be started.
    pub fn connecting(now: Now, connect_timeout_ms: u64, idle_timeout_ms: u64) -> Session {
        Session {
            phase: Phase::Connecting { since: now, expired: false },
            paths: [Path::default(), Path::default()],
            last_activity: now,
            acknowledge_at: None,
            connect_timeout_ms,
            idle_timeout_ms,
            first_fin: None,
            reset_by: None,
            truncated: false,
            damaged: false,
        }
    }

    /// Another real server was chosen after [`Op::Redispatch`]; its connect has just been started.
    pub fn redispatched(&mut self, now: Now) {
        debug_assert_eq!(self.phase, Phase::Redispatching, "nobody asked for another server");
        self.phase = Phase::Connecting { since: now, expired: false };
    }

    /// The time of the connect begins now: until here the client's first bytes were waited for.
    pub fn restarts_connecting(&mut self, now: Now) {
        if let Phase::Connecting { since, .. } = &mut self.phase {
            *since = now;
        }
    }

    /// When bytes arrived or left last.
    pub fn last_activity(&self) -> Now {
        self.last_activity
    }

    /// When [`Event::Tick`] is due; `None` when the session waits for operations to end.
    pub fn deadline(&self) -> Option<Now> {
        match self.phase {
            Phase::Connecting { since, expired: false } => Some(since + self.connect_timeout_ms),
            Phase::Relaying => {
                let idle = self.last_activity + self.idle_timeout_ms;
                Some(self.acknowledge_at.map_or(idle, |acknowledge| acknowledge.min(idle)))
            }
            _ => None,
        }
    }

    /// Whether bytes of this side wait to leave.
    pub fn has_queued(&self, from: Side) -> bool {
        !self.paths[from.index()].queue.is_empty()
    }

    /// Whether the real server has accepted the connection.
    pub fn is_relaying(&self) -> bool {
        self.phase == Phase::Relaying
    }

    /// Whether its end is decided.
    pub fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Ending { .. } | Phase::Closed)
    }

    /// Takes one event; appends what must be done to `ops`.
    pub fn on(&mut self, event: Event, now: Now, room: Room, chunks: &mut Chunks, ops: &mut Vec<Op>) {
        let turn = &mut Turn { now, room, chunks, ops };
        match event {
            Event::BuffersFree(from) => self.buffers_free(from, turn),
            Event::ConnectFailed => self.connect_failed(turn),
            Event::Connected => self.connected(turn),
            Event::Connecting => self.paths[Side::Client.index()].steer(Side::Client, turn),
            Event::ConnectGivenUp(termination) => self.connect_given_up(termination, turn),
            Event::End(termination) => self.end(termination, turn),
            Event::GatherLost(from) => self.gather_lost(from, turn),
            Event::GrantLost(from) => self.paths[from.index()].cancel_receive(from, turn),
            Event::Pumped { from, bytes, stop } => self.pumped(from, bytes, stop, turn),
            Event::Ready { from } => self.ready(from, turn),
            Event::Received { from, buffer, len, full, more, last } => {
                let path = &mut self.paths[from.index()];
                if !more {
                    path.receive = Receive::Idle;
                }
                if path.finished {
                    turn.ops.push(Op::Recycle(buffer));
                } else {
                    self.last_activity = turn.now;
                    path.note_full(full);
                    turn.chunks.push(&mut path.queue, buffer, len);
                    if last {
                        path.fin = true;
                        self.first_fin.get_or_insert(from);
                    }
                    if self.phase == Phase::Relaying {
                        path.send_next(from, turn);
                    }
                    path.steer(from, turn);
                }
            }
            Event::ReceiveEnded { from, end } => self.receive_ended(from, end, turn),
            Event::SendFailed { to } => {
                self.paths[to.other().index()].sending = false;
                self.fail(to, turn);
            }
            Event::Sent { to, bytes } => self.sent(to, bytes, turn),
            Event::Tick => self.tick(turn),
        }
        self.close_when_quiet(turn);
    }

    fn connected(&mut self, turn: &mut Turn<'_>) {
        match self.phase {
            Phase::Connecting { .. } => {
                self.phase = Phase::Relaying;
                self.last_activity = turn.now;
                self.acknowledge_at = Some(turn.now + ACK_DELAY_MS);
                if self.paths[Side::Client.index()].queue.is_empty() {
                    // Nothing is there to carry the last acknowledgement of the handshake, and the server may speak first.
                    turn.ops.push(Op::AcknowledgeNow(Side::Server));
                }
                for from in Side::BOTH {
                    let path = &mut self.paths[from.index()];
                    path.send_next(from, turn);
                    path.steer(from, turn);
                    self.pass_fin_on(from, turn);
                }
            }
            Phase::Ending { .. } => self.paths[0].connecting = false,
            Phase::Redispatching | Phase::Relaying | Phase::Closed => {}
        }
    }

    fn connect_given_up(&mut self, termination: Termination, turn: &mut Turn<'_>) {
        match self.phase {
            Phase::Connecting { .. } => {
                self.phase = Phase::Redispatching;
                self.end(termination, turn);
            }
            Phase::Ending { .. } => self.paths[0].connecting = false,
            Phase::Redispatching | Phase::Relaying | Phase::Closed => {}
        }
    }

    fn connect_failed(&mut self, turn: &mut Turn<'_>) {
        match self.phase {
            Phase::Connecting { expired, .. } => {
                self.phase = Phase::Redispatching;
                turn.ops.push(Op::Redispatch { timed_out: expired });
            }
            Phase::Ending { .. } => self.paths[0].connecting = false,
            Phase::Redispatching | Phase::Relaying | Phase::Closed => {}
        }
    }

    fn sent(&mut self, to: Side, bytes: u32, turn: &mut Turn<'_>) {
        let from = to.other();
        self.last_activity = turn.now;
        let path = &mut self.paths[from.index()];
        path.sending = false;
        if path.finished {
            path.discard(turn);
            return;
        }
        if let Some(buffer) = turn.chunks.consume(&mut path.queue, bytes) {
            turn.ops.push(Op::Recycle(buffer));
        }
        path.send_next(from, turn);
        path.steer(from, turn);
        self.pass_fin_on(from, turn);
    }

    fn receive_ended(&mut self, from: Side, end: ReceiveEnd, turn: &mut Turn<'_>) {
        let path = &mut self.paths[from.index()];
        path.receive = Receive::Idle;
        if path.finished {
            return;
        }
        match end {
            ReceiveEnd::Cancelled => path.steer(from, turn),
            // A client that has gone away: nobody waits for the server any more.
            ReceiveEnd::Failed if self.phase != Phase::Relaying => self.end(Termination::ClientReset, turn),
            ReceiveEnd::Truncated if self.phase != Phase::Relaying => self.end(Termination::ClientTruncated, turn),
            ReceiveEnd::Damaged if self.phase != Phase::Relaying => self.end(Termination::TlsBroken, turn),
            ReceiveEnd::Failed | ReceiveEnd::Truncated | ReceiveEnd::Damaged => {
                self.truncated |= end == ReceiveEnd::Truncated && self.reset_by.is_none();
                self.damaged |= end == ReceiveEnd::Damaged && self.reset_by.is_none();
                path.fin = true;
                path.broken = true;
                self.fail(from, turn);
            }
            ReceiveEnd::Fin => self.fin(from, turn),
            ReceiveEnd::NoBuffers => {
                path.receive = Receive::AwaitingBuffers;
                turn.ops.push(Op::AwaitBuffers(from));
            }
        }
    }

    fn buffers_free(&mut self, from: Side, turn: &mut Turn<'_>) {
        let path = &mut self.paths[from.index()];
        if path.receive == Receive::AwaitingBuffers {
            path.receive = Receive::Idle;
            path.steer(from, turn);
        }
    }

    fn pumped(&mut self, from: Side, bytes: u64, stop: PumpStop, turn: &mut Turn<'_>) {
        let path = &mut self.paths[from.index()];
        path.pump_queued = false;
        if bytes > 0 {
            self.last_activity = turn.now;
            path.denials = 0;
            path.note_pace(bytes, turn.now);
        }
        if path.finished {
            return;
        }
        match stop {
            PumpStop::Budget => {
                path.pump_queued = true;
                turn.ops.push(Op::PumpLater(from));
            }
            PumpStop::Fin => self.fin(from, turn),
            PumpStop::NoPipe => {
                path.denied_a_pipe();
                path.steer(from, turn);
            }
            PumpStop::SourceEmpty => {
                path.note_pumped(bytes);
                if path.mode == Mode::Buffers {
                    path.steer(from, turn);
                } else {
                    path.awaiting = true;
                    turn.ops.push(if path.pace.gathers { Op::AwaitMore(from) } else { Op::AwaitReadable(from) });
                }
            }
            PumpStop::SourceFailed => {
                path.fin = true;
                path.broken = true;
                self.fail(from, turn);
            }
            PumpStop::SinkFull => {
                path.awaiting = true;
                turn.ops.push(Op::AwaitWritable(from.other()));
            }
            PumpStop::SinkFailed => self.fail(from.other(), turn),
        }
    }

    fn gather_lost(&mut self, from: Side, turn: &mut Turn<'_>) {
        let path = &mut self.paths[from.index()];
        path.stop_gathering(turn.now);
        // It completes as ready, and what there is leaves.
        if path.awaiting {
            turn.ops.push(Op::CancelAwait(from));
        }
    }

    fn ready(&mut self, from: Side, turn: &mut Turn<'_>) {
        let path = &mut self.paths[from.index()];
        path.awaiting = false;
        if !path.finished {
            path.pump_queued = true;
            turn.ops.push(Op::Pump(from));
        }
    }

    fn tick(&mut self, turn: &mut Turn<'_>) {
        if self.deadline().is_none_or(|deadline| turn.now < deadline) {
            return;
        }
        if self.phase == Phase::Relaying && self.acknowledge_at.take().is_some() {
            turn.ops.extend(Side::BOTH.map(Op::AcknowledgeNow));
            return self.tick(turn);
        }
        match self.phase {
            Phase::Connecting { since, .. } => {
                self.phase = Phase::Connecting { since, expired: true };
                turn.ops.push(Op::CancelAll(Side::Server));
            }
            _ => self.end(Termination::IdleTimedOut, turn),
        }
    }

    /// `from` finished its stream.
    fn fin(&mut self, from: Side, turn: &mut Turn<'_>) {
        self.first_fin.get_or_insert(from);
        self.paths[from.index()].fin = true;
        self.pass_fin_on(from, turn);
    }

    /// Ends the path that reads `from` once its stream has ended and everything is delivered.
    fn pass_fin_on(&mut self, from: Side, turn: &mut Turn<'_>) {
        if matches!(self.phase, Phase::Connecting { .. } | Phase::Redispatching) {
            return;
        }
        let other_finished = self.paths[from.other().index()].finished;
        let path = &mut self.paths[from.index()];
        if path.finished || !path.fin || path.sending || !path.queue.is_empty() {
            return;
        }
        path.finished = true;
        // Closing the legs sends the second FIN; and a leg that was reset gets no FIN, but for a stream that had ended before.
        let finish = match self.reset_by {
            None => !other_finished,
            Some(by) => by == from && !path.broken,
        };
        if finish {
            turn.ops.push(Op::FinishWriting(from.other()));
        }
    }

    /// `side` failed: nothing more can be delivered to it; what it sent before still is. The path that reads it learns of
    /// the failure from its own next operation.
    fn fail(&mut self, side: Side, turn: &mut Turn<'_>) {
        self.reset_by.get_or_insert(side);
        let own = &mut self.paths[side.index()];
        // What ends now ends by the failure, even if the next receive says 0: the operation that failed has taken the error.
        own.broken |= !own.fin;
        let towards = &mut self.paths[side.other().index()];
        towards.finished = true;
        towards.discard(turn);
        towards.stop(side.other(), turn);
        self.pass_fin_on(side, turn);
    }

    fn end(&mut self, termination: Termination, turn: &mut Turn<'_>) {
        let reset = !matches!(termination, Termination::IdleTimedOut | Termination::DrainEnded);
        match self.phase {
            Phase::Connecting { .. } => self.paths[0].connecting = true,
            Phase::Redispatching | Phase::Relaying => {}
            Phase::Ending { .. } | Phase::Closed => return,
        }
        self.phase = Phase::Ending { termination, reset };
        for from in Side::BOTH {
            let path = &mut self.paths[from.index()];
            path.finished = true;
            path.discard(turn);
        }
        if !self.is_quiet() {
            turn.ops.push(Op::CancelAll(Side::Client));
            turn.ops.push(Op::CancelAll(Side::Server));
        }
    }

    fn is_quiet(&self) -> bool {
        self.paths.iter().all(Path::is_quiet)
    }

    fn close_when_quiet(&mut self, turn: &mut Turn<'_>) {
        let finished = self.paths.iter().all(|path| path.finished);
        if !finished || !self.is_quiet() {
            return;
        }
        let (termination, reset) = match (self.phase, self.reset_by) {
            (Phase::Closed, _) => return,
            (Phase::Ending { termination, reset }, _) => (termination, reset),
            (_, Some(_)) if self.damaged => (Termination::TlsBroken, true),
            (_, Some(Side::Client)) if self.truncated => (Termination::ClientTruncated, true),
            (_, Some(Side::Server)) if self.truncated => (Termination::ServerTruncated, true),
            (_, Some(Side::Client)) => (Termination::ClientReset, true),
            (_, Some(Side::Server)) => (Termination::ServerReset, true),
            (_, None) if self.first_fin == Some(Side::Server) => (Termination::ServerClosed, false),
            (_, None) => (Termination::ClientClosed, false),
        };
        self.phase = Phase::Closed;
        let rest = !reset && self.first_fin != Some(Side::Server);
        turn.ops.push(Op::Close { termination, reset, rest });
    }
}
