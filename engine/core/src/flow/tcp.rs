//! TCP as a NAT follows it: from the segments that pass, which phase a connection is in, and so how long to remember it.
//!
//! [`TcpTrack`] is 24 bytes of plain numbers per flow. [`TcpTrack::advance`] takes one segment and says which timer the flow now
//! runs on and what has happened. Phases and timers are those of RFC 5382 §5, RFC 6146 §3.5.2.2 and RFC 7857 §2. Sequence numbers are
//! checked against what both sides have sent, acknowledged and offered (van Rooij, "Real Stateful TCP Packet Filtering in IP
//! Filter", as `net/netfilter/nf_conntrack_proto_tcp.c` does), so that old duplicates and guessed segments neither end a flow nor keep
//! one alive. A segment that fails the check changes nothing here; unless its flags are impossible it is forwarded all the same,
//! since the end point judges better (RFC 7857 §2.2 wants every RST translated).

use super::Direction;

mod lent;

/// Flag of the TCP header's 14th byte: no more data from the sender.
pub const FIN: u8 = 0x01;
/// Flag of the TCP header's 14th byte: synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Flag of the TCP header's 14th byte: reset the connection.
pub const RST: u8 = 0x04;
/// Flag of the TCP header's 14th byte: the acknowledgment number counts.
pub const ACK: u8 = 0x10;

const SYN_ACK: u8 = SYN | ACK;
const FIN_ACK: u8 = FIN | ACK;
const RST_ACK: u8 = RST | ACK;

/// Largest window scale (RFC 7323 §2.3).
pub(crate) const SCALE_MAX: u8 = 14;

/// Bytes by which a segment or an acknowledgment may be older than the newest, however small the window is (`MAXACKWINCONST` of
/// `nf_conntrack_proto_tcp.c`).
pub(crate) const OLDER_MIN_BYTES: u32 = 66_000;

/// Where only one direction is seen, the windows are unknown: bytes that a segment may be away from the newest.
const ONE_WAY_SPAN_BYTES: u32 = 1 << 24;

/// What a track needs to know of one segment. Numbers in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFacts {
    /// The 14th byte of the TCP header.
    pub flags: u8,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number; read only with [`ACK`].
    pub ack: u32,
    /// The window field, unscaled.
    pub window: u16,
    /// Bytes of payload; of a super-packet all of them, so up to 64 KiB.
    pub payload_len: u32,
    /// The window scale option; read only with [`SYN`].
    pub window_scale: Option<u8>,
}

impl SegmentFacts {
    #[inline]
    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Of a SYN-ACK, the number of the SYN that it answers, had that no data.
    pub fn acknowledged_syn(&self) -> Option<u32> {
        (self.flags & SYN_ACK == SYN_ACK).then_some(self.ack.wrapping_sub(1))
    }

    /// The sequence number behind this segment: SYN and FIN count as one byte each.
    #[inline]
    fn end(&self) -> u32 {
        let marks = u32::from(self.has(SYN)) + u32::from(self.has(FIN));
        self.seq.wrapping_add(self.payload_len).wrapping_add(marks)
    }
}

/// Which directions of a flow pass by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Both: full-NAT and half-NAT.
    BothWays,
    /// Only what the opener sends: the answers of a DSR service go past us. The checks are wider: a segment must only be near the
    /// newest one, and the opener's ACK counts as the end of the handshake, its FIN as the end of the connection.
    OpenerOnly,
}

/// The phase of a connection, in the order of its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TcpState {
    /// The opener has sent its SYN; nothing has answered it.
    SynSent,
    /// Both have sent a SYN, neither has acknowledged the other's: a simultaneous open.
    SynCrossed,
    /// One SYN is acknowledged, the other is not yet.
    SynAnswered,
    /// Both SYNs are acknowledged.
    Established,
    /// The opener has sent its FIN; the other side may go on.
    FinForward,
    /// The other side has sent its FIN; the opener may go on.
    FinReverse,
    /// Both have sent a FIN; at least one is not acknowledged yet.
    FinBoth,
    /// Both FINs are acknowledged: late duplicates may still come.
    TimeWait,
    /// A reset has ended it.
    Reset,
}

/// Which timer a flow runs on; its length is in [`TcpTimeouts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TcpTimeout {
    /// Both sides have closed, not everything is acknowledged; or only the opener is seen, and it has sent no data yet.
    Closing,
    /// Open in both directions.
    Established,
    /// One side has closed.
    HalfClosed,
    /// The handshake is not complete.
    Opening,
    /// A reset has passed.
    Reset,
    /// Both sides have closed and acknowledged it.
    TimeWait,
}

