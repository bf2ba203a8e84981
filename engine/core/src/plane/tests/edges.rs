//! What floods, forgeries, repeats and reloads must not do to a plane.

use super::*;
use crate::snapshot::ServerHealth;

fn outside_frame(tuple: &Tuple, payload: &[u8]) -> Vec<u8> {
    frame_of(OUTSIDE_MAC, ROUTER_MAC, tuple, payload)
}

/// From client `host`, another one each.
fn forward_of(host_number: u8, port: u16, protocol: Protocol) -> Tuple {
    let source = SocketAddr::new(host(Family::V4, "clients", host_number), port);
    Tuple::new(source, vip(Family::V4), number(protocol))
}

/// The same plane's next snapshot, changed by `change`.
fn reloaded(setup: &Setup, change: impl FnOnce(&mut Service)) -> Arc<Snapshot> {
    let mut service = setup.service();
    change(&mut service);
    setup.snapshot(service)
}

impl Lab {
    /// A DSR handshake, as far as it passes by here.
    fn open_one_way(&mut self, forward: &Tuple) -> [Verdict; 2] {
        let syn = tcp(forward, SYN, 100, 0, &[], b"");
        let ack = tcp(forward, ACK, 101, 901, &[], b"");
        [syn, ack].map(|segment| self.send(OUTSIDE, &mut outside_frame(forward, &segment)))
    }
}

#[test]
fn a_datagram_flow_whose_answers_pass_us_by_lives_as_long_as_an_answered_one() {
    let mut lab = Setup::new(Family::V4, Forwarding::Dsr, Protocol::Udp).lab();
    let forward = forward_of(7, 40_000, Protocol::Udp);
    lab.client_sends(&forward, &udp(&forward, b"1"));
    assert_eq!(lab.plane.half_open(), 1);
    lab.client_sends(&forward, &udp(&forward, b"2"));
    assert_eq!(lab.plane.half_open(), 0);
    lab.now = lab.now + 599_000;
    lab.expire();
    assert_eq!((lab.plane.flows(), lab.clerk.opened), (1, 1));
    lab.now = lab.now + 1_500;
    lab.expire();
    assert_eq!(lab.plane.flows(), 0);
}

#[test]
fn unanswered_datagrams_leave_half_of_the_half_open_flows_to_tcp() {
    let setup = Setup::new(Family::V4, Forwarding::HalfNat, Protocol::Udp);
    let mut lab = setup.lab();
    let mut of_tcp = Setup::new(Family::V4, Forwarding::HalfNat, Protocol::Tcp).service();
    of_tcp.id = ServiceId(1);
    let services = vec![Some(Arc::new(setup.service())), Some(Arc::new(of_tcp))];
    lab.plane.adopt_snapshot(Arc::new(Snapshot {
        generation: Generation(2),
        services,
        real_servers: Vec::new(),
        steering: Arc::new(SteeringTable::even(1)),
        router: Arc::default(),
        outbound: Arc::default(),
        role: Default::default(),
    }));
    let mut first = None;
    for n in 0..40 {
        let forward = forward_of(10 + n, 5_000, Protocol::Udp);
        let verdict = lab.send(OUTSIDE, &mut outside_frame(&forward, &udp(&forward, b"?")));
        match n {
            0..8 => assert_eq!(verdict, Verdict::Send(INSIDE)),
            _ => assert_eq!(verdict, Verdict::Drop(DropReason::HalfOpenFull)),
        }
        first.get_or_insert(forward);
    }
    for n in 0..8 {
        let forward = forward_of(10 + n, 5_000, Protocol::Tcp);
        let verdict = lab.send(OUTSIDE, &mut outside_frame(&forward, &tcp(&forward, SYN, 1, 0, &[], b"")));
        assert_eq!(verdict, Verdict::Send(INSIDE));
    }
    // One that is answered makes room for another, and so does one that is forgotten.
    let back = Tuple::new(server(Family::V4), first.unwrap().source(), PROTOCOL_UDP);
    lab.server_sends(&back, &udp(&back, b"!"));
    assert_eq!(lab.plane.half_open(), 15);
    let next = forward_of(99, 5_000, Protocol::Udp);
    lab.client_sends(&next, &udp(&next, b"?"));
    lab.now = lab.now + 30_500;
    lab.expire();
    assert_eq!((lab.plane.flows(), lab.plane.half_open()), (1, 0));
    for n in 0..8 {
        let forward = forward_of(60 + n, 5_000, Protocol::Udp);
        lab.client_sends(&forward, &udp(&forward, b"?"));
    }
}

