//! Who serves a new connection: the one decision for both planes.

use std::net::{IpAddr, SocketAddr};

use towpath_config::model::Persistence;

use crate::balancer::{BalancerState, Candidates};
use crate::counters::Termination;
use crate::ids::{RealServerId, TargetIndex};
use crate::loads::{Full, Loads};
use crate::persistence::{PersistenceKey, PersistenceTable, Pin};
use crate::snapshot::{Service, Target};
use crate::time::Now;

/// Real servers that a [`Tried`] remembers: as many as `redispatch` may be in a configuration.
pub const TRIED_MAX: usize = 16;

/// Real servers already tried for one connection, so that a redispatch goes elsewhere.
///
/// Holds ids, not places: a newer snapshot may come between two tries. When full, the oldest gives way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    servers: [RealServerId; TRIED_MAX],
    len: u8,
    next: u8,
}

impl Tried {
    /// None tried yet.
    pub const fn new() -> Tried {
        Tried { servers: [RealServerId(0); TRIED_MAX], len: 0, next: 0 }
    }

    /// Remembers `server`.
    pub fn insert(&mut self, server: RealServerId) {
        if self.contains(server) {
            return;
        }
        self.servers[usize::from(self.next)] = server;
        self.next = (self.next + 1) % TRIED_MAX as u8;
        self.len = (self.len + 1).min(TRIED_MAX as u8);
    }

    /// Whether `server` was tried.
    #[inline]
    pub fn contains(&self, server: RealServerId) -> bool {
        self.servers[..self.len()].contains(&server)
    }

    /// Servers remembered.
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether none was tried.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The server of a new connection, already counted in [`Loads`]: whoever takes it must call [`Loads::close`] once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a pick is counted as a connection until it is closed"]
pub struct Pick {
    /// Its place in [`Service::targets`] of the snapshot that was asked.
    pub target: TargetIndex,
    /// Its id.
    pub server: RealServerId,
    /// How it came to be this one.
    pub why: PickReason,
}

/// How a server came to be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PickReason {
    /// Nothing named a server for the client: the balancer chose.
    Balanced,
    /// The client's server was at `max_connections`, or the port that the client came to was down there: the balancer chose another for this connection, the entry stays.
    Overflowed,
    /// The client came back to its server.
    Persistent,
    /// Nobody else could take it: it gets the sorry server for this connection, an entry stays.
    Consoled,
    /// The client's server could not take it (down, halted, draining, gone, or its connect failed): the balancer chose, and
    /// the entry, if there is one, names the new one.
    Repinned,
}

impl PickReason {
    /// Whether the client is to come back to the server that it got.
    pub fn is_remembered(self) -> bool {
        match self {
            PickReason::Balanced | PickReason::Persistent | PickReason::Repinned => true,
            PickReason::Consoled | PickReason::Overflowed => false,
        }
    }
}

/// Why nobody serves a new connection. Nothing was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// No real server is up, ready, of some weight and untried.
    NoServer,
    /// Those that are were all at `max_connections`.
    ServersFull,
    /// The service is at its `max_connections`.
    ServiceFull,
}

impl From<Refusal> for Termination {
    fn from(refusal: Refusal) -> Termination {
        match refusal {
            Refusal::NoServer => Termination::NoServer,
            Refusal::ServersFull => Termination::ServersFull,
            Refusal::ServiceFull => Termination::ServiceFull,
        }
    }
}

/// [`pick_pinned`] for a client that is known by its address and came to the first port of the service.
///
/// `persistence` is the stripe of this client ([`crate::persistence::key_stripe`]).
pub fn pick(
    service: &Service,
    state: &mut BalancerState,
    persistence: &mut PersistenceTable,
    loads: &impl Loads,
    client: SocketAddr,
    tried: &Tried,
    now: Now,
) -> Result<Pick, Refusal> {
    let pin = Pin::of_address(service, client.ip());
    let port = service.ports.first().copied().unwrap_or_default();
    let client = Client { address: client.ip(), port, pin };
    pick_pinned(service, state, persistence, loads, client, tried, now)
}

/// Who asks for a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its address, for balancing by it.
    pub address: IpAddr,
    /// The port of the service that it came to.
    pub port: u16,
    /// The server that it should come back to.
    pub pin: Pin,
}

