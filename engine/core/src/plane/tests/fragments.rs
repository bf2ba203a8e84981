//! Fragments of flows: put together, translated and cut again; and packets that are cut because the link ahead is smaller.

use super::*;
use crate::packet::cut::Cut;
use crate::packet::{IcmpErrorKind, rewrite};
use crate::random::SplitMix64;

/// A packet that may be cut, in a frame.
pub(super) fn uncut(dst: Mac, src: Mac, tuple: &Tuple, payload: &[u8]) -> Vec<u8> {
    let mut frame = frame_of(dst, src, tuple, payload);
    if tuple.src.is_v4() {
        frame[20] = 0;
        mend(&mut frame);
    }
    frame
}

/// Writes the checksum of the IPv4 header anew.
fn mend(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = checksum::of(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

pub(super) fn fragments(frame: &[u8], octets_max: u32, id: u32) -> Vec<Vec<u8>> {
    let mut made = Vec::new();
    Cut::new(frame, octets_max, Some(id)).unwrap().each(|headers, data| made.push([headers, data].concat()));
    made
}

/// The packet that fragments make, by another way than the plane's, and their octets.
fn joined(frames: &[Vec<u8>]) -> (Vec<u8>, Vec<usize>) {
    let mut parts: Vec<(u16, bool, u32, Vec<u8>)> = Vec::new();
    let mut headers = Vec::new();
    for frame in frames {
        let Ok(Packet::Fragment(fragment)) = parse(frame) else { panic!("{:?}", parse(frame)) };
        if fragment.is_first() {
            headers = frame[..usize::from(fragment.data)].to_vec();
        }
        let data = frame[usize::from(fragment.data)..fragment.parsed.end as usize].to_vec();
        parts.push((fragment.offset, fragment.more, fragment.key.id, data));
    }
    parts.sort();
    let lengths = parts.iter().map(|(.., data)| data.len()).collect();
    assert!(parts.iter().all(|(_, _, id, _)| *id == parts[0].2), "one number for all");
    let mut data: Vec<u8> = Vec::new();
    for (at, (offset, more, _, part)) in parts.iter().enumerate() {
        assert_eq!((usize::from(*offset), *more), (data.len(), at + 1 < parts.len()));
        data.extend(part);
    }
    if headers[14] >> 4 == 4 {
        headers[16..18].copy_from_slice(&(20 + data.len() as u16).to_be_bytes());
        headers[20] &= 0x40;
        headers[21] = 0;
        mend(&mut headers);
    } else {
        headers[20] = headers[54];
        headers.truncate(54);
        headers[18..20].copy_from_slice(&(data.len() as u16).to_be_bytes());
    }
    headers.extend(data);
    (headers, lengths)
}

fn id_of(frame: &[u8]) -> u32 {
    match parse(frame) {
        Ok(Packet::Fragment(fragment)) => fragment.key.id,
        other => panic!("{other:?}"),
    }
}

impl Lab {
    /// Sends fragments of a packet that is to go on, and returns what leaves: where, the packet as its fragments make it, and the octets of each.
    pub(super) fn relay_cut(&mut self, port: PortId, frames: &[Vec<u8>]) -> (PortId, Vec<u8>, Vec<usize>) {
        self.out.clear();
        for frame in frames {
            let verdict = self.send(port, &mut frame.clone());
            assert_eq!(verdict, Verdict::Kept, "dropped: {:?}", self.dropped());
        }
        self.sent_cut()
    }

    fn sent_cut(&self) -> (PortId, Vec<u8>, Vec<usize>) {
        let made = self.made();
        let (frame, octets) = joined(&made.iter().map(|(_, frame)| frame.clone()).collect::<Vec<_>>());
        assert!(made.iter().all(|(port, _)| *port == made[0].0));
        (made[0].0, frame, octets)
    }
}

/// A datagram for the other end of each flow, longer than any link carries.
const LONG: [u8; 5_000] = [0x5a; 5_000];

#[test]
fn fragments_pass_both_ways_in_every_mode_and_order() {
    for forwarding in MODES {
        for family in FAMILIES {
            for protocol in PROTOCOLS {
                for backwards in [false, true] {
                    let name = format!("{forwarding:?} {family:?} {protocol:?} {backwards}");
                    let mut lab = Setup::new(family, forwarding, protocol).lab();
                    let forward = Tuple::new(client(family), vip(family), number(protocol));
                    let order = |mut frames: Vec<Vec<u8>>| {
                        if backwards {
                            frames.reverse();
                        }
                        frames
                    };
                    // A datagram may open its flow, a segment may not.
                    let back = match (protocol, forwarding) {
                        (Protocol::Tcp, Forwarding::Dsr) => {
                            lab.client_sends(&forward, &tcp(&forward, SYN, 100, 0, &[], b""));
                            lab.client_sends(&forward, &tcp(&forward, ACK, 101, 901, &[], b""));
                            None
                        }
                        (Protocol::Tcp, _) => Some(lab.open(family, 40_000).1),
                        (Protocol::Udp, _) => None,
                    };
                    let frame = uncut(OUTSIDE_MAC, ROUTER_MAC, &forward, &packet(&forward, ACK, 101, 901, &LONG));
                    let (port, whole, octets) = lab.relay_cut(OUTSIDE, &order(fragments(&frame, 1_500, 77)));
                    assert_eq!((port, macs(&whole)), (INSIDE, (server_mac(80), INSIDE_MAC)), "{name}");
                    assert_eq!(octets.len(), fragments(&frame, 1_500, 77).len(), "{name}: as it came");
                    let at_server = sound(&whole);
                    match forwarding {
                        Forwarding::Dsr => assert_eq!(at_server, forward),
                        Forwarding::HalfNat => {
                            assert_eq!((at_server.src, at_server.dst), (forward.src, server(family).ip().into()))
                        }
                        Forwarding::FullNat => assert_eq!(at_server.src, host(family, "inside", 2).into()),
                    }
                    let kept = forwarding != Forwarding::FullNat;
                    assert_eq!(
                        id_of(&lab.made()[0].1) == 77,
                        kept,
                        "{name}: a number of the client's is good beside its address"
                    );
                    assert_eq!(
                        (lab.read(PlaneCounter::PacketsReassembled), lab.read(PlaneCounter::PacketsCut)),
                        (1, 1)
                    );

                    if forwarding != Forwarding::Dsr {
                        let back = back.unwrap_or(at_server.reversed());
                        let payload = packet(&back, ACK, 901, 101 + LONG.len() as u32, &LONG);
                        let frame = uncut(INSIDE_MAC, server_mac(80), &back, &payload);
                        let (port, whole, _) = lab.relay_cut(INSIDE, &order(fragments(&frame, 1_400, 78)));
                        assert_eq!((port, macs(&whole)), (OUTSIDE, (ROUTER_MAC, OUTSIDE_MAC)), "{name}");
                        assert_eq!(sound(&whole), forward.reversed(), "{name}");
                        assert!(
                            lab.made().iter().all(|(_, frame)| frame.len() <= 14 + 1_400),
                            "{name}: no larger than they came"
                        );
                        assert_ne!(id_of(&lab.made()[0].1), 78, "{name}: servers choose theirs apart from each other");
                    }
                    assert_eq!((lab.dropped(), lab.plane.reassembly.room().0), (vec![], 0), "{name}");
                }
            }
        }
    }
}

#[test]
fn what_is_larger_than_the_link_is_cut_if_it_may_be() {
    for family in FAMILIES {
        let mut setup = Setup::new(family, Forwarding::FullNat, Protocol::Udp);
        setup.network = network(1_280, true);
        let mut lab = setup.lab();
        let forward = Tuple::new(client(family), vip(family), PROTOCOL_UDP);
        let mut frame = uncut(OUTSIDE_MAC, ROUTER_MAC, &forward, &udp(&forward, &LONG[..1_400]));
        let partial = match family {
            Family::V4 => {
                assert_eq!(lab.send(OUTSIDE, &mut frame), Verdict::Kept);
                let (port, whole, octets) = lab.sent_cut();
                assert_eq!((port, octets), (INSIDE, vec![1_256, 152]));
                assert_eq!((sound(&whole).dst, parsed(&whole).ttl), (server(family).ip().into(), 63));
                // What others forbid to cut is not, and its sender is told.
                frame_of(OUTSIDE_MAC, ROUTER_MAC, &forward, &udp(&forward, &LONG[..1_400]))
            }
            // Only its sender cuts a packet of IPv6.
            Family::V6 => frame.clone(),
        };
        for _ in 0..2 {
            lab.out.clear();
            assert_eq!(lab.send(OUTSIDE, &mut partial.clone()), Verdict::Drop(DropReason::PacketTooBig));
            let Ok(Packet::IcmpError(error)) = parse(&lab.made()[0].1) else { panic!("an error") };
            assert_eq!((error.kind, error.embedded), (IcmpErrorKind::PacketTooBig { mtu: 1_280 }, forward));
        }
        // Fragments that do not fit: cut once more, or their sender is told.
        lab.out.clear();
        let whole = uncut(OUTSIDE_MAC, ROUTER_MAC, &forward, &udp(&forward, &LONG));
        let parts = fragments(&whole, 1_500, 9);
        let verdicts: Vec<Verdict> = parts.iter().map(|part| lab.send(OUTSIDE, &mut part.clone())).collect();
        match family {
            Family::V4 => {
                assert_eq!(verdicts, [Verdict::Kept; 4]);
                let (_, _, octets) = lab.sent_cut();
                assert_eq!(octets, [1_256, 1_256, 1_256, 1_240]);
            }
            Family::V6 => {
                assert_eq!(verdicts.last(), Some(&Verdict::Drop(DropReason::PacketTooBig)));
                assert_eq!(lab.out.len(), 1);
                let smaller = fragments(&whole, 1_280, 10);
                let (_, _, octets) = lab.relay_cut(OUTSIDE, &smaller);
                assert_eq!(octets, [1_232, 1_232, 1_232, 1_232, 80]);
            }
        }
    }
}

#[test]
fn a_partial_checksum_is_complete_before_the_cut() {
    let mut setup = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Udp);
    setup.network = network(1_280, true);
    let mut lab = setup.lab();
    let forward = Tuple::new(client(Family::V4), vip(Family::V4), PROTOCOL_UDP);
    let mut frame = uncut(OUTSIDE_MAC, ROUTER_MAC, &forward, &udp(&forward, &LONG[..1_400]));
    let sum = pseudo(&forward, PROTOCOL_UDP, 1_408);
    frame[40..42].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(lab.send_as(OUTSIDE, &mut frame, Checksum::Partial, 0), Verdict::Kept);
    sound(&lab.sent_cut().1);
    // A fragment with one is of nobody who cuts packets.
    let part = &fragments(&uncut(OUTSIDE_MAC, ROUTER_MAC, &forward, &udp(&forward, &LONG)), 1_500, 9)[0];
    let verdict = lab.send_as(OUTSIDE, &mut part.clone(), Checksum::Partial, 0);
    assert_eq!(verdict, Verdict::Drop(DropReason::Fragment));
}

#[test]
fn fragments_wait_for_their_next_hop_together() {
    for family in FAMILIES {
        let mut setup = Setup::new(family, Forwarding::FullNat, Protocol::Udp);
        setup.network = network(1_500, false);
        let mut lab = setup.lab();
        let forward = Tuple::new(client(family), vip(family), PROTOCOL_UDP);
        let frame = uncut(OUTSIDE_MAC, ROUTER_MAC, &forward, &udp(&forward, &LONG));
        for part in fragments(&frame, 1_500, 77) {
            assert_eq!(lab.send(OUTSIDE, &mut part.clone()), Verdict::Kept);
        }
        assert_eq!((lab.out.len(), lab.read(PlaneCounter::FramesHeld)), (0, 4));
        lab.plane.adopt_network(Arc::new(network(1_500, true)), &mut lab.out);
        let (port, whole, _) = lab.sent_cut();
        assert_eq!((port, macs(&whole)), (INSIDE, (server_mac(80), INSIDE_MAC)));
        assert_eq!(sound(&whole).dst, server(family).ip().into());
    }
}

#[test]
fn a_packet_of_which_parts_are_missing_is_given_up_and_its_sender_told() {
    for family in FAMILIES {
        let mut lab = Setup::new(family, Forwarding::HalfNat, Protocol::Udp).lab();
        let forward = Tuple::new(client(family), vip(family), PROTOCOL_UDP);
        let back = Tuple::new(server(family), client(family), PROTOCOL_UDP);
        let of = |tuple: &Tuple, dst, src| fragments(&uncut(dst, src, tuple, &udp(tuple, &LONG)), 1_500, 77);
        let (ours, theirs) = (of(&forward, OUTSIDE_MAC, ROUTER_MAC), of(&back, INSIDE_MAC, server_mac(80)));
        lab.send(OUTSIDE, &mut ours[0].clone());
        lab.send(OUTSIDE, &mut ours[2].clone());
        lab.send(INSIDE, &mut theirs[0].clone());
        let other = Tuple { src: host(family, "clients", 9).into(), ..forward };
        lab.send(OUTSIDE, &mut of(&other, OUTSIDE_MAC, ROUTER_MAC)[1].clone());
        assert_eq!(lab.plane.next_due(), Some(lab.now + reassembly::WAIT_MS));
        lab.now = lab.now + reassembly::WAIT_MS;
        assert!(lab.plane.expire(lab.now, 1_000, &mut lab.clerk, &mut lab.out));
        // Those without their first fragment cannot be named, and what is not for us is not ours to complain about.
        let made = lab.made();
        assert_eq!((made.len(), made[0].0), (1, OUTSIDE));
        let Ok(Packet::IcmpError(error)) = parse(&made[0].1) else { panic!("{:?}", parse(&made[0].1)) };
        assert_eq!((error.kind, error.embedded), (IcmpErrorKind::TimeExceeded, forward));
        assert_eq!(made[0].1[usize::from(error.parsed.l4) + 1], 1, "of reassembly");
        assert_eq!((error.parsed.tuple.src, error.parsed.tuple.dst), (forward.dst, forward.src));
        assert_eq!(lab.read(PlaneCounter::FragmentsGivenUp), 4);
        assert_eq!(lab.plane.next_due(), None);
    }
}

#[test]
fn a_long_ping_is_answered_in_fragments() {
    for family in FAMILIES {
        let mut lab = Setup::new(family, Forwarding::FullNat, Protocol::Udp).lab();
        let (kind, protocol) = if family == Family::V4 { (8, PROTOCOL_ICMP) } else { (128, PROTOCOL_ICMPV6) };
        let asked = Tuple { src_port: 0, dst_port: 0, protocol, ..Tuple::new(client(family), vip(family), 0) };
        let mut message = [&[kind, 0, 0, 0, 0, 7, 0, 1][..], &LONG].concat();
        let sum = if family == Family::V4 { 0 } else { pseudo(&asked, protocol, message.len()) };
        let check = checksum::transport(sum, &message);
        message[2..4].copy_from_slice(&check.to_be_bytes());
        let frame = uncut(OUTSIDE_MAC, ROUTER_MAC, &asked, &message);
        let (port, whole, octets) = lab.relay_cut(OUTSIDE, &fragments(&frame, 1_400, 77));
        assert_eq!((port, octets.len(), macs(&whole)), (OUTSIDE, 4, (ROUTER_MAC, OUTSIDE_MAC)));
        let l4 = if family == Family::V4 { 34 } else { 54 };
        let layout = rewrite::Layout { l3: 14, l4, family, protocol };
        assert_eq!(rewrite::endpoints(&whole, &layout), Ok(asked.reversed()));
        assert_eq!(whole[l4], if family == Family::V4 { 0 } else { 129 });
        assert!(checksum::is_valid(sum, &whole[l4..]) && whole[l4 + 8..] == LONG);
        assert_eq!(lab.read(PlaneCounter::EchoAnswered), 1);
    }
}

#[test]
fn a_cut_packet_leaves_whole_or_not_at_all() {
    let mut lab = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Udp).lab();
    lab.out = Outbox::new(3, 65_536);
    let forward = Tuple::new(client(Family::V4), vip(Family::V4), PROTOCOL_UDP);
    let parts = fragments(&uncut(OUTSIDE_MAC, ROUTER_MAC, &forward, &udp(&forward, &LONG)), 1_500, 77);
    let verdicts: Vec<Verdict> = parts.iter().map(|part| lab.send(OUTSIDE, &mut part.clone())).collect();
    assert_eq!(verdicts.last(), Some(&Verdict::Drop(DropReason::CutFull)));
    assert!(lab.out.is_empty());
}

