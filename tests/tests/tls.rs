//! Services whose TLS is ended here, with the clients that there are: openssl, curl and rustls.

#[path = "tls/amid.rs"]
mod amid;
#[path = "tls/clients.rs"]
mod clients;
#[path = "tls/parts.rs"]
mod parts;
#[path = "tls/pressure.rs"]
mod pressure;
#[path = "tls/storm.rs"]
mod storm;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::version::{TLS12, TLS13};
use towpath_engine::status::ServiceStatus;
use towpath_tests::pki::{NAME, Pki, ServerStream, Stream, open_for, open_with};
use towpath_tests::{
    Bulk, Connection, Origin, PATIENCE, Subject, Sum, TestLab, Topology, eventually, in_lab, ipv4, subject,
};

const GIGABYTE: u64 = 1 << 30;
/// Pool threads on no CPU: handshakes are done on the workers.
const ON_WORKERS: &str = "[tls]\nthreads = 0\n";

/// A relay that ends TLS in front of a server whose part the test itself plays.
struct Stage {
    relay: Subject,
    listener: TcpListener,
    vip: Ipv4Addr,
    pki: Pki,
}

impl Stage {
    fn set(lab: &TestLab) -> Stage {
        Stage::set_as(lab, "terminate", "", ON_WORKERS)
    }

    fn set_as(lab: &TestLab, mode: &str, keys: &str, process: &str) -> Stage {
        Stage::set_with(lab, "", mode, keys, process)
    }

    /// With keys of the service, of its TLS, and tables of the process.
    fn set_with(lab: &TestLab, service: &str, mode: &str, keys: &str, process: &str) -> Stage {
        let (vip, pki) = (lab.vip(100), Pki::new());
        let listener = lab.server(1).run(|| TcpListener::bind("0.0.0.0:443")).expect("a thread").expect("a listener");
        let config = pki.service(vip, mode, keys, &ipv4(lab.servers()));
        let config = config.replace("[service.tls]", &format!("{service}\n[service.tls]"));
        let relay = subject!().start(lab.balancer(), &format!("{process}{config}"));
        Stage { relay, listener, vip, pki }
    }

    /// A connection through the relay: its client's end and its server's end.
    fn open(&self, lab: &TestLab) -> (Stream, TcpStream) {
        let client = self.pki.open(lab.client(), (self.vip, 443)).expect("a handshake");
        (client, self.accept())
    }

    /// The same where the server has TLS, too.
    fn open_both(&self, lab: &TestLab) -> (Stream, ServerStream) {
        thread::scope(|scope| {
            let client = scope.spawn(|| self.pki.open(lab.client(), (self.vip, 443)).expect("a handshake"));
            let server = self.pki.accept(self.accept()).expect("a handshake");
            (client.join().expect("no panic"), server)
        })
    }

    fn accept(&self) -> TcpStream {
        let (server, _) = self.listener.accept().expect("the relay connects");
        for limit in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
            limit(&server, Some(PATIENCE)).expect("not zero");
        }
        server
    }

    /// Waits until every connection has ended, and for the right reason.
    fn ended(self, terminations: &[(&str, u64)]) {
        self.have_ended(terminations);
        self.relay.stop();
    }

    fn have_ended(&self, terminations: &[(&str, u64)]) {
        eventually(&format!("connections have ended: {terminations:?}"), || {
            let web = self.relay.service("web");
            let wanted: u64 = terminations.iter().map(|(_, count)| count).sum();
            let all: u64 = web.terminations.values().sum();
            assert!(all <= wanted, "{web:?}");
            let right = terminations.iter().all(|(name, count)| web.terminations[*name] == *count);
            assert!(all < wanted || right, "{web:?}");
            (all == wanted && web.connections == 0).then_some(())
        });
    }
}

