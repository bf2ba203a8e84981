//! The part of the model that is about metrics.

use super::networks;
use crate::decode::{Section, Value};
use crate::model;

pub(super) fn metrics(root: &Section) -> model::Metrics {
    let Some(section) = root.table("metrics") else { return model::Metrics::default() };
    model::Metrics {
        listen: section.entry("listen").and_then(|entry| match entry.value {
            Value::Socket(listen) => Some(listen),
            _ => None,
        }),
        from: networks(section, "from"),
    }
}
