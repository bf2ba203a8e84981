//! Flows that another process writes down and this one takes.

use super::*;

/// The ids of the process that took over: each is another one than before.
struct There {
    has_service: bool,
}

const SERVICE: ServiceId = ServiceId(1);

impl Renamed for There {
    fn service(&self, there: ServiceId) -> Option<ServiceId> {
        (self.has_service && there == ServiceId(0)).then_some(SERVICE)
    }

    fn server(&self, there: RealServerId) -> Option<RealServerId> {
        Some(RealServerId(there.0 + 5))
    }

    fn map(&self, there: u32) -> Option<u32> {
        Some(there)
    }
}

const THERE: There = There { has_service: true };

/// The plane of the process that takes over: with other ids, and other secrets.
fn successor(setup: &Setup) -> Lab {
    let mut service = setup.service();
    service.id = SERVICE;
    service.targets.iter_mut().for_each(|target| target.server = RealServerId(target.server.0 + 5));
    let mut snapshot = Snapshot::clone(&setup.snapshot(setup.service()));
    snapshot.services = vec![None, Some(Arc::new(service))];
    let settings = PlaneSettings { seed: [11, 13], flows_max: 32, ..setup.settings };
    // Its time has just begun.
    let now = Now(500);
    let plane = Plane::new(&settings, Arc::new(snapshot), Arc::new(setup.network.clone()), now);
    Lab { plane, clerk: Clerk::default(), out: Outbox::new(64, 65_536), now, verdicts: Vec::new() }
}

fn records(lab: &mut Lab, slots: usize) -> Vec<FlowRecord> {
    let (mut at, mut octets) = (Survey::START, Vec::new());
    while !lab.plane.write_flows(lab.now, &mut at, slots, &mut lab.clerk, &mut octets) {}
    let (records, rest) = octets.as_chunks::<FLOW_RECORD>();
    assert!(rest.is_empty());
    records.to_vec()
}

fn count(clerk: &mut Clerk, service: ServiceId, server: RealServerId) {
    *clerk.open.entry((service, server)).or_default() += 1;
}

fn inherit(lab: &mut Lab, record: &FlowRecord, renamed: &There) -> Result<Inherited, FlowRecordError> {
    let Lab { plane, clerk, out, now, .. } = lab;
    plane.inherit(*now, record, renamed, clerk, count, out)
}

fn take_over(old: &mut Lab, setup: &Setup) -> Lab {
    let mut new = successor(setup);
    for record in records(old, 3) {
        assert_eq!(inherit(&mut new, &record, &THERE), Ok(Inherited::Taken));
    }
    new
}

fn setups() -> impl Iterator<Item = Setup> {
    let of = |family| MODES.into_iter().map(move |forwarding| Setup::new(family, forwarding, Protocol::Tcp));
    FAMILIES.into_iter().flat_map(of)
}

