//! What a check says to a server and what it makes of the answers, once it is connected and any TLS handshake is over.
//!
//! The messages of DNS, LDAP, RADIUS and STUN are written and read here: of each protocol a check needs one or two messages, so a library of it would
//! bring more code that reads what servers send than there is in these files, and sockets and clocks that have no place in this crate.

mod agent;
mod dns;
mod echo;
mod ldap;
mod radius;
mod sip;
mod stun;
mod udp;

use std::fmt;
use std::net::SocketAddr;

use towpath_config::model::{CheckKind, HttpCheck};

use crate::http::{Edits, Exchange, HttpLimits, Keep, Lost, Output, ServerEnd, ServerLeg, Then};

use super::agent::AgentReport;
use agent::AgentTalk;
use dns::DnsTalk;
use echo::EchoTalk;
use ldap::LdapTalk;
use radius::RadiusTalk;
use sip::SipTalk;
use stun::StunTalk;
use udp::UdpTalk;

/// Bytes of a body that are searched for the expected text.
const BODY_BYTES_MAX: usize = 65_536;
/// Longest head of a response.
const HEAD_BYTES_MAX: u32 = 32_768;
/// Longest answer of an SMTP server, in all its lines; RFC 5321 §4.5.3.1.5 has 512 bytes for one of them.
const REPLY_BYTES_MAX: usize = 16_384;
/// Octets of what a server says that are shown in a reason.
const SHOWN_BYTES_MAX: usize = 80;
/// When a datagram without an answer is sent again: twice as long after each time (RFC 8489 section 6.2.1 begins so, too).
const REPEAT_AFTER_MS: u64 = 500;
const REPEAT_AFTER_MS_MAX: u64 = 8_000;
/// The same of RADIUS (RFC 5080 section 2.2.1, IRT).
const RADIUS_REPEAT_AFTER_MS: u64 = 2_000;

/// How far a check is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Course {
    /// It did not pass, with the cause in words.
    Failed(String),
    /// More of the server's bytes are needed.
    More,
    /// It passed; what is to be sent still has to leave.
    Passed,
}

/// Between whom a check is, and what it may draw from.
#[derive(Clone, Copy, Debug)]
pub struct Parties<'a> {
    /// Our own address and port; of an echo request, its identifier is the port.
    pub from: SocketAddr,
    /// The server's.
    pub to: SocketAddr,
    /// Another one for each check, for numbers that nobody else knows.
    pub seed: u64,
    /// What the files of the check say.
    pub secrets: &'a Secrets,
}

/// What the server and we know, and nobody else.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets {
    /// The content of `health.secret_file`.
    pub secret: Vec<u8>,
    /// The content of `health.password_file`.
    pub password: Vec<u8>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(..)")
    }
}

/// One check of one port, without I/O.
#[derive(Debug)]
pub struct Conversation(Talk);

#[derive(Debug)]
enum Talk {
    Agent(AgentTalk),
    Dns(DnsTalk),
    Echo(EchoTalk),
    Http(Box<HttpTalk>),
    Ldap(LdapTalk),
    Radius(Box<RadiusTalk>),
    /// To be connected was all.
    Silent,
    Sip(Box<SipTalk>),
    Smtp(SmtpTalk),
    Stun(StunTalk),
    Udp(UdpTalk),
}

