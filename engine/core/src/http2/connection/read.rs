//! Frames of the client, from their bytes to what they mean: what each kind may be, how often, and how long.

use std::mem;

use super::super::frame::{self, ErrorCode, FrameHead, HEAD_BYTES, Kind, PAYLOAD_BYTES_MAX, PREFACE, WINDOW_MAX};
use super::super::hpack;
use super::super::meter::{Allowance, Meter};
use super::super::refusal::BadStream;
use super::super::request::{RequestFields, TrailerFields};
use super::{ANNOUNCED, Connection, End, Ending, SETTING_FRAME, SETTING_PUSH, SETTING_WINDOW, Stream, StreamId, Then};
use crate::Now;
use crate::http::TRAILER_BYTES_MAX;

/// Frames that a block of fields may come in.
const BLOCK_FRAMES_MAX: u32 = 64;
/// Streams that a client may reset, or have reset by its faults. Browsers do it to all that a page has open when it is left; nobody does it on
/// and on. (CVE-2023-44487 had millions a second.)
pub(super) const RESETS: Allowance = Allowance { burst: 200, per_second: 20 };
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
pub(super) const OPENINGS_PER_FRAME: u32 = 4;

#[derive(Debug, Default)]
pub(super) struct Meters {
    pub(super) resets: Meter,
    pub(super) pings: Meter,
    pub(super) settings: Meter,
    pub(super) empty: Meter,
    pub(super) meaningless: Meter,
    pub(super) late: Meter,
    pub(super) openings: Meter,
}

#[derive(Debug)]
pub(super) enum Reading {
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
pub(super) struct Data {
    pub(super) stream: StreamId,
    /// The length of what fills it is to come.
    pub(super) padded: bool,
    pub(super) left: usize,
    pub(super) padding: usize,
    pub(super) last: bool,
}

/// A block of fields that is not whole.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) stream: StreamId,
    pub(super) bytes: Vec<u8>,
    pub(super) frames: u32,
    pub(super) last: bool,
}

/// A rule of the connection that was broken.
type Broken = BadStream;

impl Connection {
    pub(super) fn take_part(&mut self, input: &[u8], now: Now) -> Result<(usize, Option<Then>), Broken> {
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
