//! What goes through the relay: every byte, in order, with pauses of either end; the end of a stream as an end, and a reset as
//! a reset.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use socket2::SockRef;
use towpath_tests::{
    Bulk, Connection, PATIENCE, Subject, Sum, TestLab, Topology, eventually, in_lab, ipv4, service, subject,
};

const GIGABYTE: u64 = 1 << 30;

/// A relay in front of a server whose part the test itself plays.
struct Stage {
    relay: Subject,
    listener: TcpListener,
    vip: Ipv4Addr,
}

impl Stage {
    fn set(lab: &TestLab) -> Stage {
        let vip = lab.vip(100);
        let listener = lab.server(1).run(|| TcpListener::bind("0.0.0.0:443")).expect("a thread").expect("a listener");
        let relay = subject!().start(lab.balancer(), &service("web", vip, "443", "", &ipv4(lab.servers())));
        Stage { relay, listener, vip }
    }

    /// A connection through the relay: its client's end and its server's end.
    fn open(&self, lab: &TestLab) -> (TcpStream, TcpStream) {
        let client = Connection::open(lab.client(), (self.vip, 443)).expect("the relay listens");
        let client = client.stream().try_clone().expect("a descriptor");
        let (server, _) = self.listener.accept().expect("the relay connects");
        for limit in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
            limit(&server, Some(PATIENCE)).expect("not zero");
        }
        (client, server)
    }

    /// Waits until the one connection has ended, and for the right reason.
    fn ended(self, termination: &str) {
        eventually(&format!("the connection has ended: {termination}"), || {
            let web = self.relay.service("web");
            assert_eq!(web.terminations.values().sum::<u64>(), web.terminations[termination], "{web:?}");
            (web.terminations[termination] == 1 && web.connections == 0).then_some(())
        });
        self.relay.stop();
    }
}

fn send(bulk: &Bulk, mut to: &TcpStream, bytes: u64) -> Sum {
    let sent = bulk.send(&mut to, bytes).expect("everything is taken");
    to.shutdown(Shutdown::Write).expect("our FIN");
    sent
}

fn receive(bulk: &Bulk, mut from: &TcpStream) -> Sum {
    bulk.receive(&mut from).expect("a stream that ends with FIN")
}

#[test]
fn a_gigabyte_from_the_client_arrives_as_it_was_sent() {
    in_lab(a_gigabyte_from_the_client_arrives_as_it_was_sent, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab);
        let (client, server) = stage.open(lab);
        let sender = thread::spawn(move || (send(&Bulk::pausing(11), &client, GIGABYTE), client));
        let received = receive(&Bulk::pausing(12), &server);
        let (sent, client) = sender.join().expect("the sender does not panic");
        assert_eq!((received, sent.bytes), (sent, GIGABYTE));
        server.shutdown(Shutdown::Write).expect("our FIN");
        assert_eq!(receive(&Bulk::steady(0), &client).bytes, 0);
        assert_eq!(stage.relay.service("web").bytes_from_client, GIGABYTE);
        stage.ended("client_closed");
    });
}

#[test]
fn a_gigabyte_from_the_server_arrives_as_it_was_sent() {
    in_lab(a_gigabyte_from_the_server_arrives_as_it_was_sent, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab);
        let (client, server) = stage.open(lab);
        let sender = thread::spawn(move || (send(&Bulk::pausing(21), &server, GIGABYTE), server));
        let received = receive(&Bulk::pausing(22), &client);
        let (sent, server) = sender.join().expect("the sender does not panic");
        assert_eq!((received, sent.bytes), (sent, GIGABYTE));
        client.shutdown(Shutdown::Write).expect("our FIN");
        assert_eq!(receive(&Bulk::steady(0), &server).bytes, 0);
        assert_eq!(stage.relay.service("web").bytes_to_client, GIGABYTE);
        stage.ended("server_closed");
    });
}

#[test]
fn a_gigabyte_each_way_at_the_same_time_arrives_as_it_was_sent() {
    in_lab(a_gigabyte_each_way_at_the_same_time_arrives_as_it_was_sent, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab);
        let (client, server) = &stage.open(lab);
        thread::scope(|scope| {
            let there = scope.spawn(|| send(&Bulk::pausing(31), client, GIGABYTE));
            let back = scope.spawn(|| send(&Bulk::pausing(32), server, GIGABYTE));
            let at_server = scope.spawn(|| receive(&Bulk::pausing(33), server));
            let at_client = receive(&Bulk::pausing(34), client);
            assert_eq!(at_client, back.join().expect("the server's sender"));
            let at_server = at_server.join().expect("the server's receiver");
            assert_eq!(at_server, there.join().expect("the client's sender"));
            assert_eq!((at_client.bytes, at_server.bytes), (GIGABYTE, GIGABYTE));
            assert_ne!(at_client.hash, at_server.hash, "two different streams");
        });
        let web = stage.relay.service("web");
        assert_eq!((web.bytes_from_client, web.bytes_to_client), (GIGABYTE, GIGABYTE));
        stage.relay.stop();
    });
}

