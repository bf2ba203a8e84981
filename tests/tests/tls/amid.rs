//! Reloads and the end of the process in the middle of handshakes and transfers.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::sync::Arc;
use std::thread;

use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use towpath_tests::pki::{NAME, Pki, Stream};
use towpath_tests::{Bulk, Connection, Sum, TestLab, Topology, eventually, in_lab, ipv4};

use crate::{ON_WORKERS, RE_ENCRYPT, Stage, finish};

/// More than all buffers on the way can hold.
const BYTES: u64 = 64 << 20;

/// A handshake that a client has begun and will go on with later.
struct Begun {
    tls: ClientConnection,
    socket: TcpStream,
    /// The end of its ClientHello.
    rest: Vec<u8>,
}

impl Begun {
    /// With the first bytes of a ClientHello.
    fn with_a_few_bytes(config: &Arc<ClientConfig>, lab: &TestLab, vip: Ipv4Addr) -> Begun {
        let name = ServerName::try_from(NAME).expect("a name");
        let mut tls = ClientConnection::new(Arc::clone(config), name).expect("a client");
        let mut hello = Vec::new();
        tls.write_tls(&mut hello).expect("memory");
        let connection = Connection::open(lab.client(), (vip, 443)).expect("the relay listens");
        let mut socket = connection.stream().try_clone().expect("a descriptor");
        let rest = hello.split_off(50);
        socket.write_all(&hello).expect("taken");
        Begun { tls, socket, rest }
    }

    /// With the answer to its ClientHello heard, and nothing said to that.
    fn with_an_answer(config: &Arc<ClientConfig>, lab: &TestLab, vip: Ipv4Addr) -> Begun {
        let mut begun = Begun::with_a_few_bytes(config, lab, vip);
        let rest = std::mem::take(&mut begun.rest);
        begun.socket.write_all(&rest).expect("taken");
        while !begun.tls.wants_write() {
            assert_ne!(begun.tls.read_tls(&mut begun.socket).expect("a flight"), 0, "it ended");
            begun.tls.process_new_packets().expect("a flight that is good");
        }
        begun
    }

    /// Goes on to the end of the handshake.
    fn go_on(mut self) -> Stream {
        self.socket.write_all(&self.rest).expect("taken");
        while self.tls.is_handshaking() {
            self.tls.complete_io(&mut self.socket).expect("a handshake");
        }
        StreamOwned::new(self.tls, self.socket)
    }
}

/// Whether a client was shown this certificate.
fn has_seen(stream: &Stream, pki: &Pki) -> bool {
    let shown = stream.conn.peer_certificates().expect("a server shows one");
    shown[0] == pki.certificate_der()
}

/// That a connection carries bytes both ways, to its orderly end.
fn is_served(stage: &Stage, mut client: Stream) {
    client.write_all(b"a question").expect("taken");
    client.flush().expect("taken");
    let mut server = stage.accept();
    let mut heard = [0; 10];
    server.read_exact(&mut heard).expect("a question");
    server.write_all(&heard).expect("taken");
    client.read_exact(&mut heard).expect("an answer");
    assert_eq!(&heard, b"a question");
    finish(&mut client);
    server.read_to_end(&mut Vec::new()).expect("an orderly end");
    drop(server);
    client.read_to_end(&mut Vec::new()).expect("an orderly end");
}

fn a_reload_amid_handshakes(lab: &TestLab, process: &str) {
    let mut stage = Stage::set_as(lab, "terminate", "", process);
    let next = Pki::new();
    let next_file = format!("{process}{}", next.service(stage.vip, "terminate", "", &ipv4(lab.servers())));
    let mut begun = Vec::new();
    for version in [&TLS12, &TLS13] {
        let config = stage.pki.client_config(&[version]);
        begun.push(Begun::with_a_few_bytes(&config, lab, stage.vip));
        begun.push(Begun::with_an_answer(&config, lab, stage.vip));
    }
    stage.relay.until("all have arrived", |status| status.services[0].accepted == 4);
    stage.relay.reload(&next_file).expect("a valid configuration");
    let later = next.open(lab.client(), (stage.vip, 443)).expect("a handshake");
    assert!(has_seen(&later, &next), "who comes later sees the new certificate");
    is_served(&stage, later);
    for begun in begun {
        let client = begun.go_on();
        assert!(has_seen(&client, &stage.pki), "who was there sees the old one");
        is_served(&stage, client);
    }
    assert_eq!(stage.relay.service("web").counters["handshakes_full"], 5);
    stage.ended(&[("client_closed", 5)]);
}

#[test]
fn a_reload_in_the_middle_of_a_handshake_leaves_it_as_it_began() {
    in_lab(a_reload_in_the_middle_of_a_handshake_leaves_it_as_it_began, Topology::TwoArm, 1, |lab| {
        a_reload_amid_handshakes(lab, ON_WORKERS);
    });
}

#[test]
fn a_reload_in_the_middle_of_a_handshake_at_the_pool_leaves_it_as_it_began() {
    in_lab(a_reload_in_the_middle_of_a_handshake_at_the_pool_leaves_it_as_it_began, Topology::TwoArm, 1, |lab| {
        a_reload_amid_handshakes(lab, "[tls]\nthreads = 1\n");
    });
}

