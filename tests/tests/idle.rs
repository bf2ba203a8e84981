//! Idle time, by the real clock.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use towpath_tests::{Connection, PATIENCE, TestLab, Topology, in_lab, ipv4, service, subject};

const IDLE: Duration = Duration::from_secs(1);
/// Time between two bytes where there is traffic.
const PACE: Duration = Duration::from_millis(100);

#[test]
fn t_11_silence_ends_a_connection_and_traffic_in_either_direction_keeps_it() {
    in_lab(t_11_silence_ends_a_connection_and_traffic_in_either_direction_keeps_it, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let listener = lab.server(1).run(|| TcpListener::bind("0.0.0.0:443")).expect("a thread").expect("a listener");
        let relay = subject!()
            .start(lab.balancer(), &service("web", vip, "443", "idle_timeout = \"1s\"", &ipv4(lab.servers())));
        let open = |lab: &TestLab| -> (Connection, TcpStream) {
            let client = Connection::open(lab.client(), (vip, 443)).expect("the relay listens");
            let (server, _) = listener.accept().expect("the relay connects");
            server.set_read_timeout(Some(PATIENCE)).expect("not zero");
            (client, server)
        };
        let (talker, mut hears_talker) = open(lab);
        let (listens, speaker) = open(lab);

        // Three silent connections, one after the other, each watched to its end while the others have traffic.
        for _ in 0..3 {
            let (silent, mut silent_server) = open(lab);
            let opened = Instant::now();
            silent.stream().set_read_timeout(Some(PACE)).expect("not zero");
            let lived = loop {
                let mut byte = [0];
                talker.stream().write_all(b"t").expect("one-way traffic from the client");
                hears_talker.read_exact(&mut byte).expect("it arrives");
                (&speaker).write_all(b"s").expect("one-way traffic from the server");
                listens.stream().read_exact(&mut byte).expect("it arrives");
                match silent.stream().read(&mut byte) {
                    Ok(0) => break opened.elapsed(),
                    Ok(_) => panic!("the silent connection has spoken"),
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                    Err(error) => panic!("not ended in order: {error}"),
                }
                assert!(opened.elapsed() < PATIENCE, "the silent connection lives on");
            };
            // The relay counts from a moment that lies before `opened`, but not long before.
            assert!(lived >= IDLE - PACE, "ended after {lived:?}");
            assert_eq!(silent_server.read(&mut [0]).expect("the server is told as well"), 0);
        }
        assert_eq!(relay.service("web").terminations["idle_timed_out"], 3);
        assert_eq!(relay.service("web").connections, 2);
        relay.stop();
    });
}
