use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use towpath_config::model::{AdminState, Balance, Persistence, Protocol};

use super::*;
use crate::eligible;
use crate::fixtures::{METHODS, client, half_an_hour, service, target, weighted};
use crate::ids::ServiceId;
use crate::loads::PlainLoads;
use crate::snapshot::{ClosedPort, Entrants, Role, ServerHealth, Target};

const MINUTE_MS: u64 = 60_000;

/// One service with everything that picks need.
struct Stage {
    service: Service,
    state: BalancerState,
    table: PersistenceTable,
    loads: PlainLoads,
    tried: Tried,
    now: Now,
}

impl Stage {
    fn new(service: Service) -> Stage {
        Stage {
            service,
            state: BalancerState::new(1),
            table: PersistenceTable::new(64, 1),
            loads: PlainLoads::new(1, 16),
            tried: Tried::new(),
            now: Now(1_000_000),
        }
    }

    fn persistent(targets: Vec<Target>, rule: Persistence) -> Stage {
        let mut service = service(Balance::WeightedLeastConnections, targets);
        service.persistence = Some(rule);
        Stage::new(service)
    }

    fn pick(&mut self, client: SocketAddr) -> Result<(u16, PickReason), Refusal> {
        // Members may have changed since the last one.
        self.service.entrants = Entrants::default();
        let Stage { service, state, table, loads, tried, now } = self;
        pick(service, state, table, loads, client, tried, *now).map(|pick| {
            assert_eq!(service.targets[pick.target.index()].server, pick.server);
            (pick.server.0, pick.why)
        })
    }

    fn close(&self, server: u16) {
        self.loads.close(self.service.id, RealServerId(server));
    }

    /// One connection, opened and closed.
    fn visit(&mut self, client: SocketAddr) -> Result<(u16, PickReason), Refusal> {
        let (server, why) = self.pick(client)?;
        self.close(server);
        Ok((server, why))
    }

    fn count(&self) -> u32 {
        self.loads.active_of_service(self.service.id)
    }
}

proptest! {
    #[test]
    fn t_01_connections_alternate_strictly_whichever_worker_takes_them(
        workers in prop::collection::vec(0_usize..4, 20),
        servers in 2_u16..4,
        method in prop::sample::select(vec![
            Balance::LeastConnections, Balance::RoundRobin, Balance::WeightedLeastConnections, Balance::WeightedRoundRobin,
        ]),
    ) {
        // Each worker has a snapshot of its own; the balancer and the counts are shared.
        let snapshots: Vec<Service> = (0..4).map(|_| service(method, (0..servers).map(target).collect())).collect();
        let mut state = BalancerState::new(1);
        let loads = PlainLoads::new(1, 16);
        let mut nobody = PersistenceTable::new(0, 0);
        let mut order = Vec::new();
        for (n, worker) in workers.into_iter().enumerate() {
            let mut from = client(7);
            from.set_port(40_000 + n as u16);
            let pick = pick(&snapshots[worker], &mut state, &mut nobody, &loads, from, &Tried::new(), Now(n as u64)).unwrap();
            loads.close(ServiceId(0), pick.server);
            order.push(pick.server.0);
        }
        let expected: Vec<u16> = (0..20).map(|n| n % servers).collect();
        prop_assert_eq!(order, expected);
    }
}

#[test]
fn t_22_source_ip_brings_a_client_back_over_all_ports_and_workers() {
    let mut stage = Stage::persistent(weighted(&[100; 3]), half_an_hour());
    let mut homes = [0; 3];
    for n in 0..30 {
        let (home, why) = stage.pick(client(n)).unwrap();
        assert_eq!(why, PickReason::Balanced);
        homes[usize::from(home)] += 1;
        // Other source ports: other connections, and by them other workers.
        for port in [1_025, 40_000, 65_535] {
            assert_eq!(stage.pick(SocketAddr::new(client(n).ip(), port)), Ok((home, PickReason::Persistent)));
        }
    }
    assert_eq!(homes.iter().sum::<u32>(), 30);
    assert!(homes.iter().all(|&clients| clients > 5), "{homes:?}");
}

