//! The lookup of a packet of IPv4 in steps that a batch goes through together, and what such a packet finds at the end.

use super::index::{self, Likely};
use super::{Direction, FlowTable, Hot, SLOT, TimeoutClass, V4, direction_of, tick};
use crate::packet::TupleV4;
use crate::time::Now;

/// How far the lookup of a tuple of IPv4 has come: what one step of a batch leaves to the next.
#[derive(Clone, Copy, Default)]
pub struct Trace {
    place: index::Place,
    /// The entry of the index that is nearly always the right one.
    entry: u32,
}

impl Trace {
    /// Whether a flow may be at the end of it.
    #[inline]
    pub fn leads_on(&self) -> bool {
        self.entry != Likely::NONE.entry
    }

    /// The place of the flow that it leads to, as [`FlowTable::at`] takes it.
    #[inline]
    pub fn slot(&self) -> usize {
        (self.entry & SLOT) as usize
    }
}

/// A flow of IPv4 that a packet of it has met.
pub struct Met<'a, S> {
    hot: &'a mut Hot<S>,
    direction: Direction,
}

/// When flows are seen: a time as the table keeps it, worked out once for many of them.
#[derive(Clone, Copy, Debug)]
pub struct SeenAt(u32);

impl SeenAt {
    /// At this time. Not inlined, as it would be worked out for each of them then.
    #[inline(never)]
    pub fn at(now: Now) -> SeenAt {
        SeenAt(tick(now))
    }
}

impl<S: Copy + Default, D: Copy + Default> FlowTable<S, D> {
    /// Begins to look for the flow of a packet of IPv4 with this tuple and protocol. `prefetch` is told which line the next step reads.
    #[inline(always)]
    pub fn trace(&self, tuple: TupleV4, protocol: u8, prefetch: impl Fn(*const u8)) -> Trace {
        let place = self.index.place(self.hasher.hash_v4(tuple, protocol));
        prefetch(self.index.line(place));
        Trace { place, entry: Likely::NONE.entry }
    }

    /// Goes on with [`LOOKUP_BATCH`](super::LOOKUP_BATCH) traces or fewer; returns whether each of them [leads on](Trace::leads_on). `prefetch` is told which lines the
    /// last step, [`meet`](Self::meet), reads.
    #[inline(always)]
    pub fn follow_traces(&self, traces: &mut [Trace], prefetch: impl Fn(*const u8)) -> bool {
        let line = |entry: u32| self.hot.get((entry & SLOT) as usize).map(|hot| std::ptr::from_ref(hot).cast());
        let (mut away, mut lead_on) = (0_u32, true);
        for (trace, at) in traces.iter_mut().zip(0..u32::BITS) {
            trace.entry = self.index.likely(trace.place).entry;
            match line(trace.entry) {
                Some(line) => prefetch(line),
                None => match self.index.line_away(trace.place) {
                    Some(line) => {
                        prefetch(line);
                        away |= 1 << at;
                    }
                    None => lead_on = false,
                },
            }
        }
        while away != 0 {
            if let Some(trace) = traces.get_mut(away.trailing_zeros() as usize) {
                trace.entry = self.index.likely_away(trace.place);
                match line(trace.entry) {
                    Some(line) => prefetch(line),
                    None => lead_on = false,
                }
            }
            away &= away - 1;
        }
        lead_on
    }

    /// The flow at the end of a trace, if it is that of packets with this tuple and protocol. `None` says little: it may be elsewhere.
    #[inline(always)]
    pub fn meet(&mut self, trace: &Trace, tuple: TupleV4, protocol: u8) -> Option<Met<'_, S>> {
        let direction = direction_of(trace.entry);
        let hot = self.hot.get_mut((trace.entry & SLOT) as usize)?;
        let is_it = hot.source == V4 && hot.protocol == protocol && hot.incoming_v4(direction) == tuple;
        is_it.then_some(Met { hot, direction })
    }
}

impl<S> Met<'_, S> {
    /// Which way the packet goes.
    #[inline]
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// The tuple that it leaves with.
    #[inline]
    pub fn outgoing(&self) -> TupleV4 {
        self.hot.incoming_v4(self.direction.opposite()).reversed()
    }

    /// The state of the flow.
    #[inline]
    pub fn state(&mut self) -> &mut S {
        &mut self.hot.state
    }

    /// A number that the caller keeps for packets that go this way; 0 at first.
    #[inline]
    pub fn hint(&mut self) -> &mut u16 {
        &mut self.hot.numbers[self.direction.index()]
    }

    /// The same for packets that go the other way.
    #[inline]
    pub fn hint_back(&self) -> u16 {
        self.hot.numbers[self.direction.opposite().index()]
    }

    /// The timeout class of the flow.
    #[inline]
    pub fn class(&self) -> TimeoutClass {
        TimeoutClass(self.hot.class)
    }

    /// Notes that the flow was seen.
    #[inline]
    pub fn touch(&mut self, seen: SeenAt) {
        self.hot.seen_tick = self.hot.seen_tick.max(seen.0);
    }
}
