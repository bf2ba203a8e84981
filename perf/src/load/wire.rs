//! The ring and the connections on it: sends messages, and verifies what arrives.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use rustls::{ClientConfig, ServerConfig};
use towpath_sys::ring::{Completion, Received, Ring, RingSettings, Wait};
use towpath_sys::socket::{Family, set_nodelay, tcp_socket};

use super::Pace;
use super::callers::Call;
use super::gauge::Schedule;
use super::origin::Then;
use super::tls::{Channel, sealed_bytes_max};
use crate::message::{Filler, Framing, HEADER_BYTES, Header, Progress, Reader, WINDOW_BYTES_MAX};
use crate::web::Lack;

/// Connections that one thread carries at once.
const CONNECTIONS_MAX: usize = 1 << SLOT_BITS;

/// Submission entries of the ring.
const ENTRIES: u32 = 4096;

/// Buffers for what arrives are taken in turns, so as many are in use as there are: so many bytes stay in a core's cache.
const CACHED_BYTES: u32 = 512 * 1024;

/// Buffers for what arrives, at most: as many completions are handled before the kernel gets more.
const BUFFERS_MAX: u16 = 512;

/// Messages that may be leaving at a time. Memory of their buffers is touched only as far as they are.
const SENDS_MAX: u16 = 32_768;

/// The same in bytes, where messages are long.
const SENDS_BYTES_MAX: u32 = 1 << 30;

/// As much of a stream as is sealed at a time.
pub(super) const SEALED_WINDOW_BYTES: usize = 128 * 1024;

/// Messages are submitted after so many bytes, before they have left the cache again.
const COMPOSED_BYTES_MAX: u32 = 64 * 1024;

/// What a completion belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Listener of this number has accepted.
    Accept,
    /// The connection is up, or not.
    Connect,
    /// Datagrams for the origin's socket of this number.
    Echo,
    /// A datagram of the flow of this number has come back.
    Flow,
    /// A flight of a TLS handshake has left, or the end of TLS.
    Flight,
    /// A datagram of the flow of this number has left.
    FlowSent,
    /// The connection has received.
    Receive,
    /// A message of the connection has left, or its first part.
    Say,
    /// More of its filler has.
    SayMore,
    /// Of no interest.
    Nothing,
}

const WHATS: [What; 10] = [
    What::Accept,
    What::Connect,
    What::Echo,
    What::Flow,
    What::Flight,
    What::FlowSent,
    What::Receive,
    What::Say,
    What::SayMore,
    What::Nothing,
];

const SLOT_BITS: u32 = 17;
const GENERATION_BITS: u32 = 16;
const BUFFER_BITS: u32 = 16;

/// What an operation was for, in the number that its completion carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) what: What,
    /// Of a connection, listener or flow.
    pub(super) slot: u32,
    /// Which of the connections that the slot has had.
    generation: u16,
    /// Held while the operation is under way.
    buffer: u16,
}

impl Token {
    pub(super) fn of(what: What, slot: usize) -> Token {
        Token { what, slot: slot as u32, generation: 0, buffer: 0 }
    }

    fn encode(self) -> u64 {
        let what = WHATS.iter().position(|what| *what == self.what).unwrap_or_default() as u64;
        u64::from(self.slot)
            | u64::from(self.generation) << SLOT_BITS
            | u64::from(self.buffer) << (SLOT_BITS + GENERATION_BITS)
            | what << (SLOT_BITS + GENERATION_BITS + BUFFER_BITS)
    }

    pub(super) fn decode(bits: u64) -> Token {
        let what = (bits >> (SLOT_BITS + GENERATION_BITS + BUFFER_BITS)) as usize;
        Token {
            what: WHATS.get(what).copied().unwrap_or(What::Nothing),
            slot: bits as u32 & ((1 << SLOT_BITS) - 1),
            generation: (bits >> SLOT_BITS) as u16,
            buffer: (bits >> (SLOT_BITS + GENERATION_BITS)) as u16,
        }
    }
}

