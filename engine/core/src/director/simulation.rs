//! Random lives of a small balancer: connections, health, the operator's changes, clients that wait for a place, and workers that learn of all that late.
//!
//! A life that fails says its seed; `TOWPATH_SIMULATION_SEED=n cargo test -p towpath-core simulation` lives it again.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use towpath_config::model::{AdminState, Balance, Model, Queue};

use super::*;
use crate::compile::{CompileError, checks, compile};
use crate::fixtures::{METHODS, add_service, client, half_an_hour, http_material, model, server, tcp_check};
use crate::health::{CheckPlan, CheckResult, HealthBoard};
use crate::ids::{Generation, ServiceId, WorkerId};
use crate::loads::PlainLoads;
use crate::persistence::{PERSISTENCE_STRIPES, key_stripe};
use crate::random::SplitMix64;
use crate::registry::Registry;
use crate::snapshot::{ServerHealth, Snapshot};
use crate::snat::{SnatBook, SnatLimits};
use crate::steering::SteeringTable;
use crate::waiting::{QueueFull, Ticket, WaitingQueue, may_have};

const SERVICES: usize = 2;
const WORKERS: usize = 3;
/// Fewer than there are addresses.
const SERVERS_MAX: usize = 5;
/// Who says sorry for the second service, and nobody for the first.
const SORRY: &str = "10.2.0.1";
const SEED: u64 = 99;
/// Lives, and what happens in each.
const LIVES: u64 = 2_000;
const STEPS: usize = 300;
/// Every so-manieth has Maglev, whose table is dear to make anew with each swap.
const MAGLEV_EVERY: u64 = 32;
/// After how many steps all that is due is done, and looked at.
const QUIET_EVERY: usize = 25;
const SERVER_MAX: u32 = 6;
const SERVICE_MAX: u32 = 9;
const QUEUE: Queue = Queue { max: 5, timeout_ms: 2_000 };

/// A client that waits, at the worker that has accepted it.
#[derive(Clone, Copy)]
struct Waiting {
    worker: usize,
    client: SocketAddr,
    due: Now,
}

