//! The packet plane between real TCP stacks: every way of forwarding, both families, what it answers itself, and what it leaves to
//! the kernel.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use towpath_engine::Status;
use towpath_engine::status::{HealthStatus, ServiceStatus};
use towpath_sys::host;
use towpath_sys::link::Route;
use towpath_sys::silence::Silence;
use towpath_tests::wire::captured;
use towpath_tests::{
    Connection, Host, Origin, PATIENCE, Subject, TestLab, Topology, ask_by_udp, bulk, eventually, in_lab, ipv4, ipv6,
    packet_service, service, subject, visit, who,
};

/// So that a lab takes little memory.
const LIMITS: &str = "[limits]\nflows = 16384\n";

fn pool(addresses: &[impl ToString]) -> String {
    let quoted: Vec<String> = addresses.iter().map(|address| format!("\"{}\"", address.to_string())).collect();
    format!("source = {{ pool = [{}] }}", quoted.join(", "))
}

fn start(lab: &TestLab, services: &str) -> Subject {
    subject!().start(lab.balancer(), &format!("{LIMITS}{services}"))
}

fn terminations(relay: &Subject, termination: &str) -> u64 {
    relay.service("web").terminations[termination]
}

#[test]
fn t_03_full_nat_shows_servers_the_pool_and_never_the_client() {
    in_lab(t_03_full_nat_shows_servers_the_pool_and_never_the_client, Topology::TwoArm, 1, |lab| {
        let vip = lab.free_vip(100);
        let snat = [lab.free_snat(101), lab.free_snat(102)];
        let origin = Origin::tcp(lab.server(1), 443);
        let mut tap = lab.server(1).capture("back").expect("a tap");
        let relay = start(lab, &packet_service("web", vip, "443", &pool(&snat), &ipv4(lab.servers())));
        // So many that chance does not leave one address out.
        for _ in 0..40 {
            let greeting = visit(lab.client(), (vip, 443));
            assert_eq!(greeting.local, SocketAddr::from((lab.server(1).ipv4(), 443)));
        }
        // Returns find the worker that has the flow, or hardly one of so many would have been served.
        let ended = relay.until("all connections have ended, on all workers", |status| {
            let on_all = status.workers.iter().all(|worker| worker.packets["flows_opened"] > 0);
            on_all && status.services[0].connections == 0
        });
        let web = &ended.services[0];
        assert_eq!((web.accepted, web.opened, web.terminations["client_closed"]), (40, 40, 40), "{web:?}");
        relay.stop();
        drop(origin);

        let server = SocketAddr::from((lab.server(1).ipv4(), 443));
        let snat: BTreeSet<IpAddr> = snat.into_iter().map(IpAddr::from).collect();
        let segments = captured(&mut tap);
        let sources: BTreeSet<IpAddr> =
            segments.iter().filter(|segment| segment.opens()).map(|segment| segment.source.ip()).collect();
        assert_eq!(sources, snat);
        for segment in segments.iter().filter(|s| s.source == server || s.destination == server) {
            let far = if segment.source == server { segment.destination } else { segment.source };
            assert!(snat.contains(&far.ip()), "{segment:?}");
        }
    });
}

#[test]
fn one_arm_with_the_vip_as_source_serves_by_one_address() {
    in_lab(one_arm_with_the_vip_as_source_serves_by_one_address, Topology::OneArm, 2, |lab| {
        let vip = lab.free_vip(100);
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let relay = start(lab, &packet_service("web", vip, "443", "source = \"vip\"", &ipv4(lab.servers())));
        for _ in 0..10 {
            assert_eq!(visit(lab.client(), (vip, 443)).peer.ip(), IpAddr::from(vip));
        }
        relay.stop();
    });
}

#[test]
fn t_31_servers_see_the_interface_or_the_vip_as_the_service_says() {
    in_lab(t_31_servers_see_the_interface_or_the_vip_as_the_service_says, Topology::TwoArm, 2, |lab| {
        let (by_vip, by_interface) = (lab.free_vip(100), lab.free_vip(101));
        let _origins = [1, 2].map(|n| (Origin::tcp(lab.server(n), 443), Origin::udp(lab.server(n), 3478)));
        let facing = "source = { pool = \"interface\", ports = \"20000-20999\" }";
        let services = packet_service("vip", by_vip, "443", "source = \"vip\"", &ipv4(lab.servers()))
            + &packet_service("interface", by_interface, "443", facing, &ipv4(lab.servers()))
            + &packet_service(
                "udp",
                by_interface,
                "3478",
                "protocol = \"udp\"\nsource = \"interface\"",
                &ipv4(lab.servers()),
            );
        let relay = start(lab, &services);
        let own = IpAddr::from(lab.balancer().ports().last().expect("a balancer has a network").ipv4);
        // Kernel TCP of the same address, beside the ports that are leased there: one that was there before, and new ones.
        let inside = lab.server(1);
        let listener = lab.balancer().run(|| TcpListener::bind((own, 15_000))).expect("a thread").expect("a listener");
        let mut kernels =
            inside.run(|| TcpStream::connect((own, 15_000))).expect("a thread").expect("the kernel's own");
        let (mut accepted, _) = listener.accept().expect("a connection");
        for _ in 0..20 {
            assert_eq!(visit(lab.client(), (by_vip, 443)).peer.ip(), IpAddr::from(by_vip));
            let peer = visit(lab.client(), (by_interface, 443)).peer;
            assert_eq!(peer.ip(), own);
            assert!((20_000..21_000).contains(&peer.port()), "{peer}");
            let answer =
                ask_by_udp(lab.client(), lab.client().ipv4().into(), (by_interface, 3478), b"whom do you see?");
            assert_eq!(answer.peer.ip(), own);
            assert!((16_384..32_768).contains(&answer.peer.port()), "{}", answer.peer);
            // To the servers from the kernel's own ports.
            who(lab.balancer(), (lab.server(2).ipv4(), 443));
        }
        kernels.write_all(b"undisturbed").expect("everything is taken");
        accepted.set_read_timeout(Some(PATIENCE)).expect("not zero");
        accepted.read_exact(&mut [0; 11]).expect("what was said");
        relay.stop();
    });
}

