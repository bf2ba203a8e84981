//! How often a client may do what costs it little and us something.

use crate::Now;

/// What a client may do: so often at once, and so often a second for ever.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    pub(super) burst: u32,
    pub(super) per_second: u32,
}

/// How much of an allowance is used.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Meter {
    /// In thousandths of a time.
    used: u64,
    at: Now,
}

impl Meter {
    /// Counts one time; says whether it is still allowed.
    pub(super) fn count(&mut self, allowance: Allowance, now: Now) -> bool {
        let regained = now.ms_since(self.at).saturating_mul(u64::from(allowance.per_second));
        self.at = now;
        self.used = self.used.saturating_sub(regained) + 1000;
        self.used <= u64::from(allowance.burst) * 1000
    }

    /// Allows it so often more, as far as it was used.
    pub(super) fn pay_back(&mut self, times: u32) {
        self.used = self.used.saturating_sub(u64::from(times) * 1000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_and_then_what_time_brings() {
        let (mut meter, allowance, start) = (Meter::default(), Allowance { burst: 5, per_second: 2 }, Now(1_000_000));
        assert!((0..5).all(|_| meter.count(allowance, start)));
        assert!(!meter.count(allowance, start));
        assert!(!meter.count(allowance, start + 400), "the one too many counts as well");
        assert!(meter.count(allowance, start + 2_000));
        meter.pay_back(100);
        assert!((0..5).all(|_| meter.count(allowance, start + 2_000)));
        assert!(!meter.count(allowance, start + 2_000));
    }
}
