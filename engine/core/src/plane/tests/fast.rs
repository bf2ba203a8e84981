//! The fast path: what the kernel carries of a flow is as if the plane had, and the plane takes over where it left off. The kernel is
//! [`FastTable::carry`](crate::fast_path::FastTable::carry), which is held to the real program elsewhere.

use super::straight::{Step, batch, frame, seen, step, twins};
use super::*;
use crate::fast_path::{Arrival, FastMemory, FastSettings, FastShape};
use crate::flow::TimeoutClass;
use crate::flow::tcp::TcpTimeout;
use crate::plane::flows::Stage;
use crate::plane::inherit::FLOW_RECORD;

const PSH: u8 = TcpFlags::PSH.0;
const ROOM: u32 = 64;

/// Lets the kernel carry flows of `lab` from here on, at most so many.
pub(super) fn enter(lab: &mut Lab, room: u32) {
    // So large that no bucket is full.
    let memory = FastMemory::private(FastShape::new(1_024), [3, 5]);
    lab.plane.use_fast_path(memory, FastSettings { worker: 0, flows: 0..room, origin_ms: 77_000 });
}

/// What the kernel does with a frame that comes in: the port that it leaves through, if it carries it.
pub(super) fn carry(
    lab: &Lab,
    port: PortId,
    bytes: &mut [u8],
    checksum: Checksum,
    segment_bytes: u16,
) -> Option<PortId> {
    let arrival = Arrival {
        ifindex: lab.plane.network.port(port)?.index,
        station: crate::packet::straight::Station::new(lab.plane.network.port(port)?.mac),
        is_tagged: false,
        checksum,
        segment_bytes,
    };
    let out = lab.plane.fast_table()?.carry(bytes, &arrival, lab.now)?;
    let port = lab.plane.network.ports.iter().position(|port| port.index == out).expect("a port of ours");
    Some(PortId(port as u8))
}

impl Lab {
    /// A reload changes the service.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Service)) {
        let mut snapshot = Snapshot::clone(&self.plane.snapshot);
        change(Arc::make_mut(snapshot.services[0].as_mut().expect("it has one")));
        self.plane.adopt_snapshot(Arc::new(snapshot));
    }

    /// Whether a segment of a client's, whose handshake it would complete, acknowledges what was never said: the kernel takes it for an older one, and counts
    /// no fault.
    fn guesses(&self, bytes: &[u8]) -> bool {
        let Ok(Packet::Transport(packet)) = parse(bytes) else { return false };
        let found = self.plane.flows.lookup(&packet.tuple).filter(|found| found.stage == Stage::HalfOpen);
        found.is_some_and(|found| {
            let state = self.plane.flows.half_open.state(found.id).expect("it was found");
            found.direction == Direction::Forward && !state.tcp().is_completed_by(packet.tcp.ack)
        })
    }

    pub(super) fn fast_flows(&self) -> u32 {
        self.plane.fast_table().expect("it has a fast path").open()
    }

    /// Of the flow that packets with this tuple are of, the timeout class and whether it is lent.
    pub(super) fn flow(&self, tuple: &Tuple) -> (TimeoutClass, bool) {
        let found = self.plane.flows.lookup(tuple).expect("it is open");
        assert_eq!(found.stage, Stage::Established);
        let table = &self.plane.flows.established;
        (table.class(found.id).unwrap(), table.state(found.id).unwrap().tcp().is_lent())
    }

    /// Has the kernel carry a segment of the client's, or of the server's; whether it does.
    pub(super) fn carries(
        &self,
        is_forward: bool,
        tuple: &Tuple,
        flags: u8,
        (seq, ack): (u32, u32),
        data: &[u8],
    ) -> bool {
        let (port, mac, router) =
            if is_forward { (OUTSIDE, OUTSIDE_MAC, ROUTER_MAC) } else { (INSIDE, INSIDE_MAC, server_mac(80)) };
        let mut frame = frame_of(mac, router, tuple, &tcp(tuple, flags, seq, ack, &[], data));
        let sent = carry(self, port, &mut frame, Checksum::Complete, 0);
        if let Some(to) = sent {
            assert_ne!(to, port);
            sound(&frame);
        }
        sent.is_some()
    }
}

