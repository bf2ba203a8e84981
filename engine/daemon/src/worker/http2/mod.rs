//! HTTP/2 towards clients: a hub is a client's connection, and each of its streams is served by a spoke.
//!
//! A spoke is a conversation as any client of HTTP/1.1 has one, on a relay of its own, but its client leg is memory: what the hub reads of a stream
//! is stowed there, and what it says goes back to the hub. So routes, rules, servers, retries and counters are the same. A spoke serves one stream
//! after the other, as a connection does; and it counts as one, against `limits.connections`, too.
//!
//! Hub and spokes do not call each other back: a spoke wakes its hub, which has its turn later in the same breath and sends what all have said at once.

mod ends;
mod spoke;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use towpath_core::Now;
use towpath_core::counters::{ServiceCounter, Termination};
use towpath_core::http2::{BadStream, Connection, Http2Limits, Progress, Then};
use towpath_core::session::{Chunk, Event, ReceiveEnd, Side};
use towpath_core::snapshot::Service;
use towpath_sys::socket::Behind;

use super::Worker;
use super::http::{Receive, StreamEnd};
use super::pressure::{Kept, KeptBytes};
use super::relay::Relay;
use super::secure::Own;
use super::token::Key;
use ends::HubEnding;
use spoke::Seat;
pub(super) use spoke::Spoke;

/// What a client chooses by ALPN (RFC 9113 §3.2).
const ALPN: &[u8] = b"h2";
/// Requests of one client that are taken in one turn: others are served between.
const REQUESTS_AT_ONCE: u32 = 64;
/// Bytes of frames made for one send.
const SEND_BYTES: usize = 64 * 1024;

/// What is known of one client's connection.
pub(super) struct Hub {
    connection: Connection,
    /// The service that the client came to.
    front: Arc<Service>,
    receive: Receive,
    /// Received and not taken yet.
    held: Option<Chunk>,
    /// How the client's stream has ended.
    end: Option<StreamEnd>,
    /// Frames that wait for a buffer.
    out: Vec<u8>,
    sending: bool,
    seats: Vec<Seat>,
    kept: Kept,
    ending: Option<HubEnding>,
    /// Since when no stream is open, …
    since: Now,
    /// … and since when no byte has left.
    left_at: Now,
    /// It waits for a buffer to send from.
    waits: bool,
    /// There was too much of something; it ends with its next turn.
    failed: Option<BadStream>,
    /// Since when the client has been amid a head.
    head_since: Option<Now>,
    /// A stream was opened.
    used: bool,
    /// When the client was told that the end is near.
    announced: Option<Now>,
    /// When the wheel's timer is due.
    timer: Option<Now>,
    /// It is in the queue of those that have their turn.
    woken: bool,
}

/// Hubs that have their turn in this breath.
pub(super) type Woken = VecDeque<Key>;

impl Hub {
    fn new(front: Arc<Service>, limits: Http2Limits, kept: &KeptBytes, now: Now) -> Hub {
        Hub {
            connection: Connection::new(limits),
            front,
            receive: Receive::Idle,
            held: None,
            end: None,
            out: Vec::new(),
            sending: false,
            seats: Vec::new(),
            kept: Kept::nothing(kept),
            ending: None,
            since: now,
            left_at: now,
            waits: false,
            failed: None,
            head_since: Some(now),
            used: false,
            announced: None,
            timer: None,
            woken: false,
        }
    }

    /// Whether the end of the connection is decided.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// Whether nothing is waited for but operations in flight.
    pub(super) fn is_stopping(&self) -> bool {
        matches!(self.ending, Some(HubEnding::Stopping { .. }))
    }

    /// Since when it keeps bytes that count with parts of records.
    pub(super) fn kept_since(&self) -> Option<Now> {
        self.kept.since()
    }

    /// Whether everything has left.
    fn has_left(&self) -> bool {
        !self.sending && self.out.is_empty() && !self.connection.has_news()
    }
}

