//! A certificate for one test, and clients that trust it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    SupportedProtocolVersion,
};
use tempfile::TempDir;
use towpath_tests::{Connection, Host, PATIENCE, service};

/// The name in the certificate.
pub(crate) const NAME: &str = "mail.example.org";

/// A stream of a client with TLS.
pub(crate) type Stream = StreamOwned<ClientConnection, TcpStream>;

/// A stream of a server with TLS.
pub(crate) type ServerStream = StreamOwned<ServerConnection, TcpStream>;

/// A certificate with its key, in files.
pub(crate) struct Pki {
    directory: TempDir,
    roots: RootCertStore,
    server: Arc<ServerConfig>,
}

impl Pki {
    /// A new one, with ECDSA P-256.
    pub(crate) fn new() -> Pki {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed([NAME.to_owned()]).expect("a certificate");
        let directory = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(directory.path().join("cert.pem"), cert.pem()).expect("a file");
        std::fs::write(directory.path().join("key.pem"), signing_key.serialize_pem()).expect("a file");
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
    pub(crate) fn certificate(&self) -> PathBuf {
        self.directory.path().join("cert.pem")
    }

    /// The file of its key.
    pub(crate) fn key(&self) -> PathBuf {
        self.directory.path().join("key.pem")
    }

    /// A service whose TLS is ended with it.
    pub(crate) fn service(
        &self,
        vip: Ipv4Addr,
        mode: &str,
        keys: &str,
        servers: &[(&str, std::net::IpAddr)],
    ) -> String {
        let (certificate, key) = (self.certificate(), self.key());
        let tls = format!(
            "[service.tls]\nmode = \"{mode}\"\n{keys}\n[[service.tls.certificate]]\nfile = \"{}\"\nkey = \"{}\"\n",
            certificate.display(),
            key.display()
        );
        service("web", vip, "443", &tls, servers)
    }

    /// Settings of a client that trusts it and speaks these versions.
    pub(crate) fn client_config(&self, versions: &[&'static SupportedProtocolVersion]) -> Arc<ClientConfig> {
        let crypto = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(crypto).with_protocol_versions(versions).expect("versions");
        Arc::new(builder.with_root_certificates(self.roots.clone()).with_no_client_auth())
    }

    /// A server's end of a connection, with the same certificate, whose handshake is over.
    pub(crate) fn accept(&self, mut socket: TcpStream) -> io::Result<ServerStream> {
        let mut server = ServerConnection::new(Arc::clone(&self.server)).map_err(io::Error::other)?;
        while server.is_handshaking() {
            server.complete_io(&mut socket)?;
        }
        Ok(StreamOwned::new(server, socket))
    }

    /// A connection whose handshake is over.
    pub(crate) fn open(&self, host: &Host, to: impl Into<SocketAddr>) -> io::Result<Stream> {
        open_with(&self.client_config(rustls::ALL_VERSIONS), host, to)
    }
}

/// The same with these settings.
pub(crate) fn open_with(config: &Arc<ClientConfig>, host: &Host, to: impl Into<SocketAddr>) -> io::Result<Stream> {
    open_for(config, NAME, host, to)
}

/// The same for this name.
pub(crate) fn open_for(
    config: &Arc<ClientConfig>,
    name: &'static str,
    host: &Host,
    to: impl Into<SocketAddr>,
) -> io::Result<Stream> {
    let connection = Connection::open(host, to)?;
    let mut socket = connection.stream().try_clone()?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let name = ServerName::try_from(name).expect("a name");
    let mut client = ClientConnection::new(Arc::clone(config), name).map_err(io::Error::other)?;
    while client.is_handshaking() {
        client.complete_io(&mut socket)?;
    }
    Ok(StreamOwned::new(client, socket))
}
