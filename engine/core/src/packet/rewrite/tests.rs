use proptest::prelude::*;

use super::*;

/// What the transport checksum field of a built frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Complete,
    Partial,
    /// UDP: none.
    Zero,
}

impl Field {
    fn state(self) -> Checksum {
        if self == Field::Partial { Checksum::Partial } else { Checksum::Complete }
    }
}

/// RFC 1071 as written down; nothing of what is tested here.
fn plain_sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += (u32::from(pair[0]) << 8) | pair.get(1).map_or(0, |&low| u32::from(low));
            sum = (sum >> 16) + (sum & 0xffff);
        }
    }
    sum as u16
}

fn addresses(family: Family, ends: &Tuple) -> Vec<u8> {
    let skip = if family == Family::V4 { 12 } else { 0 };
    [&ends.src.0[skip..], &ends.dst.0[skip..]].concat()
}

fn pseudo_sum(family: Family, ends: &Tuple, protocol: u8, length: usize) -> u16 {
    plain_sum(&[&addresses(family, ends), &[0, protocol], &(length as u32).to_be_bytes()])
}

/// An IP packet without Ethernet header; `options` words of IPv4 options, or of 8 bytes of IPv6 destination options.
fn ip_packet(family: Family, protocol: u8, ends: &Tuple, options: usize, transport: &[u8]) -> (Vec<u8>, usize) {
    let mut packet;
    match family {
        Family::V4 => {
            let header_len = 20 + 4 * options;
            packet = vec![0x45 + options as u8, 0];
            packet.extend(((header_len + transport.len()) as u16).to_be_bytes());
            packet.extend([0x12, 0x34, 0x40, 0x00, 64, protocol, 0, 0]);
            packet.extend(addresses(family, ends));
            packet.resize(header_len, 1);
            let check = !plain_sum(&[&packet]);
            packet[10..12].copy_from_slice(&check.to_be_bytes());
        }
        Family::V6 => {
            packet = vec![0x60, 0x01, 0x02, 0x03];
            packet.extend(((8 * options + transport.len()) as u16).to_be_bytes());
            packet.extend([if options == 0 { protocol } else { 60 }, 64]);
            packet.extend(addresses(family, ends));
            if options > 0 {
                packet.extend([protocol, options as u8 - 1, 1, 8 * options as u8 - 4]);
                packet.resize(40 + 8 * options, 0);
            }
        }
    }
    let l4 = packet.len();
    packet.extend(transport);
    (packet, l4)
}

/// A transport header, `body` and the right checksum for `ends`. For ICMP the body begins behind the checksum.
fn segment(family: Family, protocol: u8, ends: &Tuple, field: Field, body: &[u8]) -> Vec<u8> {
    let ports = [ends.src_port.to_be_bytes(), ends.dst_port.to_be_bytes()].concat();
    let (mut bytes, at) = match protocol {
        TCP => ([&ports[..], &[1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x10, 1, 0, 0, 0, 0, 0]].concat(), 16),
        UDP => ([&ports[..], &((8 + body.len()) as u16).to_be_bytes(), &[0, 0]].concat(), 6),
        ICMP => (vec![3, 4, 0, 0], 2),
        _ => (vec![2, 0, 0, 0], 2),
    };
    bytes.extend(body);
    let pseudo = if protocol == ICMP { 0 } else { pseudo_sum(family, ends, protocol, bytes.len()) };
    let check = match field {
        Field::Complete => match !plain_sum(&[&pseudo.to_be_bytes(), &bytes]) {
            0 if protocol == UDP => 0xffff,
            check => check,
        },
        Field::Partial => pseudo,
        Field::Zero => 0,
    };
    bytes[at..at + 2].copy_from_slice(&check.to_be_bytes());
    bytes
}

/// A whole frame; 3 bytes of padding behind the packet.
fn frame_of((packet, l4): (Vec<u8>, usize), family: Family, protocol: u8) -> (Vec<u8>, Layout) {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(if family == Family::V4 { [0x08, 0x00] } else { [0x86, 0xdd] });
    frame.extend(packet);
    frame.extend([0xee; 3]);
    (frame, Layout { l3: 14, l4: 14 + l4, family, protocol })
}

fn build(family: Family, protocol: u8, ends: &Tuple, options: usize, field: Field, body: &[u8]) -> (Vec<u8>, Layout) {
    let transport = segment(family, protocol, ends, field, body);
    frame_of(ip_packet(family, protocol, ends, options, &transport), family, protocol)
}