/// How long a flow is remembered without a segment that counts, in milliseconds. All are the operator's to set; the defaults are those
/// of the standards, where they name one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpTimeouts {
    /// Handshake not complete, from the first SYN on and once more from the first answer. Default 4 min, the least transitory timeout of RFC 5382 REQ-5.
    pub opening_ms: u64,
    /// Open in both directions. Default 2 h 4 min, the least established timeout of RFC 5382 REQ-5.
    pub established_ms: u64,
    /// One side has closed. Default 2 h 4 min: a half-closed connection is still in use (RFC 6146 §3.5.2.2).
    pub half_closed_ms: u64,
    /// Both sides have closed, not everything is acknowledged, or one is not seen and nothing was sent yet. Default 4 min (RFC 5382 REQ-5).
    pub closing_ms: u64,
    /// Both sides have closed and acknowledged it. Default 60 s: what may still come are duplicates and a FIN whose last ACK was lost, and
    /// Linux remembers no longer (`TCP_TIMEWAIT_LEN`). RFC 5382 REQ-5 asks for 4 min where a NAT cannot tell that both sides are done.
    pub time_wait_ms: u64,
    /// A reset has passed. Default 10 s, as `nf_conntrack_proto_tcp.c`; RFC 7857 §2.2 recommends 4 min, in case the RST is lost on its
    /// last stretch, but a balancer then answers the late segments itself.
    pub reset_ms: u64,
}

impl Default for TcpTimeouts {
    fn default() -> TcpTimeouts {
        const TRANSITORY_MS: u64 = 4 * 60_000;
        const ESTABLISHED_MS: u64 = (2 * 60 + 4) * 60_000;
        TcpTimeouts {
            opening_ms: TRANSITORY_MS,
            established_ms: ESTABLISHED_MS,
            half_closed_ms: ESTABLISHED_MS,
            closing_ms: TRANSITORY_MS,
            time_wait_ms: 60_000,
            reset_ms: 10_000,
        }
    }
}

impl TcpTimeout {
    /// Every timer, in the order of [`TcpTimeout::index`].
    pub const ALL: [TcpTimeout; 6] = [
        TcpTimeout::Closing,
        TcpTimeout::Established,
        TcpTimeout::HalfClosed,
        TcpTimeout::Opening,
        TcpTimeout::Reset,
        TcpTimeout::TimeWait,
    ];

    /// Its place in [`TcpTimeout::ALL`] and [`TcpTimeouts::all_ms`].
    #[inline]
    pub fn index(self) -> usize {
        self as usize
    }
}

impl TcpTimeouts {
    /// The lengths of all timers, in milliseconds, in the order of [`TcpTimeout::ALL`].
    pub fn all_ms(&self) -> [u64; 6] {
        TcpTimeout::ALL.map(|timeout| self.ms(timeout))
    }

    /// The length of `timeout`, in milliseconds.
    #[inline]
    pub fn ms(&self, timeout: TcpTimeout) -> u64 {
        match timeout {
            TcpTimeout::Closing => self.closing_ms,
            TcpTimeout::Established => self.established_ms,
            TcpTimeout::HalfClosed => self.half_closed_ms,
            TcpTimeout::Opening => self.opening_ms,
            TcpTimeout::Reset => self.reset_ms,
            TcpTimeout::TimeWait => self.time_wait_ms,
        }
    }
}

/// Something that the caller must act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TcpEvent {
    /// Both sides have closed and acknowledged it: the connection no longer counts, the flow stays for its timer.
    Closed,
    /// The handshake is complete: the flow leaves the table of half-open ones.
    Established,
    /// This SYN opens a new connection on the addresses and ports of one that is over (RFC 9293 §3.10.7.4, RFC 6191). The track
    /// is untouched: remove the flow and treat the segment as one of a new flow.
    Reopens,
    /// A side has reset the connection, or refused it: it no longer counts, the flow stays for its timer.
    Reset,
}

/// Why a segment does not count for its flow. Only one with [`TcpFault::FlagsImpossible`] should be dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TcpFault {
    /// It acknowledges what was never sent, or something too old.
    AckOutOfWindow,
    /// A combination of flags that no TCP sends: no flag, SYN with FIN or RST, FIN without ACK and the like.
    FlagsImpossible,
    /// A segment without SYN before the side that sends it, or the other one, has sent its SYN.
    NotOpen,
    /// An RST whose sequence number the receiver cannot accept.
    ResetOutOfWindow,
    /// Its sequence number is outside the receiver's window, too old, or behind an acknowledged FIN.
    SequenceOutOfWindow,
    /// A SYN in the middle of a connection, or an old one.
    UnexpectedSyn,
    /// A segment of the direction that should not pass us ([`Sight::OpenerOnly`]).
    WrongWay,
}

/// What a segment did to its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Outcome {
    /// The timer that starts anew; `None` leaves the one that runs alone.
    pub timeout: Option<TcpTimeout>,
    /// What the caller must act on. `Established` comes at most once in the life of a track, and so does either of `Closed` and `Reset`.
    pub event: Option<TcpEvent>,
    /// Why the segment did not count; then there is neither timeout nor event.
    pub fault: Option<TcpFault>,
}

impl Outcome {
    /// It passes, and leaves everything as it is.
    const UNMOVED: Outcome = Outcome { timeout: None, event: None, fault: None };

    /// Whether the segment fits the connection.
    #[inline]
    pub fn is_valid(&self) -> bool {
        self.fault.is_none()
    }

    fn fault(fault: TcpFault) -> Outcome {
        Outcome { fault: Some(fault), ..Outcome::UNMOVED }
    }

