//! Servers are taken out of service and back at run time, on both planes: who goes where, what ends and how it is counted (T-18).

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use towpath_engine::admin::{DrainEndWord, DrainStatus, OrderBody, ThenWord};
use towpath_engine::events::EventKind;
use towpath_engine::status::ServerStatus;
use towpath_tests::web::{WebClient, WebOrigin};
use towpath_tests::{
    Connection, Greeting, Origin, PATIENCE, PLANES, SMALL_LIMITS, Subject, TestLab, Topology, ask_by_udp, in_both,
    in_lab, in_turn, ipv4, plane_vip, service, subject, who, who_from,
};

fn start(lab: &TestLab, plane: &str, keys: &str) -> Subject {
    subject!().start(lab.balancer(), &format!("{SMALL_LIMITS}{}", in_turn(lab, plane, "web", 443, keys)))
}

/// A connection that this server serves.
fn held_at(lab: &TestLab, to: (Ipv4Addr, u16), server: &str) -> Connection {
    for _ in 0..16 {
        let mut connection = Connection::open(lab.client(), to).expect("somebody serves");
        if connection.greeting().expect("a greeting").name == server {
            return connection;
        }
        connection.close().expect("a clean end");
    }
    panic!("{server} serves nobody of sixteen");
}

/// Who serves so many clients that every server in turn would.
fn served(lab: &TestLab, to: (Ipv4Addr, u16)) -> BTreeSet<String> {
    (0..6).map(|_| who(lab.client(), to)).collect()
}

fn both() -> BTreeSet<String> {
    ["server-1", "server-2"].map(str::to_owned).into()
}

fn second() -> BTreeSet<String> {
    ["server-2"].map(str::to_owned).into()
}

fn ms(ms: u64) -> Option<u64> {
    Some(ms)
}

fn drain_of(server: &ServerStatus) -> DrainStatus {
    let said = server.admin_said.as_ref().unwrap_or_else(|| panic!("nothing was said of {}", server.name));
    said.drain.clone().unwrap_or_else(|| panic!("{} does not drain", server.name))
}

/// Waits until the drain of `web/server-1` is over and, where it was halted, everything has ended.
fn until_over(relay: &Subject) -> ServerStatus {
    relay.until("the drain is over", |status| {
        let server = &status.services[0].servers[0];
        drain_of(server).over.is_some() && (server.admin == "drain" || server.service_connections == 0)
    });
    relay.server("web", "server-1")
}

/// Whom a client of HTTP mode is served by.
fn home_of(client: &mut WebClient) -> String {
    client.get("/").text().split(' ').next().unwrap_or_default().to_owned()
}

fn ended(relay: &Subject, label: &str) -> u64 {
    relay.service("web").terminations[label]
}

#[test]
fn t_18_a_draining_server_keeps_its_connections_and_gets_no_new_ones() {
    in_both(t_18_a_draining_server_keeps_its_connections_and_gets_no_new_ones, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        for plane in PLANES {
            let to = (plane_vip(lab, plane), 443);
            let relay = start(lab, plane, "");
            let mut held = held_at(lab, to, "server-1");
            let said = OrderBody { reason: "patch day".into(), ..OrderBody::default() };
            let ordered = relay.order("web/server-1", "drain", &said);
            let [member] = ordered.members.as_slice() else { panic!("{ordered:?}") };
            assert_eq!((member.before.admin.as_str(), member.after.admin.as_str()), ("ready", "drain"), "{plane}");
            // At once: the answer came when every worker followed it.
            assert_eq!(served(lab, to), second(), "{plane}");
            held.echo(b"still there").expect("a connection from before goes on");
            let server = relay.server("web", "server-1");
            assert_eq!((server.admin.as_str(), server.service_connections), ("drain", 1), "{plane}");
            let of = server.admin_said.expect("somebody has said it");
            assert_eq!((of.reason.as_str(), of.configured.as_str()), ("patch day", "ready"), "{plane}");
            assert!(of.by.starts_with("root (uid 0"), "{}", of.by);
            // Of both, of which one was not said.
            assert!(relay.server("web", "server-2").admin_said.is_none(), "{plane}");
            relay.order("web/server-1", "ready", &OrderBody::default());
            assert_eq!(served(lab, to), both(), "{plane}");
            held.close().expect("it ends as it would have anyway");
            let events = relay.status().events;
            let audit: Vec<String> =
                events.iter().filter(|event| event.kind == EventKind::Admin).map(|event| event.line()).collect();
            assert_eq!(audit.len(), 2, "{audit:?}");
            assert!(
                audit[0].starts_with("server server-1 (") && audit[0].contains(" of web: ready → drain: by "),
                "{audit:?}"
            );
            assert!(audit[0].contains(": patch day; 1 connections are left"), "{audit:?}");
            assert_eq!((ended(&relay, "server_drained"), ended(&relay, "server_halted")), (0, 0), "{plane}");
            relay.stop();
        }
    });
}

