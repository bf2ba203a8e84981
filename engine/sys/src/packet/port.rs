//! One interface, one worker: a packet socket with a receive ring.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// One instruction of a classic BPF program: (code, jump if true, jump if false, operand).
pub type Instruction = (u16, u8, u8, u32);

/// What a receive ring is made of. It is allocated at once, in the kernel, and not swapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSettings {
    /// Frames it holds (> 0); rounded up to whole blocks.
    pub slots: u32,
    /// The largest frame it holds whole. Where segments are joined (GRO) or the neighbour is a virtual device, that is
    /// [`RingSettings::FRAME_BYTES_MAX`].
    pub frame_bytes_max: u32,
}

impl RingSettings {
    /// A super-packet of IPv6 with its headers and a VLAN tag: 65,535 + 40 + 18.
    pub const FRAME_BYTES_MAX: u32 = 65_593;

    /// Memory of one ring, in bytes: of one interface and one worker.
    pub fn ring_bytes(&self) -> u64 {
        unimplemented!()
    }
}

/// Whether a port works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortState {
    /// The interface is down; frames come again when it is up.
    Down,
    /// The interface is gone. When one of that name is there again, the port is to be opened anew, for all workers.
    Gone,
    /// Frames come and go.
    Up,
}

/// What a port has received since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RxCounts {
    /// Frames handed out.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames that the kernel had no free slot for, or could not describe.
    pub dropped: u64,
    /// Frames passed over because they were for another station.
    pub foreign: u64,
    /// Frames passed over because they carry a VLAN tag.
    pub tagged: u64,
    /// Frames passed over because they were larger than a slot.
    pub truncated: u64,
}

/// One interface for one worker.
#[derive(Debug)]
pub struct PacketPort {
    _name: String,
}

/// Opens an interface of the calling thread's namespace for so many workers (1 to 256), in their order.
///
/// Of the frames that come in, each goes to the worker whose number `steering` returns (modulo their number; not asked when there
/// is one). What the machine itself sends is not seen.
pub fn open(
    interface: &str,
    workers: usize,
    steering: &[Instruction],
    settings: &RingSettings,
) -> io::Result<Vec<PacketPort>> {
    let _ = (interface, workers, steering, settings);
    unimplemented!()
}

impl PacketPort {
    /// The interface's name when it was opened.
    pub fn name(&self) -> &str {
        unimplemented!()
    }

    /// The interface's number.
    pub fn index(&self) -> u32 {
        unimplemented!()
    }

    /// Replaces the steering of all workers of this interface, live. Nothing happens where there is one worker.
    pub fn steer(&self, steering: &[Instruction]) -> io::Result<()> {
        let _ = steering;
        unimplemented!()
    }

    /// Has the interface take in frames for a group of stations, as neighbour discovery for our addresses needs
    /// (RFC 4861 §7.2.1); as long as the port is open.
    pub fn join(&self, group: [u8; 6]) -> io::Result<()> {
        let _ = group;
        unimplemented!()
    }
}

impl AsFd for PacketPort {
    /// Readable while there are frames; for `Ring::await_ready_many`.
    fn as_fd(&self) -> BorrowedFd<'_> {
        unimplemented!()
    }
}
