//! HTTP mode: a client's connection as a row of exchanges, each with the servers that its request is routed to.
//!
//! What requests and responses are is decided by [`Exchange`], which knows no sockets. Here are its legs: what was received and not taken yet
//! (`Inlet`), what is to leave (`Outlet`), the real server at hand, and the times that count. Of each side at most one receive buffer is held and
//! one is being sent; a connection that is idle, or whose client has sent what is not its time yet, holds none. A server's connection belongs to one client's connection, or is
//! lent to it for an exchange (`pool`).

mod bulk;
mod ends;
mod flow;
mod pool;
mod server;
mod stowed;
mod turn;

use std::io;
use std::sync::Arc;

use towpath_config::model::AdminState;
use towpath_core::counters::Termination;
use towpath_core::http::{AfterRequest, Exchange, HttpLimits, RequestHead, Waiting};
use towpath_core::session::{Event, ReceiveEnd, Side};
use towpath_core::snapshot::{Service, ServiceHttp, Snapshot};
use towpath_core::{Now, RealServerId, ServiceId};

use super::Worker;
use super::access::RequestNotes;
use super::relay::Relay;
use super::token::Key;
use bulk::Bulk;
use ends::Ending;
pub(super) use ends::LINGER_MS;
use flow::{Inlet, Outlet};
pub(crate) use flow::{OUTGOING_BUFFERS_MAX, OUTGOING_BYTES};
pub(super) use flow::{Receive, StreamEnd};
pub(super) use pool::ServerPool;
use server::{Next, ServerState};
use stowed::Stowed;

/// How long acknowledgements wait for bytes that carry them, as in a relayed session.
const ACK_DELAY_MS: u64 = 8;

/// What HTTP mode knows of one client's connection.
pub(super) struct Conversation {
    exchange: Exchange,
    /// The service that the client came to; the relay's own is the one whose servers serve the request at hand.
    front: Arc<Service>,
    stage: Stage,
    /// By the side that is read.
    inlets: [Inlet; 2],
    /// What the client has sent and what is not its time yet: a buffer is not held for it.
    stowed: Stowed,
    /// By the side that is written.
    outlets: [Outlet; 2],
    /// By the side that is read.
    bulk: [Bulk; 2],
    server: ServerState,
    ending: Option<Ending>,
    /// What the exchange waited for when it was looked at last, …
    waiting: Waiting,
    /// … since when, or since the last byte of a body.
    since: Now,
    /// When the wheel's timer is due.
    timer: Option<Now>,
    /// Until when acknowledgements towards and from the server are held back; `None` once they are not.
    acknowledge_at: Option<Now>,
    /// Requests served so far.
    served: u32,
    /// The request at hand was sent by a connection that had served others.
    kept_leg: bool,
    /// The request at hand is not sent by one that others have used.
    wants_fresh: bool,
    /// Whose servers, and which of them, served the request before, where its connection may be somebody else's by now.
    last: Option<(ServiceId, RealServerId)>,
    /// How it went with the server that was left, if the request goes to another.
    failed: Option<Termination>,
    /// Why there was an answer of ours, if the connection ends with it.
    answered_as: Option<Termination>,
    /// The server that the client of the request at hand names by a cookie of ours.
    named: Option<RealServerId>,
    /// What the rules have to know of it when its response comes.
    after: Option<AfterRequest>,
    /// The server at hand has read all that it was sent: it has answered behind it.
    has_read: bool,
    /// For the access log, where there is one.
    pub(super) notes: Option<Box<RequestNotes>>,
}

/// Where the request at hand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// There is none, or its head is not whole.
    Between,
    /// Its server is being reached; then it is forwarded.
    Routed,
    /// Its head was forwarded.
    Forwarded,
    /// Both sides speak another protocol now.
    Tunnel,
}

impl Conversation {
    fn new(front: Arc<Service>, http: &ServiceHttp, stowed: Stowed, now: Now) -> Conversation {
        let config = http.rules.config();
        let limits = HttpLimits { head_bytes_max: config.head_bytes_max, body_bytes_max: config.body_bytes_max };
        let exchange = Exchange::new(limits);
        let waiting = exchange.waiting();
        Conversation {
            exchange,
            front,
            stage: Stage::Between,
            inlets: Default::default(),
            stowed,
            outlets: Default::default(),
            bulk: [Bulk::No; 2],
            server: ServerState::Absent,
            ending: None,
            waiting,
            since: now,
            timer: None,
            acknowledge_at: None,
            served: 0,
            kept_leg: false,
            wants_fresh: false,
            last: None,
            failed: None,
            answered_as: None,
            named: None,
            after: None,
            has_read: false,
            notes: None,
        }
    }

    /// The service that the client came to.
    pub(super) fn front(&self) -> &Arc<Service> {
        &self.front
    }

