//! The router between real TCP stacks: what belongs to no service crosses as it is, beside services.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};

use towpath_sys::link::Route;
use towpath_tests::{
    Connection, Host, Origin, PATIENCE, Subject, TestLab, Topology, ask_by_udp, bulk, eventually, in_lab, ipv4,
    packet_service, subject, who,
};

/// So that a lab takes little memory.
const LIMITS: &str = "[limits]\nflows = 16384\n";

const ROUTER: &str = "[router]\nenabled = true\n";

/// Starts a router; clients know the way to the servers' network, and the kernel forwards nothing.
fn start(lab: &TestLab, rest: &str) -> Subject {
    let [front, back] = lab.balancer().ports() else { panic!("a balancer with two arms") };
    let ways = [
        (IpAddr::from(back.ipv4), 24, IpAddr::from(front.ipv4)),
        (IpAddr::from(back.ipv6), 64, IpAddr::from(front.ipv6)),
    ];
    for (network, prefix, gateway) in ways {
        let route = Route { destination: (network, prefix), gateway: Some(gateway), link: "front".to_owned() };
        lab.client().links().expect("netlink").add_route(&route).expect("a route");
    }
    for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        lab.balancer().set_sysctl(key, "0").expect("a sysctl");
    }
    subject!().start(lab.balancer(), &format!("{LIMITS}{ROUTER}{rest}"))
}

fn routed(relay: &Subject) -> u64 {
    relay.status().workers.iter().map(|worker| worker.packets["frames_routed"]).sum()
}

/// Both addresses of a host.
fn addresses(host: &Host) -> [IpAddr; 2] {
    [host.ipv4().into(), host.ipv6().into()]
}

/// Opens, is greeted, echoes, closes; says from where the origin saw us.
#[track_caller]
fn visit(client: &Host, to: SocketAddr) -> IpAddr {
    let mut connection = Connection::open(client, to).unwrap_or_else(|error| panic!("{to}: {error}"));
    let greeting = connection.greeting().unwrap_or_else(|error| panic!("{to}: {error}"));
    connection.echo(&[7; 20_000]).unwrap_or_else(|error| panic!("{to}: {error}"));
    connection.close().unwrap_or_else(|error| panic!("{to}: {error}"));
    greeting.peer.ip()
}

#[test]
fn t_02_servers_reach_others_through_the_balancer_before_there_is_any_vip() {
    in_lab(t_02_servers_reach_others_through_the_balancer_before_there_is_any_vip, Topology::TwoArm, 2, |lab| {
        let _directory = Origin::tcp(lab.client(), 135);
        let relay = start(lab, "");
        for server in lab.servers() {
            for (own, other) in addresses(server).into_iter().zip(addresses(lab.client())) {
                assert_eq!(visit(server, (other, 135).into()), own, "the source is unchanged");
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
            assert_eq!(targets.map(|to| visit(lab.client(), to)), [own, full.into(), own]);
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
fn bulk_crosses_both_ways_where_one_link_is_smaller() {
    in_lab(bulk_crosses_both_ways_where_one_link_is_smaller, Topology::TwoArm, 1, |lab| {
        // What is sent in segments of 1,460 octets does not fit: the balancer says so, and both ends hear it.
        lab.balancer().links().expect("netlink").set_mtu("back", 1_300).expect("an MTU");
        let relay = start(lab, "");
        for at in addresses(lab.server(1)) {
            let listener = lab.server(1).run(|| TcpListener::bind((at, 443))).expect("a thread").expect("a listener");
            let client = lab.client().run(|| TcpStream::connect((at, 443))).expect("a thread").expect("a connection");
            let (server, peer) = listener.accept().expect("a connection");
            assert!(addresses(lab.client()).contains(&peer.ip()));
            for stream in [&client, &server] {
                stream.set_read_timeout(Some(PATIENCE)).expect("not zero");
                stream.set_write_timeout(Some(PATIENCE)).expect("not zero");
            }
            bulk::exchange(&client, &server, 8 << 20);
        }
        relay.until("the sender was told", |status| {
            status.workers.iter().map(|worker| worker.packets["icmp_errors_made"]).sum::<u64>() >= 2
        });
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
        assert_eq!(visit(lab.server(1), (lab.client().ipv4(), 135).into()), IpAddr::from(server));
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
fn a_kernel_that_forwards_too_is_refused() {
    in_lab(a_kernel_that_forwards_too_is_refused, Topology::TwoArm, 1, |lab| {
        lab.balancer().set_sysctl("net.ipv4.ip_forward", "1").expect("a sysctl");
        let refusal = subject!().refuse(lab.balancer(), &format!("{LIMITS}{ROUTER}"));
        assert_eq!(refusal.code, Some(1), "{}", refusal.text);
        let told = "sysctl -w net.ipv4.ip_forward=0";
        assert!(refusal.text.contains(told), "`{told}` is missing in\n{}", refusal.text);
    });
}
