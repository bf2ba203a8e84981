//! The fast path as the kernel runs it: two programs that judge a frame with the same instructions.
//!
//! [`carry_program`] is for the ingress of an interface (`BPF_PROG_TYPE_SCHED_CLS`, tcx, Linux 6.6): it takes the frames of entered flows onwards and leaves all others as they are.
//! [`filter_program`] is for the packet sockets (`BPF_PROG_TYPE_SOCKET_FILTER`), which see a frame first: it leaves out what the other will take. Where a flow is
//! taken out between the two, that frame is lost, and its TCP sends it again.
//!
//! The header is read with one call onto the stack, which needs it in the first piece of the frame, as drivers and GRO leave it; else the frame is left alone. A partial
//! checksum stays partial, and a super-packet whole: the kernel's own function updates the TCP checksum as its kind needs. The programs are for little-endian machines.

use super::WORKERS_MAX;
use super::layout::{self, BUCKET_WORDS, FOLD, FastShape, GENERATIONS, HashKeys, SIDE_WORDS, TRANSIT};
use crate::assembler::{Alu, Assembler, If, Label, Reg, Sign, Size, Slot};
use crate::flow::tcp::{ACK, FIN, OLDER_MIN_BYTES, RST, SYN};
use crate::packet::{PROTOCOL_TCP, TcpFlags};
use crate::snapshot::REAL_SERVERS_MAX;

/// The descriptors of the maps whose memory a table is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FastMaps {
    /// The generations.
    pub control: i32,
    /// The buckets.
    pub index: i32,
    /// The flows.
    pub entries: i32,
}

/// What a program of an ingress returns to leave a frame to whoever comes next (`TCX_NEXT`).
pub const NEXT: i32 = -1;
/// What it returns for a frame that goes elsewhere (`TCX_REDIRECT`).
pub const REDIRECT: i32 = 7;
/// What it returns to drop a frame (`TCX_DROP`).
const DROP: i32 = 2;

/// `struct __sk_buff` (linux/bpf.h): where the fields are.
mod skb {
    pub(super) const LEN: i16 = 0;
    pub(super) const PACKET_TYPE: i16 = 4;
    pub(super) const PROTOCOL: i16 = 16;
    pub(super) const VLAN_PRESENT: i16 = 20;
    pub(super) const IFINDEX: i16 = 40;
    pub(super) const GSO_SIZE: i16 = 176;
}

/// The kernel's functions by number (linux/bpf.h).
mod function {
    pub(super) const MAP_LOOKUP: i32 = 1;
    pub(super) const SKB_STORE_BYTES: i32 = 9;
    pub(super) const L4_CSUM_REPLACE: i32 = 11;
    pub(super) const REDIRECT: i32 = 23;
    pub(super) const SKB_LOAD_BYTES_RELATIVE: i32 = 68;
    pub(super) const KTIME_GET_COARSE_NS: i32 = 160;
}

/// `PACKET_HOST` and `PACKET_OUTGOING` (linux/if_packet.h).
const PACKET_HOST: i32 = 0;
const PACKET_OUTGOING: i32 = 4;
/// `BPF_HDR_START_MAC`.
const FROM_MAC_HEADER: i32 = 0;
/// `BPF_F_PSEUDO_HDR`; the size of the field is 0, for which the difference is given.
const PSEUDO_HEADER: i32 = 1 << 4;
/// IPv4's EtherType as it is read from the wire.
const IPV4: i32 = 0x0008;
const IPV4_WITHOUT_OPTIONS: i32 = 0x45;
/// More fragments, or an offset, as they are read from the wire.
const FRAGMENT: i32 = 0xff3f;
/// All flags that matter but FIN, which may be there.
const FLAGS: i32 = (TcpFlags::URG.0 | ACK | RST | SYN) as i32;

/// Where the number stands in a word about a FIN.
const FIN_END_SHIFT: i32 = 32;

