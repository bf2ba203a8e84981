//! The control socket: who may bind it, what it answers, how long a client may take.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use towpath_engine::{ControlError, ControlSocket, Engine, FetchError, StartOptions, Stop, fetch_status};

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
    let control = ControlSocket::bind(&scratch.socket()).unwrap();
    let mode = fs::metadata(scratch.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    drop(control);
    assert!(!scratch.socket().exists());
}

#[test]
fn a_live_daemons_socket_is_refused_and_left_alone() {
    let scratch = Scratch::new("live");
    let live = UnixListener::bind(scratch.socket()).unwrap();
    let error = ControlSocket::bind(&scratch.socket()).unwrap_err();
    assert!(matches!(error, ControlError::InUse(_)), "{error}");
    assert!(error.to_string().contains("another daemon answers there; stop it"), "{error}");
    live.set_nonblocking(true).unwrap();
    assert!(UnixStream::connect(scratch.socket()).is_ok(), "it still listens");
}

#[test]
fn a_file_that_is_no_socket_is_never_removed() {
    let scratch = Scratch::new("file");
    fs::write(scratch.socket(), "precious").unwrap();
    let error = ControlSocket::bind(&scratch.socket()).unwrap_err();
    assert!(matches!(error, ControlError::NotASocket(_)), "{error}");
    assert_eq!(fs::read_to_string(scratch.socket()).unwrap(), "precious");
}

#[test]
fn a_socket_that_another_daemon_has_put_in_our_place_stays() {
    let scratch = Scratch::new("taken-over");
    let first = ControlSocket::bind(&scratch.socket()).unwrap();
    fs::remove_file(scratch.socket()).unwrap();
    let _second = UnixListener::bind(scratch.socket()).unwrap();
    drop(first);
    assert!(scratch.socket().exists());
}

#[test]
fn a_missing_directory_is_made_one_level_deep() {
    let scratch = Scratch::new("directory");
    let socket = scratch.0.join("run").join("control.sock");
    drop(ControlSocket::bind(&socket).unwrap());
    let deep = scratch.0.join("not").join("there").join("control.sock");
    let error = ControlSocket::bind(&deep).unwrap_err();
    assert!(error.to_string().contains("RuntimeDirectory="), "{error}");
}

#[test]
fn the_status_comes_over_the_socket_and_nothing_can_be_written() {
    let scratch = Scratch::new("status");
    let engine = engine(&scratch.socket());
    let status = fetch_status(&scratch.socket()).unwrap();
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
    let error = fetch_status(&scratch.socket()).unwrap_err();
    assert!(matches!(error, FetchError::NotReachable { .. }), "{error}");
    assert!(error.to_string().contains("no daemon answers at"), "{error}");
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
