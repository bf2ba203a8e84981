//! The status page in a browser: what it shows, what can be done there, and who may (T-12, T-13, T-18).
//!
//! With `TOWPATH_PICTURES=DIRECTORY` the tests leave their pictures there: those of the README are from them.

use std::env;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use serde_json::Value;
use tempfile::TempDir;
use towpath_engine::admin::OrderBody;
use towpath_engine::events::EventKind;
use towpath_tests::pki::Pki;
use towpath_tests::{
    Browser, Connection, Host, Key, Origin, Subject, TestLab, Topology, eventually, in_lab, service_to, subject, who,
};

const LIMITS: &str = "[limits]\nconnections = 1024\nudp_sessions = 1024\nflows = 8192\n";
/// Where the page is, on the balancer itself: without TLS it is for loopback only.
const AT: &str = "http://127.0.0.1:9443/";
const PASSWORD: &str = "correct horse";
/// PBKDF2 of that, with the fewest rounds that are taken.
const HASH: &str = "pbkdf2-sha512:100000:000102030405060708090a0b0c0d0e0f:\
    0b275fa75cfd4708456d906550f18451b9bdd18608ccb90310e8aefe5f1990559dbe2f682ccf06a3338a4d827c58a649926dc235b48122d9ec231bd8baba8d03";
/// A usual window, and a usual phone.
const WINDOW: (u32, u32) = (1280, 860);
const PHONE: (u32, u32) = (390, 844);

/// Keys of `[control]`, which is the first table of a configuration: an operator and a viewer.
fn control(keys: &str) -> String {
    let user = |name: &str, role: &str| {
        format!("[[control.user]]\nname = \"{name}\"\nrole = \"{role}\"\npassword_hash = \"{HASH}\"\n")
    };
    format!("listen = \"127.0.0.1:9443\"\n{keys}\n{}{}", user("alice", "operator"), user("vera", "viewer"))
}

const FULL: &str = "page = \"full\"";
const CHECKED: &str = "health = { check = \"tcp\", interval = \"100ms\", timeout = \"1s\", rise = 1, fall = 1 }\n";

/// A service whose servers are hosts of the lab under names of its own.
fn of(lab: &TestLab, name: &str, vip: Ipv4Addr, port: u16, keys: &str, prefix: &str, hosts: &[usize]) -> String {
    let names: Vec<String> = hosts.iter().map(|n| format!("{prefix}-{n}")).collect();
    let servers: Vec<_> =
        names.iter().zip(hosts).map(|(name, &n)| (name.as_str(), (lab.server(n).ipv4(), port).into())).collect();
    service_to(name, vip, &port.to_string(), &format!("{CHECKED}balance = \"least-connections\"\n{keys}"), &servers)
}

/// Three hosts with servers of some services, as they would be behind a balancer.
struct Stage {
    relay: Subject,
    vip: Ipv4Addr,
    /// Of each host.
    origins: Vec<Vec<Origin>>,
    _files: TempDir,
}

const FRONT_END: u16 = 5061;
const CONFERENCE: u16 = 444;
const LDAP: u16 = 389;
const WEB: u16 = 8443;

impl Stage {
    /// `hosts` are those whose servers run.
    fn set(lab: &TestLab, hosts: &[usize], keys: &str) -> Stage {
        let files = tempfile::tempdir().expect("a temporary directory");
        let (certificate, key) = certificate(files.path(), &["owa.example.test", "autodiscover.example.test"], 12);
        let vip = lab.vip(100);
        let tls = format!(
            "http = {{}}\nports = 443\n[service.tls]\nmode = \"terminate\"\n[[service.tls.certificate]]\nfile = \"{}\"\nkey = \"{}\"\n",
            certificate.display(),
            key.display()
        );
        let web = of(lab, "owa", vip, WEB, &tls, "MBX", &[1, 3]).replace(&format!("ports = {WEB}\n"), "");
        let packet = format!("plane = \"packet\"\nsource.pool = [\"{}\"]\n", lab.free_snat(111));
        let services = [
            of(
                lab,
                "front-end",
                vip,
                FRONT_END,
                "persistence = { by = \"source-ip\", timeout = \"30m\" }\n",
                "FE",
                &[1, 2, 3],
            ),
            of(lab, "conference", vip, CONFERENCE, "", "FE", &[2]),
            web,
            of(lab, "ldap", lab.free_vip(110), LDAP, &packet, "DC", &[1, 2]),
        ];
        let config = format!("{}{LIMITS}{}", control(keys), services.concat());
        let ports = [FRONT_END, CONFERENCE, LDAP, WEB];
        let serve = |host: &Host| ports.iter().map(|&port| Origin::tcp(host, port)).collect();
        let origins = hosts.iter().map(|&n| serve(lab.server(n))).collect();
        let relay = subject!().start(lab.balancer(), &config);
        Stage { relay, vip, origins, _files: files }
    }

    fn front_end(&self) -> (Ipv4Addr, u16) {
        (self.vip, FRONT_END)
    }

    /// Waits until these and no other servers are up.
    fn until_up(&self, names: &[&str]) {
        self.relay.until(&format!("only {names:?} are up"), |status| {
            let mut servers = status.services.iter().flat_map(|service| &service.servers);
            servers.all(|server| match names.contains(&server.name.as_str()) {
                true => server.health == towpath_engine::status::HealthStatus::Up,
                false => server.health == towpath_engine::status::HealthStatus::Down,
            })
        });
    }
}

/// A certificate that ends in so many days, and its key.
fn certificate(folder: &Path, names: &[&str], days: u64) -> (PathBuf, PathBuf) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).expect("names");
    let today = SystemTime::now().duration_since(UNIX_EPOCH).expect("later than 1970");
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + today - Duration::from_secs(86_400);
    // A little more, so that the days are whole while the test runs.
    params.not_after = epoch + today + Duration::from_secs(days * 86_400 + 3_600);
    let certificate = params.self_signed(&key).expect("a certificate");
    let (chain, private) = (folder.join("chain.pem"), folder.join("key.pem"));
    fs::write(&chain, certificate.pem()).expect("a file");
    fs::write(&private, key.serialize_pem()).expect("a file");
    (chain, private)
}

/// Clients that come and go until it is dropped, so that rates have something to show.
struct Traffic {
    over: Arc<AtomicBool>,
    client: Option<JoinHandle<std::io::Result<()>>>,
}

