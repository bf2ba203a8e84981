//! HTTP/2 towards clients: real ones, and one that sends whatever frames a test wants.

#[path = "http2/floods.rs"]
mod floods;
#[path = "http2/frames.rs"]
mod frames;

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use frames::{FrameClient, GET};
use towpath_core::http2::ErrorCode;
use towpath_perf::identity::{Origin, Play, Target, basic, greeting};
use towpath_tests::pki::{NAME, Pki};
use towpath_tests::web::{Request, WebOrigin, pattern_told, send_pattern};
use towpath_tests::{Host, Subject, TestLab, Topology, eventually, in_lab, ipv4, subject};

/// A relay that offers HTTP/2 before one or more web servers.
struct Stage {
    relay: Subject,
    origins: Vec<WebOrigin>,
    vip: Ipv4Addr,
    pki: Pki,
}

impl Stage {
    fn set(lab: &TestLab, service: &str, process: &str) -> Stage {
        let origins = lab.servers().iter().map(|host| WebOrigin::start(host, 443)).collect();
        let (pki, vip) = (Pki::new(), lab.vip(100));
        let text = pki.service(vip, "terminate", "", &ipv4(lab.servers()));
        let http = format!("{service}\n[service.http]\nhttp2 = true\n[service.tls]");
        let text = text.replace("[service.tls]", &http);
        let relay = subject!().start(lab.balancer(), &format!("{process}\n[tls]\nthreads = 0\n{text}"));
        Stage { relay, origins, vip, pki }
    }

    fn open(&self, lab: &TestLab) -> FrameClient {
        FrameClient::open(&self.pki, lab.client(), self.vip)
    }

    fn asked(&self) -> Vec<Request> {
        self.origins.iter().flat_map(WebOrigin::requests).collect()
    }

    fn counter(&self, name: &str) -> u64 {
        self.relay.service("web").counters[name]
    }

    fn refused(&self, reason: &str) -> u64 {
        self.relay.service("web").refused_streams.get(reason).copied().unwrap_or(0)
    }

    /// Waits until every connection and stream has ended, so many of them for this reason.
    fn until_ended(&self, reason: &str, count: u64) {
        eventually(&format!("{count} have ended: {reason}"), || {
            let web = self.relay.service("web");
            let ended: u64 = web.terminations.values().sum();
            (web.terminations[reason] == count && web.accepted == ended).then_some(())
        });
    }
}

/// What a command on the client's host has said.
#[track_caller]
fn said(host: &Host, mut command: Command) -> String {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = host.spawn(command).expect("a command");
    // openssl writes tickets as they are.
    let mut said = Vec::new();
    child.process().stdout.take().expect("a pipe").read_to_end(&mut said).expect("bytes");
    let said = String::from_utf8_lossy(&said).into_owned();
    let status = child.process().wait().expect("an end");
    let mut complaint = String::new();
    child.process().stderr.take().expect("a pipe").read_to_string(&mut complaint).expect("text");
    assert!(status.success(), "{status}: {said} {complaint}");
    said
}

fn curl(stage: &Stage, paths: &[&str], more: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--insecure", "--max-time", "120"]).args(more);
    for path in paths {
        command.arg(format!("https://{}{path}", stage.vip));
    }
    command
}

