//! A request of HTTP/2 as one of HTTP/1.1: read as strictly as RFC 9113 §8.2 and §8.3 want it, then read again as every other request is.

use super::hpack::ENTRY_BYTES;
use super::refusal::BadStream;
use crate::http::is_token;

/// Fields of a request as they come out of a block.
#[derive(Debug)]
pub(super) struct RequestFields {
    list: List,
    method: Option<Vec<u8>>,
    scheme: Option<Vec<u8>>,
    authority: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    host: Option<Vec<u8>>,
    length: Option<u64>,
    /// Crumbs, joined (RFC 9113 §8.2.3).
    cookie: Vec<u8>,
}

/// Fields behind a body as they come out of a block.
#[derive(Debug)]
pub(super) struct TrailerFields {
    list: List,
}

/// What both have.
#[derive(Debug)]
struct List {
    /// As RFC 9113 §6.5.2 counts them.
    bytes: usize,
    bytes_max: usize,
    /// Lines of HTTP/1.1.
    lines: Vec<u8>,
    fault: Option<BadStream>,
    /// A field has come, behind which no pseudo-header may stand.
    has_fields: bool,
}

/// A request as HTTP/1.1 writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TranslatedRequest {
    /// Its head, with the framing of its body: as long as it says, in chunks, or none.
    pub head: Vec<u8>,
    /// How long its body is, if it says.
    pub length: Option<u64>,
    /// Whether its response has no body.
    pub is_head: bool,
}

/// How the body of a request is written in HTTP/1.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestBody {
    chunked: bool,
}

impl TranslatedRequest {
    /// How its body is written behind its head; there is none if its fields were the `last` that came.
    pub fn body(&self, last: bool) -> RequestBody {
        RequestBody { chunked: self.length.is_none() && !last }
    }
}

impl RequestBody {
    /// Writes bytes of it, with which it is over if they are the `last`.
    pub fn write(self, data: &[u8], last: bool, out: &mut Vec<u8>) {
        if !self.chunked {
            return out.extend_from_slice(data);
        }
        if !data.is_empty() {
            out.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
            out.extend_from_slice(data);
            out.extend_from_slice(b"\r\n");
        }
        if last {
            out.extend_from_slice(b"0\r\n\r\n");
        }
    }

