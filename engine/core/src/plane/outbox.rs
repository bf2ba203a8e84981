//! Frames that the packet plane makes itself or has held back: answers, resets, errors, fragments, what waited for a next hop.

use super::PortId;
use crate::WorkerId;

/// A bounded arena of frames to send. Their checksums are complete and none is a super-packet, so they need no facts beside their bytes.
#[derive(Debug)]
pub struct Outbox {
    bytes: Box<[u8]>,
    frames: Vec<Made>,
    used: usize,
    overflowed: u64,
    /// What is added goes nowhere, and is no loss.
    is_mute: bool,
}

#[derive(Clone, Copy, Debug)]
struct Made {
    port: PortId,
    /// Who is to get it instead.
    to: Option<WorkerId>,
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
            is_mute: false,
        }
    }

    /// Adds a copy of `frame`, to leave through `port`. Whether there was room; if not, it is counted.
    pub fn push(&mut self, port: PortId, frame: &[u8]) -> bool {
        self.push_parts(port, frame, &[])
    }

    /// The same for a frame in two parts.
    pub fn push_parts(&mut self, port: PortId, front: &[u8], back: &[u8]) -> bool {
        self.add(port, None, front, back)
    }

    /// Adds a frame in two parts that came in by `port`, for another worker's [`Plane::process_handed`](super::Plane::process_handed). Whether there was
    /// room; if not, it is counted.
    pub fn push_handed(&mut self, to: WorkerId, port: PortId, front: &[u8], back: &[u8]) -> bool {
        self.add(port, Some(to), front, back)
    }

    /// Takes nothing from here on, or takes it again.
    pub(super) fn mute(&mut self, is_mute: bool) {
        self.is_mute = is_mute;
    }

    fn add(&mut self, port: PortId, to: Option<WorkerId>, front: &[u8], back: &[u8]) -> bool {
        if self.is_mute {
            return true;
        }
        let (at, len) = (self.used, front.len() + back.len());
        let room = self.bytes.get_mut(at..).and_then(|rest| rest.get_mut(..len));
        let Some(room) = room.filter(|_| self.frames.len() < self.frames.capacity()) else {
            self.overflowed += 1;
            return false;
        };
        let (front_room, back_room) = room.split_at_mut(front.len());
        front_room.copy_from_slice(front);
        back_room.copy_from_slice(back);
        self.frames.push(Made { port, to, at, len });
        self.used = at + len;
        true
    }

    /// Whether so many frames of so many octets together fit; into an empty one they do, as there will never be more room.
    pub fn has_room(&self, frames: usize, bytes: usize) -> bool {
        self.takes(frames, bytes) || self.is_empty()
    }

    /// Whether so many frames of so many octets together fit.
    pub fn takes(&self, frames: usize, bytes: usize) -> bool {
        self.frames.len() + frames <= self.frames.capacity() && self.used + bytes <= self.bytes.len()
    }

    /// The frames to send and where they leave, in the order in which they were made.
    pub fn iter(&self) -> impl Iterator<Item = (PortId, &[u8])> + '_ {
        let sent = self.frames.iter().filter(|made| made.to.is_none());
        sent.map(|made| (made.port, &self.bytes[made.at..made.at + made.len]))
    }

    /// The frames for other workers: who gets them and where they came in, in the order in which they were made.
    pub fn handed(&self) -> impl Iterator<Item = (WorkerId, PortId, &[u8])> + '_ {
        self.frames.iter().filter_map(|made| Some((made.to?, made.port, &self.bytes[made.at..made.at + made.len])))
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