#[test]
fn t_22_without_persistence_every_connection_is_balanced_anew() {
    let mut stage = Stage::new(service(Balance::WeightedLeastConnections, weighted(&[100; 2])));
    let order: Vec<_> = (0..4).map(|_| stage.visit(client(1)).unwrap()).collect();
    assert_eq!(order, [0, 1, 0, 1].map(|server| (server, PickReason::Balanced)));
    assert!(stage.table.is_empty());
}

#[test]
fn t_22_a_client_of_a_dead_server_is_pinned_to_another_and_stays_there() {
    let mut stage = Stage::persistent(weighted(&[100; 2]), half_an_hour());
    let (home, _) = stage.visit(client(1)).unwrap();
    stage.service.targets[usize::from(home)].health = ServerHealth::Down;
    assert_eq!(stage.visit(client(1)), Ok((1 - home, PickReason::Repinned)));
    stage.service.targets[usize::from(home)].health = ServerHealth::Up;
    assert_eq!(stage.visit(client(1)), Ok((1 - home, PickReason::Persistent)));
}

#[test]
fn t_22_entries_live_29_59_after_the_last_new_connection_and_not_30_01() {
    for (pause_ms, why) in [
        (30 * MINUTE_MS - 1_000, PickReason::Persistent),
        (30 * MINUTE_MS, PickReason::Persistent),
        (30 * MINUTE_MS + 1_000, PickReason::Balanced),
    ] {
        let mut stage = Stage::persistent(weighted(&[100; 2]), half_an_hour());
        stage.visit(client(1)).unwrap();
        // A new connection starts the half hour again.
        stage.now = stage.now + 20 * MINUTE_MS;
        assert_eq!(stage.visit(client(1)).unwrap().1, PickReason::Persistent);
        stage.now = stage.now + pause_ms;
        assert_eq!(stage.visit(client(1)).unwrap().1, why, "after {pause_ms} ms");
    }
}

#[test]
fn t_22_clients_of_one_prefix_come_to_one_server() {
    let rule = Persistence { ipv4_prefix: 24, ..half_an_hour() };
    let mut stage = Stage::persistent(weighted(&[100; 2]), rule);
    let (home, _) = stage.visit("192.0.2.1:1024".parse().unwrap()).unwrap();
    assert_eq!(stage.visit("192.0.2.77:1024".parse().unwrap()), Ok((home, PickReason::Persistent)));
    assert_eq!(stage.visit("192.0.3.1:1024".parse().unwrap()), Ok((1 - home, PickReason::Balanced)));
}

#[test]
fn who_may_still_be_sent_to_the_server_of_an_entry() {
    use AdminState::{Drain, Halt, Ready};
    use ServerHealth::{Down, Unknown, Up};
    // (admin, health, weight, enter_draining, whether the client comes back)
    let table = [
        (Ready, Up, 100, false, true),
        (Ready, Up, 0, false, true),
        (Ready, Down, 100, true, false),
        (Ready, Unknown, 100, true, false),
        (Drain, Up, 100, false, false),
        (Drain, Up, 100, true, true),
        (Drain, Down, 100, true, false),
        (Halt, Up, 100, true, false),
    ];
    for (admin, health, weight, enter_draining, back) in table {
        let rule = Persistence { enter_draining, ..half_an_hour() };
        let mut stage = Stage::persistent(weighted(&[100; 2]), rule);
        let (home, _) = stage.visit(client(1)).unwrap();
        let member = &mut stage.service.targets[usize::from(home)];
        (member.admin, member.health, member.weight) = (admin, health, weight);
        let expected = if back { (home, PickReason::Persistent) } else { (1 - home, PickReason::Repinned) };
        let case = format!("{admin:?} {health:?} weight {weight} enter_draining {enter_draining}");
        assert_eq!(stage.visit(client(1)), Ok(expected), "{case}");
        // A client without an entry never comes, unless nothing is wrong with the server.
        let newcomers = (10..20).filter(|&n| stage.pick(client(n)).unwrap().0 == home).count();
        let fine = (admin, health, weight) == (Ready, Up, 100);
        assert_eq!(newcomers > 0, fine, "{case}");
    }
}