#[test]
#[ignore = "needs the Debian package curl"]
fn curl_chooses_http2_and_is_served_with_all_its_ways() {
    in_lab(curl_chooses_http2_and_is_served_with_all_its_ways, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "", "");
        let ask = |paths: &[&str], more: &[&str]| said(lab.client(), curl(&stage, paths, more));
        let version = ["--write-out", "%{http_version} %{size_download}\n"];
        assert_eq!(ask(&["/", "/"], &version), "server-1 0 0\n2 13\nserver-1 0 1\n2 13\n");
        assert_eq!(ask(&["/"], &[&version[..], &["--http1.1"]].concat()), "server-1 1 0\n1.1 13\n");
        let head = ask(&["/bytes/77"], &["--head"]);
        assert!(head.starts_with("HTTP/2 200") && head.contains("content-length: 77\r\n"), "{head}");
        let sizes = [&version[..], &["--output", "/dev/null"]].concat();
        assert_eq!(ask(&["/chunks/500000"], &sizes), "2 500000\n");
        assert_eq!(ask(&["/until-close/300000"], &sizes), "2 300000\n");
        assert_eq!(ask(&["/status/204"], &sizes), "2 0\n");
        assert!(ask(&["/status/304"], &["--dump-header", "-"]).starts_with("HTTP/2 304"));
        let file = tempfile::NamedTempFile::new().expect("a file");
        send_pattern(&mut file.as_file(), 300_000).expect("a file takes it");
        let (data, path) = (format!("@{}", file.path().display()), file.path().display().to_string());
        let told = format!("x-body: {}\r\n", pattern_told(300_000));
        let told_of = |more: &[&str]| ask(&["/up"], &[&["--dump-header", "-"][..], more].concat());
        // With its length, without, and after having asked.
        for more in [
            &["--data-binary", &*data][..],
            &["--upload-file", &*path],
            &["--data-binary", &*data, "-H", "Content-Length:"],
            &["--data-binary", &*data, "-H", "Expect: 100-continue"],
        ] {
            let head = told_of(more);
            assert!(head.contains(&told), "{more:?}: {head}");
        }
        assert!(told_of(&["--data-binary", &data, "-H", "Expect: 100-continue"]).starts_with("HTTP/2 100"));
        let asked = stage.asked();
        let fields =
            ["host", "x-forwarded-proto", "x-forwarded-for"].map(|name| asked[0].field(name).map(str::to_owned));
        assert_eq!(fields[0].as_deref(), Some(&*stage.vip.to_string()));
        assert_eq!(fields[1].as_deref(), Some("https"));
        assert!(fields[2].is_some() && asked[0].head.starts_with("GET / HTTP/1.1\r\n"), "{}", asked[0].head);
        stage.relay.stop();
    });
}

#[test]
#[ignore = "needs the Debian package nghttp2-client"]
fn many_streams_share_few_connections_to_servers() {
    in_lab(many_streams_share_few_connections_to_servers, Topology::TwoArm, 2, |lab| {
        let stage = Stage::set(lab, "", "");
        let mut load = Command::new("h2load");
        load.args(["-n", "2000", "-c", "2", "-m", "20"]).arg(format!("https://{}/bytes/3000", stage.vip));
        let said = said(lab.client(), load);
        assert!(said.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{said}");
        let connections: usize = stage.origins.iter().map(WebOrigin::connections).sum();
        // Each request is balanced, so that one stream's next may leave its server for the other.
        assert_eq!(stage.asked().len(), 2000);
        assert!(stage.counter("http2") == 2 && connections < 1500, "{connections} connections");
        stage.until_ended("client_closed", 2);
        stage.relay.stop();
    });
}

#[test]
#[ignore = "needs the Debian package nghttp2-client"]
fn a_server_serves_one_stream_after_the_other() {
    in_lab(a_server_serves_one_stream_after_the_other, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "", "");
        let mut load = Command::new("h2load");
        load.args(["-n", "1000", "-c", "1", "-m", "10"]).arg(format!("https://{}/bytes/100", stage.vip));
        let said = said(lab.client(), load);
        assert!(said.contains("1000 succeeded, 0 failed"), "{said}");
        let connections = stage.origins[0].connections();
        assert!((1..=20).contains(&connections), "{connections} connections for 1000 requests");
        stage.relay.stop();
    });
}

