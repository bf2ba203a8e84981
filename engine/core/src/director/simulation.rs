//! Random lives of a small balancer: connections, health, the operator's changes, and workers that learn of them late.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use towpath_config::model::{AdminState, Model};

use super::*;
use crate::compile::{CompileError, checks, compile};
use crate::fixtures::{METHODS, add_service, client, half_an_hour, http_material, model, server, tcp_check};
use crate::health::{CheckPlan, CheckResult, HealthBoard};
use crate::ids::{Generation, ServiceId};
use crate::loads::PlainLoads;
use crate::persistence::{PERSISTENCE_STRIPES, key_stripe};
use crate::random::SplitMix64;
use crate::registry::Registry;
use crate::snapshot::{ServerHealth, Snapshot};
use crate::snat::{SnatBook, SnatLimits};
use crate::steering::SteeringTable;

const SERVICES: usize = 2;
const WORKERS: usize = 3;
/// Fewer than there are addresses.
const SERVERS_MAX: usize = 4;
const SEED: u64 = 99;

struct Connection {
    service: ServiceId,
    server: RealServerId,
}

struct World {
    random: SplitMix64,
    now: Now,
    model: Model,
    registry: Registry,
    board: HealthBoard,
    plans: Vec<CheckPlan>,
    snat: SnatBook,
    current: Arc<Snapshot>,
    /// What each worker holds: the current snapshot or an older one.
    workers: Vec<Arc<Snapshot>>,
    states: Vec<BalancerState>,
    stripes: Vec<PersistenceTable>,
    loads: PlainLoads,
    open: Vec<Connection>,
    /// Where the last connection of (service, client) that wrote its entry went.
    homes: HashMap<(ServiceId, IpAddr), IpAddr>,
    picked: HashMap<PickReason, u32>,
    refused: HashMap<Refusal, u32>,
    ids_released: u32,
    ids_missing: u32,
}

impl World {
    fn new(seed: u64) -> World {
        let mut model = model();
        let mut random = SplitMix64::new(seed);
        for n in 0..SERVICES {
            // Both services have the same servers: the limits of a server hold over both.
            let addresses = ["10.1.0.1", "10.1.0.2", "10.1.0.3"];
            add_service(&mut model, &format!("service {n}"), &[5061], &addresses, Some(tcp_check(&[5061])));
            let service = &mut model.services[n];
            service.balance = METHODS[random.below(METHODS.len() as u64) as usize];
            service.max_connections = 16;
            let rule = Persistence { timeout_ms: 60_000, enter_draining: n == 0, ..half_an_hour() };
            service.persistence = Some(rule);
        }
        // Few ids, so that released ones are given again.
        let mut registry = Registry::bounded(SERVICES, SERVERS_MAX);
        let plans = checks(&model, &mut registry).unwrap();
        let mut board = HealthBoard::new();
        board.adopt(&plans, Now(0));
        let mut snat = SnatBook::new(SnatLimits::default());
        let steering = Arc::new(SteeringTable::even(WORKERS));
        let current = Arc::new(
            compile(&model, &mut registry, &board, &mut snat, steering, &http_material(), Generation(1)).unwrap(),
        );
        World {
            random,
            now: Now(0),
            model,
            registry,
            board,
            plans,
            snat,
            workers: vec![Arc::clone(&current); WORKERS],
            current,
            states: (0..SERVICES as u64).map(BalancerState::new).collect(),
            stripes: (0..PERSISTENCE_STRIPES).map(|_| PersistenceTable::new(1, SEED)).collect(),
            loads: PlainLoads::new(SERVICES, 64),
            open: Vec::new(),
            homes: HashMap::new(),
            picked: HashMap::new(),
            refused: HashMap::new(),
            ids_released: 0,
            ids_missing: 0,
        }
    }

    fn step(&mut self) {
        self.now = self.now + self.random.below(100);
        match self.random.below(100) {
            0..50 => self.connect(),
            50..80 => self.disconnect(),
            80..90 => self.check(),
            90..95 => self.change(),
            95..99 => {
                let worker = self.random.below(WORKERS as u64) as usize;
                self.workers[worker] = Arc::clone(&self.current);
            }
            _ => self.release(),
        }
        for server in 0..64 {
            let counted = self.open.iter().filter(|connection| connection.server.index() == server).count();
            assert_eq!(self.loads.active(RealServerId(server as u16)) as usize, counted);
        }
    }