#[test]
fn flows_go_on_in_the_next_process_as_they_would_have_here() {
    for setup in setups().filter(|setup| setup.forwarding != Forwarding::Dsr) {
        let family = setup.family;
        let mut old = setup.lab();
        let flows: Vec<(Tuple, Tuple)> = (0..4).map(|n| old.open(family, 40_000 + n)).collect();
        let half_open = Tuple::new(SocketAddr::new(client(family).ip(), 50_000), vip(family), PROTOCOL_TCP);
        let (_, _, at_server) = old.client_sends(&half_open, &tcp(&half_open, SYN, 100, 0, &[], b""));
        old.close(&flows[0].0, &flows[0].1, Direction::Forward);
        // One has closed its side only.
        old.client_sends(&flows[1].0, &tcp(&flows[1].0, FIN_ACK, 101, 901, &[], b""));
        old.now = old.now + 1_000;
        let mut new = take_over(&mut old, &setup);
        assert_eq!(new.plane.flows(), old.plane.flows());
        assert_eq!(new.clerk.connections(), old.clerk.connections());
        assert!(new.clerk.open.keys().all(|&(service, server)| (service, server) == (SERVICE, RealServerId(5))));
        let both = [&mut old, &mut new];
        let sent = both.map(|lab| {
            let (forward, back) = &flows[2];
            let mut sent = vec![
                lab.client_sends(forward, &tcp(forward, ACK, 101, 901, &[], b"question")),
                lab.server_sends(back, &tcp(back, ACK, 901, 109, &[], b"answer")),
                // What the other side still says after the FIN.
                lab.server_sends(&flows[1].1, &tcp(&flows[1].1, FIN_ACK, 901, 102, &[], b"")),
                lab.client_sends(&flows[1].0, &tcp(&flows[1].0, ACK, 102, 902, &[], b"")),
                // The handshake goes on.
                lab.server_sends(&at_server.reversed(), &tcp(&at_server.reversed(), SYN_ACK, 900, 101, &[], b"")),
                lab.client_sends(&half_open, &tcp(&half_open, ACK, 101, 901, &[], b"")),
            ];
            sent.extend(lab.made().into_iter().map(|(port, frame)| (port, frame, half_open)));
            (sent, lab.clerk.connections(), lab.plane.flows())
        });
        assert_eq!(sent[0], sent[1], "{family:?} {:?}", setup.forwarding);
        // A reset with a number far off ends neither, and no port is leased twice.
        let verdicts = [&mut old, &mut new].map(|lab| {
            let (forward, _) = &flows[3];
            let segment = tcp(forward, RST, 5_000_000, 0, &[], b"");
            lab.send(OUTSIDE, &mut frame_of(OUTSIDE_MAC, ROUTER_MAC, forward, &segment))
        });
        assert_eq!(verdicts[0], verdicts[1]);
        assert_eq!(new.clerk.connections(), old.clerk.connections());
        let mut sources = HashSet::new();
        for (_, back) in &flows {
            sources.insert(back.destination());
        }
        for n in 0..8 {
            let (_, back) = new.open(family, 41_000 + n);
            assert!(setup.forwarding == Forwarding::HalfNat || sources.insert(back.destination()), "leased twice");
        }
        // All of them end, and nothing is left.
        new.now = new.now + 8 * 86_400_000;
        new.expire();
        new.expire();
        assert_eq!((new.plane.flows(), new.clerk.connections()), (0, 0));
    }
}

#[test]
fn one_way_flows_and_datagrams_are_inherited_too() {
    for family in FAMILIES {
        let setup = Setup::new(family, Forwarding::Dsr, Protocol::Tcp);
        let mut old = setup.lab();
        let forward = Tuple::new(client(family), vip(family), PROTOCOL_TCP);
        old.client_sends(&forward, &tcp(&forward, SYN, 100, 0, &[], b""));
        old.client_sends(&forward, &tcp(&forward, ACK, 101, 901, &[], b""));
        let mut new = take_over(&mut old, &setup);
        let [one, other] =
            [&mut old, &mut new].map(|lab| lab.client_sends(&forward, &tcp(&forward, ACK, 101, 901, &[], b"question")));
        assert_eq!(one, other);
        let setup = Setup::new(family, Forwarding::FullNat, Protocol::Udp);
        let mut old = setup.lab();
        let forward = Tuple::new(client(family), vip(family), PROTOCOL_UDP);
        let datagram = |tuple: &Tuple| udp(tuple, b"question");
        let (_, _, at_server) = old.client_sends(&forward, &datagram(&forward));
        old.server_sends(&at_server.reversed(), &datagram(&at_server.reversed()));
        let mut new = take_over(&mut old, &setup);
        let [one, other] = [&mut old, &mut new].map(|lab| {
            let there = lab.client_sends(&forward, &datagram(&forward));
            (there, lab.server_sends(&at_server.reversed(), &datagram(&at_server.reversed())))
        });
        assert_eq!(one, other);
    }
}

