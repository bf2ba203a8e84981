//! Checks that speak SIP, run a program or hear an agent; how soon they come, and what `towpath server check` tells of them.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use towpath_engine::server_check::{Checked, ServerChecked, Step};
use towpath_engine::status::HealthStatus;
use towpath_perf::lab::Child;
use towpath_tests::pki::{Authority, NAME};
use towpath_tests::{
    Connection, Host, Origin, PATIENCE, Subject, TestLab, Topology, eventually, in_lab, ipv4, service, subject, visit,
    who,
};

/// A service with this check of server-1, as often as can be.
fn checked(lab: &TestLab, vip: Ipv4Addr, port: u16, health: &str) -> String {
    let rhythm = "interval = \"100ms\", timeout = \"2s\", rise = 1, fall = 1, flaps = 0";
    let keys = format!("health = {{ {health}, {rhythm} }}");
    service("web", vip, &port.to_string(), &keys, &ipv4(&lab.servers()[..1]))
}

#[track_caller]
fn until_down(relay: &Subject, service: &str, reason: &str) {
    relay.until(&format!("{service} is down: {reason}"), |status| {
        let service = status.services.iter().find(|known| known.name == service).expect("it is configured");
        let server = &service.servers[0];
        server.health == HealthStatus::Down && server.reason.contains(reason)
    });
}

#[track_caller]
fn until_up(relay: &Subject, service: &str) {
    relay.until(&format!("{service} is up"), |status| {
        let service = status.services.iter().find(|known| known.name == service).expect("it is configured");
        service.servers[0].health == HealthStatus::Up
    });
}

/// A SIP server: SIPp with a scenario that gives every OPTIONS this status.
struct Sipp {
    child: Child,
    _scenario: TempDir,
}

impl Sipp {
    fn start(host: &Host, transport: &str, port: u16, status: &str) -> Sipp {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let scenario = directory.path().join("options.xml");
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"ISO-8859-1\" ?>\n<scenario name=\"options\">\n\
             <recv request=\"OPTIONS\"/>\n<send><![CDATA[\n\nSIP/2.0 {status}\n[last_Via:]\n[last_From:]\n[last_To:];tag=[pid]SIPp[call_number]\n\
             [last_Call-ID:]\n[last_CSeq:]\nAllow: INVITE, ACK, BYE, OPTIONS\nContent-Length: 0\n\n]]></send>\n</scenario>\n"
        );
        fs::write(&scenario, text).expect("the temporary directory can be written");
        let mut command = Command::new("sipp");
        command.current_dir(directory.path()).arg("-sf").arg(&scenario);
        command.args(["-t", transport, "-i", &host.ipv4().to_string(), "-p", &port.to_string(), "-nostdin"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = host.spawn(command).expect("sipp is installed (apt-get install sip-tester)");
        Sipp { child, _scenario: directory }
    }

    fn stop(mut self) {
        self.child.kill().expect("our child");
    }
}

/// What ends TLS in front of a SIP server.
fn haproxy(host: &Host, port: u16, behind: u16, authority: &Authority) -> (Child, TempDir) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let issued = authority.issue(&[NAME]);
    let pem = [&issued.chain, &issued.key].map(|file| fs::read_to_string(file).expect("PEM")).concat();
    let certificate = directory.path().join("both.pem");
    fs::write(&certificate, pem).expect("the temporary directory can be written");
    let text = format!(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 1m\n timeout server 1m\n\
         frontend tls\n bind {ip}:{port} ssl crt {}\n default_backend sip\nbackend sip\n server sipp {ip}:{behind}\n",
        certificate.display(),
        ip = host.ipv4()
    );
    let config = directory.path().join("haproxy.cfg");
    fs::write(&config, text).expect("the temporary directory can be written");
    let mut command = Command::new("haproxy");
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").args(["-db", "-q", "-f"]).arg(config);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    (host.spawn(command).expect("haproxy is installed (apt-get install haproxy)"), directory)
}

