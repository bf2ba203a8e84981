//! TLS at either end of the load: bytes in, bytes out, and as little work as TLS allows, so that what is measured is the subject's.
//!
//! Both ends offer one cipher suite and one group, so that every subject does the same work. Whose certificate it is is no matter of the load, and no
//! signature is verified.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue, UnbufferedClientConnection,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{
    CipherSuite, ClientConfig, DigitallySignedStruct, Error, HandshakeKind, NamedGroup, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};
use towpath_tls::Provider;

use crate::certificate::{Certificate, KeyKind, NAME};

/// Offered by both ends: what a policy that prefers speed begins with.
const SUITES: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
];

/// The key exchange.
const GROUP: NamedGroup = NamedGroup::X25519;

/// Sessions that are kept for connections to come.
const SESSIONS_MAX: usize = 8192;

/// Bytes that a flight of a handshake has room for, in front of what follows it.
pub(super) const FLIGHT_BYTES_MAX: usize = 6 * 1024;

/// Bytes of a record.
const RECORD_BYTES: usize = 16 * 1024;

/// Bytes that each record takes besides: header, nonce or content type, tag (RFC 5246 section 6.2.3.3, RFC 8446 section 5.2).
const RECORD_EXTRA_BYTES: usize = 5 + 8 + 16 + 1;

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// TLS 1.2, RFC 5246.
    V12,
    /// TLS 1.3, RFC 8446.
    V13,
}

/// How clients speak TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The only version they offer.
    pub version: Version,
    /// Whether every connection resumes a session of one before; otherwise none does.
    pub resumes: bool,
}

impl Version {
    fn supported(self) -> &'static SupportedProtocolVersion {
        match self {
            Version::V12 => &rustls::version::TLS12,
            Version::V13 => &rustls::version::TLS13,
        }
    }
}

/// The cryptography of both ends.
pub(crate) fn crypto() -> CryptoProvider {
    let mut crypto = Provider::default().crypto();
    crypto.cipher_suites.retain(|suite| SUITES.contains(&suite.suite()));
    // The first is the one that is to be used; without the other, TLS 1.2 has no P-256 certificates (RFC 8422 section 5.1.1).
    crypto.kx_groups.retain(|group| [GROUP, NamedGroup::secp256r1].contains(&group.name()));
    crypto.kx_groups.sort_by_key(|group| group.name() != GROUP);
    crypto
}

/// What clients have in common.
pub(crate) fn client_config(tls: Tls) -> io::Result<Arc<ClientConfig>> {
    let crypto = crypto();
    let schemes = crypto.signature_verification_algorithms.supported_schemes();
    let mut config = ClientConfig::builder_with_provider(Arc::new(crypto))
        .with_protocol_versions(&[tls.version.supported()])
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(schemes)))
        .with_no_client_auth();
    // Clients that are new offer to resume as well, and are given tickets.
    let sessions_max = if tls.resumes { SESSIONS_MAX } else { 0 };
    config.resumption = Resumption::store(Arc::new(Sessions { sessions_max, ..Sessions::default() }));
    Ok(Arc::new(config))
}

/// For origins, with a certificate that is made now.
pub(crate) fn origin_config() -> io::Result<Arc<ServerConfig>> {
    let certificate = Certificate::create(KeyKind::P256)?;
    let key = PrivateKeyDer::try_from(certificate.key_der).map_err(io::Error::other)?;
    let config = ServerConfig::builder_with_provider(Arc::new(crypto()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from(certificate.der)], key)
        .map_err(io::Error::other)?;
    Ok(Arc::new(config))
}

/// Takes every certificate and every signature.
#[derive(Debug)]
struct Anybody(Vec<SignatureScheme>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}

/// What clients of one target may resume, the oldest first. Tickets of TLS 1.3 are used once each.
#[derive(Debug, Default)]
struct Sessions {
    sessions_max: usize,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    tls12: Option<Tls12ClientSessionValue>,
    tls13: VecDeque<Tls13ClientSessionValue>,
}

