//! Heads of requests and responses: read strictly, kept as they came, looked at by name.

use super::fields::{self, ConnectionOptions, Field, Known, Span, Told};
use super::scan::{self, Fault};
use super::{HttpLimits, pinning};
use crate::counters::counters;

counters!(
    /// Why a request is refused. Each is a way in which two parsers could read it differently, or a limit.
    BadRequest {
        AbsoluteAgainstHost = "absolute_against_host", "The URI of the request names another host than its Host field.";
        BareLf = "bare_lf", "A line ended without CR.";
        BodyTooLong = "body_too_long", "The body is longer than body_bytes_max.";
        ChunkExtension = "chunk_extension", "The extension of a chunk was too long or damaged.";
        ChunkSize = "chunk_size", "The size of a chunk was not a plain hexadecimal number, or a chunk did not end where it says.";
        Connect = "connect", "The method was CONNECT: Towpath is nobody's way to other hosts.";
        ControlByte = "control_byte", "A control byte stood in a field or between lines.";
        EncodingInOld = "encoding_in_old", "Transfer-Encoding in a message of HTTP/1.0.";
        EncodingOther = "encoding_other", "Transfer-Encoding was other than one `chunked`.";
        FieldName = "field_name", "The name of a field was empty or had bytes that names do not have.";
        HeadTooLong = "head_too_long", "The head was longer than head_bytes_max.";
        HostInvalid = "host_invalid", "The host that was asked for is not one.";
        HostMissing = "host_missing", "A request of HTTP/1.1 without Host.";
        HostRepeated = "host_repeated", "There was more than one Host.";
        LengthAndEncoding = "length_and_encoding", "Content-Length beside Transfer-Encoding.";
        LengthInvalid = "length_invalid", "Content-Length was not a plain decimal number, or too large.";
        LengthRepeated = "length_repeated", "There was more than one Content-Length.";
        ObsFold = "obs_fold", "A field went on in the next line.";
        PathEscape = "path_escape", "The path had an escape that is none, one of a zero byte, or a dot segment with a parameter (`..;`), and filters or routes look at paths.";
        RequestLine = "request_line", "The first line was not that of a request.";
        SpaceBeforeColon = "space_before_colon", "A space stood between the name of a field and its colon.";
        Target = "target", "The target was neither a path nor a URI, or had bytes that these do not have.";
        TargetTooLong = "target_too_long", "The first line alone was longer than head_bytes_max.";
        TooManyFields = "too_many_fields", "The head had more fields, or its Connection more options, than are allowed.";
        Trailer = "trailer", "The fields behind the last chunk were too long or damaged.";
        Version = "version", "The version was neither HTTP/1.0 nor HTTP/1.1.";
    }
);

counters!(
    /// Why a response is refused: the client is answered with 502, or cut off if its response has begun.
    BadResponse {
        BareLf = "bare_lf", "A line ended without CR.";
        ChunkExtension = "chunk_extension", "The extension of a chunk was too long or damaged.";
        ChunkSize = "chunk_size", "The size of a chunk was not a plain hexadecimal number, or a chunk did not end where it says.";
        ControlByte = "control_byte", "A control byte stood in a field or between lines.";
        EncodingInOld = "encoding_in_old", "Transfer-Encoding in a message of HTTP/1.0.";
        EncodingOther = "encoding_other", "Transfer-Encoding was other than one `chunked`.";
        FieldName = "field_name", "The name of a field was empty or had bytes that names do not have.";
        HeadTooLong = "head_too_long", "The head was longer than head_bytes_max.";
        LengthAndEncoding = "length_and_encoding", "Content-Length beside Transfer-Encoding.";
        LengthInvalid = "length_invalid", "Content-Length was not a plain decimal number, or too large.";
        LengthRepeated = "length_repeated", "There was more than one Content-Length.";
        ObsFold = "obs_fold", "A field went on in the next line.";
        SpaceBeforeColon = "space_before_colon", "A space stood between the name of a field and its colon.";
        StatusLine = "status_line", "The first line was not that of a response.";
        TooManyFields = "too_many_fields", "The head had more fields, or its Connection more options, than are allowed.";
        Trailer = "trailer", "The fields behind the last chunk were too long or damaged.";
        Unasked = "unasked", "The server spoke without having been asked.";
        UnaskedUpgrade = "unasked_upgrade", "The server changed the protocol without having been asked to, or did not say to which.";
        Version = "version", "The version was neither HTTP/1.0 nor HTTP/1.1.";
    }
);