impl Traffic {
    fn begin(lab: &TestLab, to: (Ipv4Addr, u16)) -> Traffic {
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let client = lab.client().start(move || {
            while !seen.load(Ordering::Relaxed) {
                // Whether it is served is not what is looked at.
                let _served = Connection::open_here(to).and_then(|mut connection| connection.greeting());
                thread::sleep(Duration::from_millis(3));
            }
        });
        Traffic { over, client: Some(client.expect("a thread")) }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(client) = self.client.take() {
            let _ended = client.join();
        }
    }
}

fn browser(host: &Host) -> Browser {
    Browser::start(host, WINDOW.0, WINDOW.1)
}

fn log_in(page: &mut Browser, user: &str) {
    page.until("the login", "document.querySelector('#login').checkVisibility()");
    page.write("#login-user", user);
    page.write("#login-password", PASSWORD);
    page.press(Key::Enter);
    page.until("the overview", "document.querySelectorAll('#service-rows tr.service').length");
}

/// At the page, logged in.
fn open(lab: &TestLab, user: &str) -> Browser {
    let mut page = browser(lab.balancer());
    page.go(AT);
    log_in(&mut page, user);
    page
}

/// The row of a server, as a selector.
fn member(service: &str, server: &str, more: &str) -> String {
    format!(".member[data-server=\"{service}/{server}\"] {more}")
}

fn button(service: &str, server: &str, verb: &str) -> String {
    member(service, server, &format!("button[data-verb=\"{verb}\"]"))
}

/// Waits until the text of an element has this in it.
#[track_caller]
fn until_says(page: &mut Browser, selector: &str, words: &str) {
    let (selector, words) = (Value::from(selector), Value::from(words));
    page.until(
        &format!("{selector} says {words}"),
        &format!("document.querySelector({selector})?.innerText.includes({words})"),
    );
}

