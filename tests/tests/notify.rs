//! Who is told of events: a command and a webhook, in their time, and nobody waits for them.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;
use tempfile::TempDir;
use towpath_engine::status::{HealthStatus, NotifyStatus};
use towpath_tests::pki::{Authority, Issued};
use towpath_tests::{Host, Origin, Subject, TestLab, Topology, eventually, in_lab, ipv4, service, subject, who};

const CHECK: &str = "health = { check = \"tcp\", interval = \"100ms\", timeout = \"2s\", rise = 1, fall = 1 }";
/// A receiver with this status never answers.
const SILENT: u16 = 0;

fn config(lab: &TestLab, vip: Ipv4Addr, notify: &str) -> String {
    format!("[notify]\n{notify}\n{}", service("web", vip, "443", CHECK, &ipv4(lab.servers())))
}

/// A receiver of messages by HTTP.
struct Receiver {
    address: SocketAddr,
    status: Arc<AtomicU16>,
    heard: Arc<Mutex<Vec<Heard>>>,
    unanswered: Arc<Mutex<Vec<TcpStream>>>,
}

#[derive(Clone)]
struct Heard {
    head: String,
    body: Value,
}

impl Receiver {
    fn start(host: &Host, at: Ipv4Addr, tls: Option<Arc<ServerConfig>>) -> Receiver {
        let listener = host.run(|| TcpListener::bind((at, 0))).expect("a thread").expect("a listener");
        let receiver = Receiver {
            address: listener.local_addr().expect("it is bound"),
            status: Arc::new(AtomicU16::new(204)),
            heard: Arc::default(),
            unanswered: Arc::default(),
        };
        let (status, heard) = (Arc::clone(&receiver.status), Arc::clone(&receiver.heard));
        let unanswered = Arc::clone(&receiver.unanswered);
        // Ends with the process.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Under its lock, so that nobody is kept who came as answers began.
                let mut kept = unanswered.lock().unwrap_or_else(PoisonError::into_inner);
                if status.load(Ordering::Acquire) == SILENT {
                    kept.push(stream);
                    continue;
                }
                drop(kept);
                // Who does not trust us leaves.
                let _left: io::Result<()> = match &tls {
                    None => answer(stream, &status, &heard),
                    Some(config) => ServerConnection::new(Arc::clone(config))
                        .map_err(io::Error::other)
                        .and_then(|connection| answer(StreamOwned::new(connection, stream), &status, &heard)),
                };
            }
        });
        receiver
    }

    fn answers(&self, status: u16) {
        let mut kept = self.unanswered.lock().unwrap_or_else(PoisonError::into_inner);
        self.status.store(status, Ordering::Release);
        kept.clear();
    }

    fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for a message with an event to this state.
    fn until(&self, state: &str) -> Heard {
        eventually(&format!("a message of {state}"), || {
            self.heard().into_iter().find(|heard| events(&heard.body).iter().any(|(_, to)| to == state))
        })
    }
}

fn answer(mut stream: impl Read + Write, status: &AtomicU16, heard: &Mutex<Vec<Heard>>) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).map_err(io::Error::other)?;
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect("a length");
    let mut body = vec![0; length.parse().expect("a number")];
    stream.read_exact(&mut body)?;
    let status = status.load(Ordering::Acquire);
    if (200..300).contains(&status) {
        let body = serde_json::from_slice(&body).expect("JSON");
        heard.lock().unwrap_or_else(PoisonError::into_inner).push(Heard { head, body });
    }
    write!(stream, "HTTP/1.1 {status} Told\r\nContent-Length: 0\r\n\r\n")?;
    stream.flush()
}

/// Of whom and to which state.
fn events(body: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let events = body["events"].as_array().expect("events");
    events.iter().map(|event| (text(&event["subject"]), text(&event["to"]))).collect()
}

/// A program that keeps what it is told.
fn keeper(directory: &TempDir) -> (PathBuf, PathBuf) {
    let (program, kept) = (directory.path().join("keep"), directory.path().join("kept"));
    let script = "#!/bin/sh\n{ echo \"$TOWPATH_EVENTS $TOWPATH_TEXT\"; cat; echo; } >> \"$1\"\n";
    fs::write(&program, script).expect("a file");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("our file");
    (program, kept)
}

