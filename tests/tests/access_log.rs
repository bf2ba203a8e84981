//! The access log: lines of real clients' requests and connections, read back; rotation; destinations that stand still; every way in which a request ends.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use towpath_tests::pki::Pki;
use towpath_tests::web::{WebClient, WebOrigin};
use towpath_tests::{
    Connection, Host, Origin, Subject, TestLab, Topology, eventually, in_lab, ipv4, service, service_to, subject, visit,
};

/// Where a test's log is.
struct Log {
    folder: TempDir,
}

impl Log {
    fn new() -> Log {
        Log { folder: tempfile::tempdir().expect("a temporary directory") }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("access.log")
    }

    /// `[log]` with these further keys.
    fn table(&self, keys: &str) -> String {
        format!("[log]\nconnections = \"all\"\nconnections_to = \"{}\"\n{keys}\n", self.path().display())
    }

    /// The first lines, once there are so many.
    #[track_caller]
    fn lines(&self, count: usize) -> Vec<String> {
        lines_of(&self.path(), count)
    }

    /// The same as objects.
    #[track_caller]
    fn objects(&self, count: usize) -> Vec<Value> {
        let read = |line: &String| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        self.lines(count).iter().map(read).collect()
    }
}

#[track_caller]
fn lines_of(path: &Path, count: usize) -> Vec<String> {
    eventually(&format!("{count} lines"), || {
        let text = fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<String> =
            text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(str::to_owned).collect();
        (lines.len() >= count).then(|| lines.iter().map(|line| line.trim_end().to_owned()).collect())
    })
}

/// A service in HTTP mode with a log.
struct Stage {
    relay: Subject,
    _origins: Vec<WebOrigin>,
    vip: Ipv4Addr,
    log: Log,
}

impl Stage {
    fn set(lab: &TestLab, log_keys: &str, keys: &str) -> Stage {
        let log = Log::new();
        let origins = lab.servers().iter().map(|host| WebOrigin::start(host, 80)).collect();
        let keys = if keys.contains("http") { keys.to_owned() } else { format!("{keys}\nhttp = {{}}") };
        let vip = lab.vip(100);
        let config = log.table(log_keys) + &service("web", vip, "[80]", &keys, &ipv4(lab.servers()));
        Stage { relay: subject!().start(lab.balancer(), &config), _origins: origins, vip, log }
    }

    fn open(&self, lab: &TestLab) -> WebClient {
        WebClient::open(lab.client(), (self.vip, 80))
    }
}

