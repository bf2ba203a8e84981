//! What holds at the limits of servers and services: minimum and maximum, the queue before them, and what clients are told who find no place.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use towpath_engine::Status;
use towpath_engine::status::{HealthStatus, QueueStatus, ServiceStatus};
use towpath_tests::pki::Pki;
use towpath_tests::web::{WebClient, WebOrigin};
use towpath_tests::{
    Connection, Host, Origin, Subject, TestLab, Topology, in_lab, ipv4, is_refused, packet_service, service, subject,
    who,
};

/// A service "web" on port 443 whose servers have these keys.
fn limited(lab: &TestLab, keys: &str, of_servers: &str) -> (Ipv4Addr, String) {
    let vip = lab.vip(100);
    let text = service("web", vip, "443", keys, &ipv4(lab.servers()));
    (vip, text.replace("[[service.server]]", &format!("[[service.server]]\n{of_servers}")))
}

fn queue(status: &Status) -> QueueStatus {
    status.services[0].queue.clone().expect("it has a queue")
}

/// Opens a connection that has to wait, as so-manieth.
#[track_caller]
fn line_up(lab: &TestLab, relay: &Subject, vip: Ipv4Addr, place: usize) -> Connection {
    let connection = Connection::open(lab.client(), (vip, 443)).expect("a connection");
    relay.until(&format!("{place} wait"), |status| queue(status).waiting == place);
    connection
}

#[track_caller]
fn served(lab: &TestLab, vip: Ipv4Addr) -> Connection {
    let mut connection = Connection::open(lab.client(), (vip, 443)).expect("a connection");
    connection.greeting().expect("a server");
    connection
}

fn ended(web: &ServiceStatus, termination: &str) -> u64 {
    web.terminations[termination]
}

#[test]
fn connections_wait_in_the_order_they_came_over_all_workers() {
    in_lab(connections_wait_in_the_order_they_came_over_all_workers, Topology::TwoArm, 1, |lab| {
        let _origin = Origin::tcp(lab.server(1), 443);
        let (vip, text) = limited(lab, "queue = 6\nqueue_timeout = \"60s\"", "max_connections = 1");
        let relay = subject!().start(lab.balancer(), &text);
        let mut holder = served(lab, vip);
        let mut waiting: Vec<Connection> = (1..=6).map(|place| line_up(lab, &relay, vip, place)).collect();
        assert!(is_refused(lab.client(), (vip, 443)), "as many wait as may");
        holder.echo(b"whoever has a server keeps it").expect("an echo");
        let status = relay.until("time goes by", |status| queue(status).longest_ms > 0);
        let web = &status.services[0];
        assert_eq!((queue(&status).max, queue(&status).timeout_ms, web.connections), (6, 60_000, 1), "{web:?}");
        for left in (0..6).rev() {
            drop(holder);
            let mut next = waiting.remove(0);
            next.greeting().expect("its turn");
            next.echo(b"and it is relayed").expect("an echo");
            let status = relay.until("one less waits", |status| queue(status).waiting == left);
            let web = &status.services[0];
            assert_eq!((web.connections, web.counters["queue_served"]), (1, 6 - left as u64), "nobody else: {web:?}");
            holder = next;
        }
        drop(holder);
        let status = relay.until("all have ended", |status| status.services[0].connections == 0);
        let web = &status.services[0];
        assert_eq!((ended(web, "queue_full"), web.counters["queued"], web.counters["opened"]), (1, 6, 7), "{web:?}");
        assert!(web.counters["queue_waited_milliseconds"] > 0);
        relay.stop();
    });
}

#[test]
fn who_waits_too_long_is_reset_and_who_leaves_makes_room() {
    in_lab(who_waits_too_long_is_reset_and_who_leaves_makes_room, Topology::TwoArm, 1, |lab| {
        let _origin = Origin::tcp(lab.server(1), 443);
        let keys = "queue = 1\nqueue_timeout = \"60s\"";
        let (vip, text) = limited(lab, keys, "max_connections = 1");
        let mut relay = subject!().start(lab.balancer(), &text);
        let holder = served(lab, vip);
        // With a reset, and with an end before anything was said.
        line_up(lab, &relay, vip, 1).reset().expect("a reset");
        relay.until("it has left", |status| queue(status).waiting == 0);
        drop(line_up(lab, &relay, vip, 1));
        relay.until("it has left", |status| ended(&status.services[0], "queue_left") == 2);
        // Whoever has said something may have said all: its end is none.
        let mut said_all = line_up(lab, &relay, vip, 1);
        said_all.stream().write_all(b"all that I say").expect("it leaves");
        said_all.stream().shutdown(Shutdown::Write).expect("an end of the stream");
        // Longer than it takes until somebody looks after it.
        relay.until("it waits on", |status| queue(status).longest_ms > 1_500);
        drop(holder);
        said_all.greeting().expect("its turn");
        assert_eq!(said_all.end().expect("an orderly end"), b"all that I say");
        relay.until("it has ended", |status| status.services[0].connections == 0);

        relay.reload(&text.replace("60s", "200ms")).expect("a reload");
        let _holder = served(lab, vip);
        let mut late = Connection::open(lab.client(), (vip, 443)).expect("a connection");
        assert!(late.is_ended(), "it has waited long enough");
        let web = relay.service("web");
        assert_eq!((ended(&web, "queue_timed_out"), ended(&web, "queue_left")), (1, 2), "{web:?}");
        relay.stop();
    });
}