#[test]
fn forged_parts_cost_a_packet_and_nothing_else() {
    let mut lab = Setup::new(Family::V4, Forwarding::FullNat, Protocol::Udp).lab();
    let forward = Tuple::new(client(Family::V4), vip(Family::V4), PROTOCOL_UDP);
    let whole = uncut(OUTSIDE_MAC, ROUTER_MAC, &forward, &udp(&forward, &LONG));
    let (parts, forged) = (fragments(&whole, 1_500, 77), fragments(&whole, 1_000, 77));
    assert_eq!(lab.send(OUTSIDE, &mut parts[0].clone()), Verdict::Kept);
    assert_eq!(lab.send(OUTSIDE, &mut forged[1].clone()), Verdict::Drop(DropReason::FragmentOverlap));
    assert_eq!(lab.send(OUTSIDE, &mut parts[1].clone()), Verdict::Drop(DropReason::FragmentOverlap));
    let (_, whole, _) = lab.relay_cut(OUTSIDE, &fragments(&whole, 1_500, 78));
    assert_eq!(sound(&whole).dst, server(Family::V4).ip().into());
    assert_eq!(lab.read(PlaneCounter::FragmentsGivenUp), 1);
}

/// Two workers: fragments come to the one that their numbers name, flows live where their clients do.
#[test]
fn fragments_reach_the_worker_that_has_their_flow() {
    for (forwarding, family) in [(Forwarding::FullNat, Family::V4), (Forwarding::HalfNat, Family::V6)] {
        let mut setup = Setup::new(family, forwarding, Protocol::Udp);
        setup.workers = 2;
        let mut labs = [0, 1].map(|worker| {
            setup.settings.worker = WorkerId(worker);
            setup.lab()
        });
        // One service for both: the pool is shared.
        let snapshot = Arc::clone(&labs[0].plane.snapshot);
        labs[1].plane.adopt_snapshot(snapshot);
        let mut random = SplitMix64::new(9);
        let (mut handed, mut passed) = (0, 0);
        for port in 40_000..40_040 {
            let source = SocketAddr::new(client(family).ip(), port);
            let mut tuple = Tuple::new(source, vip(family), PROTOCOL_UDP);
            let (mut port, mut macs) = (OUTSIDE, (OUTSIDE_MAC, ROUTER_MAC));
            for _ in 0..4 {
                let frame = uncut(macs.0, macs.1, &tuple, &udp(&tuple, &LONG));
                let first = random.below(2) as usize;
                for part in fragments(&frame, 1_500, random.next_u64() as u32) {
                    assert_eq!(labs[first].send(port, &mut part.clone()), Verdict::Kept);
                }
                let letters: Vec<_> =
                    labs[first].out.handed().map(|(to, port, frame)| (to, port, frame.to_vec())).collect();
                let at = match letters.first() {
                    Some(&(to, ..)) => usize::from(to.0),
                    None => first,
                };
                handed += usize::from(at != first);
                if at != first {
                    assert_eq!(labs[first].out.iter().count(), 0);
                    let Lab { plane, clerk, out, now, verdicts } = &mut labs[at];
                    for (_, port, mut bytes) in letters {
                        let mut frames = [Frame {
                            bytes: &mut bytes,
                            front: &mut [],
                            port,
                            checksum: Checksum::Complete,
                            segment_bytes: 0,
                        }];
                        plane.process_handed(*now, WorkerId(first as u8), &mut frames, verdicts, clerk, out);
                        assert_eq!(verdicts[..], [Verdict::Kept]);
                    }
                }
                let (_, whole, _) = labs[at].sent_cut();
                labs.iter_mut().for_each(|lab| lab.out.clear());
                tuple = sound(&whole).reversed();
                passed += 1;
                (port, macs) = match port {
                    OUTSIDE => (INSIDE, (INSIDE_MAC, server_mac(80))),
                    _ => (OUTSIDE, (OUTSIDE_MAC, ROUTER_MAC)),
                };
            }
            assert_eq!((tuple.src, tuple.src_port), (source.ip().into(), source.port()));
        }
        assert!(handed > passed / 4 && handed < passed, "{handed} of {passed}");
        assert!(labs.iter().all(|lab| lab.dropped().is_empty()));
    }
}