    fn connect(&mut self) {
        let worker = &self.workers[self.random.below(WORKERS as u64) as usize];
        let id = ServiceId(self.random.below(SERVICES as u64) as u16);
        let service = worker.service(id).expect("services stay");
        let from = client(self.random.below(40) as u32);
        let mut tried = Tried::new();
        if self.random.below(10) == 0 {
            tried.insert(RealServerId(self.random.below(4) as u16));
        }
        let stripe = &mut self.stripes[key_stripe(service, from.ip(), SEED)];
        let state = &mut self.states[id.index()];
        let before = self.loads.active_of_service(id);
        let picked = pick(service, state, stripe, &self.loads, from, &tried, self.now);
        let after = self.loads.active_of_service(id);
        let pick = match picked {
            Ok(pick) => pick,
            Err(refusal) => {
                assert_eq!(before, after);
                let full = |target: &Target| self.loads.active(target.server) >= target.max_connections;
                let free = service
                    .targets
                    .iter()
                    .any(|target| target.takes_new() && !tried.contains(target.server) && !full(target));
                assert!(!free || refusal == Refusal::ServiceFull, "{refusal:?} though there is room");
                *self.refused.entry(refusal).or_default() += 1;
                return;
            }
        };
        *self.picked.entry(pick.why).or_default() += 1;
        let target = &service.targets[pick.target.index()];
        assert_eq!(target.server, pick.server);
        assert!(!tried.contains(pick.server));
        assert_eq!(target.health, ServerHealth::Up);
        match target.admin {
            AdminState::Ready => assert!(target.weight > 0 || pick.why == PickReason::Persistent),
            AdminState::Drain => assert!(pick.why == PickReason::Persistent && id == ServiceId(0)),
            AdminState::Halt => panic!("a connection to a halted server"),
        }
        assert!(self.loads.active(pick.server) <= target.max_connections);
        assert!(after == before + 1 && after <= service.max_connections);
        let home = (id, from.ip());
        match pick.why {
            // The same machine as before, whatever became of ids in between.
            PickReason::Persistent => assert_eq!(self.homes[&home], target.address),
            PickReason::Balanced | PickReason::Repinned => {
                self.homes.insert(home, target.address);
            }
            PickReason::Overflowed => assert_ne!(self.homes[&home], target.address),
        }
        self.open.push(Connection { service: id, server: pick.server });
    }

    fn disconnect(&mut self) {
        if !self.open.is_empty() {
            let at = self.random.below(self.open.len() as u64) as usize;
            let Connection { service, server } = self.open.swap_remove(at);
            self.loads.close(service, server);
        }
    }

    fn check(&mut self) {
        let plan = &self.plans[self.random.below(self.plans.len() as u64) as usize];
        // Results come in runs, or no verdict would ever change.
        for _ in 0..3 {
            let result = match (self.now.0 / 700 + u64::from(plan.id.0)) % 3 {
                0 => CheckResult::Failed("refused".into()),
                _ => CheckResult::Passed,
            };
            if self.board.on_result(plan.id, result, self.now).is_some() {
                self.swap().unwrap();
                return;
            }
        }
    }

    /// The operator edits one server in both groups, or replaces it.
    fn change(&mut self) {
        let before = self.model.clone();
        let place = self.random.below(3) as usize;
        let draw = self.random.below(8);
        // Of few addresses, so that servers come back.
        let replacement = server(&format!("10.1.0.{}", 1 + self.random.below(8)), None);
        let taken = self.model.groups[0].servers.iter().any(|server| server.address == replacement.address);
        for group in &mut self.model.groups {
            let server = &mut group.servers[place];
            match draw {
                0 | 1 => server.admin = AdminState::Ready,
                2 => server.admin = AdminState::Drain,
                3 => server.admin = AdminState::Halt,
                4 => server.weight = 100,
                5 => server.weight = 0,
                6 => server.weight = 1,
                _ if taken => server.weight = 50,
                _ => *server = replacement.clone(),
            }
            server.max_connections = 12;
        }
        if self.swap().is_err() {
            self.model = before;
            self.ids_missing += 1;
        }
    }

    /// Publishes what holds now; when that cannot be, nothing has changed.
    fn swap(&mut self) -> Result<(), CompileError> {
        let mut registry = self.registry.clone();
        let mut board = self.board.clone();
        let plans = checks(&self.model, &mut registry)?;
        board.adopt(&plans, self.now);
        let steering = Arc::clone(&self.current.steering);
        let generation = Generation(self.current.generation.0 + 1);
        let next = compile(&self.model, &mut registry, &board, &mut self.snat, steering, &http_material(), generation)?;
        (self.registry, self.board, self.plans) = (registry, board, plans);
        self.current = Arc::new(next);
        Ok(())
    }

    /// Gives back the ids of servers that are gone and that nothing holds, once every worker has adopted, as the engine does.
    fn release(&mut self) {
        self.workers.fill(Arc::clone(&self.current));
        let gone: Vec<RealServerId> = self.registry.gone_servers().collect();
        for server in gone {
            if self.loads.active(server) == 0 {
                self.stripes.iter_mut().for_each(|stripe| {
                    stripe.forget_server(server);
                });
                assert!(self.registry.release_server(server));
                self.ids_released += 1;
            }
        }
    }
}

#[test]
fn no_connection_reaches_a_server_that_must_not_have_it() {
    let mut picked: HashMap<PickReason, u32> = HashMap::new();
    let mut refused: HashMap<Refusal, u32> = HashMap::new();
    let (mut released, mut missing) = (0, 0);
    for seed in 0..30 {
        let mut world = World::new(seed);
        for group in &mut world.model.groups {
            group.servers.iter_mut().for_each(|server| server.max_connections = 12);
        }
        world.swap().unwrap();
        world.workers.fill(Arc::clone(&world.current));
        for _ in 0..4_000 {
            world.step();
        }
        world.picked.iter().for_each(|(&why, n)| *picked.entry(why).or_default() += n);
        world.refused.iter().for_each(|(&why, n)| *refused.entry(why).or_default() += n);
        released += world.ids_released;
        missing += world.ids_missing;
    }
    // The lives were full enough to mean something.
    for why in [PickReason::Balanced, PickReason::Overflowed, PickReason::Persistent, PickReason::Repinned] {
        assert!(picked.get(&why).is_some_and(|&n| n > 50), "{why:?}: {picked:?}");
    }
    for why in [Refusal::NoServer, Refusal::ServersFull, Refusal::ServiceFull] {
        assert!(refused.get(&why).is_some_and(|&n| n > 50), "{why:?}: {refused:?}");
    }
    assert!(released > 50 && missing > 50, "{released} released, {missing} missing");
}
