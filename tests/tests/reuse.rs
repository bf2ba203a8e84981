//! Connections to real servers that clients share (`reuse = "safe"`): who gets which, when they end, and that nobody gets an answer made for
//! somebody else.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::Duration;

use towpath_engine::status::Status;
use towpath_perf::identity::{Origin, Outcome, Play, Target};
use towpath_tests::pki::{NAME, Pki};
use towpath_tests::web::{WebClient, WebOrigin, by_connection};
use towpath_tests::{Host, Subject, TestLab, Topology, eventually, in_lab, ipv4, service, subject};

const SAFE: &str = "[service.http]\nreuse = \"safe\"";

/// A relay with one worker before web servers: workers share nothing, so with several it would be chance who finds which connection.
struct Stage {
    relay: Subject,
    origins: Vec<WebOrigin>,
    vip: Ipv4Addr,
}

impl Stage {
    fn set(lab: &TestLab, keys: &str) -> Stage {
        let origins = lab.servers().iter().map(|host| WebOrigin::start(host, 80)).collect();
        let vip = lab.vip(100);
        Stage { relay: relay(lab, &config(lab, keys, "")), origins, vip }
    }

    fn open(&self, lab: &TestLab) -> WebClient {
        WebClient::open(lab.client(), (self.vip, 80))
    }

    fn connections(&self) -> usize {
        self.origins.iter().map(WebOrigin::connections).sum()
    }

    fn counter(&self, name: &str) -> u64 {
        self.relay.service("web").counters[name]
    }

    /// Waits until so many connections wait for the next client, and none is in use.
    #[track_caller]
    fn until_waiting(&self, count: u32) -> Status {
        self.relay.until(&format!("{count} connections wait"), |status| {
            let web = &status.services[0];
            web.connections == 0 && web.servers.iter().map(|server| server.waiting).sum::<u32>() == count
        })
    }
}

fn config(lab: &TestLab, keys: &str, of_servers: &str) -> String {
    let text = service("web", lab.free_vip(100), "[80]", keys, &ipv4(lab.servers()));
    text.replace("[[service.server]]", &format!("[[service.server]]\n{of_servers}"))
}

fn relay(lab: &TestLab, config: &str) -> Subject {
    let cpu = towpath_sys::host::available_cpus().expect("CPUs")[0];
    subject!().start_on(lab.balancer(), config, &[cpu])
}

/// A request with a body, in one piece.
fn post(client: &mut WebClient, path: &str) {
    client.send(format!("POST {path} HTTP/1.1\r\nHost: web.test\r\nContent-Length: 5\r\n\r\nhello"));
}

#[test]
fn clients_use_the_same_connection_one_after_the_other() {
    in_lab(clients_use_the_same_connection_one_after_the_other, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, SAFE);
        for number in 0..10 {
            assert_eq!(stage.open(lab).get("/").text(), format!("server-1 0 {number}\n"));
            stage.until_waiting(1);
        }
        // Two clients at the same time need two, and both are there for the next ones.
        let (mut one, mut other) = (stage.open(lab), stage.open(lab));
        one.send("GET /slow/300 HTTP/1.1\r\nHost: a\r\n\r\n");
        stage.relay.until("it is under way", |status| status.services[0].connections == 1);
        assert_eq!(other.get("/").text(), "server-1 1 0\n");
        assert_eq!(one.response("GET").expect("an answer").status, 200);
        stage.until_waiting(2);
        // Bodies of every kind, those that are longer than a buffer as well, and heads alone.
        for path in ["/bytes/3000000", "/chunks/300000", "/bytes/0", "/status/204", "/status/304"] {
            assert!(matches!(stage.open(lab).get(path).status, 200 | 204 | 304), "{path}");
            stage.until_waiting(2);
            post(&mut one, "/up");
            assert_eq!(one.response("POST").expect("an answer").status, 200);
            stage.until_waiting(2);
        }
        assert_eq!(stage.connections(), 2);
        // A response that says it is the last, or ends with its connection, leaves nothing for others.
        assert_eq!(stage.open(lab).get("/until-close/70000").status, 200);
        stage.until_waiting(1);
        let web = stage.relay.service("web");
        let counted = |name: &str| web.counters[name];
        assert_eq!((counted("server_dialled"), counted("requests")), (2, 23), "{web:?}");
        assert_eq!((counted("server_reused"), counted("opened"), web.servers[0].opened), (21, 18, 2), "{web:?}");
        stage.relay.stop();
    });
}

