//! What becomes of clients when something happens to their server: cells of `config/failure.md`, each on both planes.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use towpath_engine::status::{HealthStatus, ServiceState};
use towpath_tests::{
    Connection, Host, Origin, Subject, TestLab, Topology, eventually, in_lab, is_refused, is_refused_from, service,
    subject, who, who_from,
};

/// So that a lab takes little memory.
const LIMITS: &str = "[limits]\nflows = 16384\n";
/// Of clients whom nothing leads back: service `web`.
const NEW: u16 = 5061;
/// Of clients who come back to their server: service `desk`.
const STICKY: u16 = 5062;
/// Of clients who do so although it drains: service `keep`.
const FAITHFUL: u16 = 5063;
const PORTS: [u16; 3] = [NEW, STICKY, FAITHFUL];
/// Where checks ask: apart from the services, so that a test says which of both fails first.
const CHECKED: u16 = 444;
const FAST_CHECK: &str =
    "health = { check = \"tcp\", ports = 444, interval = \"100ms\", timeout = \"2s\", rise = 1, fall = 1 }\n";
/// One that says at the start that a server is up, and nothing after.
const FIRST_CHECK_ONLY: &str = "health = { check = \"tcp\", ports = 444, interval = \"1h\", rise = 1, fall = 1 }\n";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Plane {
    Packet,
    Stream,
}

/// The three services on a plane, in front of server-1 and server-2.
struct Stage<'l> {
    lab: &'l TestLab,
    vip: Ipv4Addr,
    keys: String,
    relay: Subject,
    /// Of server-1 and server-2.
    serving: [Vec<Origin>; 2],
}

