//! HTTP/2 without I/O: tables of what a client may send and what comes of it, floods, windows, and the fuzz target without a fuzzer.

#![expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "fuzzing takes its time")]

#[path = "http2/fuzz.rs"]
mod fuzz;
#[path = "../../../fuzz/src/http2.rs"]
mod target;
#[path = "http2/windows.rs"]
mod windows;

use towpath_core::Now;
use towpath_core::http2::frame::{self, FrameHead, HEAD_BYTES, PREFACE};
use towpath_core::http2::hpack::{self, Decoder};
use towpath_core::http2::{BadStream, Connection, ErrorCode, Http2Limits, Step, Then, WAITING_BYTES_MAX};

const LIMITS: Http2Limits = Http2Limits { streams_max: 4, head_bytes_max: 4096, window_bytes: 65_535 };
const START: Now = Now(1_000_000);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH: u8 = 5;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
const WINDOW: u8 = 8;
const CONTINUATION: u8 = 9;

const END: u8 = frame::END_STREAM;
const WHOLE: u8 = frame::END_HEADERS;

/// A frame as a client sends it.
fn frame(code: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write_head(payload.len(), code, flags, stream, &mut out);
    out.extend_from_slice(payload);
    out
}

fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    fields.iter().for_each(|(name, value)| hpack::write(name.as_bytes(), value.as_bytes(), &mut block));
    block
}

/// The fields of a request, with these as well.
fn request(method: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let head = [(":method", method), (":scheme", "https"), (":path", "/"), (":authority", "web.test")];
    fields(&[&head, more].concat())
}

fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END | WHOLE, stream, &request("GET", &[]))
}

fn post(stream: u32, more: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, WHOLE, stream, &request("POST", more))
}

/// What a client begins with, and its first frames.
fn begin() -> Vec<u8> {
    [&PREFACE[..], &frame(SETTINGS, 0, 0, &[])].concat()
}

fn opened() -> Connection {
    let mut connection = Connection::new(LIMITS);
    assert_eq!(play(&mut connection, &begin()), Vec::<String>::new());
    written(&mut connection);
    connection
}

/// Gives everything to the connection; what it wants, in words.
fn play(connection: &mut Connection, input: &[u8]) -> Vec<String> {
    play_at(connection, input, START)
}

fn play_at(connection: &mut Connection, mut input: &[u8], now: Now) -> Vec<String> {
    let mut said: Vec<String> = Vec::new();
    loop {
        let Step { consumed, then } = connection.take(input, now);
        let taken = &input[..consumed];
        input = &input[consumed..];
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match then {
            Then::Read => return said,
            Then::Wait => {
                written(connection);
            }
            Then::Data { stream, range, last } => {
                let data = text(&taken[range]);
                let begin = format!("{stream} data ");
                match said.last_mut().filter(|said| said.starts_with(&begin) && !said.ends_with('.')) {
                    Some(said) => said.push_str(&data),
                    None => said.push(begin + &data),
                }
                if last {
                    said.last_mut().expect("pushed").push('.');
                }
            }
            Then::Failed(reason) => said.push(format!("failed {}", reason.label())),
            Then::Gone(stream) => said.push(format!("{stream} gone")),
            Then::Refused { stream, reason } => said.push(format!("{stream} refused {}", reason.label())),
            Then::Request { stream, request, last } => {
                let line = text(&request.head).lines().next().unwrap_or_default().to_owned();
                said.push(format!("{stream} {line}{}", if last { "." } else { "" }));
            }
            Then::Trailers { stream, lines } => said.push(format!("{stream} trailers {}", text(&lines).trim_end())),
        }
    }
}

/// What leaves, as frames.
fn written(connection: &mut Connection) -> Vec<(FrameHead, Vec<u8>)> {
    let mut out = Vec::new();
    connection.write(1 << 20, &mut out, &mut Vec::new());
    frames(&out)
}