/// An orderly end of our direction: `close_notify`, and FIN as most clients send it.
fn finish(stream: &mut Stream) {
    stream.conn.send_close_notify();
    while stream.conn.wants_write() {
        stream.conn.write_tls(&mut stream.sock).expect("our close_notify");
    }
    stream.sock.shutdown(Shutdown::Write).expect("our FIN");
}

#[test]
#[ignore = "needs the Debian packages curl, openssl"]
fn openssl_and_curl_are_served() {
    in_lab(openssl_and_curl_are_served, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab);
        let answers = stage.listener.try_clone().expect("a descriptor");
        thread::spawn(move || answers.incoming().flatten().for_each(answer));
        let at = format!("{}:443", stage.vip);
        for version in ["-tls1_2", "-tls1_3"] {
            let mut command = Command::new("openssl");
            command.args(["s_client", "-connect", &at, "-servername", NAME, version, "-quiet", "-verify_return_error"]);
            command.arg("-CAfile").arg(stage.pki.certificate());
            let said = said(lab, command, b"GET / HTTP/1.0\r\n\r\n");
            assert!(said.ends_with("\r\n\r\nhello, GET / HTTP/1.0"), "{version}: {said}");
        }
        for version in ["--tlsv1.2", "--tlsv1.3"] {
            let mut command = Command::new("curl");
            command.args(["--silent", "--show-error", version, "--resolve", &format!("{NAME}:443:{}", stage.vip)]);
            command.arg("--cacert").arg(stage.pki.certificate()).arg(format!("https://{NAME}/there"));
            assert_eq!(said(lab, command, b""), "hello, GET /there HTTP/1.1", "{version}");
        }
        let web = until_ended(&stage.relay, 4);
        assert_eq!(web.counters["handshakes_full"], 4, "{web:?}");
        stage.relay.stop();
    });
}

/// Waits until so many connections have ended.
fn until_ended(relay: &Subject, count: u64) -> ServiceStatus {
    eventually("connections have ended", || {
        Some(relay.service("web")).filter(|web| web.terminations.values().sum::<u64>() == count)
    })
}

/// A server of HTTP that says what it was asked.
fn answer(mut stream: TcpStream) {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
        request.push(byte[0]);
    }
    let request = String::from_utf8_lossy(&request);
    let body = format!("hello, {}", request.lines().next().unwrap_or_default());
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = stream.write_all(format!("{head}{body}").as_bytes());
}

/// What a program on the client's host says when it is told something.
fn said(lab: &TestLab, mut command: Command, told: &[u8]) -> String {
    let errors = tempfile::tempfile().expect("a temporary file");
    let output = tempfile::NamedTempFile::new().expect("a temporary file");
    let input = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(input.path(), told).expect("a file");
    command.stdin(input.reopen().expect("a file")).stdout(output.reopen().expect("a file")).stderr(Stdio::from(errors));
    let mut child = lab.client().spawn(command).expect("the program is installed");
    let status = child.wait_timeout(PATIENCE).expect("our child");
    assert!(status.is_some(), "it does not end");
    std::fs::read_to_string(output.path()).expect("text")
}

#[test]
fn rustls_clients_of_both_versions_are_served() {
    in_lab(rustls_clients_of_both_versions_are_served, Topology::TwoArm, 1, |lab| {
        let (vip, pki) = (lab.vip(100), Pki::new());
        let _origin = Origin::tcp(lab.server(1), 443);
        let config = pki.service(vip, "terminate", "", &ipv4(lab.servers()));
        let relay = subject!().start(lab.balancer(), &format!("{ON_WORKERS}{config}"));
        for version in [&TLS12, &TLS13] {
            let mut stream = open_with(&pki.client_config(&[version]), lab.client(), (vip, 443)).expect("a handshake");
            assert_eq!(stream.conn.protocol_version(), Some(version.version));
            let mut heard = [0; 8];
            stream.read_exact(&mut heard).expect("a greeting");
            assert_eq!(&heard, b"server-1");
        }
        assert_eq!(relay.service("web").counters["handshakes_full"], 2);
        relay.stop();
    });
}

