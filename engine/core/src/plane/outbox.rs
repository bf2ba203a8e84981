//! Frames that the packet plane makes itself or has held back: answers, resets, errors, what waited for a next hop.

use super::PortId;

/// A bounded arena of frames to send. Their checksums are complete and none is a super-packet, so they need no facts beside their bytes.
#[derive(Debug)]
pub struct Outbox {
    bytes: Box<[u8]>,
    frames: Vec<Made>,
    used: usize,
    overflowed: u64,
}

#[derive(Clone, Copy, Debug)]
struct Made {
    port: PortId,
    at: usize,
    len: usize,
}

impl Outbox {
    /// Room for `frames_max` frames of `bytes_max` octets together, allocated now.
    pub fn new(frames_max: usize, bytes_max: usize) -> Outbox {
        Outbox {
            bytes: vec![0; bytes_max].into_boxed_slice(),
            frames: Vec::with_capacity(frames_max),
            used: 0,
            overflowed: 0,
        }
    }

    /// Adds a copy of `frame`, to leave through `port`. Whether there was room; if not, it is counted.
    pub fn push(&mut self, port: PortId, frame: &[u8]) -> bool {
        let at = self.used;
        let room = self.bytes.get_mut(at..).and_then(|rest| rest.get_mut(..frame.len()));
        let Some(room) = room.filter(|_| self.frames.len() < self.frames.capacity()) else {
            self.overflowed += 1;
            return false;
        };
        room.copy_from_slice(frame);
        self.frames.push(Made { port, at, len: frame.len() });
        self.used = at + frame.len();
        true
    }

    /// Whether so many frames of so many octets together fit; into an empty one they do, as there will never be more room.
    pub fn has_room(&self, frames: usize, bytes: usize) -> bool {
        let fits = self.frames.len() + frames <= self.frames.capacity() && self.used + bytes <= self.bytes.len();
        fits || self.is_empty()
    }

    /// The frames and where they leave, in the order in which they were made.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (PortId, &[u8])> + '_ {
        self.frames.iter().map(|made| (made.port, &self.bytes[made.at..made.at + made.len]))
    }

    /// Forgets all frames; what did not fit stays counted.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.used = 0;
    }

    /// Frames in it.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Frames that found no room since it was made.
    pub fn overflowed(&self) -> u64 {
        self.overflowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_counted_and_the_rest_stays_in_order() {
        let mut out = Outbox::new(2, 10);
        assert!(out.push(PortId(0), &[1; 6]));
        assert!(!out.push(PortId(1), &[2; 5]), "five octets where four are left");
        assert!(out.push(PortId(1), &[3; 4]));
        assert!(!out.push(PortId(1), &[]), "a third frame");
        let made: Vec<(PortId, &[u8])> = out.iter().collect();
        assert_eq!(made, [(PortId(0), &[1; 6][..]), (PortId(1), &[3; 4][..])]);
        out.clear();
        assert_eq!((out.len(), out.overflowed()), (0, 2));
        assert!(out.has_room(2, 10) && out.has_room(9, 90), "empty");
        assert!(out.push(PortId(0), &[4; 9]));
        assert!(out.has_room(1, 1) && !out.has_room(2, 1) && !out.has_room(1, 2));
    }
}
