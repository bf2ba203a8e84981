use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::flow::Direction;
use crate::flow::tcp::{ACK, FIN, RST, SYN, SegmentFacts, Sight, TcpTrack};
use crate::packet::checksum;
use crate::packet::rewrite::Checksum;
use crate::packet::straight::{Station, Straight};
use crate::packet::{Mac, Tuple};

const CLIENT: [u8; 4] = [192, 0, 2, 9];
const VIP: [u8; 4] = [203, 0, 113, 1];
const SNAT: [u8; 4] = [10, 1, 0, 1];
const SERVER: [u8; 4] = [10, 1, 0, 7];
const OUR_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const FRONT: u32 = 4;
const BACK: u32 = 5;
const URG: u8 = 0x20;
const COUNTED: RealServerId = RealServerId(3);

fn tuple(src: [u8; 4], src_port: u16, dst: [u8; 4], dst_port: u16) -> TupleV4 {
    let (src, dst) = (Ipv4Addr::from(src).into(), Ipv4Addr::from(dst).into());
    TupleV4::of(&Tuple { src, dst, src_port, dst_port, protocol: 6 }).unwrap()
}

fn numbers(end: u32, ack: u32) -> FastNumbers {
    FastNumbers { end, ack, window: 512, scale: 7 }
}

/// The flow of a client's port: full NAT to the server.
fn flow(port: u16) -> FastFlow {
    let side = |from, to, in_ifindex, out_ifindex, numbers| FastSide {
        from,
        to,
        in_ifindex,
        out_ifindex,
        macs: Macs::new(Mac([2, 0, 0, 0, 0, 9]), OUR_MAC),
        size_max: 1500,
        numbers,
    };
    let (near, far) = (tuple(CLIENT, port, VIP, 443), tuple(SNAT, port, SERVER, 8443));
    FastFlow {
        sides: [
            side(near, far, FRONT, BACK, numbers(1_000, 5_000)),
            side(far.reversed(), near.reversed(), BACK, FRONT, numbers(5_000, 1_000)),
        ],
        server: None,
    }
}

/// The same, its end carried and counted for [`COUNTED`].
fn closing(port: u16) -> FastFlow {
    FastFlow { server: Some(COUNTED), ..flow(port) }
}

/// Has the kernel carry a whole connection's end, the client's first.
fn close(table: &FastTable, port: u16) {
    let [near, far] = flow(port).sides;
    let steps = [(near, FIN | ACK, 1_000, 5_000), (far, FIN | ACK, 5_000, 1_001), (near, ACK, 1_001, 5_001)];
    for (side, flags, seq, ack) in steps {
        let mut frame = frame(side.from, flags, seq, ack, 600, 0);
        assert_eq!(table.carry(&mut frame, &arrival(side.in_ifindex), Now(9)), Some(side.out_ifindex));
    }
}

fn table(flows: u32) -> FastTable {
    let memory = FastMemory::private(FastShape::new(flows), [3, 4]);
    FastTable::new(memory, FastSettings { worker: 7, flows: 0..flows, origin_ms: 1_000_000 })
}

/// A segment with its checksums right.
fn frame(tuple: TupleV4, flags: u8, seq: u32, ack: u32, window: u16, payload: usize) -> Vec<u8> {
    let mut frame = vec![0; 54 + payload];
    frame[..6].copy_from_slice(&OUR_MAC.0);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 8]);
    frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6]);
    frame[16..18].copy_from_slice(&(40 + payload as u16).to_be_bytes());
    frame[26..34].copy_from_slice(&tuple.addresses.to_le_bytes());
    frame[34..38].copy_from_slice(&tuple.ports.to_le_bytes());
    frame[38..42].copy_from_slice(&seq.to_be_bytes());
    frame[42..46].copy_from_slice(&ack.to_be_bytes());
    frame[46..48].copy_from_slice(&[0x50, flags]);
    frame[48..50].copy_from_slice(&window.to_be_bytes());
    frame[54..].iter_mut().zip(1..).for_each(|(octet, number)| *octet = number as u8);
    let header = checksum::of(&frame[14..34]);
    frame[24..26].copy_from_slice(&header.to_be_bytes());
    let pseudo = checksum::pseudo_header(&frame[26..30], &frame[30..34], 6, 20 + payload as u32);
    let segment = checksum::transport(pseudo, &frame[34..]);
    frame[50..52].copy_from_slice(&segment.to_be_bytes());
    frame
}

