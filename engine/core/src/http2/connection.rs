//! One connection: what its client sends becomes requests, pieces of bodies and ends; what is to be sent becomes frames as its windows allow.
//!
//! The client's bytes go into [`Connection::take`], which stops at whatever somebody has to do something about ([`Then`]). Responses go into
//! [`Connection::respond`], [`Connection::send`] and [`Connection::finish`]; [`Connection::write`] makes frames of them, in turn of the streams.
//! A stream is forgotten when both of its sides have ended, or one is reset.

use std::mem;
use std::ops::Range;

use super::frame::{
    self, ErrorCode, FrameHead, HEAD_BYTES, Kind, PAYLOAD_BYTES_MAX, PREFACE, WINDOW_INITIAL, WINDOW_MAX,
};
use super::hpack::{self, Decoder};
use super::meter::{Allowance, Meter};
use super::refusal::BadStream;
use super::request::{RequestFields, TrailerFields, TranslatedRequest};
use super::{CONNECTION_WINDOWS, Http2Limits, WAITING_BYTES_MAX};
use crate::Now;
use crate::http::TRAILER_BYTES_MAX;

/// Frames that a block of fields may come in.
const BLOCK_FRAMES_MAX: u32 = 64;
/// Streams that a client may reset, or have reset by its faults. Browsers do it to all that a page has open when it is left; nobody does it on
/// and on. (CVE-2023-44487 had millions a second.)
const RESETS: Allowance = Allowance { burst: 200, per_second: 20 };
/// PING: some ask after each burst of data.
const PINGS: Allowance = Allowance { burst: 100, per_second: 20 };
/// SETTINGS: one, mostly.
const SETTINGS: Allowance = Allowance { burst: 32, per_second: 1 };
/// Frames of a body without a byte, that do not end it.
const EMPTY: Allowance = Allowance { burst: 100, per_second: 10 };
/// Priorities and unknown frames: browsers send some with each request.
const MEANINGLESS: Allowance = Allowance { burst: 500, per_second: 100 };
/// Frames for streams that have ended: those that were on their way.
const LATE: Allowance = Allowance { burst: 1_000, per_second: 200 };
/// Windows opened …
const OPENINGS: Allowance = Allowance { burst: 1_000, per_second: 100 };
/// … beside those for each frame of data that was sent.
const OPENINGS_PER_FRAME: u32 = 4;

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

#[derive(Debug, Default)]
struct Meters {
    resets: Meter,
    pings: Meter,
    settings: Meter,
    empty: Meter,
    meaningless: Meter,
    late: Meter,
    openings: Meter,
}

#[derive(Debug)]
enum Reading {
    /// Within a body.
    Data(Data),
    /// Whatever comes is dropped.
    Failed,
    /// Within the head of a frame.
    Head([u8; HEAD_BYTES], usize),
    /// Within another frame.
    Payload(FrameHead, Vec<u8>),
    /// So much of the preface has come.
    Preface(usize),
    /// Within what means nothing: so much is left.
    Skip(usize),
}

#[derive(Clone, Copy, Debug)]
struct Data {
    stream: StreamId,
    /// The length of what fills it is to come.
    padded: bool,
    left: usize,
    padding: usize,
    last: bool,
}

/// A block of fields that is not whole.
#[derive(Debug)]
struct Block {
    stream: StreamId,
    bytes: Vec<u8>,
    frames: u32,
    last: bool,
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

/// A rule of the connection that was broken.
type Broken = BadStream;

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

