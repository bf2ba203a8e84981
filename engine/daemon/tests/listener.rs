//! `control.listen`: who is let in over the network, as whom, and what malformed, oversized, slow, unauthorised and cross-site requests get.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa, KeyIdMethod,
    KeyPair, RevokedCertParams, SerialNumber, date_time_ymd,
};
use tempfile::TempDir;
use towpath_config::model::Model;
use towpath_engine::credential::{draw_token, hash_password};
use towpath_engine::{
    Asker, Certificates, Endpoint, Engine, EventsPage, FetchError, LimitRows, Remote, StartOptions, fetch_status, get,
};

const PATIENCE: Duration = Duration::from_secs(60);
const PASSWORD: &str = "correct horse";
const JSON: &str = "Content-Type: application/json\r\n";
const DRAIN: &str = "/v1/services/web/servers/one/drain";
const READY: &str = "/v1/services/web/servers/one/ready";

/// A running engine with a listener on loopback, and its users' credentials.
struct Lab {
    directory: TempDir,
    engine: Engine,
    address: SocketAddr,
    /// Of the viewer, the operator and the admin.
    tokens: [String; 3],
    text: String,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn model(text: &str) -> Model {
    let checked = towpath_config::check("test.toml", text);
    let errors: Vec<String> = checked.errors().map(|diagnostic| diagnostic.message.clone()).collect();
    checked.model.unwrap_or_else(|| panic!("{errors:?}\n{text}"))
}

impl Lab {
    /// With these further lines of `[control]`.
    fn new(lines: &str) -> Lab {
        Lab::with(tempfile::tempdir().unwrap(), lines, "")
    }

    fn with(directory: TempDir, lines: &str, users: &str) -> Lab {
        let drawn = [(); 3].map(|()| draw_token().unwrap());
        let password = hash_password(PASSWORD).unwrap().written();
        // Whoever else takes the port meanwhile has it: another one then.
        for _ in 0..20 {
            let (port, service) = (free_port(), free_port());
            let address = SocketAddr::from(([127, 0, 0, 1], port));
            let [viewer, operator, admin] = [0, 1, 2].map(|place| drawn[place].1.written());
            let text = format!(
                "[limits]\nconnections = 100\n[control]\nsocket = {:?}\nlisten = \"{address}\"\n{lines}\n\
                 [[control.user]]\nname = \"vera\"\nrole = \"viewer\"\ntoken_hash = \"{viewer}\"\n\
                 [[control.user]]\nname = \"otto\"\nrole = \"operator\"\ntoken_hash = \"{operator}\"\npassword_hash = \"{password}\"\n\
                 [[control.user]]\nname = \"ada\"\nrole = \"admin\"\ntoken_hash = \"{admin}\"\n{users}\n\
                 [[service]]\nname = \"web\"\nvip = \"127.0.0.1\"\nports = [{service}]\n\
                 [[service.server]]\nname = \"one\"\naddress = \"127.0.0.1\"\nport = 9\n",
                directory.path().join("control.sock"),
            );
            match Engine::start(model(&text), StartOptions::default()) {
                Ok(engine) => {
                    let tokens = drawn.map(|(token, _)| token);
                    return Lab { directory, engine, address, tokens, text };
                }
                Err(error) if error.to_string().contains("in use") => {}
                Err(error) => panic!("{error}\n{text}"),
            }
        }
        panic!("no port is free");
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends `request` as it stands and returns all that comes back, until the end.
    fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        // Whoever has heard enough closes, and what is sent then is refused.
        let _sent = stream.write_all(request);
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            answer.extend_from_slice(&buffer[..length]);
        }
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// One request of HTTP with these header lines.
    fn ask(&self, method: &str, path: &str, lines: &str, body: &str) -> Answer {
        let host = self.address;
        let length = body.len();
        let text = self.raw(
            format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{lines}Content-Length: {length}\r\n\r\n{body}").as_bytes(),
        );
        Answer::read(&text).unwrap_or_else(|| panic!("{method} {path}: {text}"))
    }

