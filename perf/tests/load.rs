//! The load is honest: nothing wrong, refused, cut short or lost is ever counted, and a stall is not hidden.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use towpath_perf::load::client::{self, Held};
use towpath_perf::load::tls::{Tls, Version};
use towpath_perf::load::{Pace, Plan, Security, Tally, Work, origin};
use towpath_perf::message::{Filler, Framing, HEADER_BYTES, Header, Kind};
use towpath_sys::socket::set_linger_reset;

const EXCHANGES: Work = Work::KeepAlive { connections: 4, idle: 0, request_bytes: 128, answer_bytes: 20_000 };
const MOSTLY_IDLE: Work = Work::KeepAlive { connections: 2, idle: 200, request_bytes: 1000, answer_bytes: 128 };
const LONG_MESSAGES: Work =
    Work::KeepAlive { connections: 3, idle: 1, request_bytes: 100_000, answer_bytes: 1_000_000 };
const CONNECTIONS: Work = Work::Connect { concurrency: 4, request_bytes: 128, answer_bytes: 128 };
const LONG_CONNECTIONS: Work = Work::Connect { concurrency: 2, request_bytes: 50_000, answer_bytes: 300_000 };
const STREAMS: Work = Work::Bulk { streams: 2 };
const MANY_STREAMS: Work = Work::Bulk { streams: 20 };
const HOLD: Work = Work::Hold { connections: 300 };
const DATAGRAMS: Work = Work::Datagrams { flows: 4, payload_bytes: 100 };
const LARGE_DATAGRAMS: Work = Work::Datagrams { flows: 2, payload_bytes: 60_000 };

const OPEN: Pace = Pace::Open { per_second: 400.0 };

/// An origin that serves until the test program ends, on one port for both.
fn start_origin() -> SocketAddr {
    let listener = origin::listen(loopback()).unwrap();
    let address = listener.local_addr().unwrap();
    let socket = origin::bind(address).unwrap();
    thread::spawn(move || origin::serve(vec![listener], vec![socket]).unwrap());
    address
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Which way a piece goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    ToClient,
    ToOrigin,
}

/// Changes a piece that goes this way after so many bytes of its connection (datagrams: of its flow).
type Tamper = Arc<dyn Fn(Way, usize, &mut Vec<u8>) + Send + Sync>;

fn tamper(change: impl Fn(Way, usize, &mut Vec<u8>) + Send + Sync + 'static) -> Tamper {
    Arc::new(change)
}

fn untouched() -> Tamper {
    tamper(|_, _, _| {})
}

/// Flips one bit of byte `at` of every connection.
fn flip(way: Way, at: usize) -> Tamper {
    tamper(move |going, passed, piece| {
        if going == way
            && let Some(byte) = piece.get_mut(at.wrapping_sub(passed))
        {
            *byte ^= 0x40;
        }
    })
}

/// A relay of TCP and UDP in front of an origin, on one port. A piece that is emptied ends its connection.
struct Relay {
    address: SocketAddr,
    open: Arc<AtomicUsize>,
}

fn start_relay(origin: SocketAddr, tamper: Tamper) -> Relay {
    let listener = TcpListener::bind(loopback()).unwrap();
    let address = listener.local_addr().unwrap();
    let socket = UdpSocket::bind(address).unwrap();
    let open = Arc::new(AtomicUsize::new(0));
    let counter = open.clone();
    let datagram_tamper = tamper.clone();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (client, server) = (client.unwrap(), TcpStream::connect(origin).unwrap());
            counter.fetch_add(1, Ordering::SeqCst);
            for (way, from, to) in [(Way::ToOrigin, &client, &server), (Way::ToClient, &server, &client)] {
                let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                let (tamper, counter) = (tamper.clone(), counter.clone());
                thread::spawn(move || {
                    carry(way, from, to, &tamper);
                    if way == Way::ToOrigin {
                        counter.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        }
    });
    thread::spawn(move || carry_datagrams(&socket, origin, &datagram_tamper));
    Relay { address, open }
}

fn carry(way: Way, mut from: TcpStream, mut to: TcpStream, tamper: &Tamper) {
    let mut passed = 0;
    let mut buffer = vec![0; 65_536];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let mut piece = buffer[..length].to_vec();
        tamper(way, passed, &mut piece);
        passed += length;
        if piece.is_empty() {
            let _gone = from.shutdown(Shutdown::Both);
            break;
        }
        if to.write_all(&piece).is_err() {
            break;
        }
    }
    let _gone = to.shutdown(if way == Way::ToOrigin { Shutdown::Write } else { Shutdown::Both });
}

