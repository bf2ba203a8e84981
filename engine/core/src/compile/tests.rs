use std::net::IpAddr;

use towpath_config::model::{AdminState, Agent, PassThrough, Passive, Persistence, Protocol, ServiceTls, TlsRoute};

use super::*;
use crate::client_hello::HostName;
use crate::fixtures::{add_service, half_an_hour, http_material, model, server, tcp_check};
use crate::health::{AgentReport, CheckResult};
use crate::passive::Met;
use crate::snat::SnatLimits;

/// What the controller holds.
struct Desk {
    registry: Registry,
    board: HealthBoard,
    snat: SnatBook,
    generation: Generation,
}

impl Desk {
    fn new() -> Desk {
        Desk {
            registry: Registry::new(),
            board: HealthBoard::new(),
            snat: SnatBook::new(SnatLimits::default()),
            generation: Generation(0),
        }
    }

    fn compile(&mut self, model: &Model) -> Result<Snapshot, CompileError> {
        let plans = checks(model, &mut self.registry)?;
        self.board.adopt(&plans, Now(5));
        self.generation.0 += 1;
        let steering = Arc::new(SteeringTable::even(2));
        compile(model, &mut self.registry, &self.board, &mut self.snat, steering, &http_material(), self.generation)
    }

    /// A check of `address` with this outcome on each port, often enough for a verdict.
    fn checked(&mut self, model: &Model, address: &str, answers: impl Fn(u16) -> bool) {
        let plans = checks(model, &mut self.registry).unwrap();
        for plan in plans.iter().filter(|plan| plan.address == address.parse::<IpAddr>().unwrap()) {
            let results: Vec<_> = plan
                .ports
                .iter()
                .map(|&port| (port, if answers(port) { Ok(()) } else { Err("refused".to_owned()) }))
                .collect();
            for _ in 0..3 {
                self.board.on_result(plan.id, plan.judge(&results), Now(77));
            }
        }
    }
}

fn takers(snapshot: &Snapshot, service: u16) -> Vec<&str> {
    let service = snapshot.service(ServiceId(service)).expect("compiled");
    service.targets.iter().filter(|target| target.takes_new()).map(|target| target.name.as_str()).collect()
}

/// One farm of twelve ports (requirements.md, document 001).
const FARM: [u16; 12] = [80, 135, 443, 444, 5060, 5061, 5062, 5065, 5069, 5071, 5072, 5074];
const FE_1: &str = "192.168.10.31";
const FE_2: &str = "192.168.10.32";

#[test]
fn t_35_the_check_port_alone_decides_for_all_ports() {
    let mut model = model();
    add_service(&mut model, "front-end", &[135, 443, 444, 5061, 5065, 5069], &[FE_1, FE_2], Some(tcp_check(&[5061])));
    let mut desk = Desk::new();
    assert_eq!(takers(&desk.compile(&model).unwrap(), 0), [""; 0], "no verdict yet");
    desk.checked(&model, FE_1, |_| true);
    desk.checked(&model, FE_2, |_| true);
    assert_eq!(takers(&desk.compile(&model).unwrap(), 0).len(), 2);
    desk.checked(&model, FE_2, |port| port != 5061);
    let snapshot = desk.compile(&model).unwrap();
    assert_eq!(takers(&snapshot, 0), [format!("server {FE_1}")]);
    let down = &snapshot.service(ServiceId(0)).unwrap().targets[1];
    assert_eq!((down.health, &*down.reason, down.since), (ServerHealth::Down, "port 5061: refused", Now(77)));
    // The other way round nothing happens: 443 is not checked.
    desk.checked(&model, FE_2, |port| port != 443);
    assert_eq!(takers(&desk.compile(&model).unwrap(), 0).len(), 2);
}

#[test]
fn t_36_either_port_of_a_check_group_removes_the_server() {
    let mut model = model();
    add_service(&mut model, "farm", &FARM, &[FE_1, FE_2], Some(tcp_check(&[5061, 444])));
    let mut desk = Desk::new();
    desk.compile(&model).unwrap();
    for (dead, stays) in
        [(vec![], true), (vec![5061], false), (vec![444], false), (vec![444, 5061], false), (vec![443, 80], true)]
    {
        desk.checked(&model, FE_1, |_| true);
        desk.checked(&model, FE_2, |port| !dead.contains(&port));
        let snapshot = desk.compile(&model).unwrap();
        assert_eq!(takers(&snapshot, 0).len(), if stays { 2 } else { 1 }, "dead: {dead:?}");
    }
}