    fn token(&self, who: usize) -> String {
        format!("Authorization: Bearer {}\r\n", self.tokens[who])
    }

    fn admin_of_server(&self) -> String {
        self.engine.status().services[0].servers[0].admin.clone()
    }

    /// Logs in; the header lines of whoever has.
    fn log_in(&self) -> (String, String) {
        let answer = self.ask("POST", "/v1/login", JSON, &format!("{{\"user\":\"otto\",\"password\":\"{PASSWORD}\"}}"));
        assert_eq!(answer.status, 200, "{answer:?}");
        let cookie = answer.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
        let csrf = answer.json()["csrf"].as_str().unwrap().to_owned();
        (format!("Cookie: {cookie}\r\n"), format!("X-CSRF-Token: {csrf}\r\n"))
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn read(text: &str) -> Option<Answer> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let status = head.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
        Some(Answer { status, head: head.to_owned(), body: body.to_owned() })
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn code(&self) -> (u16, String) {
        (self.status, self.json()["error"]["code"].as_str().unwrap_or_default().to_owned())
    }
}

#[test]
fn each_role_may_what_is_its_own_and_nobody_else_anything() {
    let lab = Lab::new("");
    assert_eq!(lab.ask("GET", "/v1/status", "", "").code(), (401, "no_session".into()));
    assert_eq!(
        lab.ask("GET", "/v1/nowhere", "", "").code(),
        (401, "no_session".into()),
        "what there is is not told either"
    );
    assert_eq!(lab.ask("POST", DRAIN, JSON, "{}").code(), (401, "no_session".into()));
    assert_eq!(
        lab.ask("GET", "/v1/status", "Authorization: Bearer towpath_0123456789\r\n", "").code(),
        (401, "bad_token".into())
    );
    let answer = lab.ask("GET", "/v1/status", &lab.token(0), "");
    assert_eq!((answer.status, answer.json()["services"][0]["name"].as_str()), (200, Some("web")));
    for (name, wanted) in [
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("cross-origin-resource-policy", "same-origin"),
        ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
    ] {
        assert_eq!(answer.header(name), Some(wanted), "{answer:?}");
    }
    assert!(answer.header("access-control-allow-origin").is_none());
    assert_eq!(lab.ask("HEAD", "/v1/status", &lab.token(0), "").status, 200);
    assert_eq!(lab.ask("POST", DRAIN, &(lab.token(0) + JSON), "{}").code(), (403, "forbidden".into()));
    assert_eq!(lab.admin_of_server(), "ready");
    assert_eq!(lab.ask("POST", DRAIN, &(lab.token(1) + JSON), r#"{"reason":"patch day"}"#).status, 200);
    assert_eq!(lab.admin_of_server(), "drain");
    assert_eq!(lab.ask("POST", READY, &lab.token(2), "").status, 200);
    assert_eq!(lab.admin_of_server(), "ready");
    // Who, what, before, after and why.
    let events = lab.engine.status().events;
    let drained = events.iter().find(|event| event.to.contains("drain")).unwrap_or_else(|| panic!("{events:?}"));
    assert!(drained.line().contains("otto (127.0.0.1, token)") && drained.line().contains("patch day"), "{drained:?}");
    assert!(drained.from.contains("ready"), "{drained:?}");
    let routes = lab.ask("GET", "/v1", &lab.token(0), "").json();
    assert!(
        routes["routes"]
            .as_array()
            .unwrap()
            .iter()
            .any(|route| route["path"] == "/v1/limits" && route["role"] == "viewer")
    );
    let session = lab.ask("GET", "/v1/session", &lab.token(1), "").json();
    assert_eq!(
        (session["user"].as_str(), session["role"].as_str(), session["csrf"].as_str()),
        (Some("otto"), Some("operator"), Some(""))
    );
    assert_eq!(lab.ask("GET", "/v1/login", &lab.token(2), "").code(), (405, "method_not_allowed".into()));
    assert_eq!(lab.ask("DELETE", "/v1/status", &lab.token(2), "").code(), (405, "method_not_allowed".into()));
}

#[test]
fn a_login_changes_only_what_the_page_may_and_only_from_the_page() {
    let lab = Lab::new("page = \"full\"");
    let (cookie, csrf) = lab.log_in();
    let session = lab.ask("GET", "/v1/session", &cookie, "").json();
    assert_eq!((session["user"].as_str(), session["page"].as_str()), (Some("otto"), Some("full")));
    assert!((1..=900).contains(&session["idle_seconds_left"].as_u64().unwrap()), "{session}");
    assert_eq!(lab.ask("POST", DRAIN, &format!("{cookie}{JSON}"), "{}").code(), (403, "bad_csrf".into()));
    let origin = |of: &str| format!("Origin: {of}\r\n");
    for foreign in [origin("http://evil.example"), origin("null"), "Sec-Fetch-Site: cross-site\r\n".to_owned()] {
        let lines = format!("{cookie}{csrf}{JSON}{foreign}");
        assert_eq!(lab.ask("POST", DRAIN, &lines, "{}").code(), (403, "cross_site".into()), "{foreign}");
        assert_eq!(
            lab.ask("GET", "/v1/status", &format!("{cookie}{foreign}"), "").code(),
            (403, "cross_site".into()),
            "{foreign}"
        );
        let login = format!("{{\"user\":\"otto\",\"password\":\"{PASSWORD}\"}}");
        assert_eq!(
            lab.ask("POST", "/v1/login", &format!("{JSON}{foreign}"), &login).code(),
            (403, "cross_site".into()),
            "{foreign}"
        );
    }
    // What a form of another site can send without asking.
    assert_eq!(
        lab.ask("POST", DRAIN, &format!("{cookie}{csrf}Content-Type: text/plain\r\n"), "{}").code(),
        (415, "not_json".into())
    );
    assert_eq!(lab.ask("POST", "/v1/login", "Content-Type: text/plain\r\n", "{}").code(), (415, "not_json".into()));
    assert_eq!(lab.admin_of_server(), "ready");
    let own = origin(&format!("http://{}", lab.address));
    assert_eq!(
        lab.ask("POST", DRAIN, &format!("{cookie}{csrf}{JSON}{own}Sec-Fetch-Site: same-origin\r\n"), "{}").status,
        200
    );
    assert_eq!(lab.admin_of_server(), "drain");
    assert_eq!(lab.ask("POST", "/v1/logout", &cookie, "").code(), (403, "bad_csrf".into()));
    assert_eq!(lab.ask("POST", "/v1/logout", &format!("{cookie}{csrf}"), "").status, 200);
    assert_eq!(lab.ask("GET", "/v1/status", &cookie, "").code(), (401, "session_over".into()));

    // Read-only, as it is unless the file says something else, and by a reload.
    let (cookie, csrf) = lab.log_in();
    lab.engine.reload(model(&lab.text.replace("page = \"full\"", ""))).unwrap();
    assert_eq!(lab.ask("POST", READY, &format!("{cookie}{csrf}"), "").code(), (403, "read_only".into()));
    assert_eq!(lab.ask("GET", "/v1/status", &cookie, "").status, 200);
    assert_eq!(lab.ask("POST", READY, &lab.token(1), "").status, 200, "a token is not the page");
    assert_eq!(lab.ask("POST", "/v1/logout", &format!("{cookie}{csrf}"), "").status, 200);
    lab.engine.reload(model(&lab.text.replace("page = \"full\"", "page = \"off\""))).unwrap();
    assert_eq!(lab.ask("POST", "/v1/login", JSON, "{}").code(), (401, "no_session".into()));
    assert_eq!(lab.ask("GET", "/v1/status", &lab.token(0), "").status, 200);
}

#[test]
fn wrong_passwords_are_slowed_down() {
    let lab = Lab::new("");
    let login = |password: &str| {
        lab.ask("POST", "/v1/login", JSON, &format!("{{\"user\":\"otto\",\"password\":\"{password}\"}}"))
    };
    // Each makes the wait longer, so however slow the machine is, one of the next comes too early.
    let first: Vec<_> = (0..5).map(|_| login("wrong").code()).collect();
    assert!(first.iter().all(|code| *code == (401, "bad_login".into())), "{first:?}");
    let mut tries = (0..12).map(|_| login("wrong"));
    let answer = tries.find(|answer| answer.status != 401).expect("no try was too early");
    assert_eq!(answer.code(), (429, "too_many_logins".into()));
    assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(lab.ask("GET", "/v1/status", &lab.token(0), "").status, 200, "nobody else is locked out");
}

#[test]
fn garbage_oversized_and_slow_requests_hurt_nobody() {
    let lab = Lab::new("page = \"full\"");
    let host = lab.address;
    let long = "x".repeat(20_000);
    let started = Instant::now();
    for (request, statuses) in [
        ("\u{16}\u{3}\u{1} not http\r\n\r\n".to_owned(), &[0, 400][..]),
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), &[0, 400, 505]),
        (format!("GET /{long} HTTP/1.1\r\nHost: {host}\r\n\r\n"), &[0, 400, 414, 431]),
        (format!("GET /v1/status HTTP/1.1\r\nHost: {host}\r\nX: {long}\r\n\r\n"), &[0, 400, 431]),
        (format!("GET /v1/status HTTP/1.1\r\nHost: {host}\r\n{}\r\n", "A: b\r\n".repeat(2_000)), &[0, 400, 431]),
        (
            format!(
                "POST /v1/login HTTP/1.1\r\nHost: {host}\r\n{JSON}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}"
            ),
            &[0, 400],
        ),
        (
            format!(
                "POST /v1/login HTTP/1.1\r\nHost: {host}\r\n{JSON}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{{}}"
            ),
            &[0, 400],
        ),
        (format!("POST /v1/login HTTP/1.1\r\nHost: {host}\r\n{JSON}Content-Length: -1\r\n\r\n"), &[0, 400]),
        (
            format!(
                "POST /v1/login HTTP/1.1\r\nHost: {host}\r\n{JSON}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n"
            ),
            &[0, 400],
        ),
        (format!("POST /v1/login HTTP/1.1\r\nHost: {host}\r\n{JSON}Content-Length: 20001\r\n\r\n\"{long}"), &[413]),
        (
            format!(
                "POST /v1/login HTTP/1.1\r\nHost: {host}\r\n{JSON}Content-Length: 10000\r\n\r\n{}",
                "[".repeat(10_000)
            ),
            &[400],
        ),
        (format!("POST /v1/login HTTP/1.1\r\nHost: {host}\r\n{JSON}Content-Length: 2\r\n\r\n{{}}"), &[400]),
        (format!("GET http://evil.example/v1/status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"), &[401]),
        (format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"), &[400, 401, 404, 405]),
        (format!("GET /page/../v1/status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"), &[401, 404]),
        (format!("GET /v1/st%00atus HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"), &[401]),
    ] {
        let answer = lab.raw(request.as_bytes());
        let status = Answer::read(&answer).map_or(0, |answer| answer.status);
        let shown: String = request.chars().take(60).collect();
        assert!(statuses.contains(&status), "{shown:?}: {answer}");
        assert!(!answer.contains("\"services\""), "{shown:?}");
    }
    // Bytes that nobody has thought of, from a seed that a failure shows.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let valid =
        format!("POST {DRAIN} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{JSON}Content-Length: 2\r\n\r\n{{}}");
    for round in 0..200 {
        let mut bytes = valid.clone().into_bytes();
        for _ in 0..=next() % 4 {
            let at = (next() % bytes.len() as u64) as usize;
            match next() % 3 {
                0 => bytes[at] = next() as u8,
                1 => drop(bytes.drain(at..)),
                _ => bytes.insert(at, next() as u8),
            }
            if bytes.is_empty() {
                bytes.push(b'\n');
            }
        }
        let mut stream = lab.connect();
        let _sent = stream.write_all(&bytes);
        let _ended = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _read = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer);
        assert!(!text.starts_with("HTTP/1.1 2"), "round {round}: {:?} got {text}", String::from_utf8_lossy(&bytes));
    }
    assert_eq!(lab.admin_of_server(), "ready");
    // One client that says nothing, and one that begins, keep their places for some seconds; the rest go on.
    let silent: Vec<TcpStream> = (0..4).map(|_| lab.connect()).collect();
    let mut slow = lab.connect();
    slow.write_all(
        format!("POST {DRAIN} HTTP/1.1\r\nHost: {host}\r\n{}{JSON}Content-Length: 10\r\n\r\n{{", lab.token(1))
            .as_bytes(),
    )
    .unwrap();
    assert_eq!(lab.ask("GET", "/v1/status", &lab.token(0), "").status, 200);
    let mut rest = Vec::new();
    let _ended = slow.read_to_end(&mut rest);
    for mut stream in silent {
        let _ended = stream.read_to_end(&mut rest);
    }
    assert!(started.elapsed() < PATIENCE, "they were sent away");
    assert_eq!(lab.admin_of_server(), "ready");
    assert_eq!(lab.ask("GET", "/v1/status", &lab.token(0), "").status, 200);
}

#[test]
fn a_connection_of_a_user_goes_on_and_that_of_others_does_not() {
    let lab = Lab::new("");
    let host = lab.address;
    let mut stream = lab.connect();
    let read_one = |stream: &mut TcpStream| {
        let (mut text, mut byte) = (Vec::new(), [0; 1]);
        while !text.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
            text.push(byte[0]);
        }
        let head = String::from_utf8(text).unwrap();
        let length: usize = head
            .to_lowercase()
            .split("content-length: ")
            .nth(1)
            .unwrap()
            .split("\r\n")
            .next()
            .unwrap()
            .parse()
            .unwrap();
        stream.read_exact(&mut vec![0; length]).unwrap();
        head
    };
    for _ in 0..3 {
        stream
            .write_all(format!("GET /v1/session HTTP/1.1\r\nHost: {host}\r\n{}\r\n", lab.token(0)).as_bytes())
            .unwrap();
        assert!(read_one(&mut stream).starts_with("HTTP/1.1 200"));
    }
    stream.write_all(format!("GET /v1/session HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).unwrap();
    let head = read_one(&mut stream);
    assert!(head.starts_with("HTTP/1.1 401") && head.to_lowercase().contains("connection: close"), "{head}");
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "it is over");
}

#[test]
fn strangers_who_say_nothing_make_room_for_users() {
    let lab = Lab::new("");
    let host = lab.address;
    // A user who stays.
    let mut known = lab.connect();
    let ask = format!("GET /v1/session HTTP/1.1\r\nHost: {host}\r\n{}\r\n", lab.token(0));
    let answers = |stream: &mut TcpStream| {
        stream.write_all(ask.as_bytes()).unwrap();
        let mut buffer = [0; 4096];
        let length = stream.read(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).starts_with("HTTP/1.1 200")
    };
    assert!(answers(&mut known));
    // Households of loopback, more than there are places.
    let strangers: Vec<TcpStream> = (0..100_u8)
        .map(|number| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from(([127, 0, 1, 1 + number / 10], 0)).into()).unwrap();
            socket.connect(&lab.address.into()).unwrap();
            TcpStream::from(socket)
        })
        .collect();
    assert_eq!(lab.ask("GET", "/v1/session", &lab.token(1), "").status, 200);
    assert!(answers(&mut known), "who is known keeps its place");
    drop(strangers);
}

