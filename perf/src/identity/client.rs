//! A client with one connection at a time, and what it makes of the answers.

use std::io::{self, BufRead, BufReader, Read, Write};

use towpath_core::random::SplitMix64;

use super::logon;
use super::{Outcome, Stream, Target};

/// Whom answers are made for that are made for nobody in particular.
pub(super) const NOBODY: &str = "nobody";

/// Of so many requests, one is the last that is sent over its connection; …
const LEAVES_OF: u64 = 25;
/// … one is not waited for; …
const ABANDONED_OF: u64 = 100;
/// … one has a body; …
const POSTED_OF: u64 = 8;
/// … and one of so many is sent together with the next.
const PIPELINED_OF: u64 = 20;
const HEAD_BYTES_MAX: u64 = 65_536;

/// How a client says who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// It does not.
    Anonymous,
    /// With each request.
    Basic,
    /// By Kerberos, with the first request of each connection, unasked (haproxy#2985).
    Kerberos,
    /// By NTLM inside of Negotiate, once it is asked to.
    Negotiate,
    /// By NTLM, once it is asked to.
    Ntlm,
    /// The same with the first request of each connection, unasked.
    NtlmAtOnce,
}

pub(super) const KINDS: [Kind; 6] =
    [Kind::Anonymous, Kind::Basic, Kind::Kerberos, Kind::Negotiate, Kind::Ntlm, Kind::NtlmAtOnce];

/// How far a client's logon over its connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Logon {
    /// Nobody has asked for it.
    None,
    /// It was asked for.
    Wanted,
    /// The server has answered the first message.
    Challenged([u8; 8]),
    /// It is over: the connection is who we are.
    Done,
}

pub(super) struct Client {
    user: String,
    kind: Kind,
    target: Target,
    connection: Option<BufReader<Stream>>,
    logon: Logon,
    asked: u64,
}

/// What a request says of who sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    /// The last message of a logon, or the only one.
    Answer,
    /// The first message of NTLM.
    Greeting,
    /// Nothing of a logon.
    Nothing,
}

