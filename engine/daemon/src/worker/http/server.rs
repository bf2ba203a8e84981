//! The real server of the request at hand: routed to, chosen, reached, kept for the next request or left.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;

use towpath_config::model::BalanceEach;
use towpath_core::counters::{ServiceCounter, Termination};
use towpath_core::http::{Answer, Edit, Edits, Keep, Output, ServerLeg, Then};
use towpath_core::http::{BadRequest, Page, Verdict};
use towpath_core::persistence::Seen;
use towpath_core::session::Side;
use towpath_core::snapshot::{Service, Target};
use towpath_core::{Now, ServiceId};
use towpath_sys::socket;

use super::super::legs::ServerLeg as LegOfServer;
use super::super::relay::Relay;
use super::super::token::Key;
use super::super::{PortUse, Worker};
use super::flow::{Inlet, Outlet, StreamEnd};
use super::{ACK_DELAY_MS, Stage};

/// Where the connection to a real server is.
#[derive(Clone, Copy, Debug)]
pub(super) enum ServerState {
    /// There is none.
    Absent,
    /// It is being opened.
    Dialling {
        since: Now,
        /// connect_timeout is over.
        expired: bool,
    },
    /// It is left as soon as nothing is in flight.
    Parting(Next),
    /// Its exchange is over, and it may be anybody's: as soon as nothing of it is needed here it waits for the next client.
    Settling,
    /// It is there.
    Up {
        /// It has had a request.
        kept: bool,
    },
}

/// What follows when a server was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The request at hand goes to the server that is chosen, or to another.
    Dial,
    /// Nothing.
    Nothing,
}

impl ServerState {
    /// A request is about to be sent.
    pub(super) fn begin_request(&mut self) -> ServerLeg {
        match std::mem::replace(self, ServerState::Up { kept: true }) {
            ServerState::Up { kept: true } => ServerLeg::Kept,
            _ => ServerLeg::Fresh,
        }
    }
}

impl Worker {
    /// The head of a request is whole: who serves it?
    pub(super) fn route(&mut self, key: Key) -> io::Result<()> {
        self.count(key, ServiceCounter::Requests);
        // The service as it is now.
        let Some(front) = self.front_in_force(key) else {
            return self.answer_ourselves(key, &Answer::of(503), Termination::NoServer);
        };
        let service_tls = self.tls.service(front.id).map(Arc::clone);
        let Worker { relays, snapshot, .. } = self;
        let Some(relay) = relays.get_mut(key) else { return Ok(()) };
        let address = relay.client_address();
        let now = self.now;
        // Whatever servers the snapshot has, these are the contexts for them.
        relay.service_tls = service_tls;
        let Some(conversation) = relay.http.as_deref_mut() else { return Ok(()) };
        conversation.front = Arc::clone(&front);
        if let Some(notes) = &mut conversation.notes {
            notes.note_head(now);
        }
        let Some(http) = &front.http else { return Ok(()) };
        conversation.stage = Stage::Routed;
        match http.rules.decide(conversation.exchange.request(), address.ip(), front.place) {
            Verdict::Serve(place) => {
                let service = Arc::clone(snapshot.service(place).unwrap_or(&front));
                self.serve(key, service)
            }
            Verdict::Redirect { status, location } => {
                let fields = [("Location", location.as_bytes())];
                self.answer_ourselves(key, &Answer::with(status, &fields), Termination::KeepAliveEnded)
            }
            Verdict::Answer(status) => self.answer_ourselves(key, &Answer::of(status), Termination::KeepAliveEnded),
            Verdict::Deny(status) => {
                self.count(key, ServiceCounter::Denied);
                if let Some(notes) = self.conversation(key).and_then(|conversation| conversation.notes.as_deref_mut()) {
                    notes.note_denied();
                }
                self.answer_ourselves(key, &Answer::of(status), Termination::KeepAliveEnded)
            }
            Verdict::Maintenance(page) => self.show(key, page, Termination::KeepAliveEnded),
            Verdict::BadRequest(reason) => self.refuse_request(key, reason),
        }
    }

