//! TCP on the stream plane: turns completions into session events and session operations into ring operations.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use towpath_config::model::{Protocol, ProxyVersion};
use towpath_core::access::Phase;
use towpath_core::counters::{ServiceCounter, Termination};
use towpath_core::director::{PickReason, Refusal, Tried};
use towpath_core::http::pinning::{Lent, Pinned};
use towpath_core::persistence::{Known, Seen};
use towpath_core::session::{Claim, Event, GATHER_BYTES, Op, PumpStop, ReceiveEnd, Room, Session, Side};
use towpath_core::snapshot::{Heralded, Service, ServiceSource, Target};
use towpath_core::snat::SnatLease;
use towpath_core::steering::vshard_of_client;
use towpath_core::waiting::Ticket;
use towpath_core::{Now, RealServerId, VShard};
use towpath_sys::Cause;
use towpath_sys::ring::{Completion, Readiness, Received};
use towpath_sys::socket::{self, Family};
use towpath_tls::Connection;

use super::access::ConnectionNotes;
use super::http::Conversation;
use super::http2::{Hub, Spoke};
use super::legs::{Legs, ServerConnection, ServerLeg};
use super::peek::{Greeting, Hearing, Looking};
use super::pressure::SendWatch;
use super::proxy::Proxied;
use super::pump::Pump;
use super::queue::Waits;
use super::stopwatch::Stopwatch;
use super::token::{Key, Token};
use super::{LEASES_MAX, PortUse, Worker, termination_of};
use crate::listen::UNSENT_BYTES_MAX;
use crate::tls::ServiceTls;

/// What may wait to leave in front of a path that gathers: what comes at once, and what is still there from before.
const GATHERED_UNSENT_MAX: u32 = 4 * GATHER_BYTES;

/// One TCP connection through a worker.
pub(super) struct Relay {
    pub(super) session: Session,
    pub(super) legs: Legs,
    client_address: SocketAddr,
    service: Arc<Service>,
    service_port: u16,
    home: VShard,
    /// When its client came.
    accepted: Now,
    /// The server that the connection is counted on, …
    counted: Option<RealServerId>,
    /// … and how that was picked.
    why: Option<PickReason>,
    destination: SocketAddr,
    /// What it is told of the client first of all.
    proxy_to: Option<ProxyVersion>,
    tried: Tried,
    redispatches: u8,
    leases_refused: u8,
    opened: bool,
    pub(super) pumps: [Pump; 2],
    /// Numbers of the multishot receives that the paths hold.
    grants: [Option<u16>; 2],
    /// Numbers under which the paths gather.
    gathers: [Option<u8>; 2],
    /// TLS of the service, if it is ended here; a reload changes nothing of it.
    pub(super) service_tls: Option<Arc<ServiceTls>>,
    /// The handshake with the client is under way, and is to be over by then. Until it is, the session knows nothing.
    pub(super) entrance: Option<Now>,
    /// Its first bytes are looked at, for the servers that they lead to. Until they are, the session knows nothing.
    pub(super) looking: Option<Looking>,
    /// The name that the client has asked for.
    pub(super) client_name: Option<Box<str>>,
    /// The last connect failed by its handshake.
    pub(super) server_handshake_failed: bool,
    /// Sends in flight that hold buffers of TLS, by the side that they write to.
    pub(super) sends: [Option<SendWatch>; 2],
    /// Closed as soon as the ends of its streams have left.
    pub(super) closing: Option<Close>,
    /// In HTTP mode it has this in place of its session.
    pub(super) http: Option<Box<Conversation>>,
    /// Where the client speaks HTTP/2, it has this in place of both.
    pub(super) hub: Option<Box<Hub>>,
    /// It serves streams of such a client.
    pub(super) spoke: Option<Box<Spoke>>,
    /// What its client is known by; in HTTP mode that of the request at hand.
    pub(super) known: Option<Known>,
    /// Its first message is waited for, in TLS that is ended here; the session reads it, but has no server yet.
    pub(super) hearing: Option<Box<Hearing>>,
    /// It waits for a place on a server; the session has none yet.
    pub(super) waits: Option<Box<Waits>>,
    /// Until when it may, once it has waited; in HTTP mode its request at hand.
    pub(super) queue_due: Option<Now>,
    /// The session that its server hands out is waited for, where TLS passes through.
    pub(super) greeting: Option<Box<Greeting>>,
    /// What a proxy in front has said.
    proxied: Option<Box<Proxied>>,
    /// For the access log, where there is one.
    pub(super) notes: Option<Box<ConnectionNotes>>,
    /// For the histograms.
    pub(super) stopwatch: Stopwatch,
    /// When they were pumped last, as `Gathers::note_pump` counts time.
    pumped: [u64; 2],
}

/// How a connection is closed.
#[derive(Clone, Copy)]
pub(super) struct Close {
    termination: Termination,
    /// Both legs are reset rather than finished.
    pub(super) reset: bool,
    used: PortUse,
}

impl Close {
    pub(super) fn new(termination: Termination, reset: bool, used: PortUse) -> Close {
        Close { termination, reset, used }
    }

    /// The same without waiting for anybody.
    pub(super) fn at_once(self) -> Close {
        Close { reset: true, ..self }
    }

    /// Whether both ends have finished their streams.
    pub(super) fn is_orderly(&self) -> bool {
        let is_whole = matches!(
            self.termination,
            Termination::ClientClosed | Termination::ServerClosed | Termination::KeepAliveEnded
        );
        !self.reset && is_whole
    }
}

