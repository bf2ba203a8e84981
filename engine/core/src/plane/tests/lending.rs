//! Several planes behind one steering program: ports that one lends to another, frames that are handed off, virtual shards that move.

use std::collections::{BTreeMap, VecDeque};

use super::*;
use crate::VShard;
use crate::fast_path::{Arrival, FastMemory, FastSettings, FastShape};
use crate::packet::straight::Station;
use crate::random::SplitMix64;
use crate::steering::frame::{FanoutRule, steer};
use crate::steering::{VSHARDS, vshard_of_port};

const PLANES: usize = 4;
/// Ports of the pool, of neighbouring virtual shards: whatever the table is, one or two planes own all of them.
const PORTS: std::ops::RangeInclusive<u16> = 5_000..=5_023;
/// More frames that go from plane to plane than any has reason to.
const HOPS_MAX: usize = 4;

enum Parcel {
    Cargo(Cargo),
    Frame { port: PortId, bytes: Vec<u8>, expected: Tuple, hops: usize },
}

struct Letter {
    by: WorkerId,
    /// The generation that its writer had.
    generation: usize,
    parcel: Parcel,
}

/// Planes in one thread, each as far as the story has come.
struct Crew {
    setup: Setup,
    service: Service,
    planes: Vec<Plane>,
    /// The generation that each plane has adopted.
    adopted: Vec<usize>,
    inboxes: Vec<VecDeque<Letter>>,
    clerk: Clerk,
    out: Outbox,
    now: Now,
    /// The tables of all generations.
    tables: Vec<Arc<SteeringTable>>,
    /// What the kernel steers by.
    kernel: Arc<SteeringTable>,
    rules: Vec<FanoutRule>,
    /// Connections: how the client sends, and the server answers.
    open: BTreeMap<u16, (Tuple, Tuple)>,
    passed: usize,
    last: Option<Tuple>,
    /// What carries flows instead of the planes, where anything does, and how many frames it has carried.
    fast: Option<FastMemory>,
    carried: usize,
}

impl Crew {
    fn new(setup: Setup, workers: usize) -> Crew {
        let family = setup.family;
        let service = setup.service();
        let table = Arc::new(SteeringTable::even(workers));
        let now = Now(1_000_000);
        let snapshot = |service: &Service| {
            Arc::new(Snapshot {
                generation: Generation(1),
                services: vec![Some(Arc::new(service.clone()))],
                real_servers: Vec::new(),
                steering: Arc::clone(&table),
                router: Arc::default(),
                outbound: Arc::default(),
                role: Default::default(),
            })
        };
        let plane = |worker: usize| {
            let settings = PlaneSettings { worker: WorkerId(worker as u8), ..setup.settings };
            Plane::new(&settings, snapshot(&service), Arc::new(setup.network.clone()), now)
        };
        Crew {
            planes: (0..PLANES).map(plane).collect(),
            adopted: vec![0; PLANES],
            inboxes: (0..PLANES).map(|_| VecDeque::new()).collect(),
            clerk: Clerk::default(),
            out: Outbox::new(64, 65_536),
            now,
            kernel: Arc::clone(&table),
            tables: vec![table],
            rules: vec![FanoutRule::vip(vip(family).ip().into()), FanoutRule::snat(host(family, "inside", 2).into())],
            open: BTreeMap::new(),
            passed: 0,
            last: None,
            fast: None,
            carried: 0,
            setup,
            service,
        }
    }

    /// Lets flows of all planes be carried from here on.
    fn use_fast_path(&mut self) {
        const ROOM: u32 = 256;
        let memory = FastMemory::private(FastShape::new(ROOM * PLANES as u32), [3, 5]);
        for (plane, worker) in self.planes.iter_mut().zip(0_u16..) {
            let first = u32::from(worker) * ROOM;
            plane.use_fast_path(memory.clone(), FastSettings { worker, flows: first..first + ROOM, origin_ms: 0 });
        }
        self.fast = Some(memory);
    }

