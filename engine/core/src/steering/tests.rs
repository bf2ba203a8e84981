mod fanout;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::prelude::*;
use towpath_config::model::{Protocol, SourcePool};

use super::program::{INSTRUCTIONS_MAX, Instruction, NETWORK_HEADER, reuseport_program};
use super::*;
use crate::snat::{SnatBook, SnatLimits};

const SEED: u32 = 0x5eed_cafe;
const TUPLES: usize = 1_000_000;

/// Steele, Lea & Flood: SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn client(&mut self) -> SocketAddr {
        let bits = u128::from(self.next()) << 64 | u128::from(self.next());
        let address = if self.next() & 1 == 0 {
            IpAddr::V4(Ipv4Addr::from_bits(bits as u32))
        } else {
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        };
        SocketAddr::new(address, self.next() as u16)
    }
}

/// What lies between a network header and the port: nothing, IPv4 options of so many words, or an IPv6 extension header.
#[derive(Clone, Copy)]
enum Between {
    Nothing,
    Options(usize),
    Extension,
}

/// A packet from its network header on, up to and including the two ports.
fn packet(client: SocketAddr, protocol: u8, between: Between, random: &mut Random) -> Vec<u8> {
    let mut packet = Vec::new();
    match client.ip() {
        IpAddr::V4(source) => {
            let options = if let Between::Options(words) = between { words } else { 0 };
            packet.extend([0x40 | (5 + options) as u8, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend((random.next() as u32).to_be_bytes());
            for _ in 0..options {
                packet.extend((random.next() as u32).to_be_bytes());
            }
        }
        IpAddr::V6(source) => {
            let extension = matches!(between, Between::Extension);
            let next_header = if extension { 60 } else { protocol };
            packet.extend([0x60 | (random.next() as u8 & 0x0f), random.next() as u8, 0, 0, 0, 0, next_header, 64]);
            packet.extend(source.octets());
            packet.extend([random.next(), random.next()].map(u64::to_be_bytes).concat());
            if extension {
                packet.extend([protocol, 0, 1, 4, 0, 0, 0, 0]);
            }
        }
    }
    packet.extend(client.port().to_be_bytes());
    packet.extend((random.next() as u16).to_be_bytes());
    packet
}

/// A classic BPF machine, written from the kernel's description of the language (Documentation/networking/filter.rst), not
/// from the generator: it takes operation codes apart into class, size, mode and source. `load` reads so many octets at an offset.
fn run(program: &[Instruction], load: impl Fn(u32, usize) -> Option<u32>) -> u32 {
    let (mut a, mut x, mut at) = (0_u32, 0_u32, 0_usize);
    let mut memory = [None; 16];
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        match code & 0x07 {
            // BPF_LD
            0x00 => {
                let size = match code & 0x18 {
                    0x00 => 4,
                    0x08 => 2,
                    0x10 => 1,
                    size => panic!("size {size:#x}"),
                };
                let value = match code & 0xe0 {
                    0x00 => Some(k),
                    0x20 => load(k, size),
                    0x40 => load(k.wrapping_add(x), size),
                    0x60 if size == 4 => Some(memory[k as usize].expect("a cell is written before it is read")),
                    mode => panic!("mode {mode:#x}"),
                };
                let Some(value) = value else { return 0 };
                a = value;
            }
            // BPF_LDX, with BPF_MSH and BPF_B: the kernel has it for this only
            0x01 if code == 0xb1 => {
                let Some(value) = load(k, 1) else { return 0 };
                x = (value & 0x0f) * 4;
            }
            // BPF_ST
            0x02 if code == 0x02 => memory[k as usize] = Some(a),
            // BPF_ALU
            0x04 => {
                let operand = if code & 0x08 == 0 { k } else { x };
                a = match code & 0xf0 {
                    0x00 => a.wrapping_add(operand),
                    0x20 => a.wrapping_mul(operand),
                    0x50 => a & operand,
                    0x60 => a << operand,
                    0x70 => a >> operand,
                    0xa0 => a ^ operand,
                    operation => panic!("operation {operation:#x}"),
                };
            }
            // BPF_JMP
            0x05 => {
                let skip = match code & 0xf8 {
                    0x00 => k,
                    0x10 => u32::from(if a == k { jt } else { jf }),
                    0x30 => u32::from(if a >= k { jt } else { jf }),
                    comparison => panic!("comparison {comparison:#x}"),
                };
                at += skip as usize;
            }
            // BPF_RET, k
            0x06 if code == 0x06 => return k,
            // BPF_MISC, TAX
            0x07 if code == 0x07 => x = a,
            class => panic!("class {class:#x} of {code:#x}"),
        }
    }
}

/// Loads from a packet that begins with its network header, as reuseport programs do.
fn from_network_header(packet: &[u8]) -> impl Fn(u32, usize) -> Option<u32> {
    move |offset, size| {
        let from = offset.checked_sub(NETWORK_HEADER).expect("the program reads headers, not the payload");
        word(packet, from, size)
    }
}

fn word(packet: &[u8], from: u32, size: usize) -> Option<u32> {
    let bytes = packet.get(from as usize..)?.get(..size)?;
    Some(bytes.iter().fold(0, |value, &byte| value << 8 | u32::from(byte)))
}

fn owner(table: &SteeringTable, client: SocketAddr) -> u32 {
    u32::from(table.worker_of(vshard_of_client(client.ip(), client.port(), SEED)).0)
}

#[test]
fn the_program_and_the_function_name_the_same_worker_over_a_million_tuples() {
    let tables = [
        SteeringTable::even(1),
        SteeringTable::even(2),
        SteeringTable::even(3).remapped(7).remapped(5),
        SteeringTable::even(64),
        SteeringTable::even(256),
    ];
    let programs = tables.each_ref().map(|table| reuseport_program(table, SEED));
    let mut random = Random(1);
    let mut seen = HashSet::new();
    for tuple in 0..TUPLES {
        let client = random.client();
        let protocol = if tuple % 2 == 0 { 6 } else { 17 };
        let between = match random.next() % 4 {
            0 if client.is_ipv4() => Between::Options(1 + random.next() as usize % 10),
            _ => Between::Nothing,
        };
        let packet = packet(client, protocol, between, &mut random);
        let which = tuple % tables.len();
        let named = run(&programs[which], from_network_header(&packet));
        assert_eq!(named, owner(&tables[which], client), "{client} in {packet:02x?}");
        seen.insert((which, named));
    }
    // Every worker of every table was named: 1 + 2 + 5 + 64 + 256.
    assert_eq!(seen.len(), 328);
}

#[test]
fn both_directions_of_a_flow_have_one_owner_over_a_million_tuples() {
    let rule = SourcePool {
        addresses: vec!["192.0.2.1".parse().expect("an address")],
        port_low: 1_024,
        port_high: 65_535,
        rest_ms: 0,
        towards: Default::default(),
    };
    let to = "10.0.0.1:443".parse().expect("an address and port");
    let pool = SnatBook::new(SnatLimits::default()).pool(&rule, &[], Protocol::Tcp, &[to]).expect("a pool");
    let steering = SteeringTable::even(3).remapped(5);
    let mut random = Random(2);
    let mut ports = HashSet::new();
    for _ in 0..TUPLES {
        let client = random.client();
        let home = vshard_of_client(client.ip(), client.port(), SEED);
        let worker = steering.worker_of(home);
        let lease = pool.lease(to, home, &steering, worker).expect("free");
        assert_eq!(steering.worker_of(vshard_of_port(lease.port())), worker, "{client} and port {}", lease.port());
        ports.insert(lease.port());
        pool.release(lease);
    }
    assert_eq!(ports.len(), 64_512, "every port had its turn");
}

#[test]
fn behind_an_ipv6_extension_header_a_client_counts_with_port_0() {
    let table = SteeringTable::even(256);
    let program = reuseport_program(&table, SEED);
    let mut random = Random(3);
    for _ in 0..10_000 {
        let client = random.client();
        if client.is_ipv6() {
            let packet = packet(client, 6, Between::Extension, &mut random);
            assert_eq!(run(&program, from_network_header(&packet)), owner(&table, SocketAddr::new(client.ip(), 0)));
        }
    }
}

#[test]
fn a_program_passes_the_kernels_checks_whatever_the_table() {
    let mut tables: Vec<SteeringTable> = (1..=256).map(SteeringTable::even).collect();
    tables.push(SteeringTable::even(256).remapped(2));
    tables.push(SteeringTable::even(2).remapped(255).remapped(3));
    for table in tables {
        assert_passes_the_kernels_checks(&reuseport_program(&table, SEED));
    }
}

/// `bpf_check_classic` and `check_load_and_stores` of net/core/filter.c.
fn assert_passes_the_kernels_checks(instructions: &[Instruction]) {
    assert!(instructions.len() <= INSTRUCTIONS_MAX);
    assert_eq!(instructions.last().expect("not empty").code, program::code::RETURN);
    // The memory cells that are surely written when an instruction is reached by a jump.
    let mut by_jump = vec![u16::MAX; instructions.len()];
    let mut written = 0;
    for (at, instruction) in instructions.iter().enumerate() {
        written &= by_jump[at];
        let bit = 1_u16.checked_shl(instruction.k).unwrap_or(0);
        // Every jump goes forward to an instruction of the program.
        let targets = match instruction.code {
            program::code::LOAD_MEMORY => {
                assert!(written & bit != 0, "{instruction:?} at {at} reads a cell that may not be written");
                continue;
            }
            program::code::STORE => {
                assert!(bit != 0, "{instruction:?} at {at}");
                written |= bit;
                continue;
            }
            program::code::JUMP => vec![instruction.k as usize],
            program::code::JUMP_EQUAL | program::code::JUMP_NOT_BELOW => {
                vec![instruction.jt.into(), instruction.jf.into()]
            }
            _ => continue,
        };
        for skipped in targets {
            let target = at + 1 + skipped;
            assert!(target < instructions.len(), "{instruction:?} at {at} of {}", instructions.len());
            by_jump[target] &= written;
        }
        written = u16::MAX;
    }
}

#[test]
fn an_ipv4_mapped_client_has_the_home_of_its_ipv4_address() {
    let v4 = Ipv4Addr::new(198, 51, 100, 7);
    assert_eq!(
        vshard_of_client(IpAddr::V6(v4.to_ipv6_mapped()), 4_711, SEED),
        vshard_of_client(IpAddr::V4(v4), 4_711, SEED)
    );
}

#[test]
fn neighbouring_ports_and_addresses_spread_evenly() {
    let one_client = (0..=65_535).map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)), port));
    let one_network = (0..65_536_u32).map(|host| SocketAddr::new(IpAddr::V4((0x0a01_0000 + host).into()), 50_000));
    let one_network_v6 = (0..65_536_u128)
        .map(|host| SocketAddr::new(IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8_u128 << 96) + host)), 50_000));
    let clients: [Vec<SocketAddr>; 3] = [one_client.collect(), one_network.collect(), one_network_v6.collect()];
    for seed in [0, 1, SEED, u32::MAX] {
        for clients in &clients {
            let mut flows = [0_u32; VSHARDS];
            for client in clients {
                flows[vshard_of_client(client.ip(), client.port(), seed).index()] += 1;
            }
            // 256 expected; six standard deviations of a fair draw are 96.
            assert!(flows.iter().all(|flows| (160..=352).contains(flows)), "seed {seed:#x}: {flows:?}");
        }
    }
}

