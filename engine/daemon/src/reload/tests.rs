//! What a reload takes and what it refuses, by name.

use towpath_config::model::{Resumption, ServiceTls};

use super::*;
use crate::packets::fast::Readiness;
use crate::plan::{Plan, PlanInput};
use crate::tls::fixtures::ended_tls;

const BASE: &str = r#"
[runtime]
workers = [0]

[limits]
udp_sessions = 100

[control]
socket = "/run/towpath/a.sock"

[[service]]
name = "web"
vip = "192.0.2.1"
ports = [80]
balance = "least-connections"
idle_timeout = "10m"
max_connections = 0
persistence = { by = "source-ip", timeout = "30m" }
health = { check = "tcp", interval = "5s" }
source = { pool = ["192.0.2.5"] }
[[service.server]]
name = "one"
address = "192.0.2.11"
weight = 100
admin = "ready"
[[service.server]]
name = "two"
address = "192.0.2.12"
"#;

fn model(text: &str) -> Model {
    let checked = towpath_config::check("test.toml", text);
    let errors: Vec<String> = checked.errors().map(|d| d.message.clone()).collect();
    checked.model.unwrap_or_else(|| panic!("{errors:?}\n{text}"))
}

fn edited(from: &str, to: &str) -> Model {
    assert!(BASE.contains(from), "the edit {from:?} finds its place");
    model(&BASE.replacen(from, to, 1))
}

#[test]
fn what_listeners_workers_and_allocations_hang_on_is_refused_by_name() {
    let cases = [
        ("workers = [0]", "workers = [1]", "runtime.workers"),
        ("workers = [0]", "workers = [0]\npoll = \"busy\"", "runtime.poll"),
        ("workers = [0]", "workers = [0]\nfast_path = \"off\"", "runtime.fast_path"),
        ("udp_sessions = 100", "udp_sessions = 200", "limits"),
        ("a.sock", "b.sock", "control.socket"),
        ("/a.sock\"", "/a.sock\"\nstate_file = \"/a.state\"", "control.state_file"),
        ("/a.sock\"", "/a.sock\"\ngroup = \"none\"", "control.group"),
        ("[control]", "[tls]\nthreads = 0\n\n[control]", "tls"),
        ("vip = \"192.0.2.1\"", "vip = \"192.0.2.2\"", "vip of service `web`"),
        ("ports = [80]", "ports = [80, 81]", "ports of service `web`"),
        ("pool = [\"192.0.2.5\"]", "pool = [\"192.0.2.6\"]", "source of service `web`"),
    ];
    let old = model(BASE);
    for (from, to, expected) in cases {
        assert_eq!(needs_restart(&old, &edited(from, to), &[0], &[0]), [expected], "{to}");
    }
}

#[test]
fn users_and_the_page_are_taken_and_another_address_is_not() {
    let token = |digit: &str| digit.repeat(64);
    let with = |address: &str, more: &str, token: &str| {
        edited(
            "/a.sock\"",
            &format!(
                "/a.sock\"\nlisten = \"{address}\"\n{more}\n[[control.user]]\nname = \"alice\"\nrole = \"admin\"\ntoken_hash = \"sha256:{token}\""
            ),
        )
    };
    let old = with("127.0.0.1:9443", "", &token("0"));
    let taken = with("127.0.0.1:9443", "page = \"off\"\nsession_timeout = \"2h\"", &token("1"));
    assert!(needs_restart(&old, &taken, &[0], &[0]).is_empty());
    for other in [with("127.0.0.1:9444", "", &token("0")), model(BASE)] {
        assert_eq!(needs_restart(&old, &other, &[0], &[0]), ["control.listen"]);
        assert_eq!(needs_restart(&other, &old, &[0], &[0]), ["control.listen"]);
    }
}

#[test]
fn a_service_with_another_name_is_one_removed_and_one_added() {
    let renamed = edited("name = \"web\"", "name = \"site\"");
    assert_eq!(
        needs_restart(&model(BASE), &renamed, &[0], &[0]),
        ["service `web` (removed)", "service `site` (added)"]
    );
}

#[test]
fn servers_health_balance_persistence_timeouts_and_limits_are_taken() {
    let cases = [
        ("weight = 100", "weight = 7"),
        ("admin = \"ready\"", "admin = \"drain\""),
        ("address = \"192.0.2.12\"", "address = \"192.0.2.13\""),
        ("interval = \"5s\"", "interval = \"2s\""),
        ("least-connections", "round-robin"),
        ("timeout = \"30m\"", "timeout = \"5m\""),
        ("idle_timeout = \"10m\"", "idle_timeout = \"5m\""),
        ("max_connections = 0", "max_connections = 9"),
    ];
    let old = model(BASE);
    for (from, to) in cases {
        let new = edited(from, to);
        assert_ne!(new, old, "{to} changes the model");
        assert_eq!(needs_restart(&old, &new, &[0], &[0]), Vec::<String>::new(), "{to}");
    }
}