    fn pool(&self) -> &crate::snat::SnatPool {
        let ServiceSource::Pool(pool) = &self.service.source else { panic!("a pool") };
        pool
    }

    fn leased(&self) -> usize {
        self.pool().fill().map(|fill| fill.leased as usize).sum()
    }

    fn forward_of(&self, client_port: u16) -> Tuple {
        let source = SocketAddr::new(client(self.setup.family).ip(), client_port);
        Tuple::new(source, vip(self.setup.family), number(self.setup.protocol))
    }

    /// A frame comes in; the kernel gives it to the plane that it thinks is right. It has to leave as `expected`, sooner or later.
    fn arrive(&mut self, port: PortId, mut bytes: Vec<u8>, expected: Tuple) -> Verdict {
        let of_port = &self.setup.network.ports[port.index()];
        let arrival = Arrival {
            ifindex: of_port.index,
            station: Station::new(of_port.mac),
            is_tagged: false,
            checksum: Checksum::Complete,
            segment_bytes: 0,
        };
        if let Some(memory) = &self.fast
            && let Some(out) = memory.carry(&mut bytes, &arrival, self.now.0 * 1_000_000)
        {
            assert_eq!(sound(&bytes), expected);
            self.passed += 1;
            self.carried += 1;
            let out = self.setup.network.ports.iter().zip(0..).find(|(port, _)| port.index == out);
            return Verdict::Send(PortId(out.expect("a port of ours").1));
        }
        let vshard = steer(&bytes, self.setup.settings.steering_seed, &self.rules);
        let at = self.kernel.worker_of(vshard);
        self.handle(at, None, port, bytes, expected, 0)
    }

    fn handle(
        &mut self,
        at: WorkerId,
        by: Option<WorkerId>,
        port: PortId,
        mut bytes: Vec<u8>,
        expected: Tuple,
        hops: usize,
    ) -> Verdict {
        let before = bytes.clone();
        let mut frames =
            [Frame { bytes: &mut bytes, front: &mut [], port, checksum: Checksum::Complete, segment_bytes: 0 }];
        let mut verdicts = Vec::new();
        let Crew { planes, clerk, out, now, .. } = self;
        let plane = &mut planes[at.index()];
        match by {
            None => plane.process(*now, &mut frames, &mut verdicts, clerk, out),
            Some(by) => plane.process_handed(*now, by, &mut frames, &mut verdicts, clerk, out),
        }
        match verdicts[0] {
            Verdict::HandOff(to) => {
                assert!(to != at && hops < HOPS_MAX, "plane {at} hands it to {to} after {hops}");
                assert_eq!(bytes, before, "handed off as it came");
                let parcel = Parcel::Frame { port, bytes, expected, hops: hops + 1 };
                self.post(at, to, parcel);
            }
            Verdict::Send(_) => {
                let left = sound(&bytes);
                // Of a new connection nobody knows the port beforehand.
                if expected != Tuple::default() {
                    assert_eq!(left, expected);
                }
                self.last = Some(left);
                self.passed += 1;
            }
            _ => {}
        }
        verdicts[0]
    }

    fn post(&mut self, by: WorkerId, to: WorkerId, parcel: Parcel) {
        let generation = self.adopted[by.index()];
        self.inboxes[to.index()].push_back(Letter { by, generation, parcel });
    }

    /// One letter of one plane; whether there was any.
    fn read(&mut self, at: usize) -> bool {
        let Some(Letter { by, generation, parcel }) = self.inboxes[at].pop_front() else { return false };
        if self.adopted[at] < generation {
            self.adopt(at);
        }
        match parcel {
            Parcel::Cargo(cargo) => {
                let Crew { planes, clerk, out, now, .. } = self;
                planes[at].import(*now, by, cargo, clerk, out);
            }
            Parcel::Frame { port, bytes, expected, hops } => {
                let verdict = self.handle(WorkerId(at as u8), Some(by), port, bytes, expected, hops);
                if expected != Tuple::default() {
                    assert!(matches!(verdict, Verdict::Send(_) | Verdict::HandOff(_)), "lost: {verdict:?}");
                }
            }
        }
        true
    }

