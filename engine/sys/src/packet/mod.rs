//! Frames of interfaces: the rings that the packet plane reads and sends through, and a tap for tests.

mod copies;
mod hearing;
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

pub use hearing::{HeardFrame, Hearing};
pub use offload::{Offload, PartialChecksum, SegmentKind, Segments};
pub use port::{Instruction, PacketPort, PortState, RingSettings, RxCounts, open};
pub use ports::{BATCH_MAX, PacketPorts, ReceivedFrame, TxCounts};
pub use tag::Tag;
pub use tap::{Direction, Frame, Tap};