/// An authority, and what it has signed, in files.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Authority { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    /// Certificate and key for `name`, both in one file; returns its serial number.
    fn sign(&self, path: &Path, names: &[&str], common_name: &str) -> u64 {
        static SIGNED: AtomicU64 = AtomicU64::new(1);
        let serial = SIGNED.fetch_add(1, Ordering::Relaxed);
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.serial_number = Some(SerialNumber::from(serial));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(path, certificate.pem() + &key.serialize_pem()).unwrap();
        serial
    }

    /// PEM with the list of certificates that it has taken back, by their serial numbers.
    fn list(&self, revoked: &[u64]) -> String {
        let revoked = revoked.iter().map(|&serial| RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2024, 2, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 2, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

#[test]
fn with_a_certificate_everything_goes_by_tls() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let authority = Authority::new("authority");
    fs::write(path("ca.pem"), authority.issuer.pem()).unwrap();
    authority.sign(&path("own.pem"), &["127.0.0.1", "localhost"], "lb");
    fs::write(path("other.pem"), Authority::new("other").issuer.pem()).unwrap();
    let (token, _) = draw_token().unwrap();
    fs::write(path("token"), format!("{token}\n")).unwrap();
    let lines = format!(
        "certificate = {:?}\nprivate_key = {:?}\nclient_ca = {:?}",
        path("own.pem"),
        path("own.pem"),
        path("ca.pem")
    );
    let users = format!("[[control.user]]\nname = \"carol\"\nrole = \"viewer\"\ntoken_file = {:?}\n", path("token"));
    let (ca, other, own, token_file) = (path("ca.pem"), path("other.pem"), path("own.pem"), path("token"));
    let lab = Lab::with(directory, &lines, &users);
    let url = format!("https://{}", lab.address);
    let asker = Asker { token_file: Some(token_file.clone()), certificate: None };
    let at = |ca: &Path| Endpoint::Remote(Box::new(Remote::new(&url, &asker, ca).unwrap()));
    assert_eq!(fetch_status(&at(&ca)).unwrap().services[0].name, "web");
    let error = fetch_status(&at(&other)).unwrap_err();
    assert!(matches!(error, FetchError::NotTrusted { .. }) && error.to_string().contains("--ca"), "{error}");
    let nobody = Endpoint::Remote(Box::new(Remote::new(&url, &Asker::default(), &ca).unwrap()));
    assert!(matches!(fetch_status(&nobody).unwrap_err(), FetchError::Refused { status: 401, .. }));
    // Without TLS there is no answer, and nothing is heard.
    let answer = lab.raw(format!("GET /v1/status HTTP/1.1\r\nHost: x\r\n{}\r\n", lab.token(0)).as_bytes());
    assert!(!answer.contains("HTTP/1.1"), "{answer}");
    // Its own certificate is among those that are watched.
    let certificates: Certificates = get(&at(&ca), "/v1/certs", PATIENCE).unwrap();
    let [row] = certificates.certificates.as_slice() else { panic!("{certificates:?}") };
    assert_eq!((row.service.as_deref(), row.key.as_str(), row.level.as_str()), (None, "ECDSA P-256", "valid"));
    assert_eq!(row.file, own.display().to_string());
    // A new certificate at a reload, and a damaged one, which leaves the old one in force.
    let before = row.sha256.clone();
    authority.sign(&own, &["127.0.0.1"], "lb");
    lab.engine.reload(model(&lab.text)).unwrap();
    let certificates: Certificates = get(&at(&ca), "/v1/certs", PATIENCE).unwrap();
    assert_ne!(certificates.certificates[0].sha256, before);
    fs::write(&own, "damaged").unwrap();
    let refused = lab.engine.reload(model(&lab.text)).unwrap_err().to_string();
    assert!(refused.contains("control.certificate: "), "{refused}");
    assert_eq!(fetch_status(&at(&ca)).unwrap().phase, "running");
    fs::write(&token_file, "short").unwrap();
    authority.sign(&own, &["127.0.0.1"], "lb");
    let refused = lab.engine.reload(model(&lab.text)).unwrap_err().to_string();
    assert!(refused.contains("token_file") && refused.contains("it is no token"), "{refused}");
}

#[test]
fn a_certificate_of_the_right_authority_says_who_asks() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (servers, users) = (Authority::new("servers"), Authority::new("users"));
    fs::write(path("servers.pem"), servers.issuer.pem()).unwrap();
    fs::write(path("users.pem"), users.issuer.pem()).unwrap();
    servers.sign(&path("own.pem"), &["127.0.0.1"], "lb");
    users.sign(&path("carol.pem"), &[], "carol");
    users.sign(&path("dave.pem"), &["dave.example.org"], "carol and dave");
    users.sign(&path("eve.pem"), &[], "eve");
    Authority::new("users").sign(&path("forged.pem"), &[], "carol");
    let lines = format!(
        "certificate = {:?}\nprivate_key = {:?}\nclient_ca = {:?}",
        path("own.pem"),
        path("own.pem"),
        path("users.pem")
    );
    let names = "[[control.user]]\nname = \"carol\"\nrole = \"operator\"\ncertificate_name = \"carol\"\n\
                 [[control.user]]\nname = \"dave\"\nrole = \"viewer\"\ncertificate_name = \"dave.example.org\"\n";
    let (ca, files) =
        (path("servers.pem"), ["carol", "dave", "eve", "forged"].map(|name| path(&format!("{name}.pem"))));
    let lab = Lab::with(directory, &lines, names);
    let url = format!("https://{}", lab.address);
    let ask = |file: &Path| {
        let asker = Asker { token_file: None, certificate: Some(file.to_owned()) };
        let at = Endpoint::Remote(Box::new(Remote::new(&url, &asker, &ca).unwrap()));
        get::<serde_json::Value>(&at, "/v1/session", PATIENCE)
    };
    let [carol, dave, eve, forged] = files.each_ref().map(|file| ask(file));
    let who = |answer: serde_json::Value| format!("{} {}", answer["user"], answer["role"]);
    assert_eq!(who(carol.unwrap()), "\"carol\" \"operator\"");
    assert_eq!(who(dave.unwrap()), "\"dave\" \"viewer\"");
    assert!(matches!(eve.unwrap_err(), FetchError::Refused { status: 401, .. }), "nobody is called so");
    let error = forged.unwrap_err();
    assert!(!matches!(error, FetchError::Refused { .. }), "the handshake fails: {error}");
}