impl<'l> Stage<'l> {
    fn start(lab: &'l TestLab, plane: Plane, keys: &str) -> Stage<'l> {
        let (vip, own) = match plane {
            Plane::Stream => (lab.vip(100), String::new()),
            Plane::Packet => {
                let pool = format!("source = {{ pool = [\"{}\"] }}\n", lab.free_snat(101));
                (lab.free_vip(100), format!("plane = \"packet\"\n{pool}"))
            }
        };
        let keys = own + keys;
        let serving = [1, 2].map(|n| PORTS.map(|port| Origin::tcp(lab.server(n), port)).into());
        let relay = subject!().start(lab.balancer(), &text(lab, vip, &keys, &[(1, ""), (2, "")]));
        relay.until_all_up();
        Stage { lab, vip, keys, relay, serving }
    }

    /// Reloads with these servers, each with lines of its own.
    fn reload(&mut self, servers: &[(usize, &str)]) {
        let text = text(self.lab, self.vip, &self.keys, servers);
        self.relay.reload(&text).expect("a reload takes it");
    }

    /// A connection that is open at this server.
    fn existing(&self, server: &str) -> Connection {
        (0..8)
            .find_map(|_| {
                let mut connection = Connection::open(self.lab.client(), (self.vip, NEW)).expect("somebody serves");
                let is_there = connection.greeting().expect("a greeting").name == server;
                connection.echo(b"before").expect("an echo");
                is_there.then_some(connection)
            })
            .expect("round robin reaches both")
    }

    /// A client whom this port leads back to this server; `first` tells it from those of other ports.
    fn pinned(&self, port: u16, server: &str, first: u8) -> IpAddr {
        (first..first + 8)
            .map(|number| self.lab.second_client(number))
            .find(|&from| self.come_back(from, port) == server)
            .expect("round robin reaches both")
    }

    fn come_back(&self, from: IpAddr, port: u16) -> String {
        who_from(self.lab.client(), from, (self.vip, port))
    }

    /// The same of the service `desk`, where only one client at a time is served.
    fn pinned_alone(&self, server: &str) -> IpAddr {
        let comes_back = |&from: &IpAddr| {
            let name = self.come_back(from, STICKY);
            self.relay.until("nobody is served", |status| status.services[1].connections == 0);
            name == server
        };
        (110..118).map(|number| self.lab.second_client(number)).find(comes_back).expect("round robin reaches both")
    }

    /// A connection that is served, of this address of the client.
    fn served(&self, from: Option<IpAddr>, port: u16) -> Connection {
        let from = from.unwrap_or(self.lab.client().ipv4().into());
        let mut connection = Connection::open_from(self.lab.client(), from, (self.vip, port)).expect("there is room");
        connection.greeting().expect("a greeting");
        connection
    }

    /// Who serves some new clients.
    fn new_clients(&self) -> BTreeSet<String> {
        (0..4).map(|_| who(self.lab.client(), (self.vip, NEW))).collect()
    }

    fn until(&self, server: usize, health: HealthStatus) {
        self.relay.until(&format!("server-{server} is {health:?}"), |status| {
            status.services.iter().all(|service| service.servers[server - 1].health == health)
        });
    }

    fn redispatched(&self) -> u64 {
        ["web", "desk"].map(|name| self.relay.service(name).counters["redispatched"]).iter().sum()
    }

    fn ended(&self, termination: &str) -> u64 {
        self.relay.service("web").terminations[termination]
    }
}

fn text(lab: &TestLab, vip: Ipv4Addr, keys: &str, servers: &[(usize, &str)]) -> String {
    let own =
        ["", "persistence = { by = \"source-ip\" }\n", "persistence = { by = \"source-ip\", enter_draining = true }\n"];
    let mut text = LIMITS.to_owned();
    for ((name, port), own) in ["web", "desk", "keep"].into_iter().zip(PORTS).zip(own) {
        text += &service(name, vip, &port.to_string(), &format!("balance = \"round-robin\"\n{keys}{own}"), &[]);
        for &(n, lines) in servers {
            let server = lab.server(n);
            text +=
                &format!("[[service.server]]\nname = \"{}\"\naddress = \"{}\"\n{lines}", server.name(), server.ipv4());
        }
    }
    text
}

fn names(servers: &[&str]) -> BTreeSet<String> {
    servers.iter().map(ToString::to_string).collect()
}

fn on<F: FnOnce()>(test: F, plane: Plane, body: fn(&TestLab, Plane)) {
    in_lab(test, Topology::TwoArm, 2, |lab| body(lab, plane));
}

/// Before any check has failed, and afterwards.
fn refuses(lab: &TestLab, plane: Plane) {
    let checked = [1, 2].map(|n| Origin::tcp(lab.server(n), CHECKED));
    let mut stage = Stage::start(lab, plane, FAST_CHECK);
    let mut existing = stage.existing("server-1");
    let pinned = stage.pinned(STICKY, "server-1", 110);
    for origin in std::mem::take(&mut stage.serving[0]) {
        origin.stop();
    }
    assert!(existing.is_ended(), "the server ends its connections itself");
    match plane {
        Plane::Stream => {
            assert_eq!(stage.new_clients(), names(&["server-2"]));
            assert_eq!(stage.come_back(pinned, STICKY), "server-2");
            assert!(stage.redispatched() >= 2, "new clients and those who came back were sent on");
        }
        Plane::Packet => {
            let refused = |opened: std::io::Result<Connection>| matches!(opened, Err(error) if error.kind() == ErrorKind::ConnectionRefused);
            let refusals = (0..4).filter(|_| refused(Connection::open(lab.client(), (stage.vip, NEW)))).count();
            assert_eq!(refusals, 2, "the server's own refusal reaches every second client");
            assert!(refused(Connection::open_from(lab.client(), pinned, (stage.vip, STICKY))));
        }
    }
    assert_eq!(stage.relay.server("web", "server-1").health, HealthStatus::Up, "its check does not ask there");

    let [checked_first, _checked_second] = checked;
    checked_first.stop();
    stage.until(1, HealthStatus::Down);
    let redispatched = stage.redispatched();
    assert_eq!(stage.new_clients(), names(&["server-2"]));
    assert_eq!(stage.come_back(pinned, STICKY), "server-2");
    assert_eq!(stage.redispatched(), redispatched, "nobody is sent to a server that is down");
    stage.relay.stop();
}

#[test]
fn a_server_that_refuses_keeps_nobody_from_the_other_on_the_stream_plane() {
    on(a_server_that_refuses_keeps_nobody_from_the_other_on_the_stream_plane, Plane::Stream, refuses);
}

#[test]
fn a_server_that_refuses_is_heard_until_its_check_fails_on_the_packet_plane() {
    on(a_server_that_refuses_is_heard_until_its_check_fails_on_the_packet_plane, Plane::Packet, refuses);
}

/// Before any check has failed: only connects themselves can tell.
fn is_silent(lab: &TestLab, plane: Plane) {
    let _checked = [1, 2].map(|n| Origin::tcp(lab.server(n), CHECKED));
    let keys = format!("connect_timeout = \"300ms\"\n{FIRST_CHECK_ONLY}");
    let mut stage = Stage::start(lab, plane, &keys);
    let pinned = stage.pinned(STICKY, "server-1", 110);
    lab.server(1).link_down("back").expect("a plug to pull");
    let vip = stage.vip;
    let visit = move |from: IpAddr, port: u16| who_from(lab.client(), from, (vip, port));
    thread::scope(|scope| {
        // Round robin sends one of them to server-1.
        let new = [(); 2].map(|()| scope.spawn(move || visit(lab.client().ipv4().into(), NEW)));
        let coming_back = scope.spawn(move || visit(pinned, STICKY));
        // On the packet plane by its next SYN, which finds another server.
        for client in new {
            assert_eq!(client.join().expect("it is served"), "server-2");
        }
        if plane == Plane::Packet {
            let timed_out = || stage.relay.service("desk").terminations["connect_timed_out"];
            eventually("it is led to its silent server", || (timed_out() > 0).then_some(()));
            assert!(!coming_back.is_finished(), "its entry leads it there again and again");
            // A check finds out what the client cannot; its next SYN after that is led elsewhere.
            stage.keys = stage.keys.replace("interval = \"1h\"", "interval = \"100ms\", timeout = \"1s\"");
            stage.reload(&[(1, ""), (2, "")]);
        }
        assert_eq!(coming_back.join().expect("it is served"), "server-2");
    });
    assert!(plane == Plane::Packet || stage.redispatched() >= 2, "one of the new clients and who came back");
    stage.relay.stop();
}

#[test]
fn a_silent_server_costs_new_and_returning_clients_connect_timeout_on_the_stream_plane() {
    on(a_silent_server_costs_new_and_returning_clients_connect_timeout_on_the_stream_plane, Plane::Stream, is_silent);
}

#[test]
fn a_silent_server_costs_new_clients_a_syn_and_keeps_returning_ones_until_its_check_fails_on_the_packet_plane() {
    on(
        a_silent_server_costs_new_clients_a_syn_and_keeps_returning_ones_until_its_check_fails_on_the_packet_plane,
        Plane::Packet,
        is_silent,
    );
}

/// A page that a check asks for. It answers at once, or later than the check waits.
struct Page {
    is_slow: Arc<AtomicBool>,
}

impl Page {
    /// Longer than checks of these tests wait.
    const SLOW: Duration = Duration::from_secs(2);

