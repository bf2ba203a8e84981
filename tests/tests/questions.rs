//! What an operator asks of a running balancer, on both planes: which sessions there are, where one is and why, what would become of a new connection, who is
//! remembered, what passes; and that some end.

use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use pcap_file::pcapng::PcapNgReader;
use pcap_file::pcapng::blocks::Block;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketOption;
use serde::de::DeserializeOwned;
use towpath_engine::admin::{OrderBody, WeightBody};
use towpath_engine::events::{Event, EventKind};
use towpath_engine::explain::ExplanationStatus;
use towpath_engine::persistence::{ClearedStatus, EntriesStatus};
use towpath_engine::sessions::{FlowStatus, KilledStatus, SessionStatus, SessionsStatus};
use towpath_tests::{
    Connection, Origin, PLANES, SMALL_LIMITS, Subject, TestLab, Topology, eventually, in_both, in_lab, in_turn, ipv4,
    plane_vip, service, subject, visit, who,
};

/// Two workers, so that answers are put together.
fn start(lab: &TestLab, plane: &str, keys: &str) -> Subject {
    subject!().start_on(lab.balancer(), &format!("{SMALL_LIMITS}{}", in_turn(lab, plane, "web", 443, keys)), &[0, 1])
}

/// What a command line says as JSON.
#[track_caller]
fn asked<T: DeserializeOwned>(relay: &Subject, arguments: &[&str]) -> T {
    let output = relay.command(&[arguments, &["--json"]].concat());
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|wrong| panic!("{arguments:?}: {wrong}: {out}{error}"))
}

fn listed(relay: &Subject, arguments: &[&str]) -> SessionsStatus {
    asked(relay, &[&["sessions", "list"], arguments].concat())
}

/// What it says to people, with its exit code.
fn told(relay: &Subject, arguments: &[&str]) -> (Option<i32>, String) {
    let output = relay.command(arguments);
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// A connection that was greeted, and by whom.
fn held(lab: &TestLab, to: (Ipv4Addr, u16)) -> (Connection, String) {
    let mut connection = Connection::open(lab.client(), to).expect("somebody serves");
    let name = connection.greeting().expect("a greeting").name;
    (connection, name)
}

fn of(connection: &Connection) -> SocketAddr {
    connection.stream().local_addr().expect("it is connected")
}

/// The session of a connection.
#[track_caller]
fn session_of<'s>(sessions: &'s SessionsStatus, connection: &Connection) -> &'s SessionStatus {
    let client = of(connection);
    let found = sessions.sessions.iter().find(|session| session.client == client);
    found.unwrap_or_else(|| panic!("no session of {client}: {sessions:?}"))
}