/// Octets of the headers without options.
const HEADERS: i32 = 54;
/// Octets of a frame up to the ports' end: what changes, but for the TCP checksum.
const REWRITTEN: i32 = 38;
/// Where the TCP checksum stands in the frame.
const TCP_CHECKSUM: i32 = 50;
/// The headers on the stack: so that all fields of IPv4 and TCP are aligned.
const HEADER: i16 = -58;
/// A key of a map.
const KEY: i16 = -64;
/// The largest packet that becomes of the frame.
const LARGEST: i16 = -72;
/// The number of the flow.
const FLOW: i16 = -80;
/// Its words, those of the first direction in front.
const ENTRY: i16 = -88;

/// Where an octet of the frame stands on the stack.
const fn at(octet: i16) -> i16 {
    HEADER + octet
}

/// Where the server of a flow stands in the words of a direction.
const SERVER: i16 = word(layout::WINDOW_AND_SERVER) + 4;

/// Where a word of a direction stands.
const fn word(number: usize) -> i16 {
    (number * size_of::<u64>()) as i16
}

/// The program of the packet sockets for a table of that shape and seed: 0 for what [`carry_program`] takes and for what the machine itself sends; the whole of any other frame.
pub fn filter_program(shape: FastShape, seed: [u64; 2], maps: FastMaps) -> Vec<Slot> {
    let mut code = Assembler::default();
    let (miss, drop) = (code.label(), code.label());
    judge(&mut code, shape, seed, maps, miss);
    code.place(drop);
    code.constant(Alu::Move, Reg::R0, 0);
    code.exit();
    code.place(miss);
    code.load(Size::Word32, Reg::R1, Reg::R6, skb::PACKET_TYPE);
    code.jump_if(Reg::R1, If::Equal, PACKET_OUTGOING, drop);
    code.constant_32(Alu::Move, Reg::R0, -1);
    code.exit();
    code.finish()
}

/// The program of an ingress: [`REDIRECT`] for what it takes, [`NEXT`] for any other frame.
pub fn carry_program(shape: FastShape, seed: [u64; 2], maps: FastMaps) -> Vec<Slot> {
    let mut code = Assembler::default();
    let (miss, fail, onwards) = (code.label(), code.label(), code.label());
    judge(&mut code, shape, seed, maps, miss);
    note(&mut code);
    list(&mut code, maps, fail);
    rewrite(&mut code);
    code.register(Alu::Move, Reg::R1, Reg::R6);
    code.constant(Alu::Move, Reg::R2, 0);
    code.register(Alu::Move, Reg::R3, Reg::Stack);
    code.constant(Alu::Add, Reg::R3, HEADER.into());
    code.constant(Alu::Move, Reg::R4, REWRITTEN);
    code.constant(Alu::Move, Reg::R5, 0);
    code.call(function::SKB_STORE_BYTES);
    code.jump_if(Reg::R0, If::NotEqual, 0, fail);
    jump_if_transit(&mut code, onwards);
    for (delta, kind) in [(2, PSEUDO_HEADER), (4, 0)] {
        code.register(Alu::Move, Reg::R1, Reg::R6);
        code.constant(Alu::Move, Reg::R2, TCP_CHECKSUM);
        code.constant(Alu::Move, Reg::R3, 0);
        code.load(Size::Word16, Reg::R4, Reg::R7, word(layout::DELTAS) + delta);
        code.constant(Alu::Move, Reg::R5, kind);
        code.call(function::L4_CSUM_REPLACE);
        code.jump_if(Reg::R0, If::NotEqual, 0, fail);
    }
    code.place(onwards);
    code.load(Size::Word32, Reg::R1, Reg::R7, word(layout::TO_PORTS_AND_INTERFACE) + 4);
    code.constant(Alu::Move, Reg::R2, 0);
    code.call(function::REDIRECT);
    code.exit();
    code.place(miss);
    code.constant_32(Alu::Move, Reg::R0, NEXT);
    code.exit();
    // No memory for a copy of the header that may be written to; or an end that nobody has heard of, as its flow was just taken out.
    code.place(fail);
    code.constant(Alu::Move, Reg::R0, DROP);
    code.exit();
    code.finish()
}