pub(super) fn lab(forwarding: Forwarding) -> Lab {
    let mut lab = Setup::new(Family::V4, forwarding, Protocol::Tcp).lab();
    enter(&mut lab, ROOM);
    lab
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_000) })]

    #[test]
    fn a_plane_whose_flows_the_kernel_carries_does_the_same(
        mode in 0..3_usize,
        steps in prop::collection::vec(step(), 1..12),
    ) {
        let (mut labs, connections) = twins(MODES[mode]);
        enter(&mut labs[0], ROOM);
        for step in steps {
            labs.iter_mut().for_each(|lab| lab.out.clear());
            match step {
                Step::Batch(specs) => {
                    for spec in &specs {
                        let one = frame(&connections, spec);
                        let [fast, plain] = [0, 1].map(|which| {
                            let lab = &mut labs[which];
                            let (port, mut bytes, checksum, segment) = one.clone();
                            let carried = match which {
                                0 if !lab.guesses(&bytes) => carry(lab, port, &mut bytes, checksum, segment),
                                _ => None,
                            };
                            if let Some(to) = carried {
                                return (vec![Verdict::Send(to)], bytes);
                            }
                            // Of flows that move later, slots differ.
                            lab.plane.hear_at_once();
                            let mut frames = [(port, bytes, checksum, segment)];
                            batch(lab, &mut frames);
                            let [(_, bytes, ..)] = frames;
                            (lab.verdicts.clone(), bytes)
                        });
                        prop_assert_eq!(fast, plain);
                    }
                }
                Step::Expire => labs.iter_mut().for_each(|lab| {
                    lab.plane.expire(lab.now, 100, &mut lab.clerk, &mut lab.out);
                }),
                Step::Network(known, mtu) => labs.iter_mut().enumerate().for_each(|(which, lab)| {
                    lab.plane.adopt_network(Arc::new(network(mtu, known)), &mut lab.out);
                    if which == 1 {
                        lab.plane.hops.forget_stations();
                    }
                }),
                Step::Pass(ms) => labs.iter_mut().for_each(|lab| lab.now = lab.now + ms),
            }
            prop_assert_eq!(labs[0].made(), labs[1].made());
        }
        let now = labs[0].now;
        let Lab { plane, clerk, .. } = &mut labs[0];
        plane.recall_all(clerk);
        prop_assert_eq!(labs[0].fast_flows(), 0);
        for lab in &mut labs {
            // Whoever lends a track scales its windows.
            let table = &mut lab.plane.flows.established;
            for id in (0..table.flows_max()).filter_map(|slot| table.at(slot)).collect::<Vec<_>>() {
                table.state_mut(id).unwrap().tcp_mut().scale_windows();
            }
            for counter in [PlaneCounter::FramesFast, PlaneCounter::FastFlowsLeft, PlaneCounter::FastFlowsEntered] {
                lab.plane.counts.set(counter, 0);
            }
            lab.plane.flows.fast = None;
            // When it next looks may differ, but not whether there is something to look at: an expiry at `now` does the same.
            lab.plane.expire(now, 1_000, &mut lab.clerk, &mut lab.out);
        }
        prop_assert_eq!(seen(&labs[0]), seen(&labs[1]));
    }
}

