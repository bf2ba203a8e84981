//! The numbers of a connection while somebody else follows it as well: the fast path, which sees the segments that the plane does not.
//!
//! A track that is lent refuses [`TcpTrack::advance_open`], so whoever meets one of its segments here asks for the newest numbers first.

use super::{
    BOTH_FINS_SEEN, CLOSED, FIN_SEEN, LENT, OLDER_MIN_BYTES, ONE_WAY, SYN_ACKED, SYN_WINDOW, TcpState, TcpTrack,
    is_after,
};
use crate::fast_path::{FastFin, FastNumbers};
use crate::flow::Direction;

impl TcpTrack {
    /// Lends the numbers of both sides, the forward one first. `None`: it is lent already, or more can come of its plain segments than newer numbers.
    pub fn lend(&mut self) -> Option<[FastNumbers; 2]> {
        if !self.is_open() {
            return None;
        }
        self.scale_windows();
        self.bits |= LENT;
        Some(Direction::BOTH.map(|side| self.numbers(side)))
    }

    /// The numbers of a connection whose SYN was answered, and acknowledged by that: what completes its handshake is a plain segment, which somebody else may
    /// follow as well, and nothing of the server's before that. The track knows nothing of that until it is [told](Self::complete). `None`: it is not at that point.
    pub fn opening_numbers(&self) -> Option<[FastNumbers; 2]> {
        const OTHER: u32 = BOTH_FINS_SEEN | ONE_WAY | LENT;
        let [opener, server] = Direction::BOTH.map(Direction::index);
        // And has said no more than that.
        let is_silent = self.end[server] == self.ack[opener].wrapping_add(1);
        let is_answered = self.state() == TcpState::SynAnswered && self.has(SYN_ACKED, Direction::Reverse) && is_silent;
        if self.bits & OTHER != 0 || !is_answered {
            return None;
        }
        let mut track = *self;
        track.scale_windows();
        let forward = track.numbers(Direction::Forward);
        // What the server says before its answer is acknowledged fits nothing: it ends too far before what it has sent, or begins behind this edge. (But for a segment
        // that begins so far before its answer, which tells nothing new.)
        let forward = FastNumbers { ack: forward.ack.wrapping_sub(OLDER_MIN_BYTES), window: 0, ..forward };
        Some([forward, track.numbers(Direction::Reverse)])
    }

    /// Takes what the other one has seen of a connection that was opening. Whether that completes the handshake, as the opener has acknowledged the answer;
    /// else nothing has changed: a guess at what the answer has said goes on as one of an older segment does, and its receiver judges.
    pub fn complete(&mut self, numbers: [&FastNumbers; 2]) -> bool {
        let opener = Direction::Forward;
        let is_acked = is_after(numbers[opener.index()].ack, self.ack[opener.index()]);
        if self.opening_numbers().is_none() || !is_acked {
            return false;
        }
        self.scale_windows();
        for side in Direction::BOTH {
            self.catch_up(side, numbers[side.index()]);
        }
        self.set(SYN_ACKED, opener);
        true
    }

    /// Whether the opener completes the handshake by acknowledging this.
    pub fn is_completed_by(&self, ack: u32) -> bool {
        self.opening_numbers().is_some() && self.acknowledges(Direction::Forward, ack)
    }

    /// Whether it is lent.
    #[inline]
    pub fn is_lent(&self) -> bool {
        self.bits & LENT != 0
    }

    /// The numbers of one side, of a track that is or was lent.
    pub fn numbers(&self, side: Direction) -> FastNumbers {
        let at = side.index();
        let scale = self.scale(side) as u8;
        FastNumbers { end: self.end[at], ack: self.ack[at], window: self.window[at], scale }
    }

    /// The numbers of one side; `None` unless [`advance_open`](TcpTrack::advance_open) would follow it.
    #[cfg(test)]
    pub(crate) fn open_numbers(&self, side: Direction) -> Option<FastNumbers> {
        let mut track = *self;
        track.scale_windows();
        self.is_open().then(|| track.numbers(side))
    }

    /// Takes what the other one has seen of a side. It is never behind what is known here, and may be any number of octets ahead, so the two are not compared: from 2 GiB on
    /// the newer number would look like the older one.
    pub fn catch_up(&mut self, side: Direction, numbers: &FastNumbers) {
        let at = side.index();
        (self.end[at], self.ack[at]) = (numbers.end, numbers.ack);
        self.window[at] = self.window[at].max(numbers.window);
    }

    /// Takes what the other one has seen of the ends of both sides, the forward one first, behind their numbers; and whether it has seen the connection end by that. Says whether
    /// the connection is over by it: then it is as after [`TcpEvent::Closed`](super::TcpEvent::Closed).
    pub fn catch_up_ends(&mut self, fins: [Option<FastFin>; 2], has_ended: bool) -> bool {
        let was_over = self.is_over();
        for is_second in [false, true] {
            for side in Direction::BOTH {
                let Some(fin) = fins[side.index()].filter(|fin| fin.is_second == is_second) else { continue };
                if side == Direction::Reverse && !self.has(FIN_SEEN, side) {
                    self.set_server_waits(!fin.answers);
                }
                self.see_fin(side);
            }
        }
        let is_acked = || Direction::BOTH.iter().all(|&side| self.is_fin_acked(side));
        if self.bits & BOTH_FINS_SEEN == BOTH_FINS_SEEN && (has_ended || is_acked()) {
            self.bits |= CLOSED;
        }
        self.is_over() && !was_over
    }

