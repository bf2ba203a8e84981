//! The straight path does what the path for everything does: two planes get the same frames, and one of them has to take the long way.

use super::*;
use crate::flow::SeenAt;
use crate::packet::straight::read_straight;
use crate::plane::flows::{Stage, State};

const PSH: u8 = TcpFlags::PSH.0;
const URG: u8 = TcpFlags::URG.0;
const ECE: u8 = 0x40;

/// Mostly what goes straight.
const FLAGS: [u8; 16] = [
    ACK,
    ACK,
    ACK,
    ACK | PSH,
    ACK | PSH,
    ACK | PSH,
    ACK | ECE,
    ACK | URG,
    0,
    PSH,
    FIN_ACK,
    FIN_ACK,
    RST,
    RST | ACK,
    SYN,
    SYN_ACK,
];
/// How far a number is from the one that is due.
const OFFSETS: [u32; 12] = [0, 0, 0, 1, 64, 1_400, 65_000, 70_000, 1 << 20, 1 << 31, !0, !70_000 + 1];
const DATA: [usize; 5] = [0, 1, 64, 500, 1_400];
const TTLS: [u8; 5] = [64, 255, 2, 1, 0];
const SEGMENTS: [u16; 4] = [0, 0, 500, 1_460];
const CHECKSUMS: [Checksum; 4] = [Checksum::Complete, Checksum::Partial, Checksum::Partial, Checksum::Absent];

/// What is bent in a frame: which octet, to what, and whether the IPv4 checksum follows.
type Bend = (u8, u8, bool);

/// A frame: connection, direction, flags, sequence and acknowledgment number, data, time to live, checksum, segments, bends, octets behind its end (or
/// missing).
pub(super) type Spec = ((u8, bool, u8), (u8, u8, u8), (u8, u8, u8), Vec<Bend>, i8);

pub(super) fn spec() -> impl Strategy<Value = Spec> {
    let bend = (0..60_u8, any::<u8>(), any::<bool>());
    let behind = prop_oneof![6 => Just(0_i8), 1 => any::<i8>()];
    // The first of each list is what goes straight: three in four.
    let rarely = || prop_oneof![3 => Just(0_u8), 1 => any::<u8>()];
    (
        (any::<u8>(), any::<bool>(), prop_oneof![3 => 0..6_u8, 1 => any::<u8>()]),
        (rarely(), rarely(), any::<u8>()),
        (rarely(), any::<u8>(), rarely()),
        prop_oneof![3 => prop::collection::vec(bend.clone(), 0..1), 1 => prop::collection::vec(bend, 1..3)],
        behind,
    )
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Batch(Vec<Spec>),
    Expire,
    Network(bool, u32),
    Pass(u64),
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop::collection::vec(spec(), 1..BATCH_MAX).prop_map(Step::Batch),
        1 => Just(Step::Expire),
        1 => (any::<bool>(), prop_oneof![Just(1500), Just(600)]).prop_map(|(known, mtu)| Step::Network(known, mtu)),
        1 => prop_oneof![Just(70), Just(5_000), Just(61_000), Just(700_000)].prop_map(Step::Pass),
    ]
}

fn one<T: Copy>(of: &[T], number: u8) -> T {
    of[usize::from(number) % of.len()]
}

/// Connections, each as the client sends and as the server answers.
pub(super) type Connections = Vec<(Tuple, Tuple)>;

