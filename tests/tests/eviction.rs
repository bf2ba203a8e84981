//! What a failing check takes away, and who takes over: scopes, backups, the panic threshold, slow start, servers that flap, and what clients meet.
//!
//! Everything on both planes.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::Ipv4Addr;

use towpath_engine::Status;
use towpath_engine::status::{HealthStatus, ServiceState};
use towpath_tests::web::{Reply, WebClient, WebOrigin};
use towpath_tests::{Connection, Origin, Subject, TestLab, Topology, eventually, in_lab, ipv4, service, subject, who};

/// So that a lab takes little memory.
const LIMITS: &str = "[limits]\nflows = 16384\n";
const FAST_CHECK: &str = "check = \"tcp\", interval = \"100ms\", timeout = \"20s\", rise = 1, fall = 1";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plane {
    Packet,
    Stream,
}

impl Plane {
    /// A VIP, and what its service says of the plane.
    fn vip(self, lab: &TestLab, number: u8) -> (Ipv4Addr, String) {
        match self {
            Plane::Packet => {
                let keys = format!("plane = \"packet\"\nsource = {{ pool = [\"{}\"] }}\n", lab.free_snat(number));
                (lab.free_vip(number), keys)
            }
            Plane::Stream => (lab.vip(number), String::new()),
        }
    }
}

/// One test of this on each plane.
macro_rules! on_both_planes {
    ($body:ident, $servers:literal, $on_packets:ident, $on_streams:ident) => {
        #[test]
        fn $on_packets() {
            in_lab($on_packets, Topology::TwoArm, $servers, |lab| $body(Plane::Packet, lab));
        }

        #[test]
        fn $on_streams() {
            in_lab($on_streams, Topology::TwoArm, $servers, |lab| $body(Plane::Stream, lab));
        }
    };
}

fn start(lab: &TestLab, services: &str) -> Subject {
    let relay = subject!().start(lab.balancer(), &format!("{LIMITS}{services}"));
    relay.until_all_up();
    relay
}

/// Who serves a port, over some connections.
fn serving(lab: &TestLab, vip: Ipv4Addr, port: u16) -> BTreeSet<String> {
    (0..4).map(|_| who(lab.client(), (vip, port))).collect()
}

fn names(servers: &[&str]) -> BTreeSet<String> {
    servers.iter().map(ToString::to_string).collect()
}

fn both() -> BTreeSet<String> {
    names(&["server-1", "server-2"])
}

/// Waits until the server has this verdict in the service.
fn until(relay: &Subject, service: &str, server: &str, health: HealthStatus) -> Status {
    relay.until(&format!("{server} of {service} is {health:?}"), |status| {
        let service = status.services.iter().find(|known| known.name == service).expect("a service");
        service.servers.iter().find(|known| known.name == server).expect("a server").health == health
    })
}

/// T-12: a front end goes offline, and every row of it says so.
fn its_rows_are_down_everywhere(plane: Plane, lab: &TestLab) {
    let services = [("sip", 100, 5061), ("web", 102, 443), ("unused", 104, 444)].map(|(name, number, port)| {
        let (vip, keys) = plane.vip(lab, number);
        (name, vip, keys, port)
    });
    // Nobody listens at 444 of either server: that service is not used.
    let origins = [1, 2].map(|n| [5061, 443].map(|port| Origin::tcp(lab.server(n), port)));
    let text: String = services
        .iter()
        .map(|(name, vip, keys, port)| {
            let keys = format!("{keys}balance = \"round-robin\"\nhealth = {{ {FAST_CHECK} }}");
            service(name, *vip, &port.to_string(), &keys, &ipv4(lab.servers()))
        })
        .collect();
    let relay = subject!().start(lab.balancer(), &format!("{LIMITS}{text}"));
    // T-13: what is configured rightly is up without anybody having done anything, what nobody serves is down, and says why.
    let told = relay.until("all have their first verdict", |status| {
        status.services.iter().flat_map(|service| &service.servers).all(|row| row.health != HealthStatus::Unknown)
    });
    let states: Vec<ServiceState> = told.services.iter().map(|service| service.state).collect();
    assert_eq!(states, [ServiceState::Up, ServiceState::Up, ServiceState::Down]);
    for row in &told.services[2].servers {
        assert_eq!((row.health, &*row.reason), (HealthStatus::Down, "port 444: connection refused"));
    }
    assert_eq!(serving(lab, services[0].1, 5061), both());

    let [first, _second] = origins;
    drop(first);
    let told = relay.until("its rows are down in both", |status| {
        status.services[..2].iter().all(|service| service.servers[0].health == HealthStatus::Down)
    });
    for service in &told.services[..2] {
        assert_eq!(service.state, ServiceState::Degraded, "{}", service.name);
        assert_eq!(service.servers[1].health, HealthStatus::Up, "{}", service.name);
    }
    assert_eq!(told.services[2].state, ServiceState::Down);
    for (_, vip, _, port) in &services[..2] {
        assert_eq!(serving(lab, *vip, *port), names(&["server-2"]));
    }
    relay.stop();
}

