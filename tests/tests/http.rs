//! HTTP mode: requests and responses through the relay, with clients and servers that behave, and with those that do not.

#[path = "http/legs.rs"]
mod legs;

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use towpath_tests::pki::{NAME, Pki};
use towpath_tests::web::{Request, WebClient, WebOrigin, pattern_told, send_pattern};
use towpath_tests::{Connection, Host, Subject, TestLab, Topology, eventually, in_lab, ipv4, service, subject};

/// One gigabyte.
const GIGABYTE: u64 = 1 << 30;
/// Who balances each connection, not each request.
const PER_CONNECTION: &str = "[service.http]\nbalance_each = \"connection\"";

/// A relay in HTTP mode before one or more web servers.
struct Stage {
    relay: Subject,
    origins: Vec<WebOrigin>,
    vip: Ipv4Addr,
}

impl Stage {
    fn set(lab: &TestLab, keys: &str) -> Stage {
        let origins = lab.servers().iter().map(|host| WebOrigin::start(host, 80)).collect();
        let keys = if keys.contains("http") { keys.to_owned() } else { format!("{keys}\nhttp = {{}}") };
        let vip = lab.vip(100);
        let relay = subject!().start(lab.balancer(), &config(lab, &keys));
        Stage { relay, origins, vip }
    }

    fn open(&self, lab: &TestLab) -> WebClient {
        WebClient::open(lab.client(), (self.vip, 80))
    }

    /// What all origins were asked, as method and target.
    fn asked(&self) -> Vec<String> {
        let line = |request: Request| request.head.split(" HTTP/").next().unwrap_or_default().to_owned();
        self.origins.iter().flat_map(WebOrigin::requests).map(line).collect()
    }

    fn counter(&self, name: &str) -> u64 {
        self.relay.service("web").counters[name]
    }

    /// Waits until every connection has ended, so many of them for this reason.
    fn until_ended(&self, reason: &str, count: u64) {
        eventually(&format!("{count} connections have ended: {reason}"), || {
            let web = self.relay.service("web");
            (web.terminations[reason] == count && web.connections == 0).then_some(())
        });
    }
}

fn config(lab: &TestLab, keys: &str) -> String {
    service("web", lab.free_vip(100), "[80]", keys, &ipv4(lab.servers()))
}

/// What a command on the client's host has said.
#[track_caller]
fn said(host: &Host, mut command: Command) -> String {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = host.spawn(command).expect("a command");
    let mut said = String::new();
    child.process().stdout.take().expect("a pipe").read_to_string(&mut said).expect("text");
    let status = child.process().wait().expect("an end");
    let mut complaint = String::new();
    child.process().stderr.take().expect("a pipe").read_to_string(&mut complaint).expect("text");
    assert!(status.success(), "{status}: {complaint}");
    said
}

fn curl(stage: &Stage, paths: &[&str], more: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "300"]).args(more);
    for path in paths {
        command.arg(format!("http://{}{path}", stage.vip));
    }
    command
}