fn frames(mut bytes: &[u8]) -> Vec<(FrameHead, Vec<u8>)> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let head = FrameHead::read(bytes[..HEAD_BYTES].try_into().expect("a head"));
        let (payload, rest) = bytes[HEAD_BYTES..].split_at(head.len);
        all.push((head, payload.to_vec()));
        bytes = rest;
    }
    all
}

/// The codes of errors in what leaves, by stream.
fn errors(frames: &[(FrameHead, Vec<u8>)]) -> Vec<(u32, u32)> {
    let code = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().expect("four bytes"));
    let error = |(head, payload): &(FrameHead, Vec<u8>)| match head.code {
        RESET => Some((head.stream, code(payload))),
        GO_AWAY => Some((0, code(&payload[4..8]))),
        _ => None,
    };
    frames.iter().filter_map(error).collect()
}

#[test]
fn a_connection_begins_with_what_we_allow() {
    let mut connection = Connection::new(LIMITS);
    let all = written(&mut connection);
    let settings: Vec<_> = all[0].1.chunks(6).map(|setting| setting.to_vec()).collect();
    assert!(
        settings.contains(&vec![0, 3, 0, 0, 0, 4]) && settings.contains(&vec![0, 4, 0, 0, 255, 255]),
        "{settings:?}"
    );
    assert!(settings.contains(&vec![0, 6, 0, 0, 16, 0]), "{settings:?}");
    // Seven windows more for the connection.
    assert_eq!((all[1].0.code, all[1].0.stream, &all[1].1), (WINDOW, 0, &(7_u32 * 65_535).to_be_bytes().to_vec()));
    assert!(connection.is_amid_head());
    assert_eq!(play(&mut connection, &begin()), Vec::<String>::new());
    assert!(!connection.is_amid_head());
    let acknowledged = written(&mut connection);
    assert_eq!((acknowledged[0].0.code, acknowledged[0].0.flags, acknowledged.len()), (SETTINGS, frame::ACK, 1));
}

#[test]
fn requests_come_out_however_they_are_cut() {
    let long = request("POST", &[("x-long", &"x".repeat(2_000))]);
    let input = [
        begin(),
        get(1),
        post(3, &[("content-length", "9")]),
        frame(DATA, 0, 3, b"first"),
        frame(DATA, END | frame::PADDED, 3, b"\x03lastPPP"),
        post(5, &[]),
        frame(DATA, 0, 5, b"abc"),
        frame(PING, 0, 0, b"12345678"),
        frame(DATA, 0, 5, b"def"),
        frame(HEADERS, END | WHOLE, 5, &fields(&[("x-sum", "7")])),
        frame(HEADERS, END, 7, &long[..10]),
        frame(CONTINUATION, 0, 7, &long[10..1_000]),
        frame(CONTINUATION, WHOLE, 7, &long[1_000..]),
        frame(RESET, 0, 7, &[0, 0, 0, 8]),
    ]
    .concat();
    let padded_head = [&[2, 0, 0, 0, 0, 9][..], &request("GET", &[]), b"PP"].concat();
    let input = [input, frame(HEADERS, END | WHOLE | frame::PADDED | frame::WITH_PRIORITY, 9, &padded_head)].concat();
    for size in (1..40).chain([100, 1_000, input.len()]) {
        let mut connection = Connection::new(LIMITS);
        let said: Vec<String> = input.chunks(size).flat_map(|piece| play(&mut connection, piece)).collect();
        let text = said.join("\n").replace("\n3 data ", "").replace("\n5 data ", "");
        let expected = "1 GET / HTTP/1.1.\n3 POST / HTTP/1.1firstlast.\n5 POST / HTTP/1.1abcdef\n5 trailers x-sum: 7\n\
                        7 POST / HTTP/1.1.\n7 gone\n9 GET / HTTP/1.1.";
        assert_eq!(text, expected, "by {size}");
    }
}

