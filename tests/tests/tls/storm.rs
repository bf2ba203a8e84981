//! Many handshakes at once: who does them, who waits, who is refused, and what becomes of other traffic meanwhile.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, HandshakeKind};
use towpath_tests::pki::{NAME, Pki, Stream, open_with};
use towpath_tests::{Connection, Origin, Subject, TestLab, Topology, eventually, in_lab, ipv4, service, subject};

const WORKERS: &str = "[runtime]\nworkers = [0, 1]\n";

/// A connection that an origin has greeted.
fn greeted(config: &Arc<ClientConfig>, lab: &TestLab, vip: Ipv4Addr) -> Stream {
    let mut stream = open_with(config, lab.client(), (vip, 443)).expect("a handshake");
    let mut heard = [0; 8];
    stream.read_exact(&mut heard).expect("a greeting");
    assert_eq!(&heard, b"server-1");
    stream
}

/// A client's session is good at every worker, whichever it began at.
fn resumes_across_workers(lab: &TestLab, resumption: &str) {
    let (vip, pki) = (lab.vip(100), Pki::new());
    let _origin = Origin::tcp(lab.server(1), 443);
    let config = pki.service(vip, "terminate", &format!("resumption = \"{resumption}\""), &ipv4(lab.servers()));
    let relay = subject!().start(lab.balancer(), &format!("{WORKERS}[tls]\nthreads = 0\n{config}"));
    for version in [&TLS12, &TLS13] {
        let config = pki.client_config(&[version]);
        let mut held = vec![greeted(&config, lab, vip)];
        assert_eq!(held[0].conn.handshake_kind(), Some(HandshakeKind::Full));
        // Each worker has some of them when it has taken some that come back, beside the first.
        eventually("both workers have resumed one", || {
            let again = greeted(&config, lab, vip);
            assert_eq!(again.conn.handshake_kind(), Some(HandshakeKind::Resumed), "{resumption}, {version:?}");
            held.push(again);
            relay.status().workers.iter().all(|worker| worker.sessions >= 2).then_some(())
        });
        drop(held);
        relay.until("all have ended", |status| status.workers.iter().all(|worker| worker.sessions == 0));
    }
    assert_eq!(relay.service("web").counters["handshakes_full"], 2);
    relay.stop();
}

#[test]
fn tickets_are_good_at_every_worker() {
    in_lab(tickets_are_good_at_every_worker, Topology::TwoArm, 1, |lab| resumes_across_workers(lab, "tickets"));
}

#[test]
fn the_cache_is_that_of_every_worker() {
    in_lab(the_cache_is_that_of_every_worker, Topology::TwoArm, 1, |lab| resumes_across_workers(lab, "cache"));
}

/// A client that has sent its ClientHello but for the last byte, which is in the second place.
fn poised(pki: &Pki, lab: &TestLab, vip: Ipv4Addr) -> (TcpStream, u8) {
    let name = ServerName::try_from(NAME).expect("a name");
    let mut tls = ClientConnection::new(pki.client_config(&[&TLS13]), name).expect("a client");
    let mut hello = Vec::new();
    tls.write_tls(&mut hello).expect("memory");
    let last = hello.pop().expect("a ClientHello");
    let connection = Connection::open(lab.client(), (vip, 443)).expect("the relay listens");
    let mut socket = connection.stream().try_clone().expect("a descriptor");
    socket.write_all(&hello).expect("taken");
    (socket, last)
}