#[test]
fn equal_checks_run_once_and_different_ones_apart() {
    let mut model = model();
    add_service(&mut model, "one", &[5061, 443], &[FE_1, FE_2], Some(tcp_check(&[5061, 444])));
    add_service(&mut model, "same", &[444], &[FE_1], Some(tcp_check(&[444, 5061, 444])));
    add_service(&mut model, "other ports", &[444], &[FE_1], Some(tcp_check(&[])));
    let slower = Health { interval_ms: 60_000, ..tcp_check(&[444, 5061]) };
    add_service(&mut model, "slower", &[444], &[FE_1], Some(slower));
    add_service(&mut model, "unchecked", &[444], &[FE_1], None);
    let mut desk = Desk::new();
    let plans = checks(&model, &mut desk.registry).unwrap();
    let of_fe_1: Vec<_> = plans.iter().filter(|plan| plan.address == FE_1.parse::<IpAddr>().unwrap()).collect();
    let expected = [(vec![444, 5061], 5_000), (vec![444], 5_000), (vec![444, 5061], 60_000)];
    assert_eq!(of_fe_1.iter().map(|plan| (plan.ports.clone(), plan.interval_ms)).collect::<Vec<_>>(), expected);
    assert_eq!(plans.len(), 4);
    assert_eq!(checks(&model, &mut desk.registry).unwrap(), plans, "ids are stable");
    desk.compile(&model).unwrap();
    desk.checked(&model, FE_1, |_| true);
    let snapshot = desk.compile(&model).unwrap();
    let check = |service| snapshot.service(ServiceId(service)).unwrap().targets[0].check;
    assert_eq!(check(0), check(1));
    assert!(check(0) != check(2) && check(0) != check(3) && check(4).is_none());
    let unchecked = &snapshot.service(ServiceId(4)).unwrap().targets[0];
    assert_eq!((unchecked.health, &*unchecked.reason), (ServerHealth::Up, "no health check configured"));
}

#[test]
fn an_agent_is_asked_once_and_its_word_is_laid_over_every_membership() {
    let with_agent = |ports: &[u16]| Health { agent: Some(Agent { port: 9_999, send: None }), ..tcp_check(ports) };
    let mut model = model();
    add_service(&mut model, "one", &[5061], &[FE_1, FE_2], Some(with_agent(&[5061])));
    add_service(&mut model, "two", &[443], &[FE_1, FE_2], Some(with_agent(&[443])));
    add_service(&mut model, "without", &[444], &[FE_1, FE_2], Some(tcp_check(&[444])));
    let mut desk = Desk::new();
    desk.compile(&model).unwrap();
    for address in [FE_1, FE_2] {
        desk.checked(&model, address, |_| true);
    }
    let plans = checks(&model, &mut desk.registry).unwrap();
    let agents: Vec<&CheckPlan> = plans.iter().filter(|plan| plan.is_agent()).collect();
    let asked: Vec<_> = agents.iter().map(|plan| (plan.address.to_string(), plan.ports.clone())).collect();
    assert_eq!(asked, [(FE_1.to_owned(), vec![9_999]), (FE_2.to_owned(), vec![9_999])]);
    let mut say = |line: &str| {
        desk.board.on_answer(agents[0].id, AgentReport::parse(line.as_bytes()), Now(90));
        desk.compile(&model).unwrap()
    };
    let said = say("drain 20%");
    assert_eq!([0, 1, 2].map(|service| takers(&said, service).len()), [1, 1, 2]);
    let weights =
        |service| said.service(ServiceId(service)).unwrap().targets.iter().map(|t| t.weight).collect::<Vec<_>>();
    assert_eq!([weights(0), weights(1), weights(2)], [vec![20, 100], vec![20, 100], vec![100, 100]]);
    let said = say("ready down");
    let target = &said.service(ServiceId(1)).unwrap().targets[0];
    assert_eq!((target.health, target.since, &*target.reason), (ServerHealth::Down, Now(90), "its agent says down"));
    let said = say("up");
    assert_eq!([0, 1, 2].map(|service| takers(&said, service).len()), [2, 2, 2]);
    let pinned = said.service(ServiceId(0)).unwrap().targets[0].clone();
    assert!(pinned.takes_pinned(&half_an_hour()));
    let said = say("maint");
    let entering = Persistence { enter_draining: true, ..half_an_hour() };
    assert!(!said.service(ServiceId(0)).unwrap().targets[0].takes_pinned(&entering));
    let said = say("drain");
    assert!(said.service(ServiceId(0)).unwrap().targets[0].takes_pinned(&entering));
}

