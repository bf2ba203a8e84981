//! Transits: what the kernel carries of a routed connection is as if the plane had routed it.

use towpath_config::model::{RouterRule, RuleAction, RuleProtocol};

use super::fast::{carry, enter};
use super::straight::{Connections, Step, batch, frame, seen, step};
use super::*;

const ROOM: u32 = 64;
/// Segments after which a direction is entered.
const SEGMENTS: usize = 3;

fn routing(forwarding: Forwarding) -> Setup {
    let mut setup = Setup::new(Family::V4, forwarding, Protocol::Tcp);
    setup.router.enabled = true;
    setup
}

fn lab() -> Lab {
    let mut lab = routing(Forwarding::HalfNat).lab();
    enter(&mut lab, ROOM);
    lab
}

/// From a port of the client's straight to the server.
fn direct(port: u16) -> Tuple {
    let client = SocketAddr::new(client(Family::V4).ip(), port);
    Tuple::new(client, server(Family::V4), PROTOCOL_TCP)
}

fn segment(tuple: &Tuple, flags: u8, data: &[u8]) -> Vec<u8> {
    let payload = tcp(tuple, flags, 7, 9, &[], data);
    match tuple.src == client(Family::V4).ip().into() {
        true => frame_of(OUTSIDE_MAC, ROUTER_MAC, tuple, &payload),
        false => frame_of(INSIDE_MAC, server_mac(80), tuple, &payload),
    }
}

fn arrives_by(tuple: &Tuple) -> PortId {
    if tuple.src == client(Family::V4).ip().into() { OUTSIDE } else { INSIDE }
}

impl Lab {
    fn routes(&mut self, tuple: &Tuple, flags: u8) -> Verdict {
        self.send(arrives_by(tuple), &mut segment(tuple, flags, b"routed"))
    }

    /// Has the kernel carry a segment, if it does.
    fn transits(&self, tuple: &Tuple) -> bool {
        let mut carried = segment(tuple, ACK, b"carried");
        let to = carry(self, arrives_by(tuple), &mut carried, Checksum::Complete, 0);
        if to.is_some() {
            assert_eq!(sound(&carried), *tuple, "addresses and ports as they were");
        }
        to.is_some()
    }

    /// Sends what it takes for a direction to be entered.
    fn enter_transit(&mut self, tuple: &Tuple) {
        for _ in 0..SEGMENTS {
            assert!(!self.transits(tuple));
            assert!(matches!(self.routes(tuple, ACK), Verdict::Send(_)));
        }
    }

    /// Flows and transits in the fast path.
    fn fast_open(&self) -> u32 {
        self.plane.fast_table().expect("it has a fast path").open()
    }

    /// How many were entered, and how many of them left.
    fn transits_left(&self) -> [u64; 2] {
        [PlaneCounter::FastTransitsEntered, PlaneCounter::FastTransitsLeft].map(|counter| self.read(counter))
    }
}

