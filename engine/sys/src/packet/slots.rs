//! The receive ring of a packet socket (TPACKET_V2), mapped: slots that the kernel fills and we give back.
//!
//! A slot belongs to the kernel while its status is TP_STATUS_KERNEL and to us while it is not; each side writes the status last
//! (Documentation/networking/packet_mmap.rst). The kernel fills slots in order, so only the next one is ever looked at.
//! TPACKET_V2, not V3: blocks that are handed over when full or timed out cost half a millisecond where little arrives.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};

use super::FRONT_BYTES;
use super::offload::{HEADER_BYTES, Header};
use super::store::{Extent, Store};
use super::tag::Tag;
use crate::mapping::Mapping;
use crate::socket::set_option;

/// `TPACKET_V2` (enum tpacket_versions, linux/if_packet.h).
pub(super) const VERSION: libc::c_int = 1;

/// What the kernel allocates at a time, and where it falls back to scattered pages. A frame never crosses it; frames of 64 KiB
/// waste 6 % of it.
const BLOCK_BYTES: u32 = 1 << 20;
/// Blocks of one ring, so that it stays below the 4 GiB that the kernel counts to.
const BLOCKS_MAX: u32 = 4095;
/// Where their size is free, slots are a cache line less than a multiple of this: at a power of two from each other the same lines of all slots
/// would share a few sets of the cache, and each frame would push out one that is still to be read.
const SLOT_STEP: u32 = 1 << 11;
/// A slot begins with a cache line of its own.
const SLOT_ALIGNMENT: u32 = 64;
/// Bytes in front of the frame in its slot: `struct tpacket2_hdr`, `struct sockaddr_ll`, the offload header and what aligns the
/// network header (`tpacket_rcv`, net/packet/af_packet.c) are 76.
const HEADROOM: u32 = 96;
/// Where the sender's address, which says for whom a frame was, follows in a slot.
const ADDRESS: usize = size_of::<libc::tpacket2_hdr>().next_multiple_of(libc::TPACKET_ALIGNMENT);
/// No frame begins before this: what comes earlier in a slot is read by us.
const FRAME_START_MIN: usize = ADDRESS + size_of::<libc::sockaddr_ll>() + HEADER_BYTES;
// Once it was read, a frame may grow over it and have its header in front, but for what the kernel and we tell each other by.
const _: () = assert!(FRAME_START_MIN >= size_of::<libc::tpacket2_hdr>() + HEADER_BYTES + FRONT_BYTES);

/// How a ring is cut into slots.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    slot_bytes: u32,
    slots_per_block: u32,
    blocks: u32,
}

impl Geometry {
    /// For at least so many slots (> 0), as far as a ring can be that large, for frames of so many bytes (≤ 65,593).
    pub(super) fn new(slots: u32, frame_bytes_max: u32) -> Geometry {
        let slot_bytes = (frame_bytes_max + HEADROOM).next_multiple_of(SLOT_ALIGNMENT);
        let slots_per_block = BLOCK_BYTES / slot_bytes;
        Geometry { slot_bytes, slots_per_block, blocks: slots.div_ceil(slots_per_block).clamp(1, BLOCKS_MAX) }
    }

    /// Slots of the ring.
    pub(super) fn slots(&self) -> u32 {
        self.slots_per_block * self.blocks
    }

    /// Memory of the ring.
    pub(super) fn bytes(&self) -> usize {
        BLOCK_BYTES as usize * self.blocks as usize
    }

    /// Where a slot begins in the ring.
    fn offset(&self, slot: u32) -> usize {
        let (block, place) = (slot / self.slots_per_block, slot % self.slots_per_block);
        block as usize * BLOCK_BYTES as usize + place as usize * self.slot_bytes as usize
    }
}

/// The largest frame that fits a slot of free size which is made for frames of so many bytes.
pub(super) fn filled_by(frame_bytes: u32) -> u32 {
    (frame_bytes + HEADROOM + SLOT_ALIGNMENT).next_multiple_of(SLOT_STEP) - SLOT_ALIGNMENT - HEADROOM
}

/// A slot that is ours, until it is released.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filled {
    /// The slot.
    pub(super) slot: u32,
    /// The frame in it, or its beginning.
    pub(super) frame: Extent,
    /// What the kernel says the frame leaves to be done.
    pub(super) offload: Header,
    /// When it was received, in nanoseconds since 1970.
    pub(super) received_unix_ns: u64,
    /// Whether it was for another station.
    pub(super) is_foreign: bool,
    /// Its VLAN tag, which the kernel has taken off.
    pub(super) tag: Option<Tag>,
    /// Bytes of the whole frame.
    pub(super) whole_bytes: usize,
    /// Whether its end did not fit the slot.
    pub(super) is_cut: bool,
    /// Whether the whole frame waits in the socket's queue besides, behind those of earlier slots.
    pub(super) is_queued: bool,
}

