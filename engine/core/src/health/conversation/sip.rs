//! SIP: an OPTIONS request (RFC 3261 §11), and which response is the one to it.

use std::net::IpAddr;

use towpath_config::model::{CheckTransport, SipCheck};

use crate::random::SplitMix64;

use super::{Course, Parties, contains, ranges, shown};

/// Longest head of a message; one of a stream that is longer is no answer to OPTIONS.
const HEAD_BYTES_MAX: usize = 16_384;
/// Longest body that is passed over on a stream, for the message behind it.
const BODY_BYTES_MAX: usize = 65_536;
/// RFC 3261 §17.1.1.1: the round trip that is assumed, and the longest time between repeats.
const T1_MS: u64 = 500;
const T2_MS: u64 = 4_000;
/// What a branch begins with (RFC 3261 §8.1.1.7).
const COOKIE: &str = "z9hG4bK";

#[derive(Debug)]
pub(super) struct SipTalk {
    check: SipCheck,
    /// What makes it our transaction (RFC 3261 §17.1.3).
    branch: String,
    /// Bytes of a stream that are no whole message yet.
    received: Vec<u8>,
    /// The last response that was one.
    heard: String,
}

impl SipTalk {
    pub(super) fn begin(check: &SipCheck, parties: &Parties<'_>, send: &mut Vec<u8>) -> SipTalk {
        let mut random = SplitMix64::new(parties.seed);
        let mut token = || format!("{:016x}", random.next_u64());
        let (branch, tag, call) = (format!("{COOKIE}{}", token()), token(), token());
        let (from, own) = (parties.from, in_uri(parties.from.ip()));
        let (name, parameter) = match check.transport {
            CheckTransport::Tcp => ("TCP", ";transport=tcp"),
            CheckTransport::Tls => ("TLS", ";transport=tls"),
            CheckTransport::Udp => ("UDP", ""),
        };
        let asked = match &check.host {
            Some(host) => host.parse().map_or_else(|_| host.clone(), in_uri),
            None => parties.to.to_string(),
        };
        // With a domain the transport is the server's to know; an address alone says nothing of it (RFC 3263 §4.1).
        let of_address = if check.host.is_none() { parameter } else { "" };
        let request = format!(
            "OPTIONS sip:{asked}{of_address} SIP/2.0\r\n\
             Via: SIP/2.0/{name} {from};branch={branch};rport\r\n\
             Max-Forwards: 70\r\n\
             From: <sip:towpath@{own}>;tag={tag}\r\n\
             To: <sip:{asked}>\r\n\
             Call-ID: {call}@{own}\r\n\
             CSeq: 1 OPTIONS\r\n\
             Contact: <sip:towpath@{from}{parameter}>\r\n\
             Accept: application/sdp\r\n\
             User-Agent: towpath-check\r\n\
             Content-Length: 0\r\n\r\n"
        );
        send.extend_from_slice(request.as_bytes());
        SipTalk { check: check.clone(), branch, received: Vec::new(), heard: String::new() }
    }

    /// RFC 3261 §17.1.2.2: a request over UDP is repeated, at first after T1, then after twice as long each time, up to T2.
    pub(super) fn repeat_after_ms(&self, times: u32) -> Option<u64> {
        let doubled = T1_MS << times.min(8);
        (self.check.transport == CheckTransport::Udp).then(|| doubled.min(T2_MS))
    }

    pub(super) fn received(&mut self, bytes: &[u8]) -> Course {
        if self.check.transport == CheckTransport::Udp {
            // A datagram is a message whole, whatever its length says (RFC 3261 §18.3). Anybody can send one: what is none of ours is passed over, and
            // so are the keep-alives of RFC 5626 §4.4.
            return match Message::read(bytes) {
                Read::Message(message, _) => self.judge(&message),
                Read::Foreign | Read::Incomplete => Course::More,
            };
        }
        self.received.extend_from_slice(bytes);
        loop {
            let received = std::mem::take(&mut self.received);
            match Message::read(&received) {
                Read::Message(_, length) if received.len() < length => {
                    self.received = received;
                    return Course::More;
                }
                Read::Message(message, length) => match self.judge(&message) {
                    Course::More => self.received = received[length..].to_vec(),
                    course => return course,
                },
                Read::Incomplete if received.len() >= HEAD_BYTES_MAX => {
                    return Course::Failed(format!("a SIP message with a head longer than {HEAD_BYTES_MAX} bytes"));
                }
                Read::Incomplete => {
                    self.received = received;
                    return Course::More;
                }
                Read::Foreign => return Course::Failed("something else than SIP".to_owned()),
            }
        }
    }

    pub(super) fn ended(&self) -> Course {
        Course::Failed("closed the connection without a response".to_owned())
    }