pub(super) fn frame(
    connections: &Connections,
    (who, what, how, bends, behind): &Spec,
) -> (PortId, Vec<u8>, Checksum, u16) {
    let (connection, is_forward, flags) = *who;
    let (forward, back) = one(connections, connection);
    let (tuple, (seq, ack), macs, port) = match is_forward {
        true => (forward, (101, 901), (OUTSIDE_MAC, ROUTER_MAC), OUTSIDE),
        false => (back, (901, 101), (INSIDE_MAC, server_mac(80)), INSIDE),
    };
    let (seq, ack) = (one(&OFFSETS, what.0).wrapping_add(seq), one(&OFFSETS, what.1).wrapping_add(ack));
    let segment = tcp(&tuple, one(&FLAGS, flags), seq, ack, &[], &vec![0x5a; one(&DATA, what.2)]);
    let packet = ip_packet(&tuple, PROTOCOL_TCP, one(&TTLS, how.0), &segment);
    let mut frame = ethernet(macs.0, macs.1, true, &packet);
    for &(at, octet, follows) in bends {
        frame[usize::from(at) % 54] = octet;
        if follows {
            frame[24..26].fill(0);
            let sum = checksum::of(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
    }
    frame.resize(frame.len().saturating_add_signed(isize::from(*behind)), 0);
    (port, frame, one(&CHECKSUMS, how.1), one(&SEGMENTS, how.2))
}

/// What there is to see of a plane and of what it has told.
pub(super) fn seen(lab: &Lab) -> impl PartialEq + std::fmt::Debug + use<> {
    let Lab { plane, clerk, .. } = lab;
    let flows = [Stage::HalfOpen, Stage::Established].map(|stage| {
        let table = plane.flows.table(stage);
        let words = |state: &State| state.tcp().to_words();
        let ids = (0..table.flows_max()).filter_map(|slot| table.at(slot));
        ids.map(|id| (id, table.path(id), table.state(id).map(words), table.class(id), table.seen_tick(id)))
            .collect::<Vec<_>>()
    });
    let counters =
        clerk.counters.iter().map(|(counter, n)| (*counter, *n)).collect::<std::collections::BTreeMap<_, _>>();
    (
        (flows, plane.counts.drops, plane.counts.counters),
        (counters, clerk.ends.clone(), clerk.opened, clerk.connections()),
        (lab.made(), plane.next_due()),
    )
}

/// Two planes alike, the second without the straight path, and some open connections: of the first two of them the windows are scaled.
pub(super) fn twins(forwarding: Forwarding) -> ([Lab; 2], Connections) {
    let setup = Setup::new(Family::V4, forwarding, Protocol::Tcp);
    let mut connections = Connections::new();
    let labs = [true, false].map(|is_straight| {
        let mut lab = setup.lab();
        if !is_straight {
            lab.plane.hops.forget_stations();
        }
        connections.clear();
        for port in 1..=4 {
            let scale: &[u8] = if port <= 2 { &[3, 3, 3, 1] } else { &[] };
            let forward = Tuple::new(SocketAddr::new(client(Family::V4).ip(), port), vip(Family::V4), PROTOCOL_TCP);
            let (_, _, at_server) = lab.client_sends(&forward, &tcp(&forward, SYN, 100, 0, scale, b""));
            let back = at_server.reversed();
            if forwarding != Forwarding::Dsr {
                lab.server_sends(&back, &tcp(&back, SYN_ACK, 900, 101, scale, b""));
            }
            // The last one is half open.
            if port < 4 {
                lab.client_sends(&forward, &tcp(&forward, ACK, 101, 901, &[], b""));
            }
            connections.push((forward, back));
        }
        lab
    });
    (labs, connections)
}

pub(super) fn batch(lab: &mut Lab, frames: &mut [(PortId, Vec<u8>, Checksum, u16)]) {
    let mut frames: Vec<Frame<'_>> = frames
        .iter_mut()
        .map(|(port, bytes, checksum, segment_bytes)| Frame {
            bytes,
            front: &mut [],
            port: *port,
            checksum: *checksum,
            segment_bytes: *segment_bytes,
        })
        .collect();
    lab.plane.process(lab.now, &mut frames, &mut lab.verdicts, &mut lab.clerk, &mut lab.out);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_000) })]

    #[test]
    fn the_straight_path_and_the_long_one_do_the_same(
        mode in 0..3_usize,
        steps in prop::collection::vec(step(), 1..12),
    ) {
        let (mut labs, connections) = twins(MODES[mode]);
        for step in steps {
            let frames = match &step {
                Step::Batch(specs) => specs.iter().map(|spec| frame(&connections, spec)).collect(),
                _ => Vec::new(),
            };
            let [straight, long] = [0, 1].map(|which| {
                let lab = &mut labs[which];
                let mut frames = frames.clone();
                lab.out.clear();
                match step {
                    Step::Batch(_) => batch(lab, &mut frames),
                    Step::Expire => {
                        lab.plane.expire(lab.now, 100, &mut lab.clerk, &mut lab.out);
                    }
                    Step::Network(known, mtu) => {
                        lab.plane.adopt_network(Arc::new(network(mtu, known)), &mut lab.out);
                        if which == 1 {
                            lab.plane.hops.forget_stations();
                        }
                    }
                    Step::Pass(ms) => lab.now = lab.now + ms,
                }
                let bytes: Vec<Vec<u8>> = frames.into_iter().map(|(_, bytes, ..)| bytes).collect();
                (lab.verdicts.clone(), bytes)
            });
            prop_assert_eq!(straight, long);
            prop_assert_eq!(seen(&labs[0]), seen(&labs[1]));
        }
    }

    /// Whatever is taken for a frame that goes straight on, `parse` takes for a segment with the same ends, if they are those of hosts.
    #[test]
    fn a_frame_that_goes_straight_is_a_segment(spec in spec()) {
        let connections = vec![(
            Tuple::new(client(Family::V4), vip(Family::V4), PROTOCOL_TCP),
            Tuple::new(server(Family::V4), client(Family::V4), PROTOCOL_TCP),
        )];
        let (port, frame, ..) = frame(&connections, &spec);
        let station = crate::packet::straight::Station::new(if port == OUTSIDE { OUTSIDE_MAC } else { INSIDE_MAC });
        if let Some(tuple) = read_straight(&frame, station)
            && tuple.is_between_hosts()
        {
            let parsed = parsed(&frame);
            prop_assert_eq!(parsed.tuple, tuple.with_protocol(PROTOCOL_TCP));
            prop_assert!(parsed.ttl > 1 && parsed.tcp.flags.contains(TcpFlags::ACK));
        }
    }
}

