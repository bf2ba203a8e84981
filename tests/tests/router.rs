//! The router between real TCP stacks: what belongs to no service crosses as it is, beside services.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use towpath_sys::link::Route;
use towpath_tests::{
    Bulk, Connection, Host, Origin, PATIENCE, Segment, Subject, TestLab, Topology, ask_by_udp, in_lab, ipv4,
    packet_service, subject, visit, who,
};

/// So that a lab takes little memory.
const LIMITS: &str = "[limits]\nflows = 16384\n";

const ROUTER: &str = "[router]\nenabled = true\n";

/// Starts a router; clients know the way to the servers, and the kernel forwards nothing.
fn start(lab: &TestLab, rest: &str) -> Subject {
    for (to, gateway) in
        lab.servers().iter().flat_map(|host| addresses(host).into_iter().zip(addresses(lab.balancer())))
    {
        let destination = (to, if to.is_ipv4() { 32 } else { 128 });
        let route = Route { destination, gateway: Some(gateway), link: "front".to_owned() };
        lab.client().links().expect("netlink").add_route(&route).expect("a route");
    }
    for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        lab.balancer().set_sysctl(key, "0").expect("a sysctl");
    }
    subject!().start(lab.balancer(), &format!("{LIMITS}{ROUTER}{rest}"))
}

/// Both addresses of a host.
fn addresses(host: &Host) -> [IpAddr; 2] {
    [host.ipv4().into(), host.ipv6().into()]
}

#[test]
fn t_02_servers_reach_others_through_the_balancer_before_there_is_any_vip() {
    in_lab(t_02_servers_reach_others_through_the_balancer_before_there_is_any_vip, Topology::TwoArm, 2, |lab| {
        let _directory = Origin::tcp(lab.client(), 135);
        let relay = start(lab, "");
        for server in lab.servers() {
            for (own, other) in addresses(server).into_iter().zip(addresses(lab.client())) {
                assert_eq!(visit(server, (other, 135)).peer.ip(), own, "the source is unchanged");
            }
            // Nobody listens there: the host's own refusal comes through.
            let refused = Connection::open(server, (lab.client().ipv4(), 136)).expect_err("nobody listens");
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        }
        relay.until("what was routed is counted", |status| {
            status.workers.iter().all(|worker| worker.packets["flows_opened"] == 0)
                && status.workers.iter().any(|worker| worker.packets["frames_routed"] > 0)
        });
        relay.stop();
    });
}

#[test]
fn t_19_a_drain_in_the_balancer_does_not_touch_direct_clients() {
    in_lab(t_19_a_drain_in_the_balancer_does_not_touch_direct_clients, Topology::TwoArm, 2, |lab| {
        let vip = lab.free_vip(100);
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let config = |admin: &str| {
            let service = packet_service("web", vip, "443", "forwarding = \"half-nat\"", &ipv4(lab.servers()));
            service.replacen("name = \"server-1\"\n", &format!("name = \"server-1\"\nadmin = \"{admin}\"\n"), 1)
        };
        let mut relay = start(lab, &config("ready"));
        let direct = (lab.server(1).ipv4(), 443);
        let mut open = Connection::open(lab.client(), direct).expect("a direct connection");
        assert_eq!(open.greeting().expect("a greeting").name, "server-1");
        relay.reload(&format!("{LIMITS}{ROUTER}{}", config("drain"))).expect("a drain is taken");
        for _ in 0..6 {
            assert_eq!(who(lab.client(), (vip, 443)), "server-2", "no new client of the service");
            assert_eq!(who(lab.client(), direct), "server-1", "a new direct one");
        }
        open.echo(b"still there").expect("the direct connection goes on");
        relay.reload(&format!("{LIMITS}{ROUTER}{}", config("halt"))).expect("a halt is taken");
        open.echo(b"still there").expect("a halt ends connections of the service only");
        relay.stop();
    });
}

