//! Two connections of ours, and ours against rustls' buffered ones, with bytes cut anywhere.

use std::io::{Read, Write};
use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::crypto::aws_lc_rs::kx_group::{MLKEM768, X25519};
use rustls::crypto::cipher::{MessageEncrypter, OutboundChunks, OutboundPlainMessage};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, ConnectionTrafficSecrets, ContentType, RootCertStore, ServerConfig,
    SupportedCipherSuite, SupportedProtocolVersion, version,
};

use super::*;
use crate::Provider;

const VERSIONS: [&[&SupportedProtocolVersion]; 2] = [&[&version::TLS12], &[&version::TLS13]];
/// Room in front of what is received, as workers leave it.
const FRONT: usize = 2 * RECORD_BYTES_MAX;

/// xorshift64.
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }
}

fn configs(versions: &[&'static SupportedProtocolVersion]) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    configs_with(versions, Provider::AwsLcRs.crypto())
}

/// The same with this cryptography of the client's.
fn configs_with(
    versions: &[&'static SupportedProtocolVersion],
    of_client: CryptoProvider,
) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let (server, roots) = server_of(versions);
    (server, client_of(of_client, versions, roots))
}

fn server_of(versions: &[&'static SupportedProtocolVersion]) -> (Arc<ServerConfig>, RootCertStore) {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["one.test".to_owned()]).expect("made for this test");
    let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let server = ServerConfig::builder_with_provider(Arc::new(Provider::AwsLcRs.crypto()))
        .with_protocol_versions(versions)
        .expect("made for this test");
    let server =
        server.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).expect("made for this test");
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).expect("made for this test");
    (Arc::new(server), roots)
}

fn client_of(
    crypto: CryptoProvider,
    versions: &[&'static SupportedProtocolVersion],
    roots: RootCertStore,
) -> Arc<ClientConfig> {
    let client = ClientConfig::builder_with_provider(Arc::new(crypto));
    let client = client.with_protocol_versions(versions).expect("made for this test");
    Arc::new(client.with_root_certificates(roots).with_no_client_auth())
}

fn name() -> ServerName<'static> {
    ServerName::try_from("one.test").expect("made for this test")
}

/// One end as a worker drives it.
struct End {
    connection: Connection,
    carry: Vec<u8>,
    output: Vec<u8>,
    complete: bool,
    plain: Vec<u8>,
    closed: bool,
}

impl End {
    fn of(connection: Connection) -> End {
        End { connection, carry: Vec::new(), output: Vec::new(), complete: false, plain: Vec::new(), closed: false }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        if !self.complete {
            self.carry.extend_from_slice(bytes);
            self.complete = self.connection.handshake(&mut self.carry, &mut self.output)? == Step::Complete;
            if self.complete && self.connection.has_early() {
                let (early, closed) = self.connection.take_early();
                self.plain.extend_from_slice(&early);
                self.closed |= closed;
            }
            return Ok(());
        }
        self.open(bytes)
    }

    fn open(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let carried = std::mem::take(&mut self.carry);
        let mut buffer = vec![0; FRONT + bytes.len()];
        let at = buffer.len() - bytes.len();
        buffer[at..].copy_from_slice(bytes);
        buffer[at - carried.len()..at].copy_from_slice(&carried);
        let opened = self.connection.open(&mut buffer, at - carried.len()..at + bytes.len())?;
        self.plain.extend_from_slice(&buffer[..opened.plain]);
        self.carry = buffer[opened.rest].to_vec();
        self.closed |= opened.closed;
        self.output.append(&mut self.connection.take_reply());
        Ok(())
    }

    fn seal(&mut self, plain: &[u8]) {
        let mut out = vec![0; sealed_bytes_max(plain.len())];
        let written = self.connection.seal(&mut self.carry, plain, &mut out).expect("made for this test");
        self.output.extend_from_slice(&out[..written]);
    }

    fn close(&mut self) {
        let mut out = vec![0; CLOSE_BYTES_MAX];
        let written = self.connection.close_notify(&mut self.carry, &mut out).expect("made for this test");
        self.output.extend_from_slice(&out[..written]);
    }
}

/// Moves what `from` has to send to `to`, in pieces.
fn carry(from: &mut End, to: &mut End, draws: &mut Draws, piece_max: usize) -> Result<(), Fault> {
    let bytes = std::mem::take(&mut from.output);
    let mut bytes = bytes.as_slice();
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at((1 + draws.below(piece_max)).min(bytes.len()));
        to.take(piece)?;
        bytes = rest;
    }
    Ok(())
}

