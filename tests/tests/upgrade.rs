//! A new process takes over from the running one.

#[path = "upgrade/plane.rs"]
mod plane;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use towpath_engine::admin::OrderBody;
use towpath_engine::status::TakenOverStatus;
use towpath_tests::pki::Pki;
use towpath_tests::web::{WebClient, WebOrigin};
use towpath_tests::{
    Connection, Origin, PATIENCE, Subject, TestLab, Topology, ask_by_udp, eventually, in_lab, ipv4, packet_service,
    service, subject, who,
};

/// Few, so that a second process has room beside the first.
const LIMITS: &str = "[limits]\nconnections = 200\nbuffers = 64\n";

/// Ends what goes on beside, also when the test fails.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Upgrades and returns from whom was taken over.
#[track_caller]
fn upgrade(relay: &Subject, arguments: &[&str]) -> TakenOverStatus {
    let output = relay.command(&[&["upgrade"], arguments].concat());
    assert!(output.status.success(), "{}\n{}", said(&output), relay.log());
    relay.status().taken_over.unwrap_or_else(|| panic!("nobody was taken over from:\n{}", relay.log()))
}

/// Whether nobody listens there.
fn is_closed(lab: &TestLab, vip: Ipv4Addr, port: u16) -> bool {
    Connection::open(lab.client(), (vip, port)).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Waits until the process before has ended.
#[track_caller]
fn until_gone(relay: &Subject) {
    relay.until("the process before has ended", |status| {
        status.taken_over.as_ref().is_some_and(|before| before.finishing.is_none())
    });
}

#[test]
fn no_connection_is_refused_or_lost_over_two_upgrades() {
    in_lab(no_connection_is_refused_or_lost_over_two_upgrades, Topology::TwoArm, 1, |lab| {
        let (web, names) = (lab.vip(100), lab.vip(101));
        let _origins = (Origin::tcp(lab.server(1), 443), Origin::udp(lab.server(1), 53));
        let config = LIMITS.to_owned()
            + &service("web", web, "443", "drain_timeout = \"1h\"", &ipv4(lab.servers()))
            + &service("names", names, "53", "protocol = \"udp\"\ndrain_timeout = \"1s\"", &ipv4(lab.servers()));
        let relay = subject!().start_under_init(lab.balancer(), &config, &[0, 0]);
        relay.until_all_up();
        let mut held = Vec::new();
        let (over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            // `who` and `ask_by_udp` fail the test when one is not served.
            for _ in 0..3 {
                scope.spawn(|| {
                    while !over.load(Ordering::Acquire) {
                        who(lab.client(), (web, 443));
                        served.fetch_add(1, Ordering::AcqRel);
                    }
                });
            }
            scope.spawn(|| {
                while !over.load(Ordering::Acquire) {
                    ask_by_udp(lab.client(), lab.client().ipv4().into(), (names, 53), b"who is it");
                    served.fetch_add(1, Ordering::AcqRel);
                }
            });
            let _ends = OnDrop(|| over.store(true, Ordering::Release));
            let mut before = None;
            for _ in 0..2 {
                let mut connection = Connection::open(lab.client(), (web, 443)).expect("somebody listens");
                connection.greeting().expect("a greeting");
                held.push(connection);
                let taken = upgrade(&relay, &[]);
                assert_ne!(before.replace(taken.pid), Some(taken.pid), "it was taken over from the first one twice");
                let so_far = served.load(Ordering::Acquire);
                eventually("clients are served afterwards", || {
                    (served.load(Ordering::Acquire) > so_far + 20).then_some(())
                });
                for connection in &mut held {
                    connection.echo(b"I was there before").expect("an old connection goes on");
                }
            }
            relay.until("the connection that is left there is told of", |status| {
                status.taken_over.as_ref().is_some_and(|before| before.finishing == Some(1))
            });
            assert_eq!(relay.processes().len(), 3, "two that let their connections finish, and the one that serves");
        });
        for connection in held {
            connection.close().expect("a clean end");
        }
        until_gone(&relay);
        eventually("only one is left", || (relay.processes().len() == 1).then_some(()));
        let told = relay.told_supervisor().join("\n");
        assert_eq!(told.matches("MAINPID=").count(), 2, "{told}");
        assert!(!told.contains("STOPPING=1"), "{told}");
        who(lab.client(), (web, 443));
        assert!(relay.control().exists());
    });
}

