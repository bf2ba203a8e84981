//! One TLS connection without I/O: handshake steps, records opened in place, records sealed, and both kinds of end.
//!
//! It holds no buffers while nothing is under way: received bytes that are not a whole record yet belong to the caller, who hands
//! them in again in front of the next ones.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, Error, HandshakeKind, ProtocolVersion, ServerConfig};

use crate::Fault;
use crate::sealing::{self, Announcements};

/// The longest record with its header: RFC 5246 §6.2.3, 2^14 + 2,048 bytes of ciphertext.
pub const RECORD_BYTES_MAX: usize = 5 + 16_384 + 2_048;
/// Plaintext of one record at most (RFC 8446 §5.1).
const PLAINTEXT_BYTES_MAX: usize = 16_384;
/// What sealing adds to one record at most: header, explicit nonce, content type and tag (RFC 5288 §3, RFC 8446 §5.2).
const SEALING_BYTES: usize = 32;
/// What may have to leave before the next record: a key update, an alert (RFC 8446 §4.6.3).
const REPLY_BYTES_MAX: usize = 1_024;
/// The longest session ticket that waits for the next record; with certificates of clients they are longer.
const TICKET_BYTES_MAX: usize = 512;
/// Bytes that end our direction at most: an alert, and what had to leave before it.
pub const CLOSE_BYTES_MAX: usize = 64 + TICKET_BYTES_MAX + REPLY_BYTES_MAX;

/// How many bytes `plain` bytes may need once they are sealed.
pub const fn sealed_bytes_max(plain: usize) -> usize {
    plain + (plain / PLAINTEXT_BYTES_MAX + 1) * SEALING_BYTES + TICKET_BYTES_MAX + REPLY_BYTES_MAX
}

/// One TLS connection, towards a client or towards a real server.
pub struct Connection {
    role: Role,
    /// Plaintext that came together with the end of the handshake, or was met while sealing.
    early: Vec<u8>,
    /// What has to leave before the next record.
    reply: Vec<u8>,
    /// A session ticket, sealed before anything in `reply`. It leaves with what leaves next: a send of its own would cost more than the ticket,
    /// and who never reads would never let it go.
    ticket: Vec<u8>,
    /// The peer has said that it sends no more.
    closed: bool,
    /// … and that was handed on.
    closed_told: bool,
    /// It has failed: rustls is not to be asked again.
    failed: bool,
    /// … behind plaintext that was handed on; not told yet.
    fault: Option<Fault>,
    /// So many bytes that rustls has seen and not used lie with the caller.
    seen: usize,
}

enum Role {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// A handshake on its way, as it moves to who does its next step and back.
#[derive(Debug)]
pub struct Handshake {
    /// The connection.
    pub connection: Connection,
    /// What was received for it and is not used yet.
    pub input: Vec<u8>,
    /// What has to be sent.
    pub output: Vec<u8>,
}

impl Handshake {
    /// One that has yet to begin.
    pub fn new(connection: Connection) -> Handshake {
        Handshake { connection, input: Vec::new(), output: Vec::new() }
    }

    /// Goes on as far as the input allows; see [`Connection::handshake`].
    pub fn step(&mut self) -> Result<Step, Fault> {
        self.connection.handshake(&mut self.input, &mut self.output)
    }
}

/// How far a handshake is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It is over: records may be opened and sealed.
    Complete,
    /// More bytes of the peer are needed.
    NeedsInput,
}

/// What [`Connection::open`] has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// So many bytes of plaintext are at the start of the buffer.
    pub plain: usize,
    /// Bytes that are no whole record yet: to be kept and handed in again in front of the next ones.
    pub rest: Range<usize>,
    /// The peer has ended its direction, behind the plaintext (`close_notify`, RFC 8446 §6.1).
    pub closed: bool,
}

impl Connection {
    /// The server's end, towards a client.
    pub fn accept(config: Arc<ServerConfig>) -> Result<Connection, Fault> {
        let server = UnbufferedServerConnection::new(config).map_err(|_| Fault::Internal)?;
        Ok(Connection::of(Role::Server(server)))
    }

    /// The client's end, towards the real server with this name, which is offered this application protocol. Its first step has no input.
    pub fn connect(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        alpn: Option<&[u8]>,
    ) -> Result<Connection, Fault> {
        let alpn = alpn.into_iter().map(<[u8]>::to_vec).collect();
        let client = UnbufferedClientConnection::new_with_alpn(config, name, alpn).map_err(|_| Fault::Internal)?;
        Ok(Connection::of(Role::Client(client)))
    }

