//! Services of the packet plane between IPv4 and IPv6, with real stacks on both sides.

use std::collections::HashSet;
use std::net::IpAddr;

use towpath_engine::Status;
use towpath_sys::host::available_cpus;
use towpath_tests::{
    Connection, Origin, TestLab, Topology, ask_by_udp, in_lab, ipv4, ipv6, packet_service, subject, visit,
};

/// So that a lab takes little memory.
const LIMITS: &str = "[limits]\nflows = 16384\n";

fn counted(status: &Status, counter: &str) -> u64 {
    status.workers.iter().map(|worker| worker.packets[counter]).sum()
}

/// Two servers behind each VIP, one of either version, which see an address of theirs.
fn serves_both(lab: &TestLab) {
    let vips: [IpAddr; 2] = [lab.free_vip(100).into(), lab.free_vip6(0x100).into()];
    let snat: [IpAddr; 2] = [lab.free_snat(101).into(), lab.free_snat6(0x101).into()];
    let _origins = [1, 2].map(|n| (Origin::tcp(lab.server(n), 443), Origin::udp(lab.server(n), 3478)));
    let servers: [(&str, IpAddr); 2] = [("one", lab.server(1).ipv4().into()), ("two", lab.server(2).ipv6().into())];
    let keys = format!("balance = \"round-robin\"\nsource = {{ pool = [\"{}\", \"{}\"] }}", snat[0], snat[1]);
    let udp = format!("protocol = \"udp\"\n{keys}");
    let service = |name: &str, vip: IpAddr| {
        packet_service(&format!("{name} tcp"), vip, "443", &keys, &servers)
            + &packet_service(&format!("{name} udp"), vip, "3478", &udp, &servers)
    };
    let services = service("old", vips[0]) + &service("new", vips[1]);
    let relay = subject!().start(lab.balancer(), &format!("{LIMITS}{services}"));
    let clients: [IpAddr; 2] = [lab.client().ipv4().into(), lab.client().ipv6().into()];
    for (vip, client) in vips.into_iter().zip(clients) {
        let mut seen = HashSet::new();
        for number in 0..10u8 {
            let tcp = visit(lab.client(), (vip, 443));
            let datagram = vec![number; 1 + usize::from(number) * 140];
            let udp = ask_by_udp(lab.client(), client, (vip, 3478), &datagram);
            for (protocol, greeting) in [("tcp", tcp), ("udp", udp)] {
                // From the address of the server's own version.
                let is_of_v6 = greeting.name == lab.server(2).name();
                assert_eq!(greeting.peer.ip(), snat[usize::from(is_of_v6)], "{greeting:?}");
                seen.insert((protocol, greeting.name));
            }
        }
        assert_eq!(seen.len(), 4, "{vip}: both servers, by TCP and by UDP: {seen:?}");
    }
    let status = relay.until("all connections have ended", |status| {
        status.services.iter().map(|service| service.terminations["client_closed"]).sum::<u64>() == 20
    });
    assert_eq!(counted(&status, "resets_made"), 0);
    relay.stop();
}

#[test]
fn servers_of_both_versions_serve_clients_of_both_over_two_arms() {
    in_lab(servers_of_both_versions_serve_clients_of_both_over_two_arms, Topology::TwoArm, 2, serves_both);
}

#[test]
fn servers_of_both_versions_serve_clients_of_both_over_one_arm() {
    in_lab(servers_of_both_versions_serve_clients_of_both_over_one_arm, Topology::OneArm, 2, serves_both);
}

#[test]
fn servers_see_the_address_of_the_interface_in_their_version() {
    in_lab(servers_see_the_address_of_the_interface_in_their_version, Topology::TwoArm, 1, |lab| {
        let vips: [IpAddr; 2] = [lab.free_vip(100).into(), lab.free_vip6(0x100).into()];
        let _origin = Origin::tcp(lab.server(1), 443);
        let facing = "source = { pool = \"interface\", ports = \"20000-20999\" }";
        let services = packet_service("upwards", vips[0], "443", facing, &ipv6(lab.servers()))
            + &packet_service("downwards", vips[1], "443", facing, &ipv4(lab.servers()));
        let relay = subject!().start(lab.balancer(), &format!("{LIMITS}{services}"));
        let back = lab.balancer().ports().last().expect("a balancer has a network");
        for (vip, own) in vips.into_iter().zip([IpAddr::from(back.ipv6), back.ipv4.into()]) {
            for _ in 0..5 {
                assert_eq!(visit(lab.client(), (vip, 443)).peer.ip(), own);
            }
        }
        relay.stop();
    });
}

#[test]
fn workers_hand_each_other_what_becomes_of_the_other_version() {
    in_lab(workers_hand_each_other_what_becomes_of_the_other_version, Topology::TwoArm, 1, |lab| {
        // Of neighbouring virtual shards: all of them belong to one worker.
        const PORTS: usize = 24;
        let vips: [IpAddr; 2] = [lab.free_vip(100).into(), lab.free_vip6(0x100).into()];
        let _origin = Origin::tcp(lab.server(1), 443);
        let source = |snat: IpAddr| format!("source = {{ pool = [\"{snat}\"], ports = \"20000-20023\" }}");
        let upwards = packet_service("up", vips[0], "443", &source(lab.free_snat6(0x101).into()), &ipv6(lab.servers()));
        let downwards =
            packet_service("down", vips[1], "443", &source(lab.free_snat(101).into()), &ipv4(lab.servers()));
        let cpus: Vec<usize> = available_cpus().expect("the machine has CPUs").into_iter().cycle().take(2).collect();
        let relay = subject!().start_on(lab.balancer(), &format!("{LIMITS}{upwards}{downwards}"), &cpus);
        let mut noted = 0;
        for vip in vips {
            let open = |n| {
                let mut connection =
                    Connection::open(lab.client(), (vip, 443)).unwrap_or_else(|error| panic!("{n}: {error}"));
                connection.greeting().unwrap_or_else(|error| panic!("connection {n}: {error}"));
                connection
            };
            let mut held: Vec<Connection> = (0..PORTS).map(open).collect();
            // Super-packets both ways.
            for connection in &mut held {
                connection.echo(&[7; 300_000]).expect("everything comes back");
            }
            let by_note = |status: &Status| counted(status, "frames_handed_by_note");
            let status = relay.until("frames are handed over", |status| by_note(status) > noted);
            noted = by_note(&status);
            for connection in held {
                connection.close().expect("a clean end");
            }
            relay.until("nothing is open", |status| status.services.iter().all(|service| service.connections == 0));
        }
        relay.stop();
    });
}
