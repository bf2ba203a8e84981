//! Frames (RFC 9113 §4, §6): their heads read, and those that we send written.

/// What a client begins with (RFC 9113 §3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of the head of a frame.
pub const HEAD_BYTES: usize = 9;
/// The longest payload of a frame: what RFC 9113 §6.5.2 begins with. We never announce more, and never send more.
pub const PAYLOAD_BYTES_MAX: usize = 16_384;
/// A window may not grow beyond this (RFC 9113 §6.9.1).
pub const WINDOW_MAX: i64 = (1 << 31) - 1;
/// Windows before anybody has said anything (RFC 9113 §6.9.2).
pub const WINDOW_INITIAL: u32 = 65_535;

/// `END_STREAM` of DATA and HEADERS.
pub const END_STREAM: u8 = 0x1;
/// `ACK` of SETTINGS and PING.
pub const ACK: u8 = 0x1;
/// `END_HEADERS` of HEADERS and CONTINUATION.
pub const END_HEADERS: u8 = 0x4;
/// `PADDED` of DATA and HEADERS.
pub const PADDED: u8 = 0x8;
/// `PRIORITY` of HEADERS.
pub const WITH_PRIORITY: u8 = 0x20;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The rest of a block of fields.
    Continuation,
    /// Bytes of a body.
    Data,
    /// No more streams.
    GoAway,
    /// The begin of a block of fields.
    Headers,
    /// Are you there?
    Ping,
    /// What RFC 9113 §5.3.2 has made meaningless, and RFC 9218 in its place.
    Priority,
    /// Only servers may send it, and we do not.
    PushPromise,
    /// The end of a stream at once.
    ResetStream,
    /// What the peer allows.
    Settings,
    /// To be passed over (RFC 9113 §5.5).
    Unknown,
    /// More bytes may be sent.
    WindowUpdate,
}

impl Kind {
    fn of(code: u8) -> Kind {
        match code {
            0x0 => Kind::Data,
            0x1 => Kind::Headers,
            0x2 | 0x10 => Kind::Priority,
            0x3 => Kind::ResetStream,
            0x4 => Kind::Settings,
            0x5 => Kind::PushPromise,
            0x6 => Kind::Ping,
            0x7 => Kind::GoAway,
            0x8 => Kind::WindowUpdate,
            0x9 => Kind::Continuation,
            _ => Kind::Unknown,
        }
    }
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// Bytes that follow.
    pub len: usize,
    /// What it is.
    pub kind: Kind,
    /// The code of that.
    pub code: u8,
    /// Its flags.
    pub flags: u8,
    /// Whose it is; 0 = of the connection.
    pub stream: u32,
}

impl FrameHead {
    /// Reads one.
    pub fn read(bytes: &[u8; HEAD_BYTES]) -> FrameHead {
        let [a, b, c, code, flags, stream @ ..] = *bytes;
        FrameHead {
            len: u32::from_be_bytes([0, a, b, c]) as usize,
            kind: Kind::of(code),
            code,
            flags,
            stream: u32::from_be_bytes(stream) & 0x7fff_ffff,
        }
    }

    /// Whether it has this flag.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Why a stream or a connection ends (RFC 9113 §7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ErrorCode {
    /// Nothing is wrong.
    NoError = 0x0,
    /// The peer has broken a rule.
    Protocol = 0x1,
    /// We cannot go on.
    Internal = 0x2,
    /// More was sent than the window had.
    FlowControl = 0x3,
    /// A frame came for a stream whose end had come.
    StreamClosed = 0x5,
    /// A frame had another length than its kind has.
    FrameSize = 0x6,
    /// Nothing was done for it: it may be sent again.
    RefusedStream = 0x7,
    /// Nobody wants it any more.
    Cancel = 0x8,
    /// The table of fields cannot be kept.
    Compression = 0x9,
    /// The peer does too much of something.
    EnhanceYourCalm = 0xb,
    /// It has to come by HTTP/1.1.
    Http11Required = 0xd,
}

