//! Clients and real servers that cost more than they should: others are served all the same.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore};
use towpath_tests::pki::{Pki, Stream, open_with};
use towpath_tests::{Origin, Topology, eventually, in_lab, ipv4, subject};

use crate::{ON_WORKERS, RE_ENCRYPT, Stage};

/// Few buffers on one worker.
const FEW_BUFFERS: &str = "[runtime]\nworkers = [0]\n[limits]\ntls_buffers = 16\n[tls]\nthreads = 0\n";
const MEBIBYTE: usize = 1 << 20;
/// How often who reads slowly reads 16 KiB: 20 times as much as those take who give way.
const SLOW_READ_EVERY: Duration = Duration::from_millis(100);

/// A client that guesses the group wrong says hello twice. The second hello is what costs the signature.
#[test]
fn the_pool_signs_for_clients_that_say_hello_twice() {
    in_lab(the_pool_signs_for_clients_that_say_hello_twice, Topology::TwoArm, 1, |lab| {
        let (vip, pki) = (lab.vip(100), Pki::new());
        let _origin = Origin::tcp(lab.server(1), 443);
        let config = pki.service(vip, "terminate", "", &ipv4(lab.servers()));
        let config = format!("[runtime]\nworkers = [0]\n[tls]\nthreads = [1]\npost_quantum = false\n{config}");
        let relay = subject!().start(lab.balancer(), &config);
        // A share of the first only is sent, which the relay lacks.
        let groups = vec![kx_group::MLKEM768, kx_group::X25519];
        let crypto = CryptoProvider { kx_groups: groups, ..default_provider() };
        let mut roots = RootCertStore::empty();
        roots.add(pki.certificate_der()).expect("a root");
        let builder = ClientConfig::builder_with_provider(Arc::new(crypto)).with_protocol_versions(&[&TLS13]);
        let trusting = builder.expect("a version").with_root_certificates(roots).with_no_client_auth();
        let mut stream = open_with(&Arc::new(trusting), lab.client(), (vip, 443)).expect("a handshake");
        stream.read_exact(&mut [0; 8]).expect("a greeting");
        assert_eq!(stream.conn.handshake_kind(), Some(rustls::HandshakeKind::FullWithHelloRetryRequest));
        let pool = relay.status().handshake_pool.expect("a pool");
        assert_eq!(pool.counters["done"], 2, "{pool:?}");
        relay.stop();
    });
}

/// Writes until nobody takes any more.
fn fill(mut socket: &TcpStream) {
    socket.set_nonblocking(true).expect("an option");
    let mut written = 0;
    while written < 32 * MEBIBYTE {
        match socket.write(&[7; 65_536]) {
            Ok(bytes) => written += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(_) => break,
        }
    }
}

#[test]
fn clients_that_do_not_read_give_way_to_others() {
    in_lab(clients_that_do_not_read_give_way_to_others, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set_as(lab, "terminate", "", FEW_BUFFERS);
        let (mut patient, mut steady) = stage.open(lab);
        let deaf: Vec<(Stream, TcpStream)> = (0..24).map(|_| stage.open(lab)).collect();
        let (mut honest, mut server) = stage.open(lab);
        // One that reads slowly, but reads: it stays. Its window is small, so that what it has not read is with the relay.
        socket2::SockRef::from(&patient.sock).set_recv_buffer_size(65_536).expect("an option");
        let has_room = Arc::new(AtomicBool::new(false));
        let hurries = Arc::clone(&has_room);
        let answers = thread::spawn(move || {
            for _ in 0..64 {
                steady.write_all(&[1; 65_536]).expect("taken");
            }
            steady
        });
        let reader = thread::spawn(move || {
            for _ in 0..64 * 4 {
                patient.read_exact(&mut [0; 16_384]).expect("all of it");
                if !hurries.load(Ordering::Relaxed) {
                    thread::sleep(SLOW_READ_EVERY);
                }
            }
            patient
        });
        let answer = thread::spawn(move || {
            server.write_all(&[2; MEBIBYTE]).expect("taken");
            server
        });
        eventually("those that hold buffers give way", || {
            deaf.iter().for_each(|(_, server)| fill(server));
            (stage.relay.service("web").terminations["out_of_tls_buffers"] > 0).then_some(())
        });
        has_room.store(true, Ordering::Relaxed);
        let mut heard = vec![0; MEBIBYTE];
        honest.read_exact(&mut heard).expect("an answer");
        assert!(heard.iter().all(|byte| *byte == 2));
        let _servers = (answers.join().expect("no panic"), answer.join().expect("no panic"));
        let _patient = reader.join().expect("no panic");
        let web = stage.relay.service("web");
        let ended: u64 = web.terminations.values().sum();
        assert!((1..=24).contains(&ended) && web.terminations["out_of_tls_buffers"] == ended, "{web:?}");
        stage.relay.stop();
    });
}