#[test]
fn a_flow_stays_idle_and_is_forgotten_when_its_time_is_up() {
    let setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
    let mut old = setup.lab();
    old.open(Family::V4, 40_000);
    old.now = old.now + 500_000;
    let mut new = successor(&setup);
    // In a process that has been there for longer than the flow was silent its time goes on; in a younger one it begins with that process.
    new.now = Now(2_000_000);
    let [record] = records(&mut old, 10)[..] else { panic!("one flow") };
    assert_eq!(inherit(&mut new, &record, &THERE), Ok(Inherited::Taken));
    new.now = new.now + 90_000;
    new.expire();
    assert_eq!(new.plane.flows(), 1);
    new.now = new.now + 20_000;
    new.expire();
    assert_eq!(new.plane.flows(), 0);
}

#[test]
fn what_has_no_service_no_port_or_no_room_is_lost_and_nothing_is_left_of_it() {
    let setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
    let mut old = setup.lab();
    for n in 0..40 {
        old.open(Family::V4, 40_000 + n);
    }
    let all = records(&mut old, 7);
    let mut new = successor(&setup);
    assert_eq!(inherit(&mut new, &all[0], &There { has_service: false }), Ok(Inherited::Lost));
    assert_eq!(inherit(&mut new, &all[0], &THERE), Ok(Inherited::Taken));
    assert_eq!(inherit(&mut new, &all[0], &THERE), Ok(Inherited::Lost), "its port is leased");
    let became: Vec<_> = all[1..].iter().map(|record| inherit(&mut new, record, &THERE).unwrap()).collect();
    let taken = became.iter().filter(|became| **became == Inherited::Taken).count();
    assert_eq!((taken, became.len() - taken), (31, 8), "room for 32");
    assert_eq!((new.plane.flows(), new.clerk.connections()), (32, 32));
    // Both ends of those that found no room hear of it.
    assert!(new.made().iter().all(|(_, frame)| parsed(frame).tcp.flags.0 & RST != 0) && !new.made().is_empty());
}

#[test]
fn a_flow_of_another_worker_is_told_to_be() {
    let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
    let mut old = setup.lab();
    for n in 0..16 {
        old.open(Family::V4, 40_000 + n);
    }
    let all = records(&mut old, 7);
    setup.workers = 2;
    let became = [WorkerId(0), WorkerId(1)].map(|worker| {
        setup.settings.worker = worker;
        let mut new = successor(&setup);
        all.iter().map(|record| inherit(&mut new, record, &THERE).unwrap()).collect::<Vec<_>>()
    });
    let [of_first, of_second] = became;
    for pair in of_first.into_iter().zip(of_second) {
        let one_of_both = [
            (Inherited::Taken, Inherited::Elsewhere(WorkerId(0))),
            (Inherited::Elsewhere(WorkerId(1)), Inherited::Taken),
        ];
        assert!(one_of_both.contains(&pair), "{pair:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever the octets say, nothing breaks, and what is taken can be forwarded, listed and ended.
    #[test]
    fn no_record_does_harm(
        damages in prop::collection::vec((0..FLOW_RECORD, any::<u8>()), 0..12),
        which in 0..3_usize,
        whole in prop::option::of(prop::collection::vec(any::<u8>(), FLOW_RECORD)),
    ) {
        let setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
        let mut old = setup.lab();
        let flows: Vec<(Tuple, Tuple)> = (0..3).map(|n| old.open(Family::V4, 40_000 + n)).collect();
        let mut record = records(&mut old, 5)[which];
        damages.into_iter().for_each(|(at, octet)| record[at] = octet);
        if let Some(whole) = whole {
            record.copy_from_slice(&whole);
        }
        let mut new = successor(&setup);
        if inherit(&mut new, &record, &THERE) == Ok(Inherited::Taken) {
            for (forward, back) in &flows {
                new.send(OUTSIDE, &mut frame_of(OUTSIDE_MAC, ROUTER_MAC, forward, &tcp(forward, ACK, 101, 901, &[], b"x")));
                new.send(INSIDE, &mut frame_of(INSIDE_MAC, server_mac(80), back, &tcp(back, ACK, 901, 101, &[], b"x")));
            }
            assert_eq!(records(&mut new, 100).len(), new.plane.flows());
        }
        new.now = new.now + 8 * 86_400_000;
        new.expire();
        new.expire();
        prop_assert_eq!((new.plane.flows(), new.clerk.connections()), (0, 0));
    }
}
