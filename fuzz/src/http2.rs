//! Arbitrary bytes of a client against one connection of HTTP/2.
//!
//! An input is a seed for the cuts and for what is answered, then what the client sends behind its preface. Whatever it is, the connection must not
//! panic, keep little, say the same however the bytes are cut, and make of each stream one request of HTTP/1.1 whose body is as long as its framing says:
//! that is what smuggling would break. What it sends has to be frames, within the windows that the client has opened.

use std::collections::BTreeMap;

use towpath_core::Now;
use towpath_core::http::{HttpLimits, RequestHead};
use towpath_core::http2::frame::{FrameHead, HEAD_BYTES, Kind, PAYLOAD_BYTES_MAX, PREFACE};
use towpath_core::http2::{Connection, ErrorCode, Http2Limits, Part, RequestBody, ResponseReader, Then};
use towpath_core::random::SplitMix64;

/// Small enough to be reached.
pub(crate) const LIMITS: Http2Limits = Http2Limits { streams_max: 8, head_bytes_max: 2048, window_bytes: 65_535 };
/// What one connection may keep: what waits to leave, blocks, a frame, and responses.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// A request as it came out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Came {
    head: Vec<u8>,
    length: Option<u64>,
    /// As it came, and as HTTP/1.1 writes it.
    data: Vec<u8>,
    body: Vec<u8>,
    writes: RequestBody,
    whole: bool,
    gone: bool,
}