impl Worker {
    fn hub(&mut self, key: Key) -> Option<&mut Hub> {
        self.relays.get_mut(key)?.hub.as_deref_mut()
    }

    /// Whether the client of this service in HTTP mode has chosen HTTP/2.
    pub(super) fn speaks_http2(&self, key: Key) -> bool {
        let leg = self.relays.get(key).and_then(|relay| relay.legs.tls(Side::Client));
        leg.and_then(|leg| leg.handshake.as_ref()).is_some_and(|handshake| handshake.connection.alpn() == Some(ALPN))
    }

    /// A client that speaks HTTP/2 has passed the entrance.
    pub(super) fn open_hub(&mut self, key: Key) -> io::Result<()> {
        let (now, settings) = (self.now, &self.settings);
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        let front = Arc::clone(relay.service());
        let Some(http) = &front.http else { return Ok(()) };
        let limits = Http2Limits {
            streams_max: settings.http2_streams,
            head_bytes_max: http.rules.config().head_bytes_max,
            window_bytes: settings.http2_window,
        };
        relay.hub = Some(Box::new(Hub::new(Arc::clone(&front), limits, &self.kept, now)));
        self.shared.seat(self.id).service_page(front.id).add(ServiceCounter::Http2, 1);
        self.advance_hub(key)
    }

    /// Something has happened to a client's connection.
    pub(super) fn heard_hub(&mut self, key: Key, event: Event) -> io::Result<()> {
        let now = self.now;
        self.note_relayed(key, event);
        let Some(hub) = self.hub(key) else { return Ok(()) };
        match event {
            Event::Received { buffer, len, last, .. } => {
                hub.receive = Receive::Idle;
                if last {
                    hub.end = Some(StreamEnd::Orderly);
                }
                if hub.ending.is_some() {
                    self.ring.recycle(buffer);
                } else {
                    hub.held = Some(Chunk { buffer, start: 0, len });
                }
            }
            Event::ReceiveEnded { from, end } => {
                hub.receive = Receive::Idle;
                match end {
                    ReceiveEnd::Cancelled => {}
                    ReceiveEnd::NoBuffers => {
                        hub.receive = Receive::Starved;
                        self.starve(key, from);
                    }
                    ReceiveEnd::Fin => hub.end = Some(StreamEnd::Orderly),
                    ReceiveEnd::Failed => hub.end = Some(StreamEnd::Reset),
                    ReceiveEnd::Truncated => hub.end = Some(StreamEnd::Truncated),
                    ReceiveEnd::Damaged => hub.end = Some(StreamEnd::Damaged),
                }
            }
            Event::BuffersFree(_) => {
                if hub.receive == Receive::Starved {
                    hub.receive = Receive::Idle;
                }
            }
            Event::Sent { .. } => {
                hub.sending = false;
                hub.left_at = now;
            }
            Event::SendFailed { .. } => {
                hub.sending = false;
                self.cut_hub(key, Termination::ClientReset)?;
            }
            Event::End(termination) => self.cut_hub(key, termination)?,
            Event::Tick => self.hub_timer(key)?,
            Event::Connected
            | Event::ConnectFailed
            | Event::ConnectGivenUp(_)
            | Event::Connecting
            | Event::GatherLost(_)
            | Event::GrantLost(_)
            | Event::Pumped { .. }
            | Event::Ready { .. } => return Ok(()),
        }
        self.advance_hub(key)
    }

    /// Goes on as far as there is something to go on with, then waits for what comes next.
    pub(super) fn advance_hub(&mut self, key: Key) -> io::Result<()> {
        if let Some(reason) = self.hub(key).and_then(|hub| hub.failed.take()) {
            self.count_bad_stream(key, reason);
            self.finish_hub(key, Termination::BadFrames)?;
        }
        loop {
            self.take_frames(key)?;
            if !self.send_frames(key)? {
                break;
            }
        }
        let now = self.now;
        let Some(hub) = self.hub(key) else { return Ok(()) };
        hub.kept.note(hub.connection.kept_bytes() + hub.out.capacity(), now);
        self.receive_for_hub(key)?;
        if self.follow_hub_ending(key)? {
            return Ok(());
        }
        self.arm_hub(key);
        Ok(())
    }