#[test]
fn clients_with_an_entry_enter_a_draining_server_only_where_that_is_set() {
    in_both(clients_with_an_entry_enter_a_draining_server_only_where_that_is_set, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        for (plane, enters) in PLANES.into_iter().flat_map(|plane| [(plane, true), (plane, false)]) {
            let to = (plane_vip(lab, plane), 443);
            let keys = format!("persistence = {{ by = \"source-ip\", enter_draining = {enters} }}");
            let relay = start(lab, plane, &keys);
            let home = who(lab.client(), to);
            let other = if home == "server-1" { "server-2" } else { "server-1" };
            let server = format!("web/{home}");
            relay.order(&server, "drain", &OrderBody::default());
            let expected = if enters { home.as_str() } else { other };
            assert_eq!(served(lab, to), [expected.to_owned()].into(), "{plane}, enter_draining = {enters}");
            // Nobody enters one that is halted, and who had to leave comes to the other.
            relay.order(&server, "halt", &OrderBody::default());
            assert_eq!(served(lab, to), [other.to_owned()].into(), "{plane}, enter_draining = {enters}");
            relay.stop();
        }
    });
}

#[test]
fn a_deadline_ends_what_is_left_and_counts_it() {
    in_both(a_deadline_ends_what_is_left_and_counts_it, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        for plane in PLANES {
            let to = (plane_vip(lab, plane), 443);
            let relay = start(lab, plane, "");
            let mut held = [held_at(lab, to, "server-1"), held_at(lab, to, "server-1")];
            let mut elsewhere = held_at(lab, to, "server-2");
            relay.order("web/server-1", "drain", &OrderBody { deadline_ms: ms(200), ..OrderBody::default() });
            assert!(held.iter_mut().all(Connection::is_ended), "{plane}: a reset that its kernel believes");
            let server = until_over(&relay);
            let over = drain_of(&server).over.expect("it is over");
            assert_eq!((server.admin.as_str(), over.why, over.left), ("halt", DrainEndWord::Deadline, 2), "{plane}");
            assert_eq!((ended(&relay, "server_drained"), ended(&relay, "server_halted")), (2, 0), "{plane}");
            elsewhere.echo(b"undisturbed").expect("the other server's clients stay");
            assert_eq!(served(lab, to), second(), "{plane}");
            let told =
                relay.status().events.iter().rfind(|event| event.kind == EventKind::Drain).map(|event| event.line());
            let told = told.expect("it is told");
            assert!(told.contains("drain → halt: its deadline has passed; 2 connections were ended"), "{told}");
            relay.stop();
        }
    });
}

#[test]
fn a_deadline_passes_while_the_whole_process_drains() {
    in_both(a_deadline_passes_while_the_whole_process_drains, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        for plane in PLANES {
            let to = (plane_vip(lab, plane), 443);
            let mut relay = start(lab, plane, "drain_timeout = \"1h\"");
            let mut held = held_at(lab, to, "server-1");
            let mut elsewhere = held_at(lab, to, "server-2");
            relay.order("web/server-1", "drain", &OrderBody { deadline_ms: ms(1_000), ..OrderBody::default() });
            relay.terminate();
            assert!(held.is_ended(), "{plane}: its server's deadline is sooner");
            elsewhere.echo(b"an hour is left").expect("the other server's client stays");
            elsewhere.close().expect("a clean end");
            assert_eq!(relay.wait(), Some(0), "{}", relay.log());
            assert!(relay.log().contains("drain → halt: its deadline has passed"), "{}", relay.log());
        }
    });
}