#[test]
fn what_cannot_be_sent_again_begins_a_connection_of_its_own() {
    in_lab(what_cannot_be_sent_again_begins_a_connection_of_its_own, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, SAFE);
        let mut first = stage.open(lab);
        assert_eq!(first.get("/").status, 200);
        stage.until_waiting(1);
        // The first request of a client that may not be repeated: it must not meet a connection that ends just now.
        let mut posting = stage.open(lab);
        post(&mut posting, "/drop-kept");
        assert_eq!(posting.response("POST").expect("an answer").text(), "server-1 1 0\n");
        stage.until_waiting(2);
        // One that may be is sent again, by a fresh connection, though another one waits.
        let mut getting = stage.open(lab);
        assert_eq!(getting.get("/drop-kept").text(), "server-1 2 0\n");
        // A later request that may not, over one that was good just now: its client sees what it would have seen of a server's own connection.
        post(&mut getting, "/drop-kept");
        assert_eq!(getting.rest().expect("an orderly end"), b"");
        stage.until_waiting(1);
        assert_eq!((stage.counter("resent"), stage.counter("server_dialled")), (1, 3));
        stage.relay.stop();
    });
}

#[test]
fn one_whose_server_may_have_taken_a_body_for_a_request_is_nobody_s() {
    in_lab(one_whose_server_may_have_taken_a_body_for_a_request_is_nobody_s, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let stage = Stage { relay: relay(lab, &config(lab, SAFE, "")), origins: Vec::new(), vip };
        let doors = lab.server(1).run(|| std::net::TcpListener::bind("0.0.0.0:80")).expect("a host").expect("a port");
        // It answers from the head, before the body has come, and keeps its connection.
        let mut posting = stage.open(lab);
        let smuggled = "GET /mine HTTP/1.1\r\nHost: a\r\n\r\n";
        posting.send(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", smuggled.len()));
        let (mut server, _) = doors.accept().expect("a connection");
        server.write_all(b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n").expect("taken");
        assert_eq!(posting.response("POST").expect("an answer").status, 302);
        posting.send(smuggled);
        // The same of a method whose bodies servers pass over.
        let mut getting = stage.open(lab);
        getting.send(format!("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len()));
        let (mut second, _) = doors.accept().expect("a connection");
        second.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").expect("taken");
        assert_eq!(getting.response("GET").expect("an answer").status, 200);
        let status = stage.relay.until("both are closed", |status| status.services[0].connections == 0);
        let web = &status.services[0];
        assert_eq!((web.servers[0].waiting, web.counters["server_idle_refused"]), (0, 2), "{web:?}");
        stage.relay.stop();
    });
}

#[test]
fn a_logon_takes_the_connection_away_from_all_others() {
    in_lab(a_logon_takes_the_connection_away_from_all_others, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, SAFE);
        assert_eq!(stage.open(lab).get("/").status, 200);
        stage.until_waiting(1);
        // The server asks for a logon: from this response on the connection is this client's.
        let mut ntlm = stage.open(lab);
        assert_eq!(ntlm.get("/who").status, 401);
        assert_eq!(ntlm.get_with("/who", "Authorization: NTLM negotiate\r\n").text(), "challenge\n");
        assert_eq!(ntlm.get_with("/who", "Authorization: NTLM ann\r\n").text(), "ann\n");
        // Unasked, with the first request.
        let mut kerberos = stage.open(lab);
        assert_eq!(kerberos.get_with("/who", "Authorization: Negotiate bob\r\n").text(), "bob\n");
        let status = stage.relay.status();
        assert_eq!((status.services[0].connections, status.services[0].servers[0].waiting), (2, 0));
        for _ in 0..5 {
            assert_eq!(stage.open(lab).get("/who").status, 401, "nobody has logged on over it");
            assert_eq!((ntlm.get("/who").text(), kerberos.get("/who").text()), ("ann\n", "bob\n"));
        }
        // They end with their clients.
        drop((ntlm, kerberos));
        stage.until_waiting(0);
        assert_eq!(stage.open(lab).get("/").text(), "server-1 7 0\n");
        stage.relay.stop();
    });
}

#[test]
fn one_that_ends_or_speaks_while_it_waits_is_nobody_s() {
    in_lab(one_that_ends_or_speaks_while_it_waits_is_nobody_s, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let keys = format!("{SAFE}\nreuse_idle_timeout = \"2s\"");
        let stage = Stage { relay: relay(lab, &config(lab, &keys, "")), origins: Vec::new(), vip };
        let doors = lab.server(1).run(|| std::net::TcpListener::bind("0.0.0.0:80")).expect("a host").expect("a port");
        doors.set_nonblocking(true).expect("a socket");
        let answer = |text: &str| {
            let mut client = stage.open(lab);
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            let (mut server, _) = eventually("a connection that is dialled for it", || {
                let got = client.wait(Duration::from_millis(10)).ok();
                assert_eq!(got, None, "an answer that nobody has made for it");
                doors.accept().ok()
            });
            server.set_nonblocking(false).expect("a socket");
            // Else what it says next waits for the acknowledgement of this, which may come with the next request.
            server.set_nodelay(true).expect("a socket");
            server
                .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len()).as_bytes())
                .expect("taken");
            assert_eq!(client.response("GET").expect("an answer").text(), text);
            stage.until_waiting(1);
            server
        };
        // It ends: noticed by itself.
        drop(answer("one"));
        stage.until_waiting(0);
        assert_eq!(stage.counter("server_idle_ended"), 1);
        // It speaks: what it says is not the next one's answer, even to one that comes at once.
        let mut server = answer("two");
        server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen").expect("taken");
        let mut third = answer("three");
        assert_eq!(stage.counter("server_idle_ended"), 2);
        // Nobody comes: it is closed in time.
        stage.until_waiting(0);
        assert_eq!(stage.counter("server_idle_timed_out"), 1);
        assert!(third.write_all(b"x").is_ok());
        stage.relay.stop();
    });
}