#[test]
fn ports_that_the_kernel_gives_away_itself_are_not_leased_at_its_address() {
    in_lab(ports_that_the_kernel_gives_away_itself_are_not_leased_at_its_address, Topology::TwoArm, 1, |lab| {
        let facing = "source = { pool = \"interface\", ports = \"30000-40000\" }";
        let config = packet_service("web", lab.free_vip(100), "443", facing, &ipv4(lab.servers()));
        let refusal = subject!().refuse(lab.balancer(), &config);
        assert_eq!(refusal.code, Some(1), "{}", refusal.text);
        let told = "are leased here and given out by the kernel too";
        assert!(refusal.text.contains(told), "`{told}` is missing in\n{}", refusal.text);
    });
}

#[test]
fn t_01_clients_reach_servers_in_turn() {
    in_lab(t_01_clients_reach_servers_in_turn, Topology::TwoArm, 2, |lab| {
        let vip = lab.free_vip(100);
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 5061));
        let keys = pool(&[lab.free_snat(101)]);
        let relay = start(lab, &packet_service("web", vip, "5061", &keys, &ipv4(lab.servers())));
        let served: Vec<String> = (0..20).map(|_| who(lab.client(), (vip, 5061))).collect();
        assert!(served.windows(2).all(|pair| pair[0] != pair[1]), "{served:?}");
        relay.stop();
    });
}

#[test]
fn ipv6_is_forwarded_like_ipv4() {
    in_lab(ipv6_is_forwarded_like_ipv4, Topology::TwoArm, 2, |lab| {
        let vip = lab.free_vip6(0x100);
        let snat = lab.free_snat6(0x101);
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let relay = start(lab, &packet_service("web", vip, "443", &pool(&[snat]), &ipv6(lab.servers())));
        let mut served = BTreeSet::new();
        for _ in 0..10 {
            let greeting = visit(lab.client(), (vip, 443));
            assert_eq!(greeting.peer.ip(), IpAddr::from(snat));
            served.insert(greeting.name);
        }
        assert_eq!(served.len(), 2, "{served:?}");
        relay.stop();
    });
}

#[test]
fn t_03_half_nat_shows_servers_the_client() {
    in_lab(t_03_half_nat_shows_servers_the_client, Topology::TwoArm, 2, |lab| {
        lab.balancer().set_sysctl("net.ipv4.ip_forward", "0").expect("a sysctl");
        let vip = lab.free_vip(100);
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let half = packet_service("web", vip, "443", "forwarding = \"half-nat\"", &ipv4(lab.servers()));
        let relay = start(lab, &half);
        for _ in 0..10 {
            assert_eq!(visit(lab.client(), (vip, 443)).peer.ip(), IpAddr::from(lab.client().ipv4()));
        }
        relay.stop();
    });
}

/// The server has the VIP, too, but does not say so.
fn have_silently(server: &Host, vip: Ipv4Addr) {
    for key in ["net.ipv4.conf.all.arp_ignore", "net.ipv4.conf.all.arp_announce"] {
        server.set_sysctl(key, if key.ends_with("ignore") { "1" } else { "2" }).expect("a sysctl");
    }
    server.links().expect("netlink").add_address("lo", vip.into(), 32).expect("an address");
}

#[test]
fn direct_server_return_checks_whether_servers_have_the_vip() {
    in_lab(direct_server_return_checks_whether_servers_have_the_vip, Topology::OneArm, 2, |lab| {
        let (vip, vip6) = (lab.free_vip(100), lab.free_vip6(0x100));
        for server in lab.servers() {
            have_silently(server, vip);
            server.links().expect("netlink").add_address("lo", vip6.into(), 128).expect("an address");
        }
        let origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let mut taps = [1, 2].map(|n| lab.server(n).capture(&lab.server(n).ports()[0].link).expect("a tap"));
        let keys = "forwarding = \"dsr\"\n\
                    health = { check = \"tcp\", interval = \"100ms\", timeout = \"300ms\", rise = 1, fall = 2 }";
        let services = packet_service("old", vip, "443", keys, &ipv4(lab.servers()))
            + &packet_service("new", vip6, "443", keys, &ipv6(lab.servers()));
        let relay = start(lab, &services);
        relay.until_all_up();
        visit(lab.client(), (vip, 443));
        visit(lab.client(), (vip6, 443));

        // It still has its own addresses.
        lab.server(2).links().expect("netlink").remove_address("lo", vip.into(), 32).expect("an address");
        relay.until("the second server lacks one of the VIPs", |status| {
            let health = |service: &ServiceStatus| (service.servers[0].health, service.servers[1].health);
            status.services.iter().all(|service| match service.name.as_str() {
                "old" => health(service) == (HealthStatus::Up, HealthStatus::Down),
                _ => health(service) == (HealthStatus::Up, HealthStatus::Up),
            })
        });
        assert_eq!(relay.server("old", "server-2").reason, "port 443: no answer within 300 ms");
        have_silently(lab.server(2), vip);
        relay.until_all_up();
        relay.stop();

        let by_us = [IpAddr::from(lab.balancer().ipv4()), lab.balancer().ipv6().into()];
        for (origin, tap) in origins.iter().zip(&mut taps) {
            let checks: Vec<_> = origin.accepted().into_iter().filter(|a| by_us.contains(&a.peer.ip())).collect();
            let asked: BTreeSet<IpAddr> = checks.iter().map(|accepted| accepted.local.ip()).collect();
            assert_eq!(asked, BTreeSet::from([vip.into(), vip6.into()]), "{checks:?}");
            // The kernel, which knows nothing of these connections, has ended none.
            let ended: Vec<_> = captured(tap).into_iter().filter(|s| by_us.contains(&s.source.ip()) && s.rst).collect();
            assert!(ended.is_empty(), "{ended:?}");
        }
    });
}

#[test]
fn direct_server_return_leaves_address_and_port_as_they_are() {
    in_lab(direct_server_return_leaves_address_and_port_as_they_are, Topology::OneArm, 2, |lab| {
        let vip = lab.free_vip(100);
        lab.servers().iter().for_each(|server| have_silently(server, vip));
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let relay = start(lab, &packet_service("web", vip, "443", "forwarding = \"dsr\"", &ipv4(lab.servers())));
        let mut served = BTreeSet::new();
        for _ in 0..10 {
            let greeting = visit(lab.client(), (vip, 443));
            assert_eq!(
                (greeting.peer.ip(), greeting.local),
                (lab.client().ipv4().into(), SocketAddr::from((vip, 443)))
            );
            served.insert(greeting.name);
        }
        assert_eq!(served.len(), 2, "{served:?}");
        relay.stop();
    });
}