#[test]
fn a_gigabyte_from_a_client_with_tls_arrives_as_it_was_sent() {
    in_lab(a_gigabyte_from_a_client_with_tls_arrives_as_it_was_sent, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab);
        let (mut client, mut server) = stage.open(lab);
        let sender = thread::spawn(move || {
            let sent = Bulk::pausing(11).send(&mut client, GIGABYTE).expect("everything is taken");
            finish(&mut client);
            (sent, client)
        });
        let received = Bulk::pausing(12).receive(&mut server).expect("a stream that ends with FIN");
        let (sent, mut client) = sender.join().expect("the sender does not panic");
        assert_eq!((received, sent.bytes), (sent, GIGABYTE));
        server.shutdown(Shutdown::Write).expect("our FIN");
        assert_eq!(client.read(&mut [0]).expect("an orderly end"), 0);
        assert_eq!(stage.relay.service("web").bytes_from_client, GIGABYTE);
        stage.ended(&[("client_closed", 1)]);
    });
}

#[test]
fn a_gigabyte_to_a_client_with_tls_arrives_as_it_was_sent() {
    in_lab(a_gigabyte_to_a_client_with_tls_arrives_as_it_was_sent, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab);
        let (mut client, mut server) = stage.open(lab);
        let sender = thread::spawn(move || -> (Sum, TcpStream) {
            let sent = Bulk::pausing(21).send(&mut server, GIGABYTE).expect("everything is taken");
            server.shutdown(Shutdown::Write).expect("our FIN");
            (sent, server)
        });
        let received = Bulk::pausing(22).receive(&mut client).expect("a stream with an orderly end");
        let (sent, mut server) = sender.join().expect("the sender does not panic");
        assert_eq!((received, sent.bytes), (sent, GIGABYTE));
        finish(&mut client);
        assert_eq!(server.read(&mut [0]).expect("an orderly end"), 0);
        assert_eq!(stage.relay.service("web").bytes_to_client, GIGABYTE);
        stage.ended(&[("server_closed", 1)]);
    });
}

#[test]
fn either_end_may_finish_and_still_hear_the_other() {
    in_lab(either_end_may_finish_and_still_hear_the_other, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab);
        let mut heard = String::new();
        let (mut client, mut server) = stage.open(lab);
        client.write_all(b"the last words").expect("taken");
        client.conn.send_close_notify();
        client.flush().expect("our close_notify");
        server.read_to_string(&mut heard).expect("an orderly end");
        assert_eq!(heard, "the last words");
        server.write_all(b"an answer all the same").expect("taken");
        drop(server);
        heard.clear();
        client.read_to_string(&mut heard).expect("an orderly end");
        assert_eq!(heard, "an answer all the same");
        stage.have_ended(&[("client_closed", 1)]);

        let (mut client, mut server) = stage.open(lab);
        server.write_all(b"the last words").expect("taken");
        server.shutdown(Shutdown::Write).expect("our FIN");
        heard.clear();
        client.read_to_string(&mut heard).expect("an orderly end");
        client.write_all(b"an answer all the same").expect("taken");
        finish(&mut client);
        heard.clear();
        server.read_to_string(&mut heard).expect("an orderly end");
        assert_eq!(heard, "an answer all the same");
        stage.ended(&[("client_closed", 1), ("server_closed", 1)]);
    });
}

#[test]
fn a_stream_that_is_cut_off_is_told_apart_from_one_that_ends() {
    in_lab(a_stream_that_is_cut_off_is_told_apart_from_one_that_ends, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab);
        let (mut client, mut server) = stage.open(lab);
        client.write_all(b"and then").expect("taken");
        client.flush().expect("taken");
        let mut heard = [0; 8];
        server.read_exact(&mut heard).expect("what came before");
        // FIN, but no close_notify.
        client.sock.shutdown(Shutdown::Write).expect("our FIN");
        let error = server.read(&mut heard).expect_err("no orderly end");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        stage.have_ended(&[("client_truncated", 1)]);

        // A server without TLS that resets: no close_notify reaches the client.
        let (mut client, server) = stage.open(lab);
        socket2::SockRef::from(&server).set_linger(Some(Duration::ZERO)).expect("an option");
        drop(server);
        client.read(&mut heard).expect_err("no orderly end");
        stage.ended(&[("client_truncated", 1), ("server_reset", 1)]);
    });
}

