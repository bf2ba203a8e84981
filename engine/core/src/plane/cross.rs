//! Flows between IPv4 and IPv6: packets onwards in the other IP version, and ICMP errors about them (RFC 7915).
//!
//! A packet is rewritten in place where it goes on as it is. What has to wait for its next hop, or leaves in fragments, is copied first: all that
//! handles those works on one frame of one version.

use super::forward::{Hop, Onward};
use super::fragments::{Pieces, complete};
use super::reply::Complaint;
use super::{Desk, Frame, Plane, PlaneCounter, Turn, Verdict};
use crate::flow::Direction;
use crate::packet::cross::{
    CUTTABLE_V4_MAX, CrossError, GROWTH_MAX, LOWEST_V6_MTU, Links, cross, cross_error, crossed, crossed_len,
};
use crate::packet::cut::FRAGMENT_HEADER_LEN;
use crate::packet::rewrite::{Checksum, Layout};
use crate::packet::{DropReason, ETHERNET_LEN, Family, IcmpError, PROTOCOL_TCP, PROTOCOL_UDP, Parsed, TcpFlags, Tuple};

/// Octets by which the header of IPv6 is longer.
const LONGER: u32 = GROWTH_MAX as u32;
/// The same of fragments.
const LONGER_FRAGMENT: u32 = LONGER + FRAGMENT_HEADER_LEN as u32;

/// Room for a copy of one packet.
pub(super) struct CrossingRoom(Box<[u8]>);

impl CrossingRoom {
    /// Octets of it: room to grow, and the longest packet of IPv6.
    pub(super) const BYTES: usize = GROWTH_MAX + ETHERNET_LEN + 40 + 65_535;

    pub(super) fn new() -> CrossingRoom {
        CrossingRoom(vec![0; CrossingRoom::BYTES].into_boxed_slice())
    }
}

/// How a packet leaves.
struct Exit<'a> {
    to: &'a Tuple,
    onward: Onward,
    hop: Hop,
    /// Its number, if it becomes one of IPv4 that may be cut.
    id: Option<u16>,
    /// Octets of the packets that it is cut into, if it is.
    cut_to: Option<u32>,
}

impl Plane {
    /// Whether a packet may go `onward` in the other IP version; else its sender is told.
    #[inline(never)]
    pub(super) fn judge_crossing<D: Desk>(
        &mut self,
        frame: &Frame<'_>,
        packet: &Parsed,
        onward: Onward,
        turn: &mut Turn<'_, D>,
    ) -> Result<(), DropReason> {
        let mtu = self.hops.hop(onward.hop).mtu;
        if mtu == 0 {
            return Err(DropReason::NoRoute);
        }
        let len = crossed_len(packet);
        let largest = largest(frame, packet, len);
        // What came in fragments leaves in such as fit, and ICMP errors are shortened.
        let is_cut = turn.pieces.is_some() || !matches!(packet.tuple.protocol, PROTOCOL_TCP | PROTOCOL_UDP);
        let may_be_cut = frame.segment_bytes == 0 && may_be_cut(packet, len);
        if largest > mtu && !is_cut && !may_be_cut {
            let mtu = match packet.family {
                Family::V4 => mtu.saturating_sub(LONGER),
                // What fits there then may be cut here (RFC 7915 section 5.1).
                Family::V6 => mtu.saturating_add(LONGER).max(LOWEST_V6_MTU),
            };
            if packet.dont_fragment {
                self.complain(frame, packet, Complaint::PacketTooBig { mtu }, turn);
            }
            return Err(DropReason::PacketTooBig);
        }
        if packet.ttl <= 1 {
            self.complain(frame, packet, Complaint::TimeExceeded, turn);
            return Err(DropReason::HopLimit);
        }
        Ok(())
    }

