//! Which certificate real servers show: Extended Protection binds a logon to the one that the client saw.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use towpath_config::model::{EndedTls, Model, Server, VirtualService};
use towpath_tls::{
    ClientContext, ClientSettings, Fault, Identity, IdentityFiles, ServerVerification, Sha256, Step, fingerprint,
};

use crate::tls::{ciphers, identity_files, min_version, provider};

/// How long a real server may take for each of its answers.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Handshakes at a time.
const HANDSHAKES_MAX: usize = 32;

/// What a real server that TLS goes on to has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Name of the service.
    pub service: String,
    /// Name of the server.
    pub server: String,
    /// Its address.
    pub ip: IpAddr,
    /// SHA-256 of its own certificate; an error says why there is none.
    pub certificate: Result<Sha256, NotShown>,
}

/// Why a real server has shown no certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotShown {
    /// It has no version, cipher suite or key exchange in common with us.
    NothingShared,
    /// Something else, which the probes of its port tell, or its log.
    Other,
}

/// Begins a handshake with every real server that TLS goes on to, and asks for nothing.
pub(super) fn shown(model: &Model, questions_max: usize) -> Vec<Shown> {
    let mut wanted = Vec::new();
    for service in &model.services {
        let Some(tls) = service.ended_tls() else { continue };
        for server in model.servers_of(service).filter(|server| tls.re_encrypts(server)) {
            wanted.push((service, tls, server));
        }
    }
    wanted.truncate(questions_max);
    let mut all = Vec::new();
    for some in wanted.chunks(HANDSHAKES_MAX) {
        thread::scope(|scope| {
            let running: Vec<_> = some
                .iter()
                .map(|&(service, tls, server)| scope.spawn(move || ask(model, service, tls, server)))
                .collect();
            all.extend(running.into_iter().filter_map(|asked| asked.join().ok()?));
        });
    }
    all
}

fn ask(model: &Model, service: &VirtualService, tls: &EndedTls, server: &Server) -> Option<Shown> {
    let port = server.port.or_else(|| service.sockets().next().map(|socket| socket.port()))?;
    let files: Option<IdentityFiles> = tls.servers.identity.as_ref().map(identity_files);
    let provider = provider(model.tls.provider);
    let settings = ClientSettings {
        provider,
        min_version: min_version(tls.min_version),
        ciphers: ciphers(tls.ciphers),
        post_quantum: model.tls.post_quantum,
        verification: ServerVerification::None,
        server_name: tls.server_name(server).map(str::to_owned),
        identity: files.and_then(|files| Identity::open(&files, provider).ok()).map(Arc::new),
        sessions_max: 0,
    };
    let context = ClientContext::new(&settings, None).ok()?;
    // Whoever names no host gets the certificate that is nobody's: ask as a client would.
    let named = tls.certificates.first().and_then(|files| Identity::open(&identity_files(files), provider).ok());
    let named = named.and_then(|identity| identity.names().iter().find(|name| !name.starts_with('*')).cloned());
    let certificate = handshake(&context, named.as_deref(), SocketAddr::new(server.address, port));
    Some(Shown { service: service.name.clone(), server: server.name.clone(), ip: server.address, certificate })
}

fn handshake(context: &ClientContext, name: Option<&str>, address: SocketAddr) -> Result<Sha256, NotShown> {
    let other = |_| NotShown::Other;
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).map_err(other)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(other)?;
    stream.set_write_timeout(Some(TIMEOUT)).map_err(other)?;
    let mut connection = context.connect(name, None, address.ip()).map_err(|_| NotShown::Other)?;
    let (mut input, mut output) = (Vec::new(), Vec::new());
    let mut buffer = [0; 16 * 1024];
    // A server that answers for ever without an end is left, as one that does not answer.
    for _ in 0..64 {
        let step = connection.handshake(&mut input, &mut output);
        let sent = stream.write_all(&output);
        output.clear();
        match step {
            Ok(Step::Complete) => {
                let certificates = connection.peer_certificates().ok_or(NotShown::Other)?;
                return certificates.first().map(fingerprint).ok_or(NotShown::Other);
            }
            Ok(Step::NeedsInput) => {}
            // Alert 40, handshake_failure, and 70, protocol_version (RFC 8446 §6.2): a server that finds nothing in common says no more.
            Err(Fault::NothingShared | Fault::Alert(40 | 70)) => return Err(NotShown::NothingShared),
            Err(_) => return Err(NotShown::Other),
        }
        sent.map_err(other)?;
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return Err(NotShown::Other),
            Ok(read) => input.extend_from_slice(&buffer[..read]),
        }
    }
    Err(NotShown::Other)
}