#[test]
fn who_breaks_the_rules_of_a_connection_loses_it() {
    let ping = frame(PING, 0, 0, &[0; 8]);
    let cut = |flags, stream| frame(HEADERS, flags, stream, &request("GET", &[]));
    let table: Vec<(&str, Vec<u8>, BadStream)> = vec![
        ("a frame longer than announced", frame(DATA, 0, 1, &[0; 16_385]), BadStream::FrameSize),
        ("DATA of the connection", frame(DATA, 0, 0, b"x"), BadStream::StreamNumber),
        ("DATA of a stream that is not open", frame(DATA, 0, 1, b"x"), BadStream::StreamNumber),
        ("HEADERS of the connection", frame(HEADERS, WHOLE, 0, &request("GET", &[])), BadStream::StreamNumber),
        ("a stream of ours", cut(WHOLE, 2), BadStream::StreamNumber),
        ("RST_STREAM of a stream that is not open", frame(RESET, 0, 5, &[0; 4]), BadStream::StreamNumber),
        ("RST_STREAM of the connection", frame(RESET, 0, 0, &[0; 4]), BadStream::StreamNumber),
        ("RST_STREAM that is too short", [get(1), frame(RESET, 0, 1, &[0; 3])].concat(), BadStream::FrameSize),
        ("SETTINGS of a stream", frame(SETTINGS, 0, 1, &[]), BadStream::StreamNumber),
        ("SETTINGS of odd length", frame(SETTINGS, 0, 0, &[0; 7]), BadStream::FrameSize),
        ("SETTINGS acknowledged with more", frame(SETTINGS, frame::ACK, 0, &[0; 6]), BadStream::FrameSize),
        ("ENABLE_PUSH of 2", frame(SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2]), BadStream::Settings),
        ("a frame size too small", frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]), BadStream::Settings),
        ("a window too large", frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]), BadStream::FlowControl),
        ("PUSH_PROMISE", frame(PUSH, WHOLE, 1, &[0; 10]), BadStream::StreamNumber),
        ("PING of a stream", frame(PING, 0, 1, &[0; 8]), BadStream::StreamNumber),
        ("PING that is too long", frame(PING, 0, 0, &[0; 9]), BadStream::FrameSize),
        ("GOAWAY that is too short", frame(GO_AWAY, 0, 0, &[0; 7]), BadStream::FrameSize),
        ("a window opened by nothing", frame(WINDOW, 0, 0, &[0; 4]), BadStream::Window),
        ("a stream's likewise", [get(1), frame(WINDOW, 0, 1, &[0; 4])].concat(), BadStream::Window),
        ("a window opened too far", frame(WINDOW, 0, 0, &[0x7f, 255, 255, 255]), BadStream::Window),
        ("a window of a stream that is not open", frame(WINDOW, 0, 3, &[0, 0, 0, 1]), BadStream::StreamNumber),
        ("WINDOW_UPDATE that is too short", frame(WINDOW, 0, 0, &[0; 3]), BadStream::FrameSize),
        ("CONTINUATION of nothing", frame(CONTINUATION, WHOLE, 1, &[]), BadStream::Continuation),
        ("another frame amid a block", [cut(END, 1), ping.clone()].concat(), BadStream::Continuation),
        ("an unknown one likewise", [cut(END, 1), frame(0x77, 0, 0, &[])].concat(), BadStream::Continuation),
        ("that of another stream", [cut(END, 1), frame(CONTINUATION, WHOLE, 3, &[])].concat(), BadStream::Continuation),
        ("a block that cannot be unpacked", frame(HEADERS, END | WHOLE, 1, &[0x80]), BadStream::Compression),
        (
            "likewise of trailers",
            [post(1, &[]), frame(HEADERS, END | WHOLE, 1, &[0xff])].concat(),
            BadStream::Compression,
        ),
        ("more filling than frame", frame(HEADERS, WHOLE | frame::PADDED, 1, &[9, 0x82]), BadStream::FrameSize),
        ("likewise in a body", [post(1, &[]), frame(DATA, frame::PADDED, 1, &[2, 0])].concat(), BadStream::FrameSize),
        ("filling without a length", [post(1, &[]), frame(DATA, frame::PADDED, 1, &[])].concat(), BadStream::FrameSize),
        ("a priority that is cut off", frame(HEADERS, WHOLE | frame::WITH_PRIORITY, 1, &[0; 4]), BadStream::FrameSize),
    ];
    for (what, input, reason) in table {
        let mut connection = opened();
        let said = play(&mut connection, &[input, ping.clone()].concat());
        assert_eq!(said.last(), Some(&format!("failed {}", reason.label())), "{what}");
        let left = written(&mut connection);
        assert_eq!(errors(&left), [(0, reason.code() as u32)], "{what}");
        assert_eq!(left.last().map(|(head, _)| head.code), Some(GO_AWAY), "{what}: nothing is answered any more");
        assert!(!connection.has_news() && connection.streams() == 0, "{what}");
    }
}

