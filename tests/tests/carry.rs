//! The programs of the fast path, run by the kernel: beside their twin in Rust over random frames, and on real wires.

#![allow(clippy::unwrap_used)]

#[path = "carry/wire.rs"]
mod wire;

use std::sync::atomic::Ordering;

use towpath_core::fast_path::program::{self, FastMaps};
use towpath_core::fast_path::{
    Arrival, FastFlow, FastMemory, FastNumbers, FastSettings, FastShape, FastSide, FastTable, FastTransit, MapShape,
};
use towpath_core::packet::checksum;
use towpath_core::packet::rewrite::{Checksum, Macs};
use towpath_core::packet::straight::Station;
use towpath_core::{Now, RealServerId};

use towpath_core::packet::{Mac, TcpFlags, TupleV4};
use towpath_core::random::SplitMix64;
use towpath_sys::fast_path::{FastPath, MapSize, Programs, Trial, Unavailable};

const SEED: [u64; 2] = [0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321];
const WORKER: u16 = 3;
const FIN: u8 = TcpFlags::FIN.0;

/// A table in memory that the kernel reads, and one of the same kind that it does not.
struct Twins {
    path: FastPath<3>,
    memory: FastMemory,
}

fn open(flows: u32) -> Result<Twins, Unavailable> {
    let shape = FastShape::new(flows);
    let size = |map: MapShape| MapSize { element_octets: map.element_octets, elements: map.elements };
    let path =
        FastPath::open([shape.control(), shape.index(), shape.entries()].map(size), |[control, index, entries]| {
            let maps = FastMaps { control, index, entries };
            Programs {
                carry: program::carry_program(shape, SEED, maps),
                filter: program::filter_program(shape, SEED, maps),
            }
        })?;
    let [control, index, entries] = path.words().clone();
    let memory = FastMemory::new(shape, SEED, control, index, entries);
    Ok(Twins { path, memory })
}

fn table(memory: &FastMemory) -> FastTable {
    let flows = 0..memory.shape().flows();
    FastTable::new(memory.clone(), FastSettings { worker: WORKER, flows, origin_ms: 0 })
}

/// This process may not load programs: then this is what is said.
fn opened(flows: u32) -> Option<Twins> {
    match open(flows) {
        Ok(twins) => Some(twins),
        Err(Unavailable::Privilege) => {
            eprintln!("not looked at: {}", Unavailable::Privilege);
            None
        }
        Err(other) => panic!("{other}"),
    }
}

/// The flow `number`: from and to the loopback, on which frames have no address.
fn flow(number: u16) -> FastFlow {
    let mut chance = SplitMix64::new(number.into());
    let mut tuple = || TupleV4 { addresses: chance.next_u64(), ports: chance.next_u64() as u32 };
    let (near, far) = (tuple(), tuple());
    let side = |from, to, octet, end, ack| FastSide {
        from,
        to,
        in_ifindex: 1,
        out_ifindex: 1,
        macs: Macs::new(Mac([2, octet, 3, 4, 5, 6]), Mac([2, 8, octet, 10, 11, 12])),
        size_max: 1500,
        numbers: FastNumbers { end, ack, window: 400, scale: 7 },
    };
    let sides = [side(near, far, 1, 1_000, 50), side(far.reversed(), near.reversed(), 2, 50, 1_000)];
    // Of every other one the end is carried, too.
    FastFlow { sides, server: number.is_multiple_of(2).then_some(RealServerId(number / 8)) }
}

/// The first direction of the flow `number`, routed.
fn transit(number: u16) -> FastTransit {
    let FastSide { from: tuple, in_ifindex, out_ifindex, macs, size_max, .. } = flow(number).sides[0];
    FastTransit { tuple, in_ifindex, out_ifindex, macs, size_max }
}