/// What became of those that waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Waited {
    joined: u32,
    turned_away: u32,
    served: u32,
    left: u32,
    timed_out: u32,
}

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
    queues: Vec<WaitingQueue>,
    waiting: BTreeMap<(ServiceId, Ticket), Waiting>,
    /// What the queues should say: tickets in order of arrival.
    lines: Vec<VecDeque<Ticket>>,
    /// What whoever is first knew when it asked last.
    asked: Vec<Arc<Snapshot>>,
    /// What each worker was called for and has not done yet.
    calls: Vec<BTreeSet<ServiceId>>,
    waited: Waited,
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
            service.balance = match METHODS[random.below(METHODS.len() as u64) as usize] {
                Balance::Maglev if !seed.is_multiple_of(MAGLEV_EVERY) => Balance::SourceHash,
                other => other,
            };
            service.max_connections = SERVICE_MAX;
            service.queue = Some(QUEUE);
            let servers = &mut model.groups[n].servers;
            servers.iter_mut().for_each(|server| server.max_connections = SERVER_MAX);
            servers[0].min_connections = 2;
            servers[2].min_connections = 3;
            let service = &mut model.services[n];
            let rule = Persistence { timeout_ms: 60_000, enter_draining: n == 0, ..half_an_hour() };
            service.persistence = Some(rule);
        }
        model.services[1].sorry = Some(server(SORRY, None));
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
            asked: vec![Arc::clone(&current); SERVICES],
            current,
            states: (0..SERVICES as u64).map(BalancerState::new).collect(),
            stripes: (0..PERSISTENCE_STRIPES).map(|_| PersistenceTable::new(1, SEED)).collect(),
            loads: PlainLoads::new(SERVICES, 64),
            open: Vec::new(),
            queues: vec![WaitingQueue::new(); SERVICES],
            waiting: BTreeMap::new(),
            lines: vec![VecDeque::new(); SERVICES],
            calls: vec![BTreeSet::new(); WORKERS],
            waited: Waited::default(),
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
            0..40 => self.connect(),
            40..65 => self.disconnect(),
            65..80 => {
                let worker = self.random.below(WORKERS as u64) as usize;
                self.answer_calls(worker);
            }
            80..83 => self.leave(),
            83..90 => self.check(),
            90..95 => self.change(),
            95..99 => {
                let worker = self.random.below(WORKERS as u64) as usize;
                self.adopt(worker);
            }
            _ => self.release(),
        }
        self.time_out();
        let mut counted = [0; 64];
        self.open.iter().for_each(|connection| counted[connection.server.index()] += 1);
        for (server, &counted) in counted.iter().enumerate() {
            assert_eq!(self.loads.active(RealServerId(server as u16)), counted);
        }
    }

    fn connect(&mut self) {
        let number = self.random.below(WORKERS as u64) as usize;
        let worker = Arc::clone(&self.workers[number]);
        let id = ServiceId(self.random.below(SERVICES as u64) as u16);
        let service = worker.service(id).expect("services stay");
        let from = client(self.random.below(40) as u32);
        if !self.queues[id.index()].is_empty() {
            if service.targets.iter().any(Target::takes_new) {
                self.join(id, number, from);
            }
            return;
        }
        let mut tried = Tried::new();
        if self.random.below(10) == 0 {
            tried.insert(RealServerId(self.random.below(4) as u16));
        }
        let before = self.loads.clone();
        let picked = self.pick(service, from, &tried);
        match picked {
            Ok(pick) => self.opened(service, from, &tried, &before, pick),
            Err(refusal) => {
                assert_eq!(before.active_of_service(id), self.loads.active_of_service(id));
                let full = |target: &Target| self.loads.active(target.server) >= target.max_connections;
                let free = service
                    .targets
                    .iter()
                    .any(|target| target.takes_new() && !tried.contains(target.server) && !full(target));
                assert!(!free || refusal == Refusal::ServiceFull, "{refusal:?} though there is room");
                *self.refused.entry(refusal).or_default() += 1;
                if refusal != Refusal::NoServer {
                    self.join(id, number, from);
                }
            }
        }
    }

    fn pick(&mut self, service: &Service, from: SocketAddr, tried: &Tried) -> Result<Pick, Refusal> {
        let stripe = &mut self.stripes[key_stripe(service, from.ip(), SEED)];
        let state = &mut self.states[service.id.index()];
        pick(service, state, stripe, &self.loads, from, tried, self.now)
    }

    /// A client has got a server; `before` it was so many that each had.
    fn opened(&mut self, service: &Service, from: SocketAddr, tried: &Tried, before: &PlainLoads, pick: Pick) {
        let id = service.id;
        let after = self.loads.active_of_service(id);
        *self.picked.entry(pick.why).or_default() += 1;
        let target = &service.targets[pick.target.index()];
        assert_eq!(target.server, pick.server);
        assert!(!tried.contains(pick.server));
        assert_eq!(target.health, ServerHealth::Up);
        assert_eq!(target.is_sorry(), pick.why == PickReason::Consoled);
        match target.admin {
            AdminState::Ready => assert!(target.weight > 0 || pick.why == PickReason::Persistent),
            AdminState::Drain => assert!(pick.why == PickReason::Persistent && id == ServiceId(0)),
            AdminState::Halt => panic!("a connection to a halted server"),
        }
        assert!(target.is_sorry() || self.loads.active(pick.server) <= target.max_connections);
        assert!(after == before.active_of_service(id) + 1 && after <= service.max_connections);
        let is_below = |target: &Target| before.active(target.server) < target.min_connections;
        let has_room = |target: &Target| before.active(target.server) < target.max_connections;
        let waits = |target: &Target| target.takes_new() && !tried.contains(target.server) && has_room(target);
        if pick.why != PickReason::Persistent && service.targets.iter().any(|target| waits(target) && is_below(target))
        {
            assert!(is_below(target), "a server got more while another had not its minimum");
        }
        let home = (id, from.ip());
        match pick.why {
            // The same machine as before, whatever became of ids in between.
            PickReason::Persistent => assert_eq!(self.homes[&home], target.address),
            PickReason::Balanced | PickReason::Repinned => {
                self.homes.insert(home, target.address);
            }
            PickReason::Overflowed => assert_ne!(self.homes[&home], target.address),
            PickReason::Consoled => {
                let could = |other: &Target| !other.is_sorry() && other.takes_new() && !tried.contains(other.server);
                assert!(!service.targets.iter().any(could), "somebody could have served");
            }
        }
        self.open.push(Connection { service: id, server: pick.server });
    }

    fn disconnect(&mut self) {
        if !self.open.is_empty() {
            let at = self.random.below(self.open.len() as u64) as usize;
            let Connection { service, server } = self.open.swap_remove(at);
            self.close(service, server);
        }
    }

    /// As [`Shared::close`] of the engine does it.
    fn close(&mut self, service: ServiceId, server: RealServerId) {
        self.loads.close(service, server);
        for (place, queue) in self.queues.iter().enumerate() {
            let place = ServiceId(place as u16);
            let waited_for = self.asked[place.index()].service(place).expect("services stay");
            if let Some(worker) = queue.first().filter(|_| may_have(waited_for, service, server)) {
                self.calls[worker.index()].insert(place);
            }
        }
    }

    fn join(&mut self, id: ServiceId, worker: usize, client: SocketAddr) {
        let queue = &mut self.queues[id.index()];
        let is_full = queue.len() == QUEUE.max as usize;
        match queue.join(WorkerId(worker as u8), QUEUE.max as usize, self.now) {
            Ok(ticket) => {
                assert!(!is_full);
                if queue.is_first(ticket) {
                    self.asked[id.index()] = Arc::clone(&self.workers[worker]);
                    self.calls[worker].insert(id);
                }
                let due = self.now + QUEUE.timeout_ms;
                self.waiting.insert((id, ticket), Waiting { worker, client, due });
                self.lines[id.index()].push_back(ticket);
                self.waited.joined += 1;
            }
            Err(QueueFull) => {
                assert!(is_full);
                self.waited.turned_away += 1;
            }
        }
    }

    /// A worker asks for its clients that are first.
    fn answer_calls(&mut self, worker: usize) {
        for id in std::mem::take(&mut self.calls[worker]) {
            self.serve(worker, id);
        }
    }

    fn serve(&mut self, worker: usize, id: ServiceId) {
        let snapshot = Arc::clone(&self.workers[worker]);
        let service = snapshot.service(id).expect("services stay");
        loop {
            let own = self.waiting.iter().find(|((of, _), waiting)| *of == id && waiting.worker == worker);
            let Some((&(_, ticket), &Waiting { client, .. })) = own else { return };
            let before = self.loads.clone();
            let mut queue = std::mem::take(&mut self.queues[id.index()]);
            if queue.is_first(ticket) {
                self.asked[id.index()] = Arc::clone(&snapshot);
            }
            let (picked, called) = queue.serve(ticket, || self.pick(service, client, &Tried::new()));
            self.queues[id.index()] = queue;
            if let Some(next) = called {
                self.calls[next.index()].insert(id);
            }
            let Ok(pick) = picked else { return };
            assert_eq!(self.lines[id.index()].pop_front(), Some(ticket), "served before its turn");
            self.waiting.remove(&(id, ticket));
            self.waited.served += 1;
            self.opened(service, client, &Tried::new(), &before, pick);
        }
    }

    fn adopt(&mut self, worker: usize) {
        self.workers[worker] = Arc::clone(&self.current);
        (0..SERVICES).for_each(|id| self.serve(worker, ServiceId(id as u16)));
    }

    /// Somebody who waits has enough of it.
    fn leave(&mut self) {
        if !self.waiting.is_empty() {
            let at = self.random.below(self.waiting.len() as u64) as usize;
            let key = self.waiting.keys().nth(at).copied();
            key.into_iter().for_each(|key| self.stop_waiting(key));
            self.waited.left += 1;
        }
    }

    fn time_out(&mut self) {
        let now = self.now;
        let due: Vec<_> = self.waiting.iter().filter(|(_, waiting)| waiting.due <= now).map(|(&key, _)| key).collect();
        self.waited.timed_out += due.len() as u32;
        due.into_iter().for_each(|key| self.stop_waiting(key));
    }

    fn stop_waiting(&mut self, (id, ticket): (ServiceId, Ticket)) {
        self.waiting.remove(&(id, ticket));
        self.lines[id.index()].retain(|other| *other != ticket);
        if let Some(next) = self.queues[id.index()].leave(ticket) {
            self.calls[next.index()].insert(id);
        }
    }

    /// All workers do what they were called for; then nobody waits who could be served.
    fn rest(&mut self) {
        while self.calls.iter().any(|calls| !calls.is_empty()) {
            (0..WORKERS).for_each(|worker| self.answer_calls(worker));
        }
        for id in 0..SERVICES {
            let place = ServiceId(id as u16);
            let waiting = self.waiting.keys().filter(|(of, _)| *of == place).count();
            assert_eq!((self.queues[id].len(), self.lines[id].len()), (waiting, waiting));
            let Some(&ticket) = self.lines[id].front() else { continue };
            let Waiting { worker, client, .. } = self.waiting[&(place, ticket)];
            assert_eq!(self.queues[id].first(), Some(WorkerId(worker as u8)));
            let snapshot = Arc::clone(&self.workers[worker]);
            let service = snapshot.service(place).expect("services stay");
            let could = self.pick(service, client, &Tried::new());
            assert!(could.is_err(), "somebody waits for a place that is free: {could:?}");
        }
    }

    /// Everything comes back: so does everybody who waits, and the balance.
    fn recover(&mut self) {
        for group in &mut self.model.groups {
            group.health = None;
            for server in &mut group.servers {
                (server.admin, server.weight) = (AdminState::Ready, 100);
            }
        }
        // With no id left for a server that was replaced, those of servers that are gone are given back first.
        while self.swap().is_err() {
            self.open.clear();
            self.loads = PlainLoads::new(SERVICES, 64);
            self.release();
        }
        (0..WORKERS).for_each(|worker| self.adopt(worker));
        self.rest();
        while !self.open.is_empty() {
            self.disconnect();
            self.rest();
        }
        assert!(self.waiting.is_empty(), "somebody still waits before servers that have nothing to do");
        let Waited { joined, served, left, timed_out, .. } = self.waited;
        assert_eq!(joined, served + left + timed_out, "somebody was lost: {:?}", self.waited);
        self.share();
    }

    /// Servers without limits share clients that nobody has seen by their weights.
    fn share(&mut self) {
        let random = &mut self.random;
        let weights: Vec<u16> = (0..3).map(|_| 1 + random.below(5) as u16).collect();
        for group in &mut self.model.groups {
            for (server, &weight) in group.servers.iter_mut().zip(&weights) {
                (server.weight, server.min_connections, server.max_connections) = (weight, 0, 0);
            }
        }
        for service in &mut self.model.services {
            (service.persistence, service.max_connections) = (None, 0);
        }
        self.swap().unwrap();
        let snapshot = Arc::clone(&self.current);
        let service = snapshot.service(ServiceId(0)).expect("services stay");
        let rounds = 20;
        let sum = usize::from(weights.iter().sum::<u16>());
        let mut state = BalancerState::new(1);
        let mut table = PersistenceTable::new(0, 0);
        let loads = PlainLoads::new(SERVICES, 64);
        for number in 0..(rounds * sum) as u32 {
            let picked = pick(service, &mut state, &mut table, &loads, client(number), &Tried::new(), self.now);
            assert!(picked.is_ok());
        }
        let got: Vec<usize> = service.targets.iter().map(|target| loads.active(target.server) as usize).collect();
        match service.balance {
            Balance::WeightedLeastConnections | Balance::WeightedRoundRobin => {
                let due: Vec<usize> = weights.iter().map(|&weight| rounds * usize::from(weight)).collect();
                assert_eq!(got, due);
            }
            Balance::LeastConnections | Balance::RoundRobin => {
                let (least, most) = (got.iter().min().unwrap(), got.iter().max().unwrap());
                assert!(most - least <= 1, "{got:?}");
            }
            // By chance: each gets some.
            _ => assert!(got.iter().all(|&count| count > 0), "{got:?} of {weights:?}"),
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
            server.max_connections = SERVER_MAX;
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
        (0..WORKERS).for_each(|worker| self.adopt(worker));
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

/// Says the seed of a life that fails.
struct Life(u64);

impl Drop for Life {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("this life has the seed {0}: TOWPATH_SIMULATION_SEED={0} lives it again", self.0);
        }
    }
}

