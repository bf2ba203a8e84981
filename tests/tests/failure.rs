//! A server fails: its service stops, or its cable is pulled.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use towpath_engine::status::HealthStatus;
use towpath_tests::{
    Connection, Origin, PATIENCE, Subject, TestLab, Topology, eventually, in_lab, ipv4, service, subject, who,
};

fn config(lab: &TestLab, vip: Ipv4Addr, keys: &str) -> String {
    service("sip", vip, "5061", &format!("balance = \"round-robin\"\n{keys}"), &ipv4(lab.servers()))
}

#[test]
fn t_05_a_stopped_service_is_left_at_once_and_evicted_with_the_reason() {
    in_lab(t_05_a_stopped_service_is_left_at_once_and_evicted_with_the_reason, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let [first, _second] = [1, 2].map(|n| Origin::tcp(lab.server(n), 5061));
        let keys = "health = { check = \"tcp\", interval = \"500ms\", timeout = \"1s\", rise = 1, fall = 2 }";
        let relay = subject!().start(lab.balancer(), &config(lab, vip, keys));
        relay.until_all_up();
        let mut held: Vec<Connection> = Vec::new();
        let mut on_first = None;
        for _ in 0..2 {
            let mut connection = Connection::open(lab.client(), (vip, 5061)).expect("the relay listens");
            match connection.greeting().expect("a greeting").name.as_str() {
                "server-1" => on_first = Some(connection),
                _ => held.push(connection),
            }
        }
        let mut on_first = on_first.expect("round robin reaches both");

        first.stop();
        // Before any check can have failed twice.
        assert_eq!(relay.server("sip", "server-1").health, HealthStatus::Up);
        for _ in 0..4 {
            assert_eq!(who(lab.client(), (vip, 5061)), "server-2");
        }
        assert!(on_first.is_ended(), "the client of the stopped server is told");
        held[0].echo(b"undisturbed").expect("the client of the other server goes on");
        assert!(relay.service("sip").counters["redispatched"] > 0);

        relay.until("server-1 is down", |status| status.services[0].servers[0].health == HealthStatus::Down);
        let down = relay.server("sip", "server-1");
        assert_eq!(down.reason, "port 5061: connection refused");
        let redispatched = relay.service("sip").counters["redispatched"];
        for _ in 0..4 {
            assert_eq!(who(lab.client(), (vip, 5061)), "server-2");
        }
        assert_eq!(
            relay.service("sip").counters["redispatched"],
            redispatched,
            "nobody is sent to a server that is down"
        );

        let _back = Origin::tcp(lab.server(1), 5061);
        relay.until("server-1 is up", |status| status.services[0].servers[0].health == HealthStatus::Up);
        let served: Vec<String> = (0..4).map(|_| who(lab.client(), (vip, 5061))).collect();
        assert!(served.contains(&"server-1".to_owned()), "{served:?}");
        relay.stop();
    });
}

#[test]
fn t_06_a_silent_server_is_redispatched_after_connect_timeout() {
    in_lab(t_06_a_silent_server_is_redispatched_after_connect_timeout, Topology::TwoArm, 2, |lab| {
        let vip = lab.vip(100);
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 5061));
        // No check: only the connects themselves can tell.
        let relay = subject!().start(lab.balancer(), &config(lab, vip, "connect_timeout = \"200ms\""));
        for _ in 0..2 {
            who(lab.client(), (vip, 5061));
        }
        lab.server(1).link_down("back").expect("a plug to pull");
        let took: Vec<Duration> = (0..2)
            .map(|_| {
                let start = Instant::now();
                assert_eq!(who(lab.client(), (vip, 5061)), "server-2");
                start.elapsed()
            })
            .collect();
        let waited = took.iter().filter(|took| **took >= Duration::from_millis(200)).count();
        assert!(waited > 0, "{took:?}: nobody waited for server-1");
        // As many as were sent to server-1 first; a busy machine may make others slow as well.
        let redispatched = relay.service("sip").counters["redispatched"];
        assert!((1..=waited as u64).contains(&redispatched), "{redispatched} redispatched, {took:?}");
        relay.stop();
    });
}

