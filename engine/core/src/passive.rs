//! What clients meet at a server judges it, too: connects that fail, and responses that say it cannot (`health.passive`).
//!
//! The workers count, somebody with a clock reads the counts a few times in each window, and what is decided here goes into the next snapshot like a
//! verdict. It is known faster than a check may run, and of what no check asks about; in return it is only ever a guess, so it is bounded: in time, and
//! in how many servers of a service it may take away ([`crate::eligible::put_out`]). Envoy calls it outlier detection.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use towpath_config::model::Passive;

use crate::ids::RealServerId;
use crate::time::Now;

/// Readings of one window that are kept.
const READINGS_PER_WINDOW: u64 = 16;
/// A server is out up to two to the power of this times as long as the first time.
const HOLD_DOUBLINGS_MAX: u32 = 3;
/// A server that was not out for so many times the hold is as if it never had been.
const FORGIVEN_AFTER_HOLDS: u64 = 16;

/// What clients have met at a server since the start, over all workers and services.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Met {
    /// Connections that reached it.
    pub opened: u64,
    /// Connects that it refused or did not answer, or whose TLS it failed.
    pub failed: u64,
    /// Its responses in HTTP mode, and those that did not come in time.
    pub responses: u64,
    /// Of these, those with a status of 500 or more, and those that did not come.
    pub errors: u64,
}

impl std::ops::Add for Met {
    type Output = Met;

    fn add(self, other: Met) -> Met {
        Met {
            opened: self.opened + other.opened,
            failed: self.failed + other.failed,
            responses: self.responses + other.responses,
            errors: self.errors + other.errors,
        }
    }
}

/// Why a server is out, and since when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Out {
    /// In words.
    pub reason: Arc<str>,
    /// Since when.
    pub since: Now,
}

/// Something about a server has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassiveChange {
    /// The server.
    pub server: RealServerId,
    /// By which rule.
    pub rule: Passive,
    /// Why it is out from now on; `None` = it is out no more.
    pub out: Option<Arc<str>>,
}

/// Which servers are out, by server and rule.
#[derive(Clone, Debug, Default)]
pub struct PassiveBoard {
    rows: HashMap<(RealServerId, Passive), Row>,
}

#[derive(Clone, Debug, Default)]
struct Row {
    /// Of the window, oldest first; empty while it is out.
    readings: VecDeque<(Now, Met)>,
    out: Option<(Out, Now)>,
    /// When it was let in again, and how often it was out before, if that is not forgiven yet.
    before: Option<(Now, u32)>,
}

impl PassiveBoard {
    /// What is known about this server by this rule, if it is out.
    pub fn out(&self, server: RealServerId, rule: &Passive) -> Option<&Out> {
        self.rows.get(&(server, *rule))?.out.as_ref().map(|(out, _)| out)
    }

    /// When it was let in again, if that was lately.
    pub fn returned(&self, server: RealServerId, rule: &Passive) -> Option<Now> {
        self.rows.get(&(server, *rule))?.before.map(|(since, _)| since)
    }

    /// Whether somebody is out.
    pub fn is_any_out(&self) -> bool {
        self.rows.values().any(|row| row.out.is_some())
    }

    /// Looks at what clients have met at these servers; everything about others is forgotten. Says who is out from now on, and who is no more.
    pub fn look(&mut self, met: &HashMap<(RealServerId, Passive), Met>, now: Now) -> Vec<PassiveChange> {
        self.rows.retain(|subject, _| met.contains_key(subject));
        let mut changes = Vec::new();
        for (&(server, rule), &met) in met {
            let row = self.rows.entry((server, rule)).or_default();
            if let Some(out) = row.look(&rule, met, now) {
                changes.push(PassiveChange { server, rule, out });
            }
        }
        changes.sort_by_key(|change| change.server);
        changes
    }
}

impl Row {
    fn look(&mut self, rule: &Passive, met: Met, now: Now) -> Option<Option<Arc<str>>> {
        if let Some((_, until)) = &self.out {
            if now < *until {
                return None;
            }
            let times = self.before.map_or(0, |(_, times)| times);
            self.before = Some((now, times + 1));
            self.out = None;
            self.readings.push_back((now, met));
            return Some(None);
        }
        if self.before.is_some_and(|(since, _)| now.ms_since(since) > rule.hold_ms * FORGIVEN_AFTER_HOLDS) {
            self.before = None;
        }
        // One stays that is as old as the window, for the difference to it.
        while self.readings.get(1).is_some_and(|(at, _)| now.ms_since(*at) >= rule.window_ms) {
            self.readings.pop_front();
        }
        let (_, first) = *self.readings.front().unwrap_or(&(now, met));
        let verdict = complaint(rule, first, met);
        if let Some(reason) = verdict {
            let doublings = self.before.map_or(0, |(_, times)| times).min(HOLD_DOUBLINGS_MAX);
            let hold_ms = rule.hold_ms << doublings;
            let reason: Arc<str> = format!("clients met: {reason}; out for {} s", hold_ms.div_ceil(1000)).into();
            self.out = Some((Out { reason: Arc::clone(&reason), since: now }, now + hold_ms));
            self.readings.clear();
            return Some(Some(reason));
        }
        let step_ms = rule.window_ms / READINGS_PER_WINDOW;
        if self.readings.back().is_none_or(|(at, _)| now.ms_since(*at) >= step_ms) {
            self.readings.push_back((now, met));
        }
        None
    }
}