fn shake(client: &mut End, server: &mut End, draws: &mut Draws, piece_max: usize) {
    client.take(&[]).expect("made for this test");
    while !(client.complete && server.complete && client.output.is_empty() && server.output.is_empty()) {
        carry(client, server, draws, piece_max).expect("made for this test");
        carry(server, client, draws, piece_max).expect("made for this test");
    }
}

#[test]
fn whatever_is_said_arrives_as_it_was_however_it_is_cut() {
    for (seed, versions) in (1..=24).zip(VERSIONS.into_iter().cycle()) {
        let draws = &mut Draws(seed * 0x9e37_79b9);
        let (server_config, client_config) = configs(versions);
        let mut server = End::of(Connection::accept(server_config).expect("made for this test"));
        let mut client = End::of(Connection::connect(client_config, name(), None).expect("made for this test"));
        let piece_max = [1, 7, 100, 1_500, 65_536][draws.below(5)];
        shake(&mut client, &mut server, draws, piece_max);
        let (mut said, mut answered) = (Vec::new(), Vec::new());
        for _ in 0..12 {
            let len = [0, 1, 5, 300, 16_384, 16_385, 65_536][draws.below(7)];
            let words = draws.bytes(len);
            client.seal(&words);
            said.extend_from_slice(&words);
            if draws.below(2) == 0 {
                // Both directions at a time, with half a record carried over by the other.
                server.seal(&words);
                answered.extend_from_slice(&words);
            }
            carry(&mut client, &mut server, draws, piece_max.max(64)).expect("made for this test");
            carry(&mut server, &mut client, draws, piece_max.max(64)).expect("made for this test");
        }
        assert!(!server.closed);
        client.close();
        carry(&mut client, &mut server, draws, piece_max).expect("made for this test");
        assert!(server.closed && !client.closed, "one direction only");
        server.seal(b"still heard");
        answered.extend_from_slice(b"still heard");
        server.close();
        carry(&mut server, &mut client, draws, piece_max).expect("made for this test");
        assert!(client.closed);
        assert!(server.plain == said && client.plain == answered, "seed {seed}");
        assert_eq!(server.connection.reply.capacity() + client.connection.reply.capacity(), 0);
        assert!(server.carry.is_empty() && client.carry.is_empty());
    }
}

/// Plaintext in the same segment as the client's last flight.
#[test]
fn what_comes_with_the_end_of_the_handshake_is_not_lost() {
    for versions in VERSIONS {
        let (server_config, client_config) = configs(versions);
        let mut server = End::of(Connection::accept(server_config).expect("made for this test"));
        let mut client = End::of(Connection::connect(client_config, name(), None).expect("made for this test"));
        let draws = &mut Draws(1);
        client.take(&[]).expect("made for this test");
        while !client.complete {
            carry(&mut client, &mut server, draws, usize::MAX).expect("made for this test");
            carry(&mut server, &mut client, draws, usize::MAX).expect("made for this test");
        }
        client.seal(&[7; 40_000]);
        client.close();
        // A part of the last record is left for later.
        let tail = client.output.split_off(client.output.len() - 3);
        carry(&mut client, &mut server, draws, usize::MAX).expect("made for this test");
        assert_eq!((server.plain.len(), server.closed), (40_000, false));
        server.take(&tail).expect("made for this test");
        assert!(server.closed);
    }
}

/// Who has to know that the flight with the signature is still to come.
#[test]
fn a_client_that_guesses_the_group_wrong_is_asked_again() {
    let ends = |of_client| {
        let (server, client) = configs_with(VERSIONS[1], of_client);
        let server = End::of(Connection::accept(server).expect("made for this test"));
        (server, End::of(Connection::connect(client, name(), None).expect("made for this test")))
    };
    let mut draws = Draws(7);
    let (mut server, mut client) = ends(Provider::AwsLcRs.crypto());
    shake(&mut client, &mut server, &mut draws, 1_000);
    assert!(!server.connection.has_asked_again() && !client.connection.has_asked_again());

    // It sends a share of the first only, which the server lacks.
    let groups = CryptoProvider { kx_groups: vec![MLKEM768, X25519], ..Provider::AwsLcRs.crypto() };
    let (mut server, mut client) = ends(groups);
    client.take(&[]).expect("made for this test");
    carry(&mut client, &mut server, &mut draws, 1_000).expect("made for this test");
    assert!(server.connection.has_asked_again() && !server.output.is_empty());
    shake(&mut client, &mut server, &mut draws, 1_000);
    assert!(server.connection.has_asked_again());
}

