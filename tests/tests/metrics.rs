//! Metrics: what a collector gets, on both planes, over reloads; that every metric there is can be got; and that dashboard and rules ask for metrics that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustls::version::TLS13;
use serde_json::{Value, json};
use towpath_engine::Status;
use towpath_engine::metrics::{Kind, families, render};
use towpath_tests::pki::{Pki, open_with};
use towpath_tests::web::{WebClient, WebOrigin};
use towpath_tests::{
    Exposition, Host, Origin, PATIENCE, Subject, Topology, eventually, in_lab, ipv4, packet_service, service, subject,
    visit,
};

/// What the listener answers to this request: status and body; `None` = it closes without a word.
fn ask(host: &Host, to: SocketAddr, request: &str) -> Option<(u16, String)> {
    let fetched = host.run(|| -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    });
    parts(&fetched.expect("a thread").unwrap_or_default())
}

fn parts(answer: &[u8]) -> Option<(u16, String)> {
    let text = String::from_utf8(answer.to_vec()).expect("text");
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    if status == 200 {
        assert!(head.to_ascii_lowercase().contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    }
    Some((status, body.to_owned()))
}

const GET: &str = "GET /metrics HTTP/1.1\r\nHost: towpath\r\nConnection: close\r\n\r\n";

#[track_caller]
fn scrape(host: &Host, to: SocketAddr) -> Exposition {
    match ask(host, to, GET) {
        Some((200, text)) => Exposition::read(&text).unwrap_or_else(|error| panic!("{error}")),
        other => panic!("{to}: {other:?}"),
    }
}

/// The same from the control socket.
#[track_caller]
fn scrape_socket(relay: &Subject, path: &str) -> Exposition {
    let mut stream = UnixStream::connect(relay.control()).expect("the control socket");
    stream.write_all(GET.replace("/metrics", path).as_bytes()).expect("a request");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    let (status, text) = parts(&answer).expect("an answer");
    assert_eq!(status, 200, "{text}");
    Exposition::read(&text).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_collector_sees_what_clients_did_and_reloads_change_no_counter() {
    in_lab(a_collector_sees_what_clients_did_and_reloads_change_no_counter, Topology::TwoArm, 1, |lab| {
        let (web, echo) = (WebOrigin::start(lab.server(1), 80), Origin::tcp(lab.server(1), 7));
        let (vip, own) = (lab.vip(100), lab.balancer().ipv4());
        let (first, second) = (SocketAddr::from((own, 9464)), SocketAddr::from((own, 9465)));
        let client_network = format!("{}/32", lab.client().ipv4());
        let config = |listen: SocketAddr, from: &str| {
            format!("[metrics]\nlisten = \"{listen}\"\nfrom = [\"{from}\"]\n")
                + &service("web", vip, "80", "http = {}\nqueue = 4\nmax_connections = 9", &ipv4(lab.servers()))
                + &service("echo", vip, "7", "", &ipv4(lab.servers()))
        };
        let mut relay = subject!().start(lab.balancer(), &config(first, &client_network));
        let mut client = WebClient::open(lab.client(), (vip, 80));
        for path in ["/bytes/10", "/bytes/20", "/status/404"] {
            client.get(path);
        }
        drop(client);
        visit(lab.client(), (vip, 7));
        visit(lab.client(), (vip, 7));
        relay.until("all has ended", |status| status.services.iter().all(|service| service.connections == 0));

        let seen = scrape(lab.client(), first);
        let web_label = [("service", "web")];
        assert_eq!(seen.value("towpath_service_requests_total", &web_label), 3.0);
        assert_eq!(seen.value("towpath_service_responses_total", &[("service", "web"), ("code", "2xx")]), 2.0);
        assert_eq!(seen.value("towpath_service_responses_total", &[("service", "web"), ("code", "4xx")]), 1.0);
        assert_eq!(seen.value("towpath_service_first_byte_seconds_count", &web_label), 3.0);
        assert_eq!(seen.value("towpath_service_connect_seconds_count", &web_label), 1.0);
        assert_eq!(seen.value("towpath_service_connections_max", &web_label), 9.0);
        assert_eq!(seen.value("towpath_service_queue_max", &web_label), 4.0);
        assert_eq!(seen.value("towpath_service_queue_seconds_count", &web_label), 0.0);
        let echo_label = [("service", "echo")];
        assert_eq!(seen.value("towpath_service_accepted_total", &echo_label), 2.0);
        assert_eq!(seen.value("towpath_service_connect_seconds_count", &echo_label), 2.0);
        assert_eq!(seen.value("towpath_service_first_byte_seconds_count", &echo_label), 2.0);
        let took = seen.value("towpath_service_connect_seconds_sum", &echo_label);
        assert!(took > 0.0 && took < 10.0, "two connects took {took} s");
        assert!(seen.find("towpath_service_queue_waiting").is_some_and(|metric| metric.values.len() == 1));
        let ended = [("service", "echo"), ("termination", "client_closed")];
        assert_eq!(seen.value("towpath_service_terminations_total", &ended), 2.0);
        let server = [("service", "web"), ("server", "server-1")];
        assert_eq!(seen.value("towpath_server_up", &server), 1.0);
        assert_eq!(seen.value("towpath_server_responses_total", &server), 3.0);
        // It counts over all services: this is the same server on another port of the file.
        assert_eq!(seen.value("towpath_server_service_connections", &server), 0.0);
        assert_eq!(seen.value("towpath_service_servers", &[("service", "web"), ("state", "up")]), 1.0);
        let workers = relay.status().workers.len();
        let busy = seen.find("towpath_worker_busy_seconds_total").expect("the load of workers");
        assert_eq!(busy.values.len(), workers);
        assert!(busy.values.iter().map(|sample| sample.value).sum::<f64>() > 0.0, "somebody has worked");
        assert!(seen.value("process_resident_memory_bytes", &[]) > 1e6);
        assert!(seen.value("process_start_time_seconds", &[]) > 1.7e9);
        let labels: BTreeSet<&str> = seen
            .metrics
            .iter()
            .flat_map(|metric| &metric.values)
            .flat_map(|sample| sample.labels.values())
            .map(String::as_str)
            .collect();
        let client = lab.client().ipv4().to_string();
        assert!(labels.iter().all(|value| !value.contains(&client)), "no label says who a client is");

        // Nothing else is there, and nobody can change anything.
        let close = "HTTP/1.1\r\nHost: towpath\r\nConnection: close\r\n\r\n";
        let asked = |request: &str| ask(lab.client(), first, request).map(|(status, _)| status);
        assert_eq!(asked(&format!("GET /v1/status {close}")), Some(404));
        assert_eq!(asked(&format!("POST /v1/services/web/servers/server-1/halt {close}")), Some(404));
        assert_eq!(asked(&format!("POST /metrics {close}")), Some(405));
        assert_eq!(asked(&format!("HEAD /metrics {close}")), Some(200));
        assert_eq!(asked(&format!("GET /{} {close}", "x".repeat(20_000))).filter(|status| *status < 400), None);

        // The socket has the same.
        for path in ["/metrics", "/v1/metrics"] {
            let of_socket = scrape_socket(&relay, path);
            assert_eq!(of_socket.value("towpath_service_requests_total", &web_label), 3.0);
        }

        // Elsewhere from now on, with all that was counted.
        relay.reload(&config(second, &client_network)).expect("a good file");
        let generation = relay.status().generation as f64;
        // One that was written just before is given again.
        let after = eventually("the page is of this generation", || {
            Some(scrape(lab.client(), second)).filter(|seen| seen.value("towpath_generation", &[]) == generation)
        });
        assert_eq!(after.value("towpath_service_requests_total", &web_label), 3.0);
        assert_eq!(after.value("towpath_service_first_byte_seconds_count", &echo_label), 2.0);
        assert_eq!(ask(lab.client(), first, GET), None, "the old listener is closed");
        // Where it cannot be, nothing changes.
        let refused = relay.reload(&config("192.0.2.77:9464".parse().expect("an address"), &client_network));
        assert!(
            refused.as_ref().is_err_and(|said| said.contains("metrics.listen = \"192.0.2.77:9464\"")),
            "{refused:?}"
        );
        scrape(lab.client(), second);
        // Who may not ask gets no answer.
        relay.reload(&config(second, "192.0.2.0/24")).expect("a good file");
        assert_eq!(ask(lab.client(), second, GET), None);
        relay.stop();
        drop((web, echo));
    });
}

#[test]
fn handshakes_are_measured() {
    in_lab(handshakes_are_measured, Topology::TwoArm, 1, |lab| {
        let pki = Pki::new();
        let origin = Origin::tcp(lab.server(1), 443);
        let vip = lab.vip(100);
        let relay = subject!().start(lab.balancer(), &pki.service(vip, "terminate", "", &ipv4(lab.servers())));
        for _ in 0..3 {
            let mut stream = open_with(&pki.client_config(&[&TLS13]), lab.client(), (vip, 443)).expect("a connection");
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("the greeting of the origin");
        }
        let web = relay.until("all have ended", |status| status.services[0].connections == 0).services.remove(0);
        let handshakes = web.counters["handshakes_full"] + web.counters["handshakes_resumed"];
        assert_eq!(
            (handshakes, web.latencies["handshake"].count, web.latencies["first_byte"].count),
            (3, 3, 3),
            "{web:?}"
        );
        let handshake = &web.latencies["handshake"];
        assert!(handshake.sum_us > 0 && handshake.p50_us <= handshake.p99_us, "{handshake:?}");
        let seen = scrape_socket(&relay, "/metrics");
        assert_eq!(seen.value("towpath_service_handshake_seconds_count", &[("service", "web")]), 3.0);
        let left =
            seen.value("towpath_certificate_expiry_timestamp_seconds", &[("service", "web"), ("certificate", "1")]);
        assert_eq!(left as i64, web.certificates[0].not_after_unix_seconds);
        relay.stop();
        drop(origin);
    });
}

#[test]
fn the_packet_plane_tells_frames_and_drops() {
    in_lab(the_packet_plane_tells_frames_and_drops, Topology::TwoArm, 1, |lab| {
        let vip = lab.free_vip(100);
        let origin = Origin::tcp(lab.server(1), 443);
        let keys = format!("source = {{ pool = [\"{}\"] }}", lab.free_snat(101));
        let config = packet_service("web", vip, "443", &keys, &ipv4(lab.servers()));
        let relay = subject!().start(lab.balancer(), &format!("[limits]\nflows = 16384\n{config}"));
        for _ in 0..5 {
            visit(lab.client(), (vip, 443));
        }
        let ended = relay.until("all have ended, and were noted", |status| {
            let opened: u64 = status.workers.iter().map(|worker| worker.packets["flows_opened"]).sum();
            status.services[0].connections == 0 && opened == 5
        });
        let seen = scrape_socket(&relay, "/metrics");
        let sum = |name: &str| -> f64 {
            seen.find(name).unwrap_or_else(|| panic!("{name}")).values.iter().map(|sample| sample.value).sum()
        };
        assert_eq!(sum("towpath_packet_flows_opened_total"), 5.0);
        assert!(sum("towpath_packet_frames_total") >= 5.0 * 6.0);
        assert!(sum("towpath_packet_from_client_bytes_total") > 0.0);
        assert!(sum("towpath_source_ports_capacity") > 60_000.0);
        assert!(sum("towpath_worker_busy_seconds_total") > 0.0);
        assert_eq!(seen.value("towpath_service_opened_total", &[("service", "web")]), 5.0);
        assert!(seen.find("towpath_service_connect_seconds").is_none(), "nothing is measured on the packet plane");
        let drops: u64 = ended.workers.iter().flat_map(|worker| worker.drops.values()).sum();
        let told = seen
            .find("towpath_packet_drops_total")
            .map_or(0.0, |metric| metric.values.iter().map(|drop| drop.value).sum());
        assert!(told >= drops as f64, "{told} of {drops}");
        relay.stop();
        drop(origin);
    });
}

/// A status in which everything there is has happened.
fn everything() -> Status {
    let usage = |used: u64| json!({"used": used, "max": 10 * used, "refused": 1});
    let count_all = |labels: &[&str]| -> Value { labels.iter().map(|label| ((*label).to_owned(), json!(2))).collect() };
    let buckets: Vec<u64> = (0..19).collect();
    let latency = json!({"count": 171, "sum_us": 1_234_567, "p50_us": 1, "p90_us": 2, "p99_us": 3, "buckets": buckets});
    let bounds: Vec<u64> = (1..19).map(|bound| bound * 1000).collect();
    let server = |name: &str, address: &str, port: Option<u16>, health: &str| {
        json!({
            "name": name, "address": address, "port": port, "weight": 100, "admin": "ready", "health": health,
            "reason": "say \"no\"\n", "duty": "primary", "health_seconds": 5, "connections": 3, "service_connections": 2,
            "connections_max": 0, "opened": 7, "connects_failed": 1, "responses": 6, "errors": 2, "closed_ports": [80],
        })
    };
    let status = json!({
        "version": "0.1.0", "phase": "draining", "uptime_seconds": 5, "started_unix_ms": 1_798_761_598_007u64, "generation": 3,
        "services": [{
            "name": "we\"b", "state": "degraded", "vip": "2001:db8::1", "ports": [80, 443], "protocol": "tcp", "plane": "stream",
            "balance": "round-robin", "persistence_ms": null, "connections": 3, "connections_max": 9,
            "queue": {"waiting": 1, "max": 4, "longest_ms": 1500, "timeout_ms": 9000},
            "accepted": 1, "opened": 1, "bytes_from_client": 1, "bytes_to_client": 1,
            "counters": {"queue_waited_milliseconds": 1500, "bytes_to_client": 77},
            "terminations": {"client_closed": 2}, "refused_requests": {"bad_host": 1}, "refused_responses": {"unasked": 1},
            "refused_streams": {"resets": 1},
            "latencies": {"connect": latency, "first_byte": latency, "handshake": latency, "queue": latency},
            "certificates": [
                {"names": ["mail.example.com"], "not_before_unix_seconds": -5, "not_after_unix_seconds": 1_798_761_598, "seconds_left": 5},
                {"names": ["mail.example.com"], "not_before_unix_seconds": 0, "not_after_unix_seconds": 1_798_761_599, "seconds_left": 6},
            ],
            // One name in two groups of a service.
            "servers": [server("one", "192.0.2.1", Some(80), "up"), server("one", "2001:db8::9", Some(80), "down")],
        }],
        "outbound": [{
            "name": "out", "protocol": "udp", "flows": 1, "accepted": 2, "opened": 2, "bytes_out": 3, "bytes_in": 4,
            "terminations": {"idle_timed_out": 1},
        }],
        "leaving": [{"name": "gone", "address": "192.0.2.8", "port": null, "connections": 4}],
        "source_ports": [{
            "services": ["we\"b"], "protocol": "tcp", "address": "198.51.100.1", "destination": "192.0.2.1:80", "leased": 5,
            "capacity": 64512, "percent": 0.0, "nearly_exhausted": false,
        }],
        "workers": [{
            "id": 0, "cpu": 2, "state": "serving", "generation": 3, "vshards": 256, "sessions": 3, "cpu_us": 2_500_000,
            "counters": {"busy_microseconds": 1_250_000, "breath_max_microseconds": 1250}, "flows": 1,
            "packets": count_all(&["frames", "received_lost"]), "drops": {"flows_full": 3},
        }],
        "neighbours": count_all(&["known", "lost"]),
        "handshake_pool": {"cpus": [3], "running": 1, "queued": 0, "counters": {
            "done": 5, "late": 1, "abandoned": 0, "refused": 0, "busy_ns": 1_000_000_001, "waited_ns": 5}},
        "access_log": {"written": 5, "dropped": 1, "failed": 0, "trouble": "full"},
        "notify": [{"receiver": "webhook", "delivered": 1, "failed": 0, "dropped": 0, "waiting": 0, "trouble": null}],
        "limits": {
            "connections": usage(1), "udp_sessions": usage(2), "flows": usage(3), "fast_flows": usage(4),
            "persistence_entries": usage(5), "descriptors": usage(6),
        },
        "events": [], "events_total": {"health": 3, "admin": 0}, "latency_bounds_us": bounds,
    });
    serde_json::from_value(status).expect("a status")
}

#[test]
fn every_metric_can_be_had_and_none_that_is_not_in_the_list() {
    let text = render(&everything());
    let seen = Exposition::read(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let listed: Vec<String> = families().into_iter().map(|family| family.name).collect();
    let told: Vec<String> = seen.metrics.iter().map(|metric| metric.name.clone()).collect();
    assert_eq!(told, listed);
    let unique: BTreeSet<&String> = listed.iter().collect();
    assert_eq!(unique.len(), listed.len(), "a name stands once");
    for (metric, family) in seen.metrics.iter().zip(families()) {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        assert_eq!((metric.kind.as_str(), &metric.help), (kind, &family.help), "{}", family.name);
        let labels: BTreeSet<&str> =
            metric.values[0].labels.keys().map(String::as_str).filter(|name| *name != "le").collect();
        assert_eq!(labels, family.labels.iter().copied().collect(), "{}", family.name);
    }
    // Units are seconds and bytes, and nothing is rounded.
    assert!(text.contains("towpath_worker_busy_seconds_total{worker=\"0\"} 1.250000\n"), "{text}");
    assert!(text.contains("towpath_service_queue_waited_seconds_total{service=\"we\\\"b\"} 1.500\n"), "{text}");
    assert!(text.contains("towpath_handshake_pool_busy_seconds_total 1.000000001\n"), "{text}");
    assert_eq!(seen.value("towpath_service_to_client_bytes_total", &[("service", "we\"b")]), 77.0);
    assert_eq!(seen.value("towpath_service_up", &[]), 1.0);
    assert_eq!(seen.value("towpath_phase", &[("phase", "draining")]), 1.0);
    assert_eq!(seen.value("towpath_phase", &[("phase", "running")]), 0.0);
    assert_eq!(seen.value("towpath_server_up", &[("address", "[2001:db8::9]:80")]), 0.0);
    assert_eq!(seen.value("towpath_service_connect_seconds_bucket", &[("le", "0.003")]), 3.0);
    assert_eq!(seen.value("towpath_service_connect_seconds_count", &[]), 171.0);
    assert_eq!(seen.value("towpath_access_log_up", &[]), 0.0);
}

fn config_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config").join(name)
}

/// Names of metrics in a query, each with the labels that it is asked by.
fn asked_in(query: &str) -> BTreeMap<String, BTreeSet<String>> {
    let word = |character: char| character.is_ascii_alphanumeric() || character == '_' || character == ':';
    let (mut asked, mut rest) = (BTreeMap::<String, BTreeSet<String>>::new(), query);
    while let Some(at) = rest.find(word) {
        let end = rest[at..].find(|character| !word(character)).map_or(rest.len(), |end| at + end);
        let name = &rest[at..end];
        rest = &rest[end..];
        let is_metric = name.starts_with("towpath_") || name.starts_with("process_");
        if is_metric {
            let labels = asked.entry(name.to_owned()).or_default();
            if let Some((matchers, behind)) = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')) {
                let names = matchers.split(',').filter_map(|matcher| matcher.split(['=', '!']).next());
                labels.extend(names.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()));
                rest = behind;
            }
        }
    }
    asked
}