/// An answer as it came.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Client {
    pub(super) fn new(number: usize, kind: Kind, target: Target) -> Client {
        let user = format!("user-{number}");
        Client { user, kind, target, connection: None, logon: Logon::None, asked: 0 }
    }

    /// Sends a request or two, and looks whose answers come.
    pub(super) fn act(&mut self, random: &mut SplitMix64, outcome: &mut Outcome) -> io::Result<()> {
        if self.connection.is_none() {
            self.logon =
                if matches!(self.kind, Kind::Kerberos | Kind::NtlmAtOnce) { Logon::Wanted } else { Logon::None };
            // Whoever is between has to take connections.
            self.connection = Some(BufReader::new(self.target.connect()?));
            outcome.client_connections += 1;
        }
        let says = self.says();
        // A logon goes step by step.
        let is_settled = matches!(self.logon, Logon::None | Logon::Done);
        let together = if is_settled && random.below(PIPELINED_OF) == 0 { 2 } else { 1 };
        let mut targets = Vec::new();
        let mut bytes = Vec::new();
        for _ in 0..together {
            let target = self.target_of_next(random);
            bytes.extend(self.request(&target, is_settled && random.below(POSTED_OF) == 0, random));
            targets.push(target);
        }
        outcome.requests += together;
        let Some(connection) = &mut self.connection else { return Ok(()) };
        if connection.get_mut().write_all(&bytes).is_err() {
            outcome.closed += 1;
            self.connection = None;
            return Ok(());
        }
        if random.below(ABANDONED_OF) == 0 {
            outcome.abandoned += together;
            self.connection = None;
            return Ok(());
        }
        for target in targets {
            let Some(connection) = &mut self.connection else {
                outcome.closed += 1;
                continue;
            };
            match read_answer(connection) {
                Ok(Some(answer)) => self.heard(&answer, &target, says, outcome),
                Ok(None) | Err(_) => {
                    outcome.closed += 1;
                    self.connection = None;
                }
            }
        }
        if random.below(LEAVES_OF) == 0 {
            self.connection = None;
        }
        Ok(())
    }

    /// What is asked for next: no two requests ask for the same.
    fn target_of_next(&mut self, random: &mut SplitMix64) -> String {
        self.asked += 1;
        let place = if random.below(3) == 0 { "public" } else { "private" };
        format!("/{place}/{}/{}", self.user, self.asked)
    }

    fn says(&self) -> Says {
        match (self.kind, self.logon) {
            (Kind::Anonymous | Kind::Basic, _) | (_, Logon::Done | Logon::None) => Says::Nothing,
            (Kind::Kerberos, _) | (_, Logon::Challenged(_)) => Says::Answer,
            (_, Logon::Wanted) => Says::Greeting,
        }
    }

    fn request(&self, target: &str, posts: bool, random: &mut SplitMix64) -> Vec<u8> {
        let credentials = match (self.kind, self.logon) {
            (Kind::Basic, _) => logon::basic(&self.user),
            (Kind::Kerberos, Logon::Wanted) => format!("Negotiate {}", logon::ticket(&self.user)),
            (Kind::Negotiate, Logon::Wanted) => format!("Negotiate {}", logon::greeting()),
            (Kind::Ntlm | Kind::NtlmAtOnce, Logon::Wanted) => format!("NTLM {}", logon::greeting()),
            (Kind::Negotiate, Logon::Challenged(challenge)) => {
                format!("Negotiate {}", logon::answer(&self.user, &challenge))
            }
            (Kind::Ntlm | Kind::NtlmAtOnce, Logon::Challenged(challenge)) => {
                format!("NTLM {}", logon::answer(&self.user, &challenge))
            }
            _ => String::new(),
        };
        let method = if posts { "POST" } else { "GET" };
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: origin.test\r\n");
        if !credentials.is_empty() {
            head.push_str(&format!("Authorization: {credentials}\r\n"));
        }
        if !posts {
            head.push_str("\r\n");
            return head.into_bytes();
        }
        let length = random.below(3000) as usize;
        let mut bytes = format!("{head}Content-Length: {length}\r\n\r\n").into_bytes();
        bytes.resize(bytes.len() + length, b'-');
        bytes
    }

    /// Whose answer is it?
    fn heard(&mut self, answer: &Answer, target: &str, says: Says, outcome: &mut Outcome) {
        if value(&answer.head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close")) {
            self.connection = None;
        }
        if answer.status >= 500 {
            outcome.failed += 1;
            return;
        }
        let line = answer.body.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let (whom, asked_for) = line.split_once(' ').unwrap_or_default();
        if asked_for != target {
            outcome.misplaced += 1;
            return;
        }
        if whom != NOBODY && whom != self.user {
            outcome.foreign += 1;
            return;
        }
        if answer.status == 401 {
            outcome.challenged += 1;
            return self.challenged(answer, says, outcome);
        }
        match whom {
            NOBODY => outcome.anonymous += 1,
            _ => outcome.own += 1,
        }
        if says == Says::Answer {
            self.logon = Logon::Done;
        }
    }

    fn challenged(&mut self, answer: &Answer, says: Says, outcome: &mut Outcome) {
        let scheme = if self.kind == Kind::Negotiate { "Negotiate " } else { "NTLM " };
        let challenge = values(&answer.head, "www-authenticate")
            .find_map(|offer| logon::read_challenge(offer.strip_prefix(scheme)?));
        match (says, challenge) {
            (Says::Greeting, Some(challenge)) => return self.logon = Logon::Challenged(challenge),
            (Says::Greeting | Says::Answer, _) => outcome.refused += 1,
            (Says::Nothing, _) if self.logon == Logon::Done => outcome.forgotten += 1,
            (Says::Nothing, _) => {}
        }
        self.logon = if matches!(self.kind, Kind::Anonymous | Kind::Basic) { Logon::None } else { Logon::Wanted };
    }
}

/// One answer; `None` at an orderly end.
fn read_answer(reader: &mut impl BufRead) -> io::Result<Option<Answer>> {
    let head = read_head(reader)?;
    if head.is_empty() {
        return Ok(None);
    }
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(io::ErrorKind::InvalidData)?;
    let body = read_body(&head, reader)?;
    Ok(Some(Answer { status, head, body }))
}

/// A head up to and with its empty line; empty at the end of the stream.
pub(super) fn read_head(reader: &mut impl BufRead) -> io::Result<String> {
    let mut head = Vec::new();
    let mut limited = reader.take(HEAD_BYTES_MAX);
    while !head.ends_with(b"\r\n\r\n") {
        if limited.read_until(b'\n', &mut head)? == 0 {
            return if head.is_empty() { Ok(String::new()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    }
    String::from_utf8(head).map_err(io::Error::other)
}

/// The body behind a head.
pub(super) fn read_body(head: &str, reader: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if value(head, "transfer-encoding").is_none() {
        let length = value(head, "content-length").map_or(Ok(0), str::parse).map_err(io::Error::other)?;
        body.resize(length, 0);
        reader.read_exact(&mut body)?;
        return Ok(body);
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let length = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        let start = body.len();
        body.resize(start + length, 0);
        reader.read_exact(&mut body[start..])?;
        line.clear();
        reader.read_line(&mut line)?;
        if length == 0 {
            return Ok(body);
        }
    }
}

/// The values of a field.
fn values<'a>(head: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    head.lines().skip(1).filter_map(move |line| {
        let (own, value) = line.split_once(':')?;
        own.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// The first of them.
pub(super) fn value<'a>(head: &'a str, name: &'a str) -> Option<&'a str> {
    values(head, name).next()
}