/// Leaves a picture where somebody wants it.
fn picture(page: &mut Browser, name: &str, whole_page: bool) {
    let Some(folder) = env::var_os("TOWPATH_PICTURES") else { return };
    // Two more answers, for the courses.
    page.value("new Promise((resolve) => setTimeout(resolve, 5000))");
    let file = PathBuf::from(folder).join(format!("{name}.png"));
    fs::write(&file, page.picture(whole_page)).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

#[track_caller]
fn expect_readable(page: &mut Browser, how: &str) {
    let found = page.value(include_str!("page/contrast.js"));
    assert!(found["seen"].as_u64().expect("a number") > 10, "{how}: {found}");
    assert_eq!(found["bad"], Value::Array(Vec::new()), "{how}");
}

/// What a screen reader and a keyboard need, as far as a program can say.
#[track_caller]
fn expect_sound(page: &mut Browser, how: &str) {
    let found = page.value(include_str!("page/rules.js"));
    assert!(found["rules"].as_u64().expect("a number") > 10, "{how}: {found}");
    assert_eq!(found["broken"], Value::Array(Vec::new()), "{how}");
}

#[track_caller]
fn expect_no_faults(page: &mut Browser) {
    assert_eq!(page.faults(), [] as [String; 0]);
}

#[test]
#[ignore = "needs the Debian package chromium"]
fn t_12_t_13_one_look_tells_which_server_of_which_service_is_down_and_why() {
    in_lab(t_12_t_13_one_look_tells_which_server_of_which_service_is_down_and_why, Topology::TwoArm, 3, |lab| {
        let mut stage = Stage::set(lab, &[1, 2, 3], FULL);
        stage.relay.until_all_up();
        let _traffic = Traffic::begin(lab, stage.front_end());
        let mut page = open(lab, "alice");
        let rows = "[...document.querySelectorAll('#service-rows tr.service')]";
        let cells = |page: &mut Browser| {
            page.value(&format!(
                "{rows}.map((row) => [...row.children].slice(0, 8).map((cell) => cell.innerText.trim()))"
            ))
        };
        // T-13, with the columns of F-MG-02.
        let shown = cells(&mut page);
        let vip = stage.vip.to_string();
        assert_eq!(shown[0].as_array().expect("cells")[..4], ["front-end", "up", &vip, "5061"]);
        assert_eq!(shown[0].as_array().expect("cells")[5..], ["TCP", "least-connections", "stream"]);
        assert_eq!(shown[2][7], "stream, tls, http");
        assert_eq!(shown[3][7], "packet, full-nat");
        assert_eq!(
            page.value(&format!("{rows}.map((row) => row.children[1].innerText.trim())")),
            Value::from(vec!["up"; 4])
        );
        assert_eq!(page.value("document.querySelector('#attention').checkVisibility()"), true, "the certificate");
        until_says(&mut page, "#attention", "12 days left");
        // T-12: a host goes, with a server of each service.
        stage.origins.remove(1);
        stage.until_up(&["FE-1", "FE-3", "MBX-1", "MBX-3", "DC-1"]);
        for (service, server) in [("front-end", "FE-2"), ("conference", "FE-2"), ("ldap", "DC-2")] {
            until_says(&mut page, &member(service, server, ".state"), "down");
            until_says(&mut page, &member(service, server, ".why"), "connection refused");
            let tone =
                page.value(&format!("document.querySelector('{}').dataset.tone", member(service, server, ".badge")));
            assert_eq!(tone, "bad", "{service}");
        }
        let shown = page.value(&format!("{rows}.map((row) => row.children[1].innerText.trim())"));
        assert_eq!(shown, Value::from(vec!["degraded", "down", "up", "degraded"]));
        until_says(&mut page, "#attention-list", "conference – no server takes new clients");
        until_says(&mut page, "#event-list", "up → down");
        until_says(&mut page, "#news", "up → down");
        assert_eq!(page.value("document.title"), "(3 not up) Towpath");
        // Rates come with the second answer.
        page.until("a rate", "/^[1-9]/.test(document.querySelector('.course .figures').innerText)");
        picture(&mut page, "overview", false);
        page.prefer_dark(true);
        picture(&mut page, "dark", false);
        // Only what is not up, and by name.
        page.click("#troubled");
        page.until("three are not up", &format!("{rows}.length === 3"));
        page.press(Key::Slash);
        assert_eq!(page.value("document.activeElement.id"), "filter");
        page.write("#filter", "dc-2");
        page.until("one has that server", &format!("{rows}.length === 1 && {rows}[0].innerText.includes('ldap')"));
        page.write("#filter", "nobody");
        until_says(&mut page, "#none-match", "No service or server is like that.");
        expect_no_faults(&mut page);
    });
}

#[test]
#[ignore = "needs the Debian package chromium"]
fn t_18_a_click_drains_a_server_and_another_takes_it_back() {
    in_lab(t_18_a_click_drains_a_server_and_another_takes_it_back, Topology::TwoArm, 3, |lab| {
        let stage = Stage::set(lab, &[1, 2, 3], FULL);
        stage.relay.until_all_up();
        let mut page = open(lab, "alice");
        let mut held = Connection::open(lab.client(), stage.front_end()).expect("somebody serves");
        let home = held.greeting().expect("a greeting").name.replace("server", "FE");
        page.click(&button("front-end", &home, "drain"));
        until_says(&mut page, "#notices", &format!("{home} of front-end drains."));
        until_says(&mut page, &member("front-end", &home, ".state"), "drain");
        until_says(&mut page, &member("front-end", &home, ".said"), "by alice");
        let served = |n: usize| -> Vec<String> { (0..n).map(|_| who(lab.client(), stage.front_end())).collect() };
        assert!(served(9).iter().all(|name| name.replace("server", "FE") != home), "{home}");
        held.echo(b"still there").expect("a connection from before goes on");
        let audit: Vec<String> = stage
            .relay
            .status()
            .events
            .iter()
            .filter(|event| event.kind == EventKind::Admin)
            .map(|event| event.line())
            .collect();
        assert!(audit.len() == 1 && audit[0].contains("ready → drain: by alice"), "{audit:?}");
        // Back at once.
        page.click("#notice-order button");
        until_says(&mut page, "#notices", &format!("{home} of front-end is ready."));
        assert_eq!(stage.relay.server("front-end", &home).admin, "ready");
        // With a deadline, a reason and halt afterwards: it counts down.
        page.click(&button("front-end", &home, "drain-by"));
        page.choose("#drain-deadline", "60000");
        page.write("#drain-until", "0");
        page.write("#order-reason", "patch day <b>");
        until_says(&mut page, "#order-effect", "front-end: 2 of 3 servers take new clients then");
        picture(&mut page, "drain-dialog", false);
        page.click("#order-go");
        until_says(&mut page, &member("front-end", &home, ".said"), "patch day <b>");
        until_says(&mut page, &member("front-end", &home, ".said"), "then halt");
        let clock = member("front-end", &home, "[role=timer]");
        until_says(&mut page, &clock, "0:5");
        picture(&mut page, "drain", false);
        let drain = stage.relay.server("front-end", &home).admin_said.and_then(|said| said.drain).expect("it drains");
        assert!(drain.deadline_in_ms.is_some_and(|ms| ms <= 60_000), "{drain:?}");
        // It is over before, when its last connection ends.
        held.close().expect("it ends as it would have anyway");
        until_says(&mut page, &member("front-end", &home, ".state"), "halt");
        until_says(&mut page, "#event-list", "no connection is left");
        page.click(&button("front-end", &home, "ready"));
        until_says(&mut page, "#notices", &format!("{home} of front-end is ready."));
        assert_eq!(stage.relay.server("front-end", &home).admin, "ready");
        expect_no_faults(&mut page);
    });
}

#[test]
#[ignore = "needs the Debian package chromium"]
fn whoever_would_leave_too_few_servers_says_so_twice() {
    in_lab(whoever_would_leave_too_few_servers_says_so_twice, Topology::TwoArm, 3, |lab| {
        let stage = Stage::set(lab, &[1, 2, 3], FULL);
        stage.relay.until_all_up();
        let to = (stage.vip, CONFERENCE);
        let mut held = Connection::open(lab.client(), to).expect("somebody serves");
        held.greeting().expect("a greeting");
        let mut page = open(lab, "alice");
        until_says(&mut page, &member("conference", "FE-2", ".load"), "1 connection");
        // A click would do for another server; here it asks.
        page.click(&button("conference", "FE-2", "drain"));
        until_says(&mut page, "#order-sure", "service conference: no server takes new clients");
        assert_eq!(page.value("document.querySelector('#order-go').disabled"), true);
        page.press(Key::Escape);
        page.until("the question is gone", "!document.querySelector('#order').open");
        assert_eq!(stage.relay.server("conference", "FE-2").admin, "ready");
        page.click(&button("conference", "FE-2", "halt"));
        until_says(&mut page, "#order-effect", "1 connection will be ended.");
        assert_eq!(page.value("document.querySelector('#order-go').disabled"), true);
        picture(&mut page, "halt", false);
        page.click("#order-sure-box");
        page.click("#order-go");
        until_says(&mut page, &member("conference", "FE-2", ".state"), "halt");
        held.end().expect_err("its connection is reset");
        until_says(&mut page, "#attention-list", "conference – no server takes new clients");
        // Everywhere is that too: the machine has a server in three services.
        page.click(&button("front-end", "FE-2", "drain-by"));
        page.choose("#drain-then", "stay");
        until_says(&mut page, "#order-effect", "front-end: 2 of 3 servers take new clients then");
        page.click("#order-everywhere");
        until_says(&mut page, "#order-effect", "front-end: 2 of 3 servers take new clients then");
        until_says(&mut page, "#order-effect", "ldap: 1 of 2 servers takes new clients then");
        page.click("#order-go");
        until_says(&mut page, &member("ldap", "DC-2", ".state"), "drained");
        until_says(&mut page, &member("front-end", "FE-2", ".state"), "drained");
        // With one of three out, the next one leaves less than half.
        page.click(&button("front-end", "FE-1", "drain"));
        until_says(&mut page, "#order-sure", "service front-end: only 1 of 3 servers takes new clients");
        page.press(Key::Escape);
        assert_eq!(stage.relay.server("front-end", "FE-1").admin, "ready");
        expect_no_faults(&mut page);
    });
}

/// A drain with everything that can be said of it on the command line and by the API (tests/tests/drain.rs), and what becomes of two connections.
fn drain_by(lab: &TestLab, options: &[(&str, &str, &str)]) {
    let stage = Stage::set(lab, &[1, 2, 3], FULL);
    stage.relay.until_all_up();
    let mut page = open(lab, "alice");
    for &(deadline, until, then) in options {
        let how = format!("deadline {deadline:?}, until {until}, then {then}");
        let open = |_| Connection::open(lab.client(), stage.front_end()).expect("somebody serves");
        let mut held: Vec<Connection> = (0..2).map(open).collect();
        // A client comes back to its server.
        let homes = held.iter_mut().map(|connection| connection.greeting().expect("a greeting").name);
        let home = homes.last().expect("two").replace("server", "FE");
        page.click(&button("front-end", &home, "drain-by"));
        page.choose("#drain-deadline", deadline);
        assert_eq!(page.value("document.querySelector('#drain-minutes').checkVisibility()"), deadline == "minutes");
        if deadline == "minutes" {
            page.write("#drain-minutes", "0");
            until_says(&mut page, "#order-error", "Minutes are more than 0");
            // A second, and what is left of it.
            page.write("#drain-minutes", "0.02");
        }
        page.write("#drain-until", until);
        page.choose("#drain-then", then);
        page.write("#order-reason", &how);
        until_says(&mut page, "#order-effect", "front-end: 2 of 3 servers take new clients then");
        page.click("#order-go");
        page.until("the order is given", "!document.querySelector('#order').open");
        let said = stage.relay.server("front-end", &home).admin_said.expect("something was said of it");
        let drain = said.drain.expect("it drains");
        assert_eq!((serde_json::json!(drain.then), said.reason.as_str()), (Value::from(then), how.as_str()));
        assert_eq!((drain.until.to_string().as_str(), drain.deadline_in_ms.is_some()), (until, !deadline.is_empty()));
        if until != "0" {
            held.pop().expect("two").close().expect("it ends as it would have anyway");
        }
        let (state, words) = match then {
            "halt" => ("halt", " ended"),
            _ => ("drained", " left then"),
        };
        until_says(&mut page, &member("front-end", &home, ".state"), state);
        until_says(&mut page, &member("front-end", &home, ".said"), &how);
        let left = if held.len() == 1 { "1 connection" } else { "2 connections" };
        until_says(&mut page, &member("front-end", &home, ".said"), &format!("{left}{words}"));
        match then {
            "halt" => assert!(held.iter_mut().all(Connection::is_ended), "{how}"),
            _ => assert!(held.iter_mut().all(|one| one.echo(b"still there").is_ok()), "{how}"),
        }
        stage.relay.order(&format!("front-end/{home}"), "ready", &OrderBody::default());
    }
    expect_no_faults(&mut page);
}

#[test]
#[ignore = "needs the Debian package chromium"]
fn t_18_a_drain_is_over_at_so_many_connections() {
    in_lab(t_18_a_drain_is_over_at_so_many_connections, Topology::TwoArm, 3, |lab| {
        drain_by(lab, &[("", "1", "stay"), ("", "1", "halt")]);
    });
}

#[test]
#[ignore = "needs the Debian package chromium"]
fn t_18_a_drain_is_over_after_so_many_minutes() {
    in_lab(t_18_a_drain_is_over_after_so_many_minutes, Topology::TwoArm, 3, |lab| {
        drain_by(lab, &[("minutes", "0", "halt"), ("minutes", "0", "stay")]);
    });
}

#[test]
#[ignore = "needs the Debian package chromium"]
fn the_page_says_how_the_process_is() {
    in_lab(the_page_says_how_the_process_is, Topology::TwoArm, 1, |lab| {
        let _origin = Origin::tcp(lab.server(1), FRONT_END);
        let vip = lab.vip(100);
        let config = |role: &str, more: &str| {
            let service = of(lab, "front-end", vip, FRONT_END, more, "FE", &[1]);
            format!("{}{LIMITS}[runtime]\nrole = \"{role}\"\n{service}", control(""))
        };
        let mut relay = subject!().start(lab.balancer(), &config("active", ""));
        relay.until_all_up();
        for _ in 0..3 {
            who(lab.client(), (vip, FRONT_END));
        }
        let mut page = open(lab, "vera");
        until_says(&mut page, "#process-list", "active");
        until_says(&mut page, "#process-list", "none among the latest events");
        // How long things take, of this service.
        until_says(&mut page, ".latencies", "Connect");
        until_says(&mut page, ".latencies", "First byte");
        until_says(&mut page, ".latencies", "since the start half within");
        // How busy each worker is, in words and for those who do not see the bar; with the second answer.
        page.until("a share", "/\\d+ %/.test(document.querySelector('#worker-rows [data-label=Busy]').innerText)");
        let meters = page.value("[...document.querySelectorAll('#worker-rows [role=meter]')].map((each) => [each.getAttribute('aria-label'), each.getAttribute('aria-valuetext')])");
        let meters = meters.as_array().expect("a list");
        assert_eq!(meters.len(), relay.status().workers.len());
        for (id, meter) in meters.iter().enumerate() {
            assert_eq!(meter[0], format!("Busy: worker {id}"));
            assert!(meter[1].as_str().is_some_and(|words| words.ends_with(" %")), "{meter}");
        }
        // Another generation, by a reload.
        let generation = relay.reload(&config("active", "drain_timeout = \"1m\"\n")).expect("it is right");
        until_says(&mut page, "#process-list", &format!("generation {generation}"));
        until_says(&mut page, "#process-list", "taken");
        // Of two machines the one that waits.
        relay.reload(&config("standby", "")).expect("it is right");
        until_says(&mut page, "#process-list", "standby");
        until_says(&mut page, "#attention-list", "another machine has the addresses");
        until_says(&mut page, "#daemon", "standby");
        expect_sound(&mut page, "process");
        picture(&mut page, "process", true);
        expect_no_faults(&mut page);
    });
}

/// So many services, and the page shows those that matter.
const SERVICES: usize = 1_000;

#[test]
#[ignore = "needs the Debian package chromium"]
fn a_thousand_services_are_found_and_sorted() {
    in_lab(a_thousand_services_are_found_and_sorted, Topology::TwoArm, 1, |lab| {
        let vip = lab.vip(100);
        let services: String = (0..SERVICES)
            .map(|n| {
                let port = 10_000 + u16::try_from(n).expect("few");
                let server = (lab.server(1).ipv4(), port).into();
                let name = format!("service-{n}");
                service_to(&name, vip, &port.to_string(), "balance = \"least-connections\"\n", &[("only", server)])
            })
            .collect();
        let last = (vip, 10_000 + u16::try_from(SERVICES - 1).expect("few"));
        let _origin = Origin::tcp(lab.server(1), last.1);
        let relay = subject!().start(lab.balancer(), &format!("{}{LIMITS}{services}", control("")));
        let mut held = Connection::open(lab.client(), last).expect("somebody serves");
        held.greeting().expect("a greeting");
        relay.order("service-500/only", "halt", &OrderBody::default());
        let mut page = open(lab, "vera");
        let rows = "[...document.querySelectorAll('#service-rows tr.service')]";
        let names = |page: &mut Browser, count: usize| {
            page.value(&format!("{rows}.slice(0, {count}).map((row) => row.querySelector('.open').innerText)"))
        };
        let sort = |page: &mut Browser, by: &str| page.click(&format!("th[data-sort={by}] button"));
        until_says(&mut page, "#services-shown", "100 of 1,000");
        assert_eq!(page.value(&format!("{rows}.length")), 100);
        assert_eq!(names(&mut page, 2), serde_json::json!(["service-0", "service-1"]));
        // What is down stands first when that is wanted.
        sort(&mut page, "state");
        assert_eq!(names(&mut page, 2), serde_json::json!(["service-500", "service-0"]));
        sort(&mut page, "connections");
        assert_eq!(names(&mut page, 1), serde_json::json!(["service-999"]));
        let heads =
            "[...document.querySelectorAll('th[aria-sort]')].map((head) => [head.innerText.trim(), head.ariaSort])";
        assert_eq!(page.value(heads), serde_json::json!([["Connections", "descending"]]));
        // By the numbers in names, the other way round, and as in the file again.
        sort(&mut page, "service");
        assert_eq!(names(&mut page, 3), serde_json::json!(["service-0", "service-1", "service-2"]));
        sort(&mut page, "service");
        assert_eq!(names(&mut page, 1), serde_json::json!(["service-999"]));
        assert_eq!(page.value(heads), serde_json::json!([["Service", "descending"]]));
        sort(&mut page, "service");
        assert_eq!(page.value(heads), serde_json::json!([]));
        page.click("#more-services");
        until_says(&mut page, "#services-shown", "200 of 1,000");
        page.write("#filter", "service-99");
        until_says(&mut page, "#services-shown", "11 of 1,000");
        assert_eq!(names(&mut page, 2), serde_json::json!(["service-99", "service-990"]));
        page.write("#filter", "service-1");
        until_says(&mut page, "#services-shown", "100 of 111 that are like that, of 1,000");
        // How long the page has its thread for one drawing, with a hundred rows and with all: that depends on the machine, so it is only told.
        page.write("#filter", "s");
        let took = page.value(
            "(async () => {
                const drawn = () => {
                    const began = performance.now();
                    document.querySelector('#filter').dispatchEvent(new Event('input'));
                    document.body.getBoundingClientRect();
                    return performance.now() - began;
                };
                const hundred = drawn();
                const nodes = document.querySelectorAll('*').length;
                for (let more = 0; more < 9; more += 1) document.querySelector('#more-services').click();
                document.body.getBoundingClientRect();
                const sort = document.querySelector('#sort');
                sort.value = 'service turned';
                const all = await new Promise((resolve) => requestAnimationFrame(() => {
                    const at = performance.now();
                    document.querySelector('#more-services').click();
                    document.body.getBoundingClientRect();
                    resolve(performance.now() - at);
                }));
                return { hundred_ms: hundred, all_ms: all, nodes, rows: document.querySelectorAll('#service-rows tr.service').length };
            })()",
        );
        eprintln!("{SERVICES} services: {took}");
        assert!(took["nodes"].as_u64().is_some_and(|nodes| nodes < 12_000), "{took}");
        assert_eq!(took["rows"], SERVICES);
        expect_no_faults(&mut page);
    });
}

