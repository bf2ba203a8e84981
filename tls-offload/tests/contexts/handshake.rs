//! Handshakes in memory between a context and a client of rustls.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, Error, RootCertStore, ServerConfig, ServerConnection};
use towpath_tls::ServerContext;

use super::authority::Issued;

/// Both ends after a handshake.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) client: ClientConnection,
    pub(crate) server: ServerConnection,
}

/// Who gave up, and why.
#[derive(Debug, PartialEq)]
pub(crate) enum Failed {
    Client(Error),
    Server(Error),
}

impl Failed {
    pub(crate) fn of_server(self) -> Error {
        match self {
            Failed::Server(error) => error,
            Failed::Client(error) => panic!("the client gave up: {error}"),
        }
    }
}

/// The versions that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    Both,
    Tls12,
    Tls13,
}

/// A client that trusts `roots` and keeps no sessions unless its `resumption` is set.
pub(crate) fn client(roots: RootCertStore, speaks: Speaks) -> ClientConfig {
    client_of(aws_lc_rs::default_provider(), roots, speaks, None)
}

/// The same with a certificate.
pub(crate) fn client_with(roots: RootCertStore, speaks: Speaks, issued: &Issued) -> ClientConfig {
    client_of(aws_lc_rs::default_provider(), roots, speaks, Some(issued))
}

pub(crate) fn client_of(
    crypto: CryptoProvider,
    roots: RootCertStore,
    speaks: Speaks,
    issued: Option<&Issued>,
) -> ClientConfig {
    let versions: &[_] = match speaks {
        Speaks::Both => &[&TLS13, &TLS12],
        Speaks::Tls12 => &[&TLS12],
        Speaks::Tls13 => &[&TLS13],
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(crypto))
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = match issued {
        None => builder.with_no_client_auth(),
        Some(issued) => builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
            rustls::sign::CertifiedKey::clone(issued.identity.certified_key()),
        ))),
    };
    config.resumption = rustls::client::Resumption::disabled();
    config
}

/// A handshake with a service, asking for `name`.
pub(crate) fn visit(context: &ServerContext, client: &Arc<ClientConfig>, name: &str) -> Result<Pair, Failed> {
    shake(context.config(), client, ServerName::try_from(name.to_owned()).expect("a name"))
}

/// A handshake, and everything that either end still has to say after it.
pub(crate) fn shake(
    server: &Arc<ServerConfig>,
    client: &Arc<ClientConfig>,
    name: ServerName<'static>,
) -> Result<Pair, Failed> {
    let mut client = ClientConnection::new(Arc::clone(client), name).expect("a client");
    let mut server = ServerConnection::new(Arc::clone(server)).expect("a server");
    while client.wants_write() || server.wants_write() {
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).expect("into memory");
        }
        feed(&flight, |rest| server.read_tls(rest).map(drop));
        if let Err(error) = server.process_new_packets() {
            return Err(Failed::Server(error));
        }
        let mut flight = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut flight).expect("into memory");
        }
        feed(&flight, |rest| client.read_tls(rest).map(drop));
        if let Err(error) = client.process_new_packets() {
            // The server hears of it, and that is what its operator sees.
            let mut alert = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut alert).expect("into memory");
            }
            feed(&alert, |rest| server.read_tls(rest).map(drop));
            return Err(match server.process_new_packets() {
                Err(Error::AlertReceived(_)) | Ok(_) => Failed::Client(error),
                Err(error) => Failed::Server(error),
            });
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking(), "a handshake that came to nothing");
    Ok(Pair { client, server })
}

fn feed(mut flight: &[u8], mut read: impl FnMut(&mut &[u8]) -> std::io::Result<()>) {
    while !flight.is_empty() {
        read(&mut flight).expect("from memory");
    }
}