impl Conversation {
    /// Begins a check; what is to be sent first is appended to `send`.
    pub fn begin(kind: &CheckKind, parties: &Parties<'_>, send: &mut Vec<u8>) -> (Conversation, Course) {
        let (talk, course) = match kind {
            CheckKind::Agent { send: line } => (Talk::Agent(AgentTalk::begin(line.as_deref(), send)), Course::More),
            CheckKind::Dns(dns) => {
                let (talk, course) = DnsTalk::begin(dns, parties, send);
                (Talk::Dns(talk), course)
            }
            CheckKind::Http(http) => {
                let (talk, course) = HttpTalk::begin(http, parties.to, 80, send);
                (Talk::Http(Box::new(talk)), course)
            }
            CheckKind::Https(http, _) => {
                let (talk, course) = HttpTalk::begin(http, parties.to, 443, send);
                (Talk::Http(Box::new(talk)), course)
            }
            CheckKind::Ldap(ldap) => (Talk::Ldap(LdapTalk::begin(ldap, parties, send)), Course::More),
            CheckKind::Ping => (Talk::Echo(EchoTalk::begin(parties, send)), Course::More),
            CheckKind::Radius(radius) => {
                let (talk, course) = RadiusTalk::begin(radius, parties, send);
                (Talk::Radius(Box::new(talk)), course)
            }
            CheckKind::Sip(sip) => (Talk::Sip(Box::new(SipTalk::begin(sip, parties, send))), Course::More),
            CheckKind::Smtp { expect } => {
                let talk = SmtpTalk { expect: expect.clone(), reply: Vec::new(), greeted: false, heard: String::new() };
                (Talk::Smtp(talk), Course::More)
            }
            CheckKind::Stun { transport } => (Talk::Stun(StunTalk::begin(*transport, parties, send)), Course::More),
            // A command speaks for itself.
            CheckKind::External(_) | CheckKind::Tcp | CheckKind::Tls(_) => (Talk::Silent, Course::Passed),
            CheckKind::Udp(udp) => (Talk::Udp(UdpTalk::begin(udp, send)), Course::More),
        };
        (Conversation(talk), course)
    }

    /// The server has sent this: some octets of a stream, or one datagram. What is to be sent is appended to `send`.
    pub fn received(&mut self, bytes: &[u8], send: &mut Vec<u8>) -> Course {
        match &mut self.0 {
            Talk::Agent(talk) => talk.received(bytes),
            Talk::Dns(talk) => talk.received(bytes),
            Talk::Echo(talk) => talk.received(bytes),
            Talk::Http(talk) => talk.received(bytes),
            Talk::Ldap(talk) => talk.received(bytes, send),
            Talk::Radius(talk) => talk.received(bytes),
            Talk::Silent => Course::Passed,
            Talk::Sip(talk) => talk.received(bytes),
            Talk::Smtp(talk) => talk.received(bytes, send),
            Talk::Stun(talk) => talk.received(bytes),
            Talk::Udp(talk) => talk.received(bytes),
        }
    }

    /// The server has ended its stream: in good order, or torn.
    pub fn ended(&mut self, end: ServerEnd) -> Course {
        match &mut self.0 {
            Talk::Agent(talk) => talk.ended(end),
            Talk::Http(talk) => talk.ended(end),
            Talk::Silent => Course::Passed,
            Talk::Sip(talk) => talk.ended(),
            Talk::Smtp(talk) if talk.greeted => {
                Course::Failed("closed the connection before its answer to EHLO".into())
            }
            Talk::Smtp(_) => Course::Failed("closed the connection before it greeted".into()),
            Talk::Dns(_) | Talk::Echo(_) | Talk::Ldap(_) | Talk::Radius(_) | Talk::Stun(_) | Talk::Udp(_) => {
                Course::Failed(format!("closed the connection, {} missing", self.waits_for()))
            }
        }
    }

    /// What it waits for, for a check that has waited too long.
    pub fn waits_for(&self) -> &'static str {
        match &self.0 {
            Talk::Dns(talk) if talk.has_begun() => "end of the answer",
            Talk::Http(talk) if talk.exchange.has_responded() => "end of the body",
            Talk::Http(_) | Talk::Sip(_) => "response",
            Talk::Ldap(talk) => talk.waits_for(),
            Talk::Radius(talk) => talk.waits_for(),
            Talk::Smtp(talk) if talk.greeted => "answer to EHLO",
            Talk::Smtp(_) => "greeting",
            Talk::Stun(talk) if talk.has_begun() => "end of the answer",
            Talk::Agent(_) | Talk::Dns(_) | Talk::Echo(_) | Talk::Silent | Talk::Stun(_) | Talk::Udp(_) => "answer",
        }
    }

    /// After how long without an answer a datagram is sent again that was repeated so many `times`; `None`: not again.
    pub fn repeat_after_ms(&self, times: u32) -> Option<u64> {
        let first_ms = match &self.0 {
            Talk::Radius(talk) if talk.repeats() => RADIUS_REPEAT_AFTER_MS,
            Talk::Dns(_) | Talk::Echo(_) | Talk::Stun(_) | Talk::Udp(_) => REPEAT_AFTER_MS,
            Talk::Sip(talk) => return talk.repeat_after_ms(times),
            Talk::Agent(_) | Talk::Http(_) | Talk::Ldap(_) | Talk::Radius(_) | Talk::Silent | Talk::Smtp(_) => {
                return None;
            }
        };
        Some(first_ms.saturating_mul(1 << times.min(16)).min(REPEAT_AFTER_MS_MAX))
    }

    /// What the server has said since this was asked last, in few words; empty where it is nothing to tell.
    pub fn heard(&mut self) -> String {
        match &mut self.0 {
            Talk::Agent(talk) => talk.heard(),
            Talk::Dns(talk) => talk.heard(),
            Talk::Echo(talk) => talk.heard(),
            Talk::Http(talk) => talk.heard(),
            Talk::Ldap(talk) => talk.heard(),
            Talk::Radius(talk) => talk.heard(),
            Talk::Silent => String::new(),
            Talk::Sip(talk) => talk.heard(),
            Talk::Smtp(talk) => std::mem::take(&mut talk.heard),
            Talk::Stun(talk) => talk.heard(),
            Talk::Udp(talk) => talk.heard(),
        }
    }

    /// What an agent that was asked has said, once.
    pub fn report(&mut self) -> Option<AgentReport> {
        match &mut self.0 {
            Talk::Agent(talk) => talk.report(),
            _ => None,
        }
    }

    /// Whether it has passed when its time is over and nobody refused it.
    pub fn passes_in_silence(&self) -> bool {
        matches!(&self.0, Talk::Udp(talk) if talk.passes_in_silence())
    }
}