/// The same of real servers that hang in the middle of an upload.
#[test]
fn real_servers_that_do_not_read_give_way_to_others() {
    in_lab(real_servers_that_do_not_read_give_way_to_others, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set_as(lab, "terminate", "", FEW_BUFFERS);
        let mut hanging: Vec<(Stream, TcpStream)> = (0..24).map(|_| stage.open(lab)).collect();
        let (mut honest, mut server) = stage.open(lab);
        for (client, _) in &mut hanging {
            client.sock.set_nonblocking(true).expect("an option");
        }
        eventually("those that hold buffers give way", || {
            for (client, _) in &mut hanging {
                // What does not fit now is kept inside and follows with the next.
                let _ = client.write_all(&[3; 65_536]);
            }
            (stage.relay.service("web").terminations["out_of_tls_buffers"] > 0).then_some(())
        });
        honest.write_all(b"a question").expect("taken");
        honest.flush().expect("taken");
        let mut heard = [0; 10];
        server.read_exact(&mut heard).expect("a question");
        assert_eq!(&heard, b"a question");
        let web = stage.relay.service("web");
        let ended: u64 = web.terminations.values().sum();
        assert!((1..=24).contains(&ended) && web.terminations["out_of_tls_buffers"] == ended, "{web:?}");
        stage.relay.stop();
    });
}

/// What 16 buffers may keep beside them is 2 MiB.
#[test]
fn clients_that_send_parts_of_records_share_a_bounded_memory() {
    in_lab(clients_that_send_parts_of_records_share_a_bounded_memory, Topology::TwoArm, 1, |lab| {
        const PART: usize = 16_000;
        const KEPT_MAX: usize = 2 * MEBIBYTE;
        let stage = Stage::set_as(lab, "terminate", "", FEW_BUFFERS);
        let (mut honest, mut server) = stage.open(lab);
        // The header of a record of 16,401 octets, and most of it.
        let part = [&[23, 3, 3, 64, 17][..], &[9; PART - 5]].concat();
        let mut slow = Vec::new();
        for _ in 0..2 * KEPT_MAX / PART {
            let (mut client, server) = stage.open(lab);
            client.sock.write_all(&part).expect("taken");
            slow.push((client, server));
        }
        let ended = eventually("those that waited longest have ended", || {
            let web = stage.relay.service("web");
            let ended = web.terminations["out_of_tls_memory"];
            ((slow.len() - ended as usize) * PART <= KEPT_MAX).then_some(ended as usize)
        });
        assert!(slow.len() - ended > KEPT_MAX / PART / 2, "{ended} of {}", slow.len());
        // The first have gone, the last stay, and others are served.
        let (first, _) = &mut slow[0];
        let end = io::copy(&mut first.sock, &mut io::sink());
        assert!(end.as_ref().map_or_else(|error| error.kind() == io::ErrorKind::ConnectionReset, |_| true), "{end:?}");
        let (last, _) = slow.last_mut().expect("there are many");
        last.sock.set_nonblocking(true).expect("an option");
        // The ticket may still lie there.
        let mut heard = [0; 4096];
        let said = std::iter::repeat_with(|| last.sock.read(&mut heard)).find(|read| !matches!(read, Ok(1..)));
        assert!(matches!(said, Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock));
        honest.write_all(&[5; 100_000]).expect("taken");
        honest.flush().expect("taken");
        server.read_exact(&mut [0; 100_000]).expect("all of it");
        stage.relay.stop();
    });
}

#[test]
fn a_handshake_with_a_real_server_that_is_silent_fails_once() {
    in_lab(a_handshake_with_a_real_server_that_is_silent_fails_once, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set_with(lab, "connect_timeout = \"1s\"", "re-encrypt", RE_ENCRYPT, ON_WORKERS);
        let mut client = stage.pki.open(lab.client(), (stage.vip, 443)).expect("a handshake");
        let _silent = stage.accept();
        client.read(&mut [0]).expect_err("no orderly end");
        stage.have_ended(&[("connect_timed_out", 1)]);
        assert_eq!(stage.relay.service("web").counters["server_handshakes_failed"], 1);
        stage.relay.stop();
    });
}

#[test]
fn a_handshake_with_a_real_server_does_not_fail_because_its_client_leaves() {
    in_lab(a_handshake_with_a_real_server_does_not_fail_because_its_client_leaves, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set_with(lab, "connect_timeout = \"60s\"", "re-encrypt", RE_ENCRYPT, ON_WORKERS);
        let client = stage.pki.open(lab.client(), (stage.vip, 443)).expect("a handshake");
        let _silent = stage.accept();
        socket2::SockRef::from(&client.sock).set_linger(Some(Duration::ZERO)).expect("an option");
        drop(client);
        stage.have_ended(&[("client_reset", 1)]);
        assert_eq!(stage.relay.service("web").counters["server_handshakes_failed"], 0);
        stage.relay.stop();
    });
}
