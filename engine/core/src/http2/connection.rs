//! One connection: what its client sends becomes requests, pieces of bodies and ends; what is to be sent becomes frames as its windows allow.
//!
//! The client's bytes go into [`Connection::take`], which stops at whatever somebody has to do something about ([`Then`]). Responses go into
//! [`Connection::respond`], [`Connection::send`] and [`Connection::finish`]; [`Connection::write`] makes frames of them, in turn of the streams.
//! A stream is forgotten when both of its sides have ended, or one is reset.

mod read;
mod write;

use std::mem;
use std::ops::Range;

use self::read::{Block, Meters, RESETS, Reading};
use super::frame::{self, ErrorCode, FrameHead, HEAD_BYTES, Kind, WINDOW_INITIAL, WINDOW_MAX};
use super::hpack::Decoder;
use super::refusal::BadStream;
use super::request::TranslatedRequest;
use super::{CONNECTION_WINDOWS, Http2Limits, WAITING_BYTES_MAX};
use crate::Now;

/// Settings that mean something here (RFC 9113 §6.5.2).
const SETTING_PUSH: u16 = 0x2;
const SETTING_STREAMS: u16 = 0x3;
const SETTING_WINDOW: u16 = 0x4;
const SETTING_FRAME: u16 = 0x5;
const SETTING_LIST: u16 = 0x6;
/// RFC 9218 §2.1: priorities of RFC 7540 are not looked at.
const SETTING_NO_PRIORITIES: u16 = 0x9;

/// What the PING behind the first GOAWAY says: its answer shows that the client has that.
const ANNOUNCED: [u8; 8] = *b"drained?";

/// A stream of the client's: odd, and each higher than those before.
pub type StreamId = u32;

/// What bytes have led to.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct Step {
    /// So many of them were taken.
    pub consumed: usize,
    /// What the caller does next.
    pub then: Then,
}

/// What the caller does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Then {
    /// This range of the bytes belongs to the body of this stream's request; they are held against its window until [`Connection::taken`].
    Data {
        /// Whose.
        stream: StreamId,
        /// Of the bytes that were given.
        range: Range<usize>,
        /// The body ends with them.
        last: bool,
    },
    /// The connection is over: what waits leaves, a GOAWAY at its end, then it is closed. To be counted.
    Failed(BadStream),
    /// Nobody wants the response of this stream any more, which is forgotten.
    Gone(StreamId),
    /// Everything was taken; more is welcome.
    Read,
    /// A stream was refused, and is to be counted; it is forgotten if it was there.
    Refused {
        /// Which.
        stream: StreamId,
        /// Why.
        reason: BadStream,
    },
    /// A request, whose body is over with it if it is `last`.
    Request {
        /// Of which stream.
        stream: StreamId,
        /// What it is in HTTP/1.1.
        request: TranslatedRequest,
        /// There is no body.
        last: bool,
    },
    /// The body of this stream's request has ended with these fields, as lines of HTTP/1.1.
    Trailers {
        /// Whose.
        stream: StreamId,
        /// Without the empty line behind them.
        lines: Vec<u8>,
    },
    /// Too much waits to leave: what was not taken is given again when some of it has.
    Wait,
}

/// Frames of a response were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Whose.
    pub stream: StreamId,
    /// Nothing of it waits any more.
    pub drained: bool,
}

/// One connection of a client.
#[derive(Debug)]
pub struct Connection {
    limits: Http2Limits,
    decoder: Decoder,
    reading: Reading,
    block: Option<Block>,
    /// By number.
    streams: Vec<Stream>,
    /// The highest that the client has opened.
    last_stream: StreamId,
    ending: Ending,
    /// What may be sent on the connection, and on a new stream.
    send_window: i64,
    stream_send_window: i64,
    /// What the client may send on the connection.
    window: i64,
    /// Bytes that it may send again and does not know of yet.
    unreturned: u32,
    settled: bool,
    /// Frames that no window holds back.
    out: Vec<u8>,
    /// Streams with heads among them.
    heads_in_out: Vec<StreamId>,
    wrote_block: bool,
    /// The stream that has had its turn.
    turn: StreamId,
    meters: Meters,
}