#[test]
#[ignore = "needs the Debian package curl"]
fn a_hundred_megabytes_pass_each_way_in_little_memory() {
    in_lab(a_hundred_megabytes_pass_each_way_in_little_memory, Topology::TwoArm, 1, |lab| {
        const BYTES: u64 = 100 << 20;
        let stage = Stage::set(lab, "", "");
        let ask = |paths: &[&str], more: &[&str]| said(lab.client(), curl(&stage, paths, more));
        ask(&["/"], &[]);
        let before = stage.relay.memory_bytes();
        let sizes = ["--output", "/dev/null", "--write-out", "%{http_version} %{size_download}"];
        assert_eq!(ask(&[&format!("/bytes/{BYTES}")], &sizes), format!("2 {BYTES}"));
        let file = tempfile::NamedTempFile::new().expect("a file");
        send_pattern(&mut file.as_file(), BYTES).expect("a file takes it");
        let path = file.path().display().to_string();
        let head = ask(&["/up"], &["--upload-file", &path, "--dump-header", "-"]);
        assert!(head.contains(&format!("x-body: {}\r\n", pattern_told(BYTES))), "{head}");
        let more = stage.relay.memory_bytes().saturating_sub(before);
        assert!(more < 48 << 20, "{more} bytes more");
        stage.relay.stop();
    });
}

#[test]
#[ignore = "needs the Debian package openssl"]
fn clients_are_offered_it_only_where_it_is_asked_for() {
    in_lab(clients_are_offered_it_only_where_it_is_asked_for, Topology::TwoArm, 1, |lab| {
        let mut stage = Stage::set(lab, "", "");
        let chosen = |vip: Ipv4Addr, offers: &str| {
            let mut openssl = Command::new("openssl");
            openssl.args(["s_client", "-alpn", offers, "-connect", &format!("{vip}:443")]);
            said(lab.client(), openssl)
        };
        assert!(chosen(stage.vip, "http/1.1,h2").contains("ALPN protocol: h2"));
        assert!(chosen(stage.vip, "http/1.1").contains("ALPN protocol: http/1.1"));
        let text = stage.pki.service(stage.vip, "terminate", "", &ipv4(lab.servers()));
        let text = text.replace("[service.tls]", "[service.http]\n[service.tls]");
        stage.relay.reload(&format!("[tls]\nthreads = 0\n{text}")).expect("a new generation");
        assert!(chosen(stage.vip, "h2,http/1.1").contains("No ALPN negotiated"));
        stage.relay.stop();
    });
}

#[test]
#[ignore = "needs the Debian package curl"]
fn who_authenticates_a_connection_comes_by_http_1() {
    in_lab(who_authenticates_a_connection_comes_by_http_1, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "", "");
        let mut client = stage.open(lab);
        // Before the servers see it, or when they ask for it.
        let given = [("authorization", "NTLM user-1")];
        client.request(1, &[&GET[..], &[(":path", "/who")], &given].concat(), true);
        assert_eq!(client.reset_of(1), ErrorCode::Http11Required as u32);
        assert!(stage.asked().is_empty());
        client.request(3, &[&GET[..], &[(":path", "/who")]].concat(), true);
        assert_eq!(client.reset_of(3), ErrorCode::Http11Required as u32);
        assert_eq!((stage.asked().len(), stage.refused("logon")), (1, 2));
        // Others go on.
        client.request(5, &[&GET[..], &[(":path", "/bytes/5")]].concat(), true);
        assert_eq!(client.response(5).status, 200);
        let version = ["--output", "/dev/null", "--write-out", "%{http_version} %{http_code}"];
        assert_eq!(said(lab.client(), curl(&stage, &["/who"], &version)), "1.1 401", "curl knows what that means");
        drop(client);
        stage.until_ended("logon_over_http2", 3);
        stage.relay.stop();
    });
}