#[test]
fn datagrams_that_nobody_answers_do_not_keep_their_flow() {
    let mut lab = Setup::new(Family::V4, Forwarding::HalfNat, Protocol::Udp).lab();
    let forward = forward_of(7, 40_000, Protocol::Udp);
    for _ in 0..29 {
        lab.client_sends(&forward, &udp(&forward, b"?"));
        lab.now = lab.now + 1_000;
        lab.expire();
        assert_eq!(lab.plane.flows(), 1);
    }
    lab.now = lab.now + 1_500;
    lab.expire();
    assert_eq!((lab.plane.flows(), lab.clerk.ends.clone()), (0, vec![Termination::IdleTimedOut]));
}

#[test]
fn repeats_do_not_put_off_the_end_of_a_handshake() {
    for answers in [false, true] {
        let mut lab = Setup::new(Family::V4, Forwarding::HalfNat, Protocol::Tcp).lab();
        let forward = forward_of(7, 40_000, Protocol::Tcp);
        let back = Tuple::new(server(Family::V4), forward.source(), PROTOCOL_TCP);
        // The fixture's connect_timeout is 4 s; the first answer, after one, starts it once more.
        let deadline_ms = if answers { 5_000 } else { 4_000 };
        for _ in 0..deadline_ms / 500 - 1 {
            lab.client_sends(&forward, &tcp(&forward, SYN, 100, 0, &[], b""));
            if answers && lab.now >= Now(1_001_000) {
                lab.server_sends(&back, &tcp(&back, SYN_ACK, 900, 101, &[], b""));
            }
            lab.now = lab.now + 500;
            lab.expire();
            assert_eq!(lab.plane.half_open(), 1, "{answers} {:?}", lab.now);
        }
        lab.now = lab.now + 700;
        lab.expire();
        assert_eq!((lab.plane.flows(), lab.clerk.ends.clone()), (0, vec![Termination::ConnectTimedOut]), "{answers}");
        // Where the server has answered it is the client that did not go on.
        assert_eq!(lab.clerk.missed.len(), usize::from(!answers), "{answers}");
    }
}

#[test]
fn a_syn_behind_the_end_of_a_closed_connection_opens_a_flow_of_its_own() {
    let mut lab = Setup::new(Family::V4, Forwarding::HalfNat, Protocol::Tcp).lab();
    let (forward, back) = lab.open(Family::V4, 40_000);
    lab.close(&forward, &back, Direction::Forward);
    lab.client_sends(&forward, &tcp(&forward, SYN, 50, 0, &[], b""));
    assert_eq!((lab.read(PlaneCounter::FlowsReopened), lab.plane.half_open(), lab.clerk.connections()), (1, 1, 1));
}

#[test]
fn a_connection_that_the_server_takes_in_the_middle_of_another_is_followed() {
    let mut lab = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp).lab();
    let (forward, back) = lab.open(Family::V4, 40_000);
    // Both hosts have forgotten the first one.
    lab.client_sends(&forward, &tcp(&forward, SYN, 1_000_000_000, 0, &[], b""));
    lab.server_sends(&back, &tcp(&back, SYN_ACK, 2_000_000_000, 1_000_000_001, &[], b""));
    lab.client_sends(&forward, &tcp(&forward, ACK, 1_000_000_001, 2_000_000_001, &[], b""));
    for n in 0..30 {
        lab.now = lab.now + 60_000;
        lab.expire();
        assert_eq!(lab.plane.flows(), 1, "after {n} minutes of use");
        lab.server_sends(&back, &tcp(&back, ACK, 2_000_000_001 + n, 1_000_000_001, &[], b"x"));
    }
    lab.client_sends(&forward, &tcp(&forward, RST, 1_000_000_001, 0, &[], b""));
    assert_eq!((lab.clerk.ends.clone(), lab.clerk.connections()), (vec![Termination::ClientReset], 0));
}

