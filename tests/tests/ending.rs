//! The end of the process: draining, its deadline, the second signal.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use towpath_tests::{Connection, Origin, Subject, TestLab, Topology, eventually, in_lab, ipv4, service, subject};

fn config(lab: &TestLab, vip: Ipv4Addr, drain_timeout: &str) -> String {
    service("web", vip, "443", &format!("drain_timeout = \"{drain_timeout}\""), &ipv4(lab.servers()))
}

fn open(lab: &TestLab, vip: Ipv4Addr) -> Connection {
    let mut connection = Connection::open(lab.client(), (vip, 443)).expect("the relay listens");
    connection.greeting().expect("a greeting");
    connection
}

fn until_it_listens_no_more(lab: &TestLab, vip: Ipv4Addr) {
    eventually("new connections are refused", || {
        let refused = Connection::open(lab.client(), (vip, 443)).err()?;
        // A handshake that ends just as the listener closes is reset; only from then on is there nobody to answer.
        if refused.kind() == ErrorKind::ConnectionReset {
            return None;
        }
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        Some(())
    });
}

fn assert_ended_well(relay: &mut Subject, said: &str) {
    assert_eq!(relay.wait(), Some(0), "{}", relay.log());
    assert!(relay.log().contains(said), "{said} is missing in\n{}", relay.log());
}

#[test]
fn a_first_sigterm_refuses_new_clients_and_lets_the_others_finish() {
    in_lab(a_first_sigterm_refuses_new_clients_and_lets_the_others_finish, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let _origin = Origin::tcp(lab.server(1), 443);
        let mut relay = subject!().start(lab.balancer(), &config(lab, vip, "1h"));
        let mut held = [open(lab, vip), open(lab, vip)];
        relay.terminate();
        until_it_listens_no_more(lab, vip);
        assert_eq!(relay.status().phase, "draining");
        for connection in &mut held {
            connection.echo(b"not yet finished").expect("a connection from before goes on");
        }
        let [first, second] = held;
        first.close().expect("a clean end");
        assert!(relay.is_running(), "one connection is left");
        second.close().expect("a clean end");
        assert_ended_well(&mut relay, "every connection had ended by itself");
    });
}

#[test]
fn what_is_left_after_drain_timeout_is_closed() {
    in_lab(what_is_left_after_drain_timeout_is_closed, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let _origin = Origin::tcp(lab.server(1), 443);
        let mut relay = subject!().start(lab.balancer(), &config(lab, vip, "1s"));
        let mut held = open(lab, vip);
        let terminated = Instant::now();
        relay.terminate();
        assert!(held.is_ended());
        let lived = terminated.elapsed();
        // The relay's clock counts whole milliseconds.
        assert!(lived >= Duration::from_millis(990), "closed after {lived:?}");
        assert_ended_well(&mut relay, "1 connection was cut");
    });
}

#[test]
fn a_second_sigterm_ends_at_once() {
    in_lab(a_second_sigterm_ends_at_once, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let _origin = Origin::tcp(lab.server(1), 443);
        // Longer than any wait of this test.
        let mut relay = subject!().start(lab.balancer(), &config(lab, vip, "1h"));
        let mut held = open(lab, vip);
        relay.terminate();
        until_it_listens_no_more(lab, vip);
        held.echo(b"draining").expect("a connection from before goes on");
        relay.terminate();
        assert!(held.is_ended());
        // One of the last to be taken may still be there as well.
        assert_ended_well(&mut relay, " cut\n");
    });
}

#[test]
fn without_connections_the_first_sigterm_ends_it() {
    in_lab(without_connections_the_first_sigterm_ends_it, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let mut relay = subject!().start(lab.balancer(), &config(lab, vip, "1h"));
        relay.terminate();
        assert_ended_well(&mut relay, "every connection had ended by itself");
    });
}

#[test]
fn a_restart_finds_its_ports_free() {
    in_lab(a_restart_finds_its_ports_free, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let _origin = Origin::tcp(lab.server(1), 443);
        let config = config(lab, vip, "1h");
        for _ in 0..10 {
            let relay = subject!().start(lab.balancer(), &config);
            let held = [open(lab, vip), open(lab, vip)];
            // In the middle of everything, by a second signal.
            relay.stop();
            drop(held);
            let mut relay = subject!().start(lab.balancer(), &config);
            relay.terminate();
            assert_ended_well(&mut relay, "every connection had ended by itself");
        }
    });
}
