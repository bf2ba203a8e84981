//! What hosts inside open themselves, and that leaves from an address of ours.

use std::collections::BTreeMap;

use towpath_config::model::{OutboundNat, RouterRule, RuleAction, RuleProtocol, Source};

use super::fragments::{fragments, uncut};
use super::*;
use crate::packet::{IcmpError, IcmpErrorKind};
use crate::plane::flows::OUTSIDE_V6_MAX;
use crate::steering::frame::{FanoutRule, steer};

/// A plane that routes, and that translates what networks inside open.
pub(super) fn natting(family: Family) -> Setup {
    let mut setup = Setup::new(family, Forwarding::HalfNat, Protocol::Tcp);
    setup.router.enabled = true;
    setup.outbound = Some(OutboundNat {
        name: "out".into(),
        from: vec![(ip("10.0.0.0"), 24), (ip("fd00::"), 64)],
        to: Vec::new(),
        except: Vec::new(),
        interface: None,
        source: Source::Pool(SourcePool {
            addresses: vec![ip("192.0.2.200"), ip("2001:db8::200")],
            port_low: 1024,
            port_high: 65_535,
            rest_ms: 60_000,
            towards: BTreeMap::new(),
        }),
    });
    setup
}

fn with_ports(mut setup: Setup, ports: std::ops::RangeInclusive<u16>) -> Setup {
    if let Some(OutboundNat { source: Source::Pool(pool), .. }) = &mut setup.outbound {
        (pool.port_low, pool.port_high) = (*ports.start(), *ports.end());
    }
    setup
}

fn ours(family: Family) -> Ip {
    host(family, "outside", 200).into()
}

fn icmp(family: Family) -> u8 {
    if family == Family::V4 { PROTOCOL_ICMP } else { PROTOCOL_ICMPV6 }
}

fn protocols(family: Family) -> [u8; 3] {
    [PROTOCOL_TCP, PROTOCOL_UDP, icmp(family)]
}

/// From server 80 to host 7 outside.
fn outwards(family: Family, protocol: u8) -> Tuple {
    let (src_port, dst_port) = match protocol {
        PROTOCOL_TCP | PROTOCOL_UDP => (50_000, 8080),
        _ => (77, 0),
    };
    let (src, dst) = (host(family, "inside", 80).into(), host(family, "clients", 7).into());
    Tuple { src, dst, src_port, dst_port, protocol }
}