#[test]
fn requests_of_a_connection_are_served_one_after_the_other() {
    in_lab(requests_of_a_connection_are_served_one_after_the_other, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "");
        let mut client = stage.open(lab);
        for number in 0..5 {
            assert_eq!(client.get("/").text(), format!("server-1 0 {number}\n"));
        }
        for bytes in [0, 1, 1000, 20_000, 1_000_000] {
            for path in ["bytes", "chunks"] {
                let response = client.get(&format!("/{path}/{bytes}"));
                assert_eq!(response.told, pattern_told(bytes), "{path} {}", response.head);
                assert_eq!(response.trailer.contains("X-Sum"), path == "chunks", "{}", response.trailer);
            }
        }
        client.send("HEAD /bytes/5000 HTTP/1.1\r\nHost: web.test\r\n\r\n");
        assert_eq!(client.response("HEAD").expect("a response").field("content-length"), Some("5000"));
        for status in [204, 304, 404, 500] {
            assert_eq!(client.get(&format!("/status/{status}")).status, status);
        }
        for bytes in [0, 1, 70_000, 3_000_000] {
            client.send(format!("POST /up HTTP/1.1\r\nHost: web.test\r\nContent-Length: {bytes}\r\n\r\n"));
            send_pattern(&mut client.stream(), bytes).expect("the relay takes it");
            let response = client.response("POST").expect("a response");
            assert_eq!(response.field("x-body"), Some(&*pattern_told(bytes)), "{}", response.head);
        }
        client.send("POST /up HTTP/1.1\r\nHost: web.test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n\0\r\n2\r\n\x01\x02\r\n0\r\n\r\n");
        assert_eq!(client.response("POST").expect("a response").field("x-body"), Some(&*pattern_told(3)));
        assert_eq!(client.get("/").status, 200);
        assert_eq!(stage.origins[0].connections(), 1);
        let response = client.get("/until-close/300000");
        assert_eq!(response.told, pattern_told(300_000), "{}", response.head);
        // The server's connection has ended, the client's has not.
        assert_eq!(client.get("/").text(), "server-1 1 0\n");
        client.stream().shutdown(Shutdown::Write).expect("an open connection");
        assert_eq!(client.rest().expect("an orderly end"), b"");
        stage.until_ended("client_closed", 1);
        let counters = stage.relay.service("web").counters;
        assert_eq!((counters["requests"], counters["responses_2xx"]), (28, 25), "{counters:?}");
        stage.relay.stop();
    });
}

#[test]
#[ignore = "needs the Debian package curl"]
fn curl_is_served_with_all_its_ways() {
    in_lab(curl_is_served_with_all_its_ways, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "");
        let ask = |paths: &[&str], more: &[&str]| said(lab.client(), curl(&stage, paths, more));
        assert_eq!(ask(&["/", "/"], &[]), "server-1 0 0\nserver-1 0 1\n");
        assert!(ask(&["/bytes/77"], &["--head"]).contains("Content-Length: 77\r\n"));
        assert_eq!(ask(&["/chunks/500000"], &["--output", "/dev/null", "--write-out", "%{size_download}"]), "500000");
        let file = tempfile::NamedTempFile::new().expect("a file");
        send_pattern(&mut file.as_file(), 300_000).expect("the relay takes it");
        let data = format!("@{}", file.path().display());
        let told = format!("X-Body: {}", pattern_told(300_000));
        // Above a megabyte or so curl asks whether it may go on.
        for more in [&["-H", "Expect: 100-continue"][..], &["-H", "Transfer-Encoding: chunked"], &[]] {
            let head = ask(&["/up"], &[&["--data-binary", &data, "--dump-header", "-"][..], more].concat());
            assert!(head.contains(&told), "{more:?}: {head}");
        }
        assert!(ask(&["/"], &["--http1.0"]).starts_with("server-1 "));
        stage.relay.stop();
    });
}

#[test]
fn a_gigabyte_passes_each_way_in_little_memory() {
    in_lab(a_gigabyte_passes_each_way_in_little_memory, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "");
        let mut client = stage.open(lab);
        client.get("/");
        let before = stage.relay.memory_bytes();
        assert_eq!(client.get(&format!("/bytes/{GIGABYTE}")).told, pattern_told(GIGABYTE));
        client.send(format!("POST /up HTTP/1.1\r\nHost: web.test\r\nContent-Length: {GIGABYTE}\r\n\r\n"));
        send_pattern(&mut client.stream(), GIGABYTE).expect("the relay takes it");
        assert_eq!(client.response("POST").expect("a response").field("x-body"), Some(&*pattern_told(GIGABYTE)));
        let more = stage.relay.memory_bytes().saturating_sub(before);
        assert!(more < 64 << 20, "{more} bytes more");
        // Nearly all of it has passed through pipes, and the connection goes on.
        assert_eq!((stage.counter("bulk"), stage.counter("bytes_to_client") > GIGABYTE), (2, true));
        assert_eq!(client.get("/").text(), "server-1 0 3\n");
        stage.relay.stop();
    });
}

