//! Half-open flows in the fast path: the kernel completes their handshakes, and the plane hears of it.

use super::fast::{carry, enter, lab};
use super::*;
use crate::plane::flows::Stage;
use crate::plane::inherit::FLOW_RECORD;

impl Lab {
    /// A client's SYN and what its server answers go through the plane.
    fn half_open(&mut self, client_port: u16) -> (Tuple, Tuple) {
        let source = SocketAddr::new(client(Family::V4).ip(), client_port);
        let forward = Tuple::new(source, vip(Family::V4), PROTOCOL_TCP);
        let (_, _, at_server) = self.client_sends(&forward, &tcp(&forward, SYN, 100, 0, &[], b""));
        let back = at_server.reversed();
        self.server_sends(&back, &tcp(&back, SYN_ACK, 900, 101, &[], b""));
        (forward, back)
    }

    fn stage(&self, tuple: &Tuple) -> Stage {
        self.plane.flows.lookup(tuple).expect("it is there").stage
    }

    /// Flows, half-open ones among them, and those in the fast path.
    fn sizes(&self) -> (usize, usize, u32) {
        (self.plane.flows(), self.plane.half_open(), self.fast_flows())
    }

    /// Another millisecond, in which there is something to do.
    fn hears(&mut self) {
        self.now = self.now + 1;
        self.expire();
    }
}

#[test]
fn the_kernel_completes_a_handshake_and_the_plane_hears_of_it() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, back) = lab.half_open(40_000);
    assert_eq!(lab.sizes(), (1, 1, 1));
    assert!(!lab.carries(false, &back, ACK, (901, 101), b"too soon"), "nobody has acknowledged its answer");
    lab.hears();
    assert_eq!(lab.sizes(), (1, 1, 1), "nothing was carried");
    assert!(lab.carries(true, &forward, ACK, (101, 901), b""));
    assert!(lab.carries(true, &forward, ACK, (101, 901), b"request"));
    assert!(lab.carries(false, &back, ACK, (901, 108), b"answer"));
    assert_eq!(lab.stage(&forward), Stage::HalfOpen);
    assert_eq!(lab.plane.find_flow(&forward).unwrap().0.state, "established", "whoever asks is told");
    lab.hears();
    assert_eq!((lab.sizes(), lab.flow(&forward).1), ((1, 0, 1), true));
    assert_eq!((lab.clerk.counted(ServiceCounter::Opened), lab.clerk.connections()), (1, 1));
    // It stays where it was, and its end is carried like any other's.
    assert!(lab.carries(true, &forward, FIN_ACK, (108, 907), b""));
    assert!(lab.carries(false, &back, FIN_ACK, (907, 109), b""));
    assert!(lab.carries(true, &forward, ACK, (109, 908), b""));
    lab.hears();
    assert_eq!((lab.clerk.ends.as_slice(), lab.sizes()), (&[Termination::ClientClosed][..], (1, 0, 0)));
    assert_eq!((lab.read(PlaneCounter::FastFlowsEntered), lab.read(PlaneCounter::TcpFaults)), (1, 0));
    let counted = [ServiceCounter::BytesFromClient, ServiceCounter::BytesToClient].map(|n| lab.clerk.counted(n));
    assert_eq!((counted, lab.read(PlaneCounter::FramesFast)), ([7, 6], 6));
}

#[test]
fn a_connection_that_is_over_before_anybody_has_heard_of_it_is_counted_all_the_same() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, back) = lab.half_open(40_000);
    assert!(lab.carries(true, &forward, FIN_ACK, (101, 901), b"all"));
    assert!(lab.carries(false, &back, FIN_ACK, (901, 105), b"that"));
    assert!(lab.carries(true, &forward, ACK, (105, 906), b""));
    lab.hears();
    assert_eq!((lab.clerk.ends.as_slice(), lab.sizes()), (&[Termination::ClientClosed][..], (1, 0, 0)));
    let counters = [ServiceCounter::Opened, ServiceCounter::Closed].map(|counter| lab.clerk.counted(counter));
    assert_eq!((counters, lab.clerk.connections()), ([1, 1], 0));
}

