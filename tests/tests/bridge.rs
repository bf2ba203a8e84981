//! Transparent mode between real TCP stacks: client and servers are in one network, and Towpath is the cable between them (T-34).

use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Instant;

use towpath_engine::Status;
use towpath_engine::status::HealthStatus;
use towpath_sys::link::Route;
use towpath_sys::packet::{Tag, Tap};
use towpath_tests::wire::captured;
use towpath_tests::{
    Accepted, Connection, Greeting, Host, Origin, PATIENCE, Subject, TestLab, Topology, bulk, in_lab, ipv4, ipv6,
    packet_service, subject, visit,
};

const BULK_BYTES: u64 = 64 << 20;

/// The bridge, with the addresses that the balancer would have.
fn bridge(lab: &TestLab) -> String {
    let (ipv4, ipv6) = (lab.balancer().ipv4(), lab.balancer().ipv6());
    format!(
        "[limits]\nflows = 16384\n[[interface]]\nname = \"front\"\n[[interface]]\nname = \"back\"\n[[bridge]]\nname = \"farm\"\n\
         interfaces = [\"front\", \"back\"]\naddresses = [\"{ipv4}/24\", \"{ipv6}/64\"]\n"
    )
}

fn start(lab: &TestLab, services: &str) -> Subject {
    subject!().start(lab.balancer(), &(bridge(lab) + services))
}

/// Full-NAT at an address of nobody's, over IPv4.
fn full_nat(lab: &TestLab) -> String {
    let pool = format!("source = {{ pool = [\"{}\"] }}", lab.free_snat(101));
    packet_service("web", lab.free_vip(100), "443", &pool, &ipv4(lab.servers()))
}

/// The sum of a counter of the packet plane over all workers.
fn packets(status: &Status, counter: &str) -> u64 {
    status.workers.iter().map(|worker| worker.packets[counter]).sum()
}

/// On whichever worker.
fn is_looped(status: &Status) -> bool {
    packets(status, "bridge_loops") > packets(status, "bridge_loops_over")
}

fn drops(status: &Status, reason: &str) -> u64 {
    status.workers.iter().filter_map(|worker| worker.drops.get(reason)).sum()
}

fn mac(host: &Host, link: &str) -> [u8; 6] {
    let link = host.links().and_then(|mut links| links.find(link)).expect("the link");
    *link.hardware_address.first_chunk().expect("an Ethernet address")
}

#[track_caller]
fn arrives(tap: &mut Tap, tag: Option<Tag>, frame: &[u8]) {
    let deadline = Instant::now() + PATIENCE;
    let found = tap.find(deadline, |seen| seen.bytes == frame && seen.tag == tag).expect("the tap works");
    assert!(found.is_some(), "not on the wire within {PATIENCE:?}: {frame:02x?}");
}

#[test]
fn t_34_what_is_of_no_service_passes_like_through_a_cable() {
    in_lab(t_34_what_is_of_no_service_passes_like_through_a_cable, Topology::Bridged, 1, |lab| {
        let (client, server) = (lab.client(), lab.server(1));
        let _origin = Origin::tcp(server, 80);
        let _own = Origin::tcp(client, 80);
        let relay = start(lab, &full_nat(lab));
        // ARP and neighbour discovery, TCP both ways: whoever opens it is seen as who he is.
        for (from, to) in [(client, server), (server, client)] {
            let pairs: [(IpAddr, IpAddr); 2] =
                [(from.ipv4().into(), to.ipv4().into()), (from.ipv6().into(), to.ipv6().into())];
            for (own, address) in pairs {
                assert_eq!(visit(from, (address, 80)).peer.ip(), own);
            }
        }
        every_kind_of_frame_passes(lab);
        datagrams_to_groups_pass(client, server);
        let status = relay.until("what crossed is counted", |status| packets(status, "frames_bridged") > 50);
        assert_eq!((packets(&status, "flows_opened"), packets(&status, "bridge_loops")), (0, 0));
        relay.stop();
    });
}

