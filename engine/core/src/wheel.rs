//! Timers: a hierarchical wheel (Varghese and Lauck, 1987) over a fixed set of keys, one timer per key.
//!
//! Arming, re-arming and disarming take constant time and no memory. A timer fires at or up to one slot after its due time,
//! never before.

use crate::time::Now;

/// Milliseconds of one slot of the lowest level.
const TICK_MS: u64 = 4;
const LEVELS: usize = 5;
const SLOTS: usize = 64;
/// The farthest due time ahead; later ones are kept at this distance and placed anew when it comes (about 49 days).
const SPAN_TICKS: u64 = (SLOTS as u64).pow(LEVELS as u32) - 1;
/// "No key".
const NONE: u32 = u32::MAX;

/// One timer for each key from 0 to `keys` − 1.
pub struct TimerWheel {
    entries: Box<[Entry]>,
    /// First key in each slot.
    slots: Box<[u32]>,
    /// Which slots of a level hold timers.
    occupied: [u64; LEVELS],
    /// Ticks fully handled.
    current: u64,
    armed: usize,
}

#[derive(Clone, Copy)]
struct Entry {
    due_tick: u64,
    previous: u32,
    next: u32,
    slot: u16,
}

const IDLE: Entry = Entry { due_tick: 0, previous: NONE, next: NONE, slot: u16::MAX };

impl TimerWheel {
    /// A wheel for `keys` keys, none armed, whose time starts at `now`.
    pub fn new(keys: usize, now: Now) -> TimerWheel {
        TimerWheel {
            entries: vec![IDLE; keys].into_boxed_slice(),
            slots: vec![NONE; LEVELS * SLOTS].into_boxed_slice(),
            occupied: [0; LEVELS],
            current: now.0 / TICK_MS,
            armed: 0,
        }
    }

    /// Number of armed timers.
    pub fn armed(&self) -> usize {
        self.armed
    }

    /// Arms the timer of `key` for `due`, or moves it there.
    pub fn arm(&mut self, key: u32, due: Now) {
        self.disarm(key);
        self.place(key, due.0.div_ceil(TICK_MS));
        self.armed += 1;
    }

    /// Disarms the timer of `key`, if it is armed.
    pub fn disarm(&mut self, key: u32) {
        if self.entries[key as usize].slot != u16::MAX {
            self.unlink(key);
            self.armed -= 1;
        }
    }

    /// Fires up to `budget` timers that are due at `now`: they are disarmed and appended to `fired`. Returns whether all were.
    pub fn advance(&mut self, now: Now, budget: usize, fired: &mut Vec<u32>) -> bool {
        let target = now.0 / TICK_MS;
        let mut left = budget;
        loop {
            let slot = (self.current % SLOTS as u64) as usize;
            while let Some(key) = self.first_in(slot) {
                if left == 0 {
                    return false;
                }
                left -= 1;
                self.unlink(key);
                self.armed -= 1;
                fired.push(key);
            }
            if self.current >= target {
                return true;
            }
            self.step(target);
        }
    }

    /// A time at or before which nothing is due; `None` when no timer is armed.
    pub fn next_due(&self) -> Option<Now> {
        if self.armed == 0 {
            return None;
        }
        let mut soonest = u64::MAX;
        for level in 0..LEVELS {
            if let Some(tick) = self.next_occupied(level) {
                soonest = soonest.min(tick);
            }
        }
        Some(Now(soonest.saturating_mul(TICK_MS)))
    }

    /// Moves on by one tick, or over a stretch in which nothing can happen.
    fn step(&mut self, target: u64) {
        let next = match self.next_due() {
            Some(due) => (due.0 / TICK_MS).clamp(self.current + 1, target),
            None => target,
        };
        self.current = next;
        for level in (1..LEVELS).rev() {
            let width = (SLOTS as u64).pow(level as u32);
            if self.current.is_multiple_of(width) {
                self.cascade(level);
            }
        }
    }

    /// Places the timers of the slot that a higher level has just entered anew, one level lower or more.
    fn cascade(&mut self, level: usize) {
        let slot = level * SLOTS + self.slot_at(level, self.current);
        let mut key = self.slots[slot];
        self.slots[slot] = NONE;
        self.occupied[level] &= !(1 << (slot % SLOTS));
        while key != NONE {
            let Entry { next, due_tick, .. } = self.entries[key as usize];
            self.entries[key as usize] = IDLE;
            self.place(key, due_tick);
            key = next;
        }
    }

    fn place(&mut self, key: u32, due_tick: u64) {
        let distance = due_tick.saturating_sub(self.current);
        let at = self.current + distance.min(SPAN_TICKS);
        // The highest digit in which `at` differs from the current tick names the level.
        let differs = at ^ self.current;
        let level = (63 - (differs | 1).leading_zeros() as usize) / 6;
        // A carry into a digit beyond the top one still lands on the top level, which wraps round.
        let level = level.min(LEVELS - 1);
        let slot = level * SLOTS + self.slot_at(level, at);
        let first = self.slots[slot];
        if first != NONE {
            self.entries[first as usize].previous = key;
        }
        self.entries[key as usize] = Entry { due_tick, previous: NONE, next: first, slot: slot as u16 };
        self.slots[slot] = key;
        self.occupied[level] |= 1 << (slot % SLOTS);
    }