#[test]
fn a_client_that_opens_no_window_holds_up_itself_until_its_time_is_over() {
    in_lab(a_client_that_opens_no_window_holds_up_itself_until_its_time_is_over, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "idle_timeout = \"2s\"", "");
        let mut client = stage.open(lab);
        let begin = Instant::now();
        for stream in [1, 3, 5] {
            client.request(stream, &[&GET[..], &[(":path", "/bytes/9000000")]].concat(), true);
        }
        for stream in [1, 3, 5] {
            assert_eq!(client.reset_of(stream), ErrorCode::Cancel as u32);
        }
        assert!(begin.elapsed() >= Duration::from_secs(2), "{:?}", begin.elapsed());
        // What was sent counts against the connection's window, which the client opens again.
        client.open_window(0, 1 << 20);
        client.request(7, &[&GET[..], &[(":path", "/bytes/50000")]].concat(), true);
        let response = client.response(7);
        assert_eq!((response.status, response.body.len()), (200, 50_000));
        drop(client);
        stage.until_ended("idle_timed_out", 3);
        stage.relay.stop();
    });
}

#[test]
fn resets_of_clients_end_what_was_done_for_them() {
    in_lab(resets_of_clients_end_what_was_done_for_them, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "", "");
        let mut client = stage.open(lab);
        let post = [(":method", "POST"), (":scheme", "https"), (":path", "/up"), (":authority", "web.test")];
        // Amid a request, …
        client.request(1, &post, false);
        client.data(1, b"some", false);
        client.reset(1);
        // … amid a response, …
        client.request(3, &[&GET[..], &[(":path", "/bytes/9000000")]].concat(), true);
        client.until_data(3);
        client.reset(3);
        // … and before either.
        client.request(5, &[&GET[..], &[(":path", "/slow/60000")]].concat(), true);
        eventually("all are asked", || (stage.asked().len() == 2).then_some(()));
        client.reset(5);
        client.open_window(0, 1 << 20);
        client.request(7, &[&GET[..], &[(":path", "/bytes/5")]].concat(), true);
        assert_eq!(client.response(7).status, 200);
        drop(client);
        stage.until_ended("client_reset", 3);
        stage.relay.stop();
    });
}

#[test]
fn an_early_response_is_whole_before_its_request_is_given_up() {
    in_lab(an_early_response_is_whole_before_its_request_is_given_up, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "", "");
        let mut client = stage.open(lab);
        let post = [(":method", "POST"), (":scheme", "https"), (":path", "/early"), (":authority", "web.test")];
        for stream in [1, 3] {
            client.request(stream, &post, false);
            client.data(stream, &[7; 10_000], false);
            let response = client.response(stream);
            assert_eq!((response.status, response.text()), (413, "large\n"));
            assert_eq!(client.reset_of(stream), ErrorCode::NoError as u32);
            // What is still on its way is nobody's.
            client.data(stream, &[7; 10_000], true);
        }
        client.request(5, &[&GET[..], &[(":path", "/bytes/5")]].concat(), true);
        assert_eq!(client.response(5).status, 200);
        stage.relay.stop();
    });
}

#[test]
fn streams_take_places_of_connections_and_servers_may_have_tls() {
    in_lab(streams_take_places_of_connections_and_servers_may_have_tls, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "", "[limits]\nconnections = 4");
        let mut client = stage.open(lab);
        for stream in [1, 3, 5, 7, 9] {
            client.request(stream, &[&GET[..], &[(":path", "/slow/500")]].concat(), true);
        }
        // One is the client's own.
        for stream in [7, 9] {
            assert_eq!(client.reset_of(stream), ErrorCode::RefusedStream as u32);
        }
        for stream in [1, 3, 5] {
            assert_eq!(client.response(stream).status, 200);
        }
        assert_eq!(stage.refused("no_room"), 2);
        client.request(11, &[&GET[..], &[(":path", "/slow/1")]].concat(), true);
        assert_eq!(client.response(11).status, 200);
        stage.relay.stop();
    });
}