    /// Since when it waits for what it waits for.
    pub(super) fn since(&self) -> Now {
        self.since
    }

    /// Where the request at hand is.
    pub(super) fn stage(&self) -> Stage {
        self.stage
    }

    /// Whether a server is being reached.
    pub(super) fn is_dialling(&self) -> bool {
        matches!(self.server, ServerState::Dialling { .. })
    }

    /// Whether a response has begun to leave.
    pub(super) fn has_responded(&self) -> bool {
        self.exchange.has_responded()
    }

    /// Whether nothing waits to leave for the client.
    pub(super) fn has_sent_all(&self) -> bool {
        self.outlets[Side::Client.index()].is_empty()
    }

    /// The request at hand, if its head is whole.
    pub(super) fn known_request(&self) -> Option<&RequestHead> {
        self.exchange.known_request()
    }

    /// Whether the end of the connection is decided.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// Whether every byte shows that it is alive; a head has so much time, however many bytes come.
    fn is_transferring(&self) -> bool {
        matches!(self.waiting, Waiting::Transfer | Waiting::Tunnel)
    }

    /// Whether no operation is in flight on this side.
    fn is_quiet(&self, side: Side) -> bool {
        let inlet = &self.inlets[side.index()];
        inlet.receive != Receive::Armed && !self.outlets[side.index()].is_sending() && !self.awaits_for_bulk(side)
    }
}

impl Relay {
    fn conversation(&mut self) -> Option<&mut Conversation> {
        self.http.as_deref_mut()
    }
}

impl Worker {
    fn conversation(&mut self, key: Key) -> Option<&mut Conversation> {
        self.relays.get_mut(key)?.conversation()
    }

    /// A client has passed the entrance of a service in HTTP mode.
    pub(super) fn converse(&mut self, key: Key) -> io::Result<()> {
        let now = self.now;
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        let front = Arc::clone(relay.service());
        let Some(http) = &front.http else { return Ok(()) };
        // What a spoke has is counted by its hub.
        let counts = relay.is_secured() && !relay.is_spoke();
        let stowed = Stowed::nothing(counts.then_some(&self.kept));
        let mut conversation = Box::new(Conversation::new(Arc::clone(&front), http, stowed, now));
        conversation.notes = relay.notes.is_some().then(Box::default);
        relay.http = Some(conversation);
        self.advance(key)
    }

    /// Something has happened to a connection in HTTP mode.
    pub(super) fn heard(&mut self, key: Key, event: Event) -> io::Result<()> {
        let now = self.now;
        self.note_relayed(key, event);
        let Some(conversation) = self.conversation(key) else { return Ok(()) };
        match event {
            Event::Received { from, buffer, len, full, last, .. } => {
                if conversation.is_transferring() {
                    conversation.since = now;
                }
                let discards = conversation.is_discarding(from);
                let inlet = &mut conversation.inlets[from.index()];
                inlet.take(buffer, len, full, last);
                if discards {
                    inlet.held = None;
                    self.ring.recycle(buffer);
                }
            }
            Event::ReceiveEnded { from, end } => {
                let inlet = &mut conversation.inlets[from.index()];
                inlet.receive = Receive::Idle;
                match end {
                    ReceiveEnd::Cancelled => {}
                    ReceiveEnd::NoBuffers => {
                        inlet.receive = Receive::Starved;
                        self.starve(key, from);
                    }
                    ReceiveEnd::Fin => inlet.end = Some(StreamEnd::Orderly),
                    ReceiveEnd::Failed => inlet.end = Some(StreamEnd::Reset),
                    ReceiveEnd::Truncated => inlet.end = Some(StreamEnd::Truncated),
                    ReceiveEnd::Damaged => inlet.end = Some(StreamEnd::Damaged),
                }
            }
            Event::BuffersFree(from) => {
                let inlet = &mut conversation.inlets[from.index()];
                if inlet.receive == Receive::Starved {
                    inlet.receive = Receive::Idle;
                }
            }
            Event::Sent { to, bytes } => {
                // What leaves is a response, or the request whose response is waited for from then on.
                let is_waited_for = conversation.waiting == Waiting::Response && to == Side::Client;
                if conversation.waiting != Waiting::Head && !is_waited_for {
                    conversation.since = now;
                }
                self.left(key, to, bytes)?;
            }
            Event::SendFailed { to } => self.leaving_failed(key, to)?,
            Event::Connected => self.server_there(key),
            Event::ConnectFailed => self.server_missed(key)?,
            Event::ConnectGivenUp(termination) => self.connect_given_up(key, termination)?,
            Event::End(termination) => self.end_from_outside(key, termination)?,
            Event::Tick => self.conversation_timer(key)?,
            // Its bytes are read as they come.
            Event::Connecting => return Ok(()),
            Event::Ready { from } => conversation.note_ready(from),
            Event::GatherLost(_) | Event::GrantLost(_) | Event::Pumped { .. } => return Ok(()),
        }
        if let Event::Received { from: Side::Client, last: true, .. } | Event::ReceiveEnded { from: Side::Client, .. } =
            event
            && self.has_left_queue(key)
        {
            return self.left_queue(key);
        }
        self.advance(key)
    }