    fn start(host: &Host) -> Page {
        let listener = host.run(|| TcpListener::bind(("0.0.0.0", 8080))).expect("a thread").expect("a listener");
        let is_slow = Arc::new(AtomicBool::new(false));
        let orders = Arc::clone(&is_slow);
        // Ends with the process.
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let orders = Arc::clone(&orders);
                thread::spawn(move || {
                    for line in BufReader::new(stream.try_clone()?).lines() {
                        if line?.is_empty() {
                            break;
                        }
                    }
                    if orders.load(Ordering::Acquire) {
                        thread::sleep(Page::SLOW);
                    }
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                });
            }
        });
        Page { is_slow }
    }
}

/// Its check gets its answers too late, and so do its clients.
fn is_slow(lab: &TestLab, plane: Plane) {
    let pages = [1, 2].map(|n| Page::start(lab.server(n)));
    let keys =
        "health = { check = \"http\", ports = 8080, interval = \"100ms\", timeout = \"1s\", rise = 1, fall = 2 }\n";
    let stage = Stage::start(lab, plane, keys);
    let mut existing = stage.existing("server-1");
    let pinned = stage.pinned(STICKY, "server-1", 110);
    pages[0].is_slow.store(true, Ordering::Release);
    stage.serving[0].iter().for_each(Origin::hold);
    existing.stream().write_all(b"answer me").expect("it is taken");
    stage.until(1, HealthStatus::Down);
    assert_eq!(stage.relay.server("web", "server-1").reason, "port 8080: no response within 1 s");
    assert_eq!(stage.new_clients(), names(&["server-2"]));
    assert_eq!(stage.come_back(pinned, STICKY), "server-2");
    stage.serving[0].iter().for_each(Origin::release);
    let mut answer = [0; 9];
    existing.stream().read_exact(&mut answer).expect("late, but it comes");
    assert_eq!(&answer, b"answer me");
    existing.echo(b"and goes on").expect("the connection stays");
    assert_eq!(stage.relay.server("web", "server-1").health, HealthStatus::Down);
    stage.relay.stop();
}

