//! Health checks: what a failing port takes away, and what checks cost.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use towpath_engine::status::HealthStatus;
use towpath_sys::process::Child;
use towpath_tests::pki::{Authority, Issued, NAME};
use towpath_tests::{Host, Origin, Subject, TestLab, Topology, eventually, in_lab, ipv4, service, subject, who};

const PORTS: [u16; 6] = [135, 443, 444, 5061, 5065, 5069];

fn farm(lab: &TestLab, vip: Ipv4Addr, checked: &str) -> String {
    let keys = format!(
        "balance = \"round-robin\"\n\
         health = {{ check = \"tcp\", ports = {checked}, interval = \"100ms\", timeout = \"1s\", rise = 1, fall = 2 }}"
    );
    service("front-end", vip, &format!("{PORTS:?}"), &keys, &ipv4(lab.servers()))
}

/// Origins on all six ports of both servers: `[server - 1][port]`.
fn origins(lab: &TestLab) -> [Vec<Option<Origin>>; 2] {
    [1, 2].map(|n| PORTS.iter().map(|&port| Some(Origin::tcp(lab.server(n), port))).collect())
}

fn place(port: u16) -> usize {
    PORTS.iter().position(|&p| p == port).expect("one of the six")
}

/// Who serves a port, over some connections.
fn serving(lab: &TestLab, vip: Ipv4Addr, port: u16) -> BTreeSet<String> {
    (0..4).map(|_| who(lab.client(), (vip, port))).collect()
}

fn until(relay: &Subject, server: usize, health: HealthStatus) {
    relay.until(&format!("server-{server} is {health:?}"), |status| {
        status.services.iter().all(|service| service.servers[server - 1].health == health)
    });
}

fn names(servers: &[&str]) -> BTreeSet<String> {
    servers.iter().map(ToString::to_string).collect()
}

#[test]
fn t_35_a_failing_check_port_takes_the_server_out_of_all_six_ports() {
    in_lab(t_35_a_failing_check_port_takes_the_server_out_of_all_six_ports, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let mut origins = origins(lab);
        let relay = subject!().start(lab.balancer(), &farm(lab, vip, "5061"));
        relay.until_all_up();
        for port in PORTS {
            assert_eq!(serving(lab, vip, port), names(&["server-1", "server-2"]), "port {port}");
        }
        origins[0][place(5061)] = None;
        until(&relay, 1, HealthStatus::Down);
        assert_eq!(relay.server("front-end", "server-1").reason, "port 5061: connection refused");
        let redispatched = relay.service("front-end").counters["redispatched"];
        for port in PORTS {
            assert_eq!(serving(lab, vip, port), names(&["server-2"]), "port {port}");
        }
        assert_eq!(relay.service("front-end").counters["redispatched"], redispatched);

        origins[0][place(5061)] = Some(Origin::tcp(lab.server(1), 5061));
        until(&relay, 1, HealthStatus::Up);
        for port in PORTS {
            assert_eq!(serving(lab, vip, port), names(&["server-1", "server-2"]), "port {port}");
        }
        relay.stop();
    });
}

#[test]
fn t_35_a_dead_port_that_is_not_checked_leaves_the_server_in() {
    in_lab(t_35_a_dead_port_that_is_not_checked_leaves_the_server_in, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let mut origins = origins(lab);
        let relay = subject!().start(lab.balancer(), &farm(lab, vip, "5061"));
        relay.until_all_up();
        origins[0][place(443)] = None;
        // Checks have run since, more of them than it takes to evict.
        let checks = || origins[0][place(5061)].as_ref().expect("it lives").accepted().len();
        let before = checks();
        eventually("five more checks", || (checks() >= before + 5).then_some(()));
        assert_eq!(relay.server("front-end", "server-1").health, HealthStatus::Up);
        for port in PORTS {
            // On the dead port redispatch saves the clients, nothing else does.
            let expected = if port == 443 { names(&["server-2"]) } else { names(&["server-1", "server-2"]) };
            assert_eq!(serving(lab, vip, port), expected, "port {port}");
        }
        assert!(relay.service("front-end").counters["redispatched"] > 0);
        relay.stop();
    });
}

#[test]
fn t_36_either_port_of_a_group_takes_the_server_out() {
    in_lab(t_36_either_port_of_a_group_takes_the_server_out, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let mut origins = origins(lab);
        let relay = subject!().start(lab.balancer(), &farm(lab, vip, "[5061, 444]"));
        relay.until_all_up();
        for port in [5061, 444] {
            origins[0][place(port)] = None;
            until(&relay, 1, HealthStatus::Down);
            assert_eq!(relay.server("front-end", "server-1").reason, format!("port {port}: connection refused"));
            assert_eq!(serving(lab, vip, 443), names(&["server-2"]));
            origins[0][place(port)] = Some(Origin::tcp(lab.server(1), port));
            until(&relay, 1, HealthStatus::Up);
            assert_eq!(serving(lab, vip, 443), names(&["server-1", "server-2"]));
        }
        relay.stop();
    });
}

