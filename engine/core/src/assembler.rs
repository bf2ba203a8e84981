//! An assembler for the kernel's virtual machine (RFC 9669), for as much of it as the programs here need.

/// One instruction slot as the kernel reads it: operation, registers, offset and constant from the lowest bits up.
pub type Slot = u64;

/// A register. R0 is a call's result, R1 to R5 its arguments and gone after it, R6 to R9 stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    /// The end of the stack, which is 512 octets below it.
    Stack,
}

/// How much a load or store moves.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Size {
    Word32 = 0x00,
    Word16 = 0x08,
    Octet = 0x10,
    Word64 = 0x18,
}

/// An operation on 64 bits; with [`ON_32`] on the lower 32, which clears the upper ones.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Alu {
    Add = 0x07,
    Subtract = 0x17,
    Multiply = 0x27,
    Or = 0x47,
    And = 0x57,
    ShiftLeft = 0x67,
    ShiftRight = 0x77,
    Xor = 0xa7,
    Move = 0xb7,
}

/// A comparison to jump after, of 64 bits.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum If {
    Equal = 0x15,
    Above = 0x25,
    NotEqual = 0x55,
    Below = 0xa5,
    NotAbove = 0xb5,
}

/// A comparison of the lower 32 bits with 0, as a number with a sign.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Sign {
    NotNegative = 0x76,
    Negative = 0xc6,
}

/// The class of operations on 32 bits, as it differs from that on 64.
const ON_32: u8 = 0x07 ^ 0x04;
/// The second operand is a register.
const REGISTER: u8 = 0x08;
const LOAD: u8 = 0x61;
const STORE: u8 = 0x63;
const ATOMIC_64: u8 = 0xdb;
/// In the constant of an atomic operation: it fetches what was there.
const EXCHANGE: i32 = 0xe1;
const OR_AND_FETCH: i32 = 0x41;
const COMPARE_AND_EXCHANGE: i32 = 0xf1;
const LOAD_CONSTANT_64: u8 = 0x18;
const TO_BIG_ENDIAN: u8 = 0xdc;
const JUMP: u8 = 0x05;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// The constant is the descriptor of a map.
const MAP: u8 = 1;
/// The constant is the descriptor of a map of one element, and its address is meant.
const MAP_VALUE: u8 = 2;

/// A place in the program, to be jumped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Label(usize);

