//! How a connection in HTTP mode ends, and the times after which it does.

use std::io;
use std::sync::Arc;

use towpath_core::Now;
use towpath_core::counters::Termination;
use towpath_core::http::{Answer, ServerEnd, Waiting};
use towpath_core::session::{Op, Side};
use towpath_core::snapshot::Service;
use towpath_sys::socket;

use super::super::relay::{Close, Relay};
use super::super::token::Key;
use super::super::{PortUse, Worker};
use super::flow::StreamEnd;
use super::server::{Next, ServerState};
use super::{Conversation, Stage};

/// How long a client may go on sending after its last response: what it sends is dropped, so that no reset takes the response back.
pub(in super::super) const LINGER_MS: u64 = 2_000;

/// How long a spoke waits for the next stream: the client's connection does without it, and its server has the place for others.
const SPOKE_IDLE_MS: u64 = 10_000;

/// The end of a connection, once it is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// What there is for the client leaves first.
    Finishing(Termination),
    /// Our stream to the client has ended; what it still sends is dropped until then.
    Lingering(Termination, Now),
    /// Operations in flight come to their ends.
    Stopping { termination: Termination, reset: bool },
}

impl Conversation {
    /// Whether nothing is waited for but operations in flight.
    pub(in super::super) fn is_stopping(&self) -> bool {
        matches!(self.ending, Some(Ending::Stopping { .. }))
    }

    /// Whether what is received from this side is dropped.
    pub(super) fn is_discarding(&self, from: Side) -> bool {
        match self.ending {
            None => matches!(self.server, ServerState::Parting { .. }) && from == Side::Server,
            Some(_) => true,
        }
    }

    /// Whether anybody wants more from this side.
    pub(super) fn wants_more(&self, from: Side, scarce: bool) -> bool {
        match self.ending {
            Some(Ending::Lingering(..)) => return from == Side::Client,
            Some(_) => return false,
            None => {}
        }
        if from == Side::Client && !self.stowed.is_empty() {
            return false;
        }
        if from == Side::Server && !matches!(self.server, ServerState::Up { .. }) {
            return false;
        }
        // Where buffers are scarce, none is held that nobody can use now; else one is read ahead, and ends are noticed.
        !scarce || (self.exchange.wants(from) && !self.outlets[from.other().index()].is_sending())
    }

    /// When something has to happen if nothing else does.
    fn deadline(&self, service: &Service, is_spoke: bool) -> Option<Now> {
        let idle = self.since + service.idle_timeout_ms;
        match self.ending {
            Some(Ending::Finishing(_)) => return Some(idle),
            Some(Ending::Lingering(_, due)) => return Some(due),
            Some(Ending::Stopping { .. }) => return None,
            None => {}
        }
        let due = match (&self.server, self.waiting) {
            (ServerState::Dialling { expired: true, .. } | ServerState::Parting { .. }, _) => return None,
            (ServerState::Dialling { since, .. }, _) => *since + service.connect_timeout_ms,
            (_, Waiting::Head) => self.since + self.head_timeout_ms(),
            (_, Waiting::Request) if is_spoke => idle.min(self.since + SPOKE_IDLE_MS),
            (_, Waiting::Request) if self.served == 0 => self.since + self.head_timeout_ms(),
            (_, Waiting::Response) => self.since + self.response_timeout_ms(service),
            (_, Waiting::Close | Waiting::Request | Waiting::Server | Waiting::Transfer | Waiting::Tunnel) => idle,
        };
        Some(self.acknowledge_at.map_or(due, |at| at.min(due)))
    }

    fn head_timeout_ms(&self) -> u64 {
        self.front.http.as_ref().map_or(self.front.idle_timeout_ms, |http| http.rules.config().head_timeout_ms)
    }

    fn response_timeout_ms(&self, service: &Service) -> u64 {
        service.http.as_ref().map_or(service.idle_timeout_ms, |http| http.response_timeout_ms)
    }
}

impl Worker {
    /// Ends the connection as soon as what there is for the client has left.
    pub(in super::super) fn finish_conversation(&mut self, key: Key, termination: Termination) {
        let now = self.now;
        let Some(conversation) = self.conversation(key) else { return };
        if conversation.ending.is_some() {
            return;
        }
        let termination = conversation.answered_as.take().unwrap_or(termination);
        conversation.ending = Some(Ending::Finishing(termination));
        conversation.since = now;
    }

    /// Ends the connection at once: who has got a part of something sees that it is one.
    pub(in super::super) fn cut_conversation(&mut self, key: Key, termination: Termination) {
        self.stop_conversation(key, termination, true);
    }

