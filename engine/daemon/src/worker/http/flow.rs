//! Bytes of the two legs: received into at most one buffer that waits, sent from at most one at a time.

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;

use towpath_core::http::{Output, Piece};
use towpath_core::session::{Chunk, Room, Side};
use towpath_sys::ring::BufferRange;
use towpath_sys::socket::Behind;

use super::super::Worker;
use super::super::pressure::SendWatch;
use super::super::secure::Own;
use super::super::token::{Key, Token};
use super::Stage;
use super::server::ServerState;

/// Bytes of one buffer for what we make, where no connection has TLS.
pub(crate) const OUTGOING_BYTES: u32 = 32_768;
/// Such buffers of one worker at most.
pub(crate) const OUTGOING_BUFFERS_MAX: u32 = 4_096;
/// The rest of a receive buffer is sent from where it lies if it is so long; shorter ones are copied behind what goes before.
const DIRECT_BYTES_MIN: u32 = 8_192;

/// What a leg is read for.
#[derive(Default)]
pub(super) struct Inlet {
    pub(super) receive: Receive,
    /// Received and not taken yet.
    pub(super) held: Option<Chunk>,
    /// The last receive has left nothing behind, most likely.
    drained: bool,
    /// The exchange takes nothing more before something else has happened.
    pub(super) on_hold: bool,
    /// How the stream has ended.
    pub(super) end: Option<StreamEnd>,
    /// The exchange knows that.
    pub(super) end_told: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) enum Receive {
    /// In flight.
    Armed,
    /// Nothing in flight.
    #[default]
    Idle,
    /// Waits for a buffer; nothing in flight.
    Starved,
}

/// How a stream has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum StreamEnd {
    /// Damaged or against the rules of TLS.
    Damaged,
    /// By its sender.
    Orderly,
    /// By a failure of the connection.
    Reset,
    /// Without an end of TLS.
    Truncated,
}

/// What is to leave by a leg.
#[derive(Default)]
pub(super) struct Outlet {
    sending: Option<Sending>,
    /// What we made and that waits, for a buffer or for what is being sent.
    made: Vec<u8>,
    /// The rest of a receive buffer that follows it.
    behind: Option<Chunk>,
    /// Nothing more can be sent: what there is is dropped.
    pub(super) broken: bool,
}

/// What is being sent.
#[derive(Clone, Copy, Debug)]
enum Sending {
    /// A receive buffer.
    Held(Chunk),
    /// An outgoing buffer with so many bytes of ours.
    Made(u32),
}

impl Inlet {
    /// Keeps what was received, `last` if the stream has ended behind it; more waits, maybe, where the buffer is `full`.
    pub(super) fn take(&mut self, buffer: u16, len: u32, full: bool, last: bool) {
        self.receive = Receive::Idle;
        self.drained = !full;
        if last {
            self.end = Some(StreamEnd::Orderly);
        }
        debug_assert!(self.held.is_none(), "one receive at a time");
        self.held = Some(Chunk { buffer, start: 0, len });
    }

    /// Nothing more waits in the kernel, most likely.
    pub(super) fn note_drained(&mut self) {
        self.drained = true;
    }

    /// Whether more waits in the kernel, most likely.
    pub(super) fn is_filling(&self) -> bool {
        !self.drained
    }

    /// Whether something is there for the exchange.
    pub(super) fn has_news(&self) -> bool {
        match self.held {
            Some(_) => !self.on_hold,
            None => self.end.is_some() && !self.end_told,
        }
    }
}

impl Outlet {
    pub(super) fn is_sending(&self) -> bool {
        self.sending.is_some()
    }

    /// Whether there is a receive buffer in it.
    pub(super) fn holds_received(&self) -> bool {
        self.behind.is_some() || matches!(self.sending, Some(Sending::Held(_)))
    }

    /// A receive buffer follows what there is.
    pub(super) fn follow_with(&mut self, chunk: Option<Chunk>) {
        debug_assert!(self.behind.is_none(), "a leg is empty before more is taken for it");
        self.behind = chunk;
    }

    /// Bytes of our own memory follow what there is.
    pub(super) fn follow_with_copy(&mut self, bytes: Vec<u8>) {
        debug_assert!(self.is_empty(), "a leg is empty before more is taken for it");
        self.made = bytes;
    }

    /// Bytes of ours that wait.
    pub(super) fn made_bytes(&self) -> usize {
        self.made.len()
    }