fn carry_datagrams(socket: &UdpSocket, origin: SocketAddr, tamper: &Tamper) {
    let mut servers: HashMap<SocketAddr, (UdpSocket, usize)> = HashMap::new();
    let mut buffer = vec![0; 65_536];
    while let Ok((length, client)) = socket.recv_from(&mut buffer) {
        let (server, passed) = servers.entry(client).or_insert_with(|| {
            let server = UdpSocket::bind(loopback()).unwrap();
            server.connect(origin).unwrap();
            let (answers, back, tamper) = (server.try_clone().unwrap(), socket.try_clone().unwrap(), tamper.clone());
            thread::spawn(move || {
                let (mut buffer, mut passed) = (vec![0; 65_536], 0);
                while let Ok(length) = answers.recv(&mut buffer) {
                    let mut piece = buffer[..length].to_vec();
                    tamper(Way::ToClient, passed, &mut piece);
                    passed += length;
                    if !piece.is_empty() {
                        let _lost = back.send_to(&piece, client);
                    }
                }
            });
            (server, 0)
        });
        let mut piece = buffer[..length].to_vec();
        tamper(Way::ToOrigin, *passed, &mut piece);
        *passed += length;
        if !piece.is_empty() {
            let _lost = server.send(&piece);
        }
    }
}

/// An origin of the test's own: does this with each connection.
fn start_stranger(with_each: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind(loopback()).unwrap();
    let address = listener.local_addr().unwrap();
    let with_each = Arc::new(with_each);
    thread::spawn(move || {
        for client in listener.incoming() {
            let (client, with_each) = (client.unwrap(), with_each.clone());
            thread::spawn(move || with_each(client));
        }
    });
    address
}

/// Answers the first request of a connection with what is made of it.
fn start_answering(answer: impl Fn(Header) -> Vec<u8> + Send + Sync + 'static) -> SocketAddr {
    start_stranger(move |mut client| {
        let mut head = [0; HEADER_BYTES];
        client.read_exact(&mut head).unwrap();
        let request = Header::decode(&head).unwrap();
        client.read_exact(&mut vec![0; request.filler_bytes as usize]).unwrap();
        let _gone = client.write_all(&answer(request));
        // Until the client has gone: an end would be another reason to fail.
        let _gone = client.read(&mut [0]);
    })
}

fn message(header: Header) -> Vec<u8> {
    let mut bytes = header.encode().to_vec();
    bytes.extend_from_slice(Filler::of(header.tag).window(header.filler_bytes as usize));
    bytes
}

fn honest_answer(request: Header) -> Header {
    Header { kind: Kind::Answer, tag: request.tag, filler_bytes: request.answer_filler_bytes, answer_filler_bytes: 0 }
}

fn plan(target: SocketAddr, work: Work) -> Plan {
    Plan {
        target,
        work,
        pace: Pace::Closed,
        security: Security::PLAIN,
        framing: Framing::Bare,
        warm_up: Duration::from_millis(20),
        measure: Duration::from_millis(300),
        watch_cpus: vec![towpath_sys::host::available_cpus().unwrap()[0]],
        watch_processes: Vec::new(),
    }
}

fn failure(target: SocketAddr, work: Work) -> std::io::Error {
    match client::run(&plan(target, work)) {
        Ok(tally) => panic!("{work:?} counted {tally:?}"),
        Err(error) => error,
    }
}

/// Counts for longer where a busy machine had no processor for us and nothing came to its end in the counted time.
fn run_patiently(plan: &Plan) -> Tally {
    let mut plan = plan.clone();
    for _ in 0..5 {
        match client::run(&plan) {
            Err(error) if error.kind() == ErrorKind::TimedOut => plan.measure *= 2,
            ended => return ended.unwrap(),
        }
    }
    client::run(&plan).unwrap()
}