/// The slots of one socket.
#[derive(Debug)]
pub(super) struct Slots {
    store: Store,
    geometry: Geometry,
    /// The slot that the kernel fills next, or has filled already.
    next: u32,
}

impl Slots {
    /// Has the kernel allocate the ring of a socket of [`VERSION`] with PACKET_VNET_HDR, and maps it.
    pub(super) fn new(socket: &impl AsFd, geometry: Geometry) -> io::Result<Slots> {
        let request = libc::tpacket_req {
            tp_block_size: BLOCK_BYTES,
            tp_block_nr: geometry.blocks,
            tp_frame_size: geometry.slot_bytes,
            tp_frame_nr: geometry.slots(),
        };
        set_option(socket, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)?;
        let store = Store::new(Mapping::shared(socket, geometry.bytes())?);
        Ok(Slots { store, geometry, next: 0 })
    }

    /// Whether the kernel has filled the next slot with a part of a frame, and the whole waits in the socket's queue.
    pub(super) fn is_next_queued(&self) -> bool {
        let wanted = libc::TP_STATUS_USER | libc::TP_STATUS_COPY;
        self.status(self.next).load(Ordering::Acquire) & wanted == wanted
    }

    /// The next slot that the kernel has filled, which is ours from now on.
    pub(super) fn take(&mut self) -> Option<Filled> {
        let slot = self.next;
        if self.status(slot).load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return None;
        }
        self.next = if slot + 1 == self.geometry.slots() { 0 } else { slot + 1 };
        let begin = self.geometry.offset(slot);
        let header: libc::tpacket2_hdr = self.store.read(begin);
        let address: libc::sockaddr_ll = self.store.read(begin + ADDRESS);
        let start = usize::from(header.tp_mac);
        let len = header.tp_snaplen as usize;
        assert!(
            start >= FRAME_START_MIN && start + len <= self.geometry.slot_bytes as usize,
            "the kernel keeps a frame in its slot"
        );
        Some(Filled {
            slot,
            frame: Extent { start: begin + start, len },
            offload: self.store.read(begin + start - HEADER_BYTES),
            received_unix_ns: u64::from(header.tp_sec) * 1_000_000_000 + u64::from(header.tp_nsec),
            is_foreign: address.sll_pkttype == libc::PACKET_OTHERHOST,
            tag: Tag::of_aux(header.tp_status, header.tp_vlan_tci, header.tp_vlan_tpid),
            whole_bytes: header.tp_len as usize,
            is_cut: header.tp_len > header.tp_snaplen,
            is_queued: header.tp_status & libc::TP_STATUS_COPY != 0,
        })
    }

    /// Gives a slot that was taken back to the kernel.
    pub(super) fn release(&mut self, slot: u32) {
        self.status(slot).store(libc::TP_STATUS_KERNEL, Ordering::Release);
    }

    /// Where the frames lie.
    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Where the frames lie, to write headers in front of those that are ours.
    pub(super) fn store_mut(&mut self) -> &mut Store {
        &mut self.store
    }

    fn status(&self, slot: u32) -> &AtomicU32 {
        let begin = self.geometry.offset(slot);
        let place: *mut u32 = self.store.pointer(Extent { start: begin, len: size_of::<u32>() }).cast();
        // SAFETY: the status comes first in a slot (`struct tpacket2_hdr`), slots are aligned to 64 bytes, and both sides access it
        // atomically only, but for `Store::read`, while it is ours.
        unsafe { AtomicU32::from_ptr(place) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_lie_in_blocks_one_behind_the_other() {
        for (slots, frame) in [(1, 1_518), (1000, 1_518), (64, 65_593), (1024, 65_593), (1 << 30, 9_018)] {
            let geometry = Geometry::new(slots, frame);
            assert!(geometry.slots() >= slots.min(BLOCKS_MAX * geometry.slots_per_block), "{slots} of {frame}");
            assert!(geometry.slot_bytes >= frame + HEADROOM);
            let mut end = 0;
            for slot in 0..geometry.slots().min(10_000) {
                let begin = geometry.offset(slot);
                assert!(begin >= end && begin.is_multiple_of(SLOT_ALIGNMENT as usize));
                end = begin + geometry.slot_bytes as usize;
                assert_eq!(
                    begin / BLOCK_BYTES as usize,
                    (end - 1) / BLOCK_BYTES as usize,
                    "slot {slot} crosses blocks"
                );
            }
            assert!(end <= geometry.bytes());
        }
    }
}
