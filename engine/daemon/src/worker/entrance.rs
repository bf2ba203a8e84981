//! TLS handshakes: with a client before a real server is chosen, and with a real server before the session hears that it is connected.
//!
//! One step is done in a breath, after everything else had its turn: a flood of handshakes makes them wait for each other, not others for them.
//! A step is long and cannot be interrupted here, so they keep a distance while there is other traffic; better is a pool, even on the same CPU.

use std::collections::VecDeque;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use towpath_config::model::Protocol;
use towpath_core::Now;
use towpath_core::access::Phase;
use towpath_core::client_hello::{HELLO_BYTES_MAX, HostName, Peek, peek};
use towpath_core::counters::{ServiceCounter, Termination};
use towpath_core::histogram::Latency;
use towpath_core::session::{Event, Session, Side};
use towpath_sys::ring::{Completion, Received, Wait};
use towpath_sys::socket::{self, Behind};
use towpath_tls::{
    Fault, Finished, Handshake, HandshakeKind, Hatch, INTERNAL_ERROR_ALERT, Reclaimed, SniMatch, Step,
    UNKNOWN_NAME_ALERT, WorkOutcome,
};

use super::Worker;
use super::relay::Relay;
use super::secure::{CARRY_BYTES_MAX, FRONT_BYTES, Flight, TlsLeg, has_record};
use super::slab::Slab;
use super::token::{Key, Token};
use crate::tls::PooledHandshake;

/// Handshakes refused in one breath because they had waited too long.
const REFUSED_AT_ONCE_MAX: usize = 64;

/// Bytes that a client may send before it is greeted: a ClientHello, and what little may follow it.
const HELLO_RECEIVED_MAX: usize = 2 * HELLO_BYTES_MAX;
/// Breaths in a row in which handshakes give way to what has come meanwhile.
const GIVES_WAY_MAX: u32 = 4;
/// So long after the last of it, other traffic counts as there.
const OTHERS_MS: u64 = 5;
/// How long steps rest while there is other traffic, in the time that the last one took: with 3, a fourth of the requests meets one.
const REST_PER_STEP: u32 = 3;
/// How long the next step waits for the answer to a request that has just passed, …
const ANSWER_WAIT: Duration = Duration::from_micros(200);
/// … and for answers in all.
const ANSWERS_MAX: Duration = Duration::from_millis(1);
/// A pool that gives nothing back for so long finds no CPU: the workers leave it none.
const POOL_STALLED_MS: u64 = 20;
/// Handshakes that a worker takes back from such a pool in one breath.
const RECLAIMED_AT_ONCE_MAX: usize = 256;
/// The longest time that a step counts for: another program may have had the CPU meanwhile.
const STEP_MAX: Duration = Duration::from_millis(2);
/// After so many quick steps, a full handshake has its turn even if more of them wait.
const QUICK_IN_A_ROW: u32 = 16;

/// Places of handshakes that have gone meanwhile, passed over for one turn.
const GONE_AT_ONCE_MAX: u32 = 1024;
/// Fewer places than this are not looked through for those of handshakes that have gone.
const SWEPT_FROM: usize = 1024;

/// A leg whose next step waits for its turn.
type Waiter = (Key, Side);

/// Handshakes whose next step waits for its turn, the longest waiting of each kind first. Who goes leaves its place behind; of such there are never
/// more than of those that wait, and [`SWEPT_FROM`].
#[derive(Default)]
pub(super) struct Waiting {
    /// Steps without a signature of ours: the last one, or a session to resume.
    quick: VecDeque<Waiter>,
    full: VecDeque<Waiter>,
    quick_in_a_row: u32,
    /// So many places are looked through.
    swept_from: usize,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.quick.is_empty() && self.full.is_empty()
    }

    /// Adds `waiter`; `waits` says who has not gone.
    fn push(&mut self, kind: HandshakeKind, waiter: Waiter, waits: impl Fn(Waiter) -> bool) {
        self.queue(kind).push_back(waiter);
        if self.quick.len() + self.full.len() > self.swept_from.max(SWEPT_FROM) {
            self.quick.retain(|waiter| waits(*waiter));
            self.full.retain(|waiter| waits(*waiter));
            self.swept_from = 2 * (self.quick.len() + self.full.len());
        }
    }

    /// Takes whose turn it is.
    fn pop(&mut self, waits: impl Fn(Waiter) -> bool) -> Option<Waiter> {
        let order = if self.quick_in_a_row >= QUICK_IN_A_ROW {
            [HandshakeKind::Full, HandshakeKind::Resumed]
        } else {
            [HandshakeKind::Resumed, HandshakeKind::Full]
        };
        let mut gone = 0;
        for kind in order {
            while let Some(next) = self.queue(kind).pop_front() {
                if waits(next) {
                    self.quick_in_a_row = match kind {
                        HandshakeKind::Full => 0,
                        HandshakeKind::Resumed => self.quick_in_a_row.saturating_add(1),
                    };
                    return Some(next);
                }
                gone += 1;
                if gone == GONE_AT_ONCE_MAX {
                    return None;
                }
            }
        }
        None
    }

    fn queue(&mut self, kind: HandshakeKind) -> &mut VecDeque<Waiter> {
        match kind {
            HandshakeKind::Full => &mut self.full,
            HandshakeKind::Resumed => &mut self.quick,
        }
    }
}