fn timed(tally: &Tally) -> u64 {
    tally.latency_ns.iter().map(|&(_, count)| count).sum()
}

#[test]
fn honest_work_is_counted() {
    let origin = start_origin();
    let relay = start_relay(origin, untouched()).address;
    for target in [origin, relay] {
        for work in [
            EXCHANGES,
            MOSTLY_IDLE,
            LONG_MESSAGES,
            CONNECTIONS,
            LONG_CONNECTIONS,
            STREAMS,
            MANY_STREAMS,
            HOLD,
            DATAGRAMS,
            LARGE_DATAGRAMS,
        ] {
            let tally = client::run(&plan(target, work)).unwrap_or_else(|error| panic!("{work:?}: {error}"));
            assert!(tally.done > 0 && tally.rate() > 0.0, "{work:?}");
            assert_eq!((tally.cpus.len(), tally.offered), (1, None));
            let untimed = matches!(work, Work::Bulk { .. } | Work::Hold { .. });
            assert_eq!(timed(&tally), if untimed { 0 } else { tally.done }, "{work:?}");
        }
    }
}

#[test]
fn work_over_tls_is_counted_and_handshakes_are_what_was_asked_for() {
    let listener = origin::listen(loopback()).unwrap();
    let target = listener.local_addr().unwrap();
    thread::spawn(move || origin::serve_tls(vec![listener]).unwrap());
    let handshakes = Work::Handshake { concurrency: 4 };
    for version in [Version::V12, Version::V13] {
        for resumes in [false, true] {
            let security = Security { client: Some(Tls { version, resumes }), origin: false };
            for work in [EXCHANGES, LONG_MESSAGES, CONNECTIONS, LONG_CONNECTIONS, STREAMS, HOLD, handshakes] {
                if resumes && work == handshakes {
                    continue;
                }
                let plan = Plan { security, ..plan(target, work) };
                let tally = client::run(&plan).unwrap_or_else(|error| panic!("{work:?} {version:?}: {error}"));
                assert!(tally.done > 0 && tally.lost == 0, "{work:?}: {tally:?}");
            }
        }
        let security = Security { client: Some(Tls { version, resumes: false }), origin: true };
        let listener = origin::listen(loopback()).unwrap();
        let beside = Plan { security, ..plan(listener.local_addr().unwrap(), STREAMS) };
        assert!(client::run_beside_origin(&beside, vec![listener], Vec::new()).unwrap().done > 0);
        let mut held = Held::open(target, 200, security.client).unwrap();
        held.prove().unwrap();
    }
}

#[test]
fn messages_are_bodies_of_http_where_that_is_asked_for() {
    let tls = Some(Tls { version: Version::V13, resumes: false });
    for security in [Security::PLAIN, Security { client: tls, origin: true }] {
        for work in [EXCHANGES, LONG_MESSAGES, CONNECTIONS, LONG_CONNECTIONS, STREAMS] {
            let listener = origin::listen(loopback()).unwrap();
            let target = listener.local_addr().unwrap();
            let plan = Plan { security, framing: Framing::Http, ..plan(target, work) };
            let tally = client::run_beside_origin(&plan, vec![listener], Vec::new())
                .unwrap_or_else(|error| panic!("{work:?} {security:?}: {error}"));
            assert!(tally.done > 0 && tally.lost == 0, "{work:?}: {tally:?}");
        }
    }
}