/// What a server says, for a reason: in one line, without signs that a terminal acts on.
fn shown(bytes: &[u8]) -> String {
    let (bytes, rest) = bytes.split_at(bytes.len().min(SHOWN_BYTES_MAX));
    let mut text: String =
        String::from_utf8_lossy(bytes).chars().map(|sign| if sign.is_control() { '.' } else { sign }).collect();
    if !rest.is_empty() {
        text.push('…');
    }
    text
}

/// One request, as a client sends it through us: so a response is read here exactly as it is for clients. This one speaks HTTP/1.0, to which
/// bodies go on without chunks.
#[derive(Debug)]
struct HttpTalk {
    check: HttpCheck,
    exchange: Exchange,
    /// Of the response, once it has come.
    status: Option<u16>,
    body: Vec<u8>,
}

impl HttpTalk {
    fn begin(check: &HttpCheck, to: SocketAddr, usual_port: u16, send: &mut Vec<u8>) -> (HttpTalk, Course) {
        let host = match &check.host {
            Some(host) if to.port() == usual_port => host.clone(),
            Some(host) => format!("{host}:{}", to.port()),
            None => to.to_string(),
        };
        let method = if check.get { "GET" } else { "HEAD" };
        let request = format!(
            "{method} {} HTTP/1.0\r\nHost: {host}\r\nUser-Agent: towpath-check\r\nAccept: */*\r\n\r\n",
            check.path
        );
        let limits = HttpLimits { head_bytes_max: HEAD_BYTES_MAX, body_bytes_max: 0 };
        let mut talk =
            HttpTalk { check: check.clone(), exchange: Exchange::new(limits), status: None, body: Vec::new() };
        let mut output = Output::default();
        if talk.exchange.on_client(request.as_bytes(), &mut output).then != Then::Route {
            return (talk, Course::Failed(format!("no request can ask \"{host}\" for \"{}\"", check.path)));
        }
        talk.exchange.forward(&Edits::default(), ServerLeg::Fresh, &mut output);
        output.copy_into(&[], send);
        (talk, Course::More)
    }

    fn received(&mut self, mut bytes: &[u8]) -> Course {
        loop {
            let mut output = Output::default();
            let step = self.exchange.on_server(bytes, &mut output);
            output.copy_into(bytes, &mut self.body);
            self.body.truncate(BODY_BYTES_MAX);
            bytes = &bytes[step.consumed..];
            match step.then {
                Then::Respond => {
                    let status = self.exchange.response().status();
                    self.status = Some(status);
                    if !self.check.statuses.iter().any(|&(low, high)| (low..=high).contains(&status)) {
                        return Course::Failed(format!("status {status}, expected {}", ranges(&self.check.statuses)));
                    }
                    if self.check.expect.is_none() {
                        return Course::Passed;
                    }
                    if self.exchange.respond(&Edits::default(), Keep::Close, &mut Output::default()) == Then::Over {
                        return self.over();
                    }
                }
                Then::BadResponse(reason) => {
                    return Course::Failed(format!("the response is refused: {}", reason.label()));
                }
                Then::Over => return self.over(),
                Then::Crossed | Then::Tunnel | Then::Unasked => {
                    return Course::Failed("something else than a response".to_owned());
                }
                _ => return self.found().unwrap_or(Course::More),
            }
        }
    }