impl Relay {
    fn new(
        legs: Legs,
        client_address: SocketAddr,
        service: Arc<Service>,
        service_port: u16,
        home: VShard,
        now: Now,
    ) -> Relay {
        Relay {
            session: Session::connecting(now, service.connect_timeout_ms, service.idle_timeout_ms),
            legs,
            client_address,
            service_port,
            home,
            service,
            accepted: now,
            counted: None,
            why: None,
            destination: client_address,
            proxy_to: None,
            tried: Tried::new(),
            redispatches: 0,
            leases_refused: 0,
            opened: false,
            pumps: [Pump::default(), Pump::default()],
            grants: [None; 2],
            gathers: [None; 2],
            pumped: [0; 2],
            service_tls: None,
            entrance: None,
            looking: None,
            client_name: None,
            server_handshake_failed: false,
            sends: [None; 2],
            closing: None,
            http: None,
            hub: None,
            spoke: None,
            known: None,
            hearing: None,
            waits: None,
            queue_due: None,
            greeting: None,
            proxied: None,
            notes: None,
            stopwatch: Stopwatch::default(),
        }
    }

    /// One of the same client, for streams of its connection `hub`.
    pub(super) fn spoke(hub: &Relay, service: Arc<Service>, spoke: Spoke, now: Now) -> Relay {
        Relay {
            service_tls: hub.service_tls.clone(),
            client_name: hub.client_name.clone(),
            proxied: hub.proxied.clone(),
            notes: ConnectionNotes::of(&service, now),
            spoke: Some(Box::new(spoke)),
            ..Relay::new(Legs::of(None), hub.client_address, service, hub.service_port, hub.home, now)
        }
    }

    pub(super) fn service(&self) -> &Arc<Service> {
        &self.service
    }

    pub(super) fn server(&self) -> Option<RealServerId> {
        self.counted
    }

    /// When its client came.
    pub(super) fn accepted(&self) -> Now {
        self.accepted
    }

    /// How its server was picked.
    pub(super) fn why(&self) -> Option<PickReason> {
        self.why.filter(|_| self.counted.is_some())
    }

    /// Whether bytes may go from one leg to the other as they are.
    pub(super) fn has_plain_legs(&self) -> bool {
        !self.is_secured()
    }

    /// Whether a server has accepted it.
    pub(super) fn is_opened(&self) -> bool {
        self.opened
    }

    /// Whether its requests are to be served before handshakes of others: without TLS any, else those behind the first.
    fn is_seasoned(&self) -> bool {
        !self.is_secured() || self.legs.is_seasoned() || self.hub.is_some()
    }

    /// A server serves it; says whether that is the first.
    pub(super) fn note_opened(&mut self) -> bool {
        !std::mem::replace(&mut self.opened, true)
    }

    /// It holds a place on this member of its service from here on.
    pub(super) fn count_on(&mut self, target: &Target) {
        self.counted = Some(target.server);
        self.why = Some(PickReason::Persistent);
        self.destination = target.destination(self.service_port);
    }

    /// What its server is told of the client first of all.
    pub(super) fn proxy_to(&self) -> Option<ProxyVersion> {
        self.proxy_to
    }

    /// Where its server is.
    pub(super) fn destination(&self) -> SocketAddr {
        self.destination
    }

    /// Whether the end of its session is decided.
    pub(super) fn is_ending(&self) -> bool {
        match (&self.hub, &self.http) {
            (Some(hub), _) => hub.is_ending(),
            (None, Some(conversation)) => conversation.is_ending(),
            (None, None) => self.session.is_ending(),
        }
    }

    /// Whether nothing leaves any more. In HTTP mode a connection whose end is decided sends what there is for the client first.
    pub(super) fn is_given_up(&self) -> bool {
        match (&self.hub, &self.http) {
            (Some(hub), _) => hub.is_stopping(),
            (None, Some(conversation)) => conversation.is_stopping(),
            (None, None) => self.session.is_ending(),
        }
    }

    /// Where the client is.
    pub(super) fn client_address(&self) -> SocketAddr {
        self.client_address
    }

    /// The proxy that has said where, if one has.
    pub(super) fn proxy(&self) -> Option<SocketAddr> {
        self.proxied.as_ref().map(|proxied| proxied.proxy)
    }

    /// A proxy has said where the client is.
    pub(super) fn believe(&mut self, proxied: Proxied, client: SocketAddr) {
        self.client_address = client;
        self.proxied = Some(Box::new(proxied));
    }

    /// The port of the service that the client came to.
    pub(super) fn service_port(&self) -> u16 {
        self.service_port
    }

    /// Where the client has connected to, as it knows it.
    pub(super) fn vip(&self) -> SocketAddr {
        let own = SocketAddr::new(self.service.vip, self.service_port);
        self.proxied.as_ref().map_or(own, |proxied| proxied.destination)
    }

    /// The service that the client came to.
    pub(super) fn front(&self) -> &Arc<Service> {
        self.http.as_ref().map_or(&self.service, |conversation| conversation.front())
    }

    /// Servers tried in vain for the connection, or for its request at hand.
    pub(super) fn redispatches(&self) -> u8 {
        self.redispatches
    }

    /// TLS with the client, if it is at hand.
    pub(super) fn client_connection(&self) -> Option<&Connection> {
        Some(&self.legs.tls(Side::Client)?.handshake.as_ref()?.connection)
    }

    /// The next request is served by this service, by a server that its client is `known` to if there is one.
    pub(super) fn begin_request(&mut self, service: Arc<Service>, known: Known) {
        (self.service, self.known) = (service, Some(known));
        (self.tried, self.redispatches, self.leases_refused) = (Tried::new(), 0, 0);
        self.queue_due = None;
    }

    /// Its server has failed the request at hand; says whether another may be tried.
    pub(super) fn note_failed_server(&mut self) -> bool {
        if self.redispatches >= self.service.redispatch {
            return false;
        }
        self.redispatches += 1;
        if let Some(server) = self.counted {
            self.tried.insert(server);
        }
        true
    }

    /// No server has been tried for what it waits with.
    pub(super) fn forget_tried(&mut self) {
        self.tried = Tried::new();
    }

    /// From here on it is served by the servers behind a route of its service, or by these as they are now.
    pub(super) fn led_to(&mut self, behind: Arc<Service>) {
        self.service = behind;
    }

