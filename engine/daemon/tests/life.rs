//! The life of a whole engine on loopback: start, health, reload, drain, end.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use towpath_config::Model;
use towpath_core::Generation;
use towpath_engine::status::{HealthStatus, ServiceState};
use towpath_engine::{Engine, Outcome, ReloadError, StartError, StartOptions, Status, Stop};

const PATIENCE: Duration = Duration::from_secs(20);

/// A server that answers every line with its name and keeps the connection until the client ends it.
struct Origin {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Origin {
    fn start(name: &str, at: SocketAddr) -> Origin {
        let listener = TcpListener::bind(at).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (name, stopped) = (name.to_owned(), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                let (Ok(mut stream), name) = (stream, name.clone()) else { continue };
                thread::spawn(move || {
                    let mut buffer = [0; 64];
                    while let Ok(1..) = stream.read(&mut buffer) {
                        if stream.write_all(name.as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Origin { address, stop, thread: Some(thread) }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _wakes_accept = TcpStream::connect(self.address);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind(loopback()).unwrap().local_addr().unwrap().port()
}

fn text(port: u16, keys: &str, servers: &[(&str, SocketAddr, &str)]) -> String {
    let mut text = format!(
        "[control]\nsocket = \"none\"\n[limits]\nconnections = 200\n\
         [[service]]\nname = \"web\"\nvip = \"127.0.0.1\"\nports = [{port}]\nbalance = \"round-robin\"\n\
         drain_timeout = \"1m\"\n{keys}\n\
         health = {{ check = \"tcp\", interval = \"100ms\", timeout = \"1s\", rise = 1, fall = 1 }}\n"
    );
    for (name, address, more) in servers {
        text += &format!(
            "[[service.server]]\nname = {name:?}\naddress = \"{}\"\nport = {}\n{more}\n",
            address.ip(),
            address.port()
        );
    }
    text
}

fn model(text: &str) -> Model {
    let checked = towpath_config::check("test.toml", text);
    let errors: Vec<String> = checked.errors().map(|d| d.message.clone()).collect();
    checked.model.unwrap_or_else(|| panic!("{errors:?}\n{text}"))
}

fn ask(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"who?\n").unwrap();
    let mut buffer = [0; 64];
    let len = stream.read(&mut buffer).unwrap();
    String::from_utf8(buffer[..len].to_vec()).unwrap()
}

fn once(port: u16) -> String {
    ask(&mut TcpStream::connect(("127.0.0.1", port)).unwrap())
}

fn until(engine: &Engine, what: &str, fact: impl Fn(&Status) -> bool) -> Status {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = engine.status();
        if fact(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "{what} did not come: {status:#?}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_started_engine_has_its_verdicts_and_serves() {
    let (one, port) = (Origin::start("one", loopback()), free_port());
    let dead: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let model = model(&text(port, "", &[("one", one.address, ""), ("dead", dead, "")]));
    let engine = Engine::start(model, StartOptions::default()).unwrap();
    let status = engine.status();
    let servers = &status.services[0].servers;
    assert_eq!((servers[0].health, servers[1].health), (HealthStatus::Up, HealthStatus::Down), "{status:#?}");
    assert_eq!(servers[1].reason, format!("port {}: connection refused", dead.port()));
    assert_eq!(status.services[0].state, ServiceState::Degraded);
    for _ in 0..10 {
        assert_eq!(once(port), "one");
    }
    // Checks go on all the while and are never counted as load.
    let status = until(&engine, "ten connections and their answers, nothing else", |s| {
        let service = &s.services[0];
        service.opened == 10 && service.servers[0].opened == 10 && service.bytes_to_client == 30
    });
    assert_eq!(status.services[0].servers[1].opened, 0);
}

#[test]
fn a_server_that_dies_and_returns_is_followed_with_an_event_each() {
    let (one, two, port) = (Origin::start("one", loopback()), Origin::start("two", loopback()), free_port());
    let engine = Engine::start(
        model(&text(port, "", &[("one", one.address, ""), ("two", two.address, "")])),
        StartOptions::default(),
    )
    .unwrap();
    let address = two.address;
    drop(two);
    until(&engine, "two is down", |s| s.services[0].servers[1].health == HealthStatus::Down);
    until(&engine, "workers know", |s| s.workers.iter().all(|w| w.generation == s.generation));
    for _ in 0..4 {
        assert_eq!(once(port), "one");
    }
    let _two = Origin::start("two", address);
    let status = until(&engine, "two is up", |s| s.services[0].servers[1].health == HealthStatus::Up);
    let told: Vec<(&str, &str)> = status
        .events
        .iter()
        .filter(|e| e.subject.as_deref() == Some("server two (127.0.0.1)"))
        .map(|e| (e.from.as_str(), e.to.as_str()))
        .collect();
    assert_eq!(told, [("unknown", "up"), ("up", "down"), ("down", "up")]);
}

#[test]
fn a_reload_changes_servers_and_keeps_connections() {
    let (one, two, port) = (Origin::start("one", loopback()), Origin::start("two", loopback()), free_port());
    let before = text(port, "", &[("one", one.address, "")]);
    let engine = Engine::start(model(&before), StartOptions::default()).unwrap();
    let mut kept = TcpStream::connect(("127.0.0.1", port)).unwrap();
    assert_eq!(ask(&mut kept), "one");

    let after = text(port, "", &[("two", two.address, "")]);
    let generation = engine.reload(model(&after)).unwrap();
    assert!(generation > Generation(1));
    let status = engine.status();
    assert!(status.workers.iter().all(|w| w.generation >= generation.0), "every worker serves it on return");
    until(&engine, "two is up and taken", |s| {
        s.services[0].state == ServiceState::Up && s.workers.iter().all(|w| w.generation == s.generation)
    });
    assert_eq!(once(port), "two");
    assert_eq!(ask(&mut kept), "one", "a removed server keeps its connections");
    assert_eq!((status.leaving.len(), status.leaving[0].connections), (1, 1), "{:?}", status.leaving);
    drop(kept);
    until(&engine, "nothing is leaving", |s| s.leaving.is_empty());
}

#[test]
fn a_reload_of_check_parameters_takes_no_server_out() {
    let (one, port) = (Origin::start("one", loopback()), free_port());
    let before = text(port, "", &[("one", one.address, "")]);
    let engine = Engine::start(model(&before), StartOptions::default()).unwrap();
    let after = before.replacen("interval = \"100ms\"", "interval = \"1h\"", 1);
    assert_ne!(before, after);
    engine.reload(model(&after)).unwrap();
    assert_eq!(engine.status().services[0].servers[0].health, HealthStatus::Up);
    assert_eq!(once(port), "one");
}

#[test]
fn a_reload_that_needs_a_restart_is_refused_by_name_and_changes_nothing() {
    let (one, port) = (Origin::start("one", loopback()), free_port());
    let before = text(port, "", &[("one", one.address, "")]);
    let engine = Engine::start(model(&before), StartOptions::default()).unwrap();
    let generation = engine.status().generation;
    let after = text(port, "", &[("one", one.address, "weight = 1")]).replacen("[limits]", "[limits]\nflows = 5000", 1);
    let error = engine.reload(model(&after)).unwrap_err();
    assert!(matches!(&error, ReloadError::NeedsRestart(what) if what == &["limits.flows"]), "{error}");
    assert!(error.to_string().ends_with("restart to apply"), "{error}");
    let status = engine.status();
    assert_eq!((status.generation, status.services[0].servers[0].weight), (generation, 100));
    assert_eq!(once(port), "one");
}

#[test]
fn a_reload_moves_a_listener_and_keeps_connections() {
    let (one, port, other) = (Origin::start("one", loopback()), free_port(), free_port());
    let engine = Engine::start(model(&text(port, "", &[("one", one.address, "")])), StartOptions::default()).unwrap();
    let mut kept = TcpStream::connect(("127.0.0.1", port)).unwrap();
    assert_eq!(ask(&mut kept), "one");
    engine.reload(model(&text(other, "", &[("one", one.address, "")]))).unwrap();
    assert_eq!(once(other), "one");
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), Duration::from_millis(50)).is_ok() {
        assert!(Instant::now() < deadline, "still listening");
    }
    assert_eq!(ask(&mut kept), "one", "an old connection still works");
    // Somebody else who has the port is told, and nothing is changed.
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let taken = text(taken.local_addr().unwrap().port(), "", &[("one", one.address, "")]);
    let generation = engine.status().generation;
    let error = engine.reload(model(&taken)).unwrap_err();
    assert!(matches!(&error, ReloadError::Listen(_)), "{error}");
    assert!(error.to_string().contains("another process has this port"), "{error}");
    assert_eq!(engine.status().generation, generation);
    assert_eq!(once(other), "one");
}

#[test]
fn a_drain_lets_connections_finish_and_takes_no_new_ones() {
    let (one, port) = (Origin::start("one", loopback()), free_port());
    let model = model(&text(port, "", &[("one", one.address, "")]));
    let engine = Engine::start(model.clone(), StartOptions::default()).unwrap();
    let mut kept = TcpStream::connect(("127.0.0.1", port)).unwrap();
    assert_eq!(ask(&mut kept), "one");
    engine.stop(Stop::Drain);
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(("127.0.0.1", port)).is_ok() {
        assert!(Instant::now() < deadline, "still listening");
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(ask(&mut kept), "one", "an old connection still works");
    assert_eq!(engine.status().phase, "draining");
    assert!(matches!(engine.reload(model), Err(ReloadError::Stopping)));
    drop(kept);
    assert_eq!(engine.wait(), Outcome::Stopped { cut: 0 });
}

#[test]
fn a_second_stop_ends_a_drain_at_once() {
    let (one, port) = (Origin::start("one", loopback()), free_port());
    let model = model(&text(port, "", &[("one", one.address, "")]));
    let engine = Engine::start(model, StartOptions::default()).unwrap();
    let mut kept = TcpStream::connect(("127.0.0.1", port)).unwrap();
    assert_eq!(ask(&mut kept), "one");
    engine.stop(Stop::Drain);
    engine.stop(Stop::Now);
    assert_eq!(engine.wait(), Outcome::Stopped { cut: 1 });
}

#[test]
fn a_port_in_use_refuses_the_start_and_leaves_nothing_behind() {
    let (one, taken) = (Origin::start("one", loopback()), TcpListener::bind(loopback()).unwrap());
    let port = taken.local_addr().unwrap().port();
    let model = model(&text(port, "", &[("one", one.address, "")]));
    let Err(StartError::Listen(errors)) = Engine::start(model.clone(), StartOptions::default()) else {
        panic!("the port is taken")
    };
    assert!(
        errors.to_string().starts_with(&format!("service `web`: listen tcp 127.0.0.1:{port}: another process has"))
    );
    drop(taken);
    let _engine = Engine::start(model, StartOptions::default()).unwrap();
    assert_eq!(once(port), "one");
}

#[test]
fn an_address_that_is_not_here_refuses_the_start() {
    let one = Origin::start("one", loopback());
    let text = text(free_port(), "", &[("one", one.address, "")]).replacen("127.0.0.1", "192.0.2.1", 1);
    let Err(error) = Engine::start(model(&text), StartOptions::default()) else { panic!("192.0.2.1 is not here") };
    assert!(error.to_string().contains("vip 192.0.2.1 is not an address of this host; add it"), "{error}");
}