#[test]
fn without_ports_a_check_takes_the_servers_port_or_the_first_of_the_service() {
    let mut model = model();
    add_service(&mut model, "front-end", &[135, 443], &[FE_1, FE_2], Some(tcp_check(&[])));
    model.groups[0].servers[1].port = Some(8443);
    let plans = checks(&model, &mut Registry::new()).unwrap();
    assert_eq!(plans.iter().map(|plan| plan.ports[0]).collect::<Vec<_>>(), [135, 8443]);
    model.services[0].ports = Ports::All;
    let error = checks(&model, &mut Registry::new()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "service \"front-end\": the health check of server \"server 192.168.10.31\" has no port; set health.ports"
    );
}

#[test]
fn ids_stay_with_their_names_and_gone_ones_are_not_given_away() {
    let mut desk = Desk::new();
    let mut first = model();
    add_service(&mut first, "a", &[80], &[FE_1, FE_2], None);
    add_service(&mut first, "b", &[81], &[FE_2], None);
    let snapshot = desk.compile(&first).unwrap();
    assert_eq!(snapshot.real_servers.iter().flatten().count(), 2);
    let fe_2 = desk.registry.server(FE_2.parse().unwrap(), None).unwrap();
    assert_eq!(snapshot.service(ServiceId(1)).unwrap().targets[0].server, fe_2);

    let mut second = model();
    add_service(&mut second, "c", &[80], &["192.168.10.40", FE_1], None);
    let snapshot = desk.compile(&second).unwrap();
    assert_eq!(snapshot.generation, Generation(2));
    assert!(snapshot.service(ServiceId(0)).is_none() && snapshot.service(ServiceId(1)).is_none());
    assert_eq!(desk.registry.gone_services().collect::<Vec<_>>(), [ServiceId(0), ServiceId(1)]);
    assert_eq!(desk.registry.gone_servers().collect::<Vec<_>>(), [fe_2]);
    assert!(snapshot.real_server(fe_2).is_none());
    let service = snapshot.service(ServiceId(2)).unwrap();
    assert_eq!(service.targets.iter().map(|target| target.server.0).collect::<Vec<_>>(), [2, 0]);

    // Back again: the old id. And what is in use is not released.
    let snapshot = desk.compile(&first).unwrap();
    assert_eq!(snapshot.service(ServiceId(0)).unwrap().targets[1].server, fe_2);
    assert!(!desk.registry.release_server(fe_2) && desk.registry.release_service(ServiceId(2)));
    // The same address with a port of its own is another server.
    let mut third = first.clone();
    third.groups[0].servers[0] = server(FE_1, Some(8080));
    let snapshot = desk.compile(&third).unwrap();
    assert_eq!(snapshot.service(ServiceId(0)).unwrap().targets[0].server, RealServerId(3));
}

#[test]
fn released_ids_are_given_again_only_when_all_others_are_used_up() {
    let mut registry = Registry::new();
    let address = |n: usize| IpAddr::from([10, 0, (n >> 8) as u8, n as u8]);
    registry.begin();
    for n in 0..4096 {
        assert_eq!(registry.take_server(address(n), None), Ok(RealServerId(n as u16)));
    }
    assert_eq!(registry.take_server(address(5000), None), Err(RegistryFull { max: 4096, gone: 0 }));
    registry.begin();
    assert_eq!(registry.take_server(address(5000), None), Err(RegistryFull { max: 4096, gone: 4096 }));
    assert!(registry.release_server(RealServerId(9)) && registry.release_server(RealServerId(4)));
    assert!(!registry.release_server(RealServerId(9)), "released already");
    assert_eq!(registry.take_server(address(5000), None), Ok(RealServerId(9)));
    assert_eq!(registry.take_server(address(5001), None), Ok(RealServerId(4)));
    assert_eq!(registry.server(address(9), None), None);
}

