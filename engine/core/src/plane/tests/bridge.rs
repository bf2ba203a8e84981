//! Two arms like the ends of a cable: what crosses, what is taken out, and what a loop does.

use super::super::reply::arp_announcement;
use super::super::{Keeper, Port};
use super::*;
use crate::packet::cut::Cut;

/// A station that has nothing to do with us, on the side of the servers.
const STRANGER: Mac = Mac([2, 0, 0, 0, 9, 1]);

/// Everything in one network: the router outside, the servers inside, and the servers reach clients by that router.
fn bridged() -> Network {
    let arm = |name: &str, mac, peer, addresses: &[(&str, u8)]| Port {
        name: name.into(),
        mac,
        mtu: 1500,
        addresses: addresses.iter().map(|&(address, prefix)| (ip(address).into(), prefix)).collect(),
        keeper: Keeper::Towpath,
        peer: Some(peer),
        segments: true,
        ..Port::default()
    };
    let own = [("192.0.2.1", 24), ("10.0.0.1", 24), ("2001:db8::1", 64), ("fd00::1", 64)];
    let ports = vec![arm("outside", OUTSIDE_MAC, INSIDE, &own), arm("inside", INSIDE_MAC, OUTSIDE, &[])];
    let links = own.map(|(network, prefix)| (ip(network).into(), prefix, None, OUTSIDE, 0));
    let defaults = [("0.0.0.0", "192.0.2.254"), ("::", "2001:db8::fe")];
    let defaults = defaults.map(|(all, via)| (ip(all).into(), 0, Some(ip(via).into()), OUTSIDE, 0));
    let routers = ["192.0.2.254", "2001:db8::fe"].map(|router| (OUTSIDE, ip(router).into(), ROUTER_MAC));
    let servers = FAMILIES.map(|family| (INSIDE, host(family, "inside", 80).into(), server_mac(80)));
    Network::new(ports, [&links[..], &defaults].concat(), [routers, servers].concat())
}

fn setup(forwarding: Forwarding) -> Setup {
    Setup { network: bridged(), ..Setup::new(Family::V4, forwarding, Protocol::Tcp) }
}

impl Lab {
    /// Sends a frame that is to leave by the other arm as it is.
    #[track_caller]
    fn crosses(&mut self, from: PortId, frame: &[u8]) {
        let mut bytes = frame.to_vec();
        let other = if from == OUTSIDE { INSIDE } else { OUTSIDE };
        assert_eq!(self.send(from, &mut bytes), Verdict::Send(other));
        assert_eq!(bytes, frame);
    }
}

fn frame(dst: Mac, src: Mac, ethertype: [u8; 2], payload: &[u8]) -> Vec<u8> {
    [&dst.0[..], &src.0, &ethertype, payload].concat()
}

