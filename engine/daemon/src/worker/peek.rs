//! A client's first bytes are looked at before a real server is chosen: they name whose servers it wants (T-41), or what it is known by.
//!
//! They lie in the kernel, and nothing is read: whoever serves the client reads the bytes as they came. In TLS that is ended here the session reads them,
//! and is looked over the shoulder. A server's first bytes are looked at as they pass, for the session that it hands out.
//! In the same way the header of a proxy in front is waited for ([`super::proxy`]).

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use towpath_config::model::{FirstBytes, PersistBy};
use towpath_core::Now;
use towpath_core::client_hello::{self, ClientHello, HostName, Peek, SessionId};
use towpath_core::counters::Termination;
use towpath_core::persistence::Seen;
use towpath_core::server_hello::{self, SERVER_HELLO_BYTES_MAX, ServerPeek};
use towpath_core::session::{Chunk, Event, ReceiveEnd, Room, Session, Side};
use towpath_core::sip::{self, SIP_BYTES_MAX, SipPeek};
use towpath_sys::ring::{BufferRange, Readiness};
use towpath_sys::socket;

use super::Worker;
use super::relay::Relay;
use super::token::{Key, Token};

/// Bytes of a message after which it is looked at, whether a line has ended or not.
const HEARD_BYTES: usize = 512;

/// Pieces that a session takes in before it has a server: behind the last one it reads no more, so that nothing is to be waited for.
const PIECES_MAX: u8 = 4;

/// What first bytes are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LookedFor {
    /// A header of the PROXY protocol.
    Header,
    /// What tells whose servers the client wants, or who it is.
    Name,
}

/// Where a connection is whose first bytes are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looking {
    /// Its first bytes are waited for.
    Until {
        /// And no longer than this.
        due: Now,
        /// The socket is readable from so many bytes on.
        readable_from: u32,
        /// What they are looked at for.
        what: LookedFor,
    },
    /// They are waited for no longer; the wait has yet to end.
    GivenUp(LookedFor),
}

/// A client's first message, as far as it has come, in TLS that is ended here.
#[derive(Debug)]
pub(super) struct Hearing {
    /// It is waited for no longer than this.
    pub(super) due: Now,
    heard: Vec<u8>,
    /// So much of it was looked at.
    looked_at: usize,
    /// Pieces that it came in.
    pieces: u8,
}

impl Hearing {
    /// Takes some more; says whether that tells all. It is read anew only where a line may have ended, or enough has come: a client may send single bytes.
    fn hear(&mut self, bytes: &[u8]) -> bool {
        self.pieces += 1;
        let room = SIP_BYTES_MAX - self.heard.len();
        let taken = bytes.get(..room).unwrap_or(bytes);
        self.heard.extend_from_slice(taken);
        let is_first = self.looked_at == 0;
        let is_last = self.pieces == PIECES_MAX;
        if !is_first && !is_last && !taken.contains(&b'\n') && self.heard.len() - self.looked_at < HEARD_BYTES {
            return false;
        }
        self.looked_at = self.heard.len();
        is_last || sip::peek(&self.heard) != SipPeek::Incomplete
    }
}

/// A server's first bytes, as far as they have come.
#[derive(Debug)]
pub(super) struct Greeting {
    seen: Vec<u8>,
    /// The session that the client offers, …
    offered: Option<SessionId>,
    /// … beside a ticket.
    ticket: bool,
}

/// Whether the client's first bytes may tell more once there are more of them.
fn is_incomplete(of: FirstBytes, bytes: &[u8]) -> bool {
    match of {
        FirstBytes::ClientHello => client_hello::peek(bytes) == Peek::Incomplete,
        FirstBytes::Sip => sip::peek(bytes) == SipPeek::Incomplete,
    }
}

impl Relay {
    /// Whether the first message tells what the client is known by, and only we can read it.
    pub(super) fn is_to_be_heard(&self) -> bool {
        let is_read = self.service().first_bytes.is_some_and(|(of, _)| of == FirstBytes::Sip);
        is_read && self.known.is_none() && self.legs.tls(Side::Client).is_some()
    }

