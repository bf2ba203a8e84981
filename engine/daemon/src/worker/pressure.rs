//! What connections with TLS hold while their peers are slow: parts of records, and buffers whose bytes nobody takes. Both are bounded for all
//! connections of a worker together; who has held on longest to what brings nothing gives way.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use towpath_core::Now;
use towpath_core::counters::Termination;
use towpath_core::session::{Event, Side};
use towpath_sys::socket;

use super::relay::Relay;
use super::token::Key;
use super::{Worker, secure};

/// At the bound of kept bytes, this part of them is given up at once, so that not every further byte has somebody looked for.
const GIVEN_UP_SHARE: usize = 8;
/// How often those are looked at whom others wait for, …
const SLOW_LOOK_MS: u64 = 500;
/// … over how long a time, …
const SLOW_MS: u64 = 2_000;
/// … and what their peers have to take meanwhile: 64 kbit/s.
const SLOW_BYTES: u64 = 16 * 1024;

/// Bytes that a worker with so many buffers keeps of records of which only a part has come.
pub(crate) fn kept_bytes_max(record_buffers: u16) -> usize {
    usize::from(record_buffers) * secure::RECEIVED_MAX as usize
}

/// What all legs of a worker keep together.
#[derive(Clone, Default)]
pub(super) struct KeptBytes(Rc<Cell<usize>>);

impl KeptBytes {
    fn bytes(&self) -> usize {
        self.0.get()
    }
}

/// What one leg keeps of it.
pub(super) struct Kept {
    all: KeptBytes,
    bytes: usize,
    since: Now,
}

impl Kept {
    /// Nothing yet.
    pub(super) fn nothing(all: &KeptBytes) -> Kept {
        Kept { all: all.clone(), bytes: 0, since: Now::default() }
    }

    /// Notes how many bytes there are now.
    pub(super) fn note(&mut self, bytes: usize, now: Now) {
        if self.bytes == 0 {
            self.since = now;
        }
        self.all.0.set(self.all.bytes() - self.bytes + bytes);
        self.bytes = bytes;
    }

    /// Notes that those of before were of use: what there is now has come since.
    pub(super) fn renew(&mut self, now: Now) {
        self.since = now;
    }

    /// Since when there is something.
    pub(super) fn since(&self) -> Option<Now> {
        (self.bytes > 0).then_some(self.since)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.all.0.set(self.all.bytes() - self.bytes);
    }
}

/// A send in flight that holds a buffer of TLS: what its peer had acknowledged when it was looked at, if it was.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SendWatch {
    seen: Option<(Now, u64)>,
}

impl SendWatch {
    /// Looks at it; says whether its peer takes too little.
    fn look(&mut self, acknowledged: u64, now: Now) -> bool {
        let Some((at, before)) = self.seen else {
            self.seen = Some((now, acknowledged));
            return false;
        };
        if now.ms_since(at) < SLOW_MS {
            return false;
        }
        self.seen = Some((now, acknowledged));
        acknowledged.saturating_sub(before) < SLOW_BYTES
    }
}

impl Relay {
    /// Whether one of its sends takes too long, while others wait.
    fn is_slow(&mut self, now: Now) -> bool {
        Side::BOTH.into_iter().any(|to| {
            let acknowledged = self.leg(to).and_then(|leg| socket::acknowledged_bytes(leg).ok());
            let watch = self.sends[to.index()].as_mut();
            // A leg that has failed says so by its send.
            watch.zip(acknowledged).is_some_and(|(watch, acknowledged)| watch.look(acknowledged, now))
        })
    }
}

impl Worker {
    /// Ends those that have kept parts of records longest, if there is too much of them.
    pub(super) fn bound_kept(&mut self) -> io::Result<()> {
        let max = kept_bytes_max(self.settings.record_buffers);
        if self.kept.bytes() <= max {
            return Ok(());
        }
        let since = |relay: &Relay| {
            let stowed = relay.http.as_ref().and_then(|conversation| conversation.stowed_since());
            relay.tls.iter().flatten().filter_map(|leg| leg.kept.since()).chain(stowed).min()
        };
        let mut longest: Vec<(Now, Key)> =
            self.relays.iter().filter_map(|(key, relay)| Some((since(relay)?, key))).collect();
        longest.sort_unstable_by_key(|(since, _)| *since);
        for (_, key) in longest {
            if self.kept.bytes() <= max - max / GIVEN_UP_SHARE {
                break;
            }
            let legs = self.relays.get_mut(key).into_iter().flat_map(|relay| relay.tls.iter_mut().flatten());
            legs.for_each(|leg| leg.forget_kept());
            self.end_relay(key, Termination::OutOfTlsMemory)?;
        }
        Ok(())
    }

    /// Ends those whose peers take too little of what buffers hold, while others wait for buffers.
    pub(super) fn end_slow(&mut self) -> io::Result<()> {
        if self.unsealed.is_empty() && self.unsent.is_empty() && self.starved_records.is_empty() {
            self.slow_look = None;
            return Ok(());
        }
        let due = *self.slow_look.get_or_insert(self.now + SLOW_LOOK_MS);
        if self.now < due {
            return Ok(());
        }
        self.slow_look = Some(self.now + SLOW_LOOK_MS);
        // A worker that stood still itself judges nobody by that time.
        let stood_still = self.now.ms_since(due) > SLOW_LOOK_MS;
        let sends = |relay: &Relay| !relay.is_given_up() && relay.sends.iter().any(Option::is_some);
        let senders: Vec<Key> = self.relays.iter().filter(|(_, relay)| sends(relay)).map(|(key, _)| key).collect();
        for key in senders {
            let Some(relay) = self.relays.get_mut(key) else { continue };
            if stood_still {
                relay.sends.iter_mut().flatten().for_each(|watch| *watch = SendWatch::default());
            }
            if relay.is_slow(self.now) {
                self.drive(key, Event::End(Termination::OutOfTlsBuffers))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_legs_keep_is_counted_together_and_forgotten_with_them() {
        let (all, start) = (KeptBytes::default(), Now::default());
        let mut first = Kept::nothing(&all);
        let mut second = Kept::nothing(&all);
        assert_eq!((first.since(), all.bytes()), (None, 0));
        first.note(100, start + 1);
        second.note(50, start + 2);
        first.note(120, start + 3);
        assert_eq!((first.since(), second.since(), all.bytes()), (Some(start + 1), Some(start + 2), 170));
        first.note(20, start + 4);
        first.renew(start + 4);
        assert_eq!((first.since(), all.bytes()), (Some(start + 4), 70));
        drop(second);
        first.note(0, start + 5);
        assert_eq!((first.since(), all.bytes()), (None, 0));
    }

    #[test]
    fn a_peer_is_slow_that_takes_less_than_64_kilobits_a_second() {
        let (mut watch, start) = (SendWatch::default(), Now::default());
        assert!(!watch.look(1_000_000, start));
        assert!(!watch.look(1_000_000, start + SLOW_MS - 1), "too early to say");
        assert!(!watch.look(1_000_000 + SLOW_BYTES, start + SLOW_MS));
        assert!(watch.look(1_000_000 + 2 * SLOW_BYTES - 1, start + 2 * SLOW_MS));
    }
}