#[test]
fn a_full_server_sends_its_client_elsewhere_but_the_entry_stays() {
    let mut stage = Stage::persistent(weighted(&[100; 2]), half_an_hour());
    let (home, _) = stage.pick(client(1)).unwrap();
    stage.service.targets[usize::from(home)].max_connections = 1;
    assert_eq!(stage.pick(client(1)), Ok((1 - home, PickReason::Overflowed)));
    stage.close(home);
    assert_eq!(stage.pick(client(1)), Ok((home, PickReason::Persistent)));
    // Overflowing is a new connection too: it keeps the entry alive.
    stage.now = stage.now + 29 * MINUTE_MS;
    assert_eq!(stage.pick(client(1)), Ok((1 - home, PickReason::Overflowed)));
    stage.now = stage.now + 29 * MINUTE_MS;
    stage.close(home);
    assert_eq!(stage.pick(client(1)), Ok((home, PickReason::Persistent)));
}

#[test]
fn a_redispatch_goes_to_an_untried_server_and_takes_the_entry_along() {
    let mut stage = Stage::persistent(weighted(&[100; 3]), half_an_hour());
    let (first, _) = stage.visit(client(1)).unwrap();
    stage.tried.insert(RealServerId(first));
    let (second, why) = stage.visit(client(1)).unwrap();
    assert!(second != first && why == PickReason::Repinned);
    stage.tried.insert(RealServerId(second));
    let (third, _) = stage.visit(client(1)).unwrap();
    assert!(third != first && third != second);
    stage.tried.insert(RealServerId(third));
    assert_eq!(stage.visit(client(1)), Err(Refusal::NoServer));
    stage.tried = Tried::new();
    assert_eq!(stage.visit(client(1)), Ok((third, PickReason::Persistent)));
}

#[test]
fn a_refusal_says_why_and_counts_nothing() {
    for balance in METHODS {
        let with = |change: &dyn Fn(&mut Service)| {
            let mut service = service(balance, weighted(&[100; 2]));
            change(&mut service);
            let mut stage = Stage::new(service);
            let refusal = loop {
                match stage.pick(client(stage.count())) {
                    Ok(_) => assert!(stage.count() < 10, "{balance:?}: not refused"),
                    Err(refusal) => break refusal,
                }
            };
            (refusal, stage.count())
        };
        let every = |service: &mut Service, change: fn(&mut Target)| service.targets.iter_mut().for_each(change);
        assert_eq!(with(&|service| service.max_connections = 3), (Refusal::ServiceFull, 3));
        assert_eq!(with(&|service| every(service, |target| target.max_connections = 2)), (Refusal::ServersFull, 4));
        assert_eq!(with(&|service| every(service, |target| target.weight = 0)), (Refusal::NoServer, 0));
        assert_eq!(with(&|service| every(service, |target| target.admin = AdminState::Drain)), (Refusal::NoServer, 0));
        assert_eq!(
            with(&|service| every(service, |target| target.health = ServerHealth::Unknown)),
            (Refusal::NoServer, 0)
        );
        assert_eq!(with(&|service| service.targets.clear()), (Refusal::NoServer, 0));
        let one_full_one_down = |service: &mut Service| {
            service.targets[0].max_connections = 1;
            service.targets[1].health = ServerHealth::Down;
        };
        assert_eq!(with(&one_full_one_down), (Refusal::ServersFull, 1), "{balance:?}");
    }
}

#[test]
fn tried_remembers_the_latest_servers_and_no_more() {
    let mut tried = Tried::new();
    assert!(tried.is_empty() && !tried.contains(RealServerId(0)));
    for n in 0..20 {
        tried.insert(RealServerId(n));
        tried.insert(RealServerId(n));
    }
    assert_eq!(tried.len(), TRIED_MAX);
    assert!((0..4).all(|n| !tried.contains(RealServerId(n))) && (4..20).all(|n| tried.contains(RealServerId(n))));
}