#[test]
fn a_server_that_returns_or_has_more_room_takes_from_the_queue() {
    in_lab(a_server_that_returns_or_has_more_room_takes_from_the_queue, Topology::TwoArm, 2, |lab| {
        let _first = Origin::tcp(lab.server(1), 443);
        let health = "health = { check = \"tcp\", interval = \"100ms\", rise = 1, fall = 1 }";
        let keys = format!("queue = 9\nqueue_timeout = \"60s\"\n{health}");
        let (vip, text) = limited(lab, &keys, "max_connections = 1");
        let mut relay = subject!().start(lab.balancer(), &text);
        relay.until("one of them is up", |status| {
            let healths: Vec<HealthStatus> = status.services[0].servers.iter().map(|server| server.health).collect();
            healths == [HealthStatus::Up, HealthStatus::Down]
        });
        let _holder = served(lab, vip);
        let mut waiting: Vec<Connection> = (1..=3).map(|place| line_up(lab, &relay, vip, place)).collect();
        let _second = Origin::tcp(lab.server(2), 443);
        assert_eq!(waiting.remove(0).greeting().expect("its turn").name, "server-2");
        // Its connection has ended with that, so the next one had the place.
        assert_eq!(waiting[0].greeting().expect("its turn").name, "server-2");
        relay.until("one waits", |status| queue(status).waiting == 1);
        relay.reload(&text.replace("max_connections = 1", "max_connections = 2")).expect("a reload");
        waiting[1].greeting().expect("its turn");
        let status = relay.until("nobody waits", |status| queue(status).waiting == 0);
        assert_eq!(status.services[0].connections, 3);
        relay.stop();
    });
}

/// Requests for `/held` are answered once it is opened.
#[derive(Default)]
struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn pass(&self) {
        let is_open = self.is_open.lock().expect("nobody panics with it");
        drop(self.opened.wait_while(is_open, |is_open| !*is_open).expect("nobody panics with it"));
    }

    fn open(&self) {
        *self.is_open.lock().expect("nobody panics with it") = true;
        self.opened.notify_all();
    }
}

/// A web service with these keys and those of its HTTP mode, before one server that takes so many requests at a time.
fn web(lab: &TestLab, max: u32, keys: &str, http: &str) -> (Ipv4Addr, Subject, WebOrigin, Arc<Gate>) {
    let vip = lab.vip(100);
    let gate = Arc::new(Gate::default());
    let manners = Arc::clone(&gate);
    let origin = WebOrigin::start_like(lab.server(1), 80, Ok, move |head| {
        if head.contains(" /held") {
            manners.pass();
        }
        None
    });
    let keys = format!("{keys}\n[service.http]\n{http}");
    let text = service("web", vip, "80", &keys, &ipv4(lab.servers()));
    let text = text.replace("[[service.server]]", &format!("[[service.server]]\nmax_connections = {max}"));
    (vip, subject!().start(lab.balancer(), &text), origin, gate)
}

fn open(lab: &TestLab, vip: Ipv4Addr) -> WebClient {
    WebClient::open(lab.client(), (vip, 80))
}