/// Data of an open connection, either way, in a batch of its own.
#[test]
fn what_an_open_connection_carries_goes_straight() {
    for forwarding in [Forwarding::FullNat, Forwarding::HalfNat] {
        let ([mut lab, _], connections) = twins(forwarding);
        let (forward, back) = connections[0];
        // What each side has offered in its SYN is not scaled; it is with the first segment behind.
        lab.server_sends(&back, &tcp(&back, ACK, 901, 101, &[], b"x"));
        for (port, tuple, mac, (seq, ack)) in
            [(OUTSIDE, forward, OUTSIDE_MAC, (101, 902)), (INSIDE, back, INSIDE_MAC, (902, 101))]
        {
            let mut bytes = frame_of(mac, ROUTER_MAC, &tuple, &tcp(&tuple, ACK | PSH, seq, ack, &[], b"data"));
            let v4 = read_straight(&bytes, lab.plane.hops.station(port)).unwrap();
            let mut traces = [lab.plane.flows.established.trace(v4, PROTOCOL_TCP, |_| {})];
            lab.plane.flows.established.follow_traces(&mut traces, |_| {});
            let mut frame =
                Frame { bytes: &mut bytes, front: &mut [], port, checksum: Checksum::Complete, segment_bytes: 0 };
            let mut turn = Turn {
                now: lab.now,
                desk: &mut lab.clerk,
                out: &mut lab.out,
                run: Run::default(),
                hashes: None,
                pieces: None,
                whose: Whose::Ours,
            };
            let sent = lab.plane.go_straight(&mut frame, &traces[0], SeenAt::at(lab.now), &mut turn);
            assert_eq!(sent, Some(if port == OUTSIDE { INSIDE } else { OUTSIDE }), "{forwarding:?}");
            sound(&bytes);
        }
    }
}