/// Jumps to `miss` with a frame that is not for the fast path. Else there is the context in R6, the direction in R7, octets of payload in R9, the acknowledgment in R3, the end
/// in R4 and the headers on the stack. R6 is the context in any case.
fn judge(code: &mut Assembler, shape: FastShape, seed: [u64; 2], maps: FastMaps, miss: Label) {
    code.register(Alu::Move, Reg::R6, Reg::R1);
    read(code, miss);
    find(code, shape, seed, maps, miss);
    match_numbers(code, miss);
}

/// Reads the headers and judges them as `read_straight` does. Leaves the octets of payload in R9, the size of the largest packet on the stack.
fn read(code: &mut Assembler, miss: Label) {
    for (field, value) in [(skb::PACKET_TYPE, PACKET_HOST), (skb::PROTOCOL, IPV4), (skb::VLAN_PRESENT, 0)] {
        code.load(Size::Word32, Reg::R2, Reg::R6, field);
        code.jump_if(Reg::R2, If::NotEqual, value, miss);
    }
    code.constant(Alu::Move, Reg::R2, 0);
    code.register(Alu::Move, Reg::R3, Reg::Stack);
    code.constant(Alu::Add, Reg::R3, HEADER.into());
    code.constant(Alu::Move, Reg::R4, HEADERS);
    code.constant(Alu::Move, Reg::R5, FROM_MAC_HEADER);
    code.call(function::SKB_LOAD_BYTES_RELATIVE);
    code.jump_if(Reg::R0, If::NotEqual, 0, miss);
    // The bit of the source that marks a group; the other fields that have one value only.
    let masked = [
        (Size::Octet, 6, 1, 0),
        (Size::Word16, 12, 0xffff, IPV4),
        (Size::Octet, 14, 0xff, IPV4_WITHOUT_OPTIONS),
        (Size::Word16, 20, FRAGMENT, 0),
        (Size::Octet, 23, 0xff, PROTOCOL_TCP.into()),
        (Size::Octet, 47, FLAGS, ACK.into()),
    ];
    for (size, octet, mask, value) in masked {
        code.load(size, Reg::R1, Reg::Stack, at(octet));
        code.constant(Alu::And, Reg::R1, mask);
        code.jump_if(Reg::R1, If::NotEqual, value, miss);
    }
    code.load(Size::Octet, Reg::R1, Reg::Stack, at(22));
    code.jump_if(Reg::R1, If::Below, 2, miss);
    // R9: octets of the packet; R8: of its headers.
    code.load(Size::Word16, Reg::R9, Reg::Stack, at(16));
    code.big_endian(Reg::R9, 16);
    code.load(Size::Octet, Reg::R8, Reg::Stack, at(46));
    code.constant(Alu::And, Reg::R8, 0xf0);
    code.constant(Alu::ShiftRight, Reg::R8, 2);
    code.jump_if(Reg::R8, If::Below, 20, miss);
    code.constant(Alu::Add, Reg::R8, 20);
    code.jump_if_register(Reg::R8, If::Above, Reg::R9, miss);
    code.load(Size::Word32, Reg::R1, Reg::R6, skb::LEN);
    code.constant(Alu::Move, Reg::R2, 14);
    code.register(Alu::Add, Reg::R2, Reg::R9);
    code.jump_if_register(Reg::R2, If::Above, Reg::R1, miss);
    // Of a super-packet, each segment has to fit.
    let (whole, known) = (code.label(), code.label());
    code.load(Size::Word32, Reg::R1, Reg::R6, skb::GSO_SIZE);
    code.jump_if(Reg::R1, If::Equal, 0, whole);
    code.register(Alu::Add, Reg::R1, Reg::R8);
    code.jump(known);
    code.place(whole);
    code.register(Alu::Move, Reg::R1, Reg::R9);
    code.place(known);
    code.store(Size::Word64, Reg::Stack, LARGEST, Reg::R1);
    code.register(Alu::Subtract, Reg::R9, Reg::R8);
    // The sum of the IPv4 header is all ones.
    code.load(Size::Word32, Reg::R1, Reg::Stack, at(14));
    for octet in [18, 22, 26, 30] {
        code.load(Size::Word32, Reg::R2, Reg::Stack, at(octet));
        code.register(Alu::Add, Reg::R1, Reg::R2);
    }
    fold(code, Reg::R1, Reg::R2, 32);
    fold(code, Reg::R1, Reg::R2, 16);
    fold(code, Reg::R1, Reg::R2, 16);
    fold(code, Reg::R1, Reg::R2, 16);
    code.jump_if(Reg::R1, If::NotEqual, 0xffff, miss);
}