#[test]
fn t_06_a_pulled_cable_evicts_within_the_checks_own_time() {
    in_lab(t_06_a_pulled_cable_evicts_within_the_checks_own_time, Topology::TwoArm, 2, |lab| {
        const INTERVAL_MS: u64 = 300;
        const TIMEOUT_MS: u64 = 200;
        const FALL: u64 = 3;
        // Between the plug and the first look at it, on a machine that does other things as well.
        const SLACK_MS: u64 = 500;
        let vip = lab.vip(100);
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 5061));
        let keys = format!(
            "connect_timeout = \"100ms\"\n\
             health = {{ check = \"tcp\", interval = {INTERVAL_MS}, timeout = {TIMEOUT_MS}, rise = 1, fall = {FALL} }}"
        );
        let relay = subject!().start(lab.balancer(), &config(lab, vip, &keys));
        relay.until_all_up();
        lab.server(1).link_down("back").expect("a plug to pull");
        let pulled_ms = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();

        let status =
            relay.until("server-1 is down", |status| status.services[0].servers[0].health == HealthStatus::Down);
        let server = &status.services[0].servers[0];
        assert_eq!(server.reason, format!("port 5061: no answer within {TIMEOUT_MS} ms"));
        let event = status.events.iter().rfind(|event| event.to == "down").expect("the event of it");
        let took_ms = u128::from(event.unix_ms).saturating_sub(pulled_ms);
        // The interval varies by a tenth.
        let bound_ms = INTERVAL_MS * 11 / 10 * FALL + TIMEOUT_MS + SLACK_MS;
        assert!(took_ms <= u128::from(bound_ms), "evicted after {took_ms} ms, should be within {bound_ms} ms");

        for _ in 0..4 {
            assert_eq!(who(lab.client(), (vip, 5061)), "server-2");
        }
        assert_eq!(relay.service("sip").counters["redispatched"], 0, "nobody is sent to a server that is down");

        lab.server(1).link_up("back").expect("a plug to put back");
        relay.until("server-1 is up", |status| status.services[0].servers[0].health == HealthStatus::Up);
        let served: Vec<String> = (0..2).map(|_| who(lab.client(), (vip, 5061))).collect();
        assert!(served.contains(&"server-1".to_owned()), "{served:?}");
        relay.stop();
    });
}

/// So that a lab takes little memory.
const LIMITS: &str = "[limits]\nflows = 16384\n";
const FAST_CHECK: &str = "health = { check = \"tcp\", interval = \"200ms\", timeout = \"200ms\", rise = 1, fall = 2 }";

/// The same service on either plane.
fn on_plane(lab: &TestLab, plane: &str, keys: &str) -> (Ipv4Addr, String) {
    let (vip, plane) = match plane {
        "packet" => {
            (lab.free_vip(100), format!("plane = \"packet\"\nsource = {{ pool = [\"{}\"] }}", lab.free_snat(101)))
        }
        _ => (lab.vip(100), String::new()),
    };
    (vip, format!("{LIMITS}{}", config(lab, vip, &format!("{plane}\n{FAST_CHECK}\n{keys}"))))
}

fn until_down(relay: &Subject) {
    relay.until("server-1 is down", |status| status.services[0].servers[0].health == HealthStatus::Down);
}

/// Two connections to each server; those of server-1 first.
fn two_each(lab: &TestLab, vip: Ipv4Addr) -> [Vec<Connection>; 2] {
    let mut held = [vec![], vec![]];
    for _ in 0..4 {
        let mut connection = Connection::open(lab.client(), (vip, 5061)).expect("somebody serves");
        let name = connection.greeting().expect("a greeting").name;
        connection.echo(b"before").expect("an echo");
        held[usize::from(name == "server-2")].push(connection);
    }
    assert_eq!(held.each_ref().map(Vec::len), [2, 2], "round robin reaches both");
    held
}