#[test]
fn an_error_leaves_the_registry_as_it_was() {
    let mut desk = Desk::new();
    let mut good = model();
    add_service(&mut good, "a", &[80], &[FE_1], None);
    desk.compile(&good).unwrap();
    let mut bad = good.clone();
    add_service(&mut bad, "b", &[81], &["192.168.10.40", "192.168.10.41", "192.168.10.40"], None);
    let error = desk.compile(&bad).unwrap_err();
    assert!(matches!(&error, CompileError::DuplicateServer { service, .. } if service == "b"), "{error}");
    assert_eq!(desk.registry.service("b"), None);
    assert_eq!(desk.registry.server("192.168.10.40".parse().unwrap(), None), None);
    assert_eq!(desk.registry.gone_services().count(), 0);
}

#[test]
fn a_source_pool_leaves_out_the_ports_we_listen_on_at_its_addresses() {
    let mut model = model();
    add_service(&mut model, "a", &[5061, 5062], &[FE_1, FE_2], None);
    model.groups[0].servers[1].port = Some(8080);
    let rule = SourcePool {
        addresses: vec![model.services[0].vip],
        port_low: 5060,
        port_high: 5069,
        rest_ms: 60_000,
        towards: Default::default(),
    };
    model.services[0].source = Source::Pool(rule.clone());
    let snapshot = Desk::new().compile(&model).unwrap();
    let ServiceSource::Pool(pool) = &snapshot.service(ServiceId(0)).unwrap().source else {
        panic!("a pool was configured")
    };
    let fills: Vec<_> = pool.fill().map(|fill| (fill.destination.to_string(), fill.capacity)).collect();
    assert_eq!(
        fills,
        [("192.168.10.31:5061".into(), 8), ("192.168.10.31:5062".into(), 8), ("192.168.10.32:8080".into(), 8)]
    );

    model.services[0].source = Source::Pool(SourcePool { addresses: vec!["2001:db8::1".parse().unwrap()], ..rule });
    let error = Desk::new().compile(&model).unwrap_err();
    assert!(error.to_string().starts_with("service \"a\": source.pool has no IPv4 address"), "{error}");
}

#[test]
fn a_source_pool_of_the_packet_plane_leaves_out_the_ports_of_both_protocols() {
    let mut model = model();
    add_service(&mut model, "a", &[5060], &[FE_1], None);
    add_service(&mut model, "b", &[5061, 5062], &[FE_2], None);
    model.services[0].protocol = Protocol::Udp;
    model.services[1].vip = model.services[0].vip;
    let addresses = vec![model.services[0].vip];
    model.services[0].source = Source::Pool(SourcePool {
        addresses,
        port_low: 5060,
        port_high: 5069,
        rest_ms: 0,
        towards: Default::default(),
    });
    for (plane, free) in [(Plane::Stream, 9), (Plane::Packet, 7)] {
        model.services[0].plane = plane;
        let snapshot = Desk::new().compile(&model).unwrap();
        let ServiceSource::Pool(pool) = &snapshot.service(ServiceId(0)).unwrap().source else {
            panic!("a pool was configured")
        };
        assert_eq!(pool.fill().map(|fill| fill.capacity).collect::<Vec<_>>(), [free]);
    }
}

#[test]
fn a_maglev_table_has_those_that_take_new_connections() {
    let mut model = model();
    add_service(&mut model, "a", &[80], &[FE_1, FE_2, "192.168.10.33"], None);
    model.services[0].balance = Balance::Maglev;
    model.groups[0].servers[0].admin = AdminState::Drain;
    let snapshot = Desk::new().compile(&model).unwrap();
    let table = snapshot.service(ServiceId(0)).unwrap().maglev.clone().unwrap();
    let owners: HashSet<TargetIndex> = table.entries().iter().copied().collect();
    assert_eq!(owners, [TargetIndex(1), TargetIndex(2)].into());
    model.groups[0].servers.iter_mut().for_each(|server| server.weight = 0);
    assert!(Desk::new().compile(&model).unwrap().service(ServiceId(0)).unwrap().maglev.is_none());
}

