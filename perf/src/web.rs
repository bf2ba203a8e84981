//! Requests as browsers make them and responses as web servers give them: their heads are written here, and what a balancer has to do with
//! them is looked for in each head that arrives.
//!
//! A request is a GET, so it has no body: the header of [`crate::message`] stands in its target, as hexadecimal digits. A response has it
//! at the start of its body, as every answer.

use std::fmt;
use std::net::IpAddr;

use crate::message::{HEADER_BYTES, Header, Kind};

/// The cookie by which a client comes back to its server, as HAProxy's manual and our own default call it.
pub const COOKIE: &str = "SERVERID";

/// The longest head that is written, with a cookie of 128 bytes.
pub const HEAD_BYTES: usize = 1024;

/// The longest head that is read.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Most fields of a head that is read.
const FIELDS_MAX: usize = 32;

/// Who is asked.
const HOST: &str = "www.example.org";

/// What a browser says behind the target of a request (Firefox 128).
const BROWSER: &str = concat!(
    " HTTP/1.1\r\n",
    "Host: www.example.org\r\n",
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n",
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n",
    "Accept-Language: en-US,en;q=0.5\r\n",
    "Accept-Encoding: gzip, deflate, br\r\n",
    "Referer: http://www.example.org/\r\n",
);

/// What a server says in front of the length of a response (Apache 2.4).
const SERVER: &str = concat!(
    "HTTP/1.1 200 OK\r\n",
    "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
    "Server: Apache/2.4\r\n",
    "Last-Modified: Sat, 05 Nov 1994 08:49:37 GMT\r\n",
    "ETag: \"2d-432a5e4a73a80\"\r\n",
    "Accept-Ranges: bytes\r\n",
    "Content-Type: text/html; charset=utf-8\r\n",
);

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Whether clients bring back the cookie that they were given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visitor {
    /// Never: each response has to set it.
    New,
    /// From the second request on: no response to those may set it again.
    Returning,
}

/// What a balancer has not done, or done though it must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// A response does not set the cookie, or does it twice, and the request had none.
    Cookie,
    /// A response sets the cookie that the request had.
    CookieAgain,
    /// A request reached the origin without one `X-Forwarded-For` that is an address.
    Forwarded,
    /// A request reached the origin with another `Host` than it was sent with.
    Host,
    /// A response has this status.
    Status(u16),
}

impl Lack {
    /// Those that an origin tells its client of, by their place.
    const AT_ORIGIN: [Lack; 2] = [Lack::Forwarded, Lack::Host];

    /// The tag of the answer to a request that lacks something.
    pub(crate) fn tag(self) -> u64 {
        Lack::AT_ORIGIN.iter().zip(1..).find(|(lack, _)| **lack == self).map_or(0, |(_, tag)| tag)
    }

    /// What an origin has told by this tag.
    pub(crate) fn told_by(tag: u64) -> Option<Lack> {
        Lack::AT_ORIGIN.get(usize::try_from(tag).ok()?.checked_sub(1)?).copied()
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lack::Cookie => write!(f, "a response did not set the cookie {COOKIE} once"),
            Lack::CookieAgain => write!(f, "a response set the cookie {COOKIE} again"),
            Lack::Forwarded => f.write_str("the origin got a request without the client's address in X-Forwarded-For"),
            Lack::Host => f.write_str("the origin got a request for another host"),
            Lack::Status(status) => write!(f, "a response has status {status}"),
        }
    }
}