    fn of(role: Role) -> Connection {
        Connection {
            role,
            early: Vec::new(),
            reply: Vec::new(),
            ticket: Vec::new(),
            closed: false,
            closed_told: false,
            failed: false,
            fault: None,
            seen: 0,
        }
    }

    /// Goes on with the handshake as far as `input` allows, takes off what it has used, and appends what must be sent to `output`: after a
    /// failure an alert. The ticket of TLS 1.3 is kept, for the first record that we seal.
    pub fn handshake(&mut self, input: &mut Vec<u8>, output: &mut Vec<u8>) -> Result<Step, Fault> {
        let (mut used, before) = (0, output.len());
        let result = loop {
            let met = self.step(&mut input[used..], |early, payload| early.extend_from_slice(payload));
            used += met.discard;
            output.append(&mut std::mem::take(&mut self.reply));
            match met.next {
                Ok(Next::Again) => {}
                Ok(Next::Closed) => self.closed = true,
                Ok(Next::Dry) if self.state().is_handshaking() && self.closed => break Err(Fault::Protocol),
                Ok(Next::Dry) if self.state().is_handshaking() => break Ok(Step::NeedsInput),
                Ok(Next::Dry) => {
                    // What a server says behind the client's Finished is tickets (RFC 8446 §4.6.1).
                    let is_ticket = matches!(self.role, Role::Server(_))
                        && self.state().protocol_version() == Some(ProtocolVersion::TLSv1_3);
                    if is_ticket && output.len() - before <= TICKET_BYTES_MAX {
                        self.ticket = output[before..].to_vec();
                        output.truncate(before);
                    }
                    break Ok(Step::Complete);
                }
                Err(error) => {
                    let fault = self.fail(&error);
                    output.append(&mut std::mem::take(&mut self.reply));
                    break Err(fault);
                }
            }
        };
        input.drain(..used.min(input.len()));
        if input.is_empty() {
            *input = Vec::new();
        }
        self.seen = input.len();
        result
    }

    /// Opens the records in `received`, a range of `buffer`, and puts their plaintext at its start. What is early is to be taken before.
    ///
    /// Plaintext is never longer than its record, so one [`RECORD_BYTES_MAX`] in front of `received` is room enough. After a failure
    /// [`Connection::take_reply`] has the alert. One behind plaintext is told by the next call: [`Connection::has_fault`].
    pub fn open(&mut self, buffer: &mut [u8], received: Range<usize>) -> Result<Opened, Fault> {
        let opened = self.open_all(buffer, received);
        match &opened {
            Ok(opened) => self.seen = opened.rest.len(),
            Err(_) => self.give_up(),
        }
        opened
    }

    fn open_all(&mut self, buffer: &mut [u8], received: Range<usize>) -> Result<Opened, Fault> {
        let Range { start: mut read, end } = received;
        let mut plain = 0;
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        if !self.early.is_empty() {
            return Err(Fault::Internal);
        }
        loop {
            let (front, rest) = buffer.split_at_mut(read);
            let rest = rest.get_mut(..end - read).ok_or(Fault::Internal)?;
            let mut lost = false;
            let met = self.step(rest, |_, payload| match front.get_mut(plain..plain + payload.len()) {
                Some(room) => {
                    room.copy_from_slice(payload);
                    plain += payload.len();
                }
                None => lost = true,
            });
            read += met.discard;
            if lost {
                return Err(Fault::Internal);
            }
            match met.next {
                Ok(Next::Again) => {}
                Ok(Next::Closed) => self.closed = true,
                Ok(Next::Dry) if self.reply.len() > REPLY_BYTES_MAX => return Err(Fault::Protocol),
                Ok(Next::Dry) => break,
                Err(error) => {
                    let fault = self.fail(&error);
                    if plain == 0 {
                        return Err(fault);
                    }
                    self.fault = Some(fault);
                    read = end;
                    break;
                }
            }
        }
        // What follows the end is nobody's (RFC 8446 §6.1).
        let rest = if self.closed { end..end } else { read..end };
        self.closed_told |= self.closed;
        Ok(Opened { plain, rest, closed: self.closed })
    }

    /// Whether `input`, which was received and not used, has bytes that rustls has not seen. Without them it has nothing to do, even where a whole
    /// record lies there: one with a part of a message stays until the rest has come (RFC 8446 §5.1).
    pub fn has_news(&self, input: &[u8]) -> bool {
        input.len() > self.seen
    }