#[test]
fn what_was_said_and_known_goes_along() {
    in_lab(what_was_said_and_known_goes_along, Topology::TwoArm, 3, |lab| {
        let vip = lab.vip(100);
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        // Its next check comes after the test: only what is handed over says that the third is down.
        let keys = "drain_timeout = \"1h\"\npersistence = { by = \"source-ip\", timeout = \"1h\" }\n\
                    health = { check = \"tcp\", interval = \"1h\", fast_interval = \"100ms\", rise = 1, fall = 1 }";
        let config = LIMITS.to_owned() + &service("web", vip, "443", keys, &ipv4(lab.servers()));
        let relay = subject!().start_under_init(lab.balancer(), &config, &[0]);
        let health = |relay: &Subject| -> Vec<_> {
            relay.service("web").servers.into_iter().map(|server| (server.health, server.reason)).collect()
        };
        let home = who(lab.client(), (vip, 443));
        let other = if home == "server-1" { "server-2" } else { "server-1" };
        // The entry is at one, and new clients go nowhere else: it is the entry that says who is asked.
        relay.order(
            &format!("web/{other}"),
            "weight",
            &OrderBody { weight: Some(parse("200")), ..OrderBody::default() },
        );
        let drain = OrderBody { deadline_ms: Some(3_600_000), reason: "a new disk".to_owned(), ..OrderBody::default() };
        relay.order("web/server-3", "drain", &drain);
        let before = (health(&relay), relay.server("web", "server-3").admin_said);
        let taken = upgrade(&relay, &[]);
        until_gone(&relay);
        let after = (health(&relay), relay.server("web", "server-3").admin_said);
        assert_eq!(after.0, before.0);
        let (before, after) = (before.1.expect("a word"), after.1.expect("a word"));
        assert_eq!((&after.by, &after.reason), (&before.by, &before.reason));
        assert_eq!(after.reason, "a new disk");
        assert_eq!(relay.server("web", other).weight, 200);
        for _ in 0..5 {
            assert_eq!(who(lab.client(), (vip, 443)), home);
        }
        assert!(relay.log().contains("persistence entries: 1,"), "{}", relay.log());
        assert_eq!(relay.status().limits.persistence_entries.used, 1);
        assert_ne!(taken.pid, 0);
    });
}

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> T {
    serde_json::from_str(text).expect("what the API takes")
}

/// An [`Origin`] greets, and sends back what it gets.
#[track_caller]
fn echo(stream: &mut (impl Read + Write)) {
    stream.write_all(b"echo me").expect("the connection goes on");
    let (mut heard, mut part) = (Vec::new(), [0; 256]);
    while !heard.ends_with(b"echo me") {
        let length = stream.read(&mut part).expect("the connection goes on");
        assert_ne!(length, 0, "the connection has ended");
        heard.extend(&part[..length]);
    }
}