#[test]
fn a_server_that_has_read_all_is_left_without_a_port_in_time_wait() {
    in_lab(a_server_that_has_read_all_is_left_without_a_port_in_time_wait, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "");
        let in_time_wait = || {
            let read = || std::fs::read_to_string("/proc/thread-self/net/tcp").expect("the host's connections");
            let table = lab.balancer().run(read).expect("a thread on the host");
            // proc_pid_net(5): the far end in column 3, the state in column 4; 06 is TIME_WAIT.
            let columns = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            columns.filter(|columns| columns[2].ends_with(":0050") && columns[3] == "06").count()
        };
        let ask = |request: &str, count: u64| {
            for _ in 0..count {
                let mut client = stage.open(lab);
                client.send(request);
                assert_eq!(client.response("GET").expect("a response").status, 200);
                assert_eq!(client.rest().expect("an orderly end"), b"");
            }
        };
        ask("GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n", 20);
        stage.until_ended("keep_alive_ended", 20);
        assert_eq!(in_time_wait(), 0);
        // Of a body the server may not have read everything: a reset would take it back.
        ask("POST /up HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\nContent-Length: 2\r\n\r\n\x00\x01", 2);
        stage.until_ended("keep_alive_ended", 22);
        eventually("those ports wait", || (in_time_wait() == 2).then_some(()));
        stage.relay.stop();
    });
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    in_lab(pipelined_requests_are_answered_in_their_order, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "");
        let mut client = stage.open(lab);
        let mut requests = String::new();
        for number in 0..40 {
            let (path, body) = [("slow/5", ""), ("bytes/30000", ""), ("up", "hello")][number % 3];
            let method = if body.is_empty() { "GET" } else { "POST" };
            requests += &format!(
                "{method} /{path}?{number} HTTP/1.1\r\nHost: web.test\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
        }
        client.send(requests);
        for number in 0..40 {
            let response = client.response("GET").expect("a response");
            if number % 3 == 1 {
                assert_eq!(response.told, pattern_told(30_000));
            } else {
                assert_eq!(response.text(), format!("server-1 0 {number}\n"));
            }
        }
        let asked = stage.asked();
        assert!((0..40).all(|number| asked[number].ends_with(&format!("?{number}"))), "{asked:?}");
        stage.relay.stop();
    });
}

#[test]
fn another_protocol_passes_both_ways_and_each_end_by_itself() {
    in_lab(another_protocol_passes_both_ways_and_each_end_by_itself, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "");
        let mut client = stage.open(lab);
        // With the first bytes of the other protocol behind the request.
        client.send("GET /upgrade HTTP/1.1\r\nHost: web.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nfirst ");
        let response = client.response("GET").expect("a response");
        assert_eq!((response.status, response.field("upgrade")), (101, Some("echo")), "{}", response.head);
        let mut stream = client.stream().try_clone().expect("a descriptor");
        let sender = thread::spawn(move || {
            send_pattern(&mut stream, 2_000_000).expect("the relay takes it");
            stream.shutdown(Shutdown::Write).expect("an open connection");
        });
        let back = client.rest().expect("an orderly end");
        sender.join().expect("no panic");
        assert_eq!(back.len(), 2_000_006);
        assert!(back.starts_with(b"first \x00\x01\x02"));
        stage.until_ended("client_closed", 1);
        assert_eq!(stage.counter("tunnels"), 1);
        stage.relay.stop();
    });
}