#[test]
#[ignore = "needs the Debian packages haproxy, sip-tester"]
fn a_sip_server_is_asked_over_each_transport() {
    in_lab(a_sip_server_is_asked_over_each_transport, Topology::TwoArm, 1, |lab| {
        let (server, authority) = (lab.server(1), Authority::new("trusted"));
        let mut udp = Sipp::start(server, "u1", 5060, "200 OK");
        let mut tcp = Sipp::start(server, "t1", 5060, "200 OK");
        let (mut tls, _files) = haproxy(server, 5061, 5060, &authority);
        let rhythm = "interval = \"100ms\", timeout = \"2s\", rise = 1, fall = 1";
        let ca = authority.certificate();
        let config: String = [
            ("udp", 100, "ports = 5060, transport = \"udp\"".to_owned()),
            ("tcp", 101, "ports = 5060, expect = \"INVITE\"".to_owned()),
            (
                "tls",
                102,
                format!(
                    "ports = 5061, transport = \"tls\", host = \"{NAME}\", verify = true, ca = \"{}\", days_left = 1",
                    ca.display()
                ),
            ),
        ]
        .iter()
        .map(|(name, last, keys)| {
            let health = format!("health = {{ check = \"sip\", {keys}, {rhythm} }}");
            service(name, lab.vip(*last), "5060", &health, &ipv4(lab.servers()))
        })
        .collect();
        let relay = subject!().start(lab.balancer(), &config);
        relay.until_all_up();

        udp.stop();
        tcp.stop();
        until_down(&relay, "udp", "port 5060: connection refused");
        until_down(&relay, "tcp", "port 5060: connection refused");
        // HAProxy takes the connection and finds nobody behind it.
        until_down(&relay, "tls", "port 5061: ");
        udp = Sipp::start(server, "u1", 5060, "503 Service Unavailable");
        tcp = Sipp::start(server, "t1", 5060, "503 Service Unavailable");
        for (name, port) in [("udp", 5060), ("tcp", 5060), ("tls", 5061)] {
            until_down(&relay, name, &format!("port {port}: status 503 Service Unavailable, expected 200-399"));
        }
        udp.stop();
        tcp.stop();
        let _again = [Sipp::start(server, "u1", 5060, "200 OK"), Sipp::start(server, "t1", 5060, "200 OK")];
        relay.until_all_up();
        tls.kill().expect("our child");
        until_down(&relay, "tls", "port 5061: connection refused");
        relay.stop();
    });
}

/// What a server does with each connection.
#[derive(Clone, Default)]
enum Manner {
    /// Says nothing, and keeps it.
    #[default]
    Silent,
    /// Says this at once, and closes.
    Says(String),
    /// Answers a SIP request with so much of a response, and closes.
    Answers(String),
    /// The same after this time.
    AnswersLate(String, Duration),
}

/// A server whose manner can be changed; it notes when it was asked.
struct Speaker {
    manner: Arc<Mutex<Manner>>,
    asked: Arc<Mutex<Vec<Instant>>>,
}

impl Speaker {
    fn start(host: &Host, port: u16, manner: Manner) -> Speaker {
        let listener = host.run(|| TcpListener::bind(("0.0.0.0", port))).expect("a thread").expect("a listener");
        let speaker = Speaker { manner: Arc::new(Mutex::new(manner)), asked: Arc::default() };
        let (manner, asked) = (Arc::clone(&speaker.manner), Arc::clone(&speaker.asked));
        // Ends with the process.
        thread::spawn(move || {
            let mut kept = Vec::new();
            for mut stream in listener.incoming().flatten() {
                let manner = {
                    let manner = manner.lock().unwrap_or_else(PoisonError::into_inner);
                    asked.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
                    manner.clone()
                };
                // A check that has gone hears nothing any more.
                let _said = match manner {
                    Manner::Silent => {
                        kept.push(stream);
                        Ok(())
                    }
                    Manner::Says(text) => stream.write_all(text.as_bytes()),
                    Manner::Answers(response) => answer_sip(&mut stream, &response),
                    Manner::AnswersLate(response, time) => {
                        thread::sleep(time);
                        answer_sip(&mut stream, &response)
                    }
                };
            }
        });
        speaker
    }