/// Writes the head of a frame.
pub fn write_head(len: usize, code: u8, flags: u8, stream: u32, out: &mut Vec<u8>) {
    let [_, a, b, c] = (len as u32).to_be_bytes();
    out.extend_from_slice(&[a, b, c, code, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
}

/// Writes DATA.
pub fn write_data(stream: u32, payload: &[u8], last: bool, out: &mut Vec<u8>) {
    write_head(payload.len(), 0x0, if last { END_STREAM } else { 0 }, stream, out);
    out.extend_from_slice(payload);
}

/// Writes a block of fields as HEADERS, and CONTINUATION as far as it is longer than a frame.
pub fn write_fields(stream: u32, block: &[u8], last: bool, out: &mut Vec<u8>) {
    let mut parts = block.chunks(PAYLOAD_BYTES_MAX).peekable();
    let mut code = 0x1;
    while let Some(part) = parts.next() {
        let ends = if parts.peek().is_none() { END_HEADERS } else { 0 };
        let flags = if code == 0x1 && last { END_STREAM | ends } else { ends };
        write_head(part.len(), code, flags, stream, out);
        out.extend_from_slice(part);
        code = 0x9;
    }
}

/// Writes RST_STREAM.
pub fn write_reset(stream: u32, code: ErrorCode, out: &mut Vec<u8>) {
    write_head(4, 0x3, 0, stream, out);
    out.extend_from_slice(&(code as u32).to_be_bytes());
}

/// Writes SETTINGS.
pub fn write_settings(settings: &[(u16, u32)], out: &mut Vec<u8>) {
    write_head(settings.len() * 6, 0x4, 0, 0, out);
    for (name, value) in settings {
        out.extend_from_slice(&name.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

/// Writes the acknowledgement of SETTINGS.
pub fn write_settings_ack(out: &mut Vec<u8>) {
    write_head(0, 0x4, ACK, 0, out);
}

/// Writes PING, or the answer to one.
pub fn write_ping(payload: [u8; 8], is_answer: bool, out: &mut Vec<u8>) {
    write_head(8, 0x6, if is_answer { ACK } else { 0 }, 0, out);
    out.extend_from_slice(&payload);
}

/// Writes GOAWAY: of the streams of the client none behind `last` is served.
pub fn write_go_away(last: u32, code: ErrorCode, why: &str, out: &mut Vec<u8>) {
    write_head(8 + why.len(), 0x7, 0, 0, out);
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&(code as u32).to_be_bytes());
    out.extend_from_slice(why.as_bytes());
}

/// Writes WINDOW_UPDATE.
pub fn write_window_update(stream: u32, bytes: u32, out: &mut Vec<u8>) {
    write_head(4, 0x8, 0, stream, out);
    out.extend_from_slice(&bytes.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head_of(bytes: &[u8]) -> FrameHead {
        FrameHead::read(bytes[..HEAD_BYTES].try_into().expect("a head"))
    }

    #[test]
    fn heads_are_read_as_they_are_written() {
        let mut out = Vec::new();
        write_data(5, b"abc", true, &mut out);
        assert_eq!(head_of(&out), FrameHead { len: 3, kind: Kind::Data, code: 0, flags: 1, stream: 5 });
        assert_eq!(&out[HEAD_BYTES..], b"abc");
        // The reserved bit means nothing.
        out[5] |= 0x80;
        assert_eq!(head_of(&out).stream, 5);
        out.clear();
        write_go_away(7, ErrorCode::EnhanceYourCalm, "why", &mut out);
        assert_eq!(head_of(&out), FrameHead { len: 11, kind: Kind::GoAway, code: 7, flags: 0, stream: 0 });
        assert_eq!(&out[HEAD_BYTES..], b"\0\0\0\x07\0\0\0\x0bwhy");
    }

    #[test]
    fn long_blocks_go_on_in_further_frames() {
        let mut out = Vec::new();
        write_fields(3, &vec![7; 2 * PAYLOAD_BYTES_MAX + 1], true, &mut out);
        let mut heads = Vec::new();
        let mut rest = &out[..];
        while !rest.is_empty() {
            let head = head_of(rest);
            rest = &rest[HEAD_BYTES + head.len..];
            heads.push((head.kind, head.len, head.flags));
        }
        let long = PAYLOAD_BYTES_MAX;
        let expected =
            [(Kind::Headers, long, END_STREAM), (Kind::Continuation, long, 0), (Kind::Continuation, 1, END_HEADERS)];
        assert_eq!(heads, expected);
    }
}
