//! [`steer`](crate::steering::frame::steer) as a program for `PACKET_FANOUT_CBPF`: the kernel hands each frame to the packet socket of the worker
//! that owns its virtual shard.
//!
//! The kernel runs the program with the packet from its network header on (`fanout_demux_bpf` in net/packet/af_packet.c) and takes the result
//! modulo the sockets of the group. A load outside the packet ends the program with result 0, which is the worker of virtual shard 0.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use super::{ETHERTYPE, INSTRUCTIONS_MAX, Instruction, branch, code, decide, finish, mix, mix_first, operation, runs};
use crate::VShard;
use crate::packet::{EXTENSIONS_MAX, Ip, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP};
use crate::steering::frame::FanoutRule;
use crate::steering::{SteeringTable, VSHARDS};

// Memory cells: destination and source, one or four words each, then their ports. Those of a quoted packet change places.
const DST: u32 = 0;
const SRC: u32 = 4;
const DST_PORT: u32 = 8;
const SRC_PORT: u32 = 9;
/// What is needed in a moment.
const ASIDE: u32 = 10;

const IPV4_WORDS: u32 = 1;
const IPV6_WORDS: u32 = 4;

/// The addresses need a longer program than the kernel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FanoutTooLong {
    /// Addresses that were given.
    pub addresses: usize,
    /// How many of them, from the first on, a program has room for.
    pub addresses_max: usize,
}

impl fmt::Display for FanoutTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FanoutTooLong { addresses, addresses_max } = self;
        write!(
            f,
            "{addresses} VIPs and source addresses on the packet plane are more than the kernel can tell apart: the first {addresses_max} of \
             them fit; use fewer addresses, or fewer separate ports where a VIP is its own source"
        )
    }
}

impl std::error::Error for FanoutTooLong {}

/// The program for a fanout group whose n-th socket belongs to worker n. Of two rules for one address the first counts.
///
/// # Errors
/// It would be longer than [`INSTRUCTIONS_MAX`]; about a thousand IPv4 addresses fit.
pub fn fanout_program(
    table: &SteeringTable,
    seed: u32,
    ours: &[FanoutRule],
) -> Result<Vec<Instruction>, FanoutTooLong> {
    let program = assemble(table, seed, ours);
    if program.len() <= INSTRUCTIONS_MAX {
        return Ok(program);
    }
    let (mut fit, mut too_many) = (0, ours.len());
    while too_many - fit > 1 {
        let between = fit.midpoint(too_many);
        match ours.get(..between) {
            Some(some) if assemble(table, seed, some).len() <= INSTRUCTIONS_MAX => fit = between,
            _ => too_many = between,
        }
    }
    Err(FanoutTooLong { addresses: ours.len(), addresses_max: fit })
}

fn assemble(table: &SteeringTable, seed: u32, ours: &[FanoutRule]) -> Vec<Instruction> {
    let mut assembly = Assembly::default();
    let ends =
        Ends { none: assembly.label(), port: assembly.label(), hash: assembly.label(), decide: assembly.label() };
    let ipv6 = assembly.label();

    assembly.push(code::LOAD_HALF, ETHERTYPE);
    assembly.if_equal(0x86dd, ipv6);
    assembly.if_not_equal(0x0800, ends.none);
    read_ipv4(&mut assembly, seed, &rules(ours, Ip::is_v4), &ends);
    assembly.bind(ipv6);
    read_ipv6(&mut assembly, seed, &rules(ours, |ip| !ip.is_v4()), &ends);

    assembly.bind(ends.port);
    assembly.push(code::LOAD_MEMORY, DST_PORT);
    assembly.push(code::AND, VSHARDS as u32 - 1);
    assembly.jump(ends.decide);
    // Behind a return the kernel takes no cell for written that was not before it: what follows reads none.
    assembly.bind(ends.none);
    assembly.push(code::RETURN, table.worker_of(VShard(0)).0.into());
    assembly.bind(ends.hash);
    assembly.extend(finish());
    assembly.bind(ends.decide);
    assembly.extend(decide(&runs(table)));
    assembly.link()
}

/// Where the two families come together.
struct Ends {
    /// The frame is nobody's in particular.
    none: Label,
    /// The destination port is a SNAT port.
    port: Label,
    /// The hash is in A and X.
    hash: Label,
    /// The virtual shard is in A.
    decide: Label,
}

/// The rules of one family: by the words of their addresses, where clients arrive.
type Rules<'a> = BTreeMap<Vec<u32>, &'a [RangeInclusive<u16>]>;