/// One that we end ourselves, in the middle of an answer.
#[test]
fn a_stream_that_the_idle_timeout_ends_looks_cut_off() {
    in_lab(a_stream_that_the_idle_timeout_ends_looks_cut_off, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set_with(lab, "idle_timeout = \"1s\"", "terminate", "", ON_WORKERS);
        let (mut client, mut server) = stage.open(lab);
        server.write_all(b"the first half").expect("taken");
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).expect_err("no orderly end");
        assert_eq!(heard, b"the first half");
        stage.ended(&[("idle_timed_out", 1)]);
    });
}

#[test]
fn a_client_hello_in_drops_is_answered_and_one_that_never_comes_is_not_waited_for() {
    in_lab(
        a_client_hello_in_drops_is_answered_and_one_that_never_comes_is_not_waited_for,
        Topology::TwoArm,
        1,
        |lab| {
            let (vip, pki) = (lab.vip(100), Pki::new());
            let _origin = Origin::tcp(lab.server(1), 443);
            let config = pki.service(vip, "terminate", "handshake_timeout = \"2s\"", &ipv4(lab.servers()));
            let relay = subject!().start(lab.balancer(), &format!("{ON_WORKERS}{config}"));
            let name = rustls::pki_types::ServerName::try_from(NAME).expect("a name");
            let mut tls = rustls::ClientConnection::new(pki.client_config(&[&TLS13]), name).expect("a client");
            let mut hello = Vec::new();
            tls.write_tls(&mut hello).expect("memory");
            let connection = Connection::open(lab.client(), (vip, 443)).expect("the relay listens");
            let mut socket = connection.stream();
            for byte in &hello {
                // Each leaves at once: TCP_NODELAY.
                socket.write_all(&[*byte]).expect("taken");
            }
            while tls.is_handshaking() {
                tls.complete_io(&mut socket).expect("a handshake");
            }
            let mut silent = [
                Connection::open(lab.client(), (vip, 443)).expect("the relay listens"),
                Connection::open(lab.client(), (vip, 443)).expect("the relay listens"),
            ];
            silent[1].stream().write_all(&hello[..100]).expect("taken");
            for connection in &mut silent {
                assert!(connection.is_ended());
            }
            let web = relay.service("web");
            assert_eq!(web.terminations["handshake_timed_out"], 2, "{web:?}");
            relay.stop();
        },
    );
}

#[test]
fn what_is_not_tls_gets_an_alert_and_reaches_no_server() {
    in_lab(what_is_not_tls_gets_an_alert_and_reaches_no_server, Topology::TwoArm, 1, |lab| {
        let (vip, pki) = (lab.vip(100), Pki::new());
        let origin = Origin::tcp(lab.server(1), 443);
        let config = pki.service(vip, "terminate", "", &ipv4(lab.servers()));
        let relay = subject!().start(lab.balancer(), &format!("{ON_WORKERS}{config}"));
        for noise in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100], &[22, 3, 1, 0, 4, 9, 0, 0, 0]] {
            let mut connection = Connection::open(lab.client(), (vip, 443)).expect("the relay listens");
            connection.stream().write_all(noise).expect("taken");
            let said = connection.end().expect("an alert, then an end");
            assert_eq!((said[0], said[5]), (21, 2), "{noise:?}: {said:?}");
        }
        let gone = Connection::open(lab.client(), (vip, 443)).expect("the relay listens");
        gone.stream().write_all(&[0x16, 3, 1]).expect("taken");
        drop(gone);
        let web = until_ended(&relay, 4);
        assert_eq!((web.terminations["handshake_failed"], web.terminations["handshake_left"]), (3, 1), "{web:?}");
        assert!(origin.accepted().is_empty());
        relay.stop();
    });
}

