//! Fragments for our services: put together, taken onwards as the packet that they are, and cut again. And packets that are larger than the link
//! ahead carries and may be cut.
//!
//! The kernel steers all fragments of a packet to one worker, by what each of them shows (`steering/frame.rs`). Only there the ports come to light;
//! where the flow lives at another worker, fragments are handed to it, all of them at once, and are put together there once more.

use super::bridge::Whose;
use super::reassembly::{GivenUp, Whole};
use super::reply::Complaint;
use super::router::Known;
use super::{Desk, Frame, Gathered, Outbox, Plane, PlaneCounter, PortId, Turn, Verdict};
use crate::packet::cut::Cut;
use crate::packet::rewrite::{Checksum, Layout, complete_checksum, set_identification};
use crate::packet::{DropReason, ETHERNET_LEN, Family, Fragment, Ip, Packet, Parsed, Tuple, parse_to};
use crate::{Now, WorkerId};

/// How a packet came that was put together, and so how it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pieces {
    /// Octets of the largest packet among its fragments.
    pub(super) largest: u32,
    /// What its fragments had in common.
    pub(super) id: u32,
}

/// Who gets fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    /// The worker that has their flow; they came in by this port.
    Worker(WorkerId, PortId),
    /// The link of this port.
    Port(PortId),
}

/// Numbers for the packets that leave in fragments from addresses of ours: each a different one for as long as there are any (RFC 6864 section 5.3),
/// in an order that others do not know (RFC 7739).
#[derive(Debug)]
pub(super) struct Identifications {
    next: u32,
    key: u32,
}

impl Identifications {
    pub(super) fn new(seed: [u64; 2]) -> Identifications {
        let bits = crate::random::mix(seed[0] ^ seed[1].rotate_left(32));
        Identifications { next: bits as u32, key: (bits >> 32) as u32 }
    }

    /// One for a packet of `family`, that no other of so many workers gives it.
    fn next(&mut self, family: Family, worker: WorkerId, workers: usize) -> u32 {
        let bits = if family == Family::V4 { 16 } else { 32 };
        let shared = workers.next_power_of_two().trailing_zeros();
        let number = self.next << shared | u32::from(worker.0);
        self.next = self.next.wrapping_add(1);
        scramble(number, self.key, bits)
    }
}

/// Another number of so many bits for each number of so many.
fn scramble(number: u32, key: u32, bits: u32) -> u32 {
    let mask = u32::MAX >> (32 - bits);
    let fold = |number: u32| (number ^ number >> (bits / 2)) & mask;
    let number = fold((number ^ key) & mask);
    // Multiplying by an odd number leaves no two alike.
    let number = fold(number.wrapping_mul(0x85eb_ca6b) & mask);
    fold(number.wrapping_mul(0xc2b2_ae35) & mask)
}

impl Plane {
    /// Keeps a fragment that may be of a flow of ours until its packet is whole, and takes that onwards.
    pub(super) fn on_fragment<D: Desk>(
        &mut self,
        frame: &mut Frame<'_>,
        fragment: &Fragment,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        let Tuple { src, dst, .. } = fragment.parsed.tuple;
        // Most fragments do not tell which flow they are of: what such a server sends through us to a client would leave untranslated.
        let is_reply = self.services.keeps_clients(src) && !self.network.is_kernels(dst);
        // On its way to others' MACs nothing else is ours, as whole packets are not.
        let is_others = turn.whose == Whose::Others;
        // The same of what may open a flow from inside.
        let is_outbound = !is_others && self.snapshot.outbound.may_translate(src, dst);
        if !is_reply && !is_outbound && (is_others || !self.services.is_ours(dst) && !self.network.is_own(dst)) {
            return self.route_on(frame, &fragment.parsed, Known::Addresses, turn);
        }
        // Before it can join or spoil what the server has sent.
        if is_reply && !self.hops.returns_by(&self.network, src, frame.port) {
            return if is_others { Verdict::Pass } else { Verdict::Drop(DropReason::ReturnPort) };
        }
        // Who cuts a packet completes its checksum first.
        if frame.checksum == Checksum::Partial {
            return Verdict::Drop(DropReason::Fragment);
        }
        let link = self.network.segment(frame.port);
        let gathered = self.reassembly.gather(turn.now, (frame.port, link), frame.bytes, fragment);
        self.count_reassembly();
        let whole = match gathered {
            Ok(Gathered::Copy) => {
                self.counts.add(PlaneCounter::FragmentsRepeated, 1);
                return Verdict::Kept;
            }
            Ok(Gathered::Kept) => {
                self.counts.add(PlaneCounter::FragmentsKept, 1);
                return Verdict::Kept;
            }
            Ok(Gathered::Whole(whole)) => whole,
            Err(reason) => return Verdict::Drop(reason),
        };
        self.counts.add(PlaneCounter::FragmentsKept, 1);
        self.counts.add(PlaneCounter::PacketsReassembled, 1);
        let mut buffer = self.reassembly.lend_buffer();
        let verdict = match buffer.get_mut(..whole.octets) {
            Some(bytes) => self.on_whole(bytes, &whole, fragment, turn),
            None => Verdict::Drop(DropReason::FrameChanged),
        };
        self.reassembly.return_buffer(buffer);
        verdict
    }