#[test]
fn t_20_udp_passes_by_the_vip_and_directly_the_same_way_both_ways() {
    in_lab(t_20_udp_passes_by_the_vip_and_directly_the_same_way_both_ways, Topology::TwoArm, 1, |lab| {
        let vip = lab.free_vip(100);
        let stun = "protocol = \"udp\"\nforwarding = \"half-nat\"";
        let _edge = [3478, 50_000].map(|port| Origin::udp(lab.server(1), port));
        let _client = Origin::udp(lab.client(), 50_000);
        let relay = start(lab, &packet_service("stun", vip, "3478", stun, &ipv4(lab.servers())));
        let (client, server) = (lab.client(), lab.server(1));
        let own = IpAddr::from(client.ipv4());
        for length in [1, 100, 1_200, 1_400] {
            let datagram = vec![0x5a; length];
            assert_eq!(ask_by_udp(client, own, (vip, 3478), &datagram).peer.ip(), own, "by the VIP");
            for port in [3478, 50_000] {
                for (from, to) in addresses(client).into_iter().zip(addresses(server)) {
                    assert_eq!(ask_by_udp(client, from, (to, port), &datagram).peer.ip(), from, "directly");
                }
            }
            let (from, to) = (IpAddr::from(server.ipv4()), (own, 50_000));
            assert_eq!(ask_by_udp(server, from, to, &datagram).peer.ip(), from, "the server begins");
        }
        relay.stop();
    });
}

#[test]
fn t_21_a_server_is_reached_by_its_vip_and_directly() {
    in_lab(t_21_a_server_is_reached_by_its_vip_and_directly, Topology::TwoArm, 1, |lab| {
        let (half, full) = (lab.free_vip(100), lab.free_vip(101));
        let _origin = Origin::tcp(lab.server(1), 443);
        let services = packet_service("half", half, "443", "forwarding = \"half-nat\"", &ipv4(lab.servers()))
            + &packet_service("full", full, "443", "source = \"vip\"", &ipv4(lab.servers()));
        let relay = start(lab, &services);
        let own = IpAddr::from(lab.client().ipv4());
        let targets =
            [half.into(), full.into(), lab.server(1).ipv4().into()].map(|ip: IpAddr| SocketAddr::new(ip, 443));
        for _ in 0..5 {
            assert_eq!(targets.map(|to| visit(lab.client(), to).peer.ip()), [own, full.into(), own]);
        }
        // All at once, for a while.
        let mut open = targets.map(|to| Connection::open(lab.client(), to).expect("a connection"));
        for connection in &mut open {
            connection.greeting().expect("a greeting");
        }
        for _ in 0..20 {
            for connection in &mut open {
                connection.echo(&[3; 50_000]).expect("an echo");
            }
        }
        relay.stop();
    });
}

