//! Who serves while no server of a service can: the sorry server on both planes, in HTTP mode also a page of ours.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tempfile::TempDir;
use towpath_engine::admin::OrderBody;
use towpath_engine::events::{Event, EventKind};
use towpath_engine::status::{HealthStatus, ServiceState};
use towpath_tests::web::{WebClient, WebOrigin};
use towpath_tests::{
    Connection, Greeting, Origin, Subject, TestLab, Topology, eventually, in_lab, ipv4, service, subject, who, who_from,
};

/// Small tables: many of these tests run at the same time.
const LIMITS: &str = "[limits]\nconnections = 1024\nudp_sessions = 1024\nflows = 8192\n";
/// Where checks ask: apart from the services, so that a server can fail and keep its connections.
const CHECKED: u16 = 444;
const FAST_CHECK: &str =
    "health = { check = \"tcp\", ports = 444, interval = \"100ms\", timeout = \"2s\", rise = 1, fall = 1 }";

/// The VIP of a plane: the balancer gets that of the stream plane at the begin of each test, nobody that of the packet plane.
fn vip(lab: &TestLab, plane: &str) -> Ipv4Addr {
    lab.free_vip(if plane == "packet" { 110 } else { 100 })
}

/// Two servers in turn on one plane, and server-3 for when both are gone.
fn config(lab: &TestLab, plane: &str, port: u16, keys: &str) -> String {
    let source = match plane {
        "packet" => format!("plane = \"packet\"\nsource.pool = [\"{}\"]\n", lab.free_snat(111)),
        _ => String::new(),
    };
    let sorry = format!("sorry = {{ address = \"{}\" }}", lab.server(3).ipv4());
    let keys = format!("{source}balance = \"round-robin\"\n{FAST_CHECK}\n{sorry}\n{keys}");
    service("web", vip(lab, plane), &port.to_string(), &keys, &ipv4(&lab.servers()[..2]))
}

fn until_health(relay: &Subject, server: usize, health: HealthStatus) {
    relay.until(&format!("server-{server} is {health:?}"), |status| {
        status.services[0].servers[server - 1].health == health
    });
}

fn both() -> BTreeSet<String> {
    ["server-1", "server-2"].map(str::to_owned).into()
}

fn served(lab: &TestLab, to: (Ipv4Addr, u16)) -> BTreeSet<String> {
    (0..4).map(|_| who(lab.client(), to)).collect()
}

fn consoled(relay: &Subject) -> u64 {
    relay.service("web").counters["consoled"]
}

fn duty(relay: &Subject) -> String {
    relay.server("web", "sorry").duty
}

fn serves(lab: &TestLab, plane: &str) {
    let mut checked = [1, 2].map(|n| Some(Origin::tcp(lab.server(n), CHECKED)));
    let _serving = [1, 2, 3].map(|n| Origin::tcp(lab.server(n), 5061));
    let to = (vip(lab, plane), 5061);
    let keys = "persistence = { by = \"source-ip\" }";
    let relay = subject!().start(lab.balancer(), &format!("{LIMITS}{}", config(lab, plane, 5061, keys)));
    relay.until_all_up();
    assert_eq!(duty(&relay), "standby");
    let pinned = lab.second_client(150);
    let come_back = || who_from(lab.client(), pinned, to);
    let home = come_back();
    let mut existing = Connection::open(lab.client(), to).expect("somebody serves");
    assert!(both().contains(&existing.greeting().expect("a greeting").name));

    checked.iter_mut().for_each(|origin| *origin = None);
    until_health(&relay, 1, HealthStatus::Down);
    until_health(&relay, 2, HealthStatus::Down);
    relay.until("the sorry server serves", |status| status.services[0].servers[2].duty == "sorry");
    assert_eq!(relay.service("web").state, ServiceState::Down, "sorry is no service");
    let new = lab.second_client(160);
    assert_eq!((who_from(lab.client(), new, to), come_back()), ("server-3".to_owned(), "server-3".to_owned()));
    let mut consoling = Connection::open(lab.client(), to).expect("it serves");
    assert_eq!(consoling.greeting().expect("a greeting").name, "server-3");
    existing.echo(b"still there").expect("what is open goes on");
    eventually("they are counted", || (consoled(&relay) == 3).then_some(()));
    assert_eq!(relay.service("web").terminations["no_server"], 0);
    let told = |to: &str| {
        let of_sorry = |event: &Event| event.subject.as_deref().is_some_and(|of| of.starts_with("sorry server"));
        let events = relay.status().events;
        events.iter().any(|event| event.kind == EventKind::Health && event.to == to && of_sorry(event))
    };
    assert!(told("sorry") && !told("standby"));

    checked[0] = Some(Origin::tcp(lab.server(1), CHECKED));
    checked[1] = Some(Origin::tcp(lab.server(2), CHECKED));
    until_health(&relay, 1, HealthStatus::Up);
    until_health(&relay, 2, HealthStatus::Up);
    assert_eq!(duty(&relay), "standby");
    assert!(told("standby"));
    assert_eq!(come_back(), home, "its entry has stayed");
    assert!(both().contains(&who_from(lab.client(), new, to)));
    consoling.echo(b"to its end").expect("who is with the sorry server stays until it ends");
    existing.echo(b"all the time").expect("what was open stays where it is");
    relay.stop();
}

