//! The controller's state without its thread: announcements, ids that are given back, verdicts that are kept.

use towpath_core::{VShard, WorkerId};

use super::*;
use towpath_core::persistence::{PERSISTENCE_STRIPES, PersistenceKey};

use crate::shared::SharedSettings;

fn model(keys: &str, servers: &[&str]) -> Model {
    let mut text = format!("[[service]]\nname = \"web\"\nvip = \"192.0.2.1\"\nports = [80]\n{keys}\n");
    for server in servers {
        text += &format!("[[service.server]]\nname = \"s{server}\"\naddress = \"192.0.2.{server}\"\nport = 8080\n");
    }
    let checked = towpath_config::check("test.toml", &text);
    let errors: Vec<String> = checked.errors().map(|d| d.message.clone()).collect();
    checked.model.unwrap_or_else(|| panic!("{errors:?}"))
}

fn http() -> HttpMaterial {
    HttpMaterial::new(HttpSecret::new([7; 16]))
}

fn first(model: Model) -> (Truth, Arc<Shared>) {
    let (truth, snapshot) = Truth::first(
        model,
        TlsMaterial::default(),
        http(),
        Arc::new(SteeringTable::even(1)),
        state_file::Found::default(),
        &BTreeMap::new(),
    )
    .unwrap();
    let settings = SharedSettings {
        cpus: vec![0],
        services_max: towpath_core::snapshot::SERVICES_MAX,
        real_servers_max: 16,
        connections_max: 100,
        udp_sessions_max: 100,
        handshakes_max: 100,
        persistence_entries: 64,
        seed: 7,
    };
    (truth, Arc::new(Shared::new(&settings, snapshot).unwrap()))
}

fn told(truth: &Truth, kind: EventKind) -> Vec<String> {
    truth.events.latest(usize::MAX).iter().filter(|event| event.kind == kind).map(Event::line).collect()
}

/// Publishes `model` and lets the one worker adopt it.
fn take(truth: &mut Truth, shared: &Shared, model: Model) {
    let steering = Arc::new(SteeringTable::even(1));
    let next = truth
        .take(model, (TlsMaterial::default(), http()), steering, &shared.snapshot(), "a test", shared.now())
        .unwrap();
    shared.publish(next.clone());
    shared.report_adopted(WorkerId(0), next.snapshot.generation);
}

#[test]
fn nearly_exhausted_source_ports_are_announced_once_and_taken_back_when_calm() {
    let pool = "source = { pool = [\"192.0.2.5\"], ports = \"2000-2009\" }";
    let (mut truth, shared) = first(model(pool, &["11"]));
    let snapshot = shared.snapshot();
    let service = snapshot.each_service().next().unwrap();
    let ServiceSource::Pool(pool) = &service.source else { panic!("a pool is configured") };
    let destination: SocketAddr = "192.0.2.11:8080".parse().unwrap();
    let mut leases = Vec::new();
    for count in 1..=10 {
        leases.push(pool.lease(destination, VShard(0), &snapshot.steering, WorkerId(0)).unwrap());
        truth.announce_source_ports(&snapshot);
        assert_eq!(told(&truth, EventKind::SourcePorts).len(), usize::from(count >= 8), "at {count} of 10");
    }
    assert_eq!(
        told(&truth, EventKind::SourcePorts),
        ["source address 192.0.2.5 towards 192.0.2.11:8080 of web: calm → nearly exhausted: 8 of 10 ports leased; \
          add an address to source.pool"]
    );
    for _ in 0..3 {
        pool.release(leases.pop().unwrap());
        truth.announce_source_ports(&snapshot);
    }
    assert_eq!(told(&truth, EventKind::SourcePorts).len(), 1, "70 % is not calm yet");
    pool.release(leases.pop().unwrap());
    truth.announce_source_ports(&snapshot);
    assert_eq!(told(&truth, EventKind::SourcePorts).len(), 2);
}