/// Of whose service there is a limit, each end has to be heard at once.
#[test]
fn the_kernel_carries_a_flow_from_its_handshake_to_its_fin() {
    for forwarding in [Forwarding::FullNat, Forwarding::HalfNat] {
        let mut lab = lab(forwarding);
        lab.change(|service| service.max_connections = 1_000);
        let (forward, back) = lab.open(Family::V4, 40_000);
        assert_eq!(lab.fast_flows(), 1);
        assert!(lab.carries(true, &forward, ACK | PSH, (101, 901), b"request"));
        assert!(lab.carries(false, &back, ACK | PSH, (901, 108), &[7; 1_000]));
        assert!(lab.carries(true, &forward, ACK, (108, 1_901), b""));
        // What belongs to nobody, or ends something, is for the plane.
        assert!(!lab.carries(true, &back, ACK, (108, 1_901), b""));
        assert!(!lab.carries(true, &forward, FIN_ACK, (108, 1_901), b""));
        lab.client_sends(&forward, &tcp(&forward, FIN_ACK, 108, 1_901, &[], b""));
        assert_eq!(lab.fast_flows(), 0);
        assert!(!lab.carries(false, &back, ACK, (1_901, 109), b""));
        lab.server_sends(&back, &tcp(&back, FIN_ACK, 1_901, 109, &[], b""));
        lab.client_sends(&forward, &tcp(&forward, ACK, 109, 1_902, &[], b""));
        assert_eq!(lab.clerk.ends, [Termination::ClientClosed]);
        assert_eq!(lab.read(PlaneCounter::TcpFaults), 0);
        assert_eq!(lab.read(PlaneCounter::FramesFast), 3);
        assert_eq!(lab.read(PlaneCounter::FastFlowsEntered), 1);
        let counted = [ServiceCounter::BytesFromClient, ServiceCounter::BytesToClient].map(|n| lab.clerk.counted(n));
        assert_eq!(counted, [7, 1_000]);
    }
}

#[test]
fn the_kernel_carries_how_a_connection_closes_and_the_plane_settles_it() {
    for first in Direction::BOTH {
        let mut lab = lab(Forwarding::FullNat);
        let (forward, back) = lab.open(Family::V4, 40_000);
        let (other, _) = lab.open(Family::V4, 40_001);
        let ends = |lab: &Lab| (lab.clerk.ends.clone(), lab.clerk.connections());
        let (client, server) = ((true, &forward, (101, 901)), (false, &back, (901, 101)));
        let ((a, a_tuple, a_at), (b, b_tuple, b_at)) =
            if first == Direction::Forward { (client, server) } else { (server, client) };
        assert!(lab.carries(a, a_tuple, FIN_ACK, a_at, b""));
        assert!(lab.carries(b, b_tuple, FIN_ACK, (b_at.0, b_at.1 + 1), b""));
        lab.expire();
        assert_eq!((ends(&lab), lab.fast_flows()), ((vec![], 2), 2), "not over yet, and no second has passed");
        assert!(lab.carries(a, a_tuple, ACK, (a_at.0 + 1, a_at.1 + 1), b""));
        assert!(lab.plane.next_due().unwrap() <= lab.now + 100);
        // What comes next, whatever it is.
        lab.client_sends(&other, &tcp(&other, ACK, 101, 901, &[], b""));
        let termination =
            if first == Direction::Forward { Termination::ClientClosed } else { Termination::ServerClosed };
        assert_eq!((ends(&lab), lab.fast_flows()), ((vec![termination], 1), 1));
        assert_eq!((lab.clerk.counted(ServiceCounter::Closed), lab.read(PlaneCounter::TcpFaults)), (1, 0));
        // It waits for late duplicates, then it is gone; and the client's port opens another before that.
        assert!(!lab.carries(b, b_tuple, FIN_ACK, (b_at.0, b_at.1 + 1), b""));
        let waiting = lab.flow(&forward);
        assert_eq!(waiting, (lab.plane.services.rule(ServiceId(0)).tcp_class(TcpTimeout::TimeWait), false));
        lab.client_sends(&forward, &tcp(&forward, SYN, 500_000, 0, &[], b""));
        assert_eq!((lab.read(PlaneCounter::FlowsReopened), lab.clerk.ends.len(), lab.clerk.connections()), (1, 1, 2));
    }
}

#[test]
fn a_new_connection_on_the_ports_of_one_that_is_over_is_one_even_if_nobody_has_looked() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, back) = lab.open(Family::V4, 40_000);
    assert!(lab.carries(true, &forward, FIN_ACK, (101, 901), b""));
    assert!(lab.carries(false, &back, FIN_ACK, (901, 102), b""));
    assert!(lab.carries(true, &forward, ACK, (102, 902), b""));
    lab.client_sends(&forward, &tcp(&forward, SYN, 500_000, 0, &[], b""));
    assert_eq!((lab.clerk.ends.as_slice(), lab.clerk.connections()), (&[Termination::ClientClosed][..], 1));
    assert_eq!((lab.read(PlaneCounter::FlowsReopened), lab.fast_flows()), (1, 0));
}

