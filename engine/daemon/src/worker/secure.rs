//! Legs with TLS, below the session: it sees plaintext and orderly ends, here are records, alerts and `close_notify`.
//!
//! Records are received into a large buffer, opened where they lie and handed on in the same buffer; plaintext is sealed into a buffer of its own,
//! which is held until it is sent. So an idle leg holds no buffer. A session with such a leg is never pumped, and both of its legs receive into
//! large buffers.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;

use towpath_core::Now;
use towpath_core::counters::ServiceCounter;
use towpath_core::session::{Chunk, Event, ReceiveEnd, Side};
use towpath_sys::ring::{BufferRange, Completion, Received, RecordSettings};
use towpath_sys::socket::{self, Behind};
use towpath_tls::{CLOSE_BYTES_MAX, Connection, Errand, Fault, Handshake, RECORD_BYTES_MAX, sealed_bytes_max};

use super::pressure::{Kept, KeptBytes, SendWatch};
use super::relay::{Close, Relay};
use super::token::{Key, Token};
use super::{FED_MAX, Worker};

/// Bytes that one receive may bring: a few records at a time cost less than one by one.
pub(super) const RECEIVED_MAX: u32 = 131_072;
/// Room in front of them: for a part of a record that came before, and for its plaintext in front of that.
pub(super) const FRONT_BYTES: u32 = (2 * RECORD_BYTES_MAX) as u32;
/// Plaintext sealed for one send.
const SEALED_AT_ONCE: u32 = 131_072;
/// Ciphertext kept that is not opened yet: what one receive brings behind a part of a record.
pub(super) const CARRY_BYTES_MAX: usize = RECORD_BYTES_MAX + RECEIVED_MAX as usize;
/// How long the end of a stream may wait until a peer that reads slowly has room for its `close_notify`.
const CLOSE_MS: u64 = 10_000;

/// The buffers of one worker for connections with TLS.
pub(super) fn record_settings(count: u16) -> RecordSettings {
    RecordSettings {
        count,
        receive_bytes: FRONT_BYTES + RECEIVED_MAX,
        front_bytes: FRONT_BYTES,
        send_bytes: sealed_bytes_max(SEALED_AT_ONCE as usize) as u32 + CLOSE_BYTES_MAX as u32,
    }
}

/// Bytes of one buffer to receive into and one to send from.
pub(crate) const RECORD_BUFFER_BYTES: u64 =
    FRONT_BYTES as u64 + RECEIVED_MAX as u64 + (sealed_bytes_max(SEALED_AT_ONCE as usize) + CLOSE_BYTES_MAX) as u64;

/// TLS on one leg of a relay.
pub(super) struct TlsLeg {
    /// The connection, with what was received and not opened (`input`), and what is to leave of a handshake (`output`). Away while a step
    /// of its handshake is done elsewhere.
    pub(super) handshake: Option<Handshake>,
    /// Its handshake is not over.
    pub(super) shaking: bool,
    /// … but for the flight that is on its way.
    pub(super) done: bool,
    /// The first flight of its handshake was made: with a client, the one that is signed.
    pub(super) greeted: bool,
    /// The client was asked for another ClientHello; that flight follows.
    pub(super) asked_again: bool,
    /// Its step is done by the pool.
    pub(super) errand: Option<Errand>,
    /// Bytes that are away with it.
    pub(super) away_bytes: usize,
    /// What was received meanwhile.
    pub(super) late: Vec<u8>,
    /// How much of all that there is.
    pub(super) kept: Kept,
    /// Since when its next step waits for its turn.
    pub(super) queued: Option<Now>,
    /// It is given up as soon as nothing is in flight (towards a real server).
    pub(super) given_up: bool,
    /// A receive is in flight.
    pub(super) armed: bool,
    /// … and was asked to stop.
    pub(super) cancelling: bool,
    /// What is being sent.
    sending: Option<Sealed>,
    /// Our `close_notify` has left.
    notified: bool,
    /// … and plaintext has come since.
    heard_since: bool,
    /// A part of a record was sent and the rest was not, or the connection has failed: nothing may follow.
    broken: bool,
}