    fn timeout(timeout: TcpTimeout) -> Outcome {
        Outcome { timeout: Some(timeout), ..Outcome::UNMOVED }
    }

    fn event(event: TcpEvent) -> Outcome {
        Outcome { event: Some(event), ..Outcome::UNMOVED }
    }
}

/// Sequence and acknowledgment numbers of an RST that its receiver accepts; see [`TcpTrack::reset_towards`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetNumbers {
    /// What the receiver last acknowledged: the number it expects, unless an acknowledgment is still to come.
    pub seq: u32,
    /// The number it expects once it has everything that was sent to it. Where this differs from `seq`, send a second RST with it: a
    /// receiver takes only the exact number (RFC 5961 §3.2).
    pub seq_sent: u32,
    /// Acknowledges everything that the receiver has sent; 0 when it has sent nothing.
    pub ack: u32,
}

/// The state of one TCP connection: 24 bytes, every bit pattern of which is a valid one.
///
/// Each pair holds the forward direction first. All zero, as by `default`, it is a track that has seen nothing yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpTrack {
    /// Behind the last sequence number that this side has sent.
    end: [u32; 2],
    /// The highest acknowledgment that this side has sent; before the first one the SYN of the other side.
    ack: [u32; 2],
    /// The largest window field that this side has sent.
    window: [u16; 2],
    bits: u32,
}

const _: () = assert!(size_of::<TcpTrack>() == 24);

// The bits of a track. Those of a pair are at this place for the forward and one higher for the reverse direction.
/// Window scale of each side plus one, four bits each; 0 where it has not offered to scale.
const SCALE_BITS: u32 = 4;
const SCALE_MASK: u32 = (1 << SCALE_BITS) - 1;
/// What both have offered.
const SCALES_MASK: u32 = (1 << (2 * SCALE_BITS)) - 1;
/// The shift of either side's window field, by what both have offered: every packet asks for it.
static SHIFTS: [[u8; SCALES_MASK as usize + 1]; 2] = {
    let mut shifts = [[0; SCALES_MASK as usize + 1]; 2];
    let mut offers = 0;
    while offers <= SCALES_MASK {
        let (forward, reverse) = (offers & SCALE_MASK, offers >> SCALE_BITS);
        if forward != 0 && reverse != 0 {
            shifts[0][offers as usize] = forward as u8 - 1;
            shifts[1][offers as usize] = reverse as u8 - 1;
        }
        offers += 1;
    }
    shifts
};
/// This side's SYN has been seen.
const SYN_SEEN: u32 = 8;
/// This side has acknowledged the other's SYN.
const SYN_ACKED: u32 = 10;
/// This side's FIN has been seen.
const FIN_SEEN: u32 = 12;
/// `window` is out of a SYN, and so unscaled.
const SYN_WINDOW: u32 = 14;
const BOTH_SYNS_SEEN: u32 = 0b11 << SYN_SEEN;
const BOTH_SYNS_ACKED: u32 = 0b11 << SYN_ACKED;
const BOTH_FINS_SEEN: u32 = 0b11 << FIN_SEEN;
/// The reverse side sent the first FIN.
const FIRST_FIN_REVERSE: u32 = 1 << 16;
/// The reverse side sent the reset.
const RESET_BY_REVERSE: u32 = 1 << 17;
/// Without [`RESET`]: the reverse side sent its FIN before it had the forward side's.
const SERVER_WAITS: u32 = RESET_BY_REVERSE;
const ONE_WAY: u32 = 1 << 18;
/// With [`ONE_WAY`]: the opener has sent data behind its handshake. The place is free, as no window of the other side's is seen.
const CARRIES: u32 = 2 << SYN_WINDOW;
const CLOSED: u32 = 1 << 19;
const RESET: u32 = 1 << 20;
/// Somebody else follows the connection as well, see `lent.rs`.
const LENT: u32 = 1 << 21;
/// The bits from here on are the caller's.
const TAG: u32 = 22;

/// Highest number that [`TcpTrack::set_tag`] takes.
pub const TAG_MAX: u16 = (1 << (u32::BITS - TAG)) - 1;

impl TcpTrack {
    /// The track of a connection that `segment` opens; `None` unless it is a SYN without ACK, RST or FIN. Its timer is
    /// [`TcpTimeout::Opening`].
    pub fn open(segment: &SegmentFacts, sight: Sight) -> Option<TcpTrack> {
        if segment.flags & (SYN | ACK | RST | FIN) != SYN {
            return None;
        }
        let bits = match sight {
            Sight::BothWays => 0,
            Sight::OpenerOnly => ONE_WAY,
        };
        let mut track = TcpTrack { bits, ..TcpTrack::default() };
        track.synchronise(Direction::Forward, segment);
        Some(track)
    }

    /// Follows one segment that goes `from` one side to the other.
    #[inline]
    pub fn advance(&mut self, from: Direction, segment: &SegmentFacts) -> Outcome {
        if self.bits & ONE_WAY != 0 && from == Direction::Reverse {
            return Outcome::fault(TcpFault::WrongWay);
        }
        match segment.flags & (SYN | ACK | RST | FIN) {
            ACK | FIN_ACK => self.on_ack(from, segment),
            RST | RST_ACK => self.on_reset(from, segment),
            SYN => self.on_syn(from, segment),
            SYN_ACK => self.on_syn_ack(from, segment),
            _ => Outcome::fault(TcpFault::FlagsImpossible),
        }
    }

