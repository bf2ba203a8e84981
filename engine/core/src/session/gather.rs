//! Which pumped paths gather: they are woken for half a megabyte instead of for every segment, and so sleep and wake a worker several
//! times less.
//!
//! It has a price: what is less than that waits for [`GATHER_MS`]. So only a path that would gather twice as much in that time
//! does it, and who does not get its fill in time stops and needs to move more each time before it gathers again. And a leg in front of it must
//! take as much at once, so there are few of them.

use super::path::Path;
use crate::time::Now;

/// What a path gathers.
pub const GATHER_BYTES: u32 = 512 * 1024;
/// How long it may take; a clock of whole milliseconds may take one off.
const GATHER_MS: u64 = 4;
/// How long a gathering path may wait for a leg that takes nothing.
const BLOCKED_MS: u64 = 64;
/// Paths of one worker that may gather at a time.
const GATHERS_MAX: usize = 8;
/// Time over which the paths that are pumped are counted: among more than may gather, none does, because what all of them
/// would have waiting fills the memory that TCP may have.
const COUNTED_MS: u64 = 1_000;
/// A path's speed is measured over so many bytes, and twice as many after each time that it did not get its fill, …
const MEASURED_BYTES: u64 = 2 << 20;
/// … so many times at most, …
const DOUBLINGS_MAX: u32 = 7;
/// … until so many bytes were gathered without a failure.
const FORGIVEN_BYTES: u64 = 64 << 20;

/// The gathering paths of one worker; `H` names a path.
pub struct Gathers<H> {
    slots: [Option<Gathering<H>>; GATHERS_MAX],
    count: usize,
    period: u64,
    /// Paths pumped in this period and in the one before.
    pumped: [usize; 2],
}

#[derive(Clone, Copy)]
struct Gathering<H> {
    holder: H,
    due: Now,
}

impl<H: Copy> Gathers<H> {
    /// Nobody gathers.
    pub fn none() -> Gathers<H> {
        Gathers { slots: [None; GATHERS_MAX], count: 0, period: 0, pumped: [0; 2] }
    }

    /// A path is pumped; `last` is its own memory of when it was.
    pub fn note_pump(&mut self, last: &mut u64, now: Now) {
        let period = now.0 / COUNTED_MS + 1;
        if period != self.period {
            let before = if period == self.period + 1 { self.pumped[0] } else { 0 };
            (self.period, self.pumped) = (period, [0, before]);
        }
        if std::mem::replace(last, period) != period {
            self.pumped[0] += 1;
        }
    }

    /// Whether so many paths are pumped that none may gather.
    pub fn is_crowded(&self) -> bool {
        self.pumped.iter().any(|pumped| *pumped > GATHERS_MAX)
    }

    /// Lets a path gather from now on, under this number; `None` when too many do.
    pub fn claim(&mut self, holder: H, now: Now) -> Option<u8> {
        let free = self.slots.iter().position(Option::is_none)?;
        self.slots[free] = Some(Gathering { holder, due: now + GATHER_MS });
        self.count += 1;
        Some(free as u8)
    }

    /// A path had its fill and gathers again.
    pub fn renew(&mut self, number: u8, now: Now) {
        if let Some(Some(gathering)) = self.slots.get_mut(usize::from(number)) {
            gathering.due = now + GATHER_MS;
        }
    }

    /// A path had its fill and waits until it can pass it on.
    pub fn block(&mut self, number: u8, now: Now) {
        if let Some(Some(gathering)) = self.slots.get_mut(usize::from(number)) {
            gathering.due = now + BLOCKED_MS;
        }
    }

    /// A path gathers no more.
    ///
    /// # Panics
    /// If it did not: released twice, another path would lose its number.
    pub fn release(&mut self, number: u8) {
        assert!(self.slots[usize::from(number)].take().is_some(), "nobody gathers under number {number}");
        self.count -= 1;
    }

    /// When the first of them is to have its fill.
    pub fn next_due(&self) -> Option<Now> {
        if self.count == 0 {
            return None;
        }
        self.slots.iter().flatten().map(|gathering| gathering.due).min()
    }

    /// One that did not get its fill in time; it is to be released.
    pub fn overdue(&self, now: Now) -> Option<H> {
        if self.count == 0 {
            return None;
        }
        self.slots.iter().flatten().find(|gathering| gathering.due <= now).map(|gathering| gathering.holder)
    }
}

/// How fast a path is, and whether it gathers.
#[derive(Default)]
pub(super) struct Pace {
    bytes: u64,
    since: Now,
    failures: u32,
    pub(super) gathers: bool,
}