#[test]
fn the_id_of_a_removed_server_is_kept_while_somebody_holds_it() {
    let (mut truth, shared) = first(model("", &["11", "12"]));
    let gone = truth.registry().server("192.0.2.12".parse().unwrap(), Some(8080)).unwrap();
    let service = truth.registry().service("web").unwrap();
    shared.loads().try_open(service, 0, gone, 0).unwrap();
    take(&mut truth, &shared, model("", &["11"]));
    truth.release_gone(&shared);
    assert!(truth.registry().gone_servers().eq([gone]), "a connection holds it");
    shared.close(service, gone);
    truth.release_gone(&shared);
    assert_eq!(truth.registry().gone_servers().count(), 0);
}

#[test]
fn the_id_of_a_removed_server_is_kept_until_every_worker_has_let_go_of_the_old_snapshot() {
    let (mut truth, shared) = first(model("", &["11", "12"]));
    let next = truth
        .take(
            model("", &["11"]),
            (TlsMaterial::default(), http()),
            Arc::new(SteeringTable::even(1)),
            &shared.snapshot(),
            "a test",
            shared.now(),
        )
        .unwrap();
    shared.publish(next.clone());
    truth.release_gone(&shared);
    assert_eq!(truth.registry().gone_servers().count(), 1, "the worker may still pick it");
    shared.report_adopted(WorkerId(0), next.snapshot.generation);
    truth.release_gone(&shared);
    assert_eq!(truth.registry().gone_servers().count(), 0);
}

/// So many services of these names, each on a port of its own.
fn many(name: &str, count: usize, keys: &str) -> Model {
    let service = |at: usize| {
        format!(
            "[[service]]\nname = \"{name}-{at}\"\nvip = \"192.0.2.1\"\nports = {}\n{keys}\n[[service.server]]\nname = \"s\"\n\
             address = \"192.0.2.11\"\n",
            1_000 + at
        )
    };
    let text: String = (0..count).map(service).collect();
    towpath_config::check("test.toml", &text).model.unwrap_or_else(|| panic!("no model of {count} services"))
}

#[test]
fn names_come_and_go_for_ever_and_who_has_an_id_next_begins_at_nothing() {
    const AT_A_TIME: usize = 300;
    let (mut truth, shared) = first(many("first", AT_A_TIME, "persistence = { by = \"source-ip\" }"));
    let named = |truth: &Truth, name: &str| truth.registry().service(name).expect("it has an id");
    let (held, free) = (named(&truth, "first-7"), named(&truth, "first-8"));
    // What a relay has while it lives.
    let form = Arc::clone(shared.snapshot().service(held).expect("it is served"));
    let server = truth.registry().server("192.0.2.11".parse().unwrap(), None).expect("it is named");
    let service = Arc::clone(shared.snapshot().service(free).expect("it is served"));
    let key = PersistenceKey::of_fingerprint(free, [3; 16]);
    shared.learn(&service, key, server, shared.now());
    let remembered = || {
        let mut count = 0;
        for stripe in 0..PERSISTENCE_STRIPES {
            shared.survey_persistence(stripe, 0, usize::MAX, |entry| count += usize::from(entry.key == key));
        }
        count
    };
    assert_eq!(remembered(), 1);
    drop(service);
    shared.seat(WorkerId(0)).service_page(free).add(ServiceCounter::Accepted, 9);
    assert_eq!(truth.counted(free, &shared).read(ServiceCounter::Accepted), 9);
    for round in 0..8 {
        truth.release_gone(&shared);
        take(&mut truth, &shared, many(&format!("round-{round}"), AT_A_TIME, ""));
        assert_eq!(truth.registry().service("first-7"), Some(held), "somebody holds it");
    }
    assert_eq!(truth.registry().service("first-8"), None);
    assert!((0..AT_A_TIME).all(|at| named(&truth, &format!("round-7-{at}")) != held));
    assert_eq!(truth.counted(free, &shared).read(ServiceCounter::Accepted), 0);
    assert_eq!(remembered(), 0, "the next service with this id knows nobody");
    assert_eq!(
        truth.remnants(&shared.snapshot()).iter().map(|form| form.name.as_str()).collect::<Vec<_>>(),
        ["first-7"]
    );
    drop(form);
    for round in 8..12 {
        truth.release_gone(&shared);
        take(&mut truth, &shared, many(&format!("round-{round}"), AT_A_TIME, ""));
    }
    assert_eq!(truth.registry().service("first-7"), None, "nobody holds it any more");
}