/// Adds the upper part of `sum`, from that bit on, to the lower one.
fn fold(code: &mut Assembler, sum: Reg, other: Reg, bits: i32) {
    code.register(Alu::Move, other, sum);
    code.constant(Alu::ShiftRight, other, bits);
    match bits {
        32 => code.register_32(Alu::Move, sum, sum),
        _ => code.constant(Alu::And, sum, (1 << bits) - 1),
    }
    code.register(Alu::Add, sum, other);
}

/// Finds the direction that the tuple is of, R7, and the other one, R8.
fn find(code: &mut Assembler, shape: FastShape, seed: [u64; 2], maps: FastMaps, miss: Label) {
    let keys = HashKeys::new(seed);
    code.load(Size::Word64, Reg::R1, Reg::Stack, at(26));
    code.constant_64(Reg::R2, keys.addresses);
    code.register(Alu::Xor, Reg::R1, Reg::R2);
    multiply_and_fold(code, keys.first);
    code.load(Size::Word32, Reg::R2, Reg::Stack, at(34));
    code.register(Alu::Xor, Reg::R1, Reg::R2);
    multiply_and_fold(code, keys.second);
    multiply_and_fold(code, keys.third);
    // R8: what the item begins with.
    code.register(Alu::Move, Reg::R8, Reg::R1);
    code.constant(Alu::ShiftRight, Reg::R8, 32);
    code.constant(Alu::Or, Reg::R8, 1);
    let mask = shape.buckets - 1;
    code.constant(Alu::And, Reg::R1, mask.cast_signed());
    look_up(code, maps.index, miss);
    let found = code.label();
    for number in 0..BUCKET_WORDS {
        code.load(Size::Word64, Reg::R1, Reg::R0, word(number));
        code.register(Alu::Move, Reg::R2, Reg::R1);
        code.constant(Alu::ShiftRight, Reg::R2, 32);
        code.jump_if_register(Reg::R2, If::Equal, Reg::R8, found);
    }
    code.jump(miss);
    code.place(found);
    code.register_32(Alu::Move, Reg::R1, Reg::R1);
    code.register(Alu::Move, Reg::R8, Reg::R1);
    code.constant(Alu::And, Reg::R8, 1);
    code.constant(Alu::ShiftRight, Reg::R1, 1);
    code.store(Size::Word64, Reg::Stack, FLOW, Reg::R1);
    look_up(code, maps.entries, miss);
    code.store(Size::Word64, Reg::Stack, ENTRY, Reg::R0);
    let shift = (SIDE_WORDS * size_of::<u64>()).trailing_zeros().cast_signed();
    code.register(Alu::Move, Reg::R7, Reg::R0);
    code.register(Alu::Move, Reg::R1, Reg::R8);
    code.constant(Alu::ShiftLeft, Reg::R1, shift);
    code.register(Alu::Add, Reg::R7, Reg::R1);
    code.constant(Alu::Xor, Reg::R8, 1);
    code.constant(Alu::ShiftLeft, Reg::R8, shift);
    code.register(Alu::Add, Reg::R0, Reg::R8);
    code.register(Alu::Move, Reg::R8, Reg::R0);
    // Of the worker's generation.
    code.load(Size::Word32, Reg::R1, Reg::R7, word(layout::GENERATION_AND_WORKER));
    code.load(Size::Word16, Reg::R2, Reg::R7, word(layout::GENERATION_AND_WORKER) + 4);
    code.constant(Alu::And, Reg::R2, GENERATIONS as i32 - 1);
    code.constant(Alu::ShiftLeft, Reg::R2, 3);
    code.map_value(Reg::R3, maps.control);
    code.register(Alu::Add, Reg::R3, Reg::R2);
    code.load(Size::Word32, Reg::R2, Reg::R3, 0);
    code.jump_if_register(Reg::R1, If::NotEqual, Reg::R2, miss);
    // Of these addresses and ports, and of this interface.
    code.load(Size::Word64, Reg::R1, Reg::R7, word(layout::FROM_ADDRESSES));
    code.load(Size::Word64, Reg::R2, Reg::Stack, at(26));
    code.jump_if_register(Reg::R1, If::NotEqual, Reg::R2, miss);
    for (offset, base, from) in [(0, Reg::Stack, at(34)), (4, Reg::R6, skb::IFINDEX)] {
        code.load(Size::Word32, Reg::R1, Reg::R7, word(layout::FROM_PORTS_AND_INTERFACE) + offset);
        code.load(Size::Word32, Reg::R2, base, from);
        code.jump_if_register(Reg::R1, If::NotEqual, Reg::R2, miss);
    }
    code.load(Size::Word32, Reg::R1, Reg::R7, word(layout::MACS_AND_SIZE) + 4);
    code.load(Size::Word64, Reg::R2, Reg::Stack, LARGEST);
    code.jump_if_register(Reg::R2, If::Above, Reg::R1, miss);
}