#[test]
fn a_reset_that_is_only_near_does_not_shorten_a_connection() {
    let mut lab = Setup::new(Family::V4, Forwarding::HalfNat, Protocol::Tcp).lab();
    let (forward, back) = lab.open(Family::V4, 40_000);
    lab.client_sends(&forward, &tcp(&forward, RST, 5_000, 0, &[], b""));
    lab.server_sends(&back, &tcp(&back, RST, 5_000, 0, &[], b""));
    lab.now = lab.now + 590_000;
    lab.expire();
    assert_eq!((lab.plane.flows(), lab.clerk.connections()), (1, 1));
    lab.client_sends(&forward, &tcp(&forward, RST, 101, 0, &[], b""));
    assert_eq!(lab.clerk.ends, [Termination::ClientReset]);
}

#[test]
fn a_flow_keeps_its_forwarding_when_a_reload_changes_that_of_its_service() {
    for [before, after] in [[Forwarding::Dsr, Forwarding::HalfNat], [Forwarding::HalfNat, Forwarding::Dsr]] {
        for protocol in PROTOCOLS {
            let setup = Setup::new(Family::V4, before, protocol);
            let mut lab = setup.lab();
            let forward = forward_of(7, 40_000, protocol);
            let (_, _, at_server) = lab.client_sends(&forward, &packet(&forward, SYN, 100, 0, b""));
            let back = at_server.reversed();
            if before == Forwarding::HalfNat {
                lab.server_sends(&back, &packet(&back, SYN_ACK, 900, 101, b""));
            }
            lab.client_sends(&forward, &packet(&forward, ACK, 101, 901, b""));
            lab.plane.adopt_snapshot(reloaded(&setup, |service| service.forwarding = after));
            let (_, frame, seen) = lab.client_sends(&forward, &packet(&forward, ACK, 101, 901, b"data"));
            assert_eq!((seen, parsed(&frame).ttl), (at_server, if before == Forwarding::Dsr { 64 } else { 63 }));
            if before == Forwarding::HalfNat {
                let (_, _, seen) = lab.server_sends(&back, &packet(&back, ACK, 901, 105, b"data"));
                assert_eq!(seen, forward.reversed());
            }
            // A reset for the server comes from whom it knows.
            lab.plane.adopt_snapshot(reloaded(&setup, |service| {
                service.forwarding = after;
                service.targets[0].admin = AdminState::Halt;
            }));
            lab.expire();
            let resets: Vec<Tuple> =
                lab.made().iter().filter(|(port, _)| *port == INSIDE).map(|(_, frame)| sound(frame)).collect();
            assert!(resets.iter().all(|tuple| *tuple == at_server), "{resets:?}");
            assert_eq!(resets.is_empty(), protocol == Protocol::Udp);
        }
    }
}

#[test]
fn what_claims_to_come_from_a_server_comes_from_where_the_server_is() {
    for protocol in PROTOCOLS {
        let mut lab = Setup::new(Family::V4, Forwarding::FullNat, protocol).lab();
        let forward = forward_of(7, 40_000, protocol);
        let (_, _, at_server) = lab.client_sends(&forward, &packet(&forward, SYN, 100, 0, b""));
        let back = at_server.reversed();
        let forged = |flags| frame_of(OUTSIDE_MAC, ROUTER_MAC, &back, &packet(&back, flags, 900, 101, b""));
        assert_eq!(lab.send(OUTSIDE, &mut forged(SYN_ACK)), Verdict::Drop(DropReason::ReturnPort));
        assert_eq!(lab.plane.half_open(), 1, "it opens nothing");
        lab.server_sends(&back, &packet(&back, SYN_ACK, 900, 101, b""));
        lab.client_sends(&forward, &packet(&forward, ACK, 101, 901, b""));
        assert_eq!(lab.send(OUTSIDE, &mut forged(RST)), Verdict::Drop(DropReason::ReturnPort));
        let (_, _, seen) = lab.server_sends(&back, &packet(&back, ACK, 901, 101, b"data"));
        assert_eq!((seen, lab.clerk.ends.len()), (forward.reversed(), 0));
        // Nor is what would go straight on.
        assert_eq!(lab.send(OUTSIDE, &mut forged(ACK)), Verdict::Drop(DropReason::ReturnPort));
        assert_eq!(lab.dropped(), [DropReason::ReturnPort]);
    }
}