    /// Follows a segment of an open connection as [`advance`](TcpTrack::advance) does, where nothing can come of it but newer numbers: it has ACK and
    /// neither SYN, FIN nor RST, and ends at `end`. The timer is then [`TcpTimeout::Established`]. `false`: it needs a closer look, and nothing has
    /// changed.
    #[inline(always)]
    pub fn advance_open(&mut self, from: Direction, seq: u32, end: u32, ack: u32, window: u16) -> bool {
        if !self.is_open() {
            return false;
        }
        let (at, other) = (from.index(), from.opposite().index());
        // What is older than this may still fit, where windows are larger.
        let right = self.ack[other].wrapping_add(self.window_bytes(from.opposite()));
        let left = self.end[at].wrapping_sub(OLDER_MIN_BYTES);
        let oldest = self.ack[at].wrapping_sub(OLDER_MIN_BYTES);
        let signs = right.wrapping_sub(seq)
            | end.wrapping_sub(left)
            | self.end[other].wrapping_sub(ack)
            | ack.wrapping_sub(oldest);
        let fits = signs as i32 >= 0;
        if fits {
            self.note(from, end, ack, window);
        }
        fits
    }

    /// Whether both sides have opened, neither has closed or reset, both are seen, and nobody else follows the connection.
    #[inline(always)]
    fn is_open(&self) -> bool {
        const OPEN: u32 = BOTH_SYNS_SEEN | BOTH_SYNS_ACKED;
        const OTHER: u32 = BOTH_FINS_SEEN | ONE_WAY | CLOSED | RESET | LENT;
        self.bits & (OPEN | OTHER) == OPEN
    }

    /// The phase that the connection is in.
    pub fn state(&self) -> TcpState {
        if self.bits & RESET != 0 {
            return TcpState::Reset;
        }
        if self.bits & CLOSED != 0 {
            return TcpState::TimeWait;
        }
        if !self.is_synchronised() {
            return match (self.has(SYN_SEEN, Direction::Reverse), self.bits & BOTH_SYNS_ACKED) {
                (false, _) => TcpState::SynSent,
                (true, 0) => TcpState::SynCrossed,
                (true, _) => TcpState::SynAnswered,
            };
        }
        match (self.has(FIN_SEEN, Direction::Forward), self.has(FIN_SEEN, Direction::Reverse)) {
            (false, false) => TcpState::Established,
            (true, false) => TcpState::FinForward,
            (false, true) => TcpState::FinReverse,
            (true, true) => TcpState::FinBoth,
        }
    }

    /// The timer of the phase that the connection is in.
    #[inline]
    pub fn timeout(&self) -> TcpTimeout {
        match self.bits & (BOTH_SYNS_ACKED | BOTH_FINS_SEEN | ONE_WAY | CLOSED | RESET) {
            BOTH_SYNS_ACKED => TcpTimeout::Established,
            _ => self.rare_timeout(),
        }
    }

    /// The timer that a segment which fits starts anew: none during the handshake, whose timer is for all of it.
    #[inline]
    fn renewed(&self) -> Option<TcpTimeout> {
        match self.bits & (BOTH_SYNS_ACKED | BOTH_FINS_SEEN | ONE_WAY | CLOSED | RESET) {
            BOTH_SYNS_ACKED => Some(TcpTimeout::Established),
            _ => Some(self.rare_timeout()).filter(|&timeout| timeout != TcpTimeout::Opening),
        }
    }

    fn rare_timeout(&self) -> TcpTimeout {
        match self.state() {
            TcpState::SynSent | TcpState::SynCrossed | TcpState::SynAnswered => TcpTimeout::Opening,
            // Anyone can send two segments that look like a handshake.
            TcpState::Established if self.bits & (ONE_WAY | CARRIES) == ONE_WAY => TcpTimeout::Closing,
            TcpState::Established => TcpTimeout::Established,
            TcpState::FinForward | TcpState::FinReverse => TcpTimeout::HalfClosed,
            TcpState::FinBoth => TcpTimeout::Closing,
            TcpState::TimeWait => TcpTimeout::TimeWait,
            TcpState::Reset => TcpTimeout::Reset,
        }
    }

    /// Whether the handshake is under way: such a flow belongs in the small table of half-open ones, since anyone can send a SYN.
    pub fn is_half_open(&self) -> bool {
        !self.is_synchronised() && !self.is_over()
    }

    /// Whether `Closed` or `Reset` has been reported, so that the connection no longer counts.
    pub fn is_over(&self) -> bool {
        self.bits & (CLOSED | RESET) != 0
    }

    /// Whose FIN came first, if any has come: that side keeps the connection in TIME_WAIT, unless both closed at the same time.
    pub fn closed_first(&self) -> Option<Direction> {
        match (self.bits & BOTH_FINS_SEEN, self.bits & FIRST_FIN_REVERSE) {
            (0, _) => None,
            (_, 0) => Some(Direction::Forward),
            _ => Some(Direction::Reverse),
        }
    }