/// A segment of a flow that would be carried, its checksums right.
fn segment(side: &FastSide, payload: usize) -> Vec<u8> {
    let mut frame = vec![0; 54 + payload];
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 8]);
    frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6]);
    frame[16..18].copy_from_slice(&(40 + payload as u16).to_be_bytes());
    frame[26..34].copy_from_slice(&side.from.addresses.to_le_bytes());
    frame[34..38].copy_from_slice(&side.from.ports.to_le_bytes());
    frame[38..42].copy_from_slice(&side.numbers.end.to_be_bytes());
    frame[42..46].copy_from_slice(&side.numbers.ack.to_be_bytes());
    frame[46..50].copy_from_slice(&[0x50, 0x10, 2, 0]);
    frame[54..].iter_mut().zip(1..).for_each(|(octet, number)| *octet = number as u8);
    finish(&mut frame);
    frame
}

/// Writes the checksums of a frame whose headers are where those of a segment are.
fn finish(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let header = checksum::of(&frame[14..34]);
    frame[24..26].copy_from_slice(&header.to_be_bytes());
    frame[50..52].fill(0);
    let pseudo = checksum::pseudo_header(&frame[26..30], &frame[30..34], 6, frame.len() as u32 - 34);
    let whole = checksum::transport(pseudo, &frame[34..]);
    frame[50..52].copy_from_slice(&whole.to_be_bytes());
}

#[test]
fn the_kernel_follows_how_connections_close_as_its_twin_does() {
    const FLOWS: u16 = 4_000;
    let Some(twins) = opened(FLOWS.into()) else { return };
    let model = FastMemory::private(twins.memory.shape(), SEED);
    let mut tables = [table(&twins.memory), table(&model)];
    let here = Arrival {
        ifindex: 1,
        station: Station::new(Mac([0; 6])),
        is_tagged: false,
        checksum: Checksum::Complete,
        segment_bytes: 0,
    };
    let mut chance = SplitMix64::new(11);
    let mut over = 0;
    for number in 0..FLOWS {
        let server = RealServerId(number % 7);
        let flow = FastFlow { server: Some(server), ..flow(number) };
        let Ok(id) = tables.each_mut().map(|table| table.insert(&flow, Now(1)))[1] else { continue };
        for _ in 0..4 + chance.below(8) {
            let at = chance.below(2) as usize;
            let used = tables[1].read(id);
            let mut side = flow.sides[at];
            // Near what was sent last, and what the other side has sent last.
            side.numbers.end = used.sides[at].numbers.end.wrapping_sub((chance.below(8) / 6) as u32);
            side.numbers.ack = used.sides[1 - at].numbers.end.wrapping_sub((chance.below(8) / 6) as u32);
            let mut frame = segment(&side, (chance.below(8) / 7) as usize);
            if chance.below(3) == 0 {
                frame[47] |= FIN;
                finish(&mut frame);
            }
            let Trial { result, frame: went } = twins.path.try_carry(&frame, 0).unwrap();
            let is_carried = tables[1].carry(&mut frame, &here, Now(1)).is_some();
            assert_eq!((result == program::REDIRECT, went), (is_carried, frame), "{number}");
            let seen = tables.each_ref().map(|table| {
                let sides = table.read(id).sides.map(|side| (side.numbers, side.fin, side.frames));
                (sides, table.has_ended(), table.memory().ended(server))
            });
            assert_eq!(seen[0], seen[1], "{number}");
        }
        // Some are looked for at once, others stay in the list.
        if chance.below(4) == 0 {
            loop {
                let next = tables.each_mut().map(|table| table.next_ended(Now(2)));
                assert_eq!(next[0], next[1]);
                let Some(ended) = next[0] else { break };
                over += 1;
                for table in &mut tables {
                    table.remove(ended, Now(2));
                }
            }
        }
    }
    assert!(over > usize::from(FLOWS) / 20, "{over} were over");
}

