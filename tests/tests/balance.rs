//! Who serves a new connection: alternation, spread, persistence.

use towpath_tests::{Origin, TestLab, Topology, in_lab, subject, who};

/// One service `web` on these ports of `vip` with these keys, and the lab's servers behind it.
fn web(lab: &TestLab, head: &str, keys: &str) -> String {
    let mut text = format!("{head}\n[[service]]\nname = \"web\"\n{keys}\n");
    for server in lab.servers() {
        text += &format!("[[service.server]]\nname = \"{}\"\naddress = \"{}\"\n", server.name(), server.ipv4());
    }
    text
}

fn alternates(lab: &TestLab, workers: &str) {
    let vip = lab.vip(100);
    let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 5061));
    let config = web(
        lab,
        &format!("[runtime]\nworkers = {workers}"),
        &format!("vip = \"{vip}\"\nports = 5061\nbalance = \"weighted-least-connections\""),
    );
    let relay = subject!().start(lab.balancer(), &config);
    let served: Vec<String> = (0..20).map(|_| who(lab.client(), (vip, 5061))).collect();
    assert!(served.iter().all(|name| name == "server-1" || name == "server-2"), "{served:?}");
    assert!(served.windows(2).all(|pair| pair[0] != pair[1]), "not strictly in turn: {served:?}");
    relay.stop();
}

#[test]
fn t_01_one_worker_alternates_strictly() {
    in_lab(t_01_one_worker_alternates_strictly, Topology::TwoArm, 2, |lab| alternates(lab, "[0]"));
}

#[test]
fn t_01_two_workers_alternate_strictly() {
    in_lab(t_01_two_workers_alternate_strictly, Topology::TwoArm, 2, |lab| alternates(lab, "[0, 1]"));
}
