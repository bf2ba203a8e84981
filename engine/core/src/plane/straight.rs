//! The straight path: a TCP segment over IPv4 of an open connection, whose next hop is known, onwards in one go.
//!
//! It takes what nearly every packet is, and all that it needs of a flow is in one cache line. What it finds it does as the path for
//! everything does (`forward.rs`): the same octets, counts and state, which the tests hold it to. Whatever needs more is left to that path, as it was.

use std::hint::black_box;

use super::{BATCH_MAX, Desk, Frame, Plane, PortId, Turn, Verdict};
use crate::flow::tcp::TcpTimeout;
use crate::flow::{Direction, SeenAt, Trace};
use crate::packet::rewrite::Checksum;
use crate::packet::straight::Straight;
use crate::packet::{PROTOCOL_TCP, Parsed, parse_to};

/// Places of frames in a batch, in their order.
#[derive(Default)]
pub(super) struct Places {
    places: [u8; BATCH_MAX],
    count: usize,
}

/// The frames of a batch that go straight on, as far as is known.
#[derive(Default)]
pub(super) struct Straights {
    places: Places,
    traces: [Trace; BATCH_MAX],
}

impl Places {
    /// One more, behind the others; there are no more than frames in a batch.
    #[inline(always)]
    pub(super) fn push(&mut self, at: usize) {
        self.places[self.count % BATCH_MAX] = at as u8;
        self.count += 1;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = usize> + use<'_> {
        self.places[..self.count].iter().map(|&at| usize::from(at))
    }
}

impl Straights {
    /// One more, behind the others; there are no more than frames in a batch.
    #[inline(always)]
    pub(super) fn push(&mut self, at: usize, trace: Trace) {
        self.traces[self.places.count % BATCH_MAX] = trace;
        self.places.push(at);
    }

    pub(super) fn len(&self) -> usize {
        self.places.count
    }

    pub(super) fn traces(&self) -> &[Trace] {
        &self.traces[..self.places.count]
    }

    pub(super) fn traces_mut(&mut self) -> &mut [Trace] {
        &mut self.traces[..self.places.count]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Trace)> {
        self.places.iter().zip(&self.traces)
    }

    /// Leaves those out of which `keeps` does not hold; it is asked of each in turn.
    pub(super) fn retain(&mut self, mut keeps: impl FnMut(usize, &Trace) -> bool) {
        let mut kept = Straights::default();
        for (at, trace) in self.iter() {
            if keeps(at, trace) {
                kept.push(at, *trace);
            }
        }
        *self = kept;
    }
}

impl Plane {
    /// Takes frames onwards, each along its trace; returns how many went straight on.
    #[inline(never)]
    pub(super) fn go_on<'a, 'b: 'a, D: Desk>(
        &mut self,
        frames: impl Iterator<Item = (&'a Trace, (&'a mut Frame<'b>, &'a mut Verdict))>,
        turn: &mut Turn<'_, D>,
    ) -> usize {
        let (mut sent, now) = (0, SeenAt::at(turn.now));
        for (trace, (frame, verdict)) in frames {
            match self.go_straight(frame, trace, now, turn) {
                Some(port) => {
                    sent += 1;
                    *verdict = Verdict::Send(port);
                }
                None => *verdict = self.look_closer(frame, turn),
            }
        }
        sent
    }

    /// Takes a frame that [`read_straight`](crate::packet::straight::read_straight) has judged onwards; returns the port that it leaves through. `None`: it needs a closer
    /// look, and nothing has changed.
    #[inline(always)]
    pub(super) fn go_straight<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        trace: &Trace,
        now: SeenAt,
        turn: &mut Turn<'_, D>,
    ) -> Option<PortId> {
        let octets = frame.bytes.len();
        let packet = Straight::of(frame.bytes)?;
        let mut met = self.flows.established.meet(trace, packet.tuple(), PROTOCOL_TCP)?;
        let (direction, to) = (met.direction(), met.outgoing());
        let service = met.state().service();
        let rule = self.services.rule(service);
        let [source, _] = packet.tuple().numbers();
        let is_entrance = self.hops.is_entrance_v4(source, met.hint_back(), frame.port);
        // What a next hop is named for goes by that way, not by its destination's.
        let is_led = rule.next_hop.is_some();
        // Both ways come mixed, and a branch between them would be foreseen wrongly every other time: the compiler is kept from making one.
        let is_back = direction == Direction::Reverse;
        if black_box(u8::from(is_back & (!is_entrance | is_led))) != 0
            && (is_led || !self.hops.returns_by_v4(&self.network, source, frame.port))
        {
            return None;
        }
        let [_, destination] = to.numbers();
        let hop = self.hops.hop_v4(&self.network, destination, met.hint());
        let (total_len, headers_len) = (packet.total_len(), packet.headers_len());
        let payload_len = total_len - headers_len;
        // Of a super-packet, each segment has to fit.
        let largest = match frame.segment_bytes {
            0 => total_len,
            segment => headers_len + u32::from(segment),
        };
        let is_same_timer = met.class() == rule.tcp_class(TcpTimeout::Established);
        if largest > hop.straight_max || !is_same_timer || frame.checksum == Checksum::Absent {
            return None;
        }
        let seq = packet.seq();
        let end = seq.wrapping_add(payload_len);
        if !met.state().tcp_mut().advance_open(direction, seq, end, packet.ack(), packet.window()) {
            return None;
        }
        met.touch(now);
        packet.redirect(frame.checksum, to, &hop.macs);
        let port = hop.port;
        self.count_for(service, turn);
        turn.run.add(PROTOCOL_TCP, direction, octets, payload_len);
        if let Some(fast) = &mut self.flows.fast {
            fast.note(trace.slot(), direction, frame.port);
        }
        Some(port)
    }

    /// Decides about a frame that could not go straight on.
    #[inline(never)]
    fn look_closer<D: Desk>(&mut self, frame: &mut Frame<'_>, turn: &mut Turn<'_, D>) -> Verdict {
        let mut packet = Parsed::default();
        match parse_to(frame.bytes, &mut packet) {
            Ok(None) => {
                let hash = self.flows.hash(&packet.tuple);
                self.missed_unseen(frame, &packet, hash, turn)
            }
            // Frames that go straight on are TCP.
            Ok(Some(_)) => Verdict::Pass,
            Err(reason) => Verdict::Drop(reason),
        }
    }
}