impl BadRequest {
    /// The status that it is answered with (RFC 9110 §15.5, §15.6).
    pub fn status(self) -> u16 {
        match self {
            BadRequest::BodyTooLong => 413,
            BadRequest::Connect => 501,
            BadRequest::HeadTooLong | BadRequest::TooManyFields => 431,
            BadRequest::TargetTooLong => 414,
            BadRequest::Version => 505,
            _ => 400,
        }
    }
}

impl From<Fault> for BadRequest {
    fn from(fault: Fault) -> BadRequest {
        match fault {
            Fault::BareLf => BadRequest::BareLf,
            Fault::BodyTooLong => BadRequest::BodyTooLong,
            Fault::ChunkExtension => BadRequest::ChunkExtension,
            Fault::ChunkSize => BadRequest::ChunkSize,
            Fault::ControlByte => BadRequest::ControlByte,
            Fault::EncodingInOld => BadRequest::EncodingInOld,
            Fault::EncodingOther => BadRequest::EncodingOther,
            Fault::FieldName => BadRequest::FieldName,
            Fault::FirstLine => BadRequest::RequestLine,
            Fault::HeadTooLong => BadRequest::HeadTooLong,
            Fault::LengthAndEncoding => BadRequest::LengthAndEncoding,
            Fault::LengthInvalid => BadRequest::LengthInvalid,
            Fault::LengthRepeated => BadRequest::LengthRepeated,
            Fault::ObsFold => BadRequest::ObsFold,
            Fault::SpaceBeforeColon => BadRequest::SpaceBeforeColon,
            Fault::TooManyFields => BadRequest::TooManyFields,
            Fault::Trailer => BadRequest::Trailer,
            Fault::Version => BadRequest::Version,
        }
    }
}

impl From<Fault> for BadResponse {
    fn from(fault: Fault) -> BadResponse {
        match fault {
            Fault::BareLf => BadResponse::BareLf,
            Fault::ChunkExtension => BadResponse::ChunkExtension,
            Fault::BodyTooLong | Fault::ChunkSize => BadResponse::ChunkSize,
            Fault::ControlByte => BadResponse::ControlByte,
            Fault::EncodingInOld => BadResponse::EncodingInOld,
            Fault::EncodingOther => BadResponse::EncodingOther,
            Fault::FieldName => BadResponse::FieldName,
            Fault::FirstLine => BadResponse::StatusLine,
            Fault::HeadTooLong => BadResponse::HeadTooLong,
            Fault::LengthAndEncoding => BadResponse::LengthAndEncoding,
            Fault::LengthInvalid => BadResponse::LengthInvalid,
            Fault::LengthRepeated => BadResponse::LengthRepeated,
            Fault::ObsFold => BadResponse::ObsFold,
            Fault::SpaceBeforeColon => BadResponse::SpaceBeforeColon,
            Fault::TooManyFields => BadResponse::TooManyFields,
            Fault::Trailer => BadResponse::Trailer,
            Fault::Version => BadResponse::Version,
        }
    }
}

/// Version of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0: connections end with each response unless both say otherwise, and nothing is chunked.
    Http10,
    /// HTTP/1.1.
    Http11,
}

impl Version {
    fn of(minor: Option<u8>) -> Version {
        if minor == Some(0) { Version::Http10 } else { Version::Http11 }
    }
}

/// How a body ends (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// By its last chunk.
    Chunked,
    /// After so many bytes.
    Length(u64),
    /// There is none.
    None,
    /// With the connection; only of responses.
    UntilClose,
}

/// What reading bytes as a head comes to: the head and its length, or `None` while it is not whole.
type Read<T, E> = Result<Option<(usize, T)>, E>;

/// The head of a request.
#[derive(Clone, Debug)]
pub struct RequestHead {
    pub(super) bytes: Vec<u8>,
    pub(super) fields: Vec<Field>,
    method: Span,
    /// Origin form, or `*`; empty if the URI has no path.
    target: Span,
    host: Option<Span>,
    version: Version,
    pub(super) told: Told,
    keep_alive: bool,
    upgrade: bool,
    binds: bool,
}