/// What came of an input.
#[derive(Debug, Default, PartialEq, Eq)]
struct Played {
    requests: BTreeMap<u32, Came>,
    refused: Vec<(u32, &'static str)>,
    failed: Option<&'static str>,
}

impl Played {
    /// Everything but how bodies were cut into chunks.
    fn without_chunks(&self) -> Played {
        let requests = self.requests.iter().map(|(id, came)| (*id, Came { body: Vec::new(), ..came.clone() }));
        Played { requests: requests.collect(), refused: self.refused.clone(), failed: self.failed }
    }
}

/// Runs an input.
pub(crate) fn run(input: &[u8]) {
    let (seed, bytes) = input.split_at(input.len().min(1));
    let seed = u64::from(seed.first().copied().unwrap_or_default());
    let stream = [&PREFACE[..], bytes].concat();
    let whole = play(&stream, |left| left, seed, false);
    let mut random = SplitMix64::new(seed);
    for longest in [1, 7, 500] {
        let cut = play(&stream, |left| 1 + random.below(longest.min(left as u64)) as usize, seed, false);
        cut.requests.values().for_each(check_request);
        assert_eq!(whole.without_chunks(), cut.without_chunks(), "cut into pieces of at most {longest}");
    }
    whole.requests.values().for_each(check_request);
    // With responses what is open differs by time, so that nothing is compared.
    play(&stream, |left| left.min(997), seed, true).requests.values().for_each(check_request);
}

fn play(stream: &[u8], mut size: impl FnMut(usize) -> usize, seed: u64, answers: bool) -> Played {
    let mut connection = Connection::new(LIMITS);
    let mut random = SplitMix64::new(seed);
    let mut played = Played::default();
    let mut left = stream;
    let mut out = Vec::new();
    while !left.is_empty() {
        let mut piece = &left[..size(left.len())];
        left = &left[piece.len()..];
        loop {
            let step = connection.take(piece, Now(5));
            let taken = &piece[..step.consumed];
            piece = &piece[step.consumed..];
            match step.then {
                Then::Read => break,
                Then::Wait => send(&mut connection, &mut out),
                Then::Request { stream, request, last } => {
                    if answers {
                        answer(&mut connection, stream, request.is_head, &mut random);
                    }
                    let writes = request.body(last);
                    let came =
                        Came { length: request.length, head: request.head, writes, whole: last, ..Came::default() };
                    assert!(played.requests.insert(stream, came).is_none(), "stream {stream} twice");
                }
                Then::Data { stream, range, last } => {
                    let bytes = (range.end - range.start) as u32;
                    let came = played.requests.get_mut(&stream).expect("a request goes before its body");
                    assert!(!came.whole && !came.gone, "bytes behind the end of stream {stream}");
                    came.data.extend_from_slice(&taken[range.clone()]);
                    came.writes.write(&taken[range], last, &mut came.body);
                    came.whole = last;
                    connection.taken(stream, bytes);
                }
                Then::Trailers { stream, lines } => {
                    let came = played.requests.get_mut(&stream).expect("a request goes before its trailers");
                    assert!(!came.whole && !came.gone, "trailers behind the end of stream {stream}");
                    came.writes.write_trailers(&lines, &mut came.body);
                    came.whole = true;
                }
                Then::Gone(stream) => played.requests.get_mut(&stream).expect("it was there").gone = true,
                Then::Refused { stream, reason } => {
                    if let Some(came) = played.requests.get_mut(&stream) {
                        came.gone = true;
                    }
                    played.refused.push((stream, reason.label()));
                }
                Then::Failed(reason) => {
                    assert!(played.failed.is_none(), "it fails once");
                    played.failed = Some(reason.label());
                }
            }
            assert!(connection.kept_bytes() < KEPT_BYTES_MAX, "{} bytes are kept", connection.kept_bytes());
        }
        if answers {
            send(&mut connection, &mut out);
        }
    }
    send(&mut connection, &mut out);
    assert!(!connection.has_news(), "all that can leave has left");
    check_frames(&out);
    played
}

/// One of the responses that there are.
fn answer(connection: &mut Connection, stream: u32, is_head: bool, random: &mut SplitMix64) {
    let said: &[u8] = match random.below(6) {
        0 => b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        1 => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n",
        2 => b"HTTP/1.1 204 No Content\r\n\r\n",
        3 => b"HTTP/1.1 100 Continue\r\n\r\n",
        4 => return connection.reset(stream, ErrorCode::Cancel),
        _ => return,
    };
    let mut reader = ResponseReader::new(is_head);
    // A response to HEAD has no body, and here there may be one: then it is not read.
    let _unreadable = reader.read(said, |part| match part {
        Part::Head(block) => connection.respond(stream, &block, false),
        Part::Data(data) => connection.send(stream, data),
        Part::End => connection.finish(stream, None),
        Part::Trailers(block) => connection.finish(stream, Some(block)),
    });
}

fn send(connection: &mut Connection, out: &mut Vec<u8>) {
    let start = out.len();
    let mut frames = Vec::new();
    while connection.has_news() {
        let before = frames.len();
        connection.write(before + 3_000, &mut frames, &mut Vec::new());
        assert!(frames.len() > before, "news, but nothing leaves");
    }
    out.extend_from_slice(&frames);
    assert!(out.len() >= start);
}

/// What leaves is made of frames, and a stream says nothing behind its end.
fn check_frames(mut bytes: &[u8]) {
    let mut ended = Vec::new();
    while let Some(head) = bytes.first_chunk::<HEAD_BYTES>() {
        let head = FrameHead::read(head);
        assert!(head.len <= PAYLOAD_BYTES_MAX, "a frame of {} bytes", head.len);
        bytes = bytes.get(HEAD_BYTES + head.len..).expect("a whole frame");
        if matches!(head.kind, Kind::Data | Kind::Headers) {
            assert!(!ended.contains(&head.stream), "stream {} goes on behind its end", head.stream);
            if head.has(1) {
                ended.push(head.stream);
            }
        }
    }
    assert!(bytes.is_empty(), "a head that is cut off");
}

/// One request, and nothing behind it.
fn check_request(came: &Came) {
    let text = String::from_utf8_lossy(&came.head).into_owned();
    let end = came.head.windows(4).position(|window| window == b"\r\n\r\n");
    assert_eq!(end.map(|end| end + 4), Some(came.head.len()), "a head within a head: {text:?}");
    assert!(!text.lines().any(|line| line.starts_with([' ', '\t', ':'])), "{text:?}");
    let limits = HttpLimits { head_bytes_max: 1 << 20, body_bytes_max: 0 };
    if let Ok(read) = RequestHead::read(&came.head, &limits) {
        let (len, _) = read.expect("it is whole");
        assert_eq!(len, came.head.len(), "{text:?}");
    }
    match came.length {
        Some(length) => {
            assert!(came.body.len() as u64 <= length, "more than {length} bytes: {text:?}");
            assert!(!came.whole || came.gone || came.body.len() as u64 == length, "not {length} bytes: {text:?}");
        }
        None if text.contains("\r\nTransfer-Encoding: chunked\r\n") => {
            let ended = chunks_end(&came.body);
            assert_eq!(ended == Some(came.body.len()), came.whole, "{text:?} {:?}", came.body);
        }
        None => assert!(came.body.is_empty(), "a body without a frame: {text:?}"),
    }
}

/// Where the chunks end, if they do.
fn chunks_end(body: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let line = body[at..].windows(2).position(|pair| pair == b"\r\n")?;
        let digits = std::str::from_utf8(&body[at..at + line]).expect("hexadecimal");
        let size = usize::from_str_radix(digits, 16).expect("hexadecimal");
        at += line + 2;
        if size == 0 {
            // Lines up to an empty one.
            loop {
                let line = body[at..].windows(2).position(|pair| pair == b"\r\n")?;
                at += line + 2;
                if line == 0 {
                    return Some(at);
                }
            }
        }
        assert_eq!(body.get(at + size..at + size + 2), Some(&b"\r\n"[..]), "a chunk ends where it says");
        at += size + 2;
    }
}