fn ask_certificates(url: &str, file: &Path, ca: &Path) -> Certificates {
    let asker = Asker { token_file: None, certificate: Some(file.to_owned()) };
    get(&Endpoint::Remote(Box::new(Remote::new(url, &asker, ca).unwrap())), "/v1/certs", PATIENCE).unwrap()
}

#[test]
fn a_certificate_that_was_taken_back_says_nothing_any_more() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let authority = Authority::new("authority");
    fs::write(path("ca.pem"), authority.issuer.pem()).unwrap();
    authority.sign(&path("own.pem"), &["127.0.0.1"], "lb");
    let [carol, dave] = ["carol", "dave"].map(|name| {
        let file = path(&format!("{name}.pem"));
        (authority.sign(&file, &[], name), file)
    });
    let (lists, ca) = (path("lists.pem"), path("ca.pem"));
    fs::write(&lists, authority.list(&[])).unwrap();
    let lines = format!(
        "certificate = {:?}\nprivate_key = {:?}\nclient_ca = {ca:?}\nclient_crl = {lists:?}",
        path("own.pem"),
        path("own.pem"),
    );
    let names = ["carol", "dave"]
        .map(|name| format!("[[control.user]]\nname = \"{name}\"\nrole = \"viewer\"\ncertificate_name = \"{name}\"\n"));
    let lab = Lab::with(directory, &lines, &names.concat());
    let url = format!("https://{}", lab.address);
    let ask = |file: &Path| {
        let asker = Asker { token_file: None, certificate: Some(file.to_owned()) };
        let at = Endpoint::Remote(Box::new(Remote::new(&url, &asker, &ca).unwrap()));
        get::<serde_json::Value>(&at, "/v1/session", PATIENCE).map(|answer| answer["user"].to_string())
    };
    assert_eq!((ask(&carol.1).unwrap(), ask(&dave.1).unwrap()), ("\"carol\"".to_owned(), "\"dave\"".to_owned()));
    // The lists end one day, and are watched as certificates are.
    let answer = ask_certificates(&url, &dave.1, &ca);
    let list = answer.certificates.iter().find(|row| row.kind == "revocation list").unwrap();
    assert_eq!((list.service.as_deref(), list.level.as_str()), (None, "valid"));
    fs::write(&lists, authority.list(&[carol.0])).unwrap();
    lab.engine.reload(model(&lab.text)).unwrap();
    let error = ask(&carol.1).unwrap_err();
    assert!(!matches!(error, FetchError::Refused { .. }), "the handshake fails: {error}");
    assert_eq!(ask(&dave.1).unwrap(), "\"dave\"");
    // A list that is none is refused with its place, and the one before holds.
    fs::write(&lists, "damaged").unwrap();
    let refused = lab.engine.reload(model(&lab.text)).unwrap_err().to_string();
    assert!(refused.contains("control.client_crl: ") && refused.contains("lists.pem"), "{refused}");
    assert!(ask(&carol.1).is_err() && ask(&dave.1).is_ok());
}

