//! Time as an argument: milliseconds since the process started.

use std::ops::{Add, Sub};

/// A point in time, in milliseconds since an origin that the caller chose. Monotonic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Now(pub u64);

impl Now {
    /// Milliseconds from `earlier` to here; 0 when `earlier` is later.
    pub fn ms_since(self, earlier: Now) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for Now {
    type Output = Now;

    /// The time `ms` milliseconds later; stays at the end of time rather than wrapping.
    fn add(self, ms: u64) -> Now {
        Now(self.0.saturating_add(ms))
    }
}

impl Sub<u64> for Now {
    type Output = Now;

    /// The time `ms` milliseconds earlier; stays at the origin rather than wrapping.
    fn sub(self, ms: u64) -> Now {
        Now(self.0.saturating_sub(ms))
    }
}
