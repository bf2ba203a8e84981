//! Whatever changes anything by the API is told afterwards: an event with who, what, before and after, and a line in the log. Every route that the daemon
//! lists is asked here; one that is added has to be.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use towpath_engine::events::{Event, EventKind};
use towpath_engine::{FetchError, fetch_file, get, post};
use towpath_tests::{
    Connection, Origin, Subject, Topology, eventually, in_lab, ipv4, packet_service, service, subject, visit,
};

const LIMITS: &str = "[limits]\nconnections = 1024\nflows = 8192\n";
const PATIENCE: Duration = Duration::from_secs(60);

/// What is asked, and what is told of it.
struct Row {
    path: &'static str,
    /// The path as it is asked.
    uri: &'static str,
    body: Value,
    /// Kind of the event, what was before and what is after; `None` = nothing of the process is another afterwards, and a line in the log is enough.
    event: Option<(EventKind, &'static str, &'static str)>,
}

fn rows() -> Vec<Row> {
    let admin = |from, to| Some((EventKind::Admin, from, to));
    let why = json!({"reason": "why not"});
    let servers = "/v1/services/{}/servers/{}";
    let order = |verb: &'static str, path: &'static str, body: Value, event| {
        assert_eq!(path, format!("{servers}/{verb}"));
        let uri: String = path.replacen("{}", "web", 1).replacen("{}", "server-1", 1);
        Row { path, uri: uri.leak(), body, event }
    };
    let whole = |path, body, event| Row { path, uri: path, body, event };
    vec![
        order("check", "/v1/services/{}/servers/{}/check", json!({}), None),
        order("drain", "/v1/services/{}/servers/{}/drain", why.clone(), admin("ready", "drain")),
        order("halt", "/v1/services/{}/servers/{}/halt", why.clone(), admin("drain", "halt")),
        order("ready", "/v1/services/{}/servers/{}/ready", why.clone(), admin("halt", "ready")),
        order(
            "weight",
            "/v1/services/{}/servers/{}/weight",
            json!({"weight": 7, "reason": "why not"}),
            admin("weight 1", "weight 7"),
        ),
        whole("/v1/capture", json!({"service": "farm", "frames": 1, "seconds": 60}), admin("capture", "frames: 1")),
        whole("/v1/logout", json!({}), None),
        whole(
            "/v1/persistence/clear",
            json!({"entries": {}, "all": true, "reason": "why not"}),
            admin("persistence", "clients forgotten: 1"),
        ),
        whole("/v1/plan", json!({"name": "other.toml", "text": ""}), None),
        whole("/v1/reload", json!({}), Some((EventKind::Configuration, "generation ", "generation "))),
        whole("/v1/role", json!({"role": "standby", "reason": "why not"}), admin("active", "standby")),
        whole(
            "/v1/sessions/kill",
            json!({"sessions": {"service": "web"}, "reason": "why not"}),
            admin("sessions", "ended: 1"),
        ),
    ]
}

/// Routes that end the process, which is asked elsewhere.
const ELSEWHERE: [&str; 1] = ["/v1/upgrade"];

fn ask(relay: &Subject, row: &Row) {
    if row.path == "/v1/capture" {
        // Its answer is a file.
        fetch_file(&relay.endpoint(), row.uri, &row.body, PATIENCE).expect("it is captured");
        return;
    }
    post::<Value>(&relay.endpoint(), row.uri, &row.body, PATIENCE)
        .unwrap_or_else(|error| panic!("{}: {error}\n{}", row.uri, relay.log()));
}

/// Lines are written by a thread of their own.
fn until_logged(relay: &Subject, line: &str) {
    eventually(line, || relay.log().contains(line).then_some(()));
}

fn last_id(relay: &Subject) -> u64 {
    relay.status().events.last().map_or(0, |event| event.id)
}

fn since(relay: &Subject, id: u64) -> Vec<Event> {
    // What the process finds out by itself meanwhile is nobody's.
    let is_own = |kind| matches!(kind, EventKind::Health | EventKind::Drain);
    relay.status().events.into_iter().filter(|event| event.id > id && !is_own(event.kind)).collect()
}

