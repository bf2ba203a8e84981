//! How often something may be done, whoever asks for it.

use crate::Now;

/// A token bucket that holds what one second may use.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    per_second: u32,
    /// Thousandths of a use.
    left: u64,
    filled: Now,
}

impl Budget {
    /// Uses per second; as many at once after a second without.
    pub(super) fn new(per_second: u32) -> Budget {
        Budget { per_second, left: u64::from(per_second) * 1_000, filled: Now::default() }
    }

    /// Takes one use, if one is left.
    pub(super) fn take(&mut self, now: Now) -> bool {
        let gained = now.ms_since(self.filled).saturating_mul(self.per_second.into());
        self.left = self.left.saturating_add(gained).min(u64::from(self.per_second) * 1_000);
        self.filled = self.filled.max(now);
        match self.left.checked_sub(1_000) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_as_many_uses_as_were_given() {
        let mut budget = Budget::new(100);
        let mut uses = |now| (0..1_000).filter(|_| budget.take(now)).count();
        assert_eq!(uses(Now(5)), 100);
        assert_eq!(uses(Now(5)), 0);
        assert_eq!(uses(Now(14)), 0);
        assert_eq!(uses(Now(15)), 1);
        assert_eq!(uses(Now(515)), 50);
        assert_eq!(uses(Now(400)), 0);
        assert_eq!(uses(Now(90_000)), 100);
        assert!(!Budget::new(0).take(Now(7)));
    }
}