#[test]
fn a_slow_server_keeps_its_connections_and_gets_no_new_ones_on_the_stream_plane() {
    on(a_slow_server_keeps_its_connections_and_gets_no_new_ones_on_the_stream_plane, Plane::Stream, is_slow);
}

#[test]
fn a_slow_server_keeps_its_connections_and_gets_no_new_ones_on_the_packet_plane() {
    on(a_slow_server_keeps_its_connections_and_gets_no_new_ones_on_the_packet_plane, Plane::Packet, is_slow);
}

fn is_drained(lab: &TestLab, plane: Plane) {
    let mut stage = Stage::start(lab, plane, "");
    let mut existing = stage.existing("server-1");
    let pinned = stage.pinned(STICKY, "server-1", 110);
    let faithful = stage.pinned(FAITHFUL, "server-1", 120);
    stage.reload(&[(1, "admin = \"drain\"\n"), (2, "")]);
    assert_eq!(stage.new_clients(), names(&["server-2"]));
    assert_eq!(stage.come_back(pinned, STICKY), "server-2");
    assert_eq!(stage.come_back(faithful, FAITHFUL), "server-1", "enter_draining lets it in");
    existing.echo(b"undisturbed").expect("it goes on");
    let server = stage.relay.server("web", "server-1");
    assert_eq!((server.admin.as_str(), server.connections), ("drain", 1));
    existing.close().expect("a clean end");
    eventually("nobody is left", || (stage.relay.server("web", "server-1").connections == 0).then_some(()));
    stage.relay.stop();
}

#[test]
fn a_server_drained_by_the_file_keeps_its_connections_on_the_stream_plane() {
    on(a_server_drained_by_the_file_keeps_its_connections_on_the_stream_plane, Plane::Stream, is_drained);
}

#[test]
fn a_server_drained_by_the_file_keeps_its_connections_on_the_packet_plane() {
    on(a_server_drained_by_the_file_keeps_its_connections_on_the_packet_plane, Plane::Packet, is_drained);
}