/// Counts as the engine keeps them: shared by threads.
struct SharedLoads {
    services: Vec<AtomicU32>,
    servers: Vec<AtomicU32>,
    highest: AtomicU32,
}

impl Loads for SharedLoads {
    fn active(&self, server: RealServerId) -> u32 {
        self.servers[server.index()].load(Ordering::SeqCst)
    }

    fn active_of(&self, _: ServiceId, _: RealServerId) -> u32 {
        unreachable!("a pick does not ask what a drain waits for")
    }

    fn try_open(
        &self,
        service: ServiceId,
        service_max: u32,
        server: RealServerId,
        server_max: u32,
    ) -> Result<(), Full> {
        let below = |max: u32| move |n: u32| (max == 0 || n < max).then_some(n + 1);
        let take = |cell: &AtomicU32, max| cell.fetch_update(Ordering::SeqCst, Ordering::SeqCst, below(max));
        take(&self.services[service.index()], service_max).map_err(|_| Full::Service)?;
        match take(&self.servers[server.index()], server_max) {
            Ok(before) => {
                self.highest.fetch_max(before + 1, Ordering::SeqCst);
                Ok(())
            }
            Err(_) => {
                self.services[service.index()].fetch_sub(1, Ordering::SeqCst);
                Err(Full::Server)
            }
        }
    }

    fn close(&self, service: ServiceId, server: RealServerId) {
        assert_ne!(self.services[service.index()].fetch_sub(1, Ordering::SeqCst), 0);
        assert_ne!(self.servers[server.index()].fetch_sub(1, Ordering::SeqCst), 0);
    }
}

/// Counts of a moment ago: another service may have taken the last place since.
struct StaleLoads(PlainLoads);

impl Loads for StaleLoads {
    fn active(&self, _: RealServerId) -> u32 {
        0
    }

    fn active_of(&self, service: ServiceId, server: RealServerId) -> u32 {
        self.0.active_of(service, server)
    }

    fn try_open(
        &self,
        service: ServiceId,
        service_max: u32,
        server: RealServerId,
        server_max: u32,
    ) -> Result<(), Full> {
        self.0.try_open(service, service_max, server, server_max)
    }

    fn close(&self, service: ServiceId, server: RealServerId) {
        self.0.close(service, server);
    }
}

#[test]
fn a_place_lost_to_another_service_sends_the_connection_on() {
    for balance in METHODS {
        let mut service = service(balance, weighted(&[100; 3]));
        service.targets.iter_mut().for_each(|target| target.max_connections = 1);
        let loads = StaleLoads(PlainLoads::new(1, 3));
        let mut state = BalancerState::new(1);
        let mut table = PersistenceTable::new(0, 0);
        let mut next = |n| {
            pick(&service, &mut state, &mut table, &loads, client(n), &Tried::new(), Now(0)).map(|pick| pick.server.0)
        };
        let mut servers: Vec<u16> = (0..3).map(|n| next(n).unwrap()).collect();
        servers.sort_unstable();
        assert_eq!(servers, [0, 1, 2], "{balance:?}");
        assert_eq!(next(3), Err(Refusal::ServersFull), "{balance:?}");
    }
}