#[test]
fn sessions_are_listed_with_what_they_are_and_those_that_are_meant_end() {
    in_both(sessions_are_listed_with_what_they_are_and_those_that_are_meant_end, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        for plane in PLANES {
            let to = (plane_vip(lab, plane), 443);
            let relay = start(lab, plane, "");
            assert_eq!(listed(&relay, &[]).matched, 0, "{plane}");
            let mut open: Vec<(Connection, String)> = (0..6).map(|_| held(lab, to)).collect();
            let all = listed(&relay, &[]);
            assert_eq!((all.matched, all.sessions.len(), all.warnings.len()), (6, 6, 0), "{plane}: {all:?}");
            for (connection, server) in &open {
                let session = session_of(&all, connection);
                assert_eq!(session.server.as_ref(), Some(server), "{plane}");
                assert_eq!((session.plane.as_str(), session.service.as_str()), (plane, "web"));
                assert_eq!((session.vip, session.state.as_str()), (SocketAddr::from(to), "established"));
                assert_eq!(session.why.as_deref(), Some("balanced"), "{plane}");
                assert!(session.destination.is_some_and(|at| at.port() == 443) && session.source.is_some());
            }
            let first = open[0].1.clone();
            assert_eq!(listed(&relay, &["--server", &first]).matched, 3, "{plane}");
            assert_eq!(listed(&relay, &["--client", "192.0.2.0/24"]).matched, 0, "{plane}");
            let port = of(&open[0].0).ip().to_string();
            assert_eq!(listed(&relay, &["--client", &port, "--service", "web"]).matched, 6, "{plane}");
            let few = listed(&relay, &["--limit", "2"]);
            assert_eq!((few.matched, few.sessions.len()), (6, 2), "{plane}");
            assert!(few.warnings[0].contains("2 of 6 are named"), "{:?}", few.warnings);

            let id = session_of(&all, &open[0].0).id.clone();
            let dry: KilledStatus = asked(&relay, &["sessions", "kill", &id, "--dry-run"]);
            assert_eq!((dry.matched, dry.killed, dry.dry_run), (1, 0, true), "{plane}");
            open[0].0.echo(b"nothing has happened").expect("it was not meant");
            let killed: KilledStatus = asked(&relay, &["sessions", "kill", &id, "--reason", "runaway"]);
            assert_eq!((killed.matched, killed.killed, killed.sessions.len()), (1, 1, 1), "{plane}");
            let (mut ended, _) = open.remove(0);
            assert!(ended.is_ended(), "{plane}: a reset that its kernel believes");
            for (connection, _) in &mut open {
                connection.echo(b"undisturbed").expect("the others stay");
            }
            let again: KilledStatus = asked(&relay, &["sessions", "kill", &id]);
            assert_eq!((again.matched, again.killed), (0, 0), "{plane}: its id is nobody else's");

            let killed: KilledStatus = asked(&relay, &["sessions", "kill", "--service", "web", "--server", &first]);
            assert_eq!(killed.killed, 2, "{plane}");
            for (connection, server) in &mut open {
                match *server == first {
                    true => assert!(connection.is_ended(), "{plane}"),
                    false => connection.echo(b"undisturbed").expect("the other server's stay"),
                }
            }
            let killed: KilledStatus = asked(&relay, &["sessions", "kill", "--all"]);
            assert_eq!(killed.killed, 3, "{plane}");
            relay.until("all have ended", |status| status.services[0].connections == 0);
            assert_eq!(relay.service("web").terminations["killed"], 6, "{plane}");
            let events = relay.status().events;
            let audit: Vec<String> =
                events.iter().filter(|event| event.kind == EventKind::Admin).map(|event| event.line()).collect();
            assert_eq!(audit.len(), 4, "{audit:?}");
            assert!(audit[0].contains("by root (uid 0") && audit[0].ends_with(": runaway"), "{audit:?}");
            assert!(audit[2].contains("service web, server "), "{audit:?}");
            visit(lab.client(), to);
            relay.stop();
        }
    });
}

#[test]
fn what_a_removed_service_or_server_still_has_open_is_found_by_its_name() {
    in_both(what_a_removed_service_or_server_still_has_open_is_found_by_its_name, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let stays = in_turn(lab, "packet", "stays", 443, "");
        let web = |servers: &[(&str, IpAddr)]| {
            format!(
                "{SMALL_LIMITS}{stays}{}",
                service("web", plane_vip(lab, "stream"), "443", "balance = \"round-robin\"", servers)
            )
        };
        let servers = ipv4(lab.servers());
        let mut relay = subject!().start_on(lab.balancer(), &web(&servers), &[0, 1]);
        let mut open: Vec<(Connection, String)> = (0..4).map(|_| held(lab, (plane_vip(lab, "stream"), 443))).collect();
        let called = |relay: &Subject, name: &str| listed(relay, &["--server", name, "--service", "web"]).matched;
        assert_eq!((called(&relay, "server-1"), called(&relay, "server-2")), (2, 2));
        relay.reload(&web(&servers[..1])).expect("a server is taken out");
        assert_eq!((called(&relay, "server-1"), called(&relay, "server-2")), (2, 2));
        relay.reload(&format!("{SMALL_LIMITS}{stays}")).expect("its service is taken out");
        assert_eq!((called(&relay, "server-1"), called(&relay, "server-2")), (2, 2));
        assert!(listed(&relay, &[]).sessions.iter().all(|session| session.service == "web"));
        let killed: KilledStatus = asked(&relay, &["sessions", "kill", "--service", "web", "--server", "server-2"]);
        assert_eq!((killed.matched, killed.killed), (2, 2));
        for (connection, server) in &mut open {
            match server.as_str() {
                "server-2" => assert!(connection.is_ended()),
                _ => connection.echo(b"undisturbed").expect("the other server's stay"),
            }
        }
        let killed: KilledStatus = asked(&relay, &["sessions", "kill", "--service", "web"]);
        assert_eq!(killed.killed, 2);
        eventually("nothing has the name any more", || {
            let (code, text) = told(&relay, &["sessions", "list", "--service", "web"]);
            (code == Some(1) && text.contains("no service \"web\"; there are stays")).then_some(())
        });
        relay.stop();
    });
}