impl RequestHead {
    /// Reads the head at the start of `bytes`. Too long is what does not fit into the limit, whether it is whole or not.
    pub fn read(bytes: &[u8], limits: &HttpLimits) -> Read<RequestHead, BadRequest> {
        // httparse would skip any number of empty lines.
        if matches!(bytes.first(), Some(b'\r' | b'\n')) {
            return Err(BadRequest::RequestLine);
        }
        let mut room = fields::room();
        let mut request = httparse::Request::new(&mut []);
        let len = match request.parse_with_uninit_headers(bytes, &mut room) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(scan::fault_of(error, bytes).into()),
        };
        let head = &bytes[..len];
        let max = limits.head_bytes_max as usize;
        if len > max {
            let has_line = head[..max].contains(&b'\n');
            return Err(if has_line { BadRequest::HeadTooLong } else { BadRequest::TargetTooLong });
        }
        if !scan::has_whole_line_ends(head) {
            return Err(BadRequest::BareLf);
        }
        let method = request.method.unwrap_or_default().as_bytes();
        let target = request.path.unwrap_or_default().as_bytes();
        let mut fields = fields::found(request.headers, head);
        let version = Version::of(request.version);
        let options = fields::connection_options(&mut fields, head)?;
        let told = fields::framing(&fields, head, version == Version::Http10)?;
        if matches!(told, Told::Length(length) if !limits.allows_body(length)) {
            return Err(BadRequest::BodyTooLong);
        }
        let (target, host) = target_and_host(method, Span::of(target, head), &fields, head, version)?;
        let mut read = RequestHead {
            method: Span::of(method, head),
            target,
            host,
            version,
            told,
            keep_alive: keeps_alive(version, options),
            upgrade: false,
            binds: pinning::binds(&fields, head),
            bytes: head.to_vec(),
            fields,
        };
        read.upgrade =
            options.upgrade && version == Version::Http11 && read.framing() == Framing::None && read.may_upgrade();
        Ok(Some((len, read)))
    }

    /// The method, as it was written.
    pub fn method(&self) -> &str {
        self.method.text(&self.bytes)
    }

    /// Path and query, or `*` where the request is about the whole server.
    pub fn target(&self) -> &str {
        // Of a URI without a path (RFC 9112 §3.2.1, §3.2.4).
        match (self.target.is_empty(), self.method()) {
            (true, "OPTIONS") => "*",
            (true, _) => "/",
            (false, _) => self.target.text(&self.bytes),
        }
    }

    /// The path, as it was written.
    pub fn path(&self) -> &str {
        self.target().split('?').next().unwrap_or_default()
    }

    /// What stands behind the first `?`.
    pub fn query(&self) -> Option<&str> {
        self.target().split_once('?').map(|(_, query)| query)
    }

    /// The host that is asked for, as it was written, maybe with a port. Requests of HTTP/1.0 may do without; it may be empty.
    pub fn host(&self) -> Option<&str> {
        self.host.map(|host| host.text(&self.bytes))
    }

    /// The same without the port.
    pub fn host_name(&self) -> Option<&str> {
        self.host().map(without_port)
    }

    /// Names and values of all fields, in order.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &[u8])> + Clone {
        self.fields.iter().map(|field| (field.name.text(&self.bytes), field.value.bytes(&self.bytes)))
    }

    /// The values of the fields of this name, in order.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> + Clone {
        fields::values(&self.fields, &self.bytes, name)
    }

    /// The version that it was sent with.
    pub fn version(&self) -> Version {
        self.version
    }

    /// How its body ends.
    pub fn framing(&self) -> Framing {
        match self.told {
            Told::Chunked => Framing::Chunked,
            Told::Length(0) | Told::Nothing => Framing::None,
            Told::Length(length) => Framing::Length(length),
        }
    }

    /// Whether the client would like to go on with the connection.
    pub fn is_keep_alive(&self) -> bool {
        self.keep_alive
    }

    /// Whether it asks for another protocol that may be passed on. HTTP/2 and TLS may not: what they carry would be read by nobody here.
    pub fn is_upgrade(&self) -> bool {
        self.upgrade
    }

    /// Whether it may be sent again when nobody knows whether it was served (RFC 9110 §9.2.2).
    pub fn is_idempotent(&self) -> bool {
        matches!(self.method(), "DELETE" | "GET" | "HEAD" | "OPTIONS" | "PUT" | "TRACE")
    }

    /// Whether it has credentials that authenticate the connection.
    pub fn is_binding(&self) -> bool {
        self.binds
    }

    fn may_upgrade(&self) -> bool {
        let mut protocols = self
            .fields
            .iter()
            .filter(|field| field.known == Known::Upgrade)
            .flat_map(|field| fields::elements(field.value.bytes(&self.bytes)))
            .peekable();
        let read_here = |protocol: &[u8]| {
            let starts =
                |start: &[u8]| protocol.get(..start.len()).is_some_and(|part| part.eq_ignore_ascii_case(start));
            starts(b"h2") || starts(b"http") || starts(b"tls")
        };
        protocols.peek().is_some() && !protocols.any(read_here)
    }
}