/// A guess at what the server has said goes on, as its receiver judges, but opens nothing.
#[test]
fn a_forged_acknowledgment_completes_no_handshake() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, back) = lab.half_open(40_000);
    for guess in [900, 500, 0xffff_ff00] {
        assert!(lab.carries(true, &forward, ACK, (101, guess), b"x"));
    }
    for guess in [902, 1_000_000, 900 + (1 << 31)] {
        assert!(!lab.carries(true, &forward, ACK, (101, guess), b"x"));
    }
    lab.hears();
    assert_eq!((lab.sizes(), lab.clerk.counted(ServiceCounter::Opened)), ((1, 1, 1), 0));
    // The server's refusal of them ends nothing, and what is true still opens.
    assert!(lab.carries(true, &forward, ACK, (101, 901), b""));
    lab.hears();
    assert_eq!(lab.sizes(), (1, 0, 1));
    assert!(lab.carries(false, &back, ACK, (901, 101), b"x"));
}

#[test]
fn a_handshake_that_nobody_completes_times_out_as_ever() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, _) = lab.half_open(40_000);
    let timeout_ms = lab.plane.snapshot.services[0].as_ref().unwrap().connect_timeout_ms;
    // What is carried of a guess does not keep it.
    lab.now = lab.now + timeout_ms / 2;
    assert!(lab.carries(true, &forward, ACK, (101, 900), b"x"));
    lab.now = lab.now + timeout_ms;
    lab.expire_once();
    assert_eq!((lab.clerk.ends.as_slice(), lab.sizes()), (&[Termination::ConnectTimedOut][..], (0, 0, 0)));
    let reset: Vec<PortId> = lab.made().iter().map(|(port, _)| *port).collect();
    assert_eq!(reset, [INSIDE], "the server holds it, the client may be forged");
    assert!(!lab.carries(true, &forward, ACK, (101, 901), b""));
}

#[test]
fn what_is_said_again_takes_an_opening_out_and_enters_it_anew() {
    let mut lab = lab(Forwarding::HalfNat);
    let (forward, back) = lab.half_open(40_000);
    lab.client_sends(&forward, &tcp(&forward, SYN, 100, 0, &[], b""));
    assert_eq!(lab.sizes(), (1, 1, 0));
    assert!(!lab.carries(true, &forward, ACK, (101, 901), b""));
    for _ in 0..2 {
        lab.server_sends(&back, &tcp(&back, SYN_ACK, 900, 101, &[], b""));
        assert_eq!(lab.sizes(), (1, 1, 1));
    }
    assert!(lab.carries(true, &forward, ACK, (101, 901), b""));
    // One that was on its way all the while; the handshake is complete by now.
    lab.server_sends(&back, &tcp(&back, SYN_ACK, 900, 101, &[], b""));
    assert_eq!((lab.stage(&forward), lab.clerk.counted(ServiceCounter::Opened)), (Stage::Established, 1));
    lab.client_sends(&forward, &tcp(&forward, ACK, 101, 901, &[], b"x"));
    lab.hears();
    assert_eq!((lab.clerk.counted(ServiceCounter::Opened), lab.plane.half_open()), (1, 0));
}

#[test]
fn a_server_that_takes_its_answer_back_ends_it() {
    for heard in [false, true] {
        let mut lab = lab(Forwarding::FullNat);
        let (forward, back) = lab.half_open(40_000);
        if heard {
            assert!(lab.carries(true, &forward, ACK, (101, 901), b""));
        }
        lab.server_sends(&back, &tcp(&back, RST, 901, 0, &[], b""));
        let termination = if heard { Termination::ServerReset } else { Termination::ConnectFailed };
        assert_eq!((lab.clerk.ends.as_slice(), lab.fast_flows()), (&[termination][..], 0));
        assert_eq!(lab.clerk.connections(), 0);
    }
}

#[test]
fn a_client_that_is_quicker_than_its_entry_completes_it_in_the_plane_and_it_stays() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, back) = lab.half_open(40_000);
    lab.client_sends(&forward, &tcp(&forward, ACK | TcpFlags::PSH.0, 101, 901, &[], b"request"));
    assert_eq!((lab.sizes(), lab.stage(&forward)), ((1, 0, 1), Stage::Established));
    assert!(lab.carries(false, &back, ACK, (901, 108), b"answer"), "the kernel knows what it has not seen");
    assert!(lab.carries(true, &forward, ACK, (108, 907), b""));
    lab.hears();
    assert_eq!((lab.read(PlaneCounter::FastFlowsEntered), lab.read(PlaneCounter::TcpFaults)), (1, 0));
}

