//! The end of the process: draining, its deadline, the second signal.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use towpath_tests::{
    Connection, Origin, PATIENCE, Subject, TestLab, Topology, eventually, in_lab, ipv4, packet_service, service,
    subject,
};

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
        assert!(relay.log().contains("draining → ending: the last connection has ended"), "{}", relay.log());
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
        let told = "draining → ending: drain_timeout has passed; connections that were ended: 1";
        assert!(relay.log().contains(told), "{}", relay.log());
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

/// design.md 10.11. What lets the worker panic is the test's own program; see `StartOptions::on_breath`.
#[test]
fn a_worker_that_panics_ends_the_process_and_the_next_start_serves() {
    in_lab(a_worker_that_panics_ends_the_process_and_the_next_start_serves, Topology::TwoArm, 1, |lab| {
        let (on_packets, on_streams) = (lab.free_vip(100), lab.vip(101));
        let _origins = [443, 8443].map(|port| Origin::tcp(lab.server(1), port));
        let source = format!("source = {{ pool = [\"{}\"] }}", lab.free_snat(102));
        let config = "[limits]\nflows = 16384\n".to_owned()
            + &packet_service("packets", on_packets, "443", &source, &ipv4(lab.servers()))
            + &service("streams", on_streams, "8443", "", &ipv4(lab.servers()));
        let mut relay = subject!().start_to_panic(lab.balancer(), &config);
        let held = [(on_packets, 443), (on_streams, 8443)].map(|to| {
            let mut connection = Connection::open(lab.client(), to).expect("somebody serves");
            connection.greeting().expect("a greeting");
            connection
        });
        let [mut of_packets, mut of_streams] = held;

        let asked = Instant::now();
        relay.panic_a_worker();
        // A worker without work breathes once a second.
        let signal = relay.wait_for_signal();
        // The first process of a PID namespace, as in a container and here, cannot abort itself by SIGABRT: the C library then ends it by an
        // instruction that faults.
        assert!([libc::SIGABRT, libc::SIGSEGV].contains(&signal), "signal {signal}\n{}", relay.log());
        assert!(asked.elapsed() < Duration::from_secs(2), "it took {:?}", asked.elapsed());
        assert!(relay.log().contains("panicked: aborting"), "{}", relay.log());

        // The kernel ends the connections of the stream plane; those of the packet plane hang, as behind a router that is gone.
        assert!(of_streams.is_ended(), "the kernel tells the client");
        of_packets.stream().set_read_timeout(Some(Duration::from_millis(300))).expect("not zero");
        let silence = of_packets.echo(b"is anybody there?").expect_err("nobody forwards it");
        assert!(matches!(silence.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{silence}");
        of_packets.stream().set_read_timeout(Some(PATIENCE)).expect("not zero");

        let relay = subject!().start(lab.balancer(), &config);
        // It has sent something since, and sends it again.
        assert!(of_packets.is_ended(), "the next process tells the client");
        for to in [(on_packets, 443), (on_streams, 8443)] {
            let mut connection = Connection::open(lab.client(), to).expect("somebody serves again");
            connection.greeting().expect("a greeting");
            connection.close().expect("a clean end");
        }
        relay.stop();
    });
}
