//! Connections of TCP over IPv4 that are only routed, in the fast path: each direction by itself, as a *transit*.
//!
//! The router remembers nothing, so what it decides about a plain segment it decides about every other one of the same addresses and ports that comes in by the same
//! port, as long as snapshot and network stay. A transit is such a decision that the kernel repeats. So the two directions may be at two workers, nothing is lost with a transit
//! that is forgotten, and each of these forgets them: a newer snapshot, another way or address in the network, FIN and RST, silence. A segment that came in the ring all the
//! same goes on as ever.
//!
//! A direction is entered when it has sent a few segments, and transits take at most half of the room: who scans through the router takes nothing from services.

use super::super::forward::Onward;
use super::super::{Frame, Plane, PlaneCounter, PlaneCounts, PortId};
use super::{Carried, Fast, Holder, NOT_PLAIN, Place};
use crate::Now;
use crate::fast_path::{FastFull, FastId, FastTransit, REST_MS};
use crate::flow::{FlowPath, Returns};
use crate::packet::straight::read_straight;
use crate::packet::{PROTOCOL_TCP, Parsed, TcpFlags, TupleV4};

/// A transit that was not used for so long is taken out. It is soon entered again.
const IDLE_MS: u64 = 10_000;
/// Plain segments of a direction after which it is entered.
const SEGMENTS_MIN: u32 = 3;
/// Directions whose segments are counted, at most; those that share a place forget each other.
const RECENT: usize = 4_096;
/// In a place of [`Transits::recent`]: how many segments there were; above it, bits of the tuple's hash.
const COUNT_MASK: u32 = 7;
const _: () = assert!(SEGMENTS_MIN <= COUNT_MASK && RECENT.is_power_of_two());
/// Of the room of a worker's fast path, transits take one part in so many.
const ROOM_SHARE: usize = 2;

/// The transits of one plane.
pub(super) struct Transits {
    /// Segments of directions that are not entered: see [`COUNT_MASK`].
    recent: Box<[u32; RECENT]>,
    room: u32,
    open: u32,
    /// Until then none is entered: there was no room.
    full_until: Now,
    /// What the kernel has carried and was not counted.
    carried: Carried,
    entered: u64,
    refused: u64,
}

impl Transits {
    /// None, in a fast path with room for so many flows.
    pub(super) fn new(flows: usize, now: Now) -> Transits {
        let recent = Box::new([0; RECENT]);
        let room = (flows / ROOM_SHARE) as u32;
        Transits { recent, room, open: 0, full_until: now, carried: Carried::default(), entered: 0, refused: 0 }
    }

    /// How many are entered.
    pub(super) fn open(&self) -> u32 {
        self.open
    }

    /// Whether the kernel has carried something that was not counted.
    pub(super) fn has_news(&self) -> bool {
        self.carried.frames > 0
    }

    /// Counts what has come since the last time.
    pub(super) fn tell(&mut self, counts: &mut PlaneCounts) {
        let Carried { frames, octets, .. } = std::mem::take(&mut self.carried);
        counts.add_fast(frames);
        counts.add(PlaneCounter::FramesRouted, frames);
        counts.add(PlaneCounter::OctetsRouted, octets);
        counts.set(PlaneCounter::FastTransitsEntered, self.entered);
        counts.set(PlaneCounter::FastTransitsLeft, self.entered - u64::from(self.open));
        counts.set(PlaneCounter::FastTransitsRefused, self.refused);
    }

    /// A plain segment of a direction with this hash went on. Whether it was one of enough.
    fn is_due(&mut self, hash: u64) -> bool {
        let recent = &mut self.recent[(hash >> 32) as usize % RECENT];
        let tag = hash as u32 & !COUNT_MASK;
        let count = if *recent & !COUNT_MASK == tag { *recent & COUNT_MASK } else { 0 } + 1;
        let is_due = count >= SEGMENTS_MIN;
        *recent = tag | if is_due { 0 } else { count };
        is_due
    }
}

impl Fast {
    /// Counts what the kernel has carried of a transit, and takes it out if it is not to be carried any more.
    pub(super) fn visit_transit(&mut self, id: FastId) {
        let [used, _] = self.table.read(id).sides;
        self.count_transit(id, Carried::of(&used));
        if !self.table.is_live(id) || self.now.ms_since(used.used) >= IDLE_MS {
            self.remove_transit(id);
        }
    }

