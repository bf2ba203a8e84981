//! Connections to real servers that clients share (`reuse = "safe"`): lent for an exchange, settled when it is over, and looked after while they wait.
//!
//! Nothing is in flight on one that waits, and nothing of it is left here: what its server says meanwhile, or that it has closed, is seen in the kernel's
//! queue, when it is taken and once a second. Either way it is closed: what nobody has asked for is nobody's answer.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound::{Excluded, Unbounded};

use towpath_config::model::{AdminState, BalanceEach, Reuse};
use towpath_core::counters::ServiceCounter;
use towpath_core::director::Refusal;
use towpath_core::http::pinning::{Binding, Idle, Lent, Settled, Shared};
use towpath_core::http::{After, Reading};
use towpath_core::loads::Loads;
use towpath_core::session::Side;
use towpath_core::snapshot::{Service, ServiceSource, Snapshot, Target};
use towpath_core::{Now, RealServerId, ServiceId};
use towpath_sys::socket;

use super::super::legs::{ServerConnection, ServerLeg, Terms};
use super::super::relay::Relay;
use super::super::token::Key;
use super::super::{PortUse, Worker};
use super::flow::{Inlet, Outlet, Receive};
use super::server::{Next, ServerState};
use super::{Conversation, Stage};
use crate::tls::TlsContexts;

/// How often those that wait are looked at, …
const LOOK_MS: u64 = 1_000;
/// … and how many of them in one breath, about.
const LOOKED_AT_ONCE: usize = 512;
/// One that was used within this time is known to be good: no server waits for so short. Requests that cannot be sent again go by no other.
const GOOD_MS: u64 = 1_000;

/// What waits for the next client.
#[derive(Default)]
pub(in super::super) struct ServerPool {
    /// By service and real server; none is empty.
    idle: BTreeMap<(ServiceId, RealServerId), Idle<ServerConnection>>,
    /// When they are looked at next, while there are any.
    look_at: Option<Now>,
    /// Behind whom the look goes on that is under way.
    looked: Option<(ServiceId, RealServerId)>,
}

impl ServerPool {
    /// When they are looked at next.
    pub(in super::super) fn next_look(&self) -> Option<Now> {
        self.look_at
    }

    /// Takes out all that nobody is to have any more.
    fn sort_out(&mut self, mut goes: impl FnMut(&ServerConnection) -> bool) -> Vec<Shared<ServerConnection>> {
        let gone = self.idle.values_mut().flat_map(|idle| idle.sort_out(&mut goes)).collect();
        self.idle.retain(|_, idle| !idle.is_empty());
        gone
    }

    /// The one that has waited longest of those of a real server, whichever service it is of.
    fn remove_oldest_of(&mut self, server: RealServerId) -> Option<Shared<ServerConnection>> {
        let idle = self.idle.iter_mut().find(|((_, of), idle)| *of == server && !idle.is_empty());
        idle.and_then(|(_, idle)| idle.remove_oldest())
    }
}

/// How it is with a connection that waits.
enum State {
    /// Nothing has come, and it has not ended.
    Calm,
    /// Its server has ended it.
    Ended,
    /// Its server has said something unasked, or it has failed.
    Broken,
}

impl State {
    fn of(connection: &ServerConnection) -> State {
        match socket::peek(&connection.socket, &mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => State::Calm,
            Ok(0) => State::Ended,
            Ok(_) | Err(_) => State::Broken,
        }
    }

    /// What may still know of its port when it is closed.
    fn port_use(&self) -> PortUse {
        match self {
            State::Ended => PortUse::Over,
            State::Calm | State::Broken => PortUse::Lingering,
        }
    }
}

/// How many may wait of one service and real server, and how long; `None` where clients share none.
fn room(service: &Service) -> Option<(u32, u64)> {
    match service.http.as_ref()?.rules.config().reuse {
        Reuse::Never => None,
        Reuse::Safe { idle_max, idle_timeout_ms } => Some((idle_max, idle_timeout_ms)),
    }
}

