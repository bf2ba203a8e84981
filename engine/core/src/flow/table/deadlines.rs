//! The cold half of the flow slots: free slots in a list, used ones in the lists of a hierarchical timer wheel (as in `wheel.rs`).
//!
//! The links lie in the slots, so nothing grows with the number of timers. A list is taken apart one slot at a time, on the higher levels
//! too: ten million flows of one timeout never come due as one long pause. Whoever pops a slot either frees it or links it to a later tick.

use std::ops::Range;

/// Milliseconds of one tick.
pub(super) const TICK_MS: u64 = 64;
const LEVELS: usize = 4;
const SLOTS: usize = 64;
/// The farthest tick ahead (about twelve days); what is due later is popped then, and linked anew. One turn of the top level less one slot: so
/// nothing is ever linked to the list of the top level that is being taken apart.
const SPAN_TICKS: u64 = (SLOTS as u64 - 1) * (SLOTS as u64).pow(LEVELS as u32 - 1) - 1;
/// No slot.
const NONE: u32 = u32::MAX;
/// In `previous` of the first slot of a list: the rest is the number of the list.
const FIRST: u32 = 1 << 31;

pub(super) struct Deadlines<D> {
    slots: Box<[Cold<D>]>,
    /// First slot of each list.
    lists: Box<[u32]>,
    /// Which lists of a level hold slots.
    occupied: [u64; LEVELS],
    /// The tick whose lists are being taken apart; all before it are empty.
    current: u64,
    /// First free slot.
    free: u32,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Cold<D> {
    /// The slot before it in its list, or [`FIRST`] and the list, or [`NONE`] outside the wheel.
    previous: u32,
    next: u32,
    /// The tick at which it is popped or before.
    due_tick: u32,
    detail: D,
}

impl<D: Copy + Default> Deadlines<D> {
    /// `count` free slots, below 2^30; the first to be taken is slot 0.
    pub(super) fn new(count: usize, now_tick: u32) -> Deadlines<D> {
        let mut slots = vec![Cold { previous: NONE, next: NONE, due_tick: 0, detail: D::default() }; count];
        for (slot, next) in slots.iter_mut().zip(1..count as u32) {
            slot.next = next;
        }
        Deadlines {
            slots: slots.into_boxed_slice(),
            lists: vec![NONE; LEVELS * SLOTS].into_boxed_slice(),
            occupied: [0; LEVELS],
            current: u64::from(now_tick),
            free: if count == 0 { NONE } else { 0 },
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of_val(&*self.slots) + size_of_val(&*self.lists)
    }

    /// Where the slots lie.
    pub(super) fn memory(&self) -> Range<*const u8> {
        let Range { start, end } = self.slots.as_ptr_range();
        start.cast()..end.cast()
    }

    /// The slot that [`take`](Self::take) would give.
    pub(super) fn next_free(&self) -> Option<u32> {
        Some(self.free).filter(|&slot| slot != NONE)
    }

    /// The line of a slot.
    #[inline]
    pub(super) fn line(&self, slot: usize) -> *const u8 {
        std::ptr::from_ref(&self.slots[slot]).cast()
    }

    /// Takes the next free slot and links it to `due_tick`.
    pub(super) fn take(&mut self, due_tick: u32, detail: D) -> Option<u32> {
        let slot = self.next_free()?;
        let cold = &mut self.slots[slot as usize];
        cold.detail = detail;
        self.free = cold.next;
        self.link(slot, due_tick);
        Some(slot)
    }

    /// Unlinks a used slot. It is free again, or never if it is to be retired.
    pub(super) fn give_back(&mut self, slot: u32, retire: bool) {
        self.unlink(slot);
        if !retire {
            self.slots[slot as usize].next = self.free;
            self.free = slot;
        }
    }

    /// Reads a word of a slot, so that its line is on the way.
    #[inline]
    pub(super) fn touch(&self, slot: u32) -> u32 {
        self.slots[slot as usize].next
    }

    /// Reads a word of each neighbour of a slot in its list, likewise.
    #[inline]
    pub(super) fn touch_neighbours(&self, slot: u32) -> u32 {
        let Cold { previous, next, .. } = self.slots[slot as usize];
        // Numbers of lists, and none at all, are beyond all slots.
        [previous, next].into_iter().filter_map(|slot| self.slots.get(slot as usize)).fold(0, |w, cold| w ^ cold.next)
    }

    /// Whether a used slot is in a list.
    #[inline]
    pub(super) fn is_linked(&self, slot: u32) -> bool {
        self.slots[slot as usize].previous != NONE
    }

    /// The tick that the wheel is at.
    pub(super) fn current_tick(&self) -> u64 {
        self.current
    }

    pub(super) fn detail(&self, slot: u32) -> &D {
        &self.slots[slot as usize].detail
    }

    pub(super) fn detail_mut(&mut self, slot: u32) -> &mut D {
        &mut self.slots[slot as usize].detail
    }

    /// Sees to it that a used slot is popped at `due_tick` at the latest.
    pub(super) fn hasten(&mut self, slot: u32, due_tick: u32) {
        if due_tick < self.slots[slot as usize].due_tick {
            self.unlink(slot);
            self.link(slot, due_tick);
        }
    }

    /// Unlinks a slot whose tick has come, or that has to be linked more exactly. Each costs one of `budget`. `None`: nothing is left up to
    /// `now_tick`, or the budget is used up.
    pub(super) fn pop(&mut self, now_tick: u32, budget: &mut usize) -> Option<u32> {
        let target = u64::from(now_tick);
        loop {
            if let Some(slot) = self.first_at_current() {
                *budget = budget.checked_sub(1)?;
                self.unlink(slot);
                return Some(slot);
            }
            if self.current >= target {
                return None;
            }
            let next = self.next_tick().unwrap_or(target);
            self.current = next.clamp(self.current + 1, target);
        }
    }

    /// A tick at or before which nothing is due; `None` when no slot is linked.
    pub(super) fn next_tick(&self) -> Option<u64> {
        (0..LEVELS).filter_map(|level| self.next_occupied(level)).min()
    }

    /// Links a slot to the list of its tick; one that has passed counts as the current one.
    pub(super) fn link(&mut self, slot: u32, due_tick: u32) {
        let at = u64::from(due_tick).clamp(self.current, self.current + SPAN_TICKS);
        // The highest digit in which `at` differs from the current tick names the level; a carry beyond the top digit stays on top.
        let differs = (at ^ self.current) | 1;
        let level = (differs.ilog2() as usize / 6).min(LEVELS - 1);
        let list = level * SLOTS + digit(level, at);
        let next = self.lists[list];
        if next != NONE {
            self.slots[next as usize].previous = slot;
        }
        let cold = &mut self.slots[slot as usize];
        cold.previous = FIRST | list as u32;
        cold.next = next;
        cold.due_tick = due_tick;
        self.lists[list] = slot;
        self.occupied[level] |= 1 << (list % SLOTS);
    }

    fn unlink(&mut self, slot: u32) {
        let cold = &mut self.slots[slot as usize];
        let (previous, next) = (cold.previous, cold.next);
        cold.previous = NONE;
        cold.next = NONE;
        if previous == NONE {
            return;
        }
        if next != NONE {
            self.slots[next as usize].previous = previous;
        }
        if previous & FIRST == 0 {
            self.slots[previous as usize].next = next;
            return;
        }
        let list = (previous & !FIRST) as usize;
        self.lists[list] = next;
        if next == NONE {
            self.occupied[list / SLOTS] &= !(1 << (list % SLOTS));
        }
    }

    /// The first slot in a list that the current tick has entered.
    fn first_at_current(&self) -> Option<u32> {
        for level in (0..LEVELS).rev() {
            if self.current.is_multiple_of(1 << (6 * level)) {
                let first = self.lists[level * SLOTS + digit(level, self.current)];
                if first != NONE {
                    return Some(first);
                }
            }
        }
        None
    }

    /// The first tick at which an occupied list of `level` is entered.
    fn next_occupied(&self, level: usize) -> Option<u64> {
        let occupied = self.occupied[level];
        if occupied == 0 {
            return None;
        }
        let here = digit(level, self.current);
        // A list of a higher level was taken apart when it was entered; at that very tick it may not be finished.
        let entering = self.current.is_multiple_of(1 << (6 * level));
        let ahead = if entering { here } else { here + 1 };
        let turned = occupied.rotate_right((ahead % SLOTS) as u32);
        let distance = u64::from(turned.trailing_zeros()) + (ahead - here) as u64;
        Some(((self.current >> (6 * level)) + distance) << (6 * level))
    }
}

/// The digit of `tick` that chooses among the lists of `level`.
fn digit(level: usize, tick: u64) -> usize {
    (tick >> (6 * level)) as usize % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    /// Pops and links anew what is popped early, as the table does.
    fn fire(deadlines: &mut Deadlines<()>, model: &mut [Option<u32>], now: u32, budget: &mut usize) -> Option<u32> {
        while let Some(slot) = deadlines.pop(now, budget) {
            match model[slot as usize] {
                Some(due) if due > now => deadlines.link(slot, due),
                _ => return Some(slot),
            }
        }
        None
    }

    #[test]
    fn it_agrees_with_a_plain_list_over_random_histories() {
        for seed in 1..=40 {
            let mut random = SplitMix64::new(seed);
            let mut now = random.below(100_000_000) as u32;
            let mut deadlines: Deadlines<()> = Deadlines::new(50, now);
            let mut model: Vec<Option<u32>> = vec![None; 50];
            for _ in 0..800 {
                let ahead = [3, 100, 10_000, 1_000_000, 40_000_000][random.below(5) as usize];
                let due = now + random.below(ahead) as u32;
                let slot = random.below(50) as u32;
                match (random.below(4), model[slot as usize]) {
                    (0, _) => {
                        now = due;
                        // Small budgets first: whatever is left over stays in order.
                        let mut budget = random.below(4) as usize;
                        while budget < usize::MAX / 2 {
                            while let Some(slot) = fire(&mut deadlines, &mut model, now, &mut budget) {
                                let due = model[slot as usize].take().expect("only used slots are popped");
                                assert!(due <= now, "seed {seed}: early");
                                deadlines.give_back(slot, false);
                            }
                            budget = if budget == 0 && random.below(3) > 0 { 2 } else { usize::MAX };
                        }
                        while let Some(slot) = fire(&mut deadlines, &mut model, now, &mut budget) {
                            model[slot as usize] = None;
                            deadlines.give_back(slot, false);
                        }
                        assert!(model.iter().flatten().all(|&due| due > now), "seed {seed}: late");
                    }
                    (1, Some(_)) => {
                        model[slot as usize] = None;
                        deadlines.give_back(slot, false);
                    }
                    (2, Some(old)) => {
                        // Sooner is linked at once, later is found out when it is popped.
                        model[slot as usize] = Some(due);
                        if due < old {
                            deadlines.hasten(slot, due);
                        }
                    }
                    _ => match deadlines.take(due, ()) {
                        Some(slot) => assert_eq!(model[slot as usize].replace(due), None, "seed {seed}: taken twice"),
                        None => assert!(model.iter().all(Option::is_some)),
                    },
                }
                match deadlines.next_tick() {
                    Some(next) => {
                        let soonest = model.iter().flatten().min().expect("something is linked");
                        assert!(
                            next <= u64::from(*soonest).max(u64::from(now)),
                            "seed {seed}: would sleep past a deadline"
                        );
                    }
                    None => assert!(model.iter().all(Option::is_none)),
                }
            }
        }
    }

    #[test]
    fn a_list_of_a_higher_level_is_taken_apart_within_the_budget() {
        let mut deadlines: Deadlines<()> = Deadlines::new(1_000, 0);
        for _ in 0..1_000 {
            deadlines.take(5_000, ());
        }
        let mut popped = 0;
        for _ in 0..100 {
            let mut budget = 16;
            while let Some(slot) = deadlines.pop(4_096, &mut budget) {
                deadlines.link(slot, 5_000);
                popped += 1;
            }
            assert!(budget == 0 || popped == 1_000);
        }
        assert_eq!(popped, 1_000, "each once");
    }
}