/// The head of a response.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    pub(super) bytes: Vec<u8>,
    pub(super) fields: Vec<Field>,
    pub(super) reason: Span,
    status: u16,
    version: Version,
    pub(super) told: Told,
    keep_alive: bool,
    upgrade: bool,
    binds: bool,
}

impl ResponseHead {
    /// Reads the head at the start of `bytes`, as [`RequestHead::read`] does. Spaces in front of a colon are an error here as well: a real
    /// server that writes them is not worth the guess.
    pub fn read(bytes: &[u8], limits: &HttpLimits) -> Read<ResponseHead, BadResponse> {
        if matches!(bytes.first(), Some(b'\r' | b'\n')) {
            return Err(BadResponse::StatusLine);
        }
        let mut room = fields::room();
        let mut response = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let len = match config.parse_response_with_uninit_headers(&mut response, bytes, &mut room) {
            Ok(httparse::Status::Complete(len)) => len,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(scan::fault_of(error, bytes).into()),
        };
        let head = &bytes[..len];
        if len > limits.head_bytes_max as usize {
            return Err(BadResponse::HeadTooLong);
        }
        if !scan::has_whole_line_ends(head) {
            return Err(BadResponse::BareLf);
        }
        let status = response.code.unwrap_or_default();
        if !(100..=999).contains(&status) {
            return Err(BadResponse::StatusLine);
        }
        let reason = response.reason.unwrap_or_default().as_bytes();
        let mut fields = fields::found(response.headers, head);
        let version = Version::of(response.version);
        let options = fields::connection_options(&mut fields, head)?;
        let told = fields::framing(&fields, head, version == Version::Http10)?;
        let upgrade = options.upgrade && fields.iter().any(|field| field.known == Known::Upgrade);
        let read = ResponseHead {
            reason: if reason.is_empty() { Span::default() } else { Span::of(reason, head) },
            status,
            version,
            told,
            keep_alive: keeps_alive(version, options),
            upgrade,
            binds: pinning::binds(&fields, head),
            bytes: head.to_vec(),
            fields,
        };
        Ok(Some((len, read)))
    }

    /// The status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Names and values of all fields, in order.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &[u8])> + Clone {
        self.fields.iter().map(|field| (field.name.text(&self.bytes), field.value.bytes(&self.bytes)))
    }

    /// The values of the fields of this name, in order.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> + Clone {
        fields::values(&self.fields, &self.bytes, name)
    }

    /// The version that it was sent with.
    pub fn version(&self) -> Version {
        self.version
    }

    /// How its body ends, as the answer to a request by HEAD or another one.
    pub fn framing(&self, head_only: bool) -> Framing {
        if head_only || self.is_interim() || matches!(self.status, 204 | 304) {
            return Framing::None;
        }
        match self.told {
            Told::Chunked => Framing::Chunked,
            Told::Length(0) => Framing::None,
            Told::Length(length) => Framing::Length(length),
            Told::Nothing => Framing::UntilClose,
        }
    }

    /// Whether another head follows (RFC 9110 §15.2).
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status)
    }

    /// Whether the server would like to go on with the connection.
    pub fn is_keep_alive(&self) -> bool {
        self.keep_alive
    }

    /// Whether it names the protocol that the connection changes to.
    pub fn is_upgrade(&self) -> bool {
        self.upgrade
    }

    /// Whether it is about authentication of the connection.
    pub fn is_binding(&self) -> bool {
        self.binds
    }
}