/// A program in the making.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    slots: Vec<Slot>,
    places: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    /// A label without a place yet.
    pub(crate) fn label(&mut self) -> Label {
        self.places.push(None);
        Label(self.places.len() - 1)
    }

    /// The label's place is here.
    pub(crate) fn place(&mut self, label: Label) {
        self.places[label.0] = Some(self.slots.len());
    }

    /// to ← to `alu` value.
    pub(crate) fn constant(&mut self, alu: Alu, to: Reg, value: i32) {
        self.push(alu as u8, to as u8, 0, 0, value);
    }

    /// to ← to `alu` from.
    pub(crate) fn register(&mut self, alu: Alu, to: Reg, from: Reg) {
        self.push(alu as u8 | REGISTER, to as u8, from as u8, 0, 0);
    }

    /// The same with constant and 32 bits.
    pub(crate) fn constant_32(&mut self, alu: Alu, to: Reg, value: i32) {
        self.push(alu as u8 ^ ON_32, to as u8, 0, 0, value);
    }

    /// The same with registers and 32 bits.
    pub(crate) fn register_32(&mut self, alu: Alu, to: Reg, from: Reg) {
        self.push(alu as u8 ^ ON_32 | REGISTER, to as u8, from as u8, 0, 0);
    }

    /// to ← value.
    pub(crate) fn constant_64(&mut self, to: Reg, value: u64) {
        self.wide(to, 0, value as u32, (value >> 32) as u32);
    }

    /// to ← the map behind a descriptor.
    pub(crate) fn map(&mut self, to: Reg, descriptor: i32) {
        self.wide(to, MAP, descriptor.cast_unsigned(), 0);
    }

    /// to ← the address of the only element of the map behind a descriptor.
    pub(crate) fn map_value(&mut self, to: Reg, descriptor: i32) {
        self.wide(to, MAP_VALUE, descriptor.cast_unsigned(), 0);
    }

    /// to ← what is at base + offset, with zeroes above it.
    pub(crate) fn load(&mut self, size: Size, to: Reg, base: Reg, offset: i16) {
        self.push(LOAD | size as u8, to as u8, base as u8, offset, 0);
    }

    /// What is at base + offset ← from.
    pub(crate) fn store(&mut self, size: Size, base: Reg, offset: i16, from: Reg) {
        self.push(STORE | size as u8, base as u8, from as u8, offset, 0);
    }

    /// The 64 bits at base + offset ← themselves + from, at once for all CPUs.
    pub(crate) fn atomic_add(&mut self, base: Reg, offset: i16, from: Reg) {
        self.push(ATOMIC_64, base as u8, from as u8, offset, 0);
    }

    /// The 64 bits at base + offset ← with those of `bits`, at once for all CPUs. `bits` ← what they were.
    pub(crate) fn fetch_or(&mut self, base: Reg, offset: i16, bits: Reg) {
        self.push(ATOMIC_64, base as u8, bits as u8, offset, OR_AND_FETCH);
    }

    /// The 64 bits at base + offset, and with, change places, at once for all CPUs.
    pub(crate) fn exchange(&mut self, base: Reg, offset: i16, with: Reg) {
        self.push(ATOMIC_64, base as u8, with as u8, offset, EXCHANGE);
    }

    /// The 64 bits at base + offset ← new if they are R0, at once for all CPUs. R0 ← what they were.
    pub(crate) fn compare_and_exchange(&mut self, base: Reg, offset: i16, new: Reg) {
        self.push(ATOMIC_64, base as u8, new as u8, offset, COMPARE_AND_EXCHANGE);
    }

    /// Takes the lower 16, 32 or 64 bits for a big-endian number, and clears those above.
    pub(crate) fn big_endian(&mut self, to: Reg, bits: i32) {
        self.push(TO_BIG_ENDIAN, to as u8, 0, 0, bits);
    }

    /// Goes on at `label`.
    pub(crate) fn jump(&mut self, label: Label) {
        self.jump_slot(JUMP, Reg::R0, Reg::R0, 0, label);
    }

    /// Goes on at `label` if the comparison with a constant holds.
    pub(crate) fn jump_if(&mut self, a: Reg, test: If, b: i32, label: Label) {
        self.jump_slot(test as u8, a, Reg::R0, b, label);
    }

    /// The same with a register.
    pub(crate) fn jump_if_register(&mut self, a: Reg, test: If, b: Reg, label: Label) {
        self.jump_slot(test as u8 | REGISTER, a, b, 0, label);
    }

    /// Goes on at `label` if the lower 32 bits have that sign.
    pub(crate) fn jump_if_sign(&mut self, a: Reg, test: Sign, label: Label) {
        self.jump_slot(test as u8, a, Reg::R0, 0, label);
    }

    /// R0 ← what the kernel's function returns.
    pub(crate) fn call(&mut self, function: i32) {
        self.push(CALL, 0, 0, 0, function);
    }

    /// Ends with result R0.
    pub(crate) fn exit(&mut self) {
        self.push(EXIT, 0, 0, 0, 0);
    }

    /// The whole program.
    pub(crate) fn finish(mut self) -> Vec<Slot> {
        for (at, label) in self.jumps {
            let to = self.places[label.0].expect("each label is placed");
            let skipped = i16::try_from(to as isize - at as isize - 1).expect("programs are far shorter than 32 Ki");
            self.slots[at] |= u64::from(skipped.cast_unsigned()) << 16;
        }
        self.slots
    }

    fn jump_slot(&mut self, code: u8, a: Reg, b: Reg, constant: i32, label: Label) {
        self.jumps.push((self.slots.len(), label));
        self.push(code, a as u8, b as u8, 0, constant);
    }

    fn wide(&mut self, to: Reg, kind: u8, low: u32, high: u32) {
        self.push(LOAD_CONSTANT_64, to as u8, kind, 0, low.cast_signed());
        self.push(0, 0, 0, 0, high.cast_signed());
    }

    fn push(&mut self, code: u8, to: u8, from: u8, offset: i16, constant: i32) {
        let registers = u64::from(to | from << 4) << 8;
        let offset = u64::from(offset.cast_unsigned()) << 16;
        self.slots.push(u64::from(code) | registers | offset | u64::from(constant.cast_unsigned()) << 32);
    }
}
