//! A server fails: its service stops, or its cable is pulled.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use towpath_engine::status::HealthStatus;
use towpath_tests::{Connection, Origin, TestLab, Topology, in_lab, ipv4, service, subject, who};

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