/// As one whose answers come back by another link than its SYN came.
#[test]
fn a_client_whose_packets_come_in_elsewhere_is_entered_for_there() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, back) = lab.half_open(40_000);
    let mut last = frame_of(INSIDE_MAC, ROUTER_MAC, &forward, &tcp(&forward, ACK, 101, 901, &[], b""));
    assert_eq!(carry(&lab, INSIDE, &mut last.clone(), Checksum::Complete, 0), None);
    assert!(matches!(lab.send(INSIDE, &mut last), Verdict::Send(_)));
    assert_eq!(lab.sizes(), (1, 0, 1));
    assert!(lab.carries(false, &back, ACK, (901, 101), b"x"));
    assert!(!lab.carries(true, &forward, ACK, (101, 902), b""));
}

/// A flood has servers answer to whom there is nobody.
#[test]
fn openings_have_a_quarter_of_the_room() {
    let mut lab = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp).lab();
    enter(&mut lab, 16);
    let flows: Vec<(Tuple, Tuple)> = (0..8).map(|port| lab.half_open(40_000 + port)).collect();
    assert_eq!(lab.sizes(), (8, 8, 4));
    let carried = flows.iter().filter(|(forward, _)| lab.carries(true, forward, ACK, (101, 901), b"")).count();
    assert_eq!(carried, 4);
    lab.hears();
    assert_eq!(lab.sizes(), (8, 4, 4));
    // They made room for others.
    lab.half_open(41_000);
    assert_eq!(lab.sizes(), (9, 5, 5));
    for (forward, _) in &flows {
        lab.client_sends(forward, &tcp(forward, ACK, 101, 901, &[], b""));
    }
    lab.hears();
    assert_eq!(lab.sizes(), (9, 1, 9));
}

#[test]
fn an_opening_is_taken_out_where_the_way_of_its_packets_has_changed() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, _) = lab.half_open(40_000);
    let (other, _) = lab.half_open(40_001);
    assert!(lab.carries(true, &other, ACK, (101, 901), b""));
    lab.plane.adopt_network(Arc::new(network(1_400, true)), &mut lab.out);
    assert!(!lab.carries(true, &forward, ACK, (101, 901), b""));
    lab.hears();
    assert_eq!((lab.stage(&forward), lab.stage(&other)), (Stage::HalfOpen, Stage::Established));
    lab.client_sends(&forward, &tcp(&forward, ACK, 101, 901, &[], b""));
    assert_eq!((lab.plane.half_open(), lab.clerk.counted(ServiceCounter::Opened)), (0, 2));
}

#[test]
fn an_opening_is_ended_by_name_and_whether_it_is_complete_decides_who_is_told() {
    for is_complete in [false, true] {
        let mut lab = lab(Forwarding::FullNat);
        let (forward, _) = lab.half_open(40_000);
        if is_complete {
            assert!(lab.carries(true, &forward, ACK, (101, 901), b""));
        }
        let place = lab.plane.find_flow(&forward).unwrap().0.place;
        assert!(place.is_half_open);
        let Lab { plane, clerk, out, now, .. } = &mut lab;
        assert_eq!(plane.end_flow(*now, place, clerk, out), FlowEnd::Ended);
        let told: Vec<PortId> = lab.made().iter().map(|(port, _)| *port).collect();
        let (expected, opened): (&[PortId], u64) = if is_complete { (&[OUTSIDE, INSIDE], 1) } else { (&[INSIDE], 0) };
        assert_eq!((told.as_slice(), lab.clerk.counted(ServiceCounter::Opened)), (expected, opened));
        assert_eq!((lab.clerk.ends.as_slice(), lab.sizes()), (&[Termination::Killed][..], (0, 0, 0)));
    }
}