fn rules(ours: &[FanoutRule], of_family: impl Fn(Ip) -> bool) -> Rules<'_> {
    let mut rules = Rules::new();
    for rule in ours.iter().filter(|rule| of_family(rule.address)) {
        let (words, _) = rule.address.0.as_chunks::<4>();
        let skipped = if rule.address.is_v4() { 3 } else { 0 };
        let words = words.iter().skip(skipped).map(|word| u32::from_be_bytes(*word)).collect();
        rules.entry(words).or_insert(rule.client_ports());
    }
    rules
}

fn read_ipv4(assembly: &mut Assembly, seed: u32, rules: &Rules<'_>, ends: &Ends) {
    let [ports, error, quoted, fragment] = assembly.labels();
    assembly.keep(code::LOAD_WORD, 12, SRC);
    assembly.keep(code::LOAD_WORD, 16, DST);
    assembly.push(code::LOAD_HALF, 6);
    assembly.push(code::AND, 0x3fff);
    assembly.if_not_equal(0, fragment);
    assembly.push(code::LOAD_HEADER_LENGTH, 0);
    assembly.push(code::LOAD_BYTE, 9);
    assembly.if_equal(PROTOCOL_TCP.into(), ports);
    assembly.if_equal(PROTOCOL_UDP.into(), ports);
    assembly.if_not_equal(PROTOCOL_ICMP.into(), ends.none);
    assembly.push(code::LOAD_BYTE_INDEXED, 0);
    assembly.if_equal(3, error);
    assembly.if_equal(11, error);
    assembly.if_not_equal(12, ends.none);

    // The quoted packet is at X + 8.
    assembly.bind(error);
    assembly.keep(code::LOAD_WORD_INDEXED, 8 + 12, DST);
    assembly.keep(code::LOAD_WORD_INDEXED, 8 + 16, SRC);
    assembly.push(code::LOAD_HALF_INDEXED, 8 + 6);
    assembly.push(code::AND, 0x1fff);
    assembly.if_not_equal(0, ends.none);
    assembly.push(code::LOAD_BYTE_INDEXED, 8 + 9);
    assembly.if_equal(PROTOCOL_TCP.into(), quoted);
    assembly.if_not_equal(PROTOCOL_UDP.into(), ends.none);
    assembly.bind(quoted);
    assembly.push(code::LOAD_BYTE_INDEXED, 8);
    assembly.push(code::AND, 0x0f);
    assembly.push(code::SHIFT_LEFT, 2);
    assembly.push(code::ADD, 8);
    assembly.push(code::ADD_X, 0);
    assembly.push(code::A_TO_X, 0);
    read_ports(assembly, ports);
    judge(assembly, seed, rules, IPV4_WORDS, ends);

    assembly.bind(fragment);
    assembly.keep(code::LOAD_HALF, 4, ASIDE);
    assembly.push(code::LOAD_BYTE, 9);
    hash_fragment(assembly, seed, IPV4_WORDS);
    assembly.jump(ends.hash);
}

/// Keeps the ports at X: here those of a quoted packet, which went the other way; from `ports` on those of the packet itself.
fn read_ports(assembly: &mut Assembly, ports: Label) {
    let [meet] = assembly.labels();
    assembly.keep(code::LOAD_HALF_INDEXED, 0, DST_PORT);
    assembly.keep(code::LOAD_HALF_INDEXED, 2, SRC_PORT);
    assembly.jump(meet);
    assembly.bind(ports);
    assembly.keep(code::LOAD_HALF_INDEXED, 0, SRC_PORT);
    assembly.keep(code::LOAD_HALF_INDEXED, 2, DST_PORT);
    assembly.bind(meet);
}