/// A send of an outgoing buffer.
#[derive(Clone, Copy, Debug)]
struct Sealed {
    what: What,
    /// Bytes on the wire.
    bytes: u32,
}

#[derive(Clone, Copy, Debug)]
enum What {
    /// Our `close_notify`; the end of the stream follows.
    End,
    /// A flight of the handshake.
    Flight,
    /// So many bytes of plaintext.
    Plain(u32),
}

/// Which leg an outgoing buffer is sent by.
pub(super) type Senders = Box<[Option<(Key, Side)>]>;

impl TlsLeg {
    pub(super) fn new(connection: Connection, kept: &KeptBytes) -> TlsLeg {
        TlsLeg {
            handshake: Some(Handshake::new(connection)),
            shaking: true,
            done: false,
            greeted: false,
            asked_again: false,
            errand: None,
            away_bytes: 0,
            late: Vec::new(),
            kept: Kept::nothing(kept),
            queued: None,
            given_up: false,
            armed: false,
            cancelling: false,
            sending: None,
            notified: false,
            heard_since: false,
            broken: false,
        }
    }

    /// Keeps what was received of a handshake.
    pub(super) fn keep(&mut self, bytes: &[u8], now: Now) {
        let kept = self.handshake.as_mut().map_or(&mut self.late, |handshake| &mut handshake.input);
        kept.extend_from_slice(bytes);
        self.note_kept(now);
    }

    /// Notes how much is kept.
    pub(super) fn note_kept(&mut self, now: Now) {
        let bytes = match &self.handshake {
            Some(Handshake { connection, input, .. }) => input.capacity() + connection.early_bytes(),
            None => self.away_bytes + self.late.capacity(),
        };
        self.kept.note(bytes, now);
    }

    /// Gives up what is kept: the connection ends.
    pub(super) fn forget_kept(&mut self) {
        self.late = Vec::new();
        if let Some(handshake) = &mut self.handshake {
            handshake.input = Vec::new();
            handshake.connection.give_up();
        }
        self.broken = true;
        self.kept.note(0, Now::default());
    }

    /// Bytes of a handshake that are kept.
    pub(super) fn kept_bytes(&self) -> usize {
        self.handshake.as_ref().map_or(self.away_bytes + self.late.len(), |handshake| handshake.input.len())
    }

    /// Whether a send is in flight.
    pub(super) fn is_sending(&self) -> bool {
        self.sending.is_some()
    }

    /// Whether the stream that is received may end here. A peer that has our `close_notify` and nothing more to say need not answer with its
    /// own, as many do not (RFC 5246 §7.2.1); one that goes on has to end what it says (RFC 8446 §6.1).
    fn may_end(&self) -> bool {
        let Some(Handshake { connection, input, .. }) = &self.handshake else { return false };
        connection.is_closed() || (self.notified && !self.heard_since && input.is_empty())
    }

    /// Whether it may serve another client: its handshake is over, nothing is in flight, and nothing that has come is left.
    pub(super) fn is_calm(&self) -> bool {
        let Some(Handshake { connection, input, output }) = &self.handshake else { return false };
        let is_quiet = !self.shaking && !self.armed && self.sending.is_none() && self.queued.is_none();
        let is_open = !self.notified && !self.broken && !self.given_up && !connection.is_closed();
        let is_drained = input.is_empty() && output.is_empty() && self.late.is_empty() && !connection.has_early();
        is_quiet && is_open && is_drained && !connection.has_fault() && !connection.has_reply()
    }

    /// Sends our `close_notify`, as far as the kernel takes it: nothing is in flight, and the leg is closed next.
    pub(super) fn say_goodbye(&mut self, socket: &TcpStream) {
        let mut end = [0; CLOSE_BYTES_MAX];
        if let Some(Ok(length)) = self.close_notify(&mut end) {
            let _ = socket::send_now(socket, &end[..length], Behind::More);
        }
    }