#[test]
fn a_late_result_of_a_check_that_is_gone_changes_nothing() {
    let mut model = model();
    add_service(&mut model, "a", &[80], &[FE_1], Some(tcp_check(&[80])));
    let mut desk = Desk::new();
    desk.compile(&model).unwrap();
    let gone = checks(&model, &mut desk.registry).unwrap()[0].id;
    model.groups[0].health = Some(tcp_check(&[81]));
    desk.compile(&model).unwrap();
    assert_eq!(desk.board.on_result(gone, CheckResult::Passed, Now(9)), None);
    assert!(desk.board.state(gone).is_none());
    assert_ne!(checks(&model, &mut desk.registry).unwrap()[0].id, gone);
}

#[test]
fn servers_behind_a_route_have_a_place_and_a_check_of_their_own_and_count_for_the_service() {
    let mut model = model();
    add_service(&mut model, "edge", &[443], &[FE_1], None);
    add_service(&mut model, "other", &[80], &[FE_1], None);
    model.groups.push(ServerGroup {
        name: "web".into(),
        servers: vec![server(FE_2, Some(4443))],
        health: Some(tcp_check(&[])),
        proxy_protocol: None,
        origin: None,
    });
    let names = vec!["meet.example.org".to_owned(), "*.example.org".to_owned()];
    model.services[0].tls = ServiceTls::PassThrough(PassThrough {
        routes: vec![TlsRoute { names, group: 2 }],
        handshake_timeout_ms: 1_000,
    });
    let mut desk = Desk::new();
    desk.compile(&model).unwrap();
    desk.checked(&model, FE_2, |port| port == 4443);
    let snapshot = desk.compile(&model).unwrap();
    let edge = snapshot.service(ServiceId(0)).expect("compiled");
    let routes = edge.routes.as_ref().expect("it has routes");
    let place = routes.find(&HostName::new(b"a.example.org").unwrap()).expect("a route");
    assert!(place != edge.place && routes.find(&HostName::new(b"example.org").unwrap()).is_none());
    let behind = snapshot.service(place).expect("compiled");
    assert_eq!((behind.id, behind.place, &*behind.name), (edge.id, place, "edge"));
    assert_eq!(takers(&snapshot, place.0), [format!("server {FE_2}")]);
    assert_eq!(takers(&snapshot, edge.place.0), [format!("server {FE_1}")]);
    let known = snapshot.real_servers.iter().flatten().map(|server| server.address.to_string());
    assert_eq!(known.collect::<Vec<_>>().len(), 2, "a server behind a route is one");
    // Places stay from one generation to the next.
    let again = desk.compile(&model).unwrap();
    let routes = again.service(ServiceId(0)).and_then(|edge| edge.routes.clone()).expect("it has routes");
    assert_eq!(routes.places().collect::<Vec<_>>(), [place]);
    // Without its routes the place goes.
    model.services[0].tls = ServiceTls::PassThrough(PassThrough::default());
    assert!(desk.compile(&model).unwrap().service(place).is_none());
    assert_eq!(desk.registry.gone_services().collect::<Vec<_>>(), [place]);
}

/// The farm of two servers behind three services: one that is checked at 5061 and evicts so, one that is checked at 443 by itself, and one that is not
/// checked at all; the third has the servers by ports of their own.
fn three_services(evict: Evict) -> Model {
    let mut model = model();
    let health = Health { evict, ..tcp_check(&[5061]) };
    add_service(&mut model, "front-end", &[5061, 444], &[FE_1, FE_2], Some(health));
    add_service(&mut model, "web", &[443], &[FE_1, FE_2], Some(tcp_check(&[443])));
    add_service(&mut model, "other", &[80], &[FE_1, FE_2], None);
    for server in &mut model.groups[2].servers {
        server.port = Some(8080);
    }
    model
}

