//! Frames too large for a slot, copied from the socket's queue when their turn comes.
//!
//! Beside the slot that holds the beginning of such a frame, the kernel queues the frame itself as it came (PACKET_COPY_THRESH,
//! `tpacket_rcv`, net/packet/af_packet.c), as far as the socket's receive buffer has room. So the slots can be small and many, and keep
//! the order of all frames, while super-packets wait without a copy of theirs.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::FRONT_BYTES;
use super::offload::{HEADER_BYTES, Header};
use super::store::{Extent, Store};
use crate::errno::check_length;
use crate::mapping::Mapping;
use crate::socket::set_option;

/// Frames that are ours at a time, so few that they stay in the processor's cache.
const BUFFERS: u32 = 8;
/// Where the offload header begins in a buffer, so that the frame behind it begins with a cache line.
const START: usize = 64 - HEADER_BYTES;
// It has room in front, with a header there.
const _: () = assert!(START >= FRONT_BYTES);
/// One after the other, whole pages; the largest frame fits.
const BUFFER_BYTES: usize = 68 << 10;
/// Attempts to receive: an error of the time when the interface was down comes once, before what is queued.
const ATTEMPTS: usize = 2;

/// Buffers for the queue of one socket.
#[derive(Debug)]
pub(super) struct Copies {
    store: Store,
    /// Buffers without a frame; the last was used last.
    free: Vec<u32>,
}

/// A frame in a buffer that is ours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copied {
    pub(super) buffer: u32,
    pub(super) frame: Extent,
    pub(super) offload: Header,
}

impl Copies {
    /// Memory of the buffers.
    pub(super) const BYTES: usize = BUFFERS as usize * BUFFER_BYTES;

    /// Has the kernel queue frames that do not fit their slots, so many bytes at a time with what it needs to keep them.
    pub(super) fn new(socket: &impl AsFd, queued_bytes_max: u32) -> io::Result<Copies> {
        // The kernel counts twice what it is asked for.
        let size = libc::c_int::try_from(queued_bytes_max / 2).map_err(io::Error::other)?;
        if set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &size).is_err() {
            // Not root: as much as the machine gives; what is lost for it is counted.
            set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUF, &size)?;
        }
        let on: libc::c_int = 1;
        set_option(socket, libc::SOL_PACKET, libc::PACKET_COPY_THRESH, &on)?;
        Ok(Copies { store: Store::new(Mapping::new(Copies::BYTES)?), free: (0..BUFFERS).rev().collect() })
    }

    /// Whether a frame can be received.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Receives the frame that was queued first; `None` when there is none, no buffer, or none that fits a buffer.
    pub(super) fn receive(&mut self, socket: &impl AsFd) -> Option<Copied> {
        let buffer = *self.free.last()?;
        let start = buffer as usize * BUFFER_BYTES + START;
        let room = self.store.pointer(Extent { start, len: BUFFER_BYTES - START });
        let raw = socket.as_fd().as_raw_fd();
        let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
        let received = (0..ATTEMPTS).find_map(|_| {
            // SAFETY: the pointer names `room.len()` bytes of a free buffer, to which nobody refers, and outlives the call.
            check_length(unsafe { libc::recv(raw, room.cast(), room.len(), flags) }).ok()
        })?;
        if !(HEADER_BYTES..=room.len()).contains(&received) {
            return None;
        }
        self.free.pop();
        let frame = Extent { start: start + HEADER_BYTES, len: received - HEADER_BYTES };
        Some(Copied { buffer, frame, offload: self.store.read(start) })
    }

    /// Throws away what is queued, at most `max` frames.
    pub(super) fn clear(&mut self, socket: &impl AsFd, max: usize) {
        for _ in 0..max {
            let Some(copied) = self.receive(socket) else { break };
            self.release(copied.buffer);
        }
    }

    /// Gives a buffer back.
    pub(super) fn release(&mut self, buffer: u32) {
        debug_assert!(!self.free.contains(&buffer), "buffer {buffer} given back twice");
        self.free.push(buffer);
    }

    /// Where the frames lie.
    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Where the frames lie, to write headers in front of those that are ours.
    pub(super) fn store_mut(&mut self) -> &mut Store {
        &mut self.store
    }
}