#[test]
fn the_latest_names_that_are_gone_keep_their_ids() {
    let (mut truth, shared) = first(many("first", 64, ""));
    let id = truth.registry().service("first-7");
    take(&mut truth, &shared, many("second", 100, ""));
    truth.release_gone(&shared);
    assert_eq!(truth.registry().service("first-7"), id, "it counts on when it comes back");
    take(&mut truth, &shared, many("third", 100, ""));
    truth.release_gone(&shared);
    assert_eq!(truth.registry().service("first-7"), None, "others have gone since");
}

#[test]
fn the_id_of_a_service_of_the_packet_plane_rests_as_long_as_its_closed_flows() {
    let keys = "plane = \"packet\"\nsource = \"vip\"";
    let (mut truth, shared) = first(many("first", 80, keys));
    take(&mut truth, &shared, many("second", 10, ""));
    // Without flows it does not linger.
    truth.turn_leaving(&shared);
    let next = truth.next(shared.generation()).expect("it compiles");
    shared.publish(next.clone());
    shared.report_adopted(WorkerId(0), next.snapshot.generation);
    let gone = |truth: &Truth| truth.registry().gone_services().count();
    let since = shared.now();
    truth.release_services(&shared, since);
    assert_eq!(gone(&truth), 80, "late packets of a flow that was closed may come for eight minutes");
    truth.release_services(&shared, since + 479_999);
    assert_eq!(gone(&truth), 80);
    truth.release_services(&shared, since + 480_000);
    assert_eq!(gone(&truth), 64, "the latest keep theirs");
}

#[test]
fn a_server_keeps_its_verdict_when_its_check_changes_and_a_new_one_has_none() {
    let every =
        |interval: &str| format!("health = {{ check = \"tcp\", interval = \"{interval}\", rise = 2, fall = 3 }}");
    let (mut truth, shared) = first(model(&every("5s"), &["11", "12"]));
    let checks: Vec<CheckPlan> = truth.checks().to_vec();
    for _ in 0..3 {
        truth.judge(checks[0].id, CheckResult::Passed, Now(1));
        truth.judge(checks[1].id, CheckResult::Failed("port 8080: connection refused".to_owned()), Now(1));
    }
    assert!(truth.all_judged());
    let judged = truth.next(shared.generation()).unwrap();
    shared.publish(judged);

    take(&mut truth, &shared, model(&every("9s"), &["11", "12", "13"]));
    let snapshot = shared.snapshot();
    let targets = &snapshot.each_service().next().unwrap().targets;
    let verdicts: Vec<(ServerHealth, &str)> = targets.iter().map(|target| (target.health, &*target.reason)).collect();
    assert_eq!(verdicts[0], (ServerHealth::Up, "check passed"));
    assert_eq!(verdicts[1], (ServerHealth::Down, "port 8080: connection refused"));
    assert_eq!(verdicts[2].0, ServerHealth::Unknown);
}

#[test]
fn a_change_of_health_is_told_with_every_service_that_it_concerns() {
    let health = "health = { check = \"tcp\", fall = 1 }";
    let mut both = model(health, &["11"]);
    let mut second = both.services[0].clone();
    second.name = "mail".to_owned();
    both.services.push(second);
    let (mut truth, _shared) = first(both);
    assert_eq!(truth.checks().len(), 1, "one server, one check");
    let check = truth.checks()[0].id;
    truth.judge(check, CheckResult::Failed("port 8080: connection refused".to_owned()), Now(1));
    assert_eq!(
        told(&truth, EventKind::Health),
        ["server s11 (192.0.2.11) of web, mail: unknown → down: port 8080: connection refused"]
    );
}