#[test]
fn t_04_a_server_reaches_its_own_vip_whichever_server_is_picked() {
    in_lab(t_04_a_server_reaches_its_own_vip_whichever_server_is_picked, Topology::OneArm, 2, |lab| {
        let (full, half) = (lab.free_vip(100), lab.free_vip(101));
        lab.balancer().set_sysctl("net.ipv4.ip_forward", "0").expect("a sysctl");
        let keys = pool(&[lab.free_snat(110)]);
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let services = packet_service("full", full, "443", &keys, &ipv4(lab.servers()))
            + &packet_service("half", half, "443", &format!("forwarding = \"half-nat\"\n{keys}"), &ipv4(lab.servers()));
        let relay = start(lab, &services);
        for vip in [full, half] {
            let served: BTreeSet<String> = (0..4).map(|_| visit(lab.server(1), (vip, 443)).name).collect();
            assert_eq!(served.len(), 2, "{vip}: {served:?}");
        }
        relay.stop();
    });
}

/// A one-arm lab whose servers have us as gateway to one client that is elsewhere; that client's address.
fn remote_client(lab: &TestLab) -> IpAddr {
    let remote = Ipv4Addr::new(203, 0, 113, 5);
    lab.client().add_address(remote.into()).expect("an address");
    lab.balancer().set_sysctl("net.ipv4.ip_forward", "0").expect("a sysctl");
    let route = |host: &Host, gateway: Ipv4Addr| {
        let link = host.ports()[0].link.clone();
        let route = Route { destination: (remote.into(), 32), gateway: Some(gateway.into()), link };
        host.links().expect("netlink").add_route(&route).expect("a route");
    };
    route(lab.balancer(), lab.client().ipv4());
    lab.servers().iter().for_each(|server| route(server, lab.balancer().ipv4()));
    remote.into()
}

#[test]
fn t_29_one_arm_half_nat_serves_remote_clients_and_refuses_those_beside_the_servers() {
    in_lab(
        t_29_one_arm_half_nat_serves_remote_clients_and_refuses_those_beside_the_servers,
        Topology::OneArm,
        2,
        |lab| {
            let vip = lab.free_vip(100);
            let remote = remote_client(lab);
            let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
            let half = |keys: &str| {
                let keys = format!("forwarding = \"half-nat\"\n{keys}");
                packet_service("web", vip, "443", &keys, &ipv4(lab.servers()))
            };
            // Where nobody says that clients come from elsewhere, or says that they come from the servers' own network.
            let beside = format!("client_networks = [\"{}/24\"]", lab.free_vip(0));
            for (keys, code) in [("", 1), (beside.as_str(), 3)] {
                let refusal = subject!().refuse(lab.balancer(), &half(keys));
                assert_eq!(refusal.code, Some(code), "{}", refusal.text);
                assert!(refusal.text.contains("share a network"), "{}", refusal.text);
            }
            let relay = start(lab, &half("client_networks = [\"203.0.113.0/24\"]"));
            for _ in 0..10 {
                let mut connection = Connection::open_from(lab.client(), remote, (vip, 443)).expect("somebody serves");
                assert_eq!(connection.greeting().expect("a greeting").peer.ip(), remote);
                connection.echo(&[7; 20_000]).expect("an echo");
                connection.close().expect("a clean end");
            }
            // One that is beside them all the same is told at once, and counted.
            let refused = Connection::open(lab.client(), (vip, 443)).expect_err("its server would answer it directly");
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
            relay.until("it is counted", |status| {
                status.workers.iter().filter_map(|worker| worker.drops.get("hairpin_unserved")).sum::<u64>() > 0
            });
            relay.stop();
        },
    );
}

#[test]
fn t_29_with_a_pool_clients_beside_the_servers_get_a_source_address_and_others_keep_theirs() {
    in_lab(
        t_29_with_a_pool_clients_beside_the_servers_get_a_source_address_and_others_keep_theirs,
        Topology::OneArm,
        2,
        |lab| {
            let (vip, snat) = (lab.free_vip(100), lab.free_snat(110));
            let remote = remote_client(lab);
            let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
            let keys = format!("forwarding = \"half-nat\"\n{}", pool(&[snat]));
            let relay = start(lab, &packet_service("web", vip, "443", &keys, &ipv4(lab.servers())));
            for _ in 0..10 {
                assert_eq!(visit(lab.client(), (vip, 443)).peer.ip(), IpAddr::from(snat));
                let mut connection = Connection::open_from(lab.client(), remote, (vip, 443)).expect("somebody serves");
                assert_eq!(connection.greeting().expect("a greeting").peer.ip(), remote);
            }
            relay.stop();
        },
    );
}

/// Sends SYNs to a VIP from a host that claims to be others: `sources` addresses of 198.18.0.0/15, `each` ports of each.
fn flood(host: &Host, vip: Ipv4Addr, sources: u32, each: u16) {
    let send = || -> std::io::Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
        for source in 0..sources {
            let source = Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 0, 1).to_bits() + source);
            for port in 0..each {
                let syn = etherparse::PacketBuilder::ipv4(source.octets(), vip.octets(), 64)
                    .tcp(20_000 + port, 443, 1_000, 1_024)
                    .syn();
                let mut packet = Vec::with_capacity(syn.size(0));
                syn.write(&mut packet, &[]).map_err(std::io::Error::other)?;
                socket.send_to(&packet, &SocketAddr::from((vip, 0)).into())?;
            }
        }
        Ok(())
    };
    host.run(send).expect("a thread").expect("our own kernel takes it");
}