/// R1 ← its product with a key, the upper half folded into the lower one.
fn multiply_and_fold(code: &mut Assembler, key: u64) {
    code.constant_64(Reg::R2, key);
    code.register(Alu::Multiply, Reg::R1, Reg::R2);
    code.register(Alu::Move, Reg::R2, Reg::R1);
    code.constant(Alu::ShiftRight, Reg::R2, FOLD.cast_signed());
    code.register(Alu::Xor, Reg::R1, Reg::R2);
}

/// R0 ← the element of a map whose number is in R1.
fn look_up(code: &mut Assembler, map: i32, miss: Label) {
    code.store(Size::Word32, Reg::Stack, KEY, Reg::R1);
    code.map(Reg::R1, map);
    code.register(Alu::Move, Reg::R2, Reg::Stack);
    code.constant(Alu::Add, Reg::R2, KEY.into());
    code.call(function::MAP_LOOKUP);
    code.jump_if(Reg::R0, If::Equal, 0, miss);
}

/// Goes on at `label` if the direction in R7 is a transit. Changes R1.
fn jump_if_transit(code: &mut Assembler, label: Label) {
    code.load(Size::Word16, Reg::R1, Reg::R7, word(layout::GENERATION_AND_WORKER) + 4);
    code.jump_if(Reg::R1, If::Above, TRANSIT as i32 - 1, label);
}

/// Judges the sequence numbers of a flow as `TcpTrack::advance_open` does; all in 32 bits. Leaves the acknowledgment in R3, the end in R4.
fn match_numbers(code: &mut Assembler, miss: Label) {
    let older = OLDER_MIN_BYTES.cast_signed();
    let (end, ack) = (word(layout::END_AND_ACK), word(layout::END_AND_ACK) + 4);
    code.load(Size::Word32, Reg::R2, Reg::Stack, at(38));
    code.big_endian(Reg::R2, 32);
    code.load(Size::Word32, Reg::R3, Reg::Stack, at(42));
    code.big_endian(Reg::R3, 32);
    code.register_32(Alu::Move, Reg::R4, Reg::R2);
    code.register_32(Alu::Add, Reg::R4, Reg::R9);
    let (good, no_fin) = (code.label(), code.label());
    load_fin(code, Reg::R1);
    code.jump_if(Reg::R1, If::Equal, 0, no_fin);
    code.register_32(Alu::Add, Reg::R4, Reg::R1);
    code.load(Size::Word32, Reg::R1, Reg::R7, SERVER);
    code.jump_if(Reg::R1, If::Equal, 0, miss);
    code.place(no_fin);
    jump_if_transit(code, good);
    // What the other side has acknowledged, and its window, less the sequence number.
    code.load(Size::Word16, Reg::R5, Reg::R8, word(layout::WINDOW_AND_SERVER));
    code.load(Size::Word16, Reg::R1, Reg::R7, word(layout::GENERATION_AND_WORKER) + 6);
    code.register_32(Alu::ShiftLeft, Reg::R5, Reg::R1);
    code.load(Size::Word32, Reg::R1, Reg::R8, ack);
    code.register_32(Alu::Add, Reg::R5, Reg::R1);
    code.register_32(Alu::Subtract, Reg::R5, Reg::R2);
    for (new, known) in [(Reg::R4, end), (Reg::R3, ack)] {
        code.load(Size::Word32, Reg::R1, Reg::R7, known);
        code.register_32(Alu::Move, Reg::R0, new);
        code.register_32(Alu::Subtract, Reg::R0, Reg::R1);
        code.constant_32(Alu::Add, Reg::R0, older);
        code.register_32(Alu::Or, Reg::R5, Reg::R0);
    }
    // Nothing of a side's lies behind its FIN.
    let open = code.label();
    code.load(Size::Word64, Reg::R1, Reg::R7, word(layout::FIN));
    code.jump_if(Reg::R1, If::Equal, 0, open);
    code.constant(Alu::ShiftRight, Reg::R1, FIN_END_SHIFT);
    code.register_32(Alu::Subtract, Reg::R1, Reg::R4);
    code.register_32(Alu::Or, Reg::R5, Reg::R1);
    code.place(open);
    code.load(Size::Word32, Reg::R0, Reg::R8, end);
    code.register_32(Alu::Subtract, Reg::R0, Reg::R3);
    code.register_32(Alu::Or, Reg::R5, Reg::R0);
    code.jump_if_sign(Reg::R5, Sign::Negative, miss);
    code.place(good);
}

