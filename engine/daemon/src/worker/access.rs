//! What is noted of a connection and of its requests for the access log, and the records that become of it. Without a log nothing is noted.

use std::net::SocketAddr;
use std::sync::Arc;

use towpath_config::model::{Logged, Protocol};
use towpath_core::access::{Answered, Load, Phase, Record, Request, Texts, Timers, Tls, code, letter};
use towpath_core::counters::{Termination, WorkerCounter};
use towpath_core::http::{RequestHead, Version};
use towpath_core::session::Side;
use towpath_core::snapshot::Service;
use towpath_core::{Now, RealServerId};
use towpath_tls::Connection;

use super::Worker;
use super::http::Stage;
use super::relay::Relay;
use super::token::Key;

/// Of a connection.
pub(super) struct ConnectionNotes {
    accepted: Now,
    /// When the client might speak: PROXY header and handshake were over.
    entered: Option<Now>,
    /// When the first connect was begun.
    dialled: Option<Now>,
    connected: Option<Now>,
    /// Payload that was sent, by the side that it was for.
    bytes: [u64; 2],
    /// Where the server at hand, or the last one tried, was chosen.
    server: Option<(Arc<Service>, RealServerId)>,
    /// Requests of it that have got a line, or do.
    requests: u32,
}

/// Of the request at hand.
#[derive(Default)]
pub(super) struct RequestNotes {
    /// When its first byte was read.
    began: Option<Now>,
    /// When its head was whole.
    head: Option<Now>,
    dialled: Option<Now>,
    connected: Option<Now>,
    forwarded: Option<Now>,
    responded: Option<Now>,
    answer: Answered,
    status: u16,
    head_bytes: u64,
    /// What was made for each side, sent or not.
    bytes: [u64; 2],
    redispatches: u8,
    /// The request before, whose response has yet to leave.
    pending: Option<Box<Record>>,
}

impl ConnectionNotes {
    /// Of a connection that is accepted now; `None` where its service logs nothing.
    pub(super) fn of(service: &Service, accepted: Now) -> Option<Box<ConnectionNotes>> {
        let notes = ConnectionNotes {
            accepted,
            entered: None,
            dialled: None,
            connected: None,
            bytes: [0; 2],
            server: None,
            requests: 0,
        };
        (service.log != Logged::None).then(|| Box::new(notes))
    }

    /// It may speak from now on.
    pub(super) fn enter(&mut self, now: Now) {
        self.entered.get_or_insert(now);
    }

    /// So many bytes of payload have left for this side.
    #[inline]
    pub(super) fn count(&mut self, to: Side, bytes: u64) {
        self.bytes[to.index()] += bytes;
    }
}

impl RequestNotes {
    /// The first bytes of a request are read.
    pub(super) fn begin(&mut self, now: Now) {
        self.began.get_or_insert(now);
    }

    /// Its head is whole.
    pub(super) fn note_head(&mut self, now: Now) {
        self.begin(now);
        self.head.get_or_insert(now);
    }

    /// A filter has refused it.
    pub(super) fn note_denied(&mut self) {
        self.answer = Answered::Denied;
    }

    /// A connect for it is begun.
    pub(super) fn note_dialled(&mut self, now: Now) {
        self.dialled.get_or_insert(now);
    }

    /// … and has succeeded.
    pub(super) fn note_connected(&mut self, now: Now) {
        self.connected = Some(now);
    }

    /// It leaves for a server, perhaps once more.
    pub(super) fn note_forwarded(&mut self, now: Now, redispatches: u8) {
        self.forwarded = Some(now);
        self.redispatches = redispatches;
        self.bytes[Side::Server.index()] = 0;
    }

    /// The head of its response is there, the server's or one of ours, and so long.
    pub(super) fn note_responded(&mut self, now: Now, status: u16, head_bytes: usize) {
        if status >= 200 || status == 101 {
            self.responded = Some(now);
            self.status = status;
            self.head_bytes = head_bytes as u64;
        }
    }

    /// The response is ours.
    pub(super) fn note_answer(&mut self) {
        if self.answer == Answered::ByServer {
            self.answer = Answered::ByRule;
        }
    }

