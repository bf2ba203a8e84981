//! Flows between IPv4 and IPv6, both ways, in place and by way of a copy.

use super::*;
use crate::packet::{IcmpErrorKind, cut::Cut};

/// Frames with room in front of them are rewritten where they lie.
const ROOMS: [usize; 2] = [Frame::FRONT, 0];

/// Clients of this family, and servers of the other one.
fn setup(family: Family, protocol: Protocol) -> Setup {
    let mut setup = Setup::new(family, Forwarding::FullNat, protocol);
    setup.servers[0].address = host(family.other(), "inside", 80);
    setup
}

fn forward(family: Family, protocol: Protocol) -> Tuple {
    Tuple::new(client(family), vip(family), number(protocol))
}

impl Lab {
    /// What becomes of a frame with so much room in front of it, and what leaves, be it in place or made.
    fn cross_as(
        &mut self,
        port: PortId,
        bytes: &[u8],
        room: usize,
        checksum: Checksum,
        segment_bytes: u16,
    ) -> (Verdict, Vec<(PortId, Vec<u8>)>) {
        self.out.clear();
        let mut memory = [&vec![0; room], bytes].concat();
        let (front, bytes) = memory.split_at_mut(room);
        let mut frames = [Frame { bytes, front, port, checksum, segment_bytes }];
        self.plane.process(self.now, &mut frames, &mut self.verdicts, &mut self.clerk, &mut self.out);
        let verdict = self.verdicts[0];
        let left = match verdict {
            Verdict::Translated { port, begins } => {
                let start = room.checked_add_signed(begins.into()).expect("within the room");
                vec![(port, memory[start..].to_vec())]
            }
            _ => self.made(),
        };
        (verdict, left)
    }

    fn cross(&mut self, port: PortId, bytes: &[u8], room: usize) -> (Verdict, Vec<(PortId, Vec<u8>)>) {
        self.cross_as(port, bytes, room, Checksum::Complete, 0)
    }

    /// Sends a packet that is to go on whole; returns it as it leaves, with every checksum looked at.
    fn relay_across(&mut self, port: PortId, bytes: &[u8], room: usize) -> (PortId, Vec<u8>, Tuple) {
        let (verdict, mut left) = self.cross(port, bytes, room);
        assert_eq!(left.len(), 1, "{verdict:?}");
        let (port, frame) = left.remove(0);
        let tuple = sound(&frame);
        (port, frame, tuple)
    }

    fn client_crosses(&mut self, tuple: &Tuple, payload: &[u8], room: usize) -> (PortId, Vec<u8>, Tuple) {
        self.relay_across(OUTSIDE, &frame_of(OUTSIDE_MAC, ROUTER_MAC, tuple, payload), room)
    }

    fn server_crosses(&mut self, tuple: &Tuple, payload: &[u8], room: usize) -> (PortId, Vec<u8>, Tuple) {
        self.relay_across(INSIDE, &frame_of(INSIDE_MAC, server_mac(80), tuple, payload), room)
    }

    /// A handshake, or a question and an answer; the tuple of the server's answers.
    fn open_across(&mut self, forward: &Tuple, room: usize) -> Tuple {
        let (.., at_server) = self.client_crosses(forward, &packet(forward, SYN, 100, 0, b"question"), room);
        let back = at_server.reversed();
        self.server_crosses(&back, &packet(&back, SYN_ACK, 900, 101 + 8, b""), room);
        self.client_crosses(forward, &packet(forward, ACK, 101 + 8, 901, b""), room);
        back
    }
}