#[test]
fn a_drain_that_only_ends_leaves_its_connections_alone() {
    in_both(a_drain_that_only_ends_leaves_its_connections_alone, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        for plane in PLANES {
            let to = (plane_vip(lab, plane), 443);
            let relay = start(lab, plane, "");
            let mut held = held_at(lab, to, "server-1");
            let stays = OrderBody { deadline_ms: ms(100), then: Some(ThenWord::Stay), ..OrderBody::default() };
            relay.order("web/server-1", "drain", &stays);
            let server = until_over(&relay);
            assert_eq!((server.admin.as_str(), drain_of(&server).over.expect("over").left), ("drain", 1), "{plane}");
            held.echo(b"still there").expect("nobody ended it");
            assert_eq!(served(lab, to), second(), "{plane}");
            held.close().expect("a clean end");
            relay.stop();
        }
    });
}

#[test]
fn until_counts_what_the_service_has_there_and_not_what_others_have() {
    in_both(until_counts_what_the_service_has_there_and_not_what_others_have, |lab| {
        let _origins: Vec<Origin> =
            [1, 2].into_iter().flat_map(|n| [443, 444].map(|port| Origin::tcp(lab.server(n), port))).collect();
        for plane in PLANES {
            let text = [("web", 443), ("mail", 444)].map(|(name, port)| in_turn(lab, plane, name, port, ""));
            let relay = subject!().start(lab.balancer(), &format!("{SMALL_LIMITS}{}", text.concat()));
            let to = |port| (plane_vip(lab, plane), port);
            let mut others: Vec<Connection> = (0..3).map(|_| held_at(lab, to(444), "server-1")).collect();
            let mut held: Vec<Connection> = (0..3).map(|_| held_at(lab, to(443), "server-1")).collect();
            let until = OrderBody { until: Some(1), then: Some(ThenWord::Halt), ..OrderBody::default() };
            relay.order("web/server-1", "drain", &until);
            assert_eq!(served(lab, to(444)), both(), "{plane}: the other service uses it as before");
            held.pop().expect("three").close().expect("a clean end");
            relay.until("two are left", |status| status.services[0].servers[0].service_connections == 2);
            for connection in &mut held {
                connection.echo(b"not yet").expect("two are more than one");
            }
            held.pop().expect("two").close().expect("a clean end");
            assert!(held[0].is_ended(), "{plane}");
            let server = until_over(&relay);
            let over = drain_of(&server).over.expect("over");
            assert_eq!((server.admin.as_str(), over.why, over.left), ("halt", DrainEndWord::Until, 1), "{plane}");
            assert_eq!(ended(&relay, "server_drained"), 1, "{plane}");
            assert_eq!(server.connections, 3, "{plane}: those of the other service");
            for connection in &mut others {
                connection.echo(b"undisturbed").expect("no drain of theirs");
            }
            relay.stop();
        }
    });
}

#[test]
fn everywhere_is_every_service_that_has_the_server() {
    in_both(everywhere_is_every_service_that_has_the_server, |lab| {
        let _origins: Vec<Origin> =
            [1, 2].into_iter().flat_map(|n| [443, 444].map(|port| Origin::tcp(lab.server(n), port))).collect();
        for plane in PLANES {
            let text = [("web", 443), ("mail", 444)].map(|(name, port)| in_turn(lab, plane, name, port, ""));
            let relay = subject!().start(lab.balancer(), &format!("{SMALL_LIMITS}{}", text.concat()));
            let to = |port| (plane_vip(lab, plane), port);
            let mut held = held_at(lab, to(444), "server-1");
            let ordered = relay.order("*/server-1", "halt", &OrderBody::default());
            assert_eq!((ordered.members.len(), ordered.warnings.len()), (2, 0), "{plane}: {ordered:?}");
            assert!(held.is_ended(), "{plane}");
            assert_eq!([443, 444].map(|port| served(lab, to(port))), [second(), second()], "{plane}");
            // A whole service, by addresses: nobody serves it then, which is said.
            let address = lab.server(2).ipv4();
            let dry = OrderBody { dry_run: true, ..OrderBody::default() };
            let warned = relay.order(&format!("web/{address}"), "drain", &dry);
            assert_eq!(warned.warnings, ["service web: no server takes new clients"], "{plane}");
            assert_eq!(served(lab, to(443)), second(), "{plane}: it was only asked");
            relay.order("web/*", "drain", &OrderBody::default());
            assert_eq!(relay.server("web", "server-2").admin, "drain", "{plane}");
            assert_eq!(served(lab, to(444)), second(), "{plane}");
            relay.order("*/*", "ready", &OrderBody::default());
            assert_eq!([443, 444].map(|port| served(lab, to(port))), [both(), both()], "{plane}");
            assert_eq!(relay.service("mail").terminations["server_halted"], 1, "{plane}");
            relay.stop();
        }
    });
}