    fn read_all(&mut self) {
        while (0..PLANES).any(|at| self.read(at)) {}
    }

    fn adopt(&mut self, at: usize) {
        let last = self.tables.len() - 1;
        if self.adopted[at] == last {
            return;
        }
        self.adopted[at] = last;
        self.planes[at].adopt_snapshot(Arc::new(Snapshot {
            generation: Generation(last as u64 + 1),
            services: vec![Some(Arc::new(self.service.clone()))],
            real_servers: Vec::new(),
            steering: Arc::clone(&self.tables[last]),
            router: Arc::default(),
            outbound: Arc::default(),
            role: Default::default(),
        }));
    }

    /// Gives away, as long as `room` lasts.
    fn export(&mut self, at: usize, budget: usize, mut room: usize) {
        let mut given = Vec::new();
        self.planes[at].export(self.now, budget, &mut self.clerk, |to, cargo| {
            let has_room = room > 0;
            if has_room {
                room -= 1;
                given.push((to, cargo));
            }
            has_room
        });
        for (to, cargo) in given {
            self.post(WorkerId(at as u8), to, Parcel::Cargo(cargo));
        }
    }

    /// Whether owners may change again, though frames may still be on their way.
    fn has_moved(&self) -> bool {
        let last = self.tables.len() - 1;
        self.adopted.iter().all(|&adopted| adopted == last) && self.planes.iter().all(|plane| !plane.is_moving())
    }

    fn is_settled(&self) -> bool {
        self.has_moved() && self.inboxes.iter().all(VecDeque::is_empty)
    }

    fn settle_down(&mut self) {
        for at in 0..PLANES {
            self.adopt(at);
        }
        while !self.is_settled() {
            for at in 0..PLANES {
                self.export(at, 50, 3);
            }
            self.read_all();
        }
        self.kernel = Arc::clone(self.tables.last().unwrap());
        // How connections were closed by the kernel is heard of by then.
        for plane in &mut self.planes {
            plane.expire(self.now, 1_000, &mut self.clerk, &mut self.out);
        }
    }

    fn remap(&mut self, workers: usize) {
        let table = self.tables.last().unwrap().remapped(workers);
        self.tables.push(Arc::new(table));
    }

    fn client_says(&mut self, client_port: u16, flags: u8, seq: u32, ack: u32) {
        let (forward, back) = self.open[&client_port];
        let frame = frame_of(OUTSIDE_MAC, ROUTER_MAC, &forward, &packet(&forward, flags, seq, ack, b""));
        self.arrive(OUTSIDE, frame, back.reversed());
    }

    fn server_says(&mut self, client_port: u16, flags: u8, seq: u32, ack: u32) {
        let (forward, back) = self.open[&client_port];
        let frame = frame_of(INSIDE_MAC, server_mac(80), &back, &packet(&back, flags, seq, ack, b""));
        self.arrive(INSIDE, frame, forward.reversed());
    }

    /// A client connects; whether it is served.
    fn connect(&mut self, client_port: u16) -> bool {
        let forward = self.forward_of(client_port);
        let frame = frame_of(OUTSIDE_MAC, ROUTER_MAC, &forward, &packet(&forward, SYN, 100, 0, b""));
        (self.last, self.out) = (None, Outbox::new(64, 65_536));
        self.arrive(OUTSIDE, frame, Tuple::default());
        self.read_all();
        let Some(at_server) = self.last else { return false };
        self.open.insert(client_port, (forward, at_server.reversed()));
        if self.setup.protocol == Protocol::Tcp {
            self.server_says(client_port, SYN_ACK, 900, 101);
            self.read_all();
            self.client_says(client_port, ACK, 101, 901);
        } else {
            self.server_says(client_port, 0, 0, 0);
        }
        self.read_all();
        true
    }

