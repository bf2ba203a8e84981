//! Health checks: what a failing port takes away, and what checks cost.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use towpath_engine::status::HealthStatus;
use towpath_tests::{Origin, Subject, TestLab, Topology, eventually, in_lab, ipv4, service, subject, who};

const PORTS: [u16; 6] = [135, 443, 444, 5061, 5065, 5069];

fn farm(lab: &TestLab, vip: Ipv4Addr, checked: &str) -> String {
    let keys = format!(
        "balance = \"round-robin\"\n\
         health = {{ check = \"tcp\", ports = {checked}, interval = \"100ms\", timeout = \"1s\", rise = 1, fall = 2 }}"
    );
    service("front-end", vip, &format!("{PORTS:?}"), &keys, &ipv4(lab.servers()))
}

/// Origins on all six ports of both servers: `[server - 1][port]`.
fn origins(lab: &TestLab) -> [Vec<Option<Origin>>; 2] {
    [1, 2].map(|n| PORTS.iter().map(|&port| Some(Origin::tcp(lab.server(n), port))).collect())
}

fn place(port: u16) -> usize {
    PORTS.iter().position(|&p| p == port).expect("one of the six")
}

/// Who serves a port, over some connections.
fn serving(lab: &TestLab, vip: Ipv4Addr, port: u16) -> BTreeSet<String> {
    (0..4).map(|_| who(lab.client(), (vip, port))).collect()
}

fn until(relay: &Subject, server: usize, health: HealthStatus) {
    relay.until(&format!("server-{server} is {health:?}"), |status| {
        status.services.iter().all(|service| service.servers[server - 1].health == health)
    });
}

fn names(servers: &[&str]) -> BTreeSet<String> {
    servers.iter().map(ToString::to_string).collect()
}

#[test]
fn t_35_a_failing_check_port_takes_the_server_out_of_all_six_ports() {
    in_lab(t_35_a_failing_check_port_takes_the_server_out_of_all_six_ports, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let mut origins = origins(lab);
        let relay = subject!().start(lab.balancer(), &farm(lab, vip, "5061"));
        relay.until_all_up();
        for port in PORTS {
            assert_eq!(serving(lab, vip, port), names(&["server-1", "server-2"]), "port {port}");
        }
        origins[0][place(5061)] = None;
        until(&relay, 1, HealthStatus::Down);
        assert_eq!(relay.server("front-end", "server-1").reason, "port 5061: connection refused");
        let redispatched = relay.service("front-end").counters["redispatched"];
        for port in PORTS {
            assert_eq!(serving(lab, vip, port), names(&["server-2"]), "port {port}");
        }
        assert_eq!(relay.service("front-end").counters["redispatched"], redispatched);

        origins[0][place(5061)] = Some(Origin::tcp(lab.server(1), 5061));
        until(&relay, 1, HealthStatus::Up);
        for port in PORTS {
            assert_eq!(serving(lab, vip, port), names(&["server-1", "server-2"]), "port {port}");
        }
        relay.stop();
    });
}

#[test]
fn t_35_a_dead_port_that_is_not_checked_leaves_the_server_in() {
    in_lab(t_35_a_dead_port_that_is_not_checked_leaves_the_server_in, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let mut origins = origins(lab);
        let relay = subject!().start(lab.balancer(), &farm(lab, vip, "5061"));
        relay.until_all_up();
        origins[0][place(443)] = None;
        // Checks have run since, more of them than it takes to evict.
        let checks = || origins[0][place(5061)].as_ref().expect("it lives").accepted().len();
        let before = checks();
        eventually("five more checks", || (checks() >= before + 5).then_some(()));
        assert_eq!(relay.server("front-end", "server-1").health, HealthStatus::Up);
        for port in PORTS {
            // On the dead port redispatch saves the clients, nothing else does.
            let expected = if port == 443 { names(&["server-2"]) } else { names(&["server-1", "server-2"]) };
            assert_eq!(serving(lab, vip, port), expected, "port {port}");
        }
        assert!(relay.service("front-end").counters["redispatched"] > 0);
        relay.stop();
    });
}

#[test]
fn t_36_either_port_of_a_group_takes_the_server_out() {
    in_lab(t_36_either_port_of_a_group_takes_the_server_out, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let mut origins = origins(lab);
        let relay = subject!().start(lab.balancer(), &farm(lab, vip, "[5061, 444]"));
        relay.until_all_up();
        for port in [5061, 444] {
            origins[0][place(port)] = None;
            until(&relay, 1, HealthStatus::Down);
            assert_eq!(relay.server("front-end", "server-1").reason, format!("port {port}: connection refused"));
            assert_eq!(serving(lab, vip, 443), names(&["server-2"]));
            origins[0][place(port)] = Some(Origin::tcp(lab.server(1), port));
            until(&relay, 1, HealthStatus::Up);
            assert_eq!(serving(lab, vip, 443), names(&["server-1", "server-2"]));
        }
        relay.stop();
    });
}

#[test]
fn a_server_of_two_services_and_two_workers_is_checked_once_and_the_checks_are_no_load() {
    in_lab(
        a_server_of_two_services_and_two_workers_is_checked_once_and_the_checks_are_no_load,
        Topology::TwoArm,
        2,
        |lab| {
            const INTERVAL: Duration = Duration::from_millis(100);
            const CHECKS: usize = 15;
            let (vip, other_vip) = (lab.vip(100), lab.vip(101));
            let checked = [1, 2].map(|n| Origin::tcp(lab.server(n), 5061));
            let _served = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
            let keys = "balance = \"weighted-least-connections\"\n\
                 health = { check = \"tcp\", ports = 5061, interval = \"100ms\", timeout = \"1s\", rise = 1, fall = 2 }";
            let config = "[runtime]\nworkers = [0, 1]\n".to_owned()
                + &service("web", vip, "443", keys, &ipv4(lab.servers()))
                + &service("portal", other_vip, "443", keys, &ipv4(lab.servers()));
            let relay = subject!().start(lab.balancer(), &config);
            relay.until_all_up();

            let start = Instant::now();
            let before = checked[0].accepted().len();
            eventually("some checks", || (checked[0].accepted().len() >= before + CHECKS).then_some(()));
            // Intervals vary by a tenth; a check per service or worker would be twice as fast.
            let least = INTERVAL * 9 / 10 * (CHECKS as u32 - 1);
            assert!(start.elapsed() >= least, "{CHECKS} checks within {:?}, should take {least:?}", start.elapsed());
            let balancer = lab.balancer().port("back").expect("a network").ipv4;
            assert!(checked[0].accepted().iter().all(|accepted| accepted.peer.ip() == IpAddr::from(balancer)));

            for service in relay.status().services {
                assert_eq!((service.connections, service.accepted, service.opened), (0, 0, 0), "{}", service.name);
                for server in service.servers {
                    assert_eq!((server.connections, server.opened), (0, 0), "{}", server.name);
                }
            }
            let served: Vec<String> = (0..20).map(|_| who(lab.client(), (vip, 443))).collect();
            assert!(served.windows(2).all(|pair| pair[0] != pair[1]), "not strictly in turn: {served:?}");
            relay.stop();
        },
    );
}
