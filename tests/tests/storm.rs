//! A server that has half of all connections is lost: its clients come back all at once.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use towpath_engine::status::HealthStatus;
use towpath_tests::roles::{OriginProcess, Storm};
use towpath_tests::{Origin, TestLab, Topology, in_lab, ipv4, service, subject};

/// Connections; the first server has half of them by its weight.
const CLIENTS: usize = 8_000;
/// By when all have to be back. With a backlog too short, or a worker that stands still, a lost SYN is sent again after 1, 3 and 7 s; the rest is a
/// machine that does other things as well.
const BACK_WITHIN: Duration = Duration::from_secs(20);
/// No turn of a worker takes longer, though one ends its share of thousands of connections.
const BREATH_MAX_US: u64 = 2_000_000;

fn they_all_come_back(lab: &TestLab, vip: Ipv4Addr, keys: &str) {
    let at = |n: usize| [SocketAddr::from((lab.server(n).ipv4(), 443))];
    let _origins = [1, 2, 3].map(|n| OriginProcess::start(subject!(), lab.server(n), &at(n)));
    let checked = [1, 2, 3].map(|n| Origin::tcp(lab.server(n), 444));
    let keys = format!(
        "{keys}drop_on_failure = true\nhealth = {{ check = \"tcp\", ports = 444, interval = \"500ms\", timeout = \"20s\", rise = 1, fall = 1 }}"
    );
    let text = service("web", vip, "443", &keys, &ipv4(lab.servers()));
    let text = text.replacen("[[service.server]]", "[[service.server]]\nweight = 200", 1);
    let config = format!("[limits]\nconnections = 9000\nflows = 32768\n{text}");
    let relay = subject!().start(lab.balancer(), &config);
    relay.until_all_up();
    let mut storm = Storm::gather(subject!(), lab.client(), (vip, 443).into(), CLIENTS, CLIENTS / 2);
    let spread = || relay.service("web").servers.iter().map(|server| server.connections).collect::<Vec<_>>();
    assert_eq!(spread(), [4_000, 2_000, 2_000]);

    let [first, _second, _third] = checked;
    first.stop();
    let returned = storm.returned();
    assert!(returned.took < BACK_WITHIN, "{returned:?}");
    let told = relay.until("all are counted where they are", |status| status.services[0].connections == 8_000);
    let web = &told.services[0];
    assert_eq!(web.servers[0].health, HealthStatus::Down);
    assert_eq!(web.terminations["server_down"], 4_000, "{:?}", web.terminations);
    assert_eq!(spread(), [0, 4_000, 4_000]);
    let breath_us = told.workers.iter().map(|worker| worker.counters["breath_max_microseconds"]).max();
    assert!(breath_us.is_some_and(|longest| longest < BREATH_MAX_US), "{breath_us:?} µs");
    drop(storm);
    relay.stop();
}

#[test]
fn four_thousand_clients_of_a_lost_server_come_back_on_the_packet_plane() {
    in_lab(four_thousand_clients_of_a_lost_server_come_back_on_the_packet_plane, Topology::TwoArm, 3, |lab| {
        let keys = format!("plane = \"packet\"\nsource = {{ pool = [\"{}\"] }}\n", lab.free_snat(101));
        they_all_come_back(lab, lab.free_vip(100), &keys);
    });
}

#[test]
fn four_thousand_clients_of_a_lost_server_come_back_on_the_stream_plane() {
    in_lab(four_thousand_clients_of_a_lost_server_come_back_on_the_stream_plane, Topology::TwoArm, 3, |lab| {
        they_all_come_back(lab, lab.vip(100), "");
    });
}