    /// Writes its end with these lines, for which only chunks have a place.
    pub fn write_trailers(self, lines: &[u8], out: &mut Vec<u8>) {
        if self.chunked {
            for part in [b"0\r\n", lines, b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
    }
}

impl List {
    fn new(bytes_max: usize) -> List {
        List { bytes: 0, bytes_max, lines: Vec::new(), fault: None, has_fields: false }
    }

    /// Counts a field; says whether it is still to be kept.
    fn counts(&mut self, name: &[u8], value: &[u8]) -> bool {
        self.bytes = self.bytes.saturating_add(name.len() + value.len() + ENTRY_BYTES);
        self.bytes <= self.bytes_max && self.fault.is_none()
    }

    fn fail(&mut self, reason: BadStream) {
        self.fault.get_or_insert(reason);
    }

    /// Looks at a field that is no pseudo-header.
    fn check(&mut self, name: &[u8], value: &[u8]) -> Result<(), BadStream> {
        self.has_fields = true;
        if !is_token(name) || name.iter().any(u8::is_ascii_uppercase) {
            return Err(BadStream::FieldName);
        }
        let is_of_connection =
            matches!(name, b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade");
        if is_of_connection || (name == b"te" && !value.eq_ignore_ascii_case(b"trailers")) {
            return Err(BadStream::ConnectionField);
        }
        if !is_value(value) {
            return Err(BadStream::FieldValue);
        }
        Ok(())
    }

    fn line(&mut self, name: &[u8], value: &[u8]) {
        self.lines.extend_from_slice(name);
        self.lines.extend_from_slice(b": ");
        self.lines.extend_from_slice(value);
        self.lines.extend_from_slice(b"\r\n");
    }
}

impl RequestFields {
    pub(super) fn new(bytes_max: u32) -> RequestFields {
        RequestFields {
            list: List::new(bytes_max as usize),
            method: None,
            scheme: None,
            authority: None,
            path: None,
            host: None,
            length: None,
            cookie: Vec::new(),
        }
    }

    pub(super) fn take(&mut self, name: &[u8], value: &[u8]) {
        if !self.list.counts(name, value) {
            return;
        }
        let taken = match name.strip_prefix(b":") {
            Some(pseudo) => self.take_pseudo(pseudo, value),
            None => self.take_field(name, value),
        };
        if let Err(reason) = taken {
            self.list.fail(reason);
        }
    }

    fn take_pseudo(&mut self, name: &[u8], value: &[u8]) -> Result<(), BadStream> {
        let place = match name {
            b"method" => &mut self.method,
            b"scheme" => &mut self.scheme,
            b"authority" => &mut self.authority,
            b"path" => &mut self.path,
            _ => return Err(BadStream::PseudoHeader),
        };
        if self.list.has_fields || place.is_some() || value.is_empty() || !value.iter().all(u8::is_ascii_graphic) {
            // What servers read in many ways is not passed on as something else.
            return Err(if name == b"authority" { BadStream::Authority } else { BadStream::PseudoHeader });
        }
        *place = Some(value.to_vec());
        Ok(())
    }

    fn take_field(&mut self, name: &[u8], value: &[u8]) -> Result<(), BadStream> {
        self.list.check(name, value)?;
        match name {
            b"host" if self.host.replace(value.to_vec()).is_some() => return Err(BadStream::Authority),
            b"content-length" => {
                let length = decimal(value).filter(|_| self.length.is_none()).ok_or(BadStream::Length)?;
                self.length = Some(length);
            }
            b"cookie" => {
                if !self.cookie.is_empty() {
                    self.cookie.extend_from_slice(b"; ");
                }
                self.cookie.extend_from_slice(value);
            }
            // Of this hop, as HTTP/1.1 has it; and what asks HTTP/1.1 for HTTP/2.
            b"host" | b"te" | b"http2-settings" => {}
            _ => self.list.line(name, value),
        }
        Ok(())
    }

    /// The request, whose body is over with its fields if they are the `last` that comes.
    pub(super) fn finish(self, last: bool) -> Result<TranslatedRequest, BadStream> {
        let RequestFields { list, method, scheme, authority, path, host, length, cookie } = self;
        if list.bytes > list.bytes_max {
            return Err(BadStream::ListTooLong);
        }
        if let Some(reason) = list.fault {
            return Err(reason);
        }
        let method = method.filter(|method| is_token(method)).ok_or(BadStream::PseudoHeader)?;
        // RFC 9113 §8.5: whoever asks to be connected names a host only. He is told by what reads requests that this is no way to others.
        let target = match (&*method, path, scheme) {
            (b"CONNECT", None, None) => authority.clone().ok_or(BadStream::PseudoHeader)?,
            (b"CONNECT", ..) => return Err(BadStream::PseudoHeader),
            (method, Some(path), Some(scheme)) => {
                let is_path = path.starts_with(b"/") || (path == b"*" && method == b"OPTIONS");
                let is_http = scheme.eq_ignore_ascii_case(b"https") || scheme.eq_ignore_ascii_case(b"http");
                if !is_path || !is_http {
                    return Err(BadStream::PseudoHeader);
                }
                path
            }
            _ => return Err(BadStream::PseudoHeader),
        };
        let host = match (authority, host) {
            (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(&host) => {
                return Err(BadStream::Authority);
            }
            (authority, host) => authority.or(host),
        };
        if last && length.is_some_and(|length| length > 0) {
            return Err(BadStream::Length);
        }
        let mut head = Vec::with_capacity(list.lines.len() + cookie.len() + target.len() + 128);
        for part in [&*method, b" ", &target, b" HTTP/1.1\r\n"] {
            head.extend_from_slice(part);
        }
        if let Some(host) = &host {
            line(b"Host", host, &mut head);
        }
        head.extend_from_slice(&list.lines);
        if !cookie.is_empty() {
            line(b"cookie", &cookie, &mut head);
        }
        match length {
            Some(length) => line(b"Content-Length", length.to_string().as_bytes(), &mut head),
            None if last => {}
            None => line(b"Transfer-Encoding", b"chunked", &mut head),
        }
        head.extend_from_slice(b"\r\n");
        Ok(TranslatedRequest { head, length, is_head: method == b"HEAD" })
    }
}

impl TrailerFields {
    pub(super) fn new(bytes_max: usize) -> TrailerFields {
        TrailerFields { list: List::new(bytes_max) }
    }

    pub(super) fn take(&mut self, name: &[u8], value: &[u8]) {
        if !self.list.counts(name, value) {
            return;
        }
        match self.list.check(name, value) {
            Ok(()) => self.list.line(name, value),
            Err(reason) => self.list.fail(reason),
        }
    }

    /// Lines as HTTP/1.1 has them behind the last chunk, without the empty one.
    pub(super) fn finish(self) -> Result<Vec<u8>, BadStream> {
        let is_short = self.list.bytes <= self.list.bytes_max;
        if is_short && self.list.fault.is_none() { Ok(self.list.lines) } else { Err(BadStream::Trailer) }
    }
}

fn line(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    for part in [name, b": ", value, b"\r\n"] {
        out.extend_from_slice(part);
    }
}

/// RFC 9113 §8.2.1: no control bytes, and no space at either end.
fn is_value(value: &[u8]) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    crate::http::is_value(value) && !is_space(value.first()) && !is_space(value.last())
}

/// Digits, nothing else, of a number that fits into 63 bits.
fn decimal(digits: &[u8]) -> Option<u64> {
    let is_number = !digits.is_empty() && digits.len() <= 19 && digits.iter().all(u8::is_ascii_digit);
    let number: u64 = std::str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()?;
    (number <= i64::MAX as u64).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: [(&str, &str); 4] =
        [(":method", "GET"), (":scheme", "https"), (":path", "/a"), (":authority", "a.test")];

    fn translate(fields: &[(&str, &str)], last: bool) -> Result<String, BadStream> {
        let mut request = RequestFields::new(4096);
        fields.iter().for_each(|(name, value)| request.take(name.as_bytes(), value.as_bytes()));
        request.finish(last).map(|request| String::from_utf8(request.head).expect("text"))
    }

    fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        [&GET, more].concat()
    }

    #[test]
    fn requests_become_those_of_http_1() {
        for (more, last, lines) in [
            (&[][..], true, ""),
            (&[], false, "Transfer-Encoding: chunked\r\n"),
            (&[("content-length", "5")], false, "Content-Length: 5\r\n"),
            (&[("content-length", "0")], true, "Content-Length: 0\r\n"),
            (&[("cookie", "a=1"), ("x", ""), ("cookie", "b=2")], true, "x: \r\ncookie: a=1; b=2\r\n"),
            (&[("te", "trailers"), ("host", "A.test"), ("accept", "*/*")], true, "accept: */*\r\n"),
        ] {
            let whole = format!("GET /a HTTP/1.1\r\nHost: a.test\r\n{lines}\r\n");
            assert_eq!(translate(&with(more), last), Ok(whole), "{more:?}");
        }
        let only_host = [(":method", "GET"), (":scheme", "https"), (":path", "/"), ("host", "b.test")];
        assert_eq!(translate(&only_host, true).as_deref(), Ok("GET / HTTP/1.1\r\nHost: b.test\r\n\r\n"));
        let all = [(":method", "OPTIONS"), (":scheme", "https"), (":path", "*"), (":authority", "a.test")];
        assert_eq!(translate(&all, true).as_deref(), Ok("OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n"));
        let connect = [(":method", "CONNECT"), (":authority", "a.test:1")];
        assert_eq!(
            translate(&connect, true).as_deref(),
            Ok("CONNECT a.test:1 HTTP/1.1\r\nHost: a.test:1\r\n\r\n"),
            "refused where requests are read"
        );
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for (fields, reason) in [
            (with(&[("X-Upper", "1")]), BadStream::FieldName),
            (with(&[("", "1")]), BadStream::FieldName),
            (with(&[("a b", "1")]), BadStream::FieldName),
            (with(&[("a:", "1")]), BadStream::FieldName),
            (with(&[("a\r\nb", "1")]), BadStream::FieldName),
            (with(&[("x", "1\r\nhost: b")]), BadStream::FieldValue),
            (with(&[("x", "a\0")]), BadStream::FieldValue),
            (with(&[("x", " a")]), BadStream::FieldValue),
            (with(&[("x", "a\t")]), BadStream::FieldValue),
            (with(&[("connection", "close")]), BadStream::ConnectionField),
            (with(&[("transfer-encoding", "chunked")]), BadStream::ConnectionField),
            (with(&[("upgrade", "websocket")]), BadStream::ConnectionField),
            (with(&[("keep-alive", "1")]), BadStream::ConnectionField),
            (with(&[("proxy-connection", "close")]), BadStream::ConnectionField),
            (with(&[("te", "gzip")]), BadStream::ConnectionField),
            (with(&[("x", "1"), (":path", "/b")]), BadStream::PseudoHeader),
            (with(&[(":path", "/b")]), BadStream::PseudoHeader),
            (with(&[(":status", "200")]), BadStream::PseudoHeader),
            (with(&[(":protocol", "websocket")]), BadStream::PseudoHeader),
            (with(&[("host", "b.test")]), BadStream::Authority),
            (with(&[("host", "a.test"), ("host", "a.test")]), BadStream::Authority),
            (with(&[("content-length", "5"), ("content-length", "5")]), BadStream::Length),
            (with(&[("content-length", "+5")]), BadStream::Length),
            (with(&[("content-length", "5, 5")]), BadStream::Length),
            (with(&[("content-length", "5")]), BadStream::Length),
            (GET[..3].iter().copied().chain([(":authority", "")]).collect(), BadStream::Authority),
            (GET[1..].to_vec(), BadStream::PseudoHeader),
            (vec![GET[0], GET[2], GET[3]], BadStream::PseudoHeader),
            (vec![GET[0], GET[1], GET[3]], BadStream::PseudoHeader),
            (vec![GET[0], ("x", "1"), GET[1], GET[2]], BadStream::PseudoHeader),
            (vec![(":method", "GET /b HTTP/1.1\r\nx:"), GET[1], GET[2]], BadStream::PseudoHeader),
            (vec![GET[0], GET[1], (":path", "/a b")], BadStream::PseudoHeader),
            (vec![GET[0], GET[1], (":path", "/\r\nx: 1")], BadStream::PseudoHeader),
            (vec![GET[0], GET[1], (":path", "")], BadStream::PseudoHeader),
            (vec![GET[0], GET[1], (":path", "https://b.test/")], BadStream::PseudoHeader),
            (vec![GET[0], GET[1], (":path", "*")], BadStream::PseudoHeader),
            (vec![GET[0], (":scheme", "ftp"), GET[2]], BadStream::PseudoHeader),
            (vec![(":method", "CONNECT"), GET[1], GET[2], GET[3]], BadStream::PseudoHeader),
        ] {
            assert_eq!(translate(&fields, true), Err(reason), "{fields:?}");
        }
        let long = "x".repeat(3_900);
        assert_eq!(translate(&with(&[("x", &long)]), true), Err(BadStream::ListTooLong));
    }

    #[test]
    fn trailers_have_no_pseudo_headers_and_an_end() {
        let read = |fields: &[(&str, &str)]| {
            let mut trailers = TrailerFields::new(200);
            fields.iter().for_each(|(name, value)| trailers.take(name.as_bytes(), value.as_bytes()));
            trailers.finish()
        };
        assert_eq!(read(&[("x-sum", "1"), ("b", "2")]), Ok(b"x-sum: 1\r\nb: 2\r\n".to_vec()));
        for fields in [
            &[(":path", "/")][..],
            &[("X", "1")],
            &[("x", "\n")],
            &[("connection", "close")],
            &[("x", &*"y".repeat(200))],
        ] {
            assert_eq!(read(fields), Err(BadStream::Trailer), "{fields:?}");
        }
    }
}
