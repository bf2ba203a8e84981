//! What the handshakes of a service are done with: towards its clients, and towards each of its real servers.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption as ClientResumption;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, ClientConfig, NamedGroup, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion};
use thiserror::Error;

use crate::client_certs::{ClientCertificates, ClientVerifier};
use crate::resolver::{IdentityResolver, ServedIdentity, SniMatch};
use crate::server_certs::{ServerVerification, server_verifier};
use crate::sessions::{ServerSessions, SessionCache};
use crate::tickets::{TicketKeys, Tickets};
use crate::{Connection, Fault, Identity, Provider};

/// TLS 1.3 tickets that a client gets: a second one costs 4 to 10 µs a handshake, and clients that come once at a time use one.
const TICKETS_PER_HANDSHAKE: usize = 1;

/// Oldest version that is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MinVersion {
    /// TLS 1.2 and 1.3.
    #[default]
    Tls12,
    /// TLS 1.3 only.
    Tls13,
}

/// Which cipher suites are spoken. AES-128-GCM with SHA-256 is the first of each: SHA-384 costs a quarter of a P-256 handshake more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CipherPolicy {
    /// TLS 1.2 and 1.3, forward secrecy and AEAD only (Mozilla's `intermediate` without finite-field Diffie-Hellman).
    #[default]
    Intermediate,
    /// The suites of TLS 1.3 only, whatever the oldest version is (Mozilla's `modern`).
    Modern,
}

/// How the sessions of clients are resumed.
#[derive(Clone, Debug)]
pub enum Resumption {
    /// From a table of this process.
    Cache {
        /// Sessions kept; the oldest goes first.
        sessions_max: usize,
        /// How long a session may be resumed.
        lifetime: Duration,
    },
    /// Never: each handshake is a full one.
    Off,
    /// By tickets that clients keep, under keys that all workers and machines with the same secret share.
    Tickets(Arc<TicketKeys>),
}

/// What a [`ServerContext`] is made from.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Identifies the service: a session of one service is never resumed at another.
    pub service: String,
    /// Whose cryptography.
    pub provider: Provider,
    /// Certificates; the first is for clients that name none of them. Never empty.
    pub identities: Vec<ServedIdentity>,
    /// Oldest version.
    pub min_version: MinVersion,
    /// Cipher suites.
    pub ciphers: CipherPolicy,
    /// Whether X25519MLKEM768 is accepted, and preferred (aws-lc-rs only; ring has none).
    pub post_quantum: bool,
    /// Application protocols in our order of preference; empty = ALPN is not answered.
    pub alpn: Vec<Vec<u8>>,
    /// Whether clients that name no certificate of ours are refused.
    pub strict_sni: bool,
    /// How sessions are resumed.
    pub resumption: Resumption,
    /// Certificates of clients.
    pub client_certificates: ClientCertificates,
}

/// What a [`ClientContext`] is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientSettings {
    /// Whose cryptography.
    pub provider: Provider,
    /// Oldest version.
    pub min_version: MinVersion,
    /// Cipher suites.
    pub ciphers: CipherPolicy,
    /// Whether X25519MLKEM768 is offered first: its share makes the ClientHello 1.2 KB longer.
    pub post_quantum: bool,
    /// How the real server is known to be the right one.
    pub verification: ServerVerification,
    /// The name for SNI and verification; `None` = the one that the client named, or else the server's address (and no SNI).
    pub server_name: Option<String>,
    /// Who we are towards the server, if it asks.
    pub identity: Option<Arc<Identity>>,
    /// Sessions kept for resumption; 0 = each handshake is a full one.
    pub sessions_max: usize,
}

