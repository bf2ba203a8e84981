//! The address and port that real servers see: SNAT on the wire, exhaustion, rest.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use towpath_tests::wire::captured;
use towpath_tests::{
    Connection, Origin, PATIENCE, Segment, Subject, TestLab, Topology, eventually, in_lab, ipv4, is_refused, service,
    subject,
};

fn greeted(lab: &TestLab, to: (Ipv4Addr, u16)) -> std::io::Result<(Connection, SocketAddr)> {
    let mut connection = Connection::open(lab.client(), to)?;
    let peer = connection.greeting()?.peer;
    Ok((connection, peer))
}

fn out_of_source_ports(relay: &Subject) -> u64 {
    relay.service("web").terminations["out_of_source_ports"]
}

#[test]
fn t_03_servers_see_the_pool_and_never_the_client() {
    in_lab(t_03_servers_see_the_pool_and_never_the_client, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let pool = [lab.snat(101), lab.snat(102)];
        let keys = format!("source = {{ pool = [\"{}\", \"{}\"] }}", pool[0], pool[1]);
        let origin = Origin::tcp(lab.server(1), 443);
        let mut tap = lab.server(1).capture("back").expect("a tap");
        let relay = subject!().start(lab.balancer(), &service("web", vip, "443", &keys, &ipv4(lab.servers())));
        // So many that chance does not leave one address out.
        for _ in 0..40 {
            let (connection, _) = greeted(lab, (vip, 443)).expect("the relay serves");
            connection.close().expect("a clean end");
        }
        relay.stop();
        drop(origin);

        let server = SocketAddr::from((lab.server(1).ipv4(), 443));
        let pool: BTreeSet<IpAddr> = pool.into_iter().map(IpAddr::from).collect();
        let segments = captured(&mut tap);
        let opened: Vec<&Segment> = segments.iter().filter(|segment| segment.opens()).collect();
        assert_eq!(opened.len(), 40, "{opened:?}");
        let sources: BTreeSet<IpAddr> = opened.iter().map(|segment| segment.source.ip()).collect();
        assert_eq!(sources, pool);
        for segment in &segments {
            let (near, far) = if segment.source == server {
                (segment.source, segment.destination)
            } else {
                (segment.destination, segment.source)
            };
            assert_eq!(near, server, "{segment:?}");
            assert!(pool.contains(&far.ip()), "{segment:?}");
        }
    });
}

#[test]
fn source_ports_run_out_exactly_and_the_next_is_refused_and_counted() {
    in_lab(source_ports_run_out_exactly_and_the_next_is_refused_and_counted, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let keys = format!("source = {{ pool = [\"{}\"], ports = \"20000-20003\" }}", lab.snat(101));
        let _origin = Origin::tcp(lab.server(1), 443);
        let relay = subject!().start(lab.balancer(), &service("web", vip, "443", &keys, &ipv4(lab.servers())));
        let mut held: Vec<(Connection, SocketAddr)> = (0..4)
            .map(|n| greeted(lab, (vip, 443)).unwrap_or_else(|error| panic!("connection {n}: {error}")))
            .collect();
        let ports: BTreeSet<u16> = held.iter().map(|(_, peer)| peer.port()).collect();
        assert_eq!(ports, BTreeSet::from([20000, 20001, 20002, 20003]));
        let fill = &relay.status().source_ports[0];
        assert_eq!((fill.leased, fill.capacity, fill.nearly_exhausted), (4, 4, true));

        assert!(is_refused(lab.client(), (vip, 443)));
        assert_eq!(out_of_source_ports(&relay), 1);
        for (connection, _) in &mut held {
            connection.echo(b"still here").expect("those that have a port keep it");
        }
        relay.stop();
    });
}

