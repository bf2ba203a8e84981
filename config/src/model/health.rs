//! The part of the model that is about health checks.

use std::path::PathBuf;

use serde::Serialize;

/// Ports that health checks speak from, first and last, at addresses that Towpath has on VLANs and bridges: nothing is leased there.
pub const PROBE_PORTS: (u16, u16) = (61_000, 65_535);

/// `health`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Health {
    /// What is done to judge a server.
    pub check: CheckKind,
    /// Ports checked, each must answer; empty = the server's own port, or the service's first port where the server keeps the service's.
    pub ports: Vec<u16>,
    /// Time between checks of one server.
    pub interval_ms: u64,
    /// The same while its verdict is changing.
    pub fast_interval_ms: u64,
    /// A check that takes longer has failed.
    pub timeout_ms: u64,
    /// Consecutive successes that make a server up.
    pub rise: u16,
    /// Consecutive failures that make a server down.
    pub fall: u16,
    /// What a failing check takes away.
    pub evict: Evict,
    /// When a server goes up and down too often.
    pub damping: Damping,
    /// What clients meet at a server; `None` = only checks judge.
    pub passive: Option<Passive>,
    /// Who says, beside the check, how the server wants to be treated.
    pub agent: Option<Agent>,
}

/// `health.passive`: what clients meet at a server takes it out, whatever its checks say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Passive {
    /// Share of connects that fail, in percent, from which on it is out; 0 = they do not matter.
    pub connect_failures: u8,
    /// Share of responses with a status of 500 or more, likewise.
    pub server_errors: u8,
    /// Fewer connects or responses within the window mean nothing.
    pub at_least: u32,
    /// How far back connects and responses are counted.
    pub window_ms: u64,
    /// How long it is out the first time.
    pub hold_ms: u64,
}

/// `health.evict`: what a failing check takes away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evict {
    /// The server, from every service of its group.
    Group,
    /// The port of the server; each port is judged by itself.
    Port,
    /// Every server with its address, from every service.
    Server,
    /// The server, from the services that use the check.
    #[default]
    Service,
}

/// `health.flaps`, `flap_window` and `flap_hold`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Damping {
    /// A server that went down so often within the window is held; 0 = never.
    pub flaps: u16,
    /// How long a time is remembered that it went down.
    pub window_ms: u64,
    /// How long it is held the first time.
    pub hold_ms: u64,
}

impl Damping {
    /// No server is held.
    pub const OFF: Damping = Damping { flaps: 0, window_ms: 0, hold_ms: 0 };
}

/// `health.agent_port`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Agent {
    /// Where it answers.
    pub port: u16,
    /// The line that it is sent first.
    pub send: Option<String>,
}

/// `health.check`, with what it asks and expects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckKind {
    /// A DNS query is answered as expected.
    Dns(DnsCheck),
    /// An agent says how its server wants to be treated. Never a check of its own: [`Health::agent`] stands beside one.
    Agent {
        /// `health.agent_send`
        send: Option<String>,
    },
    /// A command ends with status 0.
    External(CommandLine),
    /// An HTTP request is answered as expected.
    Http(HttpCheck),
    /// The same over TLS.
    Https(HttpCheck, TlsCheck),
    /// A SIP OPTIONS request is answered as expected.
    Sip(SipCheck),
    /// An LDAP bind succeeds, and the root DSE is found.
    Ldap(LdapCheck),
    /// An echo request is answered; it has no ports.
    Ping,
    /// A RADIUS server answers, and knows the secret.
    Radius(RadiusCheck),
    /// An SMTP server greets, with this text if there is one, and answers EHLO.
    Smtp {
        /// `health.expect`
        expect: Option<String>,
    },
    /// A STUN binding request is answered.
    Stun {
        /// UDP or TCP.
        transport: CheckTransport,
    },
    /// A TCP connection is accepted.
    Tcp,
    /// A TLS handshake completes.
    Tls(TlsCheck),
    /// A datagram is answered as expected.
    Udp(UdpCheck),
}

/// What carries a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// UDP.
    Datagram,
    /// ICMP echo.
    Echo,
    /// TCP, with or without TLS.
    Stream,
}

impl CheckKind {
    /// What carries it.
    pub fn carrier(&self) -> Carrier {
        match self {
            CheckKind::Ping => Carrier::Echo,
            CheckKind::Radius(_) | CheckKind::Udp(_) => Carrier::Datagram,
            CheckKind::Dns(DnsCheck { transport, .. }) | CheckKind::Stun { transport } => match transport {
                CheckTransport::Udp => Carrier::Datagram,
                CheckTransport::Tcp | CheckTransport::Tls => Carrier::Stream,
            },
            CheckKind::Sip(sip) if sip.transport == CheckTransport::Udp => Carrier::Datagram,
            CheckKind::Agent { .. }
            | CheckKind::External(_)
            | CheckKind::Http(_)
            | CheckKind::Https(..)
            | CheckKind::Ldap(_)
            | CheckKind::Sip(_)
            | CheckKind::Smtp { .. }
            | CheckKind::Tcp
            | CheckKind::Tls(_) => Carrier::Stream,
        }
    }