#[test]
fn t_34_a_bridge_alone_is_a_cable() {
    in_lab(t_34_a_bridge_alone_is_a_cable, Topology::Bridged, 1, |lab| {
        let (client, server) = (lab.client(), lab.server(1));
        let _origin = Origin::tcp(server, 80);
        let relay = start(lab, "");
        for address in [IpAddr::from(server.ipv4()), server.ipv6().into()] {
            visit(client, (address, 80));
        }
        every_kind_of_frame_passes(lab);
        relay.until("what crossed is counted", |status| packets(status, "frames_bridged") > 20);
        relay.stop();
    });
}

/// Unknown EtherTypes, groups, spanning tree, a tag: byte for byte, from the sender's MAC, both ways.
fn every_kind_of_frame_passes(lab: &TestLab) {
    let ends = [(lab.client(), "front", lab.server(1), "back"), (lab.server(1), "back", lab.client(), "front")];
    for (from, out_of, to, into) in ends {
        let (own, other) = (mac(from, out_of), mac(to, into));
        let sender = from.capture(out_of).expect("a tap");
        let mut tap = to.capture(into).expect("a tap");
        let payload: Vec<u8> = (0..1_400_u16).map(|number| number as u8).collect();
        let frames = [
            (other, [0x88, 0xb6], &payload[..]),
            ([0xff; 6], [0x88, 0xb6], &payload[..46]),
            ([0x01, 0x80, 0xc2, 0, 0, 0], [0, 38], &payload[..46]),
            ([0x33, 0x33, 0, 0, 0, 0x99], [0x88, 0xcc], &payload[..46]),
        ];
        for (dst, ethertype, payload) in frames {
            let frame = [&dst[..], &own, &ethertype, payload].concat();
            sender.send(&frame).expect("a frame sent");
            arrives(&mut tap, None, &frame);
        }
        // Of VLAN 7 with priority 1, and of a provider's. What arrives is told without its outer tag.
        for protocol in [Tag::DOT1Q, 0x88a8] {
            let tag = Tag { protocol, control: 0x2007 };
            let tagged = [&other[..], &own, &tag.bytes(), &[0x88, 0xb6], &payload].concat();
            sender.send(&tagged).expect("a frame sent");
            arrives(&mut tap, Some(tag), &[&tagged[..12], &tagged[16..]].concat());
        }
    }
}

fn datagrams_to_groups_pass(client: &Host, server: &Host) {
    let hear = || {
        let socket = UdpSocket::bind("0.0.0.0:5353")?;
        socket.join_multicast_v4(&Ipv4Addr::new(239, 1, 2, 3), &server.ipv4())?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok::<_, io::Error>(socket)
    };
    let listener = server.run(hear).expect("a thread").expect("a listener");
    let [a, b, c, _] = server.ipv4().octets();
    for to in [Ipv4Addr::new(a, b, c, 255), Ipv4Addr::new(239, 1, 2, 3), server.ipv4()] {
        let send = || {
            let socket = UdpSocket::bind((client.ipv4(), 0))?;
            socket.set_broadcast(true)?;
            socket.send_to(format!("to {to}").as_bytes(), (to, 5353))
        };
        // By its address, as its kernel has no default route.
        client.run(send).expect("a thread").unwrap_or_else(|error| panic!("{to}: {error}"));
        let mut heard = [0; 64];
        let (length, from) = listener.recv_from(&mut heard).unwrap_or_else(|error| panic!("{to}: {error}"));
        assert_eq!((&heard[..length], from.ip()), (format!("to {to}").as_bytes(), client.ipv4().into()));
    }
}