    fn take_part(&mut self, input: &[u8], now: Now) -> Result<(usize, Option<Then>), Broken> {
        match &mut self.reading {
            Reading::Failed => Ok((input.len(), None)),
            Reading::Preface(seen) => {
                let due = &PREFACE[*seen..];
                let len = due.len().min(input.len());
                if input[..len] != due[..len] {
                    return Err(BadStream::Preface);
                }
                *seen += len;
                if *seen == PREFACE.len() {
                    self.reading = Reading::Head([0; HEAD_BYTES], 0);
                }
                Ok((len, None))
            }
            Reading::Head(bytes, seen) => {
                let len = (HEAD_BYTES - *seen).min(input.len());
                bytes[*seen..*seen + len].copy_from_slice(&input[..len]);
                *seen += len;
                if *seen < HEAD_BYTES {
                    return Ok((len, None));
                }
                let head = FrameHead::read(bytes);
                self.reading = Reading::Head([0; HEAD_BYTES], 0);
                Ok((len, self.head_came(head, now)?))
            }
            Reading::Skip(left) => {
                let len = (*left).min(input.len());
                *left -= len;
                if *left == 0 {
                    self.reading = Reading::Head([0; HEAD_BYTES], 0);
                }
                Ok((len, None))
            }
            Reading::Payload(head, kept) => {
                let len = (head.len - kept.len()).min(input.len());
                kept.extend_from_slice(&input[..len]);
                if kept.len() < head.len {
                    return Ok((len, None));
                }
                let (head, payload) = (*head, mem::take(kept));
                self.reading = Reading::Head([0; HEAD_BYTES], 0);
                Ok((len, self.frame_came(head, &payload, now)?))
            }
            Reading::Data(data) => {
                let data = *data;
                self.take_data(data, input, now)
            }
        }
    }

    /// Looks at the head of a frame; its payload follows.
    fn head_came(&mut self, head: FrameHead, now: Now) -> Result<Option<Then>, Broken> {
        if head.len > PAYLOAD_BYTES_MAX {
            return Err(BadStream::FrameSize);
        }
        if !self.settled && head.kind != Kind::Settings {
            return Err(BadStream::Preface);
        }
        let continues = self.block.as_ref().map(|block| block.stream);
        if continues.is_some() != (head.kind == Kind::Continuation) || continues.is_some_and(|id| id != head.stream) {
            return Err(BadStream::Continuation);
        }
        let of_stream = match head.kind {
            Kind::Continuation | Kind::Data | Kind::Headers | Kind::ResetStream => true,
            Kind::GoAway | Kind::Ping | Kind::Settings => false,
            // Of either.
            Kind::Priority | Kind::PushPromise | Kind::Unknown | Kind::WindowUpdate => head.stream != 0,
        };
        if of_stream != (head.stream != 0) {
            return Err(BadStream::StreamNumber);
        }
        match head.kind {
            Kind::Data => return self.data_begins(head, now),
            Kind::Priority | Kind::Unknown => {
                if !self.meters.meaningless.count(MEANINGLESS, now) {
                    return Err(BadStream::PriorityFlood);
                }
                self.skip(head.len);
                return Ok(None);
            }
            Kind::PushPromise => return Err(BadStream::StreamNumber),
            Kind::Headers if head.stream.is_multiple_of(2) => return Err(BadStream::StreamNumber),
            Kind::ResetStream | Kind::WindowUpdate if self.is_idle(head.stream) => {
                return Err(BadStream::StreamNumber);
            }
            _ => {}
        }
        let fits = match head.kind {
            Kind::GoAway => head.len >= 8,
            Kind::Ping => head.len == 8,
            Kind::ResetStream | Kind::WindowUpdate => head.len == 4,
            Kind::Settings => head.len.is_multiple_of(6) && !(head.has(frame::ACK) && head.len > 0),
            Kind::Continuation | Kind::Data | Kind::Headers | Kind::Priority | Kind::PushPromise | Kind::Unknown => {
                true
            }
        };
        if !fits {
            return Err(BadStream::FrameSize);
        }
        if let (Kind::Continuation, Some(block)) = (head.kind, &mut self.block) {
            block.frames += 1;
            if block.frames > BLOCK_FRAMES_MAX {
                return Err(BadStream::ContinuationFlood);
            }
            if block.bytes.len() + head.len > self.block_bytes_max() {
                return Err(BadStream::BlockTooLong);
            }
        }
        if head.len == 0 {
            return self.frame_came(head, &[], now);
        }
        self.reading = Reading::Payload(head, Vec::with_capacity(head.len));
        Ok(None)
    }