    pub(super) fn heard(&mut self) -> String {
        std::mem::take(&mut self.heard)
    }

    /// A request of the server's own, a response to somebody else and a provisional one are passed over (RFC 3261 §17.1.3, §13.2.2.1).
    fn judge(&mut self, message: &Message<'_>) -> Course {
        let Some((status, reason)) = message.status else { return Course::More };
        if message.branch != Some(self.branch.as_str()) || message.method != Some("OPTIONS") {
            return Course::More;
        }
        self.heard = format!("{status} {}", shown(reason.as_bytes())).trim_end().to_owned();
        if status < 200 {
            return Course::More;
        }
        if !self.check.statuses.iter().any(|&(low, high)| (low..=high).contains(&status)) {
            return Course::Failed(format!("status {}, expected {}", self.heard, ranges(&self.check.statuses)));
        }
        match &self.check.expect {
            Some(expect) if !contains(message.bytes, expect) => {
                Course::Failed(format!("\"{expect}\" is not in the response"))
            }
            _ => Course::Passed,
        }
    }
}

/// An address as URIs have it.
fn in_uri(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

/// What of a message matters to who has sent a request.
struct Message<'m> {
    /// All that came of it.
    bytes: &'m [u8],
    /// `None` for a request.
    status: Option<(u16, &'m str)>,
    /// Of the first `Via`.
    branch: Option<&'m str>,
    /// Of `CSeq`.
    method: Option<&'m str>,
}

enum Read<'m> {
    /// It is no SIP.
    Foreign,
    /// The head has not ended yet.
    Incomplete,
    /// A head, and how long head and body are.
    Message(Message<'m>, usize),
}

impl<'m> Message<'m> {
    /// Reads the first message; of a stream asked again when there are more bytes.
    fn read(bytes: &'m [u8]) -> Read<'m> {
        // Empty lines in front are those of keep-alives (RFC 3261 §7.5, RFC 5626 §3.5.1).
        let start = bytes.iter().position(|byte| !b"\r\n".contains(byte)).unwrap_or(bytes.len());
        let message = &bytes[start..];
        let within = &message[..message.len().min(HEAD_BYTES_MAX)];
        let is_text = |byte: &u8| matches!(byte, b'\t' | b'\r' | b'\n' | b' '..=b'~' | 0x80..);
        let end = within.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4);
        let head = &within[..end.unwrap_or(within.len())];
        if !head.iter().all(is_text) {
            return Read::Foreign;
        }
        let first = head.iter().position(|&byte| byte == b'\n').map(|at| head[..at].trim_ascii_end());
        if first.is_some_and(|first| !is_first_line(first)) {
            return Read::Foreign;
        }
        let (Some(end), Ok(head)) = (end, std::str::from_utf8(head)) else {
            return if end.is_some() { Read::Foreign } else { Read::Incomplete };
        };
        let mut lines = head.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let status = status(first);
        if status.is_none() && !first.trim_ascii_end().to_ascii_uppercase().ends_with(" SIP/2.0") {
            return Read::Foreign;
        }
        let mut read = Message { bytes: message, status, branch: None, method: None };
        let mut body_bytes = 0;
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            // Compact forms: RFC 3261 §7.3.3.
            match name.trim_ascii_end().to_ascii_lowercase().as_str() {
                "via" | "v" if read.branch.is_none() => read.branch = Some(branch(value).unwrap_or_default()),
                "cseq" => read.method = value.split_ascii_whitespace().nth(1),
                "content-length" | "l" => match value.trim_ascii().parse() {
                    Ok(length) if length <= BODY_BYTES_MAX => body_bytes = length,
                    _ => return Read::Foreign,
                },
                _ => {}
            }
        }
        read.bytes = &message[..message.len().min(end + body_bytes)];
        Read::Message(read, start + end + body_bytes)
    }
}

/// `SIP/2.0 200 OK`, or `METHOD uri SIP/2.0` (RFC 3261 §7.1, §7.2).
fn is_first_line(line: &[u8]) -> bool {
    line.get(..8).is_some_and(|start| start.eq_ignore_ascii_case(b"SIP/2.0 "))
        || line.len().checked_sub(8).is_some_and(|at| line[at..].eq_ignore_ascii_case(b" SIP/2.0"))
}

fn status(line: &str) -> Option<(u16, &str)> {
    let mut words = line.trim_ascii_end().splitn(3, ' ');
    words.next().filter(|version| version.eq_ignore_ascii_case("SIP/2.0"))?;
    let code = words.next()?.parse().ok().filter(|code| (100..=699).contains(code))?;
    Some((code, words.next().unwrap_or_default()))
}