#[test]
fn t_32_replies_of_a_service_leave_by_its_next_hop() {
    in_lab(t_32_replies_of_a_service_leave_by_its_next_hop, Topology::OneArm, 3, |lab| {
        let [server, outer, inner] = [1, 2, 3].map(|n| lab.server(n));
        let far = IpAddr::from([198, 51, 100, 7]);
        lab.client().add_address(far).expect("an address");
        let route = |host: &Host, destination: (IpAddr, u8), gateway: &Host| {
            let gateway = Some(gateway.ipv4().into());
            let route = Route { destination, gateway, link: "lan".to_owned() };
            host.links().expect("netlink").add_route(&route).expect("a route");
        };
        let everything = (IpAddr::from([0, 0, 0, 0]), 0);
        route(lab.balancer(), everything, outer);
        route(server, everything, lab.balancer());
        for gateway in [outer, inner] {
            route(gateway, (far, 32), lab.client());
            gateway.set_sysctl("net.ipv4.conf.all.send_redirects", "0").expect("a sysctl");
            gateway.set_sysctl("net.ipv4.ip_forward", "1").expect("a sysctl");
        }
        lab.balancer().set_sysctl("net.ipv4.ip_forward", "0").expect("a sysctl");
        let _origin = Origin::tcp(server, 443);
        let by_inner = format!("next_hop = \"{}\"", inner.ipv4());
        let half = "forwarding = \"half-nat\"\nclient_networks = [\"198.51.100.0/24\"]";
        let cases = [
            ("routes", lab.free_vip(100), "source = \"vip\"".to_owned(), outer),
            ("full", lab.free_vip(101), format!("source = \"vip\"\n{by_inner}"), inner),
            ("half", lab.free_vip(102), format!("{half}\n{by_inner}"), inner),
        ];
        let servers = [("server-1", IpAddr::from(server.ipv4()))];
        let services: String =
            cases.iter().map(|(name, vip, keys, _)| packet_service(name, *vip, "443", keys, &servers)).collect();
        let relay = subject!().start(lab.balancer(), &format!("{LIMITS}{services}"));
        for (name, vip, _, gateway) in cases {
            let mut tap = lab.client().capture("lan").expect("a tap");
            let to = SocketAddr::from((vip, 443));
            let mut connection = Connection::open_from(lab.client(), far, to).expect("a connection");
            connection.greeting().expect("a greeting");
            connection.echo(&[7; 300_000]).expect("an echo");
            connection.close().expect("an end");
            let mac = gateway.links().expect("netlink").find("lan").expect("its link").hardware_address;
            let mut replies = 0;
            while let Some(frame) = tap.take().expect("the tap works") {
                if Segment::of(&frame).is_some_and(|segment| segment.source == to) {
                    replies += 1;
                    assert_eq!(frame.bytes[6..12], mac, "{name}: by another gateway");
                }
            }
            assert!(replies > 3, "{name}: {replies}");
            // Who is on the link needs no gateway.
            let mut tap = lab.client().capture("lan").expect("a tap");
            if name != "half" {
                visit(lab.client(), to);
                let own = lab.balancer().links().expect("netlink").find("lan").expect("its link").hardware_address;
                while let Some(frame) = tap.take().expect("the tap works") {
                    let is_reply = Segment::of(&frame).is_some_and(|segment| segment.source == to);
                    assert!(!is_reply || frame.bytes[6..12] == own, "{name}: by a gateway");
                }
            }
        }
        relay.stop();
    });
}

#[test]
fn static_routes_lead_where_the_kernel_s_do_not() {
    in_lab(static_routes_lead_where_the_kernel_s_do_not, Topology::TwoArm, 1, |lab| {
        // A network behind the server that only the file knows of.
        let behind = IpAddr::from([198, 51, 100, 9]);
        lab.server(1).add_address(behind).expect("an address");
        let balancer = lab.balancer().port("front").expect("a port").ipv4;
        let way = Route { destination: (behind, 32), gateway: Some(balancer.into()), link: "front".to_owned() };
        lab.client().links().expect("netlink").add_route(&way).expect("a route");
        let _origin = Origin::tcp(lab.server(1), 443);
        let relay = start(lab, &format!("[[route]]\nto = \"198.51.100.0/24\"\nvia = \"{}\"\n", lab.server(1).ipv4()));
        assert_eq!(visit(lab.client(), (behind, 443)).peer.ip(), IpAddr::from(lab.client().ipv4()));
        relay.stop();
    });
}

#[test]
fn a_sender_hears_of_the_smaller_link_ahead() {
    in_lab(a_sender_hears_of_the_smaller_link_ahead, Topology::TwoArm, 1, |lab| {
        let relay = start(lab, "");
        // Towards the server, then towards the client: the balancer's own end of that link is the smaller one, and no handshake says so.
        for (number, link) in ["back", "front"].into_iter().enumerate() {
            let mut links = lab.balancer().links().expect("netlink");
            links.set_mtu(link, 1_300).expect("an MTU");
            for at in addresses(lab.server(1)) {
                let listener =
                    lab.server(1).run(|| TcpListener::bind((at, 443))).expect("a thread").expect("a listener");
                let client =
                    lab.client().run(|| TcpStream::connect((at, 443))).expect("a thread").expect("a connection");
                let (server, _) = listener.accept().expect("a connection");
                let (mut from, mut to) = if link == "back" { (client, server) } else { (server, client) };
                from.set_write_timeout(Some(PATIENCE)).expect("not zero");
                to.set_read_timeout(Some(PATIENCE)).expect("not zero");
                let received = std::thread::spawn(move || Bulk::steady(0).receive(&mut to));
                let sent = Bulk::steady(1).send(&mut from, 4 << 20).expect("everything is taken");
                drop(from);
                let received = received.join().expect("the receiver").expect("a stream that ends with FIN");
                assert_eq!(received, sent, "{link} {at}");
            }
            relay.until("both families were told", |status| {
                let made = status.workers.iter().map(|worker| worker.packets["icmp_errors_made"]);
                made.sum::<u64>() >= 2 * (number as u64 + 1)
            });
            links.set_mtu(link, 1_500).expect("an MTU");
        }
        relay.stop();
    });
}