fn arrival(ifindex: u32) -> Arrival {
    Arrival {
        ifindex,
        station: Station::new(OUR_MAC),
        is_tagged: false,
        checksum: Checksum::Complete,
        segment_bytes: 0,
    }
}

#[test]
fn an_entered_flow_is_carried_both_ways_until_it_is_taken_out() {
    let mut table = table(4);
    let flow = flow(40_000);
    let id = table.insert(&flow, Now(5)).unwrap();
    assert!(table.is_live(id));
    for (side, ifindex, out, seq, ack) in [(0, FRONT, BACK, 1_000, 5_000), (1, BACK, FRONT, 5_000, 1_100)] {
        let original = frame(flow.sides[side].from, ACK, seq, ack, 600, 100);
        let mut carried = original.clone();
        assert_eq!(table.carry(&mut carried, &arrival(ifindex), Now(9)), Some(out));
        let mut expected = original.clone();
        let FastSide { to, macs, .. } = flow.sides[side];
        Straight::of(&mut expected).unwrap().redirect(Checksum::Complete, to, &macs);
        assert_eq!(carried, expected);
        assert!(checksum::is_valid(0, &carried[14..34]));
        let noted = table.read(id).sides[side];
        let numbers = FastNumbers { end: seq + 100, ack, window: 600, scale: 7 };
        let expected = FastSideUse { used: Now(9), frames: 1, octets: 154, payload_octets: 100, numbers, fin: None };
        assert_eq!(noted, expected);
    }
    let noted = table.read(id);
    assert_eq!(table.remove(id, Now(10)), noted);
    assert!(!table.is_live(id));
    assert_eq!(table.open(), 0);
    for side in flow.sides {
        let mut again = frame(side.from, ACK, side.numbers.end, side.numbers.ack, 600, 0);
        assert_eq!(table.carry(&mut again, &arrival(side.in_ifindex), Now(10)), None);
    }
}

#[test]
fn what_is_unusual_is_left_alone() {
    let mut table = table(4);
    let flow = flow(40_000);
    let id = table.insert(&flow, Now(5)).unwrap();
    let before = table.read(id);
    let from = flow.sides[0].from;
    let usual = frame(from, ACK, 1_000, 5_000, 600, 100);
    let here = arrival(FRONT);
    let mut tried: Vec<(Vec<u8>, Arrival)> = vec![
        (usual.clone(), arrival(BACK)),
        (usual.clone(), Arrival { is_tagged: true, ..here }),
        (usual.clone(), Arrival { checksum: Checksum::Absent, ..here }),
        (usual.clone(), Arrival { station: Station::NONE, ..here }),
        (usual.clone(), Arrival { segment_bytes: 1_461, ..here }),
        (frame(from, ACK, 1_000, 5_000, 600, 1_461), here),
        (frame(from.reversed(), ACK, 1_000, 5_000, 600, 1), here),
        // Outside of the windows on each side.
        (frame(from, ACK, 1_000 + (512 << 7) + 1, 5_000, 600, 1), here),
        (frame(from, ACK, 1_000_u32.wrapping_sub(66_002), 5_000, 600, 1), here),
        (frame(from, ACK, 1_000, 5_001, 600, 1), here),
        (frame(from, ACK, 1_000, 5_000_u32.wrapping_sub(66_001), 600, 1), here),
    ];
    for flags in [0, FIN | ACK, RST | ACK, SYN | ACK, URG | ACK, RST, SYN] {
        tried.push((frame(from, flags, 1_000, 5_000, 600, 0), here));
    }
    let mut expiring = usual.clone();
    expiring[22] = 1;
    tried.push((expiring, here));
    for (bent, arrival) in tried {
        let mut carried = bent.clone();
        assert_eq!(table.carry(&mut carried, &arrival, Now(9)), None, "{bent:02x?} {arrival:?}");
        assert_eq!(carried, bent);
    }
    assert_eq!(table.read(id), before);
    assert_eq!(table.carry(&mut usual.clone(), &Arrival { segment_bytes: 1_460, ..here }, Now(9)), Some(BACK));
}

