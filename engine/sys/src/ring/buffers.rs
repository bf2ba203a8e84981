//! Receive buffers lent to the kernel through a provided-buffer ring (io_uring_register_buf_ring(3)).
//!
//! Only a small, warm part of the buffers lies in the ring at a time; the rest waits in a stack, so that memory is
//! touched only as far as buffers are really held. A buffer is either *lent* (the kernel may write to it) or *held*
//! (ours, until recycled).

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

use crate::mapping::Mapping;

/// How the buffers of a group are made and lent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Buffers, 1 to 65,535.
    pub(super) count: u16,
    /// Bytes of each.
    pub(super) buffer_bytes: u32,
    /// Bytes at its start that the kernel leaves alone.
    pub(super) front_bytes: u32,
    /// Buffers lent at a time: enough for one breath of completions, few enough to stay warm in the cache.
    pub(super) lent_max: u16,
}

/// A group of equal buffers, numbered from 0.
pub struct Buffers {
    memory: Mapping,
    entries: Mapping,
    entries_len: u16,
    tail: u16,
    lent: u16,
    buffer_bytes: u32,
    front_bytes: u32,
    count: u16,
    spare: Vec<u16>,
    held: Vec<bool>,
}

impl Buffers {
    /// Reserves the buffers; none is lent yet.
    pub(super) fn new(shape: Shape) -> io::Result<Buffers> {
        let Shape { count, buffer_bytes, front_bytes, lent_max } = shape;
        let entries_len = count.min(lent_max).next_power_of_two();
        let memory = Mapping::new(usize::from(count) * buffer_bytes as usize)?;
        let entries = Mapping::new(usize::from(entries_len) * size_of::<BufRingEntry>())?;
        Ok(Buffers {
            memory,
            entries,
            entries_len,
            tail: 0,
            lent: 0,
            buffer_bytes,
            front_bytes,
            count,
            spare: (0..count).rev().collect(),
            held: vec![false; usize::from(count)],
        })
    }

    /// Address and length of the ring, for its registration.
    pub(super) fn registration(&self) -> (u64, u16) {
        (self.entries.base().as_ptr() as u64, self.entries_len)
    }

    /// Bytes of one buffer.
    pub fn buffer_bytes(&self) -> u32 {
        self.buffer_bytes
    }

    /// Bytes at the start of a buffer that receives leave alone.
    pub fn front_bytes(&self) -> u32 {
        self.front_bytes
    }

    /// Number of buffers.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Buffers that are not held.
    pub fn free(&self) -> usize {
        self.spare.len() + usize::from(self.lent)
    }

    /// Notes that the kernel has handed buffer `id` to us.
    pub(super) fn hold(&mut self, id: u16) {
        debug_assert!(!self.held[usize::from(id)], "buffer {id} handed out twice");
        self.held[usize::from(id)] = true;
        self.lent -= 1;
    }

    /// Takes a spare buffer to be filled by us; `None` when all are held or lent.
    pub fn lease(&mut self) -> Option<u16> {
        let id = self.spare.pop()?;
        self.held[usize::from(id)] = true;
        Some(id)
    }

    /// Copies bytes into a held buffer from `start` on.
    ///
    /// # Panics
    /// If the buffer is not held or the range leaves it.
    pub fn write(&mut self, id: u16, start: u32, bytes: &[u8]) {
        let length = u32::try_from(bytes.len()).expect("a range of 4 GiB leaves every buffer");
        self.bytes_mut(id, start, length).copy_from_slice(bytes);
    }

    /// The first `len` bytes of a held buffer from `start` on, to be changed.
    ///
    /// # Panics
    /// If the buffer is not held or the range leaves it.
    pub fn bytes_mut(&mut self, id: u16, start: u32, len: u32) -> &mut [u8] {
        let at = self.offset(id, start, len);
        // SAFETY: `at` lies in the mapping (checked by `offset`).
        let first = unsafe { self.memory.base().as_ptr().add(at) };
        // SAFETY: the range lies in the mapping; a held buffer is not written by the kernel, and `&mut self` excludes every
        // other borrow of it. A send of it that is still under way would send the new bytes.
        unsafe { std::slice::from_raw_parts_mut(first, len as usize) }
    }

    /// Gives a held buffer back.
    ///
    /// # Panics
    /// If the buffer is not held: giving it back twice would let two connections share it.
    pub fn recycle(&mut self, id: u16) {
        let held = &mut self.held[usize::from(id)];
        assert!(*held, "buffer {id} given back twice");
        *held = false;
        self.spare.push(id);
    }

    /// Lends spare buffers until the ring is full; call before waiting.
    pub(super) fn replenish(&mut self) {
        if self.lent == self.entries_len || self.spare.is_empty() {
            return;
        }
        while self.lent < self.entries_len {
            let Some(id) = self.spare.pop() else { break };
            self.lend(id);
        }
        self.publish_tail();
    }

    /// The first `len` bytes of a held buffer from `start` on.
    ///
    /// # Panics
    /// If the buffer is not held or the range leaves it.
    pub fn bytes(&self, id: u16, start: u32, len: u32) -> &[u8] {
        let at = self.offset(id, start, len);
        // SAFETY: `at` lies in the mapping (checked by `offset`).
        let first = unsafe { self.memory.base().as_ptr().add(at) };
        // SAFETY: the range lies in the mapping; a held buffer is not written by the kernel, and recycling it needs
        // `&mut self`, which this borrow forbids.
        unsafe { std::slice::from_raw_parts(first, len as usize) }
    }

    /// Address of a range of a held buffer, for an operation of the kernel.
    ///
    /// # Panics
    /// If the buffer is not held or the range leaves it.
    pub(super) fn address(&self, id: u16, start: u32, len: u32) -> *const u8 {
        let at = self.offset(id, start, len);
        // SAFETY: `at` lies in the mapping (checked by `offset`).
        unsafe { self.memory.base().as_ptr().add(at) }
    }

    fn offset(&self, id: u16, start: u32, len: u32) -> usize {
        assert!(self.held[usize::from(id)], "buffer {id} is not held");
        assert!(start.checked_add(len).is_some_and(|end| end <= self.buffer_bytes), "range leaves buffer {id}");
        let at = usize::from(id) * self.buffer_bytes as usize + start as usize;
        debug_assert!(at + len as usize <= self.memory.len(), "buffer {id} leaves the mapping");
        at
    }

    fn lend(&mut self, id: u16) {
        let slot = usize::from(self.tail & (self.entries_len - 1));
        let start = usize::from(id) * self.buffer_bytes as usize + self.front_bytes as usize;
        // SAFETY: `id` < count and the front is a part of the buffer, so the address lies in the mapping.
        let address = unsafe { self.memory.base().as_ptr().add(start) };
        let first = self.entries.base().cast::<BufRingEntry>().as_ptr();
        // SAFETY: `slot` < entries_len, so the entry lies in the ring's mapping.
        let entry = unsafe { first.add(slot) };
        // SAFETY: the entry is in memory we own; the kernel reads it only after the tail has moved past it.
        let entry = unsafe { &mut *entry };
        entry.set_addr(address as u64);
        entry.set_len(self.buffer_bytes - self.front_bytes);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        self.lent += 1;
    }

    fn publish_tail(&self) {
        let first = self.entries.base().cast::<BufRingEntry>().as_ptr();
        // SAFETY: `first` is the first entry of a registered, initialised buffer ring.
        let tail = unsafe { BufRingEntry::tail(first) };
        // SAFETY: the tail is a u16 in shared memory, aligned, written only here and read by the kernel.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}