#[test]
fn transfers_with_tls_and_http_go_on_and_cookies_hold() {
    in_lab(transfers_with_tls_and_http_go_on_and_cookies_hold, Topology::TwoArm, 2, |lab| {
        let (secure, web) = (lab.vip(100), lab.vip(101));
        let pki = Pki::new();
        let _echo = Origin::tcp(lab.server(1), 443);
        let _webs = [1, 2].map(|n| WebOrigin::start(lab.server(n), 80));
        // Threads of the pool give way to everything else, and a machine that is busy lets their handshakes come too late.
        let config = format!("[tls]\nthreads = 0\n{LIMITS}")
            + &pki.service(secure, "terminate", "", &ipv4(&lab.servers()[..1]))
            + &service("shop", web, "80", "http = {}\npersistence = { by = \"cookie\" }", &ipv4(lab.servers()));
        let relay = subject!().start_under_init(lab.balancer(), &config, &[0, 0]);
        relay.until_all_up();
        let mut stream = pki.open(lab.client(), (secure, 443)).expect("a handshake");
        let mut client = WebClient::open(lab.client(), (web, 80));
        let first = client.get("/first");
        let cookie = first.field("set-cookie").expect("a cookie").split(';').next().expect("a pair").to_owned();
        let home = first.field("x-server").expect("who has answered").to_owned();
        let (over, requests, handshakes) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            // Each request gets its answer, also on connections that stay; who is told that it was the last comes anew.
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut client = None;
                    while !over.load(Ordering::Acquire) {
                        let mut open = client.take().unwrap_or_else(|| WebClient::open(lab.client(), (web, 80)));
                        let response = open.get("/again");
                        assert_eq!(response.status, 200);
                        requests.fetch_add(1, Ordering::AcqRel);
                        client = (response.field("connection") != Some("close")).then_some(open);
                    }
                });
            }
            scope.spawn(|| {
                while !over.load(Ordering::Acquire) {
                    let mut stream = pki.open(lab.client(), (secure, 443)).unwrap_or_else(|error| {
                        let ended = relay.service("web").terminations;
                        panic!(
                            "a handshake: {error}: {:?}",
                            ended.iter().filter(|(_, count)| **count > 0).collect::<Vec<_>>()
                        )
                    });
                    echo(&mut stream);
                    handshakes.fetch_add(1, Ordering::AcqRel);
                }
            });
            let _ends = OnDrop(|| over.store(true, Ordering::Release));
            let more = |count: &AtomicUsize, wanted: usize| {
                let so_far = count.load(Ordering::Acquire);
                eventually("clients are served", || (count.load(Ordering::Acquire) >= so_far + wanted).then_some(()));
            };
            more(&requests, 50);
            more(&handshakes, 2);
            upgrade(&relay, &[]);
            more(&requests, 50);
            more(&handshakes, 2);
        });
        // By the process before.
        echo(&mut stream);
        client.get("/second");
        // By the new one, where the cookie is known.
        for _ in 0..4 {
            let mut anew = WebClient::open(lab.client(), (web, 80));
            let again = anew.get_with("/third", &format!("Cookie: {cookie}\r\n"));
            assert_eq!((again.field("x-server"), again.field("set-cookie")), (Some(home.as_str()), None));
        }
        drop(pki.open(lab.client(), (secure, 443)).expect("a handshake with the new one"));
    });
}

#[test]
fn a_session_of_udp_gets_its_answer_though_another_process_hears_what_comes() {
    in_lab(a_session_of_udp_gets_its_answer_though_another_process_hears_what_comes, Topology::TwoArm, 1, |lab| {
        let vip: IpAddr = lab.vip(100).into();
        let server = lab.server(1);
        let origin = server.run(|| UdpSocket::bind((server.ipv4(), 53))).expect("a thread").expect("a socket");
        origin.set_read_timeout(Some(PATIENCE)).expect("not zero");
        let config = LIMITS.to_owned() + &service("names", vip, "53", "protocol = \"udp\"", &ipv4(lab.servers()));
        let relay = subject!().start_under_init(lab.balancer(), &config, &[0, 0]);
        let client = lab.client();
        let socket = client.run(|| UdpSocket::bind((client.ipv4(), 0))).expect("a thread").expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("not zero");
        let (mut buffer, to) = ([0; 64], SocketAddr::new(vip, 53));
        let mut asked = |what: &[u8]| {
            socket.send_to(what, to).expect("our own kernel takes it");
            let (length, from) = origin.recv_from(&mut buffer).expect("a question");
            assert_eq!(&buffer[..length], what);
            from
        };
        let first = asked(b"one");
        upgrade(&relay, &[]);
        let second = asked(b"two");
        assert_ne!(first, second, "the source of a session that still lives was leased once more");
        for (from, answer) in [(first, b"uno"), (second, b"due")] {
            origin.send_to(answer, from).expect("our own kernel takes it");
            let mut heard = [0; 8];
            let (length, whose) = socket.recv_from(&mut heard).expect("an answer");
            assert_eq!((&heard[..length], whose), (&answer[..], to));
        }
    });
}

