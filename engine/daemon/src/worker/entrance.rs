//! TLS handshakes: with a client before a real server is chosen, and with a real server before the session hears that it is connected.
//!
//! One step is done in a breath, after everything else had its turn: a flood of handshakes makes them wait for each other, not others for them.

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use towpath_config::model::Protocol;
use towpath_core::Now;
use towpath_core::counters::{ServiceCounter, Termination};
use towpath_core::session::{Event, Session, Side};
use towpath_sys::ring::{Completion, Received};
use towpath_sys::socket::{self, Behind};
use towpath_tls::{Fault, INTERNAL_ERROR_ALERT, Step};

use super::Worker;
use super::secure::{CARRY_BYTES_MAX, FRONT_BYTES, Flight, TlsLeg, has_record};
use super::token::{Key, Token};

/// Handshakes refused in one breath because they had waited too long.
const REFUSED_AT_ONCE_MAX: usize = 64;

/// Handshakes whose next step waits for its turn, the longest waiting first.
#[derive(Default)]
pub(super) struct Waiting {
    queue: VecDeque<(Key, Side)>,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

impl Worker {
    /// Begins the handshake with a client that was accepted.
    pub(super) fn enter(&mut self, key: Key) -> io::Result<()> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        let Some(secured) = relay.service_tls.as_ref().map(Arc::clone) else { return Ok(()) };
        match secured.clients.accept() {
            Ok(connection) => relay.tls[Side::Client.index()] = Some(Box::new(TlsLeg::new(connection))),
            Err(_) => return self.turn_away(key, Termination::SystemRefused),
        }
        let due = self.now + secured.handshake_timeout_ms;
        relay.entrance = Some(due);
        self.wheel.arm(key.index, due);
        self.receive_record(key, Side::Client)
    }

    /// A receive of a leg whose handshake is under way has completed.
    pub(super) fn received_handshake(&mut self, key: Key, from: Side, completion: &Completion) -> io::Result<()> {
        let received = completion.received();
        let Some(leg) = self.relays.get_mut(key).and_then(|relay| relay.tls[from.index()].as_mut()) else {
            return self.let_go(completion);
        };
        if let Some(buffer) = completion.buffer() {
            if let Received::Bytes(len) = received {
                leg.keep(&self.ring.record_mut(buffer)[FRONT_BYTES as usize..(FRONT_BYTES + len) as usize]);
            }
            self.ring.recycle(buffer);
        }
        if leg.given_up {
            return self.server_given_up(key);
        }
        match received {
            Received::Bytes(_) if leg.kept() > CARRY_BYTES_MAX => self.shake_failed(key, from, Fault::Protocol),
            Received::Bytes(_) => {
                self.await_turn(key, from);
                self.receive_record(key, from)
            }
            Received::NoBuffers => {
                self.starved_records.push_back((key, from));
                Ok(())
            }
            Received::End | Received::Failed | Received::Cancelled => self.peer_left(key, from),
        }
    }

    /// Queues the next step, if there is something to do it with.
    fn await_turn(&mut self, key: Key, side: Side) {
        let Some(leg) = self.relays.get_mut(key).and_then(|relay| relay.tls[side.index()].as_mut()) else { return };
        let ready = leg.handshake.as_ref().is_some_and(|handshake| has_record(&handshake.input));
        if ready && leg.queued.is_none() && !leg.is_sending() {
            leg.queued = Some(self.now);
            self.waiting.queue.push_back((key, side));
        }
    }

    /// Does the next step of one handshake.
    pub(super) fn shake_one(&mut self) -> io::Result<()> {
        for _ in 0..REFUSED_AT_ONCE_MAX {
            let Some((key, side)) = self.waiting.queue.pop_front() else { return Ok(()) };
            let Some(leg) = self.relays.get_mut(key).and_then(|relay| relay.tls[side.index()].as_mut()) else {
                continue;
            };
            let (Some(since), Some(handshake)) = (leg.queued.take(), &mut leg.handshake) else { continue };
            if side == Side::Client && self.now.ms_since(since) > self.settings.queue_deadline_ms {
                self.tell_client(key, INTERNAL_ERROR_ALERT);
                self.turn_away(key, Termination::HandshakeRefused)?;
                continue;
            }
            let result = handshake.step();
            return self.step_done(key, side, result);
        }
        Ok(())
    }