on_both_planes!(
    its_rows_are_down_everywhere,
    2,
    t_12_t_13_rows_of_a_front_end_that_is_offline_are_down_everywhere_on_the_packet_plane,
    t_12_t_13_rows_of_a_front_end_that_is_offline_are_down_everywhere_on_the_stream_plane
);

/// T-35 and T-36 as the documents have it: six ports, two of which are checked.
fn either_of_the_checked_ports_takes_all_away(plane: Plane, lab: &TestLab) {
    const PORTS: [u16; 6] = [135, 443, 444, 5061, 5065, 5069];
    let (vip, keys) = plane.vip(lab, 100);
    let keys = format!("{keys}balance = \"round-robin\"\nhealth = {{ {FAST_CHECK}, ports = [5061, 444] }}");
    let mut first: Vec<Option<Origin>> = PORTS.iter().map(|&port| Some(Origin::tcp(lab.server(1), port))).collect();
    let _second: Vec<Origin> = PORTS.iter().map(|&port| Origin::tcp(lab.server(2), port)).collect();
    let relay = start(lab, &service("front-end", vip, &format!("{PORTS:?}"), &keys, &ipv4(lab.servers())));
    for checked in [3, 2] {
        first[checked] = None;
        until(&relay, "front-end", "server-1", HealthStatus::Down);
        let reason = relay.server("front-end", "server-1").reason;
        assert_eq!(reason, format!("port {}: connection refused", PORTS[checked]));
        for port in PORTS {
            assert_eq!(serving(lab, vip, port), names(&["server-2"]), "port {port}");
        }
        first[checked] = Some(Origin::tcp(lab.server(1), PORTS[checked]));
        until(&relay, "front-end", "server-1", HealthStatus::Up);
        assert_eq!(serving(lab, vip, 135), both());
    }
    // The other way round nothing happens: 443 is not checked.
    first[1] = None;
    let checks = || first[3].as_ref().expect("it lives").accepted().len();
    let before = checks();
    eventually("three more checks", || (checks() >= before + 3).then_some(()));
    assert_eq!(relay.server("front-end", "server-1").health, HealthStatus::Up);
    relay.stop();
}

on_both_planes!(
    either_of_the_checked_ports_takes_all_away,
    2,
    t_35_t_36_either_of_the_checked_ports_takes_all_ports_away_on_the_packet_plane,
    t_35_t_36_either_of_the_checked_ports_takes_all_ports_away_on_the_stream_plane
);