#[test]
fn every_change_by_the_api_is_told_with_who_what_before_and_after() {
    in_lab(every_change_by_the_api_is_told_with_who_what_before_and_after, Topology::TwoArm, 2, |lab| {
        let _origins = [1, 2].map(|n| Origin::tcp(lab.server(n), 443));
        let (web, farm) = (lab.vip(100), lab.free_vip(110));
        let pool = format!("source.pool = [\"{}\"]", lab.free_snat(111));
        let servers = ipv4(lab.servers());
        let config = format!(
            "{LIMITS}{}{}",
            service("web", web, "443", "persistence.by = \"source-ip\"", &servers),
            packet_service("farm", farm, "443", &pool, &servers)
        );
        let relay = subject!().start(lab.balancer(), &config);
        relay.until_all_up();
        // Somebody to end, who is remembered, too.
        let mut guest = Connection::open(lab.client(), (web, 443)).expect("somebody serves");
        guest.greeting().expect("a greeting");

        let listed: Value = get(&relay.endpoint(), "/v1", PATIENCE).expect("the routes");
        let listed: Vec<&Value> = listed["routes"].as_array().expect("a list").iter().collect();
        let rows = rows();
        // In an order that leaves each something to do: nobody comes to a machine that stands by, and a server that is halted ends its connections.
        let order = ["/v1/sessions/kill", "/v1/persistence/clear", "/v1/capture"];
        let is_last = |row: &&Row| row.path == "/v1/role";
        let first = order.iter().filter_map(|path| rows.iter().find(|row| row.path == *path));
        let middle = rows.iter().filter(|row| !order.contains(&row.path) && !is_last(row));
        let mut asked = BTreeSet::new();
        for row in first.chain(middle).chain(rows.iter().filter(is_last)) {
            let before = last_id(&relay);
            match row.path {
                "/v1/capture" => thread::scope(|scope| {
                    let capture = scope.spawn(|| ask(&relay, row));
                    while !capture.is_finished() {
                        visit(lab.client(), (farm, 443));
                    }
                    capture.join().expect("it is captured");
                }),
                _ => ask(&relay, row),
            }
            asked.insert(row.path);
            let trace = listed.iter().find(|route| route["method"] == "POST" && route["path"] == row.path);
            let trace = trace.unwrap_or_else(|| panic!("{} is not listed", row.path));
            assert_eq!(trace["trace"], if row.event.is_some() { "event" } else { "line" }, "{}", row.path);
            until_logged(&relay, &format!("): POST {}: 200", row.uri));
            let events = since(&relay, before);
            let Some((kind, from, to)) = row.event else {
                assert!(events.is_empty(), "{}: {events:?}", row.path);
                continue;
            };
            let [event] = events.as_slice() else { panic!("{}: {events:?}", row.path) };
            assert_eq!(event.kind, kind, "{}", row.path);
            assert!(event.from.starts_with(from) && event.to.starts_with(to), "{}: {}", row.path, event.line());
            assert!(kind != EventKind::Configuration || event.from != event.to, "{}", event.line());
            assert!(event.reason.contains("by root (uid 0"), "{}: {}", row.path, event.line());
            let is_said = row.body.get("reason").is_some();
            assert!(!is_said || event.reason.contains(": why not"), "{}: {}", row.path, event.line());
            until_logged(&relay, &event.line());
        }
        let mutations =
            listed.iter().filter(|route| route["method"] != "GET").filter_map(|route| route["path"].as_str());
        for path in mutations.filter(|path| !ELSEWHERE.contains(path)) {
            assert!(asked.contains(path), "{path} is asked by no row of this test");
        }
        relay.stop();
    });
}

#[test]
fn what_is_only_tried_or_refused_changes_nothing_and_a_refused_reload_is_told() {
    in_lab(what_is_only_tried_or_refused_changes_nothing_and_a_refused_reload_is_told, Topology::TwoArm, 1, |lab| {
        let web = lab.vip(100);
        let config = format!("{LIMITS}{}", service("web", web, "443", "health.check = \"none\"", &ipv4(lab.servers())));
        let relay = subject!().start(lab.balancer(), &config);
        let before = last_id(&relay);
        for (uri, body) in [
            ("/v1/services/web/servers/*/drain", json!({"dry_run": true})),
            ("/v1/sessions/kill", json!({"sessions": {"service": "web"}, "dry_run": true})),
            ("/v1/persistence/clear", json!({"entries": {}, "all": true, "dry_run": true})),
            ("/v1/reload", json!({"dry_run": true})),
        ] {
            post::<Value>(&relay.endpoint(), uri, &body, PATIENCE).unwrap_or_else(|error| panic!("{uri}: {error}"));
            assert!(since(&relay, before).is_empty(), "{uri}: {:?}", since(&relay, before));
        }
        relay.write(&config.replace("443", "0"));
        let refused = post::<Value>(&relay.endpoint(), "/v1/reload", &json!({}), PATIENCE);
        assert!(matches!(refused, Err(FetchError::Refused { status: 422, .. })), "{refused:?}");
        let events = since(&relay, before);
        let [event] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!((event.kind, &event.from), (EventKind::Configuration, &event.to));
        let wanted = "refused for 1 reason; nothing is changed";
        assert!(event.reason.starts_with("reload by root (uid 0") && event.reason.contains(wanted), "{}", event.line());
        relay.stop();
    });
}