#[test]
fn t_34_bulk_passes_both_ways_as_it_is() {
    in_lab(t_34_bulk_passes_both_ways_as_it_is, Topology::Bridged, 1, |lab| {
        let relay = start(lab, &full_nat(lab));
        let addresses: [IpAddr; 2] = [lab.server(1).ipv4().into(), lab.server(1).ipv6().into()];
        for address in addresses {
            let listener =
                lab.server(1).run(|| TcpListener::bind((address, 0))).expect("a thread").expect("a listener");
            let to = listener.local_addr().expect("an address");
            let stream = lab.client().run(|| TcpStream::connect_timeout(&to, PATIENCE)).expect("a thread");
            let (accepted, _) = listener.accept().expect("a connection");
            bulk::exchange(&stream.expect("a connection"), &accepted, BULK_BYTES);
        }
        let status = relay.until("what has passed is counted", |status| packets(status, "frames_bridged") > 1_000);
        assert_eq!((packets(&status, "send_too_large"), packets(&status, "received_truncated")), (0, 0));
        relay.stop();
    });
}

#[test]
fn t_34_a_vip_in_the_same_network_is_served_from_both_sides() {
    in_lab(t_34_a_vip_in_the_same_network_is_served_from_both_sides, Topology::Bridged, 2, |lab| {
        let (vip, vip6) = (lab.free_vip(100), lab.free_vip6(100));
        let (snat, snat6) = (lab.free_snat(101), lab.free_snat6(101));
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let pool = |address: IpAddr| format!("source = {{ pool = [\"{address}\"] }}");
        let services = packet_service("web", vip, "443", &pool(snat.into()), &ipv4(lab.servers()))
            + &packet_service("web6", vip6, "443", &pool(snat6.into()), &ipv6(lab.servers()));
        let mut tap = lab.server(1).capture("back").expect("a tap");
        let relay = start(lab, &services);
        // A client on the other side of the servers, and a server that is a client of its own service.
        for client in [lab.client(), lab.server(2)] {
            for (vip, source) in [(IpAddr::from(vip), IpAddr::from(snat)), (vip6.into(), snat6.into())] {
                let visits: Vec<Greeting> = (0..4).map(|_| visit(client, (vip, 443))).collect();
                assert!(visits.iter().all(|greeting| greeting.peer.ip() == source), "{visits:?}");
            }
        }
        // Straight to the same servers, beside it.
        let direct = visit(lab.client(), (lab.server(1).ipv4(), 443));
        assert_eq!(direct.peer.ip(), IpAddr::from(lab.client().ipv4()));
        let ended = relay.until("all connections have ended", |status| {
            status.services.iter().all(|service| service.connections == 0 && service.accepted == 8)
        });
        assert_eq!(packets(&ended, "bridge_loops"), 0);
        relay.stop();
        // Nobody else answered: the kernel would reset what it does not know.
        assert!(captured(&mut tap).iter().all(|segment| !segment.rst));
    });
}

#[test]
fn t_34_health_checks_reach_servers_behind_either_arm() {
    in_lab(t_34_health_checks_reach_servers_behind_either_arm, Topology::Bridged, 1, |lab| {
        let (vip, vip6) = (lab.free_vip(100), lab.free_vip6(100));
        let ends = [lab.client(), lab.server(1)];
        let origins = ends.map(|end| Origin::tcp(end, 443));
        // Servers see the bridge's own addresses.
        let checked = "source = \"interface\"\nbalance = \"round-robin\"\n\
                       health = { check = \"tcp\", interval = \"100ms\", timeout = \"2s\", rise = 1, fall = 1 }";
        let v4 = [("near", IpAddr::from(ends[0].ipv4())), ("far", ends[1].ipv4().into())];
        let v6 = [("near", IpAddr::from(ends[0].ipv6())), ("far", ends[1].ipv6().into())];
        let services =
            packet_service("web", vip, "443", checked, &v4) + &packet_service("web6", vip6, "443", checked, &v6);
        let relay = start(lab, &services);
        relay.until_all_up();
        let own: [IpAddr; 2] = [lab.balancer().ipv4().into(), lab.balancer().ipv6().into()];
        for origin in &origins {
            let probes = origin.accepted();
            for address in own {
                let by_us = |accepted: &&Accepted| accepted.peer.ip() == address && accepted.peer.port() >= 61_000;
                assert!(probes.iter().any(|accepted| by_us(&accepted)), "from {address}: {probes:?}");
            }
        }
        for (vip, own) in [IpAddr::from(vip), vip6.into()].into_iter().zip(own) {
            let peers = [0; 4].map(|_| visit(lab.client(), (vip, 443)).peer);
            assert!(peers.iter().all(|peer| peer.ip() == own && peer.port() < 61_000), "{peers:?}");
        }
        let [near, far] = origins;
        far.stop();
        relay.until("nobody listens behind the other arm", |status| {
            let servers = status.services.iter().flat_map(|service| &service.servers);
            servers.filter(|server| server.reason == "port 443: connection refused").count() == 2
        });
        assert_eq!(relay.server("web", "near").health, HealthStatus::Up);
        near.stop();
        relay.stop();
    });
}

