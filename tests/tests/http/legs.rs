//! What a leg holds when the other one has ended: bytes that still leave, and buffers that are given back once.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustls::version::TLS12;
use towpath_tests::pki::{Pki, Stream, open_with};
use towpath_tests::web::send_pattern;
use towpath_tests::{PATIENCE, Subject, TestLab, Topology, in_lab, ipv4, subject};

/// With its head it fits into one record, and it is long enough to be sent from where it was received.
const BODY_BYTES: u64 = 12_000;

fn relay(lab: &TestLab, pki: &Pki, mode: &str, keys: &str) -> (Subject, Ipv4Addr) {
    relay_with(lab, pki, mode, keys, "")
}

fn relay_with(lab: &TestLab, pki: &Pki, mode: &str, keys: &str, process: &str) -> (Subject, Ipv4Addr) {
    let vip = lab.vip(100);
    let text = pki.service(vip, mode, keys, &ipv4(lab.servers()));
    let text = text.replace("[service.tls]", "[service.http]\n[service.tls]");
    (subject!().start(lab.balancer(), &format!("{process}[tls]\nthreads = 0\n{text}")), vip)
}

fn listen(lab: &TestLab) -> TcpListener {
    lab.server(1).run(|| TcpListener::bind("0.0.0.0:443")).expect("a thread").expect("a listener")
}

/// Reads one byte after the other up to the end of a head.
fn head_of(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("a head");
        head.extend(byte);
    }
    String::from_utf8(head).expect("text")
}

fn body() -> Vec<u8> {
    let mut body = Vec::new();
    send_pattern(&mut body, BODY_BYTES).expect("memory");
    body
}

#[test]
fn what_a_server_sent_before_it_was_left_reaches_the_client_as_it_was() {
    in_lab(what_a_server_sent_before_it_was_left_reaches_the_client_as_it_was, Topology::TwoArm, 1, |lab| {
        let pki = Arc::new(Pki::new());
        let (listener, key) = (listen(lab), Arc::clone(&pki));
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let mut server = key.accept(socket).expect("a handshake");
                let head = head_of(&mut server);
                // In one record, so in one buffer of the relay.
                let close = if head.contains("/closes") { "Connection: close\r\n" } else { "" };
                let mut answer = format!("HTTP/1.1 200 OK\r\n{close}Content-Length: {BODY_BYTES}\r\n\r\n").into_bytes();
                answer.extend(body());
                server.write_all(&answer).expect("the relay takes it");
                server.flush().expect("the relay takes it");
                // Until the relay ends it, as it likes.
                thread::spawn(move || server.read_to_end(&mut Vec::new()));
            }
        });
        let (relay, vip) = relay(lab, &pki, "re-encrypt", "verify_server = \"none\"");
        for round in 0..20 {
            let mut client = pki.open(lab.client(), (vip, 443)).expect("a handshake");
            let (path, field) = if round % 2 == 0 { ("closes", "") } else { ("stays", "Connection: close\r\n") };
            let request = format!("GET /{path} HTTP/1.1\r\nHost: web.test\r\n{field}\r\n");
            client.write_all(request.as_bytes()).expect("the relay takes it");
            let head = head_of(&mut client);
            assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            let mut come = vec![0; BODY_BYTES as usize];
            client.read_exact(&mut come).expect("a body");
            let differs = come.iter().zip(body()).position(|(&come, sent)| come != sent);
            assert_eq!(differs, None, "round {round}: other bytes from here on");
        }
        relay.stop();
    });
}

/// Waits a little for something on a leg.
fn hears_something(mut socket: &TcpStream) -> bool {
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("not zero");
    let come = socket.read(&mut [0; 1000]);
    socket.set_read_timeout(Some(PATIENCE)).expect("not zero");
    !matches!(come, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn an_answer_to_a_client_that_broke_its_connection_gives_its_buffer_back_once() {
    in_lab(an_answer_to_a_client_that_broke_its_connection_gives_its_buffer_back_once, Topology::TwoArm, 1, |lab| {
        let (pki, listener) = (Pki::new(), listen(lab));
        // Little on the way to a server that does not read: then the relay is amid a send to it.
        lab.balancer().set_sysctl("net.ipv4.tcp_wmem", "4096 8192 8192").expect("a sysctl");
        socket2::SockRef::from(&listener).set_recv_buffer_size(4096).expect("a listener");
        let (relay, vip) = relay(lab, &pki, "terminate", "");
        let config = pki.client_config(&[&TLS12]);
        let mut opened = 0;
        for records in 1..=8 {
            for long in [false, true] {
                let mut client: Stream = open_with(&config, lab.client(), (vip, 443)).expect("a handshake");
                opened += 1;
                client
                    .write_all(b"POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 9000000\r\n\r\n")
                    .expect("the relay takes it");
                let (mut server, _) = listener.accept().expect("a connection");
                head_of(&mut server);
                for _ in 0..records {
                    client.write_all(&[7; 8192]).expect("the relay takes it");
                }
                // A record that nobody has sealed.
                let damaged = [&[23, 3, 3, 0, 64][..], &[0; 64]].concat();
                client.sock.write_all(&damaged).expect("the relay takes it");
                // Its alert, unless the relay has something before that record in its hands.
                hears_something(&client.sock);
                let mut answer = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: ".to_vec();
                let body = if long { body() } else { b"large\n".to_vec() };
                write!(answer, "{}\r\n\r\n", body.len()).expect("memory");
                answer.extend(body);
                // It may be gone.
                let _gone = server.write_all(&answer);
                hears_something(&client.sock);
            }
        }
        relay.until("all have ended", |status| {
            let web = &status.services[0];
            web.connections == 0 && web.terminations.values().sum::<u64>() == opened
        });
        // A worker that gave a buffer back twice would have taken the process with it.
        relay.stop();
    });
}

#[test]
fn requests_before_their_time_hold_no_buffer() {
    in_lab(requests_before_their_time_hold_no_buffer, Topology::TwoArm, 1, |lab| {
        let (pki, listener) = (Pki::new(), listen(lab));
        let few = "[runtime]\nworkers = [0]\n[limits]\ntls_buffers = 16\n";
        let (relay, vip) = relay_with(lab, &pki, "terminate", "", few);
        let ask = |client: &mut Stream, rest: &str| {
            let requests = format!("GET / HTTP/1.1\r\nHost: web.test\r\n\r\n{rest}");
            client.write_all(requests.as_bytes()).expect("the relay takes it");
            let (mut server, _) = listener.accept().expect("a connection");
            head_of(&mut server);
            server
        };
        // More of them than there are buffers, each with the begin of a second request behind one that is not answered.
        let mut waiting = Vec::new();
        for _ in 0..40 {
            let mut client = pki.open(lab.client(), (vip, 443)).expect("a handshake");
            let server = ask(&mut client, "GET /second HTT");
            waiting.push((client, server));
        }
        for (mut client, mut server) in waiting {
            client.write_all(b"P/1.1\r\nHost: web.test\r\n\r\n").expect("the relay takes it");
            for body in ["1", "2"] {
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{body}");
                server.write_all(answer.as_bytes()).expect("the relay takes it");
                assert!(head_of(&mut client).starts_with("HTTP/1.1 200 "));
                let mut come = [0];
                client.read_exact(&mut come).expect("a body");
                assert_eq!(&come, body.as_bytes());
                if body == "1" {
                    assert!(head_of(&mut server).starts_with("GET /second HTTP/1.1\r\n"));
                }
            }
        }
        relay.stop();
    });
}