    /// Whoever asks from now on meets this; how many have asked before.
    fn now(&self, manner: Manner) -> usize {
        let mut known = self.manner.lock().unwrap_or_else(PoisonError::into_inner);
        *known = manner;
        self.asked().len()
    }

    fn asked(&self) -> Vec<Instant> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// `response` with the headers of the request in the place of `@`.
fn answer_sip(stream: &mut TcpStream, response: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        request.push(byte[0]);
    }
    stream.write_all(response.replace('@', &kept(&request)).as_bytes())
}

/// The headers that a response has from its request (RFC 3261 §8.2.6.2).
fn kept(request: &[u8]) -> String {
    let request = String::from_utf8_lossy(request);
    let kept = request
        .split("\r\n")
        .filter(|line| ["Via:", "From:", "To:", "Call-ID:", "CSeq:"].iter().any(|n| line.starts_with(n)));
    kept.map(|line| format!("{line}\r\n")).collect()
}

#[test]
fn sip_that_is_silent_slow_half_or_something_else_is_no_answer() {
    in_lab(sip_that_is_silent_slow_half_or_something_else_is_no_answer, Topology::TwoArm, 1, |lab| {
        let whole = Manner::Answers("SIP/2.0 200 OK\r\n@Content-Length: 0\r\n\r\n".to_owned());
        let server = Speaker::start(lab.server(1), 5060, whole.clone());
        let health = "check = \"sip\", timeout = \"600ms\"";
        let config = checked(lab, lab.vip(100), 5060, health).replace(", timeout = \"2s\"", "");
        let relay = subject!().start(lab.balancer(), &config);
        relay.until_all_up();
        for (manner, told) in [
            (Manner::Silent, "port 5060: no response within 600 ms"),
            (Manner::Says("220 mail.example.org ESMTP\r\n".to_owned()), "port 5060: something else than SIP"),
            (Manner::Answers("SIP/2.0 200 OK\r\n@".to_owned()), "port 5060: closed the connection without a response"),
            (
                Manner::Answers("SIP/2.0 486 Busy Here\r\n@Content-Length: 0\r\n\r\n".to_owned()),
                "port 5060: status 486 Busy Here, expected 200-399",
            ),
            (
                Manner::AnswersLate(
                    "SIP/2.0 200 OK\r\n@Content-Length: 0\r\n\r\n".to_owned(),
                    Duration::from_millis(800),
                ),
                "port 5060: no response within 600 ms",
            ),
        ] {
            server.now(manner);
            until_down(&relay, "web", told);
            server.now(whole.clone());
            relay.until_all_up();
        }
        relay.stop();
    });
}

#[test]
fn a_sip_request_by_udp_is_repeated_until_it_is_answered() {
    in_lab(a_sip_request_by_udp_is_repeated_until_it_is_answered, Topology::TwoArm, 1, |lab| {
        let socket = lab.server(1).run(|| UdpSocket::bind(("0.0.0.0", 5060))).expect("a thread").expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("not zero");
        let config = checked(lab, lab.vip(100), 5060, "check = \"sip\", transport = \"udp\"");
        let relay = subject!().start(lab.balancer(), &config);
        let mut buffer = [0; 2048];
        let mut hear = || {
            let (length, from) = socket.recv_from(&mut buffer).expect("a request");
            (buffer[..length].to_vec(), from)
        };
        // The same octets again after half a second: a repeat, not a new request. That alone is answered.
        let (mut last, mut answered) = (Vec::new(), 0);
        for _ in 0..200 {
            let (request, from) = hear();
            if request == last {
                let response = format!("SIP/2.0 100 Trying\r\n{0}\r\n|SIP/2.0 200 OK\r\n{0}\r\n", kept(&request));
                for one in response.split('|') {
                    socket.send_to(one.as_bytes(), from).expect("an answer");
                }
                answered += 1;
            }
            last = request;
            if relay.status().services[0].servers[0].health == HealthStatus::Up {
                break;
            }
        }
        assert!(answered > 0);
        relay.until_all_up();
        relay.stop();
    });
}