#[test]
fn a_flood_of_syns_takes_nothing_from_those_who_are_served() {
    in_lab(a_flood_of_syns_takes_nothing_from_those_who_are_served, Topology::TwoArm, 1, |lab| {
        // So many half-open flows the one worker has, and a quarter of them each source.
        const HALF_OPEN: u64 = 2048;
        let vip = lab.free_vip(100);
        let claimed = Route {
            destination: (Ipv4Addr::new(198, 18, 0, 0).into(), 15),
            gateway: Some(lab.client().ipv4().into()),
            link: lab.balancer().ports()[0].link.clone(),
        };
        lab.balancer().links().expect("netlink").add_route(&claimed).expect("a route");
        let _origin = Origin::tcp(lab.server(1), 443);
        let keys = pool(&[lab.free_snat(101)]) + "\nconnect_timeout = \"2s\"";
        let service = packet_service("web", vip, "443", &keys, &ipv4(lab.servers()));
        let relay = start(lab, &format!("[runtime]\nworkers = [0]\n{service}"));
        let mut held: Vec<Connection> =
            (0..20).map(|_| Connection::open(lab.client(), (vip, 443)).expect("somebody serves")).collect();
        for connection in &mut held {
            connection.greeting().expect("a greeting");
        }
        let drops = |reason: &str| relay.status().workers[0].drops.get(reason).copied().unwrap_or(0);
        let flood_until = |reason: &str, sources, each| {
            // What a ring has no room for is lost, as on any wire.
            eventually(reason, || {
                flood(lab.client(), vip, sources, each);
                (drops(reason) > 0).then_some(())
            });
        };

        // One source has its share and no more: others are served beside it.
        flood_until("half_open_source", 1, 1000);
        let flows = relay.status().workers[0].flows;
        assert!(u64::from(flows) <= HALF_OPEN / 4 + held.len() as u64, "{flows}");
        assert_eq!(drops("half_open_full"), 0);
        for _ in 0..5 {
            visit(lab.client(), (vip, 443));
        }

        // More sources than there is room: whoever has a connection does not notice.
        flood_until("half_open_full", 4000, 1);
        for connection in &mut held {
            connection.echo(b"undisturbed").expect("those who are served go on");
        }
        assert!(relay.status().workers[0].flows <= HALF_OPEN as u32 + 30, "{}", relay.status().workers[0].flows);
        // A new one comes in as soon as the first of the flood are given up: its kernel sends the SYN again by itself.
        visit(lab.client(), (vip, 443));
        for connection in &mut held {
            connection.echo(b"undisturbed").expect("those who are served go on");
        }
        relay.until("nothing of the flood is left", |status| status.services[0].connections == held.len() as u32);
        assert!(terminations(&relay, "connect_timed_out") >= HALF_OPEN);
        for connection in held {
            connection.close().expect("a clean end");
        }
        relay.stop();
    });
}

#[test]
fn udp_is_forwarded_both_ways_in_both_families() {
    in_lab(udp_is_forwarded_both_ways_in_both_families, Topology::TwoArm, 2, |lab| {
        let (vip, vip6) = (lab.free_vip(100), lab.free_vip6(0x100));
        let (snat, snat6) = (lab.free_snat(101), lab.free_snat6(0x101));
        let _origins = [1, 2].map(|n| Origin::udp(lab.server(n), 3478));
        let udp = |pool: String| format!("protocol = \"udp\"\nbalance = \"round-robin\"\n{pool}");
        let services = packet_service("old", vip, "3478", &udp(pool(&[snat])), &ipv4(lab.servers()))
            + &packet_service("new", vip6, "3478", &udp(pool(&[snat6])), &ipv6(lab.servers()));
        let relay = start(lab, &services);
        for number in 0..20u8 {
            let datagram = vec![number; 1 + usize::from(number) * 60];
            let old = ask_by_udp(lab.client(), lab.client().ipv4().into(), (vip, 3478), &datagram);
            assert_eq!(old.peer.ip(), IpAddr::from(snat));
            let new = ask_by_udp(lab.client(), lab.client().ipv6().into(), (vip6, 3478), &datagram);
            assert_eq!(new.peer.ip(), IpAddr::from(snat6));
        }
        relay.stop();
    });
}

#[test]
fn t_10_source_ports_run_out_exactly_and_are_counted() {
    in_lab(t_10_source_ports_run_out_exactly_and_are_counted, Topology::TwoArm, 1, |lab| {
        let vip = lab.free_vip(100);
        let snat = [lab.free_snat(101), lab.free_snat(102)];
        let _origin = Origin::tcp(lab.server(1), 443);
        let config = |addresses: &[Ipv4Addr]| {
            let quoted: Vec<String> = addresses.iter().map(|ip| format!("\"{ip}\"")).collect();
            let source = format!("source = {{ pool = [{}], ports = \"20000-20003\" }}", quoted.join(", "));
            let service = packet_service("web", vip, "443", &source, &ipv4(lab.servers()));
            // One worker has all ports of so small a range.
            format!("[runtime]\nworkers = [0]\n{LIMITS}{service}")
        };
        for addresses in [&snat[..1], &snat[..]] {
            let relay = subject!().start(lab.balancer(), &config(addresses));
            let mut held: Vec<Connection> = (0..4 * addresses.len())
                .map(|n| {
                    let mut connection = Connection::open(lab.client(), (vip, 443)).expect("a port is left");
                    connection.greeting().unwrap_or_else(|error| panic!("connection {n}: {error}"));
                    connection
                })
                .collect();
            let refused = lab
                .client()
                .run(|| TcpStream::connect_timeout(&(vip, 443).into(), Duration::from_millis(300)))
                .expect("a thread");
            let refused = refused.expect_err("one more than there are ports");
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "told at once, not by silence");
            eventually("the refusal is counted", || (terminations(&relay, "out_of_source_ports") > 0).then_some(()));
            for connection in &mut held {
                connection.echo(b"still here").expect("those that have a port keep it");
            }
            // The next one needs no restart.
            held.pop().map(Connection::close).expect("one was open").expect("a clean end");
            eventually("a port is free", || Connection::open(lab.client(), (vip, 443)).ok());
            relay.stop();
        }
    });
}