    /// The handshake before anything else, if there is one.
    pub fn tls(&self) -> Option<&TlsCheck> {
        match self {
            CheckKind::Https(_, tls) | CheckKind::Tls(tls) => Some(tls),
            CheckKind::Ldap(ldap) => ldap.tls.as_ref(),
            CheckKind::Sip(sip) => sip.tls.as_ref(),
            _ => None,
        }
    }
}

/// `health.transport`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckTransport {
    /// TCP.
    Tcp,
    /// TLS over TCP.
    Tls,
    /// UDP.
    Udp,
}

/// The query of a check, and which answer passes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct DnsCheck {
    /// UDP or TCP.
    pub transport: CheckTransport,
    /// `health.query`
    pub query: String,
    /// `health.query_type`
    pub record: DnsType,
    /// Codes that pass, never empty; see [`RCODES`].
    pub rcodes: Vec<u8>,
    /// The data of one record of the answer.
    pub expect: Option<String>,
}

/// `health.query_type`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum DnsType {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// The canonical name.
    Cname,
    /// Mail exchangers.
    Mx,
    /// Name servers.
    Ns,
    /// The name of an address.
    Ptr,
    /// The start of authority.
    Soa,
    /// Services.
    Srv,
    /// Texts.
    Txt,
}

/// Response codes of DNS by name (RFC 1035 section 4.1.1).
pub const RCODES: [(&str, u8); 6] =
    [("noerror", 0), ("formerr", 1), ("servfail", 2), ("nxdomain", 3), ("notimp", 4), ("refused", 5)];

/// The bind and the search of a check.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct LdapCheck {
    /// Who binds; `None` = anonymous.
    pub bind: Option<LdapBind>,
    /// What a line `attribute: value` of the root DSE must contain.
    pub expect: Option<String>,
    /// The handshake before; `None` = no TLS.
    pub tls: Option<TlsCheck>,
}

/// A simple bind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct LdapBind {
    /// `health.user`
    pub user: String,
    /// File with the password.
    pub secret_file: PathBuf,
}

/// The request of a check, and which answer passes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RadiusCheck {
    /// File with the secret that the server has for us.
    pub secret_file: PathBuf,
    /// Who asks for access; `None` = the status is asked for.
    pub user: Option<String>,
    /// File with the user's password; one exactly with a user.
    pub password_file: Option<PathBuf>,
    /// Which answer to the user passes.
    pub expect: RadiusAnswer,
    /// Whether an answer to the user without a Message-Authenticator passes for one.
    pub message_authenticator: MessageAuthenticator,
}

/// `health.message_authenticator`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MessageAuthenticator {
    /// A wrong one is refused, none is not.
    Optional,
    /// Answers have to have one.
    Required,
}

/// Answers to an Access-Request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RadiusAnswer {
    /// Access-Accept.
    Accept,
    /// One of them, or a challenge.
    Any,
    /// Access-Reject: of a user that nobody knows.
    Reject,
}

/// The datagram of a check, and which answer passes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct UdpCheck {
    /// What is sent; may be empty.
    pub send: Vec<u8>,
    /// What the answer must contain.
    pub expect: Option<Vec<u8>>,
    /// Whether no answer passes as long as nobody refuses.
    pub silence_passes: bool,
}

/// A program and its arguments; no shell comes near them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct CommandLine {
    /// Its whole path.
    pub program: PathBuf,
    /// What it is told.
    pub arguments: Vec<String>,
}

/// The OPTIONS request of a check, and which response passes it (RFC 3261 §11).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct SipCheck {
    /// What it is spoken over.
    pub transport: CheckTransport,
    /// The handshake, where that is TLS.
    pub tls: Option<TlsCheck>,
    /// `health.host`, the domain that is asked; `None` = the server's address and port.
    pub host: Option<String>,
    /// Status codes that pass, as ranges: ascending, apart, never empty.
    pub statuses: Vec<(u16, u16)>,
    /// What the response must contain.
    pub expect: Option<String>,
}

/// The request of a check, and which response passes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct HttpCheck {
    /// Whether the body is asked for: GET, else HEAD.
    pub get: bool,
    /// `health.path`
    pub path: String,
    /// `health.host`; `None` = the server's address and port.
    pub host: Option<String>,
    /// Status codes that pass, as ranges: ascending, apart, never empty.
    pub statuses: Vec<(u16, u16)>,
    /// What the body must contain.
    pub expect: Option<String>,
}

/// The handshake of a check.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct TlsCheck {
    /// The name for SNI and the certificate; `None` = the server's address, and no SNI.
    pub name: Option<String>,
    /// File (PEM) of the authorities that the server's certificate must come from; `None` = any certificate passes.
    pub authorities: Option<PathBuf>,
    /// The certificate must be valid for so many more days; 0 = not asked.
    pub days_left: u16,
}