    fn skip(&mut self, len: usize) {
        if len > 0 {
            self.reading = Reading::Skip(len);
        }
    }

    /// Blocks are packed, so a longer one has more fields than are allowed; one a little too long is still unpacked, and answered.
    fn block_bytes_max(&self) -> usize {
        2 * self.limits.head_bytes_max as usize
    }

    /// Whether the client has not opened it.
    fn is_idle(&self, stream: StreamId) -> bool {
        stream != 0 && (stream.is_multiple_of(2) || stream > self.last_stream)
    }

    fn data_begins(&mut self, head: FrameHead, now: Now) -> Result<Option<Then>, Broken> {
        if self.is_idle(head.stream) {
            return Err(BadStream::StreamNumber);
        }
        self.window -= head.len as i64;
        if self.window < 0 {
            return Err(BadStream::FlowControl);
        }
        let last = head.has(frame::END_STREAM);
        if head.len == 0 && !last && !self.meters.empty.count(EMPTY, now) {
            return Err(BadStream::EmptyDataFlood);
        }
        let Some(stream) = self.stream(head.stream) else {
            if !self.meters.late.count(LATE, now) {
                return Err(BadStream::ClosedFlood);
            }
            self.give_back(0, head.len as u32);
            self.skip(head.len);
            return Ok(None);
        };
        if stream.is_whole {
            self.give_back(0, head.len as u32);
            self.skip(head.len);
            return Ok(Some(self.refuse(head.stream, BadStream::StreamClosed)));
        }
        stream.window -= head.len as i64;
        if stream.window < 0 {
            return Err(BadStream::FlowControl);
        }
        stream.held += head.len as u32;
        let data = Data { stream: head.stream, padded: head.has(frame::PADDED), left: head.len, padding: 0, last };
        if data.padded {
            if head.len == 0 {
                return Err(BadStream::FrameSize);
            }
            self.reading = Reading::Data(data);
            return Ok(None);
        }
        self.data_measured(data)
    }

    /// How many bytes of the body a frame has is known: they are what the request has said.
    fn data_measured(&mut self, data: Data) -> Result<Option<Then>, Broken> {
        let Some(stream) = self.stream(data.stream) else {
            // It went amid the frame, whose rest is nobody's, and no frame.
            self.skip(data.left + data.padding);
            return Ok(None);
        };
        if let Some(length) = &mut stream.length {
            let fits = length.checked_sub(data.left as u64);
            let fits = fits.filter(|rest| !data.last || *rest == 0);
            let Some(rest) = fits else {
                self.skip(data.left + data.padding);
                return Ok(Some(self.refuse(data.stream, BadStream::Length)));
            };
            *length = rest;
        }
        if data.left > 0 {
            self.reading = Reading::Data(data);
            return Ok(None);
        }
        stream.is_whole = data.last;
        self.skip(data.padding);
        Ok(data.last.then_some(Then::Data { stream: data.stream, range: 0..0, last: true }))
    }