#[test]
fn the_sorry_server_serves_while_nobody_else_can_on_the_stream_plane() {
    let test = the_sorry_server_serves_while_nobody_else_can_on_the_stream_plane;
    in_lab(test, Topology::TwoArm, 3, |lab| {
        lab.vip(100);
        serves(lab, "stream");
    });
}

#[test]
fn the_sorry_server_serves_while_nobody_else_can_on_the_packet_plane() {
    let test = the_sorry_server_serves_while_nobody_else_can_on_the_packet_plane;
    in_lab(test, Topology::TwoArm, 3, |lab| serves(lab, "packet"));
}

#[test]
fn orders_for_all_servers_leave_the_sorry_server_in_charge() {
    in_lab(orders_for_all_servers_leave_the_sorry_server_in_charge, Topology::TwoArm, 3, |lab| {
        let _checked = [1, 2].map(|n| Origin::tcp(lab.server(n), CHECKED));
        let _serving = [1, 2, 3].map(|n| Origin::tcp(lab.server(n), 443));
        lab.vip(100);
        for plane in ["stream", "packet"] {
            let to = (vip(lab, plane), 443);
            let relay = subject!().start(lab.balancer(), &format!("{LIMITS}{}", config(lab, plane, 443, "")));
            relay.until_all_up();
            let ordered = relay.order("web/*", "drain", &OrderBody::default());
            assert_eq!(ordered.members.len(), 2, "{plane}: {ordered:?}");
            assert!(ordered.warnings.iter().any(|told| told.contains("sorry server")), "{plane}: {ordered:?}");
            assert_eq!(served(lab, to), ["server-3".to_owned()].into(), "{plane}");
            // It can be meant, too: then nobody serves.
            let ordered = relay.order("web/sorry", "halt", &OrderBody::default());
            assert_eq!(ordered.members.len(), 1, "{plane}: {ordered:?}");
            relay.order("web/sorry", "ready", &OrderBody::default());
            relay.order("web/server-2", "ready", &OrderBody::default());
            assert_eq!(served(lab, to), ["server-2".to_owned()].into(), "{plane}");
            relay.stop();
        }
    });
}

/// Who answers a client of UDP; nobody, if it is lost.
fn ask(socket: &UdpSocket, to: SocketAddr) -> Option<String> {
    let mut answer = [0; 512];
    socket.send_to(b"?", to).expect("our own kernel takes it");
    let len = socket.recv(&mut answer).ok()?;
    let line = std::str::from_utf8(&answer[..len]).ok()?.lines().next()?;
    Some(Greeting::parse(line)?.name)
}

#[test]
fn clients_of_udp_leave_the_sorry_server_as_soon_as_another_is_back() {
    in_lab(clients_of_udp_leave_the_sorry_server_as_soon_as_another_is_back, Topology::TwoArm, 3, |lab| {
        lab.vip(100);
        let _serving = [1, 2, 3].map(|n| Origin::udp(lab.server(n), 5060));
        for plane in ["stream", "packet"] {
            let mut checked = [1, 2].map(|n| Some(Origin::tcp(lab.server(n), CHECKED)));
            let to = SocketAddr::from((vip(lab, plane), 5060));
            let keys = "protocol = \"udp\"";
            let relay = subject!().start(lab.balancer(), &format!("{LIMITS}{}", config(lab, plane, 5060, keys)));
            relay.until_all_up();
            let socket = lab.client().run(|| UdpSocket::bind("0.0.0.0:0")).expect("a thread").expect("a socket");
            socket.set_read_timeout(Some(Duration::from_secs(2))).expect("not zero");
            let ask = || eventually("somebody answers", || ask(&socket, to));
            assert!(both().contains(&ask()), "{plane}");
            checked.iter_mut().for_each(|origin| *origin = None);
            until_health(&relay, 1, HealthStatus::Down);
            until_health(&relay, 2, HealthStatus::Down);
            eventually("it is led to the sorry server", || (ask() == "server-3").then_some(()));
            assert_eq!(ask(), "server-3", "{plane}: it stays there");
            checked[1] = Some(Origin::tcp(lab.server(2), CHECKED));
            until_health(&relay, 2, HealthStatus::Up);
            eventually("it is led back", || (ask() == "server-2").then_some(()));
            relay.stop();
        }
    });
}