/// A program that does as the script says, with what it was started with as its arguments.
fn script(relay: &Subject, name: &str, text: &str) -> PathBuf {
    let path = relay.control().with_file_name(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("our own file");
    path
}

#[test]
fn whatever_fails_the_running_process_goes_on_as_it_was() {
    in_lab(whatever_fails_the_running_process_goes_on_as_it_was, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let good = LIMITS.to_owned() + &service("web", vip, "443", "drain_timeout = \"1h\"", &ipv4(lab.servers()));
        let relay = subject!().start_under_init(lab.balancer(), &good, &[0, 0]);
        relay.until_all_up();
        let generation = relay.status().generation;
        let mut held = Connection::open(lab.client(), (vip, 443)).expect("somebody listens");
        held.greeting().expect("a greeting");
        let mut refused = |relay: &Subject, arguments: &[&str], code: i32, told: &[&str]| {
            let output = relay.command(&[&["upgrade"], arguments].concat());
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output));
            for told in told {
                assert!(said(&output).contains(told), "{told} is missing in\n{}", said(&output));
            }
            eventually("the new process has ended", || (relay.processes().len() == 1).then_some(()));
            held.echo(b"undisturbed").expect("the old connection goes on");
            who(lab.client(), (vip, 443));
            let status = relay.status();
            assert_eq!((status.phase.as_str(), status.taken_over), ("running", None));
        };
        let program = |name, text: &str| script(&relay, name, text).display().to_string();
        let programs = [
            (program("absent", "exit 7"), "has ended before it said who it is (exit status: 7)"),
            // Four octets of length, and a word.
            (program("nonsense", "printf '\\000\\000\\000\\002{x' >&0; exec sleep 60"), "what it says makes no sense"),
            (program("long", "printf '\\377\\377\\377\\377' >&0; exec sleep 60"), "what it says makes no sense"),
            (hello(&relay, "other-form", 99, ""), "version 9.9.9 hands over in form 99, this one in form 1"),
            (hello(&relay, "gone", 1, "exit 9"), "has ended before it was ready (exit status: 9)"),
            (hello(&relay, "hasty", 1, &word("{\"word\":\"running\"}")), "another word than was its turn"),
            (
                program("deserter", &format!("exec {} --as-deserter", env!("CARGO_BIN_EXE_subject"))),
                "has ended before it served (exit status: 3)",
            ),
            (hello(&relay, "unwilling", 1, &word("{\"word\":\"refused\",\"reasons\":[\"not today\"]}")), "not today"),
        ];
        for (program, told) in &programs {
            refused(&relay, &["--program", program], 3, &[told]);
        }
        refused(&relay, &["--program", &relay.control().display().to_string()], 3, &["it is no file"]);

        let file = relay.control().with_file_name("other.toml");
        let control = relay.control();
        let other = |text: &str| {
            fs::write(&file, format!("[control]\nsocket = \"{}\"\n{text}", control.display())).expect("a file");
            file.display().to_string()
        };
        let path = other(&good.replace("ports = 443", "ports = 443\nidle_timout = \"30m\""));
        refused(&relay, &["-c", &path], 3, &["other.toml", "idle_timout"]);
        // An address that is not here, and a port that another program has.
        let path = other(&format!("{good}{}", service("more", lab.free_vip(120), "80", "", &ipv4(lab.servers()))));
        refused(&relay, &["-c", &path], 3, &["is not an address of this host"]);
        let taken = lab.balancer().run(|| std::net::TcpListener::bind((vip, 8080))).expect("a thread").expect("free");
        let path = other(&format!("{good}{}", service("more", vip, "8080", "", &ipv4(lab.servers()))));
        refused(&relay, &["-c", &path], 3, &["another process has this port"]);
        drop(taken);

        assert_eq!(relay.status().generation, generation);
        // And as if nothing had been, it takes a reload and an upgrade.
        relay.write(&good.replace("1h", "2h"));
        let reloaded = relay.command(&["reload"]);
        assert!(reloaded.status.success(), "{}", said(&reloaded));
        let path = other(&format!("{good}{}", service("more", vip, "8080", "", &ipv4(lab.servers()))));
        upgrade(&relay, &["-c", &path]);
        held.echo(b"I was there before").expect("the old connection goes on");
        assert_eq!(relay.status().services.len(), 2);
        relay.until_all_up();
        let _beside = [1, 2].map(|n| Origin::tcp(lab.server(n), 8080));
        who(lab.client(), (vip, 8080));
    });
}