fn until_health(relay: &Subject, server: usize, health: HealthStatus) {
    relay.until(&format!("server-{server} is {health:?}"), |status| {
        status.services[0].servers[server - 1].health == health
    });
}

fn told(relay: &Subject, receiver: &str) -> NotifyStatus {
    let found = relay.status().notify.into_iter().find(|status| status.receiver == receiver);
    found.unwrap_or_else(|| panic!("no receiver `{receiver}`"))
}

#[test]
fn command_and_webhook_hear_what_has_happened() {
    in_lab(command_and_webhook_hear_what_has_happened, Topology::TwoArm, 2, |lab| {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (program, kept) = keeper(&directory);
        let token = directory.path().join("token");
        fs::write(&token, "s3cret\n").expect("a file");
        let receiver = Receiver::start(lab.client(), lab.client().ipv4(), None);
        let vip = lab.vip(100);
        let notify = format!(
            "command = [\"{}\", \"{}\"]\nwebhook = \"http://{}/hooks/towpath?room=1\"\nwebhook_token_file = \"{}\"\n\
             events = [\"health\", \"phase\"]\nbatch = \"1s\"\ninterval = 0",
            program.display(),
            kept.display(),
            receiver.address,
            token.display()
        );
        let origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let relay = subject!().start(lab.balancer(), &config(lab, vip, &notify));
        relay.until_all_up();
        drop(origins);
        let message = receiver.until("down");
        let head = message.head.to_ascii_lowercase();
        for line in [
            "post /hooks/towpath?room=1 http/1.1\r\n".to_owned(),
            format!("\r\nhost: {}\r\n", receiver.address),
            "\r\ncontent-type: application/json\r\n".to_owned(),
            "\r\nauthorization: bearer s3cret\r\n".to_owned(),
        ] {
            assert!(head.contains(&line), "{line:?} is missing in\n{head}");
        }
        let server = |n: usize| format!("server server-{n} ({})", lab.server(n).ipv4());
        let expected = [1, 2].map(|n| (server(n), "down".to_owned()));
        // In one message, unless the machine has other things to do.
        eventually("both are told, and that they came up at the start is no news", || {
            let mut told: Vec<_> = receiver.heard().iter().flat_map(|heard| events(&heard.body)).collect();
            told.sort();
            (told == expected).then_some(())
        });
        let text = message.body["text"].as_str().expect("a text");
        assert!(text.contains("of web: up → down: port 443: connection refused"), "{text}");

        let said = eventually("the command has heard it", || {
            let said = fs::read_to_string(&kept).ok()?;
            let bodies = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let mut told: Vec<_> = bodies.flat_map(|body| events(&body)).collect();
            told.sort();
            (told == expected).then_some(said)
        });
        let (first, _) = said.split_once('\n').expect("lines");
        assert!(first.starts_with(['1', '2']) && first.contains("up → down"), "{said}");

        let _back = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let back = receiver.until("up");
        assert_eq!(back.body["dropped"], 0);
        eventually("both are counted", || {
            let counts = ["command", "webhook"].map(|name| told(&relay, name));
            counts.iter().all(|of| (of.delivered, of.failed, of.waiting) == (4, 0, 0)).then_some(())
        });
        relay.stop();
        // What was left when the process ended.
        receiver.until("draining");
    });
}

#[test]
fn a_receiver_that_does_not_answer_holds_nobody_up_and_hears_it_later() {
    in_lab(a_receiver_that_does_not_answer_holds_nobody_up_and_hears_it_later, Topology::TwoArm, 2, |lab| {
        let receiver = Receiver::start(lab.client(), lab.client().ipv4(), None);
        receiver.answers(SILENT);
        let vip = lab.vip(100);
        let keys = "events = \"health\"\nbatch = 0\ninterval = 0";
        let notify =
            |timeout: &str| format!("webhook = \"http://{}/\"\n{keys}\ntimeout = \"{timeout}\"", receiver.address);
        let mut first = Some(Origin::tcp(lab.server(1), 443));
        let _second = Origin::tcp(lab.server(2), 443);
        let mut relay = subject!().start(lab.balancer(), &config(lab, vip, &notify("60s")));
        relay.until_all_up();
        // While somebody waits for the receiver, verdicts are found and in force, clients are served, and reloads are taken.
        for _ in 0..2 {
            drop(first.take());
            until_health(&relay, 1, HealthStatus::Down);
            assert_eq!(who(lab.client(), (vip, 443)), "server-2");
            first = Some(Origin::tcp(lab.server(1), 443));
            until_health(&relay, 1, HealthStatus::Up);
        }
        let waiting = told(&relay, "webhook");
        assert_eq!((waiting.delivered, waiting.failed, waiting.waiting), (0, 0, 3), "one is under way");
        relay.reload(&config(lab, vip, &notify("59s"))).expect("a reload takes it");
        receiver.answers(204);
        let states = eventually("all is told", || {
            let told: Vec<_> = receiver.heard().iter().flat_map(|heard| events(&heard.body)).collect();
            (told.len() == 4).then(|| told.into_iter().map(|(_, to)| to).collect::<Vec<String>>())
        });
        assert_eq!(states, ["down", "up", "down", "up"]);
        relay.stop();
    });
}