    /// Answers with a page of the service's.
    fn show(&mut self, key: Key, page: &Page, termination: Termination) -> io::Result<()> {
        let retry_after = page.retry_after.as_deref().map(|text| ("Retry-After", text.as_bytes()));
        let fields = retry_after.as_slice();
        let answer = Answer { content_type: Page::CONTENT_TYPE, body: &page.body, ..Answer::with(page.status, fields) };
        self.answer_ourselves(key, &answer, termination)
    }

    /// Answers a request that is refused.
    pub(super) fn refuse_request(&mut self, key: Key, reason: BadRequest) -> io::Result<()> {
        let Some(service) = self.relays.get(key).map(|relay| relay.service().id) else { return Ok(()) };
        self.shared.seat(self.id).service_page(service).count_bad_request(reason);
        self.answer_ourselves(key, &Answer::of(reason.status()), Termination::BadRequest)
    }

    /// Has the request at hand served by this service: by the server at hand, or by another.
    fn serve(&mut self, key: Key, service: Arc<Service>) -> io::Result<()> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        let address = relay.client_address();
        let relay_name = &relay.client_name;
        let Some(conversation) = relay.http.as_deref_mut() else { return Ok(()) };
        let seen = Seen {
            request: Some(conversation.exchange.request()),
            server_name: relay_name.as_deref(),
            ..Seen::of_address(address.ip())
        };
        let known = service.known(&seen);
        conversation.named = known.named();
        conversation.wants_fresh = false;
        let is_up = matches!(conversation.server, ServerState::Up { .. });
        let is_bound = conversation.exchange.is_bound();
        let each = conversation.front.http.as_ref().map(|http| http.rules.config().balance_each);
        let same_place = relay.service().place == service.place;
        let before = relay.server();
        let is_member = before.is_some_and(|server| service.target_of(server).is_some());
        relay.begin_request(Arc::clone(&service), known);
        if !is_up {
            self.stay_with_last(key);
            return self.dial_for_request(key, Termination::NoServer);
        }
        // A connection that stays where it is while its client names another server by the cookie would set it back with each response, and the
        // client's other connections likewise.
        let named = known.named().filter(|named| service.takes_back(*named));
        let is_named = named.is_none_or(|named| Some(named) == before);
        let may_stay = each == Some(BalanceEach::Connection) && is_named && self.may_stay(key);
        if same_place && is_member && (is_bound || may_stay) {
            if let Some(conversation) = self.conversation(key).filter(|_| !is_named) {
                conversation.named = before;
            }
            return Ok(());
        }
        // Without its own place taken, so that the server at hand may be chosen though it is full.
        self.uncount(key);
        match self.choose(key) {
            Ok(()) => {
                if same_place && self.relays.get(key).and_then(|relay| relay.server()) == before {
                    return Ok(());
                }
                self.leave(key, Next::Dial)
            }
            Err(refusal) => {
                self.leave(key, Next::Nothing)?;
                match self.wait_in_queue(key, Termination::from(refusal)) {
                    Ok(()) => Ok(()),
                    Err(termination) => self.unserved(key, termination),
                }
            }
        }
    }

    /// Whether the server at hand may get another request of a client that it has.
    fn may_stay(&self, key: Key) -> bool {
        let Some(relay) = self.relays.get(key) else { return false };
        let target = relay.server().and_then(|server| Some(relay.service().target_of(server)?.1));
        // Who is with the sorry server comes back as soon as there is another.
        let takes = |target: &Target| target.takes_new() && !target.is_sorry() && target.serves(relay.service_port());
        target.is_some_and(takes)
    }

    /// Chooses a server for the request at hand and starts the connect; if none is left to try, `failed` is how it went with the tried ones.
    fn dial_for_request(&mut self, key: Key, failed: Termination) -> io::Result<()> {
        let now = self.now;
        let Some(conversation) = self.conversation(key) else { return Ok(()) };
        if matches!(conversation.server, ServerState::Parting(_)) {
            conversation.server = ServerState::Parting(Next::Dial);
            return Ok(());
        }
        conversation.server = ServerState::Dialling { since: now, expired: false };
        let dialled = match self.borrow(key)? {
            Ok(true) => return Ok(()),
            Ok(false) => {
                self.note_dialled(key);
                self.dial(key)?
            }
            Err(refusal) => Err(Termination::from(refusal)),
        };
        match dialled {
            Ok(()) => Ok(()),
            Err(Termination::NoServer) => self.connect_given_up(key, failed),
            Err(termination) => match self.wait_in_queue(key, termination) {
                Ok(()) => {
                    if let Some(conversation) = self.conversation(key) {
                        conversation.server = ServerState::Absent;
                    }
                    Ok(())
                }
                Err(termination) => self.connect_given_up(key, termination),
            },
        }
    }

    /// A server was chosen for a request that waited.
    pub(in super::super) fn dial_from_queue(&mut self, key: Key) -> io::Result<()> {
        // It stands for the queue.
        self.note_timer_fired(key);
        self.dial_for_request(key, Termination::NoServer)?;
        self.advance(key)
    }

    /// Whether a client's connection holds a place here and does nothing with it: between two requests, of which the next may go to any server.
    pub(in super::super) fn holds_place_idly(&self, key: Key, place: ServiceId) -> bool {
        let Some(relay) = self.relays.get(key) else { return false };
        relay.service().place == place && relay.is_between_requests() && self.may_part_idly(relay)
    }

    /// Whether nobody minds if its server is left between two requests.
    fn may_part_idly(&self, relay: &Relay) -> bool {
        let Some(conversation) = relay.http.as_deref() else { return false };
        let each = conversation.front.http.as_ref().map(|http| http.rules.config().balance_each);
        matches!(conversation.server, ServerState::Up { .. })
            && each == Some(BalanceEach::Request)
            && !conversation.exchange.is_bound()
            && !matches!(relay.legs.server, LegOfServer::Lent(_))
    }

    /// Whether the exchange that is over leaves a place that somebody waits for.
    pub(super) fn is_waited_for(&self, key: Key) -> bool {
        let Some(relay) = self.relays.get(key) else { return false };
        self.shared.is_waited_for(relay.service().place) && self.may_part_idly(relay)
    }

    /// Gives its server's place to others.
    pub(in super::super) fn give_up_idle_server(&mut self, key: Key) -> io::Result<()> {
        self.part(key, Next::Nothing)?;
        self.advance(key)
    }

    /// A connect could not be begun.
    pub(super) fn connect_given_up(&mut self, key: Key, termination: Termination) -> io::Result<()> {
        self.leave_server(key, PortUse::Over);
        let Some(conversation) = self.conversation(key) else { return Ok(()) };
        conversation.server = ServerState::Absent;
        if conversation.ending.is_some() { Ok(()) } else { self.unserved(key, termination) }
    }

    /// The server is there, its handshake too: the request leaves with the next turn.
    pub(super) fn server_there(&mut self, key: Key) {
        let now = self.now;
        let Some(conversation) = self.conversation(key) else { return };
        conversation.server = ServerState::Up { kept: false };
        conversation.inlets[Side::Server.index()].note_drained();
        if let Some(notes) = &mut conversation.notes {
            notes.note_connected(now);
        }
        conversation.acknowledge_at = Some(now + ACK_DELAY_MS);
        self.count(key, ServiceCounter::ServerDialled);
    }

    /// The connect has failed: another server, or an answer that says so.
    pub(super) fn server_missed(&mut self, key: Key) -> io::Result<()> {
        let Some(conversation) = self.conversation(key) else { return Ok(()) };
        let timed_out = matches!(conversation.server, ServerState::Dialling { expired: true, .. });
        let is_ending = conversation.ending.is_some();
        conversation.server = ServerState::Absent;
        let another = !is_ending && self.may_try_another(key);
        let failed = self.connect_failure(key, timed_out);
        self.note_missed_late(key, timed_out);
        // A server that refused has forgotten the port; to one that stayed silent a SYN may still be under way.
        self.leave_server(key, if timed_out { PortUse::Lingering } else { PortUse::Over });
        match (is_ending, another) {
            (true, _) => Ok(()),
            (false, true) => self.dial_for_request(key, failed),
            (false, false) => self.unserved(key, failed),
        }
    }

    /// Nobody serves the request at hand.
    pub(in super::super) fn unserved(&mut self, key: Key, why: Termination) -> io::Result<()> {
        self.count(key, ServiceCounter::Unserved);
        let front = self.conversation(key).map(|conversation| Arc::clone(&conversation.front));
        let rules = front.as_ref().and_then(|front| Some(&front.http.as_ref()?.rules));
        let page = rules.and_then(|rules| rules.page_without_server());
        match (why, page) {
            (Termination::NoServer, Some(page)) => self.show(key, page, why),
            (Termination::ConnectTimedOut, _) => self.answer_ourselves(key, &Answer::of(504), why),
            (Termination::ConnectFailed | Termination::ServerHandshakeFailed, _) => {
                self.answer_ourselves(key, &Answer::of(502), why)
            }
            (
                Termination::QueueFull
                | Termination::QueueTimedOut
                | Termination::ServersFull
                | Termination::ServiceFull,
                _,
            ) => {
                let seconds = rules.map_or(0, |rules| rules.config().retry_after_s).to_string();
                let fields = [("Retry-After", seconds.as_bytes())];
                self.answer_ourselves(key, &Answer::with(503, &fields), why)
            }
            _ => self.answer_ourselves(key, &Answer::of(503), why),
        }
    }

    /// The server has gone before it answered, and the request may be sent again.
    pub(super) fn retry(&mut self, key: Key) -> io::Result<()> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        let Some(conversation) = relay.http.as_deref_mut() else { return Ok(()) };
        if !conversation.kept_leg {
            // It is counted where the next one is chosen.
            if !relay.note_failed_server() {
                self.part(key, Next::Nothing)?;
                return self.answer_ourselves(key, &Answer::of(502), Termination::ServerReset);
            }
        }
        if let Some(conversation) = self.conversation(key) {
            conversation.stage = Stage::Routed;
            conversation.failed = Some(Termination::ConnectFailed);
            // The others that wait may have ended with that one.
            conversation.wants_fresh = true;
        }
        self.count(key, ServiceCounter::Resent);
        self.part(key, Next::Dial)
    }

    /// Leaves the server at hand, which is counted no more.
    pub(super) fn part(&mut self, key: Key, next: Next) -> io::Result<()> {
        self.uncount(key);
        self.leave(key, next)
    }

    /// Leaves the server at hand as soon as nothing is in flight.
    fn leave(&mut self, key: Key, next: Next) -> io::Result<()> {
        let Some(conversation) = self.conversation(key) else { return Ok(()) };
        match conversation.server {
            ServerState::Absent | ServerState::Dialling { .. } => return Ok(()),
            ServerState::Parting(_) => {
                conversation.server = ServerState::Parting(next);
                return Ok(());
            }
            ServerState::Settling | ServerState::Up { .. } => {}
        }
        conversation.server = ServerState::Parting(next);
        let is_idle = conversation.outlets[Side::Server.index()].is_empty();
        let was_quiet = conversation.is_quiet(Side::Server);
        self.drop_held(key, Side::Server);
        self.drop_waiting(key, Side::Server);
        if is_idle && self.relays.get(key).is_some_and(|relay| relay.legs.tls(Side::Server).is_some()) {
            self.finish_secured(key, Side::Server)?;
        }
        // Nobody waits for a server that does not even take the end.
        let is_busy = self
            .relays
            .get(key)
            .is_some_and(|relay| relay.legs.tls(Side::Server).is_some_and(|leg| leg.armed || leg.is_sending()));
        if !was_quiet || is_busy {
            self.cancel_side(key, Side::Server);
        }
        Ok(())
    }

    /// Closes the connection to a server that is left, once nothing is in flight there; says whether it did.
    pub(super) fn finish_parting(&mut self, key: Key) -> io::Result<bool> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(false) };
        let is_busy = relay.legs.tls(Side::Server).is_some_and(|leg| leg.armed || leg.is_sending());
        let Some(conversation) = relay.http.as_deref_mut() else { return Ok(false) };
        let ServerState::Parting(next) = conversation.server else { return Ok(false) };
        if is_busy || !conversation.is_quiet(Side::Server) || conversation.is_stopping() {
            return Ok(false);
        }
        // What it has sent lies where its leg has put it.
        if conversation.outlets[Side::Client.index()].holds_received() {
            return Ok(false);
        }
        let is_ending = conversation.ending.is_some();
        let ended = conversation.inlets[Side::Server.index()].end == Some(StreamEnd::Orderly);
        conversation.server = ServerState::Absent;
        conversation.inlets[Side::Server.index()] = Inlet::default();
        conversation.outlets[Side::Server.index()] = Outlet::default();
        conversation.acknowledge_at = None;
        self.drop_bulk(key)?;
        let used = if ended || self.forget_server(key) { PortUse::Over } else { PortUse::Lingering };
        self.close_server_leg(key, used)?;
        if next == Next::Dial && !is_ending {
            let failed = self.conversation(key).and_then(|conversation| conversation.failed.take());
            self.dial_for_request(key, failed.unwrap_or(Termination::NoServer))?;
        }
        Ok(true)
    }

    /// Has the coming close of a plain leg to a server send a reset: whoever ends a stream first keeps its port for a minute (TIME_WAIT, RFC 9293
    /// §3.6), of which a client per request leaves none after 64,000. Only where the server has read all that it was sent, of which a
    /// reset would take back the rest. Says whether it will.
    fn forget_server(&self, key: Key) -> bool {
        let Some(relay) = self.relays.get(key) else { return false };
        let is_plain = relay.legs.tls(Side::Server).is_none();
        let may = is_plain && relay.http.as_ref().is_some_and(|conversation| conversation.has_read);
        may && relay.leg(Side::Server).is_some_and(|leg| socket::set_linger_reset(leg).is_ok())
    }

    /// Passes on the head of a response, changed as the rules want it.
    pub(super) fn respond(&mut self, key: Key, output: &mut Output) -> Then {
        let keep = self.keep(key);
        let Some(relay) = self.relays.get_mut(key) else { return Then::Hold };
        let service = Arc::clone(relay.service());
        let server = relay.server();
        let Some(conversation) = relay.http.as_deref_mut() else { return Then::Hold };
        let response = conversation.exchange.response();
        let status = response.status();
        let edits = match (server, &conversation.after) {
            (Some(server), Some(after)) => {
                let mut edits = service.response_edits(response, after, server);
                if let Some(led) = service.location_for(conversation.exchange.request(), response, after, server) {
                    edits.fields.push(Edit::Replace { name: "Location", value: Cow::Owned(led.into_bytes()) });
                }
                edits
            }
            _ => Edits::default(),
        };
        if let (Some(server), Some(known)) = (server, service.learns(response)) {
            self.shared.learn(&service, known, server, self.now);
        }
        let before = output.len();
        let then = conversation.exchange.respond(&edits, keep, output);
        if let Some(notes) = &mut conversation.notes {
            notes.note_responded(self.now, status, output.len() - before);
        }
        self.count_response(key, status);
        if let Some(server) = self.relays.get(key).and_then(|relay| relay.server()) {
            self.shared.seat(self.id).count_response(server, status);
        }
        then
    }

    /// Whether the client's connection may go on behind the response at hand.
    pub(super) fn keep(&self, key: Key) -> Keep {
        let goes_on = self.stopping.is_none() && self.front_in_force(key).is_some();
        if goes_on { Keep::Open } else { Keep::Close }
    }

    /// The service that the client came to, as the snapshot at hand has it; `None` where it is gone, or is not what it was to this client.
    fn front_in_force(&self, key: Key) -> Option<Arc<Service>> {
        let relay = self.relays.get(key)?;
        self.in_force(&relay.http.as_ref()?.front, relay.is_secured())
    }

    /// The same of a service that clients have come to, by TLS or without.
    pub(in super::super) fn in_force(&self, front: &Service, secured: bool) -> Option<Arc<Service>> {
        let newest = self.snapshot.service(front.place)?;
        let is_same = newest.http.is_some() && newest.name == front.name;
        let is_alike = self.tls.service(newest.id).is_some() == secured;
        (is_same && is_alike).then(|| Arc::clone(newest))
    }

    pub(super) fn count(&self, key: Key, counter: ServiceCounter) {
        let Some(relay) = self.relays.get(key) else { return };
        self.shared.seat(self.id).service_page(relay.service().id).add(counter, 1);
    }

    pub(super) fn count_response(&self, key: Key, status: u16) {
        let counter = match status {
            ..200 => return,
            200..300 => ServiceCounter::Responses2xx,
            300..400 => ServiceCounter::Responses3xx,
            400..500 => ServiceCounter::Responses4xx,
            _ => ServiceCounter::Responses5xx,
        };
        self.count(key, counter);
    }
}