/// Whether this leg still waits for its turn.
fn waits(relays: &Slab<Relay>, (key, side): Waiter) -> bool {
    let leg = relays.get(key).and_then(|relay| relay.legs.tls(side));
    leg.is_some_and(|leg| leg.queued.is_some())
}

/// How often a step is done while there is other traffic: one that comes during a step waits for its end, and nobody can shorten that. So the
/// steps keep a distance, and the share of requests that meet one is bounded.
#[derive(Default)]
pub(super) struct Pace {
    /// Breaths in a row in which steps gave way to what had come meanwhile.
    gave_way: u32,
    /// When there was other traffic last.
    others_at: Option<Now>,
    /// When a request of it was received last, unless an answer came since.
    asked_at: Option<Instant>,
    /// No step before.
    rests_until: Option<Instant>,
    /// When the pool has last given something back, or begun with something.
    pool_moved: Now,
}

impl Pace {
    /// Notes traffic that is to be served between steps.
    pub(super) fn note_others(&mut self, now: Now) {
        self.others_at = Some(now);
    }

    /// Notes that such a connection has received something from `from`.
    pub(super) fn note_relayed(&mut self, from: Side, now: Now) {
        self.note_others(now);
        self.asked_at = (from == Side::Client).then(Instant::now);
    }

    fn has_others(&self, now: Now) -> bool {
        self.others_at.is_some_and(|at| now.ms_since(at) < OTHERS_MS)
    }

    /// How long the next step has to wait, if it has to.
    pub(super) fn rest(&self) -> Option<Duration> {
        let rests_until = self.rests_until?;
        let answer_due = self.asked_at.map_or(rests_until, |at| at + ANSWER_WAIT);
        // Who asks on and on is not waited for.
        let until = answer_due.clamp(rests_until, rests_until + ANSWERS_MAX);
        until.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero())
    }
}

impl Worker {
    /// Begins the handshake with a client that was accepted.
    pub(super) fn enter(&mut self, key: Key) -> io::Result<()> {
        let now_us = self.now_us;
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        let Some(secured) = relay.service_tls.as_ref().map(Arc::clone) else { return Ok(()) };
        match secured.clients.accept() {
            Ok(connection) => relay.legs.client_tls = Some(Box::new(TlsLeg::new(connection, &self.kept))),
            Err(_) => return self.turn_away(key, Termination::SystemRefused),
        }
        let due = self.now + secured.handshake_timeout_ms;
        relay.entrance = Some(due);
        relay.stopwatch.entered_us = now_us;
        self.wheel.arm(key.index, due);
        self.receive_record(key, Side::Client)
    }

    /// A receive of a leg whose handshake is under way has completed.
    pub(super) fn received_handshake(&mut self, key: Key, from: Side, completion: &Completion) -> io::Result<()> {
        let received = completion.received();
        let Some(leg) = self.relays.get_mut(key).and_then(|relay| relay.legs.tls_mut(from)) else {
            return self.let_go(completion);
        };
        if let Some(buffer) = completion.buffer() {
            if let Received::Bytes(len) = received {
                leg.keep(&self.ring.record_mut(buffer)[FRONT_BYTES as usize..(FRONT_BYTES + len) as usize], self.now);
            }
            self.ring.recycle(buffer);
        }
        if leg.given_up {
            return self.server_given_up(key);
        }
        let kept_max = if leg.greeted { CARRY_BYTES_MAX } else { HELLO_RECEIVED_MAX };
        match received {
            Received::Bytes(_) if leg.kept_bytes() > kept_max => self.shake_failed(key, from, Fault::Protocol),
            Received::Bytes(_) => {
                self.receive_record(key, from)?;
                self.await_turn(key, from)
            }
            Received::NoBuffers => {
                self.starved_records.push_back((key, from));
                Ok(())
            }
            Received::End | Received::Failed | Received::Cancelled => self.peer_left(key, from),
        }
    }