#[test]
#[ignore = "needs the Debian package chromium"]
fn a_weight_is_set_and_taken_back_and_a_check_shows_its_steps() {
    in_lab(a_weight_is_set_and_taken_back_and_a_check_shows_its_steps, Topology::TwoArm, 3, |lab| {
        let stage = Stage::set(lab, &[1, 3], FULL);
        stage.until_up(&["FE-1", "FE-3", "MBX-1", "MBX-3", "DC-1"]);
        let mut page = open(lab, "alice");
        page.click(&button("front-end", "FE-1", "weight"));
        page.write("#weight-number", "7");
        page.click("#order-go");
        until_says(&mut page, &member("front-end", "FE-1", ".said"), "weight changed from 100");
        assert_eq!(stage.relay.server("front-end", "FE-1").weight, 7);
        page.click(&button("front-end", "FE-1", "weight"));
        page.click("#weight-configured");
        page.click("#order-go");
        eventually("the weight of the configuration", || {
            (stage.relay.server("front-end", "FE-1").weight == 100).then_some(())
        });
        // What is not a weight is refused in words.
        page.click(&button("front-end", "FE-1", "weight"));
        page.write("#weight-number", "70000");
        page.until(
            "a refusal",
            "document.querySelector('#order-error').checkVisibility() && document.querySelector('#order-go').disabled",
        );
        page.press(Key::Escape);
        page.click(&button("front-end", "FE-2", "check"));
        until_says(&mut page, "#check-result", "connection refused");
        until_says(&mut page, "#check-result", "failed");
        page.click("#check-close");
        expect_no_faults(&mut page);
    });
}

