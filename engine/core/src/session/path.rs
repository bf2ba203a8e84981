//! One direction of a session: receive, queue, send, pass the end on.

use super::chunks::Chain;
use super::gather::Pace;
use super::{
    DENIED_FACTOR, FULL_CHUNKS_TO_PUMP, Op, PUMP_SMALL_BYTES, PUMP_SMALL_MAX, QUEUE_MAX, QUEUE_MAX_SCARCE, Room, Side,
    Turn, WISHES_MAX,
};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Receive {
    /// Nothing in flight.
    #[default]
    Idle,
    /// Will be retried when buffers are free; nothing in flight.
    AwaitingBuffers,
    /// In flight.
    Armed,
    /// In flight, asked to stop.
    Cancelling,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mode {
    /// Receive into buffers.
    #[default]
    Buffers,
    /// To be pumped as soon as the receive has stopped and the queue is sent.
    Switching,
    /// Pumped through a pipe.
    Pumped,
}

/// The way from one side to the other.
#[derive(Default)]
pub(super) struct Path {
    pub(super) receive: Receive,
    pub(super) mode: Mode,
    pub(super) queue: Chain,
    /// A send of the first chunk is in flight.
    pub(super) sending: bool,
    /// A wait for readiness is in flight.
    pub(super) awaiting: bool,
    /// A pump has been ordered and has not reported yet.
    pub(super) pump_queued: bool,
    /// The connect is in flight although the session already ends (kept on the client's path).
    pub(super) connecting: bool,
    /// The source ended its stream, …
    pub(super) fin: bool,
    /// … by failing.
    pub(super) broken: bool,
    /// Nothing more will be delivered.
    pub(super) finished: bool,
    full_chunks: u8,
    /// How often full buffers have asked for a pipe since the last attempt.
    wishes: u16,
    /// Attempts to pump in a row that found no pipe.
    pub(super) denials: u32,
    small_pumps: u8,
    pub(super) pace: Pace,
}

impl Path {
    /// Whether no operation is in flight.
    pub(super) fn is_quiet(&self) -> bool {
        let receiving = matches!(self.receive, Receive::Armed | Receive::Cancelling);
        !receiving && !self.sending && !self.awaiting && !self.pump_queued && !self.connecting
    }

    /// Counts full buffers in a row: a path that fills buffers is worth a pipe.
    pub(super) fn note_full(&mut self, full: bool) {
        self.full_chunks = if full { self.full_chunks.saturating_add(1) } else { 0 };
        if self.full_chunks < FULL_CHUNKS_TO_PUMP || self.mode != Mode::Buffers {
            return;
        }
        self.full_chunks = 0;
        self.wishes += 1;
        if self.wishes >= DENIED_FACTOR.saturating_pow(self.denials).min(WISHES_MAX) {
            self.wishes = 0;
            self.mode = Mode::Switching;
        }
    }

    /// Counts small pumps in a row: a path that trickles is better served by buffers.
    pub(super) fn note_pumped(&mut self, bytes: u64) {
        self.small_pumps = if bytes < PUMP_SMALL_BYTES { self.small_pumps + 1 } else { 0 };
        if self.small_pumps >= PUMP_SMALL_MAX {
            self.back_to_buffers();
        }
    }

    pub(super) fn back_to_buffers(&mut self) {
        self.mode = Mode::Buffers;
        self.full_chunks = 0;
        self.small_pumps = 0;
    }

    /// No pipe was free.
    pub(super) fn denied_a_pipe(&mut self) {
        self.denials = self.denials.saturating_add(1);
        self.back_to_buffers();
    }

    /// Sends the first chunk unless a send is in flight.
    pub(super) fn send_next(&mut self, from: Side, turn: &mut Turn<'_>) {
        if self.sending {
            return;
        }
        if let Some(chunk) = turn.chunks.first(&self.queue) {
            self.sending = true;
            // After a failure the legs are reset, and bytes that wait for a FIN would be lost.
            let last = self.fin && !self.broken && self.queue.count() == 1;
            turn.ops.push(Op::Send { to: from.other(), chunk, last });
        }
    }

    /// Starts or stops the receive, or starts the pump, according to queue, room and mode.
    pub(super) fn steer(&mut self, from: Side, turn: &mut Turn<'_>) {
        if self.fin || self.finished {
            return;
        }
        let queue_max = match turn.room {
            Room::Ample => QUEUE_MAX,
            Room::Scarce => QUEUE_MAX_SCARCE,
        };
        let has_room = self.queue.count() < queue_max;
        match (self.receive, self.mode) {
            (Receive::Idle, Mode::Buffers) if has_room => {
                self.receive = Receive::Armed;
                turn.ops.push(Op::Receive(from));
            }
            (Receive::Idle, Mode::Switching) if self.queue.is_empty() && !self.sending => {
                self.mode = Mode::Pumped;
                self.pump_queued = true;
                turn.ops.push(Op::Pump(from));
            }
            // Multishot: it would go on without end.
            (Receive::Armed, Mode::Switching) => self.cancel_receive(from, turn),
            (Receive::Armed, Mode::Buffers) if !has_room => self.cancel_receive(from, turn),
            _ => {}
        }
    }

    /// Stops a receive that is armed.
    pub(super) fn cancel_receive(&mut self, from: Side, turn: &mut Turn<'_>) {
        if self.receive == Receive::Armed {
            self.receive = Receive::Cancelling;
            turn.ops.push(Op::CancelReceive(from));
        }
    }

    /// Gives back every queued buffer that is not being sent.
    pub(super) fn discard(&mut self, turn: &mut Turn<'_>) {
        if self.sending {
            return;
        }
        while let Some(buffer) = turn.chunks.pop(&mut self.queue) {
            turn.ops.push(Op::Recycle(buffer));
        }
    }

    /// Stops what still reads for a path that has finished.
    pub(super) fn stop(&mut self, from: Side, turn: &mut Turn<'_>) {
        self.cancel_receive(from, turn);
        if self.awaiting {
            turn.ops.push(Op::CancelAwait(from));
        }
    }
}