    fn close(&mut self, client_port: u16) {
        for (from_client, flags, seq, ack) in
            [(true, FIN_ACK, 101, 901), (false, FIN_ACK, 901, 102), (true, ACK, 102, 902)]
        {
            match from_client {
                true => self.client_says(client_port, flags, seq, ack),
                false => self.server_says(client_port, flags, seq, ack),
            }
            self.read_all();
        }
        self.open.remove(&client_port);
    }

    fn read_counter(&self, counter: PlaneCounter) -> u64 {
        self.planes.iter().map(|plane| plane.counts().read(counter)).sum()
    }

    fn dropped(&self) -> Vec<DropReason> {
        let drops = |reason: &DropReason| self.planes.iter().any(|plane| plane.counts().dropped(*reason) > 0);
        DropReason::ALL.iter().copied().filter(drops).collect()
    }

    /// What is counted, leased and noted agrees with the connections that there are.
    fn audit(&self) {
        assert_eq!(self.clerk.connections() as usize, self.open.len(), "picks");
        if self.setup.has_pool {
            assert_eq!(self.leased(), self.open.len(), "leases");
        }
        for (number, plane) in self.planes.iter().enumerate() {
            use PlaneCounter::{FlowsClosed, FlowsGiven, FlowsOpened, FlowsTaken};
            let read = |counter| plane.counts().read(counter);
            let sum = read(FlowsOpened) + read(FlowsTaken) - read(FlowsClosed) - read(FlowsGiven);
            assert_eq!(sum as usize, plane.flows(), "plane {number}");
            assert_eq!(plane.flows.sources.flows(), plane.flows.half_open.len(), "plane {number}");
        }
        for (forward, back) in self.open.values() {
            let homes: Vec<usize> = (0..PLANES).filter(|&at| self.planes[at].flows.lookup(forward).is_some()).collect();
            assert_eq!(homes.len(), 1, "{forward:?} is at {homes:?}");
            let plane = &self.planes[homes[0]];
            assert_eq!(plane.flows.lookup(back).map(|found| found.direction), Some(Direction::Reverse));
            if self.setup.has_pool {
                let home = crate::steering::vshard_of_client(forward.src.into(), forward.src_port, 5);
                assert_eq!(plane.notes.home_of(back), Some(home), "the note of {back:?}");
            }
        }
    }
}

fn crew(forwarding: Forwarding, family: Family, protocol: Protocol, workers: usize) -> Crew {
    let mut setup = Setup::new(family, forwarding, protocol);
    (setup.snat, setup.rest_ms) = (PORTS, 0);
    Crew::new(setup, workers)
}

#[test]
fn a_pool_with_ports_of_one_plane_serves_the_clients_of_all_to_the_last_port() {
    for family in FAMILIES {
        for workers in [2, 3, 4] {
            let mut crew = crew(Forwarding::FullNat, family, Protocol::Tcp, workers);
            for client_port in 1..=PORTS.len() as u16 {
                assert!(crew.connect(40_000 + client_port), "the {client_port}th of {}", PORTS.len());
            }
            crew.audit();
            assert!(!crew.connect(50_000), "one more than there are ports");
            assert_eq!((crew.dropped(), crew.leased()), (vec![DropReason::PortsExhausted], PORTS.len()));
            assert_eq!(crew.clerk.ends, [Termination::OutOfSourcePorts]);
            for client_port in crew.open.keys().copied().collect::<Vec<_>>() {
                crew.client_says(client_port, ACK, 101, 901);
                crew.server_says(client_port, ACK, 901, 101);
            }
            let expected = crew.passed + crew.inboxes.iter().map(VecDeque::len).sum::<usize>();
            crew.read_all();
            assert_eq!(crew.passed, expected);
            assert!(crew.read_counter(PlaneCounter::FramesHandedByNote) > 0);
            assert_eq!(crew.read_counter(PlaneCounter::FramesHandedByMove), 0, "nothing has moved");
            let handed = crew.read_counter(PlaneCounter::FramesHandedByNote);
            assert_eq!(crew.read_counter(PlaneCounter::FramesHandedHere), handed);
            for client_port in crew.open.keys().copied().collect::<Vec<_>>() {
                crew.close(client_port);
            }
            crew.audit();
        }
    }
}

