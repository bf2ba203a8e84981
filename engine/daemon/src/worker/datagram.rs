//! UDP on the stream plane: one session per client address and port, one connected socket towards its real server.
//!
//! Where clients are known by their SIP calls, each call of a client is a session: a proxy sends those of all its users from one port.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use towpath_config::model::{AdminState, Protocol};
use towpath_core::counters::{ServiceCounter, Termination};
use towpath_core::director::{PickReason, Tried};
use towpath_core::persistence::{Known, PersistenceKey, Seen};
use towpath_core::sip::{self, SipPeek};
use towpath_core::snapshot::{Service, ServiceSource};
use towpath_core::snat::SnatLease;
use towpath_core::steering::vshard_of_client;
use towpath_core::{Now, RealServerId};
use towpath_sys::Cause;
use towpath_sys::ring::{Completion, Datagram};
use towpath_sys::socket::{self, Family};

use super::slab::Slab;
use super::token::{Key, Token};
use super::{LEASES_MAX, PortUse, Worker, termination_of};

/// Calls of one client's address and port that have a session each; what belongs to more of them goes by the one beside any call. Else a single client
/// could take every session that there is.
const CALLS_PER_CLIENT_MAX: u32 = 1024;

/// One client's session.
pub(super) struct DatagramSession {
    listener: u32,
    client: SocketAddr,
    server: UdpSocket,
    service: Arc<Service>,
    /// The port of the service that the client came to.
    port: u16,
    counted: RealServerId,
    /// The call that it carries, where calls are told apart.
    call: Option<PersistenceKey>,
    /// Those that its server has begun by it: what the client says to them goes by it, too.
    begun: Vec<PersistenceKey>,
    lease: Option<SnatLease>,
    opened: Now,
    why: PickReason,
    last_activity: Now,
    /// Its end, once decided: the receive in flight must complete first.
    ending: Option<Termination>,
}

impl DatagramSession {
    pub(super) fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// Whether its end is decided.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// Where the client is.
    pub(super) fn client(&self) -> SocketAddr {
        self.client
    }

    /// Where the client sends to.
    pub(super) fn vip(&self) -> SocketAddr {
        SocketAddr::new(self.service.vip, self.port)
    }

    /// Its server, and how that was picked.
    pub(super) fn picked(&self) -> (RealServerId, PickReason) {
        (self.counted, self.why)
    }

    /// Where its server is; `None`: that is none of its service any more.
    pub(super) fn destination(&self) -> Option<SocketAddr> {
        self.service.target_of(self.counted).map(|(_, target)| target.destination(self.port))
    }

    /// The address and port that the server sees, and whether it is leased.
    pub(super) fn source(&self) -> (Option<SocketAddr>, bool) {
        match &self.lease {
            Some(lease) => (Some(lease.source()), true),
            None => (self.server.local_addr().ok(), false),
        }
    }

    /// When it was opened, and when a datagram passed last.
    pub(super) fn times(&self) -> (Now, Now) {
        (self.opened, self.last_activity)
    }
}

/// The sessions of one worker; steering brings all datagrams of a client to the same worker.
pub(super) struct Datagrams {
    pub(super) sessions: Slab<DatagramSession>,
    by_client: HashMap<(u32, SocketAddr, Option<PersistenceKey>), Key>,
    /// How many calls each client has there.
    calls: HashMap<(u32, SocketAddr), u32>,
}

impl Datagrams {
    pub(super) fn new(sessions_max: u32) -> Datagrams {
        Datagrams { sessions: Slab::new(sessions_max), by_client: HashMap::new(), calls: HashMap::new() }
    }

    /// Whether a session came in by this listener.
    pub(super) fn any_of(&self, listener: u32) -> bool {
        self.sessions.iter().any(|(_, session)| session.listener == listener)
    }

    /// Whether this client may have one more call.
    fn has_room(&self, listener: u32, client: SocketAddr) -> bool {
        self.calls.get(&(listener, client)).is_none_or(|count| *count < CALLS_PER_CLIENT_MAX)
    }

    /// What this client says to this call, or beside any, goes by the session of `key`.
    fn enter(&mut self, place: (u32, SocketAddr, Option<PersistenceKey>), key: Key) {
        let (listener, client, call) = place;
        if self.by_client.insert(place, key).is_none() && call.is_some() {
            *self.calls.entry((listener, client)).or_default() += 1;
        }
    }