#[test]
fn the_same_source_port_serves_two_servers() {
    in_lab(the_same_source_port_serves_two_servers, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let keys = format!("source = {{ pool = [\"{}\"], ports = \"20000-20003\" }}", lab.snat(101));
        let origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let relay = subject!().start(lab.balancer(), &service("web", vip, "443", &keys, &ipv4(lab.servers())));
        let _held: Vec<(Connection, SocketAddr)> = (0..8)
            .map(|n| greeted(lab, (vip, 443)).unwrap_or_else(|error| panic!("connection {n}: {error}")))
            .collect();
        for origin in &origins {
            let ports: BTreeSet<u16> = origin.accepted().iter().map(|accepted| accepted.peer.port()).collect();
            assert_eq!(ports, BTreeSet::from([20000, 20001, 20002, 20003]));
        }
        assert!(is_refused(lab.client(), (vip, 443)));
        assert_eq!(out_of_source_ports(&relay), 1);
        relay.stop();
    });
}

/// A lab whose servers use no TCP timestamps, and whose balancer keeps no TIME_WAIT of its own: what holds a port is our rest.
fn without_time_wait(lab: &TestLab) {
    lab.server(1).set_sysctl("net.ipv4.tcp_timestamps", "0").expect("a sysctl");
    lab.balancer().set_sysctl("net.ipv4.tcp_max_tw_buckets", "0").expect("a sysctl");
}

#[test]
fn a_port_rests_when_the_client_ended_first_and_comes_back() {
    in_lab(a_port_rests_when_the_client_ended_first_and_comes_back, Topology::TwoArm, 1, |lab| {
        const REST: Duration = Duration::from_secs(2);
        without_time_wait(lab);
        let vip = lab.vip(100);
        let keys = format!("source = {{ pool = [\"{}\"], ports = \"20000-20000\", rest = \"2s\" }}", lab.snat(101));
        let _origin = Origin::tcp(lab.server(1), 443);
        let relay = subject!().start(lab.balancer(), &service("web", vip, "443", &keys, &ipv4(lab.servers())));
        let (connection, first) = greeted(lab, (vip, 443)).expect("the relay serves");
        let closing = Instant::now();
        connection.close().expect("a clean end");
        let again = eventually("the port comes back", || Some(greeted(lab, (vip, 443)).ok()?.1));
        let rested = closing.elapsed();
        assert_eq!(again, first);
        // The relay's clock counts whole milliseconds.
        assert!(rested >= REST - Duration::from_millis(10), "used again after {rested:?}");
        assert!(out_of_source_ports(&relay) > 0);
        relay.stop();
    });
}

#[test]
fn a_port_needs_no_rest_when_the_server_ended_first() {
    in_lab(a_port_needs_no_rest_when_the_server_ended_first, Topology::TwoArm, 1, |lab| {
        without_time_wait(lab);
        let vip = lab.vip(100);
        // Longer than anybody waits here.
        let keys = format!("source = {{ pool = [\"{}\"], ports = \"20000-20000\", rest = \"1h\" }}", lab.snat(101));
        let listener = lab.server(1).run(|| TcpListener::bind("0.0.0.0:443")).expect("a thread").expect("a listener");
        let relay = subject!().start(lab.balancer(), &service("web", vip, "443", &keys, &ipv4(lab.servers())));
        for round in 0..3 {
            let mut client = eventually("the port is free again", || {
                let mut client = Connection::open(lab.client(), (vip, 443)).ok()?;
                client.stream().write_all(b"hello").ok()?;
                client.stream().set_read_timeout(Some(Duration::from_millis(100))).expect("not zero");
                // Refused: ended at once. Served: silence, until the server speaks.
                let ended = client.is_ended();
                client.stream().set_read_timeout(Some(PATIENCE)).expect("not zero");
                (!ended).then_some(client)
            });
            let (mut server, peer) = listener.accept().expect("the relay connects");
            assert_eq!(peer.port(), 20000, "round {round}");
            server.shutdown(Shutdown::Write).expect("our FIN");
            assert!(client.is_ended());
            client.close().expect("a clean end");
            let mut heard = Vec::new();
            server.read_to_end(&mut heard).expect("the client's FIN");
            assert_eq!(heard, b"hello");
        }
        relay.stop();
    });
}
