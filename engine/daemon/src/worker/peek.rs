//! Routes by name: a client's first bytes are looked at where they lie, in the kernel, before a real server is chosen (T-41).
//!
//! Nothing is read: whoever serves the client reads the bytes as they came. In the same way the header of a proxy in front is waited for ([`super::proxy`]).

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use towpath_core::Now;
use towpath_core::client_hello::{Peek, peek};
use towpath_core::session::{Session, Side};
use towpath_sys::ring::Readiness;
use towpath_sys::socket;

use super::Worker;
use super::token::{Key, Token};

/// What first bytes are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LookedFor {
    /// A header of the PROXY protocol.
    Header,
    /// The name that a route is by.
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
        let verdict = peek(&self.first_bytes[..seen]);
        if verdict == Peek::Incomplete && seen > 0 && self.looks_on(key, looking, seen)? {
            return Ok(());
        }
        self.lead(key, verdict)
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

    /// Leads the client to the servers of the name that it asks for, else to the service's own.
    fn lead(&mut self, key: Key, verdict: Peek) -> io::Result<()> {
        self.wheel.disarm(key.index);
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        relay.looking = None;
        if let Some(client) = relay.leg(Side::Client) {
            let _ = socket::set_readable_from(client, 1);
        }
        let named = match verdict {
            Peek::Hello(hello) => hello.server_name,
            Peek::Foreign | Peek::Incomplete => None,
        };
        let place = named.and_then(|name| relay.service().routes.as_ref()?.find(&name));
        if let Some(behind) = place.and_then(|place| self.snapshot.service(place)) {
            relay.led_to(Arc::clone(behind));
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
}