impl Path {
    /// Measures the pump: a path that would gather twice its fill in time may do so.
    pub(super) fn note_pace(&mut self, bytes: u64, now: Now) {
        let pace = &mut self.pace;
        pace.bytes += bytes;
        if pace.gathers {
            if pace.bytes >= FORGIVEN_BYTES {
                pace.failures = 0;
            }
            return;
        }
        if pace.bytes < MEASURED_BYTES << pace.failures.min(DOUBLINGS_MAX) {
            return;
        }
        pace.gathers = now.ms_since(pace.since) * 2 * u64::from(GATHER_BYTES) <= pace.bytes * GATHER_MS;
        (pace.bytes, pace.since) = (0, now);
    }

    /// It did not get its fill in time.
    pub(super) fn stop_gathering(&mut self, now: Now) {
        self.pace = Pace { bytes: 0, since: now, failures: self.pace.failures.saturating_add(1), gathers: false };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Moves pieces of 64 KiB, so many a millisecond, until the path gathers; the bytes that took.
    fn bytes_until_gathering(path: &mut Path, from: Now, pieces_per_ms: u64) -> Option<u64> {
        (1..1 << 14).map(|piece| piece << 16).find(|bytes| {
            path.note_pace(1 << 16, from + (bytes >> 16) / pieces_per_ms);
            path.pace.gathers
        })
    }

    #[test]
    fn a_fast_path_gathers_and_a_slow_one_never_does() {
        // From 256 KiB a millisecond on.
        assert!(bytes_until_gathering(&mut Path::default(), Now(1000), 5).is_some());
        assert_eq!(bytes_until_gathering(&mut Path::default(), Now(1000), 3), None);
    }

    #[test]
    fn who_fails_has_to_move_twice_as_much_each_time() {
        let mut path = Path::default();
        path.stop_gathering(Now(0));
        let needed: Vec<u64> = (0..10)
            .map(|_| {
                let needed = bytes_until_gathering(&mut path, Now(0), 1000).expect("fast");
                path.stop_gathering(Now(0));
                needed
            })
            .collect();
        assert!(needed[0] <= 2 * MEASURED_BYTES);
        assert!(needed.windows(2).all(|pair| pair[1] == pair[0] * 2 || pair[1] == MEASURED_BYTES << DOUBLINGS_MAX));
    }

    #[test]
    fn failures_are_forgiven_to_who_gathers_for_long() {
        let mut path = Path::default();
        for _ in 0..DOUBLINGS_MAX {
            path.stop_gathering(Now(0));
        }
        bytes_until_gathering(&mut path, Now(0), 1000).expect("fast");
        path.note_pace(FORGIVEN_BYTES, Now(1));
        path.stop_gathering(Now(1));
        assert_eq!(bytes_until_gathering(&mut path, Now(1), 1000), Some(2 * MEASURED_BYTES));
    }

    #[test]
    fn nobody_gathers_in_a_crowd() {
        let mut gathers: Gathers<u32> = Gathers::none();
        let mut paths = [0; GATHERS_MAX + 1];
        let mut pump = |gathers: &mut Gathers<u32>, count: usize, ms| {
            paths[..count].iter_mut().for_each(|last| gathers.note_pump(last, Now(ms)));
            gathers.is_crowded()
        };
        assert!(!pump(&mut gathers, GATHERS_MAX, 0));
        // The same paths again.
        assert!(!pump(&mut gathers, GATHERS_MAX, COUNTED_MS - 1));
        assert!(pump(&mut gathers, GATHERS_MAX + 1, COUNTED_MS));
        assert!(pump(&mut gathers, 1, 2 * COUNTED_MS));
        assert!(!pump(&mut gathers, 1, 3 * COUNTED_MS));
    }

    #[test]
    fn few_gather_at_a_time_and_who_gets_its_fill_is_not_overdue() {
        let mut gathers = Gathers::none();
        let numbers: Vec<u8> = (0..GATHERS_MAX).filter_map(|holder| gathers.claim(holder, Now(10))).collect();
        assert_eq!((numbers.len(), gathers.claim(99, Now(10))), (GATHERS_MAX, None));
        gathers.renew(numbers[0], Now(12));
        assert_eq!((gathers.next_due(), gathers.overdue(Now(13))), (Some(Now(14)), None));
        for &number in &numbers[1..] {
            assert_eq!(gathers.overdue(Now(14)), Some(usize::from(number)));
            gathers.release(number);
        }
        assert_eq!((gathers.overdue(Now(14)), gathers.next_due()), (None, Some(Now(16))));
        gathers.block(numbers[0], Now(15));
        assert_eq!(gathers.next_due(), Some(Now(15 + BLOCKED_MS)));
        gathers.release(numbers[0]);
        assert_eq!((gathers.next_due(), gathers.overdue(Now(99))), (None, None));
    }
}