    fn take_data(&mut self, mut data: Data, input: &[u8], now: Now) -> Result<(usize, Option<Then>), Broken> {
        if data.padded {
            let padding = usize::from(input[0]);
            data.padded = false;
            data.left -= 1;
            data.left = data.left.checked_sub(padding).ok_or(BadStream::FrameSize)?;
            data.padding = padding;
            if data.left == 0 && !data.last && !self.meters.empty.count(EMPTY, now) {
                return Err(BadStream::EmptyDataFlood);
            }
            self.reading = Reading::Head([0; HEAD_BYTES], 0);
            // Nobody takes what only fills.
            self.taken(data.stream, 1 + padding as u32);
            return Ok((1, self.data_measured(data)?));
        }
        let len = data.left.min(input.len());
        data.left -= len;
        let is_over = data.left == 0;
        if is_over {
            self.reading = Reading::Head([0; HEAD_BYTES], 0);
            self.skip(data.padding);
        } else {
            self.reading = Reading::Data(data);
        }
        // It may have been reset amid the frame.
        let Some(stream) = self.stream(data.stream) else { return Ok((len, None)) };
        let last = is_over && data.last;
        stream.is_whole = last;
        Ok((len, Some(Then::Data { stream: data.stream, range: 0..len, last })))
    }

    /// A whole frame other than DATA.
    fn frame_came(&mut self, head: FrameHead, payload: &[u8], now: Now) -> Result<Option<Then>, Broken> {
        match head.kind {
            Kind::Headers => {
                let fragment = fragment(head, payload)?;
                let last = head.has(frame::END_STREAM);
                let block = Block { stream: head.stream, bytes: fragment.to_vec(), frames: 1, last };
                self.block_came(block, head, now)
            }
            Kind::Continuation => {
                let Some(mut block) = self.block.take() else { return Err(BadStream::Continuation) };
                block.bytes.extend_from_slice(payload);
                self.block_came(block, head, now)
            }
            Kind::ResetStream => {
                // Of one that we have refused, say.
                if self.place(head.stream).is_none() {
                    let allowed = self.meters.resets.count(RESETS, now);
                    return if allowed { Ok(None) } else { Err(BadStream::ResetFlood) };
                }
                self.forget(head.stream);
                Ok(Some(Then::Gone(head.stream)))
            }
            Kind::Settings if head.has(frame::ACK) => Ok(None),
            Kind::Settings => {
                if !self.meters.settings.count(SETTINGS, now) {
                    return Err(BadStream::SettingsFlood);
                }
                self.settled = true;
                self.settings_came(payload)?;
                frame::write_settings_ack(&mut self.out);
                Ok(None)
            }
            Kind::Ping => {
                let Ok(payload) = <[u8; 8]>::try_from(payload) else { return Err(BadStream::FrameSize) };
                if head.has(frame::ACK) {
                    if payload == ANNOUNCED && self.ending == Ending::Announced {
                        self.end();
                    }
                    return Ok(None);
                }
                if !self.meters.pings.count(PINGS, now) {
                    return Err(BadStream::PingFlood);
                }
                frame::write_ping(payload, true, &mut self.out);
                Ok(None)
            }
            Kind::WindowUpdate => self.window_opened(head.stream, payload, now),
            // It opens no more streams, or it does.
            Kind::GoAway => Ok(None),
            Kind::Data | Kind::Priority | Kind::PushPromise | Kind::Unknown => Ok(None),
        }
    }

    /// A frame for a stream that has ended.
    fn late(&mut self, now: Now) -> Result<Option<Then>, Broken> {
        if self.meters.late.count(LATE, now) { Ok(None) } else { Err(BadStream::ClosedFlood) }
    }

    fn settings_came(&mut self, payload: &[u8]) -> Result<(), Broken> {
        let mut window = None;
        for setting in payload.chunks_exact(6) {
            let [a, b, value @ ..] = setting else { continue };
            let value = u32::from_be_bytes(value.try_into().unwrap_or_default());
            match u16::from_be_bytes([*a, *b]) {
                SETTING_PUSH if value > 1 => return Err(BadStream::Settings),
                SETTING_FRAME if !(PAYLOAD_BYTES_MAX as u32..1 << 24).contains(&value) => {
                    return Err(BadStream::Settings);
                }
                SETTING_WINDOW if i64::from(value) > WINDOW_MAX => return Err(BadStream::FlowControl),
                SETTING_WINDOW => window = Some(i64::from(value)),
                // We write without a table, push nothing, and send no longer frames than anybody takes.
                _ => {}
            }
        }
        let Some(window) = window else { return Ok(()) };
        let change = window - mem::replace(&mut self.stream_send_window, window);
        for stream in &mut self.streams {
            stream.send_window += change;
            if stream.send_window > WINDOW_MAX {
                return Err(BadStream::Window);
            }
        }
        Ok(())
    }

