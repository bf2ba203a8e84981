//! What changed lately: a bounded list for status, one log line each, and word to who wants to be told ([`crate::notify`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
pub use towpath_config::model::EventKind;
use towpath_config::model::Notify;

use crate::notify::Notifier;

/// Events that are kept; the oldest gives way.
pub const EVENTS_MAX: usize = 256;

/// One change of state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number among those of this run of the process, from 1.
    #[serde(default)]
    pub id: u64,
    /// When, in milliseconds since 1970.
    pub unix_ms: u64,
    /// What kind of state changed.
    pub kind: EventKind,
    /// The services that it concerns; empty = the whole process.
    pub services: Vec<String>,
    /// The server or source address that it concerns.
    pub subject: Option<String>,
    /// The state before.
    pub from: String,
    /// The state after.
    pub to: String,
    /// Why.
    pub reason: String,
}

/// How much an event needs somebody's attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Info,
    Warn,
}

/// The latest events, oldest first.
pub(crate) struct EventLog {
    /// Tells this run of the process from others.
    run: u64,
    /// Number of the last one.
    last: u64,
    events: VecDeque<Event>,
    /// One more has come.
    news: Arc<tokio::sync::Notify>,
    /// Who has others told of them.
    notifier: Option<Arc<Notifier>>,
}

impl EventLog {
    /// Empty, for this run of the process.
    pub(crate) fn new(run: u64) -> EventLog {
        EventLog { run, last: 0, events: VecDeque::new(), news: Arc::default(), notifier: None }
    }

    /// Which run this is, and its last event.
    pub(crate) fn reached(&self) -> (u64, u64) {
        (self.run, self.last)
    }

    /// Wakes who waits for the next one.
    pub(crate) fn news(&self) -> Arc<tokio::sync::Notify> {
        Arc::clone(&self.news)
    }

    /// Has `notifier` tell others by these settings, of what is kept already, too.
    pub(crate) fn notify_by(&mut self, notifier: Arc<Notifier>, settings: Option<&Notify>) {
        notifier.follow(settings);
        self.events.iter().for_each(|event| notifier.offer(event));
        self.notifier = Some(notifier);
    }

    /// Others are told by these settings from now on.
    pub(crate) fn follow(&self, settings: Option<&Notify>) {
        if let Some(notifier) = &self.notifier {
            notifier.follow(settings);
        }
    }

    /// Keeps and logs one event, and has others told of it.
    pub(crate) fn record(&mut self, tone: Tone, event: Event) {
        self.last += 1;
        let event = Event { id: self.last, ..event };
        let line = event.line();
        match tone {
            Tone::Info => tracing::info!("{line}"),
            Tone::Warn => tracing::warn!("{line}"),
        }
        if let Some(notifier) = &self.notifier {
            notifier.offer(&event);
        }
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
        self.news.notify_waiters();
    }

    /// The latest `count`, oldest first.
    pub(crate) fn latest(&self, count: usize) -> Vec<Event> {
        let skip = self.events.len().saturating_sub(count);
        self.events.iter().skip(skip).cloned().collect()
    }
}

impl Event {
    /// An event that happened now.
    pub(crate) fn now(
        kind: EventKind,
        from: impl Into<String>,
        to: impl Into<String>,
        reason: impl Into<String>,
    ) -> Event {
        Event {
            id: 0,
            unix_ms: unix_ms(),
            kind,
            services: Vec::new(),
            subject: None,
            from: from.into(),
            to: to.into(),
            reason: reason.into(),
        }
    }

    /// About these services.
    pub(crate) fn services(self, services: Vec<String>) -> Event {
        Event { services, ..self }
    }

    /// About this server or source address.
    pub(crate) fn subject(self, subject: impl Into<String>) -> Event {
        Event { subject: Some(subject.into()), ..self }
    }

    /// `server FE-1 of front-end: up → down: port 5061: connection refused`
    pub fn line(&self) -> String {
        let subject = match (&self.subject, self.services.is_empty()) {
            (Some(subject), true) => format!("{subject}: "),
            (Some(subject), false) => format!("{subject} of {}: ", self.services.join(", ")),
            (None, false) => format!("service {}: ", self.services.join(", ")),
            (None, true) => String::new(),
        };
        let change = match (self.from.is_empty(), self.to.is_empty()) {
            (false, false) => format!("{} → {}", self.from, self.to),
            (true, _) => self.to.clone(),
            (_, true) => self.from.clone(),
        };
        match self.reason.is_empty() {
            true => format!("{subject}{change}"),
            false => format!("{subject}{change}: {}", self.reason),
        }
    }
}

pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_event_gives_way() {
        let mut log = EventLog::new(1);
        for number in 0..EVENTS_MAX + 3 {
            log.record(Tone::Info, Event::now(EventKind::Health, "up", number.to_string(), ""));
        }
        let events = log.latest(usize::MAX);
        assert_eq!(events.len(), EVENTS_MAX);
        assert_eq!(events[0].to, "3");
        assert_eq!(log.latest(1)[0].to, (EVENTS_MAX + 2).to_string());
    }

    #[test]
    fn a_line_says_who_what_and_why() {
        let event = Event::now(EventKind::Health, "up", "down", "port 5061: connection refused")
            .services(vec!["front-end".to_owned(), "web".to_owned()])
            .subject("server FE-1 (192.0.2.31)");
        assert_eq!(
            event.line(),
            "server FE-1 (192.0.2.31) of front-end, web: up → down: port 5061: connection refused"
        );
    }
}
