//! What receivers get: an object of JSON, and a text for people.

use std::fs;
use std::sync::Arc;

use serde::Serialize;
use towpath_core::notices::Message;

use crate::events::Event;

/// Bytes of text in the environment of a command: programs share a few megabytes of it with their arguments (execve(2)).
const ENVIRONMENT_BYTES_MAX: usize = 4096;

/// Who speaks.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    host: String,
    version: String,
}

#[derive(Serialize)]
struct Body<'m> {
    text: &'m str,
    host: &'m str,
    version: &'m str,
    dropped: u64,
    events: Vec<&'m Event>,
}

impl Sender {
    /// This machine, and this version of the program.
    pub(super) fn here(version: &str) -> Sender {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Sender { host: host.trim_end().to_owned(), version: version.to_owned() }
    }

    /// A line per event.
    pub(super) fn text(&self, message: &Message<Arc<Event>>) -> String {
        let mut lines: Vec<String> = Vec::with_capacity(message.notices().len() + 1);
        if message.dropped > 0 {
            lines.push(format!("{}: {} earlier events are not told", self.host, message.dropped));
        }
        lines.extend(message.notices().map(|event| format!("{}: {}", self.host, plain(&event.line()))));
        lines.join("\n")
    }

    /// All of it.
    pub(super) fn body(&self, message: &Message<Arc<Event>>, text: &str) -> Result<Vec<u8>, String> {
        let events = message.notices().map(Arc::as_ref).collect();
        let body = Body { text, host: &self.host, version: &self.version, dropped: message.dropped, events };
        serde_json::to_vec(&body).map_err(|error| error.to_string())
    }

    /// What a command has in its environment.
    pub(super) fn environment(&self, message: &Message<Arc<Event>>, text: &str) -> [(&'static str, String); 3] {
        [
            ("TOWPATH_EVENTS", message.notices().len().to_string()),
            ("TOWPATH_HOST", self.host.clone()),
            ("TOWPATH_TEXT", cut(text).to_owned()),
        ]
    }
}

/// Without what ends a line, or a variable of an environment: reasons may have words of servers in them.
fn plain(line: &str) -> String {
    line.replace(char::is_control, " ")
}

/// As much of it as a command gets, by whole characters.
fn cut(text: &str) -> &str {
    let end = (0..=text.len().min(ENVIRONMENT_BYTES_MAX)).rev().find(|&at| text.is_char_boundary(at));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use towpath_config::model::EventKind;
    use towpath_core::Now;
    use towpath_core::notices::{MESSAGE_NOTICES_MAX, NOTICES_MAX, Notices, Rhythm};

    use super::*;

    fn event(subject: &str) -> Arc<Event> {
        let event = Event::now(EventKind::Health, "up", "down", "port 443: connection refused");
        Arc::new(Event { unix_ms: 1, ..event.services(vec!["web".to_owned()]).subject(subject) })
    }

    #[test]
    fn a_message_has_a_line_for_people_and_every_event_for_programs() {
        let mut notices = Notices::new(Rhythm { batch_ms: 0, interval_ms: 0 });
        for number in 0..NOTICES_MAX + 2 {
            notices.offer(event(&format!("server FE-{number}")), Now(0));
        }
        let message = notices.take_at_once().expect("they wait");
        let sender = Sender { host: "lb1".to_owned(), version: "1.2".to_owned() };
        let text = sender.text(&message);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), MESSAGE_NOTICES_MAX + 1);
        assert_eq!(lines[0], "lb1: 2 earlier events are not told");
        assert_eq!(lines[1], "lb1: server FE-2 of web: up → down: port 443: connection refused");
        let body: serde_json::Value = serde_json::from_slice(&sender.body(&message, &text).unwrap()).unwrap();
        assert_eq!((&body["host"], &body["version"], &body["dropped"]), (&"lb1".into(), &"1.2".into(), &2.into()));
        assert_eq!(body["text"], text);
        let expected = serde_json::json!({
            "id": 0, "unix_ms": 1, "kind": "health", "services": ["web"], "subject": "server FE-2",
            "from": "up", "to": "down", "reason": "port 443: connection refused",
        });
        assert_eq!(body["events"][0], expected);
        let environment = sender.environment(&message, &text);
        assert_eq!(environment[0], ("TOWPATH_EVENTS", MESSAGE_NOTICES_MAX.to_string()));
        assert!(environment[2].1.len() <= ENVIRONMENT_BYTES_MAX && text.starts_with(&environment[2].1));
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(cut("up → down"), "up → down");
        let long = "x".repeat(ENVIRONMENT_BYTES_MAX - 1) + "→ down";
        assert_eq!(cut(&long), "x".repeat(ENVIRONMENT_BYTES_MAX - 1));
        assert_eq!(plain("says a\0b\r\n\x1b[1m"), "says a b   [1m");
    }
}
