use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::packet::cut::Cut;
use crate::packet::{Packet, Parsed, parse};
use crate::random::SplitMix64;

const PORT: PortId = PortId(1);
const UDP: u8 = 17;

/// A UDP datagram of so many octets in a frame; `id` shows in its last address octet too, so that each one is told apart by its data.
fn datagram(is_v4: bool, id: u16, octets: usize) -> Vec<u8> {
    let mut payload = vec![0x9c, 0x40, 0x01, 0xbb, 0, 0, 0x12, 0x34];
    payload[4..6].copy_from_slice(&(octets as u16).to_be_bytes());
    payload.extend((payload.len()..octets).map(|at| (at * 7 + usize::from(id)) as u8));
    let mut frame = vec![2, 0, 0, 0, 0, 0xa0, 2, 0, 0, 0, 0, 1];
    if is_v4 {
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((20 + octets as u16).to_be_bytes());
        frame.extend(id.to_be_bytes());
        frame.extend([0, 0, 64, UDP, 0, 0]);
        frame.extend(Ipv4Addr::new(198, 51, 100, 7).octets());
        frame.extend(Ipv4Addr::new(192, 0, 2, 250).octets());
        let sum = checksum::of(&frame[ETHERNET_LEN..]);
        put(&mut frame, ETHERNET_LEN + 10, sum.to_be_bytes());
    } else {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((octets as u16).to_be_bytes());
        frame.extend([UDP, 64]);
        frame.extend("2001:db8:c::7".parse::<Ipv6Addr>().unwrap().octets());
        frame.extend("2001:db8::250".parse::<Ipv6Addr>().unwrap().octets());
    }
    frame.extend(payload);
    frame
}

/// The fragments of a packet, as packets of at most so many octets.
fn fragments(frame: &[u8], octets_max: u32, id: u32) -> Vec<Vec<u8>> {
    let mut made = Vec::new();
    let cut = Cut::new(frame, octets_max, Some(id)).unwrap();
    let (count, octets) = (cut.fragments(), cut.octets());
    cut.each(|headers, data| made.push([headers, data].concat()));
    assert_eq!((made.len(), made.iter().map(Vec::len).sum::<usize>()), (count, octets));
    made
}

fn read(frame: &[u8]) -> Fragment {
    match parse(frame) {
        Ok(Packet::Fragment(fragment)) => fragment,
        other => panic!("{other:?}: {frame:02x?}"),
    }
}

fn transport(frame: &[u8]) -> Parsed {
    match parse(frame) {
        Ok(Packet::Transport(parsed)) => parsed,
        other => panic!("{other:?}: {frame:02x?}"),
    }
}

/// What becomes of a fragment, and the packet if it is whole.
fn gather(reassembly: &mut Reassembly, now: Now, frame: &[u8]) -> Result<(Gathered, Vec<u8>), DropReason> {
    let gathered = reassembly.gather(now, (PORT, PORT), frame, &read(frame))?;
    let octets = if let Gathered::Whole(whole) = gathered { whole.octets } else { 0 };
    Ok((gathered, reassembly.whole[..octets].to_vec()))
}

fn is_empty(reassembly: &Reassembly) -> bool {
    reassembly.room() == (0, SLOTS_MAX)
}

#[test]
fn the_longest_packets_come_through_in_any_order() {
    for (is_v4, octets) in [(true, 65_515), (false, 65_527), (true, 1_481), (false, 1_500)] {
        for backwards in [false, true] {
            let mut reassembly = Reassembly::new([1, 2]);
            let whole = datagram(is_v4, 7, octets);
            let mut parts = fragments(&whole, 1_500, 7);
            if backwards {
                parts.reverse();
            }
            let (last, others) = parts.split_last().unwrap();
            for part in others {
                assert_eq!(gather(&mut reassembly, Now(5), part).unwrap().0, Gathered::Kept);
                assert_eq!(gather(&mut reassembly, Now(5), part).unwrap().0, Gathered::Copy);
            }
            let (gathered, joined) = gather(&mut reassembly, Now(6), last).unwrap();
            // The largest is full but for what is no multiple of 8.
            let largest = if is_v4 { 1_500 } else { 1_496 };
            assert_eq!(gathered, Gathered::Whole(Whole { octets: whole.len(), port: PORT, largest }));
            assert!(joined == whole, "{is_v4} {octets}");
            assert!(is_empty(&reassembly));
            assert_eq!(*reassembly.counts(), ReassemblyCounts::default());
        }
    }
}