#[test]
#[ignore = "needs the Debian package chromium"]
fn who_is_not_logged_in_sees_nothing() {
    in_lab(who_is_not_logged_in_sees_nothing, Topology::TwoArm, 3, |lab| {
        let stage = Stage::set(lab, &[1, 2, 3], &format!("{FULL}\nsession_idle_timeout = \"1m\""));
        let mut page = browser(lab.balancer());
        page.go(AT);
        page.until("the login", "document.querySelector('#login').checkVisibility()");
        picture(&mut page, "login", false);
        page.write("#login-user", "alice");
        page.write("#login-password", "wrong");
        page.press(Key::Enter);
        page.until("a refusal", "document.querySelector('#login-error').checkVisibility()");
        assert_eq!(page.value("document.querySelector('#login-password').value"), "");
        assert!(!page.text("body").contains("front-end"));
        expect_readable(&mut page, "login");
        expect_sound(&mut page, "login");
        page.write("#login-password", PASSWORD);
        page.press(Key::Enter);
        page.until("the overview", "document.querySelectorAll('#service-rows tr.service').length");
        assert_eq!(page.text("#who"), "alice (operator)");
        // Scripts do not get at the cookie.
        assert_eq!(page.value("document.cookie"), "");
        // Who has done nothing for nearly as long as that may be is asked: here the page's clock is told so.
        page.value("(() => { const [of, now] = [performance, performance.now.bind(performance)]; of.now = () => now() + 50_000; })()");
        until_says(&mut page, "#idle-words", "You will be logged out in");
        page.click("#idle-stay");
        page.until("no question any more", "!document.querySelector('#idle').open");
        // The session ends elsewhere, as in another window.
        page.value("import('/page/api.js').then((api) => api.session()).then((session) => fetch('/v1/logout', { method: 'POST', headers: { 'Content-Type': 'application/json', 'X-CSRF-Token': session.csrf }, body: '{}' })).then((answer) => answer.status)");
        until_says(&mut page, "#login-why", "Your session is over.");
        assert_eq!(page.value("document.body.textContent.includes('front-end')"), false);
        assert_eq!(page.value("fetch('/v1/status').then((answer) => answer.status)"), 401);
        drop(stage);
        expect_no_faults(&mut page);
    });
}