/// Says a word on standard input, with its length before it.
fn word(text: &str) -> String {
    let octets: String = (text.len() as u32).to_be_bytes().iter().map(|octet| format!("\\{octet:03o}")).collect();
    format!("printf '{octets}%s' '{text}' >&0")
}

/// A program that says hello in this form, hears nothing of what is told, and goes on as the script says.
fn hello(relay: &Subject, name: &str, format: u32, then: &str) -> String {
    let hello = format!("{{\"word\":\"hello\",\"format\":{format},\"version\":\"9.9.9\"}}");
    script(relay, name, &format!("{}\n{then}\nexec sleep 60", word(&hello))).display().to_string()
}

#[test]
fn a_sigterm_during_an_upgrade_ends_both_processes() {
    in_lab(a_sigterm_during_an_upgrade_ends_both_processes, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let config = LIMITS.to_owned() + &service("web", vip, "443", "", &ipv4(lab.servers()));
        let relay = subject!().start_under_init(lab.balancer(), &config, &[0]);
        let program = hello(&relay, "slow", 1, "");
        let running = relay.processes();
        thread::scope(|scope| {
            let asking = scope.spawn(|| relay.command(&["upgrade", "--program", &program]));
            eventually("the new process is there", || (relay.processes().len() > 1).then_some(()));
            let ended = Command::new("kill").arg(running[0].to_string()).status().expect("kill");
            assert!(ended.success());
            eventually("both have ended", || relay.processes().is_empty().then_some(()));
            assert!(!asking.join().expect("an answer").status.success());
        });
    });
}

#[test]
fn a_sigterm_after_an_upgrade_lets_connections_of_both_processes_finish() {
    in_lab(a_sigterm_after_an_upgrade_lets_connections_of_both_processes_finish, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let _origin = Origin::tcp(lab.server(1), 443);
        let config = LIMITS.to_owned() + &service("web", vip, "443", "drain_timeout = \"1h\"", &ipv4(lab.servers()));
        let relay = subject!().start_under_init(lab.balancer(), &config, &[0]);
        let open = || {
            let mut connection = Connection::open(lab.client(), (vip, 443)).expect("somebody listens");
            connection.greeting().expect("a greeting");
            connection
        };
        let (before, mut of_old) = (relay.processes(), open());
        upgrade(&relay, &[]);
        let of_new = open();
        let new = relay.processes().into_iter().find(|process| !before.contains(process)).expect("a new process");
        assert!(Command::new("kill").arg(new.to_string()).status().expect("kill").success());
        eventually("the new one takes nobody any more", || is_closed(lab, vip, 443).then_some(()));
        of_new.close().expect("a clean end");
        // The new one has none any more, and waits for the one before it.
        of_old.echo(b"not yet finished").expect("a connection from before goes on");
        assert_eq!(relay.processes().len(), 2);
        of_old.close().expect("a clean end");
        eventually("both have ended", || relay.processes().is_empty().then_some(()));
        // One that gets another parent just while they are counted is not seen.
        eventually("the socket has gone with the last one", || (!relay.control().exists()).then_some(()));
    });
}

