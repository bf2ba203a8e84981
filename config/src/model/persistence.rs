//! The part of the model that is about clients who come back.

use serde::Serialize;

/// `persistence`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Persistence {
    /// What makes a client: the first that it shows leads it back. Never empty.
    pub by: Vec<PersistBy>,
    /// Entry lifetime after the client's last new connection, in HTTP mode request.
    pub timeout_ms: u64,
    /// Prefix length that makes an IPv4 client (32 = each address its own).
    pub ipv4_prefix: u8,
    /// Prefix length that makes an IPv6 client.
    pub ipv6_prefix: u8,
    /// Whether a client with an entry may still enter a draining server (requirements.md trap 11).
    pub enter_draining: bool,
}

/// `persistence.by`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PersistBy {
    /// A cookie of this name that the server sets.
    FoundCookie(String),
    /// A request header of this name.
    Header(String),
    /// A cookie of ours.
    InsertedCookie(InsertedCookie),
    /// The `Call-ID` of SIP.
    SipCallId,
    /// The name that it asks for by TLS.
    Sni,
    /// The client's address.
    SourceIp,
    /// `User-Agent` and `Authorization`.
    SuperHttp,
    /// The same, with the client's address.
    SuperHttpAndSourceIp,
    /// The session that its server gave it, of TLS up to 1.2.
    TlsSessionId,
}

/// A cookie of ours: it says which server, unreadably, and ends with the browser's session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InsertedCookie {
    /// Its name.
    pub name: String,
    /// When it is set.
    pub set: CookieSet,
    /// Whether it is hidden from scripts.
    pub http_only: bool,
    /// Whether it comes back over TLS only.
    pub secure: bool,
}

/// `persistence.cookie_set`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CookieSet {
    /// With every response that sets none of that name.
    Always,
    /// When the request has none that names the server.
    Missing,
}
