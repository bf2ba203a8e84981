//! The reference topology of Lync 2013 (requirements.md 3.6, document 004) brought up whole: `config/examples/lync-2013.toml` as it stands, one
//! unit between all its networks, every service, direct access beside them, and what servers see of whom.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use towpath_tests::wire::captured;
use towpath_tests::{
    Connection, Greeting, Host, Origin, Places, Segment, Site, Subject, ask_by_udp, in_site, subject, visit_from,
};

const EXAMPLE: &str = include_str!("../../config/examples/lync-2013.toml");

/// Who is where. `desk` is an internal client, `roamer` one in the Internet, `publisher` the firewall that publishes web sites.
const NETWORKS: [(&str, Places<'_>); 7] = [
    (
        "lan",
        &[
            ("unit", "192.168.10.1/24"),
            ("desk", "192.168.10.100/24"),
            ("FE-1", "192.168.10.31/24"),
            ("FE-2", "192.168.10.34/24"),
            ("DIR-1", "192.168.10.21/24"),
            ("DIR-2", "192.168.10.22/24"),
        ],
    ),
    ("second-arm", &[("unit", "192.168.20.1/24"), ("firewall", "192.168.20.2/24")]),
    ("int-edge", &[("firewall", "192.168.100.1/24"), ("EDGE-1", "192.168.100.10/24"), ("EDGE-2", "192.168.100.11/24")]),
    (
        "ext-edge",
        &[
            ("unit", "10.20.0.1/16"),
            ("EDGE-1", "10.20.1.10/16"),
            ("EDGE-1", "10.20.1.11/16"),
            ("EDGE-1", "10.20.1.12/16"),
            ("EDGE-2", "10.20.1.20/16"),
            ("EDGE-2", "10.20.1.21/16"),
            ("EDGE-2", "10.20.1.22/16"),
        ],
    ),
    ("ext-clients", &[("unit", "10.25.1.1/16"), ("router", "10.25.0.254/16")]),
    ("internet", &[("router", "203.0.113.1/24"), ("roamer", "203.0.113.50/24")]),
    (
        "perimeter",
        &[
            ("unit", "10.12.1.1/24"),
            ("unit", "10.12.1.150/24"),
            ("unit", "10.12.1.151/24"),
            ("publisher", "10.12.1.254/24"),
        ],
    ),
];

/// The routes of the document. Those of the unit are in its file, too: health checks and the relay go by the kernel's.
const ROUTES: [(&str, &str, &str); 14] = [
    ("unit", "192.168.100.0/24", "192.168.20.2"),
    ("unit", "0.0.0.0/0", "10.25.0.254"),
    ("desk", "192.168.100.0/24", "192.168.10.1"),
    ("FE-1", "192.168.100.0/24", "192.168.10.1"),
    ("FE-2", "192.168.100.0/24", "192.168.10.1"),
    ("EDGE-1", "192.168.20.0/24", "192.168.100.1"),
    ("EDGE-1", "192.168.10.0/24", "192.168.100.1"),
    ("EDGE-2", "192.168.20.0/24", "192.168.100.1"),
    ("EDGE-2", "192.168.10.0/24", "192.168.100.1"),
    ("firewall", "192.168.10.0/24", "192.168.20.1"),
    ("router", "10.20.0.0/16", "10.25.1.1"),
    ("roamer", "0.0.0.0/0", "203.0.113.1"),
    ("EDGE-1", "0.0.0.0/0", "10.20.0.1"),
    ("EDGE-2", "0.0.0.0/0", "10.20.0.1"),
];

const FRONT_ENDS: [&str; 2] = ["FE-1", "FE-2"];
const DIRECTORS: [&str; 2] = ["DIR-1", "DIR-2"];
const EDGES: [&str; 2] = ["EDGE-1", "EDGE-2"];

/// What a real server sees as its client.
#[derive(Clone, Copy)]
enum Sees {
    /// The client: half-NAT, or no NAT at all.
    Client,
    /// One of these addresses of ours: full-NAT, or a relay.
    Ours(&'static [&'static str]),
}

