//! Packets of no service: what is forwarded as it is, and what is not.

use towpath_config::model::{RouterRule, RuleAction, RuleProtocol};

use super::fast::{carry, enter};
use super::*;

const OTHER_PROTOCOL: u8 = 47;

/// A plane that routes, with a service beside.
fn routing(family: Family) -> Setup {
    let mut setup = Setup::new(family, Forwarding::HalfNat, Protocol::Tcp);
    setup.router.enabled = true;
    setup
}

fn rule(action: RuleAction) -> RouterRule {
    RouterRule {
        action,
        from: Vec::new(),
        to: Vec::new(),
        from_interface: None,
        to_interface: None,
        protocol: RuleProtocol::Any,
        ports: Vec::new(),
    }
}

/// From the client straight to the server.
fn direct(family: Family, protocol: u8) -> Tuple {
    match protocol {
        PROTOCOL_TCP | PROTOCOL_UDP => Tuple::new(client(family), server(family), protocol),
        _ => Tuple { src: client(family).ip().into(), dst: server(family).ip().into(), protocol, ..Tuple::default() },
    }
}

fn payload(tuple: &Tuple) -> Vec<u8> {
    match tuple.protocol {
        PROTOCOL_TCP => tcp(tuple, SYN, 100, 0, &[], b""),
        PROTOCOL_UDP => udp(tuple, b"question"),
        PROTOCOL_ICMP | PROTOCOL_ICMPV6 => echo(tuple, tuple.protocol == PROTOCOL_ICMPV6),
        _ => vec![0xa5; 40],
    }
}