    /// What was given to a hub is away; nobody tells of it.
    pub(super) fn forget_sent(&mut self) {
        self.sending = None;
    }

    /// Whether everything has left, and more may follow.
    pub(super) fn takes_more(&self) -> bool {
        self.is_empty() && !self.broken
    }

    /// Whether everything has left.
    pub(super) fn is_empty(&self) -> bool {
        self.sending.is_none() && self.made.is_empty() && self.behind.is_none()
    }
}

/// Where a piece of a turn's input lies.
#[derive(Clone, Copy)]
pub(super) struct Source {
    /// What was held when the turn began.
    pub(super) chunk: Chunk,
    /// Where in it the slice began that the exchange was given last.
    pub(super) base: u32,
    /// All of it was taken.
    pub(super) exhausted: bool,
}

impl Worker {
    /// Receives from `from` what comes next, if anybody wants it and there is room.
    pub(super) fn receive_next(&mut self, key: Key, from: Side) -> io::Result<()> {
        let secured = self.relays.get(key).is_some_and(|relay| relay.is_secured());
        let scarce = self.room(secured) == Room::Scarce;
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        let is_spoke = relay.is_spoke();
        if is_spoke && from == Side::Client {
            // Its hub stows what there is.
            return Ok(());
        }
        let has_plain_legs = relay.has_plain_legs();
        let Some(conversation) = relay.http.as_deref_mut() else { return Ok(()) };
        let is_bulk = has_plain_legs && conversation.has_bulk(from);
        // For streams whose windows are closed nothing is read ahead.
        let wanted = !is_bulk && conversation.wants_more(from, scarce || is_spoke);
        let inlet = &mut conversation.inlets[from.index()];
        if !wanted || inlet.receive != Receive::Idle || inlet.held.is_some() || inlet.end.is_some() {
            return Ok(());
        }
        // Before the receive, which may complete at once with what came with other records.
        inlet.receive = Receive::Armed;
        let drained = inlet.drained;
        if secured {
            return self.receive_record(key, from);
        }
        let Some(leg) = relay.leg(from) else { return Ok(()) };
        let token = Token::Receive(key, from).pack();
        if drained { self.ring.receive_later(leg.as_fd(), token) } else { self.ring.receive(leg.as_fd(), token) }
    }

    /// Waits for a buffer to receive into.
    pub(in super::super) fn starve(&mut self, key: Key, from: Side) {
        let Some(relay) = self.relays.get(key) else { return };
        let starved = if relay.is_secured() { &mut self.starved_records } else { &mut self.starved };
        starved.push_back((key, from));
        let page = self.shared.seat(self.id).service_page(relay.service().id);
        page.add(towpath_core::counters::ServiceCounter::BufferWaited, 1);
    }