    /// What the first bytes tell of the client.
    fn note_first_bytes(&mut self, of: FirstBytes, bytes: &[u8]) {
        let mut seen = Seen::of_address(self.client_address().ip());
        let hello = match of {
            FirstBytes::ClientHello => match client_hello::peek(bytes) {
                Peek::Hello(hello) => hello,
                Peek::Foreign | Peek::Incomplete => ClientHello::default(),
            },
            FirstBytes::Sip => {
                if let SipPeek::CallId(id) = sip::peek(bytes) {
                    seen.call_id = Some(id);
                }
                ClientHello::default()
            }
        };
        seen.server_name = self.client_name.as_deref().or(hello.server_name.as_ref().map(HostName::as_str));
        seen.session = hello.session;
        self.known = Some(self.service().known(&seen));
        let gives = self.service().persistence.as_ref().is_some_and(|rule| rule.by.contains(&PersistBy::TlsSessionId));
        if gives {
            self.greeting =
                Some(Box::new(Greeting { seen: Vec::new(), offered: hello.session, ticket: hello.offers_ticket }));
        }
    }
}

impl Worker {
    /// Waits for the first bytes of a client that was accepted.
    pub(super) fn look(&mut self, key: Key, timeout_ms: u64) -> io::Result<()> {
        self.look_for(key, LookedFor::Name, timeout_ms)
    }

