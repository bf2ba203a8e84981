//! `GET /v1/events`: what changed lately, and what changes next.

use std::time::Duration;

use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::CONNECTION_TIMEOUT;
use super::answer::{Answer, json, problem};
use super::route::{Asked, unescape};
use crate::events::{EVENTS_MAX, Event};

/// An answer waits at most so long for something to happen.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(30);
/// Answers that wait at the same time: they hold places of others.
const WAITING_MAX: usize = 6;
static WAITING: Semaphore = Semaphore::const_new(WAITING_MAX);

/// The latest changes of state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsPage {
    /// Oldest first.
    pub events: Vec<Event>,
    /// What to say as `since` to hear what follows: the run of the process, and the last event of it.
    pub cursor: String,
    /// Events after `since` that are not kept any more.
    pub missed: u64,
}

/// Where somebody has read up to: the run of the process, by its start, and the last event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    run: u64,
    last: u64,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wanted {
    since: Option<Cursor>,
    limit: usize,
    wait: Duration,
}

/// The events; waits for the first one if that is asked for.
pub(super) async fn show(query: &str, asked: &Asked<'_>) -> Answer {
    let wanted = match Wanted::read(query) {
        Ok(wanted) => wanted,
        Err(message) => return problem(StatusCode::BAD_REQUEST, "bad_query", message),
    };
    let news = asked.house.truth().events().news();
    // Before the first look: what happens between the look and the wait is not to be waited for.
    let happened = news.notified();
    tokio::pin!(happened);
    happened.as_mut().enable();
    let page = asked.house.truth().events().page(&wanted);
    if !page.events.is_empty() || wanted.wait.is_zero() {
        return json(StatusCode::OK, &page);
    }
    let Ok(_waiting) = WAITING.try_acquire() else { return json(StatusCode::OK, &page) };
    asked.deadline.put_off(wanted.wait + CONNECTION_TIMEOUT);
    let _late = timeout(wanted.wait, happened).await;
    json(StatusCode::OK, &asked.house.truth().events().page(&wanted))
}

impl crate::events::EventLog {
    fn page(&self, wanted: &Wanted) -> EventsPage {
        let (run, last) = self.reached();
        // Of another run nothing is known: everything is news.
        let since = wanted.since.filter(|since| since.run == run).map_or(0, |since| since.last.min(last));
        let kept = self.latest(usize::try_from(last - since).unwrap_or(usize::MAX));
        let missed = match wanted.since {
            Some(_) => (last - since) - kept.len() as u64,
            None => 0,
        };
        let skip = match wanted.since {
            // In order, so that who comes again misses nothing.
            Some(_) => 0,
            None => kept.len().saturating_sub(wanted.limit),
        };
        let events: Vec<Event> = kept.into_iter().skip(skip).take(wanted.limit).collect();
        let last = events.last().map_or(last, |event| event.id);
        EventsPage { events, cursor: Cursor { run, last }.written(), missed }
    }
}

impl Wanted {
    fn read(query: &str) -> Result<Wanted, String> {
        let mut wanted = Wanted { since: None, limit: EVENTS_MAX, wait: Duration::ZERO };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = unescape(value).ok_or_else(|| format!("the value of `{key}` is damaged"))?;
            match key {
                "since" => {
                    wanted.since = Some(Cursor::read(&value).ok_or("`since` is what an answer before called `cursor`")?)
                }
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=EVENTS_MAX).contains(limit));
                    wanted.limit = limit.ok_or_else(|| format!("`limit` is 1 to {EVENTS_MAX}"))?;
                }
                "wait" => {
                    let wait = value.parse().ok().filter(|seconds| *seconds <= WAIT_MAX.as_secs());
                    wanted.wait = wait
                        .map(Duration::from_secs)
                        .ok_or_else(|| format!("`wait` is 0 to {} seconds", WAIT_MAX.as_secs()))?;
                }
                other => {
                    let other: String = other.chars().take(40).collect();
                    return Err(format!("`{other}` is not known here; there are `since`, `limit` and `wait`"));
                }
            }
        }
        Ok(wanted)
    }
}

impl Cursor {
    fn read(text: &str) -> Option<Cursor> {
        let (run, last) = text.split_once('.')?;
        Some(Cursor { run: run.parse().ok()?, last: last.parse().ok()? })
    }

    fn written(self) -> String {
        format!("{}.{}", self.run, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{EventKind, EventLog, Tone};

    fn log(events: usize) -> EventLog {
        let mut log = EventLog::new(7);
        for number in 1..=events {
            log.record(Tone::Info, Event::now(EventKind::Health, "", number.to_string(), ""));
        }
        log
    }

    fn page(log: &EventLog, query: &str) -> (Vec<String>, String, u64) {
        let EventsPage { events, cursor, missed } = log.page(&Wanted::read(query).unwrap());
        (events.into_iter().map(|event| event.to).collect(), cursor, missed)
    }

    fn texts(numbers: std::ops::RangeInclusive<usize>) -> Vec<String> {
        numbers.map(|number| number.to_string()).collect()
    }

    #[test]
    fn who_comes_again_misses_nothing_and_hears_nothing_twice() {
        let mut log = log(3);
        assert_eq!(page(&log, ""), (texts(1..=3), "7.3".to_owned(), 0));
        assert_eq!(page(&log, "limit=2"), (texts(2..=3), "7.3".to_owned(), 0), "the latest");
        assert_eq!(page(&log, "since=7.3"), (vec![], "7.3".to_owned(), 0));
        assert_eq!(page(&log, "since=7.1&limit=1"), (texts(2..=2), "7.2".to_owned(), 0), "the next");
        log.record(Tone::Info, Event::now(EventKind::Health, "", "4", ""));
        assert_eq!(page(&log, "since=7.3"), (texts(4..=4), "7.4".to_owned(), 0));
        assert_eq!(page(&log, "since=6.3"), (texts(1..=4), "7.4".to_owned(), 0), "of another run");
        assert_eq!(page(&log, "since=7.99"), (vec![], "7.4".to_owned(), 0));
        assert_eq!(page(&EventLog::new(7), ""), (vec![], "7.0".to_owned(), 0));
    }

    #[test]
    fn what_is_not_kept_is_counted() {
        let log = log(EVENTS_MAX + 10);
        let (events, cursor, missed) = page(&log, "since=7.4");
        assert_eq!((events.len(), events[0].as_str(), missed), (EVENTS_MAX, "11", 6));
        assert_eq!(cursor, format!("7.{}", EVENTS_MAX + 10));
    }

    #[test]
    fn wrong_questions_are_refused() {
        for query in [
            "since=3",
            "since=a.b",
            "since=7.-1",
            "limit=0",
            "limit=257",
            "limit=",
            "wait=31",
            "wait=-1",
            "wait=1.5",
            "follow",
            "since=%zz",
            "a=b",
        ] {
            assert!(Wanted::read(query).is_err(), "{query}");
        }
        assert_eq!(Wanted::read("&wait=30&"), Ok(Wanted { since: None, limit: EVENTS_MAX, wait: WAIT_MAX }));
    }
}