#[test]
fn a_connection_begins_as_it_has_to() {
    for input in [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX".to_vec(),
        [&PREFACE[..], &frame(PING, 0, 0, &[0; 8])].concat(),
        [&PREFACE[..], &get(1)].concat(),
    ] {
        assert_eq!(play(&mut Connection::new(LIMITS), &input), ["failed preface"], "{input:?}");
    }
}

#[test]
fn who_breaks_the_rules_of_a_stream_loses_that() {
    let table: Vec<(&str, Vec<u8>, BadStream)> = vec![
        ("a field of a connection", post(1, &[("connection", "close")]), BadStream::ConnectionField),
        ("upper case", post(1, &[("X-A", "1")]), BadStream::FieldName),
        ("a line in a value", post(1, &[("x", "a\r\nb: c")]), BadStream::FieldValue),
        ("two hosts", post(1, &[("host", "other.test")]), BadStream::Authority),
        ("no path", frame(HEADERS, END | WHOLE, 1, &fields(&[(":method", "GET")])), BadStream::PseudoHeader),
        (
            "a body too short",
            [post(1, &[("content-length", "5")]), frame(DATA, END, 1, b"1234")].concat(),
            BadStream::Length,
        ),
        (
            "a body too long",
            [post(1, &[("content-length", "3")]), frame(DATA, 0, 1, b"1234")].concat(),
            BadStream::Length,
        ),
        (
            "a body too long in filling",
            [post(1, &[("content-length", "3")]), frame(DATA, frame::PADDED, 1, b"\x021234PP")].concat(),
            BadStream::Length,
        ),
        (
            "a body too short in front of trailers",
            [post(1, &[("content-length", "3")]), frame(HEADERS, END | WHOLE, 1, &fields(&[("x", "1")]))].concat(),
            BadStream::Length,
        ),
        ("DATA behind the end", [get(1), frame(DATA, 0, 1, b"x")].concat(), BadStream::StreamClosed),
        ("HEADERS behind the end", [get(1), get(1)].concat(), BadStream::StreamClosed),
        (
            "trailers that are no end",
            [post(1, &[]), frame(HEADERS, WHOLE, 1, &fields(&[("x", "1")]))].concat(),
            BadStream::Trailer,
        ),
        (
            "a pseudo-header in trailers",
            [post(1, &[]), frame(HEADERS, END | WHOLE, 1, &fields(&[(":path", "/")]))].concat(),
            BadStream::Trailer,
        ),
    ];
    for (what, input, reason) in table {
        let mut connection = opened();
        let said = play(&mut connection, &[input, get(3)].concat());
        assert!(said.contains(&format!("1 refused {}", reason.label())), "{what}: {said:?}");
        assert_eq!(said.last().map(String::as_str), Some("3 GET / HTTP/1.1."), "{what}: the others go on");
        assert_eq!(errors(&written(&mut connection)), [(1, reason.code() as u32)], "{what}");
        assert!(!connection.has(1) && connection.has(3), "{what}");
    }
}

#[test]
fn no_more_streams_than_allowed_are_open() {
    let mut connection = opened();
    let said = play(&mut connection, &(0..5).flat_map(|number| get(2 * number + 1)).collect::<Vec<u8>>());
    assert_eq!(said.last().map(String::as_str), Some("9 refused too_many_streams"));
    assert_eq!(errors(&written(&mut connection)), [(9, ErrorCode::RefusedStream as u32)]);
    connection.respond(3, &fields(&[(":status", "204")]), true);
    assert_eq!(play(&mut connection, &get(11)), ["11 GET / HTTP/1.1."]);
}