/// What curl, run on this host, has got.
#[track_caller]
fn curl(host: &Host, arguments: &[&str]) -> String {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "60"]).args(arguments);
    let output = host.run(|| command.output()).expect("a thread").expect("curl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The parts of a line of HAProxy's httplog, by its documented fields; panics where it is none.
#[track_caller]
fn httplog(line: &str) -> Vec<String> {
    let (head, request) = line.split_once(" \"").expect("a request in quotes");
    let request = request.strip_suffix('"').expect("the end of the quotes");
    assert!(!request.contains('"'), "{line}");
    let mut fields: Vec<String> = head.split(' ').map(str::to_owned).collect();
    assert_eq!(fields.len(), 12, "{line}");
    let (address, port) = fields[0].rsplit_once(':').expect("client:port");
    assert!(address.parse::<std::net::IpAddr>().is_ok() && port.parse::<u16>().is_ok(), "{line}");
    let date = fields[1].strip_prefix('[').and_then(|date| date.strip_suffix(']')).expect("a date in brackets");
    assert!(date.len() == "22/Nov/2026:11:02:03.045".len() && date.as_bytes()[2] == b'/', "{line}");
    assert!(fields[3].contains('/'), "{line}");
    let timers: Vec<i64> = fields[4].split('/').map(|timer| timer.parse().expect("a timer")).collect();
    assert!(timers.len() == 5 && timers.iter().all(|timer| *timer >= -1), "{line}");
    assert!(fields[5].parse::<i16>().is_ok() && fields[6].parse::<u64>().is_ok(), "{line}");
    assert_eq!((&*fields[7], &*fields[8], fields[9].len()), ("-", "-", 4), "{line}");
    let counts: Vec<u32> = fields[10].split('/').map(|count| count.parse().expect("a count")).collect();
    assert_eq!((counts.len(), &*fields[11]), (5, "0/0"), "{line}");
    fields.push(request.to_owned());
    fields
}

#[test]
#[ignore = "needs the Debian package curl"]
fn requests_of_curl_get_a_line_each_in_every_format() {
    in_lab(requests_of_curl_get_a_line_each_in_every_format, Topology::TwoArm, 1, |lab| {
        let mut stage = Stage::set(lab, "", "");
        let client = lab.client().ipv4().to_string();
        let ask = |paths: &[&str], more: &[&str]| {
            let urls: Vec<String> = paths.iter().map(|path| format!("http://{}{path}", stage.vip)).collect();
            let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
            curl(lab.client(), &[more, &urls].concat())
        };
        let more = ["--user-agent", "a \"b\" \\c", "--referer", "http://u:p@x/y?token=secret", "--user", "anna:secret"];
        ask(&["/bytes/1000?password=secret", "/status/404"], &[&more[..], &["--cookie", "session=secret"]].concat());
        let lines = stage.log.lines(2);
        let (first, second) = (httplog(&lines[0]), httplog(&lines[1]));
        assert!(first[0].starts_with(&format!("{client}:")), "{lines:?}");
        assert_eq!((&*first[2], &*first[3]), ("web", "web/server-1"));
        assert_eq!((&*first[5], &*first[9], &*first[12]), ("200", "----", "GET /bytes/1000?password=* HTTP/1.1"));
        assert!(first[6].parse::<u64>().expect("bytes") > 1000);
        assert_eq!((&*second[5], &*second[12]), ("404", "GET /status/404 HTTP/1.1"));
        assert_eq!(first[0], second[0], "one connection");

        stage.relay.reload(&config(lab, &stage, "connections_format = \"combined\"")).expect("a good file");
        ask(&["/bytes/1000?password=secret"], &more);
        let line = &stage.log.lines(3)[2];
        assert!(line.starts_with(&format!("{client} - - [")), "{line}");
        let rest = line.split_once(" +0000] ").expect("a date").1;
        let expected =
            "\"GET /bytes/1000?password=* HTTP/1.1\" 200 1000 \"http://x/y?token=*\" \"a \\x22b\\x22 \\x5Cc\"";
        assert_eq!(rest, expected);

        stage.relay.reload(&config(lab, &stage, "connections_format = \"json\"")).expect("a good file");
        ask(&["/bytes/1000?password=secret"], &more);
        let object = stage.log.lines(4)[3].clone();
        let object: Value = serde_json::from_str(&object).expect("an object");
        for (name, value) in [
            ("kind", "request"),
            ("service", "web"),
            ("group", "web"),
            ("server", "server-1"),
            ("client", &client),
            ("vip", &stage.vip.to_string()),
            ("code", "--"),
            ("method", "GET"),
            ("target", "/bytes/1000?password=*"),
            ("host", &stage.vip.to_string()),
            ("version", "HTTP/1.1"),
            ("referer", "http://x/y?token=*"),
            ("user_agent", "a \"b\" \\c"),
        ] {
            assert_eq!(object[name], value, "{name} of {object}");
        }
        assert_eq!((object["status"].as_u64(), object["vip_port"].as_u64()), (Some(200), Some(80)));
        for timer in ["request_ms", "wait_ms", "connect_ms", "response_ms", "data_ms", "total_ms", "bytes_from_client"]
        {
            assert!(object[timer].as_u64().is_some(), "{timer} of {object}");
        }
        assert!(object.get("termination").is_none() && object.get("tls").is_none(), "{object}");
        let text = fs::read_to_string(stage.log.path()).expect("a log");
        assert!(!text.contains("secret") && !text.contains("anna"), "{text}");
        stage.relay.stop();
    });
}

#[test]
fn pipelined_requests_get_a_line_each_in_their_order() {
    in_lab(pipelined_requests_get_a_line_each_in_their_order, Topology::TwoArm, 1, |lab| {
        const PIPELINED: usize = 40;
        let keys = "[service.http]\n[[service.http.route]]\npath = [\"/ours\"]\nstatus = 404\n";
        let stage = Stage::set(lab, "", keys);
        let mut client = stage.open(lab);
        // Answered by us, and by the server in between.
        let path =
            |number: usize| if number.is_multiple_of(3) { format!("/{number}") } else { format!("/ours/{number}") };
        let requests: String =
            (0..PIPELINED).map(|number| format!("GET {} HTTP/1.1\r\nHost: a\r\n\r\n", path(number))).collect();
        client.send(requests);
        for _ in 0..PIPELINED {
            client.response("GET").expect("a response");
        }
        let lines = stage.log.lines(PIPELINED);
        let asked: Vec<String> = lines.iter().map(|line| httplog(line)[12].clone()).collect();
        let expected: Vec<String> = (0..PIPELINED).map(|number| format!("GET {} HTTP/1.1", path(number))).collect();
        assert_eq!(asked, expected);
        stage.relay.stop();
    });
}

/// The configuration of a stage with other keys of the log.
fn config(lab: &TestLab, stage: &Stage, log_keys: &str) -> String {
    stage.log.table(log_keys) + &service("web", stage.vip, "[80]", "http = {}", &ipv4(lab.servers()))
}

#[test]
fn connections_get_a_line_each_with_what_passed() {
    in_lab(connections_get_a_line_each_with_what_passed, Topology::TwoArm, 1, |lab| {
        let log = Log::new();
        let vip = lab.vip(100);
        let _origin = Origin::tcp(lab.server(1), 443);
        let config = log.table("") + &service("relay", vip, "[443]", "", &ipv4(lab.servers()));
        let mut relay = subject!().start(lab.balancer(), &config);
        let greeting = visit(lab.client(), (vip, 443));
        let line = log.lines(1).remove(0);
        let fields: Vec<&str> = line.split(' ').collect();
        assert_eq!(fields.len(), 9, "{line}");
        assert_eq!((fields[2], fields[3], fields[6]), ("relay", "relay/server-1", "--"));
        assert_eq!(fields[5], (20_000 + greeting.line().len()).to_string(), "{line}");
        assert_eq!(fields[4].split('/').filter(|timer| timer.parse::<u64>().is_ok()).count(), 3, "{line}");
        // The same as an object, of a connection that its client resets, and of one that bulk passes.
        relay.reload(&config.replace("[log]\n", "[log]\nconnections_format = \"json\"\n")).expect("a good file");
        let mut client = Connection::open(lab.client(), (vip, 443)).expect("a connection");
        client.greeting().expect("a greeting");
        client.reset().expect("an open connection");
        let object: Value = serde_json::from_str(&log.lines(2)[1]).expect("an object");
        assert_eq!((&object["kind"], &object["code"]), (&"connection".into(), &"CD".into()), "{object}");
        assert_eq!(object["termination"], "client_reset");
        assert_eq!(object["bytes_from_client"], 0);
        let mut client = Connection::open(lab.client(), (vip, 443)).expect("a connection");
        let greeting = client.greeting().expect("a greeting").line().len();
        for _ in 0..64 {
            client.echo(&[9; 262_144]).expect("an echo");
        }
        client.close().expect("an orderly end");
        let object: Value = serde_json::from_str(&log.lines(3)[2]).expect("an object");
        assert_eq!(object["bytes_from_client"], 64 * 262_144);
        assert_eq!(object["bytes_to_client"], 64 * 262_144 + greeting);
        relay.stop();
    });
}

#[test]
#[ignore = "needs the Debian package curl"]
fn tls_is_told_of_and_handshakes_that_fail_have_lines() {
    in_lab(tls_is_told_of_and_handshakes_that_fail_have_lines, Topology::TwoArm, 1, |lab| {
        let (log, pki, vip) = (Log::new(), Pki::new(), lab.vip(100));
        let _origin = WebOrigin::start(lab.server(1), 443);
        let config = pki.service(vip, "terminate", "", &ipv4(lab.servers()));
        let config =
            log.table("connections_format = \"json\"") + &config.replace("[service.tls]", "http = {}\n[service.tls]");
        let relay = subject!().start(lab.balancer(), &config);
        let ca = pki.certificate();
        let name = towpath_tests::pki::NAME;
        let (url, to) = (format!("https://{name}/x"), format!("{name}:443:{vip}"));
        curl(lab.client(), &["--cacert", ca.to_str().expect("text"), "--resolve", &to, "--tlsv1.3", &url]);
        let object = log.objects(1).remove(0);
        assert_eq!(
            (&object["tls"]["version"], &object["tls"]["server_name"]),
            (&"TLSv1.3".into(), &name.into()),
            "{object}"
        );
        assert!(object["tls"]["cipher"].as_str().is_some_and(|cipher| cipher.starts_with("TLS13_")), "{object}");
        assert_eq!((&object["tls"]["resumed"], &object["status"]), (&false.into(), &200.into()));
        assert!(object["handshake_ms"].as_u64().is_some());
        // No TLS, and one that leaves.
        let mut plain = Connection::open(lab.client(), (vip, 443)).expect("a connection");
        plain.stream().write_all(b"GET / HTTP/1.1\r\n\r\n").expect("an open connection");
        assert!(plain.end().is_ok());
        // The client sees its end before the line is written, so the line is waited for.
        log.objects(2);
        drop(Connection::open(lab.client(), (vip, 443)).expect("a connection"));
        let objects = log.objects(3);
        let said: Vec<(&Value, &Value)> =
            objects[1..].iter().map(|object| (&object["termination"], &object["code"])).collect();
        assert_eq!(said[0], (&"handshake_failed".into(), &"PR".into()), "{objects:?}");
        assert_eq!(said[1], (&"handshake_left".into(), &"CR".into()), "{objects:?}");
        relay.stop();
    });
}

#[test]
fn every_common_end_of_a_request_has_its_letters() {
    in_lab(every_common_end_of_a_request_has_its_letters, Topology::TwoArm, 1, |lab| {
        let log = Log::new();
        let _origin = WebOrigin::start(lab.server(1), 80);
        // Connections that are never accepted: a listener whose queue is full stays silent.
        let silent = lab.server(1).run(|| TcpListener::bind("0.0.0.0:83")).expect("a thread").expect("a listener");
        let (vip, server) = (lab.vip(100), lab.server(1).ipv4());
        let http = "[service.http]\nhead_timeout = \"1s\"\nresponse_timeout = \"300ms\"\n\
                    [[service.http.filter]]\naction = \"deny\"\npath = [\"/denied\"]\n\
                    [[service.http.route]]\npath = [\"/moved\"]\nredirect = \"https://{host}{uri}\"\n\
                    [[service.http.route]]\npath = [\"/closed\"]\ngroup = \"closed\"\n\
                    [[service.http.route]]\npath = [\"/halted\"]\ngroup = \"halted\"\n";
        let group = |name: &str, port: u16, more: &str| {
            format!(
                "[[group]]\nname = \"{name}\"\n[[group.server]]\nname = \"one\"\naddress = \"{server}\"\nport = {port}\n{more}\n"
            )
        };
        let groups = group("closed", 82, "") + &group("halted", 84, "admin = \"halt\"");
        let web =
            service_to("web", vip, "[80]", "redispatch = 0\nconnect_timeout = \"1s\"\nidle_timeout = \"2s\"", &[])
                + http
                + &format!("[[service.server]]\nname = \"one\"\naddress = \"{server}\"\nport = 80\n");
        let config = log.table("connections_format = \"json\"") + &groups + &web;
        let relay = subject!().start(lab.balancer(), &config);
        let mut told = 0;
        let mut expect = |what: &str, code: &str, status: Option<u64>, target: Option<&str>| {
            told += 1;
            let object = log.objects(told).remove(told - 1);
            assert_eq!(object["code"], code, "{what}: {object}");
            assert_eq!(object["status"].as_u64(), status, "{what}: {object}");
            assert_eq!(object["target"].as_str(), target, "{what}: {object}");
        };
        let open = || WebClient::open(lab.client(), (vip, 80));
        for (path, status, code) in [
            ("/fine", 200, "--"),
            ("/moved", 302, "LR"),
            ("/denied", 403, "PR"),
            ("/closed", 502, "SC"),
            ("/halted", 503, "SC"),
            ("/slow/5000", 504, "sH"),
            ("/drop", 502, "SH"),
        ] {
            let mut client = open();
            // One that may not be sent again.
            client.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"));
            assert_eq!(client.response("POST").expect(path).status, status as u16, "{path}");
            expect(path, code, Some(status), Some(path));
        }
        let mut client = open();
        client.send("GET / HTTP/1.1\nHost: a\n\n");
        assert_eq!(client.response("GET").expect("a response").status, 400);
        expect("not HTTP", "PR", Some(400), None);
        let mut client = open();
        client.send("GET / HTTP/1.1\r\nHos");
        assert_eq!(client.response("GET").expect("a response").status, 408);
        expect("a slow head", "cR", Some(408), None);
        let mut client = open();
        client.send("GET /cut/500000 HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(client.response("GET").is_err());
        expect("a response that is cut off", "SD", Some(200), Some("/cut/500000"));
        // Nobody reads: the rest cannot leave, and then the client is gone.
        let mut client = open();
        client.send("GET /bytes/100000000 HTTP/1.1\r\nHost: a\r\n\r\n");
        client.wait(Duration::from_secs(60)).expect("the beginning");
        socket_reset(client);
        expect("a client that leaves amid its response", "CD", Some(200), Some("/bytes/100000000"));
        let client = open();
        client
            .stream()
            .write_all(b"POST /up HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf")
            .expect("an open connection");
        client.stream().shutdown(Shutdown::Write).expect("an open connection");
        expect("a request that is cut off", "CH", None, Some("/up"));
        // A tunnel that both sides end, and one in which both stay silent.
        let upgrade = "GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
        let mut client = open();
        client.send(upgrade);
        assert_eq!(client.response("GET").expect("a response").status, 101);
        client.send("echo");
        client.stream().shutdown(Shutdown::Write).expect("an open connection");
        assert_eq!(client.rest().expect("an orderly end"), b"echo");
        expect("a tunnel", "--", Some(101), Some("/upgrade"));
        let mut client = open();
        client.send(upgrade);
        assert_eq!(client.response("GET").expect("a response").status, 101);
        expect("a silent tunnel", "cD", Some(101), Some("/upgrade"));
        // Nobody says anything: it has its line, for it was too slow.
        let silent_client = open();
        expect("no request", "cR", None, None);
        drop((silent_client, silent));
        relay.stop();
    });
}

fn socket_reset(client: WebClient) {
    socket2::SockRef::from(client.stream()).set_linger(Some(Duration::ZERO)).expect("an open connection");
}

#[test]
fn errors_alone_are_written_where_nothing_else_is_wanted() {
    in_lab(errors_alone_are_written_where_nothing_else_is_wanted, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "", "log = \"errors\"");
        let mut client = stage.open(lab);
        assert_eq!(client.get("/fine").status, 200);
        assert_eq!(client.get("/status/404").status, 404);
        assert_eq!(client.get("/status/500").status, 500);
        assert_eq!(client.get("/fine").status, 200);
        client.send("nonsense\r\n\r\n");
        assert_eq!(client.response("GET").expect("a response").status, 400);
        let lines = stage.log.lines(2);
        assert_eq!(
            (lines.len(), &*httplog(&lines[0])[5], &*httplog(&lines[1])[12]),
            (2, "500", "<BADREQ>"),
            "{lines:?}"
        );
        stage.relay.stop();
        assert_eq!(stage.log.lines(2).len(), 2);
    });
}