#[test]
fn a_partial_checksum_stays_partial() {
    let mut table = table(1);
    let flow = flow(40_000);
    table.insert(&flow, Now(5)).unwrap();
    let mut carried = frame(flow.sides[0].from, ACK, 1_000, 5_000, 600, 100);
    let pseudo = checksum::pseudo_header(&CLIENT, &VIP, 6, 120);
    carried[50..52].copy_from_slice(&pseudo.to_be_bytes());
    let here = Arrival { checksum: Checksum::Partial, ..arrival(FRONT) };
    assert_eq!(table.carry(&mut carried, &here, Now(9)), Some(BACK));
    let pseudo = checksum::pseudo_header(&SNAT, &SERVER, 6, 120);
    assert_eq!(carried[50..52], pseudo.to_be_bytes());
}

#[test]
fn a_number_rests_before_it_is_used_again() {
    let mut table = table(2);
    let ids = [1, 2].map(|port| table.insert(&flow(port), Now(0)).unwrap());
    assert_eq!(table.insert(&flow(3), Now(1_000)), Err(FastFull::Entries));
    table.remove(ids[0], Now(1_000));
    assert_eq!(table.insert(&flow(3), Now(1_000 + REST_MS - 1)), Err(FastFull::Entries));
    assert_eq!(table.insert(&flow(3), Now(1_000 + REST_MS)), Ok(ids[0]));
    assert_eq!(table.open(), 2);
}

#[test]
fn a_flow_is_entered_once() {
    let mut table = table(8);
    let id = table.insert(&flow(1), Now(0)).unwrap();
    assert_eq!(table.insert(&flow(1), Now(0)), Err(FastFull::Bucket));
    // The forward direction of another flow whose answers look the same.
    let mut other = flow(2);
    other.sides[1].from = flow(1).sides[1].from;
    // However often: no number is used up by it.
    for _ in 0..9 {
        assert_eq!(table.insert(&other, Now(0)), Err(FastFull::Bucket));
    }
    let mut first = frame(other.sides[0].from, ACK, 1_000, 5_000, 600, 0);
    assert_eq!(table.carry(&mut first, &arrival(FRONT), Now(0)), None);
    table.remove(id, Now(0));
    table.insert(&other, Now(0)).unwrap();
    assert_eq!(table.carry(&mut first, &arrival(FRONT), Now(0)), Some(BACK));
}

#[test]
fn what_is_refused_leaves_nothing_behind() {
    // One bucket: eight directions.
    let shape = FastShape { flows: 16, ..FastShape::new(1) };
    let memory = FastMemory::private(shape, [3, 4]);
    let mut table = FastTable::new(memory, FastSettings { worker: 0, flows: 0..16, origin_ms: 0 });
    let ids: Vec<FastId> = (1..=4).map(|port| table.insert(&flow(port), Now(0)).unwrap()).collect();
    assert_eq!(table.insert(&flow(5), Now(0)), Err(FastFull::Bucket));
    for id in ids {
        table.remove(id, Now(0));
    }
    let index = (*table.memory().index).as_ref();
    assert!(index.iter().all(|word| word.load(Ordering::Relaxed) == 0));
    assert!(table.insert(&flow(5), Now(0)).is_ok());
}

#[test]
fn neighbouring_ports_spread() {
    for seed in 0..20 {
        let shape = FastShape::new(1 << 14);
        let memory = FastMemory::private(shape, [crate::random::mix(seed), crate::random::mix(!seed)]);
        let mut table = FastTable::new(memory, FastSettings { worker: 0, flows: 0..shape.flows(), origin_ms: 0 });
        let refused = (0..shape.flows()).filter(|&number| {
            let mut flow = flow(20_000 + (number >> 2) as u16);
            // Four clients, and one port after the other towards one server.
            let lease = 1_024 + number as u16;
            flow.sides[0].from.addresses += u64::from(number & 3) << 24;
            flow.sides[1].from = tuple(SERVER, 8443, SNAT, lease);
            table.insert(&flow, Now(0)).is_err()
        });
        let refused = refused.count();
        // Poisson, mean 2, says one in 2,000.
        assert!(refused <= 30, "{refused} of {} with seed {seed}", shape.flows());
    }
}