#[test]
fn what_a_failing_check_takes_away_is_a_setting() {
    let both = vec![format!("server {FE_1}"), format!("server {FE_2}")];
    let second = vec![format!("server {FE_2}")];
    for (evict, elsewhere) in [(Evict::Service, &both), (Evict::Server, &second)] {
        let model = three_services(evict);
        let mut desk = Desk::new();
        desk.compile(&model).unwrap();
        desk.checked(&model, FE_1, |port| port != 5061);
        desk.checked(&model, FE_2, |_| true);
        let snapshot = desk.compile(&model).unwrap();
        assert_eq!(takers(&snapshot, 0), second, "{evict:?}");
        for service in [1, 2] {
            assert_eq!(takers(&snapshot, service), *elsewhere, "{evict:?}, service {service}");
        }
        let web = &snapshot.service(ServiceId(1)).unwrap().targets[0];
        if evict == Evict::Server {
            assert_eq!(&*web.reason, "port 5061: refused, as service \"front-end\" has found");
            assert_eq!((web.checks().count(), web.since), (2, Now(77)));
        }
        // It comes back with the check that has taken it away.
        desk.checked(&model, FE_1, |_| true);
        assert_eq!(takers(&desk.compile(&model).unwrap(), 1), both, "{evict:?}");
        // The check of the web service takes nothing away from the others.
        desk.checked(&model, FE_1, |port| port != 443);
        let snapshot = desk.compile(&model).unwrap();
        assert_eq!(
            (takers(&snapshot, 0), takers(&snapshot, 1)),
            (both.iter().map(String::as_str).collect(), vec![&*second[0]])
        );
    }
}

#[test]
fn a_check_without_a_verdict_takes_nobody_away_from_others() {
    let model = three_services(Evict::Server);
    let mut desk = Desk::new();
    assert_eq!(takers(&desk.compile(&model).unwrap(), 2).len(), 2);
}

#[test]
fn a_group_is_left_by_all_services_that_have_it_however_they_judge_it() {
    let mut model = model();
    let health = Health { evict: Evict::Group, ..tcp_check(&[5061]) };
    add_service(&mut model, "front-end", &[5061], &[FE_1, FE_2], Some(health));
    add_service(&mut model, "same group", &[443], &[], None);
    add_service(&mut model, "judges by itself", &[444], &[FE_1, FE_2], Some(tcp_check(&[444])));
    add_service(&mut model, "elsewhere", &[80], &[FE_1, FE_2], None);
    model.services[1].group = 0;
    model.groups[2].origin = Some(0);
    let mut desk = Desk::new();
    desk.compile(&model).unwrap();
    desk.checked(&model, FE_1, |port| port != 5061);
    desk.checked(&model, FE_2, |_| true);
    let snapshot = desk.compile(&model).unwrap();
    let taking: Vec<usize> = (0..4).map(|service| takers(&snapshot, service).len()).collect();
    assert_eq!(taking, [1, 1, 1, 2]);
}

#[test]
fn a_port_that_fails_is_left_alone() {
    let mut model = model();
    let health = Health { evict: Evict::Port, ..tcp_check(&[5061, 444]) };
    add_service(&mut model, "front-end", &[443, 444, 5061], &[FE_1, FE_2], Some(health.clone()));
    let mut desk = Desk::new();
    let snapshot = desk.compile(&model).unwrap();
    assert_eq!(checks(&model, &mut desk.registry).unwrap().len(), 4, "one a port and server");
    let open = |snapshot: &Snapshot| {
        let target = &snapshot.service(ServiceId(0)).unwrap().targets[0];
        [443, 444, 5061].map(|port| target.takes_new() && target.serves(port))
    };
    assert_eq!(open(&snapshot), [true, false, false], "no verdict yet");
    desk.checked(&model, FE_1, |port| port != 444);
    desk.checked(&model, FE_2, |_| true);
    let snapshot = desk.compile(&model).unwrap();
    assert_eq!(open(&snapshot), [true, false, true]);
    let target = &snapshot.service(ServiceId(0)).unwrap().targets[0];
    assert_eq!((target.health, &*target.reason), (ServerHealth::Up, "port 444: refused"));
    assert_eq!(target.lost_ports().collect::<Vec<_>>(), [444]);
    // Where every port that clients come to is down, the server is.
    model.services[0].ports = Ports::List(vec![444, 5061]);
    desk.checked(&model, FE_1, |_| false);
    let snapshot = desk.compile(&model).unwrap();
    let target = &snapshot.service(ServiceId(0)).unwrap().targets[0];
    assert_eq!((target.health, target.takes_new()), (ServerHealth::Down, false));
    // Without ports given each port that clients come to is checked; a server of one port has that.
    model.groups[0].health = Some(Health { ports: Vec::new(), ..health });
    model.groups[0].servers[1].port = Some(8443);
    let ports: Vec<u16> = checks(&model, &mut Registry::new()).unwrap().iter().map(|plan| plan.ports[0]).collect();
    assert_eq!(ports, [444, 5061, 8443]);
}