/// Who speaks on a connection.
pub(super) enum Role {
    Client(Call),
    Origin(Then),
}

/// How what arrives is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listen {
    /// One piece at a time: a buffer is taken when a piece is there, so that few large ones stay warm.
    Once,
    /// Whatever comes, with one operation.
    Many,
}

struct Connection {
    socket: OwnedFd,
    role: Role,
    tls: Option<Box<Channel>>,
    reader: Reader,
    /// What comes next of a stream; `None`: messages come.
    stream: Option<Filler>,
    /// A receive is under way.
    receiving: bool,
    /// Bytes that are on their way; 0: all has left.
    sending: u32,
    /// What follows them.
    rest: Filler,
    rest_bytes: u64,
}

#[derive(Default)]
struct Place {
    generation: u16,
    connection: Option<Box<Connection>>,
}

/// What a receive brought.
#[derive(Debug)]
pub(super) enum Heard {
    /// The peer has finished.
    End,
    /// The connection has failed.
    Failed(io::Error),
    /// So many bytes of a stream, as they were sent.
    Filler(usize),
    /// A message that a balancer of HTTP has not treated as it is to.
    Lacks(Lack),
    /// A whole message, as it was sent.
    Message(Header),
    /// No bytes: no buffer was left for a moment.
    Nothing,
    /// The TLS handshake is done.
    Opened,
    /// Part of a message, as it was sent.
    Partial,
    /// It is not what was sent, or more than one message.
    Wrong,
}

/// How far a message has left.
#[derive(Debug)]
pub(super) enum Said {
    /// All of it.
    All,
    /// The connection has failed.
    Failed(io::Error),
    /// The rest follows.
    Partly,
}

/// What one receive brought, in this order: a TLS handshake may be done, bytes may follow, and the peer's end.
pub(super) type Heards = [Option<Heard>; 3];

/// See the module.
pub(super) struct Wire {
    pub(super) ring: Ring,
    /// What clients speak TLS with, if they do.
    pub(super) client_tls: Option<Arc<ClientConfig>>,
    /// The same of origins.
    pub(super) origin_tls: Option<Arc<ServerConfig>>,
    /// Whether each handshake of a client has to resume a session, or must not; `None` where either will do.
    pub(super) must_resume: Option<bool>,
    /// How messages stand in the streams of connections.
    pub(super) framing: Framing,
    /// What clients that return bring with them, once it is known.
    cookie: Option<Box<str>>,
    /// Ciphertext while it is opened.
    incoming: Vec<u8>,
    /// What leaves, while it is sealed: plaintext, and its records.
    spoken: Vec<u8>,
    sealed: Vec<u8>,
    places: Vec<Place>,
    free: Vec<u32>,
    /// Operations under way.
    pending: usize,
    /// How receives of clients are made.
    pub(super) listen: Listen,
    out_bytes: u32,
    /// Since the last submission for their sake.
    composed_bytes: u32,
    /// When pieces of streams leave, and the streams that wait for it.
    pieces: Schedule,
    awaiting_piece: VecDeque<u32>,
}

impl Wire {
    /// With buffers of `in_bytes` each for what arrives, as many as stay in the cache but at least `in_least`, and of
    /// `out_bytes` (more than a header) for what leaves.
    pub(super) fn new(
        in_bytes: u32,
        in_least: u16,
        out_bytes: u32,
        datagram_buffers: u16,
        listen: Listen,
    ) -> io::Result<Wire> {
        let fitting = u16::try_from(CACHED_BYTES / in_bytes).unwrap_or(u16::MAX);
        let mut ring = Ring::new(RingSettings {
            entries: ENTRIES,
            stream_buffers: fitting.clamp(in_least, BUFFERS_MAX.max(in_least)),
            stream_buffer_bytes: in_bytes,
            datagram_buffers,
            records: None,
        })?;
        let sends = u16::try_from(SENDS_BYTES_MAX / out_bytes).unwrap_or(u16::MAX).clamp(1, SENDS_MAX);
        ring.reserve_outgoing(sends, out_bytes)?;
        Ok(Wire {
            ring,
            client_tls: None,
            origin_tls: None,
            must_resume: None,
            framing: Framing::Bare,
            cookie: None,
            incoming: Vec::new(),
            spoken: Vec::new(),
            sealed: vec![0; out_bytes as usize],
            places: Vec::new(),
            free: Vec::new(),
            pending: 0,
            listen,
            out_bytes,
            composed_bytes: 0,
            pieces: Schedule::Closed,
            awaiting_piece: VecDeque::new(),
        })
    }

