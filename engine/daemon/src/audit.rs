//! The event of an order that takes its time (a kill, a capture, clients forgotten): who wanted what and what came of it, told when it is over, also when
//! nobody has waited for it. Orders that are done at once tell their event where they are done.

use crate::events::{Event, EventKind, Tone};
use crate::house::House;

/// What is done for somebody at run time, told when it is over: also when who wanted it goes away before, and it stops half way.
pub(crate) struct Audit<'h> {
    house: &'h House,
    event: Option<Event>,
}

impl<'h> Audit<'h> {
    /// Something is begun; `so_far` is what is told if it is not brought to its end.
    pub(crate) fn begin(house: &'h House, what: &str, so_far: &str, reason: String) -> Audit<'h> {
        let so_far = format!("{so_far}; who wanted it has not waited");
        Audit { house, event: Some(Event::now(EventKind::Admin, what, so_far, reason)) }
    }

    /// It is done.
    pub(crate) fn end(mut self, outcome: String, services: Vec<String>) {
        self.event = self.event.take().map(|event| Event { to: outcome, ..event.services(services) });
    }

    /// It was not even begun.
    pub(crate) fn forget(mut self) {
        self.event = None;
    }
}

impl Drop for Audit<'_> {
    fn drop(&mut self) {
        if let Some(event) = self.event.take() {
            self.house.truth().record(Tone::Info, event);
        }
    }
}