/// Notes the numbers that are newer, the time and the counts.
fn note(code: &mut Assembler) {
    let numbers = word(layout::END_AND_ACK);
    for (new, known) in [(Reg::R4, numbers), (Reg::R3, numbers + 4)] {
        let older = code.label();
        code.load(Size::Word32, Reg::R1, Reg::R7, known);
        // Below 0 where the new one is later.
        code.register_32(Alu::Subtract, Reg::R1, new);
        code.jump_if_sign(Reg::R1, Sign::NotNegative, older);
        code.store(Size::Word32, Reg::R7, known, new);
        code.place(older);
    }
    let smaller = code.label();
    code.load(Size::Word16, Reg::R1, Reg::Stack, at(48));
    code.big_endian(Reg::R1, 16);
    code.load(Size::Word32, Reg::R2, Reg::R7, word(layout::WINDOW_AND_SERVER));
    code.jump_if_register(Reg::R1, If::NotAbove, Reg::R2, smaller);
    code.store(Size::Word32, Reg::R7, word(layout::WINDOW_AND_SERVER), Reg::R1);
    code.place(smaller);
    note_fin(code);
    code.call(function::KTIME_GET_COARSE_NS);
    code.store(Size::Word64, Reg::R7, word(layout::USED_NS), Reg::R0);
    code.constant(Alu::Move, Reg::R1, 1);
    code.atomic_add(Reg::R7, word(layout::FRAMES), Reg::R1);
    code.load(Size::Word32, Reg::R1, Reg::R6, skb::LEN);
    code.atomic_add(Reg::R7, word(layout::OCTETS), Reg::R1);
    code.atomic_add(Reg::R7, word(layout::PAYLOAD_OCTETS), Reg::R9);
}