#[test]
fn one_store_forgets_the_flows_of_a_worker_and_no_others() {
    let memory = FastMemory::private(FastShape::new(8), [3, 4]);
    let mut first = FastTable::new(memory.clone(), FastSettings { worker: 0, flows: 0..4, origin_ms: 0 });
    let mut second = FastTable::new(memory, FastSettings { worker: 1, flows: 4..8, origin_ms: 0 });
    let forgotten = first.insert(&flow(1), Now(0)).unwrap();
    let kept = second.insert(&flow(2), Now(0)).unwrap();
    let segment = |port| frame(flow(port).sides[0].from, ACK, 1_000, 5_000, 600, 10);
    // Whose table it is asked of makes no difference.
    assert_eq!(second.carry(&mut segment(1), &arrival(FRONT), Now(1)), Some(BACK));
    first.forget_flows();
    assert_eq!((first.is_live(forgotten), second.is_live(kept)), (false, true));
    assert_eq!(first.carry(&mut segment(1), &arrival(FRONT), Now(1)), None);
    assert_eq!(first.carry(&mut segment(2), &arrival(FRONT), Now(1)), Some(BACK));
    assert_eq!(first.remove(forgotten, Now(2)).sides[0].frames, 1);
    let again = first.insert(&flow(1), Now(2)).unwrap();
    assert!(first.is_live(again));
    assert_eq!(second.carry(&mut segment(1), &arrival(FRONT), Now(1)), Some(BACK));
}

/// The first direction of a flow, as it would be routed.
fn transit(port: u16) -> FastTransit {
    let FastSide { from: tuple, in_ifindex, out_ifindex, macs, size_max, .. } = flow(port).sides[0];
    FastTransit { tuple, in_ifindex, out_ifindex, macs, size_max }
}