#[test]
fn what_is_none_of_ours_crosses_as_it_is() {
    for forwarding in MODES {
        let mut lab = setup(forwarding).lab();
        let tuple = Tuple::new("10.0.0.80:1234".parse().unwrap(), "10.0.0.9:445".parse().unwrap(), PROTOCOL_TCP);
        let group = Mac([0x01, 0, 0x5e, 0, 0, 5]);
        let frames = [
            frame_of(STRANGER, ROUTER_MAC, &tuple, &tcp(&tuple, SYN, 1, 0, &[], b"")),
            frame_of(STRANGER, ROUTER_MAC, &tuple.reversed(), &tcp(&tuple.reversed(), ACK, 1, 1, &[], &[7; 9_000])),
            // With its last hop.
            ethernet(
                STRANGER,
                ROUTER_MAC,
                true,
                &ip_packet(&tuple, PROTOCOL_TCP, 1, &tcp(&tuple, ACK, 1, 1, &[], b"")),
            ),
            // OSPF to its group, of which nobody here is a member.
            ethernet(group, ROUTER_MAC, true, &ip_packet(&tuple, 89, 1, &[0; 24])),
            arp_announcement(ROUTER_MAC, ip("192.0.2.254").into()).to_vec(),
            frame(Mac::BROADCAST, ROUTER_MAC, [0x88, 0xb5], &[1; 46]),
            frame(STRANGER, ROUTER_MAC, [0x81, 0x00], &[0, 7, 0x08, 0x00, 1, 2, 3]),
            // A length: spanning tree.
            frame(Mac([0x01, 0x80, 0xc2, 0, 0, 0]), ROUTER_MAC, [0, 38], &[0x42; 46]),
            // What no host would take: an empty one, and an IPv4 packet that is cut.
            frame(STRANGER, ROUTER_MAC, [0x08, 0x00], &[]),
            frame(STRANGER, ROUTER_MAC, [0x08, 0x00], &[0x45, 0, 5, 220]),
        ];
        for frame in &frames {
            lab.crosses(OUTSIDE, frame);
            lab.crosses(INSIDE, &[&frame[..6], &STRANGER.0, &frame[12..]].concat());
        }
        // A super-packet is no different.
        let mut bytes = frames[1].clone();
        assert_eq!(lab.send_as(OUTSIDE, &mut bytes, Checksum::Partial, 1_448), Verdict::Send(INSIDE));
        assert_eq!((lab.read(PlaneCounter::FramesBridged), lab.dropped(), lab.plane.flows()), (21, vec![], 0));
        assert_eq!(lab.send(OUTSIDE, &mut [0; 13]), Verdict::Drop(DropReason::EthernetTruncated));
    }
}

#[test]
fn a_connection_through_a_bridge_is_served_and_leaves_nothing_behind() {
    for forwarding in MODES {
        let mut lab = setup(forwarding).lab();
        let forward = Tuple::new(client(Family::V4), vip(Family::V4), PROTOCOL_TCP);
        let (port, frame, at_server) = lab.client_sends(&forward, &tcp(&forward, SYN, 100, 0, &[], b""));
        assert_eq!((port, macs(&frame)), (INSIDE, (server_mac(80), INSIDE_MAC)), "{forwarding:?}");
        let back = at_server.reversed();
        // A half-NAT server answers the client's router, one of a VIP itself too; only what was for us has our MAC.
        let to = if forwarding == Forwarding::FullNat { INSIDE_MAC } else { ROUTER_MAC };
        let answer = frame_of(to, server_mac(80), &back, &tcp(&back, SYN_ACK, 900, 101, &[], b""));
        if forwarding == Forwarding::Dsr {
            lab.crosses(INSIDE, &answer);
            continue;
        }
        let (port, frame, at_client) = lab.relay(INSIDE, answer);
        assert_eq!((port, macs(&frame), at_client), (OUTSIDE, (ROUTER_MAC, OUTSIDE_MAC), forward.reversed()));
        lab.client_sends(&forward, &tcp(&forward, ACK, 101, 901, &[], b""));
        for (flags, seq) in [(ACK, 901), (FIN_ACK, 901)] {
            let segment = frame_of(to, server_mac(80), &back, &tcp(&back, flags, seq, 101, &[], b""));
            let (_, _, at_client) = lab.relay(INSIDE, segment);
            assert_eq!(at_client, forward.reversed(), "{forwarding:?}");
        }
        lab.client_sends(&forward, &tcp(&forward, FIN_ACK, 101, 902, &[], b""));
        lab.relay(INSIDE, frame_of(to, server_mac(80), &back, &tcp(&back, ACK, 902, 102, &[], b"")));
        assert_eq!((lab.clerk.connections(), lab.dropped()), (0, vec![]), "{forwarding:?}");
    }
}

