//! TLS in the model: of the process, and of one service.

use std::path::PathBuf;

use serde::Serialize;

/// `[tls]`: for the whole process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TlsPool {
    /// Whose cryptography does the work.
    pub provider: TlsProvider,
    /// Who carries out the handshakes that sign.
    pub threads: HandshakeThreads,
    /// A handshake that has waited for its signature this long is refused.
    pub queue_deadline_ms: u64,
    /// Whether X25519MLKEM768 is offered, before all others.
    pub post_quantum: bool,
    /// How long a session may be resumed.
    pub ticket_lifetime_ms: u64,
    /// File with the secret that tickets are sealed by; `None` = a secret of each start's own.
    pub ticket_key_file: Option<PathBuf>,
}

/// `tls.provider`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsProvider {
    /// AWS-LC.
    AwsLcRs,
    /// ring.
    Ring,
}

/// `tls.threads`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HandshakeThreads {
    /// One on each CPU that no worker has; without one, the workers.
    Auto,
    /// So many; with 0 the workers, other traffic first.
    Count(u16),
    /// One on each of these CPU ids; not empty, no id twice.
    Cpus(Vec<usize>),
}

/// `service.tls`: who ends TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceTls {
    /// Ended here.
    Ended(Box<EndedTls>),
    /// Not touched.
    PassThrough(PassThrough),
}

/// `tls.mode = "pass-through"`, also where there is no `tls`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PassThrough {
    /// Groups by the name that a ClientHello asks for; empty = the bytes are not looked at. No name stands twice.
    pub routes: Vec<TlsRoute>,
    /// How long the first bytes of a client are waited for before it goes to the service's own servers.
    pub handshake_timeout_ms: u64,
}

/// `[[service.tls.route]]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TlsRoute {
    /// Names in lower case, `*.` in front for every name with one label more; never empty.
    pub names: Vec<String>,
    /// Index into [`crate::Model::groups`].
    pub group: usize,
}

/// `tls.mode = "terminate"` or `"re-encrypt"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndedTls {
    /// Never empty; the first is for clients that ask for no name, and, without `strict_sni`, for one that none has.
    pub certificates: Vec<CertificateFiles>,
    /// Whether clients are refused that ask for a name which no certificate has.
    pub strict_sni: bool,
    /// Oldest version, of either side; with [`CipherPolicy::Modern`] always TLS 1.3.
    pub min_version: TlsVersion,
    /// Which cipher suites, on either side.
    pub ciphers: CipherPolicy,
    /// Protocols that clients may choose from, best first, each of 1 to 255 bytes; empty = ALPN is not answered.
    pub alpn: Vec<String>,
    /// How clients resume a session.
    pub resumption: Resumption,
    /// How long a client may take from its first byte's wait to the end of its handshake.
    pub handshake_timeout_ms: u64,
    /// Certificates of clients.
    pub client_certificate: ClientCertificate,
    /// Whether TLS goes on towards servers that do not say otherwise; see [`EndedTls::re_encrypts`].
    pub re_encrypt: bool,
    /// TLS towards those servers.
    pub servers: ServerTls,
}

impl EndedTls {
    /// Whether TLS goes on towards this server.
    pub fn re_encrypts(&self, server: &super::Server) -> bool {
        server.re_encrypt.unwrap_or(self.re_encrypt)
    }

    /// The name that is sent to this server (SNI) and expected in its certificate; `None` = the one that the client asked for, else the
    /// server's address, which is expected but never sent (RFC 6066 §3).
    pub fn server_name<'a>(&'a self, server: &'a super::Server) -> Option<&'a str> {
        server.server_name.as_deref().or(self.servers.name.as_deref())
    }
}

/// `[[service.tls.certificate]]`, and `service.tls.identity`: where a certificate and its private key are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct CertificateFiles {
    /// PEM with the certificate, or a PFX file.
    pub file: PathBuf,
    /// PEM with the private key; `None` = it is in `file`.
    pub key: Option<PathBuf>,
    /// PEM with the certificates of the issuers; `None` = those in `file`.
    pub chain: Option<PathBuf>,
    /// File whose first line is the password of the private key or PFX file.
    pub password_file: Option<PathBuf>,
    /// OCSP response in DER; only for clients.
    pub staple: Option<PathBuf>,
}

/// `tls.min_version`
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum TlsVersion {
    /// TLS 1.2.
    #[serde(rename = "1.2")]
    V1_2,
    /// TLS 1.3.
    #[serde(rename = "1.3")]
    V1_3,
}

/// `tls.ciphers`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CipherPolicy {
    /// Those of TLS 1.3, and ECDHE with AEAD for TLS 1.2.
    Intermediate,
    /// Those of TLS 1.3.
    Modern,
}

/// `tls.resumption`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resumption {
    /// Sessions are kept here.
    Cache,
    /// Every handshake is a full one.
    Off,
    /// Clients keep their sessions, sealed.
    Tickets,
}

/// `tls.client_certificate`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientCertificate {
    /// Not asked for.
    None,
    /// Asked for: a client may show none, but not a wrong one.
    Request(ClientAuthorities),
    /// Demanded.
    Require(ClientAuthorities),
}

/// Who vouches for clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClientAuthorities {
    /// PEM with their certificates.
    pub ca: PathBuf,
    /// PEM with their revocation lists.
    pub crl: Option<PathBuf>,
}

/// TLS towards servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServerTls {
    /// How a server shows who it is.
    pub verify: VerifyServer,
    /// As in [`EndedTls::server_name`], for servers that have none of their own.
    pub name: Option<String>,
    /// The certificate that servers are shown when they ask for one.
    pub identity: Option<CertificateFiles>,
}

/// `tls.verify_server`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VerifyServer {
    /// Its certificate comes from an authority of this PEM file, is valid, and has the name.
    Ca(PathBuf),
    /// Whoever answers at its address.
    None,
    /// Its own certificate has one of these SHA-256 sums; never empty.
    Pinned(Vec<[u8; 32]>),
}
