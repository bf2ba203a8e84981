//! The contexts of all services: made from the model and its files, and put in force together with the snapshot.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use towpath_config::model::{
    CertificateFiles, CipherPolicy, ClientAuthorities, ClientCertificate, EndedTls, Model, Resumption, TlsPool,
    TlsProvider, TlsVersion, VerifyServer, VirtualService,
};
use towpath_core::registry::Registry;
use towpath_core::snapshot::{Snapshot, Target};
use towpath_core::{RealServerId, ServiceId};
use towpath_tls::{
    ClientCertificates, ClientContext, ClientSettings, ClientTrust, ContextError, Dates, FileError, Identity,
    IdentityError, IdentityFiles, MinVersion, Provider, SecretError, ServedIdentity, ServerContext, ServerSettings,
    ServerVerification, TicketKeys, load_authorities, load_revocations, load_secret, load_staple, revocation_dates,
    staple_dates,
};

/// Sessions of clients that a service with `resumption = "cache"` keeps: as many as HAProxy does by default.
pub(crate) const CACHED_SESSIONS_MAX: usize = 20_000;
/// Our sessions that are kept per service and real server.
const SERVER_SESSIONS_MAX: usize = 32;

/// The contexts of all services, for one generation.
#[derive(Debug, Default)]
pub struct TlsContexts {
    services: HashMap<ServiceId, Arc<ServiceTls>>,
}

/// TLS of one service. A connection keeps the one that it began with.
#[derive(Debug)]
pub struct ServiceTls {
    /// Towards its clients.
    pub clients: ServerContext,
    /// How long a handshake with a client may take, in milliseconds.
    pub handshake_timeout_ms: u64,
    /// Towards the real servers that TLS goes on to.
    servers: HashMap<RealServerId, ClientContext>,
}

/// Why the files of a service make no contexts, or those of the process no ticket keys.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A certificate with its key.
    #[error("service `{service}`: tls.certificate: {error}")]
    Certificate {
        /// The service.
        service: String,
        /// What is wrong.
        error: Box<IdentityError>,
    },
    /// What the files and settings of a service say together.
    #[error("service `{service}`: tls: {error}")]
    Context {
        /// The service.
        service: String,
        /// What is wrong.
        error: ContextError,
    },
    /// Another file of a service.
    #[error("service `{service}`: tls.{key}: {error}")]
    File {
        /// The service.
        service: String,
        /// The key that names the file.
        key: &'static str,
        /// What is wrong.
        error: FileError,
    },
    /// The secret of tickets.
    #[error("tls.ticket_key_file: {0}")]
    Secret(#[from] SecretError),
    /// The file with the secret of tickets.
    #[error("tls.ticket_key_file: {0}")]
    SecretFile(#[from] FileError),
}

/// Everything that is wrong at once.
#[derive(Debug, Error)]
pub struct TlsErrors(pub Vec<TlsError>);

impl fmt::Display for TlsErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if place == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

/// The contexts of a model, before it is known by which ids it is served: reading the files takes its time, and nobody is to wait for it.
#[derive(Debug, Default)]
pub struct TlsMaterial {
    services: HashMap<String, ServiceMaterial>,
    tickets: Option<Arc<TicketKeys>>,
}

#[derive(Debug)]
struct ServiceMaterial {
    /// In the order of the file.
    certificates: Vec<Arc<Identity>>,
    /// Files that end before those.
    dated: Vec<DatedFile>,
    clients: ServerContext,
    handshake_timeout_ms: u64,
    servers: HashMap<Destination, ClientContext>,
}

/// A file of a service whose content ends.
#[derive(Clone, Debug)]
pub(crate) struct DatedFile {
    pub(crate) kind: DatedKind,
    pub(crate) path: PathBuf,
    pub(crate) dates: Dates,
}

/// What ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DatedKind {
    /// What clients are judged by.
    RevocationList,
    /// What a certificate is shown with.
    Staple,
}