    fn window_opened(&mut self, stream: StreamId, payload: &[u8], now: Now) -> Result<Option<Then>, Broken> {
        if !self.meters.openings.count(OPENINGS, now) {
            return Err(BadStream::WindowFlood);
        }
        let Ok(payload) = <[u8; 4]>::try_from(payload) else { return Err(BadStream::FrameSize) };
        let bytes = i64::from(u32::from_be_bytes(payload) & 0x7fff_ffff);
        let window = match stream {
            0 => &mut self.send_window,
            id => match self.stream(id) {
                Some(stream) => &mut stream.send_window,
                // It was on its way, as one mostly is.
                None => return Ok(None),
            },
        };
        if bytes == 0 || *window + bytes > WINDOW_MAX {
            return Err(BadStream::Window);
        }
        *window += bytes;
        Ok(None)
    }

    /// A block of fields, or a further part of it.
    fn block_came(&mut self, block: Block, head: FrameHead, now: Now) -> Result<Option<Then>, Broken> {
        if block.bytes.len() > self.block_bytes_max() {
            return Err(BadStream::BlockTooLong);
        }
        if !head.has(frame::END_HEADERS) {
            self.block = Some(block);
            return Ok(None);
        }
        let Block { stream: id, bytes, last, .. } = block;
        if id <= self.last_stream {
            return self.trailers_came(id, &bytes, last, now);
        }
        // Read whatever becomes of it, because the table goes on.
        let mut fields = RequestFields::new(self.limits.head_bytes_max);
        self.decoder.read(&bytes, |name, value| fields.take(name, value)).map_err(|_| BadStream::Compression)?;
        self.last_stream = id;
        if self.has_ended() {
            return self.late(now);
        }
        if self.streams.len() >= self.limits.streams_max as usize {
            frame::write_reset(id, ErrorCode::RefusedStream, &mut self.out);
            return Ok(Some(Then::Refused { stream: id, reason: BadStream::TooManyStreams }));
        }
        match fields.finish(last) {
            Ok(request) => {
                self.streams.push(Stream {
                    id,
                    is_whole: last,
                    length: request.length,
                    window: i64::from(self.limits.window_bytes),
                    held: 0,
                    unreturned: 0,
                    send_window: self.stream_send_window,
                    pending: Vec::new(),
                    sent: 0,
                    end: End::Open,
                });
                Ok(Some(Then::Request { stream: id, request, last }))
            }
            Err(BadStream::ListTooLong) => {
                // RFC 6585 §5.
                let mut block = Vec::new();
                hpack::write(b":status", b"431", &mut block);
                hpack::write(b"content-length", b"0", &mut block);
                self.write_block(id, &block, true);
                if !last {
                    frame::write_reset(id, ErrorCode::NoError, &mut self.out);
                }
                Ok(Some(Then::Refused { stream: id, reason: BadStream::ListTooLong }))
            }
            Err(reason) => {
                frame::write_reset(id, reason.code(), &mut self.out);
                Ok(Some(Then::Refused { stream: id, reason }))
            }
        }
    }