/// An echo request, or with its identifier at the other end a reply.
fn echo(tuple: &Tuple, data: &[u8]) -> Vec<u8> {
    let is_v6 = tuple.protocol == PROTOCOL_ICMPV6;
    let (kind, id) = match (is_v6, tuple.src_port) {
        (false, 0) => (0, tuple.dst_port),
        (true, 0) => (129, tuple.dst_port),
        (false, id) => (8, id),
        (true, id) => (128, id),
    };
    let mut message = vec![kind, 0, 0, 0];
    message.extend(id.to_be_bytes());
    message.extend([0, 1]);
    message.extend(data);
    let sum = if is_v6 { pseudo(tuple, PROTOCOL_ICMPV6, message.len()) } else { 0 };
    let sum = checksum::transport(sum, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

fn payload(tuple: &Tuple, flags: u8, seq: u32, ack: u32, data: &[u8]) -> Vec<u8> {
    match tuple.protocol {
        PROTOCOL_TCP | PROTOCOL_UDP => packet(tuple, flags, seq, ack, data),
        _ => echo(tuple, data),
    }
}

fn error_about(quoted: &[u8], from: IpAddr, to: Ip, kind: (u8, u8)) -> (Tuple, Vec<u8>) {
    let is_v6 = !to.is_v4();
    let protocol = if is_v6 { PROTOCOL_ICMPV6 } else { PROTOCOL_ICMP };
    let tuple = Tuple { src: from.into(), dst: to, protocol, ..Tuple::default() };
    let mut message = vec![kind.0, kind.1, 0, 0, 0, 0, 0, 0];
    message.extend(quoted);
    let sum = if is_v6 { pseudo(&tuple, PROTOCOL_ICMPV6, message.len()) } else { 0 };
    let sum = checksum::transport(sum, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    (tuple, message)
}

impl Lab {
    fn leases(&self) -> u32 {
        let lanes = self.plane.snapshot.outbound.each().flat_map(|nat| nat.lanes().iter());
        lanes.flat_map(|lane| lane.pool.fill()).map(|fill| fill.leased).sum()
    }

    /// The first packet of a flow from inside and its answer; returns how it left.
    fn ask(&mut self, tuple: &Tuple) -> Tuple {
        let (port, _, left) = self.server_sends(tuple, &payload(tuple, SYN, 100, 0, b""));
        assert_eq!(port, OUTSIDE);
        let (port, _, back) = self.client_sends(&left.reversed(), &payload(&left.reversed(), SYN_ACK, 900, 101, b""));
        assert_eq!((port, back), (INSIDE, tuple.reversed()));
        left
    }
}

#[test]
fn what_servers_open_leaves_from_an_address_of_ours_and_comes_back() {
    for family in FAMILIES {
        for protocol in protocols(family) {
            let name = format!("{family:?} {protocol}");
            let mut lab = natting(family).lab();
            let there = outwards(family, protocol);
            let (port, frame, left) = lab.server_sends(&there, &payload(&there, SYN, 100, 0, b""));
            assert_eq!((port, macs(&frame)), (OUTSIDE, (ROUTER_MAC, OUTSIDE_MAC)), "{name}");
            assert_eq!(left, Tuple { src: ours(family), src_port: left.src_port, ..there }, "{name}");
            assert_eq!((lab.plane.half_open(), lab.leases()), (1, 1), "{name}");
            let back = left.reversed();
            let (port, frame, at_server) = lab.client_sends(&back, &payload(&back, SYN_ACK, 900, 101, b""));
            assert_eq!((port, macs(&frame)), (INSIDE, (server_mac(80), INSIDE_MAC)), "{name}");
            assert_eq!(at_server, there.reversed(), "{name}");
            let (.., again) = lab.server_sends(&there, &payload(&there, ACK, 101, 901, b"hello"));
            assert_eq!(again, left, "{name}: the same flow");
            assert_eq!((lab.plane.flows(), lab.plane.half_open()), (1, 0), "{name}");
            assert_eq!(lab.clerk.counted(ServiceCounter::Opened), 1, "{name}");
            assert_eq!((lab.clerk.opened, lab.clerk.connections()), (0, 0), "{name}: no real server is counted");
            assert_eq!(lab.read(PlaneCounter::FramesRouted), 0, "{name}");
            if protocol == PROTOCOL_TCP {
                lab.server_sends(&there, &tcp(&there, FIN_ACK, 106, 901, &[], b""));
                lab.client_sends(&back, &tcp(&back, FIN_ACK, 901, 107, &[], b""));
                lab.server_sends(&there, &tcp(&there, ACK, 107, 902, &[], b""));
                assert_eq!(lab.clerk.ends, [Termination::ClientClosed], "{name}");
                assert_eq!(lab.leases(), 0, "{name}: it closed first, and keeps TIME_WAIT itself");
            }
            lab.now = lab.now + 301_000;
            lab.expire();
            assert_eq!((lab.plane.flows(), lab.leases()), (0, 0), "{name}");
            assert_eq!(lab.clerk.counted(ServiceCounter::Closed), 1, "{name}");
            assert!(lab.out.is_empty(), "{name}");
        }
    }
}

#[test]
fn a_port_rests_when_the_host_outside_has_closed_first() {
    let mut lab = natting(Family::V4).lab();
    let there = outwards(Family::V4, PROTOCOL_TCP);
    let back = lab.ask(&there).reversed();
    lab.server_sends(&there, &tcp(&there, ACK, 101, 901, &[], b""));
    lab.client_sends(&back, &tcp(&back, FIN_ACK, 901, 101, &[], b""));
    lab.server_sends(&there, &tcp(&there, FIN_ACK, 101, 902, &[], b""));
    lab.client_sends(&back, &tcp(&back, ACK, 902, 102, &[], b""));
    assert_eq!((lab.clerk.ends.as_slice(), lab.leases()), (&[Termination::ServerClosed][..], 1));
    // The server begins anew from its port: the port outside goes on resting.
    let (.., left) = lab.server_sends(&there, &tcp(&there, SYN, 90_000, 0, &[], b""));
    assert_ne!(left.src_port, back.dst_port);
    assert_eq!(lab.leases(), 2);
    lab.now = lab.now + 61_000;
    lab.expire();
    assert_eq!(lab.leases(), 1);
}

#[test]
fn flows_live_as_long_as_the_rfcs_on_nat_ask_for() {
    let rows = [
        (PROTOCOL_TCP, 8080, 7_440),
        (PROTOCOL_UDP, 8080, 300),
        // RFC 4787 REQ-5 a.
        (PROTOCOL_UDP, 53, 30),
        (PROTOCOL_ICMP, 0, 60),
    ];
    for (protocol, dst_port, seconds) in rows {
        let mut lab = natting(Family::V4).lab();
        let there = Tuple { dst_port, ..outwards(Family::V4, protocol) };
        lab.ask(&there);
        if protocol == PROTOCOL_TCP {
            lab.server_sends(&there, &tcp(&there, ACK, 101, 901, &[], b""));
        }
        for (wait_ms, flows) in [(seconds * 1_000 - 200, 1), (400, 0)] {
            lab.now = lab.now + wait_ms;
            lab.expire();
            assert_eq!(lab.plane.flows(), flows, "{protocol} {dst_port}");
        }
        assert_eq!(lab.leases(), 0);
    }
    // Without an answer: RFC 4787 REQ-5 and RFC 5382 REQ-5.
    for (protocol, seconds) in [(PROTOCOL_TCP, 240), (PROTOCOL_UDP, 120), (PROTOCOL_ICMP, 60)] {
        let mut lab = natting(Family::V4).lab();
        let there = outwards(Family::V4, protocol);
        lab.server_sends(&there, &payload(&there, SYN, 100, 0, b""));
        for (wait_ms, flows) in [(seconds * 1_000 - 200, 1), (400, 0)] {
            lab.now = lab.now + wait_ms;
            lab.expire();
            assert_eq!(lab.plane.flows(), flows, "{protocol}");
        }
        assert_eq!(lab.leases(), 0);
    }
}

#[test]
fn everything_else_crosses_as_it_is() {
    let with = |change: fn(&mut OutboundNat)| {
        let mut setup = natting(Family::V4);
        change(setup.outbound.as_mut().unwrap());
        setup
    };
    let there = outwards(Family::V4, PROTOCOL_UDP);
    let rows: [(&str, Setup, Tuple, bool); 8] = [
        ("translated", natting(Family::V4), there, true),
        ("from elsewhere", with(|nat| nat.from = vec![(ip("10.9.0.0"), 16)]), there, false),
        ("to elsewhere", with(|nat| nat.to = vec![(ip("203.0.113.0"), 24)]), there, false),
        ("to there", with(|nat| nat.to = vec![(ip("198.51.100.0"), 24)]), there, true),
        ("but not to there", with(|nat| nat.except = vec![(ip("198.51.100.0"), 25)]), there, false),
        ("except others", with(|nat| nat.except = vec![(ip("198.51.100.128"), 25)]), there, true),
        ("by another interface", with(|nat| nat.interface = Some("inside".into())), there, false),
        ("by this interface", with(|nat| nat.interface = Some("outside".into())), there, true),
    ];
    for (name, setup, tuple, is_translated) in rows {
        let mut lab = setup.lab();
        let (.., left) = lab.server_sends(&tuple, &udp(&tuple, b"question"));
        assert_eq!(left.src == ours(Family::V4), is_translated, "{name}");
        assert_eq!(lab.plane.flows(), usize::from(is_translated), "{name}");
    }
    let mut lab = natting(Family::V4).lab();
    // Between servers, whatever their networks (trap 4): one is outside of `from`.
    let mut setup = with(|nat| nat.from = vec![(ip("10.0.0.80"), 32)]);
    setup.servers.push(Target { address: ip("198.51.100.7"), ..setup.servers[0].clone() });
    let mut beside = setup.lab();
    let (.., left) = beside.server_sends(&there, &udp(&there, b""));
    assert_eq!(left, there);
    // What is answered directly: later segments, an echo reply, other messages and protocols.
    let of_tcp = outwards(Family::V4, PROTOCOL_TCP);
    for flags in [SYN_ACK, ACK, FIN_ACK] {
        let (.., left) = lab.server_sends(&of_tcp, &tcp(&of_tcp, flags, 1, 1, &[], b""));
        assert_eq!(left, of_tcp);
    }
    for id in [0, 77] {
        let reply = Tuple { src_port: 0, dst_port: id, ..outwards(Family::V4, PROTOCOL_ICMP) };
        let (.., left) = lab.server_sends(&reply, &echo(&reply, b""));
        assert_eq!(left, reply);
    }
    for (protocol, content) in [(PROTOCOL_ICMP, vec![13, 0, 0, 0, 0, 9, 0, 1]), (47, vec![0; 8])] {
        let tuple = Tuple { protocol, src_port: 0, dst_port: 0, ..there };
        let mut frame = frame_of(INSIDE_MAC, server_mac(80), &tuple, &content);
        assert_eq!(lab.send(INSIDE, &mut frame), Verdict::Send(OUTSIDE));
        assert_eq!(octets(&tuple.src), &frame[26..30], "{protocol}");
    }
    assert_eq!((lab.plane.flows(), lab.read(PlaneCounter::FramesRouted)), (0, 7));
}

#[test]
fn what_is_not_all_read_goes_on_as_it_is_and_opens_nothing() {
    let without_checksum = |tuple: &Tuple| {
        let mut datagram = udp(tuple, b"tunnelled");
        datagram[6..8].fill(0);
        datagram
    };
    let of_code = |tuple: &Tuple| {
        let mut message = echo(tuple, b"");
        message[1] = 1;
        let is_v6 = tuple.protocol == PROTOCOL_ICMPV6;
        message[2..4].fill(0);
        let sum = if is_v6 { pseudo(tuple, PROTOCOL_ICMPV6, message.len()) } else { 0 };
        let sum = checksum::transport(sum, &message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        message
    };
    let datagram = outwards(Family::V6, PROTOCOL_UDP);
    let [v4, v6] = FAMILIES.map(|family| outwards(family, icmp(family)));
    for (tuple, content) in [(datagram, without_checksum(&datagram)), (v4, of_code(&v4)), (v6, of_code(&v6))] {
        let family = if tuple.src.is_v4() { Family::V4 } else { Family::V6 };
        let mut lab = natting(family).lab();
        for turn in 0..2 {
            let mut frame = frame_of(INSIDE_MAC, server_mac(80), &tuple, &content);
            let expected = frame[22..].to_vec();
            assert_eq!(lab.send(INSIDE, &mut frame), Verdict::Send(OUTSIDE), "{tuple:?} {turn} {:?}", lab.dropped());
            let at = if tuple.src.is_v4() { 4 } else { 0 };
            assert_eq!(frame[22 + at..], expected[at..], "{tuple:?}");
        }
        assert_eq!((lab.plane.flows(), lab.leases(), lab.made().len()), (0, 0, 0), "{tuple:?}");
    }
}

#[test]
fn what_answers_a_question_that_a_rule_lets_in_keeps_its_source() {
    for family in FAMILIES {
        for protocol in [PROTOCOL_UDP, icmp(family)] {
            let mut setup = natting(family);
            setup.router.rules = vec![RouterRule {
                action: RuleAction::Allow,
                from: Vec::new(),
                to: vec![(host(family, "inside", 80), if family == Family::V4 { 32 } else { 128 })],
                from_interface: Some("outside".into()),
                to_interface: None,
                protocol: RuleProtocol::Udp,
                ports: vec![(3478, 3478)],
            }];
            let mut lab = setup.lab();
            let there = outwards(family, protocol);
            let answer = Tuple { src_port: 3478, ..there };
            let (.., left) = lab.server_sends(&answer, &payload(&answer, 0, 0, 0, b""));
            let expected = if protocol == PROTOCOL_UDP { answer.src } else { ours(family) };
            assert_eq!(left.src, expected, "{protocol}");
            let (.., left) = lab.server_sends(&there, &payload(&there, 0, 0, 0, b""));
            assert_eq!(left.src, ours(family), "its own questions are none of that");
        }
    }
}

#[test]
fn errors_reach_who_sent_the_packet_from_whom_they_come() {
    for family in FAMILIES {
        for protocol in protocols(family) {
            let name = format!("{family:?} {protocol}");
            let mut lab = natting(family).lab();
            let there = outwards(family, protocol);
            let (_, frame, left) = lab.server_sends(&there, &payload(&there, SYN, 100, 0, b"data"));
            let time_exceeded = if family == Family::V4 { (11, 0) } else { (3, 0) };
            // From a router outside, which the one inside is to see: a traceroute.
            let router = host(family, "outside", 254);
            let (outer, message) = error_about(&frame[14..], router, ours(family), time_exceeded);
            let mut error = frame_of(OUTSIDE_MAC, ROUTER_MAC, &outer, &message);
            assert_eq!(lab.send(OUTSIDE, &mut error), Verdict::Send(INSIDE), "{name} {:?}", lab.dropped());
            let translated = read_error(&error);
            assert_eq!(translated.embedded, there, "{name}");
            let Tuple { src, dst, .. } = translated.parsed.tuple;
            assert_eq!((src, dst), (router.into(), there.src), "{name}");
            assert_eq!(translated.kind, IcmpErrorKind::TimeExceeded);
            // What the other end complains about, and what is behind us: its sender is the address that it knows.
            let back = left.reversed();
            let (_, frame, _) = lab.client_sends(&back, &payload(&back, SYN_ACK, 900, 101, b""));
            let unreachable = if family == Family::V4 { (3, 3) } else { (1, 4) };
            for from in [host(family, "inside", 80), host(family, "inside", 81)] {
                let (outer, message) = error_about(&frame[14..], from, back.src, unreachable);
                let mut error = frame_of(INSIDE_MAC, server_mac(80), &outer, &message);
                assert_eq!(lab.send(INSIDE, &mut error), Verdict::Send(OUTSIDE), "{name} {:?}", lab.dropped());
                let translated = read_error(&error);
                assert_eq!(translated.embedded, back, "{name}");
                let Tuple { src, dst, .. } = translated.parsed.tuple;
                assert_eq!((src, dst), (ours(family), back.src), "{name} from {from}");
            }
            assert_eq!(lab.read(PlaneCounter::Errors), 3, "{name}");
            // About none of them.
            let stray = Tuple { src_port: left.src_port ^ 1, ..left };
            let quoted = ip_packet(&stray, protocol, 64, &payload(&stray, ACK, 1, 1, b""));
            let (outer, message) = error_about(&quoted, router, ours(family), time_exceeded);
            let verdict = lab.send(OUTSIDE, &mut frame_of(OUTSIDE_MAC, ROUTER_MAC, &outer, &message));
            assert_eq!(verdict, Verdict::Drop(DropReason::IcmpErrorStray), "{name}");
        }
    }
}

/// An ICMP error all of whose checksums are right, that of the quoted packet too.
fn read_error(frame: &[u8]) -> IcmpError {
    let Ok(Packet::IcmpError(error)) = parse(frame) else { panic!("{:?}", parse(frame)) };
    let quoted = &frame[usize::from(error.parsed.payload)..error.parsed.end as usize];
    assert_eq!(sound(&ethernet(OUTSIDE_MAC, INSIDE_MAC, error.parsed.family == Family::V4, quoted)), error.embedded);
    error
}

#[test]
fn fragments_leave_and_come_back_as_fragments() {
    for family in FAMILIES {
        for protocol in [PROTOCOL_UDP, icmp(family)] {
            let name = format!("{family:?} {protocol}");
            let mut lab = natting(family).lab();
            let there = outwards(family, protocol);
            let long = vec![0x5a; 4_000];
            let frame = uncut(INSIDE_MAC, server_mac(80), &there, &payload(&there, 0, 0, 0, &long));
            let (port, whole, octets) = lab.relay_cut(INSIDE, &fragments(&frame, 1_400, 5));
            let left = sound(&whole);
            assert_eq!((port, left.src, octets.len()), (OUTSIDE, ours(family), 3), "{name}");
            let back = left.reversed();
            let frame = uncut(OUTSIDE_MAC, ROUTER_MAC, &back, &payload(&back, 0, 0, 0, &long));
            let (port, whole, _) = lab.relay_cut(OUTSIDE, &fragments(&frame, 1_400, 6));
            assert_eq!((port, sound(&whole)), (INSIDE, there.reversed()), "{name}");
            assert_eq!(lab.plane.flows(), 1, "{name}");
        }
    }
}

#[test]
fn without_a_port_nothing_is_opened_and_who_asks_is_told() {
    for family in FAMILIES {
        for protocol in protocols(family) {
            let name = format!("{family:?} {protocol}");
            let mut setup = with_ports(natting(family), 4_000..=4_001);
            setup.settings.half_open_per_source_max = 8;
            let mut lab = setup.lab();
            let there = outwards(family, protocol);
            let from = |n: u16| Tuple { src_port: there.src_port + n, ..there };
            let ports: Vec<u16> = (0..2).map(|n| lab.ask(&from(n)).src_port).collect();
            assert_eq!(ports.iter().collect::<HashSet<_>>().len(), 2, "{name}");
            let refused = from(2);
            let mut frame = frame_of(INSIDE_MAC, server_mac(80), &refused, &payload(&refused, SYN, 100, 0, b""));
            assert_eq!(lab.send(INSIDE, &mut frame), Verdict::Drop(DropReason::PortsExhausted), "{name}");
            assert_eq!(lab.clerk.ends, [Termination::OutOfSourcePorts], "{name}");
            let [(port, told)] = &lab.made()[..] else { panic!("{name}: {:?}", lab.made()) };
            assert_eq!(*port, INSIDE);
            match protocol {
                PROTOCOL_TCP => assert_eq!(sound(told), refused.reversed(), "{name}"),
                _ => {
                    let prohibited = if family == Family::V4 { [3, 13] } else { [1, 1] };
                    let error = read_error(told);
                    assert_eq!(error.embedded, refused, "{name}");
                    assert_eq!(told[usize::from(error.parsed.l4)..][..2], prohibited, "{name}: RFC 5508 REQ-8");
                }
            }
            assert_eq!((lab.plane.flows(), lab.leases()), (2, 2), "{name}");
        }
    }
}

#[test]
fn whom_flows_over_ipv6_are_to_cannot_use_up_the_places_of_our_own_addresses() {
    let mut setup = natting(Family::V6);
    setup.settings = PlaneSettings { flows_max: 20_000, half_open_max: 40_000, ..setup.settings };
    let mut lab = setup.lab();
    let mut refused = 0;
    for n in 0..OUTSIDE_V6_MAX as u16 + 10 {
        let to = ip(&format!("2001:db8:c::{:x}:{:x}", 1 + n / 1_000, n));
        let there = Tuple { dst: to.into(), ..outwards(Family::V6, PROTOCOL_UDP) };
        let mut frame = frame_of(INSIDE_MAC, server_mac(80), &there, &udp(&there, b""));
        match lab.send(INSIDE, &mut frame) {
            Verdict::Send(OUTSIDE) => {}
            verdict => {
                assert_eq!(verdict, Verdict::Drop(DropReason::FlowsFull));
                refused += 1;
            }
        }
    }
    assert_eq!((lab.plane.flows(), refused), (OUTSIDE_V6_MAX, 10));
    lab.open(Family::V6, 40_000);
    lab.now = lab.now + 121_000;
    lab.expire();
    assert_eq!((lab.plane.flows(), lab.plane.flows.outside_v6, lab.leases()), (1, 0, 0));
}

#[test]
fn flows_over_ipv6_that_are_over_give_way_to_others() {
    let mut setup = natting(Family::V6);
    setup.settings = PlaneSettings { flows_max: 20_000, half_open_max: 40_000, ..setup.settings };
    let mut lab = setup.lab();
    let over = outwards(Family::V6, PROTOCOL_TCP);
    let back = lab.ask(&over).reversed();
    for n in 1..OUTSIDE_V6_MAX as u16 {
        let there = Tuple { src_port: n, ..outwards(Family::V6, PROTOCOL_UDP) };
        lab.server_sends(&there, &udp(&there, b""));
    }
    let next = |n: u16| Tuple { src_port: 100 + n, ..over };
    let tries = |lab: &mut Lab, n: u16| {
        let there = next(n);
        lab.send(INSIDE, &mut frame_of(INSIDE_MAC, server_mac(80), &there, &tcp(&there, SYN, 100, 0, &[], b"")))
    };
    lab.server_sends(&over, &tcp(&over, ACK, 101, 901, &[], b""));
    assert_eq!(tries(&mut lab, 0), Verdict::Drop(DropReason::FlowsFull), "it lives");
    lab.server_sends(&over, &tcp(&over, FIN_ACK, 101, 901, &[], b""));
    lab.client_sends(&back, &tcp(&back, FIN_ACK, 901, 102, &[], b""));
    lab.server_sends(&over, &tcp(&over, ACK, 102, 902, &[], b""));
    assert_eq!(lab.plane.flows(), OUTSIDE_V6_MAX);
    assert_eq!(tries(&mut lab, 1), Verdict::Send(OUTSIDE));
    assert_eq!(tries(&mut lab, 2), Verdict::Drop(DropReason::FlowsFull));
    assert_eq!((lab.plane.flows(), lab.plane.flows.outside_v6), (OUTSIDE_V6_MAX, OUTSIDE_V6_MAX));
}

/// Several planes, and the kernel that steers.
struct Workers {
    planes: Vec<Plane>,
    clerk: Clerk,
    out: Outbox,
    rules: Vec<FanoutRule>,
    seed: u32,
    table: SteeringTable,
    now: Now,
    handed: usize,
}

impl Workers {
    fn new(setup: &Setup, workers: usize) -> Workers {
        let setup = Setup { workers, ..setup.clone() };
        let snapshot = setup.snapshot(setup.service());
        let now = Now(1_000_000);
        let plane = |worker: usize| {
            let settings = PlaneSettings { worker: WorkerId(worker as u8), ..setup.settings };
            Plane::new(&settings, Arc::clone(&snapshot), Arc::new(setup.network.clone()), now)
        };
        let vip = FanoutRule::vip(vip(setup.family).ip().into());
        Workers {
            planes: (0..workers).map(plane).collect(),
            clerk: Clerk::default(),
            out: Outbox::new(64, 65_536),
            rules: vec![vip, FanoutRule::snat(ours(setup.family))],
            seed: setup.settings.steering_seed,
            table: SteeringTable::even(workers),
            now,
            handed: 0,
        }
    }

    fn arrive(&mut self, port: PortId, frame: &mut [u8]) -> (PortId, Tuple) {
        let mut at = self.table.worker_of(steer(frame, self.seed, &self.rules)).index();
        let mut by = None;
        for _ in 0..2 {
            let mut frames =
                [Frame { bytes: &mut *frame, front: &mut [], port, checksum: Checksum::Complete, segment_bytes: 0 }];
            let mut verdicts = Vec::new();
            let plane = &mut self.planes[at];
            match by {
                None => plane.process(self.now, &mut frames, &mut verdicts, &mut self.clerk, &mut self.out),
                Some(by) => {
                    plane.process_handed(self.now, by, &mut frames, &mut verdicts, &mut self.clerk, &mut self.out);
                }
            }
            match verdicts[0] {
                Verdict::Send(port) => return (port, sound(frame)),
                Verdict::HandOff(to) => {
                    by = Some(WorkerId(at as u8));
                    at = to.index();
                    self.handed += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("handed on for ever");
    }
}

#[test]
fn whoever_gets_an_answer_it_reaches_its_flow() {
    for family in FAMILIES {
        for protocol in protocols(family) {
            let name = format!("{family:?} {protocol}");
            let mut setup = with_ports(natting(family), 4_000..=4_011);
            setup.settings.half_open_max = 64;
            let mut workers = Workers::new(&setup, 3);
            for n in 0..12 {
                let far = outwards(family, protocol);
                let dst_port = if far.dst_port == 0 { 0 } else { far.dst_port + n };
                let there = Tuple { src_port: far.src_port + n, dst_port, ..far };
                let mut frame = frame_of(INSIDE_MAC, server_mac(80), &there, &payload(&there, SYN, 100, 0, b""));
                let (port, left) = workers.arrive(INSIDE, &mut frame);
                assert_eq!((port, left.src), (OUTSIDE, ours(family)), "{name} {n}");
                let back = left.reversed();
                let mut frame = frame_of(OUTSIDE_MAC, ROUTER_MAC, &back, &payload(&back, SYN_ACK, 900, 101, b""));
                assert_eq!(workers.arrive(OUTSIDE, &mut frame), (INSIDE, there.reversed()), "{name} {n}");
                let mut frame = frame_of(INSIDE_MAC, server_mac(80), &there, &payload(&there, ACK, 101, 901, b""));
                assert_eq!(workers.arrive(INSIDE, &mut frame), (OUTSIDE, left), "{name} {n}");
            }
            let flows: Vec<usize> = workers.planes.iter().map(Plane::flows).collect();
            assert_eq!(flows.iter().sum::<usize>(), 12, "{name}");
            // Pings are all at one; of the others, ports are leased outside of their homes.
            let is_ping = protocol == icmp(family);
            assert_eq!((flows[0] == 12, workers.handed == 0), (is_ping, is_ping), "{name}: {flows:?}");
        }
    }
}

#[test]
fn flows_from_inside_are_carried_by_the_fast_path_as_others_are() {
    let mut lab = natting(Family::V4).lab();
    fast::enter(&mut lab, 8);
    let there = outwards(Family::V4, PROTOCOL_TCP);
    let left = lab.ask(&there);
    lab.server_sends(&there, &tcp(&there, ACK, 101, 901, &[], b""));
    assert_eq!(lab.plane.fast_table().map(|table| table.open()), Some(1));
    let mut frame = frame_of(INSIDE_MAC, server_mac(80), &there, &tcp(&there, ACK, 101, 901, &[], b"more"));
    assert_eq!(fast::carry(&lab, INSIDE, &mut frame, Checksum::Complete, 0), Some(OUTSIDE));
    assert_eq!(sound(&frame), left);
}