#[test]
fn changes_of_members_are_told_one_by_one() {
    let text = BASE
        .replacen("weight = 100", "weight = 7", 1)
        .replacen("admin = \"ready\"", "admin = \"drain\"", 1)
        .replacen("name = \"two\"\naddress = \"192.0.2.12\"", "name = \"three\"\naddress = \"192.0.2.13\"", 1);
    let told: Vec<(String, Change)> =
        member_changes(&model(BASE), &model(&text)).into_iter().map(|c| (c.server, c.change)).collect();
    assert_eq!(
        told,
        [
            ("one".to_owned(), Change::Admin { from: "ready".to_owned(), to: "drain".to_owned() }),
            ("one".to_owned(), Change::Weight { from: 100, to: 7 }),
            ("three".to_owned(), Change::Added),
            ("two".to_owned(), Change::Removed),
        ]
    );
}

#[test]
fn servers_behind_an_interface_that_the_packet_plane_has_not_opened_take_a_restart() {
    let arm = |name: &str, index| Arm { name: name.to_owned(), index, mtu_bytes: 1500 };
    let started = [arm("front", 2), arm("back", 3)];
    assert_eq!(new_interfaces(&started, &[arm("back", 7)]), Vec::<String>::new());
    let changed = new_interfaces(&started, &[arm("front", 2), arm("other", 4)]);
    assert_eq!(changed, ["interface other (a server or next hop is reached by it)"]);
}

#[test]
fn the_first_of_the_workers_that_were_started_can_be_wanted() {
    let started = [2, 3, 5];
    let wanted = |workers: &str| {
        let model = edited("workers = [0]", &format!("workers = {workers}"));
        workers_wanted(&model.runtime.workers, &started, &started)
    };
    let cases = [("\"auto\"", Some(3)), ("[2]", Some(1)), ("[2, 3]", Some(2)), ("[2, 3, 5]", Some(3))];
    for (workers, count) in cases.into_iter().chain(["[3]", "[2, 5]", "[2, 3, 5, 7]"].map(|workers| (workers, None))) {
        assert_eq!(wanted(workers), count, "{workers}");
    }
}

#[test]
fn fewer_workers_must_hold_the_flows_that_are_open() {
    let text = "[limits]\nflows = 100000\n[[service]]\nname = \"web\"\nvip = \"192.0.2.1\"\nports = [80]\nplane = \"packet\"\n\
                source = \"vip\"\n[[service.server]]\nname = \"one\"\naddress = \"192.0.2.11\"\n";
    let arms = vec![Arm { name: "front".to_owned(), index: 2, mtu_bytes: 1500 }];
    let input = PlanInput { cpus: vec![0, 1], nofile: 20_000, memory_bytes: 8 << 30, arms, fast_path: Readiness::Off };
    let packets = Plan::new(&model(text), &input).unwrap().packets.unwrap();
    assert!(check_room(&packets, 50_000, 1).is_ok());
    let refusal = check_room(&packets, 50_001, 1).unwrap_err().to_string();
    assert!(refusal.contains("50001 flows") && refusal.contains("hold 50000"), "{refusal}");

    // Of several, none may get more than its table holds.
    let input = PlanInput { cpus: vec![0, 1, 2, 3], ..input };
    let packets = Plan::new(&model(text), &input).unwrap().packets.unwrap();
    assert!(check_room(&packets, 46_875, 2).is_ok());
    let refusal = check_room(&packets, 46_876, 2).unwrap_err().to_string();
    assert!(refusal.contains("hold 46875"), "{refusal}");
    // One of three owns 86 of the 256 virtual shards.
    let refusal = check_room(&packets, 1_000_000, 3).unwrap_err().to_string();
    assert!(refusal.contains(&format!("hold {}", 25_000 * 256 / 86 - 25_000 * 256 / 86 / 16)), "{refusal}");
}

#[test]
fn workers_as_a_start_would_choose_them_must_be_those_that_were_started() {
    let started_by_itself = [2, 3];
    assert_eq!(workers_wanted(&Workers::Auto, &started_by_itself, &[2, 3]), Some(2));
    for started in [&[2][..], &[3, 2], &[3], &[2, 3, 5]] {
        assert_eq!(workers_wanted(&Workers::Auto, started, &[2, 3]), None, "{started:?}");
    }
    let auto = edited("workers = [0]", "workers = \"auto\"");
    assert_eq!(needs_restart(&model(BASE), &auto, &[0], &[0, 1]), ["runtime.workers"]);
}

#[test]
fn how_tls_is_ended_is_taken_once_a_service_ends_it() {
    let plain = model(BASE);
    let mut ended = plain.clone();
    ended.services[0].tls = ServiceTls::Ended(Box::new(ended_tls("/etc/mail.pem", Resumption::Tickets)));
    let mut other = plain.clone();
    other.services[0].tls = ServiceTls::Ended(Box::new(ended_tls("/etc/other.pem", Resumption::Cache)));
    assert_eq!(needs_restart(&plain, &ended, &[0], &[0]), ["tls.mode of service `web` (the first that ends TLS)"]);
    for (old, new) in [(&ended, &other), (&ended, &plain)] {
        assert_eq!(needs_restart(old, new, &[0], &[0]), Vec::<String>::new());
    }
}