#[test]
fn the_kernel_does_with_random_frames_what_its_twin_does() {
    const FLOWS: u16 = 32;
    /// Of these, so many are transits.
    const TRANSITS: u16 = 8;
    const FRAMES: usize = 60_000;
    let Some(twins) = opened(FLOWS.into()) else { return };
    let model = FastMemory::private(twins.memory.shape(), SEED);
    let mut tables = [table(&twins.memory), table(&model)];
    let ids: Vec<_> = (0..FLOWS)
        .filter_map(|number| {
            let entered = tables.each_mut().map(|table| match number < TRANSITS {
                true => table.insert_transit(&transit(number), Now(1)),
                false => table.insert(&flow(number), Now(1)),
            });
            assert_eq!(entered[0], entered[1]);
            Some((number, entered[0].ok()?))
        })
        .collect();
    let arrival = |segment_bytes| Arrival {
        ifindex: 1,
        station: Station::new(Mac([0; 6])),
        is_tagged: false,
        checksum: Checksum::Complete,
        segment_bytes,
    };
    let mut chance = SplitMix64::new(7);
    let (mut carried, mut left) = (0, 0);
    for _ in 0..FRAMES {
        let side = chance.below(2) as usize;
        let mut side = flow(chance.below(u64::from(FLOWS) + 1) as u16).sides[side];
        for number in [&mut side.numbers.end, &mut side.numbers.ack] {
            // Mostly near, now and then far away.
            let reach = [1, 60, 70_000, 1 << 32][chance.below(4) as usize];
            *number = number.wrapping_add(chance.below(reach) as u32).wrapping_sub((reach / 2) as u32);
        }
        let payload = [0, 1, 100, 1459, 1460, 1461, 2000][chance.below(7) as usize];
        let mut frame = segment(&side, payload);
        frame[48..50].copy_from_slice(&(chance.next_u64() as u16).to_be_bytes());
        if chance.below(16) == 0 {
            frame[47] |= FIN;
        }
        frame[22] = [64, 64, 64, 2, 1, 0][chance.below(6) as usize];
        if chance.below(3) > 0 {
            finish(&mut frame);
        }
        // Some are bent somewhere, the headers mostly.
        for _ in 0..chance.below(3) / 2 * (1 + chance.below(2)) {
            let at = chance.below(54) as usize;
            frame[at] ^= 1 << chance.below(8);
        }
        if chance.below(2) == 0 && frame.len() >= 54 {
            frame[24..26].fill(0);
            let header = checksum::of(&frame[14..34]);
            frame[24..26].copy_from_slice(&header.to_be_bytes());
        }
        match chance.below(20) {
            // The test run itself refuses what has no IPv4 header.
            0 => frame.truncate(34 + chance.below(40) as usize),
            1 => frame.extend([0; 6]),
            _ => {}
        }
        let segment_bytes = [0, 0, 0, 1, 1460, 1461][chance.below(6) as usize];
        let filtered = twins.path.try_filter(&frame, segment_bytes).unwrap();
        let Trial { result, frame: went } = twins.path.try_carry(&frame, segment_bytes).unwrap();
        let mut expected = frame.clone();
        let to = tables[1].carry(&mut expected, &arrival(segment_bytes), Now(1));
        assert_eq!(
            result,
            if to.is_some() { program::REDIRECT } else { program::NEXT },
            "{frame:02x?} {segment_bytes}"
        );
        assert_eq!(filtered == 0, to.is_some(), "{frame:02x?} {segment_bytes}");
        assert_eq!(went, expected, "{frame:02x?}");
        *if to.is_some() { &mut carried } else { &mut left } += 1;
    }
    assert!(carried > FRAMES / 20 && left > FRAMES / 20, "{carried} carried, {left} left");
    for (number, id) in ids {
        let [mut kernels, models] = tables.each_mut().map(|table| table.remove(id, Now(2)));
        for (kernels, models) in kernels.sides.iter_mut().zip(&models.sides) {
            // The clock is the kernel's.
            assert!(kernels.frames == 0 || kernels.used > Now(1), "{number}: {kernels:?}");
            kernels.used = models.used;
        }
        assert_eq!(kernels, models, "{number}");
    }
    let [_, index, _] = twins.path.words();
    assert!((**index).as_ref().iter().all(|word| word.load(Ordering::Relaxed) == 0));
}