impl Sessions {
    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, _server_name: ServerName<'static>, _group: NamedGroup) {}

    fn kx_hint(&self, _server_name: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _server_name: ServerName<'static>, value: Tls12ClientSessionValue) {
        if self.sessions_max > 0 {
            self.kept().tls12 = Some(value);
        }
    }

    fn tls12_session(&self, _server_name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.kept().tls12.clone()
    }

    fn remove_tls12_session(&self, _server_name: &ServerName<'static>) {
        self.kept().tls12 = None;
    }

    fn insert_tls13_ticket(&self, _server_name: ServerName<'static>, value: Tls13ClientSessionValue) {
        let mut kept = self.kept();
        if kept.tls13.len() < self.sessions_max {
            kept.tls13.push_back(value);
        }
    }

    fn take_tls13_ticket(&self, _server_name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.kept().tls13.pop_front()
    }
}

/// One end of a connection.
pub(crate) struct Channel {
    end: End,
    /// The first part of a record whose rest has yet to come.
    partial: Vec<u8>,
    /// Of the handshake, to be sent in front of anything else.
    flight: Vec<u8>,
    is_open: bool,
    has_ended: bool,
}

enum End {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// What arriving bytes have brought besides plaintext.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// The handshake is done.
    pub(crate) opened: bool,
    /// The peer has said that it is done (close_notify).
    pub(crate) ended: bool,
}

/// What is sent.
enum Outgoing<'a> {
    Plaintext(&'a [u8]),
    End,
}

/// What there is to do after a step.
enum Next {
    Again,
    Ended,
    Wait,
}

impl Channel {
    /// A client's, which has its first flight to send.
    pub(crate) fn client(config: &Arc<ClientConfig>) -> io::Result<Channel> {
        let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
        let connection = UnbufferedClientConnection::new(config.clone(), name).map_err(broken)?;
        let mut channel = Channel::new(End::Client(Box::new(connection)));
        channel.take(&mut Vec::new(), |_| {})?;
        Ok(channel)
    }

    /// A server's.
    pub(crate) fn server(config: &Arc<ServerConfig>) -> io::Result<Channel> {
        let connection = UnbufferedServerConnection::new(config.clone()).map_err(broken)?;
        Ok(Channel::new(End::Server(Box::new(connection))))
    }

    fn new(end: End) -> Channel {
        Channel { end, partial: Vec::new(), flight: Vec::new(), is_open: false, has_ended: false }
    }