#[test]
fn what_a_half_nat_server_has_with_others_is_its_own_affair() {
    let mut lab = setup(Forwarding::HalfNat).lab();
    let (forward, back) = (
        Tuple::new(client(Family::V4), vip(Family::V4), PROTOCOL_TCP),
        Tuple::new(server(Family::V4), client(Family::V4), PROTOCOL_TCP),
    );
    // The same ends without us, before there is a flow.
    let answer = frame_of(ROUTER_MAC, server_mac(80), &back, &tcp(&back, SYN_ACK, 900, 101, &[], b""));
    lab.crosses(INSIDE, &answer);
    lab.client_sends(&forward, &tcp(&forward, SYN, 100, 0, &[], b""));
    assert_eq!(lab.relay(INSIDE, answer).2, forward.reversed());
    // Another port of it, another server's, and to the VIP by the MAC that some other machine has.
    let others = [
        Tuple { src_port: 3389, ..back },
        Tuple { src: ip("10.0.0.81").into(), ..back },
        Tuple::new("10.0.0.80:5000".parse().unwrap(), vip(Family::V4), PROTOCOL_TCP),
    ];
    for tuple in others {
        lab.crosses(INSIDE, &frame_of(ROUTER_MAC, server_mac(80), &tuple, &tcp(&tuple, SYN, 1, 0, &[], b"")));
    }
    assert_eq!((lab.plane.flows(), lab.clerk.connections()), (1, 1));
}

/// As whole ones that are sent to the MAC of some other machine.
#[test]
fn fragments_to_others_are_taken_out_only_where_they_answer_a_flow() {
    let cut = |dst: Mac, src: Mac, tuple: &Tuple| {
        let mut frame = frame_of(dst, src, tuple, &udp(tuple, &[0x5a; 3_000]));
        frame[20] = 0;
        let mut made = Vec::new();
        let cut = Cut::new(&frame, 1_500, Some(77)).unwrap();
        cut.each(|headers, data| made.push([headers, data].concat()));
        made
    };
    let mut lab = Setup { network: bridged(), ..Setup::new(Family::V4, Forwarding::HalfNat, Protocol::Udp) }.lab();
    // To the VIP, by the MAC that some other machine has.
    let forward = Tuple::new(client(Family::V4), vip(Family::V4), PROTOCOL_UDP);
    for fragment in cut(STRANGER, ROUTER_MAC, &forward) {
        lab.crosses(OUTSIDE, &fragment);
    }
    // From a server, which may answer a flow: what does not leaves as it came, to the same MAC.
    let others = [
        Tuple::new("10.0.0.80:5000".parse().unwrap(), vip(Family::V4), PROTOCOL_UDP),
        Tuple::new(server(Family::V4), client(Family::V4), PROTOCOL_UDP),
    ];
    for tuple in others {
        lab.out.clear();
        for fragment in cut(STRANGER, server_mac(80), &tuple) {
            assert_eq!(lab.send(INSIDE, &mut fragment.clone()), Verdict::Kept);
        }
        let made = lab.made();
        let crossed = |(port, frame): &(PortId, Vec<u8>)| *port == OUTSIDE && macs(frame) == (STRANGER, server_mac(80));
        assert!(made.len() == 3 && made.iter().all(crossed), "{tuple:?}");
    }
    assert_eq!((lab.plane.flows(), lab.dropped()), (0, vec![]));
    let (_, _, at_server) = lab.client_sends(&forward, &udp(&forward, b"question"));
    lab.out.clear();
    for fragment in cut(ROUTER_MAC, server_mac(80), &at_server.reversed()) {
        assert_eq!(lab.send(INSIDE, &mut fragment.clone()), Verdict::Kept);
    }
    let made = lab.made();
    let answers = |(_, frame): &(PortId, Vec<u8>)| macs(frame) == (ROUTER_MAC, OUTSIDE_MAC);
    assert!(made.len() == 3 && made.iter().all(answers));
}