#[test]
fn rustls_clients_are_understood_and_answered() {
    for versions in VERSIONS {
        let (server_config, client_config) = configs(versions);
        let mut server = End::of(Connection::accept(server_config).expect("made for this test"));
        let mut client = ClientConnection::new(client_config, name()).expect("made for this test");
        let mut heard = [0; 64];
        client.writer().write_all(b"from the client").expect("made for this test");
        while server.plain.is_empty() {
            let mut flight = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut flight).expect("made for this test");
            }
            server.take(&flight).expect("made for this test");
            let output = std::mem::take(&mut server.output);
            client.read_tls(&mut output.as_slice()).expect("made for this test");
            client.process_new_packets().expect("made for this test");
        }
        assert_eq!(server.plain, b"from the client");
        // A key update of the client is answered before the next record (RFC 8446 §4.6.3).
        if versions == VERSIONS[1] {
            client.refresh_traffic_keys().expect("made for this test");
            client.writer().write_all(b"!").expect("made for this test");
            let mut flight = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut flight).expect("made for this test");
            }
            server.take(&flight).expect("made for this test");
        }
        server.seal(b"from the server");
        server.close();
        client.read_tls(&mut server.output.as_slice()).expect("made for this test");
        client.process_new_packets().expect("made for this test");
        assert_eq!(client.reader().read(&mut heard).expect("made for this test"), 15);
        assert_eq!(client.reader().read(&mut heard).expect("made for this test"), 0, "an orderly end");
    }
}

/// What another's client, of rustls' own suites, has read of these bytes.
fn read_by(client: &mut ClientConnection, mut bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    while !bytes.is_empty() {
        client.read_tls(&mut bytes).expect("made for this test");
        let available = client.process_new_packets().expect("made for this test").plaintext_bytes_to_read();
        let before = plain.len();
        plain.resize(before + available, 0);
        client.reader().read_exact(&mut plain[before..]).expect("made for this test");
    }
    plain
}

fn flight_of(client: &mut ClientConnection) -> Vec<u8> {
    let mut flight = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut flight).expect("made for this test");
    }
    flight
}

#[test]
fn records_of_any_length_and_suite_are_sealed_in_place_as_rustls_would() {
    let draws = &mut Draws(77);
    let (server_config, roots) = server_of(VERSIONS[1]);
    for suite in aws_lc_rs::ALL_CIPHER_SUITES.iter().filter(|suite| suite.tls13().is_some()) {
        let crypto = CryptoProvider { cipher_suites: vec![*suite], ..aws_lc_rs::default_provider() };
        let mut client =
            ClientConnection::new(client_of(crypto, VERSIONS[1], roots.clone()), name()).expect("made for this test");
        let mut server = End::of(Connection::accept(Arc::clone(&server_config)).expect("made for this test"));
        while client.is_handshaking() || !server.complete {
            server.take(&flight_of(&mut client)).expect("made for this test");
            read_by(&mut client, &std::mem::take(&mut server.output));
        }
        assert!(sealing::announces(server.connection.state().negotiated_cipher_suite()));
        let longest = sealing::PLAIN_BYTES_MAX;
        for length in [1, 12, 16_383, 16_384, 16_385, 3 * 16_384, 131_072, longest, longest + 1] {
            let said = draws.bytes(length);
            server.seal(&said);
            let sealed = std::mem::take(&mut server.output);
            assert!(sealed.len() > said.len() && read_by(&mut client, &sealed) == said, "{suite:?} {length}");
            // The answer to a key update leaves in front of the next record, which has the next key (RFC 8446 §4.6.3).
            client.refresh_traffic_keys().expect("made for this test");
            client.writer().write_all(b"?").expect("made for this test");
            server.take(&flight_of(&mut client)).expect("made for this test");
        }
    }
}

/// A client's keys, to seal records of any content with.
struct Keys {
    encrypter: Box<dyn MessageEncrypter>,
    number: u64,
}

impl Keys {
    fn of(suite: SupportedCipherSuite, (number, secrets): (u64, ConnectionTrafficSecrets)) -> Keys {
        let (ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }) = secrets
        else {
            panic!("a suite that nobody knows");
        };
        let suite = suite.tls13().expect("TLS 1.3");
        Keys { encrypter: suite.aead_alg.encrypter(key, iv), number }
    }

    fn seal(&mut self, typ: ContentType, payload: &[u8]) -> Vec<u8> {
        let payload = OutboundChunks::Single(payload);
        let plain = OutboundPlainMessage { typ, version: ProtocolVersion::TLSv1_2, payload };
        self.number += 1;
        self.encrypter.encrypt(plain, self.number - 1).expect("sealed").encode()
    }
}