impl DatedKind {
    /// In the operator's words.
    pub(crate) fn noun(self) -> &'static str {
        match self {
            DatedKind::RevocationList => "revocation list",
            DatedKind::Staple => "OCSP response",
        }
    }

    /// What is done about an end.
    pub(crate) fn remedy(self) -> &'static str {
        match self {
            DatedKind::RevocationList => {
                "from its end on every client with a certificate is refused; put the next one there and reload"
            }
            DatedKind::Staple => "from its end on it is not sent; put the next one there and reload",
        }
    }
}

/// The files of a service whose content ends, with what they hold.
pub(crate) fn dated_files(ended: &EndedTls) -> impl Iterator<Item = (DatedKind, &Path)> {
    let lists = match &ended.client_certificate {
        ClientCertificate::None => None,
        ClientCertificate::Request(authorities) | ClientCertificate::Require(authorities) => authorities.crl.as_deref(),
    };
    let staples = ended.certificates.iter().filter_map(|files| files.staple.as_deref());
    let lists = lists.into_iter().map(|path| (DatedKind::RevocationList, path));
    lists.chain(staples.map(|path| (DatedKind::Staple, path)))
}

/// From when until when what `path` holds is good; `None` where it does not say.
pub(crate) fn dates_of(kind: DatedKind, path: &Path) -> Result<Option<Dates>, FileError> {
    Ok(match kind {
        DatedKind::RevocationList => revocation_dates(&load_revocations(path)?),
        DatedKind::Staple => staple_dates(&load_staple(path)?),
    })
}

/// What tells the members of one group apart.
type Destination = (IpAddr, Option<u16>);

impl TlsMaterial {
    /// Reads all files that `model` names for services that end TLS, and makes their contexts. Sessions and ticket keys go on from `before` where the
    /// policies allow it.
    pub fn load(model: &Model, before: &TlsMaterial) -> Result<TlsMaterial, TlsErrors> {
        let ended: Vec<(&VirtualService, &EndedTls)> =
            model.services.iter().filter_map(|service| Some((service, service.ended_tls()?))).collect();
        if ended.is_empty() {
            return Ok(TlsMaterial::default());
        }
        let tickets = ticket_keys(&model.tls, before.tickets.as_ref()).map_err(|error| TlsErrors(vec![error]))?;
        let mut loader = Loader { model, tickets: &tickets, identities: HashMap::new() };
        let (mut services, mut errors) = (HashMap::new(), Vec::new());
        for (service, ended) in ended {
            match loader.load(service, ended, before.services.get(&service.name)) {
                Ok(material) => drop(services.insert(service.name.clone(), material)),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(TlsMaterial { services, tickets: Some(tickets) }) } else { Err(TlsErrors(errors)) }
    }

    /// The certificates of a service in the order of the file.
    pub(crate) fn certificates_of(&self, service: &str) -> &[Arc<Identity>] {
        self.services.get(service).map_or(&[], |material| &material.certificates)
    }

    /// The certificates of all services, each with its service and its place there.
    pub(crate) fn certificates(&self) -> impl Iterator<Item = (&str, usize, &Identity)> {
        self.services.iter().flat_map(|(service, material)| {
            material
                .certificates
                .iter()
                .enumerate()
                .map(move |(place, identity)| (service.as_str(), place, &**identity))
        })
    }

    /// The files of all services whose content ends, each with its service.
    pub(crate) fn dated(&self) -> impl Iterator<Item = (&str, &DatedFile)> {
        let services = self.services.iter();
        services.flat_map(|(service, material)| material.dated.iter().map(move |file| (service.as_str(), file)))
    }

    /// The contexts for `snapshot`, which was compiled from the model of this material.
    pub fn contexts(&self, registry: &Registry, snapshot: &Snapshot) -> TlsContexts {
        let service = |(name, material): (&String, &ServiceMaterial)| {
            let id = registry.service(name)?;
            let own = snapshot.service(id)?;
            let behind = own.places_behind().into_iter().filter_map(|place| snapshot.service(place));
            let towards =
                |target: &Target| Some((target.server, material.servers.get(&(target.address, target.port))?.clone()));
            let service = ServiceTls {
                clients: material.clients.clone(),
                handshake_timeout_ms: material.handshake_timeout_ms,
                servers: own
                    .targets
                    .iter()
                    .chain(behind.flat_map(|place| &place.targets))
                    .filter_map(towards)
                    .collect(),
            };
            Some((id, Arc::new(service)))
        };
        TlsContexts { services: self.services.iter().filter_map(service).collect() }
    }
}

impl TlsContexts {
    /// TLS of a service; `None` = it is not ended here.
    #[inline]
    pub fn service(&self, service: ServiceId) -> Option<&Arc<ServiceTls>> {
        self.services.get(&service)
    }
}

impl ServiceTls {
    /// How TLS goes on towards a real server; `None` = it does not.
    #[inline]
    pub fn towards(&self, server: RealServerId) -> Option<&ClientContext> {
        self.servers.get(&server)
    }
}

/// Reads the files of services, those that several name only once.
struct Loader<'m> {
    model: &'m Model,
    tickets: &'m Arc<TicketKeys>,
    identities: HashMap<&'m CertificateFiles, Arc<Identity>>,
}