/// Labels that no metric of ours has: they come from who collects, `pair` from the configuration that config/prometheus/alerts.yml shows.
const COLLECTED: [&str; 4] = ["instance", "job", "le", "pair"];

/// Each name is a metric's, and each label one of it, or one that collectors add.
#[track_caller]
fn assert_exists(query: &str, place: &str) {
    let known: BTreeMap<String, &'static [&'static str]> = families()
        .iter()
        .flat_map(|family| family.value_names().into_iter().map(|name| (name, family.labels)))
        .collect();
    let asked = asked_in(query);
    assert!(!asked.is_empty(), "{place} asks for nothing of ours: {query}");
    for (name, labels) in asked {
        let has = known.get(&name).unwrap_or_else(|| panic!("{place}: there is no metric {name}: {query}"));
        for label in labels {
            assert!(
                has.contains(&&*label) || COLLECTED.contains(&&*label),
                "{place}: {name} has no label {label}: {query}"
            );
        }
    }
    for grouping in query.split("by (").skip(1).map(|rest| rest.split(')').next().unwrap_or_default()) {
        for label in grouping.split(',').map(str::trim) {
            let is_known = families().iter().any(|family| family.labels.contains(&label));
            assert!(is_known || COLLECTED.contains(&label), "{place}: no metric has a label {label}: {query}");
        }
    }
}