/// Its connections go on, by the answers that it sends to the router of their clients.
#[test]
fn a_half_nat_server_that_a_reload_takes_out_keeps_its_flows_and_no_more() {
    let setup = setup(Forwarding::HalfNat);
    let mut lab = setup.lab();
    let (forward, back) = lab.open(Family::V4, 40_000);
    let mut service = setup.service();
    service.targets.clear();
    lab.plane.adopt_snapshot(setup.snapshot(service.clone()));
    let answer = |seq| frame_of(ROUTER_MAC, server_mac(80), &back, &tcp(&back, ACK, seq, 101, &[], b"answer"));
    for seq in [901, 907] {
        assert_eq!(lab.relay(INSIDE, answer(seq)).2, forward.reversed());
        lab.expire();
    }
    // A newer snapshot does not forget it either.
    lab.plane.adopt_snapshot(setup.snapshot(service.clone()));
    lab.expire();
    assert_eq!(lab.relay(INSIDE, answer(913)).2, forward.reversed());
    assert!(lab.plane.services.any_keeps_clients());
    lab.now = lab.now + 700_000;
    lab.expire();
    lab.plane.adopt_snapshot(setup.snapshot(service));
    lab.expire();
    assert_eq!((lab.plane.flows(), lab.plane.services.any_keeps_clients()), (0, false));
}

#[test]
fn questions_for_addresses_of_ours_are_answered_on_both_arms_and_others_cross() {
    let mut lab = setup(Forwarding::FullNat).lab();
    let question = |target: &str| {
        let mut frame = arp_announcement(STRANGER, ip(target).into()).to_vec();
        frame[28..32].copy_from_slice(&[192, 0, 2, 7]);
        frame
    };
    for (arm, mac) in [(OUTSIDE, OUTSIDE_MAC), (INSIDE, INSIDE_MAC)] {
        lab.out.clear();
        for target in ["192.0.2.250", "10.0.0.2"] {
            assert_eq!(lab.send(arm, &mut question(target)), Verdict::Kept, "{target}");
        }
        assert!(lab.made().iter().all(|(port, frame)| *port == arm && macs(frame) == (STRANGER, mac)));
        assert_eq!(lab.out.len(), 2);
        lab.crosses(arm, &question("192.0.2.99"));
    }
    lab.out.clear();
    lab.plane.announce(&mut lab.out);
    let told = lab.made();
    for (arm, mac) in [(OUTSIDE, OUTSIDE_MAC), (INSIDE, INSIDE_MAC)] {
        // The VIP, the SNAT address and four of the bridge itself.
        assert_eq!(told.iter().filter(|(port, frame)| *port == arm && macs(frame).1 == mac).count(), 6);
    }
}

#[test]
fn frames_of_our_own_follow_a_station_to_the_other_arm() {
    let mut lab = setup(Forwarding::FullNat).lab();
    let (forward, back) = lab.open(Family::V4, 40_000);
    let (port, ..) = lab.client_sends(&forward, &tcp(&forward, ACK, 101, 901, &[], b"1"));
    assert_eq!(port, INSIDE);
    // The server has moved, which it tells by the first frame that it sends.
    lab.crosses(OUTSIDE, &arp_announcement(server_mac(80), ip("10.0.0.80").into()));
    let (port, frame, _) = lab.client_sends(&forward, &tcp(&forward, ACK, 102, 901, &[], b"2"));
    assert_eq!((port, macs(&frame)), (OUTSIDE, (server_mac(80), OUTSIDE_MAC)));
    // It still knows us by the MAC of the arm that it was at.
    let (port, ..) =
        lab.relay(OUTSIDE, frame_of(INSIDE_MAC, server_mac(80), &back, &tcp(&back, ACK, 901, 103, &[], b"")));
    assert_eq!((port, lab.read(PlaneCounter::BridgeStationsMoved)), (OUTSIDE, 1));
}