    /// Goes on as far as there is something to go on with, then waits for what comes next.
    pub(super) fn advance(&mut self, key: Key) -> io::Result<()> {
        if self.relays.get(key).is_some_and(|relay| relay.hub.is_some()) {
            return self.advance_hub(key);
        }
        while self.finish_parting(key)?
            || self.finish_settling(key)?
            || self.take_from_server(key)?
            || self.take_from_client(key)?
            || self.move_bulk(key, Side::Server)?
            || self.move_bulk(key, Side::Client)?
        {}
        self.settle_request(key);
        self.stow(key);
        self.note_taken(key);
        for from in Side::BOTH {
            self.receive_next(key, from)?;
        }
        if self.follow_ending(key)? {
            return Ok(());
        }
        self.arm_conversation(key);
        Ok(())
    }

    /// Whether the client of a request that waits has ended its stream: nobody waits for the response any more, most likely.
    fn has_left_queue(&self, key: Key) -> bool {
        self.relays.get(key).is_some_and(|relay| {
            let has_ended = |conversation: &Conversation| conversation.inlets[Side::Client.index()].end.is_some();
            relay.waits.is_some() && relay.http.as_deref().is_some_and(has_ended)
        })
    }

    /// Bytes have moved that its times count from.
    pub(super) fn touch_conversation(&mut self, key: Key) {
        let now = self.now;
        if let Some(conversation) = self.conversation(key).filter(|conversation| conversation.is_transferring()) {
            conversation.since = now;
        }
    }

    /// Whether a spoke may serve another stream.
    pub(super) fn is_idle(&self, key: Key) -> bool {
        self.relays.get(key).is_some_and(|relay| {
            let is_free = |conversation: &Conversation| {
                // One whose server knows who the client is serves nothing else of it: other streams have other servers.
                conversation.outlets[Side::Client.index()].is_empty() && !conversation.exchange.is_bound()
            };
            relay.is_between_requests() && relay.http.as_deref().is_some_and(is_free)
        })
    }

    /// The same, or it ends.
    pub(super) fn is_idle_or_ending(&self, key: Key) -> bool {
        self.is_idle(key) || self.relays.get(key).is_none_or(Relay::is_ending)
    }

    /// Leaves servers that drain where a client has nothing under way there: else one that keeps its connection and asks nothing would hold the
    /// drain up until `idle_timeout`.
    pub(super) fn leave_draining_servers(&mut self) -> io::Result<()> {
        let drains = |service: &Arc<Service>| service.targets.iter().any(|target| target.admin == AdminState::Drain);
        if !self.snapshot.each_service().any(|service| service.http.is_some() && drains(service)) {
            return Ok(());
        }
        let snapshot = Arc::clone(&self.snapshot);
        let is_idle = |relay: &Relay| relay.is_between_requests() && relay.is_at_draining(&snapshot);
        let idle: Vec<Key> = self.relays.iter().filter(|(_, relay)| is_idle(relay)).map(|(key, _)| key).collect();
        for key in idle {
            self.part(key, Next::Nothing)?;
            self.advance(key)?;
        }
        Ok(())
    }

    /// The process stops: connections between two requests end now, the others with their next response.
    pub(super) fn drain_conversations(&mut self) -> io::Result<()> {
        let idle: Vec<Key> =
            self.relays.iter().filter(|(_, relay)| relay.is_between_requests()).map(|(key, _)| key).collect();
        for key in idle {
            self.finish_conversation(key, Termination::KeepAliveEnded);
            self.advance(key)?;
        }
        Ok(())
    }
}

impl Relay {
    /// Whether its server, to which nothing binds it, is one that drains in this snapshot: the next request would not go there.
    pub(super) fn is_at_draining(&self, snapshot: &Snapshot) -> bool {
        let Some(conversation) = self.http.as_deref() else { return false };
        let is_free = matches!(conversation.server, ServerState::Up { .. }) && !conversation.exchange.is_bound();
        let member = || snapshot.service(self.service().place)?.target_of(self.server()?);
        is_free && member().is_some_and(|(_, target)| target.admin == AdminState::Drain)
    }

    /// Whether it is in HTTP mode, and nothing of a request is there.
    fn is_between_requests(&self) -> bool {
        self.http.as_ref().is_some_and(|conversation| {
            conversation.ending.is_none()
                && conversation.exchange.waiting() == Waiting::Request
                && conversation.inlets[Side::Client.index()].held.is_none()
                && conversation.stowed.is_empty()
        })
    }
}