#[test]
fn a_datagram_to_a_closed_port_is_answered_so_that_a_traceroute_ends() {
    for family in FAMILIES {
        let mut lab = Setup::new(family, Forwarding::FullNat, Protocol::Udp).lab();
        let probe = Tuple { dst_port: 33_434, ..Tuple::new(client(family), vip(family), PROTOCOL_UDP) };
        let mut frame = frame_of(OUTSIDE_MAC, ROUTER_MAC, &probe, &udp(&probe, b"probe"));
        assert_eq!(lab.send(OUTSIDE, &mut frame), Verdict::Drop(DropReason::PortClosed));
        let Ok(Packet::IcmpError(error)) = parse(&lab.made()[0].1) else { panic!("an error") };
        let code = lab.made()[0].1[usize::from(error.parsed.l4) + 1];
        assert_eq!((error.kind, code), (IcmpErrorKind::Unreachable, if family == Family::V4 { 3 } else { 4 }));
        assert_eq!((error.embedded, error.parsed.tuple.src), (probe, probe.dst));
        // A server whose answer comes too late does not hear that nobody listens.
        lab.out.clear();
        let late = Tuple::new(server(family), SocketAddr::new(host(family, "inside", 2), 5_000), PROTOCOL_UDP);
        let mut frame = frame_of(INSIDE_MAC, server_mac(80), &late, &udp(&late, b"late"));
        assert_eq!(lab.send(INSIDE, &mut frame), Verdict::Drop(DropReason::PortClosed));
        assert!(lab.out.is_empty());
    }
}