/// More at once than can be signed in time: some are served, and all others told at once that they are not.
fn a_flood_is_refused_in_time(lab: &TestLab, threads: &str) {
    const CLIENTS: usize = 150;
    let (vip, pki) = (lab.vip(100), Pki::new());
    // So large a key that all of them take many times the deadline.
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:4096", "-nodes", "-days", "30", "-subj", "/CN=flood", "-addext"])
        .arg(format!("subjectAltName=DNS:{NAME}"))
        .arg("-keyout")
        .arg(pki.key())
        .arg("-out")
        .arg(pki.certificate())
        .output()
        .expect("openssl is installed");
    assert!(made.status.success(), "{made:?}");
    let _origin = Origin::tcp(lab.server(1), 443);
    let config = pki.service(vip, "terminate", "", &ipv4(lab.servers()));
    let process = format!("[runtime]\nworkers = [0]\n[tls]\nthreads = {threads}\nqueue_deadline = \"10ms\"\n");
    let relay = subject!().start(lab.balancer(), &format!("{process}{config}"));
    let clients: Vec<_> = (0..CLIENTS).map(|_| poised(&pki, lab, vip)).collect();
    let mut clients: Vec<TcpStream> = clients
        .into_iter()
        .map(|(mut socket, last)| {
            socket.write_all(&[last]).expect("taken");
            socket
        })
        .collect();
    let (mut served, mut refused) = (0, 0);
    for socket in &mut clients {
        let mut record = [0; 7];
        socket.read_exact(&mut record).expect("a flight or an alert");
        match record {
            // The beginning of a handshake record.
            [22, 3, 3, ..] => served += 1,
            // A fatal alert: internal_error (RFC 8446 §6.2 has none that would be nearer).
            [21, 3, 3, 0, 2, 2, 80] => {
                refused += 1;
                assert_eq!(socket.read(&mut record).expect("an orderly end"), 0);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(refused > 0, "{served} were served");
    // It counts who was told already.
    eventually("all that were refused are counted", || {
        (relay.service("web").terminations["handshake_refused"] == refused).then_some(())
    });
    if let Some(pool) = relay.status().handshake_pool {
        assert_eq!((pool.counters["late"], pool.counters["done"]), (refused, served), "{pool:?}");
    }
    // The next one comes in time: the flood is over.
    drop(clients);
    eventually("a client is served", || {
        let mut socket = {
            let (mut socket, last) = poised(&pki, lab, vip);
            socket.write_all(&[last]).expect("taken");
            socket
        };
        let mut kind = [0];
        socket.read_exact(&mut kind).expect("an answer");
        (kind == [22]).then_some(())
    });
    relay.stop();
}

#[test]
#[ignore = "needs the Debian package openssl"]
fn what_cannot_be_signed_in_time_by_a_worker_is_refused() {
    in_lab(what_cannot_be_signed_in_time_by_a_worker_is_refused, Topology::TwoArm, 1, |lab| {
        a_flood_is_refused_in_time(lab, "0");
    });
}

#[test]
#[ignore = "needs the Debian package openssl"]
fn what_cannot_be_signed_in_time_by_the_pool_is_refused() {
    in_lab(what_cannot_be_signed_in_time_by_the_pool_is_refused, Topology::TwoArm, 1, |lab| {
        a_flood_is_refused_in_time(lab, "1");
    });
}

/// Handshakes of both versions, full and resumed, beside connections without TLS that never rest, at every worker: all of them are served.
/// Returns the relay with what it has counted, and how many handshakes were asked for.
fn handshakes_beside_other_traffic(
    lab: &TestLab,
    process: &str,
    handshakes: u64,
    enough: impl Fn(&Subject) -> bool,
) -> (Subject, u64) {
    let (tls, plain, pki) = (lab.vip(100), lab.vip(101), Pki::new());
    let _origins = [443, 8080].map(|port| Origin::tcp(lab.server(1), port));
    let config = format!(
        "{process}{}{}",
        pki.service(tls, "terminate", "", &ipv4(lab.servers())),
        service("plain", plain, "8080", "", &ipv4(lab.servers()))
    );
    let relay = subject!().start(lab.balancer(), &config);
    let mut others = Vec::new();
    eventually("both workers have other traffic", || {
        let mut connection = Connection::open(lab.client(), (plain, 8080)).expect("the relay listens");
        connection.greeting().expect("a greeting");
        others.push(connection);
        relay.status().workers.iter().all(|worker| worker.sessions > 0).then_some(())
    });
    let (over, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let talks = scope.spawn(|| {
            let mut echoes = 0;
            while !over.load(Ordering::Acquire) {
                for connection in &mut others {
                    connection.echo(&[9; 200]).expect("an echo");
                    echoes += 1;
                }
            }
            echoes
        });
        let shakes: Vec<_> = [&TLS12, &TLS13, &TLS12, &TLS13]
            .into_iter()
            .map(|version| {
                let (pki, asked, over) = (&pki, &asked, &over);
                scope.spawn(move || {
                    while !over.load(Ordering::Acquire) {
                        let config = pki.client_config(&[version]);
                        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
                            let stream = greeted(&config, lab, tls);
                            assert_eq!(stream.conn.handshake_kind(), Some(kind));
                            asked.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        // However this ends, for the scope waits for them.
        let _ends = Ends(&over);
        eventually("enough of everything", || {
            let is_over = talks.is_finished() || shakes.iter().any(|one| one.is_finished());
            (is_over || asked.load(Ordering::Relaxed) >= handshakes && enough(&relay)).then_some(())
        });
        over.store(true, Ordering::Release);
        assert!(talks.join().expect("every echo came") > 0);
        shakes.into_iter().for_each(|one| one.join().expect("every client is served"));
    });
    others.into_iter().for_each(|connection| assert!(connection.close().expect("a clean end").is_empty()));
    let asked = asked.into_inner();
    let counters = relay.service("web").counters;
    assert_eq!((counters["handshakes_full"], counters["handshakes_resumed"]), (asked / 2, asked / 2), "{counters:?}");
    (relay, asked)
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn workers_that_sign_themselves_serve_all_else_beside() {
    in_lab(workers_that_sign_themselves_serve_all_else_beside, Topology::TwoArm, 1, |lab| {
        let (relay, _) = handshakes_beside_other_traffic(lab, &format!("{WORKERS}[tls]\nthreads = 0\n"), 100, |_| true);
        assert_eq!(relay.status().handshake_pool, None);
        relay.stop();
    });
}

#[test]
fn a_pool_beside_other_traffic_signs_everything() {
    in_lab(a_pool_beside_other_traffic_signs_everything, Topology::TwoArm, 1, |lab| {
        let (relay, asked) =
            handshakes_beside_other_traffic(lab, "[runtime]\nworkers = [0]\n[tls]\nthreads = [1]\n", 100, |_| true);
        let pool = relay.status().handshake_pool.expect("a pool");
        assert_eq!((pool.cpus.as_slice(), pool.counters["done"]), (&[1][..], asked), "{pool:?}");
        relay.stop();
    });
}

/// Where it has no CPU of its own it signs while the workers have nothing else to do, and they sign what it does not.
#[test]
fn a_pool_that_gives_way_keeps_nobody_waiting() {
    in_lab(a_pool_that_gives_way_keeps_nobody_waiting, Topology::TwoArm, 1, |lab| {
        // How many it signs is a matter of the machine; here, that it is asked to.
        let asked = |relay: &Subject| {
            let pool = relay.status().handshake_pool.expect("a pool");
            let times = ["busy_ns", "waited_ns"];
            let counted = pool.counters.iter().filter(|(name, _)| !times.contains(&name.as_str()));
            pool.queued + pool.running > 0 || counted.map(|(_, count)| count).sum::<u64>() > 0
        };
        let process = format!("{WORKERS}[tls]\nthreads = \"auto\"\n");
        // Beside other programs, what such a pool has begun waits for a moment in which they rest.
        let (relay, _) = handshakes_beside_other_traffic(lab, &process, 20, asked);
        relay.stop();
    });
}