/// How far the end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The client knows that there is one.
    Announced,
    None,
    /// It knows that this was the last stream.
    Told(StreamId),
}

#[derive(Debug)]
struct Stream {
    id: StreamId,
    /// The client has ended it.
    is_whole: bool,
    /// Bytes that its body still has, if it has said.
    length: Option<u64>,
    /// What the client may send.
    window: i64,
    /// Of what it has sent, what was not taken.
    held: u32,
    /// Taken, and the client does not know.
    unreturned: u32,
    send_window: i64,
    /// Of the response, from `sent` on.
    pending: Vec<u8>,
    sent: usize,
    end: End,
}

/// How the response ends.
#[derive(Debug)]
enum End {
    /// Behind what is pending.
    Data,
    /// Not yet.
    Open,
    /// With these fields.
    Trailers(Vec<u8>),
}

impl Stream {
    fn pending(&self) -> usize {
        self.pending.len() - self.sent
    }

    fn is_ready(&self, connection_window: i64) -> bool {
        match self.pending() {
            0 => !matches!(self.end, End::Open),
            _ => self.send_window > 0 && connection_window > 0,
        }
    }
}

impl Connection {
    /// A connection whose client begins now. What we begin with waits to leave.
    pub fn new(limits: Http2Limits) -> Connection {
        let mut out = Vec::new();
        let settings = [
            (SETTING_STREAMS, limits.streams_max),
            (SETTING_WINDOW, limits.window_bytes),
            (SETTING_LIST, limits.head_bytes_max),
            (SETTING_NO_PRIORITIES, 1),
        ];
        frame::write_settings(&settings, &mut out);
        let window = i64::from(limits.window_bytes) * i64::from(CONNECTION_WINDOWS);
        let window = window.clamp(i64::from(WINDOW_INITIAL), WINDOW_MAX);
        if window > i64::from(WINDOW_INITIAL) {
            frame::write_window_update(0, (window - i64::from(WINDOW_INITIAL)) as u32, &mut out);
        }
        Connection {
            limits,
            decoder: Decoder::default(),
            reading: Reading::Preface(0),
            block: None,
            streams: Vec::new(),
            last_stream: 0,
            ending: Ending::None,
            send_window: i64::from(WINDOW_INITIAL),
            stream_send_window: i64::from(WINDOW_INITIAL),
            window,
            unreturned: 0,
            settled: false,
            out,
            heads_in_out: Vec::new(),
            wrote_block: false,
            turn: 0,
            meters: Meters::default(),
        }
    }

    /// Takes what the client has sent, as far as nobody has to do anything about it.
    pub fn take(&mut self, input: &[u8], now: Now) -> Step {
        let mut at = 0;
        loop {
            if self.out.len() > WAITING_BYTES_MAX && !matches!(self.reading, Reading::Failed) {
                return Step { consumed: at, then: Then::Wait };
            }
            if at == input.len() {
                return Step { consumed: at, then: Then::Read };
            }
            let then = match self.take_part(&input[at..], now) {
                Ok((len, None)) => {
                    at += len;
                    continue;
                }
                Ok((len, Some(then))) => {
                    let then = match then {
                        Then::Data { stream, range, last } => {
                            Then::Data { stream, range: at + range.start..at + range.end, last }
                        }
                        then => then,
                    };
                    at += len;
                    self.judge(then, now)
                }
                Err(reason) => {
                    at = input.len();
                    self.fail(reason)
                }
            };
            return Step { consumed: at, then };
        }
    }