#[test]
fn a_fragment_larger_than_a_slot_takes_several() {
    let mut reassembly = Reassembly::new([1, 2]);
    let whole = datagram(true, 7, 30_000);
    let parts = fragments(&whole, 9_000, 7);
    for part in parts[1..].iter().rev() {
        gather(&mut reassembly, Now(5), part).unwrap();
    }
    assert_eq!(reassembly.room(), (1, SLOTS_MAX - 2 * 5 - 2));
    assert!(gather(&mut reassembly, Now(5), &parts[0]).unwrap().1 == whole);
    assert!(is_empty(&reassembly));
}

#[test]
fn whoever_overlaps_is_refused_with_all_of_the_packet() {
    let whole = datagram(true, 7, 4_000);
    // 1,480 octets of data each: another cut of the same packet overlaps the first one.
    let (parts, others) = (fragments(&whole, 1_500, 7), fragments(&whole, 1_000, 7));
    // A last one that ends elsewhere, or before what is there.
    let longer = fragments(&datagram(true, 7, 4_200), 1_500, 7);
    let shorter = fragments(&datagram(true, 7, 1_000), 600, 7);
    for (held, bad) in [
        (vec![&parts[1]], &others[1]),
        (vec![&parts[1]], &others[2]),
        (vec![&parts[0], &parts[2]], &others[1]),
        (vec![&parts[2]], &longer[2]),
        (vec![&parts[1]], &shorter[1]),
        (vec![&parts[2]], &fragments(&datagram(true, 7, 9_000), 1_500, 7)[3]),
    ] {
        let mut reassembly = Reassembly::new([1, 2]);
        let count = held.len() as u64;
        for part in held {
            gather(&mut reassembly, Now(5), part).unwrap();
        }
        assert_eq!(gather(&mut reassembly, Now(5), bad), Err(DropReason::FragmentOverlap));
        assert_eq!(reassembly.room(), (1, SLOTS_MAX), "its memory is given back");
        assert_eq!(*reassembly.counts(), ReassemblyCounts { given_up: count, pushed_out: 0 });
        for part in &parts {
            assert_eq!(
                gather(&mut reassembly, Now(6), part),
                Err(DropReason::FragmentOverlap),
                "those yet to come too"
            );
        }
        assert_eq!(reassembly.expire(Now(5 + WAIT_MS)).map(|lost| lost.first), Some(None));
        assert!(is_empty(&reassembly));
        assert!(gather(&mut reassembly, Now(5 + WAIT_MS), &parts[0]).is_ok(), "its number may be used again");
    }
}

#[test]
fn what_is_not_whole_in_time_is_given_up_with_its_first_fragment() {
    for is_v4 in [true, false] {
        let mut reassembly = Reassembly::new([1, 2]);
        let parts = fragments(&datagram(is_v4, 7, 4_000), 1_500, 7);
        gather(&mut reassembly, Now(100), &parts[0]).unwrap();
        gather(&mut reassembly, Now(200), &parts[1]).unwrap();
        gather(&mut reassembly, Now(300), &fragments(&datagram(is_v4, 8, 4_000), 1_500, 8)[1]).unwrap();
        assert_eq!(reassembly.next_due(), Some(Now(100 + WAIT_MS)));
        assert_eq!(reassembly.expire(Now(99 + WAIT_MS)), None);
        let lost = reassembly.expire(Now(100 + WAIT_MS)).unwrap();
        assert_eq!(lost, GivenUp { dst: read(&parts[0]).key.dst, first: Some((PORT, parts[0].len())) });
        assert!(reassembly.whole[..parts[0].len()] == parts[0]);
        assert_eq!(reassembly.next_due(), Some(Now(300 + WAIT_MS)));
        assert_eq!(reassembly.expire(Now(300 + WAIT_MS)).map(|lost| lost.first), Some(None));
        assert_eq!((reassembly.next_due(), reassembly.counts().given_up), (None, 3));
        assert!(is_empty(&reassembly));
    }
}

#[test]
fn the_oldest_gives_way_where_there_is_no_room() {
    // Too many packets: one octet group each.
    let mut reassembly = Reassembly::new([1, 2]);
    let begun = |id: u16| fragments(&datagram(true, id, 4_000), 1_500, id.into());
    for id in 0..SETS_MAX as u16 + 3 {
        gather(&mut reassembly, Now(id.into()), &begun(id)[1]).unwrap();
    }
    assert_eq!(*reassembly.counts(), ReassemblyCounts { given_up: 3, pushed_out: 3 });
    assert_eq!(reassembly.next_due(), Some(Now(3 + WAIT_MS)));
    // Too many octets.
    let mut reassembly = Reassembly::new([1, 2]);
    let longest = |id: u16| fragments(&datagram(true, id, 65_000), 1_500, id.into());
    for id in 0..100 {
        for part in &longest(id)[1..] {
            gather(&mut reassembly, Now(id.into()), part).unwrap();
        }
    }
    let (sets, free) = reassembly.room();
    assert!(sets == SLOTS_MAX / longest(0).len().saturating_sub(1) && free < longest(0).len(), "{sets} {free}");
    let (gathered, joined) = gather(&mut reassembly, Now(100), &longest(99)[0]).unwrap();
    assert!(matches!(gathered, Gathered::Whole(_)) && joined == datagram(true, 99, 65_000));
}

