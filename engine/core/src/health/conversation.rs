//! What a check says to a server and what it makes of the answers, once it is connected and any TLS handshake is over.

mod agent;
mod sip;

use std::net::SocketAddr;

use towpath_config::model::{CheckKind, HttpCheck};

use crate::http::{Edits, Exchange, HttpLimits, Keep, Lost, Output, ServerEnd, ServerLeg, Then};

use super::agent::AgentReport;
use agent::AgentTalk;
use sip::SipTalk;

/// Bytes of a body that are searched for the expected text.
const BODY_BYTES_MAX: usize = 65_536;
/// Longest head of a response.
const HEAD_BYTES_MAX: u32 = 32_768;
/// Longest answer of an SMTP server, in all its lines; RFC 5321 §4.5.3.1.5 has 512 bytes for one of them.
const REPLY_BYTES_MAX: usize = 16_384;

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

/// Who talks to whom.
#[derive(Clone, Debug)]
pub struct Parties {
    /// Our own end.
    pub from: SocketAddr,
    /// The port that is checked.
    pub to: SocketAddr,
    /// What identifiers are made from: another one for each conversation.
    pub seed: u64,
}

/// One check of one port, without I/O.
#[derive(Debug)]
pub struct Conversation(Talk);

#[derive(Debug)]
enum Talk {
    Agent(AgentTalk),
    Http(Box<HttpTalk>),
    /// To be connected was all.
    Silent,
    Sip(Box<SipTalk>),
    Smtp(SmtpTalk),
}

impl Conversation {
    /// Begins the check of a port; what is to be sent first is appended to `send`.
    pub fn begin(kind: &CheckKind, parties: &Parties, send: &mut Vec<u8>) -> (Conversation, Course) {
        let to = parties.to;
        match kind {
            CheckKind::Agent { send: line } => {
                (Conversation(Talk::Agent(AgentTalk::begin(line.as_deref(), send))), Course::More)
            }
            // A command speaks for itself.
            CheckKind::External(_) | CheckKind::Tcp | CheckKind::Tls(_) => (Conversation(Talk::Silent), Course::Passed),
            CheckKind::Http(http) => {
                let (talk, course) = HttpTalk::begin(http, to, 80, send);
                (Conversation(Talk::Http(Box::new(talk))), course)
            }
            CheckKind::Https(http, _) => {
                let (talk, course) = HttpTalk::begin(http, to, 443, send);
                (Conversation(Talk::Http(Box::new(talk))), course)
            }
            CheckKind::Sip(sip) => {
                let talk = SipTalk::begin(sip, parties, send);
                (Conversation(Talk::Sip(Box::new(talk))), Course::More)
            }
            CheckKind::Smtp { expect } => {
                let talk = SmtpTalk { expect: expect.clone(), reply: Vec::new(), greeted: false, heard: String::new() };
                (Conversation(Talk::Smtp(talk)), Course::More)
            }
        }
    }

    /// The server has sent this. What is to be sent is appended to `send`.
    pub fn received(&mut self, bytes: &[u8], send: &mut Vec<u8>) -> Course {
        match &mut self.0 {
            Talk::Agent(talk) => talk.received(bytes),
            Talk::Http(talk) => talk.received(bytes),
            Talk::Sip(talk) => talk.received(bytes),
            Talk::Smtp(talk) => talk.received(bytes, send),
            Talk::Silent => Course::Passed,
        }
    }

    /// The server has ended its stream: in good order, or torn.
    pub fn ended(&mut self, end: ServerEnd) -> Course {
        match &mut self.0 {
            Talk::Agent(talk) => talk.ended(end),
            Talk::Http(talk) => talk.ended(end),
            Talk::Sip(talk) => talk.ended(),
            Talk::Smtp(talk) if talk.greeted => {
                Course::Failed("closed the connection before its answer to EHLO".into())
            }
            Talk::Smtp(_) => Course::Failed("closed the connection before it greeted".into()),
            Talk::Silent => Course::Passed,
        }
    }

    /// What it waits for, for a check that has waited too long.
    pub fn waits_for(&self) -> &'static str {
        match &self.0 {
            Talk::Http(talk) if talk.exchange.has_responded() => "end of the body",
            Talk::Http(_) | Talk::Sip(_) => "response",
            Talk::Smtp(talk) if talk.greeted => "answer to EHLO",
            Talk::Smtp(_) => "greeting",
            Talk::Agent(_) | Talk::Silent => "answer",
        }
    }

    /// What the server has said so far that counts, in few words; empty where it has said nothing.
    pub fn heard(&self) -> String {
        match &self.0 {
            Talk::Agent(talk) => talk.heard(),
            Talk::Http(talk) => talk.heard(),
            Talk::Silent => String::new(),
            Talk::Sip(talk) => talk.heard(),
            Talk::Smtp(talk) => talk.heard.clone(),
        }
    }

    /// Of a check over UDP: after how long the request is sent again, having been repeated so many times; `None` = never.
    pub fn repeat_after_ms(&self, times: u32) -> Option<u64> {
        match &self.0 {
            Talk::Sip(talk) => talk.repeat_after_ms(times),
            Talk::Agent(_) | Talk::Http(_) | Talk::Silent | Talk::Smtp(_) => None,
        }
    }

    /// What an agent that was asked has said, once.
    pub fn report(&mut self) -> Option<AgentReport> {
        match &mut self.0 {
            Talk::Agent(talk) => talk.report(),
            Talk::Http(_) | Talk::Silent | Talk::Sip(_) | Talk::Smtp(_) => None,
        }
    }
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
    bytes.windows(text.len().max(1)).any(|window| window == text.as_bytes())
}

/// Greeting, EHLO, QUIT (RFC 5321 §3.1, §3.2, §4.1.1.10).
#[derive(Debug)]
struct SmtpTalk {
    expect: Option<String>,
    /// Lines of the reply at hand, and what there is of the next one.
    reply: Vec<u8>,
    greeted: bool,
    /// The last line of the last reply.
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
            self.heard = String::from_utf8_lossy(last).into_owned();
            let (what, wanted) = if self.greeted { ("EHLO", "250") } else { ("the connection", "220") };
            if !reply.starts_with(wanted.as_bytes()) {
                let first = reply.split(|&byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
                return Course::Failed(format!("answers {what} with \"{}\"", String::from_utf8_lossy(first)));
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