#[test]
fn home_comes_first_then_the_worker_s_own_and_foreign_ports_last() {
    let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
    // One port in each of the 256 virtual shards.
    (setup.snat, setup.settings.half_open_max) = (0x2000..=0x20ff, 400);
    let mut crew = Crew::new(setup, 2);
    let table = Arc::clone(&crew.kernel);
    let home = crate::steering::vshard_of_client(client(Family::V4).ip(), 40_000, 5);
    let worker = table.worker_of(home);
    let mut leased = Vec::new();
    for _ in 0..VSHARDS {
        let lease = crew.pool().lease(server(Family::V4), home, &table, worker).expect("a port is left");
        leased.push(lease.vshard());
    }
    assert_eq!(leased[0], home);
    assert!(leased[..128].iter().all(|&vshard| table.worker_of(vshard) == worker));
    assert!(leased[128..].iter().all(|&vshard| table.worker_of(vshard) != worker));
    assert!(!crew.connect(40_000));
}

#[test]
fn an_error_about_a_packet_from_a_lent_port_finds_its_flow() {
    let mut crew = crew(Forwarding::FullNat, Family::V4, Protocol::Tcp, 2);
    for client_port in 40_000..40_008 {
        assert!(crew.connect(client_port));
    }
    for (client_port, (_, back)) in crew.open.clone() {
        crew.client_says(client_port, ACK, 101, 901);
        crew.read_all();
        let frame = too_big(server(Family::V4).ip(), &back.reversed(), 101, INSIDE_MAC);
        let at = crew.kernel.worker_of(steer(&frame, 5, &crew.rules));
        assert_eq!(at, crew.kernel.worker_of(vshard_of_port(back.dst_port)));
        let errors = crew.read_counter(PlaneCounter::Errors);
        let mut planes = vec![(at, None)];
        while let Some((at, by)) = planes.pop() {
            let mut frame = frame.clone();
            let mut frames = [Frame {
                bytes: &mut frame,
                front: &mut [],
                port: INSIDE,
                checksum: Checksum::Complete,
                segment_bytes: 0,
            }];
            let mut verdicts = Vec::new();
            let Crew { planes: all, clerk, out, now, .. } = &mut crew;
            match by {
                None => all[at.index()].process(*now, &mut frames, &mut verdicts, clerk, out),
                Some(by) => all[at.index()].process_handed(*now, by, &mut frames, &mut verdicts, clerk, out),
            }
            match verdicts[0] {
                Verdict::HandOff(to) => planes.push((to, Some(at))),
                verdict => assert_eq!(verdict, Verdict::Send(OUTSIDE)),
            }
        }
        assert_eq!(crew.read_counter(PlaneCounter::Errors), errors + 1);
    }
    assert!(crew.read_counter(PlaneCounter::FramesHandedByNote) > 0);
}