#[test]
fn what_clients_meet_takes_a_server_out_of_the_services_that_look_at_it() {
    let rule = Passive { connect_failures: 50, server_errors: 0, at_least: 5, window_ms: 1_000, hold_ms: 1_000 };
    let mut model = model();
    add_service(
        &mut model,
        "looks",
        &[5061],
        &[FE_1, FE_2],
        Some(Health { passive: Some(rule), ..tcp_check(&[5061]) }),
    );
    add_service(&mut model, "does not", &[5061], &[FE_1, FE_2], Some(tcp_check(&[5061])));
    let mut desk = Desk::new();
    desk.compile(&model).unwrap();
    desk.checked(&model, FE_1, |_| true);
    desk.checked(&model, FE_2, |_| true);
    let snapshot = desk.compile(&model).unwrap();
    let server = snapshot.service(ServiceId(0)).unwrap().targets[0].server;
    let met = |failed: u64| HashMap::from([((server, rule), Met { failed, ..Met::default() })]);
    assert!(desk.board.passive.look(&met(0), Now(100)).is_empty());
    assert_eq!(desk.board.passive.look(&met(5), Now(200)).len(), 1);
    let snapshot = desk.compile(&model).unwrap();
    assert_eq!((takers(&snapshot, 0).len(), takers(&snapshot, 1).len()), (1, 2));
    assert_eq!(desk.board.passive.look(&met(5), Now(1_200)).len(), 1);
    let snapshot = desk.compile(&model).unwrap();
    let target = &snapshot.service(ServiceId(0)).unwrap().targets[0];
    assert!(target.takes_new() && target.returned == Some(Now(1_200)));
}

#[test]
fn who_says_sorry_is_a_member_of_every_place_that_no_check_judges() {
    let mut model = model();
    add_service(&mut model, "web", &[443], &["10.1.0.1", "10.1.0.2"], Some(tcp_check(&[443])));
    add_service(&mut model, "other", &[443], &["10.1.0.9"], Some(tcp_check(&[443])));
    model.groups[1].name = "partners".to_owned();
    model.groups[1].health.as_mut().unwrap().evict = Evict::Server;
    model.services[0].tls = ServiceTls::PassThrough(PassThrough {
        routes: vec![TlsRoute { names: vec!["b.example".to_owned()], group: 1 }],
        ..PassThrough::default()
    });
    model.services[0].sorry = Some(server("10.1.0.50", Some(8080)));
    let mut desk = Desk::new();
    let first = desk.compile(&model).unwrap();
    assert!(checks(&model, &mut desk.registry).unwrap().iter().all(|plan| plan.address.to_string() != "10.1.0.50"));
    assert_eq!(first.each_service().filter(|place| place.targets.iter().any(Target::is_sorry)).count(), 2);
    for address in ["10.1.0.1", "10.1.0.2", "10.1.0.9"] {
        desk.checked(&model, address, |_| true);
    }
    assert_eq!(takers(&desk.compile(&model).unwrap(), 0), ["server 10.1.0.1", "server 10.1.0.2"]);
    for address in ["10.1.0.1", "10.1.0.2"] {
        desk.checked(&model, address, |_| false);
    }
    let lost = desk.compile(&model).unwrap();
    assert_eq!(takers(&lost, 0), ["server 10.1.0.50"]);
    let behind = lost.each_service().find(|place| place.group == "partners" && place.name == "web").unwrap();
    assert!(behind.targets[0].takes_new() && !behind.targets[1].takes_new());
    // The operator may take it out as any other.
    model.services[0].sorry.as_mut().unwrap().admin = AdminState::Halt;
    assert!(takers(&desk.compile(&model).unwrap(), 0).is_empty());
    model.services[0].sorry = Some(server("10.1.0.2", None));
    assert!(matches!(desk.compile(&model), Err(CompileError::DuplicateServer { .. })));
}
