//! What a client says before anything is decided about it: the name that it asks for, and which session it hopes to resume.
//!
//! Looks at bytes and keeps none: they go to whoever serves the client as they came.

use std::fmt;

/// Bytes of a stream in which a ClientHello must end, headers of records included; longer ones are [`Peek::Foreign`].
pub const HELLO_BYTES_MAX: usize = 16 * 1024;

/// Longest session id (RFC 5246 §7.4.1.2).
const SESSION_ID_MAX: usize = 32;

/// Longest name of a host in text (RFC 1035 §2.3.4, without the dot of the root).
const HOST_NAME_MAX: usize = 253;

// RFC 8446 §5.1, §4 and appendix B.
const HANDSHAKE_RECORD: u8 = 22;
const RECORD_BYTES_MAX: usize = 1 << 14;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const SESSION_TICKET: u16 = 35;
const PRE_SHARED_KEY: u16 = 41;
pub(crate) const SUPPORTED_VERSIONS: u16 = 43;
pub(crate) const TLS_1_3: u16 = 0x0304;
/// RFC 6066 §3.
const HOST_NAME: u8 = 0;

/// What the first bytes of a client are.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "it lives on the stack for a moment, and a box would cost more than the copy"
)]
pub enum Peek {
    /// Not TLS, damaged, or too long: not ours to understand.
    Foreign,
    /// A whole ClientHello.
    Hello(ClientHello),
    /// As far as they go, the beginning of a ClientHello.
    Incomplete,
}

/// What a ClientHello says (RFC 8446 §4.1.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The host that the client asks for (RFC 6066 §3); `None` where it asks for none, or for what no host is called.
    pub server_name: Option<HostName>,
    /// Whether it shows a session that it would like to resume.
    pub offers_session: bool,
    /// Whether it does so by a ticket; then its session id is made up (RFC 5077 §3.4).
    pub offers_ticket: bool,
    /// Its session id. Clients that know TLS 1.3 fill it for looks where they have none (RFC 8446 appendix D.4).
    pub session: Option<SessionId>,
}

/// The id of a session of TLS up to 1.2, never empty (RFC 5246 §7.4.1.2).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SessionId {
    bytes: [u8; SESSION_ID_MAX],
    len: u8,
}

impl SessionId {
    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({} bytes)", self.len)
    }
}

/// The name of a host: letters in lower case, digits, `-`, `_`, and dots between labels.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct HostName {
    bytes: [u8; HOST_NAME_MAX],
    len: u8,
}

impl HostName {
    /// The name, if it is one; a dot at its end is left out.
    pub fn new(name: &[u8]) -> Option<HostName> {
        let name = name.strip_suffix(b".").unwrap_or(name);
        let mut host = HostName { bytes: [0; HOST_NAME_MAX], len: u8::try_from(name.len()).ok()? };
        host.bytes.get_mut(..name.len())?.copy_from_slice(name);
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let is_label = |label: &[u8]| !label.is_empty() && label.iter().all(allowed);
        if !name.split(|byte| *byte == b'.').all(is_label) {
            return None;
        }
        host.bytes.make_ascii_lowercase();
        Some(host)
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// Judges the first `bytes` of a stream, from its very beginning; asked again when there are more.
///
/// A ClientHello may lie in any number of records, and records in any number of segments. What cannot become one is told as soon as it is seen:
/// STUN and plain text at the first byte. Pseudo-TLS of media relays is a ClientHello without a name.
pub fn peek(bytes: &[u8]) -> Peek {
    let within = bytes.get(..HELLO_BYTES_MAX).unwrap_or(bytes);
    match hello(&mut Stream::new(within)) {
        Ok(hello) => Peek::Hello(hello),
        Err(Stop::Odd) => Peek::Foreign,
        Err(Stop::Short) if bytes.len() >= HELLO_BYTES_MAX => Peek::Foreign,
        Err(Stop::Short) => Peek::Incomplete,
    }
}

/// Why reading ends before the ClientHello does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// There is something else.
    Odd,
    /// There is nothing more.
    Short,
}

/// The bytes of a ClientHello or ServerHello, out of the records that carry them.
pub(crate) struct Stream<'a> {
    records: &'a [u8],
    /// Bytes until the record ends.
    record_left: usize,
    /// Bytes until the message ends.
    pub(crate) hello_left: usize,
}