#[test]
fn who_does_not_wait_for_the_answer_is_told_of_all_the_same() {
    in_both(who_does_not_wait_for_the_answer_is_told_of_all_the_same, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let to = (plane_vip(lab, "stream"), 443);
        let relay = start(lab, "stream", "persistence = { by = \"source-ip\" }");
        let _open: Vec<(Connection, String)> = (0..20).map(|_| held(lab, to)).collect();
        for (path, what) in [("sessions/kill", "sessions"), ("persistence/clear", "persistence")] {
            let body = "{\"all\": true, \"reason\": \"in a hurry\"}";
            let head = "Host: a\r\nContent-Type: application/json";
            let request = format!("POST /v1/{path} HTTP/1.1\r\n{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            // Who is gone before the request was read has changed nothing, and asks again.
            eventually("it is told", || {
                let mut stream = UnixStream::connect(relay.control()).expect("it listens");
                stream.write_all(request.as_bytes()).expect("it reads");
                drop(stream);
                let is_its = |event: &Event| event.from == what && event.reason.ends_with(": all: in a hurry");
                relay.status().events.iter().any(is_its).then_some(())
            });
        }
        relay.stop();
    });
}

#[test]
fn sessions_of_udp_are_listed_and_end() {
    in_both(sessions_of_udp_are_listed_and_end, |lab| {
        let _origins = [1, 2].map(|n| Origin::udp(lab.server(n), 5060));
        for plane in PLANES {
            let to = SocketAddr::from((plane_vip(lab, plane), 5060));
            let config = in_turn(lab, plane, "sip", 5060, "protocol = \"udp\"");
            let relay = subject!().start_on(lab.balancer(), &format!("{SMALL_LIMITS}{config}"), &[0, 1]);
            let from = (lab.client().ipv4(), 0);
            let socket = lab.client().run(|| UdpSocket::bind(from)).expect("a thread").expect("a socket");
            socket.set_read_timeout(Some(Duration::from_secs(1))).expect("not zero");
            let ask = || {
                eventually("an answer", || {
                    socket.send_to(b"hello", to).expect("our kernel takes it");
                    let mut answer = [0; 256];
                    let length = socket.recv(&mut answer).ok()?;
                    Some(String::from_utf8_lossy(&answer[..length]).into_owned())
                })
            };
            let answer = ask();
            let one = listed(&relay, &["--protocol", "udp"]);
            let [session] = one.sessions.as_slice() else { panic!("{plane}: {one:?}") };
            assert_eq!(session.client, socket.local_addr().expect("bound"), "{plane}");
            assert!(answer.starts_with(session.server.as_deref().unwrap_or("?")), "{answer}");
            assert_eq!(session.state, "established", "{plane}");
            assert!(session.ends_in_ms.is_some_and(|ms| ms > 1_000), "{session:?}");
            let killed: KilledStatus =
                asked(&relay, &["sessions", "kill", "--client", &session.client.ip().to_string()]);
            assert_eq!(killed.killed, 1, "{plane}");
            relay.until("it has ended", |status| status.services[0].connections == 0);
            ask();
            assert_eq!(relay.service("sip").terminations["killed"], 1, "{plane}");
            assert_eq!(relay.service("sip").accepted, 2, "{plane}: the next datagram opens another");
            relay.stop();
        }
    });
}

