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
use super::secure::TlsLeg;
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
    /// Looks at it; says how much its peer has taken, and since when, if that is too little.
    fn look(&mut self, acknowledged: u64, now: Now) -> Option<(u64, Now)> {
        let (at, before) = *self.seen.get_or_insert((now, acknowledged));
        if now.ms_since(at) < SLOW_MS {
            return None;
        }
        let taken = acknowledged.saturating_sub(before);
        if taken < SLOW_BYTES {
            return Some((taken, at));
        }
        self.seen = Some((now, acknowledged));
        None
    }
}

impl Relay {
    /// The slowest of its sends that take too long: how much was taken, and since when.
    fn slowness(&mut self, now: Now) -> Option<(u64, Now)> {
        let looks = Side::BOTH.map(|to| {
            let acknowledged = self.leg(to).and_then(|leg| socket::acknowledged_bytes(leg).ok());
            // A leg that has failed says so by its send.
            self.sends[to.index()].as_mut().zip(acknowledged).and_then(|(watch, taken)| watch.look(taken, now))
        });
        looks.into_iter().flatten().min()
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
            let hub = relay.hub.as_ref().and_then(|hub| hub.kept_since());
            relay.legs.each_tls().filter_map(|leg| leg.kept.since()).chain(stowed).chain(hub).min()
        };
        let mut longest: Vec<(Now, Key)> =
            self.relays.iter().filter_map(|(key, relay)| Some((since(relay)?, key))).collect();
        longest.sort_unstable_by_key(|(since, _)| *since);
        for (_, key) in longest {
            if self.kept.bytes() <= max - max / GIVEN_UP_SHARE {
                break;
            }
            if let Some(relay) = self.relays.get_mut(key) {
                for side in Side::BOTH {
                    relay.legs.tls_mut(side).into_iter().for_each(TlsLeg::forget_kept);
                }
            }
            self.end_relay(key, Termination::OutOfTlsMemory)?;
        }
        Ok(())
    }

    /// Ends those whose peers take least of what buffers hold, of those that take too little: as many as wait for buffers.
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
        let starved = self.unsent.iter().chain(&self.starved_records).map(|(key, _)| *key);
        let waiters = self.unsealed.iter().map(|(key, ..)| *key).chain(starved);
        let waiting = waiters.filter(|key| self.relays.get(*key).is_some_and(|relay| !relay.is_ending())).count();
        // A worker that stood still itself judges nobody by that time.
        let stood_still = self.now.ms_since(due) > SLOW_LOOK_MS;
        let sends = |relay: &Relay| !relay.is_given_up() && relay.sends.iter().any(Option::is_some);
        let senders: Vec<Key> = self.relays.iter().filter(|(_, relay)| sends(relay)).map(|(key, _)| key).collect();
        let mut slow: Vec<((u64, Now), Key)> = Vec::new();
        for key in senders {
            let Some(relay) = self.relays.get_mut(key) else { continue };
            if stood_still {
                relay.sends.iter_mut().flatten().for_each(|watch| *watch = SendWatch::default());
            }
            slow.extend(relay.slowness(self.now).map(|slowness| (slowness, key)));
        }
        slow.sort_unstable_by_key(|(slowness, _)| *slowness);
        for (_, key) in slow.into_iter().take(waiting) {
            self.drive(key, Event::End(Termination::OutOfTlsBuffers))?;
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
        assert_eq!(watch.look(1_000_000, start), None);
        assert_eq!(watch.look(1_000_000, start + SLOW_MS - 1), None, "too early to say");
        assert_eq!(watch.look(1_000_000 + SLOW_BYTES, start + SLOW_MS), None);
        let slow = watch.look(1_000_000 + 2 * SLOW_BYTES - 1, start + 2 * SLOW_MS);
        assert_eq!(slow, Some((SLOW_BYTES - 1, start + SLOW_MS)));
        // It stays so until it has caught up.
        assert_eq!(watch.look(1_000_000 + 2 * SLOW_BYTES - 1, start + 3 * SLOW_MS), slow);
        assert_eq!(watch.look(1_000_000 + 2 * SLOW_BYTES, start + 3 * SLOW_MS), None);
    }
}