    /// Decides about a packet that was put together, as about any other.
    fn on_whole<D: Desk>(
        &mut self,
        bytes: &mut [u8],
        whole: &Whole,
        fragment: &Fragment,
        turn: &mut Turn<'_, D>,
    ) -> Verdict {
        let key = &fragment.key;
        let pieces = Pieces { largest: whole.largest, id: key.id };
        let front = &mut [];
        let mut frame = Frame { bytes, front, port: whole.port, checksum: Checksum::Complete, segment_bytes: 0 };
        let mut packet = Parsed::default();
        turn.pieces = Some(pieces);
        let verdict = match parse_to(frame.bytes, &mut packet) {
            Ok(None) => {
                let hash = self.flows.hash(&packet.tuple);
                match turn.whose {
                    Whose::Ours => self.missed_unseen(&mut frame, &packet, hash, turn),
                    Whose::Others => self.take_out(&packet, hash, None, &mut frame, turn),
                }
            }
            // RFC 6980.
            Ok(Some(Packet::Nd(_))) => Verdict::Drop(DropReason::NdMalformed),
            Ok(Some(Packet::Fragment(_))) => Verdict::Drop(DropReason::Fragment),
            Ok(Some(other)) if turn.whose == Whose::Others => self.answer_on_arm(&mut frame, &other, turn),
            Ok(Some(other)) => self.answer(&mut frame, &other, turn),
            Err(reason) => Verdict::Drop(reason),
        };
        turn.pieces = None;
        match verdict {
            Verdict::Send(port) => {
                let mtu = self.network.port(port).map_or(0, |port| port.mtu);
                let id = self.identification(frame.bytes, key.src, Some(key.id));
                self.send_cut(frame.bytes, pieces.largest.min(mtu), id, Exit::Port(port), turn.out)
            }
            Verdict::HandOff(to) => {
                let exit = Exit::Worker(to, whole.port);
                self.send_cut(frame.bytes, pieces.largest, Some(key.id), exit, turn.out)
            }
            other => other,
        }
    }

    /// Gives a packet of IPv4 that was rewritten, and that a router on the way may cut, a number that fits where it comes from now.
    #[cold]
    pub(super) fn renumber(&mut self, frame: &mut Frame<'_>, packet: &Parsed) {
        if let Some(id) = self.identification(frame.bytes, packet.tuple.src, None) {
            set_identification(frame.bytes, &Layout::from(packet), id as u16);
        }
    }

    /// Sends a packet that was rewritten through `port`, in fragments that the link carries.
    #[cold]
    pub(super) fn cut(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Parsed,
        mtu: u32,
        port: PortId,
        out: &mut Outbox,
    ) -> Verdict {
        if !complete(frame, packet) {
            return Verdict::Drop(DropReason::FrameChanged);
        }
        let id = self.identification(frame.bytes, packet.tuple.src, None);
        self.send_cut(frame.bytes, mtu, id, Exit::Port(port), out)
    }

    /// Hands each fragment of a packet that was rewritten to `take`, whose station is not known yet. Whether all were taken.
    pub(super) fn cut_for_later(
        &mut self,
        frame: &mut Frame<'_>,
        packet: &Parsed,
        pieces: Option<Pieces>,
        mtu: u32,
        mut take: impl FnMut(&mut Plane, &[u8]) -> bool,
    ) -> bool {
        let id = self.identification(frame.bytes, packet.tuple.src, pieces.map(|pieces| pieces.id));
        let octets_max = pieces.map_or(mtu, |pieces| pieces.largest.min(mtu));
        let Some(cut) = Cut::new(frame.bytes, octets_max, id) else { return false };
        let fragments = cut.fragments() as u64;
        let mut all_taken = true;
        cut.each(|headers, data| {
            let mut held = [0; super::HELD_BYTES_MAX];
            let len = headers.len() + data.len();
            all_taken &= held.get_mut(..len).is_some_and(|held| {
                let (front, back) = held.split_at_mut(headers.len());
                front.copy_from_slice(headers);
                back.copy_from_slice(data);
                take(self, held)
            });
        });
        if all_taken {
            self.counts.add(PlaneCounter::PacketsCut, 1);
            self.counts.add(PlaneCounter::FragmentsMade, fragments);
        }
        all_taken
    }