/// Notes the FIN of a segment whose end is in R4, unless it is older than its sender's newest, and that its acknowledgment, in R3, is one of the other side's FIN. Changes R0 to R2.
fn note_fin(code: &mut Assembler) {
    let (none, first) = (code.label(), code.label());
    load_fin(code, Reg::R1);
    code.jump_if(Reg::R1, If::Equal, 0, none);
    code.load(Size::Word32, Reg::R1, Reg::R7, word(layout::END_AND_ACK));
    code.register_32(Alu::Move, Reg::R0, Reg::R4);
    code.register_32(Alu::Subtract, Reg::R0, Reg::R1);
    code.jump_if_sign(Reg::R0, Sign::Negative, none);
    code.register_32(Alu::Move, Reg::R2, Reg::R4);
    code.constant(Alu::ShiftLeft, Reg::R2, FIN_END_SHIFT);
    code.constant(Alu::Or, Reg::R2, layout::FIN_SENT as i32);
    code.load(Size::Word64, Reg::R1, Reg::R8, word(layout::FIN));
    code.jump_if(Reg::R1, If::Equal, 0, first);
    code.constant(Alu::Or, Reg::R2, layout::FIN_SECOND as i32);
    code.constant(Alu::ShiftRight, Reg::R1, FIN_END_SHIFT);
    jump_unless_acknowledged(code, first);
    code.constant(Alu::Or, Reg::R2, layout::FIN_ANSWERS as i32);
    code.place(first);
    let unknown = code.label();
    code.load(Size::Word32, Reg::R1, Reg::R8, word(layout::END_AND_ACK) + 4);
    code.register_32(Alu::Move, Reg::R0, Reg::R4);
    code.jump_if_register(Reg::R0, If::NotEqual, Reg::R1, unknown);
    code.constant(Alu::Or, Reg::R2, layout::FIN_ACKED as i32);
    code.place(unknown);
    // Only the first counts.
    code.constant(Alu::Move, Reg::R0, 0);
    code.compare_and_exchange(Reg::R7, word(layout::FIN), Reg::R2);
    code.place(none);
    let none = code.label();
    code.load(Size::Word64, Reg::R1, Reg::R8, word(layout::FIN));
    code.register(Alu::Move, Reg::R2, Reg::R1);
    code.constant(Alu::And, Reg::R2, (layout::FIN_SENT | layout::FIN_ACKED) as i32);
    code.jump_if(Reg::R2, If::NotEqual, layout::FIN_SENT as i32, none);
    code.constant(Alu::ShiftRight, Reg::R1, FIN_END_SHIFT);
    jump_unless_acknowledged(code, none);
    code.constant(Alu::Move, Reg::R1, layout::FIN_ACKED as i32);
    code.fetch_or(Reg::R8, word(layout::FIN), Reg::R1);
    code.place(none);
}

/// Goes on at `label` unless the number in R1 is that in R3, or the acknowledgment noted for the direction in R7. Changes R0.
fn jump_unless_acknowledged(code: &mut Assembler, label: Label) {
    let yes = code.label();
    code.load(Size::Word32, Reg::R0, Reg::R7, word(layout::END_AND_ACK) + 4);
    code.jump_if_register(Reg::R1, If::Equal, Reg::R0, yes);
    code.jump_if_register(Reg::R1, If::NotEqual, Reg::R3, label);
    code.place(yes);
}

/// Puts a flow that is over in front of its worker's list, and counts it for its server; once. Goes on at `gone` with a flow that has an end, and that was taken out meanwhile:
/// who did may not have seen this one. Changes R0 to R5.
fn list(code: &mut Assembler, maps: FastMaps, gone: Label) {
    let no = code.label();
    code.load(Size::Word64, Reg::R1, Reg::R7, word(layout::FIN));
    code.load(Size::Word64, Reg::R2, Reg::R8, word(layout::FIN));
    code.register(Alu::Move, Reg::R3, Reg::R1);
    code.register(Alu::Or, Reg::R3, Reg::R2);
    code.jump_if(Reg::R3, If::Equal, 0, no);
    code.load(Size::Word32, Reg::R3, Reg::R7, word(layout::GENERATION_AND_WORKER));
    code.jump_if(Reg::R3, If::Equal, 0, gone);
    code.register(Alu::And, Reg::R1, Reg::R2);
    code.constant(Alu::And, Reg::R1, layout::FIN_ACKED as i32);
    code.jump_if(Reg::R1, If::Equal, 0, no);
    code.load(Size::Word64, Reg::R5, Reg::Stack, ENTRY);
    code.constant(Alu::Move, Reg::R0, layout::LISTED_NOT as i32);
    code.constant(Alu::Move, Reg::R1, layout::LISTED as i32);
    code.compare_and_exchange(Reg::R5, word(layout::LISTED_OR_NEXT), Reg::R1);
    code.jump_if(Reg::R0, If::NotEqual, layout::LISTED_NOT as i32, no);
    // R3: the word of the server's count, then that of the list's head.
    code.load(Size::Word32, Reg::R1, Reg::R7, SERVER);
    code.constant(Alu::Subtract, Reg::R1, 1);
    control_word(code, maps, layout::ENDED, REAL_SERVERS_MAX);
    code.constant(Alu::Move, Reg::R2, 1);
    code.atomic_add(Reg::R3, 0, Reg::R2);
    code.load(Size::Word16, Reg::R1, Reg::R7, word(layout::GENERATION_AND_WORKER) + 4);
    control_word(code, maps, layout::HEADS, WORKERS_MAX);
    code.load(Size::Word64, Reg::R2, Reg::Stack, FLOW);
    code.constant(Alu::Add, Reg::R2, 1);
    code.exchange(Reg::R3, 0, Reg::R2);
    code.constant_64(Reg::R1, layout::NEXT_IS_KNOWN);
    code.register(Alu::Or, Reg::R2, Reg::R1);
    code.store(Size::Word64, Reg::R5, word(SIDE_WORDS + layout::LISTED_OR_NEXT), Reg::R2);
    code.place(no);
}