/// Why settings make no context. Each is the operator's to mend.
#[derive(Debug, Error)]
pub enum ContextError {
    /// A certificate of an authority that cannot be one.
    #[error("authority {place}: {error}")]
    Authority {
        /// Place among the authorities, from 1.
        place: usize,
        /// What the verifier says.
        error: String,
    },
    /// An empty list of authorities.
    #[error("no authority: nobody could be verified")]
    NoAuthority,
    /// Nobody to be.
    #[error("no certificate")]
    NoIdentity,
    /// A revocation list that cannot be read.
    #[error("revocation list: {0}")]
    RevocationList(String),
    /// A name that cannot stand in SNI.
    #[error("{0:?} is neither a DNS name nor an address")]
    ServerName(String),
    /// What the settings ask for does not go together.
    #[error("{0}")]
    Tls(#[from] rustls::Error),
}

/// Towards the clients of one service.
#[derive(Clone)]
pub struct ServerContext {
    config: Arc<ServerConfig>,
    resolver: Arc<IdentityResolver>,
    clients: ClientVerifier,
    sessions: ServerSessions,
}

/// Towards one real server.
#[derive(Clone)]
pub struct ClientContext {
    settings: ClientSettings,
    config: Arc<ClientConfig>,
    /// `None` = by connection.
    name: Option<ServerName<'static>>,
}

impl ServerContext {
    /// Makes a context. One that follows another of the same service takes its session cache over if a session of that may be resumed here.
    pub fn new(settings: &ServerSettings, before: Option<&ServerContext>) -> Result<ServerContext, ContextError> {
        let resolver = Arc::new(IdentityResolver::new(&settings.identities, settings.strict_sni)?);
        let crypto = Arc::new(crypto(settings.provider, settings.ciphers, settings.post_quantum));
        let clients = ClientVerifier::new(&settings.client_certificates, &crypto)?;
        let mut config = ServerConfig::builder_with_provider(crypto)
            .with_protocol_versions(versions(settings.min_version, settings.ciphers))?
            .with_client_cert_verifier(clients.verifier())
            .with_cert_resolver(Arc::clone(&resolver) as _);
        config.ignore_client_order = true;
        config.alpn_protocols.clone_from(&settings.alpn);
        config.max_early_data_size = 0;
        config.send_tls13_tickets = TICKETS_PER_HANDSHAKE;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        let binding = clients.binding(&settings.service);
        let sessions = match &settings.resumption {
            Resumption::Cache { sessions_max, lifetime } => {
                let cache = before
                    .and_then(|before| before.sessions.cache_of(&binding, *sessions_max, *lifetime))
                    .unwrap_or_else(|| Arc::new(SessionCache::new(*sessions_max, *lifetime)));
                config.session_storage = Arc::clone(&cache) as _;
                ServerSessions::Cache { binding, cache }
            }
            Resumption::Off => {
                config.send_tls13_tickets = 0;
                ServerSessions::None
            }
            Resumption::Tickets(keys) => {
                config.ticketer = Arc::new(Tickets::new(Arc::clone(keys), &binding));
                ServerSessions::None
            }
        };
        Ok(ServerContext { config: Arc::new(config), resolver, clients, sessions })
    }

    /// A connection that waits for its ClientHello.
    pub fn accept(&self) -> Result<Connection, Fault> {
        Connection::accept(Arc::clone(&self.config))
    }

    /// What a client that names `server_name` (SNI; `None` = none) is to expect. Ask before [`ServerContext::accept`]: the alert that RFC 6066 §3 has
    /// for an unknown name is not one that rustls sends.
    pub fn match_sni(&self, server_name: Option<&str>) -> SniMatch {
        self.resolver.match_sni(server_name)
    }

    /// Whether a client that resumes a session is (still) let in with the certificates that it showed when the session began, `None` if it showed
    /// none. rustls does not ask again: without this a certificate that expires lives on in its sessions.
    pub fn admits_resumed(&self, certificates: Option<&[CertificateDer<'_>]>) -> Result<(), rustls::Error> {
        self.clients.admits_resumed(certificates)
    }

    /// The rustls settings.
    pub fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }
}

impl fmt::Debug for ServerContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerContext").field("resolver", &self.resolver).finish_non_exhaustive()
    }
}