    /// Whether the reverse side sent its FIN before it had the other one, and so keeps the connection in TIME_WAIT, alone or, after a simultaneous
    /// close, as the other side does.
    pub fn server_waits(&self) -> bool {
        self.bits & (RESET | SERVER_WAITS) == SERVER_WAITS
    }

    /// The numbers of an RST with ACK that `to` accepts as one of the other side's, to end the connection from here.
    pub fn reset_towards(&self, to: Direction) -> ResetNumbers {
        let from = to.opposite();
        let ack = match self.bits & ONE_WAY != 0 && to == Direction::Reverse {
            true => self.ack[from.index()],
            false => self.end[to.index()],
        };
        let sent = self.end[from.index()];
        let (seq, seq_sent) = match (self.has(SYN_ACKED, to), self.has(SYN_SEEN, from)) {
            // What a side that is not seen has acknowledged is not known.
            _ if self.bits & ONE_WAY != 0 && to == Direction::Reverse => (sent, sent),
            (true, true) => (self.ack[to.index()], sent),
            (true, false) => (self.ack[to.index()], self.ack[to.index()]),
            (false, true) => (sent, sent),
            // In SYN-SENT only the acknowledgment counts (RFC 9293 §3.10.7.3).
            (false, false) => (0, 0),
        };
        ResetNumbers { seq, seq_sent, ack }
    }

    /// A number that the caller keeps here: 10 bits that a track has to spare. 0 at first.
    #[inline]
    pub fn tag(&self) -> u16 {
        (self.bits >> TAG) as u16
    }

    /// Keeps `tag`, at most [`TAG_MAX`]; of a higher one only the lower bits.
    #[inline]
    pub fn set_tag(&mut self, tag: u16) {
        self.bits = self.bits & ((1 << TAG) - 1) | u32::from(tag) << TAG;
    }

    /// Whether `seq` may be that of a segment that `side` has sent and that is still on its way: what an ICMP error quotes must be one
    /// (RFC 5927 §4.1).
    pub fn is_in_flight(&self, side: Direction, seq: u32) -> bool {
        if self.bits & ONE_WAY != 0 && side == Direction::Reverse {
            // Its segments pass us by; what it may have sent is near what the opener acknowledges.
            let acknowledged = self.ack[Direction::Forward.index()];
            return seq.wrapping_sub(acknowledged).wrapping_add(ONE_WAY_SPAN_BYTES) <= 2 * ONE_WAY_SPAN_BYTES;
        }
        let end = self.end[side.index()];
        let other = side.opposite();
        let oldest =
            if self.has(SYN_ACKED, other) { self.ack[other.index()] } else { end.wrapping_sub(OLDER_MIN_BYTES) };
        self.has(SYN_SEEN, side) && !is_after(seq, end) && !is_after(oldest, seq)
    }

    /// The track as six words, for memory that outlives the process and for a peer.
    pub fn to_words(self) -> [u32; 6] {
        let windows = u32::from(self.window[0]) | u32::from(self.window[1]) << 16;
        [self.end[0], self.end[1], self.ack[0], self.ack[1], windows, self.bits]
    }

    /// The track out of [`TcpTrack::to_words`]. Any words make a track, though not a sensible one.
    pub fn from_words(words: [u32; 6]) -> TcpTrack {
        let [end_forward, end_reverse, ack_forward, ack_reverse, windows, bits] = words;
        TcpTrack {
            end: [end_forward, end_reverse],
            ack: [ack_forward, ack_reverse],
            window: [windows as u16, (windows >> 16) as u16],
            bits,
        }
    }

    /// Begins anew with the answer to a SYN of the opener's that was [`TcpFault::UnexpectedSyn`] and sent on: the server has taken it. The
    /// handshake goes on with the opener's ACK, and [`TcpEvent::Established`] comes once more. The timer is [`TcpTimeout::Opening`].
    pub fn restart(&mut self, answer: &SegmentFacts) {
        // The options of that SYN are not known any more; a host offers the same ones each time.
        self.bits = self.bits & (SCALE_MASK | !0 << TAG) | 1 << SYN_SEEN;
        self.end[Direction::Forward.index()] = answer.ack;
        self.synchronise(Direction::Reverse, answer);
        self.ack[Direction::Forward.index()] = answer.seq;
        self.ack[Direction::Reverse.index()] = answer.ack;
        self.set(SYN_ACKED, Direction::Reverse);
    }