/// A server, with the keys of its client, and what there is behind the next update of them.
fn with_keys_of_client() -> (End, Keys, Keys) {
    let (server, mut client) = configs(VERSIONS[1]);
    Arc::make_mut(&mut client).enable_secret_extraction = true;
    let mut server = End::of(Connection::accept(server).expect("made for this test"));
    let mut client = End::of(Connection::connect(client, name(), None).expect("made for this test"));
    shake(&mut client, &mut server, &mut Draws(5), usize::MAX);
    let Role::Client(client) = client.connection.role else { panic!("a client") };
    let (secrets, mut kernel) = client.dangerous_into_kernel_connection().expect("allowed");
    let suite = kernel.negotiated_cipher_suite();
    let next = kernel.update_tx_secret().expect("TLS 1.3");
    (server, Keys::of(suite, secrets.tx), Keys::of(suite, next))
}

#[test]
fn a_record_with_a_part_of_a_message_stays_until_the_rest_has_come() {
    let (mut server, mut keys, mut next) = with_keys_of_client();
    let part = keys.seal(ContentType::Handshake, &[24]);
    server.open(&part).expect("it may be");
    assert_eq!(server.carry.len(), part.len(), "a whole record");
    assert!(!server.connection.has_news(&server.carry));
    // What is said meanwhile changes nothing.
    server.seal(b"from the server");
    assert_eq!(server.carry.len(), part.len());
    assert!(!server.connection.has_news(&server.carry));
    assert!(server.connection.has_news(&[&server.carry[..], &[23]].concat()));

    // key_update, of one octet: update_not_requested (RFC 8446 §4.6.3).
    server.open(&keys.seal(ContentType::Handshake, &[0, 0, 1, 0])).expect("the rest");
    assert!(server.carry.is_empty());
    server.open(&next.seal(ContentType::ApplicationData, b"by the next key")).expect("a record");
    assert_eq!(server.plain, b"by the next key");
}

#[test]
fn a_handshake_whose_input_brings_nothing_waits_for_more() {
    let (server_config, client_config) = configs(VERSIONS[0]);
    for noise in [&[23][..], &[21, 3, 1, 0, 2], &[22, 3, 1, 64, 1]] {
        let mut server = End::of(Connection::accept(Arc::clone(&server_config)).expect("made for this test"));
        assert!(server.connection.has_news(noise));
        server.take(noise).unwrap_or_else(|fault| panic!("nobody knows yet: {noise:?} {fault:?}"));
        assert!(!server.connection.has_news(&server.carry) && server.carry == noise, "{noise:?}");
    }
    // A part of a ClientKeyExchange behind our flight.
    let mut server = End::of(Connection::accept(server_config).expect("made for this test"));
    let mut client = End::of(Connection::connect(client_config, name(), None).expect("made for this test"));
    client.take(&[]).expect("made for this test");
    carry(&mut client, &mut server, &mut Draws(1), usize::MAX).expect("made for this test");
    server.take(&[22, 3, 3, 0, 4, 16, 0, 0, 66]).expect("nobody knows yet");
    assert!(server.carry.len() == 9 && !server.connection.has_news(&server.carry));
}

#[test]
fn one_whose_bytes_were_lost_fails() {
    for opens in [true, false] {
        let (mut server, mut keys, _) = with_keys_of_client();
        server.open(&keys.seal(ContentType::Handshake, &[24])).expect("it may be");
        server.carry = Vec::new();
        server.connection.give_up();
        if opens {
            server.open(b"few").expect_err("it was given up");
        }
        let mut out = [0; CLOSE_BYTES_MAX];
        server.connection.close_notify(&mut Vec::new(), &mut out).expect_err("it was given up");
        assert!(!server.connection.has_early() && !server.connection.has_reply());
    }
    // A failure does not look at bytes that it was not given, either.
    let (mut server, mut keys, _) = with_keys_of_client();
    server.open(&keys.seal(ContentType::Handshake, &[24])).expect("it may be");
    server.open(&keys.seal(ContentType::ApplicationData, b"amid a message")).expect_err("RFC 8446 §5.1");
    server.open(b"few").expect_err("it has failed");
}