#[test]
fn a_weight_of_zero_gets_nobody_new_and_the_configured_one_is_found_again() {
    in_both(a_weight_of_zero_gets_nobody_new_and_the_configured_one_is_found_again, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        for plane in PLANES {
            let to = (plane_vip(lab, plane), 443);
            let relay = start(lab, plane, "");
            let weight = |text: &str| OrderBody {
                weight: Some(serde_json::from_str(text).expect("a weight")),
                ..OrderBody::default()
            };
            relay.order("web/server-1", "weight", &weight("0"));
            assert_eq!(served(lab, to), second(), "{plane}");
            let server = relay.server("web", "server-1");
            assert_eq!((server.weight, server.weight_said.expect("said").configured), (0, 100), "{plane}");
            relay.order("web/server-1", "weight", &weight("\"configured\""));
            assert_eq!(served(lab, to), both(), "{plane}");
            assert!(relay.server("web", "server-1").weight_said.is_none(), "{plane}");
            relay.stop();
        }
    });
}

/// A UDP client at a port of its own, so that all its datagrams are of one session.
struct Caller {
    socket: UdpSocket,
    vip: SocketAddr,
}

impl Caller {
    fn new(lab: &TestLab, vip: SocketAddr) -> Caller {
        let socket = lab.client().run(|| UdpSocket::bind("0.0.0.0:0")).expect("a thread").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("not zero");
        Caller { socket, vip }
    }

    /// Who answers; asks again where nobody does.
    fn ask(&self) -> String {
        let mut answer = [0; 512];
        for _ in 0..20 {
            self.socket.send_to(b"?", self.vip).expect("our own kernel takes it");
            match self.socket.recv(&mut answer) {
                Ok(length) => {
                    let line = std::str::from_utf8(&answer[..length]).expect("text").lines().next().map(str::to_owned);
                    return Greeting::parse(&line.expect("a line")).expect("a greeting").name;
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(error) => panic!("{error}"),
            }
        }
        panic!("nobody answers within {PATIENCE:?}");
    }
}

#[test]
fn udp_clients_stay_until_the_deadline_and_then_go_on_elsewhere() {
    in_both(udp_clients_stay_until_the_deadline_and_then_go_on_elsewhere, |lab| {
        let _origins = [1, 2].map(|n| Origin::udp(lab.server(n), 443));
        for plane in PLANES {
            let to = SocketAddr::from((plane_vip(lab, plane), 443));
            let relay = start(lab, plane, "protocol = \"udp\"");
            let caller = loop {
                let caller = Caller::new(lab, to);
                if caller.ask() == "server-1" {
                    break caller;
                }
            };
            relay.order("web/server-1", "drain", &OrderBody::default());
            for _ in 0..3 {
                assert_eq!(caller.ask(), "server-1", "{plane}: a session from before goes on");
            }
            let from = IpAddr::from(lab.client().ipv4());
            for _ in 0..4 {
                assert_eq!(ask_by_udp(lab.client(), from, to, b"new").name, "server-2", "{plane}");
            }
            relay.order("web/server-1", "drain", &OrderBody { deadline_ms: ms(0), ..OrderBody::default() });
            until_over(&relay);
            assert_eq!(caller.ask(), "server-2", "{plane}: its next datagram begins a session elsewhere");
            let over = ended(&relay, "server_drained");
            assert!(over >= 1, "{plane}: {over} sessions were counted");
            relay.stop();
        }
    });
}

#[test]
fn who_came_before_a_drain_and_has_no_server_yet_gets_another_one() {
    in_both(who_came_before_a_drain_and_has_no_server_yet_gets_another_one, |lab| {
        let mut origins = [1, 2].map(|n| Some(Origin::tcp(lab.server(n), 443)));
        let to = (plane_vip(lab, "stream"), 443);
        // Each waits for its first bytes, which may name whom it asks for.
        let keys = "persistence = { by = \"sni\" }\ntls.handshake_timeout = \"1m\"";
        let relay = start(lab, "stream", keys);
        let mut early: Vec<Connection> =
            (0..4).map(|_| Connection::open(lab.client(), to).expect("the relay listens")).collect();
        relay.until("they are taken", |status| status.services[0].accepted >= 4);
        relay.order("web/server-1", "drain", &OrderBody { then: Some(ThenWord::Halt), ..OrderBody::default() });
        until_over(&relay);
        origins[0] = None;
        for connection in &mut early {
            connection.stream().write_all(b"no TLS at all").expect("the relay takes it");
            assert_eq!(connection.greeting().expect("a server").name, "server-2");
        }
        assert_eq!((relay.server("web", "server-1").opened, ended(&relay, "server_drained")), (0, 0));
        relay.stop();
    });
}

/// What was drained or halted is as cold as what was down.
#[test]
fn a_server_that_is_ready_again_grows_into_its_share() {
    in_both(a_server_that_is_ready_again_grows_into_its_share, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        for plane in PLANES {
            let to = (plane_vip(lab, plane), 443);
            // So long that the test sees its beginning only.
            let relay = start(lab, plane, "slow_start = \"1h\"");
            let at_first = || (0..22).filter(|_| who(lab.client(), to) == "server-1").count();
            assert_eq!(at_first(), 11, "{plane}: a start is no return");
            for verb in ["drain", "halt"] {
                relay.order("web/server-1", verb, &OrderBody::default());
                relay.order("web/server-1", "ready", &OrderBody::default());
                assert_eq!(at_first(), 2, "{plane}: a tenth as many as the other one after {verb}");
            }
            relay.stop();
        }
    });
}