#[test]
fn requests_wait_and_who_finds_no_place_is_told_when_to_come_back() {
    in_lab(requests_wait_and_who_finds_no_place_is_told_when_to_come_back, Topology::TwoArm, 1, |lab| {
        let (vip, relay, origin, gate) = web(lab, 1, "queue = 2\nqueue_timeout = \"60s\"", "retry_after = \"7s\"");
        let mut first = open(lab, vip);
        first.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n");
        relay.until("it is under way", |status| status.services[0].connections == 1);
        let mut others: Vec<WebClient> = Vec::new();
        for (place, path) in [(1, "/second"), (2, "/third")] {
            let mut client = open(lab, vip);
            client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
            relay.until(&format!("{place} wait"), |status| queue(status).waiting == place);
            others.push(client);
        }
        let mut refused = open(lab, vip);
        let answer = refused.get("/");
        assert_eq!((answer.status, answer.field("retry-after")), (503, Some("7")));
        gate.open();
        // The connection is none the worse for it; and those that wait are served though the first client keeps its connection.
        for client in std::iter::once(&mut first).chain(&mut others) {
            assert_eq!(client.response("GET").expect("an answer").status, 200);
        }
        assert_eq!(refused.get("/fourth").status, 200);
        let heads: Vec<String> = origin.requests().into_iter().map(|request| request.head).collect();
        let asked: Vec<&str> = heads.iter().filter_map(|head| head.split(' ').nth(1)).collect();
        assert_eq!(asked, ["/held", "/second", "/third", "/fourth"]);
        let web = relay.service("web");
        assert!(web.counters["queued"] >= 2 && web.counters["unserved"] == 1, "{web:?}");
        relay.stop();
    });
}

#[test]
fn a_request_that_waits_too_long_is_answered_and_one_whose_client_has_gone_is_not_sent() {
    let test = a_request_that_waits_too_long_is_answered_and_one_whose_client_has_gone_is_not_sent;
    in_lab(test, Topology::TwoArm, 1, |lab| {
        let (vip, relay, origin, gate) = web(lab, 1, "queue = 4\nqueue_timeout = \"8s\"", "");
        let mut first = open(lab, vip);
        first.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n");
        relay.until("it is under way", |status| status.services[0].connections == 1);
        // One that has sent all it will, and one whose body is not even read on.
        for (place, request) in [
            "GET /gone HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
            format!("POST /gone HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{}", "x".repeat(50_000)),
        ]
        .into_iter()
        .enumerate()
        {
            let mut client = open(lab, vip);
            client.send(request);
            relay.until("one more waits", |status| status.services[0].counters["queued"] == place as u64 + 1);
            drop(client);
            relay.until("it has left", |status| ended(&status.services[0], "queue_left") == place as u64 + 1);
        }
        let mut waits = open(lab, vip);
        let answer = waits.get("/late");
        assert_eq!((answer.status, answer.field("retry-after")), (503, Some("5")));
        gate.open();
        assert_eq!(first.response("GET").expect("an answer").status, 200);
        // It may ask again by the same connection.
        assert_eq!(waits.get("/again").status, 200);
        let asked = origin.requests().into_iter().map(|request| request.head);
        assert!(asked.into_iter().all(|head| !head.contains("/gone") && !head.contains("/late")));
        relay.stop();
    });
}

#[test]
#[ignore = "needs the Debian package curl"]
fn streams_of_http2_wait_each_for_itself() {
    in_lab(streams_of_http2_wait_each_for_itself, Topology::TwoArm, 1, |lab| {
        let _origin = WebOrigin::start(lab.server(1), 443);
        let (pki, vip) = (Pki::new(), lab.vip(100));
        let text = pki.service(vip, "terminate", "", &ipv4(lab.servers()));
        let keys = "queue = 20\nqueue_timeout = \"60s\"\n[service.http]\nhttp2 = true\n[service.tls]";
        let text = text.replace("[service.tls]", keys);
        let text = text.replace("[[service.server]]", "[[service.server]]\nmax_connections = 2");
        let relay = subject!().start(lab.balancer(), &format!("[tls]\nthreads = 0\n{text}"));
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--insecure", "--max-time", "120", "--parallel", "--http2"]);
        curl.args(["--write-out", "%{http_code} %{http_version}\n"]);
        for _ in 0..8 {
            curl.args(["--output", "/dev/null"]).arg(format!("https://{vip}/slow/100"));
        }
        let said = said(lab.client(), curl);
        assert_eq!(said, "200 2\n".repeat(8));
        let web = relay.service("web");
        assert!(web.counters["queued"] > 0 && web.counters["queued"] == web.counters["queue_served"], "{web:?}");
        relay.stop();
    });
}

fn said(host: &Host, mut command: Command) -> String {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = host.spawn(command).expect("a command");
    let mut said = String::new();
    child.process().stdout.take().expect("a pipe").read_to_string(&mut said).expect("text");
    child.process().wait().expect("an end");
    said
}

const POOL: &str = "source = \"vip\"";