fn read_ipv6(assembly: &mut Assembly, seed: u32, rules: &Rules<'_>, ends: &Ends) {
    let [ports, quoted, fragment] = assembly.labels();
    for word in 0..IPV6_WORDS {
        assembly.keep(code::LOAD_WORD, 8 + 4 * word, SRC + word);
        assembly.keep(code::LOAD_WORD, 24 + 4 * word, DST + word);
    }
    assembly.push(code::LOAD_CONSTANT, 40);
    assembly.push(code::A_TO_X, 0);
    assembly.push(code::LOAD_BYTE, 6);
    pass_extensions(assembly, fragment);
    assembly.if_equal(PROTOCOL_TCP.into(), ports);
    assembly.if_equal(PROTOCOL_UDP.into(), ports);
    assembly.if_not_equal(PROTOCOL_ICMPV6.into(), ends.none);
    assembly.push(code::LOAD_BYTE_INDEXED, 0);
    assembly.if_below(1, ends.none);
    assembly.if_not_below(5, ends.none);

    // The quoted packet is at X + 8.
    for word in 0..IPV6_WORDS {
        assembly.keep(code::LOAD_WORD_INDEXED, 8 + 8 + 4 * word, DST + word);
        assembly.keep(code::LOAD_WORD_INDEXED, 8 + 24 + 4 * word, SRC + word);
    }
    assembly.keep(code::LOAD_BYTE_INDEXED, 8 + 6, ASIDE);
    assembly.push(code::LOAD_CONSTANT, 8 + 40);
    assembly.push(code::ADD_X, 0);
    assembly.push(code::A_TO_X, 0);
    assembly.push(code::LOAD_MEMORY, ASIDE);
    pass_extensions(assembly, ends.none);
    assembly.if_equal(PROTOCOL_TCP.into(), quoted);
    assembly.if_not_equal(PROTOCOL_UDP.into(), ends.none);
    assembly.bind(quoted);
    read_ports(assembly, ports);
    judge(assembly, seed, rules, IPV6_WORDS, ends);

    // X is where the fragment header is.
    assembly.bind(fragment);
    assembly.keep(code::LOAD_WORD_INDEXED, 4, ASIDE);
    assembly.push(code::LOAD_BYTE_INDEXED, 0);
    hash_fragment(assembly, seed, IPV6_WORDS);
    assembly.jump(ends.hash);
}

/// From a next header in A and where that begins in X to those behind the extension headers; to `fragment`, with X at the fragment header, where
/// the packet is in more than one.
fn pass_extensions(assembly: &mut Assembly, fragment: Label) {
    let passed = assembly.label();
    // Programs have no loops.
    for _ in 0..EXTENSIONS_MAX {
        let [extension, next] = assembly.labels();
        for header in [0, 43, 60] {
            assembly.if_equal(header, extension);
        }
        assembly.if_not_equal(44, passed);
        assembly.push(code::LOAD_HALF_INDEXED, 2);
        assembly.push(code::AND, 0xfff9);
        assembly.if_not_equal(0, fragment);
        assembly.keep(code::LOAD_BYTE_INDEXED, 0, ASIDE);
        assembly.push(code::LOAD_CONSTANT, 8);
        assembly.jump(next);
        assembly.bind(extension);
        assembly.keep(code::LOAD_BYTE_INDEXED, 0, ASIDE);
        assembly.push(code::LOAD_BYTE_INDEXED, 1);
        assembly.push(code::ADD, 1);
        assembly.push(code::SHIFT_LEFT, 3);
        assembly.bind(next);
        assembly.push(code::ADD_X, 0);
        assembly.push(code::A_TO_X, 0);
        assembly.push(code::LOAD_MEMORY, ASIDE);
    }
    assembly.bind(passed);
}

/// From addresses and ports in memory to [`Ends::port`] or [`Ends::hash`].
fn judge(assembly: &mut Assembly, seed: u32, rules: &Rules<'_>, words: u32, ends: &Ends) {
    let [client, far] = assembly.labels();
    let mut by_ports = BTreeMap::new();
    let mut targets = Vec::new();
    for (words, &ports) in rules {
        let target = match ports {
            [] => ends.port,
            [all] if *all == (0..=u16::MAX) => client,
            _ => {
                let ports: Vec<(u16, u16)> = ports.iter().map(|range| (*range.start(), *range.end())).collect();
                *by_ports.entry(ports).or_insert_with(|| assembly.label())
            }
        };
        targets.push((words.as_slice(), target));
    }
    search(assembly, &targets, 0, far);

    for (ports, place) in by_ports {
        assembly.bind(place);
        assembly.push(code::LOAD_MEMORY, DST_PORT);
        for (low, high) in ports {
            if low == high {
                assembly.if_equal(low.into(), client);
            } else {
                // Below this range, and in none of those before.
                assembly.if_below(low.into(), ends.port);
                assembly.if_below(u32::from(high) + 1, client);
            }
        }
        assembly.jump(ends.port);
    }

    // Not for us: it goes to the client.
    assembly.bind(far);
    for word in 0..words {
        assembly.keep(code::LOAD_MEMORY, DST + word, SRC + word);
    }
    assembly.keep(code::LOAD_MEMORY, DST_PORT, SRC_PORT);
    assembly.bind(client);
    assembly.push(code::LOAD_MEMORY, SRC_PORT);
    assembly.extend(mix_first(seed));
    for word in 0..words {
        assembly.mix_cell(SRC + word);
    }
    assembly.jump(ends.hash);
}