fn is_halted(lab: &TestLab, plane: Plane) {
    let mut stage = Stage::start(lab, plane, "");
    let mut existing = stage.existing("server-1");
    let mut other = stage.existing("server-2");
    let pinned = stage.pinned(STICKY, "server-1", 110);
    let faithful = stage.pinned(FAITHFUL, "server-1", 120);
    stage.reload(&[(1, "admin = \"halt\"\n"), (2, "")]);
    let told = existing.end().expect_err("no clean end").kind();
    assert_eq!(told, ErrorKind::ConnectionReset);
    assert_eq!(stage.new_clients(), names(&["server-2"]));
    assert_eq!(stage.come_back(pinned, STICKY), "server-2");
    assert_eq!(stage.come_back(faithful, FAITHFUL), "server-2", "enter_draining is about draining alone");
    other.echo(b"undisturbed").expect("clients of the other server go on");
    eventually("it is counted", || (stage.ended("server_halted") == 1).then_some(()));
    assert_eq!(stage.relay.server("web", "server-1").connections, 0);
    stage.relay.stop();
}

#[test]
fn a_server_halted_by_the_file_loses_its_clients_on_the_stream_plane() {
    on(a_server_halted_by_the_file_loses_its_clients_on_the_stream_plane, Plane::Stream, is_halted);
}

#[test]
fn a_server_halted_by_the_file_loses_its_clients_on_the_packet_plane() {
    on(a_server_halted_by_the_file_loses_its_clients_on_the_packet_plane, Plane::Packet, is_halted);
}

fn is_removed(lab: &TestLab, plane: Plane) {
    let mut stage = Stage::start(lab, plane, "");
    let mut existing = stage.existing("server-1");
    let pinned = stage.pinned(STICKY, "server-1", 110);
    stage.reload(&[(2, "")]);
    assert_eq!(stage.new_clients(), names(&["server-2"]));
    assert_eq!(stage.come_back(pinned, STICKY), "server-2");
    existing.echo(b"undisturbed").expect("it goes on");
    let leaving = stage.relay.status().leaving;
    let told: Vec<(&str, u32)> = leaving.iter().map(|server| (server.name.as_str(), server.connections)).collect();
    assert_eq!(told, [("server-1", 1)]);
    existing.close().expect("a clean end");
    stage.relay.until("nobody is left", |status| status.leaving.is_empty());
    stage.relay.stop();
}

#[test]
fn a_removed_server_keeps_its_connections_until_they_end_on_the_stream_plane() {
    on(a_removed_server_keeps_its_connections_until_they_end_on_the_stream_plane, Plane::Stream, is_removed);
}

#[test]
fn a_removed_server_keeps_its_connections_until_they_end_on_the_packet_plane() {
    on(a_removed_server_keeps_its_connections_until_they_end_on_the_packet_plane, Plane::Packet, is_removed);
}

fn returns(lab: &TestLab, plane: Plane) {
    let mut checked = [1, 2].map(|n| Some(Origin::tcp(lab.server(n), CHECKED)));
    let stage = Stage::start(lab, plane, FAST_CHECK);
    let (mut on_first, mut on_second) = (stage.existing("server-1"), stage.existing("server-2"));
    let pinned = stage.pinned(STICKY, "server-1", 110);
    let absent = stage.pinned(STICKY, "server-1", 120);
    checked[0] = None;
    stage.until(1, HealthStatus::Down);
    assert_eq!(stage.come_back(pinned, STICKY), "server-2");
    checked[0] = Some(Origin::tcp(lab.server(1), CHECKED));
    stage.until(1, HealthStatus::Up);
    assert_eq!(stage.new_clients(), names(&["server-1", "server-2"]));
    for _ in 0..3 {
        assert_eq!(stage.come_back(pinned, STICKY), "server-2", "nobody is moved a second time");
        assert_eq!(stage.come_back(absent, STICKY), "server-1", "who was not there meanwhile has not been moved");
    }
    for connection in [&mut on_first, &mut on_second] {
        connection.echo(b"all the time").expect("connections that were open stay where they are");
    }
    stage.relay.stop();
}

#[test]
fn a_server_that_returns_gets_new_clients_and_moves_nobody_on_the_stream_plane() {
    on(a_server_that_returns_gets_new_clients_and_moves_nobody_on_the_stream_plane, Plane::Stream, returns);
}

