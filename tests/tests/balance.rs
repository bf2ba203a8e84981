//! Who serves a new connection: alternation, spread, persistence.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use towpath_engine::status::HealthStatus;
use towpath_tests::{Connection, Origin, TestLab, Topology, in_lab, ipv4, service, subject, who, who_from};

fn alternates(lab: &TestLab, workers: &str) {
    let vip = lab.vip(100);
    let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 5061));
    let keys = "balance = \"weighted-least-connections\"";
    let config = format!("[runtime]\nworkers = {workers}\n") + &service("sip", vip, "5061", keys, &ipv4(lab.servers()));
    let relay = subject!().start(lab.balancer(), &config);
    assert_strictly_in_turn(lab, vip, 5061);
    relay.stop();
}

fn assert_strictly_in_turn(lab: &TestLab, vip: Ipv4Addr, port: u16) {
    let served: Vec<String> = (0..20).map(|_| who(lab.client(), (vip, port))).collect();
    assert!(served.iter().all(|name| name == "server-1" || name == "server-2"), "{served:?}");
    assert!(served.windows(2).all(|pair| pair[0] != pair[1]), "not strictly in turn: {served:?}");
}

#[test]
fn t_01_one_worker_alternates_strictly() {
    in_lab(t_01_one_worker_alternates_strictly, Topology::TwoArm, 2, |lab| alternates(lab, "[0]"));
}

#[test]
fn t_01_two_workers_alternate_strictly() {
    in_lab(t_01_two_workers_alternate_strictly, Topology::TwoArm, 2, |lab| alternates(lab, "[0, 1]"));
}

const PERSISTENT: &str = "balance = \"weighted-least-connections\"\n\
     persistence = { by = \"source-ip\", timeout = \"30m\" }\n\
     health = { check = \"tcp\", ports = 443, interval = \"100ms\", timeout = \"1s\", rise = 1, fall = 1 }";

fn persistent(lab: &TestLab, vip: Ipv4Addr) -> String {
    "[runtime]\nworkers = [0, 1]\n".to_owned() + &service("web", vip, "[443, 5061]", PERSISTENT, &ipv4(lab.servers()))
}

#[test]
fn t_22_source_ip_holds_across_connections_ports_and_workers() {
    in_lab(t_22_source_ip_holds_across_connections_ports_and_workers, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let _origins = [(1, 443), (1, 5061), (2, 443), (2, 5061)].map(|(n, port)| Origin::tcp(lab.server(n), port));
        let relay = subject!().start(lab.balancer(), &persistent(lab, vip));
        relay.until_all_up();
        let first = who(lab.client(), (vip, 443));

        let mut held: Vec<Connection> = (0..32)
            .map(|n| Connection::open(lab.client(), (vip, [443, 5061][n % 2])).expect("the relay listens"))
            .collect();
        let served: BTreeSet<String> =
            held.iter_mut().map(|connection| connection.greeting().expect("a greeting").name).collect();
        assert_eq!(served, BTreeSet::from([first]));
        // The test shows what it says only if both workers took part.
        let workers = relay.status().workers;
        assert!(workers.iter().all(|worker| worker.sessions > 0), "{workers:?}");

        // Without the others' load the next clients are free to go to either.
        drop(held);
        relay.until("every connection has ended", |status| status.services[0].connections == 0);
        let others: Vec<IpAddr> = (110..118).map(|number| lab.second_client(number)).collect();
        let served: BTreeSet<String> = others.iter().map(|&from| who_from(lab.client(), from, (vip, 443))).collect();
        assert_eq!(served.len(), 2, "eight other clients, all on {served:?}");
        relay.stop();
    });
}

#[test]
fn t_22_a_client_of_a_dead_server_is_pinned_to_another_and_stays_there() {
    in_lab(t_22_a_client_of_a_dead_server_is_pinned_to_another_and_stays_there, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let mut origins = [1, 2].map(|n| Some(Origin::tcp(lab.server(n), 443)));
        let relay = subject!().start(lab.balancer(), &persistent(lab, vip));
        relay.until_all_up();
        let first = who(lab.client(), (vip, 443));
        let (dead, other) = if first == "server-1" { (1, "server-2") } else { (2, "server-1") };

        origins[dead - 1] = None;
        // By redispatch, whether or not the check has noticed.
        assert_eq!(who(lab.client(), (vip, 443)), other);
        let until = |health: HealthStatus| {
            relay.until(&format!("{first} is {health:?}"), |status| {
                status.services[0].servers[dead - 1].health == health
            });
        };
        until(HealthStatus::Down);
        assert_eq!(who(lab.client(), (vip, 443)), other);

        origins[dead - 1] = Some(Origin::tcp(lab.server(dead), 443));
        until(HealthStatus::Up);
        for _ in 0..6 {
            assert_eq!(who(lab.client(), (vip, 443)), other);
        }
        relay.stop();
    });
}

#[test]
fn t_22_without_persistence_one_client_is_spread() {
    in_lab(t_22_without_persistence_one_client_is_spread, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let keys = "persistence = { by = \"none\" }";
        let relay = subject!().start(lab.balancer(), &service("web", vip, "443", keys, &ipv4(lab.servers())));
        assert_strictly_in_turn(lab, vip, 443);
        relay.stop();
    });
}