    /// Our `close_notify`, if it may still be sent.
    fn close_notify(&mut self, out: &mut [u8]) -> Option<Result<usize, Fault>> {
        if self.notified || self.broken || self.shaking || self.sending.is_some() {
            return None;
        }
        let Handshake { connection, input, .. } = self.handshake.as_mut()?;
        Some(connection.close_notify(input, out))
    }
}

/// Whether it begins with a whole record, or with what can be none: then rustls has an alert for it.
pub(super) fn has_record(bytes: &[u8]) -> bool {
    let [kind, major, _, high, low, rest @ ..] = bytes else { return false };
    let len = usize::from(u16::from_be_bytes([*high, *low]));
    // RFC 8446 §5.1: change_cipher_spec to application_data, and heartbeat (RFC 6520).
    let is_header = (20..=24).contains(kind) && *major == 3 && len <= RECORD_BYTES_MAX;
    !is_header || rest.len() >= len
}

impl Worker {
    /// A receive of a connection with TLS has completed: by the leg with TLS, or by the plain one beside it.
    pub(super) fn received_record(&mut self, key: Key, from: Side, completion: &Completion) -> io::Result<()> {
        let Some(relay) = self.relays.get_mut(key) else { return self.let_go(completion) };
        let Some(leg) = relay.legs.tls_mut(from) else { return self.received_beside(key, from, completion) };
        leg.armed = false;
        if leg.shaking {
            return self.received_handshake(key, from, completion);
        }
        let end = match completion.received() {
            Received::Bytes(len) => {
                let buffer = completion.buffer().expect("bytes of a stream arrive in a buffer");
                return self.open_records(key, from, buffer, len);
            }
            Received::Cancelled => ReceiveEnd::Cancelled,
            Received::End if leg.may_end() => ReceiveEnd::Fin,
            Received::End => ReceiveEnd::Truncated,
            Received::Failed => ReceiveEnd::Failed,
            Received::NoBuffers => ReceiveEnd::NoBuffers,
        };
        leg.cancelling = false;
        self.let_go(completion)?;
        self.drive(key, Event::ReceiveEnded { from, end })
    }

    /// The same of the plain leg.
    fn received_beside(&mut self, key: Key, from: Side, completion: &Completion) -> io::Result<()> {
        let end = match completion.received() {
            Received::Bytes(len) => {
                let buffer = completion.buffer().expect("bytes of a stream arrive in a buffer");
                // An end that has come already leaves with these bytes.
                let leg = self.relays.get(key).and_then(|relay| relay.leg(from)).filter(|_| completion.more_waits());
                let last = leg.is_some_and(|leg| matches!(socket::peek(leg, &mut [0]), Ok(0)));
                return self.drive(key, Event::Received { from, buffer, len, full: false, more: false, last });
            }
            Received::Cancelled => ReceiveEnd::Cancelled,
            Received::End => ReceiveEnd::Fin,
            Received::Failed => ReceiveEnd::Failed,
            Received::NoBuffers => ReceiveEnd::NoBuffers,
        };
        self.let_go(completion)?;
        self.drive(key, Event::ReceiveEnded { from, end })
    }

    pub(super) fn let_go(&mut self, completion: &Completion) -> io::Result<()> {
        if let Some(buffer) = completion.buffer() {
            self.ring.recycle(buffer);
        }
        Ok(())
    }