/// The head of a request; where its kind says so, it is the last one of its connection. The origin learns that from whoever asks it.
pub(crate) fn request(request: &Header, cookie: Option<&str>) -> String {
    let is_last = request.kind == Kind::AnswerAndClose;
    let message = Header { kind: if is_last { Kind::Answer } else { request.kind }, ..*request }.encode();
    let mut head = String::with_capacity(HEAD_BYTES);
    head.push_str("GET /");
    for byte in message {
        head.push(char::from(DIGITS[usize::from(byte >> 4)]));
        head.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    head.push_str(BROWSER);
    if let Some(cookie) = cookie {
        head.extend(["Cookie: ", COOKIE, "=", cookie, "\r\n"]);
    }
    head.push_str(end(is_last));
    head
}

/// The head of a response with this answer.
pub(crate) fn response(answer: &Header, is_last: bool) -> String {
    let length = HEADER_BYTES + answer.filler_bytes as usize;
    format!("{SERVER}Content-Length: {length}\r\n{}", end(is_last))
}

fn end(is_last: bool) -> &'static str {
    if is_last { "Connection: close\r\n\r\n" } else { "\r\n" }
}

/// What a head announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// A request, which has no body.
    Request(Header),
    /// A response, with a body of so many bytes.
    Response(u64),
}

/// Why a head is not what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Lacks(Lack),
    Wrong,
}

/// Reads heads as they arrive, in whatever pieces.
#[derive(Debug, Default)]
pub(crate) struct HeadReader {
    /// What came of a head that is not whole.
    kept: Vec<u8>,
    /// The next response is to one that brought the cookie.
    pub(crate) brought_cookie: bool,
    /// Whoever sent the last request asks for the end of its connection.
    pub(crate) asks_for_end: bool,
    /// Values of the cookie are wanted.
    wants_cookies: bool,
    /// The last one that came.
    pub(crate) cookie: Option<Box<str>>,
}

impl HeadReader {
    /// Before the first head.
    pub(crate) fn new(wants_cookies: bool) -> HeadReader {
        HeadReader { wants_cookies, ..HeadReader::default() }
    }

    /// Takes a piece; where the head ends with it, how much of the piece that was.
    pub(crate) fn take(&mut self, piece: &[u8]) -> Result<Option<(usize, Head)>, Fault> {
        if self.kept.is_empty() {
            let read = self.read(piece)?;
            if read.is_none() {
                self.kept.extend_from_slice(piece);
            }
            return Ok(read);
        }
        let before = self.kept.len();
        let mut kept = std::mem::take(&mut self.kept);
        kept.extend_from_slice(piece);
        match self.read(&kept)? {
            Some((length, head)) => Ok(Some((length - before, head))),
            None if kept.len() <= HEAD_BYTES_MAX => {
                self.kept = kept;
                Ok(None)
            }
            None => Err(Fault::Wrong),
        }
    }

    fn read(&mut self, bytes: &[u8]) -> Result<Option<(usize, Head)>, Fault> {
        if bytes.starts_with(b"H") { self.read_response(bytes) } else { self.read_request(bytes) }
    }