    fn on_syn(&mut self, from: Direction, segment: &SegmentFacts) -> Outcome {
        let at = from.index();
        match (self.state(), from) {
            (TcpState::SynSent, Direction::Forward) => {
                // With another number it is a new attempt, and nothing has answered the old one.
                if segment.seq != self.ack[Direction::Reverse.index()] {
                    self.bits &= ONE_WAY | !0 << TAG;
                }
                self.synchronise(from, segment);
                // Else who only repeats it would keep the flow, and a client its dead server, for as long as it likes.
                Outcome::UNMOVED
            }
            (TcpState::SynSent, Direction::Reverse) => {
                self.synchronise(from, segment);
                Outcome::timeout(TcpTimeout::Opening)
            }
            (TcpState::SynCrossed | TcpState::SynAnswered, _) if segment.end() == self.end[at] => Outcome::UNMOVED,
            // RFC 9293 wants a higher number than the last one. But it is sent on whatever its number is, and a server that takes it must not find
            // that its answer fits nothing here; the flow of an old duplicate ends with the RST of its opener.
            (TcpState::Reset | TcpState::TimeWait, Direction::Forward) => Outcome::event(TcpEvent::Reopens),
            // The receiver answers a SYN in the middle of a connection with an ACK, and the RST that this one draws, if the
            // connection is indeed gone, ends it here too (RFC 5961 §4.2).
            _ => Outcome::fault(TcpFault::UnexpectedSyn),
        }
    }

    fn on_syn_ack(&mut self, from: Direction, segment: &SegmentFacts) -> Outcome {
        let other = from.opposite();
        if self.bits & RESET != 0 || !self.has(SYN_SEEN, other) {
            return Outcome::fault(TcpFault::UnexpectedSyn);
        }
        if self.is_synchronised() {
            // A repeated one, whose ACK was lost: it draws another.
            return match self.window_fault(from, segment) {
                None => Outcome::timeout(self.timeout()),
                Some(_) => Outcome::fault(TcpFault::UnexpectedSyn),
            };
        }
        if !self.acknowledges(from, segment.ack) {
            return Outcome::fault(TcpFault::AckOutOfWindow);
        }
        let is_first = !self.has(SYN_SEEN, from);
        if !self.has(SYN_ACKED, other) {
            // A server that answers with SYN cookies may choose another number the second time.
            if self.has(SYN_SEEN, from) && segment.seq != self.ack[other.index()] {
                self.clear(SYN_SEEN, from);
            }
            self.synchronise(from, segment);
        } else if segment.end() != self.end[from.index()] {
            return Outcome::fault(TcpFault::SequenceOutOfWindow);
        }
        self.ack[from.index()] = segment.ack;
        let event = self.acknowledge_syn(from);
        // The first answer starts the timer of the handshake once more: the client has to be given time as well.
        let timeout = if is_first { Some(self.timeout()) } else { self.renewed() };
        Outcome { timeout, event, fault: None }
    }

    #[inline]
    fn on_ack(&mut self, from: Direction, segment: &SegmentFacts) -> Outcome {
        if self.bits & (RESET | ONE_WAY) != 0 {
            return self.on_rare_ack(from, segment);
        }
        let other = from.opposite();
        if !(self.has(SYN_SEEN, from) && self.has(SYN_SEEN, other)) {
            return Outcome::fault(TcpFault::NotOpen);
        }
        if let Some(fault) = self.window_fault(from, segment) {
            return Outcome::fault(fault);
        }
        let end = segment.end();
        if self.has(FIN_SEEN, from) && is_after(end, self.end[from.index()]) {
            if self.bits & CLOSED != 0 || self.is_fin_acked(from) {
                return Outcome::fault(TcpFault::SequenceOutOfWindow);
            }
            // Who sends on has not sent that FIN.
            self.clear(FIN_SEEN, from);
            self.mark_first_fin(other);
        }
        self.learn(from, segment);
        let mut event = self.acknowledge_syn(from);
        if segment.has(FIN) && end == self.end[from.index()] {
            if from == Direction::Reverse && !self.has(FIN_SEEN, from) {
                self.note_server_waits();
            }
            self.see_fin(from);
        }
        if event.is_none()
            && self.bits & (BOTH_FINS_SEEN | CLOSED) == BOTH_FINS_SEEN
            && self.is_fin_acked(from)
            && self.is_fin_acked(other)
        {
            self.bits |= CLOSED;
            event = Some(TcpEvent::Closed);
        }
        Outcome { timeout: self.renewed(), event, fault: None }
    }

    #[cold]
    fn on_rare_ack(&mut self, from: Direction, segment: &SegmentFacts) -> Outcome {
        if self.bits & RESET == 0 {
            return self.on_one_way_ack(segment);
        }
        let fits = self.is_synchronised()
            && match self.bits & ONE_WAY {
                0 => self.window_fault(from, segment).is_none(),
                _ => self.is_near(segment.seq),
            };
        if !fits {
            return Outcome::UNMOVED;
        }
        self.learn(from, segment);
        // What the receiver of the reset has sent may still be on its way. Its sender has no more to say: if it goes on, the reset
        // was not its own, and the flow is kept as long as it is in use.
        if segment.payload_len > 0 && from == self.reset_by() {
            return Outcome::timeout(TcpTimeout::Closing);
        }
        Outcome::UNMOVED
    }

