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

/// Room for both protocols on the stream plane.
const ROOM: Room = Room { connections: 1000, udp_sessions: 150, handshakes: 1024, packets: true, tls: true };

fn refused_by_name(old: &Model, new: &Model, cpus: &[usize], usable: &[usize]) -> Vec<String> {
    needs_restart(old, new, &Started { cpus, usable, room: ROOM, leaving: &Leaving::default() })
}

#[test]
fn what_workers_and_allocations_hang_on_is_refused_by_name() {
    let cases = [
        ("workers = [0]", "workers = [1]", "runtime.workers"),
        ("workers = [0]", "workers = [0]\npoll = \"busy\"", "runtime.poll"),
        ("workers = [0]", "workers = [0]\nfast_path = \"off\"", "runtime.fast_path"),
        ("udp_sessions = 100", "udp_sessions = 200", "limits.udp_sessions (memory is allocated for 150)"),
        ("udp_sessions = 100", "flows = 9000\nudp_sessions = 100", "limits.flows"),
        ("udp_sessions = 100", "buffers = 64\nudp_sessions = 100", "limits.buffers"),
        ("a.sock", "b.sock", "control.socket"),
        ("/a.sock\"", "/a.sock\"\nstate_file = \"/a.state\"", "control.state_file"),
        ("/a.sock\"", "/a.sock\"\ngroup = \"none\"", "control.group"),
        ("[control]", "[tls]\nthreads = 0\n\n[control]", "tls"),
    ];
    let old = model(BASE);
    for (from, to, expected) in cases {
        assert_eq!(refused_by_name(&old, &edited(from, to), &[0], &[0]), [expected], "{to}");
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
    assert!(refused_by_name(&old, &taken, &[0], &[0]).is_empty());
    for other in [with("127.0.0.1:9444", "", &token("0")), model(BASE)] {
        assert_eq!(refused_by_name(&old, &other, &[0], &[0]), ["control.listen"]);
        assert_eq!(refused_by_name(&other, &old, &[0], &[0]), ["control.listen"]);
    }
}

#[test]
fn services_come_and_go_and_where_packets_go_stays() {
    let packets = |text: &str| model(&text.replacen("ports = [80]", "ports = [80]\nplane = \"packet\"", 1));
    let (stream, packet) = (model(BASE), packets(BASE));
    let none = Vec::<String>::new();
    let renamed = BASE.replacen("name = \"web\"", "name = \"site\"", 1);
    assert_eq!(refused_by_name(&stream, &model(&renamed), &[0], &[0]), none);
    assert_eq!(refused_by_name(&packet, &packets(&renamed), &[0], &[0]), none);
    let cases = [
        ("vip = \"192.0.2.1\"", "vip = \"192.0.2.2\"", "vip of service `web`"),
        ("pool = [\"192.0.2.5\"]", "pool = [\"192.0.2.6\"]", "source of service `web`"),
    ];
    for (from, to, expected) in cases {
        let edited = BASE.replacen(from, to, 1);
        assert_eq!(refused_by_name(&stream, &model(&edited), &[0], &[0]), none, "{to}");
        assert_eq!(refused_by_name(&packet, &packets(&edited), &[0], &[0]), [expected], "{to}");
    }
    let wider = BASE.replacen("pool = [\"192.0.2.5\"]", "pool = [\"192.0.2.5\", \"192.0.2.6\"]", 1);
    assert_eq!(refused_by_name(&packet, &packets(&wider), &[0], &[0]), none);
    let more = |ports: &str| model(&BASE.replacen("ports = [80]", &format!("ports = {ports}\nplane = \"packet\""), 1));
    assert_eq!(refused_by_name(&packet, &more("[80, 81]"), &[0], &[0]), none);
    assert_eq!(refused_by_name(&more("[80, 81]"), &packet, &[0], &[0]), ["ports of service `web`"]);
    let refused = refused_by_name(&stream, &packet, &[0], &[0]);
    assert!(refused.contains(&"plane of service `web`".to_owned()), "{refused:?}");
    let refused = refused_by_name(&stream, &packets(&renamed), &[0], &[0]);
    assert_eq!(refused, ["service `site` (its address and port are those of one on the other plane)"]);
    let without = Room { packets: false, ..ROOM };
    let started = Started { cpus: &[0], usable: &[0], room: without, leaving: &Leaving::default() };
    let refused = needs_restart(&stream, &packets(&renamed), &started);
    assert!(refused.contains(&"service `site` (the first on the packet plane)".to_owned()), "{refused:?}");
}

#[test]
fn who_comes_back_while_it_has_flows_is_what_it_was() {
    let packets = |text: &str| model(&text.replacen("ports = [80]", "ports = [80]\nplane = \"packet\"", 1));
    let other = "\n[[service]]\nname = \"other\"\nvip = \"192.0.2.7\"\nports = 80\nplane = \"packet\"\nsource = \"vip\"\n\
                 [[service.server]]\nname = \"one\"\naddress = \"192.0.2.11\"\n";
    let (both, one) = (
        model(&format!("{}{other}", BASE.replacen("ports = [80]", "ports = [80]\nplane = \"packet\"", 1))),
        packets(BASE),
    );
    let leaving = Leaving::default().after(&both, &one, towpath_core::Now(0));
    let started = Started { cpus: &[0], usable: &[0], room: ROOM, leaving: &leaving };
    assert_eq!(needs_restart(&one, &both, &started), Vec::<String>::new());
    let mut moved = both.clone();
    moved.services[1].vip = "192.0.2.8".parse().unwrap();
    assert_eq!(needs_restart(&one, &moved, &started), ["vip of service `other`"]);
}

#[test]
fn a_listener_amid_ports_that_the_packet_plane_leases_takes_a_restart() {
    let text = BASE.replacen("ports = [80]", "ports = [80]\nplane = \"packet\"", 1);
    let other = "\n[[service]]\nname = \"relayed\"\nvip = \"192.0.2.5\"\nports = PORT\n[[service.server]]\nname = \"one\"\n\
                 address = \"192.0.2.11\"\n";
    let with = |port: &str| model(&format!("{text}{}", other.replace("PORT", port)));
    assert_eq!(
        refused_by_name(&with("22"), &with("8080"), &[0], &[0]),
        ["a port of the stream plane at an address that the packet plane leases from"]
    );
    assert_eq!(refused_by_name(&with("22"), &with("23"), &[0], &[0]), Vec::<String>::new());
}

#[test]
fn the_first_service_of_a_protocol_has_no_room() {
    let tcp = model(BASE);
    let mut udp = tcp.clone();
    udp.services[0].protocol = Protocol::Udp;
    let by =
        |room| needs_restart(&tcp, &udp, &Started { cpus: &[0], usable: &[0], room, leaving: &Leaving::default() });
    assert_eq!(by(ROOM), Vec::<String>::new());
    let without = Room { udp_sessions: 0, ..ROOM };
    let refused = by(without);
    assert!(refused.contains(&"service `web` (the first over UDP on the stream plane)".to_owned()), "{refused:?}");
}

#[test]
fn limits_are_taken_up_to_what_was_allocated() {
    let lower = edited("udp_sessions = 100", "udp_sessions = 50\nconnections = 1000\nhandshakes = 10");
    assert_eq!(refused_by_name(&model(BASE), &lower, &[0], &[0]), Vec::<String>::new());
    let higher = edited("udp_sessions = 100", "udp_sessions = 150\nconnections = 1001");
    let refused = refused_by_name(&model(BASE), &higher, &[0], &[0]);
    assert_eq!(refused, ["limits.connections (memory is allocated for 1000)"]);
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
        assert_eq!(refused_by_name(&old, &new, &[0], &[0]), Vec::<String>::new(), "{to}");
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
    assert_eq!(refused_by_name(&model(BASE), &auto, &[0], &[0, 1]), ["runtime.workers"]);
}

#[test]
fn how_tls_is_ended_is_taken_once_a_service_ends_it() {
    let plain = model(BASE);
    let mut ended = plain.clone();
    ended.services[0].tls = ServiceTls::Ended(Box::new(ended_tls("/etc/mail.pem", Resumption::Tickets)));
    let mut other = plain.clone();
    other.services[0].tls = ServiceTls::Ended(Box::new(ended_tls("/etc/other.pem", Resumption::Cache)));
    let leaving = Leaving::default();
    let without = Started { cpus: &[0], usable: &[0], room: Room { tls: false, ..ROOM }, leaving: &leaving };
    assert_eq!(needs_restart(&plain, &ended, &without), ["tls.mode of service `web` (the first that ends TLS)"]);
    for (old, new) in [(&ended, &other), (&ended, &plain), (&plain, &ended)] {
        assert_eq!(refused_by_name(old, new, &[0], &[0]), Vec::<String>::new());
    }
}