const RE_ENCRYPT: &str = "verify_server = \"none\"";

#[test]
#[ignore = "needs the Debian package openssl"]
fn an_openssl_server_behind_is_spoken_to_with_tls() {
    in_lab(an_openssl_server_behind_is_spoken_to_with_tls, Topology::TwoArm, 1, |lab| {
        let (vip, pki) = (lab.vip(100), Pki::new());
        let mut command = Command::new("openssl");
        command.args(["s_server", "-accept", "443", "-rev", "-quiet", "-cert"]).arg(pki.certificate());
        command.arg("-key").arg(pki.key()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let _server = lab.server(1).spawn(command).expect("openssl is installed");
        let server = lab.server(1).ipv4();
        eventually("the server listens", || Connection::open(lab.balancer(), (server, 443)).ok());
        let config = pki.service(vip, "re-encrypt", RE_ENCRYPT, &ipv4(lab.servers()));
        let relay = subject!().start(lab.balancer(), &format!("{ON_WORKERS}{config}"));
        for _ in 0..2 {
            let mut client = pki.open(lab.client(), (vip, 443)).expect("a handshake");
            client.write_all(b"palindrome\n").expect("taken");
            let mut heard = [0; 11];
            client.read_exact(&mut heard).expect("an answer");
            assert_eq!(&heard, b"emordnilap\n");
            finish(&mut client);
        }
        let counters = until_ended(&relay, 2).counters;
        let towards_servers = counters["server_handshakes_full"] + counters["server_handshakes_resumed"];
        assert_eq!((counters["handshakes_full"], towards_servers), (2, 2), "{counters:?}");
        relay.stop();
    });
}

#[test]
fn many_bytes_through_two_legs_with_tls_arrive_as_they_were_sent() {
    in_lab(many_bytes_through_two_legs_with_tls_arrive_as_they_were_sent, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set_as(lab, "re-encrypt", RE_ENCRYPT, ON_WORKERS);
        let (mut client, mut server) = stage.open_both(lab);
        let sender = thread::spawn(move || {
            let sent = Bulk::pausing(31).send(&mut client, GIGABYTE).expect("everything is taken");
            finish(&mut client);
            (sent, client)
        });
        let received = Bulk::pausing(32).receive(&mut server).expect("an orderly end");
        let (sent, mut client) = sender.join().expect("the sender does not panic");
        assert_eq!((received, sent.bytes), (sent, GIGABYTE));
        let sender = thread::spawn(move || {
            let sent = Bulk::pausing(33).send(&mut server, GIGABYTE).expect("everything is taken");
            server.conn.send_close_notify();
            server.flush().expect("our close_notify");
            sent
        });
        let received = Bulk::pausing(34).receive(&mut client).expect("an orderly end");
        let sent = sender.join().expect("the sender does not panic");
        assert_eq!((received, sent.bytes), (sent, GIGABYTE));
        stage.ended(&[("client_closed", 1)]);
    });
}

/// The bytes that came before are all there, and no `close_notify` follows them.
#[test]
fn a_server_that_is_cut_off_looks_cut_off_to_the_client() {
    in_lab(a_server_that_is_cut_off_looks_cut_off_to_the_client, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set_as(lab, "re-encrypt", RE_ENCRYPT, ON_WORKERS);
        let (mut client, mut server) = stage.open_both(lab);
        server.write_all(&[7; 100_000]).expect("taken");
        server.sock.shutdown(Shutdown::Write).expect("our FIN");
        let mut heard = Vec::new();
        let error = client.read_to_end(&mut heard).expect_err("no orderly end");
        assert_eq!((heard.len(), error.kind()), (100_000, io::ErrorKind::UnexpectedEof));
        stage.ended(&[("server_truncated", 1)]);
    });
}