    /// The client's leg alone.
    pub(super) fn into_client(self) -> Option<TcpStream> {
        self.legs.client
    }

    pub(super) fn leg(&self, side: Side) -> Option<&TcpStream> {
        self.legs.socket(side)
    }
}

impl Worker {
    /// A client's connection was accepted on a listener of `service`.
    pub(super) fn open_relay(
        &mut self,
        socket: OwnedFd,
        service: Arc<Service>,
        service_tls: Option<Arc<ServiceTls>>,
        service_port: u16,
    ) -> io::Result<()> {
        let page = self.shared.seat(self.id).service_page(service.id);
        page.add(ServiceCounter::Accepted, 1);
        let client = TcpStream::from(socket);
        let Ok(client_address) = client.peer_addr() else {
            page.count_end(Termination::ClientReset);
            return Ok(());
        };
        if self.shared.lacks_reserve() {
            page.count_end(Termination::OutOfDescriptors);
            refuse(&client);
            self.log_refused(&service, client_address, service_port, Termination::OutOfDescriptors);
            return Ok(());
        }
        let heralded = service.heralded(client_address.ip());
        if heralded == Heralded::Refused {
            page.count_end(Termination::ProxyUntrusted);
            refuse(&client);
            self.log_refused(&service, client_address, service_port, Termination::ProxyUntrusted);
            return Ok(());
        }
        if !self.shared.gate(Protocol::Tcp).try_enter() {
            page.count_end(Termination::OutOfConnections);
            refuse(&client);
            self.log_refused(&service, client_address, service_port, Termination::OutOfConnections);
            return Ok(());
        }
        let has_first_bytes = service.first_bytes.is_some();
        let has_entrance = service_tls.is_some() || has_first_bytes || heralded != Heralded::No;
        if has_entrance && !self.shared.handshakes().try_enter() {
            page.count_end(Termination::OutOfHandshakes);
            self.shared.gate(Protocol::Tcp).leave();
            refuse(&client);
            self.log_refused(&service, client_address, service_port, Termination::OutOfHandshakes);
            return Ok(());
        }
        let home = vshard_of_client(client_address.ip(), client_address.port(), self.settings.seed as u32);
        let notes = ConnectionNotes::of(&service, self.now);
        let relay = Relay {
            service_tls,
            notes,
            ..Relay::new(Legs::of(Some(client)), client_address, service, service_port, home, self.now)
        };
        let relay = Box::new(relay);
        match (self.relays.insert(relay), heralded) {
            (Ok(key), Heralded::Within(timeout_ms)) => self.await_header(key, timeout_ms),
            (Ok(key), _) => self.admit(key),
            (Err(relay), _) => {
                if has_entrance {
                    self.shared.handshakes().leave();
                }
                self.shared.gate(Protocol::Tcp).leave();
                self.shared.seat(self.id).service_page(relay.service.id).count_end(Termination::OutOfConnections);
                relay.legs.client.iter().for_each(refuse);
                self.log_connection(&relay, Termination::OutOfConnections, Phase::Request);
                Ok(())
            }
        }
    }

    /// Who the client is, is known: its first bytes are looked at, its handshake begins, or it is served.
    pub(super) fn admit(&mut self, key: Key) -> io::Result<()> {
        let Some(relay) = self.relays.get(key) else { return Ok(()) };
        // In TLS that is ended here they come behind the handshake.
        match relay.service.first_bytes.map(|(_, wait_ms)| wait_ms).filter(|_| !relay.is_secured()) {
            Some(wait_ms) => self.look(key, wait_ms),
            None if relay.is_secured() => self.enter(key),
            None => self.begin(key),
        }
    }

    /// A client has passed the entrance: its session begins.
    pub(super) fn begin(&mut self, key: Key) -> io::Result<()> {
        let now = self.now;
        if let Some(notes) = self.relays.get_mut(key).and_then(|relay| relay.notes.as_deref_mut()) {
            notes.enter(now);
        }
        if self.relays.get(key).is_some_and(|relay| relay.service.http.is_some()) {
            return if self.speaks_http2(key) { self.open_hub(key) } else { self.converse(key) };
        }
        if self.relays.get(key).is_some_and(Relay::is_to_be_heard) {
            return self.hear(key);
        }
        self.begin_dialling(key)
    }

    /// What is to be known of the client before is known.
    pub(super) fn begin_dialling(&mut self, key: Key) -> io::Result<()> {
        match self.dial(key)? {
            Ok(()) => {
                self.arm_relay(key);
                Ok(())
            }
            Err(termination) => match self.wait_in_queue(key, termination) {
                Ok(()) => {
                    self.arm_waiting(key);
                    // So that one that goes is noticed.
                    self.drive(key, Event::Connecting)
                }
                Err(termination) => self.drive(key, Event::ConnectGivenUp(termination)),
            },
        }
    }

    /// Chooses a real server and starts the connect; the inner error ends the session.
    pub(super) fn dial(&mut self, key: Key) -> io::Result<Result<(), Termination>> {
        let mut failed = None;
        loop {
            let Some(relay) = self.relays.get(key) else { return Ok(Ok(())) };
            match if relay.counted.is_some() { Ok(()) } else { self.choose(key) } {
                Ok(()) => {}
                // No server is left to try: what counts is how the tried ones failed.
                Err(Refusal::NoServer) => return Ok(Err(failed.unwrap_or(Termination::NoServer))),
                Err(refusal) => return Ok(Err(Termination::from(refusal))),
            }
            match self.connect(key)? {
                Ok(()) => return Ok(Ok(())),
                // Another server's ports may be free.
                Err(Termination::OutOfSourcePorts) if self.may_try_another(key) => {
                    failed = Some(Termination::OutOfSourcePorts);
                    self.leave_server(key, PortUse::Over);
                }
                Err(termination) => return Ok(Err(termination)),
            }
        }
    }