    fn count_transit(&mut self, id: FastId, carried: Carried) {
        let Some(place) = self.place(id) else { return };
        let counted = std::mem::replace(&mut place.counted[0], carried);
        self.transits.carried.frames += carried.frames.saturating_sub(counted.frames);
        self.transits.carried.octets += carried.octets.saturating_sub(counted.octets);
    }

    fn remove_transit(&mut self, id: FastId) {
        let [used, _] = self.table.remove(id, self.now).sides;
        self.count_transit(id, Carried::of(&used));
        self.transits.open -= 1;
        if let Some(place) = self.place(id) {
            place.holder = Holder::Nobody;
        }
    }

    /// Takes the transit of these addresses and ports out, if there is one.
    fn end_transit(&mut self, tuple: TupleV4) {
        if self.transits.open > 0
            && let Some(id) = self.table.find_transit(tuple)
        {
            self.remove_transit(id);
        }
    }
}

impl Plane {
    /// The addresses and ports of a frame to be routed that may be one of a transit. One that ends its connection ends the transit.
    pub(in super::super) fn transit_of(&mut self, frame: &Frame<'_>, packet: &Parsed) -> Option<TupleV4> {
        let fast = self.flows.fast.as_mut()?;
        if packet.tuple.protocol != PROTOCOL_TCP {
            return None;
        }
        let flags = packet.tcp.flags.0;
        if flags & (TcpFlags::FIN.0 | TcpFlags::RST.0) != 0
            && let Some(tuple) = TupleV4::of(&packet.tuple)
        {
            fast.end_transit(tuple);
        }
        match flags & NOT_PLAIN == TcpFlags::ACK.0 {
            true => read_straight(frame.bytes, self.hops.station(frame.port)),
            false => None,
        }
    }

    /// A plain segment that came in by `port` was routed `onward`: with enough of them, the kernel carries the rest.
    pub(in super::super) fn note_transit(&mut self, now: Now, tuple: TupleV4, port: PortId, onward: Onward) {
        let Some(fast) = &mut self.flows.fast else { return };
        let hash = fast.table.hash(tuple);
        if fast.transits.full_until > now || !fast.transits.is_due(hash) {
            return;
        }
        let hop = *self.hops.of(onward);
        // Stations behind a bridge may change arms.
        if hop.straight_max == 0 || [port, hop.port].iter().any(|&port| self.bridges.arm(port).is_some()) {
            return;
        }
        let ifindex = |port: PortId| self.network.port(port).map(|port| port.index).filter(|&index| index != 0);
        let (Some(in_ifindex), Some(out_ifindex)) = (ifindex(port), ifindex(hop.port)) else { return };
        if let Some(id) = fast.table.find_transit(tuple) {
            let is_here = fast.place(id).is_some_and(|place| place.arrivals[0] == port);
            // This one was received before it was entered, or does not fit the way ahead.
            if is_here && fast.table.is_live(id) {
                return;
            }
            fast.remove_transit(id);
        }
        let transit = FastTransit { tuple, in_ifindex, out_ifindex, macs: hop.macs, size_max: hop.straight_max };
        let entered = match fast.transits.open < fast.transits.room {
            true => fast.table.insert_transit(&transit, now),
            false => Err(FastFull::Entries),
        };
        match entered {
            Ok(id) => {
                if let Some(place) = fast.place(id) {
                    *place = Place { holder: Holder::Transit, arrivals: [port; 2], counted: [Carried::default(); 2] };
                }
                fast.entered_number(id, now);
                fast.transits.open += 1;
                fast.transits.entered += 1;
            }
            Err(full) => {
                fast.transits.refused += 1;
                if full == FastFull::Entries {
                    fast.transits.full_until = now + REST_MS;
                }
            }
        }
    }

    /// A flow with this path has opened: its answers are not routed as they are, whatever was there before; nor, of one that a host inside opens, what
    /// the host sends.
    #[inline]
    pub(in super::super) fn take_from_transits(&mut self, path: &FlowPath) {
        if let Some(fast) = &mut self.flows.fast
            && fast.transits.open > 0
            && path.returns == Returns::Here
            && path.client.protocol == PROTOCOL_TCP
        {
            let both = [path.client, path.server.reversed()];
            both.iter().filter_map(TupleV4::of).for_each(|tuple| fast.end_transit(tuple));
        }
    }

    /// Has the kernel carry no transit any more: whatever goes on is entered anew.
    pub(in super::super) fn forget_transits(&mut self) {
        if let Some(fast) = &mut self.flows.fast {
            fast.table.forget_transits();
        }
    }
}