    /// Nobody else follows the connection any more.
    pub fn take_back(&mut self) {
        self.bits &= !LENT;
    }

    /// Windows out of SYNs, where answers are seen, are as later ones from here on.
    pub(crate) fn scale_windows(&mut self) {
        for side in Direction::BOTH {
            if self.bits & ONE_WAY == 0 && self.has(SYN_WINDOW, side) {
                self.scale_syn_window(side);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tcp::{ACK, FIN, SYN, SegmentFacts, Sight};

    fn segment(flags: u8, seq: u32, ack: u32, window: u16) -> SegmentFacts {
        SegmentFacts { flags, seq, ack, window, payload_len: 0, window_scale: Some(3) }
    }

    fn open() -> TcpTrack {
        let mut track = TcpTrack::open(&segment(SYN, 100, 0, 8_001), Sight::BothWays).unwrap();
        assert_eq!(track.lend(), None, "nothing has answered");
        let _ = track.advance(Direction::Reverse, &segment(SYN | ACK, 900, 101, 8_000));
        assert_eq!(track.lend(), None, "half open");
        let _ = track.advance(Direction::Forward, &segment(ACK, 101, 901, 500));
        track
    }

    #[test]
    fn an_open_connection_is_lent_once_with_its_windows_scaled() {
        let mut track = open();
        let numbers = |end, ack, window| FastNumbers { end, ack, window, scale: 3 };
        assert_eq!(track.lend(), Some([numbers(101, 901, 1_001), numbers(901, 101, 1_000)]));
        assert_eq!((track.lend(), track.is_lent()), (None, true));
        let plain = (101, 201, 901, 500);
        assert!(!track.advance_open(Direction::Forward, plain.0, plain.1, plain.2, plain.3));
        track.take_back();
        assert!(track.advance_open(Direction::Forward, plain.0, plain.1, plain.2, plain.3));
        assert!(track.lend().is_some());
    }

    #[test]
    fn an_opening_that_is_followed_elsewhere_is_complete_once_its_answer_is_acknowledged() {
        let mut track = TcpTrack::open(&segment(SYN, 100, 0, 8_001), Sight::BothWays).unwrap();
        assert_eq!(track.opening_numbers(), None, "nothing has answered");
        let _ = track.advance(Direction::Reverse, &segment(SYN | ACK, 900, 101, 8_000));
        let before = track;
        let numbers = |end, ack, window| FastNumbers { end, ack, window, scale: 3 };
        let [forward, reverse] = [numbers(101, 900_u32.wrapping_sub(66_000), 0), numbers(901, 101, 1_000)];
        assert_eq!(track.opening_numbers(), Some([forward, reverse]));
        // A guess at what the server has said.
        assert!(!track.complete([&numbers(301, 900, 700), &reverse]));
        assert_eq!(track, before, "nothing has changed");
        assert!(track.complete([&numbers(301, 1_001, 2_000), &numbers(1_401, 301, 1_000)]));
        assert_eq!((track.state(), track.opening_numbers()), (TcpState::Established, None));
        assert_eq!(track.lend(), Some([numbers(301, 1_001, 2_000), numbers(1_401, 301, 1_000)]));
        assert_eq!(open().opening_numbers(), None, "it is open");
        let refused = segment(ACK | crate::flow::tcp::RST, 0, 101, 0);
        let mut track = TcpTrack::open(&segment(SYN, 100, 0, 8_001), Sight::BothWays).unwrap();
        let _ = track.advance(Direction::Reverse, &refused);
        assert_eq!(track.opening_numbers(), None, "it is over");
    }

    #[test]
    fn numbers_are_taken_however_far_ahead_they_are() {
        let mut track = open();
        track.lend().unwrap();
        // Behind the 3 GiB that were sent meanwhile.
        track.catch_up(Direction::Forward, &FastNumbers { end: 101 + (3 << 30), ack: 901, window: 2_000, scale: 3 });
        let newer = FastNumbers { end: 5_101, ack: 901, window: 2_000, scale: 3 };
        track.catch_up(Direction::Forward, &FastNumbers { window: 7, ..newer });
        track.take_back();
        assert_eq!(track.numbers(Direction::Forward), newer);
        let (to_client, to_server) = (track.reset_towards(Direction::Forward), track.reset_towards(Direction::Reverse));
        assert_eq!((to_client.ack, to_server.seq, to_server.seq_sent), (5_101, 101, 5_101));
    }

    #[test]
    fn a_connection_that_closes_is_not_lent() {
        let mut track = open();
        let _ = track.advance(Direction::Forward, &segment(FIN | ACK, 101, 901, 500));
        assert_eq!(track.lend(), None);
        assert_eq!(TcpTrack::open(&segment(SYN, 1, 0, 1), Sight::OpenerOnly).unwrap().lend(), None);
    }
}