#[test]
fn tls_that_is_tampered_with_or_cut_off_fails_and_refused_handshakes_are_lost() {
    let listener = origin::listen(loopback()).unwrap();
    let origin = listener.local_addr().unwrap();
    thread::spawn(move || origin::serve_tls(vec![listener]).unwrap());
    let security = Security { client: Some(Tls { version: Version::V13, resumes: false }), origin: false };
    let failure = |target, work| match client::run(&Plan { security, ..plan(target, work) }) {
        Ok(tally) => panic!("{work:?} counted {tally:?}"),
        Err(error) => error,
    };
    for (way, at) in [(Way::ToClient, 30), (Way::ToClient, 20_000), (Way::ToOrigin, 30)] {
        let relay = start_relay(origin, flip(way, at)).address;
        let error =
            failure(relay, Work::KeepAlive { connections: 1, idle: 0, request_bytes: 128, answer_bytes: 50_000 });
        assert!(matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof), "{way:?} {at}: {error}");
    }
    let cutting = start_relay(
        origin,
        tamper(|way, passed, piece| {
            if way == Way::ToClient && passed > 20_000 {
                piece.clear();
            }
        }),
    );
    let error = failure(cutting.address, STREAMS);
    assert!(error.to_string().contains("cut off"), "{error}");
    // Somebody who takes connections, but no handshake.
    let deaf = start_stranger(drop);
    let error = failure(deaf, CONNECTIONS);
    assert!(matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{error}");
    let plan = Plan { security, pace: OPEN, ..plan(deaf, Work::Handshake { concurrency: 4 }) };
    let error = client::run(&plan).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "nothing is done: {error}");
}

#[test]
fn the_open_loop_offers_what_it_is_told() {
    let target = start_relay(start_origin(), untouched()).address;
    for work in [EXCHANGES, MOSTLY_IDLE, CONNECTIONS, DATAGRAMS] {
        let tally = run_patiently(&Plan { pace: OPEN, ..plan(target, work) });
        let offered = tally.offered.unwrap();
        // 400 starts a second; the counted time may last longer than it should.
        assert!((offered as f64 - tally.seconds * 400.0).abs() <= 1.0, "{work:?}: {tally:?}");
        assert!(tally.done > 0 && timed(&tally) + tally.lost + 10 >= offered, "{work:?}: {tally:?}");
    }
    for (work, per_second) in [(STREAMS, 400.0), (EXCHANGES, 0.0), (EXCHANGES, f64::NAN), (EXCHANGES, 1e12)] {
        let refused = client::run(&Plan { pace: Pace::Open { per_second }, ..plan(target, work) });
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput, "{work:?} at {per_second}");
    }
}

#[test]
fn client_and_origin_share_a_thread_and_a_listener_outlives_them() {
    let listener = origin::listen(loopback()).unwrap();
    let socket = origin::bind(listener.local_addr().unwrap()).unwrap();
    let target = listener.local_addr().unwrap();
    for work in [EXCHANGES, CONNECTIONS, STREAMS, DATAGRAMS, HOLD, EXCHANGES] {
        let (listeners, sockets) = (vec![listener.try_clone().unwrap()], vec![socket.try_clone().unwrap()]);
        let tally = client::run_beside_origin(&plan(target, work), listeners, sockets).unwrap();
        assert!(tally.done > 0, "{work:?}");
    }
}

#[test]
fn streams_keep_the_rate_that_they_are_told() {
    let sealed = Security { client: Some(Tls { version: Version::V13, resumes: false }), origin: true };
    for security in [Security::PLAIN, sealed] {
        let listener = origin::listen(loopback()).unwrap();
        let target = listener.local_addr().unwrap();
        // 40 pieces of a stream per second.
        let (per_second, piece) = (40.0 * 262_144.0, 262_144.0);
        let (pace, measure) = (Pace::Open { per_second }, Duration::from_secs(1));
        let plan = Plan { pace, measure, security, ..plan(target, MANY_STREAMS) };
        let tally = client::run_beside_origin(&plan, vec![listener], Vec::new()).unwrap();
        assert!((tally.done as f64 - tally.seconds * per_second).abs() <= 2.0 * piece, "{tally:?}");
        assert!((tally.offered.unwrap() as f64 - tally.seconds * per_second).abs() <= 1.0, "{tally:?}");
    }
}

#[test]
fn threads_share_the_work_and_add_up() {
    let target = start_origin();
    let threads: Vec<_> =
        (0..2).map(|_| thread::spawn(move || client::run(&Plan { pace: OPEN, ..plan(target, EXCHANGES) }))).collect();
    let tallies: Vec<Tally> = threads.into_iter().map(|thread| thread.join().unwrap().unwrap()).collect();
    let done: u64 = tallies.iter().map(|tally| tally.done).sum();
    let both = tallies.into_iter().reduce(Tally::merge).unwrap();
    assert_eq!((both.done, both.cpus.len()), (done, 1));
}