#[test]
fn services_on_several_threads_never_exceed_the_limit_of_a_shared_server() {
    const THREADS: u16 = 4;
    let counts = |len| (0..len).map(|_| AtomicU32::new(0)).collect();
    let loads = SharedLoads { services: counts(THREADS), servers: counts(2), highest: AtomicU32::new(0) };
    let refused = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (loads, refused) = (&loads, &refused);
            scope.spawn(move || {
                let mut service = service(METHODS[usize::from(thread)], weighted(&[100; 2]));
                service.id = ServiceId(thread);
                service.targets.iter_mut().for_each(|target| target.max_connections = 3);
                let mut state = BalancerState::new(1);
                let mut table = PersistenceTable::new(0, 0);
                let mut open = Vec::new();
                for n in 0..20_000_u32 {
                    match pick(&service, &mut state, &mut table, loads, client(n), &Tried::new(), Now(0)) {
                        Ok(pick) => open.push(pick.server),
                        Err(refusal) => {
                            assert_eq!(refusal, Refusal::ServersFull);
                            refused.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                    // Longer than there is room for, so that a thread alone meets the limit as well.
                    if n % 16 == 0 {
                        open.drain(..).for_each(|server| loads.close(service.id, server));
                    }
                }
                open.into_iter().for_each(|server| loads.close(service.id, server));
            });
        }
    });
    assert_eq!(loads.highest.load(Ordering::SeqCst), 3);
    assert!(refused.load(Ordering::SeqCst) > 0);
    assert_eq!((loads.active(RealServerId(0)), loads.active(RealServerId(1))), (0, 0));
}

#[test]
fn members_are_filled_to_their_minimum_before_others_get_more() {
    for balance in METHODS {
        let mut service = service(balance, weighted(&[100; 3]));
        (service.targets[1].min_connections, service.targets[2].min_connections) = (4, 2);
        service.has_minimums = true;
        let loads = PlainLoads::new(1, 3);
        let mut state = BalancerState::new(1);
        let mut table = PersistenceTable::new(0, 0);
        let mut next = |n| {
            pick(&service, &mut state, &mut table, &loads, client(n), &Tried::new(), Now(0)).map(|pick| pick.server.0)
        };
        let first: Vec<u16> = (0..6).map(|n| next(n).unwrap()).collect();
        let given = |server| first.iter().filter(|&&to| to == server).count();
        assert_eq!((given(0), given(1), given(2)), (0, 4, 2), "{balance:?}: {first:?}");
        // From here on as ever; and once one falls below again, it is the next.
        let more: Vec<u16> = (6..90).map(|n| next(n).unwrap()).collect();
        assert!(more.contains(&0), "{balance:?}: {more:?}");
        while loads.active(RealServerId(2)) >= 2 {
            loads.close(ServiceId(0), RealServerId(2));
        }
        assert_eq!(next(90), Ok(2), "{balance:?}");
    }
}

#[test]
fn a_member_below_its_minimum_that_cannot_have_one_is_no_hindrance() {
    let mut service = service(Balance::RoundRobin, weighted(&[100; 2]));
    (service.targets[1].min_connections, service.targets[1].max_connections) = (1, 1);
    service.has_minimums = true;
    // Its only place was taken by another service since it was looked at.
    let loads = StaleLoads(PlainLoads::new(2, 2));
    loads.try_open(ServiceId(1), 0, RealServerId(1), 1).unwrap();
    let mut state = BalancerState::new(1);
    let mut table = PersistenceTable::new(0, 0);
    let picked = pick(&service, &mut state, &mut table, &loads, client(1), &Tried::new(), Now(0));
    assert_eq!(picked.map(|pick| pick.server), Ok(RealServerId(0)));
    service.targets[1].health = ServerHealth::Down;
    let picked = pick(&service, &mut state, &mut table, &loads, client(2), &Tried::new(), Now(0));
    assert_eq!(picked.map(|pick| pick.server), Ok(RealServerId(0)));
}

#[test]
fn backups_serve_who_was_refused_by_all_others_and_never_who_finds_these_full() {
    for balance in METHODS {
        let mut stage = Stage::new(service(balance, weighted(&[100; 3])));
        stage.service.targets[2].role = Role::Backup;
        eligible::settle(&mut stage.service.targets, 0);
        let served: Vec<u16> = (0..20).map(|n| stage.visit(client(n)).unwrap().0).collect();
        assert!(served.iter().all(|&server| server != 2), "{balance:?}: {served:?}");
        // Connects to both have failed.
        stage.tried.insert(RealServerId(0));
        stage.tried.insert(RealServerId(1));
        assert_eq!(stage.visit(client(1)), Ok((2, PickReason::Balanced)), "{balance:?}");
        stage.tried = Tried::new();
        stage.service.targets.iter_mut().for_each(|target| target.max_connections = 1);
        stage.pick(client(2)).unwrap();
        stage.pick(client(3)).unwrap();
        assert_eq!(stage.pick(client(4)), Err(Refusal::ServersFull), "{balance:?}");
    }
}