#[test]
fn a_session_is_found_by_what_either_side_sees_and_says_why_it_is_there() {
    in_both(a_session_is_found_by_what_either_side_sees_and_says_why_it_is_there, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        for plane in PLANES {
            let to = (plane_vip(lab, plane), 443);
            let relay = start(lab, plane, "persistence = { by = \"source-ip\" }");
            let (_first, _) = held(lab, to);
            let mut connection = Connection::open(lab.client(), to).expect("somebody serves");
            let greeting = connection.greeting().expect("a greeting");
            let sides = [
                [of(&connection).to_string(), SocketAddr::from(to).to_string()],
                [greeting.peer.to_string(), greeting.local.to_string()],
            ];
            let mut ids = Vec::new();
            for [one, other] in &sides {
                for arguments in [["flow", one, other].as_slice(), &["flow", "tcp", other, one]] {
                    let found: FlowStatus = asked(&relay, arguments);
                    let [session] = found.sessions.as_slice() else { panic!("{plane}: {arguments:?}: {found:?}") };
                    assert_eq!(session.server.as_ref(), Some(&greeting.name), "{plane}");
                    assert_eq!((session.source, session.destination), (Some(greeting.peer), Some(greeting.local)));
                    assert_eq!(session.client, of(&connection), "{plane}");
                    let said = found.reasons.join("\n");
                    assert!(said.contains(&format!("server {}: the client came back to it", greeting.name)), "{said}");
                    assert!(said.contains("is ready now and up"), "{said}");
                    assert_eq!(said.contains("leased for it"), plane == "packet", "{said}");
                    ids.push(session.id.clone());
                }
            }
            ids.dedup();
            assert_eq!(ids.len(), 1, "{plane}");
            let [one, other] = &sides[0];
            let (code, text) = told(&relay, &["flow", one, other]);
            assert_eq!(code, Some(0), "{text}");
            assert!(text.contains(&format!("web → {}", greeting.name)) && text.contains("established"), "{text}");
            relay.order(&format!("web/{}", greeting.name), "drain", &OrderBody::default());
            let (_, text) = told(&relay, &["flow", one, other]);
            assert!(text.contains("is in drain now"), "{text}");

            let (code, text) = told(&relay, &["flow", "192.0.2.7:1", other]);
            assert_eq!(code, Some(1), "{text}");
            assert!(text.contains(&format!("is service web ({plane} plane)")) && text.contains("worker"), "{text}");
            let (code, text) = told(&relay, &["flow", "192.0.2.7:1", "192.0.2.8:2"]);
            assert!(code == Some(1) && text.contains("neither end is a VIP"), "{text}");
            let (code, text) = told(&relay, &["flow", "sctp", "192.0.2.7:1", "192.0.2.8:2"]);
            assert!(code == Some(2) && text.contains("neither tcp nor udp"), "{text}");
            relay.stop();
        }
    });
}