/// A VIP, its ports, and who answers there.
struct Service {
    client: &'static str,
    from: &'static str,
    vip: &'static str,
    tcp: &'static [u16],
    udp: &'static [u16],
    servers: [&'static str; 2],
    sees: Sees,
}

const POOL: Sees = Sees::Ours(&["192.168.10.32", "192.168.10.33"]);
const INTERFACE: Sees = Sees::Ours(&["192.168.10.1"]);

const SERVICES: [Service; 10] = [
    Service {
        client: "desk",
        from: "192.168.10.100",
        vip: "192.168.10.30",
        tcp: &[135, 443, 444, 5061, 5065, 5069],
        udp: &[],
        servers: FRONT_ENDS,
        sees: POOL,
    },
    Service {
        client: "firewall",
        from: "192.168.20.2",
        vip: "192.168.20.30",
        tcp: &[8080, 4443],
        udp: &[],
        servers: FRONT_ENDS,
        sees: INTERFACE,
    },
    Service {
        client: "desk",
        from: "192.168.10.100",
        vip: "192.168.10.20",
        tcp: &[5061],
        udp: &[],
        servers: DIRECTORS,
        sees: INTERFACE,
    },
    Service {
        client: "firewall",
        from: "192.168.20.2",
        vip: "192.168.20.20",
        tcp: &[8080, 4443],
        udp: &[],
        servers: DIRECTORS,
        sees: INTERFACE,
    },
    Service {
        client: "desk",
        from: "192.168.10.100",
        vip: "192.168.10.10",
        tcp: &[5061, 8057, 443, 5062],
        udp: &[3478],
        servers: EDGES,
        sees: Sees::Client,
    },
    Service {
        client: "roamer",
        from: "203.0.113.50",
        vip: "10.25.1.10",
        tcp: &[443, 5061, 5269],
        udp: &[],
        servers: EDGES,
        sees: Sees::Client,
    },
    Service {
        client: "roamer",
        from: "203.0.113.50",
        vip: "10.25.1.11",
        tcp: &[443],
        udp: &[],
        servers: EDGES,
        sees: Sees::Client,
    },
    Service {
        client: "roamer",
        from: "203.0.113.50",
        vip: "10.25.1.12",
        tcp: &[443],
        udp: &[3478],
        servers: EDGES,
        sees: Sees::Client,
    },
    Service {
        client: "publisher",
        from: "10.12.1.254",
        vip: "10.12.1.150",
        tcp: &[80, 443],
        udp: &[],
        servers: FRONT_ENDS,
        sees: INTERFACE,
    },
    Service {
        client: "publisher",
        from: "10.12.1.254",
        vip: "10.12.1.151",
        tcp: &[80, 443],
        udp: &[],
        servers: DIRECTORS,
        sees: INTERFACE,
    },
];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The site with its routes, its servers serving and the unit running the example.
struct Installation<'s> {
    site: &'s Site,
    _origins: Vec<Origin>,
    unit: Subject,
}

impl Installation<'_> {
    fn new(site: &Site) -> Installation<'_> {
        for host in site.hosts() {
            let forwards = ["firewall", "router"].contains(&host.name());
            host.set_sysctl("net.ipv4.ip_forward", if forwards { "1" } else { "0" }).expect("a sysctl");
        }
        for (host, to, via) in ROUTES {
            site.route(host, to, via).expect("a route");
        }
        let mut origins = Vec::new();
        let mut serve = |hosts: [&str; 2], ports: &[u16]| {
            origins.extend(
                hosts
                    .into_iter()
                    .flat_map(|host| ports.iter().map(move |&port| (host, port)))
                    .map(|(host, port)| Origin::tcp(site.host(host), port)),
            );
        };
        serve(FRONT_ENDS, &[135, 443, 444, 5061, 5065, 5069, 8080, 4443]);
        serve(DIRECTORS, &[5061, 8080, 4443]);
        serve(EDGES, &[443, 5061, 5062, 5269, 8057, 50_000]);
        for (edge, at) in [
            ("EDGE-1", "192.168.100.10"),
            ("EDGE-1", "10.20.1.12"),
            ("EDGE-2", "192.168.100.11"),
            ("EDGE-2", "10.20.1.22"),
        ] {
            origins.push(Origin::udp_at(site.host(edge), SocketAddr::new(ip(at), 3478)));
        }
        let unit = subject!().start(site.host("unit"), &format!("[limits]\nflows = 16384\n{}", without_control()));
        unit.until_all_up();
        Installation { site, _origins: origins, unit }
    }

    fn host(&self, name: &str) -> &Host {
        self.site.host(name)
    }
}

/// The example without its control socket: the tests' own is elsewhere.
fn without_control() -> String {
    let control = "[control]\nsocket = \"/run/towpath/control.sock\"\n";
    assert!(EXAMPLE.contains(control));
    EXAMPLE.replace(control, "")
}

fn is_seen(sees: Sees, client: &str, greeting: &Greeting) -> bool {
    let peer = greeting.peer.ip();
    match sees {
        Sees::Client => peer == ip(client),
        Sees::Ours(addresses) => addresses.iter().any(|&address| ip(address) == peer),
    }
}

#[test]
fn every_vip_of_the_lync_example_answers_and_servers_see_whom_they_should() {
    in_site(every_vip_of_the_lync_example_answers_and_servers_see_whom_they_should, &NETWORKS, |site| {
        let installation = Installation::new(site);
        for Service { client, from, vip, tcp, udp, servers, sees } in SERVICES {
            let host = installation.host(client);
            for &port in tcp {
                let to = SocketAddr::new(ip(vip), port);
                let greeting = visit_from(host, ip(from), to);
                assert!(servers.contains(&greeting.name.as_str()), "{to} is served by {}", greeting.name);
                assert!(is_seen(sees, from, &greeting), "{to}: {} sees {}", greeting.name, greeting.peer);
            }
            for &port in udp {
                let to = SocketAddr::new(ip(vip), port);
                let greeting = ask_by_udp(host, ip(from), to, b"binding request");
                assert!(servers.contains(&greeting.name.as_str()), "{to} is served by {}", greeting.name);
                assert!(is_seen(sees, from, &greeting), "{to}: {} sees {}", greeting.name, greeting.peer);
            }
        }
        installation.unit.stop();
    });
}

