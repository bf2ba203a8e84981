//! Clients that waste what we have, beside one that behaves: it sees no error and no long stall.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use towpath_sys::host::raise_nofile_limit;
use towpath_tests::roles::{Crowd, OriginProcess};
use towpath_tests::{
    Connection, Neighbour, Origin, Subject, TestLab, Topology, eventually, in_lab, ipv4, service, subject,
};

/// No round of the client that behaves may take longer; far more than it needs, far less than any timeout that hides a stall.
const STALL_MAX: Duration = Duration::from_secs(5);
/// How often it is served while the others are at it.
const SERVED: u64 = 20;

fn start(lab: &TestLab, vip: Ipv4Addr, limits: &str) -> Subject {
    raise_nofile_limit().expect("the limit can be raised to its hard end");
    // Nobody is saved by a timeout here.
    let keys = "idle_timeout = \"1h\"\nconnect_timeout = \"10s\"";
    subject!()
        .start(lab.balancer(), &(limits.to_owned() + &service("web", vip, "[443, 8443]", keys, &ipv4(lab.servers()))))
}

/// Opens so many connections on which nothing has been said yet.
fn open(lab: &TestLab, to: (Ipv4Addr, u16), count: usize) -> Vec<Connection> {
    let to = SocketAddr::from(to);
    let opened = lab.client().run(|| (0..count).map(|_| Connection::open_here(to)).collect::<io::Result<Vec<_>>>());
    opened.expect("a thread").expect("the relay listens")
}

/// Waits until the relay holds nothing but the neighbour's connections and has an end for every connection that ever was.
fn until_gone(relay: &Subject) {
    relay.until("the others are gone", |status| {
        let web = &status.services[0];
        let ends: u64 = web.terminations.values().sum();
        web.connections <= 2 && ends + u64::from(web.connections) >= web.accepted
    });
}

#[test]
fn five_hundred_silent_clients_disturb_nobody() {
    in_lab(five_hundred_silent_clients_disturb_nobody, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let origin = Origin::tcp(lab.server(1), 443);
        let relay = start(lab, vip, "");
        let neighbour = Neighbour::start(lab.client(), (vip, 443));
        let silent = open(lab, (vip, 443), 500);
        relay.until("all of them are relayed", |status| status.services[0].connections >= 501);
        neighbour.is_served(SERVED);
        drop(silent);
        neighbour.is_served(SERVED);
        until_gone(&relay);
        neighbour.part(STALL_MAX);
        assert!(origin.accepted().len() >= 501);
        relay.stop();
    });
}

#[test]
fn five_hundred_clients_that_reset_at_once_disturb_nobody() {
    in_lab(five_hundred_clients_that_reset_at_once_disturb_nobody, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let _origin = Origin::tcp(lab.server(1), 443);
        let relay = start(lab, vip, "");
        let neighbour = Neighbour::start(lab.client(), (vip, 443));
        let to = SocketAddr::from((vip, 443));
        let reset = lab.client().run(|| (0..500).try_for_each(|_| Connection::open_here(to)?.reset()));
        reset.expect("a thread").expect("the relay listens");
        // And five hundred at the same moment, on connections that are relayed already.
        let relayed = open(lab, (vip, 443), 500);
        relay.until("all of them are relayed", |status| status.services[0].connections >= 501);
        for connection in relayed {
            connection.reset().expect("a socket");
        }
        neighbour.is_served(SERVED);
        until_gone(&relay);
        neighbour.part(STALL_MAX);
        let web = relay.service("web");
        assert!(web.terminations["client_reset"] >= 500, "{web:?}");
        relay.stop();
    });
}

/// A server that answers every connection with so many bytes, whoever reads them.
struct Flood {
    sent: Arc<AtomicU64>,
    done: Arc<AtomicU64>,
}

impl Flood {
    fn start(lab: &TestLab, port: u16, bytes: usize) -> Flood {
        let listener =
            lab.server(1).run(|| TcpListener::bind(("0.0.0.0", port))).expect("a thread").expect("a listener");
        let flood = Flood { sent: Arc::default(), done: Arc::default() };
        let (sent, done) = (Arc::clone(&flood.sent), Arc::clone(&flood.done));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), sent, done) = (stream, Arc::clone(&sent), Arc::clone(&done)) else { continue };
                thread::spawn(move || {
                    // It fails when the client goes.
                    let _gone = pour(&stream, bytes, &sent);
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }
        });
        flood
    }

    /// Waits until every writer stands still; the bytes that all of them got rid of.
    fn stalled(&self) -> u64 {
        let (mut before, mut looks) = (0, 0);
        eventually("the servers' writers stand still", || {
            let sent = self.sent.load(Ordering::Relaxed);
            looks = if sent == before { looks + 1 } else { 0 };
            before = sent;
            // A look every few milliseconds.
            (sent > 0 && looks == 100).then_some(sent)
        })
    }
}