/// A program that checks, in a directory that nobody else may write to.
struct Program {
    directory: TempDir,
}

impl Program {
    fn new(script: &str) -> Program {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let program = Program { directory };
        program.becomes(script);
        program
    }

    /// By a new name that takes the old one's place, so that none is run that is half written.
    fn becomes(&self, script: &str) {
        let new = self.directory.path().join("new");
        fs::write(&new, format!("#!/bin/sh\n{script}\n")).expect("the temporary directory can be written");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("our file");
        fs::rename(&new, self.path()).expect("our directory");
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("check")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

#[test]
fn an_external_check_is_up_as_long_as_its_command_says_so() {
    in_lab(an_external_check_is_up_as_long_as_its_command_says_so, Topology::TwoArm, 1, |lab| {
        let program = Program::new("");
        let told = program.file("told");
        program.becomes(&format!("{{ env; echo \"$@\"; }} > {0}.new; mv {0}.new {0}; exit 0", told.display()));
        let health = format!("check = \"external\", command = [\"{}\", \"-v\", \"a b\"]", program.path().display());
        let config = checked(lab, lab.vip(100), 8080, &health).replace("2s", "600ms");
        let relay = subject!().start(lab.balancer(), &config);
        relay.until_all_up();
        let environment = fs::read_to_string(&told).expect("it has run");
        for line in [
            &format!("TOWPATH_ADDRESS={}", lab.server(1).ipv4()),
            "TOWPATH_PORT=8080",
            "TOWPATH_SERVER=server-1",
            "TOWPATH_SERVICES=web",
            "TOWPATH_TIMEOUT_MS=600",
            "-v a b",
        ] {
            assert!(environment.lines().any(|known| known == line), "{line} is missing in\n{environment}");
        }
        assert!(!environment.contains("NOTIFY_SOCKET"), "what is ours is not the program's:\n{environment}");

        program.becomes("echo; echo disk is full; exit 2");
        until_down(&relay, "web", "port 8080: status 2: disk is full");
        // Held by the program and by what it starts.
        let held = program.file("held");
        program.becomes(&format!("exec 9> {}; flock -s 9; sleep 1000 & echo waiting; wait", held.display()));
        until_down(&relay, "web", "port 8080: no end within 600 ms: waiting");
        program.becomes("exit 0");
        relay.until_all_up();
        let held = fs::File::open(held).expect("it has run");
        eventually("what it has started ends with it", || held.try_lock().ok());
        fs::remove_file(program.path()).expect("our file");
        until_down(&relay, "web", "no such file or directory");
        program.becomes("exit 0");
        relay.until_all_up();
        relay.stop();
    });
}

#[test]
fn a_command_that_others_can_change_is_not_run() {
    in_lab(a_command_that_others_can_change_is_not_run, Topology::TwoArm, 1, |lab| {
        let program = Program::new("exit 0");
        fs::set_permissions(program.path(), fs::Permissions::from_mode(0o777)).expect("our file");
        let health = format!("check = \"external\", command = [\"{}\"]", program.path().display());
        let refusal = subject!().refuse(lab.balancer(), &checked(lab, lab.vip(100), 8080, &health));
        assert!(refusal.text.contains("others than root can change"), "{}", refusal.text);
    });
}

/// Two servers on either plane, with an agent on each; their agents' port is 9999.
fn with_agents(lab: &TestLab, plane: &str, keys: &str) -> (Ipv4Addr, String) {
    let health =
        "health = { check = \"tcp\", agent_port = 9999, interval = \"100ms\", timeout = \"1s\", rise = 1, fall = 1 }";
    let (vip, plane) = match plane {
        "packet" => {
            let pool = format!("plane = \"packet\"\nsource = {{ pool = [\"{}\"] }}", lab.free_snat(101));
            (lab.free_vip(100), pool)
        }
        _ => (lab.vip(100), String::new()),
    };
    let keys = format!("{plane}\n{keys}\n{health}");
    (vip, format!("[limits]\nflows = 16384\n{}", service("web", vip, "443", &keys, &ipv4(lab.servers()))))
}

fn says(text: &str) -> Manner {
    Manner::Says(format!("{text}\n"))
}

/// The same on the plane that is named.
fn agents_are_believed(lab: &TestLab, plane: &str) {
    let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
    let agents = [1, 2].map(|n| Speaker::start(lab.server(n), 9999, says("ready up 100%")));
    let (vip, config) = with_agents(lab, plane, "balance = \"weighted-round-robin\"\ndrop_on_failure = true");
    let relay = subject!().start(lab.balancer(), &config);
    relay.until_all_up();
    let until = |what: &str, wanted: &dyn Fn(&towpath_engine::status::ServerStatus) -> bool| {
        relay.until(what, |status| wanted(&status.services[0].servers[0]));
    };
    let share = || (0..8).filter(|_| visit(lab.client(), (vip, 443)).name == "server-1").count();
    assert!((3..=5).contains(&share()));

    agents[0].now(says("33% maxconn:500"));
    until("a third of its weight", &|server| server.weight == 33 && server.connections_max == 500);
    assert!((1..=3).contains(&share()));
    agents[0].now(says("drain # backup runs"));
    until("it drains", &|server| {
        server.admin == "drain" && server.agent.as_deref() == Some("drain, 33 %, at most 500 connections (backup runs)")
    });
    assert_eq!(share(), 0);
    // What it has said holds while it is silent.
    agents[0].now(says(""));
    until("the agent says nothing", &|server| {
        server.admin == "drain"
            && server.agent.as_ref().is_some_and(|agent| agent.ends_with("; the agent says nothing"))
    });
    agents[0].now(says("ready 100%"));
    until("it is back", &|server| server.admin == "ready" && server.weight == 100);
    assert!((3..=5).contains(&share()));

    // Down is down: what is open ends, as `drop_on_failure` says.
    let mut held: Vec<Connection> = Vec::new();
    while held.is_empty() {
        let mut connection = Connection::open(lab.client(), (vip, 443)).expect("somebody serves");
        if connection.greeting().expect("a greeting").name == "server-1" {
            held.push(connection);
        }
    }
    agents[0].now(says("stopped # disk full"));
    until("it is down", &|server| {
        server.health == HealthStatus::Down && server.reason == "its agent says down: disk full"
    });
    assert!(held[0].is_ended());
    assert_eq!(who(lab.client(), (vip, 443)), "server-2");
    agents[0].now(says("up"));
    until("it is up", &|server| server.health == HealthStatus::Up);
    // In maintenance nobody enters, and what is open stays.
    let mut stays = loop {
        let mut connection = Connection::open(lab.client(), (vip, 443)).expect("somebody serves");
        if connection.greeting().expect("a greeting").name == "server-1" {
            break connection;
        }
    };
    agents[0].now(says("maint"));
    until("it is in maintenance", &|server| {
        server.admin == "drain" && server.agent.as_ref().is_some_and(|agent| agent.starts_with("maint"))
    });
    assert_eq!(share(), 0);
    stays.echo(b"still here").expect("it is open");
    let events = relay.status().events;
    let words: Vec<(&str, &str)> = events
        .iter()
        .filter(|event| event.subject.as_ref().is_some_and(|subject| subject.starts_with("agent of server server-1")))
        .map(|event| (event.from.as_str(), event.to.as_str()))
        .collect();
    assert_eq!(
        words,
        [("ready", "drain"), ("drain", "ready"), ("ready", "down"), ("down", "ready"), ("ready", "maint")]
    );
    relay.stop();
}

#[test]
fn an_agent_is_believed_on_the_stream_plane() {
    in_lab(an_agent_is_believed_on_the_stream_plane, Topology::TwoArm, 2, |lab| agents_are_believed(lab, "stream"));
}

#[test]
fn an_agent_is_believed_on_the_packet_plane() {
    in_lab(an_agent_is_believed_on_the_packet_plane, Topology::TwoArm, 2, |lab| agents_are_believed(lab, "packet"));
}

#[test]
fn a_verdict_that_changes_is_looked_at_more_often() {
    in_lab(a_verdict_that_changes_is_looked_at_more_often, Topology::TwoArm, 1, |lab| {
        const INTERVAL: Duration = Duration::from_secs(2);
        let greets = || Manner::Says("220 mail\r\n250 OK\r\n".to_owned());
        let server = Speaker::start(lab.server(1), 2525, greets());
        let health = "health = { check = \"smtp\", interval = \"2s\", fast_interval = \"100ms\", timeout = \"1s\", rise = 2, fall = 3 }";
        let config = service("web", lab.vip(100), "2525", health, &ipv4(lab.servers()));
        let relay = subject!().start(lab.balancer(), &config);
        relay.until_all_up();
        let before = server.now(Manner::Says("421 full\r\n".to_owned()));
        until_down(&relay, "web", "421 full");
        let asked = server.asked();
        let changed = asked.get(before..before + 3).expect("three failures make it down");
        // Two intervals lie between them, and those vary by a tenth.
        assert!(changed[2] - changed[0] < 2 * INTERVAL * 9 / 10, "{changed:?}");
        server.now(greets());
        until_up(&relay, "web");
        relay.stop();
    });
}

#[test]
#[ignore = "needs the Debian packages haproxy, sip-tester"]
fn server_check_shows_each_step_with_its_time() {
    in_lab(server_check_shows_each_step_with_its_time, Topology::TwoArm, 1, |lab| {
        let server = lab.server(1);
        let authority = Authority::new("trusted");
        let _sip = Sipp::start(server, "t1", 5060, "200 OK");
        let _udp = Sipp::start(server, "u1", 5060, "200 OK");
        let (_tls, _files) = haproxy(server, 5061, 5060, &authority);
        let _smtp = Speaker::start(server, 2525, Manner::Says("220 mail ESMTP\r\n250 OK\r\n".to_owned()));
        let _agent = Speaker::start(server, 9999, says("up 50%"));
        let _http = Speaker::start(server, 8080, Manner::Says("HTTP/1.0 204 No Content\r\n\r\n".to_owned()));
        let program = Program::new("echo all is well");
        let external = format!("check = \"external\", command = [\"{}\"]", program.path().display());
        let rhythm = "interval = \"100ms\", timeout = \"2s\", rise = 1, fall = 1";
        let kinds = [
            ("tcp", "check = \"tcp\", ports = 2525"),
            ("tls", "check = \"tls\", ports = 5061"),
            ("http", "check = \"http\", ports = 8080"),
            ("smtp", "check = \"smtp\", ports = 2525, agent_port = 9999"),
            ("sip", "check = \"sip\", ports = 5060"),
            ("sips", "check = \"sip\", ports = 5061, transport = \"tls\""),
            ("sip-udp", "check = \"sip\", ports = 5060, transport = \"udp\""),
            ("external", external.as_str()),
        ];
        let config: String = kinds
            .iter()
            .enumerate()
            .map(|(place, (name, keys))| {
                let health = format!("health = {{ {keys}, {rhythm} }}");
                service(name, lab.vip(100 + place as u8), "443", &health, &ipv4(lab.servers()))
            })
            .chain([service("unchecked", lab.vip(120), "443", "", &ipv4(lab.servers()))])
            .collect();
        let relay = subject!().start(lab.balancer(), &config);
        relay.until_all_up();
        let shown = |which: &str| -> Vec<String> {
            let (passed, servers) = server_check(&relay, which);
            assert!(passed, "{servers:?}");
            let steps = servers.iter().flat_map(|server| &server.checks).flat_map(|check| {
                let of = |step: &Step| format!("{} {}: {}", check.check, step.step, step.detail);
                check.ports.iter().flat_map(|port| &port.steps).map(of).collect::<Vec<_>>()
            });
            steps.collect()
        };
        let from = format!("connect: from {}:", lab.balancer().port("back").expect("a network").ipv4);
        let begins = |told: &[String], expected: &[&str]| {
            assert_eq!(told.len(), expected.len(), "{told:?}");
            for (step, expected) in told.iter().zip(expected) {
                assert!(
                    step.replace(&from, "connect: from US:").starts_with(expected),
                    "{step} does not begin with {expected}"
                );
            }
        };
        begins(&shown("tcp/server-1"), &["tcp connect: from US:"]);
        begins(&shown("tls/*"), &["tls connect: from US:", "tls TLS handshake: TLSv1.3, TLS13_"]);
        assert!(shown("tls/*")[1].contains(&format!("certificate of {NAME}, by ")));
        begins(&shown("http/server-1"), &["http connect: from US:", "http response: status 204"]);
        begins(
            &shown("smtp/server-1"),
            &[
                "smtp connect: from US:",
                "smtp greeting: 220 mail ESMTP",
                "agent connect: from US:",
                "agent answer: up 50%",
            ],
        );
        begins(&shown("sip/server-1"), &["sip connect: from US:", "sip response: 200 OK"]);
        begins(
            &shown("sips/server-1"),
            &["sip connect: from US:", "sip TLS handshake: TLSv1.3", "sip response: 200 OK"],
        );
        begins(&shown("sip-udp/server-1"), &["sip socket: from ", "sip response: 200 OK"]);
        begins(&shown("external/server-1"), &["external command: status 0: all is well"]);
        begins(&shown("unchecked/server-1"), &[]);
        let (_, all) = server_check(&relay, "*/server-1");
        assert_eq!(all.len(), kinds.len() + 1);

        // A failure is told at its step, and the verdict is that of the checks that run by themselves.
        program.becomes("exit 7");
        until_down(&relay, "external", "status 7");
        program.becomes("sleep 1000");
        let (passed, servers) = server_check(&relay, "external/server-1");
        let [check] = servers[0].checks.as_slice() else { panic!("one check") };
        assert!(!passed && !check.passed && servers[0].health == HealthStatus::Down, "{servers:?}");
        assert_eq!(check.reason, "port 443: no end within 2 s");
        let step = &check.ports[0].steps[0];
        assert!(!step.passed && step.took_us >= 2_000_000 && check.took_us >= step.took_us, "{step:?}");
        let (code, told) = refused(&relay, "smtp/server-9");
        assert!(code == Some(1) && told.contains("server-9"), "{told}");
        relay.stop();
    });
}

/// Runs `towpath server check` for what there is not.
fn refused(relay: &Subject, which: &str) -> (Option<i32>, String) {
    let mut command = subject!().command();
    let output = command.args(["server", "check", which, "--socket"]).arg(relay.control()).output();
    let output = output.expect("the program runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Runs `towpath server check` and reads its JSON; whether it ended with 0.
#[track_caller]
fn server_check(relay: &Subject, which: &str) -> (bool, Vec<ServerChecked>) {
    let mut command = subject!().command();
    command.args(["server", "check", which, "--json", "--socket"]).arg(relay.control());
    let output = command.output().expect("the program runs");
    let told = String::from_utf8_lossy(&output.stderr);
    let checked: Checked = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {told}"));
    (output.status.success(), checked.servers)
}