/// `evict = "server"`: farm-wide, also where another service has the server by another port and without a check.
fn the_check_of_one_service_empties_all(plane: Plane, lab: &TestLab) {
    let (vip, keys) = plane.vip(lab, 100);
    let (other_vip, other_keys) = plane.vip(lab, 102);
    let mut checked = [1, 2].map(|n| Some(Origin::tcp(lab.server(n), 5061)));
    let _others = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
    let farm = format!("{keys}balance = \"round-robin\"\nhealth = {{ {FAST_CHECK}, evict = \"server\" }}");
    let other = format!("{other_keys}balance = \"round-robin\"\ndrop_on_failure = true");
    let relay = start(
        lab,
        &(service("farm", vip, "5061", &farm, &ipv4(lab.servers()))
            + &service("web", other_vip, "443", &other, &ipv4(lab.servers()))),
    );
    assert_eq!(serving(lab, other_vip, 443), both());
    let mut held: Vec<(String, Connection)> = (0..2)
        .map(|_| {
            let mut connection = Connection::open(lab.client(), (other_vip, 443)).expect("somebody serves");
            (connection.greeting().expect("a greeting").name, connection)
        })
        .collect();
    checked[0] = None;
    let told = until(&relay, "web", "server-1", HealthStatus::Down);
    let reason = relay.server("web", "server-1").reason;
    assert_eq!(reason, "port 5061: connection refused, as service \"farm\" has found");
    assert_eq!((serving(lab, vip, 5061), serving(lab, other_vip, 443)), (names(&["server-2"]), names(&["server-2"])));
    let event = told.events.iter().rfind(|event| event.to == "down").expect("the event of it");
    assert_eq!(event.services, ["farm", "web"]);
    for (name, connection) in &mut held {
        match name.as_str() {
            "server-1" => {
                assert_eq!(connection.end().expect_err("no clean end").kind(), ErrorKind::ConnectionReset);
            }
            _ => connection.echo(b"undisturbed").expect("the clients of the other server go on"),
        }
    }
    checked[0] = Some(Origin::tcp(lab.server(1), 5061));
    until(&relay, "web", "server-1", HealthStatus::Up);
    assert_eq!(serving(lab, other_vip, 443), both());
    relay.stop();
}

on_both_planes!(
    the_check_of_one_service_empties_all,
    2,
    evict_server_takes_it_out_of_every_service_on_the_packet_plane,
    evict_server_takes_it_out_of_every_service_on_the_stream_plane
);

/// `evict = "group"`: services of the group, one of which judges by itself; not those that have the server otherwise.
fn the_group_is_left(plane: Plane, lab: &TestLab) {
    let vips = [100, 102, 104].map(|number| plane.vip(lab, number));
    let mut checked = [1, 2].map(|n| Some(Origin::tcp(lab.server(n), 5061)));
    let _others = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
    let mut text =
        format!("[[group]]\nname = \"farm\"\nhealth = {{ {FAST_CHECK}, ports = 5061, evict = \"group\" }}\n");
    for (name, address) in ipv4(lab.servers()) {
        text += &format!("[[group.server]]\nname = \"{name}\"\naddress = \"{address}\"\n");
    }
    let of_group = ["group = \"farm\"".to_owned(), format!("group = \"farm\"\nhealth = {{ {FAST_CHECK} }}")];
    for ((name, (vip, keys)), more) in ["sip", "web"].into_iter().zip(&vips).zip(of_group) {
        let port = if name == "sip" { "5061" } else { "443" };
        text += &service(name, *vip, port, &format!("{keys}balance = \"round-robin\"\n{more}"), &[]);
    }
    let (vip, keys) = &vips[2];
    text += &service("apart", *vip, "443", &format!("{keys}balance = \"round-robin\""), &ipv4(lab.servers()));
    let relay = start(lab, &text);
    checked[0] = None;
    until(&relay, "web", "server-1", HealthStatus::Down);
    assert_eq!(serving(lab, vips[0].0, 5061), names(&["server-2"]));
    assert_eq!(serving(lab, vips[1].0, 443), names(&["server-2"]));
    assert_eq!(serving(lab, vips[2].0, 443), both());
    checked[0] = Some(Origin::tcp(lab.server(1), 5061));
    until(&relay, "web", "server-1", HealthStatus::Up);
    assert_eq!(serving(lab, vips[1].0, 443), both());
    relay.stop();
}

on_both_planes!(
    the_group_is_left,
    2,
    evict_group_takes_it_out_of_the_services_of_its_group_on_the_packet_plane,
    evict_group_takes_it_out_of_the_services_of_its_group_on_the_stream_plane
);