/// Whether somebody who comes now would be given just this connection if it were dialled for him.
fn is_current(connection: &ServerConnection, snapshot: &Snapshot, tls: &TlsContexts) -> bool {
    let Some(terms) = connection.terms.as_deref() else { return false };
    let Some(newest) = snapshot.service(terms.service.place) else { return false };
    let Some((_, target)) = newest.target_of(terms.server) else { return false };
    let same_source = match (&newest.source, &connection.lease) {
        (ServiceSource::Pool(pool), Some(lease)) => pool.addresses().contains(&lease.address()),
        (ServiceSource::Interface, None) => true,
        _ => false,
    };
    let same_tls = match (tls.service(newest.id), &terms.service_tls) {
        (Some(newest), Some(then)) => std::sync::Arc::ptr_eq(newest, then),
        (None, None) => true,
        _ => false,
    };
    newest.id == terms.service.id
        && newest.name == terms.service.name
        && room(newest).is_some()
        && room(newest) == room(&terms.service)
        && target.admin == AdminState::Ready
        && target.is_trusted()
        && target.destination(terms.destination.port()) == terms.destination
        && same_source
        && same_tls
}

impl Conversation {
    /// Whether what is dialled for the request at hand may serve other clients afterwards.
    pub(in super::super) fn shares(&self) -> bool {
        room(&self.front).is_some() && !self.exchange.is_bound()
    }

    /// Whether the request at hand may be sent by one that others have used. Of a stream of HTTP/2 only one that can be sent again: its client has no
    /// connection whose end could say that nobody knows what became of it.
    fn may_borrow(&self, is_spoke: bool) -> bool {
        let may_be_lent = if is_spoke {
            !self.exchange.is_bound() && self.exchange.may_be_repeated()
        } else {
            self.exchange.may_be_lent()
        };
        !self.wants_fresh && room(&self.front).is_some() && may_be_lent
    }
}

impl Relay {
    /// What a connection to the server at hand is dialled for.
    pub(in super::super) fn terms(&self) -> Option<Terms> {
        let server = self.server().filter(|server| !self.tells_of_client(*server))?;
        let (client_name, client_alpn) = self.told_by_client(server);
        Some(Terms {
            service: self.service().clone(),
            server,
            destination: self.destination(),
            service_tls: self.service_tls.clone(),
            client_name: client_name.map(Box::from),
            client_alpn: client_alpn.map(Box::from),
        })
    }

    /// Whether a connection to this server begins with the client's address (PROXY protocol): that is nobody else's.
    fn tells_of_client(&self, server: RealServerId) -> bool {
        self.service().target_of(server).is_none_or(|(_, target)| target.proxy.is_some())
    }

    /// What the handshake with the server says of the client.
    fn told_by_client(&self, server: RealServerId) -> (Option<&str>, Option<&[u8]>) {
        let Some(context) = self.service_tls.as_ref().and_then(|tls| tls.towards(server)) else { return (None, None) };
        let client = self.legs.tls(Side::Client).and_then(|leg| leg.handshake.as_ref());
        let name = self.client_name.as_deref().filter(|_| context.asks_for_clients_name());
        (name, client.and_then(|handshake| handshake.connection.alpn()))
    }

    /// Whether a connection that was dialled for this is what would be dialled now.
    fn would_dial(&self, terms: &Terms) -> bool {
        let same_tls = match (&self.service_tls, &terms.service_tls) {
            (Some(now), Some(then)) => std::sync::Arc::ptr_eq(now, then),
            (None, None) => true,
            _ => false,
        };
        let told = (terms.client_name.as_deref(), terms.client_alpn.as_deref());
        self.service().id == terms.service.id
            && self.server() == Some(terms.server)
            && !self.tells_of_client(terms.server)
            && self.destination() == terms.destination
            && same_tls
            && self.told_by_client(terms.server) == told
    }
}

impl Worker {
    /// Has a server chosen for the request at hand and takes a connection to it that waits; says whether there was one.
    pub(super) fn borrow(&mut self, key: Key) -> io::Result<Result<bool, Refusal>> {
        let is_spoke = self.relays.get(key).is_some_and(Relay::is_spoke);
        if !self.conversation(key).is_some_and(|conversation| conversation.may_borrow(is_spoke)) {
            return Ok(Ok(false));
        }
        if self.relays.get(key).is_some_and(|relay| relay.server().is_none())
            && let Err(refusal) = self.choose(key)
        {
            return Ok(Err(refusal));
        }
        let Some(lent) = self.take_idle(key)? else { return Ok(Ok(false)) };
        self.count(key, ServiceCounter::ServerReused);
        let Some(relay) = self.relays.get_mut(key) else { return Ok(Ok(false)) };
        relay.legs.server = ServerLeg::Lent(lent);
        if relay.note_opened() {
            self.count(key, ServiceCounter::Opened);
        }
        let Some(conversation) = self.conversation(key) else { return Ok(Ok(false)) };
        conversation.server = ServerState::Up { kept: true };
        conversation.inlets[Side::Server.index()].note_drained();
        Ok(Ok(true))
    }