/// Another worker has heard it since, of which this one learns by the neighbours only.
#[test]
fn a_station_that_the_network_says_has_moved_is_followed() {
    let mut lab = setup(Forwarding::FullNat).lab();
    let (forward, _) = lab.open(Family::V4, 40_000);
    let before = bridged();
    let (ports, router) = (before.ports.clone(), (OUTSIDE, ip("192.0.2.254").into(), ROUTER_MAC));
    let links = [("192.0.2.0", 24), ("10.0.0.0", 24)].map(|(link, prefix)| (ip(link).into(), prefix, None, OUTSIDE, 0));
    let default = (ip("0.0.0.0").into(), 0, Some(ip("192.0.2.254").into()), OUTSIDE, 0);
    let routes = [&links[..], &[default]].concat();
    for (seq, at) in (101..).zip([OUTSIDE, INSIDE]) {
        let stations = vec![router, (at, ip("10.0.0.80").into(), server_mac(80))];
        lab.plane.adopt_network(Arc::new(Network::new(ports.clone(), routes.clone(), stations)), &mut lab.out);
        let (port, frame, _) = lab.client_sends(&forward, &tcp(&forward, ACK, seq, 901, &[], b"1"));
        assert_eq!((port, macs(&frame).0), (at, server_mac(80)));
    }
}

#[test]
fn spanning_tree_is_held_back_where_that_is_asked_for() {
    let mut network = bridged();
    network.ports[0].blocks_spanning_tree = true;
    let mut lab = Setup { network, ..setup(Forwarding::FullNat) }.lab();
    for arm in [OUTSIDE, INSIDE] {
        for group in [[0x01, 0x80, 0xc2, 0, 0, 0], [0x01, 0, 0x0c, 0xcc, 0xcc, 0xcd]] {
            let mut hello = frame(Mac(group), STRANGER, [0, 38], &[0x42; 46]);
            assert_eq!(lab.send(arm, &mut hello), Verdict::Drop(DropReason::SpanningTree));
        }
        // Link layer discovery is not spanning tree.
        lab.crosses(arm, &frame(Mac([0x01, 0x80, 0xc2, 0, 0, 0x0e]), STRANGER, [0x88, 0xcc], &[1; 46]));
    }
}

#[test]
fn a_loop_is_noticed_by_our_own_frames_and_over_when_none_returns() {
    let mut lab = setup(Forwarding::FullNat).lab();
    lab.expire();
    lab.now = lab.now + 10_000;
    lab.out.clear();
    assert!(lab.plane.expire(lab.now, 100, &mut lab.clerk, &mut lab.out));
    let probes = lab.made();
    assert_eq!(
        probes.iter().map(|(port, frame)| (*port, macs(frame).1)).collect::<Vec<_>>(),
        [(OUTSIDE, OUTSIDE_MAC), (INSIDE, INSIDE_MAC)]
    );
    let again = lab.plane.next_due().expect("the next probe");
    assert!(again > lab.now && again <= lab.now + 2_000);
    // Both arms are in one switch.
    for round in 1..=3 {
        let mut back = probes[0].1.clone();
        assert_eq!(lab.send(INSIDE, &mut back), Verdict::Drop(DropReason::BridgeReturned));
        let counters = [PlaneCounter::BridgeLoops, PlaneCounter::BridgeLoopsOver].map(|counter| lab.read(counter));
        assert_eq!(counters, [1, 0], "told once, in round {round}");
    }
    // What goes round is held down, and who is known on the other side is still reached.
    lab.crosses(INSIDE, &arp_announcement(STRANGER, ip("192.0.2.9").into()));
    let storm = frame(Mac::BROADCAST, ROUTER_MAC, [0x88, 0xb5], &[1; 46]);
    let crossed = (0..1_000).filter(|_| lab.send(OUTSIDE, &mut storm.clone()) == Verdict::Send(INSIDE)).count();
    assert_eq!(crossed, 255, "one has crossed before");
    assert_eq!(lab.plane.counts().dropped(DropReason::BridgeStorm), 745);
    lab.crosses(OUTSIDE, &frame(STRANGER, ROUTER_MAC, [0x88, 0xb5], &[1; 46]));
    // The cable is pulled.
    lab.now = lab.now + 10_000;
    lab.expire();
    assert_eq!(lab.read(PlaneCounter::BridgeLoopsOver), 1);
    (0..1_000).for_each(|_| lab.crosses(OUTSIDE, &storm));
    assert_eq!(lab.send(OUTSIDE, &mut probes[1].1.clone()), Verdict::Drop(DropReason::BridgeReturned));
    assert_eq!(lab.read(PlaneCounter::BridgeLoops), 2);
}