    /// What was entered for the session of `key` is no more, unless another one has taken the place.
    fn remove(&mut self, place: (u32, SocketAddr, Option<PersistenceKey>), key: Key) {
        let (listener, client, call) = place;
        if self.by_client.get(&place) != Some(&key) {
            return;
        }
        self.by_client.remove(&place);
        if let (Some(_), Entry::Occupied(mut count)) = (call, self.calls.entry((listener, client))) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// The same of all that was entered for it.
    fn leave(&mut self, key: Key) {
        let Some(session) = self.sessions.get_mut(key) else { return };
        let (listener, client, call) = (session.listener, session.client, session.call);
        let begun = std::mem::take(&mut session.begun);
        for call in std::iter::once(call).chain(begun.into_iter().map(Some)) {
            self.remove((listener, client, call), key);
        }
    }
}

impl Worker {
    /// A client's datagram, or the end of the receive, on listener `index`.
    pub(super) fn datagram_arrived(&mut self, index: u32, completion: &Completion) -> io::Result<()> {
        if let Some(buffer) = completion.buffer() {
            if let Some(datagram) = self.ring.datagram(buffer, completion.result())
                && let Some(key) = self.session_of(index, buffer, &datagram)?
            {
                self.forward(key, buffer, datagram.start, datagram.len)?;
            }
            self.ring.datagram_buffers().recycle(buffer);
        }
        if completion.more() {
            return Ok(());
        }
        self.listen_again(index, completion)
    }

    /// A real server's datagram, or the end of the receive, of a session.
    pub(super) fn reply_arrived(&mut self, key: Key, completion: &Completion) -> io::Result<()> {
        if let Ok(len) = u32::try_from(completion.result()) {
            self.answer(key, completion.buffer(), len);
        }
        if let Some(buffer) = completion.buffer() {
            self.ring.datagram_buffers().recycle(buffer);
        }
        if completion.more() {
            return Ok(());
        }
        let Some(session) = self.datagrams.sessions.get_mut(key) else { return Ok(()) };
        if let Some(termination) = session.ending {
            return self.free_datagram_session(key, termination);
        }
        match Cause::of_errno(-completion.result()) {
            // The server's port is closed (ICMP): the next datagram of this client chooses anew.
            Cause::Refused => self.free_datagram_session(key, Termination::ServerReset),
            // An empty datagram ends a multishot receive, and so do missing buffers.
            _ => {
                let token = Token::Reply(key).pack();
                self.ring.receive_datagrams(session.server.as_fd(), token)
            }
        }
    }

    /// The timer of a session has fired.
    pub(super) fn datagram_timer(&mut self, key: Key) -> io::Result<()> {
        let Some(session) = self.datagrams.sessions.get(key) else { return Ok(()) };
        let due = session.last_activity + session.service.idle_timeout_ms;
        if due <= self.now {
            return self.end_datagram_session(key, Termination::IdleTimedOut);
        }
        self.wheel.arm(self.datagram_timer_of(key), due);
        Ok(())
    }

    /// Ends sessions whose server has been halted or has failed: UDP clients have no reconnect to notice it by.
    pub(super) fn end_datagrams_of_lost_servers(&mut self) -> io::Result<()> {
        let mut lost = Vec::new();
        for (key, session) in self.datagrams.sessions.iter() {
            let Some(service) = self.snapshot.service(session.service.id) else { continue };
            let Some((_, target)) = service.target_of(session.counted) else { continue };
            match target.admin {
                AdminState::Halt => lost.push((key, target.halted.termination())),
                _ if service.drops_flows_at(target, session.port) => lost.push((key, Termination::ServerDown)),
                _ => {}
            }
        }
        for (key, termination) in lost {
            self.end_datagram_session(key, termination)?;
        }
        Ok(())
    }

    /// Ends a session: cancels its receive and frees it when that has completed.
    pub(super) fn end_datagram_session(&mut self, key: Key, termination: Termination) -> io::Result<()> {
        let Some(session) = self.datagrams.sessions.get_mut(key) else { return Ok(()) };
        if session.ending.is_some() {
            return Ok(());
        }
        session.ending = Some(termination);
        self.datagrams.leave(key);
        let Some(session) = self.datagrams.sessions.get(key) else { return Ok(()) };
        self.ring.cancel_all(session.server.as_fd(), Token::Nothing.pack())
    }

    fn session_of(&mut self, index: u32, buffer: u16, datagram: &Datagram) -> io::Result<Option<Key>> {
        let client = datagram.sender;
        let by_call = self.service_at(index).is_some_and(|service| service.knows_calls());
        let called = if by_call { self.call_of(index, buffer, datagram) } else { None };
        let call = called.map(|(call, _)| call);
        if let Some(&key) = self.datagrams.by_client.get(&(index, client, call)) {
            return Ok(Some(key));
        }
        if call.is_some() && !self.datagrams.has_room(index, client) {
            if let Some(service) = self.service_at(index) {
                self.shared.seat(self.id).service_page(service.id).add(ServiceCounter::DatagramsCrowded, 1);
            }
            if let Some(&key) = self.datagrams.by_client.get(&(index, client, None)) {
                return Ok(Some(key));
            }
            return self.open_session(index, client, None);
        }
        self.open_session(index, client, called)
    }