/// That of the first of the hops in a `Via`.
fn branch(via: &str) -> Option<&str> {
    let top = via.split(',').next()?;
    top.split(';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim_ascii().eq_ignore_ascii_case("branch").then(|| value.trim_ascii())
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Conversation, Secrets};
    use super::*;
    use towpath_config::model::CheckKind;

    use crate::http::ServerEnd;

    const FROM: &str = "192.0.2.1:40000";
    const TO: &str = "192.0.2.31:5061";

    static NO_SECRETS: Secrets = Secrets { secret: Vec::new(), password: Vec::new() };

    fn parties(from: &str, to: &str) -> Parties<'static> {
        let socket = |text: &str| text.parse().expect("an address with port");
        Parties { from: socket(from), to: socket(to), seed: 7, secrets: &NO_SECRETS }
    }

    fn sip(transport: CheckTransport) -> SipCheck {
        SipCheck { transport, tls: None, host: None, statuses: vec![(200, 399)], expect: None }
    }

    fn begin(check: &SipCheck, parties: &Parties<'_>) -> (Conversation, String) {
        let mut send = Vec::new();
        let (conversation, course) = Conversation::begin(&CheckKind::Sip(check.clone()), parties, &mut send);
        assert_eq!(course, Course::More);
        (conversation, String::from_utf8(send).expect("text"))
    }

    /// A response to `request`, as a server makes it from its headers (RFC 3261 §8.2.6.2).
    fn response(request: &str, status: &str) -> String {
        let kept = |line: &&str| ["Via", "From", "To", "Call-ID", "CSeq"].iter().any(|name| line.starts_with(name));
        let kept: Vec<&str> = request.lines().filter(kept).collect();
        format!("SIP/2.0 {status}\r\n{}\r\nAllow: INVITE, OPTIONS\r\nContent-Length: 0\r\n\r\n", kept.join("\r\n"))
    }

    #[test]
    fn the_request_has_all_that_a_server_needs() {
        let (_, tcp) = begin(&sip(CheckTransport::Tcp), &parties(FROM, TO));
        let lines: Vec<&str> = tcp.split("\r\n").collect();
        assert_eq!(lines[0], "OPTIONS sip:192.0.2.31:5061;transport=tcp SIP/2.0");
        assert!(lines[1].starts_with("Via: SIP/2.0/TCP 192.0.2.1:40000;branch=z9hG4bK"), "{}", lines[1]);
        assert!(lines[1].ends_with(";rport"));
        assert_eq!(lines[2], "Max-Forwards: 70");
        assert!(lines[3].starts_with("From: <sip:towpath@192.0.2.1>;tag="));
        assert_eq!((lines[4], lines[6]), ("To: <sip:192.0.2.31:5061>", "CSeq: 1 OPTIONS"));
        assert!(tcp.ends_with("\r\n\r\n"));
        let named = SipCheck { host: Some("example.org".into()), ..sip(CheckTransport::Tls) };
        let (_, tls) = begin(&named, &parties("[2001:db8::1]:40000", "[2001:db8::31]:5061"));
        assert!(tls.starts_with("OPTIONS sip:example.org SIP/2.0\r\nVia: SIP/2.0/TLS [2001:db8::1]:40000;"), "{tls}");
        assert!(tls.contains("From: <sip:towpath@[2001:db8::1]>;tag="));
        let named = SipCheck { host: Some("2001:db8::5".into()), ..sip(CheckTransport::Udp) };
        let (_, udp) = begin(&named, &parties(FROM, TO));
        assert!(udp.starts_with("OPTIONS sip:[2001:db8::5] SIP/2.0\r\nVia: SIP/2.0/UDP "), "{udp}");
        let other = Parties { seed: 8, ..parties(FROM, TO) };
        assert_ne!(begin(&sip(CheckTransport::Tcp), &other).1, tcp, "each check is a transaction of its own");
    }

    #[test]
    fn a_stream_is_read_in_pieces_of_any_length() {
        let check = SipCheck { expect: Some("INVITE".into()), ..sip(CheckTransport::Tcp) };
        let wanted = [
            (vec!["200 OK"], Ok("200 OK")),
            (vec!["100 Trying", "200 OK"], Ok("200 OK")),
            (vec!["302 Moved Temporarily"], Ok("302 Moved Temporarily")),
            (vec!["503 Service Unavailable"], Err("status 503 Service Unavailable, expected 200-399")),
            (vec!["486"], Err("status 486, expected 200-399")),
        ];
        for (statuses, wanted) in &wanted {
            for at_a_time in [1, 3, 1000] {
                let (mut conversation, request) = begin(&check, &parties(FROM, TO));
                // A keep-alive, a request of the server's own with a body, and a response to another request come first.
                let mut stream =
                    "\r\n\r\nOPTIONS sip:towpath@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/TCP x;branch=z9hG4bK1\r\n\
                     CSeq: 1 OPTIONS\r\nl: 4\r\n\r\nbody"
                        .to_owned();
                stream += &response(&request, "500 Not yours").replace("branch=z9hG4bK", "branch=z9hG4bKx");
                stream += &response(&request, "500 Not yours").replace("CSeq: 1 OPTIONS", "CSeq: 1 INVITE");
                stream.extend(statuses.iter().map(|status| response(&request, status)));
                let mut course = Course::More;
                let mut pieces = stream.as_bytes().chunks(at_a_time);
                while let (Course::More, Some(piece)) = (&course, pieces.next()) {
                    course = conversation.received(piece, &mut Vec::new());
                }
                match wanted {
                    Ok(heard) => {
                        assert_eq!(course, Course::Passed, "{statuses:?}, {at_a_time} at a time");
                        assert_eq!(conversation.heard(), *heard);
                    }
                    Err(reason) => assert_eq!(course, Course::Failed((*reason).to_owned()), "{at_a_time} at a time"),
                }
            }
        }
    }

    #[test]
    fn a_body_is_waited_for() {
        let check = SipCheck { expect: Some("m=audio".into()), ..sip(CheckTransport::Tcp) };
        let (mut conversation, request) = begin(&check, &parties(FROM, TO));
        let body = "v=0\r\nm=audio 49170 RTP/AVP 0\r\n";
        let head = response(&request, "200 OK").replace("Length: 0", &format!("Length: {}", body.len()));
        let stream = format!("{head}{body}");
        for byte in &stream.as_bytes()[..stream.len() - 1] {
            assert_eq!(conversation.received(&[*byte], &mut Vec::new()), Course::More);
        }
        assert_eq!(conversation.received(b"\n", &mut Vec::new()), Course::Passed);
    }

    #[test]
    fn what_is_no_answer_is_told() {
        let tcp = sip(CheckTransport::Tcp);
        let told = |bytes: &[u8]| begin(&tcp, &parties(FROM, TO)).0.received(bytes, &mut Vec::new());
        let foreign = Course::Failed("something else than SIP".to_owned());
        assert_eq!(told(b"HTTP/1.1 400 Bad Request\r\n"), foreign);
        assert_eq!(told(b"\x16\x03\x01\x00\x05"), foreign);
        assert_eq!(told(b"SIP/2.0 200 OK\r\nContent-Length: 99999999\r\n\r\n"), foreign);
        assert_eq!(told(b"SIP/2.0 OK\r\n\r\n"), foreign);
        assert_eq!(told(b"SIP/2.0 200 OK\r\nVia: SIP/2.0/TCP"), Course::More);
        let endless = [b"SIP/2.0 200 OK\r\nX: ".as_slice(), &[b'a'; HEAD_BYTES_MAX]].concat();
        assert!(matches!(told(&endless), Course::Failed(reason) if reason.contains("longer than 16384")));
        let (mut conversation, request) = begin(&tcp, &parties(FROM, TO));
        assert_eq!(
            conversation.ended(ServerEnd::Orderly),
            Course::Failed("closed the connection without a response".to_owned())
        );
        let missing = SipCheck { expect: Some("kamailio".into()), ..tcp };
        let (mut picky, _) = begin(&missing, &parties(FROM, TO));
        assert_eq!(
            picky.received(response(&request, "200 OK").as_bytes(), &mut Vec::new()),
            Course::Failed("\"kamailio\" is not in the response".to_owned())
        );
    }

    #[test]
    fn a_datagram_is_a_message_and_the_request_is_repeated_as_the_standard_says() {
        let udp = sip(CheckTransport::Udp);
        let (mut conversation, request) = begin(&udp, &parties(FROM, TO));
        let repeats: Vec<_> = (0..5).map(|times| conversation.repeat_after_ms(times)).collect();
        assert_eq!(repeats, [500, 1000, 2000, 4000, 4000].map(Some));
        assert_eq!(conversation.repeat_after_ms(200), Some(4000));
        assert_eq!(begin(&sip(CheckTransport::Tcp), &parties(FROM, TO)).0.repeat_after_ms(0), None);
        let mut told = |bytes: &str| conversation.received(bytes.as_bytes(), &mut Vec::new());
        let whole = response(&request, "200 OK");
        assert_eq!(told(&whole.replace("z9hG4bK", "z9hG4bKx")), Course::More, "of another transaction");
        for other in [&whole[..whole.len() - 10], "pong", "pong\r\n\r\n", "\r\n\r\n", ""] {
            assert_eq!(told(other), Course::More, "anybody can send {other:?}");
        }
        // Its length may lie: nothing is behind it.
        assert_eq!(told(&whole.replace("Content-Length: 0", "Content-Length: 500")), Course::Passed);
    }
}