#[test]
fn a_connection_that_is_over_gives_its_port_up_to_one_elsewhere() {
    let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
    (setup.snat, setup.rest_ms) = (5_000..=5_000, 0);
    let mut crew = Crew::new(setup, 2);
    let owner = crew.kernel.worker_of(vshard_of_port(5_000));
    let home = |client_port| crate::steering::vshard_of_client(client(Family::V4).ip(), client_port, 5);
    let at = |owns: bool| {
        let table = SteeringTable::even(2);
        (40_000..).find(|&client_port| (table.worker_of(home(client_port)) == owner) == owns).unwrap()
    };
    let (near, far) = (at(true), at(false));
    for (first, second) in [(near, far), (far, near)] {
        assert!(crew.connect(first));
        crew.close(first);
        crew.now = crew.now + 100;
        // Its server refuses: the first answer is a reset.
        let forward = crew.forward_of(second);
        let frame = frame_of(OUTSIDE_MAC, ROUTER_MAC, &forward, &packet(&forward, SYN, 100, 0, b""));
        crew.last = None;
        crew.arrive(OUTSIDE, frame, Tuple::default());
        crew.read_all();
        let back = crew.last.expect("the one port is free").reversed();
        crew.last = None;
        let reset = tcp(&back, RST | ACK, 0, 101, &[], b"");
        crew.arrive(INSIDE, frame_of(INSIDE_MAC, server_mac(80), &back, &reset), forward.reversed());
        crew.read_all();
        assert_eq!(crew.last, Some(forward.reversed()), "the answer is the second one's");
        crew.audit();
        crew.now = crew.now + 1_000_000;
        for plane in &mut crew.planes {
            while !plane.expire(crew.now, 1_000, &mut crew.clerk, &mut crew.out) {}
        }
        crew.audit();
    }
}

#[test]
fn a_port_of_a_home_that_moves_belongs_to_its_newer_flow_elsewhere() {
    let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
    (setup.snat, setup.rest_ms) = (5_000..=5_000, 0);
    let mut crew = Crew::new(setup, 2);
    let (old, new) = (SteeringTable::even(2), SteeringTable::even(2).remapped(3));
    let owner = old.worker_of(vshard_of_port(5_000));
    let home = |client_port: &u16| crate::steering::vshard_of_client(client(Family::V4).ip(), *client_port, 5);
    let moves = |home| old.worker_of(home) == owner && new.worker_of(home) != owner;
    let first = (40_000..).find(|client_port| moves(home(client_port))).unwrap();
    let second = (first + 1..).find(|client_port| home(client_port) == home(&first)).unwrap();
    assert!(crew.connect(first));
    crew.close(first);
    crew.remap(3);
    (0..PLANES).for_each(|at| crew.adopt(at));
    // The first one is still where it was, and the answers to the second come there.
    assert!(crew.connect(second));
    crew.settle_down();
    crew.server_says(second, ACK, 901, 101);
    crew.audit();
}

#[test]
fn a_moved_flow_keeps_its_age_and_a_halted_server_loses_it_all_the_same() {
    let mut crew = crew(Forwarding::FullNat, Family::V4, Protocol::Tcp, 2);
    for client_port in 40_000..40_008 {
        assert!(crew.connect(client_port));
    }
    crew.now = crew.now + 500_000;
    crew.remap(3);
    crew.settle_down();
    assert!(crew.read_counter(PlaneCounter::FlowsGiven) > 0);
    crew.audit();
    // 600 s of silence are over, also where half of them passed elsewhere.
    crew.now = crew.now + 100_500;
    for plane in &mut crew.planes {
        while !plane.expire(crew.now, 1_000, &mut crew.clerk, &mut crew.out) {
            crew.out.clear();
        }
    }
    crew.open.clear();
    crew.audit();
    assert_eq!(crew.leased(), 0);

    // Halted while its flows are on their way.
    for client_port in 40_000..40_008 {
        assert!(crew.connect(client_port));
    }
    crew.remap(2);
    for at in 0..PLANES {
        crew.adopt(at);
        crew.export(at, 1_000, 100);
    }
    crew.service.targets[0].admin = AdminState::Halt;
    let table = Arc::clone(crew.tables.last().unwrap());
    crew.tables.push(table);
    for at in 0..PLANES {
        crew.adopt(at);
        while !crew.planes[at].expire(crew.now, 1_000, &mut crew.clerk, &mut crew.out) {
            crew.out.clear();
        }
    }
    crew.settle_down();
    for plane in &mut crew.planes {
        while !plane.expire(crew.now, 1_000, &mut crew.clerk, &mut crew.out) {
            crew.out.clear();
        }
    }
    crew.open.clear();
    crew.audit();
}

