//! What other workers hand to one worker: frames whose flow lives there, and flows that move there. Bounded, in the order in which each of them put
//! it in.
//!
//! A frame is copied, once, into a buffer that belongs to the inbox and goes back to it: small ones for packets, large ones for super-packets. All
//! memory is there from the start, though the kernel only gives it as far as it is used.

use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam_queue::ArrayQueue;
use towpath_core::WorkerId;
use towpath_core::plane::Cargo;
use towpath_sys::packet::{FRONT_BYTES, Offload, RingSettings, Tag};

/// Frames of up to [`SMALL_BYTES`] that wait at a time.
const SMALL_FRAMES: usize = 1024;
/// A frame of the usual MTU, with its headers and the room in front of it.
const SMALL_BYTES: usize = 2048;
/// Larger frames that wait at a time.
const LARGE_FRAMES: usize = 128;
const LARGE_BYTES: usize = FRONT_BYTES + RingSettings::FRAME_BYTES_MAX as usize;
/// Flows that wait at a time, however many frames there are.
const CARGO_MAX: usize = 2048;

/// One worker's inbox. Every worker puts in, it takes out.
#[derive(Debug)]
pub struct Inbox {
    letters: ArrayQueue<Letter>,
    small: ArrayQueue<Box<[u8]>>,
    large: ArrayQueue<Box<[u8]>>,
    sleeps: AtomicBool,
}

/// Something that another worker has put in.
#[derive(Debug)]
pub struct Letter {
    /// Who.
    pub by: WorkerId,
    /// What.
    pub parcel: Parcel,
}

/// What is handed from worker to worker.
#[derive(Debug)]
pub enum Parcel {
    /// Part of a move of virtual shards.
    Cargo(Cargo),
    /// A frame as it was received.
    Frame(HandedFrame),
}

/// A copy of a frame, to be given back with [`Inbox::give_back`].
#[derive(Debug)]
pub struct HandedFrame {
    buffer: Box<[u8]>,
    /// Where it lies in the buffer.
    start: usize,
    end: usize,
    /// The link it came in by.
    pub link: u8,
    /// What is still to be done for it.
    pub offload: Offload,
    /// Its VLAN tag.
    pub tag: Option<Tag>,
}

impl HandedFrame {
    /// From the Ethernet header on.
    pub fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// The room in front of it and the frame, to change both.
    pub fn parts_mut(&mut self) -> (&mut [u8], &mut [u8]) {
        self.buffer.get_mut(..self.end).and_then(|buffer| buffer.split_at_mut_checked(self.start)).unwrap_or_default()
    }

    /// Its packet has become one of the other IP version, and it begins so many bytes later, or earlier where negative.
    pub fn cross(&mut self, begins: i16) {
        self.start = self.start.saturating_add_signed(begins.into());
        self.offload = self.offload.crossed(begins);
    }
}

impl Inbox {
    /// Bytes of one inbox when it is full.
    pub const BYTES: u64 = (SMALL_FRAMES * SMALL_BYTES
        + LARGE_FRAMES * LARGE_BYTES
        + (SMALL_FRAMES + LARGE_FRAMES + CARGO_MAX) * size_of::<Letter>()) as u64;

    /// An empty one.
    pub fn new() -> Inbox {
        Inbox {
            letters: ArrayQueue::new(SMALL_FRAMES + LARGE_FRAMES + CARGO_MAX),
            small: buffers(SMALL_FRAMES, SMALL_BYTES),
            large: buffers(LARGE_FRAMES, LARGE_BYTES),
            sleeps: AtomicBool::new(false),
        }
    }

    /// Puts a copy of a frame in; whether there was room.
    pub fn put_frame(&self, by: WorkerId, link: u8, bytes: &[u8], offload: Offload, tag: Option<Tag>) -> bool {
        let (start, end) = (FRONT_BYTES, FRONT_BYTES + bytes.len());
        let free = if end <= SMALL_BYTES { &self.small } else { &self.large };
        let Some(mut buffer) = free.pop() else { return false };
        let Some(room) = buffer.get_mut(start..end) else {
            self.free(buffer);
            return false;
        };
        room.copy_from_slice(bytes);
        let frame = HandedFrame { buffer, start, end, link, offload, tag };
        match self.letters.push(Letter { by, parcel: Parcel::Frame(frame) }) {
            Ok(()) => true,
            Err(Letter { parcel: Parcel::Frame(frame), .. }) => {
                self.free(frame.buffer);
                false
            }
            Err(_) => false,
        }
    }

    /// Puts part of a move in; whether there was room.
    pub fn put_cargo(&self, by: WorkerId, cargo: Cargo) -> bool {
        self.letters.push(Letter { by, parcel: Parcel::Cargo(cargo) }).is_ok()
    }

    /// The first that is there. Only the inbox's own worker may call this.
    pub fn take(&self) -> Option<Letter> {
        self.letters.pop()
    }

    /// Whether nothing is there.
    pub fn is_empty(&self) -> bool {
        self.letters.is_empty()
    }

    /// Makes room for another frame.
    pub fn give_back(&self, frame: HandedFrame) {
        self.free(frame.buffer);
    }