    fn on_one_way_ack(&mut self, segment: &SegmentFacts) -> Outcome {
        let from = Direction::Forward;
        let (at, end) = (from.index(), segment.end());
        if !self.is_near(segment.seq) {
            // A SYN that was sent on may have begun another connection, unseen; while it is in use the flow must not go.
            return match self.bits & (BOTH_SYNS_ACKED | CLOSED) {
                BOTH_SYNS_ACKED => Outcome::timeout(self.timeout()),
                _ => Outcome::fault(TcpFault::SequenceOutOfWindow),
            };
        }
        let mut event = None;
        if !self.is_synchronised() {
            if !is_after(segment.seq, self.ack[Direction::Reverse.index()]) {
                return Outcome::fault(TcpFault::SequenceOutOfWindow);
            }
            self.bits |= BOTH_SYNS_ACKED;
            self.ack[at] = segment.ack;
            event = Some(TcpEvent::Established);
        } else if self.bits & CLOSED != 0 && is_after(end, self.end[at]) {
            return Outcome::fault(TcpFault::SequenceOutOfWindow);
        } else if segment.payload_len > 0 {
            self.bits |= CARRIES;
        }
        // Without windows, only a FIN that follows what is known is believed.
        let follows = !is_after(segment.seq, self.end[at]);
        self.learn(from, segment);
        if segment.has(FIN) && follows && end == self.end[at] {
            self.see_fin(from);
        }
        if event.is_none() && self.has(FIN_SEEN, from) && self.bits & CLOSED == 0 {
            self.bits |= CLOSED;
            event = Some(TcpEvent::Closed);
        }
        Outcome { timeout: Some(self.timeout()), event, fault: None }
    }

    fn on_reset(&mut self, from: Direction, segment: &SegmentFacts) -> Outcome {
        if self.bits & RESET != 0 {
            return Outcome::timeout(TcpTimeout::Reset);
        }
        let (at, other) = (from.index(), from.opposite());
        let (is_exact, is_in_window) = if self.bits & ONE_WAY != 0 {
            (segment.seq == self.end[at], self.is_near(segment.seq))
        } else if !self.has(SYN_SEEN, from) {
            // A refusal: only its acknowledgment of the SYN counts (RFC 9293 §3.10.7.3).
            (segment.has(ACK) && self.acknowledges(from, segment.ack), false)
        } else if !self.has(SYN_SEEN, other) {
            let syn = self.ack[other.index()];
            if !is_after(segment.seq, syn) || is_after(segment.seq, self.end[at]) {
                // The answer to an ACK from an older connection on these ports: it clears the way for the SYN's next try.
                return Outcome::UNMOVED;
            }
            (true, true)
        } else {
            let expected = self.ack[other.index()];
            let is_expected = segment.seq == expected && self.has(SYN_ACKED, other);
            let edge = expected.wrapping_add(self.window_bytes(other));
            let is_in_window = !is_after(expected, segment.seq) && !is_after(segment.seq, edge);
            (is_expected || segment.seq == self.end[at], is_in_window)
        };
        if is_exact && self.bits & CLOSED != 0 {
            // There is nothing to end any more, and what waits for late duplicates goes on waiting (RFC 1337).
            Outcome::UNMOVED
        } else if is_exact {
            self.bits = self.bits & !RESET_BY_REVERSE | RESET;
            if from == Direction::Reverse {
                self.bits |= RESET_BY_REVERSE;
            }
            Outcome { timeout: Some(TcpTimeout::Reset), event: Some(TcpEvent::Reset), fault: None }
        } else if is_in_window {
            // The receiver asks first (RFC 5961 §3.2), and the RST that answers its challenge is exact. On the word of this one, which anybody can
            // guess and whose checksum may be wrong, an idle connection would be forgotten.
            Outcome::UNMOVED
        } else {
            Outcome::fault(TcpFault::ResetOutOfWindow)
        }
    }

    /// Takes the numbers and options of a SYN, or of its repetition.
    fn synchronise(&mut self, from: Direction, segment: &SegmentFacts) {
        let (at, other) = (from.index(), from.opposite().index());
        let end = segment.end();
        if !self.has(SYN_SEEN, from) || is_after(end, self.end[at]) {
            self.end[at] = end;
        }
        self.ack[other] = segment.seq;
        // Repeated SYNs may come without options; that the first one offered still counts.
        if let Some(scale) = segment.window_scale {
            let shift = SCALE_BITS * at as u32;
            self.bits &= !(SCALE_MASK << shift);
            self.bits |= (u32::from(scale.min(SCALE_MAX)) + 1) << shift;
        }
        self.window[at] = segment.window;
        self.set(SYN_WINDOW, from);
        self.set(SYN_SEEN, from);
    }

    /// Whether `ack`, before the connection is open, acknowledges the other side's SYN and nothing that was never sent.
    fn acknowledges(&self, from: Direction, ack: u32) -> bool {
        let last = self.ack[from.index()];
        let is_new = is_after(ack, last) || (ack == last && self.has(SYN_ACKED, from));
        is_new && !is_after(ack, self.end[from.opposite().index()])
    }

    /// Notes that `from` has acknowledged the other's SYN.
    #[inline]
    fn acknowledge_syn(&mut self, from: Direction) -> Option<TcpEvent> {
        if self.is_synchronised() {
            return None;
        }
        self.set(SYN_ACKED, from);
        self.is_synchronised().then_some(TcpEvent::Established)
    }