/// A router outside cannot carry what we have cut: the server hears of it by the first fragment, which names its flow.
#[test]
fn an_error_about_a_first_fragment_reaches_the_server() {
    for family in FAMILIES {
        let mut lab = Setup::new(family, Forwarding::FullNat, Protocol::Udp).lab();
        let forward = Tuple::new(client(family), vip(family), PROTOCOL_UDP);
        let (_, _, at_server) = lab.client_sends(&forward, &udp(&forward, b"question"));
        let back = at_server.reversed();
        let answer = uncut(INSIDE_MAC, server_mac(80), &back, &udp(&back, &LONG));
        lab.relay_cut(INSIDE, &fragments(&answer, 1_500, 77));
        let sent = lab.made();
        let router = Tuple { src: host(family, "outside", 254).into(), dst: forward.dst, ..Tuple::default() };
        let error = |quoted: &[u8]| {
            let (head, protocol, quoted): (&[u8], u8, &[u8]) = match family {
                Family::V4 => (&[3, 4, 0, 0, 0, 0, 5, 0x14], PROTOCOL_ICMP, &quoted[14..14 + 28]),
                Family::V6 => (&[2, 0, 0, 0, 0, 0, 5, 0x14], PROTOCOL_ICMPV6, &quoted[14..14 + 1_232]),
            };
            let mut message = [head, quoted].concat();
            let sum = if family == Family::V4 { 0 } else { pseudo(&router, protocol, message.len()) };
            let check = checksum::transport(sum, &message);
            message[2..4].copy_from_slice(&check.to_be_bytes());
            frame_of(OUTSIDE_MAC, ROUTER_MAC, &Tuple { protocol, ..router }, &message)
        };
        let mut frame = error(&sent[0].1);
        assert_eq!(lab.send(OUTSIDE, &mut frame), Verdict::Send(INSIDE));
        let Ok(Packet::IcmpError(heard)) = parse(&frame) else { panic!("{:?}", parse(&frame)) };
        assert_eq!((heard.kind, heard.embedded), (IcmpErrorKind::PacketTooBig { mtu: 1_300 }, back));
        let later = lab.send(OUTSIDE, &mut error(&sent[1].1));
        assert_eq!(later, Verdict::Drop(DropReason::IcmpEmbeddedFragment), "it names no ports");
    }
}