    /// Says that bytes of this stream's request were taken: the client may send as many more.
    pub fn taken(&mut self, id: StreamId, bytes: u32) {
        let Some(stream) = self.stream(id) else { return };
        let bytes = bytes.min(stream.held);
        stream.held -= bytes;
        self.give_back(id, bytes);
    }

    /// Begins the response of this stream, or says something before it: `block` is a block of fields. With `last` nothing follows.
    pub fn respond(&mut self, stream: StreamId, block: &[u8], last: bool) {
        let Some(at) = self.place(stream) else { return };
        self.write_block(stream, block, last);
        self.heads_in_out.push(stream);
        if last {
            self.response_ended(at);
        }
    }

    /// Adds bytes to the body of this stream's response.
    pub fn send(&mut self, stream: StreamId, bytes: &[u8]) {
        let Some(stream) = self.stream(stream) else { return };
        stream.pending.extend_from_slice(bytes);
    }

    /// The response of this stream ends behind what was sent, or with the `trailers`, a block of fields.
    pub fn finish(&mut self, stream: StreamId, trailers: Option<Vec<u8>>) {
        let Some(stream) = self.stream(stream) else { return };
        stream.end = trailers.map_or(End::Data, End::Trailers);
    }

    /// Ends a stream at once.
    pub fn reset(&mut self, stream: StreamId, code: ErrorCode) {
        if self.place(stream).is_some() {
            self.forget(stream);
            frame::write_reset(stream, code, &mut self.out);
        }
    }

    /// Ends a stream for something that the client has brought about; says why the connection fails, if there was too much of that.
    pub fn refuse_stream(&mut self, stream: StreamId, code: ErrorCode, now: Now) -> Option<BadStream> {
        self.reset(stream, code);
        if self.meters.resets.count(RESETS, now) {
            return None;
        }
        self.fail(BadStream::ResetFlood);
        Some(BadStream::ResetFlood)
    }

    /// Appends frames to `out` until it is `room` bytes long or nothing can leave; `progress` gets the streams that are among them.
    pub fn write(&mut self, room: usize, out: &mut Vec<u8>, progress: &mut Vec<Progress>) {
        out.append(&mut self.out);
        for stream in mem::take(&mut self.heads_in_out) {
            let waits = |stream: &Stream| stream.pending() > 0 || !matches!(stream.end, End::Open);
            if !self.place(stream).is_some_and(|at| waits(&self.streams[at])) {
                progress.push(Progress { stream, drained: true });
            }
        }
        while out.len() + HEAD_BYTES < room {
            let Some(at) = self.next_turn() else { break };
            progress.push(self.write_turn(at, room - out.len() - HEAD_BYTES, out));
            out.append(&mut self.out);
        }
    }

    /// Whether something could leave now.
    pub fn has_news(&self) -> bool {
        !self.out.is_empty() || self.streams.iter().any(|stream| stream.is_ready(self.send_window))
    }

    /// Tells the client that the end is near: it opens no more streams, and those that are on their way are served.
    pub fn announce_end(&mut self) {
        if self.ending == Ending::None {
            self.ending = Ending::Announced;
            frame::write_go_away(WINDOW_MAX as u32, ErrorCode::NoError, "", &mut self.out);
            frame::write_ping(ANNOUNCED, false, &mut self.out);
        }
    }

    /// Tells the client which was the last stream; it may send what it opens from here on elsewhere, for nobody looks at it here.
    pub fn end(&mut self) {
        if !self.has_ended() {
            self.ending = Ending::Told(self.last_stream);
            frame::write_go_away(self.last_stream, ErrorCode::NoError, "", &mut self.out);
        }
    }

    /// Whether it has told the client so.
    pub fn has_ended(&self) -> bool {
        matches!(self.ending, Ending::Told(_))
    }

    /// Whether this stream is open.
    pub fn has(&self, stream: StreamId) -> bool {
        self.place(stream).is_some()
    }