/// A real server can log why it was refused.
#[test]
fn a_server_with_a_certificate_that_is_not_trusted_hears_why() {
    in_lab(a_server_with_a_certificate_that_is_not_trusted_hears_why, Topology::TwoArm, 1, |lab| {
        let pin = format!("verify_server = \"pinned\"\nserver_pin = [\"{}\"]", "00".repeat(32));
        let stage = Stage::set_as(lab, "re-encrypt", &pin, ON_WORKERS);
        let mut client = stage.pki.open(lab.client(), (stage.vip, 443)).expect("a handshake");
        let error = stage.pki.accept(stage.accept()).expect_err("no handshake");
        assert!(error.to_string().contains("received fatal alert"), "{error}");
        client.read_to_end(&mut Vec::new()).expect_err("no orderly end");
        stage.ended(&[("server_handshake_failed", 1)]);
    });
}

/// Nor is it excused from its end because its client has ended before.
#[test]
fn an_answer_that_is_cut_off_after_the_client_has_ended_looks_cut_off() {
    in_lab(an_answer_that_is_cut_off_after_the_client_has_ended_looks_cut_off, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set_as(lab, "re-encrypt", RE_ENCRYPT, ON_WORKERS);
        let (mut client, mut server) = stage.open_both(lab);
        client.write_all(b"a question").expect("taken");
        client.conn.send_close_notify();
        client.flush().expect("our close_notify");
        let mut heard = Vec::new();
        server.read_to_end(&mut heard).expect("an orderly end");
        server.write_all(b"half an answer").expect("taken");
        server.sock.shutdown(Shutdown::Write).expect("our FIN");
        heard.clear();
        client.read_to_end(&mut heard).expect_err("no orderly end");
        assert_eq!(heard, b"half an answer");
        stage.ended(&[("server_truncated", 1)]);
    });
}

/// What a server says before its handshake is over is not from who it should be.
#[test]
fn nothing_that_a_server_says_before_its_handshake_reaches_the_client() {
    in_lab(nothing_that_a_server_says_before_its_handshake_reaches_the_client, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set_as(lab, "re-encrypt", RE_ENCRYPT, ON_WORKERS);
        let mut client = stage.pki.open(lab.client(), (stage.vip, 443)).expect("a handshake");
        client.write_all(b"a secret of the client").expect("taken");
        client.flush().expect("taken");
        let mut server = stage.accept();
        server.write_all(b"220 mail.example.org says hello in plain text\r\n").expect("taken");
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).expect_err("no orderly end");
        assert!(heard.is_empty());
        let mut said = Vec::new();
        let _ = server.read_to_end(&mut said);
        assert!(said.starts_with(&[22, 3]) && !said.windows(6).any(|bytes| bytes == b"secret"), "a ClientHello only");
        stage.ended(&[("server_handshake_failed", 1)]);
    });
}

#[test]
fn handshakes_are_done_by_the_pool_and_sessions_resumed() {
    in_lab(handshakes_are_done_by_the_pool_and_sessions_resumed, Topology::TwoArm, 1, |lab| {
        let (vip, pki) = (lab.vip(100), Pki::new());
        let _origin = Origin::tcp(lab.server(1), 443);
        let config = pki.service(vip, "terminate", "", &ipv4(lab.servers()));
        let relay = subject!().start(lab.balancer(), &format!("[tls]\nthreads = 1\n{config}"));
        let greeted = |config| {
            let mut stream = open_with(&config, lab.client(), (vip, 443)).expect("a handshake");
            let mut heard = [0; 8];
            stream.read_exact(&mut heard).expect("a greeting");
            assert_eq!(&heard, b"server-1");
        };
        for version in [&TLS12, &TLS13] {
            thread::scope(|scope| {
                for _ in 0..16 {
                    scope.spawn(|| greeted(pki.client_config(&[version])));
                }
            });
            let returning = pki.client_config(&[version]);
            for _ in 0..4 {
                greeted(returning.clone());
            }
        }
        let counters = relay.service("web").counters;
        assert_eq!((counters["handshakes_full"], counters["handshakes_resumed"]), (34, 6), "{counters:?}");
        relay.stop();
    });
}