    fn trailers_came(&mut self, id: StreamId, block: &[u8], last: bool, now: Now) -> Result<Option<Then>, Broken> {
        let max = TRAILER_BYTES_MAX.min(self.limits.head_bytes_max as usize);
        let mut fields = TrailerFields::new(max);
        self.decoder.read(block, |name, value| fields.take(name, value)).map_err(|_| BadStream::Compression)?;
        // It was on its way when the stream was reset.
        let Some(at) = self.place(id) else { return self.late(now) };
        if self.streams[at].is_whole {
            return Ok(Some(self.refuse(id, BadStream::StreamClosed)));
        }
        let is_as_long = self.streams[at].length.is_none_or(|left| left == 0);
        match fields.finish() {
            Ok(_) if !is_as_long => Ok(Some(self.refuse(id, BadStream::Length))),
            Ok(lines) if last => {
                self.streams[at].is_whole = true;
                Ok(Some(Then::Trailers { stream: id, lines }))
            }
            _ => Ok(Some(self.refuse(id, BadStream::Trailer))),
        }
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

    fn write_block(&mut self, stream: StreamId, block: &[u8], last: bool) {
        if mem::replace(&mut self.wrote_block, true) {
            return frame::write_fields(stream, block, last, &mut self.out);
        }
        let mut first = Vec::with_capacity(block.len() + 1);
        hpack::write_no_table(&mut first);
        first.extend_from_slice(block);
        frame::write_fields(stream, &first, last, &mut self.out);
    }

    /// The stream whose turn it is, behind the one that has had its own.
    fn next_turn(&self) -> Option<usize> {
        let behind = self.streams.partition_point(|stream| stream.id <= self.turn);
        let (before, after) = self.streams.split_at(behind);
        let ready = |stream: &Stream| stream.is_ready(self.send_window);
        let found = after.iter().position(ready).map(|at| behind + at);
        found.or_else(|| before.iter().position(ready))
    }

    /// Writes one frame of this stream, of at most `room` bytes.
    fn write_turn(&mut self, at: usize, room: usize, out: &mut Vec<u8>) -> Progress {
        let stream = &mut self.streams[at];
        let id = stream.id;
        self.turn = id;
        let windows = usize::try_from(stream.send_window.min(self.send_window)).unwrap_or(0);
        let len = stream.pending().min(PAYLOAD_BYTES_MAX).min(room).min(windows);
        let is_all = len == stream.pending();
        let ends = is_all && matches!(stream.end, End::Data);
        if len > 0 || ends {
            frame::write_data(id, &stream.pending[stream.sent..stream.sent + len], ends, out);
            stream.sent += len;
            stream.send_window -= len as i64;
            self.send_window -= len as i64;
            self.meters.openings.pay_back(OPENINGS_PER_FRAME);
        }
        if !is_all {
            return Progress { stream: id, drained: false };
        }
        let stream = &mut self.streams[at];
        (stream.pending, stream.sent) = (Vec::new(), 0);
        match mem::replace(&mut stream.end, End::Open) {
            End::Open => {}
            End::Data => self.response_ended(at),
            End::Trailers(block) => {
                self.write_block(id, &block, true);
                self.response_ended(at);
            }
        }
        Progress { stream: id, drained: true }
    }

    /// Our side of a stream has ended; so has the client's, or nobody waits for the rest (RFC 9113 §8.1).
    fn response_ended(&mut self, at: usize) {
        let Stream { id, is_whole, .. } = self.streams[at];
        if !is_whole {
            frame::write_reset(id, ErrorCode::NoError, &mut self.out);
        }
        self.forget(id);
    }
}

fn stream_id(stream: &Stream) -> StreamId {
    stream.id
}

/// The block in the payload of HEADERS, without what fills it and its priority.
fn fragment(head: FrameHead, payload: &[u8]) -> Result<&[u8], Broken> {
    let mut fragment = payload;
    let mut padding = 0;
    if head.has(frame::PADDED) {
        let (&len, rest) = fragment.split_first().ok_or(BadStream::FrameSize)?;
        (padding, fragment) = (usize::from(len), rest);
    }
    if head.has(frame::WITH_PRIORITY) {
        fragment = fragment.get(5..).ok_or(BadStream::FrameSize)?;
    }
    let len = fragment.len().checked_sub(padding).ok_or(BadStream::FrameSize)?;
    Ok(&fragment[..len])
}
