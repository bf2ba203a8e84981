//! What a plane has counted, leased and entered must agree with the flows that it has, whatever has happened.

use super::*;
use crate::plane::flows::is_tcp;

/// One step: what, by which client, and two numbers that say how.
type Step = (u8, u8, u8, u8);

const CLIENTS: u8 = 6;
const TIMES_MS: [u64; 4] = [500, 4_500, 31_000, 61_000];

struct Ledger {
    lab: Lab,
    setup: Setup,
    /// Of each client, its last packet as it left, reversed: how the server answers.
    backs: HashMap<u8, Tuple>,
    /// A connection that is in use all the time, and its packets as they leave.
    alive: (Tuple, Tuple),
    forwarding: Forwarding,
    halted: bool,
}

fn forward_of(setup: &Setup, client: u8) -> Tuple {
    // Two of one source each.
    let source = SocketAddr::new(host(setup.family, "clients", 10 + client / 2), 40_000 + u16::from(client));
    Tuple::new(source, vip(setup.family), number(setup.protocol))
}

impl Ledger {
    fn new(family: Family, forwarding: Forwarding, protocol: Protocol, known: bool, has_pool: bool) -> Ledger {
        let mut setup = Setup::new(family, forwarding, protocol);
        let second = Target { address: host(family, "inside", 81), port: Some(8443), ..fixtures::target(1) };
        setup.servers.push(second);
        setup.has_pool |= has_pool;
        setup.snat = 5_000..=5_003;
        (setup.settings.flows_max, setup.settings.half_open_max) = (5, 4);
        setup.settings.half_open_per_source_max = 1;
        let mut lab = setup.lab();
        let forward = Tuple::new(client(family), vip(family), number(protocol));
        let (_, _, at_server) = lab.client_sends(&forward, &packet(&forward, SYN, 100, 0, b""));
        if forwarding != Forwarding::Dsr {
            let back = at_server.reversed();
            lab.server_sends(&back, &packet(&back, SYN_ACK, 900, 101, b""));
        }
        lab.client_sends(&forward, &packet(&forward, ACK, 101, 901, b""));
        if !known {
            lab.plane.adopt_network(Arc::new(network(1500, false)), &mut lab.out);
        }
        Ledger { lab, setup, backs: HashMap::new(), alive: (forward, at_server), forwarding, halted: false }
    }

    fn client_sends(&mut self, client: u8, flags: u8, seq: u32, ack: u32) {
        let forward = forward_of(&self.setup, client);
        let mut frame = frame_of(OUTSIDE_MAC, ROUTER_MAC, &forward, &packet(&forward, flags, seq, ack, b""));
        if let Verdict::Send(INSIDE) = self.lab.send(OUTSIDE, &mut frame) {
            self.backs.insert(client, sound(&frame).reversed());
        }
    }

    fn server_sends(&mut self, client: u8, flags: u8, seq: u32, ack: u32) {
        let Some(back) = self.backs.get(&client).copied() else { return };
        let mut frame = frame_of(INSIDE_MAC, server_mac(80), &back, &packet(&back, flags, seq, ack, b""));
        self.lab.send(INSIDE, &mut frame);
    }

    fn reload(&mut self) {
        let old = self.lab.plane.snapshot.service(ServiceId(0)).map(Arc::clone).unwrap();
        let mut service = fixtures::service(old.balance, old.targets.clone());
        (service.vip, service.ports, service.protocol) = (old.vip, old.ports.clone(), old.protocol);
        (service.plane, service.idle_timeout_ms, service.source) = (old.plane, old.idle_timeout_ms, old.source.clone());
        service.forwarding = self.forwarding;
        service.targets[1].admin = if self.halted { AdminState::Halt } else { AdminState::Ready };
        self.lab.plane.adopt_snapshot(self.setup.snapshot(service));
    }

    fn step(&mut self, (what, client, a, b): Step) {
        let client = client % CLIENTS;
        let pick = |from: &[u32], at: u8| from[usize::from(at) % from.len()];
        match what {
            0..4 => {
                let flags = [SYN, ACK, FIN_ACK, RST][usize::from(a) % 4];
                self.client_sends(client, flags, pick(&[100, 101, 102, 5_000], b), pick(&[901, 902], b / 4));
            }
            4..7 => {
                let flags = [SYN_ACK, ACK, FIN_ACK, RST][usize::from(a) % 4];
                self.server_sends(client, flags, pick(&[900, 901, 902], b), pick(&[101, 102, 5_001], b / 4));
            }
            7..10 => {
                self.client_sends(client, SYN, 100, 0);
                self.server_sends(client, SYN_ACK, 900, 101);
                self.client_sends(client, ACK, 101, 901);
                if a % 2 == 0 {
                    self.client_sends(client, FIN_ACK, 101, 901);
                    self.server_sends(client, FIN_ACK, 901, 102);
                    self.client_sends(client, ACK, 102, 902);
                } else if b % 2 == 0 {
                    self.server_sends(client, FIN_ACK, 901, 101);
                    self.client_sends(client, FIN_ACK, 101, 902);
                    self.server_sends(client, ACK, 902, 102);
                }
            }
            10 => self.lab.now = self.lab.now + TIMES_MS[usize::from(a) % 4],
            11 => {
                let budget = pick(&[1, 2, 5, 1_000], a) as usize;
                let Lab { plane, now, clerk, out, .. } = &mut self.lab;
                plane.expire(*now, budget, clerk, out);
            }
            12 => {
                self.halted = !self.halted;
                self.reload();
            }
            13 => {
                self.forwarding = MODES[usize::from(a) % 3];
                if self.forwarding == Forwarding::FullNat && !self.setup.has_pool {
                    self.forwarding = Forwarding::HalfNat;
                }
                self.reload();
            }
            14 => self.lab.clerk.refusal = (a % 3 == 0).then_some(Refusal::NoServer),
            _ => self.lab.out.clear(),
        }
    }

