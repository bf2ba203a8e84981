//! Frames of interfaces: the rings that the packet plane reads and sends through, and a tap for tests.

mod burst;
mod copies;
mod hearing;
mod memberships;
mod offload;
mod port;
mod ports;
mod slots;
mod socket;
mod store;
mod tag;
mod tap;
#[cfg(test)]
mod tests;

pub use burst::{Burst, BurstLayout};
pub use hearing::{HeardFrame, Hearing};
pub use memberships::Memberships;
pub use offload::{Offload, PartialChecksum, SegmentKind, Segments};
pub use port::{Instruction, PacketPort, PortState, RingSettings, RxCounts, open};
pub use ports::{BATCH_MAX, PacketPorts, ReceivedFrame, TxCounts};
pub use tag::Tag;
pub use tap::{Direction, Frame, Tap};

/// Bytes by which a frame can grow to the front where it was received: those by which the header of IPv6 is longer than that of IPv4.
pub const FRONT_BYTES: usize = 20;
