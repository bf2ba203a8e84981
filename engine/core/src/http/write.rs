//! Heads written anew: what is passed on is what was understood, in one way to read it.

use std::borrow::Cow;

use super::fields::{Field, Known, is_token, is_told_by_proxies, is_value};
use super::head::{RequestHead, ResponseHead, is_authority};

/// A change of the fields of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit<'a> {
    /// One field more.
    Add {
        /// Its name.
        name: &'a str,
        /// Its value.
        value: Cow<'a, [u8]>,
    },
    /// Those of this name are left out.
    Remove {
        /// The name, whatever its case.
        name: &'a str,
    },
    /// One instead of those of this name, or where there is none.
    Replace {
        /// The name, whatever its case.
        name: &'a str,
        /// The value.
        value: Cow<'a, [u8]>,
    },
}

/// What is changed of a head on its way. What would break the head is left out, so that no edit can smuggle anything: a name or value, a
/// target or host with bytes that these do not have, and fields about the connection or the framing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits<'a> {
    /// Another path and query; only of requests.
    pub target: Option<Cow<'a, str>>,
    /// Another host; only of requests.
    pub host: Option<Cow<'a, str>>,
    /// Whoever sent it is no proxy that is trusted: what proxies tell of clients is left out, but for what is added here.
    pub untrusted: bool,
    /// Removals and replacements act on the fields that came; what is added is added behind them, in order.
    pub fields: Vec<Edit<'a>>,
}

/// How the body of a message is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Chunked,
    /// Also where there is no body, but a length to tell.
    Length(u64),
    /// There is no body, or it ends with the connection.
    Untold,
}

/// What a head says about its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    Close,
    /// To a client of HTTP/1.0.
    KeepAlive,
    /// Nothing: it is kept.
    Nothing,
    Upgrade,
}

/// The request, to the real server.
pub(super) fn request(head: &RequestHead, edits: &Edits<'_>, frame: Frame, out: &mut Vec<u8>) {
    let target = edits.target.as_deref().filter(|target| is_target(target)).unwrap_or(head.target());
    let host = edits.host.as_deref().filter(|host| is_authority(host.as_bytes())).or(head.host());
    out.reserve(head.bytes.len() + 256);
    out.extend_from_slice(head.method().as_bytes());
    out.push(b' ');
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    // RFC 9110 §7.2: a request of HTTP/1.1 has one, if only an empty one.
    line("Host", host.unwrap_or_default().as_bytes(), out);
    let about = if head.is_upgrade() { About::Upgrade } else { About::Nothing };
    rest(&head.bytes, &head.fields, edits, frame, about, out);
}

/// The response, to the client.
pub(super) fn response(head: &ResponseHead, edits: &Edits<'_>, frame: Frame, about: About, out: &mut Vec<u8>) {
    out.reserve(head.bytes.len() + 256);
    out.extend_from_slice(b"HTTP/1.1 ");
    decimal(u64::from(head.status()), out);
    out.push(b' ');
    out.extend_from_slice(head.reason.bytes(&head.bytes));
    out.extend_from_slice(b"\r\n");
    rest(&head.bytes, &head.fields, edits, frame, about, out);
}

fn rest(head: &[u8], fields: &[Field], edits: &Edits<'_>, frame: Frame, about: About, out: &mut Vec<u8>) {
    // Lines that pass as they are and follow one another are copied together.
    let mut run = 0..0;
    for field in fields {
        let passes = match field.known {
            Known::Host => false,
            Known::Upgrade => about == About::Upgrade,
            known => !known.is_of_this_hop(),
        };
        let dropped = |edit: &Edit<'_>| match edit {
            Edit::Add { .. } => false,
            Edit::Remove { name } | Edit::Replace { name, .. } => {
                name.as_bytes().eq_ignore_ascii_case(field.name.bytes(head))
            }
        };
        let told = edits.untrusted && is_told_by_proxies(field.name.bytes(head));
        if passes && !told && !edits.fields.iter().any(dropped) {
            match field.plain_line(head) {
                Some(line) if line.start == run.end => run.end = line.end,
                Some(line) => out.extend_from_slice(&head[std::mem::replace(&mut run, line)]),
                None => {
                    out.extend_from_slice(&head[std::mem::replace(&mut run, 0..0)]);
                    line(field.name.text(head), field.value.bytes(head), out);
                }
            }
        }
    }
    out.extend_from_slice(&head[run]);
    for edit in &edits.fields {
        match edit {
            Edit::Add { name, value } | Edit::Replace { name, value } if may_be_added(name, value) => {
                line(name, value, out)
            }
            Edit::Add { .. } | Edit::Remove { .. } | Edit::Replace { .. } => {}
        }
    }
    match frame {
        Frame::Chunked => line("Transfer-Encoding", b"chunked", out),
        Frame::Length(length) => {
            out.extend_from_slice(b"Content-Length: ");
            decimal(length, out);
            out.extend_from_slice(b"\r\n");
        }
        Frame::Untold => {}
    }
    match about {
        About::Close => line("Connection", b"close", out),
        About::KeepAlive => line("Connection", b"keep-alive", out),
        About::Nothing => {}
        About::Upgrade => line("Connection", b"Upgrade", out),
    }
    out.extend_from_slice(b"\r\n");
}

/// Whether a field may be added to a head that has its framing and its connection already.
pub(super) fn may_be_added(name: &str, value: &[u8]) -> bool {
    let known = Known::of(name.as_bytes());
    is_token(name.as_bytes()) && is_value(value) && known != Known::Host && !known.is_of_this_hop()
}

fn is_target(target: &str) -> bool {
    target.starts_with('/') && target.bytes().all(|byte| byte.is_ascii_graphic())
}

/// A field.
pub(super) fn line(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// A number, decimal.
pub(super) fn decimal(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_full() {
        for number in [0, 7, 10, 909, u64::from(u32::MAX), u64::MAX] {
            let mut out = Vec::new();
            decimal(number, &mut out);
            assert_eq!(out, number.to_string().into_bytes());
        }
    }
}