/// Messages of every size up to several buffers, which never make a path bulky enough for a pipe.
#[test]
fn messages_of_every_size_come_back_as_they_were_sent() {
    in_lab(messages_of_every_size_come_back_as_they_were_sent, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab);
        let (mut client, server) = stage.open(lab);
        let echo = thread::spawn(move || {
            let mut server = server;
            let mut back = server.try_clone().expect("a descriptor");
            io::copy(&mut server, &mut back).expect("an echo");
            back.shutdown(Shutdown::Write).expect("our FIN");
        });
        // Around powers of two: around the size of a buffer, whatever it is.
        let sizes = (0..20).flat_map(|power| [(1 << power) - 1, 1 << power, (1 << power) + 1]).filter(|&size| size > 0);
        for (size, seed) in sizes.zip(40..) {
            let mut message = Vec::new();
            Bulk::steady(seed).send(&mut message, size).expect("a vector takes everything");
            client.write_all(&message).expect("everything is taken");
            let mut back = vec![0; message.len()];
            client.read_exact(&mut back).expect("the echo");
            assert!(back == message, "a message of {size} bytes came back as another one");
        }
        client.shutdown(Shutdown::Write).expect("our FIN");
        assert_eq!(receive(&Bulk::steady(0), &client).bytes, 0);
        echo.join().expect("the echo does not panic");
        stage.ended("client_closed");
    });
}

/// A sender is stopped when not a byte was taken for this long.
const STOPPED: Duration = Duration::from_millis(500);
/// What the kernels of three hosts and the relay may hold of one stream; a sender that is not stopped is far beyond.
const HELD_MAX: u64 = 64 << 20;
/// What the relay's own memory may grow by, for all streams.
const GROWN_MAX: u64 = 16 << 20;

#[test]
fn a_reader_that_pauses_stops_its_sender_and_gets_everything_later() {
    in_lab(a_reader_that_pauses_stops_its_sender_and_gets_everything_later, Topology::TwoArm, 1, |lab| {
        lab.limit_socket_buffers();
        let stage = Stage::set(lab);
        let before = stage.relay.memory_bytes();
        let pairs: Vec<(TcpStream, TcpStream)> = (0..4).map(|_| stage.open(lab)).collect();
        // Either side sends on every second one.
        let streams = pairs.iter().enumerate().map(
            |(n, (client, server))| {
                if n % 2 == 0 { (client, server) } else { (server, client) }
            },
        );
        let streams: Vec<(&TcpStream, &TcpStream)> = streams.collect();
        thread::scope(|scope| {
            let stopped = streams.iter().zip(50..).map(|(&(mut sender, _), seed)| {
                scope.spawn(move || {
                    sender.set_write_timeout(Some(STOPPED)).expect("not zero");
                    let mut piece = Vec::new();
                    Bulk::steady(seed).send(&mut piece, 1 << 20).expect("a vector takes everything");
                    let mut taken = 0;
                    while taken < 4 * HELD_MAX {
                        let at = (taken % (1 << 20)) as usize;
                        match sender.write(&piece[at..]) {
                            Ok(bytes) => taken += bytes as u64,
                            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                            Err(error) => panic!("after {taken} bytes: {error}"),
                        }
                    }
                    (taken, piece)
                })
            });
            let stopped: Vec<_> = stopped.collect();
            let stopped: Vec<(u64, Vec<u8>)> =
                stopped.into_iter().map(|thread| thread.join().expect("a sender does not panic")).collect();
            for (taken, _) in &stopped {
                assert!(*taken < HELD_MAX, "{taken} bytes were taken while nobody read");
            }
            let grown = stage.relay.memory_bytes().saturating_sub(before);
            assert!(grown < GROWN_MAX, "the relay has grown by {grown} bytes");

            for (&(sender, mut reader), (taken, piece)) in streams.iter().zip(&stopped) {
                sender.shutdown(Shutdown::Write).expect("our FIN");
                let mut arrived = vec![0; piece.len()];
                let mut left = *taken;
                while left > 0 {
                    let length = left.min(piece.len() as u64) as usize;
                    reader.read_exact(&mut arrived[..length]).expect("what was taken arrives");
                    assert!(arrived[..length] == piece[..length], "other bytes, {left} before the end");
                    left -= length as u64;
                }
                assert_eq!(reader.read(&mut arrived).expect("the end"), 0, "more than was sent");
            }
        });
        stage.relay.stop();
    });
}