#[test]
fn a_full_flow_table_refuses_and_counts_the_next_and_has_room_again_when_one_ends() {
    in_lab(
        a_full_flow_table_refuses_and_counts_the_next_and_has_room_again_when_one_ends,
        Topology::TwoArm,
        1,
        |lab| {
            const FLOWS: u64 = 1024;
            host::raise_nofile_limit().expect("two descriptors for each");
            let vip = lab.free_vip(100);
            let listener =
                lab.server(1).run(|| TcpListener::bind("0.0.0.0:443")).expect("a thread").expect("a listener");
            let service = packet_service("web", vip, "443", &pool(&[lab.free_snat(101)]), &ipv4(lab.servers()));
            let config = format!("[runtime]\nworkers = [0]\n[limits]\nflows = {FLOWS}\n{service}");
            let relay = subject!().start(lab.balancer(), &config);
            let connect = || {
                let connect = || TcpStream::connect_timeout(&(vip, 443).into(), PATIENCE);
                lab.client().run(connect).expect("a thread")
            };
            let mut held: Vec<(TcpStream, TcpStream)> = (0..FLOWS)
                .map(|n| {
                    let client = connect().unwrap_or_else(|error| panic!("connection {n}: {error}"));
                    (client, listener.accept().expect("a connection").0)
                })
                .collect();
            let refused = connect().expect_err("one more than there is room for");
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
            let full = relay.until("the refusal is counted", |status| status.limits.flows.refused > 0);
            assert_eq!((full.limits.flows.used, full.limits.flows.max), (FLOWS, FLOWS));
            // One after the other: at the same time the server would keep its end, and so we ours.
            let (client, mut server) = held.pop().expect("there are some");
            drop(client);
            assert_eq!(server.read(&mut [0; 1]).expect("a clean end"), 0);
            drop(server);
            held.push((
                eventually("there is room again", || connect().ok()),
                listener.accept().expect("a connection").0,
            ));
            for (client, server) in &mut held {
                client.write_all(b"still here").expect("a connection");
                server.read_exact(&mut [0; 10]).expect("those that are served stay so");
            }
            relay.stop();
        },
    );
}

#[test]
fn a_server_that_answers_no_question_for_its_address_is_counted_and_served_once_it_does() {
    in_lab(
        a_server_that_answers_no_question_for_its_address_is_counted_and_served_once_it_does,
        Topology::TwoArm,
        1,
        |lab| {
            let vip = lab.free_vip(100);
            let _origin = Origin::tcp(lab.server(1), 443);
            lab.server(1).link_down("back").expect("a plug to pull");
            let service = packet_service("web", vip, "443", &pool(&[lab.free_snat(101)]), &ipv4(lab.servers()));
            let relay = start(lab, &service);
            let counted = |name: &'static str| {
                move |status: &Status| status.workers.iter().map(|worker| worker.packets[name]).sum::<u64>()
            };
            thread::scope(|scope| {
                let waiting = scope.spawn(|| visit(lab.client(), (vip, 443)));
                relay.until("a SYN has waited", |status| counted("frames_held")(status) > 0);
                relay.until("it was given up", |status| counted("frames_given_up")(status) > 0);
                lab.server(1).link_up("back").expect("a plug to put back");
                waiting.join().expect("its next SYN goes on");
            });
            relay.stop();
        },
    );
}

#[test]
fn t_05_a_server_that_refuses_is_evicted_and_comes_back() {
    in_lab(t_05_a_server_that_refuses_is_evicted_and_comes_back, Topology::TwoArm, 2, |lab| {
        let vip = lab.free_vip(100);
        let [first, _second] = [1, 2].map(|n| Origin::tcp(lab.server(n), 5061));
        let keys = pool(&[lab.free_snat(101)])
            + "\nbalance = \"round-robin\"\nhealth = { check = \"tcp\", interval = \"300ms\", timeout = \"1s\", rise = 1, fall = 2 }";
        let relay = start(lab, &packet_service("sip", vip, "5061", &keys, &ipv4(lab.servers())));
        relay.until_all_up();
        let mut held: Vec<Connection> =
            (0..2).map(|_| Connection::open(lab.client(), (vip, 5061)).expect("somebody serves")).collect();
        let names: Vec<String> = held.iter_mut().map(|c| c.greeting().expect("a greeting").name).collect();
        let on_second = names.iter().position(|name| name == "server-2").expect("round robin reaches both");
        first.stop();
        relay.until("server-1 is down", |status| status.services[0].servers[0].health == HealthStatus::Down);
        for _ in 0..4 {
            assert_eq!(who(lab.client(), (vip, 5061)), "server-2");
        }
        held[on_second].echo(b"undisturbed").expect("the client of the other server goes on");
        assert!(held[1 - on_second].is_ended(), "the server's own reset reaches its client");
        let _back = Origin::tcp(lab.server(1), 5061);
        relay.until("server-1 is up", |status| status.services[0].servers[0].health == HealthStatus::Up);
        let served: BTreeSet<String> = (0..4).map(|_| who(lab.client(), (vip, 5061))).collect();
        assert_eq!(served.len(), 2, "{served:?}");
        relay.stop();
    });
}

#[test]
fn t_06_a_pulled_cable_evicts_and_new_clients_go_elsewhere() {
    in_lab(t_06_a_pulled_cable_evicts_and_new_clients_go_elsewhere, Topology::TwoArm, 2, |lab| {
        let vip = lab.free_vip(100);
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 5061));
        let keys = pool(&[lab.free_snat(101)])
            + "\nhealth = { check = \"tcp\", interval = \"300ms\", timeout = \"200ms\", rise = 1, fall = 2 }";
        let relay = start(lab, &packet_service("sip", vip, "5061", &keys, &ipv4(lab.servers())));
        relay.until_all_up();
        lab.server(1).link_down("back").expect("a plug to pull");
        relay.until("server-1 is down", |status| status.services[0].servers[0].health == HealthStatus::Down);
        for _ in 0..4 {
            assert_eq!(who(lab.client(), (vip, 5061)), "server-2");
        }
        lab.server(1).link_up("back").expect("a plug to put back");
        relay.until("server-1 is up", |status| status.services[0].servers[0].health == HealthStatus::Up);
        let served: BTreeSet<String> = (0..4).map(|_| who(lab.client(), (vip, 5061))).collect();
        assert_eq!(served.len(), 2, "{served:?}");
        relay.stop();
    });
}