#[test]
#[ignore = "needs the Debian package chromium"]
fn who_does_nothing_is_logged_out() {
    in_lab(who_does_nothing_is_logged_out, Topology::TwoArm, 1, |lab| {
        let keys = control("session_idle_timeout = \"3s\"");
        let config = format!("{keys}{LIMITS}{}", of(lab, "front-end", lab.vip(100), FRONT_END, "", "FE", &[1]));
        let _relay = subject!().start(lab.balancer(), &config);
        let mut page = open(lab, "alice");
        // What the page asks by itself does not count.
        until_says(&mut page, "#login-why", "You were logged out because the page was not used.");
        expect_no_faults(&mut page);
    });
}

#[test]
#[ignore = "needs the Debian package chromium"]
fn over_tls_the_page_is_the_same() {
    in_lab(over_tls_the_page_is_the_same, Topology::TwoArm, 3, |lab| {
        let pki = Pki::new();
        let at = lab.balancer().ipv4();
        let keys = control(FULL).replace("127.0.0.1", &at.to_string());
        let files =
            format!("certificate = \"{}\"\nprivate_key = \"{}\"\n", pki.certificate().display(), pki.key().display());
        let (listen, rest) = keys.split_once('\n').expect("a line");
        let services = of(lab, "front-end", lab.vip(100), FRONT_END, "", "FE", &[1, 2]);
        let _relay = subject!().start(lab.balancer(), &format!("{listen}\n{files}{rest}{LIMITS}{services}"));
        let mut page = browser(lab.client());
        page.trust_everybody();
        page.go(&format!("https://{at}:9443/"));
        log_in(&mut page, "alice");
        page.click(&button("front-end", "FE-1", "halt"));
        page.until("its effect", "document.querySelector('#order-effect').innerText !== ''");
        page.press(Key::Escape);
        page.click("#logout");
        until_says(&mut page, "#login-why", "You are logged out.");
        expect_no_faults(&mut page);
    });
}

#[test]
#[ignore = "needs the Debian package chromium"]
fn who_may_only_look_has_nothing_to_press() {
    in_lab(who_may_only_look_has_nothing_to_press, Topology::TwoArm, 3, |lab| {
        let acts = "[...document.querySelectorAll('.acts')].filter((each) => each.checkVisibility()).length";
        {
            let _stage = Stage::set(lab, &[1, 2, 3], FULL);
            let mut page = open(lab, "vera");
            until_says(&mut page, "#who", "vera (viewer)");
            assert_eq!(page.value(acts), 0);
        }
        // The page itself may change nothing, whoever has logged in.
        let (stage, mut page) = {
            let vip = lab.vip(101);
            let config = format!("{}{LIMITS}{}", control(""), of(lab, "front-end", vip, FRONT_END, "", "FE", &[1, 2]));
            let relay = subject!().start(lab.balancer(), &config);
            (relay, open(lab, "alice"))
        };
        until_says(&mut page, "#who", "alice (operator)");
        assert_eq!(page.value(acts), 0);
        let refused = "import('/page/api.js').then((api) => api.session().then(() => api.order('halt', 'front-end', 'FE-1', {}))).catch((refusal) => [refusal.status, refusal.code])";
        assert_eq!(page.value(refused), serde_json::json!([403, "read_only"]));
        assert_eq!(stage.server("front-end", "FE-1").admin, "ready");
        expect_no_faults(&mut page);
    });
}

#[test]
#[ignore = "needs the Debian package chromium"]
fn the_page_can_be_read_by_everybody_everywhere() {
    in_lab(the_page_can_be_read_by_everybody_everywhere, Topology::TwoArm, 3, |lab| {
        let mut stage = Stage::set(lab, &[1, 2, 3], FULL);
        stage.relay.until_all_up();
        stage.origins.remove(1);
        stage.until_up(&["FE-1", "FE-3", "MBX-1", "MBX-3", "DC-1"]);
        let said = OrderBody { reason: "patch day".into(), deadline_ms: Some(900_000), ..OrderBody::default() };
        stage.relay.order("front-end/FE-3", "drain", &said);
        let mut held: Vec<Connection> =
            (0..3).map(|_| Connection::open(lab.client(), stage.front_end()).expect("somebody serves")).collect();
        stage.relay.order(
            "front-end/FE-1",
            "weight",
            &OrderBody { weight: Some(towpath_engine::admin::WeightBody::Number(50)), ..OrderBody::default() },
        );
        let mut page = open(lab, "alice");
        until_says(&mut page, &member("front-end", "FE-3", ".said"), "patch day");
        for dark in [false, true] {
            page.prefer_dark(dark);
            expect_readable(&mut page, if dark { "dark" } else { "light" });
        }
        expect_sound(&mut page, "overview");
        // A choice of the user's counts more than the system's, and is still there after a reload of the page.
        page.choose("#theme", "light");
        assert_eq!(page.value("getComputedStyle(document.documentElement).colorScheme"), "light");
        page.reload();
        page.until("the overview", "document.querySelectorAll('.member').length");
        assert_eq!(page.value("getComputedStyle(document.documentElement).colorScheme"), "light");
        page.choose("#theme", "auto");
        page.prefer_dark(false);
        // Dialogs are read as well.
        page.click(&button("front-end", "FE-1", "halt"));
        page.until("its effect", "document.querySelector('#order-effect').innerText !== ''");
        expect_readable(&mut page, "dialog");
        expect_sound(&mut page, "dialog");
        page.press(Key::Escape);
        // Everything that can be pressed or filled in has a name.
        let spoken = page.spoken();
        let nameless = spoken.iter().filter(|(role, name)| {
            ["button", "link", "textbox", "searchbox", "combobox", "checkbox", "meter", "table", "dialog"]
                .contains(&role.as_str())
                && name.is_empty()
        });
        assert_eq!(nameless.collect::<Vec<_>>(), [] as [&(String, String); 0]);
        for expected in [
            ("button", "Drain: FE-1 of front-end"),
            ("heading", "Services"),
            ("columnheader", "VIP"),
            ("rowheader", "front-end"),
            ("meter", "Connections"),
        ] {
            assert!(
                spoken.iter().any(|(role, name)| (role.as_str(), name.as_str()) == expected),
                "{expected:?} in {spoken:?}"
            );
        }
        // No part is wider than a phone, and what is pressed there is large enough for a finger (WCAG 2.2, 2.5.8).
        page.size(PHONE.0, PHONE.1, true);
        for dark in [false, true] {
            page.prefer_dark(dark);
            let wide = page.value("[document.documentElement.scrollWidth, innerWidth]");
            assert_eq!(wide[0], wide[1]);
            expect_readable(&mut page, "phone");
            expect_sound(&mut page, "phone");
            let small = page.value(
                "[...document.querySelectorAll('button, select, a:not(.skip), input')].filter((each) => each.checkVisibility())
                    .map((each) => [each.innerText || each.id, (each.closest('label') ?? each).getBoundingClientRect().height])
                    .filter(([, height]) => height < 24)",
            );
            assert_eq!(small, Value::Array(Vec::new()));
        }
        page.prefer_dark(false);
        picture(&mut page, "phone", false);
        for connection in &mut held {
            connection.greeting().expect("a greeting");
        }
        expect_no_faults(&mut page);
    });
}

