//! Waiting for a fact: looked at again and again until it holds, or until the test has waited long enough to fail.

use std::thread;
use std::time::{Duration, Instant};

/// How long a test waits for what must happen. Long: the machine may be busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Waits until `fact` gives a value and returns it.
///
/// # Panics
///
/// When it has given none for [`PATIENCE`]; `what` says what was waited for.
#[track_caller]
pub fn eventually<T>(what: &str, mut fact: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = fact() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for: {what}");
        thread::sleep(LOOK_EVERY);
    }
}
