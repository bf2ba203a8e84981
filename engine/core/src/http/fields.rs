//! The fields of a head or trailer section, by where they lie in its bytes.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::scan::{Fault, fault_of};
use super::{CONNECTION_OPTIONS_MAX, HEADERS_MAX};

/// Fields that mean something here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Authorization,
    Connection,
    ContentLength,
    Host,
    KeepAlive,
    PersistentAuth,
    ProxyAuthenticate,
    ProxyAuthorization,
    ProxyConnection,
    Te,
    TransferEncoding,
    Upgrade,
    WwwAuthenticate,
    /// Named by `Connection`: for this hop only (RFC 9110 §7.6.1).
    Nominated,
    Other,
}

/// Fields by which proxies tell servers about clients, or about what these have asked for, beside those that begin with `X-Forwarded-`.
const TOLD_BY_PROXIES: [&str; 9] = [
    "forwarded",
    "front-end-https",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-host",
    "x-original-url",
    "x-real-ip",
    "x-rewrite-url",
];
const FORWARDED_PREFIX: &str = "x-forwarded-";

/// Whether servers take a field of this name for what a proxy says. CGI and its heirs make one name of `-` and `_`, so both are one here.
pub(super) fn is_told_by_proxies(name: &[u8]) -> bool {
    // Most fields are told apart by their first letter.
    if !name.first().is_some_and(|first| matches!(first | 0x20, b'f' | b't' | b'x')) {
        return false;
    }
    let alike = |(&own, other): (&u8, u8)| own.eq_ignore_ascii_case(&other) || (own == b'_' && other == b'-');
    let begins = |known: &str| name.len() >= known.len() && name.iter().zip(known.bytes()).all(alike);
    begins(FORWARDED_PREFIX) || TOLD_BY_PROXIES.iter().any(|known| name.len() == known.len() && begins(known))
}

impl Known {
    pub(super) fn of(name: &[u8]) -> Known {
        let known =
            |text: &str, known: Known| if name.eq_ignore_ascii_case(text.as_bytes()) { known } else { Known::Other };
        match name.len() {
            2 => known("te", Known::Te),
            4 => known("host", Known::Host),
            7 => known("upgrade", Known::Upgrade),
            10 if name[0] | 0x20 == b'k' => known("keep-alive", Known::KeepAlive),
            10 => known("connection", Known::Connection),
            13 => known("authorization", Known::Authorization),
            14 => known("content-length", Known::ContentLength),
            15 => known("persistent-auth", Known::PersistentAuth),
            16 if name[0] | 0x20 == b'p' => known("proxy-connection", Known::ProxyConnection),
            16 => known("www-authenticate", Known::WwwAuthenticate),
            17 => known("transfer-encoding", Known::TransferEncoding),
            18 => known("proxy-authenticate", Known::ProxyAuthenticate),
            19 => known("proxy-authorization", Known::ProxyAuthorization),
            _ => Known::Other,
        }
    }

    /// Whether it is about one connection only, or about the framing, and so never passed on as it came.
    pub(super) fn is_of_this_hop(self) -> bool {
        match self {
            Known::Connection
            | Known::ContentLength
            | Known::KeepAlive
            | Known::Nominated
            | Known::ProxyConnection
            | Known::Te
            | Known::TransferEncoding
            | Known::Upgrade => true,
            Known::Authorization
            | Known::Host
            | Known::Other
            | Known::PersistentAuth
            | Known::ProxyAuthenticate
            | Known::ProxyAuthorization
            | Known::WwwAuthenticate => false,
        }
    }
}

/// A range of a head's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    at: u32,
    len: u32,
}

impl Span {
    /// Where `part` lies in `whole`, which it is a part of.
    pub(super) fn of(part: &[u8], whole: &[u8]) -> Span {
        let at = part.as_ptr().addr() - whole.as_ptr().addr();
        debug_assert!(at + part.len() <= whole.len(), "a part lies within");
        Span { at: at as u32, len: part.len() as u32 }
    }

    pub(super) fn bytes(self, whole: &[u8]) -> &[u8] {
        &whole[self.at as usize..(self.at + self.len) as usize]
    }

    /// As text; what is no text was refused.
    pub(super) fn text(self, whole: &[u8]) -> &str {
        std::str::from_utf8(self.bytes(whole)).unwrap_or_default()
    }

    pub(super) fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The same without its first `count` bytes.
    pub(super) fn behind(self, count: usize) -> Span {
        let count = (count as u32).min(self.len);
        Span { at: self.at + count, len: self.len - count }
    }

    /// Its first `count` bytes.
    pub(super) fn first(self, count: usize) -> Span {
        Span { len: (count as u32).min(self.len), ..self }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    pub(super) known: Known,
    pub(super) name: Span,
    pub(super) value: Span,
}

impl Field {
    /// Where the whole line lies, if it is written as we would write it.
    pub(super) fn plain_line(self, head: &[u8]) -> Option<Range<usize>> {
        let behind_name = (self.name.at + self.name.len) as usize;
        let end = (self.value.at + self.value.len) as usize;
        let is_plain = self.value.at as usize == behind_name + 2
            && head[behind_name..].starts_with(b": ")
            && head[end..].starts_with(b"\r\n");
        is_plain.then_some(self.name.at as usize..end + 2)
    }
}

/// Room for what httparse finds.
pub(super) type Room<'a> = [MaybeUninit<httparse::Header<'a>>; HEADERS_MAX];