    fn open_session(
        &mut self,
        index: u32,
        client: SocketAddr,
        called: Option<(PersistenceKey, Known)>,
    ) -> io::Result<Option<Key>> {
        let Some((service, port)) = self.service_of_listener(index) else { return Ok(None) };
        let page = self.shared.seat(self.id).service_page(service.id);
        if self.is_leaving(index) || self.shared.is_handing() {
            page.count_end(Termination::NoServer);
            return Ok(None);
        }
        if !self.shared.gate(Protocol::Udp).try_enter() {
            page.count_end(Termination::OutOfConnections);
            return Ok(None);
        }
        page.add(ServiceCounter::Accepted, 1);
        let opened = self.open_datagram_session(index, client, called, &service, port)?;
        if let Err(termination) = opened {
            self.shared.gate(Protocol::Udp).leave();
            self.shared.seat(self.id).service_page(service.id).count_end(termination);
        }
        Ok(opened.ok())
    }

    /// The call that a datagram belongs to, and what its client is known by with it.
    fn call_of(&mut self, index: u32, buffer: u16, datagram: &Datagram) -> Option<(PersistenceKey, Known)> {
        let (service, _) = self.service_of_listener(index)?;
        let payload = self.ring.datagram_buffers().bytes(buffer, datagram.start, datagram.len);
        let SipPeek::CallId(id) = sip::peek(payload) else { return None };
        let seen = Seen { call_id: Some(id), ..Seen::of_address(datagram.sender.ip()) };
        Some((service.call(id), service.known(&seen)))
    }

    fn open_datagram_session(
        &mut self,
        listener: u32,
        client: SocketAddr,
        called: Option<(PersistenceKey, Known)>,
        service: &Arc<Service>,
        port: u16,
    ) -> io::Result<Result<Key, Termination>> {
        let picked = match &called {
            Some((_, known)) => self.shared.pick_known(service, client.ip(), port, known, &Tried::new(), self.now),
            None => self.shared.pick(service, client, port, &Tried::new(), self.now),
        };
        let pick = match picked {
            Ok(pick) => pick,
            Err(refusal) => return Ok(Err(Termination::from(refusal))),
        };
        if pick.why == PickReason::Consoled {
            self.shared.seat(self.id).service_page(service.id).add(ServiceCounter::Consoled, 1);
        }
        let target = service.target(pick.target).expect("the pick is from this very service");
        let destination = target.destination(port);
        let (server, lease) = match self.connect_datagram(service, client, destination) {
            Ok(connected) => connected,
            Err(termination) => {
                self.shared.close(service.id, pick.server);
                return Ok(Err(termination));
            }
        };
        let call = called.map(|(call, _)| call);
        let session = Box::new(DatagramSession {
            listener,
            client,
            server,
            service: Arc::clone(service),
            port,
            counted: pick.server,
            call,
            begun: Vec::new(),
            lease,
            opened: self.now,
            why: pick.why,
            last_activity: self.now,
            ending: None,
        });
        let key = match self.datagrams.sessions.insert(session) {
            Ok(key) => key,
            Err(session) => {
                self.shared.close(service.id, pick.server);
                self.return_lease(service, session.lease, PortUse::Over);
                return Ok(Err(Termination::OutOfConnections));
            }
        };
        self.datagrams.enter((listener, client, call), key);
        let seat = self.shared.seat(self.id);
        seat.service_page(service.id).add(ServiceCounter::Opened, 1);
        seat.count_opened(pick.server);
        self.wheel.arm(self.datagram_timer_of(key), self.now + service.idle_timeout_ms);
        if let Some(session) = self.datagrams.sessions.get(key) {
            self.ring.receive_datagrams(session.server.as_fd(), Token::Reply(key).pack())?;
        }
        Ok(Ok(key))
    }