    /// So many bytes were made for this side.
    #[inline]
    pub(super) fn count(&mut self, to: Side, bytes: usize) {
        self.bytes[to.index()] += bytes as u64;
    }

    fn timers(&self, end: Now, handshake_ms: Option<u64>) -> Timers {
        let (began, head) = (self.began.unwrap_or(end), self.head);
        let span = |from: Option<Now>, to: Option<Now>| Some(to?.ms_since(from?));
        let ready = match (self.connected, self.forwarded) {
            (Some(connected), _) => Some(connected),
            // By a connection that was there.
            (None, forwarded) => forwarded.filter(|_| self.dialled.is_none()),
        };
        Timers {
            handshake_ms,
            request_ms: span(Some(began), head),
            wait_ms: span(head, self.dialled.or(self.forwarded)),
            connect_ms: span(self.dialled.or(self.forwarded), ready),
            response_ms: span(self.forwarded, self.responded.filter(|_| self.answer == Answered::ByServer)),
            data_ms: span(self.responded, Some(end)),
            total_ms: end.ms_since(began),
        }
    }
}

/// What is known of the client's TLS.
fn tls_of(connection: Option<&Connection>) -> Option<Tls> {
    let connection = connection.filter(|connection| !connection.cipher().is_empty())?;
    Some(Tls { version: connection.version(), cipher: connection.cipher(), is_resumed: connection.is_resumed() })
}

/// The words of a request, and the name in its connection's ClientHello.
fn texts_of(head: Option<&RequestHead>, client_name: Option<&str>) -> Texts {
    let value = |name: &str| head.and_then(|head| head.values(name).next());
    Texts::keep([
        head.map(|head| head.method().as_bytes()),
        head.map(|head| head.target().as_bytes()),
        head.and_then(|head| head.host()).map(str::as_bytes),
        value("referer"),
        value("user-agent"),
        client_name.map(str::as_bytes),
    ])
}

impl Worker {
    /// The connection has ended, or is refused: its line.
    pub(super) fn log_connection(&mut self, relay: &Relay, termination: Termination, phase: Phase) {
        let Some(notes) = &relay.notes else { return };
        let now = self.now;
        let entered = notes.entered;
        let span = |from: Option<Now>, to: Option<Now>| Some(to?.ms_since(from?));
        let timers = Timers {
            handshake_ms: span(Some(notes.accepted), entered),
            wait_ms: span(entered, notes.dialled),
            connect_ms: span(notes.dialled, notes.connected),
            data_ms: span(notes.connected, Some(now)),
            total_ms: now.ms_since(notes.accepted),
            ..Timers::default()
        };
        let front = relay.front();
        let is_http = front.http.is_some();
        if is_http && (notes.requests > 0 || letter(termination) == b'-') {
            // Its requests have had their lines; who has asked for nothing in good order has its counter.
            return;
        }
        let record = Record {
            began: notes.accepted,
            client: relay.client_address(),
            proxy: relay.proxy(),
            vip: relay.vip(),
            server: notes.server.clone(),
            timers,
            bytes_from_client: notes.bytes[Side::Server.index()],
            bytes_to_client: notes.bytes[Side::Client.index()],
            termination,
            phase,
            answer: Answered::ByServer,
            redispatches: relay.redispatches(),
            load: self.load_at_end(front, notes.server.as_ref()),
            tls: tls_of(self.tls_of_client(relay)),
            request: is_http.then(Request::default),
            texts: texts_of(None, relay.client_name.as_deref()),
            service: Arc::clone(front),
        };
        self.give_record(Box::new(record));
    }

    /// A connection that is refused before anything is known of it.
    pub(super) fn log_refused(
        &mut self,
        service: &Arc<Service>,
        client: SocketAddr,
        port: u16,
        termination: Termination,
    ) {
        if service.log == Logged::None {
            return;
        }
        let record = Record {
            began: self.now,
            client,
            proxy: None,
            vip: SocketAddr::new(service.vip, port),
            server: None,
            timers: Timers::default(),
            bytes_from_client: 0,
            bytes_to_client: 0,
            termination,
            phase: Phase::Request,
            answer: Answered::ByServer,
            redispatches: 0,
            load: self.load_at_end(service, None),
            tls: None,
            request: service.http.is_some().then(Request::default),
            texts: Texts::default(),
            service: Arc::clone(service),
        };
        self.give_record(Box::new(record));
    }