    /// A hub that waited for a buffer has its turn.
    pub(super) fn waits_no_more(&mut self, key: Key) {
        if let Some(hub) = self.hub(key) {
            hub.waits = false;
        }
    }

    /// Lets the hub of a spoke have its turn.
    fn wake_hub(&mut self, key: Key) {
        let Some(hub) = self.hub(key) else { return };
        if !std::mem::replace(&mut hub.woken, true) {
            self.woken.push_back(key);
        }
    }

    /// Hubs whose spokes have said something.
    pub(super) fn serve_woken(&mut self) -> io::Result<()> {
        for _ in 0..self.woken.len() {
            let Some(key) = self.woken.pop_front() else { break };
            if let Some(hub) = self.hub(key) {
                hub.woken = false;
                self.advance_hub(key)?;
            }
        }
        Ok(())
    }

    /// Takes what the client has sent, as far as what there is to leave allows.
    fn take_frames(&mut self, key: Key) -> io::Result<()> {
        let now = self.now;
        let mut requests = 0;
        loop {
            if requests == REQUESTS_AT_ONCE {
                self.wake_hub(key);
                return Ok(());
            }
            let Worker { relays, ring, .. } = self;
            let Some(relay) = relays.get_mut(key) else { return Ok(()) };
            let Some(chunk) = relay.hub.as_ref().and_then(|hub| hub.held) else { break };
            let range = relay.chunk_range(Side::Client, chunk);
            let Some(hub) = relay.hub.as_deref_mut() else { return Ok(()) };
            let input = ring.held(range);
            let step = hub.connection.take(input, now);
            let consumed = step.consumed as u32;
            let data = match &step.then {
                Then::Data { range, .. } => input[range.clone()].to_vec(),
                _ => Vec::new(),
            };
            if consumed == chunk.len {
                hub.held = None;
                ring.recycle(chunk.buffer);
            } else {
                hub.held = Some(Chunk { start: chunk.start + consumed, len: chunk.len - consumed, ..chunk });
            }
            let is_amid = hub.connection.is_amid_head();
            hub.head_since = if is_amid || !hub.used { hub.head_since.or(Some(now)) } else { None };
            match step.then {
                Then::Read => break,
                Then::Wait => return Ok(()),
                then => {
                    requests += u32::from(matches!(then, Then::Request { .. } | Then::Refused { .. }));
                    self.follow_hub(key, then, &data)?;
                }
            }
        }
        let Some(hub) = self.hub(key) else { return Ok(()) };
        match hub.end {
            Some(end) if hub.held.is_none() && hub.ending.is_none() => self.client_left_hub(key, end),
            _ => Ok(()),
        }
    }

    /// Does what the connection wants next; `data` are the bytes that it has named.
    fn follow_hub(&mut self, key: Key, then: Then, data: &[u8]) -> io::Result<()> {
        match then {
            Then::Read | Then::Wait => Ok(()),
            Then::Request { stream, request, last } => {
                let now = self.now;
                self.note_front(key);
                if let Some(hub) = self.hub(key) {
                    (hub.used, hub.head_since, hub.since) = (true, None, now);
                }
                self.open_stream(key, stream, request, last)
            }
            Then::Data { stream, last, .. } => self.feed_stream(key, stream, data, last),
            Then::Trailers { stream, lines } => self.end_request(key, stream, &lines),
            Then::Gone(stream) => self.stream_gone(key, stream, Termination::ClientReset),
            Then::Refused { stream, reason } => {
                self.count_bad_stream(key, reason);
                self.stream_gone(key, stream, Termination::BadRequest)
            }
            Then::Failed(reason) => {
                self.count_bad_stream(key, reason);
                self.finish_hub(key, Termination::BadFrames)
            }
        }
    }