#[test]
fn servers_with_tls_and_trailers_of_both_sides() {
    in_lab(servers_with_tls_and_trailers_of_both_sides, Topology::TwoArm, 1, |lab| {
        let (pki, vip) = (std::sync::Arc::new(Pki::new()), lab.vip(100));
        let key = std::sync::Arc::clone(&pki);
        let origin = WebOrigin::start_over(lab.server(1), 443, move |socket| key.accept(socket));
        let text = pki.service(vip, "re-encrypt", "verify_server = \"none\"", &ipv4(lab.servers()));
        let text = text.replace("[service.tls]", "[service.http]\nhttp2 = true\n[service.tls]");
        let relay = subject!().start(lab.balancer(), &format!("[tls]\nthreads = 0\n{text}"));
        let mut client = FrameClient::open(&pki, lab.client(), vip);
        client.request(1, &[&GET[..], &[(":path", "/chunks/40000")]].concat(), true);
        let response = client.response(1);
        let field = |name: &str| response.fields.iter().find(|(own, _)| own == name).map(|(_, value)| value.clone());
        assert_eq!((response.body.len(), field("x-sum").as_deref()), (40_000, Some("there")));
        assert_eq!(field("transfer-encoding"), None);
        let post = [(":method", "POST"), (":scheme", "https"), (":path", "/up"), (":authority", "web.test")];
        client.request(3, &post, false);
        client.data(3, b"\0\x01\x02", false);
        client.request(3, &[("x-sum", "3")], true);
        let response = client.response(3);
        assert!(response.fields.contains(&("x-body".to_owned(), pattern_told(3))), "{:?}", response.fields);
        // One connection to the server has done for both.
        assert_eq!(origin.connections(), 1);
        drop(client);
        relay.stop();
    });
}

#[test]
fn a_connection_that_rests_keeps_little() {
    in_lab(a_connection_that_rests_keeps_little, Topology::TwoArm, 1, |lab| {
        const CLIENTS: u64 = 100;
        let stage = Stage::set(lab, "", "");
        let open = || {
            let mut client = stage.open(lab);
            client.request(1, &[&GET[..], &[(":path", "/bytes/1000")]].concat(), true);
            assert_eq!(client.response(1).status, 200);
            client
        };
        let first = open();
        let before = stage.relay.memory_bytes();
        let clients: Vec<FrameClient> = (0..CLIENTS).map(|_| open()).collect();
        let each = stage.relay.memory_bytes().saturating_sub(before) / CLIENTS;
        println!("{each} bytes for a connection and its stream");
        assert!(each < 48 << 10, "{each} bytes each");
        drop((first, clients));
        stage.relay.stop();
    });
}

#[test]
fn chunks_that_come_in_pieces_pass_as_they_come() {
    in_lab(chunks_that_come_in_pieces_pass_as_they_come, Topology::TwoArm, 1, |lab| {
        let bound = lab.server(1).run(|| std::net::TcpListener::bind("0.0.0.0:443"));
        let listener = bound.expect("a thread").expect("a listener");
        thread::spawn(move || {
            for mut server in listener.incoming().flatten() {
                server.set_nodelay(true).expect("a socket");
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                for piece in [head, "5\r\n", "hello", "\r\n", "1\r\n!", "\r\n", "0\r\n", "\r\n"] {
                    // Each in a segment of its own, which nothing else shows.
                    thread::sleep(Duration::from_millis(20));
                    if server.write_all(piece.as_bytes()).is_err() {
                        break;
                    }
                }
                thread::spawn(move || server.read_to_end(&mut Vec::new()));
            }
        });
        let (pki, vip) = (Pki::new(), lab.vip(100));
        let text = pki.service(vip, "terminate", "", &ipv4(lab.servers()));
        let text = text.replace("[service.tls]", "[service.http]\nhttp2 = true\n[service.tls]");
        let relay = subject!().start(lab.balancer(), &format!("[tls]\nthreads = 0\n{text}"));
        let mut client = FrameClient::open(&pki, lab.client(), vip);
        client.request(1, &[&GET[..], &[(":path", "/")]].concat(), true);
        assert_eq!(client.response(1).text(), "hello!");
        drop(client);
        relay.stop();
    });
}

