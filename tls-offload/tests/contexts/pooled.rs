//! Handshakes whose signature is made by the pool.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use rustls::{ClientConnection, ServerConnection};
use towpath_tls::{HandshakeKind, PoolSettings, ServerContext, TlsPool, Work, WorkOutcome};

use super::authority::{Authority, Key, server_settings};
use super::handshake::{Speaks, client};

const NAME: &str = "mail.example.com";
const PATIENCE: Duration = Duration::from_secs(20);

/// A server whose ClientHello is there, and its client.
struct Handshake {
    client: ClientConnection,
    server: ServerConnection,
}

impl Work for Handshake {
    fn run(&mut self) {
        self.server.process_new_packets().expect("a ClientHello that is understood");
    }
}

fn carry_on(Handshake { mut client, mut server }: Handshake) {
    while client.is_handshaking() || server.is_handshaking() {
        let mut flight = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut flight).expect("into memory");
        }
        let mut rest = &flight[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("from memory");
            client.process_new_packets().expect("a server that is understood");
        }
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).expect("into memory");
        }
        server.read_tls(&mut &flight[..]).expect("from memory");
        server.process_new_packets().expect("a client that is understood");
    }
}

#[test]
fn handshakes_go_to_the_pool_and_end_on_their_worker() {
    const HANDSHAKES: usize = 24;
    let authority = Authority::new("authority");
    let mail = authority.issue(&[NAME], Key::Rsa);
    let context = ServerContext::new(&server_settings(&[&mail]), None).expect("a context");
    let clients = [Speaks::Tls12, Speaks::Tls13].map(|speaks| Arc::new(client(authority.roots(), speaks)));
    let settings =
        PoolSettings { cpus: vec![0, 1], pin: |_| true, workers: 1, depth_max: HANDSHAKES, queue_deadline: PATIENCE };
    let (woken, wakes) = mpsc::channel();
    let wake = move |worker| {
        let _heard = woken.send(worker);
    };
    let (pool, mut hatches) = TlsPool::start(&settings, wake).expect("a pool");
    let hatch = &mut hatches[0];
    for number in 0..HANDSHAKES {
        let name = NAME.try_into().expect("a name");
        let mut client = ClientConnection::new(Arc::clone(&clients[number % 2]), name).expect("a client");
        let mut server = ServerConnection::new(Arc::clone(context.config())).expect("a server");
        let mut hello = Vec::new();
        client.write_tls(&mut hello).expect("into memory");
        server.read_tls(&mut &hello[..]).expect("from memory");
        assert!(hatch.submit(Handshake { client, server }, HandshakeKind::Full).is_ok(), "room");
    }
    let mut ended = 0;
    while ended < HANDSHAKES {
        wakes.recv_timeout(PATIENCE).expect("a wake while work is out");
        while let Some(finished) = hatch.take() {
            assert_eq!(finished.outcome, WorkOutcome::Done);
            carry_on(finished.work);
            ended += 1;
        }
    }
    assert_eq!(pool.gauges().done, HANDSHAKES as u64);
    assert!(pool.gauges().busy_ns > 0);
}