/// What of `then` to `met` is too much.
fn complaint(rule: &Passive, then: Met, met: Met) -> Option<String> {
    let since = |count: fn(&Met) -> u64| count(&met).saturating_sub(count(&then));
    let (failed, opened) = (since(|met| met.failed), since(|met| met.opened));
    let (errors, responses) = (since(|met| met.errors), since(|met| met.responses));
    let is_too_much = |share: u8, bad: u64, all: u64| {
        share > 0 && all >= u64::from(rule.at_least) && bad * 100 >= all * u64::from(share)
    };
    let window_s = rule.window_ms.div_ceil(1000);
    if is_too_much(rule.connect_failures, failed, failed + opened) {
        return Some(format!("{failed} of {} connects failed within {window_s} s", failed + opened));
    }
    if is_too_much(rule.server_errors, errors, responses) {
        return Some(format!("{errors} of {responses} responses were errors within {window_s} s"));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Passive =
        Passive { connect_failures: 50, server_errors: 30, at_least: 10, window_ms: 10_000, hold_ms: 30_000 };
    const SERVER: RealServerId = RealServerId(3);

    struct Lab {
        board: PassiveBoard,
        met: Met,
        now: Now,
    }

    impl Lab {
        fn new() -> Lab {
            let mut lab = Lab { board: PassiveBoard::default(), met: Met::default(), now: Now(1_000) };
            assert_eq!(lab.meets(0, Met::default()), []);
            lab
        }

        /// So much later, so much more was met.
        fn meets(&mut self, ms: u64, met: Met) -> Vec<PassiveChange> {
            self.now = self.now + ms;
            self.met = self.met + met;
            self.board.look(&[((SERVER, RULE), self.met)].into(), self.now)
        }

        fn is_out(&self) -> bool {
            self.board.out(SERVER, &RULE).is_some()
        }
    }

    fn connects(opened: u64, failed: u64) -> Met {
        Met { opened, failed, ..Met::default() }
    }

    fn responses(responses: u64, errors: u64) -> Met {
        Met { responses, errors, ..Met::default() }
    }

    #[test]
    fn so_many_failures_take_it_out_and_fewer_do_not() {
        let table = [
            (connects(5, 5), true),
            (connects(6, 5), false),
            (connects(0, 9), false),
            (connects(0, 10), true),
            (responses(10, 3), true),
            (responses(10, 2), false),
            (responses(9, 9), false),
            (connects(1000, 0), false),
        ];
        for (met, out) in table {
            let mut lab = Lab::new();
            let changes = lab.meets(500, met);
            assert_eq!((changes.len(), lab.is_out()), (usize::from(out), out), "{met:?}");
        }
        let mut lab = Lab::new();
        let reason = lab.meets(500, connects(2, 8))[0].out.clone().expect("it is out");
        assert_eq!(&*reason, "clients met: 8 of 10 connects failed within 10 s; out for 30 s");
    }

    #[test]
    fn only_what_is_within_the_window_counts() {
        let mut lab = Lab::new();
        // One failure each three seconds: four of them are in the window at most.
        for _ in 0..20 {
            assert_eq!(lab.meets(3_000, connects(0, 1)), []);
        }
        assert!(lab.board.rows[&(SERVER, RULE)].readings.len() <= READINGS_PER_WINDOW as usize + 2);
        // The same many at once do.
        assert_eq!(lab.meets(500, connects(0, 10)).len(), 1);
    }

    #[test]
    fn it_is_out_for_longer_each_time_until_it_has_been_good_for_long() {
        let mut lab = Lab::new();
        for hold_ms in [30_000, 60_000, 120_000, 240_000, 240_000] {
            assert_eq!(lab.meets(500, connects(0, 10)).len(), 1);
            // What it meets while it is out, of clients on their way, does not count.
            assert_eq!(lab.meets(hold_ms - 1, connects(0, 50)), []);
            let back = lab.meets(1, Met::default());
            assert_eq!((back.len(), back[0].out.clone(), lab.is_out()), (1, None, false));
            assert_eq!(lab.board.returned(SERVER, &RULE), Some(lab.now));
        }
        assert_eq!(lab.meets(16 * 30_000 + 1, connects(5, 0)), []);
        assert_eq!(lab.meets(500, connects(0, 10)).len(), 1);
        assert_eq!(lab.meets(30_000, Met::default()).len(), 1, "as the first time");
    }

    #[test]
    fn what_nobody_asks_about_any_more_is_forgotten() {
        let mut lab = Lab::new();
        assert_eq!(lab.meets(500, connects(0, 10)).len(), 1);
        assert!(lab.board.is_any_out());
        assert_eq!(lab.board.look(&HashMap::new(), lab.now), []);
        assert!(!lab.board.is_any_out() && lab.board.rows.is_empty());
    }
}