fn packets(lab: &TestLab, keys: &str, of_servers: &str) -> (Ipv4Addr, Subject) {
    let vip = lab.free_vip(101);
    let text = packet_service("web", vip, "443", &format!("{POOL}\n{keys}"), &ipv4(lab.servers()));
    let text = text.replace("[[service.server]]", &format!("[[service.server]]\n{of_servers}"));
    (vip, subject!().start(lab.balancer(), &format!("[limits]\nflows = 16384\n{text}")))
}

#[test]
fn on_the_packet_plane_the_clients_own_syn_is_the_queue() {
    in_lab(on_the_packet_plane_the_clients_own_syn_is_the_queue, Topology::TwoArm, 1, |lab| {
        let _origin = Origin::tcp(lab.server(1), 443);
        let (vip, relay) = packets(lab, "", "max_connections = 1");
        let holder = served(lab, vip);
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                let asked = Connection::open(lab.client(), (vip, 443));
                let greeted = asked.and_then(|mut connection| connection.greeting());
                tell.send(greeted.map(|greeting| greeting.name)).expect("somebody listens");
            });
            let full = |status: &Status| ended(&status.services[0], "servers_full");
            relay.until("it was refused once", |status| full(status) > 0);
            assert!(told.recv_timeout(Duration::from_millis(100)).is_err(), "it got no answer");
            holder.close().expect("an orderly end");
            let name = told.recv_timeout(Duration::from_secs(60)).expect("an end").expect("its SYN was sent again");
            assert_eq!(name, "server-1");
        });
        relay.stop();
    });
}

#[test]
fn on_the_packet_plane_clients_are_reset_where_the_operator_wants_it() {
    in_lab(on_the_packet_plane_clients_are_reset_where_the_operator_wants_it, Topology::TwoArm, 1, |lab| {
        let _origin = Origin::tcp(lab.server(1), 443);
        let (vip, relay) = packets(lab, "overload = \"reset\"\nmax_connections = 3", "max_connections = 9");
        let held: Vec<Connection> = (0..3).map(|_| served(lab, vip)).collect();
        let refused = Connection::open(lab.client(), (vip, 443)).expect_err("a reset");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        assert_eq!(ended(&relay.service("web"), "service_full"), 1);
        drop(held);
        relay.until("all have ended", |status| status.services[0].connections == 0);
        assert_eq!(who(lab.client(), (vip, 443)), "server-1");
        relay.stop();
    });
}

/// Opens `count` connections at the same time from several threads; those that were served.
fn rush(lab: &TestLab, vip: Ipv4Addr, count: usize) -> Vec<Connection> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|_| {
                scope.spawn(move || {
                    let mut connection = Connection::open(lab.client(), (vip, 443)).ok()?;
                    connection.greeting().ok()?;
                    Some(connection)
                })
            })
            .collect();
        threads.into_iter().filter_map(|thread| thread.join().expect("no panic")).collect()
    })
}

#[test]
fn no_more_than_the_maximum_are_served_over_all_workers_on_either_plane() {
    in_lab(no_more_than_the_maximum_are_served_over_all_workers_on_either_plane, Topology::TwoArm, 2, |lab| {
        let _origins = [1, 2].map(|number| Origin::tcp(lab.server(number), 443));
        let (vip, text) = limited(lab, "", "max_connections = 3");
        let relay = subject!().start(lab.balancer(), &text);
        assert_eq!(rush(lab, vip, 24).len(), 6);
        relay.until("none is counted any more", |status| status.services[0].connections == 0);
        let web = relay.service("web");
        assert_eq!((ended(&web, "servers_full"), web.counters["opened"]), (18, 6), "{web:?}");
        relay.stop();
        let (vip, relay) = packets(lab, "overload = \"reset\"", "max_connections = 3");
        assert_eq!(rush(lab, vip, 24).len(), 6);
        relay.until("none is counted any more", |status| status.services[0].connections == 0);
        relay.stop();
    });
}

/// The first server has no minimum, the second one of 4.
fn fill(lab: &TestLab, vip: Ipv4Addr) {
    let open = || {
        let mut connection = Connection::open(lab.client(), (vip, 443)).expect("a connection");
        let name = connection.greeting().expect("a server").name;
        (name, connection)
    };
    let held: Vec<(String, Connection)> = (0..6).map(|_| open()).collect();
    let names: Vec<&str> = held.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names[..4], ["server-2"; 4]);
    assert_eq!(names[4..], ["server-1"; 2], "the least loaded from then on");
}