#[test]
fn floods_are_ended_each_for_its_own_reason_and_in_little_memory() {
    let reset = |number: u32| [get(2 * number + 3), frame(RESET, 0, 2 * number + 3, &[0; 4])].concat();
    let made = |number: u32| [get(2 * number + 3), frame(DATA, END, 2 * number + 3, &[])].concat();
    type Flood<'f> = (&'f str, u32, Box<dyn Fn(u32) -> Vec<u8> + 'f>, BadStream);
    let table: Vec<Flood<'_>> = vec![
        ("resets", 300, Box::new(reset), BadStream::ResetFlood),
        ("faults that reset", 300, Box::new(made), BadStream::ResetFlood),
        ("PING", 200, Box::new(|_| frame(PING, 0, 0, &[0; 8])), BadStream::PingFlood),
        ("SETTINGS", 100, Box::new(|_| frame(SETTINGS, 0, 0, &[])), BadStream::SettingsFlood),
        ("empty DATA", 200, Box::new(|_| frame(DATA, 0, 1, &[])), BadStream::EmptyDataFlood),
        (
            "DATA with nothing but filling",
            200,
            Box::new(|_| frame(DATA, frame::PADDED, 1, &[3, 0, 0, 0])),
            BadStream::EmptyDataFlood,
        ),
        ("PRIORITY", 1_000, Box::new(|_| frame(PRIORITY, 0, 1, &[0; 5])), BadStream::PriorityFlood),
        ("PRIORITY_UPDATE", 1_000, Box::new(|_| frame(0x10, 0, 0, b"\0\0\0\x01u=1")), BadStream::PriorityFlood),
        ("unknown frames", 1_000, Box::new(|_| frame(0xbb, 0, 0, &[])), BadStream::PriorityFlood),
        ("WINDOW_UPDATE", 2_000, Box::new(|_| frame(WINDOW, 0, 0, &[0, 0, 0, 1])), BadStream::WindowFlood),
        (
            "frames of streams that have ended",
            2_000,
            Box::new(|number| match number {
                0 => [get(3), frame(RESET, 0, 3, &[0; 4])].concat(),
                _ => frame(DATA, 0, 3, &[0]),
            }),
            BadStream::ClosedFlood,
        ),
        (
            "CONTINUATION",
            100,
            Box::new(|number| match number {
                0 => frame(HEADERS, END, 3, &request("GET", &[])),
                _ => frame(CONTINUATION, 0, 3, &[]),
            }),
            BadStream::ContinuationFlood,
        ),
        (
            "long CONTINUATION",
            20,
            Box::new(|number| match number {
                0 => frame(HEADERS, END, 3, &request("GET", &[])),
                _ => frame(CONTINUATION, 0, 3, &[0; 1_000]),
            }),
            BadStream::BlockTooLong,
        ),
    ];
    for (what, count, make, reason) in &table {
        let mut connection = opened();
        play(&mut connection, &post(1, &[]));
        let mut failed = None;
        for number in 0..*count {
            let said = play(&mut connection, &make(number));
            assert!(connection.kept_bytes() < 2 * WAITING_BYTES_MAX, "{what}: {}", connection.kept_bytes());
            if let Some(said) = said.iter().find(|said| said.starts_with("failed")) {
                failed = Some((number, said.clone()));
                break;
            }
        }
        let (number, said) = failed.unwrap_or_else(|| panic!("{what} go on and on"));
        assert_eq!(said, format!("failed {}", reason.label()), "{what}");
        assert!(number >= 5, "{what}: ended after {number}");
        let code = ErrorCode::EnhanceYourCalm as u32;
        assert_eq!(errors(&written(&mut connection)).last(), Some(&(0, code)), "{what}");
    }
    // Those that take their time do nobody harm; a block of fields may take its frames only.
    for (what, count, make, _) in table.iter().filter(|(what, ..)| !what.contains("CONTINUATION")) {
        let mut connection = opened();
        play(&mut connection, &post(1, &[]));
        for number in 0..*count {
            let said = play_at(&mut connection, &make(number), START + 2_000 * u64::from(number));
            assert!(!said.iter().any(|said| said.starts_with("failed")), "{what}: {said:?}");
            written(&mut connection);
        }
    }
}