    /// A connection that waits, to the server at hand, on which nothing has come.
    fn take_idle(&mut self, key: Key) -> io::Result<Option<Lent<ServerConnection>>> {
        loop {
            let Some(relay) = self.relays.get(key) else { return Ok(None) };
            let Some(place) = relay.server().map(|server| (relay.service().id, server)) else { return Ok(None) };
            let Some(idle) = self.pool.idle.get_mut(&place) else { return Ok(None) };
            let may_repeat = relay.http.as_deref().is_some_and(|conversation| conversation.exchange.may_be_repeated());
            let now = self.now;
            let fits = |connection: &ServerConnection| {
                (may_repeat || now.ms_since(connection.since) < GOOD_MS)
                    && connection.terms.as_deref().is_some_and(|terms| relay.would_dial(terms))
            };
            let Some(shared) = idle.remove_fitting(fits) else { return Ok(None) };
            if idle.is_empty() {
                self.pool.idle.remove(&place);
            }
            match State::of(shared.connection()) {
                State::Calm => {
                    self.note_idle(place.1, -1);
                    return Ok(Some(shared.lend()));
                }
                state => self.close_idle(shared, ServiceCounter::ServerIdleEnded, state.port_use())?,
            }
        }
    }

    /// Counts the client on the server of its request before, if all of its requests go to one; says whether it does.
    pub(super) fn stay_with_last(&mut self, key: Key) -> bool {
        let Worker { relays, shared, .. } = self;
        let Some(relay) = relays.get_mut(key) else { return false };
        let Some(conversation) = relay.http.as_deref() else { return false };
        let each = conversation.front.http.as_ref().map(|http| http.rules.config().balance_each);
        let Some((place, server)) = conversation.last.filter(|_| each == Some(BalanceEach::Connection)) else {
            return false;
        };
        let service = std::sync::Arc::clone(relay.service());
        // Its client names another one by the cookie, as with a connection that is at hand.
        if conversation.named.is_some_and(|named| named != server && service.takes_back(named)) {
            return false;
        }
        let port = relay.service_port();
        let takes = |target: &Target| target.takes_new() && !target.is_sorry() && target.serves(port);
        let Some((_, target)) = service.target_of(server).filter(|(_, target)| takes(target)) else {
            return false;
        };
        let stays = service.place == place && shared.reopen(&service, target);
        if stays {
            relay.count_on(target);
        }
        stays
    }

    /// The exchange over the server's leg is over, and the leg may go on: it stays with this client, or becomes anybody's.
    pub(super) fn settle(&mut self, key: Key, after: After) -> io::Result<()> {
        let binding = after.binding;
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        let leg = match relay.legs.server.take() {
            ServerLeg::Lent(lent) if binding == Binding::Bound => match lent.settle(binding) {
                Settled::Pinned(pinned) => ServerLeg::Pinned(pinned),
                Settled::Shared(shared) => ServerLeg::Lent(shared.lend()),
            },
            leg => leg,
        };
        let is_lent = matches!(leg, ServerLeg::Lent(_));
        relay.legs.server = leg;
        if let Some(conversation) = relay.http.as_deref_mut()
            && is_lent
            && matches!(conversation.server, ServerState::Up { .. })
        {
            if after.reading == Reading::Unknown {
                self.count(key, ServiceCounter::ServerIdleRefused);
                return self.part(key, Next::Nothing);
            }
            conversation.server = ServerState::Settling;
        }
        Ok(())
    }