    /// Lets it fail, because bytes that it left with the caller are lost: rustls must meet no fewer than it has seen.
    pub fn give_up(&mut self) {
        self.failed = true;
        self.early = Vec::new();
    }

    /// Seals `plain` into `out`, behind what had to leave before; returns the bytes written. `carry` is what was received and not opened.
    ///
    /// `out` has to have [`sealed_bytes_max`] of room.
    pub fn seal(&mut self, carry: &mut Vec<u8>, plain: &[u8], out: &mut [u8]) -> Result<usize, Fault> {
        if plain.len() > sealing::PLAIN_BYTES_MAX || !sealing::announces(self.state().negotiated_cipher_suite()) {
            return self.write(carry, out, |traffic, out| traffic.seal(plain, out));
        }
        let mut records = [0; sealed_bytes_max(0) + sealing::ANNOUNCEMENTS_BYTES_MAX];
        let announcements = Announcements::begin();
        let written = self.write(carry, &mut records, |traffic, out| traffic.seal(plain, out))?;
        announcements.seal(&records[..written], plain, out)
    }

    /// Ends our direction: writes a `close_notify`, behind what had to leave before; returns the bytes written.
    ///
    /// `out` has to have [`CLOSE_BYTES_MAX`] of room.
    pub fn close_notify(&mut self, carry: &mut Vec<u8>, out: &mut [u8]) -> Result<usize, Fault> {
        self.write(carry, out, |traffic, out| traffic.close(out))
    }

    /// Whether there is something for [`Connection::take_reply`].
    pub fn has_reply(&self) -> bool {
        !self.reply.is_empty()
    }

    /// What has to leave without waiting for the next record: an answer to the peer, or the alert after a failure. Empty, mostly.
    pub fn take_reply(&mut self) -> Vec<u8> {
        let mut before = std::mem::take(&mut self.ticket);
        before.append(&mut std::mem::take(&mut self.reply));
        before
    }

    /// Whether there is something for [`Connection::take_early`].
    pub fn has_early(&self) -> bool {
        !self.early.is_empty() || (self.closed && !self.closed_told)
    }

    /// Bytes that it holds for [`Connection::take_early`].
    pub fn early_bytes(&self) -> usize {
        self.early.len()
    }

    /// Whether [`Connection::open`] has a failure to tell, whatever it is called with.
    pub fn has_fault(&self) -> bool {
        self.fault.is_some()
    }

    /// Takes the plaintext that came together with the end of the handshake, and whether the peer has ended its direction behind it.
    pub fn take_early(&mut self) -> (Vec<u8>, bool) {
        self.closed_told |= self.closed;
        (std::mem::take(&mut self.early), self.closed)
    }

    /// Whether the peer has ended its direction with a `close_notify`.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether the handshake has resumed an earlier session.
    pub fn is_resumed(&self) -> bool {
        self.state().handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Whether the client was asked for another ClientHello (HelloRetryRequest, RFC 8446 §4.1.4), as far as is known while a full handshake lasts.
    pub fn has_asked_again(&self) -> bool {
        self.state().handshake_kind() == Some(HandshakeKind::FullWithHelloRetryRequest)
    }

    /// The certificates that the peer has shown, its own first.
    pub fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        self.state().peer_certificates()
    }

    /// The application protocol agreed on, if any (RFC 7301).
    pub fn alpn(&self) -> Option<&[u8]> {
        self.state().alpn_protocol()
    }