    /// Lets the next step wait for its turn, here or at the pool, if there is something to do it with.
    fn await_turn(&mut self, key: Key, side: Side) -> io::Result<()> {
        let uses_pool = self.uses_pool();
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        let (Some(secured), Some(leg)) = (&relay.service_tls, relay.legs.tls_mut(side)) else { return Ok(()) };
        let Some(handshake) = &leg.handshake else { return Ok(()) };
        // A step with what the last one has left lying would leave it lying again, breath after breath.
        if leg.queued.is_some() || leg.is_sending() || !handshake.connection.has_news(&handshake.input) {
            return Ok(());
        }
        let mut kind = HandshakeKind::Resumed;
        let greets = side == Side::Client && !leg.greeted;
        if (!greets || leg.asked_again) && !has_record(&handshake.input) {
            return Ok(());
        }
        if greets {
            kind = HandshakeKind::Full;
            // The name in a second ClientHello is that of the first (RFC 8446 §4.1.2), and other records may lie in front of it.
            let peeked = if leg.asked_again { Peek::Foreign } else { peek(&handshake.input) };
            match peeked {
                Peek::Incomplete => return Ok(()),
                // rustls has an alert for it.
                Peek::Foreign => {}
                Peek::Hello(hello) => {
                    let name = hello.server_name.as_ref().map(HostName::as_str);
                    if secured.clients.match_sni(name) == SniMatch::Refused {
                        self.tell_last(key, Side::Client, UNKNOWN_NAME_ALERT);
                        return self.turn_away(key, Termination::HandshakeUnknownName);
                    }
                    relay.client_name = name.map(Box::from);
                    if hello.offers_session {
                        kind = HandshakeKind::Resumed;
                    }
                }
            }
            if uses_pool {
                return self.hand_to_pool(key, kind);
            }
        }
        leg.queued = Some(self.now);
        self.wait_for_turn(kind, (key, side));
        Ok(())
    }

    fn wait_for_turn(&mut self, kind: HandshakeKind, waiter: Waiter) {
        let relays = &self.relays;
        self.waiting.push(kind, waiter, |waiter| waits(relays, waiter));
    }

    /// Whether the pool signs. Where it shares our CPU it does only beside other traffic, for that can interrupt it: alone we spare the way there
    /// and back. And not while we leave it no time: then handshakes have their share here.
    fn uses_pool(&self) -> bool {
        let gives_way = self.settings.pool_gives_way;
        self.hatch.is_some() && (!gives_way || (self.pace.has_others(self.now) && !self.pool_is_stalled()))
    }

    /// Hands the step that signs to the pool.
    fn hand_to_pool(&mut self, key: Key, kind: HandshakeKind) -> io::Result<()> {
        let leg = self.relays.get_mut(key).and_then(|relay| relay.legs.tls_mut(Side::Client));
        let (Some(leg), Some(hatch)) = (leg, &mut self.hatch) else { return Ok(()) };
        let Some(Handshake { connection, input, output }) = leg.handshake.take() else { return Ok(()) };
        leg.away_bytes = input.capacity();
        if hatch.outstanding() == 0 {
            self.pace.pool_moved = self.now;
        }
        let work = PooledHandshake { token: Token::Connect(key).pack(), connection, input, output, result: None };
        match hatch.submit(Box::new(work), kind) {
            Ok(errand) => {
                leg.errand = Some(errand);
                Ok(())
            }
            Err(_full) => self.refuse_handshake(key),
        }
    }