#[test]
fn a_server_that_returns_gets_new_clients_and_moves_nobody_on_the_packet_plane() {
    on(a_server_that_returns_gets_new_clients_and_moves_nobody_on_the_packet_plane, Plane::Packet, returns);
}

fn nobody_is_left(lab: &TestLab, plane: Plane) {
    let mut checked = [1, 2].map(|n| Some(Origin::tcp(lab.server(n), CHECKED)));
    let stage = Stage::start(lab, plane, FAST_CHECK);
    let mut existing = stage.existing("server-1");
    let pinned = stage.pinned(STICKY, "server-1", 110);
    checked.iter_mut().for_each(|origin| *origin = None);
    stage.until(1, HealthStatus::Down);
    stage.until(2, HealthStatus::Down);
    assert_eq!(stage.relay.service("web").state, ServiceState::Down);
    let before = stage.ended("no_server");
    match plane {
        Plane::Stream => {
            assert!(is_refused(lab.client(), (stage.vip, NEW)));
            assert!(is_refused_from(lab.client(), pinned, (stage.vip, STICKY)));
        }
        Plane::Packet => {
            for opened in [
                Connection::open(lab.client(), (stage.vip, NEW)),
                Connection::open_from(lab.client(), pinned, (stage.vip, STICKY)),
            ] {
                assert_eq!(opened.expect_err("nobody serves").kind(), ErrorKind::ConnectionRefused);
            }
        }
    }
    eventually("it is counted", || (stage.ended("no_server") == before + 1).then_some(()));
    existing.echo(b"still there").expect("what is open goes on");

    for n in [1, 2] {
        checked[n - 1] = Some(Origin::tcp(lab.server(n), CHECKED));
        stage.until(n, HealthStatus::Up);
    }
    assert_eq!(stage.new_clients(), names(&["server-1", "server-2"]));
    for _ in 0..3 {
        assert_eq!(stage.come_back(pinned, STICKY), "server-1", "its entry has stayed");
    }
    stage.relay.stop();
}

#[test]
fn without_a_server_clients_are_refused_and_connections_go_on_on_the_stream_plane() {
    on(without_a_server_clients_are_refused_and_connections_go_on_on_the_stream_plane, Plane::Stream, nobody_is_left);
}

#[test]
fn without_a_server_clients_are_refused_and_connections_go_on_on_the_packet_plane() {
    on(without_a_server_clients_are_refused_and_connections_go_on_on_the_packet_plane, Plane::Packet, nobody_is_left);
}

/// The service has as many connections as it may have, and no queue.
fn is_full(lab: &TestLab, plane: Plane) {
    let limit = match plane {
        Plane::Stream => "max_connections = 1\n",
        Plane::Packet => "max_connections = 1\noverload = \"reset\"\n",
    };
    let stage = Stage::start(lab, plane, limit);
    let pinned = stage.pinned_alone("server-1");
    let mut existing = stage.served(None, NEW);
    let mut returned = stage.served(Some(pinned), STICKY);
    let is_turned_away = |from: IpAddr, port: u16| match plane {
        Plane::Stream => is_refused_from(lab.client(), from, (stage.vip, port)),
        Plane::Packet => Connection::open_from(lab.client(), from, (stage.vip, port))
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused),
    };
    assert!(is_turned_away(lab.client().ipv4().into(), NEW));
    assert!(is_turned_away(pinned, STICKY), "coming back gives no right to a place");
    for name in ["web", "desk"] {
        eventually("it is counted", || (stage.relay.service(name).terminations["service_full"] == 1).then_some(()));
    }
    existing.echo(b"undisturbed").expect("who is served goes on");
    returned.echo(b"undisturbed").expect("who is served goes on");
    existing.close().expect("an orderly end");
    returned.close().expect("an orderly end");
    stage.relay.until("there is room", |status| status.services.iter().all(|service| service.connections == 0));
    assert!(names(&["server-1", "server-2"]).contains(&who(lab.client(), (stage.vip, NEW))));
    assert_eq!(stage.come_back(pinned, STICKY), "server-1", "the entry has stayed");
    stage.relay.stop();
}

