//! What the machine cannot carry is refused at start, with the cause and the next step.

use std::net::{IpAddr, Ipv4Addr};

use towpath_sys::socket::{ListenOptions, ReusePort, Transport, open_listener};
use towpath_tests::{Refusal, TestLab, Topology, in_lab, ipv4, service, subject};

fn web(lab: &TestLab, vip: impl Into<IpAddr>, keys: &str) -> String {
    service("web", vip, "443", keys, &ipv4(lab.servers()))
}

#[track_caller]
fn assert_refused(refusal: &Refusal, told: &[&str]) {
    assert_eq!(refusal.code, Some(1), "{}", refusal.text);
    for told in told {
        assert!(refusal.text.contains(told), "`{told}` is missing in\n{}", refusal.text);
    }
    for cause in ["another process has this port", "not an address of this host", "runtime.workers names"] {
        assert!(refusal.text.matches(cause).count() <= 1, "`{cause}` is told twice in\n{}", refusal.text);
    }
}

#[test]
fn a_vip_that_is_not_on_the_host_is_refused() {
    in_lab(a_vip_that_is_not_on_the_host_is_refused, Topology::TwoArm, 1, |lab| {
        let refusal = subject!().refuse(lab.balancer(), &web(lab, Ipv4Addr::new(192, 0, 2, 1), ""));
        assert_refused(&refusal, &["`web`", "192.0.2.1", "not an address of this host", "add it"]);
    });
}

#[test]
fn a_source_address_that_is_not_on_the_host_is_refused() {
    in_lab(a_source_address_that_is_not_on_the_host_is_refused, Topology::TwoArm, 1, |lab| {
        let keys = "source = { pool = [\"192.0.2.2\"] }";
        let refusal = subject!().refuse(lab.balancer(), &web(lab, lab.vip(100), keys));
        assert_refused(&refusal, &["`web`", "192.0.2.2", "not an address of this host", "add it"]);
    });
}

fn port_in_use(lab: &TestLab, workers: &str, reuse_port: ReusePort) {
    let vip = lab.vip(100);
    let options = ListenOptions { reuse_port, ..ListenOptions::default() };
    let _holder = lab
        .balancer()
        .run(|| open_listener((vip, 443).into(), Transport::Tcp, &options))
        .expect("a thread")
        .expect("a listener");
    let config = format!("[runtime]\nworkers = {workers}\n") + &web(lab, vip, "");
    let refusal = subject!().refuse(lab.balancer(), &config);
    assert_refused(&refusal, &["`web`", &format!("tcp {vip}:443"), "another process has this port", "ss -lnp"]);
}

#[test]
fn a_port_in_use_is_refused() {
    in_lab(a_port_in_use_is_refused, Topology::TwoArm, 1, |lab| port_in_use(lab, "[0]", ReusePort::Exclusive));
}

#[test]
fn a_port_that_another_process_would_share_is_refused() {
    in_lab(a_port_that_another_process_would_share_is_refused, Topology::TwoArm, 1, |lab| {
        port_in_use(lab, "[0, 1]", ReusePort::Shared);
    });
}

#[test]
fn a_pool_in_the_range_of_the_kernel_is_refused_on_an_address_that_the_kernel_picks() {
    in_lab(
        a_pool_in_the_range_of_the_kernel_is_refused_on_an_address_that_the_kernel_picks,
        Topology::TwoArm,
        1,
        |lab| {
            let vip = lab.vip(100);
            let own = lab.balancer().port("back").expect("a network").ipv4;
            let pool = |ports: &str| format!("source = {{ pool = [\"{own}\"], ports = \"{ports}\" }}");
            lab.balancer().set_sysctl("net.ipv4.ip_local_port_range", "32768 60999").expect("a sysctl");
            let refusal = subject!().refuse(lab.balancer(), &web(lab, vip, &pool("60000-65000")));
            assert_refused(
                &refusal,
                &["`web`", &own.to_string(), "60000-60999", "ip_local_port_range", "second address"],
            );
            // The remedies that it names do help.
            subject!().start(lab.balancer(), &web(lab, vip, &pool("61000-65000"))).stop();
            let second = format!("source = {{ pool = [\"{}\"] }}", lab.snat(101));
            subject!().start(lab.balancer(), &web(lab, vip, &second)).stop();
            lab.balancer().set_sysctl("net.ipv4.ip_local_reserved_ports", "60000-60999").expect("a sysctl");
            subject!().start(lab.balancer(), &web(lab, vip, &pool("60000-65000"))).stop();
        },
    );
}

#[test]
fn workers_on_cpus_that_are_not_there_are_refused() {
    in_lab(workers_on_cpus_that_are_not_there_are_refused, Topology::TwoArm, 1, |lab| {
        let config = "[runtime]\nworkers = [0, 4000, 4001]\n".to_owned() + &web(lab, lab.vip(100), "");
        let refusal = subject!().refuse(lab.balancer(), &config);
        assert_refused(&refusal, &["4000", "4001", "runtime.workers", "workers = \"auto\""]);
    });
}