#[test]
fn slow_handshakes_take_no_more_than_their_places() {
    in_lab(slow_handshakes_take_no_more_than_their_places, Topology::TwoArm, 1, |lab| {
        const PLACES: u64 = 64;
        const CLIENTS: u64 = 400;
        let (vip, pki) = (lab.vip(100), Pki::new());
        let _origin = Origin::tcp(lab.server(1), 443);
        let config = pki.service(vip, "terminate", "handshake_timeout = \"1m\"", &ipv4(lab.servers()));
        let config = format!("[limits]\nhandshakes = {PLACES}\n{ON_WORKERS}{config}");
        let relay = subject!().start(lab.balancer(), &config);
        let before = relay.memory_bytes();
        // The beginning of a ClientHello that says that it is long.
        let hello = [&[22, 3, 1, 64, 0, 1, 0, 63, 252][..], &[0; 15_000]].concat();
        // One that is refused may have been reset already.
        let slow: Vec<Connection> = (0..CLIENTS)
            .filter_map(|_| {
                let connection = Connection::open(lab.client(), (vip, 443)).ok()?;
                connection.stream().write_all(&hello).is_ok().then_some(connection)
            })
            .collect();
        eventually("all others are refused", || {
            (relay.service("web").terminations["out_of_handshakes"] == CLIENTS - PLACES).then_some(())
        });
        let grown = relay.memory_bytes().saturating_sub(before);
        assert!(grown < 16 << 20, "{grown} bytes for {PLACES} handshakes");
        drop(slow);
        eventually("their places are free", || pki.open(lab.client(), (vip, 443)).ok());
        relay.stop();
    });
}

#[test]
fn a_name_without_a_certificate_is_refused_where_names_are_strict() {
    in_lab(a_name_without_a_certificate_is_refused_where_names_are_strict, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set_as(lab, "terminate", "strict_sni = true", ON_WORKERS);
        let config = stage.pki.client_config(&[&TLS13]);
        let error = open_for(&config, "www.example.net", lab.client(), (stage.vip, 443)).expect_err("refused");
        assert!(error.to_string().contains("UnrecognisedName"), "{error}");
        let mut unnamed = ClientConfig::clone(&config);
        unnamed.enable_sni = false;
        open_with(&Arc::new(unnamed), lab.client(), (stage.vip, 443)).expect_err("refused");
        stage.ended(&[("handshake_unknown_name", 2)]);
    });
}

#[test]
fn an_idle_connection_with_tls_takes_little_memory() {
    in_lab(an_idle_connection_with_tls_takes_little_memory, Topology::TwoArm, 1, |lab| {
        const CONNECTIONS: u64 = 1_000;
        let stage = Stage::set(lab);
        let config = stage.pki.client_config(&[&TLS13]);
        let open = || {
            let mut client = open_with(&config, lab.client(), (stage.vip, 443)).expect("a handshake");
            let mut server = stage.accept();
            server.write_all(b"said once").expect("taken");
            client.read_exact(&mut [0; 9]).expect("heard");
            (client, server)
        };
        // What is taken once only.
        let _first: Vec<_> = (0..200).map(|_| open()).collect();
        let before = stage.relay.memory_bytes();
        let _idle: Vec<_> = (0..CONNECTIONS).map(|_| open()).collect();
        let each = stage.relay.memory_bytes().saturating_sub(before) / CONNECTIONS;
        eprintln!("{each} bytes for an idle connection");
        // 5 KB of TLS, and what every connection has.
        assert!(each <= 6 * 1024, "{each} bytes for an idle connection");
        stage.relay.stop();
    });
}