#[test]
fn the_next_connection_goes_where_it_was_said_to_go() {
    in_both(the_next_connection_goes_where_it_was_said_to_go, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        for plane in PLANES {
            let to = (plane_vip(lab, plane), 443);
            let relay = start(lab, plane, "");
            let client = lab.client().ipv4().to_string();
            let ask = || asked::<ExplanationStatus>(&relay, &["explain", &client, "web"]);
            let mut served = Vec::new();
            // They stay open: what a closed one leaves behind ends in its own time, and a question tells of that as well.
            let mut open = Vec::new();
            for _ in 0..4 {
                let said = ask();
                assert_eq!(ask(), said, "{plane}: nothing changes by the question");
                assert_eq!((said.outcome.as_str(), said.why.as_deref()), ("served", Some("balanced")), "{plane}");
                served.push(said.server.clone().unwrap_or_default());
                let (connection, server) = held(lab, to);
                open.push(connection);
                assert_eq!(said.server, Some(server), "{plane}: {said:?}");
            }
            served.sort_unstable();
            served.dedup();
            assert_eq!(served, ["server-1", "server-2"], "{plane}: in turn");
            relay.order("web/server-1", "drain", &OrderBody::default());
            let said = ask();
            assert_eq!(said.server.as_deref(), Some("server-2"), "{plane}");
            assert_eq!(said.servers[0].obstacles, ["it is in drain"], "{plane}");
            relay.order(
                "web/server-2",
                "weight",
                &OrderBody { weight: Some(WeightBody::Number(0)), ..OrderBody::default() },
            );
            let (code, text) = told(&relay, &["explain", &client, "web"]);
            assert!(
                code == Some(1) && text.contains("is refused: no server is up, ready and of some weight"),
                "{text}"
            );
            assert!(text.contains("its weight is 0"), "{text}");
            let (code, text) = told(&relay, &["explain", &client, "wen"]);
            assert!(code == Some(1) && text.contains("no service \"wen\"; there are web"), "{text}");
            let (code, text) = told(&relay, &["explain", &client, "web", "--port", "444"]);
            assert!(code == Some(1) && text.contains("has no port 444; it has 443"), "{text}");
            let said: ExplanationStatus = asked(&relay, &["explain", &format!("{client}:40000"), "web"]);
            assert!(said.steps.iter().any(|step| step.step == "worker"), "{said:?}");
            relay.stop();
        }
    });
}

#[test]
fn requests_are_explained_by_routes_and_filters() {
    in_lab(requests_are_explained_by_routes_and_filters, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let group = |name: &str, server: &str, n| {
            let address = lab.server(n).ipv4();
            format!("[[group]]\nname = \"{name}\"\n[[group.server]]\nname = \"{server}\"\naddress = \"{address}\"\n")
        };
        let config = format!(
            "{SMALL_LIMITS}{}{}[[service]]\nname = \"web\"\nvip = \"{vip}\"\nports = [80]\ngroup = \"main\"\n\
             [[service.http.filter]]\naction = \"deny\"\npath = [\"/secret\"]\n\
             [[service.http.route]]\npath = [\"/owa\"]\ngroup = \"owa\"\n",
            group("main", "one", 1),
            group("owa", "two", 2)
        );
        let relay = subject!().start(lab.balancer(), &config);
        let ask = |more: &[&str]| {
            asked::<ExplanationStatus>(
                &relay,
                &[&["explain", "192.0.2.7", "web", "--host", "example.org"], more].concat(),
            )
        };
        let said = ask(&["--path", "/"]);
        assert_eq!((said.server.as_deref(), said.group.as_str()), (Some("one"), "main"), "{said:?}");
        let said = ask(&["--path", "/OWA/inbox"]);
        assert_eq!((said.server.as_deref(), said.group.as_str()), (Some("two"), "owa"), "{said:?}");
        let said = ask(&["--path", "/secret"]);
        assert!(said.outcome == "answered" && said.summary.contains("a filter refuses it with 403"), "{said:?}");
        let (code, text) = told(&relay, &["explain", "192.0.2.7", "web", "--path", "/a b"]);
        assert!(code == Some(1) && text.contains("bad request"), "{text}");
        relay.stop();
    });
}