#[test]
fn fragments_of_a_half_nat_server_s_replies_are_not_left_to_the_kernel() {
    let fragment = |tuple: &Tuple, offset: [u8; 2]| {
        let mut fragment = ip_packet(tuple, PROTOCOL_UDP, 64, &[0; 64]);
        fragment[6..8].copy_from_slice(&offset);
        fragment[10..12].fill(0);
        let sum = checksum::of(&fragment[..20]);
        fragment[10..12].copy_from_slice(&sum.to_be_bytes());
        ethernet(INSIDE_MAC, server_mac(80), true, &fragment)
    };
    for forwarding in MODES {
        let mut lab = Setup::new(Family::V4, forwarding, Protocol::Udp).lab();
        let back = Tuple::new(server(Family::V4), client(Family::V4), PROTOCOL_UDP);
        // The last of several, which does not name its ports.
        let expected = match forwarding {
            Forwarding::HalfNat => Verdict::Kept,
            Forwarding::Dsr | Forwarding::FullNat => Verdict::Pass,
        };
        assert_eq!(lab.send(INSIDE, &mut fragment(&back, [0, 8])), expected, "{forwarding:?}");
        // What is for the kernel itself is the kernel's.
        let to_kernel = Tuple::new(server(Family::V4), SocketAddr::new(ip("10.0.0.1"), 53), PROTOCOL_UDP);
        assert_eq!(lab.send(INSIDE, &mut fragment(&to_kernel, [0, 8])), Verdict::Pass);
    }
}

#[test]
fn a_server_that_goes_down_loses_its_connections_only_where_the_service_drops_them() {
    for (protocol, drops, is_lost) in
        [(Protocol::Tcp, false, false), (Protocol::Tcp, true, true), (Protocol::Udp, false, true)]
    {
        let mut setup = Setup::new(Family::V4, Forwarding::HalfNat, protocol);
        setup.servers.push(Target { address: host(Family::V4, "inside", 81), port: Some(8443), ..fixtures::target(1) });
        let mut lab = setup.lab();
        // In turn: every other one is at the first server.
        for n in 0..4 {
            let forward = forward_of(7, 40_000 + n, protocol);
            let (_, _, at_server) = lab.client_sends(&forward, &packet(&forward, SYN, 100, 0, b""));
            let back = at_server.reversed();
            lab.server_sends(&back, &packet(&back, SYN_ACK, 900, 101, b""));
            lab.client_sends(&forward, &packet(&forward, ACK, 101, 901, b""));
        }
        lab.plane.adopt_snapshot(reloaded(&setup, |service| {
            service.drop_on_failure = drops;
            service.targets[0].health = ServerHealth::Down;
        }));
        lab.expire();
        let lost = if is_lost { 2 } else { 0 };
        assert_eq!(lab.plane.flows(), 4 - lost, "{protocol:?} {drops}");
        assert_eq!(lab.clerk.ends, vec![Termination::ServerDown; lost]);
        let resets = if protocol == Protocol::Tcp { lost } else { 0 };
        assert_eq!(lab.read(PlaneCounter::FlowsReset), resets as u64);
        assert_eq!(lab.out.len(), 2 * resets, "one for each end");
    }
}

#[test]
fn one_way_flows_leave_a_quarter_of_the_table_to_the_others() {
    for protocol in PROTOCOLS {
        let mut setup = Setup::new(Family::V4, Forwarding::Dsr, protocol);
        setup.settings.flows_max = 8;
        let mut lab = setup.lab();
        for n in 0..12 {
            let forward = forward_of(10 + n, 40_000, protocol);
            for (flags, seq, ack) in [(SYN, 100, 0), (ACK, 101, 901)] {
                lab.send(OUTSIDE, &mut outside_frame(&forward, &packet(&forward, flags, seq, ack, b"")));
            }
        }
        assert_eq!((lab.plane.flows() - lab.plane.half_open(), lab.plane.half_open()), (6, 0));
        assert_eq!(lab.clerk.connections(), 6);
        // Of the other six each SYN, and each of two datagrams.
        let refused = if protocol == Protocol::Tcp { 6 } else { 12 };
        assert_eq!(lab.plane.counts().dropped(DropReason::FlowsFull), refused);
        lab.now = lab.now + 601_000;
        lab.out.clear();
        lab.expire();
        assert_eq!((lab.plane.flows(), lab.clerk.connections()), (0, 0));
        let forward = forward_of(7, 40_000, protocol);
        lab.client_sends(&forward, &packet(&forward, SYN, 100, 0, b""));
    }
}