#[test]
fn a_station_at_both_arms_at_once_is_a_loop() {
    let mut lab = setup(Forwarding::FullNat).lab();
    let hello = frame(Mac::BROADCAST, STRANGER, [0x88, 0xb5], &[1; 46]);
    for (arm, loops) in [(OUTSIDE, 0), (INSIDE, 0), (OUTSIDE, 0), (INSIDE, 0), (OUTSIDE, 1), (INSIDE, 1)] {
        lab.crosses(arm, &hello);
        assert_eq!(lab.read(PlaneCounter::BridgeLoops), loops);
    }
}

#[test]
fn a_tagged_frame_that_no_port_takes_crosses() {
    let mut lab = setup(Forwarding::FullNat).lab();
    let question =
        |src| frame(Mac::BROADCAST, src, [0x08, 0x06], &arp_announcement(src, ip("192.0.2.250").into())[14..]);
    // Though it asks for the VIP: in another network.
    assert_eq!(lab.send(OUTSIDE.tagged(), &mut question(STRANGER)), Verdict::Send(INSIDE.tagged()));
    assert_eq!(lab.send(INSIDE.tagged(), &mut question(STRANGER)), Verdict::Send(OUTSIDE.tagged()));
    assert_eq!(lab.send(INSIDE.tagged(), &mut question(OUTSIDE_MAC)), Verdict::Drop(DropReason::BridgeReturned));
    assert_eq!(lab.send(PortId(7).tagged(), &mut question(STRANGER)), Verdict::Pass);
    assert_eq!((OUTSIDE.tagged().is_tagged(), OUTSIDE.is_tagged()), (Some(OUTSIDE), None));
    assert_eq!((lab.dropped(), lab.read(PlaneCounter::BridgeStationsMoved)), (vec![DropReason::BridgeReturned], 0));
}

#[test]
fn half_nat_answers_of_a_batch_keep_their_order_among_what_crosses() {
    let mut lab = setup(Forwarding::HalfNat).lab();
    let (forward, back) = lab.open(Family::V4, 40_000);
    let answer = |seq, data: &[u8]| frame_of(ROUTER_MAC, server_mac(80), &back, &tcp(&back, ACK, seq, 101, &[], data));
    let mut batch = [
        answer(901, b"one"),
        frame(STRANGER, server_mac(80), [0x88, 0xb5], &[1; 46]),
        answer(904, b"two"),
        frame_of(OUTSIDE_MAC, ROUTER_MAC, &forward, &tcp(&forward, ACK, 101, 904, &[], b"")),
        frame_of(ROUTER_MAC, server_mac(80), &back, &tcp(&back, FIN_ACK, 907, 101, &[], b"")),
    ];
    let ports = [INSIDE, INSIDE, INSIDE, OUTSIDE, INSIDE];
    let mut frames: Vec<Frame<'_>> = batch
        .iter_mut()
        .zip(ports)
        .map(|(bytes, port)| Frame { bytes, front: &mut [], port, checksum: Checksum::Complete, segment_bytes: 0 })
        .collect();
    lab.plane.process(lab.now, &mut frames, &mut lab.verdicts, &mut lab.clerk, &mut lab.out);
    assert_eq!(lab.verdicts, [OUTSIDE, OUTSIDE, OUTSIDE, INSIDE, OUTSIDE].map(Verdict::Send));
    for place in [0, 2, 4] {
        assert_eq!(sound(&batch[place]), forward.reversed());
    }
    assert_eq!(lab.read(PlaneCounter::FramesBridged), 1);
}