#[test]
fn flows_that_find_no_room_where_they_move_are_ended_on_both_sides() {
    let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
    (setup.snat, setup.rest_ms, setup.settings.flows_max) = (PORTS, 0, 14);
    let mut crew = Crew::new(setup, 2);
    let served = (40_000..40_024).filter(|&client_port| crew.connect(client_port)).count();
    crew.remap(1);
    crew.settle_down();
    let kept = crew.planes[0].flows();
    assert_eq!(kept, 14);
    assert!(served > kept);
    assert_eq!(crew.clerk.ends, vec![Termination::OutOfConnections; served - kept]);
    assert!(crew.read_counter(PlaneCounter::FlowsReset) == (served - kept) as u64);
    let open = crew.open.clone();
    crew.open.retain(|_, (forward, _)| crew.planes[0].flows.lookup(forward).is_some());
    assert!(open.len() > crew.open.len());
    crew.audit();
}

#[test]
fn owners_change_again_only_when_every_flow_has_arrived() {
    let mut crew = crew(Forwarding::FullNat, Family::V4, Protocol::Tcp, 1);
    for client_port in 40_000..40_016 {
        assert!(crew.connect(client_port));
    }
    // What plane 0 gives lies in the inbox of plane 1, which has nothing to give itself.
    crew.remap(2);
    for at in 0..PLANES {
        crew.adopt(at);
        crew.export(at, 1_000, 100);
    }
    assert!(crew.inboxes[1].iter().any(|letter| matches!(letter.parcel, Parcel::Cargo(Cargo::Flow(_)))));
    assert!(!crew.has_moved(), "plane 2 would hear the end from plane 1 before the flows, and their packets be strays");
    crew.read_all();
    assert!(crew.has_moved());
    crew.remap(3);
    for at in 0..PLANES {
        crew.adopt(at);
        crew.export(at, 1_000, 100);
    }
    let passed = crew.passed;
    for client_port in 40_000..40_016 {
        crew.client_says(client_port, ACK, 101, 901);
        crew.server_says(client_port, ACK, 901, 101);
    }
    crew.read_all();
    assert_eq!(crew.passed, passed + 32);
    crew.settle_down();
    assert!(crew.planes[2].flows() > 0, "some of them have moved on");
    crew.audit();
}

/// Of two workers one has given its flows and told so before the other looks up; meanwhile there is a newer snapshot with the same owners.
#[test]
fn a_worker_that_comes_late_hears_the_end_of_a_move_that_began_before() {
    let mut crew = crew(Forwarding::FullNat, Family::V4, Protocol::Tcp, 1);
    for client_port in 40_000..40_016 {
        assert!(crew.connect(client_port));
    }
    crew.remap(2);
    crew.adopt(0);
    crew.export(0, 100_000, 1_000);
    crew.tables.push(Arc::clone(crew.tables.last().unwrap()));
    (0..PLANES).for_each(|at| crew.adopt(at));
    for _ in 0..3 {
        (0..PLANES).for_each(|at| crew.export(at, 100_000, 1_000));
        crew.read_all();
    }
    assert!(crew.has_moved(), "the end was told once, and there is none to come");
    assert!(crew.planes[1].flows() > 0);
    crew.audit();
}

/// Every frame of every connection arrives while virtual shards move to and fro, whoever has adopted what, and whatever the kernel steers by.
#[test]
fn nothing_is_lost_while_virtual_shards_move() {
    assert_eq!(move_to_and_fro(|_| {}), 0);
}

/// Of flows that are carried some frames come to the planes all the same: those before they are entered, the last ones, and a few of each move.
#[test]
fn nothing_is_lost_while_virtual_shards_of_carried_flows_move() {
    let carried = move_to_and_fro(Crew::use_fast_path);
    assert!(carried > 1_000, "{carried} frames carried");
}