/// Requests that two parsers could read differently, and what else is against the rules.
const SMUGGLED: [(&str, &str); 16] = [
    ("both lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde"),
    ("signed length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd"),
    ("bare line feed", "GET / HTTP/1.1\nHost: a\n\n"),
    ("folded line", "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n"),
    ("space before the colon", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
    ("another coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("a coding that is none", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    ("chunked twice", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    ("absolute target against Host", "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n"),
    ("no Host", "GET / HTTP/1.1\r\n\r\n"),
    ("two Hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"),
    ("zero byte", "GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n"),
    ("another version", "GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
    ("CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"),
    ("no HTTP", "\x16\x03\x01\x00\x05hello\r\n\r\n"),
];

#[test]
fn what_could_be_read_in_two_ways_is_refused_and_no_server_sees_it() {
    in_lab(what_could_be_read_in_two_ways_is_refused_and_no_server_sees_it, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "");
        for (name, request) in SMUGGLED {
            let mut client = stage.open(lab);
            client.send(format!(
                "GET /before HTTP/1.1\r\nHost: a\r\n\r\n{request}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
            ));
            assert_eq!(client.response("GET").expect(name).status, 200, "{name}");
            let refused = client.response("GET").expect(name);
            assert!((400..506).contains(&refused.status), "{name}: {}", refused.head);
            assert_eq!(refused.field("connection"), Some("close"), "{name}: {}", refused.head);
            assert_eq!(client.rest().expect(name), b"", "{name}");
        }
        // Within a body: the server sees a request that never ends.
        let mut client = stage.open(lab);
        client.send("POST /cut HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a\nb\r\nhello\r\n0\r\n\r\nGET /smuggled");
        assert_eq!(client.response("POST").expect("a response").status, 400);
        let asked: BTreeSet<String> = stage.asked().into_iter().collect();
        assert_eq!(asked, BTreeSet::from(["GET /before".to_owned()]));
        stage.until_ended("bad_request", SMUGGLED.len() as u64 + 1);
        let refused: u64 = stage.relay.service("web").refused_requests.values().sum();
        assert_eq!(refused, SMUGGLED.len() as u64 + 1);
        stage.relay.stop();
    });
}

#[test]
fn slow_clients_have_so_much_time_for_a_head_and_any_for_a_body() {
    in_lab(slow_clients_have_so_much_time_for_a_head_and_any_for_a_body, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "[service.http]\nhead_timeout = \"1s\"");
        let since = Instant::now();
        let mut silent = stage.open(lab);
        let mut slow = stage.open(lab);
        slow.send("GET / HTTP/1.1\r\nHos");
        assert_eq!(slow.response("GET").expect("a response").status, 408);
        assert_eq!(slow.rest().expect("an orderly end"), b"");
        // One that has said nothing expects nothing.
        assert_eq!(silent.rest().expect("an orderly end"), b"");
        assert!(since.elapsed() >= Duration::from_millis(950), "{:?}", since.elapsed());
        stage.until_ended("head_timed_out", 2);
        // In pieces of one byte, head and body.
        let mut client = stage.open(lab);
        let body = "0123456789".repeat(20);
        for byte in format!("POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 200\r\n\r\n{body}").bytes() {
            client.send([byte]);
        }
        assert!(client.response("POST").expect("a response").field("x-body").expect("told").starts_with("200 "));
        // Between two requests the idle timeout counts.
        let silence = client.wait(Duration::from_millis(1200)).expect_err("nothing comes");
        assert_eq!(silence.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(client.get("/").status, 200);
        stage.relay.stop();
    });
}

#[test]
fn a_response_that_is_cut_off_never_looks_whole() {
    in_lab(a_response_that_is_cut_off_never_looks_whole, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "");
        for path in ["/cut/1000", "/cut/500000", "/cut-chunks/300000"] {
            let mut client = stage.open(lab);
            client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
            let kind = client.response("GET").expect_err(path).kind();
            assert!(matches!(kind, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset), "{path}: {kind}");
        }
        stage.until_ended("response_cut_off", 3);
        // One that had not begun is another matter.
        let mut client = stage.open(lab);
        client.send("POST /drop HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx");
        assert_eq!(client.response("POST").expect("a response").status, 502);
        stage.relay.stop();
    });
}

