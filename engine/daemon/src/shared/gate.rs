//! Admission: a process-wide limit that is never exceeded, whichever worker asks.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crossbeam_utils::CachePadded;

/// A number of places, all alike. Whoever enters leaves again.
#[derive(Debug)]
pub struct Gate {
    max: AtomicU32,
    inside: CachePadded<AtomicU32>,
    refused: CachePadded<AtomicU64>,
}

impl Gate {
    /// A gate with `max` places; with 0 nobody enters.
    pub fn new(max: u32) -> Gate {
        Gate { max: AtomicU32::new(max), inside: CachePadded::default(), refused: CachePadded::default() }
    }

    /// Has so many places from now on. Where more are inside, nobody enters until they have left.
    pub(crate) fn resize(&self, max: u32) {
        self.max.store(max, Ordering::Release);
    }

    /// Takes a place; `false` (and counted) when all are taken.
    pub fn try_enter(&self) -> bool {
        let max = self.max();
        let entered = self
            .inside
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |inside| (inside < max).then(|| inside + 1))
            .is_ok();
        if !entered {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        entered
    }

    /// Gives a place back.
    pub fn leave(&self) {
        let before = self.inside.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before > 0, "a leave without its enter");
    }

    /// Places taken now.
    pub fn inside(&self) -> u32 {
        self.inside.load(Ordering::Acquire)
    }

    /// Places in all.
    pub fn max(&self) -> u32 {
        self.max.load(Ordering::Relaxed)
    }

    /// How often nobody could enter.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    #[test]
    fn a_full_gate_refuses_counts_it_and_opens_again() {
        let gate = Gate::new(1);
        assert!(gate.try_enter());
        assert!(!gate.try_enter());
        assert_eq!(gate.refused(), 1);
        gate.leave();
        assert!(gate.try_enter());
    }

    #[test]
    fn no_thread_ever_sees_more_inside_than_places() {
        let gate = Gate::new(3);
        let exceeded = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        if gate.try_enter() {
                            if gate.inside() > 3 {
                                exceeded.store(true, Ordering::Relaxed);
                            }
                            gate.leave();
                        }
                    }
                });
            }
        });
        assert!(!exceeded.load(Ordering::Relaxed));
        assert_eq!(gate.inside(), 0);
    }
}
