//! Where log lines go: what is told by `tracing` becomes a line of the daemon's own log ([`towpath_engine::daemon_log`]).
//!
//! The subscriber is our own: it needs no spans, and one that has them cannot be told another level while it runs, sum up what comes again, or
//! wait for nobody.

use std::env;
use std::fmt::{self, Write};
use std::io;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::{Interest, set_global_default};
use tracing::{Event, Metadata, Subscriber};

use towpath_engine::daemon_log::{self, Reader};

use crate::paint::Paint;

/// The log of the process; dropped, it writes what there is to be written.
#[must_use = "the log ends when it is dropped"]
pub(crate) struct Log(());

impl Drop for Log {
    fn drop(&mut self) {
        daemon_log::finish();
    }
}

/// Installs the log for the whole process; `level` is stronger than what the configuration says.
pub(crate) fn install(level: Option<LevelFilter>) -> io::Result<Log> {
    let reader = match Paint::on(&io::stderr()) {
        _ if Reader::is_journal(env::var("JOURNAL_STREAM").ok().as_deref()) => Reader::Journal,
        Paint::Colour => Reader::Terminal,
        Paint::Plain => Reader::Plain,
    };
    daemon_log::start(reader, level)?;
    // One that is there already, as in a test, goes on.
    let _first = set_global_default(Teller);
    Ok(Log(()))
}

/// Hands on what is told.
struct Teller;

impl Subscriber for Teller {
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        // A reload may change the level.
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        daemon_log::is_told(*metadata.level())
    }

    fn event(&self, event: &Event<'_>) {
        let mut words = Words::default();
        event.record(&mut words);
        daemon_log::tell(*event.metadata().level(), &words.text());
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        // There are none; one number does for all.
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// What an event says: its message, and whatever else it names.
#[derive(Default)]
struct Words {
    message: String,
    fields: String,
}

impl Words {
    fn text(self) -> String {
        self.message + &self.fields
    }
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing into memory does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