    pub(super) fn look_for(&mut self, key: Key, what: LookedFor, timeout_ms: u64) -> io::Result<()> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        let due = self.now + timeout_ms;
        relay.looking = Some(Looking::Until { due, readable_from: 1, what });
        self.wheel.arm(key.index, due);
        self.await_bytes(key)
    }

    fn await_bytes(&mut self, key: Key) -> io::Result<()> {
        let Some(client) = self.relays.get(key).and_then(|relay| relay.leg(Side::Client)) else { return Ok(()) };
        self.ring.await_ready(client.as_fd(), Readiness::Readable, Token::Await(key, Side::Client).pack())
    }

    /// The wait for more bytes is over: there are some, there will be none, or nobody waits any more.
    pub(super) fn looked(&mut self, key: Key, looking: Looking) -> io::Result<()> {
        let Some(client) = self.relays.get(key).and_then(|relay| relay.leg(Side::Client)) else { return Ok(()) };
        let seen = socket::peek(client, &mut self.first_bytes).unwrap_or(0);
        if let Looking::Until { what: LookedFor::Header, .. } | Looking::GivenUp(LookedFor::Header) = looking {
            return self.header_seen(key, looking, seen);
        }
        let of = self.relays.get(key).and_then(|relay| relay.service().first_bytes);
        let may_tell_more = seen > 0 && of.is_some_and(|(of, _)| is_incomplete(of, &self.first_bytes[..seen]));
        if may_tell_more && self.looks_on(key, looking, seen)? {
            return Ok(());
        }
        self.lead(key, seen)
    }

    /// Goes on waiting, until there are more bytes than were `seen`; says whether there may be.
    pub(super) fn looks_on(&mut self, key: Key, looking: Looking, seen: usize) -> io::Result<bool> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(false) };
        let Some(client) = relay.leg(Side::Client) else { return Ok(false) };
        // Ready again with one byte more; at the end of the stream with none, and then no more are seen than now.
        let more = seen as u32 + 1;
        if let Looking::Until { due, readable_from, what } = looking
            && readable_from < more
            && socket::set_readable_from(client, more).is_ok()
        {
            relay.looking = Some(Looking::Until { due, readable_from: more, what });
            self.await_bytes(key)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Leads the client to the servers of the name that it asks for, else to the service's own, by the first bytes that were `seen`.
    fn lead(&mut self, key: Key, seen: usize) -> io::Result<()> {
        self.wheel.disarm(key.index);
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        relay.looking = None;
        if let Some(client) = relay.leg(Side::Client) {
            let _ = socket::set_readable_from(client, 1);
        }
        let bytes = &self.first_bytes[..seen];
        if let Some(routes) = &relay.service().routes
            && let Peek::Hello(ClientHello { server_name: Some(name), .. }) = client_hello::peek(bytes)
            && let Some(behind) = routes.find(&name).and_then(|place| self.snapshot.service(place))
        {
            relay.led_to(Arc::clone(behind));
        }
        if let Some((of, _)) = relay.service().first_bytes {
            relay.note_first_bytes(of, bytes);
        }
        let service = Arc::clone(relay.service());
        relay.session = Session::connecting(self.now, service.connect_timeout_ms, service.idle_timeout_ms);
        self.shared.handshakes().leave();
        self.begin(key)
    }

    /// The time for a client's first bytes may be over: it goes to the service's own servers, which may be the ones to speak first.
    pub(super) fn looking_timer(&mut self, key: Key, due: Now, what: LookedFor) -> io::Result<()> {
        if self.now < due {
            self.wheel.arm(key.index, due);
            return Ok(());
        }
        if let Some(relay) = self.relays.get_mut(key) {
            relay.looking = Some(Looking::GivenUp(what));
        }
        self.ring.cancel_wait(Token::Await(key, Side::Client).pack(), Token::Nothing.pack())
    }

    /// Has the session read the client's first message, which tells what it is known by, before it gets a server.
    pub(super) fn hear(&mut self, key: Key) -> io::Result<()> {
        let now = self.now;
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        let Some((_, wait_ms)) = relay.service().first_bytes else { return self.begin_dialling(key) };
        let due = now + wait_ms;
        relay.hearing = Some(Box::new(Hearing { due, heard: Vec::new(), looked_at: 0, pieces: 0 }));
        self.wheel.arm(key.index, due);
        self.drive(key, Event::Connecting)
    }

    /// Something has happened to a session whose first message is waited for.
    pub(super) fn overhear(&mut self, key: Key, event: Event) -> io::Result<()> {
        let mut is_last = matches!(
            event,
            Event::ReceiveEnded { from: Side::Client, end }
                if !matches!(end, ReceiveEnd::NoBuffers | ReceiveEnd::Cancelled)
        );
        // What the session has read holds a buffer: where those are scarce nobody waits for more.
        let is_scarce = self.room(true) == Room::Scarce;
        if let Event::Received { from: Side::Client, buffer, len, last, .. } = event
            && let Some(relay) = self.relays.get_mut(key)
        {
            let range = relay.chunk_range(Side::Client, Chunk { buffer, start: 0, len });
            if let Some(hearing) = &mut relay.hearing {
                is_last |= hearing.hear(self.ring.held(range)) || last || is_scarce;
            }
        }
        self.tell_session(key, event)?;
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        if relay.is_ending() {
            // Nobody waits for a server any more.
            relay.hearing = None;
            self.wheel.disarm(key.index);
            return self.tell_session(key, Event::ConnectGivenUp(Termination::ClientReset));
        }
        if is_last { self.heard_enough(key) } else { Ok(()) }
    }

    /// The client's first message is there, or is waited for no longer: it gets a server.
    fn heard_enough(&mut self, key: Key) -> io::Result<()> {
        self.wheel.disarm(key.index);
        let now = self.now;
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        let Some(hearing) = relay.hearing.take() else { return Ok(()) };
        relay.note_first_bytes(FirstBytes::Sip, &hearing.heard);
        relay.session.restarts_connecting(now);
        self.begin_dialling(key)
    }

    /// The time for the client's first message may be over.
    pub(super) fn hearing_timer(&mut self, key: Key, due: Now) -> io::Result<()> {
        if self.now < due {
            self.wheel.arm(key.index, due);
            return Ok(());
        }
        self.heard_enough(key)
    }

    /// A server has sent its first bytes where TLS passes through: its client is found again by the session that they hand out.
    pub(super) fn note_session_given(&mut self, key: Key, buffer: u16, len: u32) {
        let Some(relay) = self.relays.get_mut(key) else { return };
        let Some(greeting) = &mut relay.greeting else { return };
        let bytes = self.ring.held(BufferRange { buffer, start: 0, len });
        let room = SERVER_HELLO_BYTES_MAX - greeting.seen.len();
        greeting.seen.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        let told = server_hello::peek(&greeting.seen);
        if told == ServerPeek::Incomplete {
            return;
        }
        let Some(greeting) = relay.greeting.take() else { return };
        if let (ServerPeek::Hello(Some(given)), Some(server)) = (told, relay.server())
            && let Some(known) = relay.service().learns_session(given, greeting.offered, greeting.ticket)
        {
            self.shared.learn(relay.service(), known, server, self.now);
        }
    }
}
