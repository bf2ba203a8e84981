//! VIPs and servers on tagged networks of one trunk (T-33), between real stacks: the kernel of the balancer has no part in them.

use std::net::{IpAddr, TcpListener};

use towpath_tests::trunk::{PRIORITY, TRUNK, Trunk, VLANS};
use towpath_tests::{
    Connection, Origin, PATIENCE, Subject, TestLab, Topology, bulk, in_lab, ipv4, ipv6, packet_service, subject, visit,
};

/// Clients on the first VLAN, servers on the second; Towpath is the router of both.
fn trunk(lab: &TestLab) -> String {
    let [clients, servers] = [lab.client(), lab.server(1)].map(|host| {
        let [a, b, c, _] = host.ipv4().octets();
        let mut v6 = host.ipv6().segments();
        v6[7] = 1;
        format!("addresses = [\"{a}.{b}.{c}.1/24\", \"{}/64\"]", std::net::Ipv6Addr::from(v6))
    });
    format!(
        "[limits]\nflows = 16384\n[[interface]]\nname = \"{TRUNK}\"\n[[interface.vlan]]\nid = {}\nname = \"clients\"\n{clients}\n\
         [[interface.vlan]]\nid = {}\nname = \"servers\"\n{servers}\n",
        VLANS[0], VLANS[1]
    )
}

fn pool(address: impl Into<IpAddr>) -> String {
    format!("source = {{ pool = [\"{}\"] }}", address.into())
}

/// What all rings have counted.
fn counted(relay: &Subject, counter: &str) -> u64 {
    relay.status().workers.iter().map(|worker| worker.packets[counter]).sum()
}

#[test]
fn t_33_vips_and_servers_on_tagged_networks_are_served_and_keep_their_priority() {
    in_lab(t_33_vips_and_servers_on_tagged_networks_are_served_and_keep_their_priority, Topology::TwoArm, 1, |lab| {
        let wire = Trunk::lay(lab);
        let _origin = Origin::tcp(lab.server(1), 443);
        let (full, half, facing) = (lab.free_vip(100), lab.free_vip(102), lab.free_vip(103));
        let (full6, half6) = (lab.free_vip6(0x100), lab.free_vip6(0x102));
        let half_nat = "forwarding = \"half-nat\"";
        let config = trunk(lab)
            + &packet_service("full", full, "443", &pool(lab.free_snat(101)), &ipv4(lab.servers()))
            + &packet_service("full6", full6, "443", &pool(lab.free_snat6(0x101)), &ipv6(lab.servers()))
            + &packet_service("half", half, "443", half_nat, &ipv4(lab.servers()))
            + &packet_service("half6", half6, "443", half_nat, &ipv6(lab.servers()))
            + &packet_service("facing", facing, "443", "source = \"interface\"", &ipv4(lab.servers()));
        let relay = subject!().start(lab.balancer(), &config);
        for _ in 0..5 {
            assert_eq!(visit(lab.client(), (full, 443)).peer.ip(), IpAddr::from(lab.free_snat(101)));
            assert_eq!(visit(lab.client(), (full6, 443)).peer.ip(), IpAddr::from(lab.free_snat6(0x101)));
            assert_eq!(visit(lab.client(), (half, 443)).peer.ip(), IpAddr::from(lab.client().ipv4()));
            assert_eq!(visit(lab.client(), (half6, 443)).peer.ip(), IpAddr::from(lab.client().ipv6()));
            // Towpath's own address on the servers' VLAN.
            assert_eq!(visit(lab.client(), (facing, 443)).peer.ip(), IpAddr::from(lab.free_snat(1)));
        }
        let seen = wire.seen();
        let is_kept = |vlan| seen.contains(&(vlan, PRIORITY));
        assert!(VLANS.into_iter().all(is_kept), "what goes from one VLAN to the other keeps its priority: {seen:?}");
        // Both families of both hosts, each on its own network, with one hardware address.
        let neighbours = relay.status().neighbours;
        assert_eq!((neighbours["known"], neighbours["duplicates"], neighbours["lost"]), (4, 0, 0), "{neighbours:?}");
        relay.stop();
    });
}