#[test]
fn who_was_away_during_a_drain_comes_back_to_a_server_that_is_ready_again() {
    in_both(who_was_away_during_a_drain_comes_back_to_a_server_that_is_ready_again, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let clients: Vec<IpAddr> = (150..158).map(|number| lab.second_client(number)).collect();
        for plane in PLANES {
            let to = (plane_vip(lab, plane), 443);
            let relay = start(lab, plane, "persistence = { by = \"source-ip\" }");
            let come = |from: IpAddr| who_from(lab.client(), from, to);
            let of_first: Vec<IpAddr> =
                clients.iter().copied().filter(|&from| come(from) == "server-1").take(2).collect();
            let [absent, present] = of_first[..] else { panic!("{plane}: round robin reaches both") };
            relay.order("web/server-1", "drain", &OrderBody::default());
            assert_eq!(come(present), "server-2", "{plane}");
            relay.order("web/server-1", "ready", &OrderBody::default());
            assert_eq!((come(absent).as_str(), come(present).as_str()), ("server-1", "server-2"), "{plane}");
            relay.stop();
        }
    });
}

/// kubernetes#81775: a balancer goes by the client's port alone, so whoever uses a port again is sent to the server that is being drained, as long as the
/// balancer remembers the connection before: the drain never ends, and when the server goes the client falls into a hole. Here a new connection is a new
/// connection, whatever its port was used for.
#[test]
fn who_uses_its_port_again_leaves_a_draining_server() {
    in_both(who_uses_its_port_again_leaves_a_draining_server, |lab| {
        let mut origins = [1, 2].map(|n| Some(Origin::tcp(lab.server(n), 443)));
        for (plane, port) in PLANES.into_iter().zip([45_001, 45_101]) {
            let to = (plane_vip(lab, plane), 443);
            let relay = start(lab, plane, "");
            let from = |port: u16| SocketAddr::from((lab.client().ipv4(), port));
            let visit = |port: u16| {
                let mut connection = Connection::open_from_port(lab.client(), from(port), to).expect("somebody serves");
                let name = connection.greeting().expect("a greeting").name;
                (connection, name)
            };
            // Connections that the server, the client, or a reset has ended, each with a port of its own, all of server-1.
            let mut ports = Vec::new();
            for port in port..port + 12 {
                let (connection, name) = visit(port);
                if name == "server-1" {
                    ports.push(port);
                }
                match port % 2 {
                    0 => drop(connection.close().expect("a clean end")),
                    _ => connection.reset().expect("a reset"),
                }
            }
            assert!(ports.len() >= 4, "in turn: {ports:?}");
            relay.order("web/server-1", "drain", &OrderBody { then: Some(ThenWord::Halt), ..OrderBody::default() });
            // Nobody is left, so it is over, however often clients come back from these ports.
            for &port in ports.iter().chain(&ports) {
                let (connection, name) = visit(port);
                assert_eq!(name, "server-2", "{plane}: port {port}");
                connection.reset().expect("a reset");
            }
            let server = until_over(&relay);
            assert_eq!(server.admin, "halt", "{plane}");
            // The server goes: nobody notices.
            origins[0] = None;
            for &port in &ports {
                let (connection, name) = visit(port);
                assert_eq!(name, "server-2", "{plane}: port {port}");
                connection.reset().expect("a reset");
            }
            origins[0] = Some(Origin::tcp(lab.server(1), 443));
            relay.stop();
        }
    });
}

