//! When a flow was last seen, for who takes it to another table or asks for it.

use super::deadlines::TICK_MS;
use super::{FlowId, FlowTable};
use crate::time::Now;

impl<S: Copy + Default, D: Copy + Default> FlowTable<S, D> {
    /// When the timeout of a flow that is there began, to within a tick; inserted with it, its timeout goes on.
    pub fn seen(&self, id: FlowId) -> Option<Now> {
        self.hot(id).map(|hot| Now(u64::from(hot.seen_tick) * TICK_MS))
    }

    /// When a flow that is there ends if nobody sees another packet of it, to within a tick.
    pub fn due(&self, id: FlowId) -> Option<Now> {
        self.hot(id).map(|hot| Now(u64::from(self.due_tick(hot.seen_tick, hot.class)) * TICK_MS))
    }
}
