//! What happens when a worker's thread ends, wanted or not.

use std::sync::Arc;
use std::{process, thread};

use towpath_core::WorkerId;

use super::Shared;

/// Held by a worker's thread for as long as it runs.
///
/// Dropped in a panic it aborts the process at once (design.md 10.11): half of the clients served by a process that looks alive
/// is worse than a restart. Dropped otherwise it reports the end.
#[must_use = "the guard protects until it is dropped"]
pub struct WorkerGuard {
    shared: Arc<Shared>,
    worker: WorkerId,
}

/// The first thing that a worker's thread does, before it builds anything that could panic.
pub fn worker_guard(shared: Arc<Shared>, worker: WorkerId) -> WorkerGuard {
    WorkerGuard { shared, worker }
}

impl Drop for WorkerGuard {
    fn drop(&mut self) {
        if thread::panicking() {
            // The panic's message and place have been printed by the hook already.
            eprintln!(
                "towpath: worker {} panicked: aborting, so that the supervisor restarts the process",
                self.worker
            );
            process::abort();
        }
        self.shared.report_ended(self.worker);
    }
}