#[test]
fn a_one_way_connection_is_kept_long_only_once_it_carries_data() {
    for carries in [false, true] {
        let mut lab = Setup::new(Family::V4, Forwarding::Dsr, Protocol::Tcp).lab();
        let forward = forward_of(7, 40_000, Protocol::Tcp);
        assert_eq!(lab.open_one_way(&forward), [Verdict::Send(INSIDE); 2]);
        lab.client_sends(&forward, &tcp(&forward, ACK, 101, 901, &[], if carries { b"hello" } else { b"" }));
        lab.now = lab.now + 245_000;
        lab.expire();
        assert_eq!(lab.plane.flows(), usize::from(carries));
        lab.now = lab.now + 360_000;
        lab.expire();
        assert_eq!(lab.plane.flows(), 0);
        // The server may hold it; what the client knows of it is between the two.
        assert!(lab.made().iter().all(|(port, _)| *port == INSIDE));
        assert!(!lab.made().is_empty());
    }
}

#[test]
fn flows_that_are_ended_wait_for_room_for_their_resets() {
    for (halts, expected) in [(true, Termination::ServerHalted), (false, Termination::IdleTimedOut)] {
        let setup = Setup::new(Family::V4, Forwarding::HalfNat, Protocol::Tcp);
        let mut lab = setup.lab();
        for n in 0..40 {
            lab.open(Family::V4, 40_000 + n);
        }
        if halts {
            lab.plane.adopt_snapshot(reloaded(&setup, |service| service.targets[0].admin = AdminState::Halt));
        } else {
            lab.now = lab.now + 601_000;
        }
        lab.out = Outbox::new(10, 2_048);
        let mut resets = 0;
        let mut calls = 0;
        while !lab.plane.expire(lab.now, 1_000, &mut lab.clerk, &mut lab.out) {
            resets += lab.out.len();
            lab.out.clear();
            calls += 1;
            assert!(calls < 100);
        }
        resets += lab.out.len();
        assert_eq!((lab.out.overflowed(), resets), (0, 80));
        assert_eq!((lab.read(PlaneCounter::ResetsMade), lab.read(PlaneCounter::FlowsReset)), (80, 40));
        assert_eq!((lab.plane.flows(), lab.clerk.ends.clone()), (0, vec![expected; 40]));
    }
}

#[test]
fn each_flow_that_a_sweep_ends_costs_one_of_the_budget() {
    let setup = Setup::new(Family::V4, Forwarding::HalfNat, Protocol::Tcp);
    let mut lab = setup.lab();
    for n in 0..16 {
        lab.open(Family::V4, 40_000 + n);
    }
    lab.plane.adopt_snapshot(reloaded(&setup, |service| service.targets[0].admin = AdminState::Halt));
    assert!(!lab.plane.expire(lab.now, 8, &mut lab.clerk, &mut lab.out));
    assert!((1..=8).contains(&lab.clerk.ends.len()), "{}", lab.clerk.ends.len());
}