impl<'m> Loader<'m> {
    fn load(
        &mut self,
        service: &VirtualService,
        ended: &'m EndedTls,
        before: Option<&ServiceMaterial>,
    ) -> Result<ServiceMaterial, TlsError> {
        let context = |error| TlsError::Context { service: service.name.clone(), error };
        let file = |key| move |error| TlsError::File { service: service.name.clone(), key, error };
        let mut identities = Vec::with_capacity(ended.certificates.len());
        for files in &ended.certificates {
            let identity = self.identity(service, files)?;
            let staple = files.staple.as_deref().map(load_staple).transpose().map_err(file("certificate.staple"))?;
            identities.push(ServedIdentity { identity, staple });
        }
        let trust = |authorities: &ClientAuthorities| {
            Ok::<_, TlsError>(ClientTrust {
                authorities: load_authorities(&authorities.ca).map_err(file("client_ca"))?,
                revocations: match &authorities.crl {
                    None => Vec::new(),
                    Some(path) => load_revocations(path).map_err(file("client_crl"))?,
                },
            })
        };
        let client_certificates = match &ended.client_certificate {
            ClientCertificate::None => ClientCertificates::None,
            ClientCertificate::Request(authorities) => ClientCertificates::Request(trust(authorities)?),
            ClientCertificate::Require(authorities) => ClientCertificates::Require(trust(authorities)?),
        };
        let pool = &self.model.tls;
        let clients = ServerSettings {
            service: service.name.clone(),
            provider: provider(pool.provider),
            identities,
            min_version: min_version(ended.min_version),
            ciphers: ciphers(ended.ciphers),
            post_quantum: pool.post_quantum,
            alpn: protocols(service, ended),
            strict_sni: ended.strict_sni,
            resumption: match ended.resumption {
                Resumption::Cache => towpath_tls::Resumption::Cache {
                    sessions_max: CACHED_SESSIONS_MAX,
                    lifetime: Duration::from_millis(pool.ticket_lifetime_ms),
                },
                Resumption::Off => towpath_tls::Resumption::Off,
                Resumption::Tickets => towpath_tls::Resumption::Tickets(Arc::clone(self.tickets)),
            },
            client_certificates,
        };
        // A server that stands in several groups says the same in each.
        let members = self.model.servers_of(service);
        let again: Vec<_> = members.filter(|server| ended.re_encrypts(server)).collect();
        let mut servers = HashMap::new();
        if !again.is_empty() {
            let verification = match &ended.servers.verify {
                VerifyServer::Ca(path) => {
                    ServerVerification::Authorities(load_authorities(path).map_err(file("server_ca"))?)
                }
                VerifyServer::None => ServerVerification::None,
                VerifyServer::Pinned(pins) => ServerVerification::Pinned(pins.clone()),
            };
            let identity = match &ended.servers.identity {
                None => None,
                Some(files) => Some(self.identity(service, files)?),
            };
            for server in again {
                let settings = ClientSettings {
                    provider: clients.provider,
                    min_version: clients.min_version,
                    ciphers: clients.ciphers,
                    post_quantum: clients.post_quantum,
                    verification: verification.clone(),
                    server_name: ended.server_name(server).map(str::to_owned),
                    identity: identity.clone(),
                    sessions_max: SERVER_SESSIONS_MAX,
                };
                let destination = (server.address, server.port);
                if servers.contains_key(&destination) {
                    continue;
                }
                let before = before.and_then(|before| before.servers.get(&destination));
                servers.insert(destination, ClientContext::new(&settings, before).map_err(context)?);
            }
        }
        let dated = |(kind, path): (DatedKind, &Path)| {
            // It was read just now; a file that was taken away since shows at the next reload.
            let dates = dates_of(kind, path).ok()??;
            Some(DatedFile { kind, path: path.to_path_buf(), dates })
        };
        let dated = dated_files(ended).filter_map(dated).collect();
        let certificates = clients.identities.iter().map(|served| Arc::clone(&served.identity)).collect();
        let clients = ServerContext::new(&clients, before.map(|before| &before.clients)).map_err(context)?;
        let handshake_timeout_ms = ended.handshake_timeout_ms;
        Ok(ServiceMaterial { certificates, dated, clients, handshake_timeout_ms, servers })
    }