    /// Lets a connection wait for the next client as soon as nothing of it is needed here; says whether it is gone from here.
    pub(super) fn finish_settling(&mut self, key: Key) -> io::Result<bool> {
        let now = self.now;
        let Some(relay) = self.relays.get_mut(key) else { return Ok(false) };
        let Some(conversation) = relay.http.as_deref_mut() else { return Ok(false) };
        if !matches!(conversation.server, ServerState::Settling) || conversation.is_stopping() {
            return Ok(false);
        }
        // The end of the response is sent from where its leg has put it.
        if conversation.outlets[Side::Client.index()].holds_received() {
            return Ok(false);
        }
        let (inlet, outlet) = (&conversation.inlets[Side::Server.index()], &conversation.outlets[Side::Server.index()]);
        let is_silent = inlet.receive == Receive::Idle && inlet.held.is_none() && inlet.end.is_none();
        let has_left = outlet.is_empty() && !outlet.broken;
        let is_between = conversation.stage == Stage::Between && !conversation.exchange.is_bound();
        let is_calm = relay.legs.tls(Side::Server).is_none_or(|leg| leg.is_calm());
        if !(is_silent && has_left && is_between && is_calm) || self.stopping.is_some() {
            self.count(key, ServiceCounter::ServerIdleRefused);
            self.part(key, Next::Nothing)?;
            return Ok(true);
        }
        // Nothing is in a pipe between two requests; what is known of this server goes with it.
        self.drop_bulk(key)?;
        let Some(relay) = self.relays.get_mut(key) else { return Ok(false) };
        let Some(conversation) = relay.http.as_deref_mut() else { return Ok(false) };
        let ServerLeg::Lent(mut lent) = relay.legs.server.take() else { return Ok(false) };
        lent.connection_mut().since = now;
        conversation.server = ServerState::Absent;
        conversation.inlets[Side::Server.index()] = Inlet::default();
        conversation.outlets[Side::Server.index()] = Outlet::default();
        conversation.acknowledge_at = None;
        let place = relay.service().place;
        let last = relay.server().map(|server| (place, server));
        if let Some(conversation) = relay.http.as_deref_mut() {
            conversation.last = last;
        }
        self.uncount(key);
        match lent.settle(Binding::Free) {
            Settled::Shared(shared) => self.put_by(shared)?,
            // Not what a free one becomes; it is nobody's.
            Settled::Pinned(pinned) => self.end_server_connection(pinned.end(), PortUse::Lingering)?,
        }
        Ok(true)
    }

    /// Puts a connection by for the next client, in the place of the oldest where there is no room.
    fn put_by(&mut self, shared: Shared<ServerConnection>) -> io::Result<()> {
        let is_current = is_current(shared.connection(), &self.snapshot, &self.tls);
        let terms = shared.connection().terms.as_deref().filter(|_| is_current);
        let Some((terms, (max, _))) = terms.and_then(|terms| Some((terms, room(&terms.service)?))) else {
            return self.end_server_connection(shared.end(), PortUse::Lingering);
        };
        let place = (terms.service.id, terms.server);
        let idle = self.pool.idle.entry(place).or_insert_with(|| Idle::with_room(max as usize));
        let (oldest, refused) = match idle.insert(shared) {
            Ok(()) => (None, None),
            Err(shared) => (idle.remove_oldest(), idle.insert(shared).err()),
        };
        self.note_idle(place.1, 1);
        self.pool.look_at.get_or_insert(self.now + LOOK_MS);
        for crowded in [oldest, refused].into_iter().flatten() {
            self.close_idle(crowded, ServiceCounter::ServerIdleRefused, PortUse::Lingering)?;
        }
        Ok(())
    }

    /// Closes those that have waited too long, and those that their servers have closed.
    pub(in super::super) fn look_at_idle(&mut self) -> io::Result<()> {
        if self.pool.look_at.is_none_or(|due| self.now < due) {
            return Ok(());
        }
        let now = self.now;
        let (mut looked_at, mut gone) = (0, Vec::new());
        let after = self.pool.looked.take().map_or(Unbounded, Excluded);
        for (place, idle) in self.pool.idle.range_mut((after, Unbounded)) {
            looked_at += idle.len();
            gone.append(&mut idle.sort_out(|connection| {
                let timeout_ms =
                    connection.terms.as_deref().and_then(|terms| room(&terms.service)).map_or(0, |(_, ms)| ms);
                let waited_ms = now.ms_since(connection.since);
                // One that is used all the time is looked at when it is taken.
                waited_ms >= timeout_ms || (waited_ms >= LOOK_MS && !matches!(State::of(connection), State::Calm))
            }));
            if looked_at >= LOOKED_AT_ONCE {
                self.pool.looked = Some(*place);
                break;
            }
        }
        self.pool.idle.retain(|_, idle| !idle.is_empty());
        self.pool.look_at = match (self.pool.idle.is_empty(), self.pool.looked) {
            (true, _) => {
                self.pool.looked = None;
                None
            }
            (false, Some(_)) => Some(now),
            (false, None) => Some(now + LOOK_MS),
        };
        for shared in gone {
            let state = State::of(shared.connection());
            let counter = match state {
                State::Calm => ServiceCounter::ServerIdleTimedOut,
                State::Ended | State::Broken => ServiceCounter::ServerIdleEnded,
            };
            self.close_idle(shared, counter, state.port_use())?;
        }
        Ok(())
    }