#[test]
fn a_packet_in_more_fragments_than_any_link_makes_is_refused() {
    let mut reassembly = Reassembly::new([1, 2]);
    let parts = fragments(&datagram(true, 7, 10_000), 68, 7);
    for part in &parts[..usize::from(FRAGMENTS_MAX)] {
        gather(&mut reassembly, Now(5), part).unwrap();
    }
    for part in &parts[usize::from(FRAGMENTS_MAX)..] {
        assert_eq!(gather(&mut reassembly, Now(5), part), Err(DropReason::FragmentsTooMany));
    }
    assert_eq!(reassembly.room(), (1, SLOTS_MAX));
}

#[test]
fn congestion_that_one_fragment_met_is_the_packet_s() {
    for is_v4 in [true, false] {
        let mark = |frame: &[u8], point: u8| {
            let mut frame = frame.to_vec();
            if is_v4 {
                frame[ETHERNET_LEN + 1] = point;
                put(&mut frame, ETHERNET_LEN + 10, [0, 0]);
                let sum = checksum::of(&frame[ETHERNET_LEN..ETHERNET_LEN + 20]);
                put(&mut frame, ETHERNET_LEN + 10, sum.to_be_bytes());
            } else {
                frame[ETHERNET_LEN + 1] = point << 4;
            }
            frame
        };
        let parts = fragments(&datagram(is_v4, 7, 2_000), 1_500, 7);
        for (first, second, expected) in [
            (0, 0, Some(0)),
            (2, 2, Some(2)),
            (2, 3, Some(3)),
            (3, 1, Some(3)),
            (1, 2, Some(1)),
            (0, 3, None),
            (2, 0, None),
        ] {
            let mut reassembly = Reassembly::new([1, 2]);
            gather(&mut reassembly, Now(5), &mark(&parts[0], first)).unwrap();
            let gathered = gather(&mut reassembly, Now(5), &mark(&parts[1], second));
            match expected {
                Some(point) => assert_eq!(congestion(&gathered.unwrap().1, is_v4), point),
                None => assert_eq!(gathered, Err(DropReason::FragmentCongestion)),
            }
        }
    }
}

#[test]
fn headers_in_front_of_the_fragments_stay_in_front() {
    // Hop-by-hop options, then a fragment header, then destination options and UDP.
    let inner = datagram(false, 7, 2_000);
    let mut whole = inner[..ETHERNET_LEN + 40].to_vec();
    put(&mut whole, ETHERNET_LEN + 4, 2_016_u16.to_be_bytes());
    whole[ETHERNET_LEN + 6] = 0;
    whole.extend([60, 0, 5, 2, 0, 0, 1, 0]);
    whole.extend([UDP, 0, 1, 4, 0, 0, 0, 0]);
    whole.extend(&inner[ETHERNET_LEN + 40..]);
    transport(&whole);
    let parts = fragments(&whole, 1_280, 7);
    assert_eq!(parts.len(), 2);
    for part in &parts {
        assert_eq!((part[ETHERNET_LEN + 6], part[ETHERNET_LEN + 40], part[ETHERNET_LEN + 48]), (0, 44, 60));
    }
    assert_eq!(read(&parts[0]).parsed.tuple, transport(&whole).tuple);
    let mut reassembly = Reassembly::new([1, 2]);
    gather(&mut reassembly, Now(5), &parts[1]).unwrap();
    assert!(gather(&mut reassembly, Now(5), &parts[0]).unwrap().1 == whole);
    // More of them than is repeated.
    let mut first = parts[0][..ETHERNET_LEN + 40].to_vec();
    first.extend([44, 60]);
    first.extend([0; 61 * 8 - 2]);
    first.extend(&parts[0][ETHERNET_LEN + 48..]);
    let payload_len = (first.len() - ETHERNET_LEN - 40) as u16;
    put(&mut first, ETHERNET_LEN + 4, payload_len.to_be_bytes());
    assert_eq!(gather(&mut Reassembly::new([1, 2]), Now(5), &first), Err(DropReason::FragmentHeaders));
}