fn each_text<'v>(value: &'v Value, key: &str, visit: &mut impl FnMut(&'v str)) {
    match value {
        Value::Object(entries) => entries.iter().for_each(|(name, value)| match value {
            Value::String(text) if name == key => visit(text),
            other => each_text(other, key, visit),
        }),
        Value::Array(items) => items.iter().for_each(|item| each_text(item, key, visit)),
        _ => {}
    }
}

#[test]
fn the_dashboard_asks_for_metrics_that_exist() {
    let text = fs::read_to_string(config_file("grafana/towpath.json")).expect("the dashboard");
    let dashboard: Value = serde_json::from_str(&text).expect("JSON");
    let mut queries = 0;
    each_text(&dashboard, "expr", &mut |query| {
        assert_exists(query, "the dashboard");
        queries += 1;
    });
    assert!(queries >= 20, "only {queries} queries");
    each_text(&dashboard, "query", &mut |query| {
        if let Some(metric) = query.strip_prefix("label_values(") {
            assert_exists(metric, "a variable of the dashboard");
        }
    });
    let ids: Vec<&Value> = dashboard["panels"].as_array().expect("panels").iter().map(|panel| &panel["id"]).collect();
    let unique: BTreeSet<String> = ids.iter().map(ToString::to_string).collect();
    assert_eq!(unique.len(), ids.len(), "every panel has a number of its own");
}

