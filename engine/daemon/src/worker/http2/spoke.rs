//! Spokes: conversations whose client leg is memory, each serving one stream after the other.

use std::io;
use std::sync::Arc;

use towpath_config::model::Protocol;
use towpath_core::Now;
use towpath_core::counters::{ServiceCounter, Termination};
use towpath_core::http2::{BadStream, ErrorCode, Part, RequestBody, ResponseReader, StreamId, TranslatedRequest};
use towpath_core::session::{Event, Side};

use super::super::Worker;
use super::super::relay::Relay;
use super::super::token::Key;
use super::Hub;

/// What a relay is a spoke by.
pub(in super::super) struct Spoke {
    hub: Key,
    /// The stream that it serves.
    stream: Option<StreamId>,
    reader: ResponseReader,
    /// Bytes of the request's body that it was given and that count against the stream's window.
    unread: usize,
    body: RequestBody,
}

/// A spoke, as its hub knows it.
#[derive(Clone, Copy)]
pub(super) struct Seat {
    spoke: Key,
    stream: Option<StreamId>,
}

impl Hub {
    /// Since when no stream is open; `None` while one is.
    pub(in super::super) fn idle_since(&self) -> Option<Now> {
        self.seats.iter().all(|seat| seat.stream.is_none()).then_some(self.since)
    }
}

impl Worker {
    fn spoke(&mut self, key: Key) -> Option<&mut Spoke> {
        self.relays.get_mut(key)?.spoke.as_deref_mut()
    }

    fn spoke_of(&mut self, hub: Key, stream: StreamId) -> Option<Key> {
        self.hub(hub)?.seats.iter().find(|seat| seat.stream == Some(stream)).map(|seat| seat.spoke)
    }

    /// A request has come: an idle spoke serves it, or a new one.
    pub(super) fn open_stream(
        &mut self,
        hub: Key,
        stream: StreamId,
        request: TranslatedRequest,
        last: bool,
    ) -> io::Result<()> {
        let Some(key) = self.idle_spoke(hub).map_or_else(|| self.new_spoke(hub), |key| Ok(Some(key)))? else {
            self.count_bad_stream(hub, BadStream::NoRoom);
            if let Some(hub) = self.hub(hub) {
                hub.connection.reset(stream, ErrorCode::RefusedStream);
            }
            return Ok(());
        };
        if let Some(seat) = self.hub(hub).and_then(|hub| hub.seats.iter_mut().find(|seat| seat.spoke == key)) {
            seat.stream = Some(stream);
        }
        if let Some(spoke) = self.spoke(key) {
            spoke.stream = Some(stream);
            spoke.reader = ResponseReader::new(request.is_head);
            spoke.unread = 0;
            spoke.body = request.body(last);
        }
        self.stow_for(key, &request.head);
        self.advance(key)
    }

    /// Bytes of a request's body have come.
    pub(super) fn feed_stream(&mut self, hub: Key, stream: StreamId, data: &[u8], last: bool) -> io::Result<()> {
        let Some(key) = self.spoke_of(hub, stream) else { return Ok(()) };
        let Some(spoke) = self.spoke(key) else { return Ok(()) };
        spoke.unread += data.len();
        let body = spoke.body;
        let mut bytes = Vec::with_capacity(data.len() + 16);
        body.write(data, last, &mut bytes);
        self.stow_for(key, &bytes);
        self.advance(key)
    }

    /// A request's body has ended with fields.
    pub(super) fn end_request(&mut self, hub: Key, stream: StreamId, lines: &[u8]) -> io::Result<()> {
        let Some(key) = self.spoke_of(hub, stream) else { return Ok(()) };
        let Some(body) = self.spoke(key).map(|spoke| spoke.body) else { return Ok(()) };
        let mut bytes = Vec::new();
        body.write_trailers(lines, &mut bytes);
        self.stow_for(key, &bytes);
        self.advance(key)
    }