#[test]
fn a_pool_that_is_used_up_is_not_searched_for_every_syn() {
    let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
    setup.snat = 5_000..=5_001;
    let mut lab = setup.lab();
    let (forward, back) = lab.open(Family::V4, 40_000);
    // Another plane has the other port.
    let service = lab.plane.snapshot.service(ServiceId(0)).map(Arc::clone).unwrap();
    let ServiceSource::Pool(pool) = &service.source else { panic!("a pool") };
    let lease = pool
        .lease(server(Family::V4), crate::VShard(0), &SteeringTable::even(1), WorkerId(0))
        .expect("one of the two is free");
    let syn = |lab: &mut Lab, port| {
        let forward = forward_of(9, port, Protocol::Tcp);
        lab.send(OUTSIDE, &mut outside_frame(&forward, &tcp(&forward, SYN, 100, 0, &[], b"")))
    };
    assert_eq!(syn(&mut lab, 1), Verdict::Drop(DropReason::PortsExhausted));
    pool.release(lease);
    lab.now = lab.now + 20;
    assert_eq!(syn(&mut lab, 2), Verdict::Drop(DropReason::PortsExhausted), "it was looked for a moment ago");
    lab.now = lab.now + 64;
    assert_eq!(syn(&mut lab, 3), Verdict::Send(INSIDE));
    assert_eq!(syn(&mut lab, 4), Verdict::Drop(DropReason::PortsExhausted));
    // What this plane releases it knows at once.
    lab.close(&forward, &back, Direction::Forward);
    assert_eq!(syn(&mut lab, 5), Verdict::Send(INSIDE));
}

#[test]
fn what_claims_to_come_from_an_address_of_ours_opens_nothing() {
    for protocol in PROTOCOLS {
        let mut lab = Setup::new(Family::V4, Forwarding::FullNat, protocol).lab();
        let forged = SocketAddr::new(host(Family::V4, "inside", 2), 40_000);
        let forward = Tuple::new(forged, vip(Family::V4), number(protocol));
        let verdict = lab.send(OUTSIDE, &mut outside_frame(&forward, &packet(&forward, SYN, 100, 0, b"")));
        assert_eq!((verdict, lab.plane.flows()), (Verdict::Drop(DropReason::SourceOurs), 0));
        assert!(lab.out.is_empty());
    }
}

#[test]
fn dsr_needs_a_server_on_a_link_of_ours() {
    let mut setup = Setup::new(Family::V4, Forwarding::Dsr, Protocol::Tcp);
    setup.servers[0].address = host(Family::V4, "clients", 80);
    let mut lab = setup.lab();
    let forward = forward_of(7, 40_000, Protocol::Tcp);
    let verdict = lab.send(OUTSIDE, &mut outside_frame(&forward, &tcp(&forward, SYN, 100, 0, &[], b"")));
    assert_eq!((verdict, lab.plane.flows()), (Verdict::Drop(DropReason::DsrBehindRouter), 0));
    assert_eq!((lab.clerk.connections(), lab.clerk.ends.clone()), (0, vec![Termination::ConnectFailed]));
}

#[test]
fn a_one_way_flow_is_not_kept_out_by_the_answers_of_another() {
    let setup = Setup::new(Family::V4, Forwarding::HalfNat, Protocol::Tcp);
    let mut lab = setup.lab();
    lab.open(Family::V4, 40_000);
    let mut one_way = Setup::new(Family::V4, Forwarding::Dsr, Protocol::Tcp).service();
    one_way.id = ServiceId(1);
    one_way.ports = vec![444];
    let services = vec![Some(Arc::new(setup.service())), Some(Arc::new(one_way))];
    lab.plane.adopt_snapshot(Arc::new(Snapshot {
        generation: Generation(2),
        services,
        real_servers: Vec::new(),
        steering: Arc::new(SteeringTable::even(1)),
        router: Arc::default(),
        outbound: Arc::default(),
        role: Default::default(),
    }));
    // The same client port, through another service, to the same port of the same server.
    let second = Tuple { dst_port: 444, ..forward_of(7, 40_000, Protocol::Tcp) };
    let verdict = lab.send(OUTSIDE, &mut outside_frame(&second, &tcp(&second, SYN, 100, 0, &[], b"")));
    assert_eq!((verdict, lab.plane.flows()), (Verdict::Send(INSIDE), 2));
}

