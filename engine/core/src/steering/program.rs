//! Steering as classic BPF programs: for `PACKET_FANOUT_CBPF` see [`fanout_program`], for `SO_ATTACH_REUSEPORT_CBPF` [`reuseport_program`]: the kernel hands each new connection and
//! each datagram to the socket of the worker that [`vshard_of_client`](super::vshard_of_client) and the table name.
//!
//! The kernel runs the program with the packet pulled up to the transport payload (net/core/sock_reuseport.c,
//! `run_bpf_filter`), for a SYN too, so headers are read relative to the network header (`SKF_NET_OFF`). A load outside the packet
//! ends a classic program with result 0. A result that is not the number of a socket in the group makes the kernel choose by its own hash.

mod fanout;

use super::{
    FINISH_1, FINISH_2, FINISH_SHIFT_1, FINISH_SHIFT_2, FINISH_SHIFT_3, MIX, MIX_SHIFT, SteeringTable, VSHARDS,
};
use crate::packet::{PROTOCOL_TCP, PROTOCOL_UDP};

pub use fanout::{FanoutTooLong, fanout_program};

/// Longest classic BPF program that the kernel takes (`BPF_MAXINSNS`).
pub const INSTRUCTIONS_MAX: usize = 4096;

/// One classic BPF instruction, field by field as in the kernel's `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation, addressing mode and size.
    pub code: u16,
    /// Instructions to skip when a comparison holds.
    pub jt: u8,
    /// Instructions to skip when it does not.
    pub jf: u8,
    /// Constant operand.
    pub k: u32,
}

impl From<Instruction> for (u16, u8, u8, u32) {
    fn from(instruction: Instruction) -> Self {
        (instruction.code, instruction.jt, instruction.jf, instruction.k)
    }
}

/// Operation codes (linux/bpf_common.h, linux/filter.h), spelled out as the sums that are used here.
pub mod code {
    /// A ← the big-endian word at k.
    pub const LOAD_WORD: u16 = 0x20;
    /// A ← the byte at k.
    pub const LOAD_BYTE: u16 = 0x30;
    /// A ← the big-endian half word at k.
    pub const LOAD_HALF: u16 = 0x28;
    /// A ← the big-endian half word at X + k.
    pub const LOAD_HALF_INDEXED: u16 = 0x48;
    /// A ← the big-endian word at X + k.
    pub const LOAD_WORD_INDEXED: u16 = 0x40;
    /// A ← the byte at X + k.
    pub const LOAD_BYTE_INDEXED: u16 = 0x50;
    /// A ← the k-th of 16 memory cells.
    pub const LOAD_MEMORY: u16 = 0x60;
    /// X ← 4 × the low half of the byte at k: the length of an IPv4 header.
    pub const LOAD_HEADER_LENGTH: u16 = 0xb1;
    /// The k-th of 16 memory cells ← A.
    pub const STORE: u16 = 0x02;
    /// A ← k.
    pub const LOAD_CONSTANT: u16 = 0x00;
    /// A ← A + k.
    pub const ADD: u16 = 0x04;
    /// A ← A + X.
    pub const ADD_X: u16 = 0x0c;
    /// A ← A × k.
    pub const MULTIPLY: u16 = 0x24;
    /// A ← A & k.
    pub const AND: u16 = 0x54;
    /// A ← A << k.
    pub const SHIFT_LEFT: u16 = 0x64;
    /// A ← A >> k.
    pub const SHIFT_RIGHT: u16 = 0x74;
    /// A ← A ^ k.
    pub const XOR: u16 = 0xa4;
    /// A ← A ^ X.
    pub const XOR_X: u16 = 0xac;
    /// X ← A.
    pub const A_TO_X: u16 = 0x07;
    /// Skip k instructions.
    pub const JUMP: u16 = 0x05;
    /// Skip jt instructions if A = k, else jf.
    pub const JUMP_EQUAL: u16 = 0x15;
    /// Skip jt instructions if A ≥ k (unsigned), else jf.
    pub const JUMP_NOT_BELOW: u16 = 0x35;
    /// End with result k.
    pub const RETURN: u16 = 0x06;
}

/// `SKF_NET_OFF`: loads at this offset count from the network header.
pub const NETWORK_HEADER: u32 = 0xfff0_0000;

/// `SKF_AD_OFF + SKF_AD_PROTOCOL`: a load from here is the EtherType.
pub const ETHERTYPE: u32 = 0xffff_f000;

const IPV4_SOURCE: u32 = NETWORK_HEADER + 12;
const IPV6_NEXT_HEADER: u32 = NETWORK_HEADER + 6;
const IPV6_SOURCE: u32 = NETWORK_HEADER + 8;
const IPV6_PORT: u32 = NETWORK_HEADER + 40;