#[test]
fn whatever_changes_closes_those_that_wait() {
    in_lab(whatever_changes_closes_those_that_wait, Topology::TwoArm, 2, |lab| {
        let mut stage = Stage::set(lab, &format!("balance = \"round-robin\"\n{SAFE}"));
        let fill = |stage: &Stage| {
            let mut clients = [stage.open(lab), stage.open(lab)];
            clients.iter_mut().for_each(|client| client.send("GET /slow/200 HTTP/1.1\r\nHost: a\r\n\r\n"));
            clients.iter_mut().for_each(|client| assert_eq!(client.response("GET").expect("an answer").status, 200));
            stage.until_waiting(2)
        };
        fill(&stage);
        // The same again changes nothing.
        let text = |keys: &str, of_servers: &str| {
            config(lab, &format!("balance = \"round-robin\"\n{SAFE}\n{keys}"), of_servers)
        };
        stage.relay.reload(&text("", "")).expect("accepted");
        assert_eq!(stage.until_waiting(2).services[0].counters["server_idle_retired"], 0);
        // Drained, halted, gone, or under other terms.
        let one_gone = {
            let text = text("", "");
            let (first, _) = text.rsplit_once("[[service.server]]").expect("two servers");
            first.to_owned()
        };
        let mut retired = 0;
        for (next, stay) in [
            (text("", "admin = \"drain\""), 0),
            (text("", "admin = \"halt\""), 0),
            (one_gone, 1),
            (text("reuse_idle_max = 5", ""), 0),
            (text("", "").replace("\"safe\"", "\"never\""), 0),
        ] {
            stage.relay.reload(&next).expect("accepted");
            let status = stage.until_waiting(stay);
            retired += 2 - u64::from(stay);
            assert_eq!(status.services[0].counters["server_idle_retired"], retired, "{next}");
            stage.relay.reload(&text("", "")).expect("accepted");
            if stay == 1 {
                // The one that stayed is still good.
                let before = stage.connections();
                let mut clients = [stage.open(lab), stage.open(lab)];
                clients.iter_mut().for_each(|client| assert_eq!(client.get("/").status, 200));
                assert!(stage.connections() <= before + 1);
                drop(clients);
            }
            fill(&stage);
        }
        stage.relay.stop();
        eventually("nothing waits for a process that is gone", || {
            stage.origins.iter().all(|origin| origin.connections() > 0).then_some(())
        });
    });
}