/// RFC 9112 §9.3.
fn keeps_alive(version: Version, options: ConnectionOptions) -> bool {
    !options.close && (version == Version::Http11 || options.keep_alive)
}

/// The target in origin form and the host, which may come from a target in absolute form (RFC 9112 §3.2).
fn target_and_host(
    method: &[u8],
    target: Span,
    fields: &[Field],
    head: &[u8],
    version: Version,
) -> Result<(Span, Option<Span>), BadRequest> {
    if method == b"CONNECT" {
        return Err(BadRequest::Connect);
    }
    let mut hosts = fields.iter().filter(|field| field.known == Known::Host).map(|field| field.value);
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(BadRequest::HostRepeated);
    }
    if host.is_none() && version == Version::Http11 {
        return Err(BadRequest::HostMissing);
    }
    if !host.is_none_or(|host| is_authority(host.bytes(head))) {
        return Err(BadRequest::HostInvalid);
    }
    let text = target.bytes(head);
    let path_len = text.iter().position(|byte| *byte == b'?').unwrap_or(text.len());
    // A fragment is not sent (RFC 9110 §7.1), and a backslash is a slash to some servers. Without an early end many bytes are looked at together.
    let visible = text.iter().fold(true, |all, byte| all & byte.is_ascii_graphic() & (*byte != b'#'))
        && !text[..path_len].contains(&b'\\');
    if !visible {
        return Err(BadRequest::Target);
    }
    if text.starts_with(b"/") || text == b"*" && method == b"OPTIONS" {
        return Ok((target, host));
    }
    let scheme = [b"http://".as_slice(), b"https://"]
        .iter()
        .find(|scheme| text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)))
        .ok_or(BadRequest::Target)?
        .len();
    let rest = target.behind(scheme);
    let authority_len =
        rest.bytes(head).iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(text.len() - scheme);
    let (authority, path) = (rest.first(authority_len), rest.behind(authority_len));
    if authority.is_empty() || !is_authority(authority.bytes(head)) {
        return Err(BadRequest::HostInvalid);
    }
    if host.is_some_and(|host| !host.bytes(head).eq_ignore_ascii_case(authority.bytes(head))) {
        return Err(BadRequest::AbsoluteAgainstHost);
    }
    // A query without a path has none to stand behind.
    if path.bytes(head).starts_with(b"?") {
        return Err(BadRequest::Target);
    }
    Ok((path, Some(authority)))
}

/// Whether these bytes are a host, maybe with a port (RFC 9110 §7.2); nothing is allowed as well.
pub(super) fn is_authority(authority: &[u8]) -> bool {
    let (host, port) = match authority.strip_prefix(b"[") {
        Some(rest) => {
            let Some(end) = rest.iter().position(|byte| *byte == b']') else { return false };
            let (address, behind) = (&rest[..end], &rest[end + 1..]);
            let is_address = |address: &str| address.parse::<std::net::Ipv6Addr>().is_ok();
            if !std::str::from_utf8(address).is_ok_and(is_address) {
                return false;
            }
            (b"".as_slice(), behind)
        }
        None => {
            let end = authority.iter().position(|byte| *byte == b':').unwrap_or(authority.len());
            authority.split_at(end)
        }
    };
    // Sub-delims and percent-encoding of RFC 3986 are in no name of a host.
    let named =
        host.iter().fold(true, |all, byte| all & (byte.is_ascii_alphanumeric() | matches!(byte, b'-' | b'.' | b'_')));
    let numbered = match port.strip_prefix(b":") {
        Some(digits) => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        None => port.is_empty(),
    };
    named && numbered && (!host.is_empty() || authority.is_empty() || authority.starts_with(b"["))
}

fn without_port(authority: &str) -> &str {
    match authority.strip_prefix('[').and_then(|rest| rest.find(']')) {
        Some(end) => &authority[..end + 2],
        None => authority.split(':').next().unwrap_or_default(),
    }
}