#[test]
fn nothing_of_the_network_forges_a_line() {
    in_lab(nothing_of_the_network_forges_a_line, Topology::TwoArm, 1, |lab| {
        let stage = Stage::set(lab, "connections_query = \"whole\"", "");
        let mut client = stage.open(lab);
        let agent = "x\" 200 0 - - ---- 1/1/1/1/0 0/0 \"GET /forged HTTP/1.1\t\u{e9}\u{202e}";
        let response = client.get_with("/a%0d%0a\"b?c=d", &format!("User-Agent: {agent}\r\n"));
        // Quotes are not of a target: it is refused, and a path without them is not.
        let expected = if response.status == 200 { "GET /a%0d%0a#22b?c=d HTTP/1.1" } else { "<BADREQ>" };
        let lines = stage.log.lines(1);
        assert_eq!(httplog(&lines[0])[12], expected);
        assert!(lines.iter().all(|line| line.bytes().all(|byte| (b' '..=b'~').contains(&byte))), "{lines:?}");
        stage.relay.stop();
        assert_eq!(stage.log.lines(1).len(), 1);
    });
}

#[test]
fn rotation_loses_no_line_while_clients_ask() {
    in_lab(rotation_loses_no_line_while_clients_ask, Topology::TwoArm, 1, |lab| {
        const REQUESTS: usize = 3_000;
        let mut stage = Stage::set(lab, "", "");
        let path = stage.log.path();
        let mut folders = Vec::new();
        thread::scope(|scope| {
            let client = lab.client();
            let vip = stage.vip;
            let asking = scope.spawn(move || {
                let mut client = WebClient::open(client, (vip, 80));
                for number in 0..REQUESTS {
                    assert_eq!(client.get(&format!("/{number}")).status, 200);
                }
            });
            let mut rotation = 0;
            while !asking.is_finished() {
                // As logrotate does it: sometimes with a signal behind, sometimes without.
                let old = path.with_extension(rotation.to_string());
                if fs::rename(&path, &old).is_ok() {
                    folders.push(old);
                    if rotation % 2 == 0 {
                        stage.relay.reload(&config(lab, &stage, "")).expect("the same file");
                    }
                    rotation += 1;
                }
                eventually("the file is there again, or all is asked", || {
                    (path.exists() || asking.is_finished()).then_some(())
                });
            }
            asking.join().expect("no panic");
        });
        stage.relay.stop();
        folders.push(path);
        let mut numbers: Vec<usize> = Vec::new();
        for folder in &folders {
            let text = fs::read_to_string(folder).unwrap_or_default();
            assert!(text.is_empty() || text.ends_with('\n'), "{}", folder.display());
            let number = |line: &str| {
                httplog(line)[12].split(['/', ' ']).nth(2).expect("a path").parse::<usize>().expect("a number")
            };
            numbers.extend(text.lines().map(number));
        }
        assert!(folders.len() > 2, "it was rotated");
        numbers.sort_unstable();
        assert_eq!(numbers, (0..REQUESTS).collect::<Vec<_>>());
    });
}