    /// The connection in use passes data both ways.
    fn use_alive(&mut self) {
        let (forward, at_server) = self.alive;
        let mut frame = frame_of(OUTSIDE_MAC, ROUTER_MAC, &forward, &packet(&forward, ACK, 101, 901, b"x"));
        let verdict = self.lab.send(OUTSIDE, &mut frame);
        match verdict {
            Verdict::Send(INSIDE) => assert_eq!(sound(&frame), at_server),
            // Its server's station is not known, and there is only so much room to wait.
            Verdict::Kept | Verdict::Drop(DropReason::NextHopUnknown) => {}
            other => panic!("a connection in use is gone: {other:?}"),
        }
        if at_server.src != forward.src || at_server.dst != forward.dst {
            let back = at_server.reversed();
            let mut frame = frame_of(INSIDE_MAC, server_mac(80), &back, &packet(&back, ACK, 901, 102, b"y"));
            assert_eq!(self.lab.send(INSIDE, &mut frame), Verdict::Send(OUTSIDE));
            assert_eq!(sound(&frame), forward.reversed());
        }
    }

    fn audit(&self) {
        let Lab { plane, clerk, .. } = &self.lab;
        let flows = &plane.flows;
        let mut counted: HashMap<(ServiceId, RealServerId), i64> = HashMap::new();
        let (mut leased, mut unanswered, mut one_way) = (0, 0, 0);
        for (stage, other) in [(Stage::HalfOpen, Stage::Established), (Stage::Established, Stage::HalfOpen)] {
            let table = flows.table(stage);
            for id in (0..table.flows_max()).filter_map(|slot| table.at(slot)) {
                let (path, state, detail) =
                    (table.path(id).unwrap(), table.state(id).unwrap(), table.detail(id).unwrap());
                if detail.is_counted {
                    *counted.entry((state.service(), detail.server)).or_default() += 1;
                }
                leased += usize::from(detail.is_leased());
                unanswered += usize::from(stage == Stage::HalfOpen && !is_tcp(&path));
                one_way += usize::from(stage == Stage::Established && path.returns == Returns::Elsewhere);
                assert!(flows.table(other).lookup(&path.client).is_none(), "{path:?} is in both tables");
                if path.returns == Returns::Here {
                    assert_eq!(table.lookup(&path.server.reversed()), Some((id, Direction::Reverse)));
                    let twin = flows.table(other).lookup(&path.server.reversed());
                    assert!(twin.is_none(), "the answers of {path:?} are in both tables");
                }
            }
        }
        let open: HashMap<_, _> =
            clerk.open.iter().filter(|(_, n)| **n != 0).map(|(member, n)| (*member, *n)).collect();
        assert_eq!(open, counted, "connections at the desk");
        assert_eq!((flows.unanswered, flows.one_way), (unanswered, one_way));
        assert_eq!(flows.sources.flows(), flows.half_open.len(), "half-open flows of all sources");
        if let ServiceSource::Pool(pool) = &plane.snapshot.service(ServiceId(0)).unwrap().source {
            let fill: u32 = pool.fill().map(|fill| fill.leased).sum();
            assert_eq!(fill as usize, leased + plane.rest.len(), "leases");
        }
        let read = |counter| plane.counts().read(counter) as usize;
        assert_eq!(read(PlaneCounter::FlowsOpened) - read(PlaneCounter::FlowsClosed), plane.flows());
    }
}

proptest! {
    #[test]
    fn the_books_agree_with_the_flows_after_every_step(
        (family, forwarding, protocol) in any_setup(),
        (known, has_pool) in any::<(bool, bool)>(),
        steps in prop::collection::vec((0..16_u8, any::<u8>(), any::<u8>(), any::<u8>()), 0..80),
    ) {
        let mut ledger = Ledger::new(family, forwarding, protocol, known, has_pool);
        ledger.audit();
        for step in steps {
            ledger.step(step);
            ledger.use_alive();
            ledger.audit();
        }
        for _ in 0..2 {
            ledger.lab.now = ledger.lab.now + 2_000_000;
            ledger.lab.expire();
            ledger.audit();
        }
        prop_assert_eq!((ledger.lab.plane.flows(), ledger.lab.clerk.connections()), (0, 0));
    }
}