#[test]
fn what_is_over_needs_no_reset_whoever_takes_it_out() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, back) = lab.open(Family::V4, 40_000);
    assert!(lab.carries(false, &back, FIN_ACK, (901, 101), b""));
    assert!(lab.carries(true, &forward, FIN_ACK, (101, 902), b""));
    assert!(lab.carries(false, &back, ACK, (902, 102), b""));
    let place = lab.plane.find_flow(&forward).expect("nobody has looked").0.place;
    let Lab { plane, clerk, out, now, .. } = &mut lab;
    assert_eq!(plane.end_flow(*now, place, clerk, out), FlowEnd::Ended);
    assert_eq!((lab.clerk.ends.as_slice(), lab.clerk.connections()), (&[Termination::ServerClosed][..], 0));
    assert_eq!((lab.read(PlaneCounter::ResetsMade), lab.fast_flows()), (0, 0));
    lab.expire();
    assert_eq!(lab.clerk.ends.len(), 1, "it is not settled again");
}

#[test]
fn what_is_over_is_settled_before_another_process_hears_of_it() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, back) = lab.open(Family::V4, 40_000);
    assert!(lab.carries(true, &forward, FIN_ACK, (101, 901), b""));
    assert!(lab.carries(false, &back, FIN_ACK, (901, 102), b""));
    assert!(lab.carries(true, &forward, ACK, (102, 902), b""));
    let Lab { plane, clerk, now, .. } = &mut lab;
    let (mut at, mut records) = (Survey::START, Vec::new());
    while !plane.write_flows(*now, &mut at, 100, clerk, &mut records) {}
    assert_eq!(records.len(), FLOW_RECORD, "it waits for late segments");
    assert_eq!((clerk.ends.as_slice(), clerk.connections()), (&[Termination::ClientClosed][..], 0));
    let flow = plane.flows.lookup(&forward).expect("it is there").id;
    assert!(!plane.flows.established.detail(flow).unwrap().is_counted);
}

#[test]
fn a_limit_that_a_reload_brings_takes_the_ends_back_to_the_plane() {
    let limits: [fn(&mut Service); 2] =
        [|service| service.max_connections = 9, |service| service.targets[0].max_connections = 9];
    for limit in limits {
        let mut lab = lab(Forwarding::FullNat);
        let (forward, back) = lab.open(Family::V4, 40_000);
        lab.change(limit);
        lab.now = lab.now + 1_000;
        lab.expire();
        assert_eq!(lab.fast_flows(), 0);
        lab.client_sends(&forward, &tcp(&forward, ACK, 101, 901, &[], b""));
        assert_eq!(lab.fast_flows(), 1);
        assert!(lab.carries(false, &back, ACK, (901, 101), b"more"));
        assert!(!lab.carries(true, &forward, FIN_ACK, (101, 905), b""));
    }
}

#[test]
fn a_reset_in_the_middle_of_a_close_knows_what_the_kernel_has_carried() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, back) = lab.open(Family::V4, 40_000);
    assert!(lab.carries(true, &forward, FIN_ACK, (101, 901), b""));
    assert!(lab.carries(false, &back, ACK, (901, 102), b"more"));
    lab.client_sends(&forward, &tcp(&forward, TcpFlags::RST.0, 102, 0, &[], b""));
    assert_eq!((lab.clerk.ends.as_slice(), lab.clerk.connections()), (&[Termination::ClientReset][..], 0));
}

#[test]
fn one_side_that_stays_open_is_taken_out_within_a_second_and_has_its_own_timer() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, back) = lab.open(Family::V4, 40_000);
    assert!(lab.carries(true, &forward, FIN_ACK, (101, 901), b""));
    lab.now = lab.now + 1_000;
    lab.expire();
    let half_closed = lab.plane.services.rule(ServiceId(0)).tcp_class(TcpTimeout::HalfClosed);
    assert_eq!((lab.flow(&forward), lab.fast_flows()), ((half_closed, false), 0));
    lab.server_sends(&back, &tcp(&back, FIN_ACK, 901, 102, &[], b""));
    lab.client_sends(&forward, &tcp(&forward, ACK, 102, 902, &[], b""));
    assert_eq!(lab.clerk.ends, [Termination::ClientClosed]);
}

