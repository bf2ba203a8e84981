//! When a worker waits a moment for more: under load, one sleep and one wake-up then serve many events instead of few.
//!
//! A wait for a batch pays only while the batch fills. With few connections it never does, and each of them would wait for
//! nothing; so a worker tries it only when events come fast enough, and goes back when they come more slowly for it.

use crate::time::Now;

/// Time over which events are counted.
const WINDOW_MS: u64 = 4;
/// Events per millisecond from which on a batch is tried.
const BUSY_PER_MS: u64 = 160;
/// Least events a breath must bring on average for batches to go on.
const FILLED_MIN: u64 = 8;
/// First and longest pause after batches that did not pay.
const PAUSE_MIN_MS: u64 = 16;
const PAUSE_MAX_MS: u64 = 4096;

/// Decides breath by breath whether to gather.
pub struct Gather {
    window: Now,
    events: u64,
    breaths: u64,
    /// Events per millisecond before gathering began; `None` while it is off.
    before: Option<u64>,
    resume: Now,
    pause_ms: u64,
}

impl Gather {
    /// How many events a gathering wait is for.
    pub const WANT: u32 = 32;

    /// Off at first.
    pub fn new(now: Now) -> Gather {
        Gather { window: now, events: 0, breaths: 0, before: None, resume: now, pause_ms: PAUSE_MIN_MS }
    }

    /// A breath brought so many events; returns whether the wait after it should gather.
    pub fn breath(&mut self, events: u32, now: Now) -> bool {
        self.events += u64::from(events);
        self.breaths += 1;
        let elapsed = now.ms_since(self.window);
        if elapsed >= WINDOW_MS {
            self.judge(self.events / elapsed, self.events / self.breaths, now);
            (self.window, self.events, self.breaths) = (now, 0, 0);
        }
        self.before.is_some()
    }

    fn judge(&mut self, per_ms: u64, per_breath: u64, now: Now) {
        match self.before {
            None if per_ms >= BUSY_PER_MS && now >= self.resume => self.before = Some(per_ms),
            None => {}
            // Two windows differ by a tenth anyway; more is the price of waiting for connections that wait for us.
            Some(before) if per_breath < FILLED_MIN || per_ms * 10 < before * 9 => {
                self.before = None;
                self.resume = now + self.pause_ms;
                self.pause_ms = (self.pause_ms * 2).min(PAUSE_MAX_MS);
            }
            Some(_) => self.pause_ms = PAUSE_MIN_MS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets `ms` pass in which `load` says, for gathering off or on, how many events come in a millisecond and how many of them a
    /// breath brings; counts the breaths that gather.
    fn live(gather: &mut Gather, from: u64, ms: u64, load: impl Fn(bool) -> (u32, u32)) -> u64 {
        let mut gathered = 0;
        let mut on = gather.before.is_some();
        for now in from..from + ms {
            let mut passed = 0.0;
            while passed < 1.0 {
                let (per_ms, per_breath) = load(on);
                on = gather.breath(per_breath, Now(now));
                gathered += u64::from(on);
                passed += if per_ms == 0 { 1.0 } else { f64::from(per_breath) / f64::from(per_ms) };
            }
        }
        gathered
    }

    /// Events that do not depend on us.
    fn busy(gathering: bool) -> (u32, u32) {
        (400, if gathering { 20 } else { 2 })
    }

    #[test]
    fn a_worker_with_little_to_do_never_waits_for_more() {
        for load in [(0, 0), (1, 1), (40, 1), (150, 3), (150, 150)] {
            let mut gather = Gather::new(Now(0));
            assert_eq!(live(&mut gather, 1, 1_000, |_| load), 0, "{load:?}");
        }
    }

    #[test]
    fn under_load_that_fills_batches_it_keeps_gathering() {
        let mut gather = Gather::new(Now(0));
        let gathered = live(&mut gather, 1, 1_000, busy);
        assert!(gathered > 990 * 20, "{gathered} breaths of about 20,000");
    }

    #[test]
    fn connections_that_wait_for_us_end_it_and_the_tries_become_rare() {
        // Four connections that are answered at once bring 200 events a millisecond, and 40 when each batch waits its time out.
        let mut gather = Gather::new(Now(0));
        let gathered = live(&mut gather, 1, 60_000, |on| if on { (40, 4) } else { (200, 3) });
        assert!(gathered > 0, "it is tried");
        assert!(gathered < 60_000 * 20 / 100, "{gathered} breaths waited in vain");
    }

    #[test]
    fn after_a_quiet_time_it_is_tried_again_soon() {
        let mut gather = Gather::new(Now(0));
        live(&mut gather, 1, 100, busy);
        live(&mut gather, 101, 100, |_| (10, 1));
        let gathered = live(&mut gather, 201, 100, busy);
        assert!(gathered > 60 * 20, "{gathered}");
    }
}