    fn identity(&mut self, service: &VirtualService, files: &'m CertificateFiles) -> Result<Arc<Identity>, TlsError> {
        if let Some(identity) = self.identities.get(files) {
            return Ok(Arc::clone(identity));
        }
        let identity = Identity::open(&identity_files(files), provider(self.model.tls.provider))
            .map(Arc::new)
            .map_err(|error| TlsError::Certificate { service: service.name.clone(), error: Box::new(error) })?;
        self.identities.insert(files, Arc::clone(&identity));
        Ok(identity)
    }
}

/// Where a certificate and its key are, in the words of the crate that reads them.
pub(crate) fn identity_files(files: &CertificateFiles) -> IdentityFiles {
    IdentityFiles {
        certificate: files.file.clone(),
        key: files.key.clone(),
        chain: files.chain.clone(),
        password: files.password_file.clone(),
    }
}

/// The keys that tickets come from; those of `before` where nothing has changed.
fn ticket_keys(pool: &TlsPool, before: Option<&Arc<TicketKeys>>) -> Result<Arc<TicketKeys>, TlsError> {
    let lifetime = Duration::from_millis(pool.ticket_lifetime_ms);
    let secret = pool.ticket_key_file.as_deref().map(load_secret).transpose()?;
    let secret = secret.as_ref().map(|secret| secret.as_slice());
    if let Some(before) = before.filter(|before| before.is_of(secret, lifetime)) {
        return Ok(Arc::clone(before));
    }
    let keys = match secret {
        None => TicketKeys::drawn(lifetime),
        Some(secret) => TicketKeys::shared(secret, lifetime)?,
    };
    Ok(Arc::new(match before {
        None => keys,
        Some(before) => keys.after(before),
    }))
}

pub(crate) fn provider(provider: TlsProvider) -> Provider {
    match provider {
        TlsProvider::AwsLcRs => Provider::AwsLcRs,
        TlsProvider::Ring => Provider::Ring,
    }
}

pub(crate) fn min_version(version: TlsVersion) -> MinVersion {
    match version {
        TlsVersion::V1_2 => MinVersion::Tls12,
        TlsVersion::V1_3 => MinVersion::Tls13,
    }
}

pub(crate) fn ciphers(policy: CipherPolicy) -> towpath_tls::CipherPolicy {
    match policy {
        CipherPolicy::Intermediate => towpath_tls::CipherPolicy::Intermediate,
        CipherPolicy::Modern => towpath_tls::CipherPolicy::Modern,
    }
}
/// What clients may choose from: what is written, or what HTTP/2 needs.
fn protocols(service: &VirtualService, ended: &EndedTls) -> Vec<Vec<u8>> {
    if ended.alpn.is_empty() && service.http.as_ref().is_some_and(|http| http.http2) {
        return vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    }
    ended.alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect()
}