#[test]
fn a_first_packet_that_cannot_go_on_leaves_no_flow() {
    for (address, forwarding) in [("203.0.113.9", Forwarding::FullNat), ("203.0.113.9", Forwarding::HalfNat)] {
        for protocol in PROTOCOLS {
            let mut setup = Setup::new(Family::V4, forwarding, protocol);
            setup.servers[0].address = ip(address);
            let mut lab = setup.lab();
            let forward = forward_of(7, 40_000, protocol);
            let mut frame = outside_frame(&forward, &packet(&forward, SYN, 100, 0, b""));
            assert_eq!(lab.send(OUTSIDE, &mut frame), Verdict::Drop(DropReason::NoRoute));
            assert_eq!((lab.plane.flows(), lab.clerk.connections()), (0, 0));
            assert_eq!(lab.clerk.ends, [Termination::ConnectFailed]);
            assert_eq!(lab.read(PlaneCounter::FlowsOpened), lab.read(PlaneCounter::FlowsClosed));
            if let ServiceSource::Pool(pool) = &lab.plane.snapshot.service(ServiceId(0)).unwrap().source {
                assert!(pool.fill().all(|fill| fill.leased == 0));
            }
        }
    }
}

#[test]
fn a_small_budget_reaches_half_open_flows_and_sweeps_whatever_else_is_due() {
    let mut setup = Setup::new(Family::V4, Forwarding::HalfNat, Protocol::Tcp);
    setup.servers = vec![setup.servers[0].clone(), fixtures::target(1)];
    (setup.servers[1].address, setup.servers[1].port) = (host(Family::V4, "inside", 81), Some(8443));
    let mut lab = setup.lab();
    // Both servers in turn: forty flows that are silent for too long, then two more.
    for n in 0..40 {
        lab.open(Family::V4, 40_000 + n);
    }
    lab.now = lab.now + 596_000;
    let (forward, _) = lab.open(Family::V4, 50_000);
    let (_, other) = lab.open(Family::V4, 50_001);
    let half_open = forward_of(9, 40_000, Protocol::Tcp);
    lab.client_sends(&half_open, &tcp(&half_open, SYN, 100, 0, &[], b""));
    lab.now = lab.now + 5_000;
    lab.plane.adopt_snapshot(reloaded(&setup, |service| service.targets[1].admin = AdminState::Halt));
    for _ in 0..3 {
        lab.plane.expire(lab.now, 8, &mut lab.clerk, &mut lab.out);
    }
    assert!(lab.clerk.ends.contains(&Termination::ConnectTimedOut), "{:?}", lab.clerk.ends);
    assert!(lab.clerk.ends.contains(&Termination::ServerHalted), "{:?}", lab.clerk.ends);
    assert!(lab.clerk.ends.contains(&Termination::IdleTimedOut), "{:?}", lab.clerk.ends);
    let _ = (forward, other);
}

#[test]
fn a_super_packet_that_is_longer_than_the_link_carries_does_not_wait() {
    let mut setup = Setup::new(Family::V4, Forwarding::HalfNat, Protocol::Udp);
    setup.network = network(1500, false);
    let mut lab = setup.lab();
    let forward = forward_of(7, 40_000, Protocol::Udp);
    let mut short = outside_frame(&forward, &udp(&forward, &[0; 1_000]));
    assert_eq!(lab.send_as(OUTSIDE, &mut short, Checksum::Complete, 500), Verdict::Kept);
    let mut long = outside_frame(&forward, &udp(&forward, &[0; 1_600]));
    let verdict = lab.send_as(OUTSIDE, &mut long, Checksum::Complete, 500);
    assert_eq!(verdict, Verdict::Drop(DropReason::NextHopUnknown));
}

#[test]
fn a_port_rests_also_when_both_sides_closed_at_the_same_time() {
    let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
    setup.rest_ms = 60_000;
    let mut lab = setup.lab();
    let (forward, back) = lab.open(Family::V4, 40_000);
    lab.client_sends(&forward, &tcp(&forward, FIN_ACK, 101, 901, &[], b""));
    lab.server_sends(&back, &tcp(&back, FIN_ACK, 901, 101, &[], b""));
    lab.client_sends(&forward, &tcp(&forward, ACK, 102, 902, &[], b""));
    lab.server_sends(&back, &tcp(&back, ACK, 902, 102, &[], b""));
    assert_eq!((lab.clerk.ends.clone(), lab.leased()), (vec![Termination::ClientClosed], 1));
    // A reset that comes late makes the rest no shorter.
    lab.client_sends(&forward, &tcp(&forward, RST, 102, 0, &[], b""));
    lab.now = lab.now + 50_000;
    lab.expire();
    assert_eq!(lab.leased(), 1);
    lab.now = lab.now + 11_000;
    lab.expire();
    assert_eq!((lab.leased(), lab.plane.flows()), (0, 0));
}