fn dropped_with_their_server(plane: &str, lab: &TestLab) {
    let (vip, config) = on_plane(lab, plane, "drop_on_failure = true\nidle_timeout = \"1h\"");
    let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 5061));
    let relay = subject!().start(lab.balancer(), &config);
    relay.until_all_up();
    let [on_first, mut on_second] = two_each(lab, vip);
    lab.server(1).link_down("back").expect("a plug to pull");
    let pulled = Instant::now();
    for connection in &on_first {
        // Lost with the cable.
        connection.stream().write_all(b"into the dark").expect("not told yet");
    }
    for mut connection in on_first {
        let told = connection.end().expect_err("no clean end").kind();
        assert_eq!(told, ErrorKind::ConnectionReset);
    }
    // Two checks of 200 ms that take 200 ms, and a machine that does other things as well.
    assert!(pulled.elapsed() < Duration::from_secs(3), "told after {:?}", pulled.elapsed());
    until_down(&relay);
    for connection in &mut on_second {
        connection.echo(b"undisturbed").expect("the clients of the other server go on");
    }
    for _ in 0..4 {
        assert_eq!(who(lab.client(), (vip, 5061)), "server-2");
    }
    eventually("both are counted", || (relay.service("sip").terminations["server_down"] == 2).then_some(()));
    assert_eq!(relay.server("sip", "server-1").connections, 0);
    relay.stop();
}

#[test]
fn t_06_drop_on_failure_resets_clients_of_a_dark_server_on_the_packet_plane() {
    in_lab(t_06_drop_on_failure_resets_clients_of_a_dark_server_on_the_packet_plane, Topology::TwoArm, 2, |lab| {
        dropped_with_their_server("packet", lab);
    });
}

#[test]
fn t_06_drop_on_failure_resets_clients_of_a_dark_server_on_the_stream_plane() {
    in_lab(t_06_drop_on_failure_resets_clients_of_a_dark_server_on_the_stream_plane, Topology::TwoArm, 2, |lab| {
        dropped_with_their_server("stream", lab);
    });
}

fn kept_until_their_own_timeout(plane: &str, lab: &TestLab) {
    let (vip, config) = on_plane(lab, plane, "idle_timeout = \"4s\"");
    let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 5061));
    let relay = subject!().start(lab.balancer(), &config);
    relay.until_all_up();
    let [on_first, _on_second] = two_each(lab, vip);
    lab.server(1).link_down("back").expect("a plug to pull");
    until_down(&relay);
    assert_eq!(relay.server("sip", "server-1").connections, 2, "they hang");
    for mut connection in on_first {
        assert!(connection.is_ended(), "their own timeout ends them");
    }
    eventually("all are over", || (relay.service("sip").connections == 0).then_some(()));
    let ends = relay.service("sip").terminations;
    assert_eq!((ends["idle_timed_out"], ends["server_down"]), (4, 0));
    relay.stop();
}

#[test]
fn t_06_without_drop_on_failure_clients_hang_until_their_own_timeout_on_the_packet_plane() {
    in_lab(
        t_06_without_drop_on_failure_clients_hang_until_their_own_timeout_on_the_packet_plane,
        Topology::TwoArm,
        2,
        |lab| kept_until_their_own_timeout("packet", lab),
    );
}

#[test]
fn t_06_without_drop_on_failure_clients_hang_until_their_own_timeout_on_the_stream_plane() {
    in_lab(
        t_06_without_drop_on_failure_clients_hang_until_their_own_timeout_on_the_stream_plane,
        Topology::TwoArm,
        2,
        |lab| kept_until_their_own_timeout("stream", lab),
    );
}