    /// A step was done: its flight leaves, and what follows from it happens.
    fn step_done(&mut self, key: Key, side: Side, result: Result<Step, Fault>) -> io::Result<()> {
        let step = match result {
            Ok(step) => step,
            Err(fault) => return self.shake_failed(key, side, fault),
        };
        if let Some(leg) = self.relays.get_mut(key).and_then(|relay| relay.tls[side.index()].as_mut()) {
            leg.done = step == Step::Complete;
        }
        match self.send_flight(key, side)? {
            Flight::Sent => self.flight_sent(key, side, true),
            Flight::OnItsWay => Ok(()),
            Flight::Failed => self.peer_left(key, side),
        }
    }

    /// A flight has left, `whole` or not.
    pub(super) fn flight_sent(&mut self, key: Key, side: Side, whole: bool) -> io::Result<()> {
        let Some(leg) = self.relays.get_mut(key).and_then(|relay| relay.tls[side.index()].as_mut()) else {
            return Ok(());
        };
        if leg.given_up {
            return self.server_given_up(key);
        }
        match (whole, leg.done) {
            (false, _) => self.peer_left(key, side),
            (true, false) => {
                self.await_turn(key, side);
                Ok(())
            }
            (true, true) => self.shaken(key, side),
        }
    }

    /// The handshake is over.
    fn shaken(&mut self, key: Key, side: Side) -> io::Result<()> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        let (Some(secured), Some(leg)) = (&relay.service_tls, &mut relay.tls[side.index()]) else { return Ok(()) };
        let Some(connection) = leg.handshake.as_ref().map(|handshake| &handshake.connection) else { return Ok(()) };
        let resumed = connection.is_resumed();
        if side == Side::Client && resumed && secured.clients.admits_resumed(connection.peer_certificates()).is_err() {
            return self.shake_failed(key, side, Fault::Certificate);
        }
        leg.shaking = false;
        let counter = match (side, resumed) {
            (Side::Client, false) => ServiceCounter::HandshakesFull,
            (Side::Client, true) => ServiceCounter::HandshakesResumed,
            (Side::Server, false) => ServiceCounter::ServerHandshakesFull,
            (Side::Server, true) => ServiceCounter::ServerHandshakesResumed,
        };
        let service = Arc::clone(relay.service());
        self.shared.seat(self.id).service_page(service.id).add(counter, 1);
        if side == Side::Server {
            return self.server_reached(key);
        }
        relay.entrance = None;
        relay.session = Session::connecting(self.now, service.connect_timeout_ms, service.idle_timeout_ms);
        self.shared.handshakes().leave();
        self.begin(key)
    }

    /// A handshake has failed: its alert leaves first.
    fn shake_failed(&mut self, key: Key, side: Side, fault: Fault) -> io::Result<()> {
        if side == Side::Server {
            return self.give_up_server(key);
        }
        let alert = self
            .relays
            .get_mut(key)
            .and_then(|relay| relay.tls[side.index()].as_mut()?.handshake.as_mut())
            .map(|handshake| std::mem::take(&mut handshake.output))
            .unwrap_or_default();
        self.tell_client(key, &alert);
        self.turn_away(key, termination_of(fault))
    }

    fn peer_left(&mut self, key: Key, side: Side) -> io::Result<()> {
        match side {
            Side::Client => self.turn_away(key, Termination::HandshakeLeft),
            Side::Server => self.give_up_server(key),
        }
    }

    /// Sends a client its last alert, as far as the kernel takes it.
    fn tell_client(&self, key: Key, alert: &[u8]) {
        let Some(client) = self.relays.get(key).and_then(|relay| relay.leg(Side::Client)) else { return };
        if !alert.is_empty() {
            let _ = socket::send_now(client, alert, Behind::More);
            let _ = socket::shutdown_write(client);
        }
    }

    /// Ends a connection at the entrance.
    pub(super) fn turn_away(&mut self, key: Key, termination: Termination) -> io::Result<()> {
        self.wheel.disarm(key.index);
        let Some(relay) = self.relays.remove(key) else { return Ok(()) };
        self.shared.seat(self.id).service_page(relay.service().id).count_end(termination);
        let client = relay.into_client();
        if matches!(termination, Termination::HandshakeLeft | Termination::HandshakeTimedOut | Termination::DrainEnded)
        {
            // Nothing is on its way that a reset could take back.
            let _ = socket::set_linger_reset(&client);
        }
        self.drop_leg(client)?;
        self.shared.handshakes().leave();
        self.shared.gate(Protocol::Tcp).leave();
        Ok(())
    }

    /// Closes a leg on which operations may be in flight.
    pub(super) fn drop_leg(&mut self, leg: TcpStream) -> io::Result<()> {
        self.ring.cancel_all(leg.as_fd(), Token::Nothing.pack())?;
        // Queued behind the cancel, which names it by its descriptor.
        self.ring.close(OwnedFd::from(leg), Token::Nothing.pack())
    }

    /// The connect to a real server that wants TLS has succeeded: the handshake begins, within the time of the connect.
    pub(super) fn enter_server(&mut self, key: Key) -> io::Result<bool> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(false) };
        let Some(context) = relay.server().and_then(|server| relay.service_tls.as_ref()?.towards(server)) else {
            return Ok(false);
        };
        let client = relay.tls[Side::Client.index()].as_ref().and_then(|leg| leg.handshake.as_ref());
        let alpn = client.and_then(|handshake| handshake.connection.alpn());
        let connection = context.connect(relay.client_name.as_deref(), alpn, relay.destination().ip());
        let Ok(connection) = connection else {
            self.give_up_server(key)?;
            return Ok(true);
        };
        let mut leg = Box::new(TlsLeg::new(connection));
        leg.queued = Some(self.now);
        relay.tls[Side::Server.index()] = Some(leg);
        self.waiting.queue.push_back((key, Side::Server));
        self.receive_record(key, Side::Server)?;
        Ok(true)
    }

    /// Gives up the handshake with a real server: once nothing is in flight on its leg, the session hears that the connect has failed.
    pub(super) fn give_up_server(&mut self, key: Key) -> io::Result<()> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        relay.server_handshake_failed = true;
        self.shared.seat(self.id).service_page(relay.service().id).add(ServiceCounter::ServerHandshakesFailed, 1);
        if let Some(leg) = &mut relay.tls[Side::Server.index()] {
            leg.given_up = true;
            leg.queued = None;
        }
        if let Some(socket) = relay.leg(Side::Server) {
            self.ring.cancel_all(socket.as_fd(), Token::Nothing.pack())?;
        }
        self.server_given_up(key)
    }

    fn server_given_up(&mut self, key: Key) -> io::Result<()> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        if relay.tls[Side::Server.index()].as_ref().is_some_and(|leg| leg.armed || leg.is_sending()) {
            return Ok(());
        }
        relay.tls[Side::Server.index()] = None;
        self.drive(key, Event::ConnectFailed)
    }

    /// Handshakes that waited for a buffer.
    pub(super) fn feed_starved_records(&mut self) -> io::Result<()> {
        let fed = self.starved_records.len().min(self.ring.records_free()).min(super::FED_MAX);
        for _ in 0..fed {
            let Some((key, from)) = self.starved_records.pop_front() else { break };
            let Some(relay) = self.relays.get(key) else { continue };
            if relay.tls[from.index()].as_ref().is_some_and(|leg| leg.shaking) {
                self.receive_record(key, from)?;
            } else {
                self.drive(key, Event::BuffersFree(from))?;
            }
        }
        Ok(())
    }

    /// Whether a leg waits for a buffer that is free.
    pub(super) fn can_feed_records(&self) -> bool {
        !self.starved_records.is_empty() && self.ring.records_free() > 0
    }

    /// The time of a connection at the entrance may be over.
    pub(super) fn entrance_timer(&mut self, key: Key, due: Now) -> io::Result<()> {
        if self.now < due {
            self.wheel.arm(key.index, due);
            return Ok(());
        }
        self.turn_away(key, Termination::HandshakeTimedOut)
    }
}

fn termination_of(fault: Fault) -> Termination {
    match fault {
        Fault::Alert(_) => Termination::HandshakeAlert,
        Fault::Certificate => Termination::HandshakeCertificate,
        Fault::Internal => Termination::SystemRefused,
        Fault::NothingShared => Termination::HandshakeNothingShared,
        Fault::Protocol => Termination::HandshakeFailed,
        Fault::UnknownName => Termination::HandshakeUnknownName,
    }
}
