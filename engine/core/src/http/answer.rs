//! Responses of our own: errors, redirects, the maintenance page.

use super::write::{decimal, line, may_be_added};

/// A whole response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'a> {
    /// Its status, 200 to 599.
    pub status: u16,
    /// More fields than those that it has by itself; those that would break it are left out.
    pub fields: &'a [(&'a str, &'a [u8])],
    /// Of what kind the body is.
    pub content_type: &'a str,
    /// The body; empty: its status in words.
    pub body: &'a [u8],
}

impl<'a> Answer<'a> {
    /// Says the status in words.
    pub fn of(status: u16) -> Answer<'a> {
        Answer { status, fields: &[], content_type: "text/plain", body: b"" }
    }

    /// The same with these fields, e.g. `Location`.
    pub fn with(status: u16, fields: &'a [(&'a str, &'a [u8])]) -> Answer<'a> {
        Answer { fields, ..Answer::of(status) }
    }

    /// Writes it; `about` are the fields about the connection.
    pub(super) fn write(&self, head_only: bool, about: &[u8], out: &mut Vec<u8>) {
        let words = words(self.status);
        let text = [b"", words.as_bytes(), b"\n"].concat();
        let bare = matches!(self.status, 204 | 304);
        let body = if self.body.is_empty() { text.as_slice() } else { self.body };
        out.extend_from_slice(b"HTTP/1.1 ");
        decimal(u64::from(self.status), out);
        out.push(b' ');
        out.extend_from_slice(words.as_bytes());
        out.extend_from_slice(b"\r\n");
        for (name, value) in self.fields.iter().filter(|(name, value)| may_be_added(name, value)) {
            line(name, value, out);
        }
        if !bare {
            line("Content-Type", self.content_type.as_bytes(), out);
            out.extend_from_slice(b"Content-Length: ");
            decimal(body.len() as u64, out);
            out.extend_from_slice(b"\r\n");
        }
        // Nobody is to keep what is true only now.
        line("Cache-Control", b"no-store", out);
        out.extend_from_slice(about);
        out.extend_from_slice(b"\r\n");
        if !bare && !head_only {
            out.extend_from_slice(body);
        }
    }
}

/// What a status is called (RFC 9110 §15, RFC 6585).
fn words(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        410 => "Gone",
        413 => "Content Too Large",
        414 => "URI Too Long",
        421 => "Misdirected Request",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Refused",
    }
}