#[test]
fn options_are_repeated_as_their_first_bit_says() {
    let inner = datagram(true, 7, 2_000);
    let mut whole = inner[..ETHERNET_LEN + 20].to_vec();
    whole[ETHERNET_LEN] = 0x48;
    // Record route, which is not copied, and a router alert, which is.
    whole.extend([7, 7, 4, 0, 0, 0, 0, 0x94, 4, 0, 0, 0]);
    put(&mut whole, ETHERNET_LEN + 2, 2_032_u16.to_be_bytes());
    put(&mut whole, ETHERNET_LEN + 10, [0, 0]);
    let sum = checksum::of(&whole[ETHERNET_LEN..]);
    put(&mut whole, ETHERNET_LEN + 10, sum.to_be_bytes());
    whole.extend(&inner[ETHERNET_LEN + 20..]);
    let parts = fragments(&whole, 1_000, 7);
    assert_eq!(parts.len(), 3);
    for (number, part) in parts.iter().enumerate() {
        let expected: &[u8] = if number == 0 { &[7, 7, 4, 0, 0, 0, 0] } else { &[1; 7] };
        assert_eq!(&part[ETHERNET_LEN + 20..ETHERNET_LEN + 27], expected);
        assert_eq!(part[ETHERNET_LEN + 27..ETHERNET_LEN + 31], [0x94, 4, 0, 0]);
    }
    let mut reassembly = Reassembly::new([1, 2]);
    for part in parts[1..].iter().rev() {
        gather(&mut reassembly, Now(5), part).unwrap();
    }
    assert!(gather(&mut reassembly, Now(5), &parts[0]).unwrap().1 == whole);
}

#[test]
fn a_fragment_may_be_cut_again_and_keeps_its_place() {
    let whole = datagram(true, 7, 4_000);
    let mut reassembly = Reassembly::new([1, 2]);
    let parts = fragments(&whole, 1_500, 7);
    let smaller: Vec<Vec<u8>> = parts.iter().flat_map(|part| fragments(part, 576, 7)).collect();
    assert_eq!(smaller.len(), 3 + 3 + 2);
    let mut last = None;
    for part in &smaller {
        last = Some(gather(&mut reassembly, Now(5), part).unwrap());
    }
    assert!(last.unwrap().1 == whole);
}

#[test]
fn what_cannot_be_cut_is_not() {
    let v4 = datagram(true, 7, 2_000);
    let v6 = datagram(false, 7, 2_000);
    assert!(Cut::new(&v4, 27, None).is_none(), "no room for eight octets");
    assert!(Cut::new(&v4, 28, None).is_some());
    assert!(Cut::new(&v6, 1_280, None).is_none(), "without identification");
    assert!(Cut::new(&v6, 55, Some(1)).is_none());
    assert!(Cut::new(&v4[..500], 1_280, None).is_none() && Cut::new(&v6[..500], 1_280, Some(1)).is_none());
    assert!(Cut::new(&v4[..10], 1_280, None).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Several packets at a time, their fragments in any order, some twice, some never: each comes out as it was or not at all, and nothing is left.
    #[test]
    fn packets_come_out_as_they_were(seed in any::<u64>()) {
        let mut random = SplitMix64::new(seed);
        let mut reassembly = Reassembly::new([seed, 3]);
        let mut wholes = Vec::new();
        let mut parts = Vec::new();
        for id in 0..1 + random.below(12) as u16 {
            let is_v4 = random.below(2) == 0;
            let whole = datagram(is_v4, id, 1_500 + random.below(20_000) as usize);
            let made = fragments(&whole, 576 + random.below(9_000) as u32, id.into());
            if made.len() < 2 {
                continue;
            }
            let is_lost = random.below(4) == 0;
            let lost = if is_lost { Some(random.below(made.len() as u64) as usize) } else { None };
            for (number, part) in made.into_iter().enumerate().filter(|&(number, _)| Some(number) != lost) {
                for _ in 0..1 + u64::from(random.below(8) == 0) {
                    parts.push((wholes.len(), number, part.clone()));
                }
            }
            wholes.push((whole, is_lost, false));
        }
        for at in (1..parts.len()).rev() {
            parts.swap(at, random.below(at as u64 + 1) as usize);
        }
        for (packet, _, part) in &parts {
            let (gathered, joined) = gather(&mut reassembly, Now(5), part).unwrap();
            let (whole, is_lost, is_out) = &mut wholes[*packet];
            if matches!(gathered, Gathered::Whole(_)) {
                prop_assert!(!*is_lost);
                prop_assert!(joined == *whole);
                *is_out = true;
            }
        }
        prop_assert!(wholes.iter().all(|(_, is_lost, is_out)| is_lost != is_out));
        while reassembly.expire(Now(5 + WAIT_MS)).is_some() {}
        prop_assert!(is_empty(&reassembly));
    }
}