#[test]
fn a_port_goes_on_resting_when_its_client_begins_anew() {
    let mut lab = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp).lab();
    let (forward, back) = lab.open(Family::V4, 40_000);
    lab.close(&forward, &back, Direction::Reverse);
    assert_eq!(lab.leased(), 1);
    lab.client_sends(&forward, &tcp(&forward, SYN, 5_000_000, 0, &[], b""));
    assert_eq!((lab.read(PlaneCounter::FlowsReopened), lab.leased()), (1, 2));
    lab.now = lab.now + 59_000;
    lab.expire();
    assert_eq!((lab.plane.flows(), lab.leased()), (0, 1));
    assert_eq!(lab.plane.next_due(), Some(Now(1_060_000)));
    lab.now = lab.now + 1_000;
    lab.expire();
    assert_eq!(lab.leased(), 0);
}

impl Lab {
    fn leased(&self) -> u32 {
        match &self.plane.snapshot.service(ServiceId(0)).unwrap().source {
            ServiceSource::Pool(pool) => pool.fill().map(|fill| fill.leased).sum(),
            _ => panic!("a pool"),
        }
    }
}

#[test]
fn refusals_leave_the_budget_of_icmp_errors_alone() {
    let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
    setup.network = network(1400, true);
    setup.settings.replies_per_second = 4;
    let mut lab = setup.lab();
    let (forward, _) = lab.open(Family::V4, 40_000);
    lab.clerk.refusal = Some(Refusal::NoServer);
    for n in 0..20 {
        let refused = forward_of(10 + n, 40_000, Protocol::Tcp);
        lab.send(OUTSIDE, &mut outside_frame(&refused, &tcp(&refused, SYN, 100, 0, &[], b"")));
    }
    assert_eq!(lab.out.len(), 4);
    let mut long = outside_frame(&forward, &tcp(&forward, ACK, 101, 901, &[], &[0; 1_440]));
    assert_eq!(lab.send(OUTSIDE, &mut long), Verdict::Drop(DropReason::PacketTooBig));
    assert_eq!((lab.read(PlaneCounter::ErrorsMade), lab.out.len()), (1, 5));
}

#[test]
fn the_server_of_a_one_way_connection_gets_one_reset_with_the_number_sent_last() {
    let setup = Setup::new(Family::V4, Forwarding::Dsr, Protocol::Tcp);
    let mut lab = setup.lab();
    let forward = forward_of(7, 40_000, Protocol::Tcp);
    lab.open_one_way(&forward);
    lab.client_sends(&forward, &tcp(&forward, ACK, 101, 901, &[], b"hello"));
    lab.plane.adopt_snapshot(reloaded(&setup, |service| service.targets[0].admin = AdminState::Halt));
    lab.expire();
    let made: Vec<_> = lab.made().iter().map(|(port, frame)| (*port, parsed(frame).tcp)).collect();
    let facts: Vec<_> = made.iter().map(|(port, reset)| (*port, reset.seq, reset.ack)).collect();
    assert_eq!(facts, [(INSIDE, 106, 901)]);
}

#[test]
fn a_table_full_of_closed_connections_takes_new_ones() {
    let mut setup = Setup::new(Family::V4, Forwarding::HalfNat, Protocol::Tcp);
    setup.settings.flows_max = 8;
    let mut lab = setup.lab();
    let alive = lab.open(Family::V4, 39_000);
    for n in 0..40 {
        let (forward, back) = lab.open(Family::V4, 40_000 + n);
        lab.close(&forward, &back, Direction::Forward);
    }
    assert_eq!((lab.clerk.connections(), lab.clerk.ends.len(), lab.plane.flows()), (1, 40, 8));
    let gone = lab.read(PlaneCounter::FlowsOpened) - lab.read(PlaneCounter::FlowsClosed);
    assert_eq!(gone, 8, "each one that gave way is counted");
    lab.client_sends(&alive.0, &tcp(&alive.0, ACK, 101, 901, &[], b"x"));
    lab.server_sends(&alive.1, &tcp(&alive.1, ACK, 901, 102, &[], b"y"));
}
