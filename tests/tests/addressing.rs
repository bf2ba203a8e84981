//! Ports and address families: many ports on one VIP, port translation, IPv6 on either side.

use std::net::{IpAddr, SocketAddr};

use towpath_tests::{Connection, Host, Origin, Topology, in_lab, ipv4, ipv6, service, service_to, subject};

/// Whom and what port of it a client reaches.
fn reached(client: &Host, to: impl Into<SocketAddr>) -> SocketAddr {
    let to = to.into();
    let mut connection = Connection::open(client, to).unwrap_or_else(|error| panic!("{to}: {error}"));
    let greeting = connection.greeting().unwrap_or_else(|error| panic!("{to}: {error}"));
    connection.echo(b"and back").unwrap_or_else(|error| panic!("{to}: {error}"));
    connection.close().unwrap_or_else(|error| panic!("{to}: {error}"));
    greeting.local
}

#[test]
fn t_14_extra_ports_on_one_vip_keep_their_port_or_are_translated() {
    in_lab(t_14_extra_ports_on_one_vip_keep_their_port_or_are_translated, Topology::TwoArm, 1, |lab| {
        let (kept, translated) = (lab.vip(100), lab.vip(101));
        let server = lab.server(1);
        let _origins = [80, 443, 8080, 4443].map(|port| Origin::tcp(server, port));
        let at = |port: u16| [(server.name(), SocketAddr::from((server.ipv4(), port)))];
        let config = service("internal", kept, "[80, 443]", "", &ipv4(lab.servers()))
            + &service("external", kept, "[8080, 4443]", "", &ipv4(lab.servers()))
            + &service_to("http", translated, "80", "", &at(8080))
            + &service_to("https", translated, "[443, 4443]", "", &at(4443));
        let relay = subject!().start(lab.balancer(), &config);
        let server = server.ipv4();
        for port in [80, 443, 8080, 4443] {
            assert_eq!(reached(lab.client(), (kept, port)), SocketAddr::from((server, port)));
        }
        for (port, to) in [(80, 8080), (443, 4443), (4443, 4443)] {
            assert_eq!(reached(lab.client(), (translated, port)), SocketAddr::from((server, to)));
        }
        relay.stop();
    });
}

#[test]
fn ipv6_clients_reach_ipv6_servers_from_ipv6_source_addresses() {
    in_lab(ipv6_clients_reach_ipv6_servers_from_ipv6_source_addresses, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip6(0x100);
        let snat = lab.snat6(0x101);
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        // With several IPv6 addresses in a network the kernel may pick any for its own connections (RFC 6724).
        let keys = format!("source = {{ pool = [\"{snat}\"], ports = \"10000-19999\" }}");
        let relay = subject!().start(lab.balancer(), &service("web", vip, "443", &keys, &ipv6(lab.servers())));
        let mut served = Vec::new();
        for _ in 0..2 {
            let mut client = Connection::open(lab.client(), (vip, 443)).expect("the relay listens");
            let greeting = client.greeting().expect("a greeting");
            assert_eq!(greeting.peer.ip(), IpAddr::from(snat));
            client.echo(b"over IPv6").expect("an echo");
            client.close().expect("a clean end");
            served.push(greeting.local.ip());
        }
        served.sort();
        assert_eq!(served, [1, 2].map(|n| IpAddr::from(lab.server(n).ipv6())));
        relay.stop();
    });
}

#[test]
fn ipv6_clients_reach_ipv4_servers_and_the_other_way_round() {
    in_lab(ipv6_clients_reach_ipv4_servers_and_the_other_way_round, Topology::TwoArm, 1, |lab| {
        let (vip, vip6) = (lab.vip(100), lab.vip6(0x100));
        let server = lab.server(1);
        let _origin = Origin::tcp(server, 443);
        let config = service("new", vip6, "443", "", &ipv4(lab.servers()))
            + &service("old", vip, "443", "", &ipv6(lab.servers()));
        let relay = subject!().start(lab.balancer(), &config);
        assert_eq!(reached(lab.client(), (vip6, 443)), SocketAddr::from((server.ipv4(), 443)));
        assert_eq!(reached(lab.client(), (vip, 443)), SocketAddr::from((server.ipv6(), 443)));
        relay.stop();
    });
}