#[test]
fn a_block_that_unpacks_to_far_too_much_costs_little_and_is_answered() {
    let mut connection = opened();
    // One long field, kept in the table, then named thousands of times.
    let mut block = request("GET", &[]);
    block.extend_from_slice(&[0x40, 1, b'x', 0x7f, 0x81, 0x1d]);
    block.extend(std::iter::repeat_n(b'y', 127 + 0x81 - 0x80 + (0x1d << 7)));
    block.extend(std::iter::repeat_n(0xbe, 4_000));
    let parts: Vec<&[u8]> = block.chunks(16_384).collect();
    assert_eq!(parts.len(), 1);
    assert_eq!(play(&mut connection, &frame(HEADERS, END | WHOLE, 1, &block)), ["1 refused list_too_long"]);
    assert!(connection.kept_bytes() < 1_024, "{}", connection.kept_bytes());
    let left = written(&mut connection);
    assert_eq!((left[0].0.code, left[0].0.flags), (HEADERS, END | WHOLE));
    let mut status = Vec::new();
    Decoder::default().read(&left[0].1, |_, value| status.push(value.to_vec())).expect("a block of ours");
    assert_eq!(status[0], b"431");
    // The table is still the client's.
    let again = [&request("GET", &[])[..], &[0xbe]].concat();
    assert_eq!(play(&mut connection, &frame(HEADERS, END | WHOLE, 3, &again)), ["3 GET / HTTP/1.1."]);
}

#[test]
fn who_reads_nothing_makes_no_more_answers() {
    let mut connection = opened();
    let pings: Vec<u8> = (0..90).flat_map(|_| frame(PING, 0, 0, &[0; 8])).collect();
    let mut all = Vec::new();
    for second in 0..200 {
        let Step { consumed, then } = connection.take(&pings, START + 10_000 * second);
        // Memory grows by doubling.
        assert!(connection.kept_bytes() < 3 * WAITING_BYTES_MAX);
        if then == Then::Wait {
            assert!(consumed < pings.len());
            connection.write(usize::MAX, &mut all, &mut Vec::new());
            assert_eq!(connection.take(&pings[consumed..], START + 10_000 * second).then, Then::Read);
            return;
        }
        assert_eq!((then, consumed), (Then::Read, pings.len()));
    }
    panic!("answers without end");
}

#[test]
fn an_end_comes_in_two_steps_and_loses_no_stream() {
    let mut connection = opened();
    play(&mut connection, &get(1));
    connection.announce_end();
    connection.announce_end();
    let announced = written(&mut connection);
    assert_eq!(announced.iter().map(|(head, _)| head.code).collect::<Vec<_>>(), [GO_AWAY, PING]);
    assert_eq!(announced[0].1[..4], [0x7f, 255, 255, 255]);
    // On its way when the client heard of it.
    assert_eq!(play(&mut connection, &post(3, &[])), ["3 POST / HTTP/1.1"]);
    assert!(!connection.has_ended());
    play(&mut connection, &frame(PING, frame::ACK, 0, &announced[1].1));
    assert!(connection.has_ended());
    assert_eq!(written(&mut connection)[0].1, [0, 0, 0, 3, 0, 0, 0, 0]);
    // Later ones are the client's to send elsewhere, with what belongs to them.
    assert_eq!(play(&mut connection, &[post(5, &[]), frame(DATA, END, 5, b"x")].concat()), Vec::<String>::new());
    assert_eq!(play(&mut connection, &frame(DATA, END, 3, b"x")), ["3 data x."]);
    assert_eq!((errors(&written(&mut connection)), connection.streams()), (vec![], 2));
}