#[test]
fn another_process_hears_of_an_opening_as_far_as_it_has_come() {
    let mut lab = lab(Forwarding::FullNat);
    let (complete, _) = lab.half_open(40_000);
    let (open, _) = lab.half_open(40_001);
    assert!(lab.carries(true, &complete, ACK, (101, 901), b"request"));
    let Lab { plane, clerk, now, .. } = &mut lab;
    let (mut at, mut records) = (Survey::START, Vec::new());
    while !plane.write_flows(*now, &mut at, 100, clerk, &mut records) {}
    assert_eq!(records.len(), 2 * FLOW_RECORD, "each once");
    assert_eq!(lab.sizes(), (2, 1, 0));
    assert_eq!((lab.stage(&complete), lab.stage(&open)), (Stage::Established, Stage::HalfOpen));
}

#[test]
fn a_handshake_that_completes_without_room_is_given_up() {
    let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp);
    setup.settings.flows_max = 2;
    let mut lab = setup.lab();
    enter(&mut lab, 16);
    let flows: Vec<Tuple> = (0..3).map(|port| lab.half_open(40_000 + port).0).collect();
    assert!(flows.iter().all(|forward| lab.carries(true, forward, ACK, (101, 901), b"")));
    lab.hears();
    assert_eq!((lab.clerk.ends.as_slice(), lab.sizes()), (&[Termination::OutOfConnections][..], (2, 0, 2)));
    assert_eq!(lab.clerk.connections(), 2);
}

/// The sweep walks in the very millisecond in which it was listened.
#[test]
fn a_server_that_is_halted_loses_an_opening_that_is_complete_like_any_other() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, back) = lab.half_open(40_000);
    lab.hears();
    assert!(lab.carries(true, &forward, ACK, (101, 901), b"request"));
    assert!(lab.carries(false, &back, ACK, (901, 108), b"answer"));
    lab.change(|service| service.targets[0].admin = AdminState::Halt);
    lab.expire();
    assert_eq!((lab.clerk.ends.as_slice(), lab.sizes()), (&[Termination::ServerHalted][..], (0, 0, 0)));
    assert_eq!(lab.clerk.counted(ServiceCounter::Opened), 1);
    let resets: Vec<_> =
        lab.made().iter().map(|(port, frame)| (*port, parsed(frame).tcp.seq, parsed(frame).tcp.ack)).collect();
    assert!(resets.contains(&(OUTSIDE, 907, 108)) && resets.contains(&(INSIDE, 108, 907)), "{resets:?}");
}

#[test]
fn a_forged_answer_by_a_port_that_leads_to_no_server_takes_no_opening_out() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, back) = lab.half_open(40_000);
    let mut forged = frame_of(OUTSIDE_MAC, ROUTER_MAC, &back, &tcp(&back, SYN_ACK, 900, 101, &[], b""));
    assert_eq!(lab.send(OUTSIDE, &mut forged), Verdict::Drop(DropReason::ReturnPort));
    assert_eq!(lab.sizes(), (1, 1, 1));
    assert!(lab.carries(true, &forward, ACK, (101, 901), b""));
}

/// However often an answer is repeated, its flow is listened for once.
#[test]
fn repeated_answers_take_no_room_from_others() {
    let mut lab = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp).lab();
    enter(&mut lab, 16);
    let (_, back) = lab.half_open(40_000);
    for _ in 0..10 {
        lab.server_sends(&back, &tcp(&back, SYN_ACK, 900, 101, &[], b""));
        // Its number may be given again.
        lab.now = lab.now + 200;
        lab.expire_once();
    }
    for port in 1..4 {
        lab.half_open(40_000 + port);
    }
    assert_eq!(lab.fast_flows(), 4);
}

#[test]
fn an_old_opening_is_heard_of_too() {
    let mut lab = lab(Forwarding::FullNat);
    let flows: Vec<Tuple> = (0..10).map(|port| lab.half_open(40_000 + port).0).collect();
    for _ in 0..3 {
        lab.now = lab.now + 300;
        lab.expire_once();
    }
    assert_eq!(lab.sizes(), (10, 10, 10));
    assert!(flows.iter().all(|forward| lab.carries(true, forward, ACK, (101, 901), b"")));
    lab.hears();
    assert_eq!(lab.sizes(), (10, 0, 10));
}