    fn free(&self, buffer: Box<[u8]>) {
        let free = if buffer.len() == SMALL_BYTES { &self.small } else { &self.large };
        let kept = free.push(buffer);
        debug_assert!(kept.is_ok(), "as many as were taken");
    }

    /// Its worker is about to sleep; whether it may: nothing is there.
    pub fn lie_down(&self) -> bool {
        self.sleeps.store(true, Ordering::SeqCst);
        // Either this sees what another puts in, or that one sees that somebody sleeps.
        fence(Ordering::SeqCst);
        let may = self.is_empty();
        if !may {
            self.get_up();
        }
        may
    }

    /// Its worker is awake.
    pub fn get_up(&self) {
        if self.sleeps.load(Ordering::Relaxed) {
            self.sleeps.store(false, Ordering::SeqCst);
        }
    }

    /// Whether its worker must be woken for what was put in; asked once all of it is in, and true once per sleep.
    pub fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        self.sleeps.load(Ordering::SeqCst) && self.sleeps.swap(false, Ordering::SeqCst)
    }
}

impl Default for Inbox {
    fn default() -> Inbox {
        Inbox::new()
    }
}

fn buffers(count: usize, bytes: usize) -> ArrayQueue<Box<[u8]>> {
    let queue = ArrayQueue::new(count);
    for _ in 0..count {
        let kept = queue.push(vec![0; bytes].into_boxed_slice());
        debug_assert!(kept.is_ok(), "the queue was made for as many");
    }
    queue
}

#[cfg(test)]
mod tests {
    use std::thread;

    use towpath_core::Generation;

    use super::*;

    #[test]
    fn a_full_inbox_refuses_and_takes_again_what_it_gets_back() {
        let inbox = Inbox::new();
        let put = |bytes: &[u8]| inbox.put_frame(WorkerId(3), 1, bytes, Offload::NONE, None);
        assert!(!put(&vec![0; LARGE_BYTES - FRONT_BYTES + 1]), "larger than any frame");
        let small = SMALL_BYTES - FRONT_BYTES;
        for (bytes, count) in [(small, SMALL_FRAMES), (small + 1, LARGE_FRAMES)] {
            assert_eq!((0..count + 5).filter(|_| put(&vec![7; bytes])).count(), count);
        }
        // Frames leave room for flows.
        assert_eq!(
            (0..CARGO_MAX + 5).filter(|_| inbox.put_cargo(WorkerId(3), Cargo::End(Generation(1)))).count(),
            CARGO_MAX
        );
        let mut sizes = Vec::new();
        while let Some(Letter { by, parcel }) = inbox.take() {
            assert_eq!(by, WorkerId(3));
            if let Parcel::Frame(frame) = parcel {
                assert!(frame.bytes().iter().all(|&byte| byte == 7));
                sizes.push(frame.bytes().len());
                inbox.give_back(frame);
            }
        }
        assert_eq!(sizes.len(), SMALL_FRAMES + LARGE_FRAMES);
        assert!(sizes.is_sorted(), "in the order in which they were put in");
        assert!(put(b"again"));
    }

    #[test]
    fn a_frame_may_grow_to_the_front() {
        let inbox = Inbox::new();
        assert!(inbox.put_frame(WorkerId(3), 1, &[7; 100], Offload::NONE, None));
        let Some(Letter { parcel: Parcel::Frame(mut frame), .. }) = inbox.take() else { panic!("a frame") };
        let (front, bytes) = frame.parts_mut();
        assert_eq!((front.len(), &*bytes), (FRONT_BYTES, &[7; 100][..]));
        front.fill(8);
        frame.cross(-(FRONT_BYTES as i16));
        assert_eq!(frame.bytes(), [[8; FRONT_BYTES].as_slice(), &[7; 100]].concat());
        inbox.give_back(frame);
    }

    #[test]
    fn who_lies_down_is_woken_for_what_comes() {
        let inbox = Inbox::new();
        assert!(!inbox.must_wake(), "it is awake");
        assert!(inbox.lie_down());
        assert!(inbox.put_cargo(WorkerId(1), Cargo::End(Generation(1))));
        assert!(inbox.must_wake());
        assert!(!inbox.must_wake(), "once is enough");
        assert!(!inbox.lie_down(), "something is there");
        assert!(!inbox.must_wake());
    }

    #[test]
    fn nothing_that_is_put_in_is_slept_through() {
        const LETTERS: usize = 20_000;
        let inbox = Inbox::new();
        let sleeper = thread::current();
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..LETTERS {
                    while !inbox.put_cargo(WorkerId(1), Cargo::End(Generation(1))) {
                        thread::yield_now();
                    }
                    if inbox.must_wake() {
                        sleeper.unpark();
                    }
                }
            });
            let mut taken = 0;
            while taken < LETTERS {
                inbox.get_up();
                while inbox.take().is_some() {
                    taken += 1;
                }
                // A wake that is missed ends the test by its time limit.
                if taken < LETTERS && inbox.lie_down() {
                    thread::park();
                }
            }
        });
    }
}