/// T-04 and requirements.md 6.3 no. 1: a pool's servers open their own VIP.
#[test]
fn servers_of_the_lync_example_reach_their_own_pool() {
    in_site(servers_of_the_lync_example_reach_their_own_pool, &NETWORKS, |site| {
        let installation = Installation::new(site);
        for (name, from) in [("FE-1", "192.168.10.31"), ("FE-2", "192.168.10.34")] {
            let greeting = visit_from(installation.host(name), ip(from), SocketAddr::new(ip("192.168.10.30"), 5061));
            assert!(is_seen(POOL, from, &greeting), "{greeting:?}");
        }
        installation.unit.stop();
    });
}

/// T-19 to T-21: the same servers by VIP and directly, started from either side, TCP and UDP, without translation.
#[test]
fn servers_of_the_lync_example_are_reached_directly_beside_their_vips() {
    in_site(servers_of_the_lync_example_are_reached_directly_beside_their_vips, &NETWORKS, |site| {
        let installation = Installation::new(site);
        let directly = [
            ("desk", "192.168.10.100", "192.168.100.10", 5061),
            ("FE-1", "192.168.10.31", "192.168.100.11", 5062),
            // Media, and ports that are those of services.
            ("roamer", "203.0.113.50", "10.20.1.12", 50_000),
            ("roamer", "203.0.113.50", "10.20.1.10", 443),
            // What servers start themselves.
            ("EDGE-1", "192.168.100.10", "192.168.10.31", 5061),
        ];
        // Through the VIP meanwhile, from the same client.
        let vip = SocketAddr::new(ip("192.168.10.10"), 5061);
        let mut held =
            Connection::open_from(installation.host("desk"), ip("192.168.10.100"), vip).expect("somebody serves");
        held.greeting().expect("a greeting");
        for (client, from, server, port) in directly {
            let to = SocketAddr::new(ip(server), port);
            let greeting = visit_from(installation.host(client), ip(from), to);
            assert_eq!((greeting.peer.ip(), greeting.local), (ip(from), to), "{client} to {to}");
        }
        for (client, from, server) in
            [("desk", "192.168.10.100", "192.168.100.10"), ("roamer", "203.0.113.50", "10.20.1.22")]
        {
            let to = SocketAddr::new(ip(server), 3478);
            let greeting = ask_by_udp(installation.host(client), ip(from), to, b"a candidate");
            assert_eq!((greeting.peer.ip(), greeting.local), (ip(from), to), "{client} to {to}");
        }
        held.echo(&[9; 5_000]).expect("the connection by the VIP goes on");
        installation.unit.stop();
    });
}

/// The NAT matrix of requirements.md 3.3, from captures on the servers (T-03).
#[test]
fn captures_of_the_lync_example_show_the_nat_matrix() {
    in_site(captures_of_the_lync_example_show_the_nat_matrix, &NETWORKS, |site| {
        let mut taps = [
            (FRONT_ENDS[0], "lan", "192.168.10.31", 443),
            (FRONT_ENDS[1], "lan", "192.168.10.34", 443),
            (EDGES[0], "int-edge", "192.168.100.10", 8057),
            (EDGES[1], "int-edge", "192.168.100.11", 8057),
        ]
        .map(|(host, link, at, port)| (site.host(host).capture(link).expect("a tap"), SocketAddr::new(ip(at), port)));
        let installation = Installation::new(site);
        let desk = installation.host("desk");
        for _ in 0..6 {
            visit_from(desk, ip("192.168.10.100"), SocketAddr::new(ip("192.168.10.30"), 443));
            visit_from(desk, ip("192.168.10.100"), SocketAddr::new(ip("192.168.10.10"), 8057));
        }
        installation.unit.stop();
        let mut seen: [BTreeSet<IpAddr>; 2] = Default::default();
        for (at, (tap, server)) in taps.iter_mut().enumerate() {
            let segments: Vec<Segment> = captured(tap);
            let of_server = segments.iter().filter(|one| one.source == *server || one.destination == *server);
            // Neither VIP is seen behind the unit, and each packet has exactly one far end.
            seen[at / 2].extend(of_server.map(|one| {
                let far = if one.source == *server { one.destination } else { one.source };
                assert!(![ip("192.168.10.30"), ip("192.168.10.10")].contains(&far.ip()), "{one:?}");
                far.ip()
            }));
        }
        // Health checks of 5061 go elsewhere; those of 8057 come from the unit's own address.
        let [full, half] = seen;
        let pool: BTreeSet<IpAddr> = ["192.168.10.32", "192.168.10.33"].map(ip).into();
        assert!(!full.is_empty() && full.is_subset(&pool), "enterprise pool, full-NAT: {full:?}");
        assert_eq!(half, ["192.168.10.100", "192.168.20.1"].map(ip).into(), "internal Edge, half-NAT");
    });
}