/// R3 ← the address of a word of the first map: number R1 of `count`, a power of two, from `first` on. Changes R1.
fn control_word(code: &mut Assembler, maps: FastMaps, first: usize, count: usize) {
    code.constant(Alu::And, Reg::R1, count as i32 - 1);
    code.constant(Alu::ShiftLeft, Reg::R1, 3);
    code.constant(Alu::Add, Reg::R1, (first * size_of::<u64>()) as i32);
    code.map_value(Reg::R3, maps.control);
    code.register(Alu::Add, Reg::R3, Reg::R1);
}

/// `to` ← 1 if the segment has FIN, else 0.
fn load_fin(code: &mut Assembler, to: Reg) {
    code.load(Size::Octet, to, Reg::Stack, at(47));
    code.constant(Alu::And, to, FIN.into());
}

/// Rewrites the headers on the stack, but for the TCP checksum.
fn rewrite(code: &mut Assembler) {
    // The MACs are eight octets and four, two octets off the alignment of words.
    code.load(Size::Word64, Reg::R1, Reg::R7, word(layout::MACS));
    code.store(Size::Word16, Reg::Stack, at(0), Reg::R1);
    code.constant(Alu::ShiftRight, Reg::R1, 16);
    code.store(Size::Word32, Reg::Stack, at(2), Reg::R1);
    code.constant(Alu::ShiftRight, Reg::R1, 32);
    code.store(Size::Word16, Reg::Stack, at(6), Reg::R1);
    code.load(Size::Word32, Reg::R1, Reg::R7, word(layout::MACS_AND_SIZE));
    code.store(Size::Word16, Reg::Stack, at(8), Reg::R1);
    code.constant(Alu::ShiftRight, Reg::R1, 16);
    code.store(Size::Word16, Reg::Stack, at(10), Reg::R1);
    code.load(Size::Octet, Reg::R1, Reg::Stack, at(22));
    code.constant(Alu::Subtract, Reg::R1, 1);
    code.store(Size::Octet, Reg::Stack, at(22), Reg::R1);
    code.load(Size::Word16, Reg::R1, Reg::Stack, at(24));
    code.constant(Alu::Xor, Reg::R1, 0xffff);
    code.load(Size::Word16, Reg::R2, Reg::R7, word(layout::DELTAS));
    code.register(Alu::Add, Reg::R1, Reg::R2);
    fold(code, Reg::R1, Reg::R2, 16);
    code.constant(Alu::Xor, Reg::R1, 0xffff);
    code.store(Size::Word16, Reg::Stack, at(24), Reg::R1);
    code.load(Size::Word64, Reg::R1, Reg::R7, word(layout::TO_ADDRESSES));
    code.store(Size::Word64, Reg::Stack, at(26), Reg::R1);
    code.load(Size::Word32, Reg::R1, Reg::R7, word(layout::TO_PORTS_AND_INTERFACE));
    code.store(Size::Word32, Reg::Stack, at(34), Reg::R1);
}
