//! Which flows there are, where one is, and the end of one.

use super::*;

fn walk(plane: &Plane, slots: usize) -> Vec<SurveyedFlow> {
    let mut at = Survey::START;
    let mut found = Vec::new();
    for _ in 0..1_000 {
        if plane.survey(&mut at, slots, |flow| {
            found.push(*flow);
            true
        }) {
            return found;
        }
    }
    panic!("a walk without an end")
}

#[test]
fn a_walk_meets_every_flow_however_small_its_steps_are() {
    for family in FAMILIES {
        let mut lab = Setup::new(family, Forwarding::FullNat, Protocol::Tcp).lab();
        let opened: Vec<(Tuple, Tuple)> = (0..5).map(|n| lab.open(family, 40_000 + n)).collect();
        let half_open = Tuple::new(SocketAddr::new(client(family).ip(), 50_000), vip(family), PROTOCOL_TCP);
        lab.client_sends(&half_open, &tcp(&half_open, SYN, 100, 0, &[], b""));
        lab.close(&opened[0].0, &opened[0].1, Direction::Forward);
        for slots in [1, 3, 1_000] {
            let found = walk(&lab.plane, slots);
            let mut clients: Vec<u16> = found.iter().map(|flow| flow.path.client.src_port).collect();
            clients.sort_unstable();
            assert_eq!(clients, [40_000, 40_001, 40_002, 40_003, 40_004, 50_000], "{slots}");
            let state_of = |port| found.iter().find(|flow| flow.path.client.src_port == port).map(|flow| flow.state);
            assert_eq!([40_000, 40_001, 50_000].map(state_of), [Some("over"), Some("established"), Some("syn-sent")]);
        }
        let mut seen = 0;
        let is_end = lab.plane.survey(&mut { Survey::START }, 1_000, |_| {
            seen += 1;
            seen < 2
        });
        assert_eq!((is_end, seen), (false, 2), "it stops where it is told to");
    }
}

#[test]
fn a_flow_is_found_by_each_of_its_four_tuples() {
    for family in FAMILIES {
        let mut lab = Setup::new(family, Forwarding::FullNat, Protocol::Tcp).lab();
        let (forward, back) = lab.open(family, 40_000);
        let ways = [(forward, Direction::Forward), (back, Direction::Reverse)];
        for (tuple, direction) in ways {
            let (flow, found) = lab.plane.find_flow(&tuple).expect("a flow");
            assert_eq!((found, flow.path.client, flow.path.server), (direction, forward, back.reversed()));
            assert_eq!((flow.server, flow.why, flow.is_leased), (Some(RealServerId(0)), PickReason::Balanced, true));
            assert!(flow.seen <= lab.now && flow.due > lab.now + 500_000, "{flow:?}");
            assert!(lab.plane.find_flow(&tuple.reversed()).is_none(), "nobody sends that");
        }
    }
}

#[test]
fn an_ended_flow_is_reset_at_both_ends_once_and_gives_everything_back() {
    for (family, forwarding) in FAMILIES.into_iter().flat_map(|family| MODES.map(|mode| (family, mode))) {
        let mut lab = Setup::new(family, forwarding, Protocol::Tcp).lab();
        let forward = Tuple::new(client(family), vip(family), PROTOCOL_TCP);
        let (_, _, at_server) = lab.client_sends(&forward, &tcp(&forward, SYN, 100, 0, &[], b""));
        if forwarding != Forwarding::Dsr {
            let back = at_server.reversed();
            lab.server_sends(&back, &tcp(&back, SYN_ACK, 900, 101, &[], b""));
        }
        lab.client_sends(&forward, &tcp(&forward, ACK, 101, 901, &[], b""));
        let [flow] = walk(&lab.plane, 100)[..] else { panic!("one flow") };
        let Lab { plane, clerk, out, now, .. } = &mut lab;
        let other = FlowPlace { generation: flow.place.generation + 2, ..flow.place };
        assert_eq!(plane.end_flow(*now, other, clerk, out), FlowEnd::Gone, "another flow of the same place");
        assert_eq!(plane.end_flow(*now, flow.place, clerk, out), FlowEnd::Ended, "{forwarding:?}");
        assert_eq!(plane.end_flow(*now, flow.place, clerk, out), FlowEnd::Gone, "once");
        let resets = lab.made();
        assert!(!resets.is_empty() && resets.iter().all(|(_, frame)| parsed(frame).tcp.flags.0 & RST != 0));
        let ports: HashSet<PortId> = resets.iter().map(|(port, _)| *port).collect();
        assert_eq!(ports.len(), if forwarding == Forwarding::Dsr { 1 } else { 2 }, "{forwarding:?}: {ports:?}");
        assert_eq!((lab.plane.flows(), lab.clerk.connections()), (0, 0));
        assert_eq!(lab.clerk.ends, [Termination::Killed]);
    }
}

#[test]
fn a_frame_concerns_the_service_that_it_is_for_or_from() {
    let family = Family::V4;
    let mut lab = Setup::new(family, Forwarding::FullNat, Protocol::Tcp).lab();
    let (forward, back) = lab.open(family, 40_000);
    let ours = [ServiceId(0)];
    let concern = |lab: &Lab, tuple: &Tuple, services: &[ServiceId]| {
        let frame = frame_of(OUTSIDE_MAC, ROUTER_MAC, tuple, &packet(tuple, ACK, 1, 1, b""));
        lab.plane.concerns(&frame, services).map(|concern| (concern.client, concern.from_client))
    };
    let stranger = Tuple::new(SocketAddr::new(client(family).ip(), 7), vip(family), PROTOCOL_TCP);
    let closed = Tuple { dst_port: 444, ..stranger };
    assert_eq!(concern(&lab, &forward, &ours), Some((forward.source(), true)));
    assert_eq!(concern(&lab, &back, &ours), Some((forward.source(), false)));
    assert_eq!(concern(&lab, &stranger, &ours), Some((stranger.source(), true)));
    assert_eq!(concern(&lab, &stranger.reversed(), &ours), Some((stranger.source(), false)));
    assert_eq!(concern(&lab, &closed, &ours), None);
    assert_eq!(concern(&lab, &forward, &[ServiceId(1)]), None);
    assert_eq!(lab.plane.concerns(&[0; 5], &ours), None);
}
