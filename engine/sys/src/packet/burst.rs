//! Small frames that leave many at a time, by a program of the kernel.
//!
//! What the program does is not known here but for where it looks for frames. It is held by a descriptor, so it ends with the process, however that ends.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::slice;

use super::offload::PartialChecksum;
use crate::fast_path::bpf::{self, Kind};
use crate::fast_path::trial;
use crate::mapping::Mapping;

/// How frames lie in the memory that the program sends from: in places of `place` octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BurstLayout {
    /// How many frames it sends in one run.
    pub frames_max: usize,
    /// Octets of the shortest frame that it sends; a place that says less ends the run.
    pub frame_min: usize,
    /// Octets of a place, a multiple of 8.
    pub place: usize,
    /// Where the length of the frame stands in its place: 32 bits in the order of the machine.
    pub length: usize,
    /// Where the number of the interface stands, and afterwards what became of the frame.
    pub interface: usize,
    /// Where the frame stands; it may fill the rest.
    pub frame: usize,
}

impl From<[usize; 6]> for BurstLayout {
    /// In the order of the fields.
    fn from([frames_max, frame_min, place, length, interface, frame]: [usize; 6]) -> BurstLayout {
        BurstLayout { frames_max, frame_min, place, length, interface, frame }
    }
}

/// Frames that are sent by one call. All of them are of one EtherType.
#[derive(Debug)]
pub struct Burst {
    layout: BurstLayout,
    memory: Mapping,
    program: OwnedFd,
    /// Frames that are there.
    count: usize,
    /// Of the first of them.
    first_len: usize,
}

/// What became of a frame: as `dev_queue_xmit` returns it, below 0 an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent(pub(super) i32);

impl Burst {
    /// Makes the memory and has the kernel take the program, which `write` makes for the descriptor of a map with the memory in its only element.
    ///
    /// # Errors
    /// Those of bpf(2): without CAP_BPF and CAP_NET_ADMIN, and from kernels before Linux 5.5.
    pub fn open(layout: BurstLayout, write: impl FnOnce(RawFd) -> Vec<u64>) -> io::Result<Burst> {
        let octets = layout.frames_max * layout.place;
        let map = bpf::create_array("towpath_burst", u32::try_from(octets).map_err(io::Error::other)?, 1)?;
        let memory = Mapping::shared(&map, octets)?;
        let program = bpf::load("towpath_burst", Kind::Ingress, &write(map.as_raw_fd()))?;
        Ok(Burst { layout, memory, program, count: 0, first_len: 0 })
    }

    /// Whether one more frame of so many octets can be put in.
    pub(super) fn fits(&self, len: usize) -> bool {
        self.count < self.layout.frames_max
            && (self.layout.frame_min..=self.layout.place - self.layout.frame).contains(&len)
    }

    /// Frames that are there.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Takes out all frames but the first so many.
    pub(super) fn truncate(&mut self, count: usize) {
        self.count = self.count.min(count);
    }

    /// Puts in a frame, in two pieces, to leave by that interface, and finishes its checksum.
    ///
    /// # Panics
    /// If it does not [fit](Burst::fits).
    pub(super) fn put(&mut self, ifindex: u32, pieces: [&[u8]; 2], checksum: Option<PartialChecksum>) {
        let len = pieces[0].len() + pieces[1].len();
        assert!(self.fits(len), "a frame of {len} octets in place {}", self.count);
        let layout = self.layout;
        if self.count == 0 {
            self.first_len = len;
        }
        self.count += 1;
        let place = self.place(self.count - 1);
        put_word(place, layout.length, len as u32);
        put_word(place, layout.interface, ifindex);
        let frame = &mut place[layout.frame..layout.frame + len];
        let (first, rest) = frame.split_at_mut(pieces[0].len());
        first.copy_from_slice(pieces[0]);
        rest.copy_from_slice(pieces[1]);
        if let Some(checksum) = checksum {
            checksum.finish(frame);
        }
    }

    /// Sends what is there. What became of each frame is [told](Burst::sent) until the next one is put in.
    ///
    /// # Errors
    /// Those of bpf(2); nothing was sent.
    pub(super) fn send(&mut self) -> io::Result<()> {
        let BurstLayout { place, length, frame, frames_max, .. } = self.layout;
        let count = std::mem::take(&mut self.count);
        if count < frames_max {
            put_word(self.place(count), length, 0);
        }
        let first = frame..frame + self.first_len;
        debug_assert!(count > 0 && first.end <= place, "a burst of nothing");
        trial::run_for_effect(self.program.as_fd(), &self.memory()[first])
    }

    /// What became of the frame that was put in there.
    pub(super) fn sent(&self, number: usize) -> Sent {
        let start = number * self.layout.place + self.layout.interface;
        let word = self.memory()[start..].first_chunk().copied().unwrap_or_default();
        Sent(i32::from_ne_bytes(word))
    }

    fn memory(&self) -> &[u8] {
        // SAFETY: the mapping is so long and lives as long as `self`; the program alone writes to it besides, and only while `send` runs it.
        unsafe { slice::from_raw_parts(self.memory.base().as_ptr(), self.memory.len()) }
    }

    fn place(&mut self, number: usize) -> &mut [u8] {
        // SAFETY: as in `memory`, and `&mut self` excludes every other reference.
        let memory = unsafe { slice::from_raw_parts_mut(self.memory.base().as_ptr(), self.memory.len()) };
        &mut memory[number * self.layout.place..][..self.layout.place]
    }
}

fn put_word(place: &mut [u8], at: usize, word: u32) {
    place[at..at + size_of::<u32>()].copy_from_slice(&word.to_ne_bytes());
}