    /// Nobody waits for the response of this stream any more.
    pub(super) fn stream_gone(&mut self, hub: Key, stream: StreamId, termination: Termination) -> io::Result<()> {
        let Some(key) = self.spoke_of(hub, stream) else { return Ok(()) };
        self.detach(hub, key);
        self.cut_conversation(key, termination);
        self.advance(key)
    }

    /// Frames of this stream were written, all that there were if it is `drained`.
    pub(super) fn stream_moved(&mut self, hub: Key, stream: StreamId, drained: bool) -> io::Result<()> {
        let Some(key) = self.spoke_of(hub, stream) else { return Ok(()) };
        if !drained {
            self.touch_conversation(key);
            return Ok(());
        }
        let has_ended = self.hub(hub).is_some_and(|hub| !hub.connection.has(stream));
        if has_ended {
            self.detach(hub, key);
        }
        self.heard(key, Event::Sent { to: Side::Client, bytes: u32::MAX })?;
        // Its response was over before its request: the rest of that comes to nobody.
        if has_ended && !self.is_idle_or_ending(key) {
            self.cut_conversation(key, Termination::KeepAliveEnded);
            self.advance(key)?;
        }
        Ok(())
    }

    /// Passes what a spoke says on to its hub, which sends it when it can; says whether anything of it is to leave.
    pub(in super::super) fn pass_to_hub(&mut self, key: Key, said: &[u8]) -> bool {
        let Some(spoke) = self.spoke(key) else { return false };
        let (hub_key, Some(stream)) = (spoke.hub, spoke.stream) else { return false };
        let mut reader = std::mem::replace(&mut spoke.reader, ResponseReader::new(false));
        let Some(hub) = self.hub(hub_key) else { return false };
        let (mut head, mut given): (Option<Vec<u8>>, bool) = (None, false);
        let read = reader.read(said, |part| {
            let is_end = matches!(part, Part::End);
            given = true;
            let before = head.take();
            let had_head = before.is_some();
            if let Some(block) = before {
                hub.connection.respond(stream, &block, is_end);
            }
            match part {
                Part::Head(block) => head = Some(block),
                Part::Data(data) => hub.connection.send(stream, data),
                Part::End if had_head => {}
                Part::End => hub.connection.finish(stream, None),
                Part::Trailers(block) => hub.connection.finish(stream, Some(block)),
            }
        });
        if let Some(block) = head {
            hub.connection.respond(stream, &block, false);
        }
        if read.is_err() {
            // Not what an exchange writes: a fault of ours, and better no end than a wrong one.
            hub.connection.reset(stream, ErrorCode::Internal);
            self.detach(hub_key, key);
            self.wake_hub(hub_key);
            self.cut_conversation(key, Termination::BadResponse);
            return false;
        }
        if let Some(spoke) = self.spoke(key) {
            spoke.reader = reader;
        }
        self.wake_hub(hub_key);
        // The frame of a chunk alone is nothing that leaves, and so nothing to wait for.
        given
    }

    /// Says to the hub how much of the request was taken.
    pub(in super::super) fn note_taken(&mut self, key: Key) {
        let now = self.now;
        let Some(left) = self.untaken_bytes(key) else { return };
        let Some(spoke) = self.spoke(key) else { return };
        let taken = spoke.unread.saturating_sub(left);
        let (hub_key, Some(stream)) = (spoke.hub, spoke.stream) else { return };
        if taken == 0 {
            return;
        }
        spoke.unread -= taken;
        let Some(hub) = self.hub(hub_key) else { return };
        hub.connection.taken(stream, taken as u32);
        hub.kept.renew(now);
        self.wake_hub(hub_key);
    }

    /// The client has to come by HTTP/1.1: what it was given authenticates a connection, and here it would be nobody's.
    pub(in super::super) fn require_http1(&mut self, key: Key) -> io::Result<()> {
        let Some(Spoke { hub, stream: Some(stream), .. }) = self.spoke(key) else { return Ok(()) };
        let (hub_key, stream) = (*hub, *stream);
        self.count_bad_stream(key, BadStream::Logon);
        let now = self.now;
        if let Some(hub) = self.hub(hub_key) {
            hub.failed = hub.connection.refuse_stream(stream, ErrorCode::Http11Required, now);
        }
        self.detach(hub_key, key);
        self.wake_hub(hub_key);
        self.cut_conversation(key, Termination::LogonOverHttp2);
        Ok(())
    }