impl ClientContext {
    /// Makes a context. One that follows another with the same settings is that other, with its sessions: a session that began under other settings
    /// would not be judged by these.
    pub fn new(settings: &ClientSettings, before: Option<&ClientContext>) -> Result<ClientContext, ContextError> {
        if let Some(before) = before.filter(|before| before.settings == *settings) {
            return Ok(before.clone());
        }
        let name = settings
            .server_name
            .as_ref()
            .map(|name| ServerName::try_from(name.clone()).map_err(|_| ContextError::ServerName(name.clone())))
            .transpose()?;
        let crypto = Arc::new(crypto(settings.provider, settings.ciphers, settings.post_quantum));
        let verifier = server_verifier(&settings.verification, &crypto)?;
        let builder = ClientConfig::builder_with_provider(crypto)
            .with_protocol_versions(versions(settings.min_version, settings.ciphers))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &settings.identity {
            None => builder.with_no_client_auth(),
            Some(identity) => builder.with_client_cert_resolver(Arc::new(crate::resolver::OneIdentity::new(identity))),
        };
        config.enable_early_data = false;
        config.resumption = match settings.sessions_max {
            0 => ClientResumption::disabled(),
            sessions_max => ClientResumption::store(Arc::new(crate::sessions::ClientSessions::new(sessions_max))),
        };
        Ok(ClientContext { settings: settings.clone(), config: Arc::new(config), name })
    }

    /// A connection towards the server at `address`, for a client that named `client_sni` and was given the application protocol `alpn`: the server
    /// is offered that one, so that both ends speak the same.
    pub fn connect(&self, client_sni: Option<&str>, alpn: Option<&[u8]>, address: IpAddr) -> Result<Connection, Fault> {
        let by_client = || ServerName::try_from(client_sni?.to_owned()).ok();
        let name = self.name.clone().or_else(by_client).unwrap_or_else(|| ServerName::from(address));
        Connection::connect(Arc::clone(&self.config), name, alpn)
    }

    /// Whether the server is asked for the name that the client named, not for one of its own.
    pub fn asks_for_clients_name(&self) -> bool {
        self.name.is_none()
    }

    /// The rustls settings.
    pub fn config(&self) -> &Arc<ClientConfig> {
        &self.config
    }
}

impl fmt::Debug for ClientContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientContext").field("name", &self.name).finish_non_exhaustive()
    }
}

static BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
static ONLY_TLS13: &[&SupportedProtocolVersion] = &[&TLS13];

fn versions(min: MinVersion, ciphers: CipherPolicy) -> &'static [&'static SupportedProtocolVersion] {
    match (min, ciphers) {
        (MinVersion::Tls12, CipherPolicy::Intermediate) => BOTH,
        (MinVersion::Tls13, _) | (_, CipherPolicy::Modern) => ONLY_TLS13,
    }
}

/// The provider with our order of suites and groups.
fn crypto(provider: Provider, ciphers: CipherPolicy, post_quantum: bool) -> CryptoProvider {
    let mut crypto = provider.crypto();
    // A stable sort: within a rank the provider's own order stays.
    crypto.cipher_suites.sort_by_key(|suite| suite_rank(suite.suite()));
    if ciphers == CipherPolicy::Modern {
        crypto.cipher_suites.retain(|suite| matches!(suite, SupportedCipherSuite::Tls13(_)));
    }
    crypto.kx_groups.retain(|group| group.name() != NamedGroup::X25519MLKEM768);
    if post_quantum && provider == Provider::AwsLcRs {
        let group: &'static dyn SupportedKxGroup = aws_lc_rs::kx_group::X25519MLKEM768;
        crypto.kx_groups.insert(0, group);
    }
    crypto
}

fn suite_rank(suite: CipherSuite) -> u8 {
    match suite {
        CipherSuite::TLS13_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => 0,
        CipherSuite::TLS13_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => 1,
        _ => 2,
    }
}