    /// Has a relayed connection without a server choose by the service as it is now: since it was accepted, or a server failed it, others may have been
    /// drained, halted or gone down. One in HTTP mode does so with each request.
    fn follow_service(&mut self, key: Key) {
        let Worker { relays, snapshot, tls, .. } = self;
        let Some(relay) = relays.get_mut(key).filter(|relay| relay.http.is_none() && relay.counted.is_none()) else {
            return;
        };
        let Some(newest) = snapshot.service(relay.service.place) else { return };
        let contexts = tls.service(newest.id);
        let is_alike = newest.http.is_none() && contexts.is_some() == relay.service_tls.is_some();
        let is_same =
            (newest.id, &newest.name, &newest.group) == (relay.service.id, &relay.service.name, &relay.service.group);
        if is_same && is_alike && !Arc::ptr_eq(newest, &relay.service) {
            relay.service = Arc::clone(newest);
            relay.service_tls = contexts.map(Arc::clone);
        }
    }

    /// Chooses a real server, on which the connection is counted from now on.
    pub(super) fn choose(&mut self, key: Key) -> Result<(), Refusal> {
        self.choose_by(key, None)
    }

    /// The same for one that waits, if it is its turn.
    pub(super) fn choose_waiting(&mut self, key: Key, ticket: Ticket) -> Result<(), Refusal> {
        self.choose_by(key, Some(ticket))
    }

    #[inline(always)]
    fn choose_by(&mut self, key: Key, ticket: Option<Ticket>) -> Result<(), Refusal> {
        if ticket.is_none() {
            self.follow_service(key);
        }
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        let (service, client) = (&relay.service, relay.client_address.ip());
        let server_name = relay.client_name.as_deref();
        let known = relay.known.unwrap_or_else(|| service.known(&Seen { server_name, ..Seen::of_address(client) }));
        let port = relay.service_port;
        let pick = match ticket {
            None => self.shared.pick_known(service, client, port, &known, &relay.tried, self.now)?,
            Some(ticket) => self.shared.pick_waiting(service, client, port, &known, ticket, self.now)?,
        };
        relay.counted = Some(pick.server);
        relay.why = Some(pick.why);
        if pick.why == PickReason::Consoled {
            self.shared.seat(self.id).service_page(relay.service.id).add(ServiceCounter::Consoled, 1);
        }
        if relay.redispatches > 0 {
            self.shared.seat(self.id).service_page(relay.service.id).add(ServiceCounter::Redispatched, 1);
        }
        let target = relay.service.target(pick.target).expect("the pick is from this very service");
        relay.destination = target.destination(relay.service_port);
        relay.proxy_to = target.proxy;
        self.note_chosen(key);
        Ok(())
    }

    /// The connection holds no place on its server any more.
    pub(super) fn uncount(&mut self, key: Key) {
        let Some(relay) = self.relays.get_mut(key) else { return };
        if let Some(server) = relay.counted.take() {
            self.shared.close(relay.service.id, server);
        }
    }