    fn stop_conversation(&mut self, key: Key, termination: Termination, reset: bool) {
        self.leave_queue(key);
        let Some(conversation) = self.conversation(key) else { return };
        if conversation.is_stopping() {
            return;
        }
        if conversation.notes.is_some() {
            self.log_conversation_end(key, termination);
        }
        let Some(conversation) = self.conversation(key) else { return };
        conversation.ending = Some(Ending::Stopping { termination, reset });
        let (is_dialling, was_quiet) = (
            matches!(conversation.server, ServerState::Dialling { .. }),
            Side::BOTH.map(|side| conversation.is_quiet(side)),
        );
        for side in Side::BOTH {
            self.drop_held(key, side);
            self.drop_waiting(key, side);
            if !was_quiet[side.index()] || (side == Side::Server && is_dialling) {
                self.cancel_side(key, side);
            }
        }
    }

    /// Cancels what is in flight on this side; it completes all the same.
    pub(in super::super) fn cancel_side(&mut self, key: Key, side: Side) {
        if side == Side::Client && self.relays.get(key).is_some_and(Relay::is_spoke) {
            // What its hub has of it is nobody's any more.
            if let Some(conversation) = self.conversation(key) {
                conversation.outlets[side.index()].forget_sent();
            }
            return;
        }
        let mut ops = Vec::new();
        // Fails only with the ring itself, and then the next submission says so.
        let _ = self.execute(key, Op::CancelAll(side), &mut ops);
    }

    /// What reads for the process or the service ends the connection, or the use of its server.
    pub(super) fn end_from_outside(&mut self, key: Key, termination: Termination) -> io::Result<()> {
        match termination {
            Termination::ServerDown | Termination::ServerDrained | Termination::ServerHalted => {
                let Some(conversation) = self.conversation(key) else { return Ok(()) };
                if !matches!(conversation.server, ServerState::Up { .. }) {
                    return Ok(());
                }
                if conversation.stage == Stage::Tunnel {
                    self.cut_conversation(key, termination);
                    return Ok(());
                }
                self.lose_server(key, ServerEnd::Broken, Some(termination))
            }
            Termination::DrainEnded => {
                let Some(conversation) = self.conversation(key) else { return Ok(()) };
                // Where the end of the stream would be the end of a body, it must not look like one.
                let amid = match conversation.stage {
                    Stage::Tunnel => true,
                    Stage::Forwarded => conversation.exchange.has_responded(),
                    Stage::Between | Stage::Routed => false,
                };
                let reset = amid || !conversation.outlets[Side::Client.index()].is_empty();
                self.stop_conversation(key, termination, reset);
                Ok(())
            }
            _ => {
                self.cut_conversation(key, termination);
                Ok(())
            }
        }
    }

    /// One way of a tunnel has ended: so does its other end, once everything is there.
    pub(super) fn pass_end_on(&mut self, key: Key, from: Side) -> io::Result<()> {
        let Some(conversation) = self.conversation(key) else { return Ok(()) };
        if conversation.inlets.iter().all(|inlet| inlet.end_told) {
            let termination = if from == Side::Client { Termination::ServerClosed } else { Termination::ClientClosed };
            self.finish_conversation(key, termination);
            return Ok(());
        }
        self.finish_leg(key, from.other())
    }

    /// Ends our stream on this side.
    pub(in super::super) fn finish_leg(&mut self, key: Key, side: Side) -> io::Result<()> {
        let Some(relay) = self.relays.get(key) else { return Ok(()) };
        if relay.legs.tls(side).is_some() {
            return self.finish_secured(key, side);
        }
        // Fails only when the leg is gone already, and then its receive says so.
        if let Some(leg) = relay.leg(side) {
            let _ = socket::shutdown_write(leg);
        }
        Ok(())
    }