#[test]
fn one_flipped_bit_fails_the_run() {
    let origin = start_origin();
    for (work, way, at) in [
        (EXCHANGES, Way::ToClient, 50_000),
        (EXCHANGES, Way::ToOrigin, 1000),
        // In a length, in a tag and in a kind: what a receiver would only wait for, or take for another's.
        (EXCHANGES, Way::ToOrigin, 128 + 17),
        (EXCHANGES, Way::ToClient, 20_000 + 9),
        (CONNECTIONS, Way::ToOrigin, 4),
        (CONNECTIONS, Way::ToClient, 127),
        (CONNECTIONS, Way::ToOrigin, 127),
        (LONG_MESSAGES, Way::ToClient, 999_999),
        (STREAMS, Way::ToClient, 300_000),
        (STREAMS, Way::ToOrigin, 40),
        (MOSTLY_IDLE, Way::ToClient, 200),
        (HOLD, Way::ToOrigin, 30),
        (DATAGRAMS, Way::ToClient, 250),
        (DATAGRAMS, Way::ToOrigin, 250),
        (LARGE_DATAGRAMS, Way::ToClient, 60_000 + 8),
    ] {
        let relay = start_relay(origin, flip(way, at));
        let error = failure(relay.address, work);
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{work:?}, byte {at} {way:?}: {error}");
    }
}

#[test]
fn a_doubled_byte_fails_the_run() {
    let relay = start_relay(
        start_origin(),
        tamper(|way, passed, piece| {
            if way == Way::ToClient && passed == 0 {
                piece.push(piece[piece.len() - 1]);
            }
        }),
    );
    for work in [EXCHANGES, CONNECTIONS, DATAGRAMS] {
        let error = failure(relay.address, work);
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{work:?}: {error}");
    }
}

#[test]
fn an_answer_that_was_not_asked_for_fails_the_run() {
    type Answer = fn(Header) -> Vec<u8>;
    let answers: [(&str, Answer, &str); 5] = [
        (
            "shorter",
            |request| message(Header { filler_bytes: request.answer_filler_bytes - 1, ..honest_answer(request) }),
            "another length",
        ),
        (
            "longer",
            |request| message(Header { filler_bytes: request.answer_filler_bytes + 1, ..honest_answer(request) }),
            "another length",
        ),
        ("to another", |request| message(Header { tag: request.tag + 1, ..honest_answer(request) }), "another request"),
        ("twice", |request| message(honest_answer(request)).repeat(2), "not sent"),
        ("a request", |request| message(Header { kind: Kind::Stream, ..honest_answer(request) }), "a request"),
    ];
    for (name, answer, reason) in answers {
        let target = start_answering(answer);
        for work in [EXCHANGES, CONNECTIONS] {
            let error = failure(target, work);
            let told = error.to_string();
            assert!(error.kind() == ErrorKind::InvalidData && told.contains(reason), "{name}, {work:?}: {told}");
        }
    }
}