/// loxilb#565: what comes back takes over before it knows what there is, and clients are reset. Here a balancer that comes back knows what was said before
/// it serves its first client, and a server that comes back takes new clients only: those who went elsewhere meanwhile stay there.
#[test]
fn what_comes_back_disturbs_nobody_and_knows_what_was_said() {
    in_both(what_comes_back_disturbs_nobody_and_knows_what_was_said, |lab| {
        let origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        for plane in PLANES {
            let to = (plane_vip(lab, plane), 443);
            let check = "health = { check = \"tcp\", interval = \"10s\", timeout = \"1s\", rise = 1, fall = 1 }";
            let relay = start(lab, plane, check);
            relay.until_all_up();
            relay.order("web/server-1", "halt", &OrderBody::default());
            let mut relay = relay.restart(lab.balancer(), || {});
            // Not one of the first clients.
            assert_eq!(served(lab, to), second(), "{plane}");
            let server = relay.server("web", "server-1");
            assert_eq!((server.admin.as_str(), server.opened), ("halt", 0), "{plane}");
            let mut moved = [held_at(lab, to, "server-2"), held_at(lab, to, "server-2")];
            relay.order("web/server-1", "ready", &OrderBody::default());
            assert_eq!(served(lab, to), both(), "{plane}");
            for connection in &mut moved {
                connection.echo(b"undisturbed").expect("it stays where it is");
            }
            assert!(relay.is_running());
            relay.stop();
        }
        drop(origins);
    });
}

#[test]
fn what_was_said_survives_reloads_and_restarts_until_the_file_says_something_new() {
    in_both(what_was_said_survives_reloads_and_restarts_until_the_file_says_something_new, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        for plane in PLANES {
            let to = (plane_vip(lab, plane), 443);
            let text = format!("{SMALL_LIMITS}{}", in_turn(lab, plane, "web", 443, ""));
            let mut relay = subject!().start(lab.balancer(), &text);
            let drain = OrderBody {
                deadline_ms: ms(3_600_000),
                until: Some(2),
                reason: "größer".into(),
                ..OrderBody::default()
            };
            // One connection is not yet few enough.
            let mut held: Vec<Connection> = (0..3).map(|_| held_at(lab, to, "server-1")).collect();
            let said = relay.order("web/server-1", "drain", &drain);
            assert_eq!(said.warnings, [""; 0], "{plane}: it is written down");
            let before = relay.server("web", "server-1").admin_said.expect("said");
            relay.reload(&text.replace("balance = \"round-robin\"", "balance = \"least-connections\"")).expect("taken");
            let after = relay.server("web", "server-1");
            assert_eq!((after.admin.as_str(), after.service_connections), ("drain", 3), "{plane}");
            held.iter_mut().for_each(|held| held.echo(b"still there").expect("a reload ends nothing"));
            assert_eq!(served(lab, to), second(), "{plane}");
            relay.reload(&text).expect("taken");
            drop(held);
            // Its end may come first: nobody is left then.
            let mut relay = relay.restart(lab.balancer(), || {});
            assert_eq!(served(lab, to), second(), "{plane}");
            let kept = relay.server("web", "server-1").admin_said.expect("kept");
            assert_eq!(
                (kept.since_unix_ms, &kept.by, &kept.reason),
                (before.since_unix_ms, &before.by, &before.reason)
            );
            assert_eq!(kept.drain.expect("a drain").until, 2, "{plane}");
            // The file says something new of the server, which is the later word; and again.
            for (admin, expected) in [("drain", second()), ("ready", both())] {
                relay
                    .reload(&text.replacen(
                        "name = \"server-1\"\n",
                        &format!("name = \"server-1\"\nadmin = \"{admin}\"\n"),
                        1,
                    ))
                    .expect("taken");
                assert_eq!(served(lab, to), expected, "{plane}: {admin}");
                assert!(relay.server("web", "server-1").admin_said.is_none(), "{plane}: {admin}");
            }
            relay.stop();
        }
    });
}