#[test]
fn events_come_as_they_happen_and_limits_say_what_is_scarce() {
    let lab = Lab::new("");
    let socket = Endpoint::Socket(lab.directory.path().join("control.sock"));
    let first: EventsPage = get(&socket, "/v1/events", PATIENCE).unwrap();
    let waiting = {
        let (socket, cursor) = (socket.clone(), first.cursor.clone());
        std::thread::spawn(move || get::<EventsPage>(&socket, &format!("/v1/events?since={cursor}&wait=30"), PATIENCE))
    };
    assert_eq!(lab.ask("POST", DRAIN, &lab.token(1), "").status, 200);
    let page = waiting.join().unwrap().unwrap();
    assert!(page.events.iter().any(|event| event.to.contains("drain")), "{page:?}");
    assert!(page.events.iter().all(|event| first.events.iter().all(|known| known.id < event.id)), "{page:?}");
    assert_eq!(lab.ask("GET", "/v1/events?wait=31", &lab.token(0), "").code(), (400, "bad_query".into()));
    let rows: LimitRows = get(&socket, "/v1/limits", PATIENCE).unwrap();
    let find =
        |name: &str| rows.limits.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("{name}: {rows:?}"));
    assert_eq!((find("connections").max, find("connections").key.as_deref()), (100, Some("limits.connections")));
    assert!(find("memory").used > 0 && find("memory").used < find("memory").max);
    assert!(find("descriptors").used > 0 && find("logins").used == 0);
    assert!(rows.limits.iter().all(|row| !row.remedy.is_empty()));
    lab.log_in();
    let rows: LimitRows = get(&socket, "/v1/limits", PATIENCE).unwrap();
    assert_eq!(rows.limits.iter().find(|row| row.name == "logins").unwrap().used, 1);
}

#[test]
fn an_address_that_is_taken_is_told_with_what_helps() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (_, hash) = draw_token().unwrap();
    let text = format!(
        "[control]\nsocket = {:?}\nlisten = \"{}\"\n[[control.user]]\nname = \"a\"\nrole = \"admin\"\ntoken_hash = \"{}\"\n\
         [[service]]\nname = \"web\"\nvip = \"127.0.0.1\"\nports = [{}]\n[[service.server]]\nname = \"one\"\naddress = \"127.0.0.1\"\nport = 9\n",
        directory.path().join("control.sock"),
        taken.local_addr().unwrap(),
        hash.written(),
        free_port(),
    );
    let Err(error) = Engine::start(model(&text), StartOptions::default()) else { panic!("it has started") };
    assert!(
        error.to_string().contains("control.listen 127.0.0.1:") && error.to_string().contains("ss -ltnp"),
        "{error}"
    );
    assert!(!directory.path().join("control.sock").exists(), "nothing is left behind");
}