fn told(lab: &Lab) -> (PortId, crate::packet::IcmpError) {
    let made = lab.made();
    assert_eq!(made.len(), 1);
    match parse(&made[0].1) {
        Ok(Packet::IcmpError(error)) => (made[0].0, error),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_flow_between_the_versions_passes_both_ways_and_leaves_nothing_behind() {
    for (family, protocol, room) in
        FAMILIES.into_iter().flat_map(|f| PROTOCOLS.into_iter().flat_map(move |p| ROOMS.map(|room| (f, p, room))))
    {
        let name = format!("{family:?} {protocol:?} {room}");
        let mut lab = setup(family, protocol).lab();
        let forward = forward(family, protocol);
        let (port, frame, at_server) = lab.client_crosses(&forward, &packet(&forward, SYN, 100, 0, b""), room);
        assert_eq!((port, macs(&frame)), (INSIDE, (server_mac(80), INSIDE_MAC)), "{name}");
        let expected = Tuple {
            src: host(family.other(), "inside", 2).into(),
            dst: server(family.other()).ip().into(),
            src_port: at_server.src_port,
            dst_port: 8443,
            ..forward
        };
        assert_eq!((at_server, parsed(&frame).ttl), (expected, 63), "{name}");
        let back = at_server.reversed();
        let (port, frame, at_client) = lab.server_crosses(&back, &packet(&back, SYN_ACK, 900, 101, b""), room);
        assert_eq!((port, macs(&frame)), (OUTSIDE, (ROUTER_MAC, OUTSIDE_MAC)), "{name}");
        assert_eq!((at_client, parsed(&frame).ttl), (forward.reversed(), 63), "{name}");
        let (_, frame, _) = lab.client_crosses(&forward, &packet(&forward, ACK, 101, 901, b"hello"), room);
        assert!(frame.ends_with(b"hello"), "{name}");
        assert_eq!((lab.clerk.opened, lab.clerk.counted(ServiceCounter::BytesFromClient)), (1, 5), "{name}");
        if protocol == Protocol::Tcp {
            lab.client_crosses(&forward, &packet(&forward, FIN_ACK, 106, 901, b""), room);
            lab.server_crosses(&back, &packet(&back, FIN_ACK, 901, 107, b""), room);
            lab.client_crosses(&forward, &packet(&forward, ACK, 107, 902, b""), room);
            assert_eq!(lab.clerk.ends, [Termination::ClientClosed], "{name}");
        }
        lab.now = lab.now + 3_600_000;
        lab.expire();
        assert_eq!((lab.plane.flows(), lab.clerk.connections(), lab.dropped()), (0, 0, vec![]), "{name}");
    }
}

#[test]
fn both_sides_are_reset_in_their_own_version() {
    for family in FAMILIES {
        let mut lab = setup(family, Protocol::Tcp).lab();
        let forward = forward(family, Protocol::Tcp);
        let back = lab.open_across(&forward, 0);
        lab.out.clear();
        lab.now = lab.now + 3_600_000;
        lab.expire_once();
        let made = lab.made();
        let resets: Vec<(PortId, Tuple)> = made.iter().map(|(port, frame)| (*port, sound(frame))).collect();
        assert!(made.iter().all(|(_, frame)| parsed(frame).tcp.flags.contains(TcpFlags::RST)));
        assert!(resets.contains(&(OUTSIDE, forward.reversed())) && resets.contains(&(INSIDE, back.reversed())));
    }
}

#[test]
fn a_handshake_offers_what_both_links_carry_in_their_versions() {
    // (clients, MTU inside, largest segment)
    for (family, mtu, mss) in
        [(Family::V4, 1_500, 1_440), (Family::V6, 1_500, 1_440), (Family::V4, 1_300, 1_240), (Family::V6, 1_300, 1_260)]
    {
        let mut setup = setup(family, Protocol::Tcp);
        setup.network = network(mtu, true);
        let mut lab = setup.lab();
        let forward = forward(family, Protocol::Tcp);
        let offer = |tuple: &Tuple, flags, ack| tcp(tuple, flags, 100, ack, &[2, 4, 5, 180], b"");
        let offered = |frame: &[u8]| SynOptions::read(frame, &parsed(frame)).mss;
        let (_, frame, at_server) = lab.client_crosses(&forward, &offer(&forward, SYN, 0), 20);
        assert_eq!(offered(&frame), Some(mss), "{family:?} {mtu}");
        let back = at_server.reversed();
        let (_, frame, _) = lab.server_crosses(&back, &offer(&back, SYN_ACK, 101), 20);
        assert_eq!(offered(&frame), Some(mss), "{family:?} {mtu}");
    }
}

#[test]
fn what_is_too_big_in_the_other_version_is_told_in_its_own() {
    // (clients, MTU inside, octets of the packet, MTU that is told)
    for (family, mtu, octets, says) in [
        (Family::V4, 1_500, 1_481, 1_480),
        (Family::V4, 1_300, 1_300, 1_280),
        (Family::V6, 1_300, 1_321, 1_320),
        (Family::V6, 1_000, 1_281, 1_280),
    ] {
        let mut setup = setup(family, Protocol::Tcp);
        setup.network = network(mtu, true);
        let mut lab = setup.lab();
        let forward = forward(family, Protocol::Tcp);
        lab.open_across(&forward, 0);
        let headers = if family == Family::V4 { 40 } else { 60 };
        let segment = |octets: usize| packet(&forward, ACK, 109, 901, &vec![5; octets - headers]);
        let frame = frame_of(OUTSIDE_MAC, ROUTER_MAC, &forward, &segment(octets));
        assert_eq!(lab.cross(OUTSIDE, &frame, 20).0, Verdict::Drop(DropReason::PacketTooBig), "{family:?} {mtu}");
        let (port, error) = told(&lab);
        assert_eq!((port, error.embedded, error.kind), (OUTSIDE, forward, IcmpErrorKind::PacketTooBig { mtu: says }));
        let (_, frame, _) = match (family, mtu) {
            // What every IPv6 link carries is cut where a link of IPv4 carries less.
            (Family::V6, 1_000) => {
                let (verdict, left) =
                    lab.cross(OUTSIDE, &frame_of(OUTSIDE_MAC, ROUTER_MAC, &forward, &segment(1_280)), 20);
                assert_eq!((verdict, left.len()), (Verdict::Kept, 2));
                continue;
            }
            _ => lab.client_crosses(&forward, &segment(says as usize), 20),
        };
        assert!(parsed(&frame).dont_fragment);
        let last_hop = ip_packet(&forward, PROTOCOL_TCP, 1, &segment(100));
        let frame = ethernet(OUTSIDE_MAC, ROUTER_MAC, family == Family::V4, &last_hop);
        assert_eq!(lab.cross(OUTSIDE, &frame, 20).0, Verdict::Drop(DropReason::HopLimit));
        assert_eq!(told(&lab).1.kind, IcmpErrorKind::TimeExceeded);
    }
}

#[test]
fn super_packets_pass_whole_if_their_segments_fit() {
    for family in FAMILIES {
        let mut lab = setup(family, Protocol::Tcp).lab();
        let forward = forward(family, Protocol::Tcp);
        lab.open_across(&forward, 0);
        let mut segment = packet(&forward, ACK, 109, 901, &[5; 20_000]);
        let partial = pseudo(&forward, PROTOCOL_TCP, segment.len());
        segment[16..18].copy_from_slice(&partial.to_be_bytes());
        let frame = frame_of(OUTSIDE_MAC, ROUTER_MAC, &forward, &segment);
        let (verdict, left) = lab.cross_as(OUTSIDE, &frame, 20, Checksum::Partial, 1_440);
        let begins = if family == Family::V4 { -20 } else { 20 };
        assert_eq!(verdict, Verdict::Translated { port: INSIDE, begins });
        let packet = parsed(&left[0].1);
        assert!(packet.dont_fragment);
        let sum = pseudo(&packet.tuple, PROTOCOL_TCP, 20_020);
        let at = usize::from(packet.l4) + 16;
        assert_eq!(left[0].1[at..at + 2], sum.to_be_bytes(), "still partial");
        // Segments of 1,260 octets or fewer are such as routers may cut.
        for (segment_bytes, is_small) in [(1_220, true), (1_221, false)] {
            let (_, left) = lab.cross_as(OUTSIDE, &frame, 20, Checksum::Partial, segment_bytes);
            assert_eq!(parsed(&left[0].1).dont_fragment, family == Family::V4 || !is_small, "{segment_bytes}");
        }
        let (verdict, left) = lab.cross_as(OUTSIDE, &frame, 20, Checksum::Partial, 1_460);
        match family {
            Family::V4 => {
                assert_eq!(verdict, Verdict::Drop(DropReason::PacketTooBig));
                assert_eq!(told(&lab).1.kind, IcmpErrorKind::PacketTooBig { mtu: 1_480 });
                let without_room = lab.cross_as(OUTSIDE, &frame, 19, Checksum::Partial, 1_440).0;
                assert_eq!(without_room, Verdict::Drop(DropReason::FrameChanged));
            }
            Family::V6 => assert_eq!((verdict, left.len()), (Verdict::Translated { port: INSIDE, begins }, 1)),
        }
    }
}

/// A packet that routers may cut, in a frame.
fn uncut(tuple: &Tuple, payload: &[u8]) -> Vec<u8> {
    let mut frame = frame_of(OUTSIDE_MAC, ROUTER_MAC, tuple, payload);
    if tuple.src.is_v4() {
        frame[20] = 0;
        frame[24..26].fill(0);
        let sum = checksum::of(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

/// What fragments carry, in their order; and the largest packet among them.
fn joined(left: &[(PortId, Vec<u8>)]) -> (Vec<u8>, u32, u32) {
    let (mut data, mut largest, mut ids) = (Vec::new(), 0, HashSet::new());
    for (port, frame) in left {
        let Ok(Packet::Fragment(fragment)) = parse(frame) else { panic!("{:?}", parse(frame)) };
        assert_eq!((*port, usize::from(fragment.offset)), (INSIDE, data.len()));
        assert!(!fragment.parsed.dont_fragment || !fragment.parsed.tuple.src.is_v4());
        data.extend(&frame[usize::from(fragment.data)..fragment.parsed.end as usize]);
        largest = largest.max(fragment.parsed.total_len());
        ids.insert(fragment.key.id);
    }
    assert_eq!(ids.len(), 1);
    (data, largest, ids.into_iter().next().unwrap())
}

#[test]
fn datagrams_cross_in_one_piece_or_in_fragments_as_they_may() {
    for (family, room) in FAMILIES.into_iter().flat_map(|family| ROOMS.map(|room| (family, room))) {
        let mut lab = setup(family, Protocol::Udp).lab();
        let forward = forward(family, Protocol::Udp);
        let back = lab.open_across(&forward, room);
        let at_server = back.reversed();
        // Whole: cut where nobody would tell its sender.
        for payload in [1_212, 1_220, 1_233, 1_400] {
            let datagram = udp(&forward, &vec![9; payload]);
            let (verdict, left) = lab.cross(OUTSIDE, &uncut(&forward, &datagram), room);
            let expected = udp(&at_server, &vec![9; payload]);
            match family {
                Family::V4 if payload > 1_232 => {
                    assert_eq!(verdict, Verdict::Kept);
                    let (data, largest, _) = joined(&left);
                    assert!(largest <= 1_280 && data == expected, "{payload}");
                }
                Family::V4 => assert!(left[0].1.ends_with(&expected) && sound(&left[0].1) == at_server),
                Family::V6 => {
                    assert_eq!(sound(&left[0].1), at_server);
                    // Of 1,260 octets or fewer, routers may cut it.
                    let may_be_cut = !parsed(&left[0].1).dont_fragment;
                    assert_eq!(may_be_cut, payload + 28 <= 1_260, "{payload}");
                }
            }
        }
        // In fragments: put together, and cut again.
        let long = vec![0x5a; 5_000];
        for octets_max in [600, 1_500] {
            let mut frames = Vec::new();
            let frame = uncut(&forward, &udp(&forward, &long));
            Cut::new(&frame, octets_max, Some(77)).unwrap().each(|headers, data| frames.push([headers, data].concat()));
            frames.reverse();
            let count = frames.len();
            let left = frames.iter().map(|frame| lab.cross(OUTSIDE, frame, room)).last().unwrap().1;
            let (data, largest, id) = joined(&left);
            assert_eq!(data, udp(&at_server, &long));
            let largest_max = if family == Family::V4 { (octets_max + 28).min(1_280) } else { octets_max - 28 };
            assert!(largest <= largest_max && id != 77, "{largest} of {largest_max}");
            assert!(left.len() >= count);
        }
        assert_eq!(lab.dropped(), []);
    }
}

#[test]
fn a_datagram_without_checksum_gets_one() {
    let mut lab = setup(Family::V4, Protocol::Udp).lab();
    let forward = forward(Family::V4, Protocol::Udp);
    for room in ROOMS {
        let mut datagram = udp(&forward, b"unsummed");
        datagram[6..8].fill(0);
        // `sound` looks at it.
        lab.client_crosses(&forward, &datagram, room);
    }
}

#[test]
fn a_packet_too_long_for_ipv4_goes_nowhere() {
    let mut lab = setup(Family::V6, Protocol::Udp).lab();
    let forward = forward(Family::V6, Protocol::Udp);
    lab.open_across(&forward, 0);
    let frame = uncut(&forward, &udp(&forward, &vec![1; 65_508]));
    let mut last = Verdict::Pass;
    Cut::new(&frame, 1_500, Some(5)).unwrap().each(|headers, data| {
        last = lab.cross(OUTSIDE, &[headers, data].concat(), 0).0;
    });
    assert_eq!(last, Verdict::Drop(DropReason::TooLongForV4));
}

#[test]
fn what_waits_for_its_next_hop_waits_in_the_other_version() {
    for family in FAMILIES {
        let mut setup = setup(family, Protocol::Udp);
        setup.network = network(1_500, false);
        let mut lab = setup.lab();
        let forward = forward(family, Protocol::Udp);
        for payload in [100, 1_400] {
            let frame = uncut(&forward, &udp(&forward, &vec![3; payload]));
            assert_eq!(lab.cross(OUTSIDE, &frame, 20).0, Verdict::Kept);
        }
        assert_eq!(lab.plane.wanted(lab.now), Some((INSIDE, server(family.other()).ip().into())));
        lab.out.clear();
        lab.plane.adopt_network(Arc::new(network(1_500, true)), &mut lab.out);
        let made = lab.made();
        let at_server = sound(&made[0].1);
        assert_eq!(
            (at_server.dst, macs(&made[0].1)),
            (server(family.other()).ip().into(), (server_mac(80), INSIDE_MAC))
        );
        match family {
            Family::V4 => assert_eq!(joined(&made[1..]).0, udp(&at_server, &[3; 1_400])),
            Family::V6 => assert_eq!((made.len(), sound(&made[1].1)), (2, at_server)),
        }
    }
}

#[test]
fn an_error_about_a_packet_reaches_its_sender_in_its_own_version() {
    for (family, is_known) in FAMILIES.into_iter().flat_map(|family| [true, false].map(|known| (family, known))) {
        let mut lab = setup(family, Protocol::Tcp).lab();
        let forward = forward(family, Protocol::Tcp);
        let back = lab.open_across(&forward, 20);
        lab.client_crosses(&forward, &packet(&forward, ACK, 109, 901, &[1; 50]), 20);
        lab.server_crosses(&back, &packet(&back, ACK, 901, 109, &[1; 50]), 20);
        if !is_known {
            lab.plane.adopt_network(Arc::new(network_without_stations()), &mut lab.out);
        }
        let inner_router = host(family.other(), "inside", 81);
        // It says 1,300: of IPv4, an IPv6 sender may send 20 more; and the other way round.
        let says = |of: Family| IcmpErrorKind::PacketTooBig { mtu: if of == Family::V4 { 1_280 } else { 1_320 } };
        let cases = [
            (inner_router, back.reversed(), 109, INSIDE, INSIDE_MAC, forward, says(family)),
            (host(family, "clients", 1), forward.reversed(), 901, OUTSIDE, OUTSIDE_MAC, back, says(family.other())),
        ];
        for (from, quoted, seq, port, mac, expected, says) in cases {
            let frame = too_big(from, &quoted, seq, mac);
            let verdict = lab.cross(port, &frame, 20).0;
            assert_eq!(verdict, Verdict::Kept);
            if !is_known {
                assert!(lab.made().is_empty());
                lab.plane.adopt_network(Arc::new(network(1_500, true)), &mut lab.out);
            }
            let (left_by, error) = told(&lab);
            assert_ne!(left_by, port);
            assert_eq!((error.embedded, error.embedded_seq, error.kind), (expected, seq, says));
            // From the far end as the sender knows it: the router has no address in this version.
            assert_eq!((error.parsed.tuple.src, error.parsed.tuple.dst), (expected.dst, expected.src));
            assert_eq!(error.parsed.ttl, 63);
            if !is_known {
                lab.plane.adopt_network(Arc::new(network_without_stations()), &mut lab.out);
            }
            let blind = too_big(from, &quoted, seq.wrapping_add(5_000_000), mac);
            assert_eq!(lab.cross(port, &blind, 20).0, Verdict::Drop(DropReason::IcmpErrorWindow));
        }
        assert_eq!(lab.read(PlaneCounter::Errors), 2);
    }
}

/// As [`network`], and nobody is known there.
fn network_without_stations() -> Network {
    let whole = network(1_500, true);
    let routes = [
        ("192.0.2.0", 24, None, OUTSIDE),
        ("2001:db8::", 64, None, OUTSIDE),
        ("10.0.0.0", 24, None, INSIDE),
        ("fd00::", 64, None, INSIDE),
        ("198.51.100.0", 24, Some("192.0.2.254"), OUTSIDE),
        ("2001:db8:c::", 48, Some("2001:db8::fe"), OUTSIDE),
    ]
    .map(|(to, prefix, via, port)| (ip(to).into(), prefix, via.map(|via: &str| ip(via).into()), port, 0));
    Network::new(whole.ports.clone(), routes.to_vec(), vec![])
}

#[test]
fn an_error_that_the_other_version_does_not_have_is_dropped() {
    let mut lab = setup(Family::V4, Protocol::Udp).lab();
    let forward = forward(Family::V4, Protocol::Udp);
    let quoted = lab.open_across(&forward, 20).reversed();
    let outer = Tuple { src: quoted.dst, dst: quoted.src, src_port: 0, dst_port: 0, protocol: PROTOCOL_ICMPV6 };
    let mut message =
        [&[4, 2, 0, 0, 0, 0, 0, 40][..], &ip_packet(&quoted, PROTOCOL_UDP, 60, &udp(&quoted, b"x"))].concat();
    let sum = checksum::transport(pseudo(&outer, PROTOCOL_ICMPV6, message.len()), &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let frame = frame_of(INSIDE_MAC, server_mac(80), &outer, &message);
    assert_eq!(lab.cross(INSIDE, &frame, 20).0, Verdict::Drop(DropReason::IcmpErrorUntranslated));
    assert_eq!(lab.made(), []);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the lengths, order and room: the octets arrive, and the same leaves in place as by way of a copy.
    #[test]
    fn every_datagram_arrives_as_it_was_sent(
        is_v4 in any::<bool>(), mtu in 1_280..1_600_u32, may_be_cut in any::<bool>(),
        steps in prop::collection::vec((any::<bool>(), 0..1_472_usize, any::<u8>()), 1..12),
    ) {
        let family = if is_v4 { Family::V4 } else { Family::V6 };
        let mut setup = setup(family, Protocol::Udp);
        setup.network = network(mtu, true);
        let mut labs = [setup.lab(), setup.lab()];
        let forward = forward(family, Protocol::Udp);
        let back = labs.each_mut().map(|lab| lab.open_across(&forward, 20))[0];
        for (from_client, payload, octet) in steps {
            let (port, tuple, arrives) =
                if from_client { (OUTSIDE, forward, back.reversed()) } else { (INSIDE, back, forward.reversed()) };
            let payload = vec![octet; payload];
            let (dst, src) = if from_client { (OUTSIDE_MAC, ROUTER_MAC) } else { (INSIDE_MAC, server_mac(80)) };
            let mut frame = if may_be_cut { uncut(&tuple, &udp(&tuple, &payload)) } else { frame_of(dst, src, &tuple, &udp(&tuple, &payload)) };
            frame[..12].copy_from_slice(&[dst.0, src.0].concat());
            let [placed, copied] = [0, 1].map(|which| {
                let (verdict, left) = labs[which].cross(port, &frame, ROOMS[which]);
                (matches!(verdict, Verdict::Drop(_)), left)
            });
            prop_assert_eq!(&placed.0, &copied.0);
            prop_assert_eq!(placed.1.len(), copied.1.len());
            let expected = udp(&arrives, &payload);
            for left in [placed, copied] {
                match left {
                    (true, told) => prop_assert!(matches!(parse(&told[0].1), Ok(Packet::IcmpError(_)))),
                    (false, left) if left.len() == 1 => {
                        prop_assert_eq!(sound(&left[0].1), arrives);
                        prop_assert!(left[0].1.ends_with(&expected));
                    }
                    (false, left) => {
                        let data: Vec<u8> = left.iter().flat_map(|(_, frame)| match parse(frame) {
                            Ok(Packet::Fragment(fragment)) => frame[usize::from(fragment.data)..].to_vec(),
                            other => panic!("{other:?}"),
                        }).collect();
                        prop_assert_eq!(data, expected.clone());
                    }
                }
            }
        }
    }
}