#[test]
fn t_34_datagrams_of_checks_reach_servers_behind_either_arm() {
    in_lab(t_34_datagrams_of_checks_reach_servers_behind_either_arm, Topology::Bridged, 1, |lab| {
        let ends = [lab.client(), lab.server(1)];
        let v4 = [("near", IpAddr::from(ends[0].ipv4())), ("far", ends[1].ipv4().into())];
        let v6 = [("near", IpAddr::from(ends[0].ipv6())), ("far", ends[1].ipv6().into())];
        let vips = [IpAddr::from(lab.free_vip(100)), lab.free_vip6(100).into()];
        let checks = ["check = \"ping\"", "check = \"udp\", ports = 514, no_answer = \"passes\""];
        let services = checks.iter().zip(["443", "444"]).map(|(check, port)| {
            let keys = format!(
                "source = \"interface\"\nhealth = {{ {check}, interval = \"100ms\", timeout = \"500ms\", rise = 1, fall = 1 }}"
            );
            let name = |family: &str| format!("{family}-{port}");
            packet_service(&name("old"), vips[0], port, &keys, &v4) + &packet_service(&name("new"), vips[1], port, &keys, &v6)
        });
        let listen = |end: &Host| end.run(|| UdpSocket::bind("[::]:514")).expect("a thread").expect("a socket");
        let [_near, far] = ends.map(listen);
        let relay = start(lab, &services.collect::<String>());
        relay.until_all_up();
        drop(far);
        relay.until("nobody listens behind the other arm", |status| {
            let servers = status.services.iter().flat_map(|service| &service.servers);
            servers.filter(|server| server.reason == "port 514: connection refused").count() == 2
        });
        for name in ["old-443", "new-443"] {
            assert_eq!(relay.server(name, "far").health, HealthStatus::Up, "{name} asks by echo");
        }
        for name in ["old-444", "new-444"] {
            assert_eq!(relay.server(name, "near").health, HealthStatus::Up, "{name}");
        }
        relay.stop();
    });
}