#[test]
fn clients_of_a_backup_go_back_when_another_can_serve() {
    let mut stage = Stage::persistent(weighted(&[100; 2]), half_an_hour());
    stage.service.targets[1].role = Role::Backup;
    stage.service.targets[0].health = ServerHealth::Down;
    eligible::settle(&mut stage.service.targets, 0);
    assert_eq!(stage.visit(client(1)), Ok((1, PickReason::Balanced)));
    assert_eq!(stage.visit(client(1)), Ok((1, PickReason::Persistent)));
    stage.service.targets[0].health = ServerHealth::Up;
    eligible::settle(&mut stage.service.targets, 0);
    assert_eq!(stage.visit(client(1)), Ok((0, PickReason::Repinned)));
    assert_eq!(stage.visit(client(1)), Ok((0, PickReason::Persistent)));
}

#[test]
fn who_says_sorry_serves_when_nobody_else_can_and_keeps_no_client() {
    for balance in METHODS {
        let mut service = service(balance, weighted(&[100; 3]));
        service.persistence = Some(half_an_hour());
        let mut stage = Stage::new(service);
        stage.service.targets[2].role = Role::Sorry;
        eligible::settle(&mut stage.service.targets, 0);
        let (home, _) = stage.visit(client(1)).unwrap();
        assert!((0..20).all(|n| stage.visit(client(n)).unwrap().0 != 2), "{balance:?}");
        // Full is not gone.
        stage.service.targets.iter_mut().for_each(|target| target.max_connections = 1);
        stage.pick(client(2)).unwrap();
        stage.pick(client(3)).unwrap();
        assert_eq!(stage.pick(client(4)), Err(Refusal::ServersFull), "{balance:?}");
        stage.close(0);
        stage.close(1);
        // One whose connects all failed.
        stage.tried.insert(RealServerId(0));
        stage.tried.insert(RealServerId(1));
        assert_eq!(stage.visit(client(1)), Ok((2, PickReason::Consoled)), "{balance:?}");
        stage.tried = Tried::new();
        // All are down.
        stage.service.targets[..2].iter_mut().for_each(|target| target.health = ServerHealth::Down);
        eligible::settle(&mut stage.service.targets, 0);
        for n in [1, 30] {
            assert_eq!(stage.visit(client(n)), Ok((2, PickReason::Consoled)), "{balance:?}");
        }
        // They are back: the old client at its own server, the new one wherever.
        stage.service.targets[..2].iter_mut().for_each(|target| target.health = ServerHealth::Up);
        eligible::settle(&mut stage.service.targets, 0);
        assert_eq!(stage.visit(client(1)), Ok((home, PickReason::Persistent)), "{balance:?}");
        assert!(matches!(stage.visit(client(30)), Ok((0 | 1, PickReason::Balanced))), "{balance:?}");
    }
}

#[test]
fn a_cookie_that_names_who_says_sorry_leads_nobody_back() {
    let mut stage = Stage::persistent(weighted(&[100; 2]), half_an_hour());
    stage.service.targets[1].role = Role::Sorry;
    eligible::settle(&mut stage.service.targets, 0);
    let pick_named = |stage: &mut Stage| {
        let Stage { service, state, table, loads, tried, now } = stage;
        let asks = Client { address: client(1).ip(), port: 443, pin: Pin::Server(RealServerId(1)) };
        pick_pinned(service, state, table, &*loads, asks, tried, *now).unwrap().server
    };
    assert_eq!(pick_named(&mut stage), RealServerId(0));
    stage.service.targets[0].health = ServerHealth::Down;
    eligible::settle(&mut stage.service.targets, 0);
    assert_eq!(pick_named(&mut stage), RealServerId(1));
    assert!(!stage.service.takes_back(RealServerId(1)));
}