    /// Sends so many bytes per second of all streams together, from now on, instead of as many as they take.
    pub(super) fn pace_streams(&mut self, bytes_per_second: f64, now: Instant) {
        let piece = if self.origin_tls.is_some() { SEALED_WINDOW_BYTES } else { WINDOW_BYTES_MAX };
        self.pieces = Schedule::starting(Pace::Open { per_second: bytes_per_second / piece as f64 }, now);
    }

    /// When the next piece of a stream is to leave, if nothing comes first.
    pub(super) fn next_piece(&self, now: Instant) -> Option<Instant> {
        if self.awaiting_piece.is_empty() { None } else { self.pieces.next(now) }
    }

    /// Sends the pieces of streams that are due.
    pub(super) fn send_due(&mut self, now: Instant) -> io::Result<()> {
        while !self.awaiting_piece.is_empty() && self.pieces.take_due(now).is_some() {
            if let Some(slot) = self.awaiting_piece.pop_front() {
                self.say_more(slot)?;
            }
        }
        Ok(())
    }

    /// Operations under way.
    pub(super) fn pending(&self) -> usize {
        self.pending
    }

    /// Takes up to `max` completions, appended to `batch`.
    pub(super) fn take(&mut self, batch: &mut Vec<Completion>, max: usize) {
        let before = batch.len();
        self.ring.take(batch, max);
        let is_over =
            |completion: &&Completion| !completion.more() && Token::decode(completion.token()).what != What::Nothing;
        self.pending -= batch[before..].iter().filter(is_over).count();
    }

    /// Opens a client's connection; its completion is [`What::Connect`].
    pub(super) fn connect(&mut self, target: SocketAddr, call: Call) -> io::Result<u32> {
        let socket = tcp_socket(Family::of(target.ip()))?;
        set_nodelay(&socket)?;
        let slot = self.adopt(socket, Role::Client(call))?;
        let token = self.token(What::Connect, slot);
        let Some(connection) = self.places[slot as usize].connection.as_ref() else { return Ok(slot) };
        self.ring.connect(connection.socket.as_fd(), target, token.encode())?;
        self.pending += 1;
        Ok(slot)
    }