    /// Whether the request of this stream has come whole.
    pub fn is_whole(&self, stream: StreamId) -> bool {
        self.place(stream).is_none_or(|at| self.streams[at].is_whole)
    }

    /// Streams that are open.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Whether the client is amid a block of fields, or has not begun as it should.
    pub fn is_amid_head(&self) -> bool {
        let is_amid = |head: &FrameHead| matches!(head.kind, Kind::Headers | Kind::Continuation);
        let amid_frame = matches!(&self.reading, Reading::Payload(head, _) if is_amid(head));
        amid_frame || self.block.is_some() || !self.settled
    }

    /// Gives up everything: nothing leaves any more, and nothing is kept.
    pub fn give_up(&mut self) {
        self.reading = Reading::Failed;
        self.block = None;
        self.streams = Vec::new();
        self.out = Vec::new();
        self.heads_in_out = Vec::new();
    }

    /// Bytes that are kept: of frames and blocks that are not whole, of requests that were not taken, and what waits to leave.
    pub fn kept_bytes(&self) -> usize {
        let payload = match &self.reading {
            Reading::Payload(_, kept) => kept.capacity(),
            Reading::Data(_) | Reading::Failed | Reading::Head(..) | Reading::Preface(_) | Reading::Skip(_) => 0,
        };
        let block = self.block.as_ref().map_or(0, |block| block.bytes.capacity());
        let pending: usize = self.streams.iter().map(|stream| stream.pending.capacity() + stream.held as usize).sum();
        payload + block + pending + self.out.capacity()
    }

    /// The connection ends for this reason.
    fn fail(&mut self, reason: BadStream) -> Then {
        self.reading = Reading::Failed;
        self.block = None;
        self.streams.clear();
        // What was told before holds.
        let last = if let Ending::Told(last) = self.ending { last } else { self.last_stream };
        frame::write_go_away(last, reason.code(), reason.label(), &mut self.out);
        Then::Failed(reason)
    }

    /// Counts what a stream ends by.
    fn judge(&mut self, then: Then, now: Now) -> Then {
        let counts = matches!(then, Then::Gone(_) | Then::Refused { .. });
        if counts && !self.meters.resets.count(RESETS, now) { self.fail(BadStream::ResetFlood) } else { then }
    }

    /// Ends a stream that has broken a rule of its own.
    fn refuse(&mut self, stream: StreamId, reason: BadStream) -> Then {
        self.reset(stream, reason.code());
        Then::Refused { stream, reason }
    }

    fn place(&self, stream: StreamId) -> Option<usize> {
        self.streams.binary_search_by_key(&stream, stream_id).ok()
    }

    fn stream(&mut self, stream: StreamId) -> Option<&mut Stream> {
        let at = self.place(stream)?;
        Some(&mut self.streams[at])
    }

    fn forget(&mut self, stream: StreamId) {
        let Some(at) = self.place(stream) else { return };
        let gone = self.streams.remove(at);
        // What it held counts against the connection no more.
        self.give_back(0, gone.held);
    }

    /// The client may send as many bytes more, of this stream and of the connection; it is told when it is worth it.
    fn give_back(&mut self, stream: StreamId, bytes: u32) {
        let window = self.limits.window_bytes;
        self.unreturned += bytes;
        self.window += i64::from(bytes);
        if self.unreturned >= window / 2 {
            frame::write_window_update(0, mem::take(&mut self.unreturned), &mut self.out);
        }
        let Some(at) = self.place(stream) else { return };
        let Connection { streams, out, .. } = self;
        let stream = &mut streams[at];
        if stream.is_whole {
            return;
        }
        stream.unreturned += bytes;
        stream.window += i64::from(bytes);
        if stream.unreturned >= window / 2 {
            frame::write_window_update(stream.id, mem::take(&mut stream.unreturned), out);
        }
    }
}

fn stream_id(stream: &Stream) -> StreamId {
    stream.id
}