    /// Closes those that the snapshot at hand would not dial: of servers that drain, are halted, down or gone, of services that have changed.
    pub(in super::super) fn retire_idle(&mut self) -> io::Result<()> {
        let Worker { pool, snapshot, tls, .. } = self;
        let gone = pool.sort_out(|connection| !is_current(connection, snapshot, tls));
        for shared in gone {
            self.close_idle(shared, ServiceCounter::ServerIdleRetired, PortUse::Lingering)?;
        }
        Ok(())
    }

    /// Closes all: the process stops.
    pub(in super::super) fn close_all_idle(&mut self) -> io::Result<()> {
        for shared in self.pool.sort_out(|_| true) {
            self.close_idle(shared, ServiceCounter::ServerIdleRetired, PortUse::Lingering)?;
        }
        (self.pool.look_at, self.pool.looked) = (None, None);
        Ok(())
    }

    /// Makes room for a connection to the server at hand, if those that wait fill the places that it has (`max_connections`): one gives way, here or at
    /// another worker.
    pub(in super::super) fn make_room(&mut self, key: Key) -> io::Result<()> {
        let Some(relay) = self.relays.get(key) else { return Ok(()) };
        let target = relay.server().and_then(|server| relay.service().target_of(server));
        let Some((server, max)) = target.map(|(_, target)| (target.server, target.max_connections)) else {
            return Ok(());
        };
        if max == 0 {
            return Ok(());
        }
        let idle: u32 = self.shared.seats().map(|seat| seat.idle(server)).sum();
        if idle == 0 || self.shared.loads().active(server) + idle <= max {
            return Ok(());
        }
        if let Some(oldest) = self.pool.remove_oldest_of(server) {
            self.pool.idle.retain(|_, idle| !idle.is_empty());
            return self.close_idle(oldest, ServiceCounter::ServerIdleRetired, PortUse::Lingering);
        }
        if let Some(seat) = self.shared.seats().find(|seat| seat.idle(server) > 0) {
            seat.want_room(server);
        }
        Ok(())
    }

    /// Another worker needs a place on a server that those that wait here have.
    pub(in super::super) fn give_room(&mut self) -> io::Result<()> {
        let Some(server) = self.shared.seat(self.id).take_wanted_room() else { return Ok(()) };
        let Some(oldest) = self.pool.remove_oldest_of(server) else { return Ok(()) };
        self.pool.idle.retain(|_, idle| !idle.is_empty());
        self.close_idle(oldest, ServiceCounter::ServerIdleRetired, PortUse::Lingering)
    }

    /// Closes one that was put by.
    fn close_idle(&mut self, shared: Shared<ServerConnection>, why: ServiceCounter, used: PortUse) -> io::Result<()> {
        let connection = shared.end();
        if let Some(terms) = connection.terms.as_deref() {
            self.shared.seat(self.id).service_page(terms.service.id).add(why, 1);
            self.note_idle(terms.server, -1);
        }
        self.end_server_connection(connection, used)
    }

    fn end_server_connection(&mut self, mut connection: ServerConnection, used: PortUse) -> io::Result<()> {
        if let Some(leg) = &mut connection.tls {
            leg.say_goodbye(&connection.socket);
        }
        debug_assert!(connection.terms.is_some(), "what was shared was dialled on terms");
        let Some(terms) = connection.terms.take() else { return Ok(()) };
        self.close_server_connection(connection, &terms.service, used)
    }

    fn note_idle(&self, server: RealServerId, change: i32) {
        self.shared.seat(self.id).note_idle(server, change);
    }
}