/// Two clients behind one address of ours may have the same numbers; whoever cuts their packets further on must not mix them.
#[test]
fn datagrams_that_others_may_cut_get_numbers_of_ours_where_their_source_is() {
    for forwarding in MODES {
        let mut lab = Setup::new(Family::V4, forwarding, Protocol::Udp).lab();
        let mut seen = HashSet::new();
        let id = |frame: &[u8]| u16::from_be_bytes([frame[18], frame[19]]);
        for port in 40_000..40_010 {
            let forward = Tuple { src_port: port, ..Tuple::new(client(Family::V4), vip(Family::V4), PROTOCOL_UDP) };
            let question = uncut(OUTSIDE_MAC, ROUTER_MAC, &forward, &udp(&forward, b"question"));
            let (_, frame, at_server) = lab.relay(OUTSIDE, question);
            let is_ours = forwarding == Forwarding::FullNat;
            assert_eq!((id(&frame) == 0x1234, seen.insert(id(&frame))), (!is_ours, is_ours || port == 40_000));
            let (_, frame, _) = lab.client_sends(&forward, &udp(&forward, b"not to be cut"));
            assert_eq!(id(&frame), 0x1234);
            if forwarding != Forwarding::Dsr {
                let back = at_server.reversed();
                let (_, frame, _) = lab.relay(INSIDE, uncut(INSIDE_MAC, server_mac(80), &back, &udp(&back, b"answer")));
                assert_ne!(id(&frame), 0x1234);
            }
        }
        assert_eq!(lab.dropped(), []);
    }
}