    /// Goes on with the end; says whether the connection is gone.
    pub(super) fn follow_ending(&mut self, key: Key) -> io::Result<bool> {
        let now = self.now;
        let Some(conversation) = self.conversation(key) else { return Ok(true) };
        if let Some(Ending::Finishing(termination)) = conversation.ending {
            self.finish_settling(key)?;
            let Some(conversation) = self.conversation(key) else { return Ok(true) };
            // Nobody is to wait for a server that has nothing more to do.
            if matches!(conversation.server, ServerState::Up { .. }) {
                self.part(key, Next::Nothing)?;
                self.finish_parting(key)?;
            }
            let Some(conversation) = self.conversation(key) else { return Ok(true) };
            if !conversation.outlets[Side::Client.index()].is_empty() {
                return Ok(false);
            }
            let client_ended = conversation.inlets[Side::Client.index()].end.is_some();
            let is_spoke = self.relays.get(key).is_some_and(Relay::is_spoke);
            self.drop_held(key, Side::Client);
            if client_ended || is_spoke {
                self.stop_conversation(key, termination, false);
            } else {
                self.finish_leg(key, Side::Client)?;
                if let Some(conversation) = self.conversation(key) {
                    conversation.ending = Some(Ending::Lingering(termination, now + LINGER_MS));
                }
                self.receive_next(key, Side::Client)?;
                return self.follow_ending(key);
            }
        }
        let Some(conversation) = self.conversation(key) else { return Ok(true) };
        if let Some(Ending::Lingering(termination, due)) = conversation.ending {
            let end = conversation.inlets[Side::Client.index()].end;
            if end.is_none() && now < due {
                return Ok(false);
            }
            self.stop_conversation(key, termination, false);
        }
        let Some(conversation) = self.conversation(key) else { return Ok(true) };
        let Some(Ending::Stopping { termination, reset }) = conversation.ending else { return Ok(false) };
        let is_dialling = matches!(conversation.server, ServerState::Dialling { .. });
        if is_dialling || !Side::BOTH.iter().all(|&side| conversation.is_quiet(side)) {
            return Ok(false);
        }
        let server_first = conversation.inlets[Side::Server.index()].end == Some(StreamEnd::Orderly);
        let used = if reset || server_first { PortUse::Over } else { PortUse::Lingering };
        self.close_relay(key, Close::new(termination, reset, used))?;
        Ok(true)
    }

    /// A deadline may have come.
    pub(super) fn conversation_timer(&mut self, key: Key) -> io::Result<()> {
        let now = self.now;
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        let (service, is_spoke) = (Arc::clone(relay.service()), relay.is_spoke());
        let Some(conversation) = relay.http.as_deref_mut() else { return Ok(()) };
        conversation.timer = None;
        if conversation.acknowledge_at.is_some_and(|at| at <= now) {
            conversation.acknowledge_at = None;
            for leg in Side::BOTH.iter().filter_map(|&side| relay.leg(side)) {
                // A leg that is gone says so by its receive.
                let _ = socket::acknowledge_now(leg);
            }
        }
        let Some(conversation) = self.conversation(key) else { return Ok(()) };
        if conversation.deadline(&service, is_spoke).is_none_or(|due| now < due) {
            return Ok(());
        }
        match (conversation.ending, &mut conversation.server, conversation.waiting) {
            (Some(Ending::Lingering(..)), ..) => Ok(()),
            (Some(_), ..) => {
                self.cut_conversation(key, Termination::IdleTimedOut);
                Ok(())
            }
            (None, ServerState::Dialling { expired, .. }, _) => {
                *expired = true;
                self.cancel_side(key, Side::Server);
                Ok(())
            }
            (None, _, Waiting::Head) => self.answer_ourselves(key, &Answer::of(408), Termination::HeadTimedOut),
            (None, _, Waiting::Request) => {
                let termination = if conversation.served == 0 && !is_spoke {
                    Termination::HeadTimedOut
                } else {
                    Termination::KeepAliveEnded
                };
                self.finish_conversation(key, termination);
                Ok(())
            }
            (None, _, Waiting::Response) => {
                if let Some(server) = self.relays.get(key).and_then(|relay| relay.server()) {
                    self.shared.seat(self.id).count_response(server, 504);
                }
                self.part(key, Next::Nothing)?;
                self.answer_ourselves(key, &Answer::of(504), Termination::ResponseTimedOut)
            }
            (None, _, Waiting::Close | Waiting::Server | Waiting::Transfer | Waiting::Tunnel) => {
                self.cut_conversation(key, Termination::IdleTimedOut);
                Ok(())
            }
        }
    }

    /// The timer is set no more.
    pub(in super::super) fn note_timer_fired(&mut self, key: Key) {
        if let Some(conversation) = self.conversation(key) {
            conversation.timer = None;
        }
    }

    /// Sets the timer, if it is due earlier than it stands.
    pub(in super::super) fn arm_conversation(&mut self, key: Key) {
        let now = self.now;
        let Some(relay) = self.relays.get_mut(key) else { return };
        let (service, is_spoke) = (Arc::clone(relay.service()), relay.is_spoke());
        let Some(conversation) = relay.http.as_deref_mut() else { return };
        let waiting = conversation.exchange.waiting();
        if waiting != conversation.waiting {
            conversation.waiting = waiting;
            conversation.since = now;
        }
        let due = match &relay.waits {
            Some(waits) if conversation.ending.is_none() => Some(waits.next_look(now)),
            _ => conversation.deadline(&service, is_spoke),
        };
        let Some(due) = due else { return };
        if conversation.timer.is_none_or(|timer| due < timer) {
            conversation.timer = Some(due);
            self.wheel.arm(key.index, due);
        }
    }
}