    /// Takes what has arrived: `incoming` are the bytes of [`Channel::partial_into`] and those that follow. Plaintext is handed on record by record.
    pub(crate) fn take(&mut self, incoming: &mut [u8], mut plaintext: impl FnMut(&[u8])) -> io::Result<News> {
        let (mut news, mut start) = (News::default(), 0);
        loop {
            let rest = &mut incoming[start..];
            let (flight, hand_on) = (&mut self.flight, &mut plaintext);
            let (used, next) = match &mut self.end {
                End::Client(connection) => step(connection.process_tls_records(rest), flight, hand_on),
                End::Server(connection) => step(connection.process_tls_records(rest), flight, hand_on),
            }
            .map_err(broken)?;
            start += used;
            match next {
                Next::Again => {}
                Next::Ended => {
                    news.ended = true;
                    self.has_ended = true;
                }
                Next::Wait => break,
            }
        }
        self.partial.clear();
        self.partial.extend_from_slice(&incoming[start..]);
        let is_open = !self.is_handshaking();
        news.opened = is_open && !std::mem::replace(&mut self.is_open, is_open);
        if let (true, Some(group)) = (news.opened, self.group().filter(|group| *group != GROUP)) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("TLS: keys exchanged by {group:?}")));
        }
        Ok(news)
    }

    /// Appends the part of a record that has come already.
    pub(crate) fn partial_into(&self, incoming: &mut Vec<u8>) {
        incoming.extend_from_slice(&self.partial);
    }

    /// Whether the handshake is done.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Whether the peer has said that it is done.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Whether the handshake has resumed a session; `None` before that is known.
    pub(crate) fn is_resumed(&self) -> Option<bool> {
        let kind = match &self.end {
            End::Client(connection) => connection.handshake_kind(),
            End::Server(connection) => connection.handshake_kind(),
        };
        kind.map(|kind| kind == HandshakeKind::Resumed)
    }

    /// What is to be sent of the handshake, at most once.
    pub(crate) fn take_flight(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.flight)
    }

    /// Writes the rest of the handshake and the records of `plaintext` to the start of `place`, and returns their length. `place` has room for
    /// [`sealed_bytes_max`].
    pub(crate) fn seal(&mut self, plaintext: &[u8], place: &mut [u8]) -> io::Result<usize> {
        self.write(Outgoing::Plaintext(plaintext), place)
    }

    /// As [`Channel::seal`], for the word that nothing more comes (close_notify).
    pub(crate) fn seal_end(&mut self, place: &mut [u8]) -> io::Result<usize> {
        self.write(Outgoing::End, place)
    }

    fn write(&mut self, outgoing: Outgoing<'_>, place: &mut [u8]) -> io::Result<usize> {
        let start = self.write_flight(place)?;
        let place = &mut place[start..];
        let sealed = match &mut self.end {
            End::Client(connection) => write(connection.process_tls_records(&mut []), outgoing, place),
            End::Server(connection) => write(connection.process_tls_records(&mut []), outgoing, place),
        };
        Ok(start + sealed?)
    }

    fn write_flight(&mut self, place: &mut [u8]) -> io::Result<usize> {
        let flight = self.take_flight();
        let room =
            place.get_mut(..flight.len()).ok_or_else(|| io::Error::other("a flight of a handshake is too long"))?;
        room.copy_from_slice(&flight);
        Ok(flight.len())
    }

    /// What keys were exchanged by; none where a session of TLS 1.2 was resumed.
    fn group(&self) -> Option<NamedGroup> {
        let group = match &self.end {
            End::Client(connection) => connection.negotiated_key_exchange_group(),
            End::Server(connection) => connection.negotiated_key_exchange_group(),
        };
        group.map(|group| group.name())
    }

    fn is_handshaking(&self) -> bool {
        match &self.end {
            End::Client(connection) => connection.is_handshaking(),
            End::Server(connection) => connection.is_handshaking(),
        }
    }
}

/// Bytes that so many of plaintext take at most, a flight of the handshake in front of them included.
pub(crate) fn sealed_bytes_max(plaintext_bytes: usize) -> usize {
    FLIGHT_BYTES_MAX + plaintext_bytes + (plaintext_bytes / RECORD_BYTES + 1) * RECORD_EXTRA_BYTES
}

/// Does what a connection asks for; how many bytes are used up by it, and what comes next.
fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    flight: &mut Vec<u8>,
    hand_on: &mut impl FnMut(&[u8]),
) -> Result<(usize, Next), Error> {
    let UnbufferedStatus { mut discard, state } = status;
    let next = match state? {
        ConnectionState::EncodeTlsData(data) => {
            encode(data, flight)?;
            Next::Again
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Next::Again
        }
        ConnectionState::ReadTraffic(mut traffic) => {
            while let Some(record) = traffic.next_record() {
                let record = record?;
                discard += record.discard;
                hand_on(record.payload);
            }
            Next::Again
        }
        ConnectionState::PeerClosed => Next::Ended,
        _ => Next::Wait,
    };
    Ok((discard, next))
}