    /// The version agreed on, as OpenSSL calls it; empty before it is.
    pub fn version(&self) -> &'static str {
        match self.state().protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "",
        }
    }

    /// The name of the cipher suite agreed on, as rustls has it; empty before it is.
    pub fn cipher(&self) -> &'static str {
        self.state().negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or_default()
    }

    fn state(&self) -> &CommonState {
        match &self.role {
            Role::Client(client) => client,
            Role::Server(server) => server,
        }
    }

    /// One turn of rustls; `take` gets plaintext.
    fn step(&mut self, input: &mut [u8], take: impl FnMut(&mut Vec<u8>, &[u8])) -> Met {
        if self.failed {
            return Met { discard: 0, next: Err(Error::HandshakeNotComplete) };
        }
        let (early, reply) = (&mut self.early, &mut self.reply);
        match &mut self.role {
            Role::Client(client) => meet(client.process_tls_records(input), early, reply, take),
            Role::Server(server) => meet(server.process_tls_records(input), early, reply, take),
        }
    }

    /// Brings the alert of a failure into `reply`, behind what was queued before it, and lets rustls do nothing more.
    fn fail(&mut self, error: &Error) -> Fault {
        // What is queued comes out before rustls looks at its input, of which it must not meet the same bytes twice: so there is none.
        while self.state().wants_write() && self.step(&mut [], |_, _| {}).next.is_ok() {}
        self.failed = true;
        Fault::of(error)
    }

    fn write(
        &mut self,
        carry: &mut Vec<u8>,
        out: &mut [u8],
        write: impl FnOnce(&mut dyn Traffic, &mut [u8]) -> Result<usize, Fault>,
    ) -> Result<usize, Fault> {
        loop {
            let met = self.step(carry, |early, payload| early.extend_from_slice(payload));
            carry.drain(..met.discard.min(carry.len()));
            match met.next {
                Ok(Next::Again) => {}
                Ok(Next::Closed) => self.closed = true,
                Ok(Next::Dry) => break,
                Err(error) => return Err(self.fail(&error)),
            }
        }
        self.seen = carry.len();
        let reply = self.take_reply();
        let before = reply.len();
        let (room, out) = out.split_at_mut_checked(before).ok_or(Fault::Internal)?;
        room.copy_from_slice(&reply);
        let written = match &mut self.role {
            Role::Client(client) => with_traffic(client.process_tls_records(carry), |traffic| write(traffic, out)),
            Role::Server(server) => with_traffic(server.process_tls_records(carry), |traffic| write(traffic, out)),
        }?;
        Ok(before + written)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = match self.role {
            Role::Client(_) => "client",
            Role::Server(_) => "server",
        };
        f.debug_struct("Connection").field("role", &role).field("closed", &self.closed).finish_non_exhaustive()
    }
}

/// What one turn of rustls has met.
struct Met {
    /// Bytes of the input that are used up.
    discard: usize,
    next: Result<Next, Error>,
}

enum Next {
    /// There may be more to do.
    Again,
    /// The peer has ended its direction.
    Closed,
    /// Nothing more without further bytes.
    Dry,
}

fn meet<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    early: &mut Vec<u8>,
    reply: &mut Vec<u8>,
    mut take: impl FnMut(&mut Vec<u8>, &[u8]),
) -> Met {
    let mut discard = status.discard;
    let next = status.state.and_then(|state| match state {
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record?;
                discard += record.discard;
                take(early, record.payload);
            }
            Ok(Next::Again)
        }
        ConnectionState::EncodeTlsData(encode) => append(encode, reply).map(|()| Next::Again),
        ConnectionState::TransmitTlsData(transmit) => {
            transmit.done();
            Ok(Next::Again)
        }
        ConnectionState::PeerClosed => Ok(Next::Closed),
        // Early data is never offered nor accepted.
        ConnectionState::ReadEarlyData(_) => Err(Error::HandshakeNotComplete),
        _ => Ok(Next::Dry),
    });
    Met { discard, next }
}

fn append<Data>(mut encode: EncodeTlsData<'_, Data>, reply: &mut Vec<u8>) -> Result<(), Error> {
    let before = reply.len();
    if let Err(EncodeError::InsufficientSize(size)) = encode.encode(&mut []) {
        reply.resize(before + size.required_size, 0);
        encode.encode(&mut reply[before..]).map_err(|_| Error::EncryptError)?;
    }
    Ok(())
}

/// A connection that may send.
trait Traffic {
    fn seal(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, Fault>;
    fn close(&mut self, out: &mut [u8]) -> Result<usize, Fault>;
}

impl<Data> Traffic for rustls::unbuffered::WriteTraffic<'_, Data> {
    fn seal(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, Fault> {
        self.encrypt(plain, out).map_err(|_| Fault::Internal)
    }

    fn close(&mut self, out: &mut [u8]) -> Result<usize, Fault> {
        self.queue_close_notify(out).map_err(|_| Fault::Internal)
    }
}

fn with_traffic<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    write: impl FnOnce(&mut dyn Traffic) -> Result<usize, Fault>,
) -> Result<usize, Fault> {
    match status.state {
        Ok(ConnectionState::WriteTraffic(mut traffic)) => write(&mut traffic),
        Ok(_) => Err(Fault::Internal),
        Err(error) => Err(Fault::of(&error)),
    }
}

#[cfg(test)]
mod tests;