/// `evict = "port"`: clients of the port leave, those of others stay, and so does whom a client is known to.
fn only_the_port_is_left(plane: Plane, lab: &TestLab) {
    let (vip, keys) = plane.vip(lab, 100);
    let keys = format!(
        "{keys}drop_on_failure = true\npersistence = {{ by = \"source-ip\" }}\nhealth = {{ {FAST_CHECK}, evict = \"port\" }}"
    );
    let mut origins = [1, 2].map(|n| [443, 5061].map(|port| Some(Origin::tcp(lab.server(n), port))));
    let relay = start(lab, &service("front-end", vip, "[443, 5061]", &keys, &ipv4(lab.servers())));
    let mut held = [443, 5061].map(|port| {
        let mut connection = Connection::open(lab.client(), (vip, port)).expect("somebody serves");
        (connection.greeting().expect("a greeting").name, connection)
    });
    let home = held[0].0.clone();
    assert_eq!(held[1].0, home, "it holds over the ports");
    let other = if home == "server-1" { "server-2" } else { "server-1" };
    let place = usize::from(home == "server-2");
    origins[place][1] = None;
    let told = relay.until("the port is closed", |status| status.services[0].servers[place].closed_ports == [5061]);
    let row = &told.services[0].servers[place];
    assert_eq!((row.health, &*row.reason), (HealthStatus::Up, "port 5061: connection refused"));
    assert_eq!(told.services[0].state, ServiceState::Degraded);
    assert!(held[1].1.is_ended(), "the connection to the port that failed");
    held[0].1.echo(b"undisturbed").expect("the other port goes on");
    for _ in 0..2 {
        assert_eq!(who(lab.client(), (vip, 5061)), other);
        assert_eq!(who(lab.client(), (vip, 443)), home);
    }
    origins[place][1] = Some(Origin::tcp(lab.server(place + 1), 5061));
    relay.until("the port is open", |status| status.services[0].servers[place].closed_ports.is_empty());
    assert_eq!(who(lab.client(), (vip, 5061)), home, "its entry has stayed");
    relay.stop();
}

on_both_planes!(
    only_the_port_is_left,
    2,
    evict_port_leaves_the_server_its_other_ports_on_the_packet_plane,
    evict_port_leaves_the_server_its_other_ports_on_the_stream_plane
);

/// The last server is a backup.
fn the_backup_serves_while_no_other_can(plane: Plane, lab: &TestLab) {
    let (vip, keys) = plane.vip(lab, 100);
    let keys = format!("{keys}persistence = {{ by = \"source-ip\" }}\nhealth = {{ {FAST_CHECK} }}");
    let mut first = Some(Origin::tcp(lab.server(1), 443));
    let _backup = Origin::tcp(lab.server(2), 443);
    let text = service("web", vip, "443", &keys, &ipv4(lab.servers())) + "backup = true\n";
    let relay = start(lab, &text);
    assert_eq!(
        (serving(lab, vip, 443), relay.server("web", "server-2").duty.as_str()),
        (names(&["server-1"]), "standby")
    );
    assert_eq!(relay.service("web").state, ServiceState::Up);
    first.take();
    relay.until("the backup serves", |status| status.services[0].servers[1].duty == "backup");
    assert_eq!(relay.service("web").state, ServiceState::Degraded);
    assert_eq!(serving(lab, vip, 443), names(&["server-2"]));
    let mut held = Connection::open(lab.client(), (vip, 443)).expect("somebody serves");
    assert_eq!(held.greeting().expect("a greeting").name, "server-2");
    first = Some(Origin::tcp(lab.server(1), 443));
    relay.until("the backup waits again", |status| status.services[0].servers[1].duty == "standby");
    assert_eq!(serving(lab, vip, 443), names(&["server-1"]), "also who has an entry for the backup");
    held.echo(b"undisturbed").expect("what the backup has it keeps");
    drop(first);
    relay.stop();
}

on_both_planes!(
    the_backup_serves_while_no_other_can,
    2,
    a_backup_serves_while_no_other_server_can_on_the_packet_plane,
    a_backup_serves_while_no_other_server_can_on_the_stream_plane
);

#[test]
fn a_backup_takes_whom_all_others_have_refused_before_any_check_knows() {
    in_lab(a_backup_takes_whom_all_others_have_refused_before_any_check_knows, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let _backup = Origin::tcp(lab.server(2), 443);
        let text = service("web", vip, "443", "", &ipv4(lab.servers())) + "backup = true\n";
        let relay = start(lab, &text);
        assert_eq!(serving(lab, vip, 443), names(&["server-2"]));
        assert_eq!(relay.service("web").counters["redispatched"], 4);
        relay.stop();
    });
}