    /// Takes back what the pool has done.
    pub(super) fn take_from_pool(&mut self) -> io::Result<()> {
        while let Some(Finished { work, outcome, .. }) = self.hatch.as_mut().and_then(Hatch::take) {
            self.pace.pool_moved = self.now;
            let PooledHandshake { token, connection, mut input, output, result } = *work;
            let Token::Connect(key) = Token::unpack(token) else { continue };
            let leg = self.relays.get_mut(key).and_then(|relay| relay.legs.tls_mut(Side::Client));
            // Its client has gone.
            let Some(leg) = leg else { continue };
            leg.errand = None;
            leg.away_bytes = 0;
            input.append(&mut leg.late);
            leg.handshake = Some(Handshake { connection, input, output });
            leg.note_kept(self.now);
            match (outcome, result) {
                (WorkOutcome::Done, Some(result)) => self.step_done(key, Side::Client, result)?,
                _ => self.refuse_handshake(key)?,
            }
        }
        Ok(())
    }

    /// Does here what a pool that finds no CPU has not begun.
    pub(super) fn reclaim_from_pool(&mut self) -> io::Result<()> {
        if !self.settings.pool_gives_way || !self.pool_is_stalled() {
            return Ok(());
        }
        for _ in 0..RECLAIMED_AT_ONCE_MAX {
            let Some(Reclaimed { work, kind, since }) = self.hatch.as_mut().and_then(Hatch::reclaim) else { break };
            let PooledHandshake { token, connection, mut input, output, .. } = *work;
            let Token::Connect(key) = Token::unpack(token) else { continue };
            let leg = self.relays.get_mut(key).and_then(|relay| relay.legs.tls_mut(Side::Client));
            let Some(leg) = leg else { continue };
            leg.errand = None;
            leg.away_bytes = 0;
            input.append(&mut leg.late);
            leg.handshake = Some(Handshake { connection, input, output });
            leg.note_kept(self.now);
            leg.queued = Some(self.shared.at(since));
            self.wait_for_turn(kind, (key, Side::Client));
        }
        Ok(())
    }

    fn pool_is_stalled(&self) -> bool {
        let is_busy = self.hatch.as_ref().is_some_and(|hatch| hatch.outstanding() > 0);
        is_busy && self.now.ms_since(self.pace.pool_moved) >= POOL_STALLED_MS
    }

    /// A handshake has waited too long, or there is no room for it to wait.
    fn refuse_handshake(&mut self, key: Key) -> io::Result<()> {
        self.tell_last(key, Side::Client, INTERNAL_ERROR_ALERT);
        self.turn_away(key, Termination::HandshakeRefused)
    }

    /// Does one step, if one waits: after what was decided in this breath has left, and what has come meanwhile had its turn. For a signature
    /// takes as long as many requests.
    pub(super) fn shake(&mut self) -> io::Result<()> {
        if !self.may_shake() {
            return Ok(());
        }
        let has_others = self.pace.has_others(self.now);
        if has_others {
            self.ring.enter(Wait::Poll)?;
            if self.pace.gave_way < GIVES_WAY_MAX && self.ring.has_news() {
                self.pace.gave_way += 1;
                return Ok(());
            }
        }
        self.pace.gave_way = 0;
        let start = Instant::now();
        self.shake_one()?;
        let end = Instant::now();
        let rest = (end - start).min(STEP_MAX) * REST_PER_STEP;
        self.pace.rests_until = has_others.then_some(end + rest);
        Ok(())
    }

    /// Whether a step waits that may be done now.
    pub(super) fn may_shake(&self) -> bool {
        !self.waiting.is_empty() && self.pace.rest().is_none()
    }