/// An ICMP error between `outer` that quotes the first `quoted_bytes` of a packet between `inner`.
fn build_error(
    family: Family,
    protocol: u8,
    outer: &Tuple,
    inner: &Tuple,
    quoted_bytes: usize,
    options: usize,
) -> (Vec<u8>, Layout, Layout) {
    let icmp = if family == Family::V4 { ICMP } else { ICMPV6 };
    let transport = segment(family, protocol, inner, Field::Complete, b"what was sent!!");
    let (mut quoted, quoted_l4) = ip_packet(family, protocol, inner, options, &transport);
    quoted.truncate(quoted_l4 + quoted_bytes);
    let body = [&[0, 0, 0x05, 0xb4][..], &quoted].concat();
    let (frame, layout) = build(family, icmp, outer, 0, Field::Complete, &body);
    let l3 = layout.l4 + ICMP_ERROR_HEADER;
    (frame, layout, Layout { l3, l4: l3 + quoted_l4, family, protocol })
}

fn ends(source: &str, destination: &str) -> Tuple {
    Tuple::new(source.parse().unwrap(), destination.parse().unwrap(), TCP)
}

/// Client to VIP and our SNAT address to the real server.
fn both_legs(family: Family) -> (Tuple, Tuple) {
    match family {
        Family::V4 => (ends("198.51.100.7:40000", "192.0.2.1:443"), ends("10.0.0.2:1024", "10.0.0.80:8443")),
        Family::V6 => {
            (ends("[2001:db8:5::7]:40000", "[2001:db8::1]:443"), ends("[fd00::2]:1024", "[fd00:1:2:3:4:5:6:80]:8443"))
        }
    }
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

fn any_family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

fn any_ends(family: Family, protocol: u8) -> impl Strategy<Value = Tuple> {
    any::<([u8; 16], [u8; 16], u16, u16)>().prop_map(move |(source, destination, src_port, dst_port)| {
        let address = |octets: [u8; 16]| match family {
            Family::V4 => Ip::from(Ipv4Addr::from(*octets.last_chunk::<4>().unwrap())),
            Family::V6 => Ip(octets),
        };
        let has_ports = matches!(protocol, TCP | UDP);
        Tuple {
            src: address(source),
            dst: address(destination),
            src_port: if has_ports { src_port } else { 0 },
            dst_port: if has_ports { dst_port } else { 0 },
            protocol,
        }
    })
}

/// Family, protocol, both legs, words of options, checksum field, body.
fn any_case() -> impl Strategy<Value = (Family, u8, Tuple, Tuple, usize, Field, Vec<u8>)> {
    let protocols = prop_oneof![
        Just((TCP, Field::Complete)),
        Just((TCP, Field::Partial)),
        Just((UDP, Field::Complete)),
        Just((UDP, Field::Partial)),
        Just((UDP, Field::Zero)),
        Just((ICMPV6, Field::Complete)),
    ];
    (any_family(), protocols).prop_flat_map(|(family, (protocol, field))| {
        // Over IPv4 number 58 is a protocol like any other, without a checksum that we know.
        let protocol = if family == Family::V4 && protocol == ICMPV6 { ICMP } else { protocol };
        (
            Just(family),
            Just(protocol),
            any_ends(family, protocol),
            any_ends(family, protocol),
            0_usize..4,
            Just(field),
            prop::collection::vec(any::<u8>(), 0..90),
        )
    })
}

proptest! {
    #[test]
    fn a_translated_packet_is_one_made_for_its_new_ends_and_back(
        (family, protocol, from, to, options, field, body) in any_case(),
    ) {
        let (original, layout) = build(family, protocol, &from, options, field, &body);
        let (expected, _) = build(family, protocol, &to, options, field, &body);
        prop_assert_eq!(endpoints(&original, &layout), Ok(from));
        let mut frame = original.clone();
        prop_assert_eq!(translate(&mut frame, &layout, field.state(), &to), Ok(()));
        prop_assert_eq!(&frame, &expected);
        prop_assert_eq!(translate(&mut frame, &layout, field.state(), &from), Ok(()));
        prop_assert_eq!(&frame, &original);
    }

    #[test]
    fn redirecting_is_translating_with_one_hop_and_other_macs(
        (family, protocol, from, to, options, field, body) in any_case(), macs in any::<[[u8; 6]; 2]>(),
    ) {
        let macs = Macs::new(Mac(macs[0]), Mac(macs[1]));
        let (mut frame, layout) = build(family, protocol, &from, options, field, &body);
        let mut expected = frame.clone();
        prop_assert_eq!(redirect(&mut frame, &layout, field.state(), &to, &macs), Ok(()));
        prop_assert_eq!(translate(&mut expected, &layout, field.state(), &to), Ok(()));
        prop_assert_eq!(decrement_hop_limit(&mut expected, &layout), Ok(()));
        prop_assert_eq!(set_macs(&mut expected, &macs), Ok(()));
        prop_assert_eq!(frame, expected);
    }

    #[test]
    fn a_partial_checksum_completed_after_translation_is_right(
        (family, protocol, from, to, options, _, body) in any_case(),
    ) {
        let (mut frame, layout) = build(family, protocol, &from, options, Field::Partial, &body);
        let (expected, _) = build(family, protocol, &to, options, Field::Complete, &body);
        if protocol != ICMP {
            prop_assert_eq!(translate(&mut frame, &layout, Checksum::Partial, &to), Ok(()));
            prop_assert_eq!(complete_checksum(&mut frame, &layout), Ok(()));
            prop_assert_eq!(frame, expected);
        }
    }

    #[test]
    fn a_translated_error_is_one_made_for_its_new_ends_and_back(
        (family, protocol, inner, inner_to, options, _, _) in any_case(),
        quoted_bytes in 4_usize..40,
        raw in any::<[u8; 8]>(),
    ) {
        let (mut outer, mut outer_to) = (inner.reversed(), inner_to.reversed());
        // A router on the way, not the receiver, may have sent it.
        outer.src.0[12..].copy_from_slice(&raw[..4]);
        outer_to.src.0[12..].copy_from_slice(&raw[4..]);
        let (original, layout, quoted) = build_error(family, protocol, &outer, &inner, quoted_bytes, options);
        let mut frame = original.clone();
        prop_assert_eq!(translate_error(&mut frame, &layout, &outer_to, &quoted, &inner_to), Ok(()));
        prop_assert_eq!(endpoints(&frame, &quoted), Ok(inner_to));

        let message = &frame[layout.l4..frame.len() - 3];
        let pseudo = if family == Family::V4 { 0 } else { pseudo_sum(family, &outer_to, ICMPV6, message.len()) };
        prop_assert_eq!(plain_sum(&[&pseudo.to_be_bytes(), message]), 0xffff);
        // Half a quoted checksum is left as it is.
        if !matches!((protocol, quoted_bytes), (TCP, 17) | (UDP, 7)) {
            let (expected, ..) = build_error(family, protocol, &outer_to, &inner_to, quoted_bytes, options);
            prop_assert_eq!(&frame, &expected);
        }
        prop_assert_eq!(translate_error(&mut frame, &layout, &outer, &quoted, &inner), Ok(()));
        prop_assert_eq!(&frame, &original);
    }

    #[test]
    fn a_later_fragment_gets_addresses_only((family, protocol, from, to, options, _, body) in any_case()) {
        let (mut frame, layout) = frame_of(ip_packet(family, protocol, &from, options, &body), family, protocol);
        let (expected, _) = frame_of(ip_packet(family, protocol, &to, options, &body), family, protocol);
        prop_assert_eq!(translate(&mut frame, &layout, Checksum::Absent, &to), Ok(()));
        prop_assert_eq!(frame, expected);
    }

    #[test]
    fn a_wrong_checksum_stays_wrong((family, protocol, from, to, options, _, mut body) in any_case(), bend in 1_u8..) {
        body.push(0);
        let (mut frame, layout) = build(family, protocol, &from, options, Field::Complete, &body);
        let last = frame.len() - 4;
        frame[last] ^= bend;
        prop_assert_eq!(translate(&mut frame, &layout, Checksum::Complete, &to), Ok(()));
        let segment = &frame[layout.l4..=last];
        let pseudo = if protocol == ICMP { 0 } else { pseudo_sum(family, &to, protocol, segment.len()) };
        prop_assert_ne!(plain_sum(&[&pseudo.to_be_bytes(), segment]), 0xffff);
    }

    #[test]
    fn a_lying_layout_is_refused_and_changes_nothing(
        original in prop::collection::vec(any::<u8>(), 0..160),
        offsets in prop::collection::vec(prop_oneof![0_usize..170, Just(14), Just(usize::MAX)], 4),
        kinds in prop::collection::vec((any_family(), prop_oneof![Just(ICMP), Just(TCP), Just(UDP), Just(ICMPV6), any::<u8>()]), 2),
        to in any_ends(Family::V6, TCP),
        state in prop_oneof![Just(Checksum::Absent), Just(Checksum::Complete), Just(Checksum::Partial)],
    ) {
        let layout = |at: usize, kind: usize| {
            Layout { l3: offsets[at], l4: offsets[at + 1], family: kinds[kind].0, protocol: kinds[kind].1 }
        };
        let (outer, inner) = (layout(0, 0), layout(2, 1));
        let unchanged_if = |refused: bool, frame: &[u8]| !refused || frame == original;
        let mut frame = original.clone();
        let refused = translate(&mut frame, &outer, state, &to).is_err();
        prop_assert!(unchanged_if(refused, &frame));
        let mut frame = original.clone();
        let refused = translate_error(&mut frame, &outer, &to, &inner, &to).is_err();
        prop_assert!(unchanged_if(refused, &frame));
        let mut frame = original.clone();
        let refused = decrement_hop_limit(&mut frame, &outer).is_err();
        prop_assert!(unchanged_if(refused, &frame));
        let mut frame = original.clone();
        let refused = clamp_mss(&mut frame, &outer, state, 500).is_none();
        prop_assert!(unchanged_if(refused, &frame));
        let mut frame = original.clone();
        let refused = answer_echo(&mut frame, &outer, 64).is_err();
        prop_assert!(unchanged_if(refused, &frame));
        let mut frame = original.clone();
        let refused = complete_checksum(&mut frame, &outer).is_err();
        prop_assert!(unchanged_if(refused, &frame));
    }
}

#[test]
fn a_frame_cut_anywhere_is_refused_and_changes_nothing() {
    for family in FAMILIES {
        let (from, to) = both_legs(family);
        let (whole, layout, quoted) = build_error(family, UDP, &from.reversed(), &from, 8, 1);
        for len in 0..whole.len() - 3 {
            let cut = &whole[..len];
            let mut frame = cut.to_vec();
            assert!(translate_error(&mut frame, &layout, &to.reversed(), &quoted, &to).is_err(), "{family:?} {len}");
            assert_eq!(frame, cut);
        }
        let (whole, layout) = build(family, TCP, &from, 1, Field::Complete, b"");
        for len in 0..layout.l4 + 18 {
            let cut = &whole[..len];
            let mut frame = cut.to_vec();
            assert_eq!(
                translate(&mut frame, &layout, Checksum::Complete, &to),
                Err(LayoutMismatch),
                "{family:?} {len}"
            );
            assert_eq!(frame, cut);
        }
    }
}

#[test]
fn a_udp_checksum_of_zero_stays_and_a_computed_one_is_all_ones() {
    for family in FAMILIES {
        let (from, to) = both_legs(family);
        let (mut frame, layout) = build(family, UDP, &from, 0, Field::Zero, b"body");
        translate(&mut frame, &layout, Checksum::Complete, &to).unwrap();
        assert_eq!(frame[layout.l4 + 6..layout.l4 + 8], [0, 0]);

        // One of all source ports makes the checksum 0.
        let all_ones = (0..=u16::MAX)
            .map(|src_port| Tuple { src_port, ..to })
            .find(|to| {
                build(family, UDP, to, 0, Field::Complete, b"body").0[layout.l4 + 6..layout.l4 + 8] == [0xff, 0xff]
            })
            .expect("the checksum takes every value");
        let (mut frame, layout) = build(family, UDP, &from, 0, Field::Complete, b"body");
        let original = frame.clone();
        translate(&mut frame, &layout, Checksum::Complete, &all_ones).unwrap();
        assert_eq!(frame[layout.l4 + 6..layout.l4 + 8], [0xff, 0xff]);
        translate(&mut frame, &layout, Checksum::Complete, &from).unwrap();
        assert_eq!(frame, original);
    }
}

#[test]
fn a_hop_costs_one_and_the_last_one_is_refused() {
    for family in FAMILIES {
        let (from, _) = both_legs(family);
        let (mut frame, layout) = build(family, TCP, &from, 1, Field::Complete, b"x");
        let limit_at = if family == Family::V4 { 14 + 8 } else { 14 + 7 };
        for expected in (1..64).rev() {
            assert_eq!(decrement_hop_limit(&mut frame, &layout), Ok(()));
            assert_eq!(frame[limit_at], expected);
            if family == Family::V4 {
                assert_eq!(plain_sum(&[&frame[layout.l3..layout.l4]]), 0xffff, "TTL {expected}");
            }
        }
        for last in [1, 0] {
            frame[limit_at] = last;
            let before = frame.clone();
            assert_eq!(decrement_hop_limit(&mut frame, &layout), Err(HopError::Expired));
            assert_eq!(frame, before);
        }
    }
}

/// A SYN whose options are `options`, padded to words.
fn syn(family: Family, ends: &Tuple, field: Field, flags: u8, options: &[u8]) -> (Vec<u8>, Layout) {
    let mut options = options.to_vec();
    options.resize(options.len().next_multiple_of(4), 0);
    let mut tcp = segment(family, TCP, ends, field, &options);
    tcp[12] = ((20 + options.len()) as u8 / 4) << 4;
    tcp[13] = flags;
    if field == Field::Complete {
        tcp[16..18].fill(0);
        let check = !plain_sum(&[&pseudo_sum(family, ends, TCP, tcp.len()).to_be_bytes(), &tcp]);
        tcp[16..18].copy_from_slice(&check.to_be_bytes());
    }
    frame_of(ip_packet(family, TCP, ends, 0, &tcp), family, TCP)
}

#[test]
fn a_segment_size_is_lowered_wherever_it_stands() {
    // Options, the same with 1300 in place of 1460.
    let cases: [(&[u8], &[u8]); 4] = [
        (&[2, 4, 0x05, 0xb4], &[2, 4, 0x05, 0x14]),
        (&[1, 2, 4, 0x05, 0xb4], &[1, 2, 4, 0x05, 0x14]),
        (&[3, 3, 7, 2, 4, 0x05, 0xb4, 4, 2], &[3, 3, 7, 2, 4, 0x05, 0x14, 4, 2]),
        (
            &[4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 1, 2, 4, 0x05, 0xb4],
            &[4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 1, 2, 4, 0x05, 0x14],
        ),
    ];
    for family in FAMILIES {
        let (from, _) = both_legs(family);
        for field in [Field::Complete, Field::Partial] {
            for flags in [SYN, SYN | 0x10] {
                for (before, after) in cases {
                    let (mut frame, layout) = syn(family, &from, field, flags, before);
                    let (expected, _) = syn(family, &from, field, flags, after);
                    assert_eq!(clamp_mss(&mut frame, &layout, field.state(), 1300), Some(1460), "{before:?}");
                    assert_eq!(frame, expected, "{family:?} {field:?} {before:?}");
                    assert_eq!(clamp_mss(&mut frame, &layout, field.state(), 1300), None, "once is enough");
                }
            }
        }
    }
}

#[test]
fn what_offers_no_larger_segment_size_is_left_alone() {
    let (from, _) = both_legs(Family::V4);
    let cases: [(&str, u8, &[u8]); 9] = [
        ("not above", SYN, &[2, 4, 0x05, 0x14]),
        ("no SYN", 0x10, &[2, 4, 0x05, 0xb4]),
        ("no options", SYN, &[]),
        ("other options", SYN, &[3, 3, 7, 4, 2]),
        ("behind the end", SYN, &[0, 2, 4, 0x05, 0xb4]),
        ("wrong length", SYN, &[2, 3, 0x05, 0xb4]),
        ("length 0", SYN, &[3, 0, 2, 4, 0x05, 0xb4]),
        ("length 1", SYN, &[3, 1, 2, 4, 0x05, 0xb4]),
        ("beyond the header", SYN, &[3, 3, 7, 1, 1, 1, 2, 4]),
    ];
    for (name, flags, options) in cases {
        let (mut frame, layout) = syn(Family::V4, &from, Field::Complete, flags, options);
        let before = frame.clone();
        assert_eq!(clamp_mss(&mut frame, &layout, Checksum::Complete, 1300), None, "{name}");
        assert_eq!(frame, before, "{name}");
    }
    // A data offset below 5, and one beyond the frame.
    for data_offset in [0x00, 0x40, 0xf0] {
        let (mut frame, layout) = syn(Family::V4, &from, Field::Complete, SYN, &[2, 4, 0x05, 0xb4]);
        frame[layout.l4 + 12] = data_offset;
        assert_eq!(clamp_mss(&mut frame, &layout, Checksum::Complete, 1300), None, "{data_offset:#x}");
    }
}

/// An echo request with identifier, number and data in `body`.
fn echo(family: Family, ends: &Tuple, kind: u8, body: &[u8]) -> (Vec<u8>, Layout) {
    let protocol = if family == Family::V4 { ICMP } else { ICMPV6 };
    let mut message = [&[kind, 0, 0, 0], body].concat();
    let pseudo = if family == Family::V4 { 0 } else { pseudo_sum(family, ends, protocol, message.len()) };
    let check = !plain_sum(&[&pseudo.to_be_bytes(), &message]);
    message[2..4].copy_from_slice(&check.to_be_bytes());
    frame_of(ip_packet(family, protocol, ends, 1, &message), family, protocol)
}

#[test]
fn an_echo_request_becomes_its_reply() {
    for family in FAMILIES {
        let (mut from, _) = both_legs(family);
        (from.src_port, from.dst_port) = (0, 0);
        let (request_kind, reply_kind) = if family == Family::V4 { (8, 0) } else { (128, 129) };
        // All zero is where an incremental update of the checksum would be wrong.
        for body in [&[0; 4][..], &[0; 60], b"\x12\x34\x00\x07hello", &[0xff; 33]] {
            let (mut frame, layout) = echo(family, &from, request_kind, body);
            let (mut expected, _) = echo(family, &from.reversed(), reply_kind, body);
            expected[..12].rotate_left(6);
            assert_eq!(answer_echo(&mut frame, &layout, 64), Ok(()), "{family:?} {body:?}");
            assert_eq!(frame, expected, "{family:?} {body:?}");
            assert_eq!(answer_echo(&mut frame, &layout, 64), Err(EchoError::NotEcho), "a reply is not answered");
        }
        let (mut frame, layout) = echo(family, &from, request_kind, b"\x12\x34\x00\x07hello");
        frame[layout.l4 + 9] ^= 1;
        let before = frame.clone();
        assert_eq!(answer_echo(&mut frame, &layout, 64), Err(EchoError::BadChecksum));
        assert_eq!(frame, before);
    }
}

#[test]
fn only_an_error_of_the_same_family_quotes_a_packet() {
    let (from, to) = both_legs(Family::V4);
    let (whole, layout, quoted) = build_error(Family::V4, TCP, &from.reversed(), &from, 20, 0);
    let cases = [
        ("no ICMP", Layout { protocol: TCP, ..layout }, quoted),
        ("ICMPv6 over IPv4", Layout { protocol: ICMPV6, ..layout }, quoted),
        ("another family", layout, Layout { family: Family::V6, ..quoted }),
        ("odd", layout, Layout { l3: quoted.l3 + 1, ..quoted }),
        ("inside the ICMP header", layout, Layout { l3: layout.l4 + 6, ..quoted }),
        ("before the ICMP header", layout, Layout { l3: layout.l3, ..quoted }),
    ];
    for (name, outer, inner) in cases {
        let mut frame = whole.clone();
        let result = translate_error(&mut frame, &outer, &to.reversed(), &inner, &to);
        assert_eq!(result, Err(LayoutMismatch), "{name}");
        assert_eq!(frame, whole, "{name}");
    }
}

#[test]
fn macs_are_written_and_the_rest_is_left() {
    let mut frame = [0xaa; 16];
    assert_eq!(set_macs(&mut frame, &Macs::new(Mac([1, 2, 3, 4, 5, 6]), Mac([7, 8, 9, 10, 11, 12]))), Ok(()));
    assert_eq!(frame, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0xaa, 0xaa, 0xaa, 0xaa]);
    assert_eq!(set_macs(&mut frame[..13], &Macs::default()), Err(LayoutMismatch));
}

#[test]
fn a_super_packet_keeps_its_partial_checksum_up_to_date() {
    for family in FAMILIES {
        let (from, to) = both_legs(family);
        let body = vec![0x5a; 65_000];
        let (mut frame, layout) = build(family, TCP, &from, 0, Field::Partial, &body);
        let (expected, _) = build(family, TCP, &to, 0, Field::Partial, &body);
        translate(&mut frame, &layout, Checksum::Partial, &to).unwrap();
        assert!(frame == expected, "{family:?}");
    }
}
