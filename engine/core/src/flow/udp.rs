//! UDP as a NAT follows it: a flow that nobody has answered is forgotten sooner than one that goes both ways (RFC 4787 §4.3).
//!
//! Datagrams of either side keep a flow that was answered: a server that only sends, as one of media does, must not lose its client (RFC 4787
//! REQ-6 demands it for one side and allows it for the other). Before the first answer they do not: anyone can send them. A client that only
//! sends, as one of syslog does, gets a new flow after each [`UdpTimeouts::opening_ms`].

use super::Direction;
use super::tcp::Sight;

/// Which timer a flow runs on; its length is in [`UdpTimeouts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UdpTimeout {
    /// There has been an answer.
    Established,
    /// There has been none.
    Opening,
}

/// How long a flow is remembered without a datagram, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UdpTimeouts {
    /// Without an answer so far, from the first datagram on. Default 30 s, as `net/netfilter/nf_conntrack_proto_udp.c`. RFC 4787 REQ-5 asks for
    /// 2 min, but of a NAT, whose clients are its own; here anyone may send, and each source takes a slot for as long.
    pub opening_ms: u64,
    /// After the first answer. Default 5 min, as RFC 4787 REQ-5 c recommends.
    pub established_ms: u64,
}

impl Default for UdpTimeouts {
    fn default() -> UdpTimeouts {
        UdpTimeouts { opening_ms: 30_000, established_ms: 5 * 60_000 }
    }
}

impl UdpTimeout {
    /// Every timer, in the order of [`UdpTimeout::index`].
    pub const ALL: [UdpTimeout; 2] = [UdpTimeout::Established, UdpTimeout::Opening];

    /// Its place in [`UdpTimeout::ALL`] and [`UdpTimeouts::all_ms`].
    #[inline]
    pub fn index(self) -> usize {
        self as usize
    }
}

impl UdpTimeouts {
    /// The lengths of all timers, in milliseconds, in the order of [`UdpTimeout::ALL`].
    pub fn all_ms(&self) -> [u64; 2] {
        UdpTimeout::ALL.map(|timeout| self.ms(timeout))
    }

    /// The length of `timeout`, in milliseconds.
    #[inline]
    pub fn ms(&self, timeout: UdpTimeout) -> u64 {
        match timeout {
            UdpTimeout::Established => self.established_ms,
            UdpTimeout::Opening => self.opening_ms,
        }
    }
}

/// What a datagram did to its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct UdpOutcome {
    /// The timer that starts anew; `None` leaves the one that runs alone.
    pub timeout: Option<UdpTimeout>,
    /// Whether this datagram is the first answer: the flow leaves the table of half-open ones.
    pub is_first_answer: bool,
}

/// The state of one UDP flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UdpTrack {
    is_answered: bool,
    /// The answers do not pass by here: the client's second datagram has to do.
    is_one_way: bool,
}

// The bits of [`UdpTrack::to_word`].
const ANSWERED: u32 = 1;
const ONE_WAY: u32 = 2;

impl UdpTrack {
    /// The track of a flow whose first datagram has just come. Its timer is [`UdpTimeout::Opening`].
    pub fn open(sight: Sight) -> UdpTrack {
        UdpTrack { is_answered: false, is_one_way: sight == Sight::OpenerOnly }
    }

    /// Follows one datagram that goes `from` one side to the other.
    #[inline]
    pub fn advance(&mut self, from: Direction) -> UdpOutcome {
        let is_first_answer = !self.is_answered && (from == Direction::Reverse || self.is_one_way);
        self.is_answered |= is_first_answer;
        UdpOutcome { timeout: self.is_answered.then_some(UdpTimeout::Established), is_first_answer }
    }

    /// The timer that the flow runs on.
    pub fn timeout(&self) -> UdpTimeout {
        if self.is_answered { UdpTimeout::Established } else { UdpTimeout::Opening }
    }

    /// Whether nobody has answered: such a flow belongs in the small table of half-open ones, since anyone can send a datagram.
    pub fn is_half_open(&self) -> bool {
        !self.is_answered
    }

    /// The track as one word, for memory that outlives the process and for a peer.
    pub fn to_word(self) -> u32 {
        (u32::from(self.is_answered) * ANSWERED) | (u32::from(self.is_one_way) * ONE_WAY)
    }

    /// The track out of [`UdpTrack::to_word`]. Any word makes a track.
    pub fn from_word(word: u32) -> UdpTrack {
        UdpTrack { is_answered: word & ANSWERED != 0, is_one_way: word & ONE_WAY != 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_established_by_its_first_answer_and_stays_so() {
        use Direction::{Forward, Reverse};
        let established = Some(UdpTimeout::Established);
        let script = [
            (Forward, None, false),
            (Forward, None, false),
            (Reverse, established, true),
            (Forward, established, false),
            (Reverse, established, false),
        ];
        let mut track = UdpTrack::open(Sight::BothWays);
        assert!(track.is_half_open());
        for (step, (from, timeout, is_first_answer)) in script.into_iter().enumerate() {
            let outcome = track.advance(from);
            assert_eq!(outcome, UdpOutcome { timeout, is_first_answer }, "step {step}");
            assert_eq!(UdpTrack::from_word(track.to_word()), track, "step {step}");
        }
        assert!(!track.is_half_open());
    }

    #[test]
    fn a_second_datagram_has_to_do_where_answers_do_not_pass() {
        let mut track = UdpTrack::open(Sight::OpenerOnly);
        for is_first_answer in [true, false] {
            let outcome = track.advance(Direction::Forward);
            assert_eq!((outcome.timeout, outcome.is_first_answer), (Some(UdpTimeout::Established), is_first_answer));
            assert_eq!(UdpTrack::from_word(track.to_word()), track);
        }
    }

    #[test]
    fn the_default_timeouts_are_the_documented_ones() {
        let timeouts = UdpTimeouts::default();
        assert_eq!(timeouts.ms(UdpTimeout::Opening), 30_000);
        assert_eq!(timeouts.ms(UdpTimeout::Established), 300_000);
        for timeout in UdpTimeout::ALL {
            assert_eq!(timeouts.all_ms()[timeout.index()], timeouts.ms(timeout), "{timeout:?}");
        }
    }
}