#[test]
fn another_seed_gives_another_home() {
    let client = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7));
    let homes: HashSet<VShard> = (0..64).map(|seed| vshard_of_client(client, 4_711, seed)).collect();
    assert!(homes.len() > 32, "{} homes from 64 seeds", homes.len());
}

fn owned(table: &SteeringTable, workers: usize) -> Vec<usize> {
    let mut owned = vec![0; workers];
    for owner in table.owners() {
        owned[owner.index()] += 1;
    }
    owned
}

#[test]
fn two_to_three_and_back_moves_a_third_each_time() {
    let two = SteeringTable::even(2);
    let three = two.remapped(3);
    let back = three.remapped(2);
    let moved =
        |a: &SteeringTable, b: &SteeringTable| a.owners().iter().zip(b.owners()).filter(|(a, b)| a != b).count();
    assert_eq!(moved(&two, &three), 85);
    assert_eq!(moved(&three, &back), 85);
    assert_eq!((two.workers(), three.workers(), back.workers()), (2, 3, 2));
}

proptest! {
    #[test]
    fn a_remapped_table_is_even_and_moves_no_shard_more_than_it_must(
        first in 1_usize..=256,
        hops in prop::collection::vec(1_usize..=256, 1..6),
    ) {
        let mut table = SteeringTable::even(first);
        let shares = owned(&table, first);
        prop_assert!(shares.iter().all(|&share| share == 256 / first || share == 256_usize.div_ceil(first)));
        for workers in hops {
            let next = table.remapped(workers);
            let shares = owned(&next, workers);
            let (floor, odd) = (256 / workers, 256 % workers);
            prop_assert!(shares.iter().all(|&share| share == floor || share == 256_usize.div_ceil(workers)));
            // No even table keeps more: each worker keeps up to the floor, and `odd` of them one more.
            let before = owned(&table, 256);
            let most_kept = before[..workers].iter().map(|&share| share.min(floor)).sum::<usize>()
                + before[..workers].iter().filter(|&&share| share > floor).count().min(odd);
            let kept = table.owners().iter().zip(next.owners()).filter(|(a, b)| a == b).count();
            prop_assert_eq!(kept, most_kept);
            table = next;
        }
    }
}