fn pour(mut to: &TcpStream, bytes: usize, sent: &AtomicU64) -> io::Result<()> {
    let piece = [7; 16 * 1024];
    let mut left = bytes;
    // Whoever asks for it.
    to.read_exact(&mut [0])?;
    while left > 0 {
        let taken = to.write(&piece[..left.min(piece.len())])?;
        left -= taken;
        sent.fetch_add(taken as u64, Ordering::Relaxed);
    }
    Ok(())
}

fn clients_that_never_read(lab: &TestLab, clients: usize, limits: &str) {
    /// What each of them asks for: more than all buffers on the way.
    const ANSWER: usize = 32 << 20;
    /// What the kernels of three hosts may hold for each of them.
    const HELD_MAX: u64 = 16 << 20;
    /// What the relay's own memory may hold for each of them.
    const RELAY_HELD_MAX: u64 = 1 << 20;
    let vip = lab.vip(100);
    let _origin = Origin::tcp(lab.server(1), 443);
    lab.limit_socket_buffers();
    let flood = Flood::start(lab, 8443, ANSWER);
    let relay = start(lab, vip, limits);
    let neighbour = Neighbour::start(lab.client(), (vip, 443));
    let memory = relay.memory_bytes();
    let deaf = open(lab, (vip, 8443), clients);
    for connection in &deaf {
        connection.stream().write_all(b"?").expect("the relay reads");
    }
    let sent = flood.stalled();
    assert!(sent < clients as u64 * HELD_MAX, "{sent} bytes were taken for clients that do not read");
    assert_eq!(flood.done.load(Ordering::Relaxed), 0, "each answer is stuck");
    let grown = relay.memory_bytes().saturating_sub(memory);
    assert!(grown < clients as u64 * RELAY_HELD_MAX, "the relay has grown by {grown} bytes");
    neighbour.is_served(SERVED);
    drop(deaf);
    until_gone(&relay);
    neighbour.is_served(SERVED);
    neighbour.part(STALL_MAX);
    relay.stop();
}

#[test]
fn two_hundred_clients_that_never_read_disturb_nobody() {
    in_lab(two_hundred_clients_that_never_read_disturb_nobody, Topology::TwoArm, 1, |lab| {
        clients_that_never_read(lab, 200, "");
    });
}

#[test]
fn a_client_that_opens_and_closes_two_thousand_times_disturbs_nobody() {
    in_lab(a_client_that_opens_and_closes_two_thousand_times_disturbs_nobody, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let _origin = Origin::tcp(lab.server(1), 443);
        let relay = start(lab, vip, "");
        let neighbour = Neighbour::start(lab.client(), (vip, 443));
        let to = SocketAddr::from((vip, 443));
        let opened = lab.client().run(|| (0..2_000).try_for_each(|_| Connection::open_here(to).map(drop)));
        opened.expect("a thread").expect("the relay listens");
        neighbour.is_served(SERVED);
        until_gone(&relay);
        neighbour.part(STALL_MAX);
        let web = relay.service("web");
        assert!(web.accepted >= 2_000, "{web:?}");
        relay.stop();
    });
}

#[test]
fn without_descriptors_clients_are_refused_and_counted_and_served_again_later() {
    in_lab(without_descriptors_clients_are_refused_and_counted_and_served_again_later, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let to = SocketAddr::from((vip, 443));
        let _origin = OriginProcess::start(subject!(), lab.server(1), &[(lab.server(1).ipv4(), 443).into()]);
        let mut relay = start(lab, vip, "");
        let mut held = Connection::open(lab.client(), to).expect("the relay listens");
        held.greeting().expect("a greeting");
        // Less than its plan counts on: as if something else in the process held them.
        relay.limit_descriptors(60);
        let crowd = Crowd::gather(subject!(), lab.client(), lab.client().ipv4().into(), to, 300);
        assert_eq!(crowd.served + crowd.refused, 300);
        assert!(
            (20..=60).contains(&crowd.served),
            "two for each, and some that the process had for itself, or for a moment: {} were served",
            crowd.served
        );
        held.echo(b"undisturbed").expect("those who are in go on");
        let full = relay.status();
        let used = &full.limits.descriptors;
        assert_eq!((full.phase.as_str(), used.used), ("running", used.max), "whoever asks is told that none is left");
        let (served, refused) = (crowd.served, crowd.refused);
        assert_eq!(crowd.part(), served);

        relay.until("there is room again", |status| status.services[0].connections == 1);
        let web = relay.service("web");
        assert_eq!(web.terminations["out_of_descriptors"], refused as u64, "{web:?}");
        let crowd = Crowd::gather(subject!(), lab.client(), lab.client().ipv4().into(), to, 15);
        assert_eq!((crowd.served, crowd.refused), (15, 0));
        held.echo(b"undisturbed").expect("those who are in go on");
        relay.stop();
    });
}