#[test]
fn what_a_reload_has_moved_is_where_it_is_afterwards() {
    in_lab(what_a_reload_has_moved_is_where_it_is_afterwards, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let _origins = [443, 8443].map(|port| Origin::tcp(lab.server(1), port));
        let with = |metrics: u16, ports: &str| {
            format!("[metrics]\nlisten = \"{vip}:{metrics}\"\n{LIMITS}")
                + &service("web", vip, ports, "", &ipv4(lab.servers()))
        };
        let relay = subject!().start_under_init(lab.balancer(), &with(9900, "443"), &[0, 0]);
        let collect = |port: u16| WebClient::open(lab.client(), (vip, port)).get("/metrics").status;
        assert_eq!(collect(9900), 200);
        relay.write(&with(9901, "[443, 8443]"));
        assert!(relay.command(&["reload"]).status.success(), "{}", relay.log());
        eventually("nobody listens where metrics were", || is_closed(lab, vip, 9900).then_some(()));
        upgrade(&relay, &[]);
        assert_eq!(collect(9901), 200);
        who(lab.client(), (vip, 8443));
        until_gone(&relay);
        assert_eq!(collect(9901), 200);
        assert!(is_closed(lab, vip, 9900));
    });
}

#[test]
fn when_the_new_process_dies_the_one_before_leaves_the_place_to_the_supervisor() {
    in_lab(when_the_new_process_dies_the_one_before_leaves_the_place_to_the_supervisor, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let _origin = Origin::tcp(lab.server(1), 443);
        let keys = "drain_timeout = \"1h\"";
        let config = LIMITS.to_owned() + &service("web", vip, "443", keys, &ipv4(lab.servers()));
        let relay = subject!().start_under_init(lab.balancer(), &config, &[0]);
        let mut held = Connection::open(lab.client(), (vip, 443)).expect("somebody listens");
        held.greeting().expect("a greeting");
        let before = relay.processes();
        upgrade(&relay, &[]);
        let new = relay.processes().into_iter().find(|process| !before.contains(process)).expect("a new process");
        let killed = Command::new("kill").args(["-KILL", &new.to_string()]).status().expect("kill");
        assert!(killed.success());
        assert!(held.is_ended());
        eventually("nobody is left", || relay.processes().is_empty().then_some(()));
    });
}

#[test]
fn what_cannot_be_handed_over_is_refused_by_name() {
    in_lab(what_cannot_be_handed_over_is_refused_by_name, Topology::TwoArm, 1, |lab| {
        let config = LIMITS.to_owned() + &service("web", lab.vip(101), "443", "", &ipv4(lab.servers()));
        let first = subject!().start(lab.balancer(), &config);
        let output = first.command(&["upgrade"]);
        assert_eq!(output.status.code(), Some(3));
        assert!(said(&output).contains("the first of its PID namespace"), "{}", said(&output));
        first.stop();
    });
}

/// The number of workers may be another afterwards, in both directions.
#[test]
fn another_number_of_workers_loses_nobody() {
    in_lab(another_number_of_workers_loses_nobody, Topology::TwoArm, 1, |lab: &TestLab| {
        let vip = lab.vip(100);
        let _origin = Origin::tcp(lab.server(1), 443);
        let config = LIMITS.to_owned() + &service("web", vip, "443", "drain_timeout = \"1h\"", &ipv4(lab.servers()));
        let relay = subject!().start_under_init(lab.balancer(), &config, &[0, 0, 0]);
        let file = relay.control().with_file_name("towpath.toml");
        let with = |workers: usize| {
            let (program, cpus, file) = (env!("CARGO_BIN_EXE_subject"), vec!["0"; workers].join(","), file.display());
            let text = format!("exec {program} run --worker-cpus {cpus} --config {file} --take-over");
            script(&relay, &format!("with-{workers}"), &text).display().to_string()
        };
        let (over, served) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !over.load(Ordering::Acquire) {
                        who(lab.client(), (vip, 443));
                        served.fetch_add(1, Ordering::AcqRel);
                    }
                });
            }
            let _ends = OnDrop(|| over.store(true, Ordering::Release));
            for workers in [2, 4, 2] {
                upgrade(&relay, &["--program", &with(workers)]);
                assert_eq!(relay.status().workers.len(), workers);
                let so_far = served.load(Ordering::Acquire);
                eventually("clients are served afterwards", || {
                    (served.load(Ordering::Acquire) > so_far + 30).then_some(())
                });
            }
        });
    });
}
