//! Arbitrary bytes of a client and of servers against one exchange.
//!
//! An input is a seed for the cuts, then the client's stream and what servers send, each for one request, separated by [`SEPARATOR`]. Whatever they are, the exchange
//! must not panic; the same bytes give the same result however they are cut; and what reaches a server is read by [`read_plainly`], a reader
//! with nothing in common with ours, as the very requests that were let through: that is what smuggling would break.

use towpath_core::http::{
    Answer, ClientEnd, Edits, Exchange, Fate, HttpLimits, Keep, Lost, Output, ServerEnd, ServerLeg, Step, Then,
};
use towpath_core::random::SplitMix64;
use towpath_core::session::Side;

/// What separates the streams of an input.
pub(crate) const SEPARATOR: &[u8] = b"\n==\n";

/// Small enough to be reached.
pub(crate) const LIMITS: HttpLimits = HttpLimits { head_bytes_max: 4096, body_bytes_max: 1 << 20 };

/// Steps of one side without bytes taken, after which something is wrong.
const STALLS_MAX: usize = 64;

/// What came of the streams.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Played {
    /// What reached each server's connection.
    pub(crate) to_servers: Vec<Vec<u8>>,
    /// What reached the client.
    pub(crate) to_client: Vec<u8>,
    /// What happened, in order.
    pub(crate) said: Vec<Said>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Bad(&'static str),
    ClientEnded(ClientEnd),
    Forwarded { method: String, target: String },
    Over(Fate),
    ServerEnded(Lost),
    Responded(u16),
    Tunnel,
    Unasked,
}

/// Runs an input.
pub(crate) fn run(input: &[u8]) {
    let (seed, streams) = input.split_at(input.len().min(1));
    let streams = split(streams);
    let (client, responses) = streams.split_first().expect("a split has a first part");
    let whole = play(client, responses, LIMITS, |left| left);
    let mut random = SplitMix64::new(seed.first().copied().unwrap_or_default().into());
    for longest in [1, 3, 200] {
        let cut = play(client, responses, LIMITS, |left| 1 + random.below(longest.min(left as u64)) as usize);
        assert_same(&whole, &cut);
    }
    for stream in &whole.to_servers {
        check_stream(stream, &whole);
    }
}

fn split(mut streams: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some(at) = streams.windows(SEPARATOR.len()).position(|part| part == SEPARATOR) {
        parts.push(&streams[..at]);
        streams = &streams[at + SEPARATOR.len()..];
    }
    parts.push(streams);
    parts
}

/// Cuts change neither what is let through nor what it becomes; but which of two faults is seen first, whether one in a head is seen before its
/// end, which may never come, and how a body that ends with its connection is cut into chunks.
fn assert_same(whole: &Played, cut: &Played) {
    let refused = |played: &Played| {
        let plain = |said: &Said| match said {
            Said::Bad(_) | Said::ServerEnded(Lost::Failed) => Said::Bad(""),
            Said::ClientEnded(ClientEnd::Abort) => Said::Over(Fate::Close),
            said => said.clone(),
        };
        let mut said: Vec<_> = played.said.iter().map(plain).collect();
        if said.ends_with(&[Said::Bad(""), Said::Over(Fate::Close)]) {
            said.remove(said.len() - 2);
        }
        said
    };
    assert_eq!(refused(whole), refused(cut));
    assert_eq!(text(&whole.to_servers.concat()), text(&cut.to_servers.concat()));
    if !whole.said.iter().any(|said| matches!(said, Said::Bad(_))) {
        assert_eq!(text(&bodies(&whole.to_client)), text(&bodies(&cut.to_client)));
    }
}

/// Everything but how it was cut into chunks.
fn bodies(stream: &[u8]) -> Vec<u8> {
    let (messages, rest) = read_plainly(stream, true);
    let mut all: Vec<u8> = messages.into_iter().flat_map(|message| [message.head, message.body].concat()).collect();
    // Of a message that is cut off, only its head is sure to be cut in one way.
    all.extend_from_slice(rest.split(|byte| *byte == b'\r').next().unwrap_or_default());
    all
}

/// What reached a server are the requests that were forwarded, in order, each as long as it says; only the last may be cut off.
fn check_stream(stream: &[u8], played: &Played) {
    let tunnel = played.said.contains(&Said::Tunnel);
    let (messages, rest) = read_plainly(stream, false);
    let mut forwarded = played.said.iter().filter_map(|said| match said {
        Said::Forwarded { method, target } => Some((method, target)),
        _ => None,
    });
    for message in &messages {
        let line = message.head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let line = std::str::from_utf8(line).expect("a request's line is text");
        if tunnel && !line.ends_with(" HTTP/1.1") {
            return;
        }
        let found = forwarded.any(|(method, target)| line == format!("{method} {target} HTTP/1.1"));
        assert!(found || tunnel, "{line} was not let through: {}", text(stream));
    }
    let incomplete = usize::from(!rest.is_empty());
    let known = played.said.iter().filter(|said| matches!(said, Said::Forwarded { .. })).count();
    assert!(messages.len() + incomplete <= known || tunnel, "more than was let through: {}", text(stream));
}

