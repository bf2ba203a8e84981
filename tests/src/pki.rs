//! Certificates in files for one test, clients that trust them, and servers that show them.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, CertifiedKey, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason, RevokedCertParams,
    SerialNumber, date_time_ymd, generate_simple_self_signed,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    SupportedProtocolVersion,
};
use tempfile::TempDir;

use crate::{Connection, Host, service};

/// The name in the certificate.
pub const NAME: &str = "mail.example.org";

/// A stream of a client with TLS.
pub type Stream = StreamOwned<ClientConnection, TcpStream>;

/// A stream of a server with TLS.
pub type ServerStream = StreamOwned<ServerConnection, TcpStream>;

/// A certificate with its key, in files.
#[derive(Debug)]
pub struct Pki {
    directory: TempDir,
    roots: RootCertStore,
    server: Arc<ServerConfig>,
}

impl Pki {
    /// A new one, with ECDSA P-256.
    ///
    /// # Panics
    ///
    /// When there is no place for its files.
    pub fn new() -> Pki {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed([NAME.to_owned()]).expect("a certificate");
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join("cert.pem"), cert.pem()).expect("a file");
        write_secret(&directory.path().join("key.pem"), &signing_key.serialize_pem());
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).expect("a root");
        let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
        let server = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .expect("a key that fits");
        Pki { directory, roots, server: Arc::new(server) }
    }

    /// The file of the certificate.
    pub fn certificate(&self) -> PathBuf {
        self.directory.path().join("cert.pem")
    }

    /// The file of its key.
    pub fn key(&self) -> PathBuf {
        self.directory.path().join("key.pem")
    }

    /// The certificate itself.
    ///
    /// # Panics
    ///
    /// When its file is gone.
    pub fn certificate_der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.certificate()).expect("PEM")
    }

    /// A service whose TLS is ended with it.
    pub fn service(&self, vip: Ipv4Addr, mode: &str, keys: &str, servers: &[(&str, IpAddr)]) -> String {
        let (certificate, key) = (self.certificate(), self.key());
        let tls = format!(
            "[service.tls]\nmode = \"{mode}\"\n{keys}\n[[service.tls.certificate]]\nfile = \"{}\"\nkey = \"{}\"\n",
            certificate.display(),
            key.display()
        );
        service("web", vip, "443", &tls, servers)
    }

    /// Settings of a client that trusts it and speaks these versions.
    pub fn client_config(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        client_config(&self.roots, versions, None)
    }

    /// A server's end of a connection, with the same certificate, whose handshake is over.
    pub fn accept(&self, mut socket: TcpStream) -> io::Result<ServerStream> {
        let mut server = ServerConnection::new(Arc::clone(&self.server)).map_err(io::Error::other)?;
        while server.is_handshaking() {
            server.complete_io(&mut socket)?;
        }
        Ok(StreamOwned::new(server, socket))
    }

    /// A connection whose handshake is over.
    pub fn open(&self, host: &Host, to: impl Into<SocketAddr>) -> io::Result<Stream> {
        open_with(&self.client_config(rustls::ALL_VERSIONS), host, to)
    }
}

impl Default for Pki {
    fn default() -> Pki {
        Pki::new()
    }
}