/// Picks the real server for a new connection of `client` and counts the connection.
///
/// First the client's own server, if its pin names one that may take it ([`crate::snapshot::Target::takes_pinned`]); else
/// the balancer chooses among the members that take new connections, serve the port, are not in `tried` and have room, as long as there are any only among
/// those with fewer connections than their `min_connections`. If there is none, and none that is only full, it chooses among those that stand by, then it
/// takes the sorry server. A success records or refreshes the client's entry, but never with that one. `max_connections` is never exceeded, whoever else counts on the same `loads`.
///
/// `state` belongs to this service, `persistence` is the stripe of this pin ([`Pin::stripe`]); for a
/// service without persistence it is not looked at, and a table of capacity 0 will do. Allocates nothing once `state` has
/// seen the service; O(members).
pub fn pick_pinned(
    service: &Service,
    state: &mut BalancerState,
    persistence: &mut PersistenceTable,
    loads: &impl Loads,
    client: Client,
    tried: &Tried,
    now: Now,
) -> Result<Pick, Refusal> {
    let open = |target: TargetIndex| {
        let member = &service.targets[target.index()];
        loads.try_open(service.id, service.max_connections, member.server, member.max_connections)
    };
    let of_key = |key, rule: &Persistence| Some(Entry { key, expires: now + rule.timeout_ms });
    let (entry, named) = match (&service.persistence, client.pin) {
        (Some(rule), Pin::Key(key)) => (of_key(key, rule), persistence.lookup(key, now)),
        (Some(rule), Pin::Offered(key)) => match persistence.lookup(key, now) {
            Some(server) => (of_key(key, rule), Some(server)),
            None => (None, None),
        },
        (_, Pin::Server(server)) => (None, Some(server)),
        (_, Pin::Nobody) | (None, _) => (None, None),
    };

    state.look_at(now);
    let mut why = PickReason::Balanced;
    let mut somebody_full = false;
    if let (Some(server), Some(rule)) = (named, &service.persistence) {
        why = PickReason::Repinned;
        if let Some((target, member)) = service.target_of(server)
            && member.takes_pinned(rule)
            && !tried.contains(server)
        {
            let opened = if member.serves(client.port) { open(target) } else { Err(Full::Server) };
            match opened {
                Ok(()) => {
                    if let Some(entry) = &entry {
                        persistence.record(entry.key, server, entry.expires, now);
                    }
                    return Ok(Pick { target, server, why: PickReason::Persistent });
                }
                Err(Full::Service) => return Err(Refusal::ServiceFull),
                Err(Full::Server) => {
                    why = PickReason::Overflowed;
                    somebody_full = member.serves(client.port);
                }
            }
        }
        if let Some(entry) = entry.as_ref().filter(|_| why == PickReason::Overflowed) {
            persistence.record(entry.key, server, entry.expires, now);
        }
    }

    if !somebody_full && let Some(target) = state.choose_at_once(service, tried, loads) {
        match open(target) {
            Ok(()) => {
                state.taken_at_once(target);
                return Ok(take(service, persistence, entry.as_ref(), target, why, now));
            }
            Err(Full::Service) => return Err(Refusal::ServiceFull),
            // Another service took its last place since it was looked at.
            Err(Full::Server) => somebody_full = true,
        }
    }

    let mut candidates = candidates(service, client.port, tried, loads, Target::takes_new, &mut somebody_full);
    for may in [Target::stands_by, Target::is_last_resort] {
        if candidates.is_empty() && !somebody_full {
            candidates = self::candidates(service, client.port, tried, loads, may, &mut somebody_full);
        }
    }
    let mut others = if service.has_minimums { set_aside(service, &mut candidates, loads) } else { None };

    loop {
        let Some(target) = state.choose(service, &candidates, loads, client.address) else {
            match others.take() {
                Some(those) => candidates = those,
                None => break,
            }
            continue;
        };
        match open(target) {
            Ok(()) => {
                state.taken(service, &candidates, target);
                return Ok(take(service, persistence, entry.as_ref(), target, why, now));
            }
            Err(Full::Service) => return Err(Refusal::ServiceFull),
            // Another service took the last place of a shared server since it was looked at.
            Err(Full::Server) => {
                somebody_full = true;
                candidates.remove(target);
            }
        }
    }
    Err(if somebody_full { Refusal::ServersFull } else { Refusal::NoServer })
}

/// The pick of a member that the balancer chose and on which the connection is counted; the client is remembered as its own, unless it is sent there for
/// this time only.
#[inline]
fn take(
    service: &Service,
    persistence: &mut PersistenceTable,
    entry: Option<&Entry>,
    target: TargetIndex,
    why: PickReason,
    now: Now,
) -> Pick {
    let member = &service.targets[target.index()];
    let why = if member.is_sorry() { PickReason::Consoled } else { why };
    if let Some(entry) = entry.filter(|_| why.is_remembered()) {
        persistence.record(entry.key, member.server, entry.expires, now);
    }
    Pick { target, server: member.server, why }
}

/// Leaves those that have not as many connections as they are to have before others get more, if there are any, and gives back the others.
fn set_aside(service: &Service, candidates: &mut Candidates, loads: &impl Loads) -> Option<Candidates> {
    let (mut below, mut others) = (Candidates::new(), Candidates::new());
    for target in candidates.iter() {
        let member = &service.targets[target.index()];
        let is_below = loads.active(member.server) < member.min_connections;
        if is_below { below.insert(target) } else { others.insert(target) }
    }
    below.iter().next()?;
    *candidates = below;
    Some(others)
}

/// Who of those that `may` take clients is not in `tried`, serves the port and has room; notes whether somebody has none.
fn candidates(
    service: &Service,
    port: u16,
    tried: &Tried,
    loads: &impl Loads,
    may: impl Fn(&Target) -> bool,
    somebody_full: &mut bool,
) -> Candidates {
    let mut candidates = Candidates::new();
    for (place, member) in service.targets.iter().enumerate() {
        if !may(member) || !member.serves(port) || tried.contains(member.server) {
            continue;
        }
        if member.max_connections != 0 && loads.active(member.server) >= member.max_connections {
            *somebody_full = true;
            continue;
        }
        candidates.insert(TargetIndex(place as u16));
    }
    candidates
}

/// The entry of a client, and until when it lives if it is written now.
struct Entry {
    key: PersistenceKey,
    expires: Now,
}

/// The client with this key comes back to `server`: the server said so itself, in a response. `persistence` is the stripe of the key.
pub fn learn(
    service: &Service,
    persistence: &mut PersistenceTable,
    key: PersistenceKey,
    server: RealServerId,
    now: Now,
) {
    if let Some(rule) = &service.persistence {
        persistence.record(key, server, now + rule.timeout_ms, now);
    }
}

/// The same where nothing is known under this key yet: what leads one client back is not to lead another one away, who has the same address, say.
pub fn learn_if_absent(
    service: &Service,
    persistence: &mut PersistenceTable,
    key: PersistenceKey,
    server: RealServerId,
    now: Now,
) {
    if let Some(rule) = &service.persistence {
        persistence.record_if_absent(key, server, now + rule.timeout_ms, now);
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