#[test]
fn a_destination_that_stands_still_holds_nobody_up() {
    in_lab(a_destination_that_stands_still_holds_nobody_up, Topology::TwoArm, 1, |lab| {
        // More than a ring and a pipe hold.
        const REQUESTS: usize = 20_000;
        let log = Log::new();
        let made = Command::new("mkfifo").arg(log.path()).status().expect("mkfifo");
        assert!(made.success());
        // There is a reader, but it does not read.
        let mut pipe = fs::OpenOptions::new().read(true).write(true).open(log.path()).expect("a pipe");
        let vip = lab.vip(100);
        let keys = "[service.http]\n[[service.http.route]]\npath = [\"/\"]\nstatus = 404\n";
        let config = log.table("") + &service("web", vip, "[80]", keys, &ipv4(lab.servers()));
        let relay = subject!().start(lab.balancer(), &config);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut client = WebClient::open(lab.client(), (vip, 80));
                    for batch in 0..REQUESTS / 4 / 50 {
                        client.send(format!("GET /{batch} HTTP/1.1\r\nHost: a\r\n\r\n").repeat(50));
                        for _ in 0..50 {
                            assert_eq!(client.response("GET").expect("a response").status, 404);
                        }
                    }
                });
            }
        });
        let (given, dropped) = eventually("every request is counted", || {
            let sum = |name: &str| relay.status().workers.iter().map(|worker| worker.counters[name]).sum::<u64>();
            let (given, dropped) = (sum("log_lines"), sum("log_dropped"));
            (given + dropped == REQUESTS as u64).then_some((given, dropped))
        });
        assert!(given > 0 && dropped > 0, "{given} given, {dropped} dropped");
        let used = relay.status().access_log.expect("a log");
        assert_eq!(used.dropped, dropped);
        assert!(used.trouble.is_some(), "{used:?}");
        // Once somebody reads, what was kept comes, each line whole, and it goes on.
        let reader = thread::spawn(move || -> io::Result<String> {
            let mut text = String::new();
            let mut buffer = [0; 65_536];
            while !text.contains("/after ") {
                let length = pipe.read(&mut buffer)?;
                text.push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
            Ok(text)
        });
        eventually("what was kept is written", || {
            let used = relay.status().access_log?;
            (used.written >= given && used.trouble.is_none()).then_some(())
        });
        assert_eq!(WebClient::open(lab.client(), (vip, 80)).get("/after").status, 404);
        let text = reader.join().expect("no panic").expect("a pipe");
        assert_eq!(text.lines().count() as u64, given + 1);
        text.lines().for_each(|line| drop(httplog(line)));
        relay.stop();
    });
}

#[test]
fn a_log_that_cannot_be_opened_is_told_before_anything_serves() {
    in_lab(a_log_that_cannot_be_opened_is_told_before_anything_serves, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let text = service("web", vip, "[80]", "", &ipv4(lab.servers()));
        let log = "[log]\nconnections = \"all\"\nconnections_to = \"/nowhere/access.log\"\n";
        let refusal = subject!().refuse(lab.balancer(), &format!("{log}{text}"));
        assert!(refusal.text.contains("/nowhere/access.log"), "{}", refusal.text);
        // Where it runs already, it goes on as it was.
        let mut relay = subject!().start(lab.balancer(), &text);
        let why = relay.reload(&format!("{log}{text}")).expect_err("no such folder");
        assert!(why.contains("/nowhere/access.log"), "{why}");
        relay.stop();
    });
}