    /// What the body so far says, if it says it already.
    fn found(&self) -> Option<Course> {
        let expect = self.check.expect.as_deref()?;
        if contains(&self.body, expect) {
            return Some(Course::Passed);
        }
        let is_full = self.body.len() == BODY_BYTES_MAX;
        is_full.then(|| Course::Failed(format!("\"{expect}\" is not in the first {BODY_BYTES_MAX} bytes of the body")))
    }

    fn heard(&self) -> String {
        match self.status {
            Some(status) if self.body.is_empty() => format!("status {status}"),
            Some(status) => format!("status {status}, {} bytes of the body", self.body.len()),
            None => String::new(),
        }
    }

    fn over(&self) -> Course {
        let Some(expect) = &self.check.expect else { return Course::Passed };
        self.found().unwrap_or_else(|| Course::Failed(format!("\"{expect}\" is not in the body")))
    }

    fn ended(&mut self, end: ServerEnd) -> Course {
        match self.exchange.server_ended(end, &mut Output::default()) {
            Lost::Over => self.over(),
            _ if self.exchange.has_responded() => Course::Failed("the body ends too early".to_owned()),
            _ => Course::Failed("closed the connection without a response".to_owned()),
        }
    }
}

/// Ranges as the file has them.
fn ranges(ranges: &[(u16, u16)]) -> String {
    let one = |&(low, high): &(u16, u16)| if low == high { low.to_string() } else { format!("{low}-{high}") };
    ranges.iter().map(one).collect::<Vec<_>>().join(",")
}

fn contains(bytes: &[u8], text: &str) -> bool {
    found(bytes, text.as_bytes())
}

fn found(bytes: &[u8], wanted: &[u8]) -> bool {
    wanted.is_empty() || bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// Greeting, EHLO, QUIT (RFC 5321 §3.1, §3.2, §4.1.1.10).
#[derive(Debug)]
struct SmtpTalk {
    expect: Option<String>,
    /// Lines of the reply at hand, and what there is of the next one.
    reply: Vec<u8>,
    greeted: bool,
    /// The last line of each reply since it was told.
    heard: String,
}

impl SmtpTalk {
    fn received(&mut self, bytes: &[u8], send: &mut Vec<u8>) -> Course {
        self.reply.extend_from_slice(bytes);
        loop {
            let Some(end) = last_line_end(&self.reply) else {
                return match self.reply.len() {
                    REPLY_BYTES_MAX.. => Course::Failed(format!("a reply longer than {REPLY_BYTES_MAX} bytes")),
                    _ => Course::More,
                };
            };
            let rest = self.reply.split_off(end);
            let reply = std::mem::replace(&mut self.reply, rest);
            let last = reply.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
            if !self.heard.is_empty() {
                self.heard.push_str("; ");
            }
            self.heard.push_str(&shown(last));
            let (what, wanted) = if self.greeted { ("EHLO", "250") } else { ("the connection", "220") };
            if !reply.starts_with(wanted.as_bytes()) {
                let first = reply.split(|&byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
                return Course::Failed(format!("answers {what} with \"{}\"", shown(first)));
            }
            if self.greeted {
                send.extend_from_slice(b"QUIT\r\n");
                return Course::Passed;
            }
            if let Some(expect) = self.expect.as_deref().filter(|expect| !contains(&reply, expect)) {
                return Course::Failed(format!("\"{expect}\" is not in the greeting"));
            }
            self.greeted = true;
            send.extend_from_slice(b"EHLO towpath\r\n");
        }
    }
}

/// Where the first whole reply ends: behind the line whose code a hyphen does not follow (RFC 5321 §4.2.1).
fn last_line_end(reply: &[u8]) -> Option<usize> {
    let mut start = 0;
    while let Some(length) = reply[start..].iter().position(|&byte| byte == b'\n') {
        let goes_on = reply[start..start + length].get(3) == Some(&b'-');
        start += length + 1;
        if !goes_on {
            return Some(start);
        }
    }
    None
}

#[cfg(test)]
mod tests;