#[test]
fn t_34_a_half_nat_server_answers_across_the_bridge() {
    in_lab(t_34_a_half_nat_server_answers_across_the_bridge, Topology::Bridged, 1, |lab| {
        // A client of another network on the same link, which the server reaches by its router: the client's host at its other address.
        let far: IpAddr = Ipv4Addr::new(10, 99, 0, 7).into();
        lab.client().add_address(far).expect("an address of the far client");
        let vip = lab.free_vip(100);
        let way = Route {
            destination: ("10.99.0.0".parse().expect("a network"), 24),
            gateway: Some(lab.client().ipv4().into()),
            link: "back".into(),
        };
        lab.server(1).links().expect("netlink").add_route(&way).expect("a route");
        let _origin = Origin::tcp(lab.server(1), 443);
        let half = "forwarding = \"half-nat\"\nclient_networks = [\"10.99.0.0/24\"]";
        let config = bridge(lab).replace("addresses = [", "addresses = [\"10.99.0.1/24\", ");
        let web = packet_service("web", vip, "443", half, &ipv4(lab.servers()));
        let relay = subject!().start(lab.balancer(), &(config + &web));
        for _ in 0..4 {
            let mut connection = Connection::open_from(lab.client(), far, (vip, 443)).expect("a connection");
            assert_eq!(connection.greeting().expect("a greeting").peer.ip(), far);
            connection.echo(&[7; 200_000]).expect("an echo");
            connection.close().expect("an end");
        }
        // And the same server without us.
        let mut direct = Connection::open_from(lab.client(), far, (lab.server(1).ipv4(), 443)).expect("a connection");
        assert_eq!(direct.greeting().expect("a greeting").peer.ip(), far);
        direct.close().expect("an end");
        // In fragments, which Towpath has to put together to see that they are none of its own.
        let ear = lab.client().run(|| UdpSocket::bind((far, 0))).expect("a thread").expect("a socket");
        ear.set_read_timeout(Some(PATIENCE)).expect("PATIENCE is not zero");
        let to = ear.local_addr().expect("an address");
        let said: Vec<u8> = (0..8_000_u16).map(|number| number as u8).collect();
        let say = || UdpSocket::bind((lab.server(1).ipv4(), 0)).and_then(|socket| socket.send_to(&said, to));
        lab.server(1).run(say).expect("a thread").expect("a datagram sent");
        let mut heard = [0; 9_000];
        let (length, from) = ear.recv_from(&mut heard).expect("a datagram");
        assert_eq!((&heard[..length], from.ip()), (&said[..], lab.server(1).ipv4().into()));
        assert_eq!(relay.service("web").accepted, 4);
        relay.stop();
    });
}

#[test]
fn t_34_a_loop_is_said_and_does_not_drown_the_service() {
    in_lab(t_34_a_loop_is_said_and_does_not_drown_the_service, Topology::Bridged, 2, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let relay = start(lab, &full_nat(lab));
        visit(lab.client(), (lab.free_vip(100), 443));
        // A second cable between the two sides: client and server-1 become switches without spanning tree.
        let far = std::fs::File::open(lab.server(1).network_file()).expect("the lab lives");
        lab.client().links().expect("netlink").create_veth("second", "second", &far).expect("a cable");
        for (host, first) in [(lab.client(), "front"), (lab.server(1), "back")] {
            let mut links = host.links().expect("netlink");
            links.create_bridge("switch").expect("a switch");
            for port in [first, "second"] {
                links.enslave(port, "switch").expect("a port");
                links.set_up(port).expect("a port");
            }
            links.set_up("switch").expect("a switch");
        }
        relay.until("the loop is noticed", is_looped);
        relay.until("our own frames come back", |status| drops(status, "bridge_returned") > 0);
        relay.until("the loop is said", |status| {
            status.events.iter().any(|event| event.line().contains("bridge farm: calm → looped"))
        });
        // Whoever is not part of the loop is served on.
        visit(lab.server(2), (lab.free_vip(100), 443));
        lab.client().links().expect("netlink").remove("second").expect("a cable to cut");
        relay.until("the loop is over", |status| !is_looped(status));
        relay.stop();
    });
}

#[test]
fn an_arm_with_an_address_of_the_kernels_is_refused_with_the_way_out() {
    in_lab(an_arm_with_an_address_of_the_kernels_is_refused_with_the_way_out, Topology::Bridged, 1, |lab| {
        let own = lab.balancer().ipv4();
        lab.balancer().links().expect("netlink").add_address("back", own.into(), 24).expect("an address");
        let refusal = subject!().refuse(lab.balancer(), &(bridge(lab) + &full_nat(lab)));
        assert_eq!(refusal.code, Some(1), "{}", refusal.text);
        assert!(refusal.text.contains(&format!("ip addr del {own}/24 dev back")), "{}", refusal.text);
    });
}