    /// Does the next step of one handshake.
    fn shake_one(&mut self) -> io::Result<()> {
        for _ in 0..REFUSED_AT_ONCE_MAX {
            let relays = &self.relays;
            let Some((key, side)) = self.waiting.pop(|waiter| waits(relays, waiter)) else { return Ok(()) };
            let Some(leg) = self.relays.get_mut(key).and_then(|relay| relay.legs.tls_mut(side)) else {
                continue;
            };
            let (Some(since), Some(handshake)) = (leg.queued.take(), &mut leg.handshake) else { continue };
            if side == Side::Client && !leg.greeted && self.now.ms_since(since) > self.settings.queue_deadline_ms {
                self.refuse_handshake(key)?;
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
        if let Some(leg) = self.relays.get_mut(key).and_then(|relay| relay.legs.tls_mut(side)) {
            leg.done = step == Step::Complete;
            leg.kept.renew(self.now);
            leg.note_kept(self.now);
            let flight = leg.handshake.as_ref().filter(|handshake| !handshake.output.is_empty());
            let asks_again = |handshake: &Handshake| !leg.asked_again && handshake.connection.has_asked_again();
            match flight.filter(|_| !leg.greeted).map(asks_again) {
                None => {}
                Some(true) => leg.asked_again = true,
                Some(false) => leg.greeted = true,
            }
        }
        match self.send_flight(key, side)? {
            Flight::Sent => self.flight_sent(key, side, true),
            Flight::OnItsWay => Ok(()),
            Flight::Failed => self.peer_left(key, side),
        }
    }

    /// A flight has left, `whole` or not.
    pub(super) fn flight_sent(&mut self, key: Key, side: Side, whole: bool) -> io::Result<()> {
        let Some(leg) = self.relays.get_mut(key).and_then(|relay| relay.legs.tls_mut(side)) else {
            return Ok(());
        };
        if leg.given_up {
            return self.server_given_up(key);
        }
        match (whole, leg.done) {
            (false, _) => self.peer_left(key, side),
            (true, false) => self.await_turn(key, side),
            (true, true) => self.shaken(key, side),
        }
    }

    /// The handshake is over.
    fn shaken(&mut self, key: Key, side: Side) -> io::Result<()> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        let (Some(secured), Some(leg)) = (&relay.service_tls, relay.legs.tls_mut(side)) else { return Ok(()) };
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
        let took_us = self.now_us.saturating_sub(relay.stopwatch.entered_us);
        self.shared.seat(self.id).service_page(service.id).measure(Latency::Handshake, took_us);
        self.shared.handshakes().leave();
        self.begin(key)
    }

    /// A handshake has failed: its alert leaves first.
    fn shake_failed(&mut self, key: Key, side: Side, fault: Fault) -> io::Result<()> {
        let leg = self.relays.get_mut(key).and_then(|relay| relay.legs.tls_mut(side));
        let alert = match leg.map(|leg| &mut leg.handshake) {
            Some(Some(handshake)) => std::mem::take(&mut handshake.output),
            // The pool has it, with a ClientHello: nothing is encrypted yet.
            Some(None) => INTERNAL_ERROR_ALERT.to_vec(),
            None => Vec::new(),
        };
        self.tell_last(key, side, &alert);
        match side {
            Side::Client => self.turn_away(key, termination_of(fault)),
            Side::Server => self.give_up_server(key),
        }
    }

    fn peer_left(&mut self, key: Key, side: Side) -> io::Result<()> {
        match side {
            Side::Client => self.turn_away(key, Termination::HandshakeLeft),
            Side::Server => self.give_up_server(key),
        }
    }

    /// Sends the last alert of a handshake, as far as the kernel takes it. The leg is closed next.
    fn tell_last(&self, key: Key, side: Side, alert: &[u8]) {
        let Some(leg) = self.relays.get(key).and_then(|relay| relay.leg(side)) else { return };
        if !alert.is_empty() {
            let _ = socket::send_now(leg, alert, Behind::More);
            let _ = socket::shutdown_write(leg);
            let _ = socket::discard_unread(leg);
        }
    }

    /// Ends a connection at the entrance.
    pub(super) fn turn_away(&mut self, key: Key, termination: Termination) -> io::Result<()> {
        self.wheel.disarm(key.index);
        let Some(relay) = self.relays.remove(key) else { return Ok(()) };
        self.shared.seat(self.id).service_page(relay.service().id).count_end(termination);
        self.log_connection(&relay, termination, Phase::Request);
        if let Some(errand) = relay.legs.tls(Side::Client).and_then(|leg| leg.errand.as_ref()) {
            errand.abandon();
        }
        let client = relay.into_client();
        let silent = matches!(
            termination,
            Termination::HandshakeLeft
                | Termination::HandshakeTimedOut
                | Termination::DrainEnded
                | Termination::OutOfTlsMemory
                | Termination::ProxyInvalid
                | Termination::ProxyTimedOut
        );
        if let Some(client) = client {
            if silent {
                // Nothing is on its way that a reset could take back.
                let _ = socket::set_linger_reset(&client);
            }
            self.drop_leg(client)?;
        }
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
        let client = relay.legs.tls(Side::Client).and_then(|leg| leg.handshake.as_ref());
        let alpn = client.and_then(|handshake| handshake.connection.alpn());
        let connection = context.connect(relay.client_name.as_deref(), alpn, relay.destination().ip());
        let Ok(connection) = connection else {
            self.give_up_server(key)?;
            return Ok(true);
        };
        let mut leg = Box::new(TlsLeg::new(connection, &self.kept));
        leg.queued = Some(self.now);
        if let Some(connection) = relay.legs.server.connection_mut() {
            connection.tls = Some(leg);
        }
        self.wait_for_turn(HandshakeKind::Resumed, (key, Side::Server));
        self.receive_record(key, Side::Server)?;
        Ok(true)
    }

    /// Gives up the handshake with a real server: once nothing is in flight on its leg, the session hears that the connect has failed.
    pub(super) fn give_up_server(&mut self, key: Key) -> io::Result<()> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        relay.server_handshake_failed = true;
        // Once, and not where it is given up because the client has left or the worker stops.
        let given_up = relay.legs.tls(Side::Server).is_some_and(|leg| leg.given_up);
        if !given_up && !relay.is_ending() {
            self.shared.seat(self.id).service_page(relay.service().id).add(ServiceCounter::ServerHandshakesFailed, 1);
        }
        if let Some(leg) = relay.legs.tls_mut(Side::Server) {
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
        if relay.legs.tls(Side::Server).is_some_and(|leg| leg.armed || leg.is_sending()) {
            return Ok(());
        }
        if let Some(connection) = relay.legs.server.connection_mut() {
            connection.tls = None;
        }
        self.drive(key, Event::ConnectFailed)
    }

    /// Handshakes that waited for a buffer.
    pub(super) fn feed_starved_records(&mut self) -> io::Result<()> {
        let fed = self.starved_records.len().min(self.ring.records_free()).min(super::FED_MAX);
        for _ in 0..fed {
            let Some((key, from)) = self.starved_records.pop_front() else { break };
            let Some(relay) = self.relays.get(key) else { continue };
            if relay.legs.tls(from).is_some_and(|leg| leg.shaking) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn waiter(index: u32) -> Waiter {
        (Key { index, generation: 0 }, Side::Client)
    }

    #[test]
    fn quick_steps_pass_full_ones_but_not_for_ever() {
        let mut waiting = Waiting::default();
        waiting.push(HandshakeKind::Full, waiter(1_000), |_| true);
        for index in 0..2 * QUICK_IN_A_ROW {
            waiting.push(HandshakeKind::Resumed, waiter(index), |_| true);
        }
        let order: Vec<u32> = std::iter::from_fn(|| waiting.pop(|_| true)).map(|(key, _)| key.index).collect();
        assert_eq!(order.iter().position(|index| *index == 1_000), Some(QUICK_IN_A_ROW as usize));
        assert!(waiting.is_empty() && order.len() == 1 + 2 * QUICK_IN_A_ROW as usize);
    }

    #[test]
    fn who_has_gone_takes_no_turn_of_full_handshakes() {
        let mut waiting = Waiting::default();
        for index in 0..100 {
            waiting.push(HandshakeKind::Full, waiter(index), |_| true);
        }
        waiting.push(HandshakeKind::Full, waiter(1_000), |_| true);
        for index in 0..QUICK_IN_A_ROW + 1 {
            waiting.push(HandshakeKind::Resumed, waiter(2_000 + index), |_| true);
        }
        let waits = |(key, _): Waiter| key.index >= 1_000;
        let order: Vec<u32> = std::iter::from_fn(|| waiting.pop(waits)).map(|(key, _)| key.index).collect();
        assert_eq!(order.iter().position(|index| *index == 1_000), Some(QUICK_IN_A_ROW as usize));
        assert_eq!(order.len(), 2 + QUICK_IN_A_ROW as usize);
    }

    #[test]
    fn places_of_those_that_have_gone_are_bounded() {
        let (mut waiting, waiting_count) = (Waiting::default(), 3_000);
        for index in 0..100 * waiting_count {
            // Those of the first 3,000 wait, all others have gone at once.
            waiting.push(HandshakeKind::Full, waiter(index), |(key, _)| key.index < waiting_count);
        }
        assert!(waiting.full.len() <= 2 * waiting_count as usize + SWEPT_FROM, "{}", waiting.full.len());
        let live = std::iter::from_fn(|| waiting.pop(|(key, _)| key.index < waiting_count)).count();
        assert_eq!(live, waiting_count as usize);
    }
}