#[test]
fn a_deadline_passes_while_nobody_is_there() {
    in_both(a_deadline_passes_while_nobody_is_there, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        for plane in PLANES {
            let to = (plane_vip(lab, plane), 443);
            let relay = start(lab, plane, "");
            let held = held_at(lab, to, "server-1");
            relay.order("web/server-1", "drain", &OrderBody { deadline_ms: ms(3_600_000), ..OrderBody::default() });
            let state = relay.state_file();
            let relay = relay.restart(lab.balancer(), || {
                // Three hours later.
                let text = fs::read_to_string(&state).expect("it was written");
                let mut file: serde_json::Value = serde_json::from_str(&text).expect("JSON");
                let deadline = &mut file["members"][0]["admin"]["drain"]["deadline_unix_ms"];
                *deadline = (deadline.as_u64().expect("a time") - 3 * 3_600_000).into();
                fs::write(&state, file.to_string()).expect("it can be written");
            });
            let server = relay.server("web", "server-1");
            assert_eq!((server.admin.as_str(), server.opened), ("halt", 0), "{plane}");
            assert_eq!(drain_of(&server).over.expect("over").why, DrainEndWord::Deadline, "{plane}");
            assert_eq!(served(lab, to), second(), "{plane}");
            drop(held);
            relay.stop();
        }
    });
}

#[test]
fn a_damaged_state_file_is_told_and_set_aside() {
    in_both(a_damaged_state_file_is_told_and_set_aside, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let relay = start(lab, "stream", "");
        relay.order("web/server-1", "halt", &OrderBody::default());
        let state = relay.state_file();
        let mut aside = state.clone().into_os_string();
        aside.push(".broken");
        let relay =
            relay.restart(lab.balancer(), || fs::write(&state, "{\"version\":1,\"mem").expect("it can be written"));
        assert_eq!(served(lab, (plane_vip(lab, "stream"), 443)), both(), "as configured");
        assert_eq!(fs::read_to_string(&aside).expect("nothing is lost"), "{\"version\":1,\"mem");
        let told = relay.status().events.iter().find(|event| event.kind == EventKind::Admin).map(|event| event.line());
        let told = told.expect("it is told");
        assert!(told.contains("it is damaged") && told.contains("every server is as configured"), "{told}");
        // And the next word is kept again.
        relay.order("web/server-2", "halt", &OrderBody::default());
        let relay = relay.restart(lab.balancer(), || {});
        assert_eq!(relay.server("web", "server-2").admin, "halt");
        relay.stop();
    });
}

#[test]
fn what_cannot_be_kept_holds_all_the_same_and_is_told() {
    in_both(what_cannot_be_kept_holds_all_the_same_and_is_told, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let relay = start(lab, "stream", "");
        let mut new = relay.state_file().into_os_string();
        new.push(".new");
        // Even root cannot write a file where a directory is.
        fs::create_dir(&new).expect("the directory can be written");
        let said = relay.order("web/server-1", "halt", &OrderBody::default());
        assert_eq!(served(lab, (plane_vip(lab, "stream"), 443)), second());
        let [warning] = said.warnings.as_slice() else { panic!("{said:?}") };
        assert!(warning.starts_with("this will not survive a restart: "), "{warning}");
        fs::remove_dir(&new).expect("it is empty");
        assert_eq!(relay.order("web/server-2", "drain", &OrderBody::default()).warnings.len(), 1, "nobody serves");
        relay.stop();
    });
}

#[test]
fn a_client_that_keeps_its_connection_and_asks_nothing_does_not_hold_up_a_drain() {
    in_lab(a_client_that_keeps_its_connection_and_asks_nothing_does_not_hold_up_a_drain, Topology::TwoArm, 2, |lab| {
        let _origins = [1, 2].map(|number| WebOrigin::start(lab.server(number), 80));
        let to = (lab.vip(100), 80);
        let keys = "balance = \"round-robin\"\n[service.http]\nbalance_each = \"connection\"";
        let relay = subject!().start(
            lab.balancer(),
            &(SMALL_LIMITS.to_owned() + &service("web", to.0, "80", keys, &ipv4(lab.servers()))),
        );
        let mut clients: Vec<WebClient> = (0..4).map(|_| WebClient::open(lab.client(), to)).collect();
        let homes: BTreeSet<String> = clients.iter_mut().map(home_of).collect();
        assert_eq!(homes.len(), 2, "{homes:?}");
        // One that is under way is not cut.
        let mut busy = loop {
            let mut client = WebClient::open(lab.client(), to);
            if client.get("/").text().starts_with("server-1 ") {
                break client;
            }
        };
        busy.send("GET /slow/700 HTTP/1.1\r\nHost: a\r\n\r\n");
        relay.until("it is on its way", |status| status.services[0].counters["requests"] >= 6);
        relay.order("web/server-1", "drain", &OrderBody { then: Some(ThenWord::Halt), ..OrderBody::default() });
        assert_eq!(busy.response("GET").expect("a response").status, 200);
        until_over(&relay);
        assert_eq!(ended(&relay, "server_drained"), 0, "nothing had to be cut");
        for client in clients.iter_mut().chain([&mut busy]) {
            assert!(client.get("/").text().starts_with("server-2 "), "on the connection that it has");
        }
        relay.stop();
    });
}