    fn unlink(&mut self, key: u32) {
        let Entry { previous, next, slot, .. } = self.entries[key as usize];
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous != NONE {
            self.entries[previous as usize].next = next;
        } else {
            let slot = usize::from(slot);
            self.slots[slot] = next;
            if next == NONE {
                self.occupied[slot / SLOTS] &= !(1 << (slot % SLOTS));
            }
        }
        self.entries[key as usize] = IDLE;
    }

    fn first_in(&self, slot: usize) -> Option<u32> {
        Some(self.slots[slot]).filter(|&key| key != NONE)
    }

    fn slot_at(&self, level: usize, tick: u64) -> usize {
        (tick >> (6 * level)) as usize % SLOTS
    }

    /// The first tick at which an occupied slot of `level` is entered.
    fn next_occupied(&self, level: usize) -> Option<u64> {
        let occupied = self.occupied[level];
        if occupied == 0 {
            return None;
        }
        let here = self.slot_at(level, self.current);
        // Level 0 may hold timers of this very tick; a slot of a higher level that we stand in was emptied on entry.
        let ahead = if level == 0 { here } else { here + 1 };
        let turned = occupied.rotate_right((ahead % SLOTS) as u32);
        let distance = u64::from(turned.trailing_zeros()) + (ahead - here) as u64;
        let width_bits = 6 * level as u32;
        Some(((self.current >> width_bits) + distance) << width_bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fire_all(wheel: &mut TimerWheel, now: Now) -> Vec<u32> {
        let mut fired = Vec::new();
        assert!(wheel.advance(now, usize::MAX, &mut fired), "an unlimited budget fires everything");
        fired
    }

    #[test]
    fn a_timer_fires_once_and_not_before_it_is_due() {
        let mut wheel = TimerWheel::new(4, Now(0));
        wheel.arm(2, Now(1_000));
        assert_eq!(fire_all(&mut wheel, Now(999)), []);
        assert_eq!(fire_all(&mut wheel, Now(1_000 + TICK_MS)), [2]);
        assert_eq!(fire_all(&mut wheel, Now(100_000)), []);
        assert_eq!(wheel.armed(), 0);
    }

    #[test]
    fn a_disarmed_timer_stays_silent_and_a_moved_one_fires_at_its_new_time() {
        let mut wheel = TimerWheel::new(4, Now(0));
        wheel.arm(0, Now(50));
        wheel.arm(1, Now(50));
        wheel.disarm(0);
        wheel.arm(1, Now(5_000));
        assert_eq!(fire_all(&mut wheel, Now(4_999)), []);
        assert_eq!(fire_all(&mut wheel, Now(5_004)), [1]);
    }

    #[test]
    fn a_budget_leaves_the_rest_for_the_next_turn() {
        let mut wheel = TimerWheel::new(10, Now(0));
        for key in 0..10 {
            wheel.arm(key, Now(8));
        }
        let mut fired = Vec::new();
        assert!(!wheel.advance(Now(100), 4, &mut fired));
        assert_eq!(fired.len(), 4);
        assert!(wheel.advance(Now(100), 100, &mut fired));
        assert_eq!(fired.len(), 10);
    }

    /// Random arming, moving, disarming and advancing against a plain list.
    #[test]
    fn the_wheel_agrees_with_a_plain_list_over_random_histories() {
        for seed in 1..=60_u64 {
            let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let mut draw = |below: u64| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % below
            };
            let mut now = Now(draw(10_000_000_000));
            let mut wheel = TimerWheel::new(50, now);
            let mut model: Vec<Option<Now>> = vec![None; 50];
            for _ in 0..800 {
                let key = draw(50) as u32;
                match draw(4) {
                    0 => {
                        wheel.disarm(key);
                        model[key as usize] = None;
                    }
                    1 => {
                        let range = [100, 10_000, 2_000_000, 90_000_000, 10_000_000_000][draw(5) as usize];
                        now = now + draw(range);
                        for key in fire_all(&mut wheel, now) {
                            let due = model[key as usize].take().expect("only armed timers fire");
                            assert!(due <= now, "seed {seed}: fired {} ms early", due.0 - now.0);
                        }
                        for (key, due) in model.iter().enumerate() {
                            let late = due.is_some_and(|due| due + TICK_MS <= now);
                            assert!(!late, "seed {seed}: timer {key} is late");
                        }
                    }
                    _ => {
                        let range = [10, 1_000, 100_000, 10_000_000, 20_000_000_000][draw(5) as usize];
                        let due = now + draw(range);
                        wheel.arm(key, due);
                        model[key as usize] = Some(due);
                    }
                }
                if let Some(next) = wheel.next_due() {
                    let soonest = model.iter().flatten().min().expect("something is armed");
                    assert!(next.0 <= soonest.0 + TICK_MS, "seed {seed}: would sleep past a timer");
                }
                assert_eq!(wheel.armed(), model.iter().flatten().count());
            }
        }
    }
}