#[test]
fn after_the_clients_fin_the_server_still_sends() {
    in_lab(after_the_clients_fin_the_server_still_sends, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab);
        let (mut client, mut server) = stage.open(lab);
        client.write_all(b"question").expect("the relay reads");
        client.shutdown(Shutdown::Write).expect("our FIN");
        let mut question = Vec::new();
        server.read_to_end(&mut question).expect("question and FIN");
        assert_eq!(question, b"question");
        // Small, then so much that the path changes its way; each piece arrives before the next is sent.
        for bytes in [1, 1_000, 20 << 20] {
            let mut answer = Vec::new();
            Bulk::steady(60 + bytes).send(&mut answer, bytes).expect("a vector takes everything");
            thread::scope(|scope| {
                scope.spawn(|| (&server).write_all(&answer).expect("the relay reads"));
                let mut heard = vec![0; answer.len()];
                client.read_exact(&mut heard).expect("an answer after our FIN");
                assert!(heard == answer, "another answer of {bytes} bytes");
            });
        }
        drop(server);
        assert_eq!(client.read(&mut [0]).expect("the server's FIN"), 0);
        stage.ended("client_closed");
    });
}

#[test]
fn after_the_servers_fin_the_client_still_sends() {
    in_lab(after_the_servers_fin_the_client_still_sends, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab);
        let (mut client, mut server) = stage.open(lab);
        server.write_all(b"farewell").expect("the relay reads");
        server.shutdown(Shutdown::Write).expect("our FIN");
        let mut farewell = Vec::new();
        client.read_to_end(&mut farewell).expect("farewell and FIN");
        assert_eq!(farewell, b"farewell");
        for bytes in [1, 1_000, 20 << 20] {
            let mut more = Vec::new();
            Bulk::steady(70 + bytes).send(&mut more, bytes).expect("a vector takes everything");
            thread::scope(|scope| {
                scope.spawn(|| (&client).write_all(&more).expect("the relay reads"));
                let mut heard = vec![0; more.len()];
                server.read_exact(&mut heard).expect("more after our FIN");
                assert!(heard == more, "other {bytes} bytes");
            });
        }
        drop(client);
        assert_eq!(server.read(&mut [0]).expect("the client's FIN"), 0);
        stage.ended("server_closed");
    });
}

fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("a socket");
}

fn assert_reset(mut stream: &TcpStream) {
    let seen = stream.read(&mut [0; 16]).expect_err("neither bytes nor FIN");
    assert_eq!(seen.kind(), io::ErrorKind::ConnectionReset);
}

/// Both ends have heard from each other: nothing is under way.
fn exchange(mut client: &TcpStream, mut server: &TcpStream) {
    let mut heard = [0; 5];
    client.write_all(b"hello").expect("the relay reads");
    server.read_exact(&mut heard).expect("the client's word");
    server.write_all(b"hello").expect("the relay reads");
    client.read_exact(&mut heard).expect("the server's word");
}

#[test]
fn a_reset_by_the_server_reaches_the_client_as_a_reset() {
    in_lab(a_reset_by_the_server_reaches_the_client_as_a_reset, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab);
        let (client, server) = stage.open(lab);
        exchange(&client, &server);
        reset(server);
        assert_reset(&client);
        stage.ended("server_reset");
    });
}

#[test]
fn a_reset_by_the_client_reaches_the_server_as_a_reset() {
    in_lab(a_reset_by_the_client_reaches_the_server_as_a_reset, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab);
        let (client, server) = stage.open(lab);
        exchange(&client, &server);
        reset(client);
        assert_reset(&server);
        stage.ended("client_reset");
    });
}

#[test]
fn a_reset_after_a_fin_of_the_other_side_is_still_a_reset() {
    in_lab(a_reset_after_a_fin_of_the_other_side_is_still_a_reset, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab);
        let (mut client, mut server) = stage.open(lab);
        exchange(&client, &server);
        client.shutdown(Shutdown::Write).expect("our FIN");
        assert_eq!(server.read(&mut [0]).expect("the client's FIN"), 0);
        server.write_all(b"half an ans").expect("the relay reads");
        client.read_exact(&mut [0; 11]).expect("half an answer");
        reset(server);
        assert_reset(&client);
        stage.ended("server_reset");
    });
}

#[test]
fn a_reset_in_the_middle_of_bulk_reaches_the_sender() {
    in_lab(a_reset_in_the_middle_of_bulk_reaches_the_sender, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab);
        let (client, mut server) = stage.open(lab);
        let sender = thread::spawn(move || Bulk::steady(80).send_until(&mut &client, GIGABYTE));
        let mut piece = vec![0; 1 << 20];
        for _ in 0..64 {
            server.read_exact(&mut piece).expect("the client sends");
        }
        reset(server);
        let (_, ended) = sender.join().expect("the sender does not panic");
        let error = ended.expect_err("the server is gone");
        assert!(matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{error}");
        stage.ended("server_reset");
    });
}