#[test]
fn what_was_not_taken_comes_again_in_order() {
    in_lab(what_was_not_taken_comes_again_in_order, Topology::TwoArm, 1, |lab| {
        let receiver = Receiver::start(lab.client(), lab.client().ipv4(), None);
        receiver.answers(503);
        let vip = lab.vip(100);
        let notify =
            format!("webhook = \"http://{}/\"\nevents = \"health\"\nbatch = 0\ninterval = 0", receiver.address);
        let origin = Origin::tcp(lab.server(1), 443);
        let relay = subject!().start(lab.balancer(), &config(lab, vip, &notify));
        relay.until_all_up();
        origin.stop();
        until_health(&relay, 1, HealthStatus::Down);
        let failed = eventually("it is refused", || Some(told(&relay, "webhook")).filter(|told| told.failed > 0));
        assert_eq!((failed.delivered, failed.trouble.as_deref()), (0, Some("status 503")));
        let line = format!("the webhook at {} did not take a message: status 503", receiver.address);
        eventually("it is in the log", || relay.log().contains(&line).then_some(()));
        let _back = Origin::tcp(lab.server(1), 443);
        until_health(&relay, 1, HealthStatus::Up);
        receiver.answers(200);
        let message = receiver.until("up");
        let states: Vec<String> =
            receiver.heard().iter().flat_map(|heard| events(&heard.body)).map(|(_, to)| to).collect();
        assert_eq!(states, ["down", "up"]);
        assert_eq!(message.body["dropped"], 0);
        eventually("it is well again", || {
            let told = told(&relay, "webhook");
            ((told.delivered, told.waiting) == (2, 0) && told.trouble.is_none()).then_some(())
        });
        relay.stop();
    });
}

/// What shows this certificate.
fn showing(issued: &Issued) -> Arc<ServerConfig> {
    let key = PrivateKeyDer::from_pem_file(&issued.key).expect("a key");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(issued.certificates(), key);
    Arc::new(config.expect("a key that fits"))
}

#[test]
fn a_webhook_by_https_is_told_only_if_its_certificate_is_trusted() {
    in_lab(a_webhook_by_https_is_told_only_if_its_certificate_is_trusted, Topology::TwoArm, 1, |lab| {
        let (trusted, other) = (Authority::new("trusted"), Authority::new("other"));
        let right = trusted.issue(&["localhost"]);
        // By its name, on the balancer itself.
        let receiver = Receiver::start(lab.balancer(), Ipv4Addr::LOCALHOST, Some(showing(&right)));
        let vip = lab.vip(100);
        let by = |authority: &Path| {
            let url = format!("https://localhost:{}/", receiver.address.port());
            let keys = "events = \"health\"\nbatch = 0\ninterval = 0";
            config(lab, vip, &format!("webhook = \"{url}\"\nwebhook_ca = \"{}\"\n{keys}", authority.display()))
        };
        let origin = Origin::tcp(lab.server(1), 443);
        let mut relay = subject!().start(lab.balancer(), &by(&other.certificate()));
        relay.until_all_up();
        origin.stop();
        let refused = eventually("it is not trusted", || told(&relay, "webhook").trouble);
        assert_eq!(refused, "TLS: the server's certificate is not trusted");
        assert!(receiver.heard().is_empty());
        relay.reload(&by(&trusted.certificate())).expect("a reload takes it");
        assert_eq!(events(&receiver.until("down").body).len(), 1);
        relay.stop();
    });
}