#[test]
fn a_server_of_two_services_and_two_workers_is_checked_once_and_the_checks_are_no_load() {
    in_lab(
        a_server_of_two_services_and_two_workers_is_checked_once_and_the_checks_are_no_load,
        Topology::TwoArm,
        2,
        |lab| {
            const INTERVAL: Duration = Duration::from_millis(100);
            const CHECKS: usize = 15;
            let (vip, other_vip) = (lab.vip(100), lab.vip(101));
            let checked = [1, 2].map(|n| Origin::tcp(lab.server(n), 5061));
            let _served = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
            let keys = "balance = \"weighted-least-connections\"\n\
                 health = { check = \"tcp\", ports = 5061, interval = \"100ms\", timeout = \"1s\", rise = 1, fall = 2 }";
            let config = "[runtime]\nworkers = [0, 1]\n".to_owned()
                + &service("web", vip, "443", keys, &ipv4(lab.servers()))
                + &service("portal", other_vip, "443", keys, &ipv4(lab.servers()));
            let relay = subject!().start(lab.balancer(), &config);
            relay.until_all_up();

            let start = Instant::now();
            let before = checked[0].accepted().len();
            eventually("some checks", || (checked[0].accepted().len() >= before + CHECKS).then_some(()));
            // Intervals vary by a tenth; a check per service or worker would be twice as fast.
            let least = INTERVAL * 9 / 10 * (CHECKS as u32 - 1);
            assert!(start.elapsed() >= least, "{CHECKS} checks within {:?}, should take {least:?}", start.elapsed());
            let balancer = lab.balancer().port("back").expect("a network").ipv4;
            assert!(checked[0].accepted().iter().all(|accepted| accepted.peer.ip() == IpAddr::from(balancer)));

            for service in relay.status().services {
                assert_eq!((service.connections, service.accepted, service.opened), (0, 0, 0), "{}", service.name);
                for server in service.servers {
                    assert_eq!((server.connections, server.opened), (0, 0), "{}", server.name);
                }
            }
            let served: Vec<String> = (0..20).map(|_| who(lab.client(), (vip, 443))).collect();
            assert!(served.windows(2).all(|pair| pair[0] != pair[1]), "not strictly in turn: {served:?}");
            relay.stop();
        },
    );
}

/// A server that says what it is told to: a greeting, and an answer to each line.
struct Answers {
    said: Arc<Mutex<Said>>,
}