#[test]
fn requests_that_may_be_repeated_go_to_another_server() {
    in_lab(requests_that_may_be_repeated_go_to_another_server, Topology::TwoArm, 2, |lab| {
        let stage = Stage::set(lab, PER_CONNECTION);
        let mut client = stage.open(lab);
        // A kept connection that ends just then says nothing about its server: the same or another, but the client does not see it.
        for number in 0..6 {
            assert_eq!(client.get(&format!("/drop-kept?{number}")).status, 200);
        }
        let repeated = stage.asked().len();
        assert!(repeated > 6, "{repeated} requests for 6");
        // Nobody knows whether this one was served.
        let mut other = stage.open(lab);
        assert_eq!(other.get("/").status, 200);
        other.send("POST /drop HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
        match other.response("POST") {
            Ok(response) => assert_eq!(response.status, 502),
            // The client knows it best where its connection had been used before.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof),
        }
        assert_eq!(stage.asked().iter().filter(|line| *line == "POST /drop").count(), 1);
        // One server is gone: whoever gets it goes to the other.
        stage.origins[0].stop();
        for _ in 0..4 {
            assert!(stage.open(lab).get("/").text().starts_with("server-2 "));
        }
        stage.origins[1].stop();
        assert_eq!(stage.open(lab).get("/").status, 502);
        stage.relay.stop();
    });
}

#[test]
fn t_22_clients_come_back_by_their_cookie() {
    in_lab(t_22_clients_come_back_by_their_cookie, Topology::TwoArm, 2, |lab| {
        let keys = "balance = \"round-robin\"\npersistence = { by = \"cookie\" }\nhttp = {}";
        let mut stage = Stage::set(lab, keys);
        let server = |text: &str| text.split(' ').next().unwrap_or_default().to_owned();
        let mut homes = BTreeSet::new();
        for _ in 0..6 {
            let mut client = stage.open(lab);
            let first = client.get("/");
            let home = server(first.text());
            let cookie = first.field("set-cookie").expect("a cookie").split(';').next().expect("a part").to_owned();
            assert!(cookie.starts_with("SERVERID="), "{cookie}");
            assert!(!cookie.contains(&home) && !cookie.contains("10."), "{cookie} says where the server is");
            let fields = format!("Cookie: a=b; {cookie}\r\n");
            for _ in 0..4 {
                // On this connection, and on others.
                for response in [client.get_with("/", &fields), stage.open(lab).get_with("/", &fields)] {
                    assert_eq!(server(response.text()), home);
                    assert_eq!(response.field("set-cookie"), None, "{}", response.head);
                }
            }
            // One that was made up is nobody's.
            let made_up = format!("Cookie: {}x\r\n", &cookie[..cookie.len() - 1]);
            assert!(stage.open(lab).get_with("/", &made_up).field("set-cookie").is_some());
            homes.insert((home, fields));
        }
        let (_, fields) = homes.iter().find(|(home, _)| home == "server-1").expect("both serve").clone();
        // Its server is down: another one takes it, and says so by a new cookie.
        stage.origins[0].stop();
        let moved = stage.open(lab).get_with("/", &fields);
        assert!(moved.text().starts_with("server-2 ") && moved.field("set-cookie").is_some(), "{}", moved.head);
        // A connection of its own for every request that leads elsewhere, and the same one where it does not.
        let text = config(lab, keys).replace("round-robin", "least-connections");
        stage.relay.reload(&text).expect("a valid configuration");
        assert!(stage.open(lab).get_with("/", &fields).text().starts_with("server-2 "));
        stage.relay.stop();
    });
}

#[test]
fn t_22_the_cookie_of_lync_mobility_is_on_every_response_that_lacks_it() {
    in_lab(t_22_the_cookie_of_lync_mobility_is_on_every_response_that_lacks_it, Topology::TwoArm, 2, |lab| {
        let stage = Stage::set(lab, "persistence = { by = \"cookie\", cookie = \"MS-WSMAN\" }\nhttp = {}");
        let mut client = stage.open(lab);
        let first = client.get("/");
        let set = first.field("set-cookie").expect("a cookie").to_owned();
        let lower = set.to_ascii_lowercase();
        assert!(set.starts_with("MS-WSMAN="), "{set}");
        for attribute in ["httponly", "expires", "max-age"] {
            assert!(!lower.contains(attribute), "{set}");
        }
        let home = first.text().split(' ').next().map(str::to_owned);
        let fields = format!("Cookie: {}\r\n", set.split(';').next().expect("a part"));
        for _ in 0..4 {
            let next = stage.open(lab).get_with("/", &fields);
            assert_eq!(next.text().split(' ').next().map(str::to_owned), home);
            assert_eq!(next.field("set-cookie"), Some(&*set), "{}", next.head);
        }
        stage.relay.stop();
    });
}

#[test]
fn connections_that_were_authenticated_are_never_another_client_s() {
    in_lab(connections_that_were_authenticated_are_never_another_client_s, Topology::TwoArm, 2, |lab| {
        let stage = Stage::set(lab, "balance = \"round-robin\"\nhttp = {}");
        const CLIENTS: usize = 200;
        const REQUESTS: usize = 25;
        thread::scope(|scope| {
            for part in 0..8 {
                let (stage, lab) = (&stage, &lab);
                scope.spawn(move || {
                    for number in (part..CLIENTS).step_by(8) {
                        let user = format!("user-{number}");
                        let mut client = stage.open(lab);
                        if number % 2 == 0 {
                            assert_eq!(client.get("/who").status, 401);
                            assert_eq!(
                                client.get_with("/who", "Authorization: NTLM negotiate\r\n").text(),
                                "challenge\n"
                            );
                        }
                        let scheme = if number % 3 == 0 { "Negotiate" } else { "NTLM" };
                        let first = client.get_with("/who", &format!("Authorization: {scheme} {user}\r\n"));
                        assert_eq!(first.text(), format!("{user}\n"));
                        // From here on it is the connection that says who it is.
                        for _ in 0..REQUESTS {
                            assert_eq!(client.get("/who").text(), format!("{user}\n"));
                        }
                        // One that nobody has authenticated is nobody's, whatever connections there were.
                        assert_eq!(stage.open(lab).get("/who").status, 401);
                    }
                });
            }
        });
        stage.relay.stop();
    });
}

#[test]
fn a_drain_lets_responses_end_and_closes_what_is_idle() {
    in_lab(a_drain_lets_responses_end_and_closes_what_is_idle, Topology::TwoArm, 1, |lab| {
        let mut stage = Stage::set(lab, "");
        let mut idle = stage.open(lab);
        assert_eq!(idle.get("/").status, 200);
        let mut busy = stage.open(lab);
        busy.send("GET /slow/700 HTTP/1.1\r\nHost: a\r\n\r\n");
        eventually("the request is there", || stage.asked().contains(&"GET /slow/700".to_owned()).then_some(()));
        let mut sending = stage.open(lab);
        sending.send("POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe");
        stage.relay.until("the request is there", |status| status.services[0].counters["requests"] == 3);
        stage.relay.terminate();
        assert_eq!(idle.rest().expect("an orderly end"), b"");
        sending.send("llo");
        for client in [&mut busy, &mut sending] {
            let response = client.response("GET").expect("a response");
            assert_eq!((response.status, response.field("connection")), (200, Some("close")), "{}", response.head);
            assert_eq!(client.rest().expect("an orderly end"), b"");
        }
        assert_eq!(stage.relay.wait(), Some(0));
    });
}

#[test]
fn a_server_that_is_halted_or_drained_gets_no_further_request() {
    in_lab(a_server_that_is_halted_or_drained_gets_no_further_request, Topology::TwoArm, 2, |lab| {
        let mut stage = Stage::set(lab, PER_CONNECTION);
        let mut clients: Vec<WebClient> = (0..4).map(|_| stage.open(lab)).collect();
        for client in &mut clients {
            assert_eq!(client.get("/").status, 200);
        }
        let text = config(lab, PER_CONNECTION);
        for state in ["drain", "halt"] {
            let changed =
                text.replacen("name = \"server-1\"\n", &format!("name = \"server-1\"\nadmin = \"{state}\"\n"), 1);
            stage.relay.reload(&changed).expect("a valid configuration");
            for client in &mut clients {
                assert!(client.get("/").text().starts_with("server-2 "), "{state}");
            }
            stage.relay.reload(&text).expect("a valid configuration");
        }
        stage.relay.stop();
    });
}

#[test]
fn what_is_answered_before_the_body_is_read_reaches_the_client() {
    in_lab(what_is_answered_before_the_body_is_read_reaches_the_client, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "[service.http]\nbody_bytes_max = 1000000");
        for _ in 0..5 {
            let mut client = stage.open(lab);
            client.send("POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\n");
            // As much as is taken.
            let _refused = send_pattern(&mut client.stream(), 900_000);
            assert_eq!(client.response("POST").expect("a response").text(), "large\n");
        }
        // Our own limit, before and within a body.
        let mut client = stage.open(lab);
        client.send("POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 1000001\r\n\r\n");
        assert_eq!(client.response("POST").expect("a response").status, 413);
        stage.relay.stop();
    });
}