#[test]
fn a_server_is_filled_to_its_minimum_first_on_either_plane() {
    in_lab(a_server_is_filled_to_its_minimum_first_on_either_plane, Topology::TwoArm, 2, |lab| {
        let _origins = [1, 2].map(|number| Origin::tcp(lab.server(number), 443));
        let (vip, text) = limited(lab, "", "");
        let relay = subject!().start(lab.balancer(), &format!("{text}min_connections = 4\n"));
        fill(lab, vip);
        assert_eq!(relay.server("web", "server-2").connections_min, 4);
        relay.stop();
        let vip = lab.free_vip(101);
        let text = packet_service("web", vip, "443", POOL, &ipv4(lab.servers()));
        let text = format!("[limits]\nflows = 16384\n{text}min_connections = 4\n");
        let relay = subject!().start(lab.balancer(), &text);
        fill(lab, vip);
        relay.stop();
    });
}

#[test]
fn as_many_connections_that_do_nothing_give_way_as_requests_wait() {
    in_lab(as_many_connections_that_do_nothing_give_way_as_requests_wait, Topology::TwoArm, 1, |lab| {
        let (vip, relay, _origin, gate) = web(lab, 3, "queue = 9\nqueue_timeout = \"60s\"", "");
        let mut idle: Vec<WebClient> = (0..3).map(|_| open(lab, vip)).collect();
        idle.iter_mut().for_each(|client| assert_eq!(client.get("/").status, 200));
        let mut busy: Vec<WebClient> = (0..3).map(|_| open(lab, vip)).collect();
        busy.iter_mut().for_each(|client| client.send("GET /held HTTP/1.1\r\nHost: a\r\n\r\n"));
        let status = relay.until("all are under way at the same time", |status| {
            let web = &status.services[0];
            web.counters["opened"] == 6 && web.connections == 3 && queue(status).waiting == 0
        });
        // Each worker gives way to those that wait, so that the last one may find a place at once.
        let served = status.services[0].counters["queue_served"];
        assert!((1..=3).contains(&served), "{served} of the queue");
        gate.open();
        busy.iter_mut().for_each(|client| assert_eq!(client.response("GET").expect("an answer").status, 200));
        idle.iter_mut().for_each(|client| assert_eq!(client.get("/").status, 200));
        relay.stop();
    });
}

/// A client that has been there, and a service that is full of others since.
const COMES_BACK: &str = "persistence = { by = \"source-ip\", timeout = \"30m\" }\nmax_connections = 1";

#[test]
fn who_comes_back_to_a_full_service_waits_as_anybody_on_the_stream_plane() {
    in_lab(who_comes_back_to_a_full_service_waits_as_anybody_on_the_stream_plane, Topology::TwoArm, 2, |lab| {
        let _origins = [1, 2].map(|number| Origin::tcp(lab.server(number), 443));
        let (vip, text) = limited(lab, &format!("{COMES_BACK}\nqueue = 1\nqueue_timeout = \"60s\""), "");
        let relay = subject!().start(lab.balancer(), &text);
        let home = who(lab.client(), (vip, 443));
        relay.until("it is over", |status| status.services[0].connections == 0);
        let mut other = Connection::open_from(lab.client(), lab.second_client(120), (vip, 443)).expect("a connection");
        other.greeting().expect("a server");
        let mut back = line_up(lab, &relay, vip, 1);
        assert!(is_refused(lab.client(), (vip, 443)), "the queue is full");
        other.echo(b"goes on").expect("an echo");
        drop(other);
        assert_eq!(back.greeting().expect("its turn").name, home, "its entry is still there");
        relay.stop();
    });
}

#[test]
fn who_comes_back_to_a_full_service_fares_as_anybody_on_the_packet_plane() {
    in_lab(who_comes_back_to_a_full_service_fares_as_anybody_on_the_packet_plane, Topology::TwoArm, 2, |lab| {
        let _origins = [1, 2].map(|number| Origin::tcp(lab.server(number), 443));
        let (vip, relay) = packets(lab, &format!("overload = \"reset\"\n{COMES_BACK}"), "");
        let home = who(lab.client(), (vip, 443));
        relay.until("it is over", |status| status.services[0].connections == 0);
        let mut other = Connection::open_from(lab.client(), lab.second_client(120), (vip, 443)).expect("a connection");
        other.greeting().expect("a server");
        let refused = Connection::open(lab.client(), (vip, 443)).expect_err("a reset");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        other.echo(b"goes on").expect("an echo");
        other.close().expect("an orderly end");
        relay.until("it is over", |status| status.services[0].connections == 0);
        assert_eq!(who(lab.client(), (vip, 443)), home, "its entry is still there");
        relay.stop();
    });
}