    /// A server was chosen for the connection or its request.
    pub(super) fn note_chosen(&mut self, key: Key) {
        let now = self.now;
        let Some(relay) = self.relays.get_mut(key) else { return };
        let server = relay.server().map(|server| (Arc::clone(relay.service()), server));
        let Some(notes) = relay.notes.as_deref_mut() else { return };
        notes.dialled.get_or_insert(now);
        notes.server = server;
    }

    /// A connect for the request at hand is begun.
    pub(super) fn note_dialled(&mut self, key: Key) {
        let now = self.now;
        if let Some(notes) = self.request_notes(key) {
            notes.note_dialled(now);
        }
    }

    /// Its server is there.
    pub(super) fn note_reached(&mut self, key: Key) {
        let now = self.now;
        if let Some(notes) = self.relays.get_mut(key).and_then(|relay| relay.notes.as_deref_mut()) {
            notes.connected.get_or_insert(now);
        }
    }

    /// The request at hand is over, as `termination` if that is not as it should be: its record waits until its response has left.
    pub(super) fn note_over(&mut self, key: Key, termination: Option<Termination>) {
        let now = self.now;
        let Some(notes) = self.request_notes(key) else { return };
        // The next one is only begun when the one before has left; its line may not have been due since.
        if let Some(before) = notes.pending.take() {
            self.finish_request(before, now);
        }
        let Some(notes) = self.request_notes(key) else { return };
        // What we have answered ourselves had not come to a response.
        let phase = match (notes.answer, notes.forwarded) {
            (Answered::ByServer, _) => Phase::Data,
            (_, Some(_)) => Phase::Head,
            (_, None) => Phase::Request,
        };
        if let Some(record) = self.request_record(key, termination.unwrap_or(Termination::KeepAliveEnded), phase)
            && let Some(notes) = self.request_notes(key)
        {
            *notes = RequestNotes { pending: Some(record), ..RequestNotes::default() };
        }
    }

    /// A response has left: its line.
    #[inline]
    pub(super) fn settle_request(&mut self, key: Key) {
        let now = self.now;
        let Some(conversation) = self.relays.get_mut(key).and_then(|relay| relay.http.as_deref_mut()) else { return };
        let has_sent_all = conversation.has_sent_all();
        let Some(notes) = conversation.notes.as_deref_mut().filter(|_| has_sent_all) else { return };
        if let Some(record) = notes.pending.take() {
            self.finish_request(record, now);
        }
    }

    /// The connection ends now: what becomes of the request at hand, and of the one before.
    pub(super) fn log_conversation_end(&mut self, key: Key, termination: Termination) {
        let now = self.now;
        let Some(conversation) = self.relays.get_mut(key).and_then(|relay| relay.http.as_deref_mut()) else { return };
        let phase = match conversation.stage() {
            Stage::Between => Phase::Request,
            Stage::Routed if conversation.is_dialling() => Phase::Connect,
            Stage::Routed => Phase::Queue,
            Stage::Forwarded if conversation.has_responded() => Phase::Data,
            Stage::Forwarded => Phase::Head,
            Stage::Tunnel => Phase::Data,
        };
        let has_sent_all = conversation.has_sent_all();
        let Some(notes) = conversation.notes.as_deref_mut() else { return };
        let pending = notes.pending.take();
        let is_begun = notes.began.is_some();
        if let Some(mut record) = pending {
            if !has_sent_all && letter(termination) != b'-' {
                (record.termination, record.phase) = (termination, Phase::Last);
            }
            self.finish_request(record, now);
        }
        if is_begun {
            if let Some(record) = self.request_record(key, termination, phase) {
                self.finish_request(record, now);
            }
            if let Some(notes) = self.request_notes(key) {
                *notes = RequestNotes::default();
            }
        }
    }