/// Two planes that route alike, and connections that pass them: one to where a rule denies.
fn twins(rules: &[RouterRule]) -> ([Lab; 2], Connections) {
    let mut setup = routing(Forwarding::HalfNat);
    setup.router.rules = rules.to_vec();
    let connections = (1..=3).map(|port| (direct(port), direct(port).reversed())).collect();
    ([setup.lab(), setup.lab()], connections)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_000) })]

    #[test]
    fn a_plane_that_has_transits_carried_routes_the_same(
        is_denied in any::<bool>(),
        steps in prop::collection::vec(step(), 1..12),
    ) {
        let denied = RouterRule {
            action: RuleAction::Deny,
            from: Vec::new(),
            to: Vec::new(),
            from_interface: Some("inside".into()),
            to_interface: None,
            protocol: RuleProtocol::Any,
            ports: Vec::new(),
        };
        let rules = if is_denied { vec![denied] } else { Vec::new() };
        let (mut labs, connections) = twins(&rules);
        enter(&mut labs[0], ROOM);
        for step in steps {
            labs.iter_mut().for_each(|lab| lab.out.clear());
            match step {
                Step::Batch(specs) => {
                    // So often that many are carried.
                    for spec in specs.iter().flat_map(|spec| [spec; SEGMENTS + 1]) {
                        let one = frame(&connections, spec);
                        let [fast, plain] = [0, 1].map(|which| {
                            let lab = &mut labs[which];
                            let (port, mut bytes, checksum, segment) = one.clone();
                            let carried = match which {
                                0 => carry(lab, port, &mut bytes, checksum, segment),
                                _ => None,
                            };
                            if let Some(to) = carried {
                                return (vec![Verdict::Send(to)], bytes);
                            }
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
                Step::Network(known, mtu) => labs.iter_mut().for_each(|lab| {
                    lab.plane.adopt_network(Arc::new(network(mtu, known)), &mut lab.out);
                }),
                Step::Pass(ms) => labs.iter_mut().for_each(|lab| lab.now = lab.now + ms),
            }
            prop_assert_eq!(labs[0].made(), labs[1].made());
        }
        for lab in &mut labs {
            // All transits are silent by then, and what they have carried is counted.
            for _ in 0..2 {
                lab.now = lab.now + 30_000;
                lab.out.clear();
                lab.plane.expire(lab.now, 1_000, &mut lab.clerk, &mut lab.out);
            }
        }
        prop_assert_eq!(labs[0].fast_open(), 0);
        for lab in &mut labs {
            for counter in [
                PlaneCounter::FramesFast,
                PlaneCounter::FastTransitsEntered,
                PlaneCounter::FastTransitsLeft,
            ] {
                lab.plane.counts.set(counter, 0);
            }
            lab.plane.flows.fast = None;
        }
        prop_assert_eq!(seen(&labs[0]), seen(&labs[1]));
    }
}

#[test]
fn the_kernel_carries_a_routed_direction_after_a_few_segments_until_it_ends() {
    let mut lab = lab();
    let (there, back) = (direct(40_000), direct(40_000).reversed());
    lab.routes(&there, SYN);
    lab.routes(&back, SYN_ACK);
    lab.enter_transit(&there);
    assert!(lab.transits(&there) && !lab.transits(&back), "each direction by itself");
    lab.enter_transit(&back);
    assert!(lab.transits(&there) && lab.transits(&back));
    assert_eq!((lab.plane.flows(), lab.fast_open()), (0, 2));
    lab.routes(&there, FIN_ACK);
    assert!(!lab.transits(&there) && lab.transits(&back), "the other side may go on for long");
    lab.routes(&back, RST | ACK);
    assert_eq!((lab.transits(&back), lab.fast_open()), (false, 0));
    lab.expire();
    let routed = [PlaneCounter::FramesRouted, PlaneCounter::FramesFast, PlaneCounter::Frames].map(|n| lab.read(n));
    assert_eq!(routed, [10 + 4, 4, 10 + 4]);
    let octets = 54 * 14 + 6 * 10 + 7 * 4;
    assert_eq!((lab.read(PlaneCounter::OctetsRouted), lab.transits_left()), (octets, [2, 2]));
}

#[test]
fn what_is_carried_is_counted_within_a_second_and_what_is_silent_goes() {
    let mut lab = lab();
    let there = direct(40_000);
    lab.enter_transit(&there);
    assert!(lab.transits(&there));
    lab.now = lab.plane.next_due().expect("a walk");
    lab.expire();
    assert_eq!((lab.read(PlaneCounter::FramesRouted), lab.read(PlaneCounter::FramesFast)), (4, 1));
    lab.now = lab.now + 8_000;
    lab.expire();
    assert!(lab.transits(&there));
    lab.now = lab.now + 8_000;
    lab.expire();
    assert!(lab.transits(&there), "used a while ago");
    for _ in 0..2 {
        lab.now = lab.now + 11_000;
        lab.expire();
    }
    assert_eq!((lab.transits(&there), lab.fast_open(), lab.transits_left()), (false, 0, [1, 1]));
    assert_eq!((lab.read(PlaneCounter::FramesRouted), lab.plane.next_due()), (6, None));
}

#[test]
fn whatever_could_change_the_decision_has_it_made_anew() {
    type Change = (&'static str, bool, fn(&mut Lab));
    let changes: [Change; 6] = [
        ("the same network again", true, |lab| lab.plane.adopt_network(Arc::new(network(1500, true)), &mut lab.out)),
        ("a snapshot", false, |lab| {
            let snapshot = Arc::clone(&lab.plane.snapshot);
            lab.plane.adopt_snapshot(snapshot);
        }),
        ("another MTU", false, |lab| lab.plane.adopt_network(Arc::new(network(1400, true)), &mut lab.out)),
        ("a station that is gone", false, |lab| {
            lab.plane.adopt_network(Arc::new(network(1500, false)), &mut lab.out);
        }),
        ("another name", false, |lab| {
            let mut other = network(1500, true);
            other.ports[0].name = "west".into();
            lab.plane.adopt_network(Arc::new(other), &mut lab.out);
        }),
        ("an address more", false, |lab| {
            let mut other = network(1500, true);
            other.ports[1].addresses.push((ip("10.0.0.80").into(), 24));
            lab.plane.adopt_network(Arc::new(other), &mut lab.out);
        }),
    ];
    for (what, is_kept, change) in changes {
        let mut lab = lab();
        let there = direct(40_000);
        lab.enter_transit(&there);
        assert!(lab.transits(&there));
        change(&mut lab);
        assert_eq!(lab.transits(&there), is_kept, "{what}");
    }
}

#[test]
fn a_forgotten_transit_is_entered_anew() {
    let mut lab = lab();
    let there = direct(40_000);
    lab.enter_transit(&there);
    lab.plane.adopt_snapshot(Arc::clone(&lab.plane.snapshot));
    lab.enter_transit(&there);
    assert!(lab.transits(&there));
    assert_eq!(lab.fast_open(), 1);
    // What was on its way when it was entered leaves it there.
    for _ in 0..8 {
        lab.routes(&there, ACK);
    }
    assert!(lab.transits(&there));
    lab.expire();
    assert_eq!(lab.transits_left(), [2, 1]);
}

/// Over the other port, with a source check that allows it no more than the first one.
#[test]
fn a_direction_that_comes_in_elsewhere_is_carried_from_there() {
    let mut setup = routing(Forwarding::HalfNat);
    setup.router.source_check = false;
    let mut lab = setup.lab();
    enter(&mut lab, ROOM);
    let there = direct(40_000);
    lab.enter_transit(&there);
    let from_inside = || frame_of(INSIDE_MAC, ROUTER_MAC, &there, &tcp(&there, ACK, 1, 1, &[], b"x"));
    for _ in 0..SEGMENTS {
        assert_eq!(carry(&lab, INSIDE, &mut from_inside(), Checksum::Complete, 0), None);
        assert_eq!(lab.send(INSIDE, &mut from_inside()), Verdict::Send(INSIDE));
    }
    assert_eq!(carry(&lab, INSIDE, &mut from_inside(), Checksum::Complete, 0), Some(INSIDE));
    assert!(!lab.transits(&there) && lab.fast_open() == 1);
}

#[test]
fn transits_have_half_of_the_room_and_flows_the_rest() {
    let mut lab = routing(Forwarding::HalfNat).lab();
    enter(&mut lab, 8);
    for port in 1..=8 {
        for _ in 0..SEGMENTS {
            lab.routes(&direct(port), ACK);
        }
        // Not the same one again at once.
        lab.now = lab.now + 200;
    }
    assert_eq!((1..=8).filter(|&port| lab.transits(&direct(port))).count(), 4);
    let (forward, _) = lab.open(Family::V4, 50_000);
    assert_eq!(lab.fast_open(), 5);
    lab.client_sends(&forward, &tcp(&forward, ACK, 101, 901, &[], b"x"));
    lab.expire();
    assert_eq!((lab.read(PlaneCounter::FastTransitsRefused), lab.read(PlaneCounter::FastFlowsRefused)), (4, 0));
    assert_eq!((lab.read(PlaneCounter::FastFlowsEntered), lab.read(PlaneCounter::FastFlowsLeft)), (1, 0));
}

#[test]
fn one_segment_each_enters_nothing() {
    let mut lab = lab();
    for port in 1..=4_000 {
        lab.routes(&direct(port), ACK);
    }
    lab.expire();
    assert_eq!((lab.fast_open(), lab.transits_left()), (0, [0, 0]));
}

/// The same ports directly first, and then by the VIP.
#[test]
fn the_answers_of_a_new_flow_are_not_routed_as_they_are() {
    let mut lab = lab();
    let direct = Tuple::new(client(Family::V4), server(Family::V4), PROTOCOL_TCP);
    let answers = direct.reversed();
    lab.enter_transit(&answers);
    assert!(lab.transits(&answers));
    let (forward, back) = lab.open(Family::V4, client(Family::V4).port());
    assert_eq!(back, answers, "the server sees the client itself");
    let mut answer = frame_of(INSIDE_MAC, server_mac(80), &back, &tcp(&back, ACK, 901, 101, &[], b"translated"));
    assert_eq!(carry(&lab, INSIDE, &mut answer, Checksum::Complete, 0), Some(OUTSIDE));
    assert_eq!(sound(&answer), forward.reversed());
}

/// What is left of a connection that nobody has any more is routed untranslated, until the host opens it again.
#[test]
fn what_a_host_inside_sends_is_translated_from_its_opening_on() {
    let mut lab = outbound::natting(Family::V4).lab();
    enter(&mut lab, ROOM);
    let out = direct(50_000).reversed();
    lab.enter_transit(&out);
    assert!(lab.transits(&out));
    let opening = tcp(&out, SYN, 100, 0, &[], b"");
    lab.send(INSIDE, &mut frame_of(INSIDE_MAC, server_mac(80), &out, &opening));
    assert!(!lab.transits(&out), "the kernel would send on what the server says as it is");
}

#[test]
fn what_is_not_plain_tcp_over_ipv4_enters_nothing() {
    let mut lab = lab();
    let there = direct(40_000);
    let udp_there = Tuple { protocol: PROTOCOL_UDP, ..there };
    let v6 = Tuple::new(client(Family::V6), server(Family::V6), PROTOCOL_TCP);
    let in_by = |tuple: &Tuple, payload: &[u8]| frame_of(OUTSIDE_MAC, ROUTER_MAC, tuple, payload);
    let frames = [
        in_by(&udp_there, &udp(&udp_there, b"datagram")),
        in_by(&v6, &tcp(&v6, ACK, 1, 1, &[], b"x")),
        in_by(&there, &tcp(&there, ACK | TcpFlags::URG.0, 1, 1, &[], b"x")),
        in_by(&there, &tcp(&there, SYN, 1, 1, &[], b"")),
        in_by(&there, &tcp(&there, FIN_ACK, 1, 1, &[], b"")),
    ];
    for frame in frames {
        for _ in 0..2 * SEGMENTS {
            assert_eq!(lab.send(OUTSIDE, &mut frame.clone()), Verdict::Send(INSIDE));
        }
    }
    assert_eq!(lab.fast_open(), 0);
    // Of a DSR service, what its server answers.
    let mut lab = routing(Forwarding::Dsr).lab();
    enter(&mut lab, ROOM);
    let answer = Tuple::new(vip(Family::V4), client(Family::V4), PROTOCOL_TCP);
    for _ in 0..2 * SEGMENTS {
        assert!(matches!(lab.routes(&answer, ACK), Verdict::Send(OUTSIDE)));
    }
    assert_eq!(lab.fast_open(), 0);
}

#[test]
fn a_super_packet_is_carried_where_its_segments_fit() {
    let mut lab = lab();
    let there = direct(40_000);
    lab.enter_transit(&there);
    let large = segment(&there, ACK, &[7; 9_000]);
    for (segment_bytes, to) in [(1_460, Some(INSIDE)), (1_461, None), (0, None)] {
        assert_eq!(carry(&lab, OUTSIDE, &mut large.clone(), Checksum::Partial, segment_bytes), to);
    }
}
