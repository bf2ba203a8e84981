//! The control socket: who may bind it, what it answers, how long a client may take.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use towpath_config::model::ControlGroup;
use towpath_engine::{ControlError, ControlSocket, Endpoint, Engine, FetchError, StartOptions, Stop, fetch_status};

/// A directory of this test's own, removed with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(test: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("towpath-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("control.sock")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn bind(socket: &Path) -> Result<ControlSocket, ControlError> {
    ControlSocket::bind(socket, &ControlGroup::OfProcess)
}

fn engine(socket: &Path) -> Engine {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = format!(
        "[runtime]\nworkers = \"auto\"\n[limits]\nconnections = 100\n[control]\nsocket = {socket:?}\n\
         [[service]]\nname = \"web\"\nvip = \"127.0.0.1\"\nports = [{port}]\n\
         [[service.server]]\nname = \"one\"\naddress = \"127.0.0.1\"\nport = 9\n"
    );
    let checked = towpath_config::check("test.toml", &text);
    let errors: Vec<String> = checked.errors().map(|d| d.message.clone()).collect();
    let model = checked.model.unwrap_or_else(|| panic!("{errors:?}"));
    Engine::start(model, StartOptions::default()).unwrap()
}

/// Sends `request` as it stands and returns all that comes back.
fn ask(socket: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_stale_socket_file_is_replaced_and_goes_at_the_end() {
    let scratch = Scratch::new("stale");
    drop(UnixListener::bind(scratch.socket()).unwrap());
    assert!(scratch.socket().exists(), "a dead daemon leaves its file behind");
    let control = bind(&scratch.socket()).unwrap();
    let mode = fs::metadata(scratch.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    drop(control);
    assert!(!scratch.socket().exists());
}

#[test]
fn a_live_daemons_socket_is_refused_and_left_alone() {
    let scratch = Scratch::new("live");
    let live = UnixListener::bind(scratch.socket()).unwrap();
    let error = bind(&scratch.socket()).unwrap_err();
    assert!(matches!(error, ControlError::InUse(_)), "{error}");
    assert!(error.to_string().contains("another daemon answers there; stop it"), "{error}");
    live.set_nonblocking(true).unwrap();
    assert!(UnixStream::connect(scratch.socket()).is_ok(), "it still listens");
}

#[test]
fn a_file_that_is_no_socket_is_never_removed() {
    let scratch = Scratch::new("file");
    fs::write(scratch.socket(), "precious").unwrap();
    let error = bind(&scratch.socket()).unwrap_err();
    assert!(matches!(error, ControlError::NotASocket(_)), "{error}");
    assert_eq!(fs::read_to_string(scratch.socket()).unwrap(), "precious");
}

#[test]
fn a_socket_that_another_daemon_has_put_in_our_place_stays() {
    let scratch = Scratch::new("taken-over");
    let first = bind(&scratch.socket()).unwrap();
    fs::remove_file(scratch.socket()).unwrap();
    let _second = UnixListener::bind(scratch.socket()).unwrap();
    drop(first);
    assert!(scratch.socket().exists());
}

#[test]
fn a_missing_directory_is_made_one_level_deep() {
    let scratch = Scratch::new("directory");
    let socket = scratch.0.join("run").join("control.sock");
    drop(bind(&socket).unwrap());
    let deep = scratch.0.join("not").join("there").join("control.sock");
    let error = bind(&deep).unwrap_err();
    assert!(error.to_string().contains("RuntimeDirectory="), "{error}");
}

#[test]
fn the_socket_is_given_to_the_group_that_the_file_names() {
    let scratch = Scratch::new("group");
    let nowhere = ControlGroup::Named("no-such-group".to_owned());
    let error = ControlSocket::bind(&scratch.socket(), &nowhere).unwrap_err();
    assert!(matches!(error, ControlError::NoGroup(_)) && error.to_string().contains("groupadd"), "{error}");
    assert!(!scratch.socket().exists(), "nothing is left behind");
    drop(ControlSocket::bind(&scratch.socket(), &ControlGroup::IfThere("no-such-group".to_owned())).unwrap());
    // The group of root is on every machine; who is not root may give it away to its own only.
    let control = ControlSocket::bind(&scratch.socket(), &ControlGroup::IfThere("root".to_owned())).unwrap();
    let file = fs::metadata(scratch.socket()).unwrap();
    assert!(file.uid() != 0 || file.gid() == 0);
    drop(control);
}

#[test]
fn the_status_comes_over_the_socket_and_is_read_only() {
    let scratch = Scratch::new("status");
    let engine = engine(&scratch.socket());
    let status = fetch_status(&Endpoint::Socket(scratch.socket())).unwrap();
    assert_eq!((status.phase.as_str(), status.services[0].name.as_str()), ("running", "web"));
    assert_eq!(status.limits.connections.max, 100);
    assert!(status.limits.descriptors.used > 0);
    assert_eq!(status.workers.len(), engine.plan().workers.len());

    let posted = ask(&scratch.socket(), "POST /status HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
    assert!(posted.starts_with("HTTP/1.1 405"), "{posted}");
    assert!(posted.to_lowercase().contains("\r\nallow: get\r\n"), "{posted}");
    let elsewhere = ask(&scratch.socket(), "GET /services HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(elsewhere.starts_with("HTTP/1.1 404"), "{elsewhere}");
    let garbage = ask(&scratch.socket(), "\u{16}\u{3}\u{1} not http\r\n\r\n");
    assert!(garbage.is_empty() || garbage.starts_with("HTTP/1.1 400"), "{garbage}");

    engine.stop(Stop::Now);
    engine.wait();
    assert!(!scratch.socket().exists());
    let error = fetch_status(&Endpoint::Socket(scratch.socket())).unwrap_err();
    assert!(matches!(error, FetchError::NotReachable { .. }), "{error}");
    assert!(error.to_string().contains("no daemon answers at"), "{error}");
}

/// The status line's code, and the code of the refusal.
fn refusal(answer: &str) -> (u16, String) {
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("{answer}"));
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let json: serde_json::Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
    assert!(json["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{answer}");
    (code, json["error"]["code"].as_str().unwrap().to_owned())
}

fn post(path: &str, kind: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}")
}

const JSON: &str = "application/json";

#[test]
fn what_is_asked_wrongly_is_refused_with_a_word_and_changes_nothing() {
    let scratch = Scratch::new("refused");
    let engine = engine(&scratch.socket());
    let one = "/v1/services/web/servers/one";
    let drain = format!("{one}/drain");
    let large = format!("{{\"reason\":\"{}\"}}", "x".repeat(20_000));
    let deep = "[".repeat(10_000);
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    for (request, status, code) in [
        (post(&drain, "text/plain", "{}"), 415, "not_json"),
        (post(&drain, "application/x-www-form-urlencoded", "reason=a"), 415, "not_json"),
        (post(&drain, JSON, "{"), 400, "bad_body"),
        (post(&drain, JSON, "\u{0}"), 400, "bad_body"),
        (post(&drain, JSON, "{}{}"), 400, "bad_body"),
        (post(&drain, JSON, &deep), 400, "bad_body"),
        (post(&drain, JSON, r#"{"reson":"a"}"#), 400, "bad_body"),
        (post(&drain, JSON, r#"{"until":-1}"#), 400, "bad_body"),
        (post(&drain, JSON, r#"{"weight":1}"#), 400, "bad_order"),
        (post(&drain, JSON, r#"{"reason":"a\nb"}"#), 400, "bad_order"),
        (post(&drain, JSON, &large), 413, "too_large"),
        (post(&format!("{one}/weight"), JSON, "{}"), 400, "bad_order"),
        (post("/v1/services/mail/servers/one/drain", JSON, "{}"), 404, "no_such_service"),
        (post("/v1/services/web/servers/two/drain", JSON, "{}"), 404, "no_such_server"),
        (post("/v1/services/%2A/servers/%2A/halt", JSON, "{}"), 404, "no_such_service"),
        (post("/v1/services/w%e/servers/one/halt", JSON, "{}"), 400, "bad_path"),
        (post("/v1/services/web/servers/one/halt/now", JSON, "{}"), 404, "not_found"),
        (post("/v2/services/web/servers/one/halt", JSON, "{}"), 404, "not_found"),
        (post("/services/web/servers/one/halt", JSON, "{}"), 404, "not_found"),
        (post("/v1/status", JSON, "{}"), 405, "method_not_allowed"),
        (post(one, JSON, "{}"), 405, "method_not_allowed"),
        (get(&drain), 405, "method_not_allowed"),
        (get(&format!("{one}/restart")), 404, "not_found"),
        (get("/v1/services/web/servers/two"), 404, "no_such_server"),
        (get("/"), 404, "not_found"),
        (get(&format!("/{}", "a/".repeat(100))), 400, "bad_path"),
    ] {
        let shown: String = request.chars().take(80).collect();
        assert_eq!(refusal(&ask(&scratch.socket(), &request)), (status, code.to_owned()), "{shown}");
    }
    // A body that is longer than it says, and one that never comes.
    let smuggled = post(&drain, JSON, "{}") + "POST /v1/services/web/servers/one/halt HTTP/1.1\r\n\r\n";
    let answer = ask(&scratch.socket(), &smuggled.replace("/drain", "/ready"));
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "one request, one answer: {answer}");
    let status = engine.status();
    assert_eq!(
        (status.services[0].servers[0].admin.as_str(), &status.services[0].servers[0].admin_said),
        ("ready", &None)
    );
    let state = scratch.0.join("control.sock.state");
    assert!(fs::read_to_string(&state).map_or(true, |text| !text.contains("web")), "nothing was said");
}

#[test]
fn an_order_is_in_force_and_written_down_when_it_is_answered() {
    let scratch = Scratch::new("ordered");
    let engine = engine(&scratch.socket());
    let path = "/v1/services/*/servers/127.0.0.1:9";
    let answer = ask(
        &scratch.socket(),
        &post(&format!("{path}/drain"), "application/json; charset=utf-8", r#"{"until":3,"reason":"a"}"#),
    );
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\r\ncontent-type: application/json"), "{answer}");
    let status = engine.status();
    let drain = status.services[0].servers[0].admin_said.as_ref().and_then(|said| said.drain.as_ref()).unwrap();
    assert_eq!((drain.until, drain.deadline_in_ms), (3, None));
    assert!(status.workers.iter().all(|worker| worker.generation >= status.generation));
    let state = fs::read_to_string(scratch.0.join("control.sock.state")).unwrap();
    assert!(state.contains("\"state\": \"drain\""), "{state}");
    let mode = fs::metadata(scratch.0.join("control.sock.state")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Without a body.
    let answer = ask(&scratch.socket(), &format!("POST {path}/ready HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(engine.status().services[0].servers[0].admin, "ready");
    let shown = ask(&scratch.socket(), &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
    assert!(shown.contains("\"service\":\"web\",\"server\":\"one\""), "{shown}");
    engine.stop(Stop::Drain);
    let late = ask(&scratch.socket(), &post(&format!("{path}/halt"), JSON, "{}"));
    assert!(late.is_empty() || refusal(&late) == (409, "stopping".to_owned()), "{late}");
}

#[test]
fn a_body_that_does_not_come_holds_nobody_up() {
    let scratch = Scratch::new("slow");
    let engine = engine(&scratch.socket());
    let mut slow = UnixStream::connect(scratch.socket()).unwrap();
    slow.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let head = "POST /v1/services/web/servers/one/halt HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{";
    slow.write_all(head.as_bytes()).unwrap();
    let answer = ask(&scratch.socket(), "GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).unwrap();
    assert_eq!(engine.status().services[0].servers[0].admin, "ready");
}

#[test]
fn clients_that_say_nothing_are_sent_away_and_do_not_keep_others_out() {
    let scratch = Scratch::new("silent");
    let _engine = engine(&scratch.socket());
    let started = Instant::now();
    // More than are served at the same time.
    let silent: Vec<UnixStream> = (0..40).map(|_| UnixStream::connect(scratch.socket()).unwrap()).collect();
    let mut first = &silent[0];
    first.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut rest = Vec::new();
    first.read_to_end(&mut rest).unwrap();
    assert!(started.elapsed() < Duration::from_secs(15), "it was closed after {:?}", started.elapsed());
    drop(silent);
    let answer = ask(&scratch.socket(), "GET /status HTTP/1.1\r\nhost: x\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