    /// Sends what a turn has made, in its order; says whether the receive buffer goes with it.
    pub(super) fn emit(&mut self, key: Key, to: Side, output: &Output, source: Option<Source>) -> io::Result<bool> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(false) };
        let direct = if relay.is_spoke() && to == Side::Client { None } else { direct_rest(output, source) };
        let pieces = output.pieces();
        let copied = if direct.is_some() { &pieces[..pieces.len() - 1] } else { pieces };
        let range = source.map(|source| rest_of(relay.chunk_range(to.other(), source.chunk), source.base));
        let Some(conversation) = relay.http.as_deref_mut() else { return Ok(false) };
        let outlet = &mut conversation.outlets[to.index()];
        if outlet.broken || pieces.is_empty() {
            return Ok(false);
        }
        if let Some(notes) = &mut conversation.notes {
            notes.count(to, output.len());
        }
        debug_assert!(outlet.behind.is_none(), "a turn begins when its leg has sent what was before");
        outlet.behind = direct;
        match copied {
            [] => self.send_waiting(key, to)?,
            // Nearly always: a head, maybe with a short body behind it.
            [Piece::Made(made)] => self.send_made(key, to, bytes_of(made, output.made()))?,
            pieces => {
                let mut gathered = std::mem::take(&mut self.gathered);
                gather(pieces, output, range.map_or(&[][..], |range| self.ring.held(range)), &mut gathered);
                let sent = self.send_made(key, to, &gathered);
                gathered.clear();
                self.gathered = gathered;
                sent?;
            }
        }
        Ok(direct.is_some())
    }

    /// Sends what a turn has made of bytes that lie in no buffer.
    pub(super) fn emit_copied(&mut self, key: Key, to: Side, output: &Output, input: &[u8]) -> io::Result<()> {
        let Some(conversation) = self.conversation(key) else { return Ok(()) };
        let outlet = &mut conversation.outlets[to.index()];
        if outlet.broken || output.is_empty() {
            return Ok(());
        }
        if let Some(notes) = &mut conversation.notes {
            notes.count(to, output.len());
        }
        let mut gathered = std::mem::take(&mut self.gathered);
        gather(output.pieces(), output, input, &mut gathered);
        let sent = self.send_made(key, to, &gathered);
        gathered.clear();
        self.gathered = gathered;
        sent
    }

    /// Sends bytes of ours behind what waits; what cannot leave now is kept.
    fn send_made(&mut self, key: Key, to: Side, bytes: &[u8]) -> io::Result<()> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        if to == Side::Server {
            relay.legs.send_without_delay();
        }
        let to_hub = relay.is_spoke() && to == Side::Client;
        let Some(conversation) = relay.http.as_deref_mut() else { return Ok(()) };
        let outlet = &mut conversation.outlets[to.index()];
        if outlet.sending.is_some() || !outlet.made.is_empty() {
            outlet.made.extend_from_slice(bytes);
            return Ok(());
        }
        if to_hub {
            let is_away = self.pass_to_hub(key, bytes);
            if let Some(conversation) = self.conversation(key).filter(|_| is_away) {
                conversation.outlets[to.index()].sending = Some(Sending::Made(0));
            }
            return Ok(());
        }
        // The end of the stream leaves together with its last bytes.
        let is_last = to == Side::Client && outlet.behind.is_none() && conversation.exchange.says_no_more();
        let own = self.send_own(key, to, bytes, if is_last { Behind::More } else { Behind::Nothing })?;
        let Some(conversation) = self.conversation(key) else { return Ok(()) };
        let outlet = &mut conversation.outlets[to.index()];
        match own {
            Own::Failed => return self.leaving_failed(key, to),
            Own::NoBuffer => {
                outlet.made.extend_from_slice(bytes);
                self.unsent.push_back((key, to));
            }
            Own::OnItsWay(sent) => {
                outlet.sending = Some(Sending::Made(sent));
                outlet.made.extend_from_slice(&bytes[sent as usize..]);
            }
        }
        Ok(())
    }

    /// Sends what waits for its turn on this leg, unless it sends already.
    pub(super) fn send_waiting(&mut self, key: Key, to: Side) -> io::Result<()> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        if to == Side::Server {
            relay.legs.send_without_delay();
        }
        let Some(outlet) = relay.http.as_deref_mut().map(|conversation| &mut conversation.outlets[to.index()]) else {
            return Ok(());
        };
        if outlet.sending.is_some() {
            return Ok(());
        }
        if !outlet.made.is_empty() {
            // Of an idle connection nothing is kept: what is left is copied.
            let made = std::mem::take(&mut outlet.made);
            return self.send_made(key, to, &made);
        }
        let Some(chunk) = outlet.behind.take() else { return Ok(()) };
        outlet.sending = Some(Sending::Held(chunk));
        self.send_held(key, to, chunk)
    }

    fn send_held(&mut self, key: Key, to: Side, chunk: Chunk) -> io::Result<()> {
        let Some(relay) = self.relays.get_mut(key) else { return Ok(()) };
        if relay.legs.tls(to).is_some() {
            return self.send_sealed(key, to, chunk, false);
        }
        let range = relay.chunk_range(to.other(), chunk);
        relay.sends[to.index()] = relay.is_secured().then(SendWatch::default);
        let Some(leg) = relay.leg(to) else { return Ok(()) };
        self.ring.send(leg.as_fd(), range, false, Token::Send(key, to).pack())
    }

    /// So many bytes have left by this leg.
    pub(super) fn left(&mut self, key: Key, to: Side, bytes: u32) -> io::Result<()> {
        let Some(outlet) = self.conversation(key).map(|conversation| &mut conversation.outlets[to.index()]) else {
            return Ok(());
        };
        match outlet.sending.take() {
            Some(Sending::Held(mut chunk)) => {
                let bytes = bytes.min(chunk.len);
                (chunk.start, chunk.len) = (chunk.start + bytes, chunk.len - bytes);
                if chunk.len > 0 && !outlet.broken {
                    outlet.sending = Some(Sending::Held(chunk));
                    return self.send_held(key, to, chunk);
                }
                self.ring.recycle(chunk.buffer);
            }
            // The rest never leaves.
            Some(Sending::Made(whole)) if bytes < whole => return self.leaving_failed(key, to),
            Some(Sending::Made(_)) | None => {}
        }
        self.send_waiting(key, to)
    }

    /// A leg takes nothing more.
    pub(super) fn leaving_failed(&mut self, key: Key, to: Side) -> io::Result<()> {
        let Some(conversation) = self.conversation(key) else { return Ok(()) };
        let outlet = &mut conversation.outlets[to.index()];
        let sending = outlet.sending.take();
        let (stage, is_up) = (conversation.stage, matches!(conversation.server, ServerState::Up { .. }));
        if let Some(Sending::Held(chunk)) = sending {
            self.ring.recycle(chunk.buffer);
        }
        self.drop_waiting(key, to);
        match (to, stage) {
            (Side::Client, _) => self.cut_conversation(key, towpath_core::counters::Termination::ClientReset),
            (Side::Server, Stage::Tunnel) => {
                self.cut_conversation(key, towpath_core::counters::Termination::ServerReset);
            }
            // The end of a request that has had its answer: no other one may follow it there.
            (Side::Server, Stage::Between | Stage::Routed) if is_up => return self.server_lost_idle(key),
            (Side::Server, _) if is_up => {
                if let Some(conversation) = self.conversation(key) {
                    conversation.exchange.server_takes_no_more();
                }
            }
            (Side::Server, _) => {}
        }
        Ok(())
    }

    /// Drops what waits to leave by this side; what is being sent ends by itself.
    pub(super) fn drop_waiting(&mut self, key: Key, to: Side) {
        let Some(conversation) = self.conversation(key) else { return };
        let outlet = &mut conversation.outlets[to.index()];
        outlet.broken = true;
        outlet.made = Vec::new();
        if let Some(chunk) = outlet.behind.take() {
            self.ring.recycle(chunk.buffer);
        }
    }

    /// Drops what was received from this side and not taken.
    pub(super) fn drop_held(&mut self, key: Key, from: Side) {
        let Some(conversation) = self.conversation(key) else { return };
        if from == Side::Client {
            drop(conversation.stowed.take());
        }
        if let Some(chunk) = conversation.inlets[from.index()].held.take() {
            self.ring.recycle(chunk.buffer);
        }
    }

    /// Legs that waited for a buffer to send from.
    pub(in super::super) fn send_unsent(&mut self) -> io::Result<()> {
        for _ in 0..self.unsent.len().min(super::super::FED_MAX) {
            let Some((key, to)) = self.unsent.pop_front() else { break };
            self.waits_no_more(key);
            self.send_waiting(key, to)?;
            // It may have failed, and then nothing else may be in flight that would tell of it.
            self.advance(key)?;
        }
        Ok(())
    }

    /// Whether a leg waits for a buffer that is free.
    pub(in super::super) fn can_send_unsent(&mut self) -> bool {
        !self.unsent.is_empty() && self.ring.outgoing_buffers().is_some_and(|buffers| buffers.free() > 0)
    }
}