#[test]
#[ignore = "needs the Debian package chromium"]
fn a_keyboard_is_enough() {
    in_lab(a_keyboard_is_enough, Topology::TwoArm, 3, |lab| {
        let stage = Stage::set(lab, &[1, 2, 3], FULL);
        stage.relay.until_all_up();
        let mut page = open(lab, "alice");
        // The first stop leads past the head, and where the focus is is seen.
        page.go(AT);
        page.until("the overview", "document.querySelectorAll('.member').length");
        let mut stops = Vec::new();
        for _ in 0..60 {
            page.press(Key::Tab);
            let stop = page.value(
                "(() => { const it = document.activeElement; return [it.getAttribute('aria-label') ?? it.innerText ?? it.id, getComputedStyle(it).outlineStyle]; })()",
            );
            assert_ne!(stop[1], "none", "{stop}");
            let name = stop[0].as_str().unwrap_or_default().to_owned();
            stops.push(name.clone());
            if name == "Halt: FE-1 of front-end" {
                break;
            }
        }
        assert_eq!(stops.first().map(String::as_str), Some("Skip to the services"), "{stops:?}");
        assert!(
            stops.iter().any(|stop| stop == "front-end") && stops.last().is_some_and(|stop| stop.starts_with("Halt")),
            "{stops:?}"
        );
        page.press(Key::Enter);
        until_says(&mut page, "#order-heading", "Halt FE-1 of front-end");
        page.until("its effect", "!document.querySelector('#order-go').disabled");
        // Answers go on coming meanwhile, and take nobody's place.
        let generation = page.text("#daemon");
        page.until(
            "another answer",
            &format!("document.querySelector('#daemon').innerText !== {}", Value::from(generation)),
        );
        assert_eq!(page.value("document.activeElement.id"), "order-reason");
        page.press(Key::Escape);
        page.until(
            "the focus is back",
            "document.activeElement.getAttribute('aria-label') === 'Halt: FE-1 of front-end'",
        );
        page.press(Key::Enter);
        page.until(
            "its effect",
            "document.querySelector('#order').open && !document.querySelector('#order-go').disabled",
        );
        page.press(Key::Enter);
        until_says(&mut page, &member("front-end", "FE-1", ".state"), "halt");
        assert_eq!(stage.relay.server("front-end", "FE-1").admin, "halt");
        expect_no_faults(&mut page);
    });
}

#[test]
#[ignore = "needs the Debian package chromium"]
fn a_daemon_that_is_gone_is_told_and_found_again() {
    in_lab(a_daemon_that_is_gone_is_told_and_found_again, Topology::TwoArm, 3, |lab| {
        let stage = Stage::set(lab, &[1, 2, 3], FULL);
        let mut page = open(lab, "alice");
        let Stage { relay, vip: _, origins: _origins, _files } = stage;
        let _relay = relay.restart(lab.balancer(), || {
            until_says(&mut page, "#notices", "The daemon does not answer.");
        });
        // It knows nobody any more.
        until_says(&mut page, "#login-why", "Your session is over.");
        log_in(&mut page, "alice");
        expect_no_faults(&mut page);
    });
}