    /// A socket that sends to `destination` from a leased port, if the service leases them.
    fn connect_datagram(
        &mut self,
        service: &Arc<Service>,
        client: SocketAddr,
        destination: SocketAddr,
    ) -> Result<(UdpSocket, Option<SnatLease>), Termination> {
        let home = vshard_of_client(client.ip(), client.port(), self.settings.seed as u32);
        for _ in 0..LEASES_MAX {
            let socket = socket::udp_socket(Family::of(destination.ip())).map_err(|error| termination_of(&error))?;
            if self.shared.lacks_reserve() {
                return Err(Termination::OutOfDescriptors);
            }
            let lease = match &service.source {
                ServiceSource::Client | ServiceSource::Interface => None,
                ServiceSource::Pool(pool) => {
                    let leased = pool.lease(destination, home, &self.snapshot.steering, self.id);
                    Some(leased.map_err(|_| Termination::OutOfSourcePorts)?)
                }
            };
            let bound = lease.as_ref().map_or(Ok(()), |lease| socket::bind_leased(&socket, lease.source()));
            match bound.and_then(|()| socket::connect(&socket, destination).map(drop)) {
                Ok(()) => return Ok((UdpSocket::from(socket), lease)),
                Err(error) if lease.is_some() && Cause::of(&error) == Cause::AddressTaken => {
                    self.shared.seat(self.id).service_page(service.id).add(ServiceCounter::SnatRetried, 1);
                    self.return_lease(service, lease, PortUse::Lingering);
                }
                Err(error) => {
                    self.return_lease(service, lease, PortUse::Over);
                    return Err(termination_of(&error));
                }
            }
        }
        Err(Termination::OutOfSourcePorts)
    }

    fn forward(&mut self, key: Key, buffer: u16, start: u32, len: u32) -> io::Result<()> {
        let Some(session) = self.datagrams.sessions.get_mut(key) else { return Ok(()) };
        session.last_activity = self.now;
        let payload = self.ring.datagram_buffers().bytes(buffer, start, len);
        let page = self.shared.seat(self.id).service_page(session.service.id);
        match session.server.send(payload) {
            Ok(_) => {
                page.add(ServiceCounter::DatagramsFromClient, 1);
                page.add(ServiceCounter::BytesFromClient, u64::from(len));
            }
            // The error of an earlier datagram (ICMP port unreachable): the session ends, the next datagram chooses anew.
            Err(error) if Cause::of(&error) == Cause::Refused => {
                page.add(ServiceCounter::DatagramsDropped, 1);
                return self.end_datagram_session(key, Termination::ServerReset);
            }
            Err(_) => page.add(ServiceCounter::DatagramsDropped, 1),
        }
        Ok(())
    }

    /// Sends a server's datagram to the client; an empty one comes without a buffer.
    fn answer(&mut self, key: Key, buffer: Option<u16>, len: u32) {
        self.note_call_begun(key, buffer, len);
        let Some(session) = self.datagrams.sessions.get_mut(key) else { return };
        let page = self.shared.seat(self.id).service_page(session.service.id);
        let Some(listener) = self.doors.datagram_socket(session.listener) else {
            page.add(ServiceCounter::DatagramsDropped, 1);
            return;
        };
        session.last_activity = self.now;
        let payload = buffer.map_or(&[][..], |buffer| self.ring.datagram_buffers().bytes(buffer, 0, len));
        match listener.send_to(payload, session.client) {
            Ok(_) => {
                page.add(ServiceCounter::DatagramsToClient, 1);
                page.add(ServiceCounter::BytesToClient, u64::from(len));
            }
            Err(_) => page.add(ServiceCounter::DatagramsDropped, 1),
        }
    }

    /// A call that the server begins: what the client says to it is to find its way back, by the same session and from elsewhere.
    fn note_call_begun(&mut self, key: Key, buffer: Option<u16>, len: u32) {
        let Some(session) = self.datagrams.sessions.get(key).filter(|session| session.service.knows_calls()) else {
            return;
        };
        let payload = buffer.map_or(&[][..], |buffer| self.ring.datagram_buffers().bytes(buffer, 0, len));
        let SipPeek::CallId(id) = sip::peek(payload) else { return };
        let call = session.service.call(id);
        let place = (session.listener, session.client, Some(call));
        if self.datagrams.by_client.contains_key(&place) || session.ending.is_some() {
            return;
        }
        self.shared.learn(&session.service, call, session.counted, self.now);
        if !self.datagrams.has_room(place.0, place.1) {
            return;
        }
        self.datagrams.enter(place, key);
        if let Some(session) = self.datagrams.sessions.get_mut(key) {
            session.begun.push(call);
        }
    }

    fn free_datagram_session(&mut self, key: Key, termination: Termination) -> io::Result<()> {
        self.wheel.disarm(self.datagram_timer_of(key));
        self.datagrams.leave(key);
        let Some(session) = self.datagrams.sessions.remove(key) else { return Ok(()) };
        let DatagramSession { server, service, counted, lease, .. } = *session;
        let page = self.shared.seat(self.id).service_page(service.id);
        page.count_end(termination);
        page.add(ServiceCounter::Closed, 1);
        self.shared.close(service.id, counted);
        self.return_lease(&service, lease, PortUse::Over);
        self.shared.gate(Protocol::Udp).leave();
        self.ring.close(OwnedFd::from(server), Token::Nothing.pack())
    }

    /// Timers of UDP sessions follow those of TCP connections in the wheel.
    fn datagram_timer_of(&self, key: Key) -> u32 {
        self.settings.connections_max + key.index
    }
}