/// The program for one reuseport group whose n-th socket belongs to worker n.
///
/// IPv4 with options and IPv6. Behind IPv6 extension headers the port is not looked for: such a client counts with port 0,
/// so all its connections have one owner.
pub fn reuseport_program(table: &SteeringTable, seed: u32) -> Vec<Instruction> {
    let ipv4 = hash_ipv4(seed);
    let ipv6 = hash_ipv6(seed);
    let mut program = vec![operation(code::LOAD_BYTE, NETWORK_HEADER), operation(code::SHIFT_RIGHT, 4)];
    // No third version reaches an internet socket.
    program.push(branch(code::JUMP_EQUAL, 4, 0, ipv4.len() + 1));
    program.extend(ipv4);
    program.push(operation(code::JUMP, ipv6.len() as u32));
    program.extend(ipv6);
    program.extend(finish());
    program.extend(decide(&runs(table)));
    debug_assert!(program.len() <= INSTRUCTIONS_MAX, "{} instructions", program.len());
    program
}

/// Leaves the hash of an IPv4 client in A and X.
fn hash_ipv4(seed: u32) -> Vec<Instruction> {
    let mut block = vec![
        operation(code::LOAD_BYTE, NETWORK_HEADER),
        operation(code::AND, 0x0f),
        operation(code::SHIFT_LEFT, 2),
        operation(code::A_TO_X, 0),
        operation(code::LOAD_HALF_INDEXED, NETWORK_HEADER),
    ];
    block.extend(mix_first(seed));
    block.extend(mix_word(IPV4_SOURCE));
    block
}

/// Leaves the hash of an IPv6 client in A and X.
fn hash_ipv6(seed: u32) -> Vec<Instruction> {
    let mut block = vec![
        operation(code::LOAD_BYTE, IPV6_NEXT_HEADER),
        branch(code::JUMP_EQUAL, PROTOCOL_TCP.into(), 3, 0),
        branch(code::JUMP_EQUAL, PROTOCOL_UDP.into(), 2, 0),
        operation(code::LOAD_CONSTANT, 0),
        operation(code::JUMP, 1),
        operation(code::LOAD_HALF, IPV6_PORT),
    ];
    block.extend(mix_first(seed));
    for word in 0..4 {
        block.extend(mix_word(IPV6_SOURCE + 4 * word));
    }
    block
}

/// Begins the hash with the seed and the port in A; leaves it in A and X.
fn mix_first(seed: u32) -> Vec<Instruction> {
    let mut block = vec![operation(code::XOR, seed)];
    block.extend(mix());
    block
}

/// Mixes the word at `offset` into the hash in X; leaves it in A and X.
fn mix_word(offset: u32) -> Vec<Instruction> {
    let mut block = vec![operation(code::LOAD_WORD, offset), operation(code::XOR_X, 0)];
    block.extend(mix());
    block
}

fn mix() -> [Instruction; 5] {
    [
        operation(code::MULTIPLY, MIX),
        operation(code::A_TO_X, 0),
        operation(code::SHIFT_RIGHT, MIX_SHIFT),
        operation(code::XOR_X, 0),
        operation(code::A_TO_X, 0),
    ]
}

/// Turns the hash in A and X into the virtual shard in A.
fn finish() -> [Instruction; 11] {
    [
        operation(code::SHIFT_RIGHT, FINISH_SHIFT_1),
        operation(code::XOR_X, 0),
        operation(code::MULTIPLY, FINISH_1),
        operation(code::A_TO_X, 0),
        operation(code::SHIFT_RIGHT, FINISH_SHIFT_2),
        operation(code::XOR_X, 0),
        operation(code::MULTIPLY, FINISH_2),
        operation(code::A_TO_X, 0),
        operation(code::SHIFT_RIGHT, FINISH_SHIFT_3),
        operation(code::XOR_X, 0),
        operation(code::AND, VSHARDS as u32 - 1),
    ]
}

/// Neighbouring shards with one owner: the first shard and the owner.
fn runs(table: &SteeringTable) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for (vshard, owner) in table.owners().iter().enumerate() {
        let owner = u32::from(owner.0);
        if runs.last().is_none_or(|&(_, last)| last != owner) {
            runs.push((vshard as u32, owner));
        }
    }
    runs
}

/// A balanced search over `runs` for the shard in A, ending with the owner.
fn decide(runs: &[(u32, u32)]) -> Vec<Instruction> {
    if let [(_, owner)] = runs {
        return vec![operation(code::RETURN, *owner)];
    }
    let (below, from) = runs.split_at(runs.len() / 2);
    let below = decide(below);
    // A table has at most 256 runs, so at most 128 lie below: 255 instructions, the furthest that a jump reaches.
    let mut block = vec![branch(code::JUMP_NOT_BELOW, from[0].0, below.len(), 0)];
    block.extend(below);
    block.extend(decide(from));
    block
}

fn operation(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

fn branch(code: u16, k: u32, jt: usize, jf: usize) -> Instruction {
    let reach = |skip: usize| u8::try_from(skip).expect("every block that is jumped over has at most 255 instructions");
    Instruction { code, jt: reach(jt), jf: reach(jf), k }
}