#[test]
fn broken_streams_do_no_harm_to_others() {
    in_lab(broken_streams_do_no_harm_to_others, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "", "");
        let mut client = stage.open(lab);
        let with = |more: &[(&'static str, &'static str)]| [&GET[..], &[(":path", "/")], more].concat();
        for (stream, more, reason) in [
            (1, &[("X-Upper", "1")][..], "field_name"),
            (3, &[("x", "a\r\nb: c")], "field_value"),
            (5, &[("transfer-encoding", "chunked")], "connection_field"),
            (7, &[("host", "other.test")], "authority"),
            (9, &[(":path", "/")], "pseudo_header"),
        ] {
            client.request(stream, &with(more), true);
            assert_eq!(client.reset_of(stream), ErrorCode::Protocol as u32, "{reason}");
            assert_eq!(stage.refused(reason), 1);
        }
        // The body is not as long as it says: the server is not to take it for whole.
        let post = [(":method", "POST"), (":scheme", "https"), (":path", "/up"), (":authority", "web.test")];
        client.request(11, &[&post[..], &[("content-length", "10")]].concat(), false);
        client.data(11, b"short", true);
        assert_eq!(client.reset_of(11), ErrorCode::Protocol as u32);
        client.request(13, &[&GET[..], &[(":path", "/"), ("x-long", &*"x".repeat(40_000))]].concat(), true);
        assert_eq!(client.response(13).status, 431);
        client.request(15, &[&GET[..], &[(":path", "/a%00b")]].concat(), true);
        assert_eq!(client.response(15).status, 200, "paths are looked at by routes and filters only");
        client.request(17, &[(":method", "CONNECT"), (":authority", "web.test:1")], true);
        assert_eq!(client.response(17).status, 501);
        let asked: Vec<String> = stage.asked().iter().map(|request| request.head.clone()).collect();
        assert_eq!(asked.len(), 1, "{asked:?}");
        stage.relay.stop();
    });
}

#[test]
fn a_drain_lets_streams_end_and_opens_no_more() {
    in_lab(a_drain_lets_streams_end_and_opens_no_more, Topology::TwoArm, 1, |lab| {
        let mut stage = Stage::set(lab, "drain_timeout = \"30s\"", "");
        let mut client = stage.open(lab);
        client.request(1, &[&GET[..], &[(":path", "/slow/1500")]].concat(), true);
        eventually("it is asked", || (stage.counter("requests") == 1).then_some(()));
        stage.relay.terminate();
        // First that there is an end, and when the client knows of it, which stream was the last.
        assert_eq!(client.go_away(), (0x7fff_ffff, 0));
        assert_eq!(client.go_away(), (1, 0));
        assert_eq!(client.response(1).text(), "server-1 0 0\n");
        client.until_end();
        assert_eq!(stage.relay.wait(), Some(0));
    });
}