    /// Rewrites a packet of a flow into one of the other IP version, to `to`, and sends it `onward`.
    #[inline(never)]
    pub(super) fn send_across<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Parsed,
        to: &Tuple,
        direction: Direction,
        onward: Onward,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        let family = packet.family.other();
        if packet.tcp.flags.contains(TcpFlags::SYN) {
            self.clamp(frame, &Layout::from(packet), onward.hop, family);
        }
        let hop = *self.hops.hop(onward.hop);
        let len = crossed_len(packet);
        let id = (family == Family::V4 && (turn.pieces.is_some() || may_be_cut(packet, largest(frame, packet, len))))
            .then(|| self.identify(Family::V4) as u16);
        // Nobody tells a sender of IPv4 who lets packets be cut that they are too big for a link of IPv6.
        let octets_max = match packet.family {
            Family::V4 if !packet.dont_fragment => hop.mtu.min(LOWEST_V6_MTU),
            Family::V4 | Family::V6 => hop.mtu,
        };
        let cut_to = match (turn.pieces, family) {
            // No larger than they came, beside their headers.
            (Some(pieces), Family::V6) => Some(octets_max.min(pieces.largest.saturating_add(LONGER_FRAGMENT))),
            (Some(pieces), Family::V4) => Some(octets_max.min(pieces.largest.saturating_sub(LONGER_FRAGMENT))),
            // The device cuts super-packets, but only into segments.
            (None, _) => (frame.segment_bytes == 0 && len > octets_max).then_some(octets_max),
        };
        turn.run.add(packet.tuple.protocol, direction, frame.bytes.len(), packet.payload_len());
        if hop.is_ready && cut_to.is_none() {
            let (port, macs) = self.follow_station(turn.now, hop.port, hop.macs);
            match cross(frame.front, frame.bytes, packet, frame.checksum, to, &macs, id) {
                Ok(begins) => return Verdict::Translated { port, begins },
                // Nothing tells later that it is to be cut into segments.
                Err(CrossError::NoRoom) if frame.segment_bytes == 0 => {}
                Err(error) => return Verdict::Drop(error.into()),
            }
        }
        let mut room = std::mem::replace(&mut self.crossing, CrossingRoom(Box::default()));
        let exit = Exit { to, onward, hop, id, cut_to };
        let verdict = self.send_copy(&mut room.0, frame, packet, &exit, turn);
        self.crossing = room;
        verdict
    }

    /// The same by way of a copy in `room`.
    fn send_copy<D: Desk>(
        &mut self,
        room: &mut [u8],
        frame: &Frame<'_>,
        packet: &Parsed,
        exit: &Exit<'_>,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        let Exit { to, onward, ref hop, id, cut_to } = *exit;
        let (port, macs) = self.follow_station(turn.now, hop.port, hop.macs);
        let end = packet.end as usize;
        let copied = room.split_at_mut_checked(GROWTH_MAX).and_then(|(front, room)| {
            let copy = room.get_mut(..end)?;
            copy.copy_from_slice(frame.bytes.get(..end)?);
            Some((front, copy))
        });
        let Some((front, copy)) = copied else { return Verdict::Drop(DropReason::FrameChanged) };
        let begins = match cross(front, copy, packet, frame.checksum, to, &macs, id) {
            Ok(begins) => begins,
            Err(error) => return Verdict::Drop(error.into()),
        };
        let start = GROWTH_MAX.saturating_add_signed(begins.into());
        let bytes = room.get_mut(start..GROWTH_MAX + end).unwrap_or_default();
        let packet = &crossed(packet, begins);
        let copy = &mut Frame {
            bytes,
            front: &mut [],
            port: frame.port,
            checksum: frame.checksum,
            segment_bytes: frame.segment_bytes,
        };
        match (hop.is_ready, cut_to) {
            (false, _) => {
                let came_in = std::mem::replace(&mut turn.pieces, cut_to.map(|largest| Pieces { largest, id: 0 }));
                let verdict = self.hold(copy, packet, onward.to, turn);
                turn.pieces = came_in;
                verdict
            }
            (true, Some(octets_max)) => self.cut(copy, packet, octets_max, port, turn.out),
            (true, None) if !complete(copy, packet) => Verdict::Drop(DropReason::FrameChanged),
            (true, None) if turn.out.push(port, copy.bytes) => Verdict::Kept,
            (true, None) => Verdict::Drop(DropReason::CutFull),
        }
    }

    /// Translates an error about a packet of such a flow for its sender, who had sent it as `sent`.
    pub(super) fn error_across<D: Desk>(
        &mut self,
        frame: &Frame<'_>,
        error: &IcmpError,
        sent: &Tuple,
        onward: Onward,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        let hop = *self.hops.hop(onward.hop);
        let came_by = self.network.port(frame.port).map_or(hop.mtu, |port| port.mtu);
        let links = Links { came_by, leaves_by: hop.mtu };
        let (port, macs) = self.follow_station(turn.now, hop.port, hop.macs);
        let Some(mut made) = cross_error(frame.bytes, error, sent, &macs, links) else {
            return Verdict::Drop(DropReason::IcmpErrorUntranslated);
        };
        let bytes = made.bytes_mut();
        let verdict = if hop.is_ready {
            let is_pushed = turn.out.push(port, bytes);
            if is_pushed { Verdict::Kept } else { Verdict::Drop(DropReason::CutFull) }
        } else {
            // It is whole, however the one came that it was made of, and fits every link.
            let packet = Parsed { family: error.parsed.family.other(), end: bytes.len() as u32, ..error.parsed };
            let came_in = turn.pieces.take();
            let frame =
                &mut Frame { bytes, front: &mut [], port: frame.port, checksum: Checksum::Complete, segment_bytes: 0 };
            let verdict = self.hold(frame, &packet, onward.to, turn);
            turn.pieces = came_in;
            verdict
        };
        if verdict == Verdict::Kept {
            self.counts.add(PlaneCounter::Errors, 1);
        }
        verdict
    }
}

/// Octets of the largest packet that leaves for one that is of `len` octets in the other version: of a super-packet, its largest segment.
fn largest(frame: &Frame<'_>, packet: &Parsed, len: u32) -> u32 {
    match frame.segment_bytes {
        0 => len,
        segment => len - packet.payload_len() + u32::from(segment),
    }
}

/// Whether a whole packet may be cut once it is one of `len` octets in the other version.
fn may_be_cut(packet: &Parsed, len: u32) -> bool {
    match packet.family {
        Family::V4 => !packet.dont_fragment,
        Family::V6 => len <= CUTTABLE_V4_MAX,
    }
}

impl From<CrossError> for DropReason {
    fn from(error: CrossError) -> DropReason {
        match error {
            CrossError::Mismatch | CrossError::NoRoom => DropReason::FrameChanged,
            CrossError::TooLong => DropReason::TooLongForV4,
        }
    }
}
