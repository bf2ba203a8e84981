//! Many small frames sent in one call: where they lie, and the program of the kernel that sends them.
//!
//! A packet socket sends frame by frame, and after each the kernel lets softirqs in: what one frame has set off, an interrupt to another CPU often, is done before the next one leaves. A
//! program runs with softirqs held back, so what its frames set off is done once for all of them. It takes the frames from an array that this process writes to; it is run by
//! BPF_PROG_TEST_RUN, on a frame that itself goes nowhere: each of ours is written over it, and a clone leaves.

use crate::assembler::{Alu, Assembler, If, Reg, Size, Slot};

/// Frames of one burst.
pub const FRAMES_MAX: usize = 64;

/// Octets of a place of the array: a length, an interface, a frame. A length below [`FRAME_MIN`] ends the burst.
pub const PLACE: usize = 1 << PLACE_SHIFT;

/// Octets of the shortest frame: Ethernet, and what is in front of the addresses' end in IPv4, below which the kernel runs no program on it.
pub const FRAME_MIN: usize = 34;

/// Where the length stands in a place, in 32 bits, as the machine orders octets.
pub const LENGTH: usize = 0;

/// Where the number of the interface stands, in 32 bits. The program leaves there what became of the frame: 0 or more as `dev_queue_xmit` returns it, below 0 an error.
pub const INTERFACE: usize = 4;

/// Where the frame stands.
pub const FRAME: usize = 8;

/// All that whoever fills the places has to know: [`FRAMES_MAX`], [`FRAME_MIN`], [`PLACE`], [`LENGTH`], [`INTERFACE`], [`FRAME`].
pub const LAYOUT: [usize; 6] = [FRAMES_MAX, FRAME_MIN, PLACE, LENGTH, INTERFACE, FRAME];

const PLACE_SHIFT: i32 = 9;

/// `struct __sk_buff` (linux/bpf.h): where its length is.
const SKB_LEN: i16 = 0;

/// The kernel's functions by number (linux/bpf.h).
mod function {
    pub(super) const SKB_STORE_BYTES: i32 = 9;
    pub(super) const CLONE_REDIRECT: i32 = 13;
    pub(super) const SKB_CHANGE_TAIL: i32 = 38;
    pub(super) const SET_HASH: i32 = 48;
}

/// The program, for the kind `BPF_PROG_TYPE_SCHED_CLS` (Linux 5.5), with the descriptor of a map of one element: [`FRAMES_MAX`] places.
pub fn program(places: i32) -> Vec<Slot> {
    program_with(places, None)
}

/// The same for links at whose other end all is received by one CPU: the kernel, which steers by a hash of each frame's addresses and ports, is told this one instead.
pub fn program_to_one(places: i32) -> Vec<Slot> {
    program_with(places, Some(1))
}

fn program_with(places: i32, hash: Option<i32>) -> Vec<Slot> {
    let mut code = Assembler::default();
    let (next, fits, told, end) = (code.label(), code.label(), code.label(), code.label());
    // R6: the context; R7: the number of the place.
    code.register(Alu::Move, Reg::R6, Reg::R1);
    code.constant(Alu::Move, Reg::R7, 0);
    if let Some(hash) = hash {
        code.constant(Alu::Move, Reg::R2, hash);
        code.call(function::SET_HASH);
    }
    code.place(next);
    // R9: the place; R8: the length.
    code.map_value(Reg::R9, places);
    code.register(Alu::Move, Reg::R1, Reg::R7);
    code.constant(Alu::ShiftLeft, Reg::R1, PLACE_SHIFT);
    code.register(Alu::Add, Reg::R9, Reg::R1);
    code.load(Size::Word32, Reg::R8, Reg::R9, LENGTH as i16);
    code.jump_if(Reg::R8, If::Below, FRAME_MIN as i32, end);
    code.jump_if(Reg::R8, If::Above, (PLACE - FRAME) as i32, end);
    code.load(Size::Word32, Reg::R1, Reg::R6, SKB_LEN);
    code.jump_if_register(Reg::R1, If::Equal, Reg::R8, fits);
    code.register(Alu::Move, Reg::R1, Reg::R6);
    code.register(Alu::Move, Reg::R2, Reg::R8);
    code.constant(Alu::Move, Reg::R3, 0);
    code.call(function::SKB_CHANGE_TAIL);
    code.jump_if(Reg::R0, If::NotEqual, 0, told);
    code.place(fits);
    code.register(Alu::Move, Reg::R1, Reg::R6);
    code.constant(Alu::Move, Reg::R2, 0);
    code.register(Alu::Move, Reg::R3, Reg::R9);
    code.constant(Alu::Add, Reg::R3, FRAME as i32);
    code.register(Alu::Move, Reg::R4, Reg::R8);
    code.constant(Alu::Move, Reg::R5, 0);
    code.call(function::SKB_STORE_BYTES);
    code.jump_if(Reg::R0, If::NotEqual, 0, told);
    code.register(Alu::Move, Reg::R1, Reg::R6);
    code.load(Size::Word32, Reg::R2, Reg::R9, INTERFACE as i16);
    code.constant(Alu::Move, Reg::R3, 0);
    code.call(function::CLONE_REDIRECT);
    code.place(told);
    code.store(Size::Word32, Reg::R9, INTERFACE as i16, Reg::R0);
    code.constant(Alu::Add, Reg::R7, 1);
    code.jump_if(Reg::R7, If::NotEqual, FRAMES_MAX as i32, next);
    code.place(end);
    code.constant(Alu::Move, Reg::R0, 0);
    code.exit();
    code.finish()
}