#[test]
fn a_service_at_its_limit_turns_clients_away_and_keeps_its_connections_on_the_stream_plane() {
    on(a_service_at_its_limit_turns_clients_away_and_keeps_its_connections_on_the_stream_plane, Plane::Stream, is_full);
}

#[test]
fn a_service_at_its_limit_turns_clients_away_and_keeps_its_connections_on_the_packet_plane() {
    on(a_service_at_its_limit_turns_clients_away_and_keeps_its_connections_on_the_packet_plane, Plane::Packet, is_full);
}

#[test]
fn a_full_queue_turns_clients_away_and_keeps_who_waits_and_who_is_served() {
    in_lab(a_full_queue_turns_clients_away_and_keeps_who_waits_and_who_is_served, Topology::TwoArm, 2, |lab| {
        let stage = Stage::start(lab, Plane::Stream, "max_connections = 1\nqueue = 1\nqueue_timeout = \"60s\"\n");
        let pinned = stage.pinned_alone("server-1");
        let mut existing = stage.served(None, NEW);
        let returned = stage.served(Some(pinned), STICKY);
        let mut waiting = [(lab.client().ipv4().into(), NEW), (pinned, STICKY)]
            .map(|(from, port)| Connection::open_from(lab.client(), from, (stage.vip, port)).expect("it may wait"));
        stage.relay.until("they wait", |status| {
            let waits = |place: usize| status.services[place].queue.as_ref().is_some_and(|queue| queue.waiting == 1);
            waits(0) && waits(1)
        });
        assert!(is_refused(lab.client(), (stage.vip, NEW)));
        assert!(is_refused_from(lab.client(), pinned, (stage.vip, STICKY)));
        for name in ["web", "desk"] {
            eventually("it is counted", || (stage.relay.service(name).terminations["queue_full"] == 1).then_some(()));
        }
        existing.echo(b"undisturbed").expect("who is served goes on");
        existing.close().expect("an orderly end");
        returned.close().expect("an orderly end");
        let [new, back] = waiting.each_mut().map(|connection| connection.greeting().expect("its turn").name);
        assert!(names(&["server-1", "server-2"]).contains(&new));
        assert_eq!(back, "server-1", "the entry has stayed");
        stage.relay.stop();
    });
}

#[test]
fn who_finds_no_place_on_the_packet_plane_waits_by_its_own_syn() {
    in_lab(who_finds_no_place_on_the_packet_plane_waits_by_its_own_syn, Topology::TwoArm, 2, |lab| {
        let stage = Stage::start(lab, Plane::Packet, "max_connections = 1\n");
        let pinned = stage.pinned_alone("server-1");
        let mut existing = stage.served(None, NEW);
        let returned = stage.served(Some(pinned), STICKY);
        thread::scope(|scope| {
            let vip = stage.vip;
            let new = scope.spawn(move || who(lab.client(), (vip, NEW)));
            let back = scope.spawn(move || who_from(lab.client(), pinned, (vip, STICKY)));
            for name in ["web", "desk"] {
                let full = || stage.relay.service(name).terminations["service_full"];
                eventually("it finds no place", || (full() > 0).then_some(()));
            }
            assert!(!new.is_finished() && !back.is_finished(), "nobody has answered them");
            existing.echo(b"undisturbed").expect("who is served goes on");
            existing.close().expect("an orderly end");
            returned.close().expect("an orderly end");
            new.join().expect("its next SYN is answered");
            assert_eq!(back.join().expect("its next SYN is answered"), "server-1", "the entry has stayed");
        });
        stage.relay.stop();
    });
}