    fn count_bad_stream(&self, key: Key, reason: BadStream) {
        let Some(relay) = self.relays.get(key) else { return };
        self.shared.seat(self.id).service_page(relay.service().id).count_bad_stream(reason);
    }

    /// Sends the frames that can leave, in one go; says whether there were any.
    fn send_frames(&mut self, key: Key) -> io::Result<bool> {
        let now = self.now;
        let Some(hub) = self.hub(key) else { return Ok(false) };
        if hub.sending || matches!(hub.ending, Some(HubEnding::Lingering(..) | HubEnding::Stopping { .. })) {
            return Ok(false);
        }
        let mut out = std::mem::take(&mut hub.out);
        let mut progress = Vec::new();
        hub.connection.write(SEND_BYTES, &mut out, &mut progress);
        if out.is_empty() {
            return Ok(false);
        }
        match self.send_own(key, Side::Client, &out, Behind::Nothing)? {
            Own::Failed => {
                self.cut_hub(key, Termination::ClientReset)?;
                return Ok(false);
            }
            Own::NoBuffer => {
                if self.hub(key).is_some_and(|hub| !std::mem::replace(&mut hub.waits, true)) {
                    self.unsent.push_back((key, Side::Client));
                }
            }
            Own::OnItsWay(sent) => {
                out.drain(..sent as usize);
                if let Some(hub) = self.hub(key) {
                    (hub.sending, hub.left_at) = (true, now);
                    // What only answers the client is no use of what is kept for it.
                    if !progress.is_empty() {
                        hub.kept.renew(now);
                    }
                }
            }
        }
        let Some(hub) = self.hub(key) else { return Ok(false) };
        let is_sent = hub.sending;
        // Of an idle connection nothing is kept.
        hub.out = if out.is_empty() { Vec::new() } else { out };
        for Progress { stream, drained } in progress {
            self.stream_moved(key, stream, drained)?;
        }
        Ok(is_sent)
    }

    /// Receives what comes next, if anybody wants it.
    fn receive_for_hub(&mut self, key: Key) -> io::Result<()> {
        let Some(hub) = self.hub(key) else { return Ok(()) };
        let is_stopping = matches!(hub.ending, Some(HubEnding::Finishing(_) | HubEnding::Stopping { .. }));
        if is_stopping || hub.receive != Receive::Idle || hub.held.is_some() || hub.end.is_some() {
            return Ok(());
        }
        // Before the receive, which may complete at once with what came with other records.
        hub.receive = Receive::Armed;
        self.receive_record(key, Side::Client)
    }

    /// Takes the service as the newest snapshot has it; where it is gone, or is not what it was, the connection ends with the streams that are open.
    fn note_front(&mut self, key: Key) {
        let now = self.now;
        let Some(front) = self.hub(key).map(|hub| Arc::clone(&hub.front)) else { return };
        let newest = self.in_force(&front, true);
        let goes_on = self.stopping.is_none();
        let Some(hub) = self.hub(key) else { return };
        match newest.filter(|_| goes_on) {
            Some(newest) => hub.front = newest,
            None => hub.announce(now),
        }
    }

    /// The process stops: clients are told to open no more streams here.
    pub(super) fn drain_hubs(&mut self) -> io::Result<()> {
        let now = self.now;
        let hubs: Vec<Key> = self.relays.iter().filter(|(_, relay)| relay.hub.is_some()).map(|(key, _)| key).collect();
        for key in hubs {
            if let Some(hub) = self.hub(key) {
                hub.announce(now);
            }
            self.advance_hub(key)?;
        }
        Ok(())
    }
}

impl Relay {
    /// Whether its client leg is memory.
    pub(super) fn is_spoke(&self) -> bool {
        self.spoke.is_some()
    }

    /// The connection that brings its stream, if it is a stream's.
    pub(super) fn hub_of_spoke(&self) -> Option<Key> {
        Some(self.spoke.as_ref()?.hub())
    }
}