#[test]
fn requests_are_routed_changed_and_told_who_asks() {
    in_lab(requests_are_routed_changed_and_told_who_asks, Topology::TwoArm, 2, |lab| {
        let _origins = [1, 2].map(|number| WebOrigin::start(lab.server(number), 80));
        let group = |name: &str, number| {
            let host = lab.server(number);
            let (server, address) = (host.name(), host.ipv4());
            format!("[[group]]\nname = \"{name}\"\n[[group.server]]\nname = \"{server}\"\naddress = \"{address}\"\n")
        };
        let vip = lab.vip(100);
        let text = format!(
            "{}{}[[service]]\nname = \"web\"\nvip = \"{vip}\"\nports = [80]\ngroup = \"one\"\n\
             [[service.http.filter]]\naction = \"deny\"\npath = [\"/admin\"]\n\
             [[service.http.route]]\npath = [\"/two\"]\ngroup = \"two\"\n\
             [[service.http.route]]\npath = [\"/old\"]\nredirect = \"/new\"\n",
            group("one", 1),
            group("two", 2)
        );
        let relay = subject!().start(lab.balancer(), &text);
        let mut client = WebClient::open(lab.client(), (vip, 80));
        for _ in 0..3 {
            assert!(client.get("/here").text().starts_with("server-1 "));
            assert!(client.get("/two/there").text().starts_with("server-2 "));
        }
        let moved = client.get("/old");
        assert_eq!((moved.status / 100, moved.field("location")), (3, Some("/new")), "{}", moved.head);
        assert_eq!(client.get("/%61dmin/x").status, 403);
        client.get_with("/here", "X-Forwarded-For: 192.0.2.1\r\nForwarded: for=192.0.2.1\r\n");
        let seen = _origins[0].requests();
        let last = seen.last().expect("a request");
        assert_eq!(last.field("x-forwarded-for"), Some(&*lab.client().ipv4().to_string()), "{}", last.head);
        assert_eq!(
            (last.field("x-forwarded-host"), last.field("forwarded")),
            (Some("web.test"), None),
            "{}",
            last.head
        );
        relay.stop();
    });
}