    /// Opens what a receive has brought and hands it on.
    fn open_records(&mut self, key: Key, from: Side, buffer: u16, len: u32) -> io::Result<()> {
        let Some(leg) = self.relays.get_mut(key).and_then(|relay| relay.legs.tls_mut(from)) else {
            self.ring.recycle(buffer);
            return Ok(());
        };
        let Some(Handshake { connection, input, .. }) = &mut leg.handshake else {
            self.ring.recycle(buffer);
            return Ok(());
        };
        let bytes = self.ring.record_mut(buffer);
        let (front, end) = (FRONT_BYTES as usize, (FRONT_BYTES + len) as usize);
        if connection.has_early() || input.len() > RECORD_BYTES_MAX {
            // The session has had no buffer for what came before: it gets that first.
            input.extend_from_slice(&bytes[front..end]);
            leg.note_kept(self.now);
            self.ring.recycle(buffer);
            return self.hand_on_carried(key, from);
        }
        let start = front - input.len();
        bytes[start..front].copy_from_slice(input);
        *input = Vec::new();
        let opened = connection.open(bytes, start..end);
        if let Ok(opened) = &opened {
            *input = bytes[opened.rest.clone()].to_vec();
            if opened.plain > 0 {
                leg.kept.renew(self.now);
            }
        }
        leg.note_kept(self.now);
        self.hand_on(key, from, buffer, opened.map(|opened| (opened.plain as u32, opened.closed)))
    }

    /// Hands plaintext at the start of a held buffer on to the session, which waits for it.
    fn hand_on(&mut self, key: Key, from: Side, buffer: u16, opened: Result<(u32, bool), Fault>) -> io::Result<()> {
        let Ok((len, last)) = opened else {
            self.ring.recycle(buffer);
            return self.records_broken(key, from);
        };
        self.flush_reply(key, from)?;
        let Some(leg) = self.relays.get_mut(key).and_then(|relay| relay.legs.tls_mut(from)) else {
            self.ring.recycle(buffer);
            return Ok(());
        };
        if len > 0 {
            leg.heard_since |= leg.notified;
            leg.cancelling = false;
            return self.drive(key, Event::Received { from, buffer, len, full: false, more: false, last });
        }
        self.ring.recycle(buffer);
        let end = match (last, leg.cancelling) {
            (true, _) => ReceiveEnd::Fin,
            (false, true) => ReceiveEnd::Cancelled,
            (false, false) => return self.receive_record(key, from),
        };
        leg.cancelling = false;
        self.drive(key, Event::ReceiveEnded { from, end })
    }

    /// Hands on what came before the session asked for it: behind the handshake, or while there was no buffer.
    fn hand_on_carried(&mut self, key: Key, from: Side) -> io::Result<()> {
        let buffer = self.ring.lease_record();
        let Some(leg) = self.relays.get_mut(key).and_then(|relay| relay.legs.tls_mut(from)) else {
            if let Some(buffer) = buffer {
                self.ring.recycle(buffer);
            }
            return Ok(());
        };
        let (Some(buffer), Some(Handshake { connection, input, .. })) = (buffer, &mut leg.handshake) else {
            return self.drive(key, Event::ReceiveEnded { from, end: ReceiveEnd::NoBuffers });
        };
        let bytes = self.ring.record_mut(buffer);
        let opened = if connection.has_early() {
            let (early, closed) = connection.take_early();
            match bytes.get_mut(..early.len()) {
                Some(room) => {
                    room.copy_from_slice(&early);
                    Ok((early.len() as u32, closed))
                }
                None => Err(Fault::Internal),
            }
        } else {
            let (start, end) = (RECORD_BYTES_MAX, RECORD_BYTES_MAX + input.len());
            let carried = std::mem::take(input);
            match bytes.get_mut(start..end) {
                Some(room) => {
                    room.copy_from_slice(&carried);
                    connection.open(bytes, start..end).map(|opened| {
                        *input = bytes[opened.rest.clone()].to_vec();
                        (opened.plain as u32, opened.closed)
                    })
                }
                None => Err(Fault::Internal),
            }
        };
        leg.kept.renew(self.now);
        leg.note_kept(self.now);
        self.hand_on(key, from, buffer, opened)
    }

