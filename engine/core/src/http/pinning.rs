//! Connections to real servers that belong to one client for life, as types.
//!
//! NTLM, Negotiate and Kerberos authenticate the connection, not the request: whoever sends the next request over it is taken for who logged in.
//! So a connection that has seen any of them, in a request or in a response, must never serve another client. A pool takes [`Shared`] connections
//! only; what a client uses is [`Lent`], and becomes [`Shared`] again only by [`Lent::settle`], which looks at what the exchange has seen.
//! There is no way back from [`Pinned`].
//!
//! ```compile_fail
//! # use towpath_core::http::pinning::{Idle, Pinned};
//! let mut idle = Idle::with_room(4);
//! idle.insert(Pinned::new("a connection"));
//! ```

use std::collections::VecDeque;

use super::fields::{Field, Known};

/// Schemes that authenticate each request for itself (the registry of RFC 9110 §16.4.1, without Negotiate; DPoP is RFC 9449). Whoever
/// uses another one is taken to authenticate the connection: that costs a connection, the opposite an identity.
const OF_REQUESTS: [&str; 14] = [
    "AWS4-HMAC-SHA256",
    "Basic",
    "Bearer",
    "Concealed",
    "Digest",
    "DPoP",
    "GNAP",
    "HOBA",
    "Mutual",
    "OAuth",
    "PrivateToken",
    "SCRAM-SHA-1",
    "SCRAM-SHA-256",
    "vapid",
];

/// Whether a connection has seen what authenticates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// It has, or may have.
    Bound,
    /// It has not.
    Free,
}

/// A connection that belongs to one client's connection for life.
#[derive(Debug)]
pub struct Pinned<C>(C);

impl<C> Pinned<C> {
    /// Dialled for one client.
    pub fn new(connection: C) -> Pinned<C> {
        Pinned(connection)
    }

    /// The connection, to be looked at.
    pub fn connection(&self) -> &C {
        &self.0
    }

    /// The connection, to be used for its client.
    pub fn connection_mut(&mut self) -> &mut C {
        &mut self.0
    }

    /// The connection, to be closed.
    pub fn end(self) -> C {
        self.0
    }
}

/// A connection that serves one client for the time of an exchange.
#[derive(Debug)]
pub struct Lent<C>(C);

impl<C> Lent<C> {
    /// Dialled for whoever is first.
    pub fn new(connection: C) -> Lent<C> {
        Lent(connection)
    }

    /// The connection, to be looked at.
    pub fn connection(&self) -> &C {
        &self.0
    }

    /// The connection, to be used for its client.
    pub fn connection_mut(&mut self) -> &mut C {
        &mut self.0
    }

    /// The connection, to be closed.
    pub fn end(self) -> C {
        self.0
    }

    /// The exchange is over: the connection is anybody's again, or this client's for life.
    pub fn settle(self, seen: Binding) -> Settled<C> {
        match seen {
            Binding::Bound => Settled::Pinned(Pinned(self.0)),
            Binding::Free => Settled::Shared(Shared(self.0)),
        }
    }
}

/// Whose a connection is after an exchange.
#[derive(Debug)]
pub enum Settled<C> {
    /// Of this client's connection.
    Pinned(Pinned<C>),
    /// Anybody's.
    Shared(Shared<C>),
}

/// A connection that no client has authenticated, and none uses.
#[derive(Debug)]
pub struct Shared<C>(C);

impl<C> Shared<C> {
    /// For one client, until its exchange is over.
    pub fn lend(self) -> Lent<C> {
        Lent(self.0)
    }

    /// The connection, to be looked at.
    pub fn connection(&self) -> &C {
        &self.0
    }

    /// The connection, to be closed.
    pub fn end(self) -> C {
        self.0
    }
}

/// Connections to one real server that wait for the next client. Bounded: who comes when it is full is given back, to be closed.
#[derive(Debug)]
pub struct Idle<C> {
    waiting: VecDeque<Shared<C>>,
    max: usize,
}

impl<C> Idle<C> {
    /// None yet, and never more than `max`.
    pub fn with_room(max: usize) -> Idle<C> {
        Idle { waiting: VecDeque::new(), max }
    }

    /// Keeps it for the next client; there is no room: it comes back.
    pub fn insert(&mut self, connection: Shared<C>) -> Result<(), Shared<C>> {
        if self.waiting.len() >= self.max {
            return Err(connection);
        }
        self.waiting.push_back(connection);
        Ok(())
    }

    /// The one that was used last: the real server is least likely to have closed it.
    pub fn remove(&mut self) -> Option<Shared<C>> {
        self.waiting.pop_back()
    }

    /// Of those that `fit`, the one that was used last.
    pub fn remove_fitting(&mut self, fits: impl FnMut(&C) -> bool) -> Option<Shared<C>> {
        let place = self.waiting.iter().map(|shared| &shared.0).rposition(fits)?;
        self.waiting.remove(place)
    }

    /// The one that has waited longest, to make room.
    pub fn remove_oldest(&mut self) -> Option<Shared<C>> {
        self.waiting.pop_front()
    }

    /// Takes out, the oldest first, those that nobody is to have any more.
    pub fn sort_out(&mut self, mut goes: impl FnMut(&C) -> bool) -> Vec<Shared<C>> {
        let mut gone = Vec::new();
        for _ in 0..self.waiting.len() {
            let Some(shared) = self.waiting.pop_front() else { break };
            if goes(&shared.0) { gone.push(shared) } else { self.waiting.push_back(shared) }
        }
        gone
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

/// Whether a head has what authenticates the connection: credentials or challenges of such a scheme, or what IIS says about it.
pub(super) fn binds(fields: &[Field], head: &[u8]) -> bool {
    fields.iter().any(|field| {
        let value = field.value.bytes(head);
        match field.known {
            Known::Authorization | Known::ProxyAuthorization => !is_of_requests(scheme(value)),
            Known::ProxyAuthenticate | Known::WwwAuthenticate => challenges_bind(value),
            Known::PersistentAuth => true,
            Known::Connection
            | Known::ContentLength
            | Known::Host
            | Known::KeepAlive
            | Known::Nominated
            | Known::Other
            | Known::ProxyConnection
            | Known::Te
            | Known::TransferEncoding
            | Known::Upgrade => false,
        }
    })
}

/// Whether one of a list of challenges is of such a scheme. The parameters of a challenge are separated by commas as well, and may have commas in
/// quotes (RFC 9110 §11.6.1).
fn challenges_bind(list: &[u8]) -> bool {
    let (mut quoted, mut escaped) = (false, false);
    let mut challenges = list.split(|byte| {
        let quote = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && quoted && !escaped;
        quoted ^= quote;
        *byte == b',' && !quoted
    });
    let binds = challenges.any(|element| {
        let scheme = scheme(element.trim_ascii());
        !scheme.is_empty() && !scheme.contains(&b'=') && !is_of_requests(scheme)
    });
    drop(challenges);
    binds || quoted
}

fn scheme(value: &[u8]) -> &[u8] {
    value.split(|byte| matches!(byte, b' ' | b'\t')).next().unwrap_or_default()
}

fn is_of_requests(scheme: &[u8]) -> bool {
    OF_REQUESTS.iter().any(|known| scheme.eq_ignore_ascii_case(known.as_bytes()))
}