/// All checks fail, although every server serves: what is checked is elsewhere.
fn checks_are_not_believed_below_the_threshold(plane: Plane, lab: &TestLab) {
    let (vip, keys) = plane.vip(lab, 100);
    let keys = format!(
        "{keys}balance = \"round-robin\"\ndrop_on_failure = true\npanic_threshold = 50\nhealth = {{ {FAST_CHECK}, ports = 444 }}"
    );
    let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
    let mut checked = [1, 2].map(|n| Some(Origin::tcp(lab.server(n), 444)));
    let relay = start(lab, &service("web", vip, "443", &keys, &ipv4(lab.servers())));
    checked[0] = None;
    until(&relay, "web", "server-1", HealthStatus::Down);
    assert_eq!(serving(lab, vip, 443), names(&["server-2"]), "one of two is as many as there have to be");
    let mut held = Connection::open(lab.client(), (vip, 443)).expect("somebody serves");
    assert_eq!(held.greeting().expect("a greeting").name, "server-2");
    checked[1] = None;
    let told = relay.until("both are used", |status| {
        status.services[0]
            .servers
            .iter()
            .all(|server| server.health == HealthStatus::Down && server.duty == "fail-open")
    });
    assert_eq!(told.services[0].state, ServiceState::Degraded);
    assert_eq!(serving(lab, vip, 443), both());
    held.echo(b"undisturbed").expect("nor are connections dropped for checks that nobody believes");
    checked = [1, 2].map(|n| Some(Origin::tcp(lab.server(n), 444)));
    relay.until_all_up();
    assert!(relay.service("web").servers.iter().all(|server| server.duty == "primary"));
    drop(checked);
    relay.stop();
}

on_both_planes!(
    checks_are_not_believed_below_the_threshold,
    2,
    below_the_panic_threshold_checks_are_not_believed_on_the_packet_plane,
    below_the_panic_threshold_checks_are_not_believed_on_the_stream_plane
);

fn a_server_that_returns_begins_with_little(plane: Plane, lab: &TestLab) {
    let (vip, keys) = plane.vip(lab, 100);
    // So long that the test sees its beginning only.
    let keys =
        format!("{keys}slow_start = \"1h\"\nbalance = \"least-connections\"\nhealth = {{ {FAST_CHECK}, ports = 444 }}");
    let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
    let mut checked = [1, 2].map(|n| Some(Origin::tcp(lab.server(n), 444)));
    let relay = start(lab, &service("web", vip, "443", &keys, &ipv4(lab.servers())));
    let open = |count: usize| -> Vec<Connection> {
        (0..count)
            .map(|_| {
                let mut connection = Connection::open(lab.client(), (vip, 443)).expect("somebody serves");
                connection.greeting().expect("a greeting");
                connection
            })
            .collect()
    };
    let at_the_start = open(22);
    assert_eq!(relay.server("web", "server-1").connections, 11, "the first verdict is no return");
    drop(at_the_start);
    eventually("all have ended", || (relay.service("web").connections == 0).then_some(()));
    checked[0] = None;
    until(&relay, "web", "server-1", HealthStatus::Down);
    checked[0] = Some(Origin::tcp(lab.server(1), 444));
    until(&relay, "web", "server-1", HealthStatus::Up);
    let held = open(22);
    // A tenth as many as the other one.
    assert_eq!(relay.server("web", "server-1").connections, 2);
    drop(held);
    relay.stop();
}

on_both_planes!(
    a_server_that_returns_begins_with_little,
    2,
    a_server_that_returns_grows_into_its_share_on_the_packet_plane,
    a_server_that_returns_grows_into_its_share_on_the_stream_plane
);

fn who_flaps_is_held_and_serves_only_alone(plane: Plane, lab: &TestLab) {
    let (vip, keys) = plane.vip(lab, 100);
    let keys = format!(
        "{keys}balance = \"round-robin\"\nhealth = {{ {FAST_CHECK}, ports = 444, flaps = 2, flap_window = \"1h\", flap_hold = \"1h\" }}"
    );
    let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
    let mut checked = [1, 2].map(|n| Some(Origin::tcp(lab.server(n), 444)));
    let relay = start(lab, &service("web", vip, "443", &keys, &ipv4(lab.servers())));
    for then in [HealthStatus::Up, HealthStatus::Held] {
        checked[0] = None;
        until(&relay, "web", "server-1", HealthStatus::Down);
        checked[0] = Some(Origin::tcp(lab.server(1), 444));
        until(&relay, "web", "server-1", then);
        assert!(serving(lab, vip, 443).contains("server-2"), "the service is up all the time");
    }
    let reason = relay.server("web", "server-1").reason;
    assert!(reason.starts_with("its check passes, but it went down 2 times lately: held for "), "{reason}");
    let told = relay.status();
    let event = told.events.iter().rfind(|event| event.to == "held").expect("the event of it");
    assert_eq!((event.from.as_str(), event.services.as_slice()), ("down", ["web".to_owned()].as_slice()));
    assert_eq!(serving(lab, vip, 443), names(&["server-2"]));
    // Better than nobody.
    checked[1] = None;
    relay.until("the held one serves", |status| status.services[0].servers[0].duty == "fail-open");
    assert_eq!(serving(lab, vip, 443), names(&["server-1"]));
    assert_eq!(relay.service("web").state, ServiceState::Degraded);
    relay.stop();
}