    /// Takes a connection in.
    pub(super) fn adopt(&mut self, socket: OwnedFd, role: Role) -> io::Result<u32> {
        let tls = match (&role, &self.client_tls, &self.origin_tls) {
            (Role::Client(_), Some(config), _) => Some(Box::new(Channel::client(config)?)),
            (Role::Origin(_), _, Some(config)) => Some(Box::new(Channel::server(config)?)),
            _ => None,
        };
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.places.len() < CONNECTIONS_MAX => {
                self.places.push(Place::default());
                self.places.len() as u32 - 1
            }
            None => return Err(io::Error::other(format!("more than {CONNECTIONS_MAX} connections on one thread"))),
        };
        self.places[slot as usize].connection = Some(Box::new(Connection {
            socket,
            role,
            tls,
            reader: Reader::new(self.framing),
            stream: None,
            receiving: false,
            sending: 0,
            rest: Filler::of(0),
            rest_bytes: 0,
        }));
        Ok(slot)
    }

    /// Who speaks on the connection that a completion is of; `None` when that one is closed.
    pub(super) fn role(&mut self, token: Token) -> Option<&mut Role> {
        self.find(token).map(|connection| &mut connection.role)
    }

    /// The client's side of an open connection.
    pub(super) fn call(&mut self, slot: u32) -> Option<&mut Call> {
        match self.open(slot) {
            Some(Connection { role: Role::Client(call), .. }) => Some(call),
            _ => None,
        }
    }

    /// What the origin does once its answer has left.
    pub(super) fn then(&mut self, slot: u32) -> Option<&mut Then> {
        match self.open(slot) {
            Some(Connection { role: Role::Origin(then), .. }) => Some(then),
            _ => None,
        }
    }

    /// Slots of all open connections.
    pub(super) fn all_open(&self) -> Vec<u32> {
        (0..self.places.len() as u32).filter(|slot| self.places[*slot as usize].connection.is_some()).collect()
    }

    /// Receives, unless a receive is under way.
    pub(super) fn hear(&mut self, slot: u32, listen: Listen) -> io::Result<()> {
        let token = self.token(What::Receive, slot).encode();
        let Wire { ring, places, pending, .. } = self;
        let Some(connection) = places[slot as usize].connection.as_mut() else { return Ok(()) };
        if connection.receiving {
            return Ok(());
        }
        match listen {
            Listen::Once => ring.receive(connection.socket.as_fd(), token)?,
            Listen::Many => ring.receive_many(connection.socket.as_fd(), token)?,
        }
        connection.receiving = true;
        *pending += 1;
        Ok(())
    }

    /// From now on filler without end is expected.
    pub(super) fn expect_stream(&mut self, slot: u32, tag: u64) {
        if let Some(connection) = self.open(slot) {
            connection.stream = Some(Filler::of(tag));
        }
    }

    /// Takes what a receive has brought; nothing when its connection is closed.
    pub(super) fn heard(&mut self, token: Token, completion: &Completion) -> Heards {
        let place = &mut self.places[token.slot as usize];
        let connection = place.connection.as_mut().filter(|_| place.generation == token.generation);
        let buffers = self.ring.stream_buffers();
        let heards = connection.map_or([None, None, None], |connection| {
            connection.receiving = completion.more();
            let heard = match (completion.received(), completion.buffer()) {
                (Received::Bytes(length), Some(buffer)) if connection.tls.is_some() => {
                    let piece = buffers.bytes(buffer, 0, length);
                    let heards = connection.take_sealed(piece, &mut self.incoming, self.must_resume);
                    learn(&mut self.cookie, connection);
                    return heards;
                }
                (Received::Bytes(length), Some(buffer)) => {
                    let heard = connection.take(buffers.bytes(buffer, 0, length));
                    learn(&mut self.cookie, connection);
                    heard
                }
                (Received::End, _) => connection.end(),
                (Received::NoBuffers | Received::Cancelled, _) => Heard::Nothing,
                _ => Heard::Failed(io::Error::from_raw_os_error(-completion.result())),
            };
            [Some(heard), None, None]
        });
        if let Some(buffer) = completion.buffer() {
            buffers.recycle(buffer);
        }
        heards
    }

    /// Whether a TLS handshake comes before anything else on the connection.
    pub(super) fn shakes_hands(&mut self, slot: u32) -> bool {
        self.open(slot).is_some_and(|connection| connection.tls.as_ref().is_some_and(|tls| !tls.is_open()))
    }

    /// Sends what is left to send of a handshake.
    pub(super) fn send_flight(&mut self, slot: u32) -> io::Result<()> {
        let Some(tls) = self.open(slot).and_then(|connection| connection.tls.as_mut()) else { return Ok(()) };
        let flight = tls.take_flight();
        if flight.is_empty() { Ok(()) } else { self.send_apart(slot, &flight) }
    }

    /// Sends bytes that are no part of a message.
    fn send_apart(&mut self, slot: u32, bytes: &[u8]) -> io::Result<()> {
        let buffer = self.lease()?;
        let token = Token { buffer, ..self.token(What::Flight, slot) };
        let Wire { ring, places, pending, .. } = self;
        let Some(buffers) = ring.outgoing_buffers() else { return Ok(()) };
        let Some(connection) = places[slot as usize].connection.as_ref() else {
            buffers.recycle(buffer);
            return Ok(());
        };
        buffers.write(buffer, 0, bytes);
        ring.send_outgoing(connection.socket.as_fd(), buffer, bytes.len() as u32, token.encode())?;
        *pending += 1;
        Ok(())
    }

    /// Takes note of a flight that has left, or could not: then nothing comes back either.
    pub(super) fn sent_flight(&mut self, token: Token) {
        release(&mut self.ring, token.buffer);
    }

    /// Whether a message is still leaving.
    pub(super) fn is_sending(&mut self, slot: u32) -> bool {
        self.open(slot).is_some_and(|connection| connection.sending > 0)
    }

    /// Asks by a message, with what stands in front of it; nothing may be under way.
    pub(super) fn ask(&mut self, slot: u32, request: Header) -> io::Result<()> {
        let head = self.framing.request_head(&request, self.cookie.as_deref());
        if !self.framing.asks_by_head() {
            return self.say(slot, &head, request);
        }
        let brought_cookie = self.cookie.is_some();
        if let Some(connection) = self.open(slot) {
            connection.reader.web.brought_cookie = brought_cookie;
            connection.rest_bytes = 0;
        }
        self.say_head(slot, &head)
    }

    /// Whether whoever has asked last wants the connection to end.
    pub(super) fn asks_for_end(&mut self, slot: u32) -> bool {
        self.open(slot).is_some_and(|connection| connection.reader.web.asks_for_end)
    }

    /// Sends a message behind its head, if it has one; nothing may be under way.
    pub(super) fn say(&mut self, slot: u32, head: &str, header: Header) -> io::Result<()> {
        let before = head.len() + HEADER_BYTES;
        let is_sealed = self.open(slot).is_some_and(|connection| connection.tls.is_some());
        let reserved = if is_sealed { sealed_bytes_max(self.out_bytes as usize) as u32 - self.out_bytes } else { 0 };
        let room = self.out_bytes - reserved - before as u32;
        let mut filler = Filler::of(header.tag);
        let part = header.filler_bytes.min(room).min(WINDOW_BYTES_MAX as u32);
        let (buffer, length) = if is_sealed {
            let mut spoken = std::mem::take(&mut self.spoken);
            spoken.clear();
            spoken.extend_from_slice(head.as_bytes());
            spoken.extend_from_slice(&header.encode());
            spoken.extend_from_slice(filler.window(part as usize));
            let sealed = self.seal(slot, &spoken);
            self.spoken = spoken;
            sealed?
        } else {
            (self.compose(head, &header, filler.window(part as usize))?, before as u32 + part)
        };
        if let Some(connection) = self.open(slot) {
            connection.rest = filler;
            connection.rest_bytes = u64::from(header.filler_bytes - part);
        }
        self.send_first(slot, buffer, length)
    }

    /// Sends what a message begins with.
    fn send_first(&mut self, slot: u32, buffer: u16, length: u32) -> io::Result<()> {
        let token = self.token(What::Say, slot);
        let Wire { ring, places, pending, composed_bytes, .. } = self;
        let Some(connection) = places[slot as usize].connection.as_mut() else {
            release(ring, buffer);
            return Ok(());
        };
        connection.sending = length;
        *composed_bytes += connection.sending;
        ring.send_outgoing(connection.socket.as_fd(), buffer, connection.sending, Token { buffer, ..token }.encode())?;
        *pending += 1;
        if *composed_bytes >= COMPOSED_BYTES_MAX {
            *composed_bytes = 0;
            ring.enter(Wait::Poll)?;
        }
        Ok(())
    }

    /// Sends filler without end.
    pub(super) fn say_stream(&mut self, slot: u32, tag: u64) -> io::Result<()> {
        let head = self.framing.stream_head();
        if let Some(connection) = self.open(slot) {
            connection.rest = Filler::of(tag);
            connection.rest_bytes = u64::MAX;
        }
        if head.is_empty() { self.say_when_due(slot) } else { self.say_head(slot, head) }
    }

    /// Sends a head with nothing behind it.
    fn say_head(&mut self, slot: u32, head: &str) -> io::Result<()> {
        let is_sealed = self.open(slot).is_some_and(|connection| connection.tls.is_some());
        let (buffer, length) = if is_sealed {
            self.seal(slot, head.as_bytes())?
        } else {
            let buffer = self.lease()?;
            if let Some(buffers) = self.ring.outgoing_buffers() {
                buffers.write(buffer, 0, head.as_bytes());
            }
            (buffer, head.len() as u32)
        };
        self.send_first(slot, buffer, length)
    }

    /// Takes note of what has left and sends what follows; `None` when its connection is closed.
    pub(super) fn said(&mut self, token: Token, completion: &Completion) -> io::Result<Option<Said>> {
        if token.what == What::Say {
            release(&mut self.ring, token.buffer);
        }
        let Some(connection) = self.find(token) else { return Ok(None) };
        let sent = std::mem::take(&mut connection.sending);
        match completion.result() {
            errno if errno < 0 => Ok(Some(Said::Failed(io::Error::from_raw_os_error(-errno)))),
            // All of it leaves unless the connection fails on the way.
            length if length.unsigned_abs() != sent => Ok(Some(Said::Failed(io::ErrorKind::BrokenPipe.into()))),
            _ if connection.rest_bytes == 0 => Ok(Some(Said::All)),
            _ => {
                self.say_when_due(token.slot)?;
                Ok(Some(Said::Partly))
            }
        }
    }

    /// Whether all of a message is with the kernel once what is queued is submitted.
    pub(super) fn leaves_in_one_piece(&mut self, slot: u32) -> bool {
        self.open(slot).is_none_or(|connection| connection.rest_bytes == 0)
    }

    /// Closes a connection. What is leaving still leaves.
    pub(super) fn close(&mut self, slot: u32) -> io::Result<()> {
        self.say_end(slot)?;
        let receive = self.token(What::Receive, slot).encode();
        let place = &mut self.places[slot as usize];
        let Some(connection) = place.connection.take() else { return Ok(()) };
        place.generation = place.generation.wrapping_add(1);
        self.free.push(slot);
        let nothing = Token::of(What::Nothing, 0).encode();
        if connection.receiving {
            // It would keep the connection open.
            self.ring.cancel_receive(receive, nothing)?;
        }
        self.ring.close(connection.socket, nothing)
    }

    /// Where TLS is spoken, tells the peer that nothing more comes.
    fn say_end(&mut self, slot: u32) -> io::Result<()> {
        let mut sealed = std::mem::take(&mut self.sealed);
        let tls = self.open(slot).and_then(|connection| connection.tls.as_mut()).filter(|tls| tls.is_open());
        // Nobody is told by a connection that has failed.
        let length = tls.and_then(|tls| tls.seal_end(&mut sealed).ok());
        let sent = length.map_or(Ok(()), |length| self.send_apart(slot, &sealed[..length]));
        self.sealed = sealed;
        sent
    }

    /// Closes a connection whatever is under way on it.
    pub(super) fn abandon(&mut self, slot: u32) -> io::Result<()> {
        let Wire { ring, places, .. } = self;
        if let Some(connection) = places[slot as usize].connection.as_mut() {
            ring.cancel_all(connection.socket.as_fd(), Token::of(What::Nothing, 0).encode())?;
            connection.receiving = false;
            connection.tls = None;
        }
        self.close(slot)
    }

    /// Sends one datagram on a connected socket.
    pub(super) fn say_datagram(&mut self, flow: usize, socket: BorrowedFd<'_>, header: Header) -> io::Result<()> {
        let mut filler = Filler::of(header.tag);
        let buffer = self.compose("", &header, filler.window(header.filler_bytes as usize))?;
        let token = Token { buffer, ..Token::of(What::FlowSent, flow) };
        self.ring.send_outgoing(socket, buffer, HEADER_BYTES as u32 + header.filler_bytes, token.encode())?;
        self.pending += 1;
        Ok(())
    }

    /// Takes note of a datagram that has left.
    pub(super) fn said_datagram(&mut self, token: Token) {
        release(&mut self.ring, token.buffer);
    }

    /// Starts an operation that is of no connection.
    pub(super) fn start(
        &mut self,
        what: What,
        number: usize,
        start: impl FnOnce(&mut Ring, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        start(&mut self.ring, Token::of(what, number).encode())?;
        self.pending += 1;
        Ok(())
    }

    /// Cancels whatever waits on a socket that is of no connection.
    pub(super) fn cancel(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.ring.cancel_all(socket, Token::of(What::Nothing, 0).encode())
    }

    /// A header and filler in a leased buffer, so that they leave in one piece.
    fn compose(&mut self, head: &str, header: &Header, filler: &[u8]) -> io::Result<u16> {
        let buffer = self.lease()?;
        let Some(buffers) = self.ring.outgoing_buffers() else { return Ok(buffer) };
        let start = head.len() as u32;
        buffers.write(buffer, 0, head.as_bytes());
        buffers.write(buffer, start, &header.encode());
        buffers.write(buffer, start + HEADER_BYTES as u32, filler);
        Ok(buffer)
    }

    /// The records of plaintext in a leased buffer, and their length.
    fn seal(&mut self, slot: u32, plaintext: &[u8]) -> io::Result<(u16, u32)> {
        let buffer = self.lease()?;
        let Wire { ring, places, sealed, .. } = self;
        let tls = places[slot as usize].connection.as_mut().and_then(|connection| connection.tls.as_mut());
        let (Some(tls), Some(buffers)) = (tls, ring.outgoing_buffers()) else { return Ok((buffer, 0)) };
        let length = tls.seal(plaintext, sealed)?;
        buffers.write(buffer, 0, &sealed[..length]);
        Ok((buffer, length as u32))
    }

    fn lease(&mut self) -> io::Result<u16> {
        let leased = self.ring.outgoing_buffers().and_then(|buffers| buffers.lease());
        leased.ok_or_else(|| io::Error::other("too many messages are leaving: use more threads"))
    }

    /// As [`Wire::say_more`], for a stream with a rate when its next piece is due.
    fn say_when_due(&mut self, slot: u32) -> io::Result<()> {
        if matches!(self.pieces, Schedule::Closed) {
            return self.say_more(slot);
        }
        self.awaiting_piece.push_back(slot);
        Ok(())
    }

    fn say_more(&mut self, slot: u32) -> io::Result<()> {
        if self.open(slot).is_some_and(|connection| connection.tls.is_some()) {
            return self.say_more_sealed(slot);
        }
        let token = self.token(What::SayMore, slot).encode();
        let Wire { ring, places, pending, .. } = self;
        let Some(connection) = places[slot as usize].connection.as_mut() else { return Ok(()) };
        let length = connection.rest_bytes.min(WINDOW_BYTES_MAX as u64);
        connection.rest_bytes -= length;
        connection.sending = length as u32;
        ring.send_static(connection.socket.as_fd(), connection.rest.window(length as usize), token)?;
        *pending += 1;
        Ok(())
    }

    fn say_more_sealed(&mut self, slot: u32) -> io::Result<()> {
        let token = self.token(What::Say, slot);
        let Some(connection) = self.open(slot) else { return Ok(()) };
        let length = connection.rest_bytes.min(SEALED_WINDOW_BYTES as u64);
        connection.rest_bytes -= length;
        let window = connection.rest.window(length as usize);
        let (buffer, length) = self.seal(slot, window)?;
        let Wire { ring, places, pending, .. } = self;
        let Some(connection) = places[slot as usize].connection.as_mut() else { return Ok(()) };
        connection.sending = length;
        ring.send_outgoing(connection.socket.as_fd(), buffer, length, Token { buffer, ..token }.encode())?;
        *pending += 1;
        Ok(())
    }

    fn token(&self, what: What, slot: u32) -> Token {
        Token { generation: self.places[slot as usize].generation, ..Token::of(what, slot as usize) }
    }

    fn open(&mut self, slot: u32) -> Option<&mut Connection> {
        self.places[slot as usize].connection.as_deref_mut()
    }

    fn find(&mut self, token: Token) -> Option<&mut Connection> {
        let place = &mut self.places[token.slot as usize];
        place.connection.as_deref_mut().filter(|_| place.generation == token.generation)
    }
}

