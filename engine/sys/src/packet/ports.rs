//! All interfaces of one worker: a batch of frames in, each in place out again.

use std::os::fd::BorrowedFd;

use super::offload::Offload;
use super::port::{PacketPort, PortState, RxCounts};

/// Frames of one batch.
pub const BATCH_MAX: usize = 32;

/// A frame that was received, in its slot of the ring.
#[derive(Debug)]
pub struct ReceivedFrame<'a> {
    /// From the Ethernet header on.
    pub bytes: &'a mut [u8],
    /// The port it came in by: its place in the list given to [`PacketPorts::new`].
    pub port: u8,
    /// What is still to be done for it.
    pub offload: Offload,
}

/// What was to be sent over one port. Every frame is counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TxCounts {
    /// Frames that the kernel took; super-packets count as one.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Refused because the interface is down or gone (`ENETDOWN`, `ENXIO`, `ENODEV`).
    pub down: u64,
    /// Refused because its queue or the socket's buffer is full (`ENOBUFS`, `EAGAIN`, `ENOMEM`).
    pub full: u64,
    /// Refused because they are larger than the MTU and no super-packet (`EMSGSIZE`).
    pub too_large: u64,
    /// Refused for another reason.
    pub refused: u64,
}

/// The interfaces of one worker. Use: [`take`](PacketPorts::take), [`frames`](PacketPorts::frames), for each that goes on
/// [`send`](PacketPorts::send), then [`flush`](PacketPorts::flush).
#[derive(Debug)]
pub struct PacketPorts {
    _ports: Vec<PacketPort>,
}

impl PacketPorts {
    /// Ports are numbered as they are in the list (at most 256).
    pub fn new(ports: Vec<PacketPort>) -> PacketPorts {
        PacketPorts { _ports: ports }
    }

    /// Takes up to `max` (at most [`BATCH_MAX`]) frames from the rings, the ports in turn; says how many. Flushes first if there
    /// still is an older batch.
    pub fn take(&mut self, max: usize) -> usize {
        let _ = max;
        unimplemented!()
    }

    /// The frames of the batch, in order. No memory is allocated.
    pub fn frames(&mut self) -> impl Iterator<Item = ReceivedFrame<'_>> {
        std::iter::empty()
    }

    /// Queues the n-th frame of the batch, as it is in its slot now, to leave by `port`. One frame may leave by several ports.
    ///
    /// # Panics
    /// If there is no such frame or port.
    pub fn send(&mut self, frame: usize, port: u8) {
        let _ = (frame, port);
        unimplemented!()
    }

    /// Queues a copy of a frame that was made here.
    ///
    /// # Panics
    /// If there is no such port.
    pub fn send_bytes(&mut self, port: u8, bytes: &[u8], offload: Offload) {
        let _ = (port, bytes, offload);
        unimplemented!()
    }

    /// Sends what is queued and gives the slots of the batch back to the kernel. What cannot be sent is counted and gone.
    pub fn flush(&mut self) {
        unimplemented!()
    }

    /// Number of ports.
    pub fn count(&self) -> usize {
        unimplemented!()
    }

    /// One port.
    ///
    /// # Panics
    /// If there is no such port.
    pub fn port(&self, port: u8) -> &PacketPort {
        let _ = port;
        unimplemented!()
    }

    /// Puts another in a port's place and returns the old one, as when its interface was gone and is there again. Flushes first.
    ///
    /// # Panics
    /// If there is no such port.
    pub fn replace(&mut self, port: u8, by: PacketPort) -> PacketPort {
        let _ = (port, by);
        unimplemented!()
    }

    /// Readable while the port has frames (or its state has changed); for `Ring::await_ready_many`.
    pub fn poll_fd(&self, port: u8) -> BorrowedFd<'_> {
        let _ = port;
        unimplemented!()
    }

    /// Whether the port works; asks the kernel. To be called when its descriptor is ready and no frame is there, and now and then.
    pub fn state(&mut self, port: u8) -> PortState {
        let _ = port;
        unimplemented!()
    }

    /// What the port has received; asks the kernel for its losses.
    pub fn rx_counts(&mut self, port: u8) -> RxCounts {
        let _ = port;
        unimplemented!()
    }

    /// What was to be sent over the port.
    pub fn tx_counts(&self, port: u8) -> TxCounts {
        let _ = port;
        unimplemented!()
    }
}