/// Goes to the target of the destination's address, word by word; to `miss` where there is none. `targets` are ascending and agree in the
/// words before `level`.
fn search(assembly: &mut Assembly, targets: &[(&[u32], Label)], level: usize, miss: Label) {
    let mut blocks = Vec::new();
    let mut picks = Vec::new();
    for block in targets.chunk_by(|(one, _), (other, _)| one.get(level) == other.get(level)) {
        let [(words, target), ..] = block else { continue };
        let Some(&word) = words.get(level) else { continue };
        if level + 1 == words.len() {
            picks.push((word, *target));
        } else {
            let further = assembly.label();
            blocks.push((further, block));
            picks.push((word, further));
        }
    }
    assembly.push(code::LOAD_MEMORY, DST + level as u32);
    pick(assembly, &picks, miss);
    for (further, block) in blocks {
        assembly.bind(further);
        search(assembly, block, level + 1, miss);
    }
}

/// A balanced search for the word in A.
fn pick(assembly: &mut Assembly, picks: &[(u32, Label)], miss: Label) {
    let (below, from) = picks.split_at(picks.len() / 2);
    if let ([_, ..], [(first, _), _, ..]) = (below, from) {
        let upper = assembly.label();
        assembly.if_not_below(*first, upper);
        pick(assembly, below, miss);
        assembly.bind(upper);
        pick(assembly, from, miss);
    } else {
        for &(word, target) in picks {
            assembly.if_equal(word, target);
        }
        assembly.jump(miss);
    }
}

/// Hashes a fragment: its protocol is in A, its identification set aside, its addresses are in memory.
fn hash_fragment(assembly: &mut Assembly, seed: u32, words: u32) {
    assembly.extend(mix_first(seed));
    assembly.mix_cell(ASIDE);
    for cell in [SRC, DST] {
        for word in 0..words {
            assembly.mix_cell(cell + word);
        }
    }
}

/// A place in the program, which may not be known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Label(usize);

/// A program whose jumps go to labels, all of them forward.
#[derive(Default)]
struct Assembly {
    program: Vec<Instruction>,
    jumps: Vec<(usize, Label)>,
    places: Vec<Option<usize>>,
}

impl Assembly {
    fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    fn labels<const N: usize>(&mut self) -> [Label; N] {
        std::array::from_fn(|_| self.label())
    }

    /// The label is here.
    fn bind(&mut self, label: Label) {
        self.places[label.0] = Some(self.program.len());
    }

    fn push(&mut self, code: u16, k: u32) {
        self.program.push(operation(code, k));
    }

    fn extend(&mut self, block: impl IntoIterator<Item = Instruction>) {
        self.program.extend(block);
    }

    /// Loads into a memory cell, by way of A.
    fn keep(&mut self, code: u16, k: u32, cell: u32) {
        self.push(code, k);
        self.push(code::STORE, cell);
    }

    /// Mixes a memory cell into the hash in X; leaves it in A and X.
    fn mix_cell(&mut self, cell: u32) {
        self.push(code::LOAD_MEMORY, cell);
        self.push(code::XOR_X, 0);
        self.extend(mix());
    }

    fn jump(&mut self, to: Label) {
        self.jumps.push((self.program.len(), to));
        self.push(code::JUMP, 0);
    }

    // Conditional jumps reach 255 instructions, others all: so each skips one of those or does not.

    fn if_equal(&mut self, k: u32, to: Label) {
        self.program.push(branch(code::JUMP_EQUAL, k, 0, 1));
        self.jump(to);
    }

    fn if_not_equal(&mut self, k: u32, to: Label) {
        self.program.push(branch(code::JUMP_EQUAL, k, 1, 0));
        self.jump(to);
    }

    fn if_below(&mut self, k: u32, to: Label) {
        self.program.push(branch(code::JUMP_NOT_BELOW, k, 1, 0));
        self.jump(to);
    }

    fn if_not_below(&mut self, k: u32, to: Label) {
        self.program.push(branch(code::JUMP_NOT_BELOW, k, 0, 1));
        self.jump(to);
    }

    fn link(mut self) -> Vec<Instruction> {
        for (at, to) in self.jumps {
            let place = self.places[to.0].expect("every label that is jumped to is bound");
            let skipped = place.checked_sub(at + 1).expect("every jump goes forward");
            self.program[at].k = skipped as u32;
        }
        self.program
    }
}