/// An echo request.
fn echo(tuple: &Tuple, is_v6: bool) -> Vec<u8> {
    let mut message = vec![if is_v6 { 128 } else { 8 }, 0, 0, 0, 0, 7, 0, 1, 1, 2, 3, 4];
    let sum = if is_v6 { pseudo(tuple, PROTOCOL_ICMPV6, message.len()) } else { 0 };
    let sum = checksum::transport(sum, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

fn inwards(tuple: &Tuple, ttl: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(OUTSIDE_MAC, ROUTER_MAC, tuple.src.is_v4(), &ip_packet(tuple, tuple.protocol, ttl, payload))
}

fn outwards(tuple: &Tuple, payload: &[u8]) -> Vec<u8> {
    ethernet(INSIDE_MAC, server_mac(80), tuple.src.is_v4(), &ip_packet(tuple, tuple.protocol, 64, payload))
}

fn protocols(family: Family) -> [u8; 4] {
    let icmp = if family == Family::V4 { PROTOCOL_ICMP } else { PROTOCOL_ICMPV6 };
    [PROTOCOL_TCP, PROTOCOL_UDP, icmp, OTHER_PROTOCOL]
}

#[test]
fn packets_of_no_service_cross_as_they_are_but_for_macs_and_hop_limit() {
    for family in FAMILIES {
        for protocol in protocols(family) {
            let mut lab = routing(family).lab();
            let there = direct(family, protocol);
            let (mut frame, expected) = (inwards(&there, 64, &payload(&there)), inwards(&there, 63, &payload(&there)));
            assert_eq!(lab.send(OUTSIDE, &mut frame), Verdict::Send(INSIDE), "{family:?} {protocol}");
            assert_eq!(macs(&frame), (server_mac(80), INSIDE_MAC));
            assert_eq!(frame[12..], expected[12..], "{family:?} {protocol}: with the right checksum of the header");
            let back = there.reversed();
            let mut frame = outwards(&back, &payload(&back));
            assert_eq!(lab.send(INSIDE, &mut frame), Verdict::Send(OUTSIDE), "{family:?} {protocol}");
            assert_eq!(macs(&frame), (ROUTER_MAC, OUTSIDE_MAC));
            assert_eq!(lab.read(PlaneCounter::FramesRouted), 2);
            assert_eq!(lab.plane.flows(), 0, "nothing is remembered");
            // Without the router the kernel may have it.
            let mut lab = Setup::new(family, Forwarding::HalfNat, Protocol::Tcp).lab();
            assert_eq!(lab.send(OUTSIDE, &mut inwards(&there, 64, &payload(&there))), Verdict::Pass);
        }
    }
}

#[test]
fn t_21_a_server_is_reached_by_its_vip_and_directly_at_the_same_time() {
    for family in FAMILIES {
        let mut lab = routing(family).lab();
        let (forward, back) = lab.open(family, 40_000);
        // The same client port, to the port of the server itself.
        let straight = direct(family, PROTOCOL_TCP);
        let straight = Tuple { src_port: 40_001, ..straight };
        let (port, _, at_server) = lab.client_sends(&straight, &tcp(&straight, SYN, 1, 0, &[], b""));
        assert_eq!((port, at_server), (INSIDE, straight));
        let answer = straight.reversed();
        let (port, _, at_client) = lab.server_sends(&answer, &tcp(&answer, SYN_ACK, 1, 2, &[], b""));
        assert_eq!((port, at_client), (OUTSIDE, answer));
        let (_, _, at_client) = lab.server_sends(&back, &tcp(&back, ACK, 901, 101, &[], b"served"));
        assert_eq!(at_client, forward.reversed(), "translated");
        assert_eq!(lab.read(PlaneCounter::FramesRouted), 2);
    }
}

#[test]
fn what_is_for_the_kernel_or_for_a_group_is_left_alone() {
    let mut lab = routing(Family::V4).lab();
    let there = direct(Family::V4, PROTOCOL_UDP);
    for to in ["192.0.2.1", "10.0.0.1"] {
        let to = Tuple { dst: ip(to).into(), ..there };
        assert_eq!(lab.send(OUTSIDE, &mut inwards(&to, 64, &udp(&to, b""))), Verdict::Pass, "{to:?}");
    }
    let to_group = ethernet(Mac::BROADCAST, ROUTER_MAC, true, &ip_packet(&there, PROTOCOL_UDP, 64, &udp(&there, b"")));
    assert_eq!(lab.send(OUTSIDE, &mut to_group.clone()), Verdict::Pass, "RFC 1812 section 5.3.4");
    assert_eq!(lab.read(PlaneCounter::FramesRouted), 0);
}

#[test]
fn no_router_forwards_such_addresses() {
    let rows: [(Family, &str, &str, DropReason); 12] = [
        (Family::V4, "169.254.1.1", "10.0.0.80", DropReason::Unroutable),
        (Family::V4, "198.51.100.7", "169.254.1.1", DropReason::Unroutable),
        (Family::V4, "0.1.2.3", "10.0.0.80", DropReason::Unroutable),
        (Family::V4, "198.51.100.7", "240.0.0.1", DropReason::Unroutable),
        (Family::V4, "198.51.100.7", "10.0.0.255", DropReason::Unroutable),
        (Family::V4, "198.51.100.7", "10.0.0.0", DropReason::Unroutable),
        (Family::V4, "10.0.0.255", "10.0.0.80", DropReason::Unroutable),
        (Family::V4, "10.0.0.1", "10.0.0.80", DropReason::SourceOurs),
        (Family::V4, "192.0.2.250", "10.0.0.80", DropReason::SourceOurs),
        (Family::V6, "fe80::7", "fd00::80", DropReason::Unroutable),
        (Family::V6, "2001:db8:c::7", "fe80::80", DropReason::Unroutable),
        (Family::V6, "fd00::1", "fd00::80", DropReason::SourceOurs),
    ];
    for (family, src, dst, reason) in rows {
        let mut lab = routing(family).lab();
        let tuple = Tuple { src: ip(src).into(), dst: ip(dst).into(), ..direct(family, PROTOCOL_UDP) };
        assert_eq!(
            lab.send(OUTSIDE, &mut inwards(&tuple, 64, &udp(&tuple, b""))),
            Verdict::Drop(reason),
            "{src} {dst}"
        );
        assert_eq!(lab.read(PlaneCounter::ErrorsMade), 0, "{src} {dst}: nobody is told");
    }
}

#[test]
fn what_a_dsr_server_answers_is_forwarded_where_we_are_its_router() {
    for family in FAMILIES {
        let mut setup = routing(family);
        setup.forwarding = Forwarding::Dsr;
        setup.router.policy = RuleAction::Deny;
        let mut lab = setup.lab();
        let forward = Tuple::new(client(family), vip(family), PROTOCOL_TCP);
        lab.client_sends(&forward, &tcp(&forward, SYN, 100, 0, &[], b""));
        let back = forward.reversed();
        let (port, frame, at_client) = lab.server_sends(&back, &tcp(&back, SYN_ACK, 900, 101, &[], b""));
        assert_eq!((port, macs(&frame), at_client), (OUTSIDE, (ROUTER_MAC, OUTSIDE_MAC), back));
        // What is no answer is for the rules; and nobody else has the address of the VIP.
        let other = Tuple { src_port: 22, ..back };
        let segment = |tuple: &Tuple| tcp(tuple, ACK, 1, 1, &[], b"");
        let verdict = lab.send(INSIDE, &mut outwards(&other, &segment(&other)));
        assert_eq!(verdict, Verdict::Drop(DropReason::RuleDenied));
        let verdict = lab.send(OUTSIDE, &mut inwards(&back, 64, &segment(&back)));
        assert_eq!(verdict, Verdict::Drop(DropReason::SourceOurs));
        setup.forwarding = Forwarding::HalfNat;
        let verdict = setup.lab().send(INSIDE, &mut outwards(&back, &segment(&back)));
        assert_eq!(verdict, Verdict::Drop(DropReason::SourceOurs));
    }
}

#[test]
fn a_source_must_be_where_a_route_leads_to_it() {
    let there = direct(Family::V4, PROTOCOL_UDP);
    let forged = Tuple { src: ip("10.0.0.99").into(), ..there };
    let mut setup = routing(Family::V4);
    let mut frame = inwards(&forged, 64, &udp(&forged, b""));
    assert_eq!(setup.lab().send(OUTSIDE, &mut frame), Verdict::Drop(DropReason::ReversePath));
    setup.router.source_check = false;
    assert_eq!(setup.lab().send(OUTSIDE, &mut frame), Verdict::Send(INSIDE));
}

#[test]
fn who_sends_what_cannot_go_on_is_told() {
    for family in FAMILIES {
        for protocol in protocols(family) {
            let there = direct(family, protocol);
            let nowhere = Tuple {
                dst: if family == Family::V4 { ip("203.0.113.9") } else { ip("2001:db8:f::9") }.into(),
                ..there
            };
            let is_v4 = family == Family::V4;
            let long = Tuple { protocol: PROTOCOL_UDP, src_port: 9, dst_port: 9, ..there };
            let rows = [
                (inwards(&there, 1, &payload(&there)), DropReason::HopLimit, if is_v4 { (11, 0) } else { (3, 0) }),
                (inwards(&nowhere, 64, &payload(&nowhere)), DropReason::NoRoute, if is_v4 { (3, 0) } else { (1, 0) }),
                (
                    inwards(&long, 64, &udp(&long, &[0; 1_400])),
                    DropReason::PacketTooBig,
                    if is_v4 { (3, 4) } else { (2, 0) },
                ),
            ];
            for (mut frame, reason, (kind, code)) in rows {
                let mut setup = routing(family);
                setup.network = network(1_300, true);
                let mut lab = setup.lab();
                assert_eq!(lab.send(OUTSIDE, &mut frame.clone()), Verdict::Drop(reason), "{family:?} {protocol}");
                let made = lab.made();
                let [(OUTSIDE, error)] = &made[..] else { panic!("{reason:?}: {} made", made.len()) };
                let headers_len = if is_v4 { 34 } else { 54 };
                assert_eq!(error[headers_len..headers_len + 2], [kind, code], "{reason:?}");
                let from = if is_v4 { octets(&ip("192.0.2.1").into()).to_vec() } else { ip6("2001:db8::1") };
                let at = if is_v4 { 26 } else { 22 };
                assert_eq!(error[at..at + from.len()], from, "from where it came in");
                // Nobody complains about a complaint (RFC 1122 section 3.2.2).
                let mut lab = setup.lab();
                let mut quoting = ethernet(OUTSIDE_MAC, ROUTER_MAC, is_v4, &quoting(&frame, family, reason));
                frame.truncate(frame.len());
                assert!(matches!(lab.send(OUTSIDE, &mut quoting), Verdict::Drop(_)), "{reason:?}");
                assert!(lab.made().is_empty(), "{reason:?}");
            }
        }
    }
}

/// Path MTU discovery does not depend on how many packets others send with their last hop.
#[test]
fn packets_with_their_last_hop_do_not_use_up_what_senders_of_large_ones_hear() {
    let there = direct(Family::V4, PROTOCOL_UDP);
    let mut setup = routing(Family::V4);
    setup.network = network(1_300, true);
    setup.settings.replies_per_second = 10;
    let mut lab = setup.lab();
    for _ in 0..20 {
        lab.send(OUTSIDE, &mut inwards(&there, 1, &payload(&there)));
    }
    assert_eq!(lab.read(PlaneCounter::ErrorsMade), 10);
    let large = inwards(&there, 64, &udp(&there, &[0; 1_400]));
    assert_eq!(lab.send(OUTSIDE, &mut large.clone()), Verdict::Drop(DropReason::PacketTooBig));
    assert_eq!(lab.read(PlaneCounter::ErrorsMade), 11);
}

#[test]
fn who_is_not_let_pass_does_not_hear_that_there_is_no_route() {
    let nowhere = Tuple { dst: ip("203.0.113.9").into(), ..direct(Family::V4, PROTOCOL_UDP) };
    let mut setup = routing(Family::V4);
    setup.router.policy = RuleAction::Deny;
    let mut lab = setup.lab();
    let verdict = lab.send(OUTSIDE, &mut inwards(&nowhere, 64, &payload(&nowhere)));
    assert_eq!((verdict, lab.made().len()), (Verdict::Drop(DropReason::RuleDenied), 0));
}

fn ip6(text: &str) -> Vec<u8> {
    Ip::from(ip(text)).0.to_vec()
}

/// An ICMP error about `frame`, to be sent on as that one was, and to fail for the same reason.
fn quoting(frame: &[u8], family: Family, reason: DropReason) -> Vec<u8> {
    let is_v4 = family == Family::V4;
    let packet = &frame[14..];
    let src: Ip = client(family).ip().into();
    let dst: Ip = match (reason, is_v4) {
        (DropReason::NoRoute, true) => ip("203.0.113.9").into(),
        (DropReason::NoRoute, false) => ip("2001:db8:f::9").into(),
        _ => server(family).ip().into(),
    };
    let ends = Tuple { src, dst, ..Tuple::default() };
    let mut message = vec![if is_v4 { 3 } else { 1 }, 3, 0, 0, 0, 0, 0, 0];
    message.extend(packet);
    let sum = if is_v4 { 0 } else { pseudo(&ends, PROTOCOL_ICMPV6, message.len()) };
    let sum = checksum::transport(sum, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let ttl = if reason == DropReason::HopLimit { 1 } else { 64 };
    ip_packet(&ends, if is_v4 { PROTOCOL_ICMP } else { PROTOCOL_ICMPV6 }, ttl, &message)
}

#[test]
fn icmp_errors_pass_with_what_they_are_about() {
    for family in FAMILIES {
        let is_v4 = family == Family::V4;
        let mut setup = routing(family);
        setup.router.policy = RuleAction::Deny;
        let mut stun = rule(RuleAction::Allow);
        stun.protocol = RuleProtocol::Udp;
        stun.ports = vec![(8_443, 8_443)];
        stun.from_interface = Some("outside".into());
        setup.router.rules = vec![stun];
        let mut lab = setup.lab();
        let question = direct(family, PROTOCOL_UDP);
        assert_eq!(lab.send(OUTSIDE, &mut inwards(&question, 64, &udp(&question, b"?"))), Verdict::Send(INSIDE));
        // Inside nobody listens; and the same about a packet that no rule lets in.
        for (port, expected) in [(8_443, Verdict::Send(OUTSIDE)), (8_444, Verdict::Drop(DropReason::RuleDenied))] {
            let asked = Tuple { dst_port: port, ..question };
            let back = Tuple { src: question.dst, dst: question.src, ..Tuple::default() };
            let mut message = vec![if is_v4 { 3 } else { 1 }, if is_v4 { 3 } else { 4 }, 0, 0, 0, 0, 0, 0];
            message.extend(ip_packet(&asked, PROTOCOL_UDP, 63, &udp(&asked, b"?")));
            let sum = if is_v4 { 0 } else { pseudo(&back, PROTOCOL_ICMPV6, message.len()) };
            let sum = checksum::transport(sum, &message);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            let protocol = if is_v4 { PROTOCOL_ICMP } else { PROTOCOL_ICMPV6 };
            let mut frame = ethernet(INSIDE_MAC, server_mac(80), is_v4, &ip_packet(&back, protocol, 64, &message));
            assert_eq!(lab.send(INSIDE, &mut frame), expected, "{family:?} {port}");
        }
    }
}

#[test]
fn a_rule_between_two_interfaces_denies_and_is_counted() {
    let mut setup = routing(Family::V4);
    let mut denied = rule(RuleAction::Deny);
    denied.from_interface = Some("outside".into());
    denied.to_interface = Some("inside".into());
    denied.from = vec![(ip("198.51.100.0"), 24)];
    setup.router.rules = vec![denied];
    let mut lab = setup.lab();
    let there = direct(Family::V4, PROTOCOL_TCP);
    let verdict = lab.send(OUTSIDE, &mut inwards(&there, 64, &payload(&there)));
    assert_eq!((verdict, lab.dropped()), (Verdict::Drop(DropReason::RuleDenied), vec![DropReason::RuleDenied]));
    // Services are none of its business, and servers may open connections.
    lab.open(Family::V4, 40_000);
    let back = there.reversed();
    assert_eq!(lab.send(INSIDE, &mut outwards(&back, &payload(&back))), Verdict::Send(OUTSIDE));
}

#[test]
fn super_packets_cross_whole_where_their_segments_fit() {
    for family in FAMILIES {
        let mut lab = routing(family).lab();
        let there = direct(family, PROTOCOL_TCP);
        let mut segment = tcp(&there, ACK, 1, 2, &[], &vec![0x5a; 60_000]);
        let partial = pseudo(&there, PROTOCOL_TCP, segment.len());
        segment[16..18].copy_from_slice(&partial.to_be_bytes());
        let frame = inwards(&there, 64, &segment);
        let mut sent = frame.clone();
        assert_eq!(lab.send_as(OUTSIDE, &mut sent, Checksum::Partial, 1_400), Verdict::Send(INSIDE));
        assert_eq!(sent[sent.len() - segment.len()..], segment, "the device does the rest");
        let verdict = lab.send_as(OUTSIDE, &mut frame.clone(), Checksum::Partial, 1_490);
        assert_eq!(verdict, Verdict::Drop(DropReason::PacketTooBig));
    }
}

#[test]
fn what_waits_for_its_neighbour_leaves_when_that_is_known() {
    let mut setup = routing(Family::V4);
    setup.network = network(1500, false);
    let mut lab = setup.lab();
    let there = direct(Family::V4, PROTOCOL_UDP);
    assert_eq!(lab.send(OUTSIDE, &mut inwards(&there, 64, &udp(&there, b"?"))), Verdict::Kept);
    assert_eq!(lab.plane.wanted(lab.now), Some((INSIDE, server(Family::V4).ip().into())));
    lab.plane.adopt_network(Arc::new(network(1500, true)), &mut lab.out);
    let made = lab.made();
    let [(INSIDE, frame)] = &made[..] else { panic!("{made:?}") };
    assert_eq!((macs(frame), parsed(frame).ttl, sound(frame)), ((server_mac(80), INSIDE_MAC), 63, there));
}

#[test]
fn fragments_and_what_only_their_receiver_reads_cross_too() {
    let mut lab = routing(Family::V4).lab();
    let there = direct(Family::V4, PROTOCOL_UDP);
    for flags_and_offset in [0x2000_u16, 0x0005] {
        let mut packet = ip_packet(&there, PROTOCOL_UDP, 64, &[0x11; 64]);
        packet[6..8].copy_from_slice(&flags_and_offset.to_be_bytes());
        packet[10..12].fill(0);
        let sum = checksum::of(&packet[..20]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut frame = ethernet(OUTSIDE_MAC, ROUTER_MAC, true, &packet);
        assert_eq!(lab.send(OUTSIDE, &mut frame), Verdict::Send(INSIDE), "{flags_and_offset:#x}");
    }
    // A tunnel over IPv6 may leave its checksum out (RFC 6936).
    let mut lab = routing(Family::V6).lab();
    let there = direct(Family::V6, PROTOCOL_UDP);
    let mut datagram = udp(&there, b"tunnelled");
    datagram[6..8].fill(0);
    assert_eq!(lab.send(OUTSIDE, &mut inwards(&there, 64, &datagram)), Verdict::Send(INSIDE));
    // Its port is judged all the same.
    let mut setup = routing(Family::V6);
    setup.router.policy = RuleAction::Deny;
    setup.router.rules = vec![RouterRule { ports: vec![(9, 9)], ..rule(RuleAction::Allow) }];
    let verdict = setup.lab().send(OUTSIDE, &mut inwards(&there, 64, &datagram));
    assert_eq!(verdict, Verdict::Drop(DropReason::RuleDenied));
}

/// The service of the plane, which leases from the pool that it has.
fn own_service(lab: &Lab) -> Service {
    Service::clone(lab.plane.snapshot.service(ServiceId(0)).expect("there is one"))
}

/// The other router outside, by which no route leads.
fn other_gateway(family: Family) -> (IpAddr, Mac) {
    (host(family, "outside", 253), Mac([2, 0, 0, 0, 0, 2]))
}

/// Beside the network of the other tests, this gateway is known, and one client is on the link outside.
fn with_gateway(family: Family, is_known: bool) -> Network {
    let (gateway, mac) = other_gateway(family);
    let mut stations = vec![(OUTSIDE, host(family, "outside", 7), Mac([2, 0, 0, 0, 0, 7]))];
    stations.extend(is_known.then_some((OUTSIDE, gateway, mac)));
    network_with(1500, true, &stations)
}

#[test]
fn t_32_what_goes_back_to_clients_leaves_by_the_next_hop_of_their_service() {
    for family in FAMILIES {
        for forwarding in [Forwarding::FullNat, Forwarding::HalfNat] {
            let (gateway, mac) = other_gateway(family);
            let mut setup = Setup::new(family, forwarding, Protocol::Tcp);
            setup.next_hop = Some(gateway);
            setup.network = with_gateway(family, true);
            let mut lab = setup.lab();
            let (forward, back) = lab.open(family, 40_000);
            for seq in [901, 906] {
                let (port, frame, tuple) = lab.server_sends(&back, &tcp(&back, ACK, seq, 101, &[], b"hello"));
                assert_eq!((port, macs(&frame), tuple), (OUTSIDE, (mac, OUTSIDE_MAC), forward.reversed()));
            }
            // Towards the server all is as ever.
            let (port, frame, _) = lab.client_sends(&forward, &tcp(&forward, ACK, 101, 911, &[], b"hello"));
            assert_eq!((port, macs(&frame).0), (INSIDE, server_mac(80)));
            // A reset made here too.
            let mut service = own_service(&lab);
            service.targets[0].admin = AdminState::Halt;
            lab.plane.adopt_snapshot(setup.snapshot(service));
            lab.expire_once();
            let made = lab.made();
            let to_client = made.iter().find(|(port, _)| *port == OUTSIDE).expect("a reset to the client");
            assert_eq!(macs(&to_client.1).0, mac);

            // A client on the link is answered there.
            let mut lab = setup.lab();
            let local = Tuple::new(SocketAddr::new(host(family, "outside", 7), 40_000), vip(family), PROTOCOL_TCP);
            let (_, _, at_server) = lab.client_sends(&local, &tcp(&local, SYN, 1, 0, &[], b""));
            let back = at_server.reversed();
            let (_, frame, _) = lab.server_sends(&back, &tcp(&back, SYN_ACK, 1, 2, &[], b""));
            assert_eq!(macs(&frame).0, Mac([2, 0, 0, 0, 0, 7]));

            // While nobody knows where the gateway is, it is asked for.
            setup.network = with_gateway(family, false);
            let mut lab = setup.lab();
            let forward = Tuple::new(client(family), vip(family), PROTOCOL_TCP);
            let (_, _, at_server) = lab.client_sends(&forward, &tcp(&forward, SYN, 1, 0, &[], b""));
            let back = at_server.reversed();
            let mut frame = frame_of(INSIDE_MAC, server_mac(80), &back, &tcp(&back, SYN_ACK, 1, 2, &[], b""));
            assert_eq!(lab.send(INSIDE, &mut frame), Verdict::Kept);
            assert_eq!(lab.plane.wanted(lab.now), Some((OUTSIDE, gateway.into())));
        }
    }
}

#[test]
fn the_kernel_carries_by_the_next_hop_of_the_service_and_hears_of_another() {
    let family = Family::V4;
    let (gateway, mac) = other_gateway(family);
    let mut setup = Setup::new(family, Forwarding::FullNat, Protocol::Tcp);
    setup.next_hop = Some(gateway);
    setup.network = with_gateway(family, true);
    let mut lab = setup.lab();
    enter(&mut lab, 64);
    let (_, back) = lab.open(family, 40_000);
    let carried = |lab: &Lab, seq| {
        let mut frame = frame_of(INSIDE_MAC, server_mac(80), &back, &tcp(&back, ACK, seq, 101, &[], b"hello"));
        carry(lab, INSIDE, &mut frame, Checksum::Complete, 0).map(|port| (port, macs(&frame).0))
    };
    assert_eq!(carried(&lab, 901), Some((OUTSIDE, mac)));
    let by_the_routes = Service { next_hop: None, ..own_service(&lab) };
    lab.plane.adopt_snapshot(setup.snapshot(by_the_routes));
    assert_eq!(carried(&lab, 906), None, "it is the plane's again");
}