#[test]
fn of_udp_nobody_stays_with_who_says_sorry() {
    let mut service = service(Balance::RoundRobin, weighted(&[100; 2]));
    service.targets[1].role = Role::Sorry;
    service.targets[0].health = ServerHealth::Down;
    eligible::settle(&mut service.targets, 0);
    let sorry = service.targets[1].clone();
    assert!(!service.drops_flows_of(&sorry));
    service.targets[0].health = ServerHealth::Up;
    eligible::settle(&mut service.targets, 0);
    let sorry = service.targets[1].clone();
    assert!(!service.drops_flows_of(&sorry), "connections end by themselves");
    service.protocol = Protocol::Udp;
    assert!(service.drops_flows_of(&sorry));
    // It may be needed for that port.
    service.targets[0].closed_ports = [ClosedPort { port: 443, health: ServerHealth::Down }].into();
    assert!(!service.drops_flows_of(&sorry));
}

#[test]
fn a_closed_port_sends_its_clients_elsewhere_and_their_entry_stays() {
    for balance in METHODS {
        let mut service = service(balance, weighted(&[100; 2]));
        service.persistence = Some(half_an_hour());
        let mut stage = Stage::new(service);
        let (home, _) = stage.visit(client(1)).unwrap();
        let closed = ClosedPort { port: 443, health: ServerHealth::Down };
        stage.service.targets[usize::from(home)].closed_ports = [closed].into();
        let mut pick_at = |port| {
            let Stage { service, state, table, loads, tried, now } = &mut stage;
            let asks = Client { address: client(1).ip(), port, pin: Pin::of_address(service, client(1).ip()) };
            let pick = pick_pinned(service, state, table, &*loads, asks, tried, *now).unwrap();
            loads.close(service.id, pick.server);
            (pick.server.0, pick.why)
        };
        for _ in 0..3 {
            assert_eq!(pick_at(443), (1 - home, PickReason::Overflowed), "{balance:?}");
            assert_eq!(pick_at(5061), (home, PickReason::Persistent), "{balance:?}");
        }
        // Nor is anybody new sent there.
        for n in 10..30 {
            let Stage { service, state, table, loads, tried, now } = &mut stage;
            let asks = Client { address: client(n).ip(), port: 443, pin: Pin::Nobody };
            let pick = pick_pinned(service, state, table, &*loads, asks, tried, *now).unwrap();
            assert_eq!(pick.server.0, 1 - home, "{balance:?}");
        }
    }
}

#[test]
fn a_server_that_came_back_grows_into_its_share() {
    const RISES: [Balance; 5] = [
        Balance::LeastConnections,
        Balance::RandomOfTwo,
        Balance::RoundRobin,
        Balance::WeightedLeastConnections,
        Balance::WeightedRoundRobin,
    ];
    for balance in RISES {
        let mut last = 0;
        // (when, least and greatest share of 4,000 connections that stay open; its share of all is part / (part + 1))
        for (at_ms, low, high) in
            [(0, 300, 430), (30_000, 1_230, 1_450), (60_000, 1_900, 2_100), (90_000, 1_900, 2_100)]
        {
            let mut stage = Stage::new(service(balance, weighted(&[100; 2])));
            stage.service.slow_start_ms = 60_000;
            stage.service.targets[1].returned = Some(stage.now);
            stage.now = stage.now + at_ms;
            let served = (0..4_000).filter(|&n| stage.pick(client(n)).unwrap().0 == 1).count();
            // Of two drawn by weight, with two both are drawn always, and the less loaded by its part wins.
            assert!((low..=high).contains(&served), "{balance:?} after {at_ms} ms: {served}");
            assert!(served + 100 > last, "{balance:?}");
            last = served;
        }
    }
}