#[test]
fn a_transit_goes_on_as_it_is_whatever_its_numbers() {
    let mut table = table(2);
    let id = table.insert_transit(&transit(40_000), Now(5)).unwrap();
    let tuple = transit(40_000).tuple;
    assert_eq!(table.find_transit(tuple), Some(id));
    for (seq, ack) in [(0, 0), (1 << 31, 77), (u32::MAX, u32::MAX)] {
        let mut carried = frame(tuple, ACK, seq, ack, 600, 100);
        let mut expected = carried.clone();
        assert_eq!(table.carry(&mut carried, &arrival(FRONT), Now(9)), Some(BACK));
        expected[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        expected[6..12].copy_from_slice(&OUR_MAC.0);
        expected[22] = 63;
        expected[24..26].fill(0);
        let sum = checksum::of(&expected[14..34]);
        expected[24..26].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(carried, expected, "the TCP header and what follows are not touched");
    }
    let [noted, _] = table.read(id).sides;
    assert_eq!((noted.used, noted.frames, noted.octets, noted.payload_octets), (Now(9), 3, 3 * 154, 300));
    // Nor the other direction, another interface, an end, or one that is too large.
    for (tuple, flags, payload, ifindex) in [
        (tuple.reversed(), ACK, 1, BACK),
        (tuple, ACK, 1, BACK),
        (tuple, FIN | ACK, 1, FRONT),
        (tuple, RST | ACK, 0, FRONT),
        (tuple, SYN, 0, FRONT),
        (tuple, ACK, 1_461, FRONT),
    ] {
        let mut left = frame(tuple, flags, 1, 1, 600, payload);
        assert_eq!(table.carry(&mut left, &arrival(ifindex), Now(9)), None);
    }
    assert_eq!(table.remove(id, Now(9)).sides[0], noted);
    assert_eq!((table.find_transit(tuple), table.open()), (None, 0));
    assert_eq!(table.carry(&mut frame(tuple, ACK, 1, 1, 600, 1), &arrival(FRONT), Now(9)), None);
}

#[test]
fn transits_and_flows_are_forgotten_apart() {
    let mut table = table(4);
    let transit_id = table.insert_transit(&transit(1), Now(0)).unwrap();
    let id = table.insert(&flow(2), Now(0)).unwrap();
    let carried = |table: &FastTable| {
        [1, 2].map(|port| {
            let mut frame = frame(flow(port).sides[0].from, ACK, 1_000, 5_000, 600, 10);
            table.carry(&mut frame, &arrival(FRONT), Now(1)).is_some()
        })
    };
    assert_eq!(carried(&table), [true, true]);
    table.forget_transits();
    assert_eq!((carried(&table), table.is_live(transit_id), table.is_live(id)), ([false, true], false, true));
    // A forgotten one keeps its place until it is taken out.
    assert_eq!(table.find_transit(transit(1).tuple), Some(transit_id));
    assert_eq!(table.insert_transit(&transit(1), Now(1)), Err(FastFull::Bucket));
    table.remove(transit_id, Now(1));
    let again = table.insert_transit(&transit(1), Now(1)).unwrap();
    table.forget_flows();
    assert_eq!((carried(&table), table.is_live(again), table.is_live(id)), ([true, false], true, false));
    assert_eq!(table.find_transit(flow(2).sides[0].from), None, "that is a flow");
}

#[test]
fn an_end_is_carried_and_told_once() {
    let mut table = table(4);
    let id = table.insert(&closing(1), Now(5)).unwrap();
    let other = table.insert(&closing(2), Now(5)).unwrap();
    let ended = |table: &FastTable| (table.memory().ended(COUNTED), table.memory().ended(RealServerId(2)));
    let [near, far] = closing(1).sides;
    let carry = |table: &FastTable, side: &FastSide, flags, seq, ack, payload| {
        let mut frame = frame(side.from, flags, seq, ack, 600, payload);
        table.carry(&mut frame, &arrival(side.in_ifindex), Now(9)).is_some()
    };
    let fin = |is_second, answers| Some(FastFin { is_second, answers });
    assert!(carry(&table, &near, FIN | ACK, 1_000, 5_000, 10));
    assert_eq!(table.read(id).sides.map(|side| side.fin), [fin(false, false), None]);
    assert_eq!(table.read(id).sides[0].numbers.end, 1_011);
    // It closed its side: more than it has sent is for who looks closer, the same once more is not.
    assert!(!carry(&table, &near, ACK, 1_011, 5_000, 1));
    assert!(carry(&table, &near, FIN | ACK, 1_000, 5_000, 10));
    // The other side goes on, and closes before it has had that.
    assert!(carry(&table, &far, ACK, 5_000, 1_000, 100));
    assert!(carry(&table, &far, FIN | ACK, 5_100, 1_010, 0));
    assert_eq!(table.read(id).sides[1].fin, fin(true, false));
    assert!(carry(&table, &near, ACK, 1_011, 5_101, 0));
    assert_eq!((ended(&table), table.has_ended(), table.next_ended(Now(9))), ((0, 0), false, None));
    assert!(carry(&table, &far, ACK, 5_101, 1_011, 0));
    assert_eq!((ended(&table), table.has_ended()), ((1, 0), true));
    // Late duplicates change nothing.
    assert!(carry(&table, &far, FIN | ACK, 5_100, 1_010, 0));
    close(&table, 2);
    assert_eq!(table.read(other).sides[1].fin, fin(true, true));
    assert_eq!(ended(&table), (2, 0));
    assert_eq!(
        [table.next_ended(Now(9)), table.next_ended(Now(9)), table.next_ended(Now(9))],
        [Some(other), Some(id), None]
    );
    assert!(carry(&table, &far, FIN | ACK, 5_100, 1_010, 0) && table.next_ended(Now(9)).is_none());
    table.remove(id, Now(10));
    assert_eq!(ended(&table), (1, 0));
    table.remove(other, Now(10));
    assert_eq!((ended(&table), table.has_ended()), ((0, 0), false));
}

#[test]
fn an_end_holds_where_another_cpu_puts_older_numbers_back() {
    let mut table = table(1);
    let id = table.insert(&closing(1), Now(5)).unwrap();
    let [near, far] = closing(1).sides;
    let carries = |side: &FastSide, flags, seq, ack, payload| {
        let mut frame = frame(side.from, flags, seq, ack, 600, payload);
        table.carry(&mut frame, &arrival(side.in_ifindex), Now(9)).is_some()
    };
    let put_back = |side: usize, numbers: FastNumbers| {
        let words = table.memory().side(id.0, side).unwrap();
        words[layout::END_AND_ACK].store(layout::end_and_ack(&numbers), Ordering::Relaxed);
    };
    assert!(carries(&near, FIN | ACK, 1_000, 5_000, 0));
    assert!(carries(&far, FIN | ACK, 5_000, 1_001, 0));
    put_back(1, numbers(5_001, 1_000));
    assert!(!carries(&far, ACK, 5_001, 1_001, 1), "there is nothing behind its FIN");
    assert!(carries(&near, ACK, 1_001, 5_001, 0));
    assert_eq!(table.memory().ended(COUNTED), 1);
    put_back(0, numbers(1_000, 5_000));
    let used = table.remove(id, Now(10));
    let noted = used.sides.map(|side| (side.numbers.end, side.numbers.ack, side.fin.is_some()));
    assert_eq!((noted, used.is_over), ([(1_001, 5_001, true), (5_001, 1_001, true)], true));
}

#[test]
fn a_number_in_the_list_is_not_used_again() {
    let mut table = table(2);
    let id = table.insert(&closing(1), Now(0)).unwrap();
    let kept = table.insert(&closing(2), Now(0)).unwrap();
    close(&table, 1);
    close(&table, 2);
    // Taken out for another reason, before anybody has looked.
    table.remove(id, Now(0));
    assert_eq!(table.memory().ended(COUNTED), 1);
    assert_eq!(table.insert(&closing(3), Now(10 * REST_MS)), Err(FastFull::Entries));
    assert_eq!(table.next_ended(Now(10 * REST_MS)), Some(kept));
    assert_eq!(table.next_ended(Now(10 * REST_MS)), None);
    assert_eq!(table.insert(&closing(3), Now(11 * REST_MS)), Ok(id));
    assert_eq!(table.read(id).sides.map(|side| side.fin), [None; 2]);
    close(&table, 3);
    assert_eq!((table.next_ended(Now(11 * REST_MS)), table.memory().ended(COUNTED)), (Some(id), 2));
}

#[test]
fn a_transit_has_no_end_of_the_flow_that_had_its_number() {
    let mut table = table(1);
    let id = table.insert(&closing(1), Now(0)).unwrap();
    close(&table, 1);
    assert_eq!(table.next_ended(Now(0)), Some(id));
    table.remove(id, Now(0));
    assert_eq!(table.insert_transit(&transit(2), Now(REST_MS)), Ok(id));
    let fins = [0, 1].map(|side| table.memory().side(id.0, side).unwrap()[layout::FIN].load(Ordering::Relaxed));
    assert_eq!(fins, [0, 0]);
}

#[test]
fn ends_are_told_to_the_worker_whose_flow_it_is() {
    let memory = FastMemory::private(FastShape::new(8), [3, 4]);
    let mut first = FastTable::new(memory.clone(), FastSettings { worker: 0, flows: 0..4, origin_ms: 0 });
    let mut second = FastTable::new(memory, FastSettings { worker: 1, flows: 4..8, origin_ms: 0 });
    let id = second.insert(&closing(1), Now(0)).unwrap();
    close(&first, 1);
    assert_eq!((first.next_ended(Now(1)), second.next_ended(Now(1))), (None, Some(id)));
}

#[test]
fn newer_numbers_can_be_told() {
    let mut table = table(1);
    let flow = flow(1);
    let id = table.insert(&flow, Now(0)).unwrap();
    let mut ahead = frame(flow.sides[0].from, ACK, 1_000, 5_700, 600, 0);
    assert_eq!(table.carry(&mut ahead, &arrival(FRONT), Now(0)), None);
    table.tell(id, [numbers(900, 4_000), numbers(5_700, 1_000)]);
    assert_eq!(table.read(id).sides.map(|side| side.numbers), [numbers(1_000, 5_000), numbers(5_700, 1_000)]);
    assert_eq!(table.carry(&mut ahead, &arrival(FRONT), Now(0)), Some(BACK));
}

#[test]
fn the_largest_table_fits_what_a_program_can_address() {
    let shape = FastShape::new(u32::MAX);
    assert_eq!(shape.flows(), FastShape::FLOWS_MAX);
    assert_eq!(shape.entries().octets(), 1 << 30);
    assert_eq!(shape.index().octets(), 1 << 28);
    assert_eq!(FastShape::new(0).flows(), 1);
}

proptest! {
    /// The kernel follows a connection exactly as a track does, and takes nothing that a track would look at more closely.
    #[test]
    fn numbers_are_followed_as_a_track_follows_them(
        scales in any::<[Option<u8>; 2]>(), windows in any::<[u16; 2]>(), starts in any::<[u32; 2]>(),
        segments in prop::collection::vec(
            (any::<bool>(), -70_000_i64..140_000, -70_000_i64..140_000, any::<u16>(), 0_usize..3_000), 1..40,
        ),
    ) {
        let [client, server] = starts;
        let facts = |flags, seq, ack, window, window_scale| SegmentFacts { flags, seq, ack, window, payload_len: 0, window_scale };
        let mut track = TcpTrack::open(&facts(SYN, client, 0, windows[0], scales[0]), Sight::BothWays).unwrap();
        let [client, server] = [client.wrapping_add(1), server.wrapping_add(1)];
        let _ = track.advance(Direction::Reverse, &facts(SYN | ACK, server.wrapping_sub(1), client, windows[1], scales[1]));
        prop_assert_eq!(track.open_numbers(Direction::Forward), None);
        let _ = track.advance(Direction::Forward, &facts(ACK, client, server, windows[0], None));
        let _ = track.advance(Direction::Reverse, &facts(ACK, server, client, windows[1], None));
        let mut flow = flow(1);
        let sides = [Direction::Forward, Direction::Reverse];
        for side in sides {
            flow.sides[side.index()].numbers = track.open_numbers(side).unwrap();
            flow.sides[side.index()].size_max = 65_535;
        }
        let mut table = table(1);
        let id = table.insert(&flow, Now(0)).unwrap();
        let mut followed = track;
        for (is_reverse, seq, ack, window, payload) in segments {
            let from = if is_reverse { Direction::Reverse } else { Direction::Forward };
            let side = flow.sides[from.index()];
            let seq = track.open_numbers(from).unwrap().end.wrapping_add(seq as u32);
            let ack = track.open_numbers(from).unwrap().ack.wrapping_add(ack as u32);
            let mut frame = frame(side.from, ACK, seq, ack, window, payload);
            let end = seq.wrapping_add(payload as u32);
            let is_followed = track.advance_open(from, seq, end, ack, window);
            let carried = table.carry(&mut frame, &arrival(side.in_ifindex), Now(0));
            prop_assert_eq!(carried.is_some(), is_followed);
        }
        let noted = table.remove(id, Now(0));
        for side in sides {
            prop_assert_eq!(Some(noted.sides[side.index()].numbers), track.open_numbers(side));
            followed.catch_up(side, &noted.sides[side.index()].numbers);
        }
        prop_assert_eq!(followed, track);
    }

    /// The same of how a connection closes, as long as the kernel carries it.
    #[test]
    fn ends_are_followed_as_a_track_follows_them(
        segments in prop::collection::vec((any::<bool>(), 0..4_u32, 0..6_u32, 0..3_u32, 0..3_usize), 1..30),
    ) {
        let facts = |flags, seq, ack, payload| SegmentFacts { flags, seq, ack, window: 500, payload_len: payload, window_scale: None };
        let mut track = TcpTrack::open(&facts(SYN, 999, 0, 0), Sight::BothWays).unwrap();
        let _ = track.advance(Direction::Reverse, &facts(SYN | ACK, 4_999, 1_000, 0));
        let _ = track.advance(Direction::Forward, &facts(ACK, 1_000, 5_000, 0));
        let mut lent = track;
        let mut flow = closing(1);
        for (side, numbers) in flow.sides.iter_mut().zip(lent.lend().unwrap()) {
            side.numbers = numbers;
        }
        let mut table = table(1);
        let id = table.insert(&flow, Now(0)).unwrap();
        let (mut is_over, mut followed) = (false, track);
        for (is_reverse, back, behind, fin, payload) in segments {
            let from = if is_reverse { Direction::Reverse } else { Direction::Forward };
            let side = flow.sides[from.index()];
            // Near what was sent last, and what the other side has sent last.
            let seq = track.numbers(from).end.wrapping_sub(back);
            let ack = track.numbers(from.opposite()).end.wrapping_sub(behind / 2);
            let flags = if fin == 0 { FIN | ACK } else { ACK };
            let outcome = track.advance(from, &facts(flags, seq, ack, payload as u32));
            let mut frame = frame(side.from, flags, seq, ack, 500, payload);
            if table.carry(&mut frame, &arrival(side.in_ifindex), Now(0)).is_none() {
                // Who takes a flow out follows it from there by itself.
                break;
            }
            prop_assert!(outcome.is_valid());
            is_over |= outcome.event.is_some();
            prop_assert_eq!(table.has_ended(), is_over);
            followed = track;
        }
        prop_assert_eq!(table.next_ended(Now(0)), is_over.then_some(id));
        let noted = table.remove(id, Now(0));
        for side in Direction::BOTH {
            lent.catch_up(side, &noted.sides[side.index()].numbers);
        }
        prop_assert_eq!(lent.catch_up_ends(noted.sides.map(|side| side.fin), noted.is_over), is_over);
        lent.take_back();
        followed.scale_windows();
        prop_assert_eq!(lent, followed);
    }
}