#[test]
fn the_rules_ask_for_metrics_that_exist() {
    let text = fs::read_to_string(config_file("prometheus/alerts.yml")).expect("the rules");
    let mut rules = 0;
    for line in text.lines() {
        if let Some(query) = line.trim_start().strip_prefix("expr: ") {
            assert_exists(query, "a rule");
            rules += 1;
        }
    }
    assert!(rules >= 10, "only {rules} rules");
    assert_eq!(rules, text.matches("- alert: ").count(), "every rule has one line with its query");
    assert_eq!(rules, text.matches("summary: ").count(), "and a sentence for people");
}

#[test]
fn names_in_queries_are_found() {
    let asked = asked_in(
        "sum by (service) (rate(towpath_a_total{service=~\"$s\", code!=\"2xx\"}[5m])) / on () process_b > 0.5",
    );
    let labels = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
    let expected =
        [("towpath_a_total".to_owned(), labels(&["service", "code"])), ("process_b".to_owned(), labels(&[]))];
    assert_eq!(asked, expected.into_iter().collect());
}

#[test]
#[ignore = "needs the Debian package prometheus"]
fn promtool_finds_nothing_to_mend() {
    use std::process::{Command, Stdio};
    let run = |arguments: &[&str], input: &str| {
        let mut child = Command::new("promtool")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("promtool is not installed: apt-get install prometheus");
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("promtool reads");
        let output = child.wait_with_output().expect("promtool ends");
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
    };
    run(&["check", "metrics"], &render(&everything()));
    let rules = config_file("prometheus/alerts.yml").display().to_string();
    run(&["check", "rules", &rules], "");
}