    /// A spoke ends: the stream that it serves does, too.
    pub(in super::super) fn spoke_closed(&mut self, hub_key: Key, key: Key, termination: Termination) {
        let now = self.now;
        let Some(hub) = self.hub(hub_key) else { return };
        let Some(place) = hub.seats.iter().position(|seat| seat.spoke == key) else { return };
        let seat = hub.seats.swap_remove(place);
        if let Some(stream) = seat.stream {
            let code = match termination {
                Termination::IdleTimedOut | Termination::OutOfTlsMemory => ErrorCode::Cancel,
                _ => ErrorCode::Internal,
            };
            hub.connection.reset(stream, code);
            hub.since = now;
        }
        self.wake_hub(hub_key);
    }

    /// Ends all spokes of a hub.
    pub(super) fn end_spokes(&mut self, hub: Key, termination: Termination) -> io::Result<()> {
        let Some(hub) = self.hub(hub) else { return Ok(()) };
        let seats = std::mem::take(&mut hub.seats);
        for Seat { spoke: key, stream } in seats {
            if let Some(spoke) = self.spoke(key) {
                spoke.stream = None;
            }
            match stream {
                Some(_) => self.cut_conversation(key, termination),
                None => self.finish_conversation(key, Termination::KeepAliveEnded),
            }
            self.advance(key)?;
        }
        Ok(())
    }

    /// The spoke serves this stream no more.
    fn detach(&mut self, hub: Key, key: Key) {
        let now = self.now;
        if let Some(spoke) = self.spoke(key) {
            spoke.stream = None;
        }
        let Some(hub) = self.hub(hub) else { return };
        hub.since = now;
        if let Some(seat) = hub.seats.iter_mut().find(|seat| seat.spoke == key) {
            seat.stream = None;
        }
    }

    /// The spoke that was idle for the shortest time.
    fn idle_spoke(&mut self, hub: Key) -> Option<Key> {
        let free: Vec<Key> =
            self.hub(hub)?.seats.iter().filter(|seat| seat.stream.is_none()).map(|seat| seat.spoke).collect();
        free.into_iter().rev().find(|key| self.is_idle(*key))
    }

    /// Opens another one, if there is room.
    fn new_spoke(&mut self, hub_key: Key) -> io::Result<Option<Key>> {
        let streams_max = self.settings.http2_streams as usize;
        let Some(hub) = self.hub(hub_key) else { return Ok(None) };
        // Those that are still ending count: what they cost is not over with their stream.
        if hub.seats.len() >= 2 * streams_max {
            return Ok(None);
        }
        let front = Arc::clone(&hub.front);
        if !self.shared.gate(Protocol::Tcp).try_enter() {
            return Ok(None);
        }
        let Some(relay) = self.relays.get(hub_key) else { return Ok(None) };
        let spoke = Spoke {
            hub: hub_key,
            stream: None,
            reader: ResponseReader::new(false),
            unread: 0,
            body: RequestBody::default(),
        };
        let relay = Relay::spoke(relay, front, spoke, self.now);
        let service = relay.service().id;
        let Ok(key) = self.relays.insert(Box::new(relay)) else {
            self.shared.gate(Protocol::Tcp).leave();
            return Ok(None);
        };
        self.shared.seat(self.id).service_page(service).add(ServiceCounter::Accepted, 1);
        if let Some(hub) = self.hub(hub_key) {
            hub.seats.push(Seat { spoke: key, stream: None });
        }
        self.converse(key)?;
        Ok(Some(key))
    }
}

impl Spoke {
    /// Whose it is.
    pub(in super::super) fn hub(&self) -> Key {
        self.hub
    }
}