    fn read_request(&mut self, bytes: &[u8]) -> Result<Option<(usize, Head)>, Fault> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut request = httparse::Request::new(&mut fields);
        let Some(length) = whole(request.parse(bytes))? else { return Ok(None) };
        let header = request.path.and_then(header_in).ok_or(Fault::Wrong)?;
        let (mut hosts, mut clients) = (0, 0);
        self.asks_for_end = false;
        for field in &*request.headers {
            match field.name.len() {
                4 if field.name.eq_ignore_ascii_case("host") => hosts += usize::from(field.value == HOST.as_bytes()),
                10 if field.name.eq_ignore_ascii_case("connection") => {
                    self.asks_for_end = field.value.eq_ignore_ascii_case(b"close");
                }
                15 if field.name.eq_ignore_ascii_case("x-forwarded-for") => clients += addresses(field.value),
                _ => {}
            }
        }
        match (hosts, clients) {
            (1, 1) => Ok(Some((length, Head::Request(header)))),
            (1, _) => Err(Fault::Lacks(Lack::Forwarded)),
            _ => Err(Fault::Lacks(Lack::Host)),
        }
    }

    fn read_response(&mut self, bytes: &[u8]) -> Result<Option<(usize, Head)>, Fault> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut response = httparse::Response::new(&mut fields);
        let Some(length) = whole(response.parse(bytes))? else { return Ok(None) };
        if let Some(status) = response.code.filter(|status| *status != 200) {
            return Err(Fault::Lacks(Lack::Status(status)));
        }
        let (mut told, mut cookies) = (None, 0);
        for field in &*response.headers {
            match field.name.len() {
                10 if field.name.eq_ignore_ascii_case("set-cookie") => {
                    let Some(value) = cookie_in(field.value) else { continue };
                    cookies += 1;
                    if self.wants_cookies {
                        self.cookie = Some(value.into());
                    }
                }
                14 if field.name.eq_ignore_ascii_case("content-length") => {
                    told = std::str::from_utf8(field.value).ok().and_then(|digits| digits.parse().ok());
                }
                _ => {}
            }
        }
        match (self.brought_cookie, cookies) {
            (true, 0) | (false, 1) => told.map(|told| Some((length, Head::Response(told)))).ok_or(Fault::Wrong),
            (true, _) => Err(Fault::Lacks(Lack::CookieAgain)),
            (false, _) => Err(Fault::Lacks(Lack::Cookie)),
        }
    }
}

/// The length of a head that is whole.
fn whole(parsed: Result<httparse::Status<usize>, httparse::Error>) -> Result<Option<usize>, Fault> {
    match parsed {
        Ok(httparse::Status::Complete(length)) => Ok(Some(length)),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(_) => Err(Fault::Wrong),
    }
}

/// How many addresses of clients stand there; of anything else, none.
fn addresses(value: &[u8]) -> usize {
    let text = std::str::from_utf8(value).unwrap_or_default();
    text.split(", ").map(|part| usize::from(part.parse::<IpAddr>().is_ok())).sum()
}

/// The value of our cookie, if it is what this sets.
fn cookie_in(value: &[u8]) -> Option<&str> {
    let pair = std::str::from_utf8(value).ok()?.split(';').next()?;
    pair.strip_prefix(COOKIE)?.strip_prefix('=')
}