#[test]
fn the_command_line_does_what_it_says_and_ends_as_it_says() {
    in_both(the_command_line_does_what_it_says_and_ends_as_it_says, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let to = (plane_vip(lab, "stream"), 443);
        let relay = start(lab, "stream", "");
        let run = |arguments: &[&str]| {
            let output = relay.command(&[&["server"], arguments].concat());
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
            (output.status.code(), text(output.stdout), text(output.stderr))
        };
        let held = held_at(lab, to, "server-1");
        let (code, said, _) = run(&["drain", "web/server-1", "--deadline", "1h", "--dry-run"]);
        assert_eq!(code, Some(0));
        assert!(
            said.starts_with(
                "web/server-1  ready → drain  1 connection left, over after 1 h 0 min at most, then halted\n"
            ),
            "{said}"
        );
        assert_eq!(relay.server("web", "server-1").admin, "ready", "it was only asked");

        let (code, said, told) =
            run(&["drain", "web/server-1", "--reason", "patch day", "--wait", "--timeout", "300ms"]);
        assert_eq!(code, Some(7), "{said}{told}");
        assert!(said.contains("web/server-1: drain, 1 connection after"), "{said}");
        assert!(told.contains("web/server-1: 1 connection left"), "{told}");
        let (code, said, _) = run(&["show", "web/*"]);
        assert_eq!(code, Some(0));
        assert!(said.contains(": patch day; over when no connection is left"), "{said}");

        // Said again, with a deadline: it is over, and halted.
        let (code, said, told) = run(&["drain", "web/server-1", "--deadline", "100ms", "--wait"]);
        assert_eq!(code, Some(0), "{said}{told}");
        assert!(said.contains("web/server-1: halt after"), "{said}");
        drop(held);
        let (code, said, _) = run(&["ready", "web/server-1", "web/server-2", "--wait", "--json"]);
        assert_eq!(code, Some(0));
        let json: serde_json::Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!(json["orders"][0]["members"][0]["before"]["admin"], "halt");
        assert_eq!(
            (&json["orders"][1]["members"][0]["after"]["admin"], &json["waited"]["end"]),
            (&"ready".into(), &"done".into())
        );
        assert_eq!(served(lab, to), both());

        let (code, _, told) = run(&["halt", "web/*"]);
        assert_eq!(code, Some(0));
        assert_eq!(told, "warning: service web: no server takes new clients\n");
        let (code, said, _) = run(&["weight", "web/server-2", "7"]);
        assert_eq!((code, said.as_str()), (Some(0), "web/server-2  weight 100 → weight 7\n"));

        for (arguments, code, expected) in [
            (&["drain", "wbe/server-1"][..], 1, "no service \"wbe\"; there are web"),
            (&["drain", "web/server-3"], 1, "no server \"server-3\" in service \"web\"; there are server-1, server-2"),
            (&["halt", "*/nobody"], 1, "no server \"nobody\"; there are server-1, server-2"),
            (&["drain", "web"], 2, "SERVICE/SERVER"),
            (&["drain", "web/server-1", "--deadline", "5"], 2, "90s, 10m or 2h"),
            (&["drain", "web/server-1", "--deadline", "31d"], 1, "30 days"),
            (&["drain", "web/server-1", "--timeout", "5s"], 2, "--wait"),
            (&["weight", "web/server-1", "65536"], 2, "0 to 65535"),
            (&["halt", "web/server-1", "--until", "3"], 2, "--until"),
        ] {
            let (found, _, told) = run(arguments);
            assert_eq!(found, Some(code), "{arguments:?}: {told}");
            assert!(told.contains(expected), "{arguments:?}: {told}");
        }
        let control = relay.control();
        relay.stop();
        let mut gone = subject!().command();
        gone.args(["server", "show", "*/*", "--socket"]).arg(control);
        assert_eq!(gone.output().expect("it can be run").status.code(), Some(5));
    });
}