#[test]
#[ignore = "needs the Debian package chromium"]
fn figures_read_as_on_the_command_line() {
    in_lab(figures_read_as_on_the_command_line, Topology::TwoArm, 1, |lab| {
        let config =
            format!("{}{LIMITS}{}", control(""), of(lab, "front-end", lab.vip(100), FRONT_END, "", "FE", &[1]));
        let _relay = subject!().start(lab.balancer(), &config);
        let mut page = browser(lab.balancer());
        page.go(AT);
        page.until("the page", "document.querySelector('#login').checkVisibility()");
        let mut tell = |call: &str| page.value(&format!("import('/page/words.js').then((words) => words.{call})"));
        for (call, expected) in [
            ("thousands(1234567)", "1,234,567"),
            ("counted(1, 'server')", "1 server"),
            ("counted(0, 'server')", "0 servers"),
            ("span(999)", "999 ms"),
            ("span(59999)", "59 s"),
            ("span(60000)", "1 min 0 s"),
            ("span(86399999)", "23 h 59 min"),
            ("span(90000000)", "1 d 1 h"),
            ("countdown(60000)", "1:00"),
            ("countdown(59001)", "1:00"),
            ("countdown(3599000)", "59:59"),
            ("countdown(3600000)", "1:00:00"),
            ("countdown(-1)", "0:00"),
            ("bytes(999)", "999 B"),
            ("bytes(999960)", "1.0 MB"),
            ("bytes(1240000000)", "1.2 GB"),
            ("rate(0)", "0"),
            ("rate(0.25)", "0.3"),
            ("rate(12345.6)", "12,346"),
            ("ports([])", "all"),
            ("ports([80, 443, 444, 5061, 5062, 5063])", "80, 443, 444, 5061-5063"),
            ("socket('2001:db8::1', 443)", "[2001:db8::1]:443"),
            ("socket('192.0.2.1', null)", "192.0.2.1"),
            ("utc(0)", "1970-01-01 00:00:00 UTC"),
            ("clock(1000, 2000)", "00:00:01"),
            ("clock(1000, 90000000)", "1970-01-01 00:00:01"),
            ("percent(1, 1000)", "< 1 %"),
            ("percent(999, 1000)", "> 99 %"),
            ("percent(0, 0)", "0 %"),
            ("limitState({ level: 'ok' }).tone", "good"),
            ("limitState({ level: 'high' }).tone", "warn"),
            ("limitState({ level: 'full' }).tone", "bad"),
            ("limitName({ name: 'queue', subject: 'owa' })", "Queue of owa"),
            ("limitWords({ used: 1200, max: 9936, unit: 'connections' })", "1,200 of 9,936"),
            ("limitWords({ used: 2e8, max: 8.3e9, unit: 'bytes' })", "200.0 MB of 8.3 GB"),
            (
                "certificateState({ seconds_left: 30 * 86400, not_before_unix_seconds: 0, not_after_unix_seconds: 1e9 }).word",
                "30 days left",
            ),
            (
                "certificateState({ seconds_left: 29 * 86400, not_before_unix_seconds: 0, not_after_unix_seconds: 1e9 }).tone",
                "warn",
            ),
            (
                "certificateState({ seconds_left: 86400, not_before_unix_seconds: 0, not_after_unix_seconds: 1e9 }).word",
                "1 d 0 h left",
            ),
            (
                "certificateState({ seconds_left: -3600, not_before_unix_seconds: 0, not_after_unix_seconds: 1e9 }).word",
                "ended 1 h 0 min ago",
            ),
            (
                "certificateState({ seconds_left: 2e9, not_before_unix_seconds: 0, not_after_unix_seconds: 1e9 }).word",
                "not valid yet",
            ),
            (
                "drainWords({ deadline_in_ms: 241000, until: 5, then: 'halt', over: null }, 1000)",
                "over in 4:00 or at 5 connections, then halt",
            ),
            (
                "drainWords({ deadline_in_ms: null, until: 0, then: 'stay', over: null }, 0)",
                "over when no connection is left",
            ),
            (
                "drainWords({ deadline_in_ms: null, until: 0, then: 'halt', over: { why: 'deadline', left: 1 } }, 0)",
                "its deadline has passed, 1 connection ended",
            ),
            ("serverState({ admin: 'drain', service_connections: 0, health: 'up' }).word", "drained"),
            ("serverState({ admin: 'drain', service_connections: 1, health: 'up' }).word", "drain"),
            ("serverState({ admin: 'ready', health: 'up', duty: 'standby' }).word", "standby"),
            ("serverState({ admin: 'ready', health: 'held', duty: 'primary' }).word", "held"),
            ("takesNew({ admin: 'ready', weight: 1, health: 'down', duty: 'fail-open' })", "true"),
            ("takesNew({ admin: 'ready', weight: 0, health: 'up', duty: 'primary' })", "false"),
            ("takesNew({ admin: 'ready', weight: 1, health: 'up', duty: 'standby' })", "false"),
            // Whoever is called so is none, and who is may have any name.
            ("isSorry({ name: 'sorry', duty: 'standby', sorry: false })", "false"),
            ("isSorry({ name: 'away', duty: 'standby', sorry: true })", "true"),
            ("serverState({ admin: 'ready', health: 'up', duty: 'sorry', sorry: true }).word", "sorry"),
            ("serverState({ admin: 'ready', health: 'up', duty: 'standby', sorry: true }).word", "standby"),
            ("roleState('active').tone", "good"),
            ("roleState('standby').word", "standby"),
            ("microseconds(null)", "–"),
            ("microseconds(850)", "850 µs"),
            ("microseconds(2500)", "2.5 ms"),
            ("microseconds(150000)", "150 ms"),
            ("microseconds(2500000)", "2.5 s"),
            ("microseconds(60000000)", "1 min 0 s"),
            (
                "takenOverWords({ pid: 7, version: '0.9.0', at_unix_ms: 0, finishing: 1 }, 61000)",
                "from process 7 (0.9.0) 1 min 1 s ago, where 1 connection finishes",
            ),
            (
                "takenOverWords({ pid: 7, version: '0.9.0', at_unix_ms: 0, finishing: null }, 61000)",
                "from process 7 (0.9.0) 1 min 1 s ago, which has gone",
            ),
            ("lastReload([])", "null"),
            (
                "lastReload([{ kind: 'configuration', services: [], subject: null, from: 'generation 3', to: 'generation 4', reason: 'by alice' }]).words",
                "generation 3 → generation 4: by alice",
            ),
            // What it has changed, and what others say afterwards, is not what became of it.
            (
                "lastReload([{ kind: 'configuration', services: [], subject: null, from: 'generation 4', to: 'generation 4', reason: 'refused' },
                    { kind: 'configuration', services: [], subject: null, from: 'workers: 1', to: 'workers: 2', reason: '' },
                    { kind: 'configuration', services: ['web'], subject: 'service web', from: '', to: 'added', reason: '' },
                    { kind: 'health', services: [], subject: null, from: '', to: '', reason: '' }]).refused",
                "true",
            ),
            (
                "certificateState({ kind: 'revocation list', level: 'valid', seconds_left: 86400, not_before_unix_seconds: 0, not_after_unix_seconds: 1e9 }).tone",
                "good",
            ),
            (
                "certificateState({ kind: 'revocation list', level: 'ends soon', seconds_left: 3600, not_before_unix_seconds: 0, not_after_unix_seconds: 1e9 }).tone",
                "warn",
            ),
            ("certificateName({ kind: 'OCSP response', names: [], file: '/etc/towpath/owa.ocsp' })", "owa.ocsp"),
        ] {
            let told = tell(call);
            assert_eq!(told.as_str().map_or_else(|| told.to_string(), str::to_owned), expected, "{call}");
        }
        // Rates: nothing before the second answer, nothing negative after a restart.
        let courses = page.value(
            "import('/page/history.js').then(({ History }) => {
                const history = new History();
                const server = (connections) => ({ address: '192.0.2.1', port: 443, connections });
                const at = (unix_ms, uptime_seconds, accepted, ...buckets) => history.take({ unix_ms, uptime_seconds,
                    latency_bounds_us: [100, 250],
                    workers: [{ id: 0, counters: { busy_microseconds: uptime_seconds * 250_000 } }],
                    services: [{ name: 'web', accepted, bytes_from_client: 0, bytes_to_client: accepted * 10, counters: {},
                        latencies: { connect: { count: buckets.reduce((sum, each) => sum + each, 0), buckets } },
                        servers: [server(accepted / 100)] }] });
                at(0, 10, 100, 7, 0, 0);
                const first = [...history.of('web').opened];
                at(2000, 12, 300, 7, 0, 0);
                at(4000, 14, 300, 8, 98, 1);
                const then = [...history.of('web').opened];
                const bytes = [...history.of('').bytes];
                const others = [[...history.ofServer(server(0))], [...history.ofWorker(0)], history.lately('web').connect];
                at(6000, 1, 5, 0, 0, 0);
                return [first, then, bytes, ...others, [...history.of('web').opened], history.ofWorker(0)];
            })",
        );
        let lately = serde_json::json!({ "count": 100, "p50Us": 250, "p99Us": 250 });
        assert_eq!(courses, serde_json::json!([[], [100, 0], [1000, 0], [1, 3, 3], [0.25, 0.25], lately, [], []]));
        expect_no_faults(&mut page);
    });
}