#[test]
fn what_is_not_tls_is_refused_with_an_alert() {
    let (server_config, _) = configs(VERSIONS[1]);
    for noise in [&b"GET / HTTP/1.1\r\nHost: one.test\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff, 1], &[0; 64]] {
        let mut server = End::of(Connection::accept(Arc::clone(&server_config)).expect("made for this test"));
        assert_eq!(server.take(noise), Err(Fault::Protocol), "{noise:?}");
        // An alert (21), fatal.
        assert_eq!((server.output[0], server.output[5]), (21, 2));
    }
}

#[test]
fn ends_with_nothing_in_common_say_so() {
    let (server_config, _) = configs(VERSIONS[1]);
    let (_, client_config) = configs(VERSIONS[0]);
    let mut server = End::of(Connection::accept(server_config).expect("made for this test"));
    let mut client = End::of(Connection::connect(client_config, name(), None).expect("made for this test"));
    let draws = &mut Draws(1);
    client.take(&[]).expect("made for this test");
    assert_eq!(carry(&mut client, &mut server, draws, usize::MAX), Err(Fault::NothingShared));
    // protocol_version
    assert_eq!(carry(&mut server, &mut client, draws, usize::MAX), Err(Fault::Alert(70)));
}

/// The alert comes last, behind the rest of a flight that has begun.
#[test]
fn a_failure_in_the_middle_of_a_flight_is_told() {
    for versions in VERSIONS {
        let (mut server_config, client_config) = configs(versions);
        Arc::make_mut(&mut server_config).alpn_protocols = vec![b"imap".to_vec()];
        let mut server = End::of(Connection::accept(server_config).expect("made for this test"));
        let mut client = End::of(Connection::connect(client_config, name(), Some(b"h2")).expect("made for this test"));
        let draws = &mut Draws(1);
        client.take(&[]).expect("made for this test");
        assert_eq!(carry(&mut client, &mut server, draws, usize::MAX), Err(Fault::NothingShared));
        // no_application_protocol
        assert_eq!(carry(&mut server, &mut client, draws, usize::MAX), Err(Fault::Alert(120)), "{versions:?}");
    }
}

#[test]
fn a_record_that_was_changed_is_refused_with_an_alert() {
    for versions in VERSIONS {
        let draws = &mut Draws(3);
        let (server_config, client_config) = configs(versions);
        let mut server = End::of(Connection::accept(server_config).expect("made for this test"));
        let mut client = End::of(Connection::connect(client_config, name(), None).expect("made for this test"));
        shake(&mut client, &mut server, draws, usize::MAX);
        client.seal(b"whole");
        client.seal(b"changed");
        *client.output.last_mut().expect("something was sealed") ^= 1;
        client.seal(b"behind it");
        // What came before is handed on, and nothing that is behind a failure.
        carry(&mut client, &mut server, draws, usize::MAX).expect("made for this test");
        assert_eq!(server.plain, b"whole");
        assert!(!server.output.is_empty(), "an alert");
        assert!(server.connection.has_fault());
        assert_eq!(server.open(&[]), Err(Fault::Protocol));
        assert!(!server.connection.has_fault());
        server.open(b"more").expect_err("nothing behind a fault is opened");
    }
}

/// However bytes are changed or cut off, it answers or waits, and never panics.
#[test]
fn no_bytes_make_it_panic() {
    for (seed, versions) in (1..=400).zip(VERSIONS.into_iter().cycle()) {
        let draws = &mut Draws(seed * 0x9e37_79b9);
        let (server_config, client_config) = configs_once(versions);
        let mut server = End::of(Connection::accept(server_config).expect("made for this test"));
        let mut client = End::of(Connection::connect(client_config, name(), None).expect("made for this test"));
        client.take(&[]).expect("made for this test");
        let turns = draws.below(6);
        for turn in 0..8 {
            if client.complete && server.complete {
                client.seal(&[1; 20_000]);
            }
            if turn >= turns && !client.output.is_empty() {
                for _ in 0..=draws.below(3) {
                    let at = draws.below(client.output.len());
                    client.output[at] = draws.below(256) as u8;
                }
            }
            let failed = carry(&mut client, &mut server, draws, 3_000).is_err();
            if failed || carry(&mut server, &mut client, draws, 3_000).is_err() {
                break;
            }
        }
    }
}

/// Made once for each version: keys take their time.
fn configs_once(versions: &[&'static SupportedProtocolVersion]) -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    use std::sync::OnceLock;
    static MADE: [OnceLock<(Arc<ServerConfig>, Arc<ClientConfig>)>; 2] = [OnceLock::new(), OnceLock::new()];
    let which = usize::from(versions == VERSIONS[1]);
    MADE[which].get_or_init(|| configs(versions)).clone()
}