/// Takes the first cookie that a client was given for all of them: there is one server.
fn learn(cookie: &mut Option<Box<str>>, connection: &mut Connection) {
    if cookie.is_none() {
        *cookie = connection.reader.web.cookie.take();
    }
}

/// Gives back the buffer of a message that has left.
fn release(ring: &mut Ring, buffer: u16) {
    if let Some(buffers) = ring.outgoing_buffers() {
        buffers.recycle(buffer);
    }
}

impl Connection {
    /// The peer has closed its side.
    fn end(&self) -> Heard {
        // Somebody else may have cut it (RFC 8446 section 6.1).
        match &self.tls {
            Some(tls) if !tls.has_ended() => Heard::Failed(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                if tls.is_open() { "TLS was cut off" } else { "the TLS handshake was cut off" },
            )),
            _ => Heard::End,
        }
    }

    /// Opens and verifies a piece of TLS; `incoming` is memory for it.
    fn take_sealed(&mut self, piece: &[u8], incoming: &mut Vec<u8>, must_resume: Option<bool>) -> Heards {
        let Some(mut tls) = self.tls.take() else { return [Some(Heard::Nothing), None, None] };
        incoming.clear();
        tls.partial_into(incoming);
        incoming.extend_from_slice(piece);
        let mut heard = None;
        let news = tls.take(incoming, |plaintext| {
            let next = self.take(plaintext);
            heard = Some(match (heard.take(), next) {
                (Some(Heard::Filler(before)), Heard::Filler(more)) => Heard::Filler(before + more),
                (None | Some(Heard::Partial), next) => next,
                _ => Heard::Wrong,
            });
        });
        let is_client = matches!(self.role, Role::Client(_));
        let wrong = match (tls.is_resumed(), must_resume) {
            (Some(is), Some(must)) if is_client && is != must => Some(if is { "resumed" } else { "new" }),
            _ => None,
        };
        self.tls = Some(tls);
        match (news, wrong) {
            (Err(error), _) => [Some(Heard::Failed(error)), None, None],
            (Ok(news), Some(wrong)) if news.opened => {
                let message = format!("a TLS session is a {wrong} one, which was not asked for");
                [Some(Heard::Failed(io::Error::new(io::ErrorKind::InvalidData, message))), None, None]
            }
            (Ok(news), _) if !news.opened && !news.ended && heard.is_none() => [Some(Heard::Nothing), None, None],
            (Ok(news), _) => [news.opened.then_some(Heard::Opened), heard, news.ended.then_some(Heard::End)],
        }
    }

    /// Verifies a piece.
    fn take(&mut self, piece: &[u8]) -> Heard {
        if let Some(filler) = &mut self.stream {
            let Some(piece) = self.reader.pass_head(piece).map(|head| &piece[head..]) else { return Heard::Wrong };
            return if filler.matches(piece) { Heard::Filler(piece.len()) } else { Heard::Wrong };
        }
        match self.reader.take(piece) {
            // Neither side sends a second message before it has an answer.
            Progress::Complete(header, used) if used == piece.len() => Heard::Message(header),
            Progress::Complete(..) | Progress::Wrong => Heard::Wrong,
            Progress::Lacks(lack) => Heard::Lacks(lack),
            Progress::Partial => Heard::Partial,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_ring() {
        for what in WHATS {
            let token = Token { what, slot: (CONNECTIONS_MAX - 1) as u32, generation: u16::MAX, buffer: 0x8001 };
            assert_eq!(Token::decode(token.encode()), token);
            // The highest two bits are the ring's.
            assert_eq!(token.encode() >> 61, 0);
        }
    }
}