/// Somebody who asks over HTTP/2 until `over`; returns how many answers were made for him, and how many of his logons were sent to HTTP/1.1.
fn ask_over_http2(stage: (&Pki, &Host, Ipv4Addr), user: &str, over: &dyn Fn() -> bool) -> (u64, u64) {
    let (pki, host, vip) = stage;
    let (mut own, mut sent_away, mut asked) = (0, 0, 0);
    while !over() {
        let mut client = FrameClient::open(pki, host, vip);
        client.open_window(0, 1 << 30);
        // Three at a time: their answers come in any order.
        for first in (1..30).step_by(6) {
            let streams = [first, first + 2, first + 4];
            let mut targets = Vec::new();
            for stream in streams {
                asked += 1;
                let place = if asked % 3 == 0 { "public" } else { "private" };
                let target = format!("/{place}/{user}/{asked}");
                let says = if asked % 20 == 0 { format!("NTLM {}", greeting()) } else { basic(user) };
                let fields = [(":path", target.as_str()), ("authorization", says.as_str())];
                client.request(stream, &[&GET[..], &fields].concat(), true);
                targets.push(target);
            }
            for (stream, target) in streams.into_iter().zip(targets) {
                match client.end_of(stream) {
                    Some(Ok(response)) if response.status == 200 => {
                        let line = response.text().lines().next().unwrap_or_default();
                        assert_eq!(line, format!("{user} {target}"));
                        own += 1;
                    }
                    Some(Err(code)) if code == ErrorCode::Http11Required as u32 => sent_away += 1,
                    // Its server has ended, or the connection.
                    Some(Ok(response)) => assert!(response.status >= 500, "{response:?}"),
                    Some(Err(_)) | None => {}
                }
            }
        }
    }
    (own, sent_away)
}

#[test]
fn identities_stay_apart_in_both_versions() {
    in_lab(identities_stay_apart_in_both_versions, Topology::TwoArm, 1, |lab| {
        let server = (lab.server(1).ipv4(), 443).into();
        let origin = lab.server(1).run(|| Origin::listen(server, 11)).expect("a host").expect("a port");
        let (pki, vip) = (Pki::new(), lab.vip(100));
        let text = |idle_max: u32| {
            let http =
                format!("[service.http]\nhttp2 = true\nreuse = \"safe\"\nreuse_idle_max = {idle_max}\n[service.tls]");
            let text = pki.service(vip, "terminate", "", &ipv4(lab.servers())).replace("[service.tls]", &http);
            format!("[tls]\nthreads = 0\n{text}")
        };
        let mut relay = subject!().start(lab.balancer(), &text(16));
        let name = NAME.try_into().expect("a name");
        let target = Target { address: (vip, 443).into(), tls: Some((name, pki.client_config(rustls::ALL_VERSIONS))) };
        let play = Play { target, clients: 120, requests: 6_000, at_once: 8, seed: 11 };
        let progress = AtomicU64::new(0);
        let over = || progress.load(Ordering::Relaxed) >= play.requests;
        let (outcome, over_http2) = thread::scope(|scope| {
            let played = scope.spawn(|| lab.client().run(|| play.run(&progress)).expect("a host").expect("clients"));
            let ask = |number: u32| {
                let (stage, over) = ((&pki, lab.client(), vip), &over);
                scope.spawn(move || ask_over_http2(stage, &format!("streamer-{number}"), over))
            };
            let streamers: Vec<_> = (0..4).map(ask).collect();
            // A reload for each thousand of requests, and one at once.
            for (turn, due) in (0..play.requests).step_by(1_000).enumerate() {
                eventually("requests", || (progress.load(Ordering::Relaxed) >= due).then_some(()));
                relay.reload(&text(8 + turn as u32 % 8)).expect("accepted");
            }
            let outcome = played.join().expect("no panic");
            let sum = |all: (u64, u64), one: (u64, u64)| (all.0 + one.0, all.1 + one.1);
            let over_http2 = streamers.into_iter().map(|one| one.join().expect("no panic")).fold((0, 0), sum);
            (outcome, over_http2)
        });
        assert_eq!(
            (outcome.foreign, outcome.misplaced, outcome.forgotten, outcome.refused),
            (0, 0, 0, 0),
            "{outcome:?}"
        );
        // All of it has happened, and connections were shared.
        assert!(over_http2.0 > 100 && over_http2.1 > 5, "{over_http2:?}");
        assert!(outcome.own > play.requests / 4 && outcome.challenged > 0 && origin.logons() > 0, "{outcome:?}");
        let web = relay.service("web");
        let reused = web.counters["server_reused"];
        assert!(reused > play.requests / 10 && origin.connections() < origin.requests() / 2, "{reused} {outcome:?}");
        relay.stop();
    });
}