/// Half of the sequence space, and more: then the newer number of two looks like the older one.
#[test]
fn the_plane_takes_over_after_more_than_two_gibibytes() {
    const STEP: u32 = 60_000;
    let mut lab = lab(Forwarding::FullNat);
    let (forward, back) = lab.open(Family::V4, 40_000);
    let (mut sent, got) = (101_u32, 901_u32);
    for _ in 0..(5_u64 << 29) / u64::from(STEP) {
        sent = sent.wrapping_add(STEP);
        // The segments before it took another way to the server.
        assert!(lab.carries(true, &forward, ACK, (sent.wrapping_sub(1), got), b"x"));
        assert!(lab.carries(false, &back, ACK, (got, sent), b""));
    }
    // One that the kernel leaves to it, and those behind it.
    lab.client_sends(&forward, &tcp(&forward, FIN_ACK | TcpFlags::URG.0, sent, got, &[], b""));
    lab.server_sends(&back, &tcp(&back, FIN_ACK, got, sent.wrapping_add(1), &[], b""));
    lab.client_sends(&forward, &tcp(&forward, ACK, sent.wrapping_add(1), got + 1, &[], b""));
    assert_eq!((lab.clerk.ends.as_slice(), lab.read(PlaneCounter::TcpFaults)), (&[Termination::ClientClosed][..], 0));
}

/// Over an interface that leads to no server.
#[test]
fn a_forged_answer_has_no_flow_entered_for_where_it_came_from() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, back) = lab.open(Family::V4, 40_000);
    let mut forged = frame_of(OUTSIDE_MAC, ROUTER_MAC, &back, &tcp(&back, ACK, 901, 101, &[], b"forged"));
    assert_eq!(lab.send(OUTSIDE, &mut forged), Verdict::Drop(DropReason::ReturnPort));
    assert_eq!(carry(&lab, OUTSIDE, &mut forged, Checksum::Complete, 0), None);
    assert!(lab.carries(false, &back, ACK, (901, 101), b"true"));
    assert!(lab.carries(true, &forward, ACK, (101, 905), b"x"));
    lab.expire();
    assert_eq!(lab.read(PlaneCounter::FastFlowsEntered), 1);
}

#[test]
fn resets_have_the_numbers_that_the_kernel_has_seen() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, back) = lab.open(Family::V4, 40_000);
    let (mut sent, mut got) = (101_u32, 901_u32);
    for _ in 0..3_000 {
        assert!(lab.carries(false, &back, ACK, (got, sent), &[0; 1_400]));
        got += 1_400;
        assert!(lab.carries(true, &forward, ACK, (sent, got), b"x"));
        sent += 1;
    }
    lab.change(|service| service.targets[0].admin = AdminState::Halt);
    lab.expire();
    assert_eq!((lab.clerk.ends.as_slice(), lab.fast_flows()), (&[Termination::ServerHalted][..], 0));
    let resets: Vec<_> =
        lab.made().iter().map(|(port, frame)| (*port, parsed(frame).tcp.seq, parsed(frame).tcp.ack)).collect();
    // The server has acknowledged all but the last octet.
    assert_eq!(resets, [(OUTSIDE, got, sent), (INSIDE, sent - 1, got), (INSIDE, sent, got)]);
    assert_eq!(lab.clerk.counted(ServiceCounter::BytesToClient), 3_000 * 1_400);
}