#[test]
fn in_http_mode_clients_come_back_with_their_next_request() {
    in_lab(in_http_mode_clients_come_back_with_their_next_request, Topology::TwoArm, 2, |lab| {
        let _serving = WebOrigin::start(lab.server(1), 80);
        let _page = WebOrigin::start(lab.server(2), 8080);
        let to = (lab.vip(100), 80);
        let sorry = format!("sorry = {{ address = \"{}\", port = 8080 }}", lab.server(2).ipv4());
        for each in ["request", "connection"] {
            let checked = Origin::tcp(lab.server(1), CHECKED);
            let keys =
                format!("http.balance_each = \"{each}\"\npersistence = {{ by = \"cookie\" }}\n{FAST_CHECK}\n{sorry}");
            let text = service("web", to.0, "80", &keys, &ipv4(&lab.servers()[..1]));
            let relay = subject!().start(lab.balancer(), &format!("{LIMITS}{text}"));
            relay.until_all_up();
            let mut client = WebClient::open(lab.client(), to);
            let first = client.get("/");
            assert!(first.text().starts_with("server-1"), "{each}: {}", first.text());
            let cookie =
                first.field("set-cookie").and_then(|value| value.split(';').next()).expect("a cookie").to_owned();
            checked.stop();
            until_health(&relay, 1, HealthStatus::Down);
            for fields in [String::new(), format!("Cookie: {cookie}\r\n")] {
                let sorry = client.get_with("/", &fields);
                assert!(sorry.text().starts_with("server-2"), "{each}: {}", sorry.text());
                assert_eq!(sorry.field("set-cookie"), None, "{each}: nobody is to come back to it");
            }
            assert_eq!(consoled(&relay), 2, "{each}");
            let _back = Origin::tcp(lab.server(1), CHECKED);
            until_health(&relay, 1, HealthStatus::Up);
            let again = client.get_with("/", &format!("Cookie: {cookie}\r\n"));
            assert!(again.text().starts_with("server-1"), "{each}: {}", again.text());
            relay.stop();
        }
    });
}

#[test]
fn a_page_is_shown_with_the_status_that_the_operator_wants() {
    in_lab(a_page_is_shown_with_the_status_that_the_operator_wants, Topology::TwoArm, 1, |lab| {
        let folder = TempDir::new().expect("a folder");
        let page = folder.path().join("sorry.html");
        fs::write(&page, "<h1>soon</h1>").expect("a file");
        let to = (lab.vip(100), 80);
        let page =
            format!("http.maintenance = {{ file = \"{}\", status = 502, retry_after = \"7s\" }}", page.display());
        let text = service("web", to.0, "80", &format!("{page}\n{FAST_CHECK}"), &ipv4(lab.servers()));
        let relay = subject!().start(lab.balancer(), &format!("{LIMITS}{text}"));
        let mut client = WebClient::open(lab.client(), to);
        let shown = client.get("/");
        assert_eq!((shown.status, shown.text(), shown.field("retry-after")), (502, "<h1>soon</h1>", Some("7")));
        assert_eq!(relay.service("web").counters["answered"], 1);
        relay.stop();
    });
}

#[test]
fn a_reload_takes_and_leaves_a_sorry_server() {
    in_lab(a_reload_takes_and_leaves_a_sorry_server, Topology::TwoArm, 3, |lab| {
        let _serving = Origin::tcp(lab.server(3), 443);
        lab.vip(100);
        for plane in ["stream", "packet"] {
            let to = (vip(lab, plane), 443);
            let with = format!("{LIMITS}{}", config(lab, plane, 443, ""));
            let without: String =
                with.lines().filter(|line| !line.starts_with("sorry")).map(|line| format!("{line}\n")).collect();
            let mut relay = subject!().start(lab.balancer(), &without);
            until_health(&relay, 1, HealthStatus::Down);
            until_health(&relay, 2, HealthStatus::Down);
            relay.reload(&with).expect("a reload takes it");
            let mut held = Connection::open(lab.client(), to).expect("it serves");
            assert_eq!(held.greeting().expect("a greeting").name, "server-3", "{plane}");
            relay.reload(&without).expect("a reload takes it");
            held.echo(b"goes on").expect("as that of any server that is removed");
            let refused = Connection::open(lab.client(), to).and_then(|mut connection| connection.greeting());
            assert!(refused.is_err(), "{plane}: {refused:?}");
            relay.stop();
        }
    });
}
