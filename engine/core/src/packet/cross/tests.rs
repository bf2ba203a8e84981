use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::super::{Packet, parse};
use super::*;

/// A client of each version, as its packets come, and the same packets as they leave in the other one.
fn ends(family: Family, protocol: u8) -> (Tuple, Tuple) {
    let v4 = [Ipv4Addr::new(198, 51, 100, 7).into(), Ipv4Addr::new(192, 0, 2, 80).into()];
    let address = |text: &str| -> super::super::Ip { text.parse::<Ipv6Addr>().unwrap().into() };
    let v6 = [address("2001:db8:5::7"), address("fd00:1:2:3:4:5:6:80")];
    let tuple =
        |[src, dst]: [super::super::Ip; 2], src_port, dst_port| Tuple { src, dst, src_port, dst_port, protocol };
    match family {
        Family::V4 => (tuple(v4, 40_000, 443), tuple(v6, 5_000, 8_443)),
        Family::V6 => (tuple(v6, 40_000, 443), tuple(v4, 5_000, 8_443)),
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

fn pseudo_sum(ends: &Tuple, length: usize) -> u16 {
    let skip = if ends.src.is_v4() { 12 } else { 0 };
    plain_sum(&[&ends.src.0[skip..], &ends.dst.0[skip..], &[0, ends.protocol], &(length as u32).to_be_bytes()])
}

/// What the checksum field of a packet holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Complete,
    Partial,
    /// UDP over IPv4: none.
    Zero,
}

impl Field {
    fn state(self) -> Checksum {
        if self == Field::Partial { Checksum::Partial } else { Checksum::Complete }
    }
}

fn segment(ends: &Tuple, field: Field, body: &[u8]) -> Vec<u8> {
    let mut bytes = [ends.src_port.to_be_bytes(), ends.dst_port.to_be_bytes()].concat();
    let at = match ends.protocol {
        PROTOCOL_TCP => {
            bytes.extend([1, 2, 3, 4, 5, 6, 7, 8, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
            16
        }
        _ => {
            bytes.extend(((8 + body.len()) as u16).to_be_bytes());
            bytes.extend([0, 0]);
            6
        }
    };
    bytes.extend(body);
    let pseudo = pseudo_sum(ends, bytes.len());
    let check = match field {
        Field::Zero => 0,
        Field::Partial => pseudo,
        Field::Complete => match !plain_sum(&[&pseudo.to_be_bytes(), &bytes]) {
            0 if ends.protocol == PROTOCOL_UDP => 0xffff,
            check => check,
        },
    };
    bytes[at..at + 2].copy_from_slice(&check.to_be_bytes());
    bytes
}

/// A frame with `options` words of IPv4 options, or as many destination options headers of IPv6, and padding behind the packet.
fn frame(ends: &Tuple, class: u8, ttl: u8, options: usize, field: Field, body: &[u8], padding: usize) -> Vec<u8> {
    let segment = segment(ends, field, body);
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if ends.src.is_v4() {
        frame.extend(ETHERTYPE_IPV4);
        let header_len = 20 + 4 * options;
        let mut header = vec![0x45 + options as u8, class];
        header.extend(((header_len + segment.len()) as u16).to_be_bytes());
        header.extend([0x12, 0x34, 0x40, 0, ttl, ends.protocol, 0, 0]);
        header.extend(&ends.src.0[12..]);
        header.extend(&ends.dst.0[12..]);
        header.resize(header_len, 1);
        let check = !plain_sum(&[&header]);
        header[10..12].copy_from_slice(&check.to_be_bytes());
        frame.extend(header);
    } else {
        frame.extend(ETHERTYPE_IPV6);
        frame.extend([0x60 | class >> 4, class << 4 | 5, 0x43, 0x21]);
        frame.extend(((8 * options + segment.len()) as u16).to_be_bytes());
        frame.extend([if options == 0 { ends.protocol } else { 60 }, ttl]);
        frame.extend(ends.src.0);
        frame.extend(ends.dst.0);
        for left in (0..options).rev() {
            frame.extend([if left == 0 { ends.protocol } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
        }
    }
    frame.extend(segment);
    frame.resize(frame.len() + padding, 0xee);
    frame
}

fn transport(frame: &[u8]) -> Parsed {
    match parse(frame) {
        Ok(Packet::Transport(parsed)) => parsed,
        other => panic!("{other:?}"),
    }
}

const TO: Macs = Macs::NONE;

/// The frame in the other version, if it can be, with so much room in front of it.
fn crossed_frame(
    frame: &[u8],
    checksum: Checksum,
    to: &Tuple,
    id: Option<u16>,
    room: usize,
) -> Result<(Vec<u8>, Parsed), CrossError> {
    let packet = transport(frame);
    let mut memory = [&vec![0xaa; room], frame].concat();
    let (front, bytes) = memory.split_at_mut(room);
    let begins = match cross(front, bytes, &packet, checksum, to, &TO, id) {
        Ok(begins) => begins,
        Err(error) => {
            assert!(memory[..room] == vec![0xaa; room] && memory[room..] == *frame, "changed in spite of {error:?}");
            return Err(error);
        }
    };
    let start = room.checked_add_signed(begins.into()).unwrap();
    assert!(memory[..start.min(room)].iter().all(|&octet| octet == 0xaa), "written beyond its front");
    Ok((memory[start..].to_vec(), crossed(&packet, begins)))
}

fn other_ends(packet: Parsed, to: &Tuple) -> Parsed {
    Parsed { tuple: *to, ..packet }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_has_crossed_is_what_the_other_version_would_have_sent(
        is_v4 in any::<bool>(), is_tcp in any::<bool>(), class in any::<u8>(), ttl in 2_u8.., options in 0..5_usize,
        field in prop_oneof![Just(Field::Complete), Just(Field::Partial), Just(Field::Zero)],
        body in prop::collection::vec(any::<u8>(), 0..300), padding in 0..4_usize, id in prop::option::of(any::<u16>()),
    ) {
        let family = if is_v4 { Family::V4 } else { Family::V6 };
        let (from, to) = ends(family, if is_tcp { PROTOCOL_TCP } else { PROTOCOL_UDP });
        let field = if field == Field::Zero && (is_tcp || !is_v4) { Field::Complete } else { field };
        let came = frame(&from, class, ttl, options, field, &body, padding);
        let (left, parsed) = crossed_frame(&came, field.state(), &to, id, GROWTH_MAX).unwrap();
        let completed = if field == Field::Zero { Field::Complete } else { field };
        let mut expected = frame(&to, class, ttl - 1, 0, completed, &body, padding);
        expected[..12].fill(0);
        if is_v4 {
            // Without flow label.
            expected[15] &= 0xf0;
            expected[16..18].fill(0);
        } else {
            let (number, flags) = id.map_or((0, 0x4000), |id| (id, 0));
            expected[18..20].copy_from_slice(&number.to_be_bytes());
            expected[20..22].copy_from_slice(&u16::to_be_bytes(flags));
            expected[24..26].fill(0);
            let check = !plain_sum(&[&expected[14..34]]);
            expected[24..26].copy_from_slice(&check.to_be_bytes());
        }
        prop_assert_eq!(&left, &expected);
        let read = transport(&left);
        prop_assert_eq!(other_ends(parsed, &to), Parsed { dont_fragment: parsed.dont_fragment, ..read });
        prop_assert_eq!(crossed_len(&transport(&came)), read.total_len());
    }

    #[test]
    fn a_wrong_checksum_stays_wrong(is_v4 in any::<bool>(), is_tcp in any::<bool>(), bend in 1..0xffff_u16) {
        let family = if is_v4 { Family::V4 } else { Family::V6 };
        let (from, to) = ends(family, if is_tcp { PROTOCOL_TCP } else { PROTOCOL_UDP });
        let mut came = frame(&from, 0, 64, 0, Field::Complete, b"bent", 0);
        let packet = transport(&came);
        let at = usize::from(packet.l4) + if is_tcp { 16 } else { 6 };
        let right = u16::from_be_bytes([came[at], came[at + 1]]);
        let wrong = (u32::from(right) + u32::from(bend)) % 0xffff;
        prop_assume!(wrong != 0);
        came[at..at + 2].copy_from_slice(&(wrong as u16).to_be_bytes());
        let (left, parsed) = crossed_frame(&came, Checksum::Complete, &to, None, GROWTH_MAX).unwrap();
        let segment = &left[usize::from(parsed.l4)..parsed.end as usize];
        let sum = plain_sum(&[&pseudo_sum(&to, segment.len()).to_be_bytes(), segment]);
        prop_assert_ne!(sum, 0xffff);
    }
}

#[test]
fn only_what_there_is_room_for_grows() {
    let (from, to) = ends(Family::V4, PROTOCOL_TCP);
    let cross = |options, room| {
        let came = frame(&from, 0, 64, options, Field::Complete, b"text", 0);
        crossed_frame(&came, Checksum::Complete, &to, None, room).map(|(left, _)| left.len())
    };
    assert_eq!(cross(0, 19), Err(CrossError::NoRoom));
    assert_eq!(cross(0, 20), Ok(54 + 24));
    assert_eq!(cross(1, 16), Ok(54 + 24));
    assert_eq!(cross(1, 15), Err(CrossError::NoRoom));
    assert_eq!(cross(5, 0), Ok(54 + 24));
    assert_eq!(cross(10, 0), Ok(54 + 24));
}

#[test]
fn what_cannot_cross_is_refused() {
    let (from, to) = ends(Family::V6, PROTOCOL_UDP);
    let longest = frame(&from, 0, 64, 0, Field::Complete, &vec![7; 65_507], 0);
    assert!(crossed_frame(&longest, Checksum::Complete, &to, None, 0).is_ok());
    let longer = frame(&from, 0, 64, 0, Field::Complete, &vec![7; 65_508], 0);
    assert_eq!(crossed_frame(&longer, Checksum::Complete, &to, None, 0).err(), Some(CrossError::TooLong));
    let usual = frame(&from, 0, 64, 0, Field::Complete, b"text", 0);
    for wrong in [from, Tuple { src: from.src, ..to }, Tuple { dst: from.dst, ..to }] {
        assert_eq!(crossed_frame(&usual, Checksum::Complete, &wrong, None, 40).err(), Some(CrossError::Mismatch));
    }
}