    /// The session wants what `from` sends: what is here already, or a receive.
    pub(super) fn receive_record(&mut self, key: Key, from: Side) -> io::Result<()> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        if let Some(leg) = relay.legs.tls_mut(from) {
            let carried = leg.handshake.as_ref().is_some_and(|Handshake { connection, input, .. }| {
                connection.has_early() || connection.has_fault() || (connection.has_news(input) && has_record(input))
            });
            if !leg.shaking && carried {
                return self.hand_on_carried(key, from);
            }
            if leg.armed {
                return Ok(());
            }
            leg.armed = true;
            leg.cancelling = false;
        }
        let Some(socket) = relay.leg(from) else { return Ok(()) };
        self.ring.receive_records(socket.as_fd(), Token::Receive(key, from).pack())
    }

    /// A record was damaged or against the rules: the alert leaves, and everything ends once what came before is delivered.
    fn records_broken(&mut self, key: Key, from: Side) -> io::Result<()> {
        self.end_sealing(key, from)?;
        let leg = self.relays.get_mut(key).and_then(|relay| relay.legs.tls_mut(from));
        if let Some(handshake) = leg.and_then(|leg| leg.handshake.as_mut()) {
            handshake.connection.give_up();
        }
        self.drive(key, Event::ReceiveEnded { from, end: ReceiveEnd::Damaged })
    }

    /// Sends what TLS itself has to say, unless a record is on its way; then it goes with the next.
    fn flush_reply(&mut self, key: Key, side: Side) -> io::Result<()> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        let Some(leg) = relay.legs.tls_mut(side).filter(|leg| leg.sending.is_none() && !leg.broken) else {
            return Ok(());
        };
        let Some(Handshake { connection, .. }) = &mut leg.handshake else { return Ok(()) };
        if !connection.has_reply() {
            return Ok(());
        }
        let reply = connection.take_reply();
        let sent = relay.leg(side).map(|socket| socket::send_now(socket, &reply, Behind::Nothing));
        // A peer that does not take a few bytes has not read for long.
        if !matches!(sent, Some(Ok(bytes)) if bytes == reply.len())
            && let Some(leg) = relay.legs.tls_mut(side)
        {
            leg.broken = true;
        }
        Ok(())
    }

    /// Seals a chunk and sends it, or lets it wait for a buffer to seal it into.
    pub(super) fn send_sealed(&mut self, key: Key, to: Side, chunk: Chunk, last: bool) -> io::Result<()> {
        let Some(outgoing) = self.ring.outgoing_buffers().and_then(towpath_sys::ring::Buffers::lease) else {
            let Some(relay) = self.relays.get(key) else { return Ok(()) };
            self.shared.seat(self.id).service_page(relay.service().id).add(ServiceCounter::BufferWaited, 1);
            self.unsealed.push_back((key, to, chunk, last));
            return Ok(());
        };
        let Some(relay) = self.relays.get_mut(key) else { return self.free_outgoing(outgoing) };
        let source = relay.chunk_range(to.other(), chunk);
        let range = BufferRange { len: source.len.min(SEALED_AT_ONCE), ..source };
        let Some(leg) = relay.legs.tls_mut(to) else { return self.free_outgoing(outgoing) };
        let sealed = match &mut leg.handshake {
            Some(Handshake { connection, input, .. }) if !leg.broken => {
                let (plain, room) = self.ring.source_and_outgoing(range, outgoing);
                connection.seal(input, plain, room).and_then(|written| {
                    if !last || range.len < chunk.len {
                        return Ok(written);
                    }
                    // The end leaves with the last bytes.
                    leg.notified = true;
                    Ok(written + connection.close_notify(input, &mut room[written..])?)
                })
            }
            _ => Err(Fault::Internal),
        };
        let Ok(bytes) = sealed.map(|bytes| bytes as u32) else {
            self.free_outgoing(outgoing)?;
            self.end_sealing(key, to)?;
            return self.drive(key, Event::SendFailed { to });
        };
        leg.note_kept(self.now);
        leg.sending = Some(Sealed { what: What::Plain(range.len), bytes });
        relay.sends[to.index()] = Some(SendWatch::default());
        let is_end = leg.notified;
        self.send_outgoing(key, to, outgoing, bytes, if is_end { Behind::More } else { Behind::Nothing })
    }

    /// Sends bytes of ours by a leg, plain or sealed: as many as one outgoing buffer takes.
    pub(super) fn send_own(&mut self, key: Key, to: Side, bytes: &[u8], behind: Behind) -> io::Result<Own> {
        let Some(buffers) = self.ring.outgoing_buffers() else { return Ok(Own::Failed) };
        let Some(outgoing) = buffers.lease() else { return Ok(Own::NoBuffer) };
        let room = buffers.bytes_mut(outgoing, 0, buffers.buffer_bytes());
        let Some(relay) = self.relays.get_mut(key) else {
            self.free_outgoing(outgoing)?;
            return Ok(Own::Failed);
        };
        let Some(leg) = relay.legs.tls_mut(to) else {
            let taken = bytes.len().min(room.len());
            room[..taken].copy_from_slice(&bytes[..taken]);
            relay.sends[to.index()] = Some(SendWatch::default());
            self.send_outgoing(key, to, outgoing, taken as u32, behind)?;
            return Ok(Own::OnItsWay(taken as u32));
        };
        let plain = &bytes[..bytes.len().min(SEALED_AT_ONCE as usize)];
        let sealed = match &mut leg.handshake {
            Some(Handshake { connection, input, .. }) if !leg.broken => connection.seal(input, plain, room),
            _ => Err(Fault::Internal),
        };
        let Ok(bytes) = sealed.map(|bytes| bytes as u32) else {
            self.free_outgoing(outgoing)?;
            self.end_sealing(key, to)?;
            return Ok(Own::Failed);
        };
        leg.note_kept(self.now);
        leg.sending = Some(Sealed { what: What::Plain(plain.len() as u32), bytes });
        relay.sends[to.index()] = Some(SendWatch::default());
        self.send_outgoing(key, to, outgoing, bytes, behind)?;
        Ok(Own::OnItsWay(plain.len() as u32))
    }

    /// Nothing is sealed any more: a record was damaged or against the rules. The alert leaves.
    fn end_sealing(&mut self, key: Key, side: Side) -> io::Result<()> {
        self.flush_reply(key, side)?;
        if let Some(leg) = self.relays.get_mut(key).and_then(|relay| relay.legs.tls_mut(side)) {
            leg.broken = true;
        }
        Ok(())
    }

    fn free_outgoing(&mut self, outgoing: u16) -> io::Result<()> {
        if let Some(buffers) = self.ring.outgoing_buffers() {
            buffers.recycle(outgoing);
        }
        Ok(())
    }

    fn send_outgoing(&mut self, key: Key, to: Side, outgoing: u16, bytes: u32, behind: Behind) -> io::Result<()> {
        let Some(socket) = self.relays.get(key).and_then(|relay| relay.leg(to)) else {
            return self.free_outgoing(outgoing);
        };
        self.senders[usize::from(outgoing)] = Some((key, to));
        let token = Token::Sealed(outgoing).pack();
        match behind {
            Behind::More => self.ring.send_outgoing_before(socket.as_fd(), outgoing, bytes, token),
            Behind::Nothing => self.ring.send_outgoing(socket.as_fd(), outgoing, bytes, token),
        }
    }

    /// An outgoing buffer was sent, or was not.
    pub(super) fn sealed_sent(&mut self, outgoing: u16, result: i32) -> io::Result<()> {
        self.free_outgoing(outgoing)?;
        let Some((key, to)) = self.senders[usize::from(outgoing)].take() else { return Ok(()) };
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        relay.sends[to.index()] = None;
        let Some(leg) = relay.legs.tls_mut(to) else { return self.sent(key, to, result) };
        let Some(Sealed { what, bytes }) = leg.sending.take() else { return Ok(()) };
        let whole = u32::try_from(result) == Ok(bytes);
        leg.broken |= !whole;
        match what {
            What::End => {
                leg.notified |= whole;
                self.end_sent(key, to)
            }
            What::Flight => self.flight_sent(key, to, whole),
            What::Plain(_) if !whole => self.drive(key, Event::SendFailed { to }),
            What::Plain(plain) => {
                self.count_bytes(key, to, u64::from(plain));
                self.drive(key, Event::Sent { to, bytes: plain })?;
                self.flush_reply(key, to)
            }
        }
    }

    /// Sends a flight of the handshake: at once as far as the kernel takes it, the rest from a buffer. Says whether all has left.
    pub(super) fn send_flight(&mut self, key: Key, to: Side) -> io::Result<Flight> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(Flight::Failed) };
        let Some(leg) = relay.legs.tls_mut(to) else { return Ok(Flight::Failed) };
        let output = leg.handshake.as_mut().map(|handshake| std::mem::take(&mut handshake.output)).unwrap_or_default();
        if output.is_empty() {
            return Ok(Flight::Sent);
        }
        let Some(socket) = relay.leg(to) else { return Ok(Flight::Failed) };
        let sent = match socket::send_now(socket, &output, Behind::Nothing) {
            Ok(sent) if sent == output.len() => return Ok(Flight::Sent),
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => return Ok(Flight::Failed),
        };
        let rest = &output[sent..];
        let lent = self.ring.outgoing_buffers().and_then(|buffers| {
            let fits = rest.len() <= buffers.buffer_bytes() as usize;
            let outgoing = buffers.lease().filter(|_| fits)?;
            buffers.write(outgoing, 0, rest);
            Some(outgoing)
        });
        let (Some(outgoing), bytes) = (lent, rest.len() as u32) else { return Ok(Flight::Failed) };
        if let Some(leg) = self.relays.get_mut(key).and_then(|relay| relay.legs.tls_mut(to)) {
            leg.sending = Some(Sealed { what: What::Flight, bytes });
        }
        self.send_outgoing(key, to, outgoing, bytes, Behind::Nothing)?;
        Ok(Flight::OnItsWay)
    }

    /// Ends our direction of a leg with TLS: `close_notify`, then FIN.
    pub(super) fn finish_secured(&mut self, key: Key, side: Side) -> io::Result<()> {
        if self.send_end(key, side)? {
            return Ok(());
        }
        // Fails only when the leg is gone already, and then its receive says so.
        if let Some(socket) = self.relays.get(key).and_then(|relay| relay.leg(side)) {
            let _ = socket::shutdown_write(socket);
        }
        Ok(())
    }

    /// Sends our `close_notify`, if it is still to be sent; says whether it is on its way, and the end of the stream with it.
    fn send_end(&mut self, key: Key, side: Side) -> io::Result<bool> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(false) };
        let Some(leg) = relay.legs.tls_mut(side) else { return Ok(false) };
        if matches!(leg.sending, Some(Sealed { what: What::End, .. })) {
            return Ok(true);
        }
        let mut end = [0; CLOSE_BYTES_MAX];
        let length = match leg.close_notify(&mut end) {
            Some(Ok(length)) => length,
            Some(Err(_)) => return self.end_sealing(key, side).map(|()| false),
            None => return Ok(false),
        };
        let end = &end[..length];
        let Some(socket) = relay.leg(side) else { return Ok(false) };
        let sent = match socket::send_now(socket, end, Behind::More) {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            // It is gone.
            Err(_) => length,
        };
        let lent = (sent < length).then(|| {
            let buffers = self.ring.outgoing_buffers()?;
            let outgoing = buffers.lease()?;
            buffers.write(outgoing, 0, &end[sent..]);
            Some(outgoing)
        });
        let Some(leg) = self.relays.get_mut(key).and_then(|relay| relay.legs.tls_mut(side)) else {
            return Ok(false);
        };
        match lent {
            None => {
                leg.notified = true;
                Ok(false)
            }
            // Without a buffer the peer sees a stream that is cut off.
            Some(None) => {
                leg.broken = true;
                Ok(false)
            }
            Some(Some(outgoing)) => {
                let bytes = (length - sent) as u32;
                leg.sending = Some(Sealed { what: What::End, bytes });
                self.send_outgoing(key, side, outgoing, bytes, Behind::More)?;
                Ok(true)
            }
        }
    }

    fn end_sent(&mut self, key: Key, side: Side) -> io::Result<()> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        if let Some(socket) = relay.leg(side) {
            let _ = socket::shutdown_write(socket);
        }
        match relay.closing {
            Some(close) if !relay.is_ending_legs() => self.close_relay(key, close),
            // A server that is left may be closed now.
            None if relay.http.is_some() => self.advance(key),
            _ => Ok(()),
        }
    }

    /// Ends the legs with TLS before a relay is closed; says whether that takes longer, and the close has to wait.
    pub(super) fn end_legs(&mut self, key: Key, close: Close) -> io::Result<bool> {
        let mut waits = false;
        // Of a stream that ends by our own decision nobody knows whether it was whole.
        if close.is_orderly() {
            for side in Side::BOTH {
                waits |= self.send_end(key, side)?;
            }
        }
        if !waits {
            return Ok(false);
        }
        let due = self.now + CLOSE_MS;
        if let Some(relay) = self.relays.get_mut(key) {
            relay.closing = Some(close);
            self.wheel.arm(key.index, due);
        }
        Ok(true)
    }

    /// What waited for a buffer to be sealed into.
    pub(super) fn seal_waiting(&mut self) -> io::Result<()> {
        let mut waiting = Vec::new();
        for _ in 0..self.unsealed.len().min(FED_MAX) {
            let Some((key, to, chunk, last)) = self.unsealed.pop_front() else { break };
            match self.relays.get(key).map(Relay::is_given_up) {
                None => {}
                Some(true) => self.drive(key, Event::SendFailed { to })?,
                Some(false) if !self.has_outgoing() => waiting.push((key, to, chunk, last)),
                Some(false) => self.send_sealed(key, to, chunk, last)?,
            }
        }
        // In the order in which they came.
        waiting.into_iter().rev().for_each(|waiter| self.unsealed.push_front(waiter));
        Ok(())
    }

    /// Whether something waits to be sealed and can be.
    pub(super) fn can_seal(&mut self) -> bool {
        !self.unsealed.is_empty() && self.has_outgoing()
    }

    fn has_outgoing(&mut self) -> bool {
        self.ring.outgoing_buffers().is_some_and(|buffers| buffers.free() > 0)
    }
}

/// What became of bytes of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Own {
    /// The leg takes none any more.
    Failed,
    /// No outgoing buffer is free.
    NoBuffer,
    /// So many are being sent.
    OnItsWay(u32),
}

/// How far a flight of a handshake is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flight {
    /// The peer is gone, or there is no buffer.
    Failed,
    /// A part of it waits until the peer has room.
    OnItsWay,
    /// The kernel has it.
    Sent,
}

impl Relay {
    /// Whether one of its legs has TLS.
    pub(super) fn is_secured(&self) -> bool {
        self.service_tls.is_some()
    }

    /// Where the bytes of a chunk that came from `from` lie.
    pub(super) fn chunk_range(&self, from: Side, chunk: Chunk) -> BufferRange {
        // Plaintext lies where its records were opened to, and what a plain leg received behind the front.
        let front = if self.is_secured() && self.legs.tls(from).is_none() { FRONT_BYTES } else { 0 };
        BufferRange { buffer: chunk.buffer, start: front + chunk.start, len: chunk.len }
    }

    fn is_ending_legs(&self) -> bool {
        self.legs.each_tls().any(|leg| matches!(leg.sending, Some(Sealed { what: What::End, .. })))
    }
}
