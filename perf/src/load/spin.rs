//! Waiting awake: a client that sleeps is woken by an interrupt for each answer, and in a closed loop that time would be the
//! subject's, which then is not busy and cannot be judged at its limit.

use std::hint::spin_loop;
use std::time::{Duration, Instant};

use towpath_sys::ring::Ring;

/// How long it waits awake before it sleeps: longer than a subject takes for one signature.
const SPIN_MAX: Duration = Duration::from_millis(2);

/// Looks between two looks at the clock.
const LOOKS: u32 = 16;

/// Looks whose time is taken to learn what one costs.
const LEARNED_LOOKS: u32 = 4096;

/// What has been spent by waiting awake. It is told in looks, not by the clock: interrupts that come meanwhile are work.
pub(super) struct Spin {
    looks: u64,
    seconds_per_look: f64,
}

impl Spin {
    /// Learns on a ring without news what a look costs.
    pub(super) fn learn(ring: &mut Ring) -> Spin {
        let shortest = (0..8).map(|_| {
            let start = Instant::now();
            for number in 0..LEARNED_LOOKS {
                look(ring);
                if number % LOOKS == 0 {
                    std::hint::black_box(start.elapsed());
                }
            }
            start.elapsed()
        });
        let seconds_per_look = shortest.min().unwrap_or_default().as_secs_f64() / f64::from(LEARNED_LOOKS);
        Spin { looks: 0, seconds_per_look }
    }

    /// Waits for news of the ring, but not long; says whether there are any.
    pub(super) fn until_news(&mut self, ring: &mut Ring, patience: Duration) -> bool {
        let start = Instant::now();
        let max = patience.min(SPIN_MAX);
        loop {
            for _ in 0..LOOKS {
                if look(ring) {
                    return true;
                }
                self.looks += 1;
            }
            if start.elapsed() >= max {
                return false;
            }
        }
    }

    /// Seconds spent so.
    pub(super) fn seconds(&self) -> f64 {
        self.looks as f64 * self.seconds_per_look
    }
}

fn look(ring: &mut Ring) -> bool {
    spin_loop();
    ring.has_news()
}