/// The end of a receive buffer that is long enough to be sent from where it lies, if it is the end of what a turn has made, too.
fn direct_rest(output: &Output, source: Option<Source>) -> Option<Chunk> {
    let source = source.filter(|source| source.exhausted)?;
    let Some(Piece::Passed(passed)) = output.pieces().last() else { return None };
    let (start, len) = (source.base + passed.start, passed.end - passed.start);
    (len >= DIRECT_BYTES_MIN && start + len == source.chunk.len).then_some(Chunk {
        buffer: source.chunk.buffer,
        start: source.chunk.start + start,
        len,
    })
}

/// Appends pieces of a turn whose input was `input`.
fn gather(pieces: &[Piece], output: &Output, input: &[u8], to: &mut Vec<u8>) {
    for piece in pieces {
        to.extend_from_slice(match piece {
            Piece::Made(made) => bytes_of(made, output.made()),
            Piece::Passed(passed) => bytes_of(passed, input),
        });
    }
}

fn bytes_of<'a>(range: &Range<u32>, whole: &'a [u8]) -> &'a [u8] {
    &whole[range.start as usize..range.end as usize]
}

/// What a chunk's bytes are read by, in its order.
pub(super) fn rest_of(range: BufferRange, taken: u32) -> BufferRange {
    BufferRange { start: range.start + taken, len: range.len - taken, ..range }
}