#[test]
fn leases_and_places_of_those_that_wait_are_given_back() {
    in_lab(leases_and_places_of_those_that_wait_are_given_back, Topology::TwoArm, 1, |lab| {
        let snat = lab.snat(101);
        let keys = format!("source = {{ pool = [\"{snat}\"], ports = \"20000-20015\" }}\n{SAFE}\nreuse_idle_max = 2");
        let origins = vec![WebOrigin::start(lab.server(1), 80)];
        let vip = lab.vip(100);
        let mut stage = Stage { relay: relay(lab, &config(lab, &keys, "max_connections = 4")), origins, vip };
        let leased = |status: &Status| status.source_ports.iter().map(|ports| ports.leased).sum::<u32>();
        let mut clients: Vec<WebClient> = (0..4).map(|_| stage.open(lab)).collect();
        for client in &mut clients {
            client.send("GET /slow/400 HTTP/1.1\r\nHost: a\r\n\r\n");
        }
        stage.relay.until("four are under way", |status| status.services[0].connections == 4);
        // A fifth finds no place.
        assert_eq!(stage.open(lab).get("/").status, 503);
        for client in &mut clients {
            assert_eq!(client.response("GET").expect("an answer").status, 200);
        }
        // Two wait, two were closed, whose ports rest.
        let status = stage.until_waiting(2);
        assert_eq!(status.services[0].counters["server_idle_refused"], 2);
        assert_eq!(leased(&status), 4);
        // Those that wait hold no place that a request needs.
        for client in &mut clients {
            client.send("GET /slow/400 HTTP/1.1\r\nHost: a\r\n\r\n");
        }
        stage.relay.until("four are under way", |status| status.services[0].connections == 4);
        for client in &mut clients {
            assert_eq!(client.response("GET").expect("an answer").status, 200);
        }
        assert_eq!(stage.connections(), 6);
        stage.until_waiting(2);
        // A reload without them: the last two are closed, and rest.
        let never = config(
            lab,
            &keys.replace("\"safe\"", "\"never\"").replace("reuse_idle_max = 2", ""),
            "max_connections = 4",
        );
        stage.relay.reload(&never).expect("accepted");
        stage.until_waiting(0);
        stage.relay.stop();
    });
}

#[test]
#[ignore = "needs the Debian package curl"]
fn one_of_another_name_is_another_connection_where_the_server_is_asked_for_it() {
    in_lab(one_of_another_name_is_another_connection_where_the_server_is_asked_for_it, Topology::TwoArm, 1, |lab| {
        let (vip, pki) = (lab.vip(100), Arc::new(Pki::new()));
        let accepting = Arc::clone(&pki);
        let origin = WebOrigin::start_over(lab.server(1), 443, move |socket| accepting.accept(socket));
        let text = pki.service(vip, "re-encrypt", "verify_server = \"none\"", &[]);
        let (front, tls) = text.split_once("[service.tls]").expect("a table");
        let address: IpAddr = lab.server(1).ipv4().into();
        let text = format!(
            "[tls]\nthreads = 0\n{front}{SAFE}\n[service.tls]{tls}[[service.server]]\nname = \"one\"\naddress = \"{address}\"\n"
        );
        let relay = relay(lab, &text);
        let ask = |name: &str, path: &str| {
            let mut command = Command::new("curl");
            command.args(["--silent", "--show-error", "--insecure", "--resolve", &format!("{name}:443:{vip}")]);
            command.arg(format!("https://{name}{path}"));
            let said = said(lab.client(), command);
            relay.until("it waits", |status| status.services[0].connections == 0);
            said
        };
        assert_eq!(ask(NAME, "/"), b"server-1 0 0\n");
        assert_eq!(ask(NAME, "/bytes/300000").len(), 300_000);
        assert_eq!(ask(NAME, "/"), b"server-1 0 2\n");
        assert_eq!(ask("other.test", "/"), b"server-1 1 0\n");
        assert_eq!(ask(NAME, "/"), b"server-1 0 3\n");
        assert_eq!(ask("other.test", "/"), b"server-1 1 1\n");
        assert_eq!(by_connection(&origin.requests()).len(), 2);
        relay.stop();
    });
}