on_both_planes!(
    who_flaps_is_held_and_serves_only_alone,
    2,
    a_server_that_flaps_is_held_and_does_not_take_the_service_down_on_the_packet_plane,
    a_server_that_flaps_is_held_and_does_not_take_the_service_down_on_the_stream_plane
);

/// The check passes, the service's own port does not: only clients can tell.
fn who_refuses_clients_is_out(plane: Plane, lab: &TestLab) {
    let (vip, keys) = plane.vip(lab, 100);
    let keys = format!(
        "{keys}balance = \"round-robin\"\n[service.health]\ncheck = \"tcp\"\nports = 444\ninterval = \"100ms\"\ntimeout = \"20s\"\nrise = 1\nfall = 1\n\
         passive = {{ at_least = 5, window = \"1m\", hold = \"1h\" }}"
    );
    let _second = Origin::tcp(lab.server(2), 443);
    let _checked = [1, 2].map(|n| Origin::tcp(lab.server(n), 444));
    let relay = start(lab, &service("web", vip, "443", &keys, &ipv4(lab.servers())));
    let told = relay.until("clients have found out", |status| {
        // On the packet plane those of the first server are refused.
        drop(Connection::open(lab.client(), (vip, 443)));
        status.services[0].servers[0].health == HealthStatus::Down
    });
    let row = &told.services[0].servers[0];
    assert!(
        row.reason.starts_with("clients met: ") && row.reason.contains(" connects failed within 60 s"),
        "{}",
        row.reason
    );
    let event = told.events.iter().rfind(|event| event.to == "out").expect("the event of it");
    assert_eq!(event.services, ["web"]);
    assert_eq!(told.services[0].servers[1].health, HealthStatus::Up);
    assert_eq!(serving(lab, vip, 443), names(&["server-2"]));
    relay.stop();
}

on_both_planes!(
    who_refuses_clients_is_out,
    2,
    a_server_that_refuses_clients_is_out_though_its_check_passes_on_the_packet_plane,
    a_server_that_refuses_clients_is_out_though_its_check_passes_on_the_stream_plane
);

#[test]
fn a_server_whose_responses_are_errors_is_out_though_its_check_passes() {
    in_lab(a_server_whose_responses_are_errors_is_out_though_its_check_passes, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let keys = "balance = \"round-robin\"\nhttp = {}\n[service.health]\ncheck = \"tcp\"\n\
                    passive = { server_errors = 50, at_least = 5, window = \"1m\", hold = \"1h\" }";
        let broken = |_: &str| {
            Some(Reply { status: "503 Service Unavailable", fields: String::new(), body: "broken\n".to_owned() })
        };
        let _broken = WebOrigin::start_like(lab.server(1), 80, Ok, broken);
        let _sound = WebOrigin::start(lab.server(2), 80);
        let relay = start(lab, &service("web", vip, "80", keys, &ipv4(lab.servers())));
        let mut client = WebClient::open(lab.client(), (vip, 80));
        relay.until("responses have told", |status| {
            client.get("/");
            status.services[0].servers[0].health == HealthStatus::Down
        });
        assert_eq!(relay.server("web", "server-2").health, HealthStatus::Up);
        for _ in 0..4 {
            assert_eq!(client.get("/").status, 200);
        }
        let reason = relay.server("web", "server-1").reason;
        assert!(reason.contains(" responses were errors within 60 s"), "{reason}");
        relay.stop();
    });
}
