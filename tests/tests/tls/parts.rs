//! Clients that send parts: of a first record, and of messages in records that are whole. They wait, and nobody works for them meanwhile.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::Arc;

use rustls::crypto::cipher::{OutboundChunks, OutboundPlainMessage};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConnection, ConnectionTrafficSecrets, ContentType, ProtocolVersion};
use towpath_tests::pki::{NAME, open_with};
use towpath_tests::{Connection, Subject, TestLab, Topology, eventually, in_lab};

use crate::{ON_WORKERS, Stage};

/// Turns of a worker's loop that a few connections may cost in a few seconds: one that never sleeps has as many in some milliseconds.
const BREATHS_MAX: u64 = 2_000;
/// Records with a part of a message: the type of a ClientKeyExchange (TLS 1.2) or KeyUpdate (TLS 1.3), and no more of it.
const PART_OF_KEY_EXCHANGE: [u8; 9] = [22, 3, 3, 0, 4, 16, 0, 0, 66];
const PART_OF_KEY_UPDATE: [u8; 1] = [24];

fn breaths(relay: &Subject) -> u64 {
    relay.status().workers.iter().map(|worker| worker.counters["breaths"]).sum()
}

fn parts_of_a_first_flight(lab: &TestLab, process: &str) {
    let stage = Stage::set_as(lab, "terminate", "handshake_timeout = \"2s\"", process);
    let before = breaths(&stage.relay);
    let open = || Connection::open(lab.client(), (stage.vip, 443)).expect("the relay listens");
    let mut waiting: Vec<Connection> = Vec::new();
    for part in [&[23][..], &[21, 3, 1, 0, 2], &[22, 3, 1, 64, 1], &[22, 3, 1, 64, 1, 1]] {
        let connection = open();
        connection.stream().write_all(part).expect("taken");
        waiting.push(connection);
    }
    // One of TLS 1.2 that has our flight.
    let connection = open();
    let name = ServerName::try_from(NAME).expect("a name");
    let mut tls = ClientConnection::new(stage.pki.client_config(&[&TLS12]), name).expect("a client");
    tls.write_tls(&mut connection.stream()).expect("taken");
    connection.stream().read_exact(&mut [0; 5]).expect("a flight");
    connection.stream().write_all(&PART_OF_KEY_EXCHANGE).expect("taken");
    waiting.push(connection);
    for connection in &mut waiting {
        // With an alert, or when its time is over.
        let _ = io::copy(&mut connection.stream(), &mut io::sink());
    }
    let spent = breaths(&stage.relay) - before;
    assert!(spent < BREATHS_MAX, "{spent} breaths");
    if let Some(pool) = stage.relay.status().handshake_pool {
        assert!(pool.counters["done"] < 100, "{pool:?}");
    }
    stage.have_ended(&[("handshake_timed_out", 5)]);
    let (_client, _server) = stage.open(lab);
    stage.relay.stop();
}

#[test]
fn parts_of_a_first_flight_cost_no_time() {
    in_lab(parts_of_a_first_flight_cost_no_time, Topology::TwoArm, 1, |lab| {
        parts_of_a_first_flight(lab, ON_WORKERS);
    });
}

#[test]
fn parts_of_a_first_flight_cost_the_pool_no_time() {
    in_lab(parts_of_a_first_flight_cost_the_pool_no_time, Topology::TwoArm, 1, |lab| {
        parts_of_a_first_flight(lab, "[runtime]\nworkers = [0]\n[tls]\nthreads = [1]\n");
    });
}

/// A record of this client's with this content.
fn sealed(client: ClientConnection, contents: &[(ContentType, &[u8])]) -> Vec<Vec<u8>> {
    let suite = client.negotiated_cipher_suite().and_then(|suite| suite.tls13()).expect("TLS 1.3");
    let (first, secrets) = client.dangerous_extract_secrets().expect("allowed").tx;
    let (ConnectionTrafficSecrets::Aes128Gcm { key, iv }
    | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
    | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }) = secrets
    else {
        panic!("a suite that nobody knows");
    };
    let mut encrypter = suite.aead_alg.encrypter(key, iv);
    let mut seal = |(number, (typ, content)): (u64, &(ContentType, &[u8]))| {
        let payload = OutboundChunks::Single(content);
        let plain = OutboundPlainMessage { typ: *typ, version: ProtocolVersion::TLSv1_2, payload };
        encrypter.encrypt(plain, number).expect("sealed").encode()
    };
    (first..).zip(contents).map(&mut seal).collect()
}

fn parts_of_messages(lab: &TestLab, stage: &Stage, terminations: &[(&str, u64)]) {
    let mut settings = (*stage.pki.client_config(&[&TLS13])).clone();
    settings.enable_secret_extraction = true;
    let settings = Arc::new(settings);
    // The relay is through with the handshake, too, when it counts it.
    let mut opened = 0;
    let mut open = || {
        let client = open_with(&settings, lab.client(), (stage.vip, 443)).expect("a handshake");
        opened += 1;
        let shaken = || {
            let counters = stage.relay.service("web").counters;
            counters["handshakes_full"] + counters["handshakes_resumed"]
        };
        eventually("the handshake is over", || (shaken() == opened).then_some(()));
        client
    };
    // One that sends a part and the rest later, one that goes on with something else, and one that goes on by octets.
    let before = breaths(&stage.relay);
    let rest = [0, 0, 1, 0];
    let whole: Vec<(ContentType, &[u8])> =
        PART_OF_KEY_UPDATE.chunks(1).chain(rest.chunks(1)).map(|part| (ContentType::Handshake, part)).collect();
    let data = (ContentType::ApplicationData, &b"amid a message"[..]);
    for contents in [vec![whole[0], (ContentType::Handshake, &rest[..])], whole.clone(), vec![whole[0], data]] {
        let client = open();
        let mut socket = client.sock;
        let records = sealed(client.conn, &contents);
        for record in &records {
            socket.write_all(record).expect("taken");
            // Somebody else is served between them.
            drop(open());
        }
        // No close_notify.
        socket.shutdown(Shutdown::Write).expect("our FIN");
        let _ = socket.read_to_end(&mut Vec::new());
    }
    stage.have_ended(terminations);
    let spent = breaths(&stage.relay) - before;
    assert!(spent < BREATHS_MAX, "{spent} breaths");
}

#[test]
fn parts_of_messages_behind_the_handshake_cost_no_time() {
    in_lab(parts_of_messages_behind_the_handshake_cost_no_time, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab);
        parts_of_messages(lab, &stage, &[("client_truncated", 11), ("tls_broken", 1)]);
        stage.relay.stop();
    });
}

/// The same legs carry HTTP mode.
#[test]
fn parts_of_messages_cost_http_mode_no_time() {
    in_lab(parts_of_messages_cost_http_mode_no_time, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set_with(lab, "http = {}", "terminate", "", ON_WORKERS);
        parts_of_messages(lab, &stage, &[("client_truncated", 11), ("tls_broken", 1)]);
        stage.relay.stop();
    });
}