/// Room for what httparse finds; nothing is written.
pub(super) fn room<'a>() -> Room<'a> {
    [const { MaybeUninit::uninit() }; HEADERS_MAX]
}

/// The fields that were found in `head`.
pub(super) fn found(headers: &[httparse::Header<'_>], head: &[u8]) -> Vec<Field> {
    let field = |header: &httparse::Header<'_>| Field {
        known: Known::of(header.name.as_bytes()),
        name: Span::of(header.name.as_bytes(), head),
        // httparse's empty value lies elsewhere.
        value: if header.value.is_empty() { Span::default() } else { Span::of(header.value, head) },
    };
    headers.iter().map(field).collect()
}

/// The fields of a section that ends with an empty line.
pub(super) fn of_section(section: &[u8]) -> Result<Vec<Field>, Fault> {
    let mut room = [httparse::EMPTY_HEADER; HEADERS_MAX];
    match httparse::parse_headers(section, &mut room) {
        Ok(httparse::Status::Complete((_, headers))) => Ok(found(headers, section)),
        Ok(httparse::Status::Partial) => Err(Fault::Trailer),
        Err(error) => Err(fault_of(error, section)),
    }
}

/// What the `Connection` fields of a head say (RFC 9110 §7.6.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ConnectionOptions {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
}

/// Reads the options, and marks the fields that they name.
pub(super) fn connection_options(fields: &mut [Field], head: &[u8]) -> Result<ConnectionOptions, Fault> {
    let mut options = ConnectionOptions::default();
    let mut count = 0;
    for at in 0..fields.len() {
        if fields[at].known != Known::Connection {
            continue;
        }
        for option in elements(fields[at].value.bytes(head)) {
            count += 1;
            if count > CONNECTION_OPTIONS_MAX {
                return Err(Fault::TooManyFields);
            }
            if option.eq_ignore_ascii_case(b"close") {
                options.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                options.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                options.upgrade = true;
            } else {
                let named = |field: &&mut Field| field.name.bytes(head).eq_ignore_ascii_case(option);
                for field in fields.iter_mut().filter(named).filter(|field| field.known == Known::Other) {
                    field.known = Known::Nominated;
                }
            }
        }
    }
    Ok(options)
}

/// The elements of a list (RFC 9110 §5.6.1), without empty ones.
pub(super) fn elements(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// The values of the fields of this name, in order.
pub(super) fn values<'a>(fields: &'a [Field], head: &'a [u8], name: &str) -> impl Iterator<Item = &'a [u8]> + Clone {
    let named = move |field: &&Field| field.name.bytes(head).eq_ignore_ascii_case(name.as_bytes());
    fields.iter().filter(named).map(|field| field.value.bytes(head))
}

/// The one value of `known`; `Err(())` where there are several.
pub(super) fn only<'a>(fields: &[Field], known: Known, head: &'a [u8]) -> Result<Option<&'a [u8]>, ()> {
    let mut values = fields.iter().filter(|field| field.known == known).map(|field| field.value.bytes(head));
    let first = values.next();
    if values.next().is_some() { Err(()) } else { Ok(first) }
}

/// Framing as the fields tell it (RFC 9112 §6): a length, chunks, or neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Chunked,
    Length(u64),
    Nothing,
}

/// Reads the framing; what two parsers could read differently is refused.
pub(super) fn framing(fields: &[Field], head: &[u8], old: bool) -> Result<Told, Fault> {
    let encoding = only(fields, Known::TransferEncoding, head).map_err(|()| Fault::EncodingOther)?;
    let length = only(fields, Known::ContentLength, head).map_err(|()| Fault::LengthRepeated)?;
    match (encoding, length) {
        (Some(_), Some(_)) => Err(Fault::LengthAndEncoding),
        // RFC 9112 §6.1: such a message is framed faultily, whatever it says.
        (Some(_), None) if old => Err(Fault::EncodingInOld),
        (Some(encoding), None) if encoding.eq_ignore_ascii_case(b"chunked") => Ok(Told::Chunked),
        (Some(_), None) => Err(Fault::EncodingOther),
        (None, Some(length)) if length.contains(&b',') => Err(Fault::LengthRepeated),
        (None, Some(length)) => decimal(length).map(Told::Length).ok_or(Fault::LengthInvalid),
        (None, None) => Ok(Told::Nothing),
    }
}

/// Digits, nothing else, of a number that fits into 63 bits.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (number <= i64::MAX as u64).then_some(number)
}

/// Whether these bytes may be the value of a field (RFC 9110 §5.5).
pub(crate) fn is_value(bytes: &[u8]) -> bool {
    // Without an early end, so that many bytes are looked at together.
    bytes.iter().fold(true, |all, byte| all & matches!(byte, b'\t' | b' '..=0x7e | 0x80..))
}

/// Whether these bytes may be the name of a field (RFC 9110 §5.6.2).
pub(crate) fn is_token(bytes: &[u8]) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !bytes.is_empty() && bytes.iter().all(allowed)
}