/// The server itself still answers; only what is checked has stopped.
fn reset_at_both_ends(plane: &str, lab: &TestLab) {
    let (vip, config) = on_plane(lab, plane, "drop_on_failure = true");
    let config = config.replace("check = \"tcp\"", "check = \"tcp\", ports = 444");
    let checked = [1, 2].map(|n| Origin::tcp(lab.server(n), 444));
    let listener = lab.server(1).run(|| TcpListener::bind("0.0.0.0:5061")).expect("a thread").expect("a listener");
    let _other = Origin::tcp(lab.server(2), 5061);
    let relay = subject!().start(lab.balancer(), &config);
    relay.until_all_up();
    let open = || Connection::open(lab.client(), (vip, 5061)).expect("somebody serves");
    let clients = [open(), open()];
    let (mut server, _) = listener.accept().expect("round robin reaches both");
    server.set_read_timeout(Some(PATIENCE)).expect("not zero");
    // Which of the two it is shows when it speaks.
    let mut ends = clients.iter().map(|client| client.stream().try_clone().expect("a descriptor"));
    let says_hello = |mut client: TcpStream| {
        client.write_all(b"hello").expect("everything is taken");
        is_heard(&mut server).then_some(client)
    };
    let mut hers = ends.find_map(says_hello).expect("one of them");
    let [first, _second] = checked;
    first.stop();
    for end in [&mut hers, &mut server] {
        let told = end.read(&mut [0; 1]).expect_err("nothing was sent");
        assert_eq!(told.kind(), ErrorKind::ConnectionReset);
    }
    eventually("it is counted", || (relay.service("sip").terminations["server_down"] == 1).then_some(()));
    relay.stop();
}

#[test]
fn t_05_a_connect_that_succeeds_when_its_server_is_down_is_reset() {
    in_lab(t_05_a_connect_that_succeeds_when_its_server_is_down_is_reset, Topology::TwoArm, 2, |lab| {
        let (vip, config) = on_plane(lab, "stream", "drop_on_failure = true\nconnect_timeout = \"30s\"");
        // Time for a connect before the server is found to be down.
        let config = config.replace("check = \"tcp\"", "check = \"tcp\", ports = 444").replace("fall = 2", "fall = 6");
        let [first_checked, _second_checked] = [1, 2].map(|n| Origin::tcp(lab.server(n), 444));
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 5061));
        let relay = subject!().start(lab.balancer(), &config);
        relay.until_all_up();
        lab.server(1).link_down("back").expect("a plug to pull");
        let mut clients = [(); 2].map(|()| Connection::open(lab.client(), (vip, 5061)).expect("the relay listens"));
        eventually("one is dialling", || (relay.server("sip", "server-1").connections == 1).then_some(()));
        first_checked.stop();
        until_down(&relay);
        lab.server(1).link_up("back").expect("a plug to put back");
        let told = clients.each_mut().map(|client| client.greeting());
        assert_eq!(told.iter().flatten().map(|greeting| greeting.name.as_str()).collect::<Vec<_>>(), ["server-2"]);
        let refused = told.into_iter().find_map(Result::err).expect("the other one");
        assert_eq!(refused.kind(), ErrorKind::ConnectionReset);
        assert_eq!(relay.service("sip").terminations["server_down"], 1);
        relay.stop();
    });
}

/// Whether the server gets its client's word within a moment.
fn is_heard(server: &mut TcpStream) -> bool {
    server.set_read_timeout(Some(Duration::from_millis(500))).expect("not zero");
    let heard = server.read_exact(&mut [0; 5]).is_ok();
    server.set_read_timeout(Some(PATIENCE)).expect("not zero");
    heard
}

#[test]
fn t_05_drop_on_failure_resets_both_ends_on_the_packet_plane() {
    in_lab(t_05_drop_on_failure_resets_both_ends_on_the_packet_plane, Topology::TwoArm, 2, |lab| {
        reset_at_both_ends("packet", lab);
    });
}

#[test]
fn t_05_drop_on_failure_resets_both_ends_on_the_stream_plane() {
    in_lab(t_05_drop_on_failure_resets_both_ends_on_the_stream_plane, Topology::TwoArm, 2, |lab| {
        reset_at_both_ends("stream", lab);
    });
}