    fn request_notes(&mut self, key: Key) -> Option<&mut RequestNotes> {
        self.relays.get_mut(key)?.http.as_deref_mut()?.notes.as_deref_mut()
    }

    /// The record of the request at hand, but for what its end adds.
    fn request_record(&mut self, key: Key, termination: Termination, phase: Phase) -> Option<Box<Record>> {
        let now = self.now;
        let relay = self.relays.get_mut(key)?;
        let conversation = relay.http.as_deref()?;
        let notes = conversation.notes.as_deref()?;
        let front = relay.front();
        let answer = notes.answer;
        let is_error = !matches!(code(termination, phase, answer)[0], b'-' | b'L') || notes.status >= 500;
        if front.log == Logged::None || (front.log == Logged::Errors && !is_error) {
            if let Some(notes) = relay.notes.as_deref_mut() {
                notes.requests = notes.requests.saturating_add(1);
            }
            if let Some(notes) = self.request_notes(key) {
                *notes = RequestNotes { pending: notes.pending.take(), ..RequestNotes::default() };
            }
            return None;
        }
        let relay = self.relays.get(key)?;
        let conversation = relay.http.as_deref()?;
        let notes = conversation.notes.as_deref()?;
        let front = relay.front();
        let of_connection = relay.notes.as_deref()?;
        let handshake_ms = of_connection.entered.map(|entered| entered.ms_since(of_connection.accepted));
        let head = conversation.known_request();
        let server = match relay.server() {
            Some(server) => Some((Arc::clone(relay.service()), server)),
            None => of_connection.server.clone().filter(|_| notes.dialled.is_some()),
        };
        let server = server.filter(|_| notes.forwarded.is_some() || notes.dialled.is_some());
        let record = Box::new(Record {
            began: notes.began.unwrap_or(now),
            client: relay.client_address(),
            proxy: relay.proxy(),
            vip: relay.vip(),
            timers: notes.timers(now, handshake_ms),
            bytes_from_client: notes.bytes[Side::Server.index()],
            bytes_to_client: notes.bytes[Side::Client.index()],
            termination,
            phase,
            answer,
            redispatches: notes.redispatches,
            load: self.load_at_end(front, server.as_ref()),
            server,
            tls: tls_of(self.tls_of_client(relay)),
            request: Some(Request {
                status: notes.status,
                head_bytes: notes.head_bytes,
                is_read: head.is_some(),
                version: match head.map(RequestHead::version) {
                    _ if relay.is_spoke() => (2, 0),
                    Some(Version::Http10) => (1, 0),
                    _ => (1, 1),
                },
            }),
            texts: texts_of(head, relay.client_name.as_deref()),
            service: Arc::clone(front),
        });
        if let Some(notes) = self.relays.get_mut(key).and_then(|relay| relay.notes.as_deref_mut()) {
            notes.requests = notes.requests.saturating_add(1);
        }
        Some(record)
    }

    /// The last byte has left, or never will.
    fn finish_request(&mut self, mut record: Box<Record>, now: Now) {
        let until_now = now.ms_since(record.began);
        let more = until_now.saturating_sub(record.timers.total_ms);
        record.timers.total_ms = until_now;
        if let Some(data) = &mut record.timers.data_ms {
            *data += more;
        }
        self.give_record(record);
    }

    fn load_at_end(&self, service: &Service, server: Option<&(Arc<Service>, RealServerId)>) -> Load {
        let loads = self.shared.loads();
        Load {
            process: self.shared.gate(Protocol::Tcp).inside(),
            service: loads.service_active(service.id),
            server: server.map_or(0, |(_, server)| towpath_core::Loads::active(loads, *server)),
        }
    }

    fn give_record(&self, record: Box<Record>) {
        if record.service.log == Logged::Errors && !record.is_error() {
            return;
        }
        let seat = self.shared.seat(self.id);
        let is_taken = self.shared.access().give(self.id, record);
        seat.add(WorkerCounter::LogLines, u64::from(is_taken));
        seat.add(WorkerCounter::LogDropped, u64::from(!is_taken));
    }
}