impl<'a> Stream<'a> {
    /// From the beginning of the stream, where the header of a message follows.
    pub(crate) fn new(records: &'a [u8]) -> Stream<'a> {
        Stream { records, record_left: 0, hello_left: 4 }
    }

    fn raw(&mut self) -> Result<u8, Stop> {
        let (&byte, rest) = self.records.split_first().ok_or(Stop::Short)?;
        self.records = rest;
        Ok(byte)
    }

    /// The header of a record; one without content is not allowed (RFC 8446 §5.1).
    fn record(&mut self) -> Result<(), Stop> {
        if self.raw()? != HANDSHAKE_RECORD || self.raw()? != 3 || self.raw()? > 4 {
            return Err(Stop::Odd);
        }
        let length = usize::from(u16::from_be_bytes([self.raw()?, self.raw()?]));
        if !(1..=RECORD_BYTES_MAX).contains(&length) {
            return Err(Stop::Odd);
        }
        self.record_left = length;
        Ok(())
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Stop> {
        self.hello_left = self.hello_left.checked_sub(1).ok_or(Stop::Odd)?;
        if self.record_left == 0 {
            self.record()?;
        }
        let byte = self.raw()?;
        self.record_left -= 1;
        Ok(byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Stop> {
        Ok(u16::from_be_bytes([self.u8()?, self.u8()?]))
    }

    /// A length, which must fit into what is left of `room`, and takes its own two bytes and itself from there.
    pub(crate) fn length_within(&mut self, room: &mut usize) -> Result<usize, Stop> {
        let length = usize::from(self.u16()?);
        *room = room.checked_sub(2 + length).ok_or(Stop::Odd)?;
        Ok(length)
    }

    /// `None` where it is empty.
    pub(crate) fn session_id(&mut self) -> Result<Option<SessionId>, Stop> {
        let len = self.u8()?;
        let mut id = SessionId { bytes: [0; SESSION_ID_MAX], len };
        for byte in id.bytes.get_mut(..usize::from(len)).ok_or(Stop::Odd)? {
            *byte = self.u8()?;
        }
        Ok((len > 0).then_some(id))
    }

    pub(crate) fn skip(&mut self, mut count: usize) -> Result<(), Stop> {
        self.hello_left = self.hello_left.checked_sub(count).ok_or(Stop::Odd)?;
        while count > 0 {
            if self.record_left == 0 {
                self.record()?;
            }
            let step = count.min(self.record_left);
            self.records = self.records.get(step..).ok_or(Stop::Short)?;
            self.record_left -= step;
            count -= step;
        }
        Ok(())
    }
}

fn hello(stream: &mut Stream<'_>) -> Result<ClientHello, Stop> {
    if stream.u8()? != CLIENT_HELLO {
        return Err(Stop::Odd);
    }
    let length = usize::from(stream.u8()?) << 16 | usize::from(stream.u16()?);
    if length > HELLO_BYTES_MAX {
        return Err(Stop::Odd);
    }
    stream.hello_left = length;
    // legacy_version, of SSL 3.0 or any TLS, and random.
    if stream.u8()? != 3 {
        return Err(Stop::Odd);
    }
    stream.skip(1 + 32)?;
    let session = stream.session_id()?;
    let suites_len = usize::from(stream.u16()?);
    if suites_len < 2 || suites_len % 2 != 0 {
        return Err(Stop::Odd);
    }
    stream.skip(suites_len)?;
    let compressions_len = usize::from(stream.u8()?);
    if compressions_len == 0 {
        return Err(Stop::Odd);
    }
    stream.skip(compressions_len)?;

    let mut seen = Extensions::default();
    // Before TLS 1.3 there may be none at all.
    if stream.hello_left > 0 {
        let mut left = usize::from(stream.u16()?);
        if left != stream.hello_left {
            return Err(Stop::Odd);
        }
        while left > 0 {
            left = left.checked_sub(2).ok_or(Stop::Odd)?;
            let kind = stream.u16()?;
            let length = stream.length_within(&mut left)?;
            extension(stream, kind, length, &mut seen)?;
        }
    }
    // A session id alone is an offer only before TLS 1.3, which fills it for looks (RFC 8446 §4.1.2, appendix D.4).
    let offers_session = seen.pre_shared_key || seen.ticket || session.is_some() && !seen.tls_1_3;
    Ok(ClientHello { server_name: seen.server_name, offers_session, offers_ticket: seen.ticket, session })
}

/// What is remembered of the extensions.
#[derive(Default)]
struct Extensions {
    server_name: Option<HostName>,
    has_server_name: bool,
    ticket: bool,
    pre_shared_key: bool,
    tls_1_3: bool,
}

fn extension(stream: &mut Stream<'_>, kind: u16, length: usize, seen: &mut Extensions) -> Result<(), Stop> {
    match kind {
        // Twice would let server and balancer each believe another one.
        SERVER_NAME if seen.has_server_name => return Err(Stop::Odd),
        SERVER_NAME => {
            seen.has_server_name = true;
            seen.server_name = server_name(stream, length)?;
            return Ok(());
        }
        SUPPORTED_VERSIONS => {
            let count = usize::from(stream.u8()?);
            if count + 1 != length || count % 2 != 0 {
                return Err(Stop::Odd);
            }
            for _ in 0..count / 2 {
                seen.tls_1_3 |= stream.u16()? == TLS_1_3;
            }
            return Ok(());
        }
        SESSION_TICKET => seen.ticket |= length > 0,
        PRE_SHARED_KEY => seen.pre_shared_key = true,
        _ => {}
    }
    stream.skip(length)
}

/// The first host of a list of names (RFC 6066 §3).
fn server_name(stream: &mut Stream<'_>, length: usize) -> Result<Option<HostName>, Stop> {
    let mut room = length;
    let mut left = stream.length_within(&mut room)?;
    if room != 0 || left == 0 {
        return Err(Stop::Odd);
    }
    let (mut host, mut has_host) = (None, false);
    while left > 0 {
        left = left.checked_sub(1).ok_or(Stop::Odd)?;
        let kind = stream.u8()?;
        let length = stream.length_within(&mut left)?;
        if kind != HOST_NAME {
            stream.skip(length)?;
            continue;
        }
        if has_host || length == 0 {
            return Err(Stop::Odd);
        }
        has_host = true;
        let mut text = [0; HOST_NAME_MAX + 1];
        if length > text.len() {
            stream.skip(length)?;
            continue;
        }
        for byte in &mut text[..length] {
            *byte = stream.u8()?;
        }
        host = HostName::new(&text[..length]);
    }
    Ok(host)
}

#[cfg(test)]
mod tests;