/// An authority, by a certificate of which it vouches for others: what clients trust, and what clients are judged by.
#[derive(Debug)]
pub struct Authority {
    root: CertifiedIssuer<'static, KeyPair>,
    /// Whose key signs what is issued: clients have to be shown it.
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

/// What an authority has issued: a chain and its key, in files.
#[derive(Debug)]
pub struct Issued {
    /// PEM with the certificate and that of its issuer.
    pub chain: PathBuf,
    /// PEM with the key.
    pub key: PathBuf,
    serial: u64,
}

impl Authority {
    /// A new one.
    ///
    /// # Panics
    ///
    /// When there is no place for its files.
    pub fn new(name: &str) -> Authority {
        let params = |name: String| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params
        };
        let key = || KeyPair::generate().expect("a key");
        let root = CertifiedIssuer::self_signed(params(name.to_owned()), key()).expect("an authority");
        let issuer = CertifiedIssuer::signed_by(params(format!("{name}'s issuer")), key(), &root).expect("an issuer");
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join("root.pem"), root.pem()).expect("a file");
        Authority { root, issuer, directory }
    }

    /// PEM with its certificate: the root that others trust.
    pub fn certificate(&self) -> PathBuf {
        self.directory.path().join("root.pem")
    }

    /// PEM with its certificate and that of its issuer, and its revocation lists with these certificates in them.
    ///
    /// # Panics
    ///
    /// When there is no place for the files.
    pub fn policy(&self, revoked: &[&Issued]) -> (PathBuf, PathBuf) {
        let list = |by: &CertifiedIssuer<'static, KeyPair>, revoked: &[&Issued]| {
            let revoked = revoked.iter().map(|issued| RevokedCertParams {
                serial_number: SerialNumber::from(issued.serial),
                revocation_time: date_time_ymd(2024, 2, 1),
                reason_code: Some(RevocationReason::KeyCompromise),
                invalidity_date: None,
            });
            let params = CertificateRevocationListParams {
                this_update: date_time_ymd(2024, 2, 1),
                next_update: date_time_ymd(2100, 1, 1),
                crl_number: SerialNumber::from(1),
                issuing_distribution_point: None,
                revoked_certs: revoked.collect(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            params.signed_by(by).expect("a list").pem().expect("PEM")
        };
        let write = |name, text: String| {
            let path = self.directory.path().join(name);
            std::fs::write(&path, text).expect("a file");
            path
        };
        let authorities = write("authorities.pem", self.root.pem() + &self.issuer.pem());
        (authorities, write("lists.pem", list(&self.root, &[]) + &list(&self.issuer, revoked)))
    }

    /// A certificate of these names, for servers and clients.
    ///
    /// # Panics
    ///
    /// When there is no place for its files.
    pub fn issue(&self, names: &[&str]) -> Issued {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names.clone()).expect("names");
        params.distinguished_name.push(DnType::CommonName, names.first().map_or("", String::as_str));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let serial = std::fs::read_dir(self.directory.path()).expect("our directory").count() as u64 + 1;
        params.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let path = |kind: &str| self.directory.path().join(format!("{serial}.{kind}"));
        let issued = Issued { chain: path("pem"), key: path("key"), serial };
        std::fs::write(&issued.chain, certificate.pem() + &self.issuer.pem()).expect("a file");
        write_secret(&issued.key, &key.serialize_pem());
        issued
    }

    /// Settings of a client that trusts it, speaks these versions, and shows a certificate if asked.
    ///
    /// # Panics
    ///
    /// When a file of the certificate is gone.
    pub fn client_config(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        shows: Option<&Issued>,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.der().clone()).expect("a root");
        client_config(&roots, versions, shows)
    }
}

impl Issued {
    /// The chain, the certificate itself first.
    ///
    /// # Panics
    ///
    /// When its file is gone.
    pub fn certificates(&self) -> Vec<CertificateDer<'static>> {
        let chain = CertificateDer::pem_file_iter(&self.chain).expect("a file");
        chain.map(|certificate| certificate.expect("PEM")).collect()
    }

    /// The table of a service, or of an identity, that shows it.
    pub fn table(&self, table: &str) -> String {
        format!("{table}\nfile = \"{}\"\nkey = \"{}\"\n", self.chain.display(), self.key.display())
    }
}

/// A file that nobody else can read.
fn write_secret(path: &Path, text: &str) {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).expect("a file");
    file.write_all(text.as_bytes()).expect("a file");
}

fn client_config(
    roots: &RootCertStore,
    versions: &[&'static SupportedProtocolVersion],
    shows: Option<&Issued>,
) -> Arc<ClientConfig> {
    let crypto = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(crypto).with_protocol_versions(versions).expect("versions");
    let builder = builder.with_root_certificates(roots.clone());
    Arc::new(match shows {
        None => builder.with_no_client_auth(),
        Some(issued) => {
            let key = PrivateKeyDer::from_pem_file(&issued.key).expect("a key");
            builder.with_client_auth_cert(issued.certificates(), key).expect("a key that fits")
        }
    })
}

/// A connection of a client with these settings, whose handshake is over.
pub fn open_with(config: &Arc<ClientConfig>, host: &Host, to: impl Into<SocketAddr>) -> io::Result<Stream> {
    open_for(config, NAME, host, to)
}

/// The same for this name.
///
/// # Panics
///
/// When it is none.
pub fn open_for(
    config: &Arc<ClientConfig>,
    name: &'static str,
    host: &Host,
    to: impl Into<SocketAddr>,
) -> io::Result<Stream> {
    let connection = Connection::open(host, to)?;
    let mut socket = connection.stream().try_clone()?;
    let name = ServerName::try_from(name).expect("a name");
    let mut client = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    while client.is_handshaking() {
        client.complete_io(&mut socket)?;
    }
    Ok(StreamOwned::new(client, socket))
}