/// The header in a target.
fn header_in(target: &str) -> Option<Header> {
    let digits = target.strip_prefix('/')?.as_bytes();
    let mut bytes = [0; HEADER_BYTES];
    if digits.len() != 2 * HEADER_BYTES {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Header::decode(&bytes)
}

fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: Header = Header { kind: Kind::Answer, tag: 7, filler_bytes: 0, answer_filler_bytes: 100 };

    /// What a balancer adds.
    fn with(head: &str, field: &str) -> String {
        head.replacen("\r\n\r\n", &format!("\r\n{field}\r\n\r\n"), 1)
    }

    fn read(reader: &mut HeadReader, head: &str) -> Result<Option<(usize, Head)>, Fault> {
        reader.take(head.as_bytes())
    }

    #[test]
    fn a_request_arrives_in_whatever_pieces_and_says_whether_it_is_the_last() {
        for kind in [Kind::Answer, Kind::AnswerAndClose] {
            let head = request(&Header { kind, ..MESSAGE }, Some("one"));
            assert!(head.len() < HEAD_BYTES && head.contains("\r\nCookie: SERVERID=one\r\n"), "{head}");
            let head = with(&head, "X-Forwarded-For: 192.0.2.1");
            for size in [1, 2, 40, 4096] {
                let mut reader = HeadReader::default();
                let pieces: Vec<&[u8]> = head.as_bytes().chunks(size).collect();
                let (last, before) = pieces.split_last().unwrap();
                before.iter().for_each(|piece| assert_eq!(reader.take(piece), Ok(None)));
                assert_eq!(reader.take(last), Ok(Some((last.len(), Head::Request(MESSAGE)))));
                assert_eq!(reader.asks_for_end, kind == Kind::AnswerAndClose);
            }
        }
    }

    #[test]
    fn a_request_has_the_clients_address_once_and_the_host_it_was_for() {
        let plain = request(&MESSAGE, None);
        for (fields, lack) in [
            ("X-Forwarded-For: 192.0.2.1", None),
            ("x-forwarded-for: 2001:db8::1", None),
            ("X-Other: 192.0.2.1", Some(Lack::Forwarded)),
            ("X-Forwarded-For: unknown", Some(Lack::Forwarded)),
            ("X-Forwarded-For: 192.0.2.1, 192.0.2.2", Some(Lack::Forwarded)),
            ("X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-For: 192.0.2.2", Some(Lack::Forwarded)),
            ("X-Forwarded-For: 192.0.2.1\r\nHost: www.example.org", Some(Lack::Host)),
        ] {
            let lacks = read(&mut HeadReader::default(), &with(&plain, fields)).err();
            assert_eq!(lacks, lack.map(Fault::Lacks), "{fields}");
        }
        let elsewhere = with(&plain.replace(HOST, "origins"), "X-Forwarded-For: 192.0.2.1");
        assert_eq!(read(&mut HeadReader::default(), &elsewhere), Err(Fault::Lacks(Lack::Host)));
        let longer = with(&plain, "X-Forwarded-For: 192.0.2.1").replacen(" HTTP", "0 HTTP", 1);
        assert_eq!(read(&mut HeadReader::default(), &longer), Err(Fault::Wrong));
    }

    #[test]
    fn a_response_sets_the_cookie_once_where_the_client_has_none() {
        let plain = response(&MESSAGE, true);
        assert!(plain.len() < HEAD_BYTES && plain.ends_with("\r\nConnection: close\r\n\r\n"), "{plain}");
        let set = with(&plain, "Set-Cookie: SERVERID=one; Path=/");
        let twice = with(&set, "set-cookie: SERVERID=two");
        let other = with(&plain, "Set-Cookie: XSERVERID=one");
        for (head, brought_cookie, lack) in [
            (&set, false, None),
            (&plain, true, None),
            (&other, true, None),
            (&plain, false, Some(Lack::Cookie)),
            (&other, false, Some(Lack::Cookie)),
            (&twice, false, Some(Lack::Cookie)),
            (&set, true, Some(Lack::CookieAgain)),
            (&set.replacen(" 200 ", " 503 ", 1), false, Some(Lack::Status(503))),
        ] {
            let mut reader = HeadReader { brought_cookie, wants_cookies: true, ..HeadReader::default() };
            let taken = read(&mut reader, head);
            match lack {
                None => assert_eq!(taken, Ok(Some((head.len(), Head::Response(HEADER_BYTES as u64)))), "{head}"),
                Some(lack) => assert_eq!(taken, Err(Fault::Lacks(lack)), "{head}"),
            }
            let kept = (lack.is_none() && !brought_cookie).then_some("one");
            assert!(lack.is_some() || reader.cookie.as_deref() == kept, "{reader:?}");
        }
        let unmeasured = set.replacen("Content-Length", "X-Length", 1);
        assert_eq!(read(&mut HeadReader::default(), &unmeasured), Err(Fault::Wrong));
    }

    #[test]
    fn a_head_without_end_is_no_head() {
        let mut reader = HeadReader::default();
        assert_eq!(read(&mut reader, "HTTP/1.1 200 OK\r\nX: "), Ok(None));
        assert_eq!(read(&mut reader, &"x".repeat(HEAD_BYTES_MAX)), Err(Fault::Wrong));
    }

    #[test]
    fn what_an_origin_tells_comes_back() {
        assert!(Lack::AT_ORIGIN.iter().all(|lack| Lack::told_by(lack.tag()) == Some(*lack)));
        assert_eq!((Lack::told_by(0), Lack::told_by(3), Lack::Cookie.tag()), (None, None, 0));
    }
}