#[test]
fn bulk_goes_both_ways_over_a_trunk_in_super_packets() {
    in_lab(bulk_goes_both_ways_over_a_trunk_in_super_packets, Topology::TwoArm, 1, |lab| {
        let _wire = Trunk::lay(lab);
        let (vip, vip6) = (lab.free_vip(100), lab.free_vip6(0x100));
        let config = trunk(lab)
            + &packet_service("old", vip, "443", &pool(lab.free_snat(101)), &ipv4(lab.servers()))
            + &packet_service("new", vip6, "443", "forwarding = \"half-nat\"", &ipv6(lab.servers()));
        let relay = subject!().start(lab.balancer(), &config);
        let listener = lab.server(1).run(|| TcpListener::bind("[::]:443")).expect("a thread").expect("a listener");
        let bytes = 32 << 20;
        for vip in [IpAddr::from(vip), vip6.into()] {
            let client = Connection::open(lab.client(), (vip, 443)).expect("somebody serves");
            let client = client.stream().try_clone().expect("a descriptor");
            let (server, _) = listener.accept().expect("a connection");
            server.set_read_timeout(Some(PATIENCE)).expect("not zero");
            bulk::exchange(&client, &server, bytes);
        }
        let status = relay.until("all is counted", |status| {
            status.services.iter().all(|service| service.bytes_from_client >= bytes && service.bytes_to_client >= bytes)
        });
        // Cut into segments it would have been 90,000 and more.
        let frames: u64 = status.workers.iter().map(|worker| worker.packets["frames"]).sum();
        assert!(frames < 60_000, "{frames} frames for {} octets", 4 * bytes);
        for counter in ["send_too_large", "send_refused", "received_tagged", "received_unknown"] {
            assert_eq!(counted(&relay, counter), 0, "{counter}");
        }
        relay.stop();
    });
}

#[test]
fn health_checks_reach_servers_on_a_vlan_from_our_own_address() {
    in_lab(health_checks_reach_servers_on_a_vlan_from_our_own_address, Topology::TwoArm, 1, |lab| {
        let _wire = Trunk::lay(lab);
        let origin = Origin::tcp(lab.server(1), 443);
        let (vip, vip6) = (lab.free_vip(100), lab.free_vip6(0x100));
        let checked = |address: IpAddr| {
            format!(
                "{}\nhealth = {{ check = \"tcp\", interval = \"100ms\", timeout = \"2s\", rise = 1, fall = 1 }}",
                pool(address)
            )
        };
        let config = trunk(lab)
            + &packet_service("old", vip, "443", &checked(lab.free_snat(101).into()), &ipv4(lab.servers()))
            + &packet_service("new", vip6, "443", &checked(lab.free_snat6(0x101).into()), &ipv6(lab.servers()));
        let relay = subject!().start(lab.balancer(), &config);
        relay.until_all_up();
        let probes = origin.accepted();
        for own in [IpAddr::from(lab.free_snat(1)), lab.free_snat6(1).into()] {
            let by_us = |accepted: &&towpath_tests::Accepted| accepted.peer.ip() == own;
            let ports: Vec<u16> = probes.iter().filter(by_us).map(|accepted| accepted.peer.port()).collect();
            assert!(
                !ports.is_empty() && ports.iter().all(|&port| port >= 61_000),
                "from {own}: {ports:?} of {probes:?}"
            );
        }
        visit(lab.client(), (vip, 443));
        visit(lab.client(), (vip6, 443));
        origin.stop();
        relay.until("nobody listens, and both services say why", |status| {
            let servers = status.services.iter().flat_map(|service| &service.servers);
            servers.map(|server| (server.health, server.reason.as_str())).all(|(health, reason)| {
                health == towpath_engine::status::HealthStatus::Down && reason == "port 443: connection refused"
            })
        });
        let _origin = Origin::tcp(lab.server(1), 443);
        relay.until_all_up();
        // A server that has gone from the wire.
        lab.server(1).link_down("back").expect("a plug to pull");
        relay.until("nobody answers", |status| {
            let servers = status.services.iter().flat_map(|service| &service.servers);
            servers.map(|server| server.reason.as_str()).all(|reason| reason == "port 443: no answer within 2 s")
        });
        relay.stop();
    });
}