/// A message as a plain reader reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) head: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

/// The whole messages of a stream, and what is left. A reader of the simplest kind, for messages that need no more: lines end with CRLF, the framing
/// is as the last field of its name says. Responses end with the stream if nothing else ends them.
pub(crate) fn read_plainly(mut stream: &[u8], responses: bool) -> (Vec<Message>, &[u8]) {
    let mut messages = Vec::new();
    while let Some(end) = find(stream, b"\r\n\r\n").map(|at| at + 4) {
        let (head, behind) = stream.split_at(end);
        let value = |name: &[u8]| {
            head.split(|byte| *byte == b'\n')
                .filter(|line| line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name)))
                .map(|line| line[name.len()..].trim_ascii().to_vec())
                .next_back()
        };
        let empty = responses
            && head.get(9..12).is_some_and(|status| status.starts_with(b"1") || status == b"204" || status == b"304");
        let body = if value(b"transfer-encoding:").is_some() && !empty {
            dechunk(behind)
        } else if let Some(length) = value(b"content-length:").filter(|_| !empty) {
            let length: usize = std::str::from_utf8(&length).expect("digits").parse().expect("digits");
            behind.get(..length).map(|body| (body.to_vec(), length))
        } else {
            Some((Vec::new(), 0))
        };
        let Some((body, len)) = body else { break };
        messages.push(Message { head: head.to_vec(), body });
        stream = &behind[len..];
    }
    (messages, stream)
}

/// A whole chunked body, and how long it was in its chunks.
fn dechunk(chunked: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let line = find(&chunked[at..], b"\r\n")?;
        let size = std::str::from_utf8(&chunked[at..at + line]).expect("a size is text");
        let size = usize::from_str_radix(size, 16).expect("a size is hexadecimal");
        at += line + 2;
        if size == 0 {
            break;
        }
        body.extend_from_slice(chunked.get(at..at.checked_add(size)?)?);
        at += size;
        assert!(chunked.get(at..at + 2)? == b"\r\n", "a chunk ends with its line: {}", text(chunked));
        at += 2;
    }
    loop {
        let line = find(&chunked[at..], b"\r\n")?;
        at += line + 2;
        if line == 0 {
            return Some((body, at));
        }
    }
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

fn text(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

/// Plays a client's stream and what servers send for each request; a server whose bytes end before its response does closes. `cut` says how much
/// of so much comes next.
pub(crate) fn play(client: &[u8], responses: &[&[u8]], limits: HttpLimits, cut: impl FnMut(usize) -> usize) -> Played {
    let mut play = Play {
        exchange: Exchange::new(limits),
        client,
        responses,
        server: None,
        connected: false,
        played: Played::default(),
        out: Output::default(),
        cut,
        ended: false,
    };
    play.all();
    play.played
}

struct Play<'a, C> {
    exchange: Exchange,
    /// What is to come of the client.
    client: &'a [u8],
    /// What servers send for the requests to come.
    responses: &'a [&'a [u8]],
    /// What is to come for the request at hand.
    server: Option<&'a [u8]>,
    /// A server is there.
    connected: bool,
    played: Played,
    out: Output,
    cut: C,
    /// The client's connection is closed.
    ended: bool,
}

