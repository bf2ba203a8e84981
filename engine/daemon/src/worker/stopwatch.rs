//! When a connection began what the histograms measure ([`Latency`]). The times are those of the worker's breaths, so nothing is asked of the clock for them.

use towpath_core::histogram::Latency;
use towpath_core::session::{Event, Side};

use super::Worker;
use super::relay::Relay;
use super::token::Key;

/// Of one connection; times in microseconds, as [`Worker::now_us`].
#[derive(Default)]
pub(super) struct Stopwatch {
    /// When the handshake with the client was begun.
    pub(super) entered_us: u64,
    /// When the connect at hand was begun; `None` while there is none.
    dialled_us: Option<u64>,
    answer: Answer,
}

/// How it is with the first byte of a server, of a connection that is relayed as it is.
#[derive(Clone, Copy, Default)]
enum Answer {
    /// There is no server yet, and the client has said nothing.
    #[default]
    Silence,
    /// There is no server yet, but something for it.
    Asked,
    /// The server is there, and waited for since then; the client has said nothing yet.
    Open { since_us: u64 },
    /// The same, and the client has said something.
    Due { since_us: u64 },
    /// It has come.
    Over,
}

impl Stopwatch {
    /// A connect is begun.
    pub(super) fn dial(&mut self, now_us: u64) {
        self.dialled_us = Some(now_us);
    }

    /// Its server is there; says how long that took.
    pub(super) fn reach(&mut self, now_us: u64) -> Option<u64> {
        self.answer = match self.answer {
            Answer::Silence => Answer::Open { since_us: now_us },
            Answer::Asked => Answer::Due { since_us: now_us },
            further => further,
        };
        Some(now_us.saturating_sub(self.dialled_us.take()?))
    }

    /// Something has come from one side; says how long it was waited for, if that is the first byte of the server.
    #[inline]
    fn hear(&mut self, from: Side, now_us: u64) -> Option<u64> {
        let (next, waited_us) = match (from, self.answer) {
            (_, Answer::Over) => return None,
            (Side::Client, Answer::Silence) => (Answer::Asked, None),
            (Side::Client, Answer::Open { .. }) => (Answer::Due { since_us: now_us }, None),
            (Side::Client, further) => (further, None),
            (Side::Server, Answer::Open { since_us } | Answer::Due { since_us }) => {
                (Answer::Over, Some(now_us.saturating_sub(since_us)))
            }
            // A server that was not there yet has said nothing.
            (Side::Server, further) => (further, None),
        };
        self.answer = next;
        waited_us
    }
}

impl Worker {
    /// Measures how long something took, for the service of this connection.
    fn measure(&self, relay: &Relay, latency: Latency, us: u64) {
        self.shared.seat(self.id).service_page(relay.service().id).measure(latency, us);
    }

    /// A real server is there.
    pub(super) fn measure_connect(&mut self, key: Key) {
        let now_us = self.now_us;
        let Some(took_us) = self.relays.get_mut(key).and_then(|relay| relay.stopwatch.reach(now_us)) else { return };
        if let Some(relay) = self.relays.get(key) {
            self.measure(relay, Latency::Connect, took_us);
        }
    }

    /// A session hears of bytes: those that a server has said first are measured.
    #[inline]
    pub(super) fn measure_first_byte(&mut self, key: Key, event: Event) {
        let (Event::Received { from, .. } | Event::Ready { from }) = event else { return };
        let now_us = self.now_us;
        let Some(relay) = self.relays.get_mut(key) else { return };
        if let Some(waited_us) = relay.stopwatch.hear(from, now_us)
            && let Some(relay) = self.relays.get(key)
        {
            self.measure(relay, Latency::FirstByte, waited_us);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_speaks_first_is_waited_for_since_it_was_there() {
        let mut watch = Stopwatch::default();
        watch.dial(100);
        assert_eq!(watch.reach(350), Some(250));
        assert_eq!(watch.hear(Side::Server, 1_350), Some(1_000));
        assert_eq!(watch.hear(Side::Client, 2_000), None);
        assert_eq!(watch.hear(Side::Server, 3_000), None, "only the first byte counts");
    }

    #[test]
    fn a_server_that_is_asked_is_waited_for_since_then() {
        let mut watch = Stopwatch::default();
        watch.dial(0);
        watch.reach(10);
        assert_eq!(watch.hear(Side::Client, 5_000), None);
        // The rest of what it asks.
        assert_eq!(watch.hear(Side::Client, 6_000), None);
        assert_eq!(watch.hear(Side::Server, 5_800), Some(800));
    }

    #[test]
    fn what_was_asked_before_there_was_a_server_counts_from_its_being_there() {
        let mut watch = Stopwatch::default();
        assert_eq!(watch.hear(Side::Client, 5), None);
        watch.dial(10);
        // The first one refused.
        watch.dial(1_000);
        assert_eq!(watch.reach(1_400), Some(400));
        assert_eq!(watch.hear(Side::Client, 1_500), None);
        assert_eq!(watch.hear(Side::Server, 2_000), Some(600));
        assert_eq!(watch.reach(2_100), None, "nothing was dialled");
    }
}
