//! The load is honest: nothing wrong, refused or cut short is ever counted.

#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use towpath_perf::load::{Plan, Work, client, origin};

const EXCHANGES: Work = Work::KeepAlive { connections: 4, request_bytes: 128, answer_bytes: 20_000 };
const CONNECTIONS: Work = Work::Connect { concurrency: 4, request_bytes: 128, answer_bytes: 128 };
const STREAMS: Work = Work::Bulk { streams: 2 };

/// An origin that serves until the test program ends.
fn start_origin() -> SocketAddr {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || origin::serve(&[SocketAddr::from(([127, 0, 0, 1], 0))], |open| tell.send(open[0]).unwrap()));
    told.recv().unwrap()
}

/// A relay that passes what the origin says through `tamper`, with the number of bytes before it.
fn start_relay(origin: SocketAddr, tamper: fn(usize, &mut Vec<u8>)) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, mut server) = (client.unwrap(), TcpStream::connect(origin).unwrap());
            let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || {
                let _ended = std::io::copy(&mut from_client, &mut to_server);
                let _gone = to_server.shutdown(Shutdown::Write);
            });
            thread::spawn(move || {
                let mut passed = 0;
                let mut buffer = vec![0; 4096];
                while let Ok(length @ 1..) = server.read(&mut buffer) {
                    let mut piece = buffer[..length].to_vec();
                    tamper(passed, &mut piece);
                    passed += length;
                    if client.write_all(&piece).is_err() || piece.is_empty() {
                        break;
                    }
                }
                let _gone = client.shutdown(Shutdown::Both);
            });
        }
    });
    address
}

fn plan(target: SocketAddr, work: Work) -> Plan {
    Plan {
        target,
        work,
        warm_up: Duration::from_millis(20),
        measure: Duration::from_millis(200),
        watch_cpus: vec![towpath_sys::host::available_cpus().unwrap()[0]],
        watch_processes: Vec::new(),
    }
}

#[test]
fn an_honest_relay_is_counted() {
    let relay = start_relay(start_origin(), |_, _| {});
    for work in [EXCHANGES, CONNECTIONS, STREAMS] {
        let tally = client::run(&plan(relay, work)).unwrap();
        assert!(tally.done > 0 && tally.rate() > 0.0, "{work:?}");
        assert_eq!(tally.cpus.len(), 1);
        let timed: u64 = tally.latency_ns.iter().map(|&(_, count)| count).sum();
        assert_eq!(timed, if work == STREAMS { 0 } else { tally.done });
    }
}

#[test]
fn one_wrong_byte_fails_the_run() {
    let relay = start_relay(start_origin(), |passed, piece| {
        let at = 10_000_usize.wrapping_sub(passed);
        if let Some(byte) = piece.get_mut(at) {
            *byte ^= 0x40;
        }
    });
    for work in [EXCHANGES, STREAMS] {
        assert_eq!(client::run(&plan(relay, work)).unwrap_err().kind(), ErrorKind::InvalidData, "{work:?}");
    }
}

#[test]
fn a_doubled_byte_fails_the_run() {
    let relay = start_relay(start_origin(), |passed, piece| {
        if passed == 0 {
            piece.push(piece[piece.len() - 1]);
        }
    });
    for work in [EXCHANGES, CONNECTIONS] {
        assert_eq!(client::run(&plan(relay, work)).unwrap_err().kind(), ErrorKind::InvalidData, "{work:?}");
    }
}

#[test]
fn an_answer_cut_short_fails_the_run() {
    let relay = start_relay(start_origin(), |_, piece| piece.clear());
    for work in [EXCHANGES, CONNECTIONS, STREAMS] {
        let error = client::run(&plan(relay, work)).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{work:?}: {error}");
    }
}

#[test]
fn a_refused_connection_fails_the_run() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(client::run(&plan(nobody, CONNECTIONS)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_relay_that_says_nothing_fails_the_run() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let error = client::run(&plan(listener.local_addr().unwrap(), EXCHANGES)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
}
