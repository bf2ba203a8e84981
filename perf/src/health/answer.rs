//! Servers that are well: each port has a thread that answers one check after the other.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection, Stream};

use super::CheckedBy;
use crate::certificate::{Certificate, KeyKind};
use crate::lab::Host;

/// A check that says nothing for so long does not hold up the next one.
const PATIENCE: Duration = Duration::from_secs(1);
/// What every request is answered with.
const PAGE: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\nConnection: close\r\n\r\n200 OK";

/// Stack of a thread that answers datagrams: there is one for each server.
const STACK_BYTES: usize = 64 * 1024;

/// Answers checks of this kind at these addresses of the host, until the process ends.
pub(super) fn answer(
    host: &Host,
    kind: CheckedBy,
    addresses: &[Ipv4Addr],
    port: u16,
    answered: &Arc<AtomicU64>,
) -> io::Result<()> {
    let count = Arc::clone(answered);
    // Threads end with the process.
    let _serving: JoinHandle<io::Result<()>> = match kind {
        CheckedBy::None => return Ok(()),
        // An answer has to leave from the address that was asked, so each has a socket of its own.
        CheckedBy::Udp => {
            for address in addresses {
                let (socket, count) = (host.run(|| UdpSocket::bind((*address, port)))??, Arc::clone(&count));
                let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
                let _serving = thread.spawn(move || datagrams(&socket, &count))?;
            }
            return Ok(());
        }
        CheckedBy::Http | CheckedBy::Https | CheckedBy::Tcp | CheckedBy::Tls => {
            let listener = host.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))??;
            let tls = match kind {
                CheckedBy::Https | CheckedBy::Tls => Some(tls_config()?),
                _ => None,
            };
            let has_page = matches!(kind, CheckedBy::Http | CheckedBy::Https);
            std::thread::spawn(move || connections(&listener, tls.as_ref(), has_page, &count))
        }
    };
    Ok(())
}

fn datagrams(socket: &UdpSocket, answered: &AtomicU64) -> io::Result<()> {
    let mut buffer = [0; 2048];
    loop {
        let (_, from) = socket.recv_from(&mut buffer)?;
        socket.send_to(b"well", from)?;
        answered.fetch_add(1, Ordering::Relaxed);
    }
}

fn connections(
    listener: &TcpListener,
    tls: Option<&Arc<ServerConfig>>,
    has_page: bool,
    answered: &AtomicU64,
) -> io::Result<()> {
    for stream in listener.incoming() {
        // What a check does wrong is seen by its verdict.
        if converse(stream?, tls, has_page).is_ok() {
            answered.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

fn converse(mut stream: TcpStream, tls: Option<&Arc<ServerConfig>>, has_page: bool) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let Some(tls) = tls else { return talk(&mut stream, has_page) };
    let mut connection = ServerConnection::new(Arc::clone(tls)).map_err(io::Error::other)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    talk(&mut Stream::new(&mut connection, &mut stream), has_page)
}

/// Answers a request, if one is to come, and reads to the end.
fn talk(stream: &mut (impl Read + Write), has_page: bool) -> io::Result<()> {
    let (mut heard, mut buffer) = (Vec::new(), [0; 2048]);
    while has_page && !heard.ends_with(b"\r\n\r\n") {
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => heard.extend_from_slice(&buffer[..length]),
        }
    }
    if has_page {
        stream.write_all(PAGE)?;
        return stream.flush();
    }
    // A check that has heard enough may end with a reset.
    while matches!(stream.read(&mut buffer), Ok(1..)) {}
    Ok(())
}

fn tls_config() -> io::Result<Arc<ServerConfig>> {
    let certificate = Certificate::of_run(KeyKind::P256)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certificate.key_der.clone()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from(certificate.der.clone())], key)
        .map_err(io::Error::other)?;
    Ok(Arc::new(config))
}