    /// Closes the server's leg, on which nothing is in flight.
    pub(super) fn close_server_leg(&mut self, key: Key, used: PortUse) -> io::Result<()> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        relay.server_handshake_failed = false;
        let Some(connection) = relay.legs.server.take().end() else { return Ok(()) };
        let service = Arc::clone(&relay.service);
        self.close_server_connection(connection, &service, used)
    }

    /// Closes a connection to a real server, on which nothing is in flight.
    pub(super) fn close_server_connection(
        &mut self,
        connection: ServerConnection,
        service: &Service,
        used: PortUse,
    ) -> io::Result<()> {
        let ServerConnection { socket, lease, .. } = connection;
        self.ring.close(OwnedFd::from(socket), Token::Nothing.pack())?;
        self.return_lease(service, lease, used);
        Ok(())
    }

    /// Starts the connect to the chosen server from a leased source port, if the service leases them.
    fn connect(&mut self, key: Key) -> io::Result<Result<(), Termination>> {
        self.make_room(key)?;
        let now_us = self.now_us;
        let Some(relay) = self.relays.get_mut(key) else { return Ok(Ok(())) };
        relay.stopwatch.dial(now_us);
        let socket = match socket::tcp_socket(Family::of(relay.destination.ip())) {
            Ok(socket) => socket,
            Err(error) => return Ok(Err(termination_of(&error))),
        };
        if self.shared.lacks_reserve() {
            return Ok(Err(Termination::OutOfDescriptors));
        }
        // A failure costs a packet or two.
        let _ = socket::hold_acknowledgements(&socket);
        let mut lease = None;
        if let ServiceSource::Pool(pool) = &relay.service.source {
            let leased = pool.lease(relay.destination, relay.home, &self.snapshot.steering, self.id);
            let Ok(leased) = leased else { return Ok(Err(Termination::OutOfSourcePorts)) };
            if let Err(error) = socket::bind_leased(&socket, leased.source()) {
                let taken = Cause::of(&error) == Cause::AddressTaken;
                if taken && relay.leases_refused < LEASES_MAX {
                    self.lease_refused(key, Some(leased));
                    return self.connect(key);
                }
                let service = Arc::clone(&relay.service);
                self.return_lease(&service, Some(leased), PortUse::Over);
                return Ok(Err(termination_of(&error)));
            }
            lease = Some(leased);
        }
        let destination = relay.destination;
        let socket = TcpStream::from(socket);
        let shares = relay.http.as_deref().is_some_and(Conversation::shares);
        relay.legs.server = match if shares { relay.terms() } else { None } {
            Some(terms) => ServerLeg::Lent(Lent::new(ServerConnection::new(socket, lease, Some(Box::new(terms))))),
            None => ServerLeg::Pinned(Pinned::new(ServerConnection::new(socket, lease, None))),
        };
        // Submitted before the connect, so that bytes that are there already are at hand once the server is; and only now, so that a
        // client that is turned away for want of a descriptor has nothing in flight and frees its own at once.
        self.drive(key, Event::Connecting)?;
        let relay = self.relays.get(key);
        if relay.is_some_and(Relay::is_ending) {
            // What the client had sent has ended it: a connect behind its own cancel would wait for a silent server.
            return Ok(Err(Termination::ClientReset));
        }
        if let Some(server) = relay.and_then(|relay| relay.leg(Side::Server)) {
            self.ring.connect(server.as_fd(), destination, Token::Connect(key).pack())?;
        }
        Ok(Ok(()))
    }

    /// Somebody else holds the leased port: it rests, the next one is tried.
    fn lease_refused(&mut self, key: Key, lease: Option<SnatLease>) {
        let Some(relay) = self.relays.get_mut(key) else { return };
        relay.leases_refused += 1;
        self.shared.seat(self.id).service_page(relay.service.id).add(ServiceCounter::SnatRetried, 1);
        let service = Arc::clone(&relay.service);
        self.return_lease(&service, lease, PortUse::Lingering);
    }

    pub(super) fn may_try_another(&self, key: Key) -> bool {
        self.relays.get(key).is_some_and(|relay| relay.redispatches < relay.service.redispatch)
    }

    /// Undoes what was counted and leased for the server at hand and remembers that it was tried.
    pub(super) fn leave_server(&mut self, key: Key, used: PortUse) {
        let Some(relay) = self.relays.get_mut(key) else { return };
        relay.redispatches += 1;
        relay.server_handshake_failed = false;
        if let Some(server) = relay.counted.take() {
            relay.tried.insert(server);
            self.shared.close(relay.service.id, server);
        }
        let lease = relay.legs.server.take().end().and_then(|connection| connection.lease);
        let service = Arc::clone(&relay.service);
        self.return_lease(&service, lease, used);
    }

    /// The connect of `key` has completed.
    pub(super) fn connected(&mut self, key: Key, result: i32) -> io::Result<()> {
        if result == 0 && !self.tell_of_client(key) {
            return self.drive(key, Event::ConnectFailed);
        }
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        if result == 0 {
            // One whose end is decided needs no handshake any more.
            if relay.is_secured() && !relay.is_ending() && self.enter_server(key)? {
                return Ok(());
            }
            return self.server_reached(key);
        }
        let taken = Cause::of_errno(-result) == Cause::AddressTaken;
        if taken && relay.legs.has_lease() && relay.leases_refused < LEASES_MAX && !relay.is_ending() {
            let lease = relay.legs.server.take().end().and_then(|connection| connection.lease);
            self.lease_refused(key, lease);
            return match self.connect(key)? {
                Ok(()) => Ok(()),
                Err(termination) => self.drive(key, Event::ConnectGivenUp(termination)),
            };
        }
        let cause = Cause::of_errno(-result);
        if matches!(cause, Cause::HostUnreachable | Cause::PeerReset | Cause::Refused | Cause::TimedOut) {
            self.note_missed(key);
        }
        self.drive(key, Event::ConnectFailed)
    }

    /// The real server is there, and its handshake over if it wants TLS.
    pub(super) fn server_reached(&mut self, key: Key) -> io::Result<()> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        relay.server_handshake_failed = false;
        let seat = self.shared.seat(self.id);
        if relay.note_opened() {
            seat.service_page(relay.service.id).add(ServiceCounter::Opened, 1);
        }
        if let Some(server) = relay.counted {
            seat.count_opened(server);
        }
        self.note_reached(key);
        self.measure_connect(key);
        self.drive(key, Event::Connected)?;
        if let Some(termination) = self.lost_since_dialled(key) {
            self.drive(key, Event::End(termination))?;
        }
        self.arm_relay(key);
        Ok(())
    }

    /// A receive of `key` has completed.
    pub(super) fn received(&mut self, key: Key, from: Side, completion: &Completion, last: bool) -> io::Result<()> {
        let Some(relay) = self.relays.get_mut(key) else { return self.let_go(completion) };
        if relay.is_secured() {
            return self.received_record(key, from, completion);
        }
        let more = completion.more() && !last;
        let grant = &mut relay.grants[from.index()];
        match if more { *grant } else { grant.take() } {
            Some(number) if more => self.multishots.touch(number),
            Some(number) => self.multishots.release(number),
            None => {}
        }
        let end = match completion.received() {
            Received::Bytes(len) => {
                let buffer = completion.buffer().expect("bytes of a stream arrive in a buffer");
                let full = len == self.ring.stream_buffers().buffer_bytes();
                if from == Side::Server {
                    self.note_session_given(key, buffer, len);
                }
                return self.drive(key, Event::Received { from, buffer, len, full, more, last });
            }
            Received::Cancelled => ReceiveEnd::Cancelled,
            Received::End => ReceiveEnd::Fin,
            Received::Failed => ReceiveEnd::Failed,
            Received::NoBuffers => ReceiveEnd::NoBuffers,
        };
        self.let_go(completion)?;
        self.drive(key, Event::ReceiveEnded { from, end })
    }

    /// A send of `key` has completed.
    pub(super) fn sent(&mut self, key: Key, to: Side, result: i32) -> io::Result<()> {
        if let Some(relay) = self.relays.get_mut(key) {
            relay.sends[to.index()] = None;
        }
        if result <= 0 {
            return self.drive(key, Event::SendFailed { to });
        }
        self.count_bytes(key, to, result as u64);
        self.drive(key, Event::Sent { to, bytes: result as u32 })
    }

    /// The timer of `key` has fired.
    pub(super) fn relay_timer(&mut self, key: Key) -> io::Result<()> {
        let Some(relay) = self.relays.get(key) else { return Ok(()) };
        if let Some(Looking::Until { due, what, .. }) = relay.looking {
            return self.looking_timer(key, due, what);
        }
        if let Some(due) = relay.entrance {
            return self.entrance_timer(key, due);
        }
        if let Some(due) = relay.hearing.as_ref().map(|hearing| hearing.due) {
            return self.hearing_timer(key, due);
        }
        if relay.waits.is_some() {
            return self.queue_timer(key);
        }
        if let Some(close) = relay.closing {
            return self.close_relay(key, close.at_once());
        }
        self.drive(key, Event::Tick)?;
        self.arm_relay(key);
        Ok(())
    }

    /// Gives `event` to the session of `key` and does what it asks for.
    pub(super) fn drive(&mut self, key: Key, event: Event) -> io::Result<()> {
        match self.relays.get(key) {
            Some(relay) if relay.http.is_some() => return self.heard(key, event),
            Some(relay) if relay.hub.is_some() => return self.heard_hub(key, event),
            Some(relay) if relay.hearing.is_some() => return self.overhear(key, event),
            Some(relay) if relay.waits.is_some() => return self.heard_in_queue(key, event),
            _ => {}
        }
        self.tell_session(key, event)
    }

    /// The same of a session that has been looked at.
    pub(super) fn tell_session(&mut self, key: Key, event: Event) -> io::Result<()> {
        self.carry_out(key, |worker, ops| worker.tell(key, event, ops))
    }

    /// Moves bulk bytes of the path that reads `from`, tells the session and does what it asks for.
    pub(super) fn pump_later(&mut self, key: Key, from: Side) -> io::Result<()> {
        if self.relays.get(key).is_some_and(|relay| relay.http.is_some()) {
            return self.move_bulk_later(key, from);
        }
        self.carry_out(key, |worker, ops| worker.pump(key, from, ops))
    }

    /// Executes what `first` orders and what follows from it.
    fn carry_out(&mut self, key: Key, first: impl FnOnce(&mut Worker, &mut Vec<Op>)) -> io::Result<()> {
        let mut ops = std::mem::take(&mut self.ops);
        first(self, &mut ops);
        let mut done = 0;
        let mut result = Ok(());
        while let (Ok(()), Some(&op)) = (&result, ops.get(done)) {
            done += 1;
            result = self.execute(key, op, &mut ops);
        }
        ops.clear();
        self.ops = ops;
        result
    }

    /// Notes what handshakes are to keep their distance from.
    pub(super) fn note_relayed(&mut self, key: Key, event: Event) {
        if let Event::Ready { from } | Event::Received { from, .. } = event
            && self.relays.get(key).is_some_and(Relay::is_seasoned)
        {
            self.pace.note_relayed(from, self.now);
        }
    }

    fn tell(&mut self, key: Key, event: Event, ops: &mut Vec<Op>) {
        self.note_relayed(key, event);
        self.measure_first_byte(key, event);
        let Some(relay) = self.relays.get(key) else { return };
        let room = self.room(relay.is_secured());
        let Some(relay) = self.relays.get_mut(key) else { return };
        relay.session.on(event, self.now, room, &mut self.chunks, ops);
    }

    pub(super) fn execute(&mut self, key: Key, op: Op, ops: &mut Vec<Op>) -> io::Result<()> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        match op {
            Op::AcknowledgeNow(side) => {
                // A leg that is gone says so by its receive.
                if let Some(leg) = relay.leg(side) {
                    let _ = socket::acknowledge_now(leg);
                }
            }
            Op::AwaitBuffers(from) => {
                let page = self.shared.seat(self.id).service_page(relay.service.id);
                page.add(ServiceCounter::BufferWaited, 1);
                let starved = if relay.is_secured() { &mut self.starved_records } else { &mut self.starved };
                starved.push_back((key, from));
            }
            Op::AwaitMore(from) => {
                self.gather(key, from);
                self.await_readable(key, from)?;
            }
            Op::AwaitReadable(from) => {
                self.stop_gathering(key, from);
                self.await_readable(key, from)?;
            }
            Op::AwaitWritable(to) => {
                if let Some(number) = relay.gathers[to.other().index()] {
                    self.gathers.block(number, self.now);
                }
                let Some(leg) = relay.leg(to) else { return Ok(()) };
                self.ring.await_ready(leg.as_fd(), Readiness::Writable, Token::Await(key, to.other()).pack())?;
            }
            Op::CancelAll(side) => {
                if let Some(leg) = relay.legs.tls_mut(side) {
                    leg.cancelling = true;
                    if side == Side::Server && leg.shaking {
                        return self.give_up_server(key);
                    }
                }
                let Some(leg) = relay.leg(side) else { return Ok(()) };
                self.ring.cancel_all(leg.as_fd(), Token::Nothing.pack())?;
            }
            Op::CancelAwait(from) => self.ring.cancel_wait(Token::Await(key, from).pack(), Token::Nothing.pack())?,
            Op::CancelReceive(from) if relay.is_secured() => {
                if let Some(leg) = relay.legs.tls_mut(from) {
                    leg.cancelling = true;
                }
                self.ring.cancel_receive_records(Token::Receive(key, from).pack(), Token::Nothing.pack())?;
            }
            Op::CancelReceive(from) => {
                self.ring.cancel_receive(Token::Receive(key, from).pack(), Token::Nothing.pack())?;
            }
            Op::Close { termination, reset, rest } => {
                let used = if rest { PortUse::Lingering } else { PortUse::Over };
                self.close_relay(key, Close { termination, reset, used })?;
            }
            Op::FinishWriting(side) if relay.legs.tls(side).is_some() => self.finish_secured(key, side)?,
            Op::FinishWriting(side) => {
                // Fails only when the leg is gone already, and then its receive says so.
                if let Some(leg) = relay.leg(side) {
                    let _ = socket::shutdown_write(leg);
                }
            }
            Op::Pump(from) => self.pump(key, from, ops),
            Op::PumpLater(from) => {
                // It gets more than it can pass on in one turn: not overdue while it waits for the next.
                if let Some(number) = relay.gathers[from.index()] {
                    self.gathers.renew(number, self.now);
                }
                self.later.push_back((key, from));
            }
            Op::Receive(from) if relay.is_secured() => self.receive_record(key, from)?,
            Op::Receive(from) => {
                self.stop_gathering(key, from);
                self.receive(key, from)?;
            }
            Op::Recycle(buffer) => self.ring.recycle(buffer),
            Op::Redispatch { timed_out } => self.redispatch(key, timed_out, ops)?,
            Op::Send { to, chunk, last } => {
                if to == Side::Server {
                    relay.legs.send_without_delay();
                }
                if relay.legs.tls(to).is_some() {
                    return self.send_sealed(key, to, chunk, last);
                }
                let range = relay.chunk_range(to.other(), chunk);
                relay.sends[to.index()] = relay.is_secured().then(SendWatch::default);
                let Some(leg) = relay.leg(to) else { return Ok(()) };
                self.ring.send(leg.as_fd(), range, last, Token::Send(key, to).pack())?;
            }
        }
        Ok(())
    }

    fn await_readable(&mut self, key: Key, from: Side) -> io::Result<()> {
        let Some(leg) = self.relays.get(key).and_then(|relay| relay.leg(from)) else { return Ok(()) };
        self.ring.await_ready(leg.as_fd(), Readiness::Readable, Token::Await(key, from).pack())
    }

    /// Lets the path that reads `from` gather, or go on with it, unless too many do.
    fn gather(&mut self, key: Key, from: Side) {
        if self.gathers.is_crowded() {
            return self.stop_gathering(key, from);
        }
        let Some(relay) = self.relays.get_mut(key) else { return };
        if let Some(number) = relay.gathers[from.index()] {
            return self.gathers.renew(number, self.now);
        }
        let (Some(source), Some(sink)) = (relay.leg(from), relay.leg(from.other())) else { return };
        let Some(number) = self.gathers.claim((key, from), self.now) else { return };
        // A leg that is gone says so by its next operation.
        let _ = socket::set_unsent_max(sink, GATHERED_UNSENT_MAX);
        let _ = socket::set_readable_from(source, GATHER_BYTES);
        relay.gathers[from.index()] = Some(number);
    }

    fn stop_gathering(&mut self, key: Key, from: Side) {
        let Some(relay) = self.relays.get_mut(key) else { return };
        let Some(number) = relay.gathers[from.index()].take() else { return };
        self.gathers.release(number);
        if let (Some(source), Some(sink)) = (relay.leg(from), relay.leg(from.other())) {
            let _ = socket::set_readable_from(source, 1);
            let _ = socket::set_unsent_max(sink, UNSENT_BYTES_MAX);
        }
    }

    /// Ends what did not get its fill in time.
    pub(super) fn end_overdue_gathers(&mut self) -> io::Result<()> {
        while let Some((key, from)) = self.gathers.overdue(self.now) {
            self.stop_gathering(key, from);
            self.drive(key, Event::GatherLost(from))?;
        }
        Ok(())
    }

    /// Arms a receive: one that stays, if the path gets a grant for it.
    fn receive(&mut self, key: Key, from: Side) -> io::Result<()> {
        let granted = self.claim_multishot(key, from)?;
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        relay.grants[from.index()] = granted;
        let Some(leg) = relay.leg(from) else { return Ok(()) };
        let token = Token::Receive(key, from).pack();
        match granted {
            Some(_) => self.ring.receive_many(leg.as_fd(), token),
            None => self.ring.receive(leg.as_fd(), token),
        }
    }

    fn claim_multishot(&mut self, key: Key, from: Side) -> io::Result<Option<u16>> {
        let free = self.ring.stream_buffers().free();
        match self.multishots.claim((key, from), free, self.now) {
            Claim::Granted(number) => Ok(Some(number)),
            Claim::Moved(number, (silent, side)) => {
                if let Some(relay) = self.relays.get_mut(silent) {
                    relay.grants[side.index()] = None;
                }
                self.drive(silent, Event::GrantLost(side))?;
                Ok(Some(number))
            }
            Claim::Refused => Ok(None),
        }
    }

    fn redispatch(&mut self, key: Key, timed_out: bool, ops: &mut Vec<Op>) -> io::Result<()> {
        let failed = self.connect_failure(key, timed_out);
        let another = self.may_try_another(key);
        self.note_missed_late(key, timed_out);
        // A server that refused has forgotten the port; to one that stayed silent a SYN may still be under way.
        self.leave_server(key, if timed_out { PortUse::Lingering } else { PortUse::Over });
        if !another {
            self.tell(key, Event::End(failed), ops);
            return Ok(());
        }
        match self.dial(key)? {
            Ok(()) => {
                if let Some(relay) = self.relays.get_mut(key) {
                    relay.session.redispatched(self.now);
                }
                self.arm_relay(key);
            }
            // No server is left to try: what counts is how the tried ones failed.
            Err(Termination::NoServer) => self.tell(key, Event::End(failed), ops),
            Err(termination) => match self.wait_in_queue(key, termination) {
                Ok(()) => {
                    if let Some(relay) = self.relays.get_mut(key) {
                        relay.session.redispatched(self.now);
                    }
                    self.arm_waiting(key);
                }
                Err(termination) => self.tell(key, Event::End(termination), ops),
            },
        }
        Ok(())
    }

    /// The server at hand was not reached, by its own fault.
    pub(super) fn note_missed(&self, key: Key) {
        if let Some(server) = self.relays.get(key).and_then(|relay| relay.counted) {
            self.shared.seat(self.id).count_failed(server);
        }
    }

    /// The same once it did not answer in time, or failed the handshake of TLS; what we lacked ourselves is not its fault.
    pub(super) fn note_missed_late(&self, key: Key, timed_out: bool) {
        if timed_out || self.relays.get(key).is_some_and(|relay| relay.server_handshake_failed) {
            self.note_missed(key);
        }
    }

    /// How a connect to a real server has failed.
    pub(super) fn connect_failure(&self, key: Key, timed_out: bool) -> Termination {
        let handshake = self.relays.get(key).is_some_and(|relay| relay.server_handshake_failed);
        match (timed_out, handshake) {
            (true, _) => Termination::ConnectTimedOut,
            (false, true) => Termination::ServerHandshakeFailed,
            (false, false) => Termination::ConnectFailed,
        }
    }

    fn pump(&mut self, key: Key, from: Side, ops: &mut Vec<Op>) {
        if let Some((bytes, stop)) = self.pump_bytes(key, from, u64::MAX) {
            self.tell(key, Event::Pumped { from, bytes, stop }, ops);
        }
    }

    /// Moves what can be moved now of the path that reads `from`, at most so many bytes; `None` if one of its legs is gone.
    pub(super) fn pump_bytes(&mut self, key: Key, from: Side, max: u64) -> Option<(u64, PumpStop)> {
        let relay = self.relays.get_mut(key)?;
        let (client, server) = relay.legs.socket(Side::Client).zip(relay.legs.socket(Side::Server))?;
        let (source, sink, pump) = match from {
            Side::Client => (client, server, &mut relay.pumps[0]),
            Side::Server => (server, client, &mut relay.pumps[1]),
        };
        self.gathers.note_pump(&mut relay.pumped[from.index()], self.now);
        if pump.first_use() {
            self.shared.seat(self.id).service_page(relay.service.id).add(ServiceCounter::Bulk, 1);
            if from == Side::Client {
                // The client's leg has it from its listener. A leg that is gone says so by its sends.
                let _ = socket::set_unsent_max(sink, UNSENT_BYTES_MAX);
            }
        }
        let (bytes, stop) = pump.run(source, sink, &mut self.pipes, max);
        self.count_bytes(key, from.other(), bytes);
        Some((bytes, stop))
    }

    pub(super) fn count_bytes(&mut self, key: Key, to: Side, bytes: u64) {
        let Some(relay) = self.relays.get_mut(key) else { return };
        if let Some(notes) = &mut relay.notes {
            notes.count(to, bytes);
        }
        let counter = match to {
            Side::Client => ServiceCounter::BytesToClient,
            Side::Server => ServiceCounter::BytesFromClient,
        };
        self.shared.seat(self.id).service_page(relay.service.id).add(counter, bytes);
    }

    pub(super) fn close_relay(&mut self, key: Key, close: Close) -> io::Result<()> {
        if self.end_legs(key, close)? {
            return Ok(());
        }
        self.wheel.disarm(key.index);
        self.leave_queue(key);
        Side::BOTH.into_iter().for_each(|from| self.stop_gathering(key, from));
        let Some(mut relay) = self.relays.remove(key) else { return Ok(()) };
        for pump in &mut relay.pumps {
            pump.abandon(&mut self.pipes);
        }
        let page = self.shared.seat(self.id).service_page(relay.service.id);
        page.count_end(close.termination);
        if relay.opened {
            page.add(ServiceCounter::Closed, 1);
        }
        if let Some(hub) = relay.spoke.as_ref().map(|spoke| spoke.hub()) {
            self.spoke_closed(hub, key, close.termination);
        }
        if relay.notes.is_some() {
            let phase = if relay.opened { Phase::Data } else { Phase::Connect };
            self.log_connection(&relay, close.termination, phase);
        }
        let Relay { legs: Legs { client, client_tls, server }, service, counted, .. } = *relay;
        if let Some(server) = counted {
            self.shared.close(service.id, server);
        }
        let (server, lease) = match server.end() {
            Some(ServerConnection { socket, lease, tls, .. }) => (Some((socket, tls)), lease),
            None => (None, None),
        };
        let truncated = matches!(
            close.termination,
            Termination::ClientTruncated | Termination::ServerTruncated | Termination::TlsBroken
        );
        for (leg, tls) in [client.map(|client| (client, client_tls)), server].into_iter().flatten() {
            // With TLS the other end sees by itself that its stream was cut off, and loses nothing of it; nor does one that gets an alert.
            if truncated && tls.is_some() {
                let _ = socket::discard_unread(&leg);
            } else if close.reset {
                // A leg that cannot be reset is finished instead.
                let _ = socket::set_linger_reset(&leg);
            }
            if tls.is_some_and(|tls| tls.armed || tls.is_sending()) {
                self.drop_leg(leg)?;
            } else if close.termination == Termination::OutOfDescriptors {
                // At once, so that the next of a burst of clients finds one for its server.
                drop(leg);
            } else {
                self.ring.close(OwnedFd::from(leg), Token::Nothing.pack())?;
            }
        }
        self.return_lease(&service, lease, close.used);
        self.shared.gate(Protocol::Tcp).leave();
        Ok(())
    }

    fn arm_relay(&mut self, key: Key) {
        let Some(relay) = self.relays.get(key) else { return };
        if relay.closing.is_some() {
            // It has a deadline of its own.
            return;
        }
        if relay.http.is_some() {
            return self.arm_conversation(key);
        }
        if relay.hub.is_some() {
            return self.arm_hub(key);
        }
        if relay.waits.is_some() {
            return self.arm_waiting(key);
        }
        match relay.session.deadline() {
            Some(due) => self.wheel.arm(key.index, due),
            None => self.wheel.disarm(key.index),
        }
    }

    pub(super) fn room(&mut self, secured: bool) -> Room {
        let (free, count) = if secured {
            (self.ring.records_free(), self.ring.records_count())
        } else {
            let buffers = self.ring.stream_buffers();
            (buffers.free(), usize::from(buffers.count()))
        };
        if free * 2 > count { Room::Ample } else { Room::Scarce }
    }
}

/// Refuses a connection at once: a reset leaves no TIME_WAIT with us, and the client fails over without waiting.
fn refuse(client: &TcpStream) {
    let _ = socket::set_linger_reset(client);
}