#[test]
fn no_connection_reaches_a_server_that_must_not_have_it_and_nobody_waits_in_vain() {
    let mut picked: HashMap<PickReason, u32> = HashMap::new();
    let mut refused: HashMap<Refusal, u32> = HashMap::new();
    let (mut released, mut missing) = (0, 0);
    let mut waited = Waited::default();
    let asked = std::env::var_os("TOWPATH_SIMULATION_SEED").map(|seed| seed.to_str().unwrap().parse().unwrap());
    let seeds = asked.map_or(0..LIVES, |seed| seed..seed + 1);
    for seed in seeds {
        let _life = Life(seed);
        let mut world = World::new(seed);
        for step in 0..STEPS {
            world.step();
            if step % QUIET_EVERY == 0 {
                world.rest();
            }
        }
        world.picked.iter().for_each(|(&why, n)| *picked.entry(why).or_default() += n);
        world.refused.iter().for_each(|(&why, n)| *refused.entry(why).or_default() += n);
        let Waited { joined, turned_away, served, left, timed_out } = world.waited;
        waited.joined += joined;
        waited.turned_away += turned_away;
        waited.served += served;
        waited.left += left;
        waited.timed_out += timed_out;
        released += world.ids_released;
        missing += world.ids_missing;
        world.recover();
    }
    if asked.is_some() {
        return;
    }
    // The lives were full enough to mean something.
    let whys = [
        PickReason::Balanced,
        PickReason::Consoled,
        PickReason::Overflowed,
        PickReason::Persistent,
        PickReason::Repinned,
    ];
    for why in whys {
        assert!(picked.get(&why).is_some_and(|&n| n > 50), "{why:?}: {picked:?}");
    }
    for why in [Refusal::NoServer, Refusal::ServersFull, Refusal::ServiceFull] {
        assert!(refused.get(&why).is_some_and(|&n| n > 50), "{why:?}: {refused:?}");
    }
    assert!(released > 50 && missing > 50, "{released} released, {missing} missing");
    let Waited { turned_away, served, left, timed_out, .. } = waited;
    assert!([turned_away, served, left, timed_out].iter().all(|&n| n > 1_000), "{waited:?}");
}
