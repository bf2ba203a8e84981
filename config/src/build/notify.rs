//! The part of the model that is about telling others what has changed.

use super::command_line;
use crate::decode::{Section, Value};
use crate::model::{self, EventKind};
use crate::rules::notify::webhook_parts;

/// The outer `None` means that something is missing, the inner that nobody is told.
pub(super) fn notify(root: &Section) -> Option<Option<model::Notify>> {
    let Some(section) = root.table("notify") else { return Some(None) };
    let webhook = || {
        let parts = webhook_parts(section.text("webhook")?.value).ok()?;
        let path = |key| section.text(key).map(|path| path.value.into());
        Some(model::Webhook {
            host: parts.host.to_owned(),
            port: parts.port,
            authority: parts.authority.to_owned(),
            path: parts.path.to_owned(),
            authorities: if parts.has_tls { path("webhook_ca") } else { None },
            token_file: path("webhook_token_file"),
        })
    };
    Some(Some(model::Notify {
        command: command_line(section, "command"),
        webhook: webhook(),
        events: match (section.word("events"), section.list("events")) {
            (Some(word), _) => vec![event(word.value)?],
            (None, Some(words)) => {
                let words = words
                    .value
                    .iter()
                    .filter_map(|word| if let Value::Word(word) = word.value { Some(word) } else { None });
                words.filter_map(event).collect()
            }
            (None, None) => EventKind::ALL.to_vec(),
        },
        batch_ms: section.duration("batch")?.value,
        interval_ms: section.duration("interval")?.value,
        timeout_ms: section.duration("timeout")?.value,
    }))
}

fn event(word: &str) -> Option<EventKind> {
    EventKind::ALL.into_iter().find(|kind| kind.word() == word)
}