#[test]
#[ignore = "needs the Debian package curl"]
fn https_ends_here_and_goes_on_with_tls() {
    in_lab(https_ends_here_and_goes_on_with_tls, Topology::TwoArm, 2, |lab| {
        for mode in ["terminate", "re-encrypt"] {
            let (vip, pki) = (lab.vip(if mode == "terminate" { 100 } else { 101 }), std::sync::Arc::new(Pki::new()));
            let keys = if mode == "terminate" { "" } else { "verify_server = \"none\"" };
            let origins: Vec<WebOrigin> = lab
                .servers()
                .iter()
                .map(|host| match mode {
                    "terminate" => WebOrigin::start(host, 443),
                    _ => {
                        let pki = std::sync::Arc::clone(&pki);
                        WebOrigin::start_over(host, 443, move |socket| pki.accept(socket))
                    }
                })
                .collect();
            let text = pki.service(vip, mode, keys, &[]);
            let (front, tls) = text.split_once("[service.tls]").expect("a table");
            let servers = ipv4(lab.servers()).iter().fold(String::new(), |text, (name, address)| {
                text + &format!("[[service.server]]\nname = \"{name}\"\naddress = \"{address}\"\n")
            });
            let text = format!("[tls]\nthreads = 0\n{front}{PER_CONNECTION}\n[service.tls]{tls}{servers}");
            let relay = subject!().start(lab.balancer(), &text);
            let mut command = Command::new("curl");
            command.args(["--silent", "--show-error", "--resolve", &format!("{NAME}:443:{vip}")]);
            command.arg("--cacert").arg(pki.certificate());
            for path in ["/", "/bytes/3000000", "/chunks/700000", "/"] {
                command.arg(format!("https://{NAME}{path}")).args(["--output", "-"]);
            }
            let size = said_bytes(lab.client(), command);
            assert!((3_700_000..3_700_100).contains(&size), "{mode}: {size}");
            let file = tempfile::NamedTempFile::new().expect("a file");
            send_pattern(&mut file.as_file(), 2_000_000).expect("room");
            let mut command = Command::new("curl");
            command.args(["--silent", "--show-error", "--resolve", &format!("{NAME}:443:{vip}"), "--dump-header", "-"]);
            command
                .arg("--cacert")
                .arg(pki.certificate())
                .arg("--data-binary")
                .arg(format!("@{}", file.path().display()));
            let head = said(lab.client(), {
                command.arg(format!("https://{NAME}/up"));
                command
            });
            assert!(head.contains(&format!("X-Body: {}", pattern_told(2_000_000))), "{mode}: {head}");
            let requests: Vec<Request> = origins.iter().flat_map(WebOrigin::requests).collect();
            assert!(requests.iter().all(|request| request.field("x-forwarded-proto") == Some("https")), "{requests:?}");
            let ended = eventually("both connections have ended", || {
                Some(relay.service("web")).filter(|web| web.terminations.values().sum::<u64>() == 2)
            });
            assert_eq!(ended.terminations["client_closed"], 2, "{mode}: {ended:?}");
            relay.stop();
        }
    });
}