#[test]
fn fragments_that_claim_to_come_from_a_server_come_from_where_the_server_is() {
    for family in FAMILIES {
        let mut lab = Setup::new(family, Forwarding::HalfNat, Protocol::Udp).lab();
        let forward = Tuple::new(client(family), vip(family), PROTOCOL_UDP);
        let (_, _, at_server) = lab.client_sends(&forward, &udp(&forward, b"question"));
        let back = at_server.reversed();
        let answer = fragments(&uncut(INSIDE_MAC, server_mac(80), &back, &udp(&back, &LONG)), 1_500, 77);
        let mut forged = fragments(&uncut(OUTSIDE_MAC, ROUTER_MAC, &back, &udp(&back, &[0x11; 5_000])), 1_480, 77);
        for fragment in &mut forged {
            assert_eq!(lab.send(OUTSIDE, fragment), Verdict::Drop(DropReason::ReturnPort));
        }
        let (port, whole, _) = lab.relay_cut(INSIDE, &answer);
        assert_eq!((port, sound(&whole)), (OUTSIDE, forward.reversed()));
    }
}

#[test]
fn fragments_of_one_packet_come_in_by_one_link() {
    for family in FAMILIES {
        let mut lab = Setup::new(family, Forwarding::FullNat, Protocol::Udp).lab();
        let forward = Tuple::new(client(family), vip(family), PROTOCOL_UDP);
        let question = fragments(&uncut(OUTSIDE_MAC, ROUTER_MAC, &forward, &udp(&forward, &LONG)), 1_500, 77);
        let mut forged =
            fragments(&uncut(INSIDE_MAC, server_mac(81), &forward, &udp(&forward, &[0x11; 5_000])), 1_480, 77);
        assert_eq!(lab.send(INSIDE, &mut forged[1]), Verdict::Kept);
        let (port, whole, _) = lab.relay_cut(OUTSIDE, &question);
        assert_eq!((port, whole.ends_with(&LONG)), (INSIDE, true));
    }
}