impl<C: FnMut(usize) -> usize> Play<'_, C> {
    fn all(&mut self) {
        let mut stalls = 0;
        while !self.ended && stalls < 2 {
            let before =
                (self.client.len(), self.server.map(<[u8]>::len), self.responses.len(), self.played.said.len());
            self.client_side();
            self.server_side();
            let after = (self.client.len(), self.server.map(<[u8]>::len), self.responses.len(), self.played.said.len());
            stalls = if before == after { stalls + 1 } else { 0 };
        }
        if !self.ended {
            let end = self.exchange.client_ended();
            self.said(Said::ClientEnded(end));
        }
        let waiting = self.exchange.waiting();
        assert!(!format!("{waiting:?} {:?}", self.exchange).is_empty());
    }

    fn said(&mut self, said: Said) {
        self.played.said.push(said);
    }

    /// The client's bytes, as far as they are taken.
    fn client_side(&mut self) {
        let mut stalls = 0;
        while !self.ended && !self.client.is_empty() && self.exchange.wants(Side::Client) {
            let len = (self.cut)(self.client.len());
            let given = &self.client[..len];
            let Step { consumed, then } = self.exchange.on_client(given, &mut self.out);
            assert!(consumed <= len && (consumed == len || then != Then::Read), "{then:?} after {consumed} of {len}");
            if let Some(stream) = self.played.to_servers.last_mut() {
                self.out.copy_into(given, stream);
            } else {
                assert!(self.out.is_empty(), "nobody is there to take it");
            }
            self.out.clear();
            self.client = &self.client[consumed..];
            stalls = if consumed == 0 { stalls + 1 } else { 0 };
            assert!(stalls < STALLS_MAX, "{then:?} for ever");
            match then {
                Then::Hold => return,
                then => self.follow(then),
            }
        }
    }

    /// The server's bytes, as far as they are taken, and the end behind them.
    fn server_side(&mut self) {
        let mut stalls = 0;
        while let Some(server) = self.server {
            if self.ended || !self.exchange.wants(Side::Server) {
                return;
            }
            if server.is_empty() {
                self.server_ends();
                return;
            }
            let len = (self.cut)(server.len());
            let given = &server[..len];
            let Step { consumed, then } = self.exchange.on_server(given, &mut self.out);
            assert!(consumed <= len && (consumed == len || then != Then::Read), "{then:?} after {consumed} of {len}");
            self.out.copy_into(given, &mut self.played.to_client);
            self.out.clear();
            self.server = Some(&server[consumed..]);
            stalls = if consumed == 0 { stalls + 1 } else { 0 };
            assert!(stalls < STALLS_MAX, "{then:?} for ever");
            match then {
                Then::Hold => return,
                then => self.follow(then),
            }
        }
    }

    fn follow(&mut self, then: Then) {
        match then {
            Then::BadRequest(reason) => {
                self.said(Said::Bad(reason.label()));
                self.refuse(reason.status());
            }
            Then::BadResponse(reason) => {
                self.said(Said::Bad(reason.label()));
                self.refuse(502);
            }
            Then::Hold | Then::Read => {}
            Then::Over => {
                let after = self.exchange.renew();
                // What a server sends behind its response ends its connection, now or when it comes.
                let unasked = self.server.take().is_some_and(|left| !left.is_empty());
                self.connected &= after.server == Fate::Keep && !unasked;
                let bound_to_it = unasked && self.exchange.is_bound();
                self.ended |= after.client == Fate::Close || bound_to_it;
                self.said(Said::Over(if self.ended { Fate::Close } else { Fate::Keep }));
            }
            Then::Respond => {
                self.said(Said::Responded(self.exchange.response().status()));
                let then = self.exchange.respond(&Edits::default(), Keep::Open, &mut self.out);
                self.out.copy_into(b"", &mut self.played.to_client);
                self.out.clear();
                self.follow(then);
            }
            Then::Route => self.forward(),
            Then::Tunnel => {
                self.said(Said::Tunnel);
                self.ended = true;
            }
            Then::Crossed | Then::Unasked => {
                self.said(Said::Unasked);
                self.server_ends();
            }
        }
    }

    fn forward(&mut self) {
        let Some((&next, rest)) = self.responses.split_first() else { return self.refuse(503) };
        (self.server, self.responses) = (Some(next), rest);
        let leg = if std::mem::replace(&mut self.connected, true) { ServerLeg::Kept } else { ServerLeg::Fresh };
        if leg == ServerLeg::Fresh {
            self.played.to_servers.push(Vec::new());
        }
        let request = self.exchange.request();
        let said = Said::Forwarded { method: request.method().into(), target: request.target().into() };
        let _ = (request.path(), request.query(), request.host_name(), request.fields().count());
        self.said(said);
        self.exchange.forward(&Edits::default(), leg, &mut self.out);
        if let Some(stream) = self.played.to_servers.last_mut() {
            self.out.copy_into(b"", stream);
        }
        self.out.clear();
    }

    /// An answer of ours; the server's connection ends if it has the request.
    fn refuse(&mut self, status: u16) {
        let answered = self.exchange.answer(&Answer::of(status), Keep::Open, &mut self.out);
        self.out.copy_into(b"", &mut self.played.to_client);
        self.out.clear();
        match answered {
            Ok(then) => self.follow(then),
            Err(_) => self.ended = true,
        }
    }

    fn server_ends(&mut self) {
        let lost = self.exchange.server_ended(ServerEnd::Orderly, &mut self.out);
        self.out.copy_into(b"", &mut self.played.to_client);
        self.out.clear();
        (self.server, self.connected) = (None, false);
        self.said(Said::ServerEnded(lost));
        match lost {
            Lost::Cut | Lost::Mirror => self.ended = true,
            Lost::Failed => self.refuse(502),
            Lost::Idle => {}
            Lost::Over => self.follow(Then::Over),
            Lost::Retry => self.forward(),
        }
    }
}