fn said(host: &Host, mut command: Command) -> Vec<u8> {
    command.stdout(Stdio::piped());
    let mut child = host.spawn(command).expect("a command");
    let mut said = Vec::new();
    child.process().stdout.take().expect("a pipe").read_to_end(&mut said).expect("bytes");
    assert!(child.process().wait().expect("an end").success());
    said
}

/// Plays so many requests against a relay that shares connections and is reloaded meanwhile, with as many workers as there are CPUs.
fn nobody_gets_what_is_somebody_else_s(lab: &TestLab, requests: u64, clients: usize) {
    let target = Target::plain((lab.vip(100), 80).into());
    let server = (lab.server(1).ipv4(), 80).into();
    let origin = lab.server(1).run(|| Origin::listen(server, 7)).expect("a host").expect("a port");
    let text = |idle_max: u32| {
        let keys = format!("{SAFE}\nreuse_idle_max = {idle_max}");
        service("web", lab.free_vip(100), "[80]", &keys, &ipv4(lab.servers()))
    };
    let mut relay = subject!().start(lab.balancer(), &text(16));
    let play = Play { target, clients, requests, at_once: 16, seed: 7 };
    let progress = AtomicU64::new(0);
    let outcome: Outcome = thread::scope(|scope| {
        let played = scope.spawn(|| lab.client().run(|| play.run(&progress)).expect("a host").expect("clients"));
        for idle_max in (8..).take_while(|_| !played.is_finished()) {
            relay.reload(&text(8 + idle_max % 8)).expect("accepted");
            thread::sleep(Duration::from_millis(300));
        }
        played.join().expect("no panic")
    });
    let web = relay.service("web");
    assert_eq!((outcome.foreign, outcome.misplaced), (0, 0), "{outcome:?}");
    assert_eq!(
        (outcome.forgotten, outcome.refused),
        (0, 0),
        "a logon holds as long as its client's connection: {outcome:?}"
    );
    // All of it has happened, and connections were shared.
    let (reused, resent) = (web.counters["server_reused"], web.counters["resent"]);
    assert!(outcome.own > requests / 4 && outcome.anonymous > requests / 20, "{outcome:?}");
    assert!(outcome.challenged > requests / 50 && outcome.closed > 0 && origin.logons() > 0, "{outcome:?}");
    assert!(
        reused > requests / 10 && resent > 0 && origin.connections() < outcome.requests / 4,
        "{reused} {resent} {outcome:?}"
    );
    assert!(outcome.failed < requests / 50, "{outcome:?}");
    relay.stop();
}

#[test]
fn identities_stay_apart() {
    in_lab(identities_stay_apart, Topology::TwoArm, 1, |lab| nobody_gets_what_is_somebody_else_s(lab, 12_000, 240));
}

#[test]
#[ignore = "a million requests take a minute or two"]
fn identities_stay_apart_in_a_million_requests() {
    in_lab(identities_stay_apart_in_a_million_requests, Topology::TwoArm, 1, |lab| {
        nobody_gets_what_is_somebody_else_s(lab, 1_000_000, 600);
    });
}