#[test]
fn rules_deny_by_interface_and_servers_still_open_connections() {
    in_lab(rules_deny_by_interface_and_servers_still_open_connections, Topology::TwoArm, 1, |lab| {
        let _origins = [443, 8443].map(|port| Origin::tcp(lab.server(1), port));
        let _directory = Origin::tcp(lab.client(), 135);
        let rules = "[[router.rule]]\naction = \"allow\"\nprotocol = \"tcp\"\nports = 443\n\
                     [[router.rule]]\naction = \"deny\"\nfrom_interface = \"front\"\nto_interface = \"back\"\n\
                     [[interface]]\nname = \"front\"\n[[interface]]\nname = \"back\"\n";
        let relay = start(lab, rules);
        let server = lab.server(1).ipv4();
        assert_eq!(who(lab.client(), (server, 443)), "server-1");
        assert_eq!(visit(lab.server(1), (lab.client().ipv4(), 135)).peer.ip(), IpAddr::from(server));
        let probe =
            lab.client().run(|| UdpSocket::bind((lab.client().ipv4(), 0))).expect("a thread").expect("a socket");
        probe.send_to(b"may I?", (server, 8443)).expect("our own kernel takes it");
        relay.until("the datagram was denied", |status| {
            status.workers.iter().filter_map(|worker| worker.drops.get("rule_denied")).sum::<u64>() == 1
        });
        relay.stop();
    });
}

#[test]
fn rules_of_a_reload_are_about_interfaces_of_the_start() {
    in_lab(rules_of_a_reload_are_about_interfaces_of_the_start, Topology::TwoArm, 1, |lab| {
        let named = "[[interface]]\nname = \"front\"\n[[interface]]\nname = \"late\"\n";
        let mut relay = start(lab, named);
        let mut links = lab.balancer().links().expect("netlink");
        links.create_bridge("late").expect("a link");
        links.set_up("late").expect("a link");
        links.add_address("late", Ipv4Addr::new(10, 99, 0, 1).into(), 24).expect("an address");
        let mut rule = |name: &str| {
            let rule = format!("[[router.rule]]\naction = \"deny\"\nfrom_interface = \"{name}\"\n");
            relay.reload(&format!("{LIMITS}{ROUTER}{rule}{named}"))
        };
        rule("front").expect("an interface of the start");
        let refusal = rule("late").expect_err("it is not routed to or from yet");
        assert!(refusal.contains("interface late is not routed to or from"), "{refusal}");
        relay.stop();
    });
}

#[test]
fn a_kernel_that_forwards_too_is_refused() {
    in_lab(a_kernel_that_forwards_too_is_refused, Topology::TwoArm, 1, |lab| {
        lab.balancer().set_sysctl("net.ipv4.ip_forward", "1").expect("a sysctl");
        let refusal = subject!().refuse(lab.balancer(), &format!("{LIMITS}{ROUTER}"));
        assert_eq!(refusal.code, Some(1), "{}", refusal.text);
        let told = "sysctl -w net.ipv4.ip_forward=0";
        assert!(refusal.text.contains(told), "`{told}` is missing in\n{}", refusal.text);
    });
}