#[test]
fn a_flow_that_the_kernel_keeps_busy_does_not_expire_and_one_that_it_does_not_does() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, _) = lab.open(Family::V4, 40_000);
    let (idle, _) = lab.open(Family::V4, 40_001);
    for turn in 0..20_u32 {
        lab.now = lab.now + 100_000;
        // Time passes without the walk, which is no more often than the daemon has time for.
        assert!(lab.carries(true, &forward, ACK, (101 + turn, 901), b"x"));
        if turn % 5 == 4 {
            lab.expire();
        }
    }
    assert!(lab.flow(&forward).1 && lab.plane.flows.lookup(&idle).is_none());
    assert_eq!(lab.clerk.ends, [Termination::IdleTimedOut]);
    lab.now = lab.now + 599_000;
    lab.expire();
    assert_eq!(lab.plane.flows(), 1);
    lab.now = lab.now + 2_000;
    lab.expire();
    assert_eq!((lab.plane.flows(), lab.fast_flows()), (0, 0));
}

#[test]
fn what_the_kernel_carries_is_counted_within_a_second() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, _) = lab.open(Family::V4, 40_000);
    assert!(lab.carries(true, &forward, ACK, (101, 901), b"four"));
    let second = lab.now + 1_000;
    while lab.now < second {
        lab.now = lab.plane.next_due().unwrap().min(second);
        lab.expire();
    }
    assert_eq!((lab.clerk.counted(ServiceCounter::BytesFromClient), lab.read(PlaneCounter::FramesFast)), (4, 1));
    assert_eq!((lab.read(PlaneCounter::FastFlowsEntered), lab.read(PlaneCounter::FastFlowsLeft)), (1, 0));
    lab.now = lab.now + 1_000;
    lab.expire();
    assert_eq!((lab.clerk.counted(ServiceCounter::BytesFromClient), lab.read(PlaneCounter::FramesFast)), (4, 1));
}

#[test]
fn segments_that_were_received_before_the_flow_was_entered_leave_it_there() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, back) = lab.open(Family::V4, 40_000);
    // From the ring; and the answer knows them.
    lab.client_sends(&forward, &tcp(&forward, ACK | PSH, 101, 901, &[], b"first"));
    lab.client_sends(&forward, &tcp(&forward, ACK | PSH, 106, 901, &[], b"second"));
    assert!(lab.carries(false, &back, ACK, (901, 112), b"answer"));
    lab.client_sends(&forward, &tcp(&forward, ACK, 112, 907, &[], b""));
    lab.expire();
    assert_eq!((lab.fast_flows(), lab.read(PlaneCounter::FastFlowsEntered)), (1, 1));
    assert_eq!(lab.read(PlaneCounter::TcpFaults), 0);
}

#[test]
fn nothing_is_carried_the_old_way_once_the_network_has_another() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, back) = lab.open(Family::V4, 40_000);
    let same = || Arc::new(network(1500, true));
    lab.plane.adopt_network(same(), &mut lab.out);
    assert!(lab.carries(true, &forward, ACK, (101, 901), b"x"), "nothing has changed for it");
    for changed in [network(1400, true), network(1500, false)] {
        lab.plane.adopt_network(Arc::new(changed), &mut lab.out);
        assert!(!lab.carries(true, &forward, ACK, (102, 901), b"x"));
        assert!(!lab.carries(false, &back, ACK, (901, 102), b"x"));
        lab.plane.adopt_network(same(), &mut lab.out);
        assert!(!lab.carries(false, &back, ACK, (901, 102), b"x"), "not until it is entered anew");
        // The first one takes the flow out, the next one enters it.
        for _ in 0..2 {
            lab.client_sends(&forward, &tcp(&forward, ACK, 102, 901, &[], b""));
        }
        assert!(lab.carries(false, &back, ACK, (901, 102), b"x"));
    }
    let mut moved = network(1500, true);
    moved.ports[1].index = 99;
    lab.plane.adopt_network(Arc::new(moved), &mut lab.out);
    assert!(!lab.carries(true, &forward, ACK, (102, 901), b"x"), "the interface has come back as another");
    assert_eq!(lab.read(PlaneCounter::TcpFaults), 0);
}