/// Returns how many frames did not come to any plane.
fn move_to_and_fro(prepare: impl Fn(&mut Crew)) -> usize {
    let (mut moved, mut noted, mut full, mut carried) = (0, 0, 0, 0);
    for seed in 1..=160 {
        let mut random = SplitMix64::new(seed);
        let forwarding = if seed % 4 == 0 { Forwarding::HalfNat } else { Forwarding::FullNat };
        let protocol = PROTOCOLS[usize::from(seed % 8 >= 6)];
        let family = FAMILIES[(seed % 2) as usize];
        let mut crew = crew(forwarding, family, protocol, 1 + (seed % 4) as usize);
        prepare(&mut crew);
        let mut next_client = 40_000;
        let mut expected = 0;
        for _ in 0..400 {
            let at = random.below(PLANES as u64) as usize;
            let some_client = crew.open.keys().nth(random.below(24) as usize).copied();
            match random.below(20) {
                0..3 => {
                    crew.read_all();
                    crew.now = crew.now + 70;
                    next_client += 1;
                    let was_full = crew.leased_if_any() == PORTS.len();
                    let before = crew.passed;
                    let is_served = crew.connect(next_client);
                    assert!(is_served || was_full || crew.is_without_room(), "seed {seed}: {:?}", crew.dropped());
                    full += usize::from(!is_served);
                    expected += crew.passed - before;
                }
                3..11 => {
                    let Some(client_port) = some_client else { continue };
                    match random.below(2) {
                        0 => crew.client_says(client_port, ACK, 101, 901),
                        _ => crew.server_says(client_port, ACK, 901, 101),
                    }
                    expected += 1;
                }
                11 if protocol == Protocol::Tcp => {
                    crew.read_all();
                    let Some(client_port) = some_client else { continue };
                    crew.close(client_port);
                    expected += 3;
                }
                12 if crew.has_moved() => crew.remap(1 + random.below(PLANES as u64) as usize),
                13 | 14 => crew.adopt(at),
                15 | 16 => crew.export(at, 1 + random.below(60) as usize, random.below(4) as usize),
                17 => crew.kernel = Arc::clone(crew.tables.last().unwrap()),
                18 => crew.read_all(),
                _ => {
                    crew.read(at);
                }
            }
        }
        crew.read_all();
        assert_eq!(crew.passed, expected, "seed {seed}: {:?}", crew.dropped());
        crew.settle_down();
        crew.audit();
        assert_eq!(
            crew.read_counter(PlaneCounter::FlowsGiven),
            crew.read_counter(PlaneCounter::FlowsTaken),
            "seed {seed}"
        );
        moved += crew.read_counter(PlaneCounter::FlowsGiven);
        noted += crew.read_counter(PlaneCounter::FramesHandedByNote);
        carried += crew.carried;
        assert!(
            crew.dropped().iter().all(|reason| {
                matches!(reason, DropReason::PortsExhausted | DropReason::FlowsFull | DropReason::HalfOpenFull)
            }),
            "seed {seed}: {:?}",
            crew.dropped()
        );
    }
    assert!(moved > 1_000 && full > 0, "{moved} moved, {full} refused");
    assert!(noted > if carried == 0 { 1_000 } else { 100 }, "{noted} noted");
    carried
}

impl Crew {
    fn leased_if_any(&self) -> usize {
        if self.setup.has_pool { self.leased() } else { 0 }
    }

    fn is_without_room(&self) -> bool {
        self.planes.iter().any(|plane| plane.half_open() == self.setup.settings.half_open_max)
    }
}

#[test]
fn a_port_that_was_never_leased_is_at_home() {
    let crew = crew(Forwarding::FullNat, Family::V4, Protocol::Tcp, 2);
    for port in [1, 255, 256, 5_000, 65_535] {
        let back = Tuple::new(server(Family::V4), SocketAddr::new(host(Family::V4, "inside", 2), port), PROTOCOL_TCP);
        assert_eq!(crew.planes[0].notes.home_of(&back), Some(VShard(port as u8)));
        let stranger = Tuple { src_port: 9, ..back };
        assert_eq!(crew.planes[0].notes.home_of(&stranger), None);
    }
}