fn write<Data>(status: UnbufferedStatus<'_, '_, Data>, outgoing: Outgoing<'_>, place: &mut [u8]) -> io::Result<usize> {
    match status.state.map_err(broken)? {
        ConnectionState::WriteTraffic(mut traffic) => match outgoing {
            Outgoing::Plaintext(plaintext) => traffic.encrypt(plaintext, place),
            Outgoing::End => traffic.queue_close_notify(place),
        }
        .map_err(io::Error::other),
        other => Err(io::Error::other(format!("TLS: nothing can be sent in {other:?}"))),
    }
}

fn encode<Data>(mut data: EncodeTlsData<'_, Data>, flight: &mut Vec<u8>) -> Result<(), Error> {
    let start = flight.len();
    let needed = match data.encode(&mut []) {
        Err(EncodeError::InsufficientSize(size)) => size.required_size,
        Ok(_) | Err(EncodeError::AlreadyEncoded) => return Ok(()),
    };
    flight.resize(start + needed, 0);
    data.encode(&mut flight[start..]).map(drop).map_err(|error| Error::General(error.to_string()))
}

/// The error of a connection whose TLS has failed.
fn broken(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("TLS: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Carries what each end has to send to the other in pieces of this length until neither has anything; what the server has read.
    fn converse(client: &mut Channel, server: &mut Channel, piece: usize) -> (News, News, Vec<u8>) {
        let (mut of_client, mut of_server, mut read) = (News::default(), News::default(), Vec::new());
        loop {
            let (up, down) = (client.take_flight(), server.take_flight());
            if up.is_empty() && down.is_empty() {
                return (of_client, of_server, read);
            }
            for part in up.chunks(piece) {
                feed(server, part, &mut of_server, &mut read);
            }
            for part in down.chunks(piece) {
                feed(client, part, &mut of_client, &mut Vec::new());
            }
        }
    }

    fn feed(channel: &mut Channel, part: &[u8], all: &mut News, read: &mut Vec<u8>) {
        let mut incoming = Vec::new();
        channel.partial_into(&mut incoming);
        incoming.extend_from_slice(part);
        let news = channel.take(&mut incoming, |plaintext| read.extend_from_slice(plaintext)).unwrap();
        (all.opened, all.ended) = (all.opened || news.opened, all.ended || news.ended);
    }

    #[test]
    fn both_versions_open_resume_speak_and_end_in_whatever_pieces() {
        let server_config = origin_config().unwrap();
        for version in [Version::V12, Version::V13] {
            let client_config = client_config(Tls { version, resumes: true }).unwrap();
            for (piece, resumed) in [(1, false), (77, true), (100_000, true)] {
                let mut client = Channel::client(&client_config).unwrap();
                let mut server = Channel::server(&server_config).unwrap();
                let (of_client, of_server, _) = converse(&mut client, &mut server, piece);
                assert!(of_client.opened && of_server.opened, "{version:?} {piece}");
                assert_eq!((client.is_resumed(), server.is_resumed()), (Some(resumed), Some(resumed)), "{version:?}");
                let words: Vec<u8> = (0..70_000u32).map(|n| n as u8).collect();
                let mut place = vec![0; sealed_bytes_max(words.len())];
                let mut length = client.seal(&words, &mut place).unwrap();
                length += client.seal_end(&mut place[length..]).unwrap();
                let (mut news, mut read) = (News::default(), Vec::new());
                for part in place[..length].chunks(piece.max(100)) {
                    feed(&mut server, part, &mut news, &mut read);
                }
                assert_eq!(news, News { opened: false, ended: true });
                assert!(read == words && server.has_ended());
            }
        }
    }

    #[test]
    fn clients_that_are_new_never_resume() {
        let server_config = origin_config().unwrap();
        for version in [Version::V12, Version::V13] {
            let client_config = client_config(Tls { version, resumes: false }).unwrap();
            for _ in 0..2 {
                let mut client = Channel::client(&client_config).unwrap();
                let mut server = Channel::server(&server_config).unwrap();
                converse(&mut client, &mut server, 4096);
                assert_eq!((client.is_open(), client.is_resumed()), (true, Some(false)));
            }
        }
    }
}