#[test]
fn clients_are_remembered_until_they_are_forgotten() {
    in_both(clients_are_remembered_until_they_are_forgotten, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        for plane in PLANES {
            let to = (plane_vip(lab, plane), 443);
            let relay = start(lab, plane, "persistence = { by = \"source-ip\", timeout = \"10m\" }");
            let home = who(lab.client(), to);
            let client = lab.client().ipv4().to_string();
            let entries = |more: &[&str]| asked::<EntriesStatus>(&relay, &[&["persistence", "list"], more].concat());
            let all = entries(&[]);
            let [entry] = all.entries.as_slice() else { panic!("{plane}: {all:?}") };
            assert_eq!((entry.client.as_ref(), &entry.server), (Some(&client), &home), "{plane}");
            assert!((1..=600_000).contains(&entry.expires_in_ms), "{entry:?}");
            let other = if home == "server-1" { "server-2" } else { "server-1" };
            assert_eq!(entries(&["--server", other]).matched, 0, "{plane}");
            assert_eq!(entries(&["--client", &client, "--server", &home]).matched, 1, "{plane}");
            let said: ExplanationStatus = asked(&relay, &["explain", &client, "web"]);
            assert_eq!((said.server.as_ref(), said.why.as_deref()), (Some(&home), Some("persistent")), "{plane}");

            let clear = |more: &[&str]| asked::<ClearedStatus>(&relay, &[&["persistence", "clear"], more].concat());
            assert_eq!(clear(&["--server", other]).cleared, 0, "{plane}");
            assert_eq!(clear(&["--all", "--dry-run"]).cleared, 1, "{plane}");
            assert_eq!(who(lab.client(), to), home, "{plane}: nothing was changed");
            let (code, text) = told(&relay, &["persistence", "clear"]);
            assert!(code == Some(1) && text.contains("say which entries, or `all`"), "{text}");
            assert_eq!(clear(&["--client", &client, "--reason", "spread anew"]).cleared, 1, "{plane}");
            assert_eq!(entries(&[]).matched, 0, "{plane}");
            let said: ExplanationStatus = asked(&relay, &["explain", &client, "web"]);
            assert_eq!((said.server.as_deref(), said.why.as_deref()), (Some(other), Some("balanced")), "{plane}");
            assert_eq!(who(lab.client(), to), other, "{plane}: it is balanced anew");
            let audit = relay.status().events;
            let line = audit.iter().rfind(|event| event.kind == EventKind::Admin).map(|event| event.line());
            assert!(line.as_ref().is_some_and(|line| line.ends_with(": spread anew")), "{line:?}");
            relay.stop();
        }
    });
}

/// The comments of the frames of a capture, with how much of each was kept and how long it was.
fn frames_in(file: &str) -> Vec<(String, usize, u32)> {
    let mut reader = PcapNgReader::new(File::open(file).expect("it was written")).expect("a pcapng file");
    let mut frames = Vec::new();
    while let Some(block) = reader.next_block() {
        let Block::EnhancedPacket(frame) = block.expect("a sound block") else { continue };
        let comment = frame.options.iter().find_map(|option| match option {
            EnhancedPacketOption::Comment(comment) => Some(comment.to_string()),
            _ => None,
        });
        frames.push((comment.expect("each has one"), frame.data.len(), frame.original_len));
    }
    frames
}

#[test]
fn a_capture_shows_what_came_what_became_of_it_and_what_left() {
    in_both(a_capture_shows_what_came_what_became_of_it_and_what_left, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let relay = start(lab, "packet", "");
        let to = (plane_vip(lab, "packet"), 443);
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("web.pcapng");
        let path = path.to_str().expect("text");
        thread::scope(|scope| {
            let capture = scope.spawn(|| {
                told(&relay, &["capture", "--service", "web", "--seconds", "60", "--frames", "12", "-o", path])
            });
            // It has begun at some time; until then frames pass unseen, and afterwards a handful ends it.
            while !capture.is_finished() {
                visit(lab.client(), to);
            }
            let (code, text) = capture.join().expect("it runs");
            assert_eq!(code, Some(0), "{text}");
        });
        let frames = frames_in(path);
        assert_eq!(frames.len(), 12, "as many frames as were asked for: {frames:?}");
        assert!(frames.iter().all(|&(_, kept, len)| kept == 128.min(len as usize)), "{frames:?}");
        let client = lab.client().ipv4();
        for words in [format!("from client {client}:"), "rewritten, leaves by".into(), "as it leaves".into()] {
            assert!(frames.iter().any(|(comment, ..)| comment.contains(&words)), "{words}: {frames:?}");
        }
        assert!(relay.status().events.iter().any(|event| event.from == "capture"), "it is told");

        // What is dropped says why.
        relay.order("web/*", "halt", &OrderBody::default());
        thread::scope(|scope| {
            let capture = scope.spawn(|| {
                told(&relay, &["capture", "--service", "web", "--seconds", "60", "--frames", "2", "-o", path])
            });
            while !capture.is_finished() {
                assert!(Connection::open(lab.client(), to).is_err(), "nobody serves");
            }
            assert_eq!(capture.join().expect("it runs").0, Some(0));
        });
        let comments: Vec<String> = frames_in(path).into_iter().map(|(comment, ..)| comment).collect();
        assert!(comments.iter().any(|comment| comment.contains("dropped: no_server")), "{comments:?}");
        assert!(comments.iter().any(|comment| comment.contains("made here")), "its reset: {comments:?}");
        relay.stop();
    });
}