#[test]
fn a_halted_server_loses_its_clients_at_once() {
    in_lab(a_halted_server_loses_its_clients_at_once, Topology::TwoArm, 1, |lab| {
        let vip = lab.free_vip(100);
        let _origin = Origin::tcp(lab.server(1), 443);
        let config = format!(
            "{LIMITS}{}",
            packet_service("web", vip, "443", &pool(&[lab.free_snat(101)]), &ipv4(lab.servers()))
        );
        let mut relay = subject!().start(lab.balancer(), &config);
        let mut held = Connection::open(lab.client(), (vip, 443)).expect("somebody serves");
        held.greeting().expect("a greeting");
        relay.reload(&format!("{config}admin = \"halt\"\n")).expect("a reload takes it");
        assert!(held.is_ended(), "a reset that its kernel believes");
        relay.until("nothing is open", |status| status.services[0].connections == 0);
        assert_eq!(terminations(&relay, "server_halted"), 1);
        relay.stop();
    });
}

#[test]
fn the_kernel_keeps_its_own_ports_of_an_address_of_ours() {
    in_lab(the_kernel_keeps_its_own_ports_of_an_address_of_ours, Topology::TwoArm, 1, |lab| {
        // An address of the kernel with a service on each plane, and somebody else's socket.
        let vip = lab.vip(100);
        let _origins = [443, 8443].map(|port| Origin::tcp(lab.server(1), port));
        let _ssh = Origin::tcp(lab.balancer(), 2222);
        let services = packet_service("web", vip, "443", &pool(&[lab.free_snat(101)]), &ipv4(lab.servers()))
            + &service("relayed", vip, "8443", "", &ipv4(lab.servers()));
        let relay = start(lab, &services);
        for _ in 0..5 {
            for port in [443, 8443] {
                assert_eq!(visit(lab.client(), (vip, port)).name, "server-1");
            }
            assert_eq!(visit(lab.client(), (vip, 2222)).name, "balancer");
        }
        assert_eq!(relay.service("web").opened, 5);
        relay.stop();
        // Silent no more: nobody listens, and the kernel says so.
        let refused = Connection::open(lab.client(), (vip, 443)).expect_err("nobody listens");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn what_a_crash_leaves_behind_is_cleared_by_the_next_start() {
    in_lab(what_a_crash_leaves_behind_is_cleared_by_the_next_start, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let _origin = Origin::tcp(lab.server(1), 443);
        let config = packet_service("web", vip, "443", &pool(&[lab.free_snat(101)]), &ipv4(lab.servers()));
        let relay = start(lab, &config);
        visit(lab.client(), (vip, 443));
        let mut held = Connection::open(lab.client(), (vip, 443)).expect("somebody serves");
        held.greeting().expect("a greeting");
        // Killed, as a crash does.
        drop(relay);
        let stale = || lab.balancer().run(Silence::clear).expect("a thread").expect("nftables can be asked");
        let silent = lab
            .client()
            .run(|| TcpStream::connect_timeout(&(vip, 443).into(), Duration::from_millis(200)))
            .expect("a thread");
        assert_eq!(silent.expect_err("nobody serves").kind(), std::io::ErrorKind::TimedOut, "the rule is still there");
        let relay = start(lab, &config);
        // Whoever was served before need not wait for its own timeouts.
        let lost = held.echo(b"is anybody there?").expect_err("nobody knows it");
        assert_eq!(lost.kind(), std::io::ErrorKind::ConnectionReset);
        visit(lab.client(), (vip, 443));
        relay.stop();
        assert!(!stale(), "a process that ends in order leaves nothing");

        // What is left behind does not keep the stream plane from serving either.
        drop(start(lab, &config));
        let relay = start(lab, &service("web", vip, "443", "", &ipv4(lab.servers())));
        visit(lab.client(), (vip, 443));
        relay.stop();
    });
}

#[test]
fn servers_without_timestamps_take_ports_that_were_used_before() {
    in_lab(servers_without_timestamps_take_ports_that_were_used_before, Topology::TwoArm, 1, |lab| {
        lab.server(1).set_sysctl("net.ipv4.tcp_timestamps", "0").expect("a sysctl");
        let vip = lab.free_vip(100);
        let source = format!("source = {{ pool = [\"{}\"], ports = \"20000-20255\" }}", lab.free_snat(101));
        let _origin = Origin::tcp(lab.server(1), 443);
        let relay = start(lab, &packet_service("web", vip, "443", &source, &ipv4(lab.servers())));
        for _ in 0..200 {
            visit(lab.client(), (vip, 443));
        }
        relay.stop();
    });
}

#[test]
fn the_ocs_example_runs_with_its_twelve_ports_on_one_arm() {
    in_lab(the_ocs_example_runs_with_its_twelve_ports_on_one_arm, Topology::OneArm, 2, |lab| {
        const PORTS: [u16; 12] = [135, 443, 444, 5060, 5061, 5065, 5069, 5071, 5072, 5073, 5074, 8404];
        let _origins: Vec<Origin> =
            lab.servers().iter().flat_map(|server| PORTS.map(|port| Origin::tcp(server, port))).collect();
        let vip = lab.free_vip(100);
        let example = include_str!("../../config/examples/ocs-2007r2.toml");
        let config = example
            .replace("10.0.0.40", &vip.to_string())
            .replace("10.0.1.41", &lab.server(1).ipv4().to_string())
            .replace("10.0.1.42", &lab.server(2).ipv4().to_string());
        let relay = start(lab, &config);
        eventually("the plan tells the memory of the rings", || relay.log().contains("  packet rings ").then_some(()));
        relay.until_all_up();
        for port in PORTS {
            let served: BTreeSet<String> = (0..4).map(|_| visit(lab.client(), (vip, port)).name).collect();
            assert_eq!(served.len(), 2, "port {port}: {served:?}");
        }
        relay.stop();
    });
}

/// Sets offloads of every host of the lab, as ethtool(8) names them.
fn set_offloads(lab: &TestLab, state: &str) {
    for host in lab.hosts() {
        for port in host.ports() {
            let words = ["-K", &port.link, "tx", state, "tso", state, "gso", state, "gro", state];
            let done = host.run(|| std::process::Command::new("ethtool").args(words).output()).expect("a thread");
            let done = done.expect("ethtool is installed");
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
    }
}

fn a_gigabyte_each_way(lab: &TestLab) {
    const BYTES: u64 = 1 << 30;
    let vip = lab.free_vip(100);
    let listener = lab.server(1).run(|| TcpListener::bind("0.0.0.0:443")).expect("a thread").expect("a listener");
    let relay = start(lab, &packet_service("web", vip, "443", &pool(&[lab.free_snat(101)]), &ipv4(lab.servers())));
    let client = Connection::open(lab.client(), (vip, 443)).expect("somebody serves");
    let client = client.stream().try_clone().expect("a descriptor");
    let (server, _) = listener.accept().expect("a connection");
    server.set_read_timeout(Some(PATIENCE)).expect("not zero");
    bulk::exchange(&client, &server, BYTES);
    let status = relay.until("the connection has ended", |status| status.services[0].connections == 0);
    assert!(status.services[0].bytes_from_client >= BYTES, "{:?}", status.services[0]);
    relay.stop();
}

#[test]
fn a_gigabyte_each_way_arrives_whole_as_super_packets() {
    in_lab(a_gigabyte_each_way_arrives_whole_as_super_packets, Topology::TwoArm, 1, a_gigabyte_each_way);
}

#[test]
#[ignore = "needs the Debian package ethtool"]
fn a_gigabyte_each_way_arrives_whole_without_offloads() {
    in_lab(a_gigabyte_each_way_arrives_whole_without_offloads, Topology::TwoArm, 1, |lab| {
        set_offloads(lab, "off");
        a_gigabyte_each_way(lab);
    });
}

#[test]
fn an_interface_that_goes_down_and_up_serves_again() {
    in_lab(an_interface_that_goes_down_and_up_serves_again, Topology::TwoArm, 1, |lab| {
        let vip = lab.free_vip(100);
        let _origin = Origin::tcp(lab.server(1), 443);
        let services = packet_service("web", vip, "443", &pool(&[lab.free_snat(101)]), &ipv4(lab.servers()));
        let mut relay = start(lab, &services);
        let mut held = Connection::open(lab.client(), (vip, 443)).expect("somebody serves");
        held.greeting().expect("a greeting");
        lab.balancer().link_down("front").expect("a plug to pull");
        // What is in force already leads nowhere for a while: that is told, and refuses no reload.
        relay.reload(&format!("{LIMITS}{services}")).expect("a reload that changes nothing");
        lab.balancer().link_up("front").expect("a plug to put back");
        held.echo(b"through the gap").expect("TCP sends again");
        visit(lab.client(), (vip, 443));
        relay.stop();
    });
}

#[test]
fn a_drain_lets_connections_finish_and_takes_no_new_ones() {
    in_lab(a_drain_lets_connections_finish_and_takes_no_new_ones, Topology::TwoArm, 1, |lab| {
        let vip = lab.free_vip(100);
        let _origin = Origin::tcp(lab.server(1), 443);
        let keys = pool(&[lab.free_snat(101)]) + "\ndrain_timeout = \"1h\"";
        let mut relay = start(lab, &packet_service("web", vip, "443", &keys, &ipv4(lab.servers())));
        let mut held = Connection::open(lab.client(), (vip, 443)).expect("somebody serves");
        held.greeting().expect("a greeting");
        relay.terminate();
        eventually("it drains", || (relay.status().phase == "draining").then_some(()));
        let late = lab
            .client()
            .run(|| TcpStream::connect_timeout(&(vip, 443).into(), Duration::from_millis(200)))
            .expect("a thread");
        assert!(late.is_err(), "no new client is taken");
        held.echo(b"not yet finished").expect("a connection from before goes on");
        held.close().expect("a clean end");
        assert_eq!(relay.wait(), Some(0), "{}", relay.log());
    });
}

#[test]
fn a_drain_that_is_over_resets_both_sides() {
    in_lab(a_drain_that_is_over_resets_both_sides, Topology::TwoArm, 1, |lab| {
        let vip = lab.free_vip(100);
        let listener = lab.server(1).run(|| TcpListener::bind("0.0.0.0:443")).expect("a thread").expect("a listener");
        let keys = pool(&[lab.free_snat(101)]) + "\ndrain_timeout = \"300ms\"";
        let mut relay = start(lab, &packet_service("web", vip, "443", &keys, &ipv4(lab.servers())));
        let mut client = Connection::open(lab.client(), (vip, 443)).expect("somebody serves");
        let (mut server, _) = listener.accept().expect("a connection");
        server.set_read_timeout(Some(PATIENCE)).expect("not zero");
        client.stream().write_all(b"hello").expect("everything is taken");
        server.read_exact(&mut [0; 5]).expect("what the client said");
        relay.terminate();
        assert!(client.is_ended(), "the client is told");
        let told = server.read(&mut [0; 1]).expect_err("the server is told");
        assert_eq!(told.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(relay.wait(), Some(0), "{}", relay.log());
    });
}

#[test]
fn an_end_at_once_after_a_drain_resets_every_connection() {
    in_lab(an_end_at_once_after_a_drain_resets_every_connection, Topology::TwoArm, 1, |lab| {
        // Four times their number are more frames than a worker makes in one step.
        const CONNECTIONS: usize = 1000;
        let vip = lab.free_vip(100);
        let to = SocketAddr::from((vip, 443));
        let listener = lab.server(1).run(|| TcpListener::bind("0.0.0.0:443")).expect("a thread").expect("a listener");
        let keys = pool(&[lab.free_snat(101)]) + "\ndrain_timeout = \"1h\"";
        let mut relay = start(lab, &packet_service("web", vip, "443", &keys, &ipv4(lab.servers())));
        let open = || (0..CONNECTIONS).map(|_| TcpStream::connect_timeout(&to, PATIENCE)).collect();
        let (clients, servers) = thread::scope(|scope| {
            let accept = || (0..CONNECTIONS).map(|_| listener.accept().map(|(stream, _)| stream)).collect();
            let accepted = scope.spawn(accept);
            let opened: std::io::Result<Vec<TcpStream>> = lab.client().run(open).expect("a thread");
            let accepted: std::io::Result<Vec<TcpStream>> = accepted.join().expect("a thread");
            (opened.expect("somebody serves"), accepted.expect("connections"))
        });
        relay.terminate();
        let since = relay.until("it drains", |status| status.phase == "draining").uptime_seconds;
        // Longer than an end at once waits for listeners.
        relay.until("it has drained for a while", |status| status.uptime_seconds >= since + 3);
        relay.terminate();
        assert_eq!(relay.wait(), Some(0), "{}", relay.log());
        for mut end in clients.iter().chain(&servers) {
            end.set_read_timeout(Some(PATIENCE)).expect("not zero");
            let told = end.read(&mut [0; 1]).expect_err("nothing was sent");
            assert_eq!(told.kind(), std::io::ErrorKind::ConnectionReset);
        }
    });
}

#[test]
fn half_nat_carries_udp_and_ipv6() {
    in_lab(half_nat_carries_udp_and_ipv6, Topology::TwoArm, 2, |lab| {
        for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            lab.balancer().set_sysctl(key, "0").expect("a sysctl");
        }
        let (vip, vip6) = (lab.free_vip(100), lab.free_vip6(0x100));
        let _origins = [1, 2].map(|n| (Origin::udp(lab.server(n), 3478), Origin::tcp(lab.server(n), 443)));
        let half = "forwarding = \"half-nat\"";
        let services = packet_service("udp", vip, "3478", &format!("{half}\nprotocol = \"udp\""), &ipv4(lab.servers()))
            + &packet_service("six", vip6, "443", half, &ipv6(lab.servers()));
        let relay = start(lab, &services);
        for _ in 0..6 {
            let client = IpAddr::from(lab.client().ipv4());
            assert_eq!(ask_by_udp(lab.client(), client, (vip, 3478), b"whom do you see?").peer.ip(), client);
            assert_eq!(visit(lab.client(), (vip6, 443)).peer.ip(), IpAddr::from(lab.client().ipv6()));
        }
        relay.stop();
    });
}

#[test]
fn a_service_of_all_ports_keeps_each_port() {
    in_lab(a_service_of_all_ports_keeps_each_port, Topology::TwoArm, 2, |lab| {
        const PORTS: [u16; 4] = [21, 135, 5000, 50_123];
        let vip = lab.free_vip(100);
        let _origins: Vec<Origin> =
            lab.servers().iter().flat_map(|server| PORTS.map(|port| Origin::tcp(server, port))).collect();
        let keys = pool(&[lab.free_snat(101)]) + "\npersistence = { by = \"source-ip\" }";
        let relay = start(lab, &packet_service("web", vip, "\"all\"", &keys, &ipv4(lab.servers())));
        let served: BTreeSet<String> = PORTS
            .map(|port| {
                let greeting = visit(lab.client(), (vip, port));
                assert_eq!(greeting.local.port(), port);
                greeting.name
            })
            .into();
        assert_eq!(served.len(), 1, "a client stays with its server on every port: {served:?}");
        // Nobody listens there: the server's own refusal comes through.
        let refused = Connection::open(lab.client(), (vip, 9)).expect_err("nobody listens");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        relay.stop();
    });
}

#[test]
fn a_vip_answers_pings() {
    in_lab(a_vip_answers_pings, Topology::TwoArm, 1, |lab| {
        let vip = lab.free_vip(100);
        let relay = start(lab, &packet_service("web", vip, "443", &pool(&[lab.free_snat(101)]), &ipv4(lab.servers())));
        let ping = |to: Ipv4Addr| {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
            socket.set_read_timeout(Some(Duration::from_millis(500)))?;
            // Echo request, identifier 1, sequence number 1, checksum (RFC 792).
            socket.send_to(&[8, 0, 0xf7, 0xfd, 0, 1, 0, 1], &SocketAddr::from((to, 0)).into())?;
            let mut answer = [0; 64];
            let length = (&socket).read(&mut answer)?;
            std::io::Result::Ok(answer[20..length].to_vec())
        };
        let is_answered = || {
            let answer = lab.client().run(|| ping(vip)).expect("a thread").ok()?;
            (answer == [0, 0, 0xff, 0xfd, 0, 1, 0, 1]).then_some(())
        };
        eventually("the plane answers", is_answered);
        // The kernel answers for an address that it has as well, also if it got it later.
        let mut links = lab.balancer().links().expect("netlink");
        let since = relay.status().uptime_seconds;
        links.add_address("front", vip.into(), 32).expect("an address");
        relay.until("the address has been noticed", |status| status.uptime_seconds >= since + 2);
        eventually("the kernel answers", is_answered);
        links.remove_address("front", vip.into(), 32).expect("the address");
        eventually("the plane answers again", is_answered);
        relay.stop();
    });
}

#[test]
fn an_interface_that_vanishes_and_returns_serves_again() {
    in_lab(an_interface_that_vanishes_and_returns_serves_again, Topology::TwoArm, 1, |lab| {
        let vip = lab.free_vip(100);
        let _origin = Origin::tcp(lab.server(1), 443);
        let relay = start(lab, &packet_service("web", vip, "443", &pool(&[lab.free_snat(101)]), &ipv4(lab.servers())));
        visit(lab.client(), (vip, 443));
        let client = lab.client();
        lab.renew_front();
        eventually("clients are served again", || {
            let to = SocketAddr::from((vip, 443));
            let opened = client.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(200))).expect("a thread");
            opened.is_ok().then_some(())
        });
        visit(lab.client(), (vip, 443));
        relay.stop();
    });
}

#[test]
fn what_the_packet_plane_cannot_do_here_is_refused_with_the_next_step() {
    in_lab(what_the_packet_plane_cannot_do_here_is_refused_with_the_next_step, Topology::TwoArm, 1, |lab| {
        let nowhere =
            packet_service("web", Ipv4Addr::new(192, 0, 2, 1), "443", "source = \"vip\"", &ipv4(lab.servers()));
        let own = IpAddr::from(lab.balancer().ipv4());
        let itself = packet_service("web", lab.free_vip(100), "443", "source = \"vip\"", &[("one", own)]);
        let rows = [
            (nowhere, "no Ethernet interface of this host that is up has a network that holds 192.0.2.1".to_owned()),
            (itself, format!("server {own} is an address of this host")),
        ];
        for (config, told) in rows {
            let refusal = subject!().refuse(lab.balancer(), &config);
            assert_eq!(refusal.code, Some(1), "{}", refusal.text);
            assert!(refusal.text.contains(&told), "`{told}` is missing in\n{}", refusal.text);
        }
    });
}