fn said_bytes(host: &Host, mut command: Command) -> usize {
    command.stdout(Stdio::piped());
    let mut child = host.spawn(command).expect("a command");
    let mut said = Vec::new();
    child.process().stdout.take().expect("a pipe").read_to_end(&mut said).expect("bytes");
    assert!(child.process().wait().expect("an end").success());
    said.len()
}

#[test]
fn a_client_that_goes_away_takes_its_request_with_it() {
    in_lab(a_client_that_goes_away_takes_its_request_with_it, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "");
        let open = || Connection::open(lab.client(), (stage.vip, 80)).expect("the relay listens");
        // Amid a head, amid a body, amid a response.
        let begun = |text: &str| {
            let connection = open();
            (&mut connection.stream()).write_all(text.as_bytes()).expect("the relay takes it");
            connection
        };
        let _cut = begun("GET / HTTP/1.1\r\nHos").close();
        let body = begun("POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello");
        stage.relay.until("the request is there", |status| status.services[0].counters["requests"] == 1);
        let _cut = body.close();
        let response = begun("GET /bytes/300000000 HTTP/1.1\r\nHost: a\r\n\r\n");
        stage.relay.until("the response has begun", |status| status.services[0].counters["responses_2xx"] == 1);
        response.reset().expect("a socket");
        stage.until_ended("request_cut_off", 2);
        stage.until_ended("client_reset", 1);
        // One that has asked and ends its direction has its answer.
        let half = begun("GET /slow/200 HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = half.close().expect("an answer");
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
        assert!(!stage.asked().contains(&"POST /up".to_owned()));
        stage.relay.stop();
    });
}