#[test]
fn what_cannot_be_captured_says_what_to_do_instead() {
    in_both(what_cannot_be_captured_says_what_to_do_instead, |lab| {
        let relay = start(lab, "stream", "");
        let (code, text) = told(&relay, &["capture", "--service", "web", "-o", "/dev/null"]);
        assert_eq!(code, Some(1), "{text}");
        let vip = plane_vip(lab, "stream");
        assert!(text.contains(&format!("tcpdump -ni any -w web.pcap 'tcp and ((host {vip} and (port 443))")), "{text}");
        let (code, text) = told(&relay, &["capture", "--service", "wep", "-o", "/dev/null"]);
        assert!(code == Some(1) && text.contains("no service \"wep\"; there are web"), "{text}");
        relay.stop();
    });
}

#[test]
fn questions_do_not_stop_what_is_served() {
    in_both(questions_do_not_stop_what_is_served, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        for plane in PLANES {
            let to = (plane_vip(lab, plane), 443);
            let relay = start(lab, plane, "");
            let open: Vec<(Connection, String)> = (0..200).map(|_| held(lab, to)).collect();
            thread::scope(|scope| {
                let asking = scope.spawn(|| {
                    for _ in 0..8 {
                        assert_eq!(
                            listed(&relay, &["--limit", "10000", "--service", "web", "--idle", "0s"]).warnings.len(),
                            0
                        );
                    }
                });
                while !asking.is_finished() {
                    visit(lab.client(), to);
                }
                asking.join().expect("every answer is whole");
            });
            let sessions = listed(&relay, &["--state", "established", "--limit", "10000"]);
            let mine = |session: &&SessionStatus| open.iter().any(|(connection, _)| of(connection) == session.client);
            assert_eq!(sessions.sessions.iter().filter(mine).count(), 200, "{plane}");
            drop(open);
            relay.until("all have ended", |status| status.services[0].connections == 0);
            relay.stop();
        }
    });
}

#[test]
fn wrong_questions_are_refused_with_what_is_right() {
    in_both(wrong_questions_are_refused_with_what_is_right, |lab| {
        let relay = start(lab, "stream", "");
        for (arguments, expected) in [
            (["sessions", "list", "--service", "wep"].as_slice(), "no service \"wep\"; there are web"),
            (&["sessions", "list", "--server", "FE-9"], "no server \"FE-9\"; there are server-1, server-2"),
            (
                &["sessions", "list", "--client", "192.0.2"],
                "is no address and no network; write 192.0.2.7 or 192.0.2.0/24",
            ),
            (&["sessions", "kill", "17"], "no id of a session; `towpath sessions list` shows them"),
            (&["sessions", "kill"], "say which sessions, or `all`"),
            (&["sessions", "kill", "--all", "--service", "web"], "`all` is for all sessions; leave it out"),
            (&["persistence", "list", "--key", "xyz"], "is not the 32 hexadecimal digits"),
            (&["explain", "nobody", "web"], "is no address; write 192.0.2.7"),
            (&["explain", "192.0.2.7", "web", "--path", "/"], "reads no requests: it is not in HTTP mode"),
        ] {
            let (code, text) = told(&relay, arguments);
            assert!(code == Some(1) && text.contains(expected), "{arguments:?}: {code:?}: {text}");
        }
        relay.stop();
    });
}
