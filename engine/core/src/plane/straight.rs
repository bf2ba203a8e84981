//! The straight path: a TCP segment over IPv4 of an open connection, whose next hop is known, onwards in one go.
//!
//! It takes what nearly every packet is, and all that it needs of a flow is in one cache line. What it finds it does as the path for
//! everything does (`forward.rs`): the same octets, counts and state, which the tests hold it to. Whatever needs more is left to that path, as it was.

use super::{Desk, Frame, Plane, PortId, Turn, Verdict};
use crate::flow::tcp::TcpTimeout;
use crate::flow::{Direction, Trace};
use crate::packet::rewrite::Checksum;
use crate::packet::straight::Straight;
use crate::packet::{PROTOCOL_TCP, Parsed, parse_to};

impl Plane {
    /// Takes a frame that [`read_straight`](crate::packet::straight::read_straight) has judged onwards; returns the port that it leaves through. `None`: it needs a closer
    /// look, and nothing has changed.
    #[inline(always)]
    pub(super) fn go_straight<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        trace: &Trace,
        turn: &mut Turn<'_, D>,
    ) -> Option<PortId> {
        let octets = frame.bytes.len();
        let packet = Straight::of(frame.bytes)?;
        let mut met = self.flows.established.meet(trace, packet.tuple(), PROTOCOL_TCP)?;
        let (direction, to) = (met.direction(), met.outgoing());
        let service = met.state().service();
        let rule = self.services.rule(service);
        let [source, _] = packet.tuple().numbers();
        if direction == Direction::Reverse
            && !self.hops.returns_by_v4(&self.network, source, met.hint_back(), frame.port)
        {
            return None;
        }
        // That one goes by another way than its destination's.
        if direction == Direction::Reverse && rule.next_hop.is_some() {
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
        met.touch(turn.now);
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
    pub(super) fn look_closer<D: Desk>(&mut self, frame: &mut Frame<'_>, turn: &mut Turn<'_, D>) -> Verdict {
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
