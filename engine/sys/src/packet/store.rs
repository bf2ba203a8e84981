//! Memory with frames in it: where each lies, and the offload header in front of it.

use std::ptr;

use super::offload::{HEADER_BYTES, Header};
use crate::mapping::Mapping;

/// Where bytes lie in a store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub(super) start: usize,
    pub(super) len: usize,
}

impl Extent {
    /// What is left behind so many bytes.
    pub(super) fn behind(self, bytes: usize) -> Extent {
        let bytes = bytes.min(self.len);
        Extent { start: self.start + bytes, len: self.len - bytes }
    }

    /// So many bytes right in front.
    pub(super) fn front(self, bytes: usize) -> Extent {
        Extent { start: self.start - bytes, len: bytes }
    }

    /// The same to its end, from so many bytes later on, or earlier where negative.
    pub(super) fn begun(self, later: i16) -> Extent {
        let start = self.start.saturating_add_signed(later.into());
        Extent { start, len: (self.start + self.len).saturating_sub(start) }
    }

    /// How many bytes they are.
    pub(super) fn len(self) -> usize {
        self.len
    }
}

/// Mapped memory that is cut into slots by its owner, who knows which of them are ours.
#[derive(Debug)]
pub(super) struct Store {
    memory: Mapping,
}

impl Store {
    pub(super) fn new(memory: Mapping) -> Store {
        Store { memory }
    }

    /// Where bytes of a slot that is ours lie.
    pub(super) fn pointer(&self, extent: Extent) -> *mut [u8] {
        debug_assert!(extent.start + extent.len <= self.memory.len(), "an extent leaves the memory");
        // SAFETY: the owners of a store make extents within its slots only.
        let first = unsafe { self.memory.base().as_ptr().add(extent.start) };
        ptr::slice_from_raw_parts_mut(first, extent.len)
    }

    /// Bytes of a slot that is ours.
    pub(super) fn bytes(&mut self, extent: Extent) -> &[u8] {
        // SAFETY: the slot is ours, so the kernel does not write to it, and `&mut self` excludes every other reference.
        unsafe { &*self.pointer(extent) }
    }

    /// Puts an offload header in front of a frame of a slot that is ours; returns where both are.
    pub(super) fn put_header(&mut self, frame: Extent, header: impl FnOnce(&[u8]) -> Header) -> Extent {
        let header = header(self.bytes(frame));
        // Every slot has room for it in front of its frame.
        let both = Extent { start: frame.start - HEADER_BYTES, len: frame.len + HEADER_BYTES };
        let place: *mut Header = self.pointer(both).cast();
        // SAFETY: `place` has room for a header within the slot, in front of the frame; it is an array of bytes, aligned anywhere.
        unsafe { place.write(header) };
        both
    }

    /// A value of plain integers that the kernel wrote at `start`, in a slot that is ours.
    pub(super) fn read<T: Copy>(&self, start: usize) -> T {
        debug_assert!(start + size_of::<T>() <= self.memory.len(), "a read leaves the memory");
        // SAFETY: every caller stays within one slot of the mapping.
        let place: *const T = unsafe { self.memory.base().as_ptr().add(start) }.cast();
        // SAFETY: the slot is ours, so nobody writes to it; the callers ask for types of which every bit pattern is a value.
        unsafe { place.read_unaligned() }
    }
}