    fn send_cut(&mut self, frame: &[u8], octets_max: u32, id: Option<u32>, exit: Exit, out: &mut Outbox) -> Verdict {
        let Some(cut) = Cut::new(frame, octets_max, id) else { return Verdict::Drop(DropReason::FrameChanged) };
        let fragments = cut.fragments();
        // A part of a packet is of no use.
        if !out.takes(fragments, cut.octets()) {
            return Verdict::Drop(DropReason::CutFull);
        }
        match exit {
            Exit::Port(port) => {
                cut.each(|headers, data| {
                    out.push_parts(port, headers, data);
                });
                self.counts.add(PlaneCounter::PacketsCut, 1);
                self.counts.add(PlaneCounter::FragmentsMade, fragments as u64);
            }
            Exit::Worker(to, port) => cut.each(|headers, data| {
                out.push_handed(to, port, headers, data);
            }),
        }
        Verdict::Kept
    }

    /// What the fragments of a packet from `src` are to share, which was rewritten since: a new one where it leaves from another address.
    fn identification(&mut self, frame: &[u8], src: Ip, own: Option<u32>) -> Option<u32> {
        let leaves_from = source_of(frame)?;
        if leaves_from == src { own } else { Some(self.identify(Family::of(leaves_from))) }
    }

    /// A new number for a packet of `family`.
    pub(super) fn identify(&mut self, family: Family) -> u32 {
        self.identifications.next(family, self.worker, self.snapshot.steering.workers())
    }

    /// Gives up packets that did not become whole in time, at most `budget` of them and only while `has_room`; tells the senders of those that were
    /// for us (RFC 1122 section 3.3.2, RFC 8200 section 4.5).
    pub(super) fn give_up_fragments(
        &mut self,
        now: Now,
        left: &mut usize,
        out: &mut Outbox,
        has_room: impl Fn(&Outbox) -> bool,
    ) {
        while *left > 0
            && has_room(out)
            && let Some(GivenUp { dst, first }) = self.reassembly.expire(now)
        {
            *left -= 1;
            let Some((port, octets)) = first.filter(|_| self.is_ours_alone(dst) && !self.network.is_kernels(dst))
            else {
                continue;
            };
            let buffer = self.reassembly.lend_buffer();
            if let Some(bytes) = buffer.get(..octets)
                && let Some(packet) = first_fragment(bytes)
            {
                self.complain_about(now, (bytes, port), &packet, Complaint::ReassemblyTimeExceeded, out);
            }
            self.reassembly.return_buffer(buffer);
        }
        self.count_reassembly();
    }

    fn count_reassembly(&mut self) {
        let counts = *self.reassembly.counts();
        self.counts.set(PlaneCounter::FragmentsGivenUp, counts.given_up);
        self.counts.set(PlaneCounter::FragmentsPushedOut, counts.pushed_out);
    }
}

/// Makes the checksum of a packet complete before it is cut; whether it now is.
pub(super) fn complete(frame: &mut Frame<'_>, packet: &Parsed) -> bool {
    frame.checksum != Checksum::Partial || complete_checksum(frame.bytes, &Layout::from(packet)).is_ok()
}

/// The parts of a first fragment.
fn first_fragment(frame: &[u8]) -> Option<Parsed> {
    let mut parsed = Parsed::default();
    match parse_to(frame, &mut parsed) {
        Ok(Some(Packet::Fragment(fragment))) => Some(fragment.parsed),
        _ => None,
    }
}

/// The source address of the IP packet in a frame.
fn source_of(frame: &[u8]) -> Option<Ip> {
    match frame.get(ETHERNET_LEN)? >> 4 {
        4 => Some(std::net::Ipv4Addr::from(*frame.get(ETHERNET_LEN + 12..)?.first_chunk::<4>()?).into()),
        _ => Some(Ip(*frame.get(ETHERNET_LEN + 8..)?.first_chunk()?)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_identification_comes_again_before_all_were_used() {
        let mut seen = HashSet::new();
        for worker in 0..3 {
            let mut identifications = Identifications::new([1, 2]);
            seen.extend((0..1 << 14).map(|_| identifications.next(Family::V4, WorkerId(worker), 3)));
        }
        assert_eq!(seen.len(), 3 << 14);
        assert!(seen.iter().all(|&id| id <= u32::from(u16::MAX)));
        let mut identifications = Identifications::new([1, 2]);
        let wide: HashSet<u32> = (0..1 << 16).map(|_| identifications.next(Family::V6, WorkerId(0), 1)).collect();
        assert_eq!(wide.len(), 1 << 16);
    }
}