#[test]
fn an_origin_that_refuses_resets_or_ends_early_fails_the_run() {
    let refusing = TcpListener::bind(loopback()).unwrap().local_addr().unwrap();
    let resetting = start_stranger(|mut client| {
        let _begun = client.read(&mut [0; 10]);
        set_linger_reset(&client).unwrap();
    });
    let ending = start_stranger(|mut client| {
        let mut request = [0; 1024];
        let _begun = client.read(&mut request);
    });
    let cutting = start_relay(
        start_origin(),
        tamper(|way, passed, piece| match way {
            Way::ToClient if passed + piece.len() > 30_000 => piece.clear(),
            _ => {}
        }),
    )
    .address;
    const ENDS: &[ErrorKind] = &[ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
    for (name, target, works, expected) in [
        (
            "refuses",
            refusing,
            vec![EXCHANGES, CONNECTIONS, STREAMS, HOLD, DATAGRAMS],
            &[ErrorKind::ConnectionRefused][..],
        ),
        ("resets", resetting, vec![EXCHANGES, CONNECTIONS, STREAMS, HOLD], &[ErrorKind::ConnectionReset]),
        ("ends", ending, vec![EXCHANGES, CONNECTIONS, STREAMS, HOLD], ENDS),
        ("cuts", cutting, vec![EXCHANGES, STREAMS, LONG_CONNECTIONS], ENDS),
    ] {
        for work in works {
            let error = failure(target, work);
            assert!(expected.contains(&error.kind()), "{name}, {work:?}: {error}");
        }
    }
}

#[test]
fn an_idle_connection_that_dies_fails_the_run() {
    // The idle ones are opened first; each passes 128 bytes at its start and is cut at its second answer.
    let connections = AtomicUsize::new(0);
    let relay = start_relay(
        start_origin(),
        tamper(move |way, passed, piece| {
            if way == Way::ToClient && passed == 128 && connections.fetch_add(1, Ordering::SeqCst) > 1 {
                piece.clear();
            }
        }),
    );
    let work = Work::KeepAlive { connections: 1, idle: 20, request_bytes: 128, answer_bytes: 128 };
    let error = failure(relay.address, work);
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
}

#[test]
fn silence_fails_the_run() {
    let listener = TcpListener::bind(loopback()).unwrap();
    let deaf = UdpSocket::bind(listener.local_addr().unwrap()).unwrap();
    for work in [EXCHANGES, CONNECTIONS, DATAGRAMS] {
        assert_eq!(failure(listener.local_addr().unwrap(), work).kind(), ErrorKind::TimedOut, "{work:?}");
    }
    drop(deaf);
}

#[test]
fn a_request_that_is_never_answered_fails_the_run() {
    // Of four connections one is swallowed; the other three would look like a good run.
    let swallowed = AtomicUsize::new(0);
    let relay = start_relay(
        start_origin(),
        tamper(move |way, passed, _| {
            if way == Way::ToOrigin && passed > 1000 && swallowed.fetch_add(1, Ordering::SeqCst) == 0 {
                loop {
                    thread::park();
                }
            }
        }),
    );
    let work = Work::KeepAlive { connections: 4, idle: 0, request_bytes: 128, answer_bytes: 128 };
    let error = failure(relay.address, work);
    assert!(error.kind() == ErrorKind::TimedOut && error.to_string().contains("1 requests"), "{error}");
}

/// A relay that stands still once, for so long, after so many pieces.
fn start_stalling_relay(after_pieces: u64, stall: Duration) -> SocketAddr {
    let (passed, gate) = (AtomicU64::new(0), Mutex::new(()));
    let stalling = tamper(move |_, _, _| {
        let _turn = gate.lock().unwrap();
        if passed.fetch_add(1, Ordering::SeqCst) == after_pieces {
            thread::sleep(stall);
        }
    });
    start_relay(start_origin(), stalling).address
}

#[test]
fn a_stall_shows_in_the_open_loop_and_hides_in_the_closed_one() {
    let stall = Duration::from_millis(300);
    let work = Work::KeepAlive { connections: 4, idle: 0, request_bytes: 128, answer_bytes: 128 };
    let slow_share = |tally: &Tally| {
        let slow: u64 = tally.latency_ns.iter().filter(|(ns, _)| *ns >= 100_000_000).map(|&(_, count)| count).sum();
        slow as f64 / timed(tally) as f64
    };
    let run = |pace| {
        let target = start_stalling_relay(100, stall);
        client::run(&Plan { pace, measure: Duration::from_secs(1), warm_up: Duration::ZERO, ..plan(target, work) })
    };
    // 300 starts a second: 90 were due while nothing moved, and two thirds of them had to wait 100 ms or longer.
    let open = run(Pace::Open { per_second: 300.0 }).unwrap();
    let p99 = Duration::from_nanos(open.histogram().value_at_quantile(0.99));
    assert!(p99 >= Duration::from_millis(200), "p99 {p99:?}");
    assert!(slow_share(&open) > 0.1, "{}", slow_share(&open));
    // The same stall: only the four requests that were under way have met it.
    let closed = run(Pace::Closed).unwrap();
    assert!(closed.histogram().max() >= 200_000_000);
    assert!(slow_share(&closed) < slow_share(&open) / 5.0, "{} {}", slow_share(&closed), slow_share(&open));
}

#[test]
fn an_origin_that_pauses_now_and_then_shows_in_the_open_loop() {
    let answers = AtomicU64::new(0);
    let pausing = start_relay(
        start_origin(),
        tamper(move |way, _, _| {
            // One connection pauses at a time: the others go on.
            if way == Way::ToClient && answers.fetch_add(1, Ordering::SeqCst) % 50 == 49 {
                thread::sleep(Duration::from_millis(200));
            }
        }),
    );
    let work = Work::KeepAlive { connections: 8, idle: 0, request_bytes: 128, answer_bytes: 128 };
    let open =
        Plan { pace: Pace::Open { per_second: 200.0 }, measure: Duration::from_secs(1), ..plan(pausing.address, work) };
    let tally = client::run(&open).unwrap();
    assert!(tally.histogram().value_at_quantile(0.99) >= 150_000_000, "{tally:?}");
}

#[test]
fn a_rate_that_cannot_be_kept_is_told() {
    // One request passes at a time, and takes 10 ms.
    let gate = Mutex::new(());
    let slow = start_relay(
        start_origin(),
        tamper(move |way, _, _| {
            let _turn = gate.lock().unwrap();
            if way == Way::ToOrigin {
                thread::sleep(Duration::from_millis(10));
            }
        }),
    );
    for work in [
        Work::KeepAlive { connections: 2, idle: 0, request_bytes: 128, answer_bytes: 128 },
        Work::Connect { concurrency: 2, request_bytes: 128, answer_bytes: 128 },
    ] {
        let measure = Duration::from_millis(500);
        let tally = client::run(&Plan { pace: OPEN, measure, ..plan(slow.address, work) }).unwrap();
        assert!(tally.offered.unwrap() > 2 * tally.done, "{work:?}: {tally:?}");
        // What never found a free connection has waited all the same.
        assert!(timed(&tally) >= tally.offered.unwrap(), "{work:?}: {tally:?}");
        assert!(tally.histogram().value_at_quantile(0.5) >= 50_000_000, "{work:?}");
    }
}

#[test]
fn lost_datagrams_are_counted_and_stop_nothing() {
    let seen = AtomicU64::new(0);
    let losing = start_relay(
        start_origin(),
        tamper(move |way, _, piece| {
            if way == Way::ToOrigin && seen.fetch_add(1, Ordering::SeqCst) % 10 == 9 {
                piece.clear();
            }
        }),
    );
    for pace in [Pace::Closed, OPEN] {
        let long = Plan { pace, measure: Duration::from_millis(800), ..plan(losing.address, DATAGRAMS) };
        let tally = client::run(&long).unwrap();
        assert!(tally.lost > 0 && tally.done > 2 * tally.lost, "{pace:?}: {tally:?}");
    }
}

#[test]
fn held_connections_work_until_they_are_dropped() {
    let relay = start_relay(start_origin(), untouched());
    let mut held = Held::open(relay.address, 200, None).unwrap();
    assert_eq!(relay.open.load(Ordering::SeqCst), 200);
    held.prove().unwrap();
    held.prove().unwrap();
    drop(held);
    let deadline = Instant::now() + Duration::from_secs(10);
    while relay.open.load(Ordering::SeqCst) > 0 {
        assert!(Instant::now() < deadline, "connections are still open");
        thread::yield_now();
    }
}

#[test]
fn held_connections_that_die_are_told() {
    let relay = start_relay(
        start_origin(),
        tamper(|way, passed, piece| {
            if way == Way::ToOrigin && passed > 0 {
                piece.clear();
            }
        }),
    );
    let mut held = Held::open(relay.address, 3, None).unwrap();
    assert!(held.prove().is_err());
    let refusing = TcpListener::bind(loopback()).unwrap().local_addr().unwrap();
    assert!(Held::open(refusing, 3, None).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused));
}