#[test]
fn reloads_in_the_middle_of_a_transfer_lose_no_byte() {
    in_lab(reloads_in_the_middle_of_a_transfer_lose_no_byte, Topology::TwoArm, 1, |lab| {
        let mut stage = Stage::set_as(lab, "re-encrypt", RE_ENCRYPT, ON_WORKERS);
        let old =
            format!("{ON_WORKERS}{}", stage.pki.service(stage.vip, "re-encrypt", RE_ENCRYPT, &ipv4(lab.servers())));
        let next = Pki::new();
        let new = format!("{ON_WORKERS}{}", next.service(stage.vip, "re-encrypt", RE_ENCRYPT, &ipv4(lab.servers())));
        let (mut client, mut server) = stage.open_both(lab);
        // Each of the two directions is full, with somebody who waits at its end, when the first reload comes; others come while it flows.
        let sender = thread::spawn(move || {
            let sent = Bulk::steady(41).send(&mut client, BYTES).expect("everything is taken");
            finish(&mut client);
            (sent, client)
        });
        eventually("bytes are on their way", || (stage.relay.service("web").bytes_from_client > 1 << 16).then_some(()));
        stage.relay.reload(&new).expect("a valid configuration");
        let receiver = thread::spawn(move || {
            let received = Bulk::pausing(42).receive(&mut server).expect("an orderly end");
            (received, server)
        });
        stage.relay.reload(&old).expect("a valid configuration");
        stage.relay.reload(&new).expect("a valid configuration");
        let (received, mut server) = receiver.join().expect("the receiver does not panic");
        let (sent, mut client) = sender.join().expect("the sender does not panic");
        assert_eq!((received, sent.bytes), (sent, BYTES));

        let sender = thread::spawn(move || -> Sum {
            let sent = Bulk::steady(43).send(&mut server, BYTES).expect("everything is taken");
            server.conn.send_close_notify();
            server.flush().expect("our close_notify");
            sent
        });
        eventually("bytes are on their way", || (stage.relay.service("web").bytes_to_client > 1 << 16).then_some(()));
        stage.relay.reload(&old).expect("a valid configuration");
        let receiver = thread::spawn(move || Bulk::pausing(44).receive(&mut client).expect("an orderly end"));
        stage.relay.reload(&new).expect("a valid configuration");
        let sent = sender.join().expect("the sender does not panic");
        assert_eq!((receiver.join().expect("the receiver does not panic"), sent.bytes), (sent, BYTES));
        stage.ended(&[("client_closed", 1)]);
    });
}

#[test]
fn a_first_sigterm_lets_handshakes_and_transfers_finish() {
    in_lab(a_first_sigterm_lets_handshakes_and_transfers_finish, Topology::TwoArm, 1, |lab| {
        let mut stage = Stage::set(lab);
        let config = stage.pki.client_config(&[&TLS13]);
        let begun = [Begun::with_a_few_bytes, Begun::with_an_answer].map(|begin| begin(&config, lab, stage.vip));
        let (mut client, mut server) = stage.open(lab);
        let sender = thread::spawn(move || {
            let sent = Bulk::steady(51).send(&mut server, BYTES).expect("everything is taken");
            server.shutdown(Shutdown::Write).expect("our FIN");
            (sent, server)
        });
        eventually("bytes are on their way", || (stage.relay.service("web").bytes_to_client > 1 << 16).then_some(()));
        stage.relay.terminate();
        eventually("it drains", || (stage.relay.status().phase == "draining").then_some(()));
        for begun in begun {
            is_served(&stage, begun.go_on());
        }
        let received = Bulk::steady(52).receive(&mut client).expect("an orderly end");
        let (sent, server) = sender.join().expect("the sender does not panic");
        assert_eq!((received, sent.bytes), (sent, BYTES));
        assert!(stage.relay.is_running(), "one connection is left");
        finish(&mut client);
        drop(server);
        assert_eq!(stage.relay.wait(), Some(0), "{}", stage.relay.log());
        assert!(stage.relay.log().contains("every connection had ended by itself"), "{}", stage.relay.log());
    });
}

#[test]
fn what_drain_timeout_ends_looks_cut_off() {
    in_lab(what_drain_timeout_ends_looks_cut_off, Topology::TwoArm, 1, |lab| {
        let mut stage = Stage::set_with(lab, "drain_timeout = \"1s\"", "re-encrypt", RE_ENCRYPT, ON_WORKERS);
        let config = stage.pki.client_config(&[&TLS13]);
        let begun = [Begun::with_a_few_bytes, Begun::with_an_answer].map(|begin| begin(&config, lab, stage.vip));
        let (mut client, mut server) = stage.open_both(lab);
        server.write_all(b"the first half").expect("taken");
        server.flush().expect("taken");
        let mut heard = [0; 14];
        client.read_exact(&mut heard).expect("the first half");
        stage.relay.terminate();
        client.read_to_end(&mut Vec::new()).expect_err("no orderly end for the client");
        server.read_to_end(&mut Vec::new()).expect_err("no orderly end for the server");
        for Begun { mut socket, .. } in begun {
            // A reset, or an end without an alert.
            let mut said = Vec::new();
            assert!(socket.read_to_end(&mut said).is_err() || said.is_empty(), "{said:?}");
        }
        assert_eq!(stage.relay.wait(), Some(0), "{}", stage.relay.log());
        assert!(stage.relay.log().contains("3 connections were cut"), "{}", stage.relay.log());
    });
}