#[derive(Clone, Default)]
struct Said {
    greeting: String,
    /// To the line that begins so.
    answers: Vec<(&'static str, String)>,
}

impl Answers {
    fn start(host: &Host, port: u16) -> Answers {
        let listener = host.run(|| TcpListener::bind(("0.0.0.0", port))).expect("a thread").expect("a listener");
        let said: Arc<Mutex<Said>> = Arc::default();
        let answers = Arc::clone(&said);
        // Ends with the process.
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let said = answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
                thread::spawn(move || {
                    stream.write_all(said.greeting.as_bytes())?;
                    for line in BufReader::new(stream.try_clone()?).lines() {
                        let line = line?;
                        match said.answers.iter().find(|(to, _)| line.starts_with(to)) {
                            Some((_, answer)) => stream.write_all(answer.as_bytes())?,
                            None if line.is_empty() => break,
                            None => {}
                        }
                    }
                    std::io::Result::Ok(())
                });
            }
        });
        Answers { said }
    }

    fn say(&self, greeting: &str, answers: &[(&'static str, &str)]) {
        let answers = answers.iter().map(|&(to, answer)| (to, answer.to_owned())).collect();
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = Said { greeting: greeting.to_owned(), answers };
    }
}

/// A service with this check, as often as can be, of server-1 alone.
fn checked(lab: &TestLab, vip: Ipv4Addr, port: u16, health: &str) -> String {
    let keys = format!("health = {{ {health}, interval = \"100ms\", timeout = \"2s\", rise = 1, fall = 1 }}");
    service("web", vip, &port.to_string(), &keys, &ipv4(&lab.servers()[..1]))
}

fn until_down(relay: &Subject, reason: &str) {
    let mut last = String::new();
    let told = eventually(&format!("down: {reason}"), || {
        let server = relay.server("web", "server-1");
        last = format!("{:?}: {}", server.health, server.reason);
        (server.health == HealthStatus::Down).then_some(server.reason).filter(|told| told.contains(reason))
    });
    assert!(told.starts_with("port "), "{told}");
}

#[test]
fn an_http_check_judges_status_and_body() {
    in_lab(an_http_check_judges_status_and_body, Topology::TwoArm, 1, |lab| {
        let origin = Answers::start(lab.server(1), 80);
        let page = |status: &str, body: &str| {
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            origin.say("", &[("GET /owa/healthcheck.htm HTTP/1.1", answer.as_str())]);
        };
        page("200 OK", "200 OK<br/>EX-1");
        let health =
            "check = \"http\", path = \"/owa/healthcheck.htm\", host = \"mail.example.org\", expect = \"200 OK\"";
        let relay = subject!().start(lab.balancer(), &checked(lab, lab.vip(100), 80, health));
        relay.until_all_up();
        page("503 Service Unavailable", "200 OK");
        until_down(&relay, "port 80: status 503, expected 200-399");
        page("200 OK", "in maintenance");
        until_down(&relay, "port 80: \"200 OK\" is not in the body");
        page("200 OK", "200 OK");
        relay.until_all_up();
        origin.say("SSH-2.0-OpenSSH_9.2\r\n", &[]);
        until_down(&relay, "port 80: the response is refused: ");
        // Says nothing.
        origin.say("", &[("", "")]);
        until_down(&relay, "port 80: no response within 2 s");
        page("200 OK", "200 OK");
        relay.until_all_up();
        relay.stop();
    });
}

#[test]
fn an_smtp_check_hears_the_greeting_and_an_answer() {
    in_lab(an_smtp_check_hears_the_greeting_and_an_answer, Topology::TwoArm, 1, |lab| {
        let origin = Answers::start(lab.server(1), 2525);
        let ehlo = ("EHLO ", "250-mail.example.org\r\n250 OK\r\n");
        origin.say("220 mail.example.org ESMTP\r\n", &[ehlo]);
        let relay =
            subject!().start(lab.balancer(), &checked(lab, lab.vip(100), 2525, "check = \"smtp\", expect = \"ESMTP\""));
        relay.until_all_up();
        origin.say("421 shutting down\r\n", &[ehlo]);
        until_down(&relay, "port 2525: answers the connection with \"421 shutting down\"");
        origin.say("220 mail.example.org ESMTP\r\n", &[]);
        until_down(&relay, "port 2525: no answer to EHLO within 2 s");
        origin.say("220 mail.example.org ESMTP\r\n", &[ehlo]);
        relay.until_all_up();
        relay.stop();
    });
}

/// A server of OpenSSL that answers every request.
fn serve_tls(host: &Host, port: u16, certificate: &Issued) -> Child {
    let mut command = Command::new("openssl");
    command.args(["s_server", "-accept", &port.to_string(), "-www", "-quiet"]);
    command.arg("-cert").arg(&certificate.chain).arg("-cert_chain").arg(&certificate.chain);
    command.arg("-key").arg(&certificate.key);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    host.spawn(command).expect("openssl is installed")
}

#[test]
#[ignore = "needs the Debian package openssl"]
fn https_and_tls_checks_judge_the_certificate_if_asked() {
    in_lab(https_and_tls_checks_judge_the_certificate_if_asked, Topology::TwoArm, 1, |lab| {
        let (trusted, other) = (Authority::new("trusted"), Authority::new("other"));
        let right = trusted.issue(&[NAME]);
        let authorities = tempfile::tempdir().expect("a temporary directory");
        let file = authorities.path().join("ca.pem");
        std::fs::copy(trusted.certificate(), &file).expect("a file");
        let vip = lab.vip(100);
        let judged = format!("host = \"{NAME}\", verify = true, ca = \"{}\"", file.display());
        let mut server = serve_tls(lab.server(1), 443, &right);
        let mut relay =
            subject!().start(lab.balancer(), &checked(lab, vip, 443, &format!("check = \"https\", {judged}")));
        relay.until_all_up();

        // The file is read anew when it changes.
        std::fs::copy(other.certificate(), &file).expect("a file");
        until_down(&relay, "port 443: TLS: the server's certificate is not trusted");
        relay.reload(&checked(lab, vip, 443, "check = \"tls\"")).expect("a reload takes it");
        relay.until_all_up();
        relay.reload(&checked(lab, vip, 443, &format!("check = \"tls\", {judged}"))).expect("a reload takes it");
        until_down(&relay, "port 443: TLS: the server's certificate is not trusted");
        std::fs::remove_file(&file).expect("our file");
        until_down(&relay, "port 443: health.ca: ");
        std::fs::copy(trusted.certificate(), &file).expect("a file");
        relay.until_all_up();

        server.kill().expect("our child");
        let _plain = Origin::tcp(lab.server(1), 443);
        until_down(&relay, "port 443: TLS: the server does not speak it");
        relay.stop();
    });
}