#[test]
fn a_flow_whose_packets_come_in_elsewhere_is_entered_for_there() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, back) = lab.open(Family::V4, 40_000);
    let from_inside = |flags, seq, ack, data: &[u8]| {
        frame_of(INSIDE_MAC, ROUTER_MAC, &forward, &tcp(&forward, flags, seq, ack, &[], data))
    };
    let offered = |lab: &Lab| carry(lab, INSIDE, &mut from_inside(ACK, 101, 901, b"x"), Checksum::Complete, 0);
    assert_eq!(offered(&lab), None);
    lab.relay(INSIDE, from_inside(ACK, 101, 901, b"x"));
    assert_eq!((offered(&lab), lab.fast_flows()), (Some(INSIDE), 1));
    assert!(lab.carries(false, &back, ACK, (901, 102), b"answer"));
    assert!(!lab.carries(true, &forward, ACK, (101, 901), b"x"), "no more by the first port");
}

#[test]
fn a_flow_without_room_goes_through_the_plane_until_there_is_some() {
    let mut lab = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp).lab();
    enter(&mut lab, 1);
    let (first, back) = lab.open(Family::V4, 40_000);
    let (second, _) = lab.open(Family::V4, 40_001);
    assert_eq!((lab.flow(&first).1, lab.flow(&second).1, lab.fast_flows()), (true, false, 1));
    lab.client_sends(&second, &tcp(&second, ACK, 101, 901, &[], b"x"));
    lab.close(&first, &back, Direction::Forward);
    lab.now = lab.now + 200;
    lab.client_sends(&second, &tcp(&second, ACK, 102, 901, &[], b"x"));
    assert!(lab.carries(true, &second, ACK, (103, 901), b"x"));
    lab.expire();
    assert_eq!(lab.read(PlaneCounter::FastFlowsRefused), 1);
}

#[test]
fn a_crowd_of_silent_flows_gives_way() {
    let mut lab = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Tcp).lab();
    enter(&mut lab, 16);
    let flows: Vec<Tuple> = (0..16).map(|port| lab.open(Family::V4, 40_000 + port).0).collect();
    assert_eq!(lab.fast_flows(), 16);
    lab.now = lab.now + 20_000;
    assert!(lab.carries(true, &flows[3], ACK, (101, 901), b"x"));
    lab.expire();
    assert_eq!((lab.fast_flows(), lab.flow(&flows[3]).1, lab.plane.flows()), (1, true, 16));
}

#[test]
fn another_timeout_reaches_a_flow_that_the_kernel_carries() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, _) = lab.open(Family::V4, 40_000);
    let before = lab.flow(&forward).0;
    lab.change(|service| service.idle_timeout_ms = 30_000);
    lab.now = lab.now + 1_000;
    lab.expire();
    for _ in 0..2 {
        lab.client_sends(&forward, &tcp(&forward, ACK, 101, 901, &[], b""));
    }
    let (after, is_lent) = lab.flow(&forward);
    assert!(is_lent && after != before);
}

#[test]
fn an_icmp_error_is_judged_by_the_newest_numbers() {
    let mut lab = lab(Forwarding::FullNat);
    let (forward, back) = lab.open(Family::V4, 40_000);
    for turn in 0..200 {
        assert!(lab.carries(true, &forward, ACK, (101 + turn * 1_000, 901), &[0; 1_000]));
        assert!(lab.carries(false, &back, ACK, (901, 101 + turn * 1_000), b""));
    }
    let sent = back.reversed();
    let quoted = ip_packet(&sent, PROTOCOL_TCP, 63, &tcp(&sent, ACK, 101 + 199_000, 901, &[], b""));
    let mut error = vec![3, 1, 0, 0, 0, 0, 0, 0];
    error.extend(&quoted[..28]);
    let sum = checksum::of(&error);
    error[2..4].copy_from_slice(&sum.to_be_bytes());
    let outer =
        Tuple { src: server(Family::V4).ip().into(), dst: sent.src, src_port: 0, dst_port: 0, protocol: PROTOCOL_ICMP };
    let mut frame = ethernet(INSIDE_MAC, server_mac(80), true, &ip_packet(&outer, PROTOCOL_ICMP, 64, &error));
    assert_eq!(lab.send(INSIDE, &mut frame), Verdict::Send(OUTSIDE));
    assert_eq!(lab.fast_flows(), 1);
}