    /// Why a segment with ACK cannot be one of this connection's. Both SYNs must have been seen.
    #[inline]
    fn window_fault(&self, from: Direction, segment: &SegmentFacts) -> Option<TcpFault> {
        let (at, other) = (from.index(), from.opposite());
        let window = self.window_bytes(other);
        let right = self.ack[other.index()].wrapping_add(window);
        let left = self.end[at].wrapping_sub(window.max(OLDER_MIN_BYTES));
        if is_after(segment.seq, right) || is_after(left, segment.end()) {
            return Some(TcpFault::SequenceOutOfWindow);
        }
        // RFC 5961 §5.2.
        let oldest = self.ack[at].wrapping_sub(self.window_bytes(from).max(OLDER_MIN_BYTES));
        let is_ack_wrong = is_after(segment.ack, self.end[other.index()]) || is_after(oldest, segment.ack);
        if is_ack_wrong || (!self.is_synchronised() && !self.acknowledges(from, segment.ack)) {
            return Some(TcpFault::AckOutOfWindow);
        }
        None
    }

    /// Takes the numbers of a segment that fits.
    #[inline]
    fn learn(&mut self, from: Direction, segment: &SegmentFacts) {
        self.note(from, segment.end(), segment.ack, segment.window);
    }

    /// The same for one that ends at `end`.
    #[inline(always)]
    fn note(&mut self, from: Direction, end: u32, ack: u32, window: u16) {
        let at = from.index();
        self.end[at] = later(self.end[at], end);
        self.ack[at] = later(self.ack[at], ack);
        if self.has(SYN_WINDOW, from) {
            self.scale_syn_window(from);
        }
        self.window[at] = self.window[at].max(window);
    }

    /// The window out of the SYN of this side, from here on as its later ones.
    #[cold]
    fn scale_syn_window(&mut self, side: Direction) {
        let at = side.index();
        self.clear(SYN_WINDOW, side);
        self.window[at] = self.window[at].div_ceil(1 << self.scale(side));
    }

    /// The largest window that this side has offered, in bytes.
    #[inline]
    fn window_bytes(&self, side: Direction) -> u32 {
        let window = u32::from(self.window[side.index()]);
        if self.has(SYN_WINDOW, side) { window } else { window << self.scale(side) }
    }

    /// The shift of this side's window field; 0 unless both have offered to scale.
    #[inline]
    fn scale(&self, side: Direction) -> u32 {
        SHIFTS[side.index()][(self.bits & SCALES_MASK) as usize].into()
    }

    /// Whether `seq` is near the newest of the opener's; for tracks that know no window.
    fn is_near(&self, seq: u32) -> bool {
        let end = self.end[Direction::Forward.index()];
        seq.wrapping_sub(end).wrapping_add(ONE_WAY_SPAN_BYTES) <= 2 * ONE_WAY_SPAN_BYTES
    }

    /// The first FIN of the reverse side has come, and what it acknowledges is known.
    fn note_server_waits(&mut self) {
        self.set_server_waits(!self.is_fin_acked(Direction::Forward));
    }

    fn set_server_waits(&mut self, waits: bool) {
        match waits {
            true => self.bits |= SERVER_WAITS,
            false => self.bits &= !SERVER_WAITS,
        }
    }

    fn see_fin(&mut self, from: Direction) {
        if self.bits & BOTH_FINS_SEEN == 0 {
            self.mark_first_fin(from);
        }
        self.set(FIN_SEEN, from);
    }

    fn mark_first_fin(&mut self, side: Direction) {
        match side {
            Direction::Forward => self.bits &= !FIRST_FIN_REVERSE,
            Direction::Reverse => self.bits |= FIRST_FIN_REVERSE,
        }
    }

    /// Whether the other side has acknowledged the FIN of this one.
    fn is_fin_acked(&self, side: Direction) -> bool {
        self.has(FIN_SEEN, side) && self.ack[side.opposite().index()] == self.end[side.index()]
    }

    fn reset_by(&self) -> Direction {
        if self.bits & RESET_BY_REVERSE == 0 { Direction::Forward } else { Direction::Reverse }
    }

    /// Whether both SYNs are acknowledged.
    #[inline]
    pub fn is_synchronised(&self) -> bool {
        self.bits & BOTH_SYNS_ACKED == BOTH_SYNS_ACKED
    }

    #[inline]
    fn has(&self, pair: u32, side: Direction) -> bool {
        self.bits >> pair >> side.index() & 1 != 0
    }

    #[inline]
    fn set(&mut self, pair: u32, side: Direction) {
        self.bits |= 1 << pair << side.index();
    }

    #[inline]
    fn clear(&mut self, pair: u32, side: Direction) {
        self.bits &= !(1 << pair << side.index());
    }
}

/// The later of two numbers in sequence space; `a` where neither is.
#[inline]
fn later(a: u32, b: u32) -> u32 {
    if is_after(b, a) { b } else { a }
}

/// Whether `a` comes after `b` in sequence space (RFC 9293 §3.4).
#[inline]
fn is_after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

#[cfg(test)]
mod tests;
